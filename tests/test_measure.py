"""Counting against formulas worked out by hand, timing against a fake clock, verdicts ten thousand times."""

import gc
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

from helpers import measure, models, pruning

IMAGES = torch.zeros(3, 1, 28, 28)


@pytest.fixture
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return models.lenet5()


# ---------------------------------------------------------------- counting


def test_lenet5_by_hand(lenet):
    table = measure.layer_table(lenet, IMAGES).set_index("layer")
    by_hand = {
        "conv1": ("Conv2d", (20, 24, 24), 20 * 25, 20, 24 * 24 * 20 * 25),
        "conv2": ("Conv2d", (50, 8, 8), 50 * 20 * 25, 50, 8 * 8 * 50 * 20 * 25),
        "fc1": ("Linear", (500,), 800 * 500, 500, 800 * 500),
        "fc2": ("Linear", (10,), 500 * 10, 10, 500 * 10),
    }
    assert list(table.index) == list(by_hand)
    for name, row in by_hand.items():
        assert tuple(table.loc[name, ["kind", "output", "weights", "biases", "macs"]]) == row
    assert list(table["parameters"]) == [520, 25_050, 400_500, 5_010]
    assert list(table["bytes"]) == [2_080, 100_200, 1_602_000, 20_040]
    assert table["share_parameters"].sum() == pytest.approx(1)
    assert table.loc["conv2", "share_macs"] == 1_600_000 / 2_293_000


def test_lenet5_totals(lenet):
    assert measure.count_parameters(lenet) == 431_080
    assert measure.count_weights(lenet) == measure.count_nonzero(lenet) == 430_500
    assert measure.count_macs(lenet, IMAGES) == 2_293_000
    counter = FlopCounterMode(display=False)
    with counter:
        lenet(IMAGES)
    assert counter.get_total_flops() == 2 * 3 * 2_293_000


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_macs_are_those_of_one_example(lenet, batch):
    assert measure.count_macs(lenet, torch.zeros(batch, 1, 28, 28)) == 2_293_000


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 3),
    into=st.integers(1, 3),
    out=st.integers(1, 3),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    size=st.integers(4, 9),
    bias=st.booleans(),
)
def test_macs_of_any_convolution(groups, into, out, kernel, stride, padding, size, bias):
    layer = nn.Conv2d(groups * into, groups * out, kernel, stride, padding, groups=groups, bias=bias)
    places = ((size + 2 * padding - kernel) // stride + 1) ** 2
    macs = places * groups * out * into * kernel**2
    assert measure.count_macs(layer, torch.zeros(2, groups * into, size, size)) == macs


def test_recurrent_layers_are_not_counted_as_free():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 5, batch_first=True)
            self.out = nn.Linear(5, 2)

        def forward(self, x):
            return self.out(self.lstm(x)[0][:, -1])

    reader, words = Reader(), torch.zeros(2, 9, 6)
    lstm = 9 * 4 * 5 * (6 + 5)
    assert measure.count_macs(reader, words) == lstm + 10
    table = measure.layer_table(reader, words).set_index("layer")
    assert list(table["macs"]) == [lstm, 10]
    assert list(table["weights"]) == [4 * 5 * (6 + 5), 10]


def test_frozen_and_shared_parameters():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    model.requires_grad_(False)
    assert measure.count_parameters(model) == 16 + 8
    assert measure.count_weights(model) == 16


def test_the_model_stays_as_it_is(lenet):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(1352, 2))
    model.train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.random.get_rng_state()
    measure.count_macs(model, IMAGES)
    measure.layer_table(model, IMAGES)
    assert [module.training for module in model] == [True, False, True, True, True]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)
    with pytest.raises(RuntimeError):
        measure.count_macs(model, torch.zeros(1, 5))
    assert [module.training for module in model] == [True, False, True, True, True]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_masked_model_costs_what_the_dense_one_costs_and_counts_its_zeros(lenet):
    masked = pruning.mask(lenet, pruning.layer_masks(lenet, 0.9))
    dense_table, table = measure.layer_table(lenet, IMAGES), measure.layer_table(masked, IMAGES)
    assert table.equals(dense_table)
    assert measure.count_macs(masked, IMAGES) == 2_293_000
    assert measure.count_parameters(masked) == 431_080
    assert measure.count_weights(masked) == 430_500
    assert measure.count_nonzero(masked) == 43_050 == measure.count_nonzero(pruning.bake(masked))
    assert parametrize.is_parametrized(masked.get_submodule("fc1"), "weight")


def test_torchs_own_masks_are_understood(lenet):
    prune.random_unstructured(lenet.fc1, "weight", amount=0.75)
    prune.ln_structured(lenet.conv2, "weight", amount=0.5, n=1, dim=0)
    assert measure.count_nonzero(lenet) == 500 + 12_500 + 100_000 + 5_000
    assert measure.count_weights(lenet) == 430_500
    assert list(measure.layer_table(lenet, IMAGES)["parameters"]) == [520, 25_050, 400_500, 5_010]


def test_an_empty_example_is_refused(lenet):
    with pytest.raises(ValueError, match="example is empty"):
        measure.count_macs(lenet, IMAGES[:0])


def test_a_model_without_parameters_has_no_table():
    with pytest.raises(ValueError, match="layers with parameters is empty"):
        measure.layer_table(nn.Sequential(nn.ReLU()), IMAGES)
    assert measure.count_macs(nn.ReLU(), IMAGES) == 0


def test_peak_memory_grows_with_what_is_held():
    before = measure.peak_memory_mb()
    held = np.ones(int(before * 1e6 / 8) + 25_000_000)  # more than the peak so far, and 200 MB
    assert 200 < held.nbytes / 1e6 <= measure.peak_memory_mb() < 10 * before + 2_000


# ---------------------------------------------------------------- timing


class Clock:
    """A clock that only the timed functions advance; it also writes down who was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.called: list[str] = []
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)

    def work(self, name: str, seconds: float):
        def function() -> None:
            self.called.append(name)
            self.now += seconds

        return function


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def test_times_are_seconds_per_call(clock):
    variants = {"a": clock.work("a", 0.25), "b": clock.work("b", 0.5)}
    timings = measure.time_interleaved(variants, rounds=7, warmup=2)
    assert list(timings) == ["a", "b", "a (A/A)"]
    assert np.array_equal(timings["a"], [0.25] * 7)
    assert np.array_equal(timings["b"], [0.5] * 7)
    assert np.array_equal(timings["a (A/A)"], [0.25] * 7)


def test_every_round_holds_every_variant_in_a_new_order(clock):
    names = ["a", "b", "c"]
    variants = {name: clock.work(name, 1.0) for name in names}
    measure.time_interleaved(variants, rounds=200, warmup=1, inner=1)
    rounds = [clock.called[start : start + 4] for start in range(3, len(clock.called), 4)]
    assert len(rounds) == 200
    assert {tuple(sorted(one)) for one in rounds} == {("a", "a", "b", "c")}
    for position in range(4):
        share = sum(one[position] == "b" for one in rounds) / 200
        assert 0.15 < share < 0.35


def test_short_calls_are_repeated_until_a_sample_fills_a_millisecond(clock):
    variants = {"short": clock.work("short", 1e-5), "long": clock.work("long", 0.1)}
    timings = measure.time_interleaved(variants, rounds=3, warmup=1)
    assert clock.called.count("short") == 1 + 2 * 3 * 100
    assert clock.called.count("long") == 1 + 3
    assert timings["short"] == pytest.approx([1e-5] * 3)


def test_one_interrupted_call_does_not_shorten_the_samples(clock):
    delays = iter([0.5, 0.5, 0.5])  # a cold cache, then a busy machine

    def function() -> None:
        clock.called.append("a")
        clock.now += 1e-5 + next(delays, 0)

    measure.time_interleaved({"a": function}, rounds=1, warmup=4)
    assert len(clock.called) == 4 + 2 * 100


def test_inner_and_warmup_are_taken_as_given(clock):
    measure.time_interleaved({"a": clock.work("a", 1e-7)}, rounds=4, warmup=3, inner=5)
    assert len(clock.called) == 3 + 2 * 4 * 5


def test_threads_and_garbage_collection_are_restored():
    before = torch.get_num_threads()
    inside = []

    def function() -> None:
        inside.append((torch.get_num_threads(), gc.isenabled()))

    measure.time_interleaved({"a": function}, rounds=1, warmup=1, threads=before + 1, inner=1)
    assert set(inside) == {(before + 1, False)}
    with pytest.raises(ZeroDivisionError):
        measure.time_interleaved({"a": lambda: 1 / 0}, rounds=1)
    assert torch.get_num_threads() == before
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("variants", "options", "message"),
    [
        ({}, {}, "variants is empty"),
        ({"a": print, "a (A/A)": print}, {}, "'a \\(A/A\\)'; allowed: any other name"),
        ({"a": print}, {"rounds": 0}, "rounds=0"),
        ({"a": print}, {"warmup": 0}, "warmup=0"),
        ({"a": int}, {"threads": 0}, "threads=0"),
        ({"a": int}, {"inner": 0}, "inner=0"),
    ],
)
def test_bad_timing_requests(variants, options, message):
    with pytest.raises(ValueError, match=message):
        measure.time_interleaved(variants, **options)


# ---------------------------------------------------------------- verdicts

ROUNDS = 60


def drift(random: np.random.Generator, kind: str, rounds: int) -> np.ndarray:
    """What slows the machine as a whole, as log seconds per round."""
    if kind == "ramp":
        return np.linspace(0, 0.7, rounds)
    if kind == "walk":
        return random.normal(0, 0.1, rounds).cumsum()
    if kind == "clock steps":  # now fast, now half as fast, for about six rounds each
        return 0.7 * ((random.random(rounds) < 0.15).cumsum() % 2)
    return np.zeros(rounds)


def noise(random: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    """What hits single samples, as log seconds: a tenth delayed, with no finite mean, or Student's t."""
    if kind == "delays":
        delayed = random.random(shape) < 0.1
        return random.normal(0, 0.03, shape) + delayed * np.log1p(random.pareto(0.9, shape))
    if kind == "student":
        return 0.05 * np.abs(random.standard_t(2, shape))
    return random.normal(0, 0.05, shape)


KINDS = list(itertools.product(["none", "ramp", "walk", "clock steps"], ["normal", "delays", "student"]))


def trace(random: np.random.Generator, kinds: tuple[str, str], *, faster: float = 1.0, rounds: int = ROUNDS):
    logs = noise(random, kinds[1], (3, rounds)) + drift(random, kinds[0], rounds)
    a, control, b = 1e-3 * np.exp(logs)
    return {"a": a, "b": b / faster, "a (A/A)": control}


def verdict(timings) -> str:
    return measure.compare(timings)["b"].verdict


@pytest.mark.slow
def test_false_alarms_in_ten_thousand_comparisons_of_a_with_a():
    random = np.random.default_rng(0)
    alarms = {kinds: 0 for kinds in KINDS}
    for _, kinds in zip(range(10_000), itertools.cycle(KINDS), strict=False):
        alarms[kinds] += verdict(trace(random, kinds)) != "no measurable difference"
    assert sum(alarms.values()) <= 100
    assert max(alarms.values()) <= 0.01 * 10_000 / len(KINDS)


def test_a_true_factor_of_1_3_is_found_every_time():
    random = np.random.default_rng(1)
    for kinds in KINDS:
        for _ in range(40):
            assert verdict(trace(random, kinds, faster=1.3)) == "faster", kinds
            assert verdict(trace(random, kinds, faster=1 / 1.3)) == "slower", kinds


def test_drift_of_each_variant_by_itself_raises_few_alarms():
    """Slow drift that variants do not share is the worst case: neighbouring rounds carry the same error."""
    random, alarms = np.random.default_rng(2), 0
    for _ in range(1_000):
        logs = np.zeros((3, ROUNDS))
        for index in range(1, ROUNDS):
            logs[:, index] = 0.85 * logs[:, index - 1] + random.normal(0, 0.05, 3)
        a, control, b = np.exp(logs)
        alarms += verdict({"a": a, "b": b, "a (A/A)": control}) != "no measurable difference"
    assert alarms <= 10


def test_the_fewest_rounds_raise_few_alarms_too():
    random, fewest = np.random.default_rng(3), measure.MINIMUM_ROUNDS
    alarms = sum(
        verdict(trace(random, kinds, rounds=fewest)) != "no measurable difference"
        for _, kinds in zip(range(1_200), itertools.cycle(KINDS), strict=False)
    )
    assert alarms <= 12


def test_the_interval_covers_the_true_ratio():
    random, covered = np.random.default_rng(4), 0
    for _, kinds in zip(range(1_200), itertools.cycle(KINDS), strict=False):
        low, high = measure.compare(trace(random, kinds, faster=1.5))["b"].interval
        covered += low <= 1.5 <= high
    assert covered >= 0.97 * 1_200


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, kinds=st.sampled_from(KINDS), rounds=st.integers(20, 90))
def test_slowing_down_whole_rounds_changes_no_ratio(seed, kinds, rounds):
    random = np.random.default_rng(seed)
    timings = trace(random, kinds, faster=1.1, rounds=rounds)
    slow = np.exp(random.normal(0, 1, rounds))
    before, after = measure.compare(timings), measure.compare({name: slow * t for name, t in timings.items()})
    for name in timings:
        assert after[name].ratio == pytest.approx(before[name].ratio)
        assert after[name].interval == pytest.approx(before[name].interval)
        assert after[name].null_interval == pytest.approx(before[name].null_interval)
        assert after[name].verdict == before[name].verdict


@settings(max_examples=50, deadline=None)
@given(seed=seeds, kinds=st.sampled_from(KINDS), factor=st.floats(0.2, 5))
def test_a_variant_slower_by_a_factor_has_a_ratio_smaller_by_it(seed, kinds, factor):
    timings = trace(np.random.default_rng(seed), kinds)
    before = measure.compare(timings)["b"]
    after = measure.compare(timings | {"b": timings["b"] * factor})["b"]
    assert after.ratio == pytest.approx(before.ratio / factor)
    assert after.interval == pytest.approx([end / factor for end in before.interval])
    assert after.null_interval == pytest.approx(before.null_interval)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, kinds=st.sampled_from(KINDS), faster=st.floats(0.5, 2))
def test_what_a_verdict_holds_fits_together(seed, kinds, faster):
    verdicts = measure.compare(trace(np.random.default_rng(seed), kinds, faster=faster))
    assert list(verdicts) == ["a", "b", "a (A/A)"]
    base, other, control = verdicts.values()
    for name, one in verdicts.items():
        assert one.name == name
        assert one.ratio == pytest.approx(base.median_ms / one.median_ms)
        assert one.interval[0] <= one.ratio <= one.interval[1]
        assert one.null_interval[0] == pytest.approx(1 / one.null_interval[1])
    assert base.interval == (1, 1)
    assert base.null_interval[0] <= control.interval[0] <= control.interval[1] <= base.null_interval[1]
    assert base.verdict == control.verdict == "no measurable difference"
    clears = other.interval[0] > other.null_interval[1] or other.interval[1] < other.null_interval[0]
    assert clears == (other.verdict != "no measurable difference")


def test_without_drift_the_medians_are_plain_medians():
    timings = trace(np.random.default_rng(0), ("none", "normal"), faster=2)
    verdicts = measure.compare(timings)
    for name, seconds in timings.items():
        assert verdicts[name].median_ms == pytest.approx(1e3 * np.median(seconds), rel=0.03)


def test_a_noisy_control_withholds_the_verdict():
    """The same pair of traces is told apart beside a calm control and not beside a restless one."""
    random = np.random.default_rng(0)
    timings = trace(random, ("none", "normal"), faster=1.2)
    assert verdict(timings) == "faster"
    assert verdict(timings | {"a (A/A)": timings["a (A/A)"] * 1.25}) == "no measurable difference"


@pytest.mark.parametrize("rounds", [20, 21, 60, 300])
def test_bootstrap_medians_by_brute_force(rounds):
    random = np.random.default_rng(0)
    values = np.vstack([random.normal(size=rounds), random.integers(3, size=rounds)])  # without ties, with
    draws = measure._block_draws(rounds)
    assert np.all(draws.sum(axis=0, dtype=int) == rounds)
    by_hand = [[np.median(np.repeat(row, counts)) for counts in draws.T] for row in values]
    assert measure._bootstrap_medians(values) == pytest.approx(np.array(by_hand))


def test_draws_are_blocks_of_neighbours():
    """In a resample of single rounds, a drawn round's neighbours are drawn no more often than any other."""
    draws = measure._block_draws(60).astype(float)
    together = (draws * np.roll(draws, 1, axis=0)).mean()
    apart = (draws * np.roll(draws, 30, axis=0)).mean()
    assert together > 1.5 * apart
    assert draws.mean(axis=1) == pytest.approx(np.ones(60), abs=0.15)


def short(timings):
    return {name: seconds[:19] for name, seconds in timings.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {}, "timings is empty"),
        (lambda t: {"a": t["a"], "b": t["b"]}, "timings has no 'a \\(A/A\\)'"),
        (lambda t: t | {"b": t["b"][:-1]}, "one length"),
        (short, "at least 20 rounds"),
        (lambda t: t | {"b": t["b"] * 0}, "finite times above 0"),
        (lambda t: t | {"b": t["b"] * np.nan}, "finite times above 0"),
    ],
)
def test_bad_timings(change, message):
    with pytest.raises(ValueError, match=message):
        measure.compare(change(trace(np.random.default_rng(0), KINDS[0])))


def test_live_timings_tell_a_hundred_times_the_work():
    """On a machine so busy that the verdict is withheld, the ratio alone must still lie on the right side."""
    matrix = torch.ones(64, 64)

    def once() -> None:
        matrix @ matrix

    def a_hundred_times() -> None:
        for _ in range(100):
            matrix @ matrix

    verdicts = measure.compare(measure.time_interleaved({"one": once, "hundred": a_hundred_times}))
    assert verdicts["hundred"].verdict != "faster"
    assert verdicts["hundred"].ratio < 0.5


def test_tables_and_records():
    verdicts = measure.compare(trace(np.random.default_rng(0), KINDS[0], faster=2))
    table = measure.verdict_table(verdicts)
    assert list(table["variant"]) == ["a", "b", "a (A/A)"]
    assert list(table["verdict"]) == ["baseline", "faster", "control"]
    assert math.isclose(float(table.loc[1, "ratio"]), 2, abs_tol=0.1)
    records = measure.latency_records(verdicts, runtime="eager", batch=64)
    assert [record["variant"] for record in records] == ["a", "b"]
    assert records[1] | {"runtime": "eager", "batch": 64, "ratio": verdicts["b"].ratio} == records[1]
    assert records[1]["interval"] == list(verdicts["b"].interval)
    with pytest.raises(ValueError, match="batch=0"):
        measure.latency_records(verdicts, runtime="eager", batch=0)
