"""The exercises of notebook 20."""

from collections.abc import Callable
from typing import Any

from helpers.exercises.checking import Wrong, exercise


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


@exercise("20.3")
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
