"""What the notebooks let a reader predict: every prompt is answered, every guess compared.

A guess is a line `guess_x = ...  # a number` (or `# "roof" or "wheels"`); a later cell gives it to
`reveal`, and the last code cell, `reveal()`, shows all of them.
"""

import nbformat
import pytest
import questions
from course import execute
from test_notebooks import NOTEBOOKS
from tqdm import tqdm

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def cells(path):
    return nbformat.read(path, as_version=4).cells


def answered(cells, prompt: int) -> bool:
    """Is the prompt in this cell followed by code and, before the next prompt, an answer?"""
    seen_code = False
    for cell in cells[prompt + 1 :]:
        if cell.cell_type == "code":
            seen_code = True
        elif cell.source.startswith(questions.ANSWER):
            return seen_code
        elif questions.PREDICT in cell.source:
            return False
    return False


def test_every_prompt_is_answered_after_the_output(path, cells):
    prompts = [i for i, cell in enumerate(cells) if questions.PREDICT in cell.source]
    assert prompts
    open_ones = [cells[i].source[-200:] for i in prompts if not answered(cells, i)]
    assert not open_ones


def test_at_least_four_guesses_each_compared_with_the_result(path, cells):
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    asked = [(i, guess) for i, one in enumerate(code) for guess in questions.guesses_in(one)]
    names = [guess.name for _, guess in asked]
    assert len(names) >= 4
    assert len(set(names)) == len(names), "two guesses share their name"
    for i, guess in asked:
        later = set().union(*map(questions.revealed_in, code[i + 1 :]))
        assert guess.name in later, f"no cell reveals {guess.name}"
    assert code[-1] == "reveal()"


def test_stored_guesses_are_untouched(path, cells):
    shown = "".join(output.get("text", "") for output in cells_of_code(cells)[-1].outputs)
    assert shown.count("no guess") >= 4 and "you said" not in shown


def cells_of_code(cells):
    return [cell for cell in cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One work folder for all, so that nothing is trained twice."""
    return tmp_path_factory.mktemp("guesses")


@pytest.mark.slow
@pytest.mark.parametrize("of_its_kind", [True, False], ids=["filled in", "of the wrong kind"])
def test_a_reader_may_guess_anything(path, of_its_kind, home, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    for cell in cells_of_code(notebook.cells):
        for guess in questions.guesses_in(cell.source):
            cell.source = guess.filled(cell.source, of_its_kind)
    nbformat.write(notebook, tmp_path / path.name)
    monkeypatch.delenv("UNETLIB_DATA")
    monkeypatch.setenv("UNETLIB_PROFILE", "ci")
    monkeypatch.setenv("UNETLIB_HOME", str(home))
    done, problem = execute(tmp_path / path.name, tqdm(disable=True))
    assert problem is None
    last = cells_of_code(done.cells)[-1]
    shown = "".join(output.get("text", "") for output in last.outputs)
    assert shown.count("you said") >= 4 and "no guess" not in shown
