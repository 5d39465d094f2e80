"""Weights in safetensors files."""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from helpers import pruning, quantization
from helpers.core import modules, paths
from helpers.files import loading, model_arrays

MASK = re.compile(r"(.*\.|)parametrizations\.([^.]+)\.0\.mask")  # the layer, with a point, and its parameter
HALF_DIGITS = 2**-11  # of a number in half precision, what rounding takes from it


def write_weights(model: nn.Module, path: Path, *, half: bool = False, trained_only: bool = False) -> str:
    """Write the model's state, masks included, as safetensors; return the file's SHA-256.

    A tensor that the model has under several names is written once, and what torch's own pruning and normalization
    hooks compute as ordinary weights. With `half` fractions are rounded to half precision, where that keeps three
    digits: of the largest number of a tensor, and of every variance of a BatchNorm, which divides. A tensor whose
    numbers are too large or too small for that stays as it is. With `trained_only` frozen parameters are left out:
    those of a pretrained network come from where it came from. `read_weights` reads all of it.

    Raises ValueError for a state that is no tensor, or is not there yet, and for a quantized model.
    """
    if grids := [*quantization.weight_grids(model), *quantization.input_grids(model)]:
        raise ValueError(f"model is quantized ({grids[0]!r}); allowed: files.write_quantized, or quantization.bake")
    state = model_arrays.state_of(modules.materialized(model))
    first = model_arrays.first_of(state)
    whole = {
        name: state[name].detach().clone(memory_format=torch.contiguous_format)
        for name in dict.fromkeys(first.values())
        if not (trained_only and name in _frozen(model))
    }
    content = save({name: _halved(name, tensor) if half else tensor for name, tensor in whole.items()})
    paths.write_atomically(Path(path), content)
    return paths.sha256(content)


def _frozen(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.data for name, parameter in model.named_parameters() if not parameter.requires_grad}


def _halved(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor in half precision if that is close enough, else the tensor."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or not tensor.isfinite().all():
        return tensor
    exact, rounded = tensor.double(), tensor.half()
    whole = exact.abs() if name.endswith("running_var") else exact.abs().max()
    return rounded if bool(((rounded.double() - exact).abs() <= HALF_DIGITS * whole).all()) else tensor


def read_weights(model: nn.Module, path: Path) -> nn.Module:
    """Return a copy of `model` with the weights and masks of a file that `write_weights` wrote.

    Frozen parameters that the file leaves out stay the model's.

    Raises:
        ValueError: the file is no safetensors file, or holds other names or shapes than the model.
    """
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"path={str(path)!r} cannot be read: {error}; allowed: what write_weights wrote") from None
    masked = {f"{found[1]}{found[2]}": state[found[0]] for found in map(MASK.fullmatch, state) if found}
    try:
        new = pruning.mask(modules.materialized(model), masked)
        loading.fill(new, _frozen(new) | state)
    except ValueError as error:
        raise ValueError(f"path={str(path)!r} does not fit {type(model).__name__}: {error}") from error
    return new.eval()
