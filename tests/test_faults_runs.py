"""Machines that fail while unetlib works: no room, no permission, no memory, kills, wrong clocks.

Real limits, real file systems, real processes. Files that are damaged: ``test_faults_damage``.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from other_process import in_another_process, start, with_megabytes_left

from unetlib import (
    FILES,
    CarvanaDataset,
    DataError,
    ModelFileError,
    Recipe,
    RunError,
    TrainingError,
    clean_runs,
    decode_once,
    export_all,
    find_runs,
    fit,
    load_predictor,
    load_run,
    lr_find,
)
from unetlib.store.model_file import save_atomically

RECIPE = Recipe(widths=(4, 8), size=32, lr=1e-2, epochs=3, batch_size=5, precision="fp32")


def stop(run):
    raise KeyboardInterrupt


# ------------------------------------------------------------------------------- full and read-only


def make_read_only(disk) -> None:
    """Not even root can write there any more."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


@pytest.mark.fault(
    "disk full while a run is written (a real small disk)",
    "one sentence with the remedy; no half-written file; finished epochs are kept",
)
@pytest.mark.parametrize("room", [4, 24], ids=["for no file", "for some files of an epoch"])
def test_a_full_disk_is_named_and_finished_epochs_are_kept(tables, own_disk, monkeypatch, room):
    disk = own_disk("size=1m")
    monkeypatch.setenv("UNETLIB_HOME", str(disk))
    run = fit(RECIPE, *tables, on_epoch=stop)
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - 1024 * room))
    with pytest.raises(TrainingError, match=r"No space left on device.*UNETLIB_HOME"):
        fit(RECIPE, *tables)
    assert not [path.name for path in run.folder.iterdir() if ".part" in path.name]
    kept = load_run(run.folder)
    assert len(kept.history) == 1
    kept.model("best"), kept.model("last")
    filler.unlink()
    assert fit(RECIPE, *tables).finished


@pytest.mark.fault(
    "disk full while decoded images are cached", "a warning; the images are used from memory"
)
def test_a_cache_that_does_not_fit_is_done_without(tables, own_disk, monkeypatch):
    disk = own_disk("size=16k")
    monkeypatch.setenv("UNETLIB_HOME", str(disk))
    with pytest.warns(UserWarning, match="No space left on device"):
        dataset = CarvanaDataset(tables[1], 64, decode=decode_once)
    assert np.array_equal(dataset.images, CarvanaDataset(tables[1], 64).images)


@pytest.mark.fault("runs/ read-only, nothing trained yet", "one sentence with the remedy, at once")
@pytest.mark.parametrize("made", [False, True], ids=["no runs folder", "empty runs folder"])
def test_a_home_that_cannot_be_written_is_named(tables, own_disk, monkeypatch, made):
    disk = own_disk("size=1m")
    if made:
        (disk / "runs").mkdir()
    make_read_only(disk)
    monkeypatch.setenv("UNETLIB_HOME", str(disk))
    with pytest.raises((TrainingError, OSError), match="Read-only file system") as caught:
        fit(RECIPE, *tables)
    assert "UNETLIB_HOME" in str(caught.value) and str(disk) in str(caught.value)


@pytest.mark.fault(
    "runs/ read-only with a finished run in it", "the run is found, opened and not trained again"
)
def test_a_finished_run_is_of_use_where_nothing_can_be_written(tables, own_disk, monkeypatch):
    disk = own_disk("size=1m")
    monkeypatch.setenv("UNETLIB_HOME", str(disk))
    run = fit(RECIPE, *tables)
    make_read_only(disk)
    epochs = []
    again = fit(RECIPE, *tables, on_epoch=epochs.append)
    assert again.finished and epochs == []
    assert [found.folder for found in find_runs()] == [run.folder]
    again.model()


@pytest.mark.fault(
    "runs/ read-only with a stopped run in it", "one sentence with the remedy; the run is kept"
)
def test_a_stopped_run_cannot_go_on_where_nothing_can_be_written(tables, own_disk, monkeypatch):
    disk = own_disk("size=1m")
    monkeypatch.setenv("UNETLIB_HOME", str(disk))
    run = fit(RECIPE, *tables, on_epoch=stop)
    make_read_only(disk)
    with pytest.raises(TrainingError, match=r"Read-only file system.*UNETLIB_HOME"):
        fit(RECIPE, *tables)
    assert len(load_run(run.folder).history) == 1


@pytest.mark.slow
@pytest.mark.fault(
    "disk full while a model is exported over an older one",
    "one sentence with the remedy; the older files stay, all of them",
)
def test_a_full_disk_does_not_cost_the_older_export(trained, exported, tables, own_disk):
    folder = own_disk("size=2m") / "models"
    shutil.copytree(exported[0], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    free = shutil.disk_usage(folder).free
    (folder.parent / "filler").write_bytes(bytes(free - 60_000))
    train, val = tables
    with pytest.raises((ModelFileError, OSError), match="No space left on device") as caught:
        export_all(trained, folder, train=train, val=val)
    assert str(folder) in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.fault("models/ read-only", "one sentence that names the file")
def test_a_models_folder_that_cannot_be_written_is_named(trained, tables, own_disk):
    disk = own_disk("size=1m")
    make_read_only(disk)
    train, val = tables
    with pytest.raises(OSError, match="Read-only file system") as caught:
        export_all(trained, disk, train=train, val=val)
    assert str(disk) in str(caught.value)


# -------------------------------------------------------------------------------- several processes


def export(checkpoint, folder, train, val) -> int:
    return len(export_all(checkpoint, folder, train=train, val=val))


@pytest.mark.slow
@pytest.mark.fault(
    "two programs export different models into one folder at once",
    "one after the other; the files left are all of one model, and the manifest vouches for them",
)
def test_two_exports_into_one_folder_leave_one_whole_export(trained, tables, tmp_path):
    other = fit(replace(trained.recipe, seed=5), *tables)
    train, val = tables
    folder = tmp_path / "models"
    exporting = [start(export, run.checkpoint, folder, train, val) for run in (trained, other)]
    for process, answer in exporting:
        assert answer.recv() == len(FILES)
        process.join()
    images = np.random.default_rng(0).random((1, 1, 32, 32), dtype=np.float32)
    logits = {
        name: load_predictor(folder / file, "cpu").logits(images) for name, file in FILES.items()
    }
    for name in ("torchscript", "exported", "onnx"):
        np.testing.assert_allclose(logits[name], logits["pytorch"], atol=1e-3)


# ------------------------------------------------------------------------------------------ memory


LARGE = Recipe(size=256, epochs=1, precision="fp32")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
@pytest.mark.fault("out of memory in a step or while images are decoded", "one sentence, numbers")
@pytest.mark.parametrize("what", ["training", "range test", "decoding"])
def test_too_little_memory_is_named(tables, what):
    train, val = tables
    megabytes, call, error, numbers = {
        "training": (900, (fit, LARGE, train, val), TrainingError, "16 images of size=256"),
        "range test": (900, (lr_find, LARGE, train), TrainingError, "16 images of size=256"),
        "decoding": (3000, (decode_once, train, 16384), DataError, "16 images of 16384x16384"),
    }[what]
    with pytest.raises(error, match=rf"\b{numbers}\b.* lower "):
        in_another_process(with_megabytes_left, megabytes, *call)


# ------------------------------------------------------------------------------------------- clocks


def date(run, moment: float) -> None:
    os.utime(run.folder / "history.csv", (moment, moment))


YEAR = 365 * 86_400


@pytest.mark.fault(
    "a run dated in the future by a wrong clock",
    "counts as the oldest: the newest true run is exported and kept",
)
def test_a_run_from_the_future_is_not_the_newest_for_years(tables):
    future = fit(RECIPE, *tables, on_epoch=stop)
    date(future, time.time() + 20 * YEAR)
    newest = fit(replace(RECIPE, seed=1), *tables, on_epoch=stop)
    assert [run.folder for run in find_runs()] == [future.folder, newest.folder]
    assert clean_runs(keep=1) == [future.folder.name]


@pytest.mark.fault(
    "a clock that starts at 1970: all older runs lie in the future", "the newest run is the newest"
)
def test_the_newest_run_is_found_with_a_clock_that_lost_its_date(tables):
    """The machine's clock cannot be set in a test: runs 60 years ahead stand in for it."""
    older, newer, now = (replace(RECIPE, seed=seed) for seed in range(3))
    runs = [fit(recipe, *tables, on_epoch=stop) for recipe in (older, newer, now)]
    for years, run in zip((60, 61), runs, strict=False):
        date(run, time.time() + years * YEAR)
    assert [run.folder for run in find_runs()] == [run.folder for run in runs]


@pytest.mark.fault("a run dated 1970", "found like any other; counts as old")
def test_a_run_of_1970_is_found(tables):
    old = fit(RECIPE, *tables)
    date(old, 0)
    assert [run.folder for run in find_runs()] == [old.folder]
    assert len(fit(RECIPE, *tables).history) == 3


# ----------------------------------------------------------------------------------------- versions


@pytest.mark.fault(
    "training goes on from a run whose network is built otherwise by now",
    "refused before the first step, with the remedy",
)
@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_state_of_another_version_is_refused(tables, part):
    run = fit(RECIPE, *tables, on_epoch=stop)
    state = torch.load(run.folder / "last.pth", weights_only=True)
    if part == "model":
        state["model"]["encoders.0.renamed"] = state["model"].pop("head.bias")
    else:
        state["optimizer"]["param_groups"][0]["params"].pop()
    save_atomically(state, run.folder / "last.pth")
    with pytest.raises(RunError, match=rf"{run.folder.name}.*retrain=True"):
        fit(RECIPE, *tables)
    if part == "model":
        with pytest.raises(ModelFileError, match=rf"{run.folder.name}.*retrain=True"):
            run.model("last")
    assert fit(RECIPE, *tables, retrain=True).finished
