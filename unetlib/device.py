"""Where to compute, and in which number format."""

import torch


def pick_device() -> torch.device:
    """CUDA, else Apple's MPS, else the CPU; ValueError if PyTorch's default device is ``meta``."""
    if torch.get_default_device().type == "meta":
        raise ValueError("PyTorch's default device is meta, which computes nothing: set 'cpu'.")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_precision(device: torch.device) -> str:
    """``bf16`` (16 bits, float32's range) where the hardware computes it natively, else ``fp32``.

    Natively: AVX512-BF16 or AMX on a CPU, Ampere or later on CUDA. Elsewhere bf16 is emulated, and
    many times slower than fp32.
    """
    cuda = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    cpu = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16" if cuda or cpu.get("avx512_bf16") or cpu.get("amx_bf16") else "fp32"


def autocast(device: torch.device, precision: str):
    """Context in which a model computes in the given precision; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
