"""Plausible wrong answers to the exercises of notebook 18, each with words of its own hint."""

import torch

from tests.exercises.examples import Case


def _masked(scores):
    groups = scores.reshape(-1, 4)
    return torch.zeros_like(groups, dtype=torch.bool).scatter(1, groups.topk(2, dim=1).indices, True)


def _half_of_each_row(weight, input_size):
    scores = weight.abs() * input_size
    return scores > scores.median(dim=1, keepdim=True).values


def _exits(probabilities, threshold, *, first=1, last_answers=False, forced=True):
    sure = probabilities.max(dim=2).values >= threshold
    if forced:
        sure[-1] = True
    used = sure.int().argmax(dim=0)
    texts = torch.arange(probabilities.shape[1])
    answers = probabilities.argmax(dim=2)[torch.full_like(used, -1) if last_answers else used, texts]
    return answers, used + first


CASES = {
    "18.1": Case(
        [
            (lambda dimensions, hidden: 2 * dimensions, "The feed-forward part is work"),
            (lambda dimensions, hidden: hidden, "four matrices of d × d"),
            (lambda dimensions, hidden: 4 * dimensions + 2 * hidden, "Divide both sides"),
        ]
    ),
    "18.2": Case(
        [
            (lambda weight, size: _masked(weight.abs()).reshape(weight.shape), "Multiply each column"),
            (lambda weight, size: ~_masked(weight.abs() * size).reshape(weight.shape), "True is for what stays"),
            (lambda weight, size: _masked(weight.abs() * size), "groups of 4 and back"),
            (_half_of_each_row, "neighbours in a row"),
        ]
    ),
    "18.3": Case(
        [
            (lambda p, t: _exits(p, t, first=0), "counted from 1"),
            (lambda p, t: _exits(p, t, last_answers=True), "where the text stopped"),
            (lambda p, t: _exits(p, t, forced=False), "the last layer answers"),
            (lambda p, t: _exits(p, t)[0], "answers, and layers used|return answers, used"),
        ]
    ),
    "18.4": Case(
        [(lambda: 0.5, "nothing in common"), (lambda: 2.0, "rounded by itself")],
        given={"measured": 1.0},
    ),
}
