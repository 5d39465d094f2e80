"""Tests of `helpers.runtime.export`."""

import logging

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from helpers import nets, quantization, runtime
from helpers.runtime import export
from tests.runtime.onnx_examples import (
    IMAGES,
    PHOTOS,
    ROWS,
    TEXTS,
    Written,
    assert_texts_answer,
    cifar,
    split,
    trained_batchnorm,
)


@pytest.fixture(scope="module")
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return nets.lenet5()


@pytest.fixture(scope="module")
def exported(lenet, tmp_path_factory):
    return runtime.export_onnx(lenet, IMAGES[:1], tmp_path_factory.mktemp("deploy") / "lenet.onnx")


def test_one_self_contained_file_without_the_exporters_notes(exported):
    assert list(exported.parent.iterdir()) == [exported]
    content = exported.read_bytes()
    assert 4 * 431_080 < len(content) < 4 * 431_080 + 5_000
    assert b"site-packages" not in content
    assert b".py" not in content
    proto = onnx.load_from_string(content)
    onnx.checker.check_model(proto)
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["input", "logits"]


@pytest.mark.parametrize("arguments", [{"example": IMAGES[:0]}, {"example": IMAGES, "check_inputs": IMAGES[:0]}])
def test_nothing_to_check_with_is_refused(lenet, tmp_path, arguments):
    with pytest.raises(ValueError, match="is empty; allowed"):
        runtime.export_onnx(lenet, path=tmp_path / "x.onnx", **arguments)


@pytest.fixture(scope="module")
def wide_graph(tmp_path_factory):
    wide = quantization.fold_batchnorm(cifar(8, 12, 16, 20), PHOTOS)
    return runtime.export_onnx(wide, PHOTOS, tmp_path_factory.mktemp("graph") / "wide.onnx")


def test_another_networks_graph_is_refused(wide_graph, tmp_path, lenet):
    with pytest.raises(ValueError, match=r"wide.onnx' has no 'conv1.bias'; allowed: a network of the same layers"):
        runtime.export_like(lenet, wide_graph, IMAGES, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="has no 'conv1.bn.bias'"):
        runtime.export_like(cifar(3, 5, 7, 9), wide_graph, PHOTOS, tmp_path / "x.onnx")
    deeper = quantization.fold_batchnorm(cifar(3, 5, 7, 9), PHOTOS)
    deeper.pool = nn.Sequential(deeper.pool, nn.ReLU6())  # no weights of its own, but another answer
    with pytest.raises(runtime.DeployError, match="ONNX Runtime's logits"):
        runtime.export_like(deeper, wide_graph, PHOTOS * 50, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="example is empty"):
        runtime.export_like(deeper, wide_graph, PHOTOS[:0], tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


class Reader(nn.Module):
    """One answer for each sequence of six numbers, by a recurrent layer."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 6, padding_idx=1)
        self.reader, self.fc = kind(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, tokens):
        return self.fc(self.reader(self.embedding(tokens))[0].amax(1))


def texts(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "bag":
        return nets.TextBag(30, dimensions=6, hidden=5)
    if kind in ("lstm", "gru"):
        return Reader(nn.LSTM if kind == "lstm" else nn.GRU)
    encoder = {"cnn": nets.TextCNN, "own lstm": nets.LSTM, "own rnn": nets.RNN}[kind](6, 5)
    return nets.TextNet(encoder, 5, words=30, dimensions=6)


@pytest.mark.parametrize(
    "kinds",
    [
        ["bag"],
        ["cnn"],
        # torch's exporter took an LSTM apart for one length, from the second one in a process on.
        pytest.param(["own lstm", "lstm", "gru", "lstm"], marks=pytest.mark.slow),
    ],
)
def test_texts_of_any_length(kinds, tmp_path):
    for kind in kinds:
        model = texts(kind)
        path = runtime.export_onnx(model, TEXTS[:1], tmp_path / "x.onnx", check_inputs=TEXTS)
        assert runtime.session(path).get_inputs()[0].shape == ["batch", "length"], kind
        assert_texts_answer(model, path, [(1, 12), (5, 7), (3, 40), (2, 1)])


def test_advice_reaches_no_handler_and_what_comes_after_it_does(caplog):
    with export.without_advice():
        logging.warning("use another exporter")
        logging.getLogger("torch.onnx").error("a traceback")
    logging.warning("one's own")
    assert [record.message for record in caplog.records] == ["one's own"]


NO_GRAPH = {
    "number": lambda fc, x: fc(x.view(4, -1)),
    "rows": lambda fc, x: torch.stack([fc(row.flatten()) for row in x]),
    "if": lambda fc, x: fc(x.flatten(1)) if x.sum() > 0 else -fc(x.flatten(1)),
}


@pytest.mark.parametrize("kind", NO_GRAPH)
def test_what_can_be_no_graph_is_said_in_one_sentence(kind, tmp_path, capfd):
    with pytest.raises(runtime.DeployError, match="model cannot be a graph for any batch: .*; write x.shape") as error:
        runtime.export_onnx(Written(NO_GRAPH[kind]), ROWS, tmp_path / "x.onnx")
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_a_network_for_one_example_at_a_time_is_refused(tmp_path):
    with pytest.raises(runtime.DeployError, match="cannot be a graph for any batch"):
        runtime.export_onnx(Written(lambda fc, x: fc(x.view(1, -1))), ROWS[:1], tmp_path / "x.onnx")


@pytest.mark.parametrize(
    "way, words",
    [
        (lambda fc, x: (fc(x.flatten(1)), x), "model answers with a tuple; allowed: one tensor, the logits"),
        (lambda fc, x: {"out": fc(x.flatten(1))}, "model answers with a dict; allowed"),
        (lambda fc, x: fc(x.flatten(1)) / 0 * 0, "model's answer to example holds NaN"),
        (lambda fc, x: fc(x), "example has shape .4, 3, 4. and type torch.float32, on which the model fails"),
    ],
)
def test_answers_that_are_no_logits_are_refused(way, words, exported, tmp_path):
    for spied in (runtime.export_onnx, lambda *given: runtime.export_like(given[0], exported, *given[1:])):
        with pytest.raises(ValueError, match=words):
            spied(Written(way), ROWS, tmp_path / "x.onnx")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_refused(dtype, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).to(dtype)
    with pytest.raises(ValueError, match=f"model has '1.weight' of {dtype}; allowed: torch.float32, model.float"):
        runtime.export_onnx(model, ROWS.to(dtype), tmp_path / "x.onnx")


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
    """A network whose layers round their inputs, its graph, and 2,000 inputs: a million and a half numbers to round."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 5)).eval()
    inputs = torch.randn(2_000, 20, generator=torch.Generator().manual_seed(5))
    model = quantization.quantize_model(net, weights=8, activations=8, calibration=split(inputs))
    path = runtime.export_onnx(model, inputs[:2], tmp_path_factory.mktemp("rounded") / "x.onnx", check_inputs=inputs)
    return model, path.read_bytes(), inputs


def changed(content: bytes, change) -> bytes:
    """The graph with its stored numbers changed: change(name, numbers) returns new ones."""
    proto = onnx.load_from_string(content)
    for tensor in proto.graph.initializer:
        old = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(change(tensor.name, old), old.dtype), tensor.name))
    return proto.SerializeToString()


def reordered(name: str, numbers: np.ndarray) -> np.ndarray:
    """As another order of adding does: each sum comes out otherwise by a millionth."""
    return numbers * np.float32(1 + 1e-6) if name == "0.weight" else numbers


def test_numbers_between_two_codes_may_go_either_way(rounded):
    model, content, inputs = rounded
    other = changed(content, reordered)
    expected = model(inputs).detach().numpy()
    with pytest.raises(runtime.DeployError, match="differ"):
        export._require_close(export._answers(other, inputs), expected)
    export._require_same_logits(other, model, inputs)
    proto = onnx.load_from_string(content)
    assert sum(node.op_type == "Round" for node in proto.graph.node) == 3
    assert {"0.weight", "2.weight", "4.weight"} <= {tensor.name for tensor in proto.graph.initializer}


BROKEN = {
    "a weight": lambda name, x: x * 1.003 if name == "4.weight" else x,
    "one number of a weight": lambda name, x: (
        x + 0.5 * (np.arange(x.size).reshape(x.shape) == 7) if name == "2.weight" else x
    ),
    "a bias": lambda name, x: x + 0.01 if name == "2.bias" else x,
}


@pytest.mark.parametrize("kind", [*BROKEN, "no rounding", pytest.param("coarser", marks=pytest.mark.slow)])
def test_a_wrong_graph_of_a_rounded_network_is_noticed(rounded, kind):
    model, content, inputs = rounded
    if kind == "no rounding":
        wrong = export._without_roundings(content)
    elif kind == "coarser":
        coarse = {name: g._replace(scale=g.scale * 2) for name, g in quantization.input_grids(model).items()}
        net = quantization.with_input_grids(quantization.bake(model), coarse)
        wrong = export._export(net.eval(), inputs[:2], any_length=False)
    else:
        wrong = changed(content, BROKEN[kind])
    with pytest.raises(runtime.DeployError, match="ONNX Runtime's logits differ"):
        export._require_same_logits(changed(wrong, reordered), model, inputs)


class Tied(nn.Module):
    """Two layers that share a weight, one module under two names, and a transposed convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.bn = nn.ConvTranspose2d(3, width, 2), nn.BatchNorm2d(width)
        self.a, self.b, self.one = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.b.weight, self.two, self.fc = self.a.weight, self.one, nn.Linear(width, 3)

    def forward(self, x):
        x = self.bn(self.up(x)).relu()
        return self.fc(self.two(self.one(self.b(self.a(x).relu()).relu()).relu()).mean((2, 3)))


def test_the_graph_of_a_network_with_shared_tensors(tmp_path):
    torch.manual_seed(0)
    photos = torch.randn(3, 3, 6, 6)
    wide, narrow = (trained_batchnorm(Tied(width)) for width in (6, 4))
    graph = runtime.export_onnx(quantization.fold_batchnorm(wide, photos), photos, tmp_path / "wide.onnx")
    path = runtime.export_like(quantization.fold_batchnorm(narrow, photos), graph, photos, tmp_path / "narrow.onnx")
    found = runtime.run(runtime.session(path), photos[:1].numpy())
    assert np.allclose(found, narrow(photos[:1]).detach().numpy(), atol=1e-5)
    assert path.stat().st_size < graph.stat().st_size
    with pytest.raises(ValueError, match="has no 'bn.bias'; allowed: a network of the same layers, BatchNorm folded"):
        runtime.export_like(narrow, graph, photos, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="x.onnx' is not a model"):
        (tmp_path / "x.onnx").write_bytes(b"no graph")
        runtime.export_like(narrow, tmp_path / "x.onnx", photos, tmp_path / "y.onnx")


def test_zeros_around_a_maximum_that_the_runtime_loses_are_noticed(tmp_path):
    """ONNX Runtime 1.31.1 moves the zeros of a Pad into MaxPool's own padding, which never wins."""
    model = nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, 2), nn.Flatten(), nn.LazyLinear(2)).eval()
    below = -IMAGES.abs() - 1
    model(below)
    with pytest.raises(runtime.DeployError, match="logits differ"):
        runtime.export_onnx(model, below, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize(("least", "shown"), [(1, 7), (20, 31)])
def test_a_recurrent_layer_is_shown_as_few_words_as_it_takes(least, shown, monkeypatch):
    """The exporter takes each step apart: 1,000 of them took minutes, for the same graph."""

    class Model(nn.Module):
        def forward(self, tokens):
            if tokens.shape[1] < least:
                raise ValueError("too short")
            return tokens.float().sum(1, keepdim=True)

    found = export._of_a_few_words(Model(), torch.ones(2, 1_000, dtype=torch.long))
    assert found.shape == (2, shown) and found.is_contiguous()
