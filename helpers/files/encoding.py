"""Arrays to bytes, each coding of a packed file."""

import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from helpers.core import vocabulary
from helpers.files.arrays import LARGEST_TABLE, LZMA, MAXIMUM_BITS, Data, Integers, Writable, chunks, has_bits, spread
from helpers.files.payload import MAGIC, NAMED, PREFIX, VERSION, checksum_of


def encode(arrays: Writable, words: Sequence[str], *, code: Callable[[Any], Data], architecture: str | None) -> bytes:
    """Return a packed file's content, each array coded by `code`; ValueError as `vocabulary.lines` raises it."""
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
    version, listed = (VERSION, entries) if architecture is None else (VERSION + NAMED, [architecture, *entries])
    header = zlib.compress(json.dumps(listed, separators=(",", ":")).encode(), 9)
    checksum = checksum_of(MAGIC, version, len(header), header, *payload)
    return b"".join([PREFIX.pack(MAGIC, version, len(header), checksum), header, *payload])


def encode_dense(array: np.ndarray) -> Data:
    """Return the dense coding of an array: its field for the header, and all elements in C order."""
    return {"coding": "dense"}, array.tobytes()


def encode_sparse(array: np.ndarray) -> Data:
    """Return the smallest coding of one array that keeps its values as they are."""
    flat = array.reshape(-1)
    nonzero = has_bits(flat)
    (bits, symbols, kept), places = _encode_gaps(nonzero)
    if len(places) + kept * array.itemsize >= array.nbytes:
        return encode_dense(array)
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
    for start, part in chunks(nonzero):
        places = np.flatnonzero(part) + start
        if places.size:
            yield np.diff(places, prepend=last) - 1
            last = places[-1]


def encode_quantized(array: np.ndarray | Integers) -> Data:
    """Return the smallest coding: of `Integers` their codes, of an array a table or that of `encode_sparse`."""
    if isinstance(array, Integers):
        return _encode_integers(array)
    return min([encode_sparse(array), *_encode_codebook(array)], key=lambda coded: len(coded[1]))


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
    return _pack_bits((part.astype(np.int64) - array.low for _, part in chunks(codes)), array.bits)


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
        codes = _pack_bits((np.searchsorted(entries, part) for _, part in chunks(values)), bits)
        coding = {"coding": "codebook", "bits": bits, "entries": len(entries)} | extra
        found.append((coding, before + codes + entries.tobytes()))
    return found


def _table(flat: np.ndarray) -> np.ndarray | None:
    """Return the different values, rising; none for more than 256."""
    table = flat[:0]
    for _, part in chunks(flat):
        table = np.union1d(table, part)
        if len(table) > LARGEST_TABLE:
            return None
    return table


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
