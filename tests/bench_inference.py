"""How fast is a trained model, in every format and from a folder to a submission? Not a test.

    make bench
    python tests/bench_inference.py [FOLDER OF PHOTOS]     # of your own, JPEGs of any size

It takes the files in models/ (make one: python -m unetlib train; python -m unetlib export). Compare
ratios, not milliseconds, and keep the machine quiet meanwhile.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from bench_training import multiply_rate
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from unetlib import (
    FILES,
    REPOSITORY,
    benchmark,
    compare,
    find_samples,
    image_files,
    load_model,
    load_predictor,
    models_dir,
    predictors_in,
    rle_encode,
    split_by_group,
    write_submission,
)

REPEATS = 30


def bench_formats(models: Path, val: pd.DataFrame) -> None:
    """The table of notebook 06, threads, and the machine's limit."""
    table = compare(models, val, repeats=REPEATS)
    print(table.round(4).to_string(index=False))

    model, _ = load_model(models / FILES["pytorch"])
    for threads in (1, torch.get_num_threads()):
        predictors = [load_predictor(models / FILES[name], "cpu", threads) for name in FILES]
        print(f"\n{threads} thread(s), batches of 1 and 8")
        print(benchmark(predictors, (1, 8), repeats=5, warm_up=1).round(2).to_string(index=False))

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, *predictors[0].shape))
    work, limit = counter.get_total_flops() / 1e9, multiply_rate()
    eager = table["p50_ms"].iloc[0]
    print(
        f"\n{work:.2f} GFLOP a picture; eager fp32 reaches {1000 * work / eager:.0f} of this "
        f"machine's {limit:.0f} GFLOP/s ({1000 * work / eager / limit:.0%})"
    )


def bench_folder(models: Path, photos: list[Path]) -> None:
    """From files to submission.csv: the library's pipeline against the plain loop."""
    racers = predictors_in(models, runtimes=("openvino",))
    speed = benchmark(racers, repeats=10)
    fastest = racers[int(speed["p50_ms"].argmin())]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        textbook(racers[0], photos, Path(folder) / "textbook.csv")
        plain = time.perf_counter() - started
        print(f"\ntextbook loop, eager fp32: {len(photos) / plain:.2f} images/s")
        for predictor in (racers[0], fastest):
            started = time.perf_counter()
            write_submission(predictor, photos, Path(folder) / "submission.csv")
            spent = time.perf_counter() - started
            rate = len(photos) / spent
            print(f"pipeline, {predictor.name}: {rate:.2f} images/s, {plain / spent:.2f} times")


def textbook(predictor, photos: list[Path], path: Path) -> None:
    """Open, convert, resize, model, upsample, encode: each picture after the other."""
    lines = ["img,rle_mask"]
    for photo in photos:
        picture = Image.open(photo).convert("L")
        small = picture.resize(predictor.shape[:0:-1], Image.Resampling.BOX)
        batch = np.asarray(small, np.float32)[None, None] / 255
        probability = torch.sigmoid(torch.from_numpy(predictor.logits(batch)))[0, 0].numpy()
        full = Image.fromarray(probability).resize(picture.size, Image.Resampling.BILINEAR)
        lines.append(f"{photo.name},{rle_encode(np.asarray(full) > 0.5)}")
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    models = models_dir()
    _, val = split_by_group(find_samples(REPOSITORY / "data" / "sample"))
    print(f"{models}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    folders = sys.argv[1:] or [*(REPOSITORY / "data" / "fullsize").glob("t*t*")]
    photos = image_files(folder for folder in folders if Path(folder).is_dir())
    bench_formats(models, val.iloc[::2])
    bench_folder(models, photos)


if __name__ == "__main__":
    main()
