"""Model <-> the ``.pth`` file it is kept in, which loads without running any code."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from unetlib.model import UNet
from unetlib.support.errors import ModelFileError
from unetlib.support.files import whole_file

FILE_FORMAT = "unetlib model"
FILE_VERSION = 1


def save_model(path, model: nn.Module, size, threshold=0.5, colour=False, **info) -> None:
    """Write a model with all that is needed to predict with it.

    The file is a dict of plain types and tensors, so that it loads with ``weights_only=True``. It
    is written under another name, flushed to disk, then renamed: never half a file. Of a model
    that ``torch.compile`` has wrapped, the plain one is written. Of a network that is not what
    ``UNet(...)`` builds the file holds the weights and the name of the class, not its code.

    Args:
        size: the image side in pixels that the model was trained at, or (height, width).
        threshold: the probability above which a pixel counts as object.
        colour: whether it takes three channels instead of one.
        info: further values that JSON can hold (recipe, scores), NumPy's numbers included.

    Raises:
        TypeError: a value in ``info`` that JSON cannot hold. Nothing is written.
    """
    model = getattr(model, "_orig_mod", model)
    own = None if as_built(model) else type(model).__name__
    plain = dict(architecture=None if own else model.architecture, network=own, size=size)
    plain |= dict(threshold=threshold, colour=colour, info=info)
    content = dict(
        format=FILE_FORMAT,
        version=FILE_VERSION,
        normalisation="colour / 255" if colour else "grey / 255",
        **json.loads(json.dumps(plain, default=_python_number)),
        state_dict={name: value.cpu() for name, value in model.state_dict().items()},
    )
    save_atomically(content, Path(path))


def as_built(model: nn.Module) -> bool:
    """Whether the model is a ``UNet`` all of whose layers its architecture describes."""
    kind = type(model)
    if (kind.__module__, kind.__qualname__) != (UNet.__module__, UNet.__qualname__):
        return False  # by name: reloading a module makes another class of the same code
    same = UNet(**model.architecture)
    # On several GPUs batch normalisation is of another kind, which computes alike after training.
    layers = repr(model).replace("SyncBatchNorm", "BatchNorm2d")
    return layers == repr(same) and model.state_dict().keys() == same.state_dict().keys()


def _python_number(value) -> bool | int | float:
    """NumPy's number as Python's own."""
    if isinstance(value, (np.bool_, np.number)):
        return value.item()
    raise TypeError(f"{value!r}: not a number, text, list or dict that JSON can hold.")


def save_atomically(content: dict, path: Path) -> None:
    """``torch.save`` that leaves either the old file or the whole new one.

    Raises:
        OSError: disk full, or no permission to write.
    """
    buffer = io.BytesIO()  # torch's own writer reports a full disk as an internal error
    torch.save(content, buffer)
    with whole_file(path) as part:
        part.write_bytes(buffer.getbuffer())


def load_plain(path: str | Path) -> dict:
    """Read what ``save_atomically`` wrote; nothing in it is executed (``weights_only=True``).

    PyTorch writes a CRC-32 beside every part of the file but does not look at it: a weight that a
    bad disk has changed would be used. So the sums are compared first.

    Raises:
        ModelFileError: no such file, damaged, or more than plain values and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # A part marked as a folder has no content for PyTorch, which then uses any memory.
            marked = any(part.external_attr for part in archive.infolist())
            if marked or archive.testzip() is not None:
                raise zipfile.BadZipFile
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelFileError(f"{path}: no such file; train a model first.") from None
    except Exception:  # zip archives and pickles can be broken in many ways
        problem = "refused, not a plain file of weights (damaged, or it holds code to run)"
        raise ModelFileError(f"{path}: {problem}; train or export it again.") from None


def load_model(path: str | Path, network=None) -> tuple[nn.Module, dict]:
    """Read a model file; nothing in it is executed (``weights_only=True``).

    Args:
        network: class or function that makes the network of the weights; a ``UNet`` needs none.

    Returns:
        The model in evaluation mode on the CPU, and the file's other entries, see ``load_content``.

    Raises:
        ModelFileError: as ``load_content``; or the file is of an own network and ``network`` is
            missing or another one.
    """
    content = load_content(path)
    own = content["network"]
    if own and network is None:
        remedy = f"pass network={own}, or on the command line --network module:{own}"
        raise ModelFileError(f"{path}: weights of {own}, a network of your own; {remedy}.")
    try:
        model = UNet(**content["architecture"]) if network is None else network()
        model.load_state_dict(content.pop("state_dict"))
    except (AttributeError, RuntimeError, TypeError, ValueError, KeyError) as error:
        fit = "the architecture named in the file; export it again"
        if network is not None:
            fit = f"what network= makes; pass the class or function that makes its {own or 'UNet'}"
        raise ModelFileError(f"{path}: the weights do not fit {fit}.") from error
    return model.eval(), content


def load_content(path: str | Path) -> dict:
    """The entries of a model file, its weights unused.

    Returns:
        ``size`` (side, or (height, width)), ``threshold``, ``colour``, ``normalisation``,
        ``network`` (None, or the name of an own network's class), ``architecture`` (a ``UNet``'s,
        else None), ``info``, ``state_dict``.

    Raises:
        ModelFileError: no such file, not a model file, damaged, or of another version.
    """
    content = load_plain(path)
    if not isinstance(content, dict) or content.get("format") != FILE_FORMAT:
        raise ModelFileError(f"{path}: not a unetlib model; write it with unetlib.save_model.")
    if content.get("version") != FILE_VERSION:
        raise ModelFileError(f"{path}: not of file version {FILE_VERSION}; export it again.")
    content = dict(colour=False, network=None) | content  # older files say nothing of these
    if isinstance(content.get("size"), list):
        content["size"] = tuple(content["size"])
    return content
