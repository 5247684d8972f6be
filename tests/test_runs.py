import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from unetlib import (
    Recipe,
    RunError,
    TrainingError,
    cache_dir,
    clean_runs,
    compare_runs,
    decode_once,
    find_runs,
    fit,
    load_run,
    runs_dir,
)
from unetlib.store.question import question_of
from unetlib.store.runs import HISTORY, Run, run_folder, run_lock

RECIPE = Recipe(widths=(2, 4), size=8, epochs=2, precision="fp32", lr=1e-2)


@pytest.fixture(scope="module")
def trained_runs(tables, one_thread, tmp_path_factory):
    """The folders of two runs, the older one first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNETLIB_HOME", str(tmp_path_factory.mktemp("two runs")))
        patch.delenv("UNETLIB_PROFILE", raising=False)
        return [fit(replace(RECIPE, lr=lr), *tables).folder for lr in (1e-2, 1e-3)]


@pytest.fixture
def two_runs(trained_runs):
    """Copies of them among this test's own runs."""
    copies = [shutil.copytree(folder, runs_dir() / folder.name) for folder in trained_runs]
    return [load_run(copy) for copy in copies]


def run_with(**columns) -> Run:
    """A run that only has a history."""
    history = pd.DataFrame({name: columns.get(name, [0.0] * 3) for name in HISTORY})
    details = {"train_images": 30, "question": {"best_by": ["dice", "max"]}}
    return Run(runs_dir() / "made-up", RECIPE, history, details)


# ------------------------------------------------------------------------------------- its name


def name(recipe: Recipe, data: str = "data") -> str:
    return run_folder(question_of(recipe, data, ("dice", "max"), {})).name


def test_a_setting_that_is_added_later_leaves_the_names_of_old_runs():
    """Only what differs from the baseline counts."""
    assert question_of(Recipe(), "data", ("dice", "max"), {})["settings"] == {}
    assert question_of(Recipe(lr=1e-3), "data", ("dice", "max"), {})["settings"] == {"lr": 1e-3}
    assert len({name(Recipe()), name(Recipe(lr=1e-3)), name(Recipe(), "other data")}) == 3


@pytest.mark.parametrize("profile", ["ci", "full"])
def test_the_name_depends_on_the_profile(monkeypatch, profile):
    before = name(Recipe())
    monkeypatch.setenv("UNETLIB_PROFILE", profile)
    assert name(Recipe()) != before


# ------------------------------------------------------------------------------------- its figures


def test_best_epoch_dice_and_iou_belong_together():
    run = run_with(epoch=[1, 2, 3], val_dice=[0.2, 0.9, 0.5], val_iou=[0.3, 0.6, 0.7])
    assert (run.best_epoch, run.best_dice, run.best_iou) == (2, 0.9, 0.6)


def test_epochs_of_half_size_are_the_best_only_before_there_are_others():
    """They are judged at half the size."""
    run = run_with(val_dice=[0.8, 0.9, 0.5])
    run.recipe = replace(RECIPE, epochs=4, half_size_epochs=2)
    whole = run.history
    for count, best in ((1, 1), (2, 2), (3, 3)):
        run.history = whole[:count]
        assert run.best_epoch == best


def test_images_per_second_count_validation_too():
    run = run_with(epoch=[1, 2, 3], seconds=[10.0, 20.0, 40.0])
    assert run.images_per_second == pytest.approx(90 / 70)


# ------------------------------------------------------------------------------- opened from disk


def test_a_run_opens_as_it_was(tables):
    run = fit(RECIPE, *tables)
    opened = load_run(run.folder)
    assert opened.recipe == RECIPE
    assert opened.details == run.details
    pd.testing.assert_frame_equal(opened.history, run.history, check_dtype=False)


@pytest.mark.fault("history.csv missing", "the folder is no run, and says so")
def test_a_folder_without_a_finished_epoch_is_no_run(two_runs):
    (two_runs[0].folder / "history.csv").unlink()
    with pytest.raises(FileNotFoundError, match=two_runs[0].folder.name):
        load_run(two_runs[0].folder)
    assert [run.folder for run in find_runs()] == [two_runs[1].folder]


def test_a_run_without_a_setting_that_is_new_here_has_the_default(two_runs):
    path = two_runs[0].folder / "recipe.json"
    settings = json.loads(path.read_text())
    del settings["up_kernel"]
    path.write_text(json.dumps(settings))
    assert load_run(path.parent).recipe == RECIPE


HEADER = ",".join(HISTORY)
DETAILS = '{"data": "", "profile": "", "train_images": 1, "question": {"code": {}, "settings": {}}}'


@pytest.mark.fault(
    "a file of a run with other content, or missing",
    "one sentence that names the run and the remedy; other runs are compared all the same",
)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("history.csv", ""),
        ("history.csv", "nonsense"),
        ("history.csv", HEADER),
        ("history.csv", f"{HEADER}\n1,0.1,0.5,0.5,0.9,0.8"),
        ("history.csv", f"{HEADER}\n1,0.1,0.5,0.5,O.9,0.8,2"),
        ("history.csv", f"{HEADER}\n1,0.1,0.5,0.5,inf,0.8,2"),
        ("history.csv", f'{HEADER}\n1,"0.1,0.5,0.5,0.9,0.8,2'),
        ("recipe.json", "{"),
        ("recipe.json", "[]"),
        ("recipe.json", '{"colour": "red"}'),
        ("recipe.json", '{"lr": -1}'),
        ("recipe.json", '{"widths": 4}'),
        ("recipe.json", None),
        ("run.json", "[1"),
        ("run.json", "7"),
        ("run.json", "{}"),
        ("run.json", DETAILS),
        ("run.json", DETAILS.replace('{"code": {}, "settings": {}}', "7")),
        ("run.json", None),
    ],
)
def test_a_run_that_cannot_be_read_is_named_and_left_out(two_runs, name, content):
    broken, sound = (run.folder for run in two_runs)
    if content is None:
        (broken / name).unlink()
    else:
        (broken / name).write_text(content)
    with pytest.raises(RunError, match=rf"{broken.name}.*retrain=True") as caught:
        load_run(broken)
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match=broken.name):
        assert list(compare_runs().index) == [sound.name]


@pytest.mark.fault("one damaged run among others", "the others are trained and tidied")
def test_a_damaged_run_does_not_stand_in_the_way_of_others(two_runs, tables):
    damaged = two_runs[0].folder
    (damaged / "recipe.json").write_text("{")
    with pytest.warns(UserWarning, match=damaged.name):
        assert fit(replace(RECIPE, lr=3e-3), *tables).finished
    with pytest.warns(UserWarning, match=damaged.name):
        assert damaged.name in clean_runs(keep=5)


# ------------------------------------------------------------------------------ several together


def test_compare_runs_shows_what_differs_and_how_they_did(two_runs):
    table = compare_runs()
    assert list(table.columns) == [
        "lr",
        "best_dice",
        "best_iou",
        "best_epoch",
        "epochs",
        "seconds",
        "images_per_second",
    ]
    assert set(table.index) == {run.folder.name for run in two_runs}
    assert table["best_dice"].is_monotonic_decreasing
    assert dict(zip(table.index, table["lr"], strict=True)) == {
        run.folder.name: run.recipe.lr for run in two_runs
    }


def test_compare_runs_takes_names_and_marks_a_stopped_run(two_runs, tables):
    def stop(run):
        raise KeyboardInterrupt

    stopped = fit(replace(RECIPE, seed=5), *tables, on_epoch=stop)
    table = compare_runs({"whole": two_runs[0], "stopped": stopped})
    assert table.loc["whole", "epochs"] == "2"
    assert table.loc["stopped", "epochs"] == "1/2"


def test_runs_on_other_data_are_told_apart(tables):
    train, val = tables
    runs = [fit(RECIPE, train, val), fit(RECIPE, train.iloc[4:], val)]
    assert compare_runs(runs)["data"].nunique() == 2


def test_nothing_to_compare_is_an_empty_table():
    assert compare_runs().empty


def test_clean_runs_keeps_the_newest_and_empties_the_cache(two_runs, tables):
    decode_once(tables[1], 8)
    assert clean_runs(keep=2) == []
    assert list(cache_dir().glob("decoded-*")) == []
    assert clean_runs(keep=1) == [two_runs[0].folder.name]
    assert [run.folder for run in find_runs()] == [two_runs[1].folder]


def test_clean_runs_keeps_those_named(two_runs):
    assert clean_runs(keep=[two_runs[0]]) == [two_runs[1].folder.name]
    assert clean_runs(keep=0) == [two_runs[0].folder.name]
    assert find_runs() == []


def test_clean_runs_removes_remains_without_an_epoch(two_runs):
    remains = runs_dir() / "remains"
    shutil.copytree(two_runs[0].folder, remains)
    (remains / "history.csv").unlink()
    assert clean_runs() == ["remains"]


@pytest.mark.fault("the lock of a run cannot be taken (a network disk)", "the lock is named")
def test_a_lock_that_cannot_be_taken_is_named(tables, monkeypatch, tmp_path):
    monkeypatch.setenv("UNETLIB_HOME", str(tmp_path))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".locks").touch()  # no folder, so that nothing can be made in it
    with pytest.raises(TrainingError, match=r"\.locks"):
        fit(RECIPE, *tables)


@pytest.mark.fault("runs are deleted while one is being trained", "that one stays")
def test_clean_runs_leaves_a_run_that_is_being_trained(two_runs):
    with run_lock(two_runs[0].folder):
        assert clean_runs(keep=0) == [two_runs[1].folder.name]
    assert two_runs[0].folder.exists()


@pytest.mark.fault(
    "a folder of another program among the runs, or a link to a run kept elsewhere",
    "stays as it is when runs are deleted",
)
def test_clean_runs_leaves_what_is_no_run_and_links(two_runs, tmp_path):
    runs = runs_dir()
    (runs / "Nov23_tensorboard").mkdir()
    (runs / "Nov23_tensorboard" / "events.out.tfevents").write_text("curves")
    (runs / "0_empty").mkdir()
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(two_runs[0].folder, elsewhere)
    files = sorted(elsewhere.iterdir())
    (runs / "0_link").symlink_to(elsewhere)
    assert sorted(clean_runs(keep=0)) == sorted(run.folder.name for run in two_runs)
    assert (runs / "Nov23_tensorboard" / "events.out.tfevents").read_text() == "curves"
    assert (runs / "0_empty").is_dir() and (runs / "0_link").is_symlink()
    assert sorted(elsewhere.iterdir()) == files


@pytest.mark.parametrize(
    "name",
    ["recipe.json", "run.json", "last.pth", "next.pth", "best.pth", "next.0123456789ab.part.pth"],
)
def test_clean_runs_removes_a_run_of_which_one_file_is_left(name):
    folder = runs_dir() / "remains"
    folder.mkdir()
    (folder / name).write_bytes(b"")
    assert clean_runs() == ["remains"]


@pytest.mark.fault(
    "clean_runs is told to keep what is neither a number from 0 up nor runs",
    "one sentence; nothing is deleted",
)
@pytest.mark.parametrize(
    "keep",
    [
        -1,
        True,
        1.5,
        None,
        pytest.param(np.True_, id="NumPy's True"),
        pytest.param(np.int64(-1), id="NumPy's -1"),
        pytest.param("", id="text"),
        pytest.param(["a name"], id="a list of names"),
        pytest.param({"a": "name"}, id="a dict of names"),
    ],
)
def test_clean_runs_refuses_what_cannot_be_kept(two_runs, keep):
    with pytest.raises(RunError, match="keep"):
        clean_runs(keep=keep)
    assert len(find_runs()) == 2


def test_clean_runs_takes_numbers_of_numpy_and_runs_by_name(two_runs):
    assert clean_runs(keep=np.uint8(2)) == clean_runs(keep=np.int64(2)) == []
    assert clean_runs(keep=dict(zip("ab", two_runs, strict=True))) == []
    assert clean_runs(keep={"a": two_runs[1]}) == [two_runs[0].folder.name]


@pytest.mark.fault("a model of a run is asked for by another word", "refused; names both words")
@pytest.mark.parametrize("which", ["Best", None])
def test_only_the_best_and_the_last_model_can_be_asked_for(two_runs, which):
    with pytest.raises(RunError, match="'best' or 'last'"):
        two_runs[0].model(which)
