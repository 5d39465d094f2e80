"""Whole networks on grids: sample the inputs, choose the grids, quantize."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from helpers import pruning, training
from helpers.core import checks
from helpers.core.modules import copied, materialized
from helpers.data import Split
from helpers.pruning.weights import owner_of, owners_of
from helpers.quantization.grids import METHODS, Grid, find_grid
from helpers.quantization.layers import (
    INPUT,
    INPUT_NAME,
    FakeQuantize,
    attach,
    bits_of_inputs,
    bits_of_weights,
    called,
    is_quantizer,
    layers_by_name,
    put,
    quantize_input,
)

SAMPLE = 65_536


def quantize_model(
    model: nn.Module,
    *,
    weights: int | Mapping[str, int],
    activations: int | Mapping[str, int] | None = None,
    calibration: Split[Tensor, Tensor] | None = None,
    method: str = "mse",
    per_channel: bool = True,
    learned: bool = False,
) -> nn.Module:
    """Return a copy that computes with quantized weights, and with `activations` also with quantized inputs of layers.

    It is ready to use (quantization after training), or to be trained with `training.fit` (quantization-aware
    training). In training BatchNorm stays a layer of its own; see `fold_batchnorm` for afterwards.

    Args:
        model: any network; masks stay in force. What `torch.nn.utils` computes weights with becomes ordinary weights.
        weights: bits from 2 to 8 of every weight (`pruning.weights_of` says what is one), or of those named, {"fc1": 4,
            "cell.weight_ih": 8}: a layer for its `weight`, any other parameter by its whole name. Symmetric signed
            grids. What layers share, they share afterwards.
        activations: the same for what reaches linear and convolutional layers; unsigned grids with a zero point. A
            layer's bits hold for those that share its weight.
        calibration: training examples, on which the inputs' ranges are found; never test examples.
        method: how ranges are found, one of METHODS.
        per_channel: give each entry of a weight's first dimension its own step: each output channel, of a transposed
            convolution each input channel, of an embedding each word. Entries of one number share one.
        learned: train the steps, too.

    Raises:
        ValueError: an argument is out of range; a layer is unknown, quantized already, or never called (as are the two
            of `nets.LSTM`, which reads their weights itself), so that it has no input to be rounded; one number for
            all layers would leave one of torch's own recurrent layers in float, or with `activations` the products in
            cells and attention; weights are not of single or double precision, or not finite; `activations` without
            `calibration`; `calibration` is the test split.
    """
    checks.choice("method", method, METHODS)
    new = materialized(model)
    weight_bits = bits_of_weights(new, weights)
    input_bits = {} if activations is None else bits_of_inputs(new, activations)
    if done := [name for name in [*weight_bits, *input_bits] if name in weight_grids(new) | input_grids(new)]:
        raise ValueError(
            f"layer {called(done[0])!r} is quantized already; allowed: to quantize the network that it was made of"
        )
    if input_bits and calibration is None:
        raise ValueError(f"activations={activations!r} without calibration; allowed: a Split of training examples")
    seen = _observe(new, calibration, list(input_bits), SAMPLE) if calibration is not None and input_bits else {}

    for name, bits in weight_bits.items():
        owners = owners_of(new, name)
        weight = _single_or_double(name, getattr(*owners[0]))
        grid = find_grid(weight, bits, method=method, per_channel=per_channel and weight.numel() > len(weight))
        sharing = weight.numel() // grid.scale.numel()
        put(owners, FakeQuantize(grid, trained_over=sharing if learned else None))
    for name, bits in input_bits.items():
        grid = find_grid(seen[name].sample, bits, method=method, symmetric=False, signed=False)
        attach(new, name, FakeQuantize(grid, trained_over=seen[name].features if learned else None))
    return new


def _single_or_double(name: str, weight: Tensor) -> Tensor:
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name!r} is {weight.dtype}; allowed: single or double precision, model.float()")
    return checks.finite(name, weight.detach())


class _Seen(NamedTuple):
    """What reached a layer: some of the numbers, and how many it takes for one example."""

    sample: Tensor
    features: int


def sample_inputs(
    model: nn.Module, split: Split[Tensor, Tensor], *, layers: list[str] | None = None, count: int = SAMPLE
) -> dict[str, Float[Tensor, " sampled"]]:
    """Return, for each linear and convolutional layer, about `count` of the numbers that reach it: the calibration.

    They are drawn at random, the same ones each time; each batch adds its smallest and its largest number. A layer
    that is called many times a batch gives a few times as many. The network computes in evaluation mode.

    Raises ValueError for the test split, an empty one, a layer that does not exist, or one that is never called.
    """
    model, names = materialized(model), layers_by_name(model)
    chosen = list(names) if layers is None else [checks.choice("layer", name, names) for name in layers]
    seen = _observe(model, split, list(dict.fromkeys(names[name] for name in chosen)), count)
    return {name: seen[name].sample for name in dict.fromkeys(names[name] for name in chosen)}


def _observe(model: nn.Module, split: Split[Tensor, Tensor], names: list[str], count: int) -> dict[str, _Seen]:
    if split.is_test:
        raise ValueError(
            "calibration is the test split: its images may not shape the network; allowed: training examples"
        )
    checks.not_empty("calibration", split)
    checks.positive("count", count)
    batches = math.ceil(len(split) / 250)
    samples = {name: _Sample(math.ceil(count / batches), 2 * max(count, SAMPLE) + 2 * batches) for name in names}
    generator = torch.Generator().manual_seed(0)
    with watching(model, names, lambda name, values: samples[name].add(values.detach(), generator)):
        training.predict(model, split.inputs, batch_size=250)
    if silent := [name for name in names if not samples[name].parts]:
        raise ValueError(
            f"these layers are never called: {', '.join(silent)}; allowed: name only those that are. Where another "
            "module computes with a layer's weights itself, nothing passes by that could be rounded"
        )
    return {
        name: _Seen(checks.finite(f"what reaches layer {name!r}", torch.cat(sample.parts)), sample.features)
        for name, sample in samples.items()
    }


class _Sample:
    """Some of the numbers that reach a layer: `share` of each call, of all never much more than `limit`."""

    def __init__(self, share: int, limit: int) -> None:
        self.share, self.limit = share, limit
        self.parts: list[Tensor] = []
        self.features = 0

    def add(self, values: Tensor, generator: torch.Generator) -> None:
        """Draw from what reaches the layer in one call; the smallest and the largest number are always there."""
        flat = values.flatten()
        drawn = flat[torch.randint(len(flat), (self.share,), generator=generator).to(flat.device)]
        self.parts.append(torch.cat([drawn, torch.stack(flat.aminmax())]).float().cpu())
        self.features = len(flat) // len(values)
        if sum(map(len, self.parts)) > self.limit:  # called many times a batch: half as many of each call from now on
            whole, self.share = torch.cat(self.parts), math.ceil(self.share / 2)
            self.parts = [torch.cat([whole[::2], torch.stack(whole.aminmax())])]


@contextmanager
def watching(model: nn.Module, names: list[str], look: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call look(name, input) whenever one of the named layers is called."""

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def before(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            look(name, inputs[0] if inputs else named[INPUT_NAME])

        return before

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name), with_kwargs=True) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _quantizers(model: nn.Module) -> dict[str, FakeQuantize]:
    """Return the quantizers of weights, by the first name of the parameter."""
    names: dict[FakeQuantize, str] = {}
    for name, chain in pruning.parametrizations_of(model).items():
        for part in chain:
            if isinstance(part, FakeQuantize):
                names.setdefault(part, name)
    return {name: part for part, name in names.items()}


def weight_grids(model: nn.Module) -> dict[str, Grid]:
    """Return the grids of the quantized weights, by the first names of the parameters ("fc1.weight")."""
    with torch.no_grad():
        return {name: quantizer.grid for name, quantizer in _quantizers(model).items()}


def input_grids(model: nn.Module) -> dict[str, Grid]:
    """Return the grids of the quantized inputs, by the names of the layers."""
    with torch.no_grad():
        return {
            name.removesuffix(INPUT).rstrip("."): module.grid
            for name, module in model.named_modules()
            if is_quantizer(name) and isinstance(module, FakeQuantize)
        }


def bake(model: nn.Module) -> nn.Module:
    """Return a copy with the same answers whose weights are ordinary floating point numbers, without masks and grids.

    Inputs are quantized as before. What layers share, they share afterwards.
    """
    new = pruning.bake(model)
    for name, chain in pruning.parametrizations_of(new).items():
        if any(isinstance(part, FakeQuantize) for part in chain):
            layer, attribute = owner_of(new, name)
            parametrize.remove_parametrizations(layer, attribute, leave_parametrized=True)
    return new


def with_input_grids(model: nn.Module, grids: Mapping[str, Grid]) -> nn.Module:
    """Return a copy in which the inputs of the named layers are moved to these grids, and no others.

    Raises ValueError for a layer that does not exist, and for a grid whose step is not finite or 0.
    """
    new = copied(model)
    for name in input_grids(model):
        layer = new.get_submodule(name)
        delattr(layer, INPUT)
        for key in [key for key, hook in layer._forward_pre_hooks.items() if hook is quantize_input]:
            del layer._forward_pre_hooks[key]
            del layer._forward_pre_hooks_with_kwargs[key]
    names = layers_by_name(new)
    for name, grid in grids.items():
        attach(new, names[checks.choice("layer in grids", name, names)], FakeQuantize(grid))
    return new
