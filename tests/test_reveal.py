"""unetlib/support/exercises.py: guesses beside results, answers that are checked."""

import math

import numpy as np
import pytest

from unetlib import Exercise, reveal
from unetlib.support import exercises


@pytest.fixture(autouse=True)
def nothing_revealed(monkeypatch):
    monkeypatch.setattr(exercises, "_REVEALED", {})


@pytest.fixture
def said(capsys):
    return lambda: capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("guess", "answer", "shown"),
    [
        (0.7, 0.8437, ["0.7", "0.844"]),
        (2_000_000, 2_067_777, ["2,000,000", "2,067,777"]),
        (np.float32(0.25), np.int64(3), ["0.25", "3"]),
        ("roof", "wheels", ["roof", "wheels"]),
    ],
)
def test_a_guess_stands_beside_the_result(said, guess, answer, shown):
    reveal("what is it", guess, answer)
    (line,) = said()
    assert line.startswith("what is it: ")
    assert line.index(shown[0]) < line.rindex(shown[1])


def test_untouched_only_the_result_is_shown(said):
    drawn = []
    reveal("Dice", ..., 0.5, line=lambda *_, **__: drawn.append("a line"))
    assert said() == ["Dice: 0.5"] and drawn == []


@pytest.mark.parametrize(("guess", "answer"), [("many", 0.5), (0.5, "roof"), (None, 0.5)])
def test_a_guess_of_another_kind_is_no_error_and_says_which_is_wanted(said, guess, answer):
    drawn = []
    reveal("what is it", guess, answer, line=lambda *_, **__: drawn.append("a line"))
    (line,) = said()
    assert str(answer) in line
    assert ("a number" in line) == (answer == 0.5) and drawn == []


def test_a_guessed_number_is_drawn_where_it_stands():
    drawn = []
    reveal("what is it", 0.25, 0.5, line=lambda at, **style: drawn.append((at, style)))
    ((at, style),) = drawn
    assert at == 0.25 and style["linestyle"] == "--" and style["label"]


def test_the_table_holds_the_last_guess_of_every_question(said):
    reveal("first", ..., 1)
    reveal("second", "a", "b")
    reveal("first", 3, 4)
    said()
    reveal()
    first, second = said()
    assert first.startswith("first: ") and "3" in first and "4" in first
    assert second.startswith("second: ") and "a" in second and "b" in second


def test_the_table_tells_who_did_not_guess(said):
    reveal("first", ..., 1)
    reveal("second", 2, 2)
    said()
    reveal()
    first, second = said()
    assert "no guess" in first and "you said" in second


@pytest.fixture
def asked():
    return Exercise(
        right=0.5,
        why="half of it",
        hints=("divide", "1 / 2"),
        mistakes={"the other way round": 2, "below zero": lambda answer: answer < 0},
    )


def verdict(exercise, answer, capsys) -> str:
    exercise.check(answer)
    return capsys.readouterr().out.strip()


def test_an_untouched_exercise_is_not_judged(asked, capsys):
    assert verdict(asked, ..., capsys) == "not tried yet"


@pytest.mark.parametrize("answer", [0.5, 0.501, np.float32(0.4991)])
def test_a_right_number_is_told_why(asked, capsys, answer):
    assert verdict(asked, answer, capsys) == "Right: half of it"


@pytest.mark.parametrize(
    ("answer", "said"),
    [(2, "the other way round"), (-1, "below zero"), (0.52, "divide"), (math.nan, "divide")],
)
def test_a_wrong_number_is_told_its_mistake_or_the_first_hint(asked, capsys, answer, said):
    assert verdict(asked, answer, capsys) == f"Not yet: {said}"


@pytest.mark.parametrize("answer", ["0.5", None, [0.5], print])
def test_an_answer_of_another_kind_is_no_error(asked, capsys, answer):
    assert verdict(asked, answer, capsys).startswith("Not yet: ")


def test_a_whole_number_is_met_exactly(capsys):
    asked = Exercise(right=1000, why="so it is", hints=("count",))
    assert verdict(asked, 1000.0, capsys).startswith("Right")
    assert verdict(asked, 1001, capsys).startswith("Not yet")


def test_a_word_counts_in_any_case(capsys):
    asked = Exercise(right="eval", why="so it is", hints=("think",), mistakes={"no": "train"})
    assert verdict(asked, " Eval ", capsys).startswith("Right")
    assert verdict(asked, "TRAIN", capsys) == "Not yet: no"
    assert verdict(asked, 3, capsys) == "Not yet: think"


def test_a_function_of_the_reader_is_tried_and_may_fail(capsys):
    asked = Exercise(right=lambda double: double(4) == 8, why="twice", hints=("multiply",))
    assert verdict(asked, lambda x: 2 * x, capsys).startswith("Right")
    assert verdict(asked, lambda x: x, capsys) == "Not yet: multiply"
    failed = verdict(asked, lambda x: x / 0, capsys)
    assert failed.startswith("Not yet: ZeroDivisionError")
    assert verdict(asked, 8, capsys).startswith("Not yet: TypeError")


def test_hints_come_one_by_one_and_the_last_one_stays(asked, said):
    for _ in range(3):
        asked.hint()
    assert said() == ["divide", "1 / 2", "1 / 2"]
