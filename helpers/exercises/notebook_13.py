"""The exercises of notebook 13."""

from collections.abc import Callable

import torch

from helpers.exercises.checking import Wrong, exercise, within_factor


def _logits(found: object, shape: tuple[int, ...], hint: str) -> torch.Tensor:
    """Return what a student's function gave, as double; raise Wrong unless it is a tensor of this shape."""
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != shape:
        given = tuple(found.shape) if isinstance(found, torch.Tensor) else repr(found)
        raise Wrong(f"The answer has the shape {shape}; yours: {given}.", hint=hint)
    return found.double()


@exercise("13.1")
def _committee(pooled: Callable[[list[torch.Tensor]], torch.Tensor]) -> str:
    for teachers, rows, classes in ((2, 5, 10), (3, 4, 2), (3, 3, 3)):
        answers = [3 * torch.randn(rows, classes, dtype=torch.float64) for _ in range(teachers)]
        expected = torch.zeros(rows, classes, dtype=torch.float64)
        for answer in answers:
            expected += answer / teachers
        found = _logits(
            pooled([answer.clone() for answer in answers]),
            (rows, classes),
            "Stack the answers, and take the mean over the first axis: that of the teachers.",
        )
        if torch.allclose(found, expected, atol=1e-6):
            continue
        said = (
            f"With {teachers} teachers the first logit is {float(expected[0, 0]):.4f}; yours: {float(found[0, 0]):.4f}."
        )
        if torch.allclose(found, teachers * expected, atol=1e-6):
            raise Wrong(said, hint="That is their sum: three teachers would be three times as sure as one.")
        probabilities = torch.stack(answers).softmax(dim=2).mean(dim=0)
        if torch.allclose(found, probabilities, atol=1e-6):
            raise Wrong(said, hint="Those are probabilities. Section 2 takes the mean of the logits.")
        raise Wrong(said, hint="torch.stack makes one tensor of the list; its mean over dim=0 is what section 2 used.")
    return "One teacher made of several."


@exercise("13.2")
def _other_mean(by_probabilities: Callable[[list[torch.Tensor]], torch.Tensor]) -> str:
    for teachers, rows, classes, spread in ((2, 4, 10, 2.0), (3, 5, 3, 4.0), (2, 3, 4, 2_000.0)):
        answers = [spread * torch.randn(rows, classes, dtype=torch.float64) for _ in range(teachers)]
        expected = torch.stack([torch.distributions.Categorical(logits=each).probs for each in answers]).mean(dim=0)
        given = by_probabilities([answer.clone() for answer in answers])
        found = _logits(given, (rows, classes), "One row of logits for each example; the teachers are averaged away.")
        if torch.allclose(found.softmax(dim=1), expected, atol=1e-6) and not found.isinf().any():
            continue
        said = f"The softmax of your logits gives the first class {float(found.softmax(dim=1)[0, 0]):.4f} where "
        said += f"{float(expected[0, 0]):.4f} is right."
        if found.isinf().any() or found.isnan().any():
            raise Wrong(
                "One of your logits is not finite.",
                hint="A probability became 0, and log 0 is -inf. Stay with logarithms: log_softmax, then logsumexp.",
            )
        if torch.allclose(found, expected, atol=1e-6):
            raise Wrong(said, hint="You return probabilities. Their logarithm has them as its softmax.")
        if torch.allclose(found.softmax(dim=1), torch.stack(answers).mean(dim=0).softmax(dim=1), atol=1e-6):
            raise Wrong(said, hint="That is the mean of the logits again. Take the softmax of each teacher first.")
        raise Wrong(said, hint="Each teacher's logits first become log-probabilities; only then may they be added.")
    return "The mean of the probabilities, and finite even where a teacher rules a class out."


@exercise("13.3")
def _grid(attention_on_grid: Callable[[torch.Tensor, int], torch.Tensor]) -> str:
    for channels, side, size in ((6, 8, 4), (3, 16, 4), (5, 4, 4)):
        features = torch.randn(3, channels, side, side, dtype=torch.float64)
        found = _logits(
            attention_on_grid(features.clone(), size),
            (3, size * size),
            "Sum over the channels, pool to size × size, and flatten the places: (batch, size²).",
        )
        block = side // size
        strength = features.square().sum(dim=1)
        pooled = strength.reshape(3, size, block, size, block).mean(dim=(2, 4)).flatten(1)
        if torch.allclose(found, pooled / pooled.square().sum(dim=1, keepdim=True).sqrt(), atol=1e-6):
            continue
        said = f"From {side} × {side} to {size} × {size} your map is not the right one."
        if torch.allclose(found, pooled, atol=1e-6) or not torch.allclose(
            found.norm(dim=1), torch.ones(3, dtype=torch.float64), atol=1e-6
        ):
            length = float(found[0].norm())
            raise Wrong(
                f"Your first map has the length {length:.3f}; it should be 1.", hint="Scale last, after the pooling."
            )
        signed = features.reshape(3, channels, size, block, size, block).mean(dim=(3, 5)).square().sum(dim=1).flatten(1)
        if torch.allclose(found, signed / signed.norm(dim=1, keepdim=True), atol=1e-6):
            raise Wrong(said, hint="Square first: averaged before that, positive and negative values cancel.")
        raise Wrong(said, hint="The order is: square, sum over channels (dim=1), average down, flatten, scale.")
    return "Teacher and student may now differ in width and in resolution."


@exercise("13.4")
def _two_classes(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.06,
        unit="(probability)",
        too_low="T halves the difference of the logits, not the probability. Even at an infinite T it would be 0.5.",
        too_high="At T = 1 the logits differ by log(0.95 / 0.05). Halve that, and take the softmax again.",
    )
