"""tools/tidying.py and the page that tools/course.py makes: pictures, descriptions, hidden code."""

import base64
import io

import course
import numpy as np
import pytest
import tidying
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image
from test_notebooks import Pictures

ALT = 'A line that falls: "the loss" < 1 & falling.'


def png(array, **options) -> str:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return base64.b64encode(buffer.getvalue()).decode()


def pixels(encoded: str):
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as opened:
        return np.asarray(opened.convert("RGBA")).astype(int)


@pytest.fixture
def drawing():
    """Like a figure: a grainy photo with a coloured area; its alpha channel says nothing."""
    grey = np.random.default_rng(0).integers(60, 180, (200, 300))
    picture = np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=-1)
    picture[50:100, 50:200, 0] += 70
    return picture.astype(np.uint8)


def shown(data, **metadata):
    """A notebook with one cell that shows this."""
    cell = new_code_cell("show()", outputs=[new_output("display_data", data=data)])
    cell.metadata.update(metadata)
    return new_notebook(cells=[cell])


def test_of_a_widget_with_a_still_picture_the_picture_is_stored(drawing):
    data = {tidying.WIDGET: {"model_id": "7"}, "image/png": png(drawing), "text/plain": "a demo"}
    (output,) = tidying.tidy(shown(data), {}).cells[0].outputs
    assert set(output.data) == {"image/png", "text/plain"}


@pytest.mark.parametrize("kind", ["image/png", "image/svg+xml"])
def test_a_cell_describes_its_picture_also_on_the_page(tmp_path, drawing, kind):
    data = {
        kind: png(drawing) if kind == "image/png" else "<svg xmlns='http://www.w3.org/2000/svg'/>"
    }
    notebook = tidying.tidy(shown(data, alt=ALT), {})
    assert notebook.cells[0].metadata == {"alt": ALT}
    assert notebook.cells[0].outputs[0].metadata[kind] == {"alt": ALT}
    course.write_html(notebook, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [picture["alt"] for picture in Pictures(page).found] == [ALT]


@pytest.mark.parametrize("tag", ["setup", "check"])
def test_plumbing_is_hidden_and_folded_on_the_page(tmp_path, tag):
    notebook = tidying.tidy(shown({"text/plain": "7"}, tags=[tag], collapsed=True), {})
    assert notebook.cells[0].metadata == {"tags": [tag], "jupyter": {"source_hidden": True}}
    course.write_html(notebook, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    folded = page[page.index("<details>") : page.index("</details>")]
    assert "show" in folded and "show" not in page.split("</details>")[1]


def test_other_cells_stay_in_view(tmp_path):
    course.write_html(tidying.tidy(shown({}, tags=["exercise"]), {}), tmp_path / "page.html")
    assert "<details>" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_picture_is_stored_smaller_and_looks_the_same(drawing):
    before = png(drawing)
    after = tidying.smaller_png(before)
    assert len(after) < 0.7 * len(before)
    off = abs(pixels(before) - pixels(after))
    assert off.mean() < 0.5 and off.max() < 30
    assert tidying.smaller_png(before) == after == tidying.smaller_png(after)


def test_a_picture_of_few_colours_loses_nothing(drawing):
    before = png(drawing | 0b11101111)
    after = tidying.smaller_png(before)
    assert len(after) < len(before)
    assert (pixels(before) == pixels(after)).all()


def test_a_picture_that_would_suffer_or_save_nothing_stays(drawing):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    see_through = drawing.copy()
    see_through[..., 3] = 100
    for picture in (noise, see_through, drawing[:2, :2]):
        assert tidying.smaller_png(png(picture)) == png(picture)
