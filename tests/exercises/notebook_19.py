"""Plausible wrong answers to the exercises of notebook 19, each with words of its own hint."""

import itertools

from tests.exercises.examples import Case


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


CASES = {
    "19.1": Case(
        [
            (lambda a, b: a[0] >= b[0] and a[1] <= b[1], "Twins do not dominate"),
            (lambda a, b: a[0] > b[0] and a[1] < b[1], "Better in one of the two"),
            (lambda a, b: a[0] >= b[0] and a != b, "worse in either"),
        ]
    ),
    "19.3": Case(
        [
            (lambda: 3.6, "with 1/3"),
            (lambda: 18.0, "the logarithm"),
        ],
        {"measured": 5.19},
    ),
    "19.4": Case(
        [
            (len, "that is one network"),
            (lambda recorded: len(set(recorded)), "may agree by chance"),
            (lambda recorded: len(recorded) if len({row[0] for row in recorded}) > 1 else 1, "all three numbers"),
        ]
    ),
    "19.2": Case(
        [
            (_no_ties, "decides nothing"),
            (_neighbours_only, "Neighbours are not enough"),
            (_dense_ranks, "after two firsts"),
            (_ranks_by_name, "a list with one rank"),
        ]
    ),
}
