"""Pruning: scores, masks, schedules, and the removal of neurons.

A mask is a boolean tensor of its parameter's shape, True where the weight is kept; masks travel as a dictionary keyed
by parameter name (``{"fc1.weight": …}``). `mask` puts them on a copy of the model as parametrizations
(`torch.nn.utils.parametrize`): what the network computes with is ``original * mask``, so neither momentum nor weight
decay nor a copy nor a saved file can bring a pruned weight back. `bake` turns them into ordinary zeros.

A tensor that several layers share (a decoder that is tied to its embedding) counts once, under its first name. Each of
its names is accepted, and a mask on one is a mask on all: the layers stay tied.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from jaxtyping import Bool, Float, config
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from helpers import checks
from helpers.data import Split
from helpers.modules import copied, evaluating, first_names, materialized, same_tensor
from helpers.training import Fitted, OnStep, StepInfo, fit

__all__ = [
    "SCORES",
    "Mask",
    "Masks",
    "Scores",
    "bake",
    "factor_embedding",
    "fisher_scores",
    "geometric_amounts",
    "geometric_sparsity",
    "global_masks",
    "keep_largest",
    "l1_scores",
    "layer_masks",
    "mask",
    "masks_of",
    "neuron_masks",
    "own_copy",
    "parametrizations_of",
    "prune_gradually",
    "random_scores",
    "remove_neurons",
    "remove_words",
    "sparsity",
    "weights_of",
]

Masks = Mapping[str, Tensor]  # boolean; `mask` says so in a sentence where a type checker would in ten lines
Scores = Mapping[str, Float[Tensor, "..."]]

WITH_NEURONS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
PRUNABLE = (*WITH_NEURONS, *EMBEDDINGS)
WITH_WEIGHTS = (*PRUNABLE, _ConvTransposeNd, nn.RNNCellBase, nn.Bilinear)
WITHOUT_WEIGHTS = (nn.LayerNorm, nn.RMSNorm)  # a scale for each number, of as many dimensions as these have

TRIES = 20  # shapes, of which one at least should fit or fail otherwise
BATCH = 2  # examples in a batch that stands for any
SEVERAL = ("size", "chunk", "split", "tensor_split", "unbind")  # whose results are no batches

own_copy = copied  # its name before there was helpers.modules


class Mask(nn.Module):
    """Parametrization that multiplies a tensor by a fixed mask of its shape."""

    mask: Tensor

    def __init__(self, mask: Bool[Tensor, "..."]) -> None:
        super().__init__()
        self.register_buffer("mask", mask.clone())

    def forward(self, original: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the tensor that the layer computes with."""
        return original * self.mask


def _owner(model: nn.Module, name: str) -> tuple[Any, str]:
    """Return the layer and the attribute behind a parameter name such as "fc1.weight"."""
    layer, _, attribute = name.rpartition(".")
    return model.get_submodule(layer), attribute


def _owners(model: nn.Module, name: str) -> list[tuple[Any, str]]:
    """Return all layers, each once, that have the parameter that goes by `name`, and their attributes for it."""
    owners = [_owner(model, other) for other in same_tensor(model, name)]
    return list({(id(layer), attribute): (layer, attribute) for layer, attribute in owners}.values())


def _refuse_tied(model: nn.Module, name: str, layer: Any) -> None:
    """Raise ValueError if another layer has a parameter of this one: what is cut here would be missing there."""
    for attribute, _ in layer.named_parameters(recurse=False):
        names = same_tensor(model, f"{name}.{attribute}".lstrip("."))
        if len(_owners(model, names[0])) > 1:
            raise ValueError(f"{' and '.join(map(repr, names))} are one tensor; allowed: a layer that shares nothing")


def _layer(model: nn.Module, argument: str, name: str, kinds: tuple[type, ...] = WITH_NEURONS) -> Any:
    layers = {name: layer for name, layer in model.named_modules(remove_duplicate=False) if isinstance(layer, kinds)}
    return layers[checks.choice(argument, name, layers)]


def _refuse_flat_weights(name: str, layer: nn.Module) -> None:
    """Raise ValueError for nn.RNN, nn.LSTM or nn.GRU.

    They keep what they compute with in a list of their own. A mask gets there, and makes the layer impossible to copy
    once it has been used: deepcopy refuses tensors that were computed. `fit` and `bake` need copies.
    """
    if isinstance(layer, nn.RNNBase):
        raise ValueError(
            f"layer {name!r} is torch's {type(layer).__name__}, which cannot be copied once it was used with a mask; "
            "allowed: helpers.models.RNN and LSTM, which compute the same"
        )


def _originals(layer: nn.Module) -> dict[str, Any]:
    """Return the parameters that a layer has itself, by attribute: of a masked one the tensor under the mask."""
    own = {name: parameter for name, parameter in layer._parameters.items() if parameter is not None}
    if not parametrize.is_parametrized(layer):
        return own
    chains: Any = layer.parametrizations
    return own | {name: chain.original if chain.is_tensor else getattr(layer, name) for name, chain in chains.items()}


def _is_weight(layer: nn.Module, attribute: str, tensor: Any) -> bool:
    if isinstance(layer, WITHOUT_WEIGHTS) or not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    named_so = isinstance(layer, WITH_WEIGHTS) and attribute.startswith("weight")
    return named_so or sum(size > 1 for size in tensor.shape) > 1


def _places(model: nn.Module) -> dict[str, tuple[Any, str]]:
    """Return layer and attribute of each weight, by its first name; see `weights_of`."""
    places: dict[str, tuple[Any, str]] = {}
    seen: dict[int, Any] = {}
    for name, layer in model.named_modules():
        if "parametrizations" in name.split("."):
            continue
        _refuse_flat_weights(name, layer)
        for attribute, tensor in sorted(_originals(layer).items()):
            if is_lazy(tensor):
                raise ValueError(f"layer {name!r} has no weights yet; allowed: a model that was called once")
            if _is_weight(layer, attribute, tensor) and id(tensor) not in seen:
                seen[id(tensor)] = tensor
                places[f"{name}.{attribute}".lstrip(".")] = layer, attribute
    return places


def _plain(model: nn.Module) -> nn.Module:
    """Return `model`, or a copy without what `torch.nn.utils` has put on it: what that computes may be out of date."""
    parts = [part for chain in parametrizations_of(model).values() for part in chain]
    strange = any(module._forward_pre_hooks for module in model.modules()) or not all(
        type(part).__module__.startswith("helpers.") for part in parts
    )
    return materialized(model) if strange else model


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that the layers compute with, masked if they are masked, each tensor under its first name.

    Those of linear, convolutional (also transposed) and embedding layers, of recurrent cells, of attention and of
    `nn.Bilinear`, and every other parameter with at least two dimensions larger than 1. A scale for each channel, a
    class token and the like are vectors, and no more weights than a bias. Frozen layers are included: `requires_grad`
    says what is trained, not what is stored.

    Raises:
        ValueError: the model has one of torch's own recurrent layers: left out, most of it would go unnoticed. Or it
            has a lazy layer without weights.
    """
    return {name: getattr(layer, attribute).detach() for name, (layer, attribute) in _places(_plain(model)).items()}


def sparsity(model: nn.Module) -> float:
    """Return the fraction of the weights (biases not counted) that are exactly zero."""
    weights = checks.not_empty("weights of model", weights_of(model))
    return sum(int((w == 0).sum()) for w in weights.values()) / sum(w.numel() for w in weights.values())


def l1_scores(model: nn.Module, *, seed: int = 0) -> dict[str, Tensor]:
    """Score each weight by its magnitude (Han et al. 2015, "Learning both weights and connections", section 3)."""
    return {name: weight.abs() for name, weight in weights_of(model).items()}


def random_scores(model: nn.Module, *, seed: int = 0) -> dict[str, Tensor]:
    """Score each weight by a random number in [0, 1): the control that every other score must beat."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(weight.shape, generator=generator) for name, weight in weights_of(model).items()}


SCORES: dict[str, Callable[..., dict[str, Tensor]]] = {"l1": l1_scores, "random": random_scores}


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
    model = _plain(model)
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
    names = {first.get(name): name for name in _places(model)}
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


def neuron_masks(model: nn.Module, layer: str, next_layer: str, amount: float, *, norm: float = 1) -> dict[str, Tensor]:
    """Prune whole neurons (or filters) of `layer`: their rows and biases, and the columns of `next_layer` they feed.

    The fraction `amount` of the rows with the smallest `norm` is dropped. Where a convolution feeds a linear layer
    through a flattening, one filter feeds a block of columns.

    Raises:
        ValueError: a layer does not exist, `next_layer` does not take what `layer` gives, or it reads it in groups.
    """
    if isinstance(norm, bool) or not isinstance(norm, int | float) or not norm >= 0:
        raise ValueError(f"norm={norm!r}; allowed: a number of at least 0, or math.inf")
    model = _plain(model)
    this, following = _layer(model, "layer", layer), _layer(model, "next_layer", next_layer)
    keep = keep_largest(this.weight.detach().flatten(1).norm(norm, dim=1), amount)
    columns = keep.repeat_interleave(_columns_per_unit(this, following, layer, next_layer))
    shape = (1, -1) + (1,) * (following.weight.dim() - 2)
    masks = {
        f"{layer}.weight": keep.view(-1, *(1,) * (this.weight.dim() - 1)).expand_as(this.weight).clone(),
        f"{next_layer}.weight": columns.view(shape).expand_as(following.weight).clone(),
    }
    return masks if this.bias is None else masks | {f"{layer}.bias": keep}


def _columns_per_unit(this: Any, following: Any, layer: str, next_layer: str) -> int:
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
        for layer, attribute in _owners(new, name):
            _refuse_flat_weights(name, layer)
            parametrize.register_parametrization(layer, attribute, part)
    return new


def _checked_mask(name: str, kept: Tensor, parameter: Tensor) -> Bool[Tensor, "..."]:
    if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.shape != parameter.shape:
        found = f"{kept.dtype} {tuple(kept.shape)}" if isinstance(kept, Tensor) else f"a {type(kept).__name__}"
        raise ValueError(f"masks[{name!r}] is {found}; allowed: torch.bool {tuple(parameter.shape)}")
    return kept.to(parameter.device)


def parametrizations_of(model: nn.Module) -> dict[str, Any]:
    """Return the chain of modules through which each parametrized tensor goes, by its name ("fc1.weight")."""
    layers = ((name, layer) for name, layer in model.named_modules() if parametrize.is_parametrized(layer))
    return {
        f"{name}.{key}".lstrip("."): chain for name, layer in layers for key, chain in layer.parametrizations.items()
    }


def _otherwise_parametrized(model: nn.Module) -> set[str]:
    """Return the first names of tensors with other parametrizations than masks, which `bake` would fold in or miss."""
    first = first_names(model)
    chains = parametrizations_of(model).items()
    return {first.get(name, name) for name, chain in chains if not all(isinstance(part, Mask) for part in chain)}


def _mask_modules(model: nn.Module) -> dict[str, Mask]:
    """Return each mask once, by the first name of what it masks."""
    names: dict[Mask, str] = {}
    for name, chain in parametrizations_of(model).items():
        for part in chain:
            if isinstance(part, Mask):
                names.setdefault(part, name)
    return {name: part for part, name in names.items()}


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the masks that are on the model."""
    return {name: part.mask.clone() for name, part in _mask_modules(model).items()}


def bake(model: nn.Module) -> nn.Module:
    """Return a copy of `model` without masks, whose pruned weights are ordinary zeros: for files and runtimes.

    What `torch.nn.utils` computes weights with (its pruning, `weight_norm`) is gone as well; see
    `modules.materialized`. Layers that share a tensor go on sharing it.
    """
    new = materialized(model)
    _untie_what_differs(new)
    for name, chain in parametrizations_of(new).items():
        if any(isinstance(part, Mask) for part in chain):
            layer, attribute = _owner(new, name)
            parametrize.remove_parametrizations(layer, attribute, leave_parametrized=True)
    return new


def _untie_what_differs(model: nn.Module) -> None:
    """Give layers that share a tensor, but not its mask, a tensor each: the zeros of one are not those of the other."""
    for name in {first for other, first in first_names(model).items() if other != first}:
        owners = _owners(model, name)
        chains = [
            layer.parametrizations[key] if parametrize.is_parametrized(layer, key) else () for layer, key in owners
        ]
        if len({tuple(part for part in chain if isinstance(part, Mask)) for chain in chains}) > 1:
            for (layer, key), chain in zip(owners, chains, strict=True):
                holder, attribute = (chain, "original") if chain else (layer, key)
                shared = getattr(holder, attribute)
                setattr(holder, attribute, nn.Parameter(shared.detach().clone(), shared.requires_grad))


def remove_neurons(model: nn.Module, layer: str, next_layer: str) -> nn.Module:
    """Return a smaller copy without the neurons of `layer` that contribute nothing to `next_layer`.

    A neuron contributes nothing if its bias and all weights that it reads with are zero (and the activation between
    the layers maps 0 to 0, as ReLU does), or if all weights that read from it are zero. Masked counts as zero.

    Before anything is cut, the way from the one layer to the other is traced (`torch.fx`), and what `next_layer` makes
    of random numbers on it is compared in float64 with and without those neurons.

    Raises:
        ValueError: a layer does not exist, shares a tensor, is grouped or quantized; `next_layer` does not take what
            `layer` gives, or something else reads it too; what lies between works on whole or mixed channels; the
            model cannot be traced; or no neuron would be left. `removal.remove_filters`, which takes an example of the
            inputs, can do most of that.
    """
    new = bake(model)
    this, following = _layer(new, "layer", layer), _layer(new, "next_layer", next_layer)
    per_unit = _columns_per_unit(this, following, layer, next_layer)
    for name, each in ((layer, this), (next_layer, following)):
        if parametrize.is_parametrized(each) or getattr(each, "groups", 1) > 1:
            raise ValueError(f"layer {name!r} is grouped or quantized; allowed: an ordinary one")
        _refuse_tied(new, name, each)
    reads = (this.weight != 0).flatten(1).any(1)
    if this.bias is not None:
        reads |= this.bias != 0
    is_read = (following.weight != 0).transpose(0, 1).reshape(len(reads), -1).any(1)
    keep = reads & is_read
    if not keep.any():
        raise ValueError(f"layer={layer!r} would lose all of its {len(keep)} neurons; allowed: a part of them")
    if keep.all():
        return new
    smaller = copied(following)
    _shrink(smaller, slice(None), keep.repeat_interleave(per_unit))
    if reason := _way_breaks(new, this, following, smaller, reads, keep):
        raise ValueError(
            f"neurons of layer={layer!r} cannot be removed before next_layer={next_layer!r}: {reason}; allowed: layers "
            "between which each channel goes its own way. helpers.removal.remove_filters can do more"
        )
    _shrink(this, keep, slice(None))
    _shrink(following, slice(None), keep.repeat_interleave(per_unit))
    return new


def _shrink(layer: Any, rows: Any, columns: Any) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[rows][:, columns].clone(), layer.weight.requires_grad)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[rows].clone(), layer.bias.requires_grad)
    outputs, inputs = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = outputs, inputs
    else:
        layer.out_channels, layer.in_channels = outputs, inputs


@torch.no_grad()
def _way_breaks(model: nn.Module, this: Any, following: Any, smaller: Any, reads: Tensor, keep: Tensor) -> str:
    """Return why `smaller` after the kept neurons of `this` is not `following` after all of them, or "" if it is."""
    try:
        way = _Way(model, this, following)
    except Exception as error:  # of any class: a model's own code meets placeholders in place of numbers
        return _first_line(error)
    following, smaller = copied(following).double(), copied(smaller).double()
    units = -1 if isinstance(this, nn.Linear) else 1
    reasons: list[str] = []
    for shape in _shapes(this):
        if len(reasons) >= TRIES and len(set(reasons)) == 1:  # it is not the shape
            break
        given = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(keep.device)
        given = given.index_fill(units, (~reads).nonzero().flatten(), 0)
        kept = given.index_select(units, keep.nonzero().flatten())
        try:
            expected = following(way(given))
        except Exception as error:  # of any class: this shape does not fit, and often only this one
            reasons.append(_first_line(error))
            continue
        return _difference(smaller, way, kept, expected)
    return reasons[-1]


def _difference(layer: nn.Module, way: Callable[[Tensor], Any], given: Tensor, expected: Tensor) -> str:
    try:
        found = layer(way(given))
    except Exception as error:  # of any class: something between counts the channels
        return _first_line(error)
    if found.shape != expected.shape:
        return f"without them the answer has the shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    difference = float((found - expected).abs().max())
    return (
        "" if difference <= 1e-9 * float(expected.abs().max()) else f"without them answers differ by {difference:.2g}"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _shapes(layer: Any) -> Iterator[tuple[int, ...]]:
    """Yield shapes that the output of `layer` may have: what comes next may take only one of them."""
    units, dimensions = layer.weight.shape[0], layer.weight.dim() - 2
    if isinstance(layer, nn.Linear):
        yield from ((BATCH, units), (BATCH, 3, units))
        return
    sizes = [(side,) * dimensions for side in (*range(2, 65), 1)]
    sizes += sorted(product(range(1, {1: 2049, 2: 33, 3: 9}[dimensions]), repeat=dimensions), key=math.prod)
    yield from ((BATCH, units, *size) for size in sizes if units * math.prod(size) <= 2**20)


class _Way:
    """What a model makes of the output of one layer before it enters another, by a trace of the model.

    Raises ValueError if the other layer does not read that output, or something else does, too.
    """

    def __init__(self, model: nn.Module, this: nn.Module, following: nn.Module) -> None:
        nodes = list(_Tracer((this, following)).trace_of(model).nodes)
        self.model, self.start = model, _only_call(model, nodes, this)
        end = _only_call(model, nodes, following)
        self.result: Any = end.args[0] if end.args else end.kwargs["input"]
        needed, reached = _closure([self.result], "all_input_nodes", self.start), _closure([self.start], "users", end)
        if self.start not in needed:
            raise ValueError("the one does not read the other's output")
        if others := [node for node in nodes if node in reached and node is not end and node not in needed]:
            raise ValueError(f"its output is also read by {others[0].name!r}")
        self.nodes = [node for node in nodes if node in needed and node is not self.start]
        calls = [node for node in self.nodes if node.op == "call_module"]
        self.modules = {node: copied(model.get_submodule(str(node.target))).double().eval() for node in calls}

    def __call__(self, given: Tensor) -> Any:
        """Return what the other layer gets for this output of the one."""
        values: dict[Any, Any] = {self.start: given.clone()}
        for node in self.nodes:
            args, kwargs = (fx.node.map_arg(part, values.__getitem__) for part in (node.args, node.kwargs))
            if node.op == "placeholder":  # has a length, but no numbers: they are not on the way
                values[node] = torch.empty(len(given), device="meta")
            elif node.op == "get_attr":
                values[node] = _double(_attribute(self.model, str(node.target)))
            elif node.op == "call_module":
                values[node] = self.modules[node](*args, **kwargs)
            elif node.op == "call_method":
                values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                function: Any = node.target
                values[node] = function(*args, **kwargs)
        return values[self.result]


class _Batch(fx.Proxy):
    """What stands for a tensor in a trace; it has a length, for the `view(len(x), -1)` of many networks."""

    def __len__(self) -> int:
        name = getattr(self.node.target, "__name__", self.node.target)
        return super().__len__() if name in SEVERAL else BATCH


class _Tracer(fx.Tracer):
    def __init__(self, leaves: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is taken as a whole."""
        return any(m is leaf for leaf in self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for the result of a node."""
        return _Batch(node, self)

    def trace_of(self, model: nn.Module) -> fx.Graph:
        """Return the graph of the model in evaluation mode, with the defaults of its optional arguments."""
        parameters = inspect.signature(model.forward).parameters.values()
        defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
        with evaluating(model), _without_shape_checks():
            return self.trace(model, defaults)


@contextmanager
def _without_shape_checks() -> Iterator[None]:
    """Switch off jaxtyping's checks, where a network has them: what traces it has no shape."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)


def _only_call(model: nn.Module, nodes: list[Any], layer: nn.Module) -> Any:
    owned = [id(parameter) for parameter in layer.parameters()]
    if any(node.op == "get_attr" and id(_attribute(model, node.target)) in owned for node in nodes):
        raise ValueError(f"the weights of {type(layer).__name__} are read without calling it")
    calls = [n for n in nodes if n.op == "call_module" and model.get_submodule(n.target) is layer]
    if len(calls) != 1:
        raise ValueError(f"a layer ({type(layer).__name__}) is called {len(calls)} times; allowed: once")
    return calls[0]


def _attribute(model: nn.Module, name: str) -> Any:
    owner, attribute = _owner(model, name)
    return getattr(owner, attribute)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _closure(nodes: list[Any], step: str, last: Any) -> set[Any]:
    """Return all nodes that the steps lead to from `nodes`, themselves included; none are made from `last`."""
    found, waiting = set(nodes), list(nodes)
    while waiting:
        node = waiting.pop()
        new = [] if node is last else [other for other in getattr(node, step) if other not in found]
        found.update(new)
        waiting += new
    return found


def remove_words(model: nn.Module, keep: Bool[Tensor, " words"], counts: Tensor) -> nn.Module:
    """Return a smaller copy of a text classifier that knows only the words of `keep`; masks are folded in.

    Token numbers change with it: cut the list of words the same way (`[w for w, kept in zip(words, keep) if kept]`) and
    encode the texts again. The words that are gone become "<unk>", whose vector becomes the mean of all that it now
    stands for, weighted by `counts`: so the mean of a text stays about where it was.

    Args:
        model: has exactly one embedding.
        keep: True for each word that stays; "<unk>" and "<pad>", numbers 0 and 1, must.
        counts: how often each word occurs in the training texts, shape (words,); that of "<pad>" plays no part.

    Raises:
        ValueError: there is not one embedding, it shares its table with another layer, or it pads with another number;
            or `keep` or `counts` does not fit it.
    """
    new = bake(model)
    embedding = _embedding(new)
    if embedding.padding_idx not in (None, 0, 1):
        raise ValueError(f"the embedding's padding_idx is {embedding.padding_idx}; allowed: None, 0 or 1")
    if keep.dtype != torch.bool or keep.shape != embedding.weight.shape[:1] or not keep[:2].all():
        raise ValueError(
            f"keep has shape {tuple(keep.shape)} and begins with {keep[:2].tolist()}; "
            f"allowed: shape {tuple(embedding.weight.shape[:1])}, beginning with [True, True]"
        )
    if counts.shape != keep.shape:
        raise ValueError(f"counts has shape {tuple(counts.shape)}; allowed: {tuple(keep.shape)}")
    checks.finite("counts", counts)
    table = embedding.weight.detach().clone()
    unknown = counts * ~keep
    unknown[0] = counts[0]
    if unknown.any():
        table[0] = (unknown / unknown.sum()).to(table.dtype) @ table
    _replace_table(embedding, table[keep])
    return new


def factor_embedding(model: nn.Module, reader: str, rank: int) -> nn.Module:
    """Return a copy whose word vectors have `rank` numbers, by the singular value decomposition E ≈ U S V^T.

    U S becomes the new embedding, and V^T is multiplied into `reader`, the linear or convolutional layer that reads the
    word vectors (or their mean): the smaller network computes what the old one would with the closest matrix of that
    rank (Eckart and Young 1936). Masks are folded in.

    Raises:
        ValueError: there is not one embedding, `reader` does not read it, one of them shares a tensor with another
            layer, the embedding takes maxima or limits lengths, or `rank` is not from 1 to its dimensions.
    """
    new = bake(model)
    embedding, following = _embedding(new), _layer(new, "reader", reader)
    _refuse_tied(new, reader, following)
    words, dimensions = embedding.weight.shape
    if getattr(embedding, "mode", "mean") == "max" or embedding.max_norm is not None:
        raise ValueError("the embedding has mode='max' or max_norm, which no matrix does; allowed: sums and means")
    if following.weight.shape[1] != dimensions or getattr(following, "groups", 1) > 1:
        raise ValueError(
            f"reader={reader!r} takes {following.weight.shape[1]} inputs, but a word has {dimensions} numbers; "
            "allowed: the layer that reads the embedding"
        )
    checks.choice("rank", rank, range(1, min(words, dimensions) + 1))
    table = embedding.weight.detach()
    # V holds the eigenvectors of E^T E, which is small; in double precision, since forming it squares the condition.
    right = torch.linalg.eigh(table.double().T @ table.double()).eigenvectors.flip(1)[:, :rank].T.to(table.dtype)
    _replace_table(embedding, table @ right.T)  # U S, but with the exact zeros of padding
    weight = torch.einsum("oi...,ri->or...", following.weight.detach(), right)
    following.weight = nn.Parameter(weight.contiguous(), following.weight.requires_grad)
    attribute = "in_features" if isinstance(following, nn.Linear) else "in_channels"
    setattr(following, attribute, rank)
    return new


def _embedding(model: nn.Module) -> Any:
    found = {layer: name for name, layer in model.named_modules() if isinstance(layer, EMBEDDINGS)}
    if len(found) != 1:
        raise ValueError(f"model has {len(found)} embeddings; allowed: exactly one")
    [(embedding, name)] = found.items()
    _refuse_tied(model, name, embedding)
    return embedding


def _replace_table(embedding: Any, table: Float[Tensor, "words dimensions"]) -> None:
    embedding.weight = nn.Parameter(table.clone(), embedding.weight.requires_grad)
    embedding.num_embeddings, embedding.embedding_dim = table.shape


def geometric_sparsity(progress: float, *, final: float) -> float:
    """Return the sparsity at `progress` in [0, 1] of a gradual pruning: equal steps drop the same fraction.

    s = 1 - (1 - final)^progress, the smooth limit of `geometric_amounts`. Zhu and Gupta 2018 ("To prune, or not to
    prune", equation 1) use a cubic instead, which leaves little time for the last weights where few are left.
    """
    checks.fraction("progress", progress, upper_open=False)
    checks.fraction("final", final)
    return 1 - (1 - final) ** progress


def geometric_amounts(final: float, rounds: int) -> list[float]:
    """Return the sparsity after each of `rounds` equal cuts: every round drops the same fraction of what is left.

    The prune-and-retrain schedule of Han et al. 2015, section 3.3. One round is one-shot pruning.
    """
    checks.fraction("final", final)
    checks.positive("rounds", rounds)
    return [geometric_sparsity(done / rounds, final=final) for done in range(1, rounds + 1)]


def _set_masks(model: nn.Module, masks: Masks) -> None:
    for name, part in _mask_modules(model).items():
        if name in masks:
            part.mask.copy_(masks[name])


def fisher_scores(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Score each weight w by w² g², with g² the running mean of its squared gradient that Adam keeps anyway.

    That is the saliency of LeCun et al. 1990 ("Optimal Brain Damage", equation 5) with the diagonal of the Hessian
    replaced by that of the empirical Fisher information. The optimizer must have made a step.

    Raises ValueError for weights that got no gradient: it is not known what they are worth.
    """
    places = _places(model)
    kept = {name: optimizer.state.get(_originals(layer)[key], {}) for name, (layer, key) in places.items()}
    if missing := [name for name, state in kept.items() if "exp_avg_sq" not in state]:
        raise ValueError(
            f"{', '.join(missing)}: the optimizer ({type(optimizer).__name__}) has no squared gradients of these "
            "weights; allowed: Adam after a step, on a loss that depends on every layer"
        )
    weights = weights_of(model)
    return {name: weights[name] ** 2 * state["exp_avg_sq"] for name, state in kept.items()}


def _gradual(amount: float, begin: float, end: float, every: int) -> OnStep:
    def prune(model: nn.Module, at: StepInfo) -> None:
        due = at.step % every == 0 or at.step == at.total
        if not due or at.progress <= begin or at.step - every > end * at.total:
            return
        sparsity = geometric_sparsity(min(1.0, (at.progress - begin) / (end - begin)), final=amount)
        masks, scores = masks_of(model), fisher_scores(model, at.optimizer)
        # A dead neuron's weights score zero as well: below them, so that no pruned weight comes back in their place.
        scores = {name: score.masked_fill(~masks[name], -1) for name, score in scores.items()}
        chosen = global_masks(model, sparsity, scores=scores)
        _set_masks(model, {name: kept & masks[name] for name, kept in chosen.items()})

    return prune


def prune_gradually(
    model: nn.Module,
    train: Split,
    *,
    amount: float,
    epochs: int,
    lr: float,
    begin: float = 0.1,
    end: float = 0.5,
    every: int = 50,
    key: str = "",
    **options: Any,
) -> Fitted:
    """Train with Adam while the sparsity rises along `geometric_sparsity`, by `fisher_scores`, with no way back.

    Args:
        model: the network to prune, trained or not; unchanged.
        train: the training examples.
        amount: final fraction of pruned weights, in [0, 1).
        epochs: passes over the data, before, while and after pruning.
        lr: peak learning rate of `fit`.
        begin: fraction of the training at which pruning begins.
        end: fraction at which `amount` is reached; the rest recovers.
        every: steps between two prunings.
        key: as in `fit`.
        options: further arguments of `fit`.

    Returns:
        The masked model (see `bake`) and its history.

    Raises:
        ValueError: an argument is out of range, or a layer is frozen or the loss does not depend on it (its weights
            have no gradient to score).
    """
    checks.fraction("amount", amount)
    checks.fraction("begin", begin)
    checks.fraction("end", end, upper_open=False)
    checks.positive("every", every)
    if begin >= end:
        raise ValueError(f"begin={begin!r} is not before end={end!r}; allowed: begin < end")
    model = materialized(model)
    weights, places = weights_of(model), _places(model).items()
    if frozen := [name for name, (layer, key) in places if not _originals(layer)[key].requires_grad]:
        raise ValueError(f"model has frozen weights: {', '.join(frozen)}; allowed: requires_grad=True in every layer")
    return fit(
        mask(model, {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}),
        train,
        epochs=epochs,
        lr=lr,
        optimizer="adam",
        on_step=_gradual(amount, begin, end, every),
        key=key,
        **options,
    )
