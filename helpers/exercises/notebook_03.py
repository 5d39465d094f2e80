"""The exercises of notebook 03."""

import math
from collections.abc import Callable

import torch

from helpers.exercises.checking import Wrong, exercise, within_factor


@exercise("03.1")
def _predicted_change(change: Callable[[float, float, float], float]) -> str:
    for w, g, h in ((2.0, 0.5, 3.0), (-1.0, 0.25, -2.0), (0.5, -4.0, 1.0)):
        found = change(w, g, h)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise Wrong(f"Three numbers go in, one should come out; yours is {found!r}.", hint="return a number.")
        first, second = -g * w, h * w**2 / 2
        if math.isclose(found, first + second):
            continue
        said = f"w = {w:g}, g = {g:g}, h = {h:g}: the formula gives {first + second:g}, not {found:g}."
        if math.isclose(found, -first + second):
            raise Wrong(
                said, hint="From w to 0 is a step of -w, and the slope times the step is negative when both agree."
            )
        if math.isclose(found, first + 2 * second):
            raise Wrong(said, hint="The curvature's term is the half of h times the square of the step.")
        if math.isclose(found, first):
            raise Wrong(said, hint="That is the straight line. The loss bends: add the term with h.")
        raise Wrong(said, hint="Two terms: minus g times w, and half of h times w squared.")
    return "Slope times step, and half the curvature times the step squared."


@exercise("03.2")
def _first_order(estimate: Callable[..., torch.Tensor]) -> str:
    for filters, inputs in ((4, 2), (3, 5)):
        weight, slope = torch.randn(2, filters, inputs, 3, 3)
        bias, bias_slope = torch.randn(2, filters)
        found = estimate(weight.clone(), bias.clone(), slope.clone(), bias_slope.clone())
        if not isinstance(found, torch.Tensor) or found.shape != (filters,):
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else repr(found)
            raise Wrong(
                f"There are {filters} filters and should be as many predictions; yours: {shape}.",
                hint="Sum over everything that belongs to one filter: flatten(1), then sum(1). The bias is (filters,).",
            )
        of_weights = torch.tensor(
            [
                sum(w * g for w, g in zip(row.flatten().tolist(), slopes.flatten().tolist(), strict=True))
                for row, slopes in zip(weight, slope, strict=True)
            ]
        )
        expected = -(of_weights + bias * bias_slope)
        if torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
            continue
        if torch.allclose(found, -expected, rtol=1e-4, atol=1e-4):
            raise Wrong(
                "Every sign is the wrong way round.",
                hint="Going from w to 0 is a step of -w. The slope times the step is the change.",
            )
        if torch.allclose(found.abs(), of_weights.abs(), rtol=1e-4, atol=1e-4):
            raise Wrong(
                "That is what the weights contribute, without the bias.",
                hint="A filter that is gone adds no bias either: subtract its bias times the bias's gradient.",
            )
        raise Wrong(
            "The predictions are not the slopes times the steps, summed over each filter.",
            hint="Multiply first, sum then, and take no magnitudes: what helps and what harms may cancel.",
        )
    return "A sum over the whole filter, with its sign: the derivative with respect to its gate."


@exercise("03.4")
def _matter_more(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        max(measured, 1.0),
        factor=1.5,
        unit="% of the other filters",
        too_low="Where two filters do the same work, either can go. Not both: the one that stays has become precious.",
        too_high="Some filters only correct the one that is gone: without it they have less to do.",
    )


@exercise("03.3")
def _smallest_eigenvalue(smallest: Callable[..., float]) -> str:
    basis = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    for values in ([5.0, 3.0, 1.0, 0.5, -2.0], [9.0, 6.0, 5.0, 4.0, 3.0], [2.0, 1.0, 0.0, -1.0, -6.0]):
        matrix = basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T
        found = float(smallest(lambda v, matrix=matrix: matrix @ v, 5))
        expected, strongest = min(values), max(values, key=abs)
        if abs(found - expected) <= 0.01 * abs(expected):
            continue
        said = f"For the eigenvalues {', '.join(f'{v:g}' for v in values)} you get {found:.3g}."
        if abs(found - (expected - strongest)) <= 0.05:
            raise Wrong(
                said, hint="You found the smallest eigenvalue of the shifted matrix: add back what you subtracted."
            )
        if strongest == expected:
            raise Wrong(said, hint="Here the eigenvalue of largest magnitude is negative. What did you look for, then?")
        raise Wrong(
            said,
            hint="Subtract the largest eigenvalue times v from the product: all eigenvalues move down by that much.",
        )
    return "One shift, and the far end of the spectrum becomes the near one."
