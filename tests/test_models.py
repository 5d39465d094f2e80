"""The networks have the literature's shapes."""

import torch

from helpers import models


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
