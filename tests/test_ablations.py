"""The committed table of ablations belongs to the recipes that `make ablations` trains."""

import json

import ablations
import pandas as pd
import pytest

from unetlib import Recipe

TABLE = pd.read_csv(ablations.CSV)
RECIPES = ablations.RECIPES | dict.fromkeys(ablations.SPLITS, ablations.REFERENCE)


def test_every_row_stands_there_with_three_seeds():
    seeds = TABLE.groupby("ablation", sort=False)["seed"].apply(list).to_dict()
    assert seeds == {name: list(ablations.SEEDS) for name in RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_a_row_names_the_recipe_that_was_trained(name):
    for settings in TABLE.loc[TABLE["ablation"] == name, "recipe"]:
        assert Recipe(**json.loads(settings)) == RECIPES[name]


def test_each_row_but_the_first_changes_the_reference_in_one_respect():
    reference = ablations.REFERENCE.changes
    for name, recipe in list(ablations.RECIPES.items())[2:]:
        changed = {setting for setting, _ in recipe.changes.items() ^ reference.items()}
        assert len(changed - {"lr"} or changed) == 1, name  # an optimizer brings its rate


def test_scores_are_scores_and_the_split_by_image_flatters():
    scores = TABLE[["own_val_dice", "unseen_dice", "fullsize_dice"]]
    assert ((scores > 0.3) & (scores < 1)).all(axis=None)
    by_image = TABLE[TABLE["ablation"] == "validation split by image"]
    assert (by_image["own_val_dice"] > by_image["unseen_dice"]).all()


def test_training_on_the_splits_never_sees_the_cars_it_is_judged_by():
    for name in ablations.SPLITS:
        train, val, unseen = ablations.tables(name, seed=0)
        assert not set(unseen["car"]) & (set(train["car"]) | set(val["car"]))
        assert not set(train["id"]) & set(val["id"])
        shared = set(train["car"]) & set(val["car"])
        assert bool(shared) == (name == "validation split by image")
