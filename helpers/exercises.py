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
