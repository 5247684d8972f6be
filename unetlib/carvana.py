"""Files on disk -> table of samples: find, check, split by car, run-length codes.

Carvana's layout: ``train/<car>_<angle>.jpg`` and ``train_masks/<car>_<angle>_mask.gif``, where the
car is 12 hex digits and the angle counts 01..16 round the turntable; ``test/`` holds photos without
masks, ``train_masks.csv`` the masks as run lengths, ``metadata.csv`` a line per car.
https://www.kaggle.com/c/carvana-image-masking-challenge/data
"""

import hashlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from unetlib import config

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_SUFFIXES = (".gif", ".png")
COLUMNS = ["id", "car", "angle", "image", "mask", "width", "height"]


class DataError(ValueError):
    """The data cannot be used: one sentence that names the file and the remedy."""


def find_samples(root: str | Path | None = None) -> pd.DataFrame:
    """List a data set's images with their masks, one row each.

    Every mask is opened and must be two-valued and of its image's size. A file that cannot be used
    is left out and named in a warning; ``table.attrs["problems"]`` lists them all as
    ``(file, problem)``.

    Args:
        root: a folder in Carvana's layout; None: ``config.data_dir()``.

    Returns:
        A table sorted by id, training images before test images, with columns ``id``
        ("<car>_<angle>"), ``car``, ``angle`` (int), ``image`` and ``mask`` (paths as str; the mask
        of a test image is ""), ``width`` and ``height`` (pixels, int).

    Raises:
        DataError: the folder holds no usable image.
    """
    root = Path(root) if root is not None else config.data_dir()
    images_dir = root / "train" if (root / "train").is_dir() else root / "train_hq"
    images = _files(images_dir, IMAGE_SUFFIXES)
    masks = {
        path.stem.removesuffix("_mask"): path
        for path in _files(root / "train_masks", MASK_SUFFIXES)
    }
    jobs = [(path, masks.pop(path.stem, None), True) for path in images]
    jobs += [(path, None, False) for path in _files(root / "test", IMAGE_SUFFIXES)]
    if not jobs:
        raise DataError(
            f"No images in {images_dir}: point UNETLIB_DATA at a folder in Carvana's layout "
            "(train/<id>_<nn>.jpg and train_masks/<id>_<nn>_mask.gif)."
        )
    with ThreadPoolExecutor() as pool:
        checks = pool.map(lambda job: _check_pair(*job), jobs)
        checked = list(tqdm(checks, "checking images", len(jobs), disable=len(jobs) < 1000))
    problems = [problem for row, problem in checked if problem]
    problems += [(str(path), "mask without an image of that id") for path in masks.values()]
    rows = [row for row, problem in checked if row]
    _warn(problems)
    if not rows:
        raise DataError(f"No usable image in {root}: {problems[0][0]}: {problems[0][1]}.")
    samples = pd.DataFrame(rows, columns=COLUMNS)
    samples.attrs["problems"] = problems
    return samples


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    return sorted(path for path in found if not path.name.startswith("."))


def _check_pair(image: Path, mask: Path | None, needs_mask: bool):
    """(row, None) for a usable image, else (None, (file, problem))."""
    car, _, angle = image.stem.rpartition("_")
    if not car or not angle.isdigit():
        return None, (str(image), "the name is not <car>_<angle>")
    try:
        with Image.open(image) as opened:
            width, height = opened.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        return None, (str(image), f"unreadable image ({type(error).__name__})")
    row = (image.stem, car, int(angle), str(image), str(mask or ""), width, height)
    if not needs_mask:
        return row, None
    if mask is None:
        return None, (str(image), f"image without its mask train_masks/{image.stem}_mask.gif")
    try:
        shape = load_mask(mask).shape
    except DataError as error:
        return None, (str(mask), error.args[1])
    if shape != (height, width):
        problem = f"mask of {shape[1]}x{shape[0]} pixels for an image of {width}x{height}"
        return None, (str(mask), problem)
    return row, None


def _warn(problems: list[tuple[str, str]], most: int = 10) -> None:
    lines = [f"{file}: {problem}" for file, problem in problems[:most]]
    if len(problems) > most:
        lines.append(f"and {len(problems) - most} more")
    if lines:
        warnings.warn("left out: " + "\n  ".join(lines), stacklevel=3)


def load_mask(path: str | Path) -> np.ndarray:
    """Read a mask file as a boolean array ``(H, W)``, True on the car.

    Carvana's masks are palette GIFs whose pixels are palette *indices* 0 and 1; going through the
    palette to grey first makes them, and masks stored as 0/255 greys, read alike.

    Raises:
        DataError: unreadable, or more than two values; ``args[1]`` is the bare reason.
    """
    try:
        with Image.open(path) as opened:
            grey = np.asarray(opened.convert("L"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        reason = f"unreadable mask ({type(error).__name__})"
        raise DataError(f"{path}: {reason}; copy the file anew.", reason) from None
    values = np.flatnonzero(np.bincount(grey.ravel(), minlength=256))
    if len(values) > 2 or (len(values) == 1 and 0 < values[0] < 255):
        reason = f"the mask has {len(values)} grey values, not two (0 and 255)"
        raise DataError(f"{path}: {reason}; save it lossless, without smooth edges.", reason)
    return grey > 127


def split_by_car(
    samples: pd.DataFrame, fraction: float = 0.2, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split samples with masks into training and validation rows, no car on both sides.

    The 16 pictures of a car are nearly the same picture: split by image, and the validation set
    asks for cars that the model has already seen.

    Args:
        fraction: share of the cars, above 0 and below 1, that go to validation (at least one).
        seed: which cars; the same seed gives the same cars on every machine.

    Returns:
        ``(train, val)``, both with a fresh index; rows without a mask are in neither.

    Raises:
        ValueError: a fraction outside (0, 1).
        DataError: fewer than two cars have masks.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction} must lie between 0 and 1, for example 0.2.")
    labelled = samples[samples["mask"] != ""]
    cars = np.array(sorted(labelled["car"].unique()))
    if len(cars) < 2:
        raise DataError(f"{len(cars)} car(s) with masks cannot be split by car: at least 2 needed.")
    count = min(max(1, round(fraction * len(cars))), len(cars) - 1)
    chosen = np.random.default_rng(seed).permutation(cars)[:count]
    in_val = labelled["car"].isin(chosen)
    return labelled[~in_val].reset_index(drop=True), labelled[in_val].reset_index(drop=True)


def read_metadata(root: str | Path | None = None) -> pd.DataFrame | None:
    """Read ``metadata.csv`` (id, year, make, model, trim1, trim2; id is the car).

    Returns None, and says so in one line, when the data set has none. Join it to the samples with
    ``samples.merge(metadata, left_on="car", right_on="id", suffixes=("", "_car"))``.
    """
    return _read_csv(root, "metadata.csv", dtype={"id": str})


def read_rles(root: str | Path | None = None) -> pd.Series | None:
    """Read ``train_masks.csv`` as run-length strings indexed by sample id.

    Returns None, and says so in one line, when the data set has none.
    """
    table = _read_csv(root, "train_masks.csv", dtype=str, keep_default_na=False)
    if table is None:
        return None
    ids = table["img"].str.rsplit(".", n=1).str[0].rename("id")
    return table["rle_mask"].set_axis(ids)


def _read_csv(root, name: str, **options) -> pd.DataFrame | None:
    path = (Path(root) if root is not None else config.data_dir()) / name
    if not path.is_file():
        print(f"no {name} in this data set: skipped")
        return None
    return pd.read_csv(path, encoding="utf-8-sig", **options)


def rle_encode(mask: np.ndarray) -> str:
    """Write a mask as Carvana's run-length code.

    Pixels count from 1, row by row, left to right and then down; the code is
    "start length start length ...", "" for an empty mask.

    Args:
        mask: ``(H, W)``, boolean or 0/1.
    """
    flat = np.concatenate([[False], np.asarray(mask, bool).ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges[1::2] -= edges[::2]
    return " ".join(map(str, edges))


def rle_decode(rle: str, height: int, width: int) -> np.ndarray:
    """Read Carvana's run-length code into a boolean mask ``(height, width)``.

    Raises:
        DataError: odd count, non-integers, lengths below 1, overlaps, or runs beyond the image.
    """
    try:
        numbers = np.array(rle.split(), dtype=np.int64)
    except (ValueError, OverflowError):
        raise DataError(f"run-length code {rle[:30]!r}... is not a list of integers.") from None
    if len(numbers) % 2:
        raise DataError(f"run-length code {rle[:30]!r}... has an odd count of numbers.")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    ends = starts + lengths
    inside = not len(starts) or (starts[0] >= 0 and ends[-1] <= height * width)
    if not inside or (lengths < 1).any() or (starts[1:] < ends[:-1]).any():
        raise DataError(
            f"run-length code {rle[:30]!r}... does not fit a {width}x{height} image: runs must "
            "have a length of at least 1, ascend without overlap and end inside the image."
        )
    steps = np.zeros(height * width + 1, np.int8)
    np.add.at(steps, starts, 1)
    np.add.at(steps, ends, -1)
    return steps[:-1].cumsum(dtype=np.int8).astype(bool).reshape(height, width)


def fingerprint(samples: pd.DataFrame) -> str:
    """12 hex digits that change when any image or mask of the table changes in content."""
    digest = hashlib.sha256()
    with ThreadPoolExecutor() as pool:
        paths = [*samples["image"], *samples["mask"]]
        hashes = pool.map(lambda path: _file_hash(path, *_stamp(path)) if path else "", paths)
        for name, file_hash in zip([*samples["id"], *samples["id"]], hashes, strict=True):
            digest.update(f"{name} {file_hash}\n".encode())
    return digest.hexdigest()[:12]


def _stamp(path: str) -> tuple[int, int, int]:
    status = Path(path).stat()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size  # copying can keep the first


@cache
def _file_hash(path: str, modified: int, changed: int, size: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
