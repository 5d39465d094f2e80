"""The layers of the course's networks in NumPy."""

from collections.abc import Callable, Mapping

import numpy as np

from helpers.files.arrays import INPUT_GRID
from helpers.runtime.images import CHUNK, Floats, chunks

EPSILON = np.float32(1e-5)  # BatchNorm's, as PyTorch sets it
WIDEST = 4_096  # filters or units of a layer; with more, so does one image


def in_numpy(forward: Callable[[Floats], Floats], images: Floats) -> Floats:
    """Return the answers of `forward` to all images, asked for `CHUNK` at a time; ValueError for no images."""
    with np.errstate(all="ignore"):  # who asks for an answer is told if it is not finite
        return np.concatenate([forward(part) for part in chunks(images, CHUNK)])


class Layers:
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
        """Return whether the arrays hold a weight for this layer."""
        return f"{layer}.weight" in self.arrays

    def conv(self, layer: str, x: Floats, *, stride: int = 1, padding: int = 0) -> Floats:
        """Return a convolution's output (batch, filters, height, width); ValueError for missing or unfit arrays."""
        weight = self._get(f"{layer}.weight", 4)
        y = convolve(self._rounded(layer, x), weight, stride=stride, padding=padding)
        return y + self._bias(layer, len(weight))[:, None, None]

    def linear(self, layer: str, x: Floats) -> Floats:
        """Return a linear layer's output (batch, units); ValueError for missing or unfit arrays."""
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
        """Raise ValueError, naming one of them, if there are arrays that no layer has used."""
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
        name = f"{layer}.{INPUT_GRID}"
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


def relu(x: Floats) -> Floats:
    """Return `x` with its negative numbers replaced by 0."""
    return np.maximum(x, 0)
