"""Tests of `helpers.runtime.integer_graphs`."""

import logging
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from helpers import nets, runtime
from helpers.runtime import export, integer_graphs
from tests.runtime.onnx_examples import IMAGES, initializers, split


@pytest.fixture(scope="module")
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return nets.lenet5()


@pytest.fixture(scope="module")
def exported(lenet, tmp_path_factory):
    return runtime.export_onnx(lenet, IMAGES[:1], tmp_path_factory.mktemp("deploy") / "lenet.onnx")


@pytest.fixture(scope="module")
def quantized(exported, tmp_path_factory):
    return runtime.quantize_static(exported, split(IMAGES), tmp_path_factory.mktemp("int8") / "deep" / "lenet.onnx")


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


def test_ranges_are_those_of_the_calibration(exported, tmp_path):
    images = torch.randn(500, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    images[0, 0, 0, 0] = 100.0
    scales = {}
    for method in runtime.CALIBRATIONS:
        path = runtime.quantize_static(exported, split(images), tmp_path / "x.onnx", method=method)
        scales[method] = initializers(path)["input_scale"]
    assert np.isclose(scales["minmax"], float(images.max() - images.min()) / 255, rtol=1e-4)
    inner = images.flatten().quantile(torch.tensor([5e-6, 1 - 5e-6]))  # 0.0005 % are left out at each end
    assert np.isclose(scales["percentile"], float(inner.diff()) / 255, rtol=0.1)


@pytest.mark.parametrize("count", [1, 7, 53, 100])
def test_any_number_of_images_calibrates(exported, tmp_path, count):
    images = torch.randn(count, 1, 28, 28)
    for method in runtime.CALIBRATIONS:
        path = runtime.quantize_static(exported, split(images), tmp_path / "x.onnx", method=method)
        assert initializers(path)["input_scale"] <= 1.0001 * float(images.max() - images.min()) / 255


def test_one_scale_for_a_whole_weight(lenet, exported, tmp_path):
    stored = initializers(runtime.quantize_static(exported, split(IMAGES), tmp_path / "x.onnx", per_channel=False))
    assert stored["fc1.weight_scale"].shape == ()
    assert np.isclose(stored["fc1.weight_scale"], lenet.fc1.weight.detach().abs().max().numpy() / 127, rtol=1e-5)


def test_quantizing_is_quiet_and_leaves_everything_else_alone(exported, quantized, tmp_path, capfd):
    before, handlers, level = exported.read_bytes(), list(logging.root.handlers), logging.root.manager.disable
    runtime.quantize_static(exported, split(IMAGES), tmp_path / "int8.onnx")
    assert capfd.readouterr() == ("", "")
    assert exported.read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "int8.onnx"]
    assert (logging.root.handlers, logging.root.manager.disable) == (handlers, level)
    assert (tmp_path / "int8.onnx").read_bytes() == quantized.read_bytes()  # the same images, the same file


def test_a_network_may_not_be_calibrated_on_test_images(exported, tmp_path):
    with pytest.raises(ValueError, match="calibration is the test split"):
        runtime.quantize_static(exported, split(IMAGES, is_test=True), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="calibration is the test split"):
        runtime.quantize_static(exported, split(IMAGES, is_test=True).take(1), tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def graph_of(*nodes, **weights: np.ndarray) -> bytes:
    """A graph of operators, with these floats in it."""
    tensors = [onnx.numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy")
    made = [onnx.helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes]
    return onnx.helper.make_model(onnx.helper.make_graph(made, "g", [x], [y], tensors)).SerializeToString()


MATRIX = np.ones((4, 4), np.float32)


@pytest.mark.parametrize("kind", integer_graphs.MULTIPLYING)
def test_weights_that_would_stay_floats_are_an_error(kind):
    said = f"'table' would be stored in floating point: {kind} has no integers here"
    with pytest.raises(runtime.DeployError, match=said):
        integer_graphs._require_integers(graph_of((kind, ["x", "table"], "y"), table=MATRIX))
    moved = [("Transpose", ["table"], "a"), ("Reshape", ["a", "shape"], "b"), (kind, ["x", "b"], "y")]
    with pytest.raises(runtime.DeployError, match=said):
        integer_graphs._require_integers(graph_of(*moved, table=MATRIX))


@pytest.mark.parametrize("kind", ["Add", "Mul", "Sub", "Div", "PRelu", "Pow", "Concat", "Where"])
def test_what_is_added_or_scales_may_stay_a_float(kind):
    nodes = [(kind, ["x", "table"], "a"), ("MatMul", ["a", "codes"], "y")]
    integer_graphs._require_integers(graph_of(*nodes, table=MATRIX, codes=MATRIX.astype(np.int8)))
    integer_graphs._require_integers(graph_of(("Conv", ["x", "w", "bias"], "y"), bias=np.ones(4, np.float32)))


def test_percentiles_are_onnx_runtimes_own_one_batch_at_a_time(exported, tmp_path, monkeypatch):
    """Its own calibration, which keeps the activations of all images, finds the same numbers to the last bit."""
    images = torch.randn(120, 1, 28, 28, generator=torch.Generator().manual_seed(6))
    images[70:] *= 3  # a later batch goes further than the first one
    prepared, theirs, library = tmp_path / "prepared.onnx", tmp_path / "theirs.onnx", onnxruntime.quantization
    with export.without_advice():
        integer_graphs._prepare(exported, prepared)
        kinds = {"activation_type": library.QuantType.QUInt8, "weight_type": library.QuantType.QInt8}
        library.quantize_static(
            str(prepared), str(theirs), integer_graphs._Batches(images), per_channel=True,
            calibrate_method=library.CalibrationMethod.Percentile,
            extra_options={"CalibTensorRangeSymmetric": False}, **kinds,
        )  # fmt: skip
    collected = library.calibrate.HistogramCollector.collect
    sizes = []

    def collect(self, arrays):
        sizes.extend(sum(map(len, parts)) for parts in arrays.values())
        return collected(self, arrays)

    monkeypatch.setattr(library.calibrate.HistogramCollector, "collect", collect)
    mine = runtime.quantize_static(exported, split(images), tmp_path / "mine.onnx", method="percentile")
    assert mine.read_bytes() == theirs.read_bytes()
    assert set(sizes) == {40}  # the largest part of 120 that is no more than deploy.BATCH


def test_calibration_that_does_not_fit_is_named(exported, tmp_path):
    for images, words in (
        (IMAGES * np.nan, "calibration holds NaN"),
        (IMAGES[:, :, :9], "inputs=float32 .1, 1, 9, 28. cannot be computed"),
        (IMAGES.double(), "inputs=float64"),
    ):
        with pytest.raises(ValueError, match=words):
            runtime.quantize_static(exported, split(images), tmp_path / "x.onnx")


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
        runtime.quantize_static(exported, **({"calibration": split(IMAGES), "path": tmp_path / "x.onnx"} | arguments))
    assert not (tmp_path / "x.onnx").exists()


def test_a_file_that_is_no_graph_is_said_in_one_sentence(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="bad.onnx' is not a model"):
        runtime.quantize_static(tmp_path / "bad.onnx", split(IMAGES), tmp_path / "x.onnx")


def test_a_grouped_transposed_convolution_has_one_scale_or_is_refused(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3, groups=2)).eval()
    images = torch.randn(6, 3, 8, 8)
    graph = runtime.export_onnx(model, images, tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="transposed convolution of '2.weight', which has 2 groups; .*per_channel=Fal"):
        runtime.quantize_static(graph, split(images), tmp_path / "int8.onnx")
    path = runtime.quantize_static(graph, split(images), tmp_path / "int8.onnx", per_channel=False)
    found = torch.from_numpy(runtime.run(runtime.session(path), images.numpy()))
    expected = model(images).detach()
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def ragged(*, counted: bool) -> nn.Module:
    """A mean over windows of which the last ones reach beyond the image; or over whole windows."""
    torch.manual_seed(0)
    pool = nn.AvgPool2d(3, 2, padding=1, ceil_mode=counted, count_include_pad=counted)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(3)).eval()


def test_a_layer_that_the_runtime_joins_wrongly_is_refused(tmp_path):
    """ONNX Runtime 1.31.1 divides by the whole window where padding counts and the edge is ragged."""
    images = IMAGES.abs() + 1
    for counted in (False, True):
        model = ragged(counted=counted)
        model(images)
        plain = runtime.export_onnx(model, images, tmp_path / f"{counted}.onnx")
        if not counted:
            runtime.quantize_static(plain, split(images), tmp_path / "int8.onnx")
            continue
        with pytest.raises(runtime.DeployError, match="a layer of this network is joined wrongly"):
            runtime.quantize_static(plain, split(images), tmp_path / "wrong.onnx")
        assert not (tmp_path / "wrong.onnx").exists()
