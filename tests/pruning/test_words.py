"""Tests of `helpers.pruning.words`."""

import numpy as np
import pytest
import torch
from torch import nn

from helpers import nets, pruning
from tests.pruning.pruning_examples import TOKENS, Tied, reading


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nets.lenet5()


@pytest.fixture
def bag():
    torch.manual_seed(0)
    return nets.TextBag(40, dimensions=6, hidden=5).eval()


def test_removed_words_are_gone_and_the_others_answer_as_before(bag):
    keep = torch.ones(40, dtype=torch.bool)
    keep[[5, 17, 30]] = False
    before = {name: tensor.clone() for name, tensor in bag.state_dict().items()}
    counts = torch.randint(0, 9, (40,))
    smaller = pruning.remove_words(bag, keep, counts)
    assert smaller.embedding.weight.shape == (37, 6) and smaller.embedding.num_embeddings == 37
    places = keep.nonzero().flatten()
    tokens = torch.randint(1, 37, (8, 10))
    assert torch.equal(smaller(tokens), bag(places[tokens]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in bag.state_dict().items())
    kept_masks = pruning.layer_masks(bag, {"embedding": 0.5})
    masked = pruning.remove_words(pruning.mask(bag, kept_masks), keep, counts)
    assert torch.equal(masked.embedding.weight[1:], (bag.embedding.weight * kept_masks["embedding.weight"])[keep][1:])


def test_unk_becomes_the_mean_of_what_it_stands_for(bag):
    """By hand; and a text that is the training set itself keeps its mean."""
    counts = torch.randint(1, 9, (40,))
    counts[1] = 99  # padding plays no part
    keep = torch.ones(40, dtype=torch.bool)
    keep[[5, 30]] = False
    smaller, table = pruning.remove_words(bag, keep, counts), bag.embedding.weight
    total = counts[0] + counts[5] + counts[30]
    by_hand = (counts[0] * table[0] + counts[5] * table[5] + counts[30] * table[30]) / total
    assert torch.allclose(smaller.embedding.weight[0], by_hand, atol=1e-6)
    everything = torch.arange(40).repeat_interleave(counts)[None]
    numbers = torch.zeros(40, dtype=torch.int64)
    numbers[keep] = torch.arange(38)
    assert torch.allclose(smaller(numbers[everything]), bag(everything), atol=1e-5)
    assert torch.equal(pruning.remove_words(bag, keep, torch.zeros(40)).embedding.weight[0], table[0])


def test_words_that_cannot_be_removed(bag, net):
    keep = torch.ones(40, dtype=torch.bool)
    for wrong in (keep[:-1], keep.index_fill(0, torch.tensor([1]), False)):
        with pytest.raises(
            ValueError, match=r"keep has shape .* allowed: shape \(40,\), beginning with \[True, True\]"
        ):
            pruning.remove_words(bag, wrong, torch.ones(40))
    with pytest.raises(ValueError, match=r"counts has shape \(39,\); allowed: \(40,\)"):
        pruning.remove_words(bag, keep, torch.ones(39))
    with pytest.raises(ValueError, match="model has 0 embeddings; allowed: exactly one"):
        pruning.remove_words(net, keep, torch.ones(40))


def test_of_a_transformer_the_words_are_cut_and_not_the_places():
    torch.manual_seed(0)
    net = nets.Transformer(40, dimensions=12, heads=3, hidden=16, layers=1, max_tokens=10).eval()
    keep = torch.ones(40, dtype=torch.bool)
    keep[[5, 17]] = False
    smaller = pruning.remove_words(net, keep, torch.ones(40))
    assert smaller.embedding.weight.shape == (38, 12) and torch.equal(smaller.position.weight, net.position.weight)
    tokens = torch.randint(1, 38, (4, 7))
    torch.testing.assert_close(smaller(tokens), net(keep.nonzero().flatten()[tokens]))


def test_two_tables_of_words_are_one_too_many():
    net = nn.Sequential(nn.Embedding(9, 4, padding_idx=1), nn.Embedding(9, 4, padding_idx=1))
    with pytest.raises(ValueError, match="model has 2 embeddings; allowed: exactly one, or exactly one with padding"):
        pruning.remove_words(net, torch.ones(9, dtype=torch.bool), torch.ones(9))


@pytest.mark.parametrize(
    ("build", "reader"),
    [
        (lambda: nets.TextBag(40, dimensions=6, hidden=5).eval(), "fc1"),
        (lambda: reading(nets.TextCNN(6, 4), 4), "encoder.conv"),
        (lambda: reading(nets.RNN(6, 4), 4), "encoder.input"),
        (lambda: reading(nets.LSTM(6, 4), 4), "encoder.input"),
    ],
)
def test_a_factored_embedding_is_the_closest_one(build, reader):
    """The smaller net answers as the large one does with its embedding replaced by numpy's best of that rank."""
    model = build()
    before = model.embedding.weight.detach().clone()
    for rank in (1, 3, 6):
        left, scale, right = np.linalg.svd(before.numpy().astype(np.float64), full_matrices=False)
        model.embedding.weight.data = torch.from_numpy((left[:, :rank] * scale[:rank]) @ right[:rank]).float()
        expected = model(TOKENS)
        model.embedding.weight.data = before.clone()
        factored = pruning.factor_embedding(model, reader, rank)
        assert factored.embedding.weight.shape == (40, rank) and factored.embedding.embedding_dim == rank
        assert not factored.embedding.weight[1].any()
        assert torch.allclose(factored(TOKENS), expected, atol=1e-5)
    assert torch.equal(model.embedding.weight, before) and model.get_submodule(reader).weight.shape[1] == 6


def test_what_cannot_be_factored(bag, net):
    with pytest.raises(ValueError, match="reader='fc2' takes 5 inputs, but a word has 6 numbers"):
        pruning.factor_embedding(bag, "fc2", 2)
    with pytest.raises(ValueError, match="reader='fc9' is unknown"):
        pruning.factor_embedding(bag, "fc9", 2)
    for rank in (0, 7):
        with pytest.raises(ValueError, match=f"rank={rank} is unknown"):
            pruning.factor_embedding(bag, "fc1", rank)
    with pytest.raises(ValueError, match="layer='embedding' is unknown"):
        pruning.neuron_masks(bag, "embedding", "fc1", 0.5)


def test_what_is_tied_is_not_cut(bag):
    net, keep = Tied(), torch.ones(10, dtype=torch.bool)
    said = "'embedding.weight' and 'decoder.weight' are one tensor; allowed: a layer that shares nothing"
    with pytest.raises(ValueError, match=said):
        pruning.remove_words(net, keep, torch.ones(10))
    for reader in ("middle", "decoder"):
        with pytest.raises(ValueError, match=said):
            pruning.factor_embedding(net, reader, 2)
    mlp = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    mlp[1].bias = mlp[0].bias
    with pytest.raises(ValueError, match=r"'0.bias' and '1.bias' are one tensor"):
        pruning.remove_neurons(pruning.mask(mlp, pruning.neuron_masks(mlp, "1", "2", 0.5)), "1", "2")
    bag.again = bag.embedding  # one layer under two names shares nothing with another
    assert pruning.remove_words(bag, torch.arange(40) < 30, torch.ones(40)).again.num_embeddings == 30


@pytest.mark.usefixtures("unchecked_shapes")
def test_embeddings_that_are_not_cut(bag):
    keep = torch.ones(40, dtype=torch.bool)
    with pytest.raises(ValueError, match="keep has shape"):
        pruning.remove_words(bag, keep.float(), torch.ones(40))
    with pytest.raises(ValueError, match="counts holds NaN"):
        pruning.remove_words(bag, keep, torch.full((40,), torch.nan))
    bag.embedding.mode = "max"
    with pytest.raises(ValueError, match="embedding has mode='max' or max_norm, which no matrix does"):
        pruning.factor_embedding(bag, "fc1", 2)
    bag.embedding.padding_idx = 7
    with pytest.raises(ValueError, match="padding_idx is 7; allowed: None, 0 or 1"):
        pruning.remove_words(bag, keep, torch.ones(40))
