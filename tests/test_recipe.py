import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest

from unetlib.config import PROFILES
from unetlib.export import export_onnx, export_program
from unetlib.recipe import LARGEST_SEED, Recipe
from unetlib.training import fit

RECIPE = Recipe(widths=(4, 8), size=32)


def test_the_default_is_the_baseline_recipe():
    recipe = Recipe()
    assert (recipe.optimizer, recipe.lr, recipe.loss, recipe.schedule) == (
        "adam",
        1e-4,
        "bce",
        "constant",
    )
    assert (recipe.epochs, recipe.batch_size, recipe.size, recipe.seed) == (10, 16, 128, 0)
    assert (recipe.mask, recipe.augment, recipe.widths) == ("hard", "none", (64, 128, 256))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "mse"}, "loss='mse' is unknown: use one of 'bce', 'dice', 'bce_dice'"),
        ({"optimizer": "sgd"}, "optimizer='sgd' is unknown"),
        ({"schedule": "cosine"}, "schedule='cosine' is unknown"),
        ({"mask": "fuzzy"}, "mask='fuzzy' is unknown"),
        ({"augment": "wild"}, "augment='wild' is unknown"),
        ({"up_kernel": 4}, "up_kernel=4 is unknown"),
        ({"precision": "fp16"}, "precision='fp16' is unknown"),
        ({"lr": 0}, "lr=0.0 must be above 0"),
        ({"lr": float("nan")}, "lr=nan must be above 0"),
        ({"epochs": 0}, "epochs=0 must be above 0"),
        ({"batch_size": -1}, "batch_size=-1 must be above 0"),
        ({"size": 126}, "size=126 must be a multiple of 4"),
        ({"size": 0}, "size=0 must be a multiple of 4"),
        ({"size": 20, "widths": (4, 8, 16, 32)}, "size=20 must be a multiple of 8"),
        ({"batch_size": "huge"}, "batch_size='huge': give a whole number or 'auto'"),
        ({"batch_size": 1.5}, "batch_size=1.5: give a whole number or 'auto'"),
        ({"epochs": 2.5}, "epochs=2.5: give a whole number"),
        ({"epochs": "3"}, "epochs='3': give a whole number"),
        ({"widths": ()}, "widths=.* must name one or more"),
        ({"widths": (0, 4)}, "widths=.* must name one or more"),
        ({"size": 6, "widths": (4, 8)}, "size=6 must be a multiple of 4"),
        ({"half_size_epochs": 11}, "half_size_epochs=11 must be between 0 and epochs=10"),
        ({"half_size_epochs": -1}, "half_size_epochs=-1 must be between 0 and epochs=10"),
        ({"half_size_epochs": 1, "size": 124}, "half of size=124 must be a multiple of 4"),
        (
            {"size": 32, "widths": (4,) * 6},
            "size=32 leaves one pixel .* at least 64, or give fewer",
        ),
        (
            {"size": 64, "widths": (4,) * 6, "half_size_epochs": 1},
            "half of size=64 leaves one pixel below 6 widths: it must be at least 64",
        ),
        ({"seed": 10**19}, "seed=10000000000000000000 must be between 0 and 10"),
        ({"seed": -1}, "seed=-1 must be between 0 and 10"),
        ({"batch_norm": "no"}, "batch_norm='no': give True or False"),
        ({"skips": 0}, "skips=0: give True or False"),
        ({"compile": None}, "compile=None: give True or False"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


@pytest.mark.fault(
    "image size and depth of the net leave one pixel on the lowest level, and a batch one image",
    "the recipe is refused; the smallest size that it takes trains and is exported",
)
def test_the_smallest_size_of_a_deep_net_trains_and_is_exported(tables, tmp_path):
    with pytest.raises(ValueError, match="must be at least 16"):
        Recipe(widths=(2,) * 4, size=8)
    recipe = Recipe(widths=(2,) * 4, size=16, epochs=1, batch_size=1, seed=LARGEST_SEED)
    run = fit(recipe, *tables)
    model, size, threshold = run.model(), recipe.size, 0.5
    export_program(model, tmp_path / "model.pt2", size, threshold)
    export_onnx(model, tmp_path / "model.onnx", size, threshold)


def test_a_recipe_cannot_be_changed_only_replaced():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPE.lr = 1
    assert replace(RECIPE, lr=1e-3).lr == 1e-3


def test_the_fast_recipe_takes_at_most_half_of_the_epochs():
    fast = Recipe.fast()
    assert fast.epochs <= Recipe().epochs / 2
    assert fast.network == Recipe().network
    assert Recipe.fast(seed=7, lr=1e-3) == replace(fast, seed=7, lr=1e-3)


def test_changes_are_what_differs_from_the_baseline():
    assert Recipe().changes == {}
    assert replace(Recipe(), seed=3, loss="dice").changes == {"seed": 3, "loss": "dice"}


def test_progressive_resizing_starts_at_half_the_size():
    recipe = Recipe(epochs=4, half_size_epochs=3)
    assert [recipe.size_in(epoch) for epoch in (1, 2, 3, 4)] == [64, 64, 64, 128]
    assert Recipe().size_in(1) == 128


def test_the_ci_profile_shortens_the_fast_recipe_and_leaves_its_rate():
    scaled = PROFILES["ci"].scale(Recipe.fast())
    assert scaled.lr == Recipe.fast().lr
    assert 0 < scaled.half_size_epochs < scaled.epochs


def test_numbers_of_numpy_become_plain_ones():
    recipe = Recipe(
        epochs=np.int64(3),
        batch_size=np.int64(8),
        widths=np.array([4, 8]),
        lr=np.float64(1e-4),
        skips=np.bool_(True),
    )
    assert type(recipe.lr) is float and recipe.skips is True
    assert json.dumps(dataclasses.asdict(recipe))
    assert recipe == Recipe(epochs=3, batch_size=8, widths=(4, 8))
