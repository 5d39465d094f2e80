"""Masks: which weights are kept, put on a model and baked into it.

A mask is a boolean tensor of its parameter's shape, True where the weight is kept; masks travel as a dictionary keyed
by parameter name (``{"fc1.weight": …}``). `mask` puts them on a copy of the model as parametrizations
(`torch.nn.utils.parametrize`): what the network computes with is ``original * mask``, so neither momentum nor weight
decay nor a copy nor a saved file can bring a pruned weight back. `bake` turns them into ordinary zeros.

A tensor that several layers share (a decoder that is tied to its embedding) counts once, under its first name. Each of
its names is accepted, and a mask on one is a mask on all: the layers stay tied.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from helpers.core import checks
from helpers.core.modules import first_names, materialized
from helpers.pruning.scores import SCORES, Scores
from helpers.pruning.weights import (
    layer_of,
    owner_of,
    owners_of,
    parametrizations_of,
    places_of,
    plain,
    refuse_flat_weights,
    weights_of,
)

Masks = Mapping[str, Tensor]  # boolean; `mask` says so in a sentence where a type checker would in ten lines


class Mask(nn.Module):
    """Parametrization that multiplies a tensor by a fixed mask of its shape."""

    mask: Tensor

    def __init__(self, mask: Bool[Tensor, "..."]) -> None:
        super().__init__()
        self.register_buffer("mask", mask.clone())

    def forward(self, original: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the tensor that the layer computes with."""
        return original * self.mask


def sparsity(model: nn.Module) -> float:
    """Return the fraction of the weights (biases not counted) that are exactly zero."""
    weights = checks.not_empty("weights of model", weights_of(model))
    return sum(int((w == 0).sum()) for w in weights.values()) / sum(w.numel() for w in weights.values())


def keep_largest(scores: Float[Tensor, "..."], amount: float) -> Bool[Tensor, "..."]:
    """Return the mask that drops the fraction `amount` of the entries with the smallest scores.

    The number dropped is rounded, and ties are broken, as `torch.nn.utils.prune` does it.
    """
    checks.fraction("amount", amount)
    _refuse_nan("scores", scores)
    dropped = round(amount * scores.numel())
    kept = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    kept[torch.topk(scores.flatten(), dropped, largest=False).indices] = False
    return kept.view(scores.shape)


def _refuse_nan(name: str, scores: Tensor) -> None:
    if not isinstance(scores, Tensor) or scores.is_complex() or bool(scores.isnan().any()):
        raise ValueError(f"{name} is no tensor, or holds NaN; allowed: a tensor of numbers")


def layer_masks(
    model: nn.Module, amount: float | Mapping[str, float], *, method: str = "l1", seed: int = 0
) -> dict[str, Tensor]:
    """Prune every layer by the same fraction, or by its own: `{"fc1": 0.9}` prunes fc1 and leaves the others.

    `amount` counts from the whole layer: weights that are zero already are the first to be dropped by "l1".
    """
    score = SCORES[checks.choice("method", method, SCORES)]
    model = plain(model)
    scores = score(model, seed=seed)
    if not isinstance(amount, Mapping):
        return {name: keep_largest(values, amount) for name, values in scores.items()}
    layers = _weights_by_layer(model)
    parts: dict[str, float] = {}
    for layer, part in amount.items():
        for name in layers[checks.choice("layer in amount", layer, layers)]:
            if parts.setdefault(name, part) != part:
                raise ValueError(f"amount has {parts[name]} and {part} for {name!r}; allowed: one for each tensor")
    return {name: keep_largest(scores[name], part) for name, part in parts.items()}


def _weights_by_layer(model: nn.Module) -> dict[str, list[str]]:
    """Return the first names of each layer's weights, by all names of the layer."""
    first, layers = first_names(model), dict[str, list[str]]()
    names = {first.get(name): name for name in places_of(model)}
    for name, other in first.items():
        if other in names:
            layers.setdefault(name.rpartition(".")[0], []).append(names[other])
    return layers


def global_masks(
    model: nn.Module, amount: float, *, method: str = "l1", seed: int = 0, scores: Scores | None = None
) -> dict[str, Tensor]:
    """Prune the fraction `amount` of all weights, wherever the smallest scores are; `scores` may bring its own."""
    if scores is None:
        scores = SCORES[checks.choice("method", method, SCORES)](model, seed=seed)
    for name, values in checks.not_empty("scores", scores).items():
        _refuse_nan(f"scores[{name!r}]", values)
    flat = torch.cat([values.flatten() for values in scores.values()])
    parts = keep_largest(flat, amount).split([values.numel() for values in scores.values()])
    return {name: part.view(values.shape) for part, (name, values) in zip(parts, scores.items(), strict=True)}


def row_masks(scores: Scores, amount: float) -> dict[str, Tensor]:
    """Prune the fraction `amount` of each row (output), where its smallest scores are: every output keeps as many.

    `scores` go by parameter name; the first dimension counts the rows. Raises ValueError for an amount outside [0, 1),
    and scores that are empty, of one dimension, or hold NaN.
    """
    checks.fraction("amount", amount)
    masks = {}
    for name, values in checks.not_empty("scores", scores).items():
        _refuse_nan(f"scores[{name!r}]", values)
        if values.dim() < 2:
            raise ValueError(f"scores[{name!r}] is {tuple(values.shape)}; allowed: two dimensions or more")
        rows = values.flatten(1)
        dropped = rows.topk(round(amount * rows.shape[1]), dim=1, largest=False).indices
        kept = torch.ones_like(rows, dtype=torch.bool).scatter(1, dropped, False)
        masks[name] = kept.view(values.shape)
    return masks


def two_of_four(scores: Scores) -> dict[str, Tensor]:
    """Keep the two largest scores of every four neighbouring inputs: 2:4, which recent GPUs multiply faster.

    Neighbours are along the second dimension, for convolutions the input channels (Mishra et al. 2021, "Accelerating
    sparse deep neural networks", section 3). `scores` go by parameter name. Raises ValueError for scores that are
    empty or hold NaN, and for inputs that are no multiple of four.
    """
    masks = {}
    for name, values in checks.not_empty("scores", scores).items():
        _refuse_nan(f"scores[{name!r}]", values)
        if values.dim() < 2 or values.shape[1] % 4:
            raise ValueError(f"scores[{name!r}] is {tuple(values.shape)}; allowed: a second dimension of fours")
        fours = values.unflatten(1, (-1, 4))
        dropped = fours.topk(2, dim=2, largest=False).indices
        masks[name] = torch.ones_like(fours, dtype=torch.bool).scatter(2, dropped, False).flatten(1, 2)
    return masks


def neuron_masks(model: nn.Module, layer: str, next_layer: str, amount: float, *, norm: float = 1) -> dict[str, Tensor]:
    """Prune whole neurons (or filters) of `layer`: their rows and biases, and the columns of `next_layer` they feed.

    The fraction `amount` of the rows with the smallest `norm` is dropped. Where a convolution feeds a linear layer
    through a flattening, one filter feeds a block of columns.

    Raises:
        ValueError: a layer does not exist, `next_layer` does not take what `layer` gives, or it reads it in groups.
    """
    if isinstance(norm, bool) or not isinstance(norm, int | float) or not norm >= 0:
        raise ValueError(f"norm={norm!r}; allowed: a number of at least 0, or math.inf")
    model = plain(model)
    this, following = layer_of(model, "layer", layer), layer_of(model, "next_layer", next_layer)
    keep = keep_largest(this.weight.detach().flatten(1).norm(norm, dim=1), amount)
    columns = keep.repeat_interleave(columns_per_unit(this, following, layer, next_layer))
    shape = (1, -1) + (1,) * (following.weight.dim() - 2)
    masks = {
        f"{layer}.weight": keep.view(-1, *(1,) * (this.weight.dim() - 1)).expand_as(this.weight).clone(),
        f"{next_layer}.weight": columns.view(shape).expand_as(following.weight).clone(),
    }
    return masks if this.bias is None else masks | {f"{layer}.bias": keep}


def columns_per_unit(this: Any, following: Any, layer: str, next_layer: str) -> int:
    """Return how many inputs of `following` each unit of `this` feeds; ValueError if the two do not fit."""
    units, inputs = this.weight.shape[0], following.weight.shape[1]
    if this is following or getattr(following, "groups", 1) > 1:
        raise ValueError(f"next_layer={next_layer!r} is {layer!r} itself or reads in groups; allowed: another layer")
    if inputs % units or (not isinstance(following, nn.Linear) and inputs != units):
        raise ValueError(
            f"next_layer={next_layer!r} takes {inputs} inputs, but layer={layer!r} gives {units}; "
            "allowed: the layer that reads its output"
        )
    return inputs // units


def mask(model: nn.Module, masks: Masks) -> nn.Module:
    """Return a copy of `model` whose named parameters are masked; a mask that is there already stays in force.

    Where layers share a tensor, each of its names masks it for all of them.

    Raises:
        ValueError: a name is no parameter of the model, or one of torch's own recurrent layers, or a mask has another
            shape or is not boolean.
    """
    model = materialized(model)
    old, new, quantized = masks_of(model), bake(model), _otherwise_parametrized(model)
    first, parameters = first_names(new), dict(new.named_parameters(remove_duplicate=False))
    together: dict[str, Tensor] = {}
    for name, kept in [*old.items(), *masks.items()]:
        if first[checks.choice("name in masks", name, first)] in quantized:
            raise ValueError(f"{name!r} is quantized; allowed: masks first, then quantization")
        kept = _checked_mask(name, kept, parameters[name])
        together[first[name]] = together.get(first[name], kept) & kept
    for name, kept in together.items():
        part = Mask(kept)
        for layer, attribute in owners_of(new, name):
            refuse_flat_weights(name, layer)
            parametrize.register_parametrization(layer, attribute, part)
    return new


def _checked_mask(name: str, kept: Tensor, parameter: Tensor) -> Bool[Tensor, "..."]:
    if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.shape != parameter.shape:
        found = f"{kept.dtype} {tuple(kept.shape)}" if isinstance(kept, Tensor) else f"a {type(kept).__name__}"
        raise ValueError(f"masks[{name!r}] is {found}; allowed: torch.bool {tuple(parameter.shape)}")
    return kept.to(parameter.device)


def _otherwise_parametrized(model: nn.Module) -> set[str]:
    """Return the first names of tensors with other parametrizations than masks, which `bake` would fold in or miss."""
    first = first_names(model)
    chains = parametrizations_of(model).items()
    return {first.get(name, name) for name, chain in chains if not all(isinstance(part, Mask) for part in chain)}


def mask_modules(model: nn.Module) -> dict[str, Mask]:
    """Return each mask once, by the first name of what it masks."""
    names: dict[Mask, str] = {}
    for name, chain in parametrizations_of(model).items():
        for part in chain:
            if isinstance(part, Mask):
                names.setdefault(part, name)
    return {name: part for part, name in names.items()}


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the masks that are on the model."""
    return {name: part.mask.clone() for name, part in mask_modules(model).items()}


def bake(model: nn.Module) -> nn.Module:
    """Return a copy of `model` without masks, whose pruned weights are ordinary zeros: for files and runtimes.

    What `torch.nn.utils` computes weights with (its pruning, `weight_norm`) is gone as well; see
    `modules.materialized`. Layers that share a tensor go on sharing it.
    """
    new = materialized(model)
    _untie_what_differs(new)
    for name, chain in parametrizations_of(new).items():
        if any(isinstance(part, Mask) for part in chain):
            layer, attribute = owner_of(new, name)
            parametrize.remove_parametrizations(layer, attribute, leave_parametrized=True)
    return new


def _untie_what_differs(model: nn.Module) -> None:
    """Give layers that share a tensor, but not its mask, a tensor each: the zeros of one are not those of the other."""
    for name in {first for other, first in first_names(model).items() if other != first}:
        owners = owners_of(model, name)
        chains = [
            layer.parametrizations[key] if parametrize.is_parametrized(layer, key) else () for layer, key in owners
        ]
        if len({tuple(part for part in chain if isinstance(part, Mask)) for chain in chains}) > 1:
            for (layer, key), chain in zip(owners, chains, strict=True):
                holder, attribute = (chain, "original") if chain else (layer, key)
                shared = getattr(holder, attribute)
                setattr(holder, attribute, nn.Parameter(shared.detach().clone(), shared.requires_grad))
