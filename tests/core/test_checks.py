"""Errors about arguments name the argument, the value and what is allowed."""

import numpy as np
import pytest
import torch

from helpers.core import checks


@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 2, float("nan"), "0.5", True, None])
def test_fraction_refuses(value):
    with pytest.raises(ValueError, match=r"amount=.*\[0, 1\)"):
        checks.fraction("amount", value)


def test_fraction_accepts():
    assert checks.fraction("amount", 0) == 0.0
    assert checks.fraction("progress", 1, upper_open=False) == 1.0


def test_what_is_allowed_comes_back():
    assert checks.choice("profile", "fast", ["fast"]) == "fast"
    assert checks.positive("rounds", 1) == 1


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
    assert checks.not_empty("train", [0]) == [0]


@pytest.mark.parametrize("value", [2, 2.0, True + 1, np.float32(2), np.array(2), torch.tensor([2.0])])
def test_numbers_of_any_library_become_floats(value):
    assert checks.as_float("own", value) == 2.0 and type(checks.as_float("own", value)) is float


@pytest.mark.parametrize("value", ["2", b"2", None, [2.0], torch.ones(2), 10**400])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="own=.* is not a number; allowed: a finite number"):
        checks.as_float("own", value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, -1.0, "1", True, None])
def test_number_refuses(value):
    with pytest.raises(ValueError, match=r"lr=.*allowed: a finite number above 0"):
        checks.number("lr", value, above=0)


def test_number_accepts_its_bounds():
    assert checks.number("macs", 1, at_least=1) == 1
    assert checks.number("value", -2.5) == -2.5
    with pytest.raises(ValueError, match="macs=0; allowed: a finite number at least 1"):
        checks.number("macs", 0, at_least=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_finite_refuses(make, value):
    with pytest.raises(ValueError, match="scores holds NaN or infinity"):
        checks.finite("scores", make([0.0, value]))
    assert len(checks.finite("scores", make([1, 2]))) == 2


@pytest.mark.parametrize("value", [-1, 2**63, 1.0, True, None, "1"])
def test_seed_refuses(value):
    with pytest.raises(ValueError, match="seed=.*; allowed: a whole number of at least 0"):
        checks.seed("seed", value)
    assert checks.seed("seed", 0) == 0
