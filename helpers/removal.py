"""Physical removal: filters, neurons and whole blocks leave the network, and it gets smaller and faster.

A channel that leaves takes with it the filter that makes it, its entries in every normalization on the way, and the
weights of every layer that reads it. Where two tensors are added, as in a residual block, channel 7 of the one and
channel 7 of the other must leave together: such layers form a *group*. `torch-pruning` finds the groups by following
the gradients' graph of one forward pass (Fang et al. 2023, "DepGraph: towards any structural pruning", section 3).
What is to stay is written as a dictionary of boolean masks, one per group: ``{"conv1": tensor([True, False, …])}``.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import torch
import torch_pruning
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from helpers import checks, measure, models, pruning, training

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
TOLERANCE = 1e-8  # in float64, of the range of the answers to different inputs
NOISE = 1e-13  # in float64, of the largest answer: what another order of adding up may change


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
    changes the others. Frozen layers are included.

    Raises ValueError if torch-pruning cannot follow the model.
    """
    return [coupled.group for coupled in _survey(_copy(model), example) if not coupled.obstacle]


def _copy(model: nn.Module) -> nn.Module:
    """Return a copy with masks baked and without gradients.

    Raises ValueError for other parametrizations: what is stored under them is not what the layer computes with.
    """
    new = pruning.bake(model)
    for name, module in new.named_modules():
        if parametrize.is_parametrized(module):
            raise ValueError(f"model has a parametrization on {name!r}; allowed: masks of helpers.pruning, or none")
    new.zero_grad(set_to_none=True)
    return new


def _survey(whole: nn.Module, example: Tensor) -> list[_Coupled]:
    """Return all groups with the places of their channels, also those that cannot be cut."""
    model = deepcopy(whole)
    _answer(model, example)  # if the example does not fit, PyTorch says so better than torch-pruning
    try:
        graph = _trace(model, example)
        return _all_coupled(graph)
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
    with torch.enable_grad():
        return graph.build_dependency(model, example, forward_fn=lambda net, inputs: net(inputs), verbose=False)


def _all_coupled(graph: Any) -> list[_Coupled]:
    names = {module: name for name, module in graph.model.named_modules()}
    layers = [module for module in names if isinstance(module, CUTTABLE) and module in graph.module2node]
    seen: set[Any] = set()
    found = []
    for layer in sorted(layers, key=_is_depthwise):  # stable; a depthwise layer's channels are those that it reads
        if layer not in seen:
            pruner = graph.get_pruner_of_module(layer)
            items = graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(_channels(layer)))).items
            made = [item for item in items if graph.is_out_channel_pruning_fn(item.dep.handler)]
            seen |= {item.dep.target.module for item in made}
            found.append(_coupled(items, made, names, _channels(layer)))
    order = list(names.values())
    return sorted(found, key=lambda coupled: order.index(coupled.group.name))


def _coupled(items: list[Any], made: list[Any], names: dict[nn.Module, str], channels: int) -> _Coupled:
    """Return one group: `items` are the places of its channels, `made` those of them where channels are put out."""
    one_to_one = {item.dep.target.module for item in made if item.idxs == item.root_idxs and len(item.idxs) == channels}
    members = [module for module in names if module in one_to_one and isinstance(module, CUTTABLE)]
    members = [module for module in members if _channels(module) == channels]
    modules = [item.dep.target.module for item in items]
    parts = [module.groups for module in modules if isinstance(module, _ConvNd) and not _is_depthwise(module)]
    sites = [
        _Site(names[item.dep.target.module], item.dep.handler, torch.tensor(item.idxs), torch.tensor(item.root_idxs))
        for item in items
        if item.dep.target.module in names
    ]
    group = Group(tuple(names[module] for module in members), channels, math.lcm(*parts))
    return _Coupled(group, sites, _obstacle(made, group))


def _is_depthwise(layer: Any) -> bool:
    return isinstance(layer, _ConvNd) and layer.groups == layer.out_channels > 1


def _channels(layer: Any) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _obstacle(made: list[Any], group: Group) -> str:
    """Return why the channels cannot be removed, or "" if nothing is in the way."""
    modules = [item.dep.target.module for item in made]
    if not all(item.dep.target.outputs for item in made):
        return "its channels are the model's output"
    for module in modules:
        if isinstance(module, OVER_CHANNELS):
            return f"its channels pass a {type(module).__name__}, which averages over them"
    if any(isinstance(module, nn.Parameter) for module in modules):
        return "its channels meet a parameter that is in no layer"
    if group.channels % group.parts:
        return f"its channels are read in {group.parts} parts together with others"
    return ""


# ---------------------------------------------------------------- removal


def remove_filters(model: nn.Module, keep: Keep, example: Shaped[Tensor, "batch ..."]) -> nn.Module:
    """Return a new, smaller model without the channels that `keep` drops; the one that came in is unchanged.

    `keep` has one mask per group to be cut, under the name of any of its layers (see `groups`). Convolutions, also
    depthwise ones, and linear neurons are treated alike. Frozen layers are cut as well, and stay frozen. Masks of
    `pruning` are baked. The new model's parameters are new: give them a new optimizer.

    Before it is returned, the new model's answer to random numbers of the shape of `example` is compared in float64
    with that of the model whose channels are zeroed (`zero_filters`).

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
    masks = _checked(keep, survey)
    new, zeroed = _both(whole, masks, survey)
    if reason := _difference(new, zeroed, example):
        alone = [name for name in masks if _difference(*_both(whole, {name: masks[name]}, survey), example)]
        raise ValueError(
            f"keep cuts {', '.join(map(repr, alone or masks))}, which torch-pruning cannot cut here ({reason}). "
            "Something there reshapes, splits or mixes channels: try leaving these layers out of keep (or of scores)"
        )
    return new, zeroed


def _both(whole: nn.Module, masks: Keep, survey: list[_Coupled]) -> tuple[nn.Module, nn.Module]:
    numbered = _cut_numbers(whole, masks, survey)
    zeroed = _zeroed(numbered, whole)
    return _fill(numbered, whole), zeroed


def _checked(keep: Keep, survey: list[_Coupled]) -> dict[str, Tensor]:
    """Return one mask for each group that loses channels, by the group's name."""
    coupled_by_layer = {layer: coupled for coupled in survey for layer in coupled.group.layers}
    allowed = [layer for layer, coupled in coupled_by_layer.items() if not coupled.obstacle]
    masks: dict[str, Tensor] = {}
    for name, mask in keep.items():
        coupled = coupled_by_layer.get(name)
        if coupled and coupled.obstacle:
            raise ValueError(f"keep has {name!r}, but {coupled.obstacle}; allowed: {', '.join(map(repr, allowed))}")
        group = coupled_by_layer[checks.choice("layer in keep", name, allowed)].group
        _check_mask(name, mask, group)
        if not torch.equal(masks.setdefault(group.name, mask), mask):
            raise ValueError(f"keep[{name!r}] differs from the mask of {group.name!r}; allowed: one mask for a group")
    return {name: mask.cpu() for name, mask in masks.items() if not mask.all()}


def _check_mask(name: str, mask: Tensor, group: Group) -> None:
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
    new = deepcopy(whole)
    for parameter in new.parameters():
        numbers = torch.arange(parameter.numel(), dtype=torch.float64, device=parameter.device)  # exact up to 2⁵³
        parameter.data = numbers.view(parameter.shape)
    for (layer, cut), positions in _positions(masks, survey).items():
        cut(new.get_submodule(layer), sorted(positions))
    return new


def _fill(numbered: nn.Module, whole: nn.Module) -> nn.Module:
    """Replace, in place, each number by what stands there in `whole`; return the model, which is then the cut one."""
    originals = dict(whole.named_parameters())
    for name, parameter in numbered.named_parameters():
        parameter.data = originals[name].detach().flatten()[parameter.detach().long()]
        parameter.requires_grad_(originals[name].requires_grad)
    return numbered


def _zeroed(numbered: nn.Module, whole: nn.Module) -> nn.Module:
    """Return a copy of `whole` with a zero wherever its number was removed."""
    new = deepcopy(whole)
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
    inputs = example
    if example.is_floating_point():
        generator, shape = torch.Generator().manual_seed(0), (max(2, len(example)), *example.shape[1:])
        inputs = torch.randn(shape, generator=generator, dtype=torch.float64).to(example.device)
    expected = _answer(deepcopy(zeroed).double(), inputs)
    try:
        found = _answer(deepcopy(new).double(), inputs)
    except Exception as error:  # of any class, from the model's own code: the sizes do not fit
        return _first_line(error)
    difference = float((found - expected).abs().max())
    # An untrained net's answers may hardly depend on its inputs: what counts is how much they do.
    spread = float((expected.amax(0) - expected.amin(0)).max())
    allowed = TOLERANCE * spread + NOISE * float(expected.abs().max())
    return "" if difference <= allowed else f"the answers differ by {difference:.2g} from those with zeroed channels"


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
    for name in scores:
        checks.choice("layer in scores", name, [name for name, _ in model.named_modules()])
    whole = _copy(model)
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
    layers = {name: whole.get_submodule(name) for name in table["layer"]}
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
    new = deepcopy(model)
    checks.choice("name", name, [name for name, module in new.named_modules() if _is_residual(module)])
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
    """
    checks.not_empty("inputs", inputs)
    checks.positive("batch_size", batch_size)
    new = deepcopy(model)
    norms = [module for module in new.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    where = next(new.parameters()).device
    with _refreshing(new, norms):
        seen = 0
        for batch in inputs.tensor_split(math.ceil(len(inputs) / batch_size)):  # none of a single example
            seen += len(batch)
            for norm in norms:
                norm.momentum = len(batch) / seen
            new(training.channels_last(batch.to(where)))
    return new


@contextmanager
def _refreshing(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
