"""Logits, masks -> a loss to train with. All take ``(B, 1, H, W)`` and return a float32 scalar.

Masks: any type, the logits' shape, values in [0, 1]; else a ValueError (values unseen on a GPU).
"""

import torch
from torch.nn import functional as F


def bce_loss(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy over all pixels, from logits (the numerically stable form)."""
    return F.binary_cross_entropy_with_logits(logits.float(), _checked(mask, logits))


def soft_dice_loss(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """1 - Dice of probabilities, per image, then averaged; 0 is perfect.

    Dice without a threshold, so that it has a gradient: Milletari et al., V-Net, 2016,
    https://arxiv.org/abs/1606.04797 (which squares the terms of the denominator). The 1 added above
    and below makes an empty prediction of an empty mask perfect. Always in float32.
    """
    probability, mask = torch.sigmoid(logits.float()), _checked(mask, logits, 4)
    intersection = (probability * mask).sum(dim=(1, 2, 3))
    total = probability.sum(dim=(1, 2, 3)) + mask.sum(dim=(1, 2, 3))
    return (1 - (2 * intersection + 1) / (total + 1)).mean()


def bce_dice_loss(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``bce_loss`` (every pixel counts alike) plus ``soft_dice_loss`` (the overlap counts)."""
    return bce_loss(logits, mask) + soft_dice_loss(logits, mask)


def _checked(mask: torch.Tensor, logits: torch.Tensor, dimensions: int = 0) -> torch.Tensor:
    """The mask in float32; it has at least so many dimensions."""
    if not torch.is_tensor(mask) or mask.shape != logits.shape or mask.ndim < dimensions:
        raise ValueError(f"mask: give a tensor (B, 1, H, W) as the logits, {tuple(logits.shape)}.")
    known = mask.is_cpu and not torch.compiler.is_compiling()  # a GPU would have to wait
    if known and not 0 <= mask.min() <= mask.max() <= 1:  # or nan
        raise ValueError("mask: give values from 0 to 1; divide those from 0 to 255 by 255.")
    return mask.float()


LOSSES = {"bce": bce_loss, "dice": soft_dice_loss, "bce_dice": bce_dice_loss}
