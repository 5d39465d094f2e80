"""Importance against finite differences, exact Hessians and brute force."""

import re
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.fusion import fuse_conv_bn_eval

from helpers import importance, models, pruning
from helpers.data import Split


def random_numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unsettle(model: nn.Module) -> nn.Module:
    """Give batch normalization statistics and scales that a trained net could have; evaluation mode, float64."""
    for i, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = random_numbers(module.num_features, seed=i) / 5
            module.running_var = random_numbers(module.num_features, seed=i + 100).exp()
            module.weight.data = 1 + random_numbers(module.num_features, seed=i + 200) / 3
            module.bias.data = random_numbers(module.num_features, seed=i + 300) / 3
    return model.double().eval()


@pytest.fixture
def net() -> nn.Module:
    """A CIFAR net, plain and residual parts, thin enough for brute force."""
    torch.manual_seed(0)
    return unsettle(models.CifarNet((3, 4, 5, 6), classes=4))


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


class InPlace(nn.Module):
    """What torchvision's residual blocks do: activations and sums that overwrite their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 5, 3)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x
        y = self.relu(y)
        return self.fc(self.relu(self.conv3(y)).mean((2, 3)))


def exact_hessian(model: nn.Module, split: Split, names: list[str]) -> torch.Tensor:
    """The dense Hessian over the parameters `names`, flattened in their order."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    shapes = [parameters[name].shape for name in names]
    flat = torch.cat([parameters[name].flatten() for name in names])

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        replaced = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, parameters | replaced, split.inputs), split.labels)

    return torch.autograd.functional.hessian(loss, flat)


def _without(keep: torch.Tensor, module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output * keep.view([1, -1] + [1] * (output.dim() - 2))


def damage_by_hooks(model: nn.Module, split: Split, site: nn.Module) -> torch.Tensor:
    """Brute force: zero one channel of the output of `site` after the other, in full forward passes."""
    losses = []
    with torch.no_grad():
        before = F.cross_entropy(model(split.inputs), split.labels)
        channels = (site.bias if site.bias is not None else site.weight).shape[0]
        for channel in range(channels):
            hook = site.register_forward_hook(partial(_without, torch.arange(channels) != channel))
            losses.append(F.cross_entropy(model(split.inputs), split.labels) - before)
            hook.remove()
    return torch.stack(losses)


# ---------------------------------------------------------------- scores of filters


@pytest.mark.parametrize(("norm", "expected"), [(1, [10.0, 3.0]), (2, [30**0.5, 5**0.5])])
def test_filter_norms(norm, expected):
    model = nn.Sequential(nn.Conv2d(1, 2, 2, bias=False), nn.Flatten(), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[[[1.0, -2.0], [3.0, -4.0]]], [[[0.0, 0.0], [-1.0, 2.0]]]])
    scores = importance.filter_norms(model, norm=norm)
    assert scores.keys() == {"0", "2"}
    assert scores["0"].tolist() == pytest.approx(expected)
    assert not scores["0"].requires_grad
    assert importance.filter_norms(model, names=["2"]).keys() == {"2"}


def test_masked_weights_count_as_zero(tiny):
    masks = {"0.weight": torch.tensor([[True], [False], [True], [True]]).expand(4, 3).clone()}
    scores = importance.filter_norms(pruning.mask(tiny, masks))["0"]
    assert scores[1] == 0
    assert torch.equal(scores[[0, 2, 3]], importance.filter_norms(tiny)["0"][[0, 2, 3]])


def test_random_scores_depend_on_the_seed_alone(net):
    first, again, other = (importance.random_filter_scores(net, seed=seed) for seed in (1, 1, 2))
    assert {name: len(score) for name, score in first.items()}["conv3.conv"] == 6
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert all(((score >= 0) & (score < 1)).all() for score in first.values())


@pytest.mark.parametrize("layer", ["stem", "res1.block1", "res2.block2"])
def test_taylor_scores_are_squared_slopes_of_single_examples(net, images, layer):
    """The slope by finite differences: scale what batch normalization gives by 1 ± a little."""
    bn = net.get_submodule(layer).bn
    slopes = torch.zeros(10, bn.num_features, dtype=torch.float64)
    for channel in range(bn.num_features):
        losses = []
        for step in (1e-5, -1e-5):
            moved = deepcopy(net)
            for values in (moved.get_submodule(layer).bn.weight, moved.get_submodule(layer).bn.bias):
                values.data[channel] *= 1 + step
            losses.append(F.cross_entropy(moved(images.inputs), images.labels, reduction="none").detach())
        slopes[:, channel] = (losses[0] - losses[1]) / 2e-5
    expected = (slopes**2).mean(0)
    for batch_size in (3, 10):
        scores = importance.taylor_scores(net, images, names=[f"{layer}.conv"], batch_size=batch_size)
        assert scores.keys() == {f"{layer}.conv"}
        assert torch.allclose(scores[f"{layer}.conv"], expected, rtol=1e-4, atol=1e-10)


def test_taylor_scores_of_linear_layers_and_of_sequences():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.AdaptiveAvgPool2d((1, 4)), nn.Flatten(), nn.Linear(4, 2)
    ).double()
    split = Split(random_numbers(6, 5, 3), torch.tensor([0, 1] * 3))
    scores = importance.taylor_scores(model, split)
    assert {name: tuple(score.shape) for name, score in scores.items()} == {"0": (4,), "4": (2,)}
    expected = torch.zeros(4, dtype=torch.float64)
    for inputs, label in zip(split.inputs, split.labels, strict=True):
        gate = torch.ones(4, dtype=torch.float64, requires_grad=True)
        logits = model[4](model[2](torch.tanh(gate * model[0](inputs))[None]).flatten(1))
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, label[None]), gate)
        expected += slope**2 / 6
    assert torch.allclose(scores["0"], expected)


# ---------------------------------------------------------------- derivatives


def test_gradients_are_slopes_whatever_the_batches(tiny, points):
    whole, parts = (importance.gradients(tiny, points, batch_size=size) for size in (20, 7))
    for name, parameter in tiny.named_parameters():
        assert torch.allclose(whole[name], parts[name])
        slopes = torch.zeros_like(parameter).flatten()
        for i in range(parameter.numel()):
            losses = []
            for step in (1e-6, -1e-6):
                moved = deepcopy(tiny)
                moved.get_parameter(name).data.view(-1)[i] += step
                losses.append(F.cross_entropy(moved(points.inputs), points.labels).item())
            slopes[i] = (losses[0] - losses[1]) / 2e-6
        assert torch.allclose(whole[name].flatten(), slopes.detach(), atol=1e-8)


def test_the_loss_can_be_chosen(tiny, points):
    doubled = importance.gradients(tiny, points, loss=lambda m, x, y: 2 * F.cross_entropy(m(x), y))
    assert torch.allclose(doubled["0.weight"], 2 * importance.gradients(tiny, points)["0.weight"])


@pytest.mark.parametrize("names", [None, ["0"], ["2"]])
def test_hessian_product_is_the_hessian_times_v(tiny, points, names):
    product = importance.hessian_product(tiny, points, names=names)
    keys = [key for key, _ in tiny.named_parameters() if names is None or key[0] in names]
    hessian = exact_hessian(tiny, points, keys)
    for seed in (0, 1):
        v = {key: random_numbers(*tiny.get_parameter(key).shape, seed=seed) for key in keys}
        found = torch.cat([value.flatten() for value in product(v).values()])
        assert torch.allclose(found, hessian @ torch.cat([value.flatten() for value in v.values()]))


def test_hutchinson_and_its_standard_error(tiny, points):
    """The variance of v_i (Hv)_i for v of ±1 is the sum of the squares beside the diagonal, in closed form."""
    estimate = importance.hessian_diagonal(tiny, points, samples=800, seed=3)
    hessian = exact_hessian(tiny, points, [name for name, _ in tiny.named_parameters()])
    value, error = (torch.cat([part.flatten() for part in parts.values()]) for parts in estimate)
    off = (hessian**2).sum(1) - hessian.diagonal() ** 2
    assert torch.allclose(error, (off / 800).sqrt(), rtol=0.2)
    z = (value - hessian.diagonal()) / error
    assert (z.abs() < 3).float().mean() > 0.9
    assert 0.5 < (z**2).mean() < 2


def test_hutchinson_is_exact_where_the_hessian_is_diagonal():
    """With a loss that is a sum over parameters, every ±1 sample is exact."""
    model = nn.Sequential(nn.Linear(2, 2)).double()

    def loss(model, inputs, labels):
        return (model[0].weight ** 4).sum() + (model[0].bias ** 2).sum()

    estimate = importance.hessian_diagonal(model, Split(torch.zeros(1, 2), torch.zeros(1)), samples=2, loss=loss)
    assert torch.allclose(estimate.value["0.weight"], 12 * model[0].weight.detach() ** 2)
    assert torch.allclose(estimate.value["0.bias"], torch.full((2,), 2.0).double())
    assert estimate.error["0.weight"].max() < 1e-12


@pytest.mark.parametrize("names", [None, ["2"]])
def test_largest_eigenvalues(tiny, points, names):
    keys = [key for key, _ in tiny.named_parameters() if names is None or key[0] in names]
    exact = torch.linalg.eigvalsh(exact_hessian(tiny, points, keys))
    expected = sorted(exact.tolist(), key=abs, reverse=True)[:4]
    found = importance.largest_eigenvalues(tiny, points, count=4, iterations=3000, tol=1e-12, names=names)
    assert found == pytest.approx(expected, rel=1e-3)


def test_eigenvalues_keep_their_sign(tiny, points):
    def negative(model, inputs, labels):
        return -F.cross_entropy(model(inputs), labels)

    options = {"count": 2, "iterations": 1000, "tol": 1e-10}
    positive = importance.largest_eigenvalues(tiny, points, **options)
    assert importance.largest_eigenvalues(tiny, points, loss=negative, **options) == pytest.approx(
        [-v for v in positive]
    )


def test_a_flat_loss_has_eigenvalue_zero(tiny, points):
    def flat(model, inputs, labels):
        return sum((parameter * 0).pow(2).sum() for parameter in model.parameters())

    assert importance.largest_eigenvalues(tiny, points, count=2, loss=flat) == [0, 0]


# ---------------------------------------------------------------- the judge


@pytest.mark.parametrize("layer", ["stem", "conv1", "res1.block1", "res1.block2", "conv3", "res2.block2"])
def test_damage_equals_brute_force(net, images, layer):
    expected = damage_by_hooks(net, images, net.get_submodule(layer).bn)
    assert expected.abs().max() > 1e-4
    for batch_size in (4, 10):
        found = importance.removal_damage(net, images, f"{layer}.conv", batch_size=batch_size)
        assert torch.allclose(found, expected, atol=1e-12)


def test_damage_is_the_same_with_batch_normalization_folded(net, images):
    """Folded, a filter is its weights and its bias, and the rest of the network cannot tell."""
    block = net.res1.block1
    expected = importance.removal_damage(net, images, "res1.block1.conv")
    block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
    assert torch.allclose(importance.removal_damage(net, images, "res1.block1.conv"), expected)
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
    assert torch.allclose(importance.removal_damage(model, images, layer), expected, atol=1e-12)


def test_damage_of_a_masked_network(net, images):
    masks = pruning.layer_masks(net, 0.6)
    expected = importance.removal_damage(pruning.bake(pruning.mask(net, masks)), images, "conv2.conv")
    assert torch.equal(importance.removal_damage(pruning.mask(net, masks), images, "conv2.conv"), expected)
    assert not torch.allclose(importance.removal_damage(net, images, "conv2.conv"), expected)


def test_a_layer_that_is_called_twice_is_refused(tiny, points):
    shared = nn.Sequential(layer := nn.Linear(3, 3), nn.Tanh(), layer).double()
    with pytest.raises(ValueError, match="2 times"):
        importance.removal_damage(shared, points, "0")


# ---------------------------------------------------------------- rank correlation


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
def test_rank_correlation_equals_scipys_ties_included(pairs):
    a, b = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True))
    found = importance.rank_correlation({"x": a}, {"x": b}, resamples=2).value
    if a.min() == a.max() or b.min() == b.max():
        assert found == 0
    else:
        assert found == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_within_averages_layers_and_without_compares_across_them():
    """Right inside of both layers, wrong about which layer matters."""
    scores = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([11.0, 12.0, 13.0])}
    damage = {"a": torch.tensor([21.0, 22.0, 23.0]), "b": torch.tensor([1.0, 2.0, 3.0])}
    assert importance.rank_correlation(scores, damage, within=True).value == pytest.approx(1)
    expected = spearmanr([1, 2, 3, 11, 12, 13], [21, 22, 23, 1, 2, 3]).statistic
    assert importance.rank_correlation(scores, damage).value == pytest.approx(expected)
    opposite = {"a": -scores["a"], "b": scores["b"]}
    assert importance.rank_correlation(opposite, damage, within=True).value == pytest.approx(0)


def test_the_interval_covers_the_truth():
    """Bivariate normal with correlation 0.6: Spearman's is 6/π asin(0.3). Of 60 intervals nearly all hold it."""
    truth, held = 6 / np.pi * np.arcsin(0.3), 0
    for seed in range(60):
        a, noise = random_numbers(2, 80, seed=seed)
        low, high = importance.rank_correlation({"x": a}, {"x": 0.6 * a + 0.8 * noise}, resamples=300).interval
        assert low < high
        held += low < truth < high
    assert 50 <= held <= 60


def test_shared_ranks_need_a_clear_difference():
    damage = {"x": random_numbers(200)}
    scores = {
        "good": damage["x"] + 0.2 * random_numbers(200, seed=1),
        "as good": damage["x"] + 0.2 * random_numbers(200, seed=2),
        "fair": damage["x"] + 1.0 * random_numbers(200, seed=3),
        "noise": random_numbers(200, seed=4),
    }
    found = {name: importance.rank_correlation({"x": score}, damage) for name, score in scores.items()}
    assert importance.shared_ranks(found) == {"good": 1, "as good": 1, "fair": 3, "noise": 4}


def test_a_score_never_beats_itself_rescaled():
    damage = {"x": random_numbers(50)}
    score = damage["x"] + random_numbers(50, seed=1)
    found = {k: importance.rank_correlation({"x": v}, damage) for k, v in {"a": score, "b": score.exp()}.items()}
    assert np.array_equal(found["a"].draws, found["b"].draws)
    assert importance.shared_ranks(found) == {"a": 1, "b": 1}


# ---------------------------------------------------------------- what holds for all


@pytest.mark.parametrize(
    "use",
    [
        lambda model, split: importance.filter_norms(model),
        lambda model, split: importance.random_filter_scores(model),
        lambda model, split: importance.taylor_scores(model, split),
        lambda model, split: importance.gradients(model, split),
        lambda model, split: importance.hessian_diagonal(model, split, samples=2),
        lambda model, split: importance.largest_eigenvalues(model, split, iterations=2),
        lambda model, split: importance.removal_damage(model, split, "conv2.conv"),
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


def a_score() -> dict[str, torch.Tensor]:
    return {"a": torch.arange(3.0)}


def a_nan() -> dict[str, torch.Tensor]:
    return {"a": torch.tensor([1.0, 2.0, torch.nan])}


def draws(count: int, value: float = 0.5) -> importance.Correlation:
    return importance.Correlation(0.5, (0.4, 0.6), np.full(count, value))


def tensors(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


# ---------------------------------------------------------------- networks of every kind

LABELS = torch.tensor([0, 2, 1, 1, 0, 2])


class Calling(nn.Module):
    """Hands a layer and its input to a function."""

    def __init__(self, layer, call) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        return self.call(self.layer, x)


def seeded(build) -> nn.Module:
    torch.manual_seed(0)
    return build().double().eval()


class Viewed(nn.Module):
    """Flattens by `view`, which refuses images that are channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(27, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).view(len(x), -1))


class Keywords(Viewed):
    """Every layer called by keyword."""

    def forward(self, x):
        return self.fc(input=torch.relu(self.bn(input=self.conv(input=x))).flatten(1))


class OneAtATime(Viewed):
    """Takes a batch of one only."""

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).reshape(1, -1))


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


def taylor_by_hooks(model: nn.Module, split: Split, site: nn.Module, filters: int, dim: int) -> torch.Tensor:
    """Brute force: the squared slope at a gate, one example after the other."""
    total = torch.zeros(filters, dtype=torch.float64)
    for index in range(len(split)):
        gate = torch.ones(filters, dtype=torch.float64, requires_grad=True)

        def multiply(module, inputs, output, gate=gate):
            return output * gate.view([-1] + [1] * (output.dim() - 1 - dim % output.dim()))

        hook = site.register_forward_hook(multiply)
        loss = F.cross_entropy(model(split.inputs[index : index + 1]), split.labels[index : index + 1])
        hook.remove()
        total += torch.autograd.grad(loss, gate)[0] ** 2
    return total / len(split)


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
    found = importance.taylor_scores(model, split, batch_size=batch_size)
    assert torch.allclose(found[layer], expected, rtol=1e-9)
    assert torch.allclose(found["fc"], taylor_by_hooks(model, split, model.fc, 3, -1), rtol=1e-9)

    loss = F.cross_entropy(answers_one_by_one(model, split.inputs), split.labels)
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    gradients = importance.gradients(model, split, batch_size=batch_size)
    for (name, _), slope in zip(model.named_parameters(), slopes, strict=True):
        assert torch.allclose(gradients[name], slope, atol=1e-12), name

    if kind == "row by row":
        with pytest.raises(ValueError, match="layer='conv' is called [24-6] times"):
            importance.removal_damage(model, split, layer, batch_size=max(2, batch_size))
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
    found = importance.removal_damage(model, split, layer, batch_size=batch_size)
    assert torch.allclose(found, torch.stack(damage), atol=1e-12)


def test_second_derivatives_of_a_network_that_takes_one_example_at_a_time():
    split = Split(random_numbers(6, 2, 5, 5, seed=1), LABELS)
    one, many = seeded(OneAtATime), seeded(Viewed)
    one.load_state_dict(many.state_dict())
    v = {name: random_numbers(*p.shape, seed=7) for name, p in one.named_parameters()}
    found, expected = (importance.hessian_product(model, split)(v) for model in (one, many))
    assert all(torch.allclose(found[name], expected[name], atol=1e-12) for name in v)


def test_what_was_overwritten_alone_computes_again():
    """The module before the one whose output is overwritten hands out what it computed: it runs once for a batch."""
    counts = []
    for channels in (3, 40):
        model = seeded(Overwriting)
        model.conv, model.fc = nn.Conv2d(3, channels, 1).double(), nn.Linear(channels, 3).double()
        runs: list[int] = []
        model.first.call = lambda layer, x, runs=runs: (runs.append(1), layer(x).tanh())[1]
        importance.removal_damage(model, Split(random_numbers(6, 2, 5, 5), LABELS), "conv")
        counts.append(len(runs))
    assert counts[0] == counts[1]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the old names
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
)
def test_weights_that_torch_computes(images, change):
    """Scored as the ordinary weights that they come to, also after a forward pass in training."""
    torch.manual_seed(0)
    model = InPlace()
    change(model.conv1)
    change(model.fc)
    model.train()(images.inputs.float())
    unsettle(model)
    with torch.no_grad():
        model(images.inputs)
    plain = unsettle(InPlace())
    own = {name: value for name, value in model.state_dict().items() if name in plain.state_dict()}
    effective = {f"{name}.weight": getattr(model, name).weight.detach() for name in ("conv1", "fc")}
    plain.load_state_dict(plain.state_dict() | own | effective)
    v = {"fc.weight": random_numbers(4, 5), "fc.bias": random_numbers(4)}
    for use in (
        importance.filter_norms,
        lambda m: importance.taylor_scores(m, images),
        lambda m: importance.gradients(m, images),
        lambda m: {"conv2": importance.removal_damage(m, images, "conv2")},
        lambda m: importance.hessian_product(m, images, names=["fc"])(v),
    ):
        found, expected = use(model), use(plain)
        assert found.keys() == expected.keys()
        for name in found:
            assert torch.allclose(found[name], expected[name], atol=1e-10), name


def test_norms_of_transposed_convolutions():
    """Two groups: output channels 0 and 1 read the first three inputs, 2 and 3 the others."""
    layer = nn.ConvTranspose2d(6, 4, 2, groups=2)
    for channel in range(4):
        weights = layer.weight.detach()[3 * (channel // 2) : 3 * (channel // 2) + 3, channel % 2]
        assert importance.filter_norms(nn.Sequential(layer))["0"][channel] == pytest.approx(float(weights.abs().sum()))
        with torch.no_grad():
            made = layer(torch.ones(1, 6, 1, 1))[0, channel].sum() - 4 * layer.bias[channel]
        assert float(made) == pytest.approx(float(weights.sum()), abs=1e-5)
    assert len(importance.random_filter_scores(nn.Sequential(layer))["0"]) == 4


class Language(nn.Module):
    """A decoder that shares its embedding's weight, and one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.fc, self.dec = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5)
        self.dec.weight, self.again = self.emb.weight, self.fc

    def forward(self, tokens):
        return self.dec(torch.tanh(self.again(self.emb(tokens)))).mT


def test_second_names_of_tied_tensors():
    model = seeded(Language)
    split = Split(torch.arange(20).view(5, 4) % 5, torch.arange(20).view(5, 4) % 3)
    loss = F.cross_entropy(model(split.inputs), split.labels)
    weight, bias = torch.autograd.grad(loss, [model.dec.weight, model.dec.bias])
    everything, second = importance.gradients(model, split), importance.gradients(model, split, names=["dec"])
    assert list(everything) == ["emb.weight", "fc.weight", "fc.bias", "dec.bias"]
    assert torch.allclose(everything["emb.weight"], weight)
    assert list(second) == ["dec.weight", "dec.bias"]
    assert torch.allclose(second["dec.weight"], weight)
    assert torch.allclose(second["dec.bias"], bias)
    diagonal = importance.hessian_diagonal(model, split, samples=2, names=["dec"]).value
    assert diagonal["dec.weight"].shape == (5, 4)
    assert importance.largest_eigenvalues(model, split, names=["dec"], iterations=3)[0] > 0
    for use in (
        importance.filter_norms,
        importance.random_filter_scores,
        partial(importance.taylor_scores, split=split),
    ):
        first, other = use(model, names=["fc"])["fc"], use(model, names=["again"])["again"]
        assert torch.equal(first, other)
        assert list(use(model)) == ["fc", "dec"]
    found = [importance.removal_damage(model, split, name) for name in ("fc", "again")]
    assert torch.equal(*found)


# ---------------------------------------------------------------- attention, and layers that are not called


class Attending(nn.Module):
    def __init__(self, *, norm_first: bool = False) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, norm_first=norm_first)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.encoder(x).mean(1))


class ByHand(nn.Module):
    """The same for `Attending`, in products and sums; the projection's output goes through a layer of its own."""

    def __init__(self, model: Attending) -> None:
        super().__init__()
        self.model, self.projection = model, nn.Identity()

    def forward(self, x):
        layer, attention = self.model.encoder, self.model.encoder.self_attn
        q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).unflatten(2, (3, 2, 2)).unbind(2)
        weights = torch.einsum("bihd,bjhd->bhij", q, k).div(2**0.5).softmax(3)
        mixed = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)
        x = layer.norm1(x + self.projection(F.linear(mixed, attention.out_proj.weight, attention.out_proj.bias)))
        x = layer.norm2(x + layer.linear2(torch.relu(layer.linear1(x))))
        return self.model.fc(x.mean(1))


@pytest.fixture
def sequences() -> Split:
    return Split(random_numbers(6, 5, 4, seed=5), LABELS)


def test_taylor_scores_of_an_encoder_layer(sequences):
    """Also of the projection, whose weight `nn.MultiheadAttention` uses without calling the layer."""
    model = seeded(Attending)
    by_hand = ByHand(model)
    assert torch.allclose(by_hand(sequences.inputs), model(sequences.inputs))
    scores = importance.taylor_scores(model, sequences)
    sites = {"encoder.self_attn.out_proj": (by_hand.projection, 4), "encoder.linear1": (model.encoder.linear1, 6)}
    sites |= {"encoder.linear2": (model.encoder.linear2, 4), "fc": (model.fc, 3)}
    assert scores.keys() == sites.keys()
    for name, (site, filters) in sites.items():
        assert torch.allclose(scores[name], taylor_by_hooks(by_hand, sequences, site, filters, -1), rtol=1e-8), name
    alone = importance.taylor_scores(model, sequences, names=["encoder.self_attn.out_proj"])
    assert torch.equal(alone["encoder.self_attn.out_proj"], scores["encoder.self_attn.out_proj"])


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
    assert torch.allclose(importance.removal_damage(model, sequences, "encoder.linear1"), expected, atol=1e-12)
    with pytest.raises(ValueError, match="layer='encoder.self_attn.out_proj' is called 0 times"):
        importance.removal_damage(model, sequences, "encoder.self_attn.out_proj")


def _without_unit(keep: torch.Tensor, module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output * keep


def test_second_derivatives_of_attention(sequences):
    model = seeded(Attending)
    by_hand = ByHand(model)
    names = [name for name, _ in by_hand.named_parameters()]
    hessian = exact_hessian(by_hand, sequences, names)
    v = {name: random_numbers(*p.shape, seed=3) for name, p in model.named_parameters()}
    found = importance.hessian_product(model, sequences)(v)
    flat = torch.cat([found[name.removeprefix("model.")].flatten() for name in names])
    assert torch.allclose(flat, hessian @ torch.cat([v[name.removeprefix("model.")].flatten() for name in names]))


def test_layers_that_are_used_without_being_called_are_refused_and_unused_ones_score_zero(points):
    used = Calling(nn.Linear(3, 3), lambda layer, x: F.linear(x, layer.weight))
    for names in (None, ["layer"]):
        with pytest.raises(ValueError, match="layer 'layer' is never called, its weight is used by 'Calling'"):
            importance.taylor_scores(used.double(), points, names=names)
    model = nn.Sequential(nn.Linear(3, 3), Calling(nn.Linear(3, 3), lambda layer, x: x)).double()
    scores = importance.taylor_scores(model, points)
    assert scores["0"].min() > 0
    assert scores["1.layer"].tolist() == [0, 0, 0]
    tied = seeded(lambda: nn.MultiheadAttention(4, 2, batch_first=True))
    tied.other = nn.Linear(4, 4).double()
    tied.other.weight = tied.out_proj.weight
    model = nn.Sequential(Calling(tied, lambda layer, x: layer.other(layer(x, x, x)[0]).mean(1)))
    with pytest.raises(ValueError, match="layer '0.layer.out_proj' is never called"):
        importance.taylor_scores(model, Split(random_numbers(6, 5, 4), LABELS), names=["0.layer.out_proj"])


# ---------------------------------------------------------------- where a filter is removed


def test_batch_normalization_that_does_not_read_the_layer_itself():
    """A ReLU in place hands on the very tensor that the layer made: what is read is not the layer's output."""
    split = Split(random_numbers(6, 2, 5, 5, seed=1), LABELS)

    def build(inplace):
        layers = [nn.Conv2d(2, 3, 3), nn.ReLU(inplace=inplace), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 3)]
        return unsettle(seeded(lambda: nn.Sequential(*layers)))

    beside, inplace = build(False), build(True)
    inplace.load_state_dict(beside.state_dict())
    for use in (lambda m: importance.taylor_scores(m, split)["0"], lambda m: importance.removal_damage(m, split, "0")):
        assert torch.allclose(use(inplace), use(beside))
    assert torch.allclose(importance.removal_damage(beside, split, "0"), damage_by_hooks(beside, split, beside[0]))


def test_batch_normalization_over_another_dimension():
    """BatchNorm1d behind a linear layer of sequences normalizes the places, not the units."""
    model = unsettle(seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Flatten(), nn.Linear(25, 3))))
    split = Split(random_numbers(6, 5, 4, seed=5), LABELS)
    scores = importance.taylor_scores(model, split)
    assert torch.allclose(scores["0"], taylor_by_hooks(model, split, model[0], 5, -1))
    flat = unsettle(seeded(lambda: nn.Sequential(nn.Linear(20, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))))
    split = Split(split.inputs.flatten(1), LABELS)
    assert torch.allclose(importance.taylor_scores(flat, split)["0"], taylor_by_hooks(flat, split, flat[1], 5, 1))
    assert torch.allclose(importance.removal_damage(flat, split, "0"), damage_by_hooks(flat, split, flat[1]))


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
        partial(importance.taylor_scores, names=["layer.0"]),
        partial(importance.removal_damage, layer="layer.0"),
    ):
        with pytest.raises(ValueError, match="layer 'layer.0' shares a batch normalization"):
            use(model, split)


def test_a_block_that_is_called_twice_has_one_gate():
    parts = nn.ModuleList([nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 3)])
    twice = seeded(lambda: Calling(parts, lambda p, x: p[2](p[1](p[0](p[1](p[0](x)).relu())).mean((2, 3)))))
    split = Split(random_numbers(6, 2, 5, 5, seed=1), LABELS)
    found = importance.taylor_scores(twice, split)["layer.0"]
    assert torch.allclose(found, taylor_by_hooks(twice, split, twice.layer[1], 2, 1))


# ---------------------------------------------------------------- second derivatives

BAGS = {
    "mean": {"mode": "mean"},
    "sum": {"mode": "sum"},
    "padding": {"mode": "mean", "padding_idx": 1},
    "sparse": {"mode": "sum", "sparse": True},
    "last offset": {"mode": "mean", "include_last_offset": True},
    "weighted": {"mode": "sum", "padding_idx": 2},
}


@pytest.mark.parametrize("kind", BAGS)
def test_second_derivatives_of_bags(kind):
    torch.manual_seed(0)
    bag, fc = nn.EmbeddingBag(6, 4, **BAGS[kind]).double(), nn.Linear(4, 3).double()
    tokens = torch.tensor([[0, 1, 2], [1, 1, 1], [3, 4, 5], [5, 5, 0], [2, 3, 1], [4, 0, 2]])
    weights = random_numbers(6, 3, seed=4)
    offsets = torch.tensor([0, 3, 3, 7, 9, 17, 18])  # the second of six is empty
    offsets = offsets if kind == "last offset" else offsets[:-1]
    given = {
        "weighted": lambda layer, x: layer(x, per_sample_weights=weights[: len(x)]),
        "last offset": lambda layer, x: layer(x.flatten(), offsets),
        "sum": lambda layer, x: layer(x.flatten(), offsets=offsets),
    }.get(kind, lambda layer, x: layer(x))
    model = nn.Sequential(Calling(bag, given), nn.Tanh(), fc)
    spans = [(0, 3), (3, 3), (3, 7), (7, 9), (9, 17), (17, 18)]
    if kind not in ("sum", "last offset"):
        spans = [(3 * row, 3 * row + 3) for row in range(6)]

    class ByTheBook(nn.Module):
        """What the documentation says, bag by bag."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.fc = bag.weight, fc

        def forward(self, x):
            rows = []
            for start, end in spans:
                ids, scale = x.flatten()[start:end], weights.flatten()[start:end]
                kept = ids != (-1 if bag.padding_idx is None else bag.padding_idx)
                vectors = self.weight[ids[kept]] * (scale[kept][:, None] if kind == "weighted" else 1)
                rows.append(vectors.sum(0) / (max(1, len(vectors)) if bag.mode == "mean" else 1))
            return self.fc(torch.tanh(torch.stack(rows)))

    book, split = ByTheBook(), Split(tokens, LABELS)
    assert torch.allclose(book(tokens), model(tokens))
    hessian = exact_hessian(book, split, ["weight", "fc.weight", "fc.bias"])
    v = {name: random_numbers(*p.shape, seed=3) for name, p in model.named_parameters()}
    found = torch.cat([value.flatten() for value in importance.hessian_product(model, split)(v).values()])
    assert torch.allclose(found, hessian @ torch.cat([value.flatten() for value in v.values()]))
    slopes = importance.gradients(model, split)["0.layer.weight"]
    assert torch.allclose(slopes, torch.autograd.grad(F.cross_entropy(book(tokens), LABELS), book.weight)[0])


def test_the_courses_bag_has_a_hessian():
    torch.manual_seed(0)
    split = Split(torch.randint(2, 30, (6, 5), generator=torch.Generator().manual_seed(1)), LABELS % 2)
    diagonal = importance.hessian_diagonal(models.TextBag(30, dimensions=4, hidden=3), split, samples=2).value
    assert diagonal["embedding.weight"].abs().max() > 0


def test_layers_without_a_second_derivative_are_named():
    bag = nn.EmbeddingBag(6, 4, mode="max")
    model = nn.Sequential(bag, nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    split = Split(torch.arange(18).view(6, 3) % 6, LABELS)
    with pytest.raises(ValueError, match=r"without a second derivative .*_embedding_bag.*; allowed: names="):
        importance.hessian_diagonal(model, split, samples=2)
    assert importance.hessian_diagonal(model, split, samples=2, names=["1", "3"]).value.keys() >= {"1.weight"}


def test_a_linear_loss_has_no_curvature(tiny, points):
    def linear(model, inputs, labels):
        return sum(parameter.sum() for parameter in model.parameters())

    found = importance.hessian_diagonal(tiny, points, samples=2, loss=linear)
    assert all(not value.any() for part in found for value in part.values())
    assert importance.largest_eigenvalues(tiny, points, loss=linear) == [0]


def test_the_standard_error_of_two_samples():
    """The Hessian of w₁w₂ is 0, 1 by 1, 0: each sample is 1 or -1, and of one of each the mean is 0 ± 1."""

    def product(model, inputs, labels):
        return model[0].weight.prod()

    model, split = nn.Sequential(nn.Linear(2, 1, bias=False)).double(), Split(torch.zeros(1, 2), torch.zeros(1))
    errors = set()
    for seed in range(12):
        value, error = importance.hessian_diagonal(model, split, samples=2, seed=seed, loss=product)
        errors.add((round(float(value["0.weight"][0, 0].abs()), 9), round(float(error["0.weight"][0, 0]), 9)))
    assert errors == {(1, 0), (0, 1)}


# ---------------------------------------------------------------- labels and numbers


def test_labels_that_do_not_count(tiny, points):
    labels = points.labels.clone()
    labels[:9] = -100  # with batches of four, one of them counts nowhere and one in part
    ignoring, without = Split(points.inputs, labels), Split(points.inputs[9:], points.labels[9:])
    for batch_size in (4, 20):
        found = importance.gradients(tiny, ignoring, batch_size=batch_size)
        slopes = torch.autograd.grad(F.cross_entropy(tiny(points.inputs), labels), list(tiny.parameters()))
        assert all(torch.allclose(a, b) for a, b in zip(found.values(), slopes, strict=True))
        for use in (importance.taylor_scores, partial(importance.removal_damage, layer="0")):
            here, there = (use(tiny, split, batch_size=batch_size) for split in (ignoring, without))
            assert str(here) == str(there)
    found, expected = (importance.largest_eigenvalues(tiny, split) for split in (ignoring, without))
    assert found == expected
    with pytest.raises(ValueError, match="split has no label but -100"):
        importance.gradients(tiny, Split(points.inputs, torch.full((20,), -100)))


def test_a_label_for_each_place():
    """Mean over the places that count: of all examples, or of one example for its squared slope."""
    model = seeded(lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Conv1d(4, 3, 1)))
    labels = torch.randint(3, (6, 5), generator=torch.Generator().manual_seed(0))
    labels[0, :4] = labels[1] = labels[4, 2] = -100
    split = Split(random_numbers(6, 2, 7, seed=1), labels)
    scored = Split(split.inputs[labels[:, -1] >= 0], labels[labels[:, -1] >= 0])
    assert len(scored) == 5
    for batch_size in (1, 4, 6):
        found = importance.taylor_scores(model, split, batch_size=batch_size)["0"]
        assert torch.allclose(found, taylor_by_hooks(model, scored, model[0], 4, 1))
        expected = damage_by_hooks(model, split, model[0])
        assert torch.allclose(importance.removal_damage(model, split, "0", batch_size=batch_size), expected)
        slopes = torch.autograd.grad(F.cross_entropy(model(split.inputs), labels), list(model.parameters()))
        gradients = importance.gradients(model, split, batch_size=batch_size).values()
        assert all(torch.allclose(a, b) for a, b in zip(gradients, slopes, strict=True))


def test_probabilities_of_classes(tiny, points):
    soft = Split(points.inputs, random_numbers(20, 3, seed=9).softmax(1))
    slopes = torch.autograd.grad(F.cross_entropy(tiny(soft.inputs), soft.labels), list(tiny.parameters()))
    assert all(torch.allclose(a, b) for a, b in zip(importance.gradients(tiny, soft).values(), slopes, strict=True))
    assert torch.allclose(importance.taylor_scores(tiny, soft)["0"], taylor_by_hooks(tiny, soft, tiny[0], 4, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(images, dtype):
    """Sums and squares are float32: in half precision small ones would vanish, and differences of large sums too."""
    torch.manual_seed(0)
    model = unsettle(models.CifarNet((3, 4, 5, 6), classes=4))
    model.fc.weight.data /= 1000  # slopes whose squares are far below float16's smallest number
    half = deepcopy(model).to(dtype)
    split = Split(images.inputs.to(dtype), images.labels)
    exact, inputs = deepcopy(half).double(), Split(split.inputs.double(), split.labels)
    found, expected = importance.taylor_scores(half, split), importance.taylor_scores(exact, inputs)
    for name in ("conv2.conv", "res2.block1.conv"):
        assert 0 < found[name].max() < 6e-8
        assert torch.allclose(found[name].double(), expected[name], rtol=0.3, atol=0.1 * float(expected[name].max()))
    assert torch.allclose(
        importance.filter_norms(half)["conv3.conv"].double(), importance.filter_norms(exact)["conv3.conv"], rtol=1e-5
    )
    damage = importance.removal_damage(half, split, "fc")
    assert damage.dtype == torch.float32
    slopes, true = importance.gradients(half, split)["fc.weight"], importance.gradients(exact, inputs)["fc.weight"]
    assert torch.allclose(slopes.double(), true, atol=0.05 * float(true.abs().max()))
    value, error = importance.hessian_diagonal(half, split, samples=2, names=["fc"])
    assert value["fc.weight"].dtype == error["fc.weight"].dtype == torch.float32


def test_large_norms_of_half_precision_do_not_overflow():
    model = nn.Sequential(nn.Linear(300, 1)).half()
    model[0].weight.data.fill_(1000)
    assert importance.filter_norms(model)["0"].tolist() == [300_000]
    model[0].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="model: the norms of '0' holds NaN"):
        importance.filter_norms(model)


@pytest.mark.parametrize(
    "use",
    [
        importance.taylor_scores,
        importance.gradients,
        importance.hessian_product,
        partial(importance.removal_damage, layer="0"),
    ],
)
def test_what_is_not_finite_is_refused(tiny, points, use):
    broken = deepcopy(tiny)
    broken[0].weight.data[1, 1] = torch.nan
    with pytest.raises(ValueError, match="split: .* holds NaN or infinity"):
        use(broken, points)
    inputs = points.inputs.clone()
    inputs[19, 0] = torch.inf
    with pytest.raises(ValueError, match="split: .* holds NaN or infinity"):
        use(nn.Sequential(nn.Linear(3, 3)).double(), Split(inputs, points.labels))
    with pytest.raises(ValueError, match=r"split has shape \(20, 2\).*on which the model fails"):
        use(tiny, Split(points.inputs[:, :2], points.labels))


def test_a_lazy_model_is_refused(points):
    with pytest.raises(ValueError, match="model has lazy layers"):
        importance.gradients(nn.Sequential(nn.LazyLinear(3)), points)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda m, s: importance.filter_norms(m, names=["conv9"]), "conv9"),
        (lambda m, s: importance.filter_norms(nn.ReLU()), "linear layers of model"),
        (lambda m, s: importance.taylor_scores(m, Split(s.inputs[:0], s.labels[:0])), "split is empty"),
        (lambda m, s: importance.gradients(m, Split(s.inputs[:0], s.labels[:0])), "split is empty"),
        (lambda m, s: importance.gradients(m, s, names=["1"]), "name in names='1'"),
        (lambda m, s: importance.hessian_product(m, s)({"0.weight": torch.zeros(4, 3)}), "v has the names"),
        (lambda m, s: importance.hessian_diagonal(m, s, samples=1), "samples=1"),
        (lambda m, s: importance.largest_eigenvalues(m, s, count=32), "count=32"),
        (lambda m, s: importance.largest_eigenvalues(m, s, count=0), "count=0"),
        (lambda m, s: importance.removal_damage(m, s, "1"), "layer='1'"),
        (lambda m, s: importance.removal_damage(m, Split(s.inputs[:0], s.labels[:0]), "0"), "split is empty"),
        (lambda m, s: importance.rank_correlation({"a": torch.ones(3)}, {"a": torch.ones(4)}), "scores has the sizes"),
        (lambda m, s: importance.rank_correlation({"b": torch.ones(3)}, {"a": torch.ones(3)}), "scores has the sizes"),
        (lambda m, s: importance.rank_correlation({}, {}), "damage is empty"),
        (lambda m, s: importance.rank_correlation(a_nan(), {"a": torch.ones(3)}), "scores['a'] holds NaN"),
        (lambda m, s: importance.rank_correlation({"a": torch.ones(3)}, a_nan()), "damage['a'] holds NaN"),
        (lambda m, s: importance.rank_correlation({"a": torch.ones(0)}, {"a": torch.ones(0)}), "scores['a'] is empty"),
        (lambda m, s: importance.rank_correlation({"a": [1.0]}, {"a": torch.ones(1)}), "scores['a'] is of list"),
        (
            lambda m, s: importance.rank_correlation({"a": torch.ones(3) * 1j}, {"a": torch.ones(3)}),
            "scores['a'] is of torch.complex64",
        ),
        (lambda m, s: importance.rank_correlation(a_score(), a_score(), seed=-1), "seed=-1"),
        (lambda m, s: importance.rank_correlation(a_score(), a_score(), resamples=0), "resamples=0"),
        (lambda m, s: importance.shared_ranks({"a": draws(3), "b": draws(4)}), "correlations has draws of shapes"),
        (lambda m, s: importance.shared_ranks({"a": draws(0)}), "none of them empty"),
        (lambda m, s: importance.shared_ranks({"a": draws(3), "b": draws(3, np.nan)}), "correlations['b'].draws holds"),
        (lambda m, s: importance.filter_norms(m, norm=0), "norm=0"),
        (lambda m, s: importance.filter_norms(m, norm=np.nan), "norm=nan"),
        (lambda m, s: importance.filter_norms(m, names=[]), "names is empty"),
        (lambda m, s: importance.filter_norms(m, names="0"), "names='0'; allowed: several names"),
        (lambda m, s: importance.random_filter_scores(m, seed=1.5), "seed=1.5"),
        (lambda m, s: importance.taylor_scores(m, s, batch_size=0), "batch_size=0"),
        (lambda m, s: importance.gradients(m, s, batch_size=0), "batch_size=0"),
        (lambda m, s: importance.gradients(m, s, loss=3), "loss=3; allowed: a function"),
        (lambda m, s: importance.hessian_product(m, s, loss=None), "loss=None; allowed: a function"),
        (lambda m, s: importance.removal_damage(m, s, "0", batch_size=0), "batch_size=0"),
        (lambda m, s: importance.gradients(m, s.inputs), "split is a Tensor"),
        (lambda m, s: importance.gradients(m, Split(["a"], [1])), "allowed: a Split of two tensors"),
        (lambda m, s: importance.gradients(nn.Sequential(), s), "parameters of model is empty"),
        (lambda m, s: importance.hessian_product(m, s)(dict.fromkeys(tensors(m), torch.ones(2))), "v['0.weight'] has"),
        (lambda m, s: importance.hessian_diagonal(m, s, samples=2, seed=-1), "seed=-1"),
        (lambda m, s: importance.largest_eigenvalues(m, s, seed=-1), "seed=-1"),
        (lambda m, s: importance.largest_eigenvalues(m, s, tol=np.nan), "tol=nan"),
        (lambda m, s: importance.largest_eigenvalues(m, s, iterations=0), "iterations=0"),
        (lambda m, s: importance.shared_ranks({}), "correlations is empty"),
    ],
)
def test_bad_input_is_named(tiny, points, use, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        use(tiny, points)


def test_the_first_error_of_a_model_that_takes_no_way_is_told():
    split = Split(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="split has shape.*mat1 and mat2 shapes"):
        importance.taylor_scores(nn.Sequential(nn.Linear(5, 2)), split)
