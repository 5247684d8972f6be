"""Mask files and run-length codes <-> arrays."""

from pathlib import Path

import numpy as np
from PIL import Image

from unetlib.pictures import UNREADABLE, DataError, Problem, reason, shrink, sides


def load_mask(path: str | Path) -> np.ndarray:
    """Read a mask file as a boolean array ``(H, W)``, True on the car.

    Carvana's masks are palette GIFs whose pixels are palette *indices* 0 and 1; going through the
    palette to grey first makes them, and masks stored as greys or colours, read alike. Of two greys
    the brighter is the car, so that greys 0 and 1, which look black, are understood as well.

    Raises:
        DataError: unreadable, animated, of over two greys, or all of one middle grey.
    """
    grey, values = open_mask(path)
    return np.asarray(grey) == (values[-1] or 255)


def open_mask(path: str | Path) -> tuple[Image.Image, list[int]]:
    """A mask file as a greyscale PIL image, and the one or two grey values in it, ascending.

    Raises:
        DataError: as ``load_mask``.
    """
    try:
        with Image.open(path) as opened:
            frames = getattr(opened, "n_frames", 1)
            grey = opened.convert("L")
            colours = len(opened.getcolors()) if opened.mode == "P" else 0
    except UNREADABLE as error:
        problem = f"unreadable mask ({reason(error)})"
        raise DataError(Problem(str(path), problem, "copy the file again")) from error
    values = [value for value, count in enumerate(grey.histogram()) if count]
    problem = ""
    if frames > 1:
        problem = f"the mask has {frames} frames, not one"
    elif len(values) > 2 or (len(values) == 1 and 0 < values[0] < 255):
        problem = f"the mask has {len(values)} grey values, not two (0 and 255)"
    elif colours > len(values):
        problem = f"the palette shows the mask's {colours} values in {len(values)} grey(s)"
    if problem:
        lossless = "save it as PNG or GIF, black and white, without smooth edges"
        raise DataError(Problem(str(path), problem, lossless))
    return grey, values


def load_coverage(path: str | Path, size: int | tuple[int, int]) -> np.ndarray:
    """Read a mask as area coverage: how much of each small pixel the car covers.

    Returns:
        uint8 array ``(height, width)``, 0 (no car) to 255 (all car); from 128 up the car covers at
        least half of the pixel. ``size`` and ValueError as for ``pictures.load_image``.

    Raises:
        DataError: as ``load_mask``.
    """
    height, width = sides(size)
    return shrink(Image.fromarray(load_mask(path).astype(np.uint8) * 255), height, width)


def to_binary(mask: np.ndarray) -> np.ndarray:
    """A mask as booleans; of integers 0 is background, any other is car.

    Raises:
        DataError: fractions, as probabilities have, or nan.
    """
    mask = np.asarray(mask)
    if mask.dtype.kind not in "bui" and not ((mask == 0) | (mask == 1)).all():
        raise DataError(
            "A mask has no values but 0 and 1: threshold it first, probabilities > 0.5."
        )
    return mask.astype(bool, copy=False)


def rle_encode(mask: np.ndarray) -> str:
    """Write a mask as Carvana's run-length code.

    Pixels count from 1, row by row, left to right and then down; the code is
    "start length start length ...", "" for an empty mask.

    Args:
        mask: ``(H, W)``, boolean or 0/1.

    Raises:
        DataError: as ``to_binary``.
    """
    flat = np.concatenate([[False], to_binary(mask).ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges[1::2] -= edges[::2]
    return " ".join(map(str, edges))


def rle_decode(rle: str, height: int, width: int) -> np.ndarray:
    """Read Carvana's run-length code into a boolean mask ``(height, width)``.

    Raises:
        DataError: not a string, odd count, non-integers, lengths below 1, overlaps, or runs beyond
            the image.
    """
    if not isinstance(rle, str):
        raise DataError(f"run-length code {rle!r} is not text: read it with unetlib.read_rles.")
    try:
        numbers = np.array(rle.split(), dtype=np.int64)
    except (ValueError, OverflowError):
        raise DataError(f"run-length code {rle[:30]!r}... is not a list of integers.") from None
    if len(numbers) % 2:
        raise DataError(f"run-length code {rle[:30]!r}... has an odd count of numbers.")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    ends = starts + lengths
    inside = not len(starts) or (starts[0] >= 0 and ends[-1] <= height * width)
    # A length below 1, or one so large that the sum overflows, ends a run before its start.
    if not inside or (ends <= starts).any() or (starts[1:] < ends[:-1]).any():
        fits = f"ascend without overlap and end within {height} rows of {width} pixels"
        raise DataError(f"run-length code {rle[:30]!r}...: its runs must {fits}.")
    steps = np.zeros(height * width + 1, np.int8)
    np.add.at(steps, starts, 1)
    np.add.at(steps, ends, -1)
    return steps[:-1].cumsum(dtype=np.int8).astype(bool).reshape(height, width)
