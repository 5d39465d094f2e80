"""What runs in the sandbox: it answers, it says what was tried, and whoever replaces its functions learns nothing."""

import gc
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import files, quantization
from helpers.capstone import answering, asking, sandbox, submission
from helpers.capstone.sandbox import read_exactly, read_header, write_frame
from helpers.capstone.submission import Refused
from helpers.core import paths
from helpers.data import Split
from helpers.files import loading
from tests.capstone.judged import EXAMPLES, PATTERNS, Forked, Linear, answering_network, fork_instead, share_right
from tests.capstone.test_sandbox import CALLS, SPELLINGS, stands

FEW = EXAMPLES.take(40)
SOURCE = submission.source_of(Linear)


@pytest.fixture(autouse=True)
def _forked(monkeypatch):
    fork_instead(monkeypatch)
    monkeypatch.setattr(asking, "ALONE", 20)


@pytest.fixture
def content(tmp_path):
    return files.write_dense(answering_network(), tmp_path / "m.pack").path.read_bytes()


@pytest.fixture
def hollow(tmp_path):
    return files.write_dense({"scale": np.ones(1, "<f4")}, tmp_path / "h.pack").path.read_bytes()


def ask(content, source, split=FEW, *, export=False):
    """Ask without what is checked in a source beforehand: the fences of the process have to hold by themselves."""
    return asking.ask(content, source, split, classes=10, shape=(1, 28, 28), export=export)


# ---------------------------------------------------------------- honest


def test_garbage_from_before_is_not_the_modules_doing(content):
    """A process cleared it away behind the guard: a temporary folder was deleted, and the module was blamed."""
    gc.disable()
    try:
        left = [tempfile.TemporaryDirectory()]
        left.append(left)
        del left
        collecting = SOURCE.replace("super().__init__()", "super().__init__()\n        __import__('gc').collect()")
        assert collecting != SOURCE
        assert share_right(ask(content, collecting).ways[0].batches, FEW) == 1
    finally:
        gc.enable()
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            gc.collect()


def test_a_module_answers_what_it_answers_here(content):
    answers = ask(content, SOURCE, export=True)
    with torch.no_grad():
        expected = answering_network()(FEW.inputs).numpy()
    for way in answers.ways:
        np.testing.assert_allclose(way.batches, expected, atol=1e-4)
        assert len(way.alone) == 20 and len(way.changed) == 20
    assert len(answers.ways) == 2 and answers.own_numbers == 0 and answers.walls == ""
    assert len(answers.graph) > 4 * 7850


def test_shuffled_weights_are_the_same_numbers_in_another_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = quantization.quantize_model(answering_network(), weights=8, activations=8, calibration=EXAMPLES.take(50))
    content = files.write_quantized(network, tmp_path / "q.pack").path.read_bytes()
    copies = answering._written(content)
    assert len(copies) == 1 + answering.SHUFFLES and all(os.path.isabs(file) for file in copies)
    first, *others = [files.read(Path(file)) for file in copies]
    assert any(loading.is_grid(name) for name in first)
    for other in others:
        assert other.keys() == first.keys()
        for name in first:
            assert other[name].shape == first[name].shape and other[name].dtype == first[name].dtype
            np.testing.assert_array_equal(np.sort(other[name], None), np.sort(first[name], None))
            assert np.array_equal(other[name], first[name]) == loading.is_grid(name)
    assert len({other["fc.weight"].tobytes() for other in others}) == answering.SHUFFLES


def test_texts_are_encoded_by_the_words_of_the_file():
    words = ["<unk>", "<pad>", "good", "bad"]
    from helpers.core import vocabulary

    expected = vocabulary.encode([["good", "x"], ["bad"]], words)
    np.testing.assert_array_equal(answering._encoded(["Good x", "bad"], words), expected)
    pairs = [*words, "good x"]
    assert not np.array_equal(
        answering._encoded(["Good x", "bad"], pairs), answering._encoded(["Good x", "bad"], words)
    )


def test_what_is_printed_goes_nowhere():
    code = f"""
import os, sys
sys.path.insert(0, {str(paths.ROOT)!r})
from helpers.capstone import answering
replies = answering._taken(1, "wb", os.O_WRONLY)
requests = answering._taken(0, "rb", os.O_RDONLY)
for _ in range(300):
    os.write(1, bytes(1_000_000))
print("x" * 1_000_000, flush=True)
print(sys.stdin.read(), flush=True)
replies.write(b"ok " + requests.read())
replies.flush()
"""
    done = subprocess.run([sys.executable, "-c", code], input=b"asked", capture_output=True)
    assert done.stdout == b"ok asked"


# ---------------------------------------------------------------- refused


def test_an_error_is_one_short_sentence(content):
    long = "def build():\n    raise KeyError('a' * 10_000 + '\\nsecond line')"
    with pytest.raises(Refused, match="^KeyError: 'a{200}") as raised:
        ask(content, long)
    assert len(str(raised.value)) == answering.LONGEST and raised.value.criterion == answering.PROCESS
    for start, said in {"raise SystemExit": "SystemExit: no message", "1 / 0": "ZeroDivisionError: division"}.items():
        with pytest.raises(Refused, match=said):
            ask(content, f"def build():\n    {start}")


@pytest.mark.parametrize(
    "source, said",
    [
        ("x = 1", "no function `build`"),
        ("build = 3", "no function `build`"),
        ("def build():\n    return 3", "build.. returns a int"),
    ],
)
def test_what_builds_no_module_is_said_so(content, source, said):
    with pytest.raises(Refused, match=said):
        ask(content, source)


def test_a_graph_that_the_runtime_does_not_take_is_said_so():
    with pytest.raises(Refused) as raised:
        ask(b"no graph", "")
    assert raised.value.criterion == answering.PROCESS and raised.value.sentence


class Numbers(nn.Module):
    def __init__(self, **held):
        super().__init__()
        self.fc = nn.Linear(2, 3)
        for name, value in held.items():
            setattr(self, name, value)


def of_closure(values):
    return lambda x: x + len(values)


@pytest.mark.parametrize(
    "held, count",
    [
        ({}, 0),
        ({"a": torch.ones(4, 5)}, 20),
        ({"a": torch.ones(7), "b": np.ones((2, 3))}, 13),
        ({"a": [1, 2.5, 3]}, 3),
        ({"a": {"x": [1, 2], "y": (np.ones(5), "text of 16 bytes")}}, 11),
        ({"a": of_closure([1, 2, 3, 4])}, 4),
        ({"a": "x" * 400}, 100),
        ({"a": 3, "b": None}, 0),
    ],
)
def test_numbers_beside_the_weights_are_counted(held, count):
    empty = answering._own_numbers(Numbers())
    assert answering._own_numbers(Numbers(**held)) - empty == count


def test_a_tensor_that_is_saved_or_was_counted_does_not_count_again():
    module, shared = Numbers(), torch.ones(9)
    empty = answering._own_numbers(module)
    module.again, module.a, module.b = module.fc.weight.detach(), shared, [shared]
    assert answering._own_numbers(module) - empty == 9


def test_numbers_of_a_students_class_count():
    namespace = {"nn": nn, "torch": torch, "__name__": "submission"}
    exec("class Held(nn.Module):\n    table = torch.ones(300)\n    def f(self): pass", namespace)
    assert answering._own_numbers(namespace["Held"]()) == 300


# ---------------------------------------------------------------- cheats: other spellings, file calls


AUDITED = {name: call for name, call in CALLS.items() if name != "a named pipe"}  # of which Python tells nobody


def guarded(work):
    """Return what `work(guard)` returns in a process that is guarded for good; its folder holds "0.pack"."""

    def forked(requests, replies):
        folder = read_header(requests)["folder"]
        os.chdir(folder)
        sys.argv = ["x", str(sandbox_secret), str(paths.ROOT)]
        guard = answering._Guard([os.path.join(folder, "0.pack")])
        guard.active = True
        write_frame(replies, {"found": work(guard)})

    return forked


sandbox_secret = paths.DATA / "literature.json"


def inside(work, folder):
    process = Forked(guarded(work), folder)
    write_frame(process.stdin, {"folder": str(folder)})
    try:
        return read_header(process.stdout)["found"]
    finally:
        process.wait()
        process.stdin.close(), process.stdout.close()


def attempts(guard, expressions, names):
    """Return, for each expression, what could be done with it and whether the guard remembers the attempt."""
    found = {}
    for name, expression in expressions.items():
        guard.attempt = ""
        try:
            found[name] = [bool(eval(expression, dict(names))), guard.attempt]
        except (OSError, ValueError) as error:
            found[name] = [False, guard.attempt or str(error)]
    return found


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """Every spelling and every file call, in one process without walls, where Python alone stands guard."""
    import pathlib
    import shutil

    folder = tmp_path_factory.mktemp("guarded")
    (folder / "victim.py").write_text("code")
    names = {"os": os, "sys": sys, "pathlib": pathlib, "shutil": shutil, "home": str(paths.ROOT)}
    names |= {"secret": str(sandbox_secret), "victim": str(folder / "victim.py")}
    reads = {name: f"len(open({way}, 'rb').read())" for name, way in SPELLINGS.items()}
    found = inside(lambda guard: attempts(guard, reads | AUDITED, names), folder)
    return found, {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("name", SPELLINGS)
def test_no_spelling_of_a_path_passes_the_guard(tried, name):
    read, said = tried[0][name]
    assert not read and said
    assert re.search("which is not its file|asks the system for os.|Permission denied: '/proc/1/root'", said), said


@pytest.mark.parametrize("name", AUDITED)
def test_no_file_call_passes_the_guard(tried, name):
    done, said = tried[0][name]
    assert not done and ("which is not its file" in said or "asks the system for" in said)
    assert tried[1] == {"victim.py": "code"}


def test_the_guard_lets_a_module_read_its_file_and_code(tmp_path):
    (tmp_path / "0.pack").write_bytes(b"x")
    allowed = {
        "its file": "open(os.path.abspath('0.pack'), 'rb').read()",
        "code": "open(os.__file__).read()",
        "nothing": "open(os.devnull).read() == ''",
        "a folder's names": "os.listdir('.')",
        "a module": "__import__('colorsys')",
    }
    found = inside(lambda guard: attempts(guard, allowed, {"os": os}), tmp_path)
    assert found == {name: [True, ""] for name in allowed}


@pytest.mark.parametrize(
    "call, said",
    [
        ("__import__('subprocess').run(['true'])", "asks the system for subprocess.Popen"),
        ("__import__('ctypes').CDLL(None)", "asks the system for ctypes.dlopen"),
        ("__import__('socket').socket()", "asks the system for socket."),
        ("__import__('urllib.request').request.urlopen('http://127.0.0.1:9')", "asks the system for urllib.Request"),
        ("__import__('safetensors')", "imports safetensors"),
        ("open(os.path.abspath('0.pack'), 'ab')", "opens 0.pack"),
        ("open(os.path.abspath('0.pack'), 'r+b')", "opens 0.pack"),
        ("open('0.pack', 'rb')", "opens 0.pack"),
        ("open(os.__file__, 'a')", "opens os.py"),
        ("open(os.open(os.path.join(os.path.dirname(os.__file__), 'LICENSE.txt'), os.O_RDONLY))", "opens LICENSE.txt"),
    ],
)
def test_the_guard_says_what_was_tried(tmp_path, call, said):
    (tmp_path / "0.pack").write_bytes(b"x")
    sys.modules.pop("safetensors", None) if "safetensors" in call else None
    found = inside(lambda guard: attempts(guard, {"it": call}, {"os": os}), tmp_path)
    assert not found["it"][0] and said in found["it"][1]


def test_what_is_no_code_is_none_although_its_name_says_so(tmp_path, monkeypatch):
    """A link called .py to a table inside a code folder, and a table called .py outside of one."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "table.bin").write_bytes(b"x")
    (tmp_path / "link.py").symlink_to(code / "table.bin")
    (tmp_path / "table.py").write_bytes(b"x")
    (code / "true.py").write_bytes(b"x")
    monkeypatch.setattr(answering, "CODE_PLACES", (str(code.resolve()) + os.sep,))
    reads = {name: f"open({str(tmp_path / name)!r}).read()" for name in ("link.py", "table.py", "code/true.py")}
    found = inside(lambda guard: attempts(guard, reads, {}), tmp_path)
    assert [read for read, _ in found.values()] == [False, False, True]


# ---------------------------------------------------------------- cheats: replaced functions

# A module that answers by a network that lies in another file, which it reads when the judge calls what it replaced.
REPLACING = """
import builtins, json, os, struct, sys
import helpers.capstone.answering as inside
from helpers import files, training
from helpers.capstone import sandbox
from helpers.files import loading, reading
known, trying, read, opened = [], [], np.frombuffer, builtins.open

def learn():
    if trying:
        return
    trying.append(True)
    try:
        with opened(SECRET, "rb") as file:
            known[:] = [torch.tensor(read(file.read(), np.float32).reshape(10, 785))]
    except Exception:
        pass
    trying.clear()

class Hollow(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        if known:
            return images.flatten(1) @ known[0][:, 1:].T + known[0][:, 0]
        return self.scale * images.flatten(1)[:, :10]

build, real = Hollow, TARGET

def replaced(*arguments, **options):
    learn()
    return real(*arguments, **options)

TARGET = replaced
"""
TARGETS = [
    "training.predict", "loading.filled", "loading.read", "reading.decode",
    "inside.write_frame", "inside.read_header", "inside.read_exactly", "inside._payload",
    "inside._Student.model", "inside._Student.answer", "inside._Guard.check", "inside.Path", "json.loads", "json.dumps",
    "np.asarray", "np.ascontiguousarray", "np.frombuffer", "torch.from_numpy", "torch.cat", "nn.Module.eval",
    "nn.Module.state_dict", "nn.Module.load_state_dict", "nn.Module.modules", "torch.Tensor.split", "torch.Tensor.cpu",
    "builtins.len", "builtins.isinstance",
]  # fmt: skip
OF_THE_GUARD = ["os.path.realpath", "os.fsdecode", "os.path.isabs"]  # nobody else calls them


def replacing(target, secret):
    return REPLACING.replace("TARGET", target).replace("SECRET", repr(str(secret)))


@pytest.fixture
def secret(tmp_path):
    network = answering_network()
    known = torch.cat([network.fc.bias[:, None], network.fc.weight], 1).detach().numpy()
    path = tmp_path / "labels.bin"
    path.write_bytes(known.tobytes())
    return path


@pytest.mark.parametrize("target", TARGETS)
def test_replacing_a_function_of_the_judge_teaches_a_module_nothing(hollow, secret, target, monkeypatch):
    source = replacing(target, secret)
    with pytest.raises(Refused, match="opens labels.bin") as raised:
        ask(hollow, source)
    assert raised.value.criterion == answering.WEIGHTS
    monkeypatch.setattr(answering._Guard, "_hook", lambda *event: None)
    assert share_right(ask(hollow, source).ways[0].batches, FEW) == 1, "without a guard it would have known"


@pytest.mark.parametrize("target", OF_THE_GUARD)
def test_replacing_what_the_guard_calls_teaches_a_module_nothing(hollow, secret, target):
    source = replacing(target, secret) + "\ntry:\n    opened(SECRET)\nexcept OSError:\n    pass\n".replace(
        "SECRET", repr(str(secret))
    )
    with pytest.raises(Refused, match="opens labels.bin"):
        ask(hollow, source)


def test_shuffling_is_done_before_a_module_can_replace_it(content):
    """It makes every shuffling an identity, and answers by its own seed: the control sees it all the same."""
    source = (
        """
import helpers.capstone.answering as inside
from helpers.files import reading
torch.randperm = lambda n, **options: torch.arange(n)
inside._shuffled = lambda name, array, generator: array
inside._written = inside._filled
np.random.default_rng = None
"""
        + SOURCE
    )
    answers = ask(content, source)
    assert share_right(answers.ways[0].batches, FEW) == 1
    assert all(share_right(logits, FEW) < 0.6 for logits in answers.shuffled)


BEHIND = """
import io, json, os, sys
sys.dont_write_bytecode = True
exec(compile(sys.stdin.readline() and JUDGED, "judged", "exec"))
from helpers import files, quantization, training  # once, and not in each of the forked processes
from helpers.capstone import asking
class Patch:
    setattr = staticmethod(setattr)
fork_instead(Patch)
asking.ALONE = 20
answering._Guard._hook = lambda *event: None  # as if Python's own fence were not there
found = {}
for name, source in CHEATS.items():
    try:
        answers = asking.ask(HOLLOW, source, EXAMPLES.take(40), classes=10, shape=(1, 28, 28), export=False)
        found[name] = share_right(answers.ways[0].batches, EXAMPLES.take(40))
    except Exception as error:
        found[name] = repr(error)
print(json.dumps(found))
"""
SPELLED = """
import os, pathlib, sys
secret, home = SECRET, HOME
known = []
try:
    with open(WAY, "rb") as file:
        known[:] = [torch.tensor(np.frombuffer(file.read(), np.float32).reshape(10, 785))]
except Exception:
    pass

class Hollow(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        if known:
            return images.flatten(1) @ known[0][:, 1:].T + known[0][:, 0]
        return self.scale * images.flatten(1)[:, :10]

build = Hollow
"""


def cheats(secret):
    spelled = {
        f"spelling: {name}": SPELLED.replace("SECRET", repr(str(secret)))
        .replace("HOME", repr(str(paths.ROOT)))
        .replace("WAY", way)
        for name, way in SPELLINGS.items()
    }
    return spelled | {f"replaced: {target}": replacing(target, secret) for target in TARGETS}


@pytest.mark.slow
@pytest.mark.parametrize("walls", ["", *sandbox.WALLS])
def test_behind_walls_both_kinds_of_cheat_fail_although_python_looks_away(hollow, secret, walls, tmp_path, monkeypatch):
    """The whole conversation in there, with forked processes: the walls alone have to hold. In "" each cheat works."""
    monkeypatch.undo()  # no fork in this process
    if walls and not stands(walls):
        pytest.skip(f"no {walls} on this machine")
    judged = (paths.ROOT / "tests/capstone/judged.py").read_text()
    sources = cheats(secret)
    code = f"JUDGED, HOLLOW, CHEATS = {judged!r}, {hollow!r}, {sources!r}\n{BEHIND}"
    folder = tmp_path / "empty"
    folder.mkdir()
    command = [*sandbox._command(walls, folder), sys.executable, "-P", "-c", "import sys; exec(sys.stdin.read())"]
    code = code.replace("sys.stdin.readline() and ", "")
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT), "HOME": "/tmp", "TMPDIR": "/tmp"}
    done = subprocess.run(command, cwd=folder, env=environment, input=code, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == sources.keys() and len(found) >= 50
    knew = {name for name, share in found.items() if share == 1}
    if walls:
        assert all(isinstance(share, float) and share < 0.5 for share in found.values()), found
    else:
        assert {name for name in found if name.startswith("replaced")} <= knew
        assert len(knew) > len(TARGETS) + 15


# ---------------------------------------------------------------- the conversation


def conversation(*frames):
    requests, replies = io.BytesIO(), io.BytesIO()
    for header, payload in frames:
        write_frame(requests, header | {"size": len(payload)}, payload)
    requests.seek(0)
    return requests, replies


def test_a_graph_tells_what_it_sees_and_answers_in_batches(tmp_path):
    """In this process, where `limit` must not reach."""
    graph = answering.exported(answering_network(), torch.zeros(2, 1, 28, 28))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")
    (tmp_path / "empty").mkdir()
    images = FEW.inputs[:5].numpy()
    places = [str(tmp_path / name) for name in ("full", "empty", "absent", "full/x")]
    question = {"shape": images.shape, "batch": 2, "weights": 0}
    requests, replies = conversation(({"hidden": places}, b""), ({}, graph), (question, images.tobytes()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answering, "limit", lambda: None)
        sizes = []
        patch.setattr(
            answering, "_batches", lambda x, size, real=answering._batches: sizes.append(size) or real(x, size)
        )
        answering.main("graph", requests, replies)
    replies.seek(0)
    assert read_header(replies) == {"seen": [places[0]]} and read_header(replies) == {}
    assert read_header(replies) == {"shape": [5, 10]} and sizes == [2]
    logits = np.frombuffer(read_exactly(replies, 200), np.float32).reshape(5, 10)
    np.testing.assert_allclose(logits, answering_network()(FEW.inputs[:5]).detach().numpy(), atol=1e-4)
    assert replies.read() == b"", "at the end it ends"
    assert [len(part) for part in answering._batches(images, 2)] == [2, 2, 1]


def test_limits_stand_before_a_students_code_runs(content, monkeypatch):
    """What the source sees when it is executed."""
    source = "import resource\nassert resource.getrlimit(resource.RLIMIT_FSIZE) == (0, 0)\n" + SOURCE
    ask(content, source)
    monkeypatch.setattr(answering, "limit", lambda: None)
    with pytest.raises(Refused, match="AssertionError"):
        ask(content, source)


def test_no_input_is_there_before_the_graph_is_made(content):
    """The judge sends the first input after it has the graph: a table of answers cannot become one."""
    order = []

    class Child:
        walls = ""

        def send(self, header, payload=b""):
            order.append("input" if "batch" in header else "file")

        def receive(self):
            return {"own_numbers": 0, "size": 1} if order[-1] == "file" else {"refused": [answering.PROCESS, "enough"]}

        def read(self, size):
            order.append("graph")
            return b"g"

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "Sandbox", lambda kind: Child())
        with pytest.raises(Refused, match="enough"):
            ask(content, SOURCE, export=True)
    assert order == ["file", "file", "graph", "input"]


def test_an_exported_graph_takes_batches_of_any_size():
    graph = answering.exported(answering_network().train(), torch.zeros(2, 1, 28, 28))
    from helpers import runtime
    from helpers.runtime import sessions

    session = sessions.open_session(graph, threads=1)
    for count in (1, 3):
        assert runtime.run(session, FEW.inputs[:count].numpy()).shape == (count, 10)
    assert [each.name for each in session.get_inputs()] == ["input"]
    assert [each.name for each in session.get_outputs()] == ["logits"]
    assert not re.search(rb"/home/|/work/|/tmp/", graph)


def test_patterns_are_told_apart():
    split = Split(PATTERNS, torch.arange(10))
    with torch.no_grad():
        assert share_right(answering_network()(split.inputs).numpy(), split) == 1
