"""Folders -> pairs of images and masks, by their names alone: Carvana's, or own pictures."""

import os
import re
from collections import Counter
from glob import glob
from pathlib import Path

from unetlib.pictures import SUFFIXES, Problem
from unetlib.support import folders

FOLDERS = ("train", "train_masks"), ("train_hq", "train_masks")
FOLDERS += ("images", "masks"), ("images", "labels"), ("imgs", "masks")
CAR = re.compile(r"[0-9a-fA-F]{12}_[0-9]{2}")  # <car>_<angle>
Pair = tuple[Path, Path | None]  # a picture and its mask, if it has one


def list_folder(root: Path) -> tuple[list[Pair], list[Problem], bool]:
    """A folder's images with their masks, what is wrong, and whether they are Carvana's cars."""
    images, masks = folders_in(root)
    photos, tests = (files_in(folder, SUFFIXES) for folder in (images, root / "test"))
    others, judged = {one for one in photos + tests if not CAR.fullmatch(one.stem)}, photos or tests
    # Where at least half of train/ has Carvana's names, others are left out.
    cars = images.name.startswith("train") and 2 * len(others.intersection(judged)) <= len(judged)
    others = others if cars else set()
    kept = [path for path in photos if path not in others]
    pairs, problems = pair_up(kept, files_in(masks, SUFFIXES) if judged else [])
    pairs += [(path, None) for path in tests if path not in others]
    what, remedy = "the name is not <car>_<angle>", "rename it, as in 0123456789ab_01.jpg"
    problems += [Problem(str(one), what, remedy) for one in sorted(others)]
    for folder in (images, masks, root / "test") if pairs else ():
        problems += others_in(folder)
    here = files_in(root)
    for name in ("metadata.csv", "train_masks.csv", "train_masks", "train"):
        archive = root / f"{name}.zip"
        if archive in here and root / name not in here:
            remedy = f'run `python -m zipfile -e "{archive}" "{root}"`'
            if not os.access(root, os.W_OK):
                remedy = f'run `python -m unetlib download --from "{root}" --target carvana`'
            problems.insert(0, Problem(str(archive), "not unpacked", remedy))
    if not pairs and not problems:
        what = "no images here that you may see" if os.path.isdir(root) else "no such folder"
        near = [one for one in (root.parent, *here) if all(map(files_in, folders_in(one)))]
        right = near[0] if near else "photos in train/ or images/, masks in train_masks/ or masks/"
        remedy = f"point --data or UNETLIB_DATA at {right}"
        if root.parent == folders.PACKAGE / "data":  # of the full-size car, which a wheel lacks
            remedy = "pip installs no full-size pictures: copy the folder there from a clone"
        problems = [Problem(str(root), what, remedy)]
    return pairs, problems, cars


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
    (common, most), *others = Counter(sorted(endings)).most_common(2) or [("", 0)]
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


def others_in(folder: Path) -> list[Problem]:
    """What else lies in a folder of pictures."""
    rest = sorted({*files_in(folder)} - {*files_in(folder, SUFFIXES)})
    return [Problem(str(one), "ignored: no picture", "save it as PNG, or move it") for one in rest]
