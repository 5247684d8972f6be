"""Run -> files in every format, parity proven.

    pytorch       unet_model.pth            weights and architecture; loads without running code
    torchscript   unet_model_torchjit.pth   a traced program (legacy: deprecated in PyTorch)
    exported      unet_model_exported.pt2   the program of torch.export, TorchScript's successor
    onnx          unet_model_onnx.onnx      for any runtime; one file
    int8          unet_model_int8.onnx      the same, quantised: a quarter of the size
    manifest.json                           SHA-256 of each: which programs may be opened

Every file carries image size, normalisation and threshold, so that it is enough to predict with.
"""

import copy
import hashlib
import io
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxscript  # noqa: F401  torch's exporters import these two late, and break if stopped then
import pandas as pd
import torch
import torch.export._trace
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn
from torch.export import Dim
from tqdm.auto import tqdm

from unetlib import config
from unetlib.config import whole_file
from unetlib.dataset import CarvanaDataset, to_tensor
from unetlib.formats import (
    FILES,
    MANIFEST,
    METADATA_KEY,
    check_manifest,
    describe,
    legacy_allowed,
    open_model,
    write_manifest,
)
from unetlib.metrics import dice
from unetlib.model import ModelFileError, UNet, load_model, save_model
from unetlib.runs import Run

OPSET = 20
TOLERANCE = 1e-4  # largest difference in probability allowed to the float formats
INT8_TOLERANCE = 0.01  # Dice that int8 may lose
CALIBRATION_IMAGES = 32


def export_all(
    run: Run | str | Path,
    output_dir: str | Path | None = None,
    *,
    train: pd.DataFrame,
    val: pd.DataFrame,
) -> pd.DataFrame:
    """Write a run's best model in every format and prove, in a fresh process, that they agree.

    Args:
        run: a trained run, or the path of a model file.
        output_dir: where to write; None: ``config.models_dir()``.
        train: sample table; up to 32 of its images calibrate the quantisation.
        val: sample table on which the formats are compared.

    Returns:
        The table of ``parity``.

    Raises:
        ModelFileError: the run has no finished epoch; a float format differs by over 1e-4 in
            probability, or int8 loses over 0.01 Dice (its file is removed); or the files cannot be
            written (older ones stay); or the folder's manifest.json is another program's.
    """
    output_dir = Path(output_dir) if output_dir is not None else config.models_dir()
    check_manifest(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    place = hashlib.sha256(str(output_dir.resolve()).encode()).hexdigest()[:16]
    lock = config.locked(
        Path(tempfile.gettempdir()) / f"unetlib-export-{place}.lock",
        on_wait=lambda: print(f"{output_dir}: another program exports there; waiting for it"),
    )
    with lock, tempfile.TemporaryDirectory(dir=output_dir, prefix=".export-") as workshop:
        try:
            table = _export_into(Path(workshop), run, train, val)
        except OSError as error:
            raise ModelFileError(
                f"{output_dir}: nothing exported, what was there stays: "
                f"{error.strerror or error}; free some space or choose another folder."
            ) from None
        wrong = table[
            ((table["format"] != "int8") & ~(table["max_abs_diff"] <= TOLERANCE))
            | ~(table["dice_difference"] >= -INT8_TOLERANCE)
        ]
        for file in wrong["file"]:
            (Path(workshop) / file).unlink()
            (output_dir / file).unlink(missing_ok=True)
        write_manifest(Path(workshop))
        # Only now do files of an earlier export go. The manifest that vouches for them comes last.
        for file in [*table["file"].drop(wrong.index), MANIFEST]:
            os.replace(Path(workshop) / file, output_dir / file)
    if len(wrong):
        raise ModelFileError(
            f"{', '.join(wrong['file'])}: differs too much from the PyTorch model (over "
            f"{TOLERANCE} in probability, for int8 {INT8_TOLERANCE} in Dice) and was removed; "
            "report it with your library versions."
        )
    return table


def _export_into(
    folder: Path, run: Run | str | Path, train: pd.DataFrame, val: pd.DataFrame
) -> pd.DataFrame:
    paths = {name: folder / file for name, file in FILES.items()}
    model, content = load_model(run.checkpoint if isinstance(run, Run) else run)
    size, threshold = content["size"], content["threshold"]
    every = max(1, len(train) // CALIBRATION_IMAGES)
    calibration = CarvanaDataset(train.iloc[::every][:CALIBRATION_IMAGES], size, cache=False)
    with tqdm(total=len(paths), desc="exporting") as bar:
        save_model(paths["pytorch"], model, size, threshold, **content["info"])
        bar.update()
        export_torchscript(model, paths["torchscript"], size, threshold)
        bar.update()
        export_program(model, paths["exported"], size, threshold)
        bar.update()
        export_onnx(model, paths["onnx"], size, threshold)
        bar.update()
        quantize_int8(paths["onnx"], paths["int8"], to_tensor(calibration.images).numpy())
        bar.update()
    write_manifest(folder)
    return _parity_in_a_fresh_process(folder, val)


COMPARE = """
import sys
import pandas as pd
from unetlib.export import parity
parity(sys.argv[1], pd.read_json(sys.stdin, dtype=dict(id=str, car=str))).to_json(sys.argv[2])
"""


def _parity_in_a_fresh_process(output_dir: Path, samples: pd.DataFrame) -> pd.DataFrame:
    """``parity`` by a program that has nothing but the files."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "parity.json"
        finished = subprocess.run(
            [sys.executable, "-c", COMPARE, str(output_dir), str(answer)],
            input=samples.reset_index(drop=True).astype(dict(image=str, mask=str)).to_json(),
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        )
        if finished.returncode:
            reason = finished.stderr.strip().rpartition("\n")[2] or f"exit {finished.returncode}"
            raise ModelFileError(f"{output_dir}: the files cannot be checked: {reason}")
        return pd.read_json(io.StringIO(answer.read_text()))


def export_torchscript(model: UNet, path: str | Path, size: int, threshold: float = 0.5) -> None:
    """Trace a model into a TorchScript file: the recorded program and its weights.

    PyTorch deprecated TorchScript in favour of ``torch.export``; many deployments still load it.
    """
    buffer = io.BytesIO()  # where the disk is full, torch's own writer ends the whole process
    with legacy_allowed(), torch.no_grad():
        traced = torch.jit.trace(model.eval(), torch.zeros(2, 1, size, size))
        torch.jit.save(traced, buffer, _extra_files={METADATA_KEY: describe(size, threshold)})
    with whole_file(path) as part:
        part.write_bytes(buffer.getbuffer())


def _any_size(model: UNet) -> dict:
    """The dimensions that exported programs leave open: batch, height and width."""
    height, width = (model.stride * Dim(name, min=1) for name in ("rows", "columns"))
    return {"x": {0: Dim("batch"), 2: height, 3: width}}


def export_program(model: UNet, path: str | Path, size: int, threshold: float = 0.5) -> None:
    """Write a ``.pt2`` file with ``torch.export``: the graph and its weights, TorchScript's heir.

    Any batch size, height and width (multiples of the model's stride).
    """
    example = (torch.zeros(2, 1, size, size),)
    program = torch.export.export(model.eval(), example, dynamic_shapes=_any_size(model))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names this computer's folders
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA_KEY: describe(size, threshold)})
    with whole_file(path) as part:
        part.write_bytes(buffer.getbuffer())


def export_onnx(model: UNet, path: str | Path, size: int, threshold: float = 0.5) -> None:
    """Write an ONNX file: one file, input ``input`` float32 ``(batch, 1, H, W)`` in [0, 1], output
    ``logits`` of the same shape, any batch size, H and W in multiples of the stride, opset 20.
    """
    with whole_file(path) as part:
        torch.onnx.export(
            model.eval(),
            (torch.zeros(2, 1, size, size),),
            part,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=_any_size(model),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
        _describe_onnx(part, describe(size, threshold))


def _describe_onnx(path: Path, description: str) -> None:
    """Leave our description in the file and take out the exporter's: it names local folders."""
    model = onnx.load(path)
    graph = model.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    del graph.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA_KEY: description})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def subpixel(model: UNet) -> UNet:
    """The same network with its transposed convolutions rewritten as convolutions.

    A transposed convolution with stride 2 computes four interleaved convolutions, one for each
    corner of a 2x2 block of its output. Here it becomes one convolution with four times the
    channels, which are then laid out as those blocks (Shi et al., 2016,
    https://arxiv.org/abs/1609.05158): the same up to rounding, and able to run in 8 bits, which
    ONNX Runtime's transposed convolution is not. It multiplies more: for a 3x3 kernel, 7 of its 16
    weights are zero.

    Returns:
        A copy in evaluation mode; for export, not for training.
    """
    rewritten = copy.deepcopy(model).eval()
    for decoder in rewritten.decoders:
        decoder.up = _subpixel_convolution(decoder.up)
    return rewritten


def _subpixel_convolution(up: nn.ConvTranspose2d) -> nn.Sequential:
    # Output row 2i + a takes input row i + d through row k of the kernel.
    taps = {2: [(0, 0, 0), (1, 0, 1)], 3: [(0, 0, 1), (1, 0, 2), (1, 1, 0)]}[up.kernel_size[0]]
    reach = up.kernel_size[0] - 1
    weight = torch.zeros(up.out_channels, 2, 2, up.in_channels, reach, reach)
    for (a, d, k), (b, e, m) in product(taps, taps):
        weight[:, a, b, :, d, e] = up.weight.detach()[:, :, k, m].T
    convolution = nn.Conv2d(up.in_channels, 4 * up.out_channels, reach)
    with torch.no_grad():
        convolution.weight.copy_(weight.flatten(0, 2))
        convolution.bias.copy_(up.bias.repeat_interleave(4))
    pad = nn.ZeroPad2d((0, reach - 1, 0, reach - 1))
    return nn.Sequential(pad, convolution, nn.PixelShuffle(2))


class _Calibration(CalibrationDataReader):
    """Hands images to the quantiser one by one."""

    def __init__(self, images: np.ndarray):
        self.batches = iter([{"input": image[None]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def quantize_int8(onnx_path: str | Path, path: str | Path, calibration: np.ndarray) -> None:
    """Quantise an ONNX file statically: 8-bit weights and activations (QDQ format).

    Weights become int8 with a scale per output channel; activations uint8 with one scale per
    tensor, from the range each takes on the calibration images. That pair of types is the fast one
    on CPUs. Weights use 7 of the 8 bits: without VNNI instructions, pairs of products are summed in
    16 bits and would overflow. ONNX Runtime has no 8-bit transposed convolution: those two stay
    float.

    Args:
        calibration: training images through the dataset's own transform, float32 ``(N, 1, H, W)``
            in [0, 1]; 16 to 64 are enough.
    """
    description = onnx.load(onnx_path).metadata_props[0].value
    with tempfile.TemporaryDirectory() as folder, whole_file(path) as part:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(onnx_path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            part,
            _Calibration(calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        _describe_onnx(part, description)


def parity(models_dir: str | Path, samples: pd.DataFrame) -> pd.DataFrame:
    """Compare every exported format with the PyTorch file on real images, freshly loaded.

    Args:
        models_dir: where ``export_all`` wrote.
        samples: sample table with masks.

    Returns:
        A row per format: ``format``, ``file``, ``bytes``, ``max_abs_diff`` (of probabilities),
        ``pixels_changed`` (share of pixels on the other side of the threshold), ``dice`` (mean
        over images, hard masks), ``dice_difference`` (to PyTorch).
    """
    reference, rows = None, []
    for name, file in tqdm(FILES.items(), desc="comparing formats"):
        logits, info = open_model(Path(models_dir) / file, device="cpu")
        dataset = CarvanaDataset(samples, info["size"])
        batches = np.array_split(to_tensor(dataset.images).numpy(), -(-len(dataset) // 16))
        raw = torch.from_numpy(np.concatenate([logits(batch) for batch in batches]))
        probability = torch.sigmoid(raw)[:, 0].numpy()
        car = probability > info["threshold"]
        score = dice(car, dataset.coverage >= 128).mean().item()
        if reference is None:
            reference = probability, car, score
        rows.append(
            dict(
                format=name,
                file=file,
                bytes=(Path(models_dir) / file).stat().st_size,
                max_abs_diff=float(np.abs(probability - reference[0]).max()),
                pixels_changed=float((car != reference[1]).mean()),
                dice=score,
                dice_difference=score - reference[2],
            )
        )
    return pd.DataFrame(rows)
