"""Physical removal: filters, neurons and whole blocks leave the network, and it gets smaller and faster.

A channel that leaves takes with it the filter that makes it, its entries in every normalization on the way, and the
weights of every layer that reads it. Where two tensors are added, as in a residual block, channel 7 of the one and
channel 7 of the other must leave together: such layers form a *group*. `torch-pruning` finds the groups by following
the gradients' graph of one forward pass (Fang et al. 2023, "DepGraph: towards any structural pruning", section 3).
What is to stay is written as a dictionary of boolean masks, one per group: ``{"conv1": tensor([True, False, …])}``.
"""

import math
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch_pruning
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import checks, measure, models, pruning
from helpers.modules import channels_last, copied, evaluating, first_names, takes_channels_last

__all__ = [
    "Group",
    "Keep",
    "choose_filters",
    "group_scores",
    "groups",
    "refresh_batchnorm",
    "remove_block",
    "remove_filters",
    "zero_filters",
]

Keep = Mapping[str, Tensor]  # boolean, (channels,): True stays
FilterScores = Mapping[str, Float[Tensor, " _"]]

CUTTABLE = (_ConvNd, nn.Linear)
OVER_CHANNELS = (nn.LayerNorm, nn.GroupNorm)  # what they do to one channel depends on the others
SCOPES = ("global", "uniform")
PRECISIONS = (torch.float64, torch.float32)  # in which answers are compared; the second where the first is impossible
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}  # of the range of the answers to different inputs
NOISE = {torch.float64: 1e-13, torch.float32: 3e-6}  # of the largest answer: what another order of adding up may change


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


# ---------------------------------------------------------------- groups


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


class _Coupled(NamedTuple):
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
    return [coupled.group for coupled in _survey(_copy(model), example) if not coupled.obstacle]


def _copy(model: nn.Module) -> nn.Module:
    """Return a copy with masks (also torch's own, see `pruning.bake`) baked; a copied parameter has no gradient.

    Raises ValueError for other parametrizations: what is stored under them is not what the layer computes with.
    """
    new = pruning.bake(model)
    for name, module in new.named_modules():
        if parametrize.is_parametrized(module):
            raise ValueError(f"model has a parametrization on {name!r}; allowed: masks of helpers.pruning, or none")
    if any(is_lazy(parameter) for parameter in new.parameters()):
        raise ValueError("model has a lazy layer without weights yet; allowed: a model that was called once")
    return new


def _survey(whole: nn.Module, example: Tensor) -> list[_Coupled]:
    """Return all groups with the places of their channels, also those that cannot be cut."""
    model = copied(whole)
    if not isinstance(example, Tensor) or example.dim() == 0 or len(example) == 0:
        raise ValueError("example is no batch; allowed: a tensor of at least one example")
    try:
        answer = _answer(model, example)
    except RuntimeError as error:
        raise ValueError(
            f"example has the shape {tuple(example.shape)} and {example.dtype}, which model={type(whole).__name__} "
            f"does not take ({_first_line(error)})"
        ) from error
    try:
        return _all_coupled(_trace(model, example), answer.numel() // len(example))
    except Exception as error:  # of any class: torch-pruning stumbles in many ways over what it does not know
        reason = _first_line(error)
        raise ValueError(
            f"model={type(whole).__name__} cannot be followed by torch-pruning ({reason}); "
            "try masks (helpers.pruning), or replace the part that reshapes, splits or shuffles channels"
        ) from error


def _first_line(error: Exception) -> str:
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


def _all_coupled(graph: Any, outputs: int) -> list[_Coupled]:
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
    found: dict[Any, dict[int, int]] = {start: {channel: channel for channel in range(_channels(layer))}}
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
) -> _Coupled:
    """Return one group: `reached` are the places of its channels, `made` those of them where channels are put out."""
    root = reached[0].module
    channels = _channels(root)
    whole = {channel: channel for channel in range(channels)}
    one_to_one = {each.module for each in made if each.channels == whole}
    members = [module for module in names if module in one_to_one and isinstance(module, CUTTABLE)]
    members = [module for module in members if _channels(module) == channels]
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
        return _Coupled(group, sites, "torch-pruning follows its channels to more positions than there are")
    return _Coupled(group, sites, _obstacle(made, group) or _obstacle_anywhere(modules, shared))


def _is_depthwise(layer: Any) -> bool:
    return isinstance(layer, _ConvNd) and layer.groups == layer.out_channels > 1


def _channels(layer: Any) -> int:
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


# ---------------------------------------------------------------- removal


def remove_filters(model: nn.Module, keep: Keep, example: Shaped[Tensor, "batch ..."]) -> nn.Module:
    """Return a new, smaller model without the channels that `keep` drops; the one that came in is unchanged.

    `keep` has one mask per group to be cut, under the name of any of its layers (see `groups`). Convolutions, also
    depthwise ones, and linear neurons are treated alike. Frozen layers are cut as well, and stay frozen. Masks of
    `pruning`, and what `torch.nn.utils` has put on weights, are baked. The new model's parameters are new: give them a
    new optimizer.

    Before it is returned, the new model's answer to random numbers of the shape of `example` is compared in float64
    with that of the model whose channels are zeroed (`zero_filters`), or in float32 if float64 is impossible.

    Raises:
        ValueError: `keep` names no group's layer; a mask has another shape, is not boolean, drops all channels or
            contradicts one of the same group; or torch-pruning cannot cut the model there.
    """
    return _removed_and_zeroed(model, keep, example)[0]


def zero_filters(model: nn.Module, keep: Keep, example: Shaped[Tensor, "batch ..."]) -> nn.Module:
    """Return the same net at full size, with the channels that `keep` drops zeroed after BatchNorm and activation.

    Each number that `remove_filters` would remove is zero instead: the filters, their scale and shift in a BatchNorm,
    and the weights that read the channels, which is what zeroes them where they are read, whatever came in between.
    It is an ordinary model without masks, as large and as slow as before.

    Raises ValueError as `remove_filters` does.
    """
    return _removed_and_zeroed(model, keep, example)[1]


def _removed_and_zeroed(model: nn.Module, keep: Keep, example: Tensor) -> tuple[nn.Module, nn.Module]:
    whole = _copy(model)
    return _compared(whole, keep, _survey(whole, example), example)


def _compared(whole: nn.Module, keep: Keep, survey: list[_Coupled], example: Tensor) -> tuple[nn.Module, nn.Module]:
    """Return the cut model and the zeroed one; ValueError if `keep` is wrong or their answers differ."""
    masks = _checked(keep, survey, _first_names_of_layers(whole))
    try:
        return _both(whole, masks, survey, example)
    except _CannotCutError as error:
        alone = [name for name in masks if not _can_cut(whole, {name: masks[name]}, survey, example)]
        raise ValueError(
            f"keep cuts {', '.join(map(repr, alone or masks))}, which torch-pruning cannot cut here ({error}). "
            "Something there reshapes, splits or mixes channels: try leaving these layers out of keep (or of scores)"
        ) from error


class _CannotCutError(Exception):
    """The cut model is not the zeroed one; says how."""


def _both(whole: nn.Module, masks: Keep, survey: list[_Coupled], example: Tensor) -> tuple[nn.Module, nn.Module]:
    try:
        numbered = _cut_numbers(whole, masks, survey)
        zeroed = _zeroed(numbered, whole)
        new = _fill(numbered, whole)
    except Exception as error:  # of any class: torch-pruning takes a layer for one of another kind
        raise _CannotCutError(_first_line(error)) from error
    if reason := _difference(new, zeroed, example):
        raise _CannotCutError(reason)
    return new, zeroed


def _can_cut(whole: nn.Module, masks: Keep, survey: list[_Coupled], example: Tensor) -> bool:
    try:
        _both(whole, masks, survey, example)
    except _CannotCutError:
        return False
    return True


def _first_names_of_layers(model: nn.Module) -> dict[str, str]:
    """Return each name of each layer with the first one of the same layer."""
    first = {layer: name for name, layer in model.named_modules()}
    return {name: first[layer] for name, layer in model.named_modules(remove_duplicate=False)}


def _checked(keep: Keep, survey: list[_Coupled], first: dict[str, str]) -> dict[str, Tensor]:
    """Return one mask for each group that loses channels, by the group's name; `first` has the names of layers."""
    coupled_by_layer = {layer: coupled for coupled in survey for layer in coupled.group.layers}
    coupled_by_layer = {name: coupled_by_layer[layer] for name, layer in first.items() if layer in coupled_by_layer}
    allowed = [layer for layer, coupled in coupled_by_layer.items() if not coupled.obstacle]
    masks: dict[str, Tensor] = {}
    for name, mask in keep.items():
        coupled = coupled_by_layer.get(name)
        if coupled and coupled.obstacle:
            raise ValueError(
                f"keep has {name!r}, but {coupled.obstacle}; allowed: {', '.join(map(repr, allowed)) or 'none'}"
            )
        group = coupled_by_layer[checks.choice("layer in keep", name, allowed)].group
        _check_mask(name, mask, group)
        if not torch.equal(masks.setdefault(group.name, mask), mask):
            raise ValueError(f"keep[{name!r}] differs from the mask of {group.name!r}; allowed: one mask for a group")
    return {name: mask.cpu() for name, mask in masks.items() if not mask.all()}


def _check_mask(name: str, mask: Tensor, group: Group) -> None:
    if not isinstance(mask, Tensor):
        raise ValueError(f"keep[{name!r}] is a {type(mask).__name__}; allowed: torch.bool {(group.channels,)}")
    if mask.dtype != torch.bool or mask.shape != (group.channels,):
        raise ValueError(f"keep[{name!r}] is {mask.dtype} {tuple(mask.shape)}; allowed: torch.bool {(group.channels,)}")
    if not mask.any():
        raise ValueError(f"keep[{name!r}] drops all {group.channels} channels; allowed: a part of them")
    if (mask.view(group.parts, -1) != mask[: group.channels // group.parts]).any():
        raise ValueError(
            f"keep[{name!r}] drops different channels in the {group.parts} parts that a grouped convolution makes of "
            "them; allowed: the same in each"
        )


def _cut_numbers(whole: nn.Module, masks: Keep, survey: list[_Coupled]) -> nn.Module:
    """Return a copy that is cut, and that has numbers in place of its parameters.

    They say where in the flat parameter of `whole` each value stood. So it is known for every kind of layer that
    torch-pruning can cut what was removed, and what of the rest went where.
    """
    new = copied(whole)
    for parameter in new.parameters():
        numbers = torch.arange(parameter.numel(), dtype=torch.float64, device=parameter.device)  # exact up to 2⁵³
        parameter.data = numbers.view(parameter.shape)
    for (layer, cut), positions in _positions(masks, survey).items():
        cut(new.get_submodule(layer), sorted(positions))
    return new


def _fill(numbered: nn.Module, whole: nn.Module) -> nn.Module:
    """Replace, in place, each number by what stands there in `whole`; return the model, which is then the cut one."""
    originals = dict(whole.named_parameters(remove_duplicate=False))
    for name, parameter in numbered.named_parameters():
        parameter.data = originals[name].detach().flatten()[parameter.detach().long()]
        parameter.requires_grad_(originals[name].requires_grad)
    return numbered


def _zeroed(numbered: nn.Module, whole: nn.Module) -> nn.Module:
    """Return a copy of `whole` with a zero wherever its number was removed."""
    new = copied(whole)
    numbers = dict(numbered.named_parameters())
    for name, parameter in new.named_parameters():
        removed = torch.ones(parameter.numel(), dtype=torch.bool, device=parameter.device)
        removed[numbers[name].detach().long().flatten()] = False
        parameter.data = parameter.detach().masked_fill(removed.view(parameter.shape), 0)
    return new


def _positions(masks: Keep, survey: list[_Coupled]) -> dict[tuple[str, Any], set[int]]:
    """Return what has to be removed from each layer, by layer and torch-pruning's function for it."""
    positions: dict[tuple[str, Any], set[int]] = {}
    for coupled in survey:
        if coupled.group.name in masks:
            for site in coupled.sites:
                removed = ~masks[coupled.group.name][site.channel]
                positions.setdefault((site.layer, site.cut), set()).update(site.position[removed].tolist())
    return positions


def _difference(new: nn.Module, zeroed: nn.Module, example: Tensor) -> str:
    """Return in words how the two models' answers differ, or "" if they do not."""
    reason = ""
    for dtype in PRECISIONS:
        try:
            expected = _answers(zeroed, example, dtype)
        except Exception as error:  # of any class, from the model's own code: it makes tensors of one precision
            reason = f"the answers cannot be compared: {_first_line(error)}"
            continue
        try:
            return _apart(_answers(new, example, dtype), expected, dtype)
        except Exception as error:  # of any class, from the model's own code: the sizes do not fit
            return _first_line(error)
    return reason


def _apart(found: Tensor, expected: Tensor, dtype: torch.dtype) -> str:
    if found.shape != expected.shape:
        return f"the answers have the shape {tuple(found.shape)}, with zeroed channels {tuple(expected.shape)}"
    difference = float((found - expected).abs().max())
    # An untrained net's answers may hardly depend on its inputs: what counts is how much they do.
    spread = float((expected.amax(0) - expected.amin(0)).max())
    allowed = TOLERANCE[dtype] * spread + NOISE[dtype] * float(expected.abs().max())
    if dtype == torch.float32 and not allowed < 0.01 * spread:
        return "the answers depend too little on the inputs to be compared in float32"
    return "" if difference <= allowed else f"the answers differ by {difference:.2g} from those with zeroed channels"


def _answers(model: nn.Module, example: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the answers to at least two different batches or examples, computed in `dtype`."""
    model = copied(model).to(dtype)
    with _all_in_double() if dtype == torch.float64 else nullcontext():
        answers = [_answer(model, batch) for batch in _batches(example, dtype)]
    return answers[0] if len(answers) == 1 else torch.stack(answers)


def _batches(example: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return random inputs like `example`: not more of them at once, as some models take but one."""
    generator = torch.Generator().manual_seed(0)
    if example.is_floating_point():
        shape = (max(2, len(example)), *example.shape[1:])
        inputs = torch.randn(shape, generator=generator, dtype=torch.float64).to(example.device, dtype)
        return list(inputs.split(len(example)))
    order = torch.randperm(example.numel(), generator=generator).to(example.device)
    return [example, example.flatten()[order].view(example.shape)]


@contextmanager
def _all_in_double() -> Iterator[None]:
    """Have everything that is computed meanwhile be in float64, also what asks for less precision, or for none."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Double():
            yield
    finally:
        torch.set_default_dtype(before)


class _Double(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = kwargs or {}
        if asked.get("dtype") in (torch.float32, torch.float16, torch.bfloat16):
            asked = asked | {"dtype": torch.float64}
        return func(*args, **asked)


@torch.no_grad()
def _answer(model: nn.Module, inputs: Tensor) -> Tensor:
    answer = model.eval()(inputs)
    if not isinstance(answer, Tensor):
        raise ValueError(f"model returns a {type(answer).__name__}; allowed: one tensor")
    return answer


# ---------------------------------------------------------------- choosing


def group_scores(scores: FilterScores, groups: list[Group]) -> dict[str, Tensor]:
    """Return one score per channel and group, by the group's name: the sum over those of its layers that have scores.

    A group none of whose layers has scores is left out. Raises ValueError for scores of a wrong shape.
    """
    summed: dict[str, Tensor] = {}
    for group in groups:
        for name in group.layers:
            if name not in scores:
                continue
            if scores[name].shape != (group.channels,):
                shape = tuple(scores[name].shape)
                raise ValueError(f"scores[{name!r}] has the shape {shape}; allowed: {(group.channels,)}")
            summed[group.name] = summed.get(group.name, 0) + scores[name].detach()
    return summed


def choose_filters(
    model: nn.Module,
    scores: FilterScores,
    example: Shaped[Tensor, "batch ..."],
    *,
    macs_ratio: float,
    scope: str = "global",
    round_to: int = 8,
    at_least: float = 0.1,
) -> dict[str, Tensor]:
    """Return the masks, for `remove_filters`, that drop the channels with the smallest scores of their group.

    So many that the model has at least `macs_ratio` times fewer MACs, and no more: what stays of a group is a multiple
    of `round_to` channels (or all of them) and at least the fraction `at_least`, and none could keep a step more.
    `scores` has one number per filter, by layer (see `group_scores`); groups without scores stay whole.

    With `scope="global"` the groups compete: each channel's score, divided by the mean of its group, against all
    others. With "uniform" each group loses the same fraction. (Li et al. 2017, "Pruning filters for efficient
    convnets", prune layer by layer; Molchanov et al. 2019, "Importance estimation", globally.)

    Raises ValueError for scores of unknown layers, of wrong shape or not finite, and if the ratio cannot be reached.
    """
    checks.choice("scope", scope, SCOPES)
    checks.positive("round_to", round_to)
    checks.fraction("at_least", at_least, upper_open=False)
    checks.number("macs_ratio", macs_ratio)
    whole = _copy(model)
    first = _first_names_of_layers(whole)
    scores = {first[checks.choice("layer in scores", name, first)]: values for name, values in scores.items()}
    survey = _survey(whole, example)
    found = [coupled.group for coupled in survey if not coupled.obstacle]
    summed = checks.not_empty("scores of groups that can be cut", group_scores(scores, found))
    scored = [group for group in found if group.name in summed]
    ranking = _Ranking(scored, summed, scope=scope, round_to=round_to, at_least=at_least)
    one = example[:1]
    predict = _predictor(whole, survey, one)
    before = predict({})
    fewest = ranking.masks(ranking.counts(ranking.total))
    smallest = measure.count_macs(_compared(whole, fewest, survey, example)[0], one)  # raises if it cannot be cut
    if not 1 <= macs_ratio <= before / smallest:
        raise ValueError(
            f"macs_ratio={macs_ratio!r}; allowed: 1 to {before / smallest:.3g}, with these groups and roundings"
        )
    predictable = predict(fewest) == smallest

    def ratio(counts: list[int]) -> float:
        masks = ranking.masks(counts)
        if predictable:
            return before / predict(masks)
        return before / measure.count_macs(_fill(_cut_numbers(whole, masks, survey), whole), one)

    dropped = bisect_left(range(ranking.total), macs_ratio, key=lambda dropped: ratio(ranking.counts(dropped)))
    counts = ranking.counts(dropped)
    for index in ranking.best_dropped_first(counts):  # rounding several groups down has often dropped too many
        while (more := ranking.one_step_more(counts, index)) != counts and ratio(more) >= macs_ratio:
            counts = more
    return ranking.masks(counts)


def _predictor(whole: nn.Module, survey: list[_Coupled], example: Tensor) -> Callable[[Keep], int]:
    """Return a function of the masks that gives the MACs of the cut model for one example, without cutting it.

    A convolution's or linear layer's MACs are proportional to the size of its weight. What else multiplies, or cannot
    be attributed to a layer, is taken to stay as it is: compare once before you trust it.
    """
    table = measure.layer_table(whole, example)
    layers = dict(whole.named_modules())
    costs = {name: macs for name, macs in zip(table["layer"], table["macs"], strict=True) if macs}
    elsewhere = measure.count_macs(whole, example) - sum(costs.values())

    def predict(masks: Keep) -> int:
        left = dict(costs)
        for (name, cut), positions in _positions(masks, survey).items():
            if name in left and isinstance(layers[name], CUTTABLE):
                left[name] *= 1 - len(positions) / _extent(layers[name], cut)
        return round(elsewhere + sum(left.values()))

    return predict


def _extent(layer: Any, cut: Any) -> int:
    """Return how many positions there are for torch-pruning's function `cut` to remove."""
    if cut.__name__ == "prune_out_channels":  # a depthwise convolution's only one
        return _channels(layer)
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


class _Ranking:
    """All channels of all groups in the order in which they go, and how many of each group stay after rounding.

    It counts in units. A unit is a channel; where a group's channels fall into parts that must be cut alike, it is
    one channel of each part.
    """

    def __init__(
        self, groups: list[Group], scores: Mapping[str, Tensor], *, scope: str, round_to: int, at_least: float
    ) -> None:
        self.groups, self.at_least = groups, at_least
        self.steps = [round_to // math.gcd(round_to, group.parts) for group in groups]
        values = [scores[group.name].double().cpu().view(group.parts, -1).sum(0) for group in groups]
        if not torch.cat(values).isfinite().all():
            raise ValueError("scores has values that are not finite; allowed: finite numbers")
        self.values = [_relative(part) if scope == "global" else _rank(part) for part in values]
        self.order = torch.cat(self.values).argsort(stable=True)
        self.total = len(self.order)

    def counts(self, dropped: int) -> list[int]:
        """Return how many units of each group stay when the first `dropped` units go."""
        stays = torch.ones(self.total, dtype=torch.bool)
        stays[self.order[:dropped]] = False
        parts = stays.split([len(values) for values in self.values])
        return [self._rounded(int(part.sum()), len(part), step) for part, step in zip(parts, self.steps, strict=True)]

    def _rounded(self, count: int, units: int, step: int) -> int:
        least = max(1, math.ceil(self.at_least * units / step - 1e-9)) * step  # 0.1 * 240 is a little above 24
        return min(units, max(least, round(count / step) * step))

    def one_step_more(self, counts: list[int], index: int) -> list[int]:
        more = min(len(self.values[index]), counts[index] + self.steps[index])
        return [*counts[:index], more, *counts[index + 1 :]]

    def best_dropped_first(self, counts: list[int]) -> list[int]:
        """Return the groups that are not whole, that with the highest value among the dropped first."""
        cut = [index for index, count in enumerate(counts) if count < len(self.values[index])]
        return sorted(cut, key=lambda index: -float(self.values[index].sort().values[-counts[index] - 1]))

    def masks(self, counts: list[int]) -> dict[str, Tensor]:
        return {
            group.name: _largest(values, count).repeat(group.parts)
            for group, values, count in zip(self.groups, self.values, counts, strict=True)
        }


def _relative(values: Tensor) -> Tensor:
    return values / values.abs().mean().clamp(min=torch.finfo(values.dtype).tiny)


def _rank(values: Tensor) -> Tensor:
    """Return each value's rank as a fraction, so that equal fractions of all groups stand below any number."""
    return (values.argsort(stable=True).argsort() + 0.5) / len(values)


def _largest(values: Tensor, count: int) -> Tensor:
    kept = torch.zeros(len(values), dtype=torch.bool)
    kept[values.argsort(descending=True, stable=True)[:count]] = True
    return kept


# ---------------------------------------------------------------- blocks


def remove_block(model: nn.Module, name: str) -> nn.Module:
    """Return a copy in which the residual block `name` is replaced by the identity: x + f(x) becomes x.

    Possible where the block's input and output have the same shape: each `models.Residual`, and torchvision's
    ResNet blocks without a convolution on the shortcut. Raises ValueError for any other name.
    """
    new = copied(model)
    blocks = [name for name, module in new.named_modules(remove_duplicate=False) if _is_residual(module)]
    checks.choice("name", name, blocks)
    parent, _, attribute = name.rpartition(".")
    setattr(new.get_submodule(parent), attribute, nn.Identity())
    return new


def _is_residual(module: Any) -> bool:
    from torchvision.models.resnet import BasicBlock, Bottleneck

    if isinstance(module, BasicBlock | Bottleneck):
        return module.downsample is None
    return isinstance(module, models.Residual)


# ---------------------------------------------------------------- BatchNorm


@torch.no_grad()
def refresh_batchnorm(model: nn.Module, inputs: Shaped[Tensor, "count ..."], *, batch_size: int = 500) -> nn.Module:
    """Return a copy whose BatchNorm layers have the mean and variance of what reaches them now, for these inputs.

    They are averaged over all batches, each counted by its size. Everything else is unchanged, dropout is off
    meanwhile, and each layer's own mode and momentum are restored. Frozen BatchNorm layers are refreshed as well.

    Batches are about equally large, and none is of a single example unless `batch_size` or the inputs are 1.

    Raises ValueError if `inputs` holds NaN or infinity, or a BatchNorm gets one number only, which has no variance.
    """
    checks.not_empty("inputs", inputs)
    checks.positive("batch_size", batch_size)
    if inputs.is_floating_point():
        checks.finite("inputs", inputs)
    new = copied(model)
    norms = [module for module in new.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    where = next((tensor.device for tensor in chain(new.parameters(), new.buffers())), inputs.device)
    count = math.ceil(len(inputs) / batch_size)
    batches = inputs.tensor_split(count if batch_size == 1 else max(1, min(count, len(inputs) // 2)))
    fast = takes_channels_last(new, batches[-1][:2].to(where))
    with _refreshing(new, norms):
        seen = 0
        for batch in batches:
            seen += len(batch)
            for norm in norms:
                norm.momentum = len(batch) / seen
            _see(new, channels_last(batch.to(where)) if fast else batch.to(where))
    return new


def _see(model: nn.Module, batch: Tensor) -> None:
    try:
        model(batch)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"inputs in batches of {len(batch)} cannot refresh this model ({_first_line(error)})"
        ) from error


@contextmanager
def _refreshing(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
