"""Scores of whole filters, from their weights alone."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from helpers.core import checks
from helpers.pruning.summing import copy, layers_of, wide


def filter_norms(model: nn.Module, *, norm: float = 1, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Score each filter by the `norm` of its weights (Li et al. 2017, "Pruning filters for efficient convnets").

    Returns layer name → (filters,), for all convolutions and linear layers, or for those in `names`. `norm` is a number
    above 0, or infinity.
    """
    if norm != math.inf:
        checks.number("norm", norm, above=0)
    weights = {name: by_filter(layer) for name, layer in layers_of(copy(model), names).items()}
    return {
        name: checks.finite(f"model: the norms of {name!r}", wide(weight.detach()).norm(norm, dim=1))
        for name, weight in weights.items()
    }


def random_filter_scores(model: nn.Module, *, seed: int = 0, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Score each filter by a random number in [0, 1): the control. Returns layer name → (filters,)."""
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    layers = layers_of(copy(model), names)
    return {name: torch.rand(len(by_filter(layer)), generator=generator) for name, layer in layers.items()}


def by_filter(layer: Any, weight: Tensor | None = None) -> Float[Tensor, "filters weights"]:
    """Return the layer's weight (or what has its shape), one filter in a row."""
    weight = layer.weight if weight is None else weight
    if isinstance(layer, _ConvTransposeNd):  # (inputs, filters of a group, ...)
        weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)
