"""`python -m unetlib` as a user types it: a process of its own where that is what is promised, else
the same function in this one, which spares the import of PyTorch."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout

import numpy as np
import pytest
from other_process import start
from PIL import Image

from unetlib import (
    FILES,
    REPOSITORY,
    find_samples,
    load_model,
    load_run,
    rle_decode,
    split_by_group,
)
from unetlib.__main__ import main
from unetlib.deploy.manifest import read_manifest
from unetlib.recipe import PRETRAINED

COMMANDS = ["train", "export", "predict", "score", "compare", "download", "subset", "check"]
TRAINED = {
    "best_dice",
    "best_epoch",
    "finished",
    "seconds",
    "images_per_second",
    "device",
    "processes",
    "precision",
    "batch_size",
    "lr",
    "run",
    "checkpoint",
}
COMPARED = (
    "name dice dice_full agreement max_abs_diff megabytes peak_mb first_s p50_ms p95_ms ratio"
)


def in_a_terminal(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
    )


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def refused(*arguments) -> int:
    """The status of a command line that ends before its command begins."""
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    return stopped.value.code


def last_line(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


def one_error(text: str) -> str:
    (line,) = [line for line in text.splitlines() if "error: " in line]
    assert "Traceback" not in text
    return line


# ------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_its_options(command, capsys):
    assert refused(command, "--help") == 0
    shown = capsys.readouterr().out
    assert f"python -m unetlib {command}" in shown
    assert "--json" in shown


def test_help_lists_every_command(capsys):
    assert refused("--help") == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


def test_the_options_of_train_are_the_settings_of_the_recipe(capsys):
    assert refused("train", "--help") == 0
    shown = capsys.readouterr().out
    for option in ("--epochs", "--lr", "--batch-size", "--size", "--seed", "--loss", "--augment"):
        assert option in shown
    assert "--data" in shown and "--output-dir" in shown


def test_the_help_of_train_shows_the_settings_of_the_baseline(capsys):
    assert refused("train", "--help") == 0
    lines = capsys.readouterr().out.replace("│", " ")  # a frame, and lines broken to fit into it
    assert "(baseline: constant)" in " ".join(lines.split())


# -------------------------------------------------------------- what is wrong in what is typed

# (arguments, status, what the answer names); {tmp} is an empty folder, {data} a data set.
MISTAKES = [
    ([], 2, "train"),
    (["dance"], 2, "dance"),
    (["train", "--epochs", "many"], 2, "many"),
    (["subset", "a", "b"], 2, "--cars"),
    (["train", "--size", "30"], 1, "size=30"),
    (["train", "--recipe", "slow"], 2, "slow"),
    (["train", "--data", "{tmp}"], 1, "{tmp}"),
    (["train", "--data", "{tmp}/nowhere"], 1, "{tmp}/nowhere"),
    (["compare", "--models", "{tmp}"], 1, "{tmp}"),
    (["export", "--checkpoint", "{tmp}/none.pth"], 1, "{tmp}/none.pth"),
    (["export"], 1, "python -m unetlib train"),
    (["predict", "{data}", "--model", "none.onnx", "--output", "{tmp}"], 1, "none.onnx"),
    (["predict", "{tmp}", "--model", "{tmp}/../m.onnx", "--output", "{tmp}"], 1, "['{tmp}']"),
    (["predict", "{tmp}/a.jpg", "--model", "{tmp}/../m.onnx", "--output", "x"], 1, "{tmp}/a.jpg"),
    (["predict", "{data}/test"], 2, "--output"),
    (["predict", "{tmp}/a.jpg", "--output", "{tmp}/masks"], 1, "{tmp}/a.jpg"),
    (["predict", "{data}/test", "--output", "{tmp}/x.csv", "--overlay"], 1, "{tmp}/x.csv"),
    (["predict", "{data}/test", "--output", "{tmp}/x.csv.gz", "--cutout"], 1, "--cutout"),
    (["score"], 2, "submission"),
    (["score", "{tmp}/none.csv"], 1, "{tmp}/none.csv"),
    (["score", "{data}/train_masks.csv", "--solution", "{tmp}/no.csv"], 1, "{tmp}/no.csv"),
    (["score", "{data}/train_masks.csv"], 1, "{data}/train_masks.csv"),
    (["subset", "{data}", "{tmp}/small", "--cars", "99"], 1, "5 cars"),
    (["subset", "{data}", "{tmp}/small", "--cars", "2", "--size", "0", "9"], 1, "size=(0, 9)"),
    (["download", "--from", "{tmp}/a", "--target", "{tmp}/b"], 1, "{tmp}/a"),
]


def filled_in(words, data_set, tmp_path) -> list[str]:
    (tmp_path / "empty").mkdir(exist_ok=True)
    (tmp_path / "m.onnx").touch()
    return [word.format(tmp=tmp_path / "empty", data=data_set) for word in words]


@pytest.mark.parametrize(
    ("arguments", "status", "named"), MISTAKES, ids=[" ".join(words) for words, *_ in MISTAKES]
)
def test_a_mistake_is_one_line_and_status_1_or_a_box_and_status_2(
    data_set, tmp_path, capsys, arguments, status, named
):
    *arguments, named = filled_in([*arguments, named], data_set, tmp_path)
    ended = run(*arguments) if status == 1 else refused(*arguments)
    shown = capsys.readouterr()
    assert ended == status and shown.out == ""
    assert named in (one_error(shown.err) if status == 1 else " ".join(shown.err.split()))


def test_help_and_mistakes_answer_without_pytorch(data_set, tmp_path):
    """Importing it takes seconds. All in one fresh process."""
    code = """
import json, sys
from unetlib.__main__ import main
for arguments, status in json.loads(sys.argv[1]):
    try:
        ended = main(arguments)
    except SystemExit as error:
        ended = error.code
    assert ended == status and "torch" not in sys.modules, arguments
"""
    typed = [(filled_in(words, data_set, tmp_path), status) for words, status, _ in MISTAKES]
    typed += [(["check", str(tmp_path)], 1), (["--help"], 0)]
    typed += [([command, "--help"], 0) for command in COMMANDS]
    finished = in_a_terminal("-c", code, json.dumps(typed))
    assert finished.returncode == 0, finished.stderr[-1000:]


def test_an_error_in_a_terminal_is_one_line_and_status_1(tmp_path):
    typed = ["-m", "unetlib", "predict", tmp_path, "--model", "none.onnx", "--output", tmp_path]
    process = in_a_terminal(*typed)
    assert process.returncode == 1
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: none.onnx: no such file")


@pytest.mark.parametrize(
    ("variable", "value"), [("UNETLIB_DATA", "/nowhere"), ("UNETLIB_PROFILE", "swift")]
)
def test_a_wrong_environment_is_an_error_too(monkeypatch, capsys, variable, value):
    monkeypatch.setenv(variable, value)
    assert run("train") == 1
    error = one_error(capsys.readouterr().err)
    assert variable in error and value in error


@pytest.mark.skipif(sys.platform == "win32", reason="other systems have such names")
@pytest.mark.fault("a terminal without the letters of a file's name", "every problem is listed")
def test_a_plain_ascii_terminal_lists_all_problems(own_data_set, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    for name in ("b\u00e9ta", "zeta"):
        (own_data_set / "train" / f"{name}.jpg").write_bytes(b"")
    ended = in_a_terminal("-m", "unetlib", "check", own_data_set)
    assert ended.returncode == 1
    assert "b\\xe9ta.jpg" in ended.stdout and "zeta.jpg" in ended.stdout


def test_a_fault_of_the_program_itself_is_not_hidden(monkeypatch, data_set, tmp_path):
    """A RuntimeError that is not a training's keeps its traceback."""
    monkeypatch.setattr("shutil.copyfile", lambda *_: (_ for _ in ()).throw(RuntimeError("ours")))
    monkeypatch.setenv("UNETLIB_PROFILE", "ci")
    with pytest.raises(RuntimeError, match="ours"):
        run("train", "--size", 32, "--epochs", 1, "--widths", 2, 4, "--data", data_set)


# ----------------------------------------------------------------------------------------- train


def test_train_ends_in_one_json_object_and_answers_at_once_when_typed_again(
    data_set, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("UNETLIB_PROFILE", "ci")
    monkeypatch.chdir(data_set.parent)
    settings = {"--epochs": 1, "--lr": 3e-4, "--batch-size": 8, "--size": 32, "--seed": 3}
    typed = ["train", "--json", *(word for pair in settings.items() for word in pair)]
    assert run(*typed, "--data", data_set.name) == 0
    shown = capsys.readouterr()
    assert "profile: ci" in shown.err
    assert "training" in shown.err and "%|" in shown.err and "%|" not in shown.out
    result = last_line(shown.out)
    assert set(result) == TRAINED
    assert 0 <= result["best_dice"] <= 1 and result["finished"] is True
    assert (result["best_epoch"], result["processes"], result["batch_size"]) == (1, 1, 8)
    assert result["lr"] == pytest.approx(30 * 3e-4)
    assert result["checkpoint"] == str(tmp_path / "home" / "models" / FILES["pytorch"])
    model, content = load_model(result["checkpoint"])
    assert model.architecture["widths"] == (8, 16, 32) and content["size"] == 32
    recipe = content["info"]["recipe"]
    assert (recipe["epochs"], recipe["batch_size"], recipe["seed"]) == (1, 8, 3)

    assert run(*typed, "--data", data_set, "--output-dir", tmp_path / "own") == 0
    again = last_line(capsys.readouterr().out)
    assert (again["run"], again["seconds"]) == (result["run"], result["seconds"])
    assert read_manifest(tmp_path / "own").keys() == {FILES["pytorch"]}


def test_train_also_shows_the_dice_of_the_images_with_an_object_where_some_masks_are_empty(
    own_data_set, monkeypatch, capsys
):
    monkeypatch.setenv("UNETLIB_PROFILE", "ci")
    Image.new("L", (60, 40)).save(own_data_set / "train_masks" / "000000000000_01_mask.gif")
    Image.new("L", (60, 40)).save(own_data_set / "train_masks" / "000000000001_01_mask.gif")
    typed = ["train", "--json", "--size", 32, "--epochs", 1, "--lr", 3e-4, "--data", own_data_set]
    assert run(*typed) == 0
    result = last_line(capsys.readouterr().out)
    assert set(result) == TRAINED | {"best_dice_objects"}
    assert result["best_dice_objects"] == load_run(result["run"]).best_dice_objects
    assert result["best_dice_objects"] != result["best_dice"]


def test_the_fast_recipe_can_be_named_and_changed(data_set, monkeypatch, capsys):
    monkeypatch.setenv("UNETLIB_PROFILE", "ci")
    settings = ["--size", 32, "--widths", 2, 4, "--loss", "bce"]
    assert run("train", "--recipe", "fast", *settings, "--data", data_set) == 0
    shown = capsys.readouterr().out
    folder = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)["run"]
    recipe = load_run(folder).recipe
    assert (recipe.schedule, recipe.optimizer, recipe.augment) == ("one_cycle", "muon", "mild")
    assert (recipe.loss, recipe.widths) == ("bce", (2, 4))


def test_a_learning_rate_that_explodes_is_one_line_and_status_1(monkeypatch, capsys):
    monkeypatch.setenv("UNETLIB_PROFILE", "ci")
    settings = ["--epochs", 1, "--size", 32, "--widths", 2, 4]
    assert run("train", "--lr", "1e14", *settings) == 1
    assert "lower the learning rate" in one_error(capsys.readouterr().err)


def type_in(arguments: list[str]) -> tuple[int, str]:
    with redirect_stdout(io.StringIO()) as shown:
        status = main(arguments)
    return status, shown.getvalue()


def test_a_stopped_training_ends_with_130_and_says_how_to_go_on(data_set, tmp_path):
    """Ctrl-C in a process of its own, after its first epoch."""
    typed = ["train", "--size", "32", "--epochs", "3000", "--widths", "2", "4", "--json"]
    process, answer = start(type_in, typed)
    while not list(tmp_path.glob("home/runs/*/history.csv")):
        time.sleep(0.02)
        assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    status, shown = answer.recv()
    process.join()
    assert status == 130
    assert "fit again to go on" in shown
    assert last_line(shown)["finished"] is False
    assert os.path.exists(last_line(shown)["checkpoint"])


def test_a_training_stopped_in_its_first_epoch_writes_no_model(tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("unetlib.training.Learner.step", stop)
    monkeypatch.setenv("UNETLIB_PROFILE", "ci")
    assert run("train", "--size", 32, "--widths", 2, 4) == 1
    assert "epoch" in one_error(capsys.readouterr().err)
    assert list((tmp_path / "home" / "models").iterdir()) == []


def test_a_command_that_is_stopped_before_it_has_a_result_ends_with_130(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("unetlib.support.folders.data_dir", stop)
    assert run("check") == 130
    assert capsys.readouterr().err == "stopped\n"


# ------------------------------------------------------------------------------ export and compare


@pytest.mark.fault("int8 loses much Dice", "all formats are written, it is marked, a warning")
def test_export_takes_the_newest_run_and_marks_int8_that_loses_dice(
    trained, own_data_set, tmp_path, capsys
):
    """Calibrated on pictures darker than any car, a good network is sure to lose Dice."""
    train, _ = split_by_group(find_samples(own_data_set))
    for image in train["image"]:
        Image.new("L", (60, 40), 20).save(image)
    shutil.copytree(trained.folder, tmp_path / "home" / "runs" / trained.folder.name)
    folder = tmp_path / "home" / "models"
    assert run("export", "--data", own_data_set, "--json") == 0
    shown = capsys.readouterr()
    result = last_line(shown.out)
    assert result["checkpoint"].endswith(os.path.join(trained.folder.name, "best.pth"))
    rows = result["formats"]
    assert [row["format"] for row in rows] == list(FILES)
    assert all(row["max_abs_diff"] <= 1e-4 for row in rows[:4])
    assert [row["note"] for row in rows] == ["", "", "", "", "undertrained?"]
    assert {path.name for path in folder.glob("[!.]*")} == {*FILES.values(), "manifest.json"}
    found = [line for line in shown.err.splitlines() if line.startswith("warning: ")]
    named = [result["checkpoint"], str(folder / FILES["int8"])]  # other pictures; it loses Dice
    assert all(name in line for name, line in zip(named, found, strict=True))


def test_compare_prints_a_table_of_quality_speed_and_size(exported, tables, tmp_path, capsys):
    shutil.copy(exported[0] / FILES["onnx"], tmp_path)
    assert run("compare", "--models", tmp_path, "--runtimes") == 0
    header, row = capsys.readouterr().out.strip().splitlines()
    assert header.split() == COMPARED.split()
    assert row.strip().startswith("onnx fp32")
    found = dict(zip(COMPARED.split()[1:], map(float, row.split()[2:]), strict=True))
    expected = exported[1].set_index("format").loc["onnx"]
    assert found["dice"] == pytest.approx(expected["dice"], rel=1e-3)
    assert 0.7 < found["dice_full"] <= 1
    assert (found["agreement"], found["max_abs_diff"], found["ratio"]) == (1, 0, 1)
    assert found["megabytes"] == pytest.approx(expected["bytes"] / 1e6, rel=1e-3)
    assert 0 < found["p50_ms"] <= found["p95_ms"] and found["first_s"] > 0


# --------------------------------------------------------------------------------------- predict


def test_predict_writes_a_mask_per_image(exported, data_set, tmp_path, capsys):
    """A folder and files together; PNG masks at the original size; the unreadable is listed."""
    photo, broken = min((data_set / "train").iterdir()), tmp_path / "broken.jpg"
    broken.write_text("<html>404</html>")
    model, out = exported[0] / FILES["int8"], tmp_path / "out"
    typed = ["predict", data_set / "test", photo, broken, "--model", model, "--output", out]
    assert run(*typed, "--flip", "--json") == 1
    result = last_line(capsys.readouterr().out)
    expected = dict(images=6, masks=5, unreadable=[str(broken)], output=str(out))
    assert result == expected | dict(model=f"int8, {model}")
    names = {path.name for path in out.glob("*.png")}
    assert f"{photo.stem}_mask.png" in names and len(names) == 5
    assert (out / "unreadable.csv").is_file()
    with Image.open(out / f"{photo.stem}_mask.png") as mask:
        assert mask.size == (60, 40)
        assert set(np.unique(np.asarray(mask.convert("L")))) <= {0, 255}


def test_predict_without_a_model_takes_the_weights_of_the_repository(data_set, tmp_path, capsys):
    """The real ones. Which file answers is on stderr; stdout is the result alone."""
    photo, shipped = min((data_set / "test").iterdir()), PRETRAINED
    assert run("predict", photo, "--output", tmp_path / "masks", "--json") == 0
    shown = capsys.readouterr()
    assert f"model: {shipped}\n" in shown.err
    (line,) = shown.out.splitlines()
    assert json.loads(line)["model"] == f"pytorch fp32, {shipped}"
    assert [path.name for path in (tmp_path / "masks").iterdir()] == [f"{photo.stem}_mask.png"]


def test_predict_without_a_model_takes_the_own_export(exported, data_set, tmp_path, capsys):
    folder = shutil.copytree(exported[0], tmp_path / "home" / "models")
    typed = ["predict", data_set / "test", "--output", tmp_path / "s.csv"]
    assert run(*typed) == 0
    shown = capsys.readouterr()
    assert f"model: {folder / FILES['pytorch']}" in shown.err.splitlines()
    assert f"model: pytorch fp32, {folder / FILES['pytorch']}" in shown.out.splitlines()
    assert "warning" not in shown.err
    assert run(*typed, "--model", folder / FILES["onnx"]) == 0
    assert "model: " not in capsys.readouterr().err  # it was named


def test_predict_also_draws_and_cuts_out(exported, data_set, tmp_path, capsys):
    out, typed = tmp_path / "out", ["--model", exported[0] / FILES["onnx"], "--overlay", "--cutout"]
    assert run("predict", data_set / "test", *typed, "--output", out) == 0
    assert "masks: 4" in capsys.readouterr().out.splitlines()
    stems, kinds = [photo.stem for photo in (data_set / "test").iterdir()], set()
    for path in out.iterdir():
        stem, _, kind = path.stem.rpartition("_")
        kinds.add((stem, kind))
        with Image.open(path) as opened:
            mode = {"mask": "1", "overlay": "RGB", "cutout": "RGBA"}[kind]
            assert (opened.size, opened.mode, opened.format) == ((60, 40), mode, "PNG")
    assert kinds == {(stem, kind) for stem in stems for kind in ("mask", "overlay", "cutout")}


@pytest.mark.fault("a folder with a HEIC file, notes and a subfolder", "all named, and status 1")
def test_predict_names_all_that_it_leaves_out_of_a_folder(exported, tmp_path, capsys):
    folder = tmp_path / "phone"
    (folder / "below").mkdir(parents=True)
    names = ["a.png", "b.jpg", "c.webp", "d.tif", "e.bmp", "f.jfif", "g.gif", "below/h.png"]
    for name in names:
        picture = Image.new("RGB", (8, 6))
        picture.save(folder / name, "JPEG" if name.endswith("jfif") else None)
    (folder / "i.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "notes.txt").write_text("no picture")
    typed = ["predict", folder, "--model", exported[0] / FILES["onnx"], "--output"]
    assert run(*typed, tmp_path / "out.csv", "--json") == 1
    shown = capsys.readouterr()
    assert last_line(shown.out)["unreadable"] == [str(folder / "i.heic")]
    (warning,) = [line for line in shown.err.splitlines() if line.startswith("warning: ")]
    assert "below/" in warning and "notes.txt" in warning and "a.png" not in warning
    lines = (tmp_path / "out.csv").read_text().splitlines()[1:]
    assert [line.partition(",")[0] for line in lines] == names[:-1]
    assert "i.heic" in (tmp_path / "out.unreadable.csv").read_text()
    for name in ("i.heic", "notes.txt"):
        (folder / name).unlink()
    (folder / "below" / "h.png").unlink()
    (folder / "below").rmdir()
    assert run(*typed, tmp_path / "out.csv") == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes")
@pytest.mark.fault("a name that is not UTF-8, in what predict prints", "shown escaped")
def test_predict_to_csv_prints_a_name_that_is_not_utf8(exported, data_set, tmp_path, capsys):
    broken, output = (tmp_path / os.fsdecode(name) for name in (b"\xe9.jpg", b"\xe8.csv"))
    broken.write_bytes(b"no image")
    typed = ["predict", data_set / "test", broken, "--model", exported[0] / FILES["onnx"]]
    assert run(*typed, "--output", output) == 1
    shown = capsys.readouterr()
    assert "predicting" in shown.err
    assert "unreadable: " in shown.out and r"\udce9.jpg" in shown.out and r"\udce8.csv" in shown.out
    lines = output.read_text().splitlines()[1:]
    assert [line.partition(",")[0] for line in lines] == sorted(os.listdir(data_set / "test"))
    assert all(rle_decode(line.partition(",")[2], 40, 60).any() for line in lines)


@pytest.mark.fault("predict --output names the true masks", "one line, nothing is changed")
def test_predict_does_not_replace_the_true_masks(exported, own_data_set, capsys):
    masks = own_data_set / "train_masks"
    before = {path: path.read_bytes() for path in masks.iterdir()}
    typed = ["predict", own_data_set / "train", "--model", exported[0] / FILES["onnx"]]
    for output in (masks, masks.with_suffix(".csv")):
        assert run(*typed, "--output", output) == 1
        assert output.name in one_error(capsys.readouterr().err)
    assert {path: path.read_bytes() for path in masks.iterdir()} == before


# --------------------------------------------------------------------------------- subset and check


def test_subset_writes_a_small_set_in_the_same_layout(data_set, tmp_path, capsys):
    target = tmp_path / "small"
    assert run("subset", data_set, target, "--cars", 2, "--size", 20, 30, "--json") == 0
    assert last_line(capsys.readouterr().out) == {"data": str(target)}
    samples = find_samples(target)
    labelled = samples[samples["mask"] != ""]
    assert labelled["car"].nunique() == 2 and len(labelled) == 8
    assert set(zip(samples["width"], samples["height"], strict=True)) == {(30, 20)}


def test_check_counts_problems_or_lists_them_as_json(own_data_set, monkeypatch, capsys):
    monkeypatch.setenv("UNETLIB_DATA", str(own_data_set))
    assert run("check") == 0
    assert "problems: 0" in capsys.readouterr().out
    (own_data_set / "train" / "zeta.jpg").write_bytes(b"")
    assert run("check", "--json") == 1
    (problem,) = last_line(capsys.readouterr().out)["problems"]
    assert problem["file"] == os.path.join("train", "zeta.jpg")


@pytest.mark.fault("a run's best.pth is damaged, and its training is typed again", "refused")
def test_a_damaged_run_never_replaces_a_sound_model(data_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UNETLIB_PROFILE", "ci")
    typed = ["train", "--json", "--size", 32, "--epochs", 1, "--widths", 2, 4, "--data", data_set]
    assert run(*typed) == 0
    result = last_line(capsys.readouterr().out)
    model = tmp_path / "home" / "models" / FILES["pytorch"]
    before, best = model.read_bytes(), os.path.join(result["run"], "best.pth")
    os.truncate(best, os.path.getsize(best) // 2)
    assert run(*typed) == 1
    assert best in one_error(capsys.readouterr().err)
    assert model.read_bytes() == before


@pytest.mark.fault("a RANK is set and no other process is there", "trains and writes as without")
def test_a_stray_rank_changes_nothing(data_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UNETLIB_PROFILE", "ci")
    monkeypatch.setenv("RANK", "1")
    assert run("train", "--size", 32, "--epochs", 1, "--widths", 2, 4, "--data", data_set) == 0
    assert (tmp_path / "home" / "models" / FILES["pytorch"]).is_file()


@pytest.mark.parametrize("output", ["{data}", "{data}/train", "{tmp}/README.md", "{tmp}/o.png"])
def test_an_output_that_cannot_be_used_is_said_before_pytorch_is_imported(
    exported, data_set, tmp_path, output
):
    (tmp_path / "README.md").write_text("mine")
    place = output.format(data=data_set, tmp=tmp_path)
    model, photos = exported[0] / FILES["pytorch"], data_set / "train"
    code = (
        "import sys; from unetlib.__main__ import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    if output == "{data}":
        place = tmp_path / "train_masks"
    typed = ["-c", code, "predict", photos, "--output", place]
    ended = in_a_terminal(*typed, "--model", model)
    assert ended.returncode == 1 and os.path.basename(str(place)) in ended.stderr
    if output == "{tmp}/o.png":
        for wrong in (
            ["--model", model, "--runtime", "openvino"],
            ["--model", tmp_path / "README.md"],
        ):
            ended = in_a_terminal(*typed, *wrong)
            assert ended.returncode == 1 and wrong[1].name in ended.stderr
