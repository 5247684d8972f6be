"""Predictors -> numbers: how good, how fast, how large each format is on this computer.

Compare ratios, not milliseconds: they travel from one computer to another.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from unetlib.carvana import DataError, load_mask, rle_encode
from unetlib.dataset import CarvanaDataset, load_image
from unetlib.formats import FILES, RUNS, missing_runtime, read_manifest
from unetlib.inference import (
    BATCH_SIZE,
    Predictor,
    enlarge,
    load_predictor,
    rle_of_map,
    upright_size,
)
from unetlib.metrics import dice
from unetlib.model import ModelFileError, autocast, pick_precision


def contenders(
    models_dir: str | Path,
    threads: int | None = None,
    runtimes: Iterable[str] = ("openvino", "compile"),
) -> list[Predictor]:
    """Every way to run the exported model on this computer's CPU, eager PyTorch fp32 first.

    bf16 joins where the hardware computes with it; the extra runtimes join where they are
    installed. What is left out is said in one line each.

    Args:
        models_dir: where ``export_all`` wrote.
        threads: to compute with; None: all cores.
        runtimes: extra ones, of ``formats.Runtime``.

    Raises:
        DataError: no exported model in the folder.
        ModelFileError: a file is damaged or not the exported one.
        ValueError: an unknown runtime, or a number of threads that is none.
    """
    models_dir = Path(models_dir)
    runtimes = [runtimes] if isinstance(runtimes, str) else list(runtimes)
    unknown = [runtime for runtime in runtimes if runtime not in RUNS]
    if unknown:
        raise ValueError(f"runtime {unknown[0]!r} is unknown: use {' or '.join(RUNS)}.")
    files = {name: models_dir / file for name, file in FILES.items()}
    files = {name: path for name, path in files.items() if path.is_file()}
    if not files:
        raise DataError(
            f"{models_dir}: no exported model here; run python -m unetlib export first."
        )
    manifest = read_manifest(models_dir)
    weights = {name: manifest.get(path.name, {}).get("weights") for name, path in files.items()}
    for name in [name for name in files if weights[name] != weights[next(iter(files))]]:
        print(f"{files.pop(name)}: of another training than the first file: left out; export anew")
    choices = [(path, "fp32", None) for path in files.values()]
    native = pick_precision(torch.device("cpu"))
    if native != "bf16":
        print("bf16: this processor does not compute with it natively: left out")
    elif "pytorch" in files:
        choices.insert(1, (files["pytorch"], "bf16", None))
    for runtime in runtimes:
        reason = missing_runtime(runtime)
        if reason:
            print(f"{runtime}: {reason}: left out")
        elif runtime == "compile" and "pytorch" in files:
            choices.append((files["pytorch"], "fp32", runtime))
        elif runtime == "openvino":
            onnx = [files[name] for name in ("onnx", "int8") if name in files]
            choices += [(path, "fp32", runtime) for path in onnx]
            if native == "bf16" and "onnx" in files:
                choices.append((files["onnx"], "bf16", runtime))
    return [
        load_predictor(path, "cpu", threads, precision, runtime=runtime)
        for path, precision, runtime in choices
    ]


def benchmark(
    predictors: Iterable[Predictor],
    batch_sizes: Iterable[int] = (1,),
    repeats: int = 30,
    warm_up: int = 3,
) -> pd.DataFrame:
    """Time the bare models on random input, turn by turn.

    The predictors take turns within every repeat, so that a machine that slows down (heat, other
    programs) does not favour the one that came first.

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
                    seconds = _seconds(lambda p=predictor, b=batch: p.logits(b))
                    if repeat >= warm_up:
                        taken.append(1000 * seconds)
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


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


COLD_START = """
import json, sys, threading, time
import numpy, psutil
started = time.perf_counter()
from unetlib.inference import load_predictor
imported = time.perf_counter()
process, peak, done = psutil.Process(), [0], threading.Event()
before = process.memory_info().rss
def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], process.memory_info().rss)
watcher = threading.Thread(target=watch, daemon=True); watcher.start()
path, precision, runtime, *trust = sys.argv[1:]
loading = time.perf_counter()
predictor = load_predictor(
    path, "cpu", precision=precision, runtime=runtime or None, trust=bool(trust)
)
batch = numpy.zeros((1, 1, predictor.size, predictor.size), numpy.float32)
predictor.logits(batch)
first = time.perf_counter()
for _ in range(2):
    predictor.logits(batch)
done.set(); watcher.join()
print(json.dumps(dict(peak_mb=(max(peak[0], before) - before) / 1e6, import_s=imported - started,
                      first_s=first - loading)))
"""


def cold_start(predictor: Predictor) -> dict[str, float]:
    """What a fresh process needs until the first prediction.

    Returns:
        ``peak_mb``: resident memory in MB on top of the imports, while loading and predicting
        three single images; ``import_s``: seconds for importing unetlib; ``first_s``: seconds for
        loading the model and its first prediction.

    Raises:
        ModelFileError: the process failed.
    """
    arguments = [str(predictor.path), predictor.precision, predictor.runtime or ""]
    arguments += ["trust"] * predictor.trust
    with tempfile.TemporaryDirectory() as folder:  # what torch.compile kept before does not count
        places = dict(
            PYTHONPATH=os.pathsep.join(filter(None, sys.path)), TORCHINDUCTOR_CACHE_DIR=folder
        )
        finished = subprocess.run(
            [sys.executable, "-c", COLD_START, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | places,
        )
    if finished.returncode:
        reason = finished.stderr.strip().rpartition("\n")[2]
        raise ModelFileError(f"{predictor.path}: a fresh process cannot use it: {reason}")
    return json.loads(finished.stdout.strip().splitlines()[-1])


def stages(
    predictor: Predictor, images: Iterable[str | Path], textbook: bool = False, repeats: int = 3
) -> pd.Series:
    """Milliseconds that one picture takes in each stage, from file to run lengths, one at a time.

    Args:
        textbook: the plain way (decode everything, enlarge the whole map) instead of the library's
            (JPEGs decoded at half scale, run lengths straight from the small map).

    Returns:
        ``decode``, ``preprocess``, ``model``, ``upsample``, ``RLE``: means over the images of the
        least of the repeats.
    """
    size, images = predictor.size, list(images)
    totals = dict.fromkeys(("decode", "preprocess", "model", "upsample", "RLE"), 0.0)

    def decoded(path):
        opened = Image.open(path)
        if not textbook:  # as load_image does
            opened.draft("L", (max(4 * size, opened.width // 2), max(4 * size, opened.height // 2)))
        opened.load()
        return opened

    def least(call):
        return min(_seconds(call) for _ in range(repeats))

    for path in images:
        picture, full = decoded(path), upright_size(path)
        grey = load_image(picture, size)
        small = predictor.predict_maps(grey[None])[0]
        mask = enlarge(small, full) > predictor.threshold
        encode = least(partial(rle_encode, mask))
        if textbook:
            upsample = least(lambda s=small, f=full: enlarge(s, f) > predictor.threshold)
        else:
            upsample = least(partial(rle_of_map, small, full, predictor.threshold)) - encode
        spent = (
            least(partial(decoded, path)),
            least(partial(load_image, picture, size)),
            least(partial(predictor.predict_maps, grey[None])),
            upsample,
            encode,
        )
        for name, seconds in zip(totals, spent, strict=True):
            totals[name] += 1000 * max(0.0, seconds) / len(images)
    return pd.Series(totals, name=predictor.name)


def multiply_rate(device: str | torch.device = "cpu", precision: str = "fp32") -> float:
    """The rate in GFLOP/s at which this machine multiplies matrices: the limit for any network."""
    device = torch.device(device)
    matrix = torch.rand(2048, 2048, device=device)
    with torch.inference_mode(), autocast(device, precision):
        matrix @ matrix
        seconds = min(_seconds(lambda: (matrix @ matrix)[0, 0].item()) for _ in range(5))
    return 2 * 2048**3 / seconds / 1e9


def compare(
    models_dir: str | Path,
    samples: pd.DataFrame,
    repeats: int = 30,
    runtimes: Iterable[str] = ("openvino", "compile"),
) -> pd.DataFrame:
    """Compare all ways to run the exported model on the CPU: quality, speed, size and memory.

    Args:
        models_dir: where ``export_all`` wrote; a format whose file is missing is skipped.
        samples: sample table with masks.
        runtimes: extra ones to try, see ``contenders``.

    Returns:
        A row per predictor, eager PyTorch in fp32 first: ``name``, ``dice`` at the model's size,
        ``dice_full`` at the original size, ``agreement`` (share of pixels on the same side of the
        threshold as the first), ``max_abs_diff`` (of probabilities), ``megabytes``, ``peak_mb``,
        ``first_s`` (see ``cold_start``), ``p50_ms``, ``p95_ms``, ``ratio``.

    Raises:
        DataError: no exported model in the folder.
        ModelFileError: a file is damaged or not the exported one.
    """
    predictors = contenders(models_dir, runtimes=runtimes)
    dataset = CarvanaDataset(samples, predictors[0].size)
    first, rows = None, []
    for predictor in tqdm(predictors, "scoring"):
        batches = np.array_split(dataset.images, -(-len(dataset) // BATCH_SIZE))
        probability = np.concatenate([predictor.predict_maps(batch) for batch in batches])
        car = probability > predictor.threshold
        first = (probability, car) if first is None else first
        full = []
        for one, path in zip(probability, dataset.samples["mask"], strict=True):
            mask = load_mask(path)
            full.append(dice(enlarge(one, mask.shape[::-1]) > predictor.threshold, mask).item())
        fresh = cold_start(predictor)
        rows.append(
            dict(
                name=predictor.name,
                dice=dice(car, dataset.coverage >= 128).mean().item(),
                dice_full=float(np.mean(full)),
                agreement=float((car == first[1]).mean()),
                max_abs_diff=float(np.abs(probability - first[0]).max()),
                megabytes=predictor.path.stat().st_size / 1e6,
                peak_mb=fresh["peak_mb"],
                first_s=fresh["first_s"],
            )
        )
    times = benchmark(predictors, repeats=repeats)[["name", "p50_ms", "p95_ms", "ratio"]]
    return pd.DataFrame(rows).merge(times, on="name")
