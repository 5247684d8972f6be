"""Files that are whole or absent, their hashes, and locks between programs."""

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A file to write that takes the name ``path`` when the block ends without an error.

    Whatever fails, ``path`` is the old file or the whole new one. The folder is created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:12]}.part{path.suffix}")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        for wait in (0.1, 0.5, 2):
            with suppress(PermissionError):  # on Windows, while another program reads the old file
                os.replace(part, path)
                return
            time.sleep(wait)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, on_wait: Callable[[Path], None] | None = None) -> Iterator[bool]:
    """Hold the lock ``path``, which ends with its process; gives whether it is held.

    With an ``on_wait``, called with the path before waiting for another program, it always is;
    without one, a lock that is taken is not waited for.
    """
    # A singleton: after a stop between taking and holding it, the next call does not wait for it.
    path.parent.mkdir(exist_ok=True)
    lock = FileLock(path, is_singleton=True)
    if lock.is_locked and on_wait is None:  # held further out, as where fit calls clean_runs
        yield False
        return
    try:
        with suppress(Timeout):
            lock.acquire(timeout=0)
        if not lock.is_locked and on_wait is not None:
            on_wait(path)
            lock.acquire()
        yield lock.is_locked
    finally:
        lock.release(force=True)
