"""The published model files are the recorded ones, and a process that knows nothing else gets the recorded accuracy."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers import data, evidence, files, nets, quantization
from helpers.core import paths
from helpers.data import Split, text
from helpers.evidence import checksums
from helpers.files import load
from tests.evaluate_file import MAX_TOKENS, images, numbered

RESULTS = [json.loads(path.read_text()) for path in sorted((paths.RESULTS / "full").glob("*.json"))]
PUBLISHED = [
    (result, model) for result in RESULTS if result["seed"] == 0 for model in result["models"] if "file" in model
]
# Without the collector, imports take a seventh less.
START = "import gc; gc.disable(); from tests import evaluate_file; evaluate_file.main()"
ROUNDED = 2  # test examples on which another machine's rounding may decide otherwise


def different() -> list[Any]:
    """Return a test's arguments for each content, task and accuracy: notebooks publish the same dense LeNet-5."""
    found: dict[tuple[str, str, float], Any] = {}
    for result, model in PUBLISHED:
        key = model["file_sha256"], model["task"], model["accuracy"]
        found.setdefault(key, pytest.param(result, model, id=Path(model["file"]).name))
    return list(found.values())


def evaluation(result: dict[str, Any], model: dict[str, Any]) -> tuple[int, int]:
    """Return the right answers and the size of the test set in the evaluation that gave the recorded accuracy."""
    same = {(t["correct"], t["count"]) for t in result["test_evaluations"] if t["accuracy"] == model["accuracy"]}
    assert len(same) == 1, f"{model['name']}: evaluations of its accuracy, {model['accuracy']}: {same or 'none'}"
    return same.pop()


# ---------------------------------------------------------------- what is recorded, and what lies there


def test_there_are_published_files():
    assert PUBLISHED


@pytest.mark.parametrize("model", [pytest.param(m, id=Path(m["file"]).name) for _, m in PUBLISHED])
def test_a_published_file_is_the_recorded_one(model):
    path = paths.DATA / model["file"]
    assert path.parent == paths.MODELS
    content = path.read_bytes()
    assert len(content) == model["file_bytes"]
    assert hashlib.sha256(content).hexdigest() == model["file_sha256"]


def test_every_file_has_one_record_and_every_record_its_file():
    recorded = [model["file"] for _, model in PUBLISHED]
    assert sorted(recorded) == sorted(path.relative_to(paths.DATA).as_posix() for path in paths.MODELS.rglob("*"))


def test_only_seed_0_publishes_files():
    assert not [m["file"] for result in RESULTS if result["seed"] != 0 for m in result["models"] if "file" in m]


def test_whatever_was_written_has_its_hash_recorded():
    written = [m for result in RESULTS for m in result["models"] if {"file", "file_bytes", "file_sha256"} & {*m}]
    assert written
    for model in written:
        assert re.fullmatch("[0-9a-f]{64}", model.get("file_sha256", "")), model["name"]
        assert model["file_bytes"] > 0, model["name"]


@pytest.mark.parametrize(("result", "model"), different())
def test_the_accuracy_was_measured_on_the_test_split(result, model):
    right, count = evaluation(result, model)
    assert model["split"] == "test"
    assert model["accuracy"] == right / count


# ---------------------------------------------------------------- the accuracy, again


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("result", "model"), different())
def test_a_fresh_process_gets_the_recorded_accuracy(result, model, tmp_path):
    shutil.copy(paths.DATA / model["file"], tmp_path / "file")  # under a name that says nothing
    # The fetched data stays where it is, whatever folder the process runs in.
    variables = {"PYTHONPATH": str(paths.ROOT), "OMP_NUM_THREADS": "1"}
    variables["COURSE_DATA_DIR"] = str(paths.raw_dir().resolve())
    command = [sys.executable, "-c", START, "file", model["task"]]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    right, count = map(int, done.stdout.split())
    expected, of = evaluation(result, model)
    assert count == of
    assert abs(right - expected) <= ROUNDED, f"{right} right answers of {count}; recorded: {expected}"


# ---------------------------------------------------------------- networks as they are published


@pytest.fixture
def lean() -> nets.CifarNet:
    """A CifarNet with filters removed, also inside a residual block, and statistics as after a training."""
    torch.manual_seed(0)
    net = nets.CifarNet((5, 6, 7, 9))
    net.res1.block1, net.res1.block2 = nets.ConvBlock(6, 4), nets.ConvBlock(4, 6)
    return trained(net)


def trained(net: nn.Module) -> nn.Module:
    """Return the network in evaluation mode, its BatchNorms far from the identity."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for numbers in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                numbers.data.uniform_(0.5, 1.5)
    return net.eval()


def thin_lenet5() -> nn.Module:
    torch.manual_seed(0)
    net = nets.lenet5()
    net.conv1, net.conv2 = nn.Conv2d(1, 3, 5), nn.Conv2d(3, 4, 5)
    net.fc1, net.fc2 = nn.Linear(4 * 16, 5), nn.Linear(5, 10)
    return net.eval()


def answers(net: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net(inputs)


def photos(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_a_thin_lenet5_comes_back_from_a_range_coded_file(tmp_path):
    net, digits = thin_lenet5(), photos()[:, :1, :28, :28]
    file = files.write_coded(net, tmp_path / "thin.pack")
    assert torch.equal(answers(load(file.path), digits), answers(net, digits))


def test_a_lean_cifar_net_comes_back(tmp_path, lean):
    file = files.write_sparse(lean, tmp_path / "lean.pack")
    assert torch.equal(answers(load(file.path), photos()), answers(lean, photos()))


@pytest.mark.parametrize("write", [files.write_quantized, files.write_coded])
@pytest.mark.parametrize("activations", [None, 4])
def test_a_folded_quantized_cifar_net_comes_back(tmp_path, lean, write, activations):
    seen = Split(photos(32), torch.zeros(32, dtype=torch.int64))
    rounded = quantization.quantize_model(lean, weights=4, activations=activations, calibration=seen)
    folded = quantization.fold_batchnorm(rounded, photos())
    file = write(folded, tmp_path / "folded.pack")
    again = load(file.path)
    assert not [layer for layer in again.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert torch.equal(answers(again, photos()), answers(folded, photos()))


@pytest.mark.parametrize("network", ["lean", "resnet18"])
def test_networks_in_half_precision_come_back_in_float32(tmp_path, lean, network):
    net = lean if network == "lean" else trained(narrow_resnet18())
    net.fc = nn.Linear(net.fc.in_features, 2)
    halves = {name: t.half() if t.is_floating_point() else t for name, t in net.state_dict().items()}
    file = files.write_dense(halves, tmp_path / "half.pack")
    again = load(file.path)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert torch.equal(answers(again, photos()), answers(net.half().float(), photos()))


def narrow_resnet18() -> nets.ResNet18:
    """Return a ResNet-18 with 8 channels in the first stage, 3 of them inside its first block."""
    net = nets.resnet18(classes=2)
    net.conv1, net.bn1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(8)
    for block, inside in zip(net.layer1, (3, 8), strict=True):
        block.conv1, block.bn1 = nn.Conv2d(8, inside, 3, padding=1, bias=False), nn.BatchNorm2d(inside)
        block.conv2, block.bn2 = nn.Conv2d(inside, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
    first = net.layer2[0]
    first.conv1 = nn.Conv2d(8, 128, 3, stride=2, padding=1, bias=False)
    first.downsample[0] = nn.Conv2d(8, 128, 1, stride=2, bias=False)
    return net


def test_whole_numbers_and_their_steps_are_multiplied(tmp_path):
    """The format that notebook 00 makes up."""
    net, digits = thin_lenet5(), photos()[:, :1, :28, :28]
    arrays: dict[str, Any] = {}
    for name, parameter in net.named_parameters():
        arrays[name] = parameter.detach()
        if name.endswith("weight"):
            step = parameter.detach().abs().max() / 127
            arrays |= {name: (parameter.detach() / step).round().to(torch.int8), f"{name}.step": step}
            parameter.data = arrays[name] * step
    file = files.write_dense(arrays, tmp_path / "steps.pack")
    assert torch.equal(answers(load(file.path), digits), answers(net, digits))


def test_a_text_classifier_has_the_files_words(tmp_path):
    net = nets.TextBag(6, dimensions=3, hidden=4).eval()
    words = ["<unk>", "<pad>", "good", "not", "film", "not good"]
    file = files.write_sparse(net, tmp_path / "bag.pack", words=words)
    reviews = Split(["Not good", "good FILM, good"], [0, 1])
    pairs = numbered(reviews, files.read_words(file.path))
    assert pairs.inputs.tolist() == [[3, 2, 5, 1, 1, 1, 1], [2, 4, 0, 2, 0, 0, 0]]  # "good", "film", ",", "good", pairs
    assert numbered(reviews, words[:5]).inputs.tolist() == [[3, 2, 1, 1], [2, 4, 0, 2]]
    assert torch.equal(answers(load(file.path), pairs.inputs), answers(net, pairs.inputs))


def test_reviews_are_cut_where_the_notebooks_cut_them():
    assert MAX_TOKENS == text.MAX_TOKENS


# ---------------------------------------------------------------- the test sets


@pytest.mark.data
@pytest.mark.slow
def test_the_test_images_are_those_of_the_notebooks():
    mnist, cifar = data.mnist().test, data.cifar10().test
    for task, expected in {"mnist": mnist, "cifar10": cifar}.items():
        found = images(task)
        assert torch.equal(found.inputs, expected.inputs) and torch.equal(found.labels, expected.labels)
    cats_and_dogs = images("cat-or-dog")
    for label, name in enumerate(("cat", "dog")):
        wanted = cifar.inputs[cifar.labels == data.CIFAR10_CLASSES.index(name)]
        assert torch.equal(cats_and_dogs.inputs[cats_and_dogs.labels == label], wanted)
    assert len(cats_and_dogs) == len(data.cat_or_dog().test)


def test_no_published_file_was_edited():
    assert checksums.changed() == [], "results and models are published, never edited: see data/results/errata.json"


def test_every_erratum_is_of_something_published():
    published = {path.name.partition(".")[0] for path in (paths.RESULTS / "full").glob("*.json")}
    rows = json.loads((paths.RESULTS / "errata.json").read_text(encoding="utf-8"))["errata"]
    for row in rows:
        assert row["notebook"] in published
        found = [evidence.load(row["notebook"], profile="full", seed=seed) for seed in range(3)]
        ids = {claim.id for result in found if result for claim in result.claims}
        assert not row.get("claim") or row["claim"] in ids
