"""Tests of `helpers.measure.operations`."""

import contextlib
import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, parametrizations, vector_to_parameters
from torchvision.models import SwinTransformer, VisionTransformer

from helpers import measure, nets, pruning
from tests.measure.measure_examples import DIM, HIDDEN, IMAGES, Attention, Calling, recurrent, sequences


@pytest.fixture
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return nets.lenet5()


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


@pytest.mark.parametrize("change", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_torchs_parametrizations_change_no_macs(lenet, change):
    change(lenet.fc1)
    table = measure.layer_table(lenet, IMAGES)
    assert list(table["layer"]) == ["conv1", "conv2", "fc1", "fc2"]
    assert list(table["weights"]) == [500, 25_000, 400_000, 5_000]
    assert table["macs"].sum() == measure.count_macs(lenet, IMAGES) == 2_293_000
    assert table["parameters"].sum() == measure.count_parameters(lenet)


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
    model = nets.imdb_lstm()
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
