"""How often intervals hold the truth, verdicts are false and true differences are found, by simulation.

The seeds are fixed. What the bootstrap intervals before these reached, in the same simulations at 20 rounds: a coverage
of 93 % for independent, shared and heavy-tailed noise, of 72 to 76 % for noise with an autocorrelation of 0.8; false
verdicts in 24 % of all comparisons if one variant alone has such noise.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest

from helpers import measure, statistics
from helpers.measure import latency

Noise = Callable[[np.random.Generator, tuple[int, int, int]], np.ndarray]
COMPARISONS = 10_000
DIFFERENCE = math.log(1.1)


def lasting(random: np.random.Generator, shape: tuple[int, ...], correlation: float) -> np.ndarray:
    """Return noise with a standard deviation of 1 whose neighbours on the last axis correlate (AR(1))."""
    values = random.normal(size=shape)
    for index in range(1, shape[-1]):
        values[..., index] *= math.sqrt(1 - correlation**2)
        values[..., index] += correlation * values[..., index - 1]
    return values


def independent(spread: float) -> Noise:
    return lambda random, shape: random.normal(0, spread, shape)


def shared_drift(random: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    return random.normal(0, 0.05, shape) + random.normal(0, 0.1, (shape[0], 1, shape[2])).cumsum(axis=-1)


def student(freedom: int) -> Noise:
    return lambda random, shape: 0.05 * random.standard_t(freedom, shape)


def spikes(random: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    return random.normal(0, 0.03, shape) + (random.random(shape) < 0.1) * random.lognormal(-1, 1, shape)


def own(correlation: float) -> Noise:
    """Every variant has lasting noise, of its own."""
    return lambda random, shape: 0.05 * lasting(random, shape, correlation)


def of_one(correlation: float, spread: float, others: float) -> Noise:
    """Variant 1 alone has lasting noise, the others independent noise."""

    def noise(random: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
        values = random.normal(0, others, shape)
        values[:, 1] = spread * lasting(random, (shape[0], shape[2]), correlation)
        return values

    return noise


EXCHANGEABLE = {
    "independent": independent(0.05),
    "shared drift": shared_drift,
    "Student, 2": student(2),
    "Student, 3": student(3),
    "spikes": spikes,
}
LASTING = {
    "own 0.5": own(0.5),
    "own 0.8": own(0.8),
    "one 0.5, others still": of_one(0.5, 0.05, 1e-4),
    "one 0.8, others still": of_one(0.8, 0.05, 1e-4),
    "one 0.8, like the others": of_one(0.8, 0.05, 0.05),
}
WORST = {"one 0.8, twice the others": of_one(0.8, 0.1, 0.05)}


def relative(noise: Noise, *, rounds: int, variants: int = 3, count: int = COMPARISONS, seed: int = 0) -> np.ndarray:
    """Return the logs of the rounds' ratios, as `compare` has them: (experiments, variants, rounds), control last."""
    logs = noise(np.random.default_rng(seed), (count, variants, rounds))
    return logs[:, :1] - logs


def false_verdicts(noise: Noise, *, rounds: int, variants: int = 3, count: int = COMPARISONS) -> np.ndarray:
    """Return which comparisons of equal variants end with a verdict: (experiments, variants)."""
    logs = relative(noise, rounds=rounds, variants=variants, count=count)
    return latency._decided(logs, logs[:, -1]).side != 0


@pytest.mark.parametrize("rounds", [20, 25, 60])
@pytest.mark.parametrize("kind", EXCHANGEABLE)
def test_99_percent_intervals_cover_as_often_as_they_say(kind, rounds):
    found = statistics.median_interval(relative(EXCHANGEABLE[kind], rounds=rounds)[:, 1], confidence=0.99)
    assert np.mean((found.low <= 0) & (found.high >= 0)) >= 0.992


@pytest.mark.parametrize("rounds", [20, 60])
@pytest.mark.parametrize("kind", LASTING)
def test_intervals_under_noise_of_one_variant_that_lasts(kind, rounds):
    """Independent noise on top of what lasts hides it from the correlation of neighbours: beyond reach, 96 to 97 %."""
    found = statistics.median_interval(relative(LASTING[kind], rounds=rounds)[:, 1], confidence=0.99)
    bound = 0.96 if kind == "one 0.8, like the others" else 0.985
    assert np.mean((found.low <= 0) & (found.high >= 0)) >= bound


@pytest.mark.parametrize("rounds", [20, 31, 60])
@pytest.mark.parametrize("kind", EXCHANGEABLE | LASTING | WORST)
def test_one_comparison_in_a_hundred_at_most_is_false(kind, rounds):
    alarms = false_verdicts((EXCHANGEABLE | LASTING | WORST)[kind], rounds=rounds)[:, 1].mean()
    assert alarms <= (0.012 if kind in WORST else 0.01)
    if kind in EXCHANGEABLE:
        assert alarms <= 0.002


@pytest.mark.parametrize("kind", EXCHANGEABLE | LASTING | WORST)
def test_one_table_of_eight_equal_variants_in_twenty_at_most_has_a_false_verdict(kind):
    alarms = false_verdicts((EXCHANGEABLE | LASTING | WORST)[kind], rounds=20, variants=9, count=2_000)
    assert alarms[:, 1:8].any(axis=1).mean() <= 0.03


def found(spread: float, rounds: int, *, difference: float = DIFFERENCE) -> float:
    """Return how often a true difference is found in independent noise of so much per round and trace."""
    logs = relative(independent(spread), rounds=rounds, seed=1)
    logs[:, 1] += difference
    return float((latency._decided(logs, logs[:, 2]).side[:, 1] == 1).mean())


@pytest.mark.parametrize(
    ("spread", "rounds", "power"),
    [(0.05, 60, 0.98), (0.05, 40, 0.8), (0.035, 40, 0.98), (0.035, 31, 0.9), (0.035, 20, 0.5), (0.02, 20, 0.72)],
)
def test_a_difference_of_ten_percent_is_found(spread, rounds, power):
    """At 60 rounds as often as by the bootstrap (98 % in noise of 5 %); fewer rounds pay for the false verdicts."""
    assert found(spread, rounds) >= power


def test_a_large_difference_is_found_whatever_the_noise_looks_like():
    assert found(0.05, 20, difference=math.log(1.65)) > 0.98
    assert found(0.01, 20) > 0.99


def test_noise_that_lasts_is_noticed():
    for rounds, noticed in ((20, 0.6), (60, 0.99)):
        intervals = statistics.median_interval(relative(own(0.8), rounds=rounds)[:, 1], confidence=0.99)
        assert np.mean(intervals.autocorrelation > latency.LASTING / math.sqrt(rounds)) > noticed
        calm = statistics.median_interval(relative(independent(0.05), rounds=rounds)[:, 1], confidence=0.99)
        assert np.mean(calm.autocorrelation > latency.LASTING / math.sqrt(rounds)) < 0.1


def test_compare_decides_what_is_simulated_here():
    logs = own(0.5)(np.random.default_rng(3), (100, 9, 20)) + np.linspace(0, 0.6, 9)[:, None]
    for one in logs:
        names = [*"abcdefgh", "a (A/A)"]
        verdicts = measure.compare(dict(zip(names, np.exp(one), strict=True)))
        sides = latency._decided(one[:1] - one, one[0] - one[8]).side
        assert [verdict.verdict for verdict in verdicts.values()] == [latency.OUTCOMES[int(side)] for side in sides]


# ---------------------------------------------------------------- clusters


@pytest.mark.parametrize("equal", [True, False])
def test_intervals_of_a_mean_in_clusters_cover(equal):
    """A design effect of 1.5: five values each, correlated by 0.125. An interval that ignores it covers 89 %."""
    random, films, covered, plain = np.random.default_rng(4), 60, 0, 0
    sizes = np.full(films, 5) if equal else np.resize([2, 4, 6, 8], films)
    clusters = np.repeat(np.arange(films), sizes)
    for _ in range(2_000):
        values = math.sqrt(0.125) * random.normal(size=films)[clusters] + math.sqrt(0.875) * random.normal(size=300)
        low, high = statistics.cluster_interval(values, clusters)
        covered += low <= 0 <= high
        plain += abs(values.mean()) <= 1.968 * values.std(ddof=1) / math.sqrt(len(values))
    assert 0.935 <= covered / 2_000 <= 0.97
    assert plain / 2_000 < 0.91
