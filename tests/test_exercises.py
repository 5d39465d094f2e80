"""Exercises: the machinery, and for each exercise the right, the empty and two plausible wrong answers.

To add an exercise, add its case to `CASES` below. The right answer is taken from the notebook's own solution.
"""

import ast
import copy
import itertools
import math
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jupytext
import numpy as np
import pytest
import torch
from nbgrader.preprocessors import ClearSolutions
from torch.distributions import Categorical, kl_divergence

from helpers import exercises, judging, measure, paths
from helpers.data import Split
from helpers.exercises import Feedback, Wrong

SOURCES = sorted((paths.NOTEBOOKS / "src").glob("[0-9][0-9]_*.py"))
CHECK = re.compile(r"exercises\.check\(\s*\"(?P<id>[^\"]+)\"\s*,\s*(?P<name>\w+)")


@dataclass(frozen=True)
class Case:
    """Plausible wrong answers, each with words of its own hint; `given` is what the notebook passes on."""

    wrong: list[tuple[Any, str]]
    given: dict[str, Any] = field(default_factory=dict)


CASES: dict[str, Case] = {}

# ---------------------------------------------------------------- 00


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


CASES |= {
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


# ---------------------------------------------------------------- 01


def _without_groups(in_channels, out_channels, kernel, size, stride=1, padding=0, groups=1):
    places = (size + 2 * padding - kernel) // stride + 1
    return places**2 * out_channels * in_channels * kernel**2


def _padded_on_one_side(in_channels, out_channels, kernel, size, stride=1, padding=0, groups=1):
    places = (size + padding - kernel) // stride + 1
    return places**2 * out_channels * (in_channels // groups) * kernel**2


def _with_biases(in_channels, out_channels, kernel, size, stride=1, padding=0, groups=1):
    places = (size + 2 * padding - kernel) // stride + 1
    return places**2 * out_channels * (in_channels // groups * kernel**2 + 1)


CASES |= {
    "01.1": Case(
        [
            (_with_biases, "weights that each filter has"),
            (_padded_on_one_side, "both sides"),
            (_without_groups, "in_channels // groups"),
        ]
    ),
    "01.2": Case([(lambda: 862_236, "not the convolutions"), (lambda: 1_293_355, "250 rows")], {"measured": 913_473}),
    "01.3": Case(
        [
            (lambda base, other: np.median(other / base), "divided by the other's"),
            (lambda base, other: base.mean() / other.mean(), "believes every outlier"),
            (lambda base, other: np.median(base) / np.median(other), "round by round"),
        ]
    ),
}


# ---------------------------------------------------------------- 02


def _half_of_everything(weight):
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[weight.abs().flatten().argsort()[: weight.numel() // 2]] = False
    return mask.view_as(weight)


def _two_of_four_with_signs(weight):
    groups = weight.reshape(-1, 4)
    return torch.zeros_like(groups, dtype=torch.bool).scatter(1, groups.topk(2, dim=1).indices, True).view_as(weight)


CASES["02.1"] = Case(
    [
        (_half_of_everything, "within each four"),
        (_two_of_four_with_signs, "compare magnitudes"),
        (lambda weight: (weight.abs() > 0.5).float(), "dtype=torch.bool"),
    ]
)
CASES["02.2"] = Case(
    [
        (lambda: 4_000 * 4, "stay dense"),
        (lambda: 431_080 * 4, "1 % of its 400,000"),
    ],
    given={"measured": 144_568},
)
CASES["02.3"] = Case(
    [
        (lambda weight, following: weight.abs().sum(1), "sum of the magnitudes of the neuron's column"),
        (lambda weight, following: weight.sum(1) * following.sum(0), "opposite signs cancel"),
        (lambda weight, following: weight.abs().sum(0), "Row i of weight"),
    ]
)


# ---------------------------------------------------------------- 03


def _first_order_forwards(weight, bias, weight_gradient, bias_gradient):
    return (weight * weight_gradient).flatten(1).sum(1) + bias * bias_gradient


def _first_order_without_bias(weight, bias, weight_gradient, bias_gradient):
    return -(weight * weight_gradient).flatten(1).sum(1)


def _first_order_of_magnitudes(weight, bias, weight_gradient, bias_gradient):
    return (weight * weight_gradient).abs().flatten(1).sum(1) + (bias * bias_gradient).abs()


def _strongest(product, size):
    v = torch.randn(size, dtype=torch.float64)
    for _ in range(500):
        v = product(v / v.norm())
    v = v / v.norm()
    return float(v @ product(v))


def _shifted(product, size):
    top = _strongest(product, size)
    return _strongest(lambda v: product(v) - top * v, size)


CASES |= {
    "03.1": Case(
        [
            (_first_order_forwards, "a step of -w"),
            (_first_order_without_bias, "adds no bias"),
            (_first_order_of_magnitudes, "take no magnitudes"),
            (lambda weight, bias, *_: -(weight * weight), "flatten(1)"),
        ]
    ),
    "03.2": Case([(lambda: 5, "do the same work"), (lambda: 100, "only correct")], {"measured": 62}),
    "03.3": Case(
        [
            (_strongest, "all eigenvalues move down"),
            (_shifted, "add back"),
            (lambda product, size: _shifted(product, size) + _strongest(product, size), "magnitude is negative"),
        ]
    ),
}


# ---------------------------------------------------------------- 04


def _interleaved_wrongly(conv, linear, keep):
    small = torch.nn.Conv2d(conv.in_channels, int(keep.sum()), conv.kernel_size)
    small.weight.data, small.bias.data = conv.weight.detach()[keep], conv.bias.detach()[keep]
    columns = keep.repeat(linear.in_features // len(keep))
    reader = torch.nn.Linear(int(columns.sum()), linear.out_features)
    reader.weight.data, reader.bias.data = linear.weight.detach()[:, columns], linear.bias.detach()
    return small, reader


def _one_column_a_channel(conv, linear, keep):
    small, _ = _interleaved_wrongly(conv, linear, keep)
    reader = torch.nn.Linear(int(keep.sum()), linear.out_features)
    return small, reader


def _zeroed_not_removed(conv, linear, keep):
    conv = copy.deepcopy(conv)
    conv.weight.data[~keep] = 0
    return conv, linear


def _all_biases_kept(conv, linear, keep):
    conv = copy.deepcopy(conv)
    conv.weight.data = conv.weight.detach()[keep]
    return conv, linear


def _cut_in_place(conv, linear, keep):
    columns = keep.repeat_interleave(linear.in_features // len(keep))
    conv.weight.data, conv.bias.data = conv.weight.detach()[keep], conv.bias.detach()[keep]
    linear.weight.data = linear.weight.detach()[:, columns]
    return conv, linear


CASES |= {
    "04.1": Case(
        [(lambda: 1.0, "smaller matrices"), (lambda: 2.2, "did not fall as much")],
        given={"measured": 1.6, "macs_ratio": 2.1},
    ),
    "04.2": Case(
        [
            (_interleaved_wrongly, "repeat_interleave"),
            (_one_column_a_channel, "columns of the linear layer"),
            (_zeroed_not_removed, "still there"),
            (_all_biases_kept, "has a bias"),
            (_cut_in_place, "Work on copies"),
        ]
    ),
    "04.3": Case(
        [
            (lambda wanted, total, multiple: min(total, max(multiple, wanted // multiple * multiple)), "lie above"),
            (lambda wanted, total, multiple: min(total, max(multiple, round(wanted / multiple) * multiple)), "even"),
            (lambda wanted, total, multiple: min(total, (wanted + multiple // 2) // multiple * multiple), "a hole"),
            (
                lambda wanted, total, multiple: max(multiple, (wanted + multiple // 2) // multiple * multiple),
                "with total",
            ),
        ]
    ),
}


# ---------------------------------------------------------------- 05


def _signs_of_all(early, mask):
    return early.sign() * early.abs().mean() * mask


def _price(macs, small_macs, epochs, retraining, rounds):
    return [macs * (small_macs / macs) ** (done / rounds) for done in range(1, rounds + 1)]


def _bill_of_the_last(macs, small_macs, epochs, retraining, rounds):
    return int((epochs * macs + rounds * retraining * small_macs) // small_macs)


def _bill_of_the_dense(macs, small_macs, epochs, retraining, rounds):
    return int(epochs * macs // small_macs)


def _bill_in_epochs(macs, small_macs, epochs, retraining, rounds):
    return epochs + rounds * retraining


def _bill_rounded_up(*given):
    macs, small_macs, epochs, retraining, _ = given
    return -int(-(epochs * macs + retraining * sum(_price(*given))) // small_macs)


CASES |= {
    "05.1": Case(
        [(lambda: 1.96 * 0.3 / 3**0.5, "4.3, not 2"), (lambda: 4.303 * 0.3, "root of 3")], {"measured": 0.7452}
    ),
    "05.2": Case(
        [
            (lambda early, mask: early * mask, "+1 or -1"),
            (_signs_of_all, "index with the mask"),
            (lambda early, mask: early.sign() * early[mask].abs().mean(), "Multiply by the mask"),
            (lambda early, mask: mask * early[mask].abs().mean(), "must be positive"),
            (lambda early, mask: early.sign_() * mask, "new tensor"),
        ]
    ),
    "05.3": Case(
        [
            (_bill_in_epochs, "divide what was spent"),
            (_bill_of_the_dense, "after the cut"),
            (_bill_rounded_up, "Round down"),
            (_bill_of_the_last, "its own price"),
        ]
    ),
}


# ---------------------------------------------------------------- 06


def _mean_over_the_batch(vectors, tokens):
    return vectors.mean(dim=0)


def _mean_with_padding(vectors, tokens):
    return vectors.mean(dim=1)


def _mean_without_a_floor(vectors, tokens):
    is_word = (tokens != 1).unsqueeze(2)
    return (vectors * is_word).sum(dim=1) / is_word.sum(dim=1)


def _sum_not_mean(vectors, tokens):
    return (vectors * (tokens != 1).unsqueeze(2)).sum(dim=1)


def _mean_in_place(vectors, tokens):
    is_word = (tokens != 1).unsqueeze(2)
    return vectors.mul_(is_word).sum(dim=1) / is_word.sum(dim=1).clamp(min=1)


def _first_columns(weight, rank):
    return weight[:, :rank], torch.eye(weight.shape[1])[:rank]


def _without_singular_values(weight, rank):
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    return left[:, :rank], right[:rank]


def _right_not_transposed(weight, rank):
    left, scale, right = torch.linalg.svd(weight, full_matrices=False)
    return left[:, :rank] * scale[:rank], right[:, :rank]


CASES |= {
    "06.1": Case([(lambda: 0.3, "more than half"), (lambda: 0.98, "rest is long")], {"measured": 0.73}),
    "06.2": Case(
        [
            (_mean_over_the_batch, "mixes the reviews"),
            (_mean_with_padding, "neither above nor below"),
            (_mean_without_a_floor, "clamp"),
            (_sum_not_mean, "divide by their number"),
            (_mean_in_place, "not in place"),
        ]
    ),
    "06.3": Case(
        [
            (_first_columns, "directions that matter most"),
            (_without_singular_values, "values are missing"),
            (_right_not_transposed, "first rank rows"),
        ]
    ),
}


# ---------------------------------------------------------------- 07


def _rates_from_the_input(stages, factor):
    return {stage: factor**place for place, stage in enumerate(stages)}


def _head_slowed_too(stages, factor):
    return {stage: factor ** (len(stages) - place) for place, stage in enumerate(stages)}


def _rates_by_steps(stages, factor):
    return {stage: 1 - (len(stages) - 1 - place) * (1 - factor) for place, stage in enumerate(stages)}


def _rates_in_a_list(stages, factor):
    return [factor ** (len(stages) - 1 - place) for place in range(len(stages))]


def _maps_averaged(maps, weight):
    return maps.mean((2, 3)) @ weight.T


def _maps_without_the_negative(maps, weight):
    return torch.einsum("nfhw,cf->nchw", maps, weight).relu()


def _maps_divided(maps, weight):
    return torch.einsum("nfhw,cf->nchw", maps, weight) / maps[0, 0].numel()


def _maps_class_first(maps, weight):
    return torch.einsum("nfhw,cf->cnhw", maps, weight)


CASES |= {
    "07.1": Case(
        [(lambda: 2, "in each of 20 epochs"), (lambda: 100, "one pass through the body")],
        {"measured": 20.0, "epochs": 20},
    ),
    "07.2": Case(
        [
            (_rates_from_the_input, "from the input to the head"),
            (_head_slowed_too, "exponent is 0"),
            (_rates_by_steps, "a power, not a sum"),
            (_rates_in_a_list, "dictionary"),
        ]
    ),
    "07.3": Case(
        [
            (_maps_averaged, "comes afterwards"),
            (_maps_without_the_negative, "no ReLU"),
            (_maps_divided, "number of places"),
            (_maps_class_first, "the features are what is summed over"),
        ]
    ),
}


# ---------------------------------------------------------------- 08


def _mean_squares(first, second):
    return (first**2 + second**2).mean(0)


def _tied_in_place(first, second):
    first += second
    return first.square().mean(0)


def _unpaired(before, after):
    shares = [answers.float().mean() for answers in (before, after)]
    return 100 * (shares[0] - shares[1]), 196 * (sum(p * (1 - p) for p in shares) / len(before)) ** 0.5


def _paired(before, after, *, scale=100.0, root=True):
    changes = scale * (before.float() - after.float())
    return changes.mean(), 1.96 * changes.std() / (len(changes) ** 0.5 if root else 1)


CASES |= {
    "08.1": Case(
        [(lambda: 2.0, "on both sides"), (lambda: 40.0, "inputs and outputs")], {"measured": 3.3, "macs_ratio": 3.0}
    ),
    "08.2": Case(
        [
            (_mean_squares, "Both gates close at once"),
            (lambda first, second: (first + second).mean(0) ** 2, "square first"),
            (lambda first, second: ((first + second) ** 2).mean(1), "dimension 0"),
            (lambda first, second: (first + second).abs().mean(0), "square the sum"),
            (_tied_in_place, "not first += second"),
        ]
    ),
    "08.3": Case(
        [
            (_unpaired, "photograph by photograph"),
            (lambda before, after: _paired(after, before), "before minus after"),
            (lambda before, after: _paired(before, after, scale=1.0), "one photograph in a hundred"),
            (lambda before, after: _paired(before, after, root=False), "root of n"),
            (lambda before, after: (before.float() - after.float()).mean() * 100, "two numbers"),
        ]
    ),
}


# ---------------------------------------------------------------- 09


def _row_quantizer(lowest, highest, *, steps=1, rounded=torch.round, point=torch.round):
    def quantize(weight, bits):
        low, high = lowest(weight), highest(weight)
        scale = (high - low) / (2**bits - steps)
        zero = -point(low / scale)
        return (rounded(weight / scale) + zero).clamp(0, 2**bits - 1), scale.expand(5, 1), zero.expand(5, 1)

    return quantize


def _row_min(weight):
    return weight.amin(1, keepdim=True).clamp(max=0)


def _row_max(weight):
    return weight.amax(1, keepdim=True).clamp(min=0)


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


CASES |= {
    "09.1": Case(
        [
            (lambda: 430_500 * 6 / 8 + 580 * 4, "Codes are not all"),
            (lambda: 430_500, "not a byte"),
        ],
        {"measured": 327_709},
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
}


# ---------------------------------------------------------------- 10


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


CASES |= {
    "10.1": Case(
        [
            (lambda terms: terms * 255 * 127, "both signs"),
            (lambda terms: 127, "pull one way"),
        ],
        given={"terms": 216, "measured": 290_000.0},
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
}

# ---------------------------------------------------------------- 11


def _softmaxes(student, teacher, temperature):
    return torch.softmax(student / temperature, dim=1), torch.softmax(teacher / temperature, dim=1)


def _by_autograd(student, teacher, temperature):
    leaf = student.requires_grad_()
    (temperature**2 * kl_divergence(*(Categorical(logits=x / temperature) for x in (teacher, leaf))).mean()).backward()
    return leaf.grad


def _without_the_chain_rule(student, teacher, temperature):
    q, p = _softmaxes(student, teacher, temperature)
    return temperature**2 * (q - p) / len(student)


def _without_t_squared(student, teacher, temperature):
    q, p = _softmaxes(student, teacher, temperature)
    return (q - p) / temperature / len(student)


def _sum_over_examples(student, teacher, temperature):
    q, p = _softmaxes(student, teacher, temperature)
    return temperature * (q - p)


def _teacher_first(student, teacher, temperature):
    q, p = _softmaxes(student, teacher, temperature)
    return temperature * (p - q) / len(student)


def _at_temperature_one(student, teacher, temperature):
    q, p = _softmaxes(student, teacher, 1)
    return temperature * (q - p) / len(student)


def _soft(student, teacher, temperature):
    q, p = _softmaxes(student, teacher, temperature)
    return temperature**2 * (p * (p / q).log()).sum(1).mean()


def _mean_of_nothing(student, teacher, labels, temperature=4.0, share=0.9):
    hard = torch.nn.functional.cross_entropy(student, labels, ignore_index=-1)
    return share * _soft(student, teacher, temperature) + (1 - share) * hard


def _mean_over_the_whole_batch(student, teacher, labels, temperature=4.0, share=0.9):
    hard = torch.nn.functional.cross_entropy(student, labels, ignore_index=-1, reduction="sum") / len(labels)
    return share * _soft(student, teacher, temperature) + (1 - share) * hard


def _unknown_is_a_zero(student, teacher, labels, temperature=4.0, share=0.9):
    hard = torch.nn.functional.cross_entropy(student, labels.clamp(min=0))
    return share * _soft(student, teacher, temperature) + (1 - share) * hard


def _soft_without_t_squared(student, teacher, labels, temperature=4.0, share=0.9):
    hard = torch.nn.functional.cross_entropy(student, labels, ignore_index=-1)
    return share * _soft(student, teacher, temperature) / temperature**2 + (1 - share) * hard


CASES |= {
    "11.1": Case(
        [
            (_without_the_chain_rule, "chain rule is not"),
            (_without_t_squared, "in front of the loss"),
            (_sum_over_examples, "1 / batch"),
            (_teacher_first, "The sign"),
            (_at_temperature_one, "divided by T"),
            (_by_autograd, "on paper"),
        ]
    ),
    "11.2": Case([(lambda: 0.1, "With equal logits"), (lambda: 0.99, "divided by 20")], {"measured": 0.272}),
    "11.3": Case(
        [
            (_mean_of_nothing, "mean over nothing"),
            (_mean_over_the_whole_batch, "not over the batch"),
            (_unknown_is_a_zero, "not the digit 0"),
            (_soft_without_t_squared, "All labels are known"),
        ]
    ),
}


def test_codes_may_be_bytes():
    """Bytes minus bytes wrap around, and that is not the student's fault."""

    def in_bytes(weight, bits):
        codes, scale, zero = _row_quantizer(_row_min, _row_max)(weight, bits)
        return codes.byte(), scale, zero.byte()

    assert exercises.check("09.2", in_bytes).right


# ---------------------------------------------------------------- 12


def _words_without_a_shift(lengths):
    words = [""] * len(lengths)
    for word, (length, symbol) in enumerate(sorted((length, symbol) for symbol, length in enumerate(lengths))):
        words[symbol] = format(word, f"0{length}b")[:length]
    return words


def _words_last_symbol_first(lengths):
    words, word, before = [""] * len(lengths), 0, 0
    for length, symbol in sorted((length, -symbol) for symbol, length in enumerate(lengths)):
        word <<= length - before
        words[-symbol] = format(word, f"0{length}b")
        word, before = word + 1, length
    return words


def _bits_of_entropy(symbols):
    counts = [symbols.count(0), symbols.count(1)]
    return sum(-n * math.log2(n / len(symbols)) for n in counts if n)


def _bits_counted_too_soon(symbols):
    bits, ones = 0.0, 0
    for before, symbol in enumerate(symbols):
        ones += symbol
        p = (ones + 0.5) / (before + 2)
        bits -= math.log2(p if symbol else 1 - p)
    return bits


def _bits_of_ones_only(symbols):
    bits, ones = 0.0, 0
    for before, symbol in enumerate(symbols):
        bits -= math.log2((ones + 0.5) / (before + 1))
        ones += symbol
    return bits


CASES |= {
    "12.1": Case(
        [
            (_words_without_a_shift, "shifted left"),
            (_words_last_symbol_first, "smaller number first"),
            (lambda lengths: [format(symbol, "b") for symbol in range(len(lengths))], "leading zeros"),
        ]
    ),
    "12.2": Case([(lambda: 1_838, "Two kinds of news"), (lambda: 54_338, "not a whole bit")], {"measured": 9_280}),
    "12.3": Case(
        [
            (_bits_of_entropy, "does not know yet"),
            (_bits_counted_too_soon, "after it was coded"),
            (_bits_of_ones_only, "probability 1 - p"),
        ]
    ),
}


# ---------------------------------------------------------------- 13


def _largest_numbers(weight):
    fours = weight.unflatten(1, (-1, 4))
    places = fours.topk(2, dim=-1).indices.sort(-1).values
    return fours.gather(-1, places).flatten(1), places.flatten(1).to(torch.uint8)


def _by_size(weight):
    fours = weight.unflatten(1, (-1, 4))
    places = fours.abs().topk(2, dim=-1).indices
    return fours.gather(-1, places).flatten(1), places.flatten(1).to(torch.uint8)


def _magnitudes(weight):
    fours = weight.unflatten(1, (-1, 4))
    places = fours.abs().topk(2, dim=-1).indices.sort(-1).values
    return fours.abs().gather(-1, places).flatten(1), places.flatten(1).to(torch.uint8)


def _by_the_median(table, budget_ms):
    kept = table[table["p50_ms"] <= budget_ms]
    if kept.empty:
        return None
    row = kept.loc[kept["images_per_s"].idxmax()]
    return row["threads"], row["batch"]


def _the_fastest_call(table, budget_ms):
    kept = table[table["p95_ms"] <= budget_ms]
    if kept.empty:
        return None
    row = kept.loc[kept["p95_ms"].idxmin()]
    return row["threads"], row["batch"]


def _always_one(table, budget_ms):
    kept = table[table["p95_ms"] <= budget_ms]
    row = table.iloc[0] if kept.empty else kept.loc[kept["images_per_s"].idxmax()]
    return row["threads"], row["batch"]


CASES |= {
    "13.1": Case(
        [
            (lambda latency_ms, batch: 1 / latency_ms, "1,000 milliseconds"),
            (lambda latency_ms, batch: batch * 1000 / latency_ms, "not arithmetic"),
        ],
        {"latency_ms": 0.41, "batch": 64, "measured": 2_710.0},
    ),
    "13.2": Case([(_largest_numbers, "take abs"), (_by_size, "topk sorts"), (_magnitudes, "their signs")]),
    "13.3": Case(
        [(_by_the_median, "not the median"), (_the_fastest_call, "not the fastest"), (_always_one, "return None")]
    ),
}


# ---------------------------------------------------------------- 14


def _no_ties(names, lead):
    return list(range(1, len(names) + 1))


def _neighbours_only(names, lead):
    ranks = [1]
    for a, b in itertools.pairwise(names):
        ranks.append(len(ranks) + 1 if lead(a, b)[0] > 0 else ranks[-1])
    return ranks


def _dense_ranks(names, lead):
    ranks = [1]
    for place in range(1, len(names)):
        begins = all(lead(a, b)[0] > 0 for a in names[:place] for b in names[place:])
        ranks.append(ranks[-1] + begins)
    return ranks


def _ranks_by_name(names, lead):
    return dict(zip(names, range(1, len(names) + 1), strict=True))


class _Digits(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(784, 10)

    def forward(self, images):
        return self.fc(images.flatten(1))


def _hand_in(source, *, network=None, file="model.pack"):
    def submit(train, folder):
        from helpers import packing

        packing.write_dense(network or _Digits(), folder / file)
        (folder / "model.py").write_text(source)

    return submit


_DIGITS = """
class Digits(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)
    def forward(self, images):
        return self.fc(images.flatten(1))
build = Digits
"""


def _patterns(count):
    """Ten patterns with noise, which a network tells apart after a few hundred examples."""
    generator = torch.Generator().manual_seed(0)
    labels, patterns = torch.arange(count) % 10, torch.randn(10, 1, 28, 28, generator=generator)
    return Split(patterns[labels] + 0.3 * torch.randn(count, 1, 28, 28, generator=generator), labels)


CASES |= {
    "14.1": Case(
        [
            (_no_ties, "decides nothing"),
            (_neighbours_only, "Neighbours are not enough"),
            (_dense_ranks, "after two firsts"),
            (_ranks_by_name, "a list with one rank"),
        ]
    ),
    "14.2": Case(
        [
            (lambda: "pruned", "its four bytes"),
            (lambda: "fewer bits", "four marks"),
            (lambda: "thin and dense", "starts from nothing"),
            (lambda: "hope", "one of these texts"),
        ],
        {"measured": {"pruned": 0.7, "fewer bits": 0.9816, "pruned, 4 bits": 0.991, "thin and dense": 0.98}},
    ),
    "14.3": Case(
        [
            (_hand_in(_DIGITS), "Fewer weights or fewer bits"),
            (_hand_in("from helpers import checkpoints\n" + _DIGITS), "the file that is weighed"),
            (_hand_in(_DIGITS, file="weights.pack"), "Write two files"),
        ],
        {"train": _patterns(1_000), "unseen": _patterns(200), "budget": judging.Budget(6_000, 0.9), "rounds": 20},
    ),
}


# ---------------------------------------------------------------- 15


def _parameters(model):
    return sum(p.numel() for p in model.parameters())


def _by_parameters(before, after, example):
    return _parameters(after) < _parameters(before)


def _by_zeros(before, after, example):
    counts = [sum(int((p != 0).sum()) for p in model.parameters()) for model in (before, after)]
    return counts[1] < counts[0]


def _by_macs(before, after, example):
    return measure.count_macs(after, example) < measure.count_macs(before, example)


def _by_parameters_and_macs(before, after, example):
    return _by_parameters(before, after, example) and _by_macs(before, after, example)


def _not_more(before, after, example):
    return _parameters(after) <= _parameters(before)


def _by_backward(loss, student, teacher, inputs, labels):
    loss(student, teacher, inputs, labels).backward()
    found = {"teacher gets gradients"} if any(p.grad is not None for p in teacher.parameters()) else set()
    same = loss(student, teacher, inputs, labels) == loss(student, teacher, inputs, labels.flip(0))
    return found | ({"labels are ignored"} if same else set())


def _teacher_only(loss, student, teacher, inputs, labels):
    wanted = [p for p in teacher.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss(student, teacher, inputs, labels), wanted, allow_unused=True) if wanted else []
    return {"teacher gets gradients"} if any(g is not None for g in gradients) else set()


def _by_requires_grad(loss, student, teacher, inputs, labels):
    found = {"teacher gets gradients"} if any(p.requires_grad for p in teacher.parameters()) else set()
    same = loss(student, teacher, inputs, labels) == loss(student, teacher, inputs, labels.flip(0))
    return found | ({"labels are ignored"} if same else set())


CASES |= {
    "15.1": Case(
        [
            (_not_more, "not at most as much"),
            (_by_zeros, "Zeros are stored"),
            (_by_parameters, "do more work"),
            (_by_macs, "with all of its numbers"),
            (_by_parameters_and_macs, "shapes of the answers"),
        ]
    ),
    "15.2": Case(
        [
            (_by_backward, "stores none"),
            (_teacher_only, "with other labels the second time"),
            (_by_requires_grad, "allow_unused=True"),
        ]
    ),
    "15.3": Case(
        [(lambda: 0.9, "nearly all of the network"), (lambda: 0.9 * 200 / 1_020_400, "Nine tenths of 20,200")],
        {"measured": 0.9 * 20_200 / 1_020_400},
    ),
}


# ---------------------------------------------------------------- every exercise


def in_notebooks() -> dict[str, Any]:
    """Return id → source file of each exercise that a notebook checks."""
    return {match["id"]: path for path in SOURCES for match in CHECK.finditer(path.read_text())}


@cache
def answer(exercise_id: str, *, cleared: bool) -> Any:
    """Return the notebook's own answer to an exercise, or with `cleared` what a student finds.

    Of the notebook, its imports, functions, classes and literal constants are executed, and nothing else.
    """
    notebook = jupytext.read(in_notebooks()[exercise_id])
    if cleared:
        notebook.metadata.setdefault("kernelspec", {})["language"] = "python"
        notebook, _ = ClearSolutions(enforce_metadata=False).preprocess(notebook, {})
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    tree = ast.parse(re.sub(r"^[%!].*$", "", code, flags=re.MULTILINE))
    tree.body = [node for node in tree.body if is_definition(node)]
    namespace: dict[str, Any] = {"__name__": "notebook"}
    exec(compile(tree, str(in_notebooks()[exercise_id]), "exec"), namespace)
    names = [match["name"] for match in CHECK.finditer(code) if match["id"] == exercise_id]
    return namespace[names[0]]


def is_definition(node: ast.stmt) -> bool:
    """Return whether a statement imports, defines, or names a literal."""
    if isinstance(node, ast.Assign):
        computed = any(isinstance(part, ast.Name | ast.Call) for part in ast.walk(node.value))
        return not computed and all(isinstance(target, ast.Name) for target in node.targets)
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)


def test_each_exercise_has_a_case_a_check_and_a_place():
    assert set(exercises.registered()) == set(CASES)
    missing = {id for id in CASES if any(p.name.startswith(id[:2]) for p in SOURCES)} - set(in_notebooks())
    assert not missing, "these exercises stand in no notebook"
    assert set(in_notebooks()) <= set(CASES), "these exercises have no check"


def test_each_notebook_has_two_or_three_exercises_with_marked_solutions():
    for path in SOURCES:
        ids = [id for id, source in in_notebooks().items() if source == path]
        text = path.read_text()
        assert len(ids) in (2, 3), path.name
        assert text.count("### BEGIN SOLUTION") == text.count("### END SOLUTION") == len(ids), path.name


@pytest.mark.parametrize("exercise_id", sorted(CASES.keys() & in_notebooks()))
def test_the_solution_is_right(exercise_id):
    feedback = exercises.check(exercise_id, answer(exercise_id, cleared=False), **CASES[exercise_id].given)
    assert feedback.right, feedback


@pytest.mark.parametrize("exercise_id", sorted(CASES.keys() & in_notebooks()))
def test_the_empty_answer_is_called_empty(exercise_id):
    feedback = exercises.check(exercise_id, answer(exercise_id, cleared=True), **CASES[exercise_id].given)
    assert not feedback.right
    assert "still empty" in feedback.sentence


@pytest.mark.parametrize("exercise_id", CASES)
def test_wrong_answers_get_hints_of_their_own(exercise_id):
    case = CASES[exercise_id]
    hints = []
    for wrong, words in case.wrong:
        feedback = exercises.check(exercise_id, wrong, **case.given)
        assert not feedback.right, f"{exercise_id} accepts the wrong answer whose hint says {words!r}"
        assert "raised" not in feedback.sentence, feedback
        assert words in feedback.hint, feedback
        hints.append(feedback.hint)
    assert len(set(hints)) == len(hints) >= 2


@pytest.mark.parametrize("exercise_id", CASES)
@pytest.mark.parametrize("nonsense", [None, 3, "text", lambda *a, **k: None, lambda *a, **k: "text"])
def test_nonsense_is_answered(exercise_id, nonsense):
    feedback = exercises.check(exercise_id, nonsense, **CASES[exercise_id].given)
    assert not feedback.right
    assert feedback.sentence


# ---------------------------------------------------------------- the machinery


@pytest.fixture
def registry(monkeypatch):
    """Let a test register exercise 99.1 for itself."""
    monkeypatch.setattr(exercises, "_CHECKS", {})
    return exercises.exercise("99.1")


def test_right(registry):
    registry(lambda answer: None)
    assert exercises.check("99.1", 1) == Feedback("99.1", True, "")
    assert repr(exercises.check("99.1", 1)).startswith("Exercise 99.1 — right.")


def test_wrong_shows_the_sentence_and_folds_the_hint(registry):
    @registry
    def _(answer):
        raise Wrong("Two is < three.", hint="Count <again>.")

    feedback = exercises.check("99.1", 2)
    assert repr(feedback) == "Exercise 99.1 — not yet. Two is < three.\nHint: Count <again>."
    html = feedback._repr_html_()
    assert "Two is &lt; three." in html
    assert "<details><summary>A hint</summary><p>Count &lt;again&gt;.</p></details>" in html


@pytest.mark.parametrize("error", [ValueError("bad\nline two"), KeyError("x"), AssertionError(), ZeroDivisionError()])
def test_an_answer_that_raises_is_reported_in_one_sentence(registry, error):
    @registry
    def _(answer):
        raise error

    feedback = exercises.check("99.1", None)
    assert not feedback.right
    assert type(error).__name__ in feedback.sentence
    assert "\n" not in feedback.sentence


def test_given_is_passed_on(registry):
    registry(lambda answer, measured: f"{answer} and {measured}")
    assert exercises.check("99.1", 1, measured=2).sentence == "1 and 2"


def test_the_random_state_is_left_alone(registry):
    registry(lambda answer: torch.manual_seed(7) and None)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    exercises.check("99.1", None)
    assert torch.equal(torch.rand(1), expected)


def test_ids_are_unique_and_known(registry):
    registry(lambda answer: None)
    with pytest.raises(ValueError, match="'99.1' is registered twice"):
        exercises.exercise("99.1")(lambda answer: None)
    with pytest.raises(ValueError, match="exercise_id='99.2' is unknown; allowed: 99.1"):
        exercises.check("99.2", None)


@pytest.mark.parametrize(
    "value, right, hint", [(50, True, ""), (200, True, ""), (49, False, "more"), (201, False, "less")]
)
def test_within_factor(registry, value, right, hint):
    @registry
    def _(guess):
        return exercises.within_factor(guess, 100, factor=2, unit="images", too_low="more", too_high="less")

    feedback = exercises.check("99.1", lambda: value)
    assert (feedback.right, feedback.hint) == (right, hint)
    assert feedback.sentence == f"You predicted {value} images; measured: 100."


@pytest.mark.parametrize("value", [None, "many", True, float("nan"), 0, -3])
def test_within_factor_wants_a_positive_number(value):
    with pytest.raises(Wrong, match="one positive number"):
        exercises.within_factor(lambda: value, 100, factor=2, unit="images", too_low="", too_high="")
