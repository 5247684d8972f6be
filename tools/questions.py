"""What the notebooks ask, as it is written in their cells: predictions, guesses, exercises.

Like all of tools/, no part of unetlib. The conventions stand in tests/test_exercises.py and
tests/test_predictions.py; tools/course.py, those tests and notebooks/conftest.py read them here.
"""

import ast
import re
from dataclasses import dataclass

from nbformat import NotebookNode

UNTOUCHED = re.compile(r"^answer = \.\.\.[ \t]*(?:#.*)?$", re.MULTILINE)
SOLUTION = re.compile(r"<details>\s*<summary>Solution</summary>.*?</details>\s*", re.DOTALL)
SOLUTION_CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
# Up to its line's end: the empty line after it ends the solution's HTML, too.
WRONG = re.compile(r"<!--\s*wrong:\s*(answer = .*?)\s*-->[ \t]*\n?", re.DOTALL)
GUESS = re.compile(r"^(guess_\w+) = \.\.\.[ \t]*(?:#[ \t]*(.*))?$", re.MULTILINE)
# A prompt may be answered before it is asked again: the answer's cell may hold the next prompt.
PREDICT, ANSWER = "**Predict:**", "**Answer:**"


@dataclass(frozen=True)
class Exercise:
    """A self-checking cell, its folded solution and a plausible wrong answer (all code)."""

    name: str
    source: str
    solution: str
    wrong: str

    def answered(self, answer: str) -> str:
        """The cell as a learner leaves it who replaced `answer = ...` by this code."""
        return UNTOUCHED.sub(lambda _: answer, self.source)


@dataclass(frozen=True)
class Guess:
    """A cell's line `guess_x = ...  # a number` or `# "this" or "that"`, for the reader to fill."""

    name: str
    choices: tuple[str, ...]  # none if a number is asked for

    def filled(self, source: str, of_its_kind: bool = True) -> str:
        """The cell as a reader leaves it who gave 0.5 or the first choice, or mixed the kinds."""
        word = self.choices[0] if self.choices else "many"
        value = repr(word) if bool(self.choices) == of_its_kind else "0.5"
        return re.sub(rf"^{self.name} = \.\.\.", f"{self.name} = {value}", source, flags=re.M)


def has_tag(cell: NotebookNode, *tags: str) -> bool:
    return not set(tags).isdisjoint(cell.metadata.get("tags", []))


def exercise_at(notebook: NotebookNode, index: int) -> Exercise | None:
    """The exercise whose code cell is the notebook's cell `index`; None if it is another cell.

    Raises:
        ValueError: the cell is tagged as an exercise but does not follow the convention.
    """
    cell = notebook.cells[index]
    if cell.cell_type != "code" or not has_tag(cell, "exercise"):
        return None
    after = notebook.cells[index + 1].source if index + 1 < len(notebook.cells) else ""
    folded, wrong = SOLUTION.search(after), WRONG.search(after)
    solution = SOLUTION_CODE.search(folded.group()) if folded else None
    if len(UNTOUCHED.findall(cell.source)) != 1:
        raise ValueError(f"cell {index} needs exactly one line `answer = ...`")
    name = _checked_by(cell.source)
    if not name:
        raise ValueError(f"cell {index} needs `NAME.check(answer)` as its last line")
    defined = [before for before in notebook.cells[:index] if has_tag(before, "check")]
    if not defined or not re.search(rf"^{name} = Exercise\(", defined[-1].source, re.MULTILINE):
        raise ValueError(f"cell {index} needs `{name} = Exercise(` in the last cell tagged check")
    if not solution or "answer = " not in solution.group(1):
        raise ValueError(
            f"cell {index + 1} needs <details><summary>Solution</summary> with a ```python block "
            "that assigns answer"
        )
    if not wrong:
        raise ValueError(f"cell {index + 1} needs a comment like <!-- wrong: answer = 42 -->")
    return Exercise(name, cell.source, solution.group(1).rstrip(), wrong.group(1))


def _checked_by(source: str) -> str | None:
    """NAME, if the code ends in `NAME.check(answer)`."""
    match ast.parse(source).body[-1]:
        case ast.Expr(
            ast.Call(ast.Attribute(ast.Name(name), "check"), [ast.Name("answer")], keywords=[])
        ):
            return name


def guesses_in(source: str) -> list[Guess]:
    """The guesses that a code cell asks for.

    Raises:
        ValueError: a comment names neither a number nor choices in double quotes.
    """
    found = []
    for name, comment in GUESS.findall(source):
        choices = tuple(re.findall(r'"([^"]+)"', comment))
        if len(choices) == 1 or not (choices or re.search(r"\ba number\b", comment)):
            raise ValueError(f"{name} needs `# a number` or choices in double quotes: {comment!r}")
        found.append(Guess(name, choices))
    return found


def revealed_in(source: str) -> set[str]:
    """The names of the guesses that a code cell gives to `reveal`."""
    return {
        call.args[1].id
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if call.func.id == "reveal" and len(call.args) > 1 and isinstance(call.args[1], ast.Name)
    }
