"""Samples -> tensors: decode, shrink, cache, augment, batch."""

import copy
import hashlib
import math
import operator
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm.auto import tqdm

from unetlib import config
from unetlib.carvana import fingerprint
from unetlib.pictures import (
    UNREADABLE,
    DataError,
    Problem,
    load_mask,
    sides,
    upright,
    why_unreadable,
)

JITTER = 0.4  # mild augmentation: brightness and contrast between 0.6 and 1.4 times
CACHE_VERSION = 3  # raise it when decoding or the file changes, so that old caches are not used
MaskKind = Literal["hard", "soft"]
Augmentation = Literal["none", "flip", "mild"]


def load_image(source, size: int | tuple[int, int]) -> np.ndarray:
    """Read an image as the model sees it; dataset, calibration and predictor all call this.

    Greyscale, upright (EXIF), stretched to the size without borders, by area averaging. A JPEG is
    decoded at half scale where that leaves at least 4 times the target: faster, and under half a
    grey level off on photos (a quarter of the scale would be up to one level off).

    Args:
        source: a path, an open file, a PIL image, or an array ``(H, W)``, ``(H, W, 1)``,
            ``(H, W, 3)`` or ``(H, W, 4)``: uint8, uint16, boolean, or float in [0, 1].
        size: side of the square, or ``(height, width)``, in pixels.

    Returns:
        uint8 array ``(height, width)``.

    Raises:
        DataError: the file or array cannot be read as an image.
        ValueError: see ``pictures.sides``.
    """
    height, width = sides(size)
    if isinstance(source, Image.Image):
        return _shrink(_to_grey(source), height, width)
    if isinstance(source, np.ndarray):
        return _shrink(_array_to_grey(source), height, width)
    is_path = isinstance(source, (str, os.PathLike))
    if not is_path and not hasattr(source, "read"):
        kind = type(source).__name__
        raise DataError(f"A {kind} is no image: give a path, a file, a PIL image or an array.")
    try:
        with Image.open(source) as opened:
            least = max(4 * width, opened.width // 2), max(4 * height, opened.height // 2)
            opened.draft("L", least)
            return _shrink(_to_grey(opened), height, width)
    except UNREADABLE as error:
        unknown = "no picture inside, or damaged", "open another file"
        why, remedy = why_unreadable(source, error) if is_path else unknown
        problem = Problem(str(source), f"cannot be read as an image ({why})", remedy)
        raise DataError(problem) from None


def _to_grey(image: Image.Image) -> Image.Image:
    image = upright(image)
    if image.mode == "CMYK":
        image = image.convert("RGB")
    return image.convert("L")


def _array_to_grey(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype == bool or (
        array.dtype.kind == "f" and array.size and 0 <= array.min() <= array.max() <= 1
    ):
        array = (array * 255.0 + 0.5).astype(np.uint8)
    coloured = array.ndim == 3 and array.shape[2] in (3, 4)
    if not array.size or array.dtype != np.uint8 or not (array.ndim == 2 or coloured):
        raise DataError(
            f"An array of shape {array.shape} and type {array.dtype} is no image: give (H, W) or "
            "(H, W, 3), uint8 or float in [0, 1]."
        )
    return Image.fromarray(array).convert("L")


def _shrink(grey: Image.Image, height: int, width: int) -> np.ndarray:
    return np.asarray(grey.resize((width, height), Image.Resampling.BOX))


def load_coverage(path: str | Path, size: int | tuple[int, int]) -> np.ndarray:
    """Read a mask as area coverage: how much of each small pixel the car covers.

    Returns:
        uint8 array ``(height, width)``, 0 (no car) to 255 (all car); from 128 up the car covers at
        least half of the pixel.

    Raises:
        DataError: as ``carvana.load_mask``.
        ValueError: see ``pictures.sides``.
    """
    height, width = sides(size)
    mask = Image.fromarray(load_mask(path).astype(np.uint8) * 255)
    return _shrink(mask, height, width)


def to_tensor(grey: np.ndarray) -> torch.Tensor:
    """uint8 ``(..., H, W)`` -> float32 ``(..., 1, H, W)`` in [0, 1]."""
    return torch.from_numpy(np.array(grey)).unsqueeze(-3).float() / 255


def augmentation(name: Augmentation) -> v2.Transform | None:
    """Random changes that keep a car a car; a new draw for every image and epoch.

    Args:
        name: ``none``; ``flip`` (left-right, half of the time); ``mild`` (flip, brightness and
            contrast within +-40 %).

    Returns:
        A torchvision v2 transform for an ``(image, mask)`` pair of ``tv_tensors``, or None. The
        mask must be a ``tv_tensors.Mask``: v2 leaves a plain tensor behind without a word.
    """
    flip = v2.RandomHorizontalFlip(0.5)
    if name == "mild":
        return v2.Compose([flip, v2.ColorJitter(brightness=JITTER, contrast=JITTER)])
    if name not in get_args(Augmentation):
        raise ValueError(
            f"augment={name!r} is unknown: use one of {', '.join(get_args(Augmentation))}."
        )
    return flip if name == "flip" else None


def augment_batch(
    images: torch.Tensor, masks: torch.Tensor, name: Augmentation, draws: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``augmentation`` for a whole batch at once, several times faster than image by image.

    Args:
        images, masks: float32 ``(B, 1, H, W)`` in [0, 1].
        draws: uniform random numbers ``(B, 3)``: flip below 0.5, brightness, contrast.

    Returns:
        Images and masks, as torchvision's v2 would make them from the same factors.
    """
    flipped = (draws[:, 0] < 0.5)[:, None, None, None]
    images, masks = (torch.where(flipped, batch.flip(-1), batch) for batch in (images, masks))
    if name == "mild":
        brightness, contrast = (1 - JITTER + 2 * JITTER * draws[:, 1:]).T[..., None, None, None]
        images = (images * brightness).clamp(0, 1)
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (contrast * images + (1 - contrast) * mean).clamp(0, 1)
    return images, masks


class CarvanaDataset(Dataset):
    """Images and masks as tensors, decoded once.

    ``dataset[i]`` is ``(image, mask)``: float32 ``(1, H, W)`` each, the image in [0, 1], the mask
    0 or 1 (``hard``: area coverage at least one half) or the coverage itself (``soft``). A
    ``DataLoader`` fetches whole batches at once (``__getitems__``), which is much faster.

    Args:
        samples: rows of ``carvana.find_samples`` that have a mask.
        size: side in pixels; any multiple of 4 suits the default U-Net.
        mask: ``hard`` or ``soft``.
        augment: see ``augmentation``.
        cache: keep decoded images in ``config.cache_dir()``, memory-mapped, keyed by content and
            size; False decodes into memory.

    Attributes:
        samples: the table, with a fresh index.
        images, coverage: uint8 arrays ``(N, H, W)``.

    Raises:
        ValueError: unknown mask kind or augmentation, or a size below 4 or not a multiple of 4.
        DataError: no rows, a column missing, a row without a mask, or a file that cannot be read.
    """

    def __init__(
        self,
        samples: pd.DataFrame,
        size: int = 128,
        mask: MaskKind = "hard",
        augment: Augmentation = "none",
        cache: bool = True,
    ):
        whole = operator.index(size) if hasattr(size, "__index__") else 0
        if whole < 4 or whole % 4:
            near = max(4, whole // 4 * 4 + 4)
            raise ValueError(
                f"size={size} must be a multiple of 4, a whole number, for example {near}."
            )
        if mask not in get_args(MaskKind):
            raise ValueError(f"mask={mask!r} is unknown: use 'hard' or 'soft'.")
        if not len(samples):
            raise DataError("The sample table has no rows: nothing to learn from or to check.")
        absent = [name for name in ("id", "image", "mask") if name not in samples]
        if absent:
            raise DataError(f"The sample table has no column {absent[0]!r}: keep all columns.")
        without = samples["mask"].isna() | (samples["mask"] == "")  # read_csv makes NaN of ""
        if without.any():
            first = samples.loc[without, "image"].iloc[0]
            raise DataError(
                f"{first}: has no mask; keep only rows with one (mask neither '' nor NaN)."
            )
        self.samples = samples.reset_index(drop=True)
        self.size, self.mask = whole, mask
        self.augment, self.transform = augment, augmentation(augment)
        self.draws: torch.Tensor | None = None
        decoded = _cached(self.samples, whole) if cache else _decode(self.samples, whole)
        self.images, self.coverage = decoded[:, 0], decoded[:, 1]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = to_tensor(self.images[index]), to_tensor(self.coverage[index])
        if self.mask == "hard":
            mask = (mask >= 0.5).float()
        if self.transform is not None:
            image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
            image, mask = image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)
        return image, mask

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        images, masks = to_tensor(self.images[indices]), to_tensor(self.coverage[indices])
        if self.mask == "hard":
            masks = (masks >= 0.5).float()
        if self.augment != "none":
            draws = torch.rand(len(indices), 3) if self.draws is None else self.draws[indices]
            images, masks = augment_batch(images, masks, self.augment, draws)
        return list(zip(images, masks, strict=True))

    def set_epoch(self, seed: int, epoch: int) -> None:
        """Fix the augmentation of an epoch's batches: each image's draw depends on these alone.

        So a resumed epoch repeats, and it does not matter which process draws which image.
        """
        generator = torch.Generator().manual_seed(_epoch_seed(seed, epoch) + 1)
        self.draws = torch.rand(len(self), 3, generator=generator)

    def part(self, process: int, processes: int) -> "CarvanaDataset":
        """Every ``processes``-th row from row ``process`` on, of the same decoded images."""
        rows, part = slice(process, None, processes), copy.copy(self)
        part.samples = self.samples[rows].reset_index(drop=True)
        part.images, part.coverage = self.images[rows], self.coverage[rows]
        part.draws = None if self.draws is None else self.draws[rows]
        return part


def _decode(samples: pd.DataFrame, size: int) -> np.ndarray:
    """uint8 ``(N, 2, size, size)``: image and coverage of every row."""
    try:
        decoded = np.empty((len(samples), 2, size, size), np.uint8)
    except (MemoryError, ValueError):
        raise DataError(
            f"{len(samples)} images of {size}x{size} pixels and their masks do not fit in memory: "
            "lower size, or take fewer rows."
        ) from None

    def decode_row(row: int) -> None:
        decoded[row, 0] = load_image(samples["image"][row], size)
        decoded[row, 1] = load_coverage(samples["mask"][row], size)

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of the interpreter lock
        rows = pool.map(decode_row, range(len(samples)))
        for _ in tqdm(rows, f"decoding to {size}x{size}", len(samples)):
            pass
    return decoded


def _cached(samples: pd.DataFrame, size: int) -> np.ndarray:
    """The same from the cache, which is made where it is absent or damaged."""
    key, decoded = f"v{CACHE_VERSION} {size} {fingerprint(samples)}", None
    shape = (len(samples), 2, size, size)
    try:
        path = config.cache_dir() / f"decoded-{hashlib.sha256(key.encode()).hexdigest()[:16]}.bin"
        if path.exists():
            cached = _intact(path, shape)
            if cached is not None:
                return cached
            warnings.warn(f"{path}: damaged; the images are decoded anew.", stacklevel=3)
        decoded = _decode(samples, size)
        # Two processes may build the same cache at once.
        with config.whole_file(path) as part, open(part, "wb") as file:
            file.write(decoded)
            file.write(hashlib.sha256(decoded).digest())
        return np.memmap(path, np.uint8, "r", shape=shape)
    except OSError as error:
        warnings.warn(
            f"decoded images are not kept for next time ({error}): free some space, or set "
            "UNETLIB_HOME to a folder that you can write to.",
            stacklevel=3,
        )
        return _decode(samples, size) if decoded is None else decoded


def _intact(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """A cache file's array, mapped, or None if the checksum behind it is not the array's."""
    with open(path, "rb") as file:
        file.seek(math.prod(shape))
        checksum = file.read()
    if len(checksum) != hashlib.sha256().digest_size:
        return None
    cached = np.memmap(path, np.uint8, "r", shape=shape)
    return cached if hashlib.sha256(cached).digest() == checksum else None


def _epoch_seed(seed: int, epoch: int) -> int:
    return 2 * (10_000 * seed + epoch)  # even: the odd numbers between are augmentation's


def make_loader(
    dataset: Dataset,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    process: int = 0,
    processes: int = 1,
    pin_memory: bool = False,
) -> DataLoader:
    """Batches of ``(images, masks)``, float32 ``(B, 1, H, W)`` each; the last may be smaller.

    The order depends on seed and epoch alone, so that any epoch can be repeated. No worker
    processes: the images are in memory already.

    Args:
        process, processes: of every batch, deal out only this process's share; a process for which
            nothing is left gets the batch's first image all the same, to stay in step.
        pin_memory: for faster copies to CUDA.
    """
    generator = torch.Generator().manual_seed(_epoch_seed(seed, epoch))
    order = torch.randperm(len(dataset), generator=generator) if shuffle else range(len(dataset))
    order = list(map(int, order))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    shares = [batch[process::processes] or batch[:1] for batch in batches]
    return DataLoader(dataset, batch_sampler=shares, pin_memory=pin_memory, generator=generator)
