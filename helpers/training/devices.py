"""Training on several devices, on one machine or more: `torchrun` starts the processes, `accelerate` joins them.

    torchrun --nproc-per-node 2 -m helpers train cifar_small

`fit` is `training.fit` for that case, and nothing but `training.fit` in a process that torchrun has not started. Every
process draws the same batches with the same augmentation, computes loss and gradients on its share of each batch, and
steps with the mean of all gradients. So the batch size, the learning rate and the number of steps are those of one
process, and after each step all processes hold the same network, bit for bit.

The weights are those of one process up to rounding, with two exceptions. BatchNorm normalizes each share by itself, as
if batches were smaller, and the running statistics are those of the first process's shares. Dropout draws the same
pattern for each share.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helpers.core import checks, modules
from helpers.data import Split
from helpers.training import code, loop, losses, precision


def count() -> int:
    """Return how many processes train together: 1, unless torchrun started this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Return whether this process is the one that writes: true, unless torchrun started it beside others."""
    return int(os.environ.get("RANK", "0")) == 0


def fit(
    model: nn.Module,
    train: Split,
    *,
    batch_size: int = 128,
    loss: losses.Loss = losses.cross_entropy,
    on_step: loop.OnStep | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
    **options: Any,
) -> loop.Fitted:
    """Return what `training.fit` does, trained by all the processes that torchrun has started.

    Args:
        model: any module, as in `training.fit`; the first process's weights are those that all begin with.
        train: all training examples, in every process.
        batch_size: examples per step, of all processes together.
        loss: function of (model, inputs, labels) that returns a mean over the examples. Of the model it may only ask
            the outputs: it is wrapped (`DistributedDataParallel`).
        on_step: called in every process, where the model is the same.
        checkpoint: file that the first process writes; all resume from it.
        progress: show a progress bar, in the first process.
        options: all others are handed to `training.fit`.

    Raises:
        ValueError: as in `training.fit`, `batch_size` is no multiple of the number of processes, or the loss does not
            depend on all parameters that are to be trained.
    """
    checks.positive("batch_size", batch_size)
    options |= {"batch_size": batch_size}
    if count() == 1:
        return loop.fit(model, train, loss=loss, on_step=on_step, checkpoint=checkpoint, progress=progress, **options)
    if batch_size % count():
        raise ValueError(f"batch_size={batch_size}; allowed: a multiple of the {count()} processes")
    accelerator = _accelerator()
    model = _of_first(model, accelerator)

    def together(new: nn.Module, at: loop.StepInfo) -> None:
        _take_buffers_of_first(new)
        if on_step is not None:
            on_step(new, at)

    with tempfile.TemporaryDirectory() as folder:
        return loop.fit(
            model,
            train,
            loss=_shared(loss, accelerator),
            on_step=code.StandIn(together, on_step),
            checkpoint=_own_state(checkpoint, Path(folder)) if checkpoint is not None else None,
            progress=progress and is_first(),
            **options,
        )


def _accelerator() -> Any:
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # Buffers are made equal after each step instead, so that no process is left with its own after the last one.
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    return Accelerator(cpu=precision.device().type == "cpu", kwargs_handlers=handlers)


def _synchronized(model: nn.Module, accelerator: Any) -> nn.Module:
    """Return `model` so wrapped that a backward pass leaves in each process the mean of all gradients."""
    return accelerator.prepare_model(model)


def _shared(loss: losses.Loss, accelerator: Any) -> losses.Loss:
    """Return a loss of this process's share: its value is that of the whole batch, its gradient that of the share."""
    wrapped: dict[nn.Module, nn.Module] = {}  # `fit` makes the copy that it trains, so it is known only here

    def share(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        if model not in wrapped:
            wrapped.clear()
            wrapped[model] = _synchronized(model, accelerator)
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        try:
            value = loss(wrapped[model], inputs[mine], labels[mine])
        except RuntimeError as error:
            if "finished reduction in the prior iteration" not in str(error):
                raise
            allowed = "on several devices only such: freeze the others (requires_grad_(False))"
            raise ValueError(f"model has parameters on which the loss does not depend; allowed {allowed}") from error
        return value + (accelerator.reduce(value.detach(), "mean") - value.detach())

    # Part of the state's fingerprint: one process rounds otherwise, and must not go on with a state of several.
    return code.StandIn(share, (loss, count()))


def _of_first(model: nn.Module, accelerator: Any) -> nn.Module:
    """Return a copy of the first process's model: also a state is resumed by what the model was."""
    from accelerate.utils import broadcast

    copy = modules.copied(model).to(accelerator.device)
    with torch.no_grad():
        for value in copy.state_dict().values():
            if isinstance(value, Tensor):  # and no extra state
                value.copy_(broadcast(value))
    return copy


def _take_buffers_of_first(model: nn.Module) -> None:
    from accelerate.utils import broadcast

    for buffer in model.buffers():
        buffer.copy_(broadcast(buffer))


def _own_state(checkpoint: Path, folder: Path) -> Path:
    """Return where this process keeps the training's state; each begins with what the first one has, if anything."""
    from accelerate.utils import broadcast_object_list

    content = [checkpoint.read_bytes() if is_first() and checkpoint.exists() else None]
    broadcast_object_list(content)
    if is_first():
        return checkpoint
    own = folder / checkpoint.name
    if content[0] is not None:
        own.write_bytes(content[0])
    return own
