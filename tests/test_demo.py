"""The widget of notebook 06: what it shows follows its controls."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from unetlib.demo import WIDTH, LiveDemo
from unetlib.formats import FILES
from unetlib.inference import load_predictor


@pytest.fixture
def demo(exported, tables):
    predictors = [load_predictor(exported[0] / FILES[name], "cpu") for name in ("pytorch", "onnx")]
    return LiveDemo(predictors, tables[1]["image"][:2])


def picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def test_it_opens_with_the_first_picture_and_its_mask(demo, predictor, tables):
    shown = picture(demo.view.value)
    assert shown.shape == (320, WIDTH, 3)
    blue = (shown[:, :, 2] - shown[:, :, 0]) > 20
    expected = predictor.predict_mask(tables[1]["image"][0], size=(320, WIDTH))
    assert (blue == expected).mean() > 0.99
    assert f"{expected.mean():.1%} of the picture is car" in demo.note.value


def test_every_control_changes_the_picture_or_the_note(demo):
    before, note = demo.view.value, demo.note.value
    demo.threshold.value = 0.95
    higher = demo.view.value
    assert higher != before
    demo.picture.index = 1
    assert demo.view.value != higher
    demo.picture.index, demo.threshold.value = 0, 0.5
    assert (demo.view.value, demo.note.value) == (before, note)  # predicted once
    demo.format.index = 1
    assert np.abs(picture(demo.view.value) - picture(before)).mean() < 1


def test_without_widgets_a_still_picture_is_shown(demo):
    bundle = demo._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]) == demo.view.value
    assert "/" not in bundle["text/plain"]
