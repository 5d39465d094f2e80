"""Plausible wrong answers to the exercises of notebook 13, each with words of its own hint."""

import torch
from torch.nn import functional as F

from tests.exercises.examples import Case


def _sum(answers):
    return torch.stack(answers).sum(dim=0)


def _mean_of_all(answers):
    return torch.stack(answers).mean()


def _mean_of_probabilities(answers):
    return torch.stack(answers).softmax(dim=2).mean(dim=0)


def _first_teacher(answers):
    return answers[0]


def _mean_of_logits(answers):
    return torch.stack(answers).mean(dim=0)


def _log_of_mean(answers):
    return torch.stack(answers).softmax(dim=2).mean(dim=0).log()


def _unnormalized(answers):
    return torch.stack(answers).logsumexp(dim=0)


def _strength(features):
    return features.square().sum(dim=1, keepdim=True)


def _not_scaled(features, size):
    return F.adaptive_avg_pool2d(_strength(features), size).flatten(1)


def _pooled_first(features, size):
    return F.normalize(_strength(F.adaptive_avg_pool2d(features, size)).flatten(1), dim=1)


def _not_flattened(features, size):
    return F.adaptive_avg_pool2d(_strength(features), size)


def _magnitudes(features, size):
    strength = features.abs().sum(dim=1, keepdim=True)
    return F.normalize(F.adaptive_avg_pool2d(strength, size).flatten(1), dim=1)


CASES = {
    "13.1": Case(
        [
            (_sum, "their sum"),
            (_mean_of_all, "that of the teachers"),
            (_mean_of_probabilities, "Those are probabilities"),
            (_first_teacher, "dim=0 is what"),
        ]
    ),
    "13.2": Case(
        [
            (_mean_of_logits, "mean of the logits again"),
            (_mean_of_probabilities, "You return probabilities"),
            (_log_of_mean, "log 0"),
            (_unnormalized, "become log-probabilities"),
        ]
    ),
    "13.3": Case(
        [
            (_not_scaled, "Scale last"),
            (_pooled_first, "Square first"),
            (_not_flattened, "flatten the places"),
            (_magnitudes, "The order is"),
        ]
    ),
    "13.4": Case([(lambda: 0.475, "not the probability"), (lambda: 0.95, "Halve that")], {"measured": 0.8134}),
}
