from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unetlib import DecoderBlock, EncoderBlock, Recipe, UNet, count_parameters
from unetlib.model import build

# ----------------------------------------------------------------------------- blocks and network


@pytest.mark.parametrize(("up_kernel", "parameters"), [(3, 2_067_777), (2, 1_862_977)])
def test_parameter_count(up_kernel, parameters):
    assert count_parameters(UNet(up_kernel=up_kernel)) == parameters


def test_encoder_block_is_two_times_convolution_normalisation_relu():
    kinds = [type(layer) for layer in EncoderBlock(3, 8).layers]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 2


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_convolution_has_a_bias_only_where_no_normalisation_follows(batch_norm):
    first, second = [
        layer
        for layer in EncoderBlock(1, 4, batch_norm=batch_norm).layers
        if isinstance(layer, nn.Conv2d)
    ]
    assert (first.bias is None) == (second.bias is None) == batch_norm


@pytest.mark.parametrize("up_kernel", [2, 3])
@pytest.mark.parametrize("skip_channels", [0, 5])
def test_decoder_block_doubles_the_size(up_kernel, skip_channels):
    block = DecoderBlock(8, skip_channels, 4, up_kernel=up_kernel)
    skip = torch.rand(2, skip_channels, 12, 20) if skip_channels else None
    assert block(torch.rand(2, 8, 6, 10), skip).shape == (2, 4, 12, 20)


def test_other_up_kernels_are_refused():
    with pytest.raises(ValueError, match="up_kernel=4"):
        DecoderBlock(8, 4, 4, up_kernel=4)


@settings(max_examples=25)
@given(height=st.integers(1, 20), width=st.integers(1, 20), up_kernel=st.sampled_from([2, 3]))
def test_any_height_and_width_divisible_by_4_comes_out_as_it_went_in(height, width, up_kernel):
    model = UNet(widths=(2, 3, 4), up_kernel=up_kernel).eval()
    with torch.no_grad():
        logits = model(torch.rand(1, 1, 4 * height, 4 * width))
    assert logits.shape == (1, 1, 4 * height, 4 * width)


@settings(max_examples=25)
@given(
    sides=st.tuples(st.integers(1, 70), st.integers(1, 70)).filter(
        lambda sides: sides[0] % 4 or sides[1] % 4
    )
)
def test_any_other_size_is_one_clear_error(sides):
    height, width = sides
    model = UNet(widths=(2, 3, 4))
    with pytest.raises(ValueError, match=rf"\b{width}x{height}\b.* 4\b"):
        model(torch.rand(1, 1, height, width))


def test_the_size_needed_follows_the_depth():
    assert UNet(widths=(2, 4, 6, 8))(torch.rand(2, 1, 8, 16)).shape == (2, 1, 8, 16)
    with pytest.raises(ValueError, match=r"\b8\b"):
        UNet(widths=(2, 4, 6, 8))(torch.rand(1, 1, 12, 16))


def test_channels_in_and_out():
    model = UNet(in_channels=3, out_channels=5, widths=(2, 4))
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 5, 8, 8)


def test_the_output_is_logits_of_both_signs():
    logits = UNet(widths=(4, 8))(torch.rand(4, 1, 32, 32))
    assert logits.min() < 0 < logits.max()


def test_every_weight_learns():
    model = UNet(widths=(4, 8, 16))
    model(torch.rand(2, 1, 16, 16)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_without_skips_detail_cannot_pass_the_bottleneck():
    """Four single dots within one pooled cell look the same below; only a skip can tell them."""
    dots = torch.zeros(4, 1, 16, 16)
    for number, (row, column) in enumerate([(8, 8), (8, 9), (9, 8), (9, 9)]):
        dots[number, 0, row, column] = 1.0

    class Below(nn.Module):
        """The network's encoder levels replaced by nothing but pooling."""

        def forward(self, x):
            return x

    spread = {}
    for skips in (True, False):
        model = UNet(widths=(1, 1), skips=skips, batch_norm=False).eval()
        model.encoders = nn.ModuleList([Below(), Below()])
        with torch.no_grad():
            spread[skips] = model(dots).std(dim=0).max().item()
    assert spread[False] == 0
    assert spread[True] > 0


def test_skips_cost_parameters():
    assert count_parameters(UNet(skips=False)) < count_parameters(UNet())


# ----------------------------------------------------------------------------------------- seeds


def equal_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def test_the_seed_makes_the_weights():
    torch.manual_seed(1)
    first = UNet(widths=(4, 8), seed=3)
    torch.manual_seed(2)
    assert equal_weights(first, UNet(widths=(4, 8), seed=3))
    assert not equal_weights(first, UNet(widths=(4, 8), seed=4))


def test_making_a_network_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    UNet(widths=(4, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_that_make_networks_at_once_get_the_weights_of_their_seeds():
    seeds = list(range(8))
    alone = [UNet(widths=(4, 8, 16), seed=seed) for seed in seeds]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: UNet(widths=(4, 8, 16), seed=seed), seeds))
    assert all(map(equal_weights, alone, together))
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_have_hes_spread():
    model = UNet()
    convolution = model.encoders[2].layers[3]  # 256 channels in
    assert convolution.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert model.head.bias.abs().max() == 0


# ---------------------------------------------------------------------------- PyTorch's defaults


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_whatever_the_default_type_the_weights_are_the_seeds_in_float32(kind):
    expected = UNet(widths=(4, 8), seed=3)
    torch.set_default_dtype(kind)
    try:
        found, own = UNet(widths=(4, 8), seed=3), build(Recipe(network=own_net, size=8))
        assert torch.get_default_dtype() == kind
    finally:
        torch.set_default_dtype(torch.float32)
    assert equal_weights(found, expected)
    assert all(one.dtype == torch.float32 for one in own.parameters())


def own_net() -> nn.Module:
    return nn.Conv2d(1, 1, 3, padding=1)
