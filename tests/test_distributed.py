"""Two real processes (gloo on this computer's CPU) train one model, started by torchrun."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from unetlib import CarvanaDataset, Recipe, config, evaluate, fit, load_run

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="two processes on one GPU exclude each other"
)

# 16 training images in batches of 5: in the last batch of an epoch one process has no share.
DEFAULT = Recipe(
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
PLAIN = replace(DEFAULT, batch_norm=False)
BEGUN = replace(PLAIN, seed=1)
WEIGHTS = replace(DEFAULT, seed=2)
TRAINED_SPREAD = 0.05  # Dice, with batch statistics from half of the batch each

SCRIPT = """
import json, sys
import torch
from unetlib.carvana import find_samples, split_by_car
from unetlib.dataset import CarvanaDataset
from unetlib.learner import Learner, start_accelerator
from unetlib.recipe import Recipe
from unetlib.training import fit

recipes, weights = json.loads(sys.argv[1]), sys.argv[2]
train, val = split_by_car(find_samples())
found = {}
for name, settings in recipes.items():
    found[name] = str(fit(Recipe(**settings), train, val).folder)

accelerator = start_accelerator()
learner = Learner.begin(Recipe(**recipes["default"]), 1e-2, 4, accelerator)
state = torch.load(weights, weights_only=True)["model"]
learner.model.load_state_dict(state)
found["gathered"] = {
    name: learner.validate(CarvanaDataset(table, 32), 5)[0]
    for name, table in {"val": val, "train": train, "one image": val.iloc[:1]}.items()
}
if accelerator.is_main_process:
    print(json.dumps(found))
"""


def torchrun(*arguments):
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        + [str(argument) for argument in arguments],
        cwd=config.REPOSITORY,
        env=dict(os.environ, PYTHONPATH=str(config.REPOSITORY), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    return {name: str(tmp_path_factory.mktemp(name)) for name in ("one", "two")}


@pytest.fixture(scope="module")
def single(tables, homes, one_thread):
    """The same recipes in this process alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNETLIB_HOME", homes["one"])
        recipes = dict(default=DEFAULT, plain=PLAIN, begun=BEGUN, weights=WEIGHTS)
        return {name: fit(recipe, *tables) for name, recipe in recipes.items()}


@pytest.fixture(scope="module")
def double(single, tables, homes, data_set, tmp_path_factory):
    """What two processes made of them; `begun` had one epoch by one process before."""

    def stop(run):
        raise KeyboardInterrupt

    script = tmp_path_factory.mktemp("script") / "two.py"
    script.write_text(SCRIPT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNETLIB_HOME", homes["two"])
        patch.setenv("UNETLIB_DATA", str(data_set))
        begun = fit(BEGUN, *tables, on_epoch=stop)
        assert len(begun.history) == 1 and begun.details["processes"] == 1
        recipes = dict(default=asdict(DEFAULT), plain=asdict(PLAIN), begun=asdict(BEGUN))
        ended = torchrun(script, json.dumps(recipes), single["weights"].folder / "last.pth")
        found = json.loads(ended.stdout.strip().splitlines()[-1])
        runs = {name: load_run(found[name]) for name in recipes}
    return dict(runs=runs, gathered=found["gathered"], out=ended.stdout, err=ended.stderr)


def largest_difference(one, other) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((first - second).abs().max().item() for first, second in pairs)


def test_without_batch_norm_two_processes_compute_what_one_does(single, double):
    one, two = single["plain"], double["runs"]["plain"]
    assert two.details["processes"] == 2
    np.testing.assert_allclose(two.history["train_loss"], one.history["train_loss"], atol=1e-5)
    np.testing.assert_allclose(two.history["val_loss"], one.history["val_loss"], atol=1e-5)
    assert largest_difference(one.model("last"), two.model("last")) < 1e-5  # after 12 steps


def test_a_run_begun_with_one_process_is_finished_by_two(single, double):
    one, two = single["begun"], double["runs"]["begun"]
    assert len(two.history) == 3 and two.details["processes"] == 2
    assert largest_difference(one.model("last"), two.model("last")) < 1e-5


@pytest.mark.parametrize("part", ["val", "train", "one image"])
def test_the_gathered_dice_of_the_same_weights_is_exactly_equal(single, double, tables, part):
    table = {"train": tables[0], "val": tables[1], "one image": tables[1].iloc[:1]}[part]
    model = single["weights"].model("last")
    expected = evaluate(model, CarvanaDataset(table, 32))
    gathered = double["gathered"][part]
    assert gathered["val_dice"] == np.float64(expected["dice"].to_numpy(float).mean())
    assert gathered["val_iou"] == np.float64(expected["iou"].to_numpy(float).mean())


def test_with_batch_norm_the_trained_dice_agrees_within_a_spread(single, double):
    one, two = single["default"], double["runs"]["default"]
    assert two.history["val_dice"].iloc[-1] == pytest.approx(
        one.history["val_dice"].iloc[-1], abs=TRAINED_SPREAD
    )


def test_only_the_main_process_speaks(double):
    assert double["out"].count("goes on after epoch 1") == 1
    assert double["err"].count("decoding to 32x32: 100%") <= 2  # train and val, once each


def test_the_command_line_trains_on_two_processes(data_set, tmp_path, monkeypatch):
    monkeypatch.setenv("UNETLIB_PROFILE", "ci")
    monkeypatch.setenv("UNETLIB_DATA", str(data_set))
    ended = torchrun("-m", "unetlib", "train", "--size", 32, "--epochs", 1, "--json")
    result = json.loads(ended.stdout.strip().splitlines()[-1])
    assert result["processes"] == 2 and result["finished"]
    assert os.path.exists(result["checkpoint"])
    assert torch.load(result["checkpoint"], weights_only=True)["size"] == 32
