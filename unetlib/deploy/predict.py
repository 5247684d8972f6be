"""Images -> masks: one predictor over all formats."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from unetlib.dataset import to_tensor
from unetlib.deploy.formats import Logits, missing_runtime, open_onnx, open_torch
from unetlib.deploy.manifest import FILES, check_file
from unetlib.device import at_once, pick_device, pick_precision
from unetlib.pictures import image_size, load_image, sides
from unetlib.recipe import PRETRAINED
from unetlib.store.model_file import load_plain
from unetlib.support.errors import ModelFileError
from unetlib.support.folders import models_dir


class Predictor:
    """A model file ready to predict, whatever its format; ``load_predictor`` makes it.

    Attributes:
        name: for tables, for example ``pytorch fp32`` or ``openvino int8``.
        format: ``pytorch``, ``torchscript``, ``exported``, ``onnx`` or ``int8``.
        size: image side in pixels that the model was trained at, or (height, width).
        colour: whether it sees three channels instead of one.
        shape: of an image as it takes it: (channels, height, width).
        threshold: the probability above which a pixel counts as object.
        network: the name of the class that a ``.pth`` file of an own network needs, else None.
        path, precision, runtime, trust: what it was opened with.
        batch_size: how many images to give it at once.
        logits: the bare model: float32 arrays ``(N, *shape)`` in [0, 1] -> logits.
    """

    def __init__(self, logits: Logits, info: dict, path, precision, trust, runtime, device):
        self.logits = logits
        self.format, self.size, self.threshold = info["format"], info["size"], info["threshold"]
        self.size = tuple(self.size) if np.ndim(self.size) else self.size  # JSON has lists only
        self.colour, self.network = info.get("colour", False), info.get("network")
        self.shape = (3 if self.colour else 1, *sides(self.size))
        self.path, self.precision, self.trust, self.runtime = Path(path), precision, trust, runtime
        self.batch_size = 4 * at_once(device, self.size) if device.type == "cuda" else 16
        numbers = "int8" if self.format == "int8" else precision
        self.name = " ".join(dict.fromkeys([runtime or self.format, numbers]))  # int8 named once

    def predict_proba(
        self, image_or_images, size: str | int | tuple[int, int] = "original", *, flip: bool = False
    ) -> np.ndarray | list[np.ndarray]:
        """Probability of the object for every pixel; the model's small map enlarged bilinearly.

        float32 ``(H, W)`` in [0, 1]; of a list, a list of them.

        Args:
            image_or_images: what ``load_image`` takes and refuses; or a list or table column of
                that.
            size: of the result: ``original`` (the image's own), ``model`` (as the model gives it,
                nothing enlarged), or what ``pictures.sides`` takes and refuses.
            flip: predict the mirrored picture too and take the mean (test-time augmentation).
        """
        if not isinstance(size, str) or size not in ("original", "model"):
            size = sides(size)
        several, found = isinstance(image_or_images, (list, tuple, pd.Series)), []
        images = list(image_or_images) if several else [image_or_images]
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            pictures = [load_image(one, self.size, self.colour) for one in batch]
            maps = self.predict_maps(np.stack(pictures), flip)
            for image, probability in zip(batch, maps, strict=True):
                own = probability.shape if size == "model" else image_size(image)
                found.append(enlarge(probability, own if isinstance(size, str) else size))
        return found if several else found[0]

    def predict_mask(
        self, image_or_images, threshold: float | None = None, size="original", *, flip=False
    ) -> np.ndarray | list[np.ndarray]:
        """Masks, boolean ``(H, W)``: the enlarged probability above the threshold.

        Otherwise as ``predict_proba``; ``threshold`` is in [0, 1], None takes the file's own.
        """
        threshold = self.threshold if threshold is None else threshold
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold}: give a probability, from 0 to 1.")
        found = self.predict_proba(image_or_images, size, flip=flip)
        return [one > threshold for one in found] if isinstance(found, list) else found > threshold

    def predict_maps(self, images: np.ndarray, flip: bool = False) -> np.ndarray:
        """Probabilities, float32 ``(N, H, W)``, for images as ``load_image`` gives them.

        Nothing is resized. The images, uint8 ``(N, H, W)`` or in colour ``(N, H, W, 3)``, have
        sides in multiples of the model's stride; those of an own network, except from ``.pth``
        files, are always as in ``shape``.
        """
        logits = torch.from_numpy(self.logits(to_tensor(images).numpy())[:, 0])
        maps = torch.sigmoid(logits).numpy()
        if flip:
            maps = (maps + self.predict_maps(images[:, :, ::-1].copy())[:, :, ::-1]) / 2
        return maps


def enlarge(probability: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A float32 map at another size ``(height, width)``, bilinearly; unchanged at its own size."""
    if probability.shape == tuple(size):
        return probability
    return np.asarray(Image.fromarray(probability).resize(size[::-1], Image.Resampling.BILINEAR))


def default_model(network=None, trust=False) -> Path:
    """The file that answers where none is named: ``models/unet_model.pth``. If that is missing or,
    as a warning says, damaged, the one in ``data/pretrained``.
    """
    own = models_dir() / FILES["pytorch"]
    try:
        if network is not None or (own.is_file() and check_file(own, trust) and load_plain(own)):
            return own
    except ModelFileError as error:
        warnings.warn(f"{error} So {PRETRAINED} is asked.", stacklevel=3)
    return PRETRAINED


def load_predictor(
    path=None, device=None, threads=None, precision="fp32", trust=False, runtime=None, network=None
) -> Predictor:
    """Open a model file of any format that ``export_all`` writes, or a run's checkpoint.

    Args:
        path: None takes ``default_model()``, and prints which file that is.
        device: for the PyTorch formats; None picks the best. ONNX files run on the CPU.
        threads: number of CPU threads to compute with; None: all cores.
        precision: ``fp32``; ``bf16`` for ``.pth`` files and OpenVINO; ``fp16`` for ``.pth`` files;
            ``auto``: of ``.pth`` files as ``pick_precision`` says, else ``fp32``.
        trust: open a file although ``manifest.json`` beside it does not name its SHA-256; a
            TorchScript or ``.pt2`` file is a program and can run any code.
        runtime: None picks it from the file; ``openvino`` for ONNX files, ``compile`` for ``.pth``.
        network: for ``.pth`` files of an own network, see ``load_model``.

    Raises:
        ModelFileError: no such file, unreadable, not written by unetlib, or not to be trusted; or,
            tried on a black image, it does not give one logit per pixel.
        ValueError: ``threads`` is not an integer above 0.
        RuntimeError, AssertionError: PyTorch's own, where the device is not there.
    """
    if path is None:
        print(f"model: {(path := default_model(network, trust))}")
    kind = check_file(path, trust, runtime)
    if threads is not None and not (isinstance(threads, (int, np.integer)) and threads > 0):
        raise ValueError(f"threads={threads!r}: give an integer above 0, or None for all cores.")
    if precision == "auto":
        plain = kind != "pytorch"
        precision = "fp32" if plain else pick_precision(torch.device(device or pick_device()))
    halves = dict(pytorch=("bf16", "fp16"), onnx=("bf16",) * (runtime == "openvino"))
    if precision not in ("fp32", *halves.get(kind, ())):
        fit = "fp32 and auto fit all, bf16 and fp16 .pth files, bf16 ONNX files in OpenVINO"
        raise ModelFileError(f"{path}: precision={precision!r} does not fit this file; {fit}.")
    if runtime is not None and (problem := missing_runtime(runtime)):
        raise ModelFileError(f"{path}: {runtime}: {problem}.")
    if kind != "onnx":
        device = torch.zeros(0, device=pick_device() if device is None else device).device
    try:
        if kind == "onnx":
            logits, info = open_onnx(path, threads, precision, runtime)
        else:
            logits, info = open_torch(path, kind, device, threads, precision, runtime, network)
        where = torch.device("cpu") if kind == "onnx" else device
        predictor = Predictor(logits, info, path, precision, trust, runtime, where)
        tried = predictor.logits(np.zeros((1, *predictor.shape), np.float32))
        sound = tried.shape == (1, 1, *predictor.shape[1:]) and np.isfinite(tried).all()
        if not sound or not 0 <= predictor.threshold <= 1:
            found = f"logits {tried.shape} up to {tried.max()}, threshold {predictor.threshold}"
            raise ValueError(found)
        return predictor
    except ModelFileError:
        raise
    except Exception as error:  # damaged files and the runtimes raise errors of many kinds
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        what = f"{path}: damaged, or no model of unetlib ({why})"
        raise ModelFileError(f"{what}; export it again.") from None
