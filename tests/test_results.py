"""Results: claims cannot be faked, files are strict JSON, publishing neither mixes nor picks."""

import json
import math
import statistics
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from helpers import results, training
from helpers.data import Split

NB = "02_prune_weights"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Send build and data into temporary folders; the reference results stay the project's own."""
    literature = (results.DATA / "literature.json").read_bytes()
    monkeypatch.setenv("COURSE_BUILD_DIR", str(tmp_path / "build"))
    monkeypatch.setattr(results, "DATA", tmp_path / "data")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "data" / "results")
    results.write_atomically(tmp_path / "data" / "literature.json", literature)
    return tmp_path


def add(run, name="sparse", accuracy=0.99, size=None, file=None, base="dense", nonzero=10, macs=2_293_000, **more):
    """Record a small model; `size` makes a file of that many bytes."""
    if size is not None:
        file = run.scratch(f"{name}.pack")
        file.write_bytes(name.encode().ljust(size, b"."))
    run.model(
        name,
        task="mnist",
        method="magnitude",
        accuracy=accuracy,
        base=base,
        weights=100,
        nonzero=nonzero,
        macs=macs,
        file=file,
        **more,
    )


def timed(ratio, *, runtime="onnxruntime", batch=1, **more):
    """Return a record as `measure.latency_records` makes it."""
    interval = [0.9 * ratio, 1.1 * ratio]
    return {"runtime": runtime, "batch": batch, "ratio": ratio, "interval": interval, "verdict": "faster"} | more


def loaded(notebook, **which):
    """Return the results of a notebook that has some."""
    result = results.load(notebook, **which)
    assert result is not None
    return result


def finished(notebook=NB, profile="full", seed=0, claims=(), models=()):
    """Run and finish a notebook with claims (id, value, at_most, over_seeds) and models (keyword dicts)."""
    run = results.start(notebook, profile=profile, seed=seed)
    for id, value, bound, over_seeds in claims:
        run.claim(id, f"{id} is small", value, at_most=bound, over_seeds=over_seeds)
    for model in models:
        add(run, **model)
    run.finish()
    return loaded(notebook, profile=profile, seed=seed)


# ---------------------------------------------------------------- settings and start


def test_settings_choose_the_profile():
    chosen = results.settings("quick", smoke={"epochs": 1}, quick={"epochs": 3}, full={"epochs": 30})
    assert chosen.epochs == 3


def test_settings_reject_unknown_profile_and_uneven_tables():
    with pytest.raises(ValueError, match="profile='fast'.*'smoke', 'quick', 'full'"):
        results.settings("fast", smoke={}, quick={}, full={})
    with pytest.raises(ValueError, match="full and smoke differ in epochs"):
        results.settings("quick", smoke={"epochs": 1}, quick={"epochs": 3}, full={})


@pytest.mark.parametrize(
    "notebook, profile, seed",
    [("02", "quick", 0), (NB, "slow", 0), (NB, "quick", -1), (2, "quick", 0), (NB, "quick", 0.5), (NB, "quick", True)],
)
def test_start_rejects(notebook, profile, seed):
    with pytest.raises(ValueError, match="allowed"):
        results.start(notebook, profile=profile, seed=seed)


# ---------------------------------------------------------------- claims


@settings(deadline=None)
@given(value=st.floats(), bound=st.floats(allow_nan=False, allow_infinity=False))
def test_the_outcome_is_the_comparison(value, bound):
    run = results.start(NB, profile="quick", seed=0, save=False)
    run.claim("most", "m", value, at_most=bound)
    run.claim("least", "l", value, at_least=bound)
    most, least = run._result()["claims"]
    assert most["holds"] is (math.isfinite(value) and value <= bound)
    assert least["holds"] is (math.isfinite(value) and value >= bound)


def test_nan_never_holds_and_is_written_as_null():
    run = results.start(NB, profile="quick", seed=0)
    run.claim("accuracy", "accuracy is high", math.nan, at_least=0.0)
    with pytest.raises(results.ClaimError, match="'accuracy' does not hold: not a finite number, claimed at least 0"):
        run.finish()
    claim = loaded(NB, profile="quick")["claims"][0]
    assert (claim["value"], claim["holds"]) == (None, False)


def test_finish_writes_first_and_then_names_each_broken_claim():
    run = results.start(NB, profile="full", seed=1)
    run.claim("fine", "fine", 1, at_most=2)
    run.claim("broken", "broken", 3, at_most=2)
    run.claim("worse", "worse", 1, at_least=1.5)
    with pytest.raises(results.ClaimError, match="'broken'.*3.*at most 2.*'worse'.*1.*at least 1.5") as error:
        run.finish()
    assert "fine" not in str(error.value)
    assert [c["holds"] for c in loaded(NB, profile="full", seed=1)["claims"]] == [True, False, False]


def test_smoke_records_a_broken_claim_and_does_not_raise(capsys):
    finished(profile="smoke", claims=[("broken", 3, 2, False)])
    assert loaded(NB, profile="smoke")["claims"][0]["holds"] is False
    assert "Recorded only (smoke)" in capsys.readouterr().out


def test_a_claim_shows_its_outcome(capsys):
    run = results.start(NB, profile="quick", seed=0, save=False)
    run.claim("a", "Loss is small", 0.0012, at_most=0.003)
    run.claim("b", "Loss is tiny", 0.0012, at_most=0.001)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "**Holds:** Loss is small — measured 0.0012, claimed at most 0.003."
    assert second.startswith("**Does not hold:** Loss is tiny")


@pytest.mark.parametrize(
    "bounds",
    [{}, {"at_most": 1, "at_least": 0}, {"at_most": math.nan}, {"at_least": -math.inf}, {"at_most": "1"}],
)
def test_a_claim_needs_one_bound(bounds):
    run = results.start(NB, profile="quick", seed=0, save=False)
    with pytest.raises(ValueError, match="claim 'a'"):
        run.claim("a", "a", 1, **bounds)


@pytest.mark.parametrize("value", [None, "0.5", [1, 2], torch.zeros(2), 1j])
def test_what_a_claim_measured_is_a_number(value):
    run = results.start(NB, profile="quick", seed=0, save=False)
    with pytest.raises(ValueError, match="claim 'a': value=.* is not a number; allowed: a finite number"):
        run.claim("a", "a", value, at_most=1)
    run.claim("a", "a", torch.tensor(0.5), at_most=np.float32(1))
    assert run._result()["claims"][0]["holds"] is True


@pytest.mark.parametrize(("id", "text"), [("", "a"), ("a", " "), (1, "a"), ("a", None)])
def test_a_claim_needs_a_name_and_a_text(id, text):
    run = results.start(NB, profile="quick", seed=0, save=False)
    with pytest.raises(ValueError, match="(id|text)=.*; allowed: a text"):
        run.claim(id, text, 1, at_most=1)


def test_a_claim_cannot_be_told_its_outcome():
    run = results.start(NB, profile="quick", seed=0, save=False)
    with pytest.raises(TypeError):
        run.claim("a", "a", 1, at_most=0, **{"holds": True})


def test_ids_and_names_stand_once():
    run = results.start(NB, profile="quick", seed=0, save=False)
    run.claim("a", "a", 1, at_most=2)
    with pytest.raises(ValueError, match="claim 'a' is there twice"):
        run.claim("a", "b", 1, at_most=2)
    add(run)
    with pytest.raises(ValueError, match="model 'sparse' is there twice"):
        add(run)


def test_a_cell_that_runs_again_replaces_what_it_said(monkeypatch):
    run = results.start(NB, profile="quick", seed=0, save=False)
    for execution, value in [(4, 3), (9, 1)]:
        monkeypatch.setattr(results, "_execution_count", lambda n=execution: n)
        run.claim("a", "a", value, at_most=2)
        add(run, accuracy=value / 10)
    assert [c["value"] for c in run._result()["claims"]] == [1]
    assert [m["accuracy"] for m in run._result()["models"]] == [0.1]
    monkeypatch.setattr(results, "_execution_count", lambda: 10)
    with pytest.raises(ValueError, match="twice"):
        run.claim("a", "another claim", 1, at_most=2)


# ---------------------------------------------------------------- what is written


def test_the_file_holds_what_the_design_says():
    result = finished(models=[{"size": 20}], claims=[("a", 1, 2, False)])
    assert {"notebook": NB, "profile": "full", "seed": 0}.items() <= result.items()
    provenance = result["provenance"]
    assert provenance["torch"] == torch.__version__
    assert provenance["threads"] == torch.get_num_threads()
    assert 0 <= provenance["seconds"] < 60
    assert provenance["peak_memory_mb"] > 10
    assert provenance["started"].endswith("+00:00")
    assert {"source_sha256", "helpers_version", "machine"} <= provenance.keys()
    model = result["models"][0]
    assert model["file"] == "models/full/02-sparse.seed0.pack"
    assert model["file_bytes"] == 20
    assert result["claims"] == [
        {
            "id": "a",
            "text": "a is small",
            "value": 1,
            "at_most": 2,
            "holds": True,
            "over_seeds": False,
            "timing": False,
        }
    ]


def test_the_source_is_hashed(monkeypatch, tmp_path):
    source = tmp_path / "notebooks" / "src" / f"{NB}.py"
    results.write_atomically(source, b"# %%\n")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert finished()["provenance"]["source_sha256"] == results._sha256(b"# %%\n")


def test_save_false_writes_nothing(tmp_path):
    run = results.start(NB, profile="quick", seed=0, save=False)
    run.finish()
    assert not list((tmp_path / "build").rglob("*.json"))


def test_numbers_from_numpy_torch_and_pandas_become_json():
    run = results.start(NB, profile="quick", seed=0)
    run.record("a", {"i": np.int64(3), "f": np.float32(0.5), "b": np.bool_(True), "t": torch.tensor([1, 2])})
    run.record("table", pd.DataFrame({"x": [1, 2], "y": ["p", "q"]}))
    run.record("seconds", [0.1], timing=True)
    run.finish()
    result = loaded(NB, profile="quick")
    assert result["measurements"]["a"] == {"i": 3, "f": 0.5, "b": True, "t": [1, 2]}
    assert result["measurements"]["table"] == [{"x": 1, "y": "p"}, {"x": 2, "y": "q"}]
    assert result["timings"] == {"seconds": [0.1]}


@pytest.mark.parametrize("bad", [math.nan, math.inf, np.float32("nan"), torch.tensor(math.inf)])
def test_nan_is_refused_by_the_name_of_its_field(bad):
    run = results.start(NB, profile="quick", seed=0, save=False)
    with pytest.raises(ValueError, match=r"curve\[1\]\.loss=(nan|inf)"):
        run.record("curve", [{"loss": 1.0}, {"loss": bad}])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"accuracy": 99.1}, r"accuracy=99.1 is outside \[0, 1\]"),
        ({"accuracy": math.nan}, "accuracy=nan"),
        ({"accuracy": -0.01}, "accuracy=-0.01"),
        ({"accuracy": "0.9"}, "accuracy='0.9' is not a number"),
        *[({name: 0}, f"{name}=0; allowed: a whole number of at least 1") for name in ("weights", "nonzero", "macs")],
        *[({name: -3}, f"{name}=-3") for name in ("weights", "nonzero", "macs")],
        *[({name: 2.5}, f"{name}=2.5") for name in ("weights", "nonzero", "macs")],
        ({"macs": math.nan}, "macs=nan"),
        ({"macs": True}, "macs=True"),
        ({"nonzero": 101}, "nonzero=101; allowed: at most weights=100"),
        ({"split": "train"}, "split='train' is unknown; allowed: 'test', 'validation'"),
        ({"base": ""}, "base=''; allowed: a text"),
        ({"name": "a/b"}, "name='a/b'; allowed: a name without slashes"),
        ({"name": "..\\b"}, "allowed: a name without slashes"),
        ({"task": None}, "task=None"),
        ({"method": ""}, "method=''"),
        ({"file_bytes": -5}, "file_bytes=-5; allowed: file"),
        ({"file_sha256": "0"}, "file_sha256='0'; allowed: file"),
        ({"size": 0}, "file is empty"),
        ({"latency": [timed(2.0) | {"ratio": math.nan}]}, "ratio=nan; allowed: a finite number above 0"),
        ({"latency": [timed(2.0) | {"ratio": 0}]}, "ratio=0"),
        ({"latency": [timed(2.0, batch=0)]}, "batch=0; allowed: a whole number of at least 1"),
        ({"latency": [timed(2.0, interval=[0, 1])]}, r"interval\[0\]=0"),
        ({"latency": [timed(2.0, interval=[1, math.inf])]}, r"interval\[1\]=inf"),
        ({"latency": [timed(2.0, interval=[2, 1])]}, r"interval=\[2, 1\]; allowed: the lower end first"),
        ({"latency": [timed(2.0, interval=[1])]}, r"interval=\[1\]; allowed: two numbers"),
        ({"latency": [{"ratio": 2.0}]}, "latency has a record without 'runtime'"),
        ({"latency": [timed(2.0, runtime="")]}, "runtime=''"),
        ({"latency": [timed(2.0, verdict=None)]}, "verdict=None"),
        ({"more": math.nan}, r"model sparse.more=nan"),
    ],
)  # fmt: skip
def test_nonsense_about_a_model_is_refused_and_leaves_no_trace(changed, said):
    run = results.start(NB, profile="quick", seed=0)
    changed = {"name": "sparse", "weights": 100, "method": "magnitude", "task": "mnist"} | changed
    with pytest.raises(ValueError, match=said):
        add_any(run, **changed)
    assert run._result()["models"] == []
    assert not (results.build_dir() / "models").exists()
    add(run)  # the name is still free


def add_any(run, *, name, accuracy=0.9, nonzero=10, macs=7, base="dense", size=None, **more):
    file = None
    if size is not None:
        file = run.scratch("any.pack")
        file.write_bytes(bytes(size))
    run.model(name, accuracy=accuracy, nonzero=nonzero, macs=macs, base=base, file=file, **more)


def test_the_least_and_the_most_that_a_model_may_be():
    run = results.start(NB, profile="quick", seed=0, save=False)
    for name, nonzero, accuracy in [("least", 1, 0.0), ("most", 100, 1.0)]:
        latency = [timed(1e-9, interval=[1e-9, 1e-9])]
        add_any(run, name=name, weights=100, nonzero=np.int64(nonzero), macs=torch.tensor(1), accuracy=accuracy,
                task="t", method="m", base=None, split="validation", latency=latency, note="n")  # fmt: skip
    kept = run._result()["models"]
    assert [(m["nonzero"], m["macs"], m["accuracy"], m["note"]) for m in kept] == [(1, 1, 0.0, "n"), (100, 1, 1.0, "n")]
    assert all(type(m["nonzero"]) is int for m in kept)


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", ""])
def test_a_state_lies_in_the_runs_own_folder(name):
    with pytest.raises(ValueError, match="name="):
        results.start(NB, profile="quick", seed=0).scratch(name)


def test_without_saving_no_file_of_a_model_is_copied(tmp_path):
    run = results.start(NB, profile="quick", seed=0, save=False)
    add(run, size=20)
    assert run._result()["models"][0]["file_bytes"] == 20
    assert not (tmp_path / "build" / "models").exists()


def test_test_evaluations_are_logged_each_time():
    torch.manual_seed(0)
    split = Split(torch.randn(8, 4), torch.randint(0, 3, (8,)), is_test=True)
    model = torch.nn.Linear(4, 3)
    run = results.start(NB, profile="quick", seed=0)
    with pytest.raises(ValueError, match="split.is_test=False; allowed: the test split"):
        run.test("net", model, replace(split, is_test=False))
    evaluation = run.test("net", model, split)
    run.test("net", model, split)
    run.finish()
    correct = int((model(split.inputs).argmax(1) == split.labels).sum())
    assert evaluation == training.evaluate(model, split)
    logged = {"name": "net", "accuracy": correct / 8, "correct": correct, "count": 8}
    assert loaded(NB, profile="quick")["test_evaluations"] == [logged, logged]


def test_comparable_drops_what_differs_between_runs():
    run = results.start(NB, profile="quick", seed=0)
    add(run, latency=[timed(2)])
    run.claim("time", "fast", 1, at_least=0, timing=True)
    run.claim("size", "small", 1, at_least=0)
    run.record("seconds", 3, timing=True)
    run.record("curve", [1, 2])
    run.finish()
    kept = results.comparable(loaded(NB, profile="quick"))
    assert [c["id"] for c in kept["claims"]] == ["size"]
    assert kept["measurements"] == {"curve": [1, 2]}
    assert not {"provenance", "timings"} & kept.keys()
    assert "latency" not in kept["models"][0]


def test_scratch_belongs_to_notebook_profile_and_seed(tmp_path):
    path = results.start(NB, profile="full", seed=2).scratch("state.pt")
    assert path == tmp_path / "build" / "scratch" / "full" / f"{NB}.seed2" / "state.pt"
    assert path.parent.is_dir()


# ---------------------------------------------------------------- reading


def test_load_prefers_build():
    finished(profile="quick", models=[{"accuracy": 0.5}])
    results.promote_quick(NB)
    finished(profile="quick", models=[{"accuracy": 0.75}])
    assert loaded(NB, profile="quick")["models"][0]["accuracy"] == 0.75
    results._build_file(NB, "quick", 0).unlink()
    assert loaded(NB, profile="quick")["models"][0]["accuracy"] == 0.5
    assert results.load(NB, profile="full") is None


# ---------------------------------------------------------------- damaged files


@pytest.fixture
def rich():
    """The path of a results file with all that one can hold."""
    dense = {"name": "dense", "base": None, "size": 40, "nonzero": 100, "latency": [timed(2.0)]}
    run = results.start(NB, profile="quick", seed=0)
    run.claim("a", "a is small", 1, at_most=2)
    run.record("curve", [{"loss": 0.5}])
    for model in (dense, {"size": 20, "latency": [timed(1.5), timed(2.5, runtime="eager")]}):
        add(run, **model)
    run._tests.append({"name": "dense", "accuracy": 0.99, "correct": 99, "count": 100})
    run.finish()
    return results._build_file(NB, "quick", 0)


def test_a_whole_file_is_read_as_it_was_written(rich):
    assert rich.read_text() == json.dumps(results.read(rich), indent=1, ensure_ascii=False) + "\n", "a diff has lines"
    assert results.read(rich) == json.loads(rich.read_text()) == results.load(NB, profile="quick")


def test_a_truncated_file_is_one_sentence(rich):
    content = rich.read_bytes()
    for length in range(0, len(content) - 2, 97):
        rich.write_bytes(content[:length])
        with pytest.raises(ValueError, match=rf"{NB}.seed0.json is damaged \(.*\); delete it, and run the notebook"):
            results.leaderboard()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_byte_is_one_sentence_or_another_valid_result(data, rich):
    content = bytearray(rich.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = rich.with_name("x") / rich.name
    results.write_atomically(path, bytes(content))
    try:
        result = results.read(path)
    except ValueError as error:
        assert f"{path} is damaged (" in str(error)
    else:
        assert list(results._rows([result], source="build"))
        results.comparable(result)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: [],
        lambda r: r | {"notebook": "two"},
        lambda r: r | {"notebook": "03_other"},
        lambda r: r | {"seed": 1},
        lambda r: r | {"seed": -1},
        lambda r: r | {"profile": "slow"},
        lambda r: r | {"models": None},
        lambda r: r | {"models": [*r["models"], r["models"][0]]},
        lambda r: r | {"models": [m | {"macs": 0} for m in r["models"]]},
        lambda r: r | {"models": [m | {"file_bytes": 0} for m in r["models"]]},
        lambda r: r | {"models": [m | {"latency": [{}]} for m in r["models"]]},
        lambda r: r | {"claims": [r["claims"][0] | {"holds": False}]},
        lambda r: r | {"claims": [r["claims"][0] | {"holds": 1}]},
        lambda r: r | {"claims": [r["claims"][0] | {"value": None}]},
        lambda r: r | {"claims": [r["claims"][0] | {"value": "1"}]},
        lambda r: r | {"claims": [r["claims"][0] | {"at_most": None}]},
        lambda r: r | {"claims": [r["claims"][0] | {"over_seeds": "no"}]},
        lambda r: r | {"claims": [r["claims"][0] | {"text": ""}]},
        lambda r: r | {"test_evaluations": [{"name": "x", "accuracy": 1.5, "count": 1}]},
        lambda r: r | {"test_evaluations": [{"name": "x", "accuracy": 0.5, "count": 0}]},
        lambda r: r | {"test_evaluations": [{"name": "", "accuracy": 0.5, "count": 1}]},
        lambda r: r | {"measurements": []},
        lambda r: r | {"timings": 1},
        *[
            lambda r, key=key, value=value: r | {"provenance": r["provenance"] | {key: value}}
            for key, value in [("seconds", -1), ("seconds", "1"), ("started", 0), ("torch", ""), ("machine", {})]
            + [("source_sha256", 5), ("helpers_version", None)]
        ],
        *[
            lambda r, key=key: {k: v for k, v in r.items() if k != key}
            for key in ("notebook", "provenance", "models", "claims", "test_evaluations", "measurements", "timings")
        ],
    ],
)
def test_what_no_run_has_written_is_damaged(change, rich):
    rich.write_text(json.dumps(change(json.loads(rich.read_text()))))
    with pytest.raises(ValueError, match="is damaged"):
        results.read(rich)


def test_a_number_that_json_does_not_know_is_damage(rich):
    rich.write_text(rich.read_text().replace('"loss": 0.5', '"loss": NaN'))
    with pytest.raises(ValueError, match="is damaged .*NaN; allowed: finite numbers"):
        results.read(rich)


def test_a_published_file_is_restored_with_git(rich):
    path = results.promote_quick(NB)
    path.write_bytes(b"{")
    with pytest.raises(ValueError, match="is damaged .*; restore it with git"):
        results.timetable(NB)


def test_a_damaged_file_is_left_out_where_that_is_wanted(rich):
    finished("01_measure_first", profile="quick", models=[{}])
    rich.write_bytes(b"{")
    damaged: list[str] = []
    assert results.leaderboard(damaged=damaged)["notebook"].tolist() == ["01_measure_first"]
    assert len(damaged) == 1 and f"{NB}.seed0.json is damaged" in damaged[0]
    with pytest.raises(ValueError, match="is damaged"):
        results.recorded()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"rows": 1'])
def test_a_damaged_literature_is_named(content):
    results.write_atomically(results.DATA / "literature.json", content)
    with pytest.raises(ValueError, match="literature.json is damaged .*restore it with git"):
        results.literature("mnist")


def test_the_source_of_a_run_has_one_hash_whatever_its_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    hashes = set()
    for content in (b"# %%\nx = 1\n", b"# %%\r\nx = 1\r\n"):
        results.write_atomically(tmp_path / "notebooks" / "src" / f"{NB}.py", content)
        hashes.add(finished()["provenance"]["source_sha256"])
    assert hashes == {results._sha256(b"# %%\nx = 1\n")}


# ---------------------------------------------------------------- over seeds


def test_expected_seconds_come_from_published_results():
    assert results.expected_seconds(NB, "full") is None
    for seed, seconds in enumerate([100, 200]):
        result = finished(seed=seed)
        result["provenance"]["seconds"] = seconds
        results.write_atomically(results._data_file(NB, "full", seed), results._dump(result))
    assert results.expected_seconds(NB, "full") == 150
    assert "*full* about 2 min for each seed" in results.timetable(NB)
    assert "*quick* at most two minutes" in results.timetable(NB)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9))
def test_mean_std_agrees_with_the_standard_library(values):
    mean, std, n = results.mean_std(values)
    assert mean == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert std == pytest.approx(statistics.stdev(values), abs=1e-6)
    assert n == len(values)


def test_mean_std_of_one_and_none():
    assert results.mean_std([3.0]).mean == 3 and math.isnan(results.mean_std([3.0]).std)
    with pytest.raises(ValueError, match="values is empty"):
        results.mean_std([])
    with pytest.raises(ValueError, match=r"values\[1\]=nan; allowed: a finite number"):
        results.mean_std([1.0, math.nan])
    with pytest.raises(ValueError, match=r"values\[0\]='1' is not a number"):
        results.mean_std(["1"])


def test_paired_interval_agrees_with_scipy():
    a, b = [0.991, 0.993, 0.992, 0.990], [0.990, 0.990, 0.9915, 0.9905]
    expected = stats.ttest_rel(a, b).confidence_interval(0.9)
    assert results.paired_interval(a, b, confidence=0.9) == pytest.approx((expected.low, expected.high))
    for bad in ([1.0], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="allowed: equally many, at least two"):
            results.paired_interval(bad, a)
    with pytest.raises(ValueError, match="hold 1 and 1 values"):
        results.paired_interval([1.0], [1.0])
    for bad, name in [(([math.nan, 1], [0, 1]), "a"), (([0, 1], [0, math.inf]), "b")]:
        with pytest.raises(ValueError, match=rf"{name}\[\d\]=(nan|inf)"):
            results.paired_interval(*bad)
    for confidence in (0, 1, -0.5, 95, math.nan, "0.9"):
        with pytest.raises(ValueError, match="confidence="):
            results.paired_interval([0, 1], [0, 2], confidence=confidence)
    assert len(results.paired_interval([0, 1], [0, 2])) == 2, "two are enough"


ACCURACIES = pd.DataFrame(
    {
        "low": [0.80, 0.90, 0.85],
        "noisy": [0.86, 0.84, 0.89],
        "high": [0.81, 0.91, 0.861],  # about one point above "low" in each seed, although the seeds differ by ten
    },
    index=[0, 1, 2],
)


def test_ranking_counts_who_beats_a_column_and_lets_those_share_a_rank_that_cannot_be_told_apart():
    ranked = results.ranking(ACCURACIES)
    assert list(ranked.index) == ["noisy", "high", "low"]
    assert ranked["rank"].to_dict() == {"noisy": 1, "high": 1, "low": 1}  # "low" cannot be told from "noisy"
    assert ranked["beaten by"].to_dict() == {"noisy": 0, "high": 0, "low": 1}
    assert ranked.loc["low", "accuracy (%)"] == f"85.00 ± {100 * statistics.stdev([0.80, 0.90, 0.85]):.2f}"
    two = results.ranking(ACCURACIES[["low", "high"]].assign(lowest=[0.1, 0.11, 0.12]))
    assert two["rank"].to_dict() == {"high": 1, "low": 2, "lowest": 3}
    with pytest.raises(ValueError, match=r"accuracies has 1 row\(s\); allowed: at least two"):
        results.ranking(ACCURACIES.iloc[:1])
    with pytest.raises(ValueError, match=r"accuracies\['low'\]\[0\]=nan"):
        results.ranking(ACCURACIES.assign(low=math.nan))
    with pytest.raises(ValueError, match="allowed: each name once"):
        results.ranking(ACCURACIES[["low", "low"]])
    with pytest.raises(ValueError, match="accuracies is empty"):
        results.ranking(ACCURACIES[[]])


def test_a_difference_of_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="b='lowest' is unknown; allowed: "):
        results.difference(ACCURACIES, "low", "lowest")
    with pytest.raises(ValueError, match=r"a\[0\]=nan"):
        results.difference(ACCURACIES.assign(low=math.nan), "low", "high")


@pytest.mark.parametrize("seed", range(20))
def test_a_rank_ends_only_where_scipy_tells_every_pair_apart(seed):
    random = np.random.default_rng(seed)
    table = pd.DataFrame(
        random.choice([0.0, 0.03, 0.2], 4) + 0.02 * random.standard_normal((3, 4)), columns=list("abcd")
    )
    ranks = results.ranking(table)["rank"]
    names = list(ranks.index)
    apart = {(a, b): stats.ttest_rel(table[a], table[b]).confidence_interval().low > 0 for a in names for b in names}
    for place in range(1, 4):
        parted = all(apart[a, b] for a in names[:place] for b in names[place:])
        assert ranks[names[place]] == (place + 1 if parted else ranks[names[place - 1]])


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [("high", "low", "higher"), ("low", "high", "lower"), ("noisy", "low", "not to be told apart")],
)
def test_a_difference_says_what_scipys_interval_decides(a, b, verdict):
    low, high = stats.ttest_rel(ACCURACIES[a], ACCURACIES[b]).confidence_interval()
    mean = 100 * (ACCURACIES[a].mean() - ACCURACIES[b].mean())
    said = f"{verdict} ({mean:+.2f} points, {100 * low:.2f} to {100 * high:.2f})"
    assert results.difference(ACCURACIES, a, b) == said


def test_measurements_are_collected_over_seeds():
    for seed in (2, 0):
        run = results.start(NB, profile="full", seed=seed)
        run.record("orders", {"first": seed / 10})
        run.finish()
    results.publish(NB)
    results._build_file(NB, "full", 0).unlink()
    again = results.start(NB, profile="full", seed=2)
    again.record("orders", {"first": 0.9})
    again.finish()
    other = results.start(NB, profile="full", seed=1)
    other.record("something else", 1)
    other.finish()
    assert results.measurements(NB, "orders") == {0: {"first": 0.0}, 2: {"first": 0.9}}
    assert results.measurements(NB, "orders", profile="quick") == {}
    with pytest.raises(ValueError, match="profile='fast' is unknown"):
        results.measurements(NB, "orders", profile="fast")


def test_the_time_of_a_resumed_run_counts_what_was_trained_before(monkeypatch):
    from helpers import training

    monkeypatch.setattr(training, "_resumed", [1_000.0])
    run = results.start(NB, profile="quick", seed=0)
    training._resumed.append(500.0)
    run.finish()
    assert 500 <= loaded(NB, profile="quick")["provenance"]["seconds"] < 600


def test_without_a_training_nothing_was_resumed(monkeypatch):
    monkeypatch.delitem(sys.modules, "helpers.training", raising=False)
    assert results._resumed_seconds() == 0.0


def test_two_seeds_have_a_spread():
    assert results._accuracy(0.5, 0.01, 2) == "50.00 ± 1.00 (n = 2)"
    assert results._accuracy(0.5, 0.0, 2) == "50.00 (one network)"
    assert results._accuracy(0.5, math.nan, 1) == "50.00"


def test_publish_checks_a_claim_that_the_first_seed_did_not_make():
    finished(seed=0)
    for seed in (1, 2, 3):
        finished(seed=seed, claims=[("new", 9.0, 1.0, True)])
    with pytest.raises(results.ClaimError, match="new: does not hold"):
        results.publish(NB)


def test_literature_is_complete_and_marks_what_was_not_read():
    lenet = results.literature("mnist", model="LeNet-5")
    ratios = dict(zip(lenet["method"], lenet["weights_ratio"], strict=True))
    assert ratios["sparse variational dropout"] == 280
    assert not lenet.set_index("method").loc["L0 regularization", "seen"]
    assert len(lenet) == 12
    seen = lenet[lenet["seen"]].set_index("method")["file_ratio"]
    assert seen["MIRACLE, lowest error"] == 555 and "MIRACLE, smaller" not in seen
    rows = json.loads((results.DATA / "literature.json").read_text())["rows"]
    assert all(0 < row["accuracy"] <= 1 for row in rows if "accuracy" in row)
    assert all({"task", "model", "method", "year", "source", "seen"} <= row.keys() for row in rows)
    with pytest.raises(ValueError, match="task='mnits'"):
        results.literature("mnits")


# ---------------------------------------------------------------- the leaderboard


def brute_force_front(points):
    """Return for each (accuracy, bytes) whether nothing dominates it."""
    return [not any(a >= x and b <= y and (a, b) != (x, y) for a, b in points) for x, y in points]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(90, 99), st.integers(1, 9)), min_size=1, max_size=8))
def test_the_front_is_pareto(points):
    rows = [{"name": f"net {i}", "accuracy": a / 100, "file_bytes": float(b)} for i, (a, b) in enumerate(points)]
    frame = pd.DataFrame(rows).assign(task="t", profile="full")
    assert results._front(frame) == brute_force_front(points)


def test_leaderboard_ratios_front_and_order():
    latency = [timed(9.0, runtime="eager"), timed(4.0, batch=64), timed(1.5)]
    dense = {"name": "dense", "accuracy": 0.99, "size": 400, "base": None, "nonzero": 100}
    sparse = {"name": "sparse", "accuracy": 0.98, "size": 40, "nonzero": 8, "latency": latency}
    poor = {"name": "poor", "accuracy": 0.97, "size": 50, "nonzero": 8, "latency": [timed(3.0, runtime="eager")]}
    unstored = {"name": "unstored", "accuracy": 1.0, "nonzero": 8}
    finished(profile="quick", models=[poor, sparse, dense, unstored])
    board = results.leaderboard("mnist").set_index("name")
    assert list(board.index) == ["unstored", "dense", "sparse", "poor"]
    assert board["front"].to_dict() == {"unstored": False, "dense": True, "sparse": True, "poor": False}
    assert board["weights_ratio"].to_dict() == {"unstored": 12.5, "dense": 1, "sparse": 12.5, "poor": 12.5}
    assert board.loc["sparse", "latency_ratio"] == 1.5
    assert board.loc["poor", "latency_ratio"] == 3.0, "what was timed first, where ONNX Runtime was not"
    assert math.isnan(board.loc["dense", "latency_ratio"])
    text = results.format_leaderboard(results.leaderboard()).to_string(index=False)
    assert "98.00" in text and "2,293,000" in text and "nan" not in text.lower()


def test_of_equal_accuracy_the_smaller_file_goes_first_and_then_the_name():
    rows = {"b": 20, "a": 20, "large": 90, "none": None}
    finished(profile="quick", models=[{"name": name, "size": size} for name, size in rows.items()])
    other = results.start("01_measure_first", profile="quick", seed=0)
    other.model("z", task="a first task", method="m", accuracy=0.1, weights=1, nonzero=1, macs=1)
    other.finish()
    assert results.leaderboard()["name"].tolist() == ["z", "a", "b", "large", "none"]


def test_leaderboard_averages_seeds_and_says_how_many():
    accuracies = [0.990, 0.992, 0.994]
    for seed, accuracy in enumerate(accuracies):
        finished(seed=seed, models=[{"accuracy": accuracy}])
    row = results.leaderboard().iloc[0]
    assert (row["n"], row["accuracy"]) == (3, pytest.approx(0.992))
    assert row["std"] == pytest.approx(statistics.stdev(accuracies))
    assert "99.20 ± 0.20 (n = 3)" in results.format_leaderboard(results.leaderboard()).to_string()


def test_each_seed_is_compared_with_its_own_base():
    for seed, size in enumerate([100, 50]):
        run = results.start(NB, profile="full", seed=seed)
        shared = {"task": "mnist", "accuracy": 0.9}
        run.model("thin", method="dense", weights=size, nonzero=size, macs=10 * size, base=None, **shared)
        run.model("cut", method="pruned", weights=size, nonzero=size // 10, macs=5 * size, base="thin", **shared)
        run.finish()
    row = results.leaderboard().set_index("name").loc["cut"]
    assert (row["weights_ratio"], row["macs_ratio"]) == (10, 2)
    assert row["weights_range"] == (10, 10) and row["macs_range"] == (2, 2)


def test_two_notebooks_that_measure_one_model_give_one_row():
    for notebook in (NB, "09_quantize_from_scratch"):
        finished(notebook, profile="quick", models=[{"size": 20}, {"name": notebook}])
    assert sorted(results.leaderboard()["name"]) == [NB, "09_quantize_from_scratch", "sparse"]
    finished("09_quantize_from_scratch", profile="quick", models=[{"size": 21}])
    assert sorted(results.leaderboard()["name"]) == [NB, "sparse", "sparse"], "of another size: another model"


def test_leaderboard_takes_more_seeds_then_build_and_never_mixes_the_two():
    for seed in (0, 1):
        finished(seed=seed, models=[{"accuracy": 0.5}])
    results.publish()
    results._build_file(NB, "full", 0).unlink()
    finished(seed=1, models=[{"accuracy": 0.75}])
    (row,) = results.leaderboard().to_dict("records")
    assert (row["n"], row["accuracy"], row["source"]) == (2, 0.5, "data")
    finished(seed=0, models=[{"accuracy": 0.75}])
    (row,) = results.leaderboard().to_dict("records")
    assert (row["n"], row["accuracy"], row["source"]) == (2, 0.75, "build")
    (row,) = results.leaderboard(build=False).to_dict("records")
    assert (row["n"], row["accuracy"], row["source"]) == (2, 0.5, "data")


def test_smoke_is_not_on_the_leaderboard_and_an_empty_one_is_a_table():
    finished(profile="smoke", models=[{}])
    assert len(results.leaderboard()) == 0
    assert len(results.format_leaderboard(results.leaderboard())) == 0


# ---------------------------------------------------------------- publishing


def test_promote_quick_publishes_the_result_without_the_file():
    finished(profile="quick", models=[{"size": 20}])
    path = results.promote_quick(NB)
    model = json.loads(path.read_text())["models"][0]
    assert "file" not in model and model["file_bytes"] == 20


def test_promote_quick_refuses_a_broken_claim_and_a_missing_run():
    with pytest.raises(FileNotFoundError, match="run it first"):
        results.promote_quick(NB)
    with pytest.raises(results.ClaimError):
        finished(profile="quick", claims=[("a", 3, 2, False)])
    with pytest.raises(results.ClaimError, match="seed 0, claim 'a'"):
        results.promote_quick(NB)
    assert not results._data_file(NB, "quick", 0).exists()


def test_publish_promotes_each_finished_seed_and_states_n(tmp_path):
    for seed in (0, 2):
        finished(seed=seed, claims=[("error", 0.5, 1, True)], models=[{"size": 20}])
    said = "\n".join(results.publish())
    assert "published for n = 2, seeds: 0, 2." in said
    assert "error: not yet decided" in said
    published = json.loads(results._data_file(NB, "full", 0).read_text())["models"][0]
    assert (tmp_path / "data" / published["file"]).read_bytes().startswith(b"sparse")
    assert "file" not in json.loads(results._data_file(NB, "full", 2).read_text())["models"][0]


def test_a_seed_that_comes_later_joins_the_published_ones():
    for seed, error in enumerate([0.9, 1.2, 0.8]):
        finished(seed=seed, claims=[("error", error, 1, True)])
        said = "\n".join(results.publish())
        results._build_file(NB, "full", seed).unlink()
    assert "error: holds" in said and "(n = 3)" in said and "0.9667 ± 0.2082" in said


def test_publish_says_that_seeds_ran_from_two_versions_of_the_source(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    said = []
    for seed, text in enumerate([b"# one\n", b"# one\n", b"# two\n"]):
        results.write_atomically(tmp_path / "notebooks" / "src" / f"{NB}.py", text)
        finished(seed=seed)
        said.append("\n".join(results.publish()))
    assert ["versions" in text for text in said] == [False, False, True]
    assert "Its seeds ran from 2 versions of the source; run the older ones again." in said[2]


@pytest.mark.parametrize("values", [[0.9, 1.2, 1.1], [0.5, math.nan, 0.5]])
def test_publish_checks_the_mean_over_seeds(values):
    for seed, error in enumerate(values):
        finished(seed=seed, claims=[("error", error, 1, True)])
    with pytest.raises(results.ClaimError, match=r"over seeds, error: does not hold.*n = 3"):
        results.publish(NB)
    assert not list(results.RESULTS.rglob("*.json"))


def test_a_seed_with_a_broken_claim_is_not_left_out_quietly():
    for seed, error in enumerate([0, 3, 0]):
        run = results.start(NB, profile="full", seed=seed)
        run.claim("a", "a", error, at_most=2)
        try:
            run.finish()
        except results.ClaimError:
            assert seed == 1
    with pytest.raises(results.ClaimError, match="seed 1, claim 'a'"):
        results.publish(NB)
    assert not list(results.RESULTS.rglob("*.json"))


def test_publish_copies_only_the_front_and_only_small_files(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "MAX_FILE_BYTES", 100)
    models = [
        {"name": "huge", "accuracy": 0.99, "size": 101},
        {"name": "good", "accuracy": 0.98, "size": 100},
        {"name": "worse", "accuracy": 0.97, "size": 100},
        {"name": "tiny", "accuracy": 0.90, "size": 9},
    ]
    finished(models=models)
    results.publish()
    assert sorted(p.name for p in (tmp_path / "data" / "models").iterdir()) == [
        "02-good.seed0.pack",
        "02-tiny.seed0.pack",
    ]


def test_publish_keeps_all_files_under_the_cap_and_writes_nothing_otherwise(monkeypatch, tmp_path):
    finished("01_measure_first", models=[{"size": 60}])
    results.publish("01_measure_first")
    finished(models=[{"size": 60}])
    monkeypatch.setattr(results, "MAX_FILES_BYTES", 100)
    with pytest.raises(ValueError, match="120 bytes; allowed: 100"):
        results.publish(NB)
    assert not results._data_file(NB, "full", 0).exists()
    assert len(list((tmp_path / "data" / "models").iterdir())) == 1
    results.publish("01_measure_first")  # a file in the place of itself takes no room
    monkeypatch.setattr(results, "MAX_FILES_BYTES", 120)
    results.publish(NB)
    monkeypatch.setattr(results, "MAX_FILES_BYTES", 119)
    with pytest.raises(ValueError, match="120 bytes; allowed: 119"):
        results.publish(NB)


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"other"), lambda p: p.unlink()])
def test_publish_verifies_the_files(damage, tmp_path):
    finished(models=[{"size": 20}])
    damage(tmp_path / "build" / "models" / "full" / "02-sparse.seed0.pack")
    with pytest.raises(ValueError, match="not what 02_prune_weights recorded"):
        results.publish(NB)
    assert not list(results.RESULTS.rglob("*.json"))


def test_publish_without_results():
    with pytest.raises(FileNotFoundError, match="no notebook has no full results"):
        results.publish()


# ---------------------------------------------------------------- the README's table


def test_readme_table_reads_data_only_and_says_how_many_seeds():
    assert results.readme_table() == "No results are published yet."
    finished(profile="quick", models=[{"accuracy": 0.9, "size": 20}])
    assert results.readme_table() == "No results are published yet."
    results.promote_quick(NB)
    assert "| sparse | magnitude | 90.00 (n = 1) | 10× | 1× | 20 bytes | here, quick |" in results.readme_table()
    for seed in range(3):
        finished(seed=seed, models=[{"accuracy": 0.99 + seed / 1000, "size": 20}])
    results.publish()
    table = results.readme_table()
    assert "| sparse | magnitude | 99.10 ± 0.10 (n = 3) | 10× | 1× | 20 bytes | here, full |" in table
    assert "here, quick" not in table
    assert "| LeNet-5 | sparse variational dropout | 99.25 | 280× | – | – |" in table
    assert torch.__version__ in table


def test_a_lucky_quick_run_takes_no_place_on_the_front_from_the_full_runs_of_its_model():
    finished(profile="quick", models=[{"accuracy": 0.95, "size": 20}])
    for seed in range(3):
        finished(seed=seed, models=[{"accuracy": 0.93 + seed / 100, "size": 20}])
    board = results.leaderboard().set_index("profile")
    assert board.loc["quick", "accuracy"] > board.loc["full", "accuracy"]
    assert board.loc["full", "front"] and not board.loc["quick", "front"]
    results.promote_quick(NB)
    results.publish()
    assert "94.00 ± 1.00 (n = 3)" in results.readme_table()


def test_readme_table_counts_macs_against_the_base_and_invents_no_spread():
    for seed in range(3):
        dense = {"name": "dense", "base": None, "accuracy": 0.9907, "macs": 2_000_000, "size": 50}
        thin = {"name": "thin", "base": "dense", "accuracy": 0.98 + seed / 1000, "macs": 800_000, "size": 20}
        finished(seed=seed, models=[dense, thin])
    results.publish()
    table = results.readme_table()
    assert "| dense | magnitude | 99.07 (one network) | " in table and " | 1× | 50 bytes |" in table
    assert " | 2.5× | 20 bytes |" in table


def test_readme_table_does_not_average_files_of_different_sizes():
    for seed, (size, macs) in enumerate([(200_000, 500_000), (3_000_000, 505_000)]):
        dense = {"name": "dense", "base": None, "macs": 1_000_000, "size": 4_000_000}
        finished(seed=seed, models=[dense, {"name": "cut", "base": "dense", "macs": macs, "size": size}])
    results.publish()
    assert " | 1.99× | 200,000 to 3,000,000 bytes |" in results.readme_table()


def test_readme_table_shows_models_that_were_never_packed():
    """A student differs from its base by its teacher, not by its bytes."""
    finished(models=[{"size": 20}, {"name": "alone", "base": None}, {"name": "taught", "base": "alone"}])
    results.publish()
    assert "| taught | magnitude | 99.00 (n = 1) | 10× | 1× | – | here, full |" in results.readme_table()


def test_say_prints_outside_a_notebook(capsys):
    results.say("**so**")
    assert capsys.readouterr().out == "**so**\n"


def test_say_displays_markdown_in_a_notebook(monkeypatch):
    import IPython
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace())
    monkeypatch.setattr(IPython.display, "display", lambda bundle, raw: shown.append(bundle))
    results.say("**so**")
    assert shown == [{"text/markdown": "**so**", "text/plain": "**so**"}]
