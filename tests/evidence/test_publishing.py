"""Tests of `helpers.evidence.publishing`."""

import json

import pytest

from helpers import evidence
from helpers.core import paths
from helpers.evidence import checksums, publishing, reading
from tests.evidence.evidence_examples import NB, finished


def test_a_published_file_is_restored_with_git(rich):
    path = evidence.promote_quick(NB)
    path.write_bytes(b"{")
    with pytest.raises(ValueError, match="is damaged .*; restore it with git"):
        evidence.timetable(NB)


def test_promote_quick_publishes_the_result_without_the_file():
    finished(profile="quick", models=[{"size": 20}])
    path = evidence.promote_quick(NB)
    model = json.loads(path.read_text())["models"][0]
    assert "file" not in model and model["file_bytes"] == 20


def test_a_seed_that_comes_later_joins_the_published_ones():
    for seed, error in enumerate([0.9, 1.2, 0.8]):
        finished(seed=seed, claims=[("error", error, 1, True)])
        said = "\n".join(evidence.publish())
        reading.build_file(NB, "full", seed).unlink()
    assert "error: holds" in said and "(n = 3)" in said and "0.9667 ± 0.2082" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source_sha256": "b" * 64}, "source"),
        ({"helpers_sha256": "b" * 64}, "helpers"),
        ({"versions": {"torch": "1"}}, "versions"),
    ],
)
def test_seeds_of_different_code_are_not_published_together(change, said, monkeypatch):
    finished(seed=0, models=[{}])
    evidence.publish()
    before = published()
    provenance = evidence.Run._provenance
    monkeypatch.setattr(evidence.Run, "_provenance", lambda self: provenance(self) | change)
    finished(seed=1, models=[{}])
    with pytest.raises(ValueError, match=f"{NB}: seeds 0, 1 differ in {said}; allowed: seeds of the same code"):
        evidence.publish()
    assert published() == before


@pytest.mark.parametrize(
    "other",
    [
        [("a", 0.1, 0.6, False), ("b", 0.1, 0.5, True)],
        [("a", 0.1, 0.5, False), ("b", 0.1, 0.5, False)],
        [("a", 0.1, 0.5, False)],
    ],
)
def test_seeds_that_state_other_claims_are_not_published_together(other):
    finished(seed=0, claims=[("a", 0.2, 0.5, False), ("b", 0.1, 0.5, True)])
    finished(seed=1, claims=[("a", 0.3, 0.5, False), ("b", 0.2, 0.5, True)])
    evidence.publish()
    finished(seed=2, claims=other)
    with pytest.raises(ValueError, match="differ in claim '"):
        evidence.publish()
    assert sorted(published()) == [f"results/full/{NB}.seed{seed}.json" for seed in (0, 1)]


def published() -> dict[str, bytes]:
    return {
        path.relative_to(paths.DATA).as_posix(): path.read_bytes() for path in (paths.DATA / "results").rglob("*.json")
    }


def test_what_was_published_and_then_edited_is_noticed():
    finished(seed=0, models=[{"size": 40}])
    evidence.publish()
    assert checksums.changed() == [] and len(checksums.known()) == 2
    result, model = paths.RESULTS / f"full/{NB}.seed0.json", next((paths.DATA / "models").iterdir())
    result.write_bytes(result.read_bytes().replace(b"0.99", b"0.98"))
    assert checksums.changed() == [f"results/full/{NB}.seed0.json"]
    finished(seed=0, models=[{"size": 40}])
    evidence.publish()
    assert checksums.changed() == []
    model.unlink()
    (paths.RESULTS / "full/03_other.seed0.json").write_text("{}")
    assert checksums.changed() == [f"models/{model.name}", "results/full/03_other.seed0.json"]


def test_publish_copies_only_the_front_and_only_small_files(monkeypatch, tmp_path):
    monkeypatch.setattr(publishing, "MAX_FILE_BYTES", 100)
    models = [
        {"name": "huge", "accuracy": 0.99, "size": 101},
        {"name": "good", "accuracy": 0.98, "size": 100},
        {"name": "worse", "accuracy": 0.97, "size": 100},
        {"name": "tiny", "accuracy": 0.90, "size": 9},
    ]
    finished(models=models)
    evidence.publish()
    assert sorted(p.name for p in (tmp_path / "data" / "models").iterdir()) == [
        "02-good.seed0.pack",
        "02-tiny.seed0.pack",
    ]


def test_publish_keeps_all_files_under_the_cap_and_writes_nothing_otherwise(monkeypatch, tmp_path):
    finished("01_measure_first", models=[{"size": 60}])
    evidence.publish("01_measure_first")
    finished(models=[{"size": 60}])
    monkeypatch.setattr(publishing, "MAX_FILES_BYTES", 100)
    with pytest.raises(ValueError, match="120 bytes; allowed: 100"):
        evidence.publish(NB)
    assert not reading.data_file(NB, "full", 0).exists()
    assert len(list((tmp_path / "data" / "models").iterdir())) == 1
    evidence.publish("01_measure_first")  # a file in the place of itself takes no room
    monkeypatch.setattr(publishing, "MAX_FILES_BYTES", 120)
    evidence.publish(NB)
    monkeypatch.setattr(publishing, "MAX_FILES_BYTES", 119)
    with pytest.raises(ValueError, match="120 bytes; allowed: 119"):
        evidence.publish(NB)


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"other"), lambda p: p.unlink()])
def test_publish_verifies_the_files(damage, tmp_path):
    finished(models=[{"size": 20}])
    damage(tmp_path / "build" / "models" / "full" / "02-sparse.seed0.pack")
    with pytest.raises(ValueError, match="not what 02_prune_weights recorded"):
        evidence.publish(NB)
    assert not list(paths.RESULTS.rglob("*.json"))


def test_publish_without_results():
    with pytest.raises(FileNotFoundError, match="no notebook has no full results"):
        evidence.publish()


def test_a_lucky_quick_run_takes_no_place_on_the_front_from_the_full_runs_of_its_model():
    finished(profile="quick", models=[{"accuracy": 0.95, "size": 20}])
    for seed in range(3):
        finished(seed=seed, models=[{"accuracy": 0.93 + seed / 100, "size": 20}])
    (row,) = evidence.leaderboard().to_dict("records")
    assert (row["profile"], row["n"], row["own"]) == ("full", 3, 0.95) and row["accuracy"] == pytest.approx(0.94)
    assert "95.00" in evidence.format_leaderboard(evidence.leaderboard()).to_string(), "the own run stands beside it"
    evidence.promote_quick(NB)
    evidence.publish()
    assert "94.00 ± 1.00 (n = 3)" in evidence.results_tables()


def test_results_tables_counts_macs_against_the_base_and_invents_no_spread():
    for seed in range(3):
        dense = {"name": "dense", "base": None, "accuracy": 0.9907, "macs": 2_000_000, "size": 50}
        thin = {"name": "thin", "base": "dense", "accuracy": 0.98 + seed / 1000, "macs": 800_000, "size": 20}
        finished(seed=seed, models=[dense, thin])
    evidence.publish()
    table = evidence.results_tables()
    assert "| dense | magnitude | 99.07 (one network) | " in table and " | 1× | 50 bytes |" in table
    assert " | 2.5× | 20 bytes |" in table


def test_results_tables_does_not_average_files_of_different_sizes():
    for seed, (size, macs) in enumerate([(200_000, 500_000), (3_000_000, 505_000)]):
        dense = {"name": "dense", "base": None, "macs": 1_000_000, "size": 4_000_000}
        finished(seed=seed, models=[dense, {"name": "cut", "base": "dense", "macs": macs, "size": size}])
    evidence.publish()
    table = evidence.results_tables()
    assert "| cut [seed 0] | magnitude | 99.00 (n = 1) | 10× | 2× | 200,000 bytes |" in table
    assert "| cut [seed 1] | magnitude | 99.00 (n = 1) | 10× | 1.98× | 3,000,000 bytes |" in table, "worse, and shown"


def test_results_tables_shows_models_that_were_never_packed():
    """A student differs from its base by its teacher, not by its bytes."""
    finished(models=[{"size": 20}, {"name": "alone", "base": None}, {"name": "taught", "base": "alone"}])
    evidence.publish()
    assert "| taught | magnitude | 99.00 (n = 1) | 10× | 1× | – | here, full |" in evidence.results_tables()
