"""Where results go: the folders under ``UNETLIB_HOME``; unset: the repository."""

from pathlib import Path

from unetlib.config import REPOSITORY, folder_from


def _home(name: str) -> Path:
    folder = folder_from("UNETLIB_HOME", REPOSITORY) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"{folder}: cannot be created ({error.strerror})"
        raise type(error)(f"{problem}; set UNETLIB_HOME to a writable folder.") from None
    return folder


def runs_dir() -> Path:
    """The folder of all training runs, ``runs/`` (created)."""
    return _home("runs")


def models_dir() -> Path:
    """The folder of exported models, ``models/`` (created)."""
    return _home("models")


def cache_dir() -> Path:
    """The folder of decoded images, ``.cache/`` (created)."""
    return _home(".cache")
