"""Tests of `helpers.pruning.blocks`."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from helpers import measure, nets, pruning
from helpers.pruning import removal
from tests.pruning.removal_examples import (
    CIFAR_GROUPS,
    IMAGES,
    PHOTOS,
    ROWS,
    answers,
    answers_with_zeroed,
    assert_close,
    photos,
    random_keep,
    randomise,
    step,
)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return randomise(nets.CifarNet((8, 12, 16, 24))).double()


@pytest.fixture
def keep() -> dict[str, torch.Tensor]:
    return random_keep(CIFAR_GROUPS)


def resnet50_places(groups, removed):
    for group in groups:
        block, _, conv = group.name.rpartition(".")
        if group.name == "conv1":
            outs = ["maxpool"]
        elif conv in ("conv1", "conv2"):
            outs = [f"{block}.{conv.replace('conv', 'bn')}"]
        else:
            assert block.endswith(".0"), "the shortcut couples a whole layer to its first block"
            outs = [name.rpartition(".")[0] for name in group.layers if name.endswith("conv3")]
        yield from ((out, "out", removed[group.name]) for out in outs)


def vgg11_bn_places(groups, removed):
    for group in groups:
        part, index = group.name.split(".")
        yield f"{part}.{int(index) + (2 if part == 'features' else 1)}", "out", removed[group.name]


def mobilenet_v3_small_places(groups, removed):
    for group in groups:
        for layer in group.layers:
            above, _, last = layer.rpartition(".")
            if layer == "classifier.0":
                yield "classifier.3", "in", removed[group.name]
            elif last == "fc1":
                yield f"{above}.fc2", "in", removed[group.name]
            elif last != "fc2":  # its output is only multiplied with one that is zeroed
                yield above, "out", removed[group.name]


def densenet121_places(groups, removed):
    """A channel that has been concatenated is read by every later layer of its block, after a BatchNorm of its own."""
    layers, features = (6, 12, 24, 16), (64, 128, 256, 512)
    for group in groups:
        _, block, layer, conv = (group.name + "...").split(".")[:4]
        if conv == "conv1":
            yield f"features.{block}.{layer}.conv2", "in", removed[group.name]
            continue
        if conv == "conv2":
            number, first = int(block[-1]), int(layer.removeprefix("denselayer")) + 1
            offset = features[number - 1] + 32 * (first - 2)
        else:
            number, first, offset = (1 if block == "conv0" else int(block[-1]) + 1), 1, 0
        positions = removed[group.name].nonzero().flatten() + offset
        later = range(first, layers[number - 1] + 1)
        readers = [f"features.denseblock{number}.denselayer{index}.conv1" for index in later]
        readers.append(f"features.transition{number}.conv" if number < 4 else "classifier")
        yield from ((reader, "in", positions) for reader in readers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("places", "count"),
    [(resnet50_places, 37), (mobilenet_v3_small_places, 27), (densenet121_places, 120), (vgg11_bn_places, 10)],
)
def test_models_beyond_ours(places, count):
    import torchvision

    torch.manual_seed(0)
    model = randomise(getattr(torchvision.models, places.__name__.removesuffix("_places"))(weights=None))
    images = torch.randn(2, 3, 64, 64)
    model = pruning.refresh_batchnorm(model, torch.randn(4, 3, 64, 64))  # or the signal fades on its way
    groups = pruning.groups(model, images)
    assert len(groups) == count
    keep = random_keep(groups, 0.7)
    new, zeroed = removal._removed_and_zeroed(model, keep, images)  # what both functions do, once: it takes seconds
    assert measure.count_macs(new, images) <= 0.7 * measure.count_macs(model, images)
    found = answers(deepcopy(new).double(), images.double())
    zeroed = answers(zeroed.double(), images.double())
    places = places(groups, {name: ~mask for name, mask in keep.items()})
    expected = answers_with_zeroed(model.double(), places, images.double())
    assert_close(found, expected)
    assert_close(zeroed, expected)
    assert float((expected[0] - expected[1]).abs().max()) > 1e-6, "the answers depend on the images"
    # A shift that meets a convolution and then another BatchNorm cancels out: its gradient is zero.
    assert [name for name in step(new, images) if not name.endswith(".bias")] == []
    assert all(parameter.grad is not None for parameter in new.parameters())


def test_remove_block_leaves_x(net):
    zeroed = deepcopy(net)
    nn.init.zeros_(zeroed.res1.block2.bn.weight)
    nn.init.zeros_(zeroed.res1.block2.bn.bias)
    new = pruning.remove_block(net, "res1")
    assert_close(answers(new, IMAGES), answers(zeroed, IMAGES))
    assert isinstance(net.res1, nets.Residual)
    assert measure.count_macs(net, IMAGES) - measure.count_macs(new, IMAGES) == 2 * 9 * 12 * 12 * 16 * 16
    assert step(new, IMAGES) == []
    keep = random_keep(pruning.groups(new, IMAGES))
    assert len(keep) == 5 and pruning.remove_filters(new, keep, IMAGES)


@pytest.mark.parametrize(("name", "norm"), [("layer1.1", "bn2"), ("layer4.1", "bn2")])
def test_remove_block_of_torchvisions_resnet(name, norm):
    import torchvision

    model = randomise(torchvision.models.resnet18(weights=None, num_classes=10))
    zeroed = deepcopy(model)
    nn.init.zeros_(zeroed.get_submodule(f"{name}.{norm}").weight)
    nn.init.zeros_(zeroed.get_submodule(f"{name}.{norm}").bias)
    images = IMAGES.float()
    assert torch.equal(answers(pruning.remove_block(model, name), images), answers(zeroed, images))
    with pytest.raises(ValueError, match=r"name='layer2.0' is unknown; allowed: 'layer1.0', 'layer1.1', 'layer2.1'"):
        pruning.remove_block(model, "layer2.0")


@pytest.mark.parametrize("name", ["conv2", "res3", "", "res1.block1"])
def test_only_residual_blocks_can_be_removed(net, name):
    with pytest.raises(ValueError, match=f"name={name!r} is unknown; allowed: 'res1', 'res2'"):
        pruning.remove_block(net, name)


@torch.no_grad()
def reaching(model: nn.Module, layer: str, inputs: torch.Tensor, size: int) -> torch.Tensor:
    """Return what reaches `layer`, batch by batch, while the BatchNorm layers use each batch's own statistics."""
    model, seen = deepcopy(model).eval(), []
    for module in model.modules():
        module.training = isinstance(module, nn.modules.batchnorm._BatchNorm)
    model.get_submodule(layer).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for batch in inputs.tensor_split(math.ceil(len(inputs) / size)):
        model(batch)
    return torch.cat(seen)


@pytest.mark.parametrize("count", [8, 11])
def test_refreshed_statistics_are_the_mean_over_all_inputs(net, keep, count):
    """Trap: after a removal the statistics of the later layers are those of another net."""
    inputs = torch.randn(count, 3, 32, 32, dtype=torch.float64)
    new = pruning.remove_filters(net, keep, IMAGES)
    refreshed = pruning.refresh_batchnorm(new, inputs, batch_size=4)
    for layer in ("stem.bn", "conv2.bn", "res2.block2.bn"):
        mean = reaching(new, layer, inputs, 4).mean((0, 2, 3))
        assert torch.allclose(refreshed.get_submodule(layer).running_mean, mean, rtol=1e-12)
        assert not torch.allclose(new.get_submodule(layer).running_mean, mean, rtol=0.1)
    parts = reaching(new, "conv2.bn", inputs, 4).tensor_split(math.ceil(count / 4))
    variance = sum(len(part) * part.var((0, 2, 3)) for part in parts) / count
    assert torch.allclose(refreshed.conv2.bn.running_var, variance, rtol=1e-12)


def test_refresh_equals_torchs_cumulative_average(net):
    inputs = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    theirs = deepcopy(net).train()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for batch in inputs.split(4):
            theirs(batch)
    ours = pruning.refresh_batchnorm(net, inputs, batch_size=4)
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, rtol=1e-12), name


def test_refresh_changes_nothing_else():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, momentum=0.3)
    )
    model[1].eval().requires_grad_(False)
    model.append(nn.BatchNorm2d(4, track_running_stats=False))
    before = deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    new = pruning.refresh_batchnorm(model, images, batch_size=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    changed = {name for name, value in new.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert changed == {f"{layer}.{name}" for layer in (1, 4) for name in statistics}
    assert [m.training for m in new.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in new.parameters()] == [p.requires_grad for p in model.parameters()]
    assert (new[1].momentum, new[4].momentum) == (0.1, 0.3)
    assert torch.equal(torch.random.get_rng_state(), state), "dropout is off"


def test_refresh_needs_inputs(net):
    with pytest.raises(ValueError, match="inputs is empty"):
        pruning.refresh_batchnorm(net, IMAGES[:0])
    with pytest.raises(ValueError, match="batch_size=0"):
        pruning.refresh_batchnorm(net, IMAGES, batch_size=0)


def test_refresh_takes_views_which_refuse_channels_last():
    layers = {"n": nn.BatchNorm2d(8)}
    model = photos(lambda net, x: net.b(net.n(net.a(x)).view(-1, 288)), nn.Linear(288, 3), **layers)
    fresh = pruning.refresh_batchnorm(model, PHOTOS)
    assert torch.allclose(fresh.n.running_mean, model.a(PHOTOS).mean((0, 2, 3)), atol=1e-6)


@pytest.mark.parametrize(("count", "size", "batches"), [(3, 2, [3]), (5, 2, [3, 2]), (5, 4, [3, 2]), (9, 4, [3, 3, 3])])
def test_no_batch_is_of_a_single_example(count, size, batches):
    """BatchNorm1d has no variance of one; and the statistics are the mean over batches, each counted by its size."""
    model = nn.Sequential(nn.BatchNorm1d(3))
    rows = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    fresh = pruning.refresh_batchnorm(model, rows, batch_size=size)
    variance = sum(len(part) * part.var(0) for part in rows.split(batches)) / count
    assert torch.allclose(fresh[0].running_var, variance) and torch.allclose(fresh[0].running_mean, rows.mean(0))


def test_refresh_says_what_it_cannot_do():
    model = nn.Sequential(nn.BatchNorm1d(3))
    for inputs, size in ((ROWS[:1, :3], 500), (ROWS[:, :3], 1)):
        with pytest.raises(
            ValueError, match="inputs in batches of 1 cannot refresh this model .*more than 1 value per"
        ):
            pruning.refresh_batchnorm(model, inputs, batch_size=size)
    with pytest.raises(
        ValueError, match="inputs in batches of 4 cannot refresh this model .RuntimeError: running_mean"
    ):
        pruning.refresh_batchnorm(model, ROWS)
    with pytest.raises(ValueError, match="inputs holds NaN or infinity"):
        pruning.refresh_batchnorm(model, torch.full((4, 3), math.nan))
    images = nn.Sequential(nn.BatchNorm2d(3, affine=False))  # no parameters at all
    single = pruning.refresh_batchnorm(images, PHOTOS[:1], batch_size=1)
    assert torch.allclose(single[0].running_mean, PHOTOS[0].mean((1, 2)))
