"""The interval of a median against closed forms; how often it holds is in `tests/measure/test_coverage.py`."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from helpers import statistics
from helpers.statistics import medians


def test_eight_independent_values_are_what_99_percent_needs():
    assert 7 < statistics.needed(0.99) < 8
    for n in range(2, 30):
        assert statistics.needed(1 - 2.0 ** (1 - n)) == pytest.approx(n)


@pytest.mark.parametrize(("n", "k"), [(20, 4), (21, 5), (60, 20), (9, 1)])
def test_order_statistics_at_their_own_confidence(n, k):
    """Between the k-th smallest and the k-th largest lies the median unless k - 1 or fewer values lie on one side."""
    values = np.random.default_rng(n).normal(size=(3, n))
    confidence = 1 - 2 * binom.cdf(k - 1, n, 0.5)
    low, high = medians._order_statistics(values, confidence)
    ordered = np.sort(values)
    assert low == pytest.approx(ordered[:, k - 1])
    assert high == pytest.approx(ordered[:, n - k])


def test_interpolation_by_hand():
    """Hettmansperger and Sheather: for n = 10 between the 2nd (97.9 %) and the 3rd (89.1 %), at 95 %."""
    outer, inner = 1 - 2 * 11 / 1024, 1 - 2 * 56 / 1024
    share = (outer - 0.95) / (outer - inner)
    weight = 8 * share / (2 + 6 * share)
    low, high = medians._order_statistics(np.arange(1.0, 11.0), 0.95)
    assert (low, high) == pytest.approx((2 + weight, 9 - weight))


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(20, 200), confidence=st.floats(0.1, 0.999), scale=st.floats(0.1, 10)
)
def test_the_interval_holds_the_median_grows_with_confidence_and_moves_with_the_values(seed, n, confidence, scale):
    values = np.random.default_rng(seed).normal(size=n)
    found = statistics.median_interval(values, confidence=confidence)
    assert found.low <= found.median == np.median(values) <= found.high
    assert 0 < found.effective <= n
    wider = statistics.median_interval(values, confidence=(1 + confidence) / 2)
    assert wider.low <= found.low + 1e-12 and wider.high >= found.high - 1e-12
    moved = statistics.median_interval(3 + scale * values, confidence=confidence)
    assert (moved.low, moved.high) == pytest.approx((3 + scale * found.low, 3 + scale * found.high))
    mirrored = statistics.median_interval(-values, confidence=confidence)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_many_rows_are_each_as_if_alone():
    values = np.random.default_rng(0).normal(size=(2, 3, 25))
    found = statistics.median_interval(values, confidence=0.99)
    for row, column in itertools.product(range(2), range(3)):
        alone = statistics.median_interval(values[row, column], confidence=0.99)
        assert [part[row, column] for part in found] == pytest.approx([float(part) for part in alone])


def test_the_autocorrelation_by_hand():
    values = [3.0, 9.0, 4.0, 1.0, 2.0, 8.0]
    scores = norm.ppf(np.array([3, 6, 4, 1, 2, 5]) / 7)
    found = sum(scores[:-1] * scores[1:]) / sum(scores**2)
    assert medians._autocorrelation(np.array(values)) == pytest.approx((6 * found + 1) / 2)


@pytest.mark.parametrize("true", [0.0, 0.4, 0.7])
@pytest.mark.parametrize("n", [20, 60])
def test_the_autocorrelation_is_nearly_unbiased_and_no_outlier_hides_it(true, n):
    random = np.random.default_rng(0)
    values = lasting(random, (4000, n), true)
    assert medians._autocorrelation(values).mean() == pytest.approx(true, abs=0.07)
    values[:, n // 2] = 1e6
    assert medians._autocorrelation(values).mean() > 0.6 * true - 0.02


def lasting(random: np.random.Generator, shape: tuple[int, int], correlation: float) -> np.ndarray:
    values = random.normal(size=shape)
    for index in range(1, shape[1]):
        values[:, index] = correlation * values[:, index - 1] + math.sqrt(1 - correlation**2) * values[:, index]
    return values


def test_the_interval_widens_by_what_the_autocorrelation_takes():
    values = lasting(np.random.default_rng(1), (50, 100), 0.5)
    found = statistics.median_interval(values, confidence=0.99)
    low, _ = medians._order_statistics(values, 0.99)
    inflation = ((found.median - found.low) / (found.median - low)) ** 2
    enough = found.effective >= statistics.needed(0.99)
    assert enough.sum() > 25
    assert inflation[enough] == pytest.approx(100 / found.effective[enough])
    assert inflation[~enough] == pytest.approx(np.maximum(19, 100 / found.effective[~enough]))


def test_too_few_effective_values_make_a_very_wide_interval():
    values = lasting(np.random.default_rng(2), (200, 20), 0.8)
    found = statistics.median_interval(values, confidence=0.99)
    low, high = medians._order_statistics(values, 0.99)
    few = found.effective < statistics.needed(0.99)
    assert few.mean() > 0.9
    assert ((found.high - found.low) / (high - low))[few].min() > math.sqrt(19) - 1e-9


def test_values_that_do_not_vary():
    found = statistics.median_interval(np.full(20, 0.3), confidence=0.99)
    assert (found.low, found.median, found.high, found.autocorrelation) == (0.3, 0.3, 0.3, 0)


@pytest.mark.parametrize(
    ("values", "confidence", "message"),
    [
        ([1.0] * 7, 0.99, "differences has the shape \\(7,\\); allowed: at least 8 values"),
        (3.0, 0.99, "at least 8 values"),
        ([1.0] * 19 + [math.nan], 0.99, "differences holds NaN"),
        (["a"] * 20, 0.99, "differences holds what is no number"),
        ([1.0] * 20, 1.0, "confidence=1.0"),
        ([1.0] * 20, 0.0, "confidence=0.0; allowed: a fraction above 0"),
    ],
)
def test_bad_differences(values, confidence, message):
    with pytest.raises(ValueError, match=message):
        statistics.median_interval(values, confidence=confidence)
