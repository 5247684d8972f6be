"""Picture files and run-length codes -> arrays, and in plain words why not."""

import operator
import struct
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
# All that Pillow was seen to raise while reading some 150,000 damaged pictures.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class Problem(NamedTuple):
    """What is wrong with a file, and what to do about it; as text, one sentence."""

    file: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}; {self.remedy}."


class DataError(ValueError):
    """The data cannot be used: one sentence that names the file and the remedy.

    Attributes:
        problem: the sentence, or the ``Problem`` it was made of.
    """

    def __init__(self, problem: str | Problem):
        super().__init__(str(problem))
        self.problem = problem


def warn_of(title: str, problems: list[Problem], most: int = 10) -> None:
    """One warning that names each file with its problem and remedy, on behalf of the caller."""
    lines = [str(problem) for problem in problems[:most]]
    if len(problems) > most:
        lines.append(f"and {len(problems) - most} more; `python -m unetlib check` lists them all.")
    if lines:
        warnings.warn(f"{title}: " + "\n  ".join(lines), stacklevel=3)


def why_unreadable(path: str | Path, error: Exception) -> tuple[str, str]:
    """Reason and remedy in plain words, for an exception (``UNREADABLE``) of Pillow or upright."""
    if isinstance(error, DataError):
        return error.problem.problem, error.problem.remedy
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels", "shrink it"
    try:
        with open(path, "rb") as file:
            start = file.read(64).lstrip()
            size = file.seek(0, 2)
    except OSError as refused:
        if Path(path).is_symlink() and not Path(path).exists():
            return "a link to a file that is gone", "put that file back or delete the link"
        return refused.strerror or type(refused).__name__, "check the path and who may read it"
    if not size:
        return "an empty file", "copy the file anew"
    if start.startswith(b"<"):
        return "a web page", "download the file anew, logged in where needed"
    if isinstance(error, UnidentifiedImageError):
        return "no picture inside", "save it as JPEG or PNG"
    return "cut off or damaged", "copy the file anew"


def upright(image: Image.Image) -> Image.Image:
    """The image as it is seen (EXIF rotation applied), with at most 8 bits a channel.

    Raises:
        DataError: nothing tells which of its greys is white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):  # convert() would clip the greys
        return Image.fromarray(_eight_bits(image))
    return image


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Greys of more than 8 bits: as floats white is 1, as whole numbers 65535 (or at most 255)."""
    greys = np.asarray(image)
    least, most = greys.min(initial=0), greys.max(initial=0)
    if image.mode == "F" and least >= 0 and most <= 1:
        return (greys * 255 + 0.5).astype(np.uint8)
    if image.mode == "F" or least < 0 or most > 65_535:
        problem = f"greys from {least:.3g} to {most:.3g} do not tell which one is white"
        name = f"an image of mode {image.mode}"
        raise DataError(Problem(name, problem, "save it with 8 bits a channel"))
    of_16_bits = image.mode != "I" or most > 255
    return (greys >> 8 if of_16_bits else greys).astype(np.uint8)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an image as it is seen: EXIF orientations 5 to 8 lie on their side."""
    turned = image.getexif().get(ORIENTATION, 1) in range(5, 9)
    return image.size[::-1] if turned else image.size


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """``(height, width)`` of a size: of a square's side, or of both, in pixels.

    Raises:
        ValueError: not one or two whole numbers above 0.
    """
    try:
        height, width = map(operator.index, size if np.ndim(size) else (size, size))
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(f"size={size!r}: give one or two whole numbers above 0, as (320, 480).")
    return height, width


def load_mask(path: str | Path) -> np.ndarray:
    """Read a mask file as a boolean array ``(H, W)``, True on the car.

    Carvana's masks are palette GIFs whose pixels are palette *indices* 0 and 1; going through the
    palette to grey first makes them, and masks stored as greys or colours, read alike. Of two greys
    the brighter is the car, so that greys 0 and 1, which look black, are understood as well.

    Raises:
        DataError: unreadable, animated, or not of two colours.
    """
    try:
        with Image.open(path) as opened:
            frames = getattr(opened, "n_frames", 1)
            grey = np.asarray(opened.convert("L"))
            colours = len(opened.getcolors()) if opened.mode == "P" else 0
    except UNREADABLE as error:
        why, remedy = why_unreadable(path, error)
        raise DataError(Problem(str(path), f"unreadable mask ({why})", remedy)) from None
    values = np.flatnonzero(np.bincount(grey.ravel(), minlength=256))
    lossless = "save it as PNG or GIF, black and white, without smooth edges"
    if frames > 1:
        raise DataError(Problem(str(path), f"the mask has {frames} frames, not one", lossless))
    if len(values) > 2 or (len(values) == 1 and 0 < values[0] < 255):
        problem = f"the mask has {len(values)} grey values, not two (0 and 255)"
        raise DataError(Problem(str(path), problem, lossless))
    if colours > len(values):
        problem = f"the palette shows the mask's {colours} values in {len(values)} grey(s)"
        raise DataError(Problem(str(path), problem, lossless))
    return grey == (values[-1] or 255)


def to_binary(mask: np.ndarray) -> np.ndarray:
    """A mask as booleans; of whole numbers (0 and 1, 0 and 255) any but 0 is car.

    Raises:
        DataError: numbers with a fraction, as probabilities have, or nan.
    """
    mask = np.asarray(mask)
    if mask.dtype.kind not in "bui" and not ((mask == 0) | (mask == 1)).all():
        raise DataError(
            "A mask says of each pixel whether it is car, 0 or 1, but this one has values between "
            "or beyond: threshold it first, probabilities > 0.5."
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
        DataError: no text, odd count, non-integers, lengths below 1, overlaps, or runs beyond the
            image.
    """
    if not isinstance(rle, str):
        raise DataError(
            f"run-length code {rle!r} is not text: read the csv file with carvana.read_rles, or "
            "with pandas' dtype=str and keep_default_na=False."
        )
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
        raise DataError(
            f"run-length code {rle[:30]!r}... does not fit a {width}x{height} image: runs must "
            "have a length of at least 1, ascend without overlap and end inside the image."
        )
    steps = np.zeros(height * width + 1, np.int8)
    np.add.at(steps, starts, 1)
    np.add.at(steps, ends, -1)
    return steps[:-1].cumsum(dtype=np.int8).astype(bool).reshape(height, width)
