"""Read a packed or coded file, whole or its words alone."""

import lzma
from pathlib import Path
from typing import NamedTuple

from helpers.core import vocabulary
from helpers.files.arrays import LZMA, Arrays, PackingError
from helpers.files.decoding import decode_array
from helpers.files.payload import WORDS_BYTES, entries, is_coded, packed_words, parts, unpacked


class Contents(NamedTuple):
    """What a file holds: arrays by name, a vocabulary, and the architecture that its header states, None if none."""

    arrays: Arrays
    words: list[str]
    architecture: str | None


def read(path: Path) -> Arrays:
    """Return the arrays of a file by name; needs NumPy and, for an entropy-coded file, `constriction`.

    A tensor that the model had under several names goes by the first of them. Raises PackingError, in one sentence,
    for a file that is cut off or changed, of another kind, of a version that this code does not know, or made by
    somebody whose numbers do not fit together; FileNotFoundError if there is none.
    """
    try:
        return decode(Path(path).read_bytes())
    except PackingError as error:
        raise PackingError(f"{path}: {error}") from None


def contents(path: Path) -> Contents:
    """Return all that a file holds; needs and raises what `read` does. That the architecture fits is not looked at."""
    content = Path(path).read_bytes()
    try:
        return Contents(decode(content), decode_words(content), _decode_architecture(content))
    except PackingError as error:
        raise PackingError(f"{path}: {error}") from None


def read_words(path: Path) -> list[str]:
    """Return the vocabulary of a file, in the order of the numbers; an empty list if the file holds none.

    Needs the standard library only (for an entropy-coded file what `read` needs), and raises what `read` raises.
    """
    try:
        return decode_words(Path(path).read_bytes())
    except PackingError as error:
        raise PackingError(f"{path}: {error}") from None


def decode(content: bytes) -> Arrays:
    """Return the arrays of a packed or coded file's content by name; PackingError if it cannot be read."""
    if is_coded(content):
        from helpers.files import coded_reading

        return coded_reading.decode(content)
    _, header, payload = parts(content)
    packed_words(header, payload)
    described = [(entry.get("name"), entry.get("dtype"), entry.get("shape")) for entry in header]
    known = entries(described, len(content))
    arrays = {entry.name: decode_array(entry, fields, payload) for entry, fields in zip(known, header, strict=True)}
    payload.end()
    return arrays


def _decode_architecture(content: bytes) -> str | None:
    if is_coded(content):
        from helpers.files import coded_reading

        return coded_reading.architecture(content)
    return parts(content)[0]


def decode_words(content: bytes) -> list[str]:
    """Return the words in a file's content, an empty list if it holds none; PackingError if it is damaged."""
    if is_coded(content):
        from helpers.files import coded_reading

        coded_reading.body_of(content)  # a file that is cut off holds no words for another reason
        return []
    _, header, payload = parts(content)
    count, packed = packed_words(header, payload)
    if not packed:
        return []
    unpacker = lzma.LZMADecompressor(**LZMA)
    lines = unpacked("the list of words", unpacker, packed, WORDS_BYTES)
    if unpacker.unused_data or lines.count(b"\n") != count or not lines.endswith(b"\n"):
        raise PackingError(f"the list of words does not hold {count} words, and nothing else")
    try:
        return vocabulary.from_lines(lines)
    except UnicodeDecodeError:
        raise PackingError("the list of words is no UTF-8") from None
