"""Prediction without torch: NumPy's networks against torch's, images, and the command in Pythons without torch."""

import json
import os
import re
import subprocess
import sys
import venv
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from packaging.requirements import Requirement
from PIL import Image
from torch import nn
from torch.nn import functional as F

from helpers import __main__ as cli
from helpers import data, nets, pruning, quantization, runtime, training
from helpers.core import paths
from helpers.course import setup
from helpers.data import splits
from helpers.files import PackingError, write_dense, write_quantized, write_sparse
from helpers.runtime import images, layers, prediction
from tests.runtime.prediction_examples import digit, lenet

PUBLISHED = {
    model["file"].removeprefix("models/"): model
    for path in sorted((paths.RESULTS / "full").glob("*.seed0.json"))
    for model in json.loads(path.read_text())["models"]
    if model.get("file") and (paths.DATA / model["file"]).exists() and model["task"] != "imdb"
}


def trained_looking(net):
    """Give each BatchNorm statistics of its own: as they are made, they do nothing."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for numbers, low in ((module.running_mean, -1), (module.running_var, 0.3), (module.weight, 0.5)):
                nn.init.uniform_(numbers, low, low + 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval()


class NarrowResNet18(nets.ResNet18):
    """The same layers, a sixteenth as wide; the first block of all gets a shortcut, too."""

    def __init__(self, classes):
        super().__init__(classes)
        self.fc = nn.Linear(512 // 16, classes)

    def _make_layer(self, block, planes, *arguments, **options):
        return super()._make_layer(block, planes // 16, *arguments, **options)


def images_for(net, count=6):
    return torch.randn(count, 1, 28, 28) if hasattr(net, "fc1") else torch.randn(count, 3, 32, 32)


def gap(found, expected):
    """Largest difference of a logit, relative to the largest."""
    return np.abs(found - expected.numpy()).max() / expected.abs().max().item()


def assert_same(path, net, pictures):
    network = runtime.open_network(path)
    found, expected = network.logits(pictures.numpy()), training.predict(net, pictures)
    assert found.dtype == np.float32 and found.shape == tuple(expected.shape)
    assert gap(found, expected) < 1e-4
    return network


def test_the_numbers_and_names_are_those_of_the_datasets():
    assert images.MEAN == {1: (data.MNIST_MEAN,), 3: data.CIFAR10_MEAN}
    assert images.STD == {1: (data.MNIST_STD,), 3: data.CIFAR10_STD}
    assert prediction.LABELS[3, 10] == data.CIFAR10_CLASSES
    assert prediction.LABELS[3, 2] == tuple(splits._CAT_AND_DOG)
    assert prediction.LABELS[3, 8] == tuple(n for n in data.CIFAR10_CLASSES if n not in splits._CAT_AND_DOG)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lenet, "LeNet-5"),
        (lambda: lenet(3, 7, 11), "LeNet-5"),
        (lambda: lenet(1, 1, 1), "LeNet-5"),
        (nets.lenet_300_100, "a perceptron of two hidden layers"),
        (lambda: nets.MLP(37), "a perceptron of two hidden layers"),
        (lambda: trained_looking(nets.CifarNet((5, 6, 7, 9))), "a CIFAR net"),
        (lambda: trained_looking(nets.cifar_small()), "a CIFAR net"),
        (lambda: trained_looking(nets.CifarNet((4, 6, 6, 8), classes=2)), "a CIFAR net"),
    ],
)
def test_numpy_gives_torchs_logits_from_a_dense_and_from_a_sparse_file(build, name, tmp_path):
    net = build()
    pictures = images_for(net)
    assert assert_same(write_dense(net, tmp_path / "dense.pack").path, net, pictures).name == name
    masks = {name: torch.rand_like(weight) < 0.3 for name, weight in pruning.weights_of(net).items()}
    pruned = pruning.mask(net, masks)
    assert_same(write_sparse(pruned, tmp_path / "sparse.pack").path, pruned, pictures)


def test_more_images_than_are_laid_out_at_a_time_come_back_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "CHUNK", 4)
    net = lenet(3, 4, 5)
    assert_same(write_dense(net, tmp_path / "net.pack").path, net, images_for(net, 10))


def test_resnet_18_enlarges_strides_and_takes_shortcuts_as_torchvisions(tmp_path):
    net = trained_looking(NarrowResNet18(2))
    packed = write_dense(net, tmp_path / "net.pack")
    network = assert_same(packed.path, net, images_for(net, 2))
    assert (network.name, network.labels) == ("a ResNet-18", ("cat", "dog"))
    without = pruning.remove_block(net, "layer3.1")
    assert_same(write_dense(without, tmp_path / "without.pack").path, without, images_for(net, 2))


def test_removed_filters_and_removed_blocks_are_no_obstacle(tmp_path):
    net = trained_looking(nets.CifarNet((8, 12, 16, 20)))
    pictures = images_for(net)
    keep = {group.name: torch.arange(group.channels) % 3 > 0 for group in pruning.groups(net, pictures)}
    removed = pruning.remove_filters(net, keep, pictures)
    assert sum(p.numel() for p in removed.parameters()) < 0.6 * sum(p.numel() for p in net.parameters())
    assert_same(write_dense(removed, tmp_path / "removed.pack").path, removed, pictures)
    for block in ("res1", "res2"):
        net = pruning.remove_block(net, block)
        assert_same(write_dense(net, tmp_path / "block.pack").path, net, pictures)


@pytest.mark.parametrize("bits", [8, 3])
def test_weights_in_few_bits_and_a_folded_batchnorm(bits, tmp_path):
    net = trained_looking(nets.CifarNet((5, 6, 7, 9)))
    pictures = images_for(net)
    folded = quantization.fold_batchnorm(net, pictures)
    assert_same(write_dense(folded, tmp_path / "folded.pack").path, net, pictures)
    quantized = quantization.quantize_model(folded, weights=bits)
    assert_same(write_quantized(quantized, tmp_path / "few.pack").path, quantized, pictures)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("build", [lambda: lenet(4, 6, 20), lambda: trained_looking(nets.CifarNet((5, 6, 7, 9)))])
def test_inputs_of_layers_are_rounded_where_the_file_says_so(build, bits, tmp_path):
    """An input that lies between two marks may fall on either side, by the order of a sum; so a few logits may move."""
    net = build()
    pictures = images_for(net, 40)
    split = data.Split(pictures, torch.zeros(40, dtype=torch.long))
    quantized = quantization.quantize_model(net, weights=bits, activations=bits, calibration=split)
    path = write_quantized(quantized, tmp_path / "net.pack").path
    found, expected = runtime.open_network(path).logits(pictures.numpy()), training.predict(quantized, pictures)
    same = (np.abs(found - expected.numpy()).max(1) < 1e-4 * expected.abs().max().item()).mean()
    rounding = gap(found, training.predict(net, pictures))
    assert same >= 0.8, "most images meet no such input"
    assert gap(found, expected) < rounding, "whoever forgets to round is further away"
    weights_only = quantization.with_input_grids(quantized, {})
    assert gap(found, training.predict(weights_only, pictures)) > 1e-3, "the rounding matters here"


@pytest.mark.parametrize(("stride", "padding", "size"), [(1, 0, 3), (2, 3, 7), (2, 0, 1), (3, 1, 4)])
def test_convolution_and_pooling_at_any_stride_and_padding(stride, padding, size):
    x, weight = torch.randn(2, 3, 11, 13), torch.randn(4, 3, size, size)
    found = layers.convolve(x.numpy(), weight.numpy(), stride=stride, padding=padding)
    np.testing.assert_allclose(found, F.conv2d(x, weight, stride=stride, padding=padding), rtol=1e-4, atol=1e-4)
    pooled = layers.max_pool(x.numpy(), size, stride=stride, padding=min(padding, size // 2))
    np.testing.assert_array_equal(pooled, F.max_pool2d(x, size, stride, min(padding, size // 2)))


@cache
def _test_split(task):
    dataset = {"mnist": data.mnist, "cifar10": data.cifar10, "cat-or-dog": data.cat_or_dog}[task]()
    return dataset.test.take(500 if task == "mnist" else 100)


@pytest.mark.data
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_gives_its_recorded_accuracy(name):
    task, recorded = PUBLISHED[name]["task"], PUBLISHED[name]["accuracy"]
    test = _test_split(task)
    answers = runtime.open_network(paths.MODELS / name).logits(test.inputs.numpy()).argmax(1)
    accuracy = float((answers == test.labels.numpy()).mean())
    reach = 3.5 * np.sqrt(recorded * (1 - recorded) / len(test)) + 1 / len(test)
    assert abs(accuracy - recorded) <= reach


def test_there_are_published_files_of_each_kind():
    kinds = {runtime.open_network(paths.MODELS / name).name for name in PUBLISHED}
    assert kinds >= {"LeNet-5", "a CIFAR net", "an ONNX graph"}


def test_what_is_no_network_of_ours_is_refused(tmp_path):
    weight = np.zeros((2, 3), np.float32)
    text = write_dense({"embedding.weight": weight, "fc1.weight": weight}, tmp_path / "text.pack").path
    with pytest.raises(
        ValueError, match="holds no network.*embedding.weight, fc1.weight, .*allowed: the networks of this course"
    ):
        runtime.open_network(text)
    state = lenet(2, 2, 3).state_dict()
    more = write_dense({**state, "fc9.weight": weight}, tmp_path / "more.pack").path
    with pytest.raises(ValueError, match="begins as LeNet-5.*no place for 'fc9.weight'"):
        runtime.open_network(more)
    wrong = write_dense({**state, "fc1.weight": torch.zeros(3, 5)}, tmp_path / "wrong.pack").path
    with pytest.raises(ValueError, match="begins as LeNet-5, but does not fit"):
        runtime.open_network(wrong)
    net = trained_looking(nets.CifarNet((2, 2, 2, 2)))
    less = {n: t for n, t in net.state_dict().items() if n != "res2.block2.bn.running_var"}
    with pytest.raises(ValueError, match="'res2.block2.bn.running_var' is missing"):
        runtime.open_network(write_dense(less, tmp_path / "less.pack").path)
    five = write_dense(nets.CifarNet((2, 2, 2, 2), classes=5), tmp_path / "five.pack").path
    with pytest.raises(ValueError, match="5 classes with 3 channels; allowed: 10 with 1, 10 with 3, 2 with 3"):
        runtime.open_network(five)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conv1.weight": torch.ones(2, 25)}, "'conv1.weight' has 2 dimensions; allowed: 4"),
        ({"conv1.weight": torch.tensor(3.0)}, "'conv1.weight' has 0 dimensions; allowed: 4"),
        ({"fc1.weight": torch.ones(3, 32, 1)}, "'fc1.weight' has 3 dimensions; allowed: 2"),
        ({"conv1.bias": torch.ones(1)}, "'conv1.bias' holds 1 numbers; allowed: 2, one for each unit"),
        ({"fc2.bias": torch.ones(10, 1)}, "'fc2.bias' has 2 dimensions; allowed: 1"),
        ({"conv1.weight": torch.ones(2, 1, 40, 40)}, "begins as LeNet-5, but does not fit it"),
        ({"conv1.weight": torch.ones(2, 1, 0, 5)}, "begins as LeNet-5, but does not fit it"),
        ({"conv1.weight": torch.zeros(5_000, 1, 1, 1)}, "'conv1.weight' is for 5,000 units; allowed: 1 to 4,096"),
        (
            {"conv1.weight": torch.ones(2, 1, 5, 5, dtype=torch.complex64)},
            "no network: 'conv1.weight' has the type compl",
        ),
        ({"conv1.weight.step": torch.ones(1, dtype=torch.complex64)}, "no network: 'conv1.weight.step' has the type"),
        (
            {"conv1.weight.step": torch.ones(7, 7, 7)},
            r"no network: a step has the shape \(7, 7, 7\) for an array of \(2, 1",
        ),
        ({"fc1.bias.step": torch.ones(3, 3)}, r"a step has the shape \(3, 3\) for an array of \(3,\)"),
        ({"fc1.bias.step": torch.ones(4)}, r"a step has the shape \(4,\) for an array of \(3,\)"),
        ({"conv2.input_grid": torch.ones(3)}, "'conv2.input_grid' holds 3 numbers; allowed: 4"),
        ({"fc1.weight": torch.zeros(0, 32)}, "begins as LeNet-5, but does not fit it"),
        ({"fc2.weight": torch.zeros(0, 3), "fc2.bias": torch.zeros(0)}, "'fc2.weight' is for 0 units; allowed: 1 to"),
    ],
)
def test_arrays_that_fit_no_layer_are_named(changes, said, tmp_path):
    state = {**lenet(2, 2, 3).state_dict(), **changes}
    path = write_dense(state, tmp_path / "odd.pack").path
    with pytest.raises(ValueError, match=f"odd.pack' .*{said}"):
        runtime.open_network(path)


def test_a_norm_of_another_width_is_named(tmp_path):
    state = nets.CifarNet((2, 2, 2, 2)).state_dict()
    for spoiled, said in (
        (torch.ones(1), "'stem.bn.running_var' holds 1 numbers; allowed: 2"),
        (torch.tensor(1.0), "'stem.bn.running_var' has 0 dimensions; allowed: 1"),
    ):
        path = write_dense({**state, "stem.bn.running_var": spoiled}, tmp_path / "norm.pack").path
        with pytest.raises(ValueError, match=said):
            runtime.open_network(path)


def test_forged_networks_are_refused_or_answer(tmp_path):
    """Any shapes, types and values under the names of a network: one sentence, or ten finite numbers."""
    random = np.random.default_rng(17)
    state = {name: tensor.numpy() for name, tensor in lenet(2, 3, 4).state_dict().items()}
    image = digit(tmp_path / "x.png")
    refused = 0
    for _ in range(200):
        arrays = dict(state)
        for name in random.choice([*state, "conv1.input_grid", "conv1.weight.step", "fc1.step"], 2):
            sides = tuple(int(side) for side in random.choice([0, 1, 2, 3, 10, 32, 50], random.integers(0, 5)))
            values = random.choice([0, 1, -1, np.nan, np.inf, 1e38], sides)
            arrays[str(name)] = np.asarray(values).astype(random.choice(["<f4", "<f8", "<c8"]))
        path = write_sparse(arrays, tmp_path / "forged.pack").path
        try:
            answer = runtime.predict(path, image)
            assert sum(answer.probabilities.values()) == pytest.approx(1)
        except ValueError as error:
            assert "forged.pack" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 150


def test_damaged_and_missing_files_are_named(tmp_path):
    path = write_dense(lenet(2, 2, 3), tmp_path / "net.pack").path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PackingError, match="net.pack: the checksum does not match"):
        runtime.open_network(path)
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(ValueError, match="note.txt' is not a model that ONNX Runtime can read"):
        runtime.open_network(tmp_path / "note.txt")
    for missing in (tmp_path / "none.pack", tmp_path):
        with pytest.raises(FileNotFoundError, match="file=.*does not exist; allowed: the path of a file"):
            runtime.open_network(missing)


def linear_onnx(path, *, channels=1, pixels=28, classes=10, batch="batch"):
    """Write a graph of one linear layer; return its weight (inputs, classes)."""
    inputs = channels * pixels**2
    weight = np.random.default_rng(0).normal(size=(inputs, classes)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, channels, pixels, pixels])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return weight


def test_a_graph_for_a_fixed_batch_and_a_network_that_answers_nan_are_one_sentence(tmp_path):
    linear_onnx(tmp_path / "four.onnx", batch=4)
    with pytest.raises(ValueError, match="in batches of 4; allowed"):
        runtime.open_network(tmp_path / "four.onnx")
    net = lenet(2, 2, 3)
    net.fc2.bias.data[0] = torch.nan
    write_dense(net, tmp_path / "nan.pack")
    Image.new("L", (28, 28)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="answers NaN or infinity"):
        runtime.predict(tmp_path / "nan.pack", tmp_path / "x.png")


@pytest.mark.parametrize("batch", ["batch", 1])
def test_an_onnx_file_answers_one_image_or_many(batch, tmp_path):
    weight = linear_onnx(tmp_path / "net.onnx", batch=batch)
    network = runtime.open_network(tmp_path / "net.onnx")
    pictures = torch.randn(7, 1, 28, 28)
    assert (network.channels, network.pixels) == (1, 28)
    assert gap(network.logits(pictures.numpy()), pictures.flatten(1) @ torch.from_numpy(weight)) < 1e-4


def graph(path, nodes, answers, *, inputs=1, weights=()):
    """Write a graph of images by these nodes; `answers` are its outputs as (name, type, shape)."""
    image = [TensorProto.FLOAT, ["batch", 1, 28, 28]]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(f"input{i}", *image) for i in range(inputs)],
        [helper.make_tensor_value_info(*answer) for answer in answers],
        [onnx.numpy_helper.from_array(np.asarray(values), name) for name, values in weights],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


FLAT = helper.make_node("Flatten", ["input0"], ["flat"])
TEN = helper.make_node("MatMul", ["flat", "w"], ["ten"])
SUMS = ("w", np.ones((784, 10), np.float32))


@pytest.mark.parametrize(
    ("nodes", "answers", "inputs", "said"),
    [
        ([helper.make_node("Constant", [], ["c"], value_float=1.0)], [("c", 1, [])], 0, r"takes \[\]; allowed: images"),
        ([FLAT, TEN], [("ten", 1, ["batch", 10])], 2, r"takes \[.*\]; allowed: images of"),
        (
            [FLAT, TEN, helper.make_node("ReduceSum", ["ten"], ["s"], keepdims=0)],
            [("s", 1, [])],
            1,
            r"answers \['tensor\(f",
        ),
        (
            [FLAT, TEN, helper.make_node("ArgMax", ["ten"], ["a"])],
            [("a", 7, ["batch", 1])],
            1,
            r"answers \['tensor\(int64",
        ),
        ([FLAT, TEN, helper.make_node("Unsqueeze", ["ten", "one"], ["u"])], [("u", 1, ["batch", 1, 10])], 1, "answers"),
    ],
)
def test_an_onnx_file_of_other_questions_or_answers_is_refused(nodes, answers, inputs, said, tmp_path):
    weights = [SUMS, ("one", np.array([1]))][: 1 + any("one" in n.input for n in nodes)] if inputs else []
    path = graph(tmp_path / "odd.onnx", nodes, answers, inputs=inputs, weights=weights)
    with pytest.raises(ValueError, match=f"odd.onnx' {said}"):
        runtime.open_network(path)


@pytest.mark.parametrize(
    ("rows", "said"), [((5, 784), "cannot be computed"), ((1, 1568), r"answers \(3, 10\) for 6 images")]
)
def test_an_onnx_file_that_cannot_be_run_or_answers_otherwise_is_named(rows, said, tmp_path):
    nodes = [helper.make_node("Reshape", ["input0", "shape"], ["flat"]), TEN]
    width = rows[1]
    shape = np.array(rows if said == "cannot be computed" else [-1, width])
    weights = [("w", np.ones((width, 10), np.float32)), ("shape", shape)]
    path = graph(tmp_path / "odd.onnx", nodes, [("ten", 1, ["batch", 10])], weights=weights)
    with pytest.raises(ValueError, match=f"odd.onnx'.*{said}"):
        runtime.open_network(path).logits(np.zeros((6, 1, 28, 28), np.float32))


@pytest.mark.parametrize("options", [{"pixels": 27}, {"channels": 2}, {"classes": 3}])
def test_an_onnx_file_of_other_images_or_classes_is_refused(options, tmp_path):
    linear_onnx(tmp_path / "net.onnx", **options)
    with pytest.raises(ValueError, match="net.onnx' (takes|has 3 classes).*allowed"):
        runtime.open_network(tmp_path / "net.onnx")


def test_the_command_prints_the_label_the_best_three_and_the_notes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(setup, "ensure", lambda: pytest.fail("predict installs nothing"))
    path = write_dense(trained_looking(nets.CifarNet((2, 2, 2, 2))), tmp_path / "net.pack").path
    answer = runtime.predict(path, digit(tmp_path / "x.png", (64, 32)))
    assert cli.main(["predict", str(path), str(tmp_path / "x.png")]) == 0
    first, *lines, note = capsys.readouterr().out.splitlines()
    best = sorted(answer.probabilities, key=answer.probabilities.__getitem__, reverse=True)[:3]
    assert first == answer.label == best[0]
    assert [line.split()[0] for line in lines] == best
    assert lines[0].split()[1] == f"{answer.probabilities[best[0]]:.2%}"
    assert note == "note: the image has 64 × 32 pixels and was scaled to 32 × 32"


def test_the_command_names_what_is_wrong(tmp_path, capsys):
    assert cli.main(["predict", str(tmp_path / "none"), str(digit(tmp_path / "x.png"))]) == 1
    assert re.fullmatch(r"error: file='.*none' does not exist; .*\n", capsys.readouterr().err)
    (tmp_path / "y").write_bytes(b"MCPACK")
    assert cli.main(["predict", str(tmp_path / "y"), str(tmp_path / "x.png")]) == 2
    assert "the file is cut off" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "suffix"), [("onnxruntime", "onnx"), ("PIL", "pack"), ("numpy", "pack")])
def test_the_command_says_in_one_sentence_what_is_missing(module, suffix, tmp_path, capsys, monkeypatch):
    linear_onnx(tmp_path / "net.onnx")
    write_dense(lenet(2, 2, 3), tmp_path / "net.pack")
    monkeypatch.setattr(setup, "is_ready", lambda venv: False)
    for name in [name for name in sys.modules if name.startswith("helpers.runtime") or name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("helpers.runtime", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["predict", str(tmp_path / f"net.{suffix}"), str(tmp_path / "x.png")]) == 1
    said = capsys.readouterr().err
    assert f"has no {module}; predict needs numpy, pillow, for an ONNX file onnxruntime and for" in said
    assert "pip install numpy pillow onnxruntime" in said and len(said.splitlines()) == 1


WITHOUT_TORCH = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "torchao", "torchtext", "jaxtyping", "pandas", "scipy"}:
            raise ModuleNotFoundError(f"refused: {name}", name=name)
sys.meta_path.insert(0, Refuse())
try:
    import torch
except ModuleNotFoundError:
    sys.argv[0] = "helpers"
    runpy.run_module("helpers", run_name="__main__")
"""


@pytest.fixture
def files(tmp_path):
    """A packed and an ONNX file, an image, and the label and probability that each file must give."""
    net = trained_looking(nets.CifarNet((4, 5, 6, 7)))
    pack, graph = write_dense(net, tmp_path / "net.pack").path, tmp_path / "net.onnx"
    weight = torch.from_numpy(linear_onnx(graph) / 20)
    onnx_weight = onnx.load(graph)
    onnx_weight.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight.numpy(), "w"))
    graph.write_bytes(onnx_weight.SerializeToString())
    colour = digit(tmp_path / "colour.png", (32, 32), mode="RGB")
    grey = digit(tmp_path / "grey.png")
    logits = {
        (pack, colour): training.predict(net, torch.from_numpy(_pixels(colour, 3, 32)))[0],
        (graph, grey): (torch.from_numpy(_pixels(grey, 1, 28)).flatten(1) @ weight)[0],
    }
    return {
        both: _said(x, prediction.LABELS[3, 10] if both[0] == pack else prediction.LABELS[1, 10])
        for both, x in logits.items()
    }


def _pixels(path, channels, pixels):
    return runtime.read_image(path, channels=channels, pixels=pixels)[0][None]


def _said(logits, labels):
    return labels[int(logits.argmax())], f"{logits.softmax(0).max().item():.2%}"


def assert_command_answers(command, files, **options):
    for (file, image), (label, probability) in files.items():
        done = subprocess.run([*command, "predict", str(file), str(image)], capture_output=True, text=True, **options)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0] == label and probability in done.stdout


def test_the_command_answers_where_torch_cannot_be_imported(files):
    assert_command_answers([sys.executable, "-c", WITHOUT_TORCH], files, cwd=paths.ROOT)


def _needed(names):
    """Return these packages and all that they need here, by name."""
    found, queue = set(), list(names)
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            needs = map(Requirement, metadata.requires(name) or [])
            queue += [r.name for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_the_command_answers_in_an_environment_that_has_no_torch(files, tmp_path):
    """A new virtual environment that holds NumPy, Pillow, ONNX Runtime and what they need, and nothing else."""
    folder = tmp_path / "venv"
    venv.create(folder, symlinks=True)
    python = setup.python_of(folder)
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    for name in _needed(["numpy", "pillow", "onnxruntime"]):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}:
            (packages / top).symlink_to(distribution.locate_file(top))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for module, here in (("torch", False), ("pandas", False), ("numpy", True)):
        done = subprocess.run([str(python), "-c", f"import {module}"], env=clean, capture_output=True, cwd=tmp_path)
        assert (done.returncode == 0) is here, module
    assert_command_answers([str(python), "-m", "helpers"], files, cwd=paths.ROOT, env=clean)
