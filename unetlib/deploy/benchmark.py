"""Predictors -> speed and memory on this computer; only ratios hold on another one, too."""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from timeit import timeit

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from unetlib.deploy.predict import Predictor
from unetlib.support.errors import ModelFileError


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
status = psutil.Process().memory_info
memory = [status().rss]
def watch():
    while not time.sleep(0.002):
        memory.append(status().rss)
threading.Thread(target=watch, daemon=True).start()
started = time.perf_counter()
predictor = load_predictor(device="cpu", **json.loads(sys.argv[1]))  # which predicts once
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
