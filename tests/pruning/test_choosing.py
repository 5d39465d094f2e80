"""Tests of `helpers.pruning.choosing`."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from helpers import measure, nets, pruning
from helpers.pruning import Group, choosing
from tests.pruning.removal_examples import (
    CIFAR_GROUPS,
    IMAGES,
    ROWS,
    conv_net,
    dense,
    filter_norms,
    random_keep,
    randomise,
)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return randomise(nets.CifarNet((8, 12, 16, 24))).double()


@pytest.fixture
def keep() -> dict[str, torch.Tensor]:
    return random_keep(CIFAR_GROUPS)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.LayerNorm([8, 30, 30])])
def test_a_norm_over_channels_is_refused(norm):
    model = conv_net(lambda x: x, norm)
    assert pruning.groups(model, IMAGES) == []
    with pytest.raises(ValueError, match=rf"keep has '0', but its channels pass a {type(norm).__name__}"):
        pruning.remove_filters(model, {"0": torch.arange(8) > 2}, IMAGES)
    with pytest.raises(ValueError, match="scores of groups that can be cut is empty"):
        pruning.choose_filters(model, filter_norms(model), IMAGES, macs_ratio=1.2)


def test_what_torch_pruning_cannot_follow_is_refused():
    import torchvision

    model = torchvision.models.shufflenet_v2_x0_5(weights=None)
    images, scores = torch.randn(2, 3, 64, 64), filter_norms(model)
    with pytest.raises(ValueError, match=r"model=ShuffleNetV2 cannot be followed .*ZeroDivisionError.*; try "):
        pruning.choose_filters(model, scores, images, macs_ratio=2, round_to=8)


def macs_ratio(model: nn.Module, keep: dict[str, torch.Tensor]) -> float:
    new = pruning.remove_filters(model, keep, IMAGES)
    return measure.count_macs(model, IMAGES) / measure.count_macs(new, IMAGES)


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize(
    ("ratio", "round_to", "at_least"), [(1.0, 8, 0.1), (1.7, 1, 0.1), (2.0, 4, 0.5), (3.0, 4, 0.0)]
)
def test_choose_keeps_the_best_rounds_and_reaches_the_ratio(net, scope, ratio, round_to, at_least):
    scores = filter_norms(net)
    options = {"scope": scope, "round_to": round_to, "at_least": at_least}
    keep = pruning.choose_filters(net, scores, IMAGES, macs_ratio=ratio, **options)
    assert list(keep) == [group.name for group in CIFAR_GROUPS]
    assert ratio <= macs_ratio(net, keep) < ratio * 1.3
    for group in CIFAR_GROUPS:
        values, mask = sum(scores[name] for name in group.layers), keep[group.name]
        assert int(mask.sum()) % round_to == 0 or mask.all()
        assert int(mask.sum()) >= max(1, min(round_to, group.channels), at_least * group.channels)
        if not mask.all():
            assert values[mask].min() > values[~mask].max()
            best = torch.arange(group.channels) == int(values.masked_fill(mask, -1).argmax())
            assert macs_ratio(net, keep | {group.name: mask | best}) < ratio or round_to > 1
    if ratio == 1:
        assert all(mask.all() for mask in keep.values())


def test_uniform_drops_the_same_fraction_everywhere(net):
    keep = pruning.choose_filters(net, filter_norms(net), IMAGES, macs_ratio=3, scope="uniform", round_to=1)
    shares = [float(mask.float().mean()) for mask in keep.values()]
    assert max(shares) - min(shares) <= 2 / 8


def test_global_compares_scores_relative_to_their_groups_mean():
    """By hand: relative to its mean of 4, fc1's 1 is 0.25; fc2's 600 is 0.6, although 600 is larger than any of fc1."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    scores = {"0": torch.tensor([1.0, 2.0, 6.0, 7.0]), "2": torch.tensor([1400.0, 1300.0, 600.0, 700.0])}
    sizes = [(4, 4), (3, 4), (2, 4), (2, 3), (2, 2), (2, 1), (1, 1)]  # 0.25, 0.5, 0.6, 0.7, 1.3, then fc1 before 1.4
    macs = [6 * first + first * second + 2 * second for first, second in sizes]
    for (first, second), mac in zip(sizes, macs, strict=True):
        options = {"macs_ratio": macs[0] / mac, "round_to": 1, "at_least": 0}
        keep = pruning.choose_filters(model, scores, torch.randn(2, 6), **options)
        assert [int(mask.sum()) for mask in keep.values()] == [first, second]
    for larger, smaller in pairwise(macs):
        between = macs[0] / (larger + smaller) * 2
        keep = pruning.choose_filters(model, scores, torch.randn(2, 6), macs_ratio=between, round_to=1, at_least=0)
        new = pruning.remove_filters(model, keep, torch.randn(2, 6))
        best = 12 if smaller == 9 else smaller  # from (1, 1), fc2 may take its second best neuron back
        assert measure.count_macs(new, torch.randn(2, 6)) == best, "the next one from above"


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_a_model_whose_macs_cannot_be_predicted_is_cut_to_count_them(net, monkeypatch, scope):
    options = {"macs_ratio": 2.3, "round_to": 1, "scope": scope}
    whole_macs = measure.count_macs(net, IMAGES)
    found = pruning.choose_filters(net, filter_norms(net), IMAGES, **options)
    monkeypatch.setattr(
        choosing, "_predictor", lambda whole, survey, example: lambda masks: 10**7 if masks else whole_macs
    )
    expected = pruning.choose_filters(net, filter_norms(net), IMAGES, **options)
    assert found.keys() == expected.keys()
    assert all(mask.equal(expected[name]) for name, mask in found.items())


def test_groups_without_scores_stay_whole(net):
    scores = {"conv2.conv": torch.arange(16.0)}
    keep = pruning.choose_filters(net, scores, IMAGES, macs_ratio=1.05, round_to=1)
    assert list(keep) == ["conv2.conv"]
    mask = keep["conv2.conv"]
    assert not mask.all() and torch.equal(mask, torch.arange(16) >= int((~mask).sum()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"macs_ratio": 0.9}, r"macs_ratio=0.9; allowed: 1 to \d"),
        ({"macs_ratio": 1e6}, r"macs_ratio=1000000.0; allowed: 1 to \d"),
        ({"macs_ratio": math.nan}, "macs_ratio=nan; allowed"),
        ({"scope": "local"}, "scope='local' is unknown; allowed: 'global', 'uniform'"),
        ({"round_to": 0}, "round_to=0; allowed: a whole number"),
        ({"at_least": 1.5}, r"at_least=1.5 is outside \[0, 1\]"),
        ({"scores": {"conv9": torch.ones(3)}}, "layer in scores='conv9' is unknown"),
        ({"scores": {"fc": torch.ones(10)}}, "scores of groups that can be cut is empty"),
        ({"scores": {"conv2.conv": torch.ones(15)}}, r"scores\['conv2.conv'\] has the shape \(15,\)"),
        ({"scores": {"conv2.conv": torch.full((16,), math.nan)}}, "scores has values that are not finite"),
    ],
)
def test_bad_choices(net, change, said):
    options = {"scores": filter_norms(net), "macs_ratio": 2.0} | change
    with pytest.raises(ValueError, match=said):
        pruning.choose_filters(net, options.pop("scores"), IMAGES, **options)


def test_a_step_more_is_taken_at_exactly_the_ratio():
    """By hand: 6a + ab + 2b MACs are 128, 88 with half of the second layer (whose scores are the lowest), 48 with half
    of both, and 72, the ratio asked for, if the second layer then gets its half back."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    scores = {"0": 10 + torch.arange(8.0), "2": torch.arange(8.0)}
    keep = pruning.choose_filters(model, scores, ROWS, macs_ratio=128 / 72, round_to=4, at_least=0)
    assert {name: int(mask.sum()) for name, mask in keep.items()} == {"0": 4, "2": 8}


@pytest.mark.parametrize(
    ("at_least", "round_to", "stays"),
    [(0.3, 1, 3), (0.21, 1, 3), (0.2, 1, 2), (0.0, 1, 1), (0.0, 4, 4), (0.4, 4, 4), (0.41, 4, 8), (0.81, 4, 10)],
)
def test_at_least_is_rounded_up(at_least, round_to, stays):
    """Of 10 channels, 0.21 are more than 2; in steps of 4, 0.41 are 8, and 0.81 are all."""
    groups, scores = [Group(("a",), 10)], {"a": torch.arange(10.0)}
    ranking = choosing._Ranking(groups, scores, scope="global", round_to=round_to, at_least=at_least)
    assert ranking.counts(10) == [stays]


def test_scores_of_both_signs_are_relative_to_their_size():
    """Their mean may be near zero, and then everything would be far above it or far below."""
    assert choosing._relative(torch.tensor([-3.0, 1.0, 2.0])).tolist() == [-1.5, 0.5, 1.0]


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ([1, 2], "example is no batch; allowed"),
        (torch.tensor(1.0), "example is no batch; allowed"),
        (ROWS[:0], "example is no batch; allowed"),
        (
            ROWS[:, :5],
            r"example has the shape \(4, 5\) and torch.float32, which model=Net does not take .RuntimeError: mat1",
        ),
        (ROWS.double(), r"example has the shape \(4, 6\) and torch.float64, which model=Net does not take"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_examples(example, said):
    scores = {"a": torch.arange(8.0)}
    for call in (
        lambda: pruning.groups(dense(), example),
        lambda: pruning.remove_filters(dense(), {"a": torch.arange(8) > 2}, example),
        lambda: pruning.choose_filters(dense(), scores, example, macs_ratio=1.2, round_to=1),
    ):
        with pytest.raises(ValueError, match=said):
            call()


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_masks_and_ratios():
    with pytest.raises(ValueError, match=r"keep\['a'\] is a list; allowed: torch.bool \(8,\)"):
        pruning.remove_filters(dense(), {"a": [True] * 8}, ROWS)
    for ratio in ("2", None, True):
        with pytest.raises(ValueError, match=f"macs_ratio={ratio!r} is not a number"):
            pruning.choose_filters(dense(), {"a": torch.arange(8.0)}, ROWS, macs_ratio=ratio)
