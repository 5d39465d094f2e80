"""Plausible wrong answers to the exercises of notebook 02, each with words of its own hint."""

import torch

from tests.exercises.examples import Case


def _half_of_everything(weight):
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[weight.abs().flatten().argsort()[: weight.numel() // 2]] = False
    return mask.view_as(weight)


def _two_of_four_with_signs(weight):
    groups = weight.reshape(-1, 4)
    return torch.zeros_like(groups, dtype=torch.bool).scatter(1, groups.topk(2, dim=1).indices, True).view_as(weight)


CASES: dict[str, Case] = {}
CASES["02.1"] = Case(
    [
        (lambda weight: (weight == 0).sum().item(), "counts the zeros"),
        (lambda weight: (weight != 0).float().mean().item(), "fraction that stays"),
        (lambda weight: weight.mean().item(), "True at each zero"),
    ]
)
CASES["02.2"] = Case(
    [
        (_half_of_everything, "within each four"),
        (_two_of_four_with_signs, "compare magnitudes"),
        (lambda weight: (weight.abs() > 0.5).float(), "dtype=torch.bool"),
    ]
)
CASES["02.3"] = Case(
    [
        (lambda: 4_000 * 4, "stay dense"),
        (lambda: 431_080 * 4, "1 % of its 400,000"),
    ],
    given={"measured": 144_568},
)
CASES["02.4"] = Case(
    [
        (lambda weight, following: weight.abs().sum(1), "sum of the magnitudes of the neuron's column"),
        (lambda weight, following: weight.sum(1) * following.sum(0), "opposite signs cancel"),
        (lambda weight, following: weight.abs().sum(0), "Row i of weight"),
    ],
    given={"accuracy_by": lambda score: 0.9},
)
