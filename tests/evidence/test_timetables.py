"""How long a page takes."""

from helpers import evidence
from helpers.core import paths
from helpers.evidence import reading, schema, timetables
from tests.evidence.evidence_examples import NB, finished

SOURCE = """\
# ---
# jupyter: {}
# ---

# %% [markdown]
# one two three

# %% tags=["plumbing"]
a = 1
b = 2

# %%
c = 3

d = 4

# %%
def answer():
    ### BEGIN SOLUTION
    return 1
    ### END SOLUTION

# %% tags=["parameters"]
PROFILE = "quick"
"""


def test_what_is_folded_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    assert evidence.reading_minutes(NB) == 0
    paths.write_atomically(tmp_path / "src" / f"{NB}.py", SOURCE.encode())
    words = len(["[markdown]", "#", "one", "two", "three"])
    assert evidence.reading_minutes(NB) == words / timetables.WORDS_PER_MINUTE + 2 / timetables.LINES_PER_MINUTE


def test_two_hundred_words_or_ten_lines_take_a_minute(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    source = "# %% [markdown]\n# " + 398 * "word " + "\n# %%\n" + 30 * "a = 1\n"  # two more words: [markdown] and #
    paths.write_atomically(tmp_path / "src" / f"{NB}.py", source.encode())
    assert evidence.reading_minutes(NB) == 2 + 3


def test_expected_seconds_come_from_published_results():
    assert evidence.expected_seconds(NB, "full") is None
    for seed, seconds in enumerate([100, 200]):
        result = finished(seed=seed)
        result.provenance["seconds"] = seconds
        paths.write_atomically(reading.data_file(NB, "full", seed), schema.dump(result.record()))
    assert evidence.expected_seconds(NB, "full") == 150
    assert "*full* about 2 min for each seed" in evidence.timetable(NB)
    assert "*quick* at most two minutes" in evidence.timetable(NB)
    result.provenance["together_with"] = "03_which_weights_matter"
    paths.write_atomically(reading.data_file(NB, "full", 1), schema.dump(result.record()))
    assert evidence.run_with(NB) == "03_which_weights_matter" and evidence.run_with("04_prune_filters") == ""
    assert "*full* about 2 min for each seed, together with notebook 03" in evidence.timetable(NB)
