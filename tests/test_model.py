import os
import pickle
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unetlib.model import (
    DecoderBlock,
    EncoderBlock,
    ModelFileError,
    UNet,
    autocast,
    count_parameters,
    load_model,
    pick_device,
    pick_precision,
    save_atomically,
    save_model,
)

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
    with pytest.raises(ValueError, match="up_kernel=4 must be 2 or 3"):
        DecoderBlock(8, 4, 4, up_kernel=4)


@settings(max_examples=25)
@given(height=st.integers(1, 20), width=st.integers(1, 20), up_kernel=st.sampled_from([2, 3]))
def test_any_height_and_width_divisible_by_4_comes_out_as_it_went_in(height, width, up_kernel):
    model = UNet(widths=(2, 3, 4), up_kernel=up_kernel).eval()
    with torch.no_grad():
        logits = model(torch.rand(1, 1, 4 * height, 4 * width))
    assert logits.shape == (1, 1, 4 * height, 4 * width)


@given(
    sides=st.tuples(st.integers(1, 70), st.integers(1, 70)).filter(
        lambda sides: sides[0] % 4 or sides[1] % 4
    )
)
def test_any_other_size_is_one_clear_error(sides):
    height, width = sides
    model = UNet(widths=(2, 3, 4))
    with pytest.raises(ValueError, match=f"{width}x{height} pixels .* multiples of 4"):
        model(torch.rand(1, 1, height, width))


def test_the_size_needed_follows_the_depth():
    assert UNet(widths=(2, 4, 6, 8))(torch.rand(2, 1, 8, 16)).shape == (2, 1, 8, 16)
    with pytest.raises(ValueError, match="multiples of 8"):
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


# ----------------------------------------------------------------------------------------- files


def trained_a_little() -> UNet:
    model = UNet(widths=(4, 8), up_kernel=2, batch_norm=True)
    model(torch.rand(4, 1, 8, 8))  # moves the running statistics
    return model


def test_a_model_comes_back_as_it_was(tmp_path):
    model = trained_a_little()
    save_model(tmp_path / "sub" / "model.pth", model, 64, threshold=0.4, note="hello")
    loaded, content = load_model(tmp_path / "sub" / "model.pth")
    assert equal_weights(model, loaded)
    assert not loaded.training
    assert loaded.architecture == model.architecture
    assert (content["size"], content["threshold"]) == (64, 0.4)
    assert content["info"] == {"note": "hello"}
    assert content["normalisation"] == "grey / 255"


def test_the_file_holds_plain_types_only(tmp_path):
    save_model(tmp_path / "model.pth", trained_a_little(), 64)
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    assert set(map(type, content["state_dict"].values())) == {torch.Tensor}


def test_saving_leaves_one_file(tmp_path):
    for _ in range(2):
        save_model(tmp_path / "model.pth", trained_a_little(), 64)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.pth"
    save_model(path, trained_a_little(), 64)
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        save_atomically({"cannot be stored": lambda: None}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]


def test_numbers_of_numpy_are_saved_as_plain_ones(tmp_path):
    model = UNet(out_channels=np.int64(1), widths=np.array([4, 8]), batch_norm=np.True_)
    scores = [np.float32(0.5), {"car": np.int64(7)}, (np.str_("a"),)]
    save_model(
        tmp_path / "model.pth",
        model,
        np.int64(64),
        threshold=np.float64(0.45),
        val_dice=np.float64(0.9),
        scores=scores,
    )
    loaded, content = load_model(tmp_path / "model.pth")
    assert equal_weights(model, loaded) and loaded.architecture == UNet(widths=(4, 8)).architecture
    assert (content["size"], content["threshold"]) == (64, 0.45)
    assert content["info"] == {"val_dice": 0.9, "scores": [0.5, {"car": 7}, ("a",)]}


@pytest.mark.fault(
    "a value that could not be loaded again is saved with a model",
    "refused, named, before anything is written",
)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("folder", Path("/"), id="a path"),
        pytest.param("note", {"deep": [np.zeros(3)]}, id="an array deep inside"),
        pytest.param("note", lambda: None, id="code"),
        pytest.param("threshold", np.datetime64("2026-01-01"), id="a date"),
    ],
)
def test_what_would_not_load_is_not_saved(tmp_path, name, value):
    path = tmp_path / "model.pth"
    save_model(path, trained_a_little(), 64)
    before = path.read_bytes()
    with pytest.raises(ModelFileError, match=rf"model\.pth: not written, {name} is no plain value"):
        save_model(path, trained_a_little(), 64, **{name: value})
    assert path.read_bytes() == before


def test_a_compiled_model_is_saved_as_the_plain_one(tmp_path):
    model = trained_a_little()
    save_model(tmp_path / "model.pth", torch.compile(model), 64)
    assert equal_weights(model, load_model(tmp_path / "model.pth")[0])


def test_a_model_with_the_batch_normalisation_of_several_gpus_is_saved(tmp_path):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(trained_a_little())
    save_model(tmp_path / "model.pth", model, 64)
    assert equal_weights(model, load_model(tmp_path / "model.pth")[0])


class OtherUNet(UNet):
    """A tinkerer's network."""


def another_activation():
    model = trained_a_little()
    model.encoders[0].layers[2] = nn.GELU()
    return model


def one_more_weight():
    model = trained_a_little()
    model.factor = nn.Parameter(torch.ones(1))
    return model


@pytest.mark.fault(
    "a U-Net that was changed in its layers is saved as one that was not",
    "refused: it would load as another network",
)
@pytest.mark.parametrize(
    "make",
    [another_activation, one_more_weight, OtherUNet, lambda: nn.Conv2d(1, 1, 1)],
    ids=["another activation", "one more weight", "a class of its own", "no U-Net"],
)
def test_a_changed_network_is_not_saved_as_a_plain_one(tmp_path, make):
    with pytest.raises(ModelFileError, match=r"not what UNet\(\.\.\.\) built.*state_dict"):
        save_model(tmp_path / "model.pth", make(), 64)
    assert list(tmp_path.iterdir()) == []


class Payload:
    """What an attacker would put into a file; here it only makes an empty folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_the_payload_would_work_if_it_were_executed(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


@pytest.mark.parametrize("wrap", ["torch.save", "pickle", "inside a model file"])
def test_a_malicious_file_is_refused_and_not_executed(tmp_path, wrap):
    path, payload = tmp_path / "model.pth", Payload(tmp_path / "executed")
    if wrap == "pickle":
        path.write_bytes(pickle.dumps(payload, protocol=2))
    elif wrap == "torch.save":
        torch.save(payload, path)
    else:
        save_model(path, trained_a_little(), 64)
        content = torch.load(path, weights_only=True)
        torch.save({**content, "info": payload}, path)
    with pytest.raises(ModelFileError, match=r"model\.pth: refused"):
        load_model(path)
    assert not (tmp_path / "executed").exists()


def no_file(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("weights go here")


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-500])


def cut_off_early(path):
    path.write_bytes(path.read_bytes()[:200])


def folder(path):
    path.unlink()
    path.mkdir()


def bare_weights(path):
    torch.save(trained_a_little().state_dict(), path)


def a_tensor(path):
    torch.save(torch.zeros(3), path)


def whole_module(path):
    torch.save(trained_a_little(), path)


def other_version(path):
    torch.save({**torch.load(path, weights_only=True), "version": 99}, path)


def other_architecture(path):
    content = torch.load(path, weights_only=True)
    content["architecture"]["widths"] = (8, 16)
    torch.save(content, path)


@pytest.mark.fault(
    "a checkpoint that is not one, or of another version",
    "one sentence that names the file and the remedy",
)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_file, "no such file"),
        (empty, "refused"),
        (text, "refused"),
        (cut_off, "refused"),
        (cut_off_early, "refused"),
        (folder, "refused"),
        (whole_module, "refused"),
        (bare_weights, "not a unetlib model"),
        (a_tensor, "not a unetlib model"),
        (other_version, "file version 99"),
        (other_architecture, "the weights do not fit"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_file_that_cannot_be_used_is_one_clear_error(tmp_path, damage, message):
    path = tmp_path / "model.pth"
    save_model(path, trained_a_little(), 64)
    damage(path)
    with pytest.raises(ModelFileError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------- hardware


def test_the_device_picked_is_one_that_computes():
    assert torch.ones(2, device=pick_device()).sum().item() == 2


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(),
    reason="asks Linux on x86 what the processor has",
)
def test_bf16_is_picked_where_the_processor_computes_it_and_nowhere_else():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    native = flags & {"avx512_bf16", "amx_bf16"}
    assert pick_precision(torch.device("cpu")) == ("bf16" if native else "fp32")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_bf16_is_picked_from_ampere_on():
    generation = torch.cuda.get_device_capability()[0]
    assert pick_precision(torch.device("cuda")) == ("bf16" if generation >= 8 else "fp32")


def test_mps_computes_in_fp32():
    assert pick_precision(torch.device("mps")) == "fp32"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_autocast_sets_the_precision_of_the_computation_only(precision, dtype):
    layer = nn.Linear(4, 4)
    with autocast(torch.device("cpu"), precision):
        assert layer(torch.rand(2, 4)).dtype == dtype
    assert layer.weight.dtype == torch.float32
