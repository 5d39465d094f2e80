"""Values from a table: k-means, powers of two, any table."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.core import checks
from helpers.quantization.grids import SHRINKINGS, finite, number_of_bits
from helpers.quantization.layers import weights_by_name
from helpers.quantization.networks import bake


def nearest(values: Float[Tensor, "..."], table: Float[Tensor, " entries"]) -> Integer[Tensor, "..."]:
    """Return the place in `table`, which rises, of the entry nearest to each value.

    Raises ValueError for a table that is empty, not finite or does not rise, and for values that are not finite.
    """
    finite("values", values)
    _rising("table", table)
    return torch.bucketize(values, (table[1:] + table[:-1]) / 2)


def _rising(name: str, table: Tensor) -> Tensor:
    finite(name, table)
    if table.dim() != 1 or bool((table.diff() < 0).any()):
        raise ValueError(f"{name} of shape {tuple(table.shape)} does not rise; allowed: numbers in rising order")
    return table


@torch.no_grad()
def kmeans_table(values: Float[Tensor, "..."], bits: int, *, iterations: int = 100) -> Float[Tensor, " entries"]:
    """Return at most 2^bits values, rising, that are a local optimum of the mean squared error of `nearest`.

    Weight sharing by k-means (Han et al. 2016, "Deep compression", section 3), from the middles of 2^bits parts of
    the different values. Numbers can be sorted, so that one iteration (Lloyd 1982, "Least squares quantization in
    PCM") takes two look-ups for each entry and not a distance for each value; the result is scikit-learn's `KMeans`.
    Where there are no more than 2^bits different values, the table is these.

    Raises ValueError for bits outside 2 to 8, no values, values that are not finite, or less than one iteration.
    """
    number_of_bits("bits", bits)
    checks.positive("iterations", iterations)
    ordered = finite("values", values).reshape(-1).double().sort().values
    if len(different := ordered.unique_consecutive()) <= 2**bits:
        return different.to(values)
    middles = (torch.arange(2**bits, device=values.device) + 0.5) / 2**bits
    table = different[(middles * len(different)).long()]
    totals = F.pad(ordered.cumsum(0), (1, 0))
    for _ in range(iterations):
        borders = _borders(ordered, table)
        counts = borders.diff()
        table = torch.where(counts > 0, totals[borders].diff() / counts.clamp(min=1), table)
    return table.to(values)


def _borders(ordered: Float[Tensor, " n"], table: Float[Tensor, " entries"]) -> Integer[Tensor, " borders"]:
    """Return where in the sorted numbers those of each entry begin, and behind them where the last one's end."""
    begins = torch.searchsorted(ordered, (table[1:] + table[:-1]) / 2)
    return F.pad(F.pad(begins, (1, 0)), (0, 1), value=len(ordered))


def powers_of_two(bits: int) -> Float[Tensor, " entries"]:
    """Return 0 and plus and minus 1, 1/2, 1/4, …: the 2^bits - 1 levels by which one multiplies with a shift.

    Miyashita et al. 2016, "Convolutional neural networks using logarithmic data representation". Raises ValueError for
    bits outside 2 to 8.
    """
    number_of_bits("bits", bits)
    magnitudes = 2.0 ** -torch.arange(2 ** (bits - 1) - 1)
    return torch.cat([-magnitudes, torch.zeros(1), magnitudes.flip(0)])


@torch.no_grad()
def fit_table(values: Float[Tensor, "..."], levels: Float[Tensor, " entries"]) -> Float[Tensor, " entries"]:
    """Return `levels`, which rise within [-1, 1], times the factor that gives the least mean squared error.

    Fifty factors are tried, from the largest magnitude of `values` down to a twentieth of it. Raises ValueError for
    levels that do not rise or leave [-1, 1], no values, or values that are not finite.
    """
    if bool((_rising("levels", levels).abs() > 1).any()):
        raise ValueError(f"levels={levels.tolist()}; allowed: numbers in [-1, 1]")
    flat = finite("values", values).reshape(-1)
    tables = [part * flat.abs().max() * levels.to(values) for part in SHRINKINGS]
    ordered = flat.double().sort().values
    totals = F.pad(ordered.cumsum(0), (1, 0))

    def error(table: Tensor) -> float:
        """Return the squared error, less the sum of the squares of the values: the same for each table."""
        entries = table.double()
        borders = _borders(ordered, entries)
        return float((borders.diff() * entries**2 - 2 * totals[borders].diff() * entries).sum())

    return min(tables, key=error)


def share_weights(model: nn.Module, tables: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy in which every weight of the named layers is the nearest entry of its layer's table.

    Masks and quantizers of weights are folded in first. `files.write_quantized` stores such a weight as its table and
    the places in it. Weights go by the names that `quantize_model` takes. Raises ValueError for a layer that does not
    exist or has no weight to share, and for a table that is empty, not finite or does not rise.
    """
    new = bake(model)
    names = weights_by_name(new)
    for name, table in tables.items():
        weight = new.get_parameter(names[checks.choice("layer in tables", name, names)])
        entries = _rising(f"tables[{name!r}]", table).to(weight)
        weight.data = entries[nearest(weight.detach(), entries)]
    return new
