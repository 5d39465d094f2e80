"""What an image shows, by a model's file alone: no PyTorch, neither to import nor to install.

A packed file needs NumPy, and `constriction` if it is entropy-coded, an ONNX file ONNX Runtime; an image needs Pillow.
A packed file holds arrays and no graph, so the network is recognised by the names and shapes of its arrays: those of
`models.py`, at any width, whole or pruned, with filters or residual blocks removed, weights and inputs of layers in
few bits, BatchNorm folded or not. Nothing names the classes; their number and the number of colours do. Ten classes
in grey are MNIST's digits, in colour CIFAR-10's; two classes are cat and dog, eight are CIFAR-10's others.

ONNX Runtime runs whatever graph a file holds, for as long as that takes: use files of people whom you trust.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from helpers import checks, deploy, packing

__all__ = ["Network", "Prediction", "open_network", "predict", "read_image"]

# As in data.py, which imports PyTorch; a test holds the two together.
MEAN = {1: (0.1307,), 3: (0.4914, 0.4822, 0.4465)}
STD = {1: (0.3081,), 3: (0.2470, 0.2435, 0.2616)}
PHOTOGRAPHS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PETS = ("cat", "dog")
LABELS = {
    (1, 10): tuple("0123456789"),
    (3, 10): PHOTOGRAPHS,
    (3, 2): PETS,
    (3, 8): tuple(name for name in PHOTOGRAPHS if name not in PETS),
}
PIXELS = {1: 28, 3: 32}
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # eight bits a channel, or fewer
BRIGHT = 127
EPSILON = np.float32(1e-5)  # BatchNorm's, as PyTorch sets it
MEGAPIXELS = 50  # of a picture; with more, reading it takes a gigabyte
WIDEST = 4_096  # filters or units of a layer; with more, so does one image
CHUNK = 50  # images at a time: what a convolution lays out takes megabytes for each

Floats = np.ndarray  # float32; images (batch, channels, height, width)


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

    Raises FileNotFoundError if there is no such file, packing.PackingError for a packed file that is damaged, and
    ValueError for one that is neither, or whose network is none that this module knows.
    """
    path = _existing("file", file)
    with path.open("rb") as content:
        packed = content.read(len(packing.MAGIC)) == packing.MAGIC
    return _packed(path) if packed else _onnx(path)


def _existing(argument: str, path: Path | str) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{argument}={str(path)!r} does not exist; allowed: the path of a file")
    return Path(path)


# ---------------------------------------------------------------- images


def read_image(image: Path | str, *, channels: int, pixels: int) -> tuple[Floats, tuple[str, ...]]:
    """Return an image standardized as in training, float32 (channels, pixels, pixels), and what was done to it.

    PNG and JPEG, of eight bits a colour and at most 50 megapixels, turned as a camera's note in it says. With one
    channel it becomes grey, and should be like MNIST: one white digit on black, in the middle. With three it becomes
    RGB. Transparency is laid on black. Another size is scaled to pixels × pixels, whatever its proportions. The notes
    say so.

    Raises FileNotFoundError if there is no such file, ValueError for one that is no such image.
    """
    checks.choice("channels", channels, MEAN)
    checks.positive("pixels", pixels)
    path = _existing("image", image)
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            _require_usual(image, opened)
            plain, notes = _on_black(ImageOps.exif_transpose(opened))
            plain = plain.convert("L" if channels == 1 else "RGB")
    except _Unusual:
        raise
    except Exception as error:  # of any class: a damaged picture is stumbled over in many ways
        raise ValueError(f"image={str(image)!r} cannot be read ({error}); allowed: a whole PNG or JPEG") from None
    if plain.size != (pixels, pixels):
        notes.append(f"the image has {plain.width} × {plain.height} pixels and was scaled to {pixels} × {pixels}")
        plain = plain.resize((pixels, pixels), Image.Resampling.BILINEAR)
    values = np.asarray(plain, dtype=np.float32).reshape(pixels, pixels, channels).transpose(2, 0, 1)
    if channels == 1 and values.mean() > BRIGHT:
        notes.append("the image is mostly bright; the network has only seen white digits on black")
    mean, std = (np.array(numbers[channels], dtype=np.float32)[:, None, None] for numbers in (MEAN, STD))
    return (values / np.float32(255) - mean) / std, tuple(notes)


class _Unusual(ValueError):
    """A picture that can be read, but is none for these networks."""


def _require_usual(image: Path | str, picture: Image.Image) -> None:
    if picture.mode not in MODES:
        raise _Unusual(f"image={str(image)!r} has pixels of the kind {picture.mode!r}; allowed: {', '.join(MODES)}")
    if picture.width * picture.height > MEGAPIXELS * 1e6:
        size = f"{picture.width} × {picture.height}"
        raise _Unusual(f"image={str(image)!r} has {size} pixels; allowed: at most {MEGAPIXELS} million")


def _on_black(picture: Image.Image) -> tuple[Image.Image, list[str]]:
    if not picture.has_transparency_data:
        return picture, []
    colours = picture.convert("RGBA")
    black = Image.new("RGBA", colours.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, colours).convert("RGB"), ["what is transparent was laid on black"]


# ---------------------------------------------------------------- ONNX


def _onnx(path: Path) -> Network:
    import onnxruntime  # noqa: F401  said here that it is missing, where `session` would speak of a bad file

    session = deploy.session(path)
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
    logits = _in_runtime(path, session, len(labels), one_by_one=shape[0] == 1)
    return Network("an ONNX graph", shape[1], shape[2], labels, logits)


def _in_runtime(path: Path, session: Any, classes: int, *, one_by_one: bool) -> Callable[[Floats], Floats]:
    def answers(images: Floats) -> Floats:
        try:
            found = deploy.run(session, images)
        except ValueError as error:
            raise ValueError(f"file={str(path)!r}: {error}") from None
        if found.shape != (len(images), classes):
            shapes = f"{found.shape} for {len(images)} images"
            raise ValueError(f"file={str(path)!r} answers {shapes}; allowed: {classes} numbers for each")
        return found

    def logits(images: Floats) -> Floats:
        return np.concatenate([answers(part) for part in _chunks(images, 1 if one_by_one else CHUNK)])

    return logits


def _chunks(images: Floats, size: int) -> list[Floats]:
    checks.not_empty("images", images)
    return [np.ascontiguousarray(images[i : i + size], np.float32) for i in range(0, len(images), size)]


def _allowed_images() -> str:
    return " or ".join(f"{channels} × {pixels} × {pixels}" for channels, pixels in PIXELS.items())


def _labels(path: Path, channels: int, classes: Any) -> tuple[str, ...]:
    if (channels, classes) not in LABELS:
        allowed = ", ".join(f"{n} with {c}" for c, n in LABELS)
        raise ValueError(f"file={str(path)!r} has {classes} classes with {channels} channels; allowed: {allowed}")
    return LABELS[channels, classes]


# ---------------------------------------------------------------- packed files


def _packed(path: Path) -> Network:
    arrays = packing.read(path)
    try:
        layers = _Layers(arrays)
    except ValueError as error:
        raise ValueError(f"file={str(path)!r} holds no network: {error}") from None
    family = next((f for f in FAMILIES if layers.arrays.keys() >= set(f.names)), None)
    if family is None:
        names = ", ".join(list(layers.arrays)[:4])
        raise ValueError(f"file={str(path)!r} holds {names}, …; allowed: the image networks of this course")
    pixels = PIXELS[family.channels]
    try:
        answer = _in_numpy(partial(family.forward, layers), np.zeros((1, family.channels, pixels, pixels), np.float32))
        layers.require_all_used()
    except ValueError as error:
        raise ValueError(f"file={str(path)!r} begins as {family.name}, but does not fit it: {error}") from None
    labels = _labels(path, family.channels, answer.shape[1])
    logits = partial(_in_numpy, partial(family.forward, layers))
    return Network(family.name, family.channels, pixels, labels, logits)


def _in_numpy(forward: Callable[[Floats], Floats], images: Floats) -> Floats:
    with np.errstate(all="ignore"):  # who asks for an answer is told if it is not finite
        return np.concatenate([forward(part) for part in _chunks(images, CHUNK)])


class _Layers:
    """The layers of a network, by name, from the arrays of a file; it knows which of them were used."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        steps = {name.removesuffix(".step"): step for name, step in arrays.items() if name.endswith(".step")}
        kept = {name: a for name, a in arrays.items() if not name.endswith((".step", "num_batches_tracked"))}
        for name, array in (*kept.items(), *steps.items()):
            if array.dtype.kind == "c":
                raise ValueError(f"{name!r} has the type {array.dtype}; allowed: real numbers")
        with np.errstate(all="ignore"):
            self.arrays = {name: _times(array, steps.get(name)) for name, array in kept.items()}
        self._used: set[str] = set()

    def has(self, layer: str) -> bool:
        return f"{layer}.weight" in self.arrays

    def conv(self, layer: str, x: Floats, *, stride: int = 1, padding: int = 0) -> Floats:
        weight = self._get(f"{layer}.weight", 4)
        y = convolve(self._rounded(layer, x), weight, stride=stride, padding=padding)
        return y + self._bias(layer, len(weight))[:, None, None]

    def linear(self, layer: str, x: Floats) -> Floats:
        weight = self._get(f"{layer}.weight", 2)
        return self._rounded(layer, x) @ weight.T + self._bias(layer, len(weight))

    def norm(self, layer: str, x: Floats) -> Floats:
        """BatchNorm by its running statistics; nothing where it was folded into the convolution."""
        if not self.has(layer):
            return x
        parts = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, var = (self._each(f"{layer}.{part}", x.shape[1])[:, None, None] for part in parts)
        return (x - mean) * (gamma / np.sqrt(var + EPSILON)) + beta

    def require_all_used(self) -> None:
        if unused := sorted(self.arrays.keys() - self._used):
            raise ValueError(f"it has no use for {unused[0]!r}")

    def _get(self, name: str, dimensions: int) -> Floats:
        self._used.add(name)
        if name not in self.arrays:
            raise ValueError(f"{name!r} is missing")
        if self.arrays[name].ndim != dimensions:
            raise ValueError(f"{name!r} has {self.arrays[name].ndim} dimensions; allowed: {dimensions}")
        if len(self.arrays[name]) > WIDEST:
            raise ValueError(f"{name!r} is for {len(self.arrays[name]):,} units; allowed: at most {WIDEST:,}")
        return self.arrays[name]

    def _each(self, name: str, units: int) -> Floats:
        """Return one number for each unit."""
        numbers = self._get(name, 1)
        if len(numbers) != units:
            raise ValueError(f"{name!r} holds {len(numbers)} numbers; allowed: {units}, one for each unit")
        return numbers

    def _bias(self, layer: str, units: int) -> Floats:
        name = f"{layer}.bias"
        return self._each(name, units) if name in self.arrays else np.zeros(units, np.float32)

    def _rounded(self, layer: str, x: Floats) -> Floats:
        """Round a layer's input, as `quantization.fake_quantize` does, where the file has a grid for it."""
        name = f"{layer}.{packing.INPUT_GRID}"
        if name not in self.arrays:
            return x
        scale, zero, low, high = self._each(name, 4)
        return np.clip(np.rint(x * (np.float32(1) / scale)), low - zero, high - zero) * scale


def _times(array: np.ndarray, step: np.ndarray | None) -> Floats:
    """Return the array, or the whole numbers of notebook 00 times their step."""
    factor = np.asarray(1 if step is None else step, np.float32)
    sides = zip(factor.shape[::-1], array.shape[::-1], strict=False)
    if factor.ndim > array.ndim or any(side not in (1, whole) for side, whole in sides):
        raise ValueError(f"a step has the shape {factor.shape} for an array of {array.shape}")
    return np.asarray(array, np.float32) * factor


def convolve(x: Floats, weight: Floats, *, stride: int = 1, padding: int = 0) -> Floats:
    """Return the convolution as one matrix product: each place's patch is a row, each filter a column ("im2col")."""
    filters, channels, height, width = weight.shape
    if x.shape[1] != channels:
        raise ValueError(f"a filter reads {channels} channels and gets {x.shape[1]}")
    patches = _windows(_padded(x, padding, 0.0), (height, width), stride)  # batch, channels, y, x, height, width
    rows = patches.transpose(0, 2, 3, 1, 4, 5).reshape(*patches.shape[:1], -1, channels * height * width)
    y = rows @ weight.reshape(filters, -1).T
    return y.transpose(0, 2, 1).reshape(len(x), filters, *patches.shape[2:4])


def max_pool(x: Floats, size: int, *, stride: int | None = None, padding: int = 0) -> Floats:
    """Return the maximum of each window; what does not fill one at the edge is left out, as in PyTorch."""
    windows = _windows(_padded(x, padding, -np.inf), (size, size), stride or size)
    return windows.max(axis=(4, 5))


def _padded(x: Floats, padding: int, value: float) -> Floats:
    edges = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    return np.pad(x, edges, constant_values=value) if padding else x


def _windows(x: Floats, size: tuple[int, int], stride: int) -> Floats:
    return np.lib.stride_tricks.sliding_window_view(x, size, axis=(2, 3))[:, :, ::stride, ::stride]


def _relu(x: Floats) -> Floats:
    return np.maximum(x, 0)


# ---------------------------------------------------------------- the networks of models.py


def _lenet5(layers: _Layers, x: Floats) -> Floats:
    x = max_pool(_relu(layers.conv("conv1", x)), 2)
    x = max_pool(_relu(layers.conv("conv2", x)), 2)
    x = _relu(layers.linear("fc1", x.reshape(len(x), -1)))
    return layers.linear("fc2", x)


def _mlp(layers: _Layers, x: Floats) -> Floats:
    x = x.reshape(len(x), -1)
    for name in ("fc1", "fc2"):
        x = _relu(layers.linear(name, x))
    return layers.linear("fc3", x)


def _cifar_net(layers: _Layers, x: Floats) -> Floats:
    def block(name: str, x: Floats) -> Floats:
        return _relu(layers.norm(f"{name}.bn", layers.conv(f"{name}.conv", x, padding=1)))

    def residual(name: str, x: Floats) -> Floats:
        if not layers.has(f"{name}.block1.conv"):  # removed: what is left is the shortcut
            return x
        return x + block(f"{name}.block2", block(f"{name}.block1", x))

    x = residual("res1", max_pool(block("conv1", block("stem", x)), 2))
    x = max_pool(block("conv2", x), 2)
    x = residual("res2", max_pool(block("conv3", x), 2))
    return layers.linear("fc", x.max(axis=(2, 3)))


def _resnet18(layers: _Layers, x: Floats) -> Floats:
    def norm_conv(number: int, name: str, x: Floats, **options: int) -> Floats:
        return layers.norm(f"{name}.bn{number}", layers.conv(f"{name}.conv{number}", x, **options))

    def shortcut(name: str, x: Floats, stride: int) -> Floats:
        if not layers.has(f"{name}.0"):
            return x
        return layers.norm(f"{name}.1", layers.conv(f"{name}.0", x, stride=stride))

    def residual(name: str, x: Floats, stride: int) -> Floats:
        if not layers.has(f"{name}.conv1"):
            return x
        y = _relu(norm_conv(1, name, x, stride=stride, padding=1))
        return _relu(norm_conv(2, name, y, padding=1) + shortcut(f"{name}.downsample", x, stride))

    x = _relu(layers.norm("bn1", layers.conv("conv1", _enlarged(x, 64), stride=2, padding=3)))
    x = max_pool(x, 3, stride=2, padding=1)
    for stage in (1, 2, 3, 4):
        x = residual(f"layer{stage}.0", x, 1 if stage == 1 else 2)
        x = residual(f"layer{stage}.1", x, 1)
    return layers.linear("fc", x.mean(axis=(2, 3)))


def _enlarged(x: Floats, pixels: int) -> Floats:
    """Enlarge images as `models.ResNet18` does: between two pixels lies their mean, weighted by the distances."""
    size = x.shape[-1]
    places = np.clip((np.arange(pixels) + 0.5) * size / pixels - 0.5, 0, size - 1)
    below = np.minimum(places.astype(int), size - 2)
    mix = np.zeros((pixels, size), np.float32)
    mix[np.arange(pixels), below] = 1 - (places - below)
    mix[np.arange(pixels), below + 1] = places - below
    return mix @ x @ mix.T


class _Family(NamedTuple):
    """Networks of one shape, at any width: the arrays by which they are known, their images' channels, the answer."""

    name: str
    names: tuple[str, ...]
    channels: int
    forward: Callable[[_Layers, Floats], Floats]


FAMILIES = (
    _Family("LeNet-5", ("conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"), 1, _lenet5),
    _Family("a perceptron of two hidden layers", ("fc1.weight", "fc2.weight", "fc3.weight"), 1, _mlp),
    _Family("a CIFAR net", ("stem.conv.weight", "conv1.conv.weight", "fc.weight"), 3, _cifar_net),
    _Family("a ResNet-18", ("conv1.weight", "layer2.0.conv1.weight", "fc.weight"), 3, _resnet18),
)
