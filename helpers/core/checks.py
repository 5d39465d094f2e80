"""Checks of arguments: every error names the argument, the value and what is allowed. Standard library only."""

import math
from collections.abc import Iterable, Sized
from typing import Any, TypeVar


def as_float(name: str, value: Any) -> float:
    """Return a number of Python, NumPy or PyTorch, which may be NaN; ValueError for everything else."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name}={value!r} is not a number; allowed: a finite number") from None


T = TypeVar("T")
S = TypeVar("S", bound=Sized)


def fraction(name: str, value: float, *, upper_open: bool = True) -> float:
    """Return `value` if it lies in [0, 1), or in [0, 1] with `upper_open=False`; raise ValueError otherwise."""
    allowed = "[0, 1)" if upper_open else "[0, 1]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}={value!r} is not a number; allowed: a fraction in {allowed}")
    if not 0 <= value <= 1 or (upper_open and value == 1):
        raise ValueError(f"{name}={value!r} is outside {allowed}")
    return float(value)


def choice(name: str, value: T, allowed: Iterable[T]) -> T:
    """Return `value` if it is one of `allowed`; raise ValueError otherwise."""
    options = list(allowed)
    if value not in options:
        raise ValueError(f"{name}={value!r} is unknown; allowed: {', '.join(map(repr, options))}")
    return value


def positive(name: str, value: int) -> int:
    """Return `value` if it is a whole number of at least 1; raise ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}; allowed: a whole number of at least 1")
    return value


def seed(name: str, value: int) -> int:
    """Return `value` if it is a whole number from 0 to 2^63 - 1; raise ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{name}={value!r}; allowed: a whole number of at least 0")
    return value


def not_empty(name: str, value: S) -> S:
    """Return `value` if it has at least one element; raise ValueError otherwise."""
    if len(value) == 0:
        raise ValueError(f"{name} is empty; allowed: at least one element")
    return value


def number(name: str, value: float, *, above: float = -math.inf, at_least: float = -math.inf) -> float:
    """Return `value` if it is a finite number above `above` and at least `at_least`; raise ValueError otherwise."""
    limits = {"above": above, "at least": at_least}
    said = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit > -math.inf)
    allowed = f"a finite number {said}".rstrip()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}={value!r} is not a number; allowed: {allowed}")
    if not (math.isfinite(value) and value > above and value >= at_least):
        raise ValueError(f"{name}={value!r}; allowed: {allowed}")
    return value


def finite(name: str, values: Any) -> Any:
    """Return `values`, a tensor or an array, if all are finite; raise ValueError otherwise."""
    if not bool((abs(values) < math.inf).all()):  # also for NaN
        raise ValueError(f"{name} holds NaN or infinity; allowed: finite numbers")
    return values
