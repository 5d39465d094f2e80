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


def _kept(parameters, left, *, power=2):
    return sum(share * left[stage] ** power for stage, share in parameters.items())


CASES = {
    "08.1": Case(
        [
            (lambda inputs, outputs: (inputs + outputs) / 2, "Count pairs"),
            (lambda inputs, outputs: 1 - inputs * outputs, "share that is left"),
            (lambda inputs, outputs: inputs * outputs * 9, "One filter for each pair"),
        ]
    ),
    "08.2": Case(
        [
            (lambda parameters, left: 1 / _kept(parameters, left, power=1), "squared"),
            (lambda parameters, left: _kept(parameters, left), "before, divided by after"),
            (lambda parameters, left: len(left) / sum(share**2 for share in left.values()), "weigh each"),
            (lambda parameters, left: 2.0, "Add them up"),
        ],
        {
            "measured": 3.3,
            "parameters": {"conv1": 0.01, "layer1": 0.02, "layer2": 0.05, "layer3": 0.19, "layer4": 0.73},
            "left": {"conv1": 0.9, "layer1": 0.8, "layer2": 0.7, "layer3": 0.6, "layer4": 0.5},
        },
    ),
    "08.3": Case(
        [
            (_mean_squares, "Both gates close at once"),
            (lambda first, second: (first + second).mean(0) ** 2, "square first"),
            (lambda first, second: ((first + second) ** 2).mean(1), "dimension 0"),
            (lambda first, second: (first + second).abs().mean(0), "square the sum"),
            (_tied_in_place, "not first += second"),
        ]
    ),
    "08.4": Case(
        [
            (_unpaired, "photograph by photograph"),
            (lambda before, after: _paired(after, before), "before minus after"),
            (lambda before, after: _paired(before, after, scale=1.0), "one photograph in a hundred"),
            (lambda before, after: _paired(before, after, root=False), "root of n"),
            (lambda before, after: (before.float() - after.float()).mean() * 100, "two numbers"),
        ]
    ),
}
