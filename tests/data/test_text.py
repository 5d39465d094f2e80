"""Tokens, vocabulary and batches, against what a few lines of plain Python give."""

import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import checkpoints, data, nets, training
from helpers.core import paths
from helpers.core.vocabulary import tokenize
from helpers.data import Split, text

REVIEWS = ["good good film", "a bad film .", "good", "bad bad bad acting and a bad , bad plot", "fine film !"]
LABELS = [1, 0, 1, 0, 1]


@pytest.fixture
def split():
    return Split(REVIEWS, LABELS)


@pytest.fixture
def corpus(split):
    """Return (examples, vocabulary)."""
    words, label = text.fields()
    examples = text.examples(split, words, label)
    return examples, text.build_vocabulary(words, examples)


def decode(batch, vocabulary):
    """Return (text, label) pairs of a batch."""
    rows = zip(batch.tokens.tolist(), batch.lengths.tolist(), batch.labels.tolist(), strict=True)
    return [(" ".join(vocabulary.itos[t] for t in tokens[:length]), label) for tokens, length, label in rows]


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        ("Don't MISS it!", ["don't", "miss", "it", "!"]),
        ("one<br /><br />two", ["one", "two"]),
        ("(10/10), really...", ["(", "10", "10", ")", ",", "really", ".", ".", "."]),
        ("Amélie's café", ["amélie's", "café"]),
        ("'quoted' -- and; so: on", ["quoted", "and", "so", "on"]),
        ("", []),
    ],
)
def test_tokens(written, tokens):
    assert tokenize(written) == tokens


@settings(deadline=None)
@given(st.text())
def test_tokens_hold_no_blanks_and_survive_joining(written):
    tokens = tokenize(written)
    assert all(token and not any(character.isspace() for character in token) for token in tokens)
    assert tokenize(" ".join(tokens)) == tokens


def test_equal_tokens_are_one_object():
    first, second = tokenize("unforgettable " * 2)
    assert first is second


def test_the_vocabulary_is_ordered_by_frequency_and_bounded(split):
    words, label = text.fields()
    examples = text.examples(split, words, label)
    vocabulary = text.build_vocabulary(words, examples)
    counts = Counter(token for review in REVIEWS for token in review.split())
    expected = sorted(counts, key=lambda token: (-counts[token], token))
    assert vocabulary.itos == ["<unk>", "<pad>", *expected]
    assert text.build_vocabulary(words, examples, max_size=3).itos == ["<unk>", "<pad>", *expected[:3]]
    frequent = text.build_vocabulary(words, examples, min_count=2).itos[2:]
    assert frequent == [token for token in expected if counts[token] >= 2]
    assert words.vocab.itos[2:] == frequent


def test_a_batch_is_the_texts_padded_at_the_end(corpus):
    examples, vocabulary = corpus
    (batch,) = text.batches(examples, batch_size=5)
    assert batch.tokens.shape == (5, 10) and batch.tokens.dtype == torch.int64
    assert batch.labels.dtype == torch.int64 and batch.lengths.dtype == torch.int64
    assert sorted(decode(batch, vocabulary)) == sorted(zip(REVIEWS, LABELS, strict=True))
    for row, length in zip(batch.tokens, batch.lengths, strict=True):
        assert set(row[length:].tolist()) <= {1} and 1 not in row[:length].tolist()


def test_unknown_words_have_number_0(corpus):
    _, vocabulary = corpus
    words, label = text.fields()
    words.vocab = vocabulary
    (batch,) = text.batches(text.examples(Split(["good zebra"], [1]), words, label))
    assert batch.tokens.tolist() == [[vocabulary.stoi["good"], 0]]


def test_texts_are_cut(split):
    words, label = text.fields(max_tokens=2)
    examples = text.examples(split, words, label)
    text.build_vocabulary(words, examples)
    (batch,) = text.batches(examples)
    assert batch.tokens.shape == (5, 2) and sorted(batch.lengths.tolist()) == [1, 2, 2, 2, 2]


def many(n=200):
    """Texts of 1 to 50 words; the label tells whether the length is odd."""
    lengths = [random.Random(0).sample(range(1, 51), 50)[i % 50] for i in range(n)]
    split = Split(
        [" ".join(f"w{i}x{j}" for j in range(length)) for i, length in enumerate(lengths)],
        [k % 2 for k in lengths],
    )
    words, label = text.fields()
    examples = text.examples(split, words, label)
    return split, examples, text.build_vocabulary(words, examples)


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("batch_size", [1, 7, 32, 500])
def test_an_epoch_is_every_example_once(seed, batch_size):
    split, examples, vocabulary = many()
    batches = list(text.batches(examples, batch_size=batch_size, seed=seed))
    assert all(len(batch.labels) == batch_size for batch in batches[:-1]) or seed is not None
    assert max(len(batch.labels) for batch in batches) <= batch_size
    assert len(batches) == -(-200 // batch_size)
    seen = [pair for batch in batches for pair in decode(batch, vocabulary)]
    assert sorted(seen) == sorted(zip(split.inputs, split.labels, strict=True))
    for batch in batches:
        assert batch.lengths.tolist() == sorted(batch.lengths.tolist(), reverse=True)


def test_the_seed_alone_decides_the_order():
    _, examples, _ = many()

    def order(seed):
        return [batch.tokens.tolist() for batch in text.batches(examples, batch_size=16, seed=seed)]

    random.seed(1)
    state = random.getstate()
    first = order(3)
    assert random.getstate() == state
    random.seed(2)
    assert order(3) == first
    assert order(4) != first
    assert order(None) == order(None)


def test_texts_of_a_batch_have_similar_lengths():
    _, examples, _ = many(2_000)
    for seed in (None, 0):
        batches = list(text.batches(examples, batch_size=20, seed=seed))
        padding = sum((batch.tokens == 1).sum().item() for batch in batches)
        assert padding / sum(batch.tokens.numel() for batch in batches) < 0.1  # in random order: a half


def test_batches_suit_recurrent_networks(corpus):
    examples, vocabulary = corpus
    (batch,) = text.batches(examples, seed=0)
    embedded = nn.Embedding(len(vocabulary), 4)(batch.tokens)
    packed = nn.utils.rnn.pack_padded_sequence(embedded, batch.lengths, batch_first=True)  # needs falling lengths
    assert len(packed.data) == batch.lengths.sum()


def pairs_of(split, words):
    """Return (text, label) of each row, without its padding."""
    rows = zip(split.inputs.tolist(), split.labels.tolist(), strict=True)
    return [(" ".join(words[t] for t in tokens if t != 1), label) for tokens, label in rows]


def test_a_split_holds_the_tokens_of_the_batches():
    split, examples, vocabulary = many()
    tensors = text.as_split(examples, vocabulary.itos)
    assert tensors.inputs.dtype == tensors.labels.dtype == torch.int64
    assert pairs_of(tensors, vocabulary.itos) == list(zip(split.inputs, split.labels, strict=True))
    from_batches = [pair for batch in text.batches(examples, seed=0) for pair in decode(batch, vocabulary)]
    assert sorted(pairs_of(tensors, vocabulary.itos)) == sorted(from_batches)


def test_the_test_split_stays_one(split):
    words, label = text.fields()
    vocabulary = text.build_vocabulary(words, text.examples(split, words, label)).itos
    for is_test in (False, True):
        examples = text.examples(replace(split, is_test=is_test), words, label)
        assert text.as_split(examples, vocabulary).is_test is is_test
    with pytest.raises(ValueError, match="train holds the examples of the test split"):
        text.build_vocabulary(words, examples)


def test_groups_stay_with_their_texts(split):
    words, label = text.fields()
    grouped = replace(split, groups=list(range(len(split))))
    vocabulary = text.build_vocabulary(words, text.examples(split, words, label)).itos
    assert text.as_split(text.examples(grouped, words, label), vocabulary).groups == grouped.groups
    assert text.as_split(text.examples(split, words, label), vocabulary).groups is None


def test_batches_by_length():
    _, examples, vocabulary = many(2_050)
    split = text.as_split(examples, vocabulary.itos)
    first, again, other = (text.by_length(split, 20, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert len(first) == len(split) // 20 and all(len(batch) == 20 for batch in first)
    assert len(set(torch.cat(list(first)).tolist())) == 2_040  # none twice
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    lengths = [(split.inputs[batch] != 1).sum(1) for batch in first]
    padding = sum(int((batch.max() - batch).sum()) for batch in lengths)
    assert padding / sum(int(20 * batch.max()) for batch in lengths) < 0.1
    means = torch.tensor([float(batch.float().mean()) for batch in lengths])
    assert not torch.equal(means, means.sort().values)  # long and short batches alternate


def test_a_training_takes_them():
    _, examples, vocabulary = many(64)
    split = text.as_split(examples, vocabulary.itos)
    model = nets.TextBag(len(vocabulary), dimensions=4, hidden=4)
    options = {"epochs": 2, "lr": 0.01, "optimizer": "adam", "batch_size": 16, "progress": False}
    fitted = training.fit(model, split, batching=text.by_length, validation=split, **options)
    assert len(fitted.history) == 2
    assert torch.equal(fitted.model.embedding.weight[1], torch.zeros(4))  # padding stays nothing


def test_bigrams_follow_the_words(split):
    words, label = text.fields(max_tokens=3, bigrams=True)
    examples = text.examples(split, words, label)
    assert examples[1].text == ["a", "bad", "film", "a bad", "bad film"]
    assert examples[2].text == ["good"]


@pytest.mark.slow
@pytest.mark.data
def test_the_committed_vocabulary_is_what_the_training_reviews_give():
    encoded = text.imdb()
    assert encoded.words == checkpoints.words("imdb_bag") and len(encoded.words) == 10_002
    assert (len(encoded.train), len(encoded.validation), len(encoded.test)) == (20_000, 2_500, 2_500)
    assert encoded.train.inputs.shape[1] == text.MAX_TOKENS


def test_bad_arguments(split, corpus):
    examples, _ = corpus
    words, label = text.fields()
    with pytest.raises(ValueError, match="max_tokens=0; allowed: a whole number of at least 1"):
        text.fields(max_tokens=0)
    with pytest.raises(ValueError, match="max_size=0; allowed"):
        text.build_vocabulary(words, examples, max_size=0)
    with pytest.raises(ValueError, match="min_count=0; allowed"):
        text.build_vocabulary(words, examples, min_count=0)
    with pytest.raises(ValueError, match="batch_size=0; allowed"):
        next(text.batches(examples, batch_size=0))
    with pytest.raises(ValueError, match="batch_size=0; allowed"):
        text.by_length(Split(torch.ones(2, 2), torch.ones(2)), 0, torch.Generator())
    with pytest.raises(ValueError, match="split is empty"):
        text.examples(Split([], []), words, label)
    with pytest.raises(ValueError, match=r"split.inputs\[1\]='<br />' has no tokens"):
        text.examples(Split(["fine", "<br />"], [1, 0]), words, label)
    with pytest.raises(ValueError, match="without a vocabulary; call build_vocabulary first"):
        next(text.batches(text.examples(split, words, label)))


@pytest.mark.parametrize("call", ["data.imdb", "nets.lenet5()", "nets.imdb_bag()"])
def test_torchtext_is_not_imported_before_it_is_used(call):
    code = f"import sys; from helpers import data, nets; {call}; print('torchtext' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.slow
@pytest.mark.data
def test_a_bag_of_words_learns_imdb():
    """Real reviews, through everything: a linear classifier of word counts beats chance by far."""
    dataset = data.imdb()
    words, label = text.fields(max_tokens=200)
    train, held_out = (text.examples(split.take(1_000), words, label) for split in dataset[:2])
    size = len(text.build_vocabulary(words, train, max_size=5_000))
    torch.manual_seed(0)
    model = nn.EmbeddingBag(size, 2, mode="mean", padding_idx=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    for epoch in range(3):
        for batch in text.batches(train, batch_size=50, seed=epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch.tokens), batch.labels).backward()
            optimizer.step()
    correct = sum((model(b.tokens).argmax(1) == b.labels).sum().item() for b in text.batches(held_out))
    assert correct / 1_000 > 0.6
