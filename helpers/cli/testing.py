"""`make test` and `make check`: what is run, and what is said at the end."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers.core import paths
from helpers.core.durations import duration
from helpers.course import running

CHECKS = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]]
SIDE_BY_SIDE = 2  # notebooks; each takes up to 3 GB
PARALLEL = ["--numprocesses=auto", "--maxprocesses=4"]  # pytest-xdist: each process imports torch, half a gigabyte


def data(args: argparse.Namespace) -> int:
    """Fetch and verify all datasets. Return the exit code."""
    from helpers import fetching

    for name in ("mnist", "cifar10", "imdb", "minilm"):
        print(f"{name}: {running.shown(fetching.fetch(name))}")
    return 0


def test(args: argparse.Namespace) -> int:
    """Run every test: the unit tests, and every notebook in quick and, twice, in smoke. Return the exit code."""
    from helpers.course import chapters

    began = time.monotonic()
    data(args)
    folder = paths.ROOT / "build" / "test"  # not the reader's own results
    shutil.rmtree(folder, ignore_errors=True)
    os.environ["COURSE_BUILD_DIR"] = str(folder)
    wrong = _checked()
    parts = {"linter, formatter, types": Counter(failed=len(wrong), passed=len(CHECKS) - len(wrong))}
    parts["unit tests"] = _pytest(folder / "unit.xml", ["-p", "no:nbval", "tests"])
    print("\nEvery notebook in the quick profile, its claims asserted", flush=True)
    untimed = [source for source in chapters.sources() if not chapters.is_timed(source)]
    failures = _side_by_side(untimed)
    for source in (source for source in chapters.sources() if source not in untimed):
        failures += running.execute(source, profile="quick", seed=0)
    parts["notebooks, quick"] = Counter(failed=len(failures), passed=len(chapters.sources()) - len(failures))
    built = [str(path) for path in sorted(paths.NOTEBOOKS.glob("*.ipynb"))]
    single = {"OMP_NUM_THREADS": "1"}  # the tests run side by side
    smoke = {"COURSE_PROFILE": "smoke", "COURSE_BUILD_DIR": str(folder / "smoke"), **single}
    if built:
        options = ["--nbval-lax", "--nbval-current-env", "--dist=loadfile", *built]  # the cells of one in one kernel
        parts["notebooks, nbval smoke"] = _pytest(folder / "nbval.xml", options, **smoke)
    first = {"COURSE_SMOKE_DIR": str(folder / "smoke")} if built else {}
    options = ["-m", "notebook", "tests"]
    parts["notebooks, offline and repeated"] = _pytest(folder / "notebook.xml", options, **first, **single)
    parts["the book, in a browser"] = _book(folder)
    running.report(failures)
    return _closing(parts, time.monotonic() - began)


def _book(folder: Path) -> Counter[str]:
    """Build the website and look at it in a browser; return how many tests passed, failed and were skipped."""
    from helpers import book, fetching

    print("\nThe book, built and looked at in a browser", flush=True)
    try:
        book.build(folder / "book")
    except (book.BookError, fetching.SourceError) as error:  # what ran before is still to be summed up
        print(error, file=sys.stderr)
        return Counter(failed=1)
    options = ["-p", "no:nbval", "-m", "browser", "--dist=loadscope", "tests/book"]
    return _pytest(folder / "browser.xml", options, COURSE_BOOK_DIR=str(folder / "book"))


def _side_by_side(sources: list[Path]) -> list[str]:
    """Execute notebooks in quick, two at a time with a thread each; return why those failed that did."""

    def one(source: Path) -> list[str]:
        began = time.monotonic()
        command = [sys.executable, "-m", "helpers", "course", source.stem, "--profile", "quick"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=paths.ROOT, env=environment, capture_output=True, text=True)
        print(f"      {source.stem}: done in {time.monotonic() - began:.0f} s", flush=True)
        failed = [line.removeprefix("failed: ") for line in done.stderr.splitlines() if line.startswith("failed: ")]
        return failed or ([] if done.returncode == 0 else [f"{source.stem}: {done.stderr.strip()[-400:]}"])

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        return [line for failed in pool.map(one, sources) for line in failed]


def _closing(parts: dict[str, Counter[str]], seconds: float) -> int:
    """Print what each part gave and, last, one line over all; return the exit code."""
    print(f"\nDone in {duration(seconds)}")
    for name, counts in parts.items():
        print(f"  {name:32} {_counts(counts)}")
    total = sum(parts.values(), Counter())
    print(_counts(total), flush=True)
    return 1 if total["failed"] or not total["passed"] else 0


def _counts(counts: Counter[str]) -> str:
    return f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"


def _pytest(report: Path, options: list[str], **variables: str) -> Counter[str]:
    """Run pytest on all cores; return how many tests passed, failed and were skipped, as its report says."""
    from helpers.course.notebooks import kernel_environment

    report.parent.mkdir(parents=True, exist_ok=True)
    with kernel_environment(**variables):
        command = [sys.executable, "-m", "pytest", "-q", *PARALLEL, f"--junitxml={report}", *options]
        code = subprocess.run(command, cwd=paths.ROOT).returncode
    suite = ElementTree.parse(report).find(".//testsuite") if report.exists() else None
    seen = {name: int(value) for name, value in suite.items() if value.isdigit()} if suite is not None else {}
    failed, skipped = seen.get("failures", 0) + seen.get("errors", 0), seen.get("skipped", 0)
    passed = max(seen.get("tests", 0) - failed - skipped, 0)
    return Counter(passed=passed, skipped=skipped, failed=max(failed, int(code not in (0, 5))))


def _checked(tools: list[list[str]] = CHECKS) -> list[str]:
    """Run the tools that look at the code; return the names of those that found something."""
    codes = [subprocess.run([sys.executable, "-m", *tool], cwd=paths.ROOT).returncode for tool in tools]
    return [tool[0] for tool, code in zip(tools, codes, strict=True) if code]


def check(args: argparse.Namespace) -> int:
    """Run the linter, the formatter, the type checker and the fast tests. Return the exit code."""
    fast = [
        "pytest",
        "-q",
        *PARALLEL,
        "-p",
        "no:nbval",
        "-m",
        "not notebook and not browser and not slow and not data",
        "tests",
    ]
    failed = _checked([*CHECKS, fast])
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


def mutants(args: argparse.Namespace) -> int:
    """Break the helpers on purpose; print what no test notices. Return the exit code."""
    given = {"count": args.count, "seed": args.seed}
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return subprocess.run([sys.executable, str(paths.ROOT / "tests/mutants.py"), *args.module, *options]).returncode
