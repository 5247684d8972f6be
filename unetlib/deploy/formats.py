"""Model files -> functions from images to logits, whatever the format; ``manifest`` says which of
them are safe to open.
"""

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.external_data_helper import uses_external_data

from unetlib.deploy.manifest import check_file
from unetlib.device import autocast, pick_device
from unetlib.store.model_file import load_model
from unetlib.support.errors import ModelFileError

METADATA_KEY = "unetlib"
Runtime = Literal["openvino", "compile"]

LogitsFunction = Callable[[np.ndarray], np.ndarray]


def describe(size: int | tuple[int, int], threshold: float, colour: bool) -> str:
    """What a file says of itself, as JSON: enough to predict with it."""
    normalisation = "colour / 255" if colour else "grey / 255"
    about = dict(size=size, threshold=threshold, colour=colour, normalisation=normalisation)
    return json.dumps(about)


def describe_onnx(path: Path, description: str) -> None:
    """Store the description in an ONNX file, instead of the exporter's, which names folders."""
    model = onnx.load(path)
    graph = model.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    del graph.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA_KEY: description})
    onnx.checker.check_model(model)
    onnx.save(model, path)


@contextmanager
def legacy_allowed() -> Iterator[None]:
    """Silence the one warning that TorchScript's functions give: that they are deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit")
        yield


@cache
def missing_runtime(runtime: Runtime) -> str | None:
    """Why an extra runtime cannot be used here, in a few words; None if it can."""
    if runtime == "openvino":
        found = importlib.util.find_spec("openvino") is not None
        return None if found else "not installed (pip install openvino)"
    # Where a CUDA toolkit is installed without a GPU, this logs a long warning.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2))
    except Exception as error:  # no compiler, no headers, unsupported Python: many error types
        return f"torch.compile does not work here ({type(error).__name__})"
    return None


def open_model(
    path, device=None, threads=None, precision="fp32", trust=False, runtime=None, network=None
) -> tuple[LogitsFunction, dict]:
    """Open a model file of any format; arguments and errors as for ``predict.load_predictor``.

    Returns:
        A function from images to logits, float32 arrays ``(N, C, H, W)`` in and
        ``(N, 1, H, W)`` out, and what the file says of itself: ``format``, ``size``, ``threshold``.
    """
    path = Path(path)
    kind = check_file(path, trust, runtime)
    if threads is not None and not (isinstance(threads, (int, np.integer)) and threads > 0):
        raise ValueError(f"threads={threads!r}: give an integer above 0, or None for all cores.")
    _check_runtime(path, kind, runtime, precision)
    if kind == "onnx":
        return _open_onnx(path, threads, precision, runtime)
    device = pick_device() if device is None else device
    try:
        torch.zeros(1, device=device).cpu()
        device = torch.device(device)
    except (RuntimeError, AssertionError, TypeError):  # PyTorch has one for each kind of absence
        raise ValueError(f"device={device!r} is not here; give 'cpu' or None, the best.") from None
    weights = kind == "pytorch"
    model, info = load_model(path, network) if weights else _open_program(path, kind, device)
    info["format"] = kind
    memory_format = torch.channels_last if precision == "bf16" else torch.contiguous_format
    model = model.to(device, memory_format=memory_format)
    if runtime == "compile":
        model = torch.compile(model)

    @torch.inference_mode()
    def logits(batch: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(batch).to(device, memory_format=memory_format)
        with _torch_threads(threads), autocast(device, precision):
            return model(images).float().cpu().numpy()

    return logits, info


def _check_runtime(path: Path, kind: str, runtime: Runtime | None, precision: str) -> None:
    """Refuse a precision that does not fit the file, or a runtime that is missing."""
    takes_bf16 = runtime == "openvino" or kind == "pytorch"
    if precision != "fp32" and not (precision == "bf16" and takes_bf16):
        fit = "fp32 fits all, bf16 weights (.pth) and ONNX files in OpenVINO"
        raise ModelFileError(f"{path}: precision={precision!r} does not fit this file; {fit}.")
    if runtime is not None and missing_runtime(runtime):
        raise ModelFileError(f"{path}: {runtime}: {missing_runtime(runtime)}.")


@contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    """Compute with this many threads; PyTorch has one setting for the whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _open_program(path: Path, kind: str, device: torch.device):
    description = {METADATA_KEY: ""}
    try:
        if kind == "exported":
            model = torch.export.load(path, extra_files=description).module()
        else:
            with legacy_allowed():
                model = torch.jit.load(path, map_location=device, _extra_files=description)
        return model, dict(json.loads(description[METADATA_KEY]))
    except Exception:  # torch.export raises errors of many kinds on a damaged file
        raise _unusable(path, "damaged, or not written by unetlib") from None


def _unusable(path: Path, problem: str) -> ModelFileError:
    return ModelFileError(f"{path}: {problem}; export it again.")


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
            raise _unusable(path, "refused, it takes weights from other files")
        start = _start_openvino if runtime == "openvino" else _start_onnxruntime
        logits = start(path, threads, precision)
        described = {entry.key: entry.value for entry in content.metadata_props}
        info = json.loads(described[METADATA_KEY])
    except ModelFileError:
        raise
    except KeyError:
        raise _unusable(path, "ONNX, but not written by unetlib") from None
    except Exception as error:  # the runtimes' errors share no public base class
        raise _unusable(path, f"unreadable ONNX file ({type(error).__name__})") from None
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

    number = "bf16" if precision == "bf16" else "f32"
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": number}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda batch: compiled(batch)["logits"].copy()  # the next call writes over its output
