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


class Centred(nn.Module):
    """Subtracts a trained table: an operator that ONNX Runtime cannot quantize."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Parameter(torch.randn(5, 4)), nn.Linear(20, 3)

    def forward(self, inputs):
        return self.fc((inputs - self.table).flatten(1))


def test_weights_that_would_stay_floats_are_an_error(tmp_path):
    inputs = torch.randn(6, 5, 4)
    graph = deploy.export_onnx(Centred(), inputs, tmp_path / "centred.onnx")
    with pytest.raises(deploy.DeployError, match="'table' would be stored in floating point"):
        deploy.quantize_static(graph, split(inputs), tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


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
