"""Files, images -> masks: one predictor over all formats, compared and put to work."""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from unetlib.carvana import IMAGE_SUFFIXES, DataError, load_mask, rle_encode
from unetlib.config import whole_file
from unetlib.dataset import CarvanaDataset, load_image, to_tensor
from unetlib.formats import FILES, open_model
from unetlib.metrics import dice
from unetlib.model import pick_precision

BATCH_SIZE = 16


class Predictor:
    """A model file ready to predict, whatever its format.

    Attributes:
        name: for tables, for example ``pytorch fp32``.
        format: ``pytorch``, ``torchscript``, ``exported``, ``onnx`` or ``int8``.
        size: image side in pixels that the model was trained at.
        threshold: of the probability above which a pixel counts as car.
        path: the file.
        logits: the bare model: float32 arrays ``(N, 1, H, W)`` in [0, 1] -> logits.
    """

    def __init__(self, path: str | Path, device=None, threads=None, precision="fp32", trust=False):
        self.path = Path(path)
        self.logits, info = open_model(path, device, threads, precision, trust)
        self.format, self.size, self.threshold = info["format"], info["size"], info["threshold"]
        self.name = self.format if self.format == "int8" else f"{self.format} {precision}"

    def predict_proba(self, image_or_images) -> np.ndarray | list[np.ndarray]:
        """Probability of car for every pixel of the original image.

        The small probability map is enlarged bilinearly: thresholding comes last, so that the edge
        is not a staircase.

        Args:
            image_or_images: a path, PIL image or array (see ``dataset.load_image``), or a list.

        Returns:
            float32 ``(H, W)`` in [0, 1] at the original size; for a list, a list of them.

        Raises:
            DataError: an image cannot be read.
        """
        if isinstance(image_or_images, (list, tuple)):
            return list(self._probabilities(image_or_images))
        return next(self._probabilities([image_or_images]))

    def _probabilities(self, images: list) -> Iterable[np.ndarray]:
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            small = np.stack([load_image(image, self.size) for image in batch])
            logits = self.logits(to_tensor(small).numpy())[:, 0]
            for image, one in zip(batch, torch.sigmoid(torch.from_numpy(logits)), strict=True):
                enlarged = Image.fromarray(one.numpy()).resize(
                    _upright_size(image), Image.Resampling.BILINEAR
                )
                yield np.asarray(enlarged)

    def predict_mask(self, image_or_images, threshold: float | None = None):
        """Masks at the original size, boolean ``(H, W)``: probability above the threshold.

        Arguments and result as for ``predict_proba``; ``threshold`` None takes the file's own, 0.5.
        """
        threshold = self.threshold if threshold is None else threshold
        probability = self.predict_proba(image_or_images)
        if isinstance(probability, list):
            return [one > threshold for one in probability]
        return probability > threshold


def _upright_size(image) -> tuple[int, int]:
    """(width, height) of an image as it is seen, EXIF rotation applied."""
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    if not isinstance(image, Image.Image):
        with Image.open(image) as opened:
            return _upright_size(opened)
    turned = image.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 lie on their side
    return image.size[::-1] if turned else image.size


def load_predictor(
    path: str | Path,
    device=None,
    threads: int | None = None,
    precision: str = "fp32",
    trust: bool = False,
) -> Predictor:
    """Open a model file of any format that ``export_all`` writes, or a run's checkpoint.

    Args:
        device: for the PyTorch formats; None picks the best. ONNX files run on the CPU.
        threads: of ONNX Runtime; None: all cores.
        precision: ``fp32`` or ``bf16``, for ``.pth`` files of weights only.
        trust: open a TorchScript or ``.pt2`` file (programs, which can run any code) even if
            ``manifest.json`` beside it does not name its SHA-256.

    Raises:
        ModelFileError: no such file, unreadable, not written by unetlib, or not to be trusted.
    """
    return Predictor(path, device, threads, precision, trust)


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """All image files among paths and directly inside folders, sorted within each folder.

    Raises:
        DataError: a path does not exist, or there is no image at all.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(path.iterdir())
            found += [file for file in inside if file.suffix.lower() in IMAGE_SUFFIXES]
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: no such file or folder; check the path.")
    if not found:
        raise DataError("No image found: give files or folders with .jpg, .jpeg or .png files.")
    return found


def write_masks(predictor: Predictor, images: Iterable[str | Path], folder: str | Path) -> int:
    """Write each image's mask as ``<stem>_mask.png`` (0/255, original size); returns the count."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    images = list(images)
    for image in tqdm(images, desc="predicting"):
        mask = predictor.predict_mask(image)
        Image.fromarray(mask).save(Path(folder) / f"{Path(image).stem}_mask.png")
    return len(images)


def write_submission(predictor: Predictor, images: Iterable[str | Path], path: str | Path) -> int:
    """Write Kaggle's submission file, columns ``img,rle_mask``, a line per image in order.

    The file appears whole or not at all. Returns the number of images.
    """
    path, images = Path(path), list(images)
    with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["img", "rle_mask"])
        for image in tqdm(images, desc="predicting"):
            writer.writerow([Path(image).name, rle_encode(predictor.predict_mask(image))])
    return len(images)


def benchmark(
    predictors: Iterable[Predictor],
    batch_sizes: Iterable[int] = (1,),
    repeats: int = 30,
    warm_up: int = 3,
) -> pd.DataFrame:
    """Time the bare models on random input, turn by turn.

    The predictors take turns within every repeat, so that a machine that slows down (heat, other
    programs) does not favour the one that came first. Compare ratios, not milliseconds.

    Returns:
        A row per predictor and batch size: ``name``, ``batch``, ``p50_ms`` and ``p95_ms`` of one
        call, ``images_per_second`` (at the median), ``ratio`` (how many times faster than the first
        predictor at that batch size).
    """
    predictors = list(predictors)
    batch_sizes = list(batch_sizes)
    rng = np.random.default_rng(0)
    rows = []
    with tqdm(total=len(batch_sizes) * (warm_up + repeats), desc="timing") as bar:
        for batch_size in batch_sizes:
            times = [[] for _ in predictors]
            for repeat in range(warm_up + repeats):
                for predictor, taken in zip(predictors, times, strict=True):
                    shape = (batch_size, 1, predictor.size, predictor.size)
                    batch = rng.random(shape, dtype=np.float32)
                    started = time.perf_counter()
                    predictor.logits(batch)
                    if repeat >= warm_up:
                        taken.append(1000 * (time.perf_counter() - started))
                bar.update()
            medians = [float(np.median(taken)) for taken in times]
            rows += [
                dict(
                    name=predictor.name,
                    batch=batch_size,
                    p50_ms=median,
                    p95_ms=float(np.percentile(taken, 95)),
                    images_per_second=1000 * batch_size / median,
                    ratio=medians[0] / median,
                )
                for predictor, taken, median in zip(predictors, times, medians, strict=True)
            ]
    return pd.DataFrame(rows)


MEASURE_MEMORY = """
import json, sys, threading, time
import numpy, psutil
from unetlib.inference import load_predictor
process, peak, done = psutil.Process(), [0], threading.Event()
before = process.memory_info().rss
def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], process.memory_info().rss)
watcher = threading.Thread(target=watch, daemon=True); watcher.start()
predictor = load_predictor(sys.argv[1], device="cpu", precision=sys.argv[2])
for _ in range(3):
    predictor.logits(numpy.zeros((1, 1, predictor.size, predictor.size), numpy.float32))
done.set(); watcher.join()
print(json.dumps((max(peak[0], before) - before) / 1e6))
"""


def peak_memory_mb(path: str | Path, precision: str = "fp32") -> float:
    """Memory in MB that a fresh process takes, on top of its imports, to load a model and predict.

    Measured as resident memory while three single images are predicted.
    """
    arguments = [sys.executable, "-c", MEASURE_MEMORY, str(path), precision]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    finished = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    if finished.returncode:
        raise RuntimeError(f"{path}: measuring memory failed: {finished.stderr.strip()[-300:]}")
    return json.loads(finished.stdout.strip().splitlines()[-1])


def compare(models_dir: str | Path, samples: pd.DataFrame, repeats: int = 30) -> pd.DataFrame:
    """Compare all exported formats on the CPU: quality, speed, size and memory.

    Eager PyTorch in fp32 comes first and is what the others are measured against; bf16 joins where
    the hardware has it.

    Args:
        models_dir: where ``export_all`` wrote; a format whose file is missing is skipped.
        samples: sample table with masks.

    Returns:
        A row per predictor: ``name``, ``dice`` at the model's size, ``dice_full`` at the original
        size, ``agreement`` (share of pixels on the same side of the threshold as the first),
        ``max_abs_diff`` (of probabilities), ``p50_ms``, ``p95_ms``, ``ratio``, ``megabytes``,
        ``peak_mb``.

    Raises:
        DataError: no exported model in the folder.
    """
    paths = [Path(models_dir) / file for file in FILES.values()]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise DataError(
            f"{models_dir}: no exported model here; run python -m unetlib export first."
        )
    choices = [(path, "fp32") for path in paths]
    if pick_precision(torch.device("cpu")) == "bf16" and paths[0].name == FILES["pytorch"]:
        choices.insert(1, (paths[0], "bf16"))
    predictors = [
        load_predictor(path, device="cpu", precision=precision) for path, precision in choices
    ]
    dataset = CarvanaDataset(samples, predictors[0].size)
    images = to_tensor(dataset.images).numpy()
    full_masks = [load_mask(path) for path in dataset.samples["mask"]]
    first, rows = None, []
    for predictor, (path, precision) in tqdm(
        list(zip(predictors, choices, strict=True)), "scoring"
    ):
        batches = np.array_split(images, -(-len(images) // BATCH_SIZE))
        logits = np.concatenate([predictor.logits(batch) for batch in batches])[:, 0]
        probability = torch.sigmoid(torch.from_numpy(logits)).numpy()
        car = probability > predictor.threshold
        first = (probability, car) if first is None else first
        full = [
            dice(predictor.predict_mask(image), mask).item()
            for image, mask in zip(dataset.samples["image"], full_masks, strict=True)
        ]
        rows.append(
            dict(
                name=predictor.name,
                dice=dice(car, dataset.coverage >= 128).mean().item(),
                dice_full=float(np.mean(full)),
                agreement=float((car == first[1]).mean()),
                max_abs_diff=float(np.abs(probability - first[0]).max()),
                megabytes=path.stat().st_size / 1e6,
                peak_mb=peak_memory_mb(path, precision),
            )
        )
    times = benchmark(predictors, repeats=repeats)[["name", "p50_ms", "p95_ms", "ratio"]]
    return pd.DataFrame(rows).merge(times, on="name")
