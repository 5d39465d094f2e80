"""Distillation: a loss in which a trained network's softened answers teach another one."""

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import checks
from helpers.training import Loss, device

__all__ = ["soft_target_loss", "taught_by"]


def soft_target_loss(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "_ _"], *, temperature: float
) -> Float[Tensor, ""]:
    """Return T² times the mean Kullback-Leibler divergence, in nats, of the student's answers from the teacher's.

    Both are logits, divided by the temperature T before the softmax. The gradients of the soft targets shrink as 1/T²,
    and the factor keeps them as large as those of the labels (Hinton et al. 2015, "Distilling the knowledge in a neural
    network", section 2).

    Raises ValueError for logits of different shapes or a temperature that is not above 0.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"teacher has shape {tuple(teacher.shape)}; allowed: the student's, {tuple(student.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r}; allowed: a number above 0")
    softened = F.softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(F.log_softmax(student / temperature, dim=1), softened, reduction="batchmean")


def taught_by(teacher: nn.Module, *, temperature: float = 4.0, share: float = 0.9) -> Loss:
    """Return a loss for `training.fit`: `share` of `soft_target_loss`, the rest the labels' cross-entropy.

    The teacher is copied, stays in evaluation mode, and no gradient reaches it. Raises ValueError for a share outside
    [0, 1]; the loss raises what `soft_target_loss` does.
    """
    checks.fraction("share", share, upper_open=False)
    fixed = deepcopy(teacher).eval().requires_grad_(False).to(device()).to(memory_format=torch.channels_last)

    def taught(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        logits = model(inputs)
        soft = soft_target_loss(logits, fixed(inputs).to(logits.dtype), temperature=temperature)
        return share * soft + (1 - share) * F.cross_entropy(logits, labels)

    return taught
