"""Commands about data sets: download, subset, check. None of them needs PyTorch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from unetlib import config

DATA_HELP = "Data set in Carvana's layout; default: UNETLIB_DATA."
Data = Annotated[Path | None, arg(help=DATA_HELP)]
Json = Annotated[bool, arg(help="Print one JSON object as the last line of stdout.")]


@dataclass
class Download:
    """Fetch the Carvana data from Kaggle (or unpack archives you have) and check it."""

    target: Path | None = None
    """Where to unpack; default: data/carvana."""
    subset: int | None = None
    """Afterwards write a small set of this many cars beside it."""
    test: bool = False
    """Also the 100,064 test photos."""
    source: Annotated[Path | None, arg(name="from")] = None
    """A folder that holds the archives already; nothing is fetched."""
    json: Json = False

    def __call__(self) -> dict:
        from unetlib import download

        folder = download(self.target, subset=self.subset, test=self.test, source=self.source)
        return dict(data=str(folder))


@dataclass
class Subset:
    """Write a downsampled subset of a full set, in the same layout."""

    source: Positional[Path]
    target: Positional[Path]
    cars: int
    """How many cars."""
    size: str = "480x320"
    """Width x height of the images, in pixels, as screens are named (in Python: height, width)."""
    seed: int = 0
    """Which cars."""
    json: Json = False

    def __call__(self) -> dict:
        from unetlib import DataError, write_subset

        width, _, height = self.size.partition("x")
        if not (width.isdigit() and height.isdigit()):
            raise DataError(f"--size {self.size}: give WIDTHxHEIGHT, for example 480x320.")
        size = int(height), int(width)
        write_subset(self.source, self.target, cars=self.cars, size=size, seed=self.seed)
        return dict(data=str(self.target))


@dataclass
class Check:
    """Find all that is wrong with a data set: damaged pictures, masks and csv files that disagree.

    Ends with status 1 if there is anything.
    """

    data: Annotated[Positional[Path | None], arg(help=DATA_HELP)] = None
    json: Json = False

    def __call__(self) -> dict:
        from unetlib import check

        folder = self.data if self.data is not None else config.data_dir()
        problems = check(folder).to_dict("records")
        if self.json:
            return dict(data=str(folder), problems=problems)
        for row in problems:
            print(f"{folder / row['file']}: {row['problem']}; {row['remedy']}.")
        return dict(data=str(folder), problems=len(problems))
