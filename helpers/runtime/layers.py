"""The layers of the course's networks in NumPy."""

from collections.abc import Callable, Mapping

import numpy as np

from helpers.files import families
from helpers.files.arrays import INPUT_GRID
from helpers.runtime.images import CHUNK, Floats, chunks

EPSILON = np.float32(1e-5)  # BatchNorm's, as PyTorch sets it


def in_numpy(forward: Callable[[Floats], Floats], images: Floats) -> Floats:
    """Return the answers of `forward` to all images, asked for `CHUNK` at a time; ValueError for no images."""
    with np.errstate(all="ignore"):  # who asks for an answer is told if it is not finite
        return np.concatenate([forward(part) for part in chunks(images, CHUNK)])


class Layers:
    """The layers of a network, by name, from the arrays of a file, which `families.survey` has looked through."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        with np.errstate(all="ignore"):
            self.arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}

    def has(self, layer: str) -> bool:
        """Return whether the arrays hold a weight for this layer."""
        return f"{layer}.weight" in self.arrays

    def conv(self, layer: str, x: Floats, *, stride: int = 1, padding: int = 0) -> Floats:
        """Return a convolution's output (batch, filters, height, width); ValueError for missing or unfit arrays."""
        weight = self.arrays[f"{layer}.weight"]
        y = convolve(self._rounded(layer, x), weight, stride=stride, padding=padding)
        return y + self._bias(layer)[:, None, None]

    def linear(self, layer: str, x: Floats) -> Floats:
        """Return a linear layer's output (batch, units); ValueError for missing or unfit arrays."""
        return self._rounded(layer, x) @ self.arrays[f"{layer}.weight"].T + self._bias(layer)

    def norm(self, layer: str, x: Floats) -> Floats:
        """BatchNorm by its running statistics; nothing where it was folded into the convolution."""
        if not self.has(layer):
            return x
        gamma, beta, mean, var = (self.arrays[f"{layer}.{part}"][:, None, None] for part in families.NORM)
        return (x - mean) * (gamma / np.sqrt(var + EPSILON)) + beta

    def _bias(self, layer: str) -> Floats:
        name = f"{layer}.bias"
        return self.arrays[name] if name in self.arrays else np.zeros(len(self.arrays[f"{layer}.weight"]), np.float32)

    def _rounded(self, layer: str, x: Floats) -> Floats:
        """Round a layer's input, as `quantization.fake_quantize` does, where the file has a grid for it."""
        name = f"{layer}.{INPUT_GRID}"
        if name not in self.arrays:
            return x
        scale, zero, low, high = self.arrays[name]
        return np.clip(np.rint(x * (np.float32(1) / scale)), low - zero, high - zero) * scale


def convolve(x: Floats, weight: Floats, *, stride: int = 1, padding: int = 0) -> Floats:
    """Return the convolution as one matrix product: each place's patch is a row, each filter a column ("im2col")."""
    filters, channels, height, width = weight.shape
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


def relu(x: Floats) -> Floats:
    """Return `x` with its negative numbers replaced by 0."""
    return np.maximum(x, 0)
