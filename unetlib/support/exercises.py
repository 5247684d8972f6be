"""What the notebooks ask: predictions before a result is shown, exercises after it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Number

_REVEALED: dict[str, tuple] = {}  # question: (guess, answer)


def reveal(question: str | None = None, guess=..., answer=None, line: Callable | None = None):
    """Print the answer beside the reader's guess; without arguments, all that were revealed.

    Args:
        question: what was asked, in a few words; the same words again replace the earlier guess.
        guess: a number or a word; ``...`` if the reader did not guess.
        answer: the result, a number or a word.
        line: ``ax.axvline`` or ``ax.axhline``, to draw a guessed number as a dashed line.
    """
    if question is None:
        for asked, (guess, answer) in _REVEALED.items():
            said = "no guess" if guess is ... else f"you said {_shown(guess)}"
            print(f"{asked}: {said}, it is {_shown(answer)}")
        return
    _REVEALED[question] = guess, answer
    if guess is ...:
        print(f"{question}: {_shown(answer)}")
    elif isinstance(guess, Number) != isinstance(answer, Number):
        kind = "a number" if isinstance(answer, Number) else "one of the words named there"
        print(f"{question}: {_shown(answer)} (as a guess, give {kind})")
    else:
        print(f"{question}: you said {_shown(guess)}, it is {_shown(answer)}")
        if line and isinstance(guess, Number):
            line(guess, color="0.4", linestyle="--", label="your guess")


def _shown(value) -> str:
    if isinstance(value, Number):
        return f"{value:,}" if value % 1 == 0 else f"{value:.3g}"
    return str(value)


@dataclass
class Exercise:
    """A question that checks its answer: ``check(answer)`` prints what is right or wrong with it.

    Args:
        right: the answer, a number (met within 0.5 %; whole numbers exactly) or a word; or a
            function of the reader's answer that says whether it is right.
        why: what a right answer shows, in a sentence.
        hints: what ``hint()`` prints, one at each call: first the idea, then the formula.
        mistakes: what to say of a likely wrong answer, given like ``right``.
    """

    right: object
    why: str
    hints: tuple[str, ...]
    mistakes: dict[str, object] = field(default_factory=dict)
    _hinted: int = 0

    def check(self, answer) -> None:
        if answer is ...:
            print("not tried yet")
            return
        try:
            if _meets(answer, self.right):
                print(f"Right: {self.why}")
                return
            said = (text for text, wrong in self.mistakes.items() if _meets(answer, wrong))
            print(f"Not yet: {next(said, self.hints[0])}")
        except Exception as error:  # of the reader's own function, or of an answer of another kind
            print(f"Not yet: {type(error).__name__} with your answer: {error}")

    def hint(self) -> None:
        print(self.hints[min(self._hinted, len(self.hints) - 1)])
        self._hinted += 1


def _meets(answer, expected) -> bool:
    if callable(expected):
        return bool(expected(answer))
    if isinstance(expected, str):
        return str(answer).strip().casefold() == expected.casefold()
    if not isinstance(answer, Number):
        raise TypeError("give a number")
    close = 0 if isinstance(expected, Integral) else 0.005
    return math.isclose(answer, expected, rel_tol=close, abs_tol=close / 10)
