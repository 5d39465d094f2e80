"""Remove whole residual blocks; let BatchNorm see the data again."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from helpers import nets
from helpers.core import checks
from helpers.core.modules import channels_last, copied, evaluating, takes_channels_last
from helpers.pruning.coupling import first_line


def remove_block(model: nn.Module, name: str) -> nn.Module:
    """Return a copy in which the residual block `name` is replaced by the identity: x + f(x) becomes x.

    Possible where the block's input and output have the same shape: each `nets.Residual`, and torchvision's
    ResNet blocks without a convolution on the shortcut. Raises ValueError for any other name.
    """
    new = copied(model)
    blocks = [name for name, module in new.named_modules(remove_duplicate=False) if _is_residual(module)]
    checks.choice("name", name, blocks)
    parent, _, attribute = name.rpartition(".")
    setattr(new.get_submodule(parent), attribute, nn.Identity())
    return new


def _is_residual(module: Any) -> bool:
    from torchvision.models.resnet import BasicBlock, Bottleneck

    if isinstance(module, BasicBlock | Bottleneck):
        return module.downsample is None
    return isinstance(module, nets.Residual)


@torch.no_grad()
def refresh_batchnorm(model: nn.Module, inputs: Shaped[Tensor, "count ..."], *, batch_size: int = 500) -> nn.Module:
    """Return a copy whose BatchNorm layers have the mean and variance of what reaches them now, for these inputs.

    They are averaged over all batches, each counted by its size. Everything else is unchanged, dropout is off
    meanwhile, and each layer's own mode and momentum are restored. Frozen BatchNorm layers are refreshed as well.

    Batches are about equally large, and none is of a single example unless `batch_size` or the inputs are 1.

    Raises ValueError if `inputs` holds NaN or infinity, or a BatchNorm gets one number only, which has no variance.
    """
    checks.not_empty("inputs", inputs)
    checks.positive("batch_size", batch_size)
    if inputs.is_floating_point():
        checks.finite("inputs", inputs)
    new = copied(model)
    norms = [module for module in new.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    where = next((tensor.device for tensor in chain(new.parameters(), new.buffers())), inputs.device)
    count = math.ceil(len(inputs) / batch_size)
    batches = inputs.tensor_split(count if batch_size == 1 else max(1, min(count, len(inputs) // 2)))
    fast = takes_channels_last(new, batches[-1][:2].to(where))
    with _refreshing(new, norms):
        seen = 0
        for batch in batches:
            seen += len(batch)
            for norm in norms:
                norm.momentum = len(batch) / seen
            _see(new, channels_last(batch.to(where)) if fast else batch.to(where))
    return new


def _see(model: nn.Module, batch: Tensor) -> None:
    try:
        model(batch)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"inputs in batches of {len(batch)} cannot refresh this model ({first_line(error)})"
        ) from error


@contextmanager
def _refreshing(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
