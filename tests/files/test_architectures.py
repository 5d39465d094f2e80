"""A file is a model: written in every way, each network of the course comes back, untold, and answers the same."""

import hashlib
import json
import struct
import subprocess
import sys
import zlib
from functools import cache
from random import Random

import numpy as np
import pytest
import torch
from torch import nn

from helpers import files, nets, pruning, quantization, runtime
from helpers.core import modules, paths
from helpers.data import Split
from helpers.files import PackingError, architectures, coded, encoding, families, stating, writing
from helpers.runtime import networks, prediction
from tests.files.files_examples import transformer, without_heads, without_layer, without_neurons

PACKED = sorted(paths.MODELS.glob("*.pack"))


def lenet(first=5, second=6, hidden=7):
    net = nets.lenet5()
    net.conv1, net.conv2 = nn.Conv2d(1, first, 5), nn.Conv2d(first, second, 5)
    net.fc1, net.fc2 = nn.Linear(16 * second, hidden), nn.Linear(hidden, 10)
    return net


def lenet_300_100():
    net = nets.lenet_300_100()
    net.fc1, net.fc2, net.fc3 = nn.Linear(784, 9), nn.Linear(9, 8), nn.Linear(8, 10)
    return net


class ThinResNet18(nets.ResNet18):
    """The layers of ResNet-18, a 32nd as wide but for the first, so that the first block has a shortcut, too."""

    def __init__(self, classes=2, *, pixels=64):
        super().__init__(classes, pixels=pixels)
        self.fc = nn.Linear(512 // 32, classes)

    def _make_layer(self, block, planes, *arguments, **options):
        return super()._make_layer(block, planes // 32, *arguments, **options)


def text(encoder, units, **options):
    return nets.TextNet(encoder(6, units), units, 30, dimensions=6, **options)


NETWORKS = {
    "lenet5": lenet,
    "lenet300100": lenet_300_100,
    "mlp": lambda: nets.MLP(9),
    "cifarnet": lambda: nets.CifarNet((6, 8, 10, 12)),
    "resnet18": lambda: ThinResNet18(pixels=32),
    "textbag": lambda: nets.TextBag(30, dimensions=6, hidden=5),
    "textcnn": lambda: text(nets.TextCNN, 5),
    "rnn": lambda: text(nets.RNN, 5, max_tokens=12),
    "lstm": lambda: text(nets.LSTM, 5),
    "transformer": lambda: transformer(dimensions=64, heads=2),
}
VISION = ("lenet5", "lenet300100", "mlp", "cifarnet", "resnet18")


@cache
def network(name):
    torch.manual_seed(0)
    return trained_looking(NETWORKS[name]())


def trained_looking(net):
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for numbers in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                numbers.data.uniform_(0.5, 1.5)
    return net.eval()


@cache
def inputs(name):
    generator = torch.Generator().manual_seed(1)
    if name in VISION:
        shape = (1, 28, 28) if name in VISION[:3] else (3, 32, 32)
        return torch.randn(4, *shape, generator=generator)
    return torch.randint(0, 30, (4, 20), generator=generator)


def answers(net, given):
    with torch.no_grad():
        return net.eval()(given)


def removed(net, name):
    """The network with a third of the units of each layer removed, and a residual block; of a text network words."""
    if name in VISION:
        keep = {group.name: torch.arange(group.channels) % 3 > 0 for group in pruning.groups(net, inputs(name))}
        net = pruning.remove_filters(net, keep, inputs(name))
        blocks = {"cifarnet": "res1", "resnet18": "layer3.1"}
        return pruning.remove_block(net, blocks[name]) if name in blocks else net
    torch.manual_seed(0)
    if name == "transformer":
        return without_layer(without_neurons(without_heads(net, 1, [0]), 2, 7), 0)
    if name == "textbag":
        return nets.TextBag(30, dimensions=1, hidden=3)
    return text({"textcnn": nets.TextCNN, "rnn": nets.RNN, "lstm": nets.LSTM}[name], 3, max_tokens=9)


def pruned(net):
    weights = pruning.weights_of(net)
    generator = torch.Generator().manual_seed(2)
    return pruning.mask(net, {n: torch.rand(w.shape, generator=generator) < 0.2 for n, w in weights.items()})


def quantized(net, name, bits):
    split = Split(inputs(name), torch.zeros(len(inputs(name)), dtype=torch.long))
    options = {"activations": bits, "calibration": split} if name in VISION else {}
    return quantization.quantize_model(net, weights=bits, **options)


WAYS = {
    "dense": (lambda net, name: net, files.write_dense),
    "removed": (removed, files.write_dense),
    "removed, coded": (removed, files.write_coded),
    "8 bits": (lambda net, name: quantized(net, name, 8), files.write_quantized),
    "4 bits": (lambda net, name: quantized(net, name, 4), files.write_quantized),
    "4 bits, coded": (lambda net, name: quantized(net, name, 4), files.write_coded),
    "removed, 4 bits": (lambda net, name: quantized(removed(net, name), name, 4), files.write_coded),
    "sparse": (lambda net, name: pruned(net), files.write_sparse),
    "coded": (lambda net, name: pruned(net), files.write_coded),
    "half": (lambda net, name: modules.copied(net).half(), files.write_dense),
}


# ---------------------------------------------------------------- every network in every way


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_untold_and_answers_the_same(name, way, tmp_path):
    change, write = WAYS[way]
    net = change(network(name), name)
    path = write(net, tmp_path / "net.pack").path
    found = files.load(path)
    assert not found.training and {p.dtype for p in found.parameters()} == {torch.float32}
    expected = files.load_into(modules.copied(net).float(), path)
    assert torch.equal(answers(found, inputs(name)), answers(expected, inputs(name)))
    if way != "half":  # an RNN's kernel adds up otherwise where a parametrization computes the weights
        torch.testing.assert_close(answers(found, inputs(name)), answers(net, inputs(name)), rtol=1e-5, atol=1e-5)
    assert files.contents(path).architecture == architectures.state(net) != ""
    assert files.describe(found) == files.describe(net)


@pytest.mark.parametrize("name", NETWORKS)
def test_arrays_by_name_are_recognised(name, tmp_path):
    net = network(name)
    half = {key: t.half() if t.is_floating_point() else t for key, t in net.state_dict().items()}
    for write in (files.write_sparse, files.write_coded):
        path = write(half, tmp_path / "half.pack").path
        assert files.contents(path).architecture is None
        found, expected = files.load(path), files.load_into(modules.copied(net).float(), path)
        for option in ("pixels", "max_tokens"):  # which no array shows
            if hasattr(net, option):
                setattr(found, option, getattr(net, option))
        assert torch.equal(answers(found, inputs(name)), answers(expected, inputs(name)))


@pytest.mark.parametrize("way", ["dense", "removed", "8 bits", "4 bits, coded", "sparse", "half"])
@pytest.mark.parametrize("name", VISION)
def test_numpy_answers_as_torch(name, way, tmp_path):
    """Near a mark of an input's grid, the order of a sum decides: there a few images may get other numbers."""
    change, write = WAYS[way]
    path = write(change(network(name), name), tmp_path / "net.pack").path
    images = inputs(name)
    expected = answers(files.load(path), images).numpy()
    if expected.shape[1] not in {classes for channels, classes in prediction.LABELS if channels == images.shape[1]}:
        return
    found = runtime.open_network(path)
    near = np.abs(found.logits(images.numpy()) - expected).max(1) < 1e-4 * np.abs(expected).max()
    assert near.mean() >= (0.5 if "bits" in way else 1)
    assert found.name == families.FAMILIES[name].title


@pytest.mark.parametrize("name", ["cifarnet", "resnet18"])
def test_a_folded_network_comes_back(name, tmp_path):
    folded = quantization.fold_batchnorm(quantized(network(name), name, 4), inputs(name))
    path = files.write_coded(folded, tmp_path / "folded.pack").path
    found = files.load(path)
    assert not [layer for layer in found.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert torch.equal(answers(found, inputs(name)), answers(folded, inputs(name)))


def test_shared_weights_and_all_original_widths_come_back(tmp_path):
    for build in (nets.lenet5, nets.lenet_300_100, lambda: nets.MLP(800), nets.cifar_half):
        net = build().eval()
        weights = {name.removesuffix(".weight"): weight for name, weight in pruning.weights_of(net).items()}
        tables = {layer: torch.linspace(-0.1, 0.1, 4) for layer in weights}
        shared = quantization.share_weights(net, tables)
        found = files.load(files.write_quantized(shared, tmp_path / "net.pack").path)
        assert type(found) is type(net)
        state, expected = found.state_dict(), shared.state_dict()
        assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)


def test_loading_draws_nothing(tmp_path):
    path = files.write_dense(network("lstm"), tmp_path / "net.pack").path
    before = torch.random.get_rng_state()
    files.load(path)
    assert torch.equal(torch.random.get_rng_state(), before)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("write", [files.write_dense, files.write_sparse, files.write_quantized])
def test_a_text_network_brings_its_words(write, tmp_path):
    words = [f"w{number}" for number in range(30)]
    path = write(network("textbag"), tmp_path / "bag.pack", words=words).path
    assert files.load(path).words == words == files.read_words(path)
    assert files.load(write(network("textbag"), path).path).words == []
    assert not hasattr(files.load(write(network("lenet5"), path).path), "words")


def test_words_that_number_other_vectors_are_refused(tmp_path):
    path = files.write_dense(network("textbag"), tmp_path / "bag.pack", words=["a", "b"]).path
    with pytest.raises(PackingError, match="bag.pack: the file holds 2 words and 30 word vectors; allowed: as many"):
        files.load(path)


# ---------------------------------------------------------------- describing


def test_a_network_is_described():
    assert files.describe(lenet()) == {
        "name": "lenet5",
        "widths": {"conv1": 5, "conv2": 6, "fc1": 7, "fc2": 10},
        "removed": [],
    }
    without = files.describe(pruning.remove_block(nets.cifar_small(), "res2"))
    assert without["removed"] == ["res2"] and without["widths"]["conv3.conv"] == 96
    assert files.describe(ThinResNet18(pixels=48))["pixels"] == 48
    assert files.describe(nets.imdb_lstm())["max_tokens"] == 250
    for name in NETWORKS:
        assert json.loads(json.dumps(files.describe(network(name)))) == files.describe(network(name))


def test_what_the_header_says():
    assert architectures.state(nets.resnet18()) == "resnet18"
    assert architectures.state(ThinResNet18(pixels=32)) == "resnet18:32"
    assert architectures.state(text(nets.RNN, 3, max_tokens=7)) == "rnn:7"
    assert architectures.state(nets.mlp_1200()) == "mlp"


class Tanh(nets.LeNet5):
    def forward(self, images):
        return super().forward(images).tanh()


def strided():
    net = nets.lenet5()
    net.conv1 = nn.Conv2d(1, 20, 5, padding=1, stride=1)
    return net


def another_eps():
    net = nets.cifar_small()
    net.stem.bn.eps = 0.1
    return net


def without_relu():
    net = nets.cifar_small()
    net.stem.relu = nn.Identity()
    return net


def factored():
    net = nets.lenet5()
    net.fc1 = nn.Sequential(nn.Linear(800, 5), nn.Linear(5, 500))
    return net


def tied():
    net = nets.MLP(784)
    net.fc2.weight = net.fc1.weight
    return net


OTHERS = [Tanh, strided, another_eps, without_relu, factored, tied, lambda: nn.Linear(2, 2), lambda: lenet(4_097, 1, 1)]


@pytest.mark.parametrize("build", OTHERS)
def test_a_network_that_is_none_of_the_course_is_not_named_and_not_loaded(build, tmp_path):
    net = build()
    assert files.describe(net) is None
    for write in (files.write_dense, files.write_coded):
        path = write(net, tmp_path / "other.pack").path
        assert not files.contents(path).architecture
        for parameter, array in files.load_into(net, path).state_dict().items():
            assert torch.equal(array, net.state_dict()[parameter])
        with pytest.raises(PackingError, match=r"other.pack: no network is named in the header or shown"):
            files.load(path)
        with pytest.raises(ValueError, match="other.pack' holds no network: no network is named"):
            runtime.open_network(path)


def test_files_that_state_nothing_have_the_versions_from_before(tmp_path):
    arrays = {"x": np.ones(3, "<f4")}
    for tensors, added in ((arrays, 0), (nn.Linear(2, 2), 0), (lenet(), 2), (Tanh(), 2)):
        assert files.write_dense(tensors, tmp_path / "a").path.read_bytes()[6] == 1 + added
        assert files.write_coded(tensors, tmp_path / "b").path.read_bytes()[6] == 2 + added


@pytest.mark.parametrize("bits", [None, 4])
def test_the_name_takes_few_bytes(bits, tmp_path, monkeypatch):
    for net, most in ((network("lenet5"), (6, 2)), (network("cifarnet"), (8, 2))):
        net = net if bits is None else quantization.quantize_model(net, weights=bits)
        for write, allowed in zip((files.write_quantized, files.write_coded), most, strict=True):
            with monkeypatch.context() as patched:
                patched.setattr(stating, "architecture_of", lambda *arguments: None)
                patched.setattr(writing, "architecture_of", lambda *arguments: None)
                before = write(net, tmp_path / "net.pack").bytes
            assert write(net, tmp_path / "net.pack").bytes - before <= allowed


# ---------------------------------------------------------------- files from before


@cache
def published(path):
    return files.load(path)


def as_before(task_network, path):
    """The network as the test of the published files made it: an untrained one, its layers in the file's shapes."""
    arrays = files.read(path)
    steps = {name.removesuffix(".step"): arrays.pop(name) for name in [*arrays] if name.endswith(".step")}
    net = getattr(nets, task_network)()
    for name, layer in [*net.named_modules()]:
        if "weight" in layer._parameters:
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, resized(layer, arrays, name))
    if not steps:
        return files.load_into(net.eval(), path)
    numbers = {name: np.asarray(array * steps.get(name, 1), np.float32) for name, array in arrays.items()}
    net.load_state_dict({name: torch.from_numpy(array) for name, array in numbers.items()})
    return net.eval()


def resized(layer, arrays, name):
    if f"{name}.weight" not in arrays:
        return nn.Identity()
    shape, bias = arrays[f"{name}.weight"].shape, f"{name}.bias" in arrays
    if isinstance(layer, nn.Conv2d):
        return nn.Conv2d(shape[1], shape[0], shape[2:], stride=layer.stride, padding=layer.padding, bias=bias)
    if isinstance(layer, nn.Linear):
        return nn.Linear(shape[1], shape[0], bias=bias)
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(shape[0], eps=layer.eps)
    return nn.EmbeddingBag(*shape, mode=layer.mode, padding_idx=layer.padding_idx)


BEFORE = {"LeNet5": "lenet5", "CifarNet": "cifar_small", "ResNet18": "resnet18", "TextBag": "imdb_bag"}


@pytest.mark.parametrize("path", PACKED, ids=lambda path: path.name)
def test_published_files_are_the_networks_that_they_were(path):
    found = published(path)
    expected = as_before(BEFORE[type(found).__name__], path)
    assert [(n, type(m)) for n, m in found.named_modules()] == [(n, type(m)) for n, m in expected.named_modules()]
    state = expected.state_dict()
    assert found.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict().items())
    generator = torch.Generator().manual_seed(0)
    shape = {"LeNet5": (1, 28, 28), "TextBag": None}.get(type(found).__name__, (3, 32, 32))
    given = torch.randint(0, len(found.words), (2, 30), generator=generator) if shape is None else None
    given = torch.randn(2, *shape, generator=generator) if given is None else given
    assert torch.equal(answers(found, given), answers(expected, given))
    if shape is None:
        assert len(found.words) == len(found.embedding.weight)


def test_there_are_published_files_of_each_kind():
    assert {type(published(path)).__name__ for path in PACKED} == BEFORE.keys()


# ---------------------------------------------------------------- forged files


def sealed(header, payload=b"", version=3):
    packed = zlib.compress(json.dumps(header).encode())
    start = b"MCPACK" + version.to_bytes(2, "little") + len(packed).to_bytes(4, "little")
    return start + hashlib.sha256(start + packed + payload).digest()[:8] + packed + payload


def opened(path):
    content = path.read_bytes()
    length = struct.unpack("<I", content[8:12])[0]
    return json.loads(zlib.decompress(content[20 : 20 + length])), content[20 + length :]


@pytest.fixture
def thin(tmp_path):
    return files.write_dense(network("lenet5"), tmp_path / "thin.pack").path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alexnet", "the header names the architecture 'alexnet'; allowed: lenet5, lenet300100, mlp"),
        (":", "no network is named"),
        ("", r"no network is named in the header or shown by the arrays \(conv1.bias, conv1.weight"),
        ("lenet5:3", "the header names the architecture 'lenet5:3'; allowed: 'lenet5'"),
        ("lenet5:", "the header names the architecture 'lenet5:'; allowed: 'lenet5'"),
        ("mlp", "says that it is a perceptron of two hidden layers, but does not fit it: 'fc1.weight' has the shape"),
        ("cifarnet", "says that it is a CIFAR net, but does not fit it: 'stem.conv.weight' is missing"),
        ("resnet18", "says that it is a ResNet-18, but does not fit it: 'conv1.weight' has the shape"),
        ("resnet18:0", "the header says pixels='0'; allowed: 1 to 512"),
        ("resnet18:999999999", "the header says pixels='999999999'; allowed: 1 to 512"),
        ("resnet18:" + "9" * 50, "the header says pixels='9{32}'; allowed: 1 to 512"),
        ("rnn:-3", "the header says max_tokens='-3'; allowed: 1 to 100,000"),
        ("rnn:x", "the header says max_tokens='x'"),
        ("rnn:٣", "the header says max_tokens="),
        ("textbag", "does not fit it: 'embedding.weight' is missing"),
        ("x" * 65, r"the architecture is 'x{64,}.*; allowed: a text of 64 characters at most"),
        (None, "the architecture is None; allowed: a text"),
        (7, "the architecture is 7; allowed: a text"),
        (["lenet5"], r"the architecture is \['lenet5'\]; allowed: a text"),
        ({"name": "lenet5"}, "the architecture is {.*; allowed: a text"),
    ],
)
def test_a_header_that_names_another_network_is_refused(thin, text, said):
    header, payload = opened(thin)
    assert header[0] == "lenet5"
    thin.write_bytes(sealed([text, *header[1:]], payload))
    for read in (files.load, runtime.open_network):
        with pytest.raises(ValueError, match=f"thin.pack.*{said}") as raised:
            read(thin)
        assert "\n" not in str(raised.value)
        assert read is not files.load or type(raised.value) is PackingError


def test_a_header_without_its_first_part_is_refused(thin):
    thin.write_bytes(sealed([]))
    with pytest.raises(PackingError, match="the architecture is None; allowed: a text"):
        files.read(thin)
    thin.write_bytes(sealed(["lenet5"], version=1))
    with pytest.raises(PackingError, match="no list of entries"):
        files.read(thin)


def test_a_coded_header_is_checked_as_well(tmp_path):
    path = tmp_path / "coded.pack"
    for header, said in (
        ([0], "the architecture is None"),
        ([0, 3], "the architecture is 3"),
        ([0, "lenet5"], "does not fit it: 'conv1.weight' is missing"),
        ([0, "none"], "the header names the architecture 'none'"),
    ):
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=coded.NAMED_WORDS)
        body = packer.compress(json.dumps(header).encode()) + packer.flush()
        start = b"MCPACK\4\0"
        path.write_bytes(start + hashlib.sha256(start + body).digest()[:4] + body)
        with pytest.raises(PackingError, match=f"coded.pack: .*{said}"):
            files.load(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conv1.weight": (2**20, 1, 5, 5)}, "'conv1.weight' is for 1,048,576 units; allowed: 1 to 4,096"),
        ({"conv1.weight": (0, 1, 5, 5)}, "'conv1.weight' is for 0 units"),
        ({"conv2.weight": (6, 4, 5, 5)}, r"'conv2.weight' has the shape \(6, 4, 5, 5\); allowed: \(6, 5, 5, 5\)"),
        ({"conv2.weight": (6, 5, 3, 3)}, r"allowed: \(6, 5, 5, 5\)"),
        ({"fc1.weight": (7, 97)}, r"'fc1.weight' has the shape \(7, 97\); allowed: \(7, 96\)"),
        ({"fc1.bias": (8,)}, "'fc1.bias' holds 8 numbers; allowed: 7, one for each unit"),
        ({"fc2.weight": (10,)}, "'fc2.weight' has 1 dimensions; allowed: 2"),
        ({"fc3.weight": (10, 10)}, "it has no place for 'fc3.weight'"),
        ({"fc1.input_grid": (5,)}, "'fc1.input_grid' holds 5 numbers; allowed: 4"),
        ({"fc1.input_grid": (4,)}, "'fc1.input_grid' is no grid"),
        ({"fc9.input_grid": (4,)}, "it has no place for 'fc9.input_grid'"),
        ({"fc9.step": ()}, "it has no place for 'fc9.step'"),
        ({"fc1.weight.step": (3,)}, r"a step has the shape \(3,\) for an array of \(7, 96\)"),
    ],
)
@pytest.mark.parametrize("name", ["lenet5", None])
def test_arrays_that_contradict_the_name_are_refused(thin, changes, said, name):
    arrays = files.read(thin) | {key: np.zeros(shape, "<f4") for key, shape in changes.items()}
    writing.write(arrays, thin, [], code=encoding.encode_sparse, architecture=name)
    with pytest.raises(PackingError, match=f"thin.pack: .*{said}"):
        files.load(thin)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "textbag",
            {"embedding.weight": (1, 6)},
            r"'embedding.weight' has the shape \(1, 6\); allowed: 2 words or more",
        ),
        ("textbag", {"embedding.weight": (30, 0)}, "allowed: 2 words or more, of 1 to 4,096 numbers"),
        ("lstm", {"encoder.input.weight": (6, 6)}, "'encoder.input.weight' has 6 rows; allowed: four for each unit"),
        ("lstm", {"encoder.recurrent.weight": (20, 4)}, r"has the shape \(20, 4\); allowed: \(20, 5\)"),
        ("rnn", {"encoder.recurrent.weight": (5, 4)}, r"allowed: \(5, 5\)"),
        ("cifarnet", {"res1.block2.conv.weight": (7, 8, 3, 3)}, r"allowed: \(8, 8, 3, 3\)"),
        ("cifarnet", {"stem.bn.running_var": (7,)}, "'stem.bn.running_var' holds 7 numbers; allowed: 6"),
        ("cifarnet", {"stem.bn.num_batches_tracked": (7,)}, "has 1 dimensions; allowed: 0"),
        ("resnet18", {"layer2.0.downsample.0.weight": (9, 2, 1, 1)}, "'layer2.0.downsample.1.weight' holds 4 numbers"),
    ],
)
def test_arrays_of_other_networks_are_looked_through(tmp_path, name, changes, said):
    arrays = {key: tensor.numpy() for key, tensor in network(name).state_dict().items()}
    arrays |= {key: np.zeros(shape, "<f4") for key, shape in changes.items()}
    if name == "lstm" and (6, 6) in changes.values():
        del arrays["encoder.input.bias"]
    path = writing.write(arrays, tmp_path / "x.pack", [], code=encoding.encode_sparse, architecture=name).path
    with pytest.raises(PackingError, match=f"x.pack: .*{said}"):
        files.load(path)


def test_forged_networks_are_refused_or_answer(tmp_path):
    """Any name over the arrays of any network, with shapes and types changed: a sentence, or a network that answers."""
    random = Random(5)
    path = tmp_path / "forged.pack"
    refused = 0
    for number in range(100):
        name = random.choice([name for name in NETWORKS if name != "resnet18"])
        arrays = {key: tensor.numpy() for key, tensor in network(name).state_dict().items()}
        for key in random.sample([*arrays], random.randrange(3)):
            shape = [random.choice([0, 1, 2, 3, 5, 784]) for _ in range(random.randrange(5))]
            arrays[random.choice([key, f"{key}.step", "x"])] = np.ones(
                shape, random.choice(["<f4", "<i8", "<c8", "|b1"])
            )
        text = random.choice([name, name, None, "", *NETWORKS, "rnn:5", "resnet18:1", "mlp:2"])
        writing.write(arrays, path, [], code=encoding.encode_sparse, architecture=text)
        try:
            found = files.load(path)
            assert answers(found, inputs(name)).shape[0] == 4
        except PackingError as error:
            assert "forged.pack: " in str(error) and "\n" not in str(error), number
            refused += 1
    assert 30 < refused < 98


def test_what_read_refuses_load_refuses(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.load(tmp_path / "none.pack")
    path = files.write_dense(network("lenet5"), tmp_path / "cut.pack").path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PackingError, match="cut.pack: the checksum does not match"):
        files.load(path)


def test_recognising_needs_no_torch():
    code = (
        "import sys; from helpers import files, runtime; from pathlib import Path;"
        f"print(runtime.open_network(Path({str(PACKED[0])!r})).name); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True)
    assert done.stdout == "LeNet-5\n", done.stderr


def test_every_family_is_tested():
    assert [*NETWORKS] == [*families.FAMILIES] and {*networks.NETWORKS} == {*VISION}
    assert {*networks.READERS} == {"transformer"}


class Elsewhere(nets.resnet18().__class__):
    """A ResNet-18 that answers twice as much, by a method that `forward` calls."""

    def _forward_impl(self, x):
        return 2 * super()._forward_impl(x)


def hooked() -> nn.Module:
    net = nets.lenet5()
    net.conv1.register_forward_hook(lambda module, given, answer: 2 * answer)
    return net


def replaced() -> nn.Module:
    net = nets.lenet5()
    net.forward = lambda x: x.flatten(1)[:, :10]  # type: ignore[method-assign]
    return net


@pytest.mark.parametrize("build", [hooked, replaced, Elsewhere])
def test_a_network_that_computes_otherwise_is_none_of_the_course(build):
    assert architectures.state(build()) == ""


@pytest.mark.parametrize("far", [2.0**40, -(2.0**40), 2.0**31])
def test_a_grid_beyond_all_integers_is_refused(far, tmp_path):
    arrays = {name: tensor.numpy() for name, tensor in nets.lenet5().state_dict().items()}
    arrays["conv1.input_grid"] = np.array([1, far, far, far], np.float32)
    path = files.write_dense(arrays, tmp_path / "net.pack").path
    with pytest.raises(PackingError, match="'conv1.input_grid' is no grid"):
        files.load(path)


@pytest.mark.parametrize("encoder", [nets.RNN, nets.LSTM])
@pytest.mark.parametrize("name", ["encoder.input.bias", "encoder.recurrent.bias"])
def test_a_recurrent_network_needs_its_biases(encoder, name, tmp_path):
    state = nets.TextNet(encoder(6, 5), 5, words=4, dimensions=6).state_dict()
    del state[name]
    path = files.write_dense(dict(state), tmp_path / "net.pack").path
    with pytest.raises(PackingError, match=f"it lacks '{name}'"):
        files.load(path)
