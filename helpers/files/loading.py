"""A file's arrays back in a network, and the proof that it answers the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from helpers.files.arrays import INPUT_GRID, MAXIMUM_BITS, PackingError
from helpers.files.model_arrays import first_of, state_of
from helpers.files.reading import read

if TYPE_CHECKING:
    from torch import Tensor, nn

    from helpers import quantization

FARTHEST = 2**30  # a code of an input, in either direction


def plain(model: "nn.Module") -> "nn.Module":
    """Return a copy with ordinary weights alone: masks, quantizers and what torch's hooks compute are numbers in it."""
    from helpers import quantization
    from helpers.core import modules

    return quantization.with_input_grids(quantization.bake(modules.materialized(model)), {})


def load_into(model: "nn.Module", path: Path) -> "nn.Module":
    """Return a copy of `model` with the weights of the file, and with inputs of layers rounded as the file says.

    Masks and quantizers of `model` are dropped, and what torch's own pruning and normalization hooks compute become
    ordinary weights; zeros stay zeros, and tied weights tied. Raises PackingError if names or shapes do not fit.
    """
    new, arrays = plain(model), read(path)
    try:
        return filled(new, arrays)
    except ValueError as error:
        raise PackingError(f"{path}: {error}") from None


def filled(model: "nn.Module", arrays: Mapping[str, np.ndarray]) -> "nn.Module":
    """Fill a plain model with the arrays of a file; return a copy that rounds its layers' inputs as they say.

    Raises ValueError if names, shapes or types do not fit, and for an input's grid that is none.
    """
    import torch

    from helpers import quantization

    names = state_of(model)
    grids = {name for name in arrays if is_grid(name) and name not in names}
    fill(model, {name: torch.from_numpy(array) for name, array in arrays.items() if name not in grids})
    layers = {name.removesuffix(INPUT_GRID).rstrip("."): _grid(name, arrays[name]) for name in arrays if name in grids}
    return quantization.with_input_grids(model, layers)


def fill(model: "nn.Module", tensors: "Mapping[str, Tensor]") -> None:
    """Copy tensors into a model, in place, under one or all of the names that each has there.

    The model's modules see their own version, as in a file of `torch.save`: one that migrates what an older version
    wrote leaves the numbers alone. Raises PackingError for a name or a shape that does not fit.
    """
    import torch

    first, state = first_of(state_of(model)), model.state_dict()
    given: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        known = given.setdefault(first.get(name, name), tensor)
        if known is not tensor and not (known.dtype == tensor.dtype and torch.equal(known, tensor)):
            raise PackingError(f"the names of {first[name]!r} hold different numbers; in the model they are one tensor")
    expected = {name: tuple(state[name].shape) for name in dict.fromkeys(first.values())}
    found = {name: tuple(tensor.shape) for name, tensor in given.items()}
    if found != expected:
        name = next(name for name in {**expected, **found} if found.get(name) != expected.get(name))
        raise PackingError(f"{name!r} has shape {found.get(name)} in the file and {expected.get(name)} in the model")
    for name, old in state.items():
        if not torch.can_cast(given[first[name]].dtype, old.dtype):
            raise PackingError(f"{name!r} is {given[first[name]].dtype} in the file and {old.dtype} in the model")
    for name in state:
        state[name] = given[first[name]]
    model.load_state_dict(state)


def is_grid(name: str) -> bool:
    """Return whether a name is that of the grid of a layer's input: its last part is `INPUT_GRID`."""
    return name.split(".")[-1] == INPUT_GRID


def _grid(name: str, numbers: np.ndarray) -> "quantization.Grid":
    import torch

    from helpers import quantization

    known = numbers.dtype == np.dtype("<f4") and numbers.shape == (4,) and np.isfinite(numbers).all()
    scale, zero_point, low, high = numbers.tolist() if known else (0.0,) * 4
    fits = -FARTHEST <= low <= zero_point <= high < min(low + 2**MAXIMUM_BITS, FARTHEST)
    if not (scale > 0 and fits and (numbers[1:] % 1 == 0).all()):
        raise PackingError(f"{name!r} is no grid; allowed: a scale above 0, a zero point and the codes it is between")
    return quantization.Grid(torch.tensor(scale), torch.tensor(int(zero_point), dtype=torch.int32), int(low), int(high))


def verify(path: Path, model: "nn.Module", inputs: "Tensor") -> None:
    """Raise PackingError unless the weights in the file give exactly `model`'s logits for `inputs`."""
    import torch

    from helpers.training import predict

    expected, found = predict(model, inputs), predict(load_into(model, path), inputs)
    if not torch.equal(expected, found):
        difference = (expected - found).abs().max()
        raise PackingError(f"{path}: the logits differ from the model's, by up to {difference:.3g}")
