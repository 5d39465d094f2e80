"""Texts as pieces of words, the tokens of the pretrained transformer: the one place that knows `tokenizers`.

BERT's tokenizer splits a word that it does not know into pieces that it does: "unwatchable" is "un", "##watch",
"##able" (Wu et al. 2016, "Google's neural machine translation system", section 4.1, WordPiece). The course keeps its
own numbers: 0 for what is unknown and 1 for padding, which BERT numbers 100 and 0.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch

from helpers import fetching
from helpers.core import checks
from helpers.core.vocabulary import encode
from helpers.data import splits
from helpers.data.splits import Split

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from helpers.data.text import Encoded

MAX_TOKENS = 256
HEAD = 64  # of a longer review, the first pieces that are kept; the verdict often stands at the end
_UNKNOWN, _PADDING = 100, 0  # BERT's numbers of "[UNK]" and "[PAD]"


def order(count: int) -> list[int]:
    """Return BERT's numbers of `count` pieces in the course's order: unknown, padding, then all others."""
    return [_UNKNOWN, _PADDING, *(number for number in range(count) if number not in (_UNKNOWN, _PADDING))]


@cache
def tokenizer() -> "Tokenizer":
    """Return the tokenizer of the pretrained transformer; fetching.SourceError if it is not to be had."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(fetching.fetch("minilm") / "tokenizer.json"))
    found.no_padding()
    found.no_truncation()
    return found


def words() -> list[str]:
    """Return all 30,522 pieces in the course's order: "<unk>" and "<pad>" come first."""
    bert = tokenizer()
    numbers = order(bert.get_vocab_size())
    return ["<unk>", "<pad>", *(str(bert.id_to_token(number)) for number in numbers[2:])]


def tokenize(texts: Sequence[str], *, max_tokens: int = MAX_TOKENS, head: int = HEAD) -> list[list[str]]:
    """Return each text's pieces in lower case, between "[CLS]" and "[SEP]", without HTML line breaks.

    Of more than `max_tokens` the first `head` are kept, and of the end what there is room for (Sun et al. 2019, "How to
    fine-tune BERT for text classification?", section 5.3.1).

    Raises ValueError for no text, fewer than 3 tokens, or a `head` outside 1 to `max_tokens` - 1.
    """
    checks.not_empty("texts", texts)
    if checks.positive("max_tokens", max_tokens) < 3:
        raise ValueError(f"max_tokens={max_tokens}; allowed: at least 3")
    if not 1 <= head < max_tokens:
        raise ValueError(f"head={head}; allowed: from 1 to max_tokens - 1 = {max_tokens - 1}")
    found = tokenizer().encode_batch([text.replace("<br />", " ") for text in texts])
    return [
        _shortened(["<unk>" if piece == "[UNK]" else piece for piece in each.tokens], max_tokens, head)
        for each in found
    ]


def _shortened(pieces: list[str], max_tokens: int, head: int) -> list[str]:
    return pieces if len(pieces) <= max_tokens else pieces[:head] + pieces[head - max_tokens :]


def as_split(
    split: Split[list[str], list[int]],
    vocabulary: Sequence[str],
    *,
    max_tokens: int = MAX_TOKENS,
    head: int = HEAD,
) -> Split[torch.Tensor, torch.Tensor]:
    """Return the texts as numbers of the pieces in `vocabulary`, padded at the end; labels, groups and test stay.

    Raises what `tokenize` and `vocabulary.encode` raise.
    """
    numbers = encode(tokenize(split.inputs, max_tokens=max_tokens, head=head), vocabulary)
    return Split(torch.from_numpy(numbers), torch.tensor(split.labels), split.is_test, split.groups)


def windows(review: str, *, size: int = 60, least: int = 20) -> list[str]:
    """Return a review cut into windows of `size` words that follow each other, without one of fewer than `least`.

    Words are what stands between spaces; HTML line breaks are left out. Raises ValueError for a number below 1.
    """
    checks.positive("size", size), checks.positive("least", least)
    spoken = review.replace("<br />", " ").split()
    cut = (spoken[start : start + size] for start in range(0, len(spoken), size))
    return [" ".join(each) for each in cut if len(each) >= least]


def asked(reviews: Sequence[str]) -> list[str]:
    """Return the reviews, then the windows of each: what the transformer was asked as a teacher."""
    return [*reviews, *(window for review in reviews for window in windows(review))]


def imdb() -> "Encoded":
    """Return `data.imdb()` as pieces, at most 256 of each review; raises what `data.imdb` and `tokenizer` raise."""
    from helpers.data.text import Encoded

    vocabulary = words()
    train, validation, test = (as_split(split, vocabulary) for split in splits.imdb())
    return Encoded(train, validation, test, vocabulary)
