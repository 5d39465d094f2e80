"""The layers of the course's networks in NumPy."""

from collections.abc import Callable, Mapping

import numpy as np

from helpers.core.vocabulary import PAD
from helpers.files import families
from helpers.files.arrays import INPUT_GRID
from helpers.runtime.images import CHUNK, Floats, chunks

EPSILON = np.float32(1e-5)  # BatchNorm's, as PyTorch sets it
TEXTS = 8  # at a time: of MiniLM with 256 tokens, each takes 10 megabytes
LAYER_EPSILON = np.float32(1e-12)  # LayerNorm's, as `nets.Transformer` sets it


def in_numpy(forward: Callable[[Floats], Floats], images: Floats) -> Floats:
    """Return the answers of `forward` to all images, asked for `CHUNK` at a time; ValueError for no images."""
    with np.errstate(all="ignore"):  # who asks for an answer is told if it is not finite
        return np.concatenate([forward(part) for part in chunks(images, CHUNK)])


def texts_in_numpy(forward: Callable[[np.ndarray], Floats], tokens: np.ndarray, *, words: int, longest: int) -> Floats:
    """Return the answers of `forward` to all texts, asked for `TEXTS` at a time, without the padding at their end.

    Raises ValueError unless `tokens` are numbers of words, (texts, tokens), at most `longest` tokens before padding.
    """
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not tokens.size:
        raise ValueError(
            f"tokens has shape {tokens.shape} and type {tokens.dtype}; allowed: whole numbers (texts, tokens)"
        )
    if not 0 <= tokens.min() <= tokens.max() < words:
        raise ValueError(f"tokens holds {tokens.min()} to {tokens.max()}; allowed: 0 to {words - 1}, numbers of words")
    if (length := _without_padding(tokens).shape[1]) > longest:
        raise ValueError(f"tokens has texts of {length} tokens; allowed: 1 to {longest}")
    parts = [_without_padding(tokens[i : i + TEXTS]) for i in range(0, len(tokens), TEXTS)]
    with np.errstate(all="ignore"):
        return np.concatenate([forward(part) for part in parts])


def _without_padding(tokens: np.ndarray) -> np.ndarray:
    used = np.flatnonzero((tokens != PAD).any(0))
    return tokens[:, : used[-1] + 1] if len(used) else tokens[:, :1]


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
        """Return a linear layer's output (…, units); ValueError for missing or unfit arrays."""
        return self._rounded(layer, x) @ self.arrays[f"{layer}.weight"].T + self._bias(layer)

    def norm(self, layer: str, x: Floats) -> Floats:
        """BatchNorm by its running statistics; nothing where it was folded into the convolution."""
        if not self.has(layer):
            return x
        gamma, beta, mean, var = (self.arrays[f"{layer}.{part}"][:, None, None] for part in families.NORM)
        return (x - mean) * (gamma / np.sqrt(var + EPSILON)) + beta

    def layer_norm(self, layer: str, x: Floats) -> Floats:
        """Return `x` (…, units) with mean 0 and variance 1 in each row, then scaled and shifted."""
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(-1, keepdims=True) + LAYER_EPSILON)
        return centred / spread * self.arrays[f"{layer}.weight"] + self.arrays[f"{layer}.bias"]

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


def gelu(x: Floats) -> Floats:
    """Return `x` times the share of a normal distribution that lies below it (Hendrycks and Gimpel 2016).

    The error function, which NumPy lacks, is a polynomial with an error of at most 1.5e-7, as large as float32's own
    (Abramowitz and Stegun 1964, "Handbook of mathematical functions", 7.1.26).
    """
    z = np.abs(x) / np.float32(np.sqrt(2))
    t = 1 / (1 + np.float32(0.3275911) * z)
    powers = np.array([1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0], np.float32)
    above = np.polyval(powers, t) * np.exp(-z * z) / 2  # the share beyond |x|
    return x * np.where(x > 0, 1 - above, above)


def attend(query: Floats, key: Floats, value: Floats, real: np.ndarray) -> Floats:
    """Return for each token the mean of the values by the softmax of its query times the keys (Vaswani et al. 2017).

    `query`, `key` and `value` are (batch, heads, length, width). `real`, (batch, length), is False where there is
    padding, which counts nothing; a text of padding alone gives zeros.
    """
    seen = real[:, None, None, :]
    scores = query @ key.swapaxes(2, 3) / np.float32(np.sqrt(query.shape[3]))
    scores = np.where(seen, scores, np.finfo(np.float32).min)
    shares = np.exp(scores - scores.max(-1, keepdims=True)) * seen
    return shares @ value / np.maximum(shares.sum(-1, keepdims=True), np.finfo(np.float32).tiny)
