import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

from unetlib import (
    CarvanaDataset,
    UNet,
    bce_loss,
    dataset_logits,
    dice,
    evaluate,
    iou,
    to_tensor,
)
from unetlib.metrics import evaluating


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
    arrays = [list(masks.numpy()) for masks in (predicted, target)]
    assert torch.equal(metric(*arrays), expected)
    pictures = [Image.fromarray(masks[0].numpy()) for masks in (predicted, target)]
    assert torch.equal(metric(*pictures), expected[:1])


@pytest.mark.parametrize("metric", [dice, iou])
@pytest.mark.parametrize("value", [0.7, -3.0, 255, float("nan")])
def test_logits_probabilities_and_greys_are_refused(metric, value):
    mask = torch.ones(1, 4, 4)
    everywhere, once = torch.full((1, 4, 4), value), mask.clone()
    once[0, 1, 2] = value
    for wrong in (everywhere, once):
        with pytest.raises(ValueError, match="threshold"):
            metric(wrong, mask)


@pytest.mark.parametrize("metric", [dice, iou])
def test_masks_of_two_shapes_are_refused(metric):
    with pytest.raises(ValueError, match=r"\(2, 4, 4\) .*\(2, 1, 4, 4\)"):
        metric(torch.ones(2, 4, 4), torch.ones(2, 1, 4, 4))


@pytest.mark.parametrize("metric", [dice, iou])
def test_a_row_of_pixels_is_no_image(metric):
    with pytest.raises(ValueError, match=r"\(4,\)"):
        metric(torch.ones(4), torch.ones(4))


# ------------------------------------------------------------------------------- whole data sets


def test_predictions_do_not_depend_on_the_batch_size(trained, tables):
    model, dataset = trained.model(), CarvanaDataset(tables[0], 32)
    one_by_one, together = (dataset_logits(model, dataset, size) for size in (1, 7))
    assert one_by_one.shape == (16, 1, 32, 32)
    torch.testing.assert_close(one_by_one, together, rtol=1e-4, atol=1e-4)


def modes(model) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.fixture
def partly_frozen(trained):
    """A model in training but for its first level, as somebody would fine-tune it."""
    model = trained.model().train()
    model.encoders[0].eval()
    assert len(set(modes(model))) == 2
    return model


@pytest.mark.parametrize("judge", [evaluate, dataset_logits])
def test_judging_leaves_each_layer_in_the_mode_it_was_in(partly_frozen, tables, judge):
    model, before = partly_frozen, modes(partly_frozen)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    judge(model, CarvanaDataset(tables[1], 32))
    assert modes(model) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("judge", [evaluate, dataset_logits])
def test_a_stop_while_judging_leaves_the_modes_as_they_were(partly_frozen, tables, judge):
    def stop(*_):
        assert modes(partly_frozen) == [False] * len(modes(partly_frozen))
        raise KeyboardInterrupt

    before = modes(partly_frozen)
    partly_frozen.decoders[0].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        judge(partly_frozen, CarvanaDataset(tables[1], 32))
    assert modes(partly_frozen) == before
    assert torch.is_grad_enabled()


def test_evaluating_computes_no_gradients_and_a_model_at_rest_stays_at_rest(trained):
    model = trained.model().cpu()
    with evaluating(model):
        assert not model(torch.zeros(1, 1, 32, 32)).requires_grad
    assert not any(modes(model))


def test_evaluate_scores_plain_images_against_hard_masks_whatever_the_dataset(trained, tables):
    model = trained.model().cpu()
    dataset = CarvanaDataset(tables[1], 32, mask="soft", augment="mild")
    scores = evaluate(model, dataset)
    assert list(scores.columns) == ["id", "group", "car", "angle", "dice", "iou"]
    assert list(scores["id"]) == list(tables[1]["id"])
    images, masks = map(torch.stack, zip(*CarvanaDataset(tables[1], 32), strict=True))
    with torch.no_grad():
        predicted = torch.sigmoid(model(images)) > 0.5
    np.testing.assert_allclose(scores["dice"], dice(predicted, masks))


def test_the_threshold_is_one_of_probabilities(trained, tables):
    model, dataset = trained.model(), CarvanaDataset(tables[1], 32)
    everything = evaluate(model, dataset, threshold=0)
    coverage = (dataset.coverage >= 128).mean(axis=(1, 2))
    np.testing.assert_allclose(everything["iou"], coverage, rtol=1e-5)
    pd.testing.assert_frame_equal(evaluate(model, dataset, np.float32(0)), everything)


@pytest.mark.fault("a threshold that is no probability", "refused")
@pytest.mark.parametrize("threshold", [127, -0.01, float("nan"), "0.5", None, [0.5]], ids=str)
def test_a_threshold_that_is_no_probability_is_refused(trained, tables, threshold):
    with pytest.raises(ValueError, match="threshold="):
        evaluate(trained.model(), CarvanaDataset(tables[1], 32), threshold)


def test_some_rows_are_scored_as_they_are_among_all(trained, tables):
    model, dataset = trained.model(), CarvanaDataset(tables[0], 32)
    every = evaluate(model, dataset, loss=bce_loss)
    assert list(every.columns) == ["id", "group", "car", "angle", "dice", "iou", "loss"]
    some = evaluate(model, dataset, loss=bce_loss, rows=range(1, 16, 5))
    assert list(some.index) == [1, 6, 11]
    assert list(some["id"]) == list(tables[0]["id"][1::5])
    np.testing.assert_allclose(some[["dice", "loss"]], every.loc[some.index, ["dice", "loss"]])
    assert evaluate(model, dataset, rows=range(0)).empty


def test_each_image_has_the_loss_of_itself_alone(trained, tables):
    model, dataset = trained.model(), CarvanaDataset(tables[1], 32)
    scores = evaluate(model, dataset, loss=bce_loss)
    logits = dataset_logits(model, dataset)
    masks = torch.from_numpy(dataset.coverage >= 128)[:, None].float()
    expected = [
        bce_loss(*pair).item() for pair in zip(logits.split(1), masks.split(1), strict=True)
    ]
    np.testing.assert_allclose(scores["loss"], expected, rtol=1e-4)


def test_the_loss_is_against_the_datasets_kind_of_masks_and_the_scores_against_hard_ones(
    trained, tables
):
    model = trained.model()
    hard, soft = (CarvanaDataset(tables[1], 32, mask=kind) for kind in ("hard", "soft"))
    logits, targets = dataset_logits(model, soft), to_tensor(soft.coverage)
    expected = [
        bce_loss(*pair).item() for pair in zip(logits.split(1), targets.split(1), strict=True)
    ]
    found, other = (evaluate(model, dataset, loss=bce_loss) for dataset in (soft, hard))
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-4)
    assert (found["loss"] != other["loss"]).all()
    assert found[["dice", "iou"]].equals(other[["dice", "iou"]])


def test_the_dice_of_the_images_with_an_object_is_found_as_the_docstring_says(trained, tables):
    model, dataset = trained.model(), CarvanaDataset(tables[1], 32)
    dataset.coverage[1:3] = 127  # less than half of each pixel
    table = evaluate(model, dataset)
    found = table["dice"][dataset.coverage.max((1, 2)) >= 128]
    assert list(found.index) == [0, 3]


def test_the_name_of_a_column_of_the_history_is_no_name_for_a_metric(trained, tables):
    dataset = CarvanaDataset(tables[1], 32)
    for name in ("dice", "dice_objects"):
        with pytest.raises(ValueError, match=name):
            evaluate(trained.model(), dataset, metrics={name: lambda *_: torch.zeros(4)})


@pytest.mark.fault("a model, or all new tensors, on the device meta", "refused, or scored as ever")
def test_a_model_without_numbers_is_refused_and_one_with_is_scored(trained, tables):
    model, dataset = trained.model(), CarvanaDataset(tables[1], 32)
    expected = evaluate(model, dataset, loss=bce_loss)
    with torch.device("meta"):
        empty = UNet(widths=(2, 4))
        assert evaluate(model, dataset, loss=bce_loss).equals(expected)
    for judge in (evaluate, dataset_logits):
        with pytest.raises(ValueError, match="meta"):
            judge(empty, dataset)
