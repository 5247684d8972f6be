"""How the notebooks' exercises are written; notebooks/conftest.py runs their checks.

An exercise is a code cell tagged `exercise` with one line `answer = ...`; the markdown cell behind
it holds the folded solution and, in a comment, one plausible wrong answer.
"""

import re
from pathlib import Path

import course
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("[0-9]*.ipynb"))


def exercises(path):
    notebook = nbformat.read(path, as_version=4)
    found = [course.exercise_at(notebook, index) for index in range(len(notebook.cells))]
    return [exercise for exercise in found if exercise]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_exercises_that_follow_the_convention(path):
    found = exercises(path)
    assert found, f"{path.name} has no cell tagged exercise"
    for exercise in found:
        assert exercise.answered(exercise.solution) != exercise.answered(exercise.wrong)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_exercise_is_left_untagged(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and course.UNTOUCHED.search(cell.source):
            assert "exercise" in cell.metadata.get("tags", []), f"{path.name}: {cell.source[:60]}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_exercises_are_untouched(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if "exercise" in cell.metadata.get("tags", []):
            shown = "".join(output.get("text", "") for output in cell.outputs)
            assert re.match("not tried yet", shown), f"{path.name} shows {shown!r}"
