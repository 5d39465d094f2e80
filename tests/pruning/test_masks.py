"""Pruning against `torch.nn.utils.prune`, against brute force, and against its known traps."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize, prune

from helpers import checkpoints, nets, pruning, training
from helpers.data import Split
from helpers.pruning import schedules
from helpers.training import loop
from tests.pruning.pruning_examples import assert_equal_masks, half_of, torch_masks

LAYERS = ("conv1", "conv2", "fc1", "fc2")


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nets.lenet5()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(1))


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


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_mask_is_told_from_what_else_computes_a_weight(net):
    """One stands behind a mask, and goes with it in `bake`; one on a layer without a mask, and stays."""
    masked = pruning.mask(net, pruning.layer_masks(net, {"fc1": 0.5}))
    for layer in (masked.fc1, masked.fc2):
        parametrize.register_parametrization(layer, "weight", Twice())
    assert list(pruning.masks_of(masked)) == ["fc1.weight"]
    baked = pruning.bake(masked)
    assert [parametrize.is_parametrized(layer) for layer in (baked.fc1, baked.fc2)] == [False, True]
    for name in ("fc1", "fc2"):
        assert torch.equal(getattr(baked, name).weight, getattr(masked, name).weight)
    assert int((baked.fc1.weight == 0).sum()) == net.fc1.weight.numel() // 2


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
