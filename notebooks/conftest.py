"""pytest runs each exercise of a notebook three times: untouched, solved and answered wrongly.

nbval runs a notebook's cells in one kernel, which is where an exercise finds what it is about; so
the further runs, and one that asks for both hints, are added right behind the cell instead of
executing the notebook again. tests/test_exercises.py checks how exercises are written. Under nbmake
the cells run as they stand.
"""

import questions
from nbformat import NotebookNode

ANSWERED = """\
get_ipython().run_cell_magic("capture", "_shown", {source!r})
assert _shown.stdout.startswith({expected!r}), "expected {expected}, got: " + _shown.stdout
answer = ...
"""
HINTS = """\
get_ipython().run_cell_magic("capture", "_idea", "{name}.hint()")
get_ipython().run_cell_magic("capture", "_formula", "{name}.hint()")
assert "" != _idea.stdout != _formula.stdout != "", "two hints, please: " + _idea.stdout
"""


def pytest_collection_modifyitems(config, items):
    if not config.pluginmanager.hasplugin("nbval"):
        return
    with_exercises = []
    for item in items:
        with_exercises.append(item)
        if hasattr(item, "cell") and questions.has_tag(item.cell, "exercise"):
            index = item.parent.nb.cells.index(item.cell)
            exercise = questions.exercise_at(item.parent.nb, index)
            with_exercises += [
                _answered(item, "not tried", exercise.source, "not tried yet"),
                _answered(item, "solution", exercise.answered(exercise.solution), "Right"),
                _answered(item, "wrong answer", exercise.answered(exercise.wrong), "Not yet"),
                _further(item, "hints", HINTS.format(name=exercise.name)),
            ]
    items[:] = with_exercises


def _answered(item, name: str, source: str, expected: str):
    return _further(item, name, ANSWERED.format(source=source, expected=expected))


def _further(item, name: str, source: str):
    """One more cell of nbval, run behind this one."""
    return type(item).from_parent(
        item.parent,
        name=f"{item.name} ({name})",
        cell_num=item.cell_num,
        cell=NotebookNode(item.cell, source=source),
        options={"check": False, "check_exception": False, "skip": False},
    )
