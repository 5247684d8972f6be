"""Logits, masks -> numbers: losses to train with, Dice and IoU to judge by."""

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from unetlib.dataset import CarvanaDataset, to_tensor
from unetlib.model import UNet, autocast, memory_kept


def bce_loss(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy over all pixels, from logits (the numerically stable form).

    Both ``(B, 1, H, W)``; the mask in [0, 1]. Returns a float32 scalar.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), mask)


def soft_dice_loss(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """1 - Dice of probabilities, per image, then averaged; 0 is perfect.

    Dice without a threshold, so that it has a gradient: Milletari et al., V-Net, 2016,
    https://arxiv.org/abs/1606.04797 (here with plain sums in the denominator). The 1 added above
    and below makes an empty prediction of an empty mask perfect. In float32 also under autocast.
    """
    probability = torch.sigmoid(logits.float())
    intersection = (probability * mask).sum(dim=(1, 2, 3))
    total = probability.sum(dim=(1, 2, 3)) + mask.sum(dim=(1, 2, 3))
    return (1 - (2 * intersection + 1) / (total + 1)).mean()


def bce_dice_loss(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``bce_loss`` (every pixel counts alike) plus ``soft_dice_loss`` (the overlap counts)."""
    return bce_loss(logits, mask) + soft_dice_loss(logits, mask)


LOSSES = {"bce": bce_loss, "dice": soft_dice_loss, "bce_dice": bce_dice_loss}


def dice(predicted, target) -> torch.Tensor:
    """Dice per image: twice the overlap over the sum of both areas (= F1 of the car's pixels).

    Average over all images of a set, never over batch averages: the last batch may be smaller.

    Args:
        predicted, target: binary masks, boolean or 0/1, torch or numpy, of one shape: ``(H, W)``,
            ``(N, H, W)`` or ``(N, 1, H, W)``.

    Returns:
        float32 ``(N,)``; 1 where both masks are empty, 0 where only one is.

    Raises:
        ValueError: shapes differ, or a value is neither 0 nor 1 (logits? probabilities?).
    """
    overlap, predicted_area, target_area = _areas(predicted, target)
    return _ratio(2 * overlap, predicted_area + target_area)


def iou(predicted, target) -> torch.Tensor:
    """Intersection over union (Jaccard index) per image; arguments and result as for ``dice``."""
    overlap, predicted_area, target_area = _areas(predicted, target)
    return _ratio(overlap, predicted_area + target_area - overlap)


def _areas(predicted, target) -> tuple[torch.Tensor, ...]:
    """Pixel counts (N,) of the overlap and of both masks."""
    # numpy is copied: PyTorch warns about read-only arrays, such as those made from PIL images.
    masks = [
        torch.from_numpy(mask.copy()) if isinstance(mask, np.ndarray) else torch.as_tensor(mask)
        for mask in (predicted, target)
    ]
    if masks[0].shape != masks[1].shape or masks[0].ndim < 2:
        shapes = " and ".join(str(tuple(mask.shape)) for mask in masks)
        raise ValueError(f"Masks of shapes {shapes} cannot be compared: give two of (N, H, W).")
    for mask in masks:
        if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
            raise ValueError(
                "Dice and IoU compare binary masks: threshold first, "
                "torch.sigmoid(logits) > 0.5 or probabilities > 0.5."
            )
    flat = [mask.bool().reshape(-1, mask.shape[-2] * mask.shape[-1]) for mask in masks]
    return tuple(part.sum(dim=1).double() for part in (flat[0] & flat[1], *flat))


def _ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    return torch.where(below == 0, 1.0, above / below.clamp(min=1)).float()


@torch.no_grad()
def dataset_logits(
    model: UNet, dataset: CarvanaDataset, batch_size: int = 16, precision: str = "fp32"
) -> torch.Tensor:
    """Logits of a whole dataset, float32 ``(N, 1, H, W)`` on the CPU, in its order, at its size.

    Never augmented: they belong to ``dataset.images``, pixel by pixel.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    batches = []
    with memory_kept(device):
        for start in range(0, len(dataset), batch_size):
            images = to_tensor(dataset.images[start : start + batch_size]).to(device)
            with autocast(device, precision):
                batches.append(model(images).float().cpu())
    model.train(was_training)
    return torch.cat(batches)


def predict_dataset(model: UNet, dataset: CarvanaDataset, batch_size: int = 16) -> np.ndarray:
    """Probabilities of a whole dataset, float32 ``(N, H, W)``, in its order, at its size."""
    return torch.sigmoid(dataset_logits(model, dataset, batch_size))[:, 0].numpy()


def evaluate(model: UNet, dataset: CarvanaDataset, threshold: float = 0.5) -> pd.DataFrame:
    """Score a model image by image against hard masks, at the dataset's size.

    Returns:
        A row per image: id, car, angle, dice, iou. The set's Dice is the mean of column ``dice``.
    """
    predicted = predict_dataset(model, dataset) > threshold
    target = dataset.coverage >= 128
    scores = dataset.samples[["id", "car", "angle"]].copy()
    return scores.assign(dice=dice(predicted, target).numpy(), iou=iou(predicted, target).numpy())
