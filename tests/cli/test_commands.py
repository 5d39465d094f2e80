import errno
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from helpers import __main__ as program
from helpers import book, evidence, fetching
from helpers.cli import commands, testing
from helpers.core import paths
from helpers.course import chapters, cluster, notebooks, setup, staleness
from helpers.course.chapters import NotebookError

COMMANDS = [
    "course",
    "lab",
    "test",
    "check",
    "student",
    "data",
    "train",
    "notebooks",
    "publish",
    "stale",
    "readme",
    "predict",
    "mutants",
]


PROVENANCE = {
    "seconds": 1,
    "started": "now",
    "torch": "2",
    "helpers_version": "0",
    "source_sha256": None,
    "machine": "a",
}
RESULT = {
    "provenance": PROVENANCE,
    "models": [],
    "claims": [],
    "test_evaluations": [],
    "measurements": {},
    "timings": {},
}


@pytest.fixture
def course(tmp_path, monkeypatch):
    """Two notebooks that are not executed: the list of what would be, the datasets fetched, the set-ups."""
    done: dict[str, list] = {"executed": [], "fetched": [], "set up": []}
    folder = tmp_path / "src"
    folder.mkdir()
    for name, code in {"01_one": "data.mnist()", "02_two": "pass"}.items():
        (folder / f"{name}.py").write_text(code)
    monkeypatch.setattr(chapters, "SOURCES", folder)
    monkeypatch.setattr(setup, "ensure", lambda: done["set up"].append("ensured"))
    monkeypatch.setattr(fetching, "fetch", lambda name: done["fetched"].append(name) or tmp_path)
    monkeypatch.setattr(evidence, "leaderboard", lambda damaged: pd.DataFrame())

    def execute(source, *, profile, seed, progress):
        done["executed"].append((source.stem, profile, seed))
        return tmp_path

    monkeypatch.setattr(notebooks, "execute", execute)
    return done


# ---------------------------------------------------------------- arguments


def test_help_names_every_command_and_the_profiles():
    done = subprocess.run([sys.executable, "-m", "helpers", "--help"], cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    for word in [*COMMANDS, "clean", *evidence.PROFILES, "COURSE_DATA_DIR", "make course"]:
        assert re.search(rf"\b{word}\b", done.stdout), word


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["course", "--profile", "nonsense"], "profile='nonsense' is unknown; allowed: 'smoke', 'quick', 'full'"),
        (["course", "99"], "notebook='99' is unknown; allowed: '01_one', '02_two', '01', '02'"),
        (["course", "--seed", "-1"], "seed=-1; allowed: a whole number of at least 0"),
        (["notebooks", "x"], "notebook='x' is unknown"),
        (["train", "lenet5", "--seed", "-1"], "seed=-1"),
    ],
)
def test_a_bad_argument_is_named_before_anything_is_installed(arguments, said, course, capsys):
    assert commands.main(arguments) == 2
    assert said in capsys.readouterr().err
    assert course == {"executed": [], "fetched": [], "set up": []}


def test_the_variable_profile_is_checked_too(course, capsys, monkeypatch):
    monkeypatch.setenv("PROFILE", "fast")
    assert commands.main(["course"]) == 2
    assert "profile='fast' is unknown" in capsys.readouterr().err


def test_an_unknown_checkpoint_is_refused(course, capsys):
    assert commands.main(["train", "alexnet"]) == 2
    assert "name='alexnet' is unknown; allowed: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "module",
    [
        "helpers",
        "helpers.__main__",
        "helpers.cli.commands",
        "helpers.fetching",
        "helpers.course.notebooks",
        "helpers.course.cluster",
    ],
)
def test_nothing_heavy_is_imported_before_the_set_up(module):
    """Isolated, so that not even site-packages is there: only the standard library can be imported."""
    code = f"import sys; sys.path.insert(0, {str(paths.ROOT)!r}); import {module}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- course


def test_course_runs_every_notebook_once_and_says_where_things_lie(course, capsys):
    assert commands.main(["course"]) == 0
    assert course["executed"] == [("01_one", "quick", 0), ("02_two", "quick", 0)]
    assert course["fetched"] == ["mnist"] and course["set up"] == ["ensured"]
    out = capsys.readouterr().out
    for words in ("[1/2] 01_one", "[2/2] 02_two", "done in", "Executed notebooks:", "Results:"):
        assert words in out


def test_course_shows_how_long_it_usually_takes_and_the_leaderboard(course, capsys, monkeypatch):
    monkeypatch.setattr(evidence, "expected_seconds", lambda notebook, profile: {"01_one": 40, "02_two": 80}[notebook])
    monkeypatch.setattr(evidence, "leaderboard", lambda damaged: pd.DataFrame({"a": [1]}))
    monkeypatch.setattr(evidence, "format_leaderboard", lambda board: pd.DataFrame({"model": ["lenet5"]}))
    assert commands.main(["course"]) == 0
    out = capsys.readouterr().out
    assert "usually 2 min" in out and "[1/2] 01_one, usually 40 s" in out and "lenet5" in out


def test_one_notebook_alone_fetches_only_its_data(course):
    assert commands.main(["course", "02", "--profile", "smoke", "--seed", "3", "4"]) == 0
    assert course["executed"] == [("02_two", "smoke", 3), ("02_two", "smoke", 4)]
    assert course["fetched"] == []


def test_full_runs_three_seeds_and_goes_on_where_it_stopped(course, capsys, monkeypatch):
    monkeypatch.setenv("PROFILE", "full")
    monkeypatch.setattr(notebooks, "is_done", lambda source, *, profile, seed: (source.stem, seed) != ("02_two", 1))
    assert commands.main(["course"]) == 0
    assert course["executed"] == [("02_two", "full", 1)]
    assert capsys.readouterr().out.count("has run before") == 5
    course["executed"].clear()
    assert commands.main(["course", "--again"]) == 0
    expected = [(name, "full", seed) for seed in (0, 1, 2) for name in ("01_one", "02_two")]
    assert course["executed"] == expected, "a whole seed before the next"


def test_a_cluster_gets_what_has_not_run_and_the_rest_runs_here(course, capsys, monkeypatch):
    one, two = chapters.sources()
    asked, threads = [], {}

    def spread(address, runs, *, profile, again):
        asked.append((address, runs, profile, again))
        return cluster.Outcome({(one, 0)}, ["01_one: its claim does not hold"], {(two, 0): 3})

    def execute(source, *, profile, seed, progress):
        threads[source.stem, seed] = os.environ["OMP_NUM_THREADS"]

    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setattr(cluster, "run", spread)
    monkeypatch.setattr(notebooks, "execute", execute)
    monkeypatch.setattr(notebooks, "is_done", lambda source, *, profile, seed: (source.stem, seed) == ("01_one", 1))
    assert commands.main(["course", "--profile", "full", "--seed", "0", "1", "--scheduler", "tcp://a:1"]) == 1
    assert asked == [("tcp://a:1", [(one, 0), (two, 0), (two, 1)], "full", False)]
    assert threads == {("02_two", 0): "3", ("02_two", 1): "8"}, "measured with the threads of its training"
    out, err = capsys.readouterr()
    assert "[1/4] 01_one, seed 0: ran on the cluster" in out and "[3/4] 01_one, seed 1: has run before" in out
    assert err == "failed: 01_one: its claim does not hold\n"


def test_done_means_finished_with_this_source(tmp_path, monkeypatch):
    import nbformat

    monkeypatch.setattr(chapters, "SOURCES", tmp_path)
    source = tmp_path / "01_one.py"
    source.write_text("x = 1\n")
    build = paths.build_dir()
    executed, result = build / "notebooks/full/01_one.seed1.ipynb", build / "results/full/01_one.seed1.json"
    notebook = nbformat.v4.new_notebook(metadata={"course": staleness.identity_of(source)})
    for path in (executed, result):
        path.parent.mkdir(parents=True)
    nbformat.write(notebook, executed)
    assert not notebooks.is_done(source, profile="full", seed=1), "no results"
    result.write_text("{}")
    assert not notebooks.is_done(source, profile="full", seed=1), "damaged results"
    result.write_text(json.dumps(RESULT | {"notebook": "01_one", "profile": "full", "seed": 1}))
    assert notebooks.is_done(source, profile="full", seed=1)
    whole = executed.read_bytes()
    executed.write_bytes(whole[:-20])
    assert not notebooks.is_done(source, profile="full", seed=1), "a damaged notebook"
    executed.write_bytes(whole)
    assert not notebooks.is_done(source, profile="full", seed=2)
    source.write_text("x = 2\n")
    assert not notebooks.is_done(source, profile="full", seed=1), "another source"
    nbformat.write(nbformat.v4.new_notebook(), executed)
    source.write_text("x = 1\n")
    assert not notebooks.is_done(source, profile="full", seed=1), "it failed: no provenance was stored"


def test_a_failure_is_repeated_last_with_name_cell_and_error(course, capsys, monkeypatch):
    def execute(source, **options):
        course["executed"].append(source.stem)
        if source.stem == "01_one":
            raise NotebookError("01_one, cell [3] (1 / 0): ZeroDivisionError: division by zero")
        return source

    monkeypatch.setattr(notebooks, "execute", execute)
    assert commands.main(["course"]) == 1
    out, err = capsys.readouterr()
    assert course["executed"] == ["01_one", "02_two"], "one failure does not keep the others from running"
    assert err == "failed: 01_one, cell [3] (1 / 0): ZeroDivisionError: division by zero\n"
    assert "failed after" in out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (fetching.SourceError("no connection; connect and run it again"), 1),
        (setup.SetupError("pip failed"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_goes_wrong_outside_a_notebook_is_one_sentence(error, code, course, capsys, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.setattr(fetching, "fetch", fail)
    assert program.main(["course"]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err and len(err.strip().splitlines()) == 1
    if isinstance(error, OSError):
        assert err.startswith("error: /a/b: No space left on device; free some space, or set COURSE_BUILD_DIR")


# ---------------------------------------------------------------- damage, and what a machine lacks


def recorded(notebook, *, profile="quick", models=()):
    """Write results of this machine and return their path."""
    path = paths.build_dir() / f"results/{profile}/{notebook}.seed0.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(RESULT | {"notebook": notebook, "profile": profile, "seed": 0, "models": list(models)}))
    return path


NET = {"name": "a-net", "task": "mnist", "method": "dense √", "split": "test", "base": None, "accuracy": 0.9,
       "weights": 2, "nonzero": 2, "macs": 2, "latency": []}  # fmt: skip


def test_damaged_results_are_named_and_the_rest_is_still_shown(course, capsys, monkeypatch):
    monkeypatch.setattr(evidence, "leaderboard", LEADERBOARD)
    monkeypatch.setattr(paths, "RESULTS", paths.build_dir() / "none")
    recorded("01_one", models=[NET])
    path = recorded("02_two")
    content = path.read_bytes()
    for damaged in (content[:97], content.replace(b"models", b"nodels"), b""):
        path.write_bytes(damaged)
        assert commands.main(["course", "01"]) == 1
        out, err = capsys.readouterr()
        assert "a-net" in out and "90.00" in out and "Executed notebooks:" in out
        assert re.fullmatch(
            r"failed: \S+02_two.seed0.json is damaged \(.*\); delete it, and run the notebook again\n", err
        )


LEADERBOARD = evidence.leaderboard


def test_a_build_folder_that_is_full_is_said_for_each_notebook_and_the_summary_is_shown(course, capsys, monkeypatch):
    def execute(source, **options):
        raise NotebookError(f"{source.stem}: build: No space left on device; free some space")

    monkeypatch.setattr(notebooks, "execute", execute)
    assert commands.main(["course"]) == 1
    out, err = capsys.readouterr()
    assert "Executed notebooks:" in out and "Results:" in out
    assert err.splitlines() == [
        f"failed: {name}: build: No space left on device; free some space" for name in ("01_one", "02_two")
    ]


@pytest.mark.parametrize("variable", ["COURSE_DATA_DIR", "COURSE_BUILD_DIR"])
@pytest.mark.parametrize("command", ["course", "data", "stale", "clean"])
def test_nobodys_home_folder_is_a_bad_argument(variable, command, course, capsys, monkeypatch):
    monkeypatch.setenv(variable, "~nobody-of-the-course/x")
    assert commands.main([command]) == 2
    err = capsys.readouterr().err
    assert err == (
        f"error: {variable}='~nobody-of-the-course/x' is in nobody's home folder; allowed: the path of a folder\n"
    )
    assert course["set up"] == []


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_what_the_output_cannot_print_is_replaced(encoding, course, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    monkeypatch.setattr(evidence, "leaderboard", lambda damaged: pd.DataFrame({"a": [1]}))
    monkeypatch.setattr(evidence, "format_leaderboard", lambda board: pd.DataFrame({"model ÷": ["√ – ü"]}))
    assert commands.main(["course"]) == 0
    shown = {"cp1252": "? – ü", "ascii": "? ? ?", "utf-8": "√ – ü"}[encoding]
    assert shown in written.getvalue().decode(encoding)
    monkeypatch.undo()


def test_an_output_that_nobody_reads_any_more_is_no_traceback(course):
    code = "import sys; from helpers import __main__; from helpers.course import setup, staleness; "
    code += "setup.ensure = lambda: None; "
    command = f"{code}staleness.stale = lambda: {{'a': 'b' * 10**6}}; sys.exit(__main__.main(['stale']))"
    with subprocess.Popen(
        [sys.executable, "-c", command], cwd=paths.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout and run.stderr
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 1


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize("module", ["argparse", "helpers.cli.commands", "helpers.course.staleness"])
def test_ctrl_c_during_the_imports_is_one_sentence(module, tmp_path):
    """The interrupt comes while `module` is being looked for."""
    code = f"""
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.modules.pop({module!r}, None)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["helpers", "stale"]
runpy.run_module("helpers", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "\nInterrupted. Nothing is half-written; run the same command again.\n"


# ---------------------------------------------------------------- for maintainers


def test_notebooks_executes_what_is_stale_and_promotes_what_ran(course, capsys, monkeypatch):
    promoted = []
    readme = []
    monkeypatch.setattr(staleness, "stale", lambda: {"01_one": "is not built", "02_two": "is older than its source"})

    def publish(source, *, progress):
        course["executed"].append(source.stem)
        if source.stem == "01_one":
            raise NotebookError("01_one, cell [3]: claim 'a' does not hold")

    monkeypatch.setattr(notebooks, "publish", publish)
    monkeypatch.setattr(evidence, "promote_quick", promoted.append)
    monkeypatch.setattr("helpers.book.readme.write", lambda: readme.append("written"))
    assert commands.main(["notebooks"]) == 1
    assert (course["executed"], promoted, readme) == (["01_one", "02_two"], ["02_two"], ["written"])
    assert "failed: 01_one" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "said"), [
    (OSError(errno.EROFS, "Read-only file system", "/a/x.json"), "/a/x.json: Read-only file system; make it writable"),
    (ValueError("x.json is damaged"), "x.json is damaged"),
])  # fmt: skip
def test_results_that_cannot_be_stored_do_not_end_the_others(error, said, course, capsys, monkeypatch):
    def promote(name):
        if name == "01_one":
            raise error

    monkeypatch.setattr(staleness, "stale", lambda: {"01_one": "is not built", "02_two": "is not built"})
    monkeypatch.setattr(notebooks, "publish", lambda source, *, progress: course["executed"].append(source.stem))
    monkeypatch.setattr(evidence, "promote_quick", promote)
    monkeypatch.setattr("helpers.book.readme.write", lambda: None)
    assert commands.main(["notebooks"]) == 1
    assert course["executed"] == ["01_one", "02_two"]
    assert f"failed: 01_one: {said}" in capsys.readouterr().err


def test_mutants_only_passes_its_arguments_on(course, monkeypatch):
    ran = []
    monkeypatch.setattr(
        testing.subprocess, "run", lambda command: ran.append(command) or subprocess.CompletedProcess(command, 3)
    )
    assert commands.main(["mutants", "board", "text", "--count", "5", "--seed", "0"]) == 3
    assert commands.main(["mutants"]) == 3
    script = [sys.executable, str(paths.ROOT / "tests/mutants.py")]
    assert ran == [[*script, "board", "text", "--count=5", "--seed=0"], script]
    assert Path(script[1]).exists()


def test_notebooks_leaves_what_is_up_to_date_unless_told(course, monkeypatch):
    monkeypatch.setattr(staleness, "stale", lambda: {})
    monkeypatch.setattr(notebooks, "publish", lambda source, *, progress: course["executed"].append(source.stem))
    monkeypatch.setattr(evidence, "promote_quick", lambda name: None)
    monkeypatch.setattr("helpers.book.readme.write", lambda: None)
    assert commands.main(["notebooks"]) == 0 and course["executed"] == []
    assert commands.main(["notebooks", "--again", "02"]) == 0 and course["executed"] == ["02_two"]


def test_notebooks_builds_what_becomes_stale_by_what_it_built(course, monkeypatch):
    """01 shows the results of 02; each is executed once, even if it stays stale."""
    monkeypatch.setattr(
        staleness,
        "stale",
        lambda: {"02_two": "is not built"} | dict.fromkeys(course["executed"] and ["01_one"], "shows"),
    )
    monkeypatch.setattr(notebooks, "publish", lambda source, *, progress: course["executed"].append(source.stem))
    monkeypatch.setattr(evidence, "promote_quick", lambda name: None)
    monkeypatch.setattr("helpers.book.readme.write", lambda: None)
    assert commands.main(["notebooks"]) == 0 and course["executed"] == ["02_two", "01_one"]


@pytest.mark.parametrize(("stale", "code"), [({}, 0), ({"01_one": "is not built"}, 1)])
def test_stale_lists_and_says_so_by_its_exit_code(stale, code, course, capsys, monkeypatch):
    monkeypatch.setattr(staleness, "stale", lambda: stale)
    monkeypatch.setattr(staleness, "stale_results", lambda: {"01_one.seed0": "are older than the source"})
    assert commands.main(["stale"]) == code, "old full results are no failure"
    listed = "".join(f"{name} {reason}\n" for name, reason in stale.items())
    assert capsys.readouterr().out == f"{listed}full results of 01_one.seed0 are older than the source\n"


def test_publish_without_results_says_what_to_do(course, capsys):
    assert commands.main(["publish"]) == 1
    assert "run it first" in capsys.readouterr().err


def test_clean_deletes_what_was_made_and_keeps_data_and_venv(tmp_path, course, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path / "project")
    made = ["build/results/a.json", ".mypy_cache/x", "data/raw/MNIST/x", ".venv/bin/python", "data/results/a.json"]
    for name in made:
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).touch()

    def left() -> list[str]:
        return [name for name in made if (tmp_path / "project" / name).exists()]

    assert commands.main(["clean"]) == 0
    assert left() == made[2:] and course["set up"] == []
    assert commands.main(["clean", "--all"]) == 0
    assert left() == ["data/results/a.json"]


# ---------------------------------------------------------------- make test


MIXED = """
import pytest
def test_a(): pass
def test_b(): pass
def test_c(): assert False
@pytest.mark.skip
def test_d(): pass
@pytest.fixture
def broken(): 1 / 0
def test_e(broken): pass
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "passed", "failed", "skipped"),
    [
        (MIXED, 2, 2, 1),
        ("import os\ndef test_a(): os._exit(3)\n", 0, 1, 0),  # no report is written
        ("", 0, 0, 0),
    ],
)
def test_pytests_outcome_is_counted(code, passed, failed, skipped, tmp_path):
    (tmp_path / "test_it.py").write_text(code)
    counts = testing._pytest(tmp_path / "report.xml", [str(tmp_path / "test_it.py")])
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (passed, failed, skipped)


@pytest.mark.parametrize(
    ("parts", "code", "last"),
    [
        ([(3, 0, 1), (2, 0, 0)], 0, "5 passed, 0 failed, 1 skipped"),
        ([(3, 1, 0), (2, 0, 0)], 1, "5 passed, 1 failed, 0 skipped"),
        ([(0, 0, 0)], 1, "0 passed, 0 failed, 0 skipped"),
    ],
)
def test_one_failure_anywhere_fails_and_the_last_line_counts(parts, code, last, capsys):
    counted = {str(i): Counter(passed=p, failed=f, skipped=s) for i, (p, f, s) in enumerate(parts)}
    assert testing._closing(counted, 1.0) == code
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_notebooks_run_side_by_side_with_a_thread_each_and_say_why_they_failed(monkeypatch, capsys):
    answers = {"a": (0, ""), "b": (1, "failed: b, cell [3]: no\nmore\n"), "c": (3, "Traceback\nKilled")}
    threads = []

    def run(command, *, env, **options):
        threads.append(env["OMP_NUM_THREADS"])
        code, said = answers[command[4]]
        return subprocess.CompletedProcess(command, code, stdout="", stderr=said)

    monkeypatch.setattr(testing.subprocess, "run", run)
    failures = testing._side_by_side([Path(f"{name}.py") for name in answers])
    assert failures == ["b, cell [3]: no", "c: Traceback\nKilled"] and threads == ["1"] * 3
    assert capsys.readouterr().out.count("done in") == 3


def test_every_part_runs_even_after_a_failure(course, capsys, monkeypatch):
    ran = []

    def pytest_run(report, options, **variables):
        ran.append((report.stem, variables))
        return Counter(passed=1, failed=int(report.stem == "unit"))

    before = os.environ["COURSE_BUILD_DIR"]
    monkeypatch.setenv("COURSE_BUILD_DIR", before)  # the command sets it; this puts it back
    monkeypatch.setattr(paths, "ROOT", Path(before).parent)
    monkeypatch.setattr(paths, "NOTEBOOKS", Path(before).parent)
    (Path(before).parent / "01_one.ipynb").touch()
    monkeypatch.setattr(testing, "_pytest", pytest_run)
    monkeypatch.setattr(testing, "_checked", lambda: ran.append(("checks", {})) or ["mypy"])
    monkeypatch.setattr(chapters, "is_timed", lambda source: source.stem == "02_two")
    together: list[str] = []
    monkeypatch.setattr("helpers.book.build", lambda folder: ran.append(("book", {"folder": folder})))
    monkeypatch.setattr(testing, "_side_by_side", lambda sources: together.extend(s.stem for s in sources) or [])
    assert commands.main(["test"]) == 1
    assert [name for name, _ in ran] == ["checks", "unit", "nbval", "notebook", "book", "browser"]
    assert together == ["01_one"] and course["executed"] == [("02_two", "quick", 0)]
    assert course["fetched"] == ["mnist", "cifar10", "imdb", "minilm"]
    smoke = str(Path(before).parent / "build/test/smoke")
    single = {"OMP_NUM_THREADS": "1"}
    assert ran[2][1] == {"COURSE_PROFILE": "smoke", "COURSE_BUILD_DIR": smoke, **single}
    assert ran[3][1] == {"COURSE_SMOKE_DIR": smoke, **single}, "the second smoke run is compared with nbval's"
    assert ran[5][1] == {"COURSE_BOOK_DIR": str(ran[4][1]["folder"])}
    assert capsys.readouterr().out.splitlines()[-1] == "8 passed, 2 failed, 0 skipped"


@pytest.mark.parametrize("error", [book.BookError, fetching.SourceError])
def test_a_book_that_cannot_be_built_is_a_failure(error, tmp_path, capsys, monkeypatch):
    def refuse(folder):
        raise error("this is wrong: x")

    monkeypatch.setattr(book, "build", refuse)
    assert testing._book(tmp_path) == Counter(failed=1)
    assert "this is wrong: x" in capsys.readouterr().err
    assert commands.main(["book"]) == 1
