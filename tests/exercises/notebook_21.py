"""Plausible wrong answers to the exercises of notebook 21, each with words of its own hint."""

import torch

from helpers import measure
from tests.exercises.examples import Case


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


def _mean_of_shares(model):
    return sum(float((p == 0).float().mean()) for p in model.parameters()) / len(list(model.parameters()))


def _linear_only(model):
    return next(float((m.weight == 0).float().mean()) for m in model if isinstance(m, torch.nn.Linear))


def _number_of_zeros(model):
    return sum(int((p == 0).sum()) for p in model.parameters())


def _not_positive(model):
    return float(torch.cat([p.flatten() for p in model.parameters()]).le(0).float().mean())


CASES = {
    "21.1": Case(
        [
            (_mean_of_shares, "Count first"),
            (_linear_only, "linear layer alone"),
            (_number_of_zeros, "A fraction is asked for"),
            (_not_positive, "over the number of all"),
        ]
    ),
    "21.2": Case(
        [
            (_not_more, "not at most as much"),
            (_by_zeros, "Zeros are stored"),
            (_by_parameters, "do more work"),
            (_by_macs, "with all of its numbers"),
            (_by_parameters_and_macs, "shapes of the answers"),
        ]
    ),
    "21.3": Case(
        [
            (_by_backward, "stores none"),
            (_teacher_only, "with other labels the second time"),
            (_by_requires_grad, "allow_unused=True"),
        ]
    ),
    "21.4": Case(
        [(lambda: 0.9, "nearly all of the network"), (lambda: 0.9 * 200 / 1_020_400, "Nine tenths of 20,200")],
        {"measured": 0.9 * 20_200 / 1_020_400},
    ),
}
