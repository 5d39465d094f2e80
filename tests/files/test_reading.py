"""Files: bit for bit, read without torch, as small as they say, and never half a file or a wrong answer."""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from torch import nn

from helpers import files, nets, pruning, quantization
from helpers.core import paths, vocabulary
from helpers.files import payload, reading, writing
from tests.files.files_examples import WRITERS, entry, header_of, integers, opened, sealed


@pytest.fixture
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return nets.lenet5().eval()


@pytest.fixture
def masked(lenet) -> nn.Module:
    return pruning.mask(lenet, pruning.layer_masks(lenet, 0.95))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder for tests that hypothesis runs many times over."""
    return tmp_path_factory.mktemp("packing")


def assert_identical(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Same names in the same order, types, shapes, and every bit."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


shapes = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)


@st.composite
def any_floats(draw) -> np.ndarray:
    """Float32 arrays of any bits at all, mostly zeros, with NaNs, denormals and -0.0 thrown in."""
    bits = draw(arrays_of.arrays(np.uint32, draw(shapes), fill=st.just(0)))
    special = draw(arrays_of.arrays(np.uint32, bits.shape, elements=st.sampled_from(SPECIAL), fill=st.just(0)))
    return np.where(special > 0, special, bits).astype(np.uint32).view(np.float32)


SPECIAL = [
    0x0000_0000,
    0x8000_0000,  # -0.0
    0x0000_0001,  # the smallest denormal
    0x807F_FFFF,  # the largest negative denormal
    0x7FC0_1234,  # a quiet NaN with a payload
    0xFFA0_0001,  # a signalling one
    0x7F80_0000,  # infinity
]


@pytest.mark.parametrize("write", WRITERS)
@settings(max_examples=40, deadline=None)
@given(tensors=st.dictionaries(st.text(max_size=8), any_floats(), max_size=4))
def test_every_float_comes_back_bit_for_bit(folder, write, tensors):
    packed = write(tensors, folder / "any.pack")
    assert_identical(files.read(packed.path), tensors)


dtypes = st.one_of(
    arrays_of.boolean_dtypes(),
    arrays_of.integer_dtypes(endianness="<"),
    arrays_of.unsigned_integer_dtypes(endianness="<"),
    arrays_of.floating_dtypes(endianness="<", sizes=(16, 32, 64)),
    arrays_of.complex_number_dtypes(endianness="<", sizes=(64, 128)),
)


@pytest.mark.parametrize("write", WRITERS)
@settings(max_examples=40, deadline=None)
@given(array=dtypes.flatmap(lambda dtype: arrays_of.arrays(dtype, shapes)))
def test_every_type_comes_back_bit_for_bit(folder, write, array):
    packed = write({"x": array}, folder / "type.pack")
    assert_identical(files.read(packed.path), {"x": array})


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 200_000), places=st.lists(st.floats(0, 1, exclude_max=True), max_size=30))
def test_gaps_of_any_length(folder, length, places):
    array = np.zeros(length, np.float32)
    array[[int(place * length) for place in places]] = 1.5
    packed = files.write_sparse({"x": array}, folder / "gaps.pack")
    assert_identical(files.read(packed.path), {"x": array})


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_read_can_be_written_to(folder, write):
    packed = write({"x": np.eye(9, dtype=np.float32)}, folder / "own.pack")
    array = files.read(packed.path)["x"]
    array += 1
    assert array.flags.c_contiguous


def test_tensors_of_any_layout(folder):
    tensor = torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1).requires_grad_()
    big_endian = np.arange(4, dtype=">f4")
    packed = files.write_dense({"t": tensor, "b": big_endian}, folder / "layout.pack")
    found = files.read(packed.path)
    assert np.array_equal(found["t"], tensor.detach().numpy())
    assert np.array_equal(found["b"], big_endian)


@pytest.mark.parametrize("write", [*WRITERS, files.write_coded])
def test_other_arguments_are_named(folder, write):
    for name in (3, None, "\ud800"):
        with pytest.raises(ValueError, match=r"name in tensors=.*; allowed: text"):
            write({name: np.ones(1)}, folder / "refused.pack")
    with pytest.raises(ValueError, match=r"tensors=\[1\]; allowed: arrays by name, or an nn.Module"):
        write([1], folder / "refused.pack")
    if write is not files.write_coded:
        with pytest.raises(ValueError, match="word=3; allowed: text"):
            write({"x": np.ones(1)}, folder / "refused.pack", words=[3])
    conjugated = torch.tensor([1 + 2j]).conj()
    assert files.read(write({"x": conjugated}, folder / "conjugated.pack").path)["x"][0] == 1 - 2j
    assert not (folder / "refused.pack").exists()


@settings(max_examples=40, deadline=None)
@given(tensors=st.dictionaries(st.text(max_size=3), integers(), max_size=3))
def test_codes_come_back_as_the_values_that_they_stand_for(folder, tensors):
    packed = files.write_quantized(tensors, folder / "integers.pack")
    found = files.read(packed.path)
    assert list(found) == list(tensors)
    for name, array in tensors.items():
        scale, zero = (np.broadcast_to(part.reshape(-1, *[1] * (array.codes.ndim - 1)), array.codes.shape)
                       for part in (array.scale, array.zero_point))  # fmt: skip
        expected = scale * (array.codes.astype(np.float32) - zero.astype(np.float32))
        assert found[name].dtype == np.float32 and np.array_equal(found[name], expected)


def test_the_values_are_torchs(folder):
    """Bit for bit what `dequantize` gives, so that a network from the file computes with the same numbers."""
    weight = torch.randn(30, 7, generator=torch.Generator().manual_seed(2))
    for bits, symmetric in [(2, True), (4, False), (8, True), (8, False)]:
        grid = quantization.find_grid(weight, bits, symmetric=symmetric, per_channel=True)
        codes = quantization.quantize(weight, grid)
        coded = files.Integers(codes.numpy(), grid.scale.numpy(), grid.zero_point.numpy(), grid.low, bits)
        packed = files.write_quantized({"w": coded}, folder / "torch.pack")
        expected = quantization.dequantize(codes, grid).numpy() + 0.0  # a code of the zero point is 0.0, never -0.0
        assert files.read(packed.path)["w"].tobytes() == expected.tobytes()


@pytest.fixture
def small(tmp_path) -> Path:
    tensors: dict[str, np.ndarray] = {"a": np.eye(5, dtype=np.float32), "b": np.arange(3)}
    return files.write_sparse(tensors, tmp_path / "small.pack").path


def test_any_changed_byte_is_noticed(small):
    content = small.read_bytes()
    for position in range(len(content)):
        for bit in (0, 7):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            small.write_bytes(changed)
            with pytest.raises(files.PackingError, match="small.pack: "):
                files.read(small)


def test_any_missing_or_added_byte_is_noticed(small):
    content = small.read_bytes()
    for changed in [content[:length] for length in range(len(content))] + [content + b"\0", b"\0" + content]:
        small.write_bytes(changed)
        with pytest.raises(files.PackingError):
            files.read(small)


SIXTEEN = bytes(16)
GAP = entry(shape=[9], coding="gap", bits=2, symbols=2, kept=1)
STEPS = entry(shape=[4], coding="integers", bits=2, low=-2, scales=1)
TABLE = entry(shape=[4], coding="codebook", bits=2, entries=3)
ONE = np.float32(1).tobytes()


@pytest.mark.parametrize(
    ("header", "body", "said"),
    [
        ({}, b"", "the header is no list"),
        ([3], b"", "no list of entries, and nothing else"),
        ([entry(name=3)], SIXTEEN, "an array is named 3; allowed: text"),
        ([entry(), entry()], 2 * SIXTEEN, "two arrays have the same name"),
        ([entry(dtype="|O")], SIXTEEN, r"'x' is of the type '\|O'; allowed: "),
        ([entry(dtype=[])], SIXTEEN, r"'x' is of the type \[\]; allowed: "),
        ([entry(shape=4)], SIXTEEN, "'x' has the shape 4; allowed: at most 32 dimensions"),
        ([entry(shape=[1] * 33)], SIXTEEN, "allowed: at most 32 dimensions"),
        ([entry(shape=[-1])], SIXTEEN, "a side of 'x' is -1; allowed: a whole number from 0"),
        ([entry(shape=[4.0])], SIXTEEN, "a side of 'x' is 4.0; allowed: a whole number"),
        ([entry(shape=[True])], SIXTEEN, "a side of 'x' is True; allowed: a whole number"),
        ([entry(shape=[2**33, 2**33])], SIXTEEN, r"would have more than 33,\d*,\d* elements, too many for a file of"),
        ([entry(shape=[0, 2**60])], b"", r"would have more than 33,\d*,\d* elements"),
        ([entry(shape=[5])], SIXTEEN, "the header asks for more numbers than the file holds"),
        ([entry(shape=[3])], SIXTEEN, "the file holds more numbers than the header asks for"),
        ([entry(dtype="|b1")], b"\0\1\2\1", "a boolean is neither 0 nor 1"),
        ([entry(more=1)], SIXTEEN, r"'x' has the fields \['more'\]; needed: "),
        ([entry(name="x" * 200, coding="no")], SIXTEEN, r"'x{76}\.\.\. has the unknown coding 'no'"),
        (
            [{k: v for k, v in GAP.items() if k != "kept"}],
            b"\3" + ONE,
            r"fields \['bits', 'symbols'\]; needed: bits, s",
        ),
        ([GAP | {"bits": 0}], b"", "the bits of the gaps of 'x' is 0; allowed: a whole number from 1 to 16"),
        ([GAP | {"bits": 17}], b"", "is 17; allowed: a whole number from 1 to 16"),
        ([GAP | {"kept": 10}], b"\3" + ONE, "the number of values of 'x' is 10; allowed: a whole number from 0 to 9"),
        ([GAP | {"symbols": -1}], b"\3" + ONE, "the number of gaps of 'x' is -1"),
        ([GAP | {"symbols": 2**40}], b"\3" + ONE, "asks for more numbers than the file holds"),
        ([GAP | {"kept": 0}], b"\0", "the gaps of 'x' do not lead to 0 places of 9"),
        ([GAP | {"kept": 2}], b"\3" + 2 * ONE, "the gaps of 'x' do not lead to 2 places of 9"),
        ([GAP | {"shape": [3]}], b"\3" + ONE, "the gaps of 'x' do not lead to 1 places of 3"),
        ([GAP | {"symbols": 4, "kept": 0}], b"\xff", "the gaps of 'x' do not lead to 0 places of 9"),
        ([STEPS | {"bits": 9}], SIXTEEN, "the bits of 'x' is 9; allowed: a whole number from 1 to 8"),
        ([STEPS | {"low": 10**6}], b"\0" + ONE, "the lowest code of 'x' is 1000000; allowed"),
        ([STEPS | {"scales": 0}], b"\0", "the number of scales of 'x' is 0"),
        ([STEPS | {"scales": 2}], b"\0" + 2 * ONE, r"'x' has 2 scales; allowed: one, or one for each of \(4,\)"),
        ([STEPS | {"dtype": "<f8"}], b"\0" + ONE, "'x' has scales and the type <f8; allowed: <f4"),
        ([STEPS], b"\0" + np.float32(np.inf).tobytes(), "'x' has a scale that is NaN or infinite"),
        ([STEPS | {"zero_points": 1}], b"\0" + ONE + b"\0", "'x' has zero_points=1; allowed: true"),
        ([STEPS | {"gap": [1, 2]}], b"\0", r"the gaps of 'x' are \[1, 2\]; allowed: bits, symbols, kept"),
        ([STEPS | {"gap": 3}], b"\0", "the gaps of 'x' are 3; allowed"),
        ([TABLE], b"\xff" + 3 * ONE, "'x' has the code 3; allowed: below 3, its table's length"),
        ([TABLE | {"entries": 0}], b"\0", "'x' has the code 0; allowed: below 0"),
        (
            [TABLE | {"entries": 257}],
            b"\0" + 257 * ONE,
            "the table of 'x' is 257; allowed: a whole number from 0 to 256",
        ),
        ([TABLE | {"dtype": "<c16"}], b"\0" + bytes(48), "'x' has a table of <c16; allowed: at most 8 bytes each"),
        ([entry(name=str(i), shape=[0]) for i in range(2**14 + 1)], b"", "the number of arrays is 16385; allowed: a w"),
        ([entry(), {"name": "", "coding": "words", "count": 0, "bytes": 0}], SIXTEEN, "'' is of the type None"),
        (
            [{"name": "", "coding": "words", "count": 1}],
            b"",
            "the words has other fields than name, coding, count and b",
        ),
        ([{"name": "", "coding": "words", "count": -1, "bytes": 0}], b"", "the number of words is -1"),
        ([{"name": "", "coding": "words", "count": 1, "bytes": 3}], b"", "asks for more numbers than the file holds"),
        ([{"name": "", "coding": "words", "count": 1, "bytes": -3}], b"abc", "the length of the words is -3"),
    ],
)
def test_what_does_not_fit_together_is_named(small, header, body, said):
    small.write_bytes(sealed(1, header, body))
    with pytest.raises(files.PackingError, match=f"small.pack: .*{said}"):
        files.read(small)


def sealed_bytes(packed: bytes, length: int | None = None) -> bytes:
    length = len(packed) if length is None else length
    start = b"MCPACK\1\0" + length.to_bytes(4, "little")
    return start + hashlib.sha256(start + packed).digest()[:8] + packed


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (sealed_bytes(b"", 4), "the header's length is 4; allowed: a whole number from 0 to 0"),
        (sealed_bytes(b"abc"), "the header cannot be decompressed"),
        (sealed_bytes(zlib.compress(b"[]")[:-1]), "the header is cut off"),
        (sealed_bytes(zlib.compress(b"[]") + b"x"), "no list of entries, and nothing else"),
        (sealed_bytes(zlib.compress(b"[" + b" " * 2**22 + b"]")), "the header would take more than 4,194,304 bytes"),
        (sealed_bytes(zlib.compress(b"[" * 100_000)), "the header is no JSON in UTF-8"),
        (sealed_bytes(zlib.compress(b"[" + b"9" * 5_000 + b"]")), "the header is no JSON in UTF-8"),
        (sealed_bytes(zlib.compress("[]".encode("utf-16"))), "the header is no JSON in UTF-8"),
        (sealed_bytes(zlib.compress(b"nothing")), "the header is no JSON in UTF-8"),
    ],
)
def test_a_header_that_is_none_is_named(small, content, said):
    small.write_bytes(content)
    for read in (files.read, files.read_words):
        with pytest.raises(files.PackingError, match=f"small.pack: .*{said}"):
            read(small)


def test_the_largest_header_and_the_largest_arrays_are_read(small):
    text = json.dumps([entry()]).encode()
    packed = zlib.compress(text.rjust(2**22))
    start = b"MCPACK\1\0" + len(packed).to_bytes(4, "little")
    small.write_bytes(start + hashlib.sha256(start + packed + SIXTEEN).digest()[:8] + packed + SIXTEEN)
    assert list(files.read(small)) == ["x"]
    most = 2**25 + 256 * 100
    (known,) = payload.entries([("x", "<f4", [2, most // 2])], 100)
    assert known.size == most and known.shape == (2, most // 2)
    with pytest.raises(files.PackingError, match=f"would have more than {most:,} elements, too many for a file of 100"):
        payload.entries([("x", "<f4", [most]), ("y", "|u1", [])], 100)
    assert len(payload.entries([(str(i), "<f4", [1]) for i in range(2**14)], 0)) == 2**14
    assert payload.entries([("x", "<f4", [1] * 32)], 0)[0].size == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a packed model"),
        (b"PK\3\4 something else", "not a packed model"),
        (b"MCPACK", "cut off"),
        (sealed(5, []), "version 5; this code reads versions 1 to 4"),
        (
            sealed(1, [{"name": "x", "dtype": "<f4", "shape": [1], "coding": "huffman"}]),
            "unknown coding 'huffman'",
        ),
    ],
)
def test_other_files_are_named_as_what_they_are(small, content, message):
    small.write_bytes(content)
    with pytest.raises(files.PackingError, match=message) as error:
        files.read(small)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.read(tmp_path / "none.pack")


@pytest.mark.parametrize("write", WRITERS)
def test_a_writer_that_errs_writes_nothing(small, write, monkeypatch):
    """If reading back gives anything else, the old file stays."""
    before = small.read_bytes()
    for spoiled in (
        lambda array: np.nextafter(array, np.float32(9)),
        lambda array: array.astype(np.float64),
        lambda array: array.reshape(-1),
    ):
        original = reading.decode
        monkeypatch.setattr(writing, "decode", lambda c, s=spoiled, o=original: {"x": s(o(c)["x"])})
        with pytest.raises(files.PackingError, match="'x' would not come back bit for bit"):
            write({"x": np.zeros((2, 2), np.float32)}, small)
        monkeypatch.setattr(writing, "decode", original)
    assert small.read_bytes() == before
    assert list(small.parent.iterdir()) == [small]


@pytest.mark.parametrize("write", WRITERS)
@settings(deadline=None, max_examples=20)
@given(words=st.lists(st.text(alphabet=st.characters(blacklist_characters="\n", blacklist_categories=["Cs"]))))
def test_words_come_back_beside_the_arrays(tmp_path_factory, write, words):
    path = tmp_path_factory.mktemp("words") / "x.pack"
    arrays = {"x": np.float32([[0, 2.5], [0, -1]]), "y": np.arange(3)}
    write(arrays, path, words=words)
    assert files.read_words(path) == words
    found = files.read(path)
    assert set(found) == {"x", "y"}
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_a_text_classifier_and_its_words_come_back(tmp_path):
    """From the file alone: the same token numbers, and the same logits, bit for bit."""
    torch.manual_seed(0)
    words = ["<unk>", "<pad>", "good", "bad", "film", "not good"]
    model = nets.TextBag(len(words), dimensions=2, hidden=3).eval()
    masked = pruning.mask(model, pruning.global_masks(model, 0.5))
    texts = [["good", "film"], ["bad", "zebra", "film"], ["film", "not good"]]
    packed = files.write_sparse(masked, tmp_path / "bag.pack", words=words)
    again = vocabulary.encode(texts, files.read_words(packed.path))
    assert np.array_equal(again, vocabulary.encode(texts, words))
    files.verify(packed.path, masked, torch.from_numpy(again))


class Named(nn.Module):
    """A parameter and a layer by the names that `quantization` and `files` use themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.input_grid = nn.Parameter(torch.rand(2))
        self.quantize_input, self.fc = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(self.quantize_input(x) * self.input_grid)


@pytest.mark.parametrize("write", [*WRITERS, files.write_coded])
def test_names_that_the_course_uses_itself_are_a_models_own(folder, write):
    torch.manual_seed(0)
    model, inputs = Named(), torch.randn(5, 2)
    packed = write(model, folder / "names.pack")
    assert sorted(files.read(packed.path)) == sorted(model.state_dict())
    files.verify(packed.path, model, inputs)


@pytest.mark.parametrize("path", sorted(paths.MODELS.glob("*.pack")), ids=lambda path: path.name)
def test_published_files_are_written_again_to_the_byte(path, folder):
    """From what they hold, by the codings that they use; of whole numbers the writer knew the scales.

    Files whose header names their network are written from the network, older ones from their arrays.
    """
    header = json.loads(opened(path)[0])
    is_stated = isinstance(header[0], str)
    header = header[is_stated:]
    codings = {entry["coding"] if isinstance(entry, dict) else "coded" for entry in header} - {"words"}
    if codings & {"integers", "coded"}:
        assert len(files.read(path)) == len(header) - ("coded" in codings)
        return
    write = files.write_dense if codings == {"dense"} else files.write_sparse
    write = files.write_quantized if "codebook" in codings else write
    held = files.load(path) if is_stated else files.read(path)
    again = write(held, folder / "again.pack", words=files.read_words(path))
    assert opened(again.path) == opened(path)


@pytest.mark.parametrize("levels", [255, 256, 257])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_table_has_256_values_at_most(folder, levels, zeros):
    values = np.arange(0 if zeros else 1, levels + (not zeros), dtype=np.float32) * np.float32(0.37)
    array = np.tile(values, 20)
    packed = files.write_quantized({"x": array}, folder / "table.pack")
    (found,), _ = header_of(packed.path)
    assert found["coding"] == ("codebook" if levels <= 256 else "dense")
    assert found.get("entries", levels) in (levels, levels - 1)
    assert_identical(files.read(packed.path), {"x": array})
