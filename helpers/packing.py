"""The file of a compressed model: write it, read it back with NumPy alone, verify that it answers the same.

One file holds named arrays, usually a `state_dict`; a tensor that a model has under several names is there once, under
the first of them. All numbers are little-endian:

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

Files of version 2 are entropy-coded: `helpers.coding` writes them and says what they hold. `read` reads both kinds.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from helpers import vocabulary
from helpers.paths import write_atomically

if TYPE_CHECKING:
    from torch import Tensor, nn

    from helpers import quantization

__all__ = [
    "Integers",
    "Packed",
    "PackingError",
    "load_into",
    "read",
    "read_words",
    "verify",
    "write_dense",
    "write_quantized",
    "write_sparse",
]

MAGIC = b"MCPACK"
VERSION = 1
CODED_VERSION = 2
PREFIX = struct.Struct("<6sHI8s")
MAXIMUM_BITS = 16
LZMA: Any = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 4, "pb": 0}]}

INPUT_GRID = "input_grid"
TYPES = (
    "|b1",
    "|i1",
    "|u1",
    *(f"<{kind}" for kind in ("i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")),
)
FIELDS = {  # of an entry, beside its name, type, shape and coding: what must be there, and what may
    "dense": ((), ()),
    "gap": (("bits", "symbols", "kept"), ()),
    "integers": (("bits", "low", "scales"), ("gap", "zero_points")),
    "codebook": (("bits", "entries"), ("gap",)),
}
CODE_BITS = 8
LARGEST_TABLE = 256
ARRAYS, DIMENSIONS = 2**14, 32
HEADER_BYTES = 2**22
WORDS_BYTES = 2**24
ELEMENTS, GROWTH = 2**25, 256  # of all arrays: so many, and so many more for each byte of the file
CHUNK = 2**16  # elements at a time: whole arrays of intermediate results would take ten times their bytes

Arrays = dict[str, np.ndarray]
Data = tuple[dict[str, Any], bytes]  # how an array is coded, as its entry in the header says it, and its bytes


class PackingError(ValueError):
    """A file that cannot be read, does not fit the model, or would not give back what went in."""


class Packed(NamedTuple):
    """A written file: where it lies, its size in bytes and the SHA-256 of its content."""

    path: Path
    bytes: int
    sha256: str


class Integers(NamedTuple):
    """A float32 array as whole numbers: scale · (codes - zero_point).

    `scale` (float32) and `zero_point` (whole numbers) have the shape (), or (n,) with one for each entry of the codes'
    first dimension. Codes, and zero points, lie from `low` to low + 2^bits - 1.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    low: int
    bits: int

    def values(self) -> np.ndarray:
        """Return what the codes stand for; a code equal to the zero point for 0.0, never -0.0."""
        steps = np.subtract(self.codes, spread(self.zero_point, self.codes.ndim), dtype=np.int32, casting="unsafe")
        values = np.asarray(steps, dtype="<f4")
        with np.errstate(over="ignore"):
            np.multiply(values, spread(self.scale, self.codes.ndim), out=values, casting="same_kind")
        values += np.float32(0)
        return values


Writable = dict[str, np.ndarray | Integers]


def spread(numbers: np.ndarray, dimensions: int) -> np.ndarray:
    """Return one number, or one for each entry of the first dimension, in a shape that broadcasts."""
    return numbers.reshape(-1, *[1] * (dimensions - 1)) if numbers.size > 1 else numbers.reshape(())


# ---------------------------------------------------------------- writing


def write_dense(
    tensors: "Mapping[str, np.ndarray | Tensor] | nn.Module", path: Path, *, words: Sequence[str] = ()
) -> Packed:
    """Write all arrays in full, and the vocabulary if given. A model's masks are applied first (see `write_sparse`)."""
    return _write(arrays_of(tensors), path, words, code=_encode_dense)


def write_sparse(
    tensors: "Mapping[str, np.ndarray | Tensor] | nn.Module", path: Path, *, words: Sequence[str] = ()
) -> Packed:
    """Write of each array only the values that are not zero, and where they stand, if that is smaller.

    From a model the `state_dict` is written, with masks applied (`pruning.bake`) and -0.0, which is what a
    mask makes of a negative weight, as 0.0. Arrays that are given by name come back bit for bit. `words` is
    the vocabulary of a text classifier, which `read_words` gives back.

    The file appears only after its content was decoded again and compared. Raises PackingError if they
    differ, and ValueError for a type that NumPy does not have (bfloat16) or that is not a number, for a
    word with a line feed, and for a model with quantized weights: it would store them as floating point numbers.
    """
    return _write(arrays_of(tensors), path, words, code=_encode_sparse)


def write_quantized(
    tensors: "Mapping[str, np.ndarray | Tensor | Integers] | nn.Module", path: Path, *, words: Sequence[str] = ()
) -> Packed:
    """Write quantized weights as whole numbers of few bits, and other arrays as `write_sparse` or as a table of values.

    Of a model, these are the weights that carry a grid (`quantization.quantize_model`). Any array with at most 256
    different values (`quantization.share_weights`) is stored as those values, once, and the places in that table, if
    that is smaller. Zeros are left out wherever it pays. `read` gives back the same float32 numbers, bit for bit.

    Raises what `write_sparse` does, but takes quantized weights, and ValueError for codes that need more than `bits`.
    """
    return _write(arrays_of(tensors, quantized=True), path, words, code=_encode_quantized)


def arrays_of(
    tensors: "Mapping[str, np.ndarray | Tensor | Integers] | nn.Module", *, quantized: bool = False
) -> Writable:
    """Return what a file is to hold: arrays by name, of a model its `state_dict`, and with `quantized` whole numbers.

    Raises ValueError for a type that NumPy does not have or that is no number, and for quantized weights unless asked.
    """
    if isinstance(tensors, Mapping):
        for name in tensors:
            _require_text("name in tensors", name)
        _refuse_integers([name for name, tensor in tensors.items() if isinstance(tensor, Integers)], quantized)
        return {name: _checked(name, t) if isinstance(t, Integers) else _array(name, t) for name, t in tensors.items()}
    if not hasattr(tensors, "state_dict"):
        raise ValueError(f"tensors={shown(tensors)}; allowed: arrays by name, or an nn.Module")
    return _arrays_of_model(tensors, quantized=quantized)


def _arrays_of_model(model: "nn.Module", *, quantized: bool) -> Writable:
    import torch

    from helpers import modules, quantization

    plain = modules.materialized(model)
    with torch.no_grad():
        integers = quantization.integers(plain)
    _refuse_integers(list(integers), quantized)
    grids = quantization.input_grids(plain)
    state = state_of(quantization.with_input_grids(quantization.bake(plain), {}))
    first = first_of(state)
    coded = _by_first_name(integers, first)
    arrays: Writable = {}
    for name in sorted(set(first.values())):  # by name: masking changes the order
        if name not in coded:
            arrays[name] = _without_negative_zeros(_array(name, state[name]).copy())
        elif state[name].dtype == torch.float64:
            raise ValueError(f"{name!r} is quantized in {state[name].dtype}; allowed: single precision, model.float()")
        else:
            arrays[name] = _checked(name, coded[name])
    for layer, grid in grids.items():
        name = f"{layer}.{INPUT_GRID}".lstrip(".")
        if name in first:
            raise ValueError(
                f"{name!r} is a tensor of the model, and the grid of a layer's input; allowed: one of them"
            )
        arrays[name] = np.array([float(number) for number in grid], "<f4")
    return arrays


def state_of(model: "nn.Module") -> "dict[str, Tensor]":
    """Return the `state_dict`, each tensor itself; ValueError for what is no tensor, or not there yet."""
    from torch import Tensor
    from torch.nn.parameter import is_lazy

    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor) or is_lazy(value):
            raise ValueError(f"model has {name!r}, a {type(value).__name__}; allowed: tensors with values")
    return dict(state)


def first_of(state: "Mapping[str, Tensor]") -> dict[str, str]:
    """Return each name of a `state_of` with the first name of the same tensor: parameters and buffers alike."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}


def _by_first_name(integers: Mapping[str, Integers], first: Mapping[str, str]) -> dict[str, Integers]:
    """Return the whole numbers by the first name of their tensor, on whichever name the grid is."""
    found: dict[str, Integers] = {}
    for name, array in integers.items():
        known = found.setdefault(first[name], array)
        if known.low != array.low or not all(np.array_equal(known[part], array[part]) for part in range(3)):
            raise ValueError(f"{name!r} and {first[name]!r} are one tensor with two grids; allowed: one grid")
    return found


def _without_negative_zeros(array: np.ndarray) -> np.ndarray:
    array[array == 0] = 0
    return array


def _require_text(what: str, text: Any) -> None:
    try:
        text.encode()
    except (AttributeError, UnicodeEncodeError):
        raise ValueError(f"{what}={shown(text)}; allowed: text, as UTF-8 has it") from None


def _refuse_integers(names: Sequence[str], allowed: bool) -> None:
    if names and not allowed:
        raise ValueError(f"{names[0]!r} is quantized and would be stored in floating point; allowed: write_quantized")


def _array(name: str, tensor: "np.ndarray | Tensor") -> np.ndarray:
    """Return the tensor as a little-endian array in C order."""
    try:
        if isinstance(tensor, np.ndarray | np.generic):
            array = np.asarray(tensor)
        else:
            array = tensor.detach().cpu().resolve_conj().resolve_neg().numpy()
    except (AttributeError, TypeError, RuntimeError, NotImplementedError) as error:
        kind = getattr(tensor, "dtype", type(tensor).__name__)
        raise ValueError(f"tensors[{name!r}] has dtype {kind}; allowed: a dense tensor of a type in NumPy") from error
    little = array.dtype.newbyteorder("<")
    if little.str not in TYPES:
        raise ValueError(f"tensors[{name!r}] has dtype {array.dtype}; allowed: numbers and booleans")
    return np.asarray(array, dtype=little, order="C")


def _checked(name: str, array: Integers) -> Integers:
    """Return the array if its numbers fit together; raise ValueError otherwise."""
    codes, zeros, low, bits = array.codes, array.zero_point, array.low, array.bits
    if type(bits) is not int or not 1 <= bits <= CODE_BITS or any(n.dtype.kind not in "iu" for n in (codes, zeros)):
        raise ValueError(
            f"{name!r} has bits={bits!r}, codes of {codes.dtype} and zero points of {zeros.dtype}; "
            f"allowed: 1 to {CODE_BITS} bits, whole numbers"
        )
    if zeros.size != array.scale.size or array.scale.size not in {1, *codes.shape[:1]} - {0}:
        raise ValueError(
            f"{name!r} has codes of shape {codes.shape}, {array.scale.size} scales and {zeros.size} zero points; "
            "allowed: one scale and one zero point, or one for each entry of the first dimension"
        )
    if not np.isfinite(array.scale).all():
        raise ValueError(f"{name!r} has a scale that is NaN or infinite; allowed: finite numbers")
    last = low + 2**bits - 1
    for numbers in (codes, zeros):
        if numbers.size and (numbers.min() < low or numbers.max() > last):
            raise ValueError(
                f"{name!r} has codes and zero points from {numbers.min()} to {numbers.max()}; "
                f"allowed: {low} to {last}, which {bits} bits can number"
            )
    return array


def _write(arrays: Writable, path: Path, words: Sequence[str], *, code: Callable[[Any], Data]) -> Packed:
    for word in words:
        _require_text("word", word)
    content = _encode(arrays, words, code=code)
    require_identical(arrays, _decode(content))
    if _decode_words(content) != list(words):
        raise PackingError("the words would not come back; nothing was written")
    write_atomically(Path(path), content)
    return Packed(Path(path), len(content), hashlib.sha256(content).hexdigest())


def require_identical(arrays: Writable, again: Arrays) -> None:
    """Raise PackingError unless `again` holds the same arrays, bit for bit."""
    for name, given in arrays.items():
        array, copy = given.values() if isinstance(given, Integers) else given, again[name]
        if copy.dtype != array.dtype or copy.shape != array.shape or not np.array_equal(_bytes(copy), _bytes(array)):
            raise PackingError(f"{name!r} would not come back bit for bit; nothing was written")


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _encode(arrays: Writable, words: Sequence[str], *, code: Callable[[Any], Data]) -> bytes:
    entries: list[dict[str, Any]] = []
    payload = []
    if words:
        payload.append(lzma.compress(vocabulary.lines(words), **LZMA))
        entries.append({"name": "", "coding": "words", "count": len(words), "bytes": len(payload[0])})
    for name, array in arrays.items():
        coding, data = code(array)
        kind, shape = ("<f4", array.codes.shape) if isinstance(array, Integers) else (array.dtype.str, array.shape)
        entries.append({"name": name, "dtype": kind, "shape": shape} | coding)
        payload.append(data)
    header = zlib.compress(json.dumps(entries, separators=(",", ":")).encode(), 9)
    checksum = _checksum(MAGIC, VERSION, len(header), header, *payload)
    return b"".join([PREFIX.pack(MAGIC, VERSION, len(header), checksum), header, *payload])


def _checksum(magic: bytes, version: int, header_length: int, *body: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(struct.pack("<6sHI", magic, version, header_length))
    for part in body:
        digest.update(part)
    return digest.digest()[:8]


def _encode_dense(array: np.ndarray) -> Data:
    return {"coding": "dense"}, array.tobytes()


def _encode_sparse(array: np.ndarray) -> Data:
    """Return the smallest coding of one array that keeps its values as they are."""
    flat = array.reshape(-1)
    nonzero = has_bits(flat)
    (bits, symbols, kept), places = _encode_gaps(nonzero)
    if len(places) + kept * array.itemsize >= array.nbytes:
        return _encode_dense(array)
    return {"coding": "gap", "bits": bits, "symbols": symbols, "kept": kept}, places + flat[nonzero].tobytes()


def _encode_gaps(nonzero: np.ndarray) -> tuple[list[int], bytes]:
    """Return where the values stand, in the width that needs least: [bits, symbols, kept], and the symbols."""
    widths = range(1, MAXIMUM_BITS + 1)
    counts = dict.fromkeys(widths, 0)
    for gaps in _gaps(nonzero):
        for width in widths:
            counts[width] += _symbol_count(gaps, width)
    bits = min(widths, key=lambda width: width * counts[width])
    packed = _pack_bits((_symbols(gaps, bits) for gaps in _gaps(nonzero)), bits)
    return [bits, counts[bits], int(np.count_nonzero(nonzero))], packed


def _gaps(nonzero: np.ndarray) -> Iterator[np.ndarray]:
    """Yield how many zeros stand before each value, some values at a time."""
    last = -1
    for start, part in _chunks(nonzero):
        places = np.flatnonzero(part) + start
        if places.size:
            yield np.diff(places, prepend=last) - 1
            last = places[-1]


def _chunks(flat: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(flat), CHUNK):
        yield start, flat[start : start + CHUNK]


def _encode_quantized(array: np.ndarray | Integers) -> Data:
    if isinstance(array, Integers):
        return _encode_integers(array)
    return min([_encode_sparse(array), *_encode_codebook(array)], key=lambda coded: len(coded[1]))


def _encode_integers(array: Integers) -> Data:
    coding: dict[str, Any] = {"coding": "integers", "bits": array.bits, "low": array.low, "scales": array.scale.size}
    codes = array.codes.reshape(-1)
    nonzero = (array.codes != spread(array.zero_point, array.codes.ndim)).reshape(-1)
    data = _pack_codes(codes, array)
    gap, places = _encode_gaps(nonzero)
    sparse = places + _pack_codes(codes[nonzero], array)
    if len(sparse) < len(data):
        coding, data = coding | {"gap": gap}, sparse
    data += array.scale.astype("<f4").tobytes()
    if not array.zero_point.any():
        return coding, data
    return coding | {"zero_points": True}, data + (array.zero_point.astype(np.int64) - array.low).astype("u1").tobytes()


def _pack_codes(codes: np.ndarray, array: Integers) -> bytes:
    return _pack_bits((part.astype(np.int64) - array.low for _, part in _chunks(codes)), array.bits)


def _encode_codebook(array: np.ndarray) -> list[Data]:
    """Return the two codings by a table, with all elements and without zeros; none for more than 256 values."""
    if array.size == 0 or array.itemsize > 8:
        return []
    flat = array.reshape(-1).view(f"<u{array.itemsize}")
    table = _table(flat)
    if table is None:
        return []
    nonzero = flat != 0
    gap, places = _encode_gaps(nonzero)
    found: list[Data] = []
    for values, entries, extra, before in (
        (flat, table, {}, b""),
        (flat[nonzero], table[table != 0], {"gap": gap}, places),
    ):
        bits = max(1, (len(entries) - 1).bit_length())
        codes = _pack_bits((np.searchsorted(entries, part) for _, part in _chunks(values)), bits)
        coding = {"coding": "codebook", "bits": bits, "entries": len(entries)} | extra
        found.append((coding, before + codes + entries.tobytes()))
    return found


def _table(flat: np.ndarray) -> np.ndarray | None:
    """Return the different values, rising; none for more than 256."""
    table = flat[:0]
    for _, part in _chunks(flat):
        table = np.union1d(table, part)
        if len(table) > LARGEST_TABLE:
            return None
    return table


def has_bits(flat: np.ndarray) -> np.ndarray:
    """Return where at least one bit is set: unlike `flat != 0` this holds for -0.0."""
    if flat.itemsize > 8:
        return np.any(flat.view("<u8").reshape(flat.size, flat.itemsize // 8) != 0, axis=1)
    return flat.view(f"<u{flat.itemsize}") != 0


def _symbol_count(gaps: np.ndarray, bits: int) -> int:
    return int(gaps.size + (gaps // (2**bits - 1)).sum())


def _symbols(gaps: np.ndarray, bits: int) -> np.ndarray:
    """Return each gap as some of the largest symbol, then the rest of the gap as a smaller one."""
    largest = 2**bits - 1
    symbols = np.full(_symbol_count(gaps, bits), largest)
    ends = np.cumsum(gaps // largest + 1) - 1
    symbols[ends] = gaps % largest
    return symbols


def _pack_bits(parts: Iterable[np.ndarray], bits: int) -> bytes:
    """Return numbers of `bits` bits each, lowest bit first, one after another, filled up to a whole byte."""
    packed, loose = [], np.zeros(0, np.uint8)
    for numbers in parts:
        each = (numbers[:, None] >> np.arange(bits)) & 1
        loose = np.concatenate([loose, each.reshape(-1).astype(np.uint8)])
        ready = loose.size // 8 * 8
        packed.append(np.packbits(loose[:ready], bitorder="little").tobytes())
        loose = loose[ready:]
    return b"".join([*packed, np.packbits(loose, bitorder="little").tobytes()])


# ---------------------------------------------------------------- reading


def read(path: Path) -> Arrays:
    """Return the arrays of a file by name; needs NumPy and, for an entropy-coded file, `constriction`.

    A tensor that the model had under several names goes by the first of them. Raises PackingError, in one sentence,
    for a file that is cut off or changed, of another kind, of a version that this code does not know, or made by
    somebody whose numbers do not fit together; FileNotFoundError if there is none.
    """
    try:
        return _decode(Path(path).read_bytes())
    except PackingError as error:
        raise PackingError(f"{path}: {error}") from None


def read_words(path: Path) -> list[str]:
    """Return the vocabulary of a file, in the order of the numbers; an empty list if the file holds none.

    Needs the standard library only (for an entropy-coded file what `read` needs), and raises what `read` raises.
    """
    try:
        return _decode_words(Path(path).read_bytes())
    except PackingError as error:
        raise PackingError(f"{path}: {error}") from None


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


def shown(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} of many levels"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _parts(content: bytes) -> tuple[list[dict[str, Any]], Payload]:
    """Return the entries of the header and the payload, after checking that nothing is cut off or changed."""
    if not content.startswith(MAGIC):
        raise PackingError("this is not a packed model: it does not begin with MCPACK")
    if len(content) < PREFIX.size:
        raise PackingError("the file is cut off; write it again")
    magic, version, header_length, checksum = PREFIX.unpack_from(content)
    if version != VERSION:
        raise PackingError(f"the file has version {version}; this code reads versions {VERSION} and {CODED_VERSION}")
    body = memoryview(content)[PREFIX.size :]
    if _checksum(magic, version, header_length, body) != checksum:
        raise PackingError("the checksum does not match: the file is cut off or was changed; write it again")
    whole("the header's length", header_length, 0, len(body))
    unpacker = zlib.decompressobj()
    header = header_list(unpacked("the header", unpacker, body[:header_length], HEADER_BYTES))
    if unpacker.unused_data or not all(isinstance(entry, dict) for entry in header):
        raise PackingError("the header is no list of entries, and nothing else")
    return header, Payload(body[header_length:])


def _packed_words(header: list[dict[str, Any]], payload: Payload) -> tuple[int, bytes]:
    """Take the entry of the words, if there is one, from the header and their bytes from the payload."""
    if not header or header[0].get("coding") != "words":
        return 0, b""
    entry = header.pop(0)
    if entry.keys() != {"name", "coding", "count", "bytes"}:
        raise PackingError("the entry of the words has other fields than name, coding, count and bytes")
    count = whole("the number of words", entry["count"], 0, WORDS_BYTES)
    return count, payload.take("|u1", whole("the length of the words", entry["bytes"], 0, 2**62)).tobytes()


def _decode(content: bytes) -> Arrays:
    if _is_coded(content):
        from helpers import coding

        return coding.decode(content)
    header, payload = _parts(content)
    _packed_words(header, payload)
    described = [(entry.get("name"), entry.get("dtype"), entry.get("shape")) for entry in header]
    known = entries(described, len(content))
    arrays = {entry.name: _decode_array(entry, fields, payload) for entry, fields in zip(known, header, strict=True)}
    payload.end()
    return arrays


def _is_coded(content: bytes) -> bool:
    return content[: len(MAGIC) + 2] == MAGIC + struct.pack("<H", CODED_VERSION)


def _decode_words(content: bytes) -> list[str]:
    if _is_coded(content):
        from helpers import coding

        coding.body_of(content)  # a file that is cut off holds no words for another reason
        return []
    count, packed = _packed_words(*_parts(content))
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


def _decode_array(entry: Entry, fields: Mapping[str, Any], payload: Payload) -> np.ndarray:
    coding = fields.get("coding")
    if coding not in [*FIELDS]:
        raise PackingError(f"{shown(entry.name)} has the unknown coding {shown(coding)}")
    required, optional = FIELDS[coding]
    given = fields.keys() - {"name", "dtype", "shape", "coding"}
    if not {*required} <= given <= {*required, *optional}:
        raise PackingError(f"{shown(entry.name)} has the fields {shown(sorted(given))}; needed: {', '.join(required)}")
    if coding == "dense":
        return payload.take(entry.dtype, entry.size).reshape(entry.shape).copy()
    if coding == "gap":
        placed = _placed([fields[field] for field in required], entry, payload)
        values = payload.take(entry.dtype, fields["kept"])
        return _filled(entry, placed, lambda numbers, places: values[numbers])
    return _decode_codes(entry, fields, payload)


Placed = Iterator[tuple[slice, np.ndarray]]  # some of the values that follow, and the places where they stand
Values = Callable[[slice, np.ndarray], np.ndarray]  # of such


def _filled(entry: Entry, placed: Placed, values: Values) -> np.ndarray:
    """Return an array of zeros but for these values."""
    flat = np.zeros(entry.size, entry.dtype)
    for numbers, places in placed:
        flat[places] = values(numbers, places)
    return flat.reshape(entry.shape)


def _placed(gap: list[Any], entry: Entry, payload: Payload) -> Placed:
    """Take [bits, symbols, kept] symbols; return where each value stands."""
    name = shown(entry.name)
    bits = whole(f"the bits of the gaps of {name}", gap[0], 1, MAXIMUM_BITS)
    count = whole(f"the number of gaps of {name}", gap[1], 0, 2**62)
    kept = whole(f"the number of values of {name}", gap[2], 0, entry.size)
    return _places(name, _numbers(payload.bits(count, bits), count, bits), 2**bits - 1, kept, entry.size)


def _places(name: str, symbols: Iterator[np.ndarray], largest: int, kept: int, size: int) -> Placed:
    """Every symbol but the largest ends with a value."""
    at = done = 0
    for some in symbols:
        puts_value = some < largest
        ends = np.cumsum(some + puts_value) + at
        places, at = ends[puts_value] - 1, int(ends[-1])
        if done + len(places) > kept or at > size:
            break
        yield slice(done, done + len(places)), places
        done += len(places)
    else:
        if done == kept:
            return
    raise PackingError(f"the gaps of {name} do not lead to {kept} places of {size}")


def _everywhere(size: int) -> Placed:
    for start in range(0, size, CHUNK):
        stop = min(start + CHUNK, size)
        yield slice(start, stop), np.arange(start, stop)


def _numbers(packed: np.ndarray, count: int, bits: int) -> Iterator[np.ndarray]:
    """Yield `count` numbers of `bits` bits each, some at a time: a chunk ends with a whole byte."""
    for start in range(0, count, CHUNK):
        some = min(CHUNK, count - start)
        part = packed[start * bits // 8 :][: (some * bits + 7) // 8]
        unpacked_bits = np.unpackbits(part, count=some * bits, bitorder="little").reshape(some, bits)
        yield unpacked_bits @ (1 << np.arange(bits))


def _decode_codes(entry: Entry, fields: Mapping[str, Any], payload: Payload) -> np.ndarray:
    name, bits = shown(entry.name), whole(f"the bits of {shown(entry.name)}", fields["bits"], 1, CODE_BITS)
    placed, count = _everywhere(entry.size), entry.size
    if "gap" in fields:
        gap = fields["gap"]
        if not isinstance(gap, list) or len(gap) != 3:
            raise PackingError(f"the gaps of {name} are {shown(gap)}; allowed: bits, symbols, kept")
        placed, count = _placed(gap, entry, payload), gap[2]
    codes = np.empty(count, np.uint8)
    for start, some in enumerate(_numbers(payload.bits(count, bits), count, bits)):
        codes[start * CHUNK :][: len(some)] = some
    values = _from_table if fields["coding"] == "codebook" else _from_steps
    return _filled(entry, placed, values(entry, fields, codes, payload))


def _from_table(entry: Entry, fields: Mapping[str, Any], codes: np.ndarray, payload: Payload) -> Values:
    count = whole(f"the table of {shown(entry.name)}", fields["entries"], 0, LARGEST_TABLE)
    if entry.dtype.itemsize > 8:
        raise PackingError(f"{shown(entry.name)} has a table of {entry.dtype.str}; allowed: at most 8 bytes each")
    table = payload.take(entry.dtype, count)
    if codes.size and codes.max() >= count:
        raise PackingError(
            f"{shown(entry.name)} has the code {codes.max()}; allowed: below {count}, its table's length"
        )
    return lambda numbers, places: table[codes[numbers]]


def _from_steps(entry: Entry, fields: Mapping[str, Any], codes: np.ndarray, payload: Payload) -> Values:
    name, low = shown(entry.name), whole(f"the lowest code of {shown(entry.name)}", fields["low"], -(2**15), 2**15)
    scale = finite_scales(entry, fields["scales"], payload)
    if fields.get("zero_points", True) is not True:
        raise PackingError(f"{name} has zero_points={shown(fields['zero_points'])}; allowed: true")
    zero_point = np.zeros(scale.size, np.int64)
    if "zero_points" in fields:
        zero_point = payload.take("|u1", scale.size).astype(np.int64) + low
    for_each = max(entry.size // scale.size, 1)

    def values(numbers: slice, places: np.ndarray) -> np.ndarray:
        rows = places // for_each
        steps = codes[numbers].astype(np.int64) + low - zero_point[rows]
        with np.errstate(over="ignore"):
            return scale[rows] * steps.astype(np.float32) + np.float32(0)

    return values


def finite_scales(entry: Entry, count: Any, payload: Payload) -> np.ndarray:
    """Take the scales of an array of float32: one, or one for each entry of the first dimension."""
    if entry.dtype != np.dtype("<f4"):
        raise PackingError(f"{shown(entry.name)} has scales and the type {entry.dtype.str}; allowed: <f4")
    if whole(f"the number of scales of {shown(entry.name)}", count, 1, 2**62) not in (1, *entry.shape[:1]):
        raise PackingError(
            f"{shown(entry.name)} has {count} scales; allowed: one, or one for each of {entry.shape[:1]}"
        )
    scale = payload.take("<f4", count)
    if not np.isfinite(scale).all():
        raise PackingError(f"{shown(entry.name)} has a scale that is NaN or infinite")
    return scale


# ---------------------------------------------------------------- models


def load_into(model: "nn.Module", path: Path) -> "nn.Module":
    """Return a copy of `model` with the weights of the file, and with inputs of layers rounded as the file says.

    Masks and quantizers of `model` are dropped, and what torch's own pruning and normalization hooks compute become
    ordinary weights; zeros stay zeros, and tied weights tied. Raises PackingError if names or shapes do not fit.
    """
    import torch

    from helpers import modules, quantization

    new = quantization.with_input_grids(quantization.bake(modules.materialized(model)), {})
    names, arrays = state_of(new), read(path)
    grids = {name: arrays.pop(name) for name in [*arrays] if _is_grid(name) and name not in names}
    try:
        fill(new, {name: torch.from_numpy(array) for name, array in arrays.items()})
        layers = {name.removesuffix(INPUT_GRID).rstrip("."): _grid(name, numbers) for name, numbers in grids.items()}
        return quantization.with_input_grids(new, layers)
    except ValueError as error:
        raise PackingError(f"{path}: {error}") from None


def fill(model: "nn.Module", tensors: "Mapping[str, Tensor]") -> None:
    """Copy tensors into a model, in place, under one or all of the names that each has there.

    The model's modules see their own version, as in a file of `torch.save`: one that migrates what an older version
    wrote leaves the numbers alone. Raises PackingError for a name or a shape that does not fit.
    """
    import torch

    first, state = first_of(state_of(model)), model.state_dict()
    given: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        known = given.setdefault(first.get(name, name), tensor)
        if known is not tensor and not (known.dtype == tensor.dtype and torch.equal(known, tensor)):
            raise PackingError(f"the names of {first[name]!r} hold different numbers; in the model they are one tensor")
    expected = {name: tuple(state[name].shape) for name in dict.fromkeys(first.values())}
    found = {name: tuple(tensor.shape) for name, tensor in given.items()}
    if found != expected:
        name = next(name for name in {**expected, **found} if found.get(name) != expected.get(name))
        raise PackingError(f"{name!r} has shape {found.get(name)} in the file and {expected.get(name)} in the model")
    for name, old in state.items():
        if not torch.can_cast(given[first[name]].dtype, old.dtype):
            raise PackingError(f"{name!r} is {given[first[name]].dtype} in the file and {old.dtype} in the model")
    for name in state:
        state[name] = given[first[name]]
    model.load_state_dict(state)


def _is_grid(name: str) -> bool:
    return name.split(".")[-1] == INPUT_GRID


def _grid(name: str, numbers: np.ndarray) -> "quantization.Grid":
    import torch

    from helpers import quantization

    known = numbers.dtype == np.dtype("<f4") and numbers.shape == (4,) and np.isfinite(numbers).all()
    scale, zero_point, low, high = numbers.tolist() if known else (0.0,) * 4
    if not (scale > 0 and low <= zero_point <= high < low + 2**MAXIMUM_BITS and (numbers[1:] % 1 == 0).all()):
        raise PackingError(f"{name!r} is no grid; allowed: a scale above 0, a zero point and the codes it is between")
    return quantization.Grid(torch.tensor(scale), torch.tensor(int(zero_point), dtype=torch.int32), int(low), int(high))


def verify(path: Path, model: "nn.Module", inputs: "Tensor") -> None:
    """Raise PackingError unless the weights in the file give exactly `model`'s logits for `inputs`."""
    import torch

    from helpers.training import predict

    expected, found = predict(model, inputs), predict(load_into(model, path), inputs)
    if not torch.equal(expected, found):
        difference = (expected - found).abs().max()
        raise PackingError(f"{path}: the logits differ from the model's, by up to {difference:.3g}")
