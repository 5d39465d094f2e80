"""The networks have the literature's shapes."""

from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from helpers import checkpoints, measure, nets
from helpers.core import paths
from helpers.fetching import SourceError
from helpers.nets import classifiers


def test_lenet5_has_the_literatures_parameters():
    sizes = {name: parameter.numel() for name, parameter in nets.lenet5().named_parameters()}
    by_hand = {
        "conv1": (20 * 25, 20),
        "conv2": (50 * 20 * 25, 50),
        "fc1": (800 * 500, 500),
        "fc2": (500 * 10, 10),
    }
    for layer, (weight, bias) in by_hand.items():
        assert (sizes[f"{layer}.weight"], sizes[f"{layer}.bias"]) == (weight, bias)
    assert sum(sizes.values()) == 431_080


def test_lenet_300_100_has_the_literatures_parameters():
    assert sum(p.numel() for p in nets.lenet_300_100().parameters()) == 266_610


@pytest.mark.parametrize(
    ("build", "units", "parameters"), [(nets.mlp_800, 800, 1_276_810), (nets.mlp_1200, 1200, 2_395_210)]
)
def test_hintons_networks_have_two_equal_hidden_layers(build, units, parameters):
    assert sum(p.numel() for p in build().parameters()) == parameters
    assert parameters == 785 * units + (units + 1) * units + 10 * (units + 1)


def test_only_the_teacher_drops_units_and_only_in_training():
    torch.manual_seed(0)
    images = torch.randn(2, 1, 28, 28)
    student, teacher = nets.mlp_800(), nets.mlp_1200()
    assert torch.equal(student(images), student(images)) and not torch.equal(teacher(images), teacher(images))
    w = teacher.eval().state_dict()
    x = (images.flatten(1) @ w["fc1.weight"].T + w["fc1.bias"]).clamp(min=0)
    x = (x @ w["fc2.weight"].T + w["fc2.bias"]).clamp(min=0)
    assert torch.allclose(teacher(images), x @ w["fc3.weight"].T + w["fc3.bias"], atol=1e-5)


def test_networks_give_ten_logits_per_image():
    images = torch.randn(3, 1, 28, 28)
    for build in (nets.lenet5, nets.lenet_300_100, nets.mlp_800):
        assert build()(images).shape == (3, 10)


@pytest.mark.parametrize(
    "build, widths",
    [
        (nets.cifar_base, (32, 64, 128, 256)),
        (nets.cifar_small, (16, 24, 48, 96)),
        (nets.cifar_half, (12, 16, 32, 72)),
    ],
)
def test_cifar_nets_multiply_as_often_as_by_hand(build, widths):
    a, b, c, d = widths
    by_hand = 9 * (3 * a + a * b) * 32**2 + 9 * (2 * b * b + b * c) * 16**2 + 9 * c * d * 8**2 + 9 * 2 * d * d * 4**2
    assert measure.count_macs(build(), torch.randn(2, 3, 32, 32)) == by_hand + 10 * d


def test_the_cheap_alternative_has_half_the_macs():
    image = torch.randn(1, 3, 32, 32)
    base, small, half = (
        measure.count_macs(build(), image) for build in (nets.cifar_base, nets.cifar_small, nets.cifar_half)
    )
    assert 50e6 <= base <= 100e6 and small <= 15e6
    assert small / half == pytest.approx(2, abs=0.02)


def test_the_residual_adds_its_input():
    block = nets.Residual(4)
    nn.init.zeros_(block.block2.bn.weight)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)


# --- ResNet-18 ---


def test_resnet18_multiplies_as_often_as_by_hand():
    """At 64 pixels the stages see 32 (the first convolution), 16, 8, 4 and 2."""
    stem, first = 3 * 64 * 49 * 32**2, 4 * 9 * 64 * 64 * 16**2
    others = sum(
        (9 * c * 2 * c + 3 * 9 * (2 * c) ** 2 + c * 2 * c) * size**2 for c, size in ((64, 8), (128, 4), (256, 2))
    )
    model = nets.resnet18()
    assert measure.count_macs(model, torch.randn(1, 3, 32, 32)) == stem + first + others + 512 * 8 == 148_049_920
    assert measure.count_parameters(model) == 11_176_512 + 513 * 8


def test_resnet18_is_torchvisions_on_enlarged_images():
    torch.manual_seed(0)
    model = nets.resnet18().eval()
    library = torchvision.models.resnet18(num_classes=8).eval()
    assert list(model.state_dict()) == list(library.state_dict())
    library.load_state_dict(model.state_dict())
    for shape in ((2, 3, 32, 32), (2, 3, 28, 28), (2, 3, 64, 64)):
        images = torch.randn(shape)
        enlarged = F.interpolate(images, (64, 64), mode="bilinear")
        torch.testing.assert_close(model(images), library(enlarged), rtol=1e-4, atol=1e-4)
    assert torch.equal(enlarged, images), "what is large enough stays as it is"
    assert nets.ResNet18(3, pixels=32)(images).shape == (2, 3)


def test_pretrained_resnet18_is_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    model = nets.resnet18()
    digest = checkpoints.write_weights(model, tmp_path / "resnet18.safetensors", half=True)
    entry = f'{{"resnet18": {{"file": "resnet18.safetensors", "sha256": "{digest}"}}}}'
    (tmp_path / "manifest.json").write_text(entry)
    loaded = checkpoints.pretrained_resnet18()
    assert not loaded.training and (tmp_path / "resnet18.safetensors").stat().st_size < 25e6
    assert torch.equal(loaded.fc.weight, model.fc.weight.half().float())


@pytest.fixture
def hub_file(tmp_path, monkeypatch):
    """Return where torch.hub looks for torchvision's weights; nothing is there, and nothing can be downloaded."""

    def no_network(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"


def test_imagenets_weights_come_through_torchvision(hub_file):
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), hub_file)
    library = torchvision.models.resnet18(weights=torchvision.models.ResNet18_Weights.IMAGENET1K_V1).eval()
    model = checkpoints.pretrained_resnet18("imagenet")
    images = torch.randn(2, 3, 64, 64)
    assert not model.training and model(images).shape == (2, 1_000)
    torch.testing.assert_close(model(images), library(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("content", [None, b"", b"junk", "truncated", "another network"])
def test_imagenets_weights_that_cannot_be_had(hub_file, content):
    if isinstance(content, bytes):
        hub_file.write_bytes(content)
    elif content is not None:
        torch.save(nn.Linear(50, 50).state_dict(), hub_file)
        hub_file.write_bytes(hub_file.read_bytes()[: -2_000 if content == "truncated" else None])
    with pytest.raises(SourceError, match=r"source='imagenet' failed \(.*resnet18-f37072fd.pth.* source='course'"):
        checkpoints.pretrained_resnet18("imagenet")


def test_resnet18s_arguments_are_named():
    with pytest.raises(ValueError, match="source='hub' is unknown; allowed: 'course', 'imagenet'"):
        checkpoints.pretrained_resnet18("hub")
    for wrong in ({"classes": 0}, {"pixels": 0.5}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*whole number of at least 1"):
            nets.ResNet18(**wrong)


TEXT_NETS = [nets.imdb_bag, nets.imdb_bigrams, nets.imdb_cnn, nets.imdb_rnn, nets.imdb_lstm]


@pytest.mark.parametrize(
    ("build", "beside"),
    [
        (nets.imdb_bag, 100 * 200 + 200 * 2),
        (nets.imdb_cnn, 3 * 100 * 64 + 64 * 2),
        (nets.imdb_rnn, 100 * 100 + 100 * 100 + 100 * 2),
        (nets.imdb_lstm, 4 * 36 * (100 + 36) + 36 * 2),
    ],
)
def test_text_nets_are_of_comparable_size(build, beside):
    assert measure.count_weights(build()) == 10_002 * 100 + beside
    assert 19_000 < beside < 21_000


@pytest.mark.parametrize("build", TEXT_NETS)
def test_padding_changes_nothing(build):
    torch.manual_seed(0)
    model = build().eval()
    tokens = torch.randint(2, 10_000, (3, 12))
    tokens[1, 5:] = tokens[2, 1:] = 1
    logits = model(tokens)
    assert logits.shape == (3, 2)
    for row, length in enumerate((12, 5, 1)):
        assert torch.allclose(logits[row], model(tokens[row : row + 1, :length])[0], atol=1e-6)
    wider = torch.cat([tokens, torch.ones(3, 7, dtype=torch.int64)], dim=1)
    assert torch.equal(model(wider), logits)
    assert model(torch.ones(2, 4, dtype=torch.int64)).isfinite().all()  # nothing but padding


@pytest.mark.parametrize("flag", ["torch.compiler.is_exporting", "torch.onnx.is_in_onnx_export"])
@pytest.mark.parametrize("build", TEXT_NETS)
def test_an_exported_text_net_keeps_padding_and_answers_the_same(build, flag, monkeypatch):
    """How much padding there is to cut depends on the texts: a graph that holds for all of them cannot do it."""
    torch.manual_seed(0)
    model = build().eval()
    tokens = torch.randint(2, 10_000, (4, 12))
    tokens[1, 5:] = tokens[2, 1:] = tokens[3] = 1
    expected = model(torch.cat([tokens, torch.ones(4, 6, dtype=torch.int64)], dim=1))
    monkeypatch.setattr(flag, lambda: True)
    wide = torch.cat([tokens, torch.ones(4, 6, dtype=torch.int64)], dim=1)
    assert classifiers.without_padding(wide) is wide
    torch.testing.assert_close(model(wide), expected, rtol=1e-5, atol=1e-6)


def test_columns_of_padding_alone_are_cut():
    tokens = torch.tensor([[5, 1, 3, 1, 1], [1, 1, 1, 1, 1]])
    assert torch.equal(classifiers.without_padding(tokens), tokens[:, :3])
    assert torch.equal(classifiers.without_padding(tokens[1:]), tokens[1:, :1])


def test_text_nets_compute_in_half_precision():
    model = nets.TextNet(nets.TextCNN(8, 4), 4, words=50, dimensions=8).eval()
    tokens = torch.tensor([[5, 6, 7], [8, 1, 1]])
    torch.testing.assert_close(model.half()(tokens).float(), model.float()(tokens), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("build", TEXT_NETS)
def test_word_vectors_start_short_and_padding_is_zero(build):
    torch.manual_seed(0)
    weight = build().embedding.weight
    assert weight[2:].std().item() == pytest.approx(0.1, rel=0.01)
    assert not weight[1].any()


def test_a_bag_knows_no_order_and_the_others_do():
    torch.manual_seed(0)
    tokens = torch.randint(2, 10_000, (1, 20))
    for build in TEXT_NETS:
        model = build().eval()
        same = torch.allclose(model(tokens), model(tokens.flip(1)), atol=1e-6)
        assert same == isinstance(model, nets.TextBag)


def test_the_bag_by_hand():
    torch.manual_seed(0)
    model = nets.TextBag(6, dimensions=3, hidden=4).eval()
    mean = (model.embedding.weight[2] + 2 * model.embedding.weight[5]) / 3
    expected = model.fc2.weight @ (model.fc1.weight @ mean + model.fc1.bias).clamp(min=0) + model.fc2.bias
    assert torch.allclose(model(torch.tensor([[5, 2, 5, 1, 1]]))[0], expected, atol=1e-6)


def test_only_the_first_tokens_are_read():
    torch.manual_seed(0)
    model = nets.TextNet(nets.TextCNN(100, 8), 8, words=50, max_tokens=6).eval()
    tokens = torch.randint(2, 50, (2, 9))
    assert torch.equal(model(tokens), model(tokens[:, :6]))
    assert not torch.equal(model(tokens), model(tokens[:, :5]))


@pytest.mark.parametrize(("ours", "torchs"), [(nets.RNN, nn.RNN), (nets.LSTM, nn.LSTM)])
def test_recurrent_layers_are_torchs(ours, torchs):
    """Same weights: same states, same gradients."""
    torch.manual_seed(0)
    mine, library = ours(5, 7), torchs(5, 7, batch_first=True)
    names = {
        "weight_ih_l0": "input.weight",
        "weight_hh_l0": "recurrent.weight",
        "bias_ih_l0": "input.bias",
        "bias_hh_l0": "recurrent.bias",
    }
    mine.load_state_dict({names[name]: tensor for name, tensor in library.state_dict().items()})
    x = torch.randn(3, 11, 5)
    states, expected = mine(x), library(x)[0]
    assert torch.allclose(states, expected, atol=1e-6)
    states.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in library.named_parameters():
        assert torch.allclose(mine.get_parameter(names[name]).grad, parameter.grad, atol=1e-4)


def test_a_plain_recurrent_layer_starts_as_a_rotation():
    weight = nets.RNN(5, 7).recurrent.weight
    assert torch.allclose(weight @ weight.T, torch.eye(7), atol=1e-5)
