"""Decoded images on disk: a file for each content, mask value, size, colour and code of decode."""

import warnings
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd

from unetlib.dataset import decode
from unetlib.pictures import DataError, sides
from unetlib.support import folders
from unetlib.support.code import code_hash
from unetlib.support.memory import pair_hashes


def decode_once(samples: pd.DataFrame, size, colour: bool = False) -> np.ndarray:
    """``dataset.decode`` that reads a pair of files only the first time it meets their content.

    uint8 ``(N, 2, H, W)``, or ``(N, 4, H, W)`` if ``colour``; DataError: a file cannot be read, or
    too little memory. Splits share what they have in common; what cannot be kept is warned of.
    """
    names = [f"{one[:32]}.bin" for one in pair_hashes(samples)]
    shape = 4 if colour else 2, *sides(size)
    missing = range(len(names))
    try:
        decoded = np.empty((len(names), *shape), np.uint8)
        folder = folders.cache_dir() / "-".join(map(str, ("decoded", code_hash(decode), *shape)))
        folder.mkdir(exist_ok=True)
        missing = [row for row, name in enumerate(names) if not _read(folder / name, decoded[row])]
        if len(missing) == len(names):  # the first time: no second array of this size
            decoded = decode(samples, size, colour)
        elif missing:
            decoded[missing] = decode(samples.iloc[missing], size, colour)
        for row in missing:  # half a file, or another program's half, fails its checksum
            content = decoded[row].tobytes()
            (folder / names[row]).write_bytes(content + sha256(content).digest())
    except OSError as error:
        if isinstance(missing, range):  # nothing is decoded yet
            decoded = decode(samples, size, colour)
        remedy = "free some space, or set UNETLIB_HOME to a folder that you can write to"
        warnings.warn(f"decoded images are not kept ({error}): {remedy}.", stacklevel=3)
    except MemoryError:
        what = f"{len(names)} images of {shape[2]}x{shape[1]} pixels and their masks"
        raise DataError(f"{what} do not fit in memory: lower size, or take fewer rows.") from None
    return decoded


def _read(path: Path, pair: np.ndarray) -> bool:
    """Fill in a pair, uint8 ``(2 or 4, H, W)``, from its file; False if there is no sound one."""
    content = path.read_bytes() if path.exists() else b""
    sound = len(content) == pair.nbytes + 32 and sha256(content[:-32]).digest() == content[-32:]
    if sound:
        pair[:] = np.frombuffer(content[:-32], np.uint8).reshape(pair.shape)
    return sound
