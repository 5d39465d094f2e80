"""The exercises of notebook 20."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from helpers.exercises.checking import Wrong, exercise


@exercise("20.1")
def _bytes_of(bytes_of: Callable[[int, int, int], float]) -> str:
    for weights, bits, biases in [(1_000, 4, 10), (430_500, 2, 580), (8, 32, 0), (0, 4, 3)]:
        found, right = bytes_of(weights, bits, biases), float(Fraction(weights * bits, 8) + 4 * biases)
        if found == right:
            continue
        said = f"For {weights:,} weights of {bits} bits and {biases} biases you say {found!r}; right: {right:,.0f}."
        if found == float(Fraction(weights * bits, 8)):
            raise Wrong(said, hint="The biases stay floats, of four bytes each.")
        if found == float(weights * bits + 32 * biases):
            raise Wrong(said, hint="Those are bits. A byte has eight.")
        raise Wrong(said, hint="Weights times bits, divided by eight, and four bytes for each bias.")
    return "The header and the scales of the rows come on top."


@exercise("20.3")
def _most_units(most_units: Callable[[int, int], int]) -> str:
    for limit, bits in [(16_000, 4), (6_000, 4), (6_000, 2), (100_000, 8), (2_000, 4)]:
        found = most_units(limit, bits)
        fits = [u for u in range(2_000) if (3_400 + 266 * u) * bits / 8 + 4 * (34 + u) <= limit]
        if found == len(fits) - 1:
            continue
        said = f"Within {limit:,} bytes, in {bits} bits, you say {found!r} units; right: {len(fits) - 1}."
        without = [u for u in range(2_000) if (3_400 + 266 * u) * bits / 8 <= limit]
        if found == len(without) - 1:
            raise Wrong(said, hint="Each unit brings a bias of four bytes, and the other layers have 34 of them.")
        if found == len(fits):
            raise Wrong(said, hint="That is one too many: the limit is not to be passed. Round down.")
        raise Wrong(said, hint="Take off what does not depend on the units, and divide by what one unit costs.")
    return "The width follows from the budget, not from a search."


@exercise("20.2")
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


@exercise("20.4")
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
