"""The file of a compressed model: write it, read it back with NumPy alone, verify that it answers the same.

One file holds named arrays, usually a `state_dict`. All numbers are little-endian:

    offset      bytes   content
    0           6       magic: b"MCPACK"
    6           2       version of this format, now 1
    8           4       H, length of the header
    12          8       checksum: the first 8 bytes of the SHA-256 of everything else, in order
    20          H       header: JSON in UTF-8, compressed by zlib (plain, it would be a fifth of a 3 KB model)
    20 + H      …       payload: the arrays' bytes, one after another, in the order of the header

The header is a list with one entry for each array:

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

A text classifier also needs its words, in the order of their numbers. Their entry is the first:

    {"name": "", "coding": "words", "count": 10002, "bytes": 35620}

and the payload is the words, each ended by a line feed, in UTF-8, compressed by LZMA (plain, without a container).

Zero means that all bits are zero, so -0.0 and every NaN come back as they were. Reading needs NumPy and the
standard library only; PyTorch is imported where a model is involved.
"""

import hashlib
import json
import lzma
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from helpers import vocabulary
from helpers.paths import write_atomically

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Packed", "PackingError", "load_into", "read", "read_words", "verify", "write_dense", "write_sparse"]

MAGIC = b"MCPACK"
VERSION = 1
PREFIX = struct.Struct("<6sHI8s")
MAXIMUM_BITS = 16
LZMA: Any = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 4, "pb": 0}]}

Arrays = dict[str, np.ndarray]


class PackingError(ValueError):
    """A file that cannot be read, does not fit the model, or would not give back what went in."""


class Packed(NamedTuple):
    """A written file: where it lies, its size in bytes and the SHA-256 of its content."""

    path: Path
    bytes: int
    sha256: str


# ---------------------------------------------------------------- writing


def write_dense(
    tensors: "Mapping[str, np.ndarray | Tensor] | nn.Module", path: Path, *, words: Sequence[str] = ()
) -> Packed:
    """Write all arrays in full, and the vocabulary if given. A model's masks are applied first (see `write_sparse`)."""
    return _write(_arrays(tensors), path, words, sparse=False)


def write_sparse(
    tensors: "Mapping[str, np.ndarray | Tensor] | nn.Module", path: Path, *, words: Sequence[str] = ()
) -> Packed:
    """Write of each array only the values that are not zero, and where they stand, if that is smaller.

    From a model the `state_dict` is written, with masks applied (`pruning.bake`) and -0.0, which is what a
    mask makes of a negative weight, as 0.0. Arrays that are given by name come back bit for bit. `words` is
    the vocabulary of a text classifier, which `read_words` gives back.

    The file appears only after its content was decoded again and compared. Raises PackingError if they
    differ, and ValueError for a type that NumPy does not have (bfloat16) or that is not a number, and for a
    word with a line feed.
    """
    return _write(_arrays(tensors), path, words, sparse=True)


def _arrays(tensors: "Mapping[str, np.ndarray | Tensor] | nn.Module") -> Arrays:
    if isinstance(tensors, Mapping):
        return {name: _array(name, tensor) for name, tensor in tensors.items()}
    from helpers.pruning import bake

    state = sorted(bake(tensors).state_dict().items())  # by name: masking changes the order
    arrays = {name: _array(name, tensor).copy() for name, tensor in state}
    for array in arrays.values():
        array[array == 0] = 0  # turns -0.0 into 0.0
    return arrays


def _array(name: str, tensor: "np.ndarray | Tensor") -> np.ndarray:
    """Return the tensor as a little-endian array in C order."""
    try:
        array = tensor if isinstance(tensor, np.ndarray) else tensor.detach().cpu().numpy()
    except TypeError as error:
        raise ValueError(f"tensors[{name!r}] has dtype {tensor.dtype}; allowed: a type that NumPy has") from error
    if array.dtype.kind not in "biufc":
        raise ValueError(f"tensors[{name!r}] has dtype {array.dtype}; allowed: numbers and booleans")
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _write(arrays: Arrays, path: Path, words: Sequence[str], *, sparse: bool) -> Packed:
    content = _encode(arrays, words, sparse=sparse)
    _require_identical(arrays, _decode(content))
    if _decode_words(content) != list(words):
        raise PackingError("the words would not come back; nothing was written")
    write_atomically(Path(path), content)
    return Packed(Path(path), len(content), hashlib.sha256(content).hexdigest())


def _require_identical(arrays: Arrays, again: Arrays) -> None:
    for name, array in arrays.items():
        copy = again[name]
        if copy.dtype != array.dtype or copy.shape != array.shape or copy.tobytes() != array.tobytes():
            raise PackingError(f"{name!r} would not come back bit for bit; nothing was written")


def _encode(arrays: Arrays, words: Sequence[str], *, sparse: bool) -> bytes:
    entries: list[dict[str, Any]] = []
    payload = []
    if words:
        payload.append(lzma.compress(vocabulary.lines(words), **LZMA))
        entries.append({"name": "", "coding": "words", "count": len(words), "bytes": len(payload[0])})
    for name, array in arrays.items():
        coding, data = _encode_sparse(array) if sparse else ({"coding": "dense"}, array.tobytes())
        entries.append({"name": name, "dtype": array.dtype.str, "shape": array.shape} | coding)
        payload.append(data)
    header = zlib.compress(json.dumps(entries, separators=(",", ":")).encode(), 9)
    body = header + b"".join(payload)
    checksum = _checksum(MAGIC, VERSION, len(header), body)
    return PREFIX.pack(MAGIC, VERSION, len(header), checksum) + body


def _checksum(magic: bytes, version: int, header_length: int, body: bytes) -> bytes:
    return hashlib.sha256(struct.pack("<6sHI", magic, version, header_length) + body).digest()[:8]


def _encode_sparse(array: np.ndarray) -> tuple[dict[str, Any], bytes]:
    """Return the smallest coding of one array: its entries in the header, its bytes."""
    flat = array.reshape(-1)
    kept = np.flatnonzero(_has_bits(flat))
    gaps = np.diff(kept, prepend=-1) - 1
    widths = range(1, MAXIMUM_BITS + 1)
    bits = min(widths, key=lambda bits: bits * _symbol_count(gaps, bits))
    symbols = _symbol_count(gaps, bits)
    if (bits * symbols + 7) // 8 + kept.size * array.itemsize >= array.nbytes:
        return {"coding": "dense"}, array.tobytes()
    header = {"coding": "gap", "bits": bits, "symbols": symbols, "kept": kept.size}
    return header, _pack_bits(_symbols(gaps, bits), bits) + flat[kept].tobytes()


def _has_bits(flat: np.ndarray) -> np.ndarray:
    """Return where at least one bit is set: unlike `flat != 0` this holds for -0.0."""
    return np.any(flat.view(np.uint8).reshape(flat.size, flat.itemsize), axis=1)


def _symbol_count(gaps: np.ndarray, bits: int) -> int:
    return int(gaps.size + (gaps // (2**bits - 1)).sum())


def _symbols(gaps: np.ndarray, bits: int) -> np.ndarray:
    """Return each gap as some of the largest symbol, then the rest of the gap as a smaller one."""
    largest = 2**bits - 1
    symbols = np.full(_symbol_count(gaps, bits), largest)
    ends = np.cumsum(gaps // largest + 1) - 1
    symbols[ends] = gaps % largest
    return symbols


def _pack_bits(symbols: np.ndarray, bits: int) -> bytes:
    return np.packbits((symbols[:, None] >> np.arange(bits)) & 1, bitorder="little").tobytes()


# ---------------------------------------------------------------- reading


def read(path: Path) -> Arrays:
    """Return the arrays of a file by name; needs NumPy and the standard library only.

    Raises PackingError, in one sentence, for a file that is cut off or changed, of another kind or of a
    version that this code does not know; FileNotFoundError if there is none.
    """
    try:
        return _decode(Path(path).read_bytes())
    except PackingError as error:
        raise PackingError(f"{path}: {error}") from None


def read_words(path: Path) -> list[str]:
    """Return the vocabulary of a file, in the order of the numbers; an empty list if the file holds none.

    Needs the standard library only, and raises what `read` raises.
    """
    try:
        return _decode_words(Path(path).read_bytes())
    except PackingError as error:
        raise PackingError(f"{path}: {error}") from None


def _parts(content: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """Return the entries of the header and the payload, after checking that nothing is cut off or changed."""
    if not content.startswith(MAGIC):
        raise PackingError("this is not a packed model: it does not begin with MCPACK")
    if len(content) < PREFIX.size:
        raise PackingError("the file is cut off; write it again")
    magic, version, header_length, checksum = PREFIX.unpack_from(content)
    if version != VERSION:
        raise PackingError(f"the file has version {version}; this code reads version {VERSION}")
    body = content[PREFIX.size :]
    if _checksum(magic, version, header_length, body) != checksum:
        raise PackingError("the checksum does not match: the file is cut off or was changed; write it again")
    return json.loads(zlib.decompress(body[:header_length])), body[header_length:]


def _decode(content: bytes) -> Arrays:
    entries, payload = _parts(content)
    offset, arrays = sum(entry["bytes"] for entry in entries if entry["coding"] == "words"), {}
    for entry in entries:
        if entry["coding"] != "words":
            arrays[entry["name"]], offset = _decode_array(entry, payload, offset)
    return arrays


def _decode_words(content: bytes) -> list[str]:
    entries, payload = _parts(content)
    if entries and entries[0]["coding"] == "words":
        return vocabulary.from_lines(lzma.decompress(payload[: entries[0]["bytes"]], **LZMA))
    return []


def _decode_array(entry: Mapping[str, Any], body: bytes, offset: int) -> tuple[np.ndarray, int]:
    """Return one array, and where the next one begins."""
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    size = int(np.prod(shape, dtype=np.int64))
    if entry["coding"] == "dense":
        array = np.frombuffer(body, dtype, size, offset).reshape(shape).copy()
        return array, offset + array.nbytes
    if entry["coding"] != "gap":
        raise PackingError(f"{entry['name']!r} has the unknown coding {entry['coding']!r}")
    symbols, offset = _unpack_bits(body, offset, entry["symbols"], entry["bits"])
    values = np.frombuffer(body, dtype, entry["kept"], offset)
    flat = np.zeros(size, dtype)
    flat[_positions(symbols, entry["bits"])] = values
    return flat.reshape(shape), offset + values.nbytes


def _unpack_bits(body: bytes, offset: int, count: int, bits: int) -> tuple[np.ndarray, int]:
    length = (count * bits + 7) // 8
    packed = np.frombuffer(body, np.uint8, length, offset)
    unpacked = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return unpacked @ (1 << np.arange(bits)), offset + length


def _positions(symbols: np.ndarray, bits: int) -> np.ndarray:
    """Return where the values stand: every symbol but the largest ends with one."""
    puts_value = symbols < 2**bits - 1
    return (np.cumsum(symbols + puts_value) - 1)[puts_value]


# ---------------------------------------------------------------- models


def load_into(model: "nn.Module", path: Path) -> "nn.Module":
    """Return a copy of `model` with the weights of the file; masks of `model` are dropped, zeros stay zeros.

    Raises PackingError if names or shapes do not fit.
    """
    import torch

    from helpers.pruning import bake

    new = bake(model)
    expected = {name: tuple(tensor.shape) for name, tensor in new.state_dict().items()}
    arrays = read(path)
    found = {name: array.shape for name, array in arrays.items()}
    if found != expected:
        name = next(name for name in {**expected, **found} if found.get(name) != expected.get(name))
        raise PackingError(
            f"{path}: {name!r} has shape {found.get(name)} in the file and {expected.get(name)} in the model"
        )
    new.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return new


def verify(path: Path, model: "nn.Module", inputs: "Tensor") -> None:
    """Raise PackingError unless the weights in the file give exactly `model`'s logits for `inputs`."""
    import torch

    from helpers.training import predict

    expected, found = predict(model, inputs), predict(load_into(model, path), inputs)
    if not torch.equal(expected, found):
        difference = (expected - found).abs().max()
        raise PackingError(f"{path}: the logits differ from the model's, by up to {difference:.3g}")
