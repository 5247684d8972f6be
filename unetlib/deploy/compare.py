"""Exported files, images -> tables of how alike, how good, how fast and how large they are."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from timeit import timeit

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from unetlib.dataset import CarvanaDataset
from unetlib.deploy.formats import missing_runtime
from unetlib.deploy.manifest import FILES, RUNTIMES, exported_files, read_manifest
from unetlib.deploy.predict import Predictor, enlarge, load_predictor
from unetlib.device import pick_precision
from unetlib.masks import load_mask
from unetlib.metrics import dice
from unetlib.store.model_file import load_plain
from unetlib.support.cache import decode_once
from unetlib.support.errors import ModelFileError

TOLERANCE = 1e-4  # largest difference in probability allowed to the float formats
INT8_TOLERANCE = 0.01  # Dice that int8 may lose before it is marked
NOTE = "undertrained?"  # the mark: a well-trained network loses much less


def parity(models_dir, samples: pd.DataFrame, network=None) -> pd.DataFrame:
    """Compare every exported format with the PyTorch file on real images, freshly loaded.

    A row per format: ``format``, ``file``, ``bytes``, ``max_abs_diff`` (of probabilities),
    ``pixels_changed`` (share on the other side of the threshold), ``dice`` (mean over images, hard
    masks), ``dice_difference`` (to PyTorch), ``note`` (of an int8 file: ``NOTE`` or "").

    Args:
        models_dir, samples: where ``export_all`` wrote, and a sample table with masks.
        network: of an own network, see ``load_model``.
    """
    paths, rows = [Path(models_dir) / file for file in FILES.values()], []
    predictors = [load_predictor(path, "cpu", network=network) for path in paths]
    for predictor, _, scores in _scored(predictors, samples, "comparing formats"):
        difference = scores["dice"] - (rows[0]["dice"] if rows else scores["dice"])
        lost_much = predictor.format == "int8" and difference < -INT8_TOLERANCE
        row = dict(format=predictor.format, file=predictor.path.name)
        row |= dict(bytes=predictor.path.stat().st_size, **scores)
        rows.append(row | dict(dice_difference=difference, note=NOTE if lost_much else ""))
    return pd.DataFrame(rows)


def _scored(predictors: list[Predictor], samples: pd.DataFrame, title: str) -> Iterator[tuple]:
    """``(predictor, probabilities (N, H, W), scores)``; the first is the reference."""
    size, colour, first = predictors[0].size, predictors[0].colour, None
    dataset = CarvanaDataset(samples, size, decode=decode_once, colour=colour)
    for predictor in tqdm(predictors, title):
        batches = np.array_split(dataset.images, -(-len(samples) // predictor.batch_size))
        probability = np.concatenate([predictor.predict_maps(batch) for batch in batches])
        car = probability > predictor.threshold
        first = first or (probability, car)
        scores = dict(max_abs_diff=float(np.abs(probability - first[0]).max()))
        scores |= dict(pixels_changed=float((car != first[1]).mean()))
        scores |= dict(dice=dice(car, dataset.coverage >= 128).mean().item())
        yield predictor, probability, scores


def compare(
    models_dir, samples: pd.DataFrame, repeats=30, runtimes=("openvino", "compile"), network=None
) -> pd.DataFrame:
    """Compare all ways to run the exported model on the CPU: quality, speed, size and memory.

    ``samples`` is a sample table with masks; other arguments and errors as for ``predictors_in``.
    A row per predictor, in its order: ``name``, ``dice`` at the model's size, ``dice_full`` at the
    original size, ``agreement`` (share of pixels on the same side of the threshold as the first),
    ``max_abs_diff`` (of probabilities), ``megabytes``, ``peak_mb``, ``first_s`` (see
    ``cold_start``), ``p50_ms``, ``p95_ms``, ``ratio``.
    """
    predictors = predictors_in(models_dir, runtimes=runtimes, network=network)
    rows = []
    for predictor, probabilities, scores in _scored(predictors, samples, "scoring"):
        objects = samples.get("mask_value", [None] * len(samples))
        pairs = zip(probabilities, map(load_mask, samples["mask"], objects), strict=True)
        full = [dice(enlarge(p, m.shape) > predictor.threshold, m).item() for p, m in pairs]
        row = dict(name=predictor.name, dice=scores["dice"], dice_full=float(np.mean(full)))
        row |= dict(agreement=1 - scores["pixels_changed"], max_abs_diff=scores["max_abs_diff"])
        row |= dict(megabytes=predictor.path.stat().st_size / 1e6, **cold_start(predictor))
        rows.append(row)
    times = benchmark(predictors, repeats=repeats)[["name", "p50_ms", "p95_ms", "ratio"]]
    return pd.DataFrame(rows).merge(times, on="name")


def predictors_in(
    models_dir, threads: int | None = None, runtimes=("openvino", "compile"), network=None
) -> list[Predictor]:
    """Every way to run the exported model on this computer's CPU, eager PyTorch fp32 first.

    bf16 is included where the hardware computes with it, the extra runtimes where they are
    installed. A line is printed for each that is left out.

    Args:
        models_dir: where ``export_all`` wrote (DataError: nothing); a missing file is skipped.
        threads: see ``load_predictor``, also for the other errors.
        runtimes: extra ones, of ``manifest.RUNTIMES`` (else a ValueError); one needs no list.
        network: of an own network, see ``load_model``; None leaves its ``.pth`` file out.
    """
    runtimes = [runtimes] if isinstance(runtimes, str) else list(runtimes)
    if unknown := [runtime for runtime in runtimes if runtime not in RUNTIMES]:
        raise ValueError(f"runtime {unknown[0]!r} is unknown: use {' or '.join(RUNTIMES)}.")
    files, manifest = exported_files(folder := Path(models_dir)), read_manifest(folder)
    weights = {path: manifest.get(path.name, {}).get("weights") for path in files.values()}
    first, *rest = files.values()
    why = f"of another training than {first.name}; export again"
    problems = {path: why for path in rest if weights[path] != weights[first]}
    asked = network is None and "pytorch" in files and len(rest) > len(problems)
    if asked and (own := load_plain(first).get("network")):
        problems[first] = f"it needs its class (network={own})"
    if pick_precision(torch.device("cpu")) != "bf16":
        problems["bf16"] = "this processor does not compute with it natively"
    problems |= {one: why for one in runtimes if (why := missing_runtime(one))}
    for left_out, why in problems.items():
        print(f"{left_out}: left out, {why}")
    ways = [("pytorch", "fp32", None), ("pytorch", "bf16", None)]
    ways += [(name, "fp32", None) for name in FILES if name != "pytorch"]
    ways += [("onnx", "fp32", "openvino"), ("int8", "fp32", "openvino")]
    ways += [("onnx", "bf16", "openvino"), ("pytorch", "fp32", "compile")]
    return [
        load_predictor(files[name], "cpu", threads, precision, runtime=runtime, network=network)
        for name, precision, runtime in ways
        if name in files and runtime in (None, *runtimes)
        if not {files[name], precision, runtime} & problems.keys()
    ]


def benchmark(predictors, batch_sizes=(1,), repeats: int = 30, warm_up: int = 3) -> pd.DataFrame:
    """Time the bare models on random input, in turns within every repeat: a machine that slows
    down (heat, other programs) then favours none of them. A row per predictor and batch size:
    ``name``, ``batch``, ``p50_ms`` and ``p95_ms`` of one call, ``images_per_second`` (at the
    median), ``ratio`` (how many times faster than the first predictor at that batch size).
    """
    predictors, rng, tables = list(predictors), np.random.default_rng(0), []
    for batch_size in batch_sizes:
        times = [[] for _ in predictors]
        for _ in tqdm(range(warm_up + repeats), desc=f"timing batches of {batch_size}"):
            for predictor, taken in zip(predictors, times, strict=True):
                batch = rng.random((batch_size, *predictor.shape), np.float32)
                taken.append(timeit(partial(predictor.logits, batch), number=1))
        p50, p95 = 1000 * np.percentile(np.array(times)[:, warm_up:], [50, 95], axis=1)
        speeds = dict(p50_ms=p50, p95_ms=p95, images_per_second=1000 * batch_size / p50)
        names = dict(name=[one.name for one in predictors], batch=batch_size)
        tables.append(pd.DataFrame(names | speeds | dict(ratio=p50[0] / p50)))
    return pd.concat(tables, ignore_index=True)


COLD_START = """
import json, sys, threading, time, numpy, psutil
from unetlib.deploy.predict import load_predictor
how = json.loads(sys.argv[1])
if how["runtime"] == "openvino":
    import openvino  # an import like the others, which do not count
status = psutil.Process().memory_info
memory = [status().rss]
def watch():
    while not time.sleep(0.002):
        memory.append(status().rss)
threading.Thread(target=watch, daemon=True).start()
started = time.perf_counter()
predictor = load_predictor(device="cpu", **how)  # which predicts once
seconds = time.perf_counter() - started
for _ in range(2):
    predictor.logits(numpy.zeros((1, *predictor.shape), numpy.float32))
print(json.dumps(dict(peak_mb=(max(memory) - memory[0]) / 1e6, first_s=seconds)))
"""


def cold_start(predictor: Predictor) -> dict[str, float]:
    """What a fresh process needs until the first prediction (ModelFileError: it failed).

    ``peak_mb`` is resident memory in MB on top of the imports, while loading and predicting three
    single images; ``first_s`` seconds for loading the model and its first prediction. Both are nan
    for the ``.pth`` file of an own network, whose class another process lacks.
    """
    if predictor.network:
        return dict(peak_mb=np.nan, first_s=np.nan)
    path, settings = str(predictor.path), ("precision", "runtime", "trust")
    how = json.dumps(dict(path=path) | {name: getattr(predictor, name) for name in settings})
    with tempfile.TemporaryDirectory() as fresh:  # what torch.compile kept before does not count
        shown = in_a_fresh_process(COLD_START, how, what=path, TORCHINDUCTOR_CACHE_DIR=fresh)
    return json.loads(shown)


def in_a_fresh_process(code: str, *arguments: str, what: str | Path, **environment: str) -> str:
    """The last line that a separate Python program prints; it has only its arguments and the files.

    ModelFileError: it failed; ``what``, the file or folder that it works on, is named.
    """
    known = os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, sys.path))) | environment
    command = [sys.executable, "-c", code, *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, env=known)
    if finished.returncode:
        reason = finished.stderr.strip().rpartition("\n")[2] or f"exit {finished.returncode}"
        raise ModelFileError(f"{what}: a fresh process cannot use it: {reason}")
    return finished.stdout.strip().rpartition("\n")[2]
