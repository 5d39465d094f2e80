"""The training loop: repeatable, resumable, honest about bad arguments, and gentle with the model that came in."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import training
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
        training.fit(model, blobs, checkpoint=file, on_step=die, **options)
    resumed_at, seconds = [], training.resumed_seconds()
    resumed = training.fit(model, blobs, checkpoint=file, on_step=lambda _, at: resumed_at.append(at.step), **options)
    assert resumed_at[0] == 9, "the two finished epochs were trained again"
    assert same(resumed.model, whole.model)
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]
    assert training.resumed_seconds() - seconds == pytest.approx(sum(row["seconds"] for row in resumed.history[:2]))


@pytest.mark.parametrize(
    "change", [{"lr": 0.04}, {"seed": 9}, {"key": "other"}, {"epochs": 3}, {"lr_factors": {"1": 0.5}}]
)
def test_a_state_of_another_training_is_not_resumed(blobs, tmp_path, change):
    file = tmp_path / "state.pt"
    options = {"epochs": 2, "lr": 0.05, "batch_size": 16, "progress": False}
    training.fit(net(), blobs, checkpoint=file, **options)
    fresh = training.fit(net(), blobs, **(options | change))
    assert same(training.fit(net(), blobs, checkpoint=file, **(options | change)).model, fresh.model)


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
        training.fit(net(), blobs, checkpoint=file, on_step=die, **options)
    assert same(training.fit(net(), blobs, checkpoint=file, **options).model, whole)


def test_evaluate_against_numbers_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    model[1].weight.data = torch.eye(2)
    split = Split(torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 1, 1]))
    result = training.evaluate(model, split, batch_size=2)
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert (result.correct, result.count, result.accuracy) == (2, 3, pytest.approx(2 / 3))
    assert result.loss == pytest.approx((2 * right + wrong) / 3)


def test_predict_uses_evaluation_mode_and_restores_each_layers_mode(blobs):
    """Trap: a frozen BatchNorm stands in evaluation mode; `model.train()` would let its statistics drift."""
    model = net().train()
    frozen = model[2].eval()
    expected = deepcopy(model).eval()(blobs.inputs).detach()
    torch.testing.assert_close(training.predict(model, blobs.inputs, batch_size=7), expected)
    assert model.training and model[1].training and not frozen.training


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


def test_device_can_be_chosen(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "meta")
    assert training.device() == torch.device("meta")


def test_seed_everything_makes_equal_networks():
    training.seed_everything(7)
    first = nn.Linear(3, 3)
    training.seed_everything(7)
    assert same(first, nn.Linear(3, 3))


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


def test_precision_is_refused_or_named():
    with pytest.raises(ValueError, match="precision='float16'"):
        training.fit(net(), Split(torch.zeros(4, 16), torch.zeros(4).long()), epochs=1, lr=1.0, precision="float16")
    assert training.fast_precision() in training.PRECISIONS


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
