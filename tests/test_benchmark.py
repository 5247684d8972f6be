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
    multiply_rate,
    predictors_in,
    save_model,
    stages,
)
from unetlib.deploy.manifest import write_manifest

NAMES = ["pytorch fp32", "torchscript fp32", "exported fp32", "onnx fp32", "int8"]


def test_all_exported_formats_are_contenders_eager_first(exported, capsys):
    names = [one.name for one in contenders(exported[0], runtimes=())]
    assert [name for name in names if "bf16" not in name] == NAMES
    assert ("bf16" in names[1]) != ("left out" in capsys.readouterr().out)


def test_an_extra_runtime_joins_if_it_is_installed_and_is_named_if_not(exported, capsys):
    names = [one.name for one in contenders(exported[0], runtimes=("openvino",))]
    if importlib.util.find_spec("openvino"):
        assert {"openvino fp32", "openvino int8"} <= set(names)
    else:
        assert "openvino: not installed (pip install openvino): left out" in capsys.readouterr().out


@pytest.mark.fault("an extra runtime that does not exist", "refused, with those that do")
@pytest.mark.parametrize("runtimes", ["magic", ("openvino", "magic")], ids=["one", "two"])
def test_an_unknown_runtime_is_refused(exported, runtimes):
    with pytest.raises(ValueError, match="runtime 'magic' is unknown: use openvino or compile"):
        contenders(exported[0], runtimes=runtimes)


def test_one_extra_runtime_need_not_be_in_a_list(exported):
    one, listed = (contenders(exported[0], runtimes=of) for of in ("openvino", ["openvino"]))
    assert [predictor.name for predictor in one] == [predictor.name for predictor in listed]


def test_files_of_an_older_training_do_not_join(exported, tmp_path, capsys):
    """`train` writes its .pth beside the files that an earlier `export` left."""
    folder = shutil.copytree(exported[0], tmp_path / "models")
    model, _ = load_model(folder / FILES["pytorch"])
    model.head.bias.data += 1
    save_model(folder / FILES["pytorch"], model, 32)
    write_manifest(folder, [folder / FILES["pytorch"]])
    names = [one.name for one in contenders(folder, runtimes=())]
    assert all(name.startswith("pytorch") for name in names)
    assert capsys.readouterr().out.count("of another training") == len(FILES) - 1


def test_a_folder_without_models_is_an_error(tmp_path, tables):
    with pytest.raises(DataError, match="no exported model here"):
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
    fresh = cold_start(load_predictor(exported[0] / FILES["onnx"]))
    assert 0 < fresh["peak_mb"] < 500
    assert fresh["first_s"] > 0 and fresh["import_s"] > 0


def test_a_cold_start_with_a_file_that_is_gone_is_an_error(exported, tmp_path):
    copy = shutil.copy(exported[0] / FILES["onnx"], tmp_path / "model.onnx")
    predictor = load_predictor(copy)
    predictor.path.unlink()
    with pytest.raises(ModelFileError, match=r"a fresh process cannot use it: .*no such file"):
        cold_start(predictor)


@pytest.mark.parametrize("textbook", [False, True])
def test_every_stage_of_a_picture_is_timed(predictor, tables, textbook):
    spent = stages(predictor, tables[1]["image"], textbook=textbook, repeats=1)
    assert list(spent.index) == ["decode", "preprocess", "model", "upsample", "RLE"]
    assert (spent >= 0).all() and spent["model"] > 0 and spent["decode"] > 0


def test_the_machine_multiplies_at_a_rate_of_its_own():
    assert 0.1 < multiply_rate() < 1e6


def test_compare_scores_at_the_models_and_at_the_original_size(exported, tables, tmp_path):
    (tmp_path / FILES["onnx"]).write_bytes((exported[0] / FILES["onnx"]).read_bytes())
    table = compare(tmp_path, tables[1], repeats=2, runtimes=())
    assert list(table.columns) == [
        "name",
        "dice",
        "dice_full",
        "agreement",
        "max_abs_diff",
        "megabytes",
        "peak_mb",
        "first_s",
        "p50_ms",
        "p95_ms",
        "ratio",
    ]
    row = table.iloc[0]
    expected = exported[1].set_index("format")
    assert row["name"] == "onnx fp32"
    assert row["dice"] == pytest.approx(expected.loc["onnx", "dice"], abs=1e-6)
    assert 0.7 < row["dice_full"] <= 1
    assert (row["agreement"], row["max_abs_diff"], row["ratio"]) == (1, 0, 1)
    assert row["megabytes"] == pytest.approx(expected.loc["onnx", "bytes"] / 1e6)
