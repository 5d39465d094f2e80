"""The exercises of notebook 19."""

from collections.abc import Callable

import numpy as np

from helpers.exercises.checking import Wrong, exercise


@exercise("19.1")
def _shared_ranks(ranks_of: Callable[..., list[int]]) -> str:
    random = np.random.default_rng(0)
    for round_ in range(60):
        count = int(random.integers(2, 8))
        means = sorted(random.normal(size=count), reverse=True)
        names = [f"model {letter}" for letter in "ABCDEFGH"[:count]]
        widths = random.uniform(0.001, 1.2 if round_ else 0.002, (count, count))
        leads = {
            (names[i], names[j]): (means[i] - means[j] - widths[i, j], means[i] - means[j] + widths[i, j])
            for i in range(count)
            for j in range(i + 1, count)
        }
        asked = {pair: (low, high) for pair, (low, high) in leads.items()}
        found = ranks_of(list(names), lambda a, b, asked=asked: asked[a, b])
        _is_ranking(found, names, leads)
    return "Whoever cannot be told apart shares a rank, even through a third."


def _is_ranking(found: object, names: list[str], leads: dict[tuple[str, str], tuple[float, float]]) -> None:
    """Raise Wrong unless `found` are the ranks; the right ones by brute force, as parts that no tie connects."""
    group = {name: name for name in names}
    for a in names:  # whoever ties, and all between them, belong together
        for b in names:
            if (a, b) in leads and leads[a, b][0] <= 0:
                for between in names[names.index(a) : names.index(b) + 1]:
                    old, new = group[between], group[a]
                    group = {name: new if part == old else part for name, part in group.items()}
    expected = [min(names.index(other) for other in names if group[other] == group[name]) + 1 for name in names]
    if found == expected:
        return
    said = f"For {len(names)} models you give the ranks {found}; right: {expected}."
    if not isinstance(found, list) or len(found) != len(names):
        raise Wrong(said, hint="Return a list with one rank for each name, in the order of the names.")
    if found == list(range(1, len(names) + 1)):
        raise Wrong(said, hint="An order of means is no ranking: a lead whose interval holds 0 decides nothing.")
    if len(set(found)) == len(set(expected)):
        raise Wrong(said, hint="A new rank is one more than the number of models above it: after two firsts comes a 3.")
    neighbours = [1]
    for a, b in zip(names, names[1:], strict=False):
        neighbours.append(len(neighbours) + 1 if leads[a, b][0] > 0 else neighbours[-1])
    if found == neighbours:
        raise Wrong(said, hint="Neighbours are not enough: the second may beat the third, and the first may not.")
    raise Wrong(said, hint="A rank begins at a model if each one above beats each one from there on: two loops.")
