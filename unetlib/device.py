"""Where to compute, and in which number format."""

from contextlib import nullcontext

import torch


def pick_device() -> torch.device:
    """CUDA where there is one, then Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_precision(device: torch.device) -> str:
    """``bf16`` (16 bits, float32's range) where the hardware computes it natively, else ``fp32``.

    Natively: AVX512-BF16 or AMX on a CPU, Ampere or later on CUDA. Elsewhere bf16 is emulated, and
    many times slower than fp32.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        return "bf16" if found.get("avx512_bf16") or found.get("amx_bf16") else "fp32"
    return "fp32"


def autocast(device: torch.device, precision: str):
    """Context in which a model computes in the given precision; weights stay float32."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
