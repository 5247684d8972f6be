"""Own losses, augmentations, networks, optimizers, schedules and metrics, written in a cell."""

import json
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from unetlib import (
    LOSSES,
    CarvanaDataset,
    ModelFileError,
    Recipe,
    RunError,
    TrainingError,
    UNet,
    compare_runs,
    evaluate,
    find_runs,
    fit,
    load_model,
    load_run,
    lr_find,
    plot_history,
)
from unetlib.store.checkpoint import load_state

RECIPE = Recipe(widths=(4, 8), size=16, lr=1e-2, epochs=3, batch_size=5, precision="fp32")
OWN_NET = replace(RECIPE, widths=Recipe().widths, network="unet")
POWER = 2.0


def focal_loss(logits, masks):
    probability = torch.sigmoid(logits)
    right = torch.where(masks > 0.5, probability, 1 - probability)
    return -((1 - right) ** POWER * right.clamp(min=1e-6).log()).mean()


def noisy_loss(logits, masks):
    """Draws random numbers in every step."""
    kept = (torch.rand_like(logits) < 0.5).float()
    return nn.functional.binary_cross_entropy_with_logits(logits, masks, weight=kept)


def jitter(images, masks):
    shift = random.randrange(4), np.random.randint(4)
    images = images + 0.05 * torch.randn_like(images)
    return images.roll(shift, (2, 3)).clamp(0, 1), masks.roll(shift, (2, 3))


class Net(nn.Module):
    """Anything but a U-Net; its dropout draws in every step."""

    def __init__(self, channels: int = 1, width: int = 6):
        super().__init__()
        self.first = nn.Conv2d(channels, width, 5, padding=2)
        self.layers = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x):
        return self.head(self.layers(self.first(x)))


def frozen_unet() -> nn.Module:
    model = UNet(widths=(4, 8))
    model.encoders.requires_grad_(False)
    return model


def clipped_adam(parameters, lr):
    optimizer = torch.optim.Adam(parameters, lr)

    def clip(*_):
        nn.utils.clip_grad_norm_(parameters, 0.1)

    optimizer.register_step_pre_hook(clip)
    return optimizer


def two_rates(parameters, lr):
    groups = [dict(params=parameters[:2], lr=lr / 10), dict(params=parameters[2:])]
    return torch.optim.RMSprop(groups, lr, momentum=0.9)


def warm_up(optimizer, total_steps):
    factor = lambda step: min(1, (step + 1) / 4) * (1 - step / total_steps)  # noqa: E731
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def cosine_of_numpy(optimizer, total_steps):
    factor = lambda step: 0.5 * (1 + np.cos(np.pi * step / total_steps))  # noqa: E731
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def numpys_adam(parameters, lr):
    return torch.optim.Adam(parameters, np.sqrt(lr))


class Spoilt(torch.optim.lr_scheduler.LRScheduler):
    """Keeps a function, which no state can hold."""

    def __init__(self, optimizer, total_steps):
        self.factor = lambda step: 0.9**step
        super().__init__(optimizer)

    def get_lr(self):
        return [group["initial_lr"] * self.factor(self.last_epoch) for group in self.groups()]

    def groups(self):
        return self.optimizer.param_groups


def area_error(probabilities, masks):
    return (probabilities.mean((1, 2, 3)) - masks.mean((1, 2, 3))).abs()


IDEAS = {
    "loss": replace(RECIPE, loss=focal_loss),
    "loss that draws": replace(RECIPE, loss=noisy_loss),
    "loss with weights": replace(RECIPE, loss=nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0))),
    "augmentation": replace(RECIPE, augment=jitter),
    "v2": replace(RECIPE, augment=v2.Compose([v2.RandomRotation(9), v2.ColorJitter(0.3)])),
    "network": replace(OWN_NET, network=Net, size=(12, 18)),
    "partial": replace(OWN_NET, network=partial(Net, 3, width=4), colour=True),
    "frozen": replace(OWN_NET, network=frozen_unet),
    "sgd": replace(RECIPE, optimizer="sgd", weight_decay=1e-3),
    "muon": replace(RECIPE, optimizer="muon", augment="backgrounds", precision="bf16"),
    "optimizer": replace(RECIPE, optimizer=clipped_adam),
    "two rates": replace(RECIPE, optimizer=two_rates, schedule="one_cycle"),
    "library's optimizer": replace(RECIPE, optimizer=torch.optim.NAdam, weight_decay=0.1),
    "cosine": replace(RECIPE, schedule="cosine"),
    "numbers of NumPy": replace(RECIPE, schedule=cosine_of_numpy, optimizer=numpys_adam),
    "schedule": replace(RECIPE, schedule=warm_up),
    "colour": replace(RECIPE, colour=True, size=(24, 16), half_size_epochs=1),
    "patience": replace(RECIPE, patience=2, lr=1e-5, epochs=9),
}


def same_files(run, other) -> bool:
    """Whether weights, optimizer, schedule and history are equal, bit for bit."""
    states = [torch.load(one.folder / "last.pth") for one in (run, other)]
    assert repr(states[0]["scheduler"]) == repr(states[1]["scheduler"])
    for name in ("model", "optimizer"):
        torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=0)
    drop = dict(columns="seconds")
    pd.testing.assert_frame_equal(run.history.drop(**drop), other.history.drop(**drop))
    return True


@pytest.mark.parametrize("recipe", IDEAS.values(), ids=IDEAS.keys())
def test_an_idea_trains_resumes_exactly_and_is_found_again(
    tables, recipe, tmp_path, monkeypatch, capsys
):
    straight = fit(recipe, *tables)
    assert straight.finished and np.isfinite(straight.history["val_loss"]).all()
    torch.rand(3), np.random.rand(3), random.random()  # others may draw in between
    assert fit(recipe, *tables, on_epoch=pytest.fail).folder == straight.folder
    assert "already trained" in capsys.readouterr().out
    monkeypatch.setenv("UNETLIB_HOME", str(tmp_path / "stopped"))
    stopped = fit(recipe, *tables, on_epoch=lambda run: True)
    assert len(stopped.history) == 1 and not stopped.finished
    assert same_files(fit(recipe, *tables), straight)
    if recipe.patience is None:
        assert len(lr_find(recipe, tables[0], steps=3)) == 3


def test_only_what_may_learn_does(tables):
    start, run = frozen_unet().state_dict(), fit(IDEAS["frozen"], *tables)
    for name, value in run.model("last").cpu().state_dict().items():
        if name.startswith("encoders") and name.endswith("weight"):
            assert torch.equal(value, start[name])
        elif name.startswith("head"):
            assert not torch.equal(value, start[name])


# --------------------------------------------------------------------------------- edited code


def test_a_registered_name_and_the_function_are_one_run(tables, monkeypatch, capsys):
    run = fit(replace(RECIPE, loss=focal_loss), *tables)
    monkeypatch.setitem(LOSSES, "focal", focal_loss)
    assert fit(replace(RECIPE, loss="focal"), *tables, on_epoch=pytest.fail).folder == run.folder


@pytest.mark.fault("the code of a loss was edited", "another run, which says so; none is resumed")
@pytest.mark.parametrize("stop_at", [None, 1], ids=["finished", "unfinished"])
def test_edited_code_is_another_run(tables, monkeypatch, capsys, stop_at):
    first = fit(replace(RECIPE, loss=focal_loss), *tables, on_epoch=lambda run: bool(stop_at))
    monkeypatch.setitem(globals(), "POWER", 3.0)
    capsys.readouterr()
    second = fit(replace(RECIPE, loss=focal_loss), *tables)
    said = capsys.readouterr().out
    assert first.folder.name in said and second.folder.name in said and "loss" in said
    assert second.finished and second.folder != first.folder
    assert second.history["train_loss"][0] != first.history["train_loss"][0]
    monkeypatch.setitem(globals(), "POWER", 2.0)
    again = fit(replace(RECIPE, loss=focal_loss), *tables, on_epoch=lambda run: True)
    assert again.folder == first.folder
    table = compare_runs([again, second])
    assert sorted(label.split()[0] for label in table["loss"]) == ["focal_loss"] * 2
    assert table["loss"].nunique() == 2


def test_the_unet_by_its_class_is_not_the_unet_of_the_recipe(tables):
    """By name it gets the recipe's widths and seed."""
    wide = replace(OWN_NET, size=8, epochs=1, seed=3, batch_size=16)
    by_name, by_class = fit(wide, *tables), fit(replace(wide, network=UNet), *tables)
    assert by_name.folder != by_class.folder
    assert by_name.history["train_loss"][0] != by_class.history["train_loss"][0]


def test_a_network_that_was_made_before_starts_each_time_as_it_was(tables):
    made = Net()
    recipe = replace(OWN_NET, network=lambda: made)
    run = fit(recipe, *tables)
    assert fit(recipe, *tables, on_epoch=pytest.fail).folder == run.folder


@pytest.mark.parametrize("method", ["_pair", "batch"])
def test_an_edit_of_the_data_path_is_another_run(tables, monkeypatch, method):
    plain, before = fit(RECIPE, *tables), getattr(CarvanaDataset, method)

    def darker(self, rows, stored=None):
        images, masks = before(self, rows, stored)
        return images / 2, masks

    monkeypatch.setattr(CarvanaDataset, method, darker)
    assert fit(RECIPE, *tables).folder != plain.folder


def test_an_overwritten_built_in_is_another_run(tables, monkeypatch):
    plain = fit(RECIPE, *tables)
    monkeypatch.setitem(LOSSES, "bce", focal_loss)
    own = fit(RECIPE, *tables)
    assert own.folder != plain.folder
    assert own.history["train_loss"][0] != plain.history["train_loss"][0]
    assert own.folder == fit(replace(RECIPE, loss=focal_loss), *tables).folder


def test_a_run_whose_code_is_gone_shows_and_compares_and_says_what_to_pass(tables, tmp_path):
    run = fit(replace(IDEAS["network"], loss=focal_loss), *tables)
    (found,) = find_runs()
    assert "Net" in repr(found.recipe) and "focal_loss" in repr(found.recipe)
    assert compare_runs([found, fit(RECIPE, *tables)])["network"].tolist().count("Net") == 1
    with pytest.raises(ModelFileError, match="Net"):
        found.model()
    for which in ("best", "last"):
        weights = found.model(which, network=Net).state_dict()
        torch.testing.assert_close(weights, run.model(which).state_dict(), rtol=0, atol=0)
    assert fit(found.recipe, *tables).folder == run.folder  # known by the hash of its code
    with pytest.raises(RunError, match="Net"):
        fit(replace(found.recipe, seed=1), *tables)
    assert len(find_runs()) == 2


@pytest.mark.fault("code that cannot be hashed", "refused by name; nothing is trained")
def test_code_that_cannot_be_hashed_is_refused_by_name(tables, monkeypatch):
    with open(__file__) as file:
        monkeypatch.setitem(globals(), "POWER", file)
        with pytest.raises(RunError, match="POWER"):
            fit(replace(RECIPE, loss=focal_loss), *tables)
    assert find_runs() == []


# ------------------------------------------------------------------------------------ what is wrong

WRONG = {
    "loss without gradient": dict(loss=lambda logits, masks: (logits - masks).detach().mean()),
    "one of a pair": dict(augment=lambda images, masks: images),
    "no pair": dict(augment=lambda images, masks: None),
    "no optimizer": dict(optimizer=lambda parameters, lr: None),
    "a schedule that cannot be kept": dict(schedule=Spoilt),
    "loss per pixel": dict(loss=lambda logits, masks: (logits - masks) ** 2),
    "loss without a tensor": dict(loss=lambda logits, masks: 0.5),
    "two channels": dict(network=partial(UNet, out_channels=2), widths=Recipe().widths),
    "a size that does not fit": dict(network=UNet, widths=Recipe().widths, size=18),
    "a network of colour": dict(network=partial(Net, 3), widths=Recipe().widths),
    "no network": dict(network=lambda: None, widths=Recipe().widths),
}


@pytest.mark.fault("own code that gives what it must not", "one sentence that names it")
@pytest.mark.parametrize("settings", WRONG.values(), ids=WRONG.keys())
def test_code_that_gives_what_it_must_not_is_named(tables, settings):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=r"loss=|UNet|Net|network=|augment=|optimizer"):
        fit(replace(RECIPE, **settings), *tables)
    assert name and find_runs() == []


def test_a_loss_that_is_a_sum_may_be_large_but_not_nan(tables):
    summed = replace(RECIPE, loss=nn.BCEWithLogitsLoss(reduction="sum"), lr=1e-5, size=64)
    assert fit(summed, *tables).history["train_loss"][0] > 1e4
    with pytest.raises(TrainingError, match="learning rate"):
        fit(replace(RECIPE, loss=lambda logits, masks: logits.sum() * float("nan")), *tables)


# --------------------------------------------------------------------------------- early stopping


def test_patience_ends_the_run_after_so_many_epochs_without_a_better_one(tables, capsys):
    recipe = replace(RECIPE, patience=2, epochs=30, lr=3e-2)
    run = fit(recipe, *tables)
    assert run.finished and len(run.history) == run.best_epoch + 2 < 30
    best = run.history["val_dice"].cummax()
    assert (best.diff()[1 : run.best_epoch] > 0).rolling(2).max().dropna().all()
    assert str(run.best_epoch) in capsys.readouterr().out
    assert load_run(run.folder).finished
    assert fit(recipe, *tables, on_epoch=pytest.fail).folder == run.folder


def test_patience_waits_until_the_images_have_their_full_size(tables):
    slow = replace(RECIPE, lr=1e-9, epochs=9, half_size_epochs=4, patience=1)
    run = fit(slow, *tables, best_by=("loss", "max"))  # it falls while batch norm settles
    assert (run.best_epoch, len(run.history)) == (5, 6)  # the first one of full size, and one more


def test_on_epoch_stops_the_run_only_with_true(tables):
    answers = iter([None, 1, "yes", np.bool_(False), np.bool_(True)])
    run = fit(replace(RECIPE, epochs=9), *tables, on_epoch=lambda run: next(answers))
    assert len(run.history) == 5 and not run.finished


# ---------------------------------------------------------------------------------------- metrics


def test_a_metric_is_a_column_everywhere_and_no_part_of_the_name(tables, capsys):
    run = fit(RECIPE, *tables, metrics={"area_error": area_error})
    assert run.folder == fit(RECIPE, *tables).folder
    (same,) = find_runs()
    pd.testing.assert_frame_equal(same.history, run.history)
    dataset = CarvanaDataset(tables[1], 16)
    table = evaluate(run.model("last"), dataset, metrics={"area_error": area_error})
    assert table["area_error"].mean() == pytest.approx(run.history["val_area_error"].iloc[-1])
    assert compare_runs()["area_error"][run.folder.name] == run.at_best("val_area_error")
    labels = [text.get_text() for text in plot_history(run).axes[1].get_legend().get_texts()]
    assert any("area_error" in label for label in labels)


def test_a_finished_run_that_lacks_a_metric_is_scored_for_its_kept_model(tables, capsys):
    plain = fit(RECIPE, *tables)
    run = fit(RECIPE, *tables, metrics={"area_error": area_error}, on_epoch=pytest.fail)
    assert run.folder == plain.folder and "area_error" in capsys.readouterr().out
    scored = run.history["val_area_error"]
    assert scored.notna().tolist() == [epoch == run.best_epoch for epoch in (1, 2, 3)]
    found = load_run(run.folder)
    assert found.at_best("val_area_error") == run.at_best("val_area_error") > 0
    fit(RECIPE, *tables, metrics={"area_error": area_error})
    assert "scored" not in capsys.readouterr().out
    other = fit(RECIPE, *tables, metrics={"area_error": lambda p, m: p.mean((1, 2, 3)) * 0 + 7})
    assert other.at_best("val_area_error") == 7  # edited code is never answered with an old score


def test_an_edited_metric_replaces_what_its_old_code_has_measured(tables):
    measured = fit(RECIPE, *tables, metrics={"area_error": area_error})
    edited = fit(RECIPE, *tables, metrics={"area_error": lambda p, m: p.mean((1, 2, 3))})
    assert edited.history["val_area_error"].isna().sum() == 2
    pd.testing.assert_frame_equal(load_run(measured.folder).history, edited.history)
    (shown,) = compare_runs([load_run(measured.folder)])["area_error"]
    assert shown == pytest.approx(edited.at_best("val_area_error"))


def test_a_metric_that_works_in_place_spoils_no_other(tables):
    alone = fit(RECIPE, *tables, metrics={"b": area_error}).at_best("val_b")
    spoiler = {"a": lambda p, m: p.zero_().sum((1, 2, 3)), "b": area_error}
    model = find_runs()[0].model()
    table = evaluate(model, CarvanaDataset(tables[1], 16), metrics=spoiler)
    assert table["b"].mean() == pytest.approx(alone, abs=1e-6) and table["dice"].max() > 0


def test_a_metric_may_join_and_change_while_a_run_goes_on(tables):
    recipe, stop = replace(RECIPE, epochs=4), lambda run: True
    fit(recipe, *tables, on_epoch=stop)
    fit(recipe, *tables, on_epoch=stop, metrics={"one": lambda p, m: p.sum((1, 2, 3)) * 0 + 1})
    fit(recipe, *tables, on_epoch=stop)
    run = fit(recipe, *tables, metrics={"one": lambda p, m: p.sum((1, 2, 3)) * 0 + 2})
    assert run.history["val_one"].isna().tolist() == [True, True, True, False]
    assert run.history["val_one"].iloc[-1] == 2


def test_the_best_epoch_may_be_chosen_by_another_score(tables, tmp_path, monkeypatch):
    later = iter([0.0, 0.5, 0.9, 0.1, 0.7])  # the first one is tried before the training

    def falling(probabilities, masks):
        return torch.full((len(masks),), next(later))

    falling.unetlib_name = "falling"
    monkeypatch.setitem(globals(), "later", later)
    settings = dict(metrics={"falling": falling}, best_by=("falling", "min"))
    recipe = replace(RECIPE, epochs=4, batch_size=16)
    run = fit(recipe, *tables, **settings)
    assert run.best_epoch == 3 and run.at_best("val_falling") == pytest.approx(0.1)
    assert load_model(run.checkpoint)[1]["info"]["epoch"] == 3
    assert load_run(run.folder).best_epoch == 3
    assert run.folder != fit(recipe, *tables).folder
    by_loss = fit(recipe, *tables, best_by=("loss", "min"))
    assert by_loss.best_epoch == by_loss.history["val_loss"].idxmin() + 1
    assert load_state(by_loss.folder)["best_by"] == [["loss", "min"], 0]


@pytest.mark.parametrize(
    "settings",
    [
        dict(best_by=("boundary", "max")),
        dict(best_by=("dice", "most")),
        dict(best_by="dice"),
        dict(metrics={"dice": area_error}),
        dict(metrics={"mean": lambda p, m: p.mean()}),
        dict(metrics={"pixels": lambda p, m: p}),
        dict(metrics={"group": area_error}),
    ],
    ids=list(map(str, range(7))),
)
def test_a_metric_that_cannot_be_used_is_named(tables, settings):
    with pytest.raises(ValueError, match=r"best_by|dice|mean|pixels|group"):
        fit(RECIPE, *tables, **settings)
    assert find_runs() == []


# ------------------------------------------------------------------------------------ fine-tuning


def test_fine_tuning_starts_from_a_run_or_a_model_file(tables, tmp_path):
    start = fit(replace(RECIPE, seed=1), *tables)
    tuned = fit(replace(RECIPE, start_from=start, lr=1e-9, epochs=1), *tables)
    torch.testing.assert_close(
        dict(tuned.model("last").named_parameters()), dict(start.model().named_parameters())
    )
    copy = tmp_path / "elsewhere.pth"
    copy.write_bytes(start.checkpoint.read_bytes())
    recipe = replace(RECIPE, start_from=copy, lr=1e-9, epochs=1)
    assert fit(recipe, *tables, on_epoch=pytest.fail).folder == tuned.folder  # the same weights
    other = fit(replace(RECIPE, seed=2), *tables)
    copy.write_bytes(other.checkpoint.read_bytes())
    assert fit(recipe, *tables).folder != tuned.folder  # other weights in a file of that name
    assert compare_runs([tuned, start])["start_from"].count() == 1


@pytest.mark.fault("weights to start from that are lost or do not fit", "the file is named")
def test_weights_that_cannot_be_started_from_are_named(tables, tmp_path):
    with pytest.raises(ModelFileError, match=r"lost\.pth"):
        fit(replace(RECIPE, start_from=tmp_path / "lost.pth"), *tables)
    run = fit(replace(RECIPE, epochs=1), *tables)
    with pytest.raises(ModelFileError, match=r"best\.pth"):
        fit(replace(RECIPE, widths=(4, 8, 16), start_from=run), *tables)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ModelFileError, match=r"text\.pth"):
        fit(replace(RECIPE, start_from=tmp_path / "text.pth"), *tables)
    assert len(find_runs()) == 1


@pytest.mark.fault("range test from weights that do not fit", "the file is named")
def test_the_range_test_starts_from_weights_too_and_takes_any_loss(tables, tmp_path):
    run = fit(replace(RECIPE, epochs=1), *tables)
    assert len(lr_find(replace(RECIPE, start_from=run), tables[0], steps=4)) == 4
    with pytest.raises(ModelFileError, match=r"best\.pth"):
        lr_find(replace(RECIPE, widths=(2, 4), start_from=run), tables[0], steps=4)
    falling = replace(RECIPE, loss=lambda logits, masks: -torch.sigmoid(logits)[masks > 0.5].mean())
    assert len(lr_find(falling, tables[0], highest=1e-3, steps=20)) == 20


def test_recipes_of_code_are_written_down_as_plain_text(tables):
    run = fit(replace(IDEAS["network"], loss=focal_loss, epochs=1), *tables)
    settings = json.loads((run.folder / "recipe.json").read_text())
    assert settings["loss"]["name"] == "focal_loss" and settings["network"]["name"] == "Net"
    assert load_model(run.checkpoint, network=Net)[1]["info"]["recipe"] == settings
