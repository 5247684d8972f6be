import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from unetlib import config
from unetlib.carvana import DataError
from unetlib.dataset import CarvanaDataset
from unetlib.metrics import evaluate
from unetlib.model import load_model
from unetlib.training import Recipe, TrainingError, fit, load_run

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


# ---------------------------------------------------------------------------------------- recipe


def test_the_default_is_the_baseline_recipe():
    recipe = Recipe()
    assert (recipe.optimizer, recipe.lr, recipe.loss, recipe.schedule) == (
        "adam",
        1e-4,
        "bce",
        "constant",
    )
    assert (recipe.epochs, recipe.batch_size, recipe.size, recipe.seed) == (10, 16, 128, 0)
    assert (recipe.mask, recipe.augment, recipe.widths) == ("hard", "none", (64, 128, 256))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "mse"}, "loss='mse' is unknown: use one of 'bce', 'dice', 'bce_dice'"),
        ({"optimizer": "sgd"}, "optimizer='sgd' is unknown"),
        ({"schedule": "cosine"}, "schedule='cosine' is unknown"),
        ({"mask": "fuzzy"}, "mask='fuzzy' is unknown"),
        ({"augment": "wild"}, "augment='wild' is unknown"),
        ({"up_kernel": 4}, "up_kernel=4 is unknown"),
        ({"precision": "fp16"}, "precision='fp16' is unknown"),
        ({"lr": 0}, "lr=0 must be above 0"),
        ({"lr": float("nan")}, "lr=nan must be above 0"),
        ({"epochs": 0}, "epochs=0 must be above 0"),
        ({"batch_size": -1}, "batch_size=-1 must be above 0"),
        ({"size": 126}, "size=126 must be a multiple of 4"),
        ({"size": 0}, "size=0 must be a multiple of 4"),
        ({"size": 20, "widths": (4, 8, 16, 32)}, "size=20 must be a multiple of 8"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


def test_a_recipe_cannot_be_changed_only_replaced():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPE.lr = 1
    assert replace(RECIPE, lr=1e-3).lr == 1e-3


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


KILLED = """
import dataclasses, json, os, sys
import torch
from unetlib.carvana import find_samples, split_by_car
from unetlib.training import Recipe, fit
torch.set_num_threads(1)
def die(run):
    if len(run.history) == 2:
        os._exit(9)
fit(Recipe(**json.loads(sys.argv[1])), *split_by_car(find_samples()), on_epoch=die)
"""


def test_a_killed_process_loses_at_most_the_epoch_it_was_in(tables, uninterrupted):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(dataclasses.asdict(RECIPE))],
        cwd=config.REPOSITORY,
        capture_output=True,
    )
    assert killed.returncode == 9
    (folder,) = config.runs_dir().iterdir()
    assert len(load_run(folder).history) == 2
    resumed = fit(RECIPE, *tables)
    assert resumed.folder == folder
    assert same_weights(resumed.model("last"), uninterrupted.model("last"))


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


# ---------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("batch_size", [4, 16])
def test_a_loss_that_is_no_number_stops_the_training_with_the_remedy(tables, batch_size):
    with pytest.raises(TrainingError, match="became nan in epoch 1: lower the learning rate"):
        fit(replace(RECIPE, schedule="constant", lr=1e15, batch_size=batch_size), *tables)


def test_a_loss_that_is_no_number_keeps_earlier_epochs(tables):
    run = fit(RECIPE, *tables, on_epoch=stop)
    best = run.model()
    state = torch.load(run.folder / "last.pth", weights_only=True)
    state["model"]["head.weight"].fill_(float("nan"))
    torch.save(state, run.folder / "last.pth")
    with pytest.raises(TrainingError, match="became nan in epoch 2"):
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
