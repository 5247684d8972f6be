"""How the notebooks' exercises are written; notebooks/conftest.py runs their checks.

An exercise is a code cell tagged `exercise` with one line `answer = ...` that ends in
`NAME.check(answer)`. A cell before it, tagged `check`, defines NAME; the markdown cell behind it
holds the folded solution and, in a comment, one plausible wrong answer.
"""

import re

import nbformat
import pytest
import questions
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from test_notebooks import NOTEBOOKS

CHECK = """\
six = Exercise(right=6, why="two times three", hints=("multiply", "two * three"))
"""
EXERCISE = """\
# NBVAL_CHECK_OUTPUT
answer = ...  # a number
six.check(answer)  # six.hint() prints a hint
"""
SOLUTION = """\
<details><summary>Solution</summary>

```python
two = 2
answer = two * 3
```
</details>
<!-- wrong: answer = 5 -->

And now for something else."""


def exercise_notebook():
    check = new_code_cell(CHECK, metadata={"tags": ["check"]})
    exercise = new_code_cell(EXERCISE, metadata={"tags": ["exercise"]})
    return new_notebook(cells=[check, exercise, new_markdown_cell(SOLUTION)])


def test_an_exercise_can_be_answered():
    exercise = questions.exercise_at(exercise_notebook(), 1)
    assert exercise.name == "six"
    assert "two = 2\nanswer = two * 3\nsix.check(answer)" in exercise.answered(exercise.solution)
    assert "\nanswer = 5\nsix.check(answer)" in exercise.answered(exercise.wrong)
    assert questions.exercise_at(exercise_notebook(), 0) is None
    assert questions.exercise_at(exercise_notebook(), 2) is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("answer = ...", "reply = ...", "exactly one line"),
        ("six.check(answer)", "print(answer)", "as its last line"),
        ("six.check(answer)", "seven.check(answer)", "seven = Exercise"),
        ("<summary>Solution", "<summary>Hint", "needs <details>"),
        ("answer = two * 3", "reply = two * 3", "needs <details>"),
        ("wrong:", "false:", "needs a comment"),
    ],
)
def test_an_exercise_against_the_convention_is_named(old, new, message):
    notebook = exercise_notebook()
    for cell in notebook.cells:
        cell.source = cell.source.replace(old, new)
    with pytest.raises(ValueError, match=message):
        questions.exercise_at(notebook, 1)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_every_notebook_has_four_exercises_that_follow_the_convention(notebook):
    found = [questions.exercise_at(notebook, index) for index in range(len(notebook.cells))]
    found = [exercise for exercise in found if exercise]
    assert len(found) >= 4
    assert len({exercise.name for exercise in found}) == len(found), "two share their name"
    for exercise in found:
        assert exercise.answered(exercise.solution) != exercise.answered(exercise.wrong)


def test_no_exercise_is_left_untagged(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code" and questions.UNTOUCHED.search(cell.source):
            assert questions.has_tag(cell, "exercise"), cell.source[:60]


def test_stored_exercises_are_untouched(notebook):
    for cell in notebook.cells:
        if questions.has_tag(cell, "exercise"):
            shown = "".join(output.get("text", "") for output in cell.outputs)
            assert re.match("not tried yet", shown), f"a cell shows {shown!r}"
