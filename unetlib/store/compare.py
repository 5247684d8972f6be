"""Many runs: a table to compare them, the best model there is, and tidying up."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from unetlib.recipe import BUILT_IN, PRETRAINED, Recipe
from unetlib.store.runs import HISTORY, Run, find_runs, run_lock
from unetlib.support import folders
from unetlib.support.code import label
from unetlib.support.errors import ModelFileError, RunError
from unetlib.support.memory import fingerprint
from unetlib.support.profile import profile

FILES = ("recipe.json", "run.json", "last.pth", "next*.pth", "best.pth", "history.csv")


def compare_runs(runs: Mapping[str, Run] | Iterable[Run] | None = None) -> pd.DataFrame:
    """A row per run, the best first: the settings in which they differ, and how they did.

    ``runs``: by name, or a list; None: all in the runs folder.

    Index: the given name, or the run's. Columns: differing settings (also data, profile and
    best_by; own code by its name, with its hash where that differs), best_dice, best_iou, further
    metrics of the kept model, best_epoch, epochs (finished ones, as ``3/10`` if stopped), seconds,
    images_per_second.
    """
    if not isinstance(runs, Mapping):
        runs = {run.folder.name: run for run in (find_runs() if runs is None else runs)}
    asked = pd.DataFrame([run.details["question"] for run in runs.values()], index=list(runs))
    settings = pd.DataFrame([vars(run.recipe) for run in runs.values()], index=list(runs))
    settings = settings.join(asked.reindex(columns=["data", "profile", "best_by"]))
    for setting in BUILT_IN if len(settings) else ():
        names = settings[setting].map(label)
        hashes = asked["code"].str.get(setting).astype(str)
        several = hashes.groupby(names).transform("nunique") > 1
        settings[setting] = names.where(~several, names + " " + hashes.str[:4])
    differing = settings.loc[:, (settings.map(str).nunique() > 1) & (settings.columns != "epochs")]
    names = ("best_epoch", "epochs", "seconds", "images_per_second")
    results = [
        dict(best_dice=run.best_dice, best_iou=run.best_iou)
        | {name[4:]: run.at_best(name) for name in run.history.columns if name not in HISTORY}
        | {name: getattr(run, name, None) for name in names}
        | dict(epochs=f"{len(run.history)}" + f"/{run.recipe.epochs}" * (not run.finished))
        for run in runs.values()
    ]
    table = pd.concat([differing, pd.DataFrame(results, index=list(runs))], axis=1)
    return table.sort_values("best_dice", ascending=False) if len(table) else table


def best_model(val: pd.DataFrame) -> Path:
    """The model file of the best Dice on these pictures; one line says which it is.

    Asked are the U-Nets trained under this profile that were validated on them, at the baseline's
    size, and, except in profile ``ci``, the weights that come with the repository and what started
    from others. ModelFileError: there is none.
    """
    from unetlib.dataset import CarvanaDataset  # here: whoever lists runs needs no PyTorch
    from unetlib.metrics import evaluate
    from unetlib.store.model_file import load_model
    from unetlib.support.cache import decode_once

    size, here, found = profile().scale(Recipe()).size, profile().name, {}
    for run in find_runs():
        alike = run.details["profile"] == here and run.details["data"].endswith(fingerprint(val))
        fits = (run.recipe.network, run.recipe.size, run.recipe.colour) == ("unet", size, False)
        small = here != "ci" or run.recipe.start_from is None  # a smoke test stays with small nets
        if alike and fits and small and run.finished:
            found[f"run {run.folder.name}"] = run.best_dice, run.checkpoint
    if here != "ci" and PRETRAINED.is_file():
        model, info = load_model(PRETRAINED)
        table = evaluate(model, CarvanaDataset(val, info["size"], decode=decode_once))
        shipped = PRETRAINED.relative_to(folders.REPOSITORY).as_posix()
        found[shipped] = table["dice"].mean(), PRETRAINED
    if not found:
        raise ModelFileError(f"{folders.runs_dir()}: no model of these pictures; train one first.")
    best, (dice, path) = max(found.items(), key=lambda one: one[1])
    print(f"model: {best}, Dice {dice:.4f} on these pictures, the best of {len(found)}")
    return path


def clean_runs(keep: int | Mapping[str, Run] | Iterable[Run] = 10) -> list[str]:
    """Delete runs but those to keep and those being trained; empty the cache; name the deleted.

    Damaged and half-written runs are deleted, too. Links, and folders without a file of a run
    (TensorBoard writes into ``runs/`` as well), stay as they are. The cache fills up again by use.
    ``keep``: how many of the newest, or which ones (RunError: neither; nothing is deleted).
    """
    if isinstance(keep, (int, np.integer)) and not isinstance(keep, bool) and keep >= 0:
        keep = find_runs()[::-1][:keep]
    several = np.iterable(keep) and not isinstance(keep, (str, bytes))
    runs = list(keep.values() if isinstance(keep, Mapping) else keep) if several else [keep]
    if not all(isinstance(run, Run) for run in runs):
        raise RunError("Nothing deleted; keep: give the runs, or how many of them, 0 or more.")
    shutil.rmtree(folders.cache_dir(), ignore_errors=True)
    kept, deleted = {run.folder.name for run in runs}, []
    for folder in sorted(folders.runs_dir().iterdir()):
        ours = any(path.is_file() for name in FILES for path in folder.glob(name))
        if folder.name in kept or folder.is_symlink() or not ours:
            continue
        with run_lock(folder) as held:
            if held:
                (folder / "history.csv").unlink(missing_ok=True)  # first: none is seen half-deleted
                shutil.rmtree(folder)
                deleted.append(folder.name)
    return deleted
