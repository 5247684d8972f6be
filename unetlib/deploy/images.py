"""Paths of files and folders -> paths of images."""

from collections.abc import Iterable
from pathlib import Path

from unetlib.carvana import IMAGE_SUFFIXES
from unetlib.pictures import DataError


def paths_of(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """One path or several, as a list."""
    return [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]


def image_files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """All image files among paths and directly inside folders, sorted within each folder.

    Raises:
        DataError: a path does not exist, or there is no image at all.
    """
    found = []
    for path in paths_of(paths):
        if path.is_dir():
            inside = [one for one in sorted(path.iterdir()) if not one.name.startswith(".")]
            found += [
                one for one in inside if one.suffix.lower() in IMAGE_SUFFIXES and one.is_file()
            ]
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: no such file or folder; check the path.")
    if not found:
        raise DataError("No image found: give files or folders with .jpg, .jpeg or .png files.")
    return found
