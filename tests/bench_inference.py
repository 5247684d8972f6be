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
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from unetlib import (
    FILES,
    CarvanaDataset,
    benchmark,
    compare,
    config,
    export_onnx,
    find_samples,
    image_files,
    load_model,
    load_predictor,
    multiply_rate,
    predictors_in,
    quantize_int8,
    rle_encode,
    split_by_car,
    stages,
    subpixel,
    to_tensor,
    write_submission,
)

REPEATS = 30


def bench_formats(models: Path, train: pd.DataFrame, val: pd.DataFrame) -> None:
    """The table of notebook 06, the sub-pixel variant, threads, and the machine's limit."""
    table = compare(models, val, repeats=REPEATS)
    print(table.round(4).to_string(index=False))

    model, content = load_model(models / FILES["pytorch"])
    size = content["size"]
    images = train.iloc[:: max(1, len(train) // 32)][:32]
    calibration = to_tensor(CarvanaDataset(images, size, cache=False).images).numpy()
    with tempfile.TemporaryDirectory() as folder:
        plain, int8 = Path(folder) / "subpixel.onnx", Path(folder) / "subpixel_int8.onnx"
        export_onnx(subpixel(model), plain, size)
        quantize_int8(plain, int8, calibration)
        files = [models / FILES["onnx"], models / FILES["int8"], plain, int8]
        predictors = [load_predictor(file) for file in files]
        for predictor, name in zip(predictors[2:], ("subpixel fp32", "subpixel int8"), strict=True):
            predictor.name = name
        print("\nONNX Runtime, ratio to its own fp32; sub-pixel: no transposed convolution")
        print(benchmark(predictors, repeats=REPEATS)[["name", "p50_ms", "ratio"]].round(2))

    for threads in (1, torch.get_num_threads()):
        some = [load_predictor(models / FILES[name], "cpu", threads) for name in FILES]
        print(f"\n{threads} thread(s), batches of 1 and 8")
        print(benchmark(some, (1, 8), repeats=5, warm_up=1).round(2).to_string(index=False))

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(torch.zeros(1, 1, size, size))
    work, limit = counter.get_total_flops() / 1e9, multiply_rate()
    eager = table["p50_ms"].iloc[0]
    print(
        f"\n{work:.2f} GFLOP a picture; eager fp32 reaches {1000 * work / eager:.0f} of this "
        f"machine's {limit:.0f} GFLOP/s ({1000 * work / eager / limit:.0%})"
    )


def bench_folder(models: Path, photos: list[Path]) -> None:
    """From files to submission.csv: the library's pipeline against the plain loop."""
    racers = contenders(models, runtimes=("openvino",))
    speed = benchmark(racers, repeats=10)
    fastest = racers[int(speed["p50_ms"].argmin())]
    ways = {"textbook": stages(racers[0], photos[:4], textbook=True)}
    ways |= {f"library, {fastest.name}": stages(fastest, photos[:4])}
    print("\nms a picture and stage, one at a time")
    print(pd.DataFrame(ways).T.round(1))
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
        small = picture.resize((predictor.size, predictor.size), Image.Resampling.BOX)
        batch = np.asarray(small, np.float32)[None, None] / 255
        probability = torch.sigmoid(torch.from_numpy(predictor.logits(batch)))[0, 0].numpy()
        full = Image.fromarray(probability).resize(picture.size, Image.Resampling.BILINEAR)
        lines.append(f"{photo.name},{rle_encode(np.asarray(full) > 0.5)}")
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    models = config.models_dir()
    train, val = split_by_car(find_samples(config.REPOSITORY / "data" / "sample"))
    print(f"{models}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    folders = sys.argv[1:] or [config.fullsize_dir() / "train", config.fullsize_dir() / "test"]
    photos = image_files(folder for folder in folders if Path(folder).is_dir())
    bench_formats(models, train, val.iloc[::2])
    bench_folder(models, photos)


if __name__ == "__main__":
    main()
