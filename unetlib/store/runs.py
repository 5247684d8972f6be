"""Training runs on disk: name one, open one, list all. Costs no import of PyTorch.

A run lives in ``runs/<hash>/``; the hash covers recipe, code, data and profile, so that the same
question is answered at once and a changed number, or line, trains a run of its own::

    recipe.json   the settings            last.pth      everything needed to go on
    run.json      data, device, versions  history.csv   a line per finished epoch, written last:
    best.pth      the best model                        a run without it does not exist yet
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from unetlib.recipe import Recipe, resolve
from unetlib.store.question import MissingCode, restored
from unetlib.support import folders
from unetlib.support.errors import ModelFileError, RunError
from unetlib.support.files import locked

RETRAIN = "train again with fit(..., retrain=True)."  # the remedy for damaged runs
HISTORY = ["epoch", "lr", "train_loss", "val_loss", "val_dice", "val_iou", "seconds"]


def run_folder(question: dict) -> Path:
    """The home of the run that answers a question (``question.question_of``)."""
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode())
    return folders.runs_dir() / digest.hexdigest()[:12]


def run_lock(folder: Path, on_wait: Callable[[Path], None] | None = None):
    """The lock of whoever trains or deletes a run; see ``support.files.locked``."""
    return locked(folder.parent / ".locks" / folder.name, on_wait)


@dataclass
class Run:
    """A training run, finished or stopped half-way.

    Attributes:
        history: a row per finished epoch: epoch, lr (at its start), train_loss, val_loss, val_dice,
            val_iou, seconds, val_dice_objects (if masks are empty), metrics (nan: not asked for).
        details: device, precision, batch_size, lr, processes, train_ids, val_ids, train_images,
            profile, data (hashes), data_folder, versions, question, metrics (hashes of their code).
        preview: while training, of four validation images after the latest epoch: images,
            coverage, probabilities, each ``(4, H, W)``; otherwise None.
    """

    folder: Path  # its home ``runs/<hash>/``
    recipe: Recipe  # its settings
    history: pd.DataFrame
    details: dict
    preview: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def __repr__(self) -> str:
        return f"<Run {self.folder.name}: {len(self.history)} epochs, Dice {self.best_dice:.4f}>"

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or ``patience`` has ended the run early."""
        done, recipe = len(self.history), self.recipe
        waited = done - max(self.best_epoch, recipe.half_size_epochs)
        return done >= recipe.epochs or bool(recipe.patience and waited >= recipe.patience)

    @property
    def best_by(self) -> tuple[str, str]:
        """The score by which the best epoch is chosen, and ``max`` or ``min``."""
        return tuple(self.details["question"]["best_by"])

    @property
    def checkpoint(self) -> Path:
        """The model file of the best validation Dice (ModelFileError: no epoch is finished yet)."""
        if self.history.empty:
            raise ModelFileError(f"{self.folder}: no epoch is finished yet; fit again to go on.")
        return self.folder / "best.pth"

    @property
    def best_epoch(self) -> int:
        """The first epoch that was the best by ``best_by``; 0 before the first one is finished."""
        return best_epoch(self.history, self.best_by, self.recipe.half_size_epochs)

    def at_best(self, column: str) -> float:
        """A column of the history in the best epoch, whose model is kept; nan without one."""
        return float(self.history[column].where(self.history["epoch"] == self.best_epoch).max())

    # Of the kept model: means over all validation images, or those with an object; hard masks.
    best_dice = property(lambda self: self.at_best("val_dice"))
    best_iou = property(lambda self: self.at_best("val_iou"))
    best_dice_objects = property(lambda self: self.at_best(_column("dice_objects", self.history)))

    seconds = property(lambda self: float(self.history["seconds"].sum()))
    device = property(lambda self: self.details["device"])
    precision = property(lambda self: self.details["precision"])

    @property
    def images_per_second(self) -> float:
        """Training images per second, validation included."""
        return self.details["train_images"] * len(self.history) / max(self.seconds, 1e-9)

    def model(self, which: str = "best", network: Callable | None = None):
        """The trained network (``nn.Module``), in evaluation mode, on the best device there is.

        ModelFileError: no epoch is finished yet, or the file is damaged, or needs ``network``.

        Args:
            which: ``best`` or ``last`` (RunError: another word).
            network: of a run with an own network that was trained by another program.
        """
        import torch  # here: it is slow

        from unetlib.device import pick_device
        from unetlib.store.model_file import load_model, load_plain

        if which not in ("best", "last"):
            raise RunError(f"{self.folder}: no model {which!r}: ask for 'best' or 'last'.")
        model, _ = load_model(self.checkpoint, network or self.network)
        if which == "last":
            path = self.folder / "last.pth"
            try:
                model.load_state_dict(load_plain(path)["model"])
            except (RuntimeError, KeyError):
                raise ModelFileError(f"{path}: damaged, or of another unetlib; {RETRAIN}") from None
        with torch.device("cpu"):  # whatever the default device is
            return model.to(pick_device())

    @property
    def network(self) -> Callable | None:
        """What makes an own network; None for the U-Net, and where its code is missing."""
        own = self.recipe.network
        return None if own == "unet" or isinstance(own, MissingCode) else resolve("network", own)


def best_epoch(history: pd.DataFrame, best_by: Sequence[str], half_size_epochs: int = 0) -> int:
    """The number of the first best epoch, 0 if there is none; those of half size, judged at that
    size, count only as long as there is no other.
    """
    if history.empty:
        return 0
    left_out = half_size_epochs if len(history) > half_size_epochs else 0
    scores = history[_column(best_by[0], history)] * (1 if best_by[1] == "max" else -1)
    return left_out + int(scores[left_out:].fillna(-np.inf).argmax()) + 1


def _column(score: str, history: pd.DataFrame) -> str:
    """Where a score stands in the history; where no mask is empty, its Dice is of objects alone."""
    name = f"val_{score}"
    return "val_dice" if score == "dice_objects" and name not in history else name


def load_run(folder: str | Path) -> Run:
    """Open a run's folder.

    FileNotFoundError: no run, or no epoch of it is finished. RunError: damaged, or before 0.3.
    """
    if not (folder := Path(folder)).joinpath("history.csv").exists():
        raise FileNotFoundError(f"{folder}: no run in this folder; train one with fit().")
    try:
        history = pd.read_csv(folder / "history.csv", dtype=str).astype(float)  # pandas 2 rounds
        texts = ((folder / name).read_text("utf-8") for name in ("recipe.json", "run.json"))
        settings, details = map(json.loads, texts)
        if history.empty or not np.isfinite(history[HISTORY]).all(axis=None):
            raise ValueError("history.csv was changed or damaged")
        missing = {"data", "profile", "question", "train_images"} - details.keys()
        if missing or {"code", "settings", "best_by"} - details["question"].keys():
            raise ValueError("run.json is incomplete")
        return Run(folder, restored(settings), history, details)
    except PermissionError:  # on Windows, while it is being written
        raise
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{folder}: not a readable run ({reason}); {RETRAIN}") from None


def find_runs() -> list[Run]:
    """All runs under ``folders.runs_dir()`` with a finished epoch, the one last asked for at last.

    A damaged one is named in a warning and left out. Runs dated in the future, written while the
    clock was wrong, count as the oldest, or newer ones would stay behind them for years.
    """
    runs, tomorrow = [], time.time() + 86_400  # a day: clocks of file servers differ a little
    for path in folders.runs_dir().glob("*/history.csv"):
        try:
            written = path.stat().st_mtime
            runs.append((written < tomorrow, written, load_run(path.parent)))
        except (FileNotFoundError, PermissionError):
            pass  # deleted meanwhile, or on Windows being written
        except RunError as error:
            warnings.warn(str(error), stacklevel=2)
    return [run for *_, run in sorted(runs, key=lambda entry: entry[:2])]
