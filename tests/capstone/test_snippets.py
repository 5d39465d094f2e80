import json
import os
import sys
import time

import psutil
import pytest

from helpers.capstone import snippets
from helpers.capstone.snippets import Outcome, recall, record_transcript, run_snippet
from helpers.core import paths

# ---------------------------------------------------------------- what comes back


def test_what_is_printed_comes_back():
    outcome = run_snippet("print('one')\nprint('zwölf ≥ 3')")
    assert (outcome.printed, outcome.error, outcome.message) == ("one\nzwölf ≥ 3\n", "", "")
    assert outcome.ended and str(outcome) == "one\nzwölf ≥ 3"
    assert 0 < outcome.seconds < 30


def test_an_exception_is_reported_with_its_type_and_message_after_what_was_printed():
    outcome = run_snippet("print('before')\nraise KeyError('absent')\nprint('after')")
    assert outcome.printed == "before\n"
    assert (outcome.error, outcome.message) == ("KeyError", "'absent'")
    assert not outcome.ended
    assert str(outcome) == "before\nKeyError: 'absent'"


def test_a_class_of_the_snippets_own_is_named():
    outcome = run_snippet("class Odd(Exception): pass\nraise Odd")
    assert (outcome.error, str(outcome)) == ("Odd", "Odd")


def test_code_that_is_no_python_is_reported():
    assert run_snippet("for x in").error == "SyntaxError"


def test_leaving_early_is_no_success():
    assert (run_snippet("import sys\nsys.exit(3)").error, run_snippet("import os\nos._exit(3)").error) == (
        "SystemExit",
        "Crash",
    )
    assert run_snippet("import os\nos._exit(3)").message == "the process ended with code 3"


def test_what_goes_to_stderr_is_left_out():
    outcome = run_snippet("import sys\nprint('a warning', file=sys.stderr)")
    assert str(outcome) == "(nothing printed, no error)"


def test_of_a_long_output_the_beginning_comes_back_and_how_much_is_missing():
    """300 MB stay in a file, which is deleted: they never come into this process."""
    before = psutil.Process().memory_info().rss
    outcome = run_snippet("for _ in range(300): print('x' * 999_999)\nraise ValueError('y' * 10_000_000)")
    assert psutil.Process().memory_info().rss - before < 50e6
    assert len(outcome.printed) < 1.1 * snippets.PRINTED and outcome.printed.startswith("x" * 999_999 + "\nx")
    assert outcome.printed.endswith(f"({300_000_000 - snippets.PRINTED:,} bytes more)\n")
    assert (outcome.error, outcome.message) == ("ValueError", "y" * 10_000)
    exactly = run_snippet(f"print('x' * {snippets.PRINTED - 1})").printed
    assert len(exactly) == snippets.PRINTED and exactly.endswith("x\n")


def test_a_report_that_is_none_is_a_crash():
    assert run_snippet("import os\nopen('../report.json', 'w').write('[1, 2, 3]')\nos._exit(0)").error == "Crash"


def test_a_timeout_is_said_and_what_was_printed_is_kept():
    began = time.monotonic()
    outcome = run_snippet("import time\nprint('started', flush=True)\ntime.sleep(60)", timeout=2)
    assert (outcome.printed, outcome.error, outcome.message) == ("started\n", "Timeout", "stopped after 2 s")
    assert time.monotonic() - began < 30


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_what_the_snippet_started_is_stopped_with_it():
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    child = int(run_snippet(code, timeout=3).printed)
    for _ in range(50):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child is still there")


# ---------------------------------------------------------------- a process of its own


def test_nothing_of_this_process_leaks(monkeypatch, tmp_path):
    (tmp_path / "parents_module.py").write_text("x = 1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert "pytest" in sys.modules and "psutil" in sys.modules
    assert run_snippet("import sys\nprint({'pytest', 'psutil', 'helpers'} & set(sys.modules))").printed == "set()\n"
    assert run_snippet("import parents_module").error == "ModuleNotFoundError"
    assert run_snippet("print(pytest)").error == "NameError"
    assert run_snippet("print(__name__, __builtins__ is not None, sorted(globals()))").printed == (
        "__main__ True ['__builtins__', '__name__']\n"
    )


def test_each_has_an_empty_folder_of_its_own_that_is_deleted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "import os, tempfile\nprint(os.listdir())\nopen('left.txt', 'w').write('x')\nprint(tempfile.gettempdir())"
    first, second = run_snippet(code), run_snippet(code)
    assert first.printed == second.printed == "[]\n.\n", "no folder's name comes back"
    assert list(tmp_path.iterdir()) == []


def test_no_name_of_the_folder_stands_in_a_message():
    outcome = run_snippet("import os\nopen(os.path.join(os.getcwd(), 'absent.txt'))")
    assert (outcome.error, outcome.message) == (
        "FileNotFoundError",
        f"[Errno 2] No such file or directory: '.{os.sep}absent.txt'",
    )


def test_one_thread():
    settings = "{'OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'}"
    assert run_snippet(f"import os\nprint({{os.environ[name] for name in {settings}}})").printed == "{'1'}\n"


@pytest.mark.parametrize(
    "call",
    [
        "socket.create_connection(('127.0.0.1', 9), timeout=2)",
        "socket.getaddrinfo('example.invalid', 80)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        "__import__('urllib.request').request.urlopen('http://127.0.0.1:9', timeout=2)",
    ],
)
def test_no_network(call):
    outcome = run_snippet(f"import socket\n{call}")
    assert "no network" in outcome.message


@pytest.mark.parametrize("code", ["", " \n", None, 3, b"print(1)"])
def test_what_is_no_code_is_refused(code):
    with pytest.raises(ValueError, match="code=.*; allowed: a text with at least one statement"):
        run_snippet(code)


@pytest.mark.parametrize("timeout", [0, -1, "5", None, True, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_refused(timeout):
    with pytest.raises(ValueError, match="timeout=.*; allowed: a number of seconds above 0"):
        run_snippet("1", timeout=timeout)


def test_the_module_needs_no_package():
    code = f"import sys\nsys.path.insert(0, {str(paths.ROOT)!r})\nfrom helpers.capstone import snippets\n"
    assert run_snippet(code + "print({'torch', 'numpy'} & set(sys.modules))").printed == "set()\n"


# ---------------------------------------------------------------- transcripts


def test_what_is_recorded_is_recalled(tmp_path, monkeypatch):
    monkeypatch.setattr(snippets, "TRANSCRIPTS", tmp_path / "new")
    codes = {"adds": "print(1 + 1)", "fails": "print('x')\n1 / 0"}
    path = record_transcript("arithmetic", codes, packages=["pytest", "psutil"])
    stored = json.loads(path.read_text())
    assert stored["packages"] == {"pytest": pytest.__version__, "psutil": psutil.__version__}
    assert recall("\nprint(1 + 1)\n", name="arithmetic").printed == "2\n"
    recalled = recall(codes["fails"], name="arithmetic")
    assert (recalled.printed, recalled.error, recalled.message) == ("x\n", "ZeroDivisionError", "division by zero")
    assert f"pytest {pytest.__version__}" in recalled.source and stored["date"] in recalled.source
    with pytest.raises(ValueError, match=r"code='print\(1 \+ 2\)'… is not in the transcript; allowed: adds, fails"):
        recall("print(1 + 2)", name="arithmetic")
    with pytest.raises(ValueError, match="name='other' is unknown; allowed: 'arithmetic'"):
        recall("print(1 + 1)", name="other")
    with pytest.raises(ValueError, match="codes is empty"):
        record_transcript("nothing", {}, packages=[])


def test_an_outcome_says_that_it_was_run_now():
    assert Outcome("", "", "", 0.1).source == "run now"


def test_the_stored_transcript_names_no_place_and_holds_all_that_the_notebook_shows():
    stored = snippets.transcript("tensorflow")
    assert str(paths.ROOT) not in json.dumps(stored) and "/tmp" not in json.dumps(stored)
    assert {"tensorflow", "tensorflow_model_optimization", "keras", "tf_keras"} <= set(stored["packages"])
    source = (paths.NOTEBOOKS / "src" / "21_read_critically.py").read_text()
    for title, run in stored["runs"].items():
        assert run["code"].strip() in source, f"{title} was stored with another code than the notebook's"


def test_in_the_stored_transcript_the_published_call_fails_and_the_right_ones_work():
    ends = {title: run["error"] for title, run in snippets.transcript("tensorflow")["runs"].items()}
    refused = {"published call": "TypeError", "pruning a Keras 3 model": "ValueError"}
    works = ("one tensor", "TFLite converter", "Keras int8", "pruning", "QAT")
    assert ends == refused | dict.fromkeys(works, "")
