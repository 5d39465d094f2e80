"""The board against brute force, closed forms, and results whose means would lie."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from helpers import evidence, statistics
from helpers.core import paths

few = st.integers(0, 4).map(float)

PUBLISHED = paths.RESULTS  # the tests of this folder have others


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


def test_means_are_the_leaderboards_where_the_rows_are_the_same(monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", PUBLISHED)
    runs, frame = evidence.runs(build=False), evidence.leaderboard(build=False)
    theirs = {(r.task, r.name, r.profile, r.n, r.notebook): r.accuracy for r in frame.itertuples(index=False)}
    same = [
        (row.accuracy, theirs[key])
        for task in set(runs["task"])
        for row in evidence.board(runs, task).itertuples()
        if (key := (task, row.model, row.profile, row.n, row.notebook)) in theirs
    ]
    assert len(same) > 5
    assert all(mine == pytest.approx(other) for mine, other in same)


@pytest.mark.parametrize("correct, count", [(0, 10), (7, 10), (9_941, 10_000), (100, 100)])
def test_wilsons_interval_is_where_the_score_test_begins_to_reject(correct, count):
    low, high, over = statistics.image_interval(correct / count, count)
    for end in {low, high} - {0.0, 1.0}:
        z = (correct / count - end) / math.sqrt(end * (1 - end) / count)
        assert abs(z) == pytest.approx(stats.norm.ppf(0.975), rel=1e-6)
    assert over == "images" and low <= correct / count <= high


def test_the_interval_over_seeds_is_students():
    values = [0.91, 0.93, 0.92]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert statistics.seed_interval(values)[:2] == pytest.approx(tuple(expected))


@pytest.mark.parametrize(("accuracy", "images", "said"), [
    (math.nan, 10, "accuracy=nan"), (1.01, 10, "accuracy=1.01"), (-0.01, 10, "accuracy=-0.01"),
    (0.5, 0, "images=0"), (0.5, -1, "images=-1"), (0.5, math.nan, "images=nan"), (0.5, 1.5, "images=1.5"),
])  # fmt: skip
def test_no_interval_of_nonsense(accuracy, images, said):
    with pytest.raises(ValueError, match=said):
        statistics.image_interval(accuracy, images)
    assert statistics.image_interval(1.0, 1).high == 1.0 and statistics.image_interval(0.0, 1).low == 0.0


@pytest.mark.parametrize(("accuracies", "said"), [
    ([0.5], "accuracies holds 1; allowed: at least two"), ([], "accuracies holds 0"),
    ([0.5, math.nan], "accuracies=nan"), ([0.5, 50], "accuracies=50"), ([-0.1, 0.5], "accuracies=-0.1"),
])  # fmt: skip
def test_no_interval_over_seeds_of_nonsense(accuracies, said):
    with pytest.raises(ValueError, match=said):
        statistics.seed_interval(accuracies)
    assert statistics.seed_interval([0.0, 1.0]).over == "seeds"


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


def test_ranks_are_those_of_results_where_all_seeds_are_there():
    random = np.random.default_rng(0)
    for _ in range(30):
        spread = random.uniform(0.001, 0.02)
        table = pd.DataFrame(0.9 + 0.01 * np.arange(5) + spread * random.standard_normal((3, 5)), columns=list("ABCDE"))
        expected = statistics.ranking(table)["rank"]
        names = list(expected.index)
        assert statistics.rank(names, lambda a, b, t=table: statistics.paired_interval(t[a], t[b])) == expected.tolist()


def test_a_tie_through_a_third_is_a_tie():
    leads = {("A", "B"): -0.1, ("A", "C"): 0.1, ("B", "C"): -0.1, ("A", "D"): 0.1, ("B", "D"): 0.1, ("C", "D"): 0.1}
    assert statistics.rank(list("ABCD"), lambda a, b: (leads[a, b], 1.0)) == [1, 1, 1, 4]


def test_ranks_of_nonsense_are_refused():
    with pytest.raises(ValueError, match="names=.*; allowed: each once"):
        statistics.rank(["A", "B", "A"], lambda a, b: (0.1, 1.0))
    with pytest.raises(ValueError, match=r"lead_of\('A', 'B'\)\[0\]=nan"):
        statistics.rank(["A", "B"], lambda a, b: (math.nan, 1.0))
    assert statistics.rank([], lambda a, b: (0.0, 1.0)) == []
    assert statistics.rank(["A", "B"], lambda a, b: (0.0, 1.0)) == [1, 1], "a lead that reaches 0 is none"


def test_a_board_has_ranks_and_says_how_many_beat_a_model(write):
    leads = {"far": 0.9, "high": 0.92, "low": 0.6, "lowest": 0.59}
    write("02_a", [model(name, accuracy) for name, accuracy in leads.items()])
    runs = evidence.runs()
    ranked = evidence.ranked(evidence.board(runs, "mnist"), runs).set_index("model")
    assert ranked["rank"].to_dict() == {"high": 1, "far": 1, "low": 3, "lowest": 3}
    assert ranked["beaten_by"].to_dict() == {"high": 0, "far": 0, "low": 2, "lowest": 2}
    with pytest.raises(ValueError, match=r"frame\['model'\]='low' is unknown"):
        evidence.ranked(evidence.board(runs, "mnist"), runs[runs["model"] != "low"])


MACHINE = {"cpu": "a", "cores": 2}
PROVENANCE = {"seconds": 1, "started": "now", "torch": "2", "helpers_version": "0", "source_sha256": None}


def model(name, accuracy, *, method="dense", base=None, size=1_000, **more):
    return {"name": name, "task": "mnist", "method": method, "split": "test", "accuracy": accuracy, "base": base,
            "weights": 400, "nonzero": 400, "macs": 900, "latency": [], "file_bytes": size} | more  # fmt: skip


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a result into a folder of published ones, or of this machine's."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "published")

    def write(notebook, models, *, seed=0, profile="full", source="data", images=1_000, claims=(), tests=()):
        folder = {"data": tmp_path / "published", "build": paths.build_dir() / "results"}[source] / profile
        folder.mkdir(parents=True, exist_ok=True)
        tests = tests or [{"name": "net", "accuracy": m["accuracy"], "correct": 0, "count": images} for m in models]
        result = {"notebook": notebook, "profile": profile, "seed": seed, "models": models, "claims": list(claims)}
        result |= {"provenance": PROVENANCE | {"machine": MACHINE}, "measurements": {}, "timings": {}}
        path = folder / f"{notebook}.seed{seed}.json"
        path.write_text(json.dumps(result | {"test_evaluations": list(tests)}))
        return path

    return write


def test_without_results_there_is_an_empty_board(write):
    runs = evidence.runs()
    assert (
        runs.empty
        and evidence.bought(runs).empty
        and evidence.latencies(runs).empty
        and evidence.claims_over_seeds().empty
    )


def test_full_goes_before_quick_and_build_before_data(write):
    write("02_a", [model("net", 0.8)], profile="quick")
    write("02_a", [model("net", 0.9), model("other", 0.7)])
    write("03_b", [model("third", 0.5)], profile="quick")
    assert dict(zip(evidence.runs()["model"], evidence.runs()["accuracy"], strict=True)) == {
        "net": 0.9,
        "other": 0.7,
        "third": 0.5,
    }
    write("02_a", [model("net", 0.95)], source="build")
    runs = evidence.runs()
    assert dict(zip(runs["model"], runs["source"], strict=True)) == {"net": "build", "third": "data"}
    assert set(evidence.runs(build=False)["source"]) == {"data"}


def test_more_seeds_go_before_the_own_machine(write):
    for seed in (0, 1, 2):
        write("02_a", [model("net", 0.9)], seed=seed)
    write("02_a", [model("net", 0.5)], seed=2, source="build")
    assert evidence.runs()["accuracy"].tolist() == [0.9] * 3
    for seed in (0, 1):
        write("02_a", [model("net", 0.5)], seed=seed, source="build")
    assert evidence.runs()["accuracy"].tolist() == [0.5] * 3


def test_only_quick_results_are_enough(write):
    write("02_a", [model("net", 0.8)], profile="quick")
    write("03_none", [], profile="quick")
    assert evidence.board(evidence.runs(), "mnist")["profile"].tolist() == ["quick"]


def test_the_board_does_not_stand_on_itself(write):
    write("14_leaderboard", [model("net", 0.8)])
    assert evidence.runs().empty


def test_seeds_that_chose_another_method_or_size_share_no_mean(write):
    for seed, (method, size) in enumerate(
        [("by Taylor", 1_000), ("by Taylor", 1_050), ("by magnitude", 1_000), ("by Taylor", 3_000)]
    ):
        write("04_a", [model("cut", 0.9 + seed / 100, method=method, size=size)], seed=seed)
    frame = evidence.board(evidence.runs(), "mnist").set_index("model")
    assert sorted(frame.index) == ["cut [seed 2]", "cut [seed 3]", "cut [seeds 0, 1]"]
    assert set(frame["recipe"]) == {"cut"} and set(frame["of_runs"]) == {4}
    assert tuple(frame.loc["cut [seeds 0, 1]", ["bytes", "bytes_low", "bytes_high"]]) == (1_025, 1_000, 1_050)


@pytest.mark.parametrize(("sizes", "rows"), [
    ((1_000, 1_100), 1), ((1_000, 1_101), 2), ((1_000, 1_200), 2), ((1_000, 1_090, 1_180), 2), ((None, None), 1),
])  # fmt: skip
def test_files_further_apart_than_a_tenth_are_not_one_networks(sizes, rows, write):
    for seed, size in enumerate(sizes):
        write("04_a", [model("cut", 0.9, size=size) if size else without_file("cut", 0.9)], seed=seed)
    assert len(evidence.board(evidence.runs(), "mnist")) == rows


def without_file(name, accuracy, **more):
    return {key: value for key, value in model(name, accuracy, **more).items() if key != "file_bytes"}


def test_a_board_shows_ratios_of_the_base_in_each_seed(write):
    for seed, size in enumerate([8_000, 4_000]):
        base = model("base", 0.9, weights=size // 10, nonzero=size // 10, size=size)
        cut = model("cut", 0.8, base="base", method="8-bit", weights=400, nonzero=40, size=2_000)
        write("04_a", [base, cut, without_file("bare", 0.7)], seed=seed)
    rows = evidence.board(evidence.runs(), "mnist").set_index("model")
    assert rows.loc["cut", ["weights_ratio", "file_ratio"]].tolist() == [15.0, 3.0]
    assert rows["front_bytes"].to_dict() == {"base [seed 0]": False, "base [seed 1]": True, "cut": True, "bare": False}
    assert math.isnan(rows.loc["bare", "bytes"]) and rows.loc["cut", "macs"] == 900
    assert list(rows["accuracy"]) == sorted(rows["accuracy"], reverse=True)


def test_the_images_are_those_of_the_evaluation_with_the_models_name(write):
    tests = [{"name": name, "accuracy": 0.9, "correct": 9, "count": count} for name, count in [("net", 10), ("x", 20)]]
    write("02_a", [model("net", 0.9), model("x", 0.9), model("third", 0.9), model("none", 0.5)], tests=tests)
    images = evidence.runs().set_index("model")["images"]
    assert images.drop(["third", "none"]).to_dict() == {"net": 10, "x": 20}
    assert math.isnan(images["third"]), "two evaluations with its accuracy, none with its name"
    assert math.isnan(images["none"])


def test_reviews_of_one_film_are_not_independent(write):
    write("06_a", [model("net", 0.8) | {"task": "imdb"}], images=1_500)
    write("02_a", [model("other", 0.8)], images=1_000)
    found = evidence.runs().set_index("model")["images"]
    assert found["net"] == found["other"] == 1_000


def test_an_interval_of_accuracies_stays_between_0_and_1(write):
    for seed, accuracy in enumerate([0.99, 1.0]):
        write("02_a", [model("high", accuracy), model("low", 1 - accuracy)], seed=seed)
    frame = evidence.board(evidence.runs(), "mnist").set_index("model")
    assert frame.loc["high", "high"] == 1.0 and frame.loc["low", "low"] == 0.0
    expected = stats.ttest_1samp([0.99, 1.0], 0).confidence_interval(0.95)
    assert frame.loc["high", "low"] == pytest.approx(expected.low)
    assert frame.loc["low", "high"] == pytest.approx(1 - expected.low)


def test_without_images_one_network_has_no_interval(write):
    write("02_a", [model("net", 0.9)], tests=[{"name": "other", "accuracy": 0.1, "correct": 1, "count": 10}])
    row = evidence.board(evidence.runs(), "mnist").iloc[0]
    assert math.isnan(row["low"]) and math.isnan(row["high"]) and row["over"] == ""


def test_copies_are_one_and_namesakes_two(write):
    write("02_a", [model("net", 0.9)], images=500)
    write("03_b", [model("net", 0.91)], images=1_000)
    assert evidence.runs()["images"].tolist() == [1_000]
    write("04_c", [model("net", 0.91, weights=500)])
    assert sorted(evidence.runs()["model"]) == ["net (03)", "net (04)"]


def test_one_network_in_three_runs_is_one(write):
    for seed in range(3):
        write("02_a", [model("net", 0.9), model("trained", 0.9 + seed / 100)], seed=seed)
    frame = evidence.board(evidence.runs(), "mnist").set_index("model")
    assert frame["networks"].to_dict() == {"net": 1, "trained": 3}
    assert frame["over"].to_dict() == {"net": "images", "trained": "seeds"}


@pytest.mark.parametrize(
    ("techniques", "base", "expected"),
    [
        (["weights pruned", "a teacher"], True, "weights pruned + a teacher"),
        (["fewer bits"], True, "fewer bits"),
        ([], True, "other"),
        ([], False, "dense"),
    ],
)
def test_techniques_are_those_that_were_recorded(techniques, base, expected):
    found = evidence.technique(model("small", 0.9, techniques=techniques), model("base", 0.9) if base else {})
    assert found == expected


def test_techniques_of_older_files_are_looked_up(write):
    row = {"notebook": "02_a", "model": "small", "method": "prayer", "techniques": ["weights pruned"]}
    paths.write_atomically(paths.RESULTS / "techniques.json", json.dumps({"before": [row]}).encode())
    small = model("small", 0.9, method="prayer")
    assert evidence.technique(small, model("base", 0.9), "02_a") == "weights pruned"
    assert evidence.technique(small, model("base", 0.9), "03_b") == "other"


def speed(ratio, *, runtime="onnxruntime", batch=1, interval=None):
    interval = interval or [ratio - 0.1, ratio + 0.1]
    return {
        "variant": "v",
        "runtime": runtime,
        "batch": batch,
        "ratio": ratio,
        "interval": interval,
        "verdict": "faster",
    }


def test_what_a_technique_bought(write):
    for seed in range(2):
        base = model("base", 0.95, size=8_000)
        cut = model(
            "cut",
            0.94 - seed / 100,
            base="base",
            method="filters by Taylor",
            techniques=["filters removed"],
            size=2_000,
            macs=300,
            latency=[speed(1.5, runtime="eager"), speed(3 + seed)],
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
    write("01_a", [model("net", 0.9, latency=[speed(1.0, runtime="eager", interval=[1.0, 1.0]), speed(2.5)])])
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
    latency = [speed(ratio, runtime=runtime, batch=batch) for runtime, batch, ratio in clocks]
    write("04_a", [model("base", 0.9), model("cut", 0.8, base="base", latency=latency)])
    row = evidence.bought(evidence.runs()).iloc[0]
    assert (row["speed ×"], row["clock"]) == (speed_of, clock)


def test_a_clock_that_was_not_asked_is_unknown(write):
    write("04_a", [model("base", 0.9), model("cut", 0.8, base="base")])
    row = evidence.bought(evidence.runs()).iloc[0]
    assert math.isnan(row["speed ×"]) and row["clock"] == "" and row["over"] == "images"
    assert pytest.approx(row["points lost"]) == 100 * 0.1 and row["low"] < 10 < row["high"]


def test_a_model_whose_base_was_not_recorded_bought_nothing(write):
    write("04_a", [model("cut", 0.8, base="elsewhere")])
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
            model("base", 0.9, size=900),
            model("small", 0.8, base="base", size=90, techniques=["a thin dense net"]),
            model("cut", 0.7, base="base", method="8-bit", size=95, techniques=["fewer bits"]),
        ],
    )
    frame = evidence.board(evidence.runs(), "mnist")
    assert evidence.dominated_by(frame) == {"base": [], "small": [], "cut": ["small"]}
    assert evidence.dominated_by(frame, "macs") == {"base": [], "small": ["base"], "cut": ["base", "small"]}
    with pytest.raises(ValueError, match="cost='weight' is unknown"):
        evidence.dominated_by(frame, "weight")


def test_what_is_wrong_with_a_claim_stands_beside_it_and_the_origin_beside_a_row(write):
    claim = {"id": "c", "text": "t", "value": 0.5, "at_most": 1, "holds": True, "over_seeds": True}
    for seed in range(3):
        write("02_a", [model("net", 0.9)], seed=seed, claims=[claim, claim | {"id": "d"}])
    row = {"notebook": "02_a", "claim": "c", "wrong": "a mean of two quantities"}
    paths.write_atomically(paths.RESULTS / "errata.json", json.dumps({"errata": [row]}).encode())
    found = evidence.claims_over_seeds().set_index("claim")["erratum"]
    assert found.to_dict() == {"c": "a mean of two quantities", "d": ""}
    (origin,) = evidence.board(evidence.runs(), "mnist")["origin"]
    assert "thread" in origin and not origin.endswith("‡")


def test_claims_below_three_seeds_are_undecided(write):
    claim = {"id": "c", "text": "t", "value": 0.5, "at_most": 1, "holds": True, "over_seeds": True}
    broken = claim | {"id": "d", "value": 2.0, "holds": False}
    for seed in range(3):
        unmeasured = claim | {"id": "f", "value": 0.5 if seed else None, "holds": seed > 0}
        least = {"id": "g", "text": "t", "value": seed / 2, "at_least": 0.5, "holds": seed > 0, "over_seeds": True}
        own = claim | {"id": "h", "over_seeds": False}
        claims = [claim, broken, *[claim | {"id": "e"}] * (seed == 0), unmeasured, least, own]
        write("02_a", [], seed=seed, claims=claims)
        write("02_a", [], seed=seed, claims=claims, profile="quick")
    found = evidence.claims_over_seeds().set_index("claim")
    outcomes = {"c": "holds", "d": "does not hold", "e": "undecided", "f": "does not hold", "g": "holds"}
    assert found["outcome"].to_dict() == outcomes
    assert found["n"].to_dict() == {"c": 3, "d": 3, "e": 1, "f": 3, "g": 3}
    assert found["bound"].to_dict() == dict.fromkeys("cdef", "at most 1") | {"g": "at least 0.5"}
    assert found["mean"].drop("f").to_dict() == {"c": 0.5, "d": 2.0, "e": 0.5, "g": 0.5}
    assert math.isnan(found.loc["f", "mean"])


def test_a_damaged_result_is_one_sentence_or_another_board(write):
    cut = model("cut", 0.8, base="base", latency=[speed(2.0)])
    path = write("04_a", [model("base", 0.9), cut])
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
