"""Words and their numbers: all that is needed to use a trained text classifier. NumPy and the standard library only."""

import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from helpers.core import checks, paths

UNK, PAD = 0, 1  # the numbers of what is not in the vocabulary, and of padding
_TOKEN = re.compile(r"\w+(?:'\w+)?|[.,!?()]")


def tokenize(text: str) -> list[str]:
    """Return the words in lower case ("don't" is one) and the marks . , ! ? ( ), without HTML line breaks."""
    tokens = _TOKEN.findall(text.lower().replace("<br />", " "))
    # One string object per distinct word: a corpus has millions of tokens and a hundred thousand words.
    return [sys.intern(token) for token in tokens]


def with_bigrams(tokens: Sequence[str]) -> list[str]:
    """Return the tokens, then each pair of neighbours as one more: "not good" (Wang and Manning 2012, section 2)."""
    return [*tokens, *(f"{first} {second}" for first, second in pairwise(tokens))]


def encode(texts: Sequence[Sequence[str]], words: Sequence[str]) -> np.ndarray:
    """Return the tokens' numbers, int64 (texts, longest): the place in `words`, or UNK, and PAD after a text's end.

    Args:
        texts: at least one list of tokens (see `tokenize`), at least one of them not empty.
        words: the vocabulary, beginning with "<unk>" and "<pad>".

    Raises:
        ValueError: there is no text or no token, or `words` begins otherwise or holds a word twice.
    """
    checks.not_empty("texts", texts)
    if not any(texts):
        raise ValueError("texts holds no token; allowed: at least one")
    if list(words[:2]) != ["<unk>", "<pad>"]:
        raise ValueError(f"words begins with {list(words[:2])!r}; allowed: ['<unk>', '<pad>']")
    number = {word: place for place, word in enumerate(words)}
    if len(number) < len(words):
        twice = next(word for place, word in enumerate(words) if number[word] != place)
        raise ValueError(f"words holds {twice!r} twice; allowed: each word once")
    numbers = np.full((len(texts), max(map(len, texts))), PAD, dtype=np.int64)
    for row, tokens in zip(numbers, texts, strict=True):
        row[: len(tokens)] = [number.get(token, UNK) for token in tokens]
    return numbers


def write_words(words: Sequence[str], path: Path) -> None:
    """Write the words, one a line, in UTF-8; ValueError for what `lines` refuses."""
    paths.write_atomically(path, lines(words))


def lines(words: Sequence[str]) -> bytes:
    """Return the words in UTF-8, each ended by a line feed.

    Raises ValueError for a word with a line feed of its own, or with what UTF-8 cannot write (half a surrogate pair).
    """
    for word in words:
        if not isinstance(word, str) or "\n" in word:
            raise ValueError(f"words holds {word!r}; allowed: words without line feeds")
    try:
        return "".join(f"{word}\n" for word in words).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"words holds {error.object[error.start]!r}; allowed: what UTF-8 can write") from error


def from_lines(content: bytes) -> list[str]:
    """Return the words of `lines`; ValueError for what `lines` never returns: it is truncated or damaged."""
    if content and not content.endswith(b"\n"):
        raise ValueError(
            f"content ends with {content[-20:]!r}, within a word; allowed: lines that end with a line feed"
        )
    return content.decode().split("\n")[:-1]


def read_words(path: Path) -> list[str]:
    """Return the words that `write_words` wrote; ValueError for a file that is truncated or damaged."""
    try:
        return from_lines(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"path={str(path)!r} is damaged: {error}") from error
