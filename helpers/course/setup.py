"""The Python that the course runs in: make `.venv`, and say what this machine is.

Standard library only, and nothing newer than Python 3.7 in its syntax: an old Python must get as far as the
sentence that says it is too old.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from helpers.core import paths
from helpers.core.paths import build_dir, sha256, write_atomically

OLDEST = (3, 11)
NEWEST_TESTED = (3, 13)
LOCK = paths.ROOT / "requirements.lock"
PROJECT = paths.ROOT / "pyproject.toml"
STAMP = "course-installed"  # in .venv: the digest of what was installed, written when pip has finished
REPORT_SECONDS = 30  # how often a log that is no terminal hears from pip


class SetupError(Exception):
    """The environment could not be made; the message says what to do."""


def ensure() -> None:
    """Go on in a Python that holds the pinned packages.

    That is the one that runs now, if it has them (a conda environment, a container), else `.venv`'s: made if
    there is none, mended if an installation was interrupted, brought up to date if the pins changed. The
    process is then replaced by the same command under `.venv`'s Python. Raises SetupError.
    """
    check_python()
    venv = paths.ROOT / ".venv"
    inside = _is_venv(venv)
    if not inside and holds_pins():
        return
    if not is_ready(venv):
        install(venv)
    elif inside:
        return
    python = python_of(venv)
    os.environ["PATH"] = os.pathsep.join([str(python.parent), os.environ.get("PATH", "")])  # npm, jupyter
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # as in containers: every kernel would compile torch anew
        os.environ["PYTHONPYCACHEPREFIX"] = str(venv / "pycache")  # beside no source, as was wished
    become([str(python), "-m", "helpers", *sys.argv[1:]])


def become(command: list[str]) -> NoReturn:
    """Replace this process by `command`."""
    sys.stdout.flush()
    if os.name != "nt":
        os.execv(command[0], command)
    try:  # Windows' exec returns to the shell at once and leaves the new process in the background
        raise SystemExit(subprocess.run(command).returncode)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> None:
    """Raise SetupError if Python is too old; say so if it is newer than what is tested."""
    mine = ".".join(map(str, version))
    tested = f"{_dotted(OLDEST)} to {_dotted(NEWEST_TESTED)}"
    if version[:2] < OLDEST:
        raise SetupError(f"this is Python {mine}, and the course needs {tested}.{_other_python()}")
    if version[:2] > NEWEST_TESTED and not _is_venv(paths.ROOT / ".venv"):
        print(f"Python {mine} is newer than what the course is tested with ({tested}); trying it.", flush=True)


def holds_pins(lock: Path = LOCK, project: Path = PROJECT) -> bool:
    """Return whether this Python has the project and its direct dependencies, in the pinned versions."""
    import tomllib
    from importlib.metadata import PackageNotFoundError, version

    try:
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    except (ValueError, LookupError) as error:
        raise SetupError(f"{_short(project)} is damaged ({error}); restore it with git") from error
    pins = read_lock(lock)
    names = [re.split(r"[^\w.-]", requirement)[0] for requirement in table["dependencies"]]
    try:
        version(table["name"])
        return all(version(name).split("+")[0] == pins.get(_canonical(name)) for name in names)  # "+cpu" is a build
    except PackageNotFoundError:
        return False


def read_lock(lock: Path = LOCK) -> dict[str, str]:
    """Return the pinned version of each package, by its canonical name (lower case, hyphens)."""
    lines = lock.read_text(encoding="utf-8", errors="replace").splitlines()
    pins = {}
    for line in lines:
        name, equal, version = line.partition("==")
        if equal:
            pins[_canonical(name)] = version
        elif line and not line.startswith("#"):
            raise SetupError(f"{_short(lock)} is damaged at {line[:40]!r}; restore it with git")
    return pins


def is_ready(venv: Path) -> bool:
    """Return whether `venv` holds a finished installation of what is pinned now."""
    stamp = venv / STAMP
    return python_of(venv).exists() and stamp.exists() and stamp.read_bytes().strip() == _digest().encode()


def install(venv: Path) -> None:
    """Make `venv` if it has no working pip, and install the pinned packages into it. Raises SetupError."""
    log = build_dir() / "install.log"
    began = time.monotonic()
    try:
        (venv / STAMP).unlink(missing_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        if not _runs(python_of(venv), "import pip"):
            _create(venv, log)
        print(
            f"Installing the pinned packages into {_short(venv)} (the first time: some minutes; on Linux, about 7 GB).",
            flush=True,
        )
        code = _follow(_pip_command(venv), log)
    except OSError as error:
        raise SetupError(f"could not write {_short(venv)} or {_short(log)}: {in_words(error)}") from error
    except KeyboardInterrupt:
        raise SetupError("interrupted; the next run takes the installation up again") from None
    if code != 0:
        raise SetupError(f"pip failed ({_short(log)} has all it said):\n{_tail(log)}")
    try:
        write_atomically(venv / STAMP, _digest().encode())
    except OSError as error:
        raise SetupError(in_words(error)) from error
    print(f"Installed in {_clock(time.monotonic() - began)}.", flush=True)


def in_words(error: OSError) -> str:
    """Return a sentence about an error of the disk: which file, why, and what to do."""
    place = f"{_short(Path(os.fsdecode(error.filename)))}: " if isinstance(error.filename, (str, bytes)) else ""
    said = f"{place}{error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{said}; free some space, or set COURSE_BUILD_DIR to a folder on another disk"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{said}; make it writable, or set COURSE_BUILD_DIR to a folder that is"
    return said


def python_of(venv: Path) -> Path:
    """Return the path of a virtual environment's Python."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_venv(venv: Path) -> bool:
    return Path(sys.prefix).resolve() == venv.resolve()


def _other_python() -> str:
    for minor in range(NEWEST_TESTED[1], OLDEST[1] - 1, -1):
        name = f"python3.{minor}"
        if shutil.which(name) and _runs(Path(name), "import ensurepip"):
            return f" You have one: make course PYTHON={name}, or {name} -m helpers course."
    return " Install one (python.org, your package manager, or conda env create -f environment.yml)."


def _runs(python: Path, code: str) -> bool:
    try:
        return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def _create(venv: Path, log: Path) -> None:
    if not _runs(Path(sys.executable), "import venv, ensurepip"):
        minor = _dotted(sys.version_info[:2])
        raise SetupError(
            f"this Python has no venv module; on Debian and Ubuntu: sudo apt install python{minor}-venv. "
            "Or use conda: conda env create -f environment.yml"
        )
    print(f"Making {_short(venv)} with Python {platform.python_version()}.", flush=True)
    # A folder whose Python still runs only lacks pip; one whose Python is gone is made afresh.
    afresh = [] if _runs(python_of(venv), "pass") else ["--clear"]
    done = subprocess.run([sys.executable, "-m", "venv", *afresh, str(venv)], capture_output=True, text=True)
    if done.returncode != 0:
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        raise SetupError(f"could not make {_short(venv)}:\n{_tail(log)}")


def _pip_command(venv: Path) -> list[str]:
    project = ".[cluster]" if shutil.which("npm") else ".[cluster,npm]"
    # Compiling every module of every package takes half of the time; Python compiles what it imports.
    options = ["--no-compile", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    return [str(python_of(venv)), "-m", "pip", "install", *options, "-c", str(LOCK), "-e", project]


def _follow(command: list[str], log: Path) -> int:
    """Run pip into `log` and show what it is at; return its exit code."""
    live = sys.stdout.isatty()
    began = reported = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=paths.ROOT, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            while process.poll() is None:
                time.sleep(0.3)
                now = time.monotonic()
                if live:
                    print(f"\r\033[K  {_clock(now - began)}  {_doing(log)}", end="", flush=True)
                elif now - reported > REPORT_SECONDS:
                    print(f"  {_clock(now - began)}  {_doing(log)}", flush=True)
                    reported = now
        finally:
            if live:
                print("\r\033[K", end="", flush=True)
            if process.poll() is None:
                process.terminate()
                process.wait()
    return process.returncode


def _doing(log: Path) -> str:
    """Return what pip said last, in a few words: "Downloading torch-2.14.1…"."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    steps = re.findall(r"^\s*(Collecting|Downloading|Processing|Building|Preparing|Installing) (.*)", text, re.M)
    if not steps:
        return "starting pip"
    verb, rest = steps[-1]
    if verb in ("Downloading", "Processing", "Collecting"):
        what = re.split(r"[/\\]", rest.split(" (")[0])[-1]
        return f"{verb.lower()} {what[:60]}"
    return f"{verb.lower()} {rest.split(':')[0][:60]}"


def _digest() -> str:
    return sha256(LOCK.read_bytes() + PROJECT.read_bytes())


def _tail(log: Path, lines: int = 12) -> str:
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in said if not line.startswith("WARNING")]
    return "\n".join(f"  {line}" for line in errors[-lines:])


def _short(path: Path) -> str:
    return str(path.relative_to(paths.ROOT)) if paths.ROOT in path.parents else str(path)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
