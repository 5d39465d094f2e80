"""Tests of `helpers.pruning.filters`."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from helpers import nets, pruning
from helpers.data import Split
from tests.pruning.scores_examples import random_numbers, unsettle


@pytest.fixture
def net() -> nn.Module:
    """A CIFAR net, plain and residual parts, thin enough for brute force."""
    torch.manual_seed(0)
    return unsettle(nets.CifarNet((3, 4, 5, 6), classes=4))


@pytest.fixture
def images() -> Split:
    labels = torch.randint(4, (10,), generator=torch.Generator().manual_seed(2))
    return Split(random_numbers(10, 3, 32, 32, seed=1), labels)


@pytest.fixture
def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.mark.parametrize(("norm", "expected"), [(1, [10.0, 3.0]), (2, [30**0.5, 5**0.5])])
def test_filter_norms(norm, expected):
    model = nn.Sequential(nn.Conv2d(1, 2, 2, bias=False), nn.Flatten(), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[[[1.0, -2.0], [3.0, -4.0]]], [[[0.0, 0.0], [-1.0, 2.0]]]])
    scores = pruning.filter_norms(model, norm=norm)
    assert scores.keys() == {"0", "2"}
    assert scores["0"].tolist() == pytest.approx(expected)
    assert not scores["0"].requires_grad
    assert pruning.filter_norms(model, names=["2"]).keys() == {"2"}


def test_masked_weights_count_as_zero(tiny):
    masks = {"0.weight": torch.tensor([[True], [False], [True], [True]]).expand(4, 3).clone()}
    scores = pruning.filter_norms(pruning.mask(tiny, masks))["0"]
    assert scores[1] == 0
    assert torch.equal(scores[[0, 2, 3]], pruning.filter_norms(tiny)["0"][[0, 2, 3]])


def test_random_scores_depend_on_the_seed_alone(net):
    first, again, other = (pruning.random_filter_scores(net, seed=seed) for seed in (1, 1, 2))
    assert {name: len(score) for name, score in first.items()}["conv3.conv"] == 6
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert all(((score >= 0) & (score < 1)).all() for score in first.values())


@pytest.mark.parametrize(
    "use",
    [
        lambda model, split: pruning.filter_norms(model),
        lambda model, split: pruning.random_filter_scores(model),
        lambda model, split: pruning.taylor_scores(model, split),
        lambda model, split: pruning.gradients(model, split),
        lambda model, split: pruning.hessian_diagonal(model, split, samples=2),
        lambda model, split: pruning.largest_eigenvalues(model, split, iterations=2),
        lambda model, split: pruning.removal_damage(model, split, "conv2.conv"),
    ],
)
def test_the_model_stays_as_it_is_and_frozen_layers_are_scored(net, images, use):
    expected = use(net, images)
    net.train()
    net.conv2.conv.weight.requires_grad_(False)
    before = deepcopy(net.state_dict())
    found = use(net, images)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.training and net.conv2.bn.training
    assert not net.conv2.conv.weight.requires_grad and net.conv1.conv.weight.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks or "forward" in vars(module) for module in net.modules())
    assert str(found) == str(expected)  # in evaluation mode whatever the model's own; frozen or not


def test_norms_of_transposed_convolutions():
    """Two groups: output channels 0 and 1 read the first three inputs, 2 and 3 the others."""
    layer = nn.ConvTranspose2d(6, 4, 2, groups=2)
    for channel in range(4):
        weights = layer.weight.detach()[3 * (channel // 2) : 3 * (channel // 2) + 3, channel % 2]
        assert pruning.filter_norms(nn.Sequential(layer))["0"][channel] == pytest.approx(float(weights.abs().sum()))
        with torch.no_grad():
            made = layer(torch.ones(1, 6, 1, 1))[0, channel].sum() - 4 * layer.bias[channel]
        assert float(made) == pytest.approx(float(weights.sum()), abs=1e-5)
    assert len(pruning.random_filter_scores(nn.Sequential(layer))["0"]) == 4


def test_large_norms_of_half_precision_do_not_overflow():
    model = nn.Sequential(nn.Linear(300, 1)).half()
    model[0].weight.data.fill_(1000)
    assert pruning.filter_norms(model)["0"].tolist() == [300_000]
    model[0].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="model: the norms of '0' holds NaN"):
        pruning.filter_norms(model)
