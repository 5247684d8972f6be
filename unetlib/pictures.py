"""Picture files -> arrays, the way the network sees them; one clear sentence where that fails."""

import operator
import os
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
# All that Pillow was seen to raise while reading some 150,000 damaged pictures.
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError)
UNREADABLE += (struct.error, zlib.error, Image.DecompressionBombError)


class Problem(NamedTuple):
    """What is wrong with a file, and what to do about it; as text, one sentence."""

    file: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}; {self.remedy}."


class DataError(ValueError):
    """The data cannot be used: one sentence that names the file and the remedy (``problem``)."""

    def __init__(self, problem: str | Problem):
        super().__init__(str(problem))
        self.problem = problem


def load_image(source, size: int | tuple[int, int], colour: bool = False) -> np.ndarray:
    """Read an image as the model sees it; dataset, calibration and predictor all call this.

    Grey or RGB, upright (EXIF), stretched to the size without borders, by area averaging. A JPEG is
    decoded at half scale where that leaves at least 4 times the target: faster, and under half a
    grey level off on photos (a quarter of the scale would be up to one level off).

    Args:
        source: a path, an open file, a PIL image, or an array ``(H, W)``, ``(H, W, 1)``,
            ``(H, W, 3)`` or ``(H, W, 4)``: uint8, uint16, boolean, or float in [0, 1].
        size: side of the square, or ``(height, width)``, in pixels.

    Returns:
        uint8 array ``(height, width)``, or ``(height, width, 3)`` if ``colour``.

    Raises:
        DataError: the file or array cannot be read as an image.
        ValueError: see ``sides``.
    """
    height, width = sides(size)
    try:
        if isinstance(source, np.ndarray):
            source = _from_array(source)
        if isinstance(source, Image.Image):
            return shrink(upright(source), height, width, colour)
        with Image.open(source) as opened:
            least = max(4 * width, opened.width // 2), max(4 * height, opened.height // 2)
            opened.draft("RGB" if colour else "L", least)
            return shrink(upright(opened), height, width, colour)
    except (*UNREADABLE, AttributeError) as error:
        is_path = isinstance(source, (str, os.PathLike))
        name = str(source) if is_path else type(source).__name__
        if isinstance(error, DataError):
            raise DataError(error.problem._replace(file=name)) from None
        problem = f"cannot be read as an image ({reason(error)})"
        remedy = "open another file" if is_path else "give a path, a file, a PIL image or an array"
        raise DataError(Problem(name, problem, remedy)) from error


def reason(error: Exception) -> str:
    """Why Pillow could not read a file, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "no picture inside"  # Pillow's own words name the file once more
    return getattr(error, "strerror", None) or str(error)


def shrink(image: Image.Image, height: int, width: int, colour: bool = False) -> np.ndarray:
    """An image at another size, by area averaging: uint8 ``(height, width)``, with colour RGB."""
    if colour or image.mode == "CMYK":
        image = image.convert("RGB")
    image = image if colour else image.convert("L")
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))


def _from_array(array: np.ndarray) -> Image.Image:
    shape, kind = array.shape, array.dtype
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if kind == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif kind.kind in "bf" and array.size and 0 <= array.min() <= array.max() <= 1:
        array = (array * 255.0 + 0.5).astype(np.uint8)
    coloured = array.ndim == 3 and array.shape[2] in (3, 4)
    if not array.size or array.dtype != np.uint8 or not (array.ndim == 2 or coloured):
        raise TypeError(f"shape {shape}, type {kind}: not (H, W) or (H, W, 3) in uint8 or [0, 1]")
    return Image.fromarray(array)


def upright(image: Image.Image) -> Image.Image:
    """The image as it is seen (EXIF rotation applied), with at most 8 bits a channel.

    Raises:
        DataError: it has more than 8 bits a channel, and which grey is white cannot be told.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):  # convert() would clip the greys
        return Image.fromarray(_eight_bits(image))
    return image


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Greys of more than 8 bits: white is 1 in floats, 65535 (or at most 255) in integers."""
    greys = np.asarray(image)
    least, most = greys.min(initial=0), greys.max(initial=0)
    if image.mode == "F" and least >= 0 and most <= 1:
        return (greys * 255 + 0.5).astype(np.uint8)
    if image.mode == "F" or least < 0 or most > 65_535:
        problem = f"greys from {least:.3g} to {most:.3g}: which one is white cannot be told"
        name = f"an image of mode {image.mode}"
        raise DataError(Problem(name, problem, "save it with 8 bits a channel"))
    of_16_bits = image.mode != "I" or most > 255
    return (greys >> 8 if of_16_bits else greys).astype(np.uint8)


def image_size(image) -> tuple[int, int]:
    """``(height, width)`` of an image (path, PIL or array) as it is seen, EXIF rotation applied."""
    if isinstance(image, np.ndarray):
        return image.shape[:2]
    if not isinstance(image, Image.Image):
        with Image.open(image) as opened:
            return image_size(opened)
    turned = image.getexif().get(ORIENTATION, 1) in range(5, 9)  # these lie on their side
    return image.size if turned else image.size[::-1]


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """``(height, width)`` in pixels, from a square's side or from both.

    Raises:
        ValueError: not one or two integers above 0.
    """
    try:
        height, width = map(operator.index, size if np.ndim(size) else (size, size))
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(f"size={size!r}: give one or two integers above 0, such as (320, 480).")
    return height, width
