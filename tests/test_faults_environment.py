"""Machines that lack something: each is a real process that trains a tiny net and uses it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unetlib import REPOSITORY

# One core, whatever the machine has; then what a learner does in a terminal, and a figure.
COURSE = """
import os, sys
from pathlib import Path
if "ONE_CORE" in os.environ:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from unetlib import find_runs, plot_history
from unetlib.__main__ import main
images, output = sys.argv[1:3]
settings = "--widths 4 8 --size 32 --epochs 1 --batch-size 4 --lr 0.01".split()
commands = [["train", *settings]]
if sys.argv[3:] == ["export"]:
    commands.append(["export"])
model = os.path.join(os.environ["UNETLIB_HOME"], "models", "unet_model.pth")
commands.append(["predict", images, "--model", model, "--output", output])
for command in commands:
    if status := main(command):
        sys.exit(status)
plot_history(find_runs()).savefig(Path(output) / "figure.png")
"""

NO_HOME = {"HOME": None}
NO_DISPLAY = {"DISPLAY": None, "WAYLAND_DISPLAY": None, "MPLBACKEND": None}
NO_COMPILER = {"PATH": "/nonexistent", "CC": None, "CXX": None}
# The user 12345 has no name and no home; root's right to open any file stays, because Python itself
# may lie in root's home.
NOBODY = [
    shutil.which("setpriv") or "setpriv",
    "--reuid=12345",
    "--inh-caps=+dac_override",
    "--ambient-caps=+dac_override",
]


def nobody_can_start() -> bool:
    try:
        tried = subprocess.run([*NOBODY, sys.executable, "-c", "pass"], capture_output=True)
    except OSError:
        return False
    return not tried.returncode


def case(what: str, *marks, before=(), **variables):
    fault = pytest.mark.fault(what, "trains, exports, predicts and draws as elsewhere")
    return pytest.param(list(before), variables, marks=[fault, *marks], id=what)


@pytest.mark.skipif(os.name != "posix", reason="takes away what Unix has")
@pytest.mark.parametrize(
    ("before", "variables"),
    [
        case(
            "no home, no display, no compiler and one core at once",
            **(NO_HOME | NO_DISPLAY | NO_COMPILER | {"ONE_CORE": "1"}),
        ),
        case("HOME not set", pytest.mark.slow, **NO_HOME),
        case("HOME cannot be written", pytest.mark.slow, HOME="/proc"),
        case("no display", pytest.mark.slow, **NO_DISPLAY),
        case("no compiler, an empty PATH", pytest.mark.slow, **NO_COMPILER),
        pytest.param(
            [],
            {"ONE_CORE": "1"},
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(
                    not hasattr(os, "sched_setaffinity"), reason="needs Linux to choose a core"
                ),
                pytest.mark.fault("one core", "trains, exports, predicts and draws as elsewhere"),
            ],
            id="one core",
        ),
        case(
            "a user without a name and without a home, as in some containers",
            pytest.mark.slow,
            pytest.mark.skipif(not nobody_can_start(), reason="needs root and setpriv"),
            before=NOBODY,
            **NO_HOME,
        ),
    ],
)
def test_the_course_works_on_a_machine_that_lacks(request, data_set, tmp_path, before, variables):
    everything = request.node.get_closest_marker("slow") is not None
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1")
    environment |= {name: value for name, value in variables.items() if value is not None}
    for name in (name for name, value in variables.items() if value is None):
        environment.pop(name, None)
    ended = subprocess.run(
        [
            *before,
            sys.executable,
            "-c",
            COURSE,
            data_set / "test",
            tmp_path / "masks",
            *(["export"] if everything else []),
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert len(list((tmp_path / "masks").glob("*_mask.png"))) == 4
    assert (tmp_path / "masks" / "figure.png").stat().st_size > 1000
    assert (tmp_path / "home" / "models" / "unet_model_int8.onnx").exists() == everything


# -------------------------------------------------------------------------------------- its paths


RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def repository_paths() -> list[str]:
    """The paths that git would write on somebody else's machine."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("needs git and a clone")
    return listed.stdout.rstrip("\0").split("\0")


@pytest.mark.fault(
    "a path that Windows cannot write", "there is none in the repository, and none that is too long"
)
def test_every_path_of_the_repository_is_legal_on_windows():
    for path in repository_paths():
        assert path.isascii() and not set(path) & set('<>:"|?*\\'), path
        assert min(map(ord, path)) >= 32, path
        assert not any(RESERVED.match(part) for part in path.split("/")), path
        assert not any(part.endswith((".", " ")) for part in path.split("/")), path
        assert len(path) < 120, path  # Windows allows 260 for all, the clone's own folder included


@pytest.mark.fault(
    "names that differ only in capitals", "there are none: Windows and macOS would keep one file"
)
def test_no_two_paths_differ_in_capitals_only():
    paths = repository_paths()
    folders = {path.rpartition("/")[0] for path in paths}
    for names in (paths, folders):
        assert len({name.lower() for name in names}) == len(set(names))


# ------------------------------------------------------------------------------------ its Pythons


COMPILE = """
import pathlib, warnings
warnings.simplefilter("error")
for folder in ("unetlib", "tests", "tools"):
    for path in pathlib.Path(folder).rglob("*.py"):
        compile(path.read_bytes(), path, "exec")
"""


def interpreter(version: str) -> str | None:
    """A Python of this version that starts, on the PATH or from pyenv."""
    found = [shutil.which(f"python{version}"), sys.executable]
    found += map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    asked = "import sys; print(*sys.version_info[:2], sep='.')"
    for command in filter(None, found):
        answer = subprocess.run([command, "-c", asked], capture_output=True, text=True)
        if answer.stdout.strip() == version:
            return command
    return None


@pytest.mark.fault("another Python", "the code compiles with each one that is installed")
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_the_code_compiles_with_python(version):
    command = interpreter(version)
    if command is None:
        pytest.skip(f"no Python {version} on this machine")
    ended = subprocess.run([command, "-c", COMPILE], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.fault(
    "a Python too old for the course, or newer than its packages",
    "make names those that work and how to choose one; nothing is installed",
)
@pytest.mark.parametrize("version", [(3, 10, 14), (3, 15, 2)], ids=["3.10", "3.15"])
def test_make_refuses_a_python_without_packages(version, tmp_path):
    python, venv = tmp_path / "python", tmp_path / "venv"
    pretend = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{pretend}" "$2"\n')
    python.chmod(0o755)
    ended = subprocess.run(
        ["make", "setup", f"PYTHON={python}", f"VENV={venv}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    said = ended.stderr.splitlines()[0]
    assert ended.returncode and not venv.exists()
    assert "3.11 to 3.14" in said and "make PYTHON=" in said
