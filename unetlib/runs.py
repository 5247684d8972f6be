"""Recipe, disk -> Run: name a training run, open it, compare several, tidy up.

A run lives in ``runs/<hash>/``; the hash covers recipe, data and profile, so that the same question
is answered at once and a changed number trains a run of its own:

    recipe.json   the settings            last.pth      everything needed to go on
    run.json      data, device, versions  history.csv   a line per finished epoch, written last:
    best.pth      the best model                        a run without it does not exist yet

Each file carries its own checksum (the .pth files as zip archives do), so that whatever a bad disk
or a power cut leaves is noticed, and a kill between two files is not taken for damage.
"""

import hashlib
import json
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from operator import index
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from unetlib import __version__, config
from unetlib.carvana import fingerprint
from unetlib.model import ModelFileError, UNet, load_model, load_plain
from unetlib.recipe import Recipe
from unetlib.sealed import read_csv, read_json

HISTORY = ["epoch", "lr", "train_loss", "val_loss", "val_dice", "val_iou", "seconds"]
FILES = {"recipe.json", "run.json", "last.pth", "next.pth", "best.pth", "history.csv"}


class RunError(ValueError):
    """A run's folder cannot be used: one sentence that names it and the remedy."""


def versions() -> dict[str, str]:
    """The versions that a run writes down."""
    return dict(unetlib=__version__, torch=torch.__version__, python=platform.python_version())


def data_name(train: pd.DataFrame, val: pd.DataFrame) -> str:
    """Changes with any image or mask of the two sample tables."""
    return f"{fingerprint(train)}-{fingerprint(val)}"


def run_folder(recipe: Recipe, data: str) -> Path:
    """The home of the run that answers this recipe on this data in the current profile.

    Only what differs from the baseline counts, so that a setting added later leaves old runs alone.
    """
    question = json.dumps([recipe.changes, data, config.profile().name], sort_keys=True)
    return config.runs_dir() / hashlib.sha256(question.encode()).hexdigest()[:12]


def run_lock(folder: Path, on_wait: Callable[[], None] | None = None) -> config.locked:
    """The lock of whoever trains or deletes a run."""
    locks = folder.parent / ".locks"
    locks.mkdir(exist_ok=True)
    return config.locked(locks / folder.name, on_wait)


@dataclass
class Run:
    """A training run, finished or stopped half-way.

    Attributes:
        folder: its home ``runs/<hash>/``.
        recipe: its settings.
        history: a row per finished epoch: epoch, lr (at its start), train_loss, val_loss, val_dice,
            val_iou, seconds.
        details: device, precision, batch_size, lr, processes, train_ids, val_ids, train_images,
            profile, data, versions.
        preview: while training, of four validation images after the latest epoch: images,
            coverage, probabilities, each ``(4, H, W)``; otherwise None.
    """

    folder: Path
    recipe: Recipe
    history: pd.DataFrame
    details: dict
    preview: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    @property
    def finished(self) -> bool:
        return len(self.history) >= self.recipe.epochs

    @property
    def checkpoint(self) -> Path:
        """The model file of the best validation Dice.

        Raises:
            ModelFileError: no epoch is finished yet.
        """
        self._need_an_epoch()
        return self.folder / "best.pth"

    def _need_an_epoch(self) -> None:
        if self.history.empty:
            raise ModelFileError(
                f"{self.folder}: no epoch is finished yet; call fit again to go on."
            )

    @property
    def best_epoch(self) -> int:
        """The epoch of the best validation Dice; 0 before the first epoch is finished."""
        if self.history.empty:
            return 0
        return int(self.history.loc[self.history["val_dice"].idxmax(), "epoch"])

    @property
    def best_dice(self) -> float:
        """Best validation Dice: mean over images, hard masks, at the recipe's size."""
        return float(self.history["val_dice"].max())

    @property
    def best_iou(self) -> float:
        """IoU in the epoch of the best Dice."""
        best = self.history["epoch"] == self.best_epoch
        return float(self.history.loc[best, "val_iou"].max())

    @property
    def seconds(self) -> float:
        return float(self.history["seconds"].sum())

    def seconds_to(self, dice: float) -> float:
        """Seconds of training, validation included, until an epoch reached this Dice, or nan."""
        reached = self.history["val_dice"] >= dice
        return float(self.history["seconds"].cumsum()[reached].min())

    @property
    def images_per_second(self) -> float:
        """Training images per second, validation included."""
        return self.details["train_images"] * len(self.history) / max(self.seconds, 1e-9)

    @property
    def device(self) -> str:
        return self.details["device"]

    @property
    def precision(self) -> str:
        return self.details["precision"]

    @property
    def train_ids(self) -> list[str]:
        return self.details["train_ids"]

    @property
    def val_ids(self) -> list[str]:
        return self.details["val_ids"]

    def model(self, which: str = "best") -> UNet:
        """The trained U-Net, on the CPU in evaluation mode; ``which`` is ``best`` or ``last``.

        Raises:
            ModelFileError: no epoch is finished yet, or the file is damaged.
            RunError: another word.
        """
        if which not in ("best", "last"):
            raise RunError(f"{self.folder}: no model {which!r}: ask for 'best' or 'last'.")
        self._need_an_epoch()
        try:
            if which == "best":
                return load_model(self.checkpoint)[0]
            model = UNet(**self.recipe.network)
            model.load_state_dict(load_plain(self.folder / "last.pth")["model"])
            return model.eval()
        except (ModelFileError, RuntimeError, KeyError):
            raise ModelFileError(
                f"{self.folder}: {which}.pth is missing, damaged or of another unetlib; train anew "
                "with fit(..., retrain=True)."
            ) from None


def load_run(folder: str | Path) -> Run:
    """Open a run's folder; one line says if it was trained with other versions.

    Raises:
        FileNotFoundError: the folder is no run, or its first epoch is not finished.
        RunError: its files cannot be read.
    """
    run = _open(Path(folder))
    then, now = run.details["versions"], versions()
    changed = [f"{name} {then[name]} (now {now[name]})" for name in now if then[name] != now[name]]
    if changed:
        print(f"run {run.folder.name}: trained with {', '.join(changed)}")
    return run


def load_state(folder: Path) -> dict:
    """What it takes to go on: the content of ``last.pth``, and of ``best.pth`` as ``best``.

    ``best`` is None if the last epoch was the best and ``best.pth``, written after ``last.pth``, is
    missing or behind. ``folder`` says whose state it is.

    Raises:
        RunError: a file is missing or damaged.
    """
    try:
        state = load_plain(folder / "last.pth")
        if lacking := {"model", "optimizer", "scheduler", "batch_size", "lr"} - set(state):
            raise KeyError(lacking)
        dices = [row["val_dice"] for row in state["history"]]
        best, best_epoch = None, dices.index(max(dices)) + 1
        if best_epoch < len(dices) or (folder / "best.pth").exists():
            best = load_plain(folder / "best.pth")
        if best is not None and best["info"]["epoch"] != best_epoch:
            if best_epoch < len(dices):
                raise KeyError("best.pth is of another epoch")
            best = None
        return state | dict(best=best, folder=folder.name)
    except (ValueError, KeyError, TypeError):
        raise RunError(
            f"{folder}: last.pth or best.pth is missing or damaged; train anew with "
            "fit(..., retrain=True)."
        ) from None


def _open(folder: Path) -> Run:
    try:
        history, sealed = read_csv(folder / "history.csv")
        if list(history.columns) != HISTORY or history.empty:
            raise ValueError("history.csv was changed or damaged")
        settings = read_json(folder / "recipe.json", optional=not sealed)
        details = read_json(folder / "run.json", optional=not sealed)
        if unknown := set(settings) - {field.name for field in fields(Recipe)}:
            raise ValueError(f"unetlib {__version__} knows no setting {', '.join(sorted(unknown))}")
        missing = {"data", "profile", "train_images", "versions"} - set(details)
        if missing or set(versions()) - set(details["versions"]):
            raise KeyError("run.json is incomplete")
        return Run(folder, Recipe(**settings), history, details)
    except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, FileNotFoundError):
            reason = f"{Path(error.filename).name} is missing"
            if not (folder / "history.csv").exists():
                raise FileNotFoundError(
                    f"{folder}: no run in this folder; train one with fit()."
                ) from None
        raise RunError(
            f"{folder}: not a readable run ({reason}); train it anew with fit(..., retrain=True)."
        ) from None


def find_runs() -> list[Run]:
    """All runs under ``config.runs_dir()`` with at least one finished epoch, oldest first.

    A damaged one is named in a warning and left out. Runs of a time to come, written while the
    clock was wrong, count as the oldest: a newer one must not stay behind them for years.
    """
    runs, tomorrow = [], time.time() + 86_400  # a day: clocks of file servers differ a little
    for path in config.runs_dir().glob("*/history.csv"):
        try:
            written = path.stat().st_mtime
            runs.append((written < tomorrow, written, _open(path.parent)))
        except (FileNotFoundError, PermissionError):
            pass  # deleted meanwhile, or on Windows being written
        except RunError as error:
            warnings.warn(str(error), stacklevel=2)
    return [run for *_, run in sorted(runs, key=lambda entry: entry[:2])]


def compare_runs(runs: Mapping[str, Run] | Iterable[Run] | None = None) -> pd.DataFrame:
    """A row per run, the best first: the settings in which they differ, and how they did.

    ``plots.plot_runs`` draws the same runs.

    Args:
        runs: by name, or a list; None: all in the runs folder.

    Returns:
        Index: the given name, or the run's. Columns: differing settings (also data and profile),
        best_dice, best_iou, best_epoch, epochs (finished ones, as ``3/10`` if stopped), seconds,
        images_per_second.
    """
    if not isinstance(runs, Mapping):
        runs = {run.folder.name: run for run in (find_runs() if runs is None else runs)}
    rows = [
        asdict(run.recipe) | {name: run.details[name] for name in ("data", "profile")}
        for run in runs.values()
    ]
    settings = pd.DataFrame(rows, index=list(runs))
    differing = settings.loc[:, settings.astype(str).nunique() > 1].drop(
        columns="epochs", errors="ignore"
    )
    results = pd.DataFrame(
        [
            dict(
                best_dice=run.best_dice,
                best_iou=run.best_iou,
                best_epoch=run.best_epoch,
                epochs=f"{len(run.history)}" + (f"/{run.recipe.epochs}" * (not run.finished)),
                seconds=run.seconds,
                images_per_second=run.images_per_second,
            )
            for run in runs.values()
        ],
        index=list(runs),
    )
    table = pd.concat([differing, results], axis=1)
    return table.sort_values("best_dice", ascending=False) if len(table) else table


def clean_runs(keep: int | Mapping[str, Run] | Iterable[Run] = 10) -> list[str]:
    """Delete runs, except those to keep and those being trained at the moment.

    Damaged and half-written runs are deleted, too. Links, and folders without a file of a run
    (TensorBoard writes into ``runs/`` as well), stay as they are.

    Args:
        keep: how many of the newest, or which ones.

    Returns:
        Names of the deleted runs.

    Raises:
        RunError: ``keep`` is neither a number from 0 up nor runs; nothing is deleted.
    """
    kept = _names_of(keep)
    deleted = []
    for folder in sorted(config.runs_dir().iterdir()):
        if folder.name.startswith(".") or folder.name in kept or not _holds_a_run(folder):
            continue
        with run_lock(folder) as held:
            if held:
                (folder / "history.csv").unlink(missing_ok=True)  # first: none is seen half-deleted
                shutil.rmtree(folder)
                deleted.append(folder.name)
    return deleted


def _names_of(keep: int | Mapping[str, Run] | Iterable[Run]) -> set[str]:
    runs = keep.values() if isinstance(keep, Mapping) else keep
    if isinstance(keep, (int, np.integer)) and not isinstance(keep, bool) and keep >= 0:
        runs = find_runs()[-index(keep) :] if keep else []
    runs = [None] if isinstance(runs, str) or not np.iterable(runs) else list(runs)
    if not all(isinstance(run, Run) for run in runs):
        raise RunError("Nothing deleted; keep: give the runs, or how many of them, 0 or more.")
    return {run.folder.name for run in runs}


def _holds_a_run(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    begun = any(folder.glob("next.*.part.pth"))  # killed while its first file was written
    return begun or any((folder / name).is_file() for name in FILES)
