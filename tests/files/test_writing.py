"""Tests of `helpers.files.writing`."""

import copy
import hashlib
import json
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import nn

from helpers import files, nets, pruning, quantization
from helpers.core import paths
from helpers.data import Split
from helpers.files import model_arrays, reading
from tests.files.files_examples import (
    IMAGES,
    WRITERS,
    changed,
    header_of,
    read_by_the_book,
    sealed,
    tied,
)

LENET_PARAMETERS = 431_080


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


@pytest.mark.parametrize("write", [*WRITERS, files.write_coded])
@pytest.mark.parametrize(
    "array",
    [
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, device="meta"),
        np.array(["a"]),
        np.array([None]),
        np.ones(2, np.longdouble),
        [1.0, 2.0],
        3,
    ],
)
def test_what_numpy_cannot_hold_is_refused(folder, write, array):
    with pytest.raises(ValueError, match=r"tensors\['x'\] has dtype .*; allowed"):
        write({"x": array}, folder / "refused.pack")
    assert not (folder / "refused.pack").exists()


@pytest.mark.parametrize("write", WRITERS)
def test_of_a_model_the_architecture_is_stated_and_words_are_texts(lenet, folder, write):
    assert files.contents(write(lenet, folder / "stated.pack").path).architecture == "lenet5"
    assert files.contents(write(lenet.state_dict(), folder / "stated.pack").path).architecture is None
    for word in (3, b"a", "\ud800"):
        with pytest.raises(ValueError, match=r"^word=.*; allowed: text, as UTF-8 has it"):
            write({}, folder / "refused.pack", words=["a", word])
    assert not (folder / "refused.pack").exists()


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


def test_a_dense_file_holds_four_bytes_for_each_parameter_and_the_header(lenet, folder):
    packed = files.write_dense(lenet, folder / "dense.pack")
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
    packed = files.write_sparse({"x": array}, folder / "width.pack")
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
        sparse = files.write_sparse({"x": array}, folder / "s.pack")
        _, before_payload = header_of(sparse.path)
        assert sparse.bytes - before_payload <= 16_000


def test_negative_zeros_of_a_mask_cost_nothing(lenet, masked, folder):
    """A mask turns a negative weight into -0.0; as a value to keep it would double the file."""
    values = pruning.weights_of(masked)["fc1.weight"]
    assert (torch.signbit(values) & (values == 0)).sum() > 100_000
    zeros = pruning.bake(lenet)
    for name, kept in pruning.masks_of(masked).items():
        zeros.get_parameter(name).data[~kept] = 0.0
    plain, from_mask = (files.write_sparse(m, folder / f"{n}.pack") for n, m in [("zeros", zeros), ("masked", masked)])
    assert plain.sha256 == from_mask.sha256


def test_equal_content_gives_equal_files(masked, folder):
    first, second = (files.write_sparse(masked, folder / f"{n}.pack") for n in "ab")
    assert first.sha256 == second.sha256
    assert first.path != second.path


def test_few_values_become_a_table(folder):
    random = np.random.default_rng(0)
    values = random.normal(size=5).astype(np.float32)
    array = random.choice(values, (60, 40))
    packed = files.write_quantized({"x": array}, folder / "table.pack")
    (entry,), before_payload = header_of(packed.path)
    assert entry["coding"] == "codebook" and (entry["bits"], entry["entries"]) == (3, 5)
    assert packed.bytes == before_payload + 60 * 40 * 3 // 8 + 4 * 5
    sparse = np.where(random.random(array.shape) < 0.05, array, np.float32(0))
    packed = files.write_quantized({"x": sparse}, folder / "table.pack")
    (entry,), _ = header_of(packed.path)
    assert "gap" in entry and entry["entries"] == 5  # the zeros need no entry
    many = random.normal(size=(60, 40)).astype(np.float32)
    packed = files.write_quantized({"x": many}, folder / "table.pack")
    assert header_of(packed.path)[0][0]["coding"] == "dense"


@pytest.fixture(params=[{"weights": 2, "per_channel": False}, {"weights": 4, "activations": 4, "learned": True}])
def quantized(request, lenet) -> nn.Module:
    return quantization.quantize_model(lenet, calibration=Split(IMAGES, torch.arange(5)), **request.param)


@pytest.mark.parametrize("write", [files.write_dense, files.write_sparse])
def test_quantized_weights_are_never_stored_as_float(quantized, folder, write):
    with pytest.raises(ValueError, match="'conv1.weight' is quantized and would be stored in floating point; allowed"):
        write(quantized, folder / "float.pack")
    coded = files.Integers(np.zeros((2, 2), int), np.float32(1), np.array(0), 0, 4)
    with pytest.raises(ValueError, match="'x' is quantized"):
        write({"x": coded}, folder / "float.pack")
    assert not (folder / "float.pack").exists()


def test_a_pruned_and_quantized_network_pays_for_neither_zeros_nor_bits(lenet, masked, folder):
    quantized = quantization.quantize_model(masked, weights=4, per_channel=False)
    outputs = [
        files.write_sparse(masked, folder / "pruned.pack"),
        files.write_quantized(quantization.quantize_model(lenet, weights=4), folder / "quantized.pack"),
        files.write_quantized(quantized, folder / "both.pack"),
    ]
    files.verify(outputs[2].path, quantized, IMAGES)
    assert outputs[2].bytes < 0.35 * min(outputs[0].bytes, outputs[1].bytes)


def forged(header, body: bytes, random: Random) -> tuple[list, bytes]:
    """The same with one to three changes in the header, and now and then in the payload."""
    header = copy.deepcopy(header)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        header = changed(header, random) if header else header
    if body and random.random() < 0.2:
        place = random.randrange(len(body))
        body = body[:place] + bytes([body[place] ^ 1 << random.randrange(8)]) + body[place + 1 :]
    return header, body[: random.randrange(len(body) + 1)] if random.random() < 0.1 else body


def samples() -> list[dict]:
    """Arrays that take every coding."""
    random = np.random.default_rng(0)
    sparse = (random.random((20, 30)) < 0.1) * random.normal(size=(20, 30))
    codes = np.where(random.random((6, 40)) < 0.3, random.integers(-8, 8, (6, 40)), 0)
    few = files.Integers(codes, random.random(6).astype("<f4") + 1, np.zeros(6, int), -8, 4)
    many = files.Integers(codes + 8, np.float32(0.5), np.array(7), 0, 4)
    return [
        {"sparse": sparse.astype("<f4"), "dense": np.arange(7)},
        {"few": few, "zero points": many},
        {"table": (codes / 4).astype("<f4"), "bits": random.integers(0, 2, (30, 9)).astype("|u1")},
        {"boolean": random.random(5) > 0.5, "complex": random.random(4).astype("<c8")},
    ]


def memory() -> int:
    """The most bytes that this process ever took, where the system says so."""
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def answers(contents) -> Counter[str]:
    """How many of these files are read, and how many refused: in one sentence, at once, and below a gigabyte."""
    found: Counter[str] = Counter()
    before = memory()
    for content in contents:
        start = time.process_time()
        try:
            reading.decode(content)
            reading.decode_words(content)
            found["read"] += 1
        except files.PackingError as error:
            assert "\n" not in str(error) and len(str(error)) < 500
            found["refused"] += 1
        assert time.process_time() - start < 3
    assert memory() - before < 1e9
    return found


def test_forged_files_are_refused_at_once(folder):
    """Their checksums match, and their headers ask for anything."""
    random, kept = Random(17), []
    for tensors in samples():
        for write in WRITERS:
            if write is not files.write_quantized and "few" in tensors:
                continue
            kept.append(
                write(tensors, folder / "kept.pack", words=["<unk>", "é"][: random.randrange(3)]).path.read_bytes()
            )
    parts = [(json.loads(zlib.decompress(c[20 : 20 + c[8] + 256 * c[9]])), c[20 + c[8] + 256 * c[9] :]) for c in kept]
    assert all(answers([sealed(1, *part)]) == {"read": 1} for part in parts)
    found = answers(sealed(1, *forged(*random.choice(parts), random)) for _ in range(700))
    assert found["refused"] > 600


def test_damaged_files_are_refused_at_once(folder):
    random, spoiled = Random(17), []
    for tensors in samples():
        content = files.write_quantized(tensors, folder / "kept.pack").path.read_bytes()
        for _ in range(125):
            some = bytearray(content)
            for _ in range(random.randrange(1, 9)):
                some[random.randrange(6, len(some))] = random.randrange(256)
            spoiled.append(bytes(some[: random.choice([len(some), random.randrange(len(some))])]))
    assert answers(spoiled)["refused"] >= 499


WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "jaxtyping", "pandas", "onnx"}:
            raise ImportError(f"{name} must not be imported")
sys.meta_path.insert(0, Refuse())
import hashlib
from helpers import files
for name, array in files.read(sys.argv[1]).items():
    print(name, array.dtype, array.shape, hashlib.sha256(array.tobytes()).hexdigest())
"""


@pytest.mark.parametrize("write", WRITERS)
def test_a_process_without_torch_reads_the_same_bits(masked, folder, write):
    stored = quantization.quantize_model(masked, weights=4) if write is files.write_quantized else masked
    packed = write(stored, folder / "alone.pack")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(packed.path)]
    answer = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True)
    lines = [
        f"{name} float32 {tuple(tensor.shape)} {hashlib.sha256((tensor.numpy() + 0.0).tobytes()).hexdigest()}"
        for name, tensor in sorted(quantization.bake(stored).state_dict().items())
    ]
    assert answer.stdout.splitlines() == lines


def test_a_file_without_words_is_as_before(tmp_path):
    first = files.write_sparse({"x": np.zeros(9, np.float32)}, tmp_path / "a.pack")
    second = files.write_sparse({"x": np.zeros(9, np.float32)}, tmp_path / "b.pack", words=[])
    assert first.sha256 == second.sha256 and files.read_words(first.path) == []


def test_words_are_compressed_and_guarded(tmp_path):
    words = [f"word{i}" for i in range(2_000)]
    packed = files.write_dense({}, tmp_path / "words.pack", words=words)
    assert packed.bytes < len("\n".join(words)) / 2
    content = bytearray(packed.path.read_bytes())
    content[-5] ^= 1
    packed.path.write_bytes(content)
    with pytest.raises(files.PackingError, match="checksum does not match"):
        files.read_words(packed.path)
    with pytest.raises(ValueError, match="allowed: words without line feeds"):
        files.write_dense({}, tmp_path / "words.pack", words=["a\nb"])


def test_a_module_under_two_names_costs_the_bytes_of_one(folder):
    """The issue's case: 10,227 bytes in 4 bits, where the same module under one name took 1,934."""
    one = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    two = nn.Sequential(*one, one[1])
    sizes = {
        bits: [files.write_quantized(quantization.quantize_model(net, weights=bits), folder / "x.pack").bytes
               for net in (one, two)] for bits in (4, 8)
    }  # fmt: skip
    assert all(abs(first - second) < 10 for first, second in sizes.values())


def test_two_grids_on_one_tensor_are_refused(monkeypatch, folder):
    model = tied()
    found = {
        name: files.Integers(np.zeros((50, 8), int), np.float32(scale), np.array(0), -8, 4)
        for name, scale in (("embedding.weight", 1), ("decoder.weight", 2))
    }
    monkeypatch.setattr(model_arrays, "integers", lambda model: found)
    with pytest.raises(ValueError, match="'decoder.weight' and 'embedding.weight' are one tensor with two grids"):
        files.write_quantized(model, folder / "two.pack")
    found["decoder.weight"] = found["embedding.weight"]
    assert files.write_quantized(model, folder / "two.pack").bytes < 1500


def test_a_name_that_is_both_a_tensor_and_a_grid_is_refused(folder):
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_buffer("input_grid", torch.zeros(4))
    split = Split(torch.rand(5, 2), torch.zeros(5, dtype=torch.long))
    quantized = quantization.quantize_model(model, weights=4, activations=4, calibration=split)
    with pytest.raises(ValueError, match="'0.input_grid' is a tensor of the model, and the grid of a layer's input"):
        files.write_quantized(quantized, folder / "both.pack")
