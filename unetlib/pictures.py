"""Picture files -> arrays, the way the network sees them; one clear sentence where that fails."""

import operator
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

Image.init()
ORIENTATION = ExifTags.Base.Orientation
SUFFIXES = tuple(sorted(end for end, kind in Image.EXTENSION.items() if kind in Image.OPEN))


class Problem(NamedTuple):
    """What is wrong with a file, and what to do about it; as text, one sentence."""

    file: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}; {self.remedy}."


class DataError(ValueError):
    """The data cannot be used: one sentence that names the file and the remedy (``problem``)."""

    problem = property(lambda self: self.args[0])  # as text, or a ``Problem``


def load_image(source, size: int | tuple[int, int], colour: bool = False) -> np.ndarray:
    """Read an image as the model sees it; dataset, calibration and predictor all call this.

    uint8 ``(height, width)``, grey, or if ``colour`` ``(height, width, 3)``, RGB: upright (EXIF),
    on white where it is transparent, stretched to the size without borders, by area averaging. A
    JPEG is decoded at half scale where that leaves 4 times the target: under half a grey level off.
    One warning a folder where 10, 12 or 14 bits in files of 16 may have made it nearly black.

    Args:
        source: a path, an open file, a PIL image, or an array ``(H, W)``, ``(H, W, 1)``,
            ``(H, W, 3)`` or ``(H, W, 4)``: uint8, uint16, boolean, or float in [0, 1]. Red comes
            first: turn OpenCV's arrays round, ``array[:, :, ::-1]``.
        size: side of the square, or ``(height, width)``, in pixels.

    Raises:
        DataError: the file or array cannot be read as an image.
        ValueError: see ``sides``.
    """
    height, width = sides(size)
    with opening(source) as image:
        if not isinstance(source, Image.Image):  # an image of the caller's stays as it is
            least = max(4 * width, image.width // 2), max(4 * height, image.height // 2)
            image.draft("RGB" if colour else "L", least)
        return shrink(upright(image), height, width, colour)


@contextmanager
def opening(source) -> Iterator[Image.Image]:
    """An image, its file opened; DataError for what fails, also inside of the block."""
    name = source if isinstance(source, str | os.PathLike) else type(source).__name__
    try:
        if isinstance(source, np.ndarray | Image.Image):
            yield source if isinstance(source, Image.Image) else _from_array(source)
            return
        with Image.open(source) as image:
            if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":  # phones'
                raise ValueError(f"{frames} frames or pages, not one")
            if image.info.get("compression") == "raw" and image.getexif().get(ORIENTATION, 1) > 4:
                raise ValueError("an uncompressed TIFF lying on its side, which Pillow scrambles")
            yield image
    except DataError as error:
        raise DataError(error.problem._replace(file=str(name))) from None
    except MemoryError:
        raise
    except Exception as error:  # damaged pictures make Pillow raise some ten kinds
        why = getattr(error, "strerror", None) or error
        if isinstance(error, UnidentifiedImageError):  # its own words name the file once more
            why = "no picture inside, or of an unknown kind"
        remedy = "copy it again, save it as PNG or JPEG, or give another that you may read"
        problem = Problem(str(name), f"cannot be read as a picture ({why})", remedy)
        raise DataError(problem) from None


def shrink(image: Image.Image, height: int, width: int, colour: bool = False) -> np.ndarray:
    """An image at another size, by area averaging: uint8 ``(height, width)``, with colour RGB."""
    if colour or image.mode == "CMYK":
        image = image.convert("RGB")
    image = image if colour else image.convert("L")
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))


def _from_array(array: np.ndarray) -> Image.Image:
    shape, kind = array.shape, array.dtype
    array = array[:, :, 0] if shape[2:] == (1,) else array
    fractions = kind.kind in "bf" and array.size and 0 <= array.min() <= array.max() <= 1
    if fractions or kind == np.uint16:
        array = eight_bits(array)
    is_image = array.ndim > 1 and array.shape[2:] in ((), (3,), (4,)) and array.size
    if array.dtype != np.uint8 or not is_image:
        raise TypeError(f"shape {shape}, type {kind}: not (H, W) or (H, W, 3) in uint8 or [0, 1]")
    return Image.fromarray(array)


def upright(image: Image.Image) -> Image.Image:
    """The image as seen (turned by EXIF, on white), 8 bits a channel; raises as ``scale``."""
    place = os.path.dirname(getattr(image, "filename", "")) or "pictures"
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # convert() would clip them
        return Image.fromarray(eight_bits(np.asarray(image), place))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA"))
    return image


def eight_bits(greys: np.ndarray, place: str = "arrays") -> np.ndarray:
    """Greys as ``scale`` takes them -> uint8, with a warning where they come out nearly black."""
    white, dim = scale(greys)
    if dim:
        problem = f"greys that end below a quarter of {white}, so nearly black"
        remedy = "save them with 8 bits a channel, unless they are that dark"
        warnings.warn(str(Problem(place, problem, remedy)), stacklevel=4)  # shown once a place
    return (greys / white * 255 + 0.5).astype(np.uint8)


def scale(greys: np.ndarray) -> tuple[int, bool]:
    """Which grey is white in uint16, int32, float or boolean, and whether none is near to it;
    DataError if that cannot be told.
    """
    least, most = greys.min(initial=0), greys.max(initial=0)
    whites = [1] if greys.dtype.kind in "bf" else [255, 65_535] if greys.itemsize > 2 else [65_535]
    white = next((white for white in whites if least >= 0 and most <= white), None)
    if white is None:
        problem = f"greys from {least:g} to {most:g}: which one is white cannot be told"
        raise DataError(Problem("picture", problem, "save it with 8 bits a channel"))
    return white, bool(0 < most < white / 4)


def image_size(image) -> tuple[int, int]:
    """``(height, width)`` of an image (path, PIL or array) as it is seen; raises as ``opening``."""
    with opening(image) as opened:
        # On their side; of TIFF files Pillow gives the size as seen.
        turned = opened.format != "TIFF" and opened.getexif().get(ORIENTATION, 1) > 4
        return opened.size if turned else opened.size[::-1]


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """``(height, width)`` in pixels, from a square's side or both (ValueError: no integers > 0)."""
    try:
        height, width = map(operator.index, size if np.ndim(size) else (size, size))
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(f"size={size!r}: give one or two integers above 0, such as (320, 480).")
    return height, width
