"""BatchNorm folded into the layer before it."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from helpers import training
from helpers.core import checks
from helpers.core.modules import copied, first_names, hooked, materialized, same_tensor
from helpers.pruning import weights
from helpers.quantization.grids import Grid, spread
from helpers.quantization.layers import FakeQuantize, layers_by_name, put
from helpers.quantization.networks import bake, input_grids, watching, weight_grids, with_input_grids

FOLDING_TOLERANCE = 1e-4


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
            put(weights.owners_of(new, name), FakeQuantize(grids[name]))
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
        return spread(factor, layer.weight.dim())
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

    layers = [(model.get_submodule(name), remember(name)) for name in dict.fromkeys(layers_by_name(model).values())]
    with hooked(layers), watching(model, list(read), lambda name, values: read[name].append(made.get(id(values)))):
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
