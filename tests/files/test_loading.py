"""Tests of `helpers.files.loading`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from helpers import files, nets, pruning, quantization, training
from helpers.data import Split
from tests.files.files_examples import IMAGES, TOKENS, WRITERS, tied


@pytest.fixture
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return nets.lenet5().eval()


@pytest.fixture
def masked(lenet) -> nn.Module:
    return pruning.mask(lenet, pruning.layer_masks(lenet, 0.95))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder for tests that hypothesis runs many times over."""
    return tmp_path_factory.mktemp("packing")


@pytest.fixture(params=[{"weights": 2, "per_channel": False}, {"weights": 4, "activations": 4, "learned": True}])
def quantized(request, lenet) -> nn.Module:
    return quantization.quantize_model(lenet, calibration=Split(IMAGES, torch.arange(5)), **request.param)


def test_a_quantized_network_from_its_file_gives_the_same_logits(quantized, folder):
    packed = files.write_quantized(quantized, folder / "quantized.pack")
    files.verify(packed.path, quantized, IMAGES)
    torch.manual_seed(7)
    again = files.load_into(nets.lenet5(), packed.path).eval()  # knows nothing of grids but what the file says
    assert torch.equal(again(IMAGES), quantized(IMAGES))
    assert list(quantization.input_grids(again)) == list(quantization.input_grids(quantized))
    bits = quantization.weight_grids(quantized)["fc1.weight"].bits
    assert bits * 430_500 / 8 < packed.bytes < bits * 430_500 / 8 + 4 * 580 * 2 + 700
    loaded = files.load_into(quantized, packed.path)  # quantizers of what it is loaded into give way
    assert torch.equal(loaded(IMAGES), quantized(IMAGES)) and not quantization.weight_grids(loaded)


def test_shared_weights_are_stored_as_places_in_a_table(lenet, folder):
    tables = {name: torch.tensor([-0.03, -0.01, 0.01, 0.04]) for name in ("conv1", "conv2", "fc1", "fc2")}
    shared = quantization.share_weights(lenet, tables)
    packed = files.write_quantized(shared, folder / "shared.pack")
    files.verify(packed.path, shared, IMAGES)
    assert packed.bytes < 430_500 * 2 / 8 + 4 * 580 + 700


@pytest.mark.parametrize("write", WRITERS)
def test_a_model_from_its_file_gives_the_same_logits(lenet, masked, folder, write):
    for model in (lenet, masked):
        packed = write(model, folder / "model.pack")
        torch.manual_seed(7)
        new = files.load_into(nets.lenet5(), packed.path).eval()
        assert torch.equal(new(IMAGES), model(IMAGES))
        files.verify(packed.path, model, IMAGES)


def test_buffers_and_their_types_are_kept(folder):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    model(IMAGES)
    packed = files.write_sparse(model, folder / "bn.pack")
    new = files.load_into(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten()), packed.path)
    assert new.state_dict()["1.num_batches_tracked"].dtype == torch.int64
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in new.state_dict().items())
    files.verify(packed.path, model, IMAGES)


def test_loading_leaves_the_model_that_came_in_alone(masked, folder):
    packed = files.write_sparse(masked, folder / "in.pack")
    target = pruning.mask(nets.lenet5(), pruning.layer_masks(nets.lenet5(), 0.5))
    before = pruning.weights_of(target)["fc1.weight"].clone()
    files.load_into(target, packed.path)
    assert torch.equal(pruning.weights_of(target)["fc1.weight"], before)
    assert set(pruning.masks_of(target)) == {f"{name}.weight" for name in ("conv1", "conv2", "fc1", "fc2")}


def test_a_file_that_does_not_fit_the_model(masked, lenet, folder):
    packed = files.write_sparse(masked, folder / "fit.pack")
    with pytest.raises(files.PackingError, match=r"'fc1.weight' has shape .*500, 800.* and .*300, 784.* in the"):
        files.load_into(nets.lenet_300_100(), packed.path)
    with pytest.raises(files.PackingError, match=r"'bias' has shape None in the file"):
        files.load_into(nn.Linear(2, 2), files.write_dense({"weight": torch.ones(2, 2)}, folder / "part.pack").path)


def test_verify_notices_one_changed_weight(lenet, folder):
    packed = files.write_dense(lenet, folder / "other.pack")
    with torch.no_grad():
        lenet.fc2.bias[3] += 1e-4
    with pytest.raises(files.PackingError, match="the logits differ from the model's, by up to"):
        files.verify(packed.path, lenet, IMAGES)


ONCE = ["embedding.weight", *(f"first.0.{n}" for n in ("bias", "weight"))]


def half_of(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    return {name: torch.rand_like(model.get_parameter(name), generator=torch.Generator().manual_seed(3)) > 0.5}


TIED = {
    "plain": lambda model: model,
    "masked everywhere": lambda model: pruning.mask(model, pruning.global_masks(model, 0.5)),
    "masked under the second name": lambda model: pruning.mask(model, half_of(model, "decoder.weight")),
    "4 bits": lambda model: quantization.quantize_model(model, weights=4),
    "4 bits under the first name": lambda model: quantization.quantize_model(model, weights={"embedding": 4}),
}


@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("write", [*WRITERS, files.write_coded])
def test_a_tied_tensor_is_there_once_and_tied_after_loading(folder, write, kind):
    model = TIED[kind](tied())
    if "bits" in kind and write in (files.write_dense, files.write_sparse):
        with pytest.raises(ValueError, match="'embedding.weight' is quantized"):
            write(model, folder / "tied.pack")
        return
    packed = write(model, folder / "tied.pack")
    assert [n for n in files.read(packed.path) if not n.startswith("first.1")] == ONCE
    files.verify(packed.path, model, TOKENS)
    new = files.load_into(tied(1), packed.path)
    assert new.decoder.weight is new.embedding.weight and new.first is new.second
    assert torch.equal(training.predict(new, TOKENS), training.predict(model, TOKENS))


def test_old_files_that_hold_both_copies_are_still_read(folder):
    model = tied()
    both = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = files.write_dense(both, folder / "both.pack").path
    new = files.load_into(tied(1), path)
    assert torch.equal(new(TOKENS), model(TOKENS)) and new.decoder.weight is new.embedding.weight
    both["decoder.weight"][3, 3] += 1
    files.write_dense(both, path)
    with pytest.raises(
        files.PackingError, match="the names of 'embedding.weight' hold different numbers; in the model"
    ):
        files.load_into(tied(1), path)


def test_a_tied_file_says_what_an_untied_model_lacks(folder):
    path = files.write_dense(tied(), folder / "tied.pack").path
    untied = tied()
    untied.decoder.weight = nn.Parameter(untied.decoder.weight.detach().clone())
    with pytest.raises(files.PackingError, match=r"'decoder.weight' has shape None in the file and \(50, 8\) in the m"):
        files.load_into(untied, path)


def pruned_by_torch(model: nn.Module) -> None:
    prune.l1_unstructured(model[0], "weight", 0.95)
    prune.random_unstructured(model[2], "bias", 0.5)


HOOKED = {
    "prune": pruned_by_torch,
    "weight_norm": lambda model: weight_norm(model[0]),
    "spectral_norm": lambda model: spectral_norm(model[0]),
    "parametrized": lambda model: parametrizations.weight_norm(model[2]),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", HOOKED)
@pytest.mark.parametrize("write", [*WRITERS, files.write_coded])
def test_what_torchs_hooks_compute_is_stored_as_ordinary_weights(folder, write, kind):
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Linear(90, 90), nn.ReLU(), nn.Linear(90, 3))  # noqa: E731
    model, plain, inputs = make(), make(), torch.randn(7, 90)
    HOOKED[kind](model)
    model(inputs).sum().backward()  # leaves a computed weight behind
    packed = write(model.eval(), folder / "hooked.pack")
    assert sorted(files.read(packed.path)) == sorted(plain.state_dict())
    for target in (plain, model):
        new = files.load_into(target, packed.path)
        torch.testing.assert_close(new(inputs), model(inputs))
    files.verify(packed.path, files.load_into(plain, packed.path), inputs)
    if kind == "prune" and write is not files.write_dense:
        assert packed.bytes < 0.15 * 4 * 90 * 93, "the weights that are left, and no mask"


class Migrates(nn.Module):
    """Its version 1 had another sign, as `torchvision.models.MNASNet` has another width."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return x * self.weight

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        version = metadata.get("version")
        if version not in (1, 2):
            raise ValueError(f"version should be set to 1 or 2 instead of {version}")
        if version == 1:
            state[prefix + "weight"] = -state[prefix + "weight"]
        super()._load_from_state_dict(state, prefix, metadata, *rest)


@pytest.mark.parametrize("write", [*WRITERS, files.write_coded])
def test_modules_see_their_own_version(folder, write):
    model = nn.Sequential(Migrates(), Migrates())
    packed = write(model, folder / "version.pack")
    files.verify(packed.path, model, torch.randn(4, 3))


class Extra(nn.Module):
    """A linear layer with a state of its own beside."""

    def __init__(self, state) -> None:
        super().__init__()
        self.fc, self.state = nn.Linear(2, 2), state

    def forward(self, x):
        return self.fc(x)

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


@pytest.mark.parametrize("write", [*WRITERS, files.write_coded])
def test_a_state_that_is_no_tensor_is_refused_and_a_tensor_is_stored(folder, write):
    with pytest.raises(ValueError, match="model has '0._extra_state', a dict; allowed: tensors with values"):
        write(nn.Sequential(Extra({"steps": 3})), folder / "extra.pack")
    with pytest.raises(ValueError, match="model has 'weight', a UninitializedParameter; allowed: tensors with values"):
        write(nn.LazyLinear(3), folder / "extra.pack")
    packed = write(Extra(torch.arange(3.0)), folder / "extra.pack")
    assert torch.equal(files.load_into(Extra(torch.zeros(3)), packed.path).state, torch.arange(3.0))
    with pytest.raises(ValueError, match="model has '_extra_state', a dict"):
        files.load_into(Extra({}), packed.path)


@pytest.mark.parametrize(
    "spoiled",
    [[0, 0, 0, 15], [1, 16, 0, 15], [1, 0.5, 0, 15], [np.nan, 0, 0, 15], [1, 0, 0, np.inf], [1, 0, 0], [1, 0, 0, 7e4]],
)
def test_a_grid_of_an_input_that_is_none_is_refused(folder, spoiled):
    model = nn.Sequential(nn.Linear(2, 2))
    state = {**model.state_dict(), "0.input_grid": np.array(spoiled, "<f4")}
    with pytest.raises(files.PackingError, match="'0.input_grid' is no grid; allowed: a scale above 0"):
        files.load_into(model, files.write_dense(state, folder / "grid.pack").path)
    state = {**model.state_dict(), "7.input_grid": np.array([0.5, 3, 0, 15], "<f4")}
    with pytest.raises(files.PackingError, match=r"grid.pack: layer in grids='7' is unknown"):
        files.load_into(model, files.write_dense(state, folder / "grid.pack").path)


@pytest.mark.parametrize("write", [files.write_quantized, files.write_coded])
def test_double_precision_is_exact_or_refused(folder, write):
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(6, 6)).double(), torch.randn(4, 6).double()
    files.verify(write(model, folder / "double.pack").path, model, inputs)
    with pytest.raises(ValueError, match=r"'0.weight' is quantized in torch.float64; allowed: single .*, model.float"):
        write(quantization.quantize_model(model, weights=4), folder / "double.pack")
    with pytest.raises(files.PackingError, match=r"'0.weight' is torch.complex64 in the file and torch.float32 in"):
        state = {"0.weight": np.zeros((2, 2), "<c8"), "0.bias": np.zeros(2, "<f4")}
        files.load_into(nn.Sequential(nn.Linear(2, 2)), files.write_dense(state, folder / "complex.pack").path)


@pytest.mark.parametrize("write", [*WRITERS, files.write_coded])
def test_half_precision_comes_back_and_bfloat16_is_refused(folder, write):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6)).half()
    new = files.load_into(nn.Sequential(nn.Linear(6, 6)).half(), write(model, folder / "half.pack").path)
    assert torch.equal(new[0].weight, model[0].weight)
    with pytest.raises(ValueError, match="has dtype torch.bfloat16; allowed"):
        write(model.bfloat16(), folder / "half.pack")


def test_verify_notices_the_smallest_difference(lenet, folder):
    packed = files.write_dense(lenet, folder / "ulp.pack")
    with torch.no_grad():
        lenet.fc2.bias.copy_(torch.nextafter(lenet.fc2.bias, torch.tensor(9.0)))
    assert torch.allclose(files.load_into(lenet, packed.path)(IMAGES), lenet(IMAGES))
    with pytest.raises(files.PackingError, match="the logits differ from the model's, by up to"):
        files.verify(packed.path, lenet, IMAGES)
