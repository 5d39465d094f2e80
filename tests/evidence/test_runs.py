"""Which results count, and what shares a row."""

import json
import math

import pytest

from helpers import evidence
from helpers.core import paths
from tests.evidence.evidence_examples import recorded_model, without_file


def test_full_goes_before_quick_and_build_before_data(write):
    write("02_a", [recorded_model("net", 0.8)], profile="quick")
    write("02_a", [recorded_model("net", 0.9), recorded_model("other", 0.7)])
    write("03_b", [recorded_model("third", 0.5)], profile="quick")
    assert dict(zip(evidence.runs()["model"], evidence.runs()["accuracy"], strict=True)) == {
        "net": 0.9,
        "other": 0.7,
        "third": 0.5,
    }
    write("02_a", [recorded_model("net", 0.95)], source="build")
    runs = evidence.runs()
    assert dict(zip(runs["model"], runs["source"], strict=True)) == {"net": "build", "third": "data"}
    assert set(evidence.runs(build=False)["source"]) == {"data"}


def test_more_seeds_go_before_the_own_machine(write):
    for seed in (0, 1, 2):
        write("02_a", [recorded_model("net", 0.9)], seed=seed)
    write("02_a", [recorded_model("net", 0.5)], seed=2, source="build")
    assert evidence.runs()["accuracy"].tolist() == [0.9] * 3
    for seed in (0, 1):
        write("02_a", [recorded_model("net", 0.5)], seed=seed, source="build")
    assert evidence.runs()["accuracy"].tolist() == [0.5] * 3


def test_only_quick_results_are_enough(write):
    write("02_a", [recorded_model("net", 0.8)], profile="quick")
    write("03_none", [], profile="quick")
    assert evidence.board(evidence.runs(), "mnist")["profile"].tolist() == ["quick"]


def test_the_board_does_not_stand_on_itself(write):
    write("19_leaderboard", [recorded_model("net", 0.8)])
    assert evidence.runs().empty


def test_seeds_that_chose_another_method_or_size_share_no_mean(write):
    for seed, (method, size) in enumerate(
        [("by Taylor", 1_000), ("by Taylor", 1_050), ("by magnitude", 1_000), ("by Taylor", 3_000)]
    ):
        write("04_a", [recorded_model("cut", 0.9 + seed / 100, method=method, size=size)], seed=seed)
    frame = evidence.board(evidence.runs(), "mnist").set_index("model")
    assert sorted(frame.index) == ["cut [seed 2]", "cut [seed 3]", "cut [seeds 0, 1]"]
    assert set(frame["recipe"]) == {"cut"} and set(frame["of_runs"]) == {4}
    assert tuple(frame.loc["cut [seeds 0, 1]", ["bytes", "bytes_low", "bytes_high"]]) == (1_025, 1_000, 1_050)


@pytest.mark.parametrize(("sizes", "rows"), [
    ((1_000, 1_100), 1), ((1_000, 1_101), 2), ((1_000, 1_200), 2), ((1_000, 1_090, 1_180), 2), ((None, None), 1),
])  # fmt: skip
def test_files_further_apart_than_a_tenth_are_not_one_networks(sizes, rows, write):
    for seed, size in enumerate(sizes):
        write("04_a", [recorded_model("cut", 0.9, size=size) if size else without_file("cut", 0.9)], seed=seed)
    assert len(evidence.board(evidence.runs(), "mnist")) == rows


def test_the_images_are_those_of_the_evaluation_with_the_models_name(write):
    tests = [{"name": name, "accuracy": 0.9, "correct": 9, "count": count} for name, count in [("net", 10), ("x", 20)]]
    write(
        "02_a",
        [
            recorded_model("net", 0.9),
            recorded_model("x", 0.9),
            recorded_model("third", 0.9),
            recorded_model("none", 0.5),
        ],
        tests=tests,
    )
    images = evidence.runs().set_index("model")["images"]
    assert images.drop(["third", "none"]).to_dict() == {"net": 10, "x": 20}
    assert math.isnan(images["third"]), "two evaluations with its accuracy, none with its name"
    assert math.isnan(images["none"])


def test_reviews_of_one_film_are_not_independent(write):
    write("06_a", [recorded_model("net", 0.8) | {"task": "imdb"}], images=1_500)
    write("02_a", [recorded_model("other", 0.8)], images=1_000)
    found = evidence.runs().set_index("model")["images"]
    assert found["net"] == found["other"] == 1_000


def test_copies_are_known_by_their_largest_file(write):
    for notebook, sizes in {"02_a": (1_000, 1_050), "03_b": (1_020, 1_050)}.items():
        for seed, size in enumerate(sizes):
            write(
                notebook, [recorded_model("net", 0.9, size=size)], seed=seed, images=500 if notebook == "02_a" else 900
            )
    found = evidence.runs()
    assert set(found["model"]) == {"net"} and set(found["notebook"]) == {"03_b"}, "the one with more images"
    assert found.index.tolist() == [0, 1]


def test_of_copies_the_notebook_with_the_most_images_in_any_run_counts(write):
    for notebook, images in {"02_a": (900, 500), "03_b": (800, 800)}.items():
        for seed, count in enumerate(images):
            write(notebook, [recorded_model("net", 0.9)], seed=seed, images=count)
    assert set(evidence.runs()["notebook"]) == {"02_a"}


def test_what_was_logged_of_the_films_counts(write):
    logged = [{"name": "net", "accuracy": 0.8, "correct": 800, "count": 1_000, "independent": 640.0}]
    write("06_a", [recorded_model("net", 0.8) | {"task": "imdb"}], tests=logged)
    assert evidence.runs()["images"].tolist() == [640]


def test_copies_are_one_and_namesakes_two(write):
    write("02_a", [recorded_model("net", 0.9)], images=500)
    write("03_b", [recorded_model("net", 0.91)], images=1_000)
    assert evidence.runs()["images"].tolist() == [1_000]
    write("04_c", [recorded_model("net", 0.91, weights=500)])
    assert sorted(evidence.runs()["model"]) == ["net (03)", "net (04)"]


def test_one_network_in_three_runs_is_one(write):
    for seed in range(3):
        write("02_a", [recorded_model("net", 0.9), recorded_model("trained", 0.9 + seed / 100)], seed=seed)
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
    dense = evidence.Model.of(recorded_model("base", 0.9)) if base else None
    found = evidence.technique(evidence.Model.of(recorded_model("small", 0.9, techniques=techniques)), dense)
    assert found == expected


def test_techniques_of_older_files_are_looked_up(write):
    row = {"notebook": "02_a", "model": "small", "method": "prayer", "techniques": ["weights pruned"]}
    paths.write_atomically(paths.RESULTS / "techniques.json", json.dumps({"before": [row]}).encode())
    small = evidence.Model.of(recorded_model("small", 0.9, method="prayer"))
    assert evidence.technique(small, evidence.Model.of(recorded_model("base", 0.9)), "02_a") == "weights pruned"
    assert evidence.technique(small, evidence.Model.of(recorded_model("base", 0.9)), "03_b") == "other"
