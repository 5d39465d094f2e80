"""The transformer outside PyTorch: in NumPy alone, by the command that reads a text, and as an ONNX graph."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F

from helpers import __main__ as cli
from helpers import data, files, quantization, runtime, training
from helpers.core import paths
from helpers.data import pieces
from helpers.files import encoding, writing
from helpers.runtime import layers
from tests.files.files_examples import transformer, without_heads, without_layer, without_neurons
from tests.runtime.onnx_examples import TEXTS, assert_texts_answer
from tests.runtime.test_prediction import gap

CHANGES = {
    "whole": lambda net: net,
    "heads": lambda net: without_heads(without_heads(net, 0, [2]), 2, [0, 2]),
    "neurons": lambda net: without_neurons(net, 1, 1),
    "a layer": lambda net: without_layer(net, 1),
    "all layers": lambda net: without_layer(without_layer(without_layer(net, 0), 0), 0),
}
PADDED = torch.cat([TEXTS, torch.ones(4, 30, dtype=torch.int64)], 1)


def written(net, path, **options):
    return files.write_dense(net, path, **options).path


# ---------------------------------------------------------------- NumPy


@pytest.mark.parametrize("change", CHANGES)
def test_numpy_gives_torchs_logits(change, tmp_path):
    net = CHANGES[change](transformer())
    network = runtime.open_network(written(net, tmp_path / "net.pack"))
    assert isinstance(network, runtime.TextNetwork)
    assert (network.name, network.longest, network.words) == ("a transformer", 25, [])
    assert network.labels == ("negative", "positive")
    for tokens in (TEXTS, TEXTS[:1, :1], PADDED):
        found = network.logits(tokens.numpy())
        assert found.dtype == np.float32 and found.shape == (len(tokens), 2)
        assert gap(found, training.predict(net, tokens)) < 1e-5


def test_of_the_usual_shape_and_of_another_head_width(tmp_path):
    for options in ({"dimensions": 64, "heads": 2}, {"dimensions": 64, "heads": 4, "hidden": 96}):
        net = transformer(**options)
        found = runtime.open_network(written(net, tmp_path / "net.pack")).logits(TEXTS.numpy())
        assert gap(found, training.predict(net, TEXTS)) < 1e-4


def test_more_texts_than_are_read_at_a_time_come_back_in_order(tmp_path):
    net, tokens = transformer(), torch.randint(0, 30, (2 * layers.TEXTS + 3, 9))
    found = runtime.open_network(written(net, tmp_path / "net.pack")).logits(tokens.numpy())
    assert gap(found, training.predict(net, tokens)) < 1e-5


def test_padding_is_seen_by_nobody(tmp_path):
    net = transformer()
    net.embedding.weight.data[1] = 100.0
    network = runtime.open_network(written(net, tmp_path / "net.pack"))
    one_by_one = [network.logits(text[text != 1][None].numpy()) for text in TEXTS]
    np.testing.assert_allclose(network.logits(PADDED.numpy()), np.concatenate(one_by_one), rtol=1e-4, atol=1e-5)


def test_a_text_of_padding_alone_answers_as_in_torch(tmp_path):
    net, tokens = transformer(), torch.tensor([[5, 6, 1], [1, 1, 1]])
    network = runtime.open_network(written(net, tmp_path / "net.pack"))
    for some in (tokens, tokens[1:]):
        assert gap(network.logits(some.numpy()), training.predict(net, some)) < 1e-5


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_and_inputs_of_layers_in_few_bits(bits, tmp_path):
    """An input between two marks may fall on either side, by the order of a sum: so most texts agree, not all."""
    net, tokens = transformer(), torch.randint(2, 30, (40, 9), generator=torch.Generator().manual_seed(2))
    weights = quantization.quantize_model(net, weights=bits)
    path = files.write_quantized(weights, tmp_path / "weights.pack").path
    assert gap(runtime.open_network(path).logits(tokens.numpy()), training.predict(weights, tokens)) < 1e-4
    split = data.Split(tokens, torch.zeros(40, dtype=torch.long))
    inputs = quantization.quantize_model(net, weights=bits, activations=bits, calibration=split)
    path = files.write_quantized(inputs, tmp_path / "inputs.pack").path
    found, expected = runtime.open_network(path).logits(tokens.numpy()), training.predict(inputs, tokens)
    assert (np.abs(found - expected.numpy()).max(1) < 1e-3 * expected.abs().max().item()).mean() >= 0.5
    assert gap(found, expected) < gap(found, training.predict(weights, tokens))


def test_gelu_is_the_exact_one():
    x = torch.cat([torch.linspace(-12, 12, 10_001), torch.tensor([0.0, -0.0, 1e-30, -1e4, 1e4])])
    np.testing.assert_allclose(layers.gelu(x.numpy()), F.gelu(x.double()), rtol=0, atol=1e-6)
    assert np.abs(layers.gelu(x.numpy()) - F.gelu(x, approximate="tanh").numpy()).max() > 1e-4
    assert layers.gelu(x.numpy()).dtype == np.float32


def test_layer_norm_is_torchs():
    x, arrays = torch.randn(2, 3, 7) * 5 + 2, {"n.weight": np.linspace(1, 2, 7), "n.bias": np.linspace(-1, 1, 7)}
    weight, bias = (torch.from_numpy(array).float() for array in arrays.values())
    expected = F.layer_norm(x, (7,), weight, bias, eps=1e-12)
    np.testing.assert_allclose(layers.Layers(arrays).layer_norm("n", x.numpy()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_attention_is_torchs(scale):
    """Also where what is hidden would win by far."""
    query, key, value = torch.randn(3, 2, 3, 5, 4)
    real = torch.tensor([[True, True, True, True, False], [True, False, False, False, False]])
    key = torch.where(real[:, None, :, None], key, scale * query.sum(2, keepdim=True))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=real[:, None, None])
    found = layers.attend(*(each.numpy() for each in (query, key, value)), real.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (np.full((2, 26), 5), "tokens has texts of 26 tokens; allowed: 1 to 25"),
        (np.array([[5, 30]]), "tokens holds 5 to 30; allowed: 0 to 29"),
        (np.array([[-1, 3]]), "tokens holds -1 to 3; allowed: 0 to 29"),
        (np.array([5, 3]), r"tokens has shape \(2,\) and type int64; allowed: whole numbers"),
        (np.array([[5.0, 3.0]]), "and type float64; allowed: whole numbers"),
        (np.zeros((0, 4), int), r"tokens has shape \(0, 4\)"),
        (np.zeros((4, 0), int), r"tokens has shape \(4, 0\)"),
    ],
)
def test_what_is_no_text_is_refused(tokens, said, tmp_path):
    network = runtime.open_network(written(transformer(), tmp_path / "net.pack"))
    with pytest.raises(ValueError, match=said):
        network.logits(tokens)


def test_files_that_answer_no_question_about_a_film_are_refused(tmp_path):
    for net, options, said in (
        (transformer(classes=3), {}, "net.pack' has 3 classes; allowed: negative and positive"),
        (transformer(), {"words": ["a", "b"]}, "net.pack' holds 2 words; allowed: 30, one a vector, or none"),
    ):
        path = written(net, tmp_path / "net.pack", **options)
        with pytest.raises(ValueError, match=said):
            runtime.open_network(path)
    arrays = dict(transformer().state_dict()) | {"layers.0.fc1.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match="net.pack' holds no network: .*a transformer, but does not fit it"):
        runtime.open_network(written(arrays, tmp_path / "net.pack"))


def test_forged_transformers_are_refused_or_answer(tmp_path):
    random = np.random.default_rng(3)
    state, refused = {name: tensor.numpy() for name, tensor in transformer(layers=1).state_dict().items()}, 0
    for _ in range(60):
        arrays, sides = dict(state), random.choice([0, 1, 2, 4, 12, 25], random.integers(0, 4))
        name = str(random.choice([*state, "layers.1.fc1.weight", "layers.0.fc1.input_grid", "fc.bias.step"]))
        arrays[name] = np.asarray(random.choice([0, -1, np.nan, 1e38], tuple(map(int, sides)))).astype("<f4")
        text = str(random.choice(["transformer:4", "transformer:12", "transformer:5", "textbag", ""]))
        path = writing.write(arrays, tmp_path / "x.pack", [], code=encoding.encode_sparse, architecture=text).path
        try:
            assert runtime.open_network(path).logits(TEXTS.numpy()).shape == (4, 2)
        except ValueError as error:
            assert "x.pack" in str(error) and "\n" not in str(error)
            refused += 1
    assert 30 < refused < 60


def test_it_answers_without_torch(tmp_path):
    path = written(transformer(), tmp_path / "net.pack")
    code = (
        "import sys; from helpers import runtime; import numpy as np;"
        f"print(runtime.open_network({str(path)!r}).logits(np.array([[5, 6]])).shape);"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True)
    assert done.stdout == "(1, 2)\n", done.stderr


# ---------------------------------------------------------------- texts

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##watch", "##able", "good", "film", "a", *map(str, range(20))]
WORDS = ["<unk>", "<pad>", *BERT[2:]]


@pytest.fixture
def tokenizer(monkeypatch):
    """A tokenizer as BERT's is, of thirty pieces."""
    found = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(BERT)}, unk_token="[UNK]"))
    found.normalizer, found.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    found.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    monkeypatch.setattr(pieces, "tokenizer", lambda: found)


def opinion(net, numbers):
    return training.predict(net, torch.tensor([numbers]))[0].softmax(0).tolist()


@pytest.mark.usefixtures("tokenizer")
def test_a_text_is_split_into_pieces(tmp_path):
    net = transformer()
    path = written(net, tmp_path / "net.pack", words=WORDS)
    for text, numbers in (
        ("Unwatchable<br />film!", [2, 4, 5, 6, 8, 0, 3]),
        ("", [2, 3]),
        ("a/good/film", [2, 9, 0, 7, 0, 8, 3]),
    ):
        found = runtime.predict(path, text)
        assert [*found.probabilities] == ["negative", "positive"] and found.notes == ()
        assert list(found.probabilities.values()) == pytest.approx(opinion(net, numbers), abs=1e-5)
        assert found.label == max(found.probabilities, key=found.probabilities.__getitem__)


@pytest.mark.usefixtures("tokenizer")
def test_of_a_long_text_beginning_and_end_are_read(tmp_path):
    net = transformer()
    found = runtime.predict(written(net, tmp_path / "net.pack", words=WORDS), "good " * 20 + "film " * 20)
    assert found.probabilities["positive"] == pytest.approx(opinion(net, [2, *[7] * 5, *[8] * 18, 3])[1], abs=1e-5)


@pytest.mark.usefixtures("tokenizer")
def test_words_that_are_gone_are_unknown(tmp_path):
    net = transformer()
    net.embedding.weight.data = net.embedding.weight.data[:8]
    found = runtime.predict(written(net, tmp_path / "net.pack", words=WORDS[:8]), "a good film")
    assert found.probabilities["positive"] == pytest.approx(opinion(net, [2, 0, 7, 0, 3])[1], abs=1e-5)


@pytest.mark.usefixtures("tokenizer")
@pytest.mark.parametrize(
    ("options", "words", "said"),
    [
        ({}, [], "net.pack' holds no words; allowed: a file that was written with them"),
        ({}, [*WORDS[1:], "x"], "net.pack': words begins with"),
        ({"max_tokens": 2}, WORDS, "net.pack': max_tokens=2; allowed: at least 3"),
    ],
)
def test_a_file_that_can_read_no_text_is_named(options, words, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        runtime.predict(written(transformer(**options), tmp_path / "net.pack", words=words), "a film")


@pytest.mark.usefixtures("tokenizer")
def test_a_transformer_that_answers_nan_is_named(tmp_path):
    net = transformer()
    net.layers[1].norm1.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="net.pack' answers NaN or infinity"):
        runtime.predict(written(net, tmp_path / "net.pack", words=WORDS), "a film")


@pytest.mark.usefixtures("tokenizer")
def test_the_command_reads_a_text(tmp_path, capsys):
    path = written(transformer(), tmp_path / "net.pack", words=WORDS)
    answer = runtime.predict(path, "a good film")
    assert cli.main(["predict", str(path), "a good film"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == answer.label and [line.split()[0] for line in lines][0] == answer.label
    assert lines[0].split()[1] == f"{answer.probabilities[answer.label]:.2%}"


# ---------------------------------------------------------------- ONNX


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A transformer of two layers with 64 numbers a token, a head and some units fewer, and its graph."""
    net = transformer(dimensions=64, heads=4, hidden=48, layers=2, max_tokens=60)
    net = without_neurons(without_heads(net, 1, [0, 2, 3]), 0, 31)
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    return net, runtime.export_onnx(net, TEXTS[:1], path, check_inputs=TEXTS)


def test_the_graph_takes_texts_of_any_number_and_length(exported):
    net, path = exported
    (taken,) = runtime.session(path).get_inputs()
    assert (taken.shape, taken.type) == (["batch", "length"], "tensor(int64)")
    assert_texts_answer(net, path, [(1, 12), (5, 7), (3, 40), (2, 1), (1, 48)])


def test_the_graph_sees_no_padding(exported):
    net, path = exported
    padded = torch.cat([TEXTS, torch.tensor([[5] + [1] * 11]), torch.ones(1, 12, dtype=torch.int64)])
    for tokens in (padded, torch.cat([padded, torch.ones(6, 20, dtype=torch.int64)], 1)):
        found = runtime.run(runtime.session(path), tokens.numpy())
        assert np.isfinite(found).all() and gap(found, training.predict(net, padded)) < 1e-5
