"""Tests of `helpers.evidence.schema`."""

import math

import pytest

from helpers import evidence
from helpers.core import paths
from helpers.evidence import reading
from tests.evidence.evidence_examples import NB, finished, loaded


def test_nan_never_holds_and_is_written_as_null():
    run = evidence.start(NB, profile="quick", seed=0)
    run.claim("accuracy", "accuracy is high", math.nan, at_least=0.0)
    with pytest.raises(evidence.ClaimError, match="'accuracy' does not hold: not a finite number, claimed at least 0"):
        run.finish()
    claim = loaded(NB, profile="quick").claims[0].record()
    assert (claim["value"], claim["holds"]) == (None, False)


def test_finish_writes_first_and_then_names_each_broken_claim():
    run = evidence.start(NB, profile="full", seed=1)
    run.claim("fine", "fine", 1, at_most=2)
    run.claim("broken", "broken", 3, at_most=2)
    run.claim("worse", "worse", 1, at_least=1.5)
    with pytest.raises(evidence.ClaimError, match="'broken'.*3.*at most 2.*'worse'.*1.*at least 1.5") as error:
        run.finish()
    assert "fine" not in str(error.value)
    assert [c.holds for c in loaded(NB, profile="full", seed=1).claims] == [True, False, False]


def test_the_source_is_hashed(monkeypatch, tmp_path):
    source = tmp_path / "notebooks" / "src" / f"{NB}.py"
    paths.write_atomically(source, b"# %%\n")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert finished().provenance["source_sha256"] == paths.sha256(b"# %%\n")


def test_the_source_of_a_run_has_one_hash_whatever_its_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    hashes = set()
    for content in (b"# %%\nx = 1\n", b"# %%\r\nx = 1\r\n"):
        paths.write_atomically(tmp_path / "notebooks" / "src" / f"{NB}.py", content)
        hashes.add(finished().provenance["source_sha256"])
    assert hashes == {paths.sha256(b"# %%\nx = 1\n")}


def test_publish_refuses_a_claim_that_the_first_seed_did_not_make():
    finished(seed=0)
    finished(seed=1, claims=[("new", 0.5, 1.0, True)])
    with pytest.raises(ValueError, match="seeds 0, 1 differ in claim 'new'"):
        evidence.publish(NB)


def test_promote_quick_refuses_a_broken_claim_and_a_missing_run():
    with pytest.raises(FileNotFoundError, match="run it first"):
        evidence.promote_quick(NB)
    with pytest.raises(evidence.ClaimError):
        finished(profile="quick", claims=[("a", 3, 2, False)])
    with pytest.raises(evidence.ClaimError, match="seed 0, claim 'a'"):
        evidence.promote_quick(NB)
    assert not reading.data_file(NB, "quick", 0).exists()


@pytest.mark.parametrize("values", [[0.9, 1.2, 1.1], [0.5, math.nan, 0.5]])
def test_publish_checks_the_mean_over_seeds(values):
    for seed, error in enumerate(values):
        finished(seed=seed, claims=[("error", error, 1, True)])
    with pytest.raises(evidence.ClaimError, match=r"over seeds, error: does not hold.*n = 3"):
        evidence.publish(NB)
    assert not list(paths.RESULTS.rglob("*.json"))


def test_a_seed_with_a_broken_claim_is_not_left_out_quietly():
    for seed, error in enumerate([0, 3, 0]):
        run = evidence.start(NB, profile="full", seed=seed)
        run.claim("a", "a", error, at_most=2)
        try:
            run.finish()
        except evidence.ClaimError:
            assert seed == 1
    with pytest.raises(evidence.ClaimError, match="seed 1, claim 'a'"):
        evidence.publish(NB)
    assert not list(paths.RESULTS.rglob("*.json"))
