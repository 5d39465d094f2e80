"""Tests of `helpers.files.arrays`."""

import hashlib
import lzma
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from helpers import files
from helpers.files import writing
from helpers.files.arrays import LZMA
from tests.files.files_examples import WRITERS, header_of, opened, read_by_the_book, sealed


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder for tests that hypothesis runs many times over."""
    return tmp_path_factory.mktemp("packing")


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 8])
@pytest.mark.parametrize("density", [0, 0.01, 0.2, 1])
def test_the_docstring_describes_codes_of_few_bits(folder, bits, density):
    random = np.random.default_rng(bits)
    low, kept = -(2 ** (bits - 1)), random.random((6, 40, 3)) < density
    codes = np.where(kept, random.integers(low, low + 2**bits, kept.shape), 0)
    scale = random.normal(size=6).astype(np.float32)
    zeros = random.integers(low, low + 2**bits, 6)
    tensors = {
        "one step": files.Integers(codes, np.float32(0.3), np.array(0), low, bits),
        "a step each": files.Integers(codes, scale, np.zeros(6, int), low, bits),
        "a zero point each": files.Integers(codes, scale, zeros, low, bits),
        "unsigned": files.Integers(codes - low, scale, zeros - low, 0, bits),
        "table": (codes * np.float32(0.1)).astype(np.float32),
        "small": (codes % 2).astype(np.int16),
    }
    packed = files.write_quantized(tensors, folder / "codes.pack")
    found = read_by_the_book(packed.path)
    for name, tensor in tensors.items():
        expected = tensor.values() if isinstance(tensor, files.Integers) else tensor
        assert b"".join(found[name]) == expected.tobytes(), name


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_a_code_takes_as_many_bits_as_it_says(folder, bits):
    random = np.random.default_rng(0)
    codes = random.integers(1, 2**bits, (50, 33)) if bits > 1 else random.integers(0, 2, (50, 33))
    coded = files.Integers(codes, random.random(50).astype(np.float32), np.zeros(50, int), 0, bits)
    packed = files.write_quantized({"x": coded}, folder / "bits.pack")
    _, before_payload = header_of(packed.path)
    assert packed.bytes == before_payload + -(-50 * 33 * bits // 8) + 4 * 50


def test_zeros_of_codes_are_left_out_where_it_pays(folder):
    random = np.random.default_rng(0)
    codes = np.where(random.random((100, 100)) < 0.02, 3, 0)
    coded = files.Integers(codes, np.float32(0.1), np.array(0), -8, 4)
    packed = files.write_quantized({"x": coded}, folder / "zeros.pack")
    (entry,), before_payload = header_of(packed.path)
    assert entry["gap"][2] == (codes != 0).sum()
    assert packed.bytes - before_payload < 300  # 5,000 with all codes


@pytest.mark.parametrize("spoil", [{"bits": 3}, {"low": -7}, {"low": 8}, {"zero_point": np.array(-9)}])
def test_codes_out_of_their_range_are_refused(folder, spoil):
    coded = files.Integers(np.array([[-8, 7], [0, 1]]), np.float32(0.5), np.array(0), -8, 4)._replace(**spoil)
    with pytest.raises(ValueError, match="codes and zero points from .* to .*; allowed: .* bits can number"):
        files.write_quantized({"x": coded}, folder / "range.pack")
    assert not (folder / "range.pack").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"bits": 9}, "bits=9, .*; allowed: 1 to 8 bits"),
        ({"bits": 4.0}, "bits=4.0, .*; allowed: 1 to 8 bits"),
        ({"codes": np.zeros((2, 2))}, "codes of float64 .*; allowed: .* whole numbers"),
        ({"zero_point": np.array(0.0)}, "zero points of float64; allowed: .* whole numbers"),
        (
            {"scale": np.ones(3, "<f4"), "zero_point": np.zeros(3, int)},
            r"shape \(2, 2\), 3 scales and 3 zero points; all",
        ),
        (
            {"scale": np.ones(2, "<f4")},
            r"2 scales and 1 zero points; allowed: one scale and one zero point, or one for",
        ),
        ({"scale": np.ones(0, "<f4"), "zero_point": np.zeros(0, int)}, "0 scales and 0 zero points; allowed"),
        ({"scale": np.float32("nan")}, "a scale that is NaN or infinite; allowed: finite"),
        ({"scale": np.array([1, np.inf], "<f4"), "zero_point": np.zeros(2, int)}, "a scale that is NaN or infinite"),
    ],
)
@pytest.mark.parametrize("write", [files.write_quantized, files.write_coded])
def test_integers_that_do_not_fit_together_are_refused(tmp_path, write, spoil, said):
    coded = files.Integers(np.array([[-8, 7], [0, 1]]), np.float32(0.5), np.array(0), -8, 4)._replace(**spoil)
    with pytest.raises(ValueError, match=f"'x' has .*{said}"):
        write({"x": coded}, tmp_path / "integers.pack")
    assert not (tmp_path / "integers.pack").exists()


@pytest.fixture
def small(tmp_path) -> Path:
    tensors: dict[str, np.ndarray] = {"a": np.eye(5, dtype=np.float32), "b": np.arange(3)}
    return files.write_sparse(tensors, tmp_path / "small.pack").path


@pytest.mark.parametrize(
    ("words", "count", "said"),
    [
        (b"a\nb\n", 3, "does not hold 3 words, and nothing else"),
        (b"a\nb", 1, "does not hold 1 words, and nothing else"),
        (b"\xff\n", 1, "the list of words is no UTF-8"),
        (b"\n" * (2**24 + 1), 2**24, "the list of words would take more than 16,777,216 bytes"),
        (None, 1, "the list of words cannot be decompressed"),
        (b"", 1, "the list of words is cut off"),
        (b"more", 1, "does not hold 1 words, and nothing else"),
    ],
)
def test_words_that_do_not_fit_together_are_named(small, words, count, said):
    packed = lzma.compress(words or b"a\n", **LZMA)
    packed = {None: b"\x03" * 9, b"": packed[:-1], b"more": lzma.compress(b"a\n", **LZMA) + b"x"}.get(words, packed)
    header = [{"name": "", "coding": "words", "count": count, "bytes": len(packed)}]
    small.write_bytes(sealed(1, header, packed))
    assert files.read(small) == {}
    with pytest.raises(files.PackingError, match=f"small.pack: .*{said}"):
        files.read_words(small)


WRITTEN = {
    "write_dense": "6bec9cf5bf8db532",
    "write_sparse": "1e1eeab316befe6d",
    "write_quantized": "ebafdeea5b1bf302",
    "write_coded": "85063e61635a4521",
}


@pytest.mark.parametrize("write", [*WRITERS, files.write_coded])
def test_files_are_written_as_ever(folder, write):
    """To the byte: arrays of every coding, at every width of gaps, more of them than are handled at a time."""
    random = np.random.default_rng(7)
    tensors: dict = {}
    for number, density in enumerate([1, 0.5, 0.1, 0.01, 0.001, 0.0001, 0]):
        values = [random.integers(*ends, (300, 300)) for ends in ((-(10**6), 10**6), (1, 200), (-3, 4))]
        tensors[f"a{number}"] = ((random.random((300, 300)) < density) * values[number % 3]).astype("<f4")
        tensors[f"b{number}"] = tensors[f"a{number}"][:7, :9].astype(["<f8", "<i8", "|u1", "<c16"][number % 4])
    if write not in (files.write_dense, files.write_sparse):
        for bits in (1, 2, 4, 8):
            low = -(2 ** (bits - 1))
            codes = np.where(random.random((270, 270)) < 0.5 / bits, random.integers(low, -low, (270, 270)), 0)
            scale = random.random(270).astype("<f4") + 1
            tensors[f"i{bits}"] = files.Integers(codes, scale, np.zeros(270, int), low, bits)
            tensors[f"u{bits}"] = files.Integers(codes[:9] - low, scale[:9], random.integers(0, 2**bits, 9), 0, bits)
    header, rest = opened(write(tensors, folder / "ever.pack").path)
    assert hashlib.sha256(header + rest).hexdigest()[:16] == WRITTEN[write.__name__]


def test_few_bits_take_little_memory(folder):
    """As many as 25 bytes a weight, where a matrix of bits in eight bytes each took 80."""
    random = np.random.default_rng(0)
    count = 1_500_000
    few = files.Integers(random.integers(-8, 8, count).astype(np.int8), np.float32(1), np.array(0), -8, 4)
    for tensors in ({"x": few}, {"x": random.normal(size=count).astype("<f4")}):
        tracemalloc.start()
        files.write_quantized(tensors, folder / "memory.pack")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 21 * count, "and four for the model's own copy"


@pytest.mark.parametrize("write", WRITERS)
def test_words_that_would_not_come_back_are_never_written(small, write, monkeypatch):
    before = small.read_bytes()
    monkeypatch.setattr(writing, "decode_words", lambda content: ["<unk>", "other"])
    with pytest.raises(files.PackingError, match="the words would not come back; nothing was written"):
        write({"x": np.zeros(2)}, small, words=["<unk>", "word"])
    assert small.read_bytes() == before
