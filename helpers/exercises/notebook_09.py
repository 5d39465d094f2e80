"""The exercises of notebook 09."""

from collections.abc import Callable
from typing import Any

import torch

from helpers.exercises.checking import Wrong, exercise, within_factor


@exercise("09.1")
def _unsigned_step(step: Callable[[float, int], float]) -> str:
    for highest, bits in ((1.0, 8), (6.0, 2), (3.5, 3)):
        found = step(highest, bits)
        if not isinstance(found, int | float) or isinstance(found, bool):
            raise Wrong(f"A step is one number; yours is {found!r}.", hint="Return the distance between two levels.")
        expected = highest / (2**bits - 1)
        if abs(found - highest / 2**bits) < 1e-9:
            raise Wrong(
                f"With {bits} bits and a step of {found:g} the last code stands for {found * (2**bits - 1):g}, not for "
                f"{highest:g}.",
                hint="Count the gaps, not the levels: a fence with four posts has three gaps.",
            )
        if bits > 2 and abs(found - highest / (2 ** (bits - 1) - 1)) < 1e-9:
            raise Wrong(
                f"With {bits} bits your step is {found:g}: half of the codes are never used.",
                hint="That is the signed grid. Unsigned codes run from 0 to the last of all 2^bits.",
            )
        if abs(found - expected) > 1e-6 * expected:
            raise Wrong(
                f"From 0 to {highest:g} in {bits} bits the step should be {expected:.4g}; yours is {found:.4g}.",
                hint="The last code is 2^bits - 1, and it stands for `highest`: code times step.",
            )
    return "One gap fewer than there are levels."


@exercise("09.2")
def _quantize_rows(quantize: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> str:
    for bits in (8, 4, 2):
        weight = torch.randn(5, 40) * torch.tensor([[0.01], [1.0], [30.0], [0.5], [0.5]])
        weight[3:] += torch.tensor([[4.0], [-4.0]])
        given = weight.clone()
        found = quantize(given, bits)
        _are_codes(found, weight, bits)
        # as floats, for differences of bytes would wrap around
        codes, scale, zero = (found[0].to(weight), found[1], found[2].to(weight))
        lowest, highest = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
        expected = (highest - lowest) / (2**bits - 1)
        if not torch.allclose(scale, expected, rtol=1e-3):
            row = int((scale / expected - 1).abs().argmax())
            raise Wrong(
                f"With {bits} bits the step of row {row} should be {float(expected[row]):.3g}, and is "
                f"{float(scale[row]):.3g}.",
                hint="Each row has its own range, amin(1) to amax(1), and 2^bits levels have 2^bits - 1 steps between.",
            )
        worst = float((((codes - zero) * scale - weight).abs() / scale).max())
        if worst > 0.501:
            raise Wrong(
                f"With {bits} bits a number is {worst:.2f} steps from its level; half a step is the most.",
                hint="Round to the nearest code; a conversion to whole numbers cuts off instead.",
            )
        if not torch.equal(given, weight):
            raise Wrong("The weight that came in was changed.", hint="Return new tensors: *= and clamp_ work in place.")
    return "Every row on a grid of its own, and each of them meets zero."


def _are_codes(found: Any, weight: torch.Tensor, bits: int) -> None:
    """Raise Wrong unless `found` is (codes, scale, zero point) with whole numbers that `bits` bits can count."""
    shapes = [weight.shape, (len(weight), 1), (len(weight), 1)]
    if not isinstance(found, tuple) or [getattr(part, "shape", None) for part in found] != shapes:
        had = [tuple(getattr(part, "shape", ())) for part in found] if isinstance(found, tuple) else repr(found)
        raise Wrong(
            f"Three tensors of shapes {[tuple(shape) for shape in shapes]} are asked for; yours: {had}.",
            hint="Return codes, scale and zero point; keepdim=True keeps the last two as columns, one number a row.",
        )
    codes, _, zero = found
    for name, numbers in {"zero point": zero, "codes": codes}.items():
        if not torch.equal(numbers, numbers.round()):
            raise Wrong(f"The {name} should be whole numbers.", hint="The zero point is a code too: round() both.")
    for name, numbers in {"zero point": zero, "codes": codes}.items():
        if numbers.min() < 0 or numbers.max() > 2**bits - 1:
            raise Wrong(
                f"With {bits} bits the {name} run from {float(numbers.min()):g} to {float(numbers.max()):g}.",
                hint="A row of positive numbers only: its range must reach down to 0. And clamp the codes."
                if name == "zero point"
                else "What lies beyond the last code gets the last code: clamp to 0 and 2^bits - 1.",
            )


@exercise("09.3")
def _additive_levels(levels: Callable[[], torch.Tensor]) -> str:
    found = levels()
    if not isinstance(found, torch.Tensor) or found.dim() != 1:
        raise Wrong(f"Your function returned {found!r}.", hint="Return one row of numbers: flatten the table of sums.")
    if len(found) != 16:
        raise Wrong(
            f"There are {len(found)} levels where four bits count 16.",
            hint="Each of the four numbers of one group with each of the four of the other: [:, None] makes the table.",
        )
    expected = sorted((a + b) / 48 for a in (0, 32, 8, 2) for b in (0, 16, 4, 1))
    if torch.allclose(found.double().sort().values / found.max(), torch.tensor(expected, dtype=torch.float64)):
        if not torch.isclose(found.max(), torch.ones(()).to(found)):
            raise Wrong(f"The largest level is {float(found.max()):g}.", hint="Divide by it, so that the scale is 1.")
        if not (found.diff() > 0).all():
            raise Wrong("The levels do not rise.", hint="sort() returns values and indices: take the values.")
        return "Two shifts and one addition for each product, and three levels between 1/2 and 1."
    raise Wrong(
        f"The largest levels are {', '.join(f'{v:.3g}' for v in found.sort().values[-3:].tolist())}; "
        f"right are {', '.join(f'{v:.3g}' for v in expected[-3:])}.",
        hint="Sums, not products: one number of the first group plus one of the second, and a zero is in each group.",
    )


@exercise("09.4")
def _six_bit_file(guess: Callable[[], float], *, measured: int) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.005,
        unit="bytes",
        too_low="Codes are not all: each output channel has a step *and* a bias, and each of them takes four bytes.",
        too_high="Six bits are not a byte: four codes share three bytes. Only the end of a layer is filled up.",
    )
