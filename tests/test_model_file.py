import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from unetlib import ModelFileError, UNet, load_model, save_model
from unetlib.store.model_file import save_atomically


def equal_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def trained_a_little() -> UNet:
    model = UNet(widths=(4, 8), up_kernel=2, batch_norm=True)
    model(torch.rand(4, 1, 8, 8))  # moves the running statistics
    return model


def test_a_model_comes_back_as_it_was(tmp_path):
    model = trained_a_little()
    save_model(tmp_path / "sub" / "model.pth", model, 64, threshold=0.4, note="hello")
    loaded, content = load_model(tmp_path / "sub" / "model.pth")
    assert equal_weights(model, loaded)
    assert not loaded.training
    assert loaded.architecture == model.architecture
    assert (content["size"], content["threshold"]) == (64, 0.4)
    assert content["info"] == {"note": "hello"}
    assert content["normalisation"] == "grey / 255"


def test_the_file_holds_plain_types_only(tmp_path):
    save_model(tmp_path / "model.pth", trained_a_little(), 64)
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    assert set(map(type, content["state_dict"].values())) == {torch.Tensor}


def test_saving_leaves_one_file(tmp_path):
    for _ in range(2):
        save_model(tmp_path / "model.pth", trained_a_little(), 64)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.pth"
    save_model(path, trained_a_little(), 64)
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        save_atomically({"cannot be stored": lambda: None}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]


def test_numbers_of_numpy_are_saved_as_plain_ones(tmp_path):
    model = UNet(out_channels=np.int64(1), widths=np.array([4, 8]), batch_norm=np.True_)
    scores = [np.float32(0.5), {"car": np.int64(7)}, (np.str_("a"),)]
    save_model(
        tmp_path / "model.pth",
        model,
        np.int64(64),
        threshold=np.float64(0.45),
        val_dice=np.float64(0.9),
        scores=scores,
    )
    loaded, content = load_model(tmp_path / "model.pth")
    assert equal_weights(model, loaded) and loaded.architecture == UNet(widths=(4, 8)).architecture
    assert (content["size"], content["threshold"]) == (64, 0.45)
    assert content["info"] == {"val_dice": 0.9, "scores": [0.5, {"car": 7}, ["a"]]}


@pytest.mark.fault(
    "a value that could not be loaded again is saved with a model",
    "refused before anything is written",
)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("folder", Path("/"), id="a path"),
        pytest.param("note", {"deep": [np.zeros(3)]}, id="an array deep inside"),
        pytest.param("note", lambda: None, id="code"),
        pytest.param("threshold", np.datetime64("2026-01-01"), id="a date"),
        pytest.param("note", {(1, 2): 3}, id="a key that is no text"),
    ],
)
def test_what_json_cannot_hold_is_not_saved(tmp_path, name, value):
    path = tmp_path / "model.pth"
    save_model(path, trained_a_little(), 64)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_model(path, trained_a_little(), 64, **{name: value})
    assert path.read_bytes() == before


@pytest.mark.slow
def test_a_compiled_model_is_saved_as_the_plain_one(tmp_path):
    model = trained_a_little()
    save_model(tmp_path / "model.pth", torch.compile(model), 64)
    assert equal_weights(model, load_model(tmp_path / "model.pth")[0])


def test_a_model_with_the_batch_normalisation_of_several_gpus_is_saved(tmp_path):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(trained_a_little())
    save_model(tmp_path / "model.pth", model, 64)
    assert equal_weights(model, load_model(tmp_path / "model.pth")[0])


class OtherUNet(UNet):
    """A tinkerer's network."""


def another_activation():
    model = trained_a_little()
    model.encoders[0].layers[2] = nn.GELU()
    return model


def one_more_weight():
    model = trained_a_little()
    model.factor = nn.Parameter(torch.ones(1))
    return model


CHANGED = {
    "another activation": another_activation,
    "one more weight": one_more_weight,
    "a class of its own": lambda: OtherUNet(widths=(4, 8)),
    "no U-Net": lambda: nn.Conv2d(1, 1, 1),
}


@pytest.mark.fault(
    "a model file of an own network without its class, or with another",
    "refused, and the class is named",
)
@pytest.mark.parametrize("make", CHANGED.values(), ids=CHANGED)
def test_an_own_network_loads_with_what_makes_it_and_never_as_another(tmp_path, make):
    path, model = tmp_path / "model.pth", make()
    save_model(path, model, (96, 64), colour=True)
    loaded, content = load_model(path, network=make)
    assert equal_weights(model, loaded) and type(loaded) is type(model) and not loaded.training
    assert (content["network"], content["architecture"]) == (type(model).__name__, None)
    assert (content["size"], content["colour"]) == ((96, 64), True)
    assert content["normalisation"] == "colour / 255"
    assert set(torch.load(path, weights_only=True)) >= {"state_dict", "network"}
    wrong = (None, lambda: nn.Conv2d(3, 1, 3), nn.Conv2d, lambda: 3)
    for network in wrong:
        with pytest.raises(ModelFileError, match=rf"model\.pth.*{type(model).__name__}") as caught:
            load_model(path, network)
        assert "\n" not in str(caught.value)


def test_a_unet_with_frozen_layers_loads_alone_and_with_its_factory(tmp_path):
    def frozen():
        model = UNet(widths=(4, 8))
        model.encoders[0].requires_grad_(False)
        return model

    model = frozen()
    save_model(tmp_path / "model.pth", model, 64)
    for network in (None, frozen):
        assert equal_weights(model, load_model(tmp_path / "model.pth", network)[0])
    with pytest.raises(ModelFileError):
        load_model(tmp_path / "model.pth", OtherUNet)


def test_a_file_that_says_nothing_of_colour_is_grey(tmp_path):
    path = tmp_path / "model.pth"
    save_model(path, trained_a_little(), 64)
    content = torch.load(path, weights_only=True)
    del content["colour"], content["network"]
    torch.save(content, path)
    _, content = load_model(path)
    assert (content["colour"], content["network"]) == (False, None)


class Payload:
    """What an attacker would put into a file; here it only makes an empty folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_the_payload_would_work_if_it_were_executed(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


@pytest.mark.parametrize("wrap", ["torch.save", "pickle", "inside a model file"])
def test_a_malicious_file_is_refused_and_not_executed(tmp_path, wrap):
    path, payload = tmp_path / "model.pth", Payload(tmp_path / "executed")
    if wrap == "pickle":
        path.write_bytes(pickle.dumps(payload, protocol=2))
    elif wrap == "torch.save":
        torch.save(payload, path)
    else:
        save_model(path, trained_a_little(), 64)
        content = torch.load(path, weights_only=True)
        torch.save({**content, "info": payload}, path)
    with pytest.raises(ModelFileError, match=r"model\.pth"):
        load_model(path)
    assert not (tmp_path / "executed").exists()


def no_file(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("weights go here")


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-500])


def cut_off_early(path):
    path.write_bytes(path.read_bytes()[:200])


def another_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # of a weight, which PyTorch would load
    path.write_bytes(content)


def folder(path):
    path.unlink()
    path.mkdir()


def bare_weights(path):
    torch.save(trained_a_little().state_dict(), path)


def a_tensor(path):
    torch.save(torch.zeros(3), path)


def whole_module(path):
    torch.save(trained_a_little(), path)


def other_version(path):
    torch.save({**torch.load(path, weights_only=True), "version": 99}, path)


def no_version(path):
    content = torch.load(path, weights_only=True)
    del content["version"]
    torch.save(content, path)


def other_architecture(path):
    content = torch.load(path, weights_only=True)
    content["architecture"]["widths"] = (8, 16)
    torch.save(content, path)


@pytest.mark.fault(
    "a checkpoint that is not one, or of another version",
    "one sentence that names the file and the remedy",
)
@pytest.mark.parametrize(
    "damage",
    [
        no_file,
        empty,
        text,
        cut_off,
        cut_off_early,
        another_bit,
        folder,
        whole_module,
        bare_weights,
        a_tensor,
        other_version,
        no_version,
        other_architecture,
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, damage):
    path = tmp_path / "model.pth"
    save_model(path, trained_a_little(), 64)
    damage(path)
    with pytest.raises(ModelFileError) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
