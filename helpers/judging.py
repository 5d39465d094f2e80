"""A judge for compressed models that believes no number it is told: it measures bytes, accuracy and speed itself.

A submission is one ONNX file, or one packed file and the source of the module that it fills. It is decoded in a fresh
process, in a folder that holds nothing else, and answers there. That process may import PyTorch, NumPy and
`helpers.models`; it may read code, and the one file. What it reads counts: the file's bytes, and those of the source.

What is refused, and where a trick would hide:

    a pickle (.pt, .pkl, a zip)        code in weights: it is not even opened
    ONNX with external data            weights in another file, which nobody weighs
    a module that opens other files    a checkpoint, the training data, the network
    a module with numbers of its own   constants, buffers that are not saved, closures: more than 256 numbers
    a module that ignores its file     it answers as well when the file's weights are shuffled
    answers by position or by hash     they change with the order, with the batch, or when no eye sees a change

This stops mistakes and the tricks that a classroom knows. It is no prison: what is seen is what Python opens, and code
that wants to break out of a process of the same user can. Do not judge strangers' code without a container.
"""

import ast
import inspect
import io
import json
import linecache
import math
import os
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers import checks
from helpers.paths import ROOT

if TYPE_CHECKING:
    import onnx
    import pandas as pd
    from torch import Tensor, nn

    from helpers.data import Split
    from helpers.results import Run

__all__ = ["BUDGETS", "Budget", "Judged", "Outcome", "judge"]

SECONDS = 600  # what the fresh process may take
ATTEMPTS = 3  # of the timing, while it decides nothing
OWN_NUMBERS = 256  # what a module may hold beside its file: means, scales
NOISE = 0.05  # of inputs with a standard deviation of about 1: three or four of 255 steps, so rounding keeps it
ALONE = 20  # examples that are asked again, one by one
SAME_GRAPH = 0.995  # of the answers of a module and of its graph: floats are added up in another order there
PICKLES = (b"PK\x03\x04", b"\x80")
MODULES = {
    "__future__",
    "collections",
    "dataclasses",
    "functools",
    "helpers",
    "itertools",
    "math",
    "numpy",
    "torch",
    "typing",
}
UNSEEN_READERS = {  # of torch, they open files without Python; the last two hand out what does
    "from_file", "jit", "ops", "load_library", "cpp_extension", "package", "PackageImporter", "_C", "sys",
}  # fmt: skip
BUILTINS = {"__import__", "eval", "exec", "compile", "getattr", "setattr", "delattr", "globals", "locals", "vars"}
CODE_PLACES = {os.path.realpath(place) + os.sep for place in (sys.prefix, sys.base_prefix, ROOT / "helpers")}
CODE = {".py", ".pyc", ".so", ".pyd", ".dll", ".dylib"}
FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "ctypes.dlopen")
DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}

FILE, PROCESS, ANSWERS = "one honest file", "decodes in a fresh process", "answers for each input"
INPUT, WEIGHTS = "answers follow the input", "the weights are in the file"
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
        if self.speedup is not None and not self.speedup > 0:
            raise ValueError(f"speedup={self.speedup!r}; allowed: a number above 0, or None")


# A model of the course has the bytes and the accuracy of each. Digits: what the worst of five seeds of notebook 14's
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
    the student's numbers that are not those that were measured; they decide nothing.
    """

    task: str
    examples: int
    outcomes: tuple[Outcome, ...]
    bytes: int
    accuracy: float = math.nan
    speedup: float = math.nan
    speed_interval: tuple[float, float] = (math.nan, math.nan)
    disagreements: tuple[str, ...] = ()

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


class _Refused(Exception):
    """A trick, or a mistake that looks like one: which criterion it breaks, and one sentence."""

    def __init__(self, criterion: str, sentence: str) -> None:
        super().__init__(sentence)
        self.criterion, self.sentence = criterion, sentence


# ---------------------------------------------------------------- judging


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
        submission: an .onnx or .pack file, or a folder with model.onnx, or with model.pack and model.py, and no more.
        task: one of `BUDGETS`. Inputs are those of `data`; for imdb the packed file holds the vocabulary.
        budget: what it must meet.
        build: for a single .pack file, what makes the module: a function or class without required arguments, a
            sequence of which the last is called, or source that defines `build`. Only its source reaches the process
            that decodes; torch, nn, F, np, math and models are at hand there.
        split: the examples, by default the task's validation split.
        run: the notebook's record, at the end only: then the test split is judged (`split`, or all of it), through
            `run.test`, which logs it.
        claimed: the student's own "bytes", "accuracy" and "speedup": compared, shown, and otherwise ignored.
        rounds: of the timing.

    Raises:
        ValueError: the task is unknown; `split` is the test split; there is no example; the budget asks for the speed
            of a text classifier; `rounds` is not positive; a name in `claimed` is unknown.
        FileNotFoundError: there is no such file.
    """
    known = _TASKS[checks.choice("task", task, _TASKS)]
    if budget.speedup is not None and not known.shape:
        raise ValueError(f"budget.speedup={budget.speedup!r} for task={task!r}; allowed: None, texts are not timed")
    checks.positive("rounds", rounds)
    for name in claimed or {}:
        checks.choice("claimed", name, CLAIMS)
    examples = known.data().validation if split is None else checks.not_empty("split", split)
    if examples.is_test and run is None:
        raise ValueError("split is the test split; allowed: validation while you try, and with `run` at the end")
    if run is not None and not examples.is_test:
        examples = known.data().test
    outcomes: list[Outcome] = []
    found = Judged(task, len(examples), (), 0)
    try:
        content, source = _opened(Path(submission), build)
        found = replace(found, bytes=len(content) + len(source.encode()))
        outcomes.append(
            Outcome(FILE, True, f"{len(content):,} bytes" + (f" + {len(source.encode()):,} of source" * bool(source)))
        )
        answers = _answers(content, source, examples, known, export=budget.speedup is not None)
        measured = _measured(found, answers, examples, run)  # before any label is looked at, so that it is logged
        outcomes += _structure(answers, examples, known)
        found = measured
        outcomes += [_bytes(found, budget), _accuracy(found, budget)]
        if budget.speedup is not None:
            found, outcome = _speed(found, answers.graph or content, examples, budget.speedup, rounds)
            outcomes.append(outcome)
    except _Refused as refused:
        outcomes = [o for o in outcomes if o.criterion != refused.criterion]
        outcomes.append(Outcome(refused.criterion, False, refused.sentence))
        seen = {outcome.criterion for outcome in outcomes}
        left = [c for c in CRITERIA if c not in seen and (c != SPEED or budget.speedup is not None)]
        outcomes += [Outcome(criterion, False, NOT_MEASURED) for criterion in left]
    return replace(found, outcomes=tuple(outcomes), disagreements=_disagreements(found, claimed or {}))


def _measured(found: Judged, answers: "_Answers", examples: "Split", run: "Run | None") -> Judged:
    if run is None:
        right = answers.logits.argmax(1) == np.asarray(examples.labels)
        return replace(found, accuracy=float(right.mean()))
    return replace(found, accuracy=_logged(run, answers.logits, examples))


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


# ---------------------------------------------------------------- the file and the source


def _opened(submission: Path, build: Any) -> tuple[bytes, str]:
    """Return the content of the model's file and the source that goes with it; nothing in either is executed."""
    path, source = submission, "" if build is None else _source(build)
    if submission.is_dir():
        path, source = _in_folder(submission)
    content = path.read_bytes()
    if content.startswith(PICKLES):
        raise _Refused(
            FILE, f"{path.name} is a pickle or a zip, which can hold code: write it with packing or as ONNX."
        )
    if content.startswith(b"MCPACK"):
        if not source:
            raise _Refused(FILE, "a packed file holds numbers only: say by `build` which module they fill.")
        _check_imports(source)
        return content, source
    _check_graph(content)
    return content, ""


def _in_folder(folder: Path) -> tuple[Path, str]:
    names = sorted(path.name for path in folder.iterdir())
    if names == ["model.onnx"]:
        return folder / "model.onnx", ""
    if names == ["model.pack", "model.py"]:
        try:
            return folder / "model.pack", (folder / "model.py").read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise _Refused(FILE, "model.py is not a text in UTF-8.") from None
    raise _Refused(
        FILE, f"the folder holds {', '.join(names) or 'nothing'}; allowed: model.onnx, or model.pack and model.py."
    )


def _source(build: Any) -> str:
    """Return source that defines `build`, of functions and classes, of which the last is called."""
    if isinstance(build, str):
        return build
    parts = list(build) if isinstance(build, Sequence) else [build]
    source = "\n\n".join(map(_source_of, parts))
    return source if parts[-1].__name__ == "build" else f"{source}\n\nbuild = {parts[-1].__name__}\n"


def _source_of(part: Any) -> str:
    if not inspect.isclass(part):
        return textwrap.dedent(inspect.getsource(part))
    # Of a class in a notebook's cell `inspect` finds no file; its methods know theirs.
    methods = [value for value in vars(part).values() if inspect.isfunction(value)]
    lines = linecache.getlines(methods[0].__code__.co_filename) if methods else []
    text = "".join(lines)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and node.name == part.__name__:
            return textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))
    raise ValueError(f"build={part.__name__} has no source that could be read; allowed: source as a text")


def _check_imports(source: str) -> None:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise _Refused(FILE, f"the source is not Python: {error.msg}, line {error.lineno}.") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [f"torch.{node.attr}"]
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            raise _Refused(WEIGHTS, f"the source uses {node.id}, which a network does not need.")
        else:
            continue
        for name in names:
            if UNSEEN_READERS.intersection(name.split(".")):
                raise _Refused(WEIGHTS, f"the source uses {name}, which can read files that no one sees it open.")
            if name.split(".")[0] not in MODULES or (name.startswith("helpers") and "models" not in name.split(".")):
                raise _Refused(WEIGHTS, f"the source imports {name}; allowed: torch, numpy, math, helpers.models.")


def _check_graph(content: bytes) -> None:
    import onnx

    try:
        proto = onnx.load_from_string(content)
        known = bool(proto.graph.node)
    except Exception:  # protobuf's own classes
        known = False
    if not known:
        raise _Refused(FILE, "this is neither a packed file nor an ONNX model.")
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise _Refused(FILE, f"{tensor.name!r} lies in another file: weights must be in the one that is weighed.")
    for node in _nodes(proto.graph):
        if node.domain not in DOMAINS:
            raise _Refused(FILE, f"{node.op_type!r} is of {node.domain!r}, not an operator of ONNX Runtime's own.")


def _graphs(graph: "onnx.GraphProto") -> "Iterator[onnx.GraphProto]":
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                if inner.node or inner.initializer:
                    yield from _graphs(inner)


def _nodes(graph: "onnx.GraphProto") -> "Iterator[onnx.NodeProto]":
    for each in _graphs(graph):
        yield from each.node


def _tensors(proto: "onnx.ModelProto") -> "Iterator[onnx.TensorProto]":
    """Yield every tensor of a model, those in branches, loops, attributes and functions too."""
    nodes = [*_nodes(proto.graph), *(node for function in proto.functions for node in function.node)]
    for graph in _graphs(proto.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


# ---------------------------------------------------------------- the fresh process, from outside


@dataclass(frozen=True)
class _Answers:
    """What the fresh process answered: logits in the order of the examples, and those of the controls."""

    logits: np.ndarray
    alone: np.ndarray  # of the last `ALONE` examples in the order that was asked, one by one, in reverse
    asked: np.ndarray  # which examples those are
    noisy: np.ndarray | None
    shuffled: list[np.ndarray]
    own_numbers: int
    graph: bytes | None


def _answers(content: bytes, source: str, examples: "Split", task: "_Task", *, export: bool) -> _Answers:
    order = np.random.default_rng().permutation(len(examples))  # nobody knows it beforehand
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / ("model.pack" if source else "model.onnx")).write_bytes(content)
        if source:
            (folder / "model.py").write_text(source, encoding="utf-8")
        _write_inputs(folder, examples, order)
        report = _in_fresh_process(folder, export=export and bool(source))
        if "refused" in report:
            raise _Refused(report["criterion"], report["refused"])
        with np.load(folder / "answers.npz") as found:
            arrays = dict(found)
        graph = (folder / "exported.onnx").read_bytes() if (folder / "exported.onnx").exists() else None
    back = np.argsort(order)
    for name, logits in arrays.items():
        _check_logits(name, logits, ALONE if name == "alone" else len(examples), task)
    return _Answers(
        logits=arrays["logits"][back],
        alone=arrays["alone"],
        asked=order[-ALONE:][::-1],
        noisy=arrays["noisy"][back] if "noisy" in arrays else None,
        shuffled=[logits[back] for name, logits in arrays.items() if name.startswith("shuffled")],
        own_numbers=report.get("own_numbers", 0),
        graph=graph,
    )


def _write_inputs(folder: Path, examples: "Split", order: np.ndarray) -> None:
    if isinstance(examples.inputs, list):
        (folder / "inputs.json").write_text(json.dumps([examples.inputs[i] for i in order]), encoding="utf-8")
    else:
        np.save(folder / "inputs.npy", examples.inputs.numpy()[order])


def _in_fresh_process(folder: Path, *, export: bool) -> dict[str, Any]:
    """Let another Python answer in `folder`; return its report, or one that says how it died."""
    kept = {"PATH", "SYSTEMROOT", "TEMP", "TMP", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS"}
    environment = {key: value for key, value in os.environ.items() if key in kept}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", f"from helpers.judging import _work; _work(export={export})"]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"criterion": PROCESS, "refused": f"it had not answered after {SECONDS} seconds."}
    report = folder / "report.json"
    if done.returncode or not report.exists():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"criterion": PROCESS, "refused": f"the fresh process ended with: {last}"}
    return json.loads(report.read_text(encoding="utf-8"))


def _check_logits(name: str, logits: np.ndarray, count: int, task: "_Task") -> None:
    expected = (min(count, len(logits)) if name == "alone" else count, task.classes)
    if logits.shape != expected:
        raise _Refused(ANSWERS, f"the answers have the shape {logits.shape}; asked: {expected}.")
    if name == "logits" and not np.isfinite(logits).all():
        raise _Refused(ANSWERS, f"{(~np.isfinite(logits)).any(1).sum():,} answers hold NaN or infinity.")


def _structure(answers: _Answers, examples: "Split", task: "_Task") -> list[Outcome]:
    """Return the outcomes of what has nothing to do with the budget; raise _Refused at the first that is not met."""
    said, labels = answers.logits.argmax(1), np.asarray(examples.labels)
    accuracy = float((said == labels).mean())
    if len(set(said.tolist())) == 1 and len(set(labels.tolist())) > 1:
        raise _Refused(INPUT, f"the answer is always class {said[0]}, whatever the input.")
    same = float((answers.alone.argmax(1) == said[answers.asked]).mean())
    if same < 0.9:
        raise _Refused(INPUT, f"asked one by one, in another order, only {same:.0%} of the answers are the same.")
    chance = float(np.bincount(labels, minlength=task.classes).max() / len(labels))
    if answers.noisy is not None:
        noisy = float((answers.noisy.argmax(1) == labels).mean())
        if noisy < accuracy - 0.5 * max(accuracy - chance, 0.1):
            raise _Refused(INPUT, f"a change that no eye sees takes the accuracy from {accuracy:.1%} to {noisy:.1%}.")
    if answers.own_numbers > OWN_NUMBERS:
        raise _Refused(
            WEIGHTS, f"the module holds {answers.own_numbers:,} numbers beside the file; allowed: {OWN_NUMBERS}."
        )
    shuffled = [float((logits.argmax(1) == labels).mean()) for logits in answers.shuffled]
    if shuffled and accuracy > chance + 0.1 and min(shuffled) > (accuracy + chance) / 2:
        raise _Refused(WEIGHTS, f"with the file's weights shuffled it is right in {min(shuffled):.1%} all the same.")
    without = f"shuffled, {min(shuffled):.1%} are right" if shuffled else "they are part of the graph"
    return [
        Outcome(PROCESS, True, "nothing but the file was read"),
        Outcome(ANSWERS, True, f"{len(labels):,} × {task.classes}, all finite"),
        Outcome(INPUT, True, f"{same:.0%} the same one by one"),
        Outcome(WEIGHTS, True, without),
    ]


# ---------------------------------------------------------------- the fresh process, from inside


def _work(*, export: bool) -> None:
    """Answer the inputs of the present folder, guarded; write answers.npz and report.json. Runs in a fresh process."""
    import torch

    from helpers import quantization, training  # noqa: F401  code that is read before the guard stands

    torch.set_num_threads(1)
    folder = Path.cwd()
    report: dict[str, Any] = {}
    try:
        inputs = _read_inputs(folder)
        guard = _Guard(folder)
        is_packed = (folder / "model.pack").exists()
        predict, controls = _packed(folder, guard, report) if is_packed else _runtime(folder / "model.onnx")
        with guard:
            answers = {"logits": predict(inputs)}
            answers["alone"] = np.concatenate([predict(_one(inputs, -1 - i)) for i in range(min(ALONE, len(inputs)))])
            if isinstance(inputs, np.ndarray):
                noise = np.random.default_rng(0).standard_normal(inputs.shape, dtype=np.float32)
                answers["noisy"] = predict(inputs + NOISE * noise)
            answers |= controls(inputs)
        np.savez(folder / "answers.npz", **answers)  # type: ignore[arg-type]
        if export:
            _graph(torch.nn.Linear(1, 1), torch.zeros(2, 1))  # what the exporter itself reads, it has read now
            with guard:
                graph = _graph(predict.model, torch.from_numpy(inputs[:2]))  # type: ignore[attr-defined]
            exported = folder / "exported.onnx"
            exported.write_bytes(graph)
            _check_export(exported, inputs, answers["logits"])
    except _Refused as refused:
        report |= {"criterion": refused.criterion, "refused": refused.sentence}
    except Exception as error:  # whatever a student's code does is said in one sentence
        said = (str(error).strip().splitlines() or ["no message"])[0]
        report |= {"criterion": PROCESS, "refused": f"{type(error).__name__}: {said}"}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


class _Guard:
    """While it is entered, Python opens code and one file, and no connection; an attempt is refused for good."""

    def __init__(self, folder: Path) -> None:
        self.model = {str(folder / name) for name in ("model.pack", "model.onnx")}
        self.folder, self.active, self.attempt = folder, False, ""
        sys.addaudithook(self._hook)

    def __enter__(self) -> None:
        self.active = True

    def __exit__(self, *error: object) -> None:
        self.active = False
        if self.attempt:  # also one that the module caught
            raise _Refused(WEIGHTS, self.attempt)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open" and not self._may_open(arguments[0]):
            self._refuse(f"the module opens {Path(str(arguments[0])).name}, which is not its file.")
        if event.startswith(FORBIDDEN):
            self._refuse(f"the module asks the system for {event}, which a network does not need.")
        if event == "import" and str(arguments[0]).split(".")[0] in ("safetensors", "pickle5", "urllib3", "requests"):
            self._refuse(f"the module imports {arguments[0]}, which a network does not need.")

    def _may_open(self, path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return True
        text = os.fsdecode(path)
        is_code = Path(text).suffix in CODE and os.path.realpath(text).startswith(tuple(CODE_PLACES))
        return os.path.abspath(text) in self.model or is_code or text == os.devnull

    def _refuse(self, sentence: str) -> None:
        self.attempt = self.attempt or sentence
        raise PermissionError(sentence)


Predict = Callable[[Any], np.ndarray]
Controls = Callable[[Any], dict[str, np.ndarray]]


def _read_inputs(folder: Path) -> Any:
    """Return the inputs, and leave no copy of them beside the model."""
    path = folder / "inputs.npy"
    if path.exists():
        inputs = np.load(path)
    else:
        path = folder / "inputs.json"
        inputs = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    return inputs


def _one(inputs: Any, place: int) -> Any:
    return inputs[place:][:1]


def _packed(folder: Path, guard: _Guard, report: dict[str, Any]) -> tuple[Predict, Controls]:
    import torch
    from torch import nn

    from helpers import packing, training

    source, path = (folder / "model.py").read_text(encoding="utf-8"), folder / "model.pack"
    names: dict[str, Any] = {"torch": torch, "nn": nn, "F": nn.functional, "np": np, "math": math}
    if "models" in source:  # torchvision comes with it, and takes seconds
        from helpers import models

        names["models"] = models
    words = packing.read_words(path)

    def built() -> nn.Module:
        namespace = names | {"__name__": "submission"}
        exec(compile(source, "model.py", "exec"), namespace)
        if not callable(namespace.get("build")):
            raise _Refused(PROCESS, "the source defines no function `build`.")
        module: Any = namespace["build"]()
        if not isinstance(module, nn.Module):
            raise _Refused(PROCESS, f"build() returns a {type(module).__name__}; asked: an nn.Module.")
        return module

    with guard:
        module = built()
        report["own_numbers"] = _own_numbers(module)
        model = packing.load_into(module, path).eval()

    def predict_with(model: nn.Module, inputs: Any) -> np.ndarray:
        tensor = torch.from_numpy(_encoded(inputs, words) if isinstance(inputs, list) else inputs)
        return np.asarray(training.predict(model, tensor))

    def controls(inputs: Any) -> dict[str, np.ndarray]:
        shuffled = [_shuffled(packing.load_into(built(), path), seed) for seed in range(3)]
        return {f"shuffled{i}": predict_with(model, inputs) for i, model in enumerate(shuffled)}

    def predict(inputs: Any) -> np.ndarray:
        return predict_with(model, inputs)

    predict.model = model  # type: ignore[attr-defined]
    return predict, controls


def _encoded(texts: list[str], words: list[str]) -> np.ndarray:
    from helpers import vocabulary

    tokens = [vocabulary.tokenize(text) for text in texts]
    if any(" " in word for word in words):
        tokens = [vocabulary.with_bigrams(each) for each in tokens]
    return vocabulary.encode(tokens, words)


def _own_numbers(module: "nn.Module") -> int:
    """Return how many numbers a module holds in tensors, arrays and lists that its `state_dict` does not name."""
    import torch

    saved = {tensor.data_ptr() for tensor in module.state_dict().values()}
    seen: set[int] = set()

    def count(value: Any, depth: int = 0) -> int:
        if id(value) in seen or depth > 6:
            return 0
        if isinstance(value, torch.Tensor):
            seen.add(id(value))
            return 0 if value.data_ptr() in saved else value.numel()
        if isinstance(value, np.ndarray):
            return int(value.size)
        if isinstance(value, bytes | str):
            return len(value) // 4
        if isinstance(value, Mapping):
            return sum(count(each, depth + 1) for each in value.values())
        if isinstance(value, list | tuple | set):
            return (
                len(value)
                if all(isinstance(v, int | float) for v in value)
                else sum(count(v, depth + 1) for v in value)
            )
        if inspect.isfunction(value):
            return sum(count(cell.cell_contents, depth + 1) for cell in value.__closure__ or ())
        return 0

    total = 0
    for part in module.modules():
        own = {k: v for k, v in vars(part).items() if k not in ("_parameters", "_modules")}
        total += sum(count(value) for value in own.values())
        if type(part).__module__ == "submission":
            total += sum(count(value) for key, value in vars(type(part)).items() if not key.startswith("__"))
    return total


def _shuffled(model: "nn.Module", seed: int) -> "nn.Module":
    """Return the model with the elements of each tensor that the file filled in another order."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.numel() > 1:
                order = torch.randperm(tensor.numel(), generator=generator)
                tensor.copy_(tensor.flatten()[order].view_as(tensor))
    return model.eval()


def _runtime(path: Path) -> tuple[Predict, Controls]:
    from helpers import deploy

    try:
        runtime = deploy.session(path)
    except ValueError as error:
        raise _Refused(PROCESS, str(error)) from None

    def predict(inputs: np.ndarray) -> np.ndarray:
        starts = range(0, len(inputs), 250)
        return np.concatenate([deploy.run(runtime, inputs[start : start + 250]) for start in starts])

    return predict, lambda inputs: {}


def _check_export(path: Path, inputs: Any, logits: np.ndarray) -> None:
    """Refuse a module whose graph, which is timed, answers otherwise than the module, which is counted."""
    predict, _ = _runtime(path)
    same = float((predict(inputs).argmax(1) == logits.argmax(1)).mean())
    if same < SAME_GRAPH:
        raise _Refused(
            PROCESS, f"exported to ONNX, {same:.1%} of the answers are the same: what is timed is another network."
        )


def _graph(model: "nn.Module", example: "Tensor") -> bytes:
    """Return a module as ONNX by PyTorch's older exporter: the newer one takes seconds to load."""
    import torch

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there is a newer one
        torch.onnx.export(
            model.eval(),
            (example,),
            file,  # type: ignore[arg-type]  # it takes what can be written to, too
            dynamo=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )
    return file.getvalue()


# ---------------------------------------------------------------- speed


def _speed(found: Judged, graph: bytes, examples: "Split", asked: float, rounds: int) -> tuple[Judged, Outcome]:
    """Time both files interleaved, the dense network twice; met only if the whole interval reaches what is asked."""
    from helpers import deploy, measure

    sessions = [deploy._session(content, threads=1) for content in (_reference(found.task), graph)]
    place = int(np.random.default_rng().integers(len(examples)))
    one = np.ascontiguousarray(examples.inputs[place : place + 1].numpy())  # a real one: noise could take another path
    calls = {name: _call(session, one) for name, session in zip(("dense", "submission"), sessions, strict=True)}
    for attempt in range(1, ATTEMPTS + 1):  # a busy machine may leave it open: then once more, and longer
        verdict = measure.compare(measure.time_interleaved(calls, rounds=attempt * rounds))["submission"]
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
    from helpers import deploy

    return lambda: deploy.run(session, inputs)


# ---------------------------------------------------------------- the tasks


@dataclass(frozen=True)
class _Task:
    data: Callable[[], Any]
    classes: int
    shape: tuple[int, ...]
    dense: str  # a function of `models`


def _data(name: str) -> Callable[[], Any]:
    def load() -> Any:
        from helpers import data

        return getattr(data, name)()

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

    from helpers import models

    known = _TASKS[task]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _graph(getattr(models, known.dense)(), torch.zeros(2, *known.shape))
