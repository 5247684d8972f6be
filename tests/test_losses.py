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
