"""Texts as batches of token numbers: the one place that knows torchtext.

Version 0.6.0 is the last that is pure Python, and so the last that works beside a current torch: the later
ones are compiled against the torch of their own month.
"""

import random
import re
import sys
from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor
from torchtext.data import BucketIterator, Example, Field, LabelField
from torchtext.data import Dataset as Examples
from torchtext.data.utils import RandomShuffler
from torchtext.vocab import Vocab

from helpers import checks
from helpers.data import Split

__all__ = ["Batch", "batches", "build_vocabulary", "examples", "fields", "tokenize"]

_TOKEN = re.compile(r"\w+(?:'\w+)?|[.,!?()]")


class Batch(NamedTuple):
    """Texts of similar length, the longest first, padded at the end with the number of "<pad>"."""

    tokens: Int64[Tensor, "batch length"]
    lengths: Int64[Tensor, " batch"]
    labels: Int64[Tensor, " batch"]


def tokenize(text: str) -> list[str]:
    """Return the words in lower case ("don't" is one) and the marks . , ! ? ( ), without HTML line breaks."""
    tokens = _TOKEN.findall(text.lower().replace("<br />", " "))
    # One string object per distinct word: a corpus has millions of tokens and a hundred thousand words.
    return [sys.intern(token) for token in tokens]


def fields(*, max_tokens: int | None = None) -> tuple[Field, LabelField]:
    """Return the fields of a text and of its label; texts are cut after `max_tokens` tokens, if given.

    Raises ValueError unless `max_tokens` is a whole number of at least 1.
    """
    cut = None if max_tokens is None else itemgetter(slice(checks.positive("max_tokens", max_tokens)))
    text = Field(tokenize=tokenize, preprocessing=cut, batch_first=True, include_lengths=True)
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
    return Examples(made, named)


def build_vocabulary(text: Field, train: Examples, *, max_size: int | None = None, min_count: int = 1) -> Vocab:
    """Return the vocabulary of the training examples, after giving it to the field `text`.

    Numbers are 0 for "<unk>", 1 for "<pad>", then the words by falling frequency: at most `max_size` of them,
    and none that occurs fewer than `min_count` times. What is left out becomes "<unk>". Never build it from
    validation or test examples. Raises ValueError for a number below 1.
    """
    if max_size is not None:
        checks.positive("max_size", max_size)
    text.build_vocab(train, max_size=max_size, min_freq=checks.positive("min_count", min_count))
    return text.vocab


def batches(
    dataset: Examples, *, batch_size: int = 64, seed: int | None = None, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """Yield one epoch of batches in which texts have similar lengths, so that little is padding.

    With a `seed`, in an order that the seed alone decides (give each epoch its own); without one, for
    evaluation, by rising length. Raises ValueError for a batch size below 1 or a field without a vocabulary.
    """
    checks.positive("batch_size", batch_size)
    if not hasattr(dataset.fields["text"], "vocab"):
        raise ValueError("dataset has a text field without a vocabulary; call build_vocabulary first")
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
