"""Samples -> tensors: decode, augment, batch."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from unetlib.masks import load_coverage
from unetlib.pictures import DataError, load_image, sides
from unetlib.recipe import resolve, square
from unetlib.seeds import seeded

JITTER = 0.4  # mild augmentation: brightness and contrast between 0.6 and 1.4 times


def to_tensor(pictures, device=None) -> torch.Tensor:
    """uint8 ``(..., H, W)`` or ``(..., H, W, 3)`` -> float32 ``(..., C, H, W)`` in [0, 1]."""
    if pictures.dtype not in (np.uint8, torch.uint8):
        raise TypeError(f"to_tensor takes uint8, as load_image gives it, not {pictures.dtype}.")
    tensor = pictures if torch.is_tensor(pictures) else torch.from_numpy(np.array(pictures))
    tensor = tensor.movedim(-1, -3) if tensor.shape[-1] == 3 else tensor.unsqueeze(-3)
    return tensor.to(device).float() / 255


def decode(samples: pd.DataFrame, size: int | tuple[int, int], colour: bool = False) -> np.ndarray:
    """Read every row's image and mask: uint8 ``(N, 2, H, W)``, grey and coverage.

    In colour ``(N, 4, H, W)``: red, green, blue, coverage. A column ``mask_value`` says which value
    of the mask is the object (see ``masks.load_mask``). DataError: a file cannot be read.
    """
    height, width = sides(size)
    decoded = np.empty((len(samples), 4 if colour else 2, height, width), np.uint8)
    values = samples.reindex(columns=["mask_value"])["mask_value"]

    def decode_row(row: int) -> None:
        image = load_image(samples["image"].iloc[row], size, colour)
        decoded[row, :-1] = image.transpose(2, 0, 1) if colour else image
        decoded[row, -1] = load_coverage(samples["mask"].iloc[row], size, values.iloc[row])

    rows, title = range(len(samples)), f"decoding at size {square(size)}"
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of the interpreter lock
        list(tqdm(pool.map(decode_row, rows), title, len(rows)))
    return decoded


def flip(images, masks, draws=None):
    """Mirror an image and its mask, left-right, half of the time; see ``mild``."""
    draws = images.new_empty(len(images), 1).uniform_() if draws is None else draws
    flipped = (draws[:, 0] < 0.5)[:, None, None, None]
    return tuple(torch.where(flipped, batch.flip(-1), batch) for batch in (images, masks))


def mild(images, masks, draws=None):
    """``flip``, and brightness and contrast of the image within +-40 %: a car stays a car.

    As torchvision's v2 transforms would make images and masks from the same factors.

    Args:
        images, masks: float32 ``(B, C, H, W)`` and ``(B, 1, H, W)`` in [0, 1].
        draws: uniform random numbers ``(B, 3)``: flip below 0.5, brightness, contrast.
    """
    draws = images.new_empty(len(images), 3).uniform_() if draws is None else draws
    images, masks = flip(images, masks, draws)
    brightness, contrast = (1 - JITTER + 2 * JITTER * draws[:, 1:]).T[..., None, None, None]
    images = (images * brightness).clamp(0, 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    return (contrast * images + (1 - contrast) * mean).clamp(0, 1), masks


def backgrounds(images, masks):
    """``mild``, and half of the time the object stands before another wall and floor.

    What differs at random from picture to picture is no clue to the object (domain randomisation,
    https://arxiv.org/abs/1703.06907): where the two meet, how bright each is and how its light
    falls off. Arguments and result as for ``mild``.
    """

    def draw(low, high):
        return images.new_empty(len(images), 1, 1, 1).uniform_(low, high)

    def surface():
        tone = images.new_empty(*images.shape[:2], 1, 1).uniform_()  # in colour: a colour
        return tone * (1 + draw(-0.7, 0.7) * x + draw(-0.7, 0.7) * y)

    y, x = (torch.linspace(-1, 1, side).to(images) for side in images.shape[2:])
    y = y[:, None]
    horizon = draw(-0.6, 0.3) + draw(-0.3, 0.5) * x**2 + draw(-0.1, 0.1) * x
    scene = torch.where(y < horizon, surface(), surface()).clamp(0, 1)
    pasted = masks * images + (1 - masks) * scene
    return mild(torch.where(draw(0, 1) < 0.5, pasted, images), masks)


AUGMENTATIONS = {"none": None, "flip": flip, "mild": mild, "backgrounds": backgrounds}


def _transformed(transform: Callable, images: torch.Tensor, masks: torch.Tensor):
    """Images and masks as a torchvision v2 transform moves them, alike."""
    from torchvision import tv_tensors  # slow to import

    pair = transform(tv_tensors.Image(images), tv_tensors.Mask(masks))
    return tuple(one.as_subclass(torch.Tensor) for one in pair)


class CarvanaDataset(Dataset):
    """Images and masks as tensors, decoded once, when it is built, and kept in memory.

    ``dataset[i]`` is ``(image, mask)``: float32 ``(C, H, W)`` in [0, 1] and ``(1, H, W)``, 0 or 1
    (``hard``: area coverage at least one half) or the coverage itself (``soft``). A ``DataLoader``
    fetches whole batches at once (``__getitems__``), which is much faster.

    Args:
        samples: rows of ``find_samples`` that have a mask.
        size: side, or (height, width), in pixels; multiples of 4 suit the default U-Net.
        mask: ``hard`` or ``soft``.
        augment: a name in ``AUGMENTATIONS``; or f(images, masks) -> (images, masks), which changes
            a whole batch at once; or a torchvision v2 transform, which changes image by image.
        decode: reads the files; ``unetlib.decode_once`` keeps what it has read for the next time.
        colour: three channels instead of one.

    Attributes:
        samples: the table, with a fresh index.
        images, coverage: uint8 arrays ``(N, H, W)``; in colour, images are ``(N, H, W, 3)``.
        by_image: whether augmentation changes image by image, each by its row alone.
        epoch: (seed, epoch) on which augmentation depends, besides the row, or the first row of a
            batch, so that a resumed epoch repeats; None: ever new numbers. Workers see it change.

    Raises:
        ValueError: unknown mask kind or augmentation, or an impossible size; from batches: an
            augmentation that changes shapes or types, or whose masks leave [0, 1].
        DataError: no rows, a row without a mask, or a file that cannot be read.
    """

    def __init__(self, samples, size=128, mask="hard", augment="none", decode=decode, colour=False):
        if mask not in ("hard", "soft"):
            raise ValueError(f"mask={mask!r} is unknown: use 'hard' or 'soft'.")
        if not len(samples):
            raise DataError("The sample table has no rows: nothing to learn from or to check.")
        without = samples["mask"].isna() | (samples["mask"] == "")  # read_csv makes NaN of ""
        if without.any():
            first = samples.loc[without, "image"].iloc[0]
            raise DataError(f"{first}: has no mask; keep only rows that have one.")
        self.samples = samples.reset_index(drop=True)
        self.size, self.mask, self.augment = square(size), mask, resolve("augment", augment)
        kinds = {kind.__module__ for kind in type(self.augment).__mro__}
        self.by_image = any(name.startswith("torchvision.transforms.v2") for name in kinds)
        self._change = partial(_transformed, self.augment) if self.by_image else self.augment
        decoded = decode(self.samples, size, colour)
        self.images = np.moveaxis(decoded[:, :-1], 1, -1) if colour else decoded[:, 0]
        self.coverage = decoded[:, -1]
        self._epoch = torch.from_numpy(np.full(2, -1))
        with suppress(RuntimeError):  # where the system can share memory, a loader's workers see it
            self._epoch.share_memory_()

    @property
    def epoch(self) -> tuple[int, int] | None:
        return None if self._epoch[0] < 0 else tuple(self._epoch.tolist())

    @epoch.setter
    def epoch(self, value: tuple[int, int] | None) -> None:
        self._epoch[0], self._epoch[1] = value or (-1, -1)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(one[0] for one in self._pair([index]))

    def __getitems__(self, rows: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(zip(*self.batch(rows), strict=True))

    def batch(self, rows: list[int], stored=None) -> tuple[torch.Tensor, torch.Tensor]:
        """Images ``(B, C, H, W)`` and masks ``(B, 1, H, W)``; ``stored``: their bytes, if known."""
        if self.by_image:
            return tuple(map(torch.cat, zip(*(self._pair([row]) for row in rows), strict=True)))
        return self._pair(rows, stored)

    def _pair(self, rows: list[int], stored=None) -> tuple[torch.Tensor, torch.Tensor]:
        images, masks = map(to_tensor, stored or (self.images[rows], self.coverage[rows]))
        if self.mask == "hard":
            masks = (masks >= 0.5).float()
        if self._change is not None:
            with seeded(*self.epoch, int(rows[0])) if self.epoch else nullcontext():
                changed = self._change(images, masks)
            before, after = (
                [(tuple(one.shape), one.dtype) for one in pair if isinstance(one, torch.Tensor)]
                for pair in ((images, masks), changed if isinstance(changed, tuple) else ())
            )
            if before != after:
                raise ValueError(f"augment={self.augment}: {before} became {after}; return both.")
            images, masks = changed
            if masks.is_cpu and not 0 <= masks.min() <= masks.max() <= 1:  # or nan
                raise ValueError(f"augment={self.augment}: its masks leave [0, 1]; keep them in.")
        return images, masks


def make_loader(
    dataset: Dataset, batch_size: int, shuffle: bool = False, seed: int = 0, epoch: int = 0
) -> DataLoader:
    """Batches of ``(images, masks)``, float32 ``(B, 1, H, W)`` each; the last may be smaller.

    The order depends on seed and epoch alone, so that any epoch can be repeated. No worker
    processes: the images are in memory already.
    """
    generator = torch.Generator().manual_seed(2 * (10_000 * seed + epoch))
    order = torch.randperm(len(dataset), generator=generator) if shuffle else range(len(dataset))
    order = [*map(int, order)]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return DataLoader(dataset, batch_sampler=batches, generator=generator)
