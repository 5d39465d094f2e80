"""Counting against formulas worked out by hand, timing against a fake clock, verdicts ten thousand times."""

import contextlib
import gc
import itertools
import math
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector, parametrizations, parametrize, prune, vector_to_parameters
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.ops import DeformConv2d

from helpers import measure, models, pruning

IMAGES = torch.zeros(3, 1, 28, 28)


@pytest.fixture
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return models.lenet5()


# ---------------------------------------------------------------- counting


def test_lenet5_by_hand(lenet):
    table = measure.layer_table(lenet, IMAGES).set_index("layer")
    by_hand = {
        "conv1": ("Conv2d", (20, 24, 24), 20 * 25, 20, 24 * 24 * 20 * 25),
        "conv2": ("Conv2d", (50, 8, 8), 50 * 20 * 25, 50, 8 * 8 * 50 * 20 * 25),
        "fc1": ("Linear", (500,), 800 * 500, 500, 800 * 500),
        "fc2": ("Linear", (10,), 500 * 10, 10, 500 * 10),
    }
    assert list(table.index) == list(by_hand)
    for name, row in by_hand.items():
        assert tuple(table.loc[name, ["kind", "output", "weights", "biases", "macs"]]) == row
    assert list(table["parameters"]) == [520, 25_050, 400_500, 5_010]
    assert list(table["bytes"]) == [2_080, 100_200, 1_602_000, 20_040]
    assert table["share_parameters"].sum() == pytest.approx(1)
    assert table.loc["conv2", "share_macs"] == 1_600_000 / 2_293_000


def test_lenet5_totals(lenet):
    assert measure.count_parameters(lenet) == 431_080
    assert measure.count_weights(lenet) == measure.count_nonzero(lenet) == 430_500
    assert measure.count_macs(lenet, IMAGES) == 2_293_000
    counter = FlopCounterMode(display=False)
    with counter:
        lenet(IMAGES)
    assert counter.get_total_flops() == 2 * 3 * 2_293_000


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_macs_are_those_of_one_example(lenet, batch):
    assert measure.count_macs(lenet, torch.zeros(batch, 1, 28, 28)) == 2_293_000


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 3),
    into=st.integers(1, 3),
    out=st.integers(1, 3),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    size=st.integers(4, 9),
    bias=st.booleans(),
)
def test_macs_of_any_convolution(groups, into, out, kernel, stride, padding, size, bias):
    layer = nn.Conv2d(groups * into, groups * out, kernel, stride, padding, groups=groups, bias=bias)
    places = ((size + 2 * padding - kernel) // stride + 1) ** 2
    macs = places * groups * out * into * kernel**2
    assert measure.count_macs(layer, torch.zeros(2, groups * into, size, size)) == macs


def test_recurrent_layers_are_not_counted_as_free():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 5, batch_first=True)
            self.out = nn.Linear(5, 2)

        def forward(self, x):
            return self.out(self.lstm(x)[0][:, -1])

    reader, words = Reader(), torch.zeros(2, 9, 6)
    lstm = 9 * 4 * 5 * (6 + 5)
    assert measure.count_macs(reader, words) == lstm + 10
    table = measure.layer_table(reader, words).set_index("layer")
    assert list(table["macs"]) == [lstm, 10]
    assert list(table["weights"]) == [4 * 5 * (6 + 5), 10]


def test_frozen_and_shared_parameters():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    model.requires_grad_(False)
    assert measure.count_parameters(model) == 16 + 8
    assert measure.count_weights(model) == 16


def test_the_model_stays_as_it_is(lenet):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(1352, 2))
    model.train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.random.get_rng_state()
    measure.count_macs(model, IMAGES)
    measure.layer_table(model, IMAGES)
    assert [module.training for module in model] == [True, False, True, True, True]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)
    with pytest.raises(ValueError, match=r"example has shape \(1, 5\)"):
        measure.count_macs(model, torch.zeros(1, 5))
    assert [module.training for module in model] == [True, False, True, True, True]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_masked_model_costs_what_the_dense_one_costs_and_counts_its_zeros(lenet):
    masked = pruning.mask(lenet, pruning.layer_masks(lenet, 0.9))
    dense_table, table = measure.layer_table(lenet, IMAGES), measure.layer_table(masked, IMAGES)
    assert table.equals(dense_table)
    assert measure.count_macs(masked, IMAGES) == 2_293_000
    assert measure.count_parameters(masked) == 431_080
    assert measure.count_weights(masked) == 430_500
    assert measure.count_nonzero(masked) == 43_050 == measure.count_nonzero(pruning.bake(masked))
    assert parametrize.is_parametrized(masked.get_submodule("fc1"), "weight")


def test_torchs_own_masks_are_understood(lenet):
    prune.random_unstructured(lenet.fc1, "weight", amount=0.75)
    prune.ln_structured(lenet.conv2, "weight", amount=0.5, n=1, dim=0)
    assert measure.count_nonzero(lenet) == 500 + 12_500 + 100_000 + 5_000
    assert measure.count_weights(lenet) == 430_500
    assert list(measure.layer_table(lenet, IMAGES)["parameters"]) == [520, 25_050, 400_500, 5_010]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the old names
@pytest.mark.parametrize("change", [prune.l1_unstructured, nn.utils.weight_norm, nn.utils.spectral_norm])
def test_what_torch_computes_weights_from_changes_no_count(lenet, change):
    options = {"amount": 0.5} if change is prune.l1_unstructured else {}
    before = measure.count_macs(lenet, IMAGES), measure.count_weights(lenet)
    change(lenet.fc1, "weight", **options)
    change(lenet.conv2, "weight", **options)
    lenet(IMAGES)  # from now on the layers hold tensors that were computed
    assert (measure.count_macs(lenet, IMAGES), measure.count_weights(lenet)) == before
    table = measure.layer_table(lenet, IMAGES)
    assert list(table["weights"]) == [500, 25_000, 400_000, 5_000]
    assert list(table["macs"]) == [288_000, 1_600_000, 400_000, 5_000]
    assert table["parameters"].sum() == measure.count_parameters(lenet)


@pytest.mark.parametrize("change", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_torchs_parametrizations_change_no_macs(lenet, change):
    change(lenet.fc1)
    table = measure.layer_table(lenet, IMAGES)
    assert list(table["layer"]) == ["conv1", "conv2", "fc1", "fc2"]
    assert list(table["weights"]) == [500, 25_000, 400_000, 5_000]
    assert table["macs"].sum() == measure.count_macs(lenet, IMAGES) == 2_293_000
    assert table["parameters"].sum() == measure.count_parameters(lenet)


def test_tied_and_masked_weights_count_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    table = measure.layer_table(model, torch.zeros(2, 4))
    assert list(table["weights"]) == [16, 0, 8]
    assert list(table["biases"]) == [4, 0, 2]
    assert list(table["parameters"]) == [20, 0, 10]
    assert list(table["macs"]) == [16, 16, 8]
    half = pruning.Mask(torch.arange(4) < 2)
    parametrize.register_parametrization(model[0], "weight", half)
    parametrize.register_parametrization(model[1], "weight", half)
    model[1].parametrizations.weight.original = model[0].parametrizations.weight.original
    assert measure.count_weights(model) == 24
    assert measure.count_nonzero(model) == 16
    assert list(measure.layer_table(model, torch.zeros(2, 4))["parameters"]) == [20, 0, 10]


def test_an_empty_example_is_refused(lenet):
    with pytest.raises(ValueError, match="example is empty"):
        measure.count_macs(lenet, IMAGES[:0])


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("example", [torch.tensor(1.0), [[1.0]], None])
def test_what_is_no_batch_is_refused(lenet, example):
    for count in (measure.count_macs, measure.layer_table):
        with pytest.raises(ValueError, match="allowed: a tensor whose first dimension"):
            count(lenet, example)


def test_a_model_without_parameters_has_no_table():
    with pytest.raises(ValueError, match="layers with parameters is empty"):
        measure.layer_table(nn.Sequential(nn.ReLU()), IMAGES)
    assert measure.count_macs(nn.ReLU(), IMAGES) == 0


# ---------------------------------------------------------------- closed forms

DIM, HIDDEN = 8, 6


class Calling(nn.Module):
    """Hands a layer and its input to a function."""

    def __init__(self, layer: nn.Module | None, call) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        return self.call(self.layer, x)


class Attention(nn.Module):
    """Scaled dot-product attention with as many heads of keys and values as asked for."""

    def __init__(self, groups: int = 4, **options: object) -> None:
        super().__init__()
        self.groups, self.options = groups, options
        self.q, self.kv = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * groups * 2)

    def forward(self, x):
        q = self.q(x).unflatten(2, (4, 2)).transpose(1, 2)
        k, v = self.kv(x).unflatten(2, (2, self.groups, 2)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=self.groups < 4, **self.options)


class FusedAttention(nn.Module):
    """A network that insists on the fused kernel."""

    def forward(self, x):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])


def sequences(batch: int, n: int) -> torch.Tensor:
    return torch.zeros(batch, n, DIM)


def cells(kind: type[nn.Module]) -> nn.Module:
    def unroll(cell, x):
        state = None
        for step in x.unbind(1):
            state = cell(step, state)
        return state

    return Calling(kind(DIM, HIDDEN), unroll)


def recurrent(gates: int, n: int, *, inputs: int = DIM) -> int:
    return n * gates * HIDDEN * (inputs + HIDDEN)


def attention(n: int) -> int:
    """Four projections, and two products of every token with every other."""
    return 4 * n * DIM**2 + 2 * n**2 * DIM


def encoder(n: int) -> int:
    return attention(n) + 2 * n * DIM * HIDDEN


def two_way(kind: type[nn.Module]) -> nn.Module:
    return kind(DIM, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)


def over(function) -> nn.Module:
    return Calling(None, lambda _, x: function(x))


def in_channels(layer: nn.Module, dimensions: int) -> nn.Module:
    """n places in each of `dimensions` directions, eight channels."""
    return Calling(layer, lambda layer, x: layer(x.mT.reshape(len(x), DIM, -1, *[1] * (dimensions - 1))))


def multihead(**options: object) -> nn.Module:
    layer = nn.MultiheadAttention(DIM, 2, batch_first=True)
    return Calling(layer, lambda layer, x: layer(query=x, key=x, value=x, **options))


CLOSED_FORMS = {
    "sdpa": (Attention, lambda n: n * DIM * (DIM + 16) + 2 * n**2 * DIM),
    "sdpa, causal": (partial(Attention, is_causal=True), lambda n: n * DIM * (DIM + 16) + 2 * n**2 * DIM),
    "sdpa, dropout": (partial(Attention, dropout_p=0.5), lambda n: n * DIM * (DIM + 16) + 2 * n**2 * DIM),
    "sdpa, two groups": (partial(Attention, 2), lambda n: n * DIM * (DIM + 8) + 2 * n**2 * DIM),
    "sdpa, fused": (FusedAttention, lambda n: 2 * n**2 * DIM),
    "attention": (multihead, attention),
    "attention, no weights": (partial(multihead, need_weights=False), attention),
    "attention, tokens first": (
        lambda: Calling(nn.MultiheadAttention(DIM, 1), lambda layer, x: layer(*[x.transpose(0, 1)] * 3)),
        attention,
    ),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(DIM, 2, HIDDEN, batch_first=True), encoder),
    "encoder layer, norm first": (
        lambda: nn.TransformerEncoderLayer(DIM, 2, HIDDEN, batch_first=True, norm_first=True),
        encoder,
    ),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(DIM, 2, HIDDEN, batch_first=True), 3),
        lambda n: 3 * encoder(n),
    ),
    "encoder, padding": (
        lambda: Calling(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(DIM, 2, HIDDEN, batch_first=True), 2),
            lambda layer, x: layer(x, src_key_padding_mask=torch.arange(x.shape[1]).expand(len(x), -1) > 1),
        ),
        lambda n: 2 * encoder(n),
    ),
    "decoder layer": (
        lambda: Calling(nn.TransformerDecoderLayer(DIM, 2, HIDDEN, batch_first=True), lambda layer, x: layer(x, x)),
        lambda n: encoder(n) + attention(n),
    ),
    "RNN": (lambda: nn.RNN(DIM, HIDDEN, batch_first=True), partial(recurrent, 1)),
    "GRU": (lambda: nn.GRU(DIM, HIDDEN, batch_first=True), partial(recurrent, 3)),
    "LSTM": (lambda: nn.LSTM(DIM, HIDDEN, batch_first=True), partial(recurrent, 4)),
    "LSTM, float64": (
        lambda: Calling(nn.LSTM(DIM, HIDDEN, batch_first=True).double(), lambda layer, x: layer(x.double())),
        partial(recurrent, 4),
    ),
    "RNN, twice": (partial(two_way, nn.RNN), lambda n: 2 * recurrent(1, n) + 2 * recurrent(1, n, inputs=2 * HIDDEN)),
    "GRU, twice": (partial(two_way, nn.GRU), lambda n: 2 * recurrent(3, n) + 2 * recurrent(3, n, inputs=2 * HIDDEN)),
    "LSTM, twice": (partial(two_way, nn.LSTM), lambda n: 2 * recurrent(4, n) + 2 * recurrent(4, n, inputs=2 * HIDDEN)),
    "LSTM, projected": (
        lambda: nn.LSTM(DIM, HIDDEN, proj_size=2, batch_first=True),
        lambda n: n * (4 * HIDDEN * (DIM + 2) + 2 * HIDDEN),
    ),
    "RNNCell": (partial(cells, nn.RNNCell), partial(recurrent, 1)),
    "GRUCell": (partial(cells, nn.GRUCell), partial(recurrent, 3)),
    "LSTMCell": (partial(cells, nn.LSTMCell), partial(recurrent, 4)),
    "the course's RNN": (partial(models.RNN, DIM, HIDDEN), partial(recurrent, 1)),
    "the course's LSTM": (partial(models.LSTM, DIM, HIDDEN), partial(recurrent, 4)),
    "Conv1d": (lambda: in_channels(nn.Conv1d(8, 6, 3, padding=1), 1), lambda n: n * 6 * 8 * 3),
    "Conv2d, depthwise": (lambda: in_channels(nn.Conv2d(8, 8, 3, padding=1, groups=8), 2), lambda n: n * 8 * 9),
    "Conv3d, groups": (lambda: in_channels(nn.Conv3d(8, 6, 3, padding=1, groups=2), 3), lambda n: n * 6 * 4 * 27),
    "ConvTranspose1d": (lambda: in_channels(nn.ConvTranspose1d(8, 6, 3), 1), lambda n: n * 8 * 6 * 3),
    "ConvTranspose2d": (lambda: in_channels(nn.ConvTranspose2d(8, 6, 2, 2, groups=2), 2), lambda n: n * 8 * 3 * 4),
    "ConvTranspose3d": (lambda: in_channels(nn.ConvTranspose3d(8, 16, 2, groups=8), 3), lambda n: n * 8 * 2 * 8),
    "conv_tbc": (
        lambda: over(lambda x: torch.conv_tbc(x.transpose(0, 1), torch.zeros(3, DIM, 5), torch.zeros(5), 1)),
        lambda n: n * 3 * DIM * 5,
    ),
    "deformable": (
        lambda: Calling(
            DeformConv2d(8, 6, 3, padding=1, groups=2),
            lambda layer, x: layer(x.mT[..., None], torch.zeros(len(x), 18, x.shape[1], 1)),
        ),
        lambda n: n * 6 * 4 * 9,
    ),
    "Linear": (lambda: nn.Linear(DIM, 5), lambda n: n * DIM * 5),
    "Bilinear": (lambda: Calling(nn.Bilinear(DIM, DIM, 5), lambda layer, x: layer(x, x)), lambda n: n * DIM * DIM * 5),
    "Embedding": (lambda: Calling(nn.Embedding(4, 3), lambda layer, x: layer(x[..., 0].long())), lambda n: 0),
    "EmbeddingBag": (lambda: Calling(nn.EmbeddingBag(4, 3), lambda layer, x: layer(x[..., 0].long())), lambda n: 0),
    "einsum": (lambda: over(lambda x: torch.einsum("bic,bjc->bij", x, x)), lambda n: n * n * DIM),
    "matmul": (lambda: over(lambda x: x @ x.mT), lambda n: n * n * DIM),
    "matmul with a vector": (lambda: over(lambda x: x @ torch.ones(DIM)), lambda n: n * DIM),
    "baddbmm": (lambda: over(lambda x: torch.baddbmm(torch.zeros(1), x, x.mT)), lambda n: n * n * DIM),
    "addbmm": (lambda: over(lambda x: torch.addbmm(torch.zeros(1), x, x.mT)[None]), lambda n: n * n * DIM),
    "addmv": (lambda: over(lambda x: torch.stack([torch.addmv(r[:, 0], r, r[0]) for r in x])), lambda n: n * DIM),
    "dot": (lambda: over(lambda x: torch.stack([torch.dot(r[0], r[0]) for r in x])), lambda n: DIM),
    "tensordot": (lambda: over(lambda x: torch.stack([torch.tensordot(r, r) for r in x])), lambda n: n * DIM),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms(name):
    build, closed_form = CLOSED_FORMS[name]
    model = build().eval()
    for batch, length in itertools.product((1, 3), (2, 5, 16)):
        example = sequences(batch, length)
        assert measure.count_macs(model, example) == closed_form(length)
        if closed_form(length) or measure.count_parameters(model):
            table = measure.layer_table(model, example)
            assert table["macs"].sum() == closed_form(length)
            assert table["parameters"].sum() == measure.count_parameters(model)
            assert table["weights"].sum() == measure.count_weights(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_costs_the_same(dtype):
    for build in (lambda: nn.TransformerEncoderLayer(DIM, 2, HIDDEN, batch_first=True), lambda: nn.GRU(DIM, HIDDEN)):
        model, example = build().eval(), sequences(2, 5)
        assert measure.count_macs(model.to(dtype), example.to(dtype)) == measure.count_macs(build(), example)
    lstm = nn.LSTM(DIM, HIDDEN, batch_first=True).to(dtype)
    assert measure.count_macs(lstm, sequences(2, 5).to(dtype)) == recurrent(4, 5)


def test_settings_of_torch_come_back(lenet):
    for fast in (False, True):
        torch.backends.mha.set_fastpath_enabled(fast)
        measure.count_macs(lenet, IMAGES)
        assert torch.backends.mha.get_fastpath_enabled() is fast
    assert torch.backends.cuda.flash_sdp_enabled()


# ---------------------------------------------------------------- whose MACs they are


def macs_of(model: nn.Module, example: torch.Tensor) -> dict[str, int]:
    table = measure.layer_table(model, example)
    assert table["macs"].sum() == measure.count_macs(model, example)
    return dict(zip(table["layer"], table["macs"], strict=True))


def test_attention_and_its_projections():
    n = 5
    found = macs_of(nn.TransformerEncoderLayer(DIM, 2, HIDDEN, batch_first=True).eval(), sequences(2, n))
    assert found == {
        "self_attn": 3 * n * DIM**2 + 2 * n**2 * DIM,
        "self_attn.out_proj": n * DIM**2,
        "linear1": n * DIM * HIDDEN,
        "linear2": n * DIM * HIDDEN,
        "norm1": 0,
        "norm2": 0,
    }


def test_what_no_layer_with_parameters_multiplies_has_a_row_of_its_own():
    table = measure.layer_table(Attention(), sequences(2, 5))
    assert list(table["layer"]) == ["", "q", "kv"]
    assert list(table["kind"]) == ["Attention", "Linear", "Linear"]
    assert list(table["macs"]) == [2 * 25 * DIM, 5 * DIM**2, 5 * DIM * 16]
    assert list(table["parameters"]) == [0, 72, 144]


@pytest.mark.parametrize("masked", [False, True])
def test_the_courses_lstm_costs_what_its_two_matrices_cost(masked):
    model = models.imdb_lstm()
    if masked:
        model = pruning.mask(model, pruning.layer_masks(model, 0.5))
    found = macs_of(model, torch.full((2, 9), 5))
    assert found == {
        "embedding": 0,
        "encoder.input": 9 * 144 * 100,
        "encoder.recurrent": 9 * 144 * 36,
        "fc": 72,
    }


class Scaled(nn.Module):
    """A parameter of its own beside two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.fc1, self.fc2 = nn.Parameter(torch.ones(4)), nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.fc2(self.scale.sum() * self.fc1(x))


def test_a_module_with_a_parameter_and_children_counts_once():
    assert macs_of(Scaled(), torch.zeros(2, 4)) == {"": 0, "fc1": 32, "fc2": 8}


def test_a_module_under_two_names_or_called_twice_has_one_row():
    layer = nn.Conv2d(3, 3, 3, padding=1)
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    assert macs_of(twice, torch.zeros(2, 3, 4, 4)) == {"0": 2 * 16 * 81}
    again = Calling(nn.Linear(4, 4), lambda layer, x: layer(layer(input=x)))
    assert macs_of(again, torch.zeros(2, 4)) == {"layer": 32}


class Tied(nn.Module):
    """The decoder is the embedding, as a layer or as a function."""

    def __init__(self, *, function: bool) -> None:
        super().__init__()
        self.embedding, self.decoder = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.decoder.weight = self.embedding.weight
        if function:
            del self.decoder

    def forward(self, x):
        states = self.embedding(x)
        return self.decoder(states) if hasattr(self, "decoder") else F.linear(states, self.embedding.weight)


def test_a_tied_decoder():
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    assert macs_of(Tied(function=False), tokens) == {"embedding": 0, "decoder": 3 * 28}
    assert macs_of(Tied(function=True), tokens) == {"embedding": 3 * 28}
    table = measure.layer_table(Tied(function=False), tokens)
    assert list(table["parameters"]) == [28, 7]


def test_layers_that_are_views_of_one_tensor():
    """As `vector_to_parameters` leaves them; `Calling` asks by the weight alone."""
    layers = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
    vector_to_parameters(parameters_to_vector(layers.parameters()), layers.parameters())
    model = Calling(layers, lambda layers, x: F.linear(F.linear(x, layers[1].weight), layers[1].weight[:2]))
    assert macs_of(model, torch.zeros(2, 4)) == {"layer.0": 0, "layer.1": 16 + 8}


class Hyper(nn.Module):
    """Computes a weight that does not depend on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.make = nn.Parameter(torch.ones(1, 3)), nn.Linear(3, 20)

    def forward(self, x):
        return F.linear(x, self.make(self.code).view(5, 4))


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_what_does_not_depend_on_the_batch_is_not_divided_by_it(batch):
    assert macs_of(Hyper(), torch.zeros(batch, 4)) == {"": 20, "make": 60}


def test_networks_that_take_one_batch_size_only():
    one = Calling(nn.Linear(12, 2), lambda layer, x: layer(x.reshape(1, -1)))
    assert measure.count_macs(one, torch.zeros(5, 3, 4)) == 24
    four = Calling(nn.Linear(12, 2), lambda layer, x: layer(x.reshape(4, 12)))
    assert measure.count_macs(four, torch.zeros(4, 3, 4)) == 24
    assert macs_of(four, torch.zeros(4, 3, 4)) == {"layer": 24}
    with pytest.raises(ValueError, match="example has 4 examples, whose MACs are no multiple of 4"):
        measure.count_macs(Calling(nn.Linear(5, 1), lambda layer, x: layer(x[1:].view(3, 5))), torch.zeros(4, 5))


def test_outputs_of_any_kind():
    halves = Calling(nn.Linear(4, 6), lambda layer, x: {"left": layer(x), "right": (x, None)})
    empty = Calling(halves, lambda layer, x: (layer(x), None)[1])
    for model in (halves, empty):
        assert measure.layer_table(model, torch.zeros(2, 4)).loc[0, "output"] == (6,)
    lstm = Calling(nn.LSTM(4, 3, batch_first=True), lambda layer, x: layer(x)[1])
    assert measure.layer_table(lstm, torch.zeros(2, 7, 4)).loc[0, "output"] == (7, 3)


def test_a_layer_that_fails_and_is_tried_again():
    def twice(layer, x):
        with contextlib.suppress(RuntimeError):
            layer[0](x)
        return layer[1](x)

    model = Calling(nn.Sequential(nn.Linear(9, 9), nn.Linear(4, 2)), twice)
    assert macs_of(model, torch.zeros(2, 4)) == {"layer.0": 0, "layer.1": 8}


def test_torchs_integer_layers_are_refused():
    class Packed(nn.Linear):
        __module__ = "torch.ao.nn.quantized.dynamic.modules.linear"

    with pytest.raises(ValueError, match="layer '1' is Packed, of torch.ao"):
        measure.count_macs(nn.Sequential(nn.Linear(4, 4), Packed(4, 2)), torch.zeros(2, 4))


def by_modules(model: nn.Module, example: torch.Tensor) -> int:
    """An independent count for networks of convolutions and linear layers: what comes out times what each reads."""
    total = 0

    def add(layer, inputs, output):
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(add)
    with torch.no_grad():
        model(example)
    return total


LARGE = ("alexnet", "vgg11", "vit_b_16", "wide_resnet50_2")  # counted by their shapes alone
QUICK = ("mobilenet_v3_small", "resnet18", "squeezenet1_1")
SLOW = (
    "convnext_tiny densenet121 efficientnet_b0 googlenet mnasnet0_5 mobilenet_v2 regnet_y_400mf resnext50_32x4d "
    "shufflenet_v2_x0_5 swin_t"
)


@pytest.mark.parametrize("name", [*LARGE, *QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW.split())])
def test_the_rows_add_up_for_torchvisions_families(name):
    options = {"init_weights": False} if name == "googlenet" else {"image_size": 64} if name == "vit_b_16" else {}
    with torch.device("meta" if name in LARGE else "cpu"):
        model = torchvision.models.get_model(name, weights=None, **options).eval()
        example = torch.zeros(1, 3, 64, 64)
    table = measure.layer_table(model, example)
    assert table["parameters"].sum() == measure.count_parameters(model)
    total = measure.count_macs(model, example)
    assert table["macs"].sum() == total
    assert total > 1e6
    if name == "vit_b_16":
        tokens = 17
        block = 4 * tokens * 768**2 + 2 * tokens**2 * 768 + 2 * tokens * 768 * 3072
        assert total == 16 * 768 * 3 * 16 * 16 + 12 * block + 768 * 1000
    elif name == "swin_t":
        assert total == swin_t(16)
    else:
        assert total == by_modules(model, example)


def swin_t(side: int) -> int:
    """Patches, four stages of attention in windows of 7 (the side is padded to whole ones), halved between, a head."""
    total = side**2 * 96 * 48
    for depth, dim in ((2, 96), (2, 192), (6, 384), (2, 768)):
        padded = (math.ceil(side / 7) * 7) ** 2
        block = 4 * padded * dim**2 + 2 * padded * 49 * dim + 8 * side**2 * dim**2
        total += depth * block
        if dim < 768:
            side //= 2
            total += side**2 * 4 * dim * 2 * dim
    return total + 768 * 1000


def test_rows_of_small_transformers():
    """Whose products are whose, where layers are used by their weights alone: 16 tokens of 8 numbers."""
    vit = VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3).eval()
    found = macs_of(vit, torch.zeros(2, 3, 32, 32))
    assert {name: macs for name, macs in found.items() if macs} == {
        "conv_proj": 16 * 8 * 192,
        "encoder.layers.encoder_layer_0.self_attention": 3 * 17 * 64 + 2 * 17**2 * 8,
        "encoder.layers.encoder_layer_0.self_attention.out_proj": 17 * 64,
        "encoder.layers.encoder_layer_0.mlp.0": 17 * 128,
        "encoder.layers.encoder_layer_0.mlp.3": 17 * 128,
        "heads.head": 24,
    }
    swin = SwinTransformer([8, 8], 8, [2], [2], [2, 2], num_classes=3).eval()
    found = macs_of(swin, torch.zeros(2, 3, 32, 32))
    assert {name: macs for name, macs in found.items() if macs} == {
        "features.0.0": 16 * 8 * 192,
        "features.1.0.attn": 2 * 16 * 4 * 8,
        "features.1.0.attn.qkv": 16 * 8 * 24,
        "features.1.0.attn.proj": 16 * 64,
        "features.1.0.mlp.0": 16 * 8 * 32,
        "features.1.0.mlp.3": 16 * 8 * 32,
        "features.1.1.attn": 2 * 16 * 4 * 8,
        "features.1.1.attn.qkv": 16 * 8 * 24,
        "features.1.1.attn.proj": 16 * 64,
        "features.1.1.mlp.0": 16 * 8 * 32,
        "features.1.1.mlp.3": 16 * 8 * 32,
        "head": 24,
    }


# ---------------------------------------------------------------- memory


def test_peak_memory_grows_with_what_is_held():
    before = measure.peak_memory_mb()
    held = np.ones(int(before * 1e6 / 8) + 25_000_000)  # more than the peak so far, and 200 MB
    assert 200 < held.nbytes / 1e6 <= measure.peak_memory_mb() < 10 * before + 2_000


@pytest.mark.skipif(sys.platform == "win32", reason="has no module resource")
@pytest.mark.parametrize(("platform", "megabytes"), [("linux", 1.024e3), ("darwin", 1.0)])
def test_peak_memory_is_in_megabytes_whatever_the_systems_unit(monkeypatch, platform, megabytes):
    """Linux counts in units of 1,024 bytes, macOS in bytes."""
    import resource

    monkeypatch.setattr(measure.sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda whose: SimpleNamespace(ru_maxrss=1_000_000))
    assert measure.peak_memory_mb() == megabytes


# ---------------------------------------------------------------- timing


class Clock:
    """A clock that only the timed functions advance; it also writes down who was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.called: list[str] = []
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)

    def work(self, name: str, seconds: float):
        def function() -> None:
            self.called.append(name)
            self.now += seconds

        return function


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def test_times_are_seconds_per_call(clock):
    variants = {"a": clock.work("a", 0.25), "b": clock.work("b", 0.5)}
    timings = measure.time_interleaved(variants, rounds=7, warmup=2)
    assert list(timings) == ["a", "b", "a (A/A)"]
    assert np.array_equal(timings["a"], [0.25] * 7)
    assert np.array_equal(timings["b"], [0.5] * 7)
    assert np.array_equal(timings["a (A/A)"], [0.25] * 7)


def test_every_round_holds_every_variant_in_a_new_order(clock):
    names = ["a", "b", "c"]
    variants = {name: clock.work(name, 1.0) for name in names}
    measure.time_interleaved(variants, rounds=200, warmup=1, inner=1)
    rounds = [clock.called[start : start + 4] for start in range(3, len(clock.called), 4)]
    assert len(rounds) == 200
    assert {tuple(sorted(one)) for one in rounds} == {("a", "a", "b", "c")}
    for position in range(4):
        share = sum(one[position] == "b" for one in rounds) / 200
        assert 0.15 < share < 0.35


def test_short_calls_are_repeated_until_a_sample_fills_a_millisecond(clock):
    variants = {"short": clock.work("short", 1e-5), "long": clock.work("long", 0.1)}
    timings = measure.time_interleaved(variants, rounds=3, warmup=1)
    assert clock.called.count("short") == 1 + 2 * 3 * 100
    assert clock.called.count("long") == 1 + 3
    assert timings["short"] == pytest.approx([1e-5] * 3)


def test_one_interrupted_call_does_not_shorten_the_samples(clock):
    delays = iter([0.5, 0.5, 0.5])  # a cold cache, then a busy machine

    def function() -> None:
        clock.called.append("a")
        clock.now += 1e-5 + next(delays, 0)

    measure.time_interleaved({"a": function}, rounds=1, warmup=4)
    assert len(clock.called) == 4 + 2 * 100


def test_inner_and_warmup_are_taken_as_given(clock):
    measure.time_interleaved({"a": clock.work("a", 1e-7)}, rounds=4, warmup=3, inner=5)
    assert len(clock.called) == 3 + 2 * 4 * 5


def test_the_control_can_be_a_copy(clock):
    variants = {"a": clock.work("a", 0.25), "b": clock.work("b", 0.5)}
    timings = measure.time_interleaved(variants, rounds=7, warmup=2, control=clock.work("copy", 0.75))
    assert list(timings) == ["a", "b", "a (A/A)"]
    assert np.array_equal(timings["a (A/A)"], [0.75] * 7)
    assert [clock.called.count(name) for name in ("a", "b", "copy")] == [2 + 7] * 3


def test_the_copy_is_called_as_often_in_a_sample_as_the_first_variant(clock):
    measure.time_interleaved({"a": clock.work("a", 1e-5)}, rounds=3, warmup=1, control=clock.work("copy", 0.1))
    assert clock.called.count("copy") == clock.called.count("a") == 1 + 3 * 100


def test_threads_and_garbage_collection_are_restored():
    before = torch.get_num_threads()
    inside = []

    def function() -> None:
        inside.append((torch.get_num_threads(), gc.isenabled()))

    measure.time_interleaved({"a": function}, rounds=1, warmup=1, threads=before + 1, inner=1)
    assert set(inside) == {(before + 1, False)}
    with pytest.raises(ZeroDivisionError):
        measure.time_interleaved({"a": lambda: 1 / 0}, rounds=1)
    assert torch.get_num_threads() == before
    assert gc.isenabled()


def test_garbage_collection_that_was_off_stays_off():
    gc.disable()
    try:
        measure.time_interleaved({"a": int}, rounds=1, warmup=1, inner=1)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_threads_are_left_as_they_are_if_asked_for():
    before, inside = torch.get_num_threads(), set()
    torch.set_num_threads(before + 1)
    try:
        measure.time_interleaved({"a": lambda: inside.add(torch.get_num_threads())}, rounds=1, inner=1, threads=None)
    finally:
        torch.set_num_threads(before)
    assert inside == {before + 1}


@pytest.mark.parametrize(
    ("variants", "options", "message"),
    [
        ({}, {}, "variants is empty"),
        ({"a": print, "a (A/A)": print}, {}, "'a \\(A/A\\)'; allowed: any other name"),
        ({"a": print}, {"rounds": 0}, "rounds=0"),
        ({"a": print}, {"warmup": 0}, "warmup=0"),
        ({"a": int}, {"threads": 0}, "threads=0"),
        ({"a": int}, {"inner": 0}, "inner=0"),
        ({"a": int}, {"inner": 1.5}, "inner=1.5"),
        ({"a": int}, {"control": 3}, "control=3; allowed: a function"),
        ({"a": int, "b": 3}, {}, "variants\\['b'\\]=3; allowed: a function"),
    ],
)
def test_bad_timing_requests(variants, options, message):
    with pytest.raises(ValueError, match=message):
        measure.time_interleaved(variants, **options)


# ---------------------------------------------------------------- verdicts

ROUNDS = 60


def drift(random: np.random.Generator, kind: str, rounds: int) -> np.ndarray:
    """What slows the machine as a whole, as log seconds per round."""
    if kind == "ramp":
        return np.linspace(0, 0.7, rounds)
    if kind == "walk":
        return random.normal(0, 0.1, rounds).cumsum()
    if kind == "clock steps":  # now fast, now half as fast, for about six rounds each
        return 0.7 * ((random.random(rounds) < 0.15).cumsum() % 2)
    return np.zeros(rounds)


def noise(random: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    """What hits single samples, as log seconds: a tenth delayed, with no finite mean, or Student's t."""
    if kind == "delays":
        delayed = random.random(shape) < 0.1
        return random.normal(0, 0.03, shape) + delayed * np.log1p(random.pareto(0.9, shape))
    if kind == "student":
        return 0.05 * np.abs(random.standard_t(2, shape))
    return random.normal(0, 0.05, shape)


KINDS = list(itertools.product(["none", "ramp", "walk", "clock steps"], ["normal", "delays", "student"]))


def trace(random: np.random.Generator, kinds: tuple[str, str], *, faster: float = 1.0, rounds: int = ROUNDS):
    logs = noise(random, kinds[1], (3, rounds)) + drift(random, kinds[0], rounds)
    a, control, b = 1e-3 * np.exp(logs)
    return {"a": a, "b": b / faster, "a (A/A)": control}


def verdict(timings) -> str:
    return measure.compare(timings)["b"].verdict


@pytest.mark.slow
def test_false_alarms_in_ten_thousand_comparisons_of_a_with_a():
    random = np.random.default_rng(0)
    alarms = {kinds: 0 for kinds in KINDS}
    for _, kinds in zip(range(10_000), itertools.cycle(KINDS), strict=False):
        alarms[kinds] += verdict(trace(random, kinds)) != "no measurable difference"
    assert sum(alarms.values()) <= 100
    assert max(alarms.values()) <= 0.01 * 10_000 / len(KINDS)


def test_a_true_factor_of_1_3_is_found_every_time():
    random = np.random.default_rng(1)
    for kinds in KINDS:
        for _ in range(40):
            assert verdict(trace(random, kinds, faster=1.3)) == "faster", kinds
            assert verdict(trace(random, kinds, faster=1 / 1.3)) == "slower", kinds


def test_drift_of_each_variant_by_itself_raises_few_alarms():
    """Slow drift that variants do not share is the worst case: neighbouring rounds carry the same error."""
    random, alarms = np.random.default_rng(2), 0
    for _ in range(1_000):
        logs = np.zeros((3, ROUNDS))
        for index in range(1, ROUNDS):
            logs[:, index] = 0.85 * logs[:, index - 1] + random.normal(0, 0.05, 3)
        a, control, b = np.exp(logs)
        alarms += verdict({"a": a, "b": b, "a (A/A)": control}) != "no measurable difference"
    assert alarms <= 10


def test_the_fewest_rounds_raise_few_alarms_too():
    random, fewest = np.random.default_rng(3), measure.MINIMUM_ROUNDS
    alarms = sum(
        verdict(trace(random, kinds, rounds=fewest)) != "no measurable difference"
        for _, kinds in zip(range(1_200), itertools.cycle(KINDS), strict=False)
    )
    assert alarms <= 12


def test_the_interval_covers_the_true_ratio():
    random, covered = np.random.default_rng(4), 0
    for _, kinds in zip(range(1_200), itertools.cycle(KINDS), strict=False):
        low, high = measure.compare(trace(random, kinds, faster=1.5))["b"].interval
        covered += low <= 1.5 <= high
    assert covered >= 0.97 * 1_200


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, kinds=st.sampled_from(KINDS), rounds=st.integers(20, 90))
def test_slowing_down_whole_rounds_changes_no_ratio(seed, kinds, rounds):
    random = np.random.default_rng(seed)
    timings = trace(random, kinds, faster=1.1, rounds=rounds)
    slow = np.exp(random.normal(0, 1, rounds))
    before, after = measure.compare(timings), measure.compare({name: slow * t for name, t in timings.items()})
    for name in timings:
        assert after[name].ratio == pytest.approx(before[name].ratio)
        assert after[name].interval == pytest.approx(before[name].interval)
        assert after[name].null_interval == pytest.approx(before[name].null_interval)
        assert after[name].verdict == before[name].verdict


@settings(max_examples=50, deadline=None)
@given(seed=seeds, kinds=st.sampled_from(KINDS), factor=st.floats(0.2, 5))
def test_a_variant_slower_by_a_factor_has_a_ratio_smaller_by_it(seed, kinds, factor):
    timings = trace(np.random.default_rng(seed), kinds)
    before = measure.compare(timings)["b"]
    after = measure.compare(timings | {"b": timings["b"] * factor})["b"]
    assert after.ratio == pytest.approx(before.ratio / factor)
    assert after.interval == pytest.approx([end / factor for end in before.interval])
    assert after.null_interval == pytest.approx(before.null_interval)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, kinds=st.sampled_from(KINDS), faster=st.floats(0.5, 2))
def test_what_a_verdict_holds_fits_together(seed, kinds, faster):
    verdicts = measure.compare(trace(np.random.default_rng(seed), kinds, faster=faster))
    assert list(verdicts) == ["a", "b", "a (A/A)"]
    base, other, control = verdicts.values()
    for name, one in verdicts.items():
        assert one.name == name
        assert one.ratio == pytest.approx(base.median_ms / one.median_ms)
        assert one.interval[0] <= one.ratio <= one.interval[1]
        assert one.null_interval[0] == pytest.approx(1 / one.null_interval[1])
    assert base.interval == (1, 1)
    assert base.null_interval[0] <= control.ratio <= base.null_interval[1]
    assert control.note in ("", "the noise lasted", "too few rounds")
    assert 0 < control.effective_rounds <= ROUNDS
    assert base.verdict == control.verdict == "no measurable difference"
    clears = other.interval[0] > other.null_interval[1] or other.interval[1] < other.null_interval[0]
    assert clears == (other.verdict != "no measurable difference")


def test_without_drift_the_medians_are_plain_medians():
    timings = trace(np.random.default_rng(0), ("none", "normal"), faster=2)
    verdicts = measure.compare(timings)
    for name, seconds in timings.items():
        assert verdicts[name].median_ms == pytest.approx(1e3 * np.median(seconds), rel=0.03)


def test_a_noisy_control_withholds_the_verdict():
    """The same pair of traces is told apart beside a calm control and not beside a restless one."""
    random = np.random.default_rng(0)
    timings = trace(random, ("none", "normal"), faster=1.2)
    assert verdict(timings) == "faster"
    assert verdict(timings | {"a (A/A)": timings["a (A/A)"] * 1.25}) == "no measurable difference"


def lasting(rounds: int) -> dict[str, np.ndarray]:
    """Return traces of which one is slow in its first half."""
    timings = trace(np.random.default_rng(0), KINDS[0], rounds=rounds)
    return timings | {"b": timings["b"] * np.where(np.arange(rounds) < rounds // 2, 1.3, 1.0)}


def test_noise_that_lasts_is_noticed_and_widens_the_interval():
    timings = lasting(40)
    found = measure.compare(timings)["b"]
    order = np.random.default_rng(0).permutation(40)
    shuffled = measure.compare({name: seconds[order] for name, seconds in timings.items()})["b"]
    assert (found.note, shuffled.note) == ("the noise lasted", "")
    assert found.effective_rounds < 8 < shuffled.effective_rounds
    assert math.log(found.interval[1] / found.interval[0]) > 2 * math.log(shuffled.interval[1] / shuffled.interval[0])
    verdicts = measure.compare(timings)
    assert measure.verdict_table(verdicts).loc[1, "verdict"] == "no measurable difference (the noise lasted)"
    assert measure.latency_records(verdicts, runtime="eager", batch=1)[1]["note"] == "the noise lasted"


def test_too_few_rounds_are_said_to_be_too_few():
    """Neighbours correlate by chance: too little to say that the noise lasted, too much to rule it out."""
    notes = {measure.compare(trace(np.random.default_rng(s), KINDS[0], rounds=20))["b"].note for s in range(40)}
    assert {"", "too few rounds"} <= notes


def test_more_than_five_variants_need_wider_intervals_for_a_verdict():
    """The level of 5 % is the whole table's: a variant may clear the null interval by its 99 % interval alone."""
    random = np.random.default_rng(0)
    logs = 0.05 * random.normal(size=(500, 22, 60))
    logs[:, 1] -= 0.05
    few, many = (measure._decided(logs[:, :1] - logs[:, [0, *range(1, n), 21]], n) for n in (6, 21))
    assert np.array_equal(few.shown.low[:, 1], many.shown.low[:, 1])
    assert (many.side[:, 1] == 1).sum() < 0.8 * (few.side[:, 1] == 1).sum()
    alone = few.shown.low[:, 1] > few.noise
    assert np.array_equal(few.side[:, 1] == 1, alone)


def short(timings):
    return {name: seconds[:19] for name, seconds in timings.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {}, "timings is empty"),
        (lambda t: {"a": t["a"], "b": t["b"]}, "timings has no 'a \\(A/A\\)'"),
        (lambda t: t | {"b": t["b"][:-1]}, "one length"),
        (short, "at least 20 rounds"),
        (lambda t: t | {"b": t["b"] * 0}, "finite times above 0"),
        (lambda t: t | {"b": np.append(t["b"][1:], np.nan)}, "timings\\['b'\\] has a time of nan s"),
        (lambda t: t | {"a (A/A)": np.append(t["b"][1:], np.inf)}, "timings\\['a \\(A/A\\)'\\] has a time of inf s"),
        (lambda t: t | {"b": np.append(t["b"][1:], -1)}, "has a time of -1.0 s; allowed: finite times above 0"),
        (lambda t: t | {"b": ["fast"] * 60}, "timings\\['b'\\] holds what is no number"),
        (lambda t: t | {"b": None}, "timings\\['b'\\] has a time of nan s"),
        (lambda t: t | {"b": t["b"][None]}, "one length"),
    ],
)
def test_bad_timings(change, message):
    with pytest.raises(ValueError, match=message):
        measure.compare(change(trace(np.random.default_rng(0), KINDS[0])))


def test_live_timings_tell_a_hundred_times_the_work():
    """On a machine so busy that the verdict is withheld, the ratio alone must still lie on the right side."""
    matrix = torch.ones(64, 64)

    def once() -> None:
        matrix @ matrix

    def a_hundred_times() -> None:
        for _ in range(100):
            matrix @ matrix

    verdicts = measure.compare(measure.time_interleaved({"one": once, "hundred": a_hundred_times}))
    assert verdicts["hundred"].verdict != "faster"
    assert verdicts["hundred"].ratio < 0.5


def text(interval):
    return f"{interval[0]:.2f} – {interval[1]:.2f}"


def test_tables_and_records():
    verdicts = measure.compare(trace(np.random.default_rng(1), KINDS[0], faster=2))
    table = measure.verdict_table(verdicts)
    assert list(table["variant"]) == ["a", "b", "a (A/A)"]
    assert list(table["verdict"]) == ["baseline", "faster", "control"]
    assert math.isclose(float(table.loc[1, "ratio"]), 2, abs_tol=0.1)
    assert list(table["99 % interval"]) == ["", text(verdicts["b"].interval), text(verdicts["a (A/A)"].interval)]
    assert list(table["A/A interval"]) == [text(verdicts["a"].null_interval)] * 3
    assert text(verdicts["b"].interval) != text(verdicts["b"].null_interval)
    assert list(table["median (ms)"]) == [f"{v.median_ms:.3g}" for v in verdicts.values()]
    with pytest.raises(ValueError, match="verdicts is empty"):
        measure.verdict_table({})
    records = measure.latency_records(verdicts, runtime="eager", batch=64)
    assert [record["variant"] for record in records] == ["a", "b"]
    assert records[1] | {"runtime": "eager", "batch": 64, "ratio": verdicts["b"].ratio} == records[1]
    assert records[1]["interval"] == list(verdicts["b"].interval)
    with pytest.raises(ValueError, match="batch=0"):
        measure.latency_records(verdicts, runtime="eager", batch=0)


class Pairs(nn.Module):
    """Takes no example alone."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        if len(x) < 2:
            raise RuntimeError("one is not enough")
        return self.fc(x)


def test_two_examples_are_counted_where_one_alone_is_refused():
    assert measure.count_macs(Pairs(), torch.zeros(2, 4)) == 12
    with pytest.raises(ValueError, match="example has shape.*one is not enough"):
        measure.count_macs(Pairs(), torch.zeros(1, 4))
