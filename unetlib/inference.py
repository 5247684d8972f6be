"""Files, images -> masks and their run lengths: one predictor over all formats."""

import errno
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unetlib import pictures
from unetlib.carvana import IMAGE_SUFFIXES, DataError, rle_encode
from unetlib.dataset import load_image, to_tensor
from unetlib.formats import LogitsFunction, Runtime, open_model

BATCH_SIZE = 16
MASK_SIGN = "tEXtSoftware\0unetlib"  # near the start of a file that save_mask wrote
STRIDE = 16  # sides of a picture cut into tiles are filled up to multiples of this, where it fits


class Predictor:
    """A model file ready to predict, whatever its format; ``load_predictor`` makes it.

    Attributes:
        name: for tables, for example ``pytorch fp32`` or ``openvino int8``.
        format: ``pytorch``, ``torchscript``, ``exported``, ``onnx`` or ``int8``.
        size: image side in pixels that the model was trained at.
        threshold: of the probability above which a pixel counts as car.
        path, precision, runtime, trust: what it was opened with.
        logits: the bare model: float32 arrays ``(N, 1, H, W)`` in [0, 1] -> logits.
    """

    def __init__(
        self,
        logits: LogitsFunction,
        info: dict,
        path: str | Path,
        precision: str,
        trust: bool,
        runtime: Runtime | None,
    ):
        self.logits = logits
        self.format, self.size, self.threshold = info["format"], info["size"], info["threshold"]
        self.path, self.precision, self.trust, self.runtime = Path(path), precision, trust, runtime
        numbers = "int8" if self.format == "int8" else precision
        self.name = " ".join(dict.fromkeys([runtime or self.format, numbers]))  # int8 said once

    def predict_proba(
        self,
        image_or_images,
        size: str | tuple[int, int] = "original",
        *,
        flip: bool = False,
        tile: int | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Probability of car for every pixel.

        The small probability map is enlarged bilinearly: thresholding comes last, so that the edge
        is not a staircase.

        Args:
            image_or_images: a path, PIL image or array (see ``dataset.load_image``), or a list,
                iterator or table column of them.
            size: of the result: ``original`` (the image's own), ``model`` (as the model gives it,
                nothing enlarged), or ``(height, width)`` in pixels, or a square's side.
            flip: predict the mirrored picture too and take the mean (test-time augmentation).
            tile: instead of shrinking the picture, feed it at its own scale in windows of this many
                pixels, a multiple of 16 (of more for networks of over five levels), which overlap
                by half; only for models trained at that scale.

        Returns:
            float32 ``(H, W)`` in [0, 1]; for a list, a list of them.

        Raises:
            DataError: an image cannot be read.
            ValueError: a size or tile that makes no sense.
        """
        if tile is not None and (tile < self._step or tile % self._step):
            near = -(-512 // self._step) * self._step
            raise ValueError(f"tile={tile} must be a multiple of {self._step}, for example {near}.")
        if isinstance(size, str) and size not in ("original", "model"):
            raise ValueError(f"size={size!r}: give 'original', 'model' or (height, width).")
        if not isinstance(size, str):
            size = pictures.sides(size)
        if _are_several(image_or_images):
            return list(self._predict(list(image_or_images), size, flip, tile))
        return next(self._predict([image_or_images], size, flip, tile))

    def predict_mask(
        self,
        image_or_images,
        threshold: float | None = None,
        size: str | tuple[int, int] = "original",
        *,
        flip: bool = False,
        tile: int | None = None,
    ):
        """Masks, boolean ``(H, W)``: probability above the threshold.

        Arguments and result as for ``predict_proba``; ``threshold`` None takes the file's own, 0.5.
        """
        threshold = self.threshold if threshold is None else threshold
        probability = self.predict_proba(image_or_images, size, flip=flip, tile=tile)
        if isinstance(probability, list):
            return [one > threshold for one in probability]
        return probability > threshold

    def predict_maps(self, images: np.ndarray, flip: bool = False) -> np.ndarray:
        """Probabilities for images as ``load_image`` gives them, nothing resized.

        Args:
            images: uint8 ``(N, H, W)``, sides in multiples of the model's stride.

        Returns:
            float32 ``(N, H, W)``.
        """
        batch = to_tensor(images).numpy()
        probability = torch.sigmoid(torch.from_numpy(self.logits(batch)[:, 0]))
        if flip:
            mirrored = np.ascontiguousarray(batch[..., ::-1])
            logits = torch.from_numpy(self.logits(mirrored)[:, 0])
            probability = (probability + torch.sigmoid(logits).flip(-1)) / 2
        return probability.numpy()

    def _predict(self, images: list, size, flip: bool, tile: int | None) -> Iterator[np.ndarray]:
        step = 1 if tile else BATCH_SIZE
        for start in range(0, len(images), step):
            batch = images[start : start + step]
            if tile:
                grey = load_image(batch[0], upright_size(batch[0])[::-1])
                maps = [self._predict_tiles(grey, tile, flip)]
            else:
                small = np.stack([load_image(image, self.size) for image in batch])
                maps = self.predict_maps(small, flip)
            for image, one in zip(batch, maps, strict=True):
                if size == "model":
                    yield one
                    continue
                target = upright_size(image) if size == "original" else size[::-1]
                if target == one.shape[::-1]:
                    yield one
                else:
                    yield enlarge(one, target)

    @cached_property
    def _step(self) -> int:
        """What the sides of windows must be multiples of."""
        try:
            self.logits(np.zeros((1, 1, 3 * STRIDE, 3 * STRIDE), np.float32))
            return STRIDE
        except Exception:  # a deeper network; each runtime says so in its own way
            return self.size & -self.size  # the power of 2 in it, which is the network's or more

    def _predict_tiles(self, grey: np.ndarray, tile: int, flip: bool) -> np.ndarray:
        """Probabilities of a whole picture from overlapping windows.

        Where windows overlap, each counts the more the farther a pixel is from its border: there
        the network sees too little of the surroundings.
        """
        height, width = grey.shape
        padded = np.pad(grey, ((0, -height % self._step), (0, -width % self._step)), mode="edge")
        rows, columns = (min(tile, side) for side in padded.shape)
        weight = np.minimum.outer(_ramp(rows), _ramp(columns))
        total, weights = np.zeros(padded.shape, np.float32), np.zeros(padded.shape, np.float32)
        windows = [
            (slice(top, top + rows), slice(left, left + columns))
            for top in _starts(padded.shape[0], rows)
            for left in _starts(padded.shape[1], columns)
        ]
        at_once = max(1, BATCH_SIZE * self.size**2 // (rows * columns))
        for start in range(0, len(windows), at_once):
            some = windows[start : start + at_once]
            maps = self.predict_maps(np.stack([padded[window] for window in some]), flip)
            for window, one in zip(some, maps, strict=True):
                total[window] += weight * one
                weights[window] += weight
        return (total / weights)[:height, :width]


def _are_several(images) -> bool:
    """Whether these are images and not one; a set is neither, because it has no order."""
    if isinstance(images, np.ndarray):
        return images.dtype.kind in "OU"  # paths
    listed = (list, tuple, Iterator, pd.Series, pd.Index, pd.api.extensions.ExtensionArray)
    return isinstance(images, listed) and not hasattr(images, "read")  # an open file has lines


def _ramp(length: int) -> np.ndarray:
    """1, 2, 3 ... 3, 2, 1: the distance to the nearer end."""
    return np.minimum(np.arange(length), np.arange(length)[::-1]).astype(np.float32) + 1


def _starts(length: int, window: int) -> list[int]:
    """Where windows begin that cover a length and overlap by half; the last ends with it."""
    return [*range(0, length - window, max(STRIDE, window // 2)), length - window]


def paths_of(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """One path, or several."""
    return [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]


def image_files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """All image files among paths and directly inside folders, sorted within each folder.

    Raises:
        DataError: a path does not exist, or there is no image at all.
    """
    found = []
    for path in paths_of(paths):
        if path.is_dir():
            found += [
                file
                for file in sorted(path.iterdir())
                if file.suffix.lower() in IMAGE_SUFFIXES
                and file.is_file()
                and not file.name.startswith(".")
            ]
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: no such file or folder; check the path.")
    if not found:
        raise DataError("No image found: give files or folders with .jpg, .jpeg or .png files.")
    return found


def save_mask(mask: np.ndarray, path: str | Path) -> None:
    """Write a boolean mask ``(H, W)`` as a PNG file, 0/255, signed with ``MASK_SIGN``.

    Raises:
        DataError: the file system takes no such name.
    """
    signature = PngInfo()
    signature.add_text("Software", "unetlib")
    try:
        Image.fromarray(mask).save(path, "PNG", pnginfo=signature)
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.EILSEQ):
            raise
        raise DataError(f"{path}: no file can have such a name; shorten the image's.") from None


def upright_size(image) -> tuple[int, int]:
    """(width, height) of a path's, PIL or array image as it is seen, EXIF rotation applied."""
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    if not isinstance(image, Image.Image):
        with Image.open(image) as opened:
            return pictures.upright_size(opened)
    return pictures.upright_size(image)


def enlarge(probability: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A float32 map at another size (width, height), bilinearly."""
    return np.asarray(Image.fromarray(probability).resize(size, Image.Resampling.BILINEAR))


def rle_of_map(probability: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> str:
    """Run-length code of a small probability map enlarged bilinearly, then thresholded.

    The same code as the naive way (enlarge with Pillow, compare, ``carvana.rle_encode``), without
    the enlarged map. Between two rows of the small map, an enlarged pixel is a mean of one pixel
    above and one below: where both lie on the same side of the threshold, so does it, and only the
    others are computed.

    Args:
        probability: float32 ``(h, w)``.
        size: ``(width, height)`` of the mask in pixels.
    """
    width, height = size
    small_rows = len(probability)
    if width < probability.shape[1] or height < small_rows:  # shrunk: more pixels to a mean
        return rle_encode(enlarge(probability, size) > threshold)
    wide = enlarge(probability, (width, small_rows))
    car = wide > threshold
    unsure = np.abs(wide - threshold) < 1e-6  # rounding could take a mean across
    mask = np.empty((height, width), bool)
    # Pillow's arithmetic: an enlarged pixel's centre on the small map, weights by distance.
    centres = (np.arange(height) + 0.5) * (small_rows / height)
    first = np.clip((centres - 0.5).astype(int), 0, None)
    last = np.minimum((centres + 1.5).astype(int), small_rows) - 1
    for above, below, rows in _groups(first, last):
        mask[rows] = car[above]
        mixed = np.flatnonzero(
            (car[above : below + 1] != car[above]).any(0) | unsure[above : below + 1].any(0)
        )
        if len(mixed):
            taps = np.arange(above, below + 1)
            weights = np.clip(1 - np.abs(taps - centres[rows, None] + 0.5), 0, None)
            weights /= weights.sum(1, keepdims=True)
            values = sum(
                weights[:, [tap]] * wide[above + tap, mixed].astype(np.float64)
                for tap in range(len(taps))
            )
            mask[rows, mixed] = values.astype(np.float32) > threshold
    return rle_encode(mask)


def _groups(first: np.ndarray, last: np.ndarray) -> Iterator[tuple[int, int, slice]]:
    """Runs of rows that share their first and last tap."""
    starts = np.flatnonzero(np.diff(first, prepend=-1) | np.diff(last, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(first)], strict=True):
        yield int(first[start]), int(last[start]), slice(int(start), int(end))


def load_predictor(
    path: str | Path,
    device=None,
    threads: int | None = None,
    precision: str = "fp32",
    trust: bool = False,
    runtime: Runtime | None = None,
) -> Predictor:
    """Open a model file of any format that ``export_all`` writes, or a run's checkpoint.

    Args:
        device: for the PyTorch formats; None picks the best. ONNX files run on the CPU.
        threads: to compute with on the CPU; None: all cores.
        precision: ``fp32`` or ``bf16``, for ``.pth`` files of weights only and for OpenVINO.
        trust: open a file although ``manifest.json`` beside it does not name its SHA-256; a
            TorchScript or ``.pt2`` file is a program and can run any code.
        runtime: None picks it from the file; ``openvino`` for ONNX files, ``compile`` for ``.pth``.

    Raises:
        ModelFileError: no such file, unreadable, not written by unetlib, or not to be trusted.
        ValueError: a device that is not there, or a number of threads that is none.
    """
    logits, info = open_model(path, device, threads, precision, trust, runtime)
    return Predictor(logits, info, path, precision, trust, runtime)
