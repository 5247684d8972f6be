"""The lesson stands alone at the top; machinery imports it, never the other way round."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from drawn_cars import write_data_set

import unetlib

PACKAGE = Path(unetlib.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LESSON = [path for path in FILES if path.parent == PACKAGE and path.name != "__main__.py"]
# What each sub-package may import of the others.
BELOW = {
    "support": set(),
    "store": {"support"},
    "fetch": {"support"},
    "deploy": {"support", "store", "fetch"},
    "cli": {"support", "store", "fetch", "deploy"},
}


def imported_parts(path: Path) -> set[str]:
    """The modules and sub-packages of unetlib that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "unetlib":
            homes = unetlib._MODULES
            names |= {f"unetlib.{homes.get(alias.name, alias.name)}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name.split(".")[1] for name in names if name.startswith("unetlib.")}


def run(code: str, **environment) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def count_lines(paths: list[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def test_the_lesson_imports_nothing_that_stands_behind_it():
    subpackages = {path.parent.name for path in FILES} - {"unetlib"}
    assert subpackages == set(BELOW)
    for path in LESSON:
        assert not imported_parts(path) & subpackages, path.name


@pytest.mark.parametrize("subpackage", BELOW)
def test_a_sub_package_imports_only_what_stands_below_it(subpackage):
    allowed = BELOW[subpackage] | {subpackage, "__version__"} | {path.stem for path in LESSON}
    for path in (PACKAGE / subpackage).glob("*.py"):
        assert imported_parts(path) <= allowed, path


def test_the_lesson_is_short_and_no_file_holds_two_ideas():
    assert count_lines(LESSON) <= 1600
    assert count_lines(FILES) <= 5800
    assert {path.name for path in FILES if count_lines([path]) > 300} == set()


def test_the_lesson_alone_trains_and_evaluates(tmp_path):
    """Copied without any sub-package: from files to a trained and scored model."""
    (tmp_path / "unetlib").mkdir()
    for path in LESSON:
        shutil.copy(path, tmp_path / "unetlib")
    data = write_data_set(tmp_path / "data", cars=2)
    code = f"""
from unetlib import CarvanaDataset, Recipe, evaluate, overlay, split_by_group
from unetlib.carvana import find_samples
from unetlib.training import Learner, train
recipe = Recipe(widths=(4, 8), size=32, epochs=2, lr=1e-2, augment="mild", precision="fp32")
train_rows, val_rows = split_by_group(find_samples({str(data)!r}))
train_set = CarvanaDataset(train_rows, 32, augment="mild")
val_set = CarvanaDataset(val_rows, 32)
learner = Learner(recipe, total_steps=2)
history = list(train(learner, {{32: train_set}}, {{32: val_set}}, batch_size=4))
scores = evaluate(learner.model, val_set)
assert scores["dice"].mean() == history[-1]["val_dice"]
overlay(val_set.images[0], val_set.coverage[0] >= 128)
print(len(history))
"""
    assert run(code, PYTHONPATH=str(tmp_path)).split() == ["2"]


def test_importing_costs_nothing_and_every_public_name_is_there():
    code = """
import sys, unetlib
print(*{"torch", "pandas", "numpy", "PIL"} & set(sys.modules))
"""
    assert run(code).split() == []
    assert set(unetlib.__all__) <= set(dir(unetlib))
    found = {}
    exec("from unetlib import *", found)
    assert set(unetlib.__all__) <= set(found)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = unetlib.no_such_name


@pytest.mark.fault("installed without a repository around", "results in the current folder")
def test_an_installed_package_writes_into_the_current_folder_and_asks_for_data(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "site-packages" / "unetlib")
    path = str(tmp_path / "site-packages")
    environment = dict(PYTHONPATH=path, PYTHONSAFEPATH="1", UNETLIB_DATA="", UNETLIB_HOME="")
    code = f"""
import os
os.chdir({str(tmp_path)!r})
import unetlib
print(unetlib.__file__, unetlib.runs_dir(), unetlib.models_dir(), unetlib.cache_dir())
try:
    unetlib.data_dir()
except FileNotFoundError as error:
    print(error)
"""
    places, sentence = run(code, **environment).splitlines()
    assert places.split() == [
        f"{path}/unetlib/__init__.py",
        *(str(tmp_path / name) for name in ("runs", "models", ".cache/unetlib")),
    ]
    assert str(tmp_path) in sentence and "UNETLIB_DATA" in sentence
