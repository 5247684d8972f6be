import platform
from pathlib import Path

import pytest
import torch
from torch import nn

from unetlib import pick_device
from unetlib.device import autocast, pick_precision


def test_the_device_picked_is_one_that_computes():
    assert torch.ones(2, device=pick_device()).sum().item() == 2


@pytest.mark.fault("PyTorch's default device is meta, which has no numbers", "refused")
def test_meta_is_no_device_to_compute_on():
    with torch.device("meta"), pytest.raises(ValueError, match="meta"):
        pick_device()
    torch.set_default_device("meta")
    try:
        with pytest.raises(ValueError, match="meta"):
            pick_device()
    finally:
        torch.set_default_device(None)


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
    assert pick_precision(torch.device("cuda")) == (
        "bf16" if generation >= 8 else "fp16" if generation == 7 else "fp32"
    )


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
