"""Each tool in a place of its own, which sees the course's packages and changes none of them."""

import subprocess
import sys
import zipfile

import pytest

from helpers.tools import environments
from helpers.tools.catalogue import Tool


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """A tool that is one wheel, made here: a module `hammer` of version 1.5."""
    wheel = tmp_path / "hammer-1.5-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("hammer.py", "print('imported')\n")
        archive.writestr("hammer-1.5.dist-info/METADATA", "Metadata-Version: 2.1\nName: hammer\nVersion: 1.5\n")
        archive.writestr("hammer-1.5.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("hammer-1.5.dist-info/RECORD", "")
    monkeypatch.setenv("COURSE_BUILD_DIR", str(tmp_path / "build"))
    tools = {"hammer": Tool("Hammer", (str(wheel),)), "none": Tool("The course's own", ())}
    monkeypatch.setattr(environments, "TOOLS", tools)
    return wheel


@pytest.mark.slow
def test_a_tool_is_installed_once_beside_the_packages_of_the_course(tool, monkeypatch):
    seconds = environments.install("hammer")
    assert seconds > 0 and environments.brought("hammer") == ["hammer==1.5"]
    assert environments.call("hammer", "hammer", timeout=60) == "imported\n"
    code = "import importlib.util as u; print(*[u.find_spec(n) is not None for n in ('hammer', 'torch', 'helpers')])"
    found = subprocess.run([environments.python("hammer"), "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True"] * 3
    assert subprocess.run([sys.executable, "-c", "import hammer"], capture_output=True).returncode == 1
    monkeypatch.setattr(environments, "_call", lambda *_: pytest.fail("installed again"))
    assert environments.install("hammer") == pytest.approx(seconds, abs=0.1)


@pytest.mark.slow
def test_other_pins_are_installed_anew_and_what_pip_refuses_is_said(tool, monkeypatch):
    environments.install("hammer")
    gone = Tool("Hammer", (str(tool.with_name("saw-1.0-py3-none-any.whl")),))
    monkeypatch.setitem(environments.TOOLS, "hammer", gone)
    with pytest.raises(environments.ToolError, match="exit code 1: ERROR: .*saw"):
        environments.install("hammer")
    with pytest.raises(environments.ToolError):  # half an installation is none
        environments.install("hammer")


def test_a_tool_of_the_course_needs_no_environment(tool):
    assert environments.install("none") == 0 and environments.brought("none") == []
    assert environments.python("none").samefile(sys.executable)


def test_a_process_that_ends_or_does_not_end_is_said_in_a_line(tool, tmp_path):
    with pytest.raises(environments.ToolError, match="exit code 3: last words"):
        environments._call([sys.executable, "-c", "import sys; print('last words', file=sys.stderr); sys.exit(3)"], 60)
    with pytest.raises(environments.ToolError, match="exit code 4: no word"):
        environments._call([sys.executable, "-c", "import sys; sys.exit(4)"], 60)
    with pytest.raises(environments.ToolError, match="not finished in 1 s"):
        environments._call([sys.executable, "-c", "import time; time.sleep(30)"], 1)
