"""A folder of exported files <-> ``manifest.json``: which file is which, and may it be opened.

Weights (``.pth``) and graphs (``.onnx``) are data: opening one runs none of its content.
TorchScript and ``.pt2`` files are programs, opened only if ``manifest.json`` beside them names
their SHA-256, or if the caller trusts whoever made them. A file of any format with another SHA-256
than named there is refused. A folder from a stranger brings a manifest of its own.
"""

import json
import warnings
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

from unetlib.pictures import DataError
from unetlib.support.errors import ModelFileError
from unetlib.support.files import file_hash, locked, whole_file

FILES = {
    "pytorch": "unet_model.pth",  # weights and architecture; loads without running code
    "torchscript": "unet_model_torchjit.pth",  # a traced program (legacy: deprecated in PyTorch)
    "exported": "unet_model_exported.pt2",  # the program of torch.export, TorchScript's successor
    "onnx": "unet_model_onnx.onnx",  # for any runtime; one file
    "int8": "unet_model_int8.onnx",  # the same, quantised: a quarter of the size
}
PROGRAMS = ("torchscript", "exported")
Runtime = Literal["openvino", "compile"]
RUNTIMES = {"openvino": "ONNX files", "compile": ".pth files of weights"}
MANIFEST = "manifest.json"


def folder_lock(folder: Path):
    """The lock of whoever writes models into a folder, whatever home the program has."""
    return locked(folder / ".lock", partial(print, "another program writes; waiting for its lock"))


def write_manifest(folder: Path, files: Iterable[Path] | None = None) -> None:
    """Record what was written into a folder, so that a changed or exchanged file is noticed.

    For each file the manifest holds its SHA-256 and ``weights``, the SHA-256 of the ``.pth`` file
    whose weights it has. Errors as for ``read_manifest``. ``files`` were written just now, all of
    the same weights, beside what the manifest says of others; None: every exported file, no other.
    """
    content, weights = read_manifest(folder), file_hash(folder / FILES["pytorch"])
    if files is None:
        content, files = {}, exported_files(folder).values()
    content |= {file.name: dict(sha256=file_hash(file), weights=weights) for file in files}
    with whole_file(folder / MANIFEST) as part:
        part.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, dict]:
    """``manifest.json``'s entries by file name, if any (ModelFileError: damaged, or not ours)."""
    if not (path := folder / MANIFEST).exists():
        return {}
    with suppress(OSError, ValueError, AttributeError):
        content = json.loads(path.read_bytes())
        if set(map(type, content.values())) <= {dict} and content.keys() <= {*FILES.values()}:
            return content
    raise ModelFileError(f"{path}: damaged, or another program's; delete it or use another folder.")


def exported_files(folder: Path) -> dict[str, Path]:
    """A folder's exported files, format -> path in the order of ``FILES`` (DataError: none)."""
    found = {name: folder / file for name, file in FILES.items() if (folder / file).is_file()}
    if not found:
        raise DataError(f"{folder}: no exported model here; run python -m unetlib export first.")
    return found


def check_file(path: str | Path, trust: bool = False, runtime: Runtime | None = None) -> str:
    """What kind of model file this is, or why it must not be opened; nothing of it is executed.

    ``trust``: do not ask ``manifest.json``. ``runtime``: not the file's own, see ``RUNTIMES``.

    Returns:
        ``pytorch`` (weights), ``torchscript``, ``exported`` or ``onnx`` (int8 files included). A
        warning says if the ``unet_model.pth`` beside it is of another training.

    Raises:
        ModelFileError: no such file, or no model; not for that runtime; a program that the
            manifest does not name; or not the file that the manifest describes.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; train, then python -m unetlib export.")
    kind = {".onnx": "onnx", ".pt2": "exported"}.get(path.suffix.lower())
    if kind is None:
        try:
            with zipfile.ZipFile(path) as archive:  # a TorchScript program alone has constants
                is_program = any(one.endswith("/constants.pkl") for one in archive.namelist())
        except Exception:  # zipfile raises errors of several kinds
            raise ModelFileError(f"{path}: damaged, or no model file; export it again.") from None
        kind = "torchscript" if is_program else "pytorch"
    if not {None: True, "openvino": kind == "onnx", "compile": kind == "pytorch"}.get(runtime):
        kinds = ", ".join(f"{name!r} runs {files}" for name, files in RUNTIMES.items())
        raise ModelFileError(f"{path}: runtime={runtime!r} does not run this file; {kinds}.")
    if trust:
        return kind
    entry, newest = read_manifest(path.parent).get(path.name, {}), path.parent / FILES["pytorch"]
    known, weights = entry.get("sha256"), entry.get("weights")
    if known != (file_hash(path) if known or kind in PROGRAMS else None):
        problem = "damaged, or not the file" if known else "a program, and not one"
        problem += f" that {MANIFEST} beside it vouches for"
        remedy = "export it again, or pass trust=True if you trust whoever made it"
        raise ModelFileError(f"{path}: refused, {problem}; {remedy}.")
    if weights and newest.is_file() and file_hash(newest) != weights:
        problem = f"of another training than {newest.name} beside it"
        warnings.warn(f"{path}: {problem}; python -m unetlib export writes it anew.", stacklevel=1)
    return kind
