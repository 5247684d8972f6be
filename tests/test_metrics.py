import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

from unetlib.dataset import CarvanaDataset
from unetlib.metrics import (
    LOSSES,
    bce_dice_loss,
    bce_loss,
    dataset_logits,
    dice,
    evaluate,
    iou,
    predict_dataset,
    soft_dice_loss,
)


def random_masks(seed: int, images: int, coverage: float) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    predicted, target = torch.rand(2, images, 8, 12, generator=draw) < coverage
    return predicted, target


random_cases = given(
    seed=st.integers(0, 2**31), images=st.integers(1, 6), coverage=st.floats(0.02, 1)
)


@random_cases
def test_dice_is_torchmetrics_f1_of_each_image(seed, images, coverage):
    predicted, target = random_masks(seed, images, coverage)
    expected = [
        binary_f1_score(one.int(), other.int(), zero_division=1)
        for one, other in zip(predicted, target, strict=True)
    ]
    torch.testing.assert_close(dice(predicted, target), torch.stack(expected))


@random_cases
def test_iou_is_torchmetrics_jaccard_index_of_each_image(seed, images, coverage):
    predicted, target = random_masks(seed, images, coverage)
    expected = [
        binary_jaccard_index(one.int(), other.int(), zero_division=1)
        for one, other in zip(predicted, target, strict=True)
    ]
    torch.testing.assert_close(iou(predicted, target), torch.stack(expected))


@random_cases
def test_dice_and_iou_tell_the_same_story(seed, images, coverage):
    predicted, target = random_masks(seed, images, coverage)
    overlap = iou(predicted, target)
    torch.testing.assert_close(dice(predicted, target), 2 * overlap / (1 + overlap))


def test_dice_and_iou_by_hand():
    predicted = torch.tensor([[1, 1, 0, 0]])
    target = torch.tensor([[0, 1, 1, 1]])
    assert dice(predicted, target).tolist() == pytest.approx([2 / 5])
    assert iou(predicted, target).tolist() == pytest.approx([1 / 4])


@pytest.mark.parametrize("metric", [dice, iou])
def test_empty_masks(metric):
    empty, some = torch.zeros(4, 4), torch.ones(4, 4)
    assert metric(empty, empty).item() == 1
    assert metric(some, empty).item() == 0
    assert metric(empty, some).item() == 0


@pytest.mark.parametrize("metric", [dice, iou])
def test_a_car_of_one_pixel_counts_like_any_other(metric):
    mask = torch.zeros(4, 4)
    mask[1, 2] = 1
    assert metric(mask, mask).item() == 1


@pytest.mark.parametrize("metric", [dice, iou])
def test_arrays_that_cannot_be_written_to_are_taken_without_a_warning(metric):
    """Such as those of PIL images; PyTorch warns of sharing their memory."""
    mask = np.ones((4, 4), bool)
    mask.setflags(write=False)
    with warnings.catch_warnings(action="error"):
        assert metric(mask, mask).item() == 1


@pytest.mark.parametrize("metric", [dice, iou])
def test_each_image_counts_alike_whatever_the_size_of_its_mask(metric):
    """A score pooled over the batch would be near 1: the small car would not matter."""
    target = torch.zeros(2, 32, 32, dtype=torch.bool)
    target[0] = True
    target[1, 0, 0] = True
    predicted = target.clone()
    predicted[1, 0, 0] = False
    assert metric(predicted, target).tolist() == [1, 0]


@pytest.mark.parametrize("metric", [dice, iou])
def test_shapes_and_types_that_are_accepted(metric):
    predicted, target = random_masks(0, 3, 0.5)
    expected = metric(predicted, target)
    assert expected.shape == (3,) and expected.dtype == torch.float32
    assert torch.equal(metric(predicted[:, None], target[:, None].float()), expected)
    assert torch.equal(metric(predicted.numpy(), target.numpy().astype(np.uint8)), expected)
    assert torch.equal(metric(predicted[0], target[0]), expected[:1])


@pytest.mark.parametrize("metric", [dice, iou])
@pytest.mark.parametrize("value", [0.7, -3.0, 255, float("nan")])
def test_logits_probabilities_and_greys_are_refused(metric, value):
    mask = torch.ones(1, 4, 4)
    everywhere, once = torch.full((1, 4, 4), value), mask.clone()
    once[0, 1, 2] = value
    for wrong in (everywhere, once):
        with pytest.raises(ValueError, match="threshold first"):
            metric(wrong, mask)


@pytest.mark.parametrize("metric", [dice, iou])
def test_a_car_of_one_pixel_counts_in_full(metric):
    mask = torch.zeros(1, 4, 4)
    mask[0, 1, 2] = 1
    assert metric(mask, mask).tolist() == [1]


@pytest.mark.parametrize("metric", [dice, iou])
def test_masks_of_two_shapes_are_refused(metric):
    with pytest.raises(ValueError, match=r"\(2, 4, 4\) and \(2, 1, 4, 4\)"):
        metric(torch.ones(2, 4, 4), torch.ones(2, 1, 4, 4))


@pytest.mark.parametrize("metric", [dice, iou])
def test_a_row_of_pixels_is_no_image(metric):
    with pytest.raises(ValueError, match="cannot be compared"):
        metric(torch.ones(4), torch.ones(4))


# ---------------------------------------------------------------------------------------- losses


def random_logits(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 1, 4, 6, generator=draw)
    return logits, (torch.rand(2, 1, 4, 6, generator=draw) < 0.5).float()


def test_bce_is_the_textbook_formula():
    logits, mask = random_logits(0)
    probability = torch.sigmoid(logits)
    expected = -(mask * probability.log() + (1 - mask) * (1 - probability).log()).mean()
    torch.testing.assert_close(bce_loss(logits, mask), expected)


def test_bce_stays_finite_where_the_textbook_formula_does_not():
    logits = torch.tensor([[[[1000.0, -1000.0]]]])
    assert bce_loss(logits, torch.tensor([[[[0.0, 1.0]]]])).item() == pytest.approx(1000)


def test_soft_dice_by_hand():
    logits = torch.zeros(1, 1, 1, 4)  # probability 1/2 everywhere
    mask = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    assert soft_dice_loss(logits, mask).item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1))


def test_soft_dice_is_the_mean_over_the_images():
    logits, mask = random_logits(1)
    alone = [soft_dice_loss(logits[i : i + 1], mask[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(soft_dice_loss(logits, mask), torch.stack(alone).mean())


def test_the_sum_is_the_sum():
    logits, mask = random_logits(2)
    expected = bce_loss(logits, mask) + soft_dice_loss(logits, mask)
    torch.testing.assert_close(bce_dice_loss(logits, mask), expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("empty", [False, True])
def test_a_perfect_prediction_costs_nothing_and_a_step_downhill_helps(name, empty):
    logits, mask = random_logits(3)
    mask = torch.zeros_like(mask) if empty else mask
    perfect = 200 * (mask - 0.5)
    assert LOSSES[name](perfect, mask).item() == pytest.approx(0, abs=1e-5)
    logits.requires_grad_()
    loss = LOSSES[name](logits, mask)
    loss.backward()
    assert LOSSES[name](logits - 0.1 * logits.grad, mask) < loss


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_computed_in_float32(name):
    logits, mask = random_logits(4)
    assert LOSSES[name](logits.bfloat16(), mask).dtype == torch.float32


# ------------------------------------------------------------------------------- whole data sets


def test_predictions_do_not_depend_on_the_batch_size(trained, tables):
    model, dataset = trained.model(), CarvanaDataset(tables[0], 32)
    one_by_one, together = (dataset_logits(model, dataset, size) for size in (1, 7))
    assert one_by_one.shape == (16, 1, 32, 32)
    torch.testing.assert_close(one_by_one, together, rtol=1e-4, atol=1e-4)


def test_predicting_leaves_training_mode_and_running_statistics_as_they_were(trained, tables):
    model = trained.model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict_dataset(model, CarvanaDataset(tables[1], 32))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_evaluate_scores_plain_images_against_hard_masks_whatever_the_dataset(trained, tables):
    model, dataset = trained.model(), CarvanaDataset(tables[1], 32, mask="soft", augment="mild")
    scores = evaluate(model, dataset)
    assert list(scores.columns) == ["id", "car", "angle", "dice", "iou"]
    assert list(scores["id"]) == list(tables[1]["id"])
    images, masks = map(torch.stack, zip(*CarvanaDataset(tables[1], 32), strict=True))
    with torch.no_grad():
        predicted = torch.sigmoid(model(images)) > 0.5
    np.testing.assert_allclose(scores["dice"], dice(predicted, masks))


def test_the_threshold_is_one_of_probabilities(trained, tables):
    model, dataset = trained.model(), CarvanaDataset(tables[1], 32)
    everything = evaluate(model, dataset, threshold=-0.01)
    coverage = (dataset.coverage >= 128).mean(axis=(1, 2))
    np.testing.assert_allclose(everything["iou"], coverage, rtol=1e-5)
