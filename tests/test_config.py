import asyncio
import dataclasses
import os

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from unetlib import config
from unetlib.recipe import Recipe


def test_unset_variables_mean_the_embedded_set_and_the_laptop_profile(monkeypatch):
    monkeypatch.delenv("UNETLIB_DATA")
    if (config.REPOSITORY / "data" / "sample").is_dir():
        assert config.data_dir() == config.REPOSITORY / "data" / "sample"
    assert config.profile().name == "laptop"


@pytest.mark.fault("UNETLIB_DATA names no folder", "said, with the remedy")
def test_data_folder_that_does_not_exist_is_named_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("UNETLIB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist: set UNETLIB_DATA"):
        config.data_dir()


@pytest.mark.skipif(os.name != "posix", reason="homes of others are found on Unix")
@pytest.mark.fault("UNETLIB_DATA in the home of nobody", "said, with the remedy")
def test_the_home_of_a_user_who_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv("UNETLIB_DATA", "~no-such-user/photos")
    with pytest.raises(FileNotFoundError, match=r"~no-such-user/photos: .* whole path"):
        config.data_dir()


def test_relative_folders_count_from_the_working_folder(monkeypatch, tmp_path):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNETLIB_DATA", "photos")
    monkeypatch.setenv("UNETLIB_HOME", "results")
    assert config.data_dir() == (tmp_path / "photos").resolve()
    assert config.runs_dir() == (tmp_path / "results" / "runs").resolve()


def test_relative_data_folder_in_a_notebook_counts_from_where_jupyter_was_started(
    monkeypatch, tmp_path
):
    """A real kernel, which runs in the notebook's folder, not in that of the command."""
    started, notebooks = tmp_path / "started", tmp_path / "notebooks"
    for folder in (started / "photos", notebooks):
        folder.mkdir(parents=True)
    monkeypatch.chdir(started)
    monkeypatch.setenv("UNETLIB_DATA", "photos")
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    monkeypatch.setenv("PYTHONPATH", str(config.REPOSITORY))
    code = "import os; from unetlib import config; print(os.getcwd(), config.data_dir(), sep='|')"
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
    assert config.models_dir() == (tmp_path / "results" / "models").resolve()


@pytest.mark.parametrize("folder", [config.runs_dir, config.models_dir, config.cache_dir])
def test_folders_for_results_are_created(folder):
    assert folder().is_dir()


def test_unknown_profile_is_named_with_the_known_ones(monkeypatch):
    monkeypatch.setenv("UNETLIB_PROFILE", "fast")
    with pytest.raises(ValueError, match=r"UNETLIB_PROFILE=fast is unknown: .*ci, laptop, full"):
        config.profile()


@pytest.mark.parametrize(
    ("name", "angles"), [("ci", [1, 5, 9, 13]), ("laptop", list(range(1, 17, 2)))]
)
def test_profile_thins_the_training_angles(monkeypatch, samples, name, angles):
    monkeypatch.setenv("UNETLIB_PROFILE", name)
    every_angle = samples.iloc[[0] * 16].assign(angle=range(1, 17))
    thin = config.profile().thin(every_angle)
    assert list(thin["angle"]) == angles
    assert list(thin.index) == list(range(len(angles)))


def test_full_profile_uses_every_angle(samples):
    every_angle = samples.iloc[[0] * 16].assign(angle=range(1, 17))
    assert len(config.PROFILES["full"].thin(every_angle)) == 16


@pytest.mark.fault("angles beyond 16", "count on from 1; the full profile uses every picture")
def test_angles_beyond_16_are_thinned_alike():
    table = pd.DataFrame(dict(angle=range(17, 33)))
    assert list(config.PROFILES["laptop"].thin(table)["angle"]) == list(range(17, 33, 2))
    assert len(config.PROFILES["full"].thin(table)) == 16


@pytest.mark.fault("no picture has an angle that the profile uses", "all are used")
def test_thinning_leaves_something():
    table = pd.DataFrame(dict(angle=[2, 4, 2]))
    assert list(config.PROFILES["laptop"].thin(table)["angle"]) == [2, 4, 2]


@pytest.mark.parametrize("name", ["laptop", "full"])
@pytest.mark.parametrize("recipe", [Recipe(), Recipe(widths=(16, 32), size=512, epochs=40)])
def test_laptop_and_full_leave_a_recipe_as_it_is(name, recipe):
    assert config.PROFILES[name].scale(recipe) == recipe


def test_ci_cuts_a_recipe_down():
    scaled = config.PROFILES["ci"].scale(Recipe(loss="dice", seed=3))
    assert (scaled.widths, scaled.size, scaled.epochs) == ((8, 16, 32), 64, 3)
    assert scaled.lr > Recipe().lr
    assert (scaled.loss, scaled.seed) == ("dice", 3)


def test_ci_leaves_what_is_small_already():
    scaled = config.PROFILES["ci"].scale(Recipe(widths=(4, 8), size=32, epochs=1))
    assert (scaled.widths, scaled.size, scaled.epochs) == ((4, 8), 32, 1)


@pytest.mark.parametrize("name", config.PROFILES)
def test_profile_says_its_name(name):
    assert str(config.PROFILES[name]).startswith(f"profile: {name} (")


def test_profile_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.PROFILES["ci"].max_size = 1


# ------------------------------------------------------------------------------------- whole files


def test_a_whole_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new folder" / "file.json"
    with config.whole_file(path) as part:
        part.write_text("all of it")
        assert not path.exists()
        assert part.suffix == ".json"
    assert path.read_text() == "all of it"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), config.whole_file(path) as part:
        part.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
