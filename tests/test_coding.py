"""Entropy coding: bit for bit, close to Shannon's bound, the same without torch, and never a wrong answer."""

import hashlib
import json
import math
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from torch import nn

from helpers import coding, models, packing, pruning, quantization
from helpers.data import Split

IMAGES = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("coding")


@pytest.fixture
def quantized() -> nn.Module:
    """A LeNet-5 with few weights and many dead neurons, three bits each, and biases that are multiples of 1/32."""
    torch.manual_seed(0)
    dense = models.lenet5().eval()
    masks = pruning.layer_masks(dense, 0.9)
    masks["fc1.weight"][30:] = False
    masks["fc2.weight"][:, 30:] = False
    masked = pruning.mask(dense, masks)
    model = quantization.quantize_model(masked, weights=3, per_channel=False)
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            bias.data = (32 * bias.data).round() / 32
    return model


def write_and_read(arrays, folder) -> tuple[int, dict[str, np.ndarray]]:
    packed = coding.write_coded(arrays, folder / "x.pack")
    content = packed.path.read_bytes()
    assert (packed.bytes, packed.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    return packed.bytes, packing.read(packed.path)


def assert_identical(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


# ---------------------------------------------------------------- bit for bit

shapes = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
dtypes = st.one_of(
    arrays_of.boolean_dtypes(),
    arrays_of.integer_dtypes(endianness="<"),
    arrays_of.unsigned_integer_dtypes(endianness="<"),
    arrays_of.floating_dtypes(endianness="<", sizes=(16, 32, 64)),
    arrays_of.complex_number_dtypes(endianness="<", sizes=(64, 128)),
)


@settings(max_examples=40, deadline=None)
@given(tensors=st.dictionaries(st.text(max_size=8), dtypes.flatmap(lambda t: arrays_of.arrays(t, shapes)), max_size=4))
def test_every_type_comes_back_bit_for_bit(folder, tensors):
    assert_identical(write_and_read(tensors, folder)[1], tensors)


@st.composite
def integers(draw) -> packing.Integers:
    """Sparse or dense codes with any zero points, one step for all or one for each entry of the first dimension."""
    bits, shape = draw(st.integers(1, 8)), draw(arrays_of.array_shapes(min_dims=1, max_dims=4, max_side=6))
    low = draw(st.sampled_from([0, -(2 ** (bits - 1))]))
    codes = st.integers(low, low + 2**bits - 1)
    steps = draw(st.sampled_from([(), shape[:1]]))
    scale = draw(arrays_of.arrays(np.float32, steps, elements=st.floats(-10, 10, width=32).filter(bool)))
    zero_point = draw(arrays_of.arrays(np.int16, steps, elements=codes))
    fill = st.just(0) if draw(st.booleans()) else None
    return packing.Integers(
        draw(arrays_of.arrays(np.int16, shape, elements=codes, fill=fill)), scale, zero_point, low, bits
    )


@settings(max_examples=40, deadline=None)
@given(tensors=st.dictionaries(st.text(max_size=3), integers(), max_size=4))
def test_codes_come_back_as_the_values_that_they_stand_for(folder, tensors):
    assert_identical(write_and_read(tensors, folder)[1], {name: array.values() for name, array in tensors.items()})


@settings(max_examples=40, deadline=None)
@given(
    array=arrays_of.arrays(np.int32, arrays_of.array_shapes(max_dims=2, max_side=40), elements=st.integers(-40, 40)),
    power=st.integers(-150, 120),
)
def test_multiples_of_a_power_of_two(folder, array, power):
    """Among them numbers too small for float32 to hold but as denormals, or at all."""
    values = np.ldexp(array.astype(np.float64), power).astype(np.float32)
    assert_identical(write_and_read({"x": values}, folder)[1], {"x": values})


@pytest.mark.parametrize("dead_rows", [0, 30, 250, 500])
def test_arrays_that_need_tables_of_frequencies(folder, dead_rows):
    """More than 65,536 values, without positions and with them, between arrays that are learned on the way."""
    codes = np.random.default_rng(0).integers(-8, 8, (500, 280))
    codes[:dead_rows] = 0
    large = packing.Integers(codes, np.float32(0.5), np.array(0), -8, 4)
    small = codes[-3:].astype(np.int8)
    found = write_and_read({"before": small, "large": large, "after": small.T.copy()}, folder)[1]
    assert_identical(found, {"before": small, "large": large.values(), "after": small.T})


# ---------------------------------------------------------------- how small


def entropy(array: np.ndarray) -> float:
    """Shannon's bound on the bytes of independent symbols of these frequencies."""
    counts = np.unique(array, return_counts=True)[1]
    return sum(-n * math.log2(n / array.size) for n in counts) / 8


@pytest.mark.parametrize("density", [0.005, 0.05, 0.3, 1])
@pytest.mark.parametrize("levels", [2, 4, 16])
def test_independent_symbols_take_what_shannon_says(folder, density, levels):
    random = np.random.default_rng(levels)
    chances = 0.5 ** np.arange(1, levels + 1)
    steps = random.choice(levels, (60, 250), p=chances / chances.sum()) + 1
    steps *= random.random(steps.shape) < density
    size, found = write_and_read({"x": steps.astype(np.float32)}, folder)
    assert np.array_equal(found["x"], steps)
    assert size <= 1.02 * entropy(steps) + 110
    assert size >= 0.97 * entropy(steps)  # else the data would not be independent, or the bound wrong


def test_frequencies_that_are_stored_cost_as_little(folder):
    random = np.random.default_rng(0)
    codes = np.clip(np.rint(random.normal(size=(500, 400)) * 2.5), -8, 7).astype(int)
    size, _ = write_and_read({"x": packing.Integers(codes, np.float32(1), np.array(0), -8, 4)}, folder)
    assert size <= 1.001 * entropy(codes) + 100


def test_removed_units_cost_next_to_nothing(folder):
    """Nine of ten units are dead in the bias, the rows and the next layer's columns; what lives is one bit a place."""
    random = np.random.default_rng(0)
    alive = np.zeros(500, bool)
    alive[:50] = True

    def cells(shape):
        return random.integers(0, 2, shape).astype(np.float32)

    first, second = cells((500, 80)) * alive[:, None], cells((10, 500)) * alive
    bias = (alive * random.integers(1, 3, 500)).astype(np.float32)
    size, _ = write_and_read({"1.bias": bias, "1.weight": first, "2.weight": second}, folder)
    assert size <= (50 + 50 * 80 + 10 * 50) / 8 * 1.03 + 70 + 100  # the map of 500 units once: 30 bytes by itself
    parts = coding.anatomy({"1.bias": bias, "1.weight": first, "2.weight": second})
    assert parts["1.bias"]["positions"] > 25
    assert parts["1.weight"]["positions"] < 50 * 80 / 8 * 1.03 + 10
    assert parts["2.weight"]["positions"] < 10 * 50 / 8 * 1.05 + 15


def test_the_header_of_eight_arrays_is_small(quantized, folder):
    size = coding.write_coded(quantized, folder / "x.pack").bytes
    parts = coding.anatomy(quantized)
    assert list(parts) == [*sorted(models.lenet5().state_dict()), "header"]
    assert parts["header"]["plain"] < 100
    assert sum(sum(part.values()) for part in parts.values()) == pytest.approx(size)
    assert all(part["plain"] == 4 for name, part in parts.items() if name != "header")  # a scale each, biases too


def test_it_is_smaller_than_the_gaps(quantized, folder):
    coded = coding.write_coded(quantized, folder / "x.pack")
    assert coded.bytes < 0.9 * packing.write_quantized(quantized, folder / "y.pack").bytes


# ---------------------------------------------------------------- the format


def probability(decisions: list[int]) -> Fraction:
    ones = sum(decisions)
    return Fraction(max(2**16 * (5 * ones + 2) // (5 * len(decisions) + 4), 1), 2**16)


def message_length(array: np.ndarray) -> float:
    """-log2 of the probability of a sparse matrix of ones, by the text of the module's docstring; exact until then."""
    seen: dict[tuple, list[int]] = {}
    chance = Fraction(1)

    def decide(context: tuple, answer: bool) -> None:
        nonlocal chance
        p = probability(seen.setdefault(context, []))
        chance *= p if answer else 1 - p
        seen[context].append(int(answer))

    columns = [bool(column.any()) for column in array.T]
    for answer in columns:
        decide(("column",), answer)
    for row in array:
        decide(("row",), bool(row.any()))
    for row in array:
        if row.any():
            before: list[int] = []
            for column, answer in zip(columns, row, strict=True):
                if column:
                    fullness = int((len(before) + 4) // (sum(before) + 1)).bit_length()
                    decide(("place", fullness, min(sum(before[-4:]), 2)), bool(answer))
                    before.append(int(answer))
    return math.log2(chance.denominator) - math.log2(chance.numerator)


@pytest.mark.parametrize("density", [0.02, 0.2, 0.7])
def test_the_docstring_describes_the_positions(density):
    array = (np.random.default_rng(1).random((12, 30)) < density).astype(np.float32)
    spent = coding.anatomy({"x": array})["x"]["positions"]
    assert 8 * spent == pytest.approx(message_length(array), rel=1e-9)


def test_the_docstring_describes_the_file(folder):
    path = coding.write_coded({"x": np.array([1.5, 2.25, -1e9], np.float32)}, folder / "x.pack").path
    content = path.read_bytes()
    assert content[:8] == b"MCPACK\2\0"
    assert hashlib.sha256(content[:8] + content[12:]).digest()[:4] == content[8:12]
    header = zlib.decompressobj(-15, coding.WORDS)
    entries = json.loads(header.decompress(content[12:]))
    assert entries == [12, ["x", "<f4", [3], 0, "raw"]]
    assert struct.unpack("<3f", header.unused_data) == (1.5, 2.25, -1e9)


# ---------------------------------------------------------------- bad files, other processes


def test_any_changed_missing_or_added_byte_is_noticed(folder):
    array = np.diag(np.arange(9, dtype=np.float32))
    path = coding.write_coded({"x": array, "y": array[3]}, folder / "small.pack").path
    content = path.read_bytes()
    changed = [content[:length] for length in range(len(content))] + [content + b"\0"]
    for place in range(len(content)):
        changed += [content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :] for bit in (1, 16, 128)]
    for spoiled in changed:
        path.write_bytes(spoiled)
        with pytest.raises(packing.PackingError, match="small.pack: ") as error:
            packing.read(path)
        assert "\n" not in str(error.value)


def test_an_unknown_kind_of_values_is_named(folder):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=coding.WORDS)
    body = packer.compress(json.dumps([0, ["x", "<f4", [0], 0, "fractal"]]).encode()) + packer.flush()
    start = b"MCPACK\2\0"
    (folder / "x.pack").write_bytes(start + hashlib.sha256(start + body).digest()[:4] + body)
    with pytest.raises(packing.PackingError, match="unknown kind 'fractal'"):
        packing.read(folder / "x.pack")


def test_a_writer_that_errs_writes_nothing(folder, monkeypatch):
    path = coding.write_coded({"x": np.zeros(3, np.float32)}, folder / "kept.pack").path
    before = path.read_bytes()
    monkeypatch.setattr(coding, "decode", lambda content: {"x": np.ones(3, np.float32)})
    with pytest.raises(packing.PackingError, match="'x' would not come back bit for bit"):
        coding.write_coded({"x": np.zeros(3, np.float32)}, path)
    assert path.read_bytes() == before


def test_a_file_that_is_cut_off_is_no_file_without_words(folder):
    packed = coding.write_coded({"x": np.zeros(3, np.float32)}, folder / "cut.pack")
    packed.path.write_bytes(packed.path.read_bytes()[:-3])
    with pytest.raises(packing.PackingError, match="cut off"):
        packing.read_words(packed.path)


def test_many_values_of_a_single_kind(folder):
    """A matrix of ones, and one of zeros and ones: beyond the values that are learned, there is nothing to tell."""
    mask = np.random.default_rng(0).random((400, 400)) < 0.6
    for array in (np.ones((300, 300), "<f4"), mask.astype("<f4"), mask):
        packed = coding.write_coded({"x": array}, folder / "one.pack")
        assert np.array_equal(packing.read(packed.path)["x"], array)


def test_a_model_computes_the_same_from_its_file(quantized, folder):
    packed = coding.write_coded(quantized, folder / "model.pack")
    packing.verify(packed.path, quantized, IMAGES)
    assert packing.read_words(packed.path) == []
    other = models.lenet5()
    with pytest.raises(packing.PackingError, match="the logits differ"):
        packing.verify(packed.path, other, IMAGES)


def test_rounded_inputs_travel_along(folder):
    torch.manual_seed(0)
    model = models.lenet_300_100().eval()
    split = Split(IMAGES, torch.zeros(5, dtype=torch.long))
    model = quantization.quantize_model(model, weights=2, activations=4, calibration=split)
    packed = coding.write_coded(model, folder / "inputs.pack")
    packing.verify(packed.path, model, IMAGES)


WITHOUT_TORCH = """
import hashlib, sys
from pathlib import Path
from helpers import packing
arrays = packing.read(Path(sys.argv[1]))
digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()
print(digest, [name for name in ("torch", "scipy", "pandas") if name in sys.modules])
"""


def test_another_process_reads_the_same_without_torch(quantized, folder):
    packed = coding.write_coded(quantized, folder / "fresh.pack")
    arrays = packing.read(packed.path)
    expected = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(packed.path)], capture_output=True, text=True, check=True
    )
    assert found.stdout.split(maxsplit=1) == [expected, "[]\n"]


def test_a_stored_file_reads_as_ever(folder):
    """Written by an earlier version of this code: its words, probabilities and contexts must stay what they were."""
    array = np.zeros((6, 10), np.float32)
    array[[0, 0, 2, 5], [1, 7, 7, 9]] = [0.5, -0.25, 0.75, 1]
    content = bytes.fromhex(STORED)
    (folder / "stored.pack").write_bytes(content)
    assert_identical(packing.read(folder / "stored.pack"), {"fc1.weight": array})


STORED = "4d435041434b0200c64926d38b36c11e344069d480d401698805000000803ea6152667c828c7a8"


@pytest.mark.parametrize("array", [torch.ones(2, dtype=torch.bfloat16), np.array(["a"]), np.array([None])])
def test_what_numpy_cannot_hold_is_refused(folder, array):
    with pytest.raises(ValueError, match=r"tensors\['x'\] has dtype .*; allowed"):
        coding.write_coded({"x": array}, folder / "refused.pack")
    assert not (folder / "refused.pack").exists()
