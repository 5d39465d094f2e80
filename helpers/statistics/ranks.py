"""Ranks: which differences are large enough to tell, and which orders agree."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from helpers.core import checks
from helpers.statistics.intervals import finite, holm, paired_p, unique_columns

if TYPE_CHECKING:
    import pandas as pd

    from helpers.core.modules import Named


def rank(names: Sequence[str], beats: Callable[[str, str], bool]) -> list[int]:
    """Return the ranks of `names`, the best first: any two that cannot be told apart share one.

    `beats(a, b)` says whether a, which stands above b, beats it. A new rank, its number one more than the models above
    it, begins only where each model above beats each one from there on. Raises ValueError for a name that stands there
    twice.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"names={list(names)}; allowed: each once")
    beaten = {(a, b): beats(a, b) for i, a in enumerate(names) for b in names[i + 1 :]}
    ranks, current = [], 1
    for place in range(len(names)):
        if all(beaten[above, below] for above in names[:place] for below in names[place:]):
            current = place + 1
        ranks.append(current)
    return ranks


def ranking(accuracies: "pd.DataFrame") -> "pd.DataFrame":
    """Return mean, spread and rank of each method (a column of `accuracies`, see `differences`), the best mean first.

    One method beats another if its mean is higher and the paired t-test says so, corrected for all pairs of the table
    (`holm`). Ranks are those of `rank`. "beaten by" counts who beats a method, also within a rank. Raises ValueError
    below two seeds, for NaN, and unless each method has a name of its own.
    """
    import pandas as pd

    for name in checks.not_empty("accuracies", unique_columns(accuracies)):
        finite(f"accuracies[{name!r}]", accuracies[name])
    if len(accuracies) < 2:
        raise ValueError(f"accuracies has {len(accuracies)} row(s); allowed: at least two, one for each seed")
    ordered = list(accuracies.mean().sort_values(ascending=False).index)
    beats = _clear([(a, b, paired_p(accuracies[a], accuracies[b])) for a, b in combinations(ordered, 2)])
    ranks = rank(ordered, lambda a, b: (a, b) in beats)
    rows = {}
    for name, its_rank in zip(ordered, ranks, strict=True):
        values = 100 * accuracies[name]
        said = f"{values.mean():.2f} ± {values.std():.2f}"
        rows[name] = {"accuracy (%)": said, "rank": its_rank, "beaten by": sum(worse == name for _, worse in beats)}
    return pd.DataFrame.from_dict(rows, orient="index")


def _clear(pairs: Sequence[tuple[str, str, float]]) -> set[tuple[str, str]]:
    """Return the (better, worse) pairs whose p-value is below 0.05, corrected for their number."""
    p_values = holm([p for _, _, p in pairs]) if pairs else []
    return {(a, b) for (a, b, _), p in zip(pairs, p_values, strict=True) if p < 0.05}


class Correlation(NamedTuple):
    """A rank correlation in [-1, 1], its 95 % bootstrap interval, and the resampled values behind that."""

    value: float
    interval: tuple[float, float]
    draws: np.ndarray


def rank_correlation(
    scores: "Named", damage: "Named", *, within: bool = False, resamples: int = 1000, seed: int = 0
) -> Correlation:
    """Return Spearman's rank correlation of scores with damages, both name → tensor, and its interval.

    Over everything at once; or `within` each layer, averaged over the layers. The interval holds the middle 95 % of
    `resamples` bootstrap samples, drawn with replacement within each layer. The same `seed` draws the same samples
    whatever the scores, so that the draws of two scores can be compared in pairs (`shared_ranks`). A score without any
    variation has correlation 0.

    Raises:
        ValueError: names or sizes of scores and damage differ, there is nothing to compare, or a number is not finite.
    """
    checks.positive("resamples", resamples)
    checks.not_empty("damage", damage)
    numbers, reference = _numbers("scores", scores), _numbers("damage", damage)
    if _sizes(numbers) != _sizes(reference):
        raise ValueError(f"scores has the sizes {_sizes(numbers)}; allowed: those of damage, {_sizes(reference)}")
    generator = np.random.default_rng(checks.seed("seed", seed))
    parts = []
    for name, values in reference.items():
        pair = np.stack([numbers[name], values])
        drawn = generator.integers(len(values), size=(resamples, len(values)))
        parts.append(np.concatenate([pair[:, None], pair[:, drawn]], axis=1))  # (2, 1 + resamples, filters)
    if within:
        found = np.mean([_spearman(*part) for part in parts], axis=0)
    else:
        found = _spearman(*np.concatenate(parts, axis=2))
    low, high = np.quantile(found[1:], [0.025, 0.975])
    return Correlation(float(found[0]), (float(low), float(high)), found[1:])


def _numbers(argument: str, values: "Named") -> dict[str, np.ndarray]:
    """Return the values of each layer as finite numbers in a row, checked."""
    from torch import Tensor

    for name, tensor in values.items():
        if not isinstance(tensor, Tensor) or tensor.is_complex():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{argument}[{name!r}] is of {kind}; allowed: a tensor of real numbers")
        checks.not_empty(f"{argument}[{name!r}]", tensor.flatten())
    found = {name: tensor.detach().cpu().double().flatten() for name, tensor in values.items()}
    return {name: checks.finite(f"{argument}[{name!r}]", tensor).numpy() for name, tensor in found.items()}


def _sizes(scores: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {name: len(values) for name, values in scores.items()}


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the correlation of the ranks in each row; ties share the mean of their ranks."""
    from scipy.stats import rankdata

    x, y = (rankdata(values, axis=1) for values in (a, b))
    x, y = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (x, y))
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.divide((x * y).sum(axis=1), scale, out=np.zeros(len(x)), where=scale > 0)


def shared_ranks(correlations: Mapping[str, Correlation]) -> dict[str, int]:
    """Return the `rank` of each score by its correlation, the best first.

    One score beats another if its correlation is higher and the bootstrap says so, in pairs of the same draws: the
    share of draws without a lead, doubled, is the p-value, and `holm` corrects it for all pairs.

    Raises ValueError if there is none, or unless all have equally many draws, which are finite.
    """
    checks.not_empty("correlations", correlations)
    shapes = {name: np.shape(correlation.draws) for name, correlation in correlations.items()}
    if len(set(shapes.values())) > 1 or 0 in next(iter(shapes.values())):
        raise ValueError(f"correlations has draws of shapes {shapes}; allowed: one shape, none of them empty")
    for name, correlation in correlations.items():
        checks.finite(f"correlations[{name!r}].draws", correlation.draws)
    ordered = sorted(correlations, key=lambda name: -correlations[name].value)
    leads = {(a, b): correlations[a].draws - correlations[b].draws for a, b in combinations(ordered, 2)}
    beats = _clear([(a, b, min(1.0, 2 * float(np.mean(lead <= 0)))) for (a, b), lead in leads.items()])
    return dict(zip(ordered, rank(ordered, lambda a, b: (a, b) in beats), strict=True))
