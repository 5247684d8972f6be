"""What was found out about files, remembered between programs: JSON files in the cache folder."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pandas as pd

from unetlib.pictures import DataError, Problem
from unetlib.support import folders
from unetlib.support.files import file_hash, whole_file


@contextmanager
def remembered(name: str) -> Iterator[dict]:
    """A dict of plain values that the next call with the same name finds again.

    Lost or damaged, it starts empty; what cannot be written is not kept; of two programs one wins.
    """
    before = {}
    with suppress(OSError, ValueError):
        before = json.loads((folders.cache_dir() / f"{name}.json").read_bytes())
    known = dict(before) if isinstance(before, dict) else {}
    yield known
    if known != before:
        with suppress(OSError), whole_file(folders.cache_dir() / f"{name}.json") as part:
            part.write_text(json.dumps(known), encoding="utf-8")


def recall(known: dict, key: str, paths: Iterable[str | Path | None], find: Callable):
    """What ``find()`` gives, asked again only when a file has changed."""
    marks = [stamp(path) for path in paths if path]
    if known.get(key, [None])[0] != marks:
        # Asked before reading: a file changed just now may change again and keep its stamp.
        settled = all(time.time_ns() - max(mark[:2]) > 2_000_000_000 for mark in marks)
        found = find()
        if not settled:
            return found
        known[key] = [marks, found]
    return known[key][1]


def stamp(path: str | Path) -> list[int]:
    """What changes with a file's content: its times (copying can keep the first), size and node."""
    try:
        status = os.stat(path)
    except OSError:  # whoever opens the file will say why
        return [time.time_ns()] * 2
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino]


def file_hashes(paths: Iterable[str]) -> list[str]:
    """SHA-256 of each file, 64 hex digits ("" for no path), remembered (DataError: unreadable)."""

    def look_up(path: str) -> str:
        return path and recall(known, path, [path], partial(file_hash, path))

    try:
        with remembered("hashes") as known, ThreadPoolExecutor() as pool:
            return list(pool.map(look_up, map(str, paths)))
    except OSError as error:
        remedy = "restore the file, or list the samples again (find_samples)"
        raise DataError(Problem(str(error.filename), str(error.strerror), remedy)) from None


def pair_hashes(samples: pd.DataFrame) -> list[str]:
    """64 hex digits for each row, of its image, mask and mask value; raises as ``file_hashes``."""
    hashes, rows = file_hashes([*samples["image"], *samples["mask"].fillna("")]), len(samples)
    values = samples.reindex(columns=["mask_value"])["mask_value"].astype(float)  # nan: none
    keys = zip(hashes[:rows], hashes[rows:], values, strict=True)
    return [hashlib.sha256(" ".join(map(str, key)).encode()).hexdigest() for key in keys]


def fingerprint(samples: pd.DataFrame) -> str:
    """12 hex digits that change with any id, image, mask or mask value of the table."""
    pairs = zip(samples["id"], pair_hashes(samples), strict=True)
    lines = "".join(f"{name} {content}\n" for name, content in pairs)
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:12]
