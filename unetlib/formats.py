"""Model files -> functions from images to logits, whatever the format, and safe to open.

Weights (``.pth``) and graphs (``.onnx``) are data: opening one runs none of its content.
TorchScript and ``.pt2`` files are programs, so they are opened only if ``manifest.json`` beside
them names their SHA-256, or if the caller vouches for them. A file of any format whose SHA-256 is
not the one named there is damaged or not what was exported, and is refused. The manifest does not
say who exported: a folder from a stranger brings a manifest of its own.
"""

import hashlib
import importlib.util
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.external_data_helper import uses_external_data

from unetlib import sealed
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
Runtime = Literal["openvino", "compile"]
RUNS = {"openvino": "ONNX files", "compile": ".pth files of weights"}

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


def check_manifest(folder: Path) -> None:
    """Refuse a folder whose ``manifest.json`` is another program's: ours would replace it.

    Raises:
        ModelFileError: there is one, and it names other things than exported files.
    """
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError):  # none, or ours and damaged: to be written anew
        return
    if not isinstance(content, dict) or content.keys() - {*FILES.values(), sealed.KEY}:
        raise ModelFileError(
            f"{folder / MANIFEST}: not written by unetlib, so kept; choose another folder."
        )


def write_manifest(folder: Path, files: Iterable[Path] | None = None) -> None:
    """Note down what was written into a folder, so that each file can be told from any other.

    Args:
        files: written just now, all of the same weights; None: every exported file there is. What
            the manifest says of other files stays.

    The manifest holds, for each file, its SHA-256, its size in bytes and ``weights``: the SHA-256
    of the ``.pth`` file whose weights it has.

    Raises:
        ModelFileError: see ``check_manifest``.
    """
    check_manifest(folder)
    if files is None:
        content = {}
        files = [folder / name for name in FILES.values() if (folder / name).is_file()]
    else:
        try:
            content = read_manifest(folder)
        except ModelFileError:  # the others are vouched for no more
            content = {}
    weights = file_hash(folder / FILES["pytorch"]) if files else ""
    for file in files:
        content[file.name] = dict(
            sha256=file_hash(file), bytes=file.stat().st_size, weights=weights
        )
    sealed.write_json(folder / MANIFEST, content)


def read_manifest(folder: Path) -> dict[str, dict]:
    """What ``write_manifest`` wrote; empty where there is none.

    Raises:
        ModelFileError: there is one, and it is damaged.
    """
    try:
        content = sealed.read_json(folder / MANIFEST)
        return {name: dict(entry) for name, entry in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError):
        raise ModelFileError(
            f"{folder / MANIFEST}: damaged, so it vouches for nothing; export anew, or delete it."
        ) from None


def file_hash(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_manifest(path: Path, is_program: bool) -> None:
    """Refuse a file that is not the one written down, and a program that nobody vouches for."""
    known = read_manifest(path.parent).get(path.name, {}).get("sha256")
    if known is None and is_program:
        raise ModelFileError(
            f"{path}: refused, a program that {MANIFEST} beside it does not vouch for; export it "
            "anew, or pass trust=True if you trust whoever made it."
        )
    if known is not None and known != file_hash(path):
        raise ModelFileError(
            f"{path}: refused, it is not the file that {MANIFEST} beside it describes: damaged or "
            "replaced; export it anew, or pass trust=True if you trust whoever made it."
        )


@cache
def missing_runtime(runtime: Runtime) -> str | None:
    """Why an extra runtime cannot be used here, in a few words; None if it can."""
    if runtime == "openvino":
        found = importlib.util.find_spec("openvino") is not None
        return None if found else "not installed (pip install openvino)"
    # Where a CUDA toolkit is installed and no GPU, it says so at length.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2))
    except Exception as error:  # no compiler, no headers, no support for this Python: many kinds
        return f"torch.compile does not work here ({type(error).__name__})"
    return None


def open_model(
    path: str | Path,
    device=None,
    threads: int | None = None,
    precision: str = "fp32",
    trust: bool = False,
    runtime: Runtime | None = None,
) -> tuple[LogitsFunction, dict]:
    """Open a model file of any format as a function from images to logits.

    Args:
        device: of the PyTorch formats; None picks the best. ONNX files run on the CPU.
        threads: to compute with on the CPU; None: all cores.
        precision: ``fp32`` or ``bf16``, for ``.pth`` files of weights only and for OpenVINO.
        trust: open a file that ``manifest.json`` does not vouch for. A TorchScript or ``.pt2`` file
            can run any code.
        runtime: None: the file's own (PyTorch, ONNX Runtime). ``openvino`` runs ONNX files;
            ``compile`` runs ``.pth`` files of weights through ``torch.compile``.

    Returns:
        The function, float32 arrays ``(N, 1, H, W)`` in and out, and what the file says of itself:
        ``format``, ``size``, ``threshold``.

    Raises:
        ModelFileError: no such file, unreadable, not written by unetlib, not to be trusted, or not
            for that runtime.
        ValueError: a device that is not there, or a number of threads that is none.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(
            f"{path}: no such file; export a model first (python -m unetlib export)."
        )
    if threads is not None and not (isinstance(threads, (int, np.integer)) and threads > 0):
        raise ValueError(
            f"threads={threads!r}: give a whole number above 0, or None for all cores."
        )
    suffix = path.suffix.lower()
    is_onnx, is_torchscript = suffix == ".onnx", _is_torchscript(path)
    is_program = suffix == ".pt2" or is_torchscript
    fits = {None: True, "openvino": is_onnx, "compile": not (is_onnx or is_program)}
    if not fits.get(runtime, False):
        kinds = ", ".join(f"{name!r} runs {kind}" for name, kind in RUNS.items())
        raise ModelFileError(f"{path}: runtime={runtime!r} does not run this file; {kinds}.")
    if precision != "fp32" and not (
        precision == "bf16" and (runtime == "openvino" or not (is_onnx or is_program))
    ):
        raise ModelFileError(
            f"{path}: precision={precision!r} does not fit this file; fp32 always does, bf16 fits "
            ".pth files of weights, and ONNX files in OpenVINO."
        )
    if runtime is not None and missing_runtime(runtime):
        raise ModelFileError(f"{path}: {runtime}: {missing_runtime(runtime)}.")
    if not trust:
        _check_manifest(path, is_program)
    if is_onnx:
        return _open_onnx(path, threads, precision, runtime)
    device = pick_device() if device is None else _usable(device)
    if suffix == ".pt2":
        model, info = _open_exported(path, device)
    elif is_torchscript:
        model, info = _open_torchscript(path, device)
    else:
        model, info = load_model(path)
        info["format"] = "pytorch"
        model = model.to(device)
    memory_format = torch.contiguous_format
    if precision == "bf16":
        memory_format = torch.channels_last
        model = model.to(memory_format=memory_format)
    if runtime == "compile":
        model = torch.compile(model)

    @torch.inference_mode()
    def logits(batch: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(batch).to(device, memory_format=memory_format)
        with _torch_threads(threads), autocast(device, precision):
            return model(images).float().cpu().numpy()

    return logits, info


def _usable(device) -> torch.device:
    try:
        torch.zeros(1, device=device).cpu()
        return torch.device(device)
    except (RuntimeError, AssertionError, TypeError):  # one for each way not to be there
        raise ValueError(
            f"device={device!r} cannot be used here; give 'cpu', or None for the best there is."
        ) from None


@contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads; PyTorch knows one number for the whole process."""
    before = torch.get_num_threads()
    if count in (None, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_torchscript(path: Path) -> bool:
    """Both kinds of ``.pth`` are zip archives; only a TorchScript program has constants."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # no archive, or a damaged one: zipfile raises errors of several kinds
        return False


def _open_torchscript(path: Path, device: torch.device):
    description = {METADATA_KEY: ""}
    try:
        with legacy_allowed():
            model = torch.jit.load(path, map_location=device, _extra_files=description)
        return model, dict(json.loads(description[METADATA_KEY]), format="torchscript")
    except (RuntimeError, ValueError):
        raise _damaged(path) from None


def _open_exported(path: Path, device: torch.device):
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


def _open_onnx(
    path: Path, threads: int | None, precision: str, runtime: Runtime | None
) -> tuple[LogitsFunction, dict]:
    try:
        content = onnx.load(path, load_external_data=False)
        # Such a path could name any file of this computer; ours keep everything inside.
        if any(uses_external_data(tensor) for tensor in _tensors(content)):
            raise ModelFileError(
                f"{path}: refused, it takes weights from other files; export it anew as one file."
            )
        start = _start_openvino if runtime == "openvino" else _start_onnxruntime
        logits = start(path, threads, precision)
        described = {entry.key: entry.value for entry in content.metadata_props}
        info = json.loads(described[METADATA_KEY])
    except ModelFileError:
        raise
    except KeyError:
        raise ModelFileError(f"{path}: ONNX, but not written by unetlib; export it anew.") from None
    except Exception as error:  # the runtimes' errors share no public base class
        reason = type(error).__name__
        raise ModelFileError(f"{path}: unreadable ONNX file ({reason}); export it anew.") from None
    quantised = any(node.op_type == "QuantizeLinear" for node in content.graph.node)
    info["format"] = "int8" if quantised else "onnx"
    return logits, info


def _start_onnxruntime(path: Path, threads: int | None, precision: str) -> LogitsFunction:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    # Idle threads that spin would take the cores from whatever runs next in this process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["logits"], {"input": batch})[0]


def _start_openvino(path: Path, threads: int | None, precision: str) -> LogitsFunction:
    import openvino  # optional, and not cheap to import

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda batch: compiled(batch)["logits"].copy()  # the next call writes over its output
