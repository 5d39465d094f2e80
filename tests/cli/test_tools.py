"""`python -m helpers tools`: which tools, which networks, and where the records go."""

import pytest

from helpers.cli import commands
from helpers.core import paths
from helpers.course import setup
from helpers.tools import catalogue, records, running


@pytest.fixture
def asked(tmp_path, monkeypatch):
    done = []

    def record(name, networks):
        done.append((name, networks))
        return {"tool": name, "networks": {}, "failed": "no"} if name == "tvm" else {"tool": name, "networks": {}}

    monkeypatch.setattr(setup, "ensure", lambda: None)
    monkeypatch.setattr(running, "record", record)
    monkeypatch.setattr(records, "STORED", tmp_path / "stored")
    monkeypatch.setenv("COURSE_BUILD_DIR", str(tmp_path / "build"))
    return done


def test_all_tools_are_measured_into_the_build_folder_unless_some_are_named(asked, tmp_path, capsys):
    assert commands.main(["tools"]) == 0
    assert asked == [(name, ()) for name in catalogue.TOOLS]
    assert {path.stem for path in (tmp_path / "build" / "tools").glob("*.json")} == catalogue.TOOLS.keys()
    assert "Not installed: no." in capsys.readouterr().out and not (tmp_path / "stored").exists()


def test_records_for_the_page_are_stored_on_request(asked, tmp_path):
    assert commands.main(["tools", "ncnn", "iree", "--network", "lenet5", "--store"]) == 0
    assert asked == [("ncnn", ("lenet5",)), ("iree", ("lenet5",))]
    assert {path.name for path in (tmp_path / "stored").iterdir()} == {"ncnn.json", "iree.json"}


@pytest.mark.parametrize("arguments", [["hammer"], ["ncnn", "--network", "vgg"]])
def test_what_is_unknown_is_refused_before_anything_runs(arguments, asked, capsys):
    assert commands.main(["tools", *arguments]) == 2
    assert not asked and "allowed: " in capsys.readouterr().err


def test_stored_records_lie_in_the_data_folder():
    assert records.STORED == paths.TOOLS
