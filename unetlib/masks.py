"""Mask files and run-length codes <-> arrays."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from unetlib.pictures import DataError, Problem, opening, shrink, sides


def load_mask(path: str | Path, mask_value: float | None = None) -> np.ndarray:
    """Read a mask file as a boolean array ``(H, W)``, True on the object; see ``read_mask``."""
    return read_mask(path, mask_value)[0]


def read_mask(path: str | Path, mask_value: float | None = None) -> tuple[np.ndarray, float | None]:
    """Read a mask file: boolean array ``(H, W)``, True on the object, and the object's grey.

    Without a ``mask_value``, 0 is background and any one other value the object. Carvana's masks
    are palette GIFs whose pixels are palette *indices* 0 and 1; going through the palette to grey
    first makes them, and masks stored as greys or colours, read alike. Where there is no object,
    the grey is None.

    Args:
        mask_value: the object's value, among any number of others: in palette images the index as
            stored, else the grey. None (or nan, as joined tables have): see above.

    Raises:
        DataError: unreadable, partly transparent, or nothing says which value is the object.
    """
    with opening(path) as opened:
        if "A" in opened.getbands() and opened.getchannel("A").getextrema()[0] < 255:
            raise ValueError("parts of the mask are transparent")
        ImageOps.exif_transpose(opened, in_place=True)
        pixels, in_colour = opened.width * opened.height, opened.mode in ("RGB", "RGBA")
        several = in_colour and len(opened.getcolors(pixels)) > 2
        kept = opened.mode.partition(";")[0]  # I and F have over 8 bits, which L would clip
        stored = opened.convert(kept if kept in ("P", "I", "F") else "L")
        shown = stored.convert("L") if kept == "P" else stored
    if mask_value is not None and mask_value == mask_value:
        return np.asarray(stored) == mask_value, mask_value
    values, greys = (sorted(v for _, v in one.getcolors(pixels)) for one in (stored, shown))
    known = greys in ([255], [65535]) or 0 in greys
    if not known or several or len(values) > 2 or len(greys) < len(values):
        listed = ", ".join(f"{value:g}" for value in values[:10]) + ", ..." * (len(values) > 10)
        problem = f"nothing says which of the mask's values ({listed}) is the object"
        remedy = "save it as PNG, black and white, without smooth edges"
        if len(values) < 20 and not several:
            remedy = f"say find_samples(..., mask_value={values[-1]:g}), or save the rest as 0"
        raise DataError(Problem(str(path), problem, remedy))
    return np.asarray(shown) != 0, min(greys[-1], 255) or None  # 65,535 is white, too


def load_coverage(path: str | Path, size, mask_value: float | None = None) -> np.ndarray:
    """Read a mask as area coverage: how much of each small pixel the object covers.

    uint8 array ``(height, width)``, 0 (none) to 255 (all); from 128 up the object covers at least
    half of the pixel. ``size`` and errors: ``pictures.load_image``, ``load_mask``.
    """
    height, width = sides(size)
    return shrink(Image.fromarray(load_mask(path, mask_value)), height, width)


def to_binary(mask: np.ndarray) -> np.ndarray:
    """A mask as booleans; of integers 0 is background, and any one other value the object.

    DataError: fractions, as probabilities have, nan, or more than two values.
    """
    mask = np.asarray(mask)
    most = mask.max(initial=1) if mask.dtype.kind in "ui" else 1
    if not ((mask == 0) | (mask == most)).all():
        raise DataError("A mask has 0 and one other value: threshold it, probabilities > 0.5.")
    return mask.astype(bool, copy=False)


def rle_encode(mask: np.ndarray) -> str:
    """Write a mask ``(H, W)``, boolean or 0/1, as Carvana's run-length code.

    Pixels count from 1, row by row, left to right and then down; the code is
    "start length start length ...", "" for an empty mask. DataError: see ``to_binary``; not (H, W).
    """
    if np.ndim(mask) != 2:
        raise DataError(f"A run-length code is of one mask (H, W), not of {np.shape(mask)}.")
    flat = np.concatenate([[False], to_binary(mask).ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges[1::2] -= edges[::2]
    return " ".join(map(str, edges))


def rle_decode(rle: str, height: int, width: int) -> np.ndarray:
    """Read Carvana's run-length code into a boolean mask ``(height, width)``.

    DataError: no text of pairs of integers, or runs that are empty, overlap or end too late.
    """
    try:
        starts, lengths = np.array(rle.split(), np.int64).reshape(-1, 2).T - [[1], [0]]
    except (AttributeError, ValueError, OverflowError):
        what = "no text of pairs of integers: read it with unetlib.read_rles"
        raise DataError(f"Run-length code {rle!r:.40}: {what}.") from None
    edges = np.column_stack([starts, starts + lengths]).ravel()
    edges = np.concatenate([[0], edges, [height * width]])
    if (lengths < 1).any() or (edges[1:] < edges[:-1]).any():  # a sum that overflows is below 0
        what = f"its runs must ascend without overlap and end within {width}x{height} pixels"
        raise DataError(f"Run-length code {rle!r:.40}: {what}.")
    inside = np.arange(len(edges) - 1) % 2 == 1
    return np.repeat(inside, np.diff(edges)).reshape(height, width)
