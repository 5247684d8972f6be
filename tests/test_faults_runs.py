"""Machines that fail while unetlib works: no room, no permission, no memory, kills, wrong clocks.

Real limits, real file systems, real processes. Files that are damaged: ``test_faults_damage``.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unetlib import carvana, config
from unetlib.dataset import CarvanaDataset
from unetlib.export import export_all
from unetlib.formats import FILES, open_model
from unetlib.model import ModelFileError, save_atomically
from unetlib.recipe import Recipe
from unetlib.runs import RunError, clean_runs, find_runs, load_run
from unetlib.sealed import read_json, write_json
from unetlib.training import TrainingError, fit

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
    with pytest.raises(TrainingError, match=r"No space left on device.*free some space"):
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
    with pytest.warns(UserWarning, match=r"not kept for next time .*No space left on device"):
        dataset = CarvanaDataset(tables[1], 64)
    assert np.array_equal(dataset.images, CarvanaDataset(tables[1], 64, cache=False).images)
    assert list((disk / ".cache").iterdir()) == []


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
    assert "set UNETLIB_HOME to a folder" in str(caught.value) and str(disk) in str(caught.value)


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
    with pytest.raises(TrainingError, match=r"Read-only file system.*set UNETLIB_HOME"):
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


EXPORT = """
import sys
from unetlib.carvana import find_samples, split_by_car
from unetlib.export import export_all
train, val = split_by_car(find_samples())
try:
    export_all(sys.argv[1], sys.argv[2], train=train, val=val)
    print("exported")
except (ValueError, OSError) as error:
    print(type(error).__name__, error)
"""


# -------------------------------------------------------------------------------- several processes


@pytest.mark.slow
@pytest.mark.fault(
    "two programs export different models into one folder at once",
    "one after the other; the files left are all of one model, and the manifest vouches for them",
)
def test_two_exports_into_one_folder_leave_one_whole_export(trained, tables, tmp_path):
    other = fit(replace(trained.recipe, seed=5), *tables)
    folder = tmp_path / "models"
    environment = dict(os.environ, PYTHONPATH=str(config.REPOSITORY), OMP_NUM_THREADS="1")
    exporting = [
        subprocess.Popen(
            [sys.executable, "-c", EXPORT, str(run.checkpoint), str(folder)],
            cwd=config.REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for run in (trained, other)
    ]
    said = [process.communicate()[0] for process in exporting]
    assert said == ["exported\n"] * 2
    images = np.random.default_rng(0).random((1, 1, 32, 32), dtype=np.float32)
    logits = {name: open_model(folder / file, "cpu")[0](images) for name, file in FILES.items()}
    for name in ("torchscript", "exported", "onnx"):
        np.testing.assert_allclose(logits[name], logits["pytorch"], atol=1e-3)


STOPS = """
import random, signal, sys
from pathlib import Path
from unetlib.config import locked
folder, stops, blocked = Path(sys.argv[1]), 0, 0
random.seed(0)
def press(*signal_and_frame):
    if pressed_while_locking:
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, press)
for attempt in range(4000):
    path = folder / str(blocked)
    try:
        pressed_while_locking = True
        signal.setitimer(signal.ITIMER_REAL, 1e-6 + 5e-4 * random.random())
        with locked(path):
            sum(range(3000))
        pressed_while_locking = False
    except KeyboardInterrupt as stop:
        pressed_while_locking, kept = False, stop  # as IPython keeps it
        stops += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    with locked(path) as held:
        blocked += not held
print(stops, blocked)
"""


@pytest.mark.skipif(os.name != "posix", reason="takes a timer that only Unix has")
@pytest.mark.fault(
    "the stop button while a run's lock is taken or given back, thousands of times",
    "the same kernel can train the run again",
)
def test_a_stop_leaves_no_lock_behind(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", STOPS, tmp_path],
        cwd=config.REPOSITORY,
        capture_output=True,
        text=True,
    )
    stops, blocked = map(int, ended.stdout.split())
    assert stops > 1000
    # Python can be stopped on the very way into __exit__: about once in a thousand of these.
    assert blocked < stops / 200


# ------------------------------------------------------------------------------------------ memory

WITHIN = """
import resource, sys
from unetlib.carvana import DataError, find_samples, split_by_car
from unetlib.dataset import CarvanaDataset
from unetlib.learner import Learner, TrainingError, start_accelerator
from unetlib.recipe import Recipe
train, val = split_by_car(find_samples())
dataset = CarvanaDataset(train, 64)
learner = Learner.begin(Recipe(size=64, precision="fp32"), 1e-3, 1, start_accelerator())
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 60_000_000, -1))
try:
    exec(sys.argv[1])
except (DataError, TrainingError) as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
@pytest.mark.parametrize(
    ("work", "said"),
    [
        pytest.param(
            "learner.validate(CarvanaDataset(train, 64), 16)",
            "TrainingError 16 images of 64x64 pixels at once do not fit in the memory of the CPU: "
            "lower batch_size, size or widths",
            marks=pytest.mark.fault(
                "out of memory while a model is judged", "one sentence with the remedy"
            ),
            id="judging",
        ),
        pytest.param(
            "CarvanaDataset(train, 4096, cache=False)",
            "DataError 16 images of 4096x4096 pixels and their masks do not fit in memory: lower "
            "size",
            marks=pytest.mark.fault(
                "out of memory while images are decoded", "one sentence with the remedy"
            ),
            id="decoding",
        ),
    ],
)
def test_too_little_memory_is_named(work, said):
    ended = subprocess.run(
        [sys.executable, "-c", WITHIN, work],
        cwd=config.REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert said in ended.stdout, ended.stderr[-1500:]


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


@pytest.mark.fault(
    "a picture exchanged, its date set back to what it was",
    "noticed: the cache is built anew and the run is another one",
)
def test_a_changed_picture_is_noticed_whatever_its_date(own_data_set):
    samples = carvana.find_samples(own_data_set)
    samples = samples[samples["mask"] != ""]
    before, names = carvana.fingerprint(samples), list(samples["image"])
    decoded = CarvanaDataset(samples, 16).images
    first = Path(names[0])
    content, status = first.read_bytes(), first.stat()
    first.write_bytes(content[:-20] + bytes(18) + content[-2:])  # as long as it was
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert carvana.fingerprint(samples) != before
    assert not np.array_equal(CarvanaDataset(samples, 16).images, decoded)


@pytest.mark.fault("pictures and cache dated in the future or 1970", "the cache is used as it is")
@pytest.mark.parametrize("moment", [0, 4e9])
def test_dates_alone_do_not_cost_the_cache(own_data_set, capfd, moment):
    samples = carvana.find_samples(own_data_set)
    samples = samples[samples["mask"] != ""]
    CarvanaDataset(samples, 16)
    for path in [*samples["image"], *samples["mask"], *config.cache_dir().iterdir()]:
        os.utime(path, (moment, moment))
    capfd.readouterr()
    CarvanaDataset(samples, 16)
    assert "decoding" not in capfd.readouterr().err


# ----------------------------------------------------------------------------------------- versions


@pytest.mark.fault(
    "a run of another unetlib, with a setting that this one does not know",
    "refused: the sentence names the setting",
)
def test_a_run_with_an_unknown_setting_says_why_it_does_not_open(tables):
    run = fit(RECIPE, *tables, on_epoch=stop)
    write_json(run.folder / "recipe.json", asdict(run.recipe) | {"colour": "red"})
    with pytest.raises(RunError, match=r"unetlib .* knows no setting colour.*retrain=True"):
        load_run(run.folder)


@pytest.mark.fault(
    "a run of an older unetlib, without a setting that is new here", "opens with the default"
)
def test_a_run_without_a_new_setting_opens(tables):
    run = fit(RECIPE, *tables, on_epoch=stop)
    settings = read_json(run.folder / "recipe.json")
    del settings["up_kernel"]
    write_json(run.folder / "recipe.json", settings)
    assert load_run(run.folder).recipe == RECIPE


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
    with pytest.raises(RunError, match=r"of another version.*retrain=True"):
        fit(RECIPE, *tables)
    if part == "model":
        with pytest.raises(ModelFileError, match="of another unetlib; train anew"):
            run.model("last")
    assert fit(RECIPE, *tables, retrain=True).finished


@pytest.mark.fault(
    "a checkpoint without an entry that this version needs", "refused, with the remedy"
)
def test_a_state_that_lacks_an_entry_is_refused(tables):
    run = fit(RECIPE, *tables, on_epoch=stop)
    state = torch.load(run.folder / "last.pth", weights_only=True)
    del state["batch_size"]
    save_atomically(state, run.folder / "last.pth")
    with pytest.raises(RunError, match="train anew"):
        fit(RECIPE, *tables)
