"""Remove the units that a mask has emptied, and refuse where another part would notice."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from jaxtyping import config
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from helpers.core.modules import copied, evaluating
from helpers.pruning.coupling import first_line
from helpers.pruning.masks import bake, columns_per_unit
from helpers.pruning.weights import layer_of, owner_of, refuse_tied

TRIES = 20  # shapes, of which one at least should fit or fail otherwise
BATCH = 2  # examples in a batch that stands for any
SEVERAL = ("size", "chunk", "split", "tensor_split", "unbind")  # whose results are no batches


def remove_neurons(model: nn.Module, layer: str, next_layer: str) -> nn.Module:
    """Return a smaller copy without the neurons of `layer` that contribute nothing to `next_layer`.

    A neuron contributes nothing if its bias and all weights that it reads with are zero (and the activation between
    the layers maps 0 to 0, as ReLU does), or if all weights that read from it are zero. Masked counts as zero.

    Before anything is cut, the way from the one layer to the other is traced (`torch.fx`), and what `next_layer` makes
    of random numbers on it is compared in float64 with and without those neurons.

    Raises:
        ValueError: a layer does not exist, shares a tensor, is grouped or quantized; `next_layer` does not take what
            `layer` gives, or something else reads it too; what lies between works on whole or mixed channels; the
            model cannot be traced; or no neuron would be left. `pruning.remove_filters`, which takes an example of the
            inputs, can do most of that.
    """
    new = bake(model)
    this, following = layer_of(new, "layer", layer), layer_of(new, "next_layer", next_layer)
    per_unit = columns_per_unit(this, following, layer, next_layer)
    for name, each in ((layer, this), (next_layer, following)):
        if parametrize.is_parametrized(each) or getattr(each, "groups", 1) > 1:
            raise ValueError(f"layer {name!r} is grouped or quantized; allowed: an ordinary one")
        refuse_tied(new, name, each)
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
    shrink(smaller, slice(None), keep.repeat_interleave(per_unit))
    if reason := _way_breaks(new, this, following, smaller, reads, keep):
        raise ValueError(
            f"neurons of layer={layer!r} cannot be removed before next_layer={next_layer!r}: {reason}; allowed: layers "
            "between which each channel goes its own way. helpers.pruning.remove_filters can do more"
        )
    shrink(this, keep, slice(None))
    shrink(following, slice(None), keep.repeat_interleave(per_unit))
    return new


def shrink(layer: Any, rows: Any, columns: Any) -> None:
    """Keep these rows of a layer's weight and bias, and these columns of its weight, in place."""
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
        return first_line(error)
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
            reasons.append(first_line(error))
            continue
        return _difference(smaller, way, kept, expected)
    return reasons[-1]


def _difference(layer: nn.Module, way: Callable[[Tensor], Any], given: Tensor, expected: Tensor) -> str:
    try:
        found = layer(way(given))
    except Exception as error:  # of any class: something between counts the channels
        return first_line(error)
    if found.shape != expected.shape:
        return f"without them the answer has the shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    difference = float((found - expected).abs().max())
    return (
        "" if difference <= 1e-9 * float(expected.abs().max()) else f"without them answers differ by {difference:.2g}"
    )


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
    owner, attribute = owner_of(model, name)
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
