"""Plausible wrong answers to the exercises of notebook 06, each with words of its own hint."""

import torch

from tests.exercises.examples import Case


def _max_with_padding(vectors, tokens):
    return vectors.amax(dim=1)


def _max_with_zeros(vectors, tokens):
    return (vectors * (tokens != 1).unsqueeze(2)).amax(dim=1)


def _max_over_the_batch(vectors, tokens):
    return vectors.masked_fill((tokens == 1).unsqueeze(2), -torch.inf).amax(dim=0)


def _max_in_place(vectors, tokens):
    return vectors.masked_fill_((tokens == 1).unsqueeze(2), -torch.inf).amax(dim=1)


def _mean(vectors, tokens):
    return vectors.masked_fill((tokens == 1).unsqueeze(2), 0).mean(dim=1)


def _random_reviews(film, share, seed):
    order = torch.randperm(len(film), generator=torch.Generator().manual_seed(seed))
    return torch.isin(torch.arange(len(film)), order[: int(share * len(film))])


def _share_of_films(film, share, seed):
    names = film.unique()
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    return torch.isin(film, names[order][: round(share * len(names))])


def _whole_films(film, share, order):
    names, counts = film.unique(return_counts=True)
    before = counts[order].cumsum(0) - counts[order]
    return torch.isin(film, names[order][before < share * len(film)])


def _the_first_films(film, share, seed):
    return _whole_films(film, share, torch.arange(len(film.unique())))


def _another_draw_each_time(film, share, seed):
    return _whole_films(film, share, torch.randperm(len(film.unique())))


CASES = {
    "06.1": Case(
        [
            (lambda embedding, linear, fraction: fraction, "share of the linear weights"),
            (lambda embedding, linear, fraction: fraction * linear, "how many weights go"),
            (lambda embedding, linear, fraction: fraction * linear / max(1, embedding), "below it"),
        ]
    ),
    "06.2": Case(
        [
            (_max_over_the_batch, "over the words"),
            (_max_with_padding, "never be the largest"),
            (_max_with_zeros, "Minus infinity"),
            (_mean, "no more"),
            (_max_in_place, "new tensor"),
        ]
    ),
    "06.3": Case(
        [
            (_random_reviews, "not reviews"),
            (_share_of_films, "different numbers"),
            (_the_first_films, "Let a generator"),
            (_another_draw_each_time, "of its own"),
        ]
    ),
    "06.4": Case([(lambda: 0.3, "more than half"), (lambda: 0.98, "rest is long")], {"measured": 0.73}),
}
