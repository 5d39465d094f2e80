"""The networks of the course in NumPy, layer after layer."""

from collections.abc import Callable

import numpy as np

from helpers.core.vocabulary import PAD
from helpers.runtime.images import Floats
from helpers.runtime.layers import Layers, attend, gelu, max_pool, relu


def _lenet5(layers: Layers, x: Floats) -> Floats:
    x = max_pool(relu(layers.conv("conv1", x)), 2)
    x = max_pool(relu(layers.conv("conv2", x)), 2)
    x = relu(layers.linear("fc1", x.reshape(len(x), -1)))
    return layers.linear("fc2", x)


def _mlp(layers: Layers, x: Floats) -> Floats:
    x = x.reshape(len(x), -1)
    for name in ("fc1", "fc2"):
        x = relu(layers.linear(name, x))
    return layers.linear("fc3", x)


def _cifar_net(layers: Layers, x: Floats) -> Floats:
    def block(name: str, x: Floats) -> Floats:
        return relu(layers.norm(f"{name}.bn", layers.conv(f"{name}.conv", x, padding=1)))

    def residual(name: str, x: Floats) -> Floats:
        if not layers.has(f"{name}.block1.conv"):  # removed: what is left is the shortcut
            return x
        return x + block(f"{name}.block2", block(f"{name}.block1", x))

    x = residual("res1", max_pool(block("conv1", block("stem", x)), 2))
    x = max_pool(block("conv2", x), 2)
    x = residual("res2", max_pool(block("conv3", x), 2))
    return layers.linear("fc", x.max(axis=(2, 3)))


def _resnet18(layers: Layers, x: Floats, *, pixels: int) -> Floats:
    def norm_conv(number: int, name: str, x: Floats, **options: int) -> Floats:
        return layers.norm(f"{name}.bn{number}", layers.conv(f"{name}.conv{number}", x, **options))

    def shortcut(name: str, x: Floats, stride: int) -> Floats:
        if not layers.has(f"{name}.0"):
            return x
        return layers.norm(f"{name}.1", layers.conv(f"{name}.0", x, stride=stride))

    def residual(name: str, x: Floats, stride: int) -> Floats:
        if not layers.has(f"{name}.conv1"):
            return x
        y = relu(norm_conv(1, name, x, stride=stride, padding=1))
        return relu(norm_conv(2, name, y, padding=1) + shortcut(f"{name}.downsample", x, stride))

    x = relu(layers.norm("bn1", layers.conv("conv1", _enlarged(x, pixels), stride=2, padding=3)))
    x = max_pool(x, 3, stride=2, padding=1)
    for stage in (1, 2, 3, 4):
        x = residual(f"layer{stage}.0", x, 1 if stage == 1 else 2)
        x = residual(f"layer{stage}.1", x, 1)
    return layers.linear("fc", x.mean(axis=(2, 3)))


def _enlarged(x: Floats, pixels: int) -> Floats:
    """Enlarge images as `nets.ResNet18` does: between two pixels lies their mean, weighted by the distances."""
    size = x.shape[-1]
    places = np.clip((np.arange(pixels) + 0.5) * size / pixels - 0.5, 0, size - 1)
    below = np.minimum(places.astype(int), size - 2)
    mix = np.zeros((pixels, size), np.float32)
    mix[np.arange(pixels), below] = 1 - (places - below)
    mix[np.arange(pixels), below + 1] = places - below
    return mix @ x @ mix.T


def _transformer(layers: Layers, tokens: np.ndarray, *, head_width: int) -> Floats:
    real = tokens != PAD
    x = layers.arrays["embedding.weight"][tokens] + layers.arrays["position.weight"][: tokens.shape[1]]
    x, number = layers.layer_norm("norm", x), 0
    while layers.has(f"layers.{number}.fc1"):
        x = _encoder_layer(layers, f"layers.{number}", x, real, head_width)
        number += 1
    counted = real[:, :, None].astype(np.float32)
    return layers.linear("fc", (x * counted).sum(1) / np.maximum(counted.sum(1), 1))


def _encoder_layer(layers: Layers, name: str, x: Floats, real: np.ndarray, head_width: int) -> Floats:
    def by_head(part: str) -> Floats:
        y = layers.linear(f"{name}.attention.{part}", x)
        return y.reshape(*x.shape[:2], -1, head_width).swapaxes(1, 2)

    mixed = attend(by_head("query"), by_head("key"), by_head("value"), real).swapaxes(1, 2)
    found = layers.linear(f"{name}.attention.output", mixed.reshape(*x.shape[:2], -1))
    x = layers.layer_norm(f"{name}.norm1", x + found)
    return layers.layer_norm(f"{name}.norm2", x + layers.linear(f"{name}.fc2", gelu(layers.linear(f"{name}.fc1", x))))


NETWORKS: dict[str, tuple[int, Callable[..., Floats]]] = {  # of `families`, those that see: colours, and the answer
    "lenet5": (1, _lenet5),
    "lenet300100": (1, _mlp),
    "mlp": (1, _mlp),
    "cifarnet": (3, _cifar_net),
    "resnet18": (3, _resnet18),
}
READERS: dict[str, Callable[..., Floats]] = {"transformer": _transformer}  # those that read texts, and the answer
