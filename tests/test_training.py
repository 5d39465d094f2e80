"""The training loop: repeatable, resumable, honest about bad arguments, and gentle with the model that came in."""

import json
import math
import sys
import threading
from collections import namedtuple
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm

from helpers import distillation, pruning, training
from helpers.data import Split


@pytest.fixture
def blobs() -> Split:
    """Two classes that a linear layer can tell apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    inputs = torch.randn(64, 1, 4, 4, generator=generator) + 3.0 * labels[:, None, None, None]
    return Split(inputs, labels)


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 2))


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_it_learns_and_leaves_the_model_alone(blobs, optimizer):
    model = net()
    before = deepcopy(model)
    fitted = training.fit(model, blobs, epochs=10, lr=0.05, optimizer=optimizer, batch_size=16, progress=False)
    assert same(model, before) and not same(fitted.model, before)
    assert training.evaluate(fitted.model, blobs).accuracy == 1.0
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]
    assert not fitted.model.training


def test_a_model_in_evaluation_mode_is_trained_in_training_mode(blobs):
    options = {"epochs": 2, "lr": 0.05, "batch_size": 16, "progress": False}
    expected = training.fit(net(), blobs, **options)
    found = training.fit(net().eval(), blobs, validation=blobs, **options)
    assert same(found.model, expected.model) and [row["epoch"] for row in found.history] == [1, 2]


def test_an_error_after_the_first_step_ends_the_training(blobs):
    calls = []

    def loss(model, inputs, labels):
        calls.append(len(calls))
        if len(calls) == 3:
            raise RuntimeError("the disk is on fire")
        return F.cross_entropy(model(inputs), labels)

    with pytest.raises(RuntimeError, match="the disk is on fire"):
        training.fit(net(), blobs, epochs=2, lr=0.05, batch_size=16, loss=loss, progress=False)
    assert calls == [0, 1, 2]


def test_same_seed_same_weights_and_global_state_untouched(blobs):
    options = {"epochs": 3, "lr": 0.05, "batch_size": 16, "augment": training.random_shift, "progress": False}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = training.fit(net_like := net(), blobs, seed=3, **options).model
    torch.manual_seed(5)
    training.fit(net_like, blobs, seed=3, **options)
    assert torch.equal(torch.rand(3), expected), "fit disturbed the global generator"
    assert same(first, training.fit(net_like, blobs, seed=3, **options).model)
    assert not same(first, training.fit(net_like, blobs, seed=4, **options).model)


class Killed(Exception):
    pass


def test_an_interrupted_training_ends_with_the_same_weights(blobs, tmp_path):
    model = net()
    file = tmp_path / "state.pt"
    options = {"epochs": 4, "lr": 0.05, "optimizer": "adam", "batch_size": 16, "progress": False}
    whole = training.fit(model, blobs, **options)

    def die(_, at):
        if at.step == 10:  # in the third of four epochs
            raise Killed

    with pytest.raises(Killed):
        training.fit(model, blobs, checkpoint=file, on_step=training.watching(die), **options)
    resumed_at, seconds = [], training.resumed_seconds()
    watch = training.watching(lambda _, at: resumed_at.append(at.step))
    resumed = training.fit(model, blobs, checkpoint=file, on_step=watch, **options)
    assert resumed_at[0] == 9, "the two finished epochs were trained again"
    assert same(resumed.model, whole.model)
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]
    assert training.resumed_seconds() - seconds == pytest.approx(sum(row["seconds"] for row in resumed.history[:2]))


def halve(model, at):
    model[1].bias.data /= 2


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.04},
        {"on_step": halve},
        {"seed": 9},
        {"key": "other"},
        {"epochs": 3},
        {"lr_factors": {"1": 0.5}},
        {"precision": "bfloat16"},
        {"warmup": 0.5},
        {"batch_size": 8},
        {"optimizer": "adam"},
        {"augment": training.random_shift},
        {"loss": training.smoothed_cross_entropy},
    ],
)
def test_a_state_of_another_training_is_not_resumed(blobs, tmp_path, change):
    file = tmp_path / "state.pt"
    options = {"epochs": 2, "lr": 0.05, "batch_size": 16, "progress": False}
    training.fit(net(), blobs, checkpoint=file, **options)
    fresh = training.fit(net(), blobs, **(options | change))
    assert same(training.fit(net(), blobs, checkpoint=file, **(options | change)).model, fresh.model)


def test_a_state_of_fewer_examples_or_of_other_weights_is_not_resumed(blobs, tmp_path):
    options = {"epochs": 2, "lr": 0.05, "batch_size": 16, "progress": False}
    training.fit(net(), blobs.take(48), checkpoint=tmp_path / "state.pt", **options)
    fresh = training.fit(net(), blobs, **options).model
    assert same(training.fit(net(), blobs, checkpoint=tmp_path / "state.pt", **options).model, fresh)
    other = net()
    other[1].bias.data[0] += 1
    fresh = training.fit(other, blobs, **options).model
    assert same(training.fit(other, blobs, checkpoint=str(tmp_path / "state.pt"), **options).model, fresh)


def damaged(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 255])
    return {
        "empty": b"",
        "rubbish": b"not a state" * 100,
        "cut": content[:middle],
        "one byte changed": content[:middle] + flipped + content[middle + 1 :],
    }


@pytest.mark.parametrize("how", damaged(b"12"))
def test_a_damaged_state_is_named_and_the_training_starts_afresh(blobs, tmp_path, capsys, how):
    """A byte in the middle lies in a weight or its momentum: nothing but the checksum would notice."""
    file = tmp_path / "state.pt"
    options = {"epochs": 2, "lr": 0.05, "batch_size": 16, "progress": False}
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 400), nn.ReLU(), nn.Linear(400, 2))
    whole = training.fit(model, blobs, checkpoint=file, **options).model
    file.write_bytes(damaged(file.read_bytes())[how])
    steps = []
    watch = training.watching(lambda _, at: steps.append(at.step))
    found = training.fit(model, blobs, checkpoint=file, on_step=watch, **options)
    assert same(found.model, whole) and len(steps) == 8
    assert f"{file} is damaged; the training starts afresh" in capsys.readouterr().err
    training.fit(model, blobs, checkpoint=file, on_step=watch, **options)
    assert len(steps) == 8 and not capsys.readouterr().err, "the damaged file was not replaced"


class Steps:
    """Counts the steps that trainings take, as an observer that `fit` need not know."""

    def __init__(self):
        self.taken = 0

    def __call__(self, model, at):
        self.taken += 1


def steps_of(model, split, file, **options):
    """Train two epochs, and return how many of their steps were not found done in `file`."""
    steps = Steps()
    options = {"epochs": 2, "lr": 0.05, "batch_size": 16, "on_step": training.watching(steps)} | options
    training.fit(model, split, checkpoint=file, progress=False, **options)
    return steps.taken


def softened(temperature):
    def loss(model, inputs, labels):
        return F.cross_entropy(model(inputs) / temperature, labels)

    return loss


def scaled(model, inputs, labels, factor=1.0):
    return factor * F.cross_entropy(model(inputs), labels)


def scaled_otherwise(model, inputs, labels, factor=2.0):
    return factor * F.cross_entropy(model(inputs), labels)


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, model, inputs, labels):
        return scaled(model, inputs, labels, factor=self.factor)


def teacher(weight=0.0):
    layers = net()
    layers[4].weight.data[0, 0] += weight
    return layers


CHANGES = {
    "closure": lambda new: {"loss": softened(2.0 + new)},
    "partial": lambda new: {"loss": partial(scaled, factor=1.0 + new)},
    "default": lambda new: {"loss": scaled_otherwise if new else scaled},
    "attribute": lambda new: {"loss": Scaled(1.0 + new)},
    "bound method": lambda new: {"loss": Scaled(1.0 + new).__call__},
    "teacher": lambda new: {"loss": distillation.taught_by(teacher(weight=0.01 * new))},
    "temperature of a teacher": lambda new: {"loss": distillation.taught_by(teacher(), temperature=4.0 + new)},
    "augmentation": lambda new: {"augment": partial(training.random_shift, pixels=1 + new)},
    "callback": lambda new: {"on_step": pruning._gradual(0.5 + 0.1 * new, 0.1, 0.5, 2), "optimizer": "adam"},
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_function_computes_with_decides_whether_a_training_is_resumed(blobs, tmp_path, what):
    file, model, seen = tmp_path / "state.pt", net(), []
    if what == "callback":
        model = pruning.mask(model, {name: weight != 9 for name, weight in pruning.weights_of(model).items()})
    for new in (0, 0, 1, 1):
        before = training.resumed_seconds()
        options = {"epochs": 2, "lr": 0.05, "batch_size": 16, "progress": False} | CHANGES[what](new)
        training.fit(model, blobs, checkpoint=file, **options)
        seen.append(training.resumed_seconds() > before)
    assert seen == [False, True, False, True]


def test_one_pixel_or_one_label_makes_another_training(blobs, tmp_path):
    file = tmp_path / "state.pt"
    assert [steps_of(net(), blobs, file) for _ in range(2)] == [8, 0]
    inputs, labels = blobs.inputs.clone(), blobs.labels.clone()
    inputs[-1, 0, 3, 3] += 1e-3
    labels[-1] = 1 - labels[-1]
    for changed in (Split(inputs, blobs.labels), Split(blobs.inputs, labels)):
        assert [steps_of(net(), changed, file) for _ in range(2)] == [8, 0]
    assert [steps_of(net(), blobs, file, validation=changed) for changed in (blobs, Split(inputs, labels))] == [8, 8]


FACTOR = 1.0


def helper(logits):
    return FACTOR * logits


def calls_a_helper(model, inputs, labels):
    return F.cross_entropy(helper(model(inputs)), labels)


def test_what_a_loss_calls_and_reads_makes_another_training(blobs, tmp_path, monkeypatch):
    file, here = tmp_path / "state.pt", sys.modules[__name__]
    train = partial(steps_of, net(), blobs, file, loss=calls_a_helper)
    assert [train(), train()] == [8, 0]
    monkeypatch.setattr(here, "FACTOR", 2.0)
    assert [train(), train()] == [8, 0]
    monkeypatch.setattr(here, "helper", lambda logits: logits - FACTOR)
    assert [train(), train()] == [8, 0]
    monkeypatch.setattr(F, "cross_entropy", lambda logits, labels: logits.square().mean())
    assert [train(), train()] == [8, 0]


def test_a_network_counts_by_what_it_computes_and_not_by_its_mode(blobs, tmp_path):
    file, model = tmp_path / "state.pt", net()
    assert [steps_of(model, blobs, file), steps_of(model.eval(), blobs, file)] == [8, 0]
    model[3] = nn.Tanh()
    assert steps_of(model, blobs, file) == 8
    model[1].bias.requires_grad_(False)
    assert steps_of(model, blobs, file) == 8


def test_what_cannot_be_told_from_others_has_to_be_named(blobs, tmp_path):
    file, lock = tmp_path / "state.pt", threading.Lock()

    def loss(model, inputs, labels):
        with lock:
            return F.cross_entropy(model(inputs), labels)

    with pytest.raises(ValueError, match=r"loss holds a _thread.lock \(lock > 0\).*; allowed: numbers.*key="):
        steps_of(net(), blobs, file, loss=loss)
    assert not file.exists()
    named = [steps_of(net(), blobs, file, loss=loss, key=key) for key in ("one", "one", "two", "two")]
    assert named == [8, 0, 8, 0]
    assert steps_of(net(), blobs, None, loss=loss) == 8, "what is not resumed needs no name"


def test_a_changed_function_beside_a_named_one_is_noticed(blobs, tmp_path):
    locks = {"one": threading.Lock()}

    def loss_of(factor):
        return lambda model, inputs, labels: locks and factor * F.cross_entropy(model(inputs), labels)

    file = tmp_path / "state.pt"
    taken = [steps_of(net(), blobs, file, loss=loss_of(factor), key="locked") for factor in (1.0, 1.0, 2.0)]
    assert taken == [8, 0, 8]


RAN = []


def leave_a_mark(mark):
    RAN.append(mark)


class Harmless:
    """Unpickled without care, it leaves a mark."""

    def __reduce__(self):
        return leave_a_mark, ("code in a checkpoint",)


@pytest.mark.parametrize("part", ["other", "history", "model"])
def test_what_a_state_holds_is_never_run(blobs, tmp_path, part):
    file = tmp_path / "state.pt"
    options = {"epochs": 1, "lr": 0.05, "batch_size": 16, "progress": False}
    whole = training.fit(net(), blobs, checkpoint=file, **options).model
    torch.save(torch.load(file, weights_only=True) | {part: Harmless()}, file)
    assert same(training.fit(net(), blobs, checkpoint=file, **options).model, whole) and not RAN


@pytest.mark.parametrize("change", [{"model": {}}, {"history": [{}]}, {"optimizer": 3}, {"history": "text"}])
def test_a_state_whose_parts_do_not_fit_is_not_resumed(blobs, tmp_path, capsys, change):
    file = tmp_path / "state.pt"
    options = {"epochs": 1, "lr": 0.05, "batch_size": 16, "progress": False}
    whole = training.fit(net(), blobs, checkpoint=file, **options)
    torch.save(torch.load(file, weights_only=True) | change, file)
    found = training.fit(net(), blobs, checkpoint=file, **options)
    assert same(found.model, whole.model) and found.history[0]["loss"] == whole.history[0]["loss"]
    assert "is damaged" in capsys.readouterr().err


class Remembers(nn.Linear):
    """A layer with extra state, and with a version that its file has to know."""

    _version = 7

    def __init__(self):
        super().__init__(16, 2)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return super().forward(x.flatten(1))

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        assert local_metadata["version"] == 7
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


def test_extra_state_is_trained_saved_and_resumed(blobs, tmp_path):
    options = {"epochs": 3, "lr": 0.05, "batch_size": 16, "progress": False, "checkpoint": tmp_path / "state.pt"}

    def die(_, at):
        if at.step == 9:
            raise Killed

    torch.manual_seed(0)
    model = Remembers()
    with pytest.raises(Killed):
        training.fit(model, blobs, on_step=training.watching(die), **options)
    assert training.fit(model, blobs, **options).model.calls == 12 and model.calls == 0
    model.calls = 5
    assert training.fit(model, blobs, **options).model.calls == 17, "another start, and its state was resumed"


def test_one_step_of_sgd_is_the_textbooks(blobs):
    """Nesterov momentum, first step: w - lr (g + 0.9 g), with g the gradient plus weight decay times w."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    loss = F.cross_entropy(model(blobs.inputs), blobs.labels)
    (gradient,) = torch.autograd.grad(loss, [model[1].weight])
    gradient = gradient + 5e-4 * model[1].weight
    # One step is the whole training, so the cosine has reached its end: no step at all.
    stopped = training.fit(model, blobs, epochs=1, lr=0.1, batch_size=64, warmup=0.0, progress=False).model
    torch.testing.assert_close(stopped[1].weight, model[1].weight)
    rates = []
    training.fit(
        model, blobs, epochs=2, lr=0.1, batch_size=64, warmup=0.0, progress=False,
        on_step=lambda _, at: rates.append((at.optimizer.param_groups[0]["lr"], deepcopy(_[1].weight.detach()))),
    )  # fmt: skip
    lr, weight = rates[0]
    assert lr == pytest.approx(0.05)
    torch.testing.assert_close(weight, model[1].weight - lr * 1.9 * gradient, rtol=1e-5, atol=1e-6)


def test_learning_rate_rises_linearly_and_falls_along_a_cosine():
    rate = training._learning_rate
    assert rate(0.05, peak=2.0, warmup=0.1) == pytest.approx(1.0)
    assert rate(0.1, peak=2.0, warmup=0.1) == pytest.approx(2.0)
    assert rate(0.55, peak=2.0, warmup=0.1) == pytest.approx(1.0)
    assert rate(1.0, peak=2.0, warmup=0.1) == pytest.approx(0.0)


def test_frozen_parameters_stay(blobs):
    model = net()
    model[1].requires_grad_(False)
    new = training.fit(model, blobs, epochs=1, lr=0.1, batch_size=16, progress=False).model
    assert torch.equal(new[1].weight, model[1].weight) and not torch.equal(new[4].weight, model[4].weight)
    with pytest.raises(ValueError, match="requires_grad"):
        training.fit(model.requires_grad_(False), blobs, epochs=1, lr=0.1, batch_size=16, progress=False)


def with_batchnorm(*, affine: bool = True) -> nn.Module:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(4, affine=affine)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def test_statistics_of_a_frozen_batchnorm_do_not_drift(blobs):
    """Trap: `model.train()` lets them follow the new data. With them fixed, the head learns from fixed features."""
    model = with_batchnorm()
    for layer in model[:2]:
        layer.requires_grad_(False)
    options = {"epochs": 3, "lr": 0.05, "batch_size": 16, "seed": 2, "progress": False}
    new = training.fit(model, blobs, **options).model
    assert same(new[:2], model[:2])

    body, head = model[:4].eval(), model[4]
    features = Split(body(blobs.inputs).detach(), blobs.labels)
    alone = training.fit(head, features, **options).model
    torch.testing.assert_close(new[4].weight, alone.weight)


@pytest.mark.parametrize("affine", [True, False])
def test_a_batchnorm_that_is_trained_or_has_nothing_to_train_gathers_statistics(blobs, affine):
    model = with_batchnorm(affine=affine)
    model[0].requires_grad_(False)
    new = training.fit(model, blobs, epochs=2, lr=0.05, batch_size=16, progress=False).model
    assert new[1].num_batches_tracked == 8 and not torch.equal(new[1].running_mean, model[1].running_mean)


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


def test_a_training_with_factors_can_be_resumed(blobs, tmp_path):
    options = {"epochs": 3, "lr": 0.05, "batch_size": 16, "lr_factors": {"1": 0.1}, "progress": False}
    whole = training.fit(net(), blobs, **options).model
    file = tmp_path / "state.pt"

    def die(_, at):
        if at.step == 6:
            raise Killed

    with pytest.raises(Killed):
        training.fit(net(), blobs, checkpoint=file, on_step=training.watching(die), **options)
    assert same(training.fit(net(), blobs, checkpoint=file, **options).model, whole)


def test_evaluate_against_numbers_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    model[1].weight.data = torch.eye(2)
    split = Split(torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 1, 1]))
    result = training.evaluate(model, split, batch_size=2)
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert (result.correct, result.count, result.accuracy) == (2, 3, pytest.approx(2 / 3))
    assert result.loss == pytest.approx((2 * right + wrong) / 3)


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


def test_all_that_is_labelled_right_is_an_accuracy_of_one():
    labels = torch.tensor([[0, -100, 2], [-100, -100, 1]])
    logits = F.one_hot(labels.clamp(0), 4).movedim(2, 1).float()
    assert training.evaluate(nn.Identity(), Split(logits, labels)).accuracy == 1.0


def test_an_answer_that_holds_nan_is_wrong():
    logits = torch.eye(4)
    logits[0, 0] = math.nan  # which argmax takes for the largest
    found = training.evaluate(nn.Identity(), Split(logits, torch.arange(4)))
    assert found.accuracy == 0.75 and math.isnan(found.loss)


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


def test_half_precision_logits_are_evaluated_in_single():
    logits, labels = torch.randn(50, 3).bfloat16(), torch.arange(50) % 3
    found = training.evaluate(nn.Identity(), Split(logits, labels))
    assert found.loss == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-6)


def test_predict_uses_evaluation_mode_and_restores_each_layers_mode(blobs):
    """Trap: a frozen BatchNorm stands in evaluation mode; `model.train()` would let its statistics drift."""
    model = nn.Sequential(*net(), nn.BatchNorm1d(2), nn.Dropout(0.5)).train()
    frozen = model[2].eval()
    before = deepcopy(model.state_dict())
    expected = deepcopy(model).eval()(blobs.inputs).detach()
    torch.testing.assert_close(training.predict(model, blobs.inputs, batch_size=7), expected)
    assert model.training and model[1].training and model[5].training and not frozen.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Viewed(nn.Module):
    """As in PyTorch's CIFAR-10 tutorial: `view` refuses a convolution's output that is laid out channels last."""

    def __init__(self, *, way="view"):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 2), nn.Linear(6, 2)
        self.norm, self.dropout, self.way = nn.BatchNorm2d(4), nn.Dropout(0.3), way

    def forward(self, x):
        x = self.conv2(self.dropout(self.norm(self.conv1(x)).relu()))
        return self.fc(getattr(x, self.way)(-1, 6))


def viewed(way):
    torch.manual_seed(3)
    return Viewed(way=way)


@pytest.mark.parametrize("precision", training.PRECISIONS)
def test_a_network_that_takes_no_channels_last_is_trained_all_the_same(blobs, precision):
    """The first step fails and is undone: random state and statistics are those of the network that reshapes."""
    options = {"epochs": 2, "lr": 0.05, "batch_size": 16, "precision": precision, "progress": False}
    steps, model = [], viewed("view")
    torch.manual_seed(5)
    found = training.fit(model, blobs, validation=blobs, on_step=lambda _, at: steps.append(at.step), **options)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3)) and steps == [*range(1, 9)]
    expected = training.fit(viewed("reshape"), blobs, **options)
    tolerance = {"float32": 1e-5, "bfloat16": 3e-2}[precision]
    for name, tensor in found.model.state_dict().items():
        torch.testing.assert_close(tensor, expected.model.state_dict()[name], rtol=tolerance, atol=tolerance)
    assert found.model.norm.num_batches_tracked == 8


def test_a_network_that_takes_no_channels_last_can_be_resumed(blobs, tmp_path):
    options = {"epochs": 3, "lr": 0.05, "batch_size": 16, "progress": False}
    whole = training.fit(viewed("view"), blobs, **options).model

    def die(_, at):
        if at.step == 6:
            raise Killed

    file, seconds = tmp_path / "state.pt", training.resumed_seconds()
    with pytest.raises(Killed):
        training.fit(viewed("view"), blobs, checkpoint=file, on_step=training.watching(die), **options)
    resumed = training.fit(viewed("view"), blobs, checkpoint=file, **options)
    assert same(resumed.model, whole)
    assert training.resumed_seconds() - seconds == pytest.approx(resumed.history[0]["seconds"])


def test_images_are_laid_out_as_a_loop_by_hand_does_it(blobs):
    """Bit for bit, and of one channel too, where `contiguous` would leave the strides as they were."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(4, 2))
    mine = deepcopy(model).to(memory_format=torch.channels_last)
    rule = torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for step in range(4):
        rule.param_groups[0]["lr"] = training._learning_rate((step + 1) / 4, peak=0.1, warmup=0.0)
        rule.zero_grad()
        F.cross_entropy(mine(blobs.inputs), blobs.labels).backward()
        rule.step()

    def in_order(train, batch_size, generator):
        return [torch.arange(64)]

    options = {"epochs": 4, "lr": 0.1, "batch_size": 64, "warmup": 0.0, "batching": in_order, "progress": False}
    strides = []
    found = training.fit(model, blobs, on_step=lambda new, _: strides.append(new[0].weight.stride()), **options).model
    assert same(found, mine) and strides[0] == mine[0].weight.stride() and found[0].weight.is_contiguous()


def test_predict_asks_a_network_that_takes_no_channels_last_as_it_is(blobs):
    model = viewed("view")
    expected = deepcopy(model).eval()(blobs.inputs).detach()
    torch.testing.assert_close(training.predict(model, blobs.inputs, batch_size=10), expected)


class OneAtATime(nn.Linear):
    def __init__(self, *, way):
        super().__init__(16, 2)
        self.way = way

    def forward(self, x):
        if self.way == "assert":
            assert len(x) == 1
        return super().forward(x.view(1, -1) if self.way == "view" else x.flatten().unsqueeze(0))


@pytest.mark.parametrize("way", ["view", "flatten", "assert"])
def test_a_network_that_takes_one_example_at_a_time_gets_one_at_a_time(blobs, way):
    model = OneAtATime(way=way)
    expected = F.linear(blobs.inputs.flatten(1), model.weight, model.bias).detach()
    torch.testing.assert_close(training.predict(model, blobs.inputs, batch_size=10), expected)
    new = training.fit(model, blobs, epochs=1, lr=0.01, batch_size=1, validation=blobs, progress=False).model
    assert training.evaluate(new, blobs).accuracy > 0.8
    with pytest.raises(ValueError, match="batch_size=16; allowed: 1, as the model takes one example at a time"):
        training.fit(model, blobs, epochs=1, lr=0.01, batch_size=16, progress=False)


def test_predict_takes_numbers_of_words_and_parts_of_another_size():
    torch.manual_seed(0)
    model, tokens = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)), torch.randint(9, (7, 3))
    torch.testing.assert_close(training.predict(model, tokens, batch_size=3), model(tokens).detach())


class Puts(nn.Module):
    """Puts out whatever `what` makes of its logits."""

    def __init__(self, what):
        super().__init__()
        self.fc, self.unused, self.what = nn.Linear(16, 2), nn.Linear(16, 2), what

    def forward(self, x):
        return self.what(self.fc(x.flatten(1)), self.unused(x.flatten(1)))


WithAuxiliary = namedtuple("WithAuxiliary", ["logits", "aux_logits"])


@pytest.mark.parametrize("precision", training.PRECISIONS)
def test_of_a_named_tuple_the_logits_are_trained(blobs, precision):
    """As torchvision's GoogLeNet and Inception put one out in training."""
    torch.manual_seed(0)
    model, options = Puts(WithAuxiliary), {"epochs": 2, "lr": 0.05, "batch_size": 16, "progress": False}
    new = training.fit(model, blobs, precision=precision, **options).model
    alone = training.fit(nn.Sequential(nn.Flatten(), model.fc), blobs, precision=precision, **options).model
    assert torch.equal(new.fc.weight, alone[1].weight) and torch.equal(new.unused.weight, model.unused.weight)
    assert training.evaluate(new, blobs) == training.evaluate(alone, blobs)


def test_in_bfloat16_each_part_of_an_output_is_float32(blobs):
    seen = []

    def loss(model, inputs, labels):
        out = model(inputs)
        seen.append([out["a"].dtype, *(part.dtype for part in out["b"])])
        return F.cross_entropy(out["a"], labels)

    model = Puts(lambda x, y: {"a": x, "b": (y, y.argmax(1))})
    training.fit(model, blobs, epochs=1, lr=0.1, batch_size=64, precision="bfloat16", loss=loss, progress=False)
    assert seen[0] == [torch.float32, torch.float32, torch.int64]


@pytest.mark.parametrize("what", [lambda x, y: (x, y), lambda x, y: {"out": x}, lambda x, y: [x], lambda x, y: None])
def test_what_is_no_logits_is_named(blobs, what):
    name = type(what(None, None)).__name__
    with pytest.raises(ValueError, match=f"model puts out a {name}; allowed: a tensor"):
        training.predict(Puts(what), blobs.inputs)
    with pytest.raises(ValueError, match=f"model puts out a {name}; allowed: a tensor"):
        training.fit(Puts(what), blobs, epochs=1, lr=0.1, batch_size=16, progress=False)


@pytest.mark.usefixtures("unchecked_shapes")
def test_predict_wants_a_row_for_each_input(blobs):
    with pytest.raises(ValueError, match=r"model puts out shape \(2, 64\) for 64 inputs; allowed: one row for each"):
        training.predict(Puts(lambda x, y: torch.cat([x, x]).view(2, -1)[:, :64]), blobs.inputs)
    with pytest.raises(ValueError, match=r"model puts out shape \(\) for 64 inputs"):
        training.predict(Puts(lambda x, y: x.sum()), blobs.inputs)
    with pytest.raises(ValueError, match="inputs is a list; allowed: a tensor"):
        training.predict(net(), [1, 2])
    with pytest.raises(ValueError, match="batch_size=0"):
        training.predict(net(), blobs.inputs, batch_size=0)
    with pytest.raises(ValueError, match=r"inputs has shape \(5, 4\) and type torch.float32.*mat1 and mat2.*allowed"):
        training.predict(nn.Linear(3, 2), torch.randn(5, 4))


@pytest.mark.parametrize("transposed", [False, True])
def test_what_has_five_axes_is_trained(transposed):
    kind = nn.ConvTranspose3d if transposed else nn.Conv3d
    torch.manual_seed(0)
    model = nn.Sequential(kind(1, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 2))
    model.register_buffer("somewhere", torch.zeros(1, 2, 3, 1, 1))
    split = Split(torch.randn(16, 1, 3, 4, 4), torch.arange(16) % 2)
    new = training.fit(model, split, epochs=1, lr=0.1, batch_size=4, validation=split, progress=False).model
    assert not torch.equal(new[0].weight, model[0].weight) and new.somewhere.shape == (1, 2, 3, 1, 1)


def test_weights_that_torch_has_pruned_stay_zero_and_the_rest_learns(blobs):
    """With a hook: after a forward pass the layer holds a computed tensor, which `deepcopy` refuses."""
    model = net()
    prune.l1_unstructured(model[1], "weight", amount=0.5)
    prune.ln_structured(model[4], "weight", amount=0.5, n=2, dim=1)
    model(blobs.inputs)
    new = training.fit(model, blobs, epochs=3, lr=0.05, batch_size=16, progress=False).model
    for old, layer in ((model[1], new[1]), (model[4], new[4])):
        zero = old.weight_mask == 0
        assert (layer.weight == 0)[zero].all() and torch.equal(layer.weight_mask, old.weight_mask)
        assert torch.equal(layer.weight, layer.weight_orig * layer.weight_mask), "a weight of the step before"
        assert (layer.weight != old.weight)[~zero].any()
    assert same(deepcopy(new), new) and training.evaluate(new, blobs).accuracy > 0.8


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [torch.nn.utils.weight_norm, spectral_norm, parametrizations.weight_norm])
def test_normalized_layers_are_trained(blobs, norm):
    model = net()
    norm(model[1])
    model(blobs.inputs)
    new = training.fit(model, blobs, epochs=3, lr=0.05, batch_size=16, progress=False).model
    assert not torch.equal(new[1].weight, model[1].weight) and training.evaluate(new, blobs).accuracy > 0.9
    held = new[1].weight.detach().clone()
    new(blobs.inputs)
    assert torch.equal(new[1].weight, held), "it held the weight of the step before"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_frozen_or_refused(blobs, dtype):
    with pytest.raises(ValueError, match=f"model holds '1.weight' in {dtype}; allowed: float32 or float64"):
        training.fit(net().to(dtype), blobs, epochs=1, lr=0.1, batch_size=16, progress=False)
    model = net()
    model.register_parameter("frozen", nn.Parameter(torch.ones(3, dtype=dtype), requires_grad=False))
    assert training.fit(model, blobs, epochs=1, lr=0.1, batch_size=16, progress=False).model.frozen.dtype == dtype
    doubles = Split(blobs.inputs.double(), blobs.labels)
    assert training.fit(net().double(), doubles, epochs=1, lr=0.1, batch_size=16, progress=False)


def test_a_lazy_layer_is_named(blobs):
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match="model has lazy layers"):
        training.fit(model, blobs, epochs=1, lr=0.1, batch_size=16, progress=False)


def test_one_example_is_too_few_for_batchnorm_and_the_argument_is_named(blobs):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2))
    with pytest.raises(ValueError, match="batch_size=1; allowed: at least 2 .*BatchNorm"):
        training.fit(model, blobs, epochs=1, lr=0.1, batch_size=1, progress=False)


@pytest.mark.parametrize("value", [1.0, torch.ones(2), torch.ones(())])
def test_a_loss_that_is_no_loss_is_named(blobs, value):
    with pytest.raises(ValueError, match=r"loss returned .*; allowed: a scalar tensor that depends on the parameters"):
        training.fit(net(), blobs, epochs=1, lr=0.1, batch_size=16, loss=lambda *_: value, progress=False)


def test_each_seed_and_epoch_has_batches_and_draws_of_its_own(blobs):
    seen = []

    def loss(model, inputs, labels):
        seen.append((inputs.flatten()[:4].tolist(), torch.rand(1).item()))
        return F.cross_entropy(model(inputs), labels)

    for seed in range(3):
        options = {"epochs": 3, "lr": 0.05, "batch_size": 64, "seed": seed, "loss": loss, "progress": False}
        training.fit(net(), blobs, **options)
    assert len({str(inputs) for inputs, _ in seen}) == len({drawn for _, drawn in seen}) == 9


def test_random_shift_moves_and_never_invents():
    image = torch.arange(36.0).reshape(1, 1, 6, 6)
    batch = image.repeat(200, 1, 1, 1)
    moved = training.random_shift(batch, torch.Generator().manual_seed(0), pixels=1)
    candidates = []
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    for down in range(3):
        for right in range(3):
            candidates.append(padded[0, 0, down : down + 6, right : right + 6])
    found = [next(i for i, c in enumerate(candidates) if torch.equal(c, m[0])) for m in moved]
    assert set(found) == set(range(9)), "200 images did not take all nine positions"


@pytest.mark.usefixtures("unchecked_shapes")
def test_random_shift_moves_whole_numbers_too_and_names_what_is_no_image():
    images = torch.randint(256, (4, 1, 6, 6))
    moved = (training.random_shift(each, torch.Generator().manual_seed(1)) for each in (images, images.float()))
    assert torch.equal(next(moved), next(moved).long())
    assert torch.equal(training.random_shift(images, torch.Generator().manual_seed(1), pixels=0), images)
    for function in (training.random_shift, training.flip_and_shift):
        with pytest.raises(ValueError, match=r"images has shape \(4, 6\); allowed: \(batch, channels"):
            function(torch.rand(4, 6), torch.Generator())
    for pixels in (-1, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"pixels={pixels}"):
            training.random_shift(images, torch.Generator(), pixels=pixels)


def test_random_shift_keeps_channels_together():
    images = torch.randn(5, 1, 8, 8).repeat(1, 3, 1, 1)
    moved = training.random_shift(images, torch.Generator().manual_seed(0))
    assert torch.equal(moved[:, 0], moved[:, 1]) and torch.equal(moved[:, 0], moved[:, 2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"optimizer": "magic"}, r"optimizer='magic' is unknown; allowed: 'adam', 'sgd'"),
        ({"batch_size": 65}, "batch_size=65 is more than the 64 examples"),
        ({"warmup": 1.0}, r"warmup=1.0 is outside \[0, 1\)"),
        ({"lr_factors": {"2": 0.5}}, r"lr_factors='2' is unknown; allowed: '1', '4'"),
        ({"lr_factors": {"1": 0.0}}, r"lr_factors\['1'\]=0.0; allowed: a finite number above 0"),
        ({"lr_factors": {"1": math.nan}}, r"lr_factors\['1'\]=nan; allowed: a finite number above 0"),
        ({"lr": math.nan}, "lr=nan; allowed: a finite number at least 0"),
        ({"lr": math.inf}, "lr=inf; allowed: a finite number at least 0"),
        ({"lr": -0.1}, "lr=-0.1; allowed: a finite number at least 0"),
        ({"lr": "fast"}, "lr='fast' is not a number"),
        ({"warmup": math.nan}, "warmup=nan"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 1.5}, "batch_size=1.5"),
        ({"seed": -1}, "seed=-1; allowed: a whole number from 0"),
        ({"seed": 0.5}, "seed=0.5; allowed: a whole number from 0"),
        ({"seed": 2**32}, "seed=4294967296; allowed"),
        ({"precision": "float16"}, "precision='float16' is unknown; allowed: 'float32', 'bfloat16'"),
        ({"loss": None}, "loss=None; allowed: a function"),
        ({"augment": 3}, "augment=3; allowed: a function"),
        ({"batching": "random"}, "batching='random'; allowed: a function"),
        ({"on_step": 1}, "on_step=1; allowed: a function"),
        ({"validation": 3}, "validation is a int; allowed: a Split"),
        ({"validation": Split(torch.zeros(0, 2), torch.zeros(0))}, "validation is empty"),
        ({"checkpoint": "."}, "checkpoint='.' is a folder; allowed: a file"),
    ],
)
def test_bad_arguments_are_named(blobs, change, words):
    with pytest.raises(ValueError, match=words):
        training.fit(net(), blobs, **({"epochs": 1, "lr": 0.1, "batch_size": 32, "progress": False} | change))


def test_empty_split_is_refused():
    empty = Split(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="train is empty"):
        training.fit(net(), empty, epochs=1, lr=0.1)
    with pytest.raises(ValueError, match="split is empty"):
        training.evaluate(net(), empty)


def test_what_is_no_split_of_tensors_is_refused():
    texts = Split(["one", "two"], [0, 1])
    with pytest.raises(ValueError, match="train.inputs is a list; allowed: a tensor"):
        training.fit(net(), texts, epochs=1, lr=0.1)
    with pytest.raises(ValueError, match="split.labels is a list"):
        training.evaluate(net(), Split(torch.zeros(2, 16), [0, 1]))
    with pytest.raises(ValueError, match="split is a Tensor; allowed: a Split"):
        training.evaluate(net(), torch.zeros(2, 16))


def test_device_can_be_chosen(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "meta")
    assert training.device() == torch.device("meta")
    for wrong in ("gpu", "cuda:99"):
        monkeypatch.setenv("COURSE_DEVICE", wrong)
        with pytest.raises(ValueError, match=f"COURSE_DEVICE='{wrong}'; allowed"):
            training.device()
    monkeypatch.delenv("COURSE_DEVICE")
    for gpus, expected in ((0, "cpu"), (1, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpus=gpus: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert training.device() == torch.device(expected)


def test_seed_everything_makes_equal_networks():
    training.seed_everything(7)
    first = nn.Linear(3, 3)
    training.seed_everything(7)
    assert same(first, nn.Linear(3, 3))
    for seed in (-1, 2**32, 1.0, None, True):
        with pytest.raises(ValueError, match=f"seed={seed}; allowed: a whole number from 0 to 4,294,967,295"):
            training.seed_everything(seed)


def test_bfloat16_multiplies_coarsely_but_weights_and_loss_stay_float32(blobs):
    seen = []

    def loss(model, inputs, labels):
        logits = model(inputs)
        seen.append((logits.dtype, logits.detach()))
        return F.cross_entropy(logits, labels)

    options = {"epochs": 1, "lr": 0.05, "batch_size": 32, "warmup": 0.0, "loss": loss, "progress": False}
    exact = training.fit(net(), blobs, **options).model
    coarse = training.fit(net(), blobs, precision="bfloat16", **options).model
    (_, expected), (dtype, logits) = seen[0], seen[2]  # the first of two steps each
    assert dtype == torch.float32
    assert not torch.equal(logits, expected) and torch.allclose(logits, expected, rtol=0.05, atol=0.1)
    assert all(p.dtype == torch.float32 for p in coarse.parameters())
    assert not same(coarse, exact)
    assert not coarse._forward_hooks, "the hook that casts the logits stayed on the model"


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding"),
    [((4, 4), 3, 1, 1), ((2, 2), 1, 2, 0), ((5, 4), 3, (2, 1), (1, 0)), ((7, 6), (3, 2), (2, 3), (1, 2))],
)
def test_in_bfloat16_small_maps_are_products_and_large_ones_stay(size, window, stride, padding):
    layer = nn.Conv2d(5, 7, window, stride=stride, padding=padding).double()
    small, large = torch.randn(3, 5, *size).double(), torch.randn(3, 5, 40, 40).double()
    with training._SmallMapsAsProducts(), torch.profiler.profile() as spy:
        found = layer(small)
        found.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in layer.parameters()]
    assert not any("convolution" in event.name for event in spy.events())
    layer.zero_grad()
    layer(small).square().sum().backward()
    torch.testing.assert_close(found, layer(small))
    torch.testing.assert_close(gradients, [parameter.grad for parameter in layer.parameters()])
    with training._SmallMapsAsProducts(), torch.profiler.profile() as spy:
        layer(large)
    assert any("convolution" in event.name for event in spy.events())


def test_in_bfloat16_what_is_no_plain_convolution_is_left_to_pytorch():
    images = torch.randn(2, 4, 4, 4)
    for layer in (
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    ):
        with training._SmallMapsAsProducts():
            found = layer(images)
            one = layer(images[0])  # without a batch
        torch.testing.assert_close(found, layer(images))
        torch.testing.assert_close(one, layer(images[0]))


def test_products_are_laid_out_as_convolutions_are():
    plain, last = torch.contiguous_format, torch.channels_last
    for of_weight, of_images in ((plain, plain), (plain, last), (last, plain), (last, last)):
        layer = nn.Conv2d(3, 4, 3, padding=1).to(memory_format=of_weight)
        images = torch.randn(2, 3, 4, 4).contiguous(memory_format=of_images)
        with training._SmallMapsAsProducts():
            assert layer(images).stride() == nn.Conv2d.forward(layer, images).stride()
        assert layer(images).stride() == training._as_product(images, layer.weight, None, (1, 1), (1, 1)).stride()


def test_products_leave_what_they_do_not_know_and_what_cannot_be_to_pytorch():
    images, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3)
    expected = F.conv2d(images, weight, None, 1, 1)
    with training._SmallMapsAsProducts():
        found = torch.conv2d(images, weight, None, 1, 1, (1, 1), 1)
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
            nn.Conv2d(3, 5, 5)(images)
    assert torch.equal(found, expected)


AMX = {"amx_bf16": True, "avx512_bf16": True}
AVX512 = {"amx_bf16": False, "avx512_bf16": True}


@pytest.mark.parametrize(
    ("capabilities", "limit", "seconds", "expected"),
    [
        (AMX, "", None, "bfloat16"),
        (AMX, "AVX512_CORE_BF16", (2.0, 1.0), "bfloat16"),
        (AMX, "AVX2", (1.0, 4.0), "float32"),
        (AVX512, "", (2.6, 1.0), "bfloat16"),  # an AMD EPYC
        (AVX512, "", (0.8, 1.0), "float32"),  # an Intel Xeon without its AMX
        ({"bf16": True}, "", (1.5, 1.0), "bfloat16"),  # Arm
        ({"bf16": True}, "", (1.05, 1.0), "float32"),
        ({"avx2": True, "bf16": False}, "", None, "float32"),
    ],
)
def test_the_fast_precision_is_what_the_cpu_can_and_else_what_a_trial_says(
    monkeypatch, capabilities, limit, seconds, expected
):
    trials = []

    def trial():
        trials.append(seconds)
        return dict(zip(("float32", "bfloat16"), seconds, strict=True))

    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(training, "_seconds_of_a_step", trial)
    assert training.fast_precision() == expected
    assert training.fast_precision() == expected
    assert len(trials) == (seconds is not None), "the trial is remembered"


def test_a_trial_is_remembered_per_machine_and_done_again_where_its_file_is_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_BUILD_DIR", str(tmp_path))
    monkeypatch.setattr(training, "_seconds_of_a_step", lambda: {"float32": 2.0, "bfloat16": 1.0})
    assert training._faster_here("this machine") == "bfloat16"
    monkeypatch.setattr(training, "_seconds_of_a_step", lambda: {"float32": 1.0, "bfloat16": 1.0})
    assert training._faster_here("that machine") == "float32"
    assert training._faster_here("this machine") == "bfloat16"
    file = tmp_path / "precision.json"
    assert json.loads(file.read_text()) == {"this machine": "bfloat16", "that machine": "float32"}
    for damaged in ("", "[3]", "null", "{}", '{"this machine": "float8"}', '{"this machine": ["a"]}'):
        file.write_text(damaged)
        assert training._faster_here("this machine") == "float32"
    file.unlink()
    file.mkdir()
    assert training._faster_here("this machine") == "float32"


def test_a_trial_times_both_precisions_and_draws_nothing():
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    seconds = training._seconds_of_a_step(rounds=1)
    assert torch.equal(torch.rand(2), expected)
    assert set(seconds) == set(training.PRECISIONS) and all(0 < value < 100 for value in seconds.values())


def test_the_fast_precision_of_a_gpu_is_its_own_word(monkeypatch):
    monkeypatch.setattr(training, "device", lambda: torch.device("cuda"))
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation, has=has: has)
        assert training.fast_precision() == ("bfloat16" if has else "float32")


def test_batching_decides_what_makes_a_batch(blobs):
    """Halves in place of a random order: each step sees one class only, and a generator that the seed decides."""
    seen, draws = [], []

    def one_class_each(train, batch_size, generator):
        draws.append(torch.rand(1, generator=generator).item())
        return [torch.arange(0, 64, 2), torch.arange(1, 64, 2)]

    def loss(model, inputs, labels):
        seen.append(labels.tolist())
        return F.cross_entropy(model(inputs), labels)

    options = {"epochs": 2, "lr": 0.05, "batch_size": 32, "batching": one_class_each, "loss": loss, "progress": False}
    training.fit(net(), blobs, **options)
    assert seen == [[0] * 32, [1] * 32] * 2
    training.fit(net(), blobs, **options)
    assert draws[:2] == draws[2:] and draws[0] != draws[1]


@pytest.mark.parametrize("count", [1, 3])
def test_batching_that_the_schedule_did_not_plan_for_is_refused(blobs, count):
    def batching(train, batch_size, generator):
        return [torch.arange(32)] * count

    with pytest.raises(ValueError, match=f"batching returned {count} batches; allowed: 2"):
        training.fit(net(), blobs, epochs=1, lr=0.05, batch_size=32, batching=batching, progress=False)


def test_flip_and_shift_gives_each_image_or_its_mirror_moved_by_at_most_two_pixels():
    images = torch.rand(40, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    found = training.flip_and_shift(images, generator)
    mirrored = 0
    for image, moved in zip(images, found, strict=True):
        matches = []
        for flipped in (False, True):
            padded = F.pad((image.flip(2) if flipped else image)[None], (2, 2, 2, 2), mode="replicate")[0]
            windows = (padded[:, y : y + 8, x : x + 8] for y in range(5) for x in range(5))
            matches.append(any(torch.equal(window, moved) for window in windows))
        assert any(matches)
        mirrored += matches[1]
    assert 8 <= mirrored <= 32  # of 40, for a fair coin and this seed


def test_smoothed_cross_entropy_is_its_closed_form():
    logits, labels = torch.randn(6, 10, dtype=torch.float64), torch.arange(6)
    smooth = 0.9 * F.one_hot(labels, 10) + 0.1 / 10
    expected = -(smooth * logits.log_softmax(1)).sum(1).mean()
    assert training.smoothed_cross_entropy(nn.Identity(), logits, labels).item() == pytest.approx(expected.item())


def test_channels_last_moves_bytes_and_no_values():
    images, tokens = torch.randn(2, 3, 4, 5), torch.arange(6).view(2, 3)
    moved = training.channels_last(images)
    assert torch.equal(moved, images) and moved.is_contiguous(memory_format=torch.channels_last)
    assert training.channels_last(tokens) is tokens
