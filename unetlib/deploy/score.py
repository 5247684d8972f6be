"""A submission and the true masks -> Dice of each picture, as Kaggle scores."""

import warnings
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from unetlib.fetch.tables import RECREATE, read_table, summarize
from unetlib.masks import rle_decode
from unetlib.pictures import DataError, Problem
from unetlib.support import folders


def score(submission: str | Path, solution: str | Path | None = None) -> pd.DataFrame:
    """A row per picture of the solution: ``img`` (text), ``dice`` (1 where both masks are empty).

    Kaggle's score is the mean. Both are csv files as ``write_submission`` writes, packed or not;
    the solution is by default that of ``data/sample/test``. What it lacks is counted in a warning.
    DataError: a file is missing, damaged or no such table, or a picture is missing or doubled.
    """
    paths = Path(submission), Path(solution or folders.SOLUTION)
    tables = [read_table(path, "img", "rle_mask") for path in paths]
    for path, (table, problems) in zip(paths, tables, strict=True):
        if problems or table is None or table.empty:
            found = [*problems, Problem(str(path), "no such file, or no rows", "")][0]
            raise DataError(found._replace(remedy="give a csv file as predict writes it"))
    found, truth = (table.set_index("id") for table, _ in tables)
    missing, what = truth.index.difference(found.index), f"picture(s) of {paths[1]} missing"
    for problem in summarize(paths[0], missing, what, "predict these, or give their --solution"):
        raise DataError(problem)
    if others := len(found) - len(truth):
        warnings.warn(f"{paths[0]}: {others} not scored, as {paths[1]} lacks them.", stacklevel=2)
    from unetlib.metrics import dice  # PyTorch, slow to import: not before a refusal

    scores = []
    for name in tqdm(truth.index, "scoring", unit="img"):
        codes, masks = [table.at[name, "rle_mask"] for table in (found, truth)], []
        ends = (sum(int(n[:18]) for n in code.split()[-2:] if n.isdecimal()) for code in codes)
        pixels = min(max(1, *ends), 2**28)  # the sides do not matter; Pillow opens no larger one
        for path, code in zip(paths, codes, strict=True):
            try:
                masks.append(rle_decode(code, 1, pixels))
            except DataError as error:
                raise DataError(f"{path}: {name}: {str(error)[:-1]}; {RECREATE}.") from None
        scores.append(dice(*masks).item())
    return truth[["img"]].assign(dice=scores).reset_index(drop=True)
