"""Predictors, images -> a widget to play with: pick a picture and a format, move the threshold."""

import base64
import io
import time
from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from unetlib.dataset import load_image, to_tensor
from unetlib.inference import Predictor, upright_size
from unetlib.plots import CAR

WIDTH = 480  # of the picture shown, in pixels
BLUE = 255 * np.array(to_rgb(CAR), np.float32)


class LiveDemo:
    """Mask, covered share and latency of one picture, drawn anew at every change.

    As the last line of a cell it shows itself. Where widgets do not work (GitHub, nbconvert), its
    first picture is shown instead.

    Args:
        predictors: the formats to choose from.
        images: paths of the pictures to choose from.
    """

    def __init__(self, predictors: Sequence[Predictor], images: Sequence[str | Path]):
        self._maps: dict[tuple[str, str], tuple[np.ndarray, float]] = {}
        pictures = [(Path(image).stem, str(image)) for image in images]
        self.picture = widgets.Dropdown(options=pictures, description="picture")
        formats = [(predictor.name, predictor) for predictor in predictors]
        self.format = widgets.Dropdown(options=formats, description="format")
        self.threshold = widgets.FloatSlider(
            predictors[0].threshold, min=0.05, max=0.95, step=0.05, description="threshold"
        )
        self.view, self.note = widgets.Image(format="png", width=WIDTH), widgets.Label()
        controls = widgets.VBox([self.picture, self.format, self.threshold, self.note])
        self.widget = widgets.HBox([self.view, controls])
        for control in (self.picture, self.format, self.threshold):
            control.observe(self.draw, names="value")
        self.draw()

    def draw(self, _change=None) -> None:
        """Predict if this picture and format are new, and lay the mask over the picture."""
        predictor, image = self.format.value, self.picture.value
        if (image, predictor.name) not in self._maps:
            batch = to_tensor(load_image(image, predictor.size)[None]).numpy()
            predictor.logits(batch)  # warm-up
            started = time.perf_counter()
            predictor.logits(batch)
            milliseconds = 1000 * (time.perf_counter() - started)
            width, height = upright_size(image)
            height = round(WIDTH * height / width)
            probability = predictor.predict_proba(image, size=(height, WIDTH))
            self._maps[image, predictor.name] = probability, milliseconds
        probability, milliseconds = self._maps[image, predictor.name]
        mask = probability > self.threshold.value
        shown = load_image(image, mask.shape)[:, :, None].repeat(3, axis=2).astype(np.float32)
        shown[mask] = 0.5 * shown[mask] + 0.5 * BLUE
        buffer = io.BytesIO()
        Image.fromarray(shown.astype(np.uint8)).save(buffer, "png")
        self.view.value = buffer.getvalue()
        self.note.value = (
            f"{mask.mean():.1%} of the picture is car; the network took {milliseconds:.0f} ms"
        )

    def _repr_mimebundle_(self, **_) -> dict[str, object]:
        bundle = self.widget._repr_mimebundle_()
        bundle["image/png"] = base64.b64encode(self.view.value).decode()
        bundle["text/plain"] = "A demo to play with: run the notebook."
        return bundle
