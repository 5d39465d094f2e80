"""Losses, and which labels count."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100  # the label of what does not count, as in `F.cross_entropy`
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def cross_entropy(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of a batch, in nats: the loss that `fit` uses unless told otherwise.

    The mean over the labels that are not `IGNORED`. Raises what `logits_of` and `check_labels` raise.
    """
    return _mean_cross_entropy(logits_of(model(inputs)), labels)


def smoothed_cross_entropy(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy with a tenth of each label spread over all classes.

    Label smoothing (Szegedy et al. 2016, "Rethinking the Inception architecture", section 7).
    """
    return _mean_cross_entropy(logits_of(model(inputs)), labels, label_smoothing=0.1)


def _mean_cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    if labels.is_floating_point() and labels.shape == logits.shape:  # probabilities of the classes
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    check_labels(logits, labels)
    return F.cross_entropy(logits, labels.long(), label_smoothing=label_smoothing)


def logits_of(output: Any) -> Tensor:
    """Return a network's answer: the tensor that it put out, or the field `logits` of what it put out.

    Torchvision's GoogLeNet and Inception put out such tuples in training. Raises ValueError for anything else.
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        allowed = "a tensor, or a tuple with a field `logits`; else wrap the model, or give a loss of your own"
        raise ValueError(f"model puts out a {type(output).__name__}; allowed: {allowed}")
    return logits


def check_labels(logits: Float[Tensor, "..."], labels: Tensor) -> None:
    """Raise ValueError unless there is a label, 0 to classes - 1 or `IGNORED`, for each place of the logits.

    Logits are (batch, classes, ...), labels (batch, ...), and one label at least is not `IGNORED`.
    """
    if logits.dim() < 2 or 0 in logits.shape:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; allowed: (batch, classes, ...), none of them 0")
    expected = (logits.shape[0], *logits.shape[2:])
    if tuple(labels.shape) != expected:
        of_which = f"for logits of shape {tuple(logits.shape)}, whose axis 1 is the classes"
        raise ValueError(f"labels has shape {tuple(labels.shape)}; allowed: {expected} {of_which}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise ValueError(f"labels holds {labels.dtype}; allowed: whole numbers")
    low, high = map(int, labels.aminmax())
    if low >= 0 and high < logits.shape[1]:
        return
    counted = labels[labels != IGNORED]
    if counted.numel() == 0:
        raise ValueError(f"labels holds nothing but {IGNORED}, which does not count; allowed: at least one that counts")
    wrong = counted[(counted < 0) | (counted >= logits.shape[1])]
    if wrong.numel():
        allowed = f"0 to {logits.shape[1] - 1}, and {IGNORED} for what does not count"
        raise ValueError(f"labels holds {wrong[0].item()}; allowed: {allowed}")
