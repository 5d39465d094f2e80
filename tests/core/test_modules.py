"""Copies that compute the same, whatever hooks a network has; names of tied tensors; modes that come back."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from helpers import pruning
from helpers.core import modules


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def pruned():
    model = small()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model


def normalized(function):
    model = small()
    model[0] = function(model[0])
    model(torch.randn(4, 6)).sum().backward()  # leaves a computed weight behind, which deepcopy refuses
    return model


HOOKED = {
    "prune": pruned,
    "weight_norm": lambda: normalized(weight_norm),
    "spectral_norm": lambda: normalized(spectral_norm),
    "parametrized weight_norm": lambda: normalized(parametrizations.weight_norm),
    "parametrized spectral_norm": lambda: normalized(parametrizations.spectral_norm),
    "parametrized orthogonal": lambda: normalized(parametrizations.orthogonal),
}
OLD = "ignore:.*weight_norm.* is deprecated:FutureWarning"


@pytest.mark.filterwarnings(OLD)
@pytest.mark.parametrize("name", HOOKED)
@pytest.mark.parametrize("copy", [modules.copied, modules.materialized])
def test_a_copy_computes_the_same_and_leaves_the_model_alone(name, copy):
    model = HOOKED[name]().eval()
    inputs = torch.randn(5, 6)
    expected = model(inputs)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    new = copy(model)
    assert torch.allclose(new(inputs), expected, atol=1e-6)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(inputs), expected)


@pytest.mark.filterwarnings(OLD)
@pytest.mark.parametrize("name", HOOKED)
def test_materialized_weights_are_ordinary_parameters(name):
    new = modules.materialized(HOOKED[name]())
    assert sorted(new.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert isinstance(new[0].weight, nn.Parameter)
    assert not new[0]._forward_pre_hooks and not parametrize.is_parametrized(new[0])


@pytest.mark.filterwarnings(OLD)
def test_a_copy_still_trains_through_its_hook():
    new = modules.copied(HOOKED["weight_norm"]())
    new(torch.randn(4, 6)).sum().backward()
    assert new[0].weight_g.grad.abs().sum() > 0


def test_materialized_keeps_the_courses_masks():
    model = small()
    masked = pruning.mask(model, pruning.global_masks(model, 0.5))
    assert pruning.masks_of(modules.materialized(masked)).keys() == {"0.weight", "2.weight"}


def test_materialized_keeps_what_is_not_torchs():
    model = HOOKED["parametrized orthogonal"]()
    parametrize.register_parametrization(model[0], "weight", pruning.Mask(torch.ones(8, 6, dtype=torch.bool)))
    calls = []
    model[2].register_forward_pre_hook(lambda *given: calls.append(given))
    new = modules.materialized(model)
    assert parametrize.is_parametrized(new[0])  # a mask over torch's own: one cannot go without the other
    new(torch.zeros(1, 6))
    assert len(calls) == 1


def test_a_copy_loses_its_mask_alone():
    model = small()
    masked = pruning.mask(model, pruning.global_masks(model, 0.5))
    new = modules.copied(masked)
    parametrize.remove_parametrizations(new[0], "weight", leave_parametrized=True)
    assert parametrize.is_parametrized(masked[0])
    assert (masked[0].weight == 0).any()


def test_a_masked_lstm_that_was_used_can_be_copied():
    model = nn.LSTM(3, 4)
    parametrize.register_parametrization(model, "weight_hh_l0", pruning.Mask(torch.ones(16, 4, dtype=torch.bool)))
    inputs = torch.randn(5, 2, 3)
    expected = model(inputs)[0]
    assert torch.equal(modules.copied(model)(inputs)[0], expected)


def test_evaluating_restores_each_modules_own_mode_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Dropout()).train()
    model[1].eval()
    with pytest.raises(KeyError), modules.evaluating(model):
        assert not model[0].training
        raise KeyError
    assert model[0].training and model.training and not model[1].training


def test_hooked_calls_each_and_leaves_none():
    model, seen = small(), []
    with modules.hooked((layer, lambda *given: seen.append(given)) for layer in model):
        output = model(torch.zeros(1, 6))
    assert [module for module, *_ in seen] == list(model)
    assert seen[-1][2] is output
    model(torch.zeros(1, 6))
    assert len(seen) == 3


def test_asked_names_the_argument_for_a_models_own_error():
    inputs = torch.zeros(2, 5)
    named = r"example has shape \(2, 5\) and type torch.float32.*allowed: a batch"
    with pytest.raises(ValueError, match=named), modules.asked("example", inputs):
        small()(inputs)
    with pytest.raises(ValueError, match="^bits=9; allowed: 8$"), modules.asked("example", inputs):
        raise ValueError("bits=9; allowed: 8")
    with pytest.raises(KeyboardInterrupt), modules.asked("example", inputs):
        raise KeyboardInterrupt


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.decoder = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.decoder.weight = self.embedding.weight


def test_first_names_of_tied_weights_and_of_a_module_under_two_names():
    assert modules.first_names(Tied()) == {
        "embedding.weight": "embedding.weight",
        "decoder.weight": "embedding.weight",
        "decoder.bias": "decoder.bias",
    }
    twice = small()
    twice.again = twice[0]
    assert modules.first_names(twice)["again.weight"] == "0.weight"
    assert modules.same_tensor(twice, "again.bias") == ["0.bias", "again.bias"]


def test_names_of_masked_weights_are_those_they_had():
    model = small()
    masked = pruning.mask(model, pruning.global_masks(model, 0.5))
    assert modules.first_names(masked).keys() == modules.first_names(model).keys()


def test_same_tensor_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="name='fc9.weight' is unknown; allowed: '0.weight'"):
        modules.same_tensor(small(), "fc9.weight")


def test_layout_changes_no_value_and_skips_other_dimensions():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Conv1d(4, 4, 1))
    volume = nn.Conv3d(2, 3, 2)
    before = [parameter.clone() for parameter in (*model.parameters(), *volume.parameters())]
    for net in (model, volume):
        modules.to_channels_last(net)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    after = [*model.parameters(), *volume.parameters()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


class Viewed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x).view(-1, 4 * 8 * 8)


def test_takes_channels_last():
    example = torch.randn(2, 3, 8, 8)
    assert modules.takes_channels_last(nn.Conv2d(3, 4, 3), example)
    assert not modules.takes_channels_last(Viewed(), example)
    assert not modules.takes_channels_last(nn.Linear(3, 2), torch.zeros(2, 3))
