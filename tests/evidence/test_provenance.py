"""Where a number comes from, and what is known to be wrong."""

import json
import subprocess

import pytest

from helpers.core import paths, system
from helpers.evidence import provenance


def run(**changed):
    machine = {"cpu": "A", "cores": 2}
    known = {"commit": "abcdef0123", "source_sha256": "1" * 64, "machine": machine, "threads": 2}
    return known | changed


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([run(), run()], "abcdef01; A (2 cores); 2 threads"),
        ([run(commit="abcdef0123+")], "abcdef01+; A (2 cores); 2 threads"),
        ([run(commit=None), run(commit=None)], "source 11111111; A (2 cores); 2 threads"),
        ([run(), run(threads=4)], "abcdef01; A (2 cores); 2, 4 threads"),
        ([run(threads=1)], "abcdef01; A (2 cores); 1 thread"),
        ([run(), run(source_sha256="2" * 64)], "abcdef01; A (2 cores); 2 threads ‡"),
        ([run(helpers_sha256="3"), run(helpers_sha256="4")], "abcdef01; A (2 cores); 2 threads ‡"),
    ],
)
def test_a_row_says_its_origin_and_whether_it_is_of_one_source(runs, said):
    assert provenance.origin(runs) == said


def test_errata_are_found_by_notebook_and_claim():
    row = {"notebook": "12_distill", "claim": "helps", "wrong": "a mean of two quantities"}
    paths.write_atomically(paths.RESULTS / "errata.json", json.dumps({"errata": [row]}).encode())
    assert provenance.errata("12_distill", "helps") == ["a mean of two quantities"]
    assert provenance.errata() == ["12_distill, claim helps: a mean of two quantities"]
    assert provenance.errata("12_distill", "other") == provenance.errata("02_prune_weights") == []
    paths.write_atomically(paths.RESULTS / "errata.json", b"{}")
    with pytest.raises(ValueError, match="errata.json is damaged"):
        provenance.errata()


def test_the_commit_tells_a_changed_clone_from_a_clean_one(tmp_path):
    assert system.commit(tmp_path) is None
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "a"]):
        (tmp_path / "helpers").mkdir(exist_ok=True)
        (tmp_path / "helpers/a.py").write_text("one")
        (tmp_path / "README.md").write_text("one")
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    clean = system.commit(tmp_path)
    assert clean is not None and len(clean) == 40
    (tmp_path / "README.md").write_text("two")
    assert system.commit(tmp_path) == clean, "which no result depends on"
    (tmp_path / "helpers/a.py").write_text("two")
    assert system.commit(tmp_path) == f"{clean}+"
