"""An environment of its own for each tool: what it pins harms nobody, and the torch of the course is used again."""

import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from helpers.core import paths
from helpers.course import setup
from helpers.tools.catalogue import TOOLS

LONGEST_INSTALL = 600  # seconds
STAMP = "tool-installed"


class ToolError(Exception):
    """A tool could not be installed, or its process ended; the message says what it said last."""


def folder(name: str) -> Path:
    """Return where a tool's environment and files lie: build/tools/NAME."""
    return paths.build_dir() / "tools" / name


def python(name: str) -> Path:
    """Return the Python of a tool's environment; a tool that the course itself uses needs none."""
    if not TOOLS[name].requirements:
        return Path(sys.executable)
    return setup.python_of(folder(name) / "venv")


def install(name: str) -> float:
    """Make the environment of a tool, unless it is there with the same pins; return the seconds that this took.

    It sees the packages of the Python that runs now, after its own: pip installs only what is missing, or what the tool
    pins to another version. Raises ToolError with pip's last lines.
    """
    if not TOOLS[name].requirements:
        return 0.0
    venv, wanted = folder(name) / "venv", json.dumps(TOOLS[name].requirements)
    stamp = venv / STAMP
    if stamp.exists() and stamp.read_text(encoding="utf-8").startswith(wanted + "\n"):
        return float(stamp.read_text(encoding="utf-8").splitlines()[1])
    began = time.monotonic()
    venv.parent.mkdir(parents=True, exist_ok=True)
    _call([sys.executable, "-m", "venv", "--clear", str(venv)], LONGEST_INSTALL)
    (_site_packages(venv) / "course.pth").write_text(_inherited(), encoding="utf-8")
    options = ["--no-input", "--disable-pip-version-check", "--quiet", "--progress-bar", "off", "--no-compile"]
    _call([str(python(name)), "-m", "pip", "install", *options, *TOOLS[name].requirements], LONGEST_INSTALL)
    seconds = time.monotonic() - began
    paths.write_atomically(stamp, f"{wanted}\n{seconds:.1f}\n".encode())
    return seconds


def _site_packages(venv: Path) -> Path:
    return Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))


def _inherited() -> str:
    return "".join(f"{folder}\n" for folder in (paths.ROOT, Path(sysconfig.get_path("purelib"))))


def brought(name: str) -> list[str]:
    """Return what installing a tool brought, or replaced, as name==version, sorted."""
    if not TOOLS[name].requirements:
        return []
    code = (
        "import json, sys; from importlib.metadata import distributions as d; "
        "print(json.dumps(sorted({f'{x.name}=={x.version}' for x in d(path=[sys.argv[1]])})))"
    )
    said = _call([str(python(name)), "-c", code, str(_site_packages(folder(name) / "venv"))], 60)
    return [each for each in json.loads(said) if each.partition("==")[0] not in ("pip", "setuptools")]


def call(name: str, module: str, *arguments: str, timeout: float) -> str:
    """Run a module of the course in a tool's environment; return what it printed. Raises ToolError."""
    return _call([str(python(name)), "-m", module, *arguments], timeout)


def _call(command: list[str], timeout: float) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PATH": os.pathsep.join([str(Path(command[0]).parent), environment.get("PATH", "")])}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=paths.ROOT)
    except subprocess.TimeoutExpired:
        raise ToolError(f"not finished in {timeout:.0f} s") from None
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ToolError(f"exit code {done.returncode}: {lines[-1][:300] if lines else 'no word'}")
    return done.stdout
