"""Errors about arguments name the argument, the value and what is allowed."""

import pytest

from helpers import checks


@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 2, float("nan"), "0.5", True, None])
def test_fraction_refuses(value):
    with pytest.raises(ValueError, match=r"amount=.*\[0, 1\)"):
        checks.fraction("amount", value)


def test_fraction_accepts():
    assert checks.fraction("amount", 0) == 0.0
    assert checks.fraction("progress", 1, upper_open=False) == 1.0


def test_choice_lists_what_is_allowed():
    with pytest.raises(ValueError, match=r"profile='fast' is unknown; allowed: 'smoke', 'quick', 'full'"):
        checks.choice("profile", "fast", ["smoke", "quick", "full"])


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_positive_refuses(value):
    with pytest.raises(ValueError, match=r"rounds=.*whole number of at least 1"):
        checks.positive("rounds", value)


def test_not_empty_refuses():
    with pytest.raises(ValueError, match="train is empty"):
        checks.not_empty("train", [])
