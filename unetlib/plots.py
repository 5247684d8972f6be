"""Pictures, masks -> matplotlib figures that several notebooks show.

Every function returns its figure, closed: a notebook shows it once, as the last line of a cell.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from unetlib.masks import to_binary

CAR = "#0072B2"  # Okabe and Ito's blue and orange, told apart by colour-blind readers too
MISSED = "#D55E00"
BARE = dict(frame_on=False, xticks=[], yticks=[])  # axes around a picture


def show_images(images: Sequence[np.ndarray], titles=None, ncols=4, width=8.5) -> plt.Figure:
    """A grid of images, ``(H, W)`` grey or ``(H, W, 3)``, uint8 or in [0, 1].

    ``titles`` stand above the images, ``ncols`` of them in a row; ``width``: of all, in inches.
    """
    arrays = [np.squeeze(np.asarray(image)) for image in images]
    ncols = min(ncols, len(arrays))
    nrows = -(-len(arrays) // ncols)
    height, side = arrays[0].shape[:2]
    row_height = width / ncols * height / side + (0.3 if titles is not None else 0.05)
    how = dict(figsize=(width, nrows * row_height), squeeze=False, layout="tight")
    figure, axes = plt.subplots(nrows, ncols, subplot_kw=BARE, **how)
    for index, (axis, array) in enumerate(zip(axes.flat, arrays, strict=False)):
        axis.imshow(array, cmap="gray", vmin=0, vmax=255 if array.dtype == np.uint8 else 1)
        if titles is not None:
            axis.set_title(titles[index])
    plt.close(figure)
    return figure


def overlay(image: np.ndarray, mask: np.ndarray, ax: plt.Axes | None = None) -> plt.Figure:
    """An image with its mask laid over it in colour, and the mask's outline.

    Args:
        image: ``(H, W)`` or ``(H, W, 3)``, uint8 or in [0, 1].
        mask: ``(H, W)``, True on the car (DataError: probabilities; ValueError: another size).
        ax: where to draw; None makes a figure.
    """
    image, mask = np.squeeze(np.asarray(image)), np.squeeze(to_binary(mask))
    if image.shape[:2] != mask.shape:
        raise ValueError(f"A mask of {mask.shape} does not lie on an image of {image.shape[:2]}.")
    if ax is None:
        figure, ax = plt.subplots(figsize=(5, 3.5), layout="tight")
        plt.close(figure)
    ax.imshow(image, cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
    ax.imshow(np.where(mask, 1.0, np.nan), cmap=ListedColormap([CAR]), alpha=0.45)
    if mask.any() and not mask.all():
        ax.contour(mask, levels=[0.5], colors=[CAR], linewidths=1)
    ax.axis("off")
    return ax.figure
