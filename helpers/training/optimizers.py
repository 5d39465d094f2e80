"""Optimizers and the learning rate's way."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


def parameter_groups(model: nn.Module, lr_factors: Mapping[str, float] | None) -> dict[float, list[nn.Parameter]]:
    """Return the parameters to be trained by the factor on their learning rate: that of the longest name that fits."""
    groups: dict[float, list[nn.Parameter]] = {}
    factors = lr_factors or {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            fitting = [module for module in factors if name.startswith(f"{module}.")]
            groups.setdefault(factors[max(fitting, key=len)] if fitting else 1.0, []).append(parameter)
    return groups


def _param_groups(model: nn.Module, lr_factors: Mapping[str, float] | None) -> list[dict[str, Any]]:
    return [{"params": parameters} for parameters in parameter_groups(model, lr_factors).values()]


def _sgd(model: nn.Module, lr: float, lr_factors: Mapping[str, float] | None = None) -> torch.optim.Optimizer:
    groups = _param_groups(model, lr_factors)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)


def _adam(model: nn.Module, lr: float, lr_factors: Mapping[str, float] | None = None) -> torch.optim.Optimizer:
    return torch.optim.Adam(_param_groups(model, lr_factors), lr=lr, fused=True)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": _adam, "sgd": _sgd}


def learning_rate(progress: float, *, peak: float, warmup: float) -> float:
    """Linear warm-up to `peak`, then half a cosine down to zero (Loshchilov and Hutter 2017, section 3)."""
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + float(np.cos(np.pi * (progress - warmup) / (1 - warmup))))
