"""The board against brute force, closed forms, and results whose means would lie."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from helpers import evidence
from helpers.statistics import paired_interval
from tests.evidence.evidence_examples import clocked, recorded_model, without_file

few = st.integers(0, 4).map(float)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(few, few, few), min_size=1, max_size=8))
def test_the_front_is_what_nobody_dominates(points):
    expected = [
        not any(
            a >= p and s <= q and m <= r and (a, s, m) != (p, q, r) for a, s, m in points
        )
        for p, q, r in points
    ]  # fmt: skip
    assert evidence.front(*zip(*points, strict=True)) == expected


def test_an_unknown_cost_is_not_on_the_front_and_dominates_nobody():
    assert evidence.front([0.9, 0.8], [math.nan, 5.0]) == [False, True]


def test_the_front_needs_costs_of_the_same_length():
    with pytest.raises(ValueError, match="costs is empty"):
        evidence.front([1.0])
    with pytest.raises(ValueError, match="allowed: 2, one for each"):
        evidence.front([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="accuracies holds NaN"):
        evidence.front([1.0, math.nan], [1.0, 1.0])


def seeds(accuracies, *, first=0, images=1_000.0):
    return pd.DataFrame({"seed": range(first, first + len(accuracies)), "accuracy": accuracies, "images": images})


def test_a_lead_is_paired_by_seed_where_seeds_vary():
    a, b = [0.91, 0.93, 0.95], [0.90, 0.91, 0.94]
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = evidence.lead(seeds(a), seeds(b))
    assert found[:2] == pytest.approx(tuple(expected)) and found.over == "seeds"


def test_one_network_measured_three_times_is_no_proof():
    """The same difference in each run has no spread: a paired t interval of it would have the length 0."""
    found = evidence.lead(seeds([0.9955] * 3), seeds([0.9954] * 3))
    assert found.over == "images" and found.low < 0 < found.high


def test_one_network_against_another_by_newcombe_with_his_own_example():
    """Newcombe 1998, table II, example (a): 56/70 against 48/80, method 10: 0.0524 to 0.3339."""
    a, b = seeds([56 / 70], images=70.0), seeds([48 / 80], first=5, images=80.0)
    assert evidence.lead(a, b)[:2] == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_a_lead_over_images_is_widened_where_seeds_differ():
    """One training against three that differ: Newcombe's interval with the wider of the two of each."""
    varied, single = [0.80, 0.90, 0.85], seeds([0.80], first=7)
    low, high = stats.ttest_1samp(varied, 0).confidence_interval(0.95)
    near = stats.binomtest(850, 1_000).proportion_ci(0.95, "wilson")
    other = stats.binomtest(800, 1_000).proportion_ci(0.95, "wilson")
    assert low < near.low and high > near.high
    expected = (
        0.05 - math.hypot(0.85 - low, other.high - 0.80),
        0.05 + math.hypot(high - 0.85, 0.80 - other.low),
    )
    assert evidence.lead(seeds(varied), single)[:2] == pytest.approx(expected)
    assert evidence.lead(single, seeds(varied))[:2] == pytest.approx((-expected[1], -expected[0]))


def test_a_lead_over_many_seeds_is_not_narrower_than_that_over_images():
    varied = [0.849, 0.850, 0.851] * 3
    near = stats.binomtest(850, 1_000).proportion_ci(0.95, "wilson")
    other = stats.binomtest(800, 1_000).proportion_ci(0.95, "wilson")
    found = evidence.lead(seeds(varied), seeds([0.80], first=70))
    assert found.low == pytest.approx(0.05 - math.hypot(0.85 - near.low, other.high - 0.80))
    assert found.high == pytest.approx(0.05 + math.hypot(near.high - 0.85, 0.80 - other.low))


def test_two_seeds_in_common_are_paired_and_one_is_not():
    a, b = seeds([0.91, 0.93, 0.95]), seeds([0.90, 0.91], first=1)
    expected = stats.ttest_rel([0.93, 0.95], [0.90, 0.91]).confidence_interval(0.95)
    assert evidence.lead(a, b)[:2] == pytest.approx(tuple(expected)) and evidence.lead(a, b).over == "seeds"
    assert evidence.lead(a, seeds([0.90, 0.91], first=2)).over == "images"


@pytest.mark.parametrize("bad", [
    seeds([]), seeds([0.5, 0.6]).assign(seed=0), seeds([0.5, math.nan]), seeds([50.0]), seeds([-0.1]),
])  # fmt: skip
def test_no_lead_of_nonsense(bad):
    for a, b, name in [(bad, seeds([0.5]), "a"), (seeds([0.5]), bad, "b")]:
        with pytest.raises(ValueError, match=rf"^{name}\b.*"):
            evidence.lead(a, b)


def test_nothing_is_known_without_the_number_of_images():
    found = evidence.lead(seeds([0.99], images=math.nan), seeds([0.5], images=math.nan))
    assert found.low < 0 < found.high
    assert found[:2] == pytest.approx((0.49 - math.hypot(0.99, 0.5), 0.49 + math.hypot(0.01, 0.5)))


def test_a_board_has_ranks_and_says_how_many_beat_a_model(write):
    leads = {"far": 0.9, "high": 0.92, "low": 0.6, "lowest": 0.59}
    write("02_a", [recorded_model(name, accuracy) for name, accuracy in leads.items()])
    runs = evidence.runs()
    ranked = evidence.ranked(evidence.board(runs, "mnist"), runs).set_index("model")
    assert ranked["rank"].to_dict() == {"high": 1, "far": 1, "low": 3, "lowest": 3}
    assert ranked["beaten_by"].to_dict() == {"high": 0, "far": 0, "low": 2, "lowest": 2}
    with pytest.raises(ValueError, match=r"frame\['model'\]='low' is unknown"):
        evidence.ranked(evidence.board(runs, "mnist"), runs[runs["model"] != "low"])


def test_an_interval_that_ends_at_0_proves_nothing():
    """The pair of differences whose interval begins at 0 to the last bit, by bisection."""
    for larger in np.arange(1, 64) / 64:
        low, high = 0.0, larger
        while low < (middle := (low + high) / 2) < high:
            low, high = (middle, high) if paired_interval([middle, larger], [0, 0])[0] <= 0 else (low, middle)
        if evidence.lead(seeds([low, larger]), seeds([0.0, 0.0])).low == 0:
            break
    runs = pd.concat([seeds([low, larger]).assign(model="a"), seeds([0.0, 0.0]).assign(model="b")])
    frame = pd.DataFrame({"model": ["a", "b"], "accuracy": [larger, 0.0], "bytes": 1.0})
    ranked = evidence.ranked(frame, runs)
    assert evidence.lead(*(part for _, part in runs.groupby("model"))).low == 0
    assert ranked["rank"].tolist() == [1, 1] and ranked["beaten_by"].tolist() == [0, 0]


def test_of_equally_accurate_models_the_smaller_stands_first(write):
    models = [("best", 0.95, 900), ("b", 0.9, 500), ("a", 0.9, 500), ("small", 0.9, 400), ("worst", 0.8, 100)]
    write("02_a", [recorded_model(name, accuracy, size=size) for name, accuracy, size in models])
    runs = evidence.runs()
    frame = evidence.board(runs, "mnist")
    assert frame["model"].tolist() == ["best", "small", "a", "b", "worst"]
    assert evidence.ranked(frame[::-1], runs)["model"].tolist() == frame["model"].tolist()


def test_without_results_there_is_an_empty_board(write):
    runs = evidence.runs()
    assert (
        runs.empty
        and evidence.bought(runs).empty
        and evidence.latencies(runs).empty
        and evidence.claims_over_seeds().empty
    )


def test_a_board_shows_ratios_of_the_base_in_each_seed(write):
    for seed, size in enumerate([8_000, 4_000]):
        base = recorded_model("base", 0.9, weights=size // 10, nonzero=size // 10, size=size)
        cut = recorded_model("cut", 0.8, base="base", method="8-bit", weights=400, nonzero=40, size=2_000)
        write("04_a", [base, cut, without_file("bare", 0.7)], seed=seed)
    rows = evidence.board(evidence.runs(), "mnist").set_index("model")
    assert rows.loc["cut", ["weights_ratio", "file_ratio"]].tolist() == [15.0, 3.0]
    assert rows["front_bytes"].to_dict() == {"base [seed 0]": False, "base [seed 1]": True, "cut": True, "bare": False}
    assert math.isnan(rows.loc["bare", "bytes"]) and rows.loc["cut", "macs"] == 900
    assert list(rows["accuracy"]) == sorted(rows["accuracy"], reverse=True)


def test_an_interval_of_accuracies_stays_between_0_and_1(write):
    for seed, accuracy in enumerate([0.99, 1.0]):
        write("02_a", [recorded_model("high", accuracy), recorded_model("low", 1 - accuracy)], seed=seed)
    frame = evidence.board(evidence.runs(), "mnist").set_index("model")
    assert frame.loc["high", "high"] == 1.0 and frame.loc["low", "low"] == 0.0
    expected = stats.ttest_1samp([0.99, 1.0], 0).confidence_interval(0.95)
    assert frame.loc["high", "low"] == pytest.approx(expected.low)
    assert frame.loc["low", "high"] == pytest.approx(1 - expected.low)


def test_without_images_one_network_has_no_interval(write):
    write("02_a", [recorded_model("net", 0.9)], tests=[{"name": "other", "accuracy": 0.1, "correct": 1, "count": 10}])
    row = evidence.board(evidence.runs(), "mnist").iloc[0]
    assert math.isnan(row["low"]) and math.isnan(row["high"]) and row["over"] == ""


def test_what_a_technique_bought(write):
    for seed in range(2):
        base = recorded_model("base", 0.95, size=8_000)
        cut = recorded_model(
            "cut",
            0.94 - seed / 100,
            base="base",
            method="filters by Taylor",
            techniques=["filters removed"],
            size=2_000,
            macs=300,
            latency=[clocked(1.5, runtime="eager"), clocked(3 + seed)],
        )
        write("04_a", [base, cut], seed=seed)
    row = evidence.bought(evidence.runs()).iloc[0]
    assert (row["file ÷"], row["MACs ÷"], row["speed ×"], row["clock"]) == (4, 3, 3.5, "onnxruntime, batch 1")
    assert row["points lost"] == pytest.approx(1.5) and row["technique"] == "filters removed"
    clock = evidence.latencies(evidence.runs()).set_index("runtime").loc["onnxruntime"]
    assert (clock["low"], clock["high"], clock["against"]) == (2.9, 4.1, "base, onnxruntime")
    assert evidence.first_to_try(evidence.bought(evidence.runs()), "a smaller file").empty
    assert len(evidence.first_to_try(evidence.bought(evidence.runs()), "a smaller file", points=2)) == 1


def test_a_model_without_a_base_was_timed_against_itself(write):
    write(
        "01_a", [recorded_model("net", 0.9, latency=[clocked(1.0, runtime="eager", interval=[1.0, 1.0]), clocked(2.5)])]
    )
    clock = evidence.latencies(evidence.runs())
    assert clock[["against", "technique"]].values.tolist() == [["net, eager", "another runtime"]]


@pytest.mark.parametrize(
    ("clocks", "speed_of", "clock"),
    [
        ([("onnxruntime", 64, 9), ("eager", 1, 2)], 2, "eager, batch 1"),
        ([("onnxruntime", 64, 9), ("eager", 64, 2)], 9, "onnxruntime, batch 64"),
        ([("a", 1, 2), ("onnxruntime", 1, 3), ("z", 1, 4)], 3, "onnxruntime, batch 1"),
    ],
)
def test_the_clock_is_batch_1_and_then_the_runtime(clocks, speed_of, clock, write):
    latency = [clocked(ratio, runtime=runtime, batch=batch) for runtime, batch, ratio in clocks]
    write("04_a", [recorded_model("base", 0.9), recorded_model("cut", 0.8, base="base", latency=latency)])
    row = evidence.bought(evidence.runs()).iloc[0]
    assert (row["speed ×"], row["clock"]) == (speed_of, clock)


def test_a_clock_that_was_not_asked_is_unknown(write):
    write("04_a", [recorded_model("base", 0.9), recorded_model("cut", 0.8, base="base")])
    row = evidence.bought(evidence.runs()).iloc[0]
    assert math.isnan(row["speed ×"]) and row["clock"] == "" and row["over"] == "images"
    assert pytest.approx(row["points lost"]) == 100 * 0.1 and row["low"] < 10 < row["high"]


def test_a_model_whose_base_was_not_recorded_bought_nothing(write):
    write("04_a", [recorded_model("cut", 0.8, base="elsewhere")])
    assert evidence.bought(evidence.runs()).empty


def test_the_largest_factor_that_loses_little(write):
    table = pd.DataFrame(
        {"task": ["a", "a", "a", "b"], "model": list("wxyz"), "file ÷": [9, 5, 2, 1.0], "points lost": [3, 0.9, 0, 0]}
    )
    assert evidence.first_to_try(table, "a smaller file")["model"].tolist() == ["x"]
    with pytest.raises(ValueError, match="goal='fame'"):
        evidence.first_to_try(table, "fame")
    for points in (math.nan, math.inf, "1"):
        with pytest.raises(ValueError, match="points="):
            evidence.first_to_try(table, "a smaller file", points=points)
    close = table.assign(**{"points lost": [1.01, 1.0, 0, 0]})
    assert evidence.first_to_try(close, "a smaller file")["model"].tolist() == ["x"], "by default at most one point"
    assert evidence.first_to_try(table, "a smaller file", points=0.9)["model"].tolist() == ["x"]
    assert evidence.first_to_try(table, "a smaller file", points=0.89)["model"].tolist() == ["y"]


@pytest.mark.parametrize(("factor", "buys"), [(1.0, False), (1.01, False), (1.05, False), (1.06, True)])
def test_a_factor_of_a_twentieth_buys_nothing(factor, buys):
    table = pd.DataFrame({"task": ["a"], "model": ["x"], "speed ×": [factor], "points lost": [0.0]})
    assert len(evidence.first_to_try(table, "a shorter wait")) == buys


def test_dense_networks_that_dominate(write):
    write(
        "02_a",
        [
            recorded_model("base", 0.9, size=900),
            recorded_model("small", 0.8, base="base", size=90, techniques=["a thin dense net"]),
            recorded_model("cut", 0.7, base="base", method="8-bit", size=95, techniques=["fewer bits"]),
        ],
    )
    frame = evidence.board(evidence.runs(), "mnist")
    assert evidence.dominated_by(frame) == {"base": [], "small": [], "cut": ["small"]}
    assert evidence.dominated_by(frame, "macs") == {"base": [], "small": ["base"], "cut": ["base", "small"]}
    with pytest.raises(ValueError, match="cost='weight' is unknown"):
        evidence.dominated_by(frame, "weight")


def test_a_damaged_result_is_one_sentence_or_another_board(write):
    cut = recorded_model("cut", 0.8, base="base", latency=[clocked(2.0)])
    path = write("04_a", [recorded_model("base", 0.9), cut])
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(40):
        content = bytearray(whole)
        content[random.integers(len(whole))] ^= random.integers(1, 256)
        path.write_bytes(content)
        try:
            runs = evidence.runs()
        except ValueError as error:
            assert "04_a.seed0.json is damaged (" in str(error)
            continue
        assert all(len(evidence.board(runs, task)) for task in set(runs["task"]))
        evidence.bought(runs), evidence.latencies(runs), evidence.claims_over_seeds()
