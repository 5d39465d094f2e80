"""The uniform grid: numbers as whole-number codes.

The uniform (affine) grid of Jacob et al. 2018 ("Quantization and training of neural networks for efficient
integer-arithmetic-only inference", section 2.1) stands for a number by a whole number, its code:

    value = scale · (code − zero_point)

Rounding, saturation and ranges are those of PyTorch: a value is multiplied by 1 / scale, rounded half to even, moved
by the zero point and cut to the codes that there are. 0 is always met exactly, so padding, ReLU and pruned weights
stay what they are.

`quantize_model` returns a new network that computes with such values ("fake quantization": floating point arithmetic on
numbers that integers could hold), which can be trained by `training.fit` as it is. Weights carry their grid as a
parametrization; a layer's input is rounded before the layer sees it. `files.write_quantized` stores the codes.
Biases and normalization stay in floating point. A tensor that several layers share has one grid, under its first name,
and they go on sharing it.
"""

import math
import numbers
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from helpers.core import checks

BITS = range(2, 9)
METHODS = ("minmax", "percentile", "mse")
SHRINKINGS = [0.05 ** (step / 49) for step in range(50)]  # from the whole range to a twentieth of it


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


def number_of_bits(argument: str, bits: int) -> int:
    """Return `bits` if it is a whole number from 2 to 8; raise ValueError, naming `argument`, otherwise."""
    if not isinstance(bits, numbers.Integral):
        raise ValueError(f"{argument}={bits!r} is no whole number; allowed: {BITS[0]} to {BITS[-1]}")
    return checks.choice(argument, bits, BITS)


def finite(name: str, values: Tensor) -> Tensor:
    """Return numbers of at least single precision, if there are any and all are finite; raise ValueError otherwise."""
    if not isinstance(values, Tensor) or values.is_complex():
        raise ValueError(f"{name} is {getattr(values, 'dtype', type(values))}; allowed: a tensor of real numbers")
    checks.not_empty(name, values.reshape(-1))
    return checks.finite(name, values.to(torch.promote_types(values.dtype, torch.float32)))


def _require_floats(name: str, values: Tensor) -> None:
    if not values.is_floating_point():
        raise ValueError(f"{name} has type {values.dtype}; allowed: floating point numbers")


def require_steps(grid: Grid) -> None:
    """Raise ValueError unless every scale of the grid is finite and not 0."""
    if not bool((grid.scale.isfinite() & (grid.scale != 0)).all()):
        raise ValueError(f"grid.scale={grid.scale.tolist()}; allowed: finite numbers other than 0")


def code_range(bits: int, *, signed: bool = True, narrow: bool = False) -> tuple[int, int]:
    """Return the lowest and the highest code of `bits` bits: -8 and 7, unsigned 0 and 15, narrow -7 and 7.

    Raises ValueError for bits outside 2 to 8, and for narrow unsigned codes.
    """
    number_of_bits("bits", bits)
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
    lowest, highest = finite("lowest", lowest), finite("highest", highest)
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


def spread(numbers: Tensor, dimensions: int) -> Tensor:
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
    scale, zero_point = spread(grid.scale, values.dim()), spread(grid.zero_point, values.dim())
    position, lowest, highest = exact * (1 / scale), grid.low - zero_point, grid.high - zero_point
    code = position.round()
    straight = position + (code - position).detach()  # exactly the code: the difference is exact
    inside = (code >= lowest) & (code <= highest)
    return torch.where(inside, straight, torch.clamp(code, lowest, highest)) * scale


@torch.no_grad()
def quantize(values: Float[Tensor, "..."], grid: Grid) -> Integer[Tensor, "..."]:
    """Return the codes of the values, as int8, or uint8 if none is below 0; ValueError for NaN, which has no code."""
    require_steps(grid)
    _require_floats("values", values)
    checks.finite("values", values)
    position = (values * (1 / spread(grid.scale, values.dim()))).round()
    codes = (position + spread(grid.zero_point, values.dim())).clamp(grid.low, grid.high)
    return codes.to(torch.int8 if grid.low < 0 else torch.uint8)


def dequantize(codes: Integer[Tensor, "..."], grid: Grid) -> Float[Tensor, "..."]:
    """Return the values that the codes stand for."""
    steps = codes.to(torch.int32) - spread(grid.zero_point, codes.dim())
    return steps.to(grid.scale.dtype) * spread(grid.scale, codes.dim())


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
    values = finite("values", values)
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
