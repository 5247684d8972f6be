"""Files that should not be opened, or not without a warning: damaged, foreign, malicious."""

import os
import pickle
import shutil
import zipfile

import numpy as np
import onnx
import pytest
import torch

from unetlib import FILES, ModelFileError, UNet, export_all, load_predictor, save_model
from unetlib.__main__ import main
from unetlib.deploy.formats import missing_runtime
from unetlib.deploy.manifest import MANIFEST, read_manifest, write_manifest

PROGRAMS = [FILES["torchscript"], FILES["exported"]]


@pytest.mark.fault(
    "a model file missing, empty, cut in half, or text", "one sentence that names the file"
)
@pytest.mark.parametrize("file", FILES.values())
@pytest.mark.parametrize("content", ["missing", "empty", "text", "half"])
def test_a_damaged_file_is_one_clear_error(exported, tmp_path, file, content):
    path = tmp_path / file
    whole = (exported[0] / file).read_bytes()
    given = {"empty": b"", "text": b"not a model", "half": whole[: len(whole) // 2]}
    if content != "missing":
        path.write_bytes(given[content])
    shutil.copy(exported[0] / MANIFEST, tmp_path)
    with pytest.raises(ModelFileError) as caught:
        load_predictor(path, trust=True)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_somebody_elses_onnx_file_is_named_as_such(exported, tmp_path):
    model = onnx.load(exported[0] / FILES["onnx"])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ModelFileError, match=r"other\.onnx.*export it again"):
        load_predictor(tmp_path / "other.onnx")


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_somebody_elses_torchscript_file_is_named_as_such(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), tmp_path / "other.pth")
    with pytest.raises(ModelFileError, match=r"other\.pth.*export it again"):
        load_predictor(tmp_path / "other.pth", trust=True)


def test_a_model_of_another_architecture_is_named(tmp_path):
    save_model(tmp_path / "model.pth", UNet(widths=(2, 4)), 16)
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    for architecture in ({"layers": 3}, content["architecture"] | {"widths": (4, 8)}, None):
        torch.save(content | {"architecture": architecture}, tmp_path / "model.pth")
        with pytest.raises(ModelFileError, match=r"model\.pth"):
            load_predictor(tmp_path / "model.pth")


# --------------------------------------------------------------------------------------- programs


@pytest.mark.parametrize("file", PROGRAMS)
def test_a_program_opens_only_beside_its_manifest(exported, tmp_path, file):
    shutil.copy(exported[0] / file, tmp_path)
    with pytest.raises(ModelFileError, match=f"{file}.*trust=True"):
        load_predictor(tmp_path / file)
    assert load_predictor(tmp_path / file, trust=True).size == 32
    shutil.copy(exported[0] / MANIFEST, tmp_path)
    assert load_predictor(tmp_path / file).size == 32


@pytest.mark.fault(
    "a TorchScript or .pt2 program exchanged after the export",
    "refused: manifest.json names another SHA-256",
)
@pytest.mark.parametrize("file", PROGRAMS)
def test_a_program_that_was_exchanged_is_refused(exported, tmp_path, file):
    for name in (file, MANIFEST):
        shutil.copy(exported[0] / name, tmp_path)
    with zipfile.ZipFile(tmp_path / file, "a") as archive:
        archive.writestr("added.txt", "one byte is enough")
    with pytest.raises(ModelFileError, match=file):
        load_predictor(tmp_path / file)


@pytest.mark.parametrize("name", ["pytorch", "onnx", "int8"])
def test_weights_changed_since_the_export_are_refused(exported, tmp_path, name):
    """One flipped bit in the weights would still open, and predict something else."""
    shutil.copy(exported[0] / MANIFEST, tmp_path)
    content = bytearray((exported[0] / FILES[name]).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / FILES[name]).write_bytes(content)
    with pytest.raises(ModelFileError, match=FILES[name]):
        load_predictor(tmp_path / FILES[name])


def test_a_manifest_keeps_what_it_says_of_files_not_written_now(exported, tmp_path):
    for name in ("pytorch", "onnx"):
        shutil.copy(exported[0] / FILES[name], tmp_path)
    write_manifest(tmp_path)
    before = read_manifest(tmp_path)
    shutil.copy(exported[0] / FILES["int8"], tmp_path / FILES["pytorch"])  # any other content
    write_manifest(tmp_path, [tmp_path / FILES["pytorch"]])
    after = read_manifest(tmp_path)
    assert after[FILES["onnx"]] == before[FILES["onnx"]]
    assert after[FILES["pytorch"]]["weights"] != after[FILES["onnx"]]["weights"]


def test_a_suffix_in_capitals_is_the_same_format(exported, tmp_path):
    for name in ("exported", "onnx"):
        path = tmp_path / FILES[name].upper()
        shutil.copy(exported[0] / FILES[name], path)
        assert load_predictor(path, "cpu", trust=True).format == name


@pytest.mark.fault("a device that this computer lacks", "PyTorch's own error")
@pytest.mark.parametrize("device", ["cuda:99", "gpu", 99, 2.5], ids=str)
def test_a_device_that_is_not_there_is_refused(exported, device):
    with pytest.raises((RuntimeError, AssertionError, TypeError)):
        load_predictor(exported[0] / FILES["pytorch"], device)


@pytest.mark.fault("threads that is not an integer above 0", "refused")
@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"], ids=str)
def test_an_impossible_number_of_threads_is_refused(exported, threads):
    with pytest.raises(ValueError, match=f"threads={threads!r}"):
        load_predictor(exported[0] / FILES["pytorch"], "cpu", threads=threads)


@pytest.mark.fault("manifest.json of another program, or damaged", "refused, nothing is written")
@pytest.mark.parametrize(
    "content",
    ['{"name": "app", "icons": []}', "[]", "3", "", '{"unet_model_onnx.onnx": {'],
    ids=["object", "list", "number", "empty", "cut off"],
)
def test_another_programs_manifest_is_never_replaced(trained, tables, tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    train, val = tables
    settings = ["--output-dir", str(tmp_path), "--epochs", "1", "--size", "32"]
    assert main(["train", *settings]) == 1
    for refused in (
        lambda: export_all(trained, tmp_path, train=train, val=val),
        lambda: write_manifest(tmp_path, []),
    ):
        with pytest.raises(ModelFileError, match=r"manifest\.json"):
            refused()
    assert (tmp_path / MANIFEST).read_text() == content
    assert {path.name for path in tmp_path.iterdir()} <= {MANIFEST, "home"}


def test_a_manifest_without_entries_is_written_anew(exported, tmp_path):
    shutil.copy(exported[0] / FILES["pytorch"], tmp_path)
    (tmp_path / MANIFEST).write_text("{}")
    write_manifest(tmp_path, [tmp_path / FILES["pytorch"]])
    assert list(read_manifest(tmp_path)) == [FILES["pytorch"]]


# --------------------------------------------------------------------------------- extra runtimes


@pytest.mark.parametrize("name", ["onnx", "int8"])
def test_openvino_runs_the_onnx_files(exported, name):
    pytest.importorskip("openvino", reason="OpenVINO is an optional extra and not installed")
    batch = np.random.default_rng(0).random((3, 1, 32, 32), dtype=np.float32)
    plain = load_predictor(exported[0] / FILES[name]).logits(batch)
    predictor = load_predictor(exported[0] / FILES[name], runtime="openvino", threads=1)
    assert predictor.format == name
    found = predictor.logits(batch)
    assert np.abs(found - plain).max() < (1e-3 if name == "onnx" else 2)
    kept = found.copy()
    predictor.logits(1 - batch)
    np.testing.assert_array_equal(found, kept)  # its own memory, not the next call's


@pytest.mark.parametrize("runtime", ["openvino", "compile", "magic"])
def test_a_runtime_that_does_not_run_the_file_says_what_it_runs(exported, runtime):
    file = FILES["onnx"] if runtime == "compile" else FILES["pytorch"]
    with pytest.raises(ModelFileError, match=f"{file}.*{runtime}"):
        load_predictor(exported[0] / file, runtime=runtime)


@pytest.mark.parametrize(
    ("name", "precision"), [("onnx", "bf16"), ("exported", "bf16"), ("onnx", "fp16")]
)
def test_a_precision_that_does_nothing_is_refused(exported, name, precision):
    with pytest.raises(ModelFileError, match=f"{FILES[name]}.*{precision}"):
        load_predictor(exported[0] / FILES[name], "cpu", precision=precision)


@pytest.mark.slow
def test_the_compiled_network_predicts_the_same(exported):
    reason = missing_runtime("compile")
    if reason:
        pytest.skip(reason)
    batch = np.random.default_rng(0).random((2, 1, 32, 32), dtype=np.float32)
    plain = load_predictor(exported[0] / FILES["pytorch"], "cpu").logits(batch)
    compiled = load_predictor(exported[0] / FILES["pytorch"], "cpu", runtime="compile").logits(
        batch
    )
    np.testing.assert_allclose(compiled, plain, atol=1e-4)


@pytest.mark.fault("manifest.json with other content", "programs are refused")
@pytest.mark.parametrize("content", ["", "[]", "{", '{"unet_model_torchjit.pth": 3}'])
def test_a_broken_manifest_vouches_for_nothing(exported, tmp_path, content):
    shutil.copy(exported[0] / FILES["torchscript"], tmp_path)
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(ModelFileError, match=MANIFEST):
        load_predictor(tmp_path / FILES["torchscript"])


@pytest.mark.parametrize("name", ["pytorch", "onnx", "int8"])
def test_weights_and_graphs_need_nobody_to_vouch(exported, tmp_path, name):
    shutil.copy(exported[0] / FILES[name], tmp_path)
    assert load_predictor(tmp_path / FILES[name]).size == 32


# -------------------------------------------------------------------------------------- malicious


class Payload:
    """What an attacker would put into a file; here it only makes an empty folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.fault("a model file that would run code", "refused, and not executed")
@pytest.mark.parametrize("file", [FILES["pytorch"], *PROGRAMS])
@pytest.mark.parametrize("write", [torch.save, pickle.dump], ids=["torch.save", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, file, write):
    executed = tmp_path / "executed"
    with open(tmp_path / file, "wb") as target:
        write(Payload(executed), target)
    with pytest.raises(ModelFileError, match=file):
        load_predictor(tmp_path / file)
    assert not executed.exists()


@pytest.mark.fault("an ONNX file that reads other files of the computer", "refused")
@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "weights.bin"])
def test_an_onnx_file_that_reaches_for_other_files_is_refused(exported, tmp_path, location):
    model = onnx.load(exported[0] / FILES["onnx"])
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path = tmp_path / "folder" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(model.SerializeToString())
    size = 4 * int(np.prod(tensor.dims))
    for weights in (tmp_path / "secret.bin", path.parent / "weights.bin"):
        weights.write_bytes(bytes(size))
    with pytest.raises(ModelFileError, match=r"model\.onnx"):
        load_predictor(path)


@pytest.mark.parametrize("place", ["function", "branch", "sparse"])
def test_other_files_are_found_wherever_the_graph_hides_them(exported, tmp_path, place):
    tensor = onnx.TensorProto(dims=[1], data_type=1, name="far")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    model = onnx.load(exported[0] / FILES["onnx"])
    if place == "function":
        constant = onnx.helper.make_node("Constant", [], ["y"])
        constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
        model.functions.add(name="f", domain="d", output=["y"]).node.append(constant)
    elif place == "branch":
        branch = model.graph.node[0].attribute.add(name="then", type=onnx.AttributeProto.GRAPH)
        branch.g.initializer.append(tensor)
    else:
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"model\.onnx"):
        load_predictor(tmp_path / "model.onnx")


def test_the_manifest_names_every_file(exported):
    manifest = read_manifest(exported[0])
    assert set(manifest) == set(FILES.values())
    for entry in manifest.values():
        assert len(entry["sha256"]) == 64
