"""Read an entropy-coded file; `coded` describes the format."""

import hashlib
import struct
import zlib
from typing import Any

import numpy as np

from helpers.files import decoding, payload
from helpers.files.arrays import Arrays, Integers, PackingError, shown
from helpers.files.payload import Entry, Payload
from helpers.files.range_coder import SUM, Reader

ADAPTIVE = 2**16  # values; with more, learning their frequencies saves nothing over storing them, and takes seconds
LARGEST_TABLE = 256
WORDS = (
    b'.running_mean.running_var.num_batches_tracked","<i8",[],0,"raw"],["stem.res2.res1.block2.block1.conv3.conv.weight'
    b'.input_grid","<f4",[4],0,"raw"],["fc.fc3.bias","<f4",[10],1,"table",["fc2.weight","<f4",[10,500],1,"grid",-2,4,1'
    b'],["fc2.bias","<f4",[10],1,"grid",-16,32,1],["fc1.weight","<f4",[500,800],1,"grid",-4,8,1],["fc1.bias","<f4",[500'
    b'],1,"grid",-8,16,1],["conv2.weight","<f4",[50,20,5,5],1,"grid",-8,16,1],["conv2.bias","<f4",[50],1,"grid",-8,16,1'
    b'],["conv1.weight","<f4",[20,1,5,5],1,"grid",-8,16,1],["conv1.bias","<f4",[20],1,"grid",-8,16,1],["'
)  # what headers are made of, the likeliest last; to change it is to change the format
NAMED_WORDS = (b'"mlp",["textbag",["textcnn",["rnn",["lstm",["resnet18",["' + WORDS).replace(
    b'["conv1.bias"', b'"cifarnet",["conv1.bn.bias","<f4",[24],0,"raw"],"lenet5",["conv1.bias"'
)

START, NAMED_START = (b"MCPACK" + struct.pack("<H", version) for version in (2, 4))
CHECKSUM_BYTES = 4
LARGEST_STEP = 2**11


def body_of(content: bytes) -> bytes:
    """Return what follows the checksum of a file; raises PackingError if it is cut off, changed or of another kind."""
    if not content.startswith((START, NAMED_START)):
        raise PackingError("this is not an entropy-coded model")
    start, checksum = content[: len(START)], content[len(START) :][:CHECKSUM_BYTES]
    body = content[len(START) + CHECKSUM_BYTES :]
    if checksum != checksum_of_body(start, body):
        raise PackingError("the checksum does not match: the file is cut off or was changed; write it again")
    return body


def decode(content: bytes) -> Arrays:
    """Return the arrays in the content of a file; raises PackingError if it is cut off, changed or of another kind."""
    _, header, rest = _opened(content)
    if not header or not all(isinstance(line, list) and len(line) >= 5 for line in header[1:]):
        raise PackingError("the header is no number and a list for each array")
    length = payload.whole("the length of the plain numbers", header[0], 0, len(rest))
    if (len(rest) - length) % 4:
        raise PackingError("what is coded does not end with a word of four bytes")
    plain, coder = Payload(memoryview(rest)[:length]), Reader(rest[length:])
    known = payload.entries([tuple(line[:3]) for line in header[1:]], len(content))
    arrays = {
        entry.name: _decode_array(coder, plain, entry, *line[3:]) for entry, line in zip(known, header[1:], strict=True)
    }
    plain.end()
    return arrays


def architecture(content: bytes) -> str | None:
    """Return the architecture that a file's header states, None if none; raises PackingError as `decode` does."""
    return _opened(content)[0]


def _opened(content: bytes) -> tuple[str | None, list[Any], bytes]:
    """Return the architecture, the rest of the header, and what follows it."""
    named = content.startswith(NAMED_START)
    body, unpacker = body_of(content), zlib.decompressobj(-zlib.MAX_WBITS, NAMED_WORDS if named else WORDS)
    header = payload.header_list(payload.unpacked("the header", unpacker, body, payload.HEADER_BYTES))
    return payload.take_architecture(header, 1, named), header, unpacker.unused_data


def checksum_of_body(start: bytes, body: bytes) -> bytes:
    """Return the checksum of a file that begins with `start` and goes on with `body`."""
    return hashlib.sha256(start + body).digest()[:CHECKSUM_BYTES]


def _decode_array(
    coder: "Reader", plain: Payload, entry: Entry, has_positions: Any, kind: Any, *how: Any
) -> np.ndarray:
    name = shown(entry.name)
    if kind not in [*NUMBERS]:
        raise PackingError(f"{name} has values of the unknown kind {shown(kind)}")
    if len(how) != NUMBERS[kind]:
        raise PackingError(f"{name} has {len(how)} numbers for the kind {kind!r}; allowed: {NUMBERS[kind]}")
    rows, columns = as_matrix(entry.shape)
    if payload.whole(f"whether {name} has positions", has_positions, 0, min(entry.size, 1)):
        kept = coder.positions((rows, columns))
    else:
        kept = np.ones((rows, columns), bool)
    return _decode_kinds[kind](coder, plain, entry, kept, has_positions, *how).reshape(entry.shape)


def _decode_raw(coder: "Reader", plain: Payload, entry: Entry, kept: np.ndarray, has_positions: int) -> np.ndarray:
    values = plain.take(entry.dtype, int(np.count_nonzero(kept)))
    return _among_zeros(kept, values)


def _decode_table(
    coder: "Reader", plain: Payload, entry: Entry, kept: np.ndarray, has_positions: int, length: Any
) -> np.ndarray:
    name = shown(entry.name)
    length = payload.whole(f"the table of {name}", length, 1, LARGEST_TABLE)
    if entry.dtype.itemsize > 8:
        raise PackingError(f"{name} has a table of {entry.dtype.str}; allowed: at most 8 bytes each")
    table = plain.take(entry.dtype, length)
    return _among_zeros(kept, table[_decode_values(coder, plain, int(np.count_nonzero(kept)), length)])


def _decode_grid(
    coder: "Reader", plain: Payload, entry: Entry, kept: np.ndarray, has_positions: int, *how: Any
) -> np.ndarray:
    lowest = payload.whole("the lowest step", how[0], -LARGEST_STEP, 0)
    steps = payload.whole("the number of steps", how[1], 1 - lowest, LARGEST_STEP)
    scale = decoding.finite_scales(entry, how[2], plain)
    values = _decode_values(coder, plain, int(np.count_nonzero(kept)), steps - has_positions) + lowest
    found = _among_zeros(kept, values + (has_positions & (values >= 0)))
    return Integers(found.reshape(entry.shape), scale, np.zeros(1, np.int64), lowest, 8).values()


NUMBERS = {"raw": 0, "table": 1, "grid": 3}
_decode_kinds: dict[str, Any] = {"raw": _decode_raw, "table": _decode_table, "grid": _decode_grid}


def _among_zeros(kept: np.ndarray, values: np.ndarray) -> np.ndarray:
    found = np.zeros(kept.shape, values.dtype)
    found[kept] = values
    return found


def _decode_values(coder: "Reader", plain: Payload, count: int, alphabet: int) -> np.ndarray:
    frequencies = None
    if count > ADAPTIVE and alphabet > 1:
        frequencies = plain.take("<u2", alphabet).astype(np.int64) + 1
        if frequencies.sum() != SUM:
            raise PackingError(f"frequencies add up to {frequencies.sum()}; allowed: {SUM}")
    values = coder.values(count, alphabet, frequencies)
    if values.size and values.max() >= alphabet:
        raise PackingError(f"a value is number {values.max()} of {alphabet}")
    return values


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the rows and columns as which an array of this shape is coded: one row for each output."""
    size = int(np.prod(shape, dtype=np.int64))
    rows = shape[0] if len(shape) > 1 else 1
    return rows, size // max(rows, 1)
