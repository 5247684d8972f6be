"""Where to compute, in which number format, and how much at once."""

import math

import torch

from unetlib.pictures import sides

HALF = dict(bf16=torch.bfloat16, fp16=torch.float16)


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
    many times slower than fp32. Volta and Turing (V100, T4) have ``fp16`` instead.
    """
    if device.type == "cuda":
        generation = torch.cuda.get_device_capability(device)[0]
        return "bf16" if generation >= 8 else "fp16" if generation == 7 else "fp32"
    known = getattr(torch.cpu, "get_capabilities", dict)  # from PyTorch 2.11 on
    cpu = known() if device.type == "cpu" else {}
    return "bf16" if cpu.get("avx512_bf16") or cpu.get("amx_bf16") else "fp32"


def autocast(device: torch.device, precision: str):
    """Context in which a model computes in the given precision; weights stay float32."""
    return torch.autocast(device.type, HALF.get(precision), enabled=precision in HALF)


def at_once(device: torch.device, size: int | tuple[int, int]) -> int:
    """How many images to predict at once: 64 of 128x128 fill a GPU, 2 a CPU's cache."""
    return max(1, (2**15 if device.type == "cpu" else 2**20) // math.prod(sides(size)))
