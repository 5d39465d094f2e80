"""The exercises of notebook 05."""

from collections.abc import Callable

import torch

from helpers.exercises.checking import Wrong, exercise, within_factor
from helpers.exercises.properties import is_like


@exercise("05.1")
def _smallest_difference(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.2,
        unit="points",
        too_low="Three seeds leave two degrees of freedom: the quantile of t is then 4.3, not 2.",
        too_high="The mean of three seeds spreads less than a single one: divide s by the root of 3.",
    )


@exercise("05.2")
def _keep_signs(keep_signs: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> str:
    for shape in ((4, 6), (5, 3, 3, 3)):
        early = torch.randn(shape)
        mask = early.abs() > 0.8
        given = early.clone()
        found = keep_signs(given, mask.clone())
        is_like(found, early)
        if not torch.equal(given, early):
            raise Wrong(
                "The early weights were changed.", hint="Return a new tensor: sign() makes one, sign_() does not."
            )
        if (found[~mask] != 0).any():
            raise Wrong("Some pruned weights are not zero.", hint="Multiply by the mask: it is 0 where a weight goes.")
        kept = [
            abs(value) for value, stays in zip(early.flatten().tolist(), mask.flatten().tolist(), strict=True) if stays
        ]
        sizes, expected = found[mask].abs(), sum(kept) / len(kept)
        if not torch.allclose(sizes, sizes[0].expand_as(sizes)):
            raise Wrong(
                "The kept weights have different magnitudes, so they know more than their signs.",
                hint="Replace each kept weight by its sign, +1 or -1, times one number for the whole layer.",
            )
        if not torch.equal(found[mask].sign(), early[mask].sign()):
            raise Wrong(
                "Some kept weights have another sign than the early ones.",
                hint="early.sign() gives +1 and -1; the one number that it is multiplied by must be positive.",
            )
        if abs(float(sizes[0]) / expected - 1) > 1e-4:
            raise Wrong(
                f"The magnitude should be {expected:.3f}, and is {float(sizes[0]):.3f}.",
                hint="The mean magnitude of the weights that are kept: index with the mask, then abs(), then mean().",
            )
    return "A tensor of signs: one bit for each weight that is left."


@exercise("05.3")
def _scratch_budget(budget: Callable[[float, float, float, float, int], int]) -> str:
    bills = {  # macs, small_macs, epochs, retraining, rounds: the answer, counted by hand
        (100, 50, 10, 0, 1): 20,
        (100, 50, 10, 4, 1): 24,
        (100, 40, 3, 1, 1): 8,  # 7.5 of the dense training, 1 of retraining
        (225, 100, 3, 1, 2): 9,  # 3 × 225, then 150 and 100
        (675, 200, 2, 1, 3): 11,  # 2 × 675, then 450, 300 and 200
    }
    hints = {
        (100, 50, 10, 0, 1): "An epoch of the small network costs small_macs: divide what was spent by that.",
        (100, 50, 10, 4, 1): "The epochs after the cut are on the bill, at the price of the network that is cut.",
        (100, 40, 3, 1, 1): "Round down, to a whole number (int): half an epoch too many is more than the budget.",
    }
    between = "The networks between the first cut and the last are larger than small_macs: each has its own price."
    for given, expected in bills.items():
        found = budget(*given)
        if isinstance(found, bool) or not isinstance(found, int):
            raise Wrong(
                f"Your function returned {found!r}.", hint="Return one whole number: int() cuts a fraction off."
            )
        if found != expected:
            words = ("macs", "small_macs", "epochs", "retraining", "rounds")
            said = ", ".join(f"{name}={value}" for name, value in zip(words, given, strict=True))
            raise Wrong(f"{said}: {expected} epochs are right, not {found}.", hint=hints.get(given, between))
    return "The whole bill: the large network, and every network on the way."


@exercise("05.4")
def _false_tables(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.35,
        unit="of the tables",
        too_low="One pair is wrong one time in twenty. A table has ten pairs, and each has its own chance to be wrong.",
        too_high="The pairs are not independent: one way with lucky seeds is in four of them, and they fail together.",
    )
