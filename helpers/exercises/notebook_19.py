"""The exercises of notebook 19."""

from collections.abc import Callable
from typing import Any

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


@exercise("19.2")
def _winner(guess: Callable[[], str], *, measured: dict[str, float]) -> str:
    said = guess()
    if said not in measured:
        raise Wrong(f"You say {said!r}.", hint=f"Return one of these texts: {', '.join(map(repr, measured))}.")
    best = max(measured, key=lambda name: measured[name])
    both = f"You say {said!r} with {measured[said]:.1%}; the best is at {measured[best]:.1%}."
    if measured[best] - measured[said] <= 0.002:
        return both
    hints = {
        "pruned": "A kept weight costs its four bytes and the way to it. How many of them fit, of 430,500?",
        "fewer bits": "Two bits are four marks. Without training, what becomes of the small weights?",
        "pruned, 4 bits": "A kept weight costs half a byte and the way to it: count again how many fit.",
        "thin and dense": "It starts from nothing. How long was it trained here, and how long LeNet-5?",
    }
    raise Wrong(both, hint=hints.get(said, "Count first how many weights fit, and in how many bits."))


@exercise("19.3")
def _submission(submit: Callable[..., object], *, train: Any, unseen: Any, budget: Any, rounds: int = 60) -> str:
    import tempfile
    from pathlib import Path

    from helpers.capstone import answering, judging, submission

    if not callable(submit):
        raise Wrong(
            "A submission is made by a function.", hint="Keep my_submission(train, folder), and write its body."
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        submit(train, folder)
        judged = judging.judge(folder, "mnist", budget, split=unseen, rounds=rounds)
    if judged.passed:
        speed = f", {judged.speedup:.1f} times as fast" if budget.speedup else ""
        return f"{judged.bytes:,} bytes, {judged.accuracy:.2%} right{speed}: all of it measured by the judge."
    first = next(outcome for outcome in judged.outcomes if not outcome.met and outcome.measured != "not measured")
    hints = {
        judging.BYTES: "Fewer weights or fewer bits of each: write_quantized stores what a grid or a table allows.",
        judging.ACCURACY: "More digits, more epochs, or quantize less; a wider network can be pruned afterwards.",
        judging.SPEED: "Zeros are multiplied like any other number: the network itself must be thinner.",
        answering.WEIGHTS: "The module gets all it knows from the file that is weighed.",
        submission.FILE: "Write two files into the folder, model.pack and model.py (with build), or model.onnx.",
    }
    asked = f" (asked: {first.asked})" if first.asked else ""
    hint = hints.get(first.criterion, "Call judging.judge yourself on your folder, and read its table.")
    raise Wrong(f"Not met: {first.criterion}: {first.measured}{asked}", hint=hint)
