"""Tests of `helpers.training.optimizers`."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import training
from helpers.data import Split
from helpers.training import optimizers
from tests.training.training_examples import net, same


@pytest.fixture
def blobs() -> Split:
    """Two classes that a linear layer can tell apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    inputs = torch.randn(64, 1, 4, 4, generator=generator) + 3.0 * labels[:, None, None, None]
    return Split(inputs, labels)


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_it_learns_and_leaves_the_model_alone(blobs, optimizer):
    model = net()
    before = deepcopy(model)
    fitted = training.fit(model, blobs, epochs=10, lr=0.05, optimizer=optimizer, batch_size=16, progress=False)
    assert same(model, before) and not same(fitted.model, before)
    assert training.evaluate(fitted.model, blobs).accuracy == 1.0
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]
    assert not fitted.model.training


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_the_rate_is_the_given_one_until_a_schedule_says_otherwise(optimizer):
    rule = training.OPTIMIZERS[optimizer](net(), 0.07, {"1": 0.5})
    assert [group["lr"] for group in rule.param_groups] == [0.07, 0.07]


def test_learning_rate_rises_linearly_and_falls_along_a_cosine():
    rate = optimizers.learning_rate
    assert rate(0.05, peak=2.0, warmup=0.1) == pytest.approx(1.0)
    assert rate(0.1, peak=2.0, warmup=0.1) == pytest.approx(2.0)
    assert rate(0.55, peak=2.0, warmup=0.1) == pytest.approx(1.0)
    assert rate(1.0, peak=2.0, warmup=0.1) == pytest.approx(0.0)


def first_step(model, blobs, **options):
    """Return by how much the first step of a training moves each parameter."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    moved = {}

    def keep(new, at):
        if at.step == 1:
            moved.update({name: parameter.detach() - before[name] for name, parameter in new.named_parameters()})

    training.fit(model, blobs, epochs=2, lr=0.1, batch_size=64, on_step=keep, progress=False, **options)
    return moved


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_factors_scale_the_first_step_and_the_longest_name_decides(blobs, optimizer):
    torch.manual_seed(0)
    stage = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8))
    model = nn.Sequential(nn.Flatten(), stage, nn.Linear(8, 4), nn.Linear(4, 2))
    plain = first_step(model, blobs, optimizer=optimizer)
    scaled = first_step(model, blobs, optimizer=optimizer, lr_factors={"1": 0.25, "1.1": 0.5})
    factors = {"1.0": 0.25, "1.1": 0.5, "2": 1.0, "3": 1.0}
    for name, step in plain.items():
        assert step.abs().max() > 0
        torch.testing.assert_close(scaled[name], factors[name.rpartition(".")[0]] * step, rtol=1e-3, atol=1e-6)


def test_images_are_laid_out_as_a_loop_by_hand_does_it(blobs):
    """Bit for bit, and of one channel too, where `contiguous` would leave the strides as they were."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(4, 2))
    mine = deepcopy(model).to(memory_format=torch.channels_last)
    rule = torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for step in range(4):
        rule.param_groups[0]["lr"] = optimizers.learning_rate((step + 1) / 4, peak=0.1, warmup=0.0)
        rule.zero_grad()
        F.cross_entropy(mine(blobs.inputs), blobs.labels).backward()
        rule.step()

    def in_order(train, batch_size, generator):
        return [torch.arange(64)]

    options = {"epochs": 4, "lr": 0.1, "batch_size": 64, "warmup": 0.0, "batching": in_order, "progress": False}
    strides = []
    found = training.fit(model, blobs, on_step=lambda new, _: strides.append(new[0].weight.stride()), **options).model
    assert same(found, mine) and strides[0] == mine[0].weight.stride() and found[0].weight.is_contiguous()
