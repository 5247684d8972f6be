import dataclasses
import io
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from unetlib import config
from unetlib.carvana import DataError
from unetlib.dataset import CarvanaDataset
from unetlib.learner import Learner, start_accelerator
from unetlib.metrics import evaluate
from unetlib.model import load_model
from unetlib.recipe import Recipe
from unetlib.runs import RunError, find_runs, load_run, run_lock
from unetlib.training import TrainingError, fit

resource = pytest.importorskip("resource", reason="real limits and kills need Unix")

# Everything that has a state of its own takes part: optimizer, schedule, augmentation, seeds.
RECIPE = Recipe(
    widths=(4, 8),
    size=32,
    augment="mild",
    loss="bce_dice",
    optimizer="adamw",
    schedule="one_cycle",
    lr=1e-2,
    epochs=3,
    batch_size=5,
    precision="fp32",
)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def without_seconds(history: pd.DataFrame) -> pd.DataFrame:
    return history.drop(columns="seconds")


@pytest.fixture(scope="module")
def uninterrupted(tables, one_thread, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNETLIB_HOME", str(tmp_path_factory.mktemp("uninterrupted")))
        patch.delenv("UNETLIB_PROFILE", raising=False)
        return fit(RECIPE, *tables)


# ------------------------------------------------------------------------------------ what it does


def test_training_learns(trained):
    assert trained.best_dice > 0.85
    assert trained.history["train_loss"].iloc[-1] < trained.history["train_loss"].iloc[0] / 2


def test_the_history_has_a_row_per_epoch(trained):
    assert list(trained.history.columns) == [
        "epoch",
        "lr",
        "train_loss",
        "val_loss",
        "val_dice",
        "val_iou",
        "seconds",
    ]
    assert list(trained.history["epoch"]) == [1, 2, 3, 4, 5, 6]
    assert np.isfinite(trained.history).all(axis=None)


def test_the_best_model_is_the_one_of_the_best_epoch(trained, tables):
    assert trained.best_dice == trained.history["val_dice"].max()
    assert trained.history["val_dice"][trained.best_epoch - 1] == trained.best_dice
    scores = evaluate(trained.model(), CarvanaDataset(tables[1], 32))
    assert scores["dice"].mean() == pytest.approx(trained.best_dice, abs=1e-6)


def test_the_last_model_is_the_one_after_the_last_epoch(trained, tables):
    model = trained.model("last")
    scores = evaluate(model, CarvanaDataset(tables[1], 32))
    assert not model.training
    assert scores["dice"].mean() == pytest.approx(trained.history["val_dice"].iloc[-1], abs=1e-6)


def test_the_checkpoint_carries_what_it_was_made_from(trained):
    _, content = load_model(trained.checkpoint)
    assert content["size"] == 32
    assert content["info"]["recipe"] == dataclasses.asdict(trained.recipe)
    assert content["info"]["val_dice"] == trained.best_dice


def test_one_cycle_rises_and_falls_and_constant_stays(uninterrupted, trained):
    """Rates at the start of epochs 1, 2, 3: at 0, 4/11 and 8/11 of the way."""
    low, high, falling = uninterrupted.history["lr"]
    assert low == pytest.approx(RECIPE.lr / 25)
    assert low < falling < high <= RECIPE.lr
    assert trained.history["lr"].nunique() == 1


def test_the_run_knows_its_data_and_its_speed(trained, tables):
    assert trained.train_ids == list(tables[0]["id"])
    assert trained.val_ids == list(tables[1]["id"])
    assert trained.images_per_second == pytest.approx(6 * 16 / trained.seconds)
    assert trained.precision == "fp32"
    assert torch.device(trained.device)


def test_auto_precision_becomes_one_that_is_written_down(tables):
    run = fit(Recipe(widths=(2, 4), size=8, epochs=1), *tables)
    assert run.recipe.precision == "auto"
    assert run.precision in ("fp32", "bf16")


def test_training_leaves_the_global_random_state_alone(tables):
    before = torch.get_rng_state()
    fit(replace(RECIPE, epochs=1), *tables)
    assert torch.equal(torch.get_rng_state(), before)


def test_on_epoch_sees_the_run_grow(tables):
    seen = []
    run = fit(RECIPE, *tables, on_epoch=lambda run: seen.append((len(run.history), run.finished)))
    assert seen == [(1, False), (2, False), (3, True)]
    assert run.finished


# ------------------------------------------------------------------- the same question or another


def test_the_same_question_is_answered_at_once(tables, capsys):
    first = fit(replace(RECIPE, epochs=1), *tables)
    capsys.readouterr()
    epochs = []
    again = fit(replace(RECIPE, epochs=1), *tables, on_epoch=epochs.append)
    assert epochs == []
    assert again.folder == first.folder
    pd.testing.assert_frame_equal(again.history, first.history)
    line = capsys.readouterr().out
    assert line == (
        f"run {first.folder.name}: already trained, best Dice {first.best_dice:.4f} "
        "(retrain=True trains anew)\n"
    )


def test_retrain_trains_anew_to_the_same_weights(tables):
    first = fit(replace(RECIPE, epochs=1), *tables)
    weights, epochs = first.model(), []
    again = fit(replace(RECIPE, epochs=1), *tables, on_epoch=epochs.append, retrain=True)
    assert len(epochs) == 1
    assert same_weights(again.model(), weights)


@pytest.mark.parametrize("change", [{"lr": 9e-3}, {"seed": 1}, {"epochs": 2}, {"mask": "soft"}])
def test_a_changed_number_is_another_run(tables, change):
    first = fit(replace(RECIPE, epochs=1), *tables)
    other = fit(replace(RECIPE, **{"epochs": 1, **change}), *tables)
    assert other.folder != first.folder
    assert not same_weights(other.model("last"), first.model("last"))


def test_other_data_is_another_run(tables):
    train, val = tables
    first = fit(replace(RECIPE, epochs=1), train, val)
    assert fit(replace(RECIPE, epochs=1), train.iloc[1:], val).folder != first.folder
    assert fit(replace(RECIPE, epochs=1), train, val.iloc[1:]).folder != first.folder


def test_another_profile_is_another_run(tables, monkeypatch):
    first = fit(replace(RECIPE, epochs=1), *tables)
    monkeypatch.setenv("UNETLIB_PROFILE", "full")
    assert fit(replace(RECIPE, epochs=1), *tables).folder != first.folder


def test_the_seed_alone_makes_the_run(tables, uninterrupted):
    torch.manual_seed(99)
    again = fit(RECIPE, *tables)
    assert same_weights(again.model("last"), uninterrupted.model("last"))
    pd.testing.assert_frame_equal(
        without_seconds(again.history), without_seconds(uninterrupted.history)
    )


# ----------------------------------------------------------------------------- stopped and resumed


def stop(run):
    raise KeyboardInterrupt


def test_a_stopped_run_keeps_its_epochs_and_says_how_to_go_on(tables, capsys):
    run = fit(RECIPE, *tables, on_epoch=stop)
    assert len(run.history) == 1 and not run.finished
    assert "stopped after epoch 1 of 3: fit again to go on" in capsys.readouterr().out
    assert run.model("best").architecture["widths"] == (4, 8)


def test_a_stopped_run_goes_on_to_the_weights_of_an_uninterrupted_one(
    tables, uninterrupted, capsys
):
    fit(RECIPE, *tables, on_epoch=stop)
    resumed = fit(RECIPE, *tables)
    assert "goes on after epoch 1" in capsys.readouterr().out
    assert same_weights(resumed.model("last"), uninterrupted.model("last"))
    assert same_weights(resumed.model("best"), uninterrupted.model("best"))
    pd.testing.assert_frame_equal(
        without_seconds(resumed.history), without_seconds(uninterrupted.history)
    )


def train_in_another_process(recipe, started, home):
    """What a terminal does: SIGINT raises KeyboardInterrupt, one thread computes."""
    os.environ["UNETLIB_HOME"] = str(home)
    # A test run in the background ignores SIGINT, and its children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    from unetlib.carvana import find_samples, split_by_car

    train, val = split_by_car(find_samples())
    started.set()
    run = fit(recipe, train, val)
    os._exit(0 if run.finished else 4)


@pytest.fixture(scope="module")
def processes():
    """Real processes that need not import PyTorch anew: forked from a server that has."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["unetlib.training"])
    return context


def start(processes, recipe):
    """A process that has just begun to train."""
    started = processes.Event()
    process = processes.Process(
        target=train_in_another_process, args=(recipe, started, os.environ["UNETLIB_HOME"])
    )
    process.start()
    assert started.wait(60)
    return process


def kill_until_done(processes, recipe, kills, longest):
    """SIGKILL at random moments, `kills` times; then let it finish."""
    rng, survived = random.Random(0), 0
    for _ in range(kills):
        process = start(processes, recipe)
        time.sleep(rng.uniform(0, longest))
        process.kill()
        process.join()
        survived += process.exitcode == -signal.SIGKILL
    process = start(processes, recipe)
    process.join(120)
    assert process.exitcode == 0
    return survived


def leftovers(folder):
    return [path.name for path in folder.iterdir() if ".part" in path.name]


@pytest.mark.fault(
    "kill -9 while training, at random moments",
    "at most the epoch it was in is lost; the final weights are an undisturbed run's",
)
def test_a_killed_process_loses_at_most_the_epoch_it_was_in(tables, uninterrupted, processes):
    assert kill_until_done(processes, RECIPE, kills=3, longest=0.3) >= 1
    (run,) = find_runs()
    assert same_weights(run.model("last"), uninterrupted.model("last"))
    assert same_weights(run.model("best"), uninterrupted.model("best"))


@pytest.mark.fault(
    "kill -9 a dozen times, also while files are written",
    "the final weights are an undisturbed run's, byte for byte",
)
@pytest.mark.slow
def test_a_dozen_kills_leave_the_weights_of_an_undisturbed_run(tables, processes):
    """A wider net, so that much of the time goes into writing 4 MB after each short epoch."""
    recipe = replace(RECIPE, widths=(32, 64, 96), size=16, epochs=25)
    assert kill_until_done(processes, recipe, kills=14, longest=1.2) >= 10
    (killed,) = find_runs()
    shutil.move(killed.folder, killed.folder.with_name("killed"))
    undisturbed = fit(recipe, *tables)
    killed = load_run(killed.folder.with_name("killed"))
    assert same_weights(killed.model("last"), undisturbed.model("last"))
    assert same_weights(killed.model("best"), undisturbed.model("best"))
    pd.testing.assert_frame_equal(
        without_seconds(killed.history), without_seconds(undisturbed.history)
    )


@pytest.mark.fault("Ctrl-C or SIGTERM while training", "the run keeps its epochs and goes on later")
@pytest.mark.parametrize("request_to_stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_process_ends_cleanly_and_can_go_on(tables, processes, request_to_stop):
    recipe = replace(RECIPE, epochs=400)
    process = start(processes, recipe)
    while not find_runs():
        time.sleep(0.02)
    os.kill(process.pid, request_to_stop)
    process.join(30)
    assert process.exitcode == 4  # fit returned, with a run that is not finished
    (run,) = find_runs()
    assert 1 <= len(run.history) < 400
    assert leftovers(run.folder) == []
    again = fit(recipe, *tables, on_epoch=stop)
    assert len(again.history) == len(run.history) + 1


@pytest.mark.fault(
    "two programs train one run at once", "the second waits, says so, and gets the first one's run"
)
def test_a_second_program_waits_for_the_first_and_gets_its_run(tables, processes, capsys):
    recipe = replace(RECIPE, epochs=8)
    process = start(processes, recipe)
    while not find_runs():
        time.sleep(0.02)
    run = fit(recipe, *tables)
    process.join(30)
    assert process.exitcode == 0
    assert run.finished
    shown = capsys.readouterr().out
    assert "being trained by another program; waiting for it" in shown
    assert "already trained" in shown


def test_a_stop_before_the_first_epoch_leaves_a_run_that_says_so(tables):
    def stop_at_once(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unetlib.learner.Learner.step", stop_at_once)
        run = fit(RECIPE, *tables)
    assert not run.finished and run.best_epoch == 0
    assert np.isnan(run.best_dice) and np.isnan(run.best_iou)
    for use in (lambda: run.model("last"), lambda: run.checkpoint):
        with pytest.raises(ValueError, match="no epoch is finished yet; call fit again"):
            use()
    assert find_runs() == []


@pytest.mark.fault("killed between two files of a run", "goes on; no epoch is lost")
def test_a_run_killed_between_its_files_still_goes_on(tables, uninterrupted):
    """The last file written, history.csv, is behind: last.pth says which epochs count."""
    run = fit(RECIPE, *tables, on_epoch=stop)
    (run.folder / "history.csv").unlink()
    resumed = fit(RECIPE, *tables)
    assert same_weights(resumed.model("last"), uninterrupted.model("last"))
    pd.testing.assert_frame_equal(
        without_seconds(load_run(run.folder).history), without_seconds(uninterrupted.history)
    )


def test_no_half_written_file_stays(uninterrupted):
    names = {path.name for path in uninterrupted.folder.iterdir()}
    assert names == {"recipe.json", "run.json", "history.csv", "best.pth", "last.pth"}


# ------------------------------------------------------------------------------- a longer recipe

CONSTANT = replace(RECIPE, schedule="constant")


def test_a_longer_recipe_goes_on_from_the_shorter_run(tables, capsys):
    short = fit(replace(CONSTANT, epochs=2), *tables)
    stopped = fit(replace(CONSTANT, epochs=3), *tables, on_epoch=stop)
    assert f"goes on from {short.folder.name}, epoch 2" in capsys.readouterr().out
    assert stopped.finished and len(stopped.history) == 3
    shutil.rmtree(short.folder)
    direct = fit(replace(CONSTANT, epochs=3), *tables, retrain=True)
    assert same_weights(stopped.model("last"), direct.model("last"))


def pretend_the_first_epoch_was_best(run):
    state = torch.load(run.folder / "last.pth", weights_only=True)
    state["history"][0]["val_dice"] = 0.999  # no later epoch will be better
    torch.save(state, run.folder / "last.pth")
    best = torch.load(run.checkpoint, weights_only=True)
    best["info"]["epoch"] = 1
    torch.save(best, run.checkpoint)


def test_the_best_model_of_the_shorter_run_counts(tables):
    short = fit(replace(CONSTANT, epochs=2), *tables)
    pretend_the_first_epoch_was_best(short)
    longer = fit(replace(CONSTANT, epochs=4), *tables)
    assert longer.best_epoch == 1
    assert same_weights(longer.model("best"), short.model("best"))


def test_a_one_cycle_run_cannot_be_made_longer_and_says_so(tables, capsys):
    fit(replace(RECIPE, epochs=2), *tables)
    longer = fit(RECIPE, *tables)
    assert "cannot go on from" in (shown := capsys.readouterr().out)
    assert "planned for 2 epochs; training from the start" in shown
    assert longer.finished


def test_a_run_stopped_in_its_half_size_epochs_does_not_disturb_shorter_recipes(tables):
    fit(replace(RECIPE, epochs=6, half_size_epochs=5), *tables, on_epoch=stop)
    assert fit(replace(RECIPE, epochs=2), *tables).finished


@pytest.mark.parametrize("change", [{"lr": 9e-3}, {"seed": 1}, {"half_size_epochs": 1}])
def test_a_run_of_other_settings_is_not_gone_on_from(tables, capsys, change):
    fit(replace(CONSTANT, epochs=1, **change), *tables)
    fit(replace(CONSTANT, epochs=2), *tables)
    assert "goes on from" not in capsys.readouterr().out


def test_retraining_keeps_the_old_run_until_the_new_one_has_an_epoch(tables):
    first = fit(replace(CONSTANT, epochs=2), *tables)

    def stop_at_once(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unetlib.learner.Learner.step", stop_at_once)
        fit(replace(CONSTANT, epochs=2), *tables, retrain=True)
    assert load_run(first.folder).finished
    fit(replace(CONSTANT, epochs=2), *tables, retrain=True, on_epoch=stop)
    assert len(load_run(first.folder).history) == 1


def test_progressive_resizing_trains_on_small_images_first(tables):
    sizes = []

    def note(learner, images, masks, weight=1.0):
        sizes.append(images.shape[-1])
        return step(learner, images, masks, weight)

    step = Learner.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", note)
        run = fit(replace(RECIPE, batch_size=16, epochs=3, half_size_epochs=2), *tables)
    assert sizes == [16, 16, 32]
    assert run.finished


# ---------------------------------------------------------------------------------------- failures


@pytest.mark.fault(
    "the loss is no number", "one sentence with the remedy; finished epochs are kept"
)
@pytest.mark.parametrize("batch_size", [4, 16])
def test_a_loss_that_is_no_number_stops_the_training_with_the_remedy(tables, batch_size):
    with pytest.raises(TrainingError, match="loss became nan: lower the learning rate"):
        fit(replace(RECIPE, schedule="constant", lr=1e15, batch_size=batch_size), *tables)


def test_a_loss_that_is_no_number_keeps_earlier_epochs(tables):
    run = fit(RECIPE, *tables, on_epoch=stop)
    best = run.model()
    state = torch.load(run.folder / "last.pth", weights_only=True)
    state["model"]["head.weight"].fill_(float("nan"))
    torch.save(state, run.folder / "last.pth")
    with pytest.raises(TrainingError, match="The loss became nan"):
        fit(RECIPE, *tables)
    kept = load_run(run.folder)
    assert len(kept.history) == 1
    assert same_weights(kept.model(), best)


def test_a_table_without_rows_is_refused_before_training(tables):
    train, val = tables
    with pytest.raises(DataError, match="no rows"):
        fit(RECIPE, train, val.iloc[:0])


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{os.path.basename(tmp_path)}: no run"):
        load_run(tmp_path)


@pytest.mark.fault("the loss explodes", "one sentence with the remedy")
def test_an_exploding_loss_stops_the_training_before_it_is_no_number(tables):
    with pytest.raises(TrainingError, match=r"The loss became \d.*: lower the learning rate"):
        fit(replace(CONSTANT, optimizer="adam", loss="bce", batch_norm=False, lr=3e3), *tables)


def test_a_split_without_images_is_named(tables):
    train, val = tables
    with pytest.raises(DataError, match="'train' has no rows: choose another split"):
        fit(RECIPE, train.iloc[:0], val)


@pytest.mark.fault(
    "no room for a run's files", "one sentence with the remedy; the run goes on later"
)
@pytest.mark.parametrize("room", [4_000, 30_000], ids=["no file fits", "the checkpoint does not"])
def test_a_disk_without_room_is_named_and_the_run_goes_on_later(tables, uninterrupted, room):
    """A real limit of the system on the size of files, which stands in for a full disk."""
    fit(RECIPE, *tables, on_epoch=stop)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        with pytest.raises(TrainingError, match=r"cannot be written \(.*\): free some space"):
            fit(RECIPE, *tables)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    (run,) = find_runs()
    assert len(run.history) == 1
    assert leftovers(run.folder) == []
    assert same_weights(fit(RECIPE, *tables).model("last"), uninterrupted.model("last"))


TOO_LARGE = """
import resource
from unetlib.carvana import find_samples, split_by_car
from unetlib.recipe import Recipe
from unetlib.training import TrainingError, fit
train, val = split_by_car(find_samples())
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000, -1))
try:
    fit(Recipe(size=256, epochs=1, precision="fp32"), train, val)
except TrainingError as error:
    print(error)
"""


@pytest.mark.fault("out of memory in a training step", "one sentence with the remedy")
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_a_batch_that_does_not_fit_in_memory_is_named():
    ended = subprocess.run(
        [sys.executable, "-c", TOO_LARGE], cwd=config.REPOSITORY, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "16 images of 256x256 pixels at once do not fit in the memory of the CPU" in ended.stdout
    assert "lower batch_size, size or widths" in ended.stdout


@pytest.mark.fault("a lock left by a killed program", "does not block anybody")
def test_a_lock_left_by_a_killed_process_does_not_block(tables, processes):
    process = start(processes, replace(RECIPE, epochs=400))
    while not find_runs():
        time.sleep(0.02)
    process.kill()
    process.join()
    (run,) = find_runs()
    with run_lock(run.folder) as held:
        assert held


def stop_after_two(run):
    if len(run.history) == 2:
        raise KeyboardInterrupt


@pytest.mark.fault(
    "last.pth or best.pth cut off, missing or of another epoch",
    "refused, with the remedy; retrain=True trains anew",
)
@pytest.mark.parametrize("name", ["last.pth", "best.pth"])
@pytest.mark.parametrize("damage", ["cut off", "missing", "of another epoch"])
def test_a_damaged_checkpoint_is_named_and_training_anew_is_the_remedy(tables, name, damage):
    run = fit(RECIPE, *tables, on_epoch=stop_after_two)
    if damage != "of another epoch":
        pretend_the_first_epoch_was_best(run)
        path = run.folder / name
        whole = path.read_bytes()
        path.unlink() if damage == "missing" else path.write_bytes(whole[:5000])
    else:
        best = torch.load(run.checkpoint, weights_only=True)
        pretend_the_first_epoch_was_best(run)
        best["info"]["epoch"] = 7
        torch.save(best, run.checkpoint)
    if (damage, name) != ("missing", "last.pth"):  # without it there is nothing to go on from
        with pytest.raises(RunError, match="damaged; train anew with fit"):
            fit(RECIPE, *tables)
    assert fit(RECIPE, *tables, retrain=True).finished


@pytest.mark.fault(
    "killed between last.pth and best.pth", "the best model is written again from last.pth"
)
def test_a_best_model_that_was_not_written_any_more_is_made_up_for(tables, uninterrupted):
    """Killed between last.pth and best.pth of an epoch that was the best so far."""
    run = fit(RECIPE, *tables, on_epoch=stop)
    best = run.model()
    run.checkpoint.unlink()
    (run.folder / "history.csv").unlink()
    again = fit(RECIPE, *tables)
    assert same_weights(again.model("best"), uninterrupted.model("best"))
    assert again.best_epoch > 1 or same_weights(again.model("best"), best)


@pytest.mark.fault("no room while a finished run is trained anew", "the finished run stays")
def test_a_full_disk_does_not_cost_the_run_that_was_to_be_trained_anew(tables):
    run = fit(replace(RECIPE, epochs=2), *tables)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
        with pytest.raises(TrainingError, match="cannot be written"):
            fit(replace(RECIPE, epochs=2), *tables, retrain=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert load_run(run.folder).finished
    assert same_weights(load_run(run.folder).model("last"), run.model("last"))


@pytest.mark.fault(
    "a run goes on on a machine with another number format",
    "weights and averages are taken over exactly",
)
@pytest.mark.parametrize("then", ["bf16", "fp32"])
def test_a_run_goes_on_in_another_number_format_and_memory_order(tables, then):
    """As on another machine: with optimizer averages in the order of their weights."""
    first = {"bf16": "fp32", "fp32": "bf16"}[then]
    accelerator = start_accelerator()
    begun = Learner.begin(replace(RECIPE, precision=first), 1e-2, 4, accelerator)
    images, masks = torch.rand(4, 1, 32, 32), torch.ones(4, 1, 32, 32)
    begun.step(images, masks)
    resumed = Learner.begin(replace(RECIPE, precision=then), 1e-2, 4, accelerator)
    state = io.BytesIO()
    torch.save(begun.state_dict(), state)
    state.seek(0)
    resumed.load_state_dict(torch.load(state, weights_only=True))
    for old, new in zip(begun.model.parameters(), resumed.model.parameters(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            average = resumed.optimizer.state[new][name]
            assert torch.equal(average, begun.optimizer.state[old][name])
            assert average.stride() == new.stride()
