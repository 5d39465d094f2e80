"""The exercises of notebook 08."""

import math
from collections.abc import Callable

import torch

from helpers.exercises.checking import Wrong, exercise


@exercise("08.1")
def _weights_left(weights_left: Callable[[float, float], float]) -> str:
    for inputs, outputs in ((0.5, 0.5), (0.25, 0.8), (1.0, 0.3)):
        found = _number(weights_left(inputs, outputs), "Return one number: a share between 0 and 1.")
        if math.isclose(found, inputs * outputs, rel_tol=1e-6):
            continue
        if math.isclose(found, (inputs + outputs) / 2) or math.isclose(found, min(inputs, outputs)):
            hint = (
                "Count pairs: of ten inputs and ten outputs, how many pairs are there, and how many with five of each?"
            )
        elif math.isclose(found, 1 - inputs * outputs):
            hint = "That share is gone. Return the share that is left."
        else:
            hint = "One filter for each pair: of the inputs that are left, and of the outputs that are left."
        sentence = f"With {inputs:.0%} of the inputs and {outputs:.0%} of the outputs, {inputs * outputs:.0%} is left"
        raise Wrong(f"{sentence}; you say {found:.0%}.", hint=hint)
    return "Both sides count: half of the channels everywhere is a quarter of the weights."


@exercise("08.2")
def _smaller_file(
    predicted: Callable[[dict[str, float], dict[str, float]], float],
    *,
    measured: float,
    parameters: dict[str, float],
    left: dict[str, float],
) -> str:
    made_up = (
        ({"a": 0.1, "b": 0.9}, {"a": 1.0, "b": 0.5}),
        ({"a": 0.6, "b": 0.3, "c": 0.1}, {"a": 0.4, "b": 0.7, "c": 0.2}),
    )
    found = 0.0
    for shares, kept in (*made_up, (parameters, left)):
        found = _number(predicted(dict(shares), dict(kept)), "Return one number: how many times smaller the file is.")
        _is_ratio(found, shares, kept)
    return (
        f"Your rule says {found:.2f} times smaller; the files say {measured:.2f}. What is left is the rest of the file."
    )


def _number(found: object, hint: str) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise Wrong(f"Your function returned {found!r}.", hint=hint)
    return float(found)


def _is_ratio(found: float, shares: dict[str, float], kept: dict[str, float]) -> None:
    """Raise Wrong unless `found` is by how many times fewer weights there are, each stage cut on both sides."""
    left = sum(shares[stage] * kept[stage] * kept[stage] for stage in shares)
    if math.isclose(found, 1 / left, rel_tol=0.01):
        return
    if math.isclose(found, left, rel_tol=0.01):
        hint = "That is the share that is left. How many times smaller is the file: before, divided by after?"
    elif math.isclose(found, 1 / sum(shares[stage] * kept[stage] for stage in shares), rel_tol=0.01):
        hint = "A layer that loses channels on both sides loses weights on both: the share of its channels, squared."
    elif math.isclose(found, len(shares) / sum(kept[stage] ** 2 for stage in shares), rel_tol=0.01):
        hint = "The stages are not equally heavy: weigh each by its share of the parameters."
    else:
        hint = "For each stage: its share of the parameters, times the share of its weights that is left. Add them up."
    said = ", ".join(
        f"{stage} {shares[stage]:.0%} of the parameters, {kept[stage]:.0%} of the channels" for stage in shares
    )
    raise Wrong(f"For {said} left, the file is {1 / left:.2f} times smaller; you say {found:.2f}.", hint=hint)


@exercise("08.3")
def _tied_score(tied: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> str:
    for examples, channels in ((6, 4), (5, 5), (50, 3)):
        first = torch.randn(examples, channels)
        second = -0.8 * first + 0.3 * torch.randn(examples, channels)  # what one layer adds, the other takes away
        given = first.clone(), second.clone()
        found = tied(first, second)
        if not isinstance(found, torch.Tensor) or found.shape != (channels,):
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else repr(found)
            raise Wrong(
                f"{examples} photographs and {channels} channels should give {channels} scores; yours: {shape}.",
                hint="Average over the photographs, which are dimension 0.",
            )
        if not (torch.equal(first, given[0]) and torch.equal(second, given[1])):
            raise Wrong("The derivatives were changed.", hint="Make a new tensor: first + second, not first += second.")
        rows = [
            [a + b for a, b in zip(*pair, strict=True)] for pair in zip(first.tolist(), second.tolist(), strict=True)
        ]
        expected = torch.tensor([sum(row[i] ** 2 for row in rows) / examples for i in range(channels)])
        if torch.allclose(found, expected, rtol=1e-4):
            continue
        if torch.allclose(found, (first.square() + second.square()).mean(0), rtol=1e-4):
            raise Wrong(
                "You added the squares, as if the two left one after the other.",
                hint="Both gates close at once: the loss changes by the sum of the two derivatives. Add first.",
            )
        if torch.allclose(found, (first + second).mean(0).square(), rtol=1e-4):
            raise Wrong(
                "You squared the average, so photographs that disagree cancel.",
                hint="Each photograph's change counts, whatever its sign: square first, average over photographs then.",
            )
        raise Wrong(
            f"The first score should be {float(expected[0]):.3g}, and is {float(found[0]):.3g}.",
            hint="For each photograph add the two derivatives and square the sum; then average over the photographs.",
        )
    return "What two tied layers do to the loss together, not what each does alone."


@exercise("08.4")
def _lost_points(lost: Callable[[torch.Tensor, torch.Tensor], tuple[float, float]]) -> str:
    for count, agree in ((400, 0.9), (2000, 0.97), (1000, 0.7)):
        before = torch.rand(count) < 0.9
        after = torch.where(torch.rand(count) < agree, before, torch.rand(count) < 0.6)
        found = lost(before.clone(), after.clone())
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Wrong(
                f"Your function returned {found!r}.", hint="Return two numbers: the points lost, and the reach."
            )
        mean, reach = map(float, found)
        _is_paired(mean, reach, before.tolist(), after.tolist())
    return "Photographs on which both networks agree add nothing to the doubt: that is what pairing is for."


def _is_paired(mean: float, reach: float, before: list[bool], after: list[bool]) -> None:
    """Raise Wrong unless `mean` and `reach` are the points lost and 1.96 standard errors of the paired differences."""
    n = len(before)
    changes = [100 * (int(a) - int(b)) for a, b in zip(before, after, strict=True)]
    expected = sum(changes) / n
    spread = math.sqrt(sum((change - expected) ** 2 for change in changes) / (n - 1))
    right = 1.96 * spread / math.sqrt(n)
    if abs(mean - expected) > 0.01:
        sign = "What was right before and is wrong now is lost: before minus after."
        hint = sign if abs(mean + expected) <= 0.01 else "A point is one photograph in a hundred: 100 times the mean."
        raise Wrong(f"{expected:.2f} points were lost; you say {mean:.2f}.", hint=hint)
    if abs(reach / right - 1) <= 0.02:
        return
    said = f"Of {n} photographs the reach is ± {right:.2f} points; yours is {reach:.2f}."
    shares = [sum(values) / n for values in (before, after)]
    unpaired = 196 * math.sqrt(sum(share * (1 - share) for share in shares) / n)
    if abs(reach / unpaired - 1) <= 0.02:
        raise Wrong(
            said, hint="Both saw the same photographs: subtract photograph by photograph, then take the spread."
        )
    if abs(reach / (1.96 * spread) - 1) <= 0.02:
        raise Wrong(said, hint="That is the spread of one photograph. A mean of n spreads less, by the root of n.")
    raise Wrong(said, hint="1.96 times the standard deviation of the differences, divided by the root of their number.")
