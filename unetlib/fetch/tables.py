"""A data set's two csv files, both optional, -> tables: ``train_masks.csv``, ``metadata.csv``."""

import csv
import gzip
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from unetlib.pictures import DataError, Problem
from unetlib.support import folders

RECREATE = "write the file again or download it again"


def read_metadata(root: str | Path | None = None) -> pd.DataFrame | None:
    """Read ``metadata.csv`` (id, year, make, model, trim1, trim2; id is the car).

    None, and one line, if there is none; DataError: not a csv file with a column ``id``. All but
    the year is text. Malformed rows and second rows of a car are left out with a warning. Join it:
    ``samples.merge(metadata, left_on="car", right_on="id", suffixes=("", "_car"))``.
    """
    table = _read(root, "metadata.csv", "id")
    if table is not None and "year" in table:
        table["year"] = pd.to_numeric(table["year"], errors="coerce")
    return table


def read_rles(root: str | Path | None = None) -> pd.Series | None:
    """Read ``train_masks.csv`` (img, rle_mask): codes (text) by id; else as ``read_metadata``."""
    table = _read(root, "train_masks.csv", "img", "rle_mask")
    return None if table is None else table.set_index("id")["rle_mask"]


def _read(root: str | Path | None, name: str, *columns: str) -> pd.DataFrame | None:
    table, problems = read_table(Path(root or folders.data_dir()) / name, *columns)
    if table is None and problems:
        raise DataError(problems[0])
    if table is None:
        print(f"no {name} in this data set: skipped")
    warn_of("left out", problems, stacklevel=4)
    return table


def read_table(path: Path, *columns: str) -> tuple[pd.DataFrame | None, list[Problem]]:
    """Read the well-formed rows of a csv file as text, and what was left out.

    The table has a unique ``id`` (the first of ``columns`` without an image's suffix). None: there
    is no such file, which is no problem, or it is not a csv file with these columns.
    """
    csv.field_size_limit(2**31 - 1)  # the code of a large mask exceeds the usual limit
    try:
        # Not by pandas, which would fill up short rows and make an index of long ones.
        unpacked = gzip.open if path.suffix.lower() == ".gz" else open
        with unpacked(path, "rt", newline="", encoding="utf-8-sig") as file:
            header, *rows = filter(None, csv.reader(file))
        if not set(columns) <= set(header):
            raise ValueError("a column is missing")
    except (FileNotFoundError, NotADirectoryError):
        return None, []
    except (OSError, EOFError, ValueError, csv.Error, zlib.error):
        problem = f"not a csv file with the column(s) {', '.join(columns)}"
        return None, [Problem(str(path), problem, RECREATE + ", or delete it")]
    malformed = [" ".join(row[0].split())[:30] for row in rows if len(row) != len(header)]
    complete = [row for row in rows if len(row) == len(header)]
    table = pd.DataFrame(complete, columns=header, dtype=str)
    table = table.loc[:, ~table.columns.duplicated()]
    ids = table[columns[0]].str.replace(r"\.[a-z]{3,4}$", "", case=False, regex=True)
    problems, doubled = summarize(path, malformed, "malformed row(s)"), ids.duplicated()
    problems += summarize(path, ids[doubled], "row(s) of what has one already")
    return table.assign(id=ids)[~doubled].reset_index(drop=True), problems


def summarize(path: Path, names: Iterable[str], what: str, remedy=RECREATE) -> list[Problem]:
    """One problem that counts these names and shows the first three; none if there are none."""
    names = sorted(names)
    shown = ", ".join(names[:3]) + " ..." * (len(names) > 3)
    return [Problem(str(path), f"{len(names)} {what}: {shown}", remedy)] if names else []


def warn_of(title: str, problems: list[Problem], stacklevel: int = 3) -> None:
    """One warning on behalf of the caller, with a line for each kind of problem and its remedy."""
    lines, table = [], pd.DataFrame(problems, columns=Problem._fields)
    for reason, files in table.groupby(["problem", "remedy"], sort=False)["file"]:
        more = f" and {len(files) - 1} more" * (len(files) > 1)
        lines.append(str(Problem(files.iloc[0] + more, *reason)))
    if len(lines) > 10:
        lines[10:] = [f"and {len(lines) - 10} more; `python -m unetlib check` lists them all."]
    if lines:
        warnings.warn(f"{title}: " + "\n  ".join(lines), stacklevel=stacklevel)
