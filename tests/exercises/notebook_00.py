"""Plausible wrong answers to the exercises of notebook 00, each with words of its own hint."""

import torch

from tests.exercises.examples import Case


def _last_mark_fixed(weight, bits):
    step = weight.abs().max() / 127
    return (weight / step).round() * step


def _cut_off(weight, bits):
    step = weight.abs().max() / (2 ** (bits - 1) - 1)
    return (weight / step).trunc() * step


def _in_place(weight, bits):
    step = weight.abs().max() / (2 ** (bits - 1) - 1)
    return weight.div_(step).round_().mul_(step)


def _marks_not_weights(weight, bits):
    step = weight.abs().max() / (2 ** (bits - 1) - 1)
    return (weight / step).round().to(torch.int8)


def _energy_without_additions(macs, parameters, bits):
    return (macs * {32: 3.7, 8: 0.2}[bits] + parameters * 640 * bits / 32) / 1e6


def _energy_with_a_read_each(macs, parameters, bits):
    return (macs * {32: 4.6, 8: 0.23}[bits] + parameters * 640) / 1e6


CASES = {
    "00.1": Case([(lambda: 5, "free because"), (lambda: 990, "far from any other")], {"measured": 105}),
    "00.2": Case(
        [
            (_last_mark_fixed, "power of two"),
            (_cut_off, "do not cut off"),
            (_in_place, "new tensor"),
            (_marks_not_weights, "times the step"),
        ]
    ),
    "00.3": Case([(_energy_without_additions, "one addition"), (_energy_with_a_read_each, "One read brings")]),
}
