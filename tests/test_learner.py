import ctypes
import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from unetlib import Recipe, UNet, bce_loss, lr_find, steepest_lr
from unetlib.support.processes import settle_batch_size, start_accelerator
from unetlib.support.speed import memory_kept
from unetlib.training import Learner

RECIPE = Recipe(widths=(4, 8), size=32, lr=1e-2, precision="fp32")


def batch(size=32, count=4):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, size, size, generator=generator)
    return images, (images > 0.5).float()


def test_a_step_is_the_textbook_step():
    images, masks = batch()
    learner = Learner.begin(RECIPE, RECIPE.lr, 1, start_accelerator())
    model = UNet(**RECIPE.network)
    optimizer = torch.optim.Adam(model.parameters(), lr=RECIPE.lr)
    for _ in range(3):
        loss = bce_loss(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert learner.step(images, masks) == pytest.approx(loss.item(), abs=1e-5)


def test_the_schedule_moves_with_every_step():
    recipe = replace(RECIPE, schedule="one_cycle", epochs=2)
    learner = Learner.begin(recipe, recipe.lr, 5, start_accelerator())
    rates = []
    for _ in range(9):
        rates.append(learner.optimizer.param_groups[0]["lr"])
        learner.step(*batch())
    assert max(rates) == pytest.approx(recipe.lr, rel=0.1)
    assert rates[0] < rates[1] and rates[-1] < rates[-2]


def test_bf16_takes_channels_last_and_keeps_weights_and_loss_in_fp32():
    recipe = replace(RECIPE, precision="bf16")
    learner = Learner.begin(recipe, recipe.lr, 1, start_accelerator())
    assert next(learner.model.parameters()).dtype == torch.float32
    weight = learner.model.encoders[0].layers[3].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert np.isfinite(learner.step(*batch()))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_learns_the_same():
    images, masks = batch()
    plain, compiled = (
        Learner.begin(replace(RECIPE, compile=each), RECIPE.lr, 1, start_accelerator())
        for each in (False, True)
    )
    for _ in range(3):
        assert compiled.step(images, masks) == pytest.approx(plain.step(images, masks), abs=1e-4)
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())


# ------------------------------------------------------------------------------------ batch size


def test_auto_is_16_where_memory_cannot_be_probed():
    accelerator = start_accelerator()
    if accelerator.device.type == "cuda":
        pytest.skip("this computer has a GPU, where the size is probed")
    automatic = replace(RECIPE, batch_size="auto")
    assert settle_batch_size(automatic, 5000, accelerator) == (16, RECIPE.lr)
    assert settle_batch_size(replace(RECIPE, batch_size=3), 5000, accelerator) == (3, RECIPE.lr)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_leaves_20_steps_an_epoch_on_a_gpu_and_scales_the_rate():
    automatic = replace(RECIPE, batch_size="auto")
    batch_size, lr = settle_batch_size(automatic, 4070, start_accelerator())
    assert batch_size == 128
    assert lr == pytest.approx(RECIPE.lr * 8**0.5)


# ------------------------------------------------------------------------- learning-rate range test


def test_lr_find_raises_the_rate_evenly_on_a_logarithmic_axis(tables):
    table = lr_find(RECIPE, tables[0], lowest=1e-5, highest=1e-2, steps=12)
    ratios = table["lr"].to_numpy()[1:] / table["lr"].to_numpy()[:-1]
    assert len(table) == 12
    assert table["lr"].iloc[[0, -1]].tolist() == pytest.approx([1e-5, 1e-2])
    assert ratios == pytest.approx(ratios[0])


def test_lr_find_ends_where_the_loss_explodes(tables):
    table = lr_find(replace(RECIPE, batch_norm=False), tables[0], highest=1e6, steps=60)
    assert 10 < len(table) < 60
    assert np.isfinite(table).all(axis=None)


def test_lr_find_is_repeatable_and_leaves_the_random_state_alone(tables):
    before = torch.get_rng_state()
    recipe = replace(RECIPE, augment="mild", schedule="one_cycle")
    first = lr_find(recipe, tables[0], steps=5)
    pd.testing.assert_frame_equal(lr_find(recipe, tables[0], steps=5), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_steepest_is_where_the_smoothed_loss_falls_fastest():
    lr = np.logspace(-5, 0, 51)
    loss = 1 - 1 / (1 + np.exp(-4 * np.log10(lr / 1e-3)))
    found = steepest_lr(pd.DataFrame(dict(lr=lr, loss=loss, smoothed=loss)))
    assert found == pytest.approx(1e-3)


# ------------------------------------------------------------------------------------------ memory


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)
def test_freed_memory_is_kept_inside_the_block_and_returned_after_it():
    resident = psutil.Process().memory_info
    before, size = resident().rss, 400_000_000
    with memory_kept(torch.device("cpu")):
        tensor = torch.ones(size // 4)
        del tensor
        assert resident().rss > before + size / 2
    assert resident().rss < before + size / 4
