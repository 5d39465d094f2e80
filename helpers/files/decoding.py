"""Bytes to arrays, each coding of a packed file. NumPy and the standard library only."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from helpers.files.arrays import CHUNK, CODE_BITS, LARGEST_TABLE, MAXIMUM_BITS, PackingError, shown
from helpers.files.payload import FIELDS, Entry, Payload, whole


def decode_array(entry: Entry, fields: Mapping[str, Any], payload: Payload) -> np.ndarray:
    """Return an entry's array, read from the payload's next bytes; PackingError if anything does not fit."""
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
