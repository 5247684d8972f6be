"""Copies of the notebooks to work in: without outputs, answers folded, never over changed ones."""

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path

import nbformat
from markdown import local_links
from nbformat import NotebookNode
from questions import ANSWER, SOLUTION, WRONG
from tidying import tidy

FOLDER = Path("my-notebooks")
# What each file held when it was written here, by its name: a file that differs was changed since.
WRITTEN = ".written.json"
FOLDED = """\
<details><summary>Answer</summary>

{answer}

</details>
"""


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook so that an interruption leaves the old file or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    nbformat.write(notebook, part)
    part.replace(path)


def reading_copy(notebook: NotebookNode) -> NotebookNode:
    """The notebook without outputs, the first paragraph of each answer folded."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        else:
            cell.source = WRONG.sub("", cell.source).rstrip()
            if cell.source.startswith(ANSWER):
                answer, _, rest = re.sub(r"\n\s*\n", "\n\n", cell.source).partition("\n\n")
                cell.source = f"{FOLDED.format(answer=answer)}\n{rest}".rstrip()
    return tidy(notebook, {})


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """The copy that a teacher hands out, from a reading copy."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = SOLUTION.sub("", cell.source).rstrip()
    notebook.cells = [cell for cell in notebook.cells if cell.source.strip()]
    return notebook


def linked_files(paths: list[Path]) -> list[Path]:
    """The files beside the notebooks, not notebooks themselves, that these link to."""
    beside = {
        path.parent / file
        for path in paths
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown"
        for file, _ in local_links(cell.source)
        if "/" not in file and not file.endswith(".ipynb")
    }
    return sorted(path for path in beside if path.is_file())


def hand_out(paths: list[Path], folder: Path) -> None:
    """Write copies without outputs and solutions, over those of before."""
    for path in paths:
        notebook = without_solutions(reading_copy(nbformat.read(path, as_version=4)))
        write(notebook, folder / path.name)
    for path in linked_files(paths):
        shutil.copy(path, folder)


def renew(paths: list[Path], folder: Path) -> list[Path]:
    """Write reading copies for somebody who works in this folder.

    A copy that was changed there is left alone. Of a newer edition, one more copy is laid beside
    it; these are returned.
    """
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as made:
        new = Path(made)
        for path in paths:
            write(reading_copy(nbformat.read(path, as_version=4)), new / path.name)
        for path in linked_files(paths):
            shutil.copy(path, new)
        try:
            written = json.loads((folder / WRITTEN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            written = {}  # then every copy counts as changed
        placed = [_place(file, folder / file.name, written) for file in sorted(new.iterdir())]
        (new / WRITTEN).write_text(json.dumps(written, indent=1), encoding="utf-8")
        (new / WRITTEN).replace(folder / WRITTEN)
    return [path for path in placed if path and path.suffixes[:1] == [".new"]]


def _place(new: Path, target: Path, written: dict[str, str]) -> Path | None:
    """Move a new edition to where no change is lost; returns where to, None if it is not needed."""
    edition = fingerprint(new)
    current = fingerprint(target) if target.exists() else None
    before = written.get(target.name)
    if current not in (None, edition, before):  # changed by the reader
        beside = target.with_name(f"{target.stem}.new{target.suffix}")
        return None if before == edition else _place(new, beside, written)
    written[target.name] = edition
    if current == edition:
        return None
    return new.replace(target)


def fingerprint(path: Path) -> str:
    """The hash of a notebook's sources, whatever its outputs are; of another file, of its text."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        cells = nbformat.reads(text, as_version=4).cells
    except Exception:  # no notebook, or a damaged one
        content = text
    else:
        # JupyterLab adds an empty cell below the last one that is run.
        content = json.dumps([(one.cell_type, one.source) for one in cells if one.source.strip()])
    return hashlib.sha256(content.encode()).hexdigest()
