"""Samples -> tensors: decode, augment, batch."""

import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from unetlib.masks import load_coverage
from unetlib.pictures import DataError, load_image, sides
from unetlib.recipe import Augmentation, MaskKind

JITTER = 0.4  # mild augmentation: brightness and contrast between 0.6 and 1.4 times


def to_tensor(grey: np.ndarray) -> torch.Tensor:
    """uint8 ``(..., H, W)`` -> float32 ``(..., 1, H, W)`` in [0, 1]."""
    return torch.from_numpy(np.array(grey)).unsqueeze(-3).float() / 255


def decode(samples: pd.DataFrame, size: int | tuple[int, int], colour: bool = False) -> np.ndarray:
    """Read every row's image and mask: uint8 ``(N, 2, H, W)``, grey (or R, G, B) and coverage.

    Raises:
        DataError: a file cannot be read.
        MemoryError: the images do not fit in memory.
    """
    height, width = sides(size)
    decoded = np.empty((len(samples), 4 if colour else 2, height, width), np.uint8)
    values = samples.reindex(columns=["mask_value"])["mask_value"]

    def decode_row(row: int) -> None:
        image = load_image(samples["image"].iloc[row], size, colour)
        decoded[row, :-1] = image.transpose(2, 0, 1) if colour else image
        decoded[row, -1] = load_coverage(samples["mask"].iloc[row], size, values.iloc[row])

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of the interpreter lock
        rows = pool.map(decode_row, range(len(samples)))
        for _ in tqdm(rows, f"decoding to {width}x{height}", len(samples)):
            pass
    return decoded


def augment_batch(
    images: torch.Tensor, masks: torch.Tensor, name: Augmentation, draws: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random changes that keep a car a car; geometry moves image and mask alike.

    Args:
        images, masks: float32 ``(B, 1, H, W)`` in [0, 1].
        name: ``none``; ``flip`` (left-right, half of the time); ``mild`` (flip, and brightness and
            contrast within +-40 %).
        draws: uniform random numbers ``(B, 3)``: flip below 0.5, brightness, contrast.

    Returns:
        Images and masks, as torchvision's v2 transforms would make them from the same factors.
    """
    if name == "none":
        return images, masks
    flipped = (draws[:, 0] < 0.5)[:, None, None, None]
    images, masks = (torch.where(flipped, batch.flip(-1), batch) for batch in (images, masks))
    if name == "mild":
        brightness, contrast = (1 - JITTER + 2 * JITTER * draws[:, 1:]).T[..., None, None, None]
        images = (images * brightness).clamp(0, 1)
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (contrast * images + (1 - contrast) * mean).clamp(0, 1)
    return images, masks


class CarvanaDataset(Dataset):
    """Images and masks as tensors, decoded once, when it is built, and kept in memory.

    ``dataset[i]`` is ``(image, mask)``: float32 ``(1, H, W)`` each, the image in [0, 1], the mask
    0 or 1 (``hard``: area coverage at least one half) or the coverage itself (``soft``). A
    ``DataLoader`` fetches whole batches at once (``__getitems__``), which is much faster.

    Args:
        samples: rows of ``find_samples`` that have a mask.
        size: side in pixels; any multiple of 4 suits the default U-Net.
        mask: ``hard`` or ``soft``.
        augment: see ``augment_batch``; a new draw for every image and epoch.
        decode: reads the files; ``unetlib.decode_once`` keeps what it has read for the next time.

    Attributes:
        samples: the table, with a fresh index.
        images, coverage: uint8 arrays ``(N, H, W)``.

    Raises:
        ValueError: unknown mask kind or augmentation, or a size below 4 or not a multiple of 4.
        DataError: no rows, a row without a mask, or a file that cannot be read.
    """

    def __init__(
        self,
        samples: pd.DataFrame,
        size: int = 128,
        mask: MaskKind = "hard",
        augment: Augmentation = "none",
        decode: Callable[[pd.DataFrame, int], np.ndarray] = decode,
    ):
        side = operator.index(size) if hasattr(size, "__index__") else 0
        if side < 4 or side % 4:
            raise ValueError(f"size={size} must be an integer multiple of 4, for example 128.")
        for name, value, kinds in (("mask", mask, MaskKind), ("augment", augment, Augmentation)):
            if value not in (known := get_args(kinds)):
                raise ValueError(f"{name}={value!r} is unknown: use one of {', '.join(known)}.")
        if not len(samples):
            raise DataError("The sample table has no rows: nothing to learn from or to check.")
        without = samples["mask"].isna() | (samples["mask"] == "")  # read_csv makes NaN of ""
        if without.any():
            first = samples.loc[without, "image"].iloc[0]
            raise DataError(f"{first}: has no mask; keep only rows that have one.")
        self.samples = samples.reset_index(drop=True)
        self.size, self.mask, self.augment = side, mask, augment
        self.draws: torch.Tensor | None = None
        decoded = decode(self.samples, side)
        self.images, self.coverage = decoded[:, 0], decoded[:, 1]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        images, masks = to_tensor(self.images[indices]), to_tensor(self.coverage[indices])
        if self.mask == "hard":
            masks = (masks >= 0.5).float()
        draws = torch.rand(len(indices), 3) if self.draws is None else self.draws[indices]
        images, masks = augment_batch(images, masks, self.augment, draws)
        return list(zip(images, masks, strict=True))

    def set_epoch(self, seed: int, epoch: int) -> None:
        """Fix an epoch's augmentation: each image's draw depends on seed, epoch and row alone.

        So a resumed epoch repeats, and it does not matter which process draws which image.
        """
        generator = torch.Generator().manual_seed(_epoch_seed(seed, epoch) + 1)
        self.draws = torch.rand(len(self), 3, generator=generator)


def _epoch_seed(seed: int, epoch: int) -> int:
    return 2 * (10_000 * seed + epoch)  # even: the odd numbers between belong to augmentation


def make_loader(
    dataset: Dataset, batch_size: int, shuffle: bool = False, seed: int = 0, epoch: int = 0
) -> DataLoader:
    """Batches of ``(images, masks)``, float32 ``(B, 1, H, W)`` each; the last may be smaller.

    The order depends on seed and epoch alone, so that any epoch can be repeated. No worker
    processes: the images are in memory already.
    """
    generator = torch.Generator().manual_seed(_epoch_seed(seed, epoch))
    order = torch.randperm(len(dataset), generator=generator) if shuffle else range(len(dataset))
    order = list(map(int, order))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return DataLoader(
        dataset, batch_sampler=batches, pin_memory=torch.cuda.is_available(), generator=generator
    )
