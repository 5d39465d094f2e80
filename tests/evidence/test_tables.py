"""Tests of `helpers.evidence.tables`."""

import math
import statistics

import pytest
import torch

from helpers import evidence
from helpers.evidence import reading, tables
from tests.evidence.evidence_examples import NB, finished, timed


def test_a_truncated_file_is_one_sentence(rich):
    content = rich.read_bytes()
    for length in range(0, len(content) - 2, 97):
        rich.write_bytes(content[:length])
        with pytest.raises(ValueError, match=rf"{NB}.seed0.json is damaged \(.*\); delete it, and run the notebook"):
            evidence.leaderboard()


def test_a_damaged_file_is_left_out_where_that_is_wanted(rich):
    finished("01_measure_first", profile="quick", models=[{}])
    rich.write_bytes(b"{")
    damaged: list[str] = []
    assert evidence.leaderboard(damaged=damaged)["notebook"].tolist() == ["01_measure_first"]
    assert len(damaged) == 1 and f"{NB}.seed0.json is damaged" in damaged[0]
    with pytest.raises(ValueError, match="is damaged"):
        evidence.recorded()


@pytest.mark.parametrize(
    ("n", "networks", "said"), [(2, 2, "50.00 ± 1.00 (n = 2)"), (2, 1, "50.00 (one network)"), (1, 1, "50.00")]
)
def test_two_seeds_have_a_spread(n, networks, said):
    assert tables._accuracy({"accuracy": 0.5, "std": 0.01, "n": n, "networks": networks}) == said


def test_leaderboard_ratios_front_and_order():
    latency = [timed(9.0, runtime="eager"), timed(4.0, batch=64), timed(1.5)]
    dense = {"name": "dense", "accuracy": 0.99, "size": 400, "base": None, "nonzero": 100}
    sparse = {"name": "sparse", "accuracy": 0.98, "size": 40, "nonzero": 8, "latency": latency}
    poor = {"name": "poor", "accuracy": 0.97, "size": 50, "nonzero": 8, "latency": [timed(3.0, runtime="eager")]}
    unstored = {"name": "unstored", "accuracy": 1.0, "nonzero": 8}
    finished(profile="quick", models=[poor, sparse, dense, unstored])
    board = evidence.leaderboard().set_index("model")
    assert list(board.index) == ["unstored", "dense", "sparse", "poor"]
    assert board["front_bytes"].to_dict() == {"unstored": False, "dense": True, "sparse": True, "poor": False}
    assert board["weights_ratio"].to_dict() == {"unstored": 12.5, "dense": 1, "sparse": 12.5, "poor": 12.5}
    assert board.loc["sparse", "speed"] == 1.5
    assert board.loc["poor", "speed"] == 3.0, "what was timed first, where ONNX Runtime was not"
    assert math.isnan(board.loc["dense", "speed"])
    text = evidence.format_leaderboard(evidence.leaderboard()).to_string(index=False)
    assert "98.00" in text and "2,293,000" in text and "nan" not in text.lower()


def test_leaderboard_averages_seeds_and_says_how_many():
    accuracies = [0.990, 0.992, 0.994]
    for seed, accuracy in enumerate(accuracies):
        finished(seed=seed, models=[{"accuracy": accuracy}])
    row = evidence.leaderboard().iloc[0]
    assert (row["n"], row["accuracy"]) == (3, pytest.approx(0.992))
    assert row["std"] == pytest.approx(statistics.stdev(accuracies))
    assert "99.20 ± 0.20 (n = 3)" in evidence.format_leaderboard(evidence.leaderboard()).to_string()


def test_two_notebooks_that_measure_one_model_give_one_row():
    for notebook in (NB, "09_quantize_from_scratch"):
        finished(notebook, profile="quick", models=[{"size": 20}, {"name": notebook}])
    assert sorted(evidence.leaderboard()["model"]) == [NB, "09_quantize_from_scratch", "sparse"]
    finished("09_quantize_from_scratch", profile="quick", models=[{"size": 21}])
    assert sorted(evidence.leaderboard()["model"]) == [NB, "sparse (02)", "sparse (09)"], (
        "of another size: another model"
    )


def test_leaderboard_takes_more_seeds_then_build_and_never_mixes_the_two():
    for seed in (0, 1):
        finished(seed=seed, models=[{"accuracy": 0.5}])
    evidence.publish()
    reading.build_file(NB, "full", 0).unlink()
    finished(seed=1, models=[{"accuracy": 0.75}])
    (row,) = evidence.leaderboard().to_dict("records")
    assert (row["n"], row["accuracy"], row["source"]) == (2, 0.5, "data")
    finished(seed=0, models=[{"accuracy": 0.75}])
    (row,) = evidence.leaderboard().to_dict("records")
    assert (row["n"], row["accuracy"], row["source"]) == (2, 0.75, "build")
    (row,) = evidence.leaderboard(build=False).to_dict("records")
    assert (row["n"], row["accuracy"], row["source"]) == (2, 0.5, "data")


def test_smoke_is_not_on_the_leaderboard_and_an_empty_one_is_a_table():
    finished(profile="smoke", models=[{}])
    assert len(evidence.leaderboard()) == 0
    assert len(evidence.format_leaderboard(evidence.leaderboard())) == 0


def test_results_tables_reads_data_only_and_says_how_many_seeds():
    assert evidence.results_tables() == "No results are published yet."
    finished(profile="quick", models=[{"accuracy": 0.9, "size": 20}])
    assert evidence.results_tables() == "No results are published yet."
    evidence.promote_quick(NB)
    assert "| sparse | magnitude | 90.00 (n = 1) | 10× | 1× | 20 bytes | here, quick |" in evidence.results_tables()
    for seed in range(3):
        finished(seed=seed, models=[{"accuracy": 0.99 + seed / 1000, "size": 20}])
    evidence.publish()
    table = evidence.results_tables()
    assert "| sparse | magnitude | 99.10 ± 0.10 (n = 3) | 10× | 1× | 20 bytes | here, full |" in table
    assert "here, quick" not in table
    assert "| LeNet-5 | sparse variational dropout | 99.25 | 280× | – | – |" in table
    assert torch.__version__ in table
