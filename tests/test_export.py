import json

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from onnx.numpy_helper import to_array

from unetlib import (
    FILES,
    CarvanaDataset,
    ModelFileError,
    UNet,
    config,
    export_all,
    export_onnx,
    quantize_int8,
    save_model,
    subpixel,
    to_tensor,
)
from unetlib.deploy.export import OPSET
from unetlib.deploy.formats import METADATA_KEY, open_model


@pytest.fixture(scope="session")
def images(tables):
    """Validation images as the model takes them: float32 (4, 1, 32, 32)."""
    return to_tensor(CarvanaDataset(tables[1], 32, cache=False).images).numpy()


def nodes(path, kind):
    return [node for node in onnx.load(path).graph.node if node.op_type == kind]


def test_all_files_are_there_and_nothing_else(exported):
    folder, table = exported
    assert {path.name for path in folder.iterdir()} == {*FILES.values(), "manifest.json"}
    assert list(table["file"]) == list(FILES.values())
    assert list(table["bytes"]) == [(folder / name).stat().st_size for name in FILES.values()]


def test_the_parity_table_has_its_columns(exported):
    assert list(exported[1].columns) == [
        "format",
        "file",
        "bytes",
        "max_abs_diff",
        "pixels_changed",
        "dice",
        "dice_difference",
    ]


def test_the_parity_table_says_that_the_float_formats_agree(exported, trained):
    table = exported[1].set_index("format")
    assert (table.loc[["pytorch", "torchscript", "exported", "onnx"], "max_abs_diff"] <= 1e-4).all()
    assert table.loc["pytorch", "dice"] == pytest.approx(trained.best_dice, abs=1e-6)
    assert table.loc["int8", "max_abs_diff"] > 0
    assert abs(table.loc["int8", "dice_difference"]) < 0.05


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_logits_of_the_trained_model(exported, trained, images, name):
    logits, info = open_model(exported[0] / FILES[name], device="cpu")
    with torch.no_grad():
        expected = trained.model()(torch.from_numpy(images)).numpy()
    assert (info["format"], info["size"], info["threshold"]) == (name, 32, 0.5)
    found = logits(images)
    assert found.dtype == np.float32
    if name == "int8":
        sides_agree = (found > 0) == (expected > 0)
        assert sides_agree.mean() > 0.95
    else:
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_format_takes_any_batch_size(exported, images, name, batch):
    logits, _ = open_model(exported[0] / FILES[name], device="cpu")
    np.testing.assert_allclose(logits(images[:batch]), logits(images)[:batch], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["onnx", "int8"])
def test_onnx_files_run_in_a_bare_onnx_runtime(exported, images, name):
    session = onnxruntime.InferenceSession(exported[0] / FILES[name])
    (given,), (taken,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, taken.name) == ("input", "tensor(float)", "logits")
    assert given.shape[1] == 1
    assert all(isinstance(given.shape[axis], str) for axis in (0, 2, 3))  # open dimensions
    (found,) = session.run(None, {"input": images})
    assert found.shape == images.shape


def test_the_onnx_file_is_one_sound_file_of_the_stated_opset(exported):
    path = exported[0] / FILES["onnx"]
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET
    assert not any(tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_a_folder_of_this_computer(exported, trained, name):
    content = (exported[0] / FILES[name]).read_bytes()
    for folder in (config.REPOSITORY, exported[0], trained.folder, "/site-packages/"):
        assert str(folder).encode() not in content


def test_int8_quantises_activations_and_weights_as_pairs_of_nodes(exported):
    path = exported[0] / FILES["int8"]
    assert len(nodes(path, "QuantizeLinear")) >= 11
    assert len(nodes(path, "DequantizeLinear")) >= 22
    assert nodes(exported[0] / FILES["onnx"], "QuantizeLinear") == []


def test_int8_weights_have_a_scale_per_output_channel(exported):
    path = exported[0] / FILES["int8"]
    stored = {tensor.name: to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    dequantised = {node.output[0]: node for node in nodes(path, "DequantizeLinear")}
    convolutions = nodes(path, "Conv")
    assert len(convolutions) == 11  # two per block, and the head
    for convolution in convolutions:
        weights, scale, _ = (stored[name] for name in dequantised[convolution.input[1]].input)
        assert weights.dtype == np.int8
        assert scale.shape == (weights.shape[0],)
        assert np.abs(weights.astype(int)).max() <= 64  # 7 of 8 bits


def test_int8_is_calibrated_on_the_range_the_images_take(exported):
    """The first scale is that of the input: grey / 255 spans 0 to 1."""
    path = exported[0] / FILES["int8"]
    stored = {tensor.name: to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    (first,) = [node for node in nodes(path, "QuantizeLinear") if node.input[0] == "input"]
    assert 0.5 / 255 < stored[first.input[1]] <= 1.001 / 127


def test_wrong_calibration_makes_a_worse_model(exported, images, tmp_path):
    """Greys of 0 to 255, where the model is fed 0 to 1: the steps become 255 times too coarse."""
    quantize_int8(exported[0] / FILES["onnx"], tmp_path / "wrong.onnx", images * 255)
    paths = exported[0] / FILES["onnx"], exported[0] / FILES["int8"], tmp_path / "wrong.onnx"
    exact, right, wrong = (open_model(path)[0](images) for path in paths)
    assert np.abs(wrong - exact).mean() > 5 * np.abs(right - exact).mean()


@pytest.mark.parametrize("name", ["onnx", "int8"])
def test_our_description_is_the_only_one_in_the_file(exported, name):
    (entry,) = onnx.load(exported[0] / FILES[name]).metadata_props
    assert entry.key == METADATA_KEY
    assert json.loads(entry.value) == {
        "size": 32,
        "threshold": 0.5,
        "normalisation": "grey / 255",
    }


def test_bf16_computes_something_else_than_fp32_but_nearly_the_same(trained, images):
    if open_model(trained.checkpoint, "cpu", precision="bf16")[1]["format"] != "pytorch":
        pytest.fail("a checkpoint is a PyTorch file")
    full = open_model(trained.checkpoint, "cpu")[0](images[:1])
    half = open_model(trained.checkpoint, "cpu", precision="bf16")[0](images[:1])
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.05 * np.abs(full).max()


@pytest.mark.parametrize("name", ["pytorch", "exported", "onnx", "int8"])
@pytest.mark.parametrize("shape", [(20, 48), (8, 8), (64, 32)])
def test_formats_take_any_size_in_multiples_of_4(exported, trained, name, shape):
    logits, _ = open_model(exported[0] / FILES[name], device="cpu")
    batch = np.random.default_rng(0).random((2, 1, *shape), dtype=np.float32)
    with torch.no_grad():
        expected = trained.model()(torch.from_numpy(batch)).numpy()
    found = logits(batch)
    assert found.shape == batch.shape
    if name != "int8":
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_a_format_that_fails_its_tolerance_is_not_left_behind(
    trained, tables, tmp_path, monkeypatch
):
    """With no tolerance at all, ONNX Runtime's rounding is too much."""
    monkeypatch.setattr("unetlib.export.TOLERANCE", 0.0)
    train, val = tables
    with pytest.raises(ModelFileError, match=r"unet_model_onnx\.onnx: differs too much.*removed"):
        export_all(trained, tmp_path, train=train, val=val)
    assert not (tmp_path / FILES["onnx"]).exists()
    assert FILES["onnx"] not in (tmp_path / "manifest.json").read_text()
    assert (tmp_path / FILES["exported"]).exists()


def test_a_deeper_and_plainer_network_with_a_threshold_of_its_own_exports_too(tables, tmp_path):
    model = UNet(widths=(2, 4, 4, 8), batch_norm=False, skips=False, up_kernel=2)
    save_model(tmp_path / "own.pth", model, 16, threshold=0.3)
    train, val = tables
    doubled = pd.concat([val, val])  # an index that is not unique, as joined tables have
    table = export_all(tmp_path / "own.pth", tmp_path / "models", train=train, val=doubled)
    assert (table["max_abs_diff"][:4] <= 1e-4).all()
    for file in FILES.values():
        _, info = open_model(tmp_path / "models" / file)
        assert (info["size"], info["threshold"]) == (16, 0.3)


@pytest.mark.parametrize("up_kernel", [2, 3])
def test_the_subpixel_form_is_the_same_network(up_kernel):
    model = UNet(widths=(4, 6, 8), up_kernel=up_kernel).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rewritten = subpixel(model)
    images = torch.rand(2, 1, 20, 36)
    with torch.no_grad():
        torch.testing.assert_close(rewritten(images), model(images), atol=1e-5, rtol=1e-4)
    assert not any(isinstance(one, torch.nn.ConvTranspose2d) for one in rewritten.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_subpixel_form_runs_wholly_in_8_bits(trained, exported, tables, tmp_path):
    export_onnx(subpixel(trained.model()), tmp_path / "plain.onnx", 32)
    calibration = to_tensor(CarvanaDataset(tables[0], 32).images).numpy()
    quantize_int8(tmp_path / "plain.onnx", tmp_path / "int8.onnx", calibration)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "as it runs.onnx")
    onnxruntime.InferenceSession(
        tmp_path / "int8.onnx", options, providers=["CPUExecutionProvider"]
    )
    runs = {node.op_type for node in onnx.load(tmp_path / "as it runs.onnx").graph.node}
    assert "QLinearConv" in runs and not runs & {"Conv", "ConvTranspose"}
    images = to_tensor(CarvanaDataset(tables[1], 32).images).numpy()
    plain = open_model(exported[0] / FILES["pytorch"], "cpu")[0](images)
    found = open_model(tmp_path / "int8.onnx")[0](images)
    assert ((found > 0) != (plain > 0)).mean() < 0.02
