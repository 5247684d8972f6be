"""The lesson's training loop: one step, one epoch, no disk."""

import re
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from unetlib import (
    LOSSES,
    CarvanaDataset,
    Recipe,
    TrainingError,
    bce_loss,
    evaluate,
    make_loader,
    runs_dir,
)
from unetlib.model import build
from unetlib.support.feeding import FastLearner
from unetlib.training import Learner, train

RECIPE = Recipe(widths=(4, 8), size=32, lr=1e-2, epochs=3, batch_size=5, precision="fp32")
CPU, PRECISIONS = torch.device("cpu"), ("fp32", "fp16")


@pytest.fixture(scope="module")
def sets(tables):
    return tuple({32: CarvanaDataset(table, 32)} for table in tables[:2])


def batch(size=32, count=4):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, size, size, generator=generator)
    return images, (images > 0.5).float()


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


# ------------------------------------------------------------------------------------------ a step


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_is_the_textbook_step_and_gives_the_sum_of_the_losses(loss):
    images, masks = batch()
    learner = Learner(replace(RECIPE, loss=loss), total_steps=3, device=CPU)
    model = build(RECIPE)
    optimizer = torch.optim.Adam(model.parameters(), lr=RECIPE.lr)
    for _ in range(3):
        mean = LOSSES[loss](model(images), masks)
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
        assert learner.step(images, masks) == pytest.approx(4 * mean.item(), abs=1e-4)


def test_a_weight_multiplies_the_gradient():
    gradients = []
    for weight in (1.0, 0.5):
        learner = Learner(RECIPE, total_steps=1, device=CPU)
        learner.step(*batch(), weight)
        gradients.append(learner.model.head.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0] / 2)


def test_the_rate_may_be_another_than_the_recipes():
    assert Learner(RECIPE, 1).optimizer.param_groups[0]["lr"] == RECIPE.lr
    assert Learner(RECIPE, 1, lr=0.5).optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_the_recipe_names_the_optimizer(name, kind):
    assert type(Learner(replace(RECIPE, optimizer=name), 1).optimizer) is kind


def test_one_cycle_moves_with_every_step_over_the_whole_run():
    recipe = replace(RECIPE, schedule="one_cycle")
    learner = Learner(recipe, total_steps=10, device=CPU)
    rates = []
    for _ in range(9):
        rates.append(learner.optimizer.param_groups[0]["lr"])
        learner.step(*batch())
    assert max(rates) == pytest.approx(recipe.lr, rel=0.1)
    assert rates[0] < rates[1] and rates[-1] < rates[-2]


def test_bf16_takes_channels_last_and_keeps_weights_and_loss_in_fp32():
    learner = Learner(replace(RECIPE, precision="bf16"), 1, device=CPU)
    weight = learner.model.encoders[0].layers[3].weight
    assert weight.dtype == torch.float32
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert np.isfinite(learner.step(*batch()))


def test_fp16_multiplies_the_loss_so_that_small_gradients_are_none_the_smaller():
    plain, half = (Learner(replace(RECIPE, precision=one), 3, device=CPU) for one in PRECISIONS)
    for _ in range(3):
        losses = [each.step(*batch()) for each in (plain, half)]
        assert losses[1] == pytest.approx(losses[0], abs=0.05)
    assert half.scaler.get_scale() > 1 and not plain.scaler.is_enabled()
    weights = [each.model.head.weight for each in (plain, half)]
    assert weights[1].dtype == torch.float32
    torch.testing.assert_close(weights[1], weights[0], atol=0.01, rtol=0)


def test_a_gradient_that_leaves_fp16_changes_no_weight():
    learner = Learner(replace(RECIPE, precision="fp16"), 1, device=CPU)
    before = learner.model.head.weight.clone()
    learner.step(*batch(), weight=1e9)
    assert torch.equal(learner.model.head.weight, before)
    learner.step(*batch())
    assert not torch.equal(learner.model.head.weight, before)


def test_auto_precision_becomes_one_of_those_there_are():
    assert Learner(replace(RECIPE, precision="auto"), 1).precision in ("fp32", "bf16", "fp16")


@pytest.mark.fault("the loss is not a number, or explodes", "an error names the learning rate")
@pytest.mark.parametrize(
    ("batch_norm", "lr", "loss"), [(True, 1e15, "nan"), (False, 3e3, r"\d")], ids=["nan", "number"]
)
def test_a_loss_that_explodes_is_an_error_that_names_rate_and_loss(sets, batch_norm, lr, loss):
    learner = Learner(replace(RECIPE, batch_norm=batch_norm), 12, lr=lr, device=CPU)
    with pytest.raises(TrainingError, match=rf" {loss}.* learning rate .*{re.escape(f'{lr:.2g}')}"):
        list(train(learner, *sets, batch_size=4))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_learns_the_same():
    plain, compiled = (FastLearner(replace(RECIPE, compile=each), 3) for each in (False, True))
    for count in (4, 4, 3, 4):
        losses = [each.step(*batch(count=count)) for each in (compiled, plain)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())


def test_the_last_smaller_batch_is_not_compiled_anew(sets, monkeypatch):
    """16 images in batches of 5, in three epochs: one graph, of network and loss together."""
    graphs = []

    def note(graph, _):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=note))
    rows = list(train(FastLearner(replace(RECIPE, compile=True), 12, device=CPU), *sets, 5))
    plain = list(train(Learner(RECIPE, 12, device=CPU), *sets, 5))
    assert len(graphs) == 1
    assert rows[-1]["train_loss"] == pytest.approx(plain[-1]["train_loss"], abs=1e-4)


# -------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize("loss", LOSSES)
def test_validation_gives_the_means_over_the_images(sets, loss):
    learner = Learner(replace(RECIPE, loss=loss), 1, device=CPU)
    scores = evaluate(learner.model, sets[1][32], loss=LOSSES[loss])
    assert learner.validate(sets[1][32]) == {
        "val_loss": scores["loss"].mean(),
        "val_dice": scores["dice"].mean(),
        "val_iou": scores["iou"].mean(),
    }


def test_where_some_masks_are_empty_the_dice_of_the_others_is_given_too(tables):
    learner, val_set = Learner(RECIPE, 1, device=CPU), CarvanaDataset(tables[1], 32)
    val_set.coverage[[0, 2]] = 127  # no pixel is half covered
    row, table = learner.validate(val_set), evaluate(learner.model, val_set)
    assert row["val_dice"] == table["dice"].mean()
    assert row["val_dice_objects"] == table["dice"][[1, 3]].mean() != row["val_dice"]
    val_set.coverage[:] = 0
    assert np.isnan(learner.validate(val_set)["val_dice_objects"])


@pytest.mark.fault("the validation loss is not a number", "an error names the learning rate")
def test_a_validation_loss_that_is_not_a_number_is_an_error(sets):
    """Training uses a batch's own statistics, validation the running ones."""
    learner = Learner(RECIPE, 4, device=CPU)
    learner.model.encoders[0].layers[1].running_mean.fill_(float("nan"))
    with pytest.raises(TrainingError, match=rf"nan: .*\blr={RECIPE.lr:g}\b"):
        next(train(learner, *sets, batch_size=5))


@pytest.mark.parametrize(("size", "counts"), [(64, [8, 8]), (256, [1] * 16)])
def test_validation_takes_the_fewer_images_at_once_the_larger_they_are(tables, size, counts):
    """Or it would need memory that no smaller batch size can save."""
    learner, found = Learner(replace(RECIPE, epochs=1, size=size), 8, device=CPU), []
    learner.model.register_forward_pre_hook(lambda _, inputs: found.append(len(inputs[0])))
    learner.validate(CarvanaDataset(tables[0], size))
    assert found == counts


def test_an_epoch_whose_loss_is_read_late_ends_before_its_row(sets, monkeypatch):
    """As on a GPU, which nobody waits for: here the losses are read once, at the epoch's end."""
    learner, steps = FastLearner(RECIPE, 12, lr=1e15, device=CPU), []
    learner.model.register_forward_pre_hook(lambda *_: steps.append(0))
    learner.late = True
    with pytest.raises(TrainingError):
        next(train(learner, *sets, batch_size=4))
    assert len(steps) == 4  # no step is lost, and no validation follows


# ---------------------------------------------------------------------------------------- the loop


def test_the_loop_is_the_one_of_the_textbook(sets):
    """Dataset, seeded loader, steps, validation: written out, as in notebook 04."""
    recipe = replace(RECIPE, augment="mild", epochs=2)
    train_set = CarvanaDataset(sets[0][32].samples, 32, augment="mild")
    model, expected = build(recipe), []
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    for epoch in (1, 2):
        model.train()
        train_set.epoch = recipe.seed, epoch
        total = 0.0
        for images, masks in make_loader(train_set, 5, True, recipe.seed, epoch):
            loss = bce_loss(model(images), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(images)
        scores = evaluate(model, sets[1][32], loss=bce_loss)
        expected.append([total / 16, *scores[["loss", "dice", "iou"]].mean()])
    learner = Learner(recipe, 8, device=CPU)
    rows = pd.DataFrame(train(learner, {32: train_set}, sets[1], batch_size=5))
    found = rows[["train_loss", "val_loss", "val_dice", "val_iou"]]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_row_of_the_history_follows_each_epoch(sets):
    learner = Learner(replace(RECIPE, schedule="one_cycle"), 12, device=CPU)
    rows = list(train(learner, *sets, batch_size=5))
    assert [list(row) for row in rows] == [
        ["epoch", "lr", "train_loss", "val_loss", "val_dice", "val_iou", "seconds"]
    ] * 3
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0]["lr"] == pytest.approx(RECIPE.lr / 25) and rows[2]["lr"] < rows[1]["lr"]
    assert np.isfinite(pd.DataFrame(rows)).all(axis=None)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert list(runs_dir().iterdir()) == []  # nothing is written


def test_whoever_consumes_the_rows_may_stop_and_a_learner_taken_up_again_goes_on(sets):
    recipe = replace(RECIPE, augment="mild")
    undisturbed, stopped = Learner(recipe, 12, device=CPU), Learner(recipe, 12, device=CPU)
    expected = list(train(undisturbed, *sets, batch_size=5))
    first = train(stopped, *sets, batch_size=5)
    found = [next(first)]
    first.close()
    found += train(stopped, *sets, batch_size=5, first_epoch=2)
    for one, other in zip(found, expected, strict=True):
        assert one | dict(seconds=0) == other | dict(seconds=0)
    assert same_weights(stopped.model, undisturbed.model)


def test_progressive_resizing_trains_on_small_images_first(tables, sets):
    small, sizes = [{16: CarvanaDataset(table, 16)} for table in tables[:2]], []
    recipe = replace(RECIPE, half_size_epochs=2)
    learner = Learner(recipe, 3, device=CPU)

    def note(model, inputs):
        sizes.append((model.training, inputs[0].shape[-1]))

    learner.model.register_forward_pre_hook(note)
    list(train(learner, *[one | other for one, other in zip(small, sets, strict=True)], 16))
    assert sizes == [(True, 16), (False, 16), (True, 16), (False, 16), (True, 32), (False, 32)]


def test_training_leaves_the_global_random_state_alone(sets):
    before = torch.get_rng_state()
    learner = Learner(replace(RECIPE, augment="mild", epochs=1), 4, device=CPU)
    list(train(learner, *sets, batch_size=5))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.fault("an optimizer of other parameters than the network's", "refused")
def test_an_optimizer_that_holds_nothing_of_the_network_is_refused():
    def lost(parameters, lr):
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr)

    with pytest.raises(ValueError, match="lost"):
        Learner(Recipe(widths=(2, 4), size=16, optimizer=lost), total_steps=1)
