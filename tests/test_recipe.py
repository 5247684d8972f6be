import dataclasses
import json
from dataclasses import replace
from functools import partial
from importlib import import_module

import numpy as np
import pytest

from unetlib import Recipe, UNet, export_onnx, export_program, fit
from unetlib.model import build
from unetlib.recipe import BUILT_IN, LARGEST_SEED, OF_THE_UNET, TABLES, resolve

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
    ("name", "value"),
    [
        ("loss", "mse"),
        ("mask", "fuzzy"),
        ("up_kernel", 4),
        ("lr", 0),
        ("lr", float("nan")),
        ("epochs", 0),
        ("epochs", 2.5),
        ("epochs", "3"),
        ("batch_size", -1),
        ("batch_size", 1.5),
        ("batch_size", None),
        ("batch_size", "huge"),
        ("widths", ()),
        ("widths", (0, 4)),
        ("size", 126),
        ("size", 0),
        ("half_size_epochs", 11),
        ("half_size_epochs", -1),
        ("seed", 10**19),
        ("seed", -1),
        ("batch_norm", "no"),
        ("skips", 0),
        ("compile", None),
    ],
)
def test_an_impossible_setting_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        Recipe(**{name: value})


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        (dict(widths=(4, 8, 16, 32), size=20), 8),
        (dict(half_size_epochs=1, size=124), 4),
        (dict(half_size_epochs=1, size=129), 4),
        (dict(widths=(4,) * 6, size=32), 64),
        (dict(widths=(4,) * 6, size=64, half_size_epochs=1), 64),
    ],
    ids=str,
)
def test_a_size_that_does_not_fit_the_depth_is_refused_with_the_number_that_would(settings, least):
    with pytest.raises(ValueError, match=rf"\bsize={settings['size']}\b.* {least}\b"):
        Recipe(**settings)


SMALLEST = Recipe(widths=(2,) * 4, size=16, epochs=1, batch_size=1, seed=LARGEST_SEED)


@pytest.mark.fault(
    "image size and depth of the net leave one pixel on the lowest level, and a batch one image",
    "the recipe is refused; the smallest size that it takes trains",
)
def test_the_smallest_size_of_a_deep_net_trains(tables):
    with pytest.raises(ValueError, match="16"):
        replace(SMALLEST, size=8)
    assert fit(SMALLEST, *tables).finished


@pytest.mark.slow
def test_the_smallest_size_of_a_deep_net_is_exported(tmp_path):
    model = build(SMALLEST)
    export_program(model, tmp_path / "model.pt2", SMALLEST.size)
    export_onnx(model, tmp_path / "model.onnx", SMALLEST.size)


def test_a_recipe_cannot_be_changed_only_replaced():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPE.lr = 1
    assert replace(RECIPE, lr=1e-3).lr == 1e-3


def test_the_fast_recipe_takes_at_most_half_of_the_epochs():
    fast = Recipe.fast()
    assert fast.epochs <= Recipe().epochs / 2
    assert not set(OF_THE_UNET) & set(fast.changes)
    assert Recipe.fast(seed=7, lr=1e-3) == replace(fast, seed=7, lr=1e-3)


def test_changes_are_what_differs_from_the_baseline():
    assert Recipe().changes == {}
    assert replace(Recipe(), seed=3, loss="dice").changes == {"seed": 3, "loss": "dice"}


def test_progressive_resizing_starts_at_half_the_size():
    recipe = Recipe(epochs=4, half_size_epochs=3)
    assert [recipe.size_in(epoch) for epoch in (1, 2, 3, 4)] == [64, 64, 64, 128]
    assert Recipe().size_in(1) == 128


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


# ---------------------------------------------------------------------------------------- own code


def anything(*_):
    """Stands for a loss, an augmentation, a network, an optimizer or a schedule."""


@pytest.mark.parametrize("setting", BUILT_IN)
def test_a_name_a_registered_name_and_a_function_are_taken_alike(setting, monkeypatch):
    module, table = TABLES[setting].split(".")
    registry = getattr(import_module(f"unetlib.{module}"), table)
    assert tuple(registry) == BUILT_IN[setting]  # the command line offers these
    for name in BUILT_IN[setting]:
        assert resolve(setting, getattr(Recipe(**{setting: name}), setting)) is registry[name]
    with pytest.raises(ValueError, match=f"{setting}='mine'"):
        Recipe(**{setting: "mine"})
    monkeypatch.setitem(registry, "mine", anything)
    assert resolve(setting, Recipe(**{setting: "mine"}).__dict__[setting]) is anything
    assert resolve(setting, Recipe(**{setting: anything}).__dict__[setting]) is anything
    for wrong in (3, None, ["bce"]):
        with pytest.raises(ValueError, match=f"{setting}="):
            Recipe(**{setting: wrong})


def test_the_settings_of_the_unet_belong_to_the_unet():
    with pytest.raises(ValueError, match="widths"):
        Recipe(network=partial(UNet, widths=(4, 8)), widths=(4, 8))
    assert Recipe(network=partial(UNet, widths=(4, 8)), size=30).stride == 1


def test_a_network_is_made_by_a_function_and_not_given():
    with pytest.raises(ValueError, match="network"):
        Recipe(network=UNet(widths=(2, 4)))


def test_size_may_be_height_and_width():
    recipe = Recipe(size=(96, 64), epochs=2, half_size_epochs=1)
    assert [recipe.size_in(epoch) for epoch in (1, 2)] == [(48, 32), (96, 64)]
    assert Recipe(size=np.array([64, 64])) == Recipe(size=64)
    for wrong in ((96, 66), (96, 0), (96, 64, 32), "96x64"):
        with pytest.raises(ValueError, match="size="):
            Recipe(size=wrong)


@pytest.mark.parametrize("patience", [0, -1, 1.5, "3"])
def test_patience_is_a_number_of_epochs(patience):
    with pytest.raises(ValueError, match="patience"):
        Recipe(patience=patience)
    assert Recipe(patience=np.int64(2)) == Recipe(patience=2)
