"""Losses that learn from a teacher's logits."""

from collections.abc import Callable

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from helpers.core import checks
from helpers.training import IGNORED, check_labels

LossOfAnswers = Callable[[Tensor, Tensor, Tensor], Tensor]  # (student's logits, teacher's, labels) → a scalar


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
    check_same_shape(student, teacher)
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
    check_same_shape(student, teacher)
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


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless student and teacher are floating point tensors of the same shape."""
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
