"""A network's answers, and how many are right."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.core import checks, modules
from helpers.core.modules import channels_last
from helpers.data import Split
from helpers.training.losses import IGNORED, check_labels, logits_of


@dataclass(frozen=True)
class Evaluation:
    """Result of one pass over a split: mean cross-entropy (nats), accuracy (fraction), correct and all labels.

    A split of texts or photographs of which each place has a label counts places; labels `IGNORED` count nowhere.
    """

    loss: float
    accuracy: float
    correct: int
    count: int


def check_split(name: str, split: Split) -> None:
    """Raise ValueError, naming `name`, unless `split` is a Split of two tensors that is not empty."""
    if not isinstance(split, Split):
        raise ValueError(f"{name} is a {type(split).__name__}; allowed: a Split of two tensors")
    checks.not_empty(name, split)
    for part in ("inputs", "labels"):
        if not isinstance(getattr(split, part), Tensor):
            kind = type(getattr(split, part)).__name__
            raise ValueError(f"{name}.{part} is a {kind}; allowed: a tensor (of texts, data.text.as_split makes one)")


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, *, batch_size: int = 250) -> Float[Tensor, "count classes *places"]:
    """Return the logits of all `inputs` on the CPU, computed in evaluation mode; each layer's own mode is restored.

    Images are laid out channels last where the model takes them so, and a model that takes one example at a time gets
    one at a time. Raises ValueError for empty inputs, and unless the model puts out one row for each input.
    """
    if not isinstance(inputs, Tensor):
        raise ValueError(f"inputs is a {type(inputs).__name__}; allowed: a tensor")
    checks.not_empty("inputs", inputs)
    checks.positive("batch_size", batch_size)
    where = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    batches = (batch.to(where) for batch in inputs.split(batch_size))
    with modules.evaluating(model), modules.asked("inputs", inputs):
        ask, first = _way_to_ask(model, next(batches))
        return torch.cat([first, *map(ask, batches)])


Ask = Callable[[Tensor], Tensor]


def _way_to_ask(model: nn.Module, batch: Tensor) -> tuple[Ask, Tensor]:
    """Return the first way that works to ask `model` batches like this one, and what it answers to this one."""

    def plainly(batch: Tensor) -> Tensor:
        return _rows_for(batch, model(batch))

    def laid_out(batch: Tensor) -> Tensor:
        return plainly(channels_last(batch))

    def singly(batch: Tensor) -> Tensor:
        return torch.cat([laid_out(one) for one in batch.split(1)])

    try:
        return laid_out, laid_out(batch)
    except (RuntimeError, ValueError, AssertionError) as error:
        first = error
    for way in (plainly, singly):
        with suppress(RuntimeError, ValueError, AssertionError):
            return way, way(batch)
    raise first


def _rows_for(batch: Tensor, output: Any) -> Tensor:
    logits = logits_of(output).cpu()
    if logits.dim() < 1 or len(logits) != len(batch):
        shape = tuple(logits.shape)
        raise ValueError(f"model puts out shape {shape} for {len(batch)} inputs; allowed: one row for each input")
    return logits


def evaluate(model: nn.Module, split: Split, *, batch_size: int = 250) -> Evaluation:
    """Return loss, accuracy and the number of correct answers on a split, as `compare_with_labels` counts them.

    Raises ValueError as it does, and as `predict` does.
    """
    check_split("split", split)
    return compare_with_labels(predict(model, split.inputs, batch_size=batch_size), split.labels)


def compare_with_labels(logits: Tensor, labels: Tensor) -> Evaluation:
    """Return loss, accuracy and the number of correct answers of these logits.

    Logits may be (count, classes) or (count, classes, ...), with a label for each place. Labels `IGNORED` do not count.
    An answer that holds NaN is wrong, and makes the loss NaN. Raises ValueError as `check_labels` does.
    """
    check_labels(logits, labels)
    correct = int(((logits.argmax(1) == labels) & ~logits.isnan().any(1)).sum())
    count = int((labels != IGNORED).sum())
    loss = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels.long())
    return Evaluation(float(loss), correct / count, correct, count)
