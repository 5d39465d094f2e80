"""A scheduler and two worker processes on this machine, with tiny notebooks: `helpers.cluster`."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from helpers import __main__ as cli
from helpers import cluster, environment, notebooks, paths, results

pytest.importorskip("distributed")

NOTEBOOK = '''\
# %% tags=["parameters"]
PROFILE = "quick"
SEED = 0

# %%
import json, os, time
from pathlib import Path
from helpers import paths, results
place = Path({place!r})
with (place / "log").open("a") as log:
    print("begins", {name!r}, SEED, file=log)

# %%
results.Run._provenance = lambda self: {{"seconds": 1.0}}  # the real one imports torch
run = results.start({name!r}, profile=PROFILE, seed=SEED)
seen = os.environ.get("OMP_NUM_THREADS")
{body}
run.scratch("state").write_text(f"{{seen}} threads")
run.record("square", SEED**2)
run.finish()
with (place / "log").open("a") as log:
    print("ends", {name!r}, SEED, file=log)
'''
MODEL = """
(place / "net").write_bytes(bytes([SEED]))
run.model("net", task="mnist", method="none", accuracy=0.5, weights=4, nonzero=4, macs=4, file=place / "net")
"""
DIES = """
if (place / "die").exists():
    (place / "die").unlink()
    (place / "dying").write_text(f"{os.getppid()} {os.getpid()}")
    (place / "dying").rename(place / "victim")  # whole, or not there
    time.sleep(300)
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
from helpers import notebooks
conftest.pytest_configure()  # kernels that start side by side do not take each other's ports
notebooks.SOURCES = Path({sources!r})
"""


@pytest.fixture
def course(tmp_path, monkeypatch):
    """Four notebooks: one that only computes, one whose first worker dies, one that measures times, one that fails."""
    folder = tmp_path / "src"
    folder.mkdir()
    bodies = {"90_plain": MODEL, "91_dies": DIES, "92_timed": TIMED, "93_fails": FAILS}
    for name, body in bodies.items():
        (folder / f"{name}.py").write_text(NOTEBOOK.format(place=str(tmp_path), name=name, body=body))
    monkeypatch.setattr(notebooks, "SOURCES", folder)
    monkeypatch.setattr(environment, "ensure", lambda: None)
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


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def recorded(folder: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in sorted((folder / "results").rglob("*.json"))]
    return {f"{result['notebook']} {result['seed']}": results.comparable(result) for result in found}


RUNS = [("90_plain", 0), ("90_plain", 1), ("91_dies", 0), ("92_timed", 0)]


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
    command = ["course", "90", "91", "92", "93", "--profile", "full", "--seed", "0", "--scheduler", scheduler]
    code = cli.main(command)
    out, err = capsys.readouterr()
    print(out, err)
    print((course / "dask.log").read_text()[-3000:])
    assert code == 1 and err == "failed: x"
    killing.join(1)
    assert not killing.is_alive(), "no worker was killed"
    assert here == [("92_timed", 0, "1")], "times are measured here, with the threads of the training; nothing else is"
    print(out, err, (course / "log").read_text())


def kill_the_worker(course: Path) -> None:
    until((course / "victim").exists)
    worker, kernel = map(int, (course / "victim").read_text().split())
    psutil.Process(worker).kill()
    until(lambda: not psutil.pid_exists(kernel))
