"""Distillation: losses in which a trained network's answers, or where it looks, teach another one."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.nn import functional as F

from helpers import checks, modules
from helpers.training import (
    IGNORED,
    Loss,
    channels_last,
    check_functions,
    check_labels,
    checked_seed,
    device,
    logits_of,
    predict,
)

__all__ = [
    "Ensemble",
    "ask",
    "attention_loss",
    "attention_map",
    "fixed_views",
    "mixed_loss",
    "soft_target_loss",
    "taught_by",
    "taught_from",
    "with_features",
]

View = Callable[[Tensor, Tensor], Tensor]  # (numbers of examples, numbers of views) → a batch of inputs
LossOfAnswers = Callable[[Tensor, Tensor, Tensor], Tensor]  # (student's logits, teacher's, labels) → a scalar


# ---------------------------------------------------------------- answers


def soft_target_loss(
    student: Float[Tensor, "batch *classes"],
    teacher: Float[Tensor, "batch *_"],
    *,
    temperature: float,
    dim: int | None = None,
) -> Float[Tensor, ""]:
    """Return T² times the mean Kullback-Leibler divergence, in nats, of the student's answers from the teacher's.

    Both are logits, divided by the temperature T before the softmax. The gradients of the soft targets shrink as 1/T²,
    and the factor keeps them as large as those of the labels (Hinton et al. 2015, "Distilling the knowledge in a neural
    network", section 2). No gradient reaches `teacher`. A class to which both give -inf adds nothing.

    Of logits for several places, such as the tokens of a text or the pixels of an image, it is the mean over the places
    as well. `dim` is the axis of the classes: by default 1, as in (batch, classes) and (batch, classes, height, width).
    It has to be given for three axes, as (batch, classes, places) and (batch, places, classes) look the same.

    Raises ValueError for logits of different shapes, a temperature that is no finite number above 0, and a `dim` that
    is missing or no axis of classes.
    """
    _check_same_shape(student, teacher)
    if dim is None and student.dim() == 3:
        shape = tuple(student.shape)
        raise ValueError(f"dim=None for logits of shape {shape}; allowed: 1 or 2, the axis of the classes")
    return _divergence(_rows(student, dim), _rows(teacher.detach(), dim), temperature)


def mixed_loss(
    student: Float[Tensor, "batch *classes"],
    teacher: Float[Tensor, "batch *_"],
    labels: Int64[Tensor, "batch *places"],
    *,
    temperature: float = 4.0,
    share: float = 0.9,
    dim: int | None = None,
) -> Float[Tensor, ""]:
    """Return `share` of `soft_target_loss`, and for the rest the labels' cross-entropy (nats).

    With a share of 0 the teacher's logits change nothing. Places whose label is `training.IGNORED` (-100) count in
    neither part. The labels' shape, that of the logits without the classes, says which axis these are: `dim` has to be
    given only where two axes fit, as for ten tokens and ten classes.

    Raises ValueError for a share outside [0, 1], labels that do not fit or of which none counts, and what
    `soft_target_loss` raises.
    """
    checks.fraction("share", share, upper_open=False)
    _check_same_shape(student, teacher)
    dim = _class_axis(student, labels) if dim is None else dim
    rows, taught = _rows(student, dim), _rows(teacher.detach(), dim)
    expected = tuple(size for axis, size in enumerate(student.shape) if axis != dim % student.dim())
    if tuple(labels.shape) != expected:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; allowed: {expected}, as axis {dim} is the classes")
    classes = labels.flatten().long()
    check_labels(rows, labels.flatten())
    if (ignored := classes == IGNORED).any():
        rows, taught, classes = rows[~ignored], taught[~ignored], classes[~ignored]
    return share * _divergence(rows, taught, temperature) + (1 - share) * F.cross_entropy(rows, classes)


def _check_same_shape(student: Tensor, teacher: Tensor) -> None:
    for name, logits in (("student", student), ("teacher", teacher)):
        if not logits.is_floating_point():
            raise ValueError(f"{name} has type {logits.dtype}; allowed: logits, floating point numbers")
    if student.shape != teacher.shape:
        raise ValueError(f"teacher has shape {tuple(teacher.shape)}; allowed: the student's, {tuple(student.shape)}")


def _class_axis(logits: Tensor, labels: Tensor) -> int:
    """Return the axis without which the logits have the shape of the labels; ValueError unless there is just one."""
    without = {dim: logits.shape[:dim] + logits.shape[dim + 1 :] for dim in range(1, logits.dim())}
    fitting = [dim for dim in without if without[dim] == labels.shape]
    if len(fitting) == 1:
        return fitting[0]
    logits_shape, shape = tuple(logits.shape), tuple(labels.shape)
    if fitting:
        allowed = " or ".join(map(str, fitting))
        raise ValueError(
            f"dim=None for logits {logits_shape} and labels {shape}; allowed: {allowed}, the classes' axis"
        )
    raise ValueError(f"labels has shape {shape}; allowed: that of the logits, {logits_shape}, without the classes")


def _rows(logits: Tensor, dim: int | None) -> Float[Tensor, "places classes"]:
    """Return the logits as rows, one for each example or place, with the classes on axis `dim`, by default 1."""
    dim = 1 if dim is None else dim
    if logits.dim() < 2 or 0 in logits.shape:
        raise ValueError(f"student has shape {tuple(logits.shape)}; allowed: (batch, classes, ...), none of them 0")
    if isinstance(dim, bool) or not isinstance(dim, int) or not (1 <= dim < logits.dim() or 1 <= -dim < logits.dim()):
        raise ValueError(f"dim={dim!r}; allowed: the axis of the classes, 1 to {logits.dim() - 1}, or counted from -1")
    return logits if logits.dim() == 2 else logits.movedim(dim, -1).flatten(0, -2)


def _divergence(
    student: Float[Tensor, "places classes"], teacher: Float[Tensor, "places classes"], temperature: float
) -> Float[Tensor, ""]:
    checks.number("temperature", temperature, above=0)
    softened = F.softmax(teacher / temperature, dim=1)
    answered = F.log_softmax(student / temperature, dim=1).masked_fill(softened == 0, 0)  # 0 · log 0 is 0
    return temperature**2 * F.kl_div(answered, softened, reduction="batchmean")


class Ensemble(nn.Module):
    """Copies of several networks, and as logits the mean of theirs.

    The softmax of a mean of logits is the geometric mean of the networks' answers, made to sum to 1: one of the two
    ways to pool teachers in Hinton et al. 2015, section 2. Raises ValueError if there is no member, and in `forward` if
    the members do not agree on the classes.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        if isinstance(members, nn.Module) and not isinstance(members, nn.ModuleList):
            raise ValueError(f"members is a {type(members).__name__}; allowed: several networks, as in a list")
        networks = checks.not_empty("members", list(members))
        if not all(isinstance(member, nn.Module) for member in networks):
            raise ValueError(f"members={networks!r}; allowed: networks (nn.Module)")
        copies = modules.copied(nn.ModuleList(networks))
        assert isinstance(copies, nn.ModuleList)
        self.members = copies

    def forward(self, inputs: Tensor) -> Float[Tensor, "batch *classes"]:
        """Return the mean logits."""
        logits = [logits_of(member(inputs)) for member in self.members]
        if len(shapes := {tuple(each.shape) for each in logits}) > 1:
            raise ValueError(f"members give logits of shapes {sorted(shapes)}; allowed: one shape")
        return torch.stack(logits).mean(0)


# ---------------------------------------------------------------- losses for `training.fit`


def taught_by(teacher: nn.Module, *, temperature: float = 4.0, share: float = 0.9, dim: int | None = None) -> Loss:
    """Return a loss for `training.fit`: the `mixed_loss` of the model's logits and the teacher's on the same inputs.

    The teacher (an `Ensemble` for several) is copied, stays in evaluation mode, and no gradient reaches it. Raises
    ValueError for a share outside [0, 1] and a temperature that is no finite number above 0; the loss raises what
    `mixed_loss` does.
    """
    checks.fraction("share", share, upper_open=False)
    checks.number("temperature", temperature, above=0)
    fixed = modules.to_channels_last(modules.copied(teacher).eval().requires_grad_(False).to(device()))

    def taught(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        logits = logits_of(model(inputs))
        said = _answers(fixed, inputs).to(logits.dtype)
        return mixed_loss(logits, said, labels, temperature=temperature, share=share, dim=dim)

    return taught


def _answers(teacher: nn.Module, inputs: Tensor) -> Tensor:
    """Return the teacher's logits; where it fails with channels last, it is laid out as usual from then on."""
    try:
        return logits_of(teacher(inputs))
    except RuntimeError:
        return logits_of(teacher.to(memory_format=torch.contiguous_format)(inputs))


def taught_from(
    answers: Float[Tensor, "examples views *classes"], view: View, *, loss: LossOfAnswers = mixed_loss
) -> Loss:
    """Return a loss for `training.fit` on a split whose inputs are the numbers of examples: 0, 1, 2 and so on.

    In each step one view of each example is drawn, `view(numbers, which)` makes the inputs, and `loss` gets the model's
    logits, the teacher's answers to those very inputs, and the labels. So a teacher answers each view once, however
    many epochs and students follow. The draw depends on PyTorch's global random state alone, which `fit` seeds by seed
    and epoch: whatever the loss and the answers, students with the same seed see the same inputs in the same order.

    Args:
        answers: the teacher's logits on each fixed view of each example, of one or several places. No gradient reaches
            them.
        view: function of (numbers of examples, numbers of views), both int64 (batch,) on the CPU, that returns a batch.
        loss: function of (student's logits, teacher's logits, labels) that returns a scalar.

    Raises:
        ValueError: `answers` has fewer than three dimensions, or one of them is empty; in the loss, for inputs that are
            no numbers of examples.
    """
    if answers.dim() < 3 or 0 in answers.shape:
        allowed = "(examples, views, classes) or more, none of them 0"
        raise ValueError(f"answers has shape {tuple(answers.shape)}; allowed: {allowed}")
    check_functions(view=view, loss=loss)
    fixed = answers.detach()

    def taught(model: nn.Module, numbers: Tensor, labels: Tensor) -> Tensor:
        numbers = _checked_numbers("inputs", numbers.cpu(), len(fixed))
        which = torch.randint(fixed.shape[1], numbers.shape)
        logits = logits_of(model(_laid_out_for(model, view(numbers, which).to(labels.device))))
        return loss(logits, fixed[numbers, which].to(labels.device), labels)

    return taught


def _checked_numbers(name: str, numbers: Tensor, count: int) -> Tensor:
    """Return numbers of examples if they are whole and there are such examples; raise ValueError otherwise."""
    if numbers.dim() != 1 or numbers.dtype != torch.int64 or len(numbers) == 0:
        said = f"{numbers.dtype} of shape {tuple(numbers.shape)}"
        raise ValueError(f"{name} holds {said}; allowed: the numbers of examples, torch.int64 of shape (batch,)")
    low, high = map(int, numbers.aminmax())
    if low < 0 or high >= count:
        raise ValueError(f"{name} holds {low if low < 0 else high}; allowed: numbers of examples, 0 to {count - 1}")
    return numbers


def _laid_out_for(model: nn.Module, images: Tensor) -> Tensor:
    """Return images laid out as the weights of the model's convolutions are: `fit` decides."""
    formats = {suggest_memory_format(weight) for weight in model.parameters()}
    return channels_last(images) if torch.channels_last in formats else images


def fixed_views(
    inputs: Float[Tensor, "examples channels height width"],
    *,
    views: int,
    pixels: int = 2,
    mirror: bool = False,
    seed: int = 0,
) -> View:
    """Return a view for `taught_from` and `ask`: it moves images by up to `pixels` in each direction.

    Edge pixels fill the gap. Each example has `views` versions, drawn at random, but once for all. With `mirror` every
    second version, drawn at random, is mirrored left to right.

    Raises:
        ValueError: `inputs` is empty or no batch of images in floating point, or `views` or `pixels` is no whole number
            of at least 1.
    """
    count = len(checks.not_empty("inputs", inputs))
    if inputs.dim() != 4 or not inputs.is_floating_point():
        said = f"{inputs.dtype} of shape {tuple(inputs.shape)}"
        raise ValueError(f"inputs holds {said}; allowed: floats of shape (examples, channels, height, width)")
    checks.positive("views", views)
    checks.positive("pixels", pixels)
    generator = torch.Generator().manual_seed(checked_seed(seed))
    mirrored = torch.rand(count, views, generator=generator) < (0.5 if mirror else 0.0)
    moves = torch.randint(-pixels, pixels + 1, (2, count, views), generator=generator)

    def view(numbers: Tensor, which: Tensor) -> Tensor:
        _checked_numbers("numbers", numbers, count)
        images, flipped = inputs[numbers], mirrored[numbers, which][:, None, None, None]
        down, right = moves[:, numbers, which]
        padded = F.pad(torch.where(flipped, images.flip(3), images), (pixels,) * 4, mode="replicate")
        windows = padded.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)  # nothing is copied yet
        return windows[torch.arange(len(images)), :, pixels - down, pixels - right]

    return view


def ask(teacher: nn.Module, view: View, *, examples: int, views: int) -> Float[Tensor, "examples views *classes"]:
    """Return the teacher's logits on each view of the first `examples` examples, for `taught_from`.

    The teacher answers in evaluation mode. Raises ValueError unless both numbers are whole and at least 1.
    """
    check_functions(view=view)
    parts = torch.arange(checks.positive("examples", examples)).split(2_500)
    of_view = [
        torch.cat([predict(teacher, view(part, torch.full_like(part, number))) for part in parts])
        for number in range(checks.positive("views", views))
    ]
    return torch.stack(of_view, dim=1)


# ---------------------------------------------------------------- attention


def with_features(
    model: nn.Module, inputs: Tensor, layers: Iterable[str]
) -> tuple[Float[Tensor, "batch *classes"], dict[str, Tensor]]:
    """Return the model's logits, and by name what the modules `layers` put out on the way, in the last call of each.

    What a layer puts out is handed out even if a later one overwrites it (as `nn.ReLU(inplace=True)` does). Raises
    ValueError for a name that the model has not, and for a layer that is not called or puts out no tensor.
    """
    parts, seen = dict(model.named_modules()), dict[str, Tensor]()
    names = [checks.choice("layers", name, parts) for name in layers]
    hooks = [(parts[name], partial(_keep_output, seen, name)) for name in names]
    with modules.hooked(hooks), modules.asked("inputs", inputs):
        logits = logits_of(model(inputs))
    for name in names:
        if name not in seen:
            raise ValueError(f"layers={name!r} is not called by the model; allowed: layers that it uses")
    return logits, seen


def _keep_output(seen: dict[str, Tensor], name: str, module: nn.Module, inputs: object, output: object) -> None:
    if not isinstance(output, Tensor):
        raise ValueError(f"layers={name!r} puts out a {type(output).__name__}; allowed: layers that put out a tensor")
    seen[name] = output.clone()


def attention_map(features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch places"]:
    """Return where a convolution's output is strong: squares summed over the channels, as vectors of length 1.

    Zagoruyko and Komodakis 2017, "Paying more attention to attention", section 3.1. A map does not depend on the number
    of channels, so that networks of different widths can be compared. At least single precision. Raises ValueError for
    features of fewer than four axes: those of a text may have their channels last.
    """
    if features.dim() < 4 or 0 in features.shape:
        shape = tuple(features.shape)
        raise ValueError(f"features has shape {shape}; allowed: (batch, channels, height, width), none of them 0")
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return F.normalize(features.square().sum(dim=1).flatten(1), dim=1)


def attention_loss(student: Float[Tensor, "batch places"], teacher: Float[Tensor, "_ _"]) -> Float[Tensor, ""]:
    """Return the squared distance of two attention maps, mean over the batch: 2 - 2 cos of the angle between them.

    Maps of several layers may stand side by side: their distances add up. (Equation 2 of Zagoruyko and Komodakis 2017,
    with the distance squared.) No gradient reaches `teacher`. Raises ValueError for maps of different shapes, or of
    other shapes than (batch, places).
    """
    _check_same_shape(student, teacher)
    if student.dim() != 2 or 0 in student.shape:
        raise ValueError(f"student has shape {tuple(student.shape)}; allowed: (batch, places), none of them 0")
    return (student - teacher.detach()).square().sum(dim=1).mean()
