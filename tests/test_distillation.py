"""The distillation loss against closed forms, and the teacher out of harm's way."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import distillation, training
from helpers.data import Split


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """Sum p log(p / q) with Python's floats, average over the examples, multiply by T²."""
    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = ([math.exp(v / temperature) for v in row] for row in (s_row, t_row))
        total += sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_it_is_the_closed_form(temperature):
    student, teacher = logits(0), logits(1)
    found = distillation.soft_target_loss(student, teacher, temperature=temperature)
    assert found.item() == pytest.approx(by_hand(student, teacher, temperature), rel=1e-9)
    assert distillation.soft_target_loss(teacher, teacher, temperature=temperature).item() == pytest.approx(
        0, abs=1e-12
    )


def test_hot_gradients_are_those_of_matching_centred_logits():
    """Hinton et al. 2015, section 2.1: for a high T the gradient is (z - v) / N; without T² it would vanish."""
    student, teacher = logits(0).requires_grad_(), logits(1)
    distillation.soft_target_loss(student, teacher, temperature=1e4).backward()
    centred = [z - z.mean(1, keepdim=True) for z in (student.detach(), teacher)]
    expected = (centred[0] - centred[1]) / (student.shape[1] * len(student))
    assert torch.allclose(student.grad, expected, rtol=1e-2, atol=1e-4)


def test_taught_by_mixes_soft_targets_and_labels():
    inputs, labels = torch.randn(6, 3), torch.arange(6) % 4
    student, teacher, other = (nn.Linear(3, 4) for _ in range(3))
    loss = distillation.taught_by(teacher, temperature=2.0, share=0.25)(student, inputs, labels)
    soft = by_hand(student(inputs).detach().double(), teacher(inputs).detach().double(), 2.0)
    hard = F.cross_entropy(student(inputs), labels).item()
    assert loss.item() == pytest.approx(0.25 * soft + 0.75 * hard, rel=1e-5)
    assert distillation.taught_by(other, temperature=2.0, share=0.25)(student, inputs, labels) != loss


def test_the_teacher_is_neither_trained_nor_in_training_mode():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4)).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    loss = distillation.taught_by(teacher)
    split = Split(torch.randn(32, 3), torch.arange(32) % 4)
    student = nn.Linear(3, 4)
    assert loss(student, split.inputs, split.labels) == loss(student, split.inputs, split.labels), "dropout is on"
    training.fit(student, split, epochs=2, lr=0.1, batch_size=8, loss=loss, progress=False)
    assert teacher.training and all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"teacher has shape \(5, 3\); allowed: the student's, \(5, 4\)"):
        distillation.soft_target_loss(logits(0), logits(1)[:, :3], temperature=1.0)
    with pytest.raises(ValueError, match=r"temperature=0\.0; allowed: a number above 0"):
        distillation.soft_target_loss(logits(0), logits(1), temperature=0.0)
    with pytest.raises(ValueError, match=r"share=1\.5"):
        distillation.taught_by(nn.Linear(3, 4), share=1.5)
