"""Plausible wrong answers to the exercises of notebook 06, each with words of its own hint."""

import torch

from tests.exercises.examples import Case


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


CASES = {
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
