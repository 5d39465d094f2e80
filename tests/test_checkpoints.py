"""Checkpoints: what the manifest says is what the files hold."""

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers import checkpoints, data, models, paths, training


@pytest.mark.parametrize("name", checkpoints.manifest())
def test_committed_files_are_the_manifests_and_safetensors(name):
    entry = checkpoints.manifest()[name]
    assert entry["file"].endswith(".safetensors")
    model = checkpoints.load(name)
    assert not model.training
    options = checkpoints.RECIPES[name].options
    assert entry["options"] == {key: getattr(value, "__name__", value) for key, value in options.items()}


@pytest.mark.data
@pytest.mark.parametrize("name", checkpoints.manifest())
def test_the_manifests_validation_accuracy_is_the_files(name):
    """Another machine rounds differently: a digit or two of 5,000 may change sides."""
    measured = training.evaluate(checkpoints.load(name), checkpoints.RECIPES[name].dataset().validation).accuracy
    assert measured == pytest.approx(checkpoints.manifest()[name]["validation_accuracy"], abs=0.0005)


def test_every_recipe_has_a_checkpoint_and_back():
    assert set(checkpoints.manifest()) == set(checkpoints.RECIPES)


def test_training_writes_weights_and_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setenv("COURSE_BUILD_DIR", str(tmp_path / "build"))
    split = data.Split(torch.randn(64, 1, 28, 28), torch.arange(64) % 10)
    recipe = checkpoints.Recipe(
        models.lenet_300_100,
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
    monkeypatch.setattr(training, "fit", lambda model, *args, **options: training.Fitted(almost_undecided(model), []))
    split = data.Split(torch.randn(64, 3, 32, 32), torch.zeros(64, dtype=torch.int64))
    recipe = checkpoints.Recipe(
        lambda: models.CifarNet((4, 4, 4, 4)), lambda: data.Dataset(split, split, split), {"epochs": 1}, half=True
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
    recipe = checkpoints.Recipe(models.lenet_300_100, lambda: data.Dataset(split, split, split), options, early_epoch=1)
    monkeypatch.setitem(checkpoints.RECIPES, "tiny", recipe)
    kept = []

    def keep(model, at):
        if at.step == 2:  # the end of the first epoch
            kept.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    checkpoints.train("tiny", seed=3)
    training.seed_everything(3)
    training.fit(models.lenet_300_100(), split, seed=3, on_step=keep, **options)
    early, last = checkpoints.load("tiny", early=True).state_dict(), checkpoints.load("tiny").state_dict()
    assert all(torch.equal(early[name], tensor) for name, tensor in kept[0].items())
    assert not torch.equal(early["fc1.weight"], last["fc1.weight"])


def test_early_weights_that_were_not_kept_are_refused():
    with pytest.raises(ValueError, match="name='lenet5' kept no early weights; allowed: "):
        checkpoints.load("lenet5", early=True)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    checkpoints.write_weights(models.lenet_300_100(), path)
    with pytest.raises(ValueError, match=r"net\.safetensors' does not fit LeNet5"):
        checkpoints.read_weights(models.lenet5(), path)


def test_unknown_names_are_refused():
    for call in (checkpoints.load, checkpoints.train):
        with pytest.raises(ValueError, match=r"name='lenet6' is unknown"):
            call("lenet6")
