"""Linear layers with one grid for each few neighbouring weights, rounded to nearest or by GPTQ.

One grid for a whole row must span its largest weight. With a few bits that leaves hardly any codes for the many small
ones, so that large language models are stored in groups: 64 neighbouring inputs of an output have a grid of their own,
here with a scale and a zero point.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from helpers import pruning
from helpers.core import checks
from helpers.core.modules import asked, evaluating
from helpers.core.vocabulary import PAD
from helpers.pruning.weights import refuse_tied
from helpers.quantization.grids import Grid, dequantize, find_grid, finite, number_of_bits, quantize
from helpers.quantization.networks import watching


class Groups(NamedTuple):
    """A weight (rows, columns) as codes; each `size` neighbours of a row share a grid.

    codes are uint8 (rows, columns), from 0 to 2^bits - 1; scale is float32 and zero_point uint8, (rows, groups) both.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int

    @property
    def size(self) -> int:
        """Weights that share a grid."""
        return self.codes.shape[1] // self.scale.shape[1]


def quantize_groups(weight: Float[Tensor, "rows columns"], bits: int, *, size: int = 64) -> Groups:
    """Round each weight to the nearest value of its group's grid, which spans the group's weights and 0.

    Raises ValueError for bits outside 2 to 8, weights that are no matrix or not finite, and a `size` that does not
    divide the columns.
    """
    weight = _checked_weight(weight, bits, size)
    rows, columns = weight.shape
    grid = _grid_of(weight.reshape(-1, size), bits)
    codes = quantize(weight.reshape(-1, size), grid).view(rows, columns)
    return Groups(codes, grid.scale.view(rows, -1), grid.zero_point.view(rows, -1).to(torch.uint8), bits)


def _checked_weight(weight: Tensor, bits: int, size: int) -> Float[Tensor, "rows columns"]:
    number_of_bits("bits", bits)
    weight = finite("weight", weight).detach().float()
    if weight.dim() != 2:
        raise ValueError(f"weight has the shape {tuple(weight.shape)}; allowed: (rows, columns)")
    _check_size("weight", weight, size)
    return weight


def _check_size(name: str, weight: Tensor, size: int) -> None:
    columns = weight.shape[1]
    if columns % checks.positive("size", size):
        raise ValueError(f"size={size}, and {name} has {columns} columns; allowed: a size that divides them")


def _grid_of(groups: Float[Tensor, "n size"], bits: int) -> Grid:
    return find_grid(groups, bits, method="minmax", symmetric=False, signed=False, per_channel=True)


def dequantize_groups(groups: Groups) -> Float[Tensor, "rows columns"]:
    """Return the weight that the codes stand for."""
    codes = groups.codes.reshape(-1, groups.size)
    grid = Grid(groups.scale.flatten(), groups.zero_point.flatten().int(), 0, 2**groups.bits - 1)
    return dequantize(codes, grid).view(groups.codes.shape)


@torch.no_grad()
def gptq(
    weight: Float[Tensor, "rows columns"],
    products: Float[Tensor, "columns columns"],
    bits: int,
    *,
    size: int = 64,
    damping: float = 0.01,
) -> Groups:
    """Round one column after the other, and have the columns that are left make up for each error.

    `products` is the mean of x xᵀ over the layer's inputs x (`input_products`), so that (w - ŵ) products (w - ŵ)ᵀ is
    the mean squared error of a row's output. Its minimum over the columns that are left follows from the Cholesky
    factor of the inverse (Frantar et al. 2023, "GPTQ: accurate post-training quantization for generative pre-trained
    transformers", section 3, algorithm 1, with a group of columns as its block). A group's grid is chosen when its
    turn comes. `damping` times the mean of the diagonal is added to the diagonal. The weights of an input that is
    always 0 become 0.

    Raises ValueError as `quantize_groups` does, for `products` of another shape or not finite, and if they have no
    inverse even with `damping`.
    """
    left = _checked_weight(weight, bits, size).double()
    factor, dead = _factor_of(products, left.shape[1], damping)
    left[:, dead] = 0
    parts = []
    for start in range(0, left.shape[1], size):
        stop = start + size
        grid, columns, errors = _grid_of(left[:, start:stop].float(), bits), [], []
        for column in range(start, stop):
            columns.append(quantize(left[:, column].float(), grid))
            errors.append((left[:, column] - dequantize(columns[-1], grid)) / factor[column, column])
            left[:, column + 1 : stop] -= errors[-1].outer(factor[column, column + 1 : stop])
        left[:, stop:] -= torch.stack(errors, 1) @ factor[start:stop, stop:]
        parts.append((torch.stack(columns, 1), grid.scale[:, None], grid.zero_point[:, None].to(torch.uint8)))
    codes, scale, zero_point = (torch.cat(tensors, 1) for tensors in zip(*parts, strict=True))
    return Groups(codes, scale, zero_point, bits)


def _factor_of(products: Tensor, columns: int, damping: float) -> tuple[Float[Tensor, "columns columns"], Tensor]:
    """Return U of the damped inverse Uᵀ U, upper triangular in float64, and which inputs are always 0."""
    checks.number("damping", damping, at_least=0)
    products = finite("products", products).double()
    if products.shape != (columns, columns):
        raise ValueError(f"products has the shape {tuple(products.shape)}; allowed: {(columns, columns)}")
    diagonal = products.diagonal()
    dead = diagonal == 0
    damped = products + torch.diag(damping * diagonal.mean() + dead.double())
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return torch.linalg.cholesky(inverse, upper=True), dead
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            f"products cannot be inverted with damping={damping}; allowed: a mean of x xᵀ, or more damping"
        ) from error


@torch.no_grad()
def input_products(
    model: nn.Module, inputs: Tensor, *, layers: Sequence[str] | None = None, batch_size: int = 32
) -> dict[str, Tensor]:
    """Return the mean of x xᵀ over all that reaches each linear layer, or each of `layers`: name → (in, in), float32.

    The network computes in evaluation mode. x is one row of a layer's input: of (batch, features) an example's, of
    (batch, length, features) a token's. Where `inputs` are numbers of tokens, (batch, length), the tokens that are
    padding are left out.

    Raises ValueError for a layer that does not exist, or that nothing reaches but padding, and for inputs that are
    empty or that the model does not take.
    """
    checks.positive("batch_size", batch_size)
    if not isinstance(inputs, Tensor):
        raise ValueError(f"inputs is a {type(inputs).__name__}; allowed: a tensor")
    checks.not_empty("inputs", inputs)
    chosen = linear_layers(model, layers)
    sums: dict[str, Any] = dict.fromkeys(chosen, 0)
    counts = dict.fromkeys(chosen, 0)

    def add(batch: Tensor, name: str, values: Tensor) -> None:
        rows = _rows(values, batch).float()
        sums[name] = sums[name] + (rows.T @ rows).double()
        counts[name] += len(rows)

    where = next(iter(chosen.values())).weight.device
    with evaluating(model), asked("inputs", inputs):
        for batch in (part.to(where) for part in inputs.split(batch_size)):
            with watching(model, list(chosen), partial(add, batch)):
                model(batch)
    if silent := [name for name in chosen if not counts[name]]:
        raise ValueError(
            f"nothing, or nothing but padding, reaches {', '.join(silent)}; allowed: layers that the model calls"
        )
    return {name: checks.finite(f"inputs: what reaches {name!r}", sums[name] / counts[name]).float() for name in chosen}


def _rows(values: Float[Tensor, "batch ... features"], batch: Tensor) -> Float[Tensor, "rows features"]:
    """Return the rows of a layer's input, of tokens those that are no padding."""
    if batch.dim() == 2 and not batch.is_floating_point() and values.dim() == 3:
        return values[batch[:, : values.shape[1]] != PAD]
    return values.flatten(0, -2)


def linear_layers(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, nn.Linear]:
    """Return the linear layers by name, or those in `names`; ValueError for a name that is none of them."""
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    checks.not_empty("linear layers of model", found)
    chosen = found if names is None else checks.not_empty("layers", names)
    return {name: found[checks.choice("layer in layers", name, found)] for name in chosen}


def quantize_linears(
    model: nn.Module,
    bits: int,
    *,
    size: int = 64,
    products: Mapping[str, Tensor] | None = None,
    layers: Sequence[str] | None = None,
) -> nn.Module:
    """Return a copy whose linear layers, or those in `layers`, hold weights on grids of groups, as floats.

    They are rounded by `gptq` with `products` (see `input_products`), without them to nearest. Biases stay. Masks are
    baked; rounding keeps their zeros, `gptq` does not.

    Raises ValueError as `gptq` does, for a layer that does not exist, is quantized already or shares its weight, and
    for one that is not in `products`.
    """
    new = pruning.bake(model)
    for name, layer in linear_layers(new, layers).items():
        if parametrize.is_parametrized(layer):
            raise ValueError(f"layer {name!r} is quantized already; allowed: an ordinary one")
        refuse_tied(new, name, layer)
        _check_size(f"layer {name!r}", layer.weight, size)
        if products is None:
            groups = quantize_groups(layer.weight, bits, size=size)
        elif name in products:
            groups = gptq(layer.weight, products[name], bits, size=size)
        else:
            raise ValueError(f"products has no layer {name!r}; allowed: those of all layers, or layers=[…] without it")
        layer.weight.data = dequantize_groups(groups).to(layer.weight.dtype)
    return new
