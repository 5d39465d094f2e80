"""What is measured of a conversion: closed forms, for functions that stand in for a tool's answers."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from helpers import nets, quantization, runtime
from helpers.core import paths
from helpers.data import Split
from helpers.tools import measuring, reading, starting
from helpers.tools.conversion import Conversion, byte_size

INPUTS = torch.randn(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def two_sums(batch: np.ndarray) -> np.ndarray:
    flat = batch.reshape(len(batch), -1)
    return np.stack([flat[:, :8].sum(1), flat[:, 8:].sum(1)], 1)


def test_batches_of_one_size_only_give_all_answers():
    seen = []

    def answers(batch):
        seen.append(batch.shape)
        return two_sums(batch)

    assert np.array_equal(measuring.in_batches(answers, INPUTS[:130]), two_sums(INPUTS[:130].numpy()))
    assert set(seen) == {(64, 1, 4, 4)} and len(seen) == 3


def test_an_answer_in_reused_memory_is_copied():
    memory = np.empty((64, 2))

    def answers(batch):
        memory[:] = two_sums(batch)
        return memory

    assert np.allclose(measuring.in_batches(answers, INPUTS[:200]), two_sums(INPUTS[:200].numpy()), atol=1e-5)


def test_errors_and_losses_are_those_of_the_formula():
    expected = two_sums(INPUTS.numpy())
    labels = torch.from_numpy(expected.argmax(1))
    found = measuring.asked(lambda batch: two_sums(batch) + [0.25, 0], Split(INPUTS, labels), expected)
    moved = (expected + [0.25, 0]).argmax(1) != expected.argmax(1)
    assert found["logits_error"] == pytest.approx(0.25 / np.abs(expected).max(), rel=1e-4)
    assert found["same_answer"] == pytest.approx(1 - moved.mean()) and found["accuracy"] == found["same_answer"]
    assert found["lost"] == pytest.approx(100 * moved.mean()) and found["count"] == 300 and 0 < moved.mean() < 0.2


@pytest.mark.parametrize(("seconds", "count"), [(0.1, 3_000), (7, 1_000), (40, 256)])
def test_who_answers_slowly_is_asked_fewer(seconds, count, monkeypatch):
    inputs = INPUTS.repeat(10, 1, 1, 1)
    clock = iter([0.0, seconds])
    monkeypatch.setattr(measuring.time, "monotonic", lambda: next(clock))
    expected = two_sums(inputs.numpy())
    found = measuring.asked(two_sums, Split(inputs, torch.zeros(3_000, dtype=torch.long)), expected)
    assert found["count"] == count and found["lost"] == 0
    assert found["accuracy"] == pytest.approx((expected[:count].argmax(1) == 0).mean())


def test_what_fails_or_takes_too_long_is_not_timed_and_says_why(monkeypatch):
    def broken(**_):
        raise RuntimeError("no such batch")

    def slow(batch):
        return two_sums(batch)

    monkeypatch.setattr(measuring, "ROUNDS", 20)
    monkeypatch.setattr(measuring, "_seconds", lambda function: 3.0 if function.func is slow else 1e-4)
    openers = {"a": lambda **_: two_sums, "b": lambda **_: two_sums, "c": broken, "d": lambda **_: slow}
    found = measuring.timed(openers, INPUTS)
    assert found.keys() == measuring.WAYS.keys()
    for way in found.values():
        assert way["b"]["verdict"] in ("faster", "slower", "no measurable difference") and way["b"]["ratio"] > 0
        assert way["c"] == {"not timed": "RuntimeError: no such batch"}
        assert way["d"] == {"not timed": "one call takes 3.0 s"}


def test_long_calls_are_not_timed_warm(monkeypatch):
    monkeypatch.setattr(measuring, "ROUNDS", 20)
    monkeypatch.setattr(measuring, "_seconds", lambda function: 0.2)
    assert not any("warm" in way for way in measuring.timed({"a": lambda **_: two_sums}, INPUTS))


def test_a_channel_without_numbers_changes_nothing_else():
    model = nets.cifar_small().eval()
    new = measuring.without_channel(model)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before, after = model.stem(images), new.stem(images)
    assert not after[:, 0].any() and torch.equal(before[:, 1:], after[:, 1:])


@pytest.mark.data
def test_each_step_of_a_tool_is_recorded_also_what_fails(tmp_path, monkeypatch):
    def convert(network, folder):
        return Conversion(
            runtime.export_onnx(network.model, network.calibration.inputs[:2], folder / "n.onnx"), {"a": 1}
        )

    def refuse(network, folder):
        raise NotImplementedError("no such layer")

    tool = types.ModuleType("helpers.tools.hammer")
    tool.VARIANTS = {"whole": (convert, lambda file, **o: measuring._in_onnxruntime(file, **o)), "half": (refuse, None)}
    monkeypatch.setitem(sys.modules, "helpers.tools.hammer", tool)
    monkeypatch.setattr(measuring, "WAYS", {"one": (1, 1, 1)})
    reports = []
    measuring.measured("hammer", "lenet5", tmp_path, lambda found: reports.append(json.loads(json.dumps(found))))
    found = reports[-1]
    assert reports[0]["running"] == "whole"
    assert found["variants"]["half"] == {"failed": "NotImplementedError: no such layer"}
    whole = found["variants"]["whole"]
    assert whole["file"] == "whole/n.onnx" and whole["bytes"] == (tmp_path / "whole" / "n.onnx").stat().st_size
    assert whole["logits_error"] < 1e-5 and whole["lost"] == 0 and whole["accuracy"] == found["dense"]["accuracy"]
    assert found["latency"]["one"].keys() == {measuring.INT8, measuring.FLOAT, "whole"}
    assert found["float32_bytes"] == 4 * sum(p.numel() for p in nets.lenet5().parameters())


@pytest.mark.slow
def test_a_program_that_answers_says_what_it_took_and_imports_no_torch(tmp_path):
    torch.manual_seed(0)
    file = runtime.export_onnx(nets.lenet5().eval(), torch.randn(2, 1, 28, 28), tmp_path / "net.onnx")
    command = [sys.executable, "-m", "helpers.tools.starting", "onnxruntime", "float32", str(file), "1,1,28,28"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=paths.ROOT).stdout)
    assert 0.05 < found["seconds"] < 120 and 20 < found["peak_memory_mb"] < 1_000 and found["torch"] is False


@pytest.mark.parametrize(("shape", "kind"), [("1,3,4,4", np.float32), ("1,9", np.int64)])
def test_the_first_question_is_of_the_kind_that_the_network_takes(shape, kind, monkeypatch, capsys):
    asked = []
    tool = types.ModuleType("helpers.tools.hammer")
    tool.VARIANTS = {"whole": (None, lambda file, *, threads, batch: lambda inputs: asked.append(inputs))}
    monkeypatch.setitem(sys.modules, "helpers.tools.hammer", tool)
    starting.main("hammer", "whole", "net", shape)
    assert asked[0].shape == tuple(map(int, shape.split(","))) and asked[0].dtype == kind
    assert json.loads(capsys.readouterr().out)["seconds"] > 0


def test_the_bytes_of_a_folder_are_those_of_all_its_files(tmp_path):
    (tmp_path / "net" / "deep").mkdir(parents=True)
    (tmp_path / "net" / "a").write_bytes(b"12345")
    (tmp_path / "net" / "deep" / "b").write_bytes(b"123")
    assert byte_size(tmp_path / "net") == 8 and byte_size(tmp_path / "net" / "a") == 5


def test_a_graph_says_what_it_is(tmp_path):
    torch.manual_seed(0)
    model, images = nets.cifar_small().eval(), torch.randn(20, 3, 32, 32)
    plain = runtime.export_onnx(quantization.fold_batchnorm(model, images[:2]), images[:2], tmp_path / "plain.onnx")
    whole = reading.onnx_facts(plain)
    assert whole["weights"] == "0" and len(whole["float layers"]) == 9 and whole["per channel"] is None
    assert (whole["activations"], whole["batchnorm"], whole["batch"]) == ("float32", "folded", "any")
    calibration = Split(images, torch.zeros(20, dtype=torch.long))
    for activations, per_channel in (("uint8", True), ("int8", False)):
        file = tmp_path / f"{activations}.onnx"
        runtime.quantize_static(plain, calibration, file, activations=activations, per_channel=per_channel)
        found = reading.onnx_facts(file)
        assert found["weights"] == "9 int8" and found["float layers"] == []
        assert (found["activations"], found["per channel"]) == (activations, per_channel)
