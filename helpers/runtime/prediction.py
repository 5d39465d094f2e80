"""What an image shows, by a model's file alone: no PyTorch, neither to import nor to install.

A packed file needs NumPy, and `constriction` if it is entropy-coded, an ONNX file ONNX Runtime; an image needs Pillow.
A packed file holds arrays and no graph; which network they are, `families` finds in its header or by their names. It is
one of `helpers.nets`, at any width, whole or pruned, with filters or residual blocks removed, weights and inputs of
layers in few bits, BatchNorm folded or not. Nothing names the classes; their number and the number of colours do. Ten
classes in grey are MNIST's digits, in colour CIFAR-10's; two classes are cat and dog, eight are CIFAR-10's others.

ONNX Runtime runs whatever graph a file holds, for as long as that takes: use files of people whom you trust. A file
that `fastest` wrote is opened in the runtime that it chose, if that is installed.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from helpers import files
from helpers.files import families, payload
from helpers.runtime import openvino, sessions
from helpers.runtime.choosing import CHOICE
from helpers.runtime.images import CHUNK, PIXELS, Floats, chunks, existing, read_image
from helpers.runtime.layers import Layers, in_numpy
from helpers.runtime.networks import NETWORKS

PHOTOGRAPHS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PETS = ("cat", "dog")
LABELS = {
    (1, 10): tuple("0123456789"),
    (3, 10): PHOTOGRAPHS,
    (3, 2): PETS,
    (3, 8): tuple(name for name in PHOTOGRAPHS if name not in PETS),
}


class Prediction(NamedTuple):
    """The answer: its label, the probability of each label, and what was done to the image first."""

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


def predict(file: Path | str, image: Path | str) -> Prediction:
    """Return what the network in `file` (packed, or ONNX) sees in the `image` (PNG or JPEG).

    The image may be of any size and have transparency: see `read_image`. Raises what `open_network` and `read_image`
    raise, and ValueError for a network that answers NaN.
    """
    network = open_network(file)
    pixels, notes = read_image(image, channels=network.channels, pixels=network.pixels)
    logits = network.logits(pixels[None])[0].astype(np.float64)
    if not np.isfinite(logits).all():
        raise ValueError(f"file={str(file)!r} answers NaN or infinity; allowed: a network whose answers are finite")
    shares = np.exp(logits - logits.max())
    probabilities = {label: float(p) for label, p in zip(network.labels, shares / shares.sum(), strict=True)}
    return Prediction(max(probabilities, key=probabilities.__getitem__), probabilities, notes)


def open_network(file: Path | str) -> Network:
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


def _packed(path: Path) -> Network:
    content = files.contents(path)
    try:
        arrays = families.values(content.arrays)
        found = families.survey({name: array.shape for name, array in arrays.items()}, content.architecture)
    except ValueError as error:
        raise ValueError(f"file={str(path)!r} holds no network: {error}") from None
    title = families.FAMILIES[found.name].title
    if found.name not in NETWORKS:
        raise ValueError(f"file={str(path)!r} holds {title}; allowed: the image networks of this course")
    channels, forward = NETWORKS[found.name]
    labels = _labels(path, channels, [*found.widths.values()][-1])
    logits = partial(in_numpy, partial(forward, Layers(arrays), **found.options))
    return Network(title, channels, PIXELS[channels], labels, logits)
