"""A scheduler and two worker processes on this machine, with tiny notebooks: `helpers.course.cluster`."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from helpers import evidence
from helpers.cli import commands
from helpers.core import paths
from helpers.course import chapters, cluster, notebooks, setup
from helpers.course.setup import SetupError
from tests.evidence.evidence_examples import clocked, recorded_model

pytest.importorskip("distributed")

NAMES = ["90_plain", "91_dies", "92_timed", "93_fails"]
PROVENANCE = {
    "seconds": 1.0,
    "started": "now",
    "torch": "2",
    "helpers_version": "0",
    "source_sha256": None,
    "helpers_sha256": None,
    "commit": None,
    "versions": {},
    "machine": "a",
}
NOTEBOOK = """\
# %% tags=["parameters"]
PROFILE = "quick"
SEED = 0

# %%
import json, os, time
from pathlib import Path
from helpers import evidence
from helpers.core import paths
place = Path({place!r})
with (place / "log").open("a") as log:
    print("begins", {name!r}, SEED, file=log)

# %%
evidence.Run._provenance = lambda self: {provenance!r}  # the real one imports torch
run = evidence.start({name!r}, profile=PROFILE, seed=SEED)
seen = os.environ.get("OMP_NUM_THREADS")
{body}
run.scratch("state").write_text(f"{{seen}} threads")
run.record("square", SEED**2)
run.finish()
with (place / "log").open("a") as log:
    print("ends", {name!r}, SEED, file=log)
"""
MODEL = """
(place / "net").write_bytes(bytes([SEED]))
run.model("net", task="mnist", method="none", accuracy=0.5, weights=4, nonzero=4, macs=4, file=place / "net")
"""
DIES = """
if (place / "die").exists():
    (place / "die").unlink()
    (place / "dying").write_text(f"{os.getppid()} {os.getpid()}")
    (place / "dying").rename(place / "victim")  # whole, or not there
    time.sleep(600)
"""
TIMED = """
run.claim("fast", "Times as fast, alone on the machine", 2.0 if (place / "alone").exists() else 0.5,
          at_least=1.0, timing=True)
"""
FAILS = """
run.claim("small", "Bytes", 3, at_most=2)
"""
PRELOAD = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
import conftest
from helpers.core import system
from helpers.course import chapters
conftest.pytest_configure()  # kernels that start side by side do not take each other's ports
system._torch_devices = lambda: (1, None)  # the real one imports torch
chapters.SOURCES = Path({sources!r})
"""


@pytest.fixture
def course(tmp_path, monkeypatch):
    """Four notebooks: one that only computes, one whose first worker dies, one that measures times, one that fails."""
    folder = tmp_path / "src"
    folder.mkdir()
    for name, body in zip(NAMES, [MODEL, DIES, TIMED, FAILS], strict=True):
        (folder / f"{name}.py").write_text(
            NOTEBOOK.format(place=str(tmp_path), name=name, body=body, provenance=PROVENANCE)
        )
    monkeypatch.setattr(chapters, "SOURCES", folder)
    monkeypatch.setattr(setup, "ensure", lambda: None)
    monkeypatch.setattr(evidence, "leaderboard", lambda damaged: [])
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    return tmp_path


@pytest.fixture
def scheduler(course):
    """A Dask scheduler on loopback with two worker processes of one thread each; its address."""
    (course / "preload.py").write_text(PRELOAD.format(root=str(paths.ROOT), sources=str(course / "src")))
    started = [dask(course, "scheduler", "--port=0", f"--scheduler-file={course / 'scheduler.json'}")]
    try:
        until((course / "scheduler.json").exists)
        address = json.loads((course / "scheduler.json").read_text())["address"]
        options = ["--no-nanny", "--nthreads=1", f"--preload={course / 'preload.py'}", f"--local-directory={course}"]
        started += [dask(course, "worker", address, *options) for _ in "ab"]
        yield address
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


def dask(folder: Path, command: str, *options: str) -> subprocess.Popen:
    call = [sys.executable, "-m", "dask", command, "--host=127.0.0.1", "--no-dashboard", *options]
    # As on another machine: build/ is not the client's, and the number of threads is not this process's.
    variables = {"COURSE_BUILD_DIR": str(folder / "far"), "OMP_NUM_THREADS": "7", "PYTHONPATH": str(paths.ROOT)}
    with (folder / "dask.log").open("a") as log:
        return subprocess.Popen(call, env=os.environ | variables, stdout=log, stderr=log)


def until(condition, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_a_worker_that_dies_loses_nothing_and_nothing_counts_twice(course, scheduler, capsys, monkeypatch):
    (course / "die").touch()
    killing = threading.Thread(target=kill_the_worker, args=[course], daemon=True)
    killing.start()
    execute, here = notebooks.execute, []

    def execute_alone(source, *, profile, seed, progress):
        here.append((source.stem, seed, os.environ["OMP_NUM_THREADS"]))
        (course / "alone").touch()
        return execute(source, profile=profile, seed=seed, progress=progress)

    monkeypatch.setattr(notebooks, "execute", execute_alone)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    command = ["course", "--profile", "full", "--seed", "2"]
    code = commands.main([*command, "--scheduler", scheduler])
    out, err = capsys.readouterr()
    print(out)
    assert code == 1 and err.startswith("failed: 93_fails, cell [4]"), "the one claim that time has no part in"
    assert "claim 'small' does not hold: 3, claimed at most 2\n  The whole traceback: build/notebooks/full/93" in err
    killing.join(1)
    assert not killing.is_alive(), "no worker was killed"
    assert here == [("92_timed", 2, "1")], "times are measured here, with the threads of the training; nothing else is"
    log = (course / "log").read_text().splitlines()
    begun = {name: log.count(f"begins {name} 2") for name in NAMES}
    assert begun == {"90_plain": 1, "91_dies": 2, "92_timed": 2, "93_fails": 1}
    ended = {name: log.count(f"ends {name} 2") for name in NAMES}
    assert ended == {"90_plain": 1, "91_dies": 1, "92_timed": 1, "93_fails": 0}, "on the cluster, 92's claim fails"
    left = [path.name.split("-")[1] for path in (course / "far").iterdir()]
    assert left == ["91_dies"], "only a worker that was killed could not tidy up"

    monkeypatch.setenv("COURSE_BUILD_DIR", str(course / "undisturbed"))
    assert commands.main(command) == 1
    assert written(course / "build") == written(course / "undisturbed")
    assert len(written(course / "build")) == 4 + 4 + 1, "results, notebooks, one model"


def kill_the_worker(course: Path) -> None:
    until((course / "victim").exists)
    worker, kernel = map(int, (course / "victim").read_text().split())
    psutil.Process(worker).kill()
    until(lambda: not psutil.pid_exists(kernel))


def written(build: Path) -> dict[str, object]:
    """Return what a run wrote under build/, without times, and without the states of trainings."""
    found: dict[str, object] = {}
    for path in sorted(path for path in build.rglob("*") if path.is_file() and "scratch" not in path.parts):
        content: object = path.read_bytes()
        if path.suffix == ".json":
            content = evidence.read(path).comparable()
        if path.suffix == ".ipynb":
            cells = json.loads(path.read_text())["cells"]
            content = [(cell["source"], [kind["output_type"] for kind in cell.get("outputs", [])]) for cell in cells]
        found[path.relative_to(build).as_posix()] = content
    return found


# ---------------------------------------------------------------- without a cluster

CLAIM = {"id": "a", "text": "t", "value": 1, "at_most": 2, "holds": True, "over_seeds": False}


@pytest.mark.parametrize(
    ("source", "result", "expected"),
    [
        ("", {}, False),
        ("", {"timings": {"seconds": 3.0}}, True),
        ("", {"claims": [CLAIM | {"timing": False}]}, False),
        ("", {"claims": [CLAIM | {"timing": True}]}, True),
        ("", {"models": [recorded_model("a", 0.5)]}, False),
        ("", {"models": [recorded_model("a", 0.5, latency=[clocked(2.0)])]}, True),
        ("# ---\n# jupyter:\n#   reads: [05_after_pruning]\n# ---\n", {}, True),
        ('net = checkpoints.load("lenet5")', {}, False),
        ("# ---\n# jupyter:\n#   reads: [all]\n# ---\n", None, True),
        ("1 / 0", None, False),
    ],
)
def test_what_holds_a_time_or_reads_others_is_executed_here(source, result, expected, tmp_path):
    path = tmp_path / "90_a.py"
    path.write_text(source)
    whole = {"notebook": "90_a", "profile": "quick", "seed": 0, "provenance": PROVENANCE}
    whole |= {"claims": [], "models": [], "test_evaluations": [], "measurements": {}, "timings": {}}
    content = None if result is None else json.dumps(whole | result).encode()
    assert cluster._to_measure(path, content) is expected


def test_a_worker_that_refuses_is_heard_even_if_the_notebook_reads_others(tmp_path):
    source = tmp_path / "90_a.py"
    source.write_text("rows = board.runs()")
    said = "another version of the course; bring all to the same commit"
    future = SimpleNamespace(
        status="finished",
        exception=lambda: None,
        result=lambda: cluster._Returned("worker", 2, 1.0, {}, said),
    )
    outcome = cluster.Outcome(set(), [], {})
    assert cluster._collect(future, (source, 0), "full", outcome).endswith("failed")
    assert outcome.failures == [said] and not outcome.to_measure


class Waiting:
    """A client whose one worker is idle, and takes nothing until some seconds are over; the clock is the test's own."""

    def __init__(self, seconds: float, clock: list[float]) -> None:
        self.seconds, self.clock, self.futures = seconds, clock, []

    def processing(self):
        taken = [future.key for future in self.futures if self.clock[0] >= self.seconds and not future.done()]
        return {"worker": tuple(taken)}

    def submit(self, *arguments, key, **options):
        self.futures.append(Handed(key, lambda: self.clock[0] >= self.seconds + 5))
        return self.futures[-1]


class Handed:
    """What `Waiting.submit` gives: done once a condition holds, and then with a result without files."""

    status = "finished"

    def __init__(self, key: str, done) -> None:
        self.key, self.done = key, done

    def exception(self):
        return None

    def result(self):
        return cluster._Returned("worker", 2, 1.0, {}, "")


@pytest.mark.parametrize(("seconds", "times"), [(0, 0), (5, 0), (60, 1)])
def test_a_worker_that_takes_nothing_is_said_after_some_seconds_and_once(seconds, times, course, monkeypatch):
    clock = [0.0]

    def wait(futures, *, timeout, return_when):
        clock[0] += timeout
        if not any(future.done() for future in futures):
            raise TimeoutError

    monkeypatch.setattr(cluster.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("distributed.wait", wait)
    said: list[str] = []
    each, outcome = (chapters.sources()[0], 3), cluster.Outcome(set(), [], {})
    cluster._hand_out(Waiting(seconds, clock), [each], "quick", outcome, said.append)
    assert [line.startswith("No worker takes 90_plain, seed 3. Dask pauses") for line in said] == [True] * times + [
        False
    ]
    assert outcome.final == {each}


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"threads": 4}', b'{"threads": "4"}'])
def test_a_damaged_note_about_states_is_none(content, course):
    each = chapters.sources()[0], 1
    cluster._note_states(each, "full", 4)
    assert cluster._threads_of_states(each, "full") == 4
    cluster._note(each, "full").write_bytes(content)
    assert cluster._threads_of_states(each, "full") is None


def test_states_that_are_here_are_not_trained_again(course):
    """Whoever was interrupted between the two passes goes on with the second: the address is not even asked."""
    each = chapters.sources()[2], 1
    cluster._note_states(each, "full", 4)
    outcome = cluster.run("tcp://127.0.0.1:9", [each], profile="full")
    assert outcome == cluster.Outcome(set(), [], {each: 4})
    for changed in ({"again": True}, {"profile": "quick"}):
        with pytest.raises(SetupError, match="no Dask scheduler answers"):
            cluster.run("tcp://127.0.0.1:9", [each], **{"profile": "full"} | changed)
    each[0].write_text(each[0].read_text() + "# another version\n")
    with pytest.raises(SetupError, match="no Dask scheduler answers"):
        cluster.run("tcp://127.0.0.1:9", [each], profile="full")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense", "127.0.0.1:port"])
def test_an_address_without_a_scheduler_is_one_sentence(address, course, capsys):
    assert commands.main(["course", "90", "--scheduler", address]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: no Dask scheduler answers at {address} (") and err.count("\n") == 1
    assert "Traceback" not in err


def test_without_distributed_the_error_says_how_to_install_it(course, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert commands.main(["course", "90", "--scheduler", "tcp://127.0.0.1:9"]) == 1
    assert "pip install -c requirements.lock -e .[cluster]" in capsys.readouterr().err


def test_another_version_of_the_course_is_refused_by_the_worker(course, tmp_path):
    said = cluster._failure("90_plain", "quick", 0, {"source_sha256": "other"}, tmp_path, 1)
    assert said.startswith("90_plain: a worker's clone has another version")
