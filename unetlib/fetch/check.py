"""All that is wrong with a data set, in one table."""

from functools import partial
from pathlib import Path

import pandas as pd

from unetlib.fetch.pairs import Pair, files_in, folders_in, list_folder
from unetlib.fetch.samples import Finding, collect, inspect
from unetlib.fetch.tables import RECREATE, read_table, summarize
from unetlib.masks import load_mask, rle_decode
from unetlib.pictures import SUFFIXES, DataError, Problem
from unetlib.support import folders


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
    samples = collect(list_folder(root), partial(_inspect_whole, codes=codes))
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


def _inspect_whole(pair: Pair, codes: pd.Series | dict) -> Finding:
    """``inspect`` with the photo decoded whole and the mask compared with its run-length code."""
    (image, path), (row, problems, kind) = pair, inspect(pair, whole=True)
    if row and path and image.stem in codes:
        mask = load_mask(path)
        try:
            wrong = (rle_decode(codes[image.stem], *mask.shape) != mask).sum()
            problem = f"differs from {path.name} in {wrong} pixels" if wrong else ""
        except DataError as error:
            problem = str(error).rstrip(".")
        if problem:
            table = str(path.parent.with_suffix(".csv"))
            problems.append(Problem(table, f"row {image.stem}: {problem}", RECREATE))
    return row, problems, kind
