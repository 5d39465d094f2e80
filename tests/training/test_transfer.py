"""Transfer: a new head, what is frozen stays frozen, and features are what the head would have read."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, weight_norm

from helpers import nets, training
from helpers.data import Split


@pytest.fixture
def net():
    """Return a convolutional net whose BatchNorm has seen something, in training mode."""
    torch.manual_seed(0)
    model = nets.CifarNet((4, 4, 8, 8)).train()
    for _ in range(3):
        model(torch.randn(16, 3, 32, 32) + 0.5)
    return model


@pytest.fixture
def split():
    torch.manual_seed(1)
    return Split(torch.randn(24, 3, 32, 32), torch.arange(24) % 2)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_features_of_the_test_split_stay_the_test_split(net, split):
    assert not training.features(net, split).is_test
    assert training.features(net, replace(split, is_test=True)).is_test


def test_only_the_head_is_replaced(net):
    before, head = deepcopy(net), nn.Linear(8, 3)
    new = training.replace_head(net, head)
    assert torch.equal(new.fc.weight, head.weight) and new.fc is not head
    new.fc = deepcopy(net.fc)
    assert same(new, net) and same(net, before)


def test_all_but_the_named_is_frozen(net):
    new = training.freeze(net)
    assert trained(new) == {"fc.weight", "fc.bias"}
    assert trained(net) == {name for name, _ in net.named_parameters()}
    assert trained(training.freeze(new, but=["res2.block2", "fc"])) == {
        "fc.weight", "fc.bias", "res2.block2.conv.weight", "res2.block2.bn.weight", "res2.block2.bn.bias",
    }  # fmt: skip


def test_the_last_block_of_resnet18_has_a_name():
    names = trained(training.freeze(nets.resnet18(), but=["layer4.1"]))
    assert {name.rpartition(".")[0] for name in names} == {
        f"layer4.1.{part}" for part in ("conv1", "bn1", "conv2", "bn2")
    }


def test_features_are_what_the_head_reads(net, split):
    seen = []
    evaluating = deepcopy(net).eval()
    evaluating.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    evaluating(split.inputs)
    before = deepcopy(net)
    found = training.features(net, split, batch_size=10)
    torch.testing.assert_close(found.inputs, seen[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(found.labels, split.labels) and found.inputs.shape == (24, 8)
    assert same(net, before) and net.training


def test_features_are_computed_in_batches_of_the_given_size(split):
    class Counts(nn.Module):
        sizes: list[int] = []  # of the class: `features` runs a copy

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, images):
            self.sizes.append(len(images))
            return self.fc(images.mean((2, 3)))

    training.features(Counts(), split, batch_size=10)
    assert Counts.sizes == [10, 10, 4]


def test_training_on_a_frozen_body_changes_the_head_alone_and_is_training_on_features(net, split):
    """Trap: BatchNorm statistics drift in frozen layers."""
    frozen = training.freeze(training.replace_head(net, nn.Linear(8, 2)))
    options = {"epochs": 3, "lr": 0.1, "batch_size": 8, "seed": 4, "progress": False}
    slow = training.fit(frozen, split, **options).model
    fast = training.fit(frozen.fc, training.features(frozen, split), **options).model
    torch.testing.assert_close(slow.fc.weight, fast.weight, rtol=1e-4, atol=1e-5)
    assert not torch.equal(slow.fc.weight, frozen.fc.weight)
    assert same(training.replace_head(slow, frozen.fc), frozen)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_networks_with_torchs_hooks_are_copied(net, split):
    prune.l1_unstructured(net.fc, "weight", 0.5)
    weight_norm(net.stem.conv)
    net(split.inputs).sum().backward()  # leaves computed weights behind, which deepcopy refuses
    net.eval()
    new = training.replace_head(net, nn.Linear(8, 2))
    torch.testing.assert_close(training.features(new, split).inputs, training.features(net, split).inputs)
    assert trained(training.freeze(net)) == {"fc.weight_orig", "fc.bias"}
    head = training.replace_head(new, net.fc).fc
    torch.testing.assert_close(head(torch.eye(8)), net.fc(torch.eye(8)))


def test_a_module_may_go_by_its_second_name(net):
    net.also = net.conv2
    assert trained(training.freeze(net, but=["also"])) == trained(training.freeze(net, but=["conv2"]))
    assert not training.freeze(net, but=["also"]).conv1.conv.weight.requires_grad


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net: training.replace_head(nn.Linear(3, 2), nn.Linear(3, 2)), "model=Linear has no layer 'fc'"),
        (lambda net: training.replace_head(net, 10), "head=10 is a int; allowed: an nn.Module"),
        (lambda net: training.replace_head(net, nn.Linear(512, 2)), "head.in_features=512; allowed: 8"),
        (lambda net: training.freeze(net, but=["layer4"]), "but='layer4' is unknown; allowed: 'stem', "),
        (lambda net: training.freeze(net, but=["pool"]), "but='pool' is unknown"),
        (lambda net: training.freeze(net, but=[]), "but is empty"),
        (lambda net: training.features(net, Split(torch.zeros(0, 3, 32, 32), torch.zeros(0))), "split is empty"),
        (lambda net: training.features(nn.Linear(3, 2), Split(torch.zeros(2, 3), torch.zeros(2))), "has no layer 'fc'"),
    ],
)
def test_bad_arguments_are_named(net, call, words):
    with pytest.raises(ValueError, match=words):
        call(net)
