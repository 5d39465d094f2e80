"""How many parameters and weights a network has."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from helpers.core import modules


def count_parameters(model: nn.Module) -> int:
    """Return the number of trained values, frozen ones included; a tensor used twice counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_weights(model: nn.Module) -> int:
    """Return the number of weights: no biases, no normalization (only tensors of two and more dimensions)."""
    return sum(weight.numel() for weight in _weights(model))


def count_nonzero(model: nn.Module) -> int:
    """Return the number of weights (see `count_weights`) that are not zero in the forward pass."""
    return sum(int(torch.count_nonzero(weight)) for weight in _weights(model))


def _weights(model: nn.Module) -> list[Tensor]:
    seen: set[int] = set()
    layers = layers_of(modules.materialized(model))
    return [tensor for _, module in layers for tensor in unseen(effective(module), seen) if tensor.dim() > 1]


def layers_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield all modules with their names; a masked layer is one module, not two."""
    for name, module in model.named_modules():
        if "parametrizations" not in name.split("."):
            yield name, module


def effective(module: nn.Module) -> dict[int, Tensor]:
    """Return the module's own parameters as its forward pass sees them, by the identity of what is trained."""
    own = {id(parameter): parameter for parameter in module.parameters(recurse=False)}
    return own | {id(next(chain.parameters(), chain)): getattr(module, name) for name, chain in _chains(module)}


def trained_elements(module: nn.Module) -> dict[int, Tensor]:
    """Return the module's own parameters as an optimizer sees them, by identity."""
    inner = [parameter for _, chain in _chains(module) for parameter in chain.parameters()]
    return {id(parameter): parameter for parameter in (*module.parameters(recurse=False), *inner)}


def _chains(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(module.parametrizations.items()) if parametrize.is_parametrized(module) else []  # type: ignore[operator, union-attr]


def unseen(tensors: Mapping[int, Tensor], seen: set[int]) -> list[Tensor]:
    """Return the tensors that are not in `seen`, and put them there: a tied one counts where it comes first."""
    new = tensors.keys() - seen
    seen |= new
    return [tensor for key, tensor in tensors.items() if key in new]
