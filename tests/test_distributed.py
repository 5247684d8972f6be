"""Two real processes (gloo on this computer's CPU) train one model."""

import io
import json
import os
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from other_process import start

from unetlib import (
    REPOSITORY,
    CarvanaDataset,
    Recipe,
    clean_runs,
    decode_once,
    evaluate,
    fit,
    load_run,
)
from unetlib.__main__ import main
from unetlib.store.question import question_of
from unetlib.store.runs import run_folder, run_lock
from unetlib.support.memory import fingerprint
from unetlib.support.processes import SharedLearner, start_accelerator
from unetlib.training import TrainingError

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


def moved(images, masks):
    """An own augmentation of whole batches, of which each process keeps its share."""
    rows = int(torch.randint(8, ()))
    return images.roll(rows, 2) + 0.1 * torch.rand_like(images), masks.roll(rows, 2)


def rim(probabilities, masks):
    return (probabilities[..., 1:] - masks[..., :-1]).abs().mean((1, 2, 3))


def own_net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 1, 1))


OWN = Recipe(network=own_net, augment=moved, optimizer="sgd", patience=2, size=32, lr=1e-2)
OWN = replace(OWN, batch_size=5, epochs=3, precision="fp32", loss="bce_dice")
SETTINGS = {"own": dict(metrics={"rim": rim}, best_by=("rim", "min"))}
TAKEN = replace(PLAIN, seed=2)  # being trained by this process while the two ask for it
TRAINED_SPREAD = 0.05  # Dice, with batch statistics from half of the batch each


def parts(tables) -> dict:
    """Tables to judge; of the one image, only one process has a share."""
    train, val = tables
    return {"train": train, "val": val, "one image": val.iloc[:1], "an empty mask": val}


def dataset_of(name: str, tables) -> CarvanaDataset:
    dataset = CarvanaDataset(parts(tables)[name], 32, decode=decode_once)
    if name == "an empty mask":
        dataset.coverage = dataset.coverage.copy()
        dataset.coverage[1] = 0
    return dataset


def one_of_two(rank: int, port: int, tables, weights: Path) -> dict:
    """What a process does that torchrun has started as the number ``rank`` of two."""
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        runs = {
            name: fit(recipe, *tables, **SETTINGS.get(name, {})).folder
            for name, recipe in RECIPES.items()
        }
        learner = SharedLearner(DEFAULT, 4, 1e-2, start_accelerator())
        learner.model.load_state_dict(torch.load(weights, weights_only=True)["model"])
        gathered = {name: learner.validate(dataset_of(name, tables)) for name in parts(tables)}
        if rank == 0:
            with pytest.raises(TrainingError) as refused:
                fit(TAKEN, *tables)
        said = out.getvalue()
        os.environ["UNETLIB_PROFILE"] = "ci"
        status = main(["train", "--size", "32", "--epochs", "1", "--json"])
    assert status == 0
    return dict(
        runs=runs,
        gathered=gathered,
        refused=str(refused.value) if rank == 0 else "",
        out=said,
        err=err.getvalue(),
        printed=out.getvalue(),
    )


RECIPES = dict(default=DEFAULT, plain=PLAIN, begun=BEGUN, own=OWN)


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    return {name: str(tmp_path_factory.mktemp(name)) for name in ("one", "two")}


@pytest.fixture(scope="module")
def single(tables, homes, one_thread):
    """The same recipes in this process alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNETLIB_HOME", homes["one"])
        return {
            name: fit(recipe, *tables, **SETTINGS.get(name, {})) for name, recipe in RECIPES.items()
        }


def stop(run):
    raise KeyboardInterrupt


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def double(single, tables, homes, data_set):
    """What each of two processes made of them; `begun` had one epoch by one process before."""
    weights, port = single["default"].folder / "last.pth", free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNETLIB_HOME", homes["two"])
        patch.setenv("UNETLIB_DATA", str(data_set))
        begun = fit(BEGUN, *tables, on_epoch=stop)
        assert len(begun.history) == 1 and begun.details["processes"] == 1
        clean_runs(keep=[begun])  # nothing is decoded yet
        data = "-".join(map(fingerprint, tables))
        taken = run_folder(question_of(TAKEN, data, ("dice", "max"), {}))
        with run_lock(taken):
            started = [start(one_of_two, rank, port, tables, weights) for rank in range(2)]
            found = [answer.recv() for _, answer in started]
        for process, _ in started:
            process.join()
        for result in found:
            if isinstance(result, Exception):
                raise result
        runs = {name: load_run(folder) for name, folder in found[0]["runs"].items()}
    return dict(runs=runs, main=found[0], other=found[1], taken=taken)


def largest_difference(one, other) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((first - second).abs().max().item() for first, second in pairs)


@pytest.mark.parametrize("name", ["plain", "own"])
def test_without_batch_norm_two_processes_compute_what_one_does(single, double, name):
    one, two = single[name], double["runs"][name]
    assert two.details["processes"] == 2
    np.testing.assert_allclose(two.history["train_loss"], one.history["train_loss"], atol=1e-5)
    np.testing.assert_allclose(two.history["val_loss"], one.history["val_loss"], atol=1e-5)
    model = two.model("last", network=one.network)
    assert largest_difference(one.model("last"), model) < 1e-5  # after 12 steps
    assert one.folder.name == two.folder.name and one.best_epoch == two.best_epoch
    if name == "own":
        np.testing.assert_allclose(two.history["val_rim"], one.history["val_rim"], atol=1e-5)


def test_a_run_begun_with_one_process_is_finished_by_two(single, double):
    one, two = single["begun"], double["runs"]["begun"]
    assert len(two.history) == 3 and two.details["processes"] == 2
    assert largest_difference(one.model("last"), two.model("last")) < 1e-5


@pytest.mark.parametrize("part", ["val", "train", "one image", "an empty mask"])
def test_the_gathered_dice_of_the_same_weights_is_exactly_equal(single, double, tables, part):
    model = single["default"].model("last")
    expected = evaluate(model, dataset_of(part, tables))
    for process in ("main", "other"):
        gathered = double[process]["gathered"][part]
        assert gathered["val_dice"] == expected["dice"].mean()
        assert gathered["val_iou"] == expected["iou"].mean()
        with_object = expected["dice"].drop(index=1) if part == "an empty mask" else None
        assert ("val_dice_objects" in gathered) == (with_object is not None)
        if with_object is not None:
            assert gathered["val_dice_objects"] == with_object.mean()


def test_with_batch_norm_the_trained_dice_agrees_within_a_spread(single, double):
    one, two = single["default"], double["runs"]["default"]
    assert two.history["val_dice"].iloc[-1] == pytest.approx(
        one.history["val_dice"].iloc[-1], abs=TRAINED_SPREAD
    )


def test_only_the_main_process_speaks_and_decodes(double):
    assert double["main"]["out"].count("goes on after epoch 1") == 1
    assert double["main"]["err"].count("decoding at size 32: 100%") == 2  # train and val, once each
    assert double["other"]["printed"] == double["other"]["err"] == ""


def test_a_run_that_another_program_trains_is_not_waited_for(double):
    """The other process would give up on the main one."""
    assert double["taken"].name in double["main"]["refused"]


def check(result: dict) -> None:
    assert result["processes"] == 2 and result["finished"]
    assert torch.load(result["checkpoint"], weights_only=True)["size"] == 32


def test_the_command_trains_on_two_processes(double):
    check(json.loads(double["main"]["printed"].splitlines()[-1]))


@pytest.mark.slow
def test_torchrun_starts_the_command_on_two_processes(data_set, monkeypatch):
    monkeypatch.setenv("UNETLIB_PROFILE", "ci")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "unetlib", "train", "--size", "32", "--epochs", "1", "--json"]
    ended = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    check(json.loads(ended.stdout.strip().splitlines()[-1]))
