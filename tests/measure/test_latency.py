"""Timing against a fake clock, and verdicts."""

import gc
import itertools
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import measure
from helpers.measure import latency, memory


def test_peak_memory_grows_with_what_is_held():
    before = measure.peak_memory_mb()
    held = np.ones(int(before * 1e6 / 8) + 25_000_000)  # more than the peak so far, and 200 MB
    assert 200 < held.nbytes / 1e6 <= measure.peak_memory_mb() < 10 * before + 2_000


@pytest.mark.skipif(sys.platform == "win32", reason="has no module resource")
@pytest.mark.parametrize(("platform", "megabytes"), [("linux", 1.024e3), ("darwin", 1.0)])
def test_peak_memory_is_in_megabytes_whatever_the_systems_unit(monkeypatch, platform, megabytes):
    """Linux counts in units of 1,024 bytes, macOS in bytes."""
    import resource

    monkeypatch.setattr(memory.sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda whose: SimpleNamespace(ru_maxrss=1_000_000))
    assert measure.peak_memory_mb() == megabytes


class Clock:
    """A clock that only the timed functions advance; it also writes down who was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.called: list[str] = []
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now)

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


def test_the_control_can_be_a_copy(clock):
    variants = {"a": clock.work("a", 0.25), "b": clock.work("b", 0.5)}
    timings = measure.time_interleaved(variants, rounds=7, warmup=2, control=clock.work("copy", 0.75))
    assert list(timings) == ["a", "b", "a (A/A)"]
    assert np.array_equal(timings["a (A/A)"], [0.75] * 7)
    assert [clock.called.count(name) for name in ("a", "b", "copy")] == [2 + 7] * 3


def test_the_copy_is_called_as_often_in_a_sample_as_the_first_variant(clock):
    measure.time_interleaved({"a": clock.work("a", 1e-5)}, rounds=3, warmup=1, control=clock.work("copy", 0.1))
    assert clock.called.count("copy") == clock.called.count("a") == 1 + 3 * 100


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


def test_garbage_collection_that_was_off_stays_off():
    gc.disable()
    try:
        measure.time_interleaved({"a": int}, rounds=1, warmup=1, inner=1)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_threads_are_left_as_they_are_if_asked_for():
    before, inside = torch.get_num_threads(), set()
    torch.set_num_threads(before + 1)
    try:
        measure.time_interleaved({"a": lambda: inside.add(torch.get_num_threads())}, rounds=1, inner=1, threads=None)
    finally:
        torch.set_num_threads(before)
    assert inside == {before + 1}


@pytest.mark.parametrize(
    ("variants", "options", "message"),
    [
        ({}, {}, "variants is empty"),
        ({"a": print, "a (A/A)": print}, {}, "'a \\(A/A\\)'; allowed: any other name"),
        ({"a": print}, {"rounds": 0}, "rounds=0"),
        ({"a": print}, {"warmup": 0}, "warmup=0"),
        ({"a": int}, {"threads": 0}, "threads=0"),
        ({"a": int}, {"inner": 0}, "inner=0"),
        ({"a": int}, {"inner": 1.5}, "inner=1.5"),
        ({"a": int}, {"control": 3}, "control=3; allowed: a function"),
        ({"a": int, "b": 3}, {}, "variants\\['b'\\]=3; allowed: a function"),
    ],
)
def test_bad_timing_requests(variants, options, message):
    with pytest.raises(ValueError, match=message):
        measure.time_interleaved(variants, **options)


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
    random, fewest = np.random.default_rng(3), latency.MINIMUM_ROUNDS
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
    assert base.null_interval[0] <= control.ratio <= base.null_interval[1]
    assert control.note in ("", "the noise lasted", "too few rounds")
    assert 0 < control.effective_rounds <= ROUNDS
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


def lasting(rounds: int) -> dict[str, np.ndarray]:
    """Return traces of which one is slow in its first half."""
    timings = trace(np.random.default_rng(0), KINDS[0], rounds=rounds)
    return timings | {"b": timings["b"] * np.where(np.arange(rounds) < rounds // 2, 1.3, 1.0)}


def test_noise_that_lasts_is_noticed_and_widens_the_interval():
    timings = lasting(40)
    found = measure.compare(timings)["b"]
    order = np.random.default_rng(0).permutation(40)
    shuffled = measure.compare({name: seconds[order] for name, seconds in timings.items()})["b"]
    assert (found.note, shuffled.note) == ("the noise lasted", "")
    assert found.effective_rounds < 8 < shuffled.effective_rounds
    assert math.log(found.interval[1] / found.interval[0]) > 2 * math.log(shuffled.interval[1] / shuffled.interval[0])
    verdicts = measure.compare(timings)
    assert measure.verdict_table(verdicts).loc[1, "verdict"] == "no measurable difference (the noise lasted)"
    assert measure.latency_records(verdicts, runtime="eager", batch=1)[1]["note"] == "the noise lasted"


def test_too_few_rounds_are_said_to_be_too_few():
    """Neighbours correlate by chance: too little to say that the noise lasted, too much to rule it out."""
    notes = {measure.compare(trace(np.random.default_rng(s), KINDS[0], rounds=20))["b"].note for s in range(40)}
    assert {"", "too few rounds"} <= notes


def test_more_than_five_variants_need_wider_intervals_for_a_verdict():
    """The level of 5 % is the whole table's: a variant may clear the null interval by its 99 % interval alone."""
    random = np.random.default_rng(0)
    logs = 0.05 * random.normal(size=(500, 22, 60))
    logs[:, 1] -= 0.05
    control = logs[:, 0] - logs[:, 21]
    few, many = (latency._decided(logs[:, :1] - logs[:, [0, *range(1, n), 21]], control) for n in (6, 21))
    assert np.array_equal(few.shown.low[:, 1], many.shown.low[:, 1])
    assert (many.side[:, 1] == 1).sum() < 0.8 * (few.side[:, 1] == 1).sum()
    alone = few.shown.low[:, 1] > few.noise
    assert np.array_equal(few.side[:, 1] == 1, alone)


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
        (lambda t: t | {"b": np.append(t["b"][1:], np.nan)}, "timings\\['b'\\] has a time of nan s"),
        (lambda t: t | {"a (A/A)": np.append(t["b"][1:], np.inf)}, "timings\\['a \\(A/A\\)'\\] has a time of inf s"),
        (lambda t: t | {"b": np.append(t["b"][1:], -1)}, "has a time of -1.0 s; allowed: finite times above 0"),
        (lambda t: t | {"b": ["fast"] * 60}, "timings\\['b'\\] holds what is no number"),
        (lambda t: t | {"b": None}, "timings\\['b'\\] has a time of nan s"),
        (lambda t: t | {"b": t["b"][None]}, "one length"),
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


def text(interval):
    return f"{interval[0]:.2f} – {interval[1]:.2f}"


def test_tables_and_records():
    verdicts = measure.compare(trace(np.random.default_rng(1), KINDS[0], faster=2))
    table = measure.verdict_table(verdicts)
    assert list(table["variant"]) == ["a", "b", "a (A/A)"]
    assert list(table["verdict"]) == ["baseline", "faster", "control"]
    assert math.isclose(float(table.loc[1, "ratio"]), 2, abs_tol=0.1)
    assert list(table["99 % interval"]) == ["", text(verdicts["b"].interval), text(verdicts["a (A/A)"].interval)]
    assert list(table["A/A interval"]) == [text(verdicts["a"].null_interval)] * 3
    assert text(verdicts["b"].interval) != text(verdicts["b"].null_interval)
    assert list(table["median (ms)"]) == [f"{v.median_ms:.3g}" for v in verdicts.values()]
    with pytest.raises(ValueError, match="verdicts is empty"):
        measure.verdict_table({})
    records = measure.latency_records(verdicts, runtime="eager", batch=64)
    assert [record["variant"] for record in records] == ["a", "b"]
    assert records[1] | {"runtime": "eager", "batch": 64, "ratio": verdicts["b"].ratio} == records[1]
    assert records[1]["interval"] == list(verdicts["b"].interval)
    with pytest.raises(ValueError, match="batch=0"):
        measure.latency_records(verdicts, runtime="eager", batch=0)


def test_what_a_claim_is_decided_by_clears_the_control():
    verdict = measure.Verdict("a", 1.0, 2.0, (1.8, 2.2), (0.9, 1 / 0.9), "faster")
    assert verdict.cleared == pytest.approx((1.8 * 0.9, 2.2 / 0.9))


def test_variants_can_be_compared_with_another_than_the_first():
    """Of two variants the one's ratio to the other is the inverse, interval and all; the control stays the first's."""
    random = np.random.default_rng(0)
    timings = {name: np.exp(random.normal(level, 0.02, 60)) for name, level in zip("abc", (0, 0.5, 1), strict=True)}
    timings["a (A/A)"] = np.exp(random.normal(0, 0.02, 60))
    by_first, by_b = measure.compare(timings), measure.compare(timings, against="b")
    assert [*by_b] == ["b", "a", "c", "a (A/A)"] and by_b["b"].ratio == 1
    assert by_b["a"].ratio == pytest.approx(1 / by_first["b"].ratio)
    assert by_b["a"].interval == pytest.approx(tuple(1 / end for end in reversed(by_first["b"].interval)))
    assert by_b["c"].null_interval == by_first["c"].null_interval
    assert by_b["c"].ratio == pytest.approx(np.median(timings["b"] / timings["c"]))
    assert [by_b[name].verdict for name in "ac"] == ["faster", "slower"]
    with pytest.raises(ValueError, match="against='d' is unknown; allowed: 'a', 'b', 'c'"):
        measure.compare(timings, against="d")
