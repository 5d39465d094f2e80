"""The training loop: repeatable, resumable, honest about bad arguments, and gentle with the model that came in."""

import math
import sys
import threading
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import distillation, pruning, training
from helpers.data import Split
from helpers.pruning import schedules
from helpers.training import loop
from tests.training.training_examples import Puts, damaged, net, same, scaled, viewed


@pytest.fixture
def blobs() -> Split:
    """Two classes that a linear layer can tell apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    inputs = torch.randn(64, 1, 4, 4, generator=generator) + 3.0 * labels[:, None, None, None]
    return Split(inputs, labels)


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
    "callback": lambda new: {"on_step": schedules._gradual(0.5 + 0.1 * new, 0.1, 0.5, 2), "optimizer": "adam"},
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


@pytest.mark.parametrize("number_format", training.PRECISIONS)
def test_a_network_that_takes_no_channels_last_is_trained_all_the_same(blobs, number_format, monkeypatch):
    """The first step fails and is undone, random state and statistics too: all is as if it had not been tried."""
    options = {"epochs": 2, "lr": 0.05, "batch_size": 16, "precision": number_format, "progress": False}
    steps, model = [], viewed("view")
    torch.manual_seed(5)
    found = training.fit(model, blobs, validation=blobs, on_step=lambda _, at: steps.append(at.step), **options)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3)) and steps == [*range(1, 9)]
    asked = []
    monkeypatch.setattr(loop.modules, "to_channels_last", asked.append)
    assert same(found.model, training.fit(model, blobs, **options).model) and len(asked) == 1
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


def test_in_bfloat16_each_part_of_an_output_is_float32(blobs):
    seen = []

    def loss(model, inputs, labels):
        out = model(inputs)
        seen.append([out["a"].dtype, *(part.dtype for part in out["b"])])
        return F.cross_entropy(out["a"], labels)

    model = Puts(lambda x, y: {"a": x, "b": (y, y.argmax(1))})
    training.fit(model, blobs, epochs=1, lr=0.1, batch_size=64, precision="bfloat16", loss=loss, progress=False)
    assert seen[0] == [torch.float32, torch.float32, torch.int64]


@pytest.mark.parametrize("transposed", [False, True])
def test_what_has_five_axes_is_trained(transposed):
    kind = nn.ConvTranspose3d if transposed else nn.Conv3d
    torch.manual_seed(0)
    model = nn.Sequential(kind(1, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 2))
    model.register_buffer("somewhere", torch.zeros(1, 2, 3, 1, 1))
    split = Split(torch.randn(16, 1, 3, 4, 4), torch.arange(16) % 2)
    new = training.fit(model, split, epochs=1, lr=0.1, batch_size=4, validation=split, progress=False).model
    assert not torch.equal(new[0].weight, model[0].weight) and new.somewhere.shape == (1, 2, 3, 1, 1)


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
