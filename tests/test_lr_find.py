from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from unetlib import Recipe, TrainingError, lr_find

RECIPE = Recipe(widths=(4, 8), size=32, lr=1e-2, precision="fp32")


def test_the_rate_rises_evenly_on_a_logarithmic_axis(tables):
    table = lr_find(RECIPE, tables[0], lowest=1e-5, highest=1e-2, steps=12)
    ratios = table["lr"].to_numpy()[1:] / table["lr"].to_numpy()[:-1]
    assert len(table) == 12
    assert table["lr"].iloc[[0, -1]].tolist() == pytest.approx([1e-5, 1e-2])
    assert ratios == pytest.approx(ratios[0])


def test_it_ends_where_the_loss_explodes(tables):
    table = lr_find(replace(RECIPE, batch_norm=False), tables[0], highest=1e6, steps=60)
    assert 10 < len(table) < 60
    assert np.isfinite(table).all(axis=None)


def test_it_ends_where_the_loss_is_several_times_the_least(tables):
    table = lr_find(replace(RECIPE, batch_norm=False), tables[0], highest=1e3, steps=60)
    assert len(table) < 60
    assert table["smoothed"].iloc[-1] > 4 * table["smoothed"].min()
    assert (table["smoothed"].iloc[:-1] <= 4 * table["smoothed"].cummin().iloc[:-1]).all()


@pytest.mark.fault("a range test that begins too high", "an error names the setting to lower")
def test_a_loss_that_explodes_at_once_is_an_error(tables):
    recipe = replace(RECIPE, batch_norm=False)
    with pytest.raises(TrainingError, match="lowest="):
        lr_find(recipe, tables[0], lowest=1e6, highest=1e8, steps=5)


def test_it_is_repeatable_and_leaves_the_random_state_alone(tables):
    before = torch.get_rng_state()
    recipe = replace(RECIPE, augment="mild", schedule="one_cycle", batch_size="auto")
    first = lr_find(recipe, tables[0], steps=5)
    pd.testing.assert_frame_equal(lr_find(recipe, tables[0], steps=5), first)
    assert torch.equal(torch.get_rng_state(), before)
