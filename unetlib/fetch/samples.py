"""A data set's folder -> its table of samples: ``carvana.find_samples`` for files of any origin.

It looks into each file, but not again into a usable pair until one of its files changes.
"""

import hashlib
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from unetlib import carvana, config
from unetlib.carvana import IMAGE_SUFFIXES, MASK_SUFFIXES, Pair, files_in, train_dir
from unetlib.masks import open_mask
from unetlib.pictures import ORIENTATION, UNREADABLE, DataError, Problem, image_size
from unetlib.support.memory import is_settled, remembered, stamp

# A row as in carvana.COLUMNS, or None if the pair cannot be used; and what is to be said of it.
Finding = tuple[tuple[str, str, int, str, str, int, int] | None, list[Problem]]

VERSION = 1  # raise it when inspect finds other things: what is remembered is forgotten


def find_samples(root: str | Path | None = None) -> pd.DataFrame:
    """List a data set's images with their masks, one row each.

    Every mask must be two-valued and of its image's size. A file that cannot be used is left out
    and named in a warning, a doubtful one is kept and named. Usable pairs are remembered in the
    cache folder, so that the next call opens only what has changed. ``check`` looks more closely.

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
    root = Path(root if root is not None else config.data_dir())
    name = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:12]
    with remembered(f"samples-{VERSION}-{name}") as known:
        samples = collect(root, partial(_inspect_once, known=known))
    problems = samples.attrs["problems"]
    if samples.empty:
        raise DataError(f"No usable image: {problems[0]}")
    warn_of("left out, unless marked as kept", problems)
    return samples


def collect(root: Path, look: Callable[[Pair], Finding]) -> pd.DataFrame:
    """The table of ``find_samples``, perhaps empty; ``look`` is ``inspect`` or does more."""
    pairs, problems = carvana.list_pairs(root)
    problems, rows = _misplaced(root) + problems, {}
    if not pairs and not problems:
        problems.append(_no_images(root))
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of the interpreter lock
        # No bar where it would be gone at once.
        for row, found in tqdm(pool.map(look, pairs), "checking images", len(pairs), delay=1):
            problems += found
            if row and rows.setdefault(row[0], row) is not row:
                problems.append(Problem(row[3], "another image has this id", "rename or delete it"))
    samples = pd.DataFrame(list(rows.values()), columns=carvana.COLUMNS)
    samples.attrs["problems"] = problems
    return samples


def _inspect_once(pair: Pair, known: dict) -> Finding:
    """``inspect``, unless the pair is known to be usable and neither file has changed since.

    Unusable pairs are looked at each time: the reason may lie outside of the file, as a refused
    permission does.
    """
    try:
        stamps = [stamp(pair.image), stamp(pair.mask)]
    except OSError:
        return inspect(pair)  # which says why
    key = f"{pair.image} {pair.mask}"
    before, row, doubts = known.get(key, (None, None, None))
    if before == stamps:
        return tuple(row), [Problem(*doubt) for doubt in doubts]
    settled = all(map(is_settled, stamps))  # asked before reading, which takes time
    row, doubts = inspect(pair)
    if row and settled:
        known[key] = [stamps, row, doubts]
    return row, doubts


def inspect(pair: Pair, whole: bool = False) -> Finding:
    """Look into a mask and an image, which is decoded if ``whole`` or if it lacks its end mark."""
    image, mask, labelled = pair
    car, _, angle = image.stem.rpartition("_")
    if not car or not angle.isdecimal():
        remedy = "rename it, as in 0123456789ab_01.jpg"
        return None, [Problem(str(image), "the name is not <car>_<angle>", remedy)]
    size, problems, doubts = None, [], []
    try:
        with Image.open(image) as opened:
            if whole or not _ends_well(image):
                opened.load()
            size = image_size(opened)
            turned = opened.getexif().get(ORIENTATION, 1) in range(2, 9)
            if labelled and turned and size == opened.size[::-1]:
                doubt = "kept, but turned by its EXIF tag, and nothing tells whether its mask is"
                remedy = "compare the two, and save it without the tag"
                doubts.append(Problem(str(image), doubt, remedy))
    except UNREADABLE as error:
        problems.append(unreadable("image", image, error))
    if size and min(size) < 4:
        problem = f"an image of {size[1]}x{size[0]} pixels shows no car"
        problems.append(Problem(str(image), problem, "delete it"))
    try:
        grey, values = open_mask(mask) if mask else (None, [])
    except DataError as error:
        cause = error.__cause__  # Pillow's, if the file cannot be read
        problems.append(unreadable("mask", mask, cause) if cause else error.problem)
    else:
        if grey and size and size != grey.size[::-1]:
            problem = "mask of {}x{} pixels for an image of {}x{}".format(*grey.size, *size[::-1])
            problems.append(Problem(str(mask), problem, "draw it again over the upright image"))
        elif len(values) == 1:
            doubt = f"kept, but all is {'white: only car' if values[0] else 'black: no car'}"
            doubts.append(Problem(str(mask), doubt, "compare it with the photo"))
    if labelled and not mask:
        problem = f"image without its mask train_masks/{image.stem}_mask.gif"
        remedy = "restore the mask, or move the image to test/"
        problems.append(Problem(str(image), problem, remedy))
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
    photos = [] if files_in(train_dir(root), IMAGE_SUFFIXES) else ["train", "train_hq"]
    for name in [*photos, "test", "train_masks", "train_masks.csv", "metadata.csv"]:
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
    near = [str(one) for one in places if files_in(train_dir(one), IMAGE_SUFFIXES)]
    right = " or ".join(near[:3]) or "a folder in Carvana's layout (train/, train_masks/)"
    return Problem(str(root), what, f"point UNETLIB_DATA at {right}")


def warn_of(title: str, problems: list[Problem], stacklevel: int = 3) -> None:
    """One warning that names each file with its problem and remedy, on behalf of the caller."""
    lines = [str(problem) for problem in problems[:10]]
    if len(problems) > 10:
        lines.append(f"and {len(problems) - 10} more; `python -m unetlib check` lists them all.")
    if lines:
        warnings.warn(f"{title}: " + "\n  ".join(lines), stacklevel=stacklevel)
