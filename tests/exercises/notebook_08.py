"""Plausible wrong answers to the exercises of notebook 08, each with words of its own hint."""

from tests.exercises.examples import Case


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


CASES = {
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
