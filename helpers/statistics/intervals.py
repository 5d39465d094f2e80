"""Intervals and differences of means: over seeds, images and clusters; Holm's correction."""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from helpers.core import checks
from helpers.core.checks import as_float
from helpers.statistics.medians import checked_confidence, checked_values

if TYPE_CHECKING:
    import pandas as pd


class Interval(NamedTuple):
    """A 95 % interval, and of what: "seeds" (another training, these images) or "images" (this network, others)."""

    low: float
    high: float
    over: str


def image_interval(accuracy: float, images: int) -> Interval:
    """Return Wilson's interval for the accuracy of one network on all images like these `images`.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    from scipy.stats import binomtest

    checks.fraction("accuracy", accuracy, upper_open=False)
    checks.positive("images", images)
    found = binomtest(round(accuracy * images), images).proportion_ci(method="wilson")
    return Interval(float(found.low), float(found.high), "images")


def seed_interval(accuracies: Sequence[float]) -> Interval:
    """Return the t interval for the mean accuracy of all trainings like these, on the same images.

    Raises ValueError below two accuracies, and for one that is no fraction.
    """
    if len(accuracies) < 2:
        raise ValueError(f"accuracies holds {len(accuracies)}; allowed: at least two, one for each seed")
    for accuracy in accuracies:
        checks.fraction("accuracies", accuracy, upper_open=False)
    return Interval(*paired_interval(accuracies, [0.0] * len(accuracies)), "seeds")


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the adjusted p-values, in the order given: those below 0.05 hold together, with an error of 5 % in all.

    Holm 1979, "A simple sequentially rejective multiple test procedure": the smallest of m is multiplied by m, the next
    by m - 1 and so on; none becomes smaller than the one before it, none larger than 1.
    """
    checked = [checks.fraction("p_values", value, upper_open=False) for value in _plain("p_values", p_values)]
    m, largest = len(checks.not_empty("p_values", checked)), 0.0
    adjusted = [0.0] * m
    for rank, place in enumerate(sorted(range(m), key=checked.__getitem__)):
        largest = max(largest, min(1.0, (m - rank) * checked[place]))
        adjusted[place] = largest
    return adjusted


def cluster_interval(
    values: Sequence[float], clusters: Sequence[Hashable], *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the interval of the mean of values that come in clusters, such as reviews of the same film.

    Values of a cluster may resemble each other in any way, clusters are independent. The variance is cluster-robust
    with the factor G / (G - 1), the quantile Student's t with G - 1 degrees of freedom, for G clusters (Cameron and
    Miller 2015, "A practitioner's guide to cluster-robust inference", sections II and VI). Below some 40 clusters, or
    where few hold most of the values, it covers less than it says.

    Raises ValueError unless each value has a cluster, all are finite, and there are at least two clusters.
    """
    from scipy.stats import t

    mean, error, count = _clustered(values, clusters)
    reach = float(t.ppf((1 + checked_confidence(confidence)) / 2, count - 1)) * error
    return mean - reach, mean + reach


def effective_size(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Return how many independent zeros and ones would tell as much of their mean as these, which come in clusters.

    It is p (1 - p) / V for the mean p and its cluster-robust variance V (`cluster_interval`), and not more than there
    are values: the number over the design effect (Kish 1965, "Survey sampling", section 8.2), to be used in an interval
    for a fraction as Korn and Graubard 1998 do, "Confidence intervals for proportions with small expected number of
    positive counts estimated from survey data". Where all values are the same, it is the number of clusters.

    Raises ValueError as `cluster_interval`, and for a value that is neither 0 nor 1.
    """
    mean, error, count = _clustered(values, clusters)
    if other := sorted({float(value) for value in values} - {0.0, 1.0}):
        raise ValueError(f"values holds {other[0]}; allowed: 0 and 1")
    return min(float(len(values)), mean * (1 - mean) / error**2) if error else float(count)


def _clustered(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float, int]:
    """Return mean, its cluster-robust standard error and the number of clusters."""
    array = checked_values("values", values, at_least=2)
    if array.ndim != 1:
        raise ValueError(f"values has the shape {array.shape}; allowed: one dimension")
    labels = _plain("clusters", clusters)
    if len(labels) != len(array):
        raise ValueError(f"clusters holds {len(labels)} labels for {len(array)} values; allowed: one for each")
    places = _numbered(labels)
    count = max(places) + 1
    if count < 2:
        raise ValueError(f"clusters holds {count} cluster; allowed: at least two")
    mean = float(array.mean())
    sums = np.bincount(places, weights=array - mean)
    return mean, math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(array), count


def _numbered(labels: list[Any]) -> list[int]:
    """Return the number of each label's cluster, in the order in which they come."""
    numbers: dict[Hashable, int] = {}
    try:
        return [numbers.setdefault(label, len(numbers)) for label in labels]
    except TypeError as error:
        raise ValueError(f"clusters holds what cannot be told apart ({error}); allowed: names or numbers") from error


def _plain(name: str, values: Any) -> list[Any]:
    """Return a list of plain values; of an array or a Series too."""
    try:
        return values.tolist() if hasattr(values, "tolist") else list(values)
    except TypeError as error:
        raise ValueError(f"{name}={values!r}; allowed: a sequence") from error


class Summary(NamedTuple):
    """Mean, sample standard deviation (NaN for a single value) and number of values."""

    mean: float
    std: float
    n: int


def mean_std(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation (n - 1 in the denominator) and n of at least one value, all of them finite."""
    n = len(checks.not_empty("values", values))
    values = finite("values", values)
    mean = math.fsum(values) / n
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else math.nan
    return Summary(mean, std, n)


def paired_interval(a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the t interval of the mean of a - b, paired by seed; "a beats b" needs one that excludes 0.

    Raises ValueError unless both hold the same number of values, at least two, all of them finite, and for a
    confidence outside (0, 1).
    """
    from scipy.stats import t

    if not checks.fraction("confidence", confidence):
        raise ValueError(f"confidence={confidence!r}; allowed: a fraction above 0")
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"a and b hold {len(a)} and {len(b)} values; allowed: equally many, at least two")
    mean, std, n = mean_std([x - y for x, y in zip(finite("a", a), finite("b", b), strict=True)])
    reach = float(t.ppf((1 + confidence) / 2, n - 1)) * std / math.sqrt(n)
    return mean - reach, mean + reach


def paired_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the two-sided p-value of the paired t-test that the mean of a - b is 0: below 0.05 where the 95 %
    `paired_interval` excludes 0.

    It is 1 where all differences are the same: one network in several runs has no spread, and proves nothing. Raises
    ValueError as `paired_interval`.
    """
    from scipy.stats import ttest_rel

    paired_interval(a, b)
    if len({round(x - y, 12) for x, y in zip(a, b, strict=True)}) == 1:
        return 1.0
    return float(ttest_rel(a, b).pvalue)


def differences(accuracies: "pd.DataFrame", pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Say for each pair by how many points the first column leads the second, and what that decides, all together.

    `accuracies` are fractions, a row for each seed and a column for each method. Each interval is the paired 95 % one;
    the verdicts are corrected for their number (`holm`): were all methods equal, at most 5 % of such lists
    would tell any two apart. Raises ValueError below two seeds, for NaN, without pairs and for an unknown name.
    """
    for pair in checks.not_empty("pairs", pairs):
        for name, column in zip("ab", pair, strict=True):
            checks.choice(name, column, unique_columns(accuracies))
    p_values = holm([paired_p(accuracies[a], accuracies[b]) for a, b in pairs])
    return [_difference(accuracies[a], accuracies[b], p) for (a, b), p in zip(pairs, p_values, strict=True)]


def difference(accuracies: "pd.DataFrame", a: str, b: str) -> str:
    """Say by how many points column `a` leads column `b`: `differences` of one pair."""
    return differences(accuracies, [(a, b)])[0]


def _difference(a: "pd.Series", b: "pd.Series", p: float) -> str:
    low, high = (100 * end for end in paired_interval(a, b))
    mean = 100 * (a - b).mean()
    verdict = "not to be told apart" if p >= 0.05 else "higher" if mean > 0 else "lower"
    return f"{verdict} ({mean:+.2f} points, {low:.2f} to {high:.2f})"


def finite(name: str, values: Iterable[Any]) -> list[float]:
    """Return the values as a list of floats; ValueError, naming the place, for one that is not finite."""
    return [checks.number(f"{name}[{i}]", as_float(f"{name}[{i}]", value)) for i, value in enumerate(values)]


def unique_columns(frame: "pd.DataFrame") -> list[str]:
    """Return the names of a table's columns; ValueError if two are the same."""
    if not frame.columns.is_unique:
        raise ValueError(f"accuracies has the columns {list(frame.columns)}; allowed: each name once")
    return list(frame.columns)
