"""A file of a transformer is a model: with heads, units, layers, words or biases removed it comes back untold."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from helpers import files, nets, quantization
from helpers.files import PackingError, architectures, encoding, families, writing
from tests.files.files_examples import transformer, without_heads, without_layer, without_neurons

TOKENS = torch.randint(2, 20, (3, 11), generator=torch.Generator().manual_seed(1))
TOKENS[1, 4:] = 1


def with_fewer_words(net):
    new = copy.deepcopy(net)
    new.embedding = nn.Embedding.from_pretrained(net.embedding.weight[:20].detach(), freeze=False, padding_idx=1)
    return new


def without_biases(net):
    new = copy.deepcopy(net)
    for layer in new.modules():
        if isinstance(layer, nn.Linear):
            layer.bias = None
    return new


CHANGES = {
    "whole": lambda net: net,
    "heads": lambda net: without_heads(without_heads(net, 0, [2]), 2, [0, 2]),
    "neurons": lambda net: without_neurons(without_neurons(net, 0, 1), 1, 7),
    "a layer": lambda net: without_layer(net, 1),
    "all layers": lambda net: without_layer(without_layer(without_layer(net, 0), 0), 0),
    "words": with_fewer_words,
    "biases": without_biases,
    "all of it": lambda net: without_biases(
        with_fewer_words(without_layer(without_neurons(without_heads(net, 1, [1]), 2, 3), 0))
    ),
}
WRITERS = {
    "dense": (lambda net: net, files.write_dense),
    "quantized": (lambda net: quantization.quantize_model(net, weights=8), files.write_quantized),
    "coded": (lambda net: quantization.quantize_model(net, weights=4), files.write_coded),
}


def answers(net):
    with torch.no_grad():
        return net.eval()(TOKENS)


@pytest.mark.parametrize("way", WRITERS)
@pytest.mark.parametrize("change", CHANGES)
def test_what_was_removed_stays_removed(change, way, tmp_path):
    prepare, write = WRITERS[way]
    whole = transformer()
    net = prepare(CHANGES[change](whole))
    found = files.load(write(net, tmp_path / "net.pack").path)
    assert type(found) is nets.Transformer and not found.training
    torch.testing.assert_close(answers(found), answers(net), rtol=1e-5, atol=1e-5)
    assert torch.equal(answers(found), answers(files.load_into(net, tmp_path / "net.pack")))
    assert files.describe(found) == files.describe(net) is not None
    assert sum(p.numel() for p in found.parameters()) <= sum(p.numel() for p in whole.parameters())
    assert change in ("whole", "words") or not torch.allclose(answers(found), answers(whole), atol=1e-3)


def test_heads_and_layers_are_as_many_as_the_arrays_say(tmp_path):
    net = without_layer(without_heads(transformer(), 2, [0, 2]), 0)
    found = files.load(files.write_dense(net, tmp_path / "net.pack").path)
    assert [(layer.attention.heads, layer.attention.width) for layer in found.layers] == [(3, 4), (2, 4)]
    assert found.embedding.padding_idx == 1 and found.position.padding_idx is None
    assert {layer.eps for layer in found.modules() if isinstance(layer, nn.LayerNorm)} == {1e-12}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "transformer:4"),
        ({"dimensions": 64, "heads": 2}, "transformer"),
        ({"layers": 0}, "transformer"),
        ({"dimensions": 9, "heads": 1}, "transformer:9"),
    ],
)
def test_the_header_says_how_wide_a_head_is_unless_it_is_the_usual(options, said, tmp_path):
    net = transformer(**options)
    assert architectures.state(net) == said
    assert files.contents(files.write_coded(net, tmp_path / "net.pack").path).architecture == said


def test_a_transformer_is_described():
    found = files.describe(without_layer(without_heads(transformer(), 1, [1]), 0))
    assert (found["name"], found["head_width"], found["removed"]) == ("transformer", 4, [])
    assert found["widths"]["embedding"] == 12 and found["widths"]["position"] == 25
    assert found["widths"]["layers.0.attention.query"] == 4 and found["widths"]["layers.1.fc1"] == 10
    assert [*found["widths"]][-1] == "fc" and "layers.2.fc1" not in found["widths"]


def test_of_arrays_alone_a_head_has_the_usual_width(tmp_path):
    usual = transformer(dimensions=64, heads=2)
    found = files.load(files.write_sparse(dict(usual.state_dict()), tmp_path / "net.pack").path)
    assert torch.equal(answers(found), answers(usual))
    path = files.write_sparse(dict(transformer().state_dict()), tmp_path / "narrow.pack").path
    with pytest.raises(
        PackingError, match=r"begins as a transformer, .*12 rows; allowed: 32 for each of 1 to 128 heads"
    ):
        files.load(path)


def test_minilms_shape_is_one_of_them():
    with torch.device("meta"):
        net = nets.Transformer()
    assert architectures.state(net) == "transformer"


def test_its_words_come_with_it(tmp_path):
    words = [f"##{number}" for number in range(30)]
    path = files.write_quantized(transformer(), tmp_path / "net.pack", words=words).path
    assert files.load(path).words == words == files.read_words(path)
    with pytest.raises(PackingError, match="net.pack: the file holds 2 words and 30 word vectors"):
        files.load(files.write_dense(transformer(), path, words=["a", "b"]).path)


# ---------------------------------------------------------------- others


class Causal(nets.Attention):
    def forward(self, x, real):
        return super().forward(x, real.tril())


class Plain(nets.Transformer):
    def encode(self, tokens):
        return self.embedding(tokens)


def another_eps(net):
    net.layers[1].norm2.eps = 1e-5


def of_two_widths(net):
    net.layers[2].attention.width = 2


def causal(net):
    net.layers[0].attention.__class__ = Causal


def plain(net):
    net.__class__ = Plain


def replaced(net):
    net.encode = net.embedding.forward


def without_shift(net):
    net.norm = nn.LayerNorm(12, eps=1e-12, bias=False)


def padded_otherwise(net):
    net.position.padding_idx = 3


def headless(net):
    net.layers[0].attention = nn.Identity()


@pytest.mark.parametrize(
    "change", [another_eps, of_two_widths, causal, plain, replaced, without_shift, padded_otherwise, headless]
)
def test_a_transformer_that_computes_otherwise_is_not_named_and_not_loaded(change, tmp_path):
    net = transformer()
    change(net)
    assert files.describe(net) is None
    path = files.write_dense(net, tmp_path / "other.pack").path
    with pytest.raises(PackingError, match=r"other.pack: no network is named in the header or shown"):
        files.load(path)


# ---------------------------------------------------------------- forged files

QUERY, QUERY_BIAS = "layers.1.attention.query.weight", "layers.1.attention.query.bias"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({QUERY: (10, 12), QUERY_BIAS: (10,)}, "10 rows; allowed: 4 for each of 1 to 128 heads"),
        ({QUERY: (516, 12), QUERY_BIAS: (516,)}, "516 rows; allowed: 4 for each of 1 to 128 heads"),
        ({QUERY: (0, 12)}, "is for 0 units; allowed: 1 to 4,096"),
        ({QUERY: (4_100, 12)}, "is for 4,100 units; allowed: 1 to 4,096"),
        ({"layers.0.attention.key.weight": (8, 12)}, r"key.weight' has the shape \(8, 12\); allowed: \(12, 12\)"),
        ({"layers.0.attention.value.weight": (8, 12)}, r"value.weight' has the shape \(8, 12\); allowed: \(12, 12\)"),
        ({"layers.0.attention.value.bias": (8,)}, "value.bias' holds 8 numbers; allowed: 12"),
        ({"layers.0.attention.output.weight": (12, 8)}, r"output.weight' has the shape \(12, 8\); allowed: \(12, 12\)"),
        ({"layers.0.attention.output.weight": (8, 12)}, r"output.weight' has the shape \(8, 12\); allowed: \(12, 12\)"),
        ({"layers.2.fc1.weight": (10, 11)}, r"fc1.weight' has the shape \(10, 11\); allowed: \(10, 12\)"),
        ({"layers.2.fc2.weight": (12, 9)}, r"fc2.weight' has the shape \(12, 9\); allowed: \(12, 10\)"),
        ({"layers.2.fc2.weight": (11, 10)}, r"fc2.weight' has the shape \(11, 10\); allowed: \(12, 10\)"),
        ({"layers.2.norm1.weight": (11,)}, "norm1.weight' holds 11 numbers; allowed: 12, one for each unit"),
        ({"layers.2.norm2.bias": (12, 1)}, "norm2.bias' has 2 dimensions; allowed: 1"),
        ({"norm.bias": (1,)}, "'norm.bias' holds 1 numbers; allowed: 12"),
        ({"norm.running_mean": (12,)}, "it has no place for 'norm.running_mean'"),
        (
            {"position.weight": (25, 11)},
            r"'position.weight' has the shape \(25, 11\); allowed: one place or more, of 12",
        ),
        ({"position.weight": (0, 12)}, r"'position.weight' has the shape \(0, 12\); allowed: one place or more, of 12"),
        ({"embedding.weight": (1, 12)}, "allowed: 2 words or more"),
        ({"embedding.weight": (30, 4_097)}, "of 1 to 4,096 numbers"),
        ({"fc.weight": (2, 11)}, r"'fc.weight' has the shape \(2, 11\); allowed: \(2, 12\)"),
        ({"layers.4.fc1.weight": (10, 12)}, "it has no place for 'layers.4.fc1.weight'"),
        ({"layers.3.attention.query.weight": (12, 12)}, "'layers.3.attention.key.weight' is missing"),
    ],
)
def test_arrays_that_fit_no_transformer_are_refused(changes, said, tmp_path):
    arrays = {name: tensor.numpy() for name, tensor in transformer().state_dict().items()}
    arrays |= {name: np.zeros(shape, "<f4") for name, shape in changes.items()}
    path = forged(arrays, tmp_path, "transformer:4")
    with pytest.raises(PackingError, match=f"x.pack: it says that it is a transformer, but does not fit it: .*{said}"):
        files.load(path)


def forged(arrays, folder, architecture):
    return writing.write(arrays, folder / "x.pack", [], code=encoding.encode_sparse, architecture=architecture).path


@pytest.mark.parametrize(
    "missing",
    ["layers.0.attention.query.weight", "layers.1.attention.output.weight", "layers.2.norm1.bias", "norm.weight"],
)
def test_a_transformer_needs_all_of_its_arrays(missing, tmp_path):
    arrays = {name: tensor.numpy() for name, tensor in transformer().state_dict().items() if name != missing}
    with pytest.raises(PackingError, match="x.pack: .*(is missing|has no place for 'layers.0)"):
        files.load(forged(arrays, tmp_path, "transformer:4"))


@pytest.mark.parametrize("number", ["0", "4097", "-4", "4.0", "", "four", "999999999999"])
def test_a_head_of_no_width_is_refused(number, tmp_path):
    arrays = {name: tensor.numpy() for name, tensor in transformer().state_dict().items()}
    with pytest.raises(PackingError, match=f"the header says head_width='{number}'; allowed: 1 to 4,096"):
        files.load(forged(arrays, tmp_path, f"transformer:{number}"))


def test_the_most_heads_that_are_allowed_answer(tmp_path):
    most = nets.Transformer(30, dimensions=families.HEADS, heads=families.HEADS, hidden=3, layers=1, max_tokens=25)
    found = files.load(files.write_dense(most, tmp_path / "net.pack").path)
    assert found.layers[0].attention.heads == families.HEADS
    assert torch.equal(answers(found), answers(most))
