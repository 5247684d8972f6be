"""tools/copies.py: what a reader and a teacher get, and that no change of a reader is lost."""

import json

import copies
import course
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from test_exercises import SOLUTION, exercise_notebook

ANSWER = """\
**Answer:** about
one half.

Because it is."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with notebooks/01_toy.ipynb and what it links to."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    edit("first edition")
    (tmp_path / "notebooks" / "glossary.md").write_text("# Glossary")
    return tmp_path


def edit(text, path="notebooks/01_toy.ipynb"):
    notebook = exercise_notebook()
    notebook.cells[1].outputs = [new_output("stream", text="not tried yet")]
    notebook.cells.append(new_markdown_cell(f"{text}. Terms: [glossary](glossary.md)."))
    nbformat.write(notebook, path)


def write_in(name, source, outputs=False):
    """As a reader does: one more cell in a copy, and what it shows."""
    path = copies.FOLDER / name
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(new_code_cell(source))
    if outputs:
        notebook.cells[1].outputs = [new_output("stream", text="Right")]
        notebook.metadata["widgets"] = {}
    nbformat.write(notebook, path)
    return path.read_bytes()


def make(capsys) -> str:
    """`make lab`, without JupyterLab; returns what it says."""
    course.renew_copies(sorted(course.NOTEBOOKS.glob("[0-9]*.ipynb")))
    return capsys.readouterr().out


def in_copies() -> set[str]:
    return {path.name for path in copies.FOLDER.iterdir()} - {copies.WRITTEN}


def text_of(name) -> str:
    return (copies.FOLDER / name).read_text(encoding="utf-8")


def test_a_copy_has_no_output_and_folds_the_answers():
    notebook = exercise_notebook()
    notebook.cells[1].outputs = [new_output("stream", text="not tried yet")]
    notebook.cells.append(new_markdown_cell(ANSWER))
    copy = copies.reading_copy(notebook)
    assert copy.cells[1].outputs == []
    assert "wrong:" not in copy.cells[2].source and "answer = two * 3" in copy.cells[2].source
    assert "</details>\n\nAnd now" in copy.cells[2].source  # or all that follows stays HTML
    before, folded = copy.cells[3].source.split("</details>")
    assert before.startswith("<details>") and "\n\n**Answer:** about\none half.\n\n" in before
    assert folded.strip() == "Because it is."


def test_a_handout_has_no_solution(here):
    notebook = exercise_notebook()
    notebook.cells.append(new_markdown_cell(SOLUTION.partition("\n\nAnd")[0]))
    without = copies.without_solutions(copies.reading_copy(notebook))
    *_, exercise, text = (cell.source for cell in without.cells)
    assert text == "And now for something else." and "answer = ..." in exercise
    copies.hand_out([here / "notebooks" / "01_toy.ipynb"], here / "build" / "handout")
    assert {path.name for path in (here / "build" / "handout").iterdir()} == {
        "01_toy.ipynb",
        "glossary.md",
    }


def test_copies_lie_beside_what_they_link_to(here, capsys):
    assert str(copies.FOLDER) in make(capsys)
    assert in_copies() == {"01_toy.ipynb", "glossary.md"}
    nbformat.validate(nbformat.read(copies.FOLDER / "01_toy.ipynb", as_version=4))


def test_what_was_only_run_is_kept_until_there_is_a_new_edition(here, capsys):
    make(capsys)
    run = write_in("01_toy.ipynb", "", outputs=True)
    make(capsys)
    assert (copies.FOLDER / "01_toy.ipynb").read_bytes() == run
    edit("second edition")
    make(capsys)
    assert "second edition" in text_of("01_toy.ipynb") and len(in_copies()) == 2


def test_what_a_reader_changed_stays_and_the_new_edition_lies_beside_it(here, capsys):
    make(capsys)
    mine = write_in("01_toy.ipynb", "my own cell")
    silent = make(capsys)
    assert in_copies() == {"01_toy.ipynb", "glossary.md"}
    edit("second edition")
    assert "01_toy.new.ipynb" in make(capsys)
    assert (copies.FOLDER / "01_toy.ipynb").read_bytes() == mine
    assert "second edition" in text_of("01_toy.new.ipynb")
    assert make(capsys) == silent  # once is enough
    edit("third edition")
    make(capsys)
    assert "third edition" in text_of("01_toy.new.ipynb")
    assert (copies.FOLDER / "01_toy.ipynb").read_bytes() == mine


def test_work_in_the_second_copy_stays_too(here, capsys):
    make(capsys)
    write_in("01_toy.ipynb", "my own cell")
    edit("second edition")
    make(capsys)
    mine = write_in("01_toy.new.ipynb", "more of my own")
    edit("third edition")
    assert "01_toy.new.new.ipynb" in make(capsys)
    assert (copies.FOLDER / "01_toy.new.ipynb").read_bytes() == mine
    assert "third edition" in text_of("01_toy.new.new.ipynb")


def test_a_second_copy_that_took_the_first_ones_place_is_left_alone(here, capsys):
    make(capsys)
    write_in("01_toy.ipynb", "my own cell")
    edit("second edition")
    make(capsys)
    (copies.FOLDER / "01_toy.new.ipynb").replace(copies.FOLDER / "01_toy.ipynb")
    make(capsys)
    assert in_copies() == {"01_toy.ipynb", "glossary.md"}


@pytest.mark.parametrize("record", [None, "{", json.dumps({})])
def test_without_the_record_nothing_is_overwritten(here, capsys, record):
    make(capsys)
    mine = write_in("01_toy.ipynb", "my own cell")
    (copies.FOLDER / copies.WRITTEN).unlink()
    if record:
        (copies.FOLDER / copies.WRITTEN).write_text(record)
    edit("second edition")
    make(capsys)
    assert (copies.FOLDER / "01_toy.ipynb").read_bytes() == mine
    assert "second edition" in text_of("01_toy.new.ipynb")


@pytest.mark.parametrize("content", ["", "{", "my notes"])
def test_a_copy_that_is_no_notebook_is_left_alone(here, capsys, content):
    make(capsys)
    (copies.FOLDER / "01_toy.ipynb").write_text(content)
    edit("second edition")
    make(capsys)
    assert text_of("01_toy.ipynb") == content
    assert "second edition" in text_of("01_toy.new.ipynb")


def test_notes_in_the_glossary_stay(here, capsys):
    make(capsys)
    (copies.FOLDER / "glossary.md").write_text("my notes")
    (here / "notebooks" / "glossary.md").write_text("# Glossary, second edition")
    assert "glossary.new.md" in make(capsys)
    assert text_of("glossary.md") == "my notes"
