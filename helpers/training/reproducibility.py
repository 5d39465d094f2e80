"""Seeds: the same seed, machine and thread count give the same weights."""

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators; ValueError unless 0 ≤ seed < 2³²."""
    random.seed(checked_seed(seed))
    np.random.seed(seed)
    torch.manual_seed(seed)


def checked_seed(seed: int) -> int:
    """Return `seed` if it is a whole number that NumPy takes as well; raise ValueError otherwise."""
    return whole("seed", seed, below=2**32)


def whole(name: str, value: int, *, below: int) -> int:
    """Return `value` if it is a whole number from 0 to `below` - 1; raise ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
        raise ValueError(f"{name}={value!r}; allowed: a whole number from 0 to {below - 1:,}")
    return value
