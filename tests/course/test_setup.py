import ast
import errno
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from helpers.core import paths, system
from helpers.course import setup
from helpers.course.setup import SetupError

PYTHON = sys.executable  # a fixture pretends another
PIP = """#!/bin/sh
[ "$1" = -c ] && exit {runs}
echo "$@" >> "{folder}/calls"
[ "$2" = venv ] && {{ [ "$3" = --clear ] && shift; mkdir -p "$3/bin"; cp "{folder}/working" "$3/bin/python"; exit 0; }}
[ -e "{folder}/slow" ] && exec sleep 20
echo "Collecting torch==2.14.1"; echo "WARNING: harmless"; echo "ERROR: No matching distribution"; exit {code}
"""


def fake_python(path: Path, folder: Path, *, code: int = 0, runs: int = 0) -> Path:
    """Write a Python that records what it is called with; pip exits with `code`, and python -c with `runs`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PIP.format(folder=folder, code=code, runs=runs))
    path.chmod(0o755)
    return path


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with its own lock and pyproject, and a system Python that only pretends."""
    for name, content in {"requirements.lock": "numpy==1\n", "pyproject.toml": "[project]\n"}.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "LOCK", tmp_path / "requirements.lock")
    monkeypatch.setattr(setup, "PROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr(sys, "executable", str(fake_python(tmp_path / "system", tmp_path)))
    fake_python(tmp_path / "working", tmp_path)
    return tmp_path


def calls(project: Path) -> list[str]:
    return (project / "calls").read_text().splitlines()


# ---------------------------------------------------------------- which Python


@pytest.mark.parametrize("old", [(3, 7, 1), (3, 9, 18), (3, 10, 13)])
def test_an_old_python_is_told_so_in_one_line(old, monkeypatch):
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    with pytest.raises(SetupError, match=r"^this is Python 3\.\d+\.\d+, and the course needs 3.11 to .*$") as caught:
        setup.check_python(old)
    assert "\n" not in str(caught.value)


def test_an_old_python_hears_of_a_newer_one_on_this_machine(monkeypatch):
    monkeypatch.setattr(setup.shutil, "which", lambda name: name if name == "python3.12" else None)
    monkeypatch.setattr(setup, "_runs", lambda python, code: True)
    with pytest.raises(SetupError, match="make course PYTHON=python3.12"):
        setup.check_python((3, 8, 0))


@pytest.mark.parametrize(("new", "said"), [((3, 11, 0), ""), ((3, 13, 2), ""), ((3, 15, 0), "newer than what")])
def test_a_newer_python_is_tried(new, said, capsys, project):
    setup.check_python(new)
    assert said in capsys.readouterr().out


BEFORE = ["__init__", "__main__", *(f"core/{name}" for name in ("__init__", "checks", "paths", "system"))]
BEFORE += [f"course/{name}" for name in ("__init__", "running", "setup")]
BEFORE += [f"cli/{name}" for name in ("__init__", "commands", "testing")]


@pytest.mark.parametrize("name", BEFORE)
def test_what_runs_before_the_check_is_read_by_an_old_python(name):
    ast.parse((paths.ROOT / "helpers" / f"{name}.py").read_text(), feature_version=(3, 7))


# ---------------------------------------------------------------- what is installed


def pins(tmp_path: Path, lock: str, dependencies: str) -> tuple[Path, Path]:
    """Return a lock and a pyproject of a project that is installed here: pytest stands for it."""
    (tmp_path / "lock").write_text(f"# comment\n{lock}")
    (tmp_path / "toml").write_text(f'[project]\nname = "pytest"\ndependencies = [{dependencies}]\n')
    return tmp_path / "lock", tmp_path / "toml"


@pytest.mark.parametrize(
    ("lock", "dependencies", "expected"),
    [
        ("numpy=={numpy}\npytest-socket=={socket}\n", '"numpy", "pytest_socket>=0.1"', True),
        ("numpy==1.0.0\npytest-socket=={socket}\n", '"numpy", "pytest-socket"', False),
        ("numpy=={numpy}\nno-such-thing==1.0\n", '"numpy", "no-such-thing"', False),
        ("numpy=={numpy}\n", '"numpy", "pytest-socket"', False),
    ],
)
def test_an_environment_counts_only_with_every_pinned_version(tmp_path, lock, dependencies, expected):
    lock = lock.format(numpy=version("numpy"), socket=version("pytest-socket"))
    assert setup.holds_pins(*pins(tmp_path, lock, dependencies)) is expected


def test_a_cpu_build_of_the_pinned_version_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.14.1+cpu")
    assert setup.holds_pins(*pins(tmp_path, "torch==2.14.1\n", '"torch==2.14.1"'))
    assert not setup.holds_pins(*pins(tmp_path, "torch==2.14\n", '"torch"'))


def test_an_environment_without_the_project_itself_does_not_count(tmp_path):
    lock, toml = pins(tmp_path, f"numpy=={version('numpy')}\n", '"numpy"')
    toml.write_text(toml.read_text().replace("pytest", "not-installed-here"))
    assert not setup.holds_pins(lock, toml)


def test_damaged_pins_are_one_sentence(tmp_path):
    lock, toml = pins(tmp_path, "numpy==1\n", '"numpy"')
    for content in (b"numpy==1\nnumpy=\n", b"<html>", b"\xff\xfe"):
        lock.write_bytes(content)
        with pytest.raises(SetupError, match=r"lock is damaged at '.*'; restore it with git$"):
            setup.read_lock(lock)
    for content in ("[project", "[other]\n"):
        toml.write_text(content)
        with pytest.raises(SetupError, match=r"toml is damaged \(.*\); restore it with git$"):
            setup.holds_pins(lock, toml)


def test_pins_do_not_depend_on_line_ends(tmp_path):
    (tmp_path / "lock").write_bytes(b"# comment\r\n\r\nNum_Py==1.0\r\n")
    assert setup.read_lock(tmp_path / "lock") == {"num-py": "1.0"}


def test_a_damaged_stamp_is_an_unfinished_installation(project):
    venv = project / ".venv"
    setup.install(venv)
    for content in (b"", b"\xff", (venv / setup.STAMP).read_bytes()[:-1]):
        (venv / setup.STAMP).write_bytes(content)
        assert not setup.is_ready(venv)


@pytest.mark.parametrize(("error", "said"), [
    (OSError(errno.ENOSPC, "No space left", "/a"), "/a: No space left; free some space, or set COURSE"),
    (OSError(errno.EDQUOT, "Quota exceeded", b"/a"), "/a: Quota exceeded; free some space"),
    (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a: Permission denied; make it writable, or set"),
    (OSError(errno.EROFS, "Read-only", str(paths.ROOT / "build/x")), f"build{os.sep}x: Read-only; make it writable"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "/a"), "/a: Is a directory"),
    (FileNotFoundError("run it first"), "run it first"),
])  # fmt: skip
def test_an_error_of_the_disk_in_words(error, said):
    assert setup.in_words(error).startswith(said)


def test_a_stamp_that_cannot_be_written_is_one_sentence(project, monkeypatch):
    def refuse(path, data):
        raise OSError(errno.ENOSPC, "No space left", str(path))

    monkeypatch.setattr(setup, "write_atomically", refuse)
    with pytest.raises(SetupError, match="course-installed: No space left; free some space"):
        setup.install(project / ".venv")


def test_ready_means_finished_and_unchanged(project):
    venv = project / ".venv"
    assert not setup.is_ready(venv)
    setup.install(venv)
    assert setup.is_ready(venv)
    for name in ("requirements.lock", "pyproject.toml"):
        content = (project / name).read_text()
        (project / name).write_text(content + "# changed\n")
        assert not setup.is_ready(venv), name
        (project / name).write_text(content)
    assert setup.is_ready(venv)
    (venv / "bin" / "python").unlink()
    assert not setup.is_ready(venv)


# ---------------------------------------------------------------- installing


def test_install_makes_the_venv_and_calls_pip_with_the_constraints(project, monkeypatch):
    monkeypatch.setattr(setup.shutil, "which", lambda name: "/usr/bin/npm")
    setup.install(project / ".venv")
    made, pip = calls(project)
    assert made == f"-m venv --clear {project / '.venv'}"
    assert pip.startswith("-m pip install ") and pip.endswith(f"-c {project / 'requirements.lock'} -e .[cluster]")


def test_install_brings_npm_where_there_is_none(project, monkeypatch):
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    setup.install(project / ".venv")
    assert calls(project)[-1].endswith("-e .[cluster,npm]")


def test_install_keeps_a_venv_that_works_and_remakes_one_that_does_not(project):
    fake_python(project / ".venv/bin/python", project)
    setup.install(project / ".venv")
    assert [line for line in calls(project) if "-m venv" in line] == []
    fake_python(project / ".venv/bin/python", project, runs=1)
    setup.install(project / ".venv")
    assert [line for line in calls(project) if "-m venv" in line] == [f"-m venv --clear {project / '.venv'}"]


def test_a_failed_pip_shows_its_last_words_and_leaves_no_stamp(project):
    setup.install(project / ".venv")
    fake_python(project / ".venv/bin/python", project, code=1)
    (project / "requirements.lock").write_text("numpy==2\n")
    with pytest.raises(SetupError, match=r"(?s)install.log.*ERROR: No matching distribution") as caught:
        setup.install(project / ".venv")
    assert "harmless" not in str(caught.value)
    (project / "requirements.lock").write_text("numpy==1\n")
    assert not setup.is_ready(project / ".venv"), "the stamp of the older installation must be gone"


def test_an_interrupted_installation_is_taken_up_again(project, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    (project / "slow").touch()
    with monkeypatch.context() as patch:
        patch.setattr(setup.time, "sleep", interrupt)
        with pytest.raises(SetupError, match="interrupted"):
            setup.install(project / ".venv")
    assert not setup.is_ready(project / ".venv")
    (project / "slow").unlink()
    setup.install(project / ".venv")
    assert setup.is_ready(project / ".venv")


def test_a_python_without_venv_is_named_with_its_package(project, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(fake_python(project / "bare", project, runs=1)))
    with pytest.raises(SetupError, match=r"sudo apt install python3\.\d+-venv"):
        setup.install(project / ".venv")


def test_a_folder_that_cannot_be_written_is_one_sentence(project, monkeypatch):
    (project / "file").touch()
    monkeypatch.setenv("COURSE_BUILD_DIR", str(project / "file" / "build"))
    with pytest.raises(SetupError, match="could not write"):
        setup.install(project / ".venv")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "starting pip"),
        ("Collecting torch==2.14.1 (from course)", "collecting torch==2.14.1"),
        ("  Downloading https://example.org/a/torch-2.14.1-cp311.whl (800 MB)", "downloading torch-2.14.1-cp311.whl"),
        ("Installing collected packages: six, torch, numpy", "installing collected packages"),
        ("Collecting six\n  Building wheel for x (pyproject.toml): started", "building wheel for x (pyproject.toml)"),
    ],
)
def test_progress_says_what_pip_does(line, words, tmp_path):
    (tmp_path / "log").write_text(f"Obtaining file\n{line}\n    indented rest\n")
    assert setup._doing(tmp_path / "log") == words


# ---------------------------------------------------------------- ensure


@pytest.mark.parametrize(
    ("inside", "holds", "ready", "expected"),
    [
        (True, True, True, []),  # .venv's Python, nothing to do
        (True, True, False, ["install", "become"]),  # the pins changed, or pip was interrupted
        (False, True, False, []),  # conda or a container
        (False, False, True, ["become"]),
        (False, False, False, ["install", "become"]),
    ],
)
def test_ensure_installs_what_is_missing_and_goes_on_in_the_venv(inside, holds, ready, expected, project, monkeypatch):
    done = []
    monkeypatch.setenv("PATH", "before")
    monkeypatch.setattr(setup, "_is_venv", lambda venv: inside)
    monkeypatch.setattr(setup, "holds_pins", lambda: holds)
    monkeypatch.setattr(setup, "is_ready", lambda venv: ready)
    monkeypatch.setattr(setup, "install", lambda venv: done.append("install"))
    monkeypatch.setattr(setup, "become", lambda command: done.extend(["become", command]))
    monkeypatch.setattr(sys, "argv", ["helpers", "course", "02"])
    setup.ensure()
    assert [step for step in done if isinstance(step, str)] == expected
    if "become" in expected:
        assert done[-1] == [str(project / ".venv/bin/python"), "-m", "helpers", "course", "02"]
        assert os.environ["PATH"].split(os.pathsep) == [str(project / ".venv/bin"), "before"]


@pytest.mark.parametrize("wished", ["", "1"])
def test_compiled_code_is_kept_and_if_wished_beside_no_source(wished, project, monkeypatch):
    """Without it each kernel compiles torch anew, which takes as long as importing it."""
    for name, answer in {"_is_venv": False, "holds_pins": False, "is_ready": True}.items():
        monkeypatch.setattr(setup, name, lambda *_, answer=answer: answer)
    seen: list[str] = []
    code = "import os, sys; print(sys.dont_write_bytecode, sys.pycache_prefix)"

    def run(command):
        seen.extend(subprocess.run([PYTHON, "-c", code], capture_output=True, text=True).stdout.split())

    monkeypatch.setattr(setup, "become", run)
    monkeypatch.setenv("PATH", os.environ["PATH"])  # both are put back afterwards
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", wished)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "")
    setup.ensure()
    assert seen == ["False", str(project / ".venv/pycache") if wished else "None"]


@pytest.mark.parametrize("reported", ["posix", "nt"])
def test_become_passes_the_exit_code_on(reported):
    code = "raise SystemExit(7)"
    script = f"import os, sys; from helpers.course.setup import become; os.name = {reported!r}; "
    script += f"become([sys.executable, '-c', {code!r}])"
    assert subprocess.run([sys.executable, "-c", script], cwd=paths.ROOT).returncode == 7


def test_windows_keeps_its_python_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "name", "nt")
    assert str(setup.python_of(tmp_path)).endswith("Scripts/python.exe")


# ---------------------------------------------------------------- the machine


def test_machine_is_plain_json_and_agrees_with_torch_and_the_system():
    this = system.machine()
    assert list(this) == ["cpu", "cores", "threads", "vnni", "amx", "gpu", "memory_gb", "os", "python"]
    assert json.loads(json.dumps(this)) == this
    assert this["threads"] == torch.get_num_threads()
    assert 1 <= this["cores"] <= os.cpu_count()
    assert this["python"] == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize(
    ("cpuinfo", "vnni", "amx"),
    [
        ("flags : fpu avx2 avx_vnni", True, False),
        ("flags : fpu avx512_vnni amx_int8", True, True),
        ("flags : fpu avx2 avx512f", False, False),
        ("Features : fp asimd asimddp", True, False),
        ("Features : fp asimd", False, False),
        ("", False, False),
    ],
)
def test_integer_instructions_are_read_from_the_flags(cpuinfo, vnni, amx, monkeypatch):
    fields = dict([map(str.strip, cpuinfo.split(":"))]) if cpuinfo else {}
    monkeypatch.setattr(system.platform, "system", lambda: "Linux")
    monkeypatch.setattr(system, "_cpuinfo", lambda: fields)
    this = system.machine()
    assert (this["vnni"], this["amx"]) == (vnni, amx)


@pytest.mark.parametrize(("answer", "vnni"), [("1", True), ("0", False), ("", False)])
def test_apple_silicon_has_the_dot_product(answer, vnni, monkeypatch):
    monkeypatch.setattr(system.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(system, "_sysctl", lambda name: answer if "DotProd" in name else "Apple M4")
    this = system.machine()
    assert (this["cpu"], this["vnni"]) == ("Apple M4", vnni)


def test_versions_are_those_installed():
    assert system.versions()["torch"] == version("torch") == torch.__version__.split("+")[0]
