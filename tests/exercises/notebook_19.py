"""Plausible wrong answers to the exercises of notebook 19, each with words of its own hint."""

import itertools

import torch

from helpers.capstone import judging
from helpers.data import Split
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


class _Digits(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(784, 10)

    def forward(self, images):
        return self.fc(images.flatten(1))


def _hand_in(source, *, network=None, file="model.pack"):
    def submit(train, folder):
        from helpers import files

        files.write_dense(network or _Digits(), folder / file)
        (folder / "model.py").write_text(source)

    return submit


_DIGITS = """
class Digits(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)
    def forward(self, images):
        return self.fc(images.flatten(1))
build = Digits
"""


def _patterns(count):
    """Ten patterns with noise, which a network tells apart after a few hundred examples."""
    generator = torch.Generator().manual_seed(0)
    labels, patterns = torch.arange(count) % 10, torch.randn(10, 1, 28, 28, generator=generator)
    return Split(patterns[labels] + 0.3 * torch.randn(count, 1, 28, 28, generator=generator), labels)


CASES = {
    "19.1": Case(
        [
            (_no_ties, "decides nothing"),
            (_neighbours_only, "Neighbours are not enough"),
            (_dense_ranks, "after two firsts"),
            (_ranks_by_name, "a list with one rank"),
        ]
    ),
    "19.2": Case(
        [
            (lambda: "pruned", "its four bytes"),
            (lambda: "fewer bits", "four marks"),
            (lambda: "thin and dense", "starts from nothing"),
            (lambda: "hope", "one of these texts"),
        ],
        {"measured": {"pruned": 0.7, "fewer bits": 0.9816, "pruned, 4 bits": 0.991, "thin and dense": 0.98}},
    ),
    "19.3": Case(
        [
            (_hand_in(_DIGITS), "Fewer weights or fewer bits"),
            (_hand_in("from helpers import checkpoints\n" + _DIGITS), "the file that is weighed"),
            (_hand_in(_DIGITS, file="weights.pack"), "Write two files"),
        ],
        {"train": _patterns(1_000), "unseen": _patterns(200), "budget": judging.Budget(6_000, 0.9), "rounds": 20},
    ),
}
