"""Runs, predictions -> figures, closed as those of ``plots``: errors, histories, comparisons."""

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from IPython.display import DisplayHandle
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator

from unetlib.masks import to_binary
from unetlib.plots import BARE, CAR, MISSED, show_images
from unetlib.store.compare import compare_runs
from unetlib.store.runs import HISTORY, Run


def show_predictions(images, masks, probabilities, titles=None, threshold=0.5) -> plt.Figure:
    """A column per image: input, true mask, probability, and where the thresholded mask errs.

    In the last row, orange pixels are car that was missed, blue ones background taken for car.

    Args:
        images: ``(H, W)`` each; masks: ``(H, W)`` 0/1 (DataError: other values).
        probabilities, threshold: ``(H, W)`` each, and a number, in [0, 1] (ValueError: others).
        titles: above each column.
    """
    given, columns = (images, map(to_binary, masks), probabilities), len(images)
    rows = [[np.squeeze(np.asarray(picture)) for picture in row] for row in given]
    for one in (*rows[2], threshold):
        if not 0 <= np.min(one) <= np.max(one) <= 1:  # or nan
            raise ValueError("show_predictions: probabilities and threshold must be from 0 to 1.")
    colours = np.array([(1, 1, 1), to_rgb(CAR), to_rgb(MISSED), (0.75, 0.75, 0.75)])
    rows.append([colours[2 * mask + (p > threshold)] for mask, p in zip(*rows[1:], strict=True)])
    pictures = [picture for row in rows for picture in row]
    figure = show_images(pictures, ncols=columns, width=1.7 * columns + 0.5)
    for axis, title in zip(figure.axes, titles or [], strict=False):
        axis.set_title(title)
    labels = ("input", "truth", "probability", "errors")
    for axis, label in zip(figure.axes[::columns], labels, strict=True):
        axis.set_ylabel(label)
    figure.supxlabel("orange: missed\nblue: too much", fontsize="medium")
    return figure


def plot_history(runs: Run | Mapping[str, Run] | Iterable[Run]) -> plt.Figure:
    """Loss and validation Dice over the epochs, of one run or of several by name.

    Those without a name are labelled by the settings in which they differ, and their folder.
    """
    runs = {"": runs} if isinstance(runs, Run) else runs
    if not isinstance(runs, Mapping):
        given, runs = {run.folder.name: run for run in runs}, {}
        settings = compare_runs(given).loc[:, :"best_dice"].iloc[:, :-1]
        for folder, run in given.items():
            label = [f"{name} {settings.loc[folder, name]}" for name in settings]
            runs[", ".join([*label, folder])] = run
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.2), layout="tight")
    _draw_history(*axes, runs)
    plt.close(figure)
    return figure


def _draw_history(left: plt.Axes, right: plt.Axes, runs: Mapping[str, Run]) -> None:
    for colour, (name, run) in enumerate(runs.items()):
        epochs, style = run.history["epoch"], dict(color=f"C{colour}", marker=".")
        left.plot(epochs, run.history["train_loss"], label=f"{name} train".strip(), **style)
        left.plot(epochs, run.history["val_loss"], "--", label=f"{name} val".strip(), **style)
        right.plot(epochs, run.history["val_dice"], label=name or "Dice", **style)
        for number, column in enumerate(run.history.columns.difference(HISTORY)):
            label, line = f"{name} {column[4:]}".strip(), (":", "-.")[number % 2]
            right.plot(epochs, run.history[column], line, label=label, **style)
    left.set(xlabel="epoch", ylabel="loss", title="Loss: lower is better")
    right.set(xlabel="epoch", ylabel="Dice", title="Validation Dice: higher is better")
    for axis in (left, right):
        axis.legend()
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_lr_find(table) -> plt.Figure:
    """The range test of ``lr_find``; a tenth of the rate with the lowest smoothed loss is marked.

    Rates up to there are worth trying, it itself as the peak of a schedule.
    """
    figure, axis = plt.subplots(figsize=(7, 3), layout="tight")
    marked = table["lr"].iloc[np.argmin(table["smoothed"])] / 10
    axis.plot(table["lr"], table["loss"], ".", color="lightgray", label="loss of one batch")
    axis.plot(table["lr"], table["smoothed"], color=CAR, label="smoothed")
    axis.axvline(marked, color=MISSED, ls="--", label=f"a tenth of the lowest: {marked:.1g}")
    top = 1.5 * table["smoothed"].iloc[: len(table) // 2].max()
    axis.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(0, top))
    axis.set_title("Range test: the rate rises with every step")
    axis.legend()
    plt.close(figure)
    return figure


class LiveFigure:
    """A figure that grows with a training: ``fit(..., on_epoch=LiveFigure())``.

    Loss and Dice so far, and the masks of two validation images as they sharpen. Outside of a
    notebook nothing is shown; ``draw`` makes the figure anywhere.
    """

    ROWS, COLUMNS = 2, 6
    run: Run | None = None  # and ``masks``: its probabilities by epoch

    def __call__(self, run: Run) -> None:
        if self.run is None or run.folder != self.run.folder or len(run.history) == 1:
            self.masks, self._output = {}, DisplayHandle()
        show = self._output.update if self.masks else self._output.display
        self.run = run
        self.masks[len(run.history)] = run.preview[2]
        if hasattr(get_ipython(), "kernel"):
            show(self.draw())

    def draw(self) -> plt.Figure:
        """The figure as of now."""
        images, coverage, _ = self.run.preview
        rows, columns = min(self.ROWS, len(images)), min(self.COLUMNS, len(self.masks))
        # Evenly spread, the first and the latest among them.
        spread = np.linspace(0, len(self.masks) - 1, columns).round().astype(int)
        figure = plt.figure(figsize=(8.5, 2.6 + 1.15 * rows), layout="constrained")
        curves, strips = figure.subfigures(2, 1, height_ratios=[2.6, 1.15 * rows])
        axes = curves.subplots(1, 2)
        _draw_history(*axes, {"": self.run})
        plt.setp(axes, xlim=(0.5, self.run.recipe.epochs + 0.5))
        axes[1].set_title(f"Validation Dice: {self.run.history['val_dice'].iloc[-1]:.4f}")
        axes = strips.subplots(rows, self.COLUMNS + 2, squeeze=False, subplot_kw=BARE)
        shown = {0: ("photo", images / 255), -1: ("truth", coverage / 255)}
        for column, epoch in enumerate(np.array([*self.masks])[spread], 1):
            shown[column] = f"epoch {epoch}", self.masks[epoch]
        for column, (title, pictures) in shown.items():
            axes[0, column].set_title(title)
            for axis, picture in zip(axes[:, column], pictures, strict=False):
                axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        plt.close(figure)
        return figure
