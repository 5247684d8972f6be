"""Folders or patterns -> a table of samples: ``carvana.find_samples`` for files of any origin.

It looks into each file, but not again into a usable pair until one of its files changes.
"""

import glob
import hashlib
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from numbers import Real
from pathlib import Path

import pandas as pd
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from unetlib import carvana, config
from unetlib.carvana import FOLDERS, IMAGE_SUFFIXES, MASK_SUFFIXES, Pair, files_in, folders_in
from unetlib.masks import load_mask
from unetlib.pictures import ORIENTATION, UNREADABLE, DataError, Problem, image_size
from unetlib.support.memory import is_settled, remembered, stamp

# A row of the table, or None if the pair cannot be used; and what is to be said of it.
Finding = tuple[carvana.Row | None, list[Problem]]
Listed = tuple[list[Pair], list[Problem], bool]  # see carvana.list_pairs

VERSION = 2  # raise it when inspect finds other things: what is remembered is forgotten


def find_samples(
    root: str | Path | None = None,
    *,
    images: str | Path | None = None,
    masks: str | Path | None = None,
    group: Callable[[Path], object] | None = None,
    mask_value: float | None = None,
) -> pd.DataFrame:
    """List a data set's images with their masks, one row each.

    Every mask must be two-valued and of its image's size. A file that cannot be used is left out
    and named in a warning, a doubtful one is kept and named. Usable pairs are remembered in the
    cache folder, so that the next call opens only what has changed. ``check`` looks more closely.

    Args:
        root: a folder in a layout that ``carvana`` names; None: ``config.data_dir()``.
        images, masks: instead of root, a folder or a pattern (``"scans/**/*.png"``) of each; a
            mask's name is its image's, perhaps with an ending (``leaf1_mask``) that all share.
            Without masks, the pictures are for predictions only.
        group: makes of an image's path what a split keeps together, such as its patient.
        mask_value: which value of a mask is the object, see ``load_mask``.

    Returns:
        A table, see ``carvana.sample_table``, sorted by id, images with masks before those
        without; with ``mask_value`` also that as a column. ``table.attrs["problems"]`` lists what
        was found, as ``(file, problem, remedy)``.

    Raises:
        DataError: there is no usable image.
        ValueError: root and images at once, masks alone, or a mask value that is no number.
    """
    if root is not None if images is not None else masks is not None:
        raise ValueError("Give either root, or images= and perhaps masks=.")
    if not isinstance(mask_value, Real | None):
        raise ValueError(f"mask_value={mask_value!r} is no number: give a value that masks have.")
    if images is None:
        root = Path(root if root is not None else config.data_dir())
    places = [one and os.path.abspath(one) for one in (root, images, masks)]
    name = hashlib.sha256(repr((places, mask_value)).encode()).hexdigest()[:12]
    listed = list_folder(root) if images is None else _list_own(images, masks)
    with remembered(f"samples-{VERSION}-{name}") as known:
        samples = collect(listed, partial(_inspect_once, known=known, mask_value=mask_value), group)
    problems = samples.attrs["problems"]
    if samples.empty:
        raise DataError(f"No usable image: {problems[0]}")
    warn_of("left out, unless marked as kept", problems)
    return samples if mask_value is None else samples.assign(mask_value=mask_value)


def list_folder(root: Path) -> Listed:
    """``carvana.list_pairs``, and what seems to be in the wrong place."""
    pairs, problems, cars = carvana.list_pairs(root)
    problems = _misplaced(root) + problems
    return pairs, (problems if pairs or problems else [_no_images(root)]), cars


def _list_own(images: str | Path, masks: str | Path | None) -> Listed:
    """Like ``list_folder``, of a folder or pattern of images and one of masks."""
    labels = [] if masks is None else _files_of(masks, MASK_SUFFIXES)
    taken = set(labels)
    photos = [path for path in _files_of(images, IMAGE_SUFFIXES) if path not in taken]
    for place, found in ((masks, labels), (images, photos)):
        if place is not None and not found:
            what, remedy = "no pictures here", "give a folder, or a pattern such as photos/*.png"
            return [], [Problem(str(place), what, remedy)], False
    if masks is None:
        return [Pair(path, None) for path in photos], [], False
    return *carvana.pair_up(photos, labels), False


def _files_of(place: str | Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The pictures in a folder, or all visible files that a pattern describes, sorted."""
    place = Path(place).expanduser()
    if place.is_dir():
        return files_in(place, suffixes)
    found = [Path(path) for path in glob.glob(str(place), recursive=True)]
    return sorted((one for one in found if not one.is_dir()), key=lambda one: (one.stem, one))


def collect(listed: Listed, look: Callable[[Pair], Finding], group=None) -> pd.DataFrame:
    """The table of ``find_samples``, perhaps empty; ``look`` is ``inspect`` or does more."""
    pairs, problems, cars = listed
    rows = {}
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of the interpreter lock
        # No bar where it would be gone at once.
        for row, found in tqdm(pool.map(look, pairs), "checking images", len(pairs), delay=1):
            problems += found
            if row and rows.setdefault(row[0], row) is not row:
                problems.append(Problem(row[1], "another image has this id", "rename or delete it"))
    samples = carvana.sample_table(list(rows.values()), cars, group)
    samples.attrs["problems"] = problems
    return samples


def _inspect_once(pair: Pair, known: dict, mask_value: float | None) -> Finding:
    """``inspect``, unless the pair is known to be usable and neither file has changed since.

    Unusable pairs are looked at each time: the reason may lie outside of the file, as a refused
    permission does.
    """
    try:
        stamps = [stamp(pair.image), stamp(pair.mask)]
    except OSError:
        return inspect(pair, mask_value)  # which says why
    key = f"{pair.image} {pair.mask}"
    before, row, doubts = known.get(key, (None, None, None))
    if before == stamps:
        return tuple(row), [Problem(*doubt) for doubt in doubts]
    settled = all(map(is_settled, stamps))  # asked before reading, which takes time
    row, doubts = inspect(pair, mask_value)
    if row and settled:
        known[key] = [stamps, row, doubts]
    return row, doubts


def inspect(pair: Pair, mask_value: float | None = None, whole: bool = False) -> Finding:
    """Look into a mask and an image, which is decoded if ``whole`` or if it lacks its end mark."""
    image, mask = pair
    size, problems, doubts = None, [], []
    try:
        with Image.open(image) as opened:
            if whole or not _ends_well(image):
                opened.load()
            size = image_size(opened)
            turned = opened.getexif().get(ORIENTATION, 1) in range(2, 9)
            if mask and turned and size == opened.size[::-1]:
                doubt = "kept, but turned by its EXIF tag, and nothing tells whether its mask is"
                remedy = "compare the two, and save it without the tag"
                doubts.append(Problem(str(image), doubt, remedy))
    except UNREADABLE as error:
        problems.append(unreadable("image", image, error))
    if size and min(size) < 4:
        problem = f"an image of {size[1]}x{size[0]} pixels shows nothing"
        problems.append(Problem(str(image), problem, "delete it"))
    try:
        pixels = load_mask(mask, mask_value) if mask else None
    except DataError as error:
        cause = error.__cause__  # Pillow's, if the file cannot be read
        problems.append(unreadable("mask", mask, cause) if cause else error.problem)
    else:
        if mask and size and size != pixels.shape:
            sides = *pixels.shape[::-1], *size[::-1]
            problem = "mask of {}x{} pixels for an image of {}x{}".format(*sides)
            problems.append(Problem(str(mask), problem, "draw it again over the upright image"))
        elif mask and pixels.all() == pixels.any():
            doubt = (
                f"kept, but all is {'white: only object' if pixels.all() else 'black: no object'}"
            )
            doubts.append(Problem(str(mask), doubt, "compare it with the photo"))
    return None if problems else carvana.row_of(pair), problems + doubts


def _ends_well(path: Path) -> bool:
    """Whether a JPEG or PNG file has its end mark, which a file that was cut off lacks."""
    with path.open("rb") as file:
        file.seek(-min(64, path.stat().st_size), 2)
        end = file.read()
    return b"\xff\xd9" in end or b"IEND" in end


def unreadable(kind: str, path: str | Path, error: Exception) -> Problem:
    """The problem of an image or mask that Pillow or ``upright`` refuses with this error."""
    why, remedy = "cut off or damaged", "copy the file again"
    if isinstance(error, DataError):
        _, why, remedy = error.problem
    elif isinstance(error, Image.DecompressionBombError):
        why, remedy = "more pixels than any photo", "shrink it"
    elif getattr(error, "filename", None):  # of OSError: the file could not be opened
        why, remedy = error.strerror, "check the path, where it links to and who may read it"
    elif not os.path.getsize(path):
        why = "an empty file"
    elif Path(path).read_bytes()[:64].lstrip().startswith(b"<"):
        why, remedy = "a web page", "download the file again, logged in where needed"
    elif isinstance(error, UnidentifiedImageError):
        why, remedy = "no picture inside", "save it as JPEG or PNG"
    return Problem(str(path), f"unreadable {kind} ({why})", remedy)


def _misplaced(root: Path) -> list[Problem]:
    """Archives that were not unpacked, and folders that were unpacked into themselves."""
    problems = []
    images, masks = folders_in(root)
    photos = [] if files_in(images, IMAGE_SUFFIXES) else [images for images, _ in FOLDERS]
    for name in [*photos, "test", masks.name, "train_masks.csv", "metadata.csv"]:
        place, archive = root / name, root / f"{name}.zip"
        if files_in(place / name, MASK_SUFFIXES):
            remedy = f"move its content up into {place}"
            problems.append(Problem(str(place / name), "one folder too deep", remedy))
        elif name != "test" and archive.is_file() and not place.is_file() and not files_in(place):
            remedy = f'run `python -m zipfile -e "{archive}" "{root}"`'
            problems.append(Problem(str(archive), "not unpacked", remedy))
    return problems


def _no_images(root: Path) -> Problem:
    """What to do about a folder without images: the right one may be near."""
    what = "no images here that you may see" if os.path.isdir(root) else "no such folder"
    places = (root.parent, *files_in(root))
    near = [str(one) for one in places if files_in(folders_in(one)[0], IMAGE_SUFFIXES)]
    layouts = "a folder with train/ and train_masks/, or images/ and masks/"
    right = " or ".join(near[:3]) or layouts
    return Problem(str(root), what, f"point UNETLIB_DATA at {right}")


def warn_of(title: str, problems: list[Problem], stacklevel: int = 3) -> None:
    """One warning that names each file with its problem and remedy, on behalf of the caller."""
    lines = [str(problem) for problem in problems[:10]]
    if len(problems) > 10:
        lines.append(f"and {len(problems) - 10} more; `python -m unetlib check` lists them all.")
    if lines:
        warnings.warn(f"{title}: " + "\n  ".join(lines), stacklevel=stacklevel)
