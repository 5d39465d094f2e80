"""The exercises of notebook 19."""

from collections.abc import Callable

import numpy as np

from helpers.exercises.checking import Wrong, exercise, within_factor


@exercise("19.2")
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


@exercise("19.1")
def _dominates(dominates: Callable[[tuple[float, int], tuple[float, int]], bool]) -> str:
    models = [(accuracy / 10, size) for accuracy in range(3) for size in range(3)]
    for a in models:
        for b in models:
            right = a[0] >= b[0] and a[1] <= b[1] and (a[0] > b[0] or a[1] < b[1])
            if (found := bool(dominates(a, b))) == right:
                continue
            said = f"You say {found} for {a} and {b}."
            if a == b:
                raise Wrong(said, hint="Twins do not dominate each other: one of the two numbers must be better.")
            if right:
                raise Wrong(said, hint="Better in one of the two is enough, if the other is as good.")
            raise Wrong(said, hint="It must not be worse in either: more accurate and larger is no domination.")
    return "Twins included."


@exercise("19.3")
def _front_of_a_hundred(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.1,
        unit="models",
        too_low="Going from small to large, the second is a new best with probability 1/2, the third with 1/3. Add up.",
        too_high="It grows like the logarithm: five times as many models add only about 1.6.",
    )


@exercise("19.4")
def _count_networks(count: Callable[[list[tuple[float, int, int]]], int]) -> str:
    same, other = (0.991, 2_000, 430_500), (0.989, 2_000, 430_500)
    for rows, right, hint in [
        ([same] * 3, 1, "The same accuracy, bytes and weights three times: that is one network."),
        ([same, other, (0.99, 2_100, 430_500)], 3, "They differ, so each run trained its own."),
        ([same, same, other], 3, "If one differs, the runs trained their own; two may agree by chance."),
        ([same, (0.991, 2_400, 430_500)], 2, "An accuracy can be the same by chance. Look at all three numbers."),
        ([same], 1, "One run, one network."),
    ]:
        if (found := count(list(rows))) != right:
            raise Wrong(f"For {len(rows)} runs {rows} you count {found!r}; right: {right}.", hint=hint)
    return "n is a number of networks."
