"""Wanda's scores, and masks that choose within rows and within fours."""

import pytest
import torch
from torch import nn
from torch.ao.pruning import WeightNormSparsifier

from helpers import pruning, quantization
from tests.pruning.pruning_examples import Tied


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))


INPUTS = torch.randn(30, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(8)


def test_wanda_multiplies_magnitudes_by_the_norms_of_inputs(net):
    """The paper's norm is that over all examples: a common factor of the root of their number."""
    found = pruning.wanda_scores(net, quantization.input_products(net, INPUTS))
    x = INPUTS
    for place, layer in enumerate(net):
        if isinstance(layer, nn.Linear):
            scores = found[f"{place}.weight"]
            for row in range(layer.out_features):
                for column in range(layer.in_features):
                    expected = abs(layer.weight[row, column].item()) * float(x[:, column].norm()) / 30**0.5
                    assert float(scores[row, column]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
        x = layer(x).detach()
    assert list(found) == ["0.weight", "2.weight", "4.weight"]


def test_wanda_scores_what_has_products_and_masked_weights_as_zero(net):
    masked = pruning.mask(net, pruning.layer_masks(net, {"2": 0.5}))
    found = pruning.wanda_scores(masked, {"2": torch.eye(6) * 4})
    assert list(found) == ["2.weight"]
    assert torch.equal(found["2.weight"], 2 * masked[2].weight.abs().detach())
    assert torch.equal(pruning.wanda_scores(nn.Linear(3, 2), {"": torch.zeros(3, 3)})["weight"], torch.zeros(2, 3))


def test_wandas_masks_spare_more_of_the_output_than_magnitudes(net):
    """Inputs differ in size by up to seven times: what Wanda keeps errs less."""
    products = quantization.input_products(net, INPUTS, layers=["0"])
    errors = []
    for scores in (pruning.wanda_scores(net, products), {"0.weight": net[0].weight.abs().detach()}):
        pruned = pruning.mask(net, pruning.row_masks(scores, 0.5))
        errors.append(float((pruned[0](INPUTS) - net[0](INPUTS)).detach().square().mean()))
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("products", "said"),
    [
        ({"1": torch.eye(6)}, "layer in products='1' is unknown; allowed: '0', '2', '4'"),
        ({"2": torch.eye(5)}, r"products\['2'\] is torch.Size\(\[5, 5\]\); allowed: numbers of the shape \(6, 6\)"),
        ({"2": -torch.eye(6)}, r"products\['2'\]: the root of the diagonal holds NaN"),
        ({"2": torch.eye(6) * torch.inf}, r"products\['2'\]: the root of the diagonal holds NaN or infinity"),
        ({"2": 3}, r"products\['2'\] is int"),
    ],
)
def test_wanda_refuses_other_products(net, products, said):
    with pytest.raises(ValueError, match=said):
        pruning.wanda_scores(net, products)


@pytest.mark.parametrize("amount", [0, 0.25, 0.4, 0.5, 0.99])
@pytest.mark.parametrize("shape", [(5, 8), (1, 7), (4, 3, 2, 2)])
def test_row_masks_choose_within_each_row(amount, shape):
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    kept = pruning.row_masks({"a": scores, "b": scores[:1]}, amount)
    assert kept.keys() == {"a", "b"} and kept["a"].shape == shape and kept["a"].dtype == torch.bool
    for values, mask in zip(scores, kept["a"], strict=True):
        assert torch.equal(mask, pruning.keep_largest(values, amount))
        order = sorted(values.flatten().tolist())
        dropped = round(amount * values.numel())
        assert sorted(values[~mask].tolist()) == order[:dropped]
    assert torch.equal(kept["b"], kept["a"][:1])


def test_rows_of_equal_scores_lose_as_many():
    mask = pruning.row_masks({"a": torch.ones(3, 8)}, 0.5)["a"]
    assert mask.sum(1).tolist() == [4, 4, 4]


def test_masks_by_rows_can_be_put_on_a_model(net):
    new = pruning.mask(net, pruning.row_masks(pruning.l1_scores(net), 0.5))
    assert [(new[place].weight == 0).sum(1).unique().tolist() for place in (0, 2, 4)] == [[4], [3], [6]]
    tied = Tied()
    both = pruning.mask(tied, pruning.two_of_four(pruning.wanda_scores(tied, {"decoder": torch.eye(4)})))
    assert both.decoder.weight is not None and pruning.sparsity(both) == pytest.approx(20 / (40 + 16))


def test_two_of_four_are_those_of_torchs_sparsifier():
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(24, 10))
    weight = linear[0].weight.detach().clone()
    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(linear, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    theirs = linear[0].parametrizations.weight[0].mask.bool()
    assert torch.equal(pruning.two_of_four({"0.weight": weight.abs()})["0.weight"], theirs)


def test_two_of_four_input_channels_stay_at_each_place_of_a_filter():
    scores = torch.rand(3, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    kept = pruning.two_of_four({"conv.weight": scores})["conv.weight"]
    assert kept.shape == scores.shape
    for row, four, y, x in torch.cartesian_prod(*map(torch.arange, (3, 2, 2, 2))).tolist():
        values = scores[row, 4 * four : 4 * four + 4, y, x].tolist()
        found = kept[row, 4 * four : 4 * four + 4, y, x].tolist()
        assert [i for i in range(4) if found[i]] == sorted(sorted(range(4), key=values.__getitem__)[2:])
    assert pruning.two_of_four({"a": torch.zeros(2, 4)})["a"].sum(1).tolist() == [2, 2]


@pytest.mark.parametrize("choose", [pruning.two_of_four, lambda scores: pruning.row_masks(scores, 0.5)])
def test_scores_that_are_none_are_refused(choose):
    with pytest.raises(ValueError, match="scores is empty"):
        choose({})
    with pytest.raises(ValueError, match=r"scores\['a'\] is no tensor, or holds NaN"):
        choose({"a": torch.full((4, 4), torch.nan)})


def test_amounts_and_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="amount=1 is outside"):
        pruning.row_masks({"a": torch.ones(2, 2)}, 1)
    with pytest.raises(ValueError, match=r"scores\['a'\] is \(4,\); allowed: two dimensions or more"):
        pruning.row_masks({"a": torch.ones(4)}, 0.5)
    for shape in ((4,), (4, 6), (8, 2)):
        with pytest.raises(ValueError, match=r"scores\['a'\] is .*; allowed: a second dimension of fours"):
            pruning.two_of_four({"a": torch.ones(shape)})
