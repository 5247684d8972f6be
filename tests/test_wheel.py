"""The course installed from a wheel outside of the repository, and in the kernels of editors.

The environments are empty but for a .pth file that lets them borrow the packages of the running
one: installing PyTorch takes minutes and 5 GB. A slow test installs everything.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
from address import PLACE, address, renew
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from test_download import make_archives, make_data
from test_notebooks import NOTEBOOKS, REPOSITORY

import unetlib
from unetlib.recipe import PRETRAINED

PROJECT = REPOSITORY / "pyproject.toml"
PHOTO = min((REPOSITORY / "data" / "sample" / "test").iterdir())
WHERE = """
import os, unetlib
from unetlib.support.folders import SOLUTION
assert SOLUTION.is_file()
print(unetlib.__file__, unetlib.data_dir(), unetlib.runs_dir(), os.getcwd(), sep="|")
"""
FULL_SIZE = 'import unetlib; unetlib.find_samples(unetlib.REPOSITORY / "data" / "fullsize")'
# A cell as a notebook runs it; what the reader sees of its error.
FIRST_CELL = """
import sys
from IPython.core.interactiveshell import InteractiveShell
InteractiveShell.instance().run_cell(sys.argv[1])
"""


def make_environment(folder: Path, borrow: bool = True) -> Path:
    """Its Python, which borrows all packages of the running one but what is editable there."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    paths = sysconfig.get_paths(vars=dict(base=str(folder), platbase=str(folder)))
    if borrow:
        lent = sorted({sysconfig.get_path(kind) for kind in ("purelib", "platlib")})
        Path(paths["purelib"], "borrowed.pth").write_text("\n".join(lent))
    return Path(paths["scripts"]) / "python"


def install(python: Path, wheel: Path, *options: str) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", python]
    subprocess.run([*pip, "install", *options, wheel], check=True)


def outside(**more: str) -> dict[str, str]:
    """Environment variables without what a test or a reader has set for the repository."""
    ours = ("PYTHONPATH", "JPY_PARENT_PID", "UNETLIB_DATA", "UNETLIB_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | dict(OMP_NUM_THREADS="1", UNETLIB_PROFILE="ci") | more


def run(python: Path, *arguments, cwd: Path, **more: str) -> subprocess.CompletedProcess:
    command, variables = [str(python), *map(str, arguments)], outside(**more)
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)


def execute(python: Path, notebook, cwd: Path, **more: str) -> list[str]:
    """What each code cell prints, run in this Python by a kernel that no Jupyter started."""
    manager = KernelManager()
    manager.kernel_spec.argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    where = dict(metadata=dict(path=str(cwd)))
    options = dict(timeout=300, resources=where, extra_arguments=["--log-level=40"])
    client = NotebookClient(notebook, km=manager, **options)
    try:
        client.execute(env=outside(**more), independent=True)
    finally:
        manager.shutdown_kernel(now=True)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(output.get("text", "") for output in cell.outputs) for cell in code]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, folder, REPOSITORY], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The Python of an environment in which unetlib is installed."""
    python = make_environment(tmp_path_factory.mktemp("installed"))
    install(python, wheel, "--no-deps", "--no-index")
    return python


def test_the_wheel_holds_the_package_the_small_pictures_and_the_weights(wheel):
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if ".dist-info/" not in name}
    found = list((REPOSITORY / "unetlib").rglob("*.*"))
    for part in ("sample", "pretrained", "solution"):
        found += (REPOSITORY / "data" / part).rglob("*.*")
    files = [path.relative_to(REPOSITORY) for path in found if "__pycache__" not in path.parts]
    expected = {"unetlib/" * (one.parts[0] == "data") + one.as_posix() for one in files}
    assert held == expected | {"unetlib/data/README.md", "unetlib/notebooks/ablations.csv"}
    assert wheel.stat().st_size < 30e6 and f"-{unetlib.__version__}-" in wheel.name


def check_installed(python: Path, folder: Path) -> None:
    """Notebook 01 runs and ``predict`` predicts there, from the wheel's own files."""
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    notebook.cells.append(new_code_cell(WHERE))
    first, *_, last = execute(python, notebook, folder)
    assert first.splitlines()[1] == "data: sample"
    module, data, runs, here = map(Path, last.strip().split("|"))
    assert module.is_relative_to(python.parents[1].resolve()) and here == folder
    assert (data, runs) == (module.parent / "data" / "sample", folder / "runs")
    shutil.copy(PHOTO, folder / "photo.jpg")
    command = ["-m", "unetlib", "predict", "photo.jpg", "--output", "masks/"]
    ended = run(python, *command, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    (mask,) = (folder / "masks").glob("photo*")
    with Image.open(mask) as opened:
        found = np.asarray(opened) > 0
    assert (found == unetlib.load_predictor(PRETRAINED).predict_mask(PHOTO)).mean() > 0.9999


def test_outside_of_the_repository_the_first_notebook_and_predict_run(installed, tmp_path):
    check_installed(installed, tmp_path.resolve())


@pytest.mark.slow
def test_installed_with_all_that_it_needs_it_runs_too(wheel, tmp_path):
    python = make_environment(tmp_path / "env", borrow=False)
    install(python, wheel, "--constraint", str(REPOSITORY / "constraints.txt"))
    work = tmp_path.resolve() / "work"
    work.mkdir()
    check_installed(python, work)


@pytest.mark.fault("the full-size car where unetlib is installed", "said, with the remedy")
def test_what_the_wheel_leaves_out_is_said_to_lie_in_a_clone(installed, tmp_path):
    ended = run(installed, "-c", FULL_SIZE, cwd=tmp_path)
    *_, last = ended.stderr.splitlines()
    assert last.startswith("unetlib.pictures.DataError") and "full" in last and "clone" in last


def test_read_only_archives_are_unpacked_into_the_working_folder(installed, tmp_path, own_disk):
    """Kaggle's three lines."""
    disk = own_disk("size=8m")
    archives = make_archives(make_data(tmp_path / "data"), disk / "carvana")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    before = sorted(archives.iterdir())
    (tmp_path / "working").mkdir()
    command = ["-m", "unetlib", "download", "--from", archives]
    ended = run(installed, *command, cwd=tmp_path / "working")
    assert ended.returncode == 0, ended.stderr
    target = tmp_path / "working" / "data" / "carvana"
    assert {path.name for path in target.iterdir()} >= {"train", "train_masks", "metadata.csv"}
    assert sorted(archives.iterdir()) == before
    ended = run(installed, "-m", "unetlib", "check", cwd=target.parent, UNETLIB_DATA="carvana")
    assert (ended.returncode, ended.stdout) == (0, f"data: {target}\nproblems: 0\n")


# --------------------------------------------------------------------------------- the first cells


def first_cell(path: Path) -> str:
    return nbformat.read(path, as_version=4).cells[1].source


@pytest.mark.fault("a notebook in a kernel without unetlib", "one sentence, with the line to run")
def test_without_unetlib_a_first_cell_ends_with_one_sentence_and_what_to_run(tmp_path):
    python = make_environment(tmp_path / "env")
    ended = run(python, "-c", FIRST_CELL, first_cell(NOTEBOOKS[0]), cwd=tmp_path)
    *above, sentence, _, command = ended.stdout.strip().splitlines()
    assert "No module named 'unetlib'" in sentence and "`make lab`" in sentence
    assert len(above) < 20 and not any("During handling" in line for line in above)
    assert command == f'%pip install -c has.txt "unetlib @ git+{address(PROJECT)}"'


def test_all_first_cells_say_the_same():
    handled = [first_cell(path).partition("\nexcept ")[2] for path in NOTEBOOKS]
    handlers = {text.partition(" from None")[0] for text in handled}
    assert len(handlers) == 1 and handlers != {""}


@pytest.mark.parametrize("path", [*NOTEBOOKS, REPOSITORY / "README.md"], ids=lambda one: one.name)
def test_the_address_is_that_of_pyproject_everywhere(path, tmp_path):
    text = path.read_text(encoding="utf-8")
    assert set(PLACE.findall(text)) == {address(PROJECT)}, "run `python tools/course.py address`"
    project, copy = tmp_path / "pyproject.toml", tmp_path / path.name
    shutil.copy(path, copy)
    project.write_text('[project.urls]\nRepository = "https://example.com/you/course"')
    renew(project, [copy])
    there = "unetlib @ git+https://example.com/you/course"
    assert copy.read_text("utf-8") == text.replace(f"unetlib @ git+{address(PROJECT)}", there)


# ------------------------------------------------------------------------------------- in an editor


@pytest.fixture
def clone(tmp_path):
    """A small clone: the package, the pictures, and a data set beside the notebooks."""
    folder = tmp_path.resolve() / "clone"
    for part in ("unetlib", "data/sample", "data/solution"):
        shutil.copytree(REPOSITORY / part, folder / part)
    shutil.copy(PROJECT, folder)
    (folder / "notebooks" / "cars").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("variables", "data", "runs"),
    [
        ({}, "data/sample", "runs"),
        (dict(UNETLIB_DATA="cars", UNETLIB_HOME="mine"), "notebooks/cars", "notebooks/mine/runs"),
    ],
    ids=["by default", "relative folders"],
)
def test_a_kernel_of_vs_code_or_pycharm_finds_the_clone(clone, variables, data, runs):
    """It stands in the notebook's folder, and no Jupyter is there to ask where it was started."""
    parent = new_code_cell("print(__import__('os').environ.get('JPY_PARENT_PID'))")
    first = new_code_cell(first_cell(NOTEBOOKS[0]))
    notebook = new_notebook(cells=[parent, first, new_code_cell(WHERE)])
    variables = variables | dict(PYTHONPATH=str(clone))
    shown = execute(Path(sys.executable), notebook, clone / "notebooks", **variables)
    assert shown[0] == "None\n" and shown[1].splitlines()[1].startswith(f"data: {Path(data).name}")
    module, *found, here = shown[2].strip().split("|")
    assert (Path(module).parents[1], Path(here)) == (clone, clone / "notebooks")
    assert [Path(one) for one in found] == [clone / data, clone / runs]
