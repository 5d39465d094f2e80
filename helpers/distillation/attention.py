"""Attention maps: where a network looks (Zagoruyko and Komodakis 2017)."""

from collections.abc import Iterable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.core import checks, modules
from helpers.distillation.losses import check_same_shape
from helpers.training import logits_of


def with_features(
    model: nn.Module, inputs: Tensor, layers: Iterable[str]
) -> tuple[Float[Tensor, "batch *classes"], dict[str, Tensor]]:
    """Return the model's logits, and by name what the modules `layers` put out on the way, in the last call of each.

    What a layer puts out is handed out even if a later one overwrites it (as `nn.ReLU(inplace=True)` does). Raises
    ValueError for a name that the model has not, and for a layer that is not called or puts out no tensor.
    """
    parts, seen = dict(model.named_modules()), dict[str, Tensor]()
    names = [checks.choice("layers", name, parts) for name in layers]
    hooks = [(parts[name], partial(_keep_output, seen, name)) for name in names]
    with modules.hooked(hooks), modules.asked("inputs", inputs):
        logits = logits_of(model(inputs))
    for name in names:
        if name not in seen:
            raise ValueError(f"layers={name!r} is not called by the model; allowed: layers that it uses")
    return logits, seen


def _keep_output(seen: dict[str, Tensor], name: str, module: nn.Module, inputs: object, output: object) -> None:
    if not isinstance(output, Tensor):
        raise ValueError(f"layers={name!r} puts out a {type(output).__name__}; allowed: layers that put out a tensor")
    seen[name] = output.clone()


def attention_map(features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch places"]:
    """Return where a convolution's output is strong: squares summed over the channels, as vectors of length 1.

    Zagoruyko and Komodakis 2017, "Paying more attention to attention", section 3.1. A map does not depend on the number
    of channels, so that networks of different widths can be compared. At least single precision. Raises ValueError for
    features of fewer than four axes: those of a text may have their channels last.
    """
    if features.dim() < 4 or 0 in features.shape:
        shape = tuple(features.shape)
        raise ValueError(f"features has shape {shape}; allowed: (batch, channels, height, width), none of them 0")
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return F.normalize(features.square().sum(dim=1).flatten(1), dim=1)


def attention_loss(student: Float[Tensor, "batch places"], teacher: Float[Tensor, "_ _"]) -> Float[Tensor, ""]:
    """Return the squared distance of two attention maps, mean over the batch: 2 - 2 cos of the angle between them.

    Maps of several layers may stand side by side: their distances add up. (Equation 2 of Zagoruyko and Komodakis 2017,
    with the distance squared.) No gradient reaches `teacher`. Raises ValueError for maps of different shapes, or of
    other shapes than (batch, places).
    """
    check_same_shape(student, teacher)
    if student.dim() != 2 or 0 in student.shape:
        raise ValueError(f"student has shape {tuple(student.shape)}; allowed: (batch, places), none of them 0")
    return (student - teacher.detach()).square().sum(dim=1).mean()
