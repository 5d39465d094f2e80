"""Exercises that check themselves.

`check("00.1", answer)` runs the student's function against properties and independently computed answers,
and returns one sentence of feedback, with a hint where the answer is not right yet. To add an exercise, write
its check below as a function that raises `Wrong`, and its two plausible wrong answers in
tests/test_exercises.py.
"""

import html
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


# ---------------------------------------------------------------- 03


@exercise("03.1")
def _first_order(estimate: Callable[..., torch.Tensor]) -> str:
    for filters, inputs in ((4, 2), (3, 5)):
        weight, slope = torch.randn(2, filters, inputs, 3, 3)
        bias, bias_slope = torch.randn(2, filters)
        found = estimate(weight.clone(), bias.clone(), slope.clone(), bias_slope.clone())
        if not isinstance(found, torch.Tensor) or found.shape != (filters,):
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else repr(found)
            raise Wrong(
                f"There are {filters} filters and should be as many predictions; yours: {shape}.",
                hint="Sum over everything that belongs to one filter: flatten(1), then sum(1). The bias is (filters,).",
            )
        of_weights = torch.tensor(
            [
                sum(w * g for w, g in zip(row.flatten().tolist(), slopes.flatten().tolist(), strict=True))
                for row, slopes in zip(weight, slope, strict=True)
            ]
        )
        expected = -(of_weights + bias * bias_slope)
        if torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
            continue
        if torch.allclose(found, -expected, rtol=1e-4, atol=1e-4):
            raise Wrong(
                "Every sign is the wrong way round.",
                hint="Going from w to 0 is a step of -w. The slope times the step is the change.",
            )
        if torch.allclose(found.abs(), of_weights.abs(), rtol=1e-4, atol=1e-4):
            raise Wrong(
                "That is what the weights contribute, without the bias.",
                hint="A filter that is gone adds no bias either: subtract its bias times the bias's gradient.",
            )
        raise Wrong(
            "The predictions are not the slopes times the steps, summed over each filter.",
            hint="Multiply first, sum then, and take no magnitudes: what helps and what harms may cancel.",
        )
    return "A sum over the whole filter, with its sign: the derivative with respect to its gate."


@exercise("03.2")
def _matter_more(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        max(measured, 1.0),
        factor=1.4,
        unit="% of the other filters",
        too_low="Where two filters do the same work, either can go. Not both: the one that stays has become precious.",
        too_high="Some filters only correct the one that is gone: without it they have less to do.",
    )


@exercise("03.3")
def _smallest_eigenvalue(smallest: Callable[..., float]) -> str:
    basis = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    for values in ([5.0, 3.0, 1.0, 0.5, -2.0], [9.0, 6.0, 5.0, 4.0, 3.0], [2.0, 1.0, 0.0, -1.0, -6.0]):
        matrix = basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T
        found = float(smallest(lambda v, matrix=matrix: matrix @ v, 5))
        expected, strongest = min(values), max(values, key=abs)
        if abs(found - expected) <= 0.01 * abs(expected):
            continue
        said = f"For the eigenvalues {', '.join(f'{v:g}' for v in values)} you get {found:.3g}."
        if abs(found - (expected - strongest)) <= 0.05:
            raise Wrong(
                said, hint="You found the smallest eigenvalue of the shifted matrix: add back what you subtracted."
            )
        if strongest == expected:
            raise Wrong(said, hint="Here the eigenvalue of largest magnitude is negative. What did you look for, then?")
        raise Wrong(
            said,
            hint="Subtract the largest eigenvalue times v from the product: all eigenvalues move down by that much.",
        )
    return "One shift, and the far end of the spectrum becomes the near one."


# ---------------------------------------------------------------- 04


@exercise("04.1")
def _pruned_speed(guess: Callable[[], float], *, measured: float, macs_ratio: float) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.25,
        unit="times faster",
        too_low="Fewer channels are smaller matrices for every runtime: with a full batch, much of the saving arrives.",
        too_high=f"The MACs fell {macs_ratio:.2f} times. Pooling, ReLU and the calls did not fall as much.",
    )


@exercise("04.2")
def _cut_before_linear(cut: Callable[..., Any]) -> str:
    for filters, size in ((6, 8), (5, 4)):
        conv, linear = torch.nn.Conv2d(3, filters, 3), torch.nn.Linear(filters * (size - 2) ** 2, 4)
        keep = torch.arange(filters) % 3 != 1
        before = [parameter.detach().clone() for layer in (conv, linear) for parameter in layer.parameters()]
        images = torch.randn(2, 3, size, size)
        channels = torch.relu(conv(images)) * keep[:, None, None]
        expected = linear(channels.flatten(1)).detach()
        _is_smaller(cut(conv, linear, keep.clone()), int(keep.sum()), (size - 2) ** 2, images, expected)
        after = [parameter for layer in (conv, linear) for parameter in layer.parameters()]
        if any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(after, before, strict=True)):
            raise Wrong("The layers that came in were changed.", hint="Work on copies: begin with deepcopy of both.")
    return "It answers like the network whose channels are zero, and is smaller."


def _is_smaller(found: Any, filters: int, pixels: int, images: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise Wrong unless `found` is (conv, linear) of the right shapes with the `expected` answer for `images`."""
    if not isinstance(found, tuple | list) or [type(layer).__name__ for layer in found] != ["Conv2d", "Linear"]:
        raise Wrong("Your function should return a convolution and a linear layer.", hint="return conv, linear")
    conv, linear = found
    shapes = {
        "conv.weight": (conv.weight, (filters, 3, 3, 3)),
        "conv.bias": (conv.bias, (filters,)),
        "linear.weight": (linear.weight, (4, filters * pixels)),
        "linear.bias": (linear.bias, (4,)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is None or tensor.shape != shape:
            had = None if tensor is None else tuple(tensor.shape)
            raise Wrong(
                f"{filters} filters of {pixels} pixels are kept: {name} should be {shape}, and is {had}.",
                hint={
                    "conv.weight": "A filter set to zero is still there. Index the weight with keep: fewer rows.",
                    "conv.bias": "Each filter has a bias, and that goes with it.",
                    "linear.weight": f"Each channel owns {pixels} columns of the linear layer: cut dimension 1.",
                    "linear.bias": "The linear layer has as many outputs as before, so its bias stays whole.",
                }[name],
            )
    answer = linear(torch.relu(conv(images)).flatten(1))
    if not torch.allclose(answer, expected, atol=1e-5):
        raise Wrong(
            "The shapes are right, but it does not answer like the network whose channels are zero.",
            hint="The columns of one channel are neighbours: stretch keep with repeat_interleave, not with repeat.",
        )


@exercise("04.3")
def _rounded_channels(rounded: Callable[[int, int, int], int]) -> str:
    cases = [
        (wanted, total, multiple)
        for total, multiple in ((48, 8), (96, 16), (12, 4), (7, 1), (5, 8))
        for wanted in range(total + 1)
    ]
    for wanted, total, multiple in sorted(cases, key=lambda case: 2 * case[0] % (2 * case[2]) == case[2]):  # ties last
        found = rounded(wanted, total, multiple)
        allowed = range(multiple, total + 1, multiple) or [total]
        expected = min(allowed, key=lambda channels, wanted=wanted: (abs(channels - wanted), -channels))
        if not isinstance(found, int) or isinstance(found, bool) or found != expected:
            hint = "The nearest multiple can lie above: add half a multiple before you divide with //."
            if not isinstance(found, int):
                hint = "Return a whole number."
            elif found == 0:
                hint = "A layer without channels is a hole in the network: max() sees to it that one multiple stays."
            elif found > total:
                hint = "Nothing can be kept that was not there: min() with total."
            elif 2 * wanted % (2 * multiple) == multiple:
                hint = "Exactly between two, keep more. Python's round() goes to the *even* one: round(2.5) is 2."
            raise Wrong(
                f"wanted={wanted}, total={total}, multiple={multiple}: {expected} is right, not {found!r}.", hint=hint
            )
    return "Round numbers, and no layer is emptied."


# ---------------------------------------------------------------- 05


@exercise("05.1")
def _smallest_difference(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.2,
        unit="points",
        too_low="Three seeds leave two degrees of freedom: the quantile of t is then 4.3, not 2.",
        too_high="The mean of three seeds spreads less than a single one: divide s by the root of 3.",
    )


@exercise("05.2")
def _keep_signs(keep_signs: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> str:
    for shape in ((4, 6), (5, 3, 3, 3)):
        early = torch.randn(shape)
        mask = early.abs() > 0.8
        given = early.clone()
        found = keep_signs(given, mask.clone())
        _is_like(found, early)
        if not torch.equal(given, early):
            raise Wrong(
                "The early weights were changed.", hint="Return a new tensor: sign() makes one, sign_() does not."
            )
        if (found[~mask] != 0).any():
            raise Wrong("Some pruned weights are not zero.", hint="Multiply by the mask: it is 0 where a weight goes.")
        kept = [
            abs(value) for value, stays in zip(early.flatten().tolist(), mask.flatten().tolist(), strict=True) if stays
        ]
        sizes, expected = found[mask].abs(), sum(kept) / len(kept)
        if not torch.allclose(sizes, sizes[0].expand_as(sizes)):
            raise Wrong(
                "The kept weights have different magnitudes, so they know more than their signs.",
                hint="Replace each kept weight by its sign, +1 or -1, times one number for the whole layer.",
            )
        if not torch.equal(found[mask].sign(), early[mask].sign()):
            raise Wrong(
                "Some kept weights have another sign than the early ones.",
                hint="early.sign() gives +1 and -1; the one number that it is multiplied by must be positive.",
            )
        if abs(float(sizes[0]) / expected - 1) > 1e-4:
            raise Wrong(
                f"The magnitude should be {expected:.3f}, and is {float(sizes[0]):.3f}.",
                hint="The mean magnitude of the weights that are kept: index with the mask, then abs(), then mean().",
            )
    return "A tensor of signs: one bit for each weight that is left."


@exercise("05.3")
def _scratch_budget(budget: Callable[[float, float, float, float, int], int]) -> str:
    bills = {  # macs, small_macs, epochs, retraining, rounds: the answer, counted by hand
        (100, 50, 10, 0, 1): 20,
        (100, 50, 10, 4, 1): 24,
        (100, 40, 3, 1, 1): 8,  # 7.5 of the dense training, 1 of retraining
        (225, 100, 3, 1, 2): 9,  # 3 × 225, then 150 and 100
        (675, 200, 2, 1, 3): 11,  # 2 × 675, then 450, 300 and 200
    }
    hints = {
        (100, 50, 10, 0, 1): "An epoch of the small network costs small_macs: divide what was spent by that.",
        (100, 50, 10, 4, 1): "The epochs after the cut are on the bill, at the price of the network that is cut.",
        (100, 40, 3, 1, 1): "Round down, to a whole number (int): half an epoch too many is more than the budget.",
    }
    between = "The networks between the first cut and the last are larger than small_macs: each has its own price."
    for given, expected in bills.items():
        found = budget(*given)
        if isinstance(found, bool) or not isinstance(found, int):
            raise Wrong(
                f"Your function returned {found!r}.", hint="Return one whole number: int() cuts a fraction off."
            )
        if found != expected:
            words = ("macs", "small_macs", "epochs", "retraining", "rounds")
            said = ", ".join(f"{name}={value}" for name, value in zip(words, given, strict=True))
            raise Wrong(f"{said}: {expected} epochs are right, not {found}.", hint=hints.get(given, between))
    return "The whole bill: the large network, and every network on the way."


# ---------------------------------------------------------------- 06


@exercise("06.1")
def _share_of_tokens(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.15,
        unit="of the tokens",
        too_low="Text is very uneven: the hundred most frequent words and marks are already more than half of it.",
        too_high="The rest is long: names, plots and moods are rare words, and there are thousands of them.",
    )


@exercise("06.2")
def _mean_of_words(mean: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> str:
    vectors = torch.randn(4, 6, 3) + 1
    lengths = [6, 4, 1, 0]
    tokens = torch.tensor([[2 + place for place in range(length)] + [1] * (6 - length) for length in lengths])
    given = vectors.clone()
    found = mean(vectors, tokens)
    expected = torch.stack([given[row, : max(1, n)].mean(0) * (n > 0) for row, n in enumerate(lengths)])
    if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise Wrong(
            f"Four texts of three dimensions should give (4, 3), and yours gave {shape}.",
            hint="Dimension 0 is the batch: a mean over it mixes the reviews. The words are dimension 1.",
        )
    if not torch.equal(vectors, given):
        raise Wrong("The vectors were changed.", hint="Multiply into a new tensor, not in place.")
    if not torch.allclose(found[0], expected[0], atol=1e-5):
        raise Wrong("A text without padding has another mean.", hint="Add up its vectors, and divide by their number.")
    if not torch.allclose(found[1:3], expected[1:3], atol=1e-5):
        raise Wrong(
            "A text with padding has another mean than its words.",
            hint="Padding counts neither above nor below the line: set its vectors to zero, and divide by the words.",
        )
    if not torch.equal(found[3], expected[3]):
        raise Wrong(
            f"A review of padding only has the mean {found[3].tolist()}; it should be zeros.",
            hint="Its number of words is 0: clamp(min=1) the divisor.",
        )
    return "Over the words, and over nothing else: a text has the same mean in whatever batch it comes."


@exercise("06.3")
def _factor(factor: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]) -> str:
    for rows, columns, rank in ((30, 8, 2), (6, 10, 3), (12, 5, 5)):
        weight = torch.randn(rows, columns) @ torch.diag(torch.linspace(2, 0.5, columns))
        left, right = factor(weight.clone(), rank)
        if left.shape != (rows, rank) or right.shape != (rank, columns):
            raise Wrong(
                f"The shapes are {tuple(left.shape)} and {tuple(right.shape)}, for rank {rank} of {rows} × {columns}.",
                hint="The first rank columns of U, and the first rank rows of what linalg.svd calls Vh.",
            )
        best = torch.linalg.svdvals(weight)[rank:].square().sum().sqrt()  # Eckart and Young 1936
        error = (weight - left @ right).norm()
        if error > best + 1e-3 and torch.allclose(left.T @ left, torch.eye(rank), atol=1e-4):
            raise Wrong(
                "The columns of the first matrix all have length 1, so the product has the wrong size.",
                hint="The singular values are missing: multiply the columns of one side by them.",
            )
        if error > best + 1e-3:
            raise Wrong(
                f"At rank {rank} the product is {float(error):.2f} from the matrix; {float(best):.2f} is possible.",
                hint="torch.linalg.svd finds the directions that matter most, sorted: keep the first.",
            )
    return "No other two matrices of these shapes come closer."


# ---------------------------------------------------------------- 07


@exercise("07.1")
def _times_saved(guess: Callable[[], float], *, measured: float, epochs: int) -> str:
    return within_factor(
        guess,
        measured,
        factor=2,
        unit="times faster",
        too_low=f"The body is nearly all of the work: without the cache it runs in each of {epochs} epochs, then once.",
        too_high=f"At least one pass through the body has to be paid for, and there are no more than {epochs} to save.",
    )


@exercise("07.2")
def _stage_rates(stage_rates: Callable[[list[str], float], dict[str, float]]) -> str:
    for stages, factor in ((["stem", "head"], 0.5), (["conv1", "layer1", "layer2", "fc"], 0.3)):
        found = stage_rates(list(stages), factor)
        if not isinstance(found, dict) or set(found) != set(stages):
            raise Wrong(
                "Return one factor for each stage.", hint="A dictionary from the name of a stage to its factor."
            )
        expected = [1.0]
        for _ in stages[1:]:
            expected.insert(0, expected[0] * factor)
        said = ", ".join(f"{stage} {float(found[stage]):.3g}" for stage in stages)
        right = ", ".join(f"{value:.3g}" for value in expected)
        sentence = f"With factor {factor} it should be {right}; yours: {said}."
        if all(abs(found[stage] - value) < 1e-9 for stage, value in zip(stages, reversed(expected), strict=True)):
            raise Wrong(sentence, hint="The names come from the input to the head: the *last* one has the factor 1.")
        if abs(found[stages[-1]] - 1) > 1e-9:
            raise Wrong(sentence, hint="The head itself learns at the full rate: its exponent is 0.")
        if any(abs(found[stage] - value) > 1e-9 for stage, value in zip(stages, expected, strict=True)):
            raise Wrong(
                sentence, hint="Each stage has the factor of the next one *times* `factor`: a power, not a sum."
            )
    return "Each step towards the input learns more slowly, by the same factor."


@exercise("07.3")
def _class_maps(class_maps: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> str:
    for images, features, classes, height, width in ((2, 5, 3, 2, 4), (3, 4, 2, 3, 3)):
        maps, weight = torch.randn(images, features, height, width), torch.randn(classes, features)
        found = class_maps(maps.clone(), weight.clone())
        shape = (images, classes, height, width)
        if not isinstance(found, torch.Tensor) or tuple(found.shape) != shape:
            had = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            hint = "Each image keeps its places, and gets a map for each class: the features are what is summed over."
            if isinstance(found, torch.Tensor) and found.dim() == 2:
                hint = "The mean over the places comes afterwards: do not take it in your function."
            raise Wrong(f"The maps should have the shape {shape}, and yours have {had}.", hint=hint)
        logits = maps.mean((2, 3)) @ weight.T
        if torch.allclose(found.sum((2, 3)), logits, atol=1e-4):
            raise Wrong(
                "The sum over the places is the logits, not the mean.",
                hint="Do not divide by the number of places: each place says what the head would say to it alone.",
            )
        expected = torch.stack(
            [torch.stack([maps[i].mul(w[:, None, None]).sum(0) for w in weight]) for i in range(images)]
        )
        if not torch.allclose(found, expected, atol=1e-4):
            if torch.allclose(found, expected.relu(), atol=1e-4):
                hint = "Places that speak against a class are negative, and the mean needs them: no ReLU."
            else:
                hint = "At each place: the sum over the features of the map's value times the class's weight."
            raise Wrong("The mean over the places is not the logits without the bias.", hint=hint)
    return "The head, asked at every place: its mean is the answer that the network gives."


# ---------------------------------------------------------------- 08


@exercise("08.1")
def _smaller_file(guess: Callable[[], float], *, measured: float, macs_ratio: float) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.5,
        unit="times smaller",
        too_low="A layer that loses channels on both sides loses weights on both. How much of `layer4` is left?",
        too_high=f"The MACs fell {macs_ratio:.1f} times. Multiply what is left of `layer4`'s inputs and outputs.",
    )


@exercise("08.2")
def _tied_score(tied: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> str:
    for examples, channels in ((6, 4), (5, 5), (50, 3)):
        first = torch.randn(examples, channels)
        second = -0.8 * first + 0.3 * torch.randn(examples, channels)  # what one layer adds, the other takes away
        given = first.clone(), second.clone()
        found = tied(first, second)
        if not isinstance(found, torch.Tensor) or found.shape != (channels,):
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else repr(found)
            raise Wrong(
                f"{examples} photographs and {channels} channels should give {channels} scores; yours: {shape}.",
                hint="Average over the photographs, which are dimension 0.",
            )
        if not (torch.equal(first, given[0]) and torch.equal(second, given[1])):
            raise Wrong("The derivatives were changed.", hint="Make a new tensor: first + second, not first += second.")
        rows = [
            [a + b for a, b in zip(*pair, strict=True)] for pair in zip(first.tolist(), second.tolist(), strict=True)
        ]
        expected = torch.tensor([sum(row[i] ** 2 for row in rows) / examples for i in range(channels)])
        if torch.allclose(found, expected, rtol=1e-4):
            continue
        if torch.allclose(found, (first.square() + second.square()).mean(0), rtol=1e-4):
            raise Wrong(
                "You added the squares, as if the two left one after the other.",
                hint="Both gates close at once: the loss changes by the sum of the two derivatives. Add first.",
            )
        if torch.allclose(found, (first + second).mean(0).square(), rtol=1e-4):
            raise Wrong(
                "You squared the average, so photographs that disagree cancel.",
                hint="Each photograph's change counts, whatever its sign: square first, average over photographs then.",
            )
        raise Wrong(
            f"The first score should be {float(expected[0]):.3g}, and is {float(found[0]):.3g}.",
            hint="For each photograph add the two derivatives and square the sum; then average over the photographs.",
        )
    return "What two tied layers do to the loss together, not what each does alone."


@exercise("08.3")
def _lost_points(lost: Callable[[torch.Tensor, torch.Tensor], tuple[float, float]]) -> str:
    for count, agree in ((400, 0.9), (2000, 0.97), (1000, 0.7)):
        before = torch.rand(count) < 0.9
        after = torch.where(torch.rand(count) < agree, before, torch.rand(count) < 0.6)
        found = lost(before.clone(), after.clone())
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Wrong(
                f"Your function returned {found!r}.", hint="Return two numbers: the points lost, and the reach."
            )
        mean, reach = map(float, found)
        _is_paired(mean, reach, before.tolist(), after.tolist())
    return "Photographs on which both networks agree add nothing to the doubt: that is what pairing is for."


def _is_paired(mean: float, reach: float, before: list[bool], after: list[bool]) -> None:
    """Raise Wrong unless `mean` and `reach` are the points lost and 1.96 standard errors of the paired differences."""
    n = len(before)
    changes = [100 * (int(a) - int(b)) for a, b in zip(before, after, strict=True)]
    expected = sum(changes) / n
    spread = math.sqrt(sum((change - expected) ** 2 for change in changes) / (n - 1))
    right = 1.96 * spread / math.sqrt(n)
    if abs(mean - expected) > 0.01:
        sign = "What was right before and is wrong now is lost: before minus after."
        hint = sign if abs(mean + expected) <= 0.01 else "A point is one photograph in a hundred: 100 times the mean."
        raise Wrong(f"{expected:.2f} points were lost; you say {mean:.2f}.", hint=hint)
    if abs(reach / right - 1) <= 0.02:
        return
    said = f"Of {n} photographs the reach is ± {right:.2f} points; yours is {reach:.2f}."
    shares = [sum(values) / n for values in (before, after)]
    unpaired = 196 * math.sqrt(sum(share * (1 - share) for share in shares) / n)
    if abs(reach / unpaired - 1) <= 0.02:
        raise Wrong(
            said, hint="Both saw the same photographs: subtract photograph by photograph, then take the spread."
        )
    if abs(reach / (1.96 * spread) - 1) <= 0.02:
        raise Wrong(said, hint="That is the spread of one photograph. A mean of n spreads less, by the root of n.")
    raise Wrong(said, hint="1.96 times the standard deviation of the differences, divided by the root of their number.")


# ---------------------------------------------------------------- 09


@exercise("09.1")
def _six_bit_file(guess: Callable[[], float], *, measured: int) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.005,
        unit="bytes",
        too_low="Codes are not all: each output channel has a step *and* a bias, and each of them takes four bytes.",
        too_high="Six bits are not a byte: four codes share three bytes. Only the end of a layer is filled up.",
    )


@exercise("09.2")
def _quantize_rows(quantize: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> str:
    for bits in (8, 4, 2):
        weight = torch.randn(5, 40) * torch.tensor([[0.01], [1.0], [30.0], [0.5], [0.5]])
        weight[3:] += torch.tensor([[4.0], [-4.0]])
        given = weight.clone()
        found = quantize(given, bits)
        _are_codes(found, weight, bits)
        # as floats, for differences of bytes would wrap around
        codes, scale, zero = (found[0].to(weight), found[1], found[2].to(weight))
        lowest, highest = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
        expected = (highest - lowest) / (2**bits - 1)
        if not torch.allclose(scale, expected, rtol=1e-3):
            row = int((scale / expected - 1).abs().argmax())
            raise Wrong(
                f"With {bits} bits the step of row {row} should be {float(expected[row]):.3g}, and is "
                f"{float(scale[row]):.3g}.",
                hint="Each row has its own range, amin(1) to amax(1), and 2^bits marks have 2^bits - 1 steps between.",
            )
        worst = float((((codes - zero) * scale - weight).abs() / scale).max())
        if worst > 0.501:
            raise Wrong(
                f"With {bits} bits a number is {worst:.2f} steps from its mark; half a step is the most.",
                hint="Round to the nearest code; a conversion to whole numbers cuts off instead.",
            )
        if not torch.equal(given, weight):
            raise Wrong("The weight that came in was changed.", hint="Return new tensors: *= and clamp_ work in place.")
    return "Every row on a ruler of its own, and each of them meets zero."


def _are_codes(found: Any, weight: torch.Tensor, bits: int) -> None:
    """Raise Wrong unless `found` is (codes, scale, zero point) with whole numbers that `bits` bits can count."""
    shapes = [weight.shape, (len(weight), 1), (len(weight), 1)]
    if not isinstance(found, tuple) or [getattr(part, "shape", None) for part in found] != shapes:
        had = [tuple(getattr(part, "shape", ())) for part in found] if isinstance(found, tuple) else repr(found)
        raise Wrong(
            f"Three tensors of shapes {[tuple(shape) for shape in shapes]} are asked for; yours: {had}.",
            hint="Return codes, scale and zero point; keepdim=True keeps the last two as columns, one number a row.",
        )
    codes, _, zero = found
    for name, numbers in {"zero point": zero, "codes": codes}.items():
        if not torch.equal(numbers, numbers.round()):
            raise Wrong(f"The {name} should be whole numbers.", hint="The zero point is a code too: round() both.")
    for name, numbers in {"zero point": zero, "codes": codes}.items():
        if numbers.min() < 0 or numbers.max() > 2**bits - 1:
            raise Wrong(
                f"With {bits} bits the {name} run from {float(numbers.min()):g} to {float(numbers.max()):g}.",
                hint="A row of positive numbers only: its range must reach down to 0. And clamp the codes."
                if name == "zero point"
                else "What lies beyond the last code gets the last code: clamp to 0 and 2^bits - 1.",
            )


@exercise("09.3")
def _additive_levels(levels: Callable[[], torch.Tensor]) -> str:
    found = levels()
    if not isinstance(found, torch.Tensor) or found.dim() != 1:
        raise Wrong(f"Your function returned {found!r}.", hint="Return one row of numbers: flatten the table of sums.")
    if len(found) != 16:
        raise Wrong(
            f"There are {len(found)} levels where four bits count 16.",
            hint="Each of the four numbers of one group with each of the four of the other: [:, None] makes the table.",
        )
    expected = sorted((a + b) / 48 for a in (0, 32, 8, 2) for b in (0, 16, 4, 1))
    if torch.allclose(found.double().sort().values / found.max(), torch.tensor(expected, dtype=torch.float64)):
        if not torch.isclose(found.max(), torch.ones(()).to(found)):
            raise Wrong(f"The largest level is {float(found.max()):g}.", hint="Divide by it, so that the scale is 1.")
        if not (found.diff() > 0).all():
            raise Wrong("The levels do not rise.", hint="sort() returns values and indices: take the values.")
        return "Two shifts and one addition for each product, and three levels between 1/2 and 1."
    raise Wrong(
        f"The largest levels are {', '.join(f'{v:.3g}' for v in found.sort().values[-3:].tolist())}; "
        f"right are {', '.join(f'{v:.3g}' for v in expected[-3:])}.",
        hint="Sums, not products: one number of the first group plus one of the second, and a zero is in each group.",
    )


# ---------------------------------------------------------------- 10


@exercise("10.1")
def _largest_sum(guess: Callable[[int], float], *, terms: int, measured: float) -> str:
    both = within_factor(
        lambda: guess(terms),
        measured,
        factor=4,
        unit="steps",
        too_low="The terms of the largest sum mostly pull one way: some filter sees just what it looks for.",
        too_high="Few codes come near 255 and few weights near 127, and a filter's weights have both signs.",
    )
    return f"{both} 16 bits end at 32,767."


@exercise("10.2")
def _requantize(requantize: Callable[[torch.Tensor, float, int], torch.Tensor]) -> str:
    for factor, zero, reach in ((0.0031, 0, 60_000), (0.4999, 117, 400), (0.7537, 3, 300), (1.3e-6, 128, 90_000_000)):
        sums = torch.randint(-reach, reach, (4_000,))
        given = sums.clone()
        with _FloatWatch() as watch:
            found = requantize(given, factor, zero)
        if not isinstance(found, torch.Tensor) or found.shape != sums.shape:
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else repr(found)
            raise Wrong(
                f"Codes of the shape {tuple(sums.shape)} are asked for; yours: {shape}.", hint="One code for each sum."
            )
        exact = sums.double() * factor
        _are_requantized(found, exact, zero, factor)
        if found.dtype != torch.uint8:
            raise Wrong(f"Your codes are {found.dtype}.", hint="They fit into a byte: end with .to(torch.uint8).")
        if not torch.equal(given, sums):
            raise Wrong("The sums that came in were changed.", hint="Return a new tensor: += works in place.")
        if watch.seen:
            raise Wrong(
                "The codes are right, but a tensor of floats was computed on the way.",
                hint="Multiply the sums by the whole number m, add half, and shift; M itself never meets a tensor.",
            )
    return "The same codes as with floating point, and not one float on the way."


class _FloatWatch(TorchDispatchMode):
    """Notices when an operator returns a tensor of floats."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen = self.seen or (isinstance(result, torch.Tensor) and result.is_floating_point())
        return result


def _are_requantized(found: torch.Tensor, exact: torch.Tensor, zero: int, factor: float) -> None:
    """Raise Wrong unless all but one code in a thousand are those of the exact product, rounded."""

    def matches(codes: torch.Tensor) -> bool:
        return bool((codes != found.double()).double().mean() <= 1e-3)

    right = (exact.round() + zero).clamp(0, 255)
    if matches(right):
        return
    worst = float((found.double() - right).abs().max())
    said = (
        f"With the factor {factor:g} and the zero point {zero}, your codes are up to {worst:.0f} from the right ones."
    )
    if matches((exact.floor() + zero).clamp(0, 255)):
        raise Wrong(said, hint="A shift rounds down. Add 2^(n-1), half of what the shift takes away, before it.")
    if matches((exact.round() + zero) % 256):
        raise Wrong(said, hint="What lies beyond 0 and 255 wraps around in a byte: clamp before you convert.")
    if matches(exact.round().clamp(0, 255)):
        raise Wrong(said, hint="The zero point is missing: add it after the shift, before you clamp.")
    raise Wrong(
        said, hint="m = round(M * 2^n), with n as large as 31 bits allow; 8 or 16 bits of M are too few for large sums."
    )


@exercise("10.3")
def _for_bytes(fold: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> str:
    for mean, std in ((0.1307, 0.3081), (0.5, 0.25)):
        weight, bias = torch.randn(6, 40), torch.randn(6)
        pixels = torch.randint(0, 256, (30, 40)).float()
        given = weight.clone(), bias.clone()
        found = fold(*given, mean, std)
        shapes = [tuple(getattr(part, "shape", ())) for part in found] if isinstance(found, tuple) else repr(found)
        if shapes != [(6, 40), (6,)]:
            raise Wrong(
                f"A weight of shape (6, 40) and a bias of shape (6,) are asked for; yours: {shapes}.",
                hint="The mean shifts each input, so output o feels the sum of its weights: weight.sum(1).",
            )
        expected = torch.nn.functional.linear((pixels / 255 - mean) / std, weight, bias)
        answers = torch.nn.functional.linear(pixels, *found)
        gap = float((answers - expected).abs().max())
        if gap > 1e-3 * float(expected.abs().max()):
            _say_what_is_missing(found, weight, bias, mean, std, gap)
        if not (torch.equal(given[0], weight) and torch.equal(given[1], bias)):
            raise Wrong(
                "The weight or the bias that came in was changed.", hint="Return new tensors; /= and -= change them."
            )
    return "Bytes in, the same outputs, and no standardization left to compute."


def _say_what_is_missing(
    found: tuple[torch.Tensor, torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: float,
    std: float,
    gap: float,
) -> None:
    said = f"For random bytes an output is {gap:.3g} away from the right one."
    shift = (mean / std) * weight.sum(1)
    if torch.allclose(found[0], weight / std, rtol=1e-3):
        raise Wrong(said, hint="A byte is 255 times a pixel from 0 to 1: the weights shrink by that, too.")
    if not torch.allclose(found[0], weight / (255 * std), rtol=1e-3):
        raise Wrong(said, hint="(p / 255 - mean) / std is p times a constant, and a constant: which one multiplies p?")
    if torch.allclose(found[1], bias, rtol=1e-3, atol=1e-4):
        raise Wrong(said, hint="The mean is subtracted from every input: what does that make of the bias?")
    if torch.allclose(found[1], bias + shift, rtol=1e-3, atol=1e-4):
        raise Wrong(said, hint="The mean is *subtracted*: look at the sign in the bias.")
    raise Wrong(said, hint="Input i moves output o by -mean / std times weight[o, i]: add that up over i, once.")


# ---------------------------------------------------------------- 11


@exercise("11.1")
def _soft_gradient(gradient: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]) -> str:
    for temperature, rows, classes in ((3.0, 6, 10), (1.0, 4, 3), (20.0, 5, 7)):
        student, teacher = 4 * torch.randn(2, rows, classes, dtype=torch.float64)
        leaf = student.clone().requires_grad_()
        p, q = (torch.distributions.Categorical(logits=each / temperature) for each in (teacher, leaf))
        (temperature**2 * torch.distributions.kl_divergence(p, q).mean()).backward()
        expected = leaf.grad
        assert expected is not None
        found = _without_autograd(gradient, student, teacher, temperature)
        if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else repr(found)
            raise Wrong(
                f"The gradient has the shape of the logits, {rows} × {classes}; yours: {shape}.",
                hint="One number for each logit of the student: q - p has the right shape already.",
            )
        if torch.allclose(found, expected, rtol=1e-4, atol=1e-9):
            continue
        hints = {
            -1.0: "The sign: where the student says too much, q > p, its logit must fall, so the gradient is positive.",
            float(rows): "The loss is the mean over the examples: each has the weight 1 / batch.",
            1 / temperature: "T² from the loss, 1/T from the chain rule: what is left of them?",
            1 / temperature**2: "Do not forget the T² in front of the loss.",
            temperature: "T² from the loss is there; the 1/T of the chain rule is not.",
        }
        for factor, hint in hints.items():
            if torch.allclose(found, factor * expected, rtol=1e-4, atol=1e-9):
                raise Wrong(f"At T = {temperature:g} your gradient is {factor:.3g} times the right one.", hint=hint)
        distance = float((found - expected).norm() / expected.norm())
        raise Wrong(
            f"At T = {temperature:g} your gradient is {distance:.0%} of its length away from autograd's.",
            hint="Both softmaxes are taken of logits divided by T; the difference is q - p, the student's first.",
        )
    return "The same as autograd's, at every temperature."


def _without_autograd(
    gradient: Callable[..., torch.Tensor], student: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> torch.Tensor:
    with torch.inference_mode():
        try:
            return gradient(student.clone(), teacher.clone(), temperature)
        except RuntimeError as error:
            if "grad" not in str(error):
                raise
            raise Wrong(
                "Your function asked autograd, which is switched off here.",
                hint="Work the derivative out on paper: softmaxes of both logits, a difference, and a factor.",
            ) from None


@exercise("11.2")
def _doubt(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.15,
        unit="(probability)",
        too_low="With equal logits it would be 0.1. The right one is lead/20 ahead: e^(lead/20) against nine times 1.",
        too_high="The lead is divided by 20 before the exponential, and the nine others share what is left.",
    )


@exercise("11.3")
def _few_labels(loss: Callable[..., torch.Tensor]) -> str:
    for labels in ([2, 0, 3, 1], [2, -1, -1, 1], [-1, 0, -1, -1], [-1, -1, -1, -1]):
        student, teacher = 3 * torch.randn(2, 4, 5, dtype=torch.float64)
        soft = 4 * torch.nn.functional.kl_div(
            (student / 2).log_softmax(1), (teacher / 2).log_softmax(1), reduction="batchmean", log_target=True
        )
        known = [row for row, label in enumerate(labels) if label >= 0]
        each = [float(student[row].logsumexp(0) - student[row, labels[row]]) for row in known]
        expected = 0.75 * float(soft) + 0.25 * sum(each) / max(1, len(known))
        found = loss(student.clone(), teacher.clone(), torch.tensor(labels), temperature=2.0, share=0.75)
        if not isinstance(found, torch.Tensor) or found.dim() > 0:
            raise Wrong(f"The loss is one number; yours is {found!r}.", hint="Return a scalar tensor: two terms added.")
        if abs(float(found) - expected) <= 1e-4:
            continue
        said = f"With the labels {labels} the loss is {float(found):.4g} where {expected:.4g} is right."
        if not known:
            raise Wrong(
                said, hint="No label is known here. A mean over nothing is not a number: clamp its divisor to 1."
            )
        if len(known) == 4:
            raise Wrong(said, hint="All labels are known here: share of the soft-target loss, the rest cross-entropy.")
        if abs(float(found) - (0.75 * float(soft) + 0.25 * sum(each) / 4)) <= 1e-4:
            raise Wrong(said, hint="The cross-entropy is a mean over the known labels, not over the batch.")
        raise Wrong(
            said,
            hint="-1 is not the digit 0: labels >= 0 picks the known ones. The teacher speaks about every example.",
        )
    return "Every example has a teacher, and some have a label."


# ---------------------------------------------------------------- 12


@exercise("12.1")
def _canonical_words(words: Callable[[list[int]], list[str]]) -> str:
    for lengths in ([2, 1, 2], [1, 1], [3, 1, 3, 2], [2, 3, 3, 2, 2], [4, 2, 3, 2, 4, 3, 4, 4]):
        found = words(list(lengths))
        if not isinstance(found, list | tuple) or not all(isinstance(word, str) for word in found):
            raise Wrong(f"Return a list of texts; yours is {found!r}.", hint='format(5, "04b") is "0101".')
        if [len(word) for word in found] != lengths:
            raise Wrong(
                f"For the lengths {lengths} your words have the lengths {[len(word) for word in found]}.",
                hint="Words stand in the order of the symbols, and leading zeros belong to them.",
            )
        for one in found:
            for other in found:
                if one is not other and other.startswith(one):
                    raise Wrong(
                        f"For {lengths}, {one!r} begins the word {other!r}: a reader cannot tell them apart.",
                        hint="When the length grows, the number is shifted left, after 1 was added.",
                    )
        # With as many words of each length before it, each word's fraction of the tree is known without counting up.
        order = sorted(range(len(lengths)), key=lambda symbol: (lengths[symbol], symbol))
        begins, expected = 0.0, [""] * len(lengths)
        for symbol in order:
            expected[symbol] = format(int(begins * 2 ** lengths[symbol]), f"0{lengths[symbol]}b")
            begins += 0.5 ** lengths[symbol]
        if list(found) != expected:
            raise Wrong(
                f"For {lengths} the canonical words are {expected}; yours are {list(found)}.",
                hint="Shorter words first; among equal lengths, the symbol with the smaller number first.",
            )
    return "Lengths alone, and the reader has your code."


@exercise("12.2")
def _coded_bytes(guess: Callable[[], float], *, measured: int) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.03,
        unit="bytes",
        too_low="Two kinds of news: where, for each of the 420,000 places, and which value, for 8,400 of them.",
        too_high="Where: the entropy of 1/50 for each place, not a whole bit. Which: 1.75 bits each, not 2 or 32.",
    )


@exercise("12.3")
def _learned_bits(bits: Callable[[list[int]], float]) -> str:
    for symbols in ([1], [0, 0, 0, 0], [1, 0, 1, 1], [0] * 40 + [1] * 3, [1, 0] * 20):
        n, k = len(symbols), sum(symbols)
        # The product of the probabilities does not depend on the order; gamma functions give it at once.
        log = math.lgamma(k + 0.5) + math.lgamma(n - k + 0.5) - math.lgamma(n + 1) - math.log(math.pi)
        expected = -log / math.log(2)
        found = bits(list(symbols))
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise Wrong(f"Return one number of bits; yours is {found!r}.", hint="Add up -log2 p.")
        if abs(found - expected) <= 1e-6:
            continue
        said = f"{n} symbols with {k} ones take {expected:.2f} bits; yours: {found:.2f}."
        share = k / n
        static = sum(-m * math.log2(m / n) for m in (k, n - k) if m)
        if abs(found - static) <= 1e-6:
            raise Wrong(said, hint=f"That is the entropy for a share of {share:.2g}, which a reader does not know yet.")
        if found < expected:
            raise Wrong(said, hint="Count a symbol after it was coded, not before: the reader has not seen it yet.")
        raise Wrong(said, hint="A zero has the probability 1 - p. And the half belongs to k, the one to n.")
    return "Nothing stored, and the reader can follow."


# ---------------------------------------------------------------- 13


@exercise("13.1")
def _throughput(guess: Callable[[float, int], float], *, latency_ms: float, batch: int, measured: float) -> str:
    return within_factor(
        lambda: guess(latency_ms, batch),
        measured,
        factor=3,
        unit="photographs a second",
        too_low="A second has 1,000 milliseconds, and a batch answers all its photographs at once.",
        too_high="A batch saves calls, not arithmetic: each of its photographs still needs all its multiplications.",
    )


@exercise("13.2")
def _pack_two_of_four(pack: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> str:
    for rows, fours in ((5, 6), (16, 1)):
        weight = torch.randn(rows, 4 * fours)
        given = weight.clone()
        found = pack(given)
        shapes = [tuple(getattr(part, "shape", ())) for part in found] if isinstance(found, tuple) else repr(found)
        if shapes != [(rows, 2 * fours)] * 2:
            raise Wrong(
                f"Two tensors of the shape ({rows}, {2 * fours}) are asked for; yours: {shapes}.",
                hint="Two of four stay: unflatten(1, (-1, 4)), choose two of the last dimension, flatten(1) again.",
            )
        _are_two_of_four(weight, *found)
        if not torch.equal(given, weight):
            raise Wrong("The weight that came in was changed.", hint="Return new tensors.")
    return f"The right two of each four. In half precision, four weights now take {2 * 16 + 2 * 2} bits instead of 64."


def _are_two_of_four(weight: torch.Tensor, values: torch.Tensor, places: torch.Tensor) -> None:
    fours = weight.unflatten(1, (-1, 4)).tolist()
    expected = [[sorted(sorted(range(4), key=lambda i: -abs(four[i]))[:2]) for four in row] for row in fours]
    right = torch.tensor(expected).flatten(1)
    if not torch.equal(places.long().unflatten(1, (-1, 2)).sort(-1).values.flatten(1), right):
        signed = weight.unflatten(1, (-1, 4)).topk(2, dim=-1).indices.sort(-1).values.flatten(1)
        if torch.equal(places.long().unflatten(1, (-1, 2)).sort(-1).values.flatten(1), signed):
            raise Wrong("You keep the two largest numbers.", hint="A weight of -3 matters as much as 3: take abs().")
        raise Wrong(
            "Not all places are those of the two largest magnitudes of each four.",
            hint="Count places from 0 within each four neighbours of a row, not along the row.",
        )
    if not torch.equal(places.long(), right):
        raise Wrong(
            "The places are right, their order is not.", hint="topk sorts by size; sort the two places once more."
        )
    if not torch.equal(values, weight.unflatten(1, (-1, 4)).gather(-1, right.unflatten(1, (-1, 2))).flatten(1)):
        raise Wrong("The values are not those at the places.", hint="gather takes the values, with their signs.")
    if places.dtype != torch.uint8:
        raise Wrong(f"Your places are {places.dtype}.", hint="They need two bits each: end with .to(torch.uint8).")


@exercise("13.3")
def _choose(choose: Callable[[Any, float], tuple[int, int] | None]) -> str:
    import pandas as pd

    columns = ["runtime", "threads", "batch", "p50_ms", "p95_ms", "images_per_s"]
    rows = [
        ["r", 1, 1, 1.0, 1.5, 1000.0],
        ["r", 1, 8, 6.0, 7.0, 1333.0],
        ["r", 1, 64, 40.0, 44.0, 1600.0],
        ["r", 2, 1, 0.9, 3.0, 1111.0],
        ["r", 2, 8, 4.0, 9.0, 2000.0],
        ["r", 2, 64, 21.0, 25.0, 3048.0],
    ]
    table = pd.DataFrame(rows, columns=columns)
    for budget, right in ((8.0, (1, 8)), (30.0, (2, 64)), (2.0, (1, 1)), (1.0, None), (9.0, (2, 8))):
        found = choose(table.copy(), budget)
        given = None if found is None else tuple(int(number) for number in found)
        if given != right:
            _say_which_promise_is_broken(table, budget, given, right)
    return "Most photographs a second, and 19 callers in 20 are served in time."


def _say_which_promise_is_broken(
    table: Any, budget: float, given: tuple[int, ...] | None, right: tuple[int, int] | None
) -> None:
    said = f"With a budget of {budget:g} ms the answer is {right}; yours: {given}."
    if right is None:
        raise Wrong(said, hint="No row keeps the promise there: say so, return None.")
    chosen = table[[(t, b) == given for t, b in zip(table["threads"], table["batch"], strict=True)]]
    if len(chosen) == 1 and chosen["p95_ms"].iloc[0] > budget:
        raise Wrong(said, hint="The promise is about 19 calls in 20: compare p95_ms, not the median.")
    raise Wrong(
        said, hint="Among the rows that keep the promise, the most photographs a second count, not the fastest call."
    )


# ---------------------------------------------------------------- 14


@exercise("14.1")
def _shared_ranks(ranks_of: Callable[..., list[int]]) -> str:
    random = np.random.default_rng(0)
    for round_ in range(60):
        count = int(random.integers(2, 8))
        means = sorted(random.normal(size=count), reverse=True)
        names = [f"model {letter}" for letter in "ABCDEFGH"[:count]]
        widths = random.uniform(0.001, 1.2 if round_ else 0.002, (count, count))
        leads = {
            (names[i], names[j]): (means[i] - means[j] - widths[i, j], means[i] - means[j] + widths[i, j])
            for i in range(count)
            for j in range(i + 1, count)
        }
        asked = {pair: (low, high) for pair, (low, high) in leads.items()}
        found = ranks_of(list(names), lambda a, b, asked=asked: asked[a, b])
        _is_ranking(found, names, leads)
    return "Whoever cannot be told apart shares a rank, even through a third."


def _is_ranking(found: object, names: list[str], leads: dict[tuple[str, str], tuple[float, float]]) -> None:
    """Raise Wrong unless `found` are the ranks; the right ones by brute force, as parts that no tie connects."""
    group = {name: name for name in names}
    for a in names:  # whoever ties, and all between them, belong together
        for b in names:
            if (a, b) in leads and leads[a, b][0] <= 0:
                for between in names[names.index(a) : names.index(b) + 1]:
                    old, new = group[between], group[a]
                    group = {name: new if part == old else part for name, part in group.items()}
    expected = [min(names.index(other) for other in names if group[other] == group[name]) + 1 for name in names]
    if found == expected:
        return
    said = f"For {len(names)} models you give the ranks {found}; right: {expected}."
    if not isinstance(found, list) or len(found) != len(names):
        raise Wrong(said, hint="Return a list with one rank for each name, in the order of the names.")
    if found == list(range(1, len(names) + 1)):
        raise Wrong(said, hint="An order of means is no ranking: a lead whose interval holds 0 decides nothing.")
    if len(set(found)) == len(set(expected)):
        raise Wrong(said, hint="A new rank is one more than the number of models above it: after two firsts comes a 3.")
    neighbours = [1]
    for a, b in zip(names, names[1:], strict=False):
        neighbours.append(len(neighbours) + 1 if leads[a, b][0] > 0 else neighbours[-1])
    if found == neighbours:
        raise Wrong(said, hint="Neighbours are not enough: the second may beat the third, and the first may not.")
    raise Wrong(said, hint="A rank begins at a model if each one above beats each one from there on: two loops.")


@exercise("14.2")
def _winner(guess: Callable[[], str], *, measured: dict[str, float]) -> str:
    said = guess()
    if said not in measured:
        raise Wrong(f"You say {said!r}.", hint=f"Return one of these texts: {', '.join(map(repr, measured))}.")
    best = max(measured, key=lambda name: measured[name])
    both = f"You say {said!r} with {measured[said]:.1%}; the best is at {measured[best]:.1%}."
    if measured[best] - measured[said] <= 0.002:
        return both
    hints = {
        "pruned": "A kept weight costs its four bytes and the way to it. How many of them fit, of 430,500?",
        "fewer bits": "Two bits are four marks. Without training, what becomes of the small weights?",
        "pruned, 4 bits": "A kept weight costs half a byte and the way to it: count again how many fit.",
        "thin and dense": "It starts from nothing. How long was it trained here, and how long LeNet-5?",
    }
    raise Wrong(both, hint=hints.get(said, "Count first how many weights fit, and in how many bits."))


@exercise("14.3")
def _submission(submit: Callable[..., object], *, train: Any, unseen: Any, budget: Any, rounds: int = 60) -> str:
    import tempfile
    from pathlib import Path

    from helpers import judging

    if not callable(submit):
        raise Wrong(
            "A submission is made by a function.", hint="Keep my_submission(train, folder), and write its body."
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        submit(train, folder)
        judged = judging.judge(folder, "mnist", budget, split=unseen, rounds=rounds)
    if judged.passed:
        speed = f", {judged.speedup:.1f} times as fast" if budget.speedup else ""
        return f"{judged.bytes:,} bytes, {judged.accuracy:.2%} right{speed}: all of it measured by the judge."
    first = next(outcome for outcome in judged.outcomes if not outcome.met and outcome.measured != "not measured")
    hints = {
        judging.BYTES: "Fewer weights or fewer bits of each: write_quantized stores what a grid or a table allows.",
        judging.ACCURACY: "More digits, more epochs, or quantize less; a wider network can be pruned afterwards.",
        judging.SPEED: "Zeros are multiplied like any other number: the network itself must be thinner.",
        judging.WEIGHTS: "The module gets all it knows from the file that is weighed.",
        judging.FILE: "Write two files into the folder, model.pack (packing) and model.py (with build), or model.onnx.",
    }
    asked = f" (asked: {first.asked})" if first.asked else ""
    hint = hints.get(first.criterion, "Call judging.judge yourself on your folder, and read its table.")
    raise Wrong(f"Not met: {first.criterion}: {first.measured}{asked}", hint=hint)


# ---------------------------------------------------------------- 15


@exercise("15.1")
def _really_removed(judge: Callable[..., bool]) -> str:
    example = torch.randn(5, 3, 8, 8)
    before = _small_net(12, 10)
    weights = [tensor.clone() for tensor in before.state_dict().values()]
    for name, after, expected, hint in _candidates(before):
        found = judge(before, after, example)
        if not isinstance(found, bool):
            raise Wrong(f"For {name} you returned {found!r}.", hint="Return True or False; bool(...) makes one of it.")
        if found != expected:
            raise Wrong(f"For {name} you returned {found}, and it is {expected}.", hint=hint)
    if not all(torch.equal(a, b) for a, b in zip(weights, before.state_dict().values(), strict=True)):
        raise Wrong("The network before was changed.", hint="A judge looks and does not touch.")
    return "Masks, zeros, shared weights, longer strides and other answers are all told from removal."


def _small_net(channels: int, classes: int, *, stride: int = 1) -> torch.nn.Sequential:
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, stride=stride),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * channels, classes),
    )


def _candidates(before: torch.nn.Sequential) -> list[tuple[str, torch.nn.Module, bool, str]]:
    """Return networks after "compression": name, network, whether it is really smaller, hint."""
    from torch.nn.utils import prune

    masked, zeroed, single, shared = (deepcopy(before) for _ in range(4))
    prune.ln_structured(masked[2], "weight", amount=0.5, n=1, dim=0)
    prune.remove(prune.ln_structured(zeroed[2], "weight", amount=0.5, n=1, dim=0), "weight")
    prune.l1_unstructured(single[6], "weight", amount=0.9)
    shared.insert(3, shared[2])  # more work, and a parameter that is used twice
    del shared[4]
    shared[0] = torch.nn.Conv2d(3, 12, 3, padding=1, bias=False)
    count = "Count what is stored and what is multiplied. Zeros are stored and multiplied, too."
    masks = "A mask is a buffer. A network that stores weights and masks has grown: count model.buffers() as well."
    return [
        ("a network with half of its channels removed", _small_net(6, 10), True, "Both counts have fallen: True."),
        ("a copy", deepcopy(before), False, "Smaller means less than before, not at most as much."),
        ("a network with masked channels", masked, False, masks),
        ("a network with zeroed channels", zeroed, False, count),
        ("a network with masked weights", single, False, masks),
        (
            "a network with fewer parameters and one layer used twice",
            shared,
            False,
            "Fewer numbers can do more work: count the multiply-accumulates as well.",
        ),
        (
            "a network with a longer stride",
            _small_net(12, 10, stride=2),
            False,
            "It does less work with all of its numbers: count what is stored as well.",
        ),
        (
            "a network that has lost five classes",
            _small_net(6, 5),
            False,
            "It is smaller, and answers another question: compare the shapes of the answers.",
        ),
    ]


@exercise("15.2")
def _loss_faults(inspect: Callable[..., set[str]]) -> str:
    functional = torch.nn.functional
    inputs, labels = torch.randn(6, 8), torch.arange(6)

    def soft(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        targets = (teacher / 4).softmax(1)
        return 16 * functional.kl_div((student / 4).log_softmax(1), targets, reduction="batchmean")

    losses: dict[str, tuple[Callable[..., torch.Tensor], set[str]]] = {
        "a loss that is fine": (
            lambda s, t, x, y: soft(s(x), t(x).detach()) + functional.cross_entropy(s(x), y),
            set(),
        ),
        "mean squared error of both networks' logits": (
            lambda s, t, x, y: (s(x) - t(x)).square().mean(),
            {"teacher gets gradients", "labels are ignored"},
        ),
        "soft targets without detach, and labels": (
            lambda s, t, x, y: soft(s(x), t(x)) + functional.cross_entropy(s(x), y),
            {"teacher gets gradients"},
        ),
        "soft targets with detach, without labels": (
            lambda s, t, x, y: soft(s(x), t(x).detach()) + 0 * functional.cross_entropy(s(x), y),
            {"labels are ignored"},
        ),
    }
    for frozen in (False, True):
        for name, (loss, expected) in losses.items():
            student, teacher = torch.nn.Linear(8, 10), torch.nn.Linear(8, 10)
            teacher.requires_grad_(not frozen)
            expected = expected - {"teacher gets gradients"} if frozen else expected
            said = f"{name}, teacher frozen" if frozen else name
            found = inspect(loss, student, teacher, inputs, labels)
            if not isinstance(found, set):
                raise Wrong(f"For {said} you returned {found!r}.", hint="Return a set; one without faults is set().")
            if found != expected:
                _say_which_fault(said, found, expected)
            left = [p for p in (*student.parameters(), *teacher.parameters()) if p.grad is not None]
            if left:
                raise Wrong(
                    f"After {said}, {len(left)} parameters have gradients.",
                    hint="torch.autograd.grad returns gradients and stores none; or set them to None afterwards.",
                )
    return "Four losses, with a free and with a frozen teacher: each fault found, and no other."


def _say_which_fault(said: str, found: set[str], expected: set[str]) -> None:
    hints = {
        "teacher gets gradients": "Differentiate the loss with respect to the teacher's parameters that can have "
        "gradients: allow_unused=True gives None where there are none. A teacher without such parameters gets none.",
        "labels are ignored": "Compute the loss twice, with other labels the second time. The same value: not read.",
    }
    for fault, hint in hints.items():
        if (fault in found) != (fault in expected):
            verb = "missed" if fault in expected else "reported"
            raise Wrong(f"For {said} you {verb} {fault!r}.", hint=hint)
    raise Wrong(f"For {said} you returned {found!r}.", hint=f"Only these two words: {', '.join(hints)}.")


@exercise("15.3")
def _share_of_the_whole(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.1,
        unit="(fraction)",
        too_low="Nine tenths of 20,200 weights are zero. The network has 1,020,400.",
        too_high="The vectors of 10,002 words were not pruned, and they are nearly all of the network.",
    )
