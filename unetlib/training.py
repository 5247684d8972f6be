"""Recipe -> Run: train a U-Net, stop it, take up where it stopped, on one machine or many.

The loop is the one that notebook 04 writes out; around it stand checkpoints after every epoch,
exact resuming, and Hugging Face Accelerate, which makes several processes of it when it is started
by ``torchrun`` or ``accelerate launch``. Each process computes its share of every batch, so that
their number changes the speed and nothing else (but see ``learner`` on batch normalisation).
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm

from unetlib import config
from unetlib.carvana import DataError
from unetlib.dataset import CarvanaDataset, make_loader
from unetlib.learner import (
    Learner,
    TrainingError,
    settle_batch_size,
    start_accelerator,
)
from unetlib.model import memory_kept, save_atomically, save_model
from unetlib.recipe import Recipe
from unetlib.runs import (
    HISTORY,
    Run,
    RunError,
    data_name,
    find_runs,
    load_run,
    load_state,
    run_folder,
    run_lock,
    versions,
)
from unetlib.sealed import write_csv, write_json


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
        train, val: sample tables (rows of ``carvana.find_samples`` with masks).
        on_epoch: called with the run after every epoch, for example ``plots.LiveFigure()``.
        retrain: train anew even if the run is finished.

    Raises:
        TrainingError: the loss is no longer a number or explodes, a batch does not fit in memory,
            or the run's files cannot be written. Finished epochs are kept.
        RunError: the files of the run to go on from are damaged.
        DataError: an empty table or an unreadable file.
    """
    for name, table in (("train", train), ("val", val)):
        if table.empty:
            raise DataError(f"The sample table {name!r} has no rows: choose another split.")
    accelerator = start_accelerator()
    data = data_name(train, val)
    folder = run_folder(recipe, data)
    with _alone(folder, accelerator), _stop_on_sigterm():
        if accelerator.is_main_process:
            found = _look_up(recipe, data, folder, retrain)
        else:
            found = None, None
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
            print(
                f"run {folder.name}: already trained, best Dice {run.best_dice:.4f} "
                "(retrain=True trains anew)"
            )
            return run, None
    if (folder / "last.pth").exists():
        state = load_state(folder)
        print(f"run {folder.name}: goes on after epoch {len(state['history'])}")
        return None, state
    shorter = [
        run
        for run in find_runs()
        if len(run.history) < recipe.epochs
        and asdict(run.recipe) | dict(epochs=recipe.epochs) == asdict(recipe)
        and (run.details["data"], run.details["profile"]) == (data, config.profile().name)
    ]
    for run in sorted(shorter, key=lambda run: -len(run.history)):
        name = run.folder.name
        if recipe.schedule == "one_cycle":
            print(
                f"run {folder.name}: cannot go on from {name}, whose one_cycle schedule was "
                f"planned for {run.recipe.epochs} epochs; training from the start"
            )
            break
        # Its files belong together only while nobody writes them.
        with run_lock(run.folder) as held:
            state = load_state(run.folder) if held else None
            if held and len(state["history"]) < recipe.epochs:
                print(f"run {folder.name}: goes on from {name}, epoch {len(state['history'])}")
                return None, state
    return None, None


def _train(recipe, train, val, data, folder, state, on_epoch, accelerator) -> Run:
    """The epochs that are still to do."""
    device, main = accelerator.device, accelerator.is_main_process
    with accelerator.local_main_process_first():  # decode once, then share the cache
        sets = {
            size: CarvanaDataset(train, size, recipe.mask, recipe.augment)
            for size in sorted({recipe.size_in(1), recipe.size_in(recipe.epochs)})
        }
        val_set = CarvanaDataset(val, recipe.size)
    if state is None:
        batch_size, lr = settle_batch_size(recipe, len(train), accelerator)
    else:
        batch_size, lr = state["batch_size"], state["lr"]
    steps = math.ceil(len(train) / batch_size)
    learner = Learner.begin(recipe, lr, steps, accelerator)
    details = dict(
        profile=config.profile().name,
        data=data,
        train_images=len(train),
        device=str(device),
        processes=accelerator.num_processes,
        precision=learner.precision,
        batch_size=batch_size,
        lr=lr,
        versions=versions(),
        train_ids=list(train["id"]),
        val_ids=list(val["id"]),
    )
    run = Run(folder, recipe, pd.DataFrame(columns=HISTORY, dtype=float), details)

    if state is not None:
        try:
            learner.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError):
            raise RunError(
                f"{folder}: its last.pth is of another version of unetlib or PyTorch; train anew "
                "with fit(..., retrain=True)."
            ) from None
        run.history = pd.DataFrame(state["history"], columns=HISTORY)
        if main:
            first = state["folder"] != folder.name
            _write_run(run, learner, first, best=state["best"])
    done = len(run.history)
    bar = tqdm(total=recipe.epochs * steps, initial=done * steps, desc="training", disable=not main)
    try:
        for epoch in range(done + 1, recipe.epochs + 1):
            started = time.perf_counter()
            row = dict(epoch=epoch, lr=learner.optimizer.param_groups[0]["lr"])
            row["train_loss"] = _train_epoch(
                learner, sets[recipe.size_in(epoch)], epoch, batch_size, bar
            )
            scores, run.preview = learner.validate(
                val_set, max(1, batch_size // accelerator.num_processes)
            )
            row |= scores | dict(seconds=time.perf_counter() - started)
            history = pd.concat([run.history, pd.DataFrame([row])], ignore_index=True)
            if main:
                _write_run(
                    replace(run, history=history), learner, first=state is None and epoch == 1
                )
            run.history = history
            bar.set_postfix(loss=f"{row['train_loss']:.4f}", dice=f"{row['val_dice']:.4f}")
            if on_epoch is not None and main:
                on_epoch(run)
        accelerator.wait_for_everyone()
    except KeyboardInterrupt:
        if main:
            bar.close()
            print(f"stopped after epoch {len(run.history)} of {recipe.epochs}: fit again to go on")
    finally:
        bar.close()
    return run


def _train_epoch(learner: Learner, dataset: CarvanaDataset, epoch, batch_size, bar) -> float:
    """One pass over the training images; returns the mean loss per image."""
    recipe, accelerator = learner.recipe, learner.accelerator
    processes = accelerator.num_processes
    learner.wrapped.train()
    dataset.set_epoch(recipe.seed, epoch)
    loader = make_loader(
        dataset,
        batch_size,
        shuffle=True,
        seed=recipe.seed,
        epoch=epoch,
        process=accelerator.process_index,
        processes=processes,
        pin_memory=accelerator.device.type == "cuda",
    )
    total, left = 0.0, len(dataset)
    for images, masks in loader:
        batch = min(batch_size, left)
        left -= batch
        # The first processes' shares are one larger; beyond the batch's size, shares are empty.
        share = len(range(accelerator.process_index, batch, processes))
        total += share * learner.step(images, masks, weight=share * processes / batch)
        bar.update()
    return sum(gather_object([total])) / len(dataset)


def _write_run(run: Run, learner: Learner, first: bool, best: dict | None = None) -> None:
    """Write what the run has learned so far; ``last.pth`` makes the epoch count.

    Args:
        first: nothing of what the folder holds is this run's. ``history.csv``, which makes a run
            visible to others, goes first and comes last.
        best: the content of the best.pth that this run goes on from, its own or a shorter run's.
    """
    folder = run.folder
    kept = dict(
        history=run.history.to_dict("records"),
        batch_size=run.details["batch_size"],
        lr=run.details["lr"],
    )
    try:
        for leftover in folder.glob("*.part*"):  # of a killed process
            leftover.unlink()
        save_atomically(learner.state_dict() | kept, folder / "next.pth")
        if first:
            for name in ("history.csv", "last.pth"):
                (folder / name).unlink(missing_ok=True)
        write_json(folder / "recipe.json", asdict(run.recipe))
        write_json(folder / "run.json", run.details)
        os.replace(folder / "next.pth", folder / "last.pth")
        if best is not None:
            save_atomically(best, run.checkpoint)
        elif run.best_epoch == len(run.history):
            info = dict(recipe=asdict(run.recipe), epoch=run.best_epoch, val_dice=run.best_dice)
            save_model(run.checkpoint, learner.model, run.recipe.size, **info)
        write_csv(folder / "history.csv", run.history)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"{folder}: cannot be written ({error.strerror or error}): free some space, or set "
        "UNETLIB_HOME to a folder with room, then fit again; finished epochs are kept."
    )


@contextmanager
def _alone(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Only one program at a time trains this run; another one waits for it and says so.

    A program of several processes does not wait: the others would give up on the main process.
    Where nothing can be written, a run that is there can still be looked up.
    """
    if not accelerator.is_main_process:
        yield
        return

    def say() -> None:
        if accelerator.num_processes > 1:
            raise TrainingError(
                f"run {folder.name}: being trained by another program; start again when it is done."
            )
        print(f"run {folder.name}: being trained by another program; waiting for it")

    with ExitStack() as stack:
        try:
            stack.enter_context(run_lock(folder, on_wait=say))
        except OSError as error:
            if not (folder / "history.csv").exists():
                raise _unwritable(folder, error) from None
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
