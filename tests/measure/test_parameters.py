"""Tests of `helpers.measure.parameters`."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize, prune
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import DeformConv2d

from helpers import measure, nets, pruning
from tests.measure.measure_examples import DIM, HIDDEN, IMAGES, Attention, Calling, recurrent, sequences


@pytest.fixture
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return nets.lenet5()


def test_lenet5_totals(lenet):
    assert measure.count_parameters(lenet) == 431_080
    assert measure.count_weights(lenet) == measure.count_nonzero(lenet) == 430_500
    assert measure.count_macs(lenet, IMAGES) == 2_293_000
    counter = FlopCounterMode(display=False)
    with counter:
        lenet(IMAGES)
    assert counter.get_total_flops() == 2 * 3 * 2_293_000


def test_frozen_and_shared_parameters():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    model.requires_grad_(False)
    assert measure.count_parameters(model) == 16 + 8
    assert measure.count_weights(model) == 16


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


class FusedAttention(nn.Module):
    """A network that insists on the fused kernel."""

    def forward(self, x):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])


def cells(kind: type[nn.Module]) -> nn.Module:
    def unroll(cell, x):
        state = None
        for step in x.unbind(1):
            state = cell(step, state)
        return state

    return Calling(kind(DIM, HIDDEN), unroll)


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
    "the course's RNN": (partial(nets.RNN, DIM, HIDDEN), partial(recurrent, 1)),
    "the course's LSTM": (partial(nets.LSTM, DIM, HIDDEN), partial(recurrent, 4)),
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
