"""Attention is counted by its formula, whichever way PyTorch computes it: on the fast path, by one kernel or many."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from helpers import measure, nets
from tests.files.files_examples import transformer, without_heads, without_neurons
from tests.measure.measure_examples import DIM, HIDDEN, Calling, sequences


def by_hand(net: nets.Transformer, length: int) -> dict[str, int]:
    """The multiplications of each module for one text: the rows of the table that has any."""
    dimensions, found = net.fc.in_features, {}
    for number, layer in enumerate(net.layers):
        name, inside = f"layers.{number}", layer.attention.heads * layer.attention.width
        found[f"{name}.attention"] = 2 * length**2 * inside
        for part in ("query", "key", "value", "output"):
            found[f"{name}.attention.{part}"] = length * dimensions * inside
        for part in ("fc1", "fc2"):
            found[f"{name}.{part}"] = length * dimensions * layer.fc1.out_features
    return found | {"fc": dimensions * net.fc.out_features}


@pytest.mark.parametrize("length", [1, 7, 24])
@pytest.mark.parametrize("training", [False, True])
def test_each_module_of_a_transformer_by_hand(training, length):
    net = without_neurons(without_heads(transformer(), 1, [0, 2]), 2, 3).train(training)
    tokens = torch.full((2, length), 5)
    table = measure.layer_table(net, tokens)
    found = {name: macs for name, macs in zip(table["layer"], table["macs"], strict=True) if macs}
    assert found == by_hand(net, length)
    assert measure.count_macs(net, tokens) == sum(found.values())
    assert table["parameters"].sum() == measure.count_parameters(net)


def test_padding_that_no_text_needs_is_not_counted():
    tokens = torch.full((1, 9), 5)
    tokens[0, 4:] = 1
    assert measure.count_macs(transformer(), tokens) == sum(by_hand(transformer(), 4).values())


@pytest.mark.parametrize("length", [1, 5, 16])
def test_minilms_shape_by_its_formula(length):
    net = nets.Transformer(40)
    inside, hidden = 384, 1_536
    layer = 4 * length * inside**2 + 2 * length**2 * inside + 2 * length * inside * hidden
    assert measure.count_macs(net, torch.full((1, length), 5)) == 6 * layer + 2 * inside


@pytest.fixture(params=[True, False])
def fast_path(request):
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(request.param)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.usefixtures("fast_path")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"need_weights": False},
        {"need_weights": True},
        {"need_weights": True, "average_attn_weights": False},
        {"need_weights": False, "key_padding_mask": torch.arange(5)[None] > 3},
        {"need_weights": False, "attn_mask": torch.ones(5, 5).triu(1).bool()},
    ],
)
def test_torchs_attention(options, training):
    attention = nn.MultiheadAttention(DIM, 2, batch_first=True)
    model = Calling(attention, lambda layer, x: layer(x, x, x, **options)[0]).train(training)
    table = measure.layer_table(model, sequences(1, 5)).set_index("layer")
    assert dict(table["macs"]) == {"layer": 3 * 5 * DIM**2 + 2 * 25 * DIM, "layer.out_proj": 5 * DIM**2}


def test_torchs_attention_to_other_tokens_of_other_widths():
    attention = nn.MultiheadAttention(DIM, 2, kdim=6, vdim=10, batch_first=True)
    model = Calling(attention, lambda layer, x: layer(x, x[:, :3, :6], torch.cat([x, x], 2)[:, :3, :10])[0])
    assert measure.count_macs(model, sequences(2, 5)) == 2 * 5 * DIM**2 + 3 * DIM * (6 + 10) + 2 * 5 * 3 * DIM


@pytest.mark.usefixtures("fast_path")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("length", [1, 5, 12])
def test_torchs_encoder_layer(length, norm_first, training):
    layer = nn.TransformerEncoderLayer(DIM, 2, HIDDEN, batch_first=True, norm_first=norm_first).train(training)
    expected = 4 * length * DIM**2 + 2 * length**2 * DIM + 2 * length * DIM * HIDDEN
    assert measure.count_macs(layer, sequences(2, length)) == expected
    two = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    assert measure.count_macs(two, sequences(2, length)) == 2 * expected


def test_values_may_have_another_width_than_queries():
    model = Calling(nn.Linear(DIM, 9), lambda layer, x: F.scaled_dot_product_attention(x, x[:, :3], layer(x)[:, :3]))
    assert measure.count_macs(model, sequences(2, 5)) == 5 * DIM * 9 + 5 * 3 * (DIM + 9)


@pytest.mark.parametrize("kernel", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_a_network_that_chooses_the_kernel_itself(kernel):
    def attend(layer, x):
        parts = layer(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(parts[0], parts[1], parts[2])

    model = Calling(nn.Linear(DIM, 3 * DIM), attend)
    assert measure.count_macs(model, sequences(2, 5)) == 3 * 5 * DIM**2 + 2 * 25 * DIM
