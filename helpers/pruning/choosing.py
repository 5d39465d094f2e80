"""Which filters to remove for a given number of multiplications."""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from helpers import measure
from helpers.core import checks
from helpers.pruning.coupling import CUTTABLE, Coupled, Group, Keep, channels_of, copy, survey_of
from helpers.pruning.removal import compared, cut_numbers, fill, first_names_of_layers, positions_of

FilterScores = Mapping[str, Float[Tensor, " _"]]
SCOPES = ("global", "uniform")


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
    whole = copy(model)
    first = first_names_of_layers(whole)
    scores = {first[checks.choice("layer in scores", name, first)]: values for name, values in scores.items()}
    survey = survey_of(whole, example)
    found = [coupled.group for coupled in survey if not coupled.obstacle]
    summed = checks.not_empty("scores of groups that can be cut", group_scores(scores, found))
    scored = [group for group in found if group.name in summed]
    ranking = _Ranking(scored, summed, scope=scope, round_to=round_to, at_least=at_least)
    one = example[:1]
    predict = _predictor(whole, survey, one)
    before = predict({})
    fewest = ranking.masks(ranking.counts(ranking.total))
    smallest = measure.count_macs(compared(whole, fewest, survey, example)[0], one)  # raises if it cannot be cut
    if not 1 <= macs_ratio <= before / smallest:
        raise ValueError(
            f"macs_ratio={macs_ratio!r}; allowed: 1 to {before / smallest:.3g}, with these groups and roundings"
        )
    predictable = predict(fewest) == smallest

    def ratio(counts: list[int]) -> float:
        masks = ranking.masks(counts)
        if predictable:
            return before / predict(masks)
        return before / measure.count_macs(fill(cut_numbers(whole, masks, survey), whole), one)

    dropped = bisect_left(range(ranking.total), macs_ratio, key=lambda dropped: ratio(ranking.counts(dropped)))
    counts = ranking.counts(dropped)
    for index in ranking.best_dropped_first(counts):  # rounding several groups down has often dropped too many
        while (more := ranking.one_step_more(counts, index)) != counts and ratio(more) >= macs_ratio:
            counts = more
    return ranking.masks(counts)


def _predictor(whole: nn.Module, survey: list[Coupled], example: Tensor) -> Callable[[Keep], int]:
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
        for (name, cut), positions in positions_of(masks, survey).items():
            if name in left and isinstance(layers[name], CUTTABLE):
                left[name] *= 1 - len(positions) / _extent(layers[name], cut)
        return round(elsewhere + sum(left.values()))

    return predict


def _extent(layer: Any, cut: Any) -> int:
    """Return how many positions there are for torch-pruning's function `cut` to remove."""
    if cut.__name__ == "prune_out_channels":  # a depthwise convolution's only one
        return channels_of(layer)
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
