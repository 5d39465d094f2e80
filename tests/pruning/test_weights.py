"""Which parameters are weights: embeddings, recurrent and tied ones, and what torch has put on them."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from helpers import nets, pruning, training
from helpers.core import modules
from helpers.data import Split
from helpers.pruning import masks
from tests.pruning.pruning_examples import TOKENS, Tied, assert_equal_masks, half_of, reading

LAYERS = ("conv1", "conv2", "fc1", "fc2")


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nets.lenet5()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(1))


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
