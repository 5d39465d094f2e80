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

`write_quantized` knows two more codings. A reader that does not know them refuses the file.

    {"name": "fc1.weight", "dtype": "<f4", "shape": [500, 800], "coding": "integers",
     "bits": 4, "low": -8, "scales": 500}
    {"name": "fc1.weight", "dtype": "<f4", "shape": [500, 800], "coding": "codebook",
     "bits": 2, "entries": 3, "gap": [4, 3512, 2980]}

*integers*: one code of `bits` bits for each element, in C order, filled up to a whole byte. Then `scales` scales
(<f4): one for all elements, or one for each entry of the first dimension. If the entry says
"zero_points": true, then as many zero points of one byte each; else they are -low. An element is
scale · (code - zero point), computed in float32, and never -0.0.

*codebook*: the same codes, then `entries` values of the array's type. An element is the value whose number is its code.

With "gap": [bits, symbols, kept], the symbols of *gap* stand before the codes, and only the `kept` elements
that are not zero have a code. All codes have their lowest bit first.

Where a network rounds the input of a layer "conv1", four numbers say how, as an array "conv1.input_grid": the
scale, the zero point, and the lowest and the highest code, all as `quantization.Grid` has them.

A text classifier also needs its words, in the order of their numbers. Their entry is the first:

    {"name": "", "coding": "words", "count": 10002, "bytes": 35620}

and the payload is the words, each ended by a line feed, in UTF-8, compressed by LZMA (plain, without a container).

Files of version 2 are entropy-coded: `helpers.coding` writes them and says what they hold. `read` reads both kinds.

Zero means that all bits are zero, so -0.0 and every NaN come back as they were. Reading needs NumPy and the
standard library only; PyTorch is imported where a model is involved.
"""

import hashlib
import json
import lzma
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
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
        steps = self.codes.astype(np.int32) - spread(self.zero_point, self.codes.ndim)
        values = spread(self.scale, self.codes.ndim) * steps.astype(np.float32) + np.float32(0)
        return np.asarray(values, dtype="<f4")


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
        _refuse_integers([name for name, tensor in tensors.items() if isinstance(tensor, Integers)], quantized)
        return {name: t if isinstance(t, Integers) else _array(name, t) for name, t in tensors.items()}
    from helpers import quantization

    integers = quantization.integers(tensors)
    _refuse_integers(list(integers), quantized)
    state = sorted(quantization.bake(tensors).state_dict().items())  # by name: masking changes the order
    arrays = {name: _array(name, tensor).copy() for name, tensor in state if not quantization.is_quantizer(name)}
    for array in arrays.values():
        array[array == 0] = 0  # turns -0.0 into 0.0
    grids = {
        f"{layer}.{INPUT_GRID}".lstrip("."): np.array([float(number) for number in grid], "<f4")
        for layer, grid in quantization.input_grids(tensors).items()
    }
    return {**arrays, **integers, **grids}


def _refuse_integers(names: Sequence[str], allowed: bool) -> None:
    if names and not allowed:
        raise ValueError(f"{names[0]!r} is quantized and would be stored in floating point; allowed: write_quantized")


def _array(name: str, tensor: "np.ndarray | Tensor") -> np.ndarray:
    """Return the tensor as a little-endian array in C order."""
    try:
        array = tensor if isinstance(tensor, np.ndarray) else tensor.detach().cpu().numpy()
    except TypeError as error:
        raise ValueError(f"tensors[{name!r}] has dtype {tensor.dtype}; allowed: a type that NumPy has") from error
    if array.dtype.kind not in "biufc":
        raise ValueError(f"tensors[{name!r}] has dtype {array.dtype}; allowed: numbers and booleans")
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _write(arrays: Writable, path: Path, words: Sequence[str], *, code: Callable[[Any], Data]) -> Packed:
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
        if copy.dtype != array.dtype or copy.shape != array.shape or copy.tobytes() != array.tobytes():
            raise PackingError(f"{name!r} would not come back bit for bit; nothing was written")


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
    body = header + b"".join(payload)
    checksum = _checksum(MAGIC, VERSION, len(header), body)
    return PREFIX.pack(MAGIC, VERSION, len(header), checksum) + body


def _checksum(magic: bytes, version: int, header_length: int, body: bytes) -> bytes:
    return hashlib.sha256(struct.pack("<6sHI", magic, version, header_length) + body).digest()[:8]


def _encode_dense(array: np.ndarray) -> Data:
    return {"coding": "dense"}, array.tobytes()


def _encode_sparse(array: np.ndarray) -> Data:
    """Return the smallest coding of one array that keeps its values as they are."""
    flat = array.reshape(-1)
    kept = np.flatnonzero(has_bits(flat))
    (bits, symbols, _), places = _encode_gaps(kept)
    if len(places) + kept.size * array.itemsize >= array.nbytes:
        return _encode_dense(array)
    header = {"coding": "gap", "bits": bits, "symbols": symbols, "kept": kept.size}
    return header, places + flat[kept].tobytes()


def _encode_gaps(kept: np.ndarray) -> tuple[list[int], bytes]:
    """Return where the values stand, in the width that needs least: [bits, symbols, kept], and the symbols."""
    gaps = np.diff(kept, prepend=-1) - 1
    bits = min(range(1, MAXIMUM_BITS + 1), key=lambda bits: bits * _symbol_count(gaps, bits))
    return [bits, _symbol_count(gaps, bits), kept.size], _pack_bits(_symbols(gaps, bits), bits)


def _encode_quantized(array: np.ndarray | Integers) -> Data:
    if isinstance(array, Integers):
        return _encode_integers(array)
    return min([_encode_sparse(array), *_encode_codebook(array)], key=lambda coded: len(coded[1]))


def _encode_integers(array: Integers) -> Data:
    codes, zeros = array.codes.astype(np.int64), spread(array.zero_point, array.codes.ndim).astype(np.int64)
    last = array.low + 2**array.bits - 1
    for numbers in (codes, zeros):
        if numbers.size and (numbers.min() < array.low or numbers.max() > last):
            raise ValueError(
                f"codes and zero points from {numbers.min()} to {numbers.max()}; "
                f"allowed: {array.low} to {last}, which {array.bits} bits can number"
            )
    flat, kept = (codes - array.low).reshape(-1), np.flatnonzero(codes != zeros)
    coding: dict[str, Any] = {"coding": "integers", "bits": array.bits, "low": array.low, "scales": array.scale.size}
    data = _pack_bits(flat, array.bits)
    gap, places = _encode_gaps(kept)
    sparse = places + _pack_bits(flat[kept], array.bits)
    if len(sparse) < len(data):
        coding, data = coding | {"gap": gap}, sparse
    data += array.scale.astype("<f4").tobytes()
    if not array.zero_point.any():
        return coding, data
    return coding | {"zero_points": True}, data + (array.zero_point - array.low).astype(np.uint8).tobytes()


def _encode_codebook(array: np.ndarray) -> list[Data]:
    """Return the two codings by a table, with all elements and without zeros; none for more than 256 values."""
    if array.size == 0 or array.itemsize > 8:
        return []
    flat, kept = array.reshape(-1), np.flatnonzero(has_bits(array.reshape(-1)))
    gap, places = _encode_gaps(kept)
    found = []
    for values, extra, before in ((flat, {}, b""), (flat[kept], {"gap": gap}, places)):
        table, codes = np.unique(values.view(f"<u{array.itemsize}"), return_inverse=True)
        if len(table) > 256:
            return []
        bits = max(1, (len(table) - 1).bit_length())
        coding = {"coding": "codebook", "bits": bits, "entries": len(table)} | extra
        found.append((coding, before + _pack_bits(codes, bits) + table.tobytes()))
    return found


def has_bits(flat: np.ndarray) -> np.ndarray:
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
    """Return the arrays of a file by name; needs NumPy and, for an entropy-coded file, `constriction`.

    Raises PackingError, in one sentence, for a file that is cut off or changed, of another kind or of a
    version that this code does not know; FileNotFoundError if there is none.
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


def _parts(content: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """Return the entries of the header and the payload, after checking that nothing is cut off or changed."""
    if not content.startswith(MAGIC):
        raise PackingError("this is not a packed model: it does not begin with MCPACK")
    if len(content) < PREFIX.size:
        raise PackingError("the file is cut off; write it again")
    magic, version, header_length, checksum = PREFIX.unpack_from(content)
    if version != VERSION:
        raise PackingError(f"the file has version {version}; this code reads versions {VERSION} and {CODED_VERSION}")
    body = content[PREFIX.size :]
    if _checksum(magic, version, header_length, body) != checksum:
        raise PackingError("the checksum does not match: the file is cut off or was changed; write it again")
    return json.loads(zlib.decompress(body[:header_length])), body[header_length:]


def _decode(content: bytes) -> Arrays:
    if _is_coded(content):
        from helpers import coding

        return coding.decode(content)
    entries, payload = _parts(content)
    offset, arrays = sum(entry["bytes"] for entry in entries if entry["coding"] == "words"), {}
    for entry in entries:
        if entry["coding"] != "words":
            arrays[entry["name"]], offset = _decode_array(entry, payload, offset)
    return arrays


def _is_coded(content: bytes) -> bool:
    return content[: len(MAGIC) + 2] == MAGIC + struct.pack("<H", CODED_VERSION)


def _decode_words(content: bytes) -> list[str]:
    if _is_coded(content):
        from helpers import coding

        coding.body_of(content)  # a file that is cut off holds no words for another reason
        return []
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
    if entry["coding"] in ("integers", "codebook"):
        return _decode_codes(entry, dtype, shape, body, offset)
    if entry["coding"] != "gap":
        raise PackingError(f"{entry['name']!r} has the unknown coding {entry['coding']!r}")
    symbols, offset = _unpack_bits(body, offset, entry["symbols"], entry["bits"])
    values = np.frombuffer(body, dtype, entry["kept"], offset)
    flat = np.zeros(size, dtype)
    flat[_positions(symbols, entry["bits"])] = values
    return flat.reshape(shape), offset + values.nbytes


def _decode_codes(
    entry: Mapping[str, Any], dtype: np.dtype, shape: tuple[int, ...], body: bytes, offset: int
) -> tuple[np.ndarray, int]:
    size = int(np.prod(shape, dtype=np.int64))
    places: slice | np.ndarray = slice(None)
    count = size
    if "gap" in entry:
        width, symbols, count = entry["gap"]
        read, offset = _unpack_bits(body, offset, symbols, width)
        places = _positions(read, width)
    codes, offset = _unpack_bits(body, offset, count, entry["bits"])
    if entry["coding"] == "codebook":
        table = np.frombuffer(body, dtype, entry["entries"], offset)
        flat = np.zeros(size, dtype)
        flat[places] = table[codes]
        return flat.reshape(shape), offset + table.nbytes
    scale = np.frombuffer(body, "<f4", entry["scales"], offset)
    offset += scale.nbytes
    zero_point = np.zeros(len(scale), np.int64)
    if entry.get("zero_points"):
        zero_point = np.frombuffer(body, np.uint8, len(scale), offset).astype(np.int64) + entry["low"]
        offset += len(scale)
    flat = np.broadcast_to(spread(zero_point, len(shape)), shape).reshape(-1).copy()
    flat[places] = codes + entry["low"]
    return Integers(flat.reshape(shape), scale, zero_point, entry["low"], entry["bits"]).values(), offset


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
    """Return a copy of `model` with the weights of the file, and with inputs of layers rounded as the file says.

    Masks and quantizers of `model` are dropped; zeros stay zeros. Raises PackingError if names or shapes do not fit.
    """
    import torch

    from helpers import quantization

    new = quantization.with_input_grids(quantization.bake(model), {})
    expected = {name: tuple(tensor.shape) for name, tensor in new.state_dict().items()}
    arrays = read(path)
    grids = {name.removesuffix(INPUT_GRID).rstrip("."): arrays.pop(name) for name in [*arrays] if _is_grid(name)}
    found = {name: array.shape for name, array in arrays.items()}
    if found != expected:
        name = next(name for name in {**expected, **found} if found.get(name) != expected.get(name))
        raise PackingError(
            f"{path}: {name!r} has shape {found.get(name)} in the file and {expected.get(name)} in the model"
        )
    new.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return quantization.with_input_grids(new, {name: _grid(numbers) for name, numbers in grids.items()})


def _is_grid(name: str) -> bool:
    return name.split(".")[-1] == INPUT_GRID


def _grid(numbers: np.ndarray) -> "quantization.Grid":
    import torch

    from helpers import quantization

    scale, zero_point, low, high = torch.from_numpy(numbers)
    return quantization.Grid(scale, zero_point.to(torch.int32), int(low), int(high))


def verify(path: Path, model: "nn.Module", inputs: "Tensor") -> None:
    """Raise PackingError unless the weights in the file give exactly `model`'s logits for `inputs`."""
    import torch

    from helpers.training import predict

    expected, found = predict(model, inputs), predict(load_into(model, path), inputs)
    if not torch.equal(expected, found):
        difference = (expected - found).abs().max()
        raise PackingError(f"{path}: the logits differ from the model's, by up to {difference:.3g}")
