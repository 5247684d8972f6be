"""Model files -> functions from images to logits, whatever the format, and safe to open.

Weights (``.pth``) and graphs (``.onnx``) are data: opening one runs none of its content.
TorchScript and ``.pt2`` files are programs, so they are opened only if ``export_all`` wrote down
their SHA-256 beside them, or if the caller vouches for them.
"""

import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.external_data_helper import uses_external_data

from unetlib import config
from unetlib.model import ModelFileError, autocast, load_model, pick_device

FILES = {
    "pytorch": "unet_model.pth",
    "torchscript": "unet_model_torchjit.pth",
    "exported": "unet_model_exported.pt2",
    "onnx": "unet_model_onnx.onnx",
    "int8": "unet_model_int8.onnx",
}
MANIFEST = "manifest.json"
METADATA_KEY = "unetlib"

LogitsFunction = Callable[[np.ndarray], np.ndarray]


def describe(size: int, threshold: float) -> str:
    """What a file says of itself, as JSON: enough to predict with it."""
    return json.dumps(dict(size=size, threshold=threshold, normalisation="grey / 255"))


@contextmanager
def legacy_allowed() -> Iterator[None]:
    """Silence the one warning that TorchScript's functions give: that they are deprecated."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", r"`torch\.jit", category)
        yield


def write_manifest(folder: Path) -> None:
    """Note down the SHA-256 and size of every exported file, so that programs can be told apart."""
    files = [folder / name for name in FILES.values() if (folder / name).is_file()]
    content = {file.name: dict(sha256=_sha256(file), bytes=file.stat().st_size) for file in files}
    with config.whole_file(folder / MANIFEST) as part:
        part.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_trust(path: Path, trust: bool) -> None:
    """Refuse a program that nobody vouches for."""
    if trust:
        return
    try:
        manifest = json.loads((path.parent / MANIFEST).read_text(encoding="utf-8"))
        known = manifest[path.name]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        known = None
    if known != _sha256(path):
        raise ModelFileError(
            f"{path}: refused, a program that {MANIFEST} beside it does not vouch for; export it "
            "anew, or pass trust=True if you trust whoever made it."
        )


def open_model(
    path: str | Path,
    device=None,
    threads: int | None = None,
    precision: str = "fp32",
    trust: bool = False,
) -> tuple[LogitsFunction, dict]:
    """Open a model file of any format as a function from images to logits.

    Args:
        device: of the PyTorch formats; None picks the best. ONNX files run on the CPU.
        threads: of ONNX Runtime; None: all cores. (PyTorch: ``torch.set_num_threads``.)
        precision: ``fp32`` or ``bf16``, for ``.pth`` files of weights only.
        trust: open a TorchScript or ``.pt2`` file, which can run any code, without its SHA-256 in
            ``manifest.json``.

    Returns:
        The function, float32 arrays ``(N, 1, H, W)`` in and out, and what the file says of itself:
        ``format``, ``size``, ``threshold``.

    Raises:
        ModelFileError: no such file, unreadable, not written by unetlib, or not to be trusted.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(
            f"{path}: no such file; export a model first (python -m unetlib export)."
        )
    if path.suffix == ".onnx":
        return _open_onnx(path, threads)
    device = torch.device(device) if device is not None else pick_device()
    if path.suffix == ".pt2":
        model, info = _open_exported(path, device, trust)
    elif _is_torchscript(path):
        model, info = _open_torchscript(path, device, trust)
    else:
        model, info = load_model(path)
        info["format"] = "pytorch"
        model = model.to(device)
    memory_format = torch.contiguous_format
    if precision == "bf16":
        memory_format = torch.channels_last
        model = model.to(memory_format=memory_format)

    @torch.inference_mode()
    def logits(batch: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(batch).to(device, memory_format=memory_format)
        with autocast(device, precision):
            return model(images).float().cpu().numpy()

    return logits, info


def _is_torchscript(path: Path) -> bool:
    """Both kinds of ``.pth`` are zip archives; only a TorchScript program has constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _open_torchscript(path: Path, device: torch.device, trust: bool):
    _check_trust(path, trust)
    description = {METADATA_KEY: ""}
    try:
        with legacy_allowed():
            model = torch.jit.load(path, map_location=device, _extra_files=description)
        return model, dict(json.loads(description[METADATA_KEY]), format="torchscript")
    except (RuntimeError, ValueError):
        raise _damaged(path) from None


def _open_exported(path: Path, device: torch.device, trust: bool):
    _check_trust(path, trust)
    description = {METADATA_KEY: ""}
    try:
        program = torch.export.load(path, extra_files=description)
        info = dict(json.loads(description[METADATA_KEY]), format="exported")
    except Exception:  # torch.export raises errors of many kinds on a damaged file
        raise _damaged(path) from None
    return program.module().to(device), info


def _damaged(path: Path) -> ModelFileError:
    return ModelFileError(f"{path}: damaged, or not written by unetlib; export it anew.")


def _tensors(message) -> Iterator[onnx.TensorProto]:
    """Every tensor stored anywhere in a protobuf message: in graphs, nodes, functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(inner)


def _open_onnx(path: Path, threads: int | None) -> tuple[LogitsFunction, dict]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    # Idle threads that spin would take the cores from whatever runs next in this process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads:
        options.intra_op_num_threads = threads
    try:
        content = onnx.load(path, load_external_data=False)
        # Such a path could name any file of this computer; ours keep everything inside.
        if any(uses_external_data(tensor) for tensor in _tensors(content)):
            raise ModelFileError(
                f"{path}: refused, it takes weights from other files; export it anew as one file."
            )
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        info = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    except ModelFileError:
        raise
    except KeyError:
        raise ModelFileError(f"{path}: ONNX, but not written by unetlib; export it anew.") from None
    except Exception as error:  # ONNX Runtime's errors share no public base class
        reason = type(error).__name__
        raise ModelFileError(f"{path}: unreadable ONNX file ({reason}); export it anew.") from None
    quantised = any(node.op_type == "QuantizeLinear" for node in content.graph.node)
    info["format"] = "int8" if quantised else "onnx"
    return lambda batch: session.run(["logits"], {"input": batch})[0], info
