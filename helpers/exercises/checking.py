"""How an exercise is registered, and how an answer is checked.

`check("00.1", answer)` runs the student's function against properties and independently computed answers,
and returns one sentence of feedback, with a hint where the answer is not right yet. To add an exercise, write
its check in the `notebook_NN.py` beside this file, as a function that raises `Wrong`, and its plausible wrong
answers in tests/exercises/notebook_NN.py.
"""

import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from helpers.core import checks

Check = Callable[..., str | None]
_CHECKS: dict[str, Check] = {}
_LAST: dict[str, "Feedback"] = {}  # by exercise: what the last check said


class Wrong(Exception):
    """Raised by a check: one sentence that says what is wrong, and a hint that leads on."""

    def __init__(self, sentence: str, *, hint: str) -> None:
        super().__init__(sentence)
        self.sentence, self.hint = sentence, hint


@dataclass(frozen=True)
class Feedback:
    """The outcome of a check. A notebook shows it as HTML, a terminal as plain text."""

    exercise: str
    right: bool
    sentence: str
    hint: str = ""

    def _repr_html_(self) -> str:
        colour = "#00664B" if self.right else "#A33F00"
        text = f'<p><strong style="color:{colour}">{self._title()}</strong> {html.escape(self.sentence)}</p>'
        if not self.hint:
            return text
        return f"{text}<details><summary>A hint</summary><p>{html.escape(self.hint)}</p></details>"

    def __repr__(self) -> str:
        hint = f"\nHint: {self.hint}" if self.hint else ""
        return f"{self._title()} {self.sentence}{hint}"

    def _title(self) -> str:
        return f"Exercise {self.exercise} — {'right.' if self.right else 'not yet.'}"


def check(exercise_id: str, answer: Any, **given: Any) -> Feedback:
    """Check `answer`, usually the student's function, and return feedback; a wrong answer never raises.

    given: what the notebook measured and the check compares with. The random state is left as it was. Raises
    ValueError for an exercise that does not exist.
    """
    _require(exercise_id)
    _LAST[exercise_id] = feedback = _feedback(exercise_id, answer, given)
    return feedback


def points(exercise_id: str, *, of: float) -> float:
    """Return what an exercise earns: `of` if its last check was right, else 0; what a grade cell of nbgrader shows.

    Raises ValueError for an exercise that does not exist and unless `of` is a number above 0.
    """
    _require(exercise_id)
    checks.number("of", of, above=0)
    last = _LAST.get(exercise_id)
    return float(of) if last is not None and last.right else 0.0


def _require(exercise_id: str) -> None:
    _import_checks(exercise_id[:2])
    if exercise_id not in _CHECKS:
        raise ValueError(f"exercise_id={exercise_id!r} is unknown; allowed: {', '.join(registered())}")


def _feedback(exercise_id: str, answer: Any, given: dict[str, Any]) -> Feedback:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            praise = _CHECKS[exercise_id](answer, **given)
    except Wrong as wrong:
        return Feedback(exercise_id, False, wrong.sentence, wrong.hint)
    except NotImplementedError:
        sentence = "It is still empty: write your code in place of `raise NotImplementedError()`, then run it again."
        return Feedback(exercise_id, False, sentence)
    except Exception as error:  # whatever a student's code does, it is answered, not thrown back
        first = (str(error).strip().splitlines() or ["no message"])[0]
        hint = "Call your function yourself in a new cell: the traceback shows the line."
        return Feedback(exercise_id, False, f"Your code raised {type(error).__name__}: {first}", hint)
    return Feedback(exercise_id, True, praise or "")


def exercise(exercise_id: str) -> Callable[[Check], Check]:
    """Register a function as the check of `exercise_id`: it raises `Wrong`, or returns None or a remark."""

    def register(function: Check) -> Check:
        if exercise_id in _CHECKS:
            raise ValueError(f"exercise_id={exercise_id!r} is registered twice; allowed: once")
        _CHECKS[exercise_id] = function
        return function

    return register


def _import_checks(number: str) -> None:
    """Import the exercises of a notebook, which registers them; of a number that has none, nothing."""
    if Path(__file__).with_name(f"notebook_{number}.py").exists():
        import_module(f"helpers.exercises.notebook_{number}")


def registered() -> list[str]:
    """Return the ids of all exercises."""
    for path in Path(__file__).parent.glob("notebook_*.py"):
        _import_checks(path.stem[-2:])
    return sorted(_CHECKS)


def within_factor(
    guess: Callable[[], float], measured: float, *, factor: float, unit: str, too_low: str, too_high: str
) -> str:
    """Compare the prediction that `guess()` returns with what was `measured`; return a sentence with both.

    Raises Wrong, with the hint `too_low` or `too_high`, if they are more than `factor` apart.
    """
    value = guess()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise Wrong(
            f"A prediction is one positive number; yours is {value!r}.",
            hint="Return a number: any honest guess.",
        )
    predicted, found = (f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.4g}" for v in (value, measured))
    both = f"You predicted {predicted} {unit}; measured: {found}."
    if value * factor < measured:
        raise Wrong(both, hint=too_low)
    if value > measured * factor:
        raise Wrong(both, hint=too_high)
    return both
