"""Arrays as a file has them, and what is wrong with a file."""

import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAXIMUM_BITS = 16
LZMA: Any = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 4, "pb": 0}]}
INPUT_GRID = "input_grid"
TYPES = (
    "|b1",
    "|i1",
    "|u1",
    *(f"<{kind}" for kind in ("i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")),
)
CODE_BITS = 8
LARGEST_TABLE = 256
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


def chunks(flat: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (start, part) for consecutive parts of a one-dimensional array, each of at most `CHUNK` elements."""
    for start in range(0, len(flat), CHUNK):
        yield start, flat[start : start + CHUNK]


def has_bits(flat: np.ndarray) -> np.ndarray:
    """Return where at least one bit is set: unlike `flat != 0` this holds for -0.0."""
    if flat.itemsize > 8:
        return np.any(flat.view("<u8").reshape(flat.size, flat.itemsize // 8) != 0, axis=1)
    return flat.view(f"<u{flat.itemsize}") != 0


def shown(value: Any) -> str:
    """Return a value's `repr`, cut to 80 characters; for one nested too deeply, words with its type."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} of many levels"
    return text if len(text) <= 80 else f"{text[:77]}..."
