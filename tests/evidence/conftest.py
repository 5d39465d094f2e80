"""Fixtures of this folder's tests."""

import pytest

from helpers import evidence
from helpers.core import paths
from helpers.evidence import reading
from tests.evidence.evidence_examples import NB, add, timed


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Send build and data into temporary folders; the reference results stay the project's own."""
    literature = (paths.DATA / "literature.json").read_bytes()
    monkeypatch.setenv("COURSE_BUILD_DIR", str(tmp_path / "build"))
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "data" / "results")
    paths.write_atomically(tmp_path / "data" / "literature.json", literature)
    return tmp_path


@pytest.fixture
def rich():
    """The path of a results file with all that one can hold."""
    dense = {"name": "dense", "base": None, "size": 40, "nonzero": 100, "latency": [timed(2.0)]}
    run = evidence.start(NB, profile="quick", seed=0)
    run.claim("a", "a is small", 1, at_most=2)
    run.record("curve", [{"loss": 0.5}])
    for model in (dense, {"size": 20, "latency": [timed(1.5), timed(2.5, runtime="eager")]}):
        add(run, **model)
    run._tests.append({"name": "dense", "accuracy": 0.99, "correct": 99, "count": 100})
    run.finish()
    return reading.build_file(NB, "quick", 0)
