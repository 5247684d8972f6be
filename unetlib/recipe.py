"""Recipe: every setting of a training run, and the two recipes of the course."""

from dataclasses import dataclass, fields
from operator import index
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np

MaskKind = Literal["hard", "soft"]
Augmentation = Literal["none", "flip", "mild"]
LARGEST_SEED = 10**14  # times 20,000, still a valid seed for PyTorch: each epoch has its own


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run; the defaults are the course's baseline recipe.

    Attributes:
        widths: channels per level of the U-Net.
        batch_norm: batch normalisation after each 3x3 convolution.
        skips: skip connections from encoder to decoder.
        up_kernel: kernel of the transposed convolutions, 3 or 2.
        size: image side in pixels; the lowest level must be 2x2 pixels or more.
        mask: train against ``hard`` (0/1) or ``soft`` (area coverage) masks.
        augment: ``none``, ``flip`` or ``mild`` (see ``dataset.augment_batch``).
        loss: ``bce``, ``dice`` or ``bce_dice`` (see ``losses``).
        optimizer: ``adam`` or ``adamw``.
        schedule: ``constant``, or ``one_cycle``: up to ``lr`` and down to almost 0
            (Smith: Super-Convergence, https://arxiv.org/abs/1708.07120).
        lr: learning rate; with ``one_cycle`` its peak.
        epochs: passes over the training images.
        half_size_epochs: how many epochs, the first ones, see images of half the size, a quarter of
            the work (progressive resizing, https://arxiv.org/abs/1707.02921 and fast.ai).
        batch_size: images per step, over all processes together; ``auto``: 16, and on CUDA the
            largest power of two per process that fits and leaves 20 steps an epoch, with ``lr``
            scaled by the square root of batch_size / 16 (https://arxiv.org/abs/2205.10287).
        precision: ``fp32``, ``bf16`` (autocast), or ``auto``: bf16 where the hardware has it.
        compile: ``torch.compile`` the model: pays on long GPU runs, needs a C++ compiler.
        seed: of initial weights, image order and augmentation; 0 to 10**14.

    Raises:
        ValueError: an impossible setting; one sentence that names it.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    batch_norm: bool = True
    skips: bool = True
    up_kernel: Literal[3, 2] = 3
    size: int = 128
    mask: MaskKind = "hard"
    augment: Augmentation = "none"
    loss: Literal["bce", "dice", "bce_dice"] = "bce"
    optimizer: Literal["adam", "adamw"] = "adam"
    schedule: Literal["constant", "one_cycle"] = "constant"
    lr: float = 1e-4
    epochs: int = 10
    half_size_epochs: int = 0
    batch_size: int | Literal["auto"] = 16
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(map(index, self.widths)))
        object.__setattr__(self, "lr", float(self.lr))
        for name, kind in get_type_hints(Recipe).items():
            object.__setattr__(self, name, _plain(name, getattr(self, name), kind))
        size, half, seen = self.size, self.half_size_epochs, self.size_in(1)
        shown = f"half of size={size}" if half else f"size={size}"
        stride = max(4, 2 ** (len(self.widths) - 1))  # data sets come in multiples of 4
        # Batch normalisation of one image needs more than one pixel, and so does the export.
        least = 2 ** len(self.widths)
        for sound, sentence in (
            (self.lr > 0, f"lr={self.lr} must be above 0"),
            (self.epochs > 0, f"epochs={self.epochs} must be above 0"),
            (self.batch_size == "auto" or self.batch_size > 0, "batch_size must be above 0"),
            (min(self.widths, default=0) > 0, f"widths={self.widths} must name channel counts"),
            (size > 0 and size % stride == 0, f"size={size} must be a multiple of {stride}"),
            (0 <= self.seed <= LARGEST_SEED, f"seed must be between 0 and {LARGEST_SEED}"),
            (0 <= half <= self.epochs, f"half_size_epochs={half} must be between 0 and epochs"),
            (seen % stride == 0, f"{shown} must be a multiple of {stride}"),
            (seen >= least, f"{shown} must be at least {least}, or give fewer widths"),
        ):
            _demand(sound, sentence)

    @classmethod
    def fast(cls, **changes) -> "Recipe":
        """The course's fast recipe: half of the epochs, three of them at half of the size, but four
        times the steps in an epoch.

        What each of its changes is worth: notebook 04. ``changes`` replace settings.
        """
        settings = dict(augment="mild", loss="bce_dice", optimizer="adamw", schedule="one_cycle")
        settings |= dict(lr=3e-3, epochs=5, half_size_epochs=3, batch_size=4)
        return cls(**(settings | changes))

    @property
    def network(self) -> dict:
        """The arguments of ``UNet`` that this recipe sets."""
        names = ("widths", "batch_norm", "skips", "up_kernel", "seed")
        return {name: getattr(self, name) for name in names}

    @property
    def changes(self) -> dict:
        """The settings in which this recipe differs from the baseline."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }

    def size_in(self, epoch: int) -> int:
        """Side in pixels of the training images in an epoch, counted from 1."""
        return self.size // 2 if epoch <= self.half_size_epochs else self.size


def _demand(condition, sentence: str) -> None:
    if not condition:
        raise ValueError(f"Recipe: {sentence}.")


def _plain(name: str, value, kind):
    """A setting as Python's own type, also from NumPy's numbers; refused if it is of another."""
    if kind is bool:
        _demand(isinstance(value, (bool, np.bool_)), f"{name}={value!r}: give True or False")
        return bool(value)
    if get_origin(kind) is Literal:
        allowed = ", ".join(map(repr, get_args(kind)))
        _demand(value in get_args(kind), f"{name}={value!r} is unknown: use one of {allowed}")
    elif kind is int or (name == "batch_size" and value != "auto"):
        auto = " or 'auto'" * (name == "batch_size")
        _demand(hasattr(value, "__index__"), f"{name}={value!r}: give an integer{auto}")
        return index(value)
    return value
