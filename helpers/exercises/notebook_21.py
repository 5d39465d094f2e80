"""The exercises of notebook 21."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from helpers.exercises.checking import Wrong, exercise, within_factor


@exercise("21.1")
def _share_of_zeros(share: Callable[[torch.nn.Module], float]) -> str:
    net: Any = nn.Sequential(nn.Embedding(90, 10), nn.Flatten(), nn.Linear(20, 5))
    with torch.no_grad():
        net[2].weight.zero_()
        net[2].bias.fill_(-1.0)
        net[0].weight[0, :5] = 0.0
    before = [p.clone() for p in net.parameters()]
    zeros = [int((p == 0).sum()) for p in net.parameters()]
    counts = [p.numel() for p in net.parameters()]
    found, right = float(share(net)), sum(zeros) / sum(counts)
    said = f"{sum(zeros)} of {sum(counts):,} parameters are zero, {right:.4f} of all; yours: {found:.4g}."
    if not all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)):
        raise Wrong("The network was changed.", hint="Look and do not touch: compare with 0, in a new tensor.")
    if abs(found - right) < 1e-5:
        return "Of everything: an embedding counts, and so does a bias."
    if abs(found - sum(z / n for z, n in zip(zeros, counts, strict=True)) / len(counts)) < 1e-5:
        raise Wrong(
            said, hint="A mean of the layers' shares lets five biases weigh as much as 900 weights. Count first."
        )
    if abs(found - zeros[1] / (counts[1] + counts[2])) < 1e-5 or abs(found - zeros[1] / counts[1]) < 1e-5:
        raise Wrong(said, hint="That is the linear layer alone. model.parameters() has the embedding, too.")
    if found > 1:
        raise Wrong(said, hint="A fraction is asked for: divide by the number of all parameters.")
    raise Wrong(said, hint="Zeros of all parameters over the number of all parameters; == 0 tells, and not < a bound.")


@exercise("21.2")
def _really_removed(judge: Callable[..., bool]) -> str:
    example = torch.randn(5, 3, 8, 8)
    before = _small_net(12, 10)
    weights = [tensor.clone() for tensor in before.state_dict().values()]
    for name, after, expected, hint in _candidates(before):
        found = judge(before, after, example)
        if not isinstance(found, bool):
            raise Wrong(f"For {name} you returned {found!r}.", hint="Return True or False; bool(...) makes one of it.")
        if found != expected:
            raise Wrong(f"For {name} you returned {found}, and it is {expected}.", hint=hint)
    if not all(torch.equal(a, b) for a, b in zip(weights, before.state_dict().values(), strict=True)):
        raise Wrong("The network before was changed.", hint="A judge looks and does not touch.")
    return "Masks, zeros, shared weights, longer strides and other answers are all told from removal."


def _small_net(channels: int, classes: int, *, stride: int = 1) -> torch.nn.Sequential:
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, stride=stride),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * channels, classes),
    )


def _candidates(before: torch.nn.Sequential) -> list[tuple[str, torch.nn.Module, bool, str]]:
    """Return networks after "compression": name, network, whether it is really smaller, hint."""
    from torch.nn.utils import prune

    masked, zeroed, single, shared = (deepcopy(before) for _ in range(4))
    prune.ln_structured(masked[2], "weight", amount=0.5, n=1, dim=0)
    prune.remove(prune.ln_structured(zeroed[2], "weight", amount=0.5, n=1, dim=0), "weight")
    prune.l1_unstructured(single[6], "weight", amount=0.9)
    shared.insert(3, shared[2])  # more work, and a parameter that is used twice
    del shared[4]
    shared[0] = torch.nn.Conv2d(3, 12, 3, padding=1, bias=False)
    count = "Count what is stored and what is multiplied. Zeros are stored and multiplied, too."
    masks = "A mask is a buffer. A network that stores weights and masks has grown: count model.buffers() as well."
    return [
        ("a network with half of its channels removed", _small_net(6, 10), True, "Both counts have fallen: True."),
        ("a copy", deepcopy(before), False, "Smaller means less than before, not at most as much."),
        ("a network with masked channels", masked, False, masks),
        ("a network with zeroed channels", zeroed, False, count),
        ("a network with masked weights", single, False, masks),
        (
            "a network with fewer parameters and one layer used twice",
            shared,
            False,
            "Fewer numbers can do more work: count the multiply-accumulates as well.",
        ),
        (
            "a network with a longer stride",
            _small_net(12, 10, stride=2),
            False,
            "It does less work with all of its numbers: count what is stored as well.",
        ),
        (
            "a network that has lost five classes",
            _small_net(6, 5),
            False,
            "It is smaller, and answers another question: compare the shapes of the answers.",
        ),
    ]


@exercise("21.3")
def _loss_faults(inspect: Callable[..., set[str]]) -> str:
    functional = torch.nn.functional
    inputs, labels = torch.randn(6, 8), torch.arange(6)

    def soft(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        targets = (teacher / 4).softmax(1)
        return 16 * functional.kl_div((student / 4).log_softmax(1), targets, reduction="batchmean")

    losses: dict[str, tuple[Callable[..., torch.Tensor], set[str]]] = {
        "a loss that is fine": (
            lambda s, t, x, y: soft(s(x), t(x).detach()) + functional.cross_entropy(s(x), y),
            set(),
        ),
        "mean squared error of both networks' logits": (
            lambda s, t, x, y: (s(x) - t(x)).square().mean(),
            {"teacher gets gradients", "labels are ignored"},
        ),
        "soft targets without detach, and labels": (
            lambda s, t, x, y: soft(s(x), t(x)) + functional.cross_entropy(s(x), y),
            {"teacher gets gradients"},
        ),
        "soft targets with detach, without labels": (
            lambda s, t, x, y: soft(s(x), t(x).detach()) + 0 * functional.cross_entropy(s(x), y),
            {"labels are ignored"},
        ),
    }
    for frozen in (False, True):
        for name, (loss, expected) in losses.items():
            student, teacher = torch.nn.Linear(8, 10), torch.nn.Linear(8, 10)
            teacher.requires_grad_(not frozen)
            expected = expected - {"teacher gets gradients"} if frozen else expected
            said = f"{name}, teacher frozen" if frozen else name
            found = inspect(loss, student, teacher, inputs, labels)
            if not isinstance(found, set):
                raise Wrong(f"For {said} you returned {found!r}.", hint="Return a set; one without faults is set().")
            if found != expected:
                _say_which_fault(said, found, expected)
            left = [p for p in (*student.parameters(), *teacher.parameters()) if p.grad is not None]
            if left:
                raise Wrong(
                    f"After {said}, {len(left)} parameters have gradients.",
                    hint="torch.autograd.grad returns gradients and stores none; or set them to None afterwards.",
                )
    return "Four losses, with a free and with a frozen teacher: each fault found, and no other."


def _say_which_fault(said: str, found: set[str], expected: set[str]) -> None:
    hints = {
        "teacher gets gradients": "Differentiate the loss with respect to the teacher's parameters that can have "
        "gradients: allow_unused=True gives None where there are none. A teacher without such parameters gets none.",
        "labels are ignored": "Compute the loss twice, with other labels the second time. The same value: not read.",
    }
    for fault, hint in hints.items():
        if (fault in found) != (fault in expected):
            verb = "missed" if fault in expected else "reported"
            raise Wrong(f"For {said} you {verb} {fault!r}.", hint=hint)
    raise Wrong(f"For {said} you returned {found!r}.", hint=f"Only these two words: {', '.join(hints)}.")


@exercise("21.4")
def _share_of_the_whole(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.1,
        unit="(fraction)",
        too_low="Nine tenths of 20,200 weights are zero. The network has 1,020,400.",
        too_high="The vectors of 10,002 words were not pruned, and they are nearly all of the network.",
    )
