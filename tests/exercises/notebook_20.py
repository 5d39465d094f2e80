"""Plausible wrong answers to the exercises of notebook 20, each with words of its own hint."""

import torch

from helpers.capstone import judging
from helpers.data import Split
from tests.exercises.examples import Case


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
    "20.1": Case(
        [
            (lambda weights, bits, biases: weights * bits / 8, "The biases stay floats"),
            (lambda weights, bits, biases: weights * bits + 32 * biases, "Those are bits"),
            (lambda weights, bits, biases: weights * 4 + 4 * biases, "divided by eight"),
        ]
    ),
    "20.3": Case(
        [
            (lambda limit, bits: int((limit - 3_400 * bits / 8) // (266 * bits / 8)), "Each unit brings a bias"),
            (lambda limit, bits: int((limit - 3_400 * bits / 8 - 136) // (266 * bits / 8 + 4)) + 1, "Round down"),
            (lambda limit, bits: limit // 266, "does not depend on the units"),
        ]
    ),
    "20.2": Case(
        [
            (lambda: "pruned", "its four bytes"),
            (lambda: "fewer bits", "four marks"),
            (lambda: "thin and dense", "starts from nothing"),
            (lambda: "hope", "one of these texts"),
        ],
        {"measured": {"pruned": 0.7, "fewer bits": 0.9816, "pruned, 4 bits": 0.991, "thin and dense": 0.98}},
    ),
    "20.4": Case(
        [
            (_hand_in(_DIGITS), "Fewer weights or fewer bits"),
            (_hand_in("from helpers import checkpoints\n" + _DIGITS), "the file that is weighed"),
            (_hand_in(_DIGITS, file="weights.pack"), "Write two files"),
        ],
        {"train": _patterns(1_000), "unseen": _patterns(200), "budget": judging.Budget(6_000, 0.9), "rounds": 20},
    ),
}
