"""The exercises of notebook 10."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.exercises.checking import Wrong, exercise, within_factor


@exercise("10.1")
def _value_of(value_of: Callable[[torch.Tensor, float, int], torch.Tensor]) -> str:
    for scale, zero in ((0.037, 117), (0.5, 3)):
        codes = torch.arange(256).to(torch.uint8)[torch.randperm(256)]
        found = value_of(codes.clone(), scale, zero)
        if not isinstance(found, torch.Tensor) or found.shape != codes.shape:
            raise Wrong(
                "A tensor with one value for each code is asked for.", hint="Compute with the tensor as a whole."
            )
        _are_values(found.double(), codes, scale, zero)
    return "Scale times (code minus zero point): that is all a quantized file says."


def _are_values(found: torch.Tensor, codes: torch.Tensor, scale: float, zero: int) -> None:
    """Raise Wrong unless `found` is what the codes stand for."""

    def matches(values: torch.Tensor) -> bool:
        return torch.allclose(found, values.double(), rtol=1e-4, atol=1e-4)

    plain = codes.double()
    if matches(scale * (plain - zero)):
        return
    place = int((found - scale * (plain - zero)).abs().argmax())
    said = (
        f"With scale {scale:g} and zero point {zero}, the code {int(codes[place])} stands for "
        f"{scale * (int(codes[place]) - zero):.4g}; yours: {float(found[place]):.4g}."
    )
    if matches(scale * (codes - zero)):
        raise Wrong(
            said, hint="A byte has no -1: what falls below 0 starts again at 255. Make floats of the codes first."
        )
    if matches(scale * plain):
        raise Wrong(said, hint="The zero point is missing: it is the code that stands for 0.")
    if matches(scale * plain - zero):
        raise Wrong(said, hint="The zero point is a code, not a value: subtract it before you multiply.")
    raise Wrong(said, hint="The value is s times (q minus z): a product of the scale and a difference of codes.")


@exercise("10.2")
def _requantize(requantize: Callable[[torch.Tensor, float, int], torch.Tensor]) -> str:
    for factor, zero, reach in ((0.0031, 0, 60_000), (0.4999, 117, 400), (0.7537, 3, 300), (1.3e-6, 128, 90_000_000)):
        sums = torch.randint(-reach, reach, (4_000,))
        given = sums.clone()
        with _FloatWatch() as watch:
            found = requantize(given, factor, zero)
        if not isinstance(found, torch.Tensor) or found.shape != sums.shape:
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else repr(found)
            raise Wrong(
                f"Codes of the shape {tuple(sums.shape)} are asked for; yours: {shape}.", hint="One code for each sum."
            )
        exact = sums.double() * factor
        _are_requantized(found, exact, zero, factor)
        if found.dtype != torch.uint8:
            raise Wrong(f"Your codes are {found.dtype}.", hint="They fit into a byte: end with .to(torch.uint8).")
        if not torch.equal(given, sums):
            raise Wrong("The sums that came in were changed.", hint="Return a new tensor: += works in place.")
        if watch.seen:
            raise Wrong(
                "The codes are right, but a tensor of floats was computed on the way.",
                hint="Multiply the sums by the whole number m, add half, and shift; M itself never meets a tensor.",
            )
    return "The same codes as with floating point, and not one float on the way."


class _FloatWatch(TorchDispatchMode):
    """Notices when an operator returns a tensor of floats."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen = self.seen or (isinstance(result, torch.Tensor) and result.is_floating_point())
        return result


def _are_requantized(found: torch.Tensor, exact: torch.Tensor, zero: int, factor: float) -> None:
    """Raise Wrong unless all but one code in a thousand are those of the exact product, rounded."""

    def matches(codes: torch.Tensor) -> bool:
        return bool((codes != found.double()).double().mean() <= 1e-3)

    right = (exact.round() + zero).clamp(0, 255)
    if matches(right):
        return
    worst = float((found.double() - right).abs().max())
    said = (
        f"With the factor {factor:g} and the zero point {zero}, your codes are up to {worst:.0f} from the right ones."
    )
    if matches((exact.floor() + zero).clamp(0, 255)):
        raise Wrong(said, hint="A shift rounds down. Add 2^(n-1), half of what the shift takes away, before it.")
    if matches((exact.round() + zero) % 256):
        raise Wrong(said, hint="What lies beyond 0 and 255 wraps around in a byte: clamp before you convert.")
    if matches(exact.round().clamp(0, 255)):
        raise Wrong(said, hint="The zero point is missing: add it after the shift, before you clamp.")
    raise Wrong(
        said, hint="m = round(M * 2^n), with n as large as 31 bits allow; 8 or 16 bits of M are too few for large sums."
    )


@exercise("10.3")
def _for_bytes(fold: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> str:
    for mean, std in ((0.1307, 0.3081), (0.5, 0.25)):
        weight, bias = torch.randn(6, 40), torch.randn(6)
        pixels = torch.randint(0, 256, (30, 40)).float()
        given = weight.clone(), bias.clone()
        found = fold(*given, mean, std)
        shapes = [tuple(getattr(part, "shape", ())) for part in found] if isinstance(found, tuple) else repr(found)
        if shapes != [(6, 40), (6,)]:
            raise Wrong(
                f"A weight of shape (6, 40) and a bias of shape (6,) are asked for; yours: {shapes}.",
                hint="The mean shifts each input, so output o feels the sum of its weights: weight.sum(1).",
            )
        expected = torch.nn.functional.linear((pixels / 255 - mean) / std, weight, bias)
        answers = torch.nn.functional.linear(pixels, *found)
        gap = float((answers - expected).abs().max())
        if gap > 1e-3 * float(expected.abs().max()):
            _say_what_is_missing(found, weight, bias, mean, std, gap)
        if not (torch.equal(given[0], weight) and torch.equal(given[1], bias)):
            raise Wrong(
                "The weight or the bias that came in was changed.", hint="Return new tensors; /= and -= change them."
            )
    return "Bytes in, the same outputs, and no standardization left to compute."


def _say_what_is_missing(
    found: tuple[torch.Tensor, torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: float,
    std: float,
    gap: float,
) -> None:
    said = f"For random bytes an output is {gap:.3g} away from the right one."
    shift = (mean / std) * weight.sum(1)
    if torch.allclose(found[0], weight / std, rtol=1e-3):
        raise Wrong(said, hint="A byte is 255 times a pixel from 0 to 1: the weights shrink by that, too.")
    if not torch.allclose(found[0], weight / (255 * std), rtol=1e-3):
        raise Wrong(said, hint="(p / 255 - mean) / std is p times a constant, and a constant: which one multiplies p?")
    if torch.allclose(found[1], bias, rtol=1e-3, atol=1e-4):
        raise Wrong(said, hint="The mean is subtracted from every input: what does that make of the bias?")
    if torch.allclose(found[1], bias + shift, rtol=1e-3, atol=1e-4):
        raise Wrong(said, hint="The mean is *subtracted*: look at the sign in the bias.")
    raise Wrong(said, hint="Input i moves output o by -mean / std times weight[o, i]: add that up over i, once.")


@exercise("10.4")
def _largest_sum(guess: Callable[[int], float], *, terms: int, measured: float) -> str:
    both = within_factor(
        lambda: guess(terms),
        measured,
        factor=4,
        unit="steps",
        too_low="The terms of the largest sum mostly pull one way: some filter sees just what it looks for.",
        too_high="Few codes come near 255 and few weights near 127, and a filter's weights have both signs.",
    )
    return f"{both} 16 bits end at 32,767."
