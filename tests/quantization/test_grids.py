"""Tests of `helpers.quantization.grids`."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.ao.quantization.observer import MinMaxObserver, PerChannelMinMaxObserver
from torch.nn import functional as F

from helpers import nets, quantization
from helpers.quantization import Grid, fake_quantize, find_grid
from tests.quantization.quantization_examples import (
    MODES,
    SEQUENCE_SPLIT,
    SEQUENCES,
    SPLIT,
    Upwards,
    grids,
    made,
    squared_error,
    tensors,
    values_of,
)


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


def test_a_learned_step_begins_where_it_was_found_and_moves_at_its_pace():
    grid = find_grid(values_of(12, 3, 50), 3, per_channel=True)
    quantizer, x = quantization.FakeQuantize(grid, trained_over=50), values_of(12, 3, 50)
    assert torch.equal(quantizer.grid.scale, grid.scale)
    assert quantizer.state_dict().keys() == {"scale", "zero_point", "log_growth"}, "its pace follows from them"
    quantizer(x).square().sum().backward()
    step = grid.scale.clone().requires_grad_()
    fake_quantize(x, grid._replace(scale=step)).square().sum().backward()
    # One step of SGD moves the logarithm by rate · pace · s · ∂L/∂s: relative to s, the paper's rate · g · ∂L/∂s / s.
    expected = step.grad / grid.scale / math.sqrt(50 * 3)
    assert torch.allclose(quantizer.log_growth.grad, expected, rtol=1e-4)


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


def test_a_percentile_is_the_last_of_a_thousand_unless_said_otherwise():
    x = values_of(23, 5_001)
    ends = np.percentile(x.numpy(), [0.1, 99.9])
    grid = find_grid(x, 8, method="percentile", symmetric=False)
    assert np.isclose(float(grid.scale), (ends[1] - ends[0]) / 255, rtol=1e-5)


def test_of_equally_good_ranges_the_widest_is_taken():
    x = torch.tensor([1e30, -1e30, 5e29])  # whose squared errors are all infinite
    assert torch.equal(find_grid(x, 4).scale, find_grid(x, 4, method="minmax").scale)


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
        (lambda: quantization.bits_by_layer(nets.lenet5(), 1), "bits=1 is unknown"),
        (lambda: quantization.bits_by_layer(nets.lenet5(), 4, ends=9), "ends=9 is unknown"),
        (lambda: quantization.bits_by_layer(nn.Sequential(nn.ReLU()), 4), "convolutional layers of model is empty"),
        (lambda: quantization.quantize_model(nets.lenet5(), weights=4.0), "weights=4.0 is no whole number"),
        (lambda: quantization.quantize_model(nn.Sequential(nn.ReLU()), weights=4), "weights of model .* is empty"),
        (lambda: quantization.share_weights(nets.lenet5(), {"fc1": NAN}), "tables.'fc1'. holds NaN"),
        (
            lambda: quantization.with_input_grids(nets.lenet5(), {"fc9": Grid(ONE, CODE, 0, 15)}),
            "grids='fc9' is unknown",
        ),
        (lambda: quantization.sample_inputs(nets.lenet5(), SPLIT, layers=["fc9"]), "layer='fc9' is unknown"),
        (lambda: quantization.sample_inputs(nets.lenet5(), SPLIT, count=0), "count=0; allowed"),
    ],
)
def test_arguments_that_make_no_sense_are_named(call, words, unchecked_shapes):
    with pytest.raises(ValueError, match=words):
        call()


def test_unless_said_otherwise_a_grid_is_symmetric_and_uses_every_code():
    grid = quantization.affine_grid(torch.tensor(-3.0), torch.tensor(1.0), 4)
    assert (grid.low, grid.high, grid.zero_point) == quantization.code_range(4) + (0,) == (-8, 7, 0)
    assert float(grid.scale) == pytest.approx(3 / 7.5)
    found = find_grid(torch.tensor([-3.0, 1.0]), 4, method="minmax")
    assert found == grid
