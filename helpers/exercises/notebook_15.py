"""The exercises of notebook 15."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from helpers.exercises.checking import Wrong, exercise, within_factor


@exercise("15.1")
def _bits_per_weight(bits: Callable[[int, int], float]) -> str:
    for size, weights in ((2_000, 400_000), (1_722_000, 430_500), (12, 96)):
        found, expected = bits(size, weights), 8 * size / weights
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise Wrong(f"Return one number of bits; yours is {found!r}.", hint="Divide, and return the result.")
        if math.isclose(found, expected, rel_tol=1e-9):
            continue
        said = f"{size:,} bytes for {weights:,} weights are {expected:.3g} bits each; yours: {found:.3g}."
        if math.isclose(found, size / weights, rel_tol=1e-9):
            raise Wrong(said, hint="That is bytes for each weight, and a byte has eight bits.")
        if math.isclose(found * expected, 1, rel_tol=1e-9):
            raise Wrong(said, hint="The other way round: that is how many weights a bit holds.")
        raise Wrong(said, hint="All bits of the file, over all weights of the dense network.")
    return "Compare that with the 32 bits you began with."


@exercise("15.2")
def _useful_units(useful: Callable[[Tensor, Tensor], Tensor]) -> str:
    generator = torch.Generator().manual_seed(5)
    for units, inputs, outputs in ((4, 3, 2), (6, 5, 4), (9, 2, 7)):
        reads = torch.rand(units, inputs, generator=generator) < 0.4
        is_read = torch.rand(outputs, units, generator=generator) < 0.3
        reads[0], is_read[:, 0] = True, False  # reads, and nobody reads it
        reads[1], is_read[:, 1] = False, True  # the other way round
        reads[2], is_read[:, 2] = True, True
        found = useful(reads.clone(), is_read.clone())
        expected = [any(reads[u].tolist()) and any(is_read[:, u].tolist()) for u in range(units)]
        if not isinstance(found, Tensor) or found.shape != (units,) or found.dtype != torch.bool:
            what = f"{tuple(found.shape)}, {found.dtype}" if isinstance(found, Tensor) else repr(found)
            raise Wrong(
                f"Return {units} truth values, one for each unit; yours: {what}.",
                hint="A unit is a row of the first mask and a column of the second: .any(1) and .any(0).",
            )
        if found.tolist() == expected:
            continue
        said = f"Of {units} units {sum(expected)} are useful; yours: {int(found.sum())}."
        if found.tolist() == reads.any(1).tolist():
            raise Wrong(said, hint="You ask what each unit reads. Ask, too, whether anybody reads it.")
        if found.tolist() == is_read.any(0).tolist():
            raise Wrong(said, hint="You ask whether anybody reads it. Ask, too, what it reads.")
        if found.tolist() == (reads.any(1) | is_read.any(0)).tolist():
            raise Wrong(said, hint="One of the two is not enough: a useful unit does both, so take `&`.")
        raise Wrong(said, hint="`reads[u]` is what unit u reads, `is_read[:, u]` who reads it. Both need one True.")
    return "What neither reads nor is read may go, and its bias with it."


@exercise("15.3")
def _tied(guess: Callable[[], float], *, measured: int) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.05,
        unit="weights",
        too_low="All weights with the border's magnitude, of both signs: those that stay and those that go. A normal "
        "number is larger than x with probability math.erfc(x / math.sqrt(2)) / 2.",
        too_high="Only one magnitude is on the border. Few are 3, more are 2: after how many weights is a tenth full?",
    )


@exercise("15.4")
def _cheapest(cheapest: Callable[[Tensor, Tensor], tuple[str, int]]) -> str:
    generator = torch.Generator().manual_seed(7)
    for neurons, inputs, classes in ((3, 12, 2), (12, 3, 2), (5, 6, 8), (6, 5, 3), (4, 40, 10), (3, 3, 30)):
        first = torch.rand(neurons, inputs, generator=generator)
        second = torch.rand(classes, neurons, generator=generator)
        if (neurons, inputs) == (12, 3):
            first[:, 0] *= 0.1  # an input that loses little for each weight, and more in all than a neuron does
            first[4], second[:, 4] = 0.12, 0.12
        if (neurons, inputs) == (5, 6):
            first[2], second[:, 2] = 0.01, 50.0  # the cheapest neuron, but for those who read it
        found = cheapest(first.clone(), second.clone())
        try:
            kind, index = found
            found = str(kind), int(index)
        except (TypeError, ValueError):
            raise Wrong(
                f"Return a kind and a number; yours is {found!r}.", hint='Such as return "input", int(costs.argmin()).'
            ) from None
        if found[0] not in ("input", "neuron"):
            raise Wrong(
                f'The kind is "input" or "neuron"; yours is {found[0]!r}.', hint="Compare the two smallest costs."
            )
        candidates = _candidates(first, second)
        expected = min(candidates, key=lambda each: each[0] / each[1])[2:]
        if found == expected:
            continue
        said = (
            f"{neurons} neurons, {inputs} inputs, {classes} classes: {expected[0]} {expected[1]} loses least for each "
            f"weight that it frees; yours: {found[0]} {found[1]}."
        )
        if found == min(candidates, key=lambda each: each[0])[2:]:
            raise Wrong(said, hint="You compare what is lost in all. Divide by the weights that go with it.")
        without = [
            (float(first[each[3]].sum()), inputs, *each[2:]) if each[2] == "neuron" else each for each in candidates
        ]
        if found == min(without, key=lambda each: each[0] / each[1])[2:]:
            raise Wrong(said, hint="A neuron takes weights of the next layer along, too: its column in `second`.")
        raise Wrong(said, hint="An input frees one weight for each neuron; a neuron one for each input and each class.")
    return "The network gets narrower where it hurts least."


def _candidates(first: Tensor, second: Tensor) -> list[tuple[float, int, str, int]]:
    """Return what each input and each neuron would lose and free, counted weight by weight."""
    found = []
    for i in range(first.shape[1]):
        lost = [float(first[n, i]) for n in range(len(first))]
        found.append((sum(lost), len(lost), "input", i))
    for n in range(len(first)):
        lost = [float(score) for score in first[n]] + [float(second[c, n]) for c in range(len(second))]
        found.append((sum(lost), len(lost), "neuron", n))
    return found
