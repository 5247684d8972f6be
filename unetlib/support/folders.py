"""Environment -> folders: ``UNETLIB_DATA`` names a data set, ``UNETLIB_HOME`` where results go;
unset: the embedded set, and the repository or, where there is none, the current folder.
"""

import os
from contextlib import suppress
from pathlib import Path

AROUND = Path(__file__).resolve().parents[2]  # site-packages, if installed as a wheel
REPOSITORY = AROUND if (AROUND / "pyproject.toml").is_file() else Path.cwd()
SOLUTION = REPOSITORY / "data" / "solution" / "solution.csv"  # of the embedded set's test pictures


def _named_by(variable: str, default: Path) -> Path:
    """The folder that an environment variable names, or the default.

    A relative one counts from where the command was typed: a notebook's kernel runs in the
    notebook's own folder, but the process that launched it (Jupyter, nbval) still stands there.
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        return default
    start = Path.cwd()
    if launcher := os.environ.get("JPY_PARENT_PID"):
        import psutil  # only notebook kernels need it

        with suppress(psutil.Error, ValueError):  # it has ended or belongs to another user
            start = Path(psutil.Process(int(launcher)).cwd())
    return (start / os.path.expanduser(value)).resolve()


def data_dir() -> Path:
    """The data set's folder: ``UNETLIB_DATA`` or ``data/sample`` (FileNotFoundError: missing)."""
    folder = _named_by("UNETLIB_DATA", REPOSITORY / "data" / "sample")
    if not folder.is_dir():
        remedy = "let UNETLIB_DATA name your pictures' folder, or unset it in a clone of unetlib"
        raise FileNotFoundError(f"{folder}: no such folder; {remedy}.")
    return folder


def _home(name: str) -> Path:
    folder = _named_by("UNETLIB_HOME", REPOSITORY) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"cannot be created ({error.strerror}); set UNETLIB_HOME to a writable folder"
        raise type(error)(f"{folder}: {why}.") from None
    return folder


def runs_dir() -> Path:
    """The folder of all training runs, ``runs/`` (created)."""
    return _home("runs")


def models_dir() -> Path:
    """The folder of exported models, ``models/`` (created)."""
    return _home("models")


def cache_dir() -> Path:
    """The folder of decoded images, ``.cache/unetlib/`` (created); ``clean_runs`` deletes it."""
    return _home(".cache/unetlib")
