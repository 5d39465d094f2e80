"""Which network of the course a file holds, by its header or by the names and shapes of its arrays. Needs no PyTorch.

A *stated* architecture is the text in a file's header (see `helpers.files.payload`): one of `FAMILIES`, and after a
colon what the arrays do not show, where it is not the usual:

    lenet5  lenet300100  mlp  cifarnet  resnet18  textbag  textcnn  rnn  lstm  transformer
    resnet18:32             images are enlarged to 32 pixels, not to 64
    textcnn:100 (rnn, lstm) 100 words of a text are read, not 250
    transformer:64          a head has 64 numbers, not 32

The empty text says that the network is none of these, although its arrays look like one. Widths are nowhere stated: the
shapes of the arrays have them. Arrays of files that state nothing (before version 3, or written from arrays by name)
are recognised by their names.

Layers may be narrower or wider than in `helpers.nets`, BatchNorm folded away, biases left out, and residual blocks
removed. Of a transformer each layer has its own number of heads, and there may be any number of layers; they are
numbered anew where some were removed. Kernels are those of `helpers.nets`. No layer has more than `WIDEST` rows, nor
more than `HEADS` heads, so that what a forged file asks for stays small.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from helpers.core.vocabulary import PAD

WIDEST = 4_096  # rows of a layer: filters, units, gates; with more, one image takes gigabytes
HEADS = 128  # of a layer: each compares every token of a text with every other
LONGEST = 32  # characters of a stated architecture
STEP = ".step"  # notebook 00's own format: a weight's whole numbers, and under this name the step that they count
INPUT_GRID = ".input_grid"
HEAD_WIDTH = "head_width"
NORM = ("weight", "bias", "running_mean", "running_var")
Shapes = Mapping[str, tuple[int, ...]]


class Option(NamedTuple):
    """A number that shapes a network and no array: its name, the usual value, the largest."""

    name: str
    usual: int
    most: int


class Family(NamedTuple):
    """Networks of one shape, at any width: in words, the layers they are known by, how to look through their arrays."""

    title: str
    known_by: tuple[str, ...]
    walk: Callable[["_Walk"], object]
    option: Option | None = None


class Architecture(NamedTuple):
    """A network of `FAMILIES`: rows of each layer, what no array shows, and which residual blocks are not there."""

    name: str
    widths: dict[str, int]
    options: dict[str, int]
    removed: tuple[str, ...]


def stated(architecture: Architecture) -> str:
    """Return the text for a file's header."""
    option = FAMILIES[architecture.name].option
    if option is None or architecture.options[option.name] == option.usual:
        return architecture.name
    return f"{architecture.name}:{architecture.options[option.name]}"


def survey(shapes: Shapes, text: str | None = None) -> Architecture:
    """Return the architecture that a header states, or that the arrays show if it states nothing (None).

    Raises ValueError, in one sentence, for an unknown or empty text, and for arrays that are not those of the network.
    """
    name = recognise(shapes) if text is None else text.partition(":")[0]
    if not name:
        names = ", ".join(name[:LONGEST] for name in [*shapes][:4])
        shown = f"named in the header or shown by the arrays ({names}, …)"
        raise ValueError(f"no network is {shown}; allowed: the networks of this course")
    if name not in FAMILIES:
        raise ValueError(f"the header names the architecture {name[:LONGEST]!r}; allowed: {', '.join(FAMILIES)}")
    options = _options(name, text or name)
    walk = _Walk(shapes, options)
    try:
        FAMILIES[name].walk(walk)
        walk.end()
    except ValueError as error:
        begins = "begins as" if text is None else "says that it is"
        raise ValueError(f"it {begins} {FAMILIES[name].title}, but does not fit it: {error}") from None
    return Architecture(name, walk.widths, options, tuple(walk.removed))


def recognise(shapes: Shapes) -> str | None:
    """Return the name of the family whose layers are among these arrays, None if there is none."""
    known = [name for name, each in FAMILIES.items() if all(f"{layer}.weight" in shapes for layer in each.known_by)]
    if not known:
        return None
    if known[0] == "lenet300100":  # both answer alike; an MLP's hidden layers have one width
        return "mlp" if shapes["fc1.weight"][:1] == shapes["fc2.weight"][:1] else "lenet300100"
    if known[0] == "rnn":
        return "rnn" if len({*shapes["encoder.recurrent.weight"]}) == 1 else "lstm"
    return known[0]


def _options(name: str, text: str) -> dict[str, int]:
    option, (_, colon, number) = FAMILIES[name].option, text.partition(":")
    if option is None and not colon:
        return {}
    if option is None:
        raise ValueError(f"the header names the architecture {text[:LONGEST]!r}; allowed: {name!r}")
    if not colon:
        return {option.name: option.usual}
    if not (number.isascii() and number.isdigit() and len(number) <= 9 and 1 <= int(number) <= option.most):
        raise ValueError(f"the header says {option.name}={number[:LONGEST]!r}; allowed: 1 to {option.most:,}")
    return {option.name: int(number)}


class _Walk:
    """Goes from layer to layer, and requires of each that it reads what the layer before it makes."""

    def __init__(self, shapes: Shapes, options: Mapping[str, int]) -> None:
        self.shapes, self.options = shapes, options
        self.widths: dict[str, int] = {}
        self.removed: list[str] = []
        self.used: set[str] = set()

    def has(self, layer: str) -> bool:
        return f"{layer}.weight" in self.shapes

    def layer(self, name: str, inputs: int, *kernel: int, rows: int | None = None) -> int:
        """Return the rows of a convolution or linear layer that reads so many inputs; with `rows`, require so many."""
        weight = f"{name}.weight"
        shape = self._get(weight, 2 + len(kernel))
        if not 1 <= shape[0] <= WIDEST:
            raise ValueError(f"{weight!r} is for {shape[0]:,} units; allowed: 1 to {WIDEST:,}")
        expected = (shape[0] if rows is None else rows, inputs, *kernel)
        if shape != expected:
            raise ValueError(f"{weight!r} has the shape {shape}; allowed: {expected}")
        if f"{name}.bias" in self.shapes:
            self._numbers(f"{name}.bias", shape[0], ", one for each unit")
        if f"{name}{INPUT_GRID}" in self.shapes:
            self._numbers(f"{name}{INPUT_GRID}", 4)
        self.widths[name] = shape[0]
        return shape[0]

    def norm(self, name: str, channels: int) -> int:
        """Look at a BatchNorm, if it was not folded into the convolution before it."""
        if self.has(name):
            for part in NORM:
                self._numbers(f"{name}.{part}", channels, ", one for each unit")
            if f"{name}.num_batches_tracked" in self.shapes:
                self._get(f"{name}.num_batches_tracked", 0)
        return channels

    def layer_norm(self, name: str, units: int) -> None:
        """Look at a LayerNorm: it cannot be folded, since each token has its own mean and variance."""
        for part in ("weight", "bias"):
            self._numbers(f"{name}.{part}", units, ", one for each unit")

    def places(self, name: str, dimensions: int) -> None:
        """Look at a vector for each place in a text."""
        shape = self._get(f"{name}.weight", 2)
        if shape[0] < 1 or shape[1] != dimensions:
            raise ValueError(f"'{name}.weight' has the shape {shape}; allowed: one place or more, of {dimensions}")
        self.widths[name] = shape[0]

    def embedding(self) -> int:
        """Return how many numbers a word has."""
        words, dimensions = self._get("embedding.weight", 2)
        if words <= PAD or not 1 <= dimensions <= WIDEST:
            allowed = f"{PAD + 1} words or more, of 1 to {WIDEST:,} numbers"
            raise ValueError(f"'embedding.weight' has the shape {(words, dimensions)}; allowed: {allowed}")
        self.widths["embedding"] = dimensions
        return dimensions

    def end(self) -> None:
        """Require that everything was looked at."""
        if unused := sorted(self.shapes.keys() - self.used):
            raise ValueError(f"it has no place for {unused[0]!r}")

    def _get(self, name: str, dimensions: int) -> tuple[int, ...]:
        self.used.add(name)
        if name not in self.shapes:
            raise ValueError(f"{name!r} is missing")
        if len(self.shapes[name]) != dimensions:
            raise ValueError(f"{name!r} has {len(self.shapes[name])} dimensions; allowed: {dimensions}")
        return tuple(self.shapes[name])

    def _numbers(self, name: str, count: int, each: str = "") -> None:
        (found,) = self._get(name, 1)
        if found != count:
            raise ValueError(f"{name!r} holds {found} numbers; allowed: {count}{each}")


def _lenet5(walk: _Walk) -> None:
    second = walk.layer("conv2", walk.layer("conv1", 1, 5, 5), 5, 5)
    walk.layer("fc2", walk.layer("fc1", 4 * 4 * second))


def _perceptron(walk: _Walk) -> None:
    walk.layer("fc3", walk.layer("fc2", walk.layer("fc1", 28 * 28)))


def _cifar_net(walk: _Walk) -> None:
    def block(name: str, x: int, rows: int | None = None) -> int:
        return walk.norm(f"{name}.bn", walk.layer(f"{name}.conv", x, 3, 3, rows=rows))

    def residual(name: str, x: int) -> int:
        if not walk.has(f"{name}.block1.conv"):
            walk.removed.append(name)
            return x
        return block(f"{name}.block2", block(f"{name}.block1", x), x)

    x = residual("res1", block("conv1", block("stem", 3)))
    x = residual("res2", block("conv3", block("conv2", x)))
    walk.layer("fc", x)


def _resnet18(walk: _Walk) -> None:
    x = walk.norm("bn1", walk.layer("conv1", 3, 7, 7))
    for stage in (1, 2, 3, 4):
        x = _basic_block(walk, f"layer{stage}.0", x, halves=stage > 1)
        x = _basic_block(walk, f"layer{stage}.1", x, halves=False)
    walk.layer("fc", x)


def _basic_block(walk: _Walk, name: str, x: int, *, halves: bool) -> int:
    """Look at a block; one that halves height and width has a convolution on its shortcut, and cannot be removed."""
    if not halves and not walk.has(f"{name}.conv1"):
        walk.removed.append(name)
        return x
    inside = walk.norm(f"{name}.bn1", walk.layer(f"{name}.conv1", x, 3, 3))
    if halves or walk.has(f"{name}.downsample.0"):
        x = walk.norm(f"{name}.downsample.1", walk.layer(f"{name}.downsample.0", x, 1, 1))
    return walk.norm(f"{name}.bn2", walk.layer(f"{name}.conv2", inside, 3, 3, rows=x))


def _text_bag(walk: _Walk) -> None:
    walk.layer("fc2", walk.layer("fc1", walk.embedding()))


def _text_cnn(walk: _Walk) -> None:
    walk.layer("fc", walk.layer("encoder.conv", walk.embedding(), 3))


def _biased(walk: _Walk) -> None:
    """Require the biases of a recurrent encoder, without which its kernel does not run."""
    for name in ("encoder.input.bias", "encoder.recurrent.bias"):
        if name not in walk.shapes:
            raise ValueError(f"it lacks {name!r}")


def _rnn(walk: _Walk) -> None:
    units = walk.layer("encoder.input", walk.embedding())
    walk.layer("fc", walk.layer("encoder.recurrent", units, rows=units))
    _biased(walk)


def _lstm(walk: _Walk) -> None:
    rows = walk.layer("encoder.input", walk.embedding())
    if rows % 4:
        raise ValueError(f"'encoder.input.weight' has {rows} rows; allowed: four for each unit")
    walk.layer("encoder.recurrent", rows // 4, rows=rows)
    walk.layer("fc", rows // 4)
    _biased(walk)


def _transformer(walk: _Walk) -> None:
    x, number = walk.embedding(), 0
    walk.places("position", x)
    walk.layer_norm("norm", x)
    while walk.has(f"layers.{number}.attention.query"):
        _encoder_layer(walk, f"layers.{number}", x)
        number += 1
    walk.layer("fc", x)


def _encoder_layer(walk: _Walk, name: str, x: int) -> None:
    query = f"{name}.attention.query"
    rows, width = walk.layer(query, x), walk.options[HEAD_WIDTH]
    if rows % width or rows > HEADS * width:
        raise ValueError(f"'{query}.weight' has {rows} rows; allowed: {width} for each of 1 to {HEADS} heads")
    for other in ("key", "value"):
        walk.layer(f"{name}.attention.{other}", x, rows=rows)
    walk.layer(f"{name}.attention.output", rows, rows=x)
    walk.layer_norm(f"{name}.norm1", x)
    walk.layer(f"{name}.fc2", walk.layer(f"{name}.fc1", x), rows=x)
    walk.layer_norm(f"{name}.norm2", x)


_RECURRENT = ("embedding", "encoder.input", "encoder.recurrent", "fc")
_MAX_TOKENS = Option("max_tokens", 250, 100_000)
_HEAD_WIDTH = Option(HEAD_WIDTH, 32, WIDEST)
FAMILIES = {
    "lenet5": Family("LeNet-5", ("conv1", "conv2", "fc1", "fc2"), _lenet5),
    "lenet300100": Family("a perceptron of two hidden layers", ("fc1", "fc2", "fc3"), _perceptron),
    "mlp": Family("a perceptron of two hidden layers", ("fc1", "fc2", "fc3"), _perceptron),
    "cifarnet": Family("a CIFAR net", ("stem.conv", "conv1.conv", "fc"), _cifar_net),
    "resnet18": Family("a ResNet-18", ("conv1", "layer2.0.conv1", "fc"), _resnet18, Option("pixels", 64, 512)),
    "textbag": Family("a bag of word vectors", ("embedding", "fc1", "fc2"), _text_bag),
    "textcnn": Family("a convolutional text network", ("embedding", "encoder.conv", "fc"), _text_cnn, _MAX_TOKENS),
    "rnn": Family("a recurrent text network", _RECURRENT, _rnn, _MAX_TOKENS),
    "lstm": Family("an LSTM text network", _RECURRENT, _lstm, _MAX_TOKENS),
    "transformer": Family("a transformer", ("embedding", "position", "norm", "fc"), _transformer, _HEAD_WIDTH),
}


def values(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of a file, with the whole numbers of notebook 00 times their steps, in float32.

    Raises ValueError for a type that is no real number, and for a step that does not fit its array.
    """
    for name, array in arrays.items():
        if array.dtype.kind == "c":
            raise ValueError(f"{name!r} has the type {array.dtype}; allowed: real numbers")
    return dict(_multiplied(arrays))


def _multiplied(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in arrays.items():
        step: Any = arrays.get(f"{name}{STEP}")
        if name.endswith(STEP) and name.removesuffix(STEP) in arrays:
            continue
        yield name, array if step is None else _times(array, step)


def _times(array: np.ndarray, step: np.ndarray) -> np.ndarray:
    sides = zip(step.shape[::-1], array.shape[::-1], strict=False)
    if step.ndim > array.ndim or any(side not in (1, whole) for side, whole in sides):
        raise ValueError(f"a step has the shape {step.shape} for an array of {array.shape}")
    with np.errstate(all="ignore"):
        return np.asarray(array, np.float32) * np.asarray(step, np.float32)
