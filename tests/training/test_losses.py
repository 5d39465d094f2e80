"""Tests of `helpers.training.losses`."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import training
from helpers.core import modules
from helpers.data import Split


def by_hand(logits, labels):
    """Loss, correct and count, place by place, with Python's numbers."""
    losses, correct = [], 0
    rows, marks = logits.movedim(1, -1).flatten(0, -2).tolist(), labels.flatten().tolist()
    for row, label in zip(rows, marks, strict=True):
        if label != -100:
            losses.append(math.log(sum(map(math.exp, row))) - row[label])
            correct += max(row) == row[label]
    return sum(losses) / len(losses), correct, len(losses)


@pytest.mark.parametrize("shape", [(7, 5), (2, 10, 20), (3, 5, 4, 4), (2, 3, 2, 2, 2)])
@pytest.mark.parametrize("ignored", [0.0, 0.5])
def test_accuracy_is_the_share_of_the_labels_that_count(shape, ignored):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator)
    labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = -100
    loss, correct, count = by_hand(logits, labels)
    found = training.evaluate(nn.Identity(), Split(logits, labels), batch_size=2)
    assert (found.correct, found.count, found.accuracy) == (correct, count, correct / count)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    value = training.cross_entropy(nn.Identity(), logits, labels)
    assert value.item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("shape", "labels", "words"),
    [
        ((3, 4), torch.full((3,), -100), "labels holds nothing but -100"),
        ((3, 4), torch.tensor([0, 4, 1]), "labels holds 4; allowed: 0 to 3, and -100"),
        ((3, 4), torch.tensor([0, -100, -1]), "labels holds -1; allowed: 0 to 3"),
        ((3, 4), torch.tensor([[0], [1], [2]]), r"labels has shape \(3, 1\); allowed: \(3,\)"),
        ((3, 4, 5), torch.zeros(3, 4).long(), r"labels has shape \(3, 4\); allowed: \(3, 5\) for logits of shape"),
        ((3, 4), torch.zeros(3), "labels holds torch.float32; allowed: whole numbers"),
        ((3, 4), torch.zeros(3) > 1, "labels holds torch.bool; allowed: whole numbers"),
        ((3,), torch.zeros(3).long(), r"logits has shape \(3,\); allowed: \(batch, classes"),
    ],
)
def test_labels_that_no_logits_fit_are_named(shape, labels, words):
    logits = torch.randn(shape)
    with pytest.raises(ValueError, match=words):
        training.evaluate(nn.Identity(), Split(logits, labels))
    for loss in (training.cross_entropy, training.smoothed_cross_entropy):
        with pytest.raises(ValueError, match=words):
            loss(nn.Identity(), logits, labels)


def test_labels_of_other_integers_and_probabilities_of_the_classes_are_labels():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    expected = F.cross_entropy(logits, labels)
    assert training.cross_entropy(nn.Identity(), logits, labels.to(torch.uint8)) == expected
    torch.testing.assert_close(training.cross_entropy(nn.Identity(), logits, F.one_hot(labels).float()), expected)
    smoothed = [training.smoothed_cross_entropy(nn.Identity(), logits, y) for y in (labels, F.one_hot(labels).float())]
    torch.testing.assert_close(*smoothed)
    assert training.evaluate(nn.Identity(), Split(logits, labels.to(torch.uint8))).loss == pytest.approx(expected)


def test_smoothed_cross_entropy_is_its_closed_form():
    logits, labels = torch.randn(6, 10, dtype=torch.float64), torch.arange(6)
    smooth = 0.9 * F.one_hot(labels, 10) + 0.1 / 10
    expected = -(smooth * logits.log_softmax(1)).sum(1).mean()
    assert training.smoothed_cross_entropy(nn.Identity(), logits, labels).item() == pytest.approx(expected.item())


def test_channels_last_moves_bytes_and_no_values():
    images, tokens = torch.randn(2, 3, 4, 5), torch.arange(6).view(2, 3)
    moved = modules.channels_last(images)
    assert torch.equal(moved, images) and moved.is_contiguous(memory_format=torch.channels_last)
    assert modules.channels_last(tokens) is tokens
