"""Notebooks as they are stored: nothing that differs by machine, small pictures, alt texts."""

import base64
import html
import io
import re
from collections.abc import Iterable

import nbformat
import numpy as np
from nbformat import NotebookNode
from PIL import Image
from questions import has_tag

WIDGET = "application/vnd.jupyter.widget-view+json"
IMAGES = ("image/png", "image/svg+xml", "image/jpeg")
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
# By this, nbconvert makes a .py file of a notebook. No version: it differs from machine to machine.
LANGUAGE = {
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
}
# Colours and the cursor movements of nested progress bars.
TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
UNFINISHED_BAR = re.compile(r"(.*: )?\s*\d{1,2}%\|")


def tidy(notebook: NotebookNode, widgets: dict[str, dict]) -> NotebookNode:
    """Drop what differs from machine to machine and write progress bars as one finished line.

    A cell keeps its tags, whether its input is hidden (always, if tagged `setup` or `check`) and
    `alt`, the description of its pictures, which each of them gets, too.

    Args:
        widgets: the last state of each widget by its id, as nbclient collects them.
    """
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info=LANGUAGE)
    for cell in notebook.cells:
        kept = {key: cell.metadata[key] for key in ("alt", "tags") if cell.metadata.get(key)}
        hidden = cell.metadata.get("jupyter", {}).get("source_hidden")
        if hidden or has_tag(cell, "setup", "check"):
            kept["jupyter"] = {"source_hidden": True}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            cell.outputs = _joined(_without_bars(_joined(cell.outputs), widgets))
            for output in cell.outputs:
                _describe_and_shrink(output, cell.metadata.get("alt"))
    return notebook


def _describe_and_shrink(output: NotebookNode, alt: str | None) -> None:
    data = output.get("data", {})
    for kind in IMAGES:
        if kind in data and alt:
            output.metadata.setdefault(kind, NotebookNode())["alt"] = alt
    if "image/png" in data:
        data["image/png"] = smaller_png(data["image/png"])


def smaller_png(encoded: str) -> str:
    """A PNG (in base64) with at most 256 colours, if nobody sees that and it saves 30 %.

    The palette is Pillow's median cut, refined; the same picture always gives the same bytes.
    """
    original = base64.b64decode(encoded)
    with Image.open(io.BytesIO(original)) as opened:
        if opened.mode == "P" or opened.convert("RGBA").getextrema()[3][0] < 255:
            return encoded
        picture = opened.convert("RGB")
    reduced = picture.quantize(256, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
    off = np.abs(np.asarray(picture, np.int16) - np.asarray(reduced.convert("RGB"), np.int16))
    buffer = io.BytesIO()
    reduced.save(buffer, "PNG", optimize=True)
    if off.mean() > 0.5 or len(buffer.getvalue()) > 0.7 * len(original):  # of 255 levels
        return encoded
    return base64.b64encode(buffer.getvalue()).decode()


def _without_bars(outputs: list[NotebookNode], widgets: dict[str, dict]) -> Iterable[NotebookNode]:
    for output in outputs:
        if output.output_type == "stream":
            text = _as_shown(output.text, drop_blank_lines=output.name == "stderr")
            if text:
                yield nbformat.v4.new_output("stream", name=output.name, text=text)
        elif WIDGET in output.get("data", {}) and "image/png" in output.data:
            del output.data[WIDGET]  # the still picture stays for readers without a kernel
            yield output
        elif WIDGET in output.get("data", {}):
            line = _bar_line(output.data[WIDGET]["model_id"], widgets)
            if line:
                yield nbformat.v4.new_output("stream", name="stderr", text=line + "\n")
        else:
            yield output


def _as_shown(text: str, drop_blank_lines: bool) -> str:
    """What a terminal shows at the end: no codes, no overwritten text, no bar half-way."""
    lines = TERMINAL_CODES.sub("", text).split("\n")
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in lines]
    shown = [line for line in shown if not UNFINISHED_BAR.match(line)]
    if drop_blank_lines:  # left by bars that removed themselves
        shown = [line.rstrip() for line in shown if line.strip()] + [""]
    return "\n".join(shown) if any(shown) else ""


def _bar_line(model_id: str, widgets: dict[str, dict]) -> str | None:
    """The text of a tqdm bar (a box of label, bar, label); None if it removed itself when done."""
    children = widgets.get(model_id, {}).get("children", [])
    parts = [widgets.get(child.removeprefix("IPY_MODEL_"), {}) for child in children]
    if len(parts) != 3 or parts[1].get("bar_style") not in ("success", "danger"):
        return None
    left, right = (html.unescape(parts[i].get("value", "")) for i in (0, 2))
    filled = round(10 * parts[1].get("value", 0) / (parts[1].get("max") or 1))
    # tqdm pads with figure spaces, which no search for the text would find.
    return f"{left}|{'█' * filled:<10}|{right}".replace("\u2007", " ")


def _joined(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Neighbouring pieces of one stream become one, so that the file does not depend on timing."""
    joined: list[NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined
