"""The notebooks as they are stored in the repository: executed, tidy and small."""

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import course
import nbformat
import pytest
from markdown import headings, local_links
from nbconvert.exporters import ScriptExporter
from PIL import Image
from questions import has_tag
from tidying import IMAGES

REPOSITORY = Path(__file__).parent.parent
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))
NAMES = [
    "01_exploration",
    "02_dataset",
    "03_model",
    "04_training",
    "05_export",
    "06_inference_comparison",
]
REMEDY = "run `make refresh` and commit the result"

ABSOLUTE_PATH = re.compile(
    r"(?:^|[\s'\"(=:,])(?:/(?:home|Users|root|tmp|private|var|work|mnt|opt|usr)/|[A-Za-z]:\\\\?\w)"
)
MEMORY_ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")
SECRET = re.compile(r"KAGGLE_API_TOKEN\s*=\s*\S|KGAT_\w|\bhf_\w{20}|\bgh[pousr]_\w{20}")
UNFINISHED_BAR = re.compile(r"(?<!\d)\d{1,2}%\|")
WARNING = re.compile(r"\w*Warning\b|\[W\d|\bWARNING\b|DEPRECAT")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture
def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def stored_text(cell) -> str:
    """All the text that a cell's outputs show."""
    pieces = []
    for output in cell.outputs:
        pieces.append(output.get("text", ""))
        for kind, value in output.get("data", {}).items():
            if kind.startswith("text/") or kind == "application/json":
                pieces.append(str(value))
    return "\n".join(pieces)


def test_the_six_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == NAMES


def test_valid_and_small(path, notebook):
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_400_000, f"{path.name}: show fewer or smaller figures"


class Pictures(HTMLParser):
    """The attributes of each picture of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.found.append(dict(attributes))


def bare(pictures: list[dict]) -> list[str]:
    """The beginnings of the pictures without a description, or with nbconvert's own."""
    alts = [(one, one.get("alt") or "") for one in pictures]
    lacking = [one for one, alt in alts if len(alt) < 20 or alt.startswith("No description has")]
    return [str(one)[:200] for one in lacking]


def test_every_stored_picture_has_a_text_alternative(path, code_cells):
    for cell in code_cells:
        pictures = []
        for output in cell.outputs:
            data = output.get("data", {})
            pictures += [output.metadata.get(kind, {}) for kind in IMAGES if kind in data]
            pictures += Pictures(data.get("text/html", "")).found
        assert not bare(pictures), f"{path.name} [{cell.execution_count}]: cell metadata lack `alt`"


def test_every_picture_of_the_page_has_a_text_alternative(path, notebook, tmp_path):
    course.write_html(notebook, tmp_path / "page.html")
    pictures = Pictures((tmp_path / "page.html").read_text(encoding="utf-8")).found
    assert len(pictures) >= len(stored_pngs(notebook)) > 0
    assert not bare(pictures)


def stored_pngs(notebook) -> list[str]:
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return [one["image/png"] for one in data if "image/png" in one]


def test_pictures_fit_a_page(path, notebook):
    for encoded in stored_pngs(notebook):
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
            assert picture.width <= 900, f"{path.name} holds a picture of {picture.size} pixels"


def test_code_cells_are_short(path, code_cells):
    for cell in code_cells:
        hidden = has_tag(cell, "setup", "check")
        assert hidden == cell.metadata.get("jupyter", {}).get("source_hidden", False)
        lines = len(cell.source.splitlines())
        assert lines <= (32 if hidden else 20), (
            f"{path.name} [{cell.execution_count}] has {lines} lines: {cell.source[:60]}"
        )


def test_every_code_cell_was_executed_in_order(path, code_cells):
    counts = [cell.execution_count for cell in code_cells]
    assert counts == list(range(1, len(counts) + 1)), f"{path.name}: {REMEDY}"


def test_no_stored_error(path, code_cells):
    for cell in code_cells:
        kinds = [output.output_type for output in cell.outputs]
        assert "error" not in kinds, f"{path.name} [{cell.execution_count}]: {REMEDY}"


@pytest.mark.parametrize(
    "what",
    [ABSOLUTE_PATH, MEMORY_ADDRESS, SECRET, UNFINISHED_BAR, WARNING],
    ids=["absolute path", "memory address", "secret", "unfinished bar", "warning"],
)
def test_outputs_are_free_of(what, path, code_cells):
    for cell in code_cells:
        found = what.search(stored_text(cell))
        assert not found, f"{path.name} [{cell.execution_count}] shows {found.group()!r}"


def test_sources_are_free_of_paths_and_secrets(path, notebook):
    for cell in notebook.cells:
        for pattern in (ABSOLUTE_PATH, SECRET):
            found = pattern.search(cell.source)
            assert not found, f"{path.name} holds {found.group()!r} in a cell's source"


def test_no_widgets(path, notebook, code_cells):
    assert "widgets" not in notebook.metadata
    for cell in code_cells:
        for output in cell.outputs:
            assert not any("widget" in kind for kind in output.get("data", {})), (
                f"{path.name} [{cell.execution_count}] stores a widget, which GitHub cannot show: "
                f"{REMEDY}"
            )


def test_outputs_come_from_the_laptop_profile(path, code_cells):
    shown = "\n".join(stored_text(cell) for cell in code_cells)
    assert "profile: laptop" in shown, f"{path.name}: {REMEDY}"


def test_contract(path, notebook):
    """Every notebook says what it gives and takes, asks before it answers, and leads on."""
    assert notebook.cells[0].source.endswith("\nTerms: [glossary](glossary.md).")
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for part in [
        r"\A# ",
        r"^\*\*Goal:\*\*",
        r"^\*\*You will be able to\*\*",
        r"^\*\*Needs / time:\*\*",
        r"^\*\*Predict:\*\*",
        r"^## Exercises",
        r"^## What you have learned",
    ]:
        assert re.search(part, text, re.MULTILINE), f"{path.name} lacks {part}"
    following = NAMES[NAMES.index(path.stem) + 1 :]
    if following:
        assert f"({following[0]}.ipynb)" in text, f"{path.name} does not lead to the next notebook"


def sources(path: Path) -> list[str]:
    """The Markdown of a notebook's cells or of a file."""
    if path.suffix != ".ipynb":
        return [path.read_text(encoding="utf-8")]
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "markdown"]


@pytest.mark.parametrize(
    "path", [*NOTEBOOKS, NOTEBOOKS[0].parent / "glossary.md"], ids=lambda path: path.name
)
def test_local_links_lead_to_a_file_and_a_heading_in_it(path):
    for target, heading in (link for text in sources(path) for link in local_links(text)):
        found = path.parent / target if target else path
        assert found.exists(), f"{path.name} links to {target}"
        if heading:
            known = [title.replace(" ", "-") for text in sources(found) for title in headings(text)]
            assert heading in known, f"{path.name} links to {target}#{heading}"


def test_as_a_script_it_is_python_and_lacks_no_name(notebook):
    """As by `jupyter nbconvert --to script`; plain Python has no `display` of its own."""
    script, resources = ScriptExporter().from_notebook_node(notebook)
    assert resources["output_extension"] == ".py"
    undefined = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "-"]
    found = subprocess.run(
        undefined, input=script, capture_output=True, text=True, encoding="utf-8"
    )
    assert found.returncode == 0, found.stdout
