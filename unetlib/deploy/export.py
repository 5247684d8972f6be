"""A trained model -> files in every format (``manifest.FILES``), proven to agree.

Every file carries image size, normalisation and threshold, so that it is enough to predict with.
"""

import json
import os
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import onnx
import onnxscript  # noqa: F401  torch's exporters import these two late, and break if stopped then
import pandas as pd
import torch
import torch.export._trace
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn
from torch.export import Dim
from tqdm.auto import tqdm

from unetlib.dataset import CarvanaDataset, to_tensor
from unetlib.deploy.compare import TOLERANCE, in_a_fresh_process, parity
from unetlib.deploy.formats import METADATA_KEY, describe_onnx, hushed
from unetlib.deploy.manifest import FILES, MANIFEST, folder_lock, read_manifest, write_manifest
from unetlib.metrics import dataset_logits
from unetlib.model import evaluating
from unetlib.pictures import sides
from unetlib.store.model_file import as_built, description, load_model, save_atomically, save_model
from unetlib.support.errors import ModelFileError
from unetlib.support.files import whole_file
from unetlib.support.folders import models_dir

OPSET = 20
CALIBRATION_IMAGES = 32


def export_all(run, output_dir=None, *, train, val, network=None) -> pd.DataFrame:
    """Write a run's best model in every format and prove that they agree, in a fresh process
    unless the network is an own one.

    The result is the table of ``parity``. An int8 file that loses more than 0.01 Dice, as those of
    undertrained networks do, is kept, but marked.

    Args:
        run: a trained run (``store.runs.Run``), or the path of a model file.
        output_dir: where to write; None: ``support.folders.models_dir()``.
        train: sample table; up to 32 of its images calibrate the quantisation.
        val: sample table on which the formats are compared.
        network: of an own network, see ``load_model``; None takes the one of a run's recipe.

    Raises:
        ModelFileError: no finished epoch; a float format differs by over 1e-4 in probability (own
            networks with logits beyond 100: a millionth of the largest, which is float32's
            rounding); files cannot be written, or PyTorch cannot record the network; or the
            folder's manifest.json is another program's. Files of an earlier export stay.
    """
    network = network or getattr(run, "network", None)
    output_dir = Path(output_dir) if output_dir is not None else models_dir()
    output_dir.mkdir(parents=True, exist_ok=True)
    read_manifest(output_dir)  # or an error, before any work

    checkpoint = getattr(run, "checkpoint", run)
    with TemporaryDirectory(dir=output_dir, prefix=".export-") as place, folder_lock(output_dir):
        folder = Path(place)
        try:
            table, tolerance = _export_into(folder, checkpoint, train, val, network)
        except OSError as error:
            problem = f"nothing exported, what was there stays ({error.strerror or error})"
            raise ModelFileError(f"{output_dir}: {problem}; choose another folder.") from None
        wrong = table[(table["format"] != "int8") & ~(table["max_abs_diff"] <= tolerance)]
        if len(wrong):
            problem = f"over {tolerance:g} in probability from PyTorch, so nothing is exported"
            raise ModelFileError(f"{', '.join(wrong['file'])}: {problem}; report your versions.")
        # Only now do files of an earlier export go. The manifest that vouches for them comes last.
        for file in [*table["file"], MANIFEST]:
            os.replace(folder / file, output_dir / file)
    for row in table[table["note"] != ""].itertuples():
        lost = f"loses {-row.dice_difference:.3f} Dice; train longer, use the fp32 files until then"
        warnings.warn(f"{output_dir / row.file}: {lost}.", stacklevel=2)
    return table


def _export_into(folder: Path, checkpoint, train, val, network) -> tuple[pd.DataFrame, float]:
    """The table of ``parity``, and by how much the float formats may differ in probability."""
    model, content = load_model(checkpoint, network)
    size, threshold, colour = (content[name] for name in ("size", "threshold", "colour"))
    every = max(1, len(train) // CALIBRATION_IMAGES)
    some = CarvanaDataset(train.iloc[::every][:CALIBRATION_IMAGES], size, colour=colour)
    path = {name: folder / file for name, file in FILES.items()}
    steps = dict(pytorch=partial(save_model, **content["info"]), torchscript=export_torchscript)
    steps |= dict(exported=export_program, onnx=export_onnx)
    try:
        name = "pytorch"
        with evaluating(model):
            shape, logits = (2, 1, *sides(size)), model(*_inputs(model, size, colour)["args"])
        if logits.shape != shape or not logits.is_floating_point():
            raise ValueError(f"it makes {tuple(logits.shape)} {logits.dtype}, not {shape} floats")
        for name, step in tqdm(steps.items(), "exporting"):
            step(model=model, path=path[name], size=size, threshold=threshold, colour=colour)
        name = "int8"
        quantize_int8(path["onnx"], path[name], to_tensor(some.images).numpy())
    except Exception as error:  # own code and the recorders may raise anything
        if isinstance(error, OSError):
            raise
        while error.__cause__ is not None:
            error = error.__cause__
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        problem = f"{type(model).__name__} cannot be exported as {name} ({why})"
        raise ModelFileError(f"{checkpoint}: {problem}; change its forward.") from error
    write_manifest(folder)
    if content["network"]:  # another process lacks its class
        logits = dataset_logits(model, CarvanaDataset(val, size, colour=colour))
        return parity(folder, val, network), max(TOLERANCE, 1e-6 * logits.abs().max().item())
    val.to_pickle(table := folder / "table.pickle")
    in_a_fresh_process(PARITY, str(folder), str(table), what=folder)
    return pd.read_pickle(table), TOLERANCE  # ours, so it is safe to open


PARITY = f"""
import sys, pandas
from {parity.__module__} import parity
parity(sys.argv[1], pandas.read_pickle(sys.argv[2])).to_pickle(sys.argv[2])
"""


def _inputs(model: nn.Module, size, colour: bool) -> dict:
    """An example, and the sizes that programs leave open: batch, and a U-Net's height and width."""
    example = torch.zeros(2, 3 if colour else 1, *sides(size), dtype=torch.float32, device="cpu")
    free = {0: Dim("batch")}
    if as_built(model):
        free |= {2: model.stride * Dim("rows", min=1), 3: model.stride * Dim("columns", min=1)}
    return dict(args=(example,), dynamic_shapes=(free,))


def export_torchscript(model: nn.Module, path, size, threshold=0.5, colour=False) -> None:
    """Trace a model into a TorchScript file (program and weights), which many still load."""
    about = {METADATA_KEY: json.dumps(description(size, threshold, colour))}
    with evaluating(model), hushed():
        traced = torch.jit.trace(model, _inputs(model, size, colour)["args"])
        save_atomically(traced, path, partial(torch.jit.save, _extra_files=about))


def export_program(model: nn.Module, path: str | Path, size, threshold=0.5, colour=False) -> None:
    """Write a ``.pt2`` file with ``torch.export``: the graph and its weights, for any batch size,
    of a ``UNet`` also any height and width (multiples of its stride).
    """
    about = {METADATA_KEY: json.dumps(description(size, threshold, colour))}
    with evaluating(model):
        program = torch.export.export(model, **_inputs(model, size, colour))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names this computer's folders
    save_atomically(program, path, partial(torch.export.save, extra_files=about))


def export_onnx(model: nn.Module, path: str | Path, size, threshold=0.5, colour=False) -> None:
    """Write an ONNX file of opset 20: one file, input ``input`` float32 ``(batch, C, H, W)`` in
    [0, 1], output ``logits`` ``(batch, 1, H, W)``; the same sizes as ``export_program``.
    """
    settings = dict(opset_version=OPSET, external_data=False, verbose=False)
    settings |= dict(input_names=["input"], output_names=["logits"])
    with whole_file(path) as part, evaluating(model), hushed():
        torch.onnx.export(model, f=part, **_inputs(model, size, colour), **settings)
        describe_onnx(part, json.dumps(description(size, threshold, colour)))


def quantize_int8(onnx_path: str | Path, path: str | Path, calibration: np.ndarray) -> None:
    """Quantise an ONNX file statically: 8-bit weights and activations (QDQ format).

    Weights become int8 with a scale per output channel; activations uint8 with one per tensor, from
    their range on the calibration images: the fast pair on CPUs. Weights use 7 of the 8 bits:
    without VNNI instructions, pairs of products are summed in 16 bits and would overflow. ONNX
    Runtime has no 8-bit transposed convolution: those two stay float. ``calibration``: 16 to 64
    training images as the dataset gives them, float32 ``(N, C, H, W)``.
    """
    batches = iter([{"input": image[None]} for image in calibration])
    with TemporaryDirectory() as folder, whole_file(path) as part:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(onnx_path, prepared, skip_symbolic_shape=True)
        settings = dict(quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True)
        settings |= dict(activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
        one_by_one = SimpleNamespace(get_next=partial(next, batches, None))
        quantize_static(prepared, part, one_by_one, **settings)
        describe_onnx(part, onnx.load(onnx_path).metadata_props[0].value)
