"""The exercises of notebook 11."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from helpers.exercises.checking import Wrong, exercise, within_factor


@exercise("11.1")
def _bytes_of(bytes_of: Callable[[int, int], int]) -> str:
    for weights, bits in ((10, 4), (7, 4), (100, 3), (3, 2), (9, 8)):
        found, right = bytes_of(weights, bits), -(-weights * bits // 8)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise Wrong(f"One whole number is asked for; yours is {found!r}.", hint="Return the number of bytes.")
        if found == right and isinstance(found, int):
            continue
        said = f"{weights} codes of {bits} bits take {right} bytes; yours: {found}."
        if found == weights * bits and bits > 1:
            raise Wrong(said, hint="These are bits. A byte has eight of them.")
        if found == weights * -(-bits // 8):
            raise Wrong(said, hint="Here each code has a byte of its own. Packed, they share bytes.")
        if found == weights * bits // 8 and isinstance(found, int):
            raise Wrong(said, hint="The bits that are left over need a byte, too: round up.")
        raise Wrong(said, hint="Count the bits of all codes, divide by eight, and round up to a whole int.")
    return "The header and the scales come on top."


@exercise("11.2")
def _pack(pack: Callable[[torch.Tensor], torch.Tensor]) -> str:
    codes = torch.cat([torch.randint(-8, 8, (4_000,)), torch.tensor([-8, 7, -1, 0])]).to(torch.int8)
    given = codes.clone()
    found = pack(given)
    if not isinstance(found, torch.Tensor) or found.shape != (len(codes) // 2,):
        raise Wrong(
            f"{len(codes):,} codes make {len(codes) // 2:,} bytes, in one dimension; yours is something else.",
            hint="codes[0::2] are the first of all neighbours, codes[1::2] the second: make one byte of each pair.",
        )
    _are_packed(found.long(), codes.long())
    if found.dtype != torch.uint8:
        raise Wrong(f"The bytes are right, but they are stored as {found.dtype}.", hint="End with .to(torch.uint8).")
    if not torch.equal(given, codes):
        raise Wrong("The codes that came in were changed.", hint="Return a new tensor; &= and += work in place.")
    return "Two weights in each byte, and nothing lost."


def _are_packed(found: torch.Tensor, codes: torch.Tensor) -> None:
    """Raise Wrong unless `found` are the bytes of the neighbours' lower four bits."""

    def packed(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first & 15) | (second & 15) << 4

    first, second = codes[0::2], codes[1::2]
    right = packed(first, second)
    if torch.equal(found, right):
        return
    place = int((found != right).nonzero()[0])
    said = (
        f"The codes {int(first[place])} and {int(second[place])} make the byte {int(right[place])}; "
        f"yours: {int(found[place])}."
    )
    half = len(codes) // 2
    if torch.equal(found, packed(second, first)):
        raise Wrong(said, hint="The first of two neighbours belongs into the lower four bits.")
    if torch.equal(found, packed(first + 8, second + 8)):
        raise Wrong(
            said, hint="Adding 8 makes other codes. Two's complement is there already: keep its lower four bits."
        )
    if torch.equal(found, packed(codes[:half], codes[half:])):
        raise Wrong(said, hint="Neighbours share a byte: take every second code, not the first and the second half.")
    if torch.equal(found & 255, (first | second << 4) & 255) or torch.equal(found & 255, (first + (second << 4)) & 255):
        raise Wrong(said, hint="A negative code fills the upper bits with ones: & 15 keeps the lower four alone.")
    raise Wrong(said, hint="Keep four bits of each code with & 15, move the second one up with << 4, and join with |.")


@exercise("11.3")
def _spend(spend: Callable[[Mapping[str, float], Mapping[str, int], float], set[str]]) -> str:
    for layers in (5, 9, 14):
        names = [f"layer{i}" for i in range(layers)]
        for _ in range(20):
            weights = {name: int(torch.randint(1, 400, ())) * 2 for name in names}
            saved = {name: float(torch.rand(())) * weights[name] ** 0.5 for name in names}
            budget = float(torch.rand(()) * 0.8 + 0.1) * sum(weights.values()) / 2
            _is_spent(spend(dict(saved), dict(weights), budget), saved, weights, budget)
    return "The quiet bytes go where they silence most."


def _is_spent(found: Any, saved: Mapping[str, float], weights: Mapping[str, int], budget: float) -> None:
    """Raise Wrong unless `found` are the layers that the rule takes."""
    if not isinstance(found, set | frozenset | list | tuple) or not {*found} <= saved.keys():
        raise Wrong(
            f"A set of names of layers is asked for; yours: {str(found)[:60]}.", hint="Return set(), or add names."
        )
    chosen, right = {*found}, _greedy(saved, weights, budget)
    if chosen == right:
        return
    cost = sum(weights[name] for name in chosen) / 2
    said = f"With {budget:.0f} bytes to spend, the rule takes {len(right)} layers; yours are {len(chosen)} other ones."
    if cost > budget:
        raise Wrong(
            f"Your layers take {cost:.0f} bytes more, and {budget:.0f} are there.", hint="Subtract what each costs."
        )
    if chosen == _greedy(saved, weights, budget, byte_each=1.0):
        raise Wrong(said, hint="From four to eight bits, a weight takes half a byte more, not a whole one.")
    if chosen == _greedy(saved, weights, budget, stop=True):
        raise Wrong(
            said, hint="A layer too large for what is left does not end the search: a smaller one may still fit."
        )
    if chosen == _greedy(saved, dict.fromkeys(weights, 1), budget, cost=weights):
        raise Wrong(said, hint="The loudest layer may be the dearest: order by noise saved per weight.")
    raise Wrong(
        said, hint="Sort the layers by saved / weights, falling; take each whose half byte a weight still fits."
    )


def _greedy(
    saved: Mapping[str, float],
    weights: Mapping[str, int],
    budget: float,
    *,
    byte_each: float = 0.5,
    stop: bool = False,
    cost: Mapping[str, int] | None = None,
) -> set[str]:
    taken: set[str] = set()
    for name in sorted(saved, key=lambda name: saved[name] / weights[name], reverse=True):
        price = byte_each * (weights if cost is None else cost)[name]
        if price <= budget:
            taken.add(name)
            budget -= price
        elif stop:
            break
    return taken


@exercise("11.4")
def _at_six(guess: Callable[[float, float], float], *, at_eight: float, at_four: float, measured: float) -> str:
    both = within_factor(
        lambda: guess(at_eight, at_four),
        measured,
        factor=2,
        unit="of the logits' mean square",
        too_low="Two bits fewer make each step four times as long, and noise is a mean square.",
        too_high="Decibels are linear in the bits, the noise itself is not: the middle is a geometric one.",
    )
    return f"{both} Two bits, a factor of sixteen."
