import asyncio
import dataclasses
import os
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nbclient import NotebookClient

from unetlib import REPOSITORY, Recipe, cache_dir, data_dir, models_dir, profile, runs_dir
from unetlib.support.profile import PROFILES

# ---------------------------------------------------------------------------------------- folders


def test_unset_variables_mean_the_embedded_set_and_the_laptop_profile(monkeypatch):
    monkeypatch.delenv("UNETLIB_DATA")
    if (REPOSITORY / "data" / "sample").is_dir():
        assert data_dir() == REPOSITORY / "data" / "sample"
    assert profile().name == "laptop"


@pytest.mark.fault("UNETLIB_DATA names no folder", "said, with the remedy")
def test_a_data_folder_that_does_not_exist_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("UNETLIB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere.*UNETLIB_DATA"):
        data_dir()


@pytest.mark.skipif(os.name != "posix", reason="homes of others are found on Unix")
@pytest.mark.fault("UNETLIB_DATA in the home of nobody", "said, with the remedy")
def test_the_home_of_a_user_who_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv("UNETLIB_DATA", "~no-such-user/photos")
    with pytest.raises(FileNotFoundError, match="~no-such-user/photos"):
        data_dir()


@pytest.mark.fault("UNETLIB_HOME names a file", "said, with the remedy")
def test_a_home_that_is_a_file_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNETLIB_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"file.runs: .*UNETLIB_HOME"):
        runs_dir()


def test_relative_folders_count_from_the_working_folder(monkeypatch, tmp_path):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNETLIB_DATA", "photos")
    monkeypatch.setenv("UNETLIB_HOME", "results")
    assert data_dir() == (tmp_path / "photos").resolve()
    assert runs_dir() == (tmp_path / "results" / "runs").resolve()


def test_in_a_notebook_relative_folders_count_from_where_jupyter_was_started(monkeypatch, tmp_path):
    """Jupyter hands its kernels its own process's number."""
    started = tmp_path / "started"
    (started / "photos").mkdir(parents=True)
    jupyter = subprocess.Popen(
        [sys.executable, "-c", "input()"], cwd=started, stdin=subprocess.PIPE
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JPY_PARENT_PID", str(jupyter.pid))
    monkeypatch.setenv("UNETLIB_DATA", "photos")
    try:
        assert data_dir() == (started / "photos").resolve()
    finally:
        jupyter.communicate(b"\n")


@pytest.mark.slow
def test_a_real_kernel_counts_relative_folders_from_where_jupyter_was_started(
    monkeypatch, tmp_path
):
    started, notebooks = tmp_path / "started", tmp_path / "notebooks"
    for folder in (started / "photos", notebooks):
        folder.mkdir(parents=True)
    monkeypatch.chdir(started)
    monkeypatch.setenv("UNETLIB_DATA", "photos")
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    code = "import os, unetlib; print(os.getcwd(), unetlib.data_dir(), sep='|')"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(notebooks)}})
    asyncio.run(client.async_execute())
    kernel_folder, data_folder = notebook.cells[0].outputs[0].text.strip().split("|")
    assert kernel_folder == str(notebooks.resolve())
    assert data_folder == str((started / "photos").resolve())


def test_jupyter_that_has_gone_leaves_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JPY_PARENT_PID", "not a process")
    monkeypatch.setenv("UNETLIB_HOME", "results")
    assert models_dir() == (tmp_path / "results" / "models").resolve()


@pytest.mark.parametrize("folder", [runs_dir, models_dir, cache_dir])
def test_folders_for_results_are_created(folder):
    assert folder().is_dir()


# --------------------------------------------------------------------------------------- profiles

CI = PROFILES["ci"]


def test_an_unknown_profile_is_named_with_the_known_ones(monkeypatch):
    monkeypatch.setenv("UNETLIB_PROFILE", "fast")
    with pytest.raises(ValueError, match=r"UNETLIB_PROFILE=fast .* ci, laptop, full"):
        profile()


@pytest.mark.parametrize(
    ("name", "angles"),
    [("ci", [1, 5, 9, 13]), ("laptop", [1, 3, 5, 7, 9, 11, 13, 15]), ("full", list(range(1, 17)))],
)
def test_a_profile_thins_the_training_angles(monkeypatch, name, angles):
    monkeypatch.setenv("UNETLIB_PROFILE", name)
    thin = profile().thin(pd.DataFrame(dict(angle=range(1, 17))))
    assert list(thin["angle"]) == angles
    assert list(thin.index) == list(range(len(angles)))


@pytest.mark.fault("angles beyond 16", "count on from 1; the full profile uses every picture")
def test_angles_beyond_16_are_thinned_alike():
    table = pd.DataFrame(dict(angle=range(17, 33)))
    assert list(PROFILES["laptop"].thin(table)["angle"]) == list(range(17, 33, 2))
    assert len(PROFILES["full"].thin(table)) == 16


@pytest.mark.fault("no picture has an angle that the profile uses", "all are used")
def test_thinning_leaves_something():
    table = pd.DataFrame(dict(angle=[2, 4, 2]))
    assert list(PROFILES["laptop"].thin(table)["angle"]) == [2, 4, 2]


@pytest.mark.parametrize("name", ["laptop", "full"])
@pytest.mark.parametrize("recipe", [Recipe(), Recipe(widths=(16, 32), size=512, epochs=40)])
def test_laptop_and_full_leave_a_recipe_as_it_is(name, recipe):
    assert PROFILES[name].scale(recipe) == recipe


def test_ci_reduces_the_baseline():
    scaled = CI.scale(Recipe(loss="dice", seed=3))
    assert (scaled.widths, scaled.size, scaled.epochs) == ((8, 16, 32), 64, 3)
    assert scaled.lr > Recipe().lr
    assert (scaled.loss, scaled.seed) == ("dice", 3)


def test_ci_shortens_the_fast_recipe_and_leaves_its_rate():
    scaled = CI.scale(Recipe.fast())
    assert scaled.lr == Recipe.fast().lr
    assert 0 < scaled.half_size_epochs < scaled.epochs


def test_ci_leaves_what_is_small_already():
    scaled = CI.scale(Recipe(widths=(4, 8), size=32, epochs=1))
    assert (scaled.widths, scaled.size, scaled.epochs) == ((4, 8), 32, 1)


@pytest.mark.parametrize(
    ("widths", "scaled"),
    [
        ((15, 30, 60), (8, 16, 32)),
        ((20, 40, 80), (8, 16, 32)),
        ((64, 4), (8, 1)),
        ((4, 64), (4, 64)),
    ],
    ids=str,
)
def test_widths_shrink_in_proportion_to_the_first_and_never_to_nothing(widths, scaled):
    assert CI.scale(Recipe(widths=widths)).widths == scaled


@st.composite
def recipes(draw) -> Recipe:
    """Any valid recipe, as far as the profile looks at it."""
    widths = draw(st.lists(st.integers(1, 300), min_size=1, max_size=8))
    epochs = draw(st.integers(1, 60))
    half_size_epochs = draw(st.integers(0, epochs - 1))
    step = max(4, 2 ** (len(widths) - 1)) * (2 if half_size_epochs else 1)
    least = 2 ** len(widths) * (2 if half_size_epochs else 1)
    return Recipe(
        widths=tuple(widths),
        size=step * draw(st.integers(-(-least // step), 40)),
        epochs=epochs,
        half_size_epochs=half_size_epochs,
        schedule=draw(st.sampled_from(["constant", "one_cycle"])),
    )


@given(recipe=recipes())
@example(recipe=Recipe(widths=(4,) * 6, size=256, half_size_epochs=1))
def test_ci_keeps_any_recipe_valid_and_within_its_limits(recipe):
    scaled = CI.scale(recipe)  # a Recipe refuses what is not valid
    assert len(scaled.widths) == len(recipe.widths)
    assert scaled.widths[0] <= CI.max_width
    assert all(1 <= new <= old for new, old in zip(scaled.widths, recipe.widths, strict=True))
    deepest = 2 ** len(recipe.widths) * (2 if recipe.half_size_epochs else 1)
    assert scaled.size <= min(recipe.size, max(CI.max_size, deepest))
    assert scaled.epochs <= min(recipe.epochs, CI.max_epochs)
    assert (scaled.half_size_epochs > 0) == (recipe.half_size_epochs > 0)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_says_its_name(name):
    assert str(PROFILES[name]).startswith(f"profile: {name} (")


def test_a_profile_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CI.max_size = 1
