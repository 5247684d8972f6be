"""Model <-> the ``.pth`` file it is kept in, which loads without running any code."""

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

from unetlib.model import UNet
from unetlib.seeds import seeded
from unetlib.support.code import code_hash
from unetlib.support.errors import ModelFileError, RunError
from unetlib.support.files import whole_file

FILE_FORMAT, FILE_VERSION = "unetlib model", 1


def save_model(path, model: nn.Module, size, threshold=0.5, colour=False, **info) -> None:
    """Write a model with all that is needed to predict with it.

    The file is a dict of plain types and tensors, so that it loads with ``weights_only=True``. Of a
    model that ``torch.compile`` has wrapped, the plain one is written. Of a network that is not
    what ``UNet(...)`` builds the file holds the weights and the name of the class, not its code.

    Args:
        size: the image side in pixels that the model was trained at, or (height, width).
        threshold: the probability above which a pixel counts as object.
        colour: whether it takes three channels instead of one.
        info: further values that JSON can hold (recipe, scores), NumPy's numbers included.

    Raises:
        TypeError: a value in ``info`` that JSON cannot hold. Nothing is written.
        ValueError: a threshold outside 0 to 1; a ``UNet`` of other outputs or inputs (``colour``).
    """
    model = getattr(model, "_orig_mod", model)
    own = None if as_built(model) else type(model).__name__
    fit = dict(in_channels=3 if colour else 1, out_channels=1)
    if not own and not fit.items() <= model.architecture.items():
        raise ValueError(f"A UNet of other channels than {fit}: give one, and colour= as it is.")
    plain = dict(architecture=None if own else model.architecture, network=own, info=info)
    plain |= dict(format=FILE_FORMAT, version=FILE_VERSION) | description(size, threshold, colour)
    content = json.loads(json.dumps(plain, default=np.generic.item))
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    save_atomically(content | dict(state_dict=weights), path)


def description(size, threshold: float, colour: bool) -> dict:
    """What a file of any format says of itself: enough to predict with it."""
    normalisation = "colour / 255" if colour else "grey / 255"
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: give a probability, from 0 to 1.")
    return dict(size=size, threshold=threshold, colour=colour, normalisation=normalisation)


def as_built(model: nn.Module) -> bool:
    """Whether the model is a ``UNet`` all of whose layers its architecture describes."""
    kind = type(model)  # compared by name: reloading a module makes another class of the same code
    if (kind.__module__, kind.__qualname__) != (UNet.__module__, UNet.__qualname__):
        return False
    same = UNet(**model.architecture)
    # On several GPUs batch normalisation is of another kind, which computes alike after training.
    layers = repr(model).replace("SyncBatchNorm", "BatchNorm2d")
    return layers == repr(same) and model.state_dict().keys() == same.state_dict().keys()


def save_atomically(content, path: str | Path, save: Callable = torch.save) -> None:
    """``save(content, path)``; an OSError (no space, no permission) leaves the old file whole."""
    buffer = io.BytesIO()  # on a full disk torch's own writers may end the whole process
    save(content, buffer)
    with whole_file(path) as part:
        part.write_bytes(buffer.getbuffer())


def load_plain(path: str | Path) -> dict:
    """Read what ``save_atomically`` wrote; nothing in it is executed (``weights_only=True``).

    PyTorch writes a CRC-32 beside every part of the file but does not look at it: a weight that a
    bad disk has changed would be used. So the sums are compared first.
    ModelFileError: no such file, damaged, or not a dict of plain values and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # A part marked as a folder has no content for PyTorch, which then uses any memory.
            if any(part.external_attr for part in archive.infolist()) or archive.testzip():
                raise zipfile.BadZipFile
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise ModelFileError(f"{path}: no such file; train a model first.") from None
    except Exception:  # zip archives and pickles can be broken in many ways
        problem = "refused, not a plain file of weights (damaged, or it holds code to run)"
        raise ModelFileError(f"{path}: {problem}; train or export it again.") from None


@contextmanager
def weights_named(path: str | None) -> Iterator[None]:
    """The errors of weights to start from, which a network is given inside, as one sentence."""
    if path is not None:
        load_plain(path)
    try:
        yield
    except (RuntimeError, KeyError) as error:
        if path is None:
            raise
        problem = "not a file of save_model, or of another network than the recipe's"
        raise ModelFileError(f"{path}: {problem}; choose another.") from error


def load_model(path: str | Path, network: Callable | None = None) -> tuple[nn.Module, dict]:
    """Read a model file; nothing in it is executed (``weights_only=True``).

    ``network``: class or function that makes the network of the weights; a ``UNet`` needs none.

    Returns:
        The model in evaluation mode on the CPU, and the file's other entries: ``size`` (side, or
        (height, width)), ``threshold``, ``colour``, ``normalisation``, ``network`` (None, or the
        name of an own network's class), ``architecture`` (a ``UNet``'s, else None), ``info``.

    Raises:
        ModelFileError: no such file, not a model file, damaged, or of another version; or the file
            is of an own network and ``network`` is missing or another one.
    """
    content = dict(colour=False, network=None) | load_plain(path)  # missing in older files
    if (content.get("format"), content.get("version")) != (FILE_FORMAT, FILE_VERSION):
        raise ModelFileError(f"{path}: no unetlib model of file version 1; train or export again.")
    own = content["network"]
    if own and network is None:
        remedy = f"pass network={own}, or on the command line --network module:{own}"
        raise ModelFileError(f"{path}: weights of {own}, a network of your own; {remedy}.")
    with suppress(RunError, KeyError, TypeError):  # no run's, or code that cannot be hashed
        if own and content["info"]["recipe"]["network"]["code"] != code_hash((False, network)):
            what = f"of {own}'s code as it was, which has changed; pass that, or train again"
            warnings.warn(f"{path}: weights {what}.", stacklevel=2)
    try:
        with torch.device("cpu"), seeded(0):  # whatever PyTorch's default device and type
            model = UNet(**content["architecture"]) if network is None else network()
        model.load_state_dict(content.pop("state_dict"))
        content["size"] = tuple(content["size"]) if np.ndim(content["size"]) else content["size"]
    except (AttributeError, RuntimeError, TypeError, ValueError, KeyError) as error:
        remedy = f"pass the class or function that makes its {own or 'UNet'}, or export it again"
        raise ModelFileError(f"{path}: the weights do not fit the network; {remedy}.") from error
    return model.eval(), content
