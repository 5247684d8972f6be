import numpy as np
import pytest
import torch

from unetlib import LOSSES, bce_dice_loss, bce_loss, soft_dice_loss


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


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int64, torch.float64, torch.half])
def test_masks_of_any_type_are_taken_as_numbers(name, kind):
    logits, mask = random_logits(5)
    loss = LOSSES[name](logits, mask.to(kind))
    assert loss.dtype == torch.float32 and loss == LOSSES[name](logits, mask)


@pytest.mark.parametrize("name", LOSSES)
def test_soft_masks_are_taken_as_they_are(name):
    logits, _ = random_logits(6)
    soft = torch.linspace(0, 1, logits.numel()).view_as(logits)
    assert torch.isfinite(LOSSES[name](logits, soft))


@pytest.mark.fault("a mask of 0 and 255 in a loss, or one with nan", "refused")
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("value", [255.0, 1.01, -0.01, float("nan")])
def test_masks_with_values_out_of_range_are_refused(name, value):
    logits, mask = random_logits(7)
    mask[1, 0, 2, 3] = value
    with pytest.raises(ValueError, match="from 0 to 1"):
        LOSSES[name](logits, mask)


@pytest.mark.fault("a mask of another shape than the logits in a loss", "refused, not repeated")
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "mask",
    [torch.ones(1, 1, 4, 6), torch.ones(2, 4, 6), torch.ones(4, 6), np.ones((2, 1, 4, 6)), 1.0],
    ids=["one for all", "without channel", "one image", "numpy", "number"],
)
def test_masks_that_do_not_fit_the_logits_are_refused(name, mask):
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 6\)"):
        LOSSES[name](random_logits(8)[0], mask)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_can_be_compiled_as_one_graph(name):
    logits, mask = random_logits(9)
    compiled = torch.compile(LOSSES[name], backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, mask), LOSSES[name](logits, mask))


def test_numbers_in_a_row_have_a_cross_entropy_but_no_dice():
    logits, mask = (one.flatten() for one in random_logits(10))
    torch.testing.assert_close(bce_loss(logits, mask), bce_loss(*random_logits(10)))
    for loss in (soft_dice_loss, bce_dice_loss):
        with pytest.raises(ValueError, match=r"\(48,\)"):
            loss(logits, mask)
