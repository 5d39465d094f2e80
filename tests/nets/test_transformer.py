"""The transformer: equal to PyTorch's own encoder, blind to padding, and to what the wheel holds."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from helpers import fetching, nets
from helpers.data import pieces
from helpers.nets import transformer


def small(**options):
    torch.manual_seed(0)
    return nets.Transformer(
        40, **{"dimensions": 24, "heads": 3, "hidden": 36, "layers": 2, "max_tokens": 16} | options
    ).eval()


def as_torchs(layer, heads):
    """The same weights in PyTorch's nn.TransformerEncoderLayer."""
    wide, hidden = layer.fc2.out_features, layer.fc1.out_features
    other = nn.TransformerEncoderLayer(wide, heads, hidden, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True).eval()
    parts = (layer.attention.query, layer.attention.key, layer.attention.value)
    with torch.no_grad():
        other.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        other.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        for mine, theirs in (
            (layer.attention.output, other.self_attn.out_proj),
            (layer.fc1, other.linear1),
            (layer.fc2, other.linear2),
            (layer.norm1, other.norm1),
            (layer.norm2, other.norm2),
        ):
            theirs.load_state_dict(mine.state_dict())
    return other


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_a_layer_is_pytorchs(length, training):
    layer = small().layers[0].train(training)
    with torch.no_grad():
        for norm in (layer.norm1, layer.norm2):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    x, lengths = torch.randn(4, length, 24), torch.randint(1, length + 1, (4,))
    real = torch.arange(length) < lengths[:, None]
    mine = layer(x, real[:, None, None, :])
    theirs = as_torchs(layer, 3).train(training)(x, src_key_padding_mask=~real)
    torch.testing.assert_close(mine[real], theirs[real], rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing():
    model, tokens = small(), torch.randint(2, 40, (3, 9))
    padded = torch.cat([tokens, torch.ones(3, 5, dtype=torch.int64)], 1)
    beside_a_longer_one = torch.cat([padded, torch.randint(2, 40, (1, 14))])
    alone = model(tokens)
    torch.testing.assert_close(model(padded), alone)
    torch.testing.assert_close(model(beside_a_longer_one)[:3], alone, rtol=1e-4, atol=1e-5)


def test_a_text_of_nothing_but_padding_has_finite_logits():
    assert bool(small()(torch.ones(2, 4, dtype=torch.int64)).isfinite().all())


def test_the_mean_leaves_padding_out():
    x, real = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [False, False, False]])
    found = transformer.mean_of(x, real)
    torch.testing.assert_close(found[0], x[0, :2].mean(0))
    assert not found[1].any()


def test_order_counts():
    """A bag would not notice."""
    model, tokens = small(), torch.arange(2, 12)[None]
    assert not torch.allclose(model(tokens), model(tokens.flip(1)))


def test_the_heads_are_counted_by_their_rows():
    attention = small().layers[0].attention
    assert (attention.heads, attention.width) == (3, 8)


@pytest.mark.data
def test_minilm_holds_the_wheels_numbers_in_the_courses_order():
    model, stored = nets.minilm(), load_file(fetching.fetch("minilm") / "model.safetensors")
    vectors = stored["embeddings.word_embeddings.weight"]
    assert model.embedding.weight.shape == (30_522, 384) and not model.embedding.weight.requires_grad
    words = pieces.words()
    assert len(words) == 30_522 == len(set(words)) and words[:2] == ["<unk>", "<pad>"]
    bert = pieces.tokenizer()
    assert torch.equal(model.embedding.weight[0], vectors[100]) and torch.equal(model.embedding.weight[1], vectors[0])
    for word in ("film", "##able", "the", "[CLS]", "[SEP]"):
        assert torch.equal(model.embedding.weight[words.index(word)], vectors[bert.token_to_id(word)])
    first = "encoder.layer.5.attention.output"
    assert torch.equal(model.layers[5].attention.output.weight, stored[f"{first}.dense.weight"])
    assert torch.equal(model.layers[5].norm1.bias, stored[f"{first}.LayerNorm.bias"])
    torch.testing.assert_close(
        model.position.weight,
        stored["embeddings.position_embeddings.weight"] + stored["embeddings.token_type_embeddings.weight"][:1],
    )


@pytest.mark.data
def test_minilm_finds_like_sentences_alike():
    """What it was pretrained for: mean vectors of sentences of one meaning lie close together."""
    model, words = nets.minilm().eval(), pieces.words()
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply."]
    number = {word: place for place, word in enumerate(words)}
    vectors = []
    with torch.inference_mode():
        for text in pieces.tokenize(texts):
            tokens = torch.tensor([[number[piece] for piece in text]])
            vectors.append(transformer.mean_of(model.encode(tokens), tokens != 1)[0])
    alike = torch.stack(vectors) @ torch.stack(vectors).T
    size = alike.diagonal().sqrt()
    alike = alike / size / size[:, None]
    assert alike[0, 1] > 0.6 and alike[0, 2] < 0.2 and alike[1, 2] < 0.2
