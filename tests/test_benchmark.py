"""The comparison of formats: complete, fair, and never of files that do not belong together."""

import importlib.util
import shutil

import numpy as np
import pytest

from unetlib import (
    FILES,
    DataError,
    ModelFileError,
    benchmark,
    cold_start,
    compare,
    load_model,
    load_predictor,
    predictors_in,
    save_model,
)
from unetlib.deploy.manifest import write_manifest

NAMES = ["pytorch fp32", "torchscript fp32", "exported fp32", "onnx fp32", "int8"]


def test_all_exported_formats_take_part_eager_first_and_an_extra_runtime(exported, capsys):
    """What is left out is named; one runtime need not be in a list."""
    names = [one.name for one in predictors_in(exported[0], runtimes="openvino")]
    plain = [name for name in names if not name.startswith("openvino")]
    assert [name for name in plain if "bf16" not in name] == NAMES
    shown = capsys.readouterr().out
    assert ("bf16" in names[1]) != ("bf16: left out" in shown)
    if importlib.util.find_spec("openvino"):
        assert {"openvino fp32", "openvino int8"} <= set(names)
    else:
        assert plain == names and "pip install openvino" in shown


@pytest.mark.slow
def test_the_compiled_network_takes_part_where_it_can_be_compiled(exported, tmp_path, capsys):
    names = [one.name for one in predictors_in(exported[0], runtimes=("compile",))]
    assert ("compile fp32" in names) != ("compile: left out" in capsys.readouterr().out)
    shutil.copy(exported[0] / FILES["onnx"], tmp_path)
    names = [one.name for one in predictors_in(tmp_path, runtimes=("compile",))]
    assert names == ["onnx fp32"]  # nothing to compile


@pytest.mark.fault("an extra runtime that does not exist", "refused, with those that do")
@pytest.mark.parametrize("runtimes", ["magic", ("openvino", "magic")], ids=["one", "two"])
def test_an_unknown_runtime_is_refused(exported, runtimes):
    with pytest.raises(ValueError, match=r"magic.*openvino or compile"):
        predictors_in(exported[0], runtimes=runtimes)


def test_files_of_an_older_training_do_not_join(exported, tmp_path, capsys):
    """`train` writes its .pth beside the files that an earlier `export` left."""
    folder = shutil.copytree(exported[0], tmp_path / "models")
    model, _ = load_model(folder / FILES["pytorch"])
    model.head.bias.data += 1
    save_model(folder / FILES["pytorch"], model, 32)
    write_manifest(folder, [folder / FILES["pytorch"]])
    names = [one.name for one in predictors_in(folder, runtimes=())]
    assert all(name.startswith("pytorch") for name in names)
    shown = capsys.readouterr().out
    assert all(shown.count(str(folder / FILES[name])) == 1 for name in list(FILES)[1:])


def test_a_folder_without_models_is_an_error(tmp_path, tables):
    with pytest.raises(DataError, match="python -m unetlib export"):
        compare(tmp_path, tables[1])


def test_the_benchmark_has_a_row_per_model_and_batch_size(exported):
    predictors = [load_predictor(exported[0] / FILES[name]) for name in ("pytorch", "onnx")]
    table = benchmark(predictors, batch_sizes=(1, 3), repeats=4, warm_up=1)
    assert list(zip(table["name"], table["batch"], strict=True)) == [
        ("pytorch fp32", 1),
        ("onnx fp32", 1),
        ("pytorch fp32", 3),
        ("onnx fp32", 3),
    ]
    assert (table["p95_ms"] >= table["p50_ms"]).all() and (table["p50_ms"] > 0).all()
    assert list(table["ratio"][table["name"] == "pytorch fp32"]) == [1, 1]
    np.testing.assert_allclose(table["images_per_second"], 1000 * table["batch"] / table["p50_ms"])


def test_a_cold_start_is_measured_in_a_process_of_its_own(exported):
    fresh = cold_start(load_predictor(exported[0] / FILES["onnx"], trust=True))
    assert 0 < fresh["peak_mb"] < 500
    assert fresh["first_s"] > 0


def test_a_cold_start_with_a_file_that_is_gone_is_an_error(exported, tmp_path):
    copy = shutil.copy(exported[0] / FILES["onnx"], tmp_path / "model.onnx")
    predictor = load_predictor(copy)
    predictor.path.unlink()
    with pytest.raises(ModelFileError, match=r"model\.onnx"):
        cold_start(predictor)
