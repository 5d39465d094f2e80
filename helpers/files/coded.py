"""Entropy coding: a compressed model at the length that its own statistics allow, in a file that `files.read` reads.

A *range coder* (Martin 1979, "Range encoding: an algorithm for removing redundancy from a digitised message") turns
decisions of probability p into -log2 p bits each, with a few bytes over for the whole file. `constriction` (Bamler
2022, "Understanding entropy coding with asymmetric numeral systems") computes it. What is left to us are the
probabilities, and they must be the same wherever the file is read. So each is a whole number over 2^16, found from
counts by whole numbers alone; floating point, which `constriction` takes, holds such a number exactly.

All numbers are little-endian:

    offset      bytes   content
    0           6       magic: b"MCPACK"
    6           2       version, 2 or 4 for this kind of file
    8           4       checksum: the first 4 bytes of the SHA-256 of everything else, in order
    12          …       header: JSON in UTF-8, a raw deflate stream (it knows its end) with the dictionary `WORDS`,
                        in version 4 `NAMED_WORDS`
    …           …       plain numbers of all arrays, in the order of the header
    …           …       what the range coder made of all arrays, in the same order: words of four bytes

The header is a list: how many bytes the plain numbers take, in version 4 the architecture of the network (a text, see
`packing`), then a list for each array: its name, its type, its shape, whether positions are coded (1 or 0), the kind of
its values, and what that kind needs:

    "raw"     the values are plain numbers
    "grid"    value = scale · step; then the lowest step, how many steps there are from there, zero among them, at most
              2,048, and how many scales: one, or one for each entry of the first dimension. They are finite plain
              numbers (<f4)
    "table"   then how many values there are, at most 256; they are plain numbers of at most 8 bytes each, rising as
              unsigned integers

*Positions.* The array is seen as a matrix: a row for each entry of the first dimension, or a single row for an array of
one dimension or none. First comes a decision for each column, then, unless there is one row only, for each row: is
anything in it not zero? Then, row by row, for each place where both say yes: is it not zero? So what belongs to a unit
that was removed costs next to nothing. The context of a decision is what may tell something about it:

- a column's: whether the unit is alive that it reads from. The units are the rows of an array before, if the number of
  columns is a multiple of theirs: the most rows, of these the latest array;
- a row's: the same entry of the latest array of a single row that has the same length (its bias, usually);
- a place's: of n places of its row before it, k of them not zero, the length in bits of (n + 4) // (k + 1); and how
  many of the last four were not zero: 0, 1 or more.

*Values.* Steps count from the lowest, table entries from the first; where positions are coded, only those that are not
zero have a value, and the step 0 has no number. Up to 65,536 values of an array are coded bit by bit, the highest
first, each in the context of those before it. More of them come with their frequencies, one for each number: plain
numbers (<u2), less 1, that add up to 2^16.

*Counts.* Each array has its contexts, and each context counts its decisions. After n of them, k with the answer 1, the
probability of a 1 is (5 k + 2) / (5 n + 4), rounded down to a whole number over 2^16, but at least 1: the estimator of
Krichevsky and Trofimov 1981, with 0.4 in place of their 0.5. Nothing of it has to be stored.

A reader believes nothing: names, types, shapes and sizes are as `payload` has them, plain numbers end where the last
array does, and each decision or value has to be paid for. Where b bits are coded there are 2 b + 2^14 to spend; a
decision takes its -log2 p and 1/32 more, a value with frequencies 1/1,024 more. So nothing short takes long to read.

Zero means that all bits are zero, so -0.0 and every NaN come back as they were. Reading needs NumPy, `constriction` and
the standard library.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from helpers.core.paths import sha256, write_atomically
from helpers.files import model_arrays, stating
from helpers.files.arrays import Integers, Packed, Writable, has_bits, spread
from helpers.files.coded_reading import (
    ADAPTIVE,
    LARGEST_TABLE,
    NAMED_START,
    NAMED_WORDS,
    START,
    WORDS,
    as_matrix,
    checksum_of_body,
    decode,
)
from helpers.files.range_coder import SUM, Writer

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST_POWER = 127  # of two, that float32 has


def write_coded(tensors: "Mapping[str, np.ndarray | Tensor | Integers] | nn.Module", path: Path) -> Packed:
    """Write a model, or arrays by name, with positions and values entropy-coded; `files.read` reads the file.

    Of a model, the weights that carry a grid (`quantization.quantize_model`) are stored as whole numbers; masked
    weights are zeros. Every other array is stored as what takes least: steps of a power of two, if all its values are
    such (biases rounded to multiples of 1/32, say), a table of at most 256 values (`quantization.share_weights`), or
    its values as they are. Zeros are left out, and all comes back bit for bit.

    The file appears only after its content was decoded again and compared. Raises PackingError if they differ, or if
    more than half a million values say next to nothing (zeros alone) and would take a reader too long; ValueError for
    a type that NumPy does not have (bfloat16), or that is not a number.
    """
    arrays = model_arrays.arrays_of(tensors, quantized=True)
    content, _ = _encode(arrays, stating.architecture_of(tensors, arrays))
    model_arrays.require_identical(arrays, decode(content))
    write_atomically(Path(path), content)
    return Packed(Path(path), len(content), sha256(content))


def anatomy(tensors: "Mapping[str, np.ndarray | Tensor | Integers] | nn.Module") -> dict[str, dict[str, float]]:
    """Return where the bytes of `write_coded`'s file go: {array: {"positions": …, "values": …, "plain": …}}.

    Positions and values are sums of -log2 p, in bytes. "header", the last entry, has {"plain": …}: what belongs to no
    array, that is the header, what stands before it, and what the range coder needs to end.
    """
    arrays = model_arrays.arrays_of(tensors, quantized=True)
    content, costs = _encode(arrays, stating.architecture_of(tensors, arrays))
    return costs | {"header": {"plain": len(content) - sum(sum(parts.values()) for parts in costs.values())}}


def _encode(arrays: Writable, architecture: str | None) -> tuple[bytes, dict[str, dict[str, float]]]:
    """Return the content of the file, and the bytes of each array's parts."""
    coder, plain = Writer(), b""
    entries: list[list[Any]] = []
    costs: dict[str, dict[str, float]] = {}
    for name, array in arrays.items():
        plan = _plan(array)
        if plan.has_positions:
            coder.positions(plan.kept.shape, plan.kept)
        costs[name] = {"positions": coder.spent()}
        frequencies = _frequencies(plan.symbols, plan.alphabet)
        coder.values(plan.symbols.size, plan.alphabet, frequencies, plan.symbols)
        stored = plan.plain + (b"" if frequencies is None else (frequencies - 1).astype("<u2").tobytes())
        costs[name] |= {"values": coder.spent(), "plain": len(stored)}
        entries.append([name, plan.dtype.str, list(plan.shape), int(plan.has_positions), *plan.kind])
        plain += stored
    start, words, stated = (START, WORDS, []) if architecture is None else (NAMED_START, NAMED_WORDS, [architecture])
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=words)
    text = json.dumps([len(plain), *stated, *entries], separators=(",", ":"), ensure_ascii=False)
    body = packer.compress(text.encode()) + packer.flush() + plain + coder.words()
    return start + checksum_of_body(start, body) + body, costs


class _Plan(NamedTuple):
    """How an array is stored: the last entries of its line in the header, and what is coded."""

    dtype: np.dtype
    shape: tuple[int, ...]
    kept: np.ndarray  # (rows, columns), boolean
    has_positions: bool
    kind: list[Any]
    symbols: np.ndarray  # from 0 to alphabet - 1, of what is kept, in the order of rows
    alphabet: int
    plain: bytes


def _plan(array: np.ndarray | Integers) -> _Plan:
    if isinstance(array, Integers):
        steps = array.codes.astype(np.int64) - spread(array.zero_point, array.codes.ndim).astype(np.int64)
        return _on_grid(steps, array.scale.astype("<f4"))
    flat = array.reshape(-1)
    kept, has_positions = _kept(has_bits(flat))
    values = flat[kept]
    plans = [_Plan(array.dtype, array.shape, kept, has_positions, ["raw"], np.zeros(0, int), 1, values.tobytes())]
    if 0 < array.itemsize <= 8:
        bits, symbols = np.unique(values.view(f"<u{array.itemsize}"), return_inverse=True)
        if 0 < len(bits) <= LARGEST_TABLE:
            kind = ["table", len(bits)]
            plans.append(_Plan(array.dtype, array.shape, kept, has_positions, kind, symbols, len(bits), bits.tobytes()))
    if (scale := _power_of_two(flat)) is not None:
        plans.append(_on_grid(np.rint(array / scale).astype(np.int64), scale))
    plans = [plan._replace(kept=plan.kept.reshape(as_matrix(array.shape))) for plan in plans]
    return min(plans, key=lambda plan: len(plan.plain) + _entropy(plan.symbols) * plan.symbols.size / 8)


def _kept(nonzero: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return what has a value, and whether positions are coded: where that is cheap, or leaves out half at least."""
    zeros = nonzero.size - np.count_nonzero(nonzero)
    if zeros and (nonzero.size <= ADAPTIVE or 2 * zeros >= nonzero.size):
        return nonzero, True
    return np.ones_like(nonzero), False


def _on_grid(steps: np.ndarray, scale: np.ndarray) -> _Plan:
    flat = steps.reshape(-1)
    kept, has_positions = _kept(flat != 0)
    values = flat[kept]
    lowest, highest = int(min(values.min(initial=0), 0)), int(max(values.max(initial=0), 0))
    symbols = values - lowest - (has_positions & (values > 0))
    kind = ["grid", lowest, highest - lowest + 1, scale.size]
    alphabet = highest - lowest + 1 - has_positions
    kept = kept.reshape(as_matrix(steps.shape))
    return _Plan(np.dtype("<f4"), steps.shape, kept, has_positions, kind, symbols, alphabet, scale.tobytes())


def _power_of_two(flat: np.ndarray) -> np.ndarray | None:
    """Return the largest power of two of which all these float32 values are multiples, none if it takes many steps."""
    if flat.dtype != np.dtype("<f4") or not np.isfinite(flat).all() or not flat.any():
        return None
    _, exponent = np.frexp(np.abs(flat).max())
    for power in range(min(int(exponent), LARGEST_POWER), int(exponent) - 9, -1):
        steps = np.rint(np.ldexp(flat.astype(np.float64), -power))
        scale = np.ldexp(np.float32(1), power).astype("<f4")
        with np.errstate(over="ignore"):
            values = scale * steps.astype("<f4") + np.float32(0)
        if scale > 0 and values.tobytes() == flat.tobytes():
            return scale
    return None


def _entropy(symbols: np.ndarray) -> float:
    """Return the bits that a symbol takes on average, by Shannon's formula."""
    _, counts = np.unique(symbols, return_counts=True)
    shares = counts / max(symbols.size, 1)
    return float(-(shares * np.log2(shares)).sum())


def _frequencies(symbols: np.ndarray, alphabet: int) -> np.ndarray | None:
    """Return frequencies of at least 1 that add up to SUM, none for so few symbols that they are learned on the way."""
    if symbols.size <= ADAPTIVE or alphabet < 2:
        return None
    shares = np.bincount(symbols, minlength=alphabet) * (SUM - alphabet) // symbols.size + 1
    shares[shares.argmax()] += SUM - shares.sum()
    return shares
