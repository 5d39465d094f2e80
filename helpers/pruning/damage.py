"""What removing one filter really costs: the truth that scores are compared with."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from helpers.core import checks, modules
from helpers.core.modules import plain_attention
from helpers.data import Split
from helpers.pruning.summing import batches, count_of, laid_out, layers_of, sites_of, sum_over_labels, that_count
from helpers.training import logits_of


@torch.no_grad()
@plain_attention()
def removal_damage(model: nn.Module, split: Split, layer: str, *, batch_size: int = 250) -> Float[Tensor, " filters"]:
    """Measure by how much the mean cross-entropy over `split` rises (nats) when each filter of `layer` is removed.

    One filter at a time, all others in place: negative where the network is better off without it. What comes before
    the layer is computed once for each batch, and only the rest of the network once for each filter.

    Raises:
        ValueError: `split` is empty, `layer` is no convolution or linear layer, or it is not called exactly once.
    """
    checks.positive("batch_size", batch_size)
    split = that_count(model, split)
    checks.choice("layer", layer, layers_of(model, None, every_name=True))
    new, way = laid_out(model, split, batch_size)
    found = sites_of(new, layers_of(new, [layer]), way.layout(split.inputs[:1]))
    if not found:
        raise ValueError(f"layer={layer!r} is called 0 times in a forward pass; allowed: a layer that is called once")
    site, dim = found[layer]
    total: Any = 0
    for inputs, labels in batches(split, way):
        with _restarting(new, site, inputs, layer) as (output, rest):
            intact = sum_over_labels(rest(output.clone()), labels)
            losses = []
            for channel in range(output.shape[dim]):
                without = output.clone()
                without.select(dim, channel).zero_()
                losses.append(sum_over_labels(rest(without), labels))
        total = total + torch.stack(losses) - intact
    return checks.finite("split: the damage", total / count_of(split.labels))


@contextmanager
def _restarting(
    model: nn.Module, site: nn.Module, inputs: Tensor, layer: str
) -> Iterator[tuple[Tensor, Callable[[Tensor], Any]]]:
    """Yield the output of `site`, and a function that takes such an output (and may write to it) and computes the rest.

    Modules that were done before `site` hand out what they computed for `inputs`. Left out are those called twice, and
    those whose output was written to in place afterwards: they compute again. All do if that changes the answer, as
    where a module leaves something behind for a later one.
    """
    before: list[tuple[nn.Module, Tensor, int]] = []
    outputs: list[Tensor] = []
    calls: dict[nn.Module, int] = {}

    def note(module: nn.Module, given: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if module is site:
            outputs.append(output.clone())
        elif isinstance(output, Tensor) and not outputs:
            before.append((module, output, output._version))

    with modules.hooked((module, note) for module in model.modules()):
        answer = logits_of(model(inputs))
    if len(outputs) != 1:
        raise ValueError(f"layer={layer!r} is called {len(outputs)} times in a forward pass; allowed: once")
    known = {module: output for module, output, v in before if calls[module] == 1 and output._version == v}
    current = outputs[0]

    def rest(output: Tensor) -> Any:
        nonlocal current
        current = output
        return model(inputs)

    done = {module: partial(_handed_out, output) for module, output in known.items()}
    with _computing({site: lambda *_, **__: current}):
        with _computing(done):
            reusable = _same_answer(rest, outputs[0], answer)
        with _computing(done if reusable else {}):
            yield outputs[0], rest


def _handed_out(output: Tensor, *_: Any, **__: Any) -> Tensor:
    return output


def _same_answer(rest: Callable[[Tensor], Any], output: Tensor, answer: Tensor) -> bool:
    try:
        return torch.equal(logits_of(rest(output.clone())), answer)
    except Exception:  # of any class: it is the model's own code
        return False


@contextmanager
def _computing(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Have modules compute something else meanwhile."""
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward
