"""Which filters of which layers go together, and which cannot go."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch_pruning
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from helpers.core.modules import copied, first_names
from helpers.pruning import masks

Keep = Mapping[str, Tensor]  # boolean, (channels,): True stays
CUTTABLE = (_ConvNd, nn.Linear)
OVER_CHANNELS = (nn.LayerNorm, nn.GroupNorm)  # what they do to one channel depends on the others


class Group(NamedTuple):
    """Layers whose output channels are one and the same thing, so that they leave together or stay together.

    `layers` are the convolutional and linear layers, in the order of the model's definition; the first gives the
    group its name. `channels` counts what each of them puts out. Where a grouped convolution reads or writes the
    channels, they fall into `parts` equal parts that must be cut alike (1 otherwise).
    """

    layers: tuple[str, ...]
    channels: int
    parts: int = 1

    @property
    def name(self) -> str:
        """Return the name of the first layer."""
        return self.layers[0]


class _At(NamedTuple):
    """A position in some layer, and the channel of the group that stands there; the names are torch-pruning's."""

    idx: int
    root_idx: int


class _Reached(NamedTuple):
    """A layer or operation that a group's channels reach, how they are cut there, and which stand at which position."""

    module: Any
    cut: Callable[[nn.Module, list[int]], object]
    channels: dict[int, int]
    is_output: bool


class _Site(NamedTuple):
    """Where a group's channels stand in one layer: channel `channel[i]` is at `position[i]`, and `cut` removes them."""

    layer: str
    cut: Callable[[nn.Module, list[int]], object]
    position: Tensor
    channel: Tensor


class Coupled(NamedTuple):
    """A group, the places of its channels, and why these cannot be removed ("" if they can)."""

    group: Group
    sites: list[_Site]
    obstacle: str


def groups(model: nn.Module, example: Shaped[Tensor, "batch ..."]) -> list[Group]:
    """Return the groups of layers whose output channels can be removed, in the order of the model's definition.

    `example` is a batch that the model takes. The layer that makes the model's output is in no group, nor are
    layers whose channels pass a LayerNorm or a GroupNorm: these average over the channels, so that removing one
    changes the others. Nor are layers that share a tensor with others. Frozen layers are included.

    Raises ValueError if the model does not take `example`, or torch-pruning cannot follow it.
    """
    return [coupled.group for coupled in survey_of(copy(model), example) if not coupled.obstacle]


def copy(model: nn.Module) -> nn.Module:
    """Return a copy with masks (also torch's own, see `pruning.bake`) baked; a copied parameter has no gradient.

    Raises ValueError for other parametrizations: what is stored under them is not what the layer computes with.
    """
    new = masks.bake(model)
    for name, module in new.named_modules():
        if parametrize.is_parametrized(module):
            raise ValueError(f"model has a parametrization on {name!r}; allowed: masks of helpers.pruning, or none")
    if any(is_lazy(parameter) for parameter in new.parameters()):
        raise ValueError("model has a lazy layer without weights yet; allowed: a model that was called once")
    return new


def survey_of(whole: nn.Module, example: Tensor) -> list[Coupled]:
    """Return all groups with the places of their channels, also those that cannot be cut."""
    model = copied(whole)
    if not isinstance(example, Tensor) or example.dim() == 0 or len(example) == 0:
        raise ValueError("example is no batch; allowed: a tensor of at least one example")
    try:
        answer = answer_of(model, example)
    except RuntimeError as error:
        raise ValueError(
            f"example has the shape {tuple(example.shape)} and {example.dtype}, which model={type(whole).__name__} "
            f"does not take ({first_line(error)})"
        ) from error
    try:
        return _all_coupled(_trace(model, example), answer.numel() // len(example))
    except Exception as error:  # of any class: torch-pruning stumbles in many ways over what it does not know
        reason = first_line(error)
        raise ValueError(
            f"model={type(whole).__name__} cannot be followed by torch-pruning ({reason}); "
            "try masks (helpers.pruning), or replace the part that reshapes, splits or shuffles channels"
        ) from error


def first_line(error: Exception) -> str:
    """Return the class of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _trace(model: nn.Module, example: Tensor) -> Any:
    """Return torch-pruning's graph of `model`, which it switches to evaluation mode and makes trainable.

    Autograd sees only what is trained: a frozen layer would be missing from the graph, and silently not be cut.
    """
    model.requires_grad_(True).eval()
    graph = torch_pruning.DependencyGraph()
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Maximum recursive depth reached")  # what is cut is compared anyway
        return graph.build_dependency(model, example, forward_fn=lambda net, inputs: net(inputs), verbose=False)


def _all_coupled(graph: Any, outputs: int) -> list[Coupled]:
    """Return all groups; `outputs` counts the numbers that the model answers to one example."""
    names = {module: name for name, module in graph.model.named_modules()}
    layers = [module for module in names if isinstance(module, CUTTABLE) and module in graph.module2node]
    most = max([outputs, *(size for parameter in graph.model.parameters() for size in parameter.shape)])
    shared = _shared(graph.model)
    seen: set[Any] = set()
    found = []
    for layer in sorted(layers, key=_is_depthwise):  # stable; a depthwise layer's channels are those that it reads
        if layer not in seen:
            reached = _reached(graph, layer, most)
            made = [each for each in reached if graph.is_out_channel_pruning_fn(each.cut)]
            seen |= {each.module for each in made}
            found.append(_coupled(reached, made, names, shared, most))
    order = list(names.values())
    return sorted(found, key=lambda coupled: order.index(coupled.group.name))


def _reached(graph: Any, layer: Any, most: int) -> list[_Reached]:
    """Return all that the output channels of `layer` reach.

    As torch-pruning's `get_pruning_group` does, but each position of each place is gone on from once: the time grows
    with the size of the network. And where an operation is followed wrongly, as in windowed attention, and positions
    become ever more, the search ends: no place in a layer has more than `most`.
    """
    start = graph.module2node[layer], graph.get_pruner_of_module(layer).prune_out_channels
    found: dict[Any, dict[int, int]] = {start: {channel: channel for channel in range(channels_of(layer))}}
    waiting = [(start, [_At(channel, channel) for channel in found[start]])]
    while waiting:
        (node, cut), given = waiting.pop()
        for dependency in node.dependencies:
            if dependency.trigger != cut:
                continue
            there = given
            for mapping in dependency.index_mapping:
                there = there if mapping is None else mapping(there)
            place = dependency.target, dependency.handler
            channels = found.setdefault(place, {})
            new = [at for at in there if at.idx not in channels]
            for at in new:
                channels.setdefault(at.idx, at.root_idx)
            if len(channels) > most:
                return _as_reached(found)
            if new:
                waiting.append((place, new))
    return _as_reached(found)


def _as_reached(found: dict[Any, dict[int, int]]) -> list[_Reached]:
    places = ((node, cut, channels) for (node, cut), channels in found.items() if channels)
    return [_Reached(node.module, cut, channels, not node.outputs) for node, cut, channels in places]


def _shared(model: nn.Module) -> dict[nn.Module, str]:
    """Return the layers that share a parameter with another layer, with its name."""
    owners: dict[str, set[nn.Module]] = {}
    for name, first in first_names(model).items():
        owners.setdefault(first, set()).add(model.get_submodule(name.rpartition(".")[0]))
    return {layer: name for name, layers in owners.items() if len(layers) > 1 for layer in layers}


def _coupled(
    reached: list[_Reached],
    made: list[_Reached],
    names: dict[nn.Module, str],
    shared: dict[nn.Module, str],
    most: int,
) -> Coupled:
    """Return one group: `reached` are the places of its channels, `made` those of them where channels are put out."""
    root = reached[0].module
    channels = channels_of(root)
    whole = {channel: channel for channel in range(channels)}
    one_to_one = {each.module for each in made if each.channels == whole}
    members = [module for module in names if module in one_to_one and isinstance(module, CUTTABLE)]
    members = [module for module in members if channels_of(module) == channels]
    modules = [each.module for each in reached]
    parts = [module.groups for module in modules if isinstance(module, _ConvNd) and not _is_depthwise(module)]
    sites = [
        _Site(
            names[each.module], each.cut, torch.tensor(list(each.channels)), torch.tensor(list(each.channels.values()))
        )
        for each in reached
        if each.module in names
    ]
    group = Group(tuple(names[module] for module in members or [root]), channels, math.lcm(*parts))
    if root not in members or any(len(each.channels) > most for each in reached):
        return Coupled(group, sites, "torch-pruning follows its channels to more positions than there are")
    return Coupled(group, sites, _obstacle(made, group) or _obstacle_anywhere(modules, shared))


def _is_depthwise(layer: Any) -> bool:
    return isinstance(layer, _ConvNd) and layer.groups == layer.out_channels > 1


def channels_of(layer: Any) -> int:
    """Return how many channels a convolution, or features a linear layer, puts out."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _obstacle(made: list[_Reached], group: Group) -> str:
    """Return why the channels cannot be removed where they are put out, or "" if nothing is in the way."""
    if any(each.is_output for each in made):
        return "its channels are the model's output"
    for each in made:
        if isinstance(each.module, OVER_CHANNELS):
            return f"its channels pass a {type(each.module).__name__}, which averages over them"
    if any(isinstance(each.module, nn.Parameter) for each in made):
        return "its channels meet a parameter that is in no layer"
    if group.channels % group.parts:
        return f"its channels are read in {group.parts} parts together with others"
    return ""


def _obstacle_anywhere(modules: list[Any], shared: dict[nn.Module, str]) -> str:
    """Return why they cannot be removed where they are put out or read, or ""."""
    for module in modules:
        if isinstance(module, _ConvTransposeNd) and module.groups > 1 and not _is_depthwise(module):
            return "its channels meet a transposed convolution in groups"
        if module in shared:
            return f"its channels meet {shared[module]!r}, which several layers share"
    return ""


@torch.no_grad()
def answer_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the model's answer, without gradients, in evaluation mode; ValueError unless it is one tensor."""
    answer = model.eval()(inputs)
    if not isinstance(answer, Tensor):
        raise ValueError(f"model returns a {type(answer).__name__}; allowed: one tensor")
    return answer
