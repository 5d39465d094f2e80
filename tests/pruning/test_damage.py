"""Tests of `helpers.pruning.damage`."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from helpers import nets, pruning
from helpers.data import Split
from tests.pruning.scores_examples import (
    LABELS,
    Attending,
    ByHand,
    Calling,
    InPlace,
    OneAtATime,
    Viewed,
    damage_by_hooks,
    random_numbers,
    seeded,
    taylor_by_hooks,
    unsettle,
)


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


@pytest.fixture
def points() -> Split:
    labels = torch.randint(3, (20,), generator=torch.Generator().manual_seed(2))
    return Split(random_numbers(20, 3, seed=3), labels)


@pytest.mark.parametrize("layer", ["stem", "conv1", "res1.block1", "res1.block2", "conv3", "res2.block2"])
def test_damage_equals_brute_force(net, images, layer):
    expected = damage_by_hooks(net, images, net.get_submodule(layer).bn)
    assert expected.abs().max() > 1e-4
    for batch_size in (4, 10):
        found = pruning.removal_damage(net, images, f"{layer}.conv", batch_size=batch_size)
        assert torch.allclose(found, expected, atol=1e-12)


def test_damage_is_the_same_with_batch_normalization_folded(net, images):
    """Folded, a filter is its weights and its bias, and the rest of the network cannot tell."""
    block = net.res1.block1
    expected = pruning.removal_damage(net, images, "res1.block1.conv")
    block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
    assert torch.allclose(pruning.removal_damage(net, images, "res1.block1.conv"), expected)
    changed = deepcopy(net)
    changed.res1.block1.conv.weight.data[2] = 0
    changed.res1.block1.conv.bias.data[2] = 0
    losses = [F.cross_entropy(model(images.inputs), images.labels) for model in (changed, net)]
    assert torch.allclose(losses[0] - losses[1], expected[2])


@pytest.mark.parametrize(("layer", "site"), [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "conv3"), ("fc", "fc")])
def test_damage_where_outputs_are_overwritten_in_place(images, layer, site):
    torch.manual_seed(0)
    model = unsettle(InPlace())
    expected = damage_by_hooks(model, images, model.get_submodule(site))
    assert torch.allclose(pruning.removal_damage(model, images, layer), expected, atol=1e-12)


def test_damage_of_a_masked_network(net, images):
    masks = pruning.layer_masks(net, 0.6)
    expected = pruning.removal_damage(pruning.bake(pruning.mask(net, masks)), images, "conv2.conv")
    assert torch.equal(pruning.removal_damage(pruning.mask(net, masks), images, "conv2.conv"), expected)
    assert not torch.allclose(pruning.removal_damage(net, images, "conv2.conv"), expected)


def test_a_layer_that_is_called_twice_is_refused(tiny, points):
    shared = nn.Sequential(layer := nn.Linear(3, 3), nn.Tanh(), layer).double()
    with pytest.raises(ValueError, match="2 times"):
        pruning.removal_damage(shared, points, "0")


class Keywords(Viewed):
    """Every layer called by keyword."""

    def forward(self, x):
        return self.fc(input=torch.relu(self.bn(input=self.conv(input=x))).flatten(1))


class Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv3d(1, 3, 2), nn.BatchNorm3d(3), nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x.reshape(len(x), 1, 2, 5, 5)))).mean((2, 3, 4)))


class Windows(nn.Module):
    """The layer sees four windows of each image as four rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 2), nn.Linear(3, 3)

    def forward(self, x):
        rows = torch.cat([x[..., :3, :3], x[..., 2:, :3], x[..., :3, 2:], x[..., 2:, 2:]])
        return self.fc(torch.relu(self.conv(rows)).mean((2, 3)).unflatten(0, (4, len(x))).amax(0))


class RowByRow(nn.Module):
    """The layer sees one image after the other, without a dimension for the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 2), nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(torch.stack([torch.relu(self.conv(image)).mean((1, 2)) for image in x]))


class Skips(nn.Module):
    """A part leaves something behind that a later one takes away, and writes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[torch.Tensor] = []
        self.down, self.conv, self.fc = Calling(nn.Conv2d(2, 3, 3), self.leave), nn.Conv2d(3, 3, 1), nn.Linear(3, 3)

    def leave(self, layer, x):
        self.left.append(layer(x))
        return self.left[-1].tanh()

    def forward(self, x):
        return self.fc((self.conv(self.down(x)) + self.left.pop()).relu().mean((2, 3)))


class Overwriting(nn.Module):
    """Adds to the output of its stem in place: doing so twice gives something else."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.first = Calling(nn.Conv2d(2, 3, 3), self.count)
        self.stem, self.conv, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 3)

    def count(self, layer, x):
        self.seen += 1
        return layer(x).tanh()

    def forward(self, x):
        x = self.stem(self.first(x))
        x.add_(1)
        return self.fc((self.conv(x).tanh() + x[:, :1]).mean((2, 3)))


KINDS = {
    "views": (Viewed, "conv", "bn"),
    "keywords": (Keywords, "conv", "bn"),
    "one at a time": (OneAtATime, "conv", "bn"),
    "volumes": (Volumes, "conv", "bn"),
    "side effects": (Skips, "conv", "conv"),
    "overwriting": (Overwriting, "conv", "conv"),
    "windows": (Windows, "conv", "conv"),
    "row by row": (RowByRow, "conv", "conv"),
}


def answers_one_by_one(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([model(one[None]) for one in inputs])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 2, 4, 250])
def test_any_network_equals_brute_force(kind, batch_size):
    build, layer, site = KINDS[kind]
    model = seeded(build)
    split = Split(random_numbers(6, 2, 5, 5, seed=1), LABELS)
    dim = -4 if kind == "volumes" else -3
    expected = taylor_by_hooks(model, split, model.get_submodule(site), 3, dim)
    assert expected.min() > 0
    found = pruning.taylor_scores(model, split, batch_size=batch_size)
    assert torch.allclose(found[layer], expected, rtol=1e-9)
    assert torch.allclose(found["fc"], taylor_by_hooks(model, split, model.fc, 3, -1), rtol=1e-9)

    loss = F.cross_entropy(answers_one_by_one(model, split.inputs), split.labels)
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    gradients = pruning.gradients(model, split, batch_size=batch_size)
    for (name, _), slope in zip(model.named_parameters(), slopes, strict=True):
        assert torch.allclose(gradients[name], slope, atol=1e-12), name

    if kind == "row by row":
        with pytest.raises(ValueError, match="layer='conv' is called [24-6] times"):
            pruning.removal_damage(model, split, layer, batch_size=max(2, batch_size))
        return
    damage = []
    for channel in range(3):

        def close(module, inputs, output, channel=channel):
            kept = torch.arange(3) != channel
            return output * kept.view([-1] + [1] * (output.dim() - 1 - dim % output.dim()))

        hook = model.get_submodule(site).register_forward_hook(close)
        with torch.no_grad():
            damage.append(F.cross_entropy(answers_one_by_one(model, split.inputs), split.labels) - loss.detach())
        hook.remove()
    found = pruning.removal_damage(model, split, layer, batch_size=batch_size)
    assert torch.allclose(found, torch.stack(damage), atol=1e-12)


def test_what_was_overwritten_alone_computes_again():
    """The module before the one whose output is overwritten hands out what it computed: it runs once for a batch."""
    counts = []
    for channels in (3, 40):
        model = seeded(Overwriting)
        model.conv, model.fc = nn.Conv2d(3, channels, 1).double(), nn.Linear(channels, 3).double()
        runs: list[int] = []
        model.first.call = lambda layer, x, runs=runs: (runs.append(1), layer(x).tanh())[1]
        pruning.removal_damage(model, Split(random_numbers(6, 2, 5, 5), LABELS), "conv")
        counts.append(len(runs))
    assert counts[0] == counts[1]


@pytest.fixture
def sequences() -> Split:
    return Split(random_numbers(6, 5, 4, seed=5), LABELS)


def test_damage_in_an_encoder_layer(sequences):
    """In evaluation mode torch's fast path would leave the layers uncalled."""
    model = seeded(Attending)
    by_hand = ByHand(model)
    losses = []
    for unit in range(6):
        hook = model.encoder.linear1.register_forward_hook(partial(_without_unit, torch.arange(6) != unit))
        losses.append(F.cross_entropy(by_hand(sequences.inputs), LABELS).detach())
        hook.remove()
    expected = torch.stack(losses) - F.cross_entropy(by_hand(sequences.inputs), LABELS).detach()
    assert torch.allclose(pruning.removal_damage(model, sequences, "encoder.linear1"), expected, atol=1e-12)
    with pytest.raises(ValueError, match="layer='encoder.self_attn.out_proj' is called 0 times"):
        pruning.removal_damage(model, sequences, "encoder.self_attn.out_proj")


def _without_unit(keep: torch.Tensor, module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output * keep


def test_batch_normalization_that_does_not_read_the_layer_itself():
    """A ReLU in place hands on the very tensor that the layer made: what is read is not the layer's output."""
    split = Split(random_numbers(6, 2, 5, 5, seed=1), LABELS)

    def build(inplace):
        layers = [nn.Conv2d(2, 3, 3), nn.ReLU(inplace=inplace), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 3)]
        return unsettle(seeded(lambda: nn.Sequential(*layers)))

    beside, inplace = build(False), build(True)
    inplace.load_state_dict(beside.state_dict())
    for use in (lambda m: pruning.taylor_scores(m, split)["0"], lambda m: pruning.removal_damage(m, split, "0")):
        assert torch.allclose(use(inplace), use(beside))
    assert torch.allclose(pruning.removal_damage(beside, split, "0"), damage_by_hooks(beside, split, beside[0]))


@pytest.mark.parametrize(
    "call",
    [
        lambda part, x: part[1](part[0](x)) + part[1](part[2](x)),  # one normalization of two layers
        lambda part, x: part[1](part[0](x)) + part[3](part[0](x)),  # two of one
        lambda part, x: part[1](part[0](x)) + part[0](x),  # one, and none
    ],
)
def test_batch_normalization_that_is_shared_is_refused(call):
    parts = nn.ModuleList([nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)])
    model = seeded(lambda: Calling(parts, lambda part, x: call(part, x).mean((2, 3))))
    split = Split(random_numbers(6, 2, 5, 5), LABELS)
    for use in (
        partial(pruning.taylor_scores, names=["layer.0"]),
        partial(pruning.removal_damage, layer="layer.0"),
    ):
        with pytest.raises(ValueError, match="layer 'layer.0' shares a batch normalization"):
            use(model, split)
