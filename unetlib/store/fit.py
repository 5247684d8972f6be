"""Recipe -> Run: look for an earlier run, go on or begin, keep what the training loop yields."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch._dynamo  # optimizers import it late, and a stop in the middle of that breaks it
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from unetlib import __version__
from unetlib.dataset import CarvanaDataset, to_tensor
from unetlib.device import autocast
from unetlib.metrics import evaluate
from unetlib.model import evaluating
from unetlib.pictures import DataError
from unetlib.recipe import BUILT_IN, Recipe
from unetlib.store.checkpoint import load_state, restore, unwritable, write_run, write_tables
from unetlib.store.model_file import weights_named
from unetlib.store.question import question_of
from unetlib.store.runs import HISTORY, Run, find_runs, load_run, run_folder, run_lock
from unetlib.support.cache import decode_once
from unetlib.support.code import code_hash, label
from unetlib.support.feeding import FastLearner
from unetlib.support.memory import fingerprint, pair_hashes
from unetlib.support.processes import SharedLearner, settle_batch_size, start_accelerator
from unetlib.support.speed import memory_kept, out_of_memory_named
from unetlib.training import Learner, TrainingError, train


def fit(
    recipe: Recipe,
    train: pd.DataFrame,
    val: pd.DataFrame,
    on_epoch: Callable[[Run], object] | None = None,
    retrain: bool = False,
    *,
    metrics: Mapping[str, Callable] | None = None,
    best_by: tuple[str, str] = ("dice", "max"),
) -> Run:
    """Train a network by a recipe; a finished run of the same question is returned at once.

    The question is recipe, data, profile and the code that is running, the recipe's own and
    unetlib's. Interrupted (stop button, Ctrl-C), ``fit`` returns the run with its finished
    epochs; killed, it loses the last one. Called again, it goes on from there, on a CPU to the very
    weights of an undisturbed run; with a constant schedule also from a run of fewer epochs.

    Args:
        recipe, train, val: all settings; sample tables (rows of ``find_samples`` with masks).
        on_epoch: called with the run after every epoch, for example ``LiveFigure()``; returning
            True stops the training there, and ``fit`` again goes on.
        retrain: train again even if the run is finished.
        metrics: further columns of the history by name, see ``evaluate``. They only watch; of a
            finished run that lacks one, the kept model is scored.
        best_by: the epoch to keep: ``dice``, ``dice_objects`` (of the images with an object),
            ``iou``, ``loss`` or a metric (nan is never better), and ``max`` or ``min``.

    Raises:
        ValueError: an impossible ``best_by``; or own code that gives what it must not.
        TrainingError: the loss is not a number or explodes, a batch does not fit in memory, or the
            run's files cannot be written. Finished epochs are kept.
        RunError: the files of the run to go on from are damaged.
        DataError: an empty table or an unreadable file.
    """
    metrics, best_by = dict(metrics or {}), tuple(best_by)
    scores = ("dice", "dice_objects", "iou", "loss", *metrics)
    known = [(name, way) for name in scores for way in ("max", "min")]
    if best_by not in known:
        raise ValueError(f"best_by={best_by} is unknown: use one of {known}.")
    for name, table in (("train", train), ("val", val)):
        if table.empty:
            raise DataError(f"The sample table {name!r} has no rows: choose another split.")
    accelerator = start_accelerator()
    question = question_of(recipe, f"{fingerprint(train)}-{fingerprint(val)}", best_by, metrics)
    folder = run_folder(question)
    with _alone(folder, accelerator):
        run = state = None
        if accelerator.is_main_process and not retrain:
            run, state = _look_up(recipe, question, folder)
            if run is not None:
                _score_kept(replace(run, recipe=recipe), val, metrics)
                with suppress(OSError):  # asked last, so that find_runs lists it last
                    (folder / "history.csv").touch()
        run, state = broadcast_object_list([run, state])
        run = run and replace(run, recipe=recipe)
        run = run or _train(recipe, train, val, question, state, on_epoch, metrics, accelerator)
    if accelerator.is_main_process and run.finished and not run.best_dice_objects > 0:
        what = "no validation mask shows an object, so its scores say nothing; choose other images"
        if run.best_dice_objects == 0:
            what = "its model finds no object; train longer, or with loss='bce_dice'"
        warnings.warn(f"run {folder.name}: {what}.", stacklevel=2)
    return run


def _look_up(recipe: Recipe, question: dict, folder: Path) -> tuple[Run | None, dict | None]:
    """The finished run, or the state to go on from, if there is either."""
    if (folder / "history.csv").exists() and (run := load_run(folder)).finished:
        done = f"already trained, best Dice {run.best_dice:.4f}"
        print(f"run {folder.name}: {done} (retrain=True trains again)")
        return run, None
    if (folder / "last.pth").exists():
        state = load_state(folder)
        print(f"run {folder.name}: goes on after epoch {len(state['history'])}")
        return None, state
    asked, code = _but_for_epochs_and_code(question), question["code"]
    runs = [(run, run.details["question"]) for run in find_runs()]
    alike = [(run, its["code"]) for run, its in runs if _but_for_epochs_and_code(its) == asked]
    shorter = [run for run, its in alike if its == code and len(run.history) < recipe.epochs]
    for run in sorted(shorter, key=lambda run: -len(run.history)):
        name = run.folder.name
        if recipe.schedule != "constant":
            why = f"its schedule was planned for {run.recipe.epochs} epochs"
            print(f"run {folder.name}: cannot go on from {name}, {why}; training from the start")
            break
        with run_lock(run.folder) as held:  # while nobody writes them, its files belong together
            if held and len((state := load_state(run.folder))["history"]) < recipe.epochs:
                print(f"run {folder.name}: goes on from {name}, epoch {len(state['history'])}")
                return None, state
    names = [label(vars(recipe)[one]) for one in BUILT_IN]
    named = [pair for pair in alike if [label(vars(pair[0].recipe)[s]) for s in BUILT_IN] == names]
    for run, its in [] if shorter else named[-1:]:  # the newest
        if changed := ", ".join(name for name in code if its.get(name) != code[name]):
            why = f"the code of {changed}, or what it uses, is not that of run {run.folder.name}"
            print(f"run {folder.name}: trained anew, {why}")
    return None, None


def _but_for_epochs_and_code(question: dict) -> dict:
    return question | dict(settings=question["settings"] | dict(epochs=None), code=None)


def _score_kept(run: Run, val: pd.DataFrame, metrics: Mapping[str, Callable]) -> None:
    """Add what a finished run lacks of these metrics: of the kept model, the only one there is."""
    known = run.details.get("metrics", {})
    hashes = {name: code_hash(metric) for name, metric in metrics.items()}
    lacking = {name: metrics[name] for name in metrics if known.get(name) != hashes[name]}
    if not lacking:
        return
    recipe, kept = run.recipe, run.history["epoch"] == run.best_epoch
    val_set = CarvanaDataset(val, recipe.size, decode=decode_once, colour=recipe.colour)
    table = evaluate(run.model(), val_set, metrics=lacking)
    for name in lacking:
        run.history[f"val_{name}"] = np.where(kept, table[name].mean(), np.nan)
    run.details["metrics"] = known | hashes
    with suppress(OSError):  # a run that cannot be written can be looked at all the same
        write_tables(run)
    scored = f"{', '.join(lacking)} scored for its kept model, of epoch {run.best_epoch}"
    print(f"run {run.folder.name}: {scored}")


def _train(recipe, train_rows, val_rows, question, state, on_epoch, metrics, accelerator) -> Run:
    """The epochs that are still to do."""
    main, device, folder = accelerator.is_main_process, accelerator.device, run_folder(question)
    with accelerator.local_main_process_first():  # decode once, then share the cache
        settings = recipe.mask, recipe.augment, decode_once, recipe.colour
        sizes = {recipe.size_in(1), recipe.size}
        train_sets = {size: CarvanaDataset(train_rows, size, *settings) for size in sizes}
        settings = recipe.mask, "none", *settings[2:]
        val_sets = {size: CarvanaDataset(val_rows, size, *settings) for size in sizes}
    best = [sets[recipe.size].coverage.max((1, 2)) for sets in (train_sets, val_sets)]
    if main and (lost := sum(((most > 0) & (most < 128)).sum() for most in best)):
        warnings.warn(f"{lost} masks lose their object: raise size={recipe.size}.", stacklevel=3)
    if main and (twice := {*pair_hashes(train_rows)}.intersection(pair_hashes(val_rows))):
        what = f"{len(twice)} pictures are in train and in val: scores say little of new ones"
        warnings.warn(f"{what}; see split_by_group.", stacklevel=3)
    settled = state and (state["batch_size"], state["lr"])
    batch_size, lr = settled or settle_batch_size(recipe, len(train_rows), accelerator)
    steps = recipe.epochs * math.ceil(len(train_rows) / batch_size)
    with weights_named(recipe.start_from):
        several = accelerator.num_processes > 1
        kind, where = (SharedLearner, accelerator) if several else (FastLearner, device)
        learner = kind(recipe, steps, lr, where, metrics)
    restore(learner, state, folder)
    if metrics:  # tried before an epoch is lost
        for val_set in val_sets.values():
            evaluate(learner.model, val_set, metrics=metrics, rows=range(1))
    details = dict(question=question, profile=question["profile"], data=question["data"])
    details |= dict(versions=dict(unetlib=__version__, torch=str(torch.__version__)))
    details |= dict(batch_size=batch_size, lr=lr, precision=learner.precision, device=str(device))
    details |= dict(processes=accelerator.num_processes, train_images=len(train_rows))
    details |= dict(train_ids=list(train_rows["id"]), val_ids=list(val_rows["id"]))
    details |= dict(data_folder=str(Path(train_rows["image"].iloc[0]).absolute().parent.parent))
    details |= dict(metrics={name: code_hash(metric) for name, metric in metrics.items()})
    run = Run(folder, recipe, pd.DataFrame(columns=HISTORY, dtype=float), details)
    if state is not None:
        before, now = state["metrics"], details["metrics"]
        other = [f"val_{name}" for name in before if before[name] != now.get(name, before[name])]
        run.history = pd.DataFrame(state["history"]).drop(columns=other)
        details["metrics"] = before | now
        if main:
            write_run(run, learner, first=state["folder"] != folder.name, best=state["best"])
    rows, stop = train(learner, train_sets, val_sets, batch_size, len(run.history) + 1), False
    try:
        with memory_kept(device), out_of_memory_named(batch_size, recipe.size, device):
            while not (run.finished or stop):
                row = next(rows)
                history = pd.concat([run.history, pd.DataFrame([row])], ignore_index=True)
                if main:
                    first = state is None and row["epoch"] == 1
                    write_run(replace(run, history=history), learner, first)
                run.history = history
                if on_epoch is not None and main:
                    run.preview = _preview(learner, val_sets[recipe.size])
                    answer = on_epoch(run)
                    stop = isinstance(answer, (bool, np.bool_, torch.Tensor)) and bool(answer)
                (stop,) = broadcast_object_list([stop])
        accelerator.wait_for_everyone()
    except KeyboardInterrupt:
        pass
    rows.close()  # its progress bar, before the lines below
    done = f"stopped after epoch {len(run.history)} of {recipe.epochs}"
    if main and not run.finished:
        print(f"{done}: fit again to go on")
    elif main and len(run.history) < recipe.epochs:
        print(f"{done}: none of the last {recipe.patience} was better than epoch {run.best_epoch}")
    return run


def _preview(learner: Learner, val_set: CarvanaDataset) -> tuple[np.ndarray, ...]:
    """``Run.preview``: validation images evenly spread over the set."""
    chosen = range(0, len(val_set), max(1, len(val_set) // 4))[:4]
    images, coverage = val_set.images[chosen], val_set.coverage[chosen]
    with evaluating(learner.model), autocast(learner.device, learner.precision):
        logits = learner.model(to_tensor(images, learner.device))[:, 0]
    return images, coverage, torch.sigmoid(logits.float()).cpu().numpy()


@contextmanager
def _alone(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Only one program at a time trains this run; another one waits for it and says so."""
    busy = f"run {folder.name}: being trained by another program"
    several = accelerator.num_processes > 1  # they would give up on a main process that waits
    wait = None if several else partial(print, f"{busy}; waiting for its lock")
    with ExitStack() as stack:
        try:
            if accelerator.is_main_process and not stack.enter_context(run_lock(folder, wait)):
                raise TrainingError(f"{busy}; start again when it is done.")
        except OSError as error:
            if not (folder / "history.csv").exists():  # else it can be looked up all the same
                raise unwritable(error.filename or folder, error) from None
        yield
