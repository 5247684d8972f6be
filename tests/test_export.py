import json
import shutil
import warnings

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from onnx.numpy_helper import to_array

from unetlib import (
    FILES,
    REPOSITORY,
    CarvanaDataset,
    ModelFileError,
    UNet,
    export_all,
    export_onnx,
    export_program,
    export_torchscript,
    load_predictor,
    parity,
    quantize_int8,
    save_model,
    to_tensor,
)
from unetlib.deploy.export import OPSET
from unetlib.deploy.formats import METADATA_KEY
from unetlib.deploy.manifest import MANIFEST, read_manifest


@pytest.fixture(scope="session")
def images(tables):
    """Validation images as the model takes them: float32 (4, 1, 32, 32)."""
    return to_tensor(CarvanaDataset(tables[1], 32).images).numpy()


def nodes(path, kind):
    return [node for node in onnx.load(path).graph.node if node.op_type == kind]


def test_all_files_are_there_and_nothing_else(exported):
    folder, table = exported
    assert {path.name for path in folder.glob("[!.]*")} == {*FILES.values(), "manifest.json"}
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
        "note",
    ]


def test_the_parity_table_says_that_the_float_formats_agree(exported, trained):
    table = exported[1].set_index("format")
    assert (table.loc[["pytorch", "torchscript", "exported", "onnx"], "max_abs_diff"] <= 1e-4).all()
    assert table.loc["pytorch", "dice"] == pytest.approx(trained.best_dice, abs=1e-6)
    assert table.loc["int8", "max_abs_diff"] > 0
    assert abs(table.loc["int8", "dice_difference"]) < 0.05


def test_the_parity_table_is_the_same_in_a_process_that_has_seen_the_model(exported, tables):
    folder, table = exported
    pd.testing.assert_frame_equal(parity(folder, tables[1]), table, atol=1e-6)


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_trained_models_logits_for_any_batch_size(
    exported, trained, images, name
):
    predictor = load_predictor(exported[0] / FILES[name], device="cpu")
    logits = predictor.logits
    for batch in (1, 3):
        np.testing.assert_allclose(
            logits(images[:batch]), logits(images)[:batch], atol=1e-4, rtol=1e-4
        )
    with torch.no_grad():
        expected = trained.model().cpu()(torch.from_numpy(images)).numpy()
    assert (predictor.format, predictor.size, predictor.threshold) == (name, 32, 0.5)
    found = logits(images)
    assert found.dtype == np.float32
    if name == "int8":
        sides_agree = (found > 0) == (expected > 0)
        assert sides_agree.mean() > 0.95
    else:
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


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
    for folder in (REPOSITORY, exported[0], trained.folder, "/site-packages/"):
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
    exact, right, wrong = (load_predictor(path).logits(images) for path in paths)
    assert np.abs(wrong - exact).mean() > 5 * np.abs(right - exact).mean()


@pytest.mark.parametrize("name", ["onnx", "int8"])
def test_our_description_is_the_only_one_in_the_file(exported, name):
    (entry,) = onnx.load(exported[0] / FILES[name]).metadata_props
    assert entry.key == METADATA_KEY
    assert json.loads(entry.value) == {
        "size": 32,
        "threshold": 0.5,
        "colour": False,
        "normalisation": "grey / 255",
    }


def test_bf16_computes_something_else_than_fp32_but_nearly_the_same(trained, images):
    full = load_predictor(trained.checkpoint, "cpu").logits(images[:1])
    half = load_predictor(trained.checkpoint, "cpu", precision="bf16").logits(images[:1])
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.05 * np.abs(full).max()


@pytest.mark.parametrize("name", ["pytorch", "exported", "onnx", "int8"])
def test_formats_take_any_size_in_multiples_of_4(exported, trained, name):
    logits = load_predictor(exported[0] / FILES[name], device="cpu").logits
    for shape in ((20, 48), (8, 8), (64, 32)):
        batch = np.random.default_rng(0).random((2, 1, *shape), dtype=np.float32)
        with torch.no_grad():
            expected = trained.model().cpu()(torch.from_numpy(batch)).numpy()
        found = logits(batch)
        assert found.shape == batch.shape
        if name != "int8":
            np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------- what is not well trained, or not equal


@pytest.fixture
def deeper(tmp_path):
    """An untrained network of another kind, with a threshold of its own."""
    model = UNet(widths=(2, 4, 4, 8), batch_norm=False, skips=False, up_kernel=2)
    save_model(tmp_path / "own.pth", model, 16, threshold=0.3)
    return tmp_path / "own.pth"


def test_a_float_format_beyond_its_tolerance_is_refused_and_an_older_export_stays(
    exported, deeper, tables, tmp_path, monkeypatch
):
    """With no tolerance at all, ONNX Runtime's rounding is too much."""
    monkeypatch.setattr("unetlib.deploy.export.TOLERANCE", 0.0)
    folder, (train, val) = shutil.copytree(exported[0], tmp_path / "models"), tables
    doubled = pd.concat([val, val])  # an index that is not unique, as joined tables have
    with pytest.raises(ModelFileError, match=FILES["onnx"]):
        export_all(deeper, folder, train=train, val=doubled)
    assert {path.name for path in folder.glob("[!.]*")} == {*FILES.values(), MANIFEST}
    for path in exported[0].glob("[!.]*"):
        assert (folder / path.name).read_bytes() == path.read_bytes()


def check_notes(folder, table, caught) -> None:
    """Int8 is marked, everywhere alike, if it loses more than 0.01 Dice; nothing else ever is."""
    marked = list(table["file"][table["note"] != ""])
    lost = table.set_index("format").loc["int8", "dice_difference"]
    assert marked == ([FILES["int8"]] if lost < -0.01 else [])
    assert set(table["note"]) <= {"", "undertrained?"}
    assert set(read_manifest(folder)) == set(FILES.values())
    said = [str(one.message) for one in caught if "Dice" in str(one.message)]
    assert len(said) == len(marked) and all(FILES["int8"] in one for one in said)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_an_untrained_network_is_exported_in_every_format_twice(tables, tmp_path, seed):
    save_model(tmp_path / "untrained.pth", UNet(widths=(2, 4), seed=seed), 32)
    train, val = tables
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            table = export_all(tmp_path / "untrained.pth", tmp_path / "m", train=train, val=val)
        assert (table["max_abs_diff"][:4] <= 1e-4).all()
        assert {path.name for path in (tmp_path / "m").glob("[!.]*")} == {*FILES.values(), MANIFEST}
        check_notes(tmp_path / "m", table, caught)


@pytest.mark.parametrize("name", ["pytorch", "torchscript", "exported", "onnx"])
def test_pytorchs_default_type_changes_no_file(trained, exported, images, tmp_path, name):
    steps = dict(pytorch=save_model, torchscript=export_torchscript)
    steps |= dict(exported=export_program, onnx=export_onnx)
    expected = load_predictor(exported[0] / FILES[name], "cpu").logits(images)
    torch.set_default_dtype(torch.float64)
    try:
        steps[name](model=trained.model().cpu(), path=tmp_path / FILES[name], size=32)
        found = load_predictor(tmp_path / FILES[name], "cpu", trust=True).logits(images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
