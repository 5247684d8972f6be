"""Paths -> images to predict, and the files that their masks may be written to."""

import os
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from mimetypes import guess_type, types_map
from pathlib import Path

from unetlib.pictures import SUFFIXES, DataError

# What a data set calls its own masks; the csv files look like a submission.
TRUTH = ("train_masks", "train_masks.csv", "metadata.csv", "sample_submission.csv")
CSV = (".csv", ".csv.gz")
HEADER, UNREADABLE_HEADER = "img,rle_mask\n", "file,problem\n"
# With those that Pillow does not read: they have to be named as left out.
PICTURES = {*SUFFIXES, *(end for end, kind in types_map.items() if kind.startswith("image/"))}
MASK_SIGN = "tEXtSoftware\0unetlib"  # near the start of what write_masks wrote

Paths = str | Path | Iterable[str | Path]


def paths_of(paths: Paths) -> list[Path]:
    """One path or several, as a list."""
    return [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]


def image_files(paths: Paths) -> list[Path]:
    """All images among paths and directly in folders, sorted; a warning names what else is there;
    DataError: a path does not exist, or there is no image at all.
    """
    found, given = [], paths_of(paths)
    for path in given:
        if path.is_dir():
            inside = sorted(path.glob("[!.]*"))
            pictures = [one for one in inside if one.suffix.lower() in PICTURES and one.is_file()]
            found += pictures
            others = sorted({*inside} - {*pictures, *given})
            if rest := [one.name + "/" * one.is_dir() for one in others]:
                what = ", ".join(rest[:5]) + f" and {len(rest) - 5} more" * (len(rest) > 5)
                why = "left out, as no picture or as a folder, which has to be given itself"
                warnings.warn(f"{path}: {why}: {what}.", stacklevel=2)
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: no such file or folder; check the path.")
    if not found:
        raise DataError(f"{[*map(str, given)]}: no pictures there; give files, or their folders.")
    return list(dict.fromkeys(found))


def mask_files(images: Paths, folder: str | Path, kinds=("mask",)) -> dict[Path, list[Path]]:
    """Each image's <stem>_<kind>.png files; DataError as for ``submission.write_submission``."""
    folder, images = Path(folder), paths_of(images)
    like_a_file = folder.suffix.lower() in SUFFIXES or guess_type(folder.name) != (None, None)
    if folder.is_file() or (like_a_file and not folder.is_dir()):
        raise DataError(f"{folder}: give --output a folder, or a name ending in .csv or .csv.gz.")
    if here := [image for image in images if image.resolve().parent == folder.resolve()]:
        raise DataError(f"{here[0]}: masks need a folder of their own; choose another --output.")
    results = [[folder / f"{image.stem}_{kind}.png" for kind in kinds] for image in images]
    files = [one for both in results for one in both]
    signs = {folder / "unreadable.csv": UNREADABLE_HEADER} | dict.fromkeys(files, MASK_SIGN)
    _check_output(folder, files, signs)
    return dict(zip(images, results, strict=True))


def code_files(images: Paths, path: str | Path) -> tuple[list[Path], Path]:
    """The images of a csv file of run lengths, and the csv file of what is left out of it."""
    path, images = Path(path), paths_of(images)
    if not path.name.lower().endswith(CSV):
        raise DataError(f"{path}: give run lengths a name that ends in .csv or .csv.gz.")
    unreadable = path.with_name(f"{path.stem}.unreadable.csv")
    _check_output(path, images, {path: HEADER, unreadable: UNREADABLE_HEADER})
    return images, unreadable


def _check_output(output: Path, results: list[Path], signs: dict[Path, str]) -> None:
    """Refuse two results of one name, and to replace what is a data set's or not like ours."""
    [(name, count)] = Counter(result.name for result in results).most_common(1) or [("", 0)]
    if count > 1:
        raise DataError(f"{name}: two images of this name; predict them in turn.")
    if output.resolve().name.lower() in TRUTH:
        raise DataError(f"{output}: named as a data set's own masks; choose another --output.")
    for path, sign in signs.items():
        if not is_ours(path, sign, empty=True) and os.path.exists(path):
            raise DataError(f"{path}: not written by unetlib, so kept; choose another --output.")


def is_ours(path: Path, sign: str = MASK_SIGN, empty: bool = False) -> bool:
    """Whether a file has the sign of what unetlib writes, or, after a power cut, nothing in it."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        start = file.read(2**14).strip(b"\0")
    with suppress(zlib.error):  # of a file that gzip has not packed
        start = zlib.decompressobj(31).decompress(start)
    return sign.encode() in start or (empty and not start)
