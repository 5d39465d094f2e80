"""A judge for compressed models that believes no number it is told: it measures bytes, accuracy and speed itself.

A submission is one ONNX file, or one packed file and the source of the module that it fills. It answers in a process
that cannot reach (`sandbox`): inputs are sent in, logits come out, and the labels, the counting and the clock stay
here. What comes out is a function of the file's bytes and the source's, both of which are weighed, and of nothing else.

What is refused, and where a trick would hide:

    a pickle (.pt, .pkl, a zip)        code in weights: it is not even opened
    ONNX with external data            weights in another file, which nobody weighs
    a module that opens other files    behind walls there are none; elsewhere Python's own events tell
    a module with numbers of its own   constants, buffers that are not saved, closures: more than 256 numbers
    a module that ignores its file     it answers as well when the file's weights are shuffled
    another network for the clock      the graph that is timed is made before any input is seen; it, and the module, are
                                       asked the same in batches of 64 and one by one, and the fewest right count
    answers by position or by hash     they change with the order, or when no eye sees a change

Where the system allows no namespaces (`Judged.walls` is "" then, and the table says so), the process is an ordinary one
of the same user, watched by Python alone: enough for mistakes and for the tricks that a classroom knows, and no prison.
Do not judge strangers' code there.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.capstone import answering, asking
from helpers.capstone.answering import PROCESS, WEIGHTS
from helpers.capstone.asking import ANSWERS, Answers
from helpers.capstone.submission import FILE, Refused, opened
from helpers.core import checks

if TYPE_CHECKING:
    import pandas as pd

    from helpers.data.splits import Split
    from helpers.evidence.recording import Run

ATTEMPTS = 3  # of the timing, while it decides nothing
OWN_NUMBERS = 256  # what a module may hold beside its file: means, scales
SAME = 0.998  # of the answers in batches and one by one, of a module and of its graph: only near ties may differ
INPUT = "answers follow the input"
BYTES, ACCURACY, SPEED = "bytes", "accuracy", "speed"
CRITERIA = (FILE, PROCESS, ANSWERS, INPUT, WEIGHTS, BYTES, ACCURACY, SPEED)
CLAIMS = ("bytes", "accuracy", "speedup")
NOT_MEASURED = "not measured"  # because another criterion was not met before


@dataclass(frozen=True)
class Budget:
    """What a submission must meet: at most `bytes`, at least `accuracy` (a fraction), at least `speedup` times as fast.

    The speed is that of one input, on one thread, in ONNX Runtime, against the course's dense network there. None:
    speed is not judged. Raises ValueError for a number that cannot be meant.
    """

    bytes: int
    accuracy: float
    speedup: float | None = None

    def __post_init__(self) -> None:
        checks.positive("bytes", self.bytes)
        checks.fraction("accuracy", self.accuracy)
        if self.speedup is not None:
            checks.number("speedup", self.speedup, above=0)


# A model of the course has the bytes and the accuracy of each. Digits: what the worst of five seeds of notebook 19's
# network gets right on validation, less one point, rounded down to half a point.
BUDGETS = {
    "mnist": Budget(16_000, 0.96, 1.5),
    "cifar10": Budget(300_000, 0.86, 3.0),
    "cat-or-dog": Budget(500_000, 0.78, 4.0),
    "imdb": Budget(30_000, 0.85),
}


@dataclass(frozen=True)
class Outcome:
    """One criterion: whether it is met, what was measured and what was asked, in words."""

    criterion: str
    met: bool
    measured: str
    asked: str = ""


@dataclass(frozen=True)
class Judged:
    """What the judge found. Numbers that were not measured, because a trick came first, are NaN.

    `speedup` is the ratio of medians against the dense network, `speed_interval` its 99 % interval. `disagreements` are
    the student's numbers that are not those that were measured; they decide nothing. `walls` is what kept the
    submission from the data: "bubblewrap" or "unshare", or "" for Python alone; None if it did not answer.
    """

    task: str
    examples: int
    outcomes: tuple[Outcome, ...]
    bytes: int
    accuracy: float = math.nan
    speedup: float = math.nan
    speed_interval: tuple[float, float] = (math.nan, math.nan)
    disagreements: tuple[str, ...] = ()
    walls: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every criterion is met."""
        return all(outcome.met for outcome in self.outcomes)

    @property
    def failed(self) -> list[str]:
        """The criteria that are not met, the first that was looked at first."""
        return [outcome.criterion for outcome in self.outcomes if not outcome.met]

    def table(self) -> "pd.DataFrame":
        """Return one row for each criterion, then one for each number that was claimed and is not so."""
        import pandas as pd

        rows = [
            {"criterion": o.criterion, "": _verdict(o), "measured": o.measured, "asked": o.asked} for o in self.outcomes
        ]
        rows += [{"criterion": "claimed", "": "ignored", "measured": said, "asked": ""} for said in self.disagreements]
        return pd.DataFrame(rows).set_index("criterion")


def _verdict(outcome: Outcome) -> str:
    return "met" if outcome.met else "not reached" if outcome.measured == NOT_MEASURED else "not met"


def judge(
    submission: Path,
    task: str,
    budget: Budget,
    *,
    build: Any = None,
    split: "Split | None" = None,
    run: "Run | None" = None,
    claimed: Mapping[str, float] | None = None,
    rounds: int = 60,
) -> Judged:
    """Measure a submission and say which criteria of `budget` it meets.

    Args:
        submission: an .onnx or .pack file, or a folder with model.onnx, or with model.pack and perhaps model.py.
        task: one of `BUDGETS`. Inputs are those of `data`; for imdb the packed file holds the vocabulary.
        budget: what it must meet.
        build: for a single .pack file, what makes the module: a function or class without required arguments, a
            sequence of which the last is called, or source that defines `build`. A network that `files.load`
            knows needs none. Only its source reaches the process that decodes; torch, nn, F, np, math and models are
            at hand there.
        split: the examples, by default the task's validation split.
        run: the notebook's record, at the end only: then the test split is judged (`split`, or all of it), through
            `run.test`, which logs it.
        claimed: the student's own "bytes", "accuracy" and "speedup": compared, shown, and otherwise ignored.
        rounds: of the timing.

    Raises:
        ValueError: the task is unknown; `split` is the test split, is empty or is of another task; the budget asks for
            the speed of a text classifier; `rounds` is not positive; a name or a number in `claimed` is none.
        FileNotFoundError: there is no such file.
    """
    known = _TASKS[checks.choice("task", task, _TASKS)]
    if not isinstance(budget, Budget):
        raise ValueError(f"budget={budget!r}; allowed: a Budget, such as BUDGETS[{task!r}]")
    if budget.speedup is not None and not known.shape:
        raise ValueError(f"budget.speedup={budget.speedup!r} for task={task!r}; allowed: None, texts are not timed")
    checks.positive("rounds", rounds)
    for name, value in (claimed or {}).items():
        checks.choice("claimed", name, CLAIMS)
        checks.number(f"claimed[{name!r}]", value.item() if isinstance(value, np.generic) else value)
    examples = known.data().validation if split is None else checks.not_empty("split", split)
    if examples.is_test and run is None:
        raise ValueError("split is the test split; allowed: validation while you try, and with `run` at the end")
    if run is not None and not examples.is_test:
        examples = known.data().test
    _check_examples(examples, task)
    outcomes: list[Outcome] = []
    found = Judged(task, len(examples), (), 0)
    try:
        content, source = opened(Path(submission), build)
        found = replace(found, bytes=len(content) + len(source.encode()))
        outcomes.append(
            Outcome(FILE, True, f"{len(content):,} bytes" + (f" + {len(source.encode()):,} of source" * bool(source)))
        )
        answers = asking.ask(
            content, source, examples, classes=known.classes, shape=known.shape, export=budget.speedup is not None
        )
        measured = _measured(found, answers, examples, run)  # before any label is looked at, so that it is logged
        outcomes += _structure(answers, examples, known)
        found = measured
        outcomes += [_bytes(found, budget), _accuracy(found, budget)]
        if budget.speedup is not None:
            found, outcome = _speed(found, answers.graph, examples, budget.speedup, rounds)
            outcomes.append(outcome)
    except Refused as refused:
        outcomes = [o for o in outcomes if o.criterion != refused.criterion]
        outcomes.append(Outcome(refused.criterion, False, refused.sentence))
        seen = {outcome.criterion for outcome in outcomes}
        left = [c for c in CRITERIA if c not in seen and (c != SPEED or budget.speedup is not None)]
        outcomes += [Outcome(criterion, False, NOT_MEASURED) for criterion in left]
    return replace(found, outcomes=tuple(outcomes), disagreements=_disagreements(found, claimed or {}))


def _check_examples(examples: "Split", task: str) -> None:
    known, labels = _TASKS[task], np.asarray(examples.labels)
    is_text = isinstance(examples.inputs, list)
    shape = () if is_text else tuple(examples.inputs.shape[1:])
    if is_text != (not known.shape) or shape != known.shape:
        found, asked = ("texts" if is_text else f"inputs of the shape {shape}"), known.shape or "texts"
        raise ValueError(f"split has {found} for task={task!r}; allowed: {asked}")
    if labels.min() < 0 or labels.max() >= known.classes:
        raise ValueError(f"split.labels are {labels.min()} to {labels.max()}; allowed: 0 to {known.classes - 1}")


def _measured(found: Judged, answers: Answers, examples: "Split", run: "Run | None") -> Judged:
    labels = np.asarray(examples.labels)
    logits = answers.logits(labels)
    accuracy = float((logits.argmax(1) == labels).mean()) if run is None else _logged(run, logits, examples)
    return replace(found, accuracy=accuracy, walls=answers.walls)


def _logged(run: "Run", logits: np.ndarray, examples: "Split") -> float:
    """Return the accuracy of answers that are there already, evaluated and logged by `run.test`."""
    import torch
    from torch import nn

    from helpers.data import Split

    class Answers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.from_numpy(logits), requires_grad=False)

        def forward(self, places: torch.Tensor) -> torch.Tensor:
            return self.logits[places]

    labels = torch.as_tensor(examples.labels)
    return run.test("judged", Answers(), Split(torch.arange(len(labels)), labels, is_test=True)).accuracy


def _bytes(found: Judged, budget: Budget) -> Outcome:
    return Outcome(BYTES, found.bytes <= budget.bytes, f"{found.bytes:,}", f"at most {budget.bytes:,}")


def _accuracy(found: Judged, budget: Budget) -> Outcome:
    from scipy.stats import binomtest

    right = round(found.accuracy * found.examples)
    low, high = binomtest(right, found.examples).proportion_ci(method="wilson")
    said = f"{found.accuracy:.2%} of {found.examples:,} (95 %: {low:.2%} to {high:.2%})"
    return Outcome(ACCURACY, found.accuracy >= budget.accuracy, said, f"at least {budget.accuracy:.2%}")


def _disagreements(found: Judged, claimed: Mapping[str, float]) -> tuple[str, ...]:
    said = []
    for name, value in claimed.items():
        measured = getattr(found, name)
        allowed = {"bytes": 0.0, "accuracy": 0.0005, "speedup": 0.25 * abs(measured)}[name]
        if not abs(measured - value) <= allowed:  # also if it was not measured
            said.append(f"{name} {value:,.6g} was claimed, {measured:,.6g} measured")
    return tuple(said)


def _structure(answers: Answers, examples: "Split", task: "_Task") -> list[Outcome]:
    """Return the outcomes of what has nothing to do with the budget; raise Refused at the first that is not met."""
    first, labels = answers.ways[0], np.asarray(examples.labels)
    said = first.batches.argmax(1)
    accuracy = float((said == labels).mean())
    if len(set(said.tolist())) == 1 and len(set(labels.tolist())) > 1:
        raise Refused(INPUT, f"the answer is always class {said[0]}, whatever the input.")
    same = first.same(first, answers.questions)
    if same < SAME:
        raise Refused(INPUT, f"asked one by one, in another order, only {same:.1%} of the answers are the same.")
    for graph in answers.ways[1:]:
        if (alike := graph.same(first, answers.questions)) < SAME:
            said_so = f"exported to ONNX, {alike:.1%} of the answers are the same"
            raise Refused(PROCESS, f"{said_so}: what is timed is another network.")
    chance = float(np.bincount(labels, minlength=task.classes).max() / len(labels))
    _check_changed(answers, labels, accuracy, chance)
    if answers.own_numbers > OWN_NUMBERS:
        raise Refused(
            WEIGHTS, f"the module holds {answers.own_numbers:,} numbers beside the file; allowed: {OWN_NUMBERS}."
        )
    shuffled = [float((logits.argmax(1) == labels[: len(logits)]).mean()) for logits in answers.shuffled]
    if shuffled and accuracy > chance + 0.1 and min(shuffled) > (accuracy + chance) / 2:
        raise Refused(WEIGHTS, f"with the file's weights shuffled it is right in {min(shuffled):.1%} all the same.")
    without = f"shuffled, {min(shuffled):.1%} are right" if shuffled else "they are part of the graph"
    return [
        Outcome(PROCESS, True, _apart(answers.walls)),
        Outcome(ANSWERS, True, f"{len(labels):,} × {task.classes}, all finite"),
        Outcome(INPUT, True, f"{same:.2%} the same one by one"),
        Outcome(WEIGHTS, True, without),
    ]


def _check_changed(answers: Answers, labels: np.ndarray, accuracy: float, chance: float) -> None:
    if not len(answers.ways[0].changed):
        return
    changed = float((answers.ways[0].changed.argmax(1) == labels[answers.questions.places]).mean())
    if changed < accuracy - 0.5 * max(accuracy - chance, 0.1):
        raise Refused(INPUT, f"a change that no eye sees takes the accuracy from {accuracy:.1%} to {changed:.1%}.")


def _apart(walls: str) -> str:
    if walls:
        return f"no path leads from there to data or labels ({walls})"
    return "nothing but the file was read, says Python; this system has no walls around it"


def _speed(found: Judged, graph: bytes, examples: "Split", asked: float, rounds: int) -> tuple[Judged, Outcome]:
    """Time both files interleaved, the dense network twice; met only if the whole interval reaches what is asked."""
    from helpers import measure
    from helpers.runtime.sessions import open_session

    dense = _reference(found.task)
    sessions = [open_session(content, threads=1) for content in (dense, graph, dense)]
    place = int(np.random.default_rng().integers(len(examples)))
    one = np.ascontiguousarray(examples.inputs[place : place + 1].numpy())  # a real one: noise could take another path
    calls = {name: _call(session, one) for name, session in zip(("dense", "submission"), sessions, strict=False)}
    again = _call(sessions[2], one)
    for attempt in range(1, ATTEMPTS + 1):  # a busy machine may leave it open: then once more, and longer
        verdict = measure.compare(measure.time_interleaved(calls, rounds=attempt * rounds, control=again))["submission"]
        low, high = verdict.interval
        met = low >= asked and (asked <= 1 or verdict.verdict == "faster")
        if met or high < asked:
            break
    noise = "" if met or high < asked else "; undecided, by the interval or the A/A control"
    said = f"{verdict.ratio:.2f} × (99 %: {low:.2f} to {high:.2f}; A/A {verdict.null_interval[1]:.2f}){noise}"
    return replace(found, speedup=verdict.ratio, speed_interval=verdict.interval), Outcome(
        SPEED, met, said, f"at least {asked:g} × the dense network in ONNX Runtime"
    )


def _call(session: Any, inputs: np.ndarray) -> Callable[[], object]:
    from helpers import runtime

    return lambda: runtime.run(session, inputs)


@dataclass(frozen=True)
class _Task:
    data: Callable[[], Any]
    classes: int
    shape: tuple[int, ...]
    dense: str  # a function of `helpers.nets`


def _data(name: str) -> Callable[[], Any]:
    def load() -> Any:
        from helpers.data import splits

        return getattr(splits, name)()

    return load


_TASKS = {
    "mnist": _Task(_data("mnist"), 10, (1, 28, 28), "lenet5"),
    "cifar10": _Task(_data("cifar10"), 10, (3, 32, 32), "cifar_base"),
    "cat-or-dog": _Task(_data("cat_or_dog"), 2, (3, 32, 32), "resnet18"),
    "imdb": _Task(_data("imdb"), 2, (), "imdb_bag"),
}


@cache
def _reference(task: str) -> bytes:
    """Return the task's dense network as ONNX, with weights as they start: what they are does not change the time."""
    import torch

    from helpers import nets

    known = _TASKS[task]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return answering.exported(getattr(nets, known.dense)(), torch.zeros(2, *known.shape))
