"""Removal against nets whose channels are zeroed by hand with hooks, which know nothing of torch-pruning."""

import math
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from helpers import measure, models, pruning, quantization, removal, training
from helpers.removal import Group

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DIGITS = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CIFAR_GROUPS = [
    Group(("stem.conv",), 8),
    Group(("conv1.conv", "res1.block2.conv"), 12),
    Group(("res1.block1.conv",), 12),
    Group(("conv2.conv",), 16),
    Group(("conv3.conv", "res2.block2.conv"), 24),
    Group(("res2.block1.conv",), 24),
]


def randomise(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and a shift, so that a channel that is zero before it is not zero after it."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.5)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return model


def random_keep(groups: list[Group], share: float = 0.6, *, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in groups:
        values = torch.rand(group.channels // group.parts, generator=generator)
        keep[group.name] = (values <= values.quantile(share)).repeat(group.parts)
    return keep


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return randomise(models.CifarNet((8, 12, 16, 24))).double()


@pytest.fixture
def keep() -> dict[str, torch.Tensor]:
    return random_keep(CIFAR_GROUPS)


def zeroing(channels: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    zeroed = tensor.clone()
    zeroed[:, channels] = 0
    return zeroed


@torch.no_grad()
def answers_with_zeroed(model: nn.Module, places, inputs: torch.Tensor) -> torch.Tensor:
    """Return what `model` answers when `places`, (module, "in" or "out", channels), are zeroed as they pass."""
    model, hooks = model.eval(), []
    for name, side, channels in places:
        module = model.get_submodule(name)
        if side == "out":
            hook = module.register_forward_hook(lambda m, i, output, channels=channels: zeroing(channels, output))
        else:
            hook = module.register_forward_pre_hook(lambda m, inputs, c=channels: (zeroing(c, inputs[0]),))
        hooks.append(hook)
    try:
        return model(inputs)
    finally:
        for hook in hooks:
            hook.remove()


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found - expected).abs().max()) <= 1e-8 * max(1.0, float(expected.abs().max()))


@torch.no_grad()
def answers(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return model.eval()(inputs)


def step(model: nn.Module, inputs: torch.Tensor) -> list[str]:
    """Train one step, with a new optimizer; return the names of the parameters that stayed as they were."""
    before = deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss = F.cross_entropy(model.train()(inputs), torch.arange(len(inputs)))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    return [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]


# ---------------------------------------------------------------- our nets


def test_groups_of_our_nets(net):
    assert removal.groups(net, IMAGES) == CIFAR_GROUPS
    lenet = [Group(("conv1",), 20), Group(("conv2",), 50), Group(("fc1",), 500)]
    assert removal.groups(models.lenet5(), DIGITS.float()) == lenet
    assert [g.name for g in removal.groups(models.lenet_300_100(), DIGITS.float())] == ["fc1", "fc2"]


def test_removed_equals_zeroed_after_batchnorm_and_activation(net, keep):
    blocks = {group.name: [layer.removesuffix(".conv") for layer in group.layers] for group in CIFAR_GROUPS}
    places = [(block, "out", ~mask) for name, mask in keep.items() for block in blocks[name]]
    expected = answers_with_zeroed(net, places, IMAGES)
    assert not torch.allclose(expected, answers(net, IMAGES), rtol=0.01), "zeroing must matter"
    assert_close(answers(removal.remove_filters(net, keep, IMAGES), IMAGES), expected)
    assert_close(answers(removal.zero_filters(net, keep, IMAGES), IMAGES), expected)


def test_neurons_and_filters_before_a_flattening(keep):
    torch.manual_seed(0)
    lenet = models.lenet5().double()
    keep = random_keep(removal.groups(lenet, DIGITS), 0.3)
    expected = answers_with_zeroed(lenet, [(name, "out", ~mask) for name, mask in keep.items()], DIGITS)
    new = removal.remove_filters(lenet, keep, DIGITS)
    assert_close(answers(new, DIGITS), expected)
    assert_close(answers(removal.zero_filters(lenet, keep, DIGITS), DIGITS), expected)
    assert [tuple(w.shape) for w in pruning.weights_of(new).values()] == [
        (6, 1, 5, 5),
        (15, 6, 5, 5),
        (150, 15 * 16),
        (10, 150),
    ]


def test_what_stays_is_what_was_there(net, keep):
    new = removal.remove_filters(net, keep, IMAGES)
    rows, columns = keep["conv2.conv"], keep["conv1.conv"]
    assert torch.equal(new.conv2.conv.weight, net.conv2.conv.weight[rows][:, columns])
    for attribute in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(new.conv2.bn, attribute), getattr(net.conv2.bn, attribute)[rows])
    assert (new.conv2.conv.in_channels, new.conv2.conv.out_channels) == (int(columns.sum()), int(rows.sum()))
    assert new.conv2.bn.num_features == int(rows.sum())
    assert new.conv2.conv.weight.dtype == torch.float64


def test_any_member_names_the_group(net, keep):
    other = {"res1.block2.conv": keep["conv1.conv"], "conv1.conv": keep["conv1.conv"].clone()}
    expected = removal.remove_filters(net, {"conv1.conv": keep["conv1.conv"]}, IMAGES)
    new = removal.remove_filters(net, other, IMAGES)
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), expected.parameters(), strict=True))


def test_nothing_to_remove_gives_an_equal_copy(net):
    for keep in ({}, {"conv2.conv": torch.ones(16, dtype=torch.bool)}):
        new = removal.remove_filters(net, keep, IMAGES)
        assert_close(answers(new, IMAGES), answers(net, IMAGES))
        assert next(new.parameters()) is not next(net.parameters())


def test_the_model_that_came_in_is_unchanged(net, keep, capfd):
    net.train()
    net.res1.eval()
    net.stem.requires_grad_(False)
    net(IMAGES).sum().backward()
    state = deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    trained = [parameter.requires_grad for parameter in net.parameters()]
    random_state = torch.random.get_rng_state()
    with torch.no_grad():
        new = removal.remove_filters(net, keep, IMAGES)
        removal.zero_filters(net, keep, IMAGES)
        removal.choose_filters(net, filter_norms(net), IMAGES, macs_ratio=1.5, round_to=1)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes == [module.training for module in new.modules()]
    assert [p.requires_grad for p in net.parameters()] == trained == [p.requires_grad for p in new.parameters()]
    assert net.fc.weight.grad is not None and new.fc.weight.grad is None
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert capfd.readouterr() == ("", "")


def test_a_new_optimizer_trains_every_layer(net, keep):
    assert step(removal.remove_filters(net, keep, IMAGES), IMAGES) == []


def test_an_old_optimizer_holds_the_removed_parameters(net, keep):
    """Trap: it goes on training the old model, and the new one does not move."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    new = removal.remove_filters(net, keep, IMAGES)
    before = deepcopy(new.state_dict())
    net(IMAGES).sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in new.state_dict().items())
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held.isdisjoint(id(parameter) for parameter in new.parameters())


@pytest.mark.parametrize("frozen", ["stem", "conv1", "res2", ""])
def test_frozen_layers_are_cut_and_stay_frozen(net, keep, frozen):
    """Trap: autograd does not see what is frozen, and what it does not see is not cut."""
    expected = removal.remove_filters(net, keep, IMAGES)
    net.get_submodule(frozen).requires_grad_(False)
    new = removal.remove_filters(net, keep, IMAGES)
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), expected.parameters(), strict=True))
    part = [name for name, _ in new.named_parameters() if name.startswith(frozen)]
    assert [name for name, p in new.named_parameters() if not p.requires_grad] == part
    if frozen:
        assert step(new, IMAGES) == part


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
    groups = removal.groups(frozen, images)
    assert len(groups) == 12 and groups == removal.groups(model, images)
    keep = random_keep(groups)
    new, expected = (removal.remove_filters(net, keep, images) for net in (frozen, model))
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), expected.parameters(), strict=True))
    assert [name for name, p in new.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]
    body = [name for name, _ in new.named_parameters() if not name.startswith("fc")]
    assert step(removal.refresh_batchnorm(new, images), images) == body


def test_masks_are_baked_first(net, keep):
    masked = pruning.mask(net, pruning.layer_masks(net, 0.5))
    new = removal.remove_filters(masked, keep, IMAGES)
    expected = removal.remove_filters(pruning.bake(masked), keep, IMAGES)
    assert pruning.masks_of(new) == {} and len(pruning.masks_of(masked)) == 9
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), expected.parameters(), strict=True))


def test_zeroed_is_neither_smaller_nor_has_it_fewer_operations(net, keep):
    """Trap: masked mistaken for smaller or faster."""
    zeroed, new = removal.zero_filters(net, keep, IMAGES), removal.remove_filters(net, keep, IMAGES)
    for count in (measure.count_parameters, measure.count_weights, lambda model: measure.count_macs(model, IMAGES)):
        assert count(zeroed) == count(net) > count(new)
    assert measure.count_nonzero(zeroed) == measure.count_weights(new)
    assert (zeroed.conv2.bn.weight != 0).equal(keep["conv2.conv"])
    assert pruning.masks_of(zeroed) == {}


def test_zeroed_channels_stay_zero_in_training(net, keep):
    zeroed = removal.zero_filters(net, keep, IMAGES)
    step(zeroed, IMAGES)
    assert measure.count_nonzero(zeroed) == measure.count_weights(removal.remove_filters(net, keep, IMAGES))


# ---------------------------------------------------------------- other nets


class Mix(nn.Module):
    """Blocks joined in random ways, which can zero channels itself: it knows where each channel comes from."""

    def __init__(self, kinds: list[str], widths: list[int]) -> None:
        super().__init__()
        self.kinds, self.blocks = kinds, nn.ModuleList()
        channels = 3
        for kind, width in zip(kinds, widths, strict=True):
            outputs = {"plain": width, "dense": width}.get(kind, channels)
            conv = nn.Conv2d(channels, outputs, 3, padding=1, groups=channels if kind == "depthwise" else 1)
            norm_first = [nn.BatchNorm2d(channels), nn.SiLU()] if kind == "dense" else []
            self.blocks.append(nn.Sequential(*norm_first, conv, nn.BatchNorm2d(outputs), nn.ReLU()))
            channels = outputs + channels if kind == "dense" else outputs
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: torch.Tensor, removed: dict[int, torch.Tensor] | None = None) -> torch.Tensor:
        origin = [(-1, c) for c in range(3)]
        zero = [False] * 3
        for index, (kind, block) in enumerate(zip(self.kinds, self.blocks, strict=True)):
            if kind == "dense":
                inside = block[:2](x)
                y = block[2:](zeroing(torch.tensor(zero), inside))
            else:
                y = block(x)
            own = [(index, c) for c in range(y.shape[1])]
            if kind == "plain":
                x, origin = y, own
            elif kind == "dense":
                x, origin = torch.cat([x, y], 1), origin + own
            else:
                x = x + y if kind == "residual" else y
            zero = [bool(removed[i][c]) if removed and i in removed else False for i, c in origin]
            x = zeroing(torch.tensor(zero), x)
        return self.fc(x.mean((2, 3)))


@settings(max_examples=12, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["plain", "depthwise", "residual", "dense"]), min_size=1, max_size=4),
    widths=st.lists(st.integers(2, 7), min_size=5, max_size=5),
    seed=st.integers(0, 99),
)
def test_random_nets(kinds, widths, seed):
    torch.manual_seed(seed)
    kinds = ["plain", *kinds]
    model = randomise(Mix(kinds, widths[: len(kinds)])).double().eval()
    inputs = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    groups = removal.groups(model, inputs)
    makers = [index for index, kind in enumerate(kinds) if kind in ("plain", "dense")]
    assert [int(group.name.split(".")[1]) for group in groups] == makers
    keep = random_keep(groups, seed=seed)
    removed = {index: ~keep[group.name] for index, group in zip(makers, groups, strict=True)}
    with torch.no_grad():
        expected = model(inputs, removed)
    predict = removal._predictor(model, removal._survey(model, inputs), inputs)
    assert predict({}) == measure.count_macs(model, inputs)
    if "dense" not in kinds:  # of a Sequential that is sliced, the counter does not know whose MACs they are
        assert predict(keep) == measure.count_macs(removal.remove_filters(model, keep, inputs), inputs)
    assert_close(answers(removal.remove_filters(model, keep, inputs), inputs), expected)
    assert_close(answers(removal.zero_filters(model, keep, inputs), inputs), expected)


class Function(nn.Sequential):
    """A few layers with a function of the channels in the middle."""

    def __init__(self, function, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[2](self[1](self.function(self[0](x))))


def shuffle(x: torch.Tensor) -> torch.Tensor:
    return x.view(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def gate(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, 1)
    return first * second.sigmoid()


def conv_net(function, middle: nn.Module, *, reads: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return Function(function, nn.Conv2d(3, 8, 3), middle, nn.Conv2d(reads, 5, 30)).double()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (conv_net(shuffle, nn.Conv2d(8, 8, 1)), "'0', which torch-pruning cannot cut here .the answers differ by"),
        (conv_net(gate, nn.Conv2d(4, 8, 1)), "'0', which torch-pruning cannot cut here .RuntimeError: "),
        (conv_net(lambda x: x * x.mean(1, True), nn.Conv2d(8, 8, 1)), "'0', which .* answers differ by .* try leaving"),
    ],
    ids=["shuffle", "gate", "mean over channels"],
)
def test_what_mixes_channels_is_refused_by_name(model, said):
    keep = {"0": torch.arange(8) > 1, "1": torch.arange(8) > 2}
    assert [group.name for group in removal.groups(model, IMAGES)] == list(keep)
    for function in (removal.remove_filters, removal.zero_filters):
        with pytest.raises(ValueError, match=said):
            function(model, keep, IMAGES)
    assert removal.remove_filters(model, {"1": keep["1"]}, IMAGES)[2].in_channels == 5
    with pytest.raises(ValueError, match="keep cuts '0', which torch-pruning cannot cut here"):
        removal.choose_filters(model, filter_norms(model), IMAGES, macs_ratio=1.2, round_to=1)


def test_a_flattened_concatenation_is_refused():
    """torch-pruning 1.6.1 loses the offsets there; the comparison with the zeroed net notices."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
            self.fc = nn.Linear(9 * 4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x).relu()
            return self.fc(torch.cat([x, self.b(x)], 1).flatten(1))

    with pytest.raises(ValueError, match="keep cuts 'a', which torch-pruning cannot cut here"):
        removal.remove_filters(Joined(), {"a": torch.arange(4) > 0}, IMAGES[:, :, :2, :2].float())


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.LayerNorm([8, 30, 30])])
def test_a_norm_over_channels_is_refused(norm):
    model = conv_net(lambda x: x, norm)
    assert removal.groups(model, IMAGES) == []
    with pytest.raises(ValueError, match=rf"keep has '0', but its channels pass a {type(norm).__name__}"):
        removal.remove_filters(model, {"0": torch.arange(8) > 2}, IMAGES)
    with pytest.raises(ValueError, match="scores of groups that can be cut is empty"):
        removal.choose_filters(model, filter_norms(model), IMAGES, macs_ratio=1.2)


def test_grouped_convolutions_are_cut_alike_in_each_part():
    model = conv_net(F.relu, nn.Conv2d(8, 8, 3, padding=1, groups=2))
    assert removal.groups(model, IMAGES) == [Group(("0",), 8, 2), Group(("1",), 8, 2)]
    keep = {"0": torch.tensor([0, 1, 1, 0] * 2) > 0, "1": torch.tensor([1, 1, 0, 1] * 2) > 0}
    places = [(name, "out", ~mask) for name, mask in keep.items()]
    expected = answers_with_zeroed(model, places, IMAGES)
    assert_close(answers(removal.remove_filters(model, keep, IMAGES), IMAGES), expected)
    with pytest.raises(ValueError, match=r"different channels in the 2 parts"):
        removal.remove_filters(model, {"0": torch.arange(8) > 2}, IMAGES)
    chosen = removal.choose_filters(model, filter_norms(model), IMAGES, macs_ratio=1.5, round_to=1)
    new = removal.remove_filters(model, chosen, IMAGES)
    assert measure.count_macs(model, IMAGES) / measure.count_macs(new, IMAGES) >= 1.5


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.ConvTranspose2d(3, 6, 2), nn.PReLU(6), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.LazyLinear(4)], (2, 3, 4, 4)),
        ([nn.Conv1d(3, 6, 2), nn.BatchNorm1d(6), nn.Conv1d(6, 5, 3), nn.Flatten(), nn.LazyLinear(4)], (2, 3, 7)),
        ([nn.Conv3d(1, 6, 2), nn.BatchNorm3d(6), nn.Conv3d(6, 5, 3), nn.Flatten(), nn.LazyLinear(4)], (2, 1, 5, 5, 5)),
        ([nn.Linear(7, 6), nn.BatchNorm1d(6), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4)], (3, 7)),
    ],
    ids=["transposed", "1d", "3d", "linear"],
)
def test_other_layers(layers, shape):
    torch.manual_seed(0)
    model = nn.Sequential(*layers).double()
    inputs = torch.randn(shape, dtype=torch.float64)
    model(inputs)
    randomise(model)
    groups = removal.groups(model, inputs)
    assert [(group.name, group.channels) for group in groups] == [("0", 6), ("2", 5)]
    keep = random_keep(groups)
    expected = answers_with_zeroed(model, [("1", "out", ~keep["0"]), ("2", "out", ~keep["2"])], inputs)
    new = removal.remove_filters(model, keep, inputs)
    assert_close(answers(new, inputs), expected)
    assert_close(answers(removal.zero_filters(model, keep, inputs), inputs), expected)
    assert measure.count_parameters(new) < measure.count_parameters(model)


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ({"conv9": torch.ones(16) > 0}, "layer in keep='conv9' is unknown; allowed: 'stem.conv', "),
        ({"conv2.bn": torch.ones(16) > 0}, "layer in keep='conv2.bn' is unknown"),
        ({"fc": torch.arange(10) > 1}, "keep has 'fc', but its channels are the model's output; allowed: 'stem.conv'"),
        (
            {"conv2.conv": torch.ones(15) > 0},
            r"keep\['conv2.conv'\] is torch.bool \(15,\); allowed: torch.bool \(16,\)",
        ),
        ({"conv2.conv": torch.ones(16)}, r"keep\['conv2.conv'\] is torch.float32 \(16,\); allowed: torch.bool"),
        ({"conv2.conv": torch.zeros(16) > 0}, r"keep\['conv2.conv'\] drops all 16 channels; allowed: a part"),
        (
            {"conv1.conv": torch.arange(12) > 1, "res1.block2.conv": torch.arange(12) > 2},
            r"keep\['res1.block2.conv'\] differs from the mask of 'conv1.conv'; allowed: one mask",
        ),
    ],
)
def test_bad_keeps(net, keep, said):
    for function in (removal.remove_filters, removal.zero_filters):
        with pytest.raises(ValueError, match=said):
            function(net, keep, IMAGES)


def test_other_parametrizations_are_refused(net):
    quantized = quantization.quantize_model(net.float(), weights={"conv2.conv": 4})
    with pytest.raises(ValueError, match="model has a parametrization on 'conv2.conv'; allowed: masks"):
        removal.groups(quantized, IMAGES.float())


def test_several_outputs_are_refused(net):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x), x

    with pytest.raises(ValueError, match="model returns a tuple; allowed: one tensor"):
        removal.groups(Two(), IMAGES)


# ---------------------------------------------------------------- torchvision


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
    model = removal.refresh_batchnorm(model, torch.randn(4, 3, 64, 64))  # or the signal fades on its way
    groups = removal.groups(model, images)
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


def test_what_torch_pruning_cannot_follow_is_refused():
    import torchvision

    model = torchvision.models.shufflenet_v2_x0_5(weights=None)
    images, scores = torch.randn(2, 3, 64, 64), filter_norms(model)
    with pytest.raises(ValueError, match=r"model=ShuffleNetV2 cannot be followed .*ZeroDivisionError.*; try "):
        removal.choose_filters(model, scores, images, macs_ratio=2, round_to=8)


# ---------------------------------------------------------------- choosing


def filter_norms(model: nn.Module) -> dict[str, torch.Tensor]:
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return {name: layer.weight.detach().abs().flatten(1).sum(1) for name, layer in layers.items()}


def macs_ratio(model: nn.Module, keep: dict[str, torch.Tensor]) -> float:
    new = removal.remove_filters(model, keep, IMAGES)
    return measure.count_macs(model, IMAGES) / measure.count_macs(new, IMAGES)


def test_group_scores_by_hand():
    groups = [Group(("a", "b"), 2), Group(("c",), 3), Group(("d",), 1)]
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, 20.0]), "d": torch.tensor([5.0])}
    found = removal.group_scores(scores | {"elsewhere": torch.ones(7)}, groups)
    assert list(found) == ["a", "d"]
    assert found["a"].tolist() == [11, 22] and found["d"].tolist() == [5]
    assert scores["a"].tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"scores\['c'\] has the shape \(2,\); allowed: \(3,\)"):
        removal.group_scores({"c": torch.ones(2)}, groups)


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize(
    ("ratio", "round_to", "at_least"), [(1.0, 8, 0.1), (1.7, 1, 0.1), (2.0, 4, 0.5), (3.0, 4, 0.0)]
)
def test_choose_keeps_the_best_rounds_and_reaches_the_ratio(net, scope, ratio, round_to, at_least):
    scores = filter_norms(net)
    options = {"scope": scope, "round_to": round_to, "at_least": at_least}
    keep = removal.choose_filters(net, scores, IMAGES, macs_ratio=ratio, **options)
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
    keep = removal.choose_filters(net, filter_norms(net), IMAGES, macs_ratio=3, scope="uniform", round_to=1)
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
        keep = removal.choose_filters(model, scores, torch.randn(2, 6), **options)
        assert [int(mask.sum()) for mask in keep.values()] == [first, second]
    for larger, smaller in pairwise(macs):
        between = macs[0] / (larger + smaller) * 2
        keep = removal.choose_filters(model, scores, torch.randn(2, 6), macs_ratio=between, round_to=1, at_least=0)
        new = removal.remove_filters(model, keep, torch.randn(2, 6))
        best = 12 if smaller == 9 else smaller  # from (1, 1), fc2 may take its second best neuron back
        assert measure.count_macs(new, torch.randn(2, 6)) == best, "the next one from above"


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_a_model_whose_macs_cannot_be_predicted_is_cut_to_count_them(net, monkeypatch, scope):
    options = {"macs_ratio": 2.3, "round_to": 1, "scope": scope}
    whole_macs = measure.count_macs(net, IMAGES)
    found = removal.choose_filters(net, filter_norms(net), IMAGES, **options)
    monkeypatch.setattr(
        removal, "_predictor", lambda whole, survey, example: lambda masks: 10**7 if masks else whole_macs
    )
    expected = removal.choose_filters(net, filter_norms(net), IMAGES, **options)
    assert found.keys() == expected.keys()
    assert all(mask.equal(expected[name]) for name, mask in found.items())


def test_groups_without_scores_stay_whole(net):
    scores = {"conv2.conv": torch.arange(16.0)}
    keep = removal.choose_filters(net, scores, IMAGES, macs_ratio=1.05, round_to=1)
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
        removal.choose_filters(net, options.pop("scores"), IMAGES, **options)


# ---------------------------------------------------------------- blocks


def test_remove_block_leaves_x(net):
    zeroed = deepcopy(net)
    nn.init.zeros_(zeroed.res1.block2.bn.weight)
    nn.init.zeros_(zeroed.res1.block2.bn.bias)
    new = removal.remove_block(net, "res1")
    assert_close(answers(new, IMAGES), answers(zeroed, IMAGES))
    assert isinstance(net.res1, models.Residual)
    assert measure.count_macs(net, IMAGES) - measure.count_macs(new, IMAGES) == 2 * 9 * 12 * 12 * 16 * 16
    assert step(new, IMAGES) == []
    keep = random_keep(removal.groups(new, IMAGES))
    assert len(keep) == 5 and removal.remove_filters(new, keep, IMAGES)


@pytest.mark.parametrize(("name", "norm"), [("layer1.1", "bn2"), ("layer4.1", "bn2")])
def test_remove_block_of_torchvisions_resnet(name, norm):
    import torchvision

    model = randomise(torchvision.models.resnet18(weights=None, num_classes=10))
    zeroed = deepcopy(model)
    nn.init.zeros_(zeroed.get_submodule(f"{name}.{norm}").weight)
    nn.init.zeros_(zeroed.get_submodule(f"{name}.{norm}").bias)
    images = IMAGES.float()
    assert torch.equal(answers(removal.remove_block(model, name), images), answers(zeroed, images))
    with pytest.raises(ValueError, match=r"name='layer2.0' is unknown; allowed: 'layer1.0', 'layer1.1', 'layer2.1'"):
        removal.remove_block(model, "layer2.0")


@pytest.mark.parametrize("name", ["conv2", "res3", "", "res1.block1"])
def test_only_residual_blocks_can_be_removed(net, name):
    with pytest.raises(ValueError, match=f"name={name!r} is unknown; allowed: 'res1', 'res2'"):
        removal.remove_block(net, name)


# ---------------------------------------------------------------- BatchNorm


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
    new = removal.remove_filters(net, keep, IMAGES)
    refreshed = removal.refresh_batchnorm(new, inputs, batch_size=4)
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
    ours = removal.refresh_batchnorm(net, inputs, batch_size=4)
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
    new = removal.refresh_batchnorm(model, images, batch_size=2)
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
        removal.refresh_batchnorm(net, IMAGES[:0])
    with pytest.raises(ValueError, match="batch_size=0"):
        removal.refresh_batchnorm(net, IMAGES, batch_size=0)


def test_a_cut_model_goes_through_the_courses_training(net, keep):
    from helpers.data import Split

    new = removal.remove_filters(net.float(), keep, IMAGES.float())
    split = Split(IMAGES.float(), torch.arange(4))
    fitted = training.fit(new, split, epochs=3, lr=0.01, batch_size=4, progress=False)
    assert all(not torch.equal(a, b) for a, b in zip(fitted.model.parameters(), new.parameters(), strict=True))
