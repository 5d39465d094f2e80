"""The exercises of notebook 18."""

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from helpers.exercises.checking import Wrong, exercise, within_factor


@exercise("18.1")
def _takes_over(answer: Callable[[int, int], int]) -> str:
    for dimensions, hidden in ((384, 1_536), (64, 100), (768, 3_072)):

        def products(n: int, d: int = dimensions) -> int:
            return 2 * n * n * d

        def rest(n: int, d: int = dimensions, h: int = hidden) -> int:
            return 4 * n * d * d + 2 * n * d * h

        right = next(n for n in range(1, 100_000) if products(n) >= rest(n))
        found = answer(dimensions, hidden)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise Wrong(f"One number is asked for; yours is {found!r}.", hint="Solve 2·n²·d = 4·n·d² + 2·n·d·h for n.")
        if found == right:
            continue
        said = f"For d = {dimensions} and h = {hidden} it is {right:,} tokens; yours: {found:,}."
        if found == 2 * dimensions:
            raise Wrong(said, hint="The feed-forward part is work, too: 2·n·d·h.")
        if found == hidden:
            raise Wrong(said, hint="Query, key, value and output are four matrices of d × d: 4·n·d².")
        raise Wrong(said, hint="Divide both sides of 2·n²·d = 4·n·d² + 2·n·d·h by 2·n·d.")
    return "Below that length the linear layers are the work, and above it the square of the length."


@exercise("18.2")
def _two_of_four(answer: Callable[[Tensor, Tensor], Tensor]) -> str:
    generator = torch.Generator().manual_seed(18)
    weight, size = torch.randn(6, 8, generator=generator), torch.tensor([1.0, 9, 1, 1, 0.1, 1, 1, 5])
    scores = weight.abs() * size
    right = torch.zeros(6, 8, dtype=torch.bool)
    for row in range(6):
        for start in (0, 4):
            pairs = combinations(range(start, start + 4), 2)
            right[row, list(max(pairs, key=lambda pair: float(scores[row, list(pair)].sum())))] = True
    found = answer(weight.clone(), size.clone())
    if not isinstance(found, Tensor) or found.shape != weight.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise Wrong(f"A mask of shape (6, 8) is asked for; yours is {shape}.", hint="Reshape to groups of 4 and back.")
    found = found.bool()
    if torch.equal(found, right):
        return "Two of any four neighbours stay, and the inputs had a say in which."
    kept = found.reshape(-1, 4).sum(1)
    if not bool((kept == 2).all()):
        raise Wrong(
            f"A group of four neighbours keeps {int(kept[kept != 2][0])}; allowed: exactly 2.",
            hint="Groups are neighbours in a row: reshape(-1, 4), then the best two of each.",
        )
    by_weight = weight.abs().reshape(-1, 4).topk(2, dim=1).indices
    if torch.equal(found, torch.zeros(12, 4, dtype=torch.bool).scatter(1, by_weight, True).reshape(6, 8)):
        raise Wrong("These are the two largest weights.", hint="Multiply each column by the size of its input first.")
    if torch.equal(~found, right):
        raise Wrong("These are the two that should go.", hint="True is for what stays.")
    raise Wrong("Some groups keep other weights than the two best.", hint="The score is |w| times input_size.")


@exercise("18.3")
def _early_exit(answer: Callable[[Tensor, float], tuple[Tensor, Tensor]]) -> str:
    sure_of_1 = torch.tensor([[0.6, 0.1, 0.5, 0.45], [0.9, 0.2, 0.4, 0.95], [0.2, 0.3, 0.55, 0.05]])
    probabilities = torch.stack([1 - sure_of_1, sure_of_1], dim=2)
    for threshold, answers, used in ((0.9, [1, 0, 1, 1], [2, 1, 3, 2]), (0.99, [0, 0, 1, 0], [3, 3, 3, 3])):
        found = answer(probabilities.clone(), threshold)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Wrong("Two tensors are asked for: answers, and layers used.", hint="return answers, used")
        mine, layers = (torch.as_tensor(each).tolist() for each in found)
        if mine == answers and layers == used:
            continue
        said = f"At a threshold of {threshold} it is {answers} after {used} layers; yours: {mine} after {layers}."
        if layers == [each - 1 for each in used]:
            raise Wrong(said, hint="Layers are counted from 1.")
        if layers == used:
            raise Wrong(said, hint="The answer is that of the layer where the text stopped, not of the last one.")
        if threshold == 0.99:
            raise Wrong(said, hint="Nobody is sure enough: then the last layer answers.")
        raise Wrong(said, hint="The first layer that is sure counts, whichever class it is sure of, and at least is ≥.")
    return "Easy texts leave early, and the hard ones pay for all layers."


@exercise("18.4")
def _gptq_without_correlation(answer: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        answer,
        measured,
        factor=1.02,
        unit="of round-to-nearest's output error",
        too_low="What can another column make up for, if its input has nothing in common with this one's?",
        too_high="Nothing moves, so nothing gets worse: with a diagonal H each column is rounded by itself.",
    )
