"""The networks have the literature's shapes."""

import pytest
import torch
from torch import nn

from helpers import measure, models


def test_lenet5_has_the_literatures_parameters():
    sizes = {name: parameter.numel() for name, parameter in models.lenet5().named_parameters()}
    by_hand = {
        "conv1": (20 * 25, 20),
        "conv2": (50 * 20 * 25, 50),
        "fc1": (800 * 500, 500),
        "fc2": (500 * 10, 10),
    }
    for layer, (weight, bias) in by_hand.items():
        assert (sizes[f"{layer}.weight"], sizes[f"{layer}.bias"]) == (weight, bias)
    assert sum(sizes.values()) == 431_080


def test_lenet_300_100_has_the_literatures_parameters():
    assert sum(p.numel() for p in models.lenet_300_100().parameters()) == 266_610


def test_networks_give_ten_logits_per_image():
    images = torch.randn(3, 1, 28, 28)
    for build in (models.lenet5, models.lenet_300_100):
        assert build()(images).shape == (3, 10)


@pytest.mark.parametrize(
    "build, widths",
    [
        (models.cifar_base, (32, 64, 128, 256)),
        (models.cifar_small, (16, 24, 48, 96)),
        (models.cifar_thin, (16, 48, 96, 160)),
        (models.cifar_half, (12, 16, 32, 72)),
    ],
)
def test_cifar_nets_multiply_as_often_as_by_hand(build, widths):
    a, b, c, d = widths
    by_hand = 9 * (3 * a + a * b) * 32**2 + 9 * (2 * b * b + b * c) * 16**2 + 9 * c * d * 8**2 + 9 * 2 * d * d * 4**2
    assert measure.count_macs(build(), torch.randn(2, 3, 32, 32)) == by_hand + 10 * d


def test_the_cheap_alternatives_cost_what_they_stand_beside():
    image = torch.randn(1, 3, 32, 32)
    base, small, thin, half = (
        measure.count_macs(build(), image)
        for build in (models.cifar_base, models.cifar_small, models.cifar_thin, models.cifar_half)
    )
    assert 50e6 <= base <= 100e6 and small <= 15e6
    assert base / thin == pytest.approx(2.1, abs=0.05) and small / half == pytest.approx(2, abs=0.02)


def test_the_residual_adds_its_input():
    block = models.Residual(4)
    nn.init.zeros_(block.block2.bn.weight)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)
