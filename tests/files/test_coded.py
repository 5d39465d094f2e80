"""Entropy coding: bit for bit, close to Shannon's bound, the same without torch, and never a wrong answer."""

import copy
import hashlib
import json
import math
import struct
import subprocess
import sys
import time
import zlib
from fractions import Fraction
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from torch import nn

from helpers import files, nets, pruning, quantization
from helpers.data import Split
from helpers.files import coded, coded_reading, range_coder

IMAGES = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("coding")


@pytest.fixture
def quantized() -> nn.Module:
    """A LeNet-5 with few weights and many dead neurons, three bits each, and biases that are multiples of 1/32."""
    torch.manual_seed(0)
    dense = nets.lenet5().eval()
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
    packed = files.write_coded(arrays, folder / "x.pack")
    content = packed.path.read_bytes()
    assert (packed.bytes, packed.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    return packed.bytes, files.read(packed.path)


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
def integers(draw) -> files.Integers:
    """Sparse or dense codes with any zero points, one step for all or one for each entry of the first dimension."""
    bits, shape = draw(st.integers(1, 8)), draw(arrays_of.array_shapes(min_dims=1, max_dims=4, max_side=6))
    low = draw(st.sampled_from([0, -(2 ** (bits - 1))]))
    codes = st.integers(low, low + 2**bits - 1)
    steps = draw(st.sampled_from([(), shape[:1]]))
    scale = draw(arrays_of.arrays(np.float32, steps, elements=st.floats(-10, 10, width=32).filter(bool)))
    zero_point = draw(arrays_of.arrays(np.int16, steps, elements=codes))
    fill = st.just(0) if draw(st.booleans()) else None
    return files.Integers(
        draw(arrays_of.arrays(np.int16, shape, elements=codes, fill=fill)), scale, zero_point, low, bits
    )


@settings(max_examples=40, deadline=None)
@given(tensors=st.dictionaries(st.text(max_size=3), integers(), max_size=4))
def test_codes_come_back_as_the_values_that_they_stand_for(folder, tensors):
    assert_identical(write_and_read(tensors, folder)[1], {name: array.values() for name, array in tensors.items()})


@pytest.mark.parametrize("value", [2.0**127, 1.5 * 2.0**127, float(np.finfo(np.float32).max), -(2.0**-149), 2.0**-140])
def test_the_largest_and_the_smallest_numbers(folder, value):
    values = np.array([value, 0, -value, value / 2], np.float32)
    assert_identical(write_and_read({"x": values, "alone": values[0]}, folder)[1], {"x": values, "alone": values[0]})


@settings(max_examples=40, deadline=None)
@given(
    array=arrays_of.arrays(np.int32, arrays_of.array_shapes(max_dims=2, max_side=40), elements=st.integers(-40, 40)),
    power=st.integers(-150, 120),
)
def test_multiples_of_a_power_of_two(folder, array, power):
    """Among them numbers too small for float32 to hold but as denormals, or at all."""
    values = np.ldexp(array.astype(np.float64), power).astype(np.float32)
    assert_identical(write_and_read({"x": values}, folder)[1], {"x": values})


@pytest.mark.parametrize(("levels", "more"), [(2, 0), (2, 1), (3, 1), (256, 1)])
def test_values_are_learned_up_to_65536_of_them(folder, levels, more):
    """One more, and their frequencies are stored: two bytes for each number that there may be."""
    random = np.random.default_rng(levels)
    chances = [0.9] + [0.1 / (levels - 1)] * (levels - 1)
    table = np.sort(random.normal(size=levels).astype("<f4").view("<u4")).view("<f4")
    symbols = random.choice(levels, 2**16 + more, p=chances)
    symbols[:levels] = range(levels)  # all of them are there
    array = table[symbols]
    packed = files.write_coded({"x": array}, folder / "learned.pack")
    assert_identical(files.read(packed.path), {"x": array})
    (plain, line), rest = opened(packed.path)
    assert line[3:] == [0, "table", levels] and plain == 4 * levels + 2 * levels * more
    if more:
        stored = np.frombuffer(rest[4 * levels : plain], "<u2").astype(int) + 1
        counts = np.bincount(symbols, minlength=levels)
        rounded = counts * (2**16 - levels) // len(array) + 1
        assert stored.sum() == 2**16 and stored.min() >= 1
        assert np.array_equal(np.delete(stored, 0), np.delete(rounded, 0)), "what is over goes to the likeliest"
    assert packed.bytes < 1.01 * entropy(symbols) + plain + 100


def test_a_table_has_256_values_at_most(folder):
    random = np.random.default_rng(0)
    for levels, kind in ((256, "table"), (257, "raw")):
        values = random.normal(size=levels).astype("<f4")
        array = np.tile(values, 20)
        packed = files.write_coded({"x": array}, folder / "levels.pack")
        assert opened(packed.path)[0][1][4] == kind
        assert_identical(files.read(packed.path), {"x": array})


@pytest.mark.parametrize("ones", [False, True])
def test_what_never_happened_in_a_context_may_still_happen(folder, ones):
    """After 26,215 equal answers a probability would round down to nothing."""
    answers = np.full(30_000, ones)
    answers[-1] = not ones
    table = np.where(answers, np.float32(1.5), np.float32(0 if not ones else 2.5))
    assert_identical(write_and_read({"x": table}, folder)[1], {"x": table})


@pytest.mark.parametrize("dead_rows", [0, 30, 250, 500])
def test_arrays_that_need_tables_of_frequencies(folder, dead_rows):
    """More than 65,536 values, without positions and with them, between arrays that are learned on the way."""
    codes = np.random.default_rng(0).integers(-8, 8, (500, 280))
    codes[:dead_rows] = 0
    large = files.Integers(codes, np.float32(0.5), np.array(0), -8, 4)
    small = codes[-3:].astype(np.int8)
    found = write_and_read({"before": small, "large": large, "after": small.T.copy()}, folder)[1]
    assert_identical(found, {"before": small, "large": large.values(), "after": small.T})


def opened(path: Path) -> tuple[list, bytes]:
    """The header, and what follows it."""
    unpacker = zlib.decompressobj(-15, coded.WORDS)
    header = json.loads(unpacker.decompress(path.read_bytes()[12:]))
    return header, unpacker.unused_data


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
    size, _ = write_and_read({"x": files.Integers(codes, np.float32(1), np.array(0), -8, 4)}, folder)
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
    parts = files.anatomy({"1.bias": bias, "1.weight": first, "2.weight": second})
    assert parts["1.bias"]["positions"] > 25
    assert parts["1.weight"]["positions"] < 50 * 80 / 8 * 1.03 + 10
    assert parts["2.weight"]["positions"] < 10 * 50 / 8 * 1.05 + 15


def test_the_header_of_eight_arrays_is_small(quantized, folder):
    size = files.write_coded(quantized, folder / "x.pack").bytes
    parts = files.anatomy(quantized)
    assert list(parts) == [*sorted(nets.lenet5().state_dict()), "header"]
    assert parts["header"]["plain"] < 100
    assert sum(sum(part.values()) for part in parts.values()) == pytest.approx(size)
    assert all(part["plain"] == 4 for name, part in parts.items() if name != "header")  # a scale each, biases too


def test_it_is_smaller_than_the_gaps(quantized, folder):
    entropy_coded = files.write_coded(quantized, folder / "x.pack")
    assert entropy_coded.bytes < 0.9 * files.write_quantized(quantized, folder / "y.pack").bytes


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
    spent = files.anatomy({"x": array})["x"]["positions"]
    assert 8 * spent == pytest.approx(message_length(array), rel=1e-9)


def test_the_docstring_describes_the_file(folder):
    path = files.write_coded({"x": np.array([1.5, 2.25, -1e9], np.float32)}, folder / "x.pack").path
    content = path.read_bytes()
    assert content[:8] == b"MCPACK\2\0"
    assert hashlib.sha256(content[:8] + content[12:]).digest()[:4] == content[8:12]
    header = zlib.decompressobj(-15, coded.WORDS)
    entries = json.loads(header.decompress(content[12:]))
    assert entries == [12, ["x", "<f4", [3], 0, "raw"]]
    assert struct.unpack("<3f", header.unused_data) == (1.5, 2.25, -1e9)


# ---------------------------------------------------------------- bad files, other processes


def test_any_changed_missing_or_added_byte_is_noticed(folder):
    array = np.diag(np.arange(9, dtype=np.float32))
    path = files.write_coded({"x": array, "y": array[3]}, folder / "small.pack").path
    content = path.read_bytes()
    changed = [content[:length] for length in range(len(content))] + [content + b"\0"]
    for place in range(len(content)):
        changed += [content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :] for bit in (1, 16, 128)]
    for spoiled in changed:
        path.write_bytes(spoiled)
        with pytest.raises(files.PackingError, match="small.pack: ") as error:
            files.read(path)
        assert "\n" not in str(error.value)


def sealed(header, rest: bytes = b"") -> bytes:
    """A file with a right checksum, whatever it holds."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=coded.WORDS)
    return signed(packer.compress(json.dumps(header).encode()) + packer.flush() + rest)


def signed(body: bytes) -> bytes:
    return b"MCPACK\2\0" + hashlib.sha256(b"MCPACK\2\0" + body).digest()[:4] + body


ONE, HALF = np.float32(1).tobytes(), np.array([2**15 - 1] * 2, "<u2").tobytes()
WORDS = bytes(4)
INFINITE = np.float32(np.inf).tobytes()


@pytest.mark.parametrize(
    ("header", "rest", "said"),
    [
        ([], b"", "the header is no number and a list for each array"),
        ([0, 3], b"", "the header is no number and a list for each array"),
        ([0, ["x", "<f4", [0], 0]], b"", "the header is no number and a list for each array"),
        ([-1], b"", "the length of the plain numbers is -1"),
        ([9], WORDS, "the length of the plain numbers is 9; allowed: a whole number from 0 to 4"),
        ([0], b"123", "what is coded does not end with a word of four bytes"),
        ([4], ONE, "the file holds more numbers than the header asks for"),
        ([0, ["x", "<f4", [0], 0, "fractal"]], b"", "'x' has values of the unknown kind 'fractal'"),
        ([0, ["x", "<f4", [0], 0, []]], b"", r"'x' has values of the unknown kind \[\]"),
        ([0, ["x", "<f4", [0], 0, "raw", 1]], b"", "'x' has 1 numbers for the kind 'raw'; allowed: 0"),
        ([0, ["x", "<f4", [0], 0, "grid", 1]], b"", "'x' has 1 numbers for the kind 'grid'; allowed: 3"),
        ([0, ["x", "<f4", [0], 1, "raw"]], b"", "whether 'x' has positions is 1; allowed: a whole number from 0 to 0"),
        ([0, ["x", "<f4", [2], 2, "raw"]], b"", "whether 'x' has positions is 2; allowed: a whole number from 0 to 1"),
        ([0, ["x", "<f4", [2], True, "raw"]], b"", "whether 'x' has positions is True"),
        ([4, ["x", "<f4", [2], 0, "raw"]], ONE, "asks for more numbers than the file holds"),
        ([0, ["x", "<f4", [1], 0, "table", 0]], b"", "the table of 'x' is 0; allowed: a whole number from 1 to 256"),
        ([0, ["x", "<f4", [1], 0, "table", 257]], b"", "the table of 'x' is 257"),
        ([16, ["x", "<c16", [1], 0, "table", 1]], bytes(16), "'x' has a table of <c16; allowed: at most 8 bytes each"),
        ([12, ["x", "<f4", [1], 0, "table", 3]], 3 * ONE + 8 * b"\xfe", "a value is number 3 of 3"),
        ([4, ["x", "<f4", [1], 0, "grid", 1, 2, 1]], ONE, "the lowest step is 1; allowed"),
        ([4, ["x", "<f4", [1], 0, "grid", -2049, 2, 1]], ONE, "the lowest step is -2049; allowed"),
        (
            [4, ["x", "<f4", [1], 0, "grid", -2, 2, 1]],
            ONE,
            "the number of steps is 2; allowed: a whole number from 3 to",
        ),
        ([4, ["x", "<f4", [1], 0, "grid", 0, 2049, 1]], ONE, "the number of steps is 2049; allowed"),
        ([4, ["x", "<f8", [1], 0, "grid", 0, 1, 1]], ONE, "'x' has scales and the type <f8; allowed: <f4"),
        ([4, ["x", "<f4", [3], 0, "grid", 0, 1, 2]], 2 * ONE, r"'x' has 2 scales; allowed: one, or .* of \(3,\)"),
        ([4, ["x", "<f4", [1], 0, "grid", 0, 1, 1]], INFINITE, "'x' has a scale that is NaN or infinite"),
        (
            [6, ["x", "|u1", [70_000], 0, "table", 2]],
            b"\0\1" + HALF[:2] + b"\0\0" + WORDS,
            "frequencies add up to 32769",
        ),
        (
            [0, ["x", "<f4", [2**20], 1, "raw"]],
            WORDS,
            "there are more values, or more that are easy to guess, than a fi",
        ),
        ([0, ["x", "<f4", [2**20, 2], 1, "raw"]], WORDS, "there are more values, or more that are easy to guess"),
        (
            [6, ["x", "|u1", [2**25], 0, "table", 2]],
            b"\0\1" + HALF + WORDS,
            "more values, or more that are easy to guess",
        ),
        (
            [6, ["x", "|u1", [2**17], 0, "table", 2]],
            b"\0\1" + HALF + WORDS,
            "more values, or more that are easy to guess",
        ),
        (
            [2, ["x", "|u1", [60_000], 0, "table", 2]],
            b"\0\1" + 99 * b"\x12\x34\x56\x31",
            "(more values|by a range coder)",
        ),
        ([0, ["x", "<f4", [9], 1, "raw"]], 12 * b"\xff", "what is coded was not made by a range coder"),
        ([6, ["x", "|u1", [70_000], 0, "table", 2]], b"\0\1" + HALF + 12 * b"\xff", "was not made by a range coder"),
    ],
)
def test_what_does_not_fit_together_is_named(folder, header, rest, said):
    (folder / "x.pack").write_bytes(sealed(header, rest))
    start = time.process_time()
    with pytest.raises(files.PackingError, match=f"x.pack: .*{said}"):
        files.read(folder / "x.pack")
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the header is cut off"),
        (b"\xff\xff", "the header cannot be decompressed"),
        (zlib.compress(b"[" + b" " * 2**22 + b"]", wbits=-15), "the header would take more than 4,194,304 bytes"),
        (zlib.compress(b"nothing", wbits=-15), "the header is no JSON in UTF-8"),
        (zlib.compress(b'{"x": 1}', wbits=-15), "the header is no list"),
    ],
)
def test_a_header_that_is_none_is_named(folder, body, said):
    (folder / "x.pack").write_bytes(signed(body))
    with pytest.raises(files.PackingError, match=f"x.pack: .*{said}"):
        files.read(folder / "x.pack")


def test_a_decision_costs_its_bits_and_a_32nd_and_a_value_a_1024th(folder):
    reader, made = range_coder.Reader(WORDS), 0
    with pytest.raises(files.PackingError, match="there are more values"):
        while True:
            made += 1 - reader.one(2**15, None)
    assert made == math.floor((2 * 32 + 2**14) / (1 + 1 / 32))
    reader, half = range_coder.Reader(WORDS), np.array([2**15, 2**15])
    assert len(reader.many(16_000, half, None)) == 16_000
    assert reader.left == pytest.approx(2 * 32 + 2**14 - 16_000 * (1 + 1 / 1024))
    with pytest.raises(files.PackingError, match="there are more values"):
        reader.many(500, half, None)
    reader = range_coder.Reader(WORDS)
    reader.expect(32 * (2 * 32 + 2**14))
    with pytest.raises(files.PackingError, match="there are more values"):
        reader.expect(32 * (2 * 32 + 2**14) + 1)


def test_a_large_file_of_few_decisions_pays_for_them(folder):
    """Half a million zeros are read from a few bytes; values that are all the same cost nothing; more are refused."""
    found = coded_reading.decode(sealed([0, ["x", "<f4", [500_000], 1, "raw"]], WORDS))["x"]
    assert found.shape == (500_000,) and not found.any()
    (folder / "x.pack").write_bytes(sealed([4, ["x", "<f4", [10**6], 0, "table", 1]], ONE))
    assert files.read(folder / "x.pack")["x"].sum() == 10**6
    with pytest.raises(files.PackingError, match="there are more values, or more that are easy to guess"):
        files.write_coded({"x": np.zeros(540_000, "<f4")}, folder / "more.pack")
    assert not (folder / "more.pack").exists()


NASTY = [
    *(-1, 0, 1, 2, 3, 9, 17, 255, 300, 1_000, 70_000, 2**31, 2**40, 2**63, 10**30, 1.5, math.inf, math.nan),
    *(None, True, False, "", "x", "\ud800", [], [0], [-1], [1.5], [True], [3, "a"], [[]], {}, [9_000, 9_000]),
    *([2**40, 2**40], [0, 2**62], [1] * 33, "<f8", "|b1", "<c16", "|O", "<f4", "raw", "grid", "table"),
]


def forged(header: list, random: Random) -> list:
    """The header with one to three of its parts changed, missing or doubled."""
    header = copy.deepcopy(header)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        place = random.randrange(len(header))
        parent = header
        while isinstance(parent[place], list) and parent[place] and random.random() < 0.9:
            parent = parent[place]
            place = random.randrange(len(parent))
        how = random.random()
        if how < 0.1 and len(header) > 1:
            del parent[place]
        elif how < 0.2:
            parent.insert(place, copy.deepcopy(parent[place]))
        else:
            parent[place] = copy.deepcopy(random.choice(NASTY))
    return header


def test_forged_files_are_refused_at_once(folder):
    """Their checksums match, and their headers ask for anything."""
    numbers, random = np.random.default_rng(0), Random(17)
    codes = np.where(numbers.random((6, 40)) < 0.3, numbers.integers(-8, 8, (6, 40)), 0)
    arrays = {
        "few": files.Integers(codes, numbers.random(6).astype("<f4") + 1, np.zeros(6, int), -8, 4),
        "table": (codes * np.float32(0.3)).astype("<f4"),
        "raw": numbers.random((5, 5)),
        "line": (codes[0] % 2).astype("|u1"),
        "large": numbers.integers(0, 3, 70_000).astype("|u1"),
    }
    header, rest = opened(files.write_coded(arrays, folder / "all.pack").path)
    assert [line[4] for line in header[1:]] == ["grid", "table", "raw", "table", "table"]
    before, refused = memory(), 0
    for number in range(500):
        spoiled = bytearray(rest)
        if number % 5 == 0:
            spoiled[random.randrange(len(rest))] ^= 1 << random.randrange(8)
        start = time.process_time()
        try:
            coded_reading.decode(sealed(forged(header, random), bytes(spoiled[: len(rest) - 4 * (number % 7 == 0)])))
        except files.PackingError as error:
            assert "\n" not in str(error) and len(str(error)) < 500
            refused += 1
        assert time.process_time() - start < 3
    assert refused > 400 and memory() - before < 1e9


def memory() -> int:
    """The most bytes that this process ever took, where the system says so."""
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_a_writer_that_errs_writes_nothing(folder, monkeypatch):
    path = files.write_coded({"x": np.zeros(3, np.float32)}, folder / "kept.pack").path
    before = path.read_bytes()
    monkeypatch.setattr(coded, "decode", lambda content: {"x": np.ones(3, np.float32)})
    with pytest.raises(files.PackingError, match="'x' would not come back bit for bit"):
        files.write_coded({"x": np.zeros(3, np.float32)}, path)
    assert path.read_bytes() == before


def test_a_file_that_is_cut_off_is_no_file_without_words(folder):
    packed = files.write_coded({"x": np.zeros(3, np.float32)}, folder / "cut.pack")
    packed.path.write_bytes(packed.path.read_bytes()[:-3])
    with pytest.raises(files.PackingError, match="cut off"):
        files.read_words(packed.path)


def test_many_values_of_a_single_kind(folder):
    """A matrix of ones, and one of zeros and ones: beyond the values that are learned, there is nothing to tell."""
    mask = np.random.default_rng(0).random((400, 400)) < 0.6
    for array in (np.ones((300, 300), "<f4"), mask.astype("<f4"), mask):
        packed = files.write_coded({"x": array}, folder / "one.pack")
        assert np.array_equal(files.read(packed.path)["x"], array)


def test_a_model_computes_the_same_from_its_file(quantized, folder):
    packed = files.write_coded(quantized, folder / "model.pack")
    files.verify(packed.path, quantized, IMAGES)
    assert files.read_words(packed.path) == []
    other = nets.lenet5()
    with pytest.raises(files.PackingError, match="the logits differ"):
        files.verify(packed.path, other, IMAGES)


def test_rounded_inputs_travel_along(folder):
    torch.manual_seed(0)
    model = nets.lenet_300_100().eval()
    split = Split(IMAGES, torch.zeros(5, dtype=torch.long))
    model = quantization.quantize_model(model, weights=2, activations=4, calibration=split)
    packed = files.write_coded(model, folder / "inputs.pack")
    files.verify(packed.path, model, IMAGES)


WITHOUT_TORCH = """
import hashlib, sys
from pathlib import Path
from helpers import files
arrays = files.read(Path(sys.argv[1]))
digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()
print(digest, [name for name in ("torch", "scipy", "pandas") if name in sys.modules])
"""


def test_another_process_reads_the_same_without_torch(quantized, folder):
    packed = files.write_coded(quantized, folder / "fresh.pack")
    arrays = files.read(packed.path)
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
    assert_identical(files.read(folder / "stored.pack"), {"fc1.weight": array})


STORED = "4d435041434b0200c64926d38b36c11e344069d480d401698805000000803ea6152667c828c7a8"
