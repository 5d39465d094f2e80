"""First-order scores: what the loss would lose, by its gradient."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from helpers.core import checks, modules
from helpers.core.modules import plain_attention
from helpers.data import Split
from helpers.pruning.filters import by_filter
from helpers.pruning.summing import (
    Sites,
    batches,
    copy,
    count_of,
    layers_of,
    parameters_of,
    sites_of,
    sum_over_examples,
    that_count,
    way_of,
    wide,
)
from helpers.training import cross_entropy
from helpers.training.loop import check_functions
from helpers.training.losses import Loss


@plain_attention()
def taylor_scores(
    model: nn.Module, split: Split, *, names: Sequence[str] | None = None, batch_size: int = 250
) -> dict[str, Tensor]:
    """Score each filter by its squared first-order effect on the loss, averaged over the examples of `split`.

    A gate of 1 is multiplied to the filter's output after batch normalization. The derivative of one example's loss
    with respect to the gate is what closing it would save, to first order; it is squared, and averaged over the
    examples (Molchanov et al. 2019, "Importance estimation for neural network pruning", section 3: the form with gates,
    here for single examples, not for batches). Half of it is the second-order damage with the Fisher information for
    the Hessian (Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", section 2).

    Where an example has several labels, its loss is the mean over them. A layer that is not used scores 0.

    Returns layer name → (filters,), for all convolutions and linear layers, or for those in `names`.

    Raises:
        ValueError: `split` is empty, a name is no such layer, or a layer is used without being called (but for
            `nn.MultiheadAttention`, whose projection has its gates at the weights).
    """
    checks.positive("batch_size", batch_size)
    split = that_count(model, split)
    new = copy(model)
    layers = layers_of(new, names)

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        return sum_over_examples(new(inputs), labels)

    way = way_of(loss, split, batch_size)
    one, two = (way.layout(split.inputs[:count]) for count in (1, 2))
    sites = sites_of(new, layers, one)
    uncalled = {name: layer for name, layer in layers.items() if name not in sites}
    _refuse_other_uses(new, uncalled, lambda: loss(*next(batches(split, way._replace(size=1)))))
    if uncalled or way.size > 1 and not (_separate(new, sites, one) and _separate(new, sites, two)):
        way = way._replace(size=1)
    totals: dict[str, Tensor] = {}
    for inputs, labels in batches(split, way):
        for name, slopes in _slopes(partial(loss, inputs, labels), sites, uncalled, len(inputs)).items():
            totals[name] = totals.get(name, 0) + (wide(slopes) ** 2).sum(0)
    return {name: checks.finite(f"split: the slopes at {name!r}", totals[name] / len(split)) for name in layers}


def _slopes(
    loss: Callable[[], Tensor], sites: Sites, uncalled: Mapping[str, Any], batch: int
) -> dict[str, Float[Tensor, "batch filters"]]:
    """Return the derivative of each example's loss with respect to each filter's gate.

    That of an uncalled layer (batch = 1) follows from those of its weights: its gate multiplies them.
    """
    with _gated(sites, batch) as gates:
        total = loss()
        weights = [p for layer in uncalled.values() for p in layer.parameters(recurse=False)]
        found = iter(torch.autograd.grad(total, [*gates.values(), *weights], materialize_grads=True))
    slopes = {name: next(found).reshape(batch, -1) for name in gates}
    for name, layer in uncalled.items():
        slope = by_filter(layer, layer.weight * next(found)).sum(1)
        slopes[name] = (slope if layer.bias is None else slope + layer.bias * next(found)).detach()[None]
    return slopes


@contextmanager
def _gated(sites: Sites, batch: int) -> Iterator[dict[str, Tensor]]:
    """Multiply each site's output by gates of 1, one for each example and channel; yield the gates."""
    gates: dict[str, Tensor] = {}

    def gate(name: str, dim: int) -> Callable[..., Tensor]:
        def multiply(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if name not in gates:
                shape = [batch] + [1] * (output.dim() - 1)
                shape[dim] = output.shape[dim]
                gates[name] = torch.ones(shape, dtype=output.dtype, device=output.device, requires_grad=True)
            return output * gates[name]

        return multiply

    with modules.hooked((site, gate(name, dim)) for name, (site, dim) in sites.items()):
        yield gates


def _refuse_other_uses(model: nn.Module, uncalled: Mapping[str, Any], loss: Callable[[], Tensor]) -> None:
    """Raise ValueError for a layer whose weight is used by other means than calling it."""
    for name, layer in uncalled.items():
        tied = modules.same_tensor(model, f"{name}.weight")
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.MultiheadAttention) and len(tied) == 1:
            continue
        (slope,) = torch.autograd.grad(loss(), [layer.weight], allow_unused=True)
        if slope is not None:
            raise ValueError(
                f"names: layer {name!r} is never called, its weight is used by {type(owner).__name__!r} instead, which "
                "has no place for gates; allowed: names=[…] without it"
            )


@plain_attention()
def gradients(
    model: nn.Module,
    split: Split,
    *,
    loss: Loss = cross_entropy,
    names: Sequence[str] | None = None,
    batch_size: int = 500,
) -> dict[str, Tensor]:
    """Return the gradient of the mean loss over `split`: parameter name → tensor of its shape.

    `loss` is a mean over the labels that count. All parameters, or those of the layers in `names`. ValueError if
    `split` is empty or a name is no such layer.
    """
    checks.positive("batch_size", batch_size)
    check_functions(loss=loss)
    split = that_count(model, split)
    new = copy(model)
    parameters = parameters_of(new, names)
    way = way_of(partial(loss, new), split, batch_size)
    totals = [torch.zeros_like(wide(parameter)) for parameter in parameters.values()]
    for inputs, labels in batches(split, way):
        value = checks.finite("split: the loss", loss(new, inputs, labels))
        found = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)
        for total, gradient in zip(totals, found, strict=True):
            total += wide(gradient) * (count_of(labels) / count_of(split.labels))
    return dict(zip(parameters, totals, strict=True))


def _separate(model: nn.Module, sites: Sites, inputs: Tensor) -> bool:
    """Return whether the first dimension of each site's output counts the examples."""
    found: list[bool] = []

    def note(dim: int, module: nn.Module, given: Any, output: Tensor) -> None:
        found.append(len(output) == len(inputs) and dim % output.dim() > 0)

    with modules.hooked((site, partial(note, dim)) for site, dim in sites.values()), torch.no_grad():
        model(inputs)
    return all(found)
