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

from helpers import models, modules, pruning, quantization, training
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


# ---------------------------------------------------------------- any network


class Language(nn.Module):
    """An embedding, a layer, and a decoder that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc, self.decoder = nn.Embedding(20, 6), nn.Linear(6, 6), nn.Linear(6, 20)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.fc(self.embedding(tokens)).relu()).transpose(1, 2)


class Twice(nn.Module):
    """Two convolutions that share a weight, and one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.one = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.b.weight, self.two = self.a.weight, self.one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(self.b(self.a(x).relu()).relu()).relu()).flatten(1)


TOKENS = torch.randint(0, 20, (7, 5), generator=torch.Generator().manual_seed(3))
SMALL = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(4))


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


@pytest.mark.parametrize("weights", [3, {"embedding": 3, "fc": 3}, {"decoder": 3, "fc": 3}])
@pytest.mark.parametrize("learned", [True, False])
def test_a_tensor_that_layers_share_is_quantized_for_all_of_them(weights, learned):
    model = made(Language)
    quantized = quantization.quantize_model(model, weights=weights, learned=learned)
    assert list(quantization.weight_grids(quantized)) == ["embedding.weight", "fc.weight"]
    assert torch.equal(quantized.embedding.weight, quantized.decoder.weight)
    table = fake_quantize(model.embedding.weight, find_grid(model.embedding.weight, 3, per_channel=True))
    assert torch.equal(quantized.decoder.weight, table)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected.embedding.weight.copy_(table)
        expected.fc.weight.copy_(quantized.fc.weight)
    assert torch.equal(quantized(TOKENS), expected(TOKENS))
    for other in (quantization.bake(quantized), copy.deepcopy(quantized), quantization.with_input_grids(quantized, {})):
        assert torch.equal(other(TOKENS), quantized(TOKENS))
    baked = quantization.bake(quantized)
    assert baked.decoder.weight is baked.embedding.weight and baked.state_dict().keys() == model.state_dict().keys()
    assert list(quantization.integers(quantized)) == ["embedding.weight", "fc.weight"]
    assert sum(p.numel() for p in baked.parameters()) == sum(p.numel() for p in model.parameters())
    assert model.decoder.weight is model.embedding.weight


def test_shared_tensors_stay_shared_through_masks_training_and_tables():
    model = made(Language)
    masked = pruning.mask(model, {"decoder.weight": model.embedding.weight.abs() > 0.5})
    quantized = quantization.quantize_model(masked, weights=4, learned=True)
    labels = Split(TOKENS, TOKENS[:, 0])
    train = {"epochs": 4, "lr": 0.1, "batch_size": 4, "progress": False}
    trained = training.fit(quantized, labels, loss=lambda net, x, y: F.cross_entropy(net(x)[..., 0], y), **train).model
    baked = quantization.bake(trained)
    assert torch.equal(baked(TOKENS), trained(TOKENS)) and not torch.equal(trained(TOKENS), quantized(TOKENS))
    assert baked.decoder.weight is baked.embedding.weight
    assert (baked.decoder.weight[model.embedding.weight.abs() <= 0.5] == 0).all()
    shared = quantization.share_weights(model, {"decoder": torch.tensor([-1.0, 0, 2])})
    assert shared.decoder.weight is shared.embedding.weight and set(shared.embedding.weight.unique().tolist()) <= {
        -1,
        0,
        2,
    }


def test_tied_and_doubled_convolutions_have_one_grid_and_inputs_of_their_own():
    model = made(Twice)
    assert quantization.bits_by_layer(model, 4, ends=6) == {"a": 6, "one": 6}
    assert quantization.bits_by_layer(made(Language), 4) == {"fc": 8, "decoder": 8}
    split = Split(SMALL, torch.zeros(6).long())
    bits = quantization.bits_by_layer(model, 4, ends=6)
    by_name = quantization.quantize_model(model, weights=bits, activations=bits, calibration=split)
    by_alias = quantization.quantize_model(
        model, weights={"b": 6, "two": 6}, activations={"b": 6, "two": 6}, calibration=split
    )
    for quantized in (
        by_name,
        by_alias,
        quantization.quantize_model(model, weights=6, activations=6, calibration=split),
    ):
        assert list(quantization.weight_grids(quantized)) == ["a.weight", "one.weight"]
        assert sorted(quantization.input_grids(quantized)) == ["a", "b", "one"]
        assert quantized.one is quantized.two and torch.equal(quantized.a.weight, quantized.b.weight)
        assert torch.equal(quantized(SMALL), by_name(SMALL)) and torch.equal(
            quantization.bake(quantized)(SMALL), by_name(SMALL)
        )
    own = quantization.quantize_model(model, weights={}, activations={"a": 8, "b": 4}, calibration=split)
    assert {name: grid.bits for name, grid in quantization.input_grids(own).items()} == {"a": 8, "b": 4}
    with pytest.raises(ValueError, match="weights has 4 and 5 bits for 'b'; allowed: one number for each tensor"):
        quantization.quantize_model(model, weights={"a": 4, "b": 5})
    with pytest.raises(ValueError, match="layer 'a' is quantized already"):
        quantization.quantize_model(by_name, weights={"b": 4})


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.fc = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Steps(nn.Module):
    def __init__(self, kind: type[nn.Module] = nn.LSTMCell) -> None:
        super().__init__()
        self.cell, self.fc = kind(6, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.fc(state[0] if isinstance(state, tuple) else state)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.reader, self.fc = kind(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.reader(x)[0].amax(1))


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 6))
        self.scale, self.norm = nn.Parameter(torch.randn(1, 4, 1)), nn.LayerNorm((4, 6))
        self.pair, self.fc = nn.Bilinear(6, 6, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm((x + self.table) * self.scale)
        return self.fc(self.pair(x[:, 0].contiguous(), x[:, 1].contiguous()))


class Upwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.fc = nn.ConvTranspose1d(4, 6, 3, groups=2), nn.Linear(48, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.up(x).flatten(1))


SEQUENCES = torch.randn(8, 4, 6, generator=torch.Generator().manual_seed(5))
SEQUENCE_SPLIT = Split(SEQUENCES, torch.arange(8) % 3)
KINDS = {
    Attends: ["attention.in_proj_weight", "attention.out_proj.weight", "fc.weight"],
    Steps: ["cell.weight_ih", "cell.weight_hh", "fc.weight"],
    Pairs: ["table", "pair.weight", "fc.weight"],
    Upwards: ["up.weight", "fc.weight"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_weight_is_taken_in(kind):
    model = made(kind)
    quantized = quantization.quantize_model(model, weights=3)
    assert set(quantization.weight_grids(quantized)) == set(KINDS[kind]) == set(pruning.weights_of(model))
    before, weights, codes = pruning.weights_of(model), pruning.weights_of(quantized), quantization.integers(quantized)
    for name, weight in weights.items():
        grid = find_grid(before[name], 3, per_channel=True)
        assert torch.equal(weight, fake_quantize(before[name], grid))
        assert np.array_equal(codes[name].values(), weight.numpy())
    baked = quantization.bake(quantized)
    with torch.no_grad():
        assert torch.equal(baked(SEQUENCES), quantized(SEQUENCES)) and not torch.equal(
            baked(SEQUENCES), model(SEQUENCES)
        )
    assert baked.state_dict().keys() == model.state_dict().keys()
    unchanged = set(dict(model.named_parameters())) - set(weights)
    assert all(torch.equal(baked.get_parameter(name), model.get_parameter(name)) for name in unchanged)
    name = KINDS[kind][0]
    one = quantization.quantize_model(model, weights={name.removesuffix(".weight"): 4})
    assert list(quantization.weight_grids(one)) == [name]


def test_entries_of_one_number_share_a_step():
    model = made(lambda: nn.Sequential(nn.Embedding(9, 1), nn.Flatten(), nn.Linear(5, 2)))
    grids = quantization.weight_grids(quantization.quantize_model(model, weights=4))
    assert {name: tuple(grid.scale.shape) for name, grid in grids.items()} == {"0.weight": (), "2.weight": (2,)}


@pytest.mark.parametrize(("kind", "inner"), [(Attends, "attention"), (Steps, "cell"), (Pairs, "pair")])
def test_products_whose_inputs_would_stay_floats_are_named(kind, inner):
    model = made(kind)
    said = (
        rf"activations=8 would leave what is multiplied in '{inner}' \(.*\) in floating point; allowed: .*{{.*'fc': 8}}"
    )
    with pytest.raises(ValueError, match=said):
        quantization.quantize_model(model, weights=8, activations=8, calibration=SEQUENCE_SPLIT)
    chosen = quantization.quantize_model(model, weights=8, activations={"fc": 8}, calibration=SEQUENCE_SPLIT)
    assert list(quantization.input_grids(chosen)) == ["fc"]
    with torch.no_grad():
        assert torch.allclose(chosen(SEQUENCES), model(SEQUENCES), atol=0.1)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_that_would_stay_floats_are_named(kind):
    model = made(lambda: Recurrent(kind))
    said = f"weights=4 would leave the weights of 'reader' .{kind.__name__}. in floating point; allowed: .*{{'fc': 4}}"
    with pytest.raises(ValueError, match=said):
        quantization.quantize_model(model, weights=4)
    assert list(quantization.weight_grids(quantization.quantize_model(model, weights={"fc": 4}))) == ["fc.weight"]
    with pytest.raises(ValueError, match="layer in weights='reader' is unknown; allowed: 'fc'"):
        quantization.quantize_model(model, weights={"reader": 4})


def test_what_another_module_reads_is_not_said_to_be_unused():
    with pytest.raises(
        ValueError, match="never called: attention.out_proj; .*another module computes with a layer's weights"
    ):
        quantization.quantize_model(
            made(Attends), weights=8, activations={"attention.out_proj": 8}, calibration=SEQUENCE_SPLIT
        )


def test_inputs_of_transposed_convolutions_are_quantized():
    model = made(Upwards)
    quantized = quantization.quantize_model(model, weights=8, activations=4, calibration=SEQUENCE_SPLIT)
    grids = quantization.input_grids(quantized)
    assert list(grids) == ["up", "fc"]
    x = quantized.up.weight, fake_quantize(SEQUENCES, grids["up"])
    expected = F.conv_transpose1d(x[1], x[0], model.up.bias, groups=2).flatten(1)
    assert torch.allclose(
        quantized(SEQUENCES), F.linear(fake_quantize(expected, grids["fc"]), quantized.fc.weight, model.fc.bias)
    )


class ByKeyword(nn.Module):
    def __init__(self, *, named: bool = True) -> None:
        super().__init__()
        self.conv, self.bn, self.fc, self.named = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(36, 3), named

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.named:
            return self.fc(self.bn(self.conv(x)).relu().flatten(1))
        return self.fc(input=self.bn(input=self.conv(input=x)).relu().flatten(1))


def test_layers_that_are_called_by_keyword():
    split, (named, plain) = (
        Split(SMALL, torch.zeros(6).long()),
        (with_statistics(ByKeyword(named=n)) for n in (True, False)),
    )
    plain.load_state_dict(named.state_dict())
    for name, sample in quantization.sample_inputs(named, split, count=50).items():
        assert torch.equal(sample, quantization.sample_inputs(plain, split, count=50)[name])
    both = [quantization.quantize_model(m, weights=4, activations=4, calibration=split) for m in (named, plain)]
    assert torch.equal(both[0](SMALL), both[1](SMALL)) and not torch.allclose(both[0](SMALL), plain(SMALL))
    folded = [quantization.fold_batchnorm(m, SMALL) for m in both]
    assert isinstance(folded[0].bn, nn.Identity) and torch.equal(folded[0](SMALL), folded[1](SMALL))
    without = [quantization.with_input_grids(m, {}) for m in both]
    assert torch.equal(without[0](SMALL), without[1](SMALL)) and not torch.equal(without[0](SMALL), both[0](SMALL))
    assert not without[0].conv._forward_pre_hooks and not without[0].conv._forward_pre_hooks_with_kwargs


class Viewed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn(self.conv(x)).relu().view(-1, 36))


def test_networks_that_view_what_must_not_be_laid_out_otherwise():
    model, split = with_statistics(Viewed()), Split(SMALL, torch.zeros(6).long())
    quantized = quantization.quantize_model(model, weights=8, activations=8, calibration=split)
    assert torch.allclose(quantized(SMALL), model(SMALL), atol=0.1)
    assert set(quantization.sample_inputs(model, split)) == {"conv", "fc"}
    assert torch.allclose(quantization.fold_batchnorm(model, SMALL)(SMALL), model(SMALL), atol=1e-4)


@pytest.mark.parametrize("how", ["prune", "hooks", "parametrizations", "spectral"])
def test_what_torch_puts_on_weights_becomes_weights(how):
    model = made(lambda: ByKeyword(named=False))
    for layer in (model.conv, model.fc):
        if how == "prune":
            torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.5)
        elif how == "hooks":
            with pytest.warns(FutureWarning, match="weight_norm. is deprecated"):
                torch.nn.utils.weight_norm(layer)
        elif how == "parametrizations":
            torch.nn.utils.parametrizations.weight_norm(layer)
        else:
            torch.nn.utils.spectral_norm(layer)
    model.train()
    model(SMALL).sum().backward()  # after a call in training, these layers hold what deepcopy refuses
    with_statistics(model)
    expected = modules.materialized(model)
    assert torch.allclose(expected(SMALL), model(SMALL), atol=1e-6)
    split = Split(SMALL, torch.zeros(6).long())
    for made_of in (
        lambda m: quantization.quantize_model(m, weights=3, activations=4, calibration=split),
        lambda m: quantization.fold_batchnorm(m, SMALL),
        lambda m: quantization.share_weights(m, {"fc": torch.tensor([-0.1, 0, 0.1])}),
        quantization.bake,
    ):
        mine, theirs = made_of(model), made_of(expected)
        assert mine.state_dict().keys() == theirs.state_dict().keys()
        assert torch.equal(mine(SMALL), theirs(SMALL))
    assert len(quantization.share_weights(model, {"fc": torch.tensor([-0.1, 0, 0.1])}).fc.weight.unique()) <= 3
    if how == "prune":
        assert (
            quantization.integers(quantization.quantize_model(model, weights=3))["fc.weight"].codes == 0
        ).mean() >= 0.5


def test_a_weight_of_several_tensors_is_refused():
    class Product(nn.Module):
        def forward(self, left, right):
            return left @ right

        def right_inverse(self, weight):
            return weight, torch.eye(weight.shape[1])

    model = nn.Sequential(nn.Linear(4, 3))
    parametrize.register_parametrization(model[0], "weight", Product())
    with pytest.raises(ValueError, match="'0.parametrizations.weight.original0' is one of several tensors"):
        quantization.quantize_model(model, weights=4)
    with pytest.raises(ValueError, match="'0.weight' has no numbers yet; allowed: a model that was called once"):
        quantization.quantize_model(nn.Sequential(nn.LazyLinear(3)), weights=4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", quantization.METHODS)
def test_grids_of_half_precision_are_found_in_single(dtype, method):
    x = values_of(18, 4, 50).to(dtype)
    found, expected = (find_grid(each, 4, method=method, per_channel=True) for each in (x, x.float()))
    assert torch.equal(found.scale, expected.scale) and found.scale.dtype == torch.float32
    assert torch.equal(quantization.kmeans_table(x, 2), quantization.kmeans_table(x.float(), 2).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_of_half_precision_are_refused_by_name(dtype):
    with pytest.raises(ValueError, match=f"'0.weight' is {dtype}; allowed: single or double precision, model.float"):
        quantization.quantize_model(nn.Sequential(nn.Linear(3, 2)).to(dtype), weights=4)


def test_networks_of_double_precision():
    model, x = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double(), values_of(19, 30, 5).double()
    split = Split(x, torch.zeros(30).long())
    quantized = quantization.quantize_model(model, weights=8, activations=8, calibration=split)
    assert quantized(x).dtype == torch.float64 and torch.allclose(quantized(x), model(x), atol=0.05)
    assert torch.equal(quantization.bake(quantized)(x), quantized(x))


def test_a_layer_that_is_called_very_often_gives_a_bounded_sample():
    class Often(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(40, 40)

        def forward(self, x):
            for _ in range(60):
                x = self.fc(x).tanh()
            return x

    split = Split(values_of(20, 500, 40), torch.zeros(500).long())
    model = made(Often)
    (sample,) = quantization.sample_inputs(model, split, count=10_000).values()
    assert 10_000 < len(sample) < 2 * quantization.SAMPLE + 20_000
    assert sample.max() == split.inputs.max() and sample.min() == split.inputs.min()
    inner = sample[sample.abs() < 1]  # of 60 calls the first one reads normal numbers, the others what tanh gives
    assert 0.97 < len(inner) / len(sample) < 0.999
    assert torch.equal(sample, next(iter(quantization.sample_inputs(model, split, count=10_000).values())))


# ---------------------------------------------------------------- folding any network


class Casting(nn.Module):
    """Computes in single precision whatever comes in, or in half inside `autocast`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.bn, self.fc, self.how = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(36, 3), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "float":
            x = x.float()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.how == "autocast"):
            x = self.bn(self.conv(x)).relu().flatten(1)
            zeros = torch.zeros(len(x), 36) if self.how == "zeros" else 0
            return (self.fc(x.float() + zeros)).float()


@pytest.mark.parametrize("how", ["float", "zeros", "autocast"])
def test_folding_networks_that_insist_on_a_precision(how):
    model = with_statistics(Casting(how))
    folded = quantization.fold_batchnorm(model, SMALL)
    assert isinstance(folded.bn, nn.Identity)
    close = {"atol": 0.1} if how == "autocast" else {"atol": 1e-4}
    assert torch.allclose(folded(SMALL), model(SMALL), **close)

    class Wrong(Casting):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.conv(x.float()).flatten(1)[:, :3].float()

    with pytest.raises(ValueError, match="answers otherwise after folding"):
        quantization.fold_batchnorm(with_statistics(Wrong(how)), SMALL)


def test_folding_behind_an_embedding():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.conv, self.bn = nn.Embedding(20, 4), nn.Conv1d(4, 5, 3), nn.BatchNorm1d(5)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.bn(self.conv(self.embedding(tokens).transpose(1, 2))).amax(2)

    model = made(Words)
    model.bn.running_mean.normal_()
    folded = quantization.fold_batchnorm(model, TOKENS)
    assert isinstance(folded.bn, nn.Identity) and torch.allclose(folded(TOKENS), model(TOKENS), atol=1e-5)


def trained(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.bias):
            tensor.normal_()
        norm.running_var.uniform_(0.1, 2)
        norm.weight.normal_()
    return norm


UP = [
    (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (3, 4, 7)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(6), (3, 4, 5, 5)),
    (nn.ConvTranspose2d(4, 4, 2, groups=4), nn.BatchNorm2d(4, eps=0.5), (3, 4, 5, 5)),
    (nn.ConvTranspose3d(2, 6, 2, output_padding=1, stride=2), nn.BatchNorm3d(6), (2, 2, 3, 3, 3)),
]


@pytest.mark.parametrize(("layer", "norm", "shape"), UP)
def test_folding_into_a_transposed_convolution(layer, norm, shape):
    torch.manual_seed(0)
    model, x = nn.Sequential(layer, trained(norm), nn.ReLU(), nn.Flatten()).eval(), values_of(21, *shape)
    folded = quantization.fold_batchnorm(model, x)
    assert isinstance(folded[1], nn.Identity) and torch.allclose(folded(x), model(x), atol=1e-5)
    if layer.groups == 1:
        theirs = fuse_conv_bn_eval(layer, norm, transpose=True)
        assert torch.allclose(folded[0].weight, theirs.weight, atol=1e-5)
    again = quantization.fold_batchnorm(quantization.quantize_model(folded, weights=4), x)
    assert list(quantization.weight_grids(again)) == ["0.weight"]
    with pytest.raises(ValueError, match="layer '0' is transposed and quantized; allowed: to fold first"):
        quantization.fold_batchnorm(quantization.quantize_model(model, weights=4), x)


def test_folding_counts_epsilon():
    """A spread far below epsilon: without it, factors would be a thousand times as large."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1.0)).eval()
    model[1].running_var.fill_(1e-6)
    folded = quantization.fold_batchnorm(model, SMALL)
    assert torch.allclose(folded[0].weight, model[0].weight, rtol=1e-5) and isinstance(folded[1], nn.Identity)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_folding_what_is_not_finite_is_refused(bad):
    model = made(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model[1].running_mean[0] = bad
    with pytest.raises(ValueError, match="model answers otherwise after folding, by up to nan"):
        quantization.fold_batchnorm(model, SMALL)


def test_folding_one_norm_under_two_names_and_for_two_convolutions():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), trained(nn.BatchNorm2d(3))
            self.alias = self.norm

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.alias(self.b(self.norm(self.a(x)).relu())).flatten(1)

    model = made(Shared)
    folded = quantization.fold_batchnorm(model, SMALL)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    assert torch.allclose(folded(SMALL), model(SMALL), atol=1e-5)


def test_folding_unties_what_becomes_different():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
            self.b.weight = self.c.weight = self.a.weight
            self.norm = trained(nn.BatchNorm2d(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.b(self.norm(self.a(x))).relu()).flatten(1)

    model = made(Tied)
    for net in (model, quantization.quantize_model(model, weights=4)):
        folded = quantization.fold_batchnorm(net, SMALL)
        assert torch.allclose(folded(SMALL), net(SMALL), atol=1e-5)
        baked = quantization.bake(folded)
        assert baked.b.weight is baked.c.weight and baked.a.weight is not baked.b.weight
    assert list(quantization.weight_grids(folded)) == ["a.weight", "b.weight"]
    codes = quantization.integers(folded)
    assert np.array_equal(codes["a.weight"].codes, codes["b.weight"].codes)


@pytest.mark.parametrize("length", [4, 5])
def test_a_norm_over_positions_stays(length):
    """After a linear layer on (batch, length, features), BatchNorm's channels are the positions."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), trained(nn.BatchNorm1d(length)), nn.Flatten()).eval()
    x = values_of(22, 3, length, 6)
    folded = quantization.fold_batchnorm(model, x)
    assert isinstance(folded[1], nn.BatchNorm1d) and torch.equal(folded(x), model(x))


# ---------------------------------------------------------------- defaults, ties, and arguments


def test_a_percentile_is_the_last_of_a_thousand_unless_said_otherwise():
    x = values_of(23, 5_001)
    ends = np.percentile(x.numpy(), [0.1, 99.9])
    grid = find_grid(x, 8, method="percentile", symmetric=False)
    assert np.isclose(float(grid.scale), (ends[1] - ends[0]) / 255, rtol=1e-5)


def test_a_table_moves_until_it_stands_unless_said_otherwise():
    x = values_of(24, 2_000)
    table = quantization.kmeans_table(x, 3)
    places = quantization.nearest(x, table)
    means = torch.stack([x[places == place].mean() for place in range(8)])
    once = quantization.kmeans_table(x, 3, iterations=1)
    assert float((table - means).abs().max()) < 0.1 * float((table - once).abs().max())


def test_of_equally_good_ranges_the_widest_is_taken():
    x = torch.tensor([1e30, -1e30, 5e29])  # whose squared errors are all infinite
    assert torch.equal(find_grid(x, 4).scale, find_grid(x, 4, method="minmax").scale)


def test_the_pace_of_a_learned_step_counts_the_numbers_that_share_it():
    """Esser et al. 2020, section 2.2: g = 1 / sqrt(N Q), with N the numbers of one channel, and of one example."""
    model, x = nn.Sequential(nn.Linear(12, 5)), values_of(25, 40, 12)
    split = Split(x, torch.zeros(40).long())
    options = {"weights": 3, "activations": 4, "calibration": split, "learned": True}
    rows = quantization.quantize_model(model, **options)[0]
    whole = quantization.quantize_model(model, **options, per_channel=False)[0]
    for layer, sharing in ((rows, 12), (whole, 60)):
        quantizer = layer.parametrizations.weight[0]
        assert torch.allclose(quantizer.pace, quantizer.scale**-2 / math.sqrt(sharing * 3))
        assert torch.allclose(layer.quantize_input.pace, layer.quantize_input.scale**-2 / math.sqrt(12 * 15))


NAN, ENTRIES = torch.tensor([0.0, math.nan]), torch.tensor([0.0, 1.0])
ONE = torch.tensor(1.0)
CODE = torch.tensor(0, dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: quantization.affine_grid(ONE * math.nan, ONE, 4), "lowest holds NaN or infinity"),
        (lambda: quantization.affine_grid(-ONE, ONE * math.inf, 4), "highest holds NaN or infinity"),
        (lambda: quantization.affine_grid(ONE, -ONE, 4), "lowest=1.0 with highest=-1.0; allowed: lowest <= highest"),
        (lambda: quantization.quantize(NAN, Grid(ONE, CODE, -8, 7)), "values holds NaN"),
        (lambda: quantization.quantize(ENTRIES, Grid(ONE * math.nan, CODE, -8, 7)), "grid.scale=nan; allowed: finite"),
        (lambda: quantization.quantize(ENTRIES, Grid(ONE * 0, CODE, -8, 7)), "grid.scale=0.0; allowed: finite"),
        (lambda: quantization.FakeQuantize(Grid(ONE * math.inf, CODE, -8, 7)), "grid.scale=inf; allowed: finite"),
        (lambda: find_grid(ENTRIES, 4.0), "bits=4.0 is no whole number; allowed: 2 to 8"),
        (lambda: quantization.code_range(4, narrow=2), "narrow=2 is unknown; allowed: False, True"),
        (lambda: quantization.quantize(ENTRIES.long(), Grid(ONE, CODE, -8, 7)), "values has type torch.int64; allowed"),
        (lambda: fake_quantize(ENTRIES.long(), Grid(ONE, CODE, -8, 7)), "values has type torch.int64; allowed"),
        (lambda: find_grid(ENTRIES, 4, method="percentile", percentile=math.nan), "percentile=nan; allowed"),
        (lambda: find_grid(ONE, 4, per_channel=True), r"per_channel=True with values of shape \(\); allowed"),
        (lambda: quantization.nearest(NAN, ENTRIES), "values holds NaN"),
        (lambda: quantization.nearest(ENTRIES, ENTRIES[:0]), "table is empty"),
        (lambda: quantization.nearest(ENTRIES, ENTRIES.flip(0)), r"table of shape \(2,\) does not rise"),
        (lambda: quantization.kmeans_table(ENTRIES, 2, iterations=0), "iterations=0; allowed"),
        (lambda: quantization.powers_of_two("3"), "bits='3' is no whole number"),
        (lambda: quantization.fit_table(NAN, ENTRIES), "values holds NaN"),
        (lambda: quantization.fit_table(ENTRIES, 2 * ENTRIES), r"levels=\[0.0, 2.0\]; allowed: numbers in \[-1, 1\]"),
        (lambda: quantization.bits_by_layer(models.lenet5(), 1), "bits=1 is unknown"),
        (lambda: quantization.bits_by_layer(models.lenet5(), 4, ends=9), "ends=9 is unknown"),
        (lambda: quantization.bits_by_layer(nn.Sequential(nn.ReLU()), 4), "convolutional layers of model is empty"),
        (lambda: quantization.quantize_model(models.lenet5(), weights=4.0), "weights=4.0 is no whole number"),
        (lambda: quantization.quantize_model(nn.Sequential(nn.ReLU()), weights=4), "weights of model .* is empty"),
        (lambda: quantization.share_weights(models.lenet5(), {"fc1": NAN}), "tables.'fc1'. holds NaN"),
        (
            lambda: quantization.with_input_grids(models.lenet5(), {"fc9": Grid(ONE, CODE, 0, 15)}),
            "grids='fc9' is unknown",
        ),
        (lambda: quantization.sample_inputs(models.lenet5(), SPLIT, layers=["fc9"]), "layer='fc9' is unknown"),
        (lambda: quantization.sample_inputs(models.lenet5(), SPLIT, count=0), "count=0; allowed"),
    ],
)
def test_arguments_that_make_no_sense_are_named(call, words, unchecked_shapes):
    with pytest.raises(ValueError, match=words):
        call()


def test_numbers_that_are_not_finite_are_found_in_weights_and_calibration():
    model = made(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    bad = Split(torch.full((4, 3), math.nan), torch.zeros(4).long())
    with pytest.raises(ValueError, match="what reaches layer '0' holds NaN or infinity"):
        quantization.quantize_model(model, weights=4, activations=4, calibration=bad)
    model[2].weight.data[0, 0] = math.inf
    with pytest.raises(ValueError, match="'2.weight' holds NaN|2.weight holds NaN"):
        quantization.quantize_model(model, weights=4)
