"""The quantizer: PyTorch's own in every mode, closed forms, and networks that stay what they are said to be."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from helpers import files, nets, pruning, quantization, training
from helpers.core import modules
from helpers.data import Split
from helpers.quantization import fake_quantize, find_grid, networks
from tests.quantization.quantization_examples import (
    IMAGES,
    SEQUENCE_SPLIT,
    SEQUENCES,
    SMALL,
    SPLIT,
    TOKENS,
    Upwards,
    assert_same_state,
    made,
    state_of,
    trained,
    values_of,
    with_statistics,
)


@pytest.fixture
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return nets.lenet5().eval()


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
    for name, codes in files.integers(quantized).items():
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
    assert quantization.bits_by_layer(nets.lenet5(), 2) == {"conv1": 8, "conv2": 2, "fc1": 2, "fc2": 8}
    assert list(quantization.bits_by_layer(nets.cifar_half(), 4, ends=6).values()) == [6, 4, 4, 4, 4, 4, 4, 4, 6]


def test_masks_stay_in_force_and_codes_of_pruned_weights_are_zero(lenet):
    masks = pruning.layer_masks(lenet, {"fc1": 0.9})
    model, gone = quantization.quantize_model(pruning.mask(lenet, masks), weights=2), ~masks["fc1.weight"]
    assert (files.integers(model)["fc1.weight"].codes[gone.numpy()] == 0).all()
    assert set(pruning.masks_of(model)) == {"fc1.weight"}
    assert torch.equal(quantization.bake(model)(IMAGES), model(IMAGES))
    for quantized in (model, quantization.quantize_model(lenet, weights=2)):
        with pytest.raises(ValueError, match="'fc1.weight' is quantized; allowed: masks first, then quantization"):
            pruning.mask(quantized, masks)


def test_embeddings_are_quantized_row_by_row():
    torch.manual_seed(0)
    model = nets.TextBag(20, dimensions=4, hidden=3).eval()
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
    model = nets.TextNet(nets.LSTM(4, 3), 3, words=9, dimensions=4).eval()
    tokens = Split(torch.randint(2, 9, (6, 5)), torch.arange(6) % 2)
    with pytest.raises(ValueError, match="never called: encoder.input, encoder.recurrent; allowed"):
        quantization.quantize_model(model, weights=8, activations=8, calibration=tokens)
    quantized = quantization.quantize_model(model, weights=8, activations={"fc": 8}, calibration=tokens)
    assert torch.allclose(quantized(tokens.inputs), model(tokens.inputs), atol=0.05)


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


def test_pruned_weights_stay_pruned_while_the_network_is_trained(small):
    masks = pruning.global_masks(small, 0.5)
    start = quantization.quantize_model(pruning.mask(small, masks), weights=4, learned=True)
    trained = training.fit(start, blobs(), epochs=2, lr=0.1, batch_size=32, progress=False).model
    assert all((weight[~masks[name]] == 0).all() for name, weight in pruning.weights_of(trained).items())


def test_every_option_of_the_model_goes_through_the_file_names(lenet):
    """Names that packing relies on: parameters keep theirs, quantizers of inputs are recognised."""
    for weights, activations in itertools.product([{}, 4], [None, 4]):
        model = quantization.quantize_model(
            lenet, weights=weights, activations=activations, calibration=SPLIT, learned=True
        )
        state = quantization.bake(model).state_dict()
        assert {name for name in state if not quantization.is_quantizer(name)} == set(lenet.state_dict())


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
    assert list(files.integers(quantized)) == ["embedding.weight", "fc.weight"]
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
    before, weights, codes = pruning.weights_of(model), pruning.weights_of(quantized), files.integers(quantized)
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
        assert (files.integers(quantization.quantize_model(model, weights=3))["fc.weight"].codes == 0).mean() >= 0.5


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
    assert 10_000 < len(sample) < 2 * networks.SAMPLE + 20_000
    assert sample.max() == split.inputs.max() and sample.min() == split.inputs.min()
    inner = sample[sample.abs() < 1]  # of 60 calls the first one reads normal numbers, the others what tanh gives
    assert 0.97 < len(inner) / len(sample) < 0.999
    assert torch.equal(sample, next(iter(quantization.sample_inputs(model, split, count=10_000).values())))


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
    codes = files.integers(folded)
    assert np.array_equal(codes["a.weight"].codes, codes["b.weight"].codes)


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


def test_numbers_that_are_not_finite_are_found_in_weights_and_calibration():
    model = made(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    bad = Split(torch.full((4, 3), math.nan), torch.zeros(4).long())
    with pytest.raises(ValueError, match="what reaches layer '0' holds NaN or infinity"):
        quantization.quantize_model(model, weights=4, activations=4, calibration=bad)
    model[2].weight.data[0, 0] = math.inf
    with pytest.raises(ValueError, match="'2.weight' holds NaN|2.weight holds NaN"):
        quantization.quantize_model(model, weights=4)
