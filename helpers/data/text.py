"""Texts as batches of token numbers: the one place that knows torchtext.

Version 0.6.0 is the last that is pure Python, and so the last that works beside a current torch: the later
ones are compiled against the torch of their own month.
"""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor
from torchtext.data import BucketIterator, Example, Field, LabelField
from torchtext.data import Dataset as Examples
from torchtext.data.utils import RandomShuffler
from torchtext.vocab import Vocab

from helpers.core import checks
from helpers.core.vocabulary import PAD, encode, tokenize, with_bigrams
from helpers.data import splits
from helpers.data.splits import Split

MAX_TOKENS = 1_000  # 99 of 100 reviews are shorter


class Batch(NamedTuple):
    """Texts of similar length, the longest first, padded at the end with the number of "<pad>"."""

    tokens: Int64[Tensor, "batch length"]
    lengths: Int64[Tensor, " batch"]
    labels: Int64[Tensor, " batch"]


class Encoded(NamedTuple):
    """Texts as numbers, in train, validation and test, and the words that the numbers stand for."""

    train: Split[Tensor, Tensor]
    validation: Split[Tensor, Tensor]
    test: Split[Tensor, Tensor]
    words: list[str]


def fields(*, max_tokens: int | None = None, bigrams: bool = False) -> tuple[Field, LabelField]:
    """Return the fields of a text and of its label.

    Texts are cut after `max_tokens` tokens, if given; with `bigrams` the pairs of neighbours follow
    (`vocabulary.with_bigrams`). Raises ValueError unless `max_tokens` is a whole number of at least 1.
    """
    if max_tokens is not None:
        checks.positive("max_tokens", max_tokens)

    def prepare(tokens: list[str]) -> list[str]:
        return with_bigrams(tokens[:max_tokens]) if bigrams else tokens[:max_tokens]

    text = Field(tokenize=tokenize, preprocessing=prepare, batch_first=True, include_lengths=True)
    return text, LabelField(use_vocab=False)


def examples(split: Split[list[str], list[int]], text: Field, label: LabelField) -> Examples:
    """Return the tokenized examples of a split, in its order.

    Raises ValueError for a split without examples or a text without tokens: it has no mean, and no last
    state.
    """
    named = [("text", text), ("label", label)]
    pairs = zip(checks.not_empty("split", split).inputs, split.labels, strict=True)
    made = [Example.fromlist(pair, named) for pair in pairs]
    for index, example in enumerate(made):
        if not example.text:
            raise ValueError(f"split.inputs[{index}]={split.inputs[index]!r} has no tokens; allowed: at least one")
    dataset = Examples(made, named)
    dataset.is_test, dataset.groups = split.is_test, split.groups
    return dataset


def build_vocabulary(text: Field, train: Examples, *, max_size: int | None = None, min_count: int = 1) -> Vocab:
    """Return the vocabulary of the training examples, after giving it to the field `text`.

    Numbers are 0 for "<unk>", 1 for "<pad>", then the words by falling frequency: at most `max_size` of them,
    and none that occurs fewer than `min_count` times. What is left out becomes "<unk>". Never build it from
    validation or test examples. Raises ValueError for a number below 1, and for
    the test split's examples.
    """
    if getattr(train, "is_test", False):
        raise ValueError("train holds the examples of the test split; allowed: those of the training split")
    if max_size is not None:
        checks.positive("max_size", max_size)
    text.build_vocab(train, max_size=max_size, min_freq=checks.positive("min_count", min_count))
    return text.vocab


def _vocabulary(dataset: Examples) -> Vocab:
    if not hasattr(dataset.fields["text"], "vocab"):
        raise ValueError("dataset has a text field without a vocabulary; call build_vocabulary first")
    return dataset.fields["text"].vocab


def batches(
    dataset: Examples, *, batch_size: int = 64, seed: int | None = None, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """Yield one epoch of batches in which texts have similar lengths, so that little is padding.

    With a `seed`, in an order that the seed alone decides (give each epoch its own); without one, for
    evaluation, by rising length. Raises ValueError for a batch size below 1 or a field without a vocabulary.
    """
    checks.positive("batch_size", batch_size)
    _vocabulary(dataset)
    iterator = BucketIterator(
        dataset,
        batch_size,
        sort_key=lambda example: len(example.text),
        sort=seed is None,
        shuffle=seed is not None,
        sort_within_batch=True,
        device=device,
    )
    # Its own state, so that neither the global one decides the order nor the order changes the global one.
    iterator.random_shuffler = RandomShuffler(random.Random(seed).getstate())
    for batch in iterator:
        tokens, lengths = batch.text
        yield Batch(tokens, lengths, batch.label)


def as_split(dataset: Examples, words: Sequence[str]) -> Split[Int64[Tensor, "n length"], Int64[Tensor, " n"]]:
    """Return all examples in their order as two tensors, padded at the end to the longest: what `fit` takes.

    `words` is the vocabulary (`build_vocabulary(...).itos`). The test split's examples make a test split again, and
    groups stay. Raises what `vocabulary.encode` raises.
    """
    tokens = encode([example.text for example in dataset.examples], words)
    labels = torch.tensor([example.label for example in dataset.examples])
    is_test, groups = getattr(dataset, "is_test", False), getattr(dataset, "groups", None)
    return Split(torch.from_numpy(tokens), labels, is_test, groups)


def by_length(train: Split[Tensor, Tensor], batch_size: int, generator: torch.Generator) -> Sequence[Tensor]:
    """Return an epoch's batches of texts of similar length, for `fit`'s `batching`.

    As `BucketIterator` does it: a random order, cut into pools of a hundred batches; each pool is sorted by length
    and cut into batches, and these come in random order. What is left over at the end is dropped.
    Raises ValueError for a batch size below 1.
    """
    checks.positive("batch_size", batch_size)
    lengths = (train.inputs != PAD).sum(1)
    order = torch.randperm(len(train), generator=generator)
    pools = [pool[lengths[pool].argsort(stable=True)] for pool in order.split(100 * batch_size)]
    slices = [part for pool in pools for part in pool.split(batch_size) if len(part) == batch_size]
    return [slices[i] for i in torch.randperm(len(slices), generator=generator)]


def imdb() -> Encoded:
    """Return `data.imdb()` as numbers: the first MAX_TOKENS tokens of each review, its 10,000 most frequent words.

    The vocabulary is that of the training split, with "<unk>" and "<pad>" before the words. Raises what `data.imdb`
    raises.
    """
    return _imdb(10_000, bigrams=False)


def imdb_bigrams() -> Encoded:
    """Return the same reviews with pairs of neighbours as words too, and the 62,500 most frequent of both.

    With 16 numbers each they fill as large an embedding as the 10,002 words of `imdb` with 100. Raises what `data.imdb`
    raises.
    """
    return _imdb(62_500, bigrams=True)


def _imdb(max_words: int, *, bigrams: bool) -> Encoded:
    text, label = fields(max_tokens=MAX_TOKENS, bigrams=bigrams)
    train, validation, test = (examples(split, text, label) for split in splits.imdb())
    words = build_vocabulary(text, train, max_size=max_words).itos
    return Encoded(as_split(train, words), as_split(validation, words), as_split(test, words), words)
