"""Physical removal: filters, neurons and whole blocks leave the network, and it gets smaller and faster.

A channel that leaves takes with it the filter that makes it, its entries in every normalization on the way, and the
weights of every layer that reads it. Where two tensors are added, as in a residual block, channel 7 of the one and
channel 7 of the other must leave together: such layers form a *group*. `torch-pruning` finds the groups by following
the gradients' graph of one forward pass (Fang et al. 2023, "DepGraph: towards any structural pruning", section 3).
What is to stay is written as a dictionary of boolean masks, one per group: ``{"conv1": tensor([True, False, …])}``.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.core import checks
from helpers.core.modules import copied
from helpers.pruning.coupling import Coupled, Group, Keep, answer_of, copy, first_line, survey_of

PRECISIONS = (torch.float64, torch.float32)  # in which answers are compared; the second where the first is impossible
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}  # of the range of the answers to different inputs
NOISE = {torch.float64: 1e-13, torch.float32: 3e-6}  # of the largest answer: what another order of adding up may change


def remove_filters(model: nn.Module, keep: Keep, example: Shaped[Tensor, "batch ..."]) -> nn.Module:
    """Return a new, smaller model without the channels that `keep` drops; the one that came in is unchanged.

    `keep` has one mask per group to be cut, under the name of any of its layers (see `groups`). Convolutions, also
    depthwise ones, and linear neurons are treated alike. Frozen layers are cut as well, and stay frozen. Masks of
    `pruning`, and what `torch.nn.utils` has put on weights, are baked. The new model's parameters are new: give them a
    new optimizer.

    Before it is returned, the new model's answer to random numbers of the shape of `example` is compared in float64
    with that of the model whose channels are zeroed (`zero_filters`), or in float32 if float64 is impossible.

    Raises:
        ValueError: `keep` names no group's layer; a mask has another shape, is not boolean, drops all channels or
            contradicts one of the same group; or torch-pruning cannot cut the model there.
    """
    return _removed_and_zeroed(model, keep, example)[0]


def zero_filters(model: nn.Module, keep: Keep, example: Shaped[Tensor, "batch ..."]) -> nn.Module:
    """Return the same net at full size, with the channels that `keep` drops zeroed after BatchNorm and activation.

    Each number that `remove_filters` would remove is zero instead: the filters, their scale and shift in a BatchNorm,
    and the weights that read the channels, which is what zeroes them where they are read, whatever came in between.
    It is an ordinary model without masks, as large and as slow as before.

    Raises ValueError as `remove_filters` does.
    """
    return _removed_and_zeroed(model, keep, example)[1]


def _removed_and_zeroed(model: nn.Module, keep: Keep, example: Tensor) -> tuple[nn.Module, nn.Module]:
    whole = copy(model)
    return compared(whole, keep, survey_of(whole, example), example)


def compared(whole: nn.Module, keep: Keep, survey: list[Coupled], example: Tensor) -> tuple[nn.Module, nn.Module]:
    """Return the cut model and the zeroed one; ValueError if `keep` is wrong or their answers differ."""
    masks = _checked(keep, survey, first_names_of_layers(whole))
    try:
        return _both(whole, masks, survey, example)
    except _CannotCutError as error:
        alone = [name for name in masks if not _can_cut(whole, {name: masks[name]}, survey, example)]
        raise ValueError(
            f"keep cuts {', '.join(map(repr, alone or masks))}, which torch-pruning cannot cut here ({error}). "
            "Something there reshapes, splits or mixes channels: try leaving these layers out of keep (or of scores)"
        ) from error


class _CannotCutError(Exception):
    """The cut model is not the zeroed one; says how."""


def _both(whole: nn.Module, masks: Keep, survey: list[Coupled], example: Tensor) -> tuple[nn.Module, nn.Module]:
    try:
        numbered = cut_numbers(whole, masks, survey)
        zeroed = _zeroed(numbered, whole)
        new = fill(numbered, whole)
    except Exception as error:  # of any class: torch-pruning takes a layer for one of another kind
        raise _CannotCutError(first_line(error)) from error
    if reason := _difference(new, zeroed, example):
        raise _CannotCutError(reason)
    return new, zeroed


def _can_cut(whole: nn.Module, masks: Keep, survey: list[Coupled], example: Tensor) -> bool:
    try:
        _both(whole, masks, survey, example)
    except _CannotCutError:
        return False
    return True


def first_names_of_layers(model: nn.Module) -> dict[str, str]:
    """Return each name of each layer with the first one of the same layer."""
    first = {layer: name for name, layer in model.named_modules()}
    return {name: first[layer] for name, layer in model.named_modules(remove_duplicate=False)}


def _checked(keep: Keep, survey: list[Coupled], first: dict[str, str]) -> dict[str, Tensor]:
    """Return one mask for each group that loses channels, by the group's name; `first` has the names of layers."""
    coupled_by_layer = {layer: coupled for coupled in survey for layer in coupled.group.layers}
    coupled_by_layer = {name: coupled_by_layer[layer] for name, layer in first.items() if layer in coupled_by_layer}
    allowed = [layer for layer, coupled in coupled_by_layer.items() if not coupled.obstacle]
    masks: dict[str, Tensor] = {}
    for name, mask in keep.items():
        coupled = coupled_by_layer.get(name)
        if coupled and coupled.obstacle:
            raise ValueError(
                f"keep has {name!r}, but {coupled.obstacle}; allowed: {', '.join(map(repr, allowed)) or 'none'}"
            )
        group = coupled_by_layer[checks.choice("layer in keep", name, allowed)].group
        _check_mask(name, mask, group)
        if not torch.equal(masks.setdefault(group.name, mask), mask):
            raise ValueError(f"keep[{name!r}] differs from the mask of {group.name!r}; allowed: one mask for a group")
    return {name: mask.cpu() for name, mask in masks.items() if not mask.all()}


def _check_mask(name: str, mask: Tensor, group: Group) -> None:
    if not isinstance(mask, Tensor):
        raise ValueError(f"keep[{name!r}] is a {type(mask).__name__}; allowed: torch.bool {(group.channels,)}")
    if mask.dtype != torch.bool or mask.shape != (group.channels,):
        raise ValueError(f"keep[{name!r}] is {mask.dtype} {tuple(mask.shape)}; allowed: torch.bool {(group.channels,)}")
    if not mask.any():
        raise ValueError(f"keep[{name!r}] drops all {group.channels} channels; allowed: a part of them")
    if (mask.view(group.parts, -1) != mask[: group.channels // group.parts]).any():
        raise ValueError(
            f"keep[{name!r}] drops different channels in the {group.parts} parts that a grouped convolution makes of "
            "them; allowed: the same in each"
        )


def cut_numbers(whole: nn.Module, masks: Keep, survey: list[Coupled]) -> nn.Module:
    """Return a copy that is cut, and that has numbers in place of its parameters.

    They say where in the flat parameter of `whole` each value stood. So it is known for every kind of layer that
    torch-pruning can cut what was removed, and what of the rest went where.
    """
    new = copied(whole)
    for parameter in new.parameters():
        numbers = torch.arange(parameter.numel(), dtype=torch.float64, device=parameter.device)  # exact up to 2⁵³
        parameter.data = numbers.view(parameter.shape)
    for (layer, cut), positions in positions_of(masks, survey).items():
        cut(new.get_submodule(layer), sorted(positions))
    return new


def fill(numbered: nn.Module, whole: nn.Module) -> nn.Module:
    """Replace, in place, each number by what stands there in `whole`; return the model, which is then the cut one."""
    originals = dict(whole.named_parameters(remove_duplicate=False))
    for name, parameter in numbered.named_parameters():
        parameter.data = originals[name].detach().flatten()[parameter.detach().long()]
        parameter.requires_grad_(originals[name].requires_grad)
    return numbered


def _zeroed(numbered: nn.Module, whole: nn.Module) -> nn.Module:
    """Return a copy of `whole` with a zero wherever its number was removed."""
    new = copied(whole)
    numbers = dict(numbered.named_parameters())
    for name, parameter in new.named_parameters():
        removed = torch.ones(parameter.numel(), dtype=torch.bool, device=parameter.device)
        removed[numbers[name].detach().long().flatten()] = False
        parameter.data = parameter.detach().masked_fill(removed.view(parameter.shape), 0)
    return new


def positions_of(masks: Keep, survey: list[Coupled]) -> dict[tuple[str, Any], set[int]]:
    """Return what has to be removed from each layer, by layer and torch-pruning's function for it."""
    positions: dict[tuple[str, Any], set[int]] = {}
    for coupled in survey:
        if coupled.group.name in masks:
            for site in coupled.sites:
                removed = ~masks[coupled.group.name][site.channel]
                positions.setdefault((site.layer, site.cut), set()).update(site.position[removed].tolist())
    return positions


def _difference(new: nn.Module, zeroed: nn.Module, example: Tensor) -> str:
    """Return in words how the two models' answers differ, or "" if they do not."""
    reason = ""
    for dtype in PRECISIONS:
        try:
            expected = _answers(zeroed, example, dtype)
        except Exception as error:  # of any class, from the model's own code: it makes tensors of one precision
            reason = f"the answers cannot be compared: {first_line(error)}"
            continue
        try:
            return _apart(_answers(new, example, dtype), expected, dtype)
        except Exception as error:  # of any class, from the model's own code: the sizes do not fit
            return first_line(error)
    return reason


def _apart(found: Tensor, expected: Tensor, dtype: torch.dtype) -> str:
    if found.shape != expected.shape:
        return f"the answers have the shape {tuple(found.shape)}, with zeroed channels {tuple(expected.shape)}"
    difference = float((found - expected).abs().max())
    # An untrained net's answers may hardly depend on its inputs: what counts is how much they do.
    spread = float((expected.amax(0) - expected.amin(0)).max())
    allowed = TOLERANCE[dtype] * spread + NOISE[dtype] * float(expected.abs().max())
    if dtype == torch.float32 and not allowed < 0.01 * spread:
        return "the answers depend too little on the inputs to be compared in float32"
    return "" if difference <= allowed else f"the answers differ by {difference:.2g} from those with zeroed channels"


def _answers(model: nn.Module, example: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the answers to at least two different batches or examples, computed in `dtype`."""
    model = copied(model).to(dtype)
    with _all_in_double() if dtype == torch.float64 else nullcontext():
        answers = [answer_of(model, batch) for batch in _batches(example, dtype)]
    return answers[0] if len(answers) == 1 else torch.stack(answers)


def _batches(example: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return random inputs like `example`: not more of them at once, as some models take but one."""
    generator = torch.Generator().manual_seed(0)
    if example.is_floating_point():
        shape = (max(2, len(example)), *example.shape[1:])
        inputs = torch.randn(shape, generator=generator, dtype=torch.float64).to(example.device, dtype)
        return list(inputs.split(len(example)))
    order = torch.randperm(example.numel(), generator=generator).to(example.device)
    return [example, example.flatten()[order].view(example.shape)]


@contextmanager
def _all_in_double() -> Iterator[None]:
    """Have everything that is computed meanwhile be in float64, also what asks for less precision, or for none."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Double():
            yield
    finally:
        torch.set_default_dtype(before)


class _Double(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = kwargs or {}
        if asked.get("dtype") in (torch.float32, torch.float16, torch.bfloat16):
            asked = asked | {"dtype": torch.float64}
        return func(*args, **asked)
