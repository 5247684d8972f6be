"""Folders or patterns -> a table of samples, or of all that is wrong with them."""

import glob
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from numbers import Real
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from unetlib.carvana import Row, row_of, sample_table
from unetlib.fetch.pairs import Pair, files_in, folders_in, list_folder, others_in, pair_up
from unetlib.fetch.tables import RECREATE, read_table, summarize, warn_of
from unetlib.masks import read_mask, rle_decode
from unetlib.pictures import ORIENTATION, SUFFIXES, DataError, Problem, image_size, opening, scale
from unetlib.support import folders
from unetlib.support.memory import recall, remembered

# A pair's row of the table, None if it cannot be used; what is to be said; the object's grey.
Finding = tuple[Row | None, list[Problem], float | None]

VERSION = 5  # raise it when inspect finds other things: what is remembered is forgotten


def find_samples(
    root: str | Path | None = None,
    *,
    images: str | Path | None = None,
    masks: str | Path | None = None,
    group: Callable[[Path], object] | None = None,
    mask_value: float | None = None,
) -> pd.DataFrame:
    """List a data set's images with their masks, one row each.

    Every mask must be two-valued, unless ``mask_value`` is given, and of its image's size. Warnings
    name what is left out, and what is kept but doubtful; ``check`` looks more closely. Usable pairs
    are remembered: the next call opens what has changed.

    Args:
        root: a folder with images/ and masks/, or as Carvana's; None: ``unetlib.data_dir()``.
        images, masks: instead of root, a folder or a pattern (``"scans/**/*.png"``) of each, no two
            of one name; a mask's name is its image's, perhaps with an ending (``leaf1_mask``) that
            all share. Without masks, the pictures are for predictions only.
        group: makes of an image's path what a split keeps together, such as its patient.
        mask_value: which value of a mask is the object, see ``load_mask``.

    Returns:
        A table, see ``carvana.sample_table``, sorted by id, images with masks first; also a column
        ``mask_value`` if given. ``attrs["problems"]`` lists ``(file, problem, remedy)``.

    Raises:
        DataError: there is no usable image.
        ValueError: root and images at once, masks alone, or a mask value that is no number.
    """
    if (masks if images is None else root) is not None:
        raise ValueError("Give either root, or images= and perhaps masks=.")
    if not isinstance(mask_value, Real | None):
        raise ValueError(f"mask_value={mask_value!r} is no number: give a value that masks have.")
    if images is None:
        listed = list_folder(Path(root if root is not None else folders.data_dir()))
    else:
        labels = {} if masks is None else dict.fromkeys(_files_of(masks))
        photos = [path for path in _files_of(images) if path not in labels]
        pairs = [(path, None) for path in photos], []
        pairs, problems = pairs if masks is None else pair_up(photos, list(labels))
        others = (others_in(Path(one)) for one in {images, masks or images})
        listed = pairs, sum(others, problems), False
    with remembered(f"samples-{VERSION}") as known:
        samples = collect(listed, partial(_inspect_once, known=known, mask_value=mask_value))
    if samples.empty:
        raise DataError(f"No usable image: {samples.attrs['problems'][0]}")
    if group is not None:
        samples["group"] = [str(group(Path(one))) for one in samples["image"]]
    doubts = [one for one in samples.attrs["problems"] if one.problem.startswith("kept")]
    warn_of("left out", [one for one in samples.attrs["problems"] if one not in doubts])
    warn_of("doubtful", doubts)
    return samples if mask_value is None else samples.assign(mask_value=mask_value)


def _files_of(place: str | Path) -> list[Path]:
    """The pictures in a folder, or all visible files that a pattern describes, sorted."""
    place = Path(place).expanduser()
    files = [Path(path) for path in glob.glob(str(place), recursive=True) if os.path.isfile(path)]
    files = files_in(place, SUFFIXES) or sorted(files, key=lambda one: (one.stem, one))
    if not files:
        raise DataError(f"{place}: no pictures; give a folder, or a pattern like photos/*.png.")
    return files


def collect(listed: tuple, look: Callable[[Pair], Finding]) -> pd.DataFrame:
    """The table of ``find_samples``, perhaps empty; ``look`` is ``inspect`` or does more."""
    (pairs, problems, cars), rows, kinds = listed, {}, {}
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of the interpreter lock
        for row, found, kind in tqdm(pool.map(look, pairs), "checking images", len(pairs), delay=1):
            problems += found
            if row and kind is not None:
                kinds.setdefault(kind, []).append(row[2])
            if row and rows.setdefault(row[0], row) is not row:
                problems.append(Problem(row[1], "another image has this id", "rename one of them"))
    usual, *others = sorted(kinds, key=lambda kind: -len(kinds[kind])) or [None]
    for kind in others:
        less, more = len(kinds[kind]), len(kinds[usual])
        doubt = f"kept, but {less} masks have the object as {kind:g}, and {more} as {usual:g}"
        remedy = f"if these are two things, choose one: find_samples(..., mask_value={kind:g})"
        problems.append(Problem(kinds[kind][0], doubt, remedy))
    samples = sample_table(rows.values(), cars)
    samples.attrs["problems"] = problems
    return samples


def _inspect_once(pair: Pair, known: dict, mask_value: float | None) -> Finding:
    """``inspect``, unless the pair is known to be usable and neither file has changed since."""
    key = f"{pair[0]} {pair[1]} {mask_value}"
    row, doubts, kind = recall(known, key, pair, partial(inspect, pair, mask_value))
    if row is None:  # looked at each time: the reason may lie outside of the files
        known.pop(key, None)
    return row, [Problem(*doubt) for doubt in doubts], kind


def inspect(pair: Pair, mask_value: float | None = None, codes: Mapping | None = None) -> Finding:
    """Look into a mask and an image; with ``codes``, run lengths by id, as ``check`` does."""
    (image, mask), size, kind, problems, doubts = pair, None, None, [], []
    try:
        with opening(image) as opened:
            if codes is not None or not _ends_well(image):
                opened.load()
            if opened.mode[0] in "IF" and scale(np.asarray(opened))[1]:
                doubt = "kept, but dark: its greys use under a quarter of its bits"
                doubts.append(Problem(str(image), doubt, "save it with 8 bits a channel"))
            size = image_size(opened)
            turned = opened.getexif().get(ORIENTATION, 1) in range(2, 9)
            if mask and turned and size == opened.size[::-1]:
                doubt = "kept, but turned by its EXIF tag, and nothing tells whether its mask is"
                doubts.append(Problem(str(image), doubt, "compare them, and save it without a tag"))
            if min(size) < 4:
                raise ValueError(f"{size[1]}x{size[0]} pixels show nothing")
    except DataError as error:
        problems.append(error.problem)
    try:
        pixels, kind = read_mask(mask, mask_value) if mask else (None, None)
    except DataError as error:
        return None, [*problems, error.problem], None
    if mask and size and size != pixels.shape:
        problem = "mask of {3}x{2} pixels for an image of {1}x{0}".format(*size, *pixels.shape)
        problems.append(Problem(str(mask), problem, "draw it again over the upright image"))
    elif mask and pixels.all() == pixels.any():
        doubt = f"kept, but all {'white: only' if pixels.all() else 'black: no'} object"
        doubts.append(Problem(str(mask), doubt, "compare it with the photo"))
    if mask and codes is not None and image.stem in codes and not problems:
        try:
            if wrong := (rle_decode(codes[image.stem], *pixels.shape) != pixels).sum():
                raise DataError(f"differs from {mask.name} in {wrong} pixels")
        except DataError as error:
            table, what = str(mask.parent.with_suffix(".csv")), str(error).rstrip(".")
            doubts.append(Problem(table, f"row {image.stem}: {what}", RECREATE))
    return None if problems else row_of(*pair), problems + doubts, kind


def _ends_well(path: Path) -> bool:
    """Whether a JPEG or PNG file has its end mark, which a file that was cut off lacks."""
    with path.open("rb") as file:
        file.seek(-min(64, path.stat().st_size), 2)
        return b"\xff\xd9" in (end := file.read()) or b"IEND" in end


def check(root: str | Path | None = None) -> pd.DataFrame:
    """Find all that is wrong with a data set at once: decode every file, compare the csv files.

    ``find_samples`` takes the same folders (None: ``unetlib.data_dir()``) and is faster: it trusts
    the inside of photos and reads no csv file. The table of text has a row for each problem and the
    columns ``file`` (as seen from root), ``problem`` and ``remedy``; no rows if all is well.
    """
    root = Path(root if root is not None else folders.data_dir())
    rles_csv, cars_csv = root / "train_masks.csv", root / "metadata.csv"
    rles, problems = read_table(rles_csv, "img", "rle_mask")
    cars, found = read_table(cars_csv, "id")
    codes = {} if rles is None else rles.set_index("id")["rle_mask"]
    samples = collect(list_folder(root), partial(inspect, codes=codes))
    problems += found + samples.attrs["problems"]
    if rles is not None:
        missing = set(samples.loc[samples["mask"] != "", "id"]) - set(rles["id"])
        lost = set(rles["id"]) - {path.stem for path in files_in(folders_in(root)[0], SUFFIXES)}
        problems += summarize(rles_csv, missing, "image(s) without a row")
        problems += summarize(rles_csv, lost, "row(s) without an image", "restore the images")
    if cars is not None and "car" in samples:
        missing = set(samples["car"]) - set(cars["id"])
        problems += summarize(cars_csv, missing, "car(s) without a line", "add a line for each")
    seen = [one._replace(file=Path(one.file).relative_to(root).as_posix()) for one in problems]
    return pd.DataFrame(seen, columns=Problem._fields)
