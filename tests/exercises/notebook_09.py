"""Plausible wrong answers to the exercises of notebook 09, each with words of its own hint."""

import torch

from tests.exercises.examples import Case, _row_max, _row_min, _row_quantizer


def _row_quantizer_without_clamp(weight, bits):
    scale = (_row_max(weight) - _row_min(weight)) / (2**bits - 1)
    zero = -(_row_min(weight) / scale).floor()
    return (weight / scale).ceil() + zero, scale, zero.clamp(max=2**bits - 1)


def _powers_alone():
    return 2.0 ** -torch.arange(15, -1, -1)


def _sums_too_large():
    first, second = torch.tensor([0, 1, 2**-2, 2**-4]), torch.tensor([0, 2**-1, 2**-3, 2**-5])
    return (first[:, None] + second).flatten().sort().values


def _only_pairs_of_the_same_place():
    return torch.tensor([0, 1, 2**-2, 2**-4]) + torch.tensor([0, 2**-1, 2**-3, 2**-5])


CASES = {
    "09.1": Case(
        [
            (lambda highest, bits: highest / 2**bits, "Count the gaps"),
            (lambda highest, bits: highest / (2 ** (bits - 1) - 1), "the signed grid"),
            (lambda highest, bits: 2 * highest / (2**bits - 1), "code times step"),
        ]
    ),
    "09.2": Case(
        [
            (_row_quantizer(torch.amin, torch.amax), "Each row has its own range"),
            (_row_quantizer(lambda w: w.amin(1, keepdim=True), lambda w: w.amax(1, keepdim=True)), "reach down to 0"),
            (_row_quantizer(_row_min, _row_max, point=lambda numbers: numbers), "a code too"),
            (_row_quantizer(_row_min, _row_max, rounded=torch.trunc), "nearest code"),
            (_row_quantizer_without_clamp, "gets the last code"),
            (lambda weight, bits: _row_quantizer(_row_min, _row_max)(weight, bits)[0], "keepdim=True"),
        ]
    ),
    "09.3": Case(
        [
            (_powers_alone, "Sums, not products"),
            (_sums_too_large, "Divide by it"),
            (_only_pairs_of_the_same_place, "with each of the four"),
            (lambda: _sums_too_large().flip(0) / 1.5, "take the values"),
        ]
    ),
    "09.4": Case(
        [
            (lambda: 430_500 * 6 / 8 + 580 * 4, "Codes are not all"),
            (lambda: 430_500, "not a byte"),
        ],
        {"measured": 327_709},
    ),
}
