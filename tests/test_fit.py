"""Runs on disk: looked up, begun, stopped, killed, resumed to the same weights."""

import dataclasses
import json
import os
import random
import shutil
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from other_process import FORKS, in_another_process, start
from PIL import Image

from unetlib import (
    CarvanaDataset,
    DataError,
    ModelFileError,
    Recipe,
    RunError,
    TrainingError,
    UNet,
    bce_loss,
    clean_runs,
    compare_runs,
    evaluate,
    find_runs,
    find_samples,
    fit,
    load_model,
    load_run,
    plot_history,
    runs_dir,
    split_by_group,
)
from unetlib.store.checkpoint import restore
from unetlib.store.model_file import load_plain, save_atomically
from unetlib.store.question import restored
from unetlib.training import Learner

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
ONE_EPOCH = replace(RECIPE, epochs=1)


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


def assert_same_run(run, other) -> None:
    for which in ("last", "best"):
        assert same_weights(run.model(which), other.model(which))
    pd.testing.assert_frame_equal(without_seconds(run.history), without_seconds(other.history))


# ------------------------------------------------------------------------------------ what it does


def test_training_learns(trained):
    assert trained.best_dice > 0.85
    assert trained.history["train_loss"].iloc[-1] < trained.history["train_loss"].iloc[0] / 2


def test_the_history_has_a_row_per_epoch(trained):
    columns = ["epoch", "lr", "train_loss", "val_loss", "val_dice", "val_iou", "seconds"]
    assert list(trained.history.columns) == columns
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
    assert Recipe(**content["info"]["recipe"]) == trained.recipe
    assert content["info"]["val_dice"] == trained.best_dice


def test_a_runs_files_are_plain_and_whole(uninterrupted):
    names = {path.name for path in uninterrupted.folder.iterdir()}
    assert names == {"recipe.json", "run.json", "history.csv", "best.pth", "last.pth"}
    settings = json.loads((uninterrupted.folder / "recipe.json").read_text())
    assert set(settings) == {field.name for field in dataclasses.fields(Recipe)}
    assert restored(settings) == RECIPE
    assert json.loads((uninterrupted.folder / "run.json").read_text()) == uninterrupted.details
    history = pd.read_csv(uninterrupted.folder / "history.csv")
    pd.testing.assert_frame_equal(history, uninterrupted.history, check_dtype=False)


def test_the_run_knows_its_data_and_its_speed(trained, tables):
    assert trained.details["train_ids"] == list(tables[0]["id"])
    assert trained.details["val_ids"] == list(tables[1]["id"])
    assert trained.images_per_second == pytest.approx(6 * 16 / trained.seconds)
    assert trained.precision == "fp32"
    assert torch.device(trained.device)


def test_auto_precision_becomes_one_that_is_written_down(tables):
    run = fit(Recipe(widths=(2, 4), size=8, epochs=1), *tables)
    assert run.recipe.precision == "auto"
    assert run.precision in ("fp32", "bf16")


def test_on_epoch_sees_the_run_grow_and_its_predictions(tables):
    seen = []

    def note(run):
        images, coverage, probabilities = run.preview
        assert images.shape == coverage.shape == probabilities.shape == (4, 32, 32)
        assert 0 <= probabilities.min() <= probabilities.max() <= 1
        seen.append((len(run.history), run.finished))

    assert fit(RECIPE, *tables, on_epoch=note).finished
    assert seen == [(1, False), (2, False), (3, True)]


def test_what_runs_on_epoch_may_tidy_up_and_costs_the_run_nothing(tables, uninterrupted):
    """Not even where nothing is to be kept: it is being trained."""
    before = fit(ONE_EPOCH, *tables)
    deleted = []
    run = fit(RECIPE, *tables, on_epoch=lambda _: deleted.extend(clean_runs(keep=0)))
    assert deleted == [before.folder.name]
    assert_same_run(load_run(run.folder), uninterrupted)


# ------------------------------------------------------------------- the same question or another


def test_the_same_question_is_answered_at_once(tables, capsys):
    first = fit(ONE_EPOCH, *tables)
    capsys.readouterr()
    epochs = []
    again = fit(ONE_EPOCH, *tables, on_epoch=epochs.append)
    assert epochs == []
    assert again.folder == first.folder
    pd.testing.assert_frame_equal(again.history, first.history)
    (line,) = capsys.readouterr().out.splitlines()
    assert first.folder.name in line
    assert f"{first.best_dice:.4f}" in line and "retrain=True" in line


def test_retrain_trains_anew_to_the_same_weights(tables):
    first = fit(ONE_EPOCH, *tables)
    weights, epochs = first.model(), []
    again = fit(ONE_EPOCH, *tables, on_epoch=epochs.append, retrain=True)
    assert len(epochs) == 1
    assert same_weights(again.model(), weights)


@pytest.mark.parametrize("change", [{"lr": 9e-3}, {"seed": 1}, {"epochs": 2}, {"mask": "soft"}])
def test_a_changed_number_is_another_run(tables, uninterrupted, change):
    other = fit(replace(RECIPE, **change), *tables)
    assert other.folder.name != uninterrupted.folder.name
    assert not same_weights(other.model("last"), uninterrupted.model("last"))


def test_other_data_or_another_profile_is_another_run(tables, monkeypatch):
    train, val = tables
    runs = [fit(ONE_EPOCH, *pair) for pair in ((train, val), (train[1:], val), (train, val[1:]))]
    monkeypatch.setenv("UNETLIB_PROFILE", "full")
    runs.append(fit(ONE_EPOCH, *tables))
    assert len({run.folder for run in runs}) == 4


def test_a_thread_trains_the_same_run(tables, uninterrupted):
    with ThreadPoolExecutor() as pool:
        assert_same_run(pool.submit(fit, RECIPE, *tables).result(), uninterrupted)


def test_the_seed_alone_makes_the_run(tables, uninterrupted):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert_same_run(fit(RECIPE, *tables), uninterrupted)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_pytorchs_default_type_changes_nothing(tables, uninterrupted, kind):
    torch.set_default_dtype(kind)
    try:
        assert_same_run(fit(RECIPE, *tables), uninterrupted)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.fault("PyTorch's default device is meta, which has no numbers", "refused; runs load")
def test_nothing_is_trained_on_meta_and_models_load_all_the_same(tables, trained):
    expected = trained.model()
    with torch.device("meta"):
        with pytest.raises(ValueError, match="meta"):
            fit(RECIPE, *tables)
        assert same_weights(trained.model(), expected)
    assert find_runs() == []


def test_training_and_validation_losses_are_against_the_same_kind_of_masks(tables):
    recipe = replace(ONE_EPOCH, mask="soft", loss="bce")
    run, model = fit(recipe, *tables), fit(recipe, *tables).model("last")
    hard, soft = (CarvanaDataset(tables[1], 32, mask=kind) for kind in ("hard", "soft"))
    losses = [evaluate(model, one, loss=bce_loss)["loss"].mean() for one in (hard, soft)]
    assert run.history["val_loss"][0] == pytest.approx(losses[1], abs=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-4
    assert run.best_dice == pytest.approx(evaluate(model, hard)["dice"].mean(), abs=1e-6)


# ------------------------------------------------------------------------------------ empty masks


class Blind(torch.nn.Conv2d):
    """Finds nothing, whatever it has learned."""

    def __init__(self):
        super().__init__(1, 1, 1)

    def forward(self, x):
        return super().forward(x).clamp(-1, 1) - 20


BLIND = Recipe(network=Blind, size=32, epochs=2, batch_size=5, precision="fp32")


@pytest.fixture
def mostly_empty(tables, tmp_path):
    """(train, val): in 3 of the 4 validation images there is nothing."""
    Image.new("L", (60, 40)).save(tmp_path / "empty.png")
    val = tables[1].copy()
    val.loc[:2, "mask"] = str(tmp_path / "empty.png")
    return tables[0], val


def test_the_dice_of_the_images_with_an_object_stands_beside_that_of_all(mostly_empty, recwarn):
    run = fit(RECIPE, *mostly_empty)
    table = evaluate(run.model(), CarvanaDataset(mostly_empty[1], 32))
    assert run.best_dice == pytest.approx(table["dice"].mean(), abs=1e-6)
    assert run.best_dice_objects == pytest.approx(table["dice"][3], abs=1e-6)
    assert run.best_dice_objects != run.best_dice
    compared = compare_runs([run]).iloc[0]
    assert (
        compared["dice_objects"] == run.best_dice_objects == load_run(run.folder).best_dice_objects
    )
    assert plot_history(run).axes[1].lines[1].get_ydata()[-1] == run.history["val_dice_objects"][2]
    assert "finds no" not in " ".join(str(one.message) for one in recwarn)


def test_a_run_on_empty_masks_goes_on_to_the_same_history(mostly_empty):
    expected = without_seconds(fit(RECIPE, *mostly_empty).history)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        fit(RECIPE, *mostly_empty, retrain=True, on_epoch=stop)
        run = fit(RECIPE, *mostly_empty)
    pd.testing.assert_frame_equal(without_seconds(run.history), expected)
    metric = fit(RECIPE, *mostly_empty, metrics={"area": area})
    assert metric.best_dice_objects == run.best_dice_objects
    assert 0 < metric.at_best("val_area") < 1


def area(probabilities, masks):
    return probabilities.mean((1, 2, 3))


@pytest.mark.fault("most masks are empty, and the model finds nothing: Dice 0.75", "a warning")
def test_a_model_that_finds_nothing_is_named_each_time_it_is_asked_for(mostly_empty, tables):
    for _ in ("trained", "found again"):
        with pytest.warns(UserWarning) as warned:
            run = fit(BLIND, *mostly_empty)
        (said,) = [str(one.message) for one in warned if run.folder.name in str(one.message)]
        assert "bce_dice" in said
        assert (run.best_dice, run.best_dice_objects) == (0.75, 0)
    with pytest.warns(UserWarning, match="bce_dice"):  # where every mask has an object, too
        assert fit(BLIND, *tables).best_dice == 0


@pytest.mark.fault("the same pictures in training and validation", "a warning counts them")
def test_pictures_that_are_in_both_tables_are_counted(tables):
    with pytest.warns(UserWarning, match="4 pictures"):
        fit(ONE_EPOCH, tables[0], pd.concat([tables[1], tables[0].iloc[:4]]))


@pytest.mark.fault("objects too small for the size that is trained at", "a warning counts them")
def test_masks_that_lose_their_object_are_counted(tables, tmp_path):
    train = tables[0].copy()
    for row in range(2):  # one pixel of 60x40: gone at 8x8
        dot = np.zeros((40, 60), np.uint8)
        dot[20, 30] = 255
        Image.fromarray(dot).save(tmp_path / f"dot{row}.png")
        train.loc[row, "mask"] = str(tmp_path / f"dot{row}.png")
    with pytest.warns(UserWarning, match="2 masks"):
        fit(replace(ONE_EPOCH, size=8), train, tables[1])


@pytest.mark.fault("no validation mask has an object", "a warning")
def test_a_validation_set_without_any_object_is_named(mostly_empty):
    train, val = mostly_empty
    with pytest.warns(UserWarning, match="validation mask"):
        run = fit(ONE_EPOCH, train, val.iloc[:3])
    assert np.isnan(run.best_dice_objects) and run.best_epoch == 1


def test_the_epoch_that_finds_most_objects_can_be_kept(mostly_empty):
    run = fit(RECIPE, *mostly_empty, best_by=("dice_objects", "max"))
    assert run.best_epoch == run.history["val_dice_objects"].argmax() + 1
    stopped = fit(replace(RECIPE, seed=1), *mostly_empty, on_epoch=stop, best_by=run.best_by)
    again = fit(replace(RECIPE, seed=1), *mostly_empty, best_by=run.best_by)
    assert len(stopped.history) == 1 and again.finished
    assert load_run(again.folder).best_by == ("dice_objects", "max")


def test_where_every_mask_has_an_object_it_is_the_epoch_of_the_best_dice(tables, uninterrupted):
    run = fit(RECIPE, *tables, best_by=("dice_objects", "max"))
    assert run.best_epoch == uninterrupted.best_epoch
    assert run.best_dice_objects == run.best_dice
    assert "val_dice_objects" not in run.history


# ----------------------------------------------------------------------------- stopped and resumed


def stop(run):
    raise KeyboardInterrupt


@contextmanager
def stopped_in_the_first_step():
    """The stop button, pressed while a network computes."""

    def press(module, inputs):
        if isinstance(module, UNet):
            raise KeyboardInterrupt

    hook = torch.nn.modules.module.register_module_forward_pre_hook(press)
    try:
        yield
    finally:
        hook.remove()


def test_a_stopped_run_keeps_its_epochs_and_goes_on_to_the_same_weights(
    tables, uninterrupted, capsys
):
    run = fit(RECIPE, *tables, on_epoch=stop)
    assert len(run.history) == 1 and not run.finished
    assert "after epoch 1 of 3" in capsys.readouterr().out
    (run.folder / "next.0123456789ab.part.pth").write_bytes(b"half a file of a killed process")
    assert run.model("best").architecture["widths"] == (4, 8)
    resumed = fit(RECIPE, *tables)
    assert "after epoch 1" in capsys.readouterr().out
    assert_same_run(resumed, uninterrupted)
    assert leftovers(run.folder) == []


def test_a_stop_before_the_first_epoch_leaves_nothing_and_says_so(tables):
    with stopped_in_the_first_step():
        run = fit(RECIPE, *tables)
    assert not run.finished and run.best_epoch == 0
    assert np.isnan(run.best_dice) and np.isnan(run.best_iou)
    for use in (lambda: run.model("last"), lambda: run.checkpoint):
        with pytest.raises(ModelFileError, match=run.folder.name):
            use()
    assert find_runs() == []


def train_here(recipe, begun) -> bool:
    tables = split_by_group(find_samples())
    begun.set()
    return fit(recipe, *tables).finished


def start_training(recipe):
    """A process that has just begun to train, and the connection for what it returns."""
    begun = FORKS.Event()
    process, answer = start(train_here, recipe, begun)
    assert begun.wait(60)
    return process, answer


def wait_for_an_epoch() -> None:
    while not list(runs_dir().glob("*/history.csv")):
        time.sleep(0.01)


def kill_until_done(recipe, kills, longest) -> int:
    """SIGKILL at random moments, `kills` times; then let it finish."""
    rng, survived = random.Random(0), 0
    for _ in range(kills):
        process, _ = start_training(recipe)
        time.sleep(rng.uniform(0, longest))
        process.kill()
        process.join()
        survived += process.exitcode == -signal.SIGKILL
    assert in_another_process(train_here, recipe, FORKS.Event())
    return survived


def leftovers(folder):
    return [path.name for path in folder.iterdir() if ".part" in path.name]


@pytest.mark.fault(
    "kill -9 while training, at random moments",
    "at most the epoch it was in is lost; the final weights are an undisturbed run's",
)
def test_a_killed_process_loses_at_most_the_epoch_it_was_in(uninterrupted):
    assert kill_until_done(RECIPE, kills=3, longest=0.1) >= 1
    (run,) = find_runs()
    assert_same_run(run, uninterrupted)


@pytest.mark.fault(
    "kill -9 a dozen times, also while files are written",
    "the final weights are an undisturbed run's, byte for byte",
)
@pytest.mark.slow
def test_a_dozen_kills_leave_the_weights_of_an_undisturbed_run(tables):
    """A wider net, so that much of the time goes into writing 4 MB after each short epoch."""
    recipe = replace(RECIPE, widths=(32, 64, 96), size=16, epochs=25)
    assert kill_until_done(recipe, kills=14, longest=0.2) >= 10
    (killed,) = find_runs()
    shutil.move(killed.folder, killed.folder.with_name("killed"))
    undisturbed = fit(recipe, *tables)
    assert_same_run(load_run(killed.folder.with_name("killed")), undisturbed)


@pytest.mark.fault("Ctrl-C while training", "the run keeps its epochs and goes on later")
def test_a_stopped_process_ends_cleanly_and_can_go_on(tables):
    recipe = replace(RECIPE, epochs=400)
    process, answer = start_training(recipe)
    wait_for_an_epoch()
    os.kill(process.pid, signal.SIGINT)
    assert answer.recv() is False  # fit returned, with a run that is not finished
    process.join()
    (run,) = find_runs()
    assert 1 <= len(run.history) < 400
    assert leftovers(run.folder) == []
    again = fit(recipe, *tables, on_epoch=stop)
    assert len(again.history) == len(run.history) + 1


@pytest.mark.fault(
    "two programs train one run at once", "the second waits, says so, and gets the first one's run"
)
def test_a_second_program_waits_for_the_first_and_gets_its_run(tables, capsys):
    recipe = replace(RECIPE, epochs=12)
    process, answer = start_training(recipe)
    wait_for_an_epoch()
    run = fit(recipe, *tables)
    assert answer.recv() and run.finished
    process.join()
    waiting, trained = capsys.readouterr().out.splitlines()
    assert "waiting" in waiting and run.folder.name in waiting
    assert "retrain=True" in trained


@pytest.mark.fault("killed between two files of a run", "goes on; no epoch is lost")
@pytest.mark.parametrize("not_yet_written", [["history.csv"], ["history.csv", "best.pth"]], ids=str)
def test_a_run_killed_between_its_files_still_goes_on(tables, uninterrupted, not_yet_written):
    """last.pth says which epochs count; best.pth and then history.csv follow it."""
    run = fit(RECIPE, *tables, on_epoch=stop)
    for name in not_yet_written:
        (run.folder / name).unlink()
    assert_same_run(fit(RECIPE, *tables), uninterrupted)
    assert_same_run(load_run(run.folder), uninterrupted)


@pytest.mark.fault("killed before best.pth was renewed", "the better one is written again")
def test_a_best_model_of_the_epoch_before_is_made_up_for(tables, uninterrupted):
    run = fit(RECIPE, *tables, on_epoch=stop)
    first = run.checkpoint.read_bytes()
    run = fit(RECIPE, *tables, on_epoch=stop)
    assert run.best_epoch == 2
    run.checkpoint.write_bytes(first)
    assert_same_run(fit(RECIPE, *tables), uninterrupted)


@pytest.mark.fault(
    "a run goes on on a machine with another number format",
    "weights and averages are taken over exactly",
)
@pytest.mark.parametrize("then", ["bf16", "fp32"])
def test_a_run_goes_on_in_another_number_format_and_memory_order(tables, tmp_path, then):
    """As on another machine: with optimizer averages in the order of their weights."""
    formats = {"bf16": "fp32", "fp32": "bf16"}
    begun, resumed = (
        Learner(replace(RECIPE, precision=precision), 4, device=torch.device("cpu"))
        for precision in (formats[then], then)
    )
    begun.step(torch.rand(4, 1, 32, 32), torch.ones(4, 1, 32, 32))
    state = {
        part: getattr(begun, part).state_dict() for part in ("model", "optimizer", "scheduler")
    }
    save_atomically(state, tmp_path / "last.pth")
    restore(resumed, load_plain(tmp_path / "last.pth"), tmp_path)
    assert same_weights(resumed.model, begun.model)
    for old, new in zip(begun.model.parameters(), resumed.model.parameters(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            average = resumed.optimizer.state[new][name]
            assert torch.equal(average, begun.optimizer.state[old][name])
            assert average.stride() == new.stride()


# -------------------------------------------------------------------------------- a longer recipe

CONSTANT = replace(RECIPE, schedule="constant")


def test_a_longer_recipe_goes_on_from_the_shorter_run(tables, capsys):
    short = fit(replace(CONSTANT, epochs=2), *tables)
    capsys.readouterr()
    longer = fit(CONSTANT, *tables, on_epoch=stop)
    line = capsys.readouterr().out.splitlines()[0]
    assert short.folder.name in line and "epoch 2" in line
    assert longer.finished and len(longer.history) == 3
    shutil.rmtree(short.folder)
    direct = fit(CONSTANT, *tables, retrain=True)
    assert same_weights(longer.model("last"), direct.model("last"))


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


def test_a_shorter_run_that_is_being_trained_is_left_alone(tables, capsys):
    """Two trainings in one program: the inner one begins at the start."""
    longer = []

    def train_a_longer_one(run):
        if not longer:
            longer.append(fit(CONSTANT, *tables))

    assert fit(replace(CONSTANT, epochs=1), *tables, on_epoch=train_a_longer_one).finished
    assert longer[0].finished
    assert "goes on" not in capsys.readouterr().out


def test_a_one_cycle_run_cannot_be_made_longer_and_says_so(tables, uninterrupted, capsys):
    short = fit(replace(RECIPE, epochs=2), *tables)
    capsys.readouterr()
    assert_same_run(fit(RECIPE, *tables), uninterrupted)
    assert short.folder.name in capsys.readouterr().out


def test_a_run_stopped_in_its_half_size_epochs_does_not_disturb_shorter_recipes(tables):
    fit(replace(RECIPE, epochs=6, half_size_epochs=5), *tables, on_epoch=stop)
    assert fit(replace(RECIPE, epochs=2), *tables).finished


@pytest.mark.parametrize("change", [{"seed": 1}, {"half_size_epochs": 1}], ids=str)
def test_a_run_of_other_settings_is_not_gone_on_from(tables, capsys, change):
    fit(replace(CONSTANT, epochs=2, **change), *tables)
    fit(replace(CONSTANT, epochs=3), *tables)
    assert "goes on" not in capsys.readouterr().out


def test_retraining_keeps_the_old_run_until_the_new_one_has_an_epoch(tables):
    recipe = replace(CONSTANT, epochs=2)
    first = fit(recipe, *tables)
    with stopped_in_the_first_step():
        fit(recipe, *tables, retrain=True)
    assert load_run(first.folder).finished
    fit(recipe, *tables, retrain=True, on_epoch=stop)
    assert len(load_run(first.folder).history) == 1


# ---------------------------------------------------------------------------------------- failures


def test_a_loss_that_is_not_a_number_keeps_earlier_epochs(tables):
    run = fit(RECIPE, *tables, on_epoch=stop)
    best = run.model()
    state = torch.load(run.folder / "last.pth", weights_only=True)
    state["model"]["head.weight"].fill_(float("nan"))
    torch.save(state, run.folder / "last.pth")
    with pytest.raises(TrainingError, match="nan"):
        fit(RECIPE, *tables)
    kept = load_run(run.folder)
    assert len(kept.history) == 1
    assert same_weights(kept.model(), best)


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_table_without_rows_is_refused_by_name(tables, name):
    given = dict(zip(("train", "val"), tables, strict=True))
    with pytest.raises(DataError, match=f"'{name}'"):
        fit(RECIPE, **given | {name: given[name].iloc[:0]})


@contextmanager
def files_of_at_most(room: int):
    """A real limit of the system on the size of files, which stands in for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.fault(
    "no room for a run's files", "one sentence with the remedy; the run goes on later"
)
@pytest.mark.parametrize("room", [4_000, 30_000], ids=["no file fits", "the checkpoint does not"])
def test_a_disk_without_room_is_named_and_the_run_goes_on_later(tables, uninterrupted, room):
    begun = fit(RECIPE, *tables, on_epoch=stop)
    with (
        pytest.raises(TrainingError, match=rf"{begun.folder.name}.*UNETLIB_HOME"),
        files_of_at_most(room),
    ):
        fit(RECIPE, *tables)
    (run,) = find_runs()
    assert len(run.history) == 1
    assert leftovers(run.folder) == []
    assert_same_run(fit(RECIPE, *tables), uninterrupted)


@pytest.mark.fault("no room while a finished run is trained again", "the finished run stays")
def test_a_full_disk_does_not_cost_the_run_that_was_to_be_trained_anew(tables):
    run = fit(ONE_EPOCH, *tables)
    weights = run.model("last")
    with pytest.raises(TrainingError, match=run.folder.name), files_of_at_most(30_000):
        fit(ONE_EPOCH, *tables, retrain=True)
    assert load_run(run.folder).finished
    assert same_weights(load_run(run.folder).model("last"), weights)


def stop_after_two(run):
    if len(run.history) == 2:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def two_epochs(tables, one_thread, tmp_path_factory):
    """The home of a run that was stopped after its second epoch, which was not the best."""
    home = tmp_path_factory.mktemp("two epochs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNETLIB_HOME", str(home))
        patch.delenv("UNETLIB_PROFILE", raising=False)
        pretend_the_first_epoch_was_best(fit(RECIPE, *tables, on_epoch=stop_after_two))
    return home


@pytest.mark.fault(
    "last.pth or best.pth cut off, missing or of another epoch",
    "refused, with the remedy; retrain=True trains again",
)
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("last.pth", "cut off"),
        ("last.pth", "without batch_size"),
        ("last.pth", "without metrics"),
        ("best.pth", "cut off"),
        ("best.pth", "missing"),
        ("best.pth", "of another epoch"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_training_anew_is_the_remedy(
    tables, two_epochs, tmp_path, name, damage
):
    shutil.copytree(two_epochs, tmp_path / "home")
    (run,) = find_runs()
    path = run.folder / name
    content = torch.load(path, weights_only=True)
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "missing":
        path.unlink()
    elif damage == "of another epoch":
        content["info"]["epoch"] = 7
        torch.save(content, path)
    else:
        del content[damage.removeprefix("without ")]
        torch.save(content, path)
    with pytest.raises(RunError, match=rf"{run.folder.name}.*retrain=True"):
        fit(RECIPE, *tables)
    assert fit(RECIPE, *tables, retrain=True).finished


@pytest.mark.fault("last.pth missing", "there is nothing to go on from: it begins at the start")
def test_a_run_without_its_last_state_begins_at_the_start(tables, two_epochs, tmp_path):
    shutil.copytree(two_epochs, tmp_path / "home")
    (run,) = find_runs()
    (run.folder / "last.pth").unlink()
    epochs = []
    assert fit(RECIPE, *tables, on_epoch=epochs.append).finished
    assert len(epochs) == 3
