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
Biases and normalization stay in floating point.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from helpers import checks, packing, pruning, training
from helpers.data import Split

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
SAMPLE = 65_536
SHRINKINGS = [0.05 ** (step / 49) for step in range(50)]  # from the whole range to a twentieth of it
FOLDING_TOLERANCE = 1e-4


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


def code_range(bits: int, *, signed: bool = True, narrow: bool = False) -> tuple[int, int]:
    """Return the lowest and the highest code of `bits` bits: -8 and 7, unsigned 0 and 15, narrow -7 and 7.

    Raises ValueError for bits outside 2 to 8, and for narrow unsigned codes.
    """
    checks.choice("bits", bits, BITS)
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

    Raises ValueError for bits outside 2 to 8, and for a symmetric or narrow grid of unsigned codes.
    """
    low, high = code_range(bits, signed=signed, narrow=narrow)
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

    Values of less than single precision are computed, and returned, in single precision.
    """
    exact = values.to(torch.promote_types(values.dtype, torch.float32))
    scale, zero_point = _spread(grid.scale, values.dim()), _spread(grid.zero_point, values.dim())
    position, lowest, highest = exact * (1 / scale), grid.low - zero_point, grid.high - zero_point
    code = position.round()
    straight = position + (code - position).detach()  # exactly the code: the difference is exact
    inside = (code >= lowest) & (code <= highest)
    return torch.where(inside, straight, torch.clamp(code, lowest, highest)) * scale


@torch.no_grad()
def quantize(values: Float[Tensor, "..."], grid: Grid) -> Integer[Tensor, "..."]:
    """Return the codes of the values, as int8, or uint8 if none is below 0."""
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
    that are not finite.
    """
    checks.choice("method", method, METHODS)
    checks.not_empty("values", values.reshape(-1))
    if not 50 < percentile <= 100:
        raise ValueError(f"percentile={percentile!r}; allowed: above 50, and at most 100")
    if not torch.isfinite(values).all():
        raise ValueError("values hold NaN or infinity; allowed: finite numbers")
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
    """Return the place in `table`, which rises, of the entry nearest to each value."""
    return torch.bucketize(values, (table[1:] + table[:-1]) / 2)


@torch.no_grad()
def kmeans_table(values: Float[Tensor, "..."], bits: int, *, iterations: int = 100) -> Float[Tensor, " entries"]:
    """Return at most 2^bits values, rising, that are a local optimum of the mean squared error of `nearest`.

    Weight sharing by k-means (Han et al. 2016, "Deep compression", section 3), from the middles of 2^bits parts of
    the different values. Numbers can be sorted, so that one iteration (Lloyd 1982, "Least squares quantization in
    PCM") takes two look-ups for each entry and not a distance for each value; the result is scikit-learn's `KMeans`.
    Where there are no more than 2^bits different values, the table is these.

    Raises ValueError for bits outside 2 to 8, no values, or values that are not finite.
    """
    checks.choice("bits", bits, BITS)
    ordered = checks.not_empty("values", values.reshape(-1)).double().sort().values
    if not torch.isfinite(ordered).all():
        raise ValueError("values hold NaN or infinity; allowed: finite numbers")
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
    checks.choice("bits", bits, BITS)
    magnitudes = 2.0 ** -torch.arange(2 ** (bits - 1) - 1)
    return torch.cat([-magnitudes, torch.zeros(1), magnitudes.flip(0)])


@torch.no_grad()
def fit_table(values: Float[Tensor, "..."], levels: Float[Tensor, " entries"]) -> Float[Tensor, " entries"]:
    """Return `levels`, which rise within [-1, 1], times the factor that gives the least mean squared error.

    Fifty factors are tried, from the largest magnitude of `values` down to a twentieth of it.
    """
    flat = checks.not_empty("values", values.reshape(-1))
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
    the places in it. Raises ValueError for a layer that does not exist or has no weight to share.
    """
    new = bake(model)
    for name, table in tables.items():
        layer: Any = new.get_submodule(checks.choice("layer in tables", name, _named(new, pruning.PRUNABLE)))
        layer.weight.data = table.to(layer.weight)[nearest(layer.weight.detach(), table.to(layer.weight))]
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


def _quantize_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Round a layer's input; a hook that runs before the layer (a plain function, so copies use their own layer)."""
    return (layer.get_submodule(INPUT)(inputs[0]), *inputs[1:])


def _named(model: nn.Module, kinds: tuple[type, ...]) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, kinds)]


def bits_by_layer(model: nn.Module, bits: int, *, ends: int = 8) -> dict[str, int]:
    """Return `bits` for each linear or convolutional layer, but `ends` for the first and the last (as defined)."""
    names = checks.not_empty("linear and convolutional layers of model", _named(model, pruning.WITH_NEURONS))
    return dict.fromkeys(names, bits) | {names[0]: ends, names[-1]: ends}


def _bits(model: nn.Module, argument: str, bits: int | Mapping[str, int], kinds: tuple[type, ...]) -> dict[str, int]:
    names = checks.not_empty("layers of model that can be quantized", _named(model, kinds))
    given = bits if isinstance(bits, Mapping) else dict.fromkeys(names, bits)
    for name, number in given.items():
        checks.choice(f"layer in {argument}", name, names)
        checks.choice(argument, number, BITS)
    return dict(given)


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
        model: any network of linear, convolutional and embedding layers; masks stay in force.
        weights: bits from 2 to 8 of every layer's weight, or of the layers named, {"fc1": 4}; symmetric signed grids.
        activations: the same for what reaches linear and convolutional layers; unsigned grids with a zero point.
        calibration: training examples, on which the inputs' ranges are found; never test examples.
        method: how ranges are found, one of METHODS.
        per_channel: give each output channel of a weight its own step.
        learned: train the steps, too.

    Raises:
        ValueError: an argument is out of range; a layer is unknown, quantized already, or (as one of `models.LSTM`)
            never called, so that it has no input to be rounded; `activations` without `calibration`; `calibration` is
            the test split.
    """
    weight_bits = _bits(model, "weights", weights, pruning.PRUNABLE)
    input_bits = {} if activations is None else _bits(model, "activations", activations, pruning.WITH_NEURONS)
    for name in [*weight_bits, *input_bits]:
        if f"{name}.weight".lstrip(".") in weight_grids(model) or name in input_grids(model):
            raise ValueError(
                f"layer {name!r} is quantized already; allowed: to quantize the network that it was made of"
            )
    if input_bits and calibration is None:
        raise ValueError(f"activations={activations!r} without calibration; allowed: a Split of training examples")
    seen = _observe(model, calibration, list(input_bits), SAMPLE) if calibration is not None and input_bits else {}

    new = pruning.own_copy(model)
    for name, bits in weight_bits.items():
        layer: Any = new.get_submodule(name)
        grid = find_grid(layer.weight, bits, method=method, per_channel=per_channel)
        sharing = layer.weight.numel() // grid.scale.numel()
        quantizer = FakeQuantize(grid, trained_over=sharing if learned else None)
        parametrize.register_parametrization(layer, "weight", quantizer)
    for name, bits in input_bits.items():
        grid = find_grid(seen[name].sample, bits, method=method, symmetric=False, signed=False)
        _attach(new, name, FakeQuantize(grid, trained_over=seen[name].features if learned else None))
    return new


def _attach(model: nn.Module, name: str, quantizer: FakeQuantize) -> None:
    layer = model.get_submodule(name)
    layer.add_module(INPUT, quantizer)
    layer.register_forward_pre_hook(_quantize_input)


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

    They are drawn at random, the same ones each time; each batch adds its smallest and its largest number. The network
    computes in evaluation mode.

    Raises ValueError for the test split, an empty one, a layer that does not exist, or one that is never called.
    """
    names = _named(model, pruning.WITH_NEURONS) if layers is None else layers
    return {name: seen.sample for name, seen in _observe(model, split, names, count).items()}


def _observe(model: nn.Module, split: Split[Tensor, Tensor], names: list[str], count: int) -> dict[str, _Seen]:
    if split.is_test:
        raise ValueError(
            "calibration is the test split: its images may not shape the network; allowed: training examples"
        )
    checks.not_empty("calibration", split)
    checks.positive("count", count)
    for name in names:
        checks.choice("layer", name, _named(model, pruning.WITH_NEURONS))
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    features: dict[str, int] = {}
    generator, share = torch.Generator().manual_seed(0), math.ceil(count / math.ceil(len(split) / 250))

    def look(name: str, values: Tensor) -> None:
        flat = values.detach().flatten()
        drawn = flat[torch.randint(len(flat), (share,), generator=generator).to(flat.device)]
        parts[name].append(torch.cat([drawn, torch.stack(flat.aminmax())]).float().cpu())
        features[name] = len(flat) // len(values)

    with _watching(model, names, look):
        training.predict(model, split.inputs, batch_size=250)
    if silent := [name for name in names if not parts[name]]:
        raise ValueError(f"these layers are never called: {', '.join(silent)}; allowed: name only those that are")
    return {name: _Seen(torch.cat(parts[name]), features[name]) for name in names}


@contextmanager
def _watching(model: nn.Module, names: list[str], look: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call look(name, input) whenever one of the named layers is called."""

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            look(name, inputs[0])

        return before

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---------------------------------------------------------------- what a network carries


def _quantizers(model: nn.Module) -> dict[str, FakeQuantize]:
    """Return the quantizers of weights, by the name of the parameter."""
    chains = pruning.parametrizations_of(model).items()
    return {name: part for name, chain in chains for part in chain if isinstance(part, FakeQuantize)}


def weight_grids(model: nn.Module) -> dict[str, Grid]:
    """Return the grids of the quantized weights, by the names of the parameters ("fc1.weight")."""
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
    """Return the codes of the quantized weights, masks applied, as `packing.write_quantized` stores them."""
    found = {}
    for name, grid in weight_grids(model).items():
        layer: Any = model.get_submodule(name.rpartition(".")[0])
        parts = quantize(layer.weight.detach(), grid), grid.scale.float(), grid.zero_point
        codes, scale, zero_point = (part.cpu().numpy() for part in parts)
        found[name] = packing.Integers(codes, scale, zero_point, grid.low, grid.bits)
    return found


def bake(model: nn.Module) -> nn.Module:
    """Return a copy with the same answers whose weights are ordinary floating point numbers, without masks and grids.

    Inputs are quantized as before.
    """
    new = pruning.bake(model)
    for name in _quantizers(new):
        layer = new.get_submodule(name.rpartition(".")[0])
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return new


def with_input_grids(model: nn.Module, grids: Mapping[str, Grid]) -> nn.Module:
    """Return a copy in which the inputs of the named layers are moved to these grids, and no others.

    Raises ValueError for a layer that does not exist.
    """
    new = deepcopy(model)
    for name in input_grids(model):
        layer = new.get_submodule(name)
        delattr(layer, INPUT)
        for key in [key for key, hook in layer._forward_pre_hooks.items() if hook is _quantize_input]:
            del layer._forward_pre_hooks[key]
    for name, grid in grids.items():
        _attach(new, checks.choice("layer in grids", name, _named(new, pruning.WITH_NEURONS)), FakeQuantize(grid))
    return new


# ---------------------------------------------------------------- BatchNorm


def fold_batchnorm(model: nn.Module, example: Shaped[Tensor, "batch ..."]) -> nn.Module:
    """Return a copy in which each BatchNorm is part of the convolution or linear layer whose output it reads.

    In evaluation mode BatchNorm multiplies each channel by a constant and adds another (Jacob et al. 2018, section
    3.2). A quantized weight keeps its codes: the constant goes into the channel's step, exactly, which may become
    negative. So folding follows training; steps that were trained are fixed. `example` is a batch that shows who reads
    whose output. The BatchNorm layers become `nn.Identity`; masks become zeros.

    Raises ValueError for a model in training mode, in which BatchNorm uses the batch's statistics and not those that
    are folded, and if the folded network would answer otherwise: another layer reads a convolution's output, too.
    """
    training_mode = [name for name, norm in model.named_modules() if isinstance(norm, _BatchNorm) and norm.training]
    if training_mode:
        raise ValueError(f"model is in training mode ({training_mode[0]!r}); allowed: evaluation mode, model.eval()")
    new, grids = with_input_grids(bake(model), input_grids(model)), weight_grids(model)
    for norm_name, layer_name in _normalized(model, example).items():
        factor = _fold(new.get_submodule(layer_name), new.get_submodule(norm_name))
        parent, _, child = norm_name.rpartition(".")
        setattr(new.get_submodule(parent), child, nn.Identity())
        if (weight := f"{layer_name}.weight".lstrip(".")) in grids:
            old = grids[weight]
            scale = torch.where(factor == 0, old.scale, old.scale * factor)  # a silent channel has weights of 0
            zero_point = old.zero_point.expand(scale.shape).clone()
            grids[weight] = old._replace(scale=scale, zero_point=zero_point)
    _require_same_answers(model, new, example)
    for name, grid in grids.items():
        parametrize.register_parametrization(new.get_submodule(name.rpartition(".")[0]), "weight", FakeQuantize(grid))
    return new


def _fold(layer: Any, norm: Any) -> Float[Tensor, " channels"]:
    """Make the layer do the work of the BatchNorm, too; return the factor of each channel."""
    factor = (norm.running_var + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight.detach()
    shift = -norm.running_mean * factor + (0 if norm.bias is None else norm.bias.detach())
    bias = shift if layer.bias is None else shift + layer.bias.detach() * factor
    layer.weight.data = layer.weight.detach() * _spread(factor, layer.weight.dim())
    layer.bias = nn.Parameter(bias)
    return factor


def _normalized(model: nn.Module, example: Tensor) -> dict[str, str]:
    """Return, for each BatchNorm that reads the output of a convolution or a linear layer, that layer's name."""
    layers, norms = _named(model, pruning.WITH_NEURONS), _named(model, (_BatchNorm,))
    made: dict[int, str] = {}
    kept: list[Tensor] = []
    found: dict[str, str] = {}

    def remember(name: str) -> Any:
        def hook(layer: nn.Module, inputs: object, output: Tensor) -> None:
            made[id(output)] = name
            kept.append(output)  # as long as it lives, no other tensor has its id

        return hook

    def look(name: str, values: Tensor) -> None:
        norm: Any = model.get_submodule(name)
        if id(values) in made and norm.running_mean is not None:
            found[name] = made[id(values)]

    handles = [model.get_submodule(name).register_forward_hook(remember(name)) for name in layers]
    try:
        with _watching(model, norms, look):
            training.predict(model, checks.not_empty("example", example), batch_size=len(example))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _require_same_answers(model: nn.Module, folded: nn.Module, example: Tensor) -> None:
    """Compare in double precision, inputs not rounded: a number between two codes may go either way."""
    answers = [training.predict(with_input_grids(bake(net), {}).double(), example.double()) for net in (model, folded)]
    difference, largest = (answers[0] - answers[1]).abs().max(), answers[0].abs().max()
    if not difference <= FOLDING_TOLERANCE * max(1.0, float(largest)):
        raise ValueError(
            f"model answers otherwise after folding, by up to {float(difference):.3g}; "
            "allowed: convolutions whose output only their BatchNorm reads"
        )
