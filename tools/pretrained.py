"""`make pretrained`: train the weights of data/pretrained anew, export them, and write their card.

Further cars are rendered into build/further first (see data/README.md), then `Recipe.best()` is
trained for every seed; the seed with the best Dice on the validation cars is exported. All runs are
kept in runs/, so that it goes on where it was stopped. Hours on two cores without a GPU.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from ablations import fullsize_dice

from unetlib import (
    FILES,
    REPOSITORY,
    CarvanaDataset,
    Recipe,
    count_parameters,
    decode_once,
    evaluate,
    export_all,
    find_samples,
    fit,
    load_predictor,
    score,
    split_by_group,
    write_submission,
)
from unetlib.deploy.manifest import write_manifest
from unetlib.store.runs import Run

STUDIO = REPOSITORY / "data" / "studio" / "render.py"
VIEWS = dict(front=(16, 1, 2), rear=(8, 9, 10), side=(4, 5, 6, 12, 13, 14), corner=(3, 7, 11, 15))
SHIPPED = ("pytorch", "int8")


def render(folder: Path, cars: int, jobs: int = 2) -> pd.DataFrame:
    """The sample table of so many further cars, rendered where they are missing."""
    command = [sys.executable, STUDIO, "--further", str(cars), "--out", folder]
    split = [["--first", str(first), "--stride", str(jobs)] for first in range(jobs)]
    if len([*folder.glob("train_masks/*.gif")]) < 4 * cars:
        processes = [subprocess.Popen([*command, *part]) for part in split]
        if sum(process.wait() for process in processes):
            sys.exit(f"{STUDIO}: failed; see 'Again from the seed' in data/README.md.")
    return find_samples(folder)


def by_view(table: pd.DataFrame) -> pd.Series:
    """Mean Dice per view of a table with columns angle and dice."""
    names = {angle: view for view, angles in VIEWS.items() for angle in angles}
    return table.groupby(table["angle"].map(names))["dice"].mean()[[*VIEWS]]


def judge(run: Run, real: Path | None) -> dict:
    """Dice of a run's model: on the validation cars and, if there are any, on real ones."""
    found = dict(seed=run.recipe.seed, validation=run.best_dice, minutes=run.seconds / 60)
    if real is not None:
        samples = find_samples(real)
        samples = samples[samples["mask"] != ""].reset_index(drop=True)
        table = evaluate(run.model(), CarvanaDataset(samples, run.recipe.size, decode=decode_once))
        found |= dict(real=table["dice"].mean(), **by_view(table))
        found["full size"] = fullsize_dice(run, samples)
        found |= table.groupby("car")["dice"].mean().rename(lambda car: f"car {car[:4]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="default: as many as Recipe.best() has")
    parser.add_argument("--size", type=int, default=128, help="smaller only to try this out")
    parser.add_argument("--cars", type=int, default=100, help="how many further cars (0: none)")
    parser.add_argument("--further", type=Path, default=REPOSITORY / "build" / "further")
    parser.add_argument("--real", type=Path, help="real cars in Carvana's layout, only judged by")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "data" / "pretrained")
    choice = parser.parse_args()
    samples = find_samples(REPOSITORY / "data" / "sample")
    train, val = split_by_group(samples)
    tables = [train, render(choice.further, choice.cars)] if choice.cars else [train]
    train = pd.concat(tables, ignore_index=True)
    given = dict(size=choice.size) | ({} if choice.epochs is None else dict(epochs=choice.epochs))
    runs = [fit(Recipe.best(seed=seed, **given), train, val) for seed in choice.seeds]
    seeds = pd.DataFrame([judge(run, choice.real) for run in runs]).set_index("seed")
    best = max(runs, key=lambda run: run.best_dice)

    test, scores = samples[samples["mask"] == ""], {}
    choice.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=choice.out, prefix=".export-") as folder:
        export_all(best, folder, train=train, val=val)
        for kind in SHIPPED:
            file = Path(folder, FILES[kind])
            predictor, submission = load_predictor(file, device="cpu"), Path(folder, "solved.csv")
            write_submission(predictor, test["image"], submission)
            scores[kind] = score(submission)["dice"].mean()
            shutil.move(file, choice.out / file.name)
    write_manifest(choice.out)
    write_card(choice.out / "README.md", best, seeds, scores, choice.cars)
    print(seeds.round(4).to_string())


CARD = """# Model card: the weights that come with the repository

`unet_model.pth` ({bytes[pytorch]:.1f} MB) and `unet_model_int8.onnx` ({bytes[int8]:.1f} MB) are of
one training, of the course's U-Net: {parameters:,} parameters, 1x{size}x{size} grey in, one logit
per pixel out. `predict`, `load_predictor()` and `Recipe(start_from="pretrained")` use it. Written
by `make pretrained` (`tools/pretrained.py`), figures and all.

**Trained on** {images} rendered pictures alone: the training cars of `data/sample` (not its
validation cars){further}.
No photograph and no mask of `data/solution` was used to train it, or to choose the epoch or the
seed: the validation cars did that. The recipe as such (augmentation, optimizer, steps) was chosen
by looking at six real cars as well; nothing was trained on those.

**Recipe:** `Recipe.best(...)`, which changes the baseline in

    {recipe}

**Machine:** {machine}; {precision}; {minutes:.0f} minutes.

| seed | {columns} |
|---|{lines}|
{rows}

Dice, means over pictures, at {size}x{size} with hard masks; minutes by the clock,
whatever else ran.{real}

**Hidden solution** (128 pictures of eight cars, `data/solution`, at the pictures' own size):
Dice {scores[pytorch]:.4f} with fp32, {scores[int8]:.4f} with int8.

## What each choice is worth

How the recipe was found: trained on the 416 training pictures of `data/sample` for 15 epochs at
64x64, widths 32-64-128; Dice at 64x64 on six real cars and on the rendered validation cars, mean
and standard deviation over three seeds (without one: a single seed, so that 0.003 says little).

| changed | real | rendered |
|---|---|---|
| nothing: AdamW, lr 3e-3, `mild`, batches of 8 | 0.957 ± 0.001 | 0.976 |
| batches of 4 | 0.963 ± 0.001 | 0.979 |
| batches of 16 | 0.951 ± 0.000 | 0.972 |
| random grounds (`backgrounds`) | 0.960 ± 0.002 | 0.974 |
| three random rectangles behind the car | 0.959 ± 0.002 | 0.974 |
| both, or light that falls off behind the car | 0.960, 0.959 | 0.973, 0.976 |
| both, and turned, shifted and scaled | 0.951 ± 0.002 | 0.969 |
| moving average of the weights (0.99) | 0.958 | 0.975 |
| Muon, lr 0.02 | 0.968 | 0.983 |
| Muon, lr 0.02, `backgrounds` | 0.972 | 0.983 |
| Muon, lr 0.05 | 0.971 ± 0.001 | 0.984 |
| **Muon, lr 0.05, `backgrounds`** | **0.974 ± 0.001** | **0.984** |
| the same, half of it further cars | 0.974 ± 0.001 | 0.985 |
| the same, batches of 4 | 0.974 | 0.984 |
| the same, lr 0.1 | 0.971 | 0.984 |

## What it cannot do

- **Streets, gardens, crowds.** It has seen one car in the middle of a booth, wall behind and floor
  below. Before anything else it marks whatever is rich in detail (notebook 06, section 10).
- **Other cameras:** views from above or from near by, cars cut off by the frame, several cars.
- **Anything that is no car**, though it may well find the only thing on a plain ground.
- Fine parts: aerials and mirrors fade at {size}x{size}; edges are as smooth as enlarged maps are.

A few pictures of your own with masks go a long way: `Recipe.few()`. Tried with real cars, of which
nothing is shipped; Dice on three others, at 128x128 and at the photos' own size:

| trained on (16 photos each) | `few` | from scratch, the same steps (lr 0.05) |
|---|---|---|
| 1 car | 0.988, 0.987 | 0.913, 0.914 |
| 2 cars | 0.989, 0.988 | 0.924, 0.923 |
| 3 cars | 0.990, 0.988 | 0.978, 0.978 |

Licence: CC0 1.0, as the pictures it was trained on.
"""


FURTHER = """ and {cars} further cars with four views each, which `data/studio` draws
from its seed"""
REAL = """ *real*: photographs of {real_cars} cars, which are
not part of the repository, and the same by view and by car; *full size*: their probabilities
enlarged to the photo's own size and thresholded then."""


def write_card(path: Path, run: Run, seeds: pd.DataFrame, scores: dict, cars: int) -> None:
    """The model card: where the weights come from, what they reach, what they cannot do."""
    size = run.recipe.size
    table = seeds.round(dict(minutes=0)).map("{:.4g}".format)
    settings = ", ".join(f"{name}={value!r}" for name, value in run.recipe.changes.items())
    facts = dict(recipe=settings, size=size, scores=scores)
    facts |= dict(further=FURTHER.format(cars=cars) if cars else "")
    real_cars = sum(column.startswith("car ") for column in table.columns)
    facts |= dict(real=REAL.format(real_cars=real_cars) if real_cars else "")
    facts |= dict(minutes=run.seconds / 60, precision=run.precision)
    facts |= dict(images=run.details["train_images"])
    facts |= dict(parameters=count_parameters(run.model()), machine=machine())
    facts |= dict(
        bytes={kind: (path.parent / FILES[kind]).stat().st_size / 1e6 for kind in SHIPPED}
    )
    facts |= dict(columns=" | ".join(table.columns), lines="|".join(["---"] * len(table.columns)))
    rows = (f"| {seed} | " + " | ".join(values) + " |" for seed, values in table.T.items())
    path.write_text(CARD.format(rows="\n".join(rows), **facts))


def machine() -> str:
    """What trained here, in words."""
    flags = torch.backends.cpu.get_cpu_capability()
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores, {flags} ({platform.machine()})"


if __name__ == "__main__":
    main()
