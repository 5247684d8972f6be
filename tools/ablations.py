"""Which choice is worth what: `make ablations` trains each one again, three seeds, 64x64 pixels.

Writes notebooks/ablations.csv, which notebook 04 shows. All runs are kept in runs/, so that it goes
on where it was stopped. About 20 minutes on two cores without a GPU.
"""

import argparse
import datetime
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd

from unetlib import (
    REPOSITORY,
    CarvanaDataset,
    Recipe,
    dice,
    evaluate,
    find_samples,
    fit,
    load_mask,
    load_predictor,
    split_by_group,
)
from unetlib.store.runs import Run
from unetlib.support.files import whole_file
from unetlib.support.profile import PROFILES

CSV = REPOSITORY / "notebooks" / "ablations.csv"
SEEDS = (0, 1, 2)
# A quarter of the channels and half of the side, so that a run takes about half a minute.
BASELINE = Recipe(widths=(16, 32, 64), size=64, precision="fp32")
# All rows after it change this one in a single respect.
REFERENCE = replace(BASELINE, schedule="one_cycle", lr=3e-3)
RECIPES = {
    "baseline recipe": BASELINE,
    "reference: one-cycle, lr 3e-3": REFERENCE,
    "constant, lr 3e-3": replace(REFERENCE, schedule="constant"),
    "no skip connections": replace(REFERENCE, skips=False),
    "no batch norm": replace(REFERENCE, batch_norm=False),
    "AdamW": replace(REFERENCE, optimizer="adamw"),
    "Muon, lr 0.05": replace(REFERENCE, optimizer="muon", lr=0.05),
    "batches of 4": replace(REFERENCE, batch_size=4),
    "BCE + Dice": replace(REFERENCE, loss="bce_dice"),
    "soft masks": replace(REFERENCE, mask="soft"),
    "mild augmentation": replace(REFERENCE, augment="mild"),
    "mild, random backgrounds": replace(REFERENCE, augment="backgrounds"),
    "half of the epochs": replace(REFERENCE, epochs=5),
    "first 6 epochs at half size": replace(REFERENCE, half_size_epochs=6),
}
SPLITS = ("validation split by car", "validation split by image")


def fullsize_dice(run: Run, samples: pd.DataFrame) -> float:
    """Mean Dice at the photos' own size."""
    predictor = load_predictor(run.checkpoint)
    scores = [
        dice(predictor.predict_mask(image), load_mask(mask)).item()
        for image, mask in zip(samples["image"], samples["mask"], strict=True)
    ]
    return sum(scores) / len(scores)


def tables(name: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Images to train on, to choose the best epoch by, and of unseen cars to judge by."""
    train, unseen = split_by_group(find_samples(REPOSITORY / "data" / "sample"))
    train = PROFILES["laptop"].thin(train)
    if name not in SPLITS:
        return train, unseen, unseen
    by_car = split_by_group(train, fraction=0.25, seed=seed)
    if name == SPLITS[0]:
        return *by_car, unseen
    val = train.sample(len(by_car[1]), random_state=seed)
    return train.drop(val.index), val, unseen


def measure(name: str, recipe: Recipe, seed: int) -> dict:
    """A row of the table."""
    train, val, unseen = tables(name, seed)
    run = fit(replace(recipe, seed=seed), train, val)
    scores = evaluate(run.model(), CarvanaDataset(unseen, recipe.size))
    return dict(
        ablation=name,
        seed=seed,
        own_val_dice=round(run.best_dice, 4),
        unseen_dice=round(float(scores["dice"].mean()), 4),
        fullsize_dice=round(fullsize_dice(run, unseen), 4),
        train_images=len(train),
        recipe=json.dumps(recipe.changes),
        data="data/sample, every second training angle",
        date=datetime.date.today().isoformat(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=CSV)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    recipes = RECIPES | dict.fromkeys(SPLITS, REFERENCE)
    rows = [measure(*item, seed) for item in recipes.items() for seed in arguments.seeds]
    table = pd.DataFrame(rows)
    with whole_file(arguments.output) as part:
        table.to_csv(part, index=False)
    print(table.groupby("ablation", sort=False)[["unseen_dice", "fullsize_dice"]].mean().round(4))


if __name__ == "__main__":
    main()
