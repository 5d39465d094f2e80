"""Tests of `helpers.pruning.hessian`."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import nets, pruning
from helpers.data import Split
from tests.pruning.scores_examples import (
    LABELS,
    Attending,
    ByHand,
    Calling,
    OneAtATime,
    Viewed,
    random_numbers,
    seeded,
)


@pytest.fixture
def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.fixture
def points() -> Split:
    labels = torch.randint(3, (20,), generator=torch.Generator().manual_seed(2))
    return Split(random_numbers(20, 3, seed=3), labels)


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


@pytest.mark.parametrize("names", [None, ["0"], ["2"]])
def test_hessian_product_is_the_hessian_times_v(tiny, points, names):
    product = pruning.hessian_product(tiny, points, names=names)
    keys = [key for key, _ in tiny.named_parameters() if names is None or key[0] in names]
    hessian = exact_hessian(tiny, points, keys)
    for seed in (0, 1):
        v = {key: random_numbers(*tiny.get_parameter(key).shape, seed=seed) for key in keys}
        found = torch.cat([value.flatten() for value in product(v).values()])
        assert torch.allclose(found, hessian @ torch.cat([value.flatten() for value in v.values()]))


def test_hutchinson_and_its_standard_error(tiny, points):
    """The variance of v_i (Hv)_i for v of ±1 is the sum of the squares beside the diagonal, in closed form."""
    estimate = pruning.hessian_diagonal(tiny, points, samples=800, seed=3)
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

    estimate = pruning.hessian_diagonal(model, Split(torch.zeros(1, 2), torch.zeros(1)), samples=2, loss=loss)
    assert torch.allclose(estimate.value["0.weight"], 12 * model[0].weight.detach() ** 2)
    assert torch.allclose(estimate.value["0.bias"], torch.full((2,), 2.0).double())
    assert estimate.error["0.weight"].max() < 1e-12


@pytest.mark.parametrize("names", [None, ["2"]])
def test_largest_eigenvalues(tiny, points, names):
    keys = [key for key, _ in tiny.named_parameters() if names is None or key[0] in names]
    exact = torch.linalg.eigvalsh(exact_hessian(tiny, points, keys))
    expected = sorted(exact.tolist(), key=abs, reverse=True)[:4]
    found = pruning.largest_eigenvalues(tiny, points, count=4, iterations=3000, tol=1e-12, names=names)
    assert found == pytest.approx(expected, rel=1e-3)


def test_eigenvalues_keep_their_sign(tiny, points):
    def negative(model, inputs, labels):
        return -F.cross_entropy(model(inputs), labels)

    options = {"count": 2, "iterations": 1000, "tol": 1e-10}
    positive = pruning.largest_eigenvalues(tiny, points, **options)
    assert pruning.largest_eigenvalues(tiny, points, loss=negative, **options) == pytest.approx([-v for v in positive])


def test_a_flat_loss_has_eigenvalue_zero(tiny, points):
    def flat(model, inputs, labels):
        return sum((parameter * 0).pow(2).sum() for parameter in model.parameters())

    assert pruning.largest_eigenvalues(tiny, points, count=2, loss=flat) == [0, 0]


def test_second_derivatives_of_a_network_that_takes_one_example_at_a_time():
    split = Split(random_numbers(6, 2, 5, 5, seed=1), LABELS)
    one, many = seeded(OneAtATime), seeded(Viewed)
    one.load_state_dict(many.state_dict())
    v = {name: random_numbers(*p.shape, seed=7) for name, p in one.named_parameters()}
    found, expected = (pruning.hessian_product(model, split)(v) for model in (one, many))
    assert all(torch.allclose(found[name], expected[name], atol=1e-12) for name in v)


@pytest.fixture
def sequences() -> Split:
    return Split(random_numbers(6, 5, 4, seed=5), LABELS)


def test_second_derivatives_of_attention(sequences):
    model = seeded(Attending)
    by_hand = ByHand(model)
    names = [name for name, _ in by_hand.named_parameters()]
    hessian = exact_hessian(by_hand, sequences, names)
    v = {name: random_numbers(*p.shape, seed=3) for name, p in model.named_parameters()}
    found = pruning.hessian_product(model, sequences)(v)
    flat = torch.cat([found[name.removeprefix("model.")].flatten() for name in names])
    assert torch.allclose(flat, hessian @ torch.cat([v[name.removeprefix("model.")].flatten() for name in names]))


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
    found = torch.cat([value.flatten() for value in pruning.hessian_product(model, split)(v).values()])
    assert torch.allclose(found, hessian @ torch.cat([value.flatten() for value in v.values()]))
    slopes = pruning.gradients(model, split)["0.layer.weight"]
    assert torch.allclose(slopes, torch.autograd.grad(F.cross_entropy(book(tokens), LABELS), book.weight)[0])


def test_the_courses_bag_has_a_hessian():
    torch.manual_seed(0)
    split = Split(torch.randint(2, 30, (6, 5), generator=torch.Generator().manual_seed(1)), LABELS % 2)
    diagonal = pruning.hessian_diagonal(nets.TextBag(30, dimensions=4, hidden=3), split, samples=2).value
    assert diagonal["embedding.weight"].abs().max() > 0


def test_layers_without_a_second_derivative_are_named():
    bag = nn.EmbeddingBag(6, 4, mode="max")
    model = nn.Sequential(bag, nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    split = Split(torch.arange(18).view(6, 3) % 6, LABELS)
    with pytest.raises(ValueError, match=r"without a second derivative .*_embedding_bag.*; allowed: names="):
        pruning.hessian_diagonal(model, split, samples=2)
    assert pruning.hessian_diagonal(model, split, samples=2, names=["1", "3"]).value.keys() >= {"1.weight"}


def test_a_linear_loss_has_no_curvature(tiny, points):
    def linear(model, inputs, labels):
        return sum(parameter.sum() for parameter in model.parameters())

    found = pruning.hessian_diagonal(tiny, points, samples=2, loss=linear)
    assert all(not value.any() for part in found for value in part.values())
    assert pruning.largest_eigenvalues(tiny, points, loss=linear) == [0]


def test_the_standard_error_of_two_samples():
    """The Hessian of w₁w₂ is 0, 1 by 1, 0: each sample is 1 or -1, and of one of each the mean is 0 ± 1."""

    def product(model, inputs, labels):
        return model[0].weight.prod()

    model, split = nn.Sequential(nn.Linear(2, 1, bias=False)).double(), Split(torch.zeros(1, 2), torch.zeros(1))
    errors = set()
    for seed in range(12):
        value, error = pruning.hessian_diagonal(model, split, samples=2, seed=seed, loss=product)
        errors.add((round(float(value["0.weight"][0, 0].abs()), 9), round(float(error["0.weight"][0, 0]), 9)))
    assert errors == {(1, 0), (0, 1)}


def test_bad_arguments_are_named(tiny, points):
    product = pruning.hessian_product(tiny, points, names=["2"])
    with pytest.raises(ValueError, match=r"v has the names \['2.weight'\]; allowed: 2.bias, 2.weight"):
        product({"2.weight": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match=r"v\['2.bias'\] has shape \(4,\); allowed: \(3,\)"):
        product({"2.weight": torch.zeros(3, 4), "2.bias": torch.zeros(4)})
    for seed in (-1, 0.5):
        with pytest.raises(ValueError, match=f"seed={seed}; allowed: a whole number of at least 0"):
            pruning.hessian_diagonal(tiny, points, samples=2, seed=seed)
    with pytest.raises(ValueError, match="samples=1; allowed: at least 2, for a standard error"):
        pruning.hessian_diagonal(tiny, points, samples=1)
