"""Checkpoints: what the manifest says is what the files hold."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

from helpers import checkpoints, data, nets, pruning, quantization, training
from helpers.core import paths
from helpers.data import pieces
from helpers.training import devices


@pytest.mark.parametrize("name", checkpoints.manifest())
def test_committed_files_are_the_manifests_and_safetensors(name):
    entry = checkpoints.manifest()[name]
    assert entry["file"].endswith(".safetensors")
    model = checkpoints.load(name)
    assert not model.training
    options = checkpoints.RECIPES[name].options
    assert entry["options"] == {key: getattr(value, "__name__", value) for key, value in options.items()}


SLOW = ("imdb_minilm",)  # two minutes: its kept answers say as much


@pytest.mark.data
@pytest.mark.parametrize("name", [name for name in checkpoints.manifest() if name not in SLOW])
def test_the_manifests_validation_accuracy_is_the_files(name):
    """Another machine rounds differently: a digit or two of 5,000 may change sides."""
    measured = training.evaluate(checkpoints.load(name), checkpoints.RECIPES[name].dataset().validation).accuracy
    assert measured == pytest.approx(checkpoints.manifest()[name]["validation_accuracy"], abs=0.0005)


@pytest.mark.data
def test_the_teachers_kept_answers_are_the_files():
    """To the first reviews, and to the first windows of them; another machine rounds bfloat16 differently."""
    kept, reviews = checkpoints.teachers_answers("imdb_minilm"), data.imdb().train.inputs
    windows = pieces.asked(reviews)[len(reviews) :]
    assert kept.shape == (len(reviews) + len(windows), 2)
    found = checkpoints.ask(checkpoints.load("imdb_minilm"), [*reviews[:12], *windows[:12]])
    expected = torch.cat([kept[:12], kept[len(reviews) : len(reviews) + 12]])
    assert (found - expected).square().mean().sqrt() < 0.05 * expected.square().mean().sqrt()


@pytest.mark.data
def test_answers_come_in_the_order_of_the_texts():
    net, texts = checkpoints.load("imdb_minilm"), ["A wonderful film. " * 9, "Dreadful.", "I loved it, all of it."]
    together, apart = checkpoints.ask(net, texts), torch.cat([checkpoints.ask(net, [text]) for text in texts])
    torch.testing.assert_close(together, apart, rtol=0.1, atol=0.1)
    assert together.argmax(1).tolist() == [1, 0, 1]


def test_only_a_network_that_teaches_has_answers():
    with pytest.raises(ValueError, match=r"name='lenet5' is unknown"):
        checkpoints.teachers_answers("lenet5")


def test_frozen_parameters_may_be_left_out_and_come_from_the_model(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    checkpoints.write_weights(model, tmp_path / "trained.safetensors", trained_only=True)
    assert load_file(tmp_path / "trained.safetensors").keys() == {"0.bias", "1.weight", "1.bias"}
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"0\.weight"):
        checkpoints.read_weights(other, tmp_path / "trained.safetensors")
    other[0].weight.requires_grad_(False)
    found = checkpoints.read_weights(other, tmp_path / "trained.safetensors")
    assert torch.equal(found[0].weight, other[0].weight) and torch.equal(found[1].weight, model[1].weight)


def test_every_recipe_has_a_checkpoint_and_back():
    assert set(checkpoints.manifest()) == set(checkpoints.RECIPES)


def test_training_writes_weights_and_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setenv("COURSE_BUILD_DIR", str(tmp_path / "build"))
    split = data.Split(torch.randn(64, 1, 28, 28), torch.arange(64) % 10)
    recipe = checkpoints.Recipe(
        nets.lenet_300_100,
        lambda: data.Dataset(split, split, split),
        {"epochs": 2, "lr": 0.01, "batch_size": 32},
    )
    monkeypatch.setitem(checkpoints.RECIPES, "tiny", recipe)
    path = checkpoints.train("tiny", seed=3)
    entry = json.loads((tmp_path / "checkpoints" / "manifest.json").read_text())["tiny"]
    assert (entry["seed"], entry["examples"], entry["options"]["epochs"]) == (3, 64, 2)
    loaded = checkpoints.load("tiny")
    assert training.evaluate(loaded, split).accuracy == entry["test_accuracy"] == entry["validation_accuracy"]

    first = path.read_bytes()
    (tmp_path / "build").rename(tmp_path / "gone")  # without the saved state the same seed trains the same weights
    assert checkpoints.train("tiny", seed=3).read_bytes() == first

    path.write_bytes(first[:-1] + b"x")
    with pytest.raises(ValueError, match=r"tiny\.safetensors is missing or changed; restore it with git"):
        checkpoints.load("tiny")


def test_half_precision_is_in_the_file_and_in_its_accuracy(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setenv("COURSE_BUILD_DIR", str(tmp_path / "build"))
    monkeypatch.setattr(devices, "fit", lambda model, *args, **options: training.Fitted(almost_undecided(model), []))
    split = data.Split(torch.randn(64, 3, 32, 32), torch.zeros(64, dtype=torch.int64))
    recipe = checkpoints.Recipe(
        lambda: nets.CifarNet((4, 4, 4, 4)), lambda: data.Dataset(split, split, split), {"epochs": 1}, half=True
    )
    monkeypatch.setitem(checkpoints.RECIPES, "tiny", recipe)

    path = checkpoints.train("tiny")
    stored = load_file(path)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int64}
    assert stored["stem.bn.num_batches_tracked"] == 0
    entry = json.loads((tmp_path / "checkpoints" / "manifest.json").read_text())["tiny"]
    assert entry["validation_accuracy"] == entry["test_accuracy"] == 1.0, "rounded, both logits are equal: class 0"
    loaded = checkpoints.load("tiny")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert training.evaluate(loaded, split).accuracy == 1.0


def almost_undecided(model):
    """Return the model with a head that says class 1, by less than half precision can tell."""
    torch.nn.init.zeros_(model.fc.weight)
    torch.nn.init.ones_(model.fc.bias)
    model.fc.bias.data[1] += 1e-5
    return model.eval()


def test_early_weights_are_those_of_a_training_that_stopped_there(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setenv("COURSE_BUILD_DIR", str(tmp_path / "build"))
    split = data.Split(torch.randn(64, 1, 28, 28), torch.arange(64) % 10)
    options = {"epochs": 3, "lr": 0.01, "batch_size": 32}
    recipe = checkpoints.Recipe(nets.lenet_300_100, lambda: data.Dataset(split, split, split), options, early_epoch=1)
    monkeypatch.setitem(checkpoints.RECIPES, "tiny", recipe)
    kept = []

    def keep(model, at):
        if at.step == 2:  # the end of the first epoch
            kept.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    checkpoints.train("tiny", seed=3)
    training.seed_everything(3)
    training.fit(nets.lenet_300_100(), split, seed=3, on_step=keep, **options)
    early, last = checkpoints.load("tiny", early=True).state_dict(), checkpoints.load("tiny").state_dict()
    assert all(torch.equal(early[name], tensor) for name, tensor in kept[0].items())
    assert not torch.equal(early["fc1.weight"], last["fc1.weight"])


def test_early_weights_that_were_not_kept_are_refused():
    with pytest.raises(ValueError, match="name='lenet5' kept no early weights; allowed: "):
        checkpoints.load("lenet5", early=True)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    checkpoints.write_weights(nets.lenet_300_100(), path)
    with pytest.raises(ValueError, match=r"net\.safetensors' does not fit LeNet5: .* has shape .* in the file and"):
        checkpoints.read_weights(nets.lenet5(), path)
    masked = pruning.mask(nets.lenet_300_100(), pruning.layer_masks(nets.lenet_300_100(), 0.5))
    checkpoints.write_weights(masked, path)
    with pytest.raises(ValueError, match=r"net\.safetensors' does not fit LeNet5: "):
        checkpoints.read_weights(nets.lenet5(), path)


def test_a_file_that_is_none_is_named(tmp_path):
    path = tmp_path / "net.safetensors"
    checkpoints.write_weights(nn.Linear(2, 2), path)
    content = path.read_bytes()
    for spoiled in (b"", b"nothing", content[:-3], content[:20], bytes(8) + content):
        path.write_bytes(spoiled)
        with pytest.raises(
            ValueError, match=r"path='.*net.safetensors' cannot be read: .*; allowed: what write_weights"
        ):
            checkpoints.read_weights(nn.Linear(2, 2), path)
    with pytest.raises(FileNotFoundError):
        checkpoints.read_weights(nn.Linear(2, 2), tmp_path / "none.safetensors")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.decoder = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)
        self.decoder.weight = self.embedding.weight
        self.first = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.second = self.first

    def forward(self, tokens):
        return self.decoder(self.second(self.first(self.embedding(tokens).mean(1))))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_tied_tensors_are_written_once_and_come_back_tied(tmp_path, half, masked):
    torch.manual_seed(0)
    model, tokens = Tied().eval(), torch.randint(0, 30, (5, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    if masked:
        model = pruning.mask(model, pruning.global_masks(model, 0.5))
    path = tmp_path / "tied.safetensors"
    checkpoints.write_weights(model, path, half=half)
    assert not any(name.startswith("second") for name in load_file(path))
    torch.manual_seed(1)
    found = checkpoints.read_weights(Tied(), str(path))
    assert torch.equal(found(tokens), model(tokens)) and found.first is found.second
    originals = [parameter for name, parameter in found.named_parameters() if "embedding" in name or "decoder" in name]
    assert len(originals) == 1, "still one tensor"
    assert pruning.masks_of(found).keys() == pruning.masks_of(model).keys()


def test_old_files_that_hold_both_copies_are_still_read(tmp_path):
    model = Tied().eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "both.safetensors")
    found = checkpoints.read_weights(Tied(), tmp_path / "both.safetensors")
    assert torch.equal(found.decoder.weight, model.decoder.weight)
    state["decoder.weight"] += 1
    save_file(state, tmp_path / "both.safetensors")
    with pytest.raises(ValueError, match="the names of 'embedding.weight' hold different numbers"):
        checkpoints.read_weights(Tied(), tmp_path / "both.safetensors")


def test_views_and_layouts_are_written_as_they_look(tmp_path):
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    model.register_buffer("part", model.weight.detach()[1:3])
    model.register_buffer("wide", torch.ones(1, 1).expand(3, 3))
    checkpoints.write_weights(model, tmp_path / "view.safetensors")
    stored = load_file(tmp_path / "view.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "hook",
    [
        lambda model: prune.l1_unstructured(model[0], "weight", 0.5),
        lambda model: parametrizations.weight_norm(model[0]),
        lambda model: parametrizations.spectral_norm(model[1]),
    ],
)
def test_what_torchs_hooks_compute_is_written_as_ordinary_weights(tmp_path, hook):
    torch.manual_seed(0)
    model, plain, x = (nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)) for _ in range(2)), None, torch.randn(4, 6)
    model, plain = model
    hook(model)
    model(x).sum().backward()
    checkpoints.write_weights(model.eval(), tmp_path / "hooked.safetensors")
    for target in (plain, model):
        torch.testing.assert_close(checkpoints.read_weights(target, tmp_path / "hooked.safetensors")(x), model(x))


def test_a_buffer_called_mask_is_no_mask_of_pruning(tmp_path):
    """Attention keeps its causal mask so, in the first layer of a block."""
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 3)))
    model[0][0].register_buffer("mask", torch.ones(2, 2).tril() > 0)
    masked = pruning.mask(model, {"0.0.weight": torch.eye(3) > 0})
    for net in (model, masked):
        checkpoints.write_weights(net, tmp_path / "mask.safetensors")
        found = checkpoints.read_weights(model, tmp_path / "mask.safetensors")
        assert torch.equal(found(torch.eye(3)), net(torch.eye(3)))
        assert pruning.masks_of(found).keys() == pruning.masks_of(net).keys()
    root = pruning.mask(nn.Linear(3, 3), {"weight": torch.eye(3) > 0})
    checkpoints.write_weights(root, tmp_path / "root.safetensors")
    found = checkpoints.read_weights(nn.Linear(3, 3), tmp_path / "root.safetensors")
    assert torch.equal(found.weight, root.weight) and list(pruning.masks_of(found)) == ["weight"]


class Migrates(nn.Linear):
    """Its version 1 had another sign."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") != 2:
            state[prefix + "weight"] = -state[prefix + "weight"]
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_modules_see_their_own_version(tmp_path):
    model = nn.Sequential(Migrates(2, 2))
    checkpoints.write_weights(model, tmp_path / "version.safetensors")
    found = checkpoints.read_weights(nn.Sequential(Migrates(2, 2)), tmp_path / "version.safetensors")
    assert torch.equal(found[0].weight, model[0].weight)


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"steps": 3}


def test_what_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "no.safetensors"
    with pytest.raises(ValueError, match="model has '0._extra_state', a dict; allowed: tensors with values"):
        checkpoints.write_weights(nn.Sequential(Extra(2, 2)), path)
    split = data.Split(torch.rand(5, 2), torch.zeros(5, dtype=torch.long))
    for options in ({}, {"activations": 4, "calibration": split}):
        quantized = quantization.quantize_model(nn.Sequential(nn.Linear(2, 2)), weights=4, **options)
        with pytest.raises(ValueError, match=r"model is quantized \('0.weight'\); allowed: files.write_quantized"):
            checkpoints.write_weights(quantized, path)
    inputs_alone = quantization.bake(quantized)
    with pytest.raises(ValueError, match=r"model is quantized \('0'\)"):
        checkpoints.write_weights(inputs_alone, path)
    assert not path.exists()


# ---------------------------------------------------------------- half precision


def test_statistics_of_12_bit_pixels_survive_half_precision(tmp_path):
    """The largest number in half precision is 65,504; a variance of pixels up to 4,095 is above a million."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)).train()
    pixels = torch.randint(0, 4096, (200, 1, 8, 8)).float()
    for _ in range(60):
        model(pixels)
    model.eval()
    assert model[1].running_var.max() > 65_504
    checkpoints.write_weights(model, tmp_path / "half.safetensors", half=True)
    stored = load_file(tmp_path / "half.safetensors")
    assert stored["1.running_var"].dtype == torch.float32 and stored["0.weight"].dtype == torch.float16
    found = checkpoints.read_weights(model, tmp_path / "half.safetensors")
    assert torch.equal(found(pixels).argmax(1), model(pixels).argmax(1))
    torch.testing.assert_close(found(pixels), model(pixels), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("name", "values", "kept"),
    [
        ("weight", [0.1, -3e-7, 0.0], False),  # what is small beside the largest may be rounded
        ("weight", [3.1e-7, -2.2e-7, 0.0], True),
        ("weight", [65_504.0, 1.0, 1.0], False),
        ("weight", [65_536.0, 1.0, 1.0], True),
        ("weight", [1.0, float("inf"), 1.0], True),
        ("weight", [1.0, float("nan"), 1.0], True),
        ("weight", [1 + 2**-11, 1.0, 1.0], False),
        ("weight", [0.0, 0.0, 0.0], False),
        ("running_mean", [1.0, 3.1e-7, 0.0], False),
        ("running_var", [1.0, 3.1e-7, 0.0], True),  # a variance divides
        ("running_var", [1.0, 6.2e-5, 0.0], False),
        ("running_var", [1e-8, 1e-9, 1e-8], True),
    ],
)
def test_half_precision_is_for_what_it_can_hold(tmp_path, name, values, kept):
    model = nn.Module()
    model.register_buffer(name, torch.tensor(values))
    model.register_buffer("count", torch.tensor(70_000))
    model.register_buffer("empty", torch.zeros(0))
    checkpoints.write_weights(model, tmp_path / "half.safetensors", half=True)
    stored = load_file(tmp_path / "half.safetensors")
    assert stored[name].dtype == (torch.float32 if kept else torch.float16)
    assert stored["count"] == 70_000 and len(stored["empty"]) == 0
    expected = torch.tensor(values) if kept else torch.tensor(values).half()
    assert torch.equal(stored[name].nan_to_num(), expected.nan_to_num())


def test_committed_files_are_written_as_ever(tmp_path):
    for name in ("lenet5", "imdb_lstm", "resnet18"):
        half = checkpoints.RECIPES[name].half
        model = checkpoints.load(name)
        digest = checkpoints.write_weights(model, tmp_path / "again.safetensors", half=half)
        assert digest == checkpoints.manifest()[name]["sha256"]


def test_unknown_names_are_refused():
    for call in (checkpoints.load, checkpoints.train):
        with pytest.raises(ValueError, match=r"name='lenet6' is unknown"):
            call("lenet6")
