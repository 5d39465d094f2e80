"""Tests of `helpers.pruning.coupling`."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import measure, nets, pruning, quantization
from helpers.pruning import Group, coupling
from tests.pruning.removal_examples import (
    ANY,
    CIFAR_GROUPS,
    DIGITS,
    IMAGES,
    PHOTOS,
    ROWS,
    TEXTS,
    Net,
    answers,
    answers_with_zeroed,
    assert_close,
    conv_net,
    dense,
    filter_norms,
    photos,
    random_keep,
    randomise,
    step,
    zeroed_by_hand,
)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return randomise(nets.CifarNet((8, 12, 16, 24))).double()


@pytest.fixture
def keep() -> dict[str, torch.Tensor]:
    return random_keep(CIFAR_GROUPS)


def test_groups_of_our_nets(net):
    assert pruning.groups(net, IMAGES) == CIFAR_GROUPS
    lenet = [Group(("conv1",), 20), Group(("conv2",), 50), Group(("fc1",), 500)]
    assert pruning.groups(nets.lenet5(), DIGITS.float()) == lenet
    assert [g.name for g in pruning.groups(nets.lenet_300_100(), DIGITS.float())] == ["fc1", "fc2"]


def test_the_frozen_body_of_a_resnet_is_cut_like_a_trained_one():
    """Trap: transfer freezes the body, and then torch-pruning's own graph has none of its layers."""
    import torch_pruning
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=2)
    images = torch.randn(2, 3, 64, 64)
    frozen = deepcopy(model).requires_grad_(False)
    frozen.fc.requires_grad_(True)
    seen = torch_pruning.DependencyGraph().build_dependency(deepcopy(frozen), images).module2node
    assert [module for module in seen if isinstance(module, nn.Conv2d)] == []
    groups = pruning.groups(frozen, images)
    assert len(groups) == 12 and groups == pruning.groups(model, images)
    keep = random_keep(groups)
    new, expected = (pruning.remove_filters(net, keep, images) for net in (frozen, model))
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), expected.parameters(), strict=True))
    assert [name for name, p in new.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]
    body = [name for name, _ in new.named_parameters() if not name.startswith("fc")]
    assert step(pruning.refresh_batchnorm(new, images), images) == body


def test_grouped_convolutions_are_cut_alike_in_each_part():
    model = conv_net(F.relu, nn.Conv2d(8, 8, 3, padding=1, groups=2))
    assert pruning.groups(model, IMAGES) == [Group(("0",), 8, 2), Group(("1",), 8, 2)]
    keep = {"0": torch.tensor([0, 1, 1, 0] * 2) > 0, "1": torch.tensor([1, 1, 0, 1] * 2) > 0}
    places = [(name, "out", ~mask) for name, mask in keep.items()]
    expected = answers_with_zeroed(model, places, IMAGES)
    assert_close(answers(pruning.remove_filters(model, keep, IMAGES), IMAGES), expected)
    with pytest.raises(ValueError, match=r"different channels in the 2 parts"):
        pruning.remove_filters(model, {"0": torch.arange(8) > 2}, IMAGES)
    chosen = pruning.choose_filters(model, filter_norms(model), IMAGES, macs_ratio=1.5, round_to=1)
    new = pruning.remove_filters(model, chosen, IMAGES)
    assert measure.count_macs(model, IMAGES) / measure.count_macs(new, IMAGES) >= 1.5


def test_other_parametrizations_are_refused(net):
    quantized = quantization.quantize_model(net.float(), weights={"conv2.conv": 4})
    with pytest.raises(ValueError, match="model has a parametrization on 'conv2.conv'; allowed: masks"):
        pruning.groups(quantized, IMAGES.float())


def test_several_outputs_are_refused(net):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x), x

    with pytest.raises(ValueError, match="model returns a tuple; allowed: one tensor"):
        pruning.groups(Two(), IMAGES)


def test_group_scores_by_hand():
    groups = [Group(("a", "b"), 2), Group(("c",), 3), Group(("d",), 1)]
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, 20.0]), "d": torch.tensor([5.0])}
    found = pruning.group_scores(scores | {"elsewhere": torch.ones(7)}, groups)
    assert list(found) == ["a", "d"]
    assert found["a"].tolist() == [11, 22] and found["d"].tolist() == [5]
    assert scores["a"].tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"scores\['c'\] has the shape \(2,\); allowed: \(3,\)"):
        pruning.group_scores({"c": torch.ones(2)}, groups)


@pytest.mark.parametrize("name", [name for name in ANY if name != "a float32 constant"])
def test_any_network_is_cut(name):
    """relu, and what else is here, makes zero of zero: so zeroed filters are zeroed channels."""
    model, example = ANY[name]
    keep = {"a": torch.arange(8) > 2}
    assert pruning.groups(model, example)[0] == Group(("a",), 8)
    new, zeroed = pruning.remove_filters(model, keep, example), pruning.zero_filters(model, keep, example)
    assert len(new.a.weight) == 5 and new.a.weight.dtype == model.a.weight.dtype
    expected = zeroed_by_hand(model, example)
    rough = 0.02 if example.dtype in (torch.bfloat16, torch.half) or name == "autocast" else 1e-5
    for found in (answers(new, example), answers(zeroed, example)):
        assert float((found - expected).abs().max()) <= rough
    assert float((expected - answers(model, example)).abs().max()) > 0.02, "zeroing must matter"
    keep = pruning.choose_filters(model, {"a": torch.arange(8.0)}, example, macs_ratio=1.2, round_to=1)
    assert keep["a"].tolist() == sorted(keep["a"].tolist()), "those with the smallest scores go"


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (dense(lambda net, x: net.b(net.c(net.a(x).relu(), torch.zeros(len(x), 8))), c=nn.GRUCell(8, 8)), ROWS),
        (photos(lambda net, x: net.b(torch.flatten(net.a(x).relu())), nn.Linear(288, 3)), PHOTOS[:1]),
    ],
    ids=["a cell", "flattened with the batch"],
)
def test_what_torch_pruning_loses_count_of_is_refused_by_name(model, example):
    assert pruning.groups(model, example) == []
    with pytest.raises(
        ValueError, match="keep has 'a', but torch-pruning follows its channels to more .* allowed: none"
    ):
        pruning.remove_filters(model, {"a": torch.arange(8) > 2}, example)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("channels", [8, 2])
def test_a_depthwise_convolution_is_cut_channel_by_channel(kind, channels):
    layers = {"a": nn.Conv2d(3, channels, 3), "c": kind(channels, channels, 3, groups=channels)}
    torch.manual_seed(0)
    model = Net(lambda net, x: net.b(net.c(net.a(x).relu())).flatten(1), **layers, b=nn.Conv2d(channels, 2, 3))
    keep = {"a": torch.arange(channels) > (channels - 1) // 3}
    assert pruning.groups(model, PHOTOS) == [Group(("a", "c"), channels)]
    expected = answers_with_zeroed(model, [("c", "out", ~keep["a"])], PHOTOS)
    assert torch.allclose(answers(pruning.remove_filters(model, keep, PHOTOS), PHOTOS), expected, atol=1e-6)


@pytest.mark.parametrize("groups", [2, 4])
def test_a_transposed_convolution_in_groups_is_left_as_it_is(groups):
    model = photos(lambda net, x: net.b(net.c(net.a(x))).flatten(1), c=nn.ConvTranspose2d(8, 8, 3, groups=groups))
    assert pruning.groups(model, PHOTOS) == []
    for name in ("a", "c"):
        with pytest.raises(ValueError, match=f"keep has '{name}', but its channels meet a transposed convolution in"):
            pruning.remove_filters(model, {name: torch.arange(8) % (8 // groups) > 0}, PHOTOS)


def test_a_decoder_tied_to_its_embedding():
    model = dense(lambda net, x: net.d(net.c(net.e(x).mean(1)).relu()), e=nn.Embedding(9, 6), c=nn.Linear(6, 6))
    model.d = nn.Linear(6, 9)
    model.d.weight = model.e.weight
    assert pruning.groups(model, TEXTS) == []
    with pytest.raises(ValueError, match=r"keep has 'c', but its channels meet 'e.weight', which several layers share"):
        pruning.remove_filters(model, {"c": torch.arange(6) > 0}, TEXTS)


def test_the_search_takes_no_longer_for_each_step_of_many():
    """Counted, not timed: each position of each place is gone on from once, where torch-pruning takes cubic time."""

    def count(steps: int) -> int:
        def function(net, x):
            state = net.a(x)
            for _ in range(steps):
                state = torch.tanh(net.c(state) + net.d(x))
            return net.b(state)

        model = dense(function, c=nn.Linear(8, 8), d=nn.Linear(6, 8))
        graph = coupling._trace(model, ROWS)
        calls = []
        for node in graph.module2node.values():
            for dependency in node.dependencies:
                dependency.index_mapping = [lambda given: calls.append(len(given)) or given, None]
        assert len(coupling._all_coupled(graph, 3)[0].group.layers) == 3
        return sum(calls)

    few, many = count(10), count(40)
    assert many <= 4.5 * few


def test_gradients_are_not_copied(net, keep):
    net(IMAGES).sum().backward()
    assert all(parameter.grad is None for parameter in coupling.copy(net).parameters())
    zeroed = pruning.zero_filters(net, keep, IMAGES)
    assert all(parameter.grad is None for parameter in zeroed.parameters())


def test_channels_between_convolutions_of_2_and_3_groups_are_cut_alike_in_6_parts():
    layers = [nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=2), nn.Conv2d(12, 12, 1, groups=3)]
    torch.manual_seed(0)
    model = nn.Sequential(*layers, nn.Conv2d(12, 2, 8), nn.Flatten()).double()
    found = pruning.groups(model, IMAGES[:, :, :8, :8])
    assert {group.name: group.parts for group in found} == {"0": 2, "1": 6, "2": 3}
    keep = {"1": torch.tensor([True, False] * 6)}
    new = pruning.remove_filters(model, keep, IMAGES[:, :, :8, :8])
    assert_close(
        answers(new, IMAGES[:, :, :8, :8]), answers_with_zeroed(model, [("1", "out", ~keep["1"])], IMAGES[:, :, :8, :8])
    )


def test_models_without_weights():
    assert pruning.groups(nn.Sequential(nn.ReLU(), nn.Flatten()), ROWS) == []
    with pytest.raises(
        ValueError, match="model has a lazy layer without weights yet; allowed: a model that was called"
    ):
        pruning.groups(nn.Sequential(nn.Linear(6, 4), nn.LazyLinear(2)), ROWS)
