"""The exercises of notebook 12."""

from collections.abc import Callable

import torch

from helpers.exercises.checking import Wrong, exercise, within_factor


@exercise("12.1")
def _doubt(doubt: Callable[[torch.Tensor, float], torch.Tensor]) -> str:
    for temperature, rows, classes in ((1.0, 5, 10), (4.0, 3, 4), (20.0, 6, 3)):
        logits = 5 * torch.randn(rows, classes, dtype=torch.float64)
        weights = (logits / temperature).exp()
        answers = (weights / weights.sum(dim=1, keepdim=True)).sort(dim=1, descending=True).values
        found, expected = doubt(logits.clone(), temperature), answers[:, 1:].sum(dim=1)
        if not isinstance(found, torch.Tensor) or found.shape != (rows,):
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else repr(found)
            raise Wrong(
                f"There is one number for each of {rows} answers; yours: {shape}.",
                hint="Take the largest probability of each row: amax(dim=1).",
            )
        if torch.allclose(found.double(), expected, atol=1e-6):
            continue
        others = {
            "You returned the first choice itself; the doubt is what it leaves over.": answers[:, 0],
            "The runner-up alone is not all of the doubt: the other classes count, too.": answers[:, 1],
            "Divide the logits by the temperature before the softmax.": 1 - logits.softmax(dim=1).amax(dim=1),
            "The logits are divided by the temperature, not multiplied.": 1
            - (logits * temperature).softmax(dim=1).amax(dim=1),
        }
        for hint, other in others.items():
            if torch.allclose(found.double(), other, atol=1e-6):
                raise Wrong(f"At T = {temperature:g} this is not the doubt.", hint=hint)
        raise Wrong(
            f"At T = {temperature:g} an answer keeps back {float(expected[0]):.4f}; yours: {float(found[0]):.4f}.",
            hint="One minus the largest entry of softmax(logits / T), row by row.",
        )
    return "What the first choice leaves over, at every temperature."


@exercise("12.2")
def _soft_gradient(gradient: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]) -> str:
    for temperature, rows, classes in ((3.0, 6, 10), (1.0, 4, 3), (20.0, 5, 7)):
        student, teacher = 4 * torch.randn(2, rows, classes, dtype=torch.float64)
        leaf = student.clone().requires_grad_()
        p, q = (torch.distributions.Categorical(logits=each / temperature) for each in (teacher, leaf))
        (temperature**2 * torch.distributions.kl_divergence(p, q).mean()).backward()
        expected = leaf.grad
        assert expected is not None
        found = _without_autograd(gradient, student, teacher, temperature)
        if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else repr(found)
            raise Wrong(
                f"The gradient has the shape of the logits, {rows} × {classes}; yours: {shape}.",
                hint="One number for each logit of the student: q - p has the right shape already.",
            )
        if torch.allclose(found, expected, rtol=1e-4, atol=1e-9):
            continue
        hints = {
            -1.0: "The sign: where the student says too much, q > p, its logit must fall, so the gradient is positive.",
            float(rows): "The loss is the mean over the examples: each has the weight 1 / batch.",
            1 / temperature: "T² from the loss, 1/T from the chain rule: what is left of them?",
            1 / temperature**2: "Do not forget the T² in front of the loss.",
            temperature: "T² from the loss is there; the 1/T of the chain rule is not.",
        }
        for factor, hint in hints.items():
            if torch.allclose(found, factor * expected, rtol=1e-4, atol=1e-9):
                raise Wrong(f"At T = {temperature:g} your gradient is {factor:.3g} times the right one.", hint=hint)
        distance = float((found - expected).norm() / expected.norm())
        raise Wrong(
            f"At T = {temperature:g} your gradient is {distance:.0%} of its length away from autograd's.",
            hint="Both softmaxes are taken of logits divided by T; the difference is q - p, the student's first.",
        )
    return "The same as autograd's, at every temperature."


def _without_autograd(
    gradient: Callable[..., torch.Tensor], student: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> torch.Tensor:
    with torch.inference_mode():
        try:
            return gradient(student.clone(), teacher.clone(), temperature)
        except RuntimeError as error:
            if "grad" not in str(error):
                raise
            raise Wrong(
                "Your function asked autograd, which is switched off here.",
                hint="Work the derivative out on paper: softmaxes of both logits, a difference, and a factor.",
            ) from None


@exercise("12.3")
def _few_labels(loss: Callable[..., torch.Tensor]) -> str:
    for labels in ([2, 0, 3, 1], [2, -1, -1, 1], [-1, 0, -1, -1], [-1, -1, -1, -1]):
        student, teacher = 3 * torch.randn(2, 4, 5, dtype=torch.float64)
        soft = 4 * torch.nn.functional.kl_div(
            (student / 2).log_softmax(1), (teacher / 2).log_softmax(1), reduction="batchmean", log_target=True
        )
        known = [row for row, label in enumerate(labels) if label >= 0]
        each = [float(student[row].logsumexp(0) - student[row, labels[row]]) for row in known]
        expected = 0.75 * float(soft) + 0.25 * sum(each) / max(1, len(known))
        found = loss(student.clone(), teacher.clone(), torch.tensor(labels), temperature=2.0, share=0.75)
        if not isinstance(found, torch.Tensor) or found.dim() > 0:
            raise Wrong(f"The loss is one number; yours is {found!r}.", hint="Return a scalar tensor: two terms added.")
        if abs(float(found) - expected) <= 1e-4:
            continue
        said = f"With the labels {labels} the loss is {float(found):.4g} where {expected:.4g} is right."
        if not known:
            raise Wrong(
                said, hint="No label is known here. A mean over nothing is not a number: clamp its divisor to 1."
            )
        if len(known) == 4:
            raise Wrong(said, hint="All labels are known here: share of the soft-target loss, the rest cross-entropy.")
        if abs(float(found) - (0.75 * float(soft) + 0.25 * sum(each) / 4)) <= 1e-4:
            raise Wrong(said, hint="The cross-entropy is a mean over the known labels, not over the batch.")
        raise Wrong(
            said,
            hint="-1 is not the digit 0: labels >= 0 picks the known ones. The teacher speaks about every example.",
        )
    return "Every example has a teacher, and some have a label."


@exercise("12.4")
def _right_digit(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.15,
        unit="(probability)",
        too_low="With equal logits it would be 0.1. The right one is lead/20 ahead: e^(lead/20) against nine times 1.",
        too_high="The lead is divided by 20 before the exponential, and the nine others share what is left.",
    )
