"""Files on disk -> table of samples: find them, split by group.

Carvana's layout: ``train/<car>_<angle>.jpg`` and ``train_masks/<car>_<angle>_mask.gif``, where the
car is 12 hex digits and the angle counts 01..16 round the turntable; ``test/`` holds photos without
masks, ``train_masks.csv`` the masks as run lengths, ``metadata.csv`` a line per car
(https://www.kaggle.com/c/carvana-image-masking-challenge/data).
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from unetlib.pictures import DataError, image_size

Row = tuple[str, str, str, int, int]  # id, image, mask, width, height


def find_samples(root: str | Path) -> pd.DataFrame:
    """List the photos of a folder in the layout above with their masks, one row each.

    The table, see ``sample_table``, is sorted by id, photos with masks before those without. Files
    are trusted: ``unetlib.find_samples`` leaves out what is broken, and takes other layouts.
    """
    photos, tests = (sorted(Path(root, folder).glob("*.jpg")) for folder in ("train", "test"))
    masks = (Path(root, "train_masks", f"{photo.stem}_mask.gif") for photo in photos)
    return sample_table([*map(row_of, photos, masks), *map(row_of, tests)])


def row_of(image: Path, mask: Path | None = None) -> Row:
    """An image's row (DataError: its size cannot be read)."""
    height, width = image_size(image)
    return image.stem, str(image), str(mask or ""), width, height


def sample_table(rows: Iterable[Row], cars: bool = True) -> pd.DataFrame:
    """Columns ``id`` (the file's stem), ``group`` (what a split keeps together: the car, or each
    picture alone; text), ``image`` and ``mask`` (paths as str; "" for no mask), ``width`` and
    ``height`` (int, pixels of the upright image); with ``cars`` also ``car`` and ``angle`` (int).
    """
    table = pd.DataFrame(rows, columns=["id", "image", "mask", "width", "height"])
    groups = table["id"].str[:-3] if cars else table["id"]
    if cars:
        table.insert(1, "car", groups)
        table.insert(2, "angle", table["id"].str[-2:].astype(int))
    table.insert(1, "group", groups)
    return table


def split_by_group(
    samples: pd.DataFrame, fraction: float = 0.2, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split samples with masks into ``(train, val)`` rows, no group on both sides.

    The 16 pictures of a car are nearly the same picture: split by image, and the validation set
    asks for cars that the model has already seen. Both tables have a fresh index.

    Args:
        fraction: share of the groups, above 0 and below 1, that go to validation (at least one).
        seed: which groups; the same seed gives the same ones on every machine.

    Raises:
        ValueError: a fraction outside (0, 1).
        DataError: fewer than two groups have masks.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction} must lie between 0 and 1, for example 0.2.")
    labelled = samples[samples["mask"].fillna("") != ""]  # a csv file turns "" into a missing value
    groups = np.array(sorted(labelled["group"].unique()))
    if len(groups) < 2:
        raise DataError(f"{len(groups)} group(s) with masks: a split needs pictures of two.")
    count = min(max(1, round(fraction * len(groups))), len(groups) - 1)
    chosen = np.random.default_rng(seed).permutation(groups)[:count]
    in_val = labelled["group"].isin(chosen)
    return labelled[~in_val].reset_index(drop=True), labelled[in_val].reset_index(drop=True)
