"""The arrays of a network: what a file must hold, each tensor once."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.files.arrays import CODE_BITS, INPUT_GRID, TYPES, Arrays, Integers, PackingError, Writable, shown

if TYPE_CHECKING:
    from torch import Tensor, nn


def arrays_of(
    tensors: "Mapping[str, np.ndarray | Tensor | Integers] | nn.Module", *, quantized: bool = False
) -> Writable:
    """Return what a file is to hold: arrays by name, of a model its `state_dict`, and with `quantized` whole numbers.

    Raises ValueError for a type that NumPy does not have or that is no number, and for quantized weights unless asked.
    """
    if isinstance(tensors, Mapping):
        for name in tensors:
            require_text("name in tensors", name)
        _refuse_integers([name for name, tensor in tensors.items() if isinstance(tensor, Integers)], quantized)
        return {name: _checked(name, t) if isinstance(t, Integers) else _array(name, t) for name, t in tensors.items()}
    if not hasattr(tensors, "state_dict"):
        raise ValueError(f"tensors={shown(tensors)}; allowed: arrays by name, or an nn.Module")
    return _arrays_of_model(tensors, quantized=quantized)


def _arrays_of_model(model: "nn.Module", *, quantized: bool) -> Writable:
    import torch

    from helpers import quantization
    from helpers.core import modules

    whole = modules.materialized(model)
    with torch.no_grad():
        in_integers = integers(whole)
    _refuse_integers(list(in_integers), quantized)
    grids = quantization.input_grids(whole)
    state = state_of(quantization.with_input_grids(quantization.bake(whole), {}))
    first = first_of(state)
    coded = _by_first_name(in_integers, first)
    arrays: Writable = {}
    for name in sorted(set(first.values())):  # by name: masking changes the order
        if name not in coded:
            arrays[name] = _without_negative_zeros(_array(name, state[name]).copy())
        elif state[name].dtype == torch.float64:
            raise ValueError(f"{name!r} is quantized in {state[name].dtype}; allowed: single precision, model.float()")
        else:
            arrays[name] = _checked(name, coded[name])
    for layer, grid in grids.items():
        name = f"{layer}.{INPUT_GRID}".lstrip(".")
        if name in first:
            raise ValueError(
                f"{name!r} is a tensor of the model, and the grid of a layer's input; allowed: one of them"
            )
        arrays[name] = np.array([float(number) for number in grid], "<f4")
    return arrays


def state_of(model: "nn.Module") -> "dict[str, Tensor]":
    """Return the `state_dict`, each tensor itself; ValueError for what is no tensor, or not there yet."""
    from torch import Tensor
    from torch.nn.parameter import is_lazy

    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor) or is_lazy(value):
            raise ValueError(f"model has {name!r}, a {type(value).__name__}; allowed: tensors with values")
    return dict(state)


def first_of(state: "Mapping[str, Tensor]") -> dict[str, str]:
    """Return each name of a `state_of` with the first name of the same tensor: parameters and buffers alike."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}


def _by_first_name(integers: Mapping[str, Integers], first: Mapping[str, str]) -> dict[str, Integers]:
    """Return the whole numbers by the first name of their tensor, on whichever name the grid is."""
    found: dict[str, Integers] = {}
    for name, array in integers.items():
        known = found.setdefault(first[name], array)
        if known.low != array.low or not all(np.array_equal(known[part], array[part]) for part in range(3)):
            raise ValueError(f"{name!r} and {first[name]!r} are one tensor with two grids; allowed: one grid")
    return found


def _without_negative_zeros(array: np.ndarray) -> np.ndarray:
    array[array == 0] = 0
    return array


def require_text(what: str, text: Any) -> None:
    """Raise ValueError, naming `what`, unless `text` is a text that UTF-8 can encode."""
    try:
        text.encode()
    except (AttributeError, UnicodeEncodeError):
        raise ValueError(f"{what}={shown(text)}; allowed: text, as UTF-8 has it") from None


def _refuse_integers(names: Sequence[str], allowed: bool) -> None:
    if names and not allowed:
        raise ValueError(f"{names[0]!r} is quantized and would be stored in floating point; allowed: write_quantized")


def _array(name: str, tensor: "np.ndarray | Tensor") -> np.ndarray:
    """Return the tensor as a little-endian array in C order."""
    try:
        if isinstance(tensor, np.ndarray | np.generic):
            array = np.asarray(tensor)
        else:
            array = tensor.detach().cpu().resolve_conj().resolve_neg().numpy()
    except (AttributeError, TypeError, RuntimeError, NotImplementedError) as error:
        kind = getattr(tensor, "dtype", type(tensor).__name__)
        raise ValueError(f"tensors[{name!r}] has dtype {kind}; allowed: a dense tensor of a type in NumPy") from error
    little = array.dtype.newbyteorder("<")
    if little.str not in TYPES:
        raise ValueError(f"tensors[{name!r}] has dtype {array.dtype}; allowed: numbers and booleans")
    return np.asarray(array, dtype=little, order="C")


def _checked(name: str, array: Integers) -> Integers:
    """Return the array if its numbers fit together; raise ValueError otherwise."""
    codes, zeros, low, bits = array.codes, array.zero_point, array.low, array.bits
    if type(bits) is not int or not 1 <= bits <= CODE_BITS or any(n.dtype.kind not in "iu" for n in (codes, zeros)):
        raise ValueError(
            f"{name!r} has bits={bits!r}, codes of {codes.dtype} and zero points of {zeros.dtype}; "
            f"allowed: 1 to {CODE_BITS} bits, whole numbers"
        )
    if zeros.size != array.scale.size or array.scale.size not in {1, *codes.shape[:1]} - {0}:
        raise ValueError(
            f"{name!r} has codes of shape {codes.shape}, {array.scale.size} scales and {zeros.size} zero points; "
            "allowed: one scale and one zero point, or one for each entry of the first dimension"
        )
    if not np.isfinite(array.scale).all():
        raise ValueError(f"{name!r} has a scale that is NaN or infinite; allowed: finite numbers")
    last = low + 2**bits - 1
    for numbers in (codes, zeros):
        if numbers.size and (numbers.min() < low or numbers.max() > last):
            raise ValueError(
                f"{name!r} has codes and zero points from {numbers.min()} to {numbers.max()}; "
                f"allowed: {low} to {last}, which {bits} bits can number"
            )
    return array


def require_identical(arrays: Writable, again: Arrays) -> None:
    """Raise PackingError unless `again` holds the same arrays, bit for bit."""
    for name, given in arrays.items():
        array, copy = given.values() if isinstance(given, Integers) else given, again[name]
        if copy.dtype != array.dtype or copy.shape != array.shape or not np.array_equal(_bytes(copy), _bytes(array)):
            raise PackingError(f"{name!r} would not come back bit for bit; nothing was written")


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def integers(model: "nn.Module") -> dict[str, Integers]:
    """Return the codes of the quantized weights, masks applied, as `files.write_quantized` stores them.

    A tensor that several layers share has one entry, under its first name.
    """
    from helpers.pruning import weights
    from helpers.quantization import quantize, weight_grids

    found = {}
    for name, grid in weight_grids(model).items():
        weight = getattr(*weights.owner_of(model, name))
        parts = quantize(weight.detach(), grid), grid.scale.float(), grid.zero_point
        codes, scale, zero_point = (part.cpu().numpy() for part in parts)
        found[name] = Integers(codes, scale, zero_point, grid.low, grid.bits)
    return found
