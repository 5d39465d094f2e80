"""The exercises of notebook 16."""

from collections.abc import Callable
from typing import Any

import torch

from helpers.exercises.checking import Wrong, exercise, within_factor


@exercise("16.1")
def _images_per_second(answer: Callable[[int, float], float]) -> str:
    for batch, call_ms in ((64, 12.0), (1, 0.25), (8, 2.0)):
        found, right = answer(batch, call_ms), 1000 * batch / call_ms
        if not isinstance(found, int | float) or isinstance(found, bool):
            raise Wrong(f"Photographs a second are one number; yours is {found!r}.", hint="Return a quotient.")
        if abs(found / right - 1) < 1e-6:
            continue
        said = f"{batch} photographs in {call_ms:g} ms are {right:,.0f} a second; yours: {found:,.4g}."
        if abs(found * 1000 / right - 1) < 1e-6:
            raise Wrong(said, hint="That is per millisecond: a second has 1,000 of them.")
        if batch > 1 and abs(found * batch / right - 1) < 1e-6:
            raise Wrong(said, hint="Those are calls a second. Each call answers a whole batch.")
        raise Wrong(said, hint="Photographs over time: the batch stands above, the milliseconds below.")
    return "Latency is of a call, throughput of a photograph."


@exercise("16.2")
def _pack_two_of_four(pack: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> str:
    for rows, fours in ((5, 6), (16, 1)):
        weight = torch.randn(rows, 4 * fours)
        given = weight.clone()
        found = pack(given)
        shapes = [tuple(getattr(part, "shape", ())) for part in found] if isinstance(found, tuple) else repr(found)
        if shapes != [(rows, 2 * fours)] * 2:
            raise Wrong(
                f"Two tensors of the shape ({rows}, {2 * fours}) are asked for; yours: {shapes}.",
                hint="Two of four stay: unflatten(1, (-1, 4)), choose two of the last dimension, flatten(1) again.",
            )
        _are_two_of_four(weight, *found)
        if not torch.equal(given, weight):
            raise Wrong("The weight that came in was changed.", hint="Return new tensors.")
    return f"The right two of each four. In half precision, four weights now take {2 * 16 + 2 * 2} bits instead of 64."


def _are_two_of_four(weight: torch.Tensor, values: torch.Tensor, places: torch.Tensor) -> None:
    fours = weight.unflatten(1, (-1, 4)).tolist()
    expected = [[sorted(sorted(range(4), key=lambda i: -abs(four[i]))[:2]) for four in row] for row in fours]
    right = torch.tensor(expected).flatten(1)
    if not torch.equal(places.long().unflatten(1, (-1, 2)).sort(-1).values.flatten(1), right):
        signed = weight.unflatten(1, (-1, 4)).topk(2, dim=-1).indices.sort(-1).values.flatten(1)
        if torch.equal(places.long().unflatten(1, (-1, 2)).sort(-1).values.flatten(1), signed):
            raise Wrong("You keep the two largest numbers.", hint="A weight of -3 matters as much as 3: take abs().")
        raise Wrong(
            "Not all places are those of the two largest magnitudes of each four.",
            hint="Count places from 0 within each four neighbours of a row, not along the row.",
        )
    if not torch.equal(places.long(), right):
        raise Wrong(
            "The places are right, their order is not.", hint="topk sorts by size; sort the two places once more."
        )
    if not torch.equal(values, weight.unflatten(1, (-1, 4)).gather(-1, right.unflatten(1, (-1, 2))).flatten(1)):
        raise Wrong("The values are not those at the places.", hint="gather takes the values, with their signs.")
    if places.dtype != torch.uint8:
        raise Wrong(f"Your places are {places.dtype}.", hint="They need two bits each: end with .to(torch.uint8).")


@exercise("16.3")
def _choose(choose: Callable[[Any, float], tuple[int, int] | None]) -> str:
    import pandas as pd

    columns = ["runtime", "threads", "batch", "p50_ms", "p95_ms", "images_per_s"]
    rows = [
        ["r", 1, 1, 1.0, 1.5, 1000.0],
        ["r", 1, 8, 6.0, 7.0, 1333.0],
        ["r", 1, 64, 40.0, 44.0, 1600.0],
        ["r", 2, 1, 0.9, 3.0, 1111.0],
        ["r", 2, 8, 4.0, 9.0, 2000.0],
        ["r", 2, 64, 21.0, 25.0, 3048.0],
    ]
    table = pd.DataFrame(rows, columns=columns)
    for budget, right in ((8.0, (1, 8)), (30.0, (2, 64)), (2.0, (1, 1)), (1.0, None), (9.0, (2, 8))):
        found = choose(table.copy(), budget)
        given = None if found is None else tuple(int(number) for number in found)
        if given != right:
            _say_which_promise_is_broken(table, budget, given, right)
    return "Most photographs a second, and 19 callers in 20 are served in time."


def _say_which_promise_is_broken(
    table: Any, budget: float, given: tuple[int, ...] | None, right: tuple[int, int] | None
) -> None:
    said = f"With a budget of {budget:g} ms the answer is {right}; yours: {given}."
    if right is None:
        raise Wrong(said, hint="No row keeps the promise there: say so, return None.")
    chosen = table[[(t, b) == given for t, b in zip(table["threads"], table["batch"], strict=True)]]
    if len(chosen) == 1 and chosen["p95_ms"].iloc[0] > budget:
        raise Wrong(said, hint="The promise is about 19 calls in 20: compare p95_ms, not the median.")
    raise Wrong(
        said, hint="Among the rows that keep the promise, the most photographs a second count, not the fastest call."
    )


@exercise("16.4")
def _throughput(guess: Callable[[float, int], float], *, latency_ms: float, batch: int, measured: float) -> str:
    return within_factor(
        lambda: guess(latency_ms, batch),
        measured,
        factor=3,
        unit="photographs a second",
        too_low="A second has 1,000 milliseconds, and a batch answers all its photographs at once.",
        too_high="A batch saves calls, not arithmetic: each of its photographs still needs all its multiplications.",
    )
