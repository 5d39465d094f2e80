"""Pruning against `torch.nn.utils.prune`, against brute force, and against the traps of design section 8."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from helpers import checkpoints, nets, pruning, training
from helpers.core import modules
from helpers.data import Split
from helpers.pruning import masks, schedules
from helpers.training import loop
from tests.pruning.pruning_examples import TOKENS, Tied, reading

LAYERS = ("conv1", "conv2", "fc1", "fc2")


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nets.lenet5()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def torch_masks(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key.removesuffix('_mask')}": value.bool()
        for name, layer in model.named_modules()
        for key, value in layer.named_buffers(recurse=False)
        if key.endswith("_mask")
    }


def assert_equal_masks(ours, theirs) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("amount", [0.0, 0.37, 0.9, 0.999])
def test_layer_l1_masks_equal_torchs(net, amount):
    ours = pruning.layer_masks(net, amount)
    for name in LAYERS:
        prune.l1_unstructured(net.get_submodule(name), "weight", amount)
    assert_equal_masks(ours, torch_masks(net))


@pytest.mark.parametrize("amount", [0.0, 0.5, 0.917, 0.9999])
def test_global_l1_masks_equal_torchs(net, amount):
    ours = pruning.global_masks(net, amount)
    prune.global_unstructured([(net.get_submodule(n), "weight") for n in LAYERS], prune.L1Unstructured, amount=amount)
    assert_equal_masks(ours, torch_masks(net))


def test_equal_weights_are_dropped_as_torch_drops_them(net):
    """Ties decide which of two equal weights goes; the masks must agree there too."""
    with torch.no_grad():
        for weight in (net.fc1.weight, net.fc2.weight):
            weight.copy_(weight.mul(20).round() / 20)
    ours = pruning.layer_masks(net, {"fc1": 0.8, "fc2": 0.3})
    prune.l1_unstructured(net.fc1, "weight", 0.8)
    prune.l1_unstructured(net.fc2, "weight", 0.3)
    assert_equal_masks(ours, torch_masks(net))


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize(("layer", "next_layer"), [("fc1", "fc2"), ("conv1", "conv2"), ("conv2", "fc1")])
def test_neuron_rows_equal_torchs(net, layer, next_layer, norm):
    ours = pruning.neuron_masks(net, layer, next_layer, 0.4, norm=norm)
    prune.ln_structured(net.get_submodule(layer), "weight", amount=0.4, n=norm, dim=0)
    assert torch.equal(ours[f"{layer}.weight"], torch_masks(net)[f"{layer}.weight"])


def test_random_masks_drop_as_many_as_torchs_and_depend_on_the_seed(net):
    ours = pruning.layer_masks(net, 0.3, method="random", seed=1)
    for name in LAYERS:
        prune.random_unstructured(net.get_submodule(name), "weight", 0.3)
    theirs = torch_masks(net)
    assert {name: int(kept.sum()) for name, kept in ours.items()} == {n: int(k.sum()) for n, k in theirs.items()}
    assert_equal_masks(ours, pruning.layer_masks(net, 0.3, method="random", seed=1))
    assert not torch.equal(ours["fc1.weight"], pruning.layer_masks(net, 0.3, method="random", seed=2)["fc1.weight"])
    rows = ours["fc1.weight"].float().mean(1)
    assert rows.min() > 0.5 and rows.max() < 0.9, "a random mask spreads over all rows"


def test_custom_scores_prune_as_a_custom_method_of_torch(net):
    class KeepPositive(prune.BasePruningMethod):
        PRUNING_TYPE = "unstructured"

        def compute_mask(self, t, default_mask):
            kept = default_mask.clone()
            kept.view(-1)[torch.topk(t.flatten(), round(0.5 * t.numel()), largest=False).indices] = 0
            return kept

    ours = pruning.keep_largest(net.fc2.weight.detach(), 0.5)
    KeepPositive.apply(net.fc2, "weight")
    assert torch.equal(ours, torch_masks(net)["fc2.weight"])


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=40), st.floats(0, 0.99))
def test_keep_largest_against_sorting(values, amount):
    scores = torch.tensor(values)
    kept = pruning.keep_largest(scores, amount)
    dropped = round(amount * len(values))
    assert int((~kept).sum()) == dropped
    assert torch.equal(scores[kept].sort().values, torch.tensor(sorted(values)[dropped:]).float())


def test_frozen_layers_are_pruned_too(net):
    net.fc1.requires_grad_(False)
    new = pruning.mask(net, pruning.layer_masks(net, 0.5))
    assert float((new.fc1.weight == 0).float().mean()) == pytest.approx(0.5)
    assert not new.fc1.parametrizations.weight.original.requires_grad


def test_the_model_that_came_in_is_unchanged(net, images):
    before = deepcopy(net.state_dict())
    masked = pruning.mask(net, pruning.global_masks(net, 0.9))
    logits = masked(images)
    pruning.bake(masked)
    pruning.remove_neurons(masked, "fc1", "fc2")
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(masked(images), logits), "baking a copy changed the masked model"
    assert pruning.sparsity(net) == 0


def test_a_mask_is_not_smaller(net):
    """Trap: masked mistaken for smaller. Baking changes neither the number of parameters nor any shape."""
    baked = pruning.bake(pruning.mask(net, pruning.global_masks(net, 0.9)))
    shapes = {name: parameter.shape for name, parameter in net.named_parameters()}
    assert {name: parameter.shape for name, parameter in baked.named_parameters()} == shapes
    assert pruning.sparsity(baked) == pytest.approx(0.9, abs=1e-5)


def test_deepcopy_of_a_masked_model_works_and_is_independent(net, images):
    """Trap: `torch.nn.utils.prune` makes the weight a non-leaf tensor, and deepcopy raises after a forward pass."""
    masked = pruning.mask(net, pruning.global_masks(net, 0.9))
    masked(images).sum().backward()
    copy = deepcopy(masked)
    assert torch.equal(copy(images), masked(images))
    with torch.no_grad():
        copy.fc1.parametrizations.weight.original.zero_()
    assert not torch.equal(copy(images), masked(images))
    prune.l1_unstructured(net.fc1, "weight", 0.5)
    net(images).sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy"):
        deepcopy(net)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_momentum_does_not_revive_pruned_weights(net, images, rule):
    """Trap: momentum gathered before pruning goes on moving a pruned weight; the mask must hold in the forward pass."""
    parameters = pruning.mask(
        net, {n: torch.ones_like(w, dtype=torch.bool) for n, w in pruning.weights_of(net).items()}
    )
    optimizer = training.OPTIMIZERS[rule](parameters, 0.05)
    labels = torch.arange(8) % 10

    def step():
        optimizer.zero_grad()
        training.cross_entropy(parameters, images, labels).backward()
        optimizer.step()

    step()
    kept_masks = pruning.global_masks(parameters, 0.9)
    schedules._set_masks(parameters, kept_masks)
    before = parameters.fc1.parametrizations.weight.original.detach().clone()
    for _ in range(5):
        step()
    gone = ~kept_masks["fc1.weight"]
    assert not torch.equal(before[gone], parameters.fc1.parametrizations.weight.original[gone]), "no momentum, no test"
    assert all(bool((pruning.weights_of(parameters)[name][~kept] == 0).all()) for name, kept in kept_masks.items())


def test_masks_survive_saving_and_loading(net, images, tmp_path):
    masked = pruning.mask(net, pruning.neuron_masks(net, "fc1", "fc2", 0.5))
    path = tmp_path / "net.safetensors"
    checkpoints.write_weights(masked, path)
    loaded = checkpoints.read_weights(nets.lenet5(), path)
    assert_equal_masks(pruning.masks_of(loaded), pruning.masks_of(masked))
    assert torch.equal(loaded(images), masked(images))


def test_masks_add_up(net):
    first = pruning.layer_masks(net, {"fc1": 0.5}, method="random", seed=1)
    second = pruning.layer_masks(net, {"fc1": 0.5}, method="random", seed=2)
    both = pruning.mask(pruning.mask(net, first), second)
    expected = first["fc1.weight"] & second["fc1.weight"]
    assert torch.equal(pruning.masks_of(both)["fc1.weight"], expected)


@pytest.mark.parametrize(("layer", "next_layer"), [("fc1", "fc2"), ("conv2", "fc1"), ("conv1", "conv2")])
def test_removed_neurons_leave_the_answers(net, images, layer, next_layer):
    net, images = net.double(), images.double()
    masked = pruning.mask(net, pruning.neuron_masks(net, layer, next_layer, 0.6))
    small = pruning.remove_neurons(masked, layer, next_layer)
    torch.testing.assert_close(small(images), masked(images), rtol=0, atol=1e-12)
    units = net.get_submodule(layer).weight.shape[0]
    assert small.get_submodule(layer).weight.shape[0] == units - round(0.6 * units)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    small(images).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_a_neuron_with_a_bias_is_not_removed(net, images):
    """Its output is relu(bias), not zero: taking it away would change the answers."""
    rows = pruning.neuron_masks(net, "fc1", "fc2", 0.5)["fc1.weight"]
    masked = pruning.mask(net, {"fc1.weight": rows})
    small = pruning.remove_neurons(masked, "fc1", "fc2")
    assert small.fc1.out_features == 500
    torch.testing.assert_close(small(images), masked(images))


def test_a_new_optimizer_trains_every_layer_after_removal(net, images):
    """Trap: an optimizer made before the removal still holds the old tensors and trains nothing that is used."""
    small = pruning.remove_neurons(pruning.mask(net, pruning.neuron_masks(net, "fc1", "fc2", 0.5)), "fc1", "fc2")
    split = Split(images, torch.arange(8) % 10)
    trained = training.fit(small, split, epochs=2, lr=0.1, batch_size=8, warmup=0.0, progress=False).model
    for (name, old), new in zip(small.named_parameters(), trained.parameters(), strict=True):
        assert not torch.equal(old, new), f"{name} did not move"


def test_schedules_against_hand_computed_values():
    assert pruning.geometric_sparsity(0.0, final=0.9) == pytest.approx(0.0)
    assert pruning.geometric_sparsity(0.5, final=0.99) == pytest.approx(0.9)
    assert pruning.geometric_sparsity(1.0, final=0.9) == pytest.approx(0.9)
    assert pruning.geometric_amounts(0.75, 2) == pytest.approx([0.5, 0.75])
    assert pruning.geometric_amounts(0.9, 1) == pytest.approx([0.9])
    kept = [1 - amount for amount in pruning.geometric_amounts(0.99, 5)]
    assert [b / a for a, b in zip(kept, kept[1:], strict=False)] == pytest.approx([0.01**0.2] * 4)


@given(st.floats(0, 0.99), st.lists(st.floats(0, 1), min_size=2, max_size=10))
def test_sparsity_never_falls(final, moments):
    values = [pruning.geometric_sparsity(t, final=final) for t in sorted(moments)]
    assert all(b >= a - 1e-12 for a, b in zip(values, values[1:], strict=False))
    assert all(0 <= value <= final + 1e-12 for value in values)


def test_gradual_pruning_reaches_its_amount_and_never_goes_back(net, images):
    split = Split(images.repeat(8, 1, 1, 1), torch.arange(64) % 10)
    seen = []
    original = schedules._set_masks

    fitted = pruning.prune_gradually(net, split, amount=0.95, epochs=5, lr=1e-3, batch_size=8, every=4, progress=False)
    assert pruning.sparsity(fitted.model) == pytest.approx(0.95, abs=1e-5)
    assert pruning.sparsity(net) == 0

    def spy(model, kept_masks):
        seen.append({name: kept.clone() for name, kept in kept_masks.items()})
        original(model, kept_masks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedules, "_set_masks", spy)
        again = pruning.prune_gradually(
            net,
            split,
            amount=0.95,
            epochs=5,
            lr=1e-3,
            batch_size=8,
            every=4,
            progress=False,
        )
    assert_equal_masks(pruning.masks_of(again.model), pruning.masks_of(fitted.model))
    for earlier, later in zip(seen, seen[1:], strict=False):
        assert all(bool((later[name] <= earlier[name]).all()) for name in later), "a pruned weight came back"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net: pruning.layer_masks(net, 1.0), r"amount=1.0 is outside \[0, 1\)"),
        (lambda net: pruning.global_masks(net, -0.1), r"amount=-0.1 is outside \[0, 1\)"),
        (
            lambda net: pruning.global_masks(net, 0.5, method="best"),
            "method='best' is unknown; allowed: 'l1', 'random'",
        ),
        (lambda net: pruning.layer_masks(net, {"fc9": 0.5}), "'fc9' is unknown; allowed: 'conv1', 'conv2'"),
        (lambda net: pruning.neuron_masks(net, "fc1", "fc3", 0.5), "next_layer='fc3' is unknown"),
        (
            lambda net: pruning.neuron_masks(net, "fc1", "conv2", 0.5),
            "next_layer='conv2' takes 20 inputs.*gives 500",
        ),
        (lambda net: pruning.mask(net, {"fc9.weight": torch.ones(1)}), "'fc9.weight' is unknown"),
        (
            lambda net: pruning.mask(net, {"fc2.bias": torch.ones(9).bool()}),
            r"\(9,\); allowed: torch.bool \(10,\)",
        ),
        (
            lambda net: pruning.mask(net, {"fc2.bias": torch.ones(10)}),
            r"torch.float32 \(10,\); allowed: torch.bool",
        ),
        (lambda net: pruning.geometric_sparsity(1.5, final=0.5), r"progress=1.5 is outside \[0, 1\]"),
        (lambda net: pruning.geometric_amounts(0.5, 0), "rounds=0"),
        (lambda net: pruning.sparsity(nn.ReLU()), "weights of model is empty"),
    ],
)
def test_bad_arguments_are_named(net, call, words):
    with pytest.raises(ValueError, match=words):
        call(net)


def test_fisher_scores_against_squared_gradients_summed_by_hand(net, images):
    """After two steps Adam holds v = β(1 - β) g₁² + (1 - β) g₂², with β = 0.999."""
    model = pruning.mask(net, {n: torch.ones_like(w, dtype=torch.bool) for n, w in pruning.weights_of(net).items()})
    optimizer = training.OPTIMIZERS["adam"](model, 1e-3)
    second_moment = 0.0
    for _ in range(2):
        optimizer.zero_grad()
        training.cross_entropy(model, images, torch.arange(8)).backward()
        gradient = model.fc2.parametrizations.weight.original.grad
        second_moment = 0.999 * second_moment + 0.001 * gradient**2
        optimizer.step()
    expected = model.fc2.weight.detach() ** 2 * second_moment
    torch.testing.assert_close(pruning.fisher_scores(model, optimizer)["fc2.weight"], expected, rtol=1e-4, atol=1e-12)


def test_gradual_pruning_refuses_frozen_layers(net, images):
    net.fc1.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen weights: fc1.weight"):
        pruning.prune_gradually(net, Split(images, torch.zeros(8).long()), amount=0.5, epochs=1, lr=1)


def test_prune_gradually_refuses_a_schedule_that_ends_before_it_begins(net, images):
    with pytest.raises(ValueError, match=r"begin=0.5 is not before end=0.5"):
        pruning.prune_gradually(
            net, Split(images, torch.zeros(8).long()), amount=0.5, epochs=1, lr=1, begin=0.5, end=0.5
        )


def test_a_layer_cannot_lose_all_its_neurons(net):
    gone = {"fc2.weight": torch.zeros(10, 500, dtype=torch.bool)}
    with pytest.raises(ValueError, match="would lose all of its 500 neurons"):
        pruning.remove_neurons(pruning.mask(net, gone), "fc1", "fc2")


@pytest.fixture
def bag():
    torch.manual_seed(0)
    return nets.TextBag(40, dimensions=6, hidden=5).eval()


def test_embeddings_are_weights(bag):
    weights = pruning.weights_of(bag)
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == {
        "embedding.weight": (40, 6),
        "fc1.weight": (5, 6),
        "fc2.weight": (2, 5),
    }
    total = 40 * 6 + 5 * 6 + 2 * 5
    assert pruning.sparsity(bag) == 6 / total  # the vector of padding
    masked = pruning.mask(bag, pruning.global_masks(bag, 0.5))
    assert pruning.sparsity(masked) == 0.5
    only = pruning.layer_masks(bag, {"embedding": 0.5})
    assert set(only) == {"embedding.weight"} and int(only["embedding.weight"].sum()) == 120
    assert "embedding.weight" in pruning.weights_of(reading(nets.TextCNN(6, 4), 4))  # nn.Embedding as well


def test_a_masked_embedding_stays_masked_in_training(bag):
    kept_masks = pruning.layer_masks(bag, {"embedding": 0.5})
    split = Split(TOKENS, torch.arange(8) % 2)
    options = {"epochs": 3, "lr": 0.1, "optimizer": "adam", "batch_size": 4, "progress": False}
    trained = pruning.bake(training.fit(pruning.mask(bag, kept_masks), split, **options).model)
    assert not trained.embedding.weight[~kept_masks["embedding.weight"]].any()
    assert not torch.equal(trained.embedding.weight, bag.embedding.weight * kept_masks["embedding.weight"])


@pytest.mark.parametrize("build", [nn.RNN, nn.LSTM, nn.GRU])
def test_torchs_recurrent_layers_are_refused(build):
    """With a mask they could not be copied after use, and leaving them out would miss most of a model."""
    model = nn.Sequential(build(4, 3))
    kept_masks = {"0.weight_ih_l0": torch.zeros_like(model[0].weight_ih_l0, dtype=torch.bool)}
    message = f"layer '0.*' is torch's {build.__name__}, which cannot be copied once it was used with a mask"
    for call in (
        lambda: pruning.mask(model, kept_masks),
        lambda: pruning.weights_of(model),
        lambda: pruning.sparsity(model),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    masks.parametrize.register_parametrization(model[0], "weight_ih_l0", pruning.Mask(kept_masks["0.weight_ih_l0"]))
    model(torch.ones(1, 1, 4))
    with pytest.raises(RuntimeError, match="deepcopy"):  # should torch mend this, the refusal can go
        deepcopy(model)


@pytest.mark.parametrize(("ours", "torchs"), [(nets.RNN, nn.RNN), (nets.LSTM, nn.LSTM)])
def test_masks_on_our_recurrent_layers_hold(ours, torchs):
    torch.manual_seed(0)
    layer, x = ours(5, 7), torch.randn(3, 4, 5)
    masked = pruning.mask(layer, pruning.layer_masks(layer, 0.6))
    zeroed, baked = torchs(5, 7, batch_first=True), pruning.bake(masked)
    zeroed.load_state_dict(
        {
            "weight_ih_l0": baked.input.weight,
            "weight_hh_l0": baked.recurrent.weight,
            "bias_ih_l0": layer.input.bias,
            "bias_hh_l0": layer.recurrent.bias,
        }
    )
    assert (baked.recurrent.weight == 0).float().mean() > 0.5
    assert torch.allclose(masked(x), zeroed(x)[0], atol=1e-6)
    assert torch.equal(masked(x), baked(x))
    assert not torch.allclose(masked(x), layer(x))


class Alias(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.second = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


WORDS = torch.arange(10).view(2, 5)


def half_of(name: str, *shape: int) -> dict[str, torch.Tensor]:
    return {name: torch.arange(torch.Size(shape).numel()).view(shape) % 2 == 0}


def test_a_tied_tensor_counts_once_under_its_first_name():
    net = Tied()
    with torch.no_grad():
        net.embedding.weight[:5] = 0
    assert pruning.sparsity(net) == 20 / (40 + 16)
    assert list(pruning.weights_of(net)) == ["embedding.weight", "middle.weight"]
    for kept_masks in (pruning.global_masks(net, 0.5), pruning.layer_masks(net, 0.5)):
        assert list(kept_masks) == ["embedding.weight", "middle.weight"]
        assert pruning.sparsity(pruning.mask(net, kept_masks)) == 0.5
    assert list(pruning.layer_masks(net, {"decoder": 0.5})) == ["embedding.weight"]
    assert list(pruning.weights_of(Alias())) == ["first.weight", "last.weight"]
    assert list(pruning.layer_masks(Alias(), {"second": 0.5})) == ["first.weight"]
    with pytest.raises(ValueError, match=r"amount has 0.5 and 0.6 for 'embedding.weight'; allowed: one for each"):
        pruning.layer_masks(net, {"embedding": 0.5, "decoder": 0.6})


@pytest.mark.parametrize("name", ["embedding.weight", "decoder.weight"])
def test_a_mask_on_one_name_is_on_all_and_layers_stay_tied(name):
    net = Tied()
    kept = half_of(name, 10, 4)
    by_hand = deepcopy(net)
    with torch.no_grad():
        by_hand.embedding.weight.mul_(kept[name])
    masked = pruning.mask(net, kept)
    assert_equal_masks(pruning.masks_of(masked), {"embedding.weight": kept[name]})
    for model in (masked, pruning.bake(masked), pruning.bake(modules.copied(masked)), deepcopy(masked)):
        assert torch.equal(model(WORDS), by_hand(WORDS))
        assert sum(parameter.numel() for parameter in model.parameters()) == 40 + 20 + 10
    baked = pruning.bake(masked)
    assert baked.decoder.weight is baked.embedding.weight
    trained = training.fit(masked, Split(WORDS, torch.arange(2)), epochs=2, lr=0.1, batch_size=2, progress=False).model
    assert not trained.decoder.weight[~kept[name]].any() and torch.equal(
        trained.decoder.weight, trained.embedding.weight
    )
    assert not torch.equal(trained.decoder.weight, by_hand.decoder.weight)


def test_masks_under_several_names_of_a_tensor_are_all_in_force():
    one, two = half_of("embedding.weight", 10, 4), {"decoder.weight": torch.arange(40).view(10, 4) % 3 == 0}
    expected = {"embedding.weight": torch.arange(40).view(10, 4) % 6 == 0}
    for masked in (pruning.mask(Tied(), one | two), pruning.mask(pruning.mask(Tied(), two), one)):
        assert_equal_masks(pruning.masks_of(masked), expected)
        assert torch.equal(masked.decoder.weight, masked.embedding.weight)


def test_one_layer_under_two_names_is_masked_by_either():
    net, x = Alias(), torch.randn(3, 4)
    for name in ("first.weight", "second.weight"):
        masked = pruning.mask(net, half_of(name, 4, 4))
        assert list(pruning.masks_of(masked)) == ["first.weight"]
        assert masked.first is masked.second and torch.equal(masked(x), pruning.bake(masked)(x))
        assert pruning.sparsity(masked) == 8 / (16 + 12)


def test_layers_that_were_masked_one_by_one_are_baked_one_by_one():
    """What the tensor is to the one is not what it is to the other, and only their own tensors can say so."""
    net = Tied()
    masks.parametrize.register_parametrization(net.decoder, "weight", pruning.Mask(half_of("", 10, 4)[""]))
    baked = pruning.bake(net)
    assert torch.equal(baked(WORDS), net(WORDS))
    assert baked.embedding.weight.all() and not baked.decoder.weight.all()
    both = pruning.mask(net, half_of("middle.weight", 4, 4))
    assert list(pruning.masks_of(both)) == ["middle.weight", "decoder.weight"]
    assert both.embedding.weight.all()


def test_gradual_pruning_of_tied_layers():
    fitted = pruning.prune_gradually(
        Tied(), Split(WORDS, torch.arange(2)), amount=0.75, epochs=8, lr=1e-3, batch_size=2, every=1, progress=False
    )
    assert pruning.sparsity(fitted.model) == 0.75
    assert torch.equal(fitted.model.embedding.weight, fitted.model.decoder.weight)


class Own(nn.Module):
    """Has parameters that are in no layer, and adds up all that its layers make of `x`."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 6))
        self.lists, self.named = nn.ParameterList([torch.randn(6, 6)]), nn.ParameterDict({"a": torch.randn(6, 6)})
        self.scale, self.token = nn.Parameter(torch.randn(6, 1, 1)), nn.Parameter(torch.randn(1, 1, 6))
        self.norm = nn.LayerNorm([2, 6])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix @ self.lists[0] @ self.named["a"] * self.scale[:, 0, 0] + self.token[0]


def kinds() -> dict[str, tuple]:
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    images, words = x.view(2, 2, 3).repeat(1, 3, 2), x.view(2, 1, 6).repeat(1, 3, 1)
    lstm, gru, rnn, bilinear = nn.LSTMCell(6, 6), nn.GRUCell(6, 6), nn.RNNCell(6, 6), nn.Bilinear(6, 6, 3)
    attention, other = nn.MultiheadAttention(6, 2, batch_first=True), nn.MultiheadAttention(6, 2, kdim=6, vdim=5)
    encoder = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    cells = ["weight_hh", "weight_ih"]
    encoders = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    separate = ["k_proj_weight", "q_proj_weight", "v_proj_weight", "out_proj.weight"]
    return {
        "ConvTranspose1d": (nn.ConvTranspose1d(6, 4, 2, groups=2), lambda m: m(images), ["weight"]),
        "ConvTranspose2d": (nn.ConvTranspose2d(6, 4, 2), lambda m: m(images[:, :, None]), ["weight"]),
        "ConvTranspose3d": (nn.ConvTranspose3d(6, 4, 2), lambda m: m(images[:, :, None, None]), ["weight"]),
        "LSTMCell": (lstm, lambda m: m(x)[0], cells),
        "GRUCell": (gru, lambda m: m(x), cells),
        "RNNCell": (rnn, lambda m: m(x), cells),
        "Bilinear": (bilinear, lambda m: m(x, x), ["weight"]),
        "MultiheadAttention": (attention, lambda m: m(words, words, words)[0], ["in_proj_weight", "out_proj.weight"]),
        "kdim": (other, lambda m: m(words, words, words[:, :, :5])[0], separate),
        "TransformerEncoderLayer": (encoder, lambda m: m(words), encoders),
        "Parameter": (Own(), lambda m: m(x), ["matrix", "lists.0", "named.a"]),
        "a vector": (nn.Linear(1, 6), lambda m: m(x[:, :1]), ["weight"]),
    }


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("gradients", [True, False], ids=["slow path", "fast path"])
def test_every_kind_of_weight_is_masked(kind, gradients):
    """Against the same network with zeros written into its `state_dict`."""
    torch.manual_seed(0)
    model, answer, names = kinds()[kind]
    model.eval()
    assert list(pruning.weights_of(model)) == names
    kept_masks = pruning.global_masks(model, 0.5)
    zeroed = deepcopy(model)
    zeroed.load_state_dict(
        {key: value * kept_masks[key] if key in kept_masks else value for key, value in model.state_dict().items()}
    )
    masked = pruning.mask(model, kept_masks)
    total = sum(value.numel() for value in pruning.weights_of(model).values())
    assert (
        sum(int((value == 0).sum()) for name, value in zeroed.state_dict().items() if name in kept_masks) == total // 2
    )
    assert pruning.sparsity(masked) == total // 2 / total
    with torch.set_grad_enabled(gradients):
        expected = answer(zeroed)
        for found in (masked, pruning.bake(masked)):
            assert torch.allclose(answer(found), expected, atol=1e-6)
        assert not torch.allclose(answer(model), expected, atol=1e-3)
    assert list(pruning.weights_of(masked)) == names, "their order does not depend on masks"


def test_a_layer_of_several_weights_is_named_as_one():
    cell = nn.Sequential(nn.LSTMCell(3, 4), nn.Linear(4, 2))
    kept_masks = pruning.layer_masks(cell, {"0": 0.5})
    assert {name: int(kept.sum()) for name, kept in kept_masks.items()} == {"0.weight_hh": 32, "0.weight_ih": 24}
    assert list(pruning.layer_masks(nn.Linear(4, 2), {"": 0.5})) == ["weight"]


def test_a_lazy_layer_has_no_weights_yet():
    with pytest.raises(ValueError, match="layer '1' has no weights yet; allowed: a model that was called once"):
        pruning.weights_of(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)))


def by_torchs_pruning(layer):
    prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "put", [by_torchs_pruning, nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm]
)
@pytest.mark.parametrize("used", [True, False])
def test_what_torch_has_put_on_the_weights_becomes_weights(net, images, put, used):
    put(net.fc1)
    if used:
        net(images).sum().backward()
    net.eval()
    with torch.no_grad():
        logits = net(images)
        weight = net.fc1.weight.clone()
    baked = pruning.bake(net)
    torch.testing.assert_close(baked(images), logits)
    assert {name for name, _ in baked.named_parameters()} == {name for name, _ in nets.lenet5().named_parameters()}
    torch.testing.assert_close(pruning.weights_of(net)["fc1.weight"], weight)
    assert list(pruning.weights_of(net)) == [f"{name}.weight" for name in LAYERS]
    kept_masks = pruning.layer_masks(net, {"fc1": 0.75})
    masked = pruning.mask(net, kept_masks)
    torch.testing.assert_close(masked.fc1.weight, weight * kept_masks["fc1.weight"])
    neurons = pruning.mask(net, pruning.neuron_masks(net, "fc1", "fc2", 0.5))
    assert pruning.remove_neurons(neurons, "fc1", "fc2").fc1.out_features == 250


def test_torchs_pruning_counts_as_it_is_now_not_as_it_was_at_the_last_call(net):
    by_torchs_pruning(net.fc1)
    with torch.no_grad():
        net.fc1.weight_orig.fill_(1)
    assert set(pruning.weights_of(net)["fc1.weight"].unique().tolist()) == {0, 1}


class Between(nn.Module):
    """`first`, then a function of the network and the first layer's output, which calls `last`."""

    def __init__(self, first: nn.Module, last: nn.Module, function, *layers: nn.Module) -> None:
        super().__init__()
        self.first, self.last, self.layers, self.function = first, last, nn.ModuleList(layers), function

    def forward(self, x: torch.Tensor, again: bool = False) -> torch.Tensor:
        return self.function(self, self.first(x))


def linear(function, *layers: nn.Module):
    return Between(nn.Linear(6, 16), nn.Linear(16, 3), function, *layers), torch.randn(4, 6)


def conv(function, *layers: nn.Module, last: nn.Module | None = None):
    return Between(nn.Conv2d(3, 16, 3, padding=1), last or nn.Conv2d(16, 5, 3), function, *layers), torch.randn(
        4, 3, 8, 8
    )


def through(net, x):
    return net.last(net.layers[0](x))


WAYS = {
    "relu": linear(lambda net, x: net.last(x.relu())),
    "sigmoid": linear(lambda net, x: net.last(x.sigmoid())),
    "one slope": linear(through, nn.PReLU()),
    "in place": linear(lambda net, x: net.last(F.relu(x, inplace=True))),
    "dropout": linear(lambda net, x: net.last(F.dropout(x, 0.5, net.training))),
    "length": linear(lambda net, x: net.last(x.view(len(x), -1))),
    "tokens": linear(lambda net, x: net.last(F.gelu(x[:, None]))[:, 0]),
    "convolution": conv(lambda net, x: net.last(x.relu())),
    "instances": conv(through, nn.InstanceNorm2d(16, affine=False)),
    "flatten": conv(lambda net, x: net.last(F.max_pool2d(x, 2).flatten(1)), last=nn.Linear(256, 5)),
    "oblong": conv(lambda net, x: net.last(F.max_pool2d(x, (2, 4)).view(x.shape[0], -1)), last=nn.Linear(128, 5)),
    "mean": conv(lambda net, x: net.last(x.mean((2, 3))), last=nn.Linear(16, 5)),
    "channels last": conv(lambda net, x: net.last(x.permute(0, 2, 3, 1)).mean((1, 2)), last=nn.Linear(16, 5)),
}  # fmt: skip
NO_WAYS = {
    "softmax": (linear(lambda net, x: net.last(x.softmax(1))), "answers differ by"),
    "log softmax": (linear(lambda net, x: net.last(F.log_softmax(x, -1))), "answers differ by"),
    "BatchNorm1d": (linear(through, nn.BatchNorm1d(16)), "RuntimeError: running_mean should contain 8"),
    "LayerNorm": (linear(through, nn.LayerNorm(16)), r"RuntimeError: Given normalized_shape=\[16\]"),
    "PReLU": (linear(through, nn.PReLU(16)), "RuntimeError: Mismatch of parameter numbers"),
    "another layer": (linear(through, nn.Linear(16, 16)), "RuntimeError: mat1 and mat2"),
    "the mean": (linear(lambda net, x: net.last(x + x.mean(1, True))), "answers differ by"),
    "residual": (linear(lambda net, x: net.last(x) + x[:, :3]), "also read by 'getitem'"),
    "two readers": (linear(lambda net, x: net.last(x) + net.layers[0](x), nn.Linear(16, 3)), "read by 'layers_0'"),
    "out of place": (linear(lambda net, x: (x.relu_(), net.last(x))[1]), "also read by 'relu_'"),
    "twice": (linear(lambda net, x: net.last(x) + net.last(2 * x)), "called 2 times; allowed: once"),
    "not read": (linear(lambda net, x: net.last(torch.ones(1, 16)) + x[:, :3]), "does not read the other's output"),
    "by weight": (linear(lambda net, x: F.linear(x, net.last.weight)), "weights of Linear are read without"),
    "a branch": (linear(lambda net, x: net.last(x) if x.sum() > 0 else x), "TraceError: symbolically traced"),
    "BatchNorm2d": (conv(through, nn.BatchNorm2d(16)), "RuntimeError: running_mean should contain 8"),
    "GroupNorm": (conv(through, nn.GroupNorm(4, 16)), "RuntimeError: Expected weight to be a vector"),
    "LocalResponseNorm": (conv(through, nn.LocalResponseNorm(3)), "answers differ by"),
    "depthwise": (conv(through, nn.Conv2d(16, 16, 3, groups=16)), "RuntimeError: Given groups=16"),
    "a constant": (
        conv(lambda net, x: net.last(F.max_pool2d(x, 2).view(-1, 256)), last=nn.Linear(256, 5)),
        "RuntimeError: mat1 and mat2",
    ),
    "pixels first": (
        conv(lambda net, x: net.last(x.permute(0, 2, 3, 1).flatten(1)), last=nn.Linear(1024, 5)),
        "answers differ by",
    ),
    "another shape": (conv(lambda net, x: net.last(x[..., :1]), last=nn.Linear(16, 5)), "RuntimeError"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features")
@pytest.mark.parametrize("way", WAYS)
def test_neurons_are_removed_where_each_channel_goes_its_own_way(way):
    model, x = WAYS[way]
    masked = pruning.mask(model.eval(), pruning.neuron_masks(model, "first", "last", 0.5)).double()
    smaller = pruning.remove_neurons(masked, "first", "last")
    assert len(smaller.first.weight) == 8
    torch.testing.assert_close(smaller(x.double()), masked(x.double()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", NO_WAYS)
def test_neurons_are_not_removed_where_channels_meet(way):
    (model, x), said = NO_WAYS[way]
    masked = pruning.mask(model.eval(), pruning.neuron_masks(model, "first", "last", 0.5))
    with pytest.raises(
        ValueError, match=rf"neurons of layer='first' cannot be removed before next_layer='last': .*{said}"
    ):
        pruning.remove_neurons(masked, "first", "last")
    assert len(pruning.remove_neurons(model, "first", "last").first.weight) == 16, "nothing to remove"


def test_a_neuron_that_is_zero_but_not_after_its_activation_is_not_removed():
    """Nothing reaches it, but sigmoid makes 0.5 of that, and the next layer reads it."""
    model, _ = WAYS["sigmoid"]
    rows = {name: kept for name, kept in pruning.neuron_masks(model, "first", "last", 0.5).items() if "first" in name}
    with pytest.raises(ValueError, match="without them answers differ by"):
        pruning.remove_neurons(pruning.mask(model, rows), "first", "last")
    relu, x = WAYS["relu"]
    masked = pruning.mask(relu, rows)
    torch.testing.assert_close(pruning.remove_neurons(masked, "first", "last")(x), masked(x))


@pytest.mark.parametrize("groups", [2, 16])
def test_grouped_layers_are_refused(groups):
    net = nn.Sequential(
        nn.Conv2d(16, 16, 3, groups=groups), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.Conv2d(4, 2, 1, groups=2)
    )
    with pytest.raises(ValueError, match="layer '0' is grouped or quantized; allowed: an ordinary one"):
        pruning.remove_neurons(pruning.mask(net, pruning.neuron_masks(net, "0", "2", 0.5)), "0", "2")
    for layer, following in (("2", "3"), ("2", "2")):
        with pytest.raises(ValueError, match=f"next_layer={following!r} is {layer!r} itself or reads in groups"):
            pruning.neuron_masks(net, layer, following, 0.5)


def test_masked_neurons_have_no_bias_left(net):
    kept_masks = pruning.neuron_masks(net, "fc1", "fc2", 0.5)
    assert set(kept_masks) == {"fc1.weight", "fc1.bias", "fc2.weight"}
    assert torch.equal(kept_masks["fc1.bias"], kept_masks["fc1.weight"].all(1))
    assert torch.equal(kept_masks["fc2.weight"], kept_masks["fc1.bias"].expand(10, 500))


def test_a_frozen_layer_stays_frozen_when_neurons_leave(net):
    net.fc1.requires_grad_(False)
    small = pruning.remove_neurons(pruning.mask(net, pruning.neuron_masks(net, "fc1", "fc2", 0.5)), "fc1", "fc2")
    frozen = {name for name, parameter in small.named_parameters() if not parameter.requires_grad}
    assert frozen == {"fc1.weight", "fc1.bias"}


def test_masks_are_copies(net):
    mine = half_of("fc2.weight", 10, 500)
    before = mine["fc2.weight"].clone()
    alone, masked = pruning.Mask(mine["fc2.weight"]), pruning.mask(net, mine)
    mine["fc2.weight"].fill_(False)
    pruning.masks_of(masked)["fc2.weight"].fill_(False)
    assert torch.equal(alone.mask, before) and torch.equal(pruning.masks_of(masked)["fc2.weight"], before)


def test_a_pruning_between_two_steps_of_the_schedule_reaches_the_amount():
    """The last step before `end` falls short of it: one more is due after it."""
    net = nn.Sequential(nn.Linear(4, 25), nn.ReLU(), nn.Linear(25, 2))
    steps = []
    prune_now = schedules._gradual(0.8, 0.1, 0.5, 4)
    masked = pruning.mask(net, {n: torch.ones_like(w, dtype=torch.bool) for n, w in pruning.weights_of(net).items()})
    optimizer = training.OPTIMIZERS["adam"](masked, 1e-3)
    masked(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    for step in range(1, 11):  # end is at step 5: 4 is before it, 8 the first after it
        prune_now(masked, loop.StepInfo(step, 10, optimizer))
        steps.append(pruning.sparsity(masked))
    by_hand = 1 - 0.2 ** ((0.4 - 0.1) / 0.4)
    assert steps[3] == pytest.approx(by_hand, abs=0.01) and steps[4:7] == [steps[3]] * 3
    assert steps[7] == pytest.approx(0.8, abs=1e-6) and steps[9] == steps[7]


def test_of_dead_weights_those_that_are_pruned_stay_so():
    """All of one layer's scores are zero: its pruned weights must not change places with its dead ones."""
    net = nn.Sequential(nn.Linear(4, 25), nn.ReLU(), nn.Linear(25, 2))
    pruned = {"0.weight": torch.arange(100).view(25, 4) < 60, "2.weight": torch.ones(2, 25, dtype=torch.bool)}
    masked = pruning.mask(net, pruned)
    optimizer = training.OPTIMIZERS["adam"](masked, 1e-3)
    masked(torch.zeros(3, 4)).sum().backward()
    optimizer.step()
    schedules._gradual(0.8, 0.1, 0.5, 1)(masked, loop.StepInfo(2, 10, optimizer))
    after = pruning.masks_of(masked)
    assert not (after["0.weight"] & ~pruned["0.weight"]).any()
    due = round((1 - 0.2 ** ((0.2 - 0.1) / 0.4)) * 150)
    assert sum(int((~kept).sum()) for kept in after.values()) == due == 50, "the 40 pruned before are among them"


def test_gradual_pruning_goes_on_where_masks_are(net, images):
    """A layer that is pruned beyond the schedule's begin stays so, and masked neurons keep their masked biases."""
    before = pruning.neuron_masks(net, "fc1", "fc2", 0.9)
    fitted = pruning.prune_gradually(
        pruning.mask(net, before),
        Split(images, torch.arange(8)),
        amount=0.95,
        epochs=5,
        lr=1e-3,
        batch_size=8,
        every=1,
        progress=False,
    )
    after = pruning.masks_of(fitted.model)
    assert all(bool((after[name] <= kept).all()) for name, kept in before.items())
    assert pruning.sparsity(fitted.model) == pytest.approx(0.95, abs=1e-5)


def test_weights_without_a_gradient_cannot_be_scored(net, images):
    net.unused = nn.Linear(3, 3)
    split = Split(images, torch.arange(8))
    with pytest.raises(
        ValueError, match=r"^unused.weight: the optimizer \(AdamW?\) has no squared gradients.* allowed: Adam"
    ):
        pruning.prune_gradually(net, split, amount=0.5, epochs=4, lr=1e-3, batch_size=8, every=1, progress=False)
    with pytest.raises(ValueError, match=r"conv1.weight.* the optimizer \(SGD\) has no squared gradients"):
        pruning.fisher_scores(net, torch.optim.SGD(net.parameters(), lr=1))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net: pruning.keep_largest(torch.tensor([1, torch.nan]), 0.5), "scores is no tensor, or holds NaN"),
        (lambda net: pruning.keep_largest([1.0], 0.5), "scores is no tensor, or holds NaN"),
        (
            lambda net: pruning.global_masks(net, 0.5, scores={"fc2.weight": torch.full((10, 500), torch.nan)}),
            r"scores\['fc2.weight'\] is no tensor, or holds NaN; allowed",
        ),
        (lambda net: pruning.global_masks(net, 0.5, scores={}), "scores is empty"),
        (lambda net: pruning.neuron_masks(net, "fc1", "fc2", 0.5, norm=torch.nan), "norm=nan; allowed: a number of"),
        (lambda net: pruning.neuron_masks(net, "fc1", "fc2", 0.5, norm="1"), "norm='1'; allowed: a number of"),
        (lambda net: pruning.neuron_masks(net, "fc1", "fc2", 0.5, norm=-1), "norm=-1; allowed: a number of"),
        (
            lambda net: pruning.mask(net, {"fc2.bias": [True] * 10}),
            r"masks\['fc2.bias'\] is a list; allowed: torch.bool",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_more_bad_arguments_are_named(net, call, words):
    with pytest.raises(ValueError, match=words):
        call(net)
