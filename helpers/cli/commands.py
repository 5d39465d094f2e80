"""The commands of the course: `python -m helpers --help`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.cli import testing
from helpers.core import paths
from helpers.core.durations import duration
from helpers.core.paths import build_dir
from helpers.course import running, setup

if TYPE_CHECKING:
    from helpers.course.cluster import Outcome

Command = Callable[[argparse.Namespace], int]
EXAMPLES = """\
examples:
  make course                             every notebook, in the quick profile
  python -m helpers course 02             one notebook
  PROFILE=full make course                the published results: three seeds each, resumable
  python -m helpers course 02 --profile full --seed 0

profiles: smoke (a rehearsal, seconds), quick (real results, minutes), full (published results, hours)
variables: PROFILE; COURSE_DATA_DIR (where fetched data lies); COURSE_BUILD_DIR (where runs write)
"""
BEST = 3  # labels that predict shows


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a failure, 2 for a bad argument."""
    _print_what_can_be_printed()
    args = _parser().parse_args(argv)
    try:
        setup.check_python()
        code = _checked(args)
        sys.stdout.flush()
        return code
    except setup.SetupError as error:
        return _complain(error)
    except ValueError as error:
        return _complain(error, code=2)
    except BrokenPipeError:  # whoever read the output has gone, as `head` does; nobody is left to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _complain(setup.in_words(error))


def _print_what_can_be_printed() -> None:
    """Have "?" printed where the output's encoding lacks a character: a run of hours must not end in its last line."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def _checked(args: argparse.Namespace) -> int:
    """Check the arguments before anything is installed, set up, and run the command."""
    from helpers import evidence, fetching
    from helpers.core import paths
    from helpers.course import chapters

    if "profile" in args:
        args.profile = _profile(args.profile)
    if "notebook" in args:
        args.chosen = chapters.find(args.notebook)
    negative = [seed for seed in _list(args, "seed") if seed < 0]
    if negative:
        raise ValueError(f"seed={negative[0]}; allowed: a whole number of at least 0")
    paths.raw_dir(), paths.build_dir()  # ValueError for a variable that names no folder
    if args.command not in ("clean", "predict"):  # which need nothing of the pinned packages, or little
        setup.ensure()
    try:
        return args.run(args)
    except (chapters.NotebookError, fetching.SourceError, evidence.ClaimError) as error:
        return _complain(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m helpers",
        description="Make PyTorch models smaller and faster: run the course, test it, build it. "
        "The first command makes .venv and installs the pinned packages.",
        epilog=EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=16, width=100),
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    def add(name: str, run: Command, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=run)
        return command

    course = add("course", _course, "fetch the data, execute the notebooks, show the leaderboard")
    course.add_argument("notebook", nargs="*", help="numbers or names, such as 02; default: all")
    course.add_argument("--profile", help="smoke, quick or full; default: the variable PROFILE, else quick")
    course.add_argument("--seed", type=int, nargs="+", help="default: 0, and 0 1 2 in the full profile")
    course.add_argument("--again", action="store_true", help="full: repeat runs that have finished before")
    course.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="hand the runs to the Dask cluster whose scheduler is there, such as tcp://10.0.0.1:8786; "
        "what holds a time is then measured here, one after another",
    )
    add("lab", _lab, "open the notebooks in JupyterLab")
    add("test", testing.test, "unit tests; every notebook in quick and, twice, in smoke")
    add("check", testing.check, "linter, formatter, type checker, fast tests")
    add(
        "student",
        _student,
        "write student versions to build/student, and nbgrader's sources to build/instructor",
    )
    predicting = add("predict", _predict, "say what an image shows, by a model's file; needs no torch (a text does)")
    predicting.add_argument("file", type=Path, help="a packed file (.pack) or an ONNX file, int8 too")
    predicting.add_argument("given", help="PNG or JPEG: a white digit on black, or a photograph; or a film review")
    add("data", testing.data, "fetch and verify all datasets")
    train = add("train", _train, "train a checkpoint that notebooks start from (resumable)")
    train.add_argument("name", help="such as lenet5")
    train.add_argument("--seed", type=int, default=0)
    built = add("notebooks", _notebooks, "execute what is stale; store it in notebooks/ and data/results/")
    built.add_argument("notebook", nargs="*", help="numbers or names; default: all that are stale")
    built.add_argument("--again", action="store_true", help="execute them even if they are not stale")
    publish = add("publish", _publish, "promote finished full runs to data/results/ and data/models/")
    publish.add_argument("notebook", nargs="*", help="numbers or names; default: all that have run")
    add("stale", _stale, "list stored notebooks and published results older than their source or the helpers")
    mutants = add(
        "mutants", testing.mutants, "break the helpers on purpose, one line at a time, and show what no test notices"
    )
    mutants.add_argument("module", nargs="*", help="such as measure.latency; default: all")
    mutants.add_argument("--count", type=int, help="mutants of each module")
    mutants.add_argument("--seed", type=int)
    add("readme", _readme, "write the generated parts of README.md, its picture and the table of results")
    add("book", _book, "build the website in build/book from the executed notebooks")
    tools = add(
        "tools", _tools, "convert and time the course's networks with other people's tools, each in its own place"
    )
    tools.add_argument("tool", nargs="*", help="such as openvino; default: all, about an hour")
    tools.add_argument("--network", nargs="+", default=[], help="such as lenet5; default: those of the tool")
    tools.add_argument("--store", action="store_true", help="write the records to data/tools, which notebook 17 shows")
    clean = add("clean", _clean, "delete build/ and the tools' caches")
    clean.add_argument("--all", action="store_true", help=".venv and data/raw too")
    return parser


def _course(args: argparse.Namespace) -> int:
    from helpers import evidence
    from helpers.course import cluster, notebooks

    seeds = args.seed or ([0, 1, 2] if args.profile == "full" else [0])
    runs = [(source, seed) for seed in seeds for source in args.chosen]
    usual = [evidence.expected_seconds(source.stem, args.profile) or 0 for source, _ in runs]
    running.fetch(args.chosen)
    hint = f" (usually {duration(sum(usual))})" if all(usual) and not args.scheduler else ""
    how = "on the cluster, and then here what holds times" if args.scheduler else "one after another"
    print(f"Running {_count(args.chosen)} in the {args.profile} profile, {how}{hint}.", flush=True)
    resumes = args.profile == "full" and not args.again
    before = {run for run in runs if resumes and notebooks.is_done(run[0], profile="full", seed=run[1])}
    spread = _spread(args, [run for run in runs if run not in before])
    failures = list(spread.failures)
    for number, (run, seconds) in enumerate(zip(runs, usual, strict=True), start=1):
        source, seed = run
        title = f"[{number}/{len(runs)}] {source.stem}" + (f", seed {seed}" if len(seeds) > 1 else "")
        if run in before:
            print(f"{title}: has run before; --again repeats it")
            continue
        if run in spread.final:
            print(f"{title}: ran on the cluster")
            continue
        print(title + (f", usually {duration(seconds)}" if seconds else ""), flush=True)
        with cluster.pinned(spread.to_measure[run]) if run in spread.to_measure else nullcontext():
            failures += running.execute(source, profile=args.profile, seed=seed)
    return running.report(failures + _summary(args.profile))


def _spread(args: argparse.Namespace, runs: list[tuple[Path, int]]) -> Outcome:
    """Have the cluster execute `runs`, if one was named; return what it did."""
    from helpers.course import cluster

    if args.scheduler is None:
        return cluster.Outcome(set(), [], {})
    return cluster.run(args.scheduler, runs, profile=args.profile, again=args.again)


def _summary(profile: str) -> list[str]:
    """Show what the runs gave; return which files of results cannot be shown, and why."""
    from helpers import evidence

    damaged: list[str] = []
    board = evidence.leaderboard(damaged=damaged)
    if len(board):
        print("\nLeaderboard (* on the Pareto front: nothing else is both more accurate and smaller)")
        print(evidence.format_leaderboard(board).to_string(index=False))
    print(f"\nExecuted notebooks: {running.shown(build_dir() / 'notebooks' / profile)}")
    print(f"Results:            {running.shown(build_dir() / 'results' / profile)}")
    return damaged


def _lab(args: argparse.Namespace) -> int:
    from helpers.course import chapters

    first = chapters.sources()[0].stem
    options = [f"--notebook-dir={paths.NOTEBOOKS}", f"--LabApp.default_url=/lab/tree/{first}.ipynb"]
    setup.become([sys.executable, "-m", "jupyterlab", *options])
    return 0


def _student(args: argparse.Namespace) -> int:
    from helpers.course import chapters, student

    for source in chapters.sources():
        print(*map(running.shown, student.write(source, build_dir())), sep="\n")
    return 0


def _predict(args: argparse.Namespace) -> int:
    try:
        from helpers import runtime

        label, probabilities, notes = runtime.predict(args.file, args.given)
    except ModuleNotFoundError as error:
        if setup.is_ready(paths.ROOT / ".venv"):
            setup.ensure()  # goes on there, if it is not where this runs
        raise setup.SetupError(
            f"this Python has no {error.name}; predict needs numpy, pillow, for an ONNX file onnxruntime and for an "
            "entropy-coded one constriction (to read a text, torch and tokenizers): "
            f"{sys.executable} -m pip install numpy pillow onnxruntime constriction"
        ) from None
    print(label)
    width = max(map(len, probabilities))
    for name in sorted(probabilities, key=lambda name: -probabilities[name])[:BEST]:
        print(f"  {name:{width}} {probabilities[name]:8.2%}")
    for note in notes:
        print(f"note: {note}")
    return 0


def _clean(args: argparse.Namespace) -> int:
    names = ["build", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"]
    for name in names + ([".venv", "data/raw"] if args.all else []):
        if (paths.ROOT / name).exists():
            shutil.rmtree(paths.ROOT / name)
            print(f"deleted {name}")
    return 0


def _train(args: argparse.Namespace) -> int:
    from helpers import checkpoints

    print(running.shown(checkpoints.train(args.name, seed=args.seed)))
    return 0


def _to_build(sources: list[Path], *, again: bool) -> dict[Path, str]:
    """Return why each of these sources is to be executed: those that are stale or, `again`, all."""
    from helpers.course import staleness

    stale = staleness.stale()
    return {s: stale.get(s.stem, "is built again") for s in sources if again or s.stem in stale}


def _notebooks(args: argparse.Namespace) -> int:
    from helpers.book import readme
    from helpers.course import staleness

    failures: list[str] = []
    waiting = staleness.in_reading_order(args.chosen)
    # Another round builds those that show what the round before has measured.
    chosen = _to_build(waiting, again=args.again)
    while chosen:
        running.fetch(list(chosen))
        for number, (source, reason) in enumerate(chosen.items(), start=1):
            print(f"[{number}/{len(chosen)}] {source.stem} {reason}", flush=True)
            failed = running.execute(source)
            failures += failed or _promote(source)
            waiting.remove(source)
        chosen = _to_build(waiting, again=args.again)
    readme.write()
    for name, reason in staleness.stale().items():
        print(f"still stale: {name} {reason}")
    return running.report(failures)


def _promote(source: Path) -> list[str]:
    """Store the results of a notebook that ran to its end; return why that failed, if it did."""
    from helpers import evidence

    try:
        evidence.promote_quick(source.stem)
    except OSError as error:
        return [f"{source.stem}: {setup.in_words(error)}"]
    except (ValueError, evidence.ClaimError) as error:
        return [f"{source.stem}: {error}"]
    return []


def _publish(args: argparse.Namespace) -> int:
    from helpers import evidence
    from helpers.book import readme

    for name in [source.stem for source in args.chosen] if args.notebook else [None]:
        print("\n".join(evidence.publish(name)))
    readme.write()
    return 0


def _stale(args: argparse.Namespace) -> int:
    from helpers.course import staleness

    stale = staleness.stale()
    for name, reason in stale.items():
        print(f"{name} {reason}")
    for name, reason in staleness.stale_results().items():  # to be run anew some day; hours, so no failure
        print(f"full results of {name} {reason}")
    return 1 if stale else 0


def _readme(args: argparse.Namespace) -> int:
    from helpers.book import readme

    readme.write()
    return 0


def _book(args: argparse.Namespace) -> int:
    from helpers import book

    try:
        print(f"The book: {running.shown(book.build(build_dir() / 'book'))}")
    except book.BookError as error:
        return _complain(error)
    return 0


def _tools(args: argparse.Namespace) -> int:
    from helpers.core import checks
    from helpers.tools import catalogue, records
    from helpers.tools import running as tools

    names = [checks.choice("tool", name, catalogue.TOOLS) for name in args.tool or catalogue.TOOLS]
    networks = tuple(checks.choice("network", name, catalogue.ALL) for name in args.network)
    for number, name in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {catalogue.TOOLS[name].title}", flush=True)
        began = time.monotonic()
        found = tools.record(name, networks)
        path = tools.write(found, records.STORED if args.store else build_dir() / "tools")
        print(f"  {tools.summary(found)} {duration(time.monotonic() - began)}: {running.shown(path)}", flush=True)
    return 0


def _profile(given: str | None) -> str:
    from helpers.core import checks
    from helpers.evidence import PROFILES

    return checks.choice("profile", given or os.environ.get("PROFILE") or "quick", PROFILES)


def _list(args: argparse.Namespace, name: str) -> list[int]:
    value = getattr(args, name, None)
    return value if isinstance(value, list) else [] if value is None else [value]


def _count(chosen: list[Path]) -> str:
    return f"{len(chosen)} notebook" + "s" * (len(chosen) != 1)


def _complain(error: Exception | str, code: int = 1) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code
