"""Importance against finite differences, exact Hessians and brute force."""

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
        (lambda m, s: importance.shared_ranks({}), "correlations is empty"),
    ],
)
def test_bad_input_is_named(tiny, points, use, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        use(tiny, points)
