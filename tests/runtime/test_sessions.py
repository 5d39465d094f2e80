"""Export: the same logits for any batch, one clean file, no output; sessions with a fixed thread count."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from helpers import nets, pruning, quantization, runtime, training
from helpers.core import system
from helpers.runtime import export, sessions
from tests.runtime.onnx_examples import (
    IMAGES,
    PHOTOS,
    ROWS,
    TEXTS,
    Written,
    assert_texts_answer,
    cifar,
    initializers,
    split,
)


@pytest.fixture(scope="module")
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return nets.lenet5()


@pytest.fixture(scope="module")
def exported(lenet, tmp_path_factory):
    return runtime.export_onnx(lenet, IMAGES[:1], tmp_path_factory.mktemp("deploy") / "lenet.onnx")


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
@pytest.mark.parametrize("threads", [1, 2])
def test_any_batch_gives_torchs_logits(lenet, exported, batch, threads):
    images = torch.randn(batch, 1, 28, 28)
    logits = runtime.run(runtime.session(exported, threads=threads), images.numpy())
    assert logits.shape == (batch, 10)
    assert logits.dtype == np.float32
    assert np.abs(logits - lenet(images).detach().numpy()).max() < 1e-5


def test_export_is_quiet_and_leaves_the_model_alone(tmp_path, capfd):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model.append(nn.Dropout(0.9)).append(nn.Linear(4, 3)).train()
    model(IMAGES)
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = runtime.export_onnx(model, IMAGES, tmp_path / "deep" / "down" / "bn.onnx")
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    logits = runtime.run(runtime.session(path), IMAGES.numpy())
    assert np.allclose(logits, model.eval()(IMAGES).detach().numpy(), atol=1e-5)


def test_masks_are_applied(lenet, tmp_path):
    masked = pruning.mask(lenet, pruning.layer_masks(lenet, 0.9))
    path = runtime.export_onnx(masked, IMAGES, tmp_path / "masked.onnx")
    assert "Mul" not in {node.op_type for node in onnx.load(path).graph.node}
    found = runtime.run(runtime.session(path), IMAGES.numpy())
    assert np.abs(found - masked(IMAGES).detach().numpy()).max() < 1e-5
    assert pruning.masks_of(masked)


WRONG = {
    "off": lambda logits: logits + 0.01,
    "nan": lambda logits: logits * np.nan,
    "short": lambda logits: logits[:, :9],
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_with_other_answers_is_not_written(lenet, exported, tmp_path, monkeypatch, kind):
    path, honest = tmp_path / "old.onnx", runtime.run
    path.write_bytes(b"what was here before")
    monkeypatch.setattr(export, "_export", lambda model, batch, **sizes: exported.read_bytes())
    monkeypatch.setattr(export, "run", lambda session, inputs: WRONG[kind](honest(session, inputs)))
    with pytest.raises(runtime.DeployError, match="logits"):
        runtime.export_onnx(lenet, IMAGES, path)
    assert path.read_bytes() == b"what was here before"
    assert list(tmp_path.iterdir()) == [path]


def test_another_batch_size_is_checked_too(lenet, exported, tmp_path, monkeypatch):
    """A graph that answers only the batch it was traced with fails the reader who has one image."""
    honest = runtime.run
    monkeypatch.setattr(export, "_export", lambda model, batch, **sizes: exported.read_bytes())
    monkeypatch.setattr(export, "run", lambda s, x: honest(s, x) if len(x) > 1 else honest(s, x) + 1)
    with pytest.raises(runtime.DeployError, match="differ"):
        runtime.export_onnx(lenet, IMAGES, tmp_path / "fixed.onnx")


def test_sessions_use_the_threads_they_are_given(exported):
    for threads in (1, 2):
        options = runtime.session(exported, threads=threads).get_session_options()
        assert options.intra_op_num_threads == threads
        assert options.inter_op_num_threads == 1
        assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.raises(ValueError, match="threads=0"):
        runtime.session(exported, threads=0)


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_what_is_no_onnx_model_is_said_in_one_sentence(exported, tmp_path, capfd, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(exported.read_bytes()[:9_000] if content is None else content)
    with pytest.raises(ValueError, match="bad.onnx' is not a model that ONNX Runtime can read") as error:
        runtime.session(path)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        runtime.session(tmp_path / "none.onnx")


@pytest.fixture(scope="module")
def wide_graph(tmp_path_factory):
    wide = quantization.fold_batchnorm(cifar(8, 12, 16, 20), PHOTOS)
    return runtime.export_onnx(wide, PHOTOS, tmp_path_factory.mktemp("graph") / "wide.onnx")


def test_the_graph_of_one_network_runs_anothers_weights(wide_graph, tmp_path):
    content, model = wide_graph.read_bytes(), cifar(3, 5, 7, 9)
    path = runtime.export_like(
        quantization.fold_batchnorm(model, PHOTOS), wide_graph, PHOTOS, tmp_path / "deep" / "narrow.onnx"
    )
    for batch in (1, 3):
        found = runtime.run(runtime.session(path), PHOTOS[:batch].numpy())
        assert np.allclose(found, model.eval()(PHOTOS[:batch]).detach().numpy(), atol=1e-4)
    weights = sum(np.prod(tensor.dims) for tensor in onnx.load(path).graph.initializer)
    assert weights < 1.1 * sum(parameter.numel() for parameter in model.parameters())
    assert wide_graph.read_bytes() == content


@pytest.fixture(scope="module")
def quantized(exported, tmp_path_factory):
    return runtime.quantize_static(exported, split(IMAGES), tmp_path_factory.mktemp("int8") / "deep" / "lenet.onnx")


def test_the_integer_network_answers_like_the_other(lenet, quantized):
    for batch in (1, 6):
        found = runtime.run(runtime.session(quantized), IMAGES[:batch].numpy())
        expected = lenet(IMAGES[:batch]).detach().numpy()
        assert 1e-6 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_a_layer_is_computed_with_whole_numbers(tmp_path):
    """All sums, rounded and cut off, as integers alone would give them."""
    torch.manual_seed(0)
    layer, inputs = nn.Sequential(nn.Linear(40, 7), nn.ReLU()), torch.randn(64, 40)
    graph = runtime.export_onnx(layer, inputs[:2], tmp_path / "layer.onnx")
    path = runtime.quantize_static(graph, split(inputs), tmp_path / "int8.onnx")
    n = initializers(path)
    assert n["input_zero_point"].dtype == n["logits_zero_point"].dtype == np.uint8
    assert np.isclose(n["input_scale"], (inputs.max() - inputs.min()) / 255, rtol=1e-5)
    codes = np.clip(np.rint(inputs.numpy() / n["input_scale"]) + n["input_zero_point"], 0, 255).astype(np.int64)
    sums = (codes - int(n["input_zero_point"])) @ n["0.weight_quantized"].T.astype(np.int64) + n["0.bias_quantized"]
    factor = n["input_scale"].astype(np.float64) * n["0.weight_scale"] / n["logits_scale"]
    expected = np.clip(np.rint(sums * factor) + n["logits_zero_point"], 0, 255)
    found = runtime.run(runtime.session(path), inputs.numpy()) / n["logits_scale"] + n["logits_zero_point"]
    assert np.abs(found - expected).max() < 1.01  # where a sum lies between two codes, either is right
    assert (np.abs(found - expected) > 0.01).mean() < 0.01


@pytest.mark.parametrize("activations, weights", [("uint8", "uint8"), ("int8", "int8"), ("uint8", "int4")])
def test_other_types(lenet, exported, tmp_path, capfd, activations, weights):
    path = runtime.quantize_static(
        exported, split(IMAGES), tmp_path / "other.onnx", activations=activations, weights=weights
    )
    assert capfd.readouterr() == ("", "")
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert kinds["fc1.weight_quantized"] == onnx.TensorProto.DataType.Value(weights.upper())
    assert kinds["input_zero_point"] == onnx.TensorProto.DataType.Value(activations.upper())
    found, expected = runtime.run(runtime.session(path), IMAGES.numpy()), lenet(IMAGES).detach().numpy()
    assert np.abs(found - expected).max() < (0.5 if weights == "int4" else 0.05) * np.abs(expected).max()
    if weights == "int4":
        assert exported.stat().st_size / path.stat().st_size > 7


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
    graph = runtime.export_onnx(model, inputs[:2], tmp_path / "scaled.onnx")
    path = runtime.quantize_static(graph, split(inputs), tmp_path / "int8.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert kinds["conv.weight_quantized"] == kinds["fc.weight_quantized"] == onnx.TensorProto.INT8
    found, expected = runtime.run(runtime.session(path), inputs.numpy()), model(inputs).detach().numpy()
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


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
        path = runtime.export_onnx(model, TEXTS, tmp_path / "x.onnx")
        assert runtime.session(path).get_inputs()[0].shape == ["batch", 12]
        assert_texts_answer(model, path, [(1, 12), (5, 12)])
        with pytest.raises(ValueError, match=r"inputs=int64 \(2, 7\) cannot be computed .*allowed: tensor.int64. .*12"):
            runtime.run(runtime.session(path), TEXTS[:2, :7].numpy())


def test_a_batch_may_be_counted_by_len(tmp_path):
    model = Written(lambda fc, x: fc(x.relu().reshape(len(x), -1)))
    path = runtime.export_onnx(model, ROWS, tmp_path / "len.onnx")
    for batch in (ROWS[:1], ROWS, torch.cat([ROWS, ROWS])):
        found = runtime.run(runtime.session(path), batch.numpy())
        assert np.abs(found - model(batch).detach().numpy()).max() < 1e-5


def test_inputs_that_a_graph_does_not_take_are_named(exported):
    session = runtime.session(exported)
    for inputs in (IMAGES[:, :, :5].numpy(), IMAGES.double().numpy(), IMAGES.numpy()[0]):
        with pytest.raises(ValueError, match=r"inputs=.*cannot be computed .*; allowed: tensor\(float\) .*28, 28"):
            runtime.run(session, inputs)


def test_operator_times(exported, quantized, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    floats, integers = (runtime.operator_times(path, IMAGES.numpy(), runs=3) for path in (exported, quantized))
    assert not any("QLinear" in kind for kind in floats) and any("Conv" in kind for kind in floats)
    assert {"QLinearConv", "QuantizeLinear"} <= set(integers)
    for times in (floats, integers):
        assert all(ms >= 0 for ms in times.values()) and 0 < sum(times.values()) < 1_000
        assert list(times.values()) == sorted(times.values(), reverse=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="runs=0"):
        runtime.operator_times(exported, IMAGES.numpy(), runs=0)


def test_a_session_as_a_module_is_evaluated_like_the_network_it_came_from(lenet, exported):
    module = runtime.as_module(runtime.session(exported))
    images = torch.randn(10, 1, 28, 28)
    found = training.predict(module, images, batch_size=3)
    assert found.dtype == torch.float32 and torch.allclose(found, training.predict(lenet, images), atol=1e-4)


def test_sums_of_bytes_are_exact_on_every_processor():
    """255 · 127 twice does not fit in 16 bits: an x86 processor without VNNI clips it unless told otherwise."""
    rng = np.random.default_rng(0)
    activations = rng.integers(200, 256, (8, 64), dtype=np.uint8)
    weights = rng.integers(100, 128, (64, 16), dtype=np.int8)
    exact = activations.astype(np.int64) @ weights.astype(np.int64)
    constant = onnx.numpy_helper.from_array
    step = np.float32(exact.max() / 255)
    stored = {"one": np.float32(1), "a_zero": np.uint8(0), "b": weights, "b_zero": np.int8(0), "step": step}
    inputs = ["x", "one", "a_zero", "b", "one", "b_zero", "step", "a_zero"]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("QLinearMatMul", inputs, ["y"])],
        "sums",
        [value("x", onnx.TensorProto.UINT8, [8, 64])],
        [value("y", onnx.TensorProto.UINT8, [8, 16])],
        [constant(np.asarray(array), name) for name, array in stored.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    found = runtime.run(sessions.open_session(model.SerializeToString(), threads=1), activations)
    assert np.abs(found.astype(int) - np.rint(exact / step)).max() <= 1


@pytest.mark.parametrize("vnni", [True, False])
def test_the_exact_kernel_three_times_as_slow_is_asked_for_only_without_vnni(vnni, exported, monkeypatch):
    monkeypatch.setattr(system, "has_vnni", lambda: vnni)
    options, entry = runtime.session(exported).get_session_options(), "session.x64quantprecision"
    if not vnni:
        assert options.get_session_config_entry(entry) == "1"
        return
    with pytest.raises(RuntimeError, match=entry):
        options.get_session_config_entry(entry)
