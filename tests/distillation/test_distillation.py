"""The distillation losses against closed forms, and the teacher out of harm's way."""

import math
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F
from torch.nn.utils import prune

from helpers import distillation, nets, training
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


# ---------------------------------------------------------------- several places

SHAPES = [((2, 5, 10), 2), ((2, 10, 5), 1), ((2, 10, 4, 4), 1), ((3, 4, 4, 6), 3), ((2, 3, 2, 2, 2), 1)]


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def places(tensor: torch.Tensor, dim: int) -> list[torch.Tensor]:
    """Return the vectors of logits, one for each place, cut out one by one."""
    kept = [range(size) for axis, size in enumerate(tensor.shape) if axis != dim]
    return [tensor[tuple([*index[:dim], slice(None), *index[dim:]])] for index in product(*kept)]


def each_place(student: torch.Tensor, teacher: torch.Tensor, dim: int, temperature: float) -> torch.Tensor:
    """Return T² times the divergence at each place."""
    pairs = zip(places(student, dim), places(teacher, dim), strict=True)
    return temperature**2 * torch.stack(
        [kl_divergence(Categorical(logits=t / temperature), Categorical(logits=s / temperature)) for s, t in pairs]
    )


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_it_is_the_mean_over_all_places(shape, dim):
    student, teacher = drawn(shape, 0), drawn(shape, 1)
    expected = each_place(student, teacher, dim, 3.0).mean()
    for said in (dim, dim - len(shape)):
        found = distillation.soft_target_loss(student, teacher, temperature=3.0, dim=said)
        assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    if dim == 1 and len(shape) > 3:
        assert distillation.soft_target_loss(student, teacher, temperature=3.0) == found


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_labels_say_where_the_classes_are_and_what_counts(shape, dim, share):
    student, teacher = drawn(shape, 0), drawn(shape, 1)
    of_places = [size for axis, size in enumerate(shape) if axis != dim]
    labels = torch.randint(shape[dim], of_places, generator=torch.Generator().manual_seed(2))
    labels[torch.rand(of_places, generator=torch.Generator().manual_seed(3)) < 0.4] = -100
    counts = labels.flatten() != -100
    soft = each_place(student, teacher, dim, 2.0)[counts].mean().item()
    hard = [-row.log_softmax(0)[label].item() for row, label in zip(places(student, dim), labels.flatten(), strict=True)
            if label != -100]  # fmt: skip
    expected = share * soft + (1 - share) * sum(hard) / len(hard)
    found = distillation.mixed_loss(student, teacher, labels, temperature=2.0, share=share)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    assert distillation.mixed_loss(student, teacher, labels, temperature=2.0, share=share, dim=dim) == found


def test_as_many_tokens_as_classes_need_a_word():
    student, teacher, labels = drawn((2, 5, 5), 0), drawn((2, 5, 5), 1), torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"dim=None for logits \(2, 5, 5\) and labels \(2, 5\); allowed: 1 or 2"):
        distillation.mixed_loss(student, teacher, labels)
    for dim in (1, 2):
        soft = each_place(student, teacher, dim, 4.0).mean().item()
        found = distillation.mixed_loss(student, teacher, labels, share=1.0, dim=dim)
        assert found.item() == pytest.approx(soft, rel=1e-9)
    with pytest.raises(ValueError, match=r"dim=None for logits of shape \(2, 5, 5\); allowed: 1 or 2"):
        distillation.soft_target_loss(student, teacher, temperature=1.0)


@pytest.mark.parametrize("dim", [0, 3, -3, True, 1.0])
def test_an_axis_that_is_none_of_classes_is_named(dim):
    with pytest.raises(ValueError, match=f"dim={dim}; allowed: the axis of the classes, 1 to 2"):
        distillation.soft_target_loss(drawn((2, 5, 4), 0), drawn((2, 5, 4), 1), temperature=1.0, dim=dim)


def test_a_class_that_both_rule_out_adds_nothing():
    """A masked vocabulary: the answers are those over the classes that are left, and so are the gradients."""
    student, teacher = drawn((3, 4), 0), drawn((3, 4), 1)
    masked = [torch.cat([each, torch.full((3, 2), -math.inf, dtype=torch.float64)], 1) for each in (student, teacher)]
    masked[0].requires_grad_(), student.requires_grad_()
    found = distillation.soft_target_loss(*masked, temperature=2.0)
    expected = distillation.soft_target_loss(student, teacher, temperature=2.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    found.backward(), expected.backward()
    torch.testing.assert_close(masked[0].grad[:, :4], student.grad)
    assert masked[0].grad[:, 4:].eq(0).all()


def test_what_does_not_count_gets_no_gradient_and_does_not_change_the_value():
    student, teacher = drawn((6, 4), 0).requires_grad_(), drawn((6, 4), 1)
    labels = torch.tensor([1, -100, 3, -100, -100, 0])
    found = distillation.mixed_loss(student, teacher, labels, share=0.5)
    counts = labels != -100
    assert found.item() == pytest.approx(
        distillation.mixed_loss(student[counts], teacher[counts], labels[counts], share=0.5).item(), rel=1e-12
    )
    found.backward()
    assert student.grad[~counts].eq(0).all() and student.grad[counts].ne(0).all()


def test_a_tagger_is_taught_by_another():
    """Through `fit`, with the classes last and a part of the tokens not labelled."""
    torch.manual_seed(0)
    tokens = torch.randint(9, (32, 6))
    labels = torch.where(torch.rand(32, 6) < 0.3, -100, tokens % 4)
    teacher = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 4))
    teacher[0].weight.data, teacher[1].weight.data = torch.eye(9)[:, :8], 9 * torch.eye(4).repeat(1, 2)
    student = nn.Sequential(nn.Embedding(9, 3), nn.Linear(3, 4))
    options = {"epochs": 15, "lr": 0.1, "optimizer": "adam", "batch_size": 8, "progress": False}
    loss = distillation.taught_by(teacher, share=0.5)
    fitted = training.fit(student, Split(tokens, labels), loss=loss, **options)
    assert fitted.history[-1]["loss"] < 0.5 * fitted.history[0]["loss"]
    square = Split(tokens[:, :4], labels[:, :4])
    with pytest.raises(ValueError, match="dim=None"):
        training.fit(student, square, loss=loss, **options)
    assert training.fit(student, square, loss=distillation.taught_by(teacher, dim=2), **options)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_it_is_the_mean_over_the_examples_and_not_over_examples_and_classes(temperature):
    student, teacher = logits(0), logits(1)
    found = distillation.soft_target_loss(student, teacher, temperature=temperature)
    p, q = (Categorical(logits=each / temperature) for each in (teacher, student))
    assert torch.allclose(found, temperature**2 * kl_divergence(p, q).mean(), rtol=1e-12)
    with pytest.warns(UserWarning, match="batchmean"):
        by_mean = F.kl_div(q.logits, p.probs, reduction="mean")
    assert torch.allclose(found, temperature**2 * student.shape[1] * by_mean, rtol=1e-12)


def test_student_and_teacher_do_not_change_places():
    loss, swapped = (
        distillation.soft_target_loss(a, b, temperature=2.0)
        for a, b in [(logits(0), logits(1)), (logits(1), logits(0))]
    )
    assert abs(loss - swapped) > 0.01


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.0])
def test_the_gradient_is_that_of_the_textbook(temperature):
    """T² · (q - p) / T / batch, from the derivative of the softmax by hand."""
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    distillation.soft_target_loss(student, teacher, temperature=temperature).backward()
    q, p = (torch.softmax(each.detach() / temperature, 1) for each in (student, teacher))
    assert torch.allclose(student.grad, temperature * (q - p) / len(student), rtol=1e-9)
    assert teacher.grad is None


def test_hot_gradients_are_those_of_matching_centred_logits():
    """Hinton et al. 2015, section 2.1: for a high T the gradient is (z - v) / N; without T² it would vanish."""
    student, teacher = logits(0).requires_grad_(), logits(1)
    distillation.soft_target_loss(student, teacher, temperature=1e4).backward()
    centred = [z - z.mean(1, keepdim=True) for z in (student.detach(), teacher)]
    expected = (centred[0] - centred[1]) / (student.shape[1] * len(student))
    assert torch.allclose(student.grad, expected, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_loss_is_a_weighted_mean(share):
    student, teacher, labels = logits(0), logits(1), torch.tensor([0, 3, 1, 1, 2])
    found = distillation.mixed_loss(student, teacher, labels, temperature=3.0, share=share)
    hard = (
        -sum(
            math.log(math.exp(row[k]) / sum(map(math.exp, row)))
            for row, k in zip(student.tolist(), labels.tolist(), strict=True)
        )
        / 5
    )
    assert found.item() == pytest.approx(share * by_hand(student, teacher, 3.0) + (1 - share) * hard, rel=1e-9)
    same = torch.equal(found, distillation.mixed_loss(student, logits(2), labels, temperature=3.0, share=share))
    assert same == (share == 0), "the teacher decides nothing, or decides where it should not"


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


class Viewed(nn.Module):
    """`view` refuses the convolution's output where that is laid out channels last."""

    def __init__(self, *, way="view"):
        super().__init__()
        self.conv, self.fc, self.way = nn.Conv2d(1, 4, 3), nn.Linear(16, 3), way

    def forward(self, x):
        return self.fc(getattr(self.conv(x), self.way)(-1, 16))


def viewed(way: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Viewed(way=way)


PICTURES = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("precision", training.PRECISIONS)
@pytest.mark.parametrize("student", ["view", "reshape"])
def test_teachers_and_students_that_take_no_channels_last(student, precision):
    options = {"epochs": 2, "lr": 0.05, "batch_size": 8, "precision": precision, "progress": False}
    tolerance = {"float32": 1e-5, "bfloat16": 3e-2}[precision]
    split, found = Split(PICTURES, torch.arange(16) % 3), []
    for ways in ((student, "view"), ("reshape", "reshape")):
        loss = distillation.taught_by(viewed(ways[1], 1))
        found.append(training.fit(viewed(ways[0], 2), split, loss=loss, **options).model)
    torch.testing.assert_close(found[0].conv.weight, found[1].conv.weight, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("precision", training.PRECISIONS)
def test_answers_looked_up_for_a_student_that_takes_no_channels_last(precision):
    options = {"epochs": 2, "lr": 0.05, "batch_size": 8, "precision": precision, "progress": False}
    view = distillation.fixed_views(PICTURES, views=2, pixels=1)
    answers = distillation.ask(viewed("view", 1), view, examples=16, views=2)
    torch.testing.assert_close(answers, distillation.ask(viewed("reshape", 1), view, examples=16, views=2))
    loss, split = distillation.taught_from(answers, view), Split(torch.arange(16), torch.arange(16) % 3)
    found = [training.fit(viewed(way, 2), split, loss=loss, **options).model for way in ("view", "reshape")]
    tolerance = {"float32": 1e-5, "bfloat16": 3e-2}[precision]
    torch.testing.assert_close(found[0].conv.weight, found[1].conv.weight, rtol=tolerance, atol=tolerance)


def test_a_pruned_teacher_and_one_with_five_axes_teach():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(16, 3))
    prune.l1_unstructured(teacher[2], "weight", amount=0.5)
    inputs, labels = torch.randn(6, 1, 3, 3, 3), torch.arange(6) % 3
    teacher(inputs)
    loss = distillation.taught_by(teacher, share=1.0)(teacher, inputs, labels)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    ensemble = distillation.Ensemble([teacher, teacher])
    torch.testing.assert_close(ensemble(inputs), teacher(inputs))
    assert ensemble.members[0] is ensemble.members[1], "one network twice is stored once"


def test_of_a_named_tuple_the_logits_teach_and_learn():
    class Auxiliary(nn.Linear):
        def forward(self, x):
            return SimpleNamespace(logits=super().forward(x), aux=None)

    torch.manual_seed(0)
    inputs, labels = torch.randn(6, 3), torch.arange(6) % 4
    teacher, student = Auxiliary(3, 4), Auxiliary(3, 4)
    plain = [nn.Linear(3, 4) for _ in range(2)]
    for one, other in zip(plain, (teacher, student), strict=True):
        one.load_state_dict(other.state_dict())
    expected = distillation.taught_by(plain[0])(plain[1], inputs, labels)
    assert distillation.taught_by(teacher)(student, inputs, labels) == expected
    assert torch.equal(distillation.Ensemble([teacher])(inputs), plain[0](inputs))
    assert torch.equal(distillation.with_features(teacher, inputs, [])[0], plain[0](inputs))
    with pytest.raises(ValueError, match="model puts out a tuple; allowed"):
        distillation.taught_by(nn.LSTM(3, 4))(student, inputs, labels)


# ---------------------------------------------------------------- several teachers


def test_an_ensemble_is_the_geometric_mean_of_its_members_answers():
    torch.manual_seed(0)
    members = [nn.Linear(3, 4) for _ in range(3)]
    x = torch.randn(6, 3)
    product = torch.stack([torch.softmax(member(x), 1) for member in members]).prod(0) ** (1 / 3)
    assert torch.allclose(
        torch.softmax(distillation.Ensemble(members)(x), 1), product / product.sum(1, keepdim=True), atol=1e-6
    )


def test_an_ensemble_has_members_of_its_own_and_teaches_like_any_network():
    torch.manual_seed(0)
    members = [nn.Linear(3, 4), nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 4))]
    ensemble, x, labels = distillation.Ensemble(iter(members)), torch.randn(6, 3), torch.arange(6) % 4
    before = ensemble.eval()(x)
    with torch.no_grad():
        members[0].weight.zero_()
    assert torch.equal(ensemble(x), before) and members[1].training
    student = nn.Linear(3, 4)
    loss = distillation.taught_by(ensemble.train(), temperature=2.0, share=1.0)(student, x, labels)
    assert loss.item() == pytest.approx(by_hand(student(x).detach().double(), before.detach().double(), 2.0), rel=1e-4)


# ---------------------------------------------------------------- answers looked up


def shrink(numbers: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Return view 0, 1 or 2 of eight examples: each divided by 1, 2 or 3."""
    return INPUTS[numbers] / (1 + which[:, None])


INPUTS = torch.randn(8, 3, generator=torch.Generator().manual_seed(5))
NUMBERS = Split(torch.arange(8), torch.arange(8) % 4)


def answers_of(teacher: nn.Module) -> torch.Tensor:
    return torch.stack([teacher(shrink(NUMBERS.inputs, torch.full((8,), v))) for v in range(3)], dim=1)


def test_each_answer_belongs_to_the_inputs_that_the_student_sees():
    torch.manual_seed(0)
    teacher, student, drawn = nn.Linear(3, 4), nn.Linear(3, 4), set()

    def view(numbers, which):
        drawn.update(zip(numbers.tolist(), which.tolist(), strict=True))
        view.inputs = shrink(numbers, which)
        return view.inputs

    def loss(logits, answers, labels):
        assert torch.equal(logits, student(view.inputs))
        assert torch.allclose(answers, teacher(view.inputs), atol=1e-6) and not answers.requires_grad
        assert torch.equal(labels, torch.tensor([1, 3, 2]))
        return F.mse_loss(logits, answers)

    looked_up = distillation.taught_from(answers_of(teacher), view, loss=loss)
    for _ in range(50):
        looked_up(student, torch.tensor([5, 3, 6]), torch.tensor([1, 3, 2])).backward()
    assert drawn == {(number, v) for number in (5, 3, 6) for v in range(3)}
    assert student.weight.grad is not None and teacher.weight.grad is None


def test_looking_up_is_as_good_as_asking():
    torch.manual_seed(0)
    teacher, student = nn.Linear(3, 4), nn.Linear(3, 4)
    labels = torch.arange(8) % 4
    found = distillation.taught_from(answers_of(teacher)[:, 2:], lambda numbers, _: INPUTS[numbers] / 3)
    asked = distillation.taught_by(teacher)(student, INPUTS / 3, labels)
    assert found(student, torch.arange(8), labels).item() == pytest.approx(asked.item(), rel=1e-5)


def test_students_of_different_teachers_see_the_same_inputs():
    seen = []

    def view(numbers, which):
        seen.append(shrink(numbers, which))
        return seen[-1]

    torch.manual_seed(0)
    student, answers = nn.Linear(3, 4), answers_of(nn.Linear(3, 4))
    for given in (answers, -answers):
        loss = distillation.taught_from(given, view)
        training.fit(student, NUMBERS, epochs=3, lr=0.1, batch_size=4, loss=loss, seed=7, progress=False)
    half = len(seen) // 2
    assert half == 6 and all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))
    assert not torch.equal(seen[0], seen[2])


# ---------------------------------------------------------------- attention


def test_features_are_those_of_the_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
    logits, features = distillation.with_features(model, INPUTS, ["1", "0"])
    assert torch.equal(features["0"], model[0](INPUTS)) and torch.equal(features["1"], features["0"].relu())
    assert torch.equal(logits, model(INPUTS)) and set(features) == {"0", "1"}
    with pytest.raises(ValueError, match="inputs has shape .*shapes"):
        distillation.with_features(model, INPUTS[:, :2], ["0", "2"])
    assert not any(module._forward_hooks for module in model.modules()), "a hook was left behind"
    with pytest.raises(ValueError, match="layers='3' is unknown; allowed: .*'2'"):
        distillation.with_features(model, INPUTS, ["3"])


def test_features_are_those_of_the_layer_even_if_a_later_one_overwrites_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 4))
    _, features = distillation.with_features(model, INPUTS, ["0"])
    assert torch.equal(features["0"], model[0](INPUTS)) and features["0"].min() < 0
    features["0"].sum().backward()
    torch.testing.assert_close(model[0].bias.grad, torch.full((5,), 8.0))


def test_layers_that_put_out_no_features_are_named():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    model.unused = nn.Identity()
    model.forward = lambda x: model[1](model[0](x))
    with pytest.raises(ValueError, match="layers='unused' is not called by the model"):
        distillation.with_features(model, INPUTS, ["0", "unused"])
    tagger = nn.Sequential(nn.LSTM(3, 5))
    tagger.forward = lambda x: tagger[0](x)[0]
    with pytest.raises(ValueError, match="layers='0' puts out a tuple"):
        distillation.with_features(tagger, INPUTS, ["0"])
    assert not any(module._forward_hooks for module in (*model.modules(), *tagger.modules()))


def test_an_attention_map_by_hand():
    features = torch.tensor([[[[1.0, 2.0]], [[2.0, 0.0]]]])  # one image, two channels, one row of two places
    assert torch.allclose(distillation.attention_map(features), torch.tensor([[5.0, 4.0]]) / 41**0.5)


def test_an_attention_map_knows_places_and_neither_channels_nor_scale():
    x = torch.randn(3, 6, 4, 5, generator=torch.Generator().manual_seed(0))
    found = distillation.attention_map(x)
    assert found.shape == (3, 20) and torch.allclose(found.norm(dim=1), torch.ones(3))
    for same in (-3 * x, x.flip(1), torch.cat([x, x], dim=1), x.contiguous(memory_format=torch.channels_last)):
        assert torch.allclose(distillation.attention_map(same), found, atol=1e-6)
    assert not torch.allclose(distillation.attention_map(x.flip(3)), found, atol=1e-2)
    assert distillation.attention_map(torch.zeros(1, 2, 3, 3)).eq(0).all()
    assert distillation.attention_map(x.bfloat16()).dtype == torch.float32


def test_attention_loss_is_two_minus_two_cosines():
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(3, channels, 4, 4, generator=generator) for channels in (2, 7)]
    student, teacher = (distillation.attention_map(each).requires_grad_() for each in features)
    loss = distillation.attention_loss(student, teacher)
    expected = (2 - 2 * F.cosine_similarity(student, teacher)).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None
    assert distillation.attention_loss(student, student) == 0
    beside = distillation.attention_loss(torch.cat([student, teacher], 1), torch.cat([teacher, student], 1))
    assert beside.item() == pytest.approx(2 * loss.item(), rel=1e-5)
    assert distillation.attention_loss(student, teacher.flip(1)) != loss


def test_a_student_learns_where_to_look():
    """Through `fit`, from looked-up maps: the distance falls, and the networks differ in width."""
    torch.manual_seed(0)
    images, layers = torch.randn(16, 3, 32, 32), ["res1", "res2"]
    teacher, student = nets.CifarNet((4, 4, 8, 8)).eval(), nets.CifarNet((2, 2, 4, 4))

    def maps(model, inputs):
        _, features = distillation.with_features(model, inputs, layers)
        return torch.cat([distillation.attention_map(features[layer]) for layer in layers], dim=1)

    with torch.no_grad():
        targets = maps(teacher, images)

    def loss(model, numbers, labels):
        return distillation.attention_loss(maps(model, images[numbers]), targets[numbers])

    split = Split(torch.arange(16), torch.zeros(16, dtype=torch.int64))
    fitted = training.fit(student, split, epochs=4, lr=0.1, batch_size=8, loss=loss, progress=False)
    assert fitted.history[-1]["loss"] < 0.8 * fitted.history[0]["loss"]


# ---------------------------------------------------------------- bad input


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"teacher has shape \(5, 3\); allowed: the student's, \(5, 4\)"):
        distillation.soft_target_loss(logits(0), logits(1)[:, :3], temperature=1.0)
    with pytest.raises(ValueError, match=r"temperature=0\.0; allowed: a finite number above 0"):
        distillation.soft_target_loss(logits(0), logits(1), temperature=0.0)
    for temperature in (-1.0, math.inf, math.nan, "hot"):
        with pytest.raises(ValueError, match=f"temperature={temperature!r}"):
            distillation.soft_target_loss(logits(0), logits(1), temperature=temperature)
        with pytest.raises(ValueError, match=f"temperature={temperature!r}"):
            distillation.taught_by(nn.Linear(3, 4), temperature=temperature)
    with pytest.raises(ValueError, match="share=nan"):
        distillation.mixed_loss(logits(0), logits(1), torch.zeros(5, dtype=torch.int64), share=math.nan)
    with pytest.raises(ValueError, match=r"share=1\.5"):
        distillation.taught_by(nn.Linear(3, 4), share=1.5)
    with pytest.raises(ValueError, match=r"share=-0\.1"):
        distillation.mixed_loss(logits(0), logits(1), torch.zeros(5, dtype=torch.int64), share=-0.1)
    with pytest.raises(ValueError, match="members is empty"):
        distillation.Ensemble([])
    with pytest.raises(ValueError, match=r"members give logits of shapes \[\(2, 4\), \(2, 5\)\]; allowed: one shape"):
        distillation.Ensemble([nn.Linear(3, 5), nn.Linear(3, 4)])(torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"answers has shape \(8, 0, 4\); allowed: \(examples, views, classes\)"):
        distillation.taught_from(torch.zeros(8, 0, 4), shrink)
    with pytest.raises(ValueError, match=r"teacher has shape \(2, 9\); allowed: the student's, \(2, 16\)"):
        distillation.attention_loss(torch.zeros(2, 16), torch.zeros(2, 9))


@pytest.mark.usefixtures("unchecked_shapes")
def test_answers_without_views_are_refused():
    with pytest.raises(ValueError, match=r"answers has shape \(8, 4\)"):
        distillation.taught_from(torch.zeros(8, 4), shrink)
    with pytest.raises(ValueError, match="view=3; allowed: a function"):
        distillation.taught_from(torch.zeros(8, 3, 4), 3)
    with pytest.raises(ValueError, match="view=None; allowed: a function"):
        distillation.ask(nn.Linear(3, 4), None, examples=3, views=3)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (torch.tensor([3, 8]), "inputs holds 8; allowed: numbers of examples, 0 to 7"),
        (torch.tensor([-1, 7]), "inputs holds -1; allowed: numbers of examples, 0 to 7"),
        (torch.randn(2, 3), r"inputs holds torch.float32 of shape \(2, 3\); allowed: the numbers of examples"),
        (torch.tensor([1.0, 2.0]), "inputs holds torch.float32"),
        (torch.zeros(0, dtype=torch.int64), r"inputs holds torch.int64 of shape \(0,\)"),
    ],
)
def test_inputs_that_are_no_numbers_of_examples_are_named(numbers, words):
    loss = distillation.taught_from(torch.zeros(8, 3, 4), shrink)
    with pytest.raises(ValueError, match=words):
        loss(nn.Linear(3, 4), numbers, torch.zeros(2, dtype=torch.int64))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("shape", "labels", "words"),
    [
        ((5, 4), torch.full((5,), -100), "labels holds nothing but -100"),
        ((5, 4), torch.tensor([0, 1, 2, 3, 4]), "labels holds 4; allowed: 0 to 3"),
        ((5, 4), torch.tensor([0, 1]), r"labels has shape \(2,\); allowed: that of the logits, \(5, 4\)"),
        ((5, 4), torch.zeros(5), "labels holds torch.float32; allowed: whole numbers"),
        ((5,), torch.zeros(()).long(), r"labels has shape \(\); allowed: that of the logits, \(5,\)"),
        ((0, 4), torch.zeros(0).long(), r"student has shape \(0, 4\); allowed: \(batch, classes, ...\)"),
    ],
)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_labels_that_do_not_fit_are_named(shape, labels, words, share):
    with pytest.raises(ValueError, match=words):
        distillation.mixed_loss(torch.randn(shape), torch.randn(shape), labels, share=share)


@pytest.mark.usefixtures("unchecked_shapes")
def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"student has shape \(5,\); allowed: \(batch, classes"):
        distillation.soft_target_loss(torch.randn(5), torch.randn(5), temperature=1.0)
    with pytest.raises(ValueError, match=r"labels has shape \(2, 5\); allowed: \(2, 4\), as axis 1 is the classes"):
        shape = (2, 5, 4)
        distillation.mixed_loss(torch.randn(shape), torch.randn(shape), torch.zeros(2, 5).long(), dim=1)
    with pytest.raises(ValueError, match=r"student has shape \(2, 3, 4\); allowed: \(batch, places\)"):
        distillation.attention_loss(torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    with pytest.raises(ValueError, match=r"features has shape \(2, 3, 4\); allowed: \(batch, channels, height"):
        distillation.attention_map(torch.randn(2, 3, 4))
    for members, words in ((nn.Sequential(nn.Linear(2, 2)), "members is a Sequential"), ([3], r"members=\[3\]")):
        with pytest.raises(ValueError, match=words):
            distillation.Ensemble(members)


# ---------------------------------------------------------------- fixed views


def all_versions(image: torch.Tensor, pixels: int) -> list[torch.Tensor]:
    """All shifts of an image by up to `pixels`, as it is and mirrored, cut out of a padded copy row by row."""
    found = []
    for source in (image, image.flip(2)):
        padded = F.pad(source[None], (pixels,) * 4, mode="replicate")[0]
        steps = range(2 * pixels + 1)
        found += [padded[:, r : r + image.shape[1], c : c + image.shape[2]] for r in steps for c in steps]
    return found


@pytest.mark.parametrize("mirror", [False, True])
def test_a_fixed_view_is_a_shift_and_stays_the_same(mirror):
    inputs = torch.rand(30, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    view = distillation.fixed_views(inputs, views=8, pixels=1, mirror=mirror)
    numbers = torch.tensor([3, 29, 3])
    which = torch.tensor([0, 7, 5])
    shown = view(numbers, which)
    for number, image in zip(numbers, shown, strict=True):
        assert any(torch.equal(image, version) for version in all_versions(inputs[number], 1))
    assert torch.equal(view(numbers.flip(0), which.flip(0)), shown.flip(0))
    mirrored = sum(
        any(torch.equal(image, v) for v in all_versions(inputs[0], 1)[9:])
        for image in view(torch.zeros(8, dtype=torch.int64), torch.arange(8))
    )
    assert (0 < mirrored < 8) if mirror else mirrored == 0


def test_fixed_views_depend_on_the_seed_and_reach_every_shift():
    inputs = torch.rand(400, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    numbers, which = torch.arange(400), torch.zeros(400, dtype=torch.int64)
    one, same, other = (distillation.fixed_views(inputs, views=1, pixels=1, seed=s)(numbers, which) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    seen = {
        next(k for k, v in enumerate(all_versions(x, 1)) if torch.equal(v, y)) for x, y in zip(inputs, one, strict=True)
    }
    assert seen == set(range(9))


def test_a_teacher_that_is_asked_answers_those_very_views():
    inputs = torch.rand(7, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    teacher = nets.mlp_1200().train()  # with dropout, were it not for evaluation mode
    view = distillation.fixed_views(inputs, views=3)
    answers = distillation.ask(teacher, view, examples=5, views=3)
    assert answers.shape == (5, 3, 10) and teacher.training
    alone = view(torch.tensor([4]), torch.tensor([2]))
    torch.testing.assert_close(answers[4, 2], training.predict(teacher, alone)[0])


@pytest.mark.parametrize("bad", [{"views": 0}, {"views": 2, "pixels": 0}, {"views": True}])
def test_views_that_cannot_be_are_refused(bad):
    with pytest.raises(ValueError, match="allowed: a whole number of at least 1"):
        distillation.fixed_views(torch.rand(3, 1, 4, 4), **bad)
    with pytest.raises(ValueError, match="inputs is empty"):
        distillation.fixed_views(torch.rand(0, 1, 4, 4), views=2)
    with pytest.raises(ValueError, match="seed=-1"):
        distillation.fixed_views(torch.rand(3, 1, 4, 4), views=2, seed=-1)
    with pytest.raises(ValueError, match="numbers holds 3; allowed: numbers of examples, 0 to 2"):
        distillation.fixed_views(torch.rand(3, 1, 4, 4), views=2)(torch.tensor([3]), torch.tensor([0]))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("inputs", [torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.rand(3, 4, 4)])
def test_views_of_what_is_no_image_are_refused(inputs):
    with pytest.raises(ValueError, match="inputs holds torch.* of shape .*; allowed: floats of shape"):
        distillation.fixed_views(inputs, views=2)
