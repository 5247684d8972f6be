"""Where results go: under ``UNETLIB_HOME``; unset: the repository, else the current folder."""

from pathlib import Path

from unetlib.config import REPOSITORY, folder_from


def _home(name: str) -> Path:
    folder = folder_from("UNETLIB_HOME", REPOSITORY) / name
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
