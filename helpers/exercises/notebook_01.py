"""The exercises of notebook 01."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from helpers.exercises.checking import Wrong, exercise, within_factor


@exercise("01.1")
def _bytes_in_memory(bytes_of: Callable[[torch.nn.Module], int]) -> str:
    layers = [
        torch.nn.Linear(7, 3),
        torch.nn.Conv2d(2, 5, 3),
        torch.nn.Linear(4, 6, bias=False),
        torch.nn.LSTM(3, 2),
    ]
    for layer in layers:
        found = bytes_of(layer)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise Wrong(f"Your function returned {found!r}.", hint="Return one number, with return.")
        shapes = [tuple(tensor.shape) for tensor in layer.state_dict().values()]
        numbers, weights = sum(map(math.prod, shapes)), sum(math.prod(shape) for shape in shapes if len(shape) > 1)
        if found == 4 * numbers:
            continue
        said = f"{layer}: {4 * numbers} bytes are right, and you get {found:g}."
        if found == numbers:
            raise Wrong(said, hint="That is how many numbers there are. A float32 takes four bytes.")
        if found == 4 * weights:
            raise Wrong(
                said, hint="The biases are missing: go through all of layer.parameters(), not the weight alone."
            )
        raise Wrong(said, hint="Add up numel() of each tensor in layer.parameters(), times four bytes.")
    return "Right for linear layers, convolutions and recurrent ones, with or without biases."


@exercise("01.2")
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


@exercise("01.3")
def _half_of_fc1(guess: Callable[[], float], *, measured: int) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.03,
        unit="bytes",
        too_low="Halving fc1 halves the columns of fc2, too, but not the convolutions. Four bytes a parameter.",
        too_high="fc1 holds nearly everything, and keeps 250 rows of 800 weights. What is left of fc2?",
    )


@exercise("01.4")
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
