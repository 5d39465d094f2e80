"""The exercises of notebook 06."""

from collections.abc import Callable

import torch

from helpers.exercises.checking import Wrong, exercise, within_factor


@exercise("06.1")
def _share_of_tokens(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.15,
        unit="of the tokens",
        too_low="Text is very uneven: the hundred most frequent words and marks are already more than half of it.",
        too_high="The rest is long: names, plots and moods are rare words, and there are thousands of them.",
    )


@exercise("06.2")
def _mean_of_words(mean: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> str:
    vectors = torch.randn(4, 6, 3) + 1
    lengths = [6, 4, 1, 0]
    tokens = torch.tensor([[2 + place for place in range(length)] + [1] * (6 - length) for length in lengths])
    given = vectors.clone()
    found = mean(vectors, tokens)
    expected = torch.stack([given[row, : max(1, n)].mean(0) * (n > 0) for row, n in enumerate(lengths)])
    if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise Wrong(
            f"Four texts of three dimensions should give (4, 3), and yours gave {shape}.",
            hint="Dimension 0 is the batch: a mean over it mixes the reviews. The words are dimension 1.",
        )
    if not torch.equal(vectors, given):
        raise Wrong("The vectors were changed.", hint="Multiply into a new tensor, not in place.")
    if not torch.allclose(found[0], expected[0], atol=1e-5):
        raise Wrong("A text without padding has another mean.", hint="Add up its vectors, and divide by their number.")
    if not torch.allclose(found[1:3], expected[1:3], atol=1e-5):
        raise Wrong(
            "A text with padding has another mean than its words.",
            hint="Padding counts neither above nor below the line: set its vectors to zero, and divide by the words.",
        )
    if not torch.equal(found[3], expected[3]):
        raise Wrong(
            f"A review of padding only has the mean {found[3].tolist()}; it should be zeros.",
            hint="Its number of words is 0: clamp(min=1) the divisor.",
        )
    return "Over the words, and over nothing else: a text has the same mean in whatever batch it comes."


@exercise("06.3")
def _factor(factor: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]) -> str:
    for rows, columns, rank in ((30, 8, 2), (6, 10, 3), (12, 5, 5)):
        weight = torch.randn(rows, columns) @ torch.diag(torch.linspace(2, 0.5, columns))
        left, right = factor(weight.clone(), rank)
        if left.shape != (rows, rank) or right.shape != (rank, columns):
            raise Wrong(
                f"The shapes are {tuple(left.shape)} and {tuple(right.shape)}, for rank {rank} of {rows} × {columns}.",
                hint="The first rank columns of U, and the first rank rows of what linalg.svd calls Vh.",
            )
        best = torch.linalg.svdvals(weight)[rank:].square().sum().sqrt()  # Eckart and Young 1936
        error = (weight - left @ right).norm()
        if error > best + 1e-3 and torch.allclose(left.T @ left, torch.eye(rank), atol=1e-4):
            raise Wrong(
                "The columns of the first matrix all have length 1, so the product has the wrong size.",
                hint="The singular values are missing: multiply the columns of one side by them.",
            )
        if error > best + 1e-3:
            raise Wrong(
                f"At rank {rank} the product is {float(error):.2f} from the matrix; {float(best):.2f} is possible.",
                hint="torch.linalg.svd finds the directions that matter most, sorted: keep the first.",
            )
    return "No other two matrices of these shapes come closer."
