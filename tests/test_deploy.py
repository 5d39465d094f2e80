"""Export: the same logits for any batch, one clean file, no output; sessions with a fixed thread count."""

import logging
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from helpers import data, deploy, models, pruning, quantization

IMAGES = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return models.lenet5()


@pytest.fixture(scope="module")
def exported(lenet, tmp_path_factory):
    return deploy.export_onnx(lenet, IMAGES[:1], tmp_path_factory.mktemp("deploy") / "lenet.onnx")


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
@pytest.mark.parametrize("threads", [1, 2])
def test_any_batch_gives_torchs_logits(lenet, exported, batch, threads):
    images = torch.randn(batch, 1, 28, 28)
    logits = deploy.run(deploy.session(exported, threads=threads), images.numpy())
    assert logits.shape == (batch, 10)
    assert logits.dtype == np.float32
    assert np.abs(logits - lenet(images).detach().numpy()).max() < 1e-5


def test_one_self_contained_file_without_the_exporters_notes(exported):
    assert list(exported.parent.iterdir()) == [exported]
    content = exported.read_bytes()
    assert 4 * 431_080 < len(content) < 4 * 431_080 + 5_000
    assert b"site-packages" not in content
    assert b".py" not in content
    proto = onnx.load_from_string(content)
    onnx.checker.check_model(proto)
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["input", "logits"]


def test_export_is_quiet_and_leaves_the_model_alone(tmp_path, capfd):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model.append(nn.Dropout(0.9)).append(nn.Linear(4, 3)).train()
    model(IMAGES)
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = deploy.export_onnx(model, IMAGES, tmp_path / "deep" / "down" / "bn.onnx")
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    logits = deploy.run(deploy.session(path), IMAGES.numpy())
    assert np.allclose(logits, model.eval()(IMAGES).detach().numpy(), atol=1e-5)


def test_masks_are_applied(lenet, tmp_path):
    masked = pruning.mask(lenet, pruning.layer_masks(lenet, 0.9))
    path = deploy.export_onnx(masked, IMAGES, tmp_path / "masked.onnx")
    assert "Mul" not in {node.op_type for node in onnx.load(path).graph.node}
    found = deploy.run(deploy.session(path), IMAGES.numpy())
    assert np.abs(found - masked(IMAGES).detach().numpy()).max() < 1e-5
    assert pruning.masks_of(masked)


WRONG = {
    "off": lambda logits: logits + 0.01,
    "nan": lambda logits: logits * np.nan,
    "short": lambda logits: logits[:, :9],
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_with_other_answers_is_not_written(lenet, exported, tmp_path, monkeypatch, kind):
    path, honest = tmp_path / "old.onnx", deploy.run
    path.write_bytes(b"what was here before")
    monkeypatch.setattr(deploy, "_export", lambda model, batch, **sizes: exported.read_bytes())
    monkeypatch.setattr(deploy, "run", lambda session, inputs: WRONG[kind](honest(session, inputs)))
    with pytest.raises(deploy.DeployError, match="logits"):
        deploy.export_onnx(lenet, IMAGES, path)
    assert path.read_bytes() == b"what was here before"
    assert list(tmp_path.iterdir()) == [path]


def test_another_batch_size_is_checked_too(lenet, exported, tmp_path, monkeypatch):
    """A graph that answers only the batch it was traced with fails the reader who has one image."""
    honest = deploy.run
    monkeypatch.setattr(deploy, "_export", lambda model, batch, **sizes: exported.read_bytes())
    monkeypatch.setattr(deploy, "run", lambda s, x: honest(s, x) if len(x) > 1 else honest(s, x) + 1)
    with pytest.raises(deploy.DeployError, match="differ"):
        deploy.export_onnx(lenet, IMAGES, tmp_path / "fixed.onnx")


@pytest.mark.parametrize("arguments", [{"example": IMAGES[:0]}, {"example": IMAGES, "check_inputs": IMAGES[:0]}])
def test_nothing_to_check_with_is_refused(lenet, tmp_path, arguments):
    with pytest.raises(ValueError, match="is empty; allowed"):
        deploy.export_onnx(lenet, path=tmp_path / "x.onnx", **arguments)


def test_sessions_use_the_threads_they_are_given(exported):
    for threads in (1, 2):
        options = deploy.session(exported, threads=threads).get_session_options()
        assert options.intra_op_num_threads == threads
        assert options.inter_op_num_threads == 1
        assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.raises(ValueError, match="threads=0"):
        deploy.session(exported, threads=0)


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_what_is_no_onnx_model_is_said_in_one_sentence(exported, tmp_path, capfd, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(exported.read_bytes()[:9_000] if content is None else content)
    with pytest.raises(ValueError, match="bad.onnx' is not a model that ONNX Runtime can read") as error:
        deploy.session(path)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        deploy.session(tmp_path / "none.onnx")


# ---------------------------------------------------------------- BatchNorm folded, and other weights in the same graph


def trained_batchnorm(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics, scale and shift that folding must not lose; return it in evaluation mode."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.3)
    return model.eval()


def cifar(*widths: int) -> nn.Module:
    torch.manual_seed(0)
    return trained_batchnorm(models.CifarNet(widths, classes=3))


PHOTOS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def wide_graph(tmp_path_factory):
    wide = quantization.fold_batchnorm(cifar(8, 12, 16, 20), PHOTOS)
    return deploy.export_onnx(wide, PHOTOS, tmp_path_factory.mktemp("graph") / "wide.onnx")


def test_the_graph_of_one_network_runs_anothers_weights(wide_graph, tmp_path):
    content, model = wide_graph.read_bytes(), cifar(3, 5, 7, 9)
    path = deploy.export_like(
        quantization.fold_batchnorm(model, PHOTOS), wide_graph, PHOTOS, tmp_path / "deep" / "narrow.onnx"
    )
    for batch in (1, 3):
        found = deploy.run(deploy.session(path), PHOTOS[:batch].numpy())
        assert np.allclose(found, model.eval()(PHOTOS[:batch]).detach().numpy(), atol=1e-4)
    weights = sum(np.prod(tensor.dims) for tensor in onnx.load(path).graph.initializer)
    assert weights < 1.1 * sum(parameter.numel() for parameter in model.parameters())
    assert wide_graph.read_bytes() == content


def test_another_networks_graph_is_refused(wide_graph, tmp_path, lenet):
    with pytest.raises(ValueError, match=r"wide.onnx' has no 'conv1.bias'; allowed: a network of the same layers"):
        deploy.export_like(lenet, wide_graph, IMAGES, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="has no 'conv1.bn.bias'"):
        deploy.export_like(cifar(3, 5, 7, 9), wide_graph, PHOTOS, tmp_path / "x.onnx")
    deeper = quantization.fold_batchnorm(cifar(3, 5, 7, 9), PHOTOS)
    deeper.pool = nn.Sequential(deeper.pool, nn.ReLU6())  # no weights of its own, but another answer
    with pytest.raises(deploy.DeployError, match="ONNX Runtime's logits"):
        deploy.export_like(deeper, wide_graph, PHOTOS * 50, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="example is empty"):
        deploy.export_like(deeper, wide_graph, PHOTOS[:0], tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


# ---------------------------------------------------------------- integers


def split(images, *, is_test: bool = False) -> data.Split:
    return data.Split(images, torch.zeros(len(images), dtype=torch.long), is_test)


def initializers(path) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.fixture(scope="module")
def quantized(exported, tmp_path_factory):
    return deploy.quantize_static(exported, split(IMAGES), tmp_path_factory.mktemp("int8") / "deep" / "lenet.onnx")


def test_weights_are_stored_as_bytes_with_a_scale_for_each_channel(lenet, exported, quantized):
    stored = initializers(quantized)
    for layer in ("conv1", "conv2", "fc1", "fc2"):
        weight = lenet.get_submodule(layer).weight.detach().numpy()
        scale = np.abs(weight).reshape(len(weight), -1).max(1) / 127
        codes = stored[f"{layer}.weight_quantized"]
        assert codes.dtype == np.int8
        assert np.allclose(stored[f"{layer}.weight_scale"], scale, rtol=1e-5)
        assert not stored[f"{layer}.weight_zero_point"].any()
        values = codes * stored[f"{layer}.weight_scale"].reshape(-1, *[1] * (weight.ndim - 1))
        assert np.abs(values - weight).max() <= 0.501 * scale.max()
    assert exported.stat().st_size / quantized.stat().st_size > 3.8


def test_no_weight_is_left_in_floating_point(quantized):
    kinds = {tensor.data_type for tensor in onnx.load(quantized).graph.initializer if len(tensor.dims) > 1}
    assert kinds == {onnx.TensorProto.INT8}


def test_the_integer_network_answers_like_the_other(lenet, quantized):
    for batch in (1, 6):
        found = deploy.run(deploy.session(quantized), IMAGES[:batch].numpy())
        expected = lenet(IMAGES[:batch]).detach().numpy()
        assert 1e-6 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_a_layer_is_computed_with_whole_numbers(tmp_path):
    """All sums, rounded and cut off, as integers alone would give them."""
    torch.manual_seed(0)
    layer, inputs = nn.Sequential(nn.Linear(40, 7), nn.ReLU()), torch.randn(64, 40)
    graph = deploy.export_onnx(layer, inputs[:2], tmp_path / "layer.onnx")
    path = deploy.quantize_static(graph, split(inputs), tmp_path / "int8.onnx")
    n = initializers(path)
    assert n["input_zero_point"].dtype == n["logits_zero_point"].dtype == np.uint8
    assert np.isclose(n["input_scale"], (inputs.max() - inputs.min()) / 255, rtol=1e-5)
    codes = np.clip(np.rint(inputs.numpy() / n["input_scale"]) + n["input_zero_point"], 0, 255).astype(np.int64)
    sums = (codes - int(n["input_zero_point"])) @ n["0.weight_quantized"].T.astype(np.int64) + n["0.bias_quantized"]
    factor = n["input_scale"].astype(np.float64) * n["0.weight_scale"] / n["logits_scale"]
    expected = np.clip(np.rint(sums * factor) + n["logits_zero_point"], 0, 255)
    found = deploy.run(deploy.session(path), inputs.numpy()) / n["logits_scale"] + n["logits_zero_point"]
    assert np.abs(found - expected).max() < 1.01  # where a sum lies between two codes, either is right
    assert (np.abs(found - expected) > 0.01).mean() < 0.01


@pytest.mark.parametrize("activations, weights", [("uint8", "uint8"), ("int8", "int8"), ("uint8", "int4")])
def test_other_types(lenet, exported, tmp_path, capfd, activations, weights):
    path = deploy.quantize_static(
        exported, split(IMAGES), tmp_path / "other.onnx", activations=activations, weights=weights
    )
    assert capfd.readouterr() == ("", "")
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert kinds["fc1.weight_quantized"] == onnx.TensorProto.DataType.Value(weights.upper())
    assert kinds["input_zero_point"] == onnx.TensorProto.DataType.Value(activations.upper())
    found, expected = deploy.run(deploy.session(path), IMAGES.numpy()), lenet(IMAGES).detach().numpy()
    assert np.abs(found - expected).max() < (0.5 if weights == "int4" else 0.05) * np.abs(expected).max()
    if weights == "int4":
        assert exported.stat().st_size / path.stat().st_size > 7


def test_ranges_are_those_of_the_calibration(exported, tmp_path):
    images = torch.randn(500, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    images[0, 0, 0, 0] = 100.0
    scales = {}
    for method in deploy.CALIBRATIONS:
        path = deploy.quantize_static(exported, split(images), tmp_path / "x.onnx", method=method)
        scales[method] = initializers(path)["input_scale"]
    assert np.isclose(scales["minmax"], float(images.max() - images.min()) / 255, rtol=1e-4)
    inner = images.flatten().quantile(torch.tensor([5e-6, 1 - 5e-6]))  # 0.0005 % are left out at each end
    assert np.isclose(scales["percentile"], float(inner.diff()) / 255, rtol=0.1)


@pytest.mark.parametrize("count", [1, 7, 53, 100])
def test_any_number_of_images_calibrates(exported, tmp_path, count):
    images = torch.randn(count, 1, 28, 28)
    for method in deploy.CALIBRATIONS:
        path = deploy.quantize_static(exported, split(images), tmp_path / "x.onnx", method=method)
        assert initializers(path)["input_scale"] <= 1.0001 * float(images.max() - images.min()) / 255


def test_one_scale_for_a_whole_weight(lenet, exported, tmp_path):
    stored = initializers(deploy.quantize_static(exported, split(IMAGES), tmp_path / "x.onnx", per_channel=False))
    assert stored["fc1.weight_scale"].shape == ()
    assert np.isclose(stored["fc1.weight_scale"], lenet.fc1.weight.detach().abs().max().numpy() / 127, rtol=1e-5)


def test_quantizing_is_quiet_and_leaves_everything_else_alone(exported, quantized, tmp_path, capfd):
    before, handlers, level = exported.read_bytes(), list(logging.root.handlers), logging.root.manager.disable
    deploy.quantize_static(exported, split(IMAGES), tmp_path / "int8.onnx")
    assert capfd.readouterr() == ("", "")
    assert exported.read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "int8.onnx"]
    assert (logging.root.handlers, logging.root.manager.disable) == (handlers, level)
    assert (tmp_path / "int8.onnx").read_bytes() == quantized.read_bytes()  # the same images, the same file


def test_a_network_may_not_be_calibrated_on_test_images(exported, tmp_path):
    with pytest.raises(ValueError, match="calibration is the test split"):
        deploy.quantize_static(exported, split(IMAGES, is_test=True), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="calibration is the test split"):
        deploy.quantize_static(exported, split(IMAGES, is_test=True).take(1), tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


class Scaled(nn.Module):
    """What lies between the layers has floats of two and more dimensions, but none that is a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(1, 3, 1, 1))
        self.register_buffer("std", torch.rand(1, 3, 1, 1) + 0.5)
        self.conv, self.slopes, self.slope = nn.Conv2d(3, 16, 3), nn.PReLU(16), nn.PReLU(1)
        self.table, self.fc = nn.Parameter(torch.randn(16, 6, 6)), nn.Linear(16 * 36, 3)

    def forward(self, x):
        x = self.slopes(self.conv((x - self.mean) / self.std))
        return self.fc(self.slope(x - self.table).flatten(1))


def test_floats_between_the_layers_are_no_weights(tmp_path):
    torch.manual_seed(0)
    model, inputs = Scaled().eval(), torch.randn(20, 3, 8, 8)
    graph = deploy.export_onnx(model, inputs[:2], tmp_path / "scaled.onnx")
    path = deploy.quantize_static(graph, split(inputs), tmp_path / "int8.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert kinds["conv.weight_quantized"] == kinds["fc.weight_quantized"] == onnx.TensorProto.INT8
    found, expected = deploy.run(deploy.session(path), inputs.numpy()), model(inputs).detach().numpy()
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def graph_of(*nodes, **weights: np.ndarray) -> bytes:
    """A graph of operators, with these floats in it."""
    tensors = [onnx.numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy")
    made = [onnx.helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes]
    return onnx.helper.make_model(onnx.helper.make_graph(made, "g", [x], [y], tensors)).SerializeToString()


MATRIX = np.ones((4, 4), np.float32)


@pytest.mark.parametrize("kind", deploy.MULTIPLYING)
def test_weights_that_would_stay_floats_are_an_error(kind):
    said = f"'table' would be stored in floating point: {kind} has no integers here"
    with pytest.raises(deploy.DeployError, match=said):
        deploy._require_integers(graph_of((kind, ["x", "table"], "y"), table=MATRIX))
    moved = [("Transpose", ["table"], "a"), ("Reshape", ["a", "shape"], "b"), (kind, ["x", "b"], "y")]
    with pytest.raises(deploy.DeployError, match=said):
        deploy._require_integers(graph_of(*moved, table=MATRIX))


@pytest.mark.parametrize("kind", ["Add", "Mul", "Sub", "Div", "PRelu", "Pow", "Concat", "Where"])
def test_what_is_added_or_scales_may_stay_a_float(kind):
    nodes = [(kind, ["x", "table"], "a"), ("MatMul", ["a", "codes"], "y")]
    deploy._require_integers(graph_of(*nodes, table=MATRIX, codes=MATRIX.astype(np.int8)))
    deploy._require_integers(graph_of(("Conv", ["x", "w", "bias"], "y"), bias=np.ones(4, np.float32)))


class Reader(nn.Module):
    """One answer for each sequence of six numbers, by a recurrent layer."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 6, padding_idx=1)
        self.reader, self.fc = kind(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, tokens):
        return self.fc(self.reader(self.embedding(tokens))[0].amax(1))


TEXTS = torch.randint(2, 30, (4, 12), generator=torch.Generator().manual_seed(3))
TEXTS[0, 7:] = TEXTS[2, 3:] = 1


def texts(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "bag":
        return models.TextBag(30, dimensions=6, hidden=5)
    if kind in ("lstm", "gru"):
        return Reader(nn.LSTM if kind == "lstm" else nn.GRU)
    encoder = {"cnn": models.TextCNN, "own lstm": models.LSTM, "own rnn": models.RNN}[kind](6, 5)
    return models.TextNet(encoder, 5, words=30, dimensions=6)


def assert_texts_answer(model: nn.Module, path, lengths) -> None:
    session = deploy.session(path)
    for count, length in lengths:
        tokens = TEXTS.repeat(2, 4)[:count, :length]
        found, expected = deploy.run(session, tokens.numpy()), model.eval()(tokens).detach().numpy()
        assert found.shape == (count, expected.shape[1]) and np.abs(found - expected).max() < 1e-5


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
        path = deploy.export_onnx(model, TEXTS[:1], tmp_path / "x.onnx", check_inputs=TEXTS)
        assert deploy.session(path).get_inputs()[0].shape == ["batch", "length"], kind
        assert_texts_answer(model, path, [(1, 12), (5, 7), (3, 40), (2, 1)])


@pytest.mark.slow
def test_texts_of_one_length_where_the_graph_can_have_no_other(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.fc = nn.Embedding(30, 3), nn.Linear(36, 2)

        def forward(self, tokens):
            return self.fc(self.embedding(tokens).flatten(1))

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.fc = nn.Embedding(30, 3), nn.Linear(3, 2)

        def forward(self, tokens):
            state = 0
            for step in self.embedding(tokens).unbind(1):
                state = torch.tanh(self.fc(step).sum(1, keepdim=True) + state)
            return self.fc(state + self.embedding(tokens[:, 0]))

    for kind in (Fixed, Loop):
        model = kind()
        path = deploy.export_onnx(model, TEXTS, tmp_path / "x.onnx")
        assert deploy.session(path).get_inputs()[0].shape == ["batch", 12]
        assert_texts_answer(model, path, [(1, 12), (5, 12)])
        with pytest.raises(ValueError, match=r"inputs=int64 \(2, 7\) cannot be computed .*allowed: tensor.int64. .*12"):
            deploy.run(deploy.session(path), TEXTS[:2, :7].numpy())


# ---------------------------------------------------------------- what can be no graph


class Written(nn.Module):
    """A linear layer, and a forward pass of one's own."""

    def __init__(self, way) -> None:
        super().__init__()
        self.fc, self.way = nn.Linear(12, 3), way

    def forward(self, x):
        return self.way(self.fc, x)


ROWS = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(4))


def test_a_batch_may_be_counted_by_len(tmp_path):
    model = Written(lambda fc, x: fc(x.relu().reshape(len(x), -1)))
    path = deploy.export_onnx(model, ROWS, tmp_path / "len.onnx")
    for batch in (ROWS[:1], ROWS, torch.cat([ROWS, ROWS])):
        found = deploy.run(deploy.session(path), batch.numpy())
        assert np.abs(found - model(batch).detach().numpy()).max() < 1e-5


NO_GRAPH = {
    "number": lambda fc, x: fc(x.view(4, -1)),
    "rows": lambda fc, x: torch.stack([fc(row.flatten()) for row in x]),
    "if": lambda fc, x: fc(x.flatten(1)) if x.sum() > 0 else -fc(x.flatten(1)),
}


@pytest.mark.parametrize("kind", NO_GRAPH)
def test_what_can_be_no_graph_is_said_in_one_sentence(kind, tmp_path, capfd):
    with pytest.raises(deploy.DeployError, match="model cannot be a graph for any batch: .*; write x.shape") as error:
        deploy.export_onnx(Written(NO_GRAPH[kind]), ROWS, tmp_path / "x.onnx")
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_a_network_for_one_example_at_a_time_is_refused(tmp_path):
    with pytest.raises(deploy.DeployError, match="cannot be a graph for any batch"):
        deploy.export_onnx(Written(lambda fc, x: fc(x.view(1, -1))), ROWS[:1], tmp_path / "x.onnx")


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
    for export in (deploy.export_onnx, lambda *given: deploy.export_like(given[0], exported, *given[1:])):
        with pytest.raises(ValueError, match=words):
            export(Written(way), ROWS, tmp_path / "x.onnx")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_refused(dtype, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).to(dtype)
    with pytest.raises(ValueError, match=f"model has '1.weight' of {dtype}; allowed: torch.float32, model.float"):
        deploy.export_onnx(model, ROWS.to(dtype), tmp_path / "x.onnx")


def test_inputs_that_a_graph_does_not_take_are_named(exported):
    session = deploy.session(exported)
    for inputs in (IMAGES[:, :, :5].numpy(), IMAGES.double().numpy(), IMAGES.numpy()[0]):
        with pytest.raises(ValueError, match=r"inputs=.*cannot be computed .*; allowed: tensor\(float\) .*28, 28"):
            deploy.run(session, inputs)


# ---------------------------------------------------------------- rounded inputs


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
    """A network whose layers round their inputs, its graph, and 2,000 inputs: a million and a half numbers to round."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 5)).eval()
    inputs = torch.randn(2_000, 20, generator=torch.Generator().manual_seed(5))
    model = quantization.quantize_model(net, weights=8, activations=8, calibration=split(inputs))
    path = deploy.export_onnx(model, inputs[:2], tmp_path_factory.mktemp("rounded") / "x.onnx", check_inputs=inputs)
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
    with pytest.raises(deploy.DeployError, match="differ"):
        deploy._require_close(deploy._answers(other, inputs), expected)
    deploy._require_same_logits(other, model, inputs)
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
        wrong = deploy._without_roundings(content)
    elif kind == "coarser":
        coarse = {name: g._replace(scale=g.scale * 2) for name, g in quantization.input_grids(model).items()}
        net = quantization.with_input_grids(quantization.bake(model), coarse)
        wrong = deploy._export(net.eval(), inputs[:2], any_length=False)
    else:
        wrong = changed(content, BROKEN[kind])
    with pytest.raises(deploy.DeployError, match="ONNX Runtime's logits differ"):
        deploy._require_same_logits(changed(wrong, reordered), model, inputs)


# ---------------------------------------------------------------- other weights in a graph of any network


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
    graph = deploy.export_onnx(quantization.fold_batchnorm(wide, photos), photos, tmp_path / "wide.onnx")
    path = deploy.export_like(quantization.fold_batchnorm(narrow, photos), graph, photos, tmp_path / "narrow.onnx")
    found = deploy.run(deploy.session(path), photos[:1].numpy())
    assert np.allclose(found, narrow(photos[:1]).detach().numpy(), atol=1e-5)
    assert path.stat().st_size < graph.stat().st_size
    with pytest.raises(ValueError, match="has no 'bn.bias'; allowed: a network of the same layers, BatchNorm folded"):
        deploy.export_like(narrow, graph, photos, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="x.onnx' is not a model"):
        (tmp_path / "x.onnx").write_bytes(b"no graph")
        deploy.export_like(narrow, tmp_path / "x.onnx", photos, tmp_path / "y.onnx")


# ---------------------------------------------------------------- calibration


def test_percentiles_are_onnx_runtimes_own_one_batch_at_a_time(exported, tmp_path, monkeypatch):
    """Its own calibration, which keeps the activations of all images, finds the same numbers to the last bit."""
    images = torch.randn(120, 1, 28, 28, generator=torch.Generator().manual_seed(6))
    images[70:] *= 3  # a later batch goes further than the first one
    prepared, theirs, library = tmp_path / "prepared.onnx", tmp_path / "theirs.onnx", onnxruntime.quantization
    with deploy._without_advice():
        deploy._prepare(exported, prepared)
        kinds = {"activation_type": library.QuantType.QUInt8, "weight_type": library.QuantType.QInt8}
        library.quantize_static(
            str(prepared), str(theirs), deploy._Batches(images), calibrate_method=library.CalibrationMethod.Percentile,
            per_channel=True, extra_options={"CalibTensorRangeSymmetric": False}, **kinds,
        )  # fmt: skip
    collected = library.calibrate.HistogramCollector.collect
    sizes = []

    def collect(self, arrays):
        sizes.extend(sum(map(len, parts)) for parts in arrays.values())
        return collected(self, arrays)

    monkeypatch.setattr(library.calibrate.HistogramCollector, "collect", collect)
    mine = deploy.quantize_static(exported, split(images), tmp_path / "mine.onnx", method="percentile")
    assert mine.read_bytes() == theirs.read_bytes()
    assert set(sizes) == {40}  # the largest part of 120 that is no more than deploy.BATCH


def test_calibration_that_does_not_fit_is_named(exported, tmp_path):
    for images, words in (
        (IMAGES * np.nan, "calibration holds NaN"),
        (IMAGES[:, :, :9], "inputs=float32 .1, 1, 9, 28. cannot be computed"),
        (IMAGES.double(), "inputs=float64"),
    ):
        with pytest.raises(ValueError, match=words):
            deploy.quantize_static(exported, split(images), tmp_path / "x.onnx")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"method": "mse"}, "method='mse' is unknown; allowed: 'minmax', 'percentile'"),
        ({"activations": "int4"}, "activations='int4' is unknown; allowed: 'uint8', 'int8'"),
        ({"weights": 8}, "weights=8 is unknown; allowed: 'int8', 'uint8', 'int4'"),
        ({"activations": "int8", "weights": "uint8"}, "activations='int8' with weights='uint8'; allowed"),
        ({"calibration": split(IMAGES[:0])}, "calibration is empty"),
    ],
)
def test_what_cannot_be_quantized_is_refused(exported, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        deploy.quantize_static(exported, **({"calibration": split(IMAGES), "path": tmp_path / "x.onnx"} | arguments))
    assert not (tmp_path / "x.onnx").exists()


def test_a_file_that_is_no_graph_is_said_in_one_sentence(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="bad.onnx' is not a model"):
        deploy.quantize_static(tmp_path / "bad.onnx", split(IMAGES), tmp_path / "x.onnx")


def test_operator_times(exported, quantized, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    floats, integers = (deploy.operator_times(path, IMAGES.numpy(), runs=3) for path in (exported, quantized))
    assert not any("QLinear" in kind for kind in floats) and any("Conv" in kind for kind in floats)
    assert {"QLinearConv", "QuantizeLinear"} <= set(integers)
    for times in (floats, integers):
        assert all(ms >= 0 for ms in times.values()) and 0 < sum(times.values()) < 1_000
        assert list(times.values()) == sorted(times.values(), reverse=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="runs=0"):
        deploy.operator_times(exported, IMAGES.numpy(), runs=0)


def test_a_grouped_transposed_convolution_has_one_scale_or_is_refused(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3, groups=2)).eval()
    images = torch.randn(6, 3, 8, 8)
    graph = deploy.export_onnx(model, images, tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="transposed convolution of '2.weight', which has 2 groups; .*per_channel=Fal"):
        deploy.quantize_static(graph, split(images), tmp_path / "int8.onnx")
    path = deploy.quantize_static(graph, split(images), tmp_path / "int8.onnx", per_channel=False)
    found = torch.from_numpy(deploy.run(deploy.session(path), images.numpy()))
    expected = model(images).detach()
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
