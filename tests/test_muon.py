import pytest
import torch
from torch import nn

from unetlib import OPTIMIZERS, UNet
from unetlib.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (64, 1, 3, 3), (4, 12, 3, 3), (16, 16), (1, 9)])
def test_an_update_turns_all_directions_alike(shape):
    """Whatever the singular values were, they come out near 1, times the layer's own scale."""
    torch.manual_seed(0)
    uneven = torch.randn(shape)
    uneven[0] *= 100
    update = orthogonal(uneven)
    assert update.shape == uneven.shape and update.dtype == torch.float32
    matrix = update.reshape(shape[0], -1)
    values = torch.linalg.svdvals(matrix) / max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
    assert values.max() < 1.5 and values.median() > 0.4
    assert torch.linalg.svdvals(uneven.reshape(shape[0], -1)).max() > 50


def test_a_vector_takes_a_step_of_length_lr():
    weight = nn.Parameter(torch.ones(5))
    weight.grad = torch.tensor([3.0, 0, 0, -4.0, 0])
    Muon([weight], lr=0.1, weight_decay=0).step()
    assert torch.allclose(weight.detach() - 1, torch.tensor([-0.06, 0, 0, 0.08, 0]), atol=1e-6)


def test_on_matrices_it_is_the_one_of_pytorch():
    """Which computes in bfloat16."""
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(12, 20))
    theirs = nn.Parameter(ours.detach().clone())
    optimizers = Muon([ours], 0.1, 0.01), torch.optim.Muon([theirs], 0.1, 0.01)
    before = ours.detach().clone()
    for _ in range(3):
        ours.grad = theirs.grad = torch.randn(12, 20)
        for optimizer in optimizers:
            optimizer.step()
    moved, expected = ours.detach() - before, theirs.detach() - before
    assert (moved - expected).norm() < 0.05 * expected.norm()


def test_it_learns_faster_than_adam_in_few_steps():
    torch.manual_seed(0)
    images = torch.rand(4, 1, 32, 32)
    masks = (nn.functional.avg_pool2d(images, 5, 1, 2) > 0.5).float()
    loss = {}
    for name, lr in (("muon", 0.05), ("adamw", 3e-3)):
        model = UNet(widths=(8, 16), seed=0)
        optimizer = OPTIMIZERS[name](list(model.parameters()), lr)
        for _ in range(30):
            optimizer.zero_grad()
            value = nn.functional.binary_cross_entropy_with_logits(model(images), masks)
            value.backward()
            optimizer.step()
        loss[name] = value.item()
    assert loss["muon"] < loss["adamw"] < 0.69


def test_weights_without_a_gradient_stay():
    moved, left = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    moved.grad = torch.ones(2, 2)
    Muon([moved, left]).step()
    assert (left == 1).all() and (moved < 1).all()
