"""Samples, datasets, runs, predictions -> matplotlib figures that more than one notebook shows.

Every function returns its figure, closed: a notebook shows it once, as the last line of a cell.
``LiveFigure`` shows itself while a training is under way.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.display import DisplayHandle, display
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unetlib.learner import steepest_lr
from unetlib.pictures import to_binary
from unetlib.runs import Run, compare_runs

CAR = "#0072B2"  # Okabe and Ito's blue and orange, told apart by colour-blind readers too
MISSED = "#D55E00"
DPI = 72


def show_images(
    images: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    ncols: int = 4,
    width: float = 9.0,
) -> Figure:
    """A grid of images, ``(H, W)`` grey or ``(H, W, 3)``, uint8 or in [0, 1].

    Args:
        titles: one above each image.
        ncols: images in a row.
        width: of the figure, in inches.
    """
    arrays = [np.squeeze(np.asarray(image)) for image in images]
    ncols = min(ncols, len(arrays))
    nrows = -(-len(arrays) // ncols)
    height, side = arrays[0].shape[:2]
    row_height = width / ncols * height / side + (0.25 if titles is not None else 0.05)
    figure, axes = plt.subplots(
        nrows, ncols, figsize=(width, nrows * row_height), dpi=DPI, squeeze=False, layout="tight"
    )
    for axis in axes.flat:
        axis.axis("off")
    for index, (axis, array) in enumerate(zip(axes.flat, arrays, strict=False)):
        axis.imshow(array, cmap="gray", vmin=0, vmax=255 if array.dtype == np.uint8 else 1)
        if titles is not None:
            axis.set_title(titles[index], fontsize=9)
    plt.close(figure)
    return figure


def overlay(image: np.ndarray, mask: np.ndarray, ax: Axes | None = None) -> Figure:
    """An image with its mask laid over it in colour, and the mask's outline.

    Args:
        image: ``(H, W)`` or ``(H, W, 3)``, uint8 or in [0, 1].
        mask: ``(H, W)``, True on the car.
        ax: where to draw; None makes a figure.

    Raises:
        DataError: probabilities instead of a mask.
    """
    image, mask = np.squeeze(np.asarray(image)), np.squeeze(to_binary(mask))
    if ax is None:
        figure, ax = plt.subplots(figsize=(5, 3.5), dpi=DPI, layout="tight")
        plt.close(figure)
    ax.imshow(image, cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
    ax.imshow(np.where(mask, 1.0, np.nan), cmap=ListedColormap([CAR]), alpha=0.45)
    if mask.any() and not mask.all():
        ax.contour(mask, levels=[0.5], colors=[CAR], linewidths=1)
    ax.axis("off")
    return ax.figure


def show_predictions(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    probabilities: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    threshold: float = 0.5,
) -> Figure:
    """A column per image: input, true mask, probability, and where the thresholded mask errs.

    In the last row, orange pixels are car that was missed, blue ones background taken for car.

    Args:
        images: ``(H, W)`` each; masks: ``(H, W)`` 0/1; probabilities: ``(H, W)`` in [0, 1].
        titles: above each column.
    """
    columns = len(images)
    height, width = np.squeeze(np.asarray(masks[0])).shape
    size = (1.7 * columns + 0.5, 4 * 1.6 * min(height / width, 1.5) + 0.6)
    figure, axes = plt.subplots(4, columns, figsize=size, dpi=DPI, squeeze=False, layout="tight")
    for column in range(columns):
        image, mask, probability = (
            np.squeeze(np.asarray(stack[column])) for stack in (images, masks, probabilities)
        )
        predicted, mask = probability > threshold, mask >= 0.5
        errors = np.ones((*mask.shape, 3))
        errors[mask & predicted] = 0.75
        errors[mask & ~predicted] = tuple(int(MISSED[i : i + 2], 16) / 255 for i in (1, 3, 5))
        errors[~mask & predicted] = tuple(int(CAR[i : i + 2], 16) / 255 for i in (1, 3, 5))
        grey = 255 if image.dtype == np.uint8 else 1
        axes[0, column].imshow(image, cmap="gray", vmin=0, vmax=grey)
        axes[1, column].imshow(mask, cmap="gray", vmin=0, vmax=1)
        axes[2, column].imshow(probability, cmap="gray", vmin=0, vmax=1)
        axes[3, column].imshow(errors)
        if titles is not None:
            axes[0, column].set_title(titles[column], fontsize=9)
    labels = ("input", "truth", "probability", "errors\n(orange: missed,\nblue: too much)")
    for row, label in zip(axes, labels, strict=True):
        row[0].set_ylabel(label, fontsize=9)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    plt.close(figure)
    return figure


def plot_history(runs: Run | Mapping[str, Run]) -> Figure:
    """Loss and validation Dice over the epochs, of one run or of several by name."""
    runs = {"": runs} if isinstance(runs, Run) else runs
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), dpi=DPI, layout="tight")
    for colour, (name, run) in enumerate(runs.items()):
        epochs, style = run.history["epoch"], dict(color=f"C{colour}", marker=".")
        left.plot(epochs, run.history["train_loss"], label=f"{name} train".strip(), **style)
        left.plot(epochs, run.history["val_loss"], "--", label=f"{name} val".strip(), **style)
        right.plot(epochs, run.history["val_dice"], label=name or "validation", **style)
    left.set(xlabel="epoch", ylabel="loss", title="Loss: lower is better")
    right.set(xlabel="epoch", ylabel="Dice", title="Validation Dice: higher is better")
    for axis in (left, right):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    plt.close(figure)
    return figure


def plot_runs(runs: Mapping[str, Run] | Iterable[Run]) -> Figure:
    """Validation Dice of several runs, over the epochs and over the seconds, in one figure.

    Runs without a name are labelled by the settings in which they differ, and where that is not
    enough by their folder, too.
    """
    if not isinstance(runs, Mapping):
        runs = {run.folder.name: run for run in runs}
        table = compare_runs(runs)
        settings = table.loc[:, :"best_dice"].columns[:-1]
        labels = {
            name: ", ".join(f"{setting} {table.loc[name, setting]}" for setting in settings)
            for name in table.index
        }
        times = Counter(labels.values())
        for name, label in labels.items():
            labels[name] = f"{label} ({name})" if label and times[label] > 1 else label or name
        runs = {labels[name]: run for name, run in runs.items()}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), dpi=DPI, layout="tight", sharey=True)
    for name, run in runs.items():
        dice = run.history["val_dice"]
        axes[0].plot(run.history["epoch"], dice, ".-", label=name)
        axes[1].plot(run.history["seconds"].cumsum(), dice, ".-", label=name)
    axes[0].set(xlabel="epoch", ylabel="Dice", title="Validation Dice by epoch")
    axes[1].set(xlabel="seconds, validation included", title="The same by time")
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1].legend(fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.3)
    plt.close(figure)
    return figure


def plot_lr_find(table: pd.DataFrame) -> Figure:
    """The learning-rate range test (``learner.lr_find``): loss over learning rate."""
    figure, axis = plt.subplots(figsize=(7, 3), dpi=DPI, layout="tight")
    chosen = steepest_lr(table)
    axis.plot(table["lr"], table["loss"], ".", color="lightgray", label="loss of one batch")
    axis.plot(table["lr"], table["smoothed"], color=CAR, label="smoothed")
    axis.axvline(chosen, color=MISSED, ls="--", label=f"steepest: {chosen:.1g}")
    top = 1.5 * table["smoothed"].iloc[: len(table) // 2].max()
    axis.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(0, top))
    axis.set_title("Range test: the rate rises with every step")
    axis.legend(fontsize=8)
    plt.close(figure)
    return figure


class LiveFigure:
    """A figure that grows with a training: ``fit(..., on_epoch=LiveFigure())``.

    Loss and Dice so far, and some validation masks as they sharpen. Outside of a notebook nothing
    is shown; ``draw`` makes the figure anywhere.

    Args:
        images: how many validation images to follow, up to 4.
    """

    COLUMNS = 6

    def __init__(self, images: int = 2):
        self.images = images
        self.run: Run | None = None
        self.masks: dict[int, np.ndarray] = {}
        self._handle: DisplayHandle | None = None

    def __call__(self, run: Run) -> None:
        if self.run is None or run.folder != self.run.folder or len(run.history) == 1:
            self.masks, self._handle = {}, None
        self.run = run
        self.masks[len(run.history)] = run.preview[2]
        if hasattr(get_ipython(), "kernel"):
            if self._handle is None:
                self._handle = display(self.draw(), display_id=True)
            else:
                self._handle.update(self.draw())

    def draw(self) -> Figure:
        """The figure as of now."""
        history, (images, coverage, _) = self.run.history, self.run.preview
        rows = min(self.images, len(images))
        epochs = list(self.masks)
        if len(epochs) > self.COLUMNS:  # evenly spread, the first and the latest among them
            spread = np.linspace(0, len(epochs) - 1, self.COLUMNS).round().astype(int)
            epochs = [epochs[index] for index in spread]
        figure = plt.figure(figsize=(9, 2.6 + 1.15 * rows), dpi=DPI, layout="constrained")
        curves, strips = figure.subfigures(2, 1, height_ratios=[2.6, 1.15 * rows])
        left, right = curves.subplots(1, 2)
        left.plot(history["epoch"], history["train_loss"], ".-", label="train")
        left.plot(history["epoch"], history["val_loss"], ".--", label="val")
        right.plot(history["epoch"], history["val_dice"], ".-", color=CAR)
        left.set(xlabel="epoch", title="Loss")
        right.set(xlabel="epoch", title=f"Validation Dice: {history['val_dice'].iloc[-1]:.4f}")
        left.legend(fontsize=8)
        for axis in (left, right):
            axis.set_xlim(0.5, self.run.recipe.epochs + 0.5)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.3)
        columns = self.COLUMNS + 2
        axes = strips.subplots(rows, columns, squeeze=False)
        for row in range(rows):
            shown = [images[row] / 255, *(self.masks[epoch][row] for epoch in epochs)]
            shown += [None] * (columns - 1 - len(shown)) + [coverage[row] / 255]
            for axis, picture in zip(axes[row], shown, strict=True):
                axis.axis("off")
                if picture is not None:
                    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        titles = ["photo", *(f"epoch {epoch}" for epoch in epochs)]
        for axis, title in zip(axes[0], titles, strict=False):
            axis.set_title(title, fontsize=8)
        axes[0, -1].set_title("truth", fontsize=8)
        plt.close(figure)
        return figure
