"""What was found out about files, remembered between programs: JSON files in the cache folder."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd

from unetlib.pictures import DataError, Problem
from unetlib.support import folders
from unetlib.support.files import whole_file

DECODED = "decoded-"  # how the folders of decoded images begin, see support.cache


@contextmanager
def remembered(name: str) -> Iterator[dict]:
    """A dict of plain values that the next call with the same name finds again.

    Lost or damaged, it starts empty; where nothing can be written, nothing is kept. Of two programs
    that write at once, one wins, whole.
    """
    path, before = None, {}
    with suppress(OSError, ValueError):
        path = folders.cache_dir() / f"{name}.json"
        before = json.loads(path.read_bytes())
    known = dict(before) if isinstance(before, dict) else {}
    yield known
    if known != before and path is not None:
        with suppress(OSError), whole_file(path) as part:
            part.write_text(json.dumps(known), encoding="utf-8")


def stamp(path: str | Path | None) -> list[int] | None:
    """What changes with a file's content: its times (copying can keep the first) and its size.

    Raises:
        OSError: no such file.
    """
    if not path:
        return None
    status = os.stat(path)
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino]


def is_settled(mark: list[int] | None) -> bool:
    """Whether a file was last changed so long ago that another change would get another stamp."""
    return mark is None or time.time_ns() - max(mark[:2]) > 2_000_000_000


def file_hashes(paths: Iterable[str]) -> list[str]:
    """SHA-256 of each file, 64 hex digits ("" for no path); what has not changed is not read again.

    Raises:
        DataError: a file is gone or may not be read.
    """

    def look_up(path: str) -> str:
        mark = stamp(path)
        if mark is None:
            return ""
        if known.get(path, [None])[0] == mark:
            return known[path][1]
        to_keep = is_settled(mark)
        found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        if to_keep:
            known[path] = [mark, found]
        return found

    try:
        with remembered("hashes") as known, ThreadPoolExecutor() as pool:
            return list(pool.map(look_up, map(str, paths)))
    except OSError as error:
        remedy = "restore the file, or list the samples again (find_samples)"
        raise DataError(Problem(str(error.filename), str(error.strerror), remedy)) from None


def pair_hashes(samples: pd.DataFrame) -> list[str]:
    """64 hex digits for each row: the content of its image and mask, and its mask value.

    Raises:
        DataError: a file is gone or may not be read.
    """
    hashes, rows = file_hashes([*samples["image"], *samples["mask"].fillna("")]), len(samples)
    values = samples.reindex(columns=["mask_value"])["mask_value"].astype(float)  # nan: none
    keys = zip(hashes[:rows], hashes[rows:], values, strict=True)
    return [hashlib.sha256(" ".join(map(str, key)).encode()).hexdigest() for key in keys]


def fingerprint(samples: pd.DataFrame) -> str:
    """12 hex digits that change with any id, image, mask or mask value of the table."""
    digest = hashlib.sha256()
    for name, content in zip(samples["id"], pair_hashes(samples), strict=True):
        digest.update(f"{name} {content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:12]


def clear_cache() -> None:
    """Delete decoded images and what is known of files; what is needed again is found again."""
    cache = folders.cache_dir()
    for path in (*cache.glob(f"{DECODED}*"), *cache.glob("samples-*.json"), cache / "hashes.json"):
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink()
