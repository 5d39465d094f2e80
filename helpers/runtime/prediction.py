"""What an image shows, or a text says, by a model's file alone: no PyTorch, neither to import nor to install.

A packed file needs NumPy, and `constriction` if it is entropy-coded, an ONNX file ONNX Runtime; an image needs Pillow.
A packed file holds arrays and no graph; which network they are, `families` finds in its header or by their names. It is
one of `helpers.nets`, at any width, whole or pruned, with filters or residual blocks removed, weights and inputs of
layers in few bits, BatchNorm folded or not. Nothing names the classes; their number and the number of colours do. Ten
classes in grey are MNIST's digits, in colour CIFAR-10's; two classes are cat and dog, eight are CIFAR-10's others.
Of the networks that read texts the transformer is here; its two classes are IMDb's. It answers without PyTorch, but
`data.pieces`, which splits a text into its tokens, needs PyTorch and `tokenizers`.

ONNX Runtime runs whatever graph a file holds, for as long as that takes: use files of people whom you trust. A file
that `fastest` wrote is opened in the runtime that it chose, if that is installed.
"""

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from helpers import files
from helpers.core.vocabulary import encode
from helpers.files import families, payload
from helpers.runtime import openvino, sessions
from helpers.runtime.choosing import CHOICE
from helpers.runtime.images import CHUNK, PIXELS, Floats, chunks, existing, read_image
from helpers.runtime.layers import Layers, in_numpy, texts_in_numpy
from helpers.runtime.networks import NETWORKS, READERS

PHOTOGRAPHS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PETS = ("cat", "dog")
OPINIONS = ("negative", "positive")  # of a film
LABELS = {
    (1, 10): tuple("0123456789"),
    (3, 10): PHOTOGRAPHS,
    (3, 2): PETS,
    (3, 8): tuple(name for name in PHOTOGRAPHS if name not in PETS),
}


class Prediction(NamedTuple):
    """The answer: its label, the probability of each label, and what was done to an image first."""

    label: str
    probabilities: dict[str, float]
    notes: tuple[str, ...]


class Network(NamedTuple):
    """A network from a file: what it is, what it takes (colours, and as many pixels high and wide), how it answers.

    `logits` maps standardized images, float32 (batch, channels, pixels, pixels), to (batch, classes).
    """

    name: str
    channels: int
    pixels: int
    labels: tuple[str, ...]
    logits: Callable[[Floats], Floats]


class TextNetwork(NamedTuple):
    """A network that reads texts: what it is, its words, how many tokens it takes at most, how it answers.

    `words` is empty if the file holds none. `logits` maps numbers of words, whole numbers (batch, length), padded at
    the end, to (batch, classes).
    """

    name: str
    words: list[str]
    longest: int
    labels: tuple[str, ...]
    logits: Callable[[np.ndarray], Floats]


def predict(file: Path | str, given: Path | str) -> Prediction:
    """Return what the network in `file` (packed, or ONNX) sees in an image (PNG or JPEG), or reads in a text.

    `given` is the path of the image, which may be of any size and have transparency: see `read_image`; to a network
    that reads texts it is the text itself, of which it reads 256 pieces at most: see `data.pieces.tokenize`.

    Raises what `open_network`, `read_image` and `data.pieces.tokenize` raise, and ValueError for a network that answers
    NaN or brings no words to read a text with.
    """
    network = open_network(file)
    inputs, notes = _read(file, network, given)
    logits = network.logits(inputs)[0].astype(np.float64)
    if not np.isfinite(logits).all():
        raise ValueError(f"file={str(file)!r} answers NaN or infinity; allowed: a network whose answers are finite")
    shares = np.exp(logits - logits.max())
    probabilities = {label: float(p) for label, p in zip(network.labels, shares / shares.sum(), strict=True)}
    return Prediction(max(probabilities, key=probabilities.__getitem__), probabilities, notes)


def _read(file: Path | str, network: Network | TextNetwork, given: Path | str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return an image or a text as a batch of one, and what was done to the image."""
    if isinstance(network, TextNetwork):
        return _read_text(file, network, str(given)), ()
    pixels, notes = read_image(given, channels=network.channels, pixels=network.pixels)
    return pixels[None], notes


def _read_text(file: Path | str, network: TextNetwork, text: str) -> np.ndarray:
    """Return the numbers of a text's pieces, (1, length)."""
    from helpers.data import pieces  # which imports PyTorch

    if not network.words:
        raise ValueError(f"file={str(file)!r} holds no words; allowed: a file that was written with them")
    most = min(pieces.MAX_TOKENS, network.longest)
    try:
        return encode(pieces.tokenize([text], max_tokens=most, head=max(1, most // 4)), network.words)
    except ValueError as error:
        raise ValueError(f"file={str(file)!r}: {error}") from None


def open_network(file: Path | str) -> Network | TextNetwork:
    """Return the network of a packed file or of an ONNX file; which of the two it is, its first bytes say.

    Raises FileNotFoundError if there is no such file, files.PackingError for a packed file that is damaged, and
    ValueError for one that is neither, or whose network is none that `runtime.networks` has.
    """
    path = existing("file", file)
    with path.open("rb") as content:
        packed = content.read(len(payload.MAGIC)) == payload.MAGIC
    return _packed(path) if packed else _onnx(path)


def _onnx(path: Path) -> Network:
    import onnxruntime  # noqa: F401  said here that it is missing, where `session` would speak of a bad file

    session = sessions.session(path)
    given, found = session.get_inputs(), session.get_outputs()
    shape = given[0].shape if len(given) == 1 else []
    if len(shape) != 4 or shape[1:] not in [[c, p, p] for c, p in PIXELS.items()]:
        raise ValueError(f"file={str(path)!r} takes {[g.shape for g in given]}; allowed: images of {_allowed_images()}")
    if not found or found[0].type != "tensor(float)" or len(found[0].shape) != 2:
        answers = [f"{each.type} {each.shape}" for each in found]
        raise ValueError(f"file={str(path)!r} answers {answers}; allowed: first tensor(float), (batch, classes)")
    if given[0].type != "tensor(float)" or (isinstance(shape[0], int) and shape[0] != 1):
        taken = f"{given[0].type} in batches of {shape[0]}"
        raise ValueError(f"file={str(path)!r} takes {taken}; allowed: tensor(float), one by one or any number")
    labels = _labels(path, shape[1], found[0].shape[1])
    chosen = session.get_modelmeta().custom_metadata_map.get(CHOICE, "")
    logits = _in_runtime(path, _way(path, session, chosen), len(labels), one_by_one=shape[0] == 1)
    return Network("an ONNX graph", shape[1], shape[2], labels, logits)


def _way(path: Path, session: Any, chosen: str) -> Callable[[Floats], Floats]:
    """Return what answers: ONNX Runtime, or OpenVINO if `fastest` chose it, and it is here."""
    if not chosen.endswith("OpenVINO") or importlib.util.find_spec("openvino") is None:
        return partial(sessions.run, session)
    return openvino.opened(path, precision="bfloat16" if chosen.startswith("bfloat16") else "float32")


def _in_runtime(
    path: Path, way: Callable[[Floats], Floats], classes: int, *, one_by_one: bool
) -> Callable[[Floats], Floats]:
    def answers(images: Floats) -> Floats:
        try:
            found = way(images)
        except ValueError as error:
            raise ValueError(f"file={str(path)!r}: {error}") from None
        if found.shape != (len(images), classes):
            shapes = f"{found.shape} for {len(images)} images"
            raise ValueError(f"file={str(path)!r} answers {shapes}; allowed: {classes} numbers for each")
        return found

    def logits(images: Floats) -> Floats:
        return np.concatenate([answers(part) for part in chunks(images, 1 if one_by_one else CHUNK)])

    return logits


def _allowed_images() -> str:
    return " or ".join(f"{channels} × {pixels} × {pixels}" for channels, pixels in PIXELS.items())


def _labels(path: Path, channels: int, classes: Any) -> tuple[str, ...]:
    if (channels, classes) not in LABELS:
        allowed = ", ".join(f"{n} with {c}" for c, n in LABELS)
        raise ValueError(f"file={str(path)!r} has {classes} classes with {channels} channels; allowed: {allowed}")
    return LABELS[channels, classes]


def _packed(path: Path) -> Network | TextNetwork:
    content = files.contents(path)
    try:
        arrays = families.values(content.arrays)
        found = families.survey({name: array.shape for name, array in arrays.items()}, content.architecture)
    except ValueError as error:
        raise ValueError(f"file={str(path)!r} holds no network: {error}") from None
    title = families.FAMILIES[found.name].title
    if found.name in READERS:
        return _reader(path, title, found, arrays, content.words)
    if found.name not in NETWORKS:
        raise ValueError(f"file={str(path)!r} holds {title}; allowed: the image networks of this course, a transformer")
    channels, forward = NETWORKS[found.name]
    labels = _labels(path, channels, [*found.widths.values()][-1])
    logits = partial(in_numpy, partial(forward, Layers(arrays), **found.options))
    return Network(title, channels, PIXELS[channels], labels, logits)


def _reader(
    path: Path, title: str, found: families.Architecture, arrays: Mapping[str, np.ndarray], words: list[str]
) -> TextNetwork:
    rows, longest, classes = len(arrays["embedding.weight"]), found.widths["position"], found.widths["fc"]
    if classes != len(OPINIONS):
        raise ValueError(f"file={str(path)!r} has {classes} classes; allowed: {' and '.join(OPINIONS)}")
    if len(words) not in (0, rows):
        raise ValueError(f"file={str(path)!r} holds {len(words):,} words; allowed: {rows:,}, one a vector, or none")
    forward = partial(READERS[found.name], Layers(arrays), **found.options)
    logits = partial(texts_in_numpy, forward, words=rows, longest=longest)
    return TextNetwork(title, words, longest, OPINIONS, logits)
