"""The interval of a median, under noise that lasts.

`tests/measure/test_coverage.py` simulates how often each interval holds the truth.
"""

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from helpers.core import checks

BOUND = NormalDist().inv_cdf(0.93)  # of the autocorrelation; by simulation: with less, verdicts are false too often
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
    return math.log2(2 / (1 - checked_confidence(confidence)))


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
    values = checked_values("differences", differences, at_least=max(5, math.ceil(needed(confidence))))
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
    from scipy.stats import binom

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
    from scipy.stats import norm, rankdata

    n = values.shape[-1]
    scores = norm.ppf(rankdata(values, axis=-1) / (n + 1))
    scores = scores - scores.mean(axis=-1, keepdims=True)  # not 0 with ties
    products, squares = (scores[..., 1:] * scores[..., :-1]).sum(axis=-1), (scores**2).sum(axis=-1)
    varies = np.ptp(values, axis=-1) > 0
    found = np.divide(products, squares, out=np.zeros_like(squares), where=varies)
    return np.where(varies, (n * found + 1) / (n - 4), 0.0)


def checked_confidence(confidence: float) -> float:
    """Return a confidence between 0 and 1, both excluded; raise ValueError for another."""
    if not checks.fraction("confidence", confidence):
        raise ValueError(f"confidence={confidence!r}; allowed: a fraction above 0")
    return float(confidence)


def checked_values(name: str, values: Any, *, at_least: int) -> np.ndarray:
    """Return finite floats, at least so many along the last axis."""
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} holds what is no number ({error}); allowed: finite numbers") from error
    if not array.ndim or array.shape[-1] < at_least:
        raise ValueError(f"{name} has the shape {array.shape}; allowed: at least {at_least} values")
    return checks.finite(name, array)
