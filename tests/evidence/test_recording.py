"""Results: claims cannot be faked, files are strict JSON, publishing neither mixes nor picks."""

import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import evidence, training
from helpers.core import identity, paths
from helpers.data import Split
from helpers.evidence import recording
from tests.evidence.evidence_examples import NB, add, finished, loaded, timed


@pytest.mark.parametrize(
    "notebook, profile, seed",
    [("02", "quick", 0), (NB, "slow", 0), (NB, "quick", -1), (2, "quick", 0), (NB, "quick", 0.5), (NB, "quick", True)],
)
def test_start_rejects(notebook, profile, seed):
    with pytest.raises(ValueError, match="allowed"):
        evidence.start(notebook, profile=profile, seed=seed)


@settings(deadline=None)
@given(value=st.floats(), bound=st.floats(allow_nan=False, allow_infinity=False))
def test_the_outcome_is_the_comparison(value, bound):
    run = evidence.start(NB, profile="quick", seed=0, save=False)
    run.claim("most", "m", value, at_most=bound)
    run.claim("least", "l", value, at_least=bound)
    most, least = run._claims.values()
    assert most.holds is (math.isfinite(value) and value <= bound)
    assert least.holds is (math.isfinite(value) and value >= bound)


def test_smoke_records_a_broken_claim_and_does_not_raise(capsys):
    finished(profile="smoke", claims=[("broken", 3, 2, False)])
    assert loaded(NB, profile="smoke").claims[0].holds is False
    assert "Recorded only (smoke)" in capsys.readouterr().out


def test_a_claim_shows_its_outcome(capsys):
    run = evidence.start(NB, profile="quick", seed=0, save=False)
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
    run = evidence.start(NB, profile="quick", seed=0, save=False)
    with pytest.raises(ValueError, match="claim 'a'"):
        run.claim("a", "a", 1, **bounds)


@pytest.mark.parametrize("value", [None, "0.5", [1, 2], torch.zeros(2), 1j])
def test_what_a_claim_measured_is_a_number(value):
    run = evidence.start(NB, profile="quick", seed=0, save=False)
    with pytest.raises(ValueError, match="claim 'a': value=.* is not a number; allowed: a finite number"):
        run.claim("a", "a", value, at_most=1)
    run.claim("a", "a", torch.tensor(0.5), at_most=np.float32(1))
    assert run._result().record()["claims"][0]["holds"] is True


@pytest.mark.parametrize(("id", "text"), [("", "a"), ("a", " "), (1, "a"), ("a", None)])
def test_a_claim_needs_a_name_and_a_text(id, text):
    run = evidence.start(NB, profile="quick", seed=0, save=False)
    with pytest.raises(ValueError, match="(id|text)=.*; allowed: a text"):
        run.claim(id, text, 1, at_most=1)


def test_a_claim_cannot_be_told_its_outcome():
    run = evidence.start(NB, profile="quick", seed=0, save=False)
    with pytest.raises(TypeError):
        run.claim("a", "a", 1, at_most=0, **{"holds": True})


def test_ids_and_names_stand_once():
    run = evidence.start(NB, profile="quick", seed=0, save=False)
    run.claim("a", "a", 1, at_most=2)
    with pytest.raises(ValueError, match="claim 'a' is there twice"):
        run.claim("a", "b", 1, at_most=2)
    add(run)
    with pytest.raises(ValueError, match="model 'sparse' is there twice"):
        add(run)


def test_a_cell_that_runs_again_replaces_what_it_said(monkeypatch):
    run = evidence.start(NB, profile="quick", seed=0, save=False)
    for execution, value in [(4, 3), (9, 1)]:
        monkeypatch.setattr(recording, "_execution_count", lambda n=execution: n)
        run.claim("a", "a", value, at_most=2)
        add(run, accuracy=value / 10)
    assert [c["value"] for c in run._result().record()["claims"]] == [1]
    assert [m["accuracy"] for m in run._result().record()["models"]] == [0.1]
    monkeypatch.setattr(recording, "_execution_count", lambda: 10)
    with pytest.raises(ValueError, match="twice"):
        run.claim("a", "another claim", 1, at_most=2)


def test_the_file_holds_what_the_design_says():
    result = finished(models=[{"size": 20}], claims=[("a", 1, 2, False)]).record()
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


def test_save_false_writes_nothing(tmp_path):
    run = evidence.start(NB, profile="quick", seed=0, save=False)
    run.finish()
    assert not list((tmp_path / "build").rglob("*.json"))


def test_numbers_from_numpy_torch_and_pandas_become_json():
    run = evidence.start(NB, profile="quick", seed=0)
    run.record("a", {"i": np.int64(3), "f": np.float32(0.5), "b": np.bool_(True), "t": torch.tensor([1, 2])})
    run.record("table", pd.DataFrame({"x": [1, 2], "y": ["p", "q"]}))
    run.record("seconds", [0.1], timing=True)
    run.finish()
    result = loaded(NB, profile="quick").record()
    assert result["measurements"]["a"] == {"i": 3, "f": 0.5, "b": True, "t": [1, 2]}
    assert result["measurements"]["table"] == [{"x": 1, "y": "p"}, {"x": 2, "y": "q"}]
    assert result["timings"] == {"seconds": [0.1]}


@pytest.mark.parametrize("bad", [math.nan, math.inf, np.float32("nan"), torch.tensor(math.inf)])
def test_nan_is_refused_by_the_name_of_its_field(bad):
    run = evidence.start(NB, profile="quick", seed=0, save=False)
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
    run = evidence.start(NB, profile="quick", seed=0)
    changed = {"name": "sparse", "weights": 100, "method": "magnitude", "task": "mnist"} | changed
    with pytest.raises(ValueError, match=said):
        add_any(run, **changed)
    assert run._result().record()["models"] == []
    assert not (paths.build_dir() / "models").exists()
    add(run)  # the name is still free


def add_any(run, *, name, accuracy=0.9, nonzero=10, macs=7, base="dense", size=None, **more):
    file = None
    if size is not None:
        file = run.scratch("any.pack")
        file.write_bytes(bytes(size))
    run.model(name, accuracy=accuracy, nonzero=nonzero, macs=macs, base=base, file=file, **more)


def test_the_least_and_the_most_that_a_model_may_be():
    run = evidence.start(NB, profile="quick", seed=0, save=False)
    for name, nonzero, accuracy in [("least", 1, 0.0), ("most", 100, 1.0)]:
        latency = [timed(1e-9, interval=[1e-9, 1e-9])]
        add_any(run, name=name, weights=100, nonzero=np.int64(nonzero), macs=torch.tensor(1), accuracy=accuracy,
                task="t", method="m", base=None, split="validation", latency=latency, note="n")  # fmt: skip
    kept = run._result().record()["models"]
    assert [(m["nonzero"], m["macs"], m["accuracy"], m["note"]) for m in kept] == [(1, 1, 0.0, "n"), (100, 1, 1.0, "n")]
    assert all(type(m["nonzero"]) is int for m in kept)


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", ""])
def test_a_state_lies_in_the_runs_own_folder(name):
    with pytest.raises(ValueError, match="name="):
        evidence.start(NB, profile="quick", seed=0).scratch(name)


def test_without_saving_no_file_of_a_model_is_copied(tmp_path):
    run = evidence.start(NB, profile="quick", seed=0, save=False)
    add(run, size=20)
    assert run._result().record()["models"][0]["file_bytes"] == 20
    assert not (tmp_path / "build" / "models").exists()


def test_test_evaluations_are_logged_each_time():
    torch.manual_seed(0)
    split = Split(torch.randn(8, 4), torch.randint(0, 3, (8,)), is_test=True)
    model = torch.nn.Linear(4, 3)
    run = evidence.start(NB, profile="quick", seed=0)
    with pytest.raises(ValueError, match="split.is_test=False; allowed: the test split"):
        run.test("net", model, replace(split, is_test=False))
    evaluation = run.test("net", model, split)
    run.test("net", model, split)
    run.finish()
    correct = int((model(split.inputs).argmax(1) == split.labels).sum())
    assert evaluation == training.evaluate(model, split)
    logged = {"name": "net", "accuracy": correct / 8, "correct": correct, "count": 8}
    assert loaded(NB, profile="quick").test_evaluations == [logged, logged]


def test_a_test_split_with_groups_says_what_its_answers_are_worth():
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    answers = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 0, 1, 1]), 2).float()  # one answer is wrong
    run = evidence.start(NB, profile="quick", seed=0)
    run.test("net", torch.nn.Identity(), Split(answers, labels, is_test=True, groups=[0, 0, 0, 1, 1, 1]))
    run.finish()
    (logged,) = loaded(NB, profile="quick").test_evaluations
    # Sums of the deviations from 5/6: 3/6 and -3/6, so the variance of the mean is 2 (1/4 + 1/4) / 36.
    assert logged["count"] == 6 and logged["independent"] == pytest.approx((5 / 36) / (1 / 36))


def test_comparable_drops_what_differs_between_runs():
    run = evidence.start(NB, profile="quick", seed=0)
    add(run, latency=[timed(2)])
    run.claim("time", "fast", 1, at_least=0, timing=True)
    run.claim("size", "small", 1, at_least=0)
    run.record("seconds", 3, timing=True)
    run.record("curve", [1, 2])
    run.finish()
    kept = loaded(NB, profile="quick").comparable()
    assert [c["id"] for c in kept["claims"]] == ["size"]
    assert kept["measurements"] == {"curve": [1, 2]}
    assert not {"provenance", "timings"} & kept.keys()
    assert "latency" not in kept["models"][0]


def test_scratch_belongs_to_notebook_profile_and_seed(tmp_path):
    path = evidence.start(NB, profile="full", seed=2).scratch("state.pt")
    assert path == tmp_path / "build" / "scratch" / "full" / f"{NB}.seed2" / "state.pt"
    assert path.parent.is_dir()


def test_the_time_of_a_resumed_run_counts_what_was_trained_before(monkeypatch):
    from helpers.training import resuming

    monkeypatch.setattr(resuming, "_resumed", [1_000.0])
    run = evidence.start(NB, profile="quick", seed=0)
    resuming._resumed.append(500.0)
    run.finish()
    assert 500 <= loaded(NB, profile="quick").provenance["seconds"] < 600


def test_without_a_training_nothing_was_resumed(monkeypatch):
    monkeypatch.delitem(sys.modules, "helpers.training", raising=False)
    assert recording._resumed_seconds() == 0.0


def test_of_equal_accuracy_the_smaller_file_goes_first_and_then_the_name():
    rows = {"b": 20, "a": 20, "large": 90, "none": None}
    finished(profile="quick", models=[{"name": name, "size": size} for name, size in rows.items()])
    other = evidence.start("01_measure_first", profile="quick", seed=0)
    other.model("z", task="a first task", method="m", accuracy=0.1, weights=1, nonzero=1, macs=1)
    other.finish()
    assert evidence.leaderboard()["model"].tolist() == ["z", "a", "b", "large", "none"]


def test_each_seed_is_compared_with_its_own_base():
    for seed, size in enumerate([100, 50]):
        run = evidence.start(NB, profile="full", seed=seed)
        shared = {"task": "mnist", "accuracy": 0.9}
        run.model("thin", method="dense", weights=size, nonzero=size, macs=10 * size, base=None, **shared)
        run.model("cut", method="pruned", weights=size, nonzero=size // 10, macs=5 * size, base="thin", **shared)
        run.finish()
    row = evidence.leaderboard().set_index("model").loc["cut"]
    assert (row["weights_ratio"], row["macs_ratio"]) == (10, 2)
    assert row["weights_ratio_low"] == row["weights_ratio_high"] == 10 and row["networks"] == 2


def test_say_prints_outside_a_notebook(capsys):
    evidence.say("**so**")
    assert capsys.readouterr().out == "**so**\n"


def test_say_displays_markdown_in_a_notebook(monkeypatch):
    import IPython
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace())
    monkeypatch.setattr(IPython.display, "display", lambda bundle, raw: shown.append(bundle))
    evidence.say("**so**")
    assert shown == [{"text/markdown": "**so**", "text/plain": "**so**"}]


@pytest.mark.parametrize(
    ("interval", "outcome", "said"),
    [((1.4, 1.6), True, "Holds"), ((1.2, 1.6), None, "Undecided"), ((1.1, 1.25), False, "Does not hold")],
)
def test_a_claim_about_time_is_decided_by_its_interval(interval, outcome, said, capsys):
    run = evidence.start(NB, profile="quick", seed=0)
    value = sum(interval) / 2
    run.claim("fast", "Times as fast", value, at_least=1.3, timing=True, interval=interval)
    assert f"**{said}" in capsys.readouterr().out
    if outcome is False:
        with pytest.raises(evidence.ClaimError, match="fast"):
            run.finish()
    else:
        run.finish()
    stored = loaded(NB, profile="quick").claims[0].record()
    assert stored["holds"] is outcome and stored["interval"] == list(interval)


def test_an_interval_holds_its_value():
    run = evidence.start(NB, profile="quick", seed=0)
    with pytest.raises(ValueError, match="claim 'fast': interval=.*; allowed: one that holds value=2.0"):
        run.claim("fast", "Times as fast", 2.0, at_least=1.3, interval=(1.0, 1.5))


def test_a_result_says_where_it_comes_from():
    finished()
    result = loaded(NB, profile="full").record()
    assert result["schema"] == 2
    provenance = result["provenance"]
    source = paths.ROOT / f"notebooks/src/{NB}.py"
    assert provenance["helpers_sha256"] == identity.of_notebook(source)
    assert provenance["torch"] == torch.__version__ and provenance["torch"].startswith(provenance["versions"]["torch"])
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=paths.ROOT, capture_output=True, text=True).stdout.strip()
    assert (provenance["commit"] or "").rstrip("+") == head
