"""Plausible wrong answers to the exercises of notebook 03, each with words of its own hint."""

import torch

from tests.exercises.examples import Case


def _first_order_forwards(weight, bias, weight_gradient, bias_gradient):
    return (weight * weight_gradient).flatten(1).sum(1) + bias * bias_gradient


def _first_order_without_bias(weight, bias, weight_gradient, bias_gradient):
    return -(weight * weight_gradient).flatten(1).sum(1)


def _first_order_of_magnitudes(weight, bias, weight_gradient, bias_gradient):
    return (weight * weight_gradient).abs().flatten(1).sum(1) + (bias * bias_gradient).abs()


def _strongest(product, size):
    v = torch.randn(size, dtype=torch.float64)
    for _ in range(500):
        v = product(v / v.norm())
    v = v / v.norm()
    return float(v @ product(v))


def _shifted(product, size):
    top = _strongest(product, size)
    return _strongest(lambda v: product(v) - top * v, size)


CASES = {
    "03.1": Case(
        [
            (lambda w, g, h: g * w + h * w**2 / 2, "a step of -w"),
            (lambda w, g, h: -g * w + h * w**2, "half of h"),
            (lambda w, g, h: -g * w, "straight line"),
            (lambda w, g, h: abs(w), "Two terms"),
        ]
    ),
    "03.2": Case(
        [
            (_first_order_forwards, "a step of -w"),
            (_first_order_without_bias, "adds no bias"),
            (_first_order_of_magnitudes, "take no magnitudes"),
            (lambda weight, bias, *_: -(weight * weight), "flatten(1)"),
        ]
    ),
    "03.3": Case(
        [
            (_strongest, "all eigenvalues move down"),
            (_shifted, "add back"),
            (lambda product, size: _shifted(product, size) + _strongest(product, size), "magnitude is negative"),
        ]
    ),
    "03.4": Case([(lambda: 5, "do the same work"), (lambda: 100, "only correct")], {"measured": 47}),
}
