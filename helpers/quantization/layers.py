"""Which weights and inputs of a network are quantized, and in how many bits."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from helpers.core import checks
from helpers.core.modules import first_names
from helpers.pruning import weights
from helpers.quantization.grids import Grid, fake_quantize, number_of_bits, require_steps

INPUT = "quantize_input"  # the name under which a layer keeps the quantizer of its input
INPUT_NAME = "input"  # what torch's layers call their first argument
WITH_INPUT = (*weights.WITH_NEURONS, _ConvTransposeNd)  # layers whose one input is what they multiply
WITH_OTHERS = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)  # and those that multiply more


class FakeQuantize(nn.Module):
    """Moves what passes to a grid: the parametrization of a weight, or what a layer does to its input first.

    With `trained_over` the step is trained, and that is how many numbers share it: what is trained is the logarithm of
    the step's growth, so that no optimizer can make the step negative (Jain et al. 2020, "Trained quantization
    thresholds", section 3), with its gradient scaled so that a first step of SGD moves it as "Learned step size
    quantization" does (Esser et al. 2020, section 2.2).
    """

    scale: Tensor
    zero_point: Tensor
    pace: Tensor

    def __init__(self, grid: Grid, *, trained_over: int | None = None) -> None:
        super().__init__()
        require_steps(grid)
        self.low, self.high = grid.low, grid.high
        self.register_buffer("scale", grid.scale.detach().clone())
        self.register_buffer("zero_point", grid.zero_point.clone())
        self.log_growth = None if trained_over is None else nn.Parameter(torch.zeros_like(grid.scale))
        if trained_over is not None:
            pace = self.scale**-2 / math.sqrt(trained_over * grid.high)
            self.register_buffer("pace", pace, persistent=False)

    @property
    def grid(self) -> Grid:
        """The grid as it is now, its scale with the gradient of what is trained."""
        if self.log_growth is None:
            return Grid(self.scale, self.zero_point, self.low, self.high)
        growth = self.log_growth
        paced = growth + (self.pace - 1) * (growth - growth.detach())  # its own value, `pace` times its gradient
        return Grid(self.scale * paced.exp(), self.zero_point, self.low, self.high)

    def forward(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return `fake_quantize` of the values."""
        return fake_quantize(values, self.grid)


def quantize_input(
    layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Round a layer's input; a hook that runs before the layer (a plain function, so copies use their own layer)."""
    quantizer = layer.get_submodule(INPUT)
    if inputs:
        return (quantizer(inputs[0]), *inputs[1:]), named
    return inputs, named | {INPUT_NAME: quantizer(named[INPUT_NAME])}


def called(name: str) -> str:
    """Return the name that `quantize_model` takes for a parameter: "fc1" for "fc1.weight", otherwise its own."""
    return name.removesuffix("weight").removesuffix(".") if name.rpartition(".")[2] == "weight" else name


def weights_by_name(model: nn.Module) -> dict[str, str]:
    """Return the first name of each weight (`pruning.weights_of` says what is one), by all that it may be called.

    Those of torch's own recurrent layers are missing: such a layer keeps what it computes with in a list of its own.
    """
    found: dict[str, str] = {}
    first = first_names(model)
    for name, original in first.items():
        if "parametrizations" in name.split("."):
            _refuse_originals(name)
            continue
        layer, attribute = weights.owner_of(model, name)
        tensor = getattr(layer, attribute)
        if is_lazy(tensor):
            raise ValueError(f"{name!r} has no numbers yet; allowed: a model that was called once")
        if not isinstance(layer, nn.RNNBase) and weights.is_weight(layer, attribute, tensor):
            found[called(name)] = original
    return found


def _refuse_originals(name: str) -> None:
    if name.rpartition(".")[2].startswith("original"):
        raise ValueError(
            f"{name!r} is one of several tensors of which a weight is computed; allowed: "
            "torch.nn.utils.parametrize.remove_parametrizations first"
        )


def layers_by_name(model: nn.Module) -> dict[str, str]:
    """Return the first name of each layer whose input can be rounded, by all of its names."""
    first: dict[nn.Module, str] = {}
    named = model.named_modules(remove_duplicate=False)
    return {name: first.setdefault(layer, name) for name, layer in named if isinstance(layer, WITH_INPUT)}


def _weight_of(layer: str, tensors: Mapping[str, str]) -> str:
    """Return the first name of a layer's weight; of one that is computed, whatever no other layer has."""
    return tensors.get(f"{layer}.weight".lstrip("."), layer)


def bits_by_layer(model: nn.Module, bits: int, *, ends: int = 8) -> dict[str, int]:
    """Return `bits` for each linear or convolutional layer, but `ends` for the first and the last (as defined).

    Layers that share their weight have one entry, under the first one's name.
    """
    number_of_bits("bits", bits)
    number_of_bits("ends", ends)
    layers = checks.not_empty(
        "linear and convolutional layers of model", list(dict.fromkeys(layers_by_name(model).values()))
    )
    tensors, firsts = first_names(model), dict[str, str]()
    names = [firsts.setdefault(_weight_of(name, tensors), name) for name in layers]
    return dict.fromkeys(names, bits) | {names[0]: ends, names[-1]: ends}


def bits_of_weights(model: nn.Module, bits: int | Mapping[str, int]) -> dict[str, int]:
    """Return the bits of each tensor that is to be quantized, by its first name."""
    names = checks.not_empty("weights of model that can be quantized", weights_by_name(model))
    if not isinstance(bits, Mapping):
        _refuse_left_out(model, f"weights={bits!r}", (nn.RNNBase,), "the weights of", names)
        return dict.fromkeys(names.values(), number_of_bits("weights", bits))
    found: dict[str, int] = {}
    for name, number in bits.items():
        tensor = names[checks.choice("layer in weights", name, names)]
        if found.setdefault(tensor, number_of_bits("weights", number)) != number:
            raise ValueError(
                f"weights has {found[tensor]} and {number} bits for {name!r}; allowed: one number for each tensor"
            )
    return found


def bits_of_inputs(model: nn.Module, bits: int | Mapping[str, int]) -> dict[str, int]:
    """Return the bits of the input of each layer, by its first name; layers that share a weight get them together."""
    names = checks.not_empty("layers of model whose input can be quantized", layers_by_name(model))
    if not isinstance(bits, Mapping):
        _refuse_left_out(model, f"activations={bits!r}", WITH_OTHERS, "what is multiplied in", names)
        return dict.fromkeys(names.values(), number_of_bits("activations", bits))
    chosen = {
        names[checks.choice("layer in activations", name, names)]: number_of_bits("activations", number)
        for name, number in bits.items()
    }
    tensors = first_names(model)
    shared = {_weight_of(name, tensors): number for name, number in chosen.items()}
    others = {name: shared.get(_weight_of(name, tensors)) for name in dict.fromkeys(names.values())}
    return {name: number for name, number in others.items() if number is not None} | chosen


def _refuse_left_out(
    model: nn.Module, given: str, kinds: tuple[type, ...], what: str, names: Mapping[str, str]
) -> None:
    """Raise ValueError if one number for all layers would leave some of them out without a word."""
    left = [f"{name!r} ({type(layer).__name__})" for name, layer in model.named_modules() if isinstance(layer, kinds)]
    if left:
        argument, _, number = given.partition("=")
        others = [f"{called(name)!r}: {number}" for name in dict.fromkeys(names.values())]
        raise ValueError(
            f"{given} would leave {what} {', '.join(left)} in floating point; allowed: to say so by naming the others, "
            f"{argument}={{{', '.join(others[:3])}{', …' * (len(others) > 3)}}}"
        )


def put(owners: list[tuple[Any, str]], quantizer: FakeQuantize) -> None:
    """Have all layers that share a tensor compute with its quantized values."""
    for layer, attribute in owners:
        parametrize.register_parametrization(layer, attribute, quantizer)


def attach(model: nn.Module, name: str, quantizer: FakeQuantize) -> None:
    """Have the layer `name` round its input with `quantizer`: a submodule and a forward pre-hook, in place."""
    layer = model.get_submodule(name)
    layer.add_module(INPUT, quantizer)
    layer.register_forward_pre_hook(quantize_input, with_kwargs=True)


def is_quantizer(name: str) -> bool:
    """Return whether a name of a `state_dict` belongs to the quantizer of an input."""
    return INPUT in name.split(".")
