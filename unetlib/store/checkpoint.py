"""A run's files: what it takes to go on, written after every epoch and read back."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils._pytree import tree_map

from unetlib.store.model_file import load_plain, save_atomically, save_model
from unetlib.store.question import stored
from unetlib.store.runs import RETRAIN, Run, best_epoch
from unetlib.support.errors import RunError
from unetlib.support.files import whole_file
from unetlib.training import KEPT, Learner, TrainingError


def load_state(folder: Path) -> dict:
    """What it takes to go on: the content of ``last.pth``, and of ``best.pth`` as ``best``.

    ``best`` is None if the last epoch was the best and ``best.pth``, written after ``last.pth``, is
    missing or behind. ``folder`` says whose state it is. RunError: a file is missing or damaged.
    """
    try:
        state = load_plain(folder / "last.pth")
        if not {"model", "optimizer", "scheduler", "batch_size", "lr", "metrics"} <= state.keys():
            raise KeyError("last.pth lacks an entry")
        epoch = best_epoch(pd.DataFrame(state["history"]), *state["best_by"])
        file, may_lack = folder / "best.pth", epoch == len(state["history"])
        best = None if may_lack and not file.exists() else load_plain(file)
        if best is not None and best["info"]["epoch"] != epoch:
            if not may_lack:
                raise KeyError("best.pth is of another epoch")
            best = None
        return state | dict(best=best, folder=folder.name)
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{folder}: last.pth or best.pth is missing or damaged; {RETRAIN}") from None


def _state(learner: Learner) -> dict:
    state = dict(optimizer=learner.optimizer.state_dict(), scaler=learner.scaler.state_dict())
    state |= dict(scheduler=learner.scheduler and learner.scheduler.state_dict())
    return tree_map(lambda one: one.item() if isinstance(one, np.generic) else one, state)


def restore(learner: Learner, state: dict | None, folder: Path) -> None:
    """Put a learner back to where ``load_state`` found it, if there is a state.

    ValueError: an optimizer or schedule whose state cannot be kept, said before an epoch is.
    RunError: the state is of another version of unetlib or PyTorch.
    """
    try:
        torch.save(_state(learner), buffer := io.BytesIO())
        torch.load(io.BytesIO(buffer.getbuffer()), weights_only=True)
    except Exception as error:  # own code may fail in any way
        problem = f"cannot be kept ({type(error).__name__}); give them a plain state_dict"
        raise ValueError(f"The optimizer's or the schedule's state {problem}.") from error
    if state is None:
        return
    try:
        learner.model.load_state_dict(state["model"])
        learner.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):  # of fp16
            learner.scaler.load_state_dict(state["scaler"])
        # A run may go on on a machine with another memory order; fused optimizers need one order.
        for parameter, kept in learner.optimizer.state.items():
            for name, value in kept.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    kept[name] = torch.empty_like(parameter).copy_(value)
        if learner.scheduler is not None:
            learner.scheduler.load_state_dict(state["scheduler"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"{folder}: last.pth is of another unetlib or PyTorch; {RETRAIN}") from None


def write_run(run: Run, learner: Learner, first: bool, best: dict | None = None) -> None:
    """Write what the run has learned so far; ``last.pth`` makes the epoch count. TrainingError if
    the folder cannot be written; finished epochs are kept.

    Args:
        first: nothing of what the folder holds is this run's. ``history.csv``, which makes a run
            visible to others, goes first and comes last.
        best: the content of the best.pth that this run goes on from, its own or a shorter run's.
    """
    folder = run.folder
    state = {name: run.details[name] for name in ("batch_size", "lr", "metrics")}
    state |= _state(learner) | dict(model=learner.model.state_dict())
    best_by = [list(run.best_by), run.recipe.half_size_epochs]
    state |= dict(history=run.history.to_dict("records"), best_by=best_by)
    try:
        for leftover in folder.glob("*.part*"):  # of a killed process
            leftover.unlink()
        save_atomically(state, folder / "next.pth")
        if first:
            for name in ("history.csv", "last.pth", "best.pth"):
                (folder / name).unlink(missing_ok=True)
        if best is not None:
            save_atomically(best, run.checkpoint)
        os.replace(folder / "next.pth", folder / "last.pth")
        if best is None and run.best_epoch == len(run.history):
            info = dict(recipe=stored(run), epoch=run.best_epoch, val_dice=run.best_dice)
            info |= dict(size=run.recipe.size, colour=run.recipe.colour, data=run.details["data"])
            save_model(run.checkpoint, learner.model, **info)
        write_tables(run)
    except OSError as error:
        raise unwritable(folder, error) from None


def write_tables(run: Run) -> None:
    """Write what people can read of a run, ``history.csv`` last."""
    for name, content in (("recipe", stored(run)), ("run", run.details)):
        with whole_file(run.folder / f"{name}.json") as part:
            part.write_text(json.dumps(content, indent=1), encoding="utf-8")
    with whole_file(run.folder / "history.csv") as part:
        run.history.to_csv(part, index=False, lineterminator="\n")


def unwritable(path: str | Path, error: OSError) -> TrainingError:
    """The error of a run's folder or lock that cannot be written."""
    remedy = f"free some space, or set UNETLIB_HOME to a folder with room, then fit again; {KEPT}"
    return TrainingError(f"{path}: cannot be written ({error.strerror or error}): {remedy}.")
