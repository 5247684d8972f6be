"""The folder that a page is written into: which model, which runtime, and nothing else replaced."""

import json
import shutil
import sys

import pytest

from unetlib import FILES, DataError, ModelFileError, models_dir, write_page
from unetlib.deploy.page import RUNTIME
from unetlib.recipe import PRETRAINED

PUBLIC = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/"


@pytest.fixture
def programs(monkeypatch, tmp_path):
    """The only folder where programs are found: npm is not there."""
    (folder := tmp_path / "programs").mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def export(exported, tmp_path):
    """An export of one's own, to be changed."""
    return shutil.copytree(exported[0], tmp_path / "export")


def facts(folder) -> dict:
    return json.loads((folder / "page.json").read_bytes())


def sizes_in(folder) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def test_without_npm_it_names_the_pinned_version_and_its_hashes(programs, export, tmp_path):
    written = write_page(folder := tmp_path / "a" / "page", export)
    assert (written["runtime"], written["model"]) == (PUBLIC, str(export))
    runtime = facts(folder)["runtime"]
    assert runtime == json.loads(RUNTIME.read_bytes())
    assert written["files"] == sizes_in(folder) | {
        PUBLIC + name: one["bytes"] for name, one in runtime["files"].items()
    }
    assert {one["integrity"][:7] for one in runtime["files"].values()} == {"sha384-"}
    assert f"connect-src 'self' {PUBLIC};" in (folder / "index.html").read_text(encoding="utf-8")


def test_a_page_is_written_anew_with_the_new_model(programs, export, tmp_path):
    write_page(folder := tmp_path / "page")
    assert facts(folder)["size"] == [128, 128]
    (folder / "page.js").write_text("old")
    write_page(folder, export)
    assert facts(folder)["size"] == [32, 32]
    for name in (FILES["int8"], FILES["onnx"]):
        assert (folder / name).read_bytes() == (export / name).read_bytes()
    assert len((folder / "page.js").read_bytes()) > 1000


def test_a_folder_or_file_of_others_is_kept(programs, export, tmp_path):
    (folder := tmp_path / "site").mkdir()
    (folder / "index.html").write_text("mine")
    for place in (folder, folder / "index.html"):
        with pytest.raises(DataError, match=str(place)):
            write_page(place, export)
    assert [path.name for path in folder.iterdir()] == ["index.html"]
    assert (folder / "index.html").read_text() == "mine"


def test_models_of_one_training_are_taken_else_the_shipped_weights(programs, export, tmp_path):
    shutil.copytree(export, models_dir(), dirs_exist_ok=True)
    assert write_page(tmp_path / "page")["model"] == str(models_dir())
    manifest = json.loads((models_dir() / "manifest.json").read_bytes())
    manifest[FILES["int8"]]["weights"] = "another"
    (models_dir() / "manifest.json").write_text(json.dumps(manifest))
    assert write_page(tmp_path / "page")["model"] == str(PRETRAINED.parent)


@pytest.mark.parametrize("name", [FILES["int8"], FILES["onnx"]])
def test_a_damaged_or_missing_model_is_named(programs, export, tmp_path, name):
    (export / name).write_bytes((export / name).read_bytes()[:-1])
    with pytest.raises(ModelFileError, match=name):
        write_page(tmp_path / "page", export)
    (export / name).unlink()
    with pytest.raises(ModelFileError, match=name):
        write_page(tmp_path / "page", export)
    assert not (tmp_path / "page").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="a program of this kind needs Unix")
def test_another_runtime_than_the_known_one_is_refused(programs, export, tmp_path):
    (programs / "npm").write_text(f"#!{sys.executable}\nopen('a.tgz', 'w').write('another')")
    (programs / "npm").chmod(0o755)
    with pytest.raises(ModelFileError, match=r"onnxruntime-web@1\.30\.0"):
        write_page(tmp_path / "page", export)
    (programs / "npm").write_text(f"#!{sys.executable}\nraise SystemExit(1)")  # as without network
    assert write_page(tmp_path / "page", export)["runtime"] == PUBLIC
