"""Files: bit for bit, read without torch, as small as they say, and never half a file or a wrong answer."""

import hashlib
import json
import math
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from torch import nn

from helpers import models, packing, paths, pruning, quantization, vocabulary
from helpers.data import Split

LENET_PARAMETERS = 431_080
IMAGES = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))
WRITERS = [packing.write_dense, packing.write_sparse, packing.write_quantized]


@pytest.fixture
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return models.lenet5().eval()


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


# ---------------------------------------------------------------- bit for bit

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
    assert_identical(packing.read(packed.path), tensors)


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
    assert_identical(packing.read(packed.path), {"x": array})


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 200_000), places=st.lists(st.floats(0, 1, exclude_max=True), max_size=30))
def test_gaps_of_any_length(folder, length, places):
    array = np.zeros(length, np.float32)
    array[[int(place * length) for place in places]] = 1.5
    packed = packing.write_sparse({"x": array}, folder / "gaps.pack")
    assert_identical(packing.read(packed.path), {"x": array})


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_read_can_be_written_to(folder, write):
    packed = write({"x": np.eye(9, dtype=np.float32)}, folder / "own.pack")
    array = packing.read(packed.path)["x"]
    array += 1
    assert array.flags.c_contiguous


def test_tensors_of_any_layout(folder):
    tensor = torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1).requires_grad_()
    big_endian = np.arange(4, dtype=">f4")
    packed = packing.write_dense({"t": tensor, "b": big_endian}, folder / "layout.pack")
    found = packing.read(packed.path)
    assert np.array_equal(found["t"], tensor.detach().numpy())
    assert np.array_equal(found["b"], big_endian)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("array", [torch.ones(2, dtype=torch.bfloat16), np.array(["a"]), np.array([None])])
def test_what_numpy_cannot_hold_is_refused(folder, write, array):
    with pytest.raises(ValueError, match=r"tensors\['x'\] has dtype .*; allowed"):
        write({"x": array}, folder / "refused.pack")
    assert not (folder / "refused.pack").exists()


# ---------------------------------------------------------------- the format


def read_by_the_book(path: Path) -> dict[str, list]:
    """Read a file by the text of the module's docstring, one symbol at a time; lists of bytes for values."""
    content = path.read_bytes()
    assert content[:6] == b"MCPACK"
    assert int.from_bytes(content[6:8], "little") == 1
    length = int.from_bytes(content[8:12], "little")
    assert hashlib.sha256(content[:12] + content[20:]).digest()[:8] == content[12:20]
    entries, payload, found = (
        json.loads(zlib.decompress(content[20 : 20 + length])),
        content[20 + length :],
        {},
    )
    for entry in entries:
        size, width = math.prod(entry["shape"]), np.dtype(entry["dtype"]).itemsize
        if entry["coding"] == "dense":
            found[entry["name"]] = [payload[i * width : (i + 1) * width] for i in range(size)]
            payload = payload[size * width :]
            continue
        if entry["coding"] in ("integers", "codebook"):
            found[entry["name"]], payload = read_codes_by_the_book(entry, size, payload)
            continue
        bits, kept = entry["bits"], entry["kept"]
        in_bytes = -(-entry["symbols"] * bits // 8)
        stream, payload = int.from_bytes(payload[:in_bytes], "little"), payload[in_bytes:]
        values, payload = [payload[i * width : (i + 1) * width] for i in range(kept)], payload[kept * width :]
        elements: list[bytes] = []
        for _ in range(entry["symbols"]):
            symbol, stream = stream % 2**bits, stream >> bits
            elements += [bytes(width)] * symbol
            if symbol < 2**bits - 1:
                elements.append(values.pop(0))
        found[entry["name"]] = elements + [bytes(width)] * (size - len(elements))
        assert not values
    assert not payload
    return found


def numbers_by_the_book(payload: bytes, count: int, bits: int) -> tuple[list[int], bytes]:
    """The first `count` numbers of `bits` bits each, lowest bit first, and what comes after their last byte."""
    in_bytes = -(-count * bits // 8)
    stream = int.from_bytes(payload[:in_bytes], "little")
    return [stream >> (bits * i) & (2**bits - 1) for i in range(count)], payload[in_bytes:]


def read_codes_by_the_book(entry: dict, size: int, payload: bytes) -> tuple[list[bytes], bytes]:
    """The elements of one array of few bits, as bytes, and the rest of the payload."""
    places = list(range(size))
    if "gap" in entry:
        bits, symbols, kept = entry["gap"]
        read, payload = numbers_by_the_book(payload, symbols, bits)
        places, at = [], 0
        for symbol in read:
            at += symbol
            if symbol < 2**bits - 1:
                places, at = [*places, at], at + 1
        assert len(places) == kept
    codes, payload = numbers_by_the_book(payload, len(places), entry["bits"])
    width = np.dtype(entry["dtype"]).itemsize
    elements = [bytes(width)] * size
    if entry["coding"] == "codebook":
        table = [payload[i * width : (i + 1) * width] for i in range(entry["entries"])]
        for place, code in zip(places, codes, strict=True):
            elements[place] = table[code]
        return elements, payload[entry["entries"] * width :]
    scales, payload = np.frombuffer(payload[: 4 * entry["scales"]], "<f4"), payload[4 * entry["scales"] :]
    zero_points = [-entry["low"]] * len(scales)
    if entry.get("zero_points"):
        zero_points, payload = list(payload[: len(scales)]), payload[len(scales) :]
    for place, code in zip(places, codes, strict=True):
        row = place // (size // len(scales))
        elements[place] = (scales[row] * np.float32(code - zero_points[row]) + np.float32(0)).tobytes()
    return elements, payload


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("density", [0, 0.001, 0.02, 0.1, 0.5, 1])
def test_the_docstring_describes_the_file(folder, write, density):
    random = np.random.default_rng(0)
    array = (random.random((40, 50)) < density) * random.normal(size=(40, 50))
    tensors = {"a": array.astype(np.float32), "b": array[0].astype(np.float16), "empty": np.zeros((0, 3))}
    packed = write(tensors, folder / "book.pack")
    found = read_by_the_book(packed.path)
    assert {name: b"".join(elements) for name, elements in found.items()} == {
        name: tensor.tobytes() for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 8])
@pytest.mark.parametrize("density", [0, 0.01, 0.2, 1])
def test_the_docstring_describes_codes_of_few_bits(folder, bits, density):
    random = np.random.default_rng(bits)
    low, kept = -(2 ** (bits - 1)), random.random((6, 40, 3)) < density
    codes = np.where(kept, random.integers(low, low + 2**bits, kept.shape), 0)
    scale = random.normal(size=6).astype(np.float32)
    zeros = random.integers(low, low + 2**bits, 6)
    tensors = {
        "one step": packing.Integers(codes, np.float32(0.3), np.array(0), low, bits),
        "a step each": packing.Integers(codes, scale, np.zeros(6, int), low, bits),
        "a zero point each": packing.Integers(codes, scale, zeros, low, bits),
        "unsigned": packing.Integers(codes - low, scale, zeros - low, 0, bits),
        "table": (codes * np.float32(0.1)).astype(np.float32),
        "small": (codes % 2).astype(np.int16),
    }
    packed = packing.write_quantized(tensors, folder / "codes.pack")
    found = read_by_the_book(packed.path)
    for name, tensor in tensors.items():
        expected = tensor.values() if isinstance(tensor, packing.Integers) else tensor
        assert b"".join(found[name]) == expected.tobytes(), name


def header_of(path: Path) -> tuple[list[dict], int]:
    """The header, and how many bytes stand before the payload."""
    content = path.read_bytes()
    end = 20 + int.from_bytes(content[8:12], "little")
    return json.loads(zlib.decompress(content[20:end])), end


def test_a_dense_file_holds_four_bytes_for_each_parameter_and_the_header(lenet, folder):
    packed = packing.write_dense(lenet, folder / "dense.pack")
    header, before_payload = header_of(packed.path)
    assert packed.bytes == packed.path.stat().st_size == before_payload + 4 * LENET_PARAMETERS
    assert before_payload < 400
    assert packed.sha256 == hashlib.sha256(packed.path.read_bytes()).hexdigest()
    assert [entry["name"] for entry in header] == sorted(lenet.state_dict())


@pytest.mark.parametrize(("density", "narrow", "wide"), [(0.5, 1, 1), (0.1, 3, 4), (0.01, 6, 8), (0.001, 10, 12)])
def test_the_width_of_gaps_is_the_best_one(folder, density, narrow, wide):
    """Each width's size, counted one gap at a time, is at least the chosen one's; sparser needs wider."""
    random = np.random.default_rng(0)
    array = ((random.random(50_000) < density) * 1.5).astype(np.float32)
    packed = packing.write_sparse({"x": array}, folder / "width.pack")
    (entry,), before_payload = header_of(packed.path)
    places = [-1, *map(int, np.flatnonzero(array))]
    gaps = [after - before - 1 for before, after in zip(places, places[1:], strict=False)]
    sizes = {bits: bits * sum(1 + gap // (2**bits - 1) for gap in gaps) for bits in range(1, 17)}
    assert narrow <= entry["bits"] <= wide
    assert sizes[entry["bits"]] == min(sizes.values()) == entry["bits"] * entry["symbols"]
    assert packed.bytes == before_payload + -(-min(sizes.values()) // 8) + 4 * len(gaps)


def test_a_sparse_array_is_never_larger_than_a_dense_one(folder):
    random = np.random.default_rng(0)
    for density in (1.0, 0.98, 0.96, 0.5):
        array = ((random.random(4_000) < density) * 1.0).astype(np.float32)
        sparse = packing.write_sparse({"x": array}, folder / "s.pack")
        _, before_payload = header_of(sparse.path)
        assert sparse.bytes - before_payload <= 16_000


def test_negative_zeros_of_a_mask_cost_nothing(lenet, masked, folder):
    """A mask turns a negative weight into -0.0; as a value to keep it would double the file."""
    values = pruning.weights_of(masked)["fc1.weight"]
    assert (torch.signbit(values) & (values == 0)).sum() > 100_000
    zeros = pruning.bake(lenet)
    for name, kept in pruning.masks_of(masked).items():
        zeros.get_parameter(name).data[~kept] = 0.0
    plain, from_mask = (
        packing.write_sparse(m, folder / f"{n}.pack") for n, m in [("zeros", zeros), ("masked", masked)]
    )
    assert plain.sha256 == from_mask.sha256


def test_equal_content_gives_equal_files(masked, folder):
    first, second = (packing.write_sparse(masked, folder / f"{n}.pack") for n in "ab")
    assert first.sha256 == second.sha256
    assert first.path != second.path


# ---------------------------------------------------------------- few bits


@st.composite
def integers(draw) -> packing.Integers:
    """Any codes, scales and zero points, for one step or one for each entry of the first dimension."""
    bits, shape = draw(st.integers(1, 8)), draw(arrays_of.array_shapes(min_dims=1, max_dims=4, max_side=5))
    low = draw(st.sampled_from([0, -(2 ** (bits - 1))]))
    codes = arrays_of.arrays(np.int16, shape, elements=st.integers(low, low + 2**bits - 1))
    steps = draw(st.sampled_from([(), shape[:1]]))
    scale = arrays_of.arrays(np.float32, steps, elements=st.floats(-10, 10, width=32).filter(bool))
    zero_point = draw(arrays_of.arrays(np.int16, steps, elements=st.integers(max(low, 0), low + 2**bits - 1)))
    return packing.Integers(draw(codes), draw(scale), zero_point, low, bits)


@settings(max_examples=40, deadline=None)
@given(tensors=st.dictionaries(st.text(max_size=3), integers(), max_size=3))
def test_codes_come_back_as_the_values_that_they_stand_for(folder, tensors):
    packed = packing.write_quantized(tensors, folder / "integers.pack")
    found = packing.read(packed.path)
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
        coded = packing.Integers(codes.numpy(), grid.scale.numpy(), grid.zero_point.numpy(), grid.low, bits)
        packed = packing.write_quantized({"w": coded}, folder / "torch.pack")
        expected = quantization.dequantize(codes, grid).numpy() + 0.0  # a code of the zero point is 0.0, never -0.0
        assert packing.read(packed.path)["w"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_a_code_takes_as_many_bits_as_it_says(folder, bits):
    random = np.random.default_rng(0)
    codes = random.integers(1, 2**bits, (50, 33)) if bits > 1 else random.integers(0, 2, (50, 33))
    coded = packing.Integers(codes, random.random(50).astype(np.float32), np.zeros(50, int), 0, bits)
    packed = packing.write_quantized({"x": coded}, folder / "bits.pack")
    _, before_payload = header_of(packed.path)
    assert packed.bytes == before_payload + -(-50 * 33 * bits // 8) + 4 * 50


def test_zeros_of_codes_are_left_out_where_it_pays(folder):
    random = np.random.default_rng(0)
    codes = np.where(random.random((100, 100)) < 0.02, 3, 0)
    coded = packing.Integers(codes, np.float32(0.1), np.array(0), -8, 4)
    packed = packing.write_quantized({"x": coded}, folder / "zeros.pack")
    (entry,), before_payload = header_of(packed.path)
    assert entry["gap"][2] == (codes != 0).sum()
    assert packed.bytes - before_payload < 300  # 5,000 with all codes


def test_few_values_become_a_table(folder):
    random = np.random.default_rng(0)
    values = random.normal(size=5).astype(np.float32)
    array = random.choice(values, (60, 40))
    packed = packing.write_quantized({"x": array}, folder / "table.pack")
    (entry,), before_payload = header_of(packed.path)
    assert entry["coding"] == "codebook" and (entry["bits"], entry["entries"]) == (3, 5)
    assert packed.bytes == before_payload + 60 * 40 * 3 // 8 + 4 * 5
    sparse = np.where(random.random(array.shape) < 0.05, array, np.float32(0))
    packed = packing.write_quantized({"x": sparse}, folder / "table.pack")
    (entry,), _ = header_of(packed.path)
    assert "gap" in entry and entry["entries"] == 5  # the zeros need no entry
    many = random.normal(size=(60, 40)).astype(np.float32)
    packed = packing.write_quantized({"x": many}, folder / "table.pack")
    assert header_of(packed.path)[0][0]["coding"] == "dense"


@pytest.mark.parametrize("spoil", [{"bits": 3}, {"low": -7}, {"low": 8}, {"zero_point": np.array(-9)}])
def test_codes_out_of_their_range_are_refused(folder, spoil):
    coded = packing.Integers(np.array([[-8, 7], [0, 1]]), np.float32(0.5), np.array(0), -8, 4)._replace(**spoil)
    with pytest.raises(ValueError, match="codes and zero points from .* to .*; allowed: .* bits can number"):
        packing.write_quantized({"x": coded}, folder / "range.pack")
    assert not (folder / "range.pack").exists()


@pytest.fixture(params=[{"weights": 2, "per_channel": False}, {"weights": 4, "activations": 4, "learned": True}])
def quantized(request, lenet) -> nn.Module:
    return quantization.quantize_model(lenet, calibration=Split(IMAGES, torch.arange(5)), **request.param)


def test_a_quantized_network_from_its_file_gives_the_same_logits(quantized, folder):
    packed = packing.write_quantized(quantized, folder / "quantized.pack")
    packing.verify(packed.path, quantized, IMAGES)
    torch.manual_seed(7)
    again = packing.load_into(models.lenet5(), packed.path).eval()  # knows nothing of grids but what the file says
    assert torch.equal(again(IMAGES), quantized(IMAGES))
    assert list(quantization.input_grids(again)) == list(quantization.input_grids(quantized))
    bits = quantization.weight_grids(quantized)["fc1.weight"].bits
    assert bits * 430_500 / 8 < packed.bytes < bits * 430_500 / 8 + 4 * 580 * 2 + 700
    loaded = packing.load_into(quantized, packed.path)  # quantizers of what it is loaded into give way
    assert torch.equal(loaded(IMAGES), quantized(IMAGES)) and not quantization.weight_grids(loaded)


@pytest.mark.parametrize("write", [packing.write_dense, packing.write_sparse])
def test_quantized_weights_are_never_stored_as_float(quantized, folder, write):
    with pytest.raises(ValueError, match="'conv1.weight' is quantized and would be stored in floating point; allowed"):
        write(quantized, folder / "float.pack")
    coded = packing.Integers(np.zeros((2, 2), int), np.float32(1), np.array(0), 0, 4)
    with pytest.raises(ValueError, match="'x' is quantized"):
        write({"x": coded}, folder / "float.pack")
    assert not (folder / "float.pack").exists()


def test_a_pruned_and_quantized_network_pays_for_neither_zeros_nor_bits(lenet, masked, folder):
    quantized = quantization.quantize_model(masked, weights=4, per_channel=False)
    files = [
        packing.write_sparse(masked, folder / "pruned.pack"),
        packing.write_quantized(quantization.quantize_model(lenet, weights=4), folder / "quantized.pack"),
        packing.write_quantized(quantized, folder / "both.pack"),
    ]
    packing.verify(files[2].path, quantized, IMAGES)
    assert files[2].bytes < 0.35 * min(files[0].bytes, files[1].bytes)


def test_shared_weights_are_stored_as_places_in_a_table(lenet, folder):
    tables = {name: torch.tensor([-0.03, -0.01, 0.01, 0.04]) for name in ("conv1", "conv2", "fc1", "fc2")}
    shared = quantization.share_weights(lenet, tables)
    packed = packing.write_quantized(shared, folder / "shared.pack")
    packing.verify(packed.path, shared, IMAGES)
    assert packed.bytes < 430_500 * 2 / 8 + 4 * 580 + 700


# ---------------------------------------------------------------- damage


@pytest.fixture
def small(tmp_path) -> Path:
    tensors: dict[str, np.ndarray] = {"a": np.eye(5, dtype=np.float32), "b": np.arange(3)}
    return packing.write_sparse(tensors, tmp_path / "small.pack").path


def test_any_changed_byte_is_noticed(small):
    content = small.read_bytes()
    for position in range(len(content)):
        for bit in (0, 7):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            small.write_bytes(changed)
            with pytest.raises(packing.PackingError, match="small.pack: "):
                packing.read(small)


def test_any_missing_or_added_byte_is_noticed(small):
    content = small.read_bytes()
    for changed in [content[:length] for length in range(len(content))] + [content + b"\0", b"\0" + content]:
        small.write_bytes(changed)
        with pytest.raises(packing.PackingError):
            packing.read(small)


def sealed(version: int, header: list[dict], payload: bytes = b"") -> bytes:
    """A file with a right checksum, whatever it holds."""
    packed = zlib.compress(json.dumps(header).encode())
    start = b"MCPACK" + version.to_bytes(2, "little") + len(packed).to_bytes(4, "little")
    return start + hashlib.sha256(start + packed + payload).digest()[:8] + packed + payload


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a packed model"),
        (b"PK\3\4 something else", "not a packed model"),
        (b"MCPACK", "cut off"),
        (sealed(3, []), "version 3; this code reads versions 1 and 2"),
        (
            sealed(1, [{"name": "x", "dtype": "<f4", "shape": [1], "coding": "huffman"}]),
            "unknown coding 'huffman'",
        ),
    ],
)
def test_other_files_are_named_as_what_they_are(small, content, message):
    small.write_bytes(content)
    with pytest.raises(packing.PackingError, match=message) as error:
        packing.read(small)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        packing.read(tmp_path / "none.pack")


@pytest.mark.parametrize("write", WRITERS)
def test_a_writer_that_errs_writes_nothing(small, write, monkeypatch):
    """If reading back gives anything else, the old file stays."""
    before = small.read_bytes()
    for spoiled in (
        lambda array: np.nextafter(array, np.float32(9)),
        lambda array: array.astype(np.float64),
        lambda array: array.reshape(-1),
    ):
        original = packing._decode
        monkeypatch.setattr(packing, "_decode", lambda c, s=spoiled, o=original: {"x": s(o(c)["x"])})
        with pytest.raises(packing.PackingError, match="'x' would not come back bit for bit"):
            write({"x": np.zeros((2, 2), np.float32)}, small)
        monkeypatch.setattr(packing, "_decode", original)
    assert small.read_bytes() == before
    assert list(small.parent.iterdir()) == [small]


# ---------------------------------------------------------------- models

WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "jaxtyping", "pandas", "onnx"}:
            raise ImportError(f"{name} must not be imported")
sys.meta_path.insert(0, Refuse())
import hashlib
from helpers import packing
for name, array in packing.read(sys.argv[1]).items():
    print(name, array.dtype, array.shape, hashlib.sha256(array.tobytes()).hexdigest())
"""


@pytest.mark.parametrize("write", WRITERS)
def test_a_process_without_torch_reads_the_same_bits(masked, folder, write):
    stored = quantization.quantize_model(masked, weights=4) if write is packing.write_quantized else masked
    packed = write(stored, folder / "alone.pack")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(packed.path)]
    answer = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True)
    lines = [
        f"{name} float32 {tuple(tensor.shape)} {hashlib.sha256((tensor.numpy() + 0.0).tobytes()).hexdigest()}"
        for name, tensor in sorted(quantization.bake(stored).state_dict().items())
    ]
    assert answer.stdout.splitlines() == lines


@pytest.mark.parametrize("write", WRITERS)
def test_a_model_from_its_file_gives_the_same_logits(lenet, masked, folder, write):
    for model in (lenet, masked):
        packed = write(model, folder / "model.pack")
        torch.manual_seed(7)
        new = packing.load_into(models.lenet5(), packed.path).eval()
        assert torch.equal(new(IMAGES), model(IMAGES))
        packing.verify(packed.path, model, IMAGES)


def test_buffers_and_their_types_are_kept(folder):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    model(IMAGES)
    packed = packing.write_sparse(model, folder / "bn.pack")
    new = packing.load_into(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten()), packed.path)
    assert new.state_dict()["1.num_batches_tracked"].dtype == torch.int64
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in new.state_dict().items())
    packing.verify(packed.path, model, IMAGES)


def test_loading_leaves_the_model_that_came_in_alone(masked, folder):
    packed = packing.write_sparse(masked, folder / "in.pack")
    target = pruning.mask(models.lenet5(), pruning.layer_masks(models.lenet5(), 0.5))
    before = pruning.weights_of(target)["fc1.weight"].clone()
    packing.load_into(target, packed.path)
    assert torch.equal(pruning.weights_of(target)["fc1.weight"], before)
    assert set(pruning.masks_of(target)) == {f"{name}.weight" for name in ("conv1", "conv2", "fc1", "fc2")}


def test_a_file_that_does_not_fit_the_model(masked, lenet, folder):
    packed = packing.write_sparse(masked, folder / "fit.pack")
    with pytest.raises(packing.PackingError, match=r"'fc1.weight' has shape .*500, 800.* and .*300, 784.* in the"):
        packing.load_into(models.lenet_300_100(), packed.path)
    with pytest.raises(packing.PackingError, match=r"'bias' has shape None in the file"):
        packing.load_into(nn.Linear(2, 2), packing.write_dense({"weight": torch.ones(2, 2)}, folder / "part.pack").path)


def test_verify_notices_one_changed_weight(lenet, folder):
    packed = packing.write_dense(lenet, folder / "other.pack")
    with torch.no_grad():
        lenet.fc2.bias[3] += 1e-4
    with pytest.raises(packing.PackingError, match="the logits differ from the model's, by up to"):
        packing.verify(packed.path, lenet, IMAGES)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("write", WRITERS)
@settings(deadline=None, max_examples=20)
@given(words=st.lists(st.text(alphabet=st.characters(blacklist_characters="\n", blacklist_categories=["Cs"]))))
def test_words_come_back_beside_the_arrays(tmp_path_factory, write, words):
    path = tmp_path_factory.mktemp("words") / "x.pack"
    arrays = {"x": np.float32([[0, 2.5], [0, -1]]), "y": np.arange(3)}
    write(arrays, path, words=words)
    assert packing.read_words(path) == words
    found = packing.read(path)
    assert set(found) == {"x", "y"}
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_a_file_without_words_is_as_before(tmp_path):
    first = packing.write_sparse({"x": np.zeros(9, np.float32)}, tmp_path / "a.pack")
    second = packing.write_sparse({"x": np.zeros(9, np.float32)}, tmp_path / "b.pack", words=[])
    assert first.sha256 == second.sha256 and packing.read_words(first.path) == []


def test_words_are_compressed_and_guarded(tmp_path):
    words = [f"word{i}" for i in range(2_000)]
    packed = packing.write_dense({}, tmp_path / "words.pack", words=words)
    assert packed.bytes < len("\n".join(words)) / 2
    content = bytearray(packed.path.read_bytes())
    content[-5] ^= 1
    packed.path.write_bytes(content)
    with pytest.raises(packing.PackingError, match="checksum does not match"):
        packing.read_words(packed.path)
    with pytest.raises(ValueError, match="allowed: words without line feeds"):
        packing.write_dense({}, tmp_path / "words.pack", words=["a\nb"])


def test_a_text_classifier_and_its_words_come_back(tmp_path):
    """From the file alone: the same token numbers, and the same logits, bit for bit."""
    torch.manual_seed(0)
    words = ["<unk>", "<pad>", "good", "bad", "film", "not good"]
    model = models.TextBag(len(words), dimensions=2, hidden=3).eval()
    masked = pruning.mask(model, pruning.global_masks(model, 0.5))
    texts = [["good", "film"], ["bad", "zebra", "film"], ["film", "not good"]]
    packed = packing.write_sparse(masked, tmp_path / "bag.pack", words=words)
    again = vocabulary.encode(texts, packing.read_words(packed.path))
    assert np.array_equal(again, vocabulary.encode(texts, words))
    packing.verify(packed.path, masked, torch.from_numpy(again))
