import matplotlib.pyplot as plt
import numpy as np
import pytest

from unetlib import plots

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
    figure = plots.show_images(list(GREY), titles=[f"car {i}" for i in range(6)], ncols=4)
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
    assert len(shown_axes(plots.show_images([image]))) == 1


def test_a_grey_is_shown_as_it_is_and_not_stretched():
    dim = np.full((4, 4), 100, np.uint8)
    (axis,) = shown_axes(plots.show_images([dim]))
    assert axis.images[0].get_clim() == (0, 255)


def test_overlay_colours_the_mask_and_nothing_else():
    figure = plots.overlay(GREY[0], MASKS[0])
    colour = figure.axes[0].images[1].get_array()
    np.testing.assert_array_equal(~np.ma.getmaskarray(np.ma.masked_invalid(colour)), MASKS[0])


@pytest.mark.parametrize("fill", [False, True])
def test_overlay_takes_an_empty_and_a_full_mask(fill, recwarn):
    plots.overlay(GREY[0], np.full((20, 30), fill)).canvas.draw()
    assert not recwarn.list


def test_overlay_draws_where_it_is_told():
    figure, axis = plt.subplots()
    assert plots.overlay(GREY[0], MASKS[0], ax=axis) is figure
    assert len(axis.images) == 2
    plt.close(figure)


def test_show_predictions_marks_missed_and_invented_pixels():
    probability = MASKS[0].astype(float)
    probability[5, 8], probability[0, 0] = 0.0, 1.0  # one pixel missed, one too many
    figure = plots.show_predictions([GREY[0]], [MASKS[0]], [probability], titles=["a car"])
    axes = figure.axes
    assert axes[0].get_title() == "a car"
    errors = np.asarray(axes[3].images[0].get_array())
    coloured = errors.std(axis=2) > 0
    assert set(zip(*np.nonzero(coloured), strict=True)) == {(5, 8), (0, 0)}
    assert not np.allclose(errors[5, 8], errors[0, 0])


def test_show_predictions_has_a_column_per_image():
    figure = plots.show_predictions(GREY[:3, None], MASKS[:3, None], MASKS[:3] * 0.9)
    assert len(shown_axes(figure)) == 12


def test_plot_history_of_one_run(trained):
    loss, score = plots.plot_history(trained).axes
    assert [line.get_label() for line in loss.lines] == ["train", "val"]
    np.testing.assert_array_equal(score.lines[0].get_ydata(), trained.history["val_dice"])


def test_plot_history_of_several_runs_names_them(trained):
    loss, score = plots.plot_history({"narrow": trained, "wide": trained}).axes
    assert [line.get_label() for line in score.lines] == ["narrow", "wide"]
    assert len(loss.lines) == 4


def test_figures_draw_without_warnings(trained, recwarn):
    for figure in (
        plots.show_images(list(GREY)),
        plots.overlay(GREY[0], MASKS[0]),
        plots.show_predictions(GREY[:2], MASKS[:2], MASKS[:2] * 0.9),
        plots.plot_history(trained),
    ):
        figure.canvas.draw()
    assert not recwarn.list
