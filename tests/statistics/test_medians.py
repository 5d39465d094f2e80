"""Intervals and corrections against closed forms and brute force; how often they hold is in
`tests/measure/test_coverage.py`.
"""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from scipy.stats import t as student

from helpers import statistics
from helpers.statistics import medians

# ---------------------------------------------------------------- the median


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


# ---------------------------------------------------------------- Holm


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == [1, 1]
    assert statistics.holm([0.2]) == [0.2]
    assert statistics.holm(np.array([0.0, 1.0])) == [0, 1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """Brute force (Marcus, Peritz and Gabriel 1976): the largest Bonferroni p-value of the subsets with the one."""
    places = range(len(p_values))
    subsets = [s for size in places for s in itertools.combinations(places, size + 1)]
    closed = [max(min(1, len(s) * min(p_values[i] for i in s)) for s in subsets if place in s) for place in places]
    assert statistics.holm(p_values) == pytest.approx(closed)


@pytest.mark.parametrize(
    ("p_values", "message"),
    [([], "p_values is empty"), ([0.1, 1.1], "p_values=1.1"), ([math.nan], "p_values=nan"), (0.1, "allowed: a seq")],
)
def test_bad_p_values(p_values, message):
    with pytest.raises(ValueError, match=message):
        statistics.holm(p_values)


# ---------------------------------------------------------------- clusters


def test_clusters_of_one_value_each_give_the_t_interval():
    values = [0.9, 0.7, 0.8, 0.95]
    expected = statistics.paired_interval(values, [0.0] * 4, confidence=0.9)
    assert statistics.cluster_interval(values, "abcd", confidence=0.9) == pytest.approx(expected)


def test_equal_clusters_give_the_t_interval_of_their_means():
    values = np.random.default_rng(0).normal(size=(7, 5))
    expected = statistics.paired_interval(values.mean(axis=1).tolist(), [0.0] * 7, confidence=0.95)
    clusters = [f"film {n}" for n in range(7) for _ in range(5)]
    assert statistics.cluster_interval(values.ravel(), clusters) == pytest.approx(expected)


def test_unequal_clusters_by_hand():
    """Values 1, 1, 4 and a mean of 2: the residuals' sums are -2 and 2, their squares 8, times 2 over 9."""
    reach = student.ppf(0.975, 1) * math.sqrt(2 * 8) / 3
    assert statistics.cluster_interval([1, 4, 1], ["x", "y", "x"]) == pytest.approx((2 - reach, 2 + reach))


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        ([1.0, 2.0], [0], "clusters holds 1 labels for 2 values"),
        ([1.0, 2.0], [0, 0], "clusters holds 1 cluster; allowed: at least two"),
        ([1.0, math.inf], [0, 1], "values holds NaN or infinity"),
        ([], [], "at least 2 values"),
        ([[1.0, 2.0]], [0, 1], "values has the shape \\(1, 2\\); allowed: one dimension"),
        ([1.0, 2.0], 3, "clusters=3; allowed: a sequence"),
        ([1.0, 2.0], [[0], [1]], "cannot be told apart"),
    ],
)
def test_bad_clusters(values, clusters, message):
    with pytest.raises(ValueError, match=message):
        statistics.cluster_interval(values, clusters)


def test_a_bad_confidence_of_clusters():
    with pytest.raises(ValueError, match="confidence=1"):
        statistics.cluster_interval([1.0, 2.0], [0, 1], confidence=1)


@given(st.lists(st.integers(0, 1), min_size=2, max_size=40))
def test_singles_are_worth_nearly_as_many_as_they_are(values):
    """With a cluster each, p (1 - p) / V is n - 1, by the definition of the variance."""
    size = statistics.effective_size(values, range(len(values)))
    assert size == pytest.approx(len(values) - 1 if 0 < sum(values) < len(values) else len(values))


def test_copies_are_worth_what_they_are_copies_of():
    one = [1, 0, 1, 1, 0]
    assert statistics.effective_size(one, range(5)) == pytest.approx(4)
    assert statistics.effective_size(np.repeat(one, 7), np.repeat(range(5), 7)) == pytest.approx(4)
    assert statistics.effective_size([1] * 9, [0, 0, 0, 1, 1, 1, 2, 2, 2]) == 3
    opposite = [1, 0] * 5 + [1, 1, 0, 0]  # worth 21, since right and wrong go together: no more than there are
    assert statistics.effective_size(opposite, np.repeat(range(7), 2)) == 14
    with pytest.raises(ValueError, match=r"values holds 0\.5; allowed: 0 and 1"):
        statistics.effective_size([0, 0.5], [0, 1])


def test_an_effective_size_gives_the_clusters_interval():
    """A normal interval with it is as wide as the cluster-robust one, but for the quantile."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(range(60), 5)
    values = (rng.random(60)[:, None] > rng.random((60, 5))).astype(float).ravel()
    low, high = statistics.cluster_interval(values, clusters)
    p, n = values.mean(), statistics.effective_size(values, clusters)
    assert student.ppf(0.975, 59) * (p * (1 - p) / n) ** 0.5 == pytest.approx((high - low) / 2)
    assert n < 200, "the values of a cluster resemble each other"
