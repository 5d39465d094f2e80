"""The fastest file: a choice that a clock decides, among files that answer as the model does."""

import importlib.util

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from helpers import data, measure, nets, runtime, training
from helpers.runtime import DeployError, choosing, openvino
from tests.runtime.onnx_examples import split

ORDER = ["float32, ONNX Runtime", "int8, ONNX Runtime", "float32, OpenVINO", "int8, OpenVINO", "bfloat16, OpenVINO"]


@pytest.fixture(scope="module")
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return nets.lenet5()


@pytest.fixture(scope="module")
def digits() -> data.Split:
    torch.manual_seed(1)
    return data.Split(torch.randn(200, 1, 28, 28), torch.zeros(200, dtype=torch.long))


def timings(**milliseconds: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(ms, 0.01 * ms, 60) for name, ms in {"base": 9.0, **milliseconds}.items()}
    return rows | {f"base{measure.latency.CONTROL}": rng.normal(9.0, 0.09, 60)}


@pytest.mark.parametrize(
    ("milliseconds", "chosen"),
    [
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "a"),
        ({"a": 1.0, "b": 0.5, "c": 0.5}, "b"),
        ({"a": 1.0, "b": 0.5, "c": 0.25}, "c"),
        ({"a": 1.0, "b": 2.0, "c": 0.7}, "c"),
        ({"a": 1.0, "b": 1.001, "c": 0.999}, "a"),
    ],
)
def test_the_plainest_stays_unless_another_is_measurably_faster(milliseconds, chosen):
    assert choosing._chosen(timings(**milliseconds), list(milliseconds)) == chosen


def test_the_file_answers_as_the_model_and_says_what_was_chosen(lenet, digits, tmp_path):
    found = runtime.fastest(lenet, digits, tmp_path / "net.onnx", batch=2, agreement=0.9, rounds=20)
    assert found.name in ORDER and found.file == tmp_path / "net.onnx" and found.refused.keys() <= set(ORDER)
    assert [*found.verdicts][0] == "PyTorch" and found.verdict == found.verdicts[found.name]
    assert {p.key: p.value for p in onnx.load(found.file).metadata_props} == {"fastest": found.name}
    logits = runtime.open_network(found.file).logits(digits.inputs[:50].numpy())
    wanted = training.predict(lenet, digits.inputs[:50]).numpy()
    assert np.abs(logits - wanted).max() < 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ORDER)
def test_predict_opens_a_file_as_it_was_chosen(name, lenet, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(choosing, "_chosen", lambda timings, names: name)
    file = runtime.fastest(lenet, digits, tmp_path / "net.onnx", agreement=0.9, rounds=20).file
    opened, way = [], openvino.opened
    monkeypatch.setattr(openvino, "opened", lambda path, **options: opened.append(options) or way(path, **options))
    picture = tmp_path / "digit.png"
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(picture)
    answer = runtime.predict(file, picture)
    precision = "bfloat16" if name.startswith("bfloat16") else "float32"
    assert opened == ([{"precision": precision}] if "OpenVINO" in name else [])
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    without = runtime.predict(file, picture)
    assert len(opened) == ("OpenVINO" in name) and answer.label == without.label


def test_without_openvino_it_says_so(lenet, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    found = runtime.fastest(lenet, digits, tmp_path / "net.onnx", agreement=0.9, rounds=20)
    assert found.refused["OpenVINO"] == "is not installed" and found.name in ORDER[:2]


def test_what_answers_otherwise_is_refused(lenet, digits, tmp_path, monkeypatch):
    wrong = {"right": lambda x: runtime_answers(lenet, x), "wrong": lambda x: -runtime_answers(lenet, x)}
    monkeypatch.setattr(
        choosing, "candidates", lambda files, **_: {"int8, wrong": wrong["wrong"], ORDER[0]: wrong["right"]}
    )
    found = runtime.fastest(lenet, digits, tmp_path / "net.onnx", rounds=20)
    assert found.name == ORDER[0] and found.refused == {
        "int8, wrong": "gives the model's answer to 0.00%; allowed: at least 99.00%"
    }
    monkeypatch.setattr(choosing, "candidates", lambda files, **_: {"int8, wrong": wrong["wrong"]})
    with pytest.raises(DeployError, match="no candidate answers as the model does"):
        runtime.fastest(lenet, digits, tmp_path / "other.onnx", rounds=20)
    assert not (tmp_path / "other.onnx").exists()


def runtime_answers(model: nn.Module, inputs: np.ndarray) -> np.ndarray:
    return training.predict(model, torch.from_numpy(inputs)).numpy()


def test_a_network_without_integers_is_chosen_in_float32(tmp_path):
    torch.manual_seed(0)
    model = nets.imdb_lstm()
    texts = data.Split(torch.randint(2, 10_000, (120, 9)), torch.zeros(120, dtype=torch.long))
    found = runtime.fastest(model, texts, tmp_path / "net.onnx", rounds=20)
    assert "int8" in found.refused and found.name.startswith(("float32", "bfloat16"))


def test_bad_arguments_are_refused(lenet, digits, tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(ValueError, match="examples is the test split"):
        runtime.fastest(lenet, split(digits.inputs, is_test=True), path)
    with pytest.raises(ValueError, match="examples has 99; allowed: at least 100"):
        runtime.fastest(lenet, digits.take(99), path)
    with pytest.raises(ValueError, match="examples has 200; allowed: at least 202"):
        runtime.fastest(lenet, digits, path, batch=101)
    for agreement in (0.0, 1.01, float("nan")):
        with pytest.raises(ValueError, match="agreement="):
            runtime.fastest(lenet, digits, path, agreement=agreement)
    with pytest.raises(ValueError, match="batch=0"):
        runtime.fastest(lenet, digits, path, batch=0)
