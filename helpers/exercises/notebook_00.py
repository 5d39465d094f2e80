"""The exercises of notebook 00."""

from collections.abc import Callable

import torch

from helpers.exercises.checking import Wrong, exercise, within_factor
from helpers.exercises.properties import is_like


@exercise("00.1")
def _changed_per_thousand(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        max(measured, 1.0),
        factor=4,
        unit="of 1,000 digits",
        too_low="Half of the weights were free because they were tiny. The last tenths before the edge are not.",
        too_high="The largest tenth carries most of each sum: many digits are far from any other answer.",
    )


@exercise("00.2")
def _round_weight(round_weight: Callable[[torch.Tensor, int], torch.Tensor]) -> str:
    for bits in (8, 5, 3, 2):
        weight = torch.randn(20, 50)
        values, last = weight.flatten().tolist(), 2 ** (bits - 1) - 1
        step = max(abs(value) for value in values) / last
        given = weight.clone()
        found = round_weight(given, bits)
        is_like(found, weight)
        marks = len(set(found.flatten().tolist()))
        if marks > 2 * last + 1:
            raise Wrong(
                f"With {bits} bits there are {2 * last + 1} marks; your weights stand on {marks} of them.",
                hint="The last mark is 127 with 8 bits and 3 with 3 bits: find it from bits, with a power of two.",
            )
        worst = max(abs(a - b) for a, b in zip(found.flatten().tolist(), values, strict=True))
        if worst > 0.501 * step:
            raise Wrong(
                f"With {bits} bits a weight moved by {worst / step:.2f} steps; a mark is always within half a step.",
                hint="The step is the largest magnitude divided by the last mark; then round, do not cut off.",
            )
        if not torch.equal(given, weight):
            raise Wrong(
                "The weight that came in was changed.",
                hint="Return a new tensor: round() does, round_() and *= work in place.",
            )
    return "Each weight stands on the nearest mark, for every number of bits."


@exercise("00.3")
def _energy(energy: Callable[[int, int, int], float]) -> str:
    for macs, parameters in ((1_000_000, 0), (0, 1_000_000), (2_293_000, 431_080)):
        _is_energy(energy(macs, parameters, 32), 4.6 * macs / 1e6, 640 * parameters / 1e6, bits=32)
        _is_energy(energy(macs, parameters, 8), 0.23 * macs / 1e6, 160 * parameters / 1e6, bits=8)
    return "For LeNet-5, 8-bit numbers save three quarters of the energy: nearly all of it was fetching."


def _is_energy(found: float, arithmetic: float, fetching: float, *, bits: int) -> None:
    """Raise Wrong unless `found` is arithmetic + fetching (microjoules), with the hint that fits the mistake."""
    if not isinstance(found, int | float):
        raise Wrong(f"Your function returned {found!r}.", hint="Return one number: arithmetic plus fetching.")
    expected = arithmetic + fetching
    if abs(found - expected) <= 1e-6 * expected:
        return
    said = f"With {bits} bits you get {found:,.4g} µJ where {expected:,.4g} are right."
    if fetching == 0:
        raise Wrong(said, hint="One MAC is one multiplication and one addition, both of the kind that bits says.")
    raise Wrong(said, hint="One read brings 32 bits. How many 8-bit weights come with it? (1 µJ = 1,000,000 pJ.)")
