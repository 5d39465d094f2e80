"""Distillation: losses in which a trained network's answers, or where it looks, teach another one."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import checks
from helpers.training import Loss, channels_last, device, predict

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
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "_ _"], *, temperature: float
) -> Float[Tensor, ""]:
    """Return T² times the mean Kullback-Leibler divergence, in nats, of the student's answers from the teacher's.

    Both are logits, divided by the temperature T before the softmax. The gradients of the soft targets shrink as 1/T²,
    and the factor keeps them as large as those of the labels (Hinton et al. 2015, "Distilling the knowledge in a neural
    network", section 2). No gradient reaches `teacher`.

    Raises ValueError for logits of different shapes or a temperature that is not above 0.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"teacher has shape {tuple(teacher.shape)}; allowed: the student's, {tuple(student.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r}; allowed: a number above 0")
    softened = F.softmax(teacher.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(F.log_softmax(student / temperature, dim=1), softened, reduction="batchmean")


def mixed_loss(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "_ _"],
    labels: Int64[Tensor, " batch"],
    *,
    temperature: float = 4.0,
    share: float = 0.9,
) -> Float[Tensor, ""]:
    """Return `share` of `soft_target_loss`, and for the rest the labels' cross-entropy (nats).

    With a share of 0 the teacher's logits change nothing. Raises ValueError for a share outside [0, 1] and what
    `soft_target_loss` raises.
    """
    checks.fraction("share", share, upper_open=False)
    soft = soft_target_loss(student, teacher, temperature=temperature)
    return share * soft + (1 - share) * F.cross_entropy(student, labels)


class Ensemble(nn.Module):
    """Copies of several networks, and as logits the mean of theirs.

    The softmax of a mean of logits is the geometric mean of the networks' answers, made to sum to 1: one of the two
    ways to pool teachers in Hinton et al. 2015, section 2. Raises ValueError if there is no member, and in `forward` if
    the members do not agree on the classes.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(deepcopy(checks.not_empty("members", list(members))))

    def forward(self, inputs: Tensor) -> Float[Tensor, "batch classes"]:
        """Return the mean logits."""
        logits = [member(inputs) for member in self.members]
        if len(shapes := {tuple(each.shape) for each in logits}) > 1:
            raise ValueError(f"members give logits of shapes {sorted(shapes)}; allowed: one shape")
        return torch.stack(logits).mean(0)


# ---------------------------------------------------------------- losses for `training.fit`


def taught_by(teacher: nn.Module, *, temperature: float = 4.0, share: float = 0.9) -> Loss:
    """Return a loss for `training.fit`: the `mixed_loss` of the model's logits and the teacher's on the same inputs.

    The teacher (an `Ensemble` for several) is copied, stays in evaluation mode, and no gradient reaches it. Raises
    ValueError for a share outside [0, 1]; the loss raises what `mixed_loss` does.
    """
    checks.fraction("share", share, upper_open=False)
    fixed = deepcopy(teacher).eval().requires_grad_(False).to(device()).to(memory_format=torch.channels_last)

    def taught(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        logits = model(inputs)
        return mixed_loss(logits, fixed(inputs).to(logits.dtype), labels, temperature=temperature, share=share)

    return taught


def taught_from(
    answers: Float[Tensor, "examples views classes"], view: View, *, loss: LossOfAnswers = mixed_loss
) -> Loss:
    """Return a loss for `training.fit` on a split whose inputs are the numbers of examples: 0, 1, 2 and so on.

    In each step one view of each example is drawn, `view(numbers, which)` makes the inputs, and `loss` gets the model's
    logits, the teacher's answers to those very inputs, and the labels. So a teacher answers each view once, however
    many epochs and students follow. The draw depends on PyTorch's global random state alone, which `fit` seeds by seed
    and epoch: whatever the loss and the answers, students with the same seed see the same inputs in the same order.

    Args:
        answers: the teacher's logits on each fixed view of each example. No gradient reaches them.
        view: function of (numbers of examples, numbers of views), both int64 (batch,) on the CPU, that returns a batch.
        loss: function of (student's logits, teacher's logits, labels) that returns a scalar.

    Raises:
        ValueError: `answers` has other than three dimensions, or one of them is empty.
    """
    if answers.dim() != 3 or 0 in answers.shape:
        raise ValueError(
            f"answers has shape {tuple(answers.shape)}; allowed: (examples, views, classes), none of them 0"
        )
    fixed = answers.detach()

    def taught(model: nn.Module, numbers: Tensor, labels: Tensor) -> Tensor:
        numbers = numbers.cpu()
        which = torch.randint(fixed.shape[1], numbers.shape)
        logits = model(channels_last(view(numbers, which).to(labels.device)))
        return loss(logits, fixed[numbers, which].to(labels.device), labels)

    return taught


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
        ValueError: `inputs` is empty, or `views` or `pixels` is no whole number of at least 1.
    """
    count = len(checks.not_empty("inputs", inputs))
    checks.positive("views", views)
    checks.positive("pixels", pixels)
    generator = torch.Generator().manual_seed(seed)
    mirrored = torch.rand(count, views, generator=generator) < (0.5 if mirror else 0.0)
    moves = torch.randint(-pixels, pixels + 1, (2, count, views), generator=generator)

    def view(numbers: Tensor, which: Tensor) -> Tensor:
        images, flipped = inputs[numbers], mirrored[numbers, which][:, None, None, None]
        down, right = moves[:, numbers, which]
        padded = F.pad(torch.where(flipped, images.flip(3), images), (pixels,) * 4, mode="replicate")
        windows = padded.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)  # nothing is copied yet
        return windows[torch.arange(len(images)), :, pixels - down, pixels - right]

    return view


def ask(teacher: nn.Module, view: View, *, examples: int, views: int) -> Float[Tensor, "examples views classes"]:
    """Return the teacher's logits on each view of the first `examples` examples, for `taught_from`.

    The teacher answers in evaluation mode. Raises ValueError unless both numbers are whole and at least 1.
    """
    parts = torch.arange(checks.positive("examples", examples)).split(2_500)
    of_view = [
        torch.cat([predict(teacher, view(part, torch.full_like(part, number))) for part in parts])
        for number in range(checks.positive("views", views))
    ]
    return torch.stack(of_view, dim=1)


# ---------------------------------------------------------------- attention


def with_features(
    model: nn.Module, inputs: Tensor, layers: Iterable[str]
) -> tuple[Float[Tensor, "batch classes"], dict[str, Tensor]]:
    """Return the model's logits, and by name what the modules `layers` put out on the way.

    Raises ValueError for a name that the model has not.
    """
    modules, seen = dict(model.named_modules()), dict[str, Tensor]()
    names = [checks.choice("layers", name, modules) for name in layers]
    hooks = [modules[name].register_forward_hook(partial(_keep_output, seen, name)) for name in names]
    try:
        return model(inputs), seen
    finally:
        for hook in hooks:
            hook.remove()


def _keep_output(seen: dict[str, Tensor], name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
    seen[name] = output


def attention_map(features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch places"]:
    """Return where a convolution's output is strong: squares summed over the channels, as vectors of length 1.

    Zagoruyko and Komodakis 2017, "Paying more attention to attention", section 3.1. A map does not depend on the number
    of channels, so that networks of different widths can be compared. At least single precision.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return F.normalize(features.square().sum(dim=1).flatten(1), dim=1)


def attention_loss(student: Float[Tensor, "batch places"], teacher: Float[Tensor, "_ _"]) -> Float[Tensor, ""]:
    """Return the squared distance of two attention maps, mean over the batch: 2 - 2 cos of the angle between them.

    Maps of several layers may stand side by side: their distances add up. (Equation 2 of Zagoruyko and Komodakis 2017,
    with the distance squared.) No gradient reaches `teacher`. Raises ValueError for maps of different shapes.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"teacher has shape {tuple(teacher.shape)}; allowed: the student's, {tuple(student.shape)}")
    return (student - teacher.detach()).square().sum(dim=1).mean()
