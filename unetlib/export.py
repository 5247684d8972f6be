"""Run -> files in every format, parity proven.

    pytorch       unet_model.pth            weights and architecture; loads without running code
    torchscript   unet_model_torchjit.pth   a traced program (legacy: deprecated in PyTorch)
    onnx          unet_model_onnx.onnx      for any runtime; one file, dynamic batch
    int8          unet_model_int8.onnx      the same, quantised: a quarter of the size

Every file carries image size, normalisation and threshold, so that it is enough to predict with.
"""

import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from tqdm.auto import tqdm

from unetlib import config
from unetlib.config import whole_file
from unetlib.dataset import CarvanaDataset, to_tensor
from unetlib.metrics import dice
from unetlib.model import ModelFileError, UNet, autocast, load_model, pick_device, save_model
from unetlib.runs import Run

FILES = {
    "pytorch": "unet_model.pth",
    "torchscript": "unet_model_torchjit.pth",
    "onnx": "unet_model_onnx.onnx",
    "int8": "unet_model_int8.onnx",
}
OPSET = 20
TOLERANCE = 1e-4  # largest difference in probability allowed to the float formats
CALIBRATION_IMAGES = 32
METADATA_KEY = "unetlib"

LogitsFunction = Callable[[np.ndarray], np.ndarray]


def export_all(
    run: Run | str | Path,
    output_dir: str | Path | None = None,
    *,
    train: pd.DataFrame,
    val: pd.DataFrame,
) -> pd.DataFrame:
    """Write a run's best model in every format and prove that they agree.

    Args:
        run: a trained run, or the path of a model file.
        output_dir: where to write; None: ``config.models_dir()``.
        train: sample table; up to 32 of its images calibrate the quantisation.
        val: sample table on which the formats are compared.

    Returns:
        The table of ``parity``.

    Raises:
        ModelFileError: a float format differs by over 1e-4 in probability; its file is removed.
    """
    output_dir = Path(output_dir) if output_dir is not None else config.models_dir()
    output_dir.mkdir(parents=True, exist_ok=True)
    paths = {name: output_dir / file for name, file in FILES.items()}
    model, content = load_model(run.checkpoint if isinstance(run, Run) else run)
    size, threshold = content["size"], content["threshold"]
    every = max(1, len(train) // CALIBRATION_IMAGES)
    calibration = CarvanaDataset(train.iloc[::every][:CALIBRATION_IMAGES], size, cache=False)
    with tqdm(total=len(paths), desc="exporting") as bar:
        save_model(paths["pytorch"], model, size, threshold, **content["info"])
        bar.update()
        export_torchscript(model, paths["torchscript"], size, threshold)
        bar.update()
        export_onnx(model, paths["onnx"], size, threshold)
        bar.update()
        quantize_int8(paths["onnx"], paths["int8"], to_tensor(calibration.images).numpy())
        bar.update()
    table = parity(output_dir, val)
    wrong = table[(table["format"] != "int8") & (table["max_abs_diff"] > TOLERANCE)]
    for name in wrong["format"]:
        paths[name].unlink()
    if len(wrong):
        raise ModelFileError(
            f"{', '.join(wrong['file'])}: differs from the PyTorch model by more than {TOLERANCE} "
            "in probability and was removed; report it with your library versions."
        )
    return table


def _described(size: int, threshold: float) -> str:
    return json.dumps(dict(size=size, threshold=threshold, normalisation="grey / 255"))


@contextmanager
def _legacy_allowed() -> Iterator[None]:
    """Silence the one warning that TorchScript's functions give: that they are deprecated."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", r"`torch\.jit", category)
        yield


def export_torchscript(model: UNet, path: str | Path, size: int, threshold: float = 0.5) -> None:
    """Trace a model into a TorchScript file: the recorded program and its weights.

    PyTorch deprecated TorchScript in favour of ``torch.export``; many deployments still load it.
    """
    with whole_file(path) as part, _legacy_allowed(), torch.no_grad():
        traced = torch.jit.trace(model.eval(), torch.zeros(2, 1, size, size))
        torch.jit.save(traced, part, _extra_files={METADATA_KEY: _described(size, threshold)})


def export_onnx(model: UNet, path: str | Path, size: int, threshold: float = 0.5) -> None:
    """Write an ONNX file: one file, input ``input`` float32 ``(batch, 1, size, size)`` in [0, 1],
    output ``logits`` of the same shape, any batch size, opset 20.
    """
    with whole_file(path) as part:
        torch.onnx.export(
            model.eval(),
            (torch.zeros(2, 1, size, size),),
            part,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes={"x": {0: "batch"}},
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
        _describe_onnx(part, _described(size, threshold))


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


def open_model(
    path: str | Path, device=None, threads: int | None = None, precision: str = "fp32"
) -> tuple[LogitsFunction, dict]:
    """Open a model file of any format as a function from images to logits.

    Args:
        device: of the PyTorch formats; None picks the best. ONNX files run on the CPU.
        threads: of ONNX Runtime; None: all cores. (PyTorch: ``torch.set_num_threads``.)
        precision: ``fp32`` or ``bf16``, for ``.pth`` files only.

    Returns:
        The function, float32 arrays ``(N, 1, size, size)`` in and out, and what the file says of
        itself: ``format``, ``size``, ``threshold``.

    Raises:
        ModelFileError: no such file, unreadable, or not written by unetlib.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(
            f"{path}: no such file; export a model first (python -m unetlib export)."
        )
    if path.suffix == ".onnx":
        return _open_onnx(path, threads)
    device = torch.device(device) if device is not None else pick_device()
    if _is_torchscript(path):
        model, info = _open_torchscript(path, device)
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


def _open_torchscript(path: Path, device: torch.device) -> tuple[torch.nn.Module, dict]:
    description = {METADATA_KEY: ""}
    try:
        with _legacy_allowed():
            model = torch.jit.load(path, map_location=device, _extra_files=description)
        return model, dict(json.loads(description[METADATA_KEY]), format="torchscript")
    except (RuntimeError, ValueError):
        raise ModelFileError(
            f"{path}: damaged, or not written by unetlib; export it anew."
        ) from None


def _open_onnx(path: Path, threads: int | None) -> tuple[LogitsFunction, dict]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    # Idle threads that spin would take the cores from whatever runs next in this process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        info = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    except KeyError:
        raise ModelFileError(f"{path}: ONNX, but not written by unetlib; export it anew.") from None
    except Exception as error:  # ONNX Runtime's errors share no public base class
        reason = type(error).__name__
        raise ModelFileError(f"{path}: unreadable ONNX file ({reason}); export it anew.") from None
    quantised = any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)
    info["format"] = "int8" if quantised else "onnx"
    return lambda batch: session.run(["logits"], {"input": batch})[0], info


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
