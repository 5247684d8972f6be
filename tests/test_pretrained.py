"""The weights that come with the repository, and what uses them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from unetlib import (
    FILES,
    REPOSITORY,
    ModelFileError,
    Recipe,
    best_model,
    dice,
    find_samples,
    fit,
    load_mask,
    load_model,
    load_predictor,
    models_dir,
    profile,
    score,
    split_by_group,
    write_submission,
)
from unetlib.deploy.manifest import check_file
from unetlib.recipe import PRETRAINED

SHIPPED = PRETRAINED.parent
SAMPLE = REPOSITORY / "data" / "sample"
NARROW = Recipe(widths=(2, 4), size=64, epochs=1, precision="fp32", lr=1e-2)


@pytest.fixture(scope="module")
def embedded():
    return find_samples(SAMPLE)


@pytest.mark.parametrize("kind", ["pytorch", "int8"])
def test_the_shipped_files_are_intact_and_good(embedded, kind):
    path = SHIPPED / FILES[kind]
    assert check_file(path) == {"int8": "onnx"}.get(kind, kind)
    megabytes = path.stat().st_size / 1e6
    assert 8.2 < megabytes < 8.4 if kind == "pytorch" else 2.0 < megabytes < 2.2
    predictor = load_predictor(path, device="cpu")
    assert (predictor.size, predictor.threshold, predictor.colour) == (128, 0.5, False)
    _, val = split_by_group(embedded)
    val = val.iloc[::12]
    found = predictor.predict_mask(val["image"])
    scores = [
        dice(one, load_mask(mask)).item() for one, mask in zip(found, val["mask"], strict=True)
    ]
    assert np.mean(scores) > 0.96


def test_the_hidden_solution_is_of_the_test_pictures_and_the_shipped_model_solves_it(
    embedded, tmp_path
):
    test = embedded[embedded["mask"] == ""]
    solution = pd.read_csv(REPOSITORY / "data" / "solution" / "solution.csv", dtype=str)
    assert sorted(solution["img"]) == sorted(Path(image).name for image in test["image"])
    some = solution.iloc[::16]
    some.to_csv(tmp_path / "solution.csv", index=False)
    images = [SAMPLE / "test" / name for name in some["img"]]
    write_submission(load_predictor(SHIPPED / FILES["int8"]), images, tmp_path / "mine.csv")
    table = score(tmp_path / "mine.csv", tmp_path / "solution.csv")
    assert len(table) == 8 and table["dice"].mean() > 0.96


def test_it_was_trained_on_rendered_training_cars_alone(embedded):
    _, about = load_model(PRETRAINED)
    recipe = about["info"]["recipe"]
    assert (recipe["augment"], recipe["optimizer"]) == ("backgrounds", "muon")
    assert 0.97 < about["info"]["val_dice"] < 1
    card = (SHIPPED / "README.md").read_text("utf-8")
    for part in ("CC0", "make pretrained", "real", f"{about['info']['val_dice']:.4g}"):
        assert part in card


def test_without_an_own_export_the_shipped_weights_answer(capsys, embedded):
    assert not (models_dir() / FILES["pytorch"]).exists()
    predictor = load_predictor()
    assert predictor.path == PRETRAINED
    assert str(PRETRAINED) in capsys.readouterr().out


def test_few_pictures_are_learned_from_the_shipped_weights(tables, monkeypatch):
    monkeypatch.setenv("UNETLIB_PROFILE", "ci")
    recipe = Recipe.few(epochs=1, size=32, precision="fp32")
    assert recipe.start_from == str(PRETRAINED)
    assert profile().scale(recipe).widths == (64, 128, 256)  # those that the weights have
    run = fit(recipe, *tables)
    scratch = fit(replace(recipe, start_from=None), *tables)
    assert run.folder != scratch.folder
    assert run.history["train_loss"][0] != scratch.history["train_loss"][0]


def test_the_best_model_is_an_own_run_or_the_shipped_weights(tables, embedded, monkeypatch, capsys):
    _, val = tables
    monkeypatch.setenv("UNETLIB_PROFILE", "ci")
    with pytest.raises(ModelFileError):
        best_model(val)  # the shipped weights do not count here
    run = fit(profile().scale(NARROW), *tables)
    assert best_model(val) == run.checkpoint
    assert run.folder.name in capsys.readouterr().out
    fit(replace(NARROW, size=32), *tables)  # of another size: its Dice is another number
    assert best_model(val) == run.checkpoint
    monkeypatch.setenv("UNETLIB_PROFILE", "laptop")
    _, cars = split_by_group(embedded)
    assert best_model(cars.iloc[::16]) == PRETRAINED
    assert "0.9" in capsys.readouterr().out


@pytest.mark.slow
def test_make_pretrained_trains_exports_and_writes_the_card(tmp_path):
    """A short version: small pictures, one epoch, no further cars."""
    command = [
        sys.executable,
        REPOSITORY / "tools" / "pretrained.py",
        "--out",
        out := tmp_path / "out",
    ]
    command += ["--cars", "0", "--epochs", "1", "--size", "32", "--seeds", "0", "1"]
    subprocess.run([*map(str, command)], check=True, timeout=600)
    names = {path.name for path in out.iterdir()}
    assert names == {FILES["pytorch"], FILES["int8"], "manifest.json", "README.md"}
    card = (out / "README.md").read_text("utf-8")
    assert all(part in card for part in ("Recipe(", "\n| 0 |", "\n| 1 |")) and "{" not in card
    for kind in ("pytorch", "int8"):
        check_file(out / FILES[kind])
