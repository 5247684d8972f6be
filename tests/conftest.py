"""A tiny data set in Carvana's layout, drawn here, and a model trained on it.

No test sees the user's data, profile or runs: UNETLIB_DATA points at the drawn set, UNETLIB_HOME at
a fresh folder, UNETLIB_PROFILE is unset.
"""

import os
import subprocess

import pandas as pd
import pytest
from drawn_cars import write_data_set
from filelock import FileLock
from hypothesis import settings

# Each run tries the same examples, so that a failure is the change's own; no deadline, because a
# busy machine is no bug.
settings.register_profile("course", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("fuzz", deadline=None, max_examples=3_000)  # --hypothesis-profile=fuzz
settings.load_profile("course")


@pytest.fixture(scope="session")
def data_set(tmp_path_factory):
    """5 cars with masks and 1 without, 4 angles each. Read only: for changes, `own_data_set`."""
    return write_data_set(tmp_path_factory.mktemp("data"))


@pytest.fixture
def own_data_set(tmp_path):
    """A smaller set, 2 cars with masks and 1 without, that the test may change."""
    return write_data_set(tmp_path / "own data set", cars=2)


@pytest.fixture
def own_disk(tmp_path):
    """Call with mount options, for example ``size=64k``: a new file system in memory, its folder.

    Only root can mount: for anybody else the test is skipped.
    """
    mounted = []

    def mount(options: str):
        folder = tmp_path / f"disk {len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root can mount a file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def one_thread():
    """Two busy cores serve tiny networks best one thread at a time, and exactly alike each time."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, data_set, one_thread, tmp_path):
    monkeypatch.setenv("UNETLIB_DATA", str(data_set))
    monkeypatch.setenv("UNETLIB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("UNETLIB_PROFILE", raising=False)


@pytest.fixture
def kaggle_at(tmp_path, monkeypatch):
    """Call with a local server: kagglehub asks that one, with a token and an empty cache."""
    from kagglesdk import kaggle_env

    def point(server) -> None:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, address)
        monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
        monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("KAGGLE_API_TOKEN", "a-token")
        monkeypatch.setattr("kagglehub.config._kaggle_credentials", None)

    return point


@pytest.fixture(scope="session")
def samples(data_set):
    from unetlib import find_samples

    return find_samples(data_set)


@pytest.fixture(scope="session")
def tables(samples):
    """(train, val): 4 cars and 1 car."""
    from unetlib import split_by_group

    return split_by_group(samples)


@pytest.fixture(scope="session")
def trained(tables, one_thread, tmp_path_factory):
    """A small U-Net that has learned to find the ellipses: 32x32 pixels, a second or two."""
    from unetlib import Recipe, fit

    recipe = Recipe(widths=(4, 8, 16), size=32, lr=1e-2, epochs=6, batch_size=4, precision="fp32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNETLIB_HOME", str(tmp_path_factory.mktemp("trained")))
        patch.delenv("UNETLIB_PROFILE", raising=False)
        return fit(recipe, *tables)


@pytest.fixture(scope="session")
def exported(trained, tables, tmp_path_factory):
    """(folder with the five model files, parity table), for all workers the same. Read only."""
    from unetlib import export_all

    workers = "PYTEST_XDIST_WORKER" in os.environ
    shared = tmp_path_factory.getbasetemp().parent if workers else tmp_path_factory.mktemp("export")
    folder, kept = shared / "models", shared / "parity.json"
    with FileLock(shared / "models.lock"):
        if not kept.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("UNETLIB_HOME", str(tmp_path_factory.mktemp("exported")))
                table = export_all(trained, folder, train=tables[0], val=tables[1])
            table.to_json(kept)
    return folder, pd.read_json(kept, dtype=dict(note=str))


@pytest.fixture(scope="session")
def predictor(exported):
    from unetlib import FILES, load_predictor

    return load_predictor(exported[0] / FILES["pytorch"], device="cpu")
