"""Recipe -> Run: look for an earlier run, go on or begin, keep what the training loop yields.

Hugging Face Accelerate makes several processes of one training when it is started by ``torchrun``
or ``accelerate launch``. Each computes its share of every batch, so that their number changes the
speed and nothing else (but see ``SharedLearner`` on batch normalisation).
"""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch._dynamo  # optimizers import it late, and a stop in the middle of that breaks it
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from unetlib import config
from unetlib.dataset import CarvanaDataset, to_tensor
from unetlib.device import autocast
from unetlib.metrics import evaluating
from unetlib.pictures import DataError
from unetlib.recipe import Recipe
from unetlib.store.checkpoint import load_state, restore, unwritable, write_run
from unetlib.store.runs import (
    FORMAT,
    HISTORY,
    Run,
    find_runs,
    load_run,
    run_folder,
    run_lock,
    versions,
)
from unetlib.support.cache import decode_once
from unetlib.support.memory import fingerprint
from unetlib.support.processes import begin, settle_batch_size, start_accelerator
from unetlib.support.speed import memory_kept, out_of_memory_named
from unetlib.training import Learner, TrainingError, train

PREVIEWS = 4


def fit(
    recipe: Recipe,
    train: pd.DataFrame,
    val: pd.DataFrame,
    on_epoch: Callable[[Run], None] | None = None,
    retrain: bool = False,
) -> Run:
    """Train a U-Net by a recipe; a finished run of the same question is returned at once.

    Interrupted while it trains (stop button, Ctrl-C, SIGTERM), it returns the run with its finished
    epochs; killed, it loses the epoch it was in. Calling ``fit`` again goes on after the last
    finished epoch, on a CPU to the very weights of an undisturbed run. With a constant schedule, a
    recipe with more epochs goes on from a shorter run.

    Args:
        recipe: all settings.
        train, val: sample tables (rows of ``find_samples`` with masks).
        on_epoch: called with the run after every epoch, for example ``LiveFigure()``.
        retrain: train again even if the run is finished.

    Raises:
        TrainingError: the loss is not a number or explodes, a batch does not fit in memory, or the
            run's files cannot be written. Finished epochs are kept.
        RunError: the files of the run to go on from are damaged.
        DataError: an empty table or an unreadable file.
    """
    for name, table in (("train", train), ("val", val)):
        if table.empty:
            raise DataError(f"The sample table {name!r} has no rows: choose another split.")
    accelerator = start_accelerator()
    data = f"{fingerprint(train)}-{fingerprint(val)}"
    folder = run_folder(recipe, data)
    with _alone(folder, accelerator), _stop_on_sigterm():
        found = None, None
        if accelerator.is_main_process:
            found = _look_up(recipe, data, folder, retrain)
        run, state = broadcast_object_list([found])[0]
        if run is not None:
            return run
        with memory_kept(accelerator.device):
            return _train(recipe, train, val, data, folder, state, on_epoch, accelerator)


def _look_up(
    recipe: Recipe, data: str, folder: Path, retrain: bool
) -> tuple[Run | None, dict | None]:
    """The finished run, or the state to go on from, if there is either."""
    if retrain:
        return None, None
    if (folder / "history.csv").exists():
        run = load_run(folder)
        if run.finished:
            done = f"already trained, best Dice {run.best_dice:.4f}"
            print(f"run {folder.name}: {done} (retrain=True trains again)")
            return run, None
    if (folder / "last.pth").exists():
        state = load_state(folder)
        print(f"run {folder.name}: goes on after epoch {len(state['history'])}")
        return None, state
    same = (data, config.profile().name, FORMAT)
    shorter = [
        run
        for run in find_runs()
        if len(run.history) < recipe.epochs
        and asdict(run.recipe) | dict(epochs=recipe.epochs) == asdict(recipe)
        and tuple(run.details.get(name) for name in ("data", "profile", "format")) == same
    ]
    for run in sorted(shorter, key=lambda run: -len(run.history)):
        name = run.folder.name
        if recipe.schedule == "one_cycle":
            why = f"its one_cycle schedule was planned for {run.recipe.epochs} epochs"
            print(f"run {folder.name}: cannot go on from {name}, {why}; training from the start")
            break
        # Its files belong together only while nobody writes them.
        with run_lock(run.folder) as held:
            state = load_state(run.folder) if held else None
            if held and len(state["history"]) < recipe.epochs:
                print(f"run {folder.name}: goes on from {name}, epoch {len(state['history'])}")
                return None, state
    return None, None


def _train(recipe, train_rows, val_rows, data, folder, state, on_epoch, accelerator) -> Run:
    """The epochs that are still to do."""
    main, device = accelerator.is_main_process, accelerator.device
    with accelerator.local_main_process_first():  # decode once, then share the cache
        train_sets = {
            size: CarvanaDataset(train_rows, size, recipe.mask, recipe.augment, decode_once)
            for size in {recipe.size_in(1), recipe.size}
        }
        val_set = CarvanaDataset(val_rows, recipe.size, decode=decode_once)
    if state is None:
        batch_size, lr = settle_batch_size(recipe, len(train_rows), accelerator)
    else:
        batch_size, lr = state["batch_size"], state["lr"]
    steps = recipe.epochs * math.ceil(len(train_rows) / batch_size)
    learner = begin(recipe, steps, lr, accelerator)
    details = dict(format=FORMAT, profile=config.profile().name, data=data, device=str(device))
    details |= dict(processes=accelerator.num_processes, precision=learner.precision)
    details |= dict(batch_size=batch_size, lr=lr, versions=versions())
    details |= dict(train_images=len(train_rows), train_ids=list(train_rows["id"]))
    details |= dict(val_ids=list(val_rows["id"]))
    run = Run(folder, recipe, pd.DataFrame(columns=HISTORY, dtype=float), details)
    if state is not None:
        restore(learner, state, folder)
        run.history = pd.DataFrame(state["history"], columns=HISTORY)
        if main:
            write_run(run, learner, first=state["folder"] != folder.name, best=state["best"])
    rows = train(learner, train_sets, val_set, batch_size, first_epoch=len(run.history) + 1)
    try:
        with out_of_memory_named(batch_size, recipe.size, device):
            for row in rows:
                history = pd.concat([run.history, pd.DataFrame([row])], ignore_index=True)
                if main:
                    first = state is None and row["epoch"] == 1
                    write_run(replace(run, history=history), learner, first)
                run.history = history
                if on_epoch is not None and main:
                    run.preview = _preview(learner, val_set)
                    on_epoch(run)
        accelerator.wait_for_everyone()
    except KeyboardInterrupt:
        rows.close()  # its progress bar, before the line below
        if main:
            print(f"stopped after epoch {len(run.history)} of {recipe.epochs}: fit again to go on")
    return run


def _preview(learner: Learner, val_set: CarvanaDataset) -> tuple[np.ndarray, ...]:
    """``Run.preview``: validation images evenly spread over the set."""
    chosen = range(0, len(val_set), max(1, len(val_set) // PREVIEWS))[:PREVIEWS]
    images, coverage = val_set.images[chosen], val_set.coverage[chosen]
    with evaluating(learner.model), autocast(learner.device, learner.precision):
        logits = learner.model(to_tensor(images).to(learner.device))[:, 0]
    return images, coverage, torch.sigmoid(logits.float()).cpu().numpy()


@contextmanager
def _alone(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Only one program at a time trains this run; another one waits for it and says so.

    A program of several processes does not wait: the others would give up on the main process.
    Where nothing can be written, a run that is there can still be looked up.
    """
    busy = f"run {folder.name}: being trained by another program"

    def say() -> None:
        if accelerator.num_processes > 1:
            raise TrainingError(f"{busy}; start again when it is done.")
        print(f"{busy}; waiting for it")

    with ExitStack() as stack:
        try:
            if accelerator.is_main_process:
                stack.enter_context(run_lock(folder, on_wait=say))
        except OSError as error:
            if not (folder / "history.csv").exists():
                raise unwritable(folder, error) from None
        yield


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """Let SIGTERM (a cluster's or a service manager's request to end) act like the stop button."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: not set from Python
