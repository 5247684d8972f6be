"""Tensors -> logits: the U-Net and its two blocks.

Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation, 2015,
https://arxiv.org/abs/1505.04597; here with padded convolutions and batch normalisation.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from operator import index

import torch
from torch import nn

from unetlib.pictures import sides
from unetlib.recipe import OF_THE_UNET, Recipe, resolve
from unetlib.seeds import seeded

_seeding = threading.RLock()  # all threads share PyTorch's random state


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
    ``up_kernel``: 3 (neighbouring windows overlap: a smoother map) or 2 (they tile: fewer weights).
    """

    def __init__(
        self, in_channels: int, skip_channels: int, out_channels: int, batch_norm=True, up_kernel=3
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

    Logits, not probabilities: apply a sigmoid before comparing with a threshold of 0.5. Height and
    width are multiples of ``stride``, ``2 ** (len(widths) - 1)``: 4 for the default widths (else a
    ValueError from ``forward``).

    Args:
        widths: channels of each level, from the full resolution down to the bottleneck.
        batch_norm: normalise after each 3x3 convolution.
        skips: hand each encoder level's features to the decoder level of the same resolution.
        up_kernel: see ``DecoderBlock``.
        seed: of the initial weights; the global random state is left as it was.
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
        self.architecture = dict(in_channels=in_channels, out_channels=out_channels, widths=widths)
        self.architecture |= dict(batch_norm=batch_norm, skips=skips, up_kernel=up_kernel)
        self.stride = 2 ** (len(widths) - 1)
        with _seeding, seeded(seed):
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
            fit = f"width and height must be multiples of {self.stride}"
            raise ValueError(f"An image of {width}x{height} pixels does not fit: {fit}.")
        skips = []
        for encoder in self.encoders[:-1]:
            x = encoder(x)
            skips.append(x)
            x = self.pool(x)
        x = self.encoders[-1](x)
        for decoder in self.decoders:
            x = decoder(x, skips.pop() if self.architecture["skips"] else None)
        return self.head(x)


def _initialise(module: nn.Module) -> None:
    """He initialisation, made for ReLU: https://arxiv.org/abs/1502.01852."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        # The weights of a transposed convolution have their input channels first.
        mode = "fan_in" if isinstance(module, nn.Conv2d) else "fan_out"
        nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


NETWORKS = {"unet": UNet}


def build(recipe: Recipe) -> nn.Module:
    """The network of a recipe, untrained: the U-Net that its settings describe, or an own one;
    ValueError if that does not map images ``(2, C, H, W)`` to logits ``(2, 1, H, W)``.
    """
    network = resolve("network", recipe.network)
    if recipe.network == "unet":
        settings = {name: getattr(recipe, name) for name in OF_THE_UNET}
        return network(recipe.channels, seed=recipe.seed, **settings)
    with _seeding, seeded(recipe.seed):
        model = deepcopy(network())  # one made before and given again would go on learning
        for size in {recipe.size_in(1), recipe.size}:
            images = torch.zeros(2, recipe.channels, *sides(size))
            what = f"network={type(model).__name__}: for images {tuple(images.shape)} it"
            try:
                with evaluating(model):
                    found = tuple(model(images).shape)
            except Exception as error:  # a network may fail in any way
                reason = f"{type(error).__name__}, {error}".partition("\n")[0]
                raise ValueError(f"{what} raised {reason}; does it fit size and colour?") from error
            if found != (2, 1, *images.shape[2:]):
                raise ValueError(f"{what} gave {found}, not one logit per pixel, (2, 1, H, W).")
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each layer is in the mode it was in."""
    if any(weight.is_meta for weight in model.parameters()):
        raise ValueError("The model is on the device meta, without numbers: make it on another.")
    training = [module for module in model.modules() if module.training]
    filters = [weight for weight in model.parameters() if weight.ndim == 4]
    plain = all(weight.is_contiguous() for weight in filters)
    try:
        model.eval()
        # Measured: a CPU predicts in fp32 a fifth faster in this memory order, but trains slower.
        model.to(memory_format=torch.channels_last)
        with torch.no_grad():
            yield
    finally:
        if plain:
            model.to(memory_format=torch.contiguous_format)
        for module in training:
            module.training = True


def count_parameters(model: nn.Module) -> int:
    """The number of trained values, batch normalisation's running statistics not included."""
    return sum(parameter.numel() for parameter in model.parameters())
