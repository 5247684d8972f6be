import asyncio
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from ipykernel.inprocess import InProcessKernelManager
from IPython import get_ipython
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from unetlib import (
    DataError,
    LiveFigure,
    Recipe,
    fit,
    overlay,
    plot_history,
    plot_lr_find,
    show_images,
    show_predictions,
)

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 20, 30), dtype=np.uint8)
MASKS = np.zeros((6, 20, 30), bool)
MASKS[:, 5:15, 8:22] = True


@pytest.fixture(autouse=True)
def no_window_is_left_open():
    yield
    assert plt.get_fignums() == []


def shown_axes(figure):
    return [axis for axis in figure.axes if axis.images]


def test_show_images_draws_each_image_under_its_title():
    figure = show_images(list(GREY), titles=[f"car {i}" for i in range(6)], ncols=4)
    axes = shown_axes(figure)
    assert [axis.get_title() for axis in axes] == [f"car {i}" for i in range(6)]
    for axis, image in zip(axes, GREY, strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), image)


@pytest.mark.parametrize(
    "image",
    [GREY[0], GREY[0] / 255, GREY[:1] / 255, np.dstack([GREY[0]] * 3)],
    ids=["uint8", "float", "leading channel", "colour"],
)
def test_show_images_takes_greys_tensors_and_colours(image):
    assert len(shown_axes(show_images([image]))) == 1


def test_a_grey_is_shown_as_it_is_and_not_stretched():
    dim = np.full((4, 4), 100, np.uint8)
    (axis,) = shown_axes(show_images([dim]))
    assert axis.images[0].get_clim() == (0, 255)


def test_overlay_colours_the_mask_and_nothing_else():
    figure = overlay(GREY[0], MASKS[0])
    colour = figure.axes[0].images[1].get_array()
    np.testing.assert_array_equal(~np.ma.getmaskarray(np.ma.masked_invalid(colour)), MASKS[0])


@pytest.mark.parametrize("fill", [False, True])
def test_overlay_takes_an_empty_and_a_full_mask(fill, recwarn):
    overlay(GREY[0], np.full((20, 30), fill)).canvas.draw()
    assert not recwarn.list


@pytest.mark.fault(
    "probabilities are laid over an image instead of a mask", "refused; nothing is drawn"
)
@pytest.mark.parametrize("value", [0.1, np.nan, 255.0])
def test_overlay_refuses_what_is_no_mask(value):
    with pytest.raises(DataError, match="threshold"):
        overlay(GREY[0], np.full((20, 30), value))


@pytest.mark.fault("a mask of another size is laid over an image", "refused")
def test_overlay_refuses_a_mask_of_another_size():
    with pytest.raises(ValueError, match=r"\(10, 15\).*\(20, 30\)"):
        overlay(GREY[0], MASKS[0][::2, ::2])


def test_overlay_draws_where_it_is_told():
    figure, axis = plt.subplots()
    assert overlay(GREY[0], MASKS[0], ax=axis) is figure
    assert len(axis.images) == 2
    plt.close(figure)


def test_show_predictions_marks_missed_and_invented_pixels():
    probability = MASKS[0].astype(float)
    probability[5, 8], probability[0, 0] = 0.0, 1.0  # one pixel missed, one too many
    figure = show_predictions([GREY[0]], [MASKS[0]], [probability], titles=["a car"])
    axes = figure.axes
    assert axes[0].get_title() == "a car"
    errors = np.asarray(axes[3].images[0].get_array())
    coloured = errors.std(axis=2) > 0
    assert set(zip(*np.nonzero(coloured), strict=True)) == {(5, 8), (0, 0)}
    assert not np.allclose(errors[5, 8], errors[0, 0])


@pytest.mark.fault("logits, greys or soft masks are shown as predictions", "refused")
@pytest.mark.parametrize("value", [-3.0, 1.01, 255, np.nan])
def test_show_predictions_refuses_what_are_no_probabilities(value):
    wrong = np.full((20, 30), value)
    with pytest.raises(ValueError, match="0 to 1"):
        show_predictions(GREY[:2], MASKS[:2], [MASKS[0] * 0.9, wrong])
    with pytest.raises(ValueError, match="0 to 1"):
        show_predictions(GREY[:1], MASKS[:1], MASKS[:1] * 0.9, threshold=value)


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_show_predictions_refuses_masks_that_are_none(value):
    with pytest.raises(DataError, match="threshold"):
        show_predictions(GREY[:1], [np.full((20, 30), value)], MASKS[:1] * 0.9)


def test_show_predictions_has_a_column_per_image():
    figure = show_predictions(GREY[:3, None], MASKS[:3, None], MASKS[:3] * 0.9)
    assert len(shown_axes(figure)) == 12


def test_plot_history_of_one_run(trained):
    loss, score = plot_history(trained).axes
    assert [line.get_label() for line in loss.lines] == ["train", "val"]
    np.testing.assert_array_equal(score.lines[0].get_ydata(), trained.history["val_dice"])


def test_plot_history_of_several_runs_names_them(trained):
    loss, score = plot_history({"narrow": trained, "wide": trained}).axes
    assert [line.get_label() for line in score.lines] == ["narrow", "wide"]
    assert len(loss.lines) == 4


def test_figures_draw_without_warnings(trained, recwarn):
    for figure in (
        show_images(list(GREY)),
        overlay(GREY[0], MASKS[0]),
        show_predictions(GREY[:2], MASKS[:2], MASKS[:2] * 0.9),
        plot_history(trained),
    ):
        figure.canvas.draw()
    assert not recwarn.list


# ------------------------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def two_runs(tables, one_thread, tmp_path_factory):
    recipe = Recipe(widths=(2, 4), size=16, epochs=3, lr=1e-2, precision="fp32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNETLIB_HOME", str(tmp_path_factory.mktemp("runs")))
        patch.delenv("UNETLIB_PROFILE", raising=False)
        return [fit(replace(recipe, lr=lr), *tables) for lr in (1e-2, 1e-3)]


def legend(axis) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_runs_without_names_are_drawn_and_named_by_what_differs(two_runs):
    first, second = (run.folder.name for run in two_runs)
    scores = plot_history(run for run in two_runs).axes[1]
    assert legend(scores) == [f"lr 0.01, {first}", f"lr 0.001, {second}"]
    for line, run in zip(scores.lines, two_runs, strict=True):
        np.testing.assert_allclose(line.get_ydata(), run.history["val_dice"])
    assert legend(plot_history(two_runs[:1]).axes[1]) == [two_runs[0].folder.name]


@pytest.mark.fault(
    "runs that differ only in epochs, or one and its copy, are drawn with others",
    "each is drawn, under a label of its own",
)
def test_each_run_is_drawn_under_its_own_label(two_runs, tmp_path):
    recipe = replace(two_runs[0].recipe, epochs=2, seed=1)
    shorter = replace(two_runs[0], folder=tmp_path / "shorter", recipe=recipe)
    scores = plot_history([*two_runs, shorter]).axes[1]
    first, second = (run.folder.name for run in two_runs)
    names = f"lr 0.01, seed 0, {first}", f"lr 0.001, seed 0, {second}", "lr 0.01, seed 1, shorter"
    assert legend(scores) == list(names)
    copy = replace(two_runs[0], folder=tmp_path / "copy")
    assert legend(plot_history([two_runs[0], copy]).axes[1]) == [first, "copy"]


def test_plot_lr_find_marks_a_tenth_of_the_rate_with_the_lowest_loss():
    lr = np.logspace(-5, 0, 51)
    loss = np.abs(np.log10(lr / 1e-2))
    (axis,) = plot_lr_find(pd.DataFrame(dict(lr=lr, loss=loss, smoothed=loss))).axes
    assert axis.get_xscale() == "log"
    assert "a tenth of the lowest: 0.001" in legend(axis)
    assert [line.get_xdata()[0] for line in axis.lines[2:]] == pytest.approx([1e-3])


def test_the_live_figure_follows_masks_over_the_epochs(tables):
    recipe = Recipe(widths=(2, 4), size=16, epochs=9, lr=1e-2, precision="fp32")
    live, previews = LiveFigure(), []
    fit(recipe, *tables, on_epoch=lambda run: (live(run), previews.append(run.preview[2])))
    axes = live.draw().axes
    titles = [axis.get_title() for axis in axes if axis.images]
    first_row = titles[: len(titles) // 2]
    assert first_row[:2] == ["photo", "epoch 1"]
    assert first_row[-2:] == ["epoch 9", "truth"]
    assert len(first_row) == 2 + live.COLUMNS
    shown = [axis.images[0].get_array() for axis in axes if axis.images][1]
    np.testing.assert_array_equal(shown, previews[0][0])
    assert axes[1].get_title() == f"Validation Dice: {live.run.history['val_dice'].iloc[-1]:.4f}"


def test_the_live_figure_starts_anew_with_another_run(tables, two_runs):
    live = LiveFigure()
    recipe = Recipe(widths=(2, 4), size=16, epochs=2, lr=1e-2, precision="fp32")
    fit(recipe, *tables, on_epoch=live)
    fit(replace(recipe, seed=1, epochs=1), *tables, on_epoch=live)
    assert list(live.masks) == [1]


TRAINING = """
from unetlib import LiveFigure, Recipe, find_samples, fit, split_by_group
recipe = Recipe(widths=(2, 4), size=16, epochs=3, precision="fp32")
run = fit(recipe, *split_by_group(find_samples()), on_epoch=LiveFigure())
"""


@pytest.fixture
def kernel():
    """The client of a notebook's kernel in this process."""
    manager = InProcessKernelManager()
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    yield client
    client.stop_channels()
    loop = manager.kernel.iopub_thread.io_loop.asyncio_loop
    asyncio.run_coroutine_threadsafe(end_other_tasks(), loop).result()
    manager.kernel.shell.clear_instance()  # or this process would count as a notebook from now on
    manager.shutdown_kernel()
    assert get_ipython() is None


async def end_other_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def test_the_live_figure_is_displayed_once_and_then_changes(kernel):
    kernel.execute(TRAINING)
    shown = [
        message
        for message in kernel.iopub_channel.get_msgs()
        if "<Figure" in message["content"].get("data", {}).get("text/plain", "")
    ]
    kinds = [message["msg_type"] for message in shown]
    assert kinds == ["display_data", "update_display_data", "update_display_data"]
    assert len({message["content"]["transient"]["display_id"] for message in shown}) == 1


@pytest.mark.slow
def test_the_live_figure_is_one_output_in_a_notebook():
    """A real kernel: one output, replaced after every epoch."""
    notebook = new_notebook(cells=[new_code_cell(TRAINING)])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    pictures = [
        output for output in notebook.cells[0].outputs if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1
