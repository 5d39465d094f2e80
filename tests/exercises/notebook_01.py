"""Plausible wrong answers to the exercises of notebook 01, each with words of its own hint."""

import numpy as np

from tests.exercises.examples import Case


def _without_groups(in_channels, out_channels, kernel, size, stride=1, padding=0, groups=1):
    places = (size + 2 * padding - kernel) // stride + 1
    return places**2 * out_channels * in_channels * kernel**2


def _padded_on_one_side(in_channels, out_channels, kernel, size, stride=1, padding=0, groups=1):
    places = (size + padding - kernel) // stride + 1
    return places**2 * out_channels * (in_channels // groups) * kernel**2


def _with_biases(in_channels, out_channels, kernel, size, stride=1, padding=0, groups=1):
    places = (size + 2 * padding - kernel) // stride + 1
    return places**2 * out_channels * (in_channels // groups * kernel**2 + 1)


def _without_biases(layer):
    return 4 * sum(tensor.numel() for tensor in layer.parameters() if tensor.dim() > 1)


CASES = {
    "01.1": Case(
        [
            (lambda layer: sum(tensor.numel() for tensor in layer.parameters()), "takes four bytes"),
            (_without_biases, "biases are missing"),
            (lambda layer: 4 * len(list(layer.parameters())), "Add up numel()"),
        ]
    ),
    "01.2": Case(
        [
            (_with_biases, "weights that each filter has"),
            (_padded_on_one_side, "both sides"),
            (_without_groups, "in_channels // groups"),
        ]
    ),
    "01.3": Case([(lambda: 862_236, "not the convolutions"), (lambda: 1_293_355, "250 rows")], {"measured": 913_473}),
    "01.4": Case(
        [
            (lambda base, other: np.median(other / base), "divided by the other's"),
            (lambda base, other: base.mean() / other.mean(), "believes every outlier"),
            (lambda base, other: np.median(base) / np.median(other), "round by round"),
        ]
    ),
}
