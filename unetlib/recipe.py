"""Recipe: every setting of a training run, and the recipes of the course."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from operator import index
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np

from unetlib.pictures import sides

# The settings that take code: their built-in names, and the table to register others in.
BUILT_IN = {
    "network": ("unet",),
    "augment": ("none", "flip", "mild", "backgrounds"),
    "loss": ("bce", "dice", "bce_dice"),
    "optimizer": ("adam", "adamw", "sgd", "muon"),
    "schedule": ("constant", "one_cycle", "cosine"),
}
TABLES = dict(network="model.NETWORKS", augment="dataset.AUGMENTATIONS", loss="losses.LOSSES")
TABLES |= dict(optimizer="training.OPTIMIZERS", schedule="training.SCHEDULES")
NO_NUMBER = dict(batch_size="auto", patience=None)  # what may stand in place of an integer
OF_THE_UNET = ("widths", "batch_norm", "skips", "up_kernel")
_AT = [one / "data/pretrained/unet_model.pth" for one in Path(__file__).resolve().parents[:2]]
PRETRAINED = _AT[0] if _AT[0].is_file() else _AT[1]  # installed, data/ lies in the package
LARGEST_SEED = 10**14  # times 20,000, still a valid seed for PyTorch: each epoch has its own


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run; the defaults are the course's baseline recipe.

    Network, augmentation, loss, optimizer and schedule are a built-in name, a name registered in
    their table (``LOSSES["focal"] = focal_loss``), or the function itself. An impossible
    setting is a ValueError, one sentence that names it.

    Attributes:
        network: ``unet``, or f() -> a module that maps ``(B, C, H, W)`` to ``(B, 1, H, W)`` logits,
            called under the seed, such as ``partial(UNet, widths=(32, 64))``.
        widths: channels per level of the U-Net.
        batch_norm: batch normalisation after each 3x3 convolution.
        skips: skip connections from encoder to decoder.
        up_kernel: kernel of the transposed convolutions, 3 or 2.
        size: image side, or (height, width), in pixels; the U-Net's lowest level needs 2x2 or more.
        colour: three channels, red, green and blue, instead of grey.
        mask: of both losses, ``hard`` (0/1) or ``soft`` (area coverage); Dice is of hard masks.
        augment: a name in ``AUGMENTATIONS``, a function or a transform, see ``CarvanaDataset``.
        loss: ``bce``, ``dice``, ``bce_dice`` or f(logits, masks) -> scalar, also of a single image.
        optimizer: ``adam``, ``adamw``, ``sgd`` (momentum 0.9), ``muon`` (lr 0.02 to
            0.05), or f(parameters, lr) -> Optimizer.
        weight_decay: the optimizer's, which then gets it by that name; None: its own default.
        schedule: ``constant``; ``one_cycle``: up to ``lr``, then down to almost 0
            (https://arxiv.org/abs/1708.07120); ``cosine``: from ``lr`` down to 0; or
            f(optimizer, total_steps) -> LRScheduler, which is stepped after every batch.
        lr: learning rate; with ``one_cycle`` its peak.
        epochs: passes over the training images.
        patience: early stopping: ``fit`` ends the run after so many epochs without a better one.
        start_from: whose weights to start from (fine-tuning): a run, the path of a model file, or
            ``pretrained``, the weights that come with the repository.
        half_size_epochs: how many epochs, the first ones, see images of half the size, a quarter of
            the work (progressive resizing, https://arxiv.org/abs/1707.02921 and fast.ai).
        batch_size: images per step, over all processes together; ``auto``: 16, and on CUDA the
            largest power of two per process that fits and leaves 75 steps in the whole run, with
            ``lr`` (but Muon's) times the root of batch_size / 16 (https://arxiv.org/abs/2205.10287).
        precision: ``fp32``, ``bf16`` or ``fp16`` (autocast), or ``auto``, see ``pick_precision``.
        compile: ``torch.compile`` network and loss: for long GPU runs; needs a C++ compiler.
        seed: of initial weights, image order and augmentation; 0 to 10**14.
    """

    network: str | Callable = "unet"
    widths: tuple[int, ...] = (64, 128, 256)
    batch_norm: bool = True
    skips: bool = True
    up_kernel: Literal[3, 2] = 3
    size: int | tuple[int, int] = 128
    colour: bool = False
    mask: Literal["hard", "soft"] = "hard"
    augment: str | Callable = "none"
    loss: str | Callable = "bce"
    optimizer: str | Callable = "adam"
    weight_decay: float | None = None
    schedule: str | Callable = "constant"
    lr: float = 1e-4
    epochs: int = 10
    patience: int | None = None
    start_from: str | None = None
    half_size_epochs: int = 0
    batch_size: int | Literal["auto"] = 16
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    seed: int = 0

    def __post_init__(self):
        start = getattr(self.start_from, "checkpoint", self.start_from)  # of a run
        if start == "pretrained" or (start and Path(start).resolve() == PRETRAINED):
            start = PRETRAINED
        plain = dict(widths=tuple(map(index, self.widths)), lr=float(self.lr))
        plain |= dict(start_from=None if start is None else str(start), size=square(self.size))
        if self.weight_decay is not None:
            plain |= dict(weight_decay=float(self.weight_decay))
        for name, kind in get_type_hints(Recipe).items():
            value = _plain(name, plain.get(name, getattr(self, name)), kind)
            object.__setattr__(self, name, value)
        half, least, stride = self.half_size_epochs, 2 ** len(self.widths), self.stride
        shown = f"half of size={self.size}" if half else f"size={self.size}"
        ours, seen, whole = self.network == "unet", sides(self.size_in(1)), sides(self.size)
        of_the_unet = [name for name in OF_THE_UNET if name in self.changes]
        free = start != PRETRAINED or (ours and not self.colour and not of_the_unet)
        for sound, sentence in (
            (ours or not of_the_unet, f"{of_the_unet}: pass network=partial(UNet, ...) instead"),
            (free, "the pretrained weights are of the baseline's network, grey, not of this one"),
            (self.lr > 0, f"lr={self.lr} must be above 0"),
            (self.epochs > 0, f"epochs={self.epochs} must be above 0"),
            (self.patience is None or self.patience > 0, "patience must be above 0, or None"),
            (self.batch_size == "auto" or self.batch_size > 0, "batch_size must be above 0"),
            (min(self.widths, default=0) > 0, f"widths={self.widths} must name channel counts"),
            (0 <= self.seed <= LARGEST_SEED, f"seed must be between 0 and {LARGEST_SEED}"),
            (0 <= half < self.epochs, f"half_size_epochs={half} must be 0, or below epochs"),
            (not any(n % stride for n in seen + whole), f"{shown} must be a multiple of {stride}"),
            # Batch normalisation of one image needs more than one pixel, and so does the export.
            (not ours or min(seen) >= least, f"{shown} must be at least {least}, or fewer widths"),
        ):
            _demand(sound, sentence)

    @classmethod
    def fast(cls, epochs: int = 2, **changes) -> "Recipe":
        """The course's fast recipe: 2 epochs, the first at half the size, in batches of 4.

        What each of its changes is worth: notebook 04. ``changes`` replace settings.
        """
        settings = dict(augment="mild", loss="bce_dice", optimizer="muon", schedule="one_cycle")
        settings |= dict(lr=0.05, half_size_epochs=min(2, epochs - 1), batch_size=4)
        return cls(epochs=epochs, **(settings | changes))

    @classmethod
    def best(cls, epochs: int = 20, **changes) -> "Recipe":
        """For an evening on a laptop, or minutes on a GPU: what has earned its place in tables.

        ``data/pretrained`` is trained by it, and says what each choice is worth.
        """
        settings = dict(augment="backgrounds", half_size_epochs=epochs // 2, batch_size=8)
        return cls.fast(epochs, **(settings | changes))

    @classmethod
    def few(cls, epochs: int = 25, **changes) -> "Recipe":
        """Fine-tune the weights that come with the repository on few pictures, 10 to 50."""
        settings = dict(start_from="pretrained", lr=3e-3, half_size_epochs=0)
        return cls.fast(epochs, **(settings | changes))

    @classmethod
    def gpu(cls, epochs: int = 6, **changes) -> "Recipe":
        """``fast`` for a GPU, where a step of many images takes hardly longer than one of a few."""
        return cls.fast(epochs, **(dict(half_size_epochs=0, batch_size="auto") | changes))

    @property
    def stride(self) -> int:
        """What height and width must be multiples of; 1 for an own network, which is just tried."""
        return max(4, 2 ** (len(self.widths) - 1)) if self.network == "unet" else 1

    @property
    def channels(self) -> int:
        return 3 if self.colour else 1

    @property
    def changes(self) -> dict:
        """The settings in which this recipe differs from the baseline."""
        return {name: one for name, one in vars(self).items() if one != getattr(Recipe, name)}

    def size_in(self, epoch: int) -> int | tuple[int, int]:
        """Side, or (height, width), of the training images in an epoch, counted from 1."""
        if epoch > self.half_size_epochs:
            return self.size
        return square([side // 2 for side in sides(self.size)])


def resolve(setting: str, value):
    """The built-in or registered function that a setting names, or is (ValueError: neither)."""
    if callable(value):
        return value
    module, table = TABLES[setting].split(".")
    known = getattr(import_module(f"unetlib.{module}"), table)
    if not isinstance(value, str) or value not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(f"{setting}={value!r} is unknown: use one of {names}, or a function.")
    return known[value]


def square(size) -> int | tuple[int, int]:
    """A square's size as one number."""
    height, width = sides(size)
    return height if height == width else (height, width)


def _demand(condition, sentence: str) -> None:
    if not condition:
        raise ValueError(f"Recipe: {sentence}.")


def _plain(name: str, value, kind):
    """A setting as Python's own type, also from NumPy's numbers; refused if it is of another."""
    if name in BUILT_IN:
        if not (isinstance(value, str) and value in BUILT_IN[name]):
            resolve(name, value)
        made = name == "network" and hasattr(value, "state_dict") and not isinstance(value, type)
        _demand(not made, "network: give a class, or a function that makes one, not a network")
    elif kind is bool:
        _demand(isinstance(value, (bool, np.bool_)), f"{name}={value!r}: give True or False")
        return bool(value)
    elif get_origin(kind) is Literal:
        allowed = ", ".join(map(repr, get_args(kind)))
        _demand(value in get_args(kind), f"{name}={value!r} is unknown: use one of {allowed}")
    elif kind is int or (name in NO_NUMBER and value != NO_NUMBER[name]):
        auto = " or 'auto'" * (name == "batch_size")
        _demand(hasattr(value, "__index__"), f"{name}={value!r}: give an integer{auto}")
        return index(value)
    return value
