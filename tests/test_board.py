"""The board against brute force, closed forms, and results whose means would lie."""

import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from helpers import board, paths, results

few = st.integers(0, 4).map(float)


# ---------------------------------------------------------------- the front


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(few, few, few), min_size=1, max_size=8))
def test_the_front_is_what_nobody_dominates(points):
    expected = [
        not any(
            a >= p and s <= q and m <= r and (a, s, m) != (p, q, r) for a, s, m in points
        )
        for p, q, r in points
    ]  # fmt: skip
    assert board.front(*zip(*points, strict=True)) == expected


def test_an_unknown_cost_is_not_on_the_front_and_dominates_nobody():
    assert board.front([0.9, 0.8], [math.nan, 5.0]) == [False, True]


def test_the_front_needs_costs_of_the_same_length():
    with pytest.raises(ValueError, match="costs is empty"):
        board.front([1.0])
    with pytest.raises(ValueError, match="allowed: 2, one for each"):
        board.front([1.0, 2.0], [1.0])


def test_means_are_the_leaderboards_where_the_rows_are_the_same():
    runs, frame = board.runs(build=False), results.leaderboard(build=False)
    theirs = {(r.task, r.name, r.profile, r.n, r.notebook): r.accuracy for r in frame.itertuples(index=False)}
    same = [
        (row.accuracy, theirs[key])
        for task in set(runs["task"])
        for row in board.board(runs, task).itertuples()
        if (key := (task, row.model, row.profile, row.n, row.notebook)) in theirs
    ]
    assert len(same) > 5
    assert all(mine == pytest.approx(other) for mine, other in same)


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize("correct, count", [(0, 10), (7, 10), (9_941, 10_000), (100, 100)])
def test_wilsons_interval_is_where_the_score_test_begins_to_reject(correct, count):
    low, high, over = board.image_interval(correct / count, count)
    for end in {low, high} - {0.0, 1.0}:
        z = (correct / count - end) / math.sqrt(end * (1 - end) / count)
        assert abs(z) == pytest.approx(stats.norm.ppf(0.975), rel=1e-6)
    assert over == "images" and low <= correct / count <= high


def test_the_interval_over_seeds_is_students():
    values = [0.91, 0.93, 0.92]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert board.seed_interval(values)[:2] == pytest.approx(tuple(expected))


def seeds(accuracies, *, first=0, images=1_000.0):
    return pd.DataFrame({"seed": range(first, first + len(accuracies)), "accuracy": accuracies, "images": images})


def test_a_lead_is_paired_by_seed_where_seeds_vary():
    a, b = [0.91, 0.93, 0.95], [0.90, 0.91, 0.94]
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = board.lead(seeds(a), seeds(b))
    assert found[:2] == pytest.approx(tuple(expected)) and found.over == "seeds"


def test_one_network_measured_three_times_is_no_proof():
    """The same difference in each run has no spread: a paired t interval of it would have the length 0."""
    found = board.lead(seeds([0.9955] * 3), seeds([0.9954] * 3))
    assert found.over == "images" and found.low < 0 < found.high


def test_one_network_against_another_by_newcombe_with_his_own_example():
    """Newcombe 1998, table II, example (a): 56/70 against 48/80, method 10: 0.0524 to 0.3339."""
    a, b = seeds([56 / 70], images=70.0), seeds([48 / 80], first=5, images=80.0)
    assert board.lead(a, b)[:2] == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_nothing_is_known_without_the_number_of_images():
    found = board.lead(seeds([0.99], images=math.nan), seeds([0.5], images=math.nan))
    assert found.low < 0 < found.high


# ---------------------------------------------------------------- ranks


def test_ranks_are_those_of_results_where_all_seeds_are_there():
    random = np.random.default_rng(0)
    for _ in range(30):
        spread = random.uniform(0.001, 0.02)
        table = pd.DataFrame(0.9 + 0.01 * np.arange(5) + spread * random.standard_normal((3, 5)), columns=list("ABCDE"))
        expected = results.ranking(table)["rank"]
        names = list(expected.index)
        assert board.rank(names, lambda a, b, t=table: results.paired_interval(t[a], t[b])) == expected.tolist()


def test_a_tie_through_a_third_is_a_tie():
    leads = {("A", "B"): -0.1, ("A", "C"): 0.1, ("B", "C"): -0.1, ("A", "D"): 0.1, ("B", "D"): 0.1, ("C", "D"): 0.1}
    assert board.rank(list("ABCD"), lambda a, b: (leads[a, b], 1.0)) == [1, 1, 1, 4]


# ---------------------------------------------------------------- reading


def model(name, accuracy, *, method="dense", base=None, size=1_000, **more):
    return {"name": name, "task": "mnist", "method": method, "split": "test", "accuracy": accuracy, "base": base,
            "weights": 400, "nonzero": 400, "macs": 900, "latency": [], "file_bytes": size} | more  # fmt: skip


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a result into a folder of published ones, or of this machine's."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "data")
    (tmp_path / "data").mkdir()

    def write(notebook, models, *, seed=0, profile="full", source="data", images=1_000, claims=()):
        folder = {"data": tmp_path / "data", "build": paths.build_dir() / "results"}[source] / profile
        folder.mkdir(parents=True, exist_ok=True)
        tests = [{"name": "net", "accuracy": m["accuracy"], "correct": 0, "count": images} for m in models]
        result = {"notebook": notebook, "profile": profile, "seed": seed, "models": models, "claims": list(claims)}
        (folder / f"{notebook}.seed{seed}.json").write_text(json.dumps(result | {"test_evaluations": tests}))

    return write


def test_without_results_there_is_an_empty_board(write):
    runs = board.runs()
    assert runs.empty and board.bought(runs).empty and board.latencies(runs).empty and board.claims_over_seeds().empty


def test_full_goes_before_quick_and_build_before_data(write):
    write("02_a", [model("net", 0.8)], profile="quick")
    write("02_a", [model("net", 0.9), model("other", 0.7)])
    write("03_b", [model("third", 0.5)], profile="quick")
    assert dict(zip(board.runs()["model"], board.runs()["accuracy"], strict=True)) == {
        "net": 0.9,
        "other": 0.7,
        "third": 0.5,
    }
    write("02_a", [model("net", 0.95)], source="build")
    runs = board.runs()
    assert dict(zip(runs["model"], runs["source"], strict=True)) == {"net": "build", "third": "data"}
    assert set(board.runs(build=False)["source"]) == {"data"}


def test_more_seeds_go_before_the_own_machine(write):
    for seed in (0, 1, 2):
        write("02_a", [model("net", 0.9)], seed=seed)
    write("02_a", [model("net", 0.5)], seed=2, source="build")
    assert board.runs()["accuracy"].tolist() == [0.9] * 3
    for seed in (0, 1):
        write("02_a", [model("net", 0.5)], seed=seed, source="build")
    assert board.runs()["accuracy"].tolist() == [0.5] * 3


def test_only_quick_results_are_enough(write):
    write("02_a", [model("net", 0.8)], profile="quick")
    write("03_none", [], profile="quick")
    assert board.board(board.runs(), "mnist")["profile"].tolist() == ["quick"]


def test_the_board_does_not_stand_on_itself(write):
    write("14_leaderboard", [model("net", 0.8)])
    assert board.runs().empty


def test_seeds_that_chose_another_method_or_size_share_no_mean(write):
    for seed, (method, size) in enumerate(
        [("by Taylor", 1_000), ("by Taylor", 1_050), ("by magnitude", 1_000), ("by Taylor", 3_000)]
    ):
        write("04_a", [model("cut", 0.9 + seed / 100, method=method, size=size)], seed=seed)
    frame = board.board(board.runs(), "mnist").set_index("model")
    assert sorted(frame.index) == ["cut [seed 2]", "cut [seed 3]", "cut [seeds 0, 1]"]
    assert set(frame["recipe"]) == {"cut"} and set(frame["of_runs"]) == {4}
    assert tuple(frame.loc["cut [seeds 0, 1]", ["bytes", "bytes_low", "bytes_high"]]) == (1_025, 1_000, 1_050)


def test_copies_are_one_and_namesakes_two(write):
    write("02_a", [model("net", 0.9)], images=500)
    write("03_b", [model("net", 0.91)], images=1_000)
    assert board.runs()["images"].tolist() == [1_000]
    write("04_c", [model("net", 0.91, weights=5)])
    assert sorted(board.runs()["model"]) == ["net (03)", "net (04)"]


def test_one_network_in_three_runs_is_one(write):
    for seed in range(3):
        write("02_a", [model("net", 0.9), model("trained", 0.9 + seed / 100)], seed=seed)
    frame = board.board(board.runs(), "mnist").set_index("model")
    assert frame["networks"].to_dict() == {"net": 1, "trained": 3}
    assert frame["over"].to_dict() == {"net": "images", "trained": "seeds"}


@pytest.mark.parametrize(
    "changed, expected",
    [
        ({"method": "gradual, taught", "nonzero": 40}, "weights pruned + a teacher"),
        ({"method": "filters by Taylor", "macs": 400}, "filters removed"),
        ({"method": "2-bit weights, learned steps", "nonzero": 250}, "fewer bits"),
        ({"method": "dense", "macs": 100}, "a thin dense net"),
        ({"method": "fewer words (by norm), low-rank embedding", "macs": 10}, "a smaller embedding"),
        ({"method": "prayer"}, "other"),
    ],
)
def test_techniques(changed, expected):
    assert board.technique(model("small", 0.9) | changed, model("base", 0.9)) == expected


# ---------------------------------------------------------------- what was bought


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
            size=2_000,
            macs=300,
            latency=[speed(1.5, runtime="eager"), speed(3 + seed)],
        )
        write("04_a", [base, cut], seed=seed)
    row = board.bought(board.runs()).iloc[0]
    assert (row["file ÷"], row["MACs ÷"], row["speed ×"], row["clock"]) == (4, 3, 3.5, "onnxruntime, batch 1")
    assert row["points lost"] == pytest.approx(1.5) and row["technique"] == "filters removed"
    clock = board.latencies(board.runs()).set_index("runtime").loc["onnxruntime"]
    assert (clock["low"], clock["high"], clock["against"]) == (2.9, 4.1, "base, onnxruntime")
    assert board.first_to_try(board.bought(board.runs()), "a smaller file").empty
    assert len(board.first_to_try(board.bought(board.runs()), "a smaller file", points=2)) == 1


def test_a_model_without_a_base_was_timed_against_itself(write):
    write("01_a", [model("net", 0.9, latency=[speed(1.0, runtime="eager", interval=[1.0, 1.0]), speed(2.5)])])
    clock = board.latencies(board.runs())
    assert clock[["against", "technique"]].values.tolist() == [["net, eager", "another runtime"]]


def test_the_largest_factor_that_loses_little(write):
    table = pd.DataFrame(
        {"task": ["a", "a", "a", "b"], "model": list("wxyz"), "file ÷": [9, 5, 2, 1.0], "points lost": [3, 0.9, 0, 0]}
    )
    assert board.first_to_try(table, "a smaller file")["model"].tolist() == ["x"]
    with pytest.raises(ValueError, match="goal='fame'"):
        board.first_to_try(table, "fame")


def test_dense_networks_that_dominate(write):
    write(
        "02_a",
        [
            model("base", 0.9, size=900),
            model("small", 0.8, base="base", size=90),
            model("cut", 0.7, base="base", method="8-bit", size=95),
        ],
    )
    assert board.dominated_by(board.board(board.runs(), "mnist")) == {"base": [], "small": [], "cut": ["small"]}


def test_claims_below_three_seeds_are_undecided(write):
    claim = {"id": "c", "text": "t", "value": 0.5, "at_most": 1, "over_seeds": True}
    for seed in range(3):
        broken = claim | {"id": "d", "value": 2.0}
        write("02_a", [], seed=seed, claims=[claim, broken] if seed else [claim, broken, claim | {"id": "e"}])
    assert board.claims_over_seeds()["outcome"].tolist() == ["holds", "does not hold", "undecided"]


# ---------------------------------------------------------------- labels


def test_labels_hide_neither_points_nor_each_other():
    random = np.random.default_rng(0)
    fig, ax = plt.subplots(figsize=(9, 5), layout="constrained")
    x, y = random.lognormal(0, 1, 20), random.normal(size=20)
    ax.plot(x, y, "o")
    ax.set_xscale("log")
    homeless = board.label_points(ax, x, y, [f"a model called {i}" for i in range(20)])
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    assert len(boxes) + len(homeless) == 20 and len(boxes) >= 18
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    spots = ax.transData.transform(np.column_stack([x, y]))
    assert not any(box.contains(*spot) for box in boxes for spot in spots)
    plt.close(fig)


def test_labels_hide_no_line():
    fig, ax = plt.subplots()
    x, y = [1, 2, 3, 4], [1, 3, 2, 4]
    ax.plot(x, y)
    assert board.label_points(ax, x, y, ["one", "two", "three", "four"]) == []
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    share = np.linspace(0, 1, 500)[:, None]
    corners = np.column_stack([x, y])
    along = np.concatenate([a + share * (b - a) for a, b in zip(corners[:-1], corners[1:], strict=True)])
    spots = ax.transData.transform(along)
    assert len(boxes) == 4 and not any(box.contains(*spot) for box in boxes for spot in spots)
    plt.close(fig)
