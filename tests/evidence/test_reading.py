"""Tests of `helpers.evidence.reading`."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import evidence
from helpers.core import paths
from helpers.evidence import reading
from helpers.evidence.runs import _rows
from tests.evidence.evidence_examples import NB, finished, loaded


def test_settings_choose_the_profile():
    chosen = evidence.settings("quick", smoke={"epochs": 1}, quick={"epochs": 3}, full={"epochs": 30})
    assert chosen.epochs == 3


def test_settings_reject_unknown_profile_and_uneven_tables():
    with pytest.raises(ValueError, match="profile='fast'.*'smoke', 'quick', 'full'"):
        evidence.settings("fast", smoke={}, quick={}, full={})
    with pytest.raises(ValueError, match="full and smoke differ in epochs"):
        evidence.settings("quick", smoke={"epochs": 1}, quick={"epochs": 3}, full={})


def test_load_prefers_build():
    finished(profile="quick", models=[{"accuracy": 0.5}])
    evidence.promote_quick(NB)
    finished(profile="quick", models=[{"accuracy": 0.75}])
    assert loaded(NB, profile="quick").models[0].accuracy == 0.75
    reading.build_file(NB, "quick", 0).unlink()
    assert loaded(NB, profile="quick").models[0].accuracy == 0.5
    assert evidence.load(NB, profile="full") is None


def test_a_whole_file_is_read_as_it_was_written(rich):
    assert rich.read_text() == json.dumps(evidence.read(rich).record(), indent=1, ensure_ascii=False) + "\n", (
        "a diff has lines"
    )
    assert evidence.read(rich).record() == json.loads(rich.read_text())
    assert evidence.read(rich) == evidence.load(NB, profile="quick")


@pytest.mark.parametrize(
    "path", sorted(paths.RESULTS.rglob("*.seed*.json")), ids=lambda path: f"{path.parent.name} {path.stem}"
)
def test_every_published_file_is_given_back_as_it_is(path):
    assert evidence.read(path).record() == json.loads(path.read_text())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_byte_is_one_sentence_or_another_valid_result(data, rich):
    content = bytearray(rich.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = rich.with_name("x") / rich.name
    paths.write_atomically(path, bytes(content))
    try:
        result = evidence.read(path)
    except ValueError as error:
        assert f"{path} is damaged (" in str(error)
    else:
        assert list(_rows("build", 1, result))
        result.comparable()


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
        evidence.read(rich)


def test_a_number_that_json_does_not_know_is_damage(rich):
    rich.write_text(rich.read_text().replace('"loss": 0.5', '"loss": NaN'))
    with pytest.raises(ValueError, match="is damaged .*NaN; allowed: finite numbers"):
        evidence.read(rich)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"rows": 1'])
def test_a_damaged_literature_is_named(content):
    paths.write_atomically(paths.DATA / "literature.json", content)
    with pytest.raises(ValueError, match="literature.json is damaged .*restore it with git"):
        evidence.literature("mnist")


def test_measurements_are_collected_over_seeds():
    for seed in (2, 0):
        run = evidence.start(NB, profile="full", seed=seed)
        run.record("orders", {"first": seed / 10})
        run.finish()
    evidence.publish(NB)
    reading.build_file(NB, "full", 0).unlink()
    again = evidence.start(NB, profile="full", seed=2)
    again.record("orders", {"first": 0.9})
    again.finish()
    other = evidence.start(NB, profile="full", seed=1)
    other.record("something else", 1)
    other.finish()
    assert evidence.measurements(NB, "orders") == {0: {"first": 0.0}, 2: {"first": 0.9}}
    assert evidence.measurements(NB, "orders", profile="quick") == {}
    with pytest.raises(ValueError, match="profile='fast' is unknown"):
        evidence.measurements(NB, "orders", profile="fast")


def test_literature_is_complete_and_marks_what_was_not_read():
    lenet = evidence.literature("mnist", model="LeNet-5")
    ratios = dict(zip(lenet["method"], lenet["weights_ratio"], strict=True))
    assert ratios["sparse variational dropout"] == 280
    assert not lenet.set_index("method").loc["L0 regularization", "seen"]
    assert len(lenet) == 12
    seen = lenet[lenet["seen"]].set_index("method")["file_ratio"]
    assert seen["MIRACLE, lowest error"] == 555 and "MIRACLE, smaller" not in seen
    rows = json.loads((paths.DATA / "literature.json").read_text())["rows"]
    assert all(0 < row["accuracy"] <= 1 for row in rows if "accuracy" in row)
    assert all({"task", "model", "method", "year", "source", "seen"} <= row.keys() for row in rows)
    with pytest.raises(ValueError, match="task='mnits'"):
        evidence.literature("mnits")


def test_publish_promotes_each_finished_seed_and_states_n(tmp_path):
    for seed in (0, 2):
        finished(seed=seed, claims=[("error", 0.5, 1, True)], models=[{"size": 20}])
    said = "\n".join(evidence.publish())
    assert "published for n = 2, seeds: 0, 2." in said
    assert "error: not yet decided" in said
    published = json.loads(reading.data_file(NB, "full", 0).read_text())["models"][0]
    assert (tmp_path / "data" / published["file"]).read_bytes().startswith(b"sparse")
    assert "file" not in json.loads(reading.data_file(NB, "full", 2).read_text())["models"][0]
