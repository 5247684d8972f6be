"""How fast training is, as ratios within one run: `make bench` (some minutes; not part of CI).

Everything is compared with the plain textbook way on the same computer at the same time: decode
each file whenever it is asked for, fp32, default memory order, plain Adam. And with what the device
gives the same net if nothing but steps is done: pictures on the device, indexed there, network and
loss compiled, no number read.
"""

import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from unetlib import (
    REPOSITORY,
    CarvanaDataset,
    Recipe,
    bce_loss,
    decode_once,
    dice,
    evaluate,
    find_samples,
    fit,
    load_predictor,
    make_loader,
    split_by_group,
    write_masks,
)
from unetlib.device import autocast, pick_device, pick_precision
from unetlib.model import build
from unetlib.support.feeding import FastLearner
from unetlib.support.speed import memory_kept
from unetlib.training import Learner, train

IMAGES, EPOCHS = 64, 2


class TextbookDataset(Dataset):
    """Decode in full, shrink, every time."""

    def __init__(self, samples, size):
        self.rows = list(zip(samples["image"], samples["mask"], strict=True))
        self.size = size

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        arrays = [
            np.asarray(Image.open(path).convert("L").resize((self.size, self.size)), np.float32)
            for path in self.rows[index]
        ]
        image, mask = (torch.from_numpy(array / 255)[None] for array in arrays)
        return image, (mask >= 0.5).float()


def seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def read(loader) -> None:
    for _ in loader:
        pass


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def repeated(dataset, times):
    dataset.images = np.concatenate([dataset.images] * times)
    dataset.coverage = np.concatenate([dataset.coverage] * times)
    dataset.samples = pd.concat([dataset.samples] * times, ignore_index=True)
    return dataset


def bench_data(full) -> None:
    """Decoding, cache, batches: 1918x1280 photos, 128x128 tensors."""
    with threads(1):
        naive = TextbookDataset(full, 128)
        one_by_one = seconds(lambda: [naive[row] for row in range(len(naive))]) / len(naive)
    once = seconds(lambda: decode_once(full, 128)) / len(full)
    print(f"naive decoding, one core: {1000 * one_by_one:.1f} ms an image and mask")
    print(f"cache build on {os.cpu_count()} cores: {one_by_one / once:.1f} times faster")
    many = 64 * len(full)  # more than one epoch's worth of reading
    with threads(1):
        for name in ("none", "flip", "mild"):
            dataset = repeated(CarvanaDataset(full, 128, augment=name, decode=decode_once), 64)
            loader = make_loader(dataset, 16, shuffle=True)
            read(loader)
            warm = min(seconds(lambda loader=loader: read(loader)) for _ in range(3)) / many
            print(
                f"warm batches, augment={name}, one core: {one_by_one / warm:.0f} times faster "
                f"than naive decoding ({1e6 * warm:.0f} us an image)"
            )


def textbook(samples, recipe):
    torch.manual_seed(recipe.seed)
    model = build(recipe).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    loss_of = torch.nn.BCEWithLogitsLoss()
    for _ in range(recipe.epochs):
        loader = DataLoader(TextbookDataset(samples, recipe.size), recipe.batch_size, shuffle=True)
        for images, masks in loader:
            optimizer.zero_grad()
            loss_of(model(images), masks).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def score(model, samples, size) -> float:
    dataset = CarvanaDataset(samples, size)
    logits = torch.cat([model(images) for images, _ in make_loader(dataset, 16)])
    return dice(logits > 0, torch.from_numpy(dataset.coverage[:, None] >= 128)).mean().item()


def bench_training(train, val) -> None:
    """`fit` against the textbook loop, both without what validation costs."""
    recipe = Recipe(epochs=EPOCHS, lr=1e-3)
    models = []
    plain = seconds(lambda: models.append(textbook(train, recipe)))
    for table in (train, val):
        decode_once(table, recipe.size)  # build the cache
    run = fit(recipe, train, val, retrain=True)
    val_set = CarvanaDataset(val, recipe.size, decode=decode_once)
    validation = seconds(lambda: evaluate(run.model(), val_set, loss=bce_loss)) * EPOCHS
    fast = run.seconds - validation
    print(f"textbook loop: {EPOCHS * len(train) / plain:.2f} images/s")
    print(f"fit ({run.device}, {run.precision}): {plain / fast:.2f} times the images/s")
    print(
        f"Dice after {EPOCHS} epochs: textbook {score(models[0], val, recipe.size):.3f}, "
        f"fit {score(run.model('last').cpu(), val, recipe.size):.3f}"
    )


def multiply_rate(device="cpu", precision="fp32") -> float:
    """The rate in GFLOP/s at which this machine multiplies matrices: the limit for any network."""
    device = torch.device(device)
    matrix = torch.rand(2048, 2048, device=device)
    with torch.inference_mode(), autocast(device, precision):
        matrix @ matrix
        fastest = min(seconds(lambda: (matrix @ matrix)[0, 0].item()) for _ in range(5))
    return 2 * 2048**3 / fastest / 1e9


def bench_arithmetic() -> None:
    """Training steps against the machine's own rate of matrix multiplication."""
    recipe = Recipe()
    learner = Learner(recipe, total_steps=1)
    example = torch.rand(16, 1, recipe.size, recipe.size)
    with FlopCounterMode(display=False) as counter:
        learner.step(example, (example > 0.5).float())
    work = counter.get_total_flops()
    with memory_kept(learner.device):
        step = min(seconds(lambda: learner.step(example, example)) for _ in range(4))
    rate = work / step / 1e9
    peak = multiply_rate(learner.device, learner.precision)
    print(
        f"a step computes {rate:.0f} GFLOP/s, {rate / peak:.0%} of this machine's matrix "
        f"multiplication ({peak:.0f} GFLOP/s, {learner.precision})"
    )


def limit(dataset, batch_size, compiled) -> float:
    """Images/s of steps alone, on the device."""
    device, steps = pick_device(), max(2, len(dataset) // batch_size)
    learner = FastLearner(Recipe(loss="bce_dice", compile=compiled), total_steps=1)
    held = [torch.from_numpy(one).to(device) for one in (dataset.images, dataset.coverage)]

    def step():
        rows = torch.randint(len(dataset), (batch_size,), device=device)
        images, masks = (one[rows].unsqueeze(1).float() / 255 for one in held)
        loss = learner.compute(images, (masks >= 0.5).float())
        learner.optimizer.zero_grad()
        loss.backward()
        learner.optimizer.step()
        return loss

    def steps_done():
        for _ in range(steps):
            loss = step()
        loss.item()

    with memory_kept(device):
        steps_done()
        return steps * batch_size / seconds(steps_done)


def epoch_rate(dataset, val_set, **settings) -> float:
    """Images/s of `fit`'s second epoch, augmented, with next to no validation."""
    learner = FastLearner(Recipe(epochs=2, loss="bce_dice", **settings), total_steps=1000)
    with memory_kept(learner.device):
        *_, row = train(learner, {128: dataset}, {128: val_set}, settings["batch_size"])
    return len(dataset) / row["seconds"]


def bench_limit(samples) -> None:
    """`fit`'s epochs against what the device gives the same net, eager and compiled."""
    gpu, one = pick_device().type == "cuda", CarvanaDataset(samples[:1], 128)
    mine = f"{torch.cuda.get_device_name() if gpu else pick_device()}, torch {torch.__version__}"
    print(f"{mine}, {pick_precision(pick_device())}: images/s and shares of the compiled limit")
    dataset = repeated(CarvanaDataset(samples, 128, augment="mild"), 32 if gpu else 1)
    compilers = [False] + [True] * (gpu or shutil.which("g++") is not None)
    for size in (16, 64, 256) if gpu else (16,):
        most = {compiled: limit(dataset, size, compiled) for compiled in compilers}
        for compiled in compilers:
            rate = epoch_rate(dataset, one, batch_size=size, augment="mild", compile=compiled)
            print(
                f"batch {size:3}, {'compiled' if compiled else 'eager':8}: steps alone "
                f"{most[compiled]:.1f}, fit {rate:.1f}, {rate / most[compiled]:.0%} of them, "
                f"{rate / max(most.values()):.0%} of what the device gives"
            )
    for precision in ("fp32", "bf16", "fp16") if gpu else ():
        rate = epoch_rate(dataset, one, batch_size=64, augment="mild", precision=precision)
        print(f"batch  64, eager, {precision}: fit {rate:.0f} images/s")
    whole = repeated(CarvanaDataset(samples[:1], 128, augment="mild"), 5088) if gpu else dataset
    learner = FastLearner(Recipe(augment="mild", batch_size=64, compile=gpu), 800)
    started = time.perf_counter()
    with memory_kept(learner.device):
        rows = train(learner, {128: whole}, {128: one}, 64)
        for _ in range(10 if gpu else 1):
            next(rows)
    taken = (time.perf_counter() - started) * (1 if gpu else 10 * 5088 / len(whole))
    print(f"10 epochs of 5,088 images at batch 64: {taken:.0f} s{' at this rate' * (not gpu)}")
    judged = repeated(CarvanaDataset(samples, 128), 8 if gpu else 1)
    evaluate(learner.model, judged, loss=learner.loss, rows=range(8))
    taken = seconds(lambda: evaluate(learner.model, judged, loss=learner.loss))
    print(f"validation, fp32: {len(judged) / taken:.1f} images/s")


def bench_photos(photo, home) -> None:
    """From files of 1918x1280 to masks of that size on the disk."""
    gpu = pick_device().type == "cuda"
    photos = [home / f"{number}.jpg" for number in range(256 if gpu else 16)]
    for one in photos:
        shutil.copyfile(photo, one)
    for precision in ("fp32", "auto"):
        predictor = load_predictor(precision=precision)
        taken = seconds(lambda one=predictor: write_masks(one, photos, home / one.precision))
        print(f"predict, {predictor.precision}: {len(photos) / taken:.1f} photos/s of 1918x1280")


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        os.environ["UNETLIB_HOME"] = home
        full = find_samples(REPOSITORY / "data" / "fullsize")
        if "limit" not in sys.argv:
            bench_data(full[full["mask"] != ""].reset_index(drop=True))
        train, val = split_by_group(find_samples(REPOSITORY / "data" / "sample"))
        if "limit" not in sys.argv:  # `python tests/bench_training.py limit`: the rest alone
            bench_training(train.sample(IMAGES, random_state=0), val.iloc[::4])
            bench_arithmetic()
        bench_limit(train.sample(2 * IMAGES, random_state=0))
        bench_photos(full["image"].iloc[0], Path(home))


if __name__ == "__main__":
    main()
