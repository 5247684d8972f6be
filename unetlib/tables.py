"""A data set's csv files, both optional, -> tables: ``train_masks.csv``, ``metadata.csv``."""

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from unetlib import config
from unetlib.pictures import DataError, Problem, warn_of

# An empty code is "", not a missing value; an id of digits only stays text.
RLES = dict(columns=["img", "rle_mask"], dtype=str, keep_default_na=False)
CARS = dict(columns=["id"], dtype={"id": str})


def read_metadata(root: str | Path | None = None) -> pd.DataFrame | None:
    """Read ``metadata.csv`` (id, year, make, model, trim1, trim2; id is the car).

    Returns None, and says so in one line, when the data set has none. Malformed rows and second
    rows of a car are left out with a warning. Join it to the samples with
    ``samples.merge(metadata, left_on="car", right_on="id", suffixes=("", "_car"))``.

    Raises:
        DataError: not a csv file with a column ``id``.
    """
    return _read_csv(root, "metadata.csv", **CARS)


def read_rles(root: str | Path | None = None) -> pd.Series | None:
    """Read ``train_masks.csv`` as run-length strings indexed by sample id.

    Returns None, and says so in one line, when the data set has none. Malformed rows and second
    rows of an image are left out with a warning.

    Raises:
        DataError: not a csv file with the columns ``img`` and ``rle_mask``.
    """
    table = _read_csv(root, "train_masks.csv", **RLES)
    return None if table is None else by_id(table)


def by_id(table: pd.DataFrame) -> pd.Series:
    """The run lengths of a ``train_masks.csv`` by sample id: the name without its suffix."""
    rles = table["rle_mask"].set_axis(table["img"].str.rsplit(".", n=1).str[0].rename("id"))
    return rles[~rles.index.duplicated()]


def _read_csv(root, name: str, **options) -> pd.DataFrame | None:
    path = (Path(root) if root is not None else config.data_dir()) / name
    if not path.is_file():
        print(f"no {name} in this data set: skipped")
        return None
    table, problems = read_table(path, **options)
    if table is None:
        raise DataError(problems[0])
    warn_of("left out", problems)
    return table


def read_table(path: Path, columns: list[str], **options):
    """Read a csv file as far as its rows are sound; the first of ``columns`` becomes unique.

    Args:
        options: for ``pandas.read_csv``, which never gets to see the other rows.

    Returns:
        ``(table, problems)``; the table is None if there is no such file, which is no problem, or
        if it is not a csv file with these columns.
    """
    if not os.path.isfile(path):
        return None, []
    csv.field_size_limit(2**31 - 1)  # the code of a large mask exceeds the usual limit
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = (row for row in csv.reader(file) if row)
        key, *_ = map(header.index, columns)
    except (OSError, ValueError, csv.Error):
        problem = f"not a csv file with the column(s) {', '.join(columns)}"
        return None, [Problem(str(path), problem, "download it anew, or delete it: it is optional")]
    malformed = [" ".join(row[0].split())[:30] for row in rows if len(row) != len(header)]
    sound, doubled = {}, []
    for row in rows:
        if len(row) == len(header) and sound.setdefault(row[key], row) is not row:
            doubled.append(row[key])
    text = io.StringIO()
    csv.writer(text).writerows([header, *sound.values()])
    text.seek(0)
    problems = some(path, malformed, "malformed row(s)", ANEW)
    problems += some(path, doubled, "doubled row(s), the first is used", ANEW)
    return pd.read_csv(text, **options), problems


ANEW = "write the file anew or download it again"


def some(path: Path, names: Iterable[str], what: str, remedy: str) -> list[Problem]:
    """One problem that counts these names and shows the first; none if there are none."""
    names = sorted(names)
    shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
    return [Problem(str(path), f"{len(names)} {what}: {shown}", remedy)] if names else []
