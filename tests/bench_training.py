"""How fast training is, as ratios within one run: `make bench` (some minutes; not part of CI).

Everything is compared with the plain textbook way on the same computer at the same time: decode
each file whenever it is asked for, fp32, default memory order, plain Adam.
"""

import os
import tempfile
import time
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from unetlib import (
    REPOSITORY,
    CarvanaDataset,
    Recipe,
    decode_once,
    dice,
    find_samples,
    fit,
    make_loader,
    split_by_group,
)
from unetlib.device import autocast
from unetlib.model import build
from unetlib.support.speed import memory_kept
from unetlib.training import Learner

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


def bench_data(full) -> None:
    """Decoding, cache, batches: 1918x1280 photos, 128x128 tensors."""
    with threads(1):
        naive = TextbookDataset(full, 128)
        one_by_one = seconds(lambda: [naive[row] for row in range(len(naive))]) / len(naive)
    once = seconds(lambda: decode_once(full, 128)) / len(full)
    print(f"naive decoding, one core: {1000 * one_by_one:.1f} ms an image and mask")
    print(f"cache build on {os.cpu_count()} cores: {one_by_one / once:.1f} times faster")
    many = full.loc[full.index.repeat(64)]  # more than one epoch's worth of reading
    with threads(1):
        for name in ("none", "flip", "mild"):
            dataset = CarvanaDataset(full, 128, augment=name, decode=decode_once)
            dataset.images = np.concatenate([dataset.images] * 64)
            dataset.coverage = np.concatenate([dataset.coverage] * 64)
            dataset.samples = many
            loader = make_loader(dataset, 16, shuffle=True)
            read(loader)
            warm = min(seconds(lambda loader=loader: read(loader)) for _ in range(3)) / len(many)
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
    validation = seconds(lambda: score(run.model(), val, recipe.size)) * EPOCHS
    fast = run.seconds - validation
    print(f"textbook loop: {EPOCHS * len(train) / plain:.2f} images/s")
    print(f"fit ({run.device}, {run.precision}): {plain / fast:.2f} times the images/s")
    print(
        f"Dice after {EPOCHS} epochs: textbook {score(models[0], val, recipe.size):.3f}, "
        f"fit {score(run.model('last'), val, recipe.size):.3f}"
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


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        os.environ["UNETLIB_HOME"] = home
        full = find_samples(REPOSITORY / "data" / "fullsize")
        bench_data(full[full["mask"] != ""].reset_index(drop=True))
        train, val = split_by_group(find_samples(REPOSITORY / "data" / "sample"))
        bench_training(train.sample(IMAGES, random_state=0), val.iloc[::4])
        bench_arithmetic()


if __name__ == "__main__":
    main()
