"""Intervals that hold what they promise: of a median under noise that lasts, of a mean in clusters; Holm's correction.

`tests/test_coverage.py` simulates how often each interval holds the truth.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binom, norm, rankdata, t

from helpers import checks

__all__ = ["MedianInterval", "cluster_interval", "holm", "median_interval", "needed"]

BOUND = float(norm.ppf(0.93))  # of the autocorrelation; by simulation: with less, verdicts are false too often
SUSPECTED = 0.9  # the autocorrelation that is reckoned with where too few values are left to tell
LARGEST = 0.97  # the largest that is reckoned with: an interval eight times as wide


class MedianInterval(NamedTuple):
    """An interval of a median, from `low` to `high`; arrays where `median_interval` was given many rows.

    `autocorrelation` is the estimated correlation of neighbours, its bias removed. `effective` says how many
    independent values are worth as much as these, if the autocorrelation is as large as its 93 % bound.
    """

    low: Any
    median: Any
    high: Any
    autocorrelation: Any
    effective: Any


def needed(confidence: float) -> float:
    """Return how many independent values an interval of their median needs.

    The widest, from the smallest to the largest of n values, misses the median with a probability of 2^(1 - n).
    """
    return math.log2(2 / (1 - _confidence(confidence)))


def median_interval(differences: Any, *, confidence: float) -> MedianInterval:
    """Return an interval of the median along the last axis, whose values stand in the order they were measured in.

    1. For independent values the ends are order statistics, whatever the distribution (Thompson 1936, "On confidence
       ranges for the median"), interpolated between the two pairs whose confidence lies around the one asked for
       (Hettmansperger and Sheather 1986, "Confidence intervals based on interpolated order statistics").
    2. Noise that lasts makes n values worth n (1 - r) / (1 + r), where r is the correlation of neighbours (Bayley and
       Hammersley 1946, "The 'effective' number of independent observations in an autocorrelated time series"). So the
       ends move away from the median by the root of (1 + r) / (1 - r). What counts as r is the 93 % bound above the
       estimate. That is the lag-1 correlation of the normal scores, which no outlier dominates, with its bias of
       -(1 + 4r) / n removed (Kendall 1954, "Note on bias in the estimation of autocorrelation").
    3. Below `needed(confidence)` effective values, the correlation is taken for 0.9 at least: the interval becomes four
       times as wide as for independent values, or more, and only a large difference stands out.

    Raises ValueError for fewer values than are needed, for values that are not finite, and for a confidence outside
    (0, 1).
    """
    values = _values("differences", differences, at_least=max(5, math.ceil(needed(confidence))))
    n = values.shape[-1]
    low, high = _order_statistics(values, confidence)
    middle = np.median(values, axis=-1)
    found = _autocorrelation(values)
    bound = np.clip(found + BOUND / math.sqrt(n), 0, LARGEST)
    effective = n * (1 - bound) / (1 + bound)
    assumed = np.where(effective < needed(confidence), np.maximum(bound, SUSPECTED), bound)
    wider = np.sqrt((1 + assumed) / (1 - assumed))
    return MedianInterval(middle - wider * (middle - low), middle, middle + wider * (high - middle), found, effective)


def _order_statistics(values: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Return both ends for independent values: between the k-th smallest (largest) and the next one inwards."""
    n = values.shape[-1]
    k = int(np.clip(binom.ppf((1 - confidence) / 2, n, 0.5), 1, (n - 1) // 2))
    outer, inner = (1 - 2 * binom.cdf(places, n, 0.5) for places in (k - 1, k))
    share = np.clip((outer - confidence) / (outer - inner), 0, 1)
    weight = (n - k) * share / (k + (n - 2 * k) * share)
    ordered = np.sort(values, axis=-1)
    low = (1 - weight) * ordered[..., k - 1] + weight * ordered[..., k]
    high = (1 - weight) * ordered[..., n - k] + weight * ordered[..., n - k - 1]
    return low, high


def _autocorrelation(values: np.ndarray) -> np.ndarray:
    """Return the lag-1 correlation of the normal scores, without its bias; of constant values as if it were 0."""
    n = values.shape[-1]
    scores = norm.ppf(rankdata(values, axis=-1) / (n + 1))
    scores = scores - scores.mean(axis=-1, keepdims=True)  # not 0 with ties
    products, squares = (scores[..., 1:] * scores[..., :-1]).sum(axis=-1), (scores**2).sum(axis=-1)
    varies = np.ptp(values, axis=-1) > 0
    found = np.divide(products, squares, out=np.zeros_like(squares), where=varies)
    return np.where(varies, (n * found + 1) / (n - 4), 0.0)


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
    array = _values("values", values, at_least=2)
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
    error = math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(array)
    reach = float(t.ppf((1 + _confidence(confidence)) / 2, count - 1)) * error
    return mean - reach, mean + reach


def _numbered(labels: list[Any]) -> list[int]:
    """Return the number of each label's cluster, in the order in which they come."""
    numbers: dict[Hashable, int] = {}
    try:
        return [numbers.setdefault(label, len(numbers)) for label in labels]
    except TypeError as error:
        raise ValueError(f"clusters holds what cannot be told apart ({error}); allowed: names or numbers") from error


def _confidence(confidence: float) -> float:
    if not checks.fraction("confidence", confidence):
        raise ValueError(f"confidence={confidence!r}; allowed: a fraction above 0")
    return float(confidence)


def _plain(name: str, values: Any) -> list[Any]:
    """Return a list of plain values; of an array or a Series too."""
    try:
        return values.tolist() if hasattr(values, "tolist") else list(values)
    except TypeError as error:
        raise ValueError(f"{name}={values!r}; allowed: a sequence") from error


def _values(name: str, values: Any, *, at_least: int) -> np.ndarray:
    """Return finite floats, at least so many along the last axis."""
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} holds what is no number ({error}); allowed: finite numbers") from error
    if not array.ndim or array.shape[-1] < at_least:
        raise ValueError(f"{name} has the shape {array.shape}; allowed: at least {at_least} values")
    return checks.finite(name, array)
