"""The quantizer: PyTorch's own in every mode, closed forms, and networks that stay what they are said to be."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from sklearn.cluster import KMeans
from torch import nn
from torch.ao.quantization.observer import MinMaxObserver, PerChannelMinMaxObserver
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from helpers import models, pruning, quantization, training
from helpers.data import Split
from helpers.quantization import Grid, fake_quantize, find_grid

IMAGES = torch.randn(12, 1, 28, 28, generator=torch.Generator().manual_seed(1))
SPLIT = Split(IMAGES, torch.arange(12) % 10)
MODES = [
    {"symmetric": True, "signed": True, "narrow": False},
    {"symmetric": True, "signed": True, "narrow": True},
    {"symmetric": False, "signed": True, "narrow": False},
    {"symmetric": False, "signed": False, "narrow": False},
]


@pytest.fixture
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return models.lenet5().eval()


def values_of(seed: int, *shape: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + shift


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


# ---------------------------------------------------------------- equal to PyTorch's own

numbers = st.floats(-1e4, 1e4, width=32)
tensors = arrays_of.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 6)), elements=numbers)


def observed(x: torch.Tensor, grid: Grid, mode: dict[str, bool], *, per_channel: bool) -> list[torch.Tensor]:
    """Scale and zero point by PyTorch's observer with the same codes."""
    scheme = ("per_channel" if per_channel else "per_tensor") + ("_symmetric" if mode["symmetric"] else "_affine")
    observer = (PerChannelMinMaxObserver if per_channel else MinMaxObserver)(
        dtype=torch.qint8 if mode["signed"] else torch.quint8,
        qscheme=getattr(torch, scheme),
        quant_min=grid.low,
        quant_max=grid.high,
    )
    observer(x)
    return observer.calculate_qparams()


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None)
@given(array=tensors, bits=st.integers(2, 8))
def test_every_mode_is_pytorchs_per_tensor(mode, array, bits):
    x = torch.from_numpy(array)
    grid = find_grid(x, bits, method="minmax", **mode)
    scale, zero_point = observed(x, grid, mode, per_channel=False)
    assert (grid.scale, grid.zero_point) == (scale[0], zero_point[0])
    theirs = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), grid.low, grid.high)
    assert torch.equal(fake_quantize(x, grid), theirs)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None)
@given(array=tensors, bits=st.integers(2, 8))
def test_every_mode_is_pytorchs_per_channel(mode, array, bits):
    x = torch.from_numpy(array)
    grid = find_grid(x, bits, method="minmax", per_channel=True, **mode)
    scale, zero_point = observed(x, grid, mode, per_channel=True)
    assert torch.equal(grid.scale, scale) and torch.equal(grid.zero_point.long(), zero_point.long())
    theirs = torch.fake_quantize_per_channel_affine(x, scale, zero_point.int(), 0, grid.low, grid.high)
    assert torch.equal(fake_quantize(x, grid), theirs)


# PyTorch's quantized tensors are deprecated: as long as there are any, they are an answer from another hand.
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel:UserWarning")
@pytest.mark.parametrize("signed", [True, False])
@settings(max_examples=25, deadline=None)
@given(array=tensors)
def test_codes_are_those_of_pytorchs_quantized_tensors(signed, array):
    x, kind = torch.from_numpy(array), torch.qint8 if signed else torch.quint8
    grid = find_grid(x, 8, method="minmax", symmetric=False, signed=signed)
    theirs = torch.quantize_per_tensor(x, float(grid.scale), int(grid.zero_point), kind).int_repr()
    codes = quantization.quantize(x, grid)
    assert codes.dtype == theirs.dtype and torch.equal(codes, theirs)
    rows = find_grid(x, 8, method="minmax", symmetric=False, signed=signed, per_channel=True)
    theirs = torch.quantize_per_channel(x, rows.scale.double(), rows.zero_point.long(), 0, kind).int_repr()
    assert torch.equal(quantization.quantize(x, rows), theirs)


@settings(max_examples=25, deadline=None)
@given(array=tensors, bits=st.integers(2, 8), part=st.floats(0.05, 1.0))
def test_the_gradient_is_pytorchs(array, bits, part):
    """1 where a value is inside, 0 where it was cut off; ranges smaller than the values, so that some are."""
    mine, theirs = (torch.from_numpy(array.copy()).requires_grad_() for _ in range(2))
    low, high = part * torch.from_numpy(array).amin(), part * torch.from_numpy(array).amax()
    grid = quantization.affine_grid(low, high, bits, symmetric=False)
    fake_quantize(mine, grid).sum().backward()
    torch.fake_quantize_per_tensor_affine(
        theirs, float(grid.scale), int(grid.zero_point), grid.low, grid.high
    ).sum().backward()
    assert torch.allclose(mine.grad, theirs.grad)


# ---------------------------------------------------------------- properties

grids = st.tuples(
    st.integers(2, 8), st.floats(-100, 0, width=32), st.floats(2**-7, 100, width=32), st.sampled_from(MODES)
)


def grid_of(bits: int, low: float, high: float, mode: dict[str, bool]) -> Grid:
    return quantization.affine_grid(torch.tensor(low), torch.tensor(high), bits, **mode)


@settings(max_examples=30, deadline=None)
@given(array=tensors, drawn=grids)
def test_quantizing_twice_is_quantizing_once(array, drawn):
    grid = grid_of(*drawn)
    once = fake_quantize(torch.from_numpy(array), grid)
    assert torch.equal(fake_quantize(once, grid), once)


@settings(max_examples=30, deadline=None)
@given(array=tensors, drawn=grids)
def test_the_error_is_at_most_half_a_step_inside_the_range(array, drawn):
    grid, x = grid_of(*drawn), torch.from_numpy(array)
    steps = torch.tensor([grid.low, grid.high]) - grid.zero_point
    inside = x.clamp(*(steps * grid.scale).tolist())
    assert ((fake_quantize(inside, grid) - inside).abs() <= grid.scale * 0.5001).all()
    assert torch.equal(fake_quantize(x, grid), fake_quantize(inside, grid))  # and outside it is the last value


@settings(max_examples=30, deadline=None)
@given(array=tensors, drawn=grids)
def test_larger_values_do_not_become_smaller(array, drawn):
    rising = torch.from_numpy(array).reshape(-1).sort().values
    assert (fake_quantize(rising, grid_of(*drawn)).diff() >= 0).all()


@settings(max_examples=30, deadline=None)
@given(array=tensors, drawn=grids)
def test_codes_and_values_belong_together(array, drawn):
    grid, x = grid_of(*drawn), torch.from_numpy(array)
    codes = quantization.quantize(x, grid)
    assert grid.low <= codes.min() and codes.max() <= grid.high and grid.bits == drawn[0]
    assert torch.equal(quantization.dequantize(codes, grid), fake_quantize(x, grid))
    assert fake_quantize(torch.zeros(1), grid).item() == 0
    whole = torch.arange(grid.low, grid.high + 1)
    assert torch.equal(quantization.quantize(quantization.dequantize(whole, grid), grid).long(), whole)


def test_halves_go_to_the_even_neighbour():
    grid = Grid(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), -8, 7)
    x = torch.tensor([0.5, 1.5, 2.5, 3.5, -0.5, -1.5, 7.5, 99.0, -99.0])
    assert fake_quantize(x, grid).tolist() == [0, 2, 2, 4, 0, -2, 7, 7, -8]


def test_the_step_gets_the_gradient_of_the_paper():
    """Esser et al. 2020, equation 3, one number at a time."""
    low, high, scale = -4, 3, 0.7
    step = torch.tensor(scale, requires_grad=True)
    for x in [-9.0, -2.8, -1.3, -0.2, 0.0, 0.3, 1.1, 2.1, 2.6, 8.0]:
        code = round(x / scale)
        expected = code - x / scale if low <= code <= high else (low if code < low else high)
        grid = Grid(step, torch.tensor(0, dtype=torch.int32), low, high)
        (found,) = torch.autograd.grad(fake_quantize(torch.tensor([x]), grid).sum(), step)
        assert math.isclose(found.item(), expected, abs_tol=1e-5), x


def test_half_precision_is_computed_in_single():
    grid = grid_of(8, 0.0, 10.0, MODES[3])
    x = torch.linspace(0, 10, 77).bfloat16()
    assert torch.equal(fake_quantize(x, grid), fake_quantize(x.float(), grid))
    assert fake_quantize(x.double(), grid).dtype == torch.float64


def test_a_tensor_of_zeros_has_a_grid():
    for mode in MODES:
        assert torch.equal(fake_quantize(torch.zeros(3), find_grid(torch.zeros(3), 4, **mode)), torch.zeros(3))


# ---------------------------------------------------------------- ranges


def squared_error(x: torch.Tensor, grid: Grid) -> float:
    return float((fake_quantize(x, grid) - x).double().square().sum())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [2, 4])
def test_the_mse_range_is_nearly_the_best_of_a_thousand(mode, bits):
    x = values_of(3, 2_000) ** 3  # long tails
    lowest, highest = x.amin(), x.amax()
    parts = torch.linspace(0.03, 1, 1_000).tolist()
    best = min(squared_error(x, quantization.affine_grid(p * lowest, p * highest, bits, **mode)) for p in parts)
    found = squared_error(x, find_grid(x, bits, method="mse", **mode))
    assert found <= best * 1.02
    assert found < 0.8 * squared_error(x, find_grid(x, bits, method="minmax", **mode))


def test_the_mse_range_of_values_on_a_grid_is_exact():
    grid = grid_of(4, -3.0, 2.0, MODES[2])
    x = quantization.dequantize(torch.arange(grid.low, grid.high + 1), grid)
    assert squared_error(x, find_grid(x, 4, method="mse", symmetric=False)) < 1e-9


def test_percentiles_are_numpys():
    x = values_of(4, 3, 1_001)
    grid = find_grid(x, 8, method="percentile", percentile=99, symmetric=False, per_channel=True)
    ends = np.percentile(x.numpy(), [1, 99], axis=1)
    assert np.allclose(grid.scale.numpy(), (ends[1] - ends[0]) / 255, rtol=1e-5)
    whole = find_grid(x, 8, method="percentile", percentile=100)
    assert torch.allclose(whole.scale, find_grid(x, 8, method="minmax").scale)


@pytest.mark.parametrize("method", quantization.METHODS)
def test_each_channel_is_treated_as_if_alone(method):
    x = values_of(5, 4, 3, 5, 5) * torch.tensor([0.1, 1, 10, 100])[:, None, None, None]
    together = find_grid(x, 3, method=method, per_channel=True)
    for row, scale in zip(x, together.scale, strict=True):
        assert torch.equal(find_grid(row, 3, method=method).scale, scale)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: find_grid(x, 1), "bits=1 is unknown; allowed: 2, 3"),
        (lambda x: find_grid(x, 9), "bits=9 is unknown"),
        (lambda x: find_grid(x, 4, method="median"), "method='median' is unknown; allowed: 'minmax'"),
        (lambda x: find_grid(x, 4, method="percentile", percentile=50), "percentile=50; allowed: above 50"),
        (lambda x: find_grid(x[:0], 4), "values is empty"),
        (lambda x: find_grid(x / 0, 4), "values holds NaN or infinity"),
        (lambda x: find_grid(x, 4, signed=False), "symmetric=True with signed=False; allowed"),
        (lambda x: find_grid(x, 4, symmetric=False, signed=False, narrow=True), "narrow=True with signed=False"),
        (lambda x: quantization.kmeans_table(x[:0], 4), "values is empty"),
        (lambda x: quantization.kmeans_table(x, 0), "bits=0 is unknown"),
        (lambda x: quantization.kmeans_table(x / 0, 2), "values holds NaN"),
        (lambda x: quantization.powers_of_two(9), "bits=9 is unknown"),
        (lambda x: quantization.fit_table(x[:0], torch.ones(2)), "values is empty"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.ones(3))


# ---------------------------------------------------------------- tables


@settings(max_examples=25, deadline=None)
@given(array=tensors, table=st.lists(numbers, min_size=1, max_size=9, unique=True))
def test_nearest_is_nearest(array, table):
    entries, x = torch.tensor(sorted(table)), torch.from_numpy(array)
    found = entries[quantization.nearest(x, entries)]
    for value, mine in zip(x.flatten().tolist(), found.flatten().tolist(), strict=True):
        best = min(abs(value - entry) for entry in entries.tolist())
        assert abs(value - mine) <= best + 1e-3 * max(1.0, best)  # in the middle either will do


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_entries_are_the_means_of_what_they_stand_for(bits):
    x = values_of(6, 3_000)
    table = quantization.kmeans_table(x, bits, iterations=1_000)
    places = quantization.nearest(x, table)
    assert len(table) == 2**bits and (table.diff() > 0).all()
    for place, entry in enumerate(table):
        assert torch.isclose(x[places == place].mean(), entry, atol=1e-4)
    uniform = squared_error(x, find_grid(x, bits, method="mse"))
    assert float((table[places] - x).square().sum()) < 0.95 * uniform


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_a_table_is_that_of_scikit_learn(bits):
    x = values_of(17, 2_000) ** 3
    ordered = x.double().unique()  # all 2,000 are different
    start = ordered[((torch.arange(2**bits) + 0.5) / 2**bits * 2_000).long()].numpy()[:, None]
    theirs = KMeans(2**bits, init=start, n_init=1, max_iter=20, tol=0).fit(ordered.numpy()[:, None])
    mine = quantization.kmeans_table(x, bits, iterations=20)
    assert np.allclose(mine.numpy(), np.sort(theirs.cluster_centers_[:, 0]), atol=1e-5)


def test_clusters_that_are_clear_are_found():
    x = torch.cat([values_of(seed, 100) * 0.01 + middle for seed, middle in enumerate([-3.0, 0.5, 1.0, 7.0])])
    assert torch.allclose(quantization.kmeans_table(x, 2), torch.tensor([-3.0, 0.5, 1.0, 7.0]), atol=0.01)


def test_few_different_values_are_the_table():
    x = torch.tensor([[2.0, -1.0, 2.0], [0.0, -1.0, 2.0]])
    assert quantization.kmeans_table(x, 2).tolist() == [-1, 0, 2]
    mostly_equal = torch.cat([torch.zeros(1_000), values_of(7, 20)])
    assert 2 <= len(quantization.kmeans_table(mostly_equal, 3)) <= 8


def test_powers_of_two():
    assert quantization.powers_of_two(2).tolist() == [-1, 0, 1]
    assert quantization.powers_of_two(3).tolist() == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]
    for bits in quantization.BITS:
        levels = quantization.powers_of_two(bits)
        assert len(levels) == 2**bits - 1 and (levels.diff() > 0).all()
        mantissas, _ = torch.frexp(levels[levels != 0].abs())
        assert (mantissas == 0.5).all()


def test_a_table_is_scaled_to_its_values():
    levels = quantization.powers_of_two(4)
    assert torch.equal(quantization.fit_table(3 * levels, levels), 3 * levels)
    x = values_of(8, 500)
    table = quantization.fit_table(x, levels)
    assert torch.allclose(table / table.max(), levels) and table.max() <= x.abs().max()


def test_shared_weights_are_entries_of_the_table(lenet):
    before, table = state_of(lenet), torch.tensor([-0.02, 0.0, 0.03])
    shared = quantization.share_weights(lenet, {"fc1": table})
    assert_same_state(lenet, before)
    assert shared.fc1.weight.unique().tolist() == table.tolist()
    assert ((shared.fc1.weight - lenet.fc1.weight).abs() <= (table[1] - lenet.fc1.weight).abs() + 1e-7).all()
    assert torch.equal(shared.fc2.weight, lenet.fc2.weight)
    with pytest.raises(ValueError, match="layer in tables='fc9' is unknown"):
        quantization.share_weights(lenet, {"fc9": table})


# ---------------------------------------------------------------- networks


def test_a_network_computes_what_its_grids_say():
    """Two linear layers, every step written out with PyTorch's own quantizer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    x = values_of(9, 40, 5)
    quantized = quantization.quantize_model(
        net, weights={"0": 4, "2": 3}, activations=5, calibration=Split(x, torch.zeros(40).long())
    )
    weights, inputs = quantization.weight_grids(quantized), quantization.input_grids(quantized)
    for name, bits in {"0": 4, "2": 3}.items():
        grid, given = weights[f"{name}.weight"], inputs[name]
        assert (grid.bits, given.bits) == (bits, 5)
        assert grid.scale.shape == (net[int(name)].out_features,) and given.scale.shape == ()
        x = torch.fake_quantize_per_tensor_affine(x, float(given.scale), int(given.zero_point), 0, 31)
        weight = torch.fake_quantize_per_channel_affine(
            net[int(name)].weight, grid.scale, grid.zero_point, 0, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        )
        x = F.linear(x, weight, net[int(name)].bias)
        x = x.relu() if name == "0" else x
    assert torch.allclose(quantized(values_of(9, 40, 5)), x, atol=1e-6)


def test_ranges_are_those_of_what_reaches_the_layer():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
    net[0].weight.data = torch.eye(2)
    x = torch.tensor([[-1.0, 3.0], [2.0, -5.0]])
    quantized = quantization.quantize_model(
        net, weights={}, activations=8, calibration=Split(x, torch.zeros(2).long()), method="minmax"
    )
    first, second = quantization.input_grids(quantized).values()
    assert torch.isclose(first.scale, torch.tensor(8 / 255)) and first.zero_point == round(5 / (8 / 255))
    assert torch.isclose(second.scale, torch.tensor(3 / 255)) and second.zero_point == 0
    assert not quantization.weight_grids(quantized)


def test_the_network_that_comes_in_stays_as_it_is(lenet):
    masked = pruning.mask(lenet, pruning.layer_masks(lenet, {"fc1": 0.5}))
    for model in (lenet, masked):
        before, logits = state_of(model), model(IMAGES)
        quantized = quantization.quantize_model(model, weights=3, activations=3, calibration=SPLIT, learned=True)
        quantization.bake(quantized), quantization.with_input_grids(quantized, {})
        assert_same_state(model, before)
        assert torch.equal(model(IMAGES), logits)
        assert not quantization.weight_grids(model) and not quantization.input_grids(model)
        assert not torch.equal(quantized(IMAGES), logits)


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_take_no_more_values_than_there_are_codes(lenet, per_channel):
    quantized = quantization.quantize_model(lenet, weights=3, per_channel=per_channel)
    for weight in pruning.weights_of(quantized).values():
        for row in weight.flatten(1) if per_channel else [weight]:
            assert len(row.unique()) <= 8
    for name, codes in quantization.integers(quantized).items():
        assert np.array_equal(codes.values(), pruning.weights_of(quantized)[name].numpy())
        assert codes.codes.dtype == np.int8 and codes.codes.min() >= -4 and codes.codes.max() <= 3


def test_copies_and_baked_networks_answer_alike(lenet):
    quantized = quantization.quantize_model(lenet, weights=4, activations=4, calibration=SPLIT)
    logits = quantized(IMAGES)
    baked, again = quantization.bake(quantized), copy.deepcopy(quantized)
    assert torch.equal(baked(IMAGES), logits) and torch.equal(again(IMAGES), logits)
    assert not any(parametrize.is_parametrized(layer) for layer in baked.modules())
    again.fc1.parametrizations.weight[0].scale *= 2  # a copy has quantizers of its own
    again.conv1.quantize_input.scale *= 2
    assert torch.equal(quantized(IMAGES), logits) and not torch.equal(again(IMAGES), logits)
    plain = quantization.with_input_grids(baked, {})
    assert not quantization.input_grids(plain) and not torch.equal(plain(IMAGES), logits)
    back = quantization.with_input_grids(plain, quantization.input_grids(quantized))
    assert torch.equal(back(IMAGES), logits)


def test_first_and_last_layers_may_keep_more():
    assert quantization.bits_by_layer(models.lenet5(), 2) == {"conv1": 8, "conv2": 2, "fc1": 2, "fc2": 8}
    assert list(quantization.bits_by_layer(models.cifar_half(), 4, ends=6).values()) == [6, 4, 4, 4, 4, 4, 4, 4, 6]


def test_masks_stay_in_force_and_codes_of_pruned_weights_are_zero(lenet):
    masks = pruning.layer_masks(lenet, {"fc1": 0.9})
    model, gone = quantization.quantize_model(pruning.mask(lenet, masks), weights=2), ~masks["fc1.weight"]
    assert (quantization.integers(model)["fc1.weight"].codes[gone.numpy()] == 0).all()
    assert set(pruning.masks_of(model)) == {"fc1.weight"}
    assert torch.equal(quantization.bake(model)(IMAGES), model(IMAGES))
    for quantized in (model, quantization.quantize_model(lenet, weights=2)):
        with pytest.raises(ValueError, match="'fc1.weight' is quantized; allowed: masks first, then quantization"):
            pruning.mask(quantized, masks)


def test_embeddings_are_quantized_row_by_row():
    torch.manual_seed(0)
    model = models.TextBag(20, dimensions=4, hidden=3).eval()
    quantized = quantization.quantize_model(model, weights=4)
    assert quantization.weight_grids(quantized)["embedding.weight"].scale.shape == (20,)
    tokens = torch.randint(2, 20, (3, 5))
    assert torch.allclose(quantized(tokens), model(tokens), atol=0.1)
    with pytest.raises(ValueError, match="layer in activations='embedding' is unknown"):
        quantization.quantize_model(model, weights=4, activations={"embedding": 4}, calibration=SPLIT)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": 1}, "weights=1 is unknown; allowed: 2, 3"),
        ({"weights": {"fc1": 9}}, "weights=9 is unknown"),
        ({"weights": {"fc3": 4}}, "layer in weights='fc3' is unknown; allowed: 'conv1'"),
        ({"weights": 4, "activations": 1}, "activations=1 is unknown"),
        ({"weights": 4, "activations": 4}, "activations=4 without calibration"),
        ({"weights": 4, "method": "best"}, "method='best' is unknown"),
        ({"weights": 4, "activations": 4, "calibration": Split(IMAGES[:0], torch.zeros(0))}, "calibration is empty"),
    ],
)
def test_options_that_cannot_be(lenet, options, words):
    with pytest.raises(ValueError, match=words):
        quantization.quantize_model(lenet, **options)


def test_a_network_is_quantized_once(lenet):
    once = quantization.quantize_model(lenet, weights=4)
    with pytest.raises(ValueError, match="layer 'conv1' is quantized already"):
        quantization.quantize_model(once, weights=4)
    inputs = quantization.quantize_model(lenet, weights={}, activations={"fc1": 4}, calibration=SPLIT)
    with pytest.raises(ValueError, match="layer 'fc1' is quantized already"):
        quantization.quantize_model(inputs, weights={}, activations=4, calibration=SPLIT)
    both = quantization.quantize_model(inputs, weights={"conv1": 4})  # what is not quantized yet may be
    assert set(quantization.weight_grids(both)) == {"conv1.weight"} and set(quantization.input_grids(both)) == {"fc1"}


# ---------------------------------------------------------------- calibration


def test_test_images_cannot_calibrate(lenet):
    held_out = Split(IMAGES, SPLIT.labels, is_test=True)
    for call in (
        lambda: quantization.quantize_model(lenet, weights=4, activations=4, calibration=held_out.take(5)),
        lambda: quantization.sample_inputs(lenet, held_out),
    ):
        with pytest.raises(ValueError, match="calibration is the test split"):
            call()


def test_samples_are_numbers_that_reach_the_layer(lenet):
    state = torch.random.get_rng_state()
    found = quantization.sample_inputs(lenet, SPLIT, count=500)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert list(found) == ["conv1", "conv2", "fc1", "fc2"]
    middle = F.max_pool2d(lenet.conv1(IMAGES).relu(), 2)
    for name, reaching in {"conv1": IMAGES, "conv2": middle}.items():
        assert len(found[name]) == 502 and torch.isclose(found[name].max(), reaching.max())
        assert torch.isclose(found[name].min(), reaching.min())
    assert torch.isin(found["conv1"], IMAGES).all()
    assert abs(found["conv2"].mean() - middle.mean()) < 0.2 * middle.std()
    again = quantization.sample_inputs(lenet, SPLIT, count=500, layers=["fc1"])
    assert list(again) == ["fc1"] and not lenet.fc1._forward_pre_hooks


def test_layers_whose_input_is_never_seen_are_named():
    model = models.TextNet(models.LSTM(4, 3), 3, words=9, dimensions=4).eval()
    tokens = Split(torch.randint(2, 9, (6, 5)), torch.arange(6) % 2)
    with pytest.raises(ValueError, match="never called: encoder.input, encoder.recurrent; allowed"):
        quantization.quantize_model(model, weights=8, activations=8, calibration=tokens)
    quantized = quantization.quantize_model(model, weights=8, activations={"fc": 8}, calibration=tokens)
    assert torch.allclose(quantized(tokens.inputs), model(tokens.inputs), atol=0.05)


# ---------------------------------------------------------------- training


def blobs() -> Split:
    labels = torch.arange(256) % 4
    return Split(values_of(11, 256, 6) + 2 * F.one_hot(labels, 6).float(), labels)


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    return training.fit(net, blobs(), epochs=5, lr=0.1, batch_size=32, progress=False).model


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_moves_weights_and_steps_and_stays_on_the_grid(small, optimizer):
    options = {"weights": 2, "activations": 2, "calibration": blobs(), "learned": True}
    start = quantization.quantize_model(small, **options)
    before, loss = state_of(start), training.evaluate(start, blobs()).loss
    rate = 0.05 if optimizer == "sgd" else 0.01
    fitted = training.fit(start, blobs(), epochs=8, lr=rate, optimizer=optimizer, batch_size=32, progress=False)
    assert_same_state(start, before)
    assert training.evaluate(fitted.model, blobs()).loss < loss
    old, new = quantization.weight_grids(start), quantization.weight_grids(fitted.model)
    for name, grid in new.items():
        assert (grid.scale > 0).all() and not torch.equal(grid.scale, old[name].scale)
        weight = pruning.weights_of(fitted.model)[name]
        assert torch.equal(fake_quantize(weight, grid), weight)
    for name, grid in quantization.input_grids(fitted.model).items():
        assert grid.scale > 0 and grid.scale != quantization.input_grids(start)[name].scale


def test_steps_stay_where_they_are_unless_they_are_learned(small):
    start = quantization.quantize_model(small, weights=3, activations=3, calibration=blobs())
    trained = training.fit(start, blobs(), epochs=2, lr=0.1, batch_size=32, progress=False).model
    for grids in (quantization.weight_grids, quantization.input_grids):
        assert all(torch.equal(grid.scale, grids(start)[name].scale) for name, grid in grids(trained).items())
    assert not torch.equal(trained[0].parametrizations.weight.original, start[0].parametrizations.weight.original)


def test_a_learned_step_begins_where_it_was_found_and_moves_at_its_pace():
    grid = find_grid(values_of(12, 3, 50), 3, per_channel=True)
    quantizer, x = quantization.FakeQuantize(grid, trained_over=50), values_of(12, 3, 50)
    assert torch.equal(quantizer.grid.scale, grid.scale)
    quantizer(x).square().sum().backward()
    step = grid.scale.clone().requires_grad_()
    fake_quantize(x, grid._replace(scale=step)).square().sum().backward()
    # One step of SGD moves the logarithm by rate · pace · s · ∂L/∂s: relative to s, the paper's rate · g · ∂L/∂s / s.
    expected = step.grad / grid.scale / math.sqrt(50 * 3)
    assert torch.allclose(quantizer.log_growth.grad, expected, rtol=1e-4)


def test_pruned_weights_stay_pruned_while_the_network_is_trained(small):
    masks = pruning.global_masks(small, 0.5)
    start = quantization.quantize_model(pruning.mask(small, masks), weights=4, learned=True)
    trained = training.fit(start, blobs(), epochs=2, lr=0.1, batch_size=32, progress=False).model
    assert all((weight[~masks[name]] == 0).all() for name, weight in pruning.weights_of(trained).items())


# ---------------------------------------------------------------- BatchNorm


def with_statistics(model: nn.Module, *, seed: int = 13) -> nn.Module:
    """Give BatchNorm statistics, scales (some negative, one 0) and shifts that are not those of a new network."""
    generator = torch.Generator().manual_seed(seed)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            norm.weight.data.normal_(generator=generator)
            norm.weight.data[0] = 0
            norm.bias.data.normal_(generator=generator)
    return model.eval()


@pytest.fixture
def cifar() -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(models.CifarNet((4, 4, 5, 6)))


PHOTOS = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(14))


def test_folding_changes_no_answer_and_is_pytorchs(cifar):
    before = state_of(cifar)
    folded = quantization.fold_batchnorm(cifar, PHOTOS[:2])
    assert_same_state(cifar, before)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    assert torch.allclose(folded(PHOTOS), cifar(PHOTOS), rtol=1e-4, atol=1e-3)
    for name, block in cifar.named_modules():
        if isinstance(block, models.ConvBlock):
            theirs = fuse_conv_bn_eval(block.conv, block.bn)
            mine = folded.get_submodule(name).conv
            assert torch.allclose(mine.weight, theirs.weight, atol=1e-5)
            assert torch.allclose(mine.bias, theirs.bias, atol=1e-5)


@pytest.mark.parametrize("per_channel", [True, False])
def test_folding_keeps_the_codes_of_quantized_weights(cifar, per_channel):
    split = Split(PHOTOS, torch.arange(6))
    bits = quantization.bits_by_layer(cifar, 3)
    quantized = quantization.quantize_model(
        cifar, weights=bits, activations=8, calibration=split, per_channel=per_channel, learned=True
    )
    folded = quantization.fold_batchnorm(quantized, PHOTOS[:2])
    codes, again = quantization.integers(quantized), quantization.integers(folded)
    assert list(codes) == list(again)
    for name in codes:
        rows = (again[name].codes != 0).reshape(len(codes[name].codes), -1).any(1)
        assert np.array_equal(codes[name].codes[rows], again[name].codes[rows])
        assert rows.sum() >= len(rows) - 1  # one channel's factor is 0
    plain, plain_folded = (quantization.with_input_grids(model, {}) for model in (quantized, folded))
    assert torch.allclose(plain_folded(PHOTOS), plain(PHOTOS), rtol=1e-4, atol=1e-3)
    assert not any(parameter.requires_grad for parameter in folded.parameters() if parameter.dim() == 0)


def test_folding_a_linear_layer_and_one_with_a_bias():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2, bias=False), nn.BatchNorm1d(2))
    net(values_of(15, 50, 3, shift=2.0))
    folded = quantization.fold_batchnorm(net.eval(), torch.zeros(2, 3))
    assert torch.allclose(folded(values_of(16, 9, 3)), net(values_of(16, 9, 3)), atol=1e-5)
    assert [type(layer).__name__ for layer in folded] == ["Linear", "Identity", "ReLU", "Linear", "Identity"]


def test_folding_in_training_mode_is_refused(cifar):
    """In training, BatchNorm divides by the batch's spread: a folded network would answer otherwise."""
    with pytest.raises(ValueError, match="training mode .'stem.bn'.; allowed: evaluation mode"):
        quantization.fold_batchnorm(cifar.train(), PHOTOS[:2])
    cifar.eval().res2.block1.bn.train()
    with pytest.raises(ValueError, match="training mode .'res2.block1.bn'."):
        quantization.fold_batchnorm(cifar, PHOTOS[:2])


class ReadTwice(nn.Module):
    """A convolution whose output does not only go to its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return (x + self.bn(x)).flatten(1)


def test_folding_what_others_read_is_refused():
    with pytest.raises(ValueError, match="answers otherwise after folding, by up to"):
        quantization.fold_batchnorm(with_statistics(ReadTwice()), PHOTOS[:2])


def test_a_norm_without_a_convolution_stays():
    net = with_statistics(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3), nn.Flatten()))
    folded = quantization.fold_batchnorm(net, PHOTOS[:2])
    assert isinstance(folded[0], nn.BatchNorm2d) and torch.equal(folded(PHOTOS), net(PHOTOS))


def test_every_option_of_the_model_goes_through_the_file_names(lenet):
    """Names that packing relies on: parameters keep theirs, quantizers of inputs are recognised."""
    for weights, activations in itertools.product([{}, 4], [None, 4]):
        model = quantization.quantize_model(
            lenet, weights=weights, activations=activations, calibration=SPLIT, learned=True
        )
        state = quantization.bake(model).state_dict()
        assert {name for name in state if not quantization.is_quantizer(name)} == set(lenet.state_dict())
