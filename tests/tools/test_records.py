"""The stored records: whole, of the pinned versions, and read as what they say."""

import json

import pandas as pd
import pytest

from helpers import tools
from helpers.core import system
from helpers.tools import environments, records, running
from helpers.tools.catalogue import ALL, TOOLS, Tool


def record(**changes):
    row = {"accuracy": 0.9, "lost": 1.0, "count": 100, "bytes": 30, "logits_error": 0.01, "facts": {}}
    network = {
        "dense": {"accuracy": 0.91, "count": 100},
        "float32_bytes": 120,
        "variants": {
            "int8": row | {"start": {"seconds": 0.5, "peak_memory_mb": 80.0, "torch": False}},
            "in PyTorch": row | {"in memory only": True},
            "half": {"failed": "RuntimeError: no"},
        },
        "latency": {"cold": {"int8": {"ratio": 1.5}, "in PyTorch": {"not timed": "one call takes 3.0 s"}}},
    }
    whole = {"tool": "hammer", "title": "Hammer", "requirements": [], "date": "2026-11-30T00:00:00+00:00"}
    return whole | {"machine": {}, "versions": {}, "networks": {"cifar_base": network}} | changes


def test_a_row_for_each_variant_also_for_what_failed():
    table = tools.variants({"hammer": record(), "saw": record(title="Saw", networks={}, failed="pip said no")})
    assert [*table["variant"]] == ["int8", "in PyTorch", "half", ""]
    first = table.iloc[0]
    assert (first["bytes"], first["lost"], first["cold"], first["start"], first["memory"]) == (
        0.25,
        1.0,
        1.5,
        0.5,
        80.0,
    )
    assert [*table["problem"]] == ["", "in memory only", "RuntimeError: no", "pip said no"]
    assert pd.isna(table.iloc[1]["cold"]) and pd.isna(table.iloc[2]["accuracy"])
    with pytest.raises(ValueError, match="records is empty"):
        tools.variants({})


def test_ones_own_records_come_before_the_stored_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "STORED", tmp_path / "stored")
    monkeypatch.setenv("COURSE_BUILD_DIR", str(tmp_path / "build"))
    for name in ("hammer", "saw"):
        running.write(record(tool=name, date="then"), tmp_path / "stored")
    running.write(record(date="now"), tmp_path / "build" / "tools")
    assert {name: found["date"] for name, found in tools.read().items()} == {"hammer": "now", "saw": "then"}


@pytest.mark.parametrize("content", ["{", "[1]", '{"tool": "hammer"}', "3"])
def test_a_damaged_record_says_how_to_make_it_anew(content, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "STORED", tmp_path)
    (tmp_path / "hammer.json").write_text(content)
    with pytest.raises(ValueError, match=r"hammer.json .*run python -m helpers tools hammer"):
        tools.read()


@pytest.fixture
def hammer(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD_DIR", str(tmp_path))
    monkeypatch.setitem(running.TOOLS, "hammer", Tool("Hammer", ("hammer==1.5",), ("lenet5",)))
    monkeypatch.setattr(environments, "install", lambda name: 2.5)
    monkeypatch.setattr(environments, "brought", lambda name: ["hammer==1.5"])
    return tmp_path / "tools" / "hammer" / "lenet5" / "found.json"


def test_a_process_that_ends_early_leaves_what_it_had_reported(hammer, monkeypatch):
    def call(name, module, *arguments, timeout):
        hammer.parent.mkdir(parents=True)
        hammer.write_text(json.dumps({"variants": {"a": {"accuracy": 1.0}}, "running": "b"}))
        raise environments.ToolError("exit code -11: no word")

    monkeypatch.setattr(environments, "call", call)
    found = running.record("hammer")
    assert found["networks"]["lenet5"] == {
        "variants": {"a": {"accuracy": 1.0}},
        "failed": "exit code -11: no word (at b)",
    }
    assert found["install_seconds"] == 2.5 and found["machine"] == system.machine()
    assert running.summary(found) == "1 of 1 conversions answer."


def test_starts_are_the_middle_of_three_in_fresh_processes(hammer, monkeypatch):
    said = iter([(0.9, 60), (0.5, 80), (0.6, 70)])

    def call(name, module, *arguments, timeout):
        if module == "helpers.tools.measuring":
            hammer.parent.mkdir(parents=True)
            hammer.write_text(json.dumps({"variants": {"a": {"file": "a/net"}}}))
            return ""
        assert arguments == ("hammer", "a", str(hammer.parent / "a" / "net"), "1,1,28,28")
        seconds, memory = next(said)
        return f"a warning\n{json.dumps({'seconds': seconds, 'peak_memory_mb': memory, 'torch': False})}\n"

    monkeypatch.setattr(environments, "call", call)
    row = running.record("hammer")["networks"]["lenet5"]["variants"]["a"]
    assert row == {"start": {"seconds": 0.6, "peak_memory_mb": 70, "torch": False}}


def test_a_tool_that_cannot_be_installed_is_a_record_that_says_so(hammer, monkeypatch):
    def install(name):
        raise environments.ToolError("exit code 1: no such version")

    monkeypatch.setattr(environments, "install", install)
    found = running.record("hammer")
    assert found["failed"] == "exit code 1: no such version" and found["networks"] == {}
    assert running.summary(found) == "Not installed: exit code 1: no such version."


def test_every_tool_has_a_stored_record_of_its_pinned_version():
    stored = {path.stem: json.loads(path.read_bytes()) for path in records.STORED.glob("*.json")}
    assert stored.keys() == TOOLS.keys()
    for name, found in stored.items():
        assert found["requirements"] == [*TOOLS[name].requirements], f"python -m helpers tools {name} --store"
        assert not found["networks"].keys() - {*ALL} and found["machine"]["cpu"]
        assert "failed" in found or found["networks"].keys() == {*TOOLS[name].networks}
    table = tools.variants(stored)
    assert table[table["accuracy"].notna()]["name"].nunique() >= 10
