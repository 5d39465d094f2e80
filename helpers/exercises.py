"""Exercises that check themselves.

`check("00.1", answer)` runs the student's function against properties and independently computed answers,
and returns one sentence of feedback, with a hint where the answer is not right yet. To add an exercise, write
its check below as a function that raises `Wrong`, and its two plausible wrong answers in
tests/test_exercises.py.
"""

import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["Feedback", "Wrong", "check", "exercise", "registered", "within_factor"]

Check = Callable[..., str | None]
_CHECKS: dict[str, Check] = {}


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
    if exercise_id not in _CHECKS:
        raise ValueError(f"exercise_id={exercise_id!r} is unknown; allowed: {', '.join(registered())}")
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


def registered() -> list[str]:
    """Return the ids of all exercises."""
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


# ---------------------------------------------------------------- 00


@exercise("00.1")
def _changed_per_thousand(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        max(measured, 1.0),
        factor=4,
        unit="of 1,000 digits",
        too_low="Half of the weights were free because they were tiny. The last tenths before the edge are not.",
        too_high="The largest tenth carries most of each sum: many digits are far from any other answer.",
    )


@exercise("00.2")
def _round_weight(round_weight: Callable[[torch.Tensor, int], torch.Tensor]) -> str:
    for bits in (8, 5, 3, 2):
        weight = torch.randn(20, 50)
        values, last = weight.flatten().tolist(), 2 ** (bits - 1) - 1
        step = max(abs(value) for value in values) / last
        given = weight.clone()
        found = round_weight(given, bits)
        _is_like(found, weight)
        marks = len(set(found.flatten().tolist()))
        if marks > 2 * last + 1:
            raise Wrong(
                f"With {bits} bits there are {2 * last + 1} marks; your weights stand on {marks} of them.",
                hint="The last mark is 127 with 8 bits and 3 with 3 bits: find it from bits, with a power of two.",
            )
        worst = max(abs(a - b) for a, b in zip(found.flatten().tolist(), values, strict=True))
        if worst > 0.501 * step:
            raise Wrong(
                f"With {bits} bits a weight moved by {worst / step:.2f} steps; a mark is always within half a step.",
                hint="The step is the largest magnitude divided by the last mark; then round, do not cut off.",
            )
        if not torch.equal(given, weight):
            raise Wrong(
                "The weight that came in was changed.",
                hint="Return a new tensor: round() does, round_() and *= work in place.",
            )
    return "Each weight stands on the nearest mark, for every number of bits."


@exercise("00.3")
def _energy(energy: Callable[[int, int, int], float]) -> str:
    for macs, parameters in ((1_000_000, 0), (0, 1_000_000), (2_293_000, 431_080)):
        _is_energy(energy(macs, parameters, 32), 4.6 * macs / 1e6, 640 * parameters / 1e6, bits=32)
        _is_energy(energy(macs, parameters, 8), 0.23 * macs / 1e6, 160 * parameters / 1e6, bits=8)
    return "For LeNet-5, 8-bit numbers save three quarters of the energy: nearly all of it was fetching."


def _is_energy(found: float, arithmetic: float, fetching: float, *, bits: int) -> None:
    """Raise Wrong unless `found` is arithmetic + fetching (microjoules), with the hint that fits the mistake."""
    if not isinstance(found, int | float):
        raise Wrong(f"Your function returned {found!r}.", hint="Return one number: arithmetic plus fetching.")
    expected = arithmetic + fetching
    if abs(found - expected) <= 1e-6 * expected:
        return
    said = f"With {bits} bits you get {found:,.4g} µJ where {expected:,.4g} are right."
    if fetching == 0:
        raise Wrong(said, hint="One MAC is one multiplication and one addition, both of the kind that bits says.")
    raise Wrong(said, hint="One read brings 32 bits. How many 8-bit weights come with it? (1 µJ = 1,000,000 pJ.)")


def _is_like(found: object, weight: torch.Tensor) -> None:
    """Raise Wrong unless `found` is a tensor of floats of the shape of `weight`."""
    if not isinstance(found, torch.Tensor) or found.shape != weight.shape or found.dtype != weight.dtype:
        what = f"{tuple(found.shape)}, {found.dtype}" if isinstance(found, torch.Tensor) else repr(found)
        raise Wrong(
            f"The moved weights should be {tuple(weight.shape)}, {weight.dtype}; yours: {what}.",
            hint="Return a tensor of the shape that came in, on the scale of the weights: times the step.",
        )


# ---------------------------------------------------------------- 01


@exercise("01.1")
def _convolution_macs(macs_of: Callable[..., int]) -> str:
    from helpers.measure import count_macs

    plain = {"in_channels": 4, "out_channels": 6, "kernel": 3, "size": 10}
    hints = {
        "plain": "Places squared, times the number of filters, times the weights that each filter has.",
        "padding": "Zeros on both sides: the filter walks over size + 2 · padding pixels in each direction.",
        "stride": "It fits in (size + 2 · padding - kernel) // stride + 1 places in each direction.",
        "groups": "With groups, each filter reads in_channels // groups channels; the filters stay as many.",
    }
    for changed, value in (("plain", None), ("padding", 1), ("stride", 2), ("groups", 2)):
        given = plain if value is None else plain | {changed: value}
        options: Any = {key: value for key, value in given.items() if key in ("padding", "stride", "groups")}
        layer = torch.nn.Conv2d(given["in_channels"], given["out_channels"], given["kernel"], **options)
        expected = count_macs(layer, torch.zeros(1, given["in_channels"], given["size"], given["size"]))
        found = macs_of(**given)
        if found != expected:
            arguments = ", ".join(f"{key}={value}" for key, value in given.items())
            raise Wrong(f"{arguments}: PyTorch counts {expected:,} MACs, you {found!r}.", hint=hints[changed])
    return "The same as PyTorch's counter, with padding, stride and groups."


@exercise("01.2")
def _half_of_fc1(guess: Callable[[], float], *, measured: int) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.03,
        unit="bytes",
        too_low="Halving fc1 halves the columns of fc2, too, but not the convolutions. Four bytes a parameter.",
        too_high="fc1 holds nearly everything, and keeps 250 rows of 800 weights. What is left of fc2?",
    )


@exercise("01.3")
def _times_faster(ratio: Callable[[np.ndarray, np.ndarray], float]) -> str:
    random = np.random.default_rng(0)
    times = random.lognormal(0, 0.01, (2, 61)) * np.array([[2.0], [1.0]])
    _is_ratio(
        ratio(*times.copy()),
        2,
        f"calls of about {np.median(times[0]):.0f} s and {np.median(times[1]):.0f} s",
        hint="Above 1 means that other is faster: the baseline's time is divided by the other's.",
    )
    delayed = times.copy()
    delayed[0, ::10] *= 50
    _is_ratio(
        ratio(*delayed.copy()),
        2,
        "the same calls, a few of the baseline's delayed fifty times",
        hint="A mean believes every outlier. Which average of the rounds does not?",
    )
    steps = times * np.where(np.arange(61) < 31, 1, 3)  # the median lies at the edge between fast and slow
    steps[0, [3, 17, 25]] *= 50
    _is_ratio(
        ratio(*steps.copy()),
        2,
        "the same calls on a machine that is three times slower from half-time on",
        hint="Within a round both were slowed alike: divide first, round by round, and then take the median.",
    )
    return "Neither drift nor outliers fool it."


def _is_ratio(found: Any, expected: float, case: str, *, hint: str) -> None:
    """Raise Wrong, with `hint`, unless `found` is a number within 5 % of `expected`."""
    if isinstance(found, bool) or not isinstance(found, int | float | np.floating):
        raise Wrong(f"Your function returned {found!r}.", hint="Return one number.")
    if not abs(float(found) / expected - 1) <= 0.05:
        raise Wrong(f"For {case} you get {found:.2f} where {expected:.2f} is right.", hint=hint)


# ---------------------------------------------------------------- 02


def _is_mask(mask: Any, shape: torch.Size) -> None:
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.shape != shape:
        found = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else repr(mask)
        raise Wrong(
            f"A mask here is a torch.bool tensor of shape {tuple(shape)}; yours is {found}.",
            hint="Build it with torch.zeros_like(weight, dtype=torch.bool), and return it in the weight's own shape.",
        )


@exercise("02.1")
def _two_of_four(mask_of: Callable[[torch.Tensor], torch.Tensor]) -> str:
    for rows, columns in ((1, 4), (3, 8), (10, 500)):
        weight = torch.randn(rows, columns)
        mask = mask_of(weight.clone())
        _is_mask(mask, weight.shape)
        kept = mask.view(-1, 4).sum(1)
        if (kept != 2).any():
            group = int((kept != 2).nonzero()[0])
            raise Wrong(
                f"Group {group} of four neighbours keeps {int(kept[group])} weights instead of 2.",
                hint="The choice is made within each four: reshape to (-1, 4) first, then pick along dim=1.",
            )
        for four, chosen in zip(weight.view(-1, 4).tolist(), mask.view(-1, 4).tolist(), strict=True):
            expected = sorted(range(4), key=lambda i: abs(four[i]))[2:]
            if [i for i in range(4) if chosen[i]] != sorted(expected):
                raise Wrong(
                    f"Of {[round(v, 2) for v in four]} it keeps places {[i for i in range(4) if chosen[i]]}.",
                    hint="A large negative weight matters as much as a large positive one: compare magnitudes.",
                )
    return "Half of the weights are gone, in a pattern that a sparse tensor core can read."


@exercise("02.2")
def _file_size(guess: Callable[[], float], *, measured: int) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.2,
        unit="bytes",
        too_low="The other layers stay dense: conv1, conv2, fc2 keep 30,500 weights of four bytes; biases count.",
        too_high="fc1 keeps 1 % of its 400,000 weights: each costs four bytes and about one for its position.",
    )


@exercise("02.3")
def _reads_and_is_read(score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> str:
    for neurons, inputs, outputs in ((5, 3, 2), (4, 4, 4)):
        weight, following = torch.randn(neurons, inputs), torch.randn(outputs, neurons)
        found = score(weight.clone(), following.clone())
        if not isinstance(found, torch.Tensor) or found.shape != (neurons,):
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else repr(found)
            raise Wrong(
                f"There are {neurons} neurons and should be as many scores; yours: {shape}.",
                hint="Row i of weight and column i of next_weight belong to neuron i: sum over dim=1 and over dim=0.",
            )
        reads = [sum(abs(v) for v in row) for row in weight.tolist()]
        is_read = [sum(abs(row[i]) for row in following.tolist()) for i in range(neurons)]
        if torch.allclose(found, torch.tensor(reads), rtol=1e-4):
            raise Wrong(
                "This is the row sum alone: a neuron that nobody reads would still score high.",
                hint="Multiply by the sum of the magnitudes of the neuron's column in next_weight.",
            )
        if not torch.allclose(found, torch.tensor([a * b for a, b in zip(reads, is_read, strict=True)]), rtol=1e-4):
            raise Wrong(
                "The scores are not (sum of |row|) × (sum of |column|).",
                hint="Take magnitudes before you sum, or opposite signs cancel: multiply the sums, do not add.",
            )
    return "A neuron that reads much and is read by nobody scores zero, as it should."
