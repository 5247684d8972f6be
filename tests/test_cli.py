"""`python -m unetlib` as a user types it: real processes where a process is what is promised, else
the same function in this one, which spares the import of PyTorch."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from unetlib import FILES, config, find_samples, load_model, load_run, rle_decode
from unetlib.__main__ import main

COMMANDS = ["train", "export", "predict", "compare", "download", "subset", "check"]
SETTINGS = {"--epochs": 1, "--lr": 3e-4, "--batch-size": 8, "--size": 32, "--seed": 3}
TRAIN = ["train", "--json", *(word for pair in SETTINGS.items() for word in pair)]


def in_a_terminal(*arguments, cwd=config.REPOSITORY):
    return subprocess.run(
        [sys.executable, "-m", "unetlib", *map(str, arguments)],
        cwd=cwd,
        env=dict(os.environ, PYTHONPATH=str(config.REPOSITORY)),
        capture_output=True,
        text=True,
    )


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def last_line(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def trained_in_a_terminal(data_set, tmp_path_factory):
    """(home folder, finished process) of a training with the ci profile."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNETLIB_PROFILE", "ci")
        patch.setenv("UNETLIB_HOME", str(home))
        patch.delenv("UNETLIB_DATA", raising=False)
        return home, in_a_terminal(*TRAIN, "--data", data_set.name, cwd=data_set.parent)


@pytest.fixture
def ci_home(trained_in_a_terminal, monkeypatch):
    monkeypatch.setenv("UNETLIB_PROFILE", "ci")
    monkeypatch.setenv("UNETLIB_HOME", str(trained_in_a_terminal[0]))
    return trained_in_a_terminal[0]


# ------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_its_options(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(command, "--help")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"python -m unetlib {command}" in shown
    assert "--json" in shown


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


def test_the_options_of_train_are_the_settings_of_the_recipe(capsys):
    with pytest.raises(SystemExit):
        run("train", "--help")
    shown = capsys.readouterr().out
    for option in ("--epochs", "--lr", "--batch-size", "--size", "--seed", "--loss", "--augment"):
        assert option in shown
    assert "--data" in shown and "--output-dir" in shown


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["train", "--epochs", "many"], ["subset", "a", "b"]]
)
def test_a_command_line_that_makes_no_sense_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2


# ----------------------------------------------------------------------------------------- train


def test_train_ends_in_one_json_object(trained_in_a_terminal):
    home, process = trained_in_a_terminal
    assert process.returncode == 0, process.stderr
    result = last_line(process.stdout)
    assert {
        "best_dice",
        "seconds",
        "images_per_second",
        "device",
        "precision",
        "checkpoint",
    } <= set(result)
    assert 0 <= result["best_dice"] <= 1
    assert result["checkpoint"] == str(home / "models" / FILES["pytorch"])
    model, content = load_model(result["checkpoint"])
    assert model.architecture["widths"] == (8, 16, 32)
    recipe = content["info"]["recipe"]
    assert (recipe["epochs"], recipe["batch_size"], recipe["seed"]) == (1, 8, 3)
    assert content["size"] == 32


def test_train_shows_profile_and_progress_on_stderr_only(trained_in_a_terminal):
    _, process = trained_in_a_terminal
    assert "profile: ci" in process.stderr
    assert "training" in process.stderr and "%|" in process.stderr
    assert "%|" not in process.stdout


def test_train_again_answers_at_once_and_writes_where_it_is_told(
    ci_home, data_set, tmp_path, capsys
):
    assert run(*TRAIN, "--data", data_set, "--output-dir", tmp_path / "own") == 0
    shown = capsys.readouterr().out
    assert "already trained" in shown
    assert load_model(tmp_path / "own" / FILES["pytorch"])


def test_a_setting_that_the_recipe_refuses_is_an_error_of_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        run("train", "--size", "30")
    assert stopped.value.code == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "size=30 must be a multiple of 4" in shown


def test_a_learning_rate_that_explodes_is_one_line_and_status_1(ci_home, capsys):
    assert run("train", "--lr", "1e14", "--epochs", "1", "--size", "32") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1 and "lower the learning rate" in errors[0]


# ------------------------------------------------------------------------------ export and compare


@pytest.fixture(scope="module")
def export(trained_in_a_terminal, data_set):
    """(models folder, the JSON object printed) of an export of the newest run."""
    home, printed = trained_in_a_terminal[0], io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("UNETLIB_PROFILE", "ci")
        patch.setenv("UNETLIB_HOME", str(home))
        assert run("export", "--data", data_set, "--json") == 0
    return home / "models", last_line(printed.getvalue())


@pytest.fixture
def exported_models(export):
    return export[0]


def test_export_takes_the_newest_run_and_writes_every_format(export, trained_in_a_terminal):
    folder, result = export
    newest = last_line(trained_in_a_terminal[1].stdout)["run"]
    assert result["checkpoint"] == os.path.join(newest, "best.pth")
    assert {path.name for path in folder.iterdir()} == {*FILES.values(), "manifest.json"}


def test_export_prints_the_parity_of_each_format(export):
    _, result = export
    assert [row["format"] for row in result["formats"]] == list(FILES)
    assert all(row["max_abs_diff"] <= 1e-4 for row in result["formats"][:4])


def test_export_without_a_run_says_what_to_do(capsys):
    assert run("export") == 1
    assert "run python -m unetlib train first" in capsys.readouterr().err


def test_compare_prints_a_table(ci_home, exported_models, tmp_path, capsys):
    (tmp_path / FILES["int8"]).write_bytes((exported_models / FILES["int8"]).read_bytes())
    assert run("compare", "--models", tmp_path, "--runtimes") == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].split()[:3] == ["name", "dice", "dice_full"]
    assert lines[1].split()[0] == "int8"


# --------------------------------------------------------------------------------------- predict


def test_predict_writes_a_mask_per_image(exported_models, data_set, tmp_path, capsys):
    """A folder and a file together; PNG masks at the original size."""
    photo = sorted((data_set / "train").iterdir())[0]
    model = exported_models / FILES["int8"]
    images = [data_set / "test", photo]
    assert run("predict", *images, "--model", model, "--output", tmp_path, "--json") == 0
    assert last_line(capsys.readouterr().out)["images"] == 5
    names = {path.name for path in tmp_path.glob("*.png")}
    assert f"{photo.stem}_mask.png" in names and len(names) == 5
    with Image.open(tmp_path / f"{photo.stem}_mask.png") as mask:
        assert mask.size == (60, 40)
        assert set(np.unique(np.asarray(mask.convert("L")))) <= {0, 255}


def test_predict_to_csv_in_a_terminal(exported_models, data_set, tmp_path):
    output = tmp_path / "submission.csv"
    model = exported_models / FILES["onnx"]
    process = in_a_terminal("predict", data_set / "test", "--model", model, "--output", output)
    assert process.returncode == 0, process.stderr
    assert "predicting" in process.stderr
    rows = list(csv.DictReader(output.open(newline="")))
    images = sorted(path.name for path in (data_set / "test").iterdir())
    assert [row["img"] for row in rows] == images
    for row in rows:
        rle_decode(row["rle_mask"], 40, 60)


def test_predict_lists_what_it_cannot_read(exported_models, data_set, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_text("<html>404</html>")
    command = ["predict", data_set / "test", tmp_path, "--model", exported_models / FILES["onnx"]]
    assert run(*command, "--output", tmp_path / "out", "--flip", "--json") == 0
    result = last_line(capsys.readouterr().out)
    assert result["images"] == 5 and result["unreadable"] == [str(tmp_path / "broken.jpg")]
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    assert (tmp_path / "out" / "unreadable.csv").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes")
@pytest.mark.fault("a name that is not UTF-8, in what predict prints", "shown escaped")
def test_predict_prints_a_name_that_is_not_utf8(exported_models, data_set, tmp_path, capsys):
    broken = tmp_path / os.fsdecode(b"\xe9.jpg")
    broken.write_bytes(b"no image")
    command = ["predict", data_set / "test", broken, "--model", exported_models / FILES["onnx"]]
    assert run(*command, "--output", tmp_path / os.fsdecode(b"\xe8.csv")) == 0
    shown = capsys.readouterr().out
    assert r"unreadable: " in shown and r"\udce9.jpg" in shown and r"\udce8.csv" in shown


@pytest.mark.fault("predict --output names the true masks", "one line, nothing is changed")
def test_predict_does_not_replace_the_true_masks(exported_models, own_data_set, capsys):
    masks = own_data_set / "train_masks"
    before = {path: path.read_bytes() for path in masks.iterdir()}
    command = ["predict", own_data_set / "train", "--model", exported_models / FILES["onnx"]]
    for output in (masks, masks.with_suffix(".csv")):
        assert run(*command, "--output", output) == 1
        assert "choose another --output" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in masks.iterdir()} == before


def test_an_error_in_a_terminal_is_one_line_and_status_1(tmp_path):
    process = in_a_terminal("predict", tmp_path, "--model", "none.onnx", "--output", tmp_path)
    assert process.returncode == 1
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: none.onnx: no such file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "{tmp}"], "no images here"),
        (["compare", "--models", "{tmp}"], "no exported model here"),
        (["export", "--checkpoint", "{tmp}/none.pth"], "no such file"),
        (["subset", "{data}", "{tmp}/small", "--cars", "99"], "has 5 cars with masks"),
        (["subset", "{data}", "{tmp}/small", "--cars", "2", "--size", "big"], "WIDTHxHEIGHT"),
        (["download", "--from", "{tmp}", "--target", "{tmp}/target"], "does not exist"),
    ],
)
def test_each_command_fails_with_one_line_and_status_1(
    arguments, message, data_set, tmp_path, capsys
):
    arguments = [argument.format(tmp=tmp_path, data=data_set) for argument in arguments]
    assert run(*arguments) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert sum(line.startswith("error: ") for line in shown.err.splitlines()) == 1
    assert "Traceback" not in shown.err


def test_a_data_folder_that_does_not_exist_is_an_error_too(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("UNETLIB_DATA", str(tmp_path / "nowhere"))
    assert run("train") == 1
    assert "nowhere does not exist" in capsys.readouterr().err


def test_an_unknown_profile_is_an_error_too(monkeypatch, capsys):
    monkeypatch.setenv("UNETLIB_PROFILE", "fast")
    assert run("train") == 1
    assert "UNETLIB_PROFILE=fast is unknown" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- subset


def test_subset_writes_a_small_set_in_the_same_layout(data_set, tmp_path, capsys):
    target = tmp_path / "small"
    assert run("subset", "--cars", "2", "--size", "30x20", data_set, target, "--json") == 0
    assert last_line(capsys.readouterr().out) == {"data": str(target)}
    samples = find_samples(target)
    labelled = samples[samples["mask"] != ""]
    assert labelled["car"].nunique() == 2 and len(labelled) == 8
    assert set(zip(samples["width"], samples["height"], strict=True)) == {(30, 20)}


# ------------------------------------------------------------------------------- recipes, stopping


def test_the_fast_recipe_can_be_named_and_changed(ci_home, data_set, capsys):
    arguments = ["train", "--recipe", "fast", "--size", 32, "--data", data_set, "--json"]
    assert run(*arguments, "--loss", "bce") == 0
    result = last_line(capsys.readouterr().out)
    recipe = load_run(result["run"]).recipe
    assert (recipe.schedule, recipe.optimizer, recipe.augment) == ("one_cycle", "adamw", "mild")
    assert recipe.loss == "bce"


def test_the_help_of_the_fast_recipe_shows_its_defaults(capsys):
    with pytest.raises(SystemExit):
        run("train", "--recipe", "fast", "--help")
    lines = capsys.readouterr().out.replace("│", " ")  # a frame, and lines broken to fit into it
    assert "(default: one_cycle)" in " ".join(lines.split())


def test_an_unknown_recipe_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        run("train", "--recipe", "slow")
    assert stopped.value.code == 2
    assert "slow" in capsys.readouterr().err


def test_a_stopped_training_ends_with_130_and_goes_on_when_typed_again(data_set, tmp_path):
    """Ctrl-C in a real terminal process, after its first epoch."""
    home = tmp_path / "stopped"
    typed = [sys.executable, "-m", "unetlib", "train", "--size", "32", "--epochs", "3000", "--json"]
    environment = dict(
        os.environ,
        PYTHONPATH=str(config.REPOSITORY),
        UNETLIB_HOME=str(home),
        UNETLIB_DATA=str(data_set),
    )
    process = subprocess.Popen(
        [*typed, "--widths", "2", "4"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        # A test run in the background ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(home.glob("runs/*/history.csv")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "fit again to go on" in shown
    assert last_line(shown)["finished"] is False
    assert os.path.exists(last_line(shown)["checkpoint"])


@pytest.mark.skipif(sys.platform == "win32", reason="other systems have such names")
@pytest.mark.fault("a terminal without the letters of a file's name", "every problem is listed")
def test_a_plain_ascii_terminal_lists_all_problems(own_data_set, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    for name in ("b\u00e9ta", "zeta"):
        (own_data_set / "train" / f"{name}.jpg").write_bytes(b"")
    ended = in_a_terminal("check", own_data_set)
    assert ended.returncode == 1
    assert "b\\xe9ta.jpg" in ended.stdout and "zeta.jpg" in ended.stdout
