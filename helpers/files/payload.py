"""The format of a packed file, and its header and payload read with suspicion.

One file holds named arrays, usually a `state_dict`; a tensor that a model has under several names is there once, under
the first of them. All numbers are little-endian:

    offset      bytes   content
    0           6       magic: b"MCPACK"
    6           2       version of this format, 1 or 3
    8           4       H, length of the header
    12          8       checksum: the first 8 bytes of the SHA-256 of everything else, in order
    20          H       header: JSON in UTF-8, compressed by zlib (plain, it would be a fifth of a 3 KB model)
    20 + H      …       payload: the arrays' bytes, one after another, in the order of the header

The header is a list with one entry for each array. In version 3 a text comes before them: the architecture of the
network, as `helpers.files.families` states it, such as "lenet5"; the arrays' shapes say how wide it is. The empty text
says that the network is none of the course's, although its arrays look like one. A file without it has version 1:
arrays that were given by name, a network that is none of the course's, and whatever was written before there was
version 3.

    {"name": "fc1.bias", "dtype": "<f4", "shape": [500], "coding": "dense"}
    {"name": "fc1.weight", "dtype": "<f4", "shape": [500, 800], "coding": "gap",
     "bits": 6, "symbols": 4113, "kept": 3980}

*dense*: all elements in C order.

*gap*: `symbols` symbols of `bits` bits each, filled up to a whole byte, then the `kept` values that are not
zero. Walk along the array in C order. A symbol s below 2^bits - 1 says: skip s zeros, then put the next
value. The largest symbol says: skip that many zeros and put nothing yet. After the last value all is zero.
Lowest bit first. (Han et al. 2016, "Deep Compression", section 2, stores the same gaps but pays for a long
one with a zero *value*; here it costs `bits` bits.) With one bit per symbol this is a bitmap: 1 for a zero
that is skipped, 0 for a value. `write_sparse` takes the width from 1 to 16 that makes the array smallest, and
*dense* if none makes it smaller.

`write_quantized` knows two more codings. A reader that does not know them refuses the file.

    {"name": "fc1.weight", "dtype": "<f4", "shape": [500, 800], "coding": "integers",
     "bits": 4, "low": -8, "scales": 500}
    {"name": "fc1.weight", "dtype": "<f4", "shape": [500, 800], "coding": "codebook",
     "bits": 2, "entries": 3, "gap": [4, 3512, 2980]}

*integers*: one code of `bits` bits for each element, in C order, filled up to a whole byte. Then `scales` scales
(<f4): one for all elements, or one for each entry of the first dimension. If the entry says
"zero_points": true, then as many zero points of one byte each; else they are -low. An element is
scale · (code - zero point), computed in float32, and never -0.0. There are 1 to 8 bits, and scales are finite.

*codebook*: the same codes, then `entries` values of the array's type, at most 256, of at most 8 bytes each. An
element is the value whose number is its code.

With "gap": [bits, symbols, kept], the symbols of *gap* stand before the codes, and only the `kept` elements
that are not zero have a code. All codes have their lowest bit first.

Where a network rounds the input of a layer "conv1", four numbers say how, as an array "conv1.input_grid": the
scale, the zero point, and the lowest and the highest code, all as `quantization.Grid` has them.

A text classifier also needs its words, in the order of their numbers. Their entry is the first:

    {"name": "", "coding": "words", "count": 10002, "bytes": 35620}

and the payload is the words, each ended by a line feed, in UTF-8, compressed by LZMA (plain, without a container).

Files of versions 2 and 4 are entropy-coded: `helpers.files.coded` writes them and says what they hold. `read` reads
all. `helpers.files.load` makes the network of what a file holds.

A reader believes nothing: names are different texts, types are those in `TYPES`, a field is there exactly if its coding
has it, and the payload ends where the last array does. A header has at most 4 MiB and words at most 16 MiB, both
decompressed. There are at most 2^14 arrays, of at most 32 dimensions, and in a file of n bytes they have at most 2^25 +
256 n elements.

Zero means that all bits are zero, so -0.0 and every NaN come back as they were. Reading needs NumPy and the
standard library only; PyTorch is imported where a model is involved.
"""

import hashlib
import json
import lzma
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from helpers.files.arrays import TYPES, PackingError, shown

MAGIC = b"MCPACK"
VERSION, CODED_VERSION = 1, 2
NAMED = 2  # more than these is the version of a file that states an architecture
LONGEST_NAME = 64
PREFIX = struct.Struct("<6sHI8s")
FIELDS = {  # of an entry, beside its name, type, shape and coding: what must be there, and what may
    "dense": ((), ()),
    "gap": (("bits", "symbols", "kept"), ()),
    "integers": (("bits", "low", "scales"), ("gap", "zero_points")),
    "codebook": (("bits", "entries"), ("gap",)),
}
ARRAYS, DIMENSIONS = 2**14, 32
HEADER_BYTES = 2**22
WORDS_BYTES = 2**24
ELEMENTS, GROWTH = 2**25, 256  # of all arrays: so many, and so many more for each byte of the file


def checksum_of(magic: bytes, version: int, header_length: int, *body: bytes | memoryview) -> bytes:
    """Return a file's checksum: the first 8 bytes of the SHA-256 of everything else in it, in order."""
    digest = hashlib.sha256(struct.pack("<6sHI", magic, version, header_length))
    for part in body:
        digest.update(part)
    return digest.digest()[:8]


class Payload:
    """Bytes that are taken one after another; PackingError if there are fewer than asked for, or more."""

    def __init__(self, content: bytes | memoryview) -> None:
        self.content, self.offset = content, 0

    def take(self, dtype: np.dtype | str, count: int) -> np.ndarray:
        """Return the next `count` numbers of a type."""
        dtype = np.dtype(dtype)
        if count * dtype.itemsize > len(self.content) - self.offset:
            raise PackingError("the header asks for more numbers than the file holds")
        numbers = np.frombuffer(self.content, dtype, count, self.offset)
        if dtype.kind == "b" and numbers.view(np.uint8).max(initial=0) > 1:
            raise PackingError("a boolean is neither 0 nor 1")
        self.offset += numbers.nbytes
        return numbers

    def bits(self, count: int, bits: int) -> np.ndarray:
        """Return the whole bytes that hold the next `count` numbers of `bits` bits."""
        return self.take("|u1", (count * bits + 7) // 8)

    def end(self) -> None:
        """Require that everything was taken."""
        if self.offset != len(self.content):
            raise PackingError("the file holds more numbers than the header asks for")


def whole(what: str, value: Any, least: int, most: int) -> int:
    """Return a number of a header if it is whole and in this range."""
    if type(value) is not int or not least <= value <= most:
        raise PackingError(f"{what} is {shown(value)}; allowed: a whole number from {least} to {most}")
    return value


def header_list(text: bytes) -> list[Any]:
    """Return the list that a header is, its entries still unchecked."""
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError):
        raise PackingError("the header is no JSON in UTF-8") from None
    if not isinstance(found, list):
        raise PackingError("the header is no list")
    return found


def take_architecture(header: list[Any], place: int, named: bool) -> str | None:
    """Take the text that states the architecture from its place in a header, if the version says that it is there."""
    if not named:
        return None
    found = header.pop(place) if len(header) > place else None
    if not isinstance(found, str) or len(found) > LONGEST_NAME:
        raise PackingError(f"the architecture is {shown(found)}; allowed: a text of {LONGEST_NAME} characters at most")
    return found


def unpacked(what: str, unpacker: Any, packed: bytes | memoryview, most: int) -> bytes:
    """Return what a decompressor makes of `packed`, which it has to end, if that is no more than `most` bytes."""
    try:
        content = unpacker.decompress(packed, most + 1)
    except (zlib.error, lzma.LZMAError):
        raise PackingError(f"{what} cannot be decompressed") from None
    if len(content) > most:
        raise PackingError(f"{what} would take more than {most:,} bytes")
    if not unpacker.eof:
        raise PackingError(f"{what} is cut off")
    return content


class Entry(NamedTuple):
    """Of an array in a header: its name, type and shape, checked, and the number of its elements."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    size: int


def entries(described: Sequence[tuple[Any, Any, Any]], length: int) -> list[Entry]:
    """Return the checked entries of (name, type, shape), if a file of `length` bytes may hold such arrays."""
    whole("the number of arrays", len(described), 0, ARRAYS)
    found = [_entry(*each) for each in described]
    if len({entry.name for entry in found}) < len(found):
        raise PackingError("two arrays have the same name")
    most = ELEMENTS + GROWTH * length
    if sum(math.prod(max(side, 1) for side in entry.shape) for entry in found) > most:
        raise PackingError(
            f"the arrays would have more than {most:,} elements, too many for a file of {length:,} bytes"
        )
    return found


def _entry(name: Any, dtype: Any, shape: Any) -> Entry:
    if not isinstance(name, str):
        raise PackingError(f"an array is named {shown(name)}; allowed: text")
    if dtype not in TYPES:
        raise PackingError(f"{shown(name)} is of the type {shown(dtype)}; allowed: {', '.join(TYPES)}")
    if not isinstance(shape, list) or len(shape) > DIMENSIONS:
        raise PackingError(f"{shown(name)} has the shape {shown(shape)}; allowed: at most {DIMENSIONS} dimensions")
    sides = tuple(whole(f"a side of {shown(name)}", side, 0, 2**62) for side in shape)
    return Entry(name, np.dtype(dtype), sides, math.prod(sides))


def parts(content: bytes) -> tuple[str | None, list[dict[str, Any]], Payload]:
    """Return the architecture, the entries of the header and the payload, if nothing is cut off or changed."""
    if not content.startswith(MAGIC):
        raise PackingError("this is not a packed model: it does not begin with MCPACK")
    if len(content) < PREFIX.size:
        raise PackingError("the file is cut off; write it again")
    magic, version, header_length, checksum = PREFIX.unpack_from(content)
    if version not in (VERSION, VERSION + NAMED):
        raise PackingError(f"the file has version {version}; this code reads versions 1 to {CODED_VERSION + NAMED}")
    body = memoryview(content)[PREFIX.size :]
    if checksum_of(magic, version, header_length, body) != checksum:
        raise PackingError("the checksum does not match: the file is cut off or was changed; write it again")
    whole("the header's length", header_length, 0, len(body))
    unpacker = zlib.decompressobj()
    header = header_list(unpacked("the header", unpacker, body[:header_length], HEADER_BYTES))
    architecture = take_architecture(header, 0, version > NAMED)
    if unpacker.unused_data or not all(isinstance(entry, dict) for entry in header):
        raise PackingError("the header is no list of entries, and nothing else")
    return architecture, header, Payload(body[header_length:])


def packed_words(header: list[dict[str, Any]], payload: Payload) -> tuple[int, bytes]:
    """Take the entry of the words, if there is one, from the header and their bytes from the payload."""
    if not header or header[0].get("coding") != "words":
        return 0, b""
    entry = header.pop(0)
    if entry.keys() != {"name", "coding", "count", "bytes"}:
        raise PackingError("the entry of the words has other fields than name, coding, count and bytes")
    count = whole("the number of words", entry["count"], 0, WORDS_BYTES)
    return count, payload.take("|u1", whole("the length of the words", entry["bytes"], 0, 2**62)).tobytes()


def is_coded(content: bytes) -> bool:
    """Return whether a file's content begins as an entropy-coded one does: `MAGIC`, then `CODED_VERSION`."""
    starts = (MAGIC + struct.pack("<H", version) for version in (CODED_VERSION, CODED_VERSION + NAMED))
    return content[: len(MAGIC) + 2] in starts
