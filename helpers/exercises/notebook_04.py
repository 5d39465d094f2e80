"""The exercises of notebook 04."""

from collections.abc import Callable
from typing import Any

import torch

from helpers.exercises.checking import Wrong, exercise, within_factor


@exercise("04.1")
def _conv_macs(count: Callable[[int, int, int, int, int], int]) -> str:
    for inputs, filters, size, height, width in ((4, 16, 3, 32, 32), (24, 48, 5, 16, 8)):
        found = count(inputs, filters, size, height, width)
        right = inputs * filters * size**2 * height * width
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise Wrong(f"Numbers go in, one should come out; yours is {found!r}.", hint="return a product.")
        if found == right:
            continue
        hints = {
            inputs
            * filters
            * size**2: "Those are the weights. Each of them is used once for every pixel that is put out.",
            filters * size**2 * height * width: "A filter looks through its window into each of the input channels.",
            inputs * filters * size * height * width: "The window is a square: size × size pixels.",
        }
        layer = f"{inputs} channels, {filters} filters of {size} × {size}, {height} × {width} pixels"
        hint = hints.get(found, "Multiply: filters, inputs, the pixels of a window, the pixels put out.")
        raise Wrong(f"{layer}: {right:,}, not {found:,}.", hint=hint)
    return "Halve the filters here and in the layer before, and a quarter is left."


@exercise("04.2")
def _pruned_speed(guess: Callable[[], float], *, measured: float, macs_ratio: float) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.25,
        unit="times faster",
        too_low="Fewer channels are smaller matrices for every runtime: with a full batch, much of the saving arrives.",
        too_high=f"The MACs fell {macs_ratio:.2f} times. Pooling, ReLU and the calls did not fall as much.",
    )


@exercise("04.3")
def _cut_before_linear(cut: Callable[..., Any]) -> str:
    for filters, size in ((6, 8), (5, 4)):
        conv, linear = torch.nn.Conv2d(3, filters, 3), torch.nn.Linear(filters * (size - 2) ** 2, 4)
        keep = torch.arange(filters) % 3 != 1
        before = [parameter.detach().clone() for layer in (conv, linear) for parameter in layer.parameters()]
        images = torch.randn(2, 3, size, size)
        channels = torch.relu(conv(images)) * keep[:, None, None]
        expected = linear(channels.flatten(1)).detach()
        _is_smaller(cut(conv, linear, keep.clone()), int(keep.sum()), (size - 2) ** 2, images, expected)
        after = [parameter for layer in (conv, linear) for parameter in layer.parameters()]
        if any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(after, before, strict=True)):
            raise Wrong("The layers that came in were changed.", hint="Work on copies: begin with deepcopy of both.")
    return "It answers like the network whose channels are zero, and is smaller."


def _is_smaller(found: Any, filters: int, pixels: int, images: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise Wrong unless `found` is (conv, linear) of the right shapes with the `expected` answer for `images`."""
    if not isinstance(found, tuple | list) or [type(layer).__name__ for layer in found] != ["Conv2d", "Linear"]:
        raise Wrong("Your function should return a convolution and a linear layer.", hint="return conv, linear")
    conv, linear = found
    shapes = {
        "conv.weight": (conv.weight, (filters, 3, 3, 3)),
        "conv.bias": (conv.bias, (filters,)),
        "linear.weight": (linear.weight, (4, filters * pixels)),
        "linear.bias": (linear.bias, (4,)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is None or tensor.shape != shape:
            had = None if tensor is None else tuple(tensor.shape)
            raise Wrong(
                f"{filters} filters of {pixels} pixels are kept: {name} should be {shape}, and is {had}.",
                hint={
                    "conv.weight": "A filter set to zero is still there. Index the weight with keep: fewer rows.",
                    "conv.bias": "Each filter has a bias, and that goes with it.",
                    "linear.weight": f"Each channel owns {pixels} columns of the linear layer: cut dimension 1.",
                    "linear.bias": "The linear layer has as many outputs as before, so its bias stays whole.",
                }[name],
            )
    answer = linear(torch.relu(conv(images)).flatten(1))
    if not torch.allclose(answer, expected, atol=1e-5):
        raise Wrong(
            "The shapes are right, but it does not answer like the network whose channels are zero.",
            hint="The columns of one channel are neighbours: stretch keep with repeat_interleave, not with repeat.",
        )


@exercise("04.4")
def _rounded_channels(rounded: Callable[[int, int, int], int]) -> str:
    cases = [
        (wanted, total, multiple)
        for total, multiple in ((48, 8), (96, 16), (12, 4), (7, 1), (5, 8))
        for wanted in range(total + 1)
    ]
    for wanted, total, multiple in sorted(cases, key=lambda case: 2 * case[0] % (2 * case[2]) == case[2]):  # ties last
        found = rounded(wanted, total, multiple)
        allowed = range(multiple, total + 1, multiple) or [total]
        expected = min(allowed, key=lambda channels, wanted=wanted: (abs(channels - wanted), -channels))
        if not isinstance(found, int) or isinstance(found, bool) or found != expected:
            hint = "The nearest multiple can lie above: add half a multiple before you divide with //."
            if not isinstance(found, int):
                hint = "Return a whole number."
            elif found == 0:
                hint = "A layer without channels is a hole in the network: max() sees to it that one multiple stays."
            elif found > total:
                hint = "Nothing can be kept that was not there: min() with total."
            elif 2 * wanted % (2 * multiple) == multiple:
                hint = "Exactly between two, keep more. Python's round() goes to the *even* one: round(2.5) is 2."
            raise Wrong(
                f"wanted={wanted}, total={total}, multiple={multiple}: {expected} is right, not {found!r}.", hint=hint
            )
    return "Round numbers, and no layer is emptied."
