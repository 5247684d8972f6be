"""The right model on the right data: what is asked of another one is refused, or said."""

import json
import os
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from other_process import start
from PIL import Image

from unetlib import (
    FILES,
    ModelFileError,
    Recipe,
    UNet,
    export_all,
    find_runs,
    find_samples,
    fit,
    load_model,
    load_predictor,
    save_model,
    split_by_group,
)
from unetlib.__main__ import main
from unetlib.cli.commands import rows_for
from unetlib.deploy.formats import METADATA_KEY
from unetlib.deploy.manifest import MANIFEST, folder_lock, write_manifest

TINY = ["--size", "32", "--epochs", "1", "--widths", "2", "4"]


@pytest.fixture
def type_in(capsys):
    """Type a command; its JSON result, and the warnings."""

    def typed(*words, status=0) -> tuple[dict, list[str]]:
        assert main([*map(str, words), "--json"]) == status
        shown = capsys.readouterr()
        said = shown.err.splitlines()
        result = json.loads(shown.out.splitlines()[-1]) if status == 0 else {}
        return result, [one for one in said if one.startswith(("warning: ", "error: "))]

    return typed


@pytest.fixture
def squares(tmp_path):
    """Pictures of another kind in images/ and masks/: a bright square on a dark ground."""
    rng, root = np.random.default_rng(0), tmp_path / "squares"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(10):
        mask = np.zeros((48, 48), np.uint8)
        row, column = rng.integers(0, 30, 2)
        mask[row : row + 16, column : column + 16] = 255
        Image.fromarray(mask // 2 + 40).save(root / "images" / f"{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return root


# --------------------------------------------------------- the model's own data by default


@pytest.mark.fault("export and compare after training on own data", "that data, not the default")
def test_export_and_compare_use_the_data_that_trained_the_model(squares, tmp_path, type_in):
    own = ["--lr", "1e-2", "--epochs", "8", "--size", "32", "--widths", "4", "8"]
    trained, _ = type_in("train", "--data", squares, *own)
    model = tmp_path / "home" / "models" / FILES["pytorch"]
    exported, said = type_in("export", "--checkpoint", model)
    first = exported["formats"][0]
    assert first["dice"] == pytest.approx(trained["best_dice"], abs=0.01)
    assert not [one for one in said if FILES["int8"] not in one]
    for name in ("torchscript", "exported", "int8"):  # cold starts take seconds
        model.with_name(FILES[name]).unlink()
    compared, said = type_in("compare", "--runtimes")
    assert compared["formats"][0]["dice"] == pytest.approx(first["dice"], abs=1e-6)
    assert said == []
    info = load_model(model)[1]["info"]
    assert str(tmp_path) not in json.dumps(info) and info["data"] == find_runs()[-1].details["data"]


@pytest.mark.fault("a model scored on pictures it was not validated on", "one warning")
def test_other_pictures_than_the_models_are_said(squares, data_set, tmp_path, type_in):
    type_in("train", "--data", squares, *TINY)
    models = tmp_path / "home" / "models"
    for data in (data_set, None):
        if data is None:  # the pictures change
            val = split_by_group(find_samples(squares))[1]
            Image.new("L", (48, 48), 9).save(val["image"][0])
        with pytest.warns(UserWarning, match=r"unet_model\.pth"):
            _, val = rows_for(models / FILES["pytorch"], data)
        assert Path(val["image"][0]).is_relative_to(data or squares)


@pytest.mark.fault("the data that trained the model are moved", "found by --data or UNETLIB_DATA")
def test_data_that_are_gone_are_said(squares, data_set, tmp_path, type_in, monkeypatch, capsys):
    type_in("train", "--data", squares, *TINY)
    moved, model = squares.rename(tmp_path / "moved"), tmp_path / "home/models" / FILES["pytorch"]
    with pytest.warns(UserWarning, match=rf"unet_model\.pth.*{squares}"):
        rows_for(model, None)  # the default data
    assert f"data: {data_set}" in capsys.readouterr().err
    with warnings.catch_warnings(action="error"):
        assert len(rows_for(model, moved)[1]) == 2
        monkeypatch.setenv("UNETLIB_DATA", str(moved))
        assert len(rows_for(model, None)[1]) == 2
    monkeypatch.setenv("UNETLIB_DATA", str(data_set))
    (run,) = find_runs()
    shutil.rmtree(run.folder)
    with pytest.warns(UserWarning, match=r"unet_model\.pth"):
        rows_for(model, None)  # the default data


def test_a_file_that_says_nothing_of_its_data_takes_the_default(tables, tmp_path):
    save_model(tmp_path / "m.pth", UNet(widths=(2, 4)), 32)
    with warnings.catch_warnings(action="error"):
        for path in (tmp_path / "m.pth", tmp_path / "none.pth"):
            assert list(rows_for(path, None)[1]["image"]) == list(tables[1]["image"])


def test_pictures_that_are_no_data_folder_are_not_looked_for(squares, data_set):
    """Tables made in Python name any files; their folder is no data set."""
    (squares / "images").rename(squares / "photos")
    samples = find_samples(images=squares / "photos", masks=squares / "masks")
    recipe = Recipe(size=32, widths=(2, 4), epochs=1, precision="fp32")
    run = fit(recipe, *split_by_group(samples))
    assert Path(run.details["data_folder"]) == squares
    with pytest.warns(UserWarning, match=rf"best\.pth.*{squares}"):
        rows_for(run.checkpoint, None)


@pytest.mark.fault("two runs by turns, the older answered at once", "it is exported, not the newer")
def test_what_was_trained_last_is_exported(squares, data_set, tmp_path, type_in):
    first, _ = type_in("train", "--data", squares, *TINY)
    second, _ = type_in("train", "--data", data_set, *TINY)
    assert [str(run.folder) for run in find_runs()] == [first["run"], second["run"]]
    again, _ = type_in("train", "--data", squares, *TINY)
    assert again["run"] == first["run"] and again["seconds"] == first["seconds"]
    assert [str(run.folder) for run in find_runs()] == [second["run"], first["run"]]
    result, _ = type_in("export")
    assert result["checkpoint"] == os.path.join(first["run"], "best.pth")
    assert result["formats"][0]["dice"] == pytest.approx(first["best_dice"], abs=0.01)


# -------------------------------------------------------------------------- files of two trainings


@pytest.mark.fault("trained anew after export, and the old int8 file used", "one warning")
def test_a_file_of_an_older_training_is_said(exported, data_set, tmp_path, type_in):
    folder = shutil.copytree(exported[0], tmp_path / "models")
    typed = ["predict", data_set / "test", "--model", folder / FILES["int8"], "--output"]
    assert type_in(*typed, tmp_path / "a.csv")[1] == []
    model, _ = load_model(folder / FILES["pytorch"])
    model.head.bias.data += 1
    save_model(folder / FILES["pytorch"], model, 32)
    write_manifest(folder, [folder / FILES["pytorch"]])
    _, (warning,) = type_in(*typed, tmp_path / "b.csv")
    assert FILES["int8"] in warning and FILES["pytorch"] in warning
    with warnings.catch_warnings(action="error"):
        load_predictor(folder / FILES["pytorch"], "cpu")
        (folder / FILES["pytorch"]).unlink()
        load_predictor(folder / FILES["int8"])


@pytest.mark.fault("two programs with two homes write models into one folder", "one waits")
def test_train_waits_for_another_writer_whatever_its_home(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    folder.mkdir()
    with folder_lock(folder):
        monkeypatch.setenv("UNETLIB_HOME", str(tmp_path / "another home"))
        process, answer = start(main, ["train", *TINY, "--output-dir", str(folder)])
        while not find_runs():
            time.sleep(0.05)
            assert process.is_alive()
        assert not answer.poll(2) and not list(folder.glob("[!.]*"))
    assert answer.recv() == 0
    process.join()
    assert {path.name for path in folder.glob("[!.]*")} == {FILES["pytorch"], MANIFEST}


# ----------------------------------------------------------------------- no model is named


@pytest.fixture
def shipped(exported, monkeypatch):
    """Stands for the weights of the repository: a U-Net."""
    path = exported[0] / FILES["pytorch"]
    monkeypatch.setattr("unetlib.deploy.predict.PRETRAINED", path)
    return path


@pytest.fixture
def own(exported, tmp_path):
    """The export in models/, with its manifest."""
    return shutil.copytree(exported[0], tmp_path / "home" / "models") / FILES["pytorch"]


def test_without_a_path_the_own_export_answers_else_the_shipped_weights(shipped, tmp_path, capsys):
    with warnings.catch_warnings(action="error"):
        assert load_predictor().path == shipped
        assert capsys.readouterr().out == f"model: {shipped}\n"
        model = tmp_path / "home" / "models" / FILES["pytorch"]
        save_model(model, UNet(widths=(2, 4)), 16)  # no manifest.json contradicts it
        assert (load_predictor().path, load_predictor().size) == (model, 16)
        assert capsys.readouterr().out == f"model: {model}\n" * 2
        write_manifest(model.parent, [model])
        assert load_predictor(device="cpu").path == model


@pytest.mark.fault(
    "no --model, and the export in models/ is damaged or exchanged",
    "one warning; the weights of the repository answer",
)
@pytest.mark.parametrize("wrong", ["cut", "a bit", "exchanged", "manifest"])
def test_an_export_that_does_not_open_is_said_and_the_shipped_one_answers(
    shipped, own, data_set, tmp_path, type_in, wrong
):
    content = own.read_bytes()
    if wrong == "cut":
        own.write_bytes(content[: len(content) // 2])
    elif wrong == "a bit":
        own.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
        (own.parent / MANIFEST).unlink()  # nothing but the file itself says so
    elif wrong == "manifest":
        (own.parent / MANIFEST).write_text("[")
    else:
        save_model(own, UNet(widths=(2, 4)), 16)
    typed = ["predict", data_set / "test", "--output", tmp_path / "s.csv"]
    result, (warning,) = type_in(*typed)
    named = own.parent / MANIFEST if wrong == "manifest" else own
    assert warning.startswith(f"warning: {named}") and str(shipped) in warning
    assert result["model"].endswith(str(shipped)) and result["masks"] == 4
    with pytest.warns(UserWarning, match=named.name):
        assert load_predictor().path == shipped
    if wrong == "exchanged":  # by oneself, who says so
        with warnings.catch_warnings(action="error"):
            assert load_predictor(trust=True).path == own


@pytest.mark.fault("no --model, and the export in models/ is of an own network", "refused, named")
def test_an_own_network_is_asked_for_its_class_and_no_other_answers(
    shipped, own, data_set, tmp_path, capsys
):
    save_model(own, Sum(), 16)
    write_manifest(own.parent, [own])
    typed = ["predict", data_set / "test", "--output", tmp_path / "s.csv"]
    assert main(list(map(str, typed))) == 1
    assert str(own) in capsys.readouterr().err and not (tmp_path / "s.csv").exists()
    with pytest.raises(ModelFileError, match=r"Sum"):
        load_predictor()


def test_an_own_network_is_asked_for_by_its_class(shipped, tmp_path):
    own = tmp_path / "home" / "models" / FILES["pytorch"]
    with pytest.raises(ModelFileError, match=str(own)):
        load_predictor(network=Sum)  # the shipped weights are a U-Net's
    save_model(own, Sum(), 16)
    with warnings.catch_warnings(action="error"):
        assert load_predictor(network=Sum).path == own
    own.write_bytes(b"damaged")
    with pytest.raises(ModelFileError, match=str(own)):
        load_predictor(network=Sum)


@pytest.mark.fault("no --model, no export, and installed without the repository", "one sentence")
def test_no_model_anywhere_is_one_sentence(own, data_set, tmp_path, monkeypatch, type_in):
    shipped = tmp_path / "pretrained.pth"
    monkeypatch.setattr("unetlib.deploy.predict.PRETRAINED", shipped)
    typed = ["predict", data_set / "test", "--output", tmp_path / "masks"]
    own.write_bytes(b"damaged")
    _, (warning, error) = type_in(*typed, status=1)
    assert str(own) in warning and str(shipped) in error
    own.unlink()
    _, (error,) = type_in(*typed, status=1)
    assert str(shipped) in error and "train" in error
    assert not (tmp_path / "masks").exists()


# --------------------------------------------------------- not one logit per pixel, or grey


@pytest.mark.fault("a U-Net of two outputs, or of other inputs than colour= says", "not saved")
@pytest.mark.parametrize(
    ("channels", "colour"),
    [((1, 2), False), ((3, 1), False), ((1, 1), True), ((3, 2), True), ((2, 1), False)],
)
def test_a_unet_of_other_channels_is_not_saved(tmp_path, channels, colour):
    with pytest.raises(ValueError, match="channels"):
        save_model(tmp_path / "m.pth", UNet(*channels, widths=(2, 4)), 32, colour=colour)
    assert list(tmp_path.iterdir()) == []


def changed(path, **entries) -> None:
    torch.save(torch.load(path, weights_only=True) | entries, path)


@pytest.mark.fault("a model file of two outputs, three inputs or no threshold", "refused, named")
@pytest.mark.parametrize("suffix", [".pth", ".onnx"])
@pytest.mark.parametrize("wrong", ["outputs", "inputs", "threshold", "no threshold", "size"])
def test_a_file_that_gives_no_mask_is_refused_when_opened(
    exported, tables, tmp_path, suffix, wrong
):
    """By others, with our metadata, or by an older unetlib."""
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        save_model(path, UNet(widths=(2, 4)), 32)
        if wrong in ("outputs", "inputs"):
            model = UNet(*dict(outputs=(1, 2), inputs=(3, 1))[wrong], widths=(2, 4))
            weights = dict(state_dict=model.state_dict(), architecture=model.architecture)
            changed(path, **weights)
        else:
            value = dict(threshold=dict(threshold=127), size=dict(size=33))
            changed(path, **value.get(wrong, dict(threshold=None)))
    else:
        about = dict(size=32, threshold=0.5, colour=wrong == "inputs")
        about |= dict(threshold=dict(threshold=127), size=dict(size="large")).get(wrong, {})
        if wrong == "no threshold":
            del about["threshold"]
        model = onnx.load(exported[0] / FILES["onnx"])
        if wrong == "outputs":
            model.graph.node[-1].output[0] = "half"
            both = onnx.helper.make_node("Concat", ["half", "half"], ["logits"], axis=1)
            model.graph.node.append(both)
            model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
        onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(about)})
        onnx.save(model, path)
    with pytest.raises(ModelFileError, match=path.name) as caught:
        load_predictor(path, "cpu")
    assert "\n" not in str(caught.value)
    if suffix == ".pth" and wrong in ("outputs", "inputs", "threshold"):
        train, val = tables
        with pytest.raises(ModelFileError, match=path.name):
            export_all(path, tmp_path / "models", train=train, val=val)
        assert list((tmp_path / "models").glob("[!.]*")) == []


@pytest.mark.fault("a threshold in grey levels, below 0 or nan", "one sentence")
@pytest.mark.parametrize("threshold", [127, -0.1, 1.01, float("nan")])
def test_a_threshold_is_a_probability(predictor, photo, tmp_path, threshold):
    with pytest.raises(ValueError, match="threshold"):
        predictor.predict_mask(photo, threshold)
    with pytest.raises(ValueError, match="threshold"):
        save_model(tmp_path / "m.pth", UNet(widths=(2, 4)), 32, threshold=threshold)
    assert list(tmp_path.iterdir()) == []
    assert not predictor.predict_mask(photo, 1).any() and predictor.predict_mask(photo, 0).all()


@pytest.fixture
def photo(tables):
    return tables[1]["image"][0]


# ----------------------------------------------------------------------- weights without their code


class Sum(torch.nn.Conv2d):
    def __init__(self):
        super().__init__(1, 1, 3, padding=1)


def test_weights_of_code_that_has_changed_are_said(tables, monkeypatch):
    run = fit(Recipe(network=Sum, size=16, epochs=1, batch_size=8), *tables)
    with warnings.catch_warnings(action="error"):
        run.model()
        load_predictor(run.checkpoint, network=Sum)
    monkeypatch.setattr(Sum, "forward", lambda self, x: -torch.nn.Conv2d.forward(self, x))
    for load in (run.model, lambda: load_model(run.checkpoint, Sum)):
        with pytest.warns(UserWarning, match=r"best\.pth.*Sum"):
            load()


@pytest.mark.fault("weights that are not numbers", "refused when the model is opened")
def test_a_model_without_numbers_is_refused(tmp_path):
    model = UNet(widths=(2, 4))
    torch.nn.init.constant_(model.head.bias, torch.nan)
    save_model(tmp_path / "nan.pth", model, 16)
    with pytest.raises(ModelFileError, match=r"nan\.pth"):
        load_predictor(tmp_path / "nan.pth")


@pytest.mark.slow
@pytest.mark.fault("export into a folder with the model of another run", "said")
def test_a_model_that_another_training_replaces_is_said(squares, tmp_path, type_in):
    places = [tmp_path / name for name in "ab"]
    for seed, place in enumerate(places):
        type_in("train", "--data", squares, *TINY, "--output-dir", place, "--seed", seed)
    _, said = type_in("export", "--output-dir", places[0])
    assert [one for one in said if str(places[0] / FILES["pytorch"]) in one]
    _, said = type_in("export", "--output-dir", places[1])
    assert not [one for one in said if FILES["pytorch"] in one]


def test_the_data_of_a_file_that_says_nothing_are_named(tmp_path, data_set, capsys):
    for path in (tmp_path / "unet_model.pth", data_set):
        rows_for(path, None)
        assert f"data: {data_set}" in capsys.readouterr().err
