"""Model files -> functions from images to logits, whatever the format."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from unetlib.deploy.manifest import Runtime
from unetlib.device import autocast
from unetlib.store.model_file import load_model

METADATA_KEY = "unetlib"
Logits = Callable[[np.ndarray], np.ndarray]


@contextmanager
def hushed() -> Iterator[None]:
    """Without what PyTorch says about its own future: TorchScript is old, for example."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # so some versions say it
        yield


def describe_onnx(path: Path, description: str) -> None:
    """Store the description in an ONNX file, instead of the exporter's, which names folders."""
    graph = (model := onnx.load(path)).graph
    parts = (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for part in (graph, *parts):
        del part.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA_KEY: description})
    onnx.checker.check_model(model)
    onnx.save(model, path)


@cache
def missing_runtime(runtime: Runtime) -> str | None:
    """Why an extra runtime cannot be used here, in a few words; None if it can."""
    if runtime == "openvino":
        return None if find_spec("openvino") else "not installed (pip install openvino)"
    # Where a CUDA toolkit is installed without a GPU, this logs a long warning.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2))
    except Exception as error:  # no compiler, no headers, unsupported Python: many error types
        return f"torch.compile does not work here ({type(error).__name__})"
    return None


def open_torch(
    path: Path, kind: str, device, threads, precision, runtime, network
) -> tuple[Logits, dict]:
    """Open a PyTorch file of the kind that ``manifest.check_file`` gives: a function from images to
    logits, float32 arrays ``(N, C, H, W)`` in and ``(N, 1, H, W)`` out, and what the file says of
    itself: ``format``, ``size``, ``threshold``.
    """
    about = {METADATA_KEY: "{}"}
    with hushed():
        if kind == "pytorch":
            model, info = load_model(path, network)
        elif kind == "exported":
            model = torch.export.load(path, extra_files=about).module()
        else:
            model = torch.jit.load(path, map_location=device, _extra_files=about)
    fast_order = precision != "fp32" or device.type == "cuda"
    memory_format = torch.channels_last if fast_order else torch.contiguous_format
    model = model.to(device, memory_format=memory_format)
    model = torch.compile(model) if runtime else model

    @torch.inference_mode()
    def logits(batch: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(batch).to(device, memory_format=memory_format)
        before = torch.get_num_threads()  # one setting for the whole process
        torch.set_num_threads(threads or before)
        try:
            with autocast(device, precision):
                return model(images).float().cpu().numpy()
        except torch.OutOfMemoryError:  # of a GPU; what it holds is free only after this block
            if len(batch) == 1:
                raise
        finally:
            torch.set_num_threads(before)
        return np.concatenate([logits(half) for half in np.array_split(batch, 2)])

    info = info if kind == "pytorch" else json.loads(about[METADATA_KEY])
    return logits, info | dict(format=kind)


def open_onnx(path: Path, threads, precision, runtime) -> tuple[Logits, dict]:
    """Open an ONNX file; see ``open_torch``."""
    content = onnx.load(path, load_external_data=False)
    if b"\n\x08location" in content.SerializeToString():  # the key, wherever a tensor has it
        raise ValueError("it takes weights from other files, which could be any")
    described = {entry.key: entry.value for entry in content.metadata_props}
    quantised = any(node.op_type == "QuantizeLinear" for node in content.graph.node)
    info = json.loads(described[METADATA_KEY]) | dict(format="int8" if quantised else "onnx")
    if runtime == "openvino":
        import openvino  # optional, and not cheap to import

        number = "bf16" if precision == "bf16" else "f32"
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": number}
        settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        # Copied, because the next call writes over its output.
        return (lambda batch: compiled(batch)["logits"].copy()), info
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    # Idle threads that spin would take the cores from whatever runs next in this process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = threads or 0  # 0: all cores
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return (lambda batch: session.run(["logits"], {"input": batch})[0]), info
