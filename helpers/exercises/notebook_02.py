"""The exercises of notebook 02."""

from collections.abc import Callable
from typing import Any

import torch

from helpers.exercises.checking import Wrong, exercise, within_factor


def _is_mask(mask: Any, shape: torch.Size) -> None:
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.shape != shape:
        found = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else repr(mask)
        raise Wrong(
            f"A mask here is a torch.bool tensor of shape {tuple(shape)}; yours is {found}.",
            hint="Build it with torch.zeros_like(weight, dtype=torch.bool), and return it in the weight's own shape.",
        )


@exercise("02.1")
def _sparsity(sparsity: Callable[[torch.Tensor], float]) -> str:
    for shape, zeros in (((4, 5), 5), ((2, 3, 4), 18), ((10,), 0), ((1, 8), 8)):
        weight = torch.randn(shape)
        weight.view(-1)[:zeros] = 0
        found = sparsity(weight.clone())
        if isinstance(found, torch.Tensor) and found.numel() == 1 and not found.is_complex():
            found = found.item()
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise Wrong(f"Your function returned {found!r}.", hint="Return one number between 0 and 1.")
        expected = zeros / weight.numel()
        if abs(found - expected) <= 1e-6:
            continue
        said = f"{zeros} of {weight.numel()} entries are zero: {expected:.3g} is right, and you get {found:.3g}."
        if abs(found - zeros) <= 1e-6:
            raise Wrong(said, hint="That counts the zeros. Divide by numel(), or take the mean instead of the sum.")
        if abs(found - (1 - expected)) <= 1e-6:
            raise Wrong(said, hint="That is the fraction that stays. Which comparison is true where an entry is zero?")
        raise Wrong(said, hint="weight == 0 is True at each zero; the mean of that, as floats, is the fraction.")
    return "Sparsity counts what is gone: none of a dense layer, all of an empty one."


@exercise("02.2")
def _two_of_four(mask_of: Callable[[torch.Tensor], torch.Tensor]) -> str:
    for rows, columns in ((1, 4), (3, 8), (10, 500)):
        weight = torch.randn(rows, columns)
        mask = mask_of(weight.clone())
        _is_mask(mask, weight.shape)
        kept = mask.view(-1, 4).sum(1)
        if (kept != 2).any():
            group = int((kept != 2).nonzero()[0])
            raise Wrong(
                f"Group {group} of four neighbours keeps {int(kept[group])} weights instead of 2.",
                hint="The choice is made within each four: reshape to (-1, 4) first, then pick along dim=1.",
            )
        for four, chosen in zip(weight.view(-1, 4).tolist(), mask.view(-1, 4).tolist(), strict=True):
            expected = sorted(range(4), key=lambda i: abs(four[i]))[2:]
            if [i for i in range(4) if chosen[i]] != sorted(expected):
                raise Wrong(
                    f"Of {[round(v, 2) for v in four]} it keeps places {[i for i in range(4) if chosen[i]]}.",
                    hint="A large negative weight matters as much as a large positive one: compare magnitudes.",
                )
    return "Half of the weights are gone, in a pattern that a sparse tensor core can read."


@exercise("02.3")
def _file_size(guess: Callable[[], float], *, measured: int) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.2,
        unit="bytes",
        too_low="The other layers stay dense: conv1, conv2, fc2 keep 30,500 weights of four bytes; biases count.",
        too_high="fc1 keeps 1 % of its 400,000 weights: each costs four bytes and about one for its position.",
    )


@exercise("02.4")
def _reads_and_is_read(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    accuracy_by: Callable[[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]], float],
) -> str:
    for neurons, inputs, outputs in ((5, 3, 2), (4, 4, 4)):
        weight, following = torch.randn(neurons, inputs), torch.randn(outputs, neurons)
        found = score(weight.clone(), following.clone())
        if not isinstance(found, torch.Tensor) or found.shape != (neurons,):
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else repr(found)
            raise Wrong(
                f"There are {neurons} neurons and should be as many scores; yours: {shape}.",
                hint="Row i of weight and column i of next_weight belong to neuron i: sum over dim=1 and over dim=0.",
            )
        reads = [sum(abs(v) for v in row) for row in weight.tolist()]
        is_read = [sum(abs(row[i]) for row in following.tolist()) for i in range(neurons)]
        if torch.allclose(found, torch.tensor(reads), rtol=1e-4):
            raise Wrong(
                "This is the row sum alone: a neuron that nobody reads would still score high.",
                hint="Multiply by the sum of the magnitudes of the neuron's column in next_weight.",
            )
        if not torch.allclose(found, torch.tensor([a * b for a, b in zip(reads, is_read, strict=True)]), rtol=1e-4):
            raise Wrong(
                "The scores are not (sum of |row|) × (sum of |column|).",
                hint="Take magnitudes before you sum, or opposite signs cancel: multiply the sums, do not add.",
            )
    own, rows = accuracy_by(score), accuracy_by(lambda weight, _: weight.abs().sum(dim=1))
    return f"The network keeps {own:.1%} of its answers right by your score, {rows:.1%} by the row sum alone."
