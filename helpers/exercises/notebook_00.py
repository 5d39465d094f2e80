"""The exercises of notebook 00."""

import math
from collections.abc import Callable

import torch

from helpers.exercises.checking import Wrong, exercise, within_factor
from helpers.exercises.properties import is_like


@exercise("00.1")
def _bytes_needed(bytes_needed: Callable[[int, int], float]) -> str:
    for count, bits in ((1_000, 32), (1_000, 8), (431_080, 32), (20, 2)):
        found = bytes_needed(count, bits)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise Wrong(f"Your function returned {found!r}.", hint="Return one number: return count * …")
        expected = count * bits / 8
        if found == expected:
            continue
        said = f"{count:,} numbers of {bits} bits: you get {found:,.6g} bytes where {expected:,.6g} are right."
        if found == count * bits:
            raise Wrong(said, hint="That is the number of bits. Eight of them make one byte.")
        raise Wrong(said, hint="More bits take more bytes: multiply count by bits, then divide.")
    return "With 32 bits that is four bytes a number; with 8 bits it is one."


@exercise("00.2")
def _changed_per_thousand(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        max(measured, 1.0),
        factor=4,
        unit="of 1,000 digits",
        too_low="Half of the weights were almost free because they were tiny. The last tenths before the edge are not.",
        too_high="The largest tenth carries most of each sum: many digits are far from any other answer.",
    )


@exercise("00.3")
def _round_weight(round_weight: Callable[[torch.Tensor, int], torch.Tensor]) -> str:
    for bits in (8, 5, 3, 2):
        weight = torch.randn(20, 50)
        values, last = weight.flatten().tolist(), 2 ** (bits - 1) - 1
        step = max(abs(value) for value in values) / last
        given = weight.clone()
        found = round_weight(given, bits)
        is_like(found, weight)
        levels = len(set(found.flatten().tolist()))
        if levels > 2 * last + 1:
            raise Wrong(
                f"With {bits} bits there are {2 * last + 1} levels; your weights stand on {levels} of them.",
                hint="The last level is 127 with 8 bits and 3 with 3 bits: find it from bits, with a power of two.",
            )
        worst = max(abs(a - b) for a, b in zip(found.flatten().tolist(), values, strict=True))
        if worst > 0.501 * step:
            raise Wrong(
                f"With {bits} bits a weight moved by {worst / step:.2f} steps; a level is always within half a step.",
                hint="The step is the largest magnitude divided by the last level; then round, do not cut off.",
            )
        if not torch.equal(given, weight):
            raise Wrong(
                "The weight that came in was changed.",
                hint="Return a new tensor: round() does, round_() and *= work in place.",
            )
    return "Each weight stands on the nearest level, for every number of bits."


@exercise("00.4")
def _digits_until_even(digits: Callable[[int, int, int], int]) -> str:
    for macs, parameters in ((2_293_000, 431_080), (1_000_000, 500_000)):
        _is_even(digits(macs, parameters, 32), macs * 3.7, macs * 0.9, parameters * 640, bits=32)
        _is_even(digits(macs, parameters, 8), macs * 0.2, macs * 0.03, parameters * 160, bits=8)
    return "More digits: 8 bits make reading four times cheaper, and arithmetic twenty times."


def _is_even(found: int, multiplying: float, adding: float, fetching: float, *, bits: int) -> None:
    """Raise Wrong, with the hint that fits the mistake, unless `found` digits are the fewest; costs in picojoules."""
    if isinstance(found, bool) or not isinstance(found, int | float) or found != found // 1:
        raise Wrong(f"Your function returned {found!r}.", hint="Return a whole number of digits: math.ceil.")
    expected = math.ceil(fetching / (multiplying + adding))
    if found == expected:
        return
    hints = {
        expected - 1: "With so many digits fetching still costs more: round up, not down.",
        math.ceil(fetching / multiplying): "One MAC is one multiplication and one addition.",
        math.ceil(
            fetching * 32 / bits / (multiplying + adding)
        ): "One read brings 32 bits: four 8-bit weights at once.",
    }
    raise Wrong(
        f"With {bits} bits you get {found:,.0f} digits where {expected:,} are right.",
        hint=hints.get(int(found), "Fetching is paid once, arithmetic for each digit: divide the one by the other."),
    )
