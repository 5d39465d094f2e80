"""Fixtures of this folder's tests."""

import json

import pytest

from helpers import evidence
from helpers.core import paths
from helpers.evidence import reading
from tests.evidence.evidence_examples import MACHINE, NB, PROVENANCE, add, timed


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
