"""Masks -> numbers to judge by: Dice and IoU, of two masks or of a model on a whole dataset."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from unetlib.dataset import CarvanaDataset, to_tensor
from unetlib.device import at_once, autocast
from unetlib.model import evaluating


def dice(predicted, target) -> torch.Tensor:
    """Dice per image: twice the overlap over the sum of both areas (= F1 of the car's pixels).

    float32 ``(N,)``; 1 where both masks are empty, 0 where only one is. Average over all
    images of a set, never over batch averages: the last batch may be smaller.

    Args:
        predicted, target: binary masks, boolean or 0/1, torch or numpy, of one shape: ``(H, W)``,
            ``(N, H, W)`` or ``(N, 1, H, W)``. ValueError: shapes differ, or there are other values.
    """
    overlap, areas = _overlap_and_areas(predicted, target)
    return torch.where(areas == 0, 1.0, 2 * overlap / areas.clamp(min=1))


def iou(predicted, target) -> torch.Tensor:
    """Intersection over union (Jaccard index) per image; arguments and result as for ``dice``."""
    overlap, areas = _overlap_and_areas(predicted, target)
    union = areas - overlap
    return torch.where(union == 0, 1.0, overlap / union.clamp(min=1))


def boundary_iou(predicted, target, width: int = 2) -> torch.Tensor:
    """IoU of the outlines alone, ``width`` pixels wide and inside each mask: what Dice hardly sees.

    Boundary IoU (Cheng et al. 2021, https://arxiv.org/abs/2103.16562); arguments as for ``dice``.
    """
    rims = []
    for mask in (predicted, target):
        mask = torch.as_tensor(mask).float()
        outside = 1 - mask.reshape(-1, 1, *mask.shape[-2:])
        near_outside = F.max_pool2d(outside, 2 * width + 1, stride=1, padding=width)
        rims.append((near_outside > outside).squeeze(1))
    return iou(*rims)


def _overlap_and_areas(predicted, target) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel counts ``(N,)``: of the overlap, and of both masks together."""
    # numpy is copied: PyTorch warns about read-only arrays, such as those made from PIL images.
    both = [m if torch.is_tensor(m) else torch.from_numpy(np.array(m)) for m in (predicted, target)]
    if both[0].shape != both[1].shape or both[0].ndim < 2:
        shapes = " and ".join(str(tuple(mask.shape)) for mask in both)
        raise ValueError(f"Masks of shapes {shapes} cannot be compared: give two of (N, H, W).")
    for mask in both:
        if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
            raise ValueError("Dice and IoU need 0 and 1: threshold first, probabilities > 0.5.")
    one, other = (mask.bool().reshape(-1, mask.shape[-2] * mask.shape[-1]) for mask in both)
    return (one & other).sum(dim=1), one.sum(dim=1) + other.sum(dim=1)


def dataset_logits(model: nn.Module, dataset, batch_size=None, precision="fp32") -> torch.Tensor:
    """Logits of a whole dataset, float32 ``(N, 1, H, W)`` on the CPU, in its order, at its size.

    Computed where the model is, never augmented: they belong to ``dataset.images``, pixel by pixel.
    """
    device = next(model.parameters()).device
    batch_size = batch_size or at_once(device, dataset.size)
    batches = []
    with evaluating(model):
        for start in range(0, len(dataset), batch_size):
            images = to_tensor(dataset.images[start : start + batch_size], device)
            with autocast(device, precision):
                batches.append(model(images).float().cpu())
    return torch.cat(batches)


def evaluate(
    model: nn.Module,
    dataset: CarvanaDataset,
    threshold: float = 0.5,
    *,
    loss: Callable | None = None,
    metrics: Mapping[str, Callable] | None = None,
    precision: str = "fp32",
    rows: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> pd.DataFrame:
    """Score a model, where it is, image by image against hard masks, at the dataset's size.

    Args:
        threshold: the probability above which a pixel counts as the object.
        loss: also give each image's loss, against the dataset's kind of masks, hard or soft.
        metrics: more columns by name: f(probabilities, masks) -> ``(B,)``, from float32
            ``(B, 1, H, W)`` in [0, 1] and 0/1, where the model is (NumPy needs ``.cpu()``).
        rows: only these rows of the dataset.
        batch_size: images at once; it changes speed and memory, not the scores. None: ``at_once``.

    Returns:
        A row per image: id, group, (car, angle,) dice, iou (, loss and metrics). The set's Dice is
        the mean of column ``dice``; where masks are empty, look also at that of the others:
        ``table["dice"][dataset.coverage.max((1, 2)) >= 128].mean()``.

    Raises:
        ValueError: the threshold is no probability; a metric does not give one number per image, or
            has the name of a column; or the model is on the device ``meta``.
    """
    if not (isinstance(threshold, (int, float, np.number)) and 0 <= threshold <= 1):
        raise ValueError(f"threshold={threshold!r} is no probability: give a number from 0 to 1.")
    device = next(model.parameters()).device
    rows, metrics = range(len(dataset)) if rows is None else rows, metrics or {}
    batch_size = batch_size or at_once(device, dataset.size)
    names = [name for name in ("id", "group", "car", "angle") if name in dataset.samples]
    scores = {name: [] for name in ("dice", "iou", *["loss"] * (loss is not None), *metrics)}
    if taken := {"loss", "dice", "iou", "dice_objects", *names} & metrics.keys():
        raise ValueError(f"metrics: {', '.join(taken)} is a column already; choose another name.")
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            images = to_tensor(dataset.images[batch], device)
            coverage = to_tensor(dataset.coverage[batch], device)
            target = coverage >= 0.5
            with autocast(device, precision):
                logits = model(images).float()
            probabilities = torch.sigmoid(logits)
            scores["dice"] += dice(probabilities > threshold, target).tolist()
            scores["iou"] += iou(probabilities > threshold, target).tolist()
            if loss is not None:
                masks = coverage if dataset.mask == "soft" else target.float()
                scores["loss"] += _one_by_one(loss, logits, masks).tolist()
            for name, metric in metrics.items():
                values = torch.as_tensor(metric(probabilities.clone(), target.float()))
                if values.shape != (len(batch),):
                    shape = f"shape {tuple(values.shape)}, not ({len(batch)},)"
                    raise ValueError(f"metrics: {name} gave {shape}: one number per image.")
                scores[name] += values.tolist()
    return dataset.samples.loc[list(rows), names].assign(**scores)


def _one_by_one(loss: Callable, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Each image's loss, ``(B,)``: on a GPU all of them at once, if the function allows that."""
    if not logits.is_cpu:
        with suppress(RuntimeError):  # of functions that look at values
            return torch.vmap(loss, randomness="different")(logits[:, None], masks[:, None])
    return torch.stack([loss(*pair) for pair in zip(logits.split(1), masks.split(1), strict=True)])
