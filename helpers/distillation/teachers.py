"""Teachers: asked at each step, asked beforehand, or several as one."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.nn import functional as F

from helpers.core import checks, modules
from helpers.core.modules import channels_last
from helpers.distillation.losses import LossOfAnswers, mixed_loss
from helpers.training import device, logits_of, predict
from helpers.training.loop import check_functions
from helpers.training.losses import Loss
from helpers.training.reproducibility import checked_seed

View = Callable[[Tensor, Tensor], Tensor]  # (numbers of examples, numbers of views) → a batch of inputs


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
