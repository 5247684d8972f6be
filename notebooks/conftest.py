"""pytest runs each exercise of a notebook three times: untouched, solved and answered wrongly.

nbval runs a notebook's cells in one kernel, which is where an exercise finds what it is about; so
the two further runs are added right behind the cell instead of executing the notebook again.
tests/test_exercises.py checks how exercises are written.
"""

import course
from nbformat import NotebookNode
from nbval.plugin import IPyNbCell

ANSWERED = """\
get_ipython().run_cell_magic("capture", "_shown", {source!r})
assert _shown.stdout.startswith({expected!r}), "expected {expected}, got: " + _shown.stdout
answer = ...
"""


def pytest_collection_modifyitems(items):
    with_exercises = []
    for item in items:
        with_exercises.append(item)
        if isinstance(item, IPyNbCell) and "exercise" in item.cell.metadata.get("tags", []):
            index = item.parent.nb.cells.index(item.cell)
            exercise = course.exercise_at(item.parent.nb, index)
            with_exercises += [
                _answered(item, "not tried", exercise.source, "not tried yet"),
                _answered(item, "solution", exercise.answered(exercise.solution), "Right"),
                _answered(item, "wrong answer", exercise.answered(exercise.wrong), "Not yet"),
            ]
    items[:] = with_exercises


def _answered(item: IPyNbCell, name: str, source: str, expected: str) -> IPyNbCell:
    cell = NotebookNode(item.cell, source=ANSWERED.format(source=source, expected=expected))
    return IPyNbCell.from_parent(
        item.parent,
        name=f"{item.name} ({name})",
        cell_num=item.cell_num,
        cell=cell,
        options={"check": False, "check_exception": False, "skip": False},
    )
