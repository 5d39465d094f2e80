"""Plausible wrong answers to the exercises of notebook 00, each with words of its own hint."""

import math

import torch

from tests.exercises.examples import Case


def _last_level_fixed(weight, bits):
    step = weight.abs().max() / 127
    return (weight / step).round() * step


def _cut_off(weight, bits):
    step = weight.abs().max() / (2 ** (bits - 1) - 1)
    return (weight / step).trunc() * step


def _in_place(weight, bits):
    step = weight.abs().max() / (2 ** (bits - 1) - 1)
    return weight.div_(step).round_().mul_(step)


def _numbers_not_weights(weight, bits):
    step = weight.abs().max() / (2 ** (bits - 1) - 1)
    return (weight / step).round().to(torch.int8)


def _without_additions(macs, parameters, bits):
    return math.ceil(parameters * 640 * bits / 32 / (macs * {32: 3.7, 8: 0.2}[bits]))


def _with_a_read_each(macs, parameters, bits):
    return math.ceil(parameters * 640 / (macs * {32: 4.6, 8: 0.23}[bits]))


def _rounded_down(macs, parameters, bits):
    return int(parameters * 640 * bits / 32 / (macs * {32: 4.6, 8: 0.23}[bits]))


def _upside_down(macs, parameters, bits):
    return math.ceil(macs * {32: 4.6, 8: 0.23}[bits] / (parameters * 640 * bits / 32))


CASES = {
    "00.1": Case(
        [(lambda count, bits: count * bits, "make one byte"), (lambda count, bits: count / bits, "multiply count")]
    ),
    "00.2": Case([(lambda: 5, "because they were tiny"), (lambda: 990, "far from any other")], {"measured": 105}),
    "00.3": Case(
        [
            (_last_level_fixed, "power of two"),
            (_cut_off, "do not cut off"),
            (_in_place, "new tensor"),
            (_numbers_not_weights, "times the step"),
        ]
    ),
    "00.4": Case(
        [
            (_without_additions, "one addition"),
            (_with_a_read_each, "One read brings"),
            (_rounded_down, "round up"),
            (_upside_down, "paid once"),
        ]
    ),
}
