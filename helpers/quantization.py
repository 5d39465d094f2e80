"""Quantization: weights and activations in few bits, on a uniform grid or from a table of values.

The uniform (affine) grid of Jacob et al. 2018 ("Quantization and training of neural networks for efficient
integer-arithmetic-only inference", section 2.1) stands for a number by a whole number, its code:

    value = scale · (code − zero_point)

Rounding, saturation and ranges are those of PyTorch: a value is multiplied by 1 / scale, rounded half to even, moved
by the zero point and cut to the codes that there are. 0 is always met exactly, so padding, ReLU and pruned weights
stay what they are.

`quantize_model` returns a new network that computes with such values ("fake quantization": floating point arithmetic on
numbers that integers could hold), which can be trained by `training.fit` as it is. Weights carry their grid as a
parametrization; a layer's input is rounded before the layer sees it. `packing.write_quantized` stores the codes.
Biases and normalization stay in floating point. A tensor that several layers share has one grid, under its first name,
and they go on sharing it.
"""

import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from helpers import checks, packing, pruning, training
from helpers.data import Split
from helpers.modules import copied, first_names, hooked, materialized, same_tensor

__all__ = [
    "BITS",
    "METHODS",
    "FakeQuantize",
    "Grid",
    "affine_grid",
    "bake",
    "bits_by_layer",
    "code_range",
    "dequantize",
    "fake_quantize",
    "find_grid",
    "fit_table",
    "fold_batchnorm",
    "input_grids",
    "integers",
    "is_quantizer",
    "kmeans_table",
    "nearest",
    "powers_of_two",
    "quantize",
    "quantize_model",
    "sample_inputs",
    "share_weights",
    "weight_grids",
    "with_input_grids",
]

BITS = range(2, 9)
METHODS = ("minmax", "percentile", "mse")
INPUT = "quantize_input"  # the name under which a layer keeps the quantizer of its input
INPUT_NAME = "input"  # what torch's layers call their first argument
SAMPLE = 65_536
SHRINKINGS = [0.05 ** (step / 49) for step in range(50)]  # from the whole range to a twentieth of it
FOLDING_TOLERANCE = 1e-4
WITH_INPUT = (*pruning.WITH_NEURONS, _ConvTransposeNd)  # layers whose one input is what they multiply
WITH_OTHERS = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)  # and those that multiply more


# ---------------------------------------------------------------- the affine grid


class Grid(NamedTuple):
    """The values scale · (code − zero_point), for the whole numbers `code` from `low` to `high`.

    `scale` and `zero_point` (whole numbers) have the shape (), or (n,) with one grid for each entry of the values'
    first dimension: one for each output channel of a weight.
    """

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int

    @property
    def bits(self) -> int:
        """Bits that number the codes."""
        return (self.high - self.low).bit_length()


def _number_of_bits(argument: str, bits: int) -> int:
    if not isinstance(bits, numbers.Integral):
        raise ValueError(f"{argument}={bits!r} is no whole number; allowed: {BITS[0]} to {BITS[-1]}")
    return checks.choice(argument, bits, BITS)


def _finite(name: str, values: Tensor) -> Tensor:
    """Return numbers of at least single precision, if there are any and all are finite; raise ValueError otherwise."""
    if not isinstance(values, Tensor) or values.is_complex():
        raise ValueError(f"{name} is {getattr(values, 'dtype', type(values))}; allowed: a tensor of real numbers")
    checks.not_empty(name, values.reshape(-1))
    return checks.finite(name, values.to(torch.promote_types(values.dtype, torch.float32)))


def _require_floats(name: str, values: Tensor) -> None:
    if not values.is_floating_point():
        raise ValueError(f"{name} has type {values.dtype}; allowed: floating point numbers")


def _require_steps(grid: Grid) -> None:
    if not bool((grid.scale.isfinite() & (grid.scale != 0)).all()):
        raise ValueError(f"grid.scale={grid.scale.tolist()}; allowed: finite numbers other than 0")


def code_range(bits: int, *, signed: bool = True, narrow: bool = False) -> tuple[int, int]:
    """Return the lowest and the highest code of `bits` bits: -8 and 7, unsigned 0 and 15, narrow -7 and 7.

    Raises ValueError for bits outside 2 to 8, and for narrow unsigned codes.
    """
    _number_of_bits("bits", bits)
    checks.choice("narrow", narrow, (False, True))
    if narrow and not signed:
        raise ValueError("narrow=True with signed=False; allowed: signed codes, whose range has a lone lowest code")
    low = -(2 ** (bits - 1)) if signed else 0
    return low + narrow, low + 2**bits - 1


def affine_grid(
    lowest: Float[Tensor, "..."],
    highest: Float[Tensor, "..."],
    bits: int,
    *,
    symmetric: bool = True,
    signed: bool = True,
    narrow: bool = False,
) -> Grid:
    """Return the grid whose codes span [lowest, highest], stretched to hold 0; shapes () or (n,).

    The formulas are those of PyTorch's observers (`torch.ao.quantization.MinMaxObserver`). `symmetric` has zero point 0
    and as long a range on either side; `narrow` leaves out the lowest code, so that there are as many below 0 as above.

    Raises ValueError for bits outside 2 to 8, for a symmetric or narrow grid of unsigned codes, and for ends that are
    not finite or in the wrong order.
    """
    low, high = code_range(bits, signed=signed, narrow=narrow)
    lowest, highest = _finite("lowest", lowest), _finite("highest", highest)
    if bool((lowest > highest).any()):
        raise ValueError(f"lowest={lowest.tolist()} with highest={highest.tolist()}; allowed: lowest <= highest")
    lowest, highest = lowest.clamp(max=0), highest.clamp(min=0)
    smallest = torch.finfo(torch.float32).eps  # PyTorch's, too: a range of nothing but 0 must not divide by 0
    if not symmetric:
        scale = ((highest - lowest) / (high - low)).clamp(min=smallest)
        zero_point = (low - (lowest / scale).round()).clamp(low, high)
        return Grid(scale, zero_point.to(torch.int32), low, high)
    if not signed:
        raise ValueError("symmetric=True with signed=False; allowed: symmetric with signed codes, or symmetric=False")
    scale = (torch.maximum(-lowest, highest) / ((high - low) / 2)).clamp(min=smallest)
    return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), low, high)


def _spread(numbers: Tensor, dimensions: int) -> Tensor:
    """Return one number, or one for each entry of the first dimension, in a shape that broadcasts."""
    return numbers.reshape(-1, *[1] * (dimensions - 1)) if numbers.dim() else numbers


def fake_quantize(values: Float[Tensor, "..."], grid: Grid) -> Float[Tensor, "..."]:
    """Return each value moved to the nearest of the grid, in floating point, with a gradient to train by.

    The gradient is that of the straight-through estimator (Bengio et al. 2013, "Estimating or propagating gradients
    through stochastic neurons"): rounding counts as the identity, and what is cut off gets no gradient, as in
    `torch.fake_quantize_per_tensor_affine`. If `grid.scale` wants a gradient, it gets the one of Esser et al. 2020
    ("Learned step size quantization", equation 3): the code less x / scale inside the range, the last code outside.

    Values of less than single precision are computed, and returned, in single precision. Raises ValueError for values
    that are no floating point numbers.
    """
    _require_floats("values", values)
    exact = values.to(torch.promote_types(values.dtype, torch.float32))
    scale, zero_point = _spread(grid.scale, values.dim()), _spread(grid.zero_point, values.dim())
    position, lowest, highest = exact * (1 / scale), grid.low - zero_point, grid.high - zero_point
    code = position.round()
    straight = position + (code - position).detach()  # exactly the code: the difference is exact
    inside = (code >= lowest) & (code <= highest)
    return torch.where(inside, straight, torch.clamp(code, lowest, highest)) * scale


@torch.no_grad()
def quantize(values: Float[Tensor, "..."], grid: Grid) -> Integer[Tensor, "..."]:
    """Return the codes of the values, as int8, or uint8 if none is below 0; ValueError for NaN, which has no code."""
    _require_steps(grid)
    _require_floats("values", values)
    checks.finite("values", values)
    position = (values * (1 / _spread(grid.scale, values.dim()))).round()
    codes = (position + _spread(grid.zero_point, values.dim())).clamp(grid.low, grid.high)
    return codes.to(torch.int8 if grid.low < 0 else torch.uint8)


def dequantize(codes: Integer[Tensor, "..."], grid: Grid) -> Float[Tensor, "..."]:
    """Return the values that the codes stand for."""
    steps = codes.to(torch.int32) - _spread(grid.zero_point, codes.dim())
    return steps.to(grid.scale.dtype) * _spread(grid.scale, codes.dim())


# ---------------------------------------------------------------- which range?


@torch.no_grad()
def find_grid(
    values: Float[Tensor, "..."],
    bits: int,
    *,
    method: str = "mse",
    symmetric: bool = True,
    signed: bool = True,
    narrow: bool = False,
    per_channel: bool = False,
    percentile: float = 99.9,
) -> Grid:
    """Return a grid for these values, or with `per_channel` one for each entry of their first dimension.

    method: "minmax" spans all values. "percentile" leaves out the 100 - `percentile` % at each end. "mse" tries fifty
    ranges, from all values down to a twentieth, and keeps the one with the least mean squared error.

    Raises ValueError for an unknown method, bits outside 2 to 8, a percentile outside (50, 100], no values, or values
    that are not finite, or a single number with `per_channel`. Values of less than single precision count in single.
    """
    checks.choice("method", method, METHODS)
    if not 50 < checks.number("percentile", percentile) <= 100:
        raise ValueError(f"percentile={percentile!r}; allowed: above 50, and at most 100")
    values = _finite("values", values)
    if per_channel and values.dim() == 0:
        raise ValueError("per_channel=True with values of shape (); allowed: at least one dimension")
    rows = (
        values.flatten(1) if per_channel and values.dim() > 1 else values.reshape(len(values) if per_channel else 1, -1)
    )
    lowest, highest = rows.amin(1), rows.amax(1)
    if method == "percentile":
        ends = torch.tensor([1 - percentile / 100, percentile / 100], dtype=rows.dtype, device=rows.device)
        lowest, highest = torch.quantile(rows, ends, dim=1)

    def spanning(part: float) -> Grid:
        return affine_grid(part * lowest, part * highest, bits, symmetric=symmetric, signed=signed, narrow=narrow)

    grid = spanning(1)
    if method == "mse":
        grid = _least_squares(rows, [spanning(part) for part in SHRINKINGS])
    return grid if per_channel else grid._replace(scale=grid.scale[0], zero_point=grid.zero_point[0])


def _least_squares(rows: Float[Tensor, "n m"], grids: list[Grid]) -> Grid:
    """Return for each row the grid, of those given, with the least squared error."""
    best, scale, zero_point = torch.full((len(rows),), math.inf, device=rows.device), *grids[0][:2]
    for grid in grids:
        step, zero = grid.scale[:, None], grid.zero_point[:, None]
        steps = (rows * (1 / step)).round_().clamp_(grid.low - zero, grid.high - zero)  # in place: it runs fifty times
        error = steps.mul_(step).sub_(rows).square_().sum(1)
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, grid.scale, scale)
        zero_point = torch.where(better, grid.zero_point, zero_point)
    return grids[0]._replace(scale=scale, zero_point=zero_point)


# ---------------------------------------------------------------- tables of values


def nearest(values: Float[Tensor, "..."], table: Float[Tensor, " entries"]) -> Integer[Tensor, "..."]:
    """Return the place in `table`, which rises, of the entry nearest to each value.

    Raises ValueError for a table that is empty, not finite or does not rise, and for values that are not finite.
    """
    _finite("values", values)
    _rising("table", table)
    return torch.bucketize(values, (table[1:] + table[:-1]) / 2)


def _rising(name: str, table: Tensor) -> Tensor:
    _finite(name, table)
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
    _number_of_bits("bits", bits)
    checks.positive("iterations", iterations)
    ordered = _finite("values", values).reshape(-1).double().sort().values
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
    _number_of_bits("bits", bits)
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
    flat = _finite("values", values).reshape(-1)
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

    Masks and quantizers of weights are folded in first. `packing.write_quantized` stores such a weight as its table and
    the places in it. Weights go by the names that `quantize_model` takes. Raises ValueError for a layer that does not
    exist or has no weight to share, and for a table that is empty, not finite or does not rise.
    """
    new = bake(model)
    names = _weights(new)
    for name, table in tables.items():
        weight = new.get_parameter(names[checks.choice("layer in tables", name, names)])
        entries = _rising(f"tables[{name!r}]", table).to(weight)
        weight.data = entries[nearest(weight.detach(), entries)]
    return new


# ---------------------------------------------------------------- networks


class FakeQuantize(nn.Module):
    """Moves what passes to a grid: the parametrization of a weight, or what a layer does to its input first.

    With `trained_over` the step is trained, and that is how many numbers share it: what is trained is the logarithm of
    the step's growth, so that no optimizer can make the step negative (Jain et al. 2020, "Trained quantization
    thresholds", section 3), with its gradient scaled so that a first step of SGD moves it as "Learned step size
    quantization" does (Esser et al. 2020, section 2.2).
    """

    scale: Tensor
    zero_point: Tensor
    pace: Tensor

    def __init__(self, grid: Grid, *, trained_over: int | None = None) -> None:
        super().__init__()
        _require_steps(grid)
        self.low, self.high = grid.low, grid.high
        self.register_buffer("scale", grid.scale.detach().clone())
        self.register_buffer("zero_point", grid.zero_point.clone())
        self.log_growth = None if trained_over is None else nn.Parameter(torch.zeros_like(grid.scale))
        if trained_over is not None:
            pace = self.scale**-2 / math.sqrt(trained_over * grid.high)
            self.register_buffer("pace", pace, persistent=False)

    @property
    def grid(self) -> Grid:
        """The grid as it is now, its scale with the gradient of what is trained."""
        if self.log_growth is None:
            return Grid(self.scale, self.zero_point, self.low, self.high)
        growth = self.log_growth
        paced = growth + (self.pace - 1) * (growth - growth.detach())  # its own value, `pace` times its gradient
        return Grid(self.scale * paced.exp(), self.zero_point, self.low, self.high)

    def forward(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return `fake_quantize` of the values."""
        return fake_quantize(values, self.grid)


def _quantize_input(
    layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Round a layer's input; a hook that runs before the layer (a plain function, so copies use their own layer)."""
    quantizer = layer.get_submodule(INPUT)
    if inputs:
        return (quantizer(inputs[0]), *inputs[1:]), named
    return inputs, named | {INPUT_NAME: quantizer(named[INPUT_NAME])}


def _called(name: str) -> str:
    """Return the name that `quantize_model` takes for a parameter: "fc1" for "fc1.weight", otherwise its own."""
    return name.removesuffix("weight").removesuffix(".") if name.rpartition(".")[2] == "weight" else name


def _weights(model: nn.Module) -> dict[str, str]:
    """Return the first name of each weight (`pruning.weights_of` says what is one), by all that it may be called.

    Those of torch's own recurrent layers are missing: such a layer keeps what it computes with in a list of its own.
    """
    found: dict[str, str] = {}
    first = first_names(model)
    for name, original in first.items():
        if "parametrizations" in name.split("."):
            _refuse_originals(name)
            continue
        layer, attribute = pruning._owner(model, name)
        tensor = getattr(layer, attribute)
        if is_lazy(tensor):
            raise ValueError(f"{name!r} has no numbers yet; allowed: a model that was called once")
        if not isinstance(layer, nn.RNNBase) and pruning._is_weight(layer, attribute, tensor):
            found[_called(name)] = original
    return found


def _refuse_originals(name: str) -> None:
    if name.rpartition(".")[2].startswith("original"):
        raise ValueError(
            f"{name!r} is one of several tensors of which a weight is computed; allowed: "
            "torch.nn.utils.parametrize.remove_parametrizations first"
        )


def _layers(model: nn.Module) -> dict[str, str]:
    """Return the first name of each layer whose input can be rounded, by all of its names."""
    first: dict[nn.Module, str] = {}
    named = model.named_modules(remove_duplicate=False)
    return {name: first.setdefault(layer, name) for name, layer in named if isinstance(layer, WITH_INPUT)}


def _weight_of(layer: str, tensors: Mapping[str, str]) -> str:
    """Return the first name of a layer's weight; of one that is computed, whatever no other layer has."""
    return tensors.get(f"{layer}.weight".lstrip("."), layer)


def bits_by_layer(model: nn.Module, bits: int, *, ends: int = 8) -> dict[str, int]:
    """Return `bits` for each linear or convolutional layer, but `ends` for the first and the last (as defined).

    Layers that share their weight have one entry, under the first one's name.
    """
    _number_of_bits("bits", bits)
    _number_of_bits("ends", ends)
    layers = checks.not_empty("linear and convolutional layers of model", list(dict.fromkeys(_layers(model).values())))
    tensors, firsts = first_names(model), dict[str, str]()
    names = [firsts.setdefault(_weight_of(name, tensors), name) for name in layers]
    return dict.fromkeys(names, bits) | {names[0]: ends, names[-1]: ends}


def _weight_bits(model: nn.Module, bits: int | Mapping[str, int]) -> dict[str, int]:
    """Return the bits of each tensor that is to be quantized, by its first name."""
    names = checks.not_empty("weights of model that can be quantized", _weights(model))
    if not isinstance(bits, Mapping):
        _refuse_left_out(model, f"weights={bits!r}", (nn.RNNBase,), "the weights of", names)
        return dict.fromkeys(names.values(), _number_of_bits("weights", bits))
    found: dict[str, int] = {}
    for name, number in bits.items():
        tensor = names[checks.choice("layer in weights", name, names)]
        if found.setdefault(tensor, _number_of_bits("weights", number)) != number:
            raise ValueError(
                f"weights has {found[tensor]} and {number} bits for {name!r}; allowed: one number for each tensor"
            )
    return found


def _input_bits(model: nn.Module, bits: int | Mapping[str, int]) -> dict[str, int]:
    """Return the bits of the input of each layer, by its first name; layers that share a weight get them together."""
    names = checks.not_empty("layers of model whose input can be quantized", _layers(model))
    if not isinstance(bits, Mapping):
        _refuse_left_out(model, f"activations={bits!r}", WITH_OTHERS, "what is multiplied in", names)
        return dict.fromkeys(names.values(), _number_of_bits("activations", bits))
    chosen = {
        names[checks.choice("layer in activations", name, names)]: _number_of_bits("activations", number)
        for name, number in bits.items()
    }
    tensors = first_names(model)
    shared = {_weight_of(name, tensors): number for name, number in chosen.items()}
    others = {name: shared.get(_weight_of(name, tensors)) for name in dict.fromkeys(names.values())}
    return {name: number for name, number in others.items() if number is not None} | chosen


def _refuse_left_out(
    model: nn.Module, given: str, kinds: tuple[type, ...], what: str, names: Mapping[str, str]
) -> None:
    """Raise ValueError if one number for all layers would leave some of them out without a word."""
    left = [f"{name!r} ({type(layer).__name__})" for name, layer in model.named_modules() if isinstance(layer, kinds)]
    if left:
        argument, _, number = given.partition("=")
        others = [f"{_called(name)!r}: {number}" for name in dict.fromkeys(names.values())]
        raise ValueError(
            f"{given} would leave {what} {', '.join(left)} in floating point; allowed: to say so by naming the others, "
            f"{argument}={{{', '.join(others[:3])}{', …' * (len(others) > 3)}}}"
        )


def quantize_model(
    model: nn.Module,
    *,
    weights: int | Mapping[str, int],
    activations: int | Mapping[str, int] | None = None,
    calibration: Split[Tensor, Tensor] | None = None,
    method: str = "mse",
    per_channel: bool = True,
    learned: bool = False,
) -> nn.Module:
    """Return a copy that computes with quantized weights, and with `activations` also with quantized inputs of layers.

    It is ready to use (quantization after training), or to be trained with `training.fit` (quantization-aware
    training). In training BatchNorm stays a layer of its own; see `fold_batchnorm` for afterwards.

    Args:
        model: any network; masks stay in force. What `torch.nn.utils` computes weights with becomes ordinary weights.
        weights: bits from 2 to 8 of every weight (`pruning.weights_of` says what is one), or of those named, {"fc1": 4,
            "cell.weight_ih": 8}: a layer for its `weight`, any other parameter by its whole name. Symmetric signed
            grids. What layers share, they share afterwards.
        activations: the same for what reaches linear and convolutional layers; unsigned grids with a zero point. A
            layer's bits hold for those that share its weight.
        calibration: training examples, on which the inputs' ranges are found; never test examples.
        method: how ranges are found, one of METHODS.
        per_channel: give each entry of a weight's first dimension its own step: each output channel, of a transposed
            convolution each input channel, of an embedding each word. Entries of one number share one.
        learned: train the steps, too.

    Raises:
        ValueError: an argument is out of range; a layer is unknown, quantized already, or never called (as are the two
            of `models.LSTM`, which reads their weights itself), so that it has no input to be rounded; one number for
            all layers would leave one of torch's own recurrent layers in float, or with `activations` the products in
            cells and attention; weights are not of single or double precision, or not finite; `activations` without
            `calibration`; `calibration` is the test split.
    """
    checks.choice("method", method, METHODS)
    new = materialized(model)
    weight_bits = _weight_bits(new, weights)
    input_bits = {} if activations is None else _input_bits(new, activations)
    if done := [name for name in [*weight_bits, *input_bits] if name in weight_grids(new) | input_grids(new)]:
        raise ValueError(
            f"layer {_called(done[0])!r} is quantized already; allowed: to quantize the network that it was made of"
        )
    if input_bits and calibration is None:
        raise ValueError(f"activations={activations!r} without calibration; allowed: a Split of training examples")
    seen = _observe(new, calibration, list(input_bits), SAMPLE) if calibration is not None and input_bits else {}

    for name, bits in weight_bits.items():
        owners = pruning._owners(new, name)
        weight = _single_or_double(name, getattr(*owners[0]))
        grid = find_grid(weight, bits, method=method, per_channel=per_channel and weight.numel() > len(weight))
        sharing = weight.numel() // grid.scale.numel()
        _put(owners, FakeQuantize(grid, trained_over=sharing if learned else None))
    for name, bits in input_bits.items():
        grid = find_grid(seen[name].sample, bits, method=method, symmetric=False, signed=False)
        _attach(new, name, FakeQuantize(grid, trained_over=seen[name].features if learned else None))
    return new


def _single_or_double(name: str, weight: Tensor) -> Tensor:
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name!r} is {weight.dtype}; allowed: single or double precision, model.float()")
    return checks.finite(name, weight.detach())


def _put(owners: list[tuple[Any, str]], quantizer: FakeQuantize) -> None:
    """Have all layers that share a tensor compute with its quantized values."""
    for layer, attribute in owners:
        parametrize.register_parametrization(layer, attribute, quantizer)


def _attach(model: nn.Module, name: str, quantizer: FakeQuantize) -> None:
    layer = model.get_submodule(name)
    layer.add_module(INPUT, quantizer)
    layer.register_forward_pre_hook(_quantize_input, with_kwargs=True)


def is_quantizer(name: str) -> bool:
    """Return whether a name of a `state_dict` belongs to the quantizer of an input."""
    return INPUT in name.split(".")


class _Seen(NamedTuple):
    """What reached a layer: some of the numbers, and how many it takes for one example."""

    sample: Tensor
    features: int


def sample_inputs(
    model: nn.Module, split: Split[Tensor, Tensor], *, layers: list[str] | None = None, count: int = SAMPLE
) -> dict[str, Float[Tensor, " sampled"]]:
    """Return, for each linear and convolutional layer, about `count` of the numbers that reach it: the calibration.

    They are drawn at random, the same ones each time; each batch adds its smallest and its largest number. A layer
    that is called many times a batch gives a few times as many. The network computes in evaluation mode.

    Raises ValueError for the test split, an empty one, a layer that does not exist, or one that is never called.
    """
    model, names = materialized(model), _layers(model)
    chosen = list(names) if layers is None else [checks.choice("layer", name, names) for name in layers]
    seen = _observe(model, split, list(dict.fromkeys(names[name] for name in chosen)), count)
    return {name: seen[name].sample for name in dict.fromkeys(names[name] for name in chosen)}


def _observe(model: nn.Module, split: Split[Tensor, Tensor], names: list[str], count: int) -> dict[str, _Seen]:
    if split.is_test:
        raise ValueError(
            "calibration is the test split: its images may not shape the network; allowed: training examples"
        )
    checks.not_empty("calibration", split)
    checks.positive("count", count)
    batches = math.ceil(len(split) / 250)
    samples = {name: _Sample(math.ceil(count / batches), 2 * max(count, SAMPLE) + 2 * batches) for name in names}
    generator = torch.Generator().manual_seed(0)
    with _watching(model, names, lambda name, values: samples[name].add(values.detach(), generator)):
        training.predict(model, split.inputs, batch_size=250)
    if silent := [name for name in names if not samples[name].parts]:
        raise ValueError(
            f"these layers are never called: {', '.join(silent)}; allowed: name only those that are. Where another "
            "module computes with a layer's weights itself, nothing passes by that could be rounded"
        )
    return {
        name: _Seen(checks.finite(f"what reaches layer {name!r}", torch.cat(sample.parts)), sample.features)
        for name, sample in samples.items()
    }


class _Sample:
    """Some of the numbers that reach a layer: `share` of each call, of all never much more than `limit`."""

    def __init__(self, share: int, limit: int) -> None:
        self.share, self.limit = share, limit
        self.parts: list[Tensor] = []
        self.features = 0

    def add(self, values: Tensor, generator: torch.Generator) -> None:
        """Draw from what reaches the layer in one call; the smallest and the largest number are always there."""
        flat = values.flatten()
        drawn = flat[torch.randint(len(flat), (self.share,), generator=generator).to(flat.device)]
        self.parts.append(torch.cat([drawn, torch.stack(flat.aminmax())]).float().cpu())
        self.features = len(flat) // len(values)
        if sum(map(len, self.parts)) > self.limit:  # called many times a batch: half as many of each call from now on
            whole, self.share = torch.cat(self.parts), math.ceil(self.share / 2)
            self.parts = [torch.cat([whole[::2], torch.stack(whole.aminmax())])]


@contextmanager
def _watching(model: nn.Module, names: list[str], look: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call look(name, input) whenever one of the named layers is called."""

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def before(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            look(name, inputs[0] if inputs else named[INPUT_NAME])

        return before

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name), with_kwargs=True) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---------------------------------------------------------------- what a network carries


def _quantizers(model: nn.Module) -> dict[str, FakeQuantize]:
    """Return the quantizers of weights, by the first name of the parameter."""
    names: dict[FakeQuantize, str] = {}
    for name, chain in pruning.parametrizations_of(model).items():
        for part in chain:
            if isinstance(part, FakeQuantize):
                names.setdefault(part, name)
    return {name: part for part, name in names.items()}


def weight_grids(model: nn.Module) -> dict[str, Grid]:
    """Return the grids of the quantized weights, by the first names of the parameters ("fc1.weight")."""
    with torch.no_grad():
        return {name: quantizer.grid for name, quantizer in _quantizers(model).items()}


def input_grids(model: nn.Module) -> dict[str, Grid]:
    """Return the grids of the quantized inputs, by the names of the layers."""
    with torch.no_grad():
        return {
            name.removesuffix(INPUT).rstrip("."): module.grid
            for name, module in model.named_modules()
            if is_quantizer(name) and isinstance(module, FakeQuantize)
        }


def integers(model: nn.Module) -> dict[str, packing.Integers]:
    """Return the codes of the quantized weights, masks applied, as `packing.write_quantized` stores them.

    A tensor that several layers share has one entry, under its first name.
    """
    found = {}
    for name, grid in weight_grids(model).items():
        weight = getattr(*pruning._owner(model, name))
        parts = quantize(weight.detach(), grid), grid.scale.float(), grid.zero_point
        codes, scale, zero_point = (part.cpu().numpy() for part in parts)
        found[name] = packing.Integers(codes, scale, zero_point, grid.low, grid.bits)
    return found


def bake(model: nn.Module) -> nn.Module:
    """Return a copy with the same answers whose weights are ordinary floating point numbers, without masks and grids.

    Inputs are quantized as before. What layers share, they share afterwards.
    """
    new = pruning.bake(model)
    for name, chain in pruning.parametrizations_of(new).items():
        if any(isinstance(part, FakeQuantize) for part in chain):
            layer, attribute = pruning._owner(new, name)
            parametrize.remove_parametrizations(layer, attribute, leave_parametrized=True)
    return new


def with_input_grids(model: nn.Module, grids: Mapping[str, Grid]) -> nn.Module:
    """Return a copy in which the inputs of the named layers are moved to these grids, and no others.

    Raises ValueError for a layer that does not exist, and for a grid whose step is not finite or 0.
    """
    new = copied(model)
    for name in input_grids(model):
        layer = new.get_submodule(name)
        delattr(layer, INPUT)
        for key in [key for key, hook in layer._forward_pre_hooks.items() if hook is _quantize_input]:
            del layer._forward_pre_hooks[key]
            del layer._forward_pre_hooks_with_kwargs[key]
    names = _layers(new)
    for name, grid in grids.items():
        _attach(new, names[checks.choice("layer in grids", name, names)], FakeQuantize(grid))
    return new


# ---------------------------------------------------------------- BatchNorm


def fold_batchnorm(model: nn.Module, example: Shaped[Tensor, "batch ..."]) -> nn.Module:
    """Return a copy in which each BatchNorm is part of the convolution or linear layer whose output it reads.

    In evaluation mode BatchNorm multiplies each channel by a constant and adds another (Jacob et al. 2018, section
    3.2). A quantized weight keeps its codes: the constant goes into the channel's step, exactly, which may become
    negative. So folding follows training; steps that were trained are fixed. `example` is a batch that shows who reads
    whose output. The BatchNorm layers become `nn.Identity`; masks become zeros. A layer that shares its weight with
    others has its own afterwards. BatchNorm that reads anything else stays.

    The folded network is compared in double precision; one that insists on another, as by `x.float()`, in its own.

    Raises ValueError for a model in training mode, in which BatchNorm uses the batch's statistics and not those that
    are folded; for a transposed convolution with a quantized weight, whose steps belong to its inputs; and if the
    folded network would answer otherwise: another layer reads a convolution's output, too.
    """
    training_mode = [name for name, norm in model.named_modules() if isinstance(norm, _BatchNorm) and norm.training]
    if training_mode:
        raise ValueError(f"model is in training mode ({training_mode[0]!r}); allowed: evaluation mode, model.eval()")
    model = materialized(model)
    new = with_input_grids(bake(model), input_grids(model))
    grids = {other: grid for name, grid in weight_grids(model).items() for other in same_tensor(model, name)}
    for norm_name, layers in _normalized(model, example).items():
        norm = new.get_submodule(norm_name)
        for name in layers:
            layer, weight = new.get_submodule(name), f"{name}.weight".lstrip(".")
            if weight in grids and isinstance(layer, _ConvTransposeNd):
                raise ValueError(
                    f"layer {name!r} is transposed and quantized; allowed: to fold first, then to quantize"
                )
            factor = _fold(layer, norm)
            if weight in grids:
                grids |= dict.fromkeys(same_tensor(new, weight), _stretched(grids[weight], factor))
        for name in [name for name, other in new.named_modules(remove_duplicate=False) if other is norm]:
            setattr(new.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], nn.Identity())
    _require_same_answers(model, new, example)
    for name in dict.fromkeys(first_names(new).values()):
        if name in grids:
            _put(pruning._owners(new, name), FakeQuantize(grids[name]))
    return new


def _stretched(grid: Grid, factor: Float[Tensor, " channels"]) -> Grid:
    scale = torch.where(factor == 0, grid.scale, grid.scale * factor)  # a silent channel has weights of 0
    return grid._replace(scale=scale, zero_point=grid.zero_point.expand(scale.shape).clone())


def _fold(layer: Any, norm: Any) -> Float[Tensor, " channels"]:
    """Make the layer do the work of the BatchNorm, too; return the factor of each channel."""
    factor = (norm.running_var + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight.detach()
    shift = -norm.running_mean * factor + (0 if norm.bias is None else norm.bias.detach())
    bias = shift if layer.bias is None else shift + layer.bias.detach() * factor
    weight = layer.weight.detach() * _by_output(layer, factor)
    layer.weight = nn.Parameter(weight, layer.weight.requires_grad)  # a new one: others may share the old
    layer.bias = nn.Parameter(bias)
    return factor


def _by_output(layer: Any, factor: Float[Tensor, " channels"]) -> Float[Tensor, "..."]:
    """Return the factors of the outputs in a shape that broadcasts with the layer's weight."""
    if not isinstance(layer, _ConvTransposeNd):
        return _spread(factor, layer.weight.dim())
    inputs = layer.in_channels // layer.groups  # its weight is (inputs, outputs of one group, …)
    pairs = factor.reshape(layer.groups, 1, -1).expand(-1, inputs, -1).flatten(0, 1)
    return pairs.reshape(*pairs.shape, *[1] * (layer.weight.dim() - 2))


def _normalized(model: nn.Module, example: Tensor) -> dict[str, list[str]]:
    """Return, for each BatchNorm that reads nothing but outputs of convolutions and linear layers, their names."""
    norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, _BatchNorm)}
    made: dict[int, str | None] = {}
    kept: list[Tensor] = []
    read: dict[str, list[str | None]] = {name: [] for name, norm in norms.items() if norm.running_mean is not None}

    def remember(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: object, output: Tensor) -> None:
            channels_last = isinstance(layer, nn.Linear) and output.dim() != 2  # BatchNorm's channels are the second
            made[id(output)] = None if channels_last else name
            kept.append(output)  # as long as it lives, no other tensor has its id

        return hook

    layers = [(model.get_submodule(name), remember(name)) for name in dict.fromkeys(_layers(model).values())]
    with hooked(layers), _watching(model, list(read), lambda name, values: read[name].append(made.get(id(values)))):
        training.predict(model, checks.not_empty("example", example), batch_size=len(example))
    found = {name: list(dict.fromkeys(makers)) for name, makers in read.items()}
    return {name: makers for name, makers in found.items() if makers and None not in makers}  # type: ignore[misc]


def _require_same_answers(model: nn.Module, folded: nn.Module, example: Tensor) -> None:
    """Compare in double precision, inputs not rounded: a number between two codes may go either way."""
    nets = [with_input_grids(bake(net), {}) for net in (model, folded)]
    try:
        doubled = example.double() if example.is_floating_point() else example
        answers = [training.predict(copied(net).double(), doubled) for net in nets]
        tolerance = FOLDING_TOLERANCE
    except Exception:  # of any class: such a network computes in single or half precision only
        answers = [training.predict(net, example).double() for net in nets]
        tolerance = max(10 * FOLDING_TOLERANCE, _coarsest(nets[0], example) ** 0.5)
    difference, largest = (answers[0] - answers[1]).abs().max(), answers[0].abs().max()
    if not difference <= tolerance * max(1.0, float(largest)):
        raise ValueError(
            f"model answers otherwise after folding, by up to {float(difference):.3g}; "
            "allowed: convolutions whose output only their BatchNorm reads"
        )


def _coarsest(model: nn.Module, example: Tensor) -> float:
    """Return the largest step from 1 to the next number, of the types in which the layers answer."""
    steps = [torch.finfo(torch.float32).eps]

    def look(layer: nn.Module, inputs: object, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            steps.append(torch.finfo(output.dtype).eps)

    with hooked([(layer, look) for layer in model.modules()]):
        training.predict(model, example)
    return max(steps)
