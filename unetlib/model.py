"""Tensors -> logits: the U-Net, its two blocks, and the file a model is kept in.

Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation, 2015,
https://arxiv.org/abs/1505.04597; here with padded convolutions and batch normalisation.
"""

import ctypes
import io
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from operator import index
from pathlib import Path

import numpy as np
import torch
from torch import nn

from unetlib.config import whole_file

FILE_FORMAT = "unetlib model"
FILE_VERSION = 1

_seeding = threading.Lock()  # all threads share PyTorch's random state


class ModelFileError(ValueError):
    """A model file cannot be used: one sentence that names the file and the remedy."""


class EncoderBlock(nn.Module):
    """Twice: 3x3 convolution, batch normalisation, ReLU; height and width stay.

    ``(B, in_channels, H, W)`` -> ``(B, out_channels, H, W)``. A convolution followed by batch
    normalisation needs no bias of its own: the normalisation subtracts it again.
    """

    def __init__(self, in_channels: int, out_channels: int, batch_norm: bool = True):
        super().__init__()
        layers = []
        for channels in (in_channels, out_channels):
            layers.append(nn.Conv2d(channels, out_channels, 3, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(out_channels))
            layers.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class DecoderBlock(nn.Module):
    """Double height and width, join the skip connection, then convolve as an encoder block does.

    ``x (B, in_channels, H, W)`` and ``skip (B, skip_channels, 2H, 2W)`` ->
    ``(B, out_channels, 2H, 2W)``. Without a skip connection: ``skip_channels=0``, ``skip=None``.

    Args:
        up_kernel: 3 (neighbouring windows overlap: a smoother map) or 2 (they tile: fewer weights).
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        batch_norm: bool = True,
        up_kernel: int = 3,
    ):
        super().__init__()
        if up_kernel not in (2, 3):
            raise ValueError(f"up_kernel={up_kernel} must be 2 or 3.")
        trim = up_kernel - 2  # a 3x3 kernel needs padding to come out at exactly twice the size
        self.up = nn.ConvTranspose2d(
            in_channels, out_channels, up_kernel, stride=2, padding=trim, output_padding=trim
        )
        self.convs = EncoderBlock(out_channels + skip_channels, out_channels, batch_norm)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        x = self.up(x)
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return self.convs(x)


class UNet(nn.Module):
    """A compact U-Net: images ``(B, in_channels, H, W)`` -> logits ``(B, out_channels, H, W)``.

    Logits, not probabilities: apply a sigmoid before comparing with a threshold of 0.5.

    Args:
        widths: channels of each level, from the full resolution down to the bottleneck.
        batch_norm: normalise after each 3x3 convolution.
        skips: hand each encoder level's features to the decoder level of the same resolution.
        up_kernel: see ``DecoderBlock``.
        seed: of the initial weights; the global random state is left as it was.

    Raises:
        ValueError (from forward): height or width is not a multiple of ``stride``,
            ``2 ** (len(widths) - 1)``: 4 for the default widths.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        widths: tuple[int, ...] = (64, 128, 256),
        batch_norm: bool = True,
        skips: bool = True,
        up_kernel: int = 3,
        seed: int = 0,
    ):
        super().__init__()
        widths = tuple(map(index, widths))  # NumPy's numbers as Python's own
        self.architecture = dict(
            in_channels=in_channels,
            out_channels=out_channels,
            widths=widths,
            batch_norm=batch_norm,
            skips=skips,
            up_kernel=up_kernel,
        )
        self.stride = 2 ** (len(widths) - 1)
        with _seeding, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoders = nn.ModuleList(
                EncoderBlock(before, width, batch_norm)
                for before, width in zip((in_channels, *widths), widths, strict=False)
            )
            self.pool = nn.MaxPool2d(2)
            self.decoders = nn.ModuleList(
                DecoderBlock(below, width if skips else 0, width, batch_norm, up_kernel)
                for below, width in zip(widths[:0:-1], widths[-2::-1], strict=True)
            )
            self.head = nn.Conv2d(widths[0], out_channels, 1)
            self.apply(_initialise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        recording = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if not recording and (height % self.stride or width % self.stride):
            raise ValueError(
                f"An image of {width}x{height} pixels does not fit: width and height must be "
                f"multiples of {self.stride}."
            )
        skips = []
        for encoder in self.encoders[:-1]:
            x = encoder(x)
            skips.append(x)
            x = self.pool(x)
        x = self.encoders[-1](x)
        for decoder in self.decoders:
            skip = skips.pop()
            x = decoder(x, skip if self.architecture["skips"] else None)
        return self.head(x)


def _initialise(module: nn.Module) -> None:
    """He initialisation, made for ReLU: https://arxiv.org/abs/1502.01852."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        # The weights of a transposed convolution have their input channels first.
        mode = "fan_in" if isinstance(module, nn.Conv2d) else "fan_out"
        nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def count_parameters(model: nn.Module) -> int:
    """The number of trained values (batch normalisation's running statistics not included)."""
    return sum(parameter.numel() for parameter in model.parameters())


def save_model(path: str | Path, model: UNet, size: int, threshold: float = 0.5, **info) -> None:
    """Write a model with all that is needed to predict with it.

    The file is a dict of plain types and tensors, so that it loads with ``weights_only=True``. It
    is written under another name, flushed to disk, then renamed: never half a file. Of a model
    that ``torch.compile`` has wrapped, the plain one is written.

    Args:
        size: the image side in pixels that the model was trained at.
        threshold: of the probability above which a pixel counts as car.
        info: further plain values to keep (recipe, scores); NumPy's numbers become Python's.

    Raises:
        ModelFileError: not a ``UNet``, or one that was changed after it was made; or a value that
            could not be loaded again. Nothing is written.
    """
    model = getattr(model, "_orig_mod", model)
    if not _as_built(model):
        raise ModelFileError(
            f"{path}: not written, the model is not what UNet(...) built and would load as another "
            "one; keep model.state_dict() with torch.save, and its class in your code."
        )
    content = dict(
        format=FILE_FORMAT,
        version=FILE_VERSION,
        architecture=_plain(model.architecture),
        size=_plain(size),
        normalisation="grey / 255",
        threshold=_plain(threshold),
        info=_plain(info),
    )
    for name, value in (content["info"] | content).items():
        if not _loads_again(value):
            raise ModelFileError(
                f"{path}: not written, {name} is no plain value; give numbers, texts, lists, dicts."
            )
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    save_atomically(content | dict(state_dict=state), Path(path))


def _as_built(model: nn.Module) -> bool:
    """Whether the model's architecture describes all of its layers."""
    if not isinstance(model, UNet):
        return False
    same = UNet(**model.architecture)
    # On several GPUs batch normalisation is of another kind, which computes alike after training.
    layers = repr(model).replace("SyncBatchNorm", "BatchNorm2d")
    return layers == repr(same) and model.state_dict().keys() == same.state_dict().keys()


def _plain(value):
    """NumPy's numbers, however deep inside, as Python's own."""
    if isinstance(value, dict):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _loads_again(value) -> bool:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception:  # pickle has many, and so has every class
        return False
    return True


def save_atomically(content: dict, path: Path) -> None:
    """``torch.save`` that leaves either the old file or the whole new one.

    Raises:
        OSError: disk full, or no permission to write.
    """
    buffer = io.BytesIO()  # torch's own writer reports a full disk as an internal error
    torch.save(content, buffer)
    with whole_file(path) as part:
        part.write_bytes(buffer.getbuffer())


def load_plain(path: str | Path) -> dict:
    """Read what ``save_atomically`` wrote; nothing in it is executed (``weights_only=True``).

    PyTorch writes a CRC-32 beside every part of the file but does not look at it: a weight that a
    bad disk has changed would be used. So the sums are compared first.

    Raises:
        ModelFileError: no such file, damaged, or more than plain values and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # A part marked as a folder has no content for PyTorch, which then uses any memory.
            marked = any(part.external_attr for part in archive.infolist())
            if marked or archive.testzip() is not None:
                raise zipfile.BadZipFile
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelFileError(
            f"{path}: no such file; check the path or train a model first."
        ) from None
    except Exception:  # zip archives and pickles can be broken in ways of many names
        raise ModelFileError(
            f"{path}: refused, not a plain file of weights (damaged, or it holds code to run); "
            "train or export it anew."
        ) from None


def load_model(path: str | Path) -> tuple[UNet, dict]:
    """Read a model file; nothing in it is executed (``weights_only=True``).

    Returns:
        The model in evaluation mode on the CPU, and the file's other entries: ``size``,
        ``threshold``, ``normalisation``, ``architecture``, ``info``.

    Raises:
        ModelFileError: no such file, not a model file, damaged, or of another version.
    """
    content = load_plain(path)
    if not isinstance(content, dict) or content.get("format") != FILE_FORMAT:
        raise ModelFileError(
            f"{path}: not a unetlib model; write it with unetlib.model.save_model."
        )
    if content["version"] != FILE_VERSION:
        raise ModelFileError(
            f"{path}: file version {content['version']}, this unetlib reads {FILE_VERSION}; "
            "export it anew."
        )
    try:
        model = UNet(**content["architecture"])
        model.load_state_dict(content.pop("state_dict"))
    except (RuntimeError, TypeError, ValueError, KeyError):
        raise ModelFileError(
            f"{path}: the weights do not fit the architecture named in the file; export it anew."
        ) from None
    return model.eval(), content


def pick_device() -> torch.device:
    """CUDA where there is one, then Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_precision(device: torch.device) -> str:
    """``bf16`` where the hardware computes it natively, else ``fp32``.

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


_keeping = False  # inside of a memory_kept block


@contextmanager
def memory_kept(device: torch.device) -> Iterator[None]:
    """On a CPU with glibc (Linux): keep freed memory for the next layer instead of returning it.

    By default every large tensor is fetched from the system and handed back, and the system clears
    its pages each time: up to 40 % of a training step. At the end the memory is returned, and only
    tensors of over 32 MB go back to the system at once.
    """
    global _keeping
    libc = ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" else None
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is None or _keeping:
        yield
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # names of settings in glibc's malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)
    _keeping = True
    try:
        yield
    finally:
        _keeping = False
        mallopt(mmap_max, 65536)
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 64 << 20)
        libc.malloc_trim(0)
