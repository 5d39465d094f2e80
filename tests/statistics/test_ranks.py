"""Tests of `helpers.statistics.ranks`."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

from helpers import pruning, statistics
from helpers.data import Split
from tests.pruning.scores_examples import random_numbers


@pytest.fixture
def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.fixture
def points() -> Split:
    labels = torch.randint(3, (20,), generator=torch.Generator().manual_seed(2))
    return Split(random_numbers(20, 3, seed=3), labels)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
def test_rank_correlation_equals_scipys_ties_included(pairs):
    a, b = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True))
    found = statistics.rank_correlation({"x": a}, {"x": b}, resamples=2).value
    if a.min() == a.max() or b.min() == b.max():
        assert found == 0
    else:
        assert found == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_within_averages_layers_and_without_compares_across_them():
    """Right inside of both layers, wrong about which layer matters."""
    scores = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([11.0, 12.0, 13.0])}
    damage = {"a": torch.tensor([21.0, 22.0, 23.0]), "b": torch.tensor([1.0, 2.0, 3.0])}
    assert statistics.rank_correlation(scores, damage, within=True).value == pytest.approx(1)
    expected = spearmanr([1, 2, 3, 11, 12, 13], [21, 22, 23, 1, 2, 3]).statistic
    assert statistics.rank_correlation(scores, damage).value == pytest.approx(expected)
    opposite = {"a": -scores["a"], "b": scores["b"]}
    assert statistics.rank_correlation(opposite, damage, within=True).value == pytest.approx(0)


def test_the_interval_covers_the_truth():
    """Bivariate normal with correlation 0.6: Spearman's is 6/π asin(0.3). Of 60 intervals nearly all hold it."""
    truth, held = 6 / np.pi * np.arcsin(0.3), 0
    for seed in range(60):
        a, noise = random_numbers(2, 80, seed=seed)
        low, high = statistics.rank_correlation({"x": a}, {"x": 0.6 * a + 0.8 * noise}, resamples=300).interval
        assert low < high
        held += low < truth < high
    assert 50 <= held <= 60


def test_the_interval_is_of_all_draws_and_the_seed_is_0_by_default():
    scores, damage = ({"x": random_numbers(20, seed=seed)} for seed in (0, 1))
    value, interval, drawn = statistics.rank_correlation(scores, damage, resamples=1)
    assert interval == (drawn[0], drawn[0]) and drawn.shape == (1,)
    found = statistics.rank_correlation(scores, damage, resamples=4)
    assert found.value == value and found.interval == pytest.approx(np.quantile(found.draws, [0.025, 0.975]))
    for seed, is_the_same in [(0, True), (1, False)]:
        again = statistics.rank_correlation(scores, damage, resamples=4, seed=seed)
        assert np.array_equal(again.draws, found.draws) == is_the_same


def test_a_table_is_ranked_by_what_clearly_beats_what():
    """Two methods whose difference changes its sign, below one that leads both by 10 points, give or take one."""
    low = pd.Series([0.80, 0.81, 0.82, 0.83])
    columns = {"as low": low - [0.01, -0.01, 0.02, 0], "low": low, "high": low + [0.1, 0.11, 0.09, 0.1]}
    found = statistics.ranking(pd.DataFrame(columns))
    assert list(found.index) == ["high", "low", "as low"]
    assert found["rank"].tolist() == [1, 2, 2] and found["beaten by"].tolist() == [0, 1, 1]
    assert found["accuracy (%)"].tolist()[:2] == ["91.50 ± 1.29", "81.50 ± 1.29"]


def test_shared_ranks_need_a_clear_difference():
    damage = {"x": random_numbers(200)}
    scores = {
        "good": damage["x"] + 0.2 * random_numbers(200, seed=1),
        "as good": damage["x"] + 0.2 * random_numbers(200, seed=2),
        "fair": damage["x"] + 1.0 * random_numbers(200, seed=3),
        "noise": random_numbers(200, seed=4),
    }
    found = {name: statistics.rank_correlation({"x": score}, damage) for name, score in scores.items()}
    assert statistics.shared_ranks(found) == {"good": 1, "as good": 1, "fair": 3, "noise": 4}


def test_shared_ranks_are_the_courses_one_rule():
    """A beats C, and neither of them B: alone, C would get a rank of its own."""
    values = {"A": 0.5, "B": 0.45, "C": 0.4}
    noise = np.random.default_rng(0).normal(0, 1, 1_000)
    draws = {"A": 0.5 + 0.001 * noise, "B": 0.45 + 0.2 * noise, "C": 0.4 + 0.001 * noise}
    found = {name: statistics.Correlation(value, (0, 1), draws[name]) for name, value in values.items()}
    assert statistics.shared_ranks(found) == {"A": 1, "B": 1, "C": 1}
    del found["B"]
    assert statistics.shared_ranks(found) == {"A": 1, "C": 2}


def test_a_score_never_beats_itself_rescaled():
    damage = {"x": random_numbers(50)}
    score = damage["x"] + random_numbers(50, seed=1)
    found = {k: statistics.rank_correlation({"x": v}, damage) for k, v in {"a": score, "b": score.exp()}.items()}
    assert np.array_equal(found["a"].draws, found["b"].draws)
    assert statistics.shared_ranks(found) == {"a": 1, "b": 1}


def a_score() -> dict[str, torch.Tensor]:
    return {"a": torch.arange(3.0)}


def a_nan() -> dict[str, torch.Tensor]:
    return {"a": torch.tensor([1.0, 2.0, torch.nan])}


def draws(count: int, value: float = 0.5) -> statistics.Correlation:
    return statistics.Correlation(0.5, (0.4, 0.6), np.full(count, value))


def tensors(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda m, s: pruning.filter_norms(m, names=["conv9"]), "conv9"),
        (lambda m, s: pruning.filter_norms(nn.ReLU()), "linear layers of model"),
        (lambda m, s: pruning.taylor_scores(m, Split(s.inputs[:0], s.labels[:0])), "split is empty"),
        (lambda m, s: pruning.gradients(m, Split(s.inputs[:0], s.labels[:0])), "split is empty"),
        (lambda m, s: pruning.gradients(m, s, names=["1"]), "name in names='1'"),
        (lambda m, s: pruning.hessian_product(m, s)({"0.weight": torch.zeros(4, 3)}), "v has the names"),
        (lambda m, s: pruning.hessian_diagonal(m, s, samples=1), "samples=1"),
        (lambda m, s: pruning.largest_eigenvalues(m, s, count=32), "count=32"),
        (lambda m, s: pruning.largest_eigenvalues(m, s, count=0), "count=0"),
        (lambda m, s: pruning.removal_damage(m, s, "1"), "layer='1'"),
        (lambda m, s: pruning.removal_damage(m, Split(s.inputs[:0], s.labels[:0]), "0"), "split is empty"),
        (lambda m, s: statistics.rank_correlation({"a": torch.ones(3)}, {"a": torch.ones(4)}), "scores has the sizes"),
        (lambda m, s: statistics.rank_correlation({"b": torch.ones(3)}, {"a": torch.ones(3)}), "scores has the sizes"),
        (lambda m, s: statistics.rank_correlation({}, {}), "damage is empty"),
        (lambda m, s: statistics.rank_correlation(a_nan(), {"a": torch.ones(3)}), "scores['a'] holds NaN"),
        (lambda m, s: statistics.rank_correlation({"a": torch.ones(3)}, a_nan()), "damage['a'] holds NaN"),
        (lambda m, s: statistics.rank_correlation({"a": torch.ones(0)}, {"a": torch.ones(0)}), "scores['a'] is empty"),
        (lambda m, s: statistics.rank_correlation({"a": [1.0]}, {"a": torch.ones(1)}), "scores['a'] is of list"),
        (
            lambda m, s: statistics.rank_correlation({"a": torch.ones(3) * 1j}, {"a": torch.ones(3)}),
            "scores['a'] is of torch.complex64",
        ),
        (lambda m, s: statistics.rank_correlation(a_score(), a_score(), seed=-1), "seed=-1"),
        (lambda m, s: statistics.rank_correlation(a_score(), a_score(), resamples=0), "resamples=0"),
        (lambda m, s: statistics.shared_ranks({"a": draws(3), "b": draws(4)}), "correlations has draws of shapes"),
        (lambda m, s: statistics.shared_ranks({"a": draws(0)}), "none of them empty"),
        (lambda m, s: statistics.shared_ranks({"a": draws(3), "b": draws(3, np.nan)}), "correlations['b'].draws holds"),
        (lambda m, s: pruning.filter_norms(m, norm=0), "norm=0"),
        (lambda m, s: pruning.filter_norms(m, norm=np.nan), "norm=nan"),
        (lambda m, s: pruning.filter_norms(m, names=[]), "names is empty"),
        (lambda m, s: pruning.filter_norms(m, names="0"), "names='0'; allowed: several names"),
        (lambda m, s: pruning.random_filter_scores(m, seed=1.5), "seed=1.5"),
        (lambda m, s: pruning.taylor_scores(m, s, batch_size=0), "batch_size=0"),
        (lambda m, s: pruning.gradients(m, s, batch_size=0), "batch_size=0"),
        (lambda m, s: pruning.gradients(m, s, loss=3), "loss=3; allowed: a function"),
        (lambda m, s: pruning.hessian_product(m, s, loss=None), "loss=None; allowed: a function"),
        (lambda m, s: pruning.removal_damage(m, s, "0", batch_size=0), "batch_size=0"),
        (lambda m, s: pruning.gradients(m, s.inputs), "split is a Tensor"),
        (lambda m, s: pruning.gradients(m, Split(["a"], [1])), "allowed: a Split of two tensors"),
        (lambda m, s: pruning.gradients(nn.Sequential(), s), "parameters of model is empty"),
        (lambda m, s: pruning.hessian_product(m, s)(dict.fromkeys(tensors(m), torch.ones(2))), "v['0.weight'] has"),
        (lambda m, s: pruning.hessian_diagonal(m, s, samples=2, seed=-1), "seed=-1"),
        (lambda m, s: pruning.largest_eigenvalues(m, s, seed=-1), "seed=-1"),
        (lambda m, s: pruning.largest_eigenvalues(m, s, tol=np.nan), "tol=nan"),
        (lambda m, s: pruning.largest_eigenvalues(m, s, iterations=0), "iterations=0"),
        (lambda m, s: statistics.shared_ranks({}), "correlations is empty"),
    ],
)
def test_bad_input_is_named(tiny, points, use, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        use(tiny, points)


def test_a_tie_through_a_third_is_a_tie():
    tied = {("A", "B"), ("B", "C")}
    assert statistics.rank(list("ABCD"), lambda a, b: (a, b) not in tied) == [1, 1, 1, 4]


def test_ranks_of_nonsense_are_refused():
    with pytest.raises(ValueError, match="names=.*; allowed: each once"):
        statistics.rank(["A", "B", "A"], lambda a, b: True)
    assert statistics.rank([], lambda a, b: True) == []
