"""Tests of `helpers.statistics.intervals`."""

import itertools
import math
import statistics

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from helpers.statistics import (
    cluster_interval,
    difference,
    differences,
    effective_size,
    holm,
    image_interval,
    mean_std,
    paired_interval,
    paired_p,
    ranking,
    seed_interval,
)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9))
def test_mean_std_agrees_with_the_standard_library(values):
    mean, std, n = mean_std(values)
    assert mean == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert std == pytest.approx(statistics.stdev(values), abs=1e-6)
    assert n == len(values)


def test_mean_std_of_one_and_none():
    assert mean_std([3.0]).mean == 3 and math.isnan(mean_std([3.0]).std)
    with pytest.raises(ValueError, match="values is empty"):
        mean_std([])
    with pytest.raises(ValueError, match=r"values\[1\]=nan; allowed: a finite number"):
        mean_std([1.0, math.nan])
    with pytest.raises(ValueError, match=r"values\[0\]='1' is not a number"):
        mean_std(["1"])


def test_paired_interval_agrees_with_scipy():
    a, b = [0.991, 0.993, 0.992, 0.990], [0.990, 0.990, 0.9915, 0.9905]
    expected = stats.ttest_rel(a, b).confidence_interval(0.9)
    assert paired_interval(a, b, confidence=0.9) == pytest.approx((expected.low, expected.high))
    for bad in ([1.0], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="allowed: equally many, at least two"):
            paired_interval(bad, a)
    with pytest.raises(ValueError, match="hold 1 and 1 values"):
        paired_interval([1.0], [1.0])
    for bad, name in [(([math.nan, 1], [0, 1]), "a"), (([0, 1], [0, math.inf]), "b")]:
        with pytest.raises(ValueError, match=rf"{name}\[\d\]=(nan|inf)"):
            paired_interval(*bad)
    for confidence in (0, 1, -0.5, 95, math.nan, "0.9"):
        with pytest.raises(ValueError, match="confidence="):
            paired_interval([0, 1], [0, 2], confidence=confidence)
    assert len(paired_interval([0, 1], [0, 2])) == 2, "two are enough"


ACCURACIES = pd.DataFrame(
    {
        "low": [0.80, 0.90, 0.85],
        "noisy": [0.86, 0.84, 0.89],
        "high": [0.81, 0.91, 0.8601],  # one point above "low" in each seed, although the seeds differ by ten
    },
    index=[0, 1, 2],
)


def test_ranking_counts_who_beats_a_column_and_lets_those_share_a_rank_that_cannot_be_told_apart():
    ranked = ranking(ACCURACIES)
    assert list(ranked.index) == ["noisy", "high", "low"]
    assert ranked["rank"].to_dict() == {"noisy": 1, "high": 1, "low": 1}  # "low" cannot be told from "noisy"
    assert ranked["beaten by"].to_dict() == {"noisy": 0, "high": 0, "low": 1}
    assert ranked.loc["low", "accuracy (%)"] == f"85.00 ± {100 * statistics.stdev([0.80, 0.90, 0.85]):.2f}"
    two = ranking(ACCURACIES[["low", "high"]].assign(lowest=[0.1, 0.201, 0.15]))
    assert two["rank"].to_dict() == {"high": 1, "low": 2, "lowest": 3}
    with pytest.raises(ValueError, match=r"accuracies has 1 row\(s\); allowed: at least two"):
        ranking(ACCURACIES.iloc[:1])
    with pytest.raises(ValueError, match=r"accuracies\['low'\]\[0\]=nan"):
        ranking(ACCURACIES.assign(low=math.nan))
    with pytest.raises(ValueError, match="allowed: each name once"):
        ranking(ACCURACIES[["low", "low"]])
    with pytest.raises(ValueError, match="accuracies is empty"):
        ranking(ACCURACIES[[]])


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6))
def test_the_paired_p_value_is_where_the_interval_begins_to_hold_zero(rows):
    a, b = zip(*rows, strict=True)
    if len({round(x - y, 12) for x, y in rows}) == 1:
        assert paired_p(a, b) == 1.0, "no spread: one network"
        return
    p = paired_p(a, b)
    low, high = paired_interval(a, b, confidence=1 - p) if 1e-9 < p < 1 - 1e-9 else (0.0, 0.0)
    assert min(abs(low), abs(high)) < 1e-6


def test_ten_equal_methods_seldom_beat_each_other():
    """Of 45 pairs without a difference two would be told apart by chance; together, none in 19 of 20 tables."""
    random = np.random.default_rng(0)
    beaten, alone = 0, 0
    for _ in range(200):
        table = pd.DataFrame(0.9 + 0.01 * random.standard_normal((5, 10)), columns=list("abcdefghij"))
        beaten += bool(ranking(table)["beaten by"].any())
        alone += any(paired_p(table[x], table[y]) < 0.05 for x, y in itertools.combinations(table, 2))
    assert beaten <= 14 and alone > 120


def test_differences_are_decided_together():
    """Alone, half a point is told from nothing; as one of four comparisons, it is not."""
    random = np.random.default_rng(4)
    table = pd.DataFrame({"base": 0.9 + 0.01 * random.standard_normal(3)})
    table["better"] = table["base"] + [0.004, 0.005, 0.0066]
    table[["x", "y", "z"]] = table[["base"] * 3].to_numpy() + 0.001 * random.standard_normal((3, 3))
    p = stats.ttest_rel(table["better"], table["base"]).pvalue
    assert 0.0125 < p < 0.05
    low, high = (100 * end for end in paired_interval(table["better"], table["base"]))
    ends = f"(+0.52 points, {low:.2f} to {high:.2f})"
    assert difference(table, "better", "base") == f"higher {ends}" and low > 0
    assert difference(table, "base", "better").startswith("lower (-0.52 points, ")
    pairs = [("better", "base"), *((name, "base") for name in "xyz")]
    assert differences(table, pairs)[0] == f"not to be told apart {ends}"
    with pytest.raises(ValueError, match="pairs is empty"):
        differences(table, [])


def test_a_difference_of_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="b='lowest' is unknown; allowed: "):
        difference(ACCURACIES, "low", "lowest")
    with pytest.raises(ValueError, match=r"a\[0\]=nan"):
        difference(ACCURACIES.assign(low=math.nan), "low", "high")


@pytest.mark.parametrize("seed", range(20))
def test_a_rank_ends_only_where_scipy_tells_every_pair_apart(seed):
    random = np.random.default_rng(seed)
    table = pd.DataFrame(
        random.choice([0.0, 0.03, 0.2], 4) + 0.02 * random.standard_normal((3, 4)), columns=list("abcd")
    )
    ranks = ranking(table)["rank"]
    names = list(ranks.index)
    pairs = {(a, b): stats.ttest_rel(table[a], table[b]).pvalue for a, b in itertools.combinations(names, 2)}
    apart, ordered = {}, sorted(pairs, key=pairs.__getitem__)
    for step, pair in enumerate(ordered):
        apart[pair] = all(pairs[each] * (len(ordered) - i) < 0.05 for i, each in enumerate(ordered[: step + 1]))
    for place in range(1, 4):
        parted = all(apart[a, b] for a in names[:place] for b in names[place:])
        assert ranks[names[place]] == (place + 1 if parted else ranks[names[place - 1]])


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [("high", "low", "higher"), ("low", "high", "lower"), ("noisy", "low", "not to be told apart")],
)
def test_a_difference_says_what_scipys_interval_decides(a, b, verdict):
    low, high = stats.ttest_rel(ACCURACIES[a], ACCURACIES[b]).confidence_interval()
    mean = 100 * (ACCURACIES[a].mean() - ACCURACIES[b].mean())
    said = f"{verdict} ({mean:+.2f} points, {100 * low:.2f} to {100 * high:.2f})"
    assert difference(ACCURACIES, a, b) == said


@pytest.mark.parametrize("correct, count", [(0, 10), (7, 10), (9_941, 10_000), (100, 100)])
def test_wilsons_interval_is_where_the_score_test_begins_to_reject(correct, count):
    low, high, over = image_interval(correct / count, count)
    for end in {low, high} - {0.0, 1.0}:
        z = (correct / count - end) / math.sqrt(end * (1 - end) / count)
        assert abs(z) == pytest.approx(stats.norm.ppf(0.975), rel=1e-6)
    assert over == "images" and low <= correct / count <= high


def test_the_interval_over_seeds_is_students():
    values = [0.91, 0.93, 0.92]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert seed_interval(values)[:2] == pytest.approx(tuple(expected))


@pytest.mark.parametrize(("accuracy", "images", "said"), [
    (math.nan, 10, "accuracy=nan"), (1.01, 10, "accuracy=1.01"), (-0.01, 10, "accuracy=-0.01"),
    (0.5, 0, "images=0"), (0.5, -1, "images=-1"), (0.5, math.nan, "images=nan"), (0.5, 1.5, "images=1.5"),
])  # fmt: skip
def test_no_interval_of_nonsense(accuracy, images, said):
    with pytest.raises(ValueError, match=said):
        image_interval(accuracy, images)
    assert image_interval(1.0, 1).high == 1.0 and image_interval(0.0, 1).low == 0.0


@pytest.mark.parametrize(("accuracies", "said"), [
    ([0.5], "accuracies holds 1; allowed: at least two"), ([], "accuracies holds 0"),
    ([0.5, math.nan], "accuracies=nan"), ([0.5, 50], "accuracies=50"), ([-0.1, 0.5], "accuracies=-0.1"),
])  # fmt: skip
def test_no_interval_over_seeds_of_nonsense(accuracies, said):
    with pytest.raises(ValueError, match=said):
        seed_interval(accuracies)
    assert seed_interval([0.0, 1.0]).over == "seeds"


# ---------------------------------------------------------------- Holm


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm(np.array([0.0, 1.0])) == [0, 1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """Brute force (Marcus, Peritz and Gabriel 1976): the largest Bonferroni p-value of the subsets with the one."""
    places = range(len(p_values))
    subsets = [s for size in places for s in itertools.combinations(places, size + 1)]
    closed = [max(min(1, len(s) * min(p_values[i] for i in s)) for s in subsets if place in s) for place in places]
    assert holm(p_values) == pytest.approx(closed)


@pytest.mark.parametrize(
    ("p_values", "message"),
    [([], "p_values is empty"), ([0.1, 1.1], "p_values=1.1"), ([math.nan], "p_values=nan"), (0.1, "allowed: a seq")],
)
def test_bad_p_values(p_values, message):
    with pytest.raises(ValueError, match=message):
        holm(p_values)


# ---------------------------------------------------------------- clusters


def test_clusters_of_one_value_each_give_the_t_interval():
    values = [0.9, 0.7, 0.8, 0.95]
    expected = paired_interval(values, [0.0] * 4, confidence=0.9)
    assert cluster_interval(values, "abcd", confidence=0.9) == pytest.approx(expected)


def test_equal_clusters_give_the_t_interval_of_their_means():
    values = np.random.default_rng(0).normal(size=(7, 5))
    expected = paired_interval(values.mean(axis=1).tolist(), [0.0] * 7, confidence=0.95)
    clusters = [f"film {n}" for n in range(7) for _ in range(5)]
    assert cluster_interval(values.ravel(), clusters) == pytest.approx(expected)


def test_unequal_clusters_by_hand():
    """Values 1, 1, 4 and a mean of 2: the residuals' sums are -2 and 2, their squares 8, times 2 over 9."""
    reach = stats.t.ppf(0.975, 1) * math.sqrt(2 * 8) / 3
    assert cluster_interval([1, 4, 1], ["x", "y", "x"]) == pytest.approx((2 - reach, 2 + reach))


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
        cluster_interval(values, clusters)


def test_a_bad_confidence_of_clusters():
    with pytest.raises(ValueError, match="confidence=1"):
        cluster_interval([1.0, 2.0], [0, 1], confidence=1)


@given(st.lists(st.integers(0, 1), min_size=2, max_size=40))
def test_singles_are_worth_nearly_as_many_as_they_are(values):
    """With a cluster each, p (1 - p) / V is n - 1, by the definition of the variance."""
    size = effective_size(values, range(len(values)))
    assert size == pytest.approx(len(values) - 1 if 0 < sum(values) < len(values) else len(values))


def test_copies_are_worth_what_they_are_copies_of():
    one = [1, 0, 1, 1, 0]
    assert effective_size(one, range(5)) == pytest.approx(4)
    assert effective_size(np.repeat(one, 7), np.repeat(range(5), 7)) == pytest.approx(4)
    assert effective_size([1] * 9, [0, 0, 0, 1, 1, 1, 2, 2, 2]) == 3
    opposite = [1, 0] * 5 + [1, 1, 0, 0]  # worth 21, since right and wrong go together: no more than there are
    assert effective_size(opposite, np.repeat(range(7), 2)) == 14
    with pytest.raises(ValueError, match=r"values holds 0\.5; allowed: 0 and 1"):
        effective_size([0, 0.5], [0, 1])


def test_an_effective_size_gives_the_clusters_interval():
    """A normal interval with it is as wide as the cluster-robust one, but for the quantile."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(range(60), 5)
    values = (rng.random(60)[:, None] > rng.random((60, 5))).astype(float).ravel()
    low, high = cluster_interval(values, clusters)
    p, n = values.mean(), effective_size(values, clusters)
    assert stats.t.ppf(0.975, 59) * (p * (1 - p) / n) ** 0.5 == pytest.approx((high - low) / 2)
    assert n < 200, "the values of a cluster resemble each other"
