"""Units that leave where no other part would notice, and where one would."""

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import nn
from torch.nn import functional as F

from helpers import nets, pruning


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nets.lenet5()


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


@pytest.mark.parametrize(("way", "layers"), [
    ("relu", [nn.Linear(6, 8), nn.Linear(8, 3)]),
    ("convolution", [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 3)]),
    ("flatten", [nn.Conv2d(3, 8, 3, padding=1), nn.Linear(128, 5)]),
])  # fmt: skip
def test_smaller_layers_say_how_small_they_are(way, layers):
    model, _ = WAYS[way]
    smaller = pruning.remove_neurons(
        pruning.mask(model, pruning.neuron_masks(model, "first", "last", 0.5)), "first", "last"
    )
    assert list(map(str, (smaller.first, smaller.last))) == list(map(str, layers))


def test_an_answer_that_is_always_0_does_not_matter():
    """The others, sums of fewer numbers, differ in their last digits: little next to the largest, but not next to 0."""
    torch.manual_seed(0)
    model = Between(nn.Linear(6, 256), nn.Linear(256, 3), lambda net, x: net.last(x.relu()))
    model = pruning.bake(pruning.mask(model, pruning.neuron_masks(model, "first", "last", 0.5)))
    with torch.no_grad():
        model.last.weight[1], model.last.bias[1] = 0, 0
    assert len(pruning.remove_neurons(model, "first", "last").first.weight) == 128


def test_a_network_that_checks_shapes_is_traced_and_goes_on_checking():
    class Checking(Between):
        @jaxtyped(typechecker=beartype)
        def forward(self, x: Float[torch.Tensor, "batch 6"]) -> Float[torch.Tensor, "batch 3"]:
            return super().forward(x)

    model = Checking(nn.Linear(6, 16), nn.Linear(16, 3), lambda net, x: net.last(x.relu()))
    smaller = pruning.remove_neurons(
        pruning.mask(model, pruning.neuron_masks(model, "first", "last", 0.5)), "first", "last"
    )
    assert smaller(torch.ones(4, 6)).shape == (4, 3)
    with pytest.raises(TypeCheckError):
        smaller(torch.ones(6))
