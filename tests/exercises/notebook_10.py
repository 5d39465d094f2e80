"""Plausible wrong answers to the exercises of notebook 10, each with words of its own hint."""

import torch

from tests.exercises.examples import Case


def _in_fixed_point(sums, factor, *, rounding=True, bits=31):
    shift = 0
    while factor * 2**shift < 2 ** (bits - 1):
        shift += 1
    half = 2 ** (shift - 1) if rounding and shift else 0
    return (sums * round(factor * 2**shift) + half) >> shift


def _in_floating_point(sums, factor, zero):
    return ((sums.double() * factor).round() + zero).clamp(0, 255).to(torch.uint8)


def _rounded_down(sums, factor, zero):
    return (_in_fixed_point(sums, factor, rounding=False) + zero).clamp(0, 255).to(torch.uint8)


def _wrapped_around(sums, factor, zero):
    return (_in_fixed_point(sums, factor) + zero).to(torch.uint8)


def _no_zero_point(sums, factor, zero):
    return _in_fixed_point(sums, factor).clamp(0, 255).to(torch.uint8)


def _factor_of_four_bits(sums, factor, zero):
    return (_in_fixed_point(sums, factor, bits=4) + zero).clamp(0, 255).to(torch.uint8)


def _codes_as_int64(sums, factor, zero):
    return (_in_fixed_point(sums, factor) + zero).clamp(0, 255)


def _sums_in_place(sums, factor, zero):
    sums *= 1
    sums += zero
    return (_in_fixed_point(sums - zero, factor) + zero).clamp(0, 255).to(torch.uint8)


def _bytes_forgotten(weight, bias, mean, std):
    return weight / std, bias - (mean / std) * weight.sum(1)


def _mean_forgotten(weight, bias, mean, std):
    return weight / (255 * std), bias


def _mean_added(weight, bias, mean, std):
    return weight / (255 * std), bias + (mean / std) * weight.sum(1)


def _mean_of_a_byte(weight, bias, mean, std):
    return weight / (255 * std), bias - mean / (255 * std) * weight.sum(1)


def _std_forgotten(weight, bias, mean, std):
    return weight / 255, bias - mean * weight.sum(1)


def _one_shift_an_input(weight, bias, mean, std):
    return weight / (255 * std), bias[:, None] - (mean / std) * weight


CASES = {
    "10.1": Case(
        [
            (lambda codes, scale, zero: scale * (codes - zero), "no -1"),
            (lambda codes, scale, zero: scale * codes.float(), "zero point is missing"),
            (lambda codes, scale, zero: scale * codes.float() - zero, "before you multiply"),
            (lambda codes, scale, zero: (codes.float() - zero) / scale, "product of the scale"),
            (lambda codes, scale, zero: scale * (float(codes[0]) - zero), "as a whole"),
        ]
    ),
    "10.2": Case(
        [
            (_rounded_down, "shift rounds down"),
            (_wrapped_around, "wraps around"),
            (_no_zero_point, "zero point is missing"),
            (_factor_of_four_bits, "too few"),
            (_codes_as_int64, "fit into a byte"),
            (_sums_in_place, "in place"),
            (_in_floating_point, "whole number m"),
        ]
    ),
    "10.3": Case(
        [
            (_bytes_forgotten, "255 times"),
            (_mean_forgotten, "make of the bias"),
            (_mean_added, "sign in the bias"),
            (_mean_of_a_byte, "add that up"),
            (_std_forgotten, "which one multiplies p"),
            (_one_shift_an_input, "sum of its weights"),
        ]
    ),
    "10.4": Case(
        [
            (lambda terms: terms * 255 * 127, "both signs"),
            (lambda terms: 127, "pull one way"),
        ],
        given={"terms": 216, "measured": 290_000.0},
    ),
}
