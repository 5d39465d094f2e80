"""What each technique does with networks of other kinds: right, or refused by name (`zoo.py` has all of them)."""

import pytest

from tests import zoo

SHORT = [name for name in zoo.TECHNIQUES if name not in ("export", "int8")]
CASES = [(network, technique) for network in zoo.SMALL for technique in SHORT]
SLOW = [("dictionary", "export"), ("autoencoder", "int8"), ("shared", "int8")]  # seconds each


@pytest.mark.parametrize(("network", "technique"), CASES)
def test_right_or_refused(network, technique):
    kind, said = zoo.outcome(network, technique)
    assert kind in ("right", "refused"), said


@pytest.mark.slow
@pytest.mark.parametrize(("network", "technique"), SLOW)
def test_exported_right_or_refused(network, technique):
    kind, said = zoo.outcome(network, technique)
    assert kind in ("right", "refused"), said


@pytest.mark.parametrize("network", ["lenet5", "cifar_half", "viewed", "unet", "shared", "conv3d"])
@pytest.mark.parametrize("technique", SHORT)
def test_nothing_is_refused_without_need(network, technique):
    assert zoo.outcome(network, technique)[0] == "right"
