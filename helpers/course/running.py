"""Run a notebook from the command line, and say how it went."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from helpers.core import paths

BAR = "      {n_fmt}/{total_fmt} cells |{bar:30}| {elapsed}"


def fetch(chosen: list[Path]) -> None:
    """Fetch and verify the datasets that the chosen notebooks use."""
    from helpers import fetching
    from helpers.course import chapters

    for name in sorted({name for source in chosen for name in chapters.datasets(source)}):
        fetching.fetch(name)


def execute(source: Path, *, profile: str | None = None, seed: int = 0) -> list[str]:
    """Execute a notebook, to be stored if there is no profile; return why it failed, if it did."""
    from helpers.course import chapters, notebooks

    bar = {"bar_format": BAR, "leave": False, "file": sys.stdout, "disable": False} if sys.stdout.isatty() else None
    began = time.monotonic()
    try:
        if profile is None:
            notebooks.publish(source, progress=bar)
        else:
            notebooks.execute(source, profile=profile, seed=seed, progress=bar)
    except chapters.NotebookError as error:
        print(f"      failed after {time.monotonic() - began:.0f} s: {error}", flush=True)
        return [str(error)]
    print(f"      done in {time.monotonic() - began:.0f} s", flush=True)
    return []


def report(failures: list[str]) -> int:
    """Print why runs failed, if they did; return the exit code."""
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def shown(path: Path) -> str:
    """Return a path as text, relative to the project's folder if it lies inside it."""
    return str(path.relative_to(paths.ROOT)) if paths.ROOT in path.parents else str(path)
