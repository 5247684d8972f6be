"""Recipe: every setting of a training run, and the two recipes of the course."""

from dataclasses import dataclass, fields
from operator import index
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np

from unetlib.dataset import Augmentation, MaskKind

LARGEST_SEED = 10**14  # times 20,000 it still is a seed for PyTorch: each epoch has one of its own


def _whole(name: str, value) -> int:
    """A whole number as Python's own, also NumPy's."""
    try:
        return index(value)
    except TypeError:
        auto = " or 'auto'" if name == "batch_size" else ""
        raise ValueError(f"Recipe: {name}={value!r}: give a whole number{auto}.") from None


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run; the defaults are the course's baseline recipe.

    Attributes:
        widths: channels per level of the U-Net.
        batch_norm: batch normalisation after each 3x3 convolution.
        skips: skip connections from encoder to decoder.
        up_kernel: kernel of the transposed convolutions, 3 or 2.
        size: image side in pixels; at least two are left on the lowest level.
        mask: train against ``hard`` (0/1) or ``soft`` (area coverage) masks.
        augment: ``none``, ``flip`` or ``mild`` (see ``dataset.augmentation``).
        loss: ``bce``, ``dice`` or ``bce_dice`` (see ``metrics``).
        optimizer: ``adam`` or ``adamw``.
        schedule: ``constant``, or ``one_cycle``: up to ``lr`` and down to almost 0
            (Smith: Super-Convergence, https://arxiv.org/abs/1708.07120).
        lr: learning rate; with ``one_cycle`` its peak.
        epochs: passes over the training images.
        half_size_epochs: so many epochs at the start see images of half the size, a quarter of the
            work (progressive resizing, https://arxiv.org/abs/1707.02921 and fast.ai).
        batch_size: images per step, over all processes together; ``auto``: 16, and on CUDA the
            largest power of two that fits and leaves 20 steps an epoch, with ``lr`` scaled by
            the square root of batch_size / 16 (https://arxiv.org/abs/2205.10287).
        precision: ``fp32``, ``bf16`` (autocast), or ``auto``: bf16 where the hardware has it.
        compile: ``torch.compile`` the model: pays on long GPU runs, needs a C++ compiler.
        seed: of initial weights, image order and augmentation; 0 to 10**14.

    Raises:
        ValueError: a setting that cannot be; one sentence that names it.
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
        for name in ("batch_norm", "skips", "compile"):
            value = getattr(self, name)
            if not isinstance(value, (bool, np.bool_)):
                raise ValueError(f"Recipe: {name}={value!r}: give True or False.")
            object.__setattr__(self, name, bool(value))
        for name in ("size", "epochs", "half_size_epochs", "batch_size", "seed"):
            value = getattr(self, name)
            if not (name == "batch_size" and value == "auto"):
                object.__setattr__(self, name, _whole(name, value))
        for name, kind in get_type_hints(Recipe).items():
            value, allowed = getattr(self, name), get_args(kind)
            if get_origin(kind) is Literal and value not in allowed:
                raise ValueError(
                    f"Recipe: {name}={value!r} is unknown: use one of "
                    f"{', '.join(map(repr, allowed))}."
                )
        for name in ("lr", "epochs", "batch_size"):
            if getattr(self, name) != "auto" and not getattr(self, name) > 0:
                raise ValueError(f"Recipe: {name}={getattr(self, name)} must be above 0.")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"Recipe: widths={self.widths} must name one or more channel counts.")
        stride = max(4, 2 ** (len(self.widths) - 1))  # data sets come in multiples of 4
        if self.size < stride or self.size % stride:
            raise ValueError(f"Recipe: size={self.size} must be a multiple of {stride}.")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"Recipe: seed={self.seed} must be between 0 and {LARGEST_SEED}.")
        if not 0 <= self.half_size_epochs <= self.epochs:
            raise ValueError(
                f"Recipe: half_size_epochs={self.half_size_epochs} must be between 0 and "
                f"epochs={self.epochs}."
            )
        if self.half_size_epochs and self.size % (2 * stride):
            raise ValueError(
                f"Recipe: half of size={self.size} must be a multiple of {stride}, too, for "
                f"half_size_epochs={self.half_size_epochs}."
            )
        # Batch normalisation of one image needs more than one pixel, and so does the export.
        least = 2 ** len(self.widths)
        if self.size_in(1) < least:
            half = "half of " if self.half_size_epochs else ""
            raise ValueError(
                f"Recipe: {half}size={self.size} leaves one pixel below {len(self.widths)} widths: "
                f"it must be at least {least}, or give fewer widths."
            )

    @classmethod
    def fast(cls, **changes) -> "Recipe":
        """The course's fast recipe: half of the epochs, three of them at half of the size, but four
        times the steps in an epoch.

        What each of its changes is worth: notebook 04. ``changes`` replace settings.
        """
        settings = dict(
            augment="mild",
            loss="bce_dice",
            optimizer="adamw",
            schedule="one_cycle",
            lr=3e-3,
            epochs=5,
            half_size_epochs=3,
            batch_size=4,
        )
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
