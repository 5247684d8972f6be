"""Own networks, colour and oblong sizes: from the weights to every format and to masks."""

import sys
from functools import partial
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from torch import nn

from unetlib import (
    FILES,
    ModelFileError,
    UNet,
    compare,
    export_all,
    image_files,
    load_model,
    load_predictor,
    parity,
    predictors_in,
    save_model,
    write_masks,
)
from unetlib.__main__ import main
from unetlib.deploy.manifest import MANIFEST


class OwnNet(nn.Module):
    """Three convolutions, and an argument that is not called x."""

    def __init__(self, channels: int = 1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.GELU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=4),
            nn.GELU(),
        )
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(pictures) + pictures.mean(1, keepdim=True))


def made(path, network, size, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_model(path, network(), size, **settings)
    return path


def smp_unet():
    smp = pytest.importorskip("segmentation_models_pytorch", reason="an optional library")
    return smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=1)


NETWORKS = {
    "a class, colour, oblong": (partial(OwnNet, 3), (32, 48), True),
    "a class, grey": (OwnNet, 32, False),
    "a U-Net, colour, oblong": (partial(UNet, 3, widths=(2, 4)), (32, 48), True),
    "segmentation_models_pytorch": (smp_unet, (32, 64), False),
}


@pytest.mark.filterwarnings("ignore:.*loses .* Dice")
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.slow] * (name == "a class, grey"))
        for name, case in NETWORKS.items()
    ],
)
def test_every_format_is_written_agrees_and_predicts(tables, data_set, tmp_path, case):
    network, size, colour = case
    checkpoint = made(tmp_path / "own.pth", network, size, colour=colour)
    own, folder, (train, val) = (
        type(load_model(checkpoint, network)[0]),
        tmp_path / "models",
        tables,
    )
    table = export_all(checkpoint, folder, train=train, val=val, network=network)
    assert {path.name for path in folder.glob("[!.]*")} == {*FILES.values(), MANIFEST}
    assert list(table["format"]) == list(FILES)
    assert (table["max_abs_diff"][:4] <= 1e-4).all() and table["max_abs_diff"][4] > 0
    again = parity(folder, val, network)
    np.testing.assert_allclose(again["dice"], table["dice"], atol=1e-6)

    height, width = size if colour or isinstance(size, tuple) else (size, size)
    photos = image_files(data_set / "test")
    expected = load_predictor(folder / FILES["pytorch"], "cpu", network=network)
    for name in FILES:
        predictor = load_predictor(folder / FILES[name], "cpu", network=network)
        assert (predictor.size, predictor.colour) == (size, colour)
        assert predictor.shape == (3 if colour else 1, height, width)
        small = predictor.predict_proba(photos[0], size="model")
        assert small.shape == (height, width)
        if name != "int8":
            wanted = expected.predict_proba(photos[0], size="model")
            np.testing.assert_allclose(small, wanted, atol=1e-4)
    onnx = load_predictor(folder / FILES["onnx"])
    assert write_masks(onnx, photos, tmp_path / "masks") == []
    assert len(list((tmp_path / "masks").glob("*.png"))) == len(photos)
    if own is UNet:
        assert load_predictor(folder / FILES["pytorch"], "cpu").network is None


@pytest.mark.slow
def test_comparisons_take_an_own_network_with_its_class_and_leave_it_out_without(
    tables, tmp_path, capsys
):
    folder, (train, val) = tmp_path / "models", tables
    checkpoint = made(tmp_path / "own.pth", OwnNet, 32)
    export_all(checkpoint, folder, train=train, val=val, network=OwnNet)
    table = compare(folder, val, repeats=2, runtimes=(), network=OwnNet).set_index("name")
    assert table["first_s"].isna()["pytorch fp32"] and table["first_s"]["onnx fp32"] > 0
    names = [one.name for one in predictors_in(folder, runtimes=())]
    assert names == ["torchscript fp32", "exported fp32", "onnx fp32", "int8"]
    assert "OwnNet" in capsys.readouterr().out
    for name in list(FILES)[1:]:
        (folder / FILES[name]).unlink()
    with pytest.raises(ModelFileError, match="OwnNet"):
        predictors_in(folder)


class Labels(OwnNet):
    def forward(self, x):
        return super().forward(x) > 0


class TwoClasses(OwnNet):
    def forward(self, x):
        return super().forward(x).repeat(1, 2, 1, 1)


class Tuple(OwnNet):
    def forward(self, x):
        return super().forward(x), x


class Fails(OwnNet):
    def forward(self, x):
        raise KeyError("own fault")


class DependsOnData(OwnNet):
    def forward(self, x):
        return super().forward(x) if x.sum() >= 0 else x


@pytest.mark.fault("a network whose outputs cannot be used, or cannot be recorded", "one sentence")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("network", [Labels, TwoClasses, Tuple, Fails, DependsOnData])
def test_a_network_that_cannot_be_exported_is_named_and_nothing_is_left(tables, tmp_path, network):
    folder, (train, val) = tmp_path / "models", tables
    checkpoint = made(tmp_path / "own.pth", network, 32)
    with pytest.raises(ModelFileError, match=network.__name__) as caught:
        export_all(checkpoint, folder, train=train, val=val, network=network)
    assert "\n" not in str(caught.value)
    assert list(folder.glob("[!.]*")) == []


# ------------------------------------------------------------------------------ the command line


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module in the current folder, which is found although it is not installed."""
    (tmp_path / "my_networks.py").write_text(
        "from unetlib import UNet\n\n\nclass MyUNet(UNet):\n"
        "    def __init__(self):\n        super().__init__(widths=(2, 4))\n\n\nNUMBER = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "my_networks:MyUNet"
    del sys.modules["my_networks"]


@pytest.mark.filterwarnings("ignore:.*loses .* Dice")
def test_export_and_predict_take_the_network_by_name(
    own_module, data_set, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(tmp_path)
    made(tmp_path / "own.pth", resolve_name(own_module), 32)
    output, photos = str(tmp_path / "models"), str(data_set / "test")
    typed = ["export", "--checkpoint", "own.pth", "--output-dir", output]
    assert main(typed) == 1
    assert "MyUNet" in capsys.readouterr().err
    assert main([*typed, "--network", own_module]) == 0
    for model, given in ((FILES["pytorch"], ["--network", own_module]), (FILES["onnx"], [])):
        typed = ["predict", photos, "--model", f"{output}/{model}", "--output", model + ".csv"]
        assert main([*typed, *given]) == 0


@pytest.mark.slow
def test_the_comparison_takes_the_network_by_name(own_module, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    made(tmp_path / "own.pth", resolve_name(own_module), 32)
    typed = ["--network", own_module]
    output = str(tmp_path / "models")
    assert main(["export", "--checkpoint", "own.pth", "--output-dir", output, *typed]) == 0
    assert main(["compare", "--models", output, "--runtimes", "--json", *typed]) == 0
    assert '"first_s": null' in capsys.readouterr().out


def test_train_takes_the_network_by_name(own_module, tmp_path):
    assert main(["train", "--network", own_module, "--size", "32", "--epochs", "1"]) == 0
    _, content = load_model(
        tmp_path / "home" / "models" / FILES["pytorch"], sys.modules["my_networks"].MyUNet
    )
    assert content["network"] == "MyUNet"


@pytest.mark.fault("--network that names nothing to call", "one sentence")
@pytest.mark.parametrize("name", ["nowhere:MyUNet", "my_networks:Other", "my_networks:NUMBER", "-"])
def test_a_network_that_is_not_there_is_named(own_module, name, capsys):
    import importlib

    sys.path.append(".")
    importlib.import_module("my_networks")
    assert main(["train", f"--network={name}", "--size", "32"]) == 1
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "error" in one]
    assert name in line and "my_networks:MyUNet" in line
