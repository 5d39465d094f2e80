"""Heads of attention: what each is worth, and their removal."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from helpers.core import checks
from helpers.core.modules import asked
from helpers.data import Split
from helpers.nets.transformer import Attention
from helpers.pruning.masks import bake
from helpers.pruning.neurons import shrink
from helpers.pruning.summing import that_count, wide
from helpers.pruning.weights import layer_of, refuse_tied
from helpers.training import cross_entropy
from helpers.training.loop import check_functions
from helpers.training.losses import Loss


def head_scores(
    model: nn.Module, split: Split, *, loss: Loss = cross_entropy, batch_size: int = 32
) -> dict[str, Tensor]:
    """Score each head by how steeply the loss depends on it, averaged over the examples of `split`.

    A gate of 1 is multiplied to what the head found. The score is the mean magnitude of the derivative of one example's
    loss with respect to the gate: what closing it would change, to first order (Michel et al. 2019, "Are sixteen heads
    really better than one?", section 4.1). The paper then divides each layer's scores by their norm.

    `loss` is a mean over the examples of a batch. Returns name of the `nets.Attention` → (heads,).

    Raises ValueError if `split` is empty or the model does not take it, and for a model without such attention.
    """
    checks.positive("batch_size", batch_size)
    check_functions(loss=loss)
    split = that_count(model, split)
    new = bake(model).eval().requires_grad_(False)
    attentions = {name: module for name, module in new.named_modules() if isinstance(module, Attention)}
    checks.not_empty("nets.Attention in model", attentions)
    totals: dict[str, Tensor] = {}
    for inputs, labels in zip(split.inputs.split(batch_size), split.labels.split(batch_size), strict=True):
        with _gated(attentions, len(inputs)) as gates:
            with asked("split", inputs):
                value = len(inputs) * loss(new, inputs, labels)
            slopes = torch.autograd.grad(value, list(gates.values()), materialize_grads=True)
        for name, slope in zip(gates, slopes, strict=True):
            totals[name] = totals.get(name, 0) + wide(slope).abs().sum(0)
    return {name: checks.finite(f"split: the slopes at {name!r}", total / len(split)) for name, total in totals.items()}


@contextmanager
def _gated(attentions: Mapping[str, Attention], batch: int) -> Iterator[dict[str, Float[Tensor, "batch heads"]]]:
    """Multiply what each head found by gates of 1, one for each example; yield the gates."""
    gates = {
        name: module.output.weight.new_ones(batch, module.heads).requires_grad_() for name, module in attentions.items()
    }

    def gate(name: str) -> Callable[..., Tensor]:
        def multiply(layer: nn.Module, inputs: Any) -> Tensor:
            by_unit = gates[name].repeat_interleave(attentions[name].width, dim=1)
            return inputs[0] * by_unit[:, None, :]

        return multiply

    handles = [module.output.register_forward_pre_hook(gate(name)) for name, module in attentions.items()]
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


def remove_heads(model: nn.Module, heads: Mapping[str, Collection[int]]) -> nn.Module:
    """Return a smaller copy without these heads of attention: {"layers.0.attention": [1, 5]}.

    Their rows of `query`, `key` and `value` leave, and their columns of `output`; those that stay are numbered anew.
    Masks are baked. The answers are those of the model whose `output` has zeros there. Neurons between two linear
    layers of an encoder are removed by `remove_filters`.

    Raises ValueError for a name that is no `nets.Attention`, a number that is no head, all heads of one, and layers
    that are quantized or share a tensor.
    """
    new = bake(model)
    for name, numbers in heads.items():
        attention = layer_of(new, "attention in heads", name, (Attention,))
        every = range(attention.heads)
        leaving = {checks.choice(f"head in heads[{name!r}]", number, every) for number in numbers}
        keep = torch.tensor([number not in leaving for number in every])
        if not keep.any():
            raise ValueError(f"heads[{name!r}] are all {attention.heads} heads; allowed: a part of them")
        units = keep.repeat_interleave(attention.width)
        for part, layer in attention.named_children():
            if parametrize.is_parametrized(layer):
                raise ValueError(f"layer '{name}.{part}' is quantized; allowed: an ordinary one")
            refuse_tied(new, f"{name}.{part}", layer)
            if part == "output":
                shrink(layer, slice(None), units)
            else:
                shrink(layer, units, slice(None))
    return new
