"""Files on disk -> table of samples: find, check, split by car.

Carvana's layout: ``train/<car>_<angle>.jpg`` and ``train_masks/<car>_<angle>_mask.gif``, where the
car is 12 hex digits and the angle counts 01..16 round the turntable; ``test/`` holds photos without
masks, ``train_masks.csv`` the masks as run lengths, ``metadata.csv`` a line per car.
https://www.kaggle.com/c/carvana-image-masking-challenge/data
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from unetlib import config
from unetlib.pictures import (
    ORIENTATION,
    UNREADABLE,
    DataError,
    Problem,
    load_mask,
    rle_decode,
    rle_encode,
    upright_size,
    warn_of,
    why_unreadable,
)
from unetlib.tables import ANEW, CARS, RLES, by_id, read_metadata, read_rles, read_table, some

# For everybody else this file is the place to import these from.
__all__ = ["DataError", "load_mask", "read_metadata", "read_rles", "rle_decode", "rle_encode"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_SUFFIXES = (".gif", *IMAGE_SUFFIXES)
COLUMNS = ["id", "car", "angle", "image", "mask", "width", "height"]
FEW_CARS = 5  # with fewer, the validation score hangs on one car


def find_samples(root: str | Path | None = None) -> pd.DataFrame:
    """List a data set's images with their masks, one row each.

    Every mask is opened and must be two-valued and of its image's size. A file that cannot be used
    is left out and named in a warning. ``check`` looks more closely.

    Args:
        root: a folder in Carvana's layout; None: ``config.data_dir()``.

    Returns:
        A table sorted by id, training images before test images, with columns ``id``
        ("<car>_<angle>"), ``car``, ``angle`` (int), ``image`` and ``mask`` (paths as str; the mask
        of a test image is ""), ``width`` and ``height`` (int, pixels of the upright image).
        ``table.attrs["problems"]`` lists what was found, as ``(file, problem, remedy)``.

    Raises:
        DataError: the folder holds no usable image.
    """
    root = Path(root) if root is not None else config.data_dir()
    rows, left_out, doubtful = _inspect(root)
    warn_of("left out", left_out)
    warn_of("kept, but doubtful", doubtful)
    if not rows:
        raise DataError(f"No usable image in {root}: {left_out[0]}")
    samples = pd.DataFrame(rows, columns=COLUMNS)
    samples.attrs["problems"] = left_out + doubtful
    return samples


def check(root: str | Path | None = None) -> pd.DataFrame:
    """Find all that is wrong with a data set at once: decode every file, compare the csv files.

    Nothing is changed. ``find_samples`` is faster: it trusts the inside of photos and reads no csv.

    Args:
        root: a folder in Carvana's layout; None: ``config.data_dir()``.

    Returns:
        A table of text with a row for each problem and the columns ``file`` (as seen from root),
        ``problem`` and ``remedy``; no rows if all is well.
    """
    root = Path(root) if root is not None else config.data_dir()
    table, problems = read_table(root / "train_masks.csv", **RLES)
    rles = None if table is None else by_id(table)
    try:
        rows, left_out, doubtful = _inspect(root, True, rles)
    except DataError as error:
        rows, left_out, doubtful = [], [error.problem], []
    problems += left_out + doubtful + _ignored(root)
    samples = pd.DataFrame(rows, columns=COLUMNS)
    labelled = samples[samples["mask"] != ""]
    if rles is not None:
        pictures = {path.stem for path in _files(_train_dir(root), IMAGE_SUFFIXES)}
        path, lost = root / "train_masks.csv", set(rles.index) - pictures
        missing = set(labelled["id"]) - set(rles.index)
        problems += some(path, missing, "image(s) without a row", ANEW)
        problems += some(path, lost, "row(s) without an image", "restore the images")
    metadata, found = read_table(root / "metadata.csv", **CARS)
    problems += found
    if metadata is not None:
        cars = set(samples["car"]) - set(metadata["id"])
        problems += some(
            root / "metadata.csv", cars, "car(s) without a line", "add a line for each"
        )
    if rows and labelled["car"].nunique() < FEW_CARS:
        few = f"{labelled['car'].nunique()} car(s) with masks, hardly enough to train and judge"
        problems.append(Problem(str(root), few, f"add cars, to have {FEW_CARS} or more"))
    found = pd.DataFrame(problems, columns=Problem._fields)
    return found.assign(file=[_seen_from(root, file) for file in found["file"]])


def _seen_from(root: Path, file: str) -> str:
    path = Path(file)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else file


def _ignored(root: Path) -> list[Problem]:
    folders = {_train_dir(root): IMAGE_SUFFIXES, root / "train_masks": MASK_SUFFIXES}
    return [
        Problem(str(path), "ignored: not a JPEG or PNG file", "convert it or move it elsewhere")
        for folder, suffixes in {**folders, root / "test": IMAGE_SUFFIXES}.items()
        for path in _files(folder)
        if path.suffix.lower() not in suffixes and not path.is_dir()
    ]


def _inspect(root: Path, whole: bool = False, rles: pd.Series | None = None):
    """(rows of usable images, problems of files left out, problems of files kept)."""
    masks, left_out, doubtful = {}, _misplaced(root), []
    for path in _files(root / "train_masks", MASK_SUFFIXES):
        if masks.setdefault(path.stem.removesuffix("_mask"), path) != path:
            left_out.append(Problem(str(path), "a second mask of one image", "delete one of them"))
    images = _files(_train_dir(root), IMAGE_SUFFIXES)
    jobs = [(path, masks.pop(path.stem, None), True) for path in images]
    jobs += [(path, None, False) for path in _files(root / "test", IMAGE_SUFFIXES)]
    if not jobs:
        raise DataError((left_out or [_no_images(root)])[0])
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda job: _inspect_pair(*job, whole, rles), jobs)
        silent = len(jobs) < 1000 and not whole
        inspected = list(tqdm(results, "checking images", len(jobs), disable=silent))
    rows = {}
    for row, problems in inspected:
        if row and rows.setdefault(row[0], row) is not row:
            left_out.append(Problem(row[3], "another image has this id", "rename or delete it"))
        (doubtful if row else left_out).extend(problems)
    left_out += [
        Problem(str(path), "mask without an image of that id", "restore the image or delete it")
        for path in masks.values()
    ]
    return list(rows.values()), left_out, doubtful


def _inspect_pair(image: Path, mask: Path | None, labelled: bool, whole: bool, rles):
    """(row, doubts) of a usable image, else (None, problems)."""
    car, _, angle = image.stem.rpartition("_")
    if not car or not angle.isdecimal():
        remedy = "rename it, as in 0123456789ab_01.jpg"
        return None, [Problem(str(image), "the name is not <car>_<angle>", remedy)]
    size, problems, doubts = None, [], []
    try:
        with Image.open(image) as opened:
            if whole or not _ends_well(image):
                opened.load()
            size = upright_size(opened)
            if opened.getexif().get(ORIENTATION, 1) in range(2, 9) and size == opened.size:
                problem = "turned by its EXIF tag, and nothing tells whether its mask is turned too"
                remedy = "compare the two, and save it without the tag"
                doubts += [Problem(str(image), problem, remedy)] if labelled else []
    except UNREADABLE as error:
        why, remedy = why_unreadable(image, error)
        problems.append(Problem(str(image), f"unreadable image ({why})", remedy))
    if size and min(size) < 4:
        problem = f"an image of {size[0]}x{size[1]} pixels shows no car"
        problems.append(Problem(str(image), problem, "delete it"))
    if labelled and mask is None:
        problem = f"image without its mask train_masks/{image.stem}_mask.gif"
        remedy = "restore the mask, or move the image to test/"
        problems.append(Problem(str(image), problem, remedy))
    elif labelled:
        found = _inspect_mask(mask, size, None if rles is None else rles.get(image.stem))
        problems += found[0]
        doubts += found[1]
    if problems:
        return None, problems + doubts
    return (image.stem, car, int(angle), str(image), str(mask or ""), *size), doubts


def _inspect_mask(path: Path, size: tuple[int, int] | None, rle: str | None):
    """(problems, doubts) of a mask, given its image's size and its run-length code where known."""
    try:
        mask = load_mask(path)
    except DataError as error:
        return [error.problem], []
    height, width = mask.shape
    if size and size != (width, height):
        problem = f"mask of {width}x{height} pixels for an image of {size[0]}x{size[1]}"
        return [Problem(str(path), problem, "draw it anew over the upright image")], []
    doubts = []
    if mask.all() or not mask.any():
        problem = f"the mask is all {'white: all of it is car' if mask.any() else 'black: no car'}"
        doubts.append(Problem(str(path), problem, "compare it with the photo"))
    if rle is not None:
        table = str(path.parent.with_suffix(".csv"))
        try:
            wrong = (rle_decode(rle, height, width) != mask).sum()
            problem = f"differs from {path.name} in {wrong} pixels" if wrong else ""
        except DataError as error:
            problem = str(error).rstrip(".")
        if problem:
            image = path.stem.removesuffix("_mask")
            doubts.append(Problem(table, f"row {image}: {problem}", ANEW))
    return [], doubts


def _ends_well(path: Path) -> bool:
    """Whether a JPEG or PNG file has its end mark, which a file that was cut off lacks."""
    with path.open("rb") as file:
        file.seek(-min(64, path.stat().st_size), 2)
        end = file.read()
    return b"\xff\xd9" in end or b"IEND" in end


def _train_dir(root: Path) -> Path:
    high_quality = os.path.isdir(root / "train_hq") and not _files(root / "train")
    return root / ("train_hq" if high_quality else "train")


def _files(folder: Path, suffixes: tuple[str, ...] = ("",)) -> list[Path]:
    try:
        found = [path for path in folder.iterdir() if path.name.lower().endswith(suffixes)]
    except OSError:  # no such folder, or one that may not be looked into
        return []
    return sorted(path for path in found if not path.name.startswith("."))


def _misplaced(root: Path) -> list[Problem]:
    """Archives that were not unpacked, and folders that unpacking has put into themselves."""
    problems = []
    names = ["train_masks", "test", "train_masks.csv", "metadata.csv"]
    if not _files(_train_dir(root), IMAGE_SUFFIXES):
        names = ["train", "train_hq", *names]
    for name in names:
        place, archive = root / name, root / f"{name}.zip"
        deeper = _files(place / name, MASK_SUFFIXES)
        packed = os.path.isfile(archive) and not os.path.isfile(place) and not _files(place)
        if packed and name != "test":
            remedy = f'run `python -m zipfile -e "{archive}" "{root}"`'
            problems.append(Problem(str(archive), "not unpacked", remedy))
        elif deeper:
            remedy = f"move its content up into {place}"
            problems.append(Problem(str(place / name), "one folder too deep", remedy))
    return problems


def _no_images(root: Path) -> Problem:
    """What to do about a folder without images: the right one may be near."""
    for folder in (root, _train_dir(root)):
        try:
            os.listdir(folder)
        except PermissionError:
            return Problem(str(folder), "you may not look inside", "ask its owner for permission")
        except OSError:
            break
    places = (root.parent, *_files(root))
    near = [place for place in places if _files(_train_dir(place), IMAGE_SUFFIXES)]
    remedy = "point UNETLIB_DATA at "
    if near:
        remedy += " or ".join(map(str, near[:3]))
    else:
        remedy += (
            "a folder in Carvana's layout (train/<car>_<angle>.jpg and "
            "train_masks/<car>_<angle>_mask.gif)"
        )
    return Problem(str(root), "no images here" if os.path.isdir(root) else "no such folder", remedy)


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
    labelled = samples[samples["mask"].fillna("") != ""]  # a csv file has made "" a missing value
    cars = np.array(sorted(labelled["car"].unique()))
    if len(cars) < 2:
        raise DataError(f"{len(cars)} car(s) with masks cannot be split by car: add another car's.")
    count = min(max(1, round(fraction * len(cars))), len(cars) - 1)
    chosen = np.random.default_rng(seed).permutation(cars)[:count]
    in_val = labelled["car"].isin(chosen)
    return labelled[~in_val].reset_index(drop=True), labelled[in_val].reset_index(drop=True)


def fingerprint(samples: pd.DataFrame) -> str:
    """12 hex digits that change when any image or mask of the table changes in content.

    Raises:
        DataError: a file is gone or may not be read.
    """
    digest = hashlib.sha256()
    try:
        with ThreadPoolExecutor() as pool:
            paths = [*samples["image"], *samples["mask"].fillna("")]
            hashes = pool.map(lambda path: _file_hash(path, *_stamp(path)) if path else "", paths)
            for name, file_hash in zip([*samples["id"], *samples["id"]], hashes, strict=True):
                digest.update(f"{name} {file_hash}\n".encode(errors="surrogateescape"))
    except OSError as error:
        remedy = "restore the file, or list the samples anew (find_samples)"
        raise DataError(Problem(str(error.filename), str(error.strerror), remedy)) from None
    return digest.hexdigest()[:12]


def _stamp(path: str) -> tuple[int, int, int]:
    status = Path(path).stat()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size  # copying can keep the first


@cache
def _file_hash(path: str, modified: int, changed: int, size: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
