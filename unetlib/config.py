"""Environment -> data folder, profile, run folder.

Three environment variables steer everything:

- ``UNETLIB_DATA``: a folder in Carvana's layout; unset: the embedded ``data/sample``.
- ``UNETLIB_PROFILE``: ``ci``, ``laptop`` (default) or ``full``.
- ``UNETLIB_HOME``: where ``runs/``, ``models/`` and the cache are written; unset: the repository.
"""

import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

REPOSITORY = Path(__file__).resolve().parent.parent


def _start_folder() -> Path:
    """The folder in which the user's command was started.

    A notebook kernel runs in the notebook's own folder; the process that launched it (Jupyter,
    nbval, nbconvert) still stands where the user typed the command.
    """
    launcher = os.environ.get("JPY_PARENT_PID")
    if launcher:
        try:
            return Path(psutil.Process(int(launcher)).cwd())
        except (psutil.Error, ValueError):
            pass  # the launcher is gone or belongs to somebody else
    return Path.cwd()


def _folder_from(variable: str, default: Path) -> Path:
    value = os.environ.get(variable, "").strip()
    try:
        return (_start_folder() / Path(value).expanduser()).resolve() if value else default
    except RuntimeError:  # a ~ without a home
        raise FileNotFoundError(
            f"{variable}={value}: there is no such user's home; write the whole path."
        ) from None


def data_dir() -> Path:
    """The data set's folder: ``UNETLIB_DATA`` or the embedded ``data/sample``.

    A relative ``UNETLIB_DATA`` counts from where the command was started, in notebooks too.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    folder = _folder_from("UNETLIB_DATA", REPOSITORY / "data" / "sample")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"The data folder {folder} does not exist: set UNETLIB_DATA to a folder in Carvana's "
            "layout (train/, train_masks/), or unset it to use the embedded data/sample."
        )
    return folder


def fullsize_dir() -> Path:
    """The embedded car at Carvana's full size, 1918x1280 pixels."""
    return REPOSITORY / "data" / "fullsize"


def _home(name: str) -> Path:
    folder = _folder_from("UNETLIB_HOME", REPOSITORY) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"{folder}: cannot be made ({error.strerror}); set UNETLIB_HOME to a folder that you "
            "can write to."
        ) from None
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


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A file to write that takes the name ``path`` when the block ends without an error.

    Whenever the process or the power fails, ``path`` is the old file or the whole new one. The
    folder is created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:12]}.part{path.suffix}")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        for wait in (0.1, 0.5, 2, None) if sys.platform == "win32" else (None,):
            try:
                os.replace(part, path)
                break
            except PermissionError:  # Windows, while another program reads the old file
                if wait is None:
                    raise
                time.sleep(wait)
    finally:
        part.unlink(missing_ok=True)


class locked:
    """Holds the lock ``path`` during a ``with`` block; it ends with its process, however killed.

    ``as`` gives whether it is held: always, if there is an ``on_wait``, which is called before
    waiting for another program; without one, nobody waits.
    """

    def __init__(self, path: Path, on_wait: Callable[[], None] | None = None):
        self.lock, self.on_wait = FileLock(path), on_wait

    def __enter__(self) -> bool:
        try:
            held = self._take()
            if not held and self.on_wait:
                self.on_wait()
                while not (held := self._take()):
                    time.sleep(0.1)
        except BaseException:  # a lock half taken would be in this kernel's own way
            self.__exit__()
            raise
        return held

    def _take(self) -> bool:
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def __exit__(self, *error) -> None:
        try:
            self.lock.release(force=True)
        finally:  # where the stop button came in between
            self.lock.release(force=True)


@dataclass(frozen=True)
class Profile:
    """How much of the course runs: everything, what a laptop can bear, or a smoke test.

    Attributes:
        train_angles: the turntable angles (1..16) whose training images are used.
        max_size: largest image side in pixels.
        max_epochs: most epochs of one run.
        max_width: widths are divided until the first is at most this.
        lr_factor: multiplies a constant learning rate; short runs need larger steps.
        compare_size: image side in pixels at which notebooks compare two recipes.
    """

    name: str
    description: str
    train_angles: tuple[int, ...]
    max_size: int = 4096
    max_epochs: int = 1000
    max_width: int = 4096
    lr_factor: float = 1.0
    compare_size: int = 64

    def __str__(self) -> str:
        return f"profile: {self.name} ({self.description})"

    def scale(self, recipe):
        """The training recipe cut down to what this profile can bear (``ci`` only)."""
        shrink = max(1, recipe.widths[0] // self.max_width)
        epochs = min(recipe.epochs, self.max_epochs)
        return replace(
            recipe,
            widths=tuple(width // shrink for width in recipe.widths),
            size=min(recipe.size, self.max_size),
            epochs=epochs,
            half_size_epochs=recipe.half_size_epochs * epochs // recipe.epochs,
            lr=recipe.lr * (self.lr_factor if recipe.schedule == "constant" else 1),
        )

    def thin(self, samples):
        """The rows of a sample table (``carvana.find_samples``) whose angle this profile uses.

        Angles beyond 16 count on from 1; where none of the angles would be left, all stay.
        """
        used = ((samples["angle"] - 1) % 16 + 1).isin(self.train_angles)
        return samples[used | (not used.any())].reset_index(drop=True)


PROFILES = {
    "ci": Profile(
        "ci",
        "a smoke test: a narrow net at 64x64 for 3 epochs, every fourth training angle",
        tuple(range(1, 17, 4)),
        max_size=64,
        max_epochs=3,
        max_width=8,
        lr_factor=30.0,
    ),
    "laptop": Profile(
        "laptop",
        "the real model at 128x128, every second training angle",
        tuple(range(1, 17, 2)),
    ),
    "full": Profile("full", "the real model at 128x128, every picture", tuple(range(1, 17))),
}


def profile() -> Profile:
    """The profile named by ``UNETLIB_PROFILE``; ``laptop`` when unset.

    Raises:
        ValueError: the name is not one of ``PROFILES``.
    """
    name = os.environ.get("UNETLIB_PROFILE", "").strip() or "laptop"
    if name not in PROFILES:
        raise ValueError(f"UNETLIB_PROFILE={name} is unknown: use one of {', '.join(PROFILES)}.")
    return PROFILES[name]
