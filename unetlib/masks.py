"""Mask files and run-length codes <-> arrays."""

from pathlib import Path

import numpy as np
from PIL import Image

from unetlib.pictures import UNREADABLE, DataError, Problem, reason, shrink, sides


def load_mask(path: str | Path, mask_value: float | None = None) -> np.ndarray:
    """Read a mask file as a boolean array ``(H, W)``, True on the object.

    Without a ``mask_value``, 0 is background and any one other value the object. Carvana's masks
    are palette GIFs whose pixels are palette *indices* 0 and 1; going through the palette to grey
    first makes them, and masks stored as greys or colours, read alike.

    Args:
        mask_value: the object's value, among any number of others: in palette images the index as
            stored, else the grey. None (or nan, as joined tables have): see above.

    Raises:
        DataError: unreadable, animated, or nothing says which of its values is the object.
    """
    try:
        with Image.open(path) as opened:
            frames = getattr(opened, "n_frames", 1)
            deep = opened.mode[0] in "IF"  # over 8 bits, which convert() would clip
            stored = opened.copy() if deep or opened.mode == "P" else opened.convert("L")
            shown = stored.convert("L") if opened.mode == "P" else stored
    except UNREADABLE as error:
        problem = f"unreadable mask ({reason(error)})"
        raise DataError(Problem(str(path), problem, "copy the file again")) from error
    if frames > 1:
        problem = f"the mask has {frames} frames, not one"
        raise DataError(Problem(str(path), problem, "save one of them alone"))
    if mask_value is not None and mask_value == mask_value:
        return np.asarray(stored) == mask_value
    values, greys = _values(stored), _values(shown)
    understood = greys in ([255], [65535]) or (0 in greys and len(greys) <= 2)
    if not understood or len(greys) < len(values):
        listed = ", ".join(f"{value:g}" for value in values[:10]) + ", ..." * (len(values) > 10)
        problem = f"nothing says which of the mask's values ({listed}) is the object"
        remedy = f"pass it, as in find_samples(..., mask_value={values[-1]:g}), or save the mask "
        raise DataError(Problem(str(path), problem, remedy + "as PNG with the values 0 and 255"))
    return np.asarray(shown) != 0


def _values(image: Image.Image) -> list[float]:
    if image.mode in ("L", "P"):  # ten times as fast
        return [value for value, count in enumerate(image.histogram()) if count]
    return np.unique(np.asarray(image)).tolist()


def load_coverage(
    path: str | Path, size: int | tuple[int, int], mask_value: float | None = None
) -> np.ndarray:
    """Read a mask as area coverage: how much of each small pixel the object covers.

    Returns:
        uint8 array ``(height, width)``, 0 (none) to 255 (all); from 128 up the object covers at
        least half of the pixel. ``size`` and ValueError as for ``pictures.load_image``.

    Raises:
        DataError: as ``load_mask``.
    """
    height, width = sides(size)
    mask = load_mask(path, mask_value).astype(np.uint8) * 255
    return shrink(Image.fromarray(mask), height, width)


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
