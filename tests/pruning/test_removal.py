"""Removal against nets whose channels are zeroed by hand with hooks, which know nothing of torch-pruning."""

import resource
import time
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from helpers import measure, nets, pruning, training
from helpers.pruning import choosing, coupling
from tests.pruning.removal_examples import (
    ANY,
    CIFAR_GROUPS,
    DIGITS,
    IMAGES,
    PHOTOS,
    ROWS,
    Net,
    answers,
    answers_with_zeroed,
    assert_close,
    conv_net,
    dense,
    filter_norms,
    random_keep,
    randomise,
    step,
    zeroed_by_hand,
    zeroing,
)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return randomise(nets.CifarNet((8, 12, 16, 24))).double()


@pytest.fixture
def keep() -> dict[str, torch.Tensor]:
    return random_keep(CIFAR_GROUPS)


def test_removed_equals_zeroed_after_batchnorm_and_activation(net, keep):
    blocks = {group.name: [layer.removesuffix(".conv") for layer in group.layers] for group in CIFAR_GROUPS}
    places = [(block, "out", ~mask) for name, mask in keep.items() for block in blocks[name]]
    expected = answers_with_zeroed(net, places, IMAGES)
    assert not torch.allclose(expected, answers(net, IMAGES), rtol=0.01), "zeroing must matter"
    assert_close(answers(pruning.remove_filters(net, keep, IMAGES), IMAGES), expected)
    assert_close(answers(pruning.zero_filters(net, keep, IMAGES), IMAGES), expected)


def test_neurons_and_filters_before_a_flattening(keep):
    torch.manual_seed(0)
    lenet = nets.lenet5().double()
    keep = random_keep(pruning.groups(lenet, DIGITS), 0.3)
    expected = answers_with_zeroed(lenet, [(name, "out", ~mask) for name, mask in keep.items()], DIGITS)
    new = pruning.remove_filters(lenet, keep, DIGITS)
    assert_close(answers(new, DIGITS), expected)
    assert_close(answers(pruning.zero_filters(lenet, keep, DIGITS), DIGITS), expected)
    assert [tuple(w.shape) for w in pruning.weights_of(new).values()] == [
        (6, 1, 5, 5),
        (15, 6, 5, 5),
        (150, 15 * 16),
        (10, 150),
    ]


def test_what_stays_is_what_was_there(net, keep):
    new = pruning.remove_filters(net, keep, IMAGES)
    rows, columns = keep["conv2.conv"], keep["conv1.conv"]
    assert torch.equal(new.conv2.conv.weight, net.conv2.conv.weight[rows][:, columns])
    for attribute in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(new.conv2.bn, attribute), getattr(net.conv2.bn, attribute)[rows])
    assert (new.conv2.conv.in_channels, new.conv2.conv.out_channels) == (int(columns.sum()), int(rows.sum()))
    assert new.conv2.bn.num_features == int(rows.sum())
    assert new.conv2.conv.weight.dtype == torch.float64


def test_any_member_names_the_group(net, keep):
    other = {"res1.block2.conv": keep["conv1.conv"], "conv1.conv": keep["conv1.conv"].clone()}
    expected = pruning.remove_filters(net, {"conv1.conv": keep["conv1.conv"]}, IMAGES)
    new = pruning.remove_filters(net, other, IMAGES)
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), expected.parameters(), strict=True))


def test_nothing_to_remove_gives_an_equal_copy(net):
    for keep in ({}, {"conv2.conv": torch.ones(16, dtype=torch.bool)}):
        new = pruning.remove_filters(net, keep, IMAGES)
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
        new = pruning.remove_filters(net, keep, IMAGES)
        pruning.zero_filters(net, keep, IMAGES)
        pruning.choose_filters(net, filter_norms(net), IMAGES, macs_ratio=1.5, round_to=1)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes == [module.training for module in new.modules()]
    assert [p.requires_grad for p in net.parameters()] == trained == [p.requires_grad for p in new.parameters()]
    assert net.fc.weight.grad is not None and new.fc.weight.grad is None
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert capfd.readouterr() == ("", "")


def test_a_new_optimizer_trains_every_layer(net, keep):
    assert step(pruning.remove_filters(net, keep, IMAGES), IMAGES) == []


def test_an_old_optimizer_holds_the_removed_parameters(net, keep):
    """Trap: it goes on training the old model, and the new one does not move."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    new = pruning.remove_filters(net, keep, IMAGES)
    before = deepcopy(new.state_dict())
    net(IMAGES).sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in new.state_dict().items())
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held.isdisjoint(id(parameter) for parameter in new.parameters())


@pytest.mark.parametrize("frozen", ["stem", "conv1", "res2", ""])
def test_frozen_layers_are_cut_and_stay_frozen(net, keep, frozen):
    """Trap: autograd does not see what is frozen, and what it does not see is not cut."""
    expected = pruning.remove_filters(net, keep, IMAGES)
    net.get_submodule(frozen).requires_grad_(False)
    new = pruning.remove_filters(net, keep, IMAGES)
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), expected.parameters(), strict=True))
    part = [name for name, _ in new.named_parameters() if name.startswith(frozen)]
    assert [name for name, p in new.named_parameters() if not p.requires_grad] == part
    if frozen:
        assert step(new, IMAGES) == part


def test_masks_are_baked_first(net, keep):
    masked = pruning.mask(net, pruning.layer_masks(net, 0.5))
    new = pruning.remove_filters(masked, keep, IMAGES)
    expected = pruning.remove_filters(pruning.bake(masked), keep, IMAGES)
    assert pruning.masks_of(new) == {} and len(pruning.masks_of(masked)) == 9
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), expected.parameters(), strict=True))


def test_zeroed_is_neither_smaller_nor_has_it_fewer_operations(net, keep):
    """Trap: masked mistaken for smaller or faster."""
    zeroed, new = pruning.zero_filters(net, keep, IMAGES), pruning.remove_filters(net, keep, IMAGES)
    for count in (measure.count_parameters, measure.count_weights, lambda model: measure.count_macs(model, IMAGES)):
        assert count(zeroed) == count(net) > count(new)
    assert measure.count_nonzero(zeroed) == measure.count_weights(new)
    assert (zeroed.conv2.bn.weight != 0).equal(keep["conv2.conv"])
    assert pruning.masks_of(zeroed) == {}


def test_zeroed_channels_stay_zero_in_training(net, keep):
    zeroed = pruning.zero_filters(net, keep, IMAGES)
    step(zeroed, IMAGES)
    assert measure.count_nonzero(zeroed) == measure.count_weights(pruning.remove_filters(net, keep, IMAGES))


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
    groups = pruning.groups(model, inputs)
    makers = [index for index, kind in enumerate(kinds) if kind in ("plain", "dense")]
    assert [int(group.name.split(".")[1]) for group in groups] == makers
    keep = random_keep(groups, seed=seed)
    removed = {index: ~keep[group.name] for index, group in zip(makers, groups, strict=True)}
    with torch.no_grad():
        expected = model(inputs, removed)
    predict = choosing._predictor(model, coupling.survey_of(model, inputs), inputs)
    assert predict({}) == measure.count_macs(model, inputs)
    if "dense" not in kinds:  # of a Sequential that is sliced, the counter does not know whose MACs they are
        assert predict(keep) == measure.count_macs(pruning.remove_filters(model, keep, inputs), inputs)
    assert_close(answers(pruning.remove_filters(model, keep, inputs), inputs), expected)
    assert_close(answers(pruning.zero_filters(model, keep, inputs), inputs), expected)


def shuffle(x: torch.Tensor) -> torch.Tensor:
    return x.view(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def gate(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, 1)
    return first * second.sigmoid()


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
    assert [group.name for group in pruning.groups(model, IMAGES)] == list(keep)
    for function in (pruning.remove_filters, pruning.zero_filters):
        with pytest.raises(ValueError, match=said):
            function(model, keep, IMAGES)
    assert pruning.remove_filters(model, {"1": keep["1"]}, IMAGES)[2].in_channels == 5
    with pytest.raises(ValueError, match="keep cuts '0', which torch-pruning cannot cut here"):
        pruning.choose_filters(model, filter_norms(model), IMAGES, macs_ratio=1.2, round_to=1)


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
        pruning.remove_filters(Joined(), {"a": torch.arange(4) > 0}, IMAGES[:, :, :2, :2].float())


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
    groups = pruning.groups(model, inputs)
    assert [(group.name, group.channels) for group in groups] == [("0", 6), ("2", 5)]
    keep = random_keep(groups)
    expected = answers_with_zeroed(model, [("1", "out", ~keep["0"]), ("2", "out", ~keep["2"])], inputs)
    new = pruning.remove_filters(model, keep, inputs)
    assert_close(answers(new, inputs), expected)
    assert_close(answers(pruning.zero_filters(model, keep, inputs), inputs), expected)
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
        ({"conv2.conv": [True] * 16}, r"keep\['conv2.conv'\] is a list; allowed: torch.bool \(16,\)"),
        ({"conv2.conv": torch.zeros(16) > 0}, r"keep\['conv2.conv'\] drops all 16 channels; allowed: a part"),
        (
            {"conv1.conv": torch.arange(12) > 1, "res1.block2.conv": torch.arange(12) > 2},
            r"keep\['res1.block2.conv'\] differs from the mask of 'conv1.conv'; allowed: one mask",
        ),
    ],
)
def test_bad_keeps(net, keep, said):
    for function in (pruning.remove_filters, pruning.zero_filters):
        with pytest.raises(ValueError, match=said):
            function(net, keep, IMAGES)


def test_a_cut_model_goes_through_the_courses_training(net, keep):
    from helpers.data import Split

    new = pruning.remove_filters(net.float(), keep, IMAGES.float())
    split = Split(IMAGES.float(), torch.arange(4))
    fitted = training.fit(new, split, epochs=3, lr=0.01, batch_size=4, progress=False)
    assert all(not torch.equal(a, b) for a, b in zip(fitted.model.parameters(), new.parameters(), strict=True))


def test_float32_is_enough_where_float64_is_impossible():
    """The constant reverses the channels: `a` cannot be cut there, and the comparison in float32 says so by name."""
    model, example = ANY["a float32 constant"]
    with pytest.raises(ValueError, match="keep cuts 'a', which torch-pruning cannot cut here"):
        pruning.remove_filters(model, {"a": torch.arange(8) > 2}, example)
    other = dense(lambda net, x: net.b(net.a(x @ net.constant).relu()))
    other.constant = torch.eye(6).flip(0)
    new = pruning.remove_filters(other, {"a": torch.arange(8) > 2}, ROWS)
    assert torch.allclose(answers(new, ROWS), zeroed_by_hand(other, ROWS), atol=1e-6)
    with torch.no_grad():
        other.b.bias.fill_(1e5)
    with pytest.raises(ValueError, match="depend too little on the inputs to be compared in float32"):
        pruning.remove_filters(other, {"a": torch.arange(8) > 2}, ROWS)


def test_what_neither_precision_can_compare():
    model = dense(lambda net, x: net.b(net.a(x)) if x.dtype is torch.bfloat16 else x @ None).bfloat16()
    with pytest.raises(ValueError, match="keep cuts 'a', .*the answers cannot be compared: TypeError"):
        pruning.remove_filters(model, {"a": torch.arange(8) > 2}, ROWS.bfloat16())
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("channels", "groups"),
    [((8, 8), 2), ((8, 16), 2), ((8, 16), 8), ((16, 8), 8)],
    ids=["8-8", "8-16", "8-16 of 8", "16-8"],
)
def test_transposed_convolutions_in_groups(channels, groups):
    torch.manual_seed(0)
    inside, outside = channels
    layers = {
        "a": nn.Conv2d(3, inside, 1),
        "c": nn.ConvTranspose2d(inside, outside, 3, groups=groups),
        "b": nn.Conv2d(outside, 4, 1),
        "d": nn.Conv2d(4, 2, 1),
    }
    model = Net(lambda net, x: net.d(net.b(net.c(net.a(x)))).flatten(1), **layers)
    found = pruning.groups(model, PHOTOS)
    assert "b" in [group.name for group in found]
    assert pruning.remove_filters(model, {"b": torch.arange(4) > 0}, PHOTOS).b.out_channels == 3
    for name in ("a", "c"):
        width = len(model.get_submodule(name).bias)
        with pytest.raises(ValueError, match=rf"keep.*'{name}'.*(transposed convolution in groups|cannot cut|unknown)"):
            pruning.remove_filters(
                model,
                {name: torch.arange(width) % (width // groups) > 0 if width > groups else torch.arange(width) > 0},
                PHOTOS,
            )


@pytest.mark.parametrize("put", [prune.l1_unstructured, nn.utils.weight_norm, parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_what_torch_has_put_on_weights_is_baked(put):
    model = dense()
    put(model.a, "weight", *([0.5] if put is prune.l1_unstructured else []))
    model(ROWS).sum().backward()
    baked, keep = pruning.bake(model), {"a": torch.arange(8) > 2}
    expected = pruning.remove_filters(baked, keep, ROWS)
    new = pruning.remove_filters(model, keep, ROWS)
    assert torch.equal(answers(new, ROWS), answers(expected, ROWS))
    assert dict(new.named_parameters()).keys() == dict(expected.named_parameters()).keys()


def tied(*names: str) -> nn.Module:
    layers = {"a": nn.Linear(6, 6), "c": nn.Linear(6, 6), "d": nn.Linear(6, 8), "b": nn.Linear(8, 3)}
    torch.manual_seed(0)
    model = Net(lambda net, x: net.b(net.d(net.c(net.a(x).relu()).relu()).relu()), **layers)
    for name in names:
        setattr(model.c, name, getattr(model.a, name))
    return model


@pytest.mark.parametrize("names", [("weight",), ("bias",), ("weight", "bias")])
def test_what_is_tied_is_refused_by_name_and_stays_tied_elsewhere(names):
    model = tied(*names)
    assert [group.name for group in pruning.groups(model, ROWS)] == ["d"]
    for name in ("a", "c"):
        for function in (pruning.remove_filters, pruning.zero_filters):
            with pytest.raises(
                ValueError, match=f"keep has {name!r}, but its channels meet 'a.(weight|bias)', which several"
            ):
                function(model, {name: torch.arange(6) > 0}, ROWS)
    keep = pruning.choose_filters(
        model, {"a": torch.arange(6.0), "d": torch.arange(8.0)}, ROWS, macs_ratio=1.1, round_to=1
    )
    assert list(keep) == ["d"]
    new = pruning.remove_filters(model, keep, ROWS)
    assert all(getattr(new.a, name) is getattr(new.c, name) for name in names)
    assert torch.allclose(answers(new, ROWS), answers(pruning.zero_filters(model, keep, ROWS), ROWS), atol=1e-6)


def test_both_names_of_one_layer_are_accepted():
    model = dense()
    model.again, model.then = model.a, nets.Residual(2)
    model.same = model.then
    keep = torch.arange(8) > 2
    expected = pruning.remove_filters(model, {"a": keep}, ROWS)
    for masks in ({"again": keep}, {"a": keep, "again": keep}):
        new = pruning.remove_filters(model, masks, ROWS)
        assert new.again is new.a and torch.equal(answers(new, ROWS), answers(expected, ROWS))
    chosen = pruning.choose_filters(model, {"again": torch.arange(8.0)}, ROWS, macs_ratio=1.2, round_to=1)
    assert list(chosen) == ["a"] and not chosen["a"].all()
    new = pruning.remove_block(model, "same")
    assert isinstance(new.same, nn.Identity) and isinstance(new.then, nets.Residual)


class Window(nn.Module):
    """What torch-pruning goes round in: attention in a window, by a layer's weight, with a bias for positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.zeros(1, 2, 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, places, channels = x.shape
        q, k, v = (
            F.linear(x, self.qkv.weight, self.qkv.bias).view(batch, places, 3, 2, channels // 2).permute(2, 0, 3, 1, 4)
        )
        attention = (q @ k.transpose(-2, -1) + self.bias).softmax(-1)
        return F.linear((attention @ v).transpose(1, 2).reshape(x.shape), self.out.weight, self.out.bias)


def windowed() -> tuple[nn.Module, torch.Tensor]:
    layers = {"stem": nn.Conv2d(3, 8, 4, 4), "fc": nn.Linear(8, 4)}
    windows, norms = nn.ModuleList([Window(8), Window(8)]), nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(8)])

    def function(net, x):
        x = net.stem(x).flatten(2).transpose(1, 2)
        for window, norm in zip(net.windows, net.norms, strict=True):
            x = x + window(norm(x))
        return net.fc(x.mean(1))

    return Net(function, windows=windows, norms=norms, **layers), torch.randn(2, 3, 16, 16)


def swin() -> tuple[nn.Module, torch.Tensor]:
    from torchvision.models import SwinTransformer

    return SwinTransformer([2, 2], 8, [1, 1], [2, 2], [4, 4], num_classes=10), torch.randn(2, 3, 16, 16)


@pytest.mark.parametrize(
    ("build", "can_be_cut"), [(windowed, []), (swin, ["features.1.0.mlp.0", "features.3.0.mlp.0"])]
)
def test_the_search_for_groups_ends(build, can_be_cut):
    """torch-pruning's own does not, in 200 s, and takes 2.8 GB: followed round, positions become ever more."""
    model, example = build()
    started, peak = time.perf_counter(), measure_peak()
    found = pruning.groups(model, example)
    assert time.perf_counter() - started < 30 and measure_peak() - peak < 500
    assert [group.name for group in found] == can_be_cut
    stem = "stem" if build is windowed else "features.0.0"
    with pytest.raises(
        ValueError, match=f"keep has '{stem}', but (torch-pruning follows|its channels pass a LayerNorm)"
    ):
        pruning.remove_filters(model, {stem: torch.arange(8) > 2}, example)
    keep = {name: torch.arange(len(model.get_submodule(name).bias)) > 9 for name in can_be_cut}
    new = pruning.remove_filters(model, keep, example)
    zeroed = deepcopy(model)  # GELU makes zero of zero
    with torch.no_grad():
        for name in can_be_cut:
            zeroed.get_submodule(name).weight[:10] = 0
            zeroed.get_submodule(name).bias[:10] = 0
    assert torch.allclose(answers(new, example), answers(zeroed, example), atol=1e-5)


def measure_peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def test_a_constant_far_above_the_answers_is_no_obstacle_in_float64():
    """Added in float32, it would drown what depends on the inputs."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = dense(lambda net, x, dtype=dtype: net.b(net.a(x.to(dtype).float()).relu()) + 1e5)
        new = pruning.remove_filters(model, {"a": torch.arange(8) > 2}, ROWS)
        assert torch.allclose(answers(new, ROWS), zeroed_by_hand(model, ROWS)) and new.a.out_features == 5


def test_an_answer_of_another_shape_is_refused():
    model = dense(lambda net, x: net.b(net.a(x).relu())[:, :1].expand(-1, net.a.out_features))
    with pytest.raises(ValueError, match=r"the answers have the shape \(4, 5\), with zeroed channels \(4, 8\)"):
        pruning.remove_filters(model, {"a": torch.arange(8) > 2}, ROWS)
    with pytest.raises(ValueError, match=r"the answers have the shape \(4, 1\), with zeroed channels \(4, 8\)"):
        pruning.remove_filters(model, {"a": torch.arange(8) > 6}, ROWS)


def test_masks_of_grouped_convolutions_are_the_same_in_each_part():
    model, keep = conv_net(F.relu, nn.Conv2d(8, 8, 3, padding=1, groups=2)), torch.tensor([True, False, True, True])
    new = pruning.remove_filters(model, {"1": keep.repeat(2)}, IMAGES)
    assert_close(answers(new, IMAGES), answers_with_zeroed(model, [("1", "out", ~keep.repeat(2))], IMAGES))
    with pytest.raises(ValueError, match=r"keep\['1'\] drops different channels in the 2 parts"):
        pruning.remove_filters(model, {"1": torch.cat([keep, ~keep])}, IMAGES)
