"""Files on disk -> table of samples: find them, split by car.

Carvana's layout: ``train/<car>_<angle>.jpg`` and ``train_masks/<car>_<angle>_mask.gif``, where the
car is 12 hex digits and the angle counts 01..16 round the turntable; ``test/`` holds photos without
masks, ``train_masks.csv`` the masks as run lengths, ``metadata.csv`` a line per car.
https://www.kaggle.com/c/carvana-image-masking-challenge/data
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from unetlib import config
from unetlib.pictures import DataError, Problem, image_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_SUFFIXES = (".gif", *IMAGE_SUFFIXES)
COLUMNS = ["id", "car", "angle", "image", "mask", "width", "height"]


class Pair(NamedTuple):
    """A photo and its mask; ``labelled`` is True in ``train/``, where every photo needs one."""

    image: Path
    mask: Path | None
    labelled: bool


def find_samples(root: str | Path | None = None) -> pd.DataFrame:
    """List a data set's images with their masks, one row each.

    Trusts the files: ``unetlib.find_samples`` also looks into them, and leaves out what is broken.

    Args:
        root: a folder in Carvana's layout; None: ``config.data_dir()``.

    Returns:
        A table sorted by id, training images before test images, with columns ``id``
        ("<car>_<angle>"), ``car``, ``angle`` (int), ``image`` and ``mask`` (paths as str; the mask
        of a test image is ""), ``width`` and ``height`` (int, pixels of the upright image).
    """
    pairs, _ = list_pairs(Path(root) if root is not None else config.data_dir())
    return pd.DataFrame(map(row_of, pairs), columns=COLUMNS)


def row_of(pair: Pair) -> tuple[str, str, int, str, str, int, int]:
    """The table's row of a pair, see ``COLUMNS``.

    Raises:
        ValueError: the name does not end in an angle.
        OSError and others (``pictures.UNREADABLE``): the image cannot be read.
    """
    car, _, angle = pair.image.stem.rpartition("_")
    height, width = image_size(pair.image)
    return pair.image.stem, car, int(angle), str(pair.image), str(pair.mask or ""), width, height


def list_pairs(root: Path) -> tuple[list[Pair], list[Problem]]:
    """The photos of a folder with their masks, by name alone; nothing is opened."""
    masks, problems = {}, []
    for path in files_in(root / "train_masks", MASK_SUFFIXES):
        if masks.setdefault(path.stem.removesuffix("_mask"), path) != path:
            problems.append(Problem(str(path), "a second mask of one image", "delete one of them"))
    images = files_in(train_dir(root), IMAGE_SUFFIXES)
    pairs = [Pair(path, masks.pop(path.stem, None), True) for path in images]
    pairs += [Pair(path, None, False) for path in files_in(root / "test", IMAGE_SUFFIXES)]
    if pairs:
        problems += [
            Problem(str(path), "mask without an image of that id", "restore the image or delete it")
            for path in masks.values()
        ]
    return pairs, problems


def train_dir(root: Path) -> Path:
    """``train/``, or ``train_hq/`` where only that one holds images."""
    high_quality = os.path.isdir(root / "train_hq") and not files_in(root / "train")
    return root / ("train_hq" if high_quality else "train")


def files_in(folder: Path, suffixes: tuple[str, ...] = ("",)) -> list[Path]:
    """A folder's visible entries with these suffixes, sorted; none where it cannot be read."""
    try:
        found = [path for path in folder.iterdir() if path.name.lower().endswith(suffixes)]
    except OSError:
        return []
    return sorted(path for path in found if not path.name.startswith("."))


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
    labelled = samples[samples["mask"].fillna("") != ""]  # a csv file turns "" into a missing value
    cars = np.array(sorted(labelled["car"].unique()))
    if len(cars) < 2:
        raise DataError(f"{len(cars)} car(s) with masks cannot be split by car: add another car's.")
    count = min(max(1, round(fraction * len(cars))), len(cars) - 1)
    chosen = np.random.default_rng(seed).permutation(cars)[:count]
    in_val = labelled["car"].isin(chosen)
    return labelled[~in_val].reset_index(drop=True), labelled[in_val].reset_index(drop=True)
