"""Importance against finite differences, exact Hessians and brute force."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from helpers import nets, pruning
from helpers.data import Split
from tests.pruning.scores_examples import (
    LABELS,
    Attending,
    ByHand,
    Calling,
    InPlace,
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
        scores = pruning.taylor_scores(net, images, names=[f"{layer}.conv"], batch_size=batch_size)
        assert scores.keys() == {f"{layer}.conv"}
        assert torch.allclose(scores[f"{layer}.conv"], expected, rtol=1e-4, atol=1e-10)


def test_taylor_scores_of_linear_layers_and_of_sequences():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.AdaptiveAvgPool2d((1, 4)), nn.Flatten(), nn.Linear(4, 2)
    ).double()
    split = Split(random_numbers(6, 5, 3), torch.tensor([0, 1] * 3))
    scores = pruning.taylor_scores(model, split)
    assert {name: tuple(score.shape) for name, score in scores.items()} == {"0": (4,), "4": (2,)}
    expected = torch.zeros(4, dtype=torch.float64)
    for inputs, label in zip(split.inputs, split.labels, strict=True):
        gate = torch.ones(4, dtype=torch.float64, requires_grad=True)
        logits = model[4](model[2](torch.tanh(gate * model[0](inputs))[None]).flatten(1))
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, label[None]), gate)
        expected += slope**2 / 6
    assert torch.allclose(scores["0"], expected)


def test_gradients_are_slopes_whatever_the_batches(tiny, points):
    whole, parts = (pruning.gradients(tiny, points, batch_size=size) for size in (20, 7))
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
    doubled = pruning.gradients(tiny, points, loss=lambda m, x, y: 2 * F.cross_entropy(m(x), y))
    assert torch.allclose(doubled["0.weight"], 2 * pruning.gradients(tiny, points)["0.weight"])


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
        pruning.filter_norms,
        lambda m: pruning.taylor_scores(m, images),
        lambda m: pruning.gradients(m, images),
        lambda m: {"conv2": pruning.removal_damage(m, images, "conv2")},
        lambda m: pruning.hessian_product(m, images, names=["fc"])(v),
    ):
        found, expected = use(model), use(plain)
        assert found.keys() == expected.keys()
        for name in found:
            assert torch.allclose(found[name], expected[name], atol=1e-10), name


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
    everything, second = pruning.gradients(model, split), pruning.gradients(model, split, names=["dec"])
    assert list(everything) == ["emb.weight", "fc.weight", "fc.bias", "dec.bias"]
    assert torch.allclose(everything["emb.weight"], weight)
    assert list(second) == ["dec.weight", "dec.bias"]
    assert torch.allclose(second["dec.weight"], weight)
    assert torch.allclose(second["dec.bias"], bias)
    diagonal = pruning.hessian_diagonal(model, split, samples=2, names=["dec"]).value
    assert diagonal["dec.weight"].shape == (5, 4)
    assert pruning.largest_eigenvalues(model, split, names=["dec"], iterations=3)[0] > 0
    for use in (
        pruning.filter_norms,
        pruning.random_filter_scores,
        partial(pruning.taylor_scores, split=split),
    ):
        first, other = use(model, names=["fc"])["fc"], use(model, names=["again"])["again"]
        assert torch.equal(first, other)
        assert list(use(model)) == ["fc", "dec"]
    found = [pruning.removal_damage(model, split, name) for name in ("fc", "again")]
    assert torch.equal(*found)


@pytest.fixture
def sequences() -> Split:
    return Split(random_numbers(6, 5, 4, seed=5), LABELS)


def test_taylor_scores_of_an_encoder_layer(sequences):
    """Also of the projection, whose weight `nn.MultiheadAttention` uses without calling the layer."""
    model = seeded(Attending)
    by_hand = ByHand(model)
    assert torch.allclose(by_hand(sequences.inputs), model(sequences.inputs))
    scores = pruning.taylor_scores(model, sequences)
    sites = {"encoder.self_attn.out_proj": (by_hand.projection, 4), "encoder.linear1": (model.encoder.linear1, 6)}
    sites |= {"encoder.linear2": (model.encoder.linear2, 4), "fc": (model.fc, 3)}
    assert scores.keys() == sites.keys()
    for name, (site, filters) in sites.items():
        assert torch.allclose(scores[name], taylor_by_hooks(by_hand, sequences, site, filters, -1), rtol=1e-8), name
    alone = pruning.taylor_scores(model, sequences, names=["encoder.self_attn.out_proj"])
    assert torch.equal(alone["encoder.self_attn.out_proj"], scores["encoder.self_attn.out_proj"])


def test_layers_that_are_used_without_being_called_are_refused_and_unused_ones_score_zero(points):
    used = Calling(nn.Linear(3, 3), lambda layer, x: F.linear(x, layer.weight))
    for names in (None, ["layer"]):
        with pytest.raises(ValueError, match="layer 'layer' is never called, its weight is used by 'Calling'"):
            pruning.taylor_scores(used.double(), points, names=names)
    model = nn.Sequential(nn.Linear(3, 3), Calling(nn.Linear(3, 3), lambda layer, x: x)).double()
    scores = pruning.taylor_scores(model, points)
    assert scores["0"].min() > 0
    assert scores["1.layer"].tolist() == [0, 0, 0]
    tied = seeded(lambda: nn.MultiheadAttention(4, 2, batch_first=True))
    tied.other = nn.Linear(4, 4).double()
    tied.other.weight = tied.out_proj.weight
    model = nn.Sequential(Calling(tied, lambda layer, x: layer.other(layer(x, x, x)[0]).mean(1)))
    with pytest.raises(ValueError, match="layer '0.layer.out_proj' is never called"):
        pruning.taylor_scores(model, Split(random_numbers(6, 5, 4), LABELS), names=["0.layer.out_proj"])


def test_batch_normalization_over_another_dimension():
    """BatchNorm1d behind a linear layer of sequences normalizes the places, not the units."""
    model = unsettle(seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Flatten(), nn.Linear(25, 3))))
    split = Split(random_numbers(6, 5, 4, seed=5), LABELS)
    scores = pruning.taylor_scores(model, split)
    assert torch.allclose(scores["0"], taylor_by_hooks(model, split, model[0], 5, -1))
    flat = unsettle(seeded(lambda: nn.Sequential(nn.Linear(20, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))))
    split = Split(split.inputs.flatten(1), LABELS)
    assert torch.allclose(pruning.taylor_scores(flat, split)["0"], taylor_by_hooks(flat, split, flat[1], 5, 1))
    assert torch.allclose(pruning.removal_damage(flat, split, "0"), damage_by_hooks(flat, split, flat[1]))


def test_a_block_that_is_called_twice_has_one_gate():
    parts = nn.ModuleList([nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 3)])
    twice = seeded(lambda: Calling(parts, lambda p, x: p[2](p[1](p[0](p[1](p[0](x)).relu())).mean((2, 3)))))
    split = Split(random_numbers(6, 2, 5, 5, seed=1), LABELS)
    found = pruning.taylor_scores(twice, split)["layer.0"]
    assert torch.allclose(found, taylor_by_hooks(twice, split, twice.layer[1], 2, 1))


def test_labels_that_do_not_count(tiny, points):
    labels = points.labels.clone()
    labels[:9] = -100  # with batches of four, one of them counts nowhere and one in part
    ignoring, without = Split(points.inputs, labels), Split(points.inputs[9:], points.labels[9:])
    for batch_size in (4, 20):
        found = pruning.gradients(tiny, ignoring, batch_size=batch_size)
        slopes = torch.autograd.grad(F.cross_entropy(tiny(points.inputs), labels), list(tiny.parameters()))
        assert all(torch.allclose(a, b) for a, b in zip(found.values(), slopes, strict=True))
        for use in (pruning.taylor_scores, partial(pruning.removal_damage, layer="0")):
            here, there = (use(tiny, split, batch_size=batch_size) for split in (ignoring, without))
            assert str(here) == str(there)
    found, expected = (pruning.largest_eigenvalues(tiny, split) for split in (ignoring, without))
    assert found == expected
    with pytest.raises(ValueError, match="split has no label but -100"):
        pruning.gradients(tiny, Split(points.inputs, torch.full((20,), -100)))


def test_a_label_for_each_place():
    """Mean over the places that count: of all examples, or of one example for its squared slope."""
    model = seeded(lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Conv1d(4, 3, 1)))
    labels = torch.randint(3, (6, 5), generator=torch.Generator().manual_seed(0))
    labels[0, :4] = labels[1] = labels[4, 2] = -100
    split = Split(random_numbers(6, 2, 7, seed=1), labels)
    scored = Split(split.inputs[labels[:, -1] >= 0], labels[labels[:, -1] >= 0])
    assert len(scored) == 5
    for batch_size in (1, 4, 6):
        found = pruning.taylor_scores(model, split, batch_size=batch_size)["0"]
        assert torch.allclose(found, taylor_by_hooks(model, scored, model[0], 4, 1))
        expected = damage_by_hooks(model, split, model[0])
        assert torch.allclose(pruning.removal_damage(model, split, "0", batch_size=batch_size), expected)
        slopes = torch.autograd.grad(F.cross_entropy(model(split.inputs), labels), list(model.parameters()))
        gradients = pruning.gradients(model, split, batch_size=batch_size).values()
        assert all(torch.allclose(a, b) for a, b in zip(gradients, slopes, strict=True))


def test_probabilities_of_classes(tiny, points):
    soft = Split(points.inputs, random_numbers(20, 3, seed=9).softmax(1))
    slopes = torch.autograd.grad(F.cross_entropy(tiny(soft.inputs), soft.labels), list(tiny.parameters()))
    assert all(torch.allclose(a, b) for a, b in zip(pruning.gradients(tiny, soft).values(), slopes, strict=True))
    assert torch.allclose(pruning.taylor_scores(tiny, soft)["0"], taylor_by_hooks(tiny, soft, tiny[0], 4, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(images, dtype):
    """Sums and squares are float32: in half precision small ones would vanish, and differences of large sums too."""
    torch.manual_seed(0)
    model = unsettle(nets.CifarNet((3, 4, 5, 6), classes=4))
    model.fc.weight.data /= 1000  # slopes whose squares are far below float16's smallest number
    half = deepcopy(model).to(dtype)
    split = Split(images.inputs.to(dtype), images.labels)
    exact, inputs = deepcopy(half).double(), Split(split.inputs.double(), split.labels)
    found, expected = pruning.taylor_scores(half, split), pruning.taylor_scores(exact, inputs)
    for name in ("conv2.conv", "res2.block1.conv"):
        assert 0 < found[name].max() < 6e-8
        assert torch.allclose(found[name].double(), expected[name], rtol=0.3, atol=0.1 * float(expected[name].max()))
    assert torch.allclose(
        pruning.filter_norms(half)["conv3.conv"].double(), pruning.filter_norms(exact)["conv3.conv"], rtol=1e-5
    )
    damage = pruning.removal_damage(half, split, "fc")
    assert damage.dtype == torch.float32
    slopes, true = pruning.gradients(half, split)["fc.weight"], pruning.gradients(exact, inputs)["fc.weight"]
    assert torch.allclose(slopes.double(), true, atol=0.05 * float(true.abs().max()))
    value, error = pruning.hessian_diagonal(half, split, samples=2, names=["fc"])
    assert value["fc.weight"].dtype == error["fc.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    "use",
    [
        pruning.taylor_scores,
        pruning.gradients,
        pruning.hessian_product,
        partial(pruning.removal_damage, layer="0"),
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
        pruning.gradients(nn.Sequential(nn.LazyLinear(3)), points)


def test_the_first_error_of_a_model_that_takes_no_way_is_told():
    split = Split(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="split has shape.*mat1 and mat2 shapes"):
        pruning.taylor_scores(nn.Sequential(nn.Linear(5, 2)), split)
