import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nbformat
import psutil
import pytest

from helpers import evidence
from helpers.core import identity, paths
from helpers.course import chapters, notebooks, staleness
from helpers.course.chapters import NotebookError
from helpers.evidence import recording

TINY = '''\
# %% [markdown]
# # Tiny

# %% tags=["parameters"]
PROFILE = "quick"
SEED = 0

# %%
print(PROFILE, SEED)

# %%
def double(x):
    """Return twice x."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION

# %%
double(4)
'''
PROVENANCE = {
    "seconds": 1,
    "started": "now",
    "torch": "2",
    "helpers_version": "0",
    "source_sha256": None,
    "machine": "a",
}
SOURCES = chapters.sources()
NAMES = [source.stem for source in SOURCES]


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of one tiny notebook, 90_tiny, with helpers of its own."""
    for module, name, folder in (
        (chapters, "SOURCES", tmp_path / "notebooks/src"),
        (chapters, "BUILT", tmp_path / "notebooks"),
        (staleness, "HELPERS", tmp_path / "helpers"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(module, name, folder)
    write(tmp_path, TINY)
    return tmp_path


def write(course: Path, text: str, name: str = "90_tiny") -> Path:
    path = course / "notebooks/src" / f"{name}.py"
    path.write_text(text)
    return path


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


# ---------------------------------------------------------------- finding


@pytest.mark.parametrize("name", ["90", "90_tiny", "90_tiny.py"])
def test_a_notebook_is_found_by_number_and_name(course, name):
    assert [path.stem for path in chapters.find([name])] == ["90_tiny"]


def test_one_digit_is_enough_and_order_is_the_courses(course):
    write(course, TINY, "02_two")
    assert [path.stem for path in chapters.find(["90", "2", "02"])] == ["02_two", "90_tiny"]
    assert chapters.find() == chapters.sources() == chapters.find(["90", "2"])


def test_an_unknown_notebook_is_refused_with_those_that_exist(course):
    with pytest.raises(ValueError, match=r"notebook='07' is unknown; allowed: '90_tiny', '90'"):
        chapters.find(["7"])


def test_datasets_are_those_that_are_called(course):
    assert chapters.datasets(write(course, "x = data.mnist()\nimdb(official=False)\ncifar10 = 1\n")) == [
        "mnist",
        "imdb",
    ]


@pytest.mark.parametrize("part", ["data.cifar10_without_cat_and_dog()", "data.cat_or_dog()"])
def test_parts_of_cifar10_need_cifar10(course, part):
    assert chapters.datasets(write(course, f"x = {part}\n")) == ["cifar10"]


# ---------------------------------------------------------------- building


def test_build_has_a_kernel_and_collapses_solutions(course):
    notebook = notebooks.build(chapters.find()[0])
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    hidden = [cell for cell in notebook.cells if cell.metadata.get("jupyter", {}).get("source_hidden")]
    assert ["BEGIN SOLUTION" in cell.source for cell in hidden] == [True]
    assert hidden[0].metadata.tags == ["solution"]


@pytest.mark.parametrize("text", [TINY.replace("parameters", "other"), TINY + '\n# %% tags=["parameters"]\nA = 1\n'])
def test_build_wants_one_parameters_cell(course, text):
    with pytest.raises(NotebookError, match="90_tiny: exactly one cell must have the tag parameters"):
        notebooks.build(write(course, text))


def test_cell_ids_are_stable_and_change_only_where_the_cell_did(course):
    source = write(course, TINY + "\n# %%\ndouble(4)\n")
    before = [cell.id for cell in notebooks.build(source).cells]
    assert [cell.id for cell in notebooks.build(source).cells] == before
    assert len(set(before)) == len(before), "equal cells need different ids"
    source.write_text(TINY.replace("# # Tiny", "# # Tiny\n\n# %%\n1 + 1") + "\n# %%\ndouble(4)\n")
    after = [cell.id for cell in notebooks.build(source).cells]
    assert [id for id in after if id in before] == before


# ---------------------------------------------------------------- what is stale


@pytest.fixture
def built(course):
    """The tiny course, built, with helpers a and b: the notebook imports a, and a imports b inside a function."""
    helper = {"a": 'def f():\n    """Doc."""\n    from helpers import b\n    return b.x\n', "b": "x = 1  # one\n"}
    for name, code in (helper | {"c": "y = 1\n", "course/setup": "z = 1\n"}).items():
        path = course / "helpers" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    source = write(course, "from helpers.a import f\nf()\n" + TINY)
    store(course, source)
    assert staleness.stale() == {}
    return course


def store(course: Path, source: Path) -> None:
    notebook = notebooks.build(source)
    notebook.metadata["course"] = staleness.provenance(source, profile="quick", seed=0)
    nbformat.write(notebook, course / "notebooks" / f"{source.stem}.ipynb")


def test_a_notebook_that_shows_others_is_built_after_them(course):
    """And `all` after everybody; its own results count as nobody's."""
    headers = {"00_a": "[02_c]", "01_b": "[all]", "02_c": "[02_c]", "03_d": "[]"}
    sources = []
    for name, names in headers.items():
        sources.append(course / f"{name}.py")
        sources[-1].write_text(f"# ---\n# jupyter:\n#   reads: {names}\n# ---\n")
    assert [source.stem for source in staleness.in_reading_order(sources)] == ["02_c", "03_d", "00_a", "01_b"]
    sources[2].write_text("# ---\n# jupyter:\n#   reads: [00_a]\n# ---\n")
    with pytest.raises(NotebookError, match="notebooks show each other's results: .*00_a"):
        staleness.in_reading_order(sources)


@pytest.mark.parametrize(
    ("file", "code", "expected"),
    [
        ("helpers/a.py", "# more\ndef f():\n  '''Other.'''\n  from helpers import b\n  return b.x\n", None),
        ("helpers/a.py", "def f():\n    from helpers import b\n    return b.x + 1\n", "was built with other helpers"),
        ("helpers/a.py", "def f(): return 'Doc.'\n", "was built with other helpers"),
        ("helpers/b.py", "'''Doc.'''\nx = (1)\n", None),
        ("helpers/b.py", "x = 2\n", "was built with other helpers"),
        ("helpers/b.py", "from . import c\nx = c.y\n", "was built with other helpers"),
        ("helpers/b.py", "x = 1\nunused = 2\n", None),
        ("helpers/c.py", "y = 2\n", None),
        ("helpers/course/setup.py", "z = 2\n", None),
        ("notebooks/src/90_tiny.py", f"from helpers.a import f\n{TINY}# a comment\n", "is older than its source"),
    ],
)
def test_stale_is_what_has_other_code_or_another_source(built, file, code, expected):
    (built / file).write_text(code)
    assert staleness.stale() == ({"90_tiny": expected} if expected else {})


def reading(name: str) -> str:
    return f"# ---\n# jupyter:\n#   reads: [{name}]\n# ---\n\n{TINY}"


@pytest.mark.parametrize("header", ["#   reads: all", "#   reads: [3]", "#   reads: [", "#  a: b: c", "# - 1"])
def test_a_header_that_declares_no_list_of_names_is_refused(course, header):
    source = write(course, f"# ---\n# jupyter:\n{header}\n# ---\n\n{TINY}")
    with pytest.raises(NotebookError, match="90_tiny: "):
        staleness.reads(source)


def test_a_notebook_that_shows_the_results_of_others_is_stale_when_they_change(course, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", course / "results")

    def record(notebook: str, accuracy: float) -> None:
        path = course / f"results/quick/{notebook}.seed0.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        result = {"notebook": notebook, "profile": "quick", "seed": 0, "provenance": PROVENANCE, "models": []}
        result |= {"claims": [], "test_evaluations": [], "measurements": {"accuracy": accuracy}, "timings": {}}
        path.write_text(json.dumps(result))

    record("01_other", 0.5)
    store(course, write(course, reading("all")))
    store(course, write(course, reading("01_other"), "91_one"))
    store(course, write(course, TINY, "92_none"))
    for name in ("90_tiny", "91_one"):
        record(name, 0.6)  # its own
    store(course, course / "notebooks/src/90_tiny.py")
    assert staleness.stale() == {}
    record("01_other", 0.7)
    assert staleness.stale() == dict.fromkeys(["90_tiny", "91_one"], "shows other results than those in data")


def test_a_notebook_that_lists_all_titles_is_stale_when_one_changes(course, monkeypatch):
    listing = TINY.replace("print(PROFILE, SEED)", "print(chapters.curriculum())")
    hashes = set()
    for title in ("Why?", "How?", "Why?"):
        monkeypatch.setattr(chapters, "curriculum", lambda title=title: {"01_other": title})
        hashes.add(staleness._results_sha256(write(course, listing)))
        assert staleness._results_sha256(write(course, TINY, "91_other")) == ""
    assert len(hashes) == 2 and "" not in hashes


def test_full_results_of_other_code_are_listed(built, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", built / "results")
    source = built / "notebooks/src/90_tiny.py"
    now = staleness.identity_of(source)
    cases = [now, now | {"helpers_sha256": "1"}, now | {"source_sha256": "2"}]
    for seed, recorded in enumerate(cases):
        result = {"notebook": "90_tiny", "profile": "full", "seed": seed, "provenance": PROVENANCE | recorded}
        result |= {"models": [], "claims": [], "test_evaluations": [], "measurements": {}, "timings": {}}
        path = built / f"results/full/90_tiny.seed{seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
    assert staleness.stale_results() == {
        "90_tiny.seed1": "were measured with other helpers",
        "90_tiny.seed2": "are older than the source",
    }


def test_a_run_of_other_helpers_is_not_done(built, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD_DIR", str(built / "build"))
    source = built / "notebooks/src/90_tiny.py"
    path = built / "build/notebooks/quick/90_tiny.ipynb"
    path.parent.mkdir(parents=True)
    notebook = notebooks.build(source)
    notebook.metadata["course"] = staleness.provenance(source, profile="quick", seed=0)
    nbformat.write(notebook, path)
    monkeypatch.setattr(notebooks, "_is_whole", lambda results: True)
    assert notebooks.is_done(source, profile="quick", seed=0)
    (built / "helpers/b.py").write_text("x = 2\n")
    assert not notebooks.is_done(source, profile="quick", seed=0)


@pytest.mark.parametrize(
    ("text", "timed"), [("measure.time_interleaved(calls)", True), ("judging.judge(file)", True), ("fit(net)", False)]
)
def test_what_times_runs_alone(course, text, timed):
    assert chapters.is_timed(write(course, text)) is timed


def test_a_notebook_that_gives_another_full_time_than_the_results_is_stale(course, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", course / "results")
    source = write(course, TINY + 'print(evidence.timetable("90_tiny"))\n')
    store(course, source)
    assert staleness.stale() == {"90_tiny": "gives another time for the full profile than the results"}
    path = course / "notebooks/90_tiny.ipynb"
    notebook = read(path)
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text=evidence.timetable("90_tiny"))]
    nbformat.write(notebook, path)
    assert staleness.stale() == {}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"metadata": {}}', b'{"metadata": {"course": 3}}', b"\xff"]
)
def test_a_damaged_notebook_is_stale_and_not_done(built, content):
    (built / "notebooks/90_tiny.ipynb").write_bytes(content)
    assert staleness.stale() == {"90_tiny": "holds no provenance: it is damaged, or was not built here"}


def test_line_ends_make_nothing_stale(built):
    """As git for Windows writes them into a clone without .gitattributes."""
    for path in [built / "notebooks/src/90_tiny.py", *(built / "helpers").glob("*.py")]:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert staleness.stale() == {}


def test_stale_names_what_is_not_built_and_what_has_no_source(built):
    write(built, TINY, "91_new")
    (built / "notebooks/src/90_tiny.py").unlink()
    assert staleness.stale() == {"90_tiny": "has no source", "91_new": "is not built"}


# ---------------------------------------------------------------- execution (seconds each)


@pytest.mark.slow
def test_execution_injects_parameters_and_stores_no_litter(course):
    code = """
import os, sys, warnings
from tqdm.auto import tqdm
for _ in tqdm(range(3)):
    pass
print(os.getcwd(), os.environ["COURSE_PROFILE"])
print("\\r 50%|#####     | 1/2 [00:01<00:01]", file=sys.stderr)
warnings.warn("careful")
"""
    source = write(course, f"{TINY}\n# %%{code}")
    path = notebooks.execute(source, profile="smoke", seed=1)
    assert path == paths.build_dir() / "notebooks/smoke/90_tiny.seed1.ipynb"
    notebook = read(path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output["text"] for output in outputs if output.get("name") == "stdout"][0] == "smoke 1\n"
    assert outputs[1].data["text/plain"] == "8"
    warned = [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert len(warned) == 1 and "careful" in warned[0] and "<cell>" in warned[0]
    stored = json.dumps([outputs, notebook.metadata, *[cell.metadata for cell in notebook.cells]])
    for litter in ("it/s", "50%|", "widget", "papermill", "iopub", str(paths.ROOT), str(Path.home()), "ipykernel_"):
        assert litter not in stored, litter
    assert notebook.metadata.course.profile == "smoke" and notebook.metadata.course.seed == 1
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.slow
def test_a_stored_notebook_has_no_injected_cell(course):
    stored = read(notebooks.publish(chapters.find()[0]))
    assert [cell.source for cell in stored.cells] == [cell.source for cell in notebooks.build(chapters.find()[0]).cells]
    assert stored.cells[2].outputs[0].text == "quick 0\n"
    assert staleness.stale() == {}


@pytest.mark.slow
def test_a_notebook_that_fails_is_named_with_its_cell_and_error_and_kept(course):
    source = write(course, f"{TINY}\n# %%\n# divide\n1 / 0\n")
    with pytest.raises(NotebookError) as caught:
        notebooks.execute(source, profile="quick")
    assert str(caught.value).startswith("90_tiny, cell [6] (# divide): ZeroDivisionError: division by zero\n")
    path = paths.build_dir() / "notebooks/quick/90_tiny.ipynb"
    assert "ZeroDivisionError" in path.read_text()
    assert not notebooks.is_done(source, profile="quick", seed=0)
    with pytest.raises(NotebookError):
        notebooks.publish(source)
    assert not (course / "notebooks/90_tiny.ipynb").exists()


@pytest.mark.slow
def test_a_kernel_that_dies_is_said_so(course):
    source = write(course, f"{TINY}\n# %%\nimport os\nos._exit(1)\n")
    with pytest.raises(NotebookError, match="90_tiny: its kernel died"):
        notebooks.execute(source, profile="quick")
    assert list((paths.build_dir() / "notebooks/quick").iterdir()) == []


@pytest.mark.slow
def test_a_notebook_of_a_megabyte_is_not_stored(course):
    source = write(course, f"{TINY}\n# %%\nprint('x' * 1_000_000)\n")
    with pytest.raises(NotebookError, match=r"90_tiny has 1,00\d,\d\d\d bytes; allowed: less than 1,000,000"):
        notebooks.publish(source)
    assert not (course / "notebooks/90_tiny.ipynb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("foreign", ["ends", "is missing"])
def test_the_interpreter_that_runs_the_command_runs_the_notebooks(foreign, course, monkeypatch):
    """Whichever kernel somebody has installed under the usual name, and whatever folder has braces in its name."""
    spec = course / "jupyter/kernels/python3/kernel.json"
    spec.parent.mkdir(parents=True)
    python = [sys.executable, "-c", "raise SystemExit(3)"] if foreign == "ends" else ["/nonexistent/python"]
    spec.write_text(json.dumps({"argv": [*python, "{connection_file}"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(course / "jupyter"))
    monkeypatch.setenv("COURSE_BUILD_DIR", str(course / "{build}"))
    source = write(course, f"{TINY}\n# %%\nimport sys\nprint(sys.executable)\n")
    path = notebooks.execute(source, profile="smoke")
    assert path == course / "{build}/notebooks/smoke/90_tiny.ipynb"
    assert read(path).cells[-1].outputs[0].text.strip() == sys.executable.replace(str(paths.ROOT) + os.sep, "")


@pytest.mark.parametrize(("code", "said"), [
    ("raise SystemExit(3)", "Kernel died before replying"),
    ("import time; time.sleep(600)", "Kernel didn't respond in 1 seconds"),
])  # fmt: skip
def test_a_kernel_that_does_not_start_is_one_sentence(code, said, course, monkeypatch):
    from jupyter_client.kernelspec import KernelSpec

    kernel = notebooks._this_python()
    spec = KernelSpec(argv=[sys.executable, "-c", code], display_name="x", language="python")
    monkeypatch.setattr(kernel, "kernel_spec", spec)
    monkeypatch.setattr(notebooks, "_this_python", lambda: kernel)
    monkeypatch.setattr(notebooks, "START_SECONDS", 1 if "sleep" in code else 60)
    with pytest.raises(
        NotebookError, match=rf"90_tiny: its kernel did not start \({said}.*\); try .*ipykernel"
    ) as error:
        notebooks.execute(chapters.find()[0], profile="quick")
    assert "\n" not in str(error.value)
    assert list((paths.build_dir() / "notebooks/quick").iterdir()) == []


@pytest.mark.parametrize("python", ["/nonexistent/python", "", None])
def test_an_interpreter_that_is_gone_is_one_sentence(python, course, monkeypatch):
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(NotebookError, match="90_tiny: its interpreter is gone"):
        notebooks.execute(chapters.find()[0], profile="quick")


def test_a_build_folder_that_cannot_be_written_is_one_sentence(course, monkeypatch):
    (course / "file").touch()
    monkeypatch.setenv("COURSE_BUILD_DIR", str(course / "file"))
    with pytest.raises(NotebookError, match="90_tiny: .*file.*: (Not a directory|File exists)$"):
        notebooks.execute(chapters.find()[0], profile="quick")


@pytest.mark.parametrize(("code", "advice"), [
    (errno.ENOSPC, "free some space, or set COURSE_BUILD_DIR to a folder on another disk"),
    (errno.EROFS, "make it writable, or set COURSE_BUILD_DIR to a folder that is"),
])  # fmt: skip
def test_a_disk_that_is_full_or_read_only_is_one_sentence(code, advice, course, monkeypatch):
    def refuse(notebook, path, **options):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr("papermill.execute_notebook", refuse)
    with pytest.raises(NotebookError) as error:
        notebooks.execute(chapters.find()[0], profile="quick")
    assert str(error.value).startswith("90_tiny: ") and f".90_tiny.ipynb: {os.strerror(code)}; {advice}" in str(
        error.value
    )


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a CI's shell may have it ignored
from pathlib import Path
from helpers import __main__
from helpers.course import chapters, setup
chapters.SOURCES = Path(sys.argv[1])
setup.ensure = lambda: None
sys.exit(__main__.main(["course", "90"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_ends_the_kernel_and_leaves_nothing_half_written(course):
    flag = course / "started"
    write(course, f"{TINY}\n# %%\nimport time, pathlib\npathlib.Path({str(flag)!r}).touch()\ntime.sleep(300)\n")
    command = [sys.executable, "-c", INTERRUPTED, str(course / "notebooks/src")]
    process = subprocess.Popen(
        command, cwd=paths.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_until(flag.exists, 120)
        kernels = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Interrupted" in err and "Traceback" not in err, err
    wait_until(lambda: not any(kernel.is_running() for kernel in kernels), 30)
    assert kernels and [p for p in paths.build_dir().rglob("*") if p.is_file()] == []


def wait_until(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


# ---------------------------------------------------------------- the course's own notebooks


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_every_notebook_uses_the_shared_package_and_its_record(source):
    code = source.read_text()
    assert identity.used(code.encode(), package=staleness.HELPERS), "uses helpers"
    assert f'evidence.start("{source.stem}", profile=PROFILE, seed=SEED' in code
    assert "run.finish()" in code


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_every_built_notebook_is_that_of_its_source(source):
    path = chapters.BUILT / f"{source.stem}.ipynb"
    assert path.exists(), "run make notebooks"
    notebook = read(path)
    assert staleness.stale().get(source.stem) != "is older than its source", "run make notebooks"
    assert (notebook.metadata.course.profile, notebook.metadata.course.seed) == ("quick", 0)
    assert path.stat().st_size < notebooks.MAX_BYTES
    kinds = [output.output_type for cell in notebook.cells for output in cell.get("outputs", [])]
    assert kinds and "error" not in kinds
    for place in (str(paths.ROOT), str(Path.home()), "ipykernel_", "/tmp/"):
        assert place not in path.read_text(), place


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_every_built_notebook_shows_its_solutions_to_be_right(source):
    """Above all those that predict a number: what is measured can drift away from them."""
    asked = set(re.findall(r"""exercises\.check\(\s*["']([\d.]+)""", source.read_text()))
    built = (chapters.BUILT / f"{source.stem}.ipynb").read_text()
    assert asked and {id for id in asked if f"Exercise {id} — right." not in built} == set()


def test_every_built_notebook_has_a_source():
    assert [name for name, reason in staleness.stale().items() if reason == "has no source"] == []


OFFLINE = '''
"""Loaded by every Python that has this folder on its path: no address but loopback can be reached."""
import socket

def refuse(connect):
    def wrapper(self, address, *rest):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError("the network is blocked")
        return connect(self, address, *rest)
    return wrapper

socket.socket.connect = refuse(socket.socket.connect)
socket.socket.connect_ex = refuse(socket.socket.connect_ex)
socket.getaddrinfo = lambda *args, **kwargs: (_ for _ in ()).throw(socket.gaierror("the network is blocked"))
'''


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Block the network in every process that is started from here: Python's sockets, and npm."""
    (tmp_path / "offline").mkdir()
    (tmp_path / "offline/sitecustomize.py").write_text(OFFLINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "offline"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "the network is blocked" in done.stderr


@pytest.mark.notebook
@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_smoke_runs_offline_and_twice_the_same(source, offline, tmp_path, monkeypatch):
    """Two runs with one seed give the same results, model files included; `make test` has made the first by nbval."""
    first = Path(os.environ.get("COURSE_SMOKE_DIR") or tmp_path / "first")
    if not result_of(source, first).exists():
        smoke(source, first, monkeypatch)
    smoke(source, tmp_path / "second", monkeypatch)
    one, two = (evidence.read(result_of(source, folder)) for folder in (first, tmp_path / "second"))
    assert one.comparable() == two.comparable()
    files = sorted(path.relative_to(tmp_path / "second") for path in (tmp_path / "second/models").rglob("*.*"))
    for file in files:
        assert (first / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


def smoke(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_BUILD_DIR", str(folder))
    notebooks.execute(source, profile="smoke")


def result_of(source: Path, folder: Path) -> Path:
    return folder / "results/smoke" / f"{source.stem}.seed0.json"


KILLED = """
import sys
from pathlib import Path
from helpers import __main__
from helpers.course import chapters, setup
chapters.SOURCES = Path(sys.argv[1])
setup.ensure = lambda: None
sys.exit(__main__.main(["course", "05", "--profile", "smoke"]))
"""


@pytest.mark.notebook
@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_a_run_killed_twice_and_repeated_ends_with_the_results_of_an_undisturbed_one(tmp_path, monkeypatch):
    """05, with smoke's sizes; its trainings keep their states, as those of the full profile do."""
    source = chapters.find(["05"])[0]
    undisturbed = Path(os.environ.get("COURSE_SMOKE_DIR") or tmp_path / "undisturbed")
    if not result_of(source, undisturbed).exists():
        smoke(source, undisturbed, monkeypatch)
    (tmp_path / "src").mkdir()
    only_full = ' if PROFILE == "full" else None'
    assert only_full in source.read_text()
    (tmp_path / "src" / source.name).write_text(source.read_text().replace(only_full, ""))
    build = tmp_path / "killed"
    monkeypatch.setenv("COURSE_BUILD_DIR", str(build))

    def run() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "src")], cwd=paths.ROOT)

    def states() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (build / "scratch").rglob("[!.]*.pt")}

    draw = random.Random(6)
    for trainings in sorted(draw.sample(range(1, 6), 2)):
        seconds = draw.uniform(0, 0.5)
        print(f"killed {seconds:.2f} s after training {trainings} of 7 has kept its first state")
        process = run()
        wait_until(lambda process=process, n=trainings: len(states()) >= n or process.poll() is not None, 300)
        time.sleep(seconds)
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()
        assert process.wait() == -signal.SIGKILL and not result_of(source, build).exists()
    before = sorted(states().items(), key=lambda item: item[1])
    assert run().wait() == 0
    one, two = (evidence.read(result_of(source, folder)) for folder in (undisturbed, build))
    assert one.comparable() == two.comparable()
    after = states()
    assert len(after) > len(before) and all(after[path] == when for path, when in before[:-1]), "nothing trained twice"


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_every_built_notebook_says_what_its_published_results_say(source):
    """Each claim with its figure and outcome, no claim beside them, and how long the full profile took."""
    cells = read(chapters.BUILT / f"{source.stem}.ipynb").cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    said = [output.data["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {})]
    published = evidence.read(paths.RESULTS / f"quick/{source.stem}.seed0.json")
    claims = [recording._claim_line(claim, "quick") for claim in published.claims]
    shown = [
        line for text in said for line in text.splitlines() if re.match(r"\*\*.+:\*\* .+ — measured .+, claimed ", line)
    ]
    assert Counter(claims) <= Counter(shown)
    others = Counter(shown) - Counter(claims)
    assert all(line.startswith("**Does not hold:**") for line in others), others  # shown on purpose, and not recorded
    full = evidence.timetable(source.stem).partition("*full*")[2]
    assert any(text.endswith(full) for text in said), full
