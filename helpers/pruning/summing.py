"""Losses of single examples, summed, as every score of data needs them."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from helpers.core import checks, modules
from helpers.core.modules import asked, channels_last
from helpers.data import Split
from helpers.pruning.masks import bake
from helpers.training import IGNORED, check_labels, logits_of

LAYERS = (nn.Linear, _ConvNd)  # transposed convolutions too
Sites = Mapping[str, tuple[nn.Module, int]]  # where a layer's filters are removed, and which dimension counts them


class Way(NamedTuple):
    """How a model takes examples: how they are laid out, and at most how many at once."""

    layout: Callable[[Tensor], Tensor]
    size: int


def wide(values: Tensor) -> Tensor:
    """Return half-precision numbers as float32: sums and squares of them would vanish or overflow."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def laid_out(model: nn.Module, split: Split, batch_size: int) -> tuple[nn.Module, Way]:
    """Return a copy of the model, its weights channels last where that works (1.6 times as fast), and how to ask it."""
    fast, plain = modules.to_channels_last(copy(model)), copy(model)
    try:
        return fast, way_of(lambda x, y: sum_over_labels(fast(x), y), split, batch_size)
    except ValueError:
        return plain, way_of(lambda x, y: sum_over_labels(plain(x), y), split, batch_size)


def copy(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, masks baked, with all gradients on and dense; ValueError if lazy."""
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError("model has lazy layers that have no size yet; allowed: a model that has been called once")
    new = bake(model).eval()
    for parameter in new.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    for module in new.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False  # a sparse gradient can neither be added up nor differentiated
    return new


def layers_of(model: nn.Module, names: Sequence[str] | None, *, every_name: bool = False) -> dict[str, nn.Module]:
    """Return the convolutions and linear layers, or those in `names`, where second names are allowed."""
    every: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, LAYERS)
    }
    checks.not_empty("convolutions and linear layers of model", every)
    if names is not None:
        if isinstance(names, str):
            raise ValueError(f"names={names!r}; allowed: several names, as in names=[{names!r}]")
        return {checks.choice("name in names", name, every): every[name] for name in checks.not_empty("names", names)}
    return every if every_name else {n: m for n, m in model.named_modules() if n in every}


def parameters_of(model: nn.Module, names: Sequence[str] | None) -> dict[str, Tensor]:
    """Return the parameters, or those of the layers in `names`, each tensor once, under its first name there."""
    chosen = None if names is None else layers_of(model, names)
    found: dict[int, tuple[str, Tensor]] = {}
    everywhere = zip(modules.first_names(model), model.named_parameters(remove_duplicate=False), strict=True)
    for name, (_, parameter) in everywhere:
        if parameter.requires_grad and (chosen is None or name.rpartition(".")[0] in chosen):
            found.setdefault(id(parameter), (name, parameter))
    return checks.not_empty("parameters of model", dict(found.values()))


def that_count(model: nn.Module, split: Split) -> Split:
    """Return the examples of which a label counts, on the model's device; ValueError if there is none."""
    if not isinstance(split, Split) or not isinstance(split.inputs, Tensor) or not isinstance(split.labels, Tensor):
        raise ValueError(f"split is a {type(split).__name__}; allowed: a Split of two tensors")
    checks.not_empty("split", split)
    where = next((parameter.device for parameter in model.parameters()), split.inputs.device)
    split = replace(split, inputs=split.inputs.to(where), labels=split.labels.to(where))
    if split.labels.is_floating_point():
        return split
    counts = (split.labels != IGNORED).reshape(len(split), -1).any(1)
    if counts.all():
        return split
    if not counts.any():
        raise ValueError(f"split has no label but {IGNORED}, which does not count; allowed: at least one that counts")
    return replace(split, inputs=split.inputs[counts], labels=split.labels[counts])


def count_of(labels: Tensor) -> int:
    """Return how many labels count: all but `IGNORED`, or of floating point labels one for each example."""
    return len(labels) if labels.is_floating_point() else int((labels != IGNORED).sum())


def sum_over_labels(output: Any, labels: Tensor) -> Tensor:
    """Return the sum of the cross-entropies at all labels that count."""
    return _cross_entropy(output, labels, "sum")


def sum_over_examples(output: Any, labels: Tensor) -> Tensor:
    """Return the sum over the examples of each one's mean cross-entropy."""
    if labels.dim() == 1 or labels.is_floating_point():
        return sum_over_labels(output, labels)
    each = _cross_entropy(output, labels, "none").flatten(1).sum(1)
    return (each / (labels != IGNORED).flatten(1).sum(1)).sum()


def _cross_entropy(output: Any, labels: Tensor, reduction: str) -> Tensor:
    logits = wide(logits_of(output))
    if labels.is_floating_point() and labels.shape == logits.shape:  # probabilities of the classes
        return F.cross_entropy(logits, labels.to(logits.dtype), reduction=reduction)
    check_labels(logits, labels)
    return F.cross_entropy(logits, labels.long(), reduction=reduction)


def way_of(loss: Callable[[Tensor, Tensor], Tensor], split: Split, batch_size: int) -> Way:
    """Return the first way that works to compute the loss of examples; ValueError if none does."""
    errors = []
    for size in dict.fromkeys(min(n, len(split)) for n in (2, batch_size, 1)):
        for layout in (channels_last, Tensor.contiguous):
            way = Way(layout, batch_size if size > 1 else 1)
            try:
                loss(*next(batches(split, way._replace(size=size))))
            except Exception as error:  # of any class: it is the model's own code
                errors.append(error)
            else:
                return way
    with asked("split", split.inputs):
        raise errors[0]


def batches(split: Split, way: Way) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs, laid out as `way` says, and labels of at most `way.size` examples at a time, in order."""
    for start in range(0, len(split), way.size):
        part = slice(start, start + way.size)
        yield way.layout(split.inputs[part]), split.labels[part]


def sites_of(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor) -> Sites:
    """Return where each called layer's filters are removed, and which dimension of that output counts them.

    That is the batch normalization that reads the layer's output, if there is one, else the layer itself.
    """
    made: list[tuple[str, Tensor, int]] = []
    readers: dict[int, set[nn.Module]] = {}
    calls: Counter[nn.Module] = Counter()

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[module] += 1
        for index, (name, tensor, version) in enumerate(made):
            read = any(given is tensor for given in (*args, *kwargs.values())) and tensor._version == version
            if read and isinstance(module, _BatchNorm) and _dimension(layers[name]) % tensor.dim() == 1:
                readers.setdefault(index, set()).add(module)
        made.extend((name, output, output._version) for name, layer in layers.items() if layer is module)

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in model.modules()]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    sites = {}
    for name in dict.fromkeys(name for name, _, _ in made):
        outputs = [index for index, entry in enumerate(made) if entry[0] == name]
        site, *others = {module for index in outputs for module in readers.get(index, {layers[name]})}
        if others or calls[site] != len(outputs):
            raise ValueError(
                f"layer {name!r} shares a batch normalization with others, or is read by several; "
                "allowed: one of its own"
            )
        sites[name] = (site, 1 if isinstance(site, _BatchNorm) else _dimension(site))
    return sites


def _dimension(layer: Any) -> int:
    """Return which dimension of the layer's output counts its filters."""
    return -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)
