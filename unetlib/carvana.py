"""Files on disk -> table of samples: find them, split by group.

Carvana's layout: ``train/<car>_<angle>.jpg`` and ``train_masks/<car>_<angle>_mask.gif``, where the
car is 12 hex digits and the angle counts 01..16 round the turntable; ``test/`` holds photos without
masks, ``train_masks.csv`` the masks as run lengths, ``metadata.csv`` a line per car
(https://www.kaggle.com/c/carvana-image-masking-challenge/data). Own pictures: the folders of
``FOLDERS``, with any names.
"""

import re
from collections import Counter
from collections.abc import Iterable
from glob import glob
from pathlib import Path

import numpy as np
import pandas as pd

from unetlib.pictures import SUFFIXES, DataError, Problem, image_size

FOLDERS = ("train", "train_masks"), ("train_hq", "train_masks")
FOLDERS += ("images", "masks"), ("images", "labels"), ("imgs", "masks")
CAR = re.compile(r"[0-9a-fA-F]{12}_[0-9]{2}")  # <car>_<angle>
Pair = tuple[Path, Path | None]  # a picture and its mask, if it has one
Row = tuple[str, str, str, int, int]  # id, image, mask, width, height


def find_samples(root: str | Path) -> pd.DataFrame:
    """List the images of a folder in one of the layouts above with their masks, one row each.

    The table, see ``sample_table``, is sorted by id, images with masks before those without. Files
    are trusted: ``unetlib.find_samples`` leaves out what is broken, and takes other folders.
    """
    pairs, _, cars = list_pairs(Path(root))
    return sample_table(map(row_of, pairs), cars)


def sample_table(rows: Iterable[Row], cars: bool) -> pd.DataFrame:
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


def row_of(pair: Pair) -> Row:
    """The row of a pair; raises ``pictures.UNREADABLE`` where the image cannot be read."""
    (image, mask), (height, width) = pair, image_size(pair[0])
    return image.stem, str(image), str(mask or ""), width, height


def list_pairs(root: Path) -> tuple[list[Pair], list[Problem], bool]:
    """The images of a folder with their masks, what is wrong, and whether they are Carvana's cars.

    By name alone. Where at least half of ``train/`` has Carvana's names, others are left out.
    """
    images, masks = folders_in(root)
    photos, tests = (files_in(folder, SUFFIXES) for folder in (images, root / "test"))
    others, judged = {one for one in photos + tests if not CAR.fullmatch(one.stem)}, photos or tests
    cars = images.name.startswith("train") and 2 * len(others.intersection(judged)) <= len(judged)
    others = others if cars else set()
    kept = [path for path in photos if path not in others]
    pairs, problems = pair_up(kept, files_in(masks, SUFFIXES) if judged else [])
    pairs += [(path, None) for path in tests if path not in others]
    what, remedy = "the name is not <car>_<angle>", "rename it, as in 0123456789ab_01.jpg"
    return pairs, problems + [Problem(str(one), what, remedy) for one in sorted(others)], cars


def pair_up(images: list[Path], masks: list[Path]) -> tuple[list[Pair], list[Problem]]:
    """Pairs of images and masks, and what has no other half.

    A mask has its image's stem, perhaps with an ending (``leaf1_mask``): the most frequent one.
    Where two are as frequent, or a name is in several folders, the right pairs cannot be told.
    """
    stems, endings = {image.stem for image in images}, []
    for name in (mask.stem for mask in masks):
        ends = (end for end in range(len(name), 0, -1) if name[:end] in stems)  # the longest first
        ending = name[next(ends, 0) :]
        if ending != name and not ending[:1].isdigit():  # leaf1 does not begin leaf12
            endings.append(ending)
    counts = Counter(sorted(endings))
    (common, most), *others = counts.most_common(2) or [("", 0)]
    if others and others[0][1] == most:
        what = f"as many masks end in {common!r} as in {others[0][0]!r}: which are right?"
        return [], [Problem(str(masks[0].parent), what, "move the others to another folder")]
    if most == 1 and common[:1].isalpha():  # c does not begin cell1
        common = ""
    by_name = {mask.stem: mask for mask in reversed(masks)}
    whole = {one: by_name.get(one.stem + common) for one in images}
    left = {mask.stem: mask for mask in sorted({*masks} - {*whole.values()}, reverse=True)}
    both = {one: mask or left.get(one.stem) for one, mask in whole.items()}
    places = [Counter(name for name, _ in {(one.stem, one.parent) for one in images})]
    places += [Counter(name for name, _ in {(one.stem, one.parent) for one in masks})]
    several = {name for counts in places for name, count in counts.items() if count > 1}
    doubled = {one for one, mask in both.items() if mask and several & {one.stem, mask.stem}}
    what, remedy = "no image of that name, or a second mask of one", "rename it, or move it away"
    problems = [Problem(str(one), what, remedy) for one in sorted({*masks} - {*both.values()})]
    what, remedy = "its name, or its mask's, is in several folders", "rename one of them"
    problems += [Problem(str(one), what, remedy) for one in sorted(doubled)]
    bare = [one for one, mask in both.items() if not mask]
    problems += [Problem(str(one), f"no mask {one.stem}{common}", "add it") for one in bare]
    return [pair for pair in both.items() if pair[1] and pair[0] not in doubled], problems


def folders_in(root: Path) -> tuple[Path, Path]:
    """The folders of a data set's images and masks: the first of ``FOLDERS`` that are there."""
    found = [(root / images, root / masks) for images, masks in FOLDERS]
    return min(found, key=lambda pair: [not files_in(folder) for folder in pair])


def files_in(folder: Path, suffixes: tuple[str, ...] = ("",)) -> list[Path]:
    """A folder's visible entries with these suffixes, sorted; none where it cannot be read."""
    names = glob("*", root_dir=folder)  # none that begins with a dot
    return sorted(folder / name for name in names if name.lower().endswith(suffixes))


def split_by_group(
    samples: pd.DataFrame, fraction: float = 0.2, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split samples with masks into training and validation rows, no group on both sides.

    The 16 pictures of a car are nearly the same picture: split by image, and the validation set
    asks for cars that the model has already seen.

    Args:
        fraction: share of the groups, above 0 and below 1, that go to validation (at least one).
        seed: which groups; the same seed gives the same ones on every machine.

    Returns:
        ``(train, val)``, both with a fresh index; rows without a mask are in neither.

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
