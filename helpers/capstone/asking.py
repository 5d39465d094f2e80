"""The judge asks: inputs go into a sandbox, in an order that nobody knows before, and logits come out.

Inputs are asked in batches and one by one, and so are copies that were changed by less than an eye sees. A module
is asked with its weights shuffled, too; the graph made of it, which is timed, answers in a process of its own.
Whatever comes out is of a known size and type, or is refused.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.capstone import answering, sandbox
from helpers.capstone.answering import PROCESS
from helpers.capstone.submission import Refused, check_graph
from helpers.files.payload import MAGIC

if TYPE_CHECKING:
    from helpers.data.splits import Split

ANSWERS = "answers for each input"
NOISE = 0.05  # of inputs with a standard deviation of about 1: three or four of 255 steps, so rounding keeps it
BATCH = 64
ALONE = 1_000  # images that are asked one by one: of two networks that differ in 1 %, it shows
SHUFFLED = 1_000  # examples that are asked with shuffled weights at most
LARGEST_GRAPH = 512 << 20  # bytes


@dataclass(frozen=True)
class Questions:
    """What is asked: the inputs, `ALONE` copies that look the same, and which inputs those are copies of.

    The inputs that are asked one by one are the ones that were copied, then copies, `ALONE` of both together. Of texts
    there are no copies.
    """

    inputs: Any
    changed: Any
    places: np.ndarray

    def alone(self) -> tuple[Any, Any]:
        """Return the inputs and the copies that are asked one by one."""
        chosen = [self.inputs[i] for i in self.places[: len(self.inputs)]]
        return chosen if isinstance(self.inputs, list) else np.stack(chosen), self.changed[: ALONE - len(chosen)]


@dataclass(frozen=True)
class Ways:
    """The logits of one network: of all inputs and of all copies, in batches, and of those that were asked alone."""

    batches: np.ndarray
    changed: np.ndarray
    alone: np.ndarray

    def same(self, reference: "Ways", questions: Questions) -> float:
        """Return the share of answers that are those of `reference` in batches, where fewest are."""
        in_batches = np.concatenate([reference.batches, reference.changed])
        once = np.concatenate([reference.batches[questions.places[: len(self.batches)]], reference.changed])
        pairs = [(np.concatenate([self.batches, self.changed]), in_batches), (self.alone, once[: len(self.alone)])]
        return min(float((found.argmax(1) == expected.argmax(1)).mean()) for found, expected in pairs)


@dataclass(frozen=True)
class Answers:
    """What came out of the sandboxes: first the submission's answers, then those of the graph made of its module."""

    questions: Questions
    ways: list[Ways]
    walls: str
    shuffled: list[np.ndarray]
    own_numbers: int
    graph: bytes

    def logits(self, labels: np.ndarray) -> np.ndarray:
        """Return the logits that count, the module's or its graph's: those of which fewer are right."""
        return min((way.batches for way in self.ways), key=lambda logits: int((logits.argmax(1) == labels).sum()))


def ask(
    content: bytes, source: str, examples: "Split", *, classes: int, shape: tuple[int, ...], export: bool
) -> Answers:
    """Return what a file and its source answer; with `export`, also what the module's graph answers.

    A graph has no source, "", and a packed file none if `files.load` knows its network.

    `shape` is that of one input. Raises Refused for what answers otherwise than with finite logits.
    """
    questions = _questions(examples)
    try:
        if not source and not content.startswith(MAGIC):
            ways, walls = _of_graph(content, questions, classes)
            return Answers(questions, [ways], walls, [], 0, content)
        with sandbox.Sandbox("network") as child:
            child.send({}, content)
            child.send({"export": [2, *shape] if export else None}, source.encode())
            made = _received(child)
            graph = child.read(_size(made, "size", LARGEST_GRAPH))  # before it has seen an input
            asked = [_ways(child, questions, classes)]
            few = questions.inputs[:SHUFFLED]
            shuffled = [_ask(child, few, classes, weights=1 + i) for i in range(answering.SHUFFLES)]
            walls = child.walls
        if export:
            check_graph(graph, PROCESS)
            asked.append(_of_graph(graph, questions, classes)[0])
        return Answers(questions, asked, walls, shuffled, _size(made, "own_numbers", math.inf), graph)
    except sandbox.Broken as broken:
        raise Refused(PROCESS, str(broken)) from None


def _questions(examples: "Split") -> Questions:
    generator = np.random.default_rng()
    order = generator.permutation(len(examples))
    if isinstance(examples.inputs, list):
        return Questions(examples.inputs, [], order[:ALONE])
    inputs, places = np.asarray(examples.inputs.detach().cpu(), np.float32), np.resize(order, ALONE)
    noise = generator.standard_normal((ALONE, *inputs.shape[1:]), dtype=np.float32)
    return Questions(inputs, inputs[places] + np.float32(NOISE) * noise, places)


def _of_graph(graph: bytes, questions: Questions, classes: int) -> tuple[Ways, str]:
    """Return the answers of a graph, from a process in which there is no student's code."""
    with sandbox.Sandbox("graph") as child:
        child.send({}, graph)
        _received(child)
        return _ways(child, questions, classes), child.walls


def _ways(child: sandbox.Sandbox, questions: Questions, classes: int) -> Ways:
    alone = [_ask(child, part, classes, batch=1) for part in questions.alone()]
    batches, changed = (_ask(child, part, classes) for part in (questions.inputs, questions.changed))
    if broken := int((~np.isfinite(np.concatenate([batches, changed, *alone]))).any(1).sum()):
        raise Refused(ANSWERS, f"{broken:,} answers hold NaN or infinity.")
    return Ways(batches, changed, np.concatenate(alone))


def _ask(child: sandbox.Sandbox, inputs: Any, classes: int, *, batch: int = BATCH, weights: int = 0) -> np.ndarray:
    """Return the logits of inputs, which are asked in an order that nobody knows before."""
    count = len(inputs)
    if not count:
        return np.empty((0, classes), np.float32)
    order = np.random.default_rng().permutation(count)
    is_text = isinstance(inputs, list)
    payload = json.dumps([inputs[i] for i in order]).encode() if is_text else inputs[order].tobytes()
    shape = None if is_text else inputs.shape
    child.send({"shape": shape, "batch": batch, "weights": weights}, payload)
    found = _received(child).get("shape")
    if found != [count, classes]:
        shape = tuple(found) if isinstance(found, list) else found
        raise Refused(ANSWERS, f"the answers have the shape {shape!r:.100}; asked: {(count, classes)}.")
    logits = np.empty((count, classes), np.float32)
    logits[order] = np.frombuffer(child.read(logits.nbytes), np.float32).reshape(logits.shape)
    return logits


def _received(child: sandbox.Sandbox) -> dict[str, Any]:
    """Return the next header, none of which is believed; raise Refused if it says that there is no answer."""
    header = child.receive()
    if "refused" not in header:
        return header
    match header["refused"]:
        case [(answering.PROCESS | answering.WEIGHTS) as criterion, str(sentence)]:
            raise Refused(criterion, " ".join(sentence.split())[: answering.LONGEST])
    raise sandbox.Broken("the fresh process sent what is no answer.")


def _size(header: Mapping[str, Any], name: str, most: float) -> int:
    size = header.get(name)
    if not isinstance(size, int) or not 0 <= size <= most:
        raise sandbox.Broken(f"the fresh process sent {name}={size!r:.100}; allowed: up to {most:,}.")
    return size
