"""Groups and GPTQ against brute force in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchao.quantization.quant_primitives import (
    MappingType,
    choose_qparams_affine,
    quantize_affine,
)

from helpers import nets, pruning, quantization
from helpers.core.vocabulary import PAD


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(columns: int, seed: int = 0) -> torch.Tensor:
    """The mean of x xᵀ over inputs that depend on one another."""
    x = normal(200, columns, seed=seed) @ normal(columns, columns, seed=seed + 100)
    return x.T @ x / len(x)


def error(weight: torch.Tensor, rounded: torch.Tensor, products: torch.Tensor) -> float:
    difference = (weight - rounded).double()
    return float((difference @ products.double() * difference).sum())


def grids_by_numpy(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of each row's min-max grid, stretched to hold 0."""
    low, high = np.minimum(values.min(1), 0), np.maximum(values.max(1), 0)
    scale = (high - low) / (2**bits - 1)
    return scale, -np.round(low / scale)


def gptq_by_least_squares(
    weight: torch.Tensor, products: torch.Tensor, bits: int, size: int, damping: float
) -> np.ndarray:
    """After each rounding, solve for all columns that are left anew, from the original weights; return the codes."""
    w, h = weight.double().numpy(), products.double().numpy()
    h = h + damping * h.diagonal().mean() * np.eye(len(h))
    codes, rounded = np.zeros(w.shape), np.zeros(w.shape)
    for j in range(w.shape[1]):
        done, left = slice(0, j), slice(j, None)
        moved = (w[:, done] - rounded[:, done]) @ h[done, left] @ np.linalg.inv(h[left, left])
        now = w[:, left] + moved
        if j % size == 0:
            scale, zero = grids_by_numpy(now[:, :size], bits)
        codes[:, j] = np.clip(np.round(now[:, 0] / scale) + zero, 0, 2**bits - 1)
        rounded[:, j] = (codes[:, j] - zero) * scale
    return codes


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [4, 8, 32])
def test_groups_are_those_of_torchao(bits, size):
    weight = normal(6, 32)
    options = {"quant_min": 0, "quant_max": 2**bits - 1}
    scale, zero_point = choose_qparams_affine(
        weight, MappingType.ASYMMETRIC, (1, size), torch.uint8, **options, eps=torch.finfo(torch.float32).eps
    )
    codes = quantize_affine(weight, (1, size), scale, zero_point, torch.uint8, **options)
    found = quantization.quantize_groups(weight, bits, size=size)
    assert torch.equal(found.codes, codes)
    assert torch.equal(found.scale, scale.view(6, -1))
    assert torch.equal(found.zero_point.int(), zero_point.view(6, -1).int())
    assert (found.bits, found.size) == (bits, size)
    assert [part.dtype for part in found[:3]] == [torch.uint8, torch.float32, torch.uint8]
    assert [tuple(part.shape) for part in found[:3]] == [(6, 32), (6, 32 // size), (6, 32 // size)]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 8),
    st.sampled_from([1, 2, 3, 6]),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=12, max_size=12),
)
def test_a_round_trip_moves_no_weight_by_more_than_half_a_step(bits, size, values):
    weight = torch.tensor(values).view(2, 6)
    groups = quantization.quantize_groups(weight, bits, size=size)
    back = quantization.dequantize_groups(groups)
    steps = groups.scale.repeat_interleave(size, dim=1)
    # The zero point is rounded, too: at the range's ends a code is cut off by half a step at most.
    assert (back - weight).abs().le(steps * 1.001 + 1e-6).all()
    inside = (groups.codes > 0) & (groups.codes < 2**bits - 1)
    assert (back - weight).abs()[inside].le(steps[inside] * 0.501 + 1e-6).all()
    assert (back[weight == 0] == 0).all()
    assert int(groups.codes.max()) < 2**bits


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("columns", "size", "bits"), [(8, 2, 2), (12, 4, 3), (12, 12, 4), (9, 3, 4), (6, 1, 2)])
def test_gptq_is_least_squares_over_the_columns_that_are_left(seed, columns, size, bits):
    weight, products = normal(5, columns, seed=seed), correlated(columns, seed)
    for damping in (0.01, 0.3):
        found = quantization.gptq(weight, products, bits, size=size, damping=damping)
        expected = gptq_by_least_squares(weight, products, bits, size, damping)
        assert found.codes.tolist() == expected.tolist()
        assert (found.bits, found.size, found.codes.dtype) == (bits, size, torch.uint8)


def test_gptqs_grids_span_what_the_group_has_become():
    """The second group's grid is of the weights as the first has moved them."""
    weight, products = normal(4, 8), correlated(8)
    found = quantization.gptq(weight, products, 3, size=4, damping=0)
    h, w = products.double().numpy(), weight.double().numpy()
    off = w[:, :4] - quantization.dequantize_groups(found)[:, :4].double().numpy()
    moved = w[:, 4:] + off @ h[:4, 4:] @ np.linalg.inv(h[4:, 4:])
    scale, zero = grids_by_numpy(moved, 3)
    np.testing.assert_allclose(found.scale[:, 1], scale, rtol=1e-5)
    assert found.zero_point[:, 1].tolist() == zero.tolist()
    assert torch.equal(found.scale[:, 0], quantization.quantize_groups(weight, 3, size=4).scale[:, 0])


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_gptq_errs_less_than_rounding_to_nearest(bits, seed):
    weight, products = normal(16, 32, seed=seed), correlated(32, seed)
    nearest = quantization.dequantize_groups(quantization.quantize_groups(weight, bits, size=16))
    found = quantization.dequantize_groups(quantization.gptq(weight, products, bits, size=16))
    assert error(weight, found, products) < error(weight, nearest, products)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_without_correlation_gptq_rounds_to_nearest(bits):
    weight = normal(32, 64)
    for products in (torch.eye(64), torch.diag(normal(64, seed=1).exp())):
        found = quantization.gptq(weight, products, bits, size=16)
        nearest = quantization.quantize_groups(weight, bits, size=16)
        assert all(torch.equal(a, b) for a, b in zip(found[:3], nearest[:3], strict=True))


def test_weights_of_inputs_that_are_always_zero_become_zero():
    weight, products = normal(4, 8), correlated(8)
    weight[:, 5] = 100
    products[5] = products[:, 5] = 0
    for damping in (0, 0.01):
        found = quantization.dequantize_groups(quantization.gptq(weight, products, 4, size=4, damping=damping))
        assert (found[:, 5] == 0).all()
        assert (found - weight).abs()[:, [4, 6, 7]].max() < 2  # the hundreds stretch no grid
    alive = [0, 1, 2, 3, 4, 6, 7]
    h = products.double().numpy()
    h = h + 0.01 * h.diagonal().mean() * np.eye(8)
    weight[:, 5] = 0
    expected = gptq_by_least_squares(weight, torch.from_numpy(h + np.diag(np.arange(8) == 5)), 4, 4, damping=0)
    assert quantization.gptq(weight, products, 4, size=4).codes[:, alive].tolist() == expected[:, alive].tolist()
    assert quantization.dequantize_groups(quantization.gptq(weight, torch.zeros(8, 8), 4, size=4)).abs().max() == 0


def test_gptq_leaves_what_it_is_given():
    weight, products = normal(4, 8), correlated(8)
    products[2] = products[:, 2] = 0
    before = weight.clone(), products.clone()
    quantization.gptq(weight, products, 4, size=4)
    quantization.gptq(weight.double(), products.double(), 4, size=4)
    assert torch.equal(weight, before[0]) and torch.equal(products, before[1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"bits": 9}, "bits=9"),
        ({"bits": 1}, "bits=1"),
        ({"size": 5}, "size=5, and weight has 8 columns"),
        ({"size": 0}, "size=0"),
        ({"weight": normal(8)}, r"weight has the shape \(8,\)"),
        ({"weight": normal(2, 8) * torch.nan}, "weight holds NaN"),
        ({"products": torch.eye(7)}, r"products has the shape \(7, 7\); allowed: \(8, 8\)"),
        ({"products": torch.eye(8) * torch.inf}, "products holds NaN or infinity"),
        ({"products": -torch.eye(8)}, "products cannot be inverted with damping=0.01"),
        ({"products": torch.ones(8, 8), "damping": 0}, "products cannot be inverted with damping=0"),
        ({"damping": -1}, "damping=-1"),
    ],
)
def test_what_cannot_be_rounded_is_refused(arguments, said, unchecked_shapes):
    given = {"weight": normal(2, 8), "products": torch.eye(8), "bits": 4, "size": 4} | arguments
    with pytest.raises(ValueError, match=said):
        quantization.gptq(**given)
    if not {"products", "damping"} & set(arguments):
        del given["products"]
        with pytest.raises(ValueError, match=said):
            quantization.quantize_groups(**given)


@pytest.fixture
def encoder() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"dimensions": 8, "heads": 2, "hidden": 16, "layers": 2, "max_tokens": 12}
    return nets.Transformer(40, **sizes)


@pytest.fixture
def tokens() -> torch.Tensor:
    """Texts of 3 to 7 tokens in 10 columns."""
    found = torch.randint(2, 40, (7, 10), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate([3, 7, 5, 4, 4, 3, 6]):
        found[row, length:] = PAD
    return found


def test_products_of_features_are_means_over_examples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    inputs = normal(11, 5)
    found = quantization.input_products(model, inputs, batch_size=4)
    hidden = np.maximum(inputs.numpy() @ model[0].weight.detach().numpy().T + model[0].bias.detach().numpy(), 0)
    for name, x in (("0", inputs.numpy()), ("3", hidden)):
        expected = sum(np.outer(row, row) for row in x.astype(np.float64)) / 11
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)
    assert found["0"].dtype == torch.float32 and list(found) == ["0", "3"]
    assert model.training and not model[3]._forward_pre_hooks
    assert list(quantization.input_products(model, inputs, layers=["3"])) == ["3"]


@pytest.mark.parametrize("batch_size", [2, 32])
def test_products_of_texts_leave_padding_out(encoder, tokens, batch_size):
    """Each text alone, cut to its length: there is no padding to be left out."""
    found = quantization.input_products(encoder, tokens, batch_size=batch_size)
    assert set(found) == {name for name, layer in encoder.named_modules() if isinstance(layer, nn.Linear)}
    rows = {name: [] for name in found}
    handles = [
        encoder.get_submodule(name).register_forward_hook(
            lambda _, x, __, name=name: rows[name].append(x[0].flatten(0, -2))
        )
        for name in found
    ]
    encoder.eval()
    with torch.no_grad():
        for text in tokens:
            encoder(text[text != PAD][None])
    for handle in handles:
        handle.remove()
    counts = {name: sum(map(len, parts)) for name, parts in rows.items()}
    assert counts["fc"] == 7 and counts["layers.1.fc2"] == 3 + 7 + 5 + 4 + 4 + 3 + 6
    for name, parts in rows.items():
        x = torch.cat(parts).double().numpy()
        np.testing.assert_allclose(found[name], x.T @ x / len(x), rtol=1e-4, atol=1e-6)


def test_torchs_own_encoder_is_watched_too():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    found = quantization.input_products(model, normal(3, 5, 8), layers=["linear1", "linear2"])
    assert {name: tuple(each.shape) for name, each in found.items()} == {"linear1": (8, 8), "linear2": (16, 16)}
    with pytest.raises(ValueError, match=r"nothing but padding, reaches self_attn.out_proj"):
        quantization.input_products(model, normal(3, 5, 8))


def test_products_refuse_what_they_cannot_answer(encoder, tokens):
    with pytest.raises(ValueError, match="layer in layers='norm' is unknown"):
        quantization.input_products(encoder, tokens, layers=["norm"])
    with pytest.raises(ValueError, match="layers is empty"):
        quantization.input_products(encoder, tokens, layers=[])
    with pytest.raises(ValueError, match="inputs: what reaches '0' holds NaN"):
        quantization.input_products(nn.Sequential(nn.Linear(2, 2)), torch.full((1, 2), torch.nan))
    with pytest.raises(ValueError, match="inputs is empty"):
        quantization.input_products(encoder, tokens[:0])
    with pytest.raises(ValueError, match="batch_size=0"):
        quantization.input_products(encoder, tokens, batch_size=0)
    with pytest.raises(ValueError, match="inputs has shape"):
        quantization.input_products(encoder, tokens + 100)
    with pytest.raises(ValueError, match="nothing but padding, reaches layers.0"):
        quantization.input_products(encoder, torch.full((2, 4), PAD))
    with pytest.raises(ValueError, match="linear layers of model is empty"):
        quantization.input_products(nn.ReLU(), normal(2, 2))


@pytest.mark.parametrize("with_products", [False, True])
def test_linear_layers_hold_what_groups_stand_for(encoder, tokens, with_products):
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    products = quantization.input_products(encoder, tokens) if with_products else None
    new = quantization.quantize_linears(encoder, 4, size=8, products=products)
    linears = {f"{name}.weight" for name, layer in encoder.named_modules() if isinstance(layer, nn.Linear)}
    for name, tensor in new.state_dict().items():
        if name not in linears:
            assert torch.equal(tensor, before[name])
        elif with_products:
            groups = quantization.gptq(before[name], products[name.removesuffix(".weight")], 4, size=8)
            assert torch.equal(tensor, quantization.dequantize_groups(groups))
        else:
            groups = quantization.quantize_groups(before[name], 4, size=8)
            assert torch.equal(tensor, quantization.dequantize_groups(groups))
            assert not torch.equal(tensor, before[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_only_named_layers_are_rounded(encoder):
    new = quantization.quantize_linears(encoder, 2, size=8, layers=["layers.0.fc1"])
    changed = [n for n, tensor in new.state_dict().items() if not torch.equal(tensor, encoder.state_dict()[n])]
    assert changed == ["layers.0.fc1.weight"]


def test_masked_weights_stay_zero_when_rounded(encoder):
    masked = pruning.mask(encoder, pruning.layer_masks(encoder, {"layers.0.fc1": 0.5}))
    weight = quantization.quantize_linears(masked, 4, size=8).layers[0].fc1.weight
    assert (weight[masked.layers[0].fc1.weight == 0] == 0).all()


def test_layers_that_cannot_be_rounded_are_refused(encoder, tokens):
    products = quantization.input_products(encoder, tokens, layers=["fc"])
    with pytest.raises(ValueError, match="products has no layer 'layers.0.attention.query'"):
        quantization.quantize_linears(encoder, 4, size=8, products=products)
    with pytest.raises(ValueError, match=r"size=64, and layer 'layers.0.attention.query' has 8 columns"):
        quantization.quantize_linears(encoder, 4)
    with pytest.raises(ValueError, match="layer in layers='embedding' is unknown"):
        quantization.quantize_linears(encoder, 4, size=8, layers=["embedding"])
    done = quantization.quantize_model(encoder, weights={"fc": 4})
    with pytest.raises(ValueError, match="layer 'fc' is quantized already"):
        quantization.quantize_linears(done, 4, size=8, layers=["fc"])
    encoder.layers[0].fc1.weight = encoder.layers[1].fc1.weight
    with pytest.raises(ValueError, match="are one tensor"):
        quantization.quantize_linears(encoder, 4, size=8)
