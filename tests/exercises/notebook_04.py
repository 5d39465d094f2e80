"""Plausible wrong answers to the exercises of notebook 04, each with words of its own hint."""

import copy

import torch

from tests.exercises.examples import Case


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


CASES = {
    "04.1": Case(
        [
            (lambda inputs, filters, size, height, width: inputs * filters * size**2, "every pixel"),
            (lambda inputs, filters, size, height, width: filters * size**2 * height * width, "input channels"),
            (lambda inputs, filters, size, height, width: inputs * filters * size * height * width, "a square"),
            (lambda inputs, filters, size, height, width: inputs + filters, "Multiply"),
        ]
    ),
    "04.2": Case(
        [(lambda: 1.0, "smaller matrices"), (lambda: 2.2, "did not fall as much")],
        given={"measured": 1.6, "macs_ratio": 2.1},
    ),
    "04.3": Case(
        [
            (_interleaved_wrongly, "repeat_interleave"),
            (_one_column_a_channel, "columns of the linear layer"),
            (_zeroed_not_removed, "still there"),
            (_all_biases_kept, "has a bias"),
            (_cut_in_place, "Work on copies"),
        ]
    ),
    "04.4": Case(
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
