"""The judge: an honest submission passes, each trick is caught by the criterion that is meant for it."""

import os
import pickle

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from helpers import evidence, files, nets, quantization, training
from helpers.capstone import answering, asking, judging, sandbox, submission
from helpers.capstone.judging import Budget
from helpers.data import Split
from helpers.files import encoding, writing
from tests.capstone.judged import EXAMPLES, LABELS, Linear, answering_network, fork_instead

EASY = Budget(bytes=40_000, accuracy=0.9)
FRESH = {  # these start real processes
    "test_an_honest_packed_submission_passes_and_is_measured",
    "test_a_folder_is_judged_with_its_speed",
    "test_a_process_that_dies_is_said_so",
}


@pytest.fixture
def packed(tmp_path):
    return files.write_dense(answering_network(), tmp_path / "m.pack").path


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(answering.exported(answering_network(), EXAMPLES.inputs[:2]))
    return path


@pytest.fixture(autouse=True)
def _forked(request, monkeypatch):
    if request.function.__name__ not in FRESH and hasattr(os, "fork"):
        fork_instead(monkeypatch)


def judge(path, build=None, budget=EASY, **options):
    return judging.judge(path, "mnist", budget, build=build, split=options.pop("split", EXAMPLES), **options)


# ---------------------------------------------------------------- honest


def test_a_packed_network_of_the_course_needs_no_source(tmp_path):
    options = {"epochs": 5, "lr": 1e-2, "optimizer": "adam", "batch_size": 30}
    network = training.fit(nets.MLP(20), EXAMPLES, seed=0, **options).model
    folder = tmp_path / "mine"
    folder.mkdir()
    file = files.write_quantized(quantization.quantize_model(network, weights=8), folder / "model.pack")
    judged = judge(folder)
    assert judged.passed and judged.bytes == file.bytes
    assert judge(file.path).accuracy == judged.accuracy > 0.9


@pytest.mark.slow
def test_an_honest_packed_submission_passes_and_is_measured(packed):
    lied = {"bytes": 5, "accuracy": 1.0}
    judged = judge(packed, Linear, claimed=lied)
    assert judged.passed and judged.failed == []
    network = training.evaluate(answering_network(), EXAMPLES)
    assert judged.accuracy == network.accuracy
    source = submission.source_of(Linear)
    assert judged.bytes == packed.stat().st_size + len(source.encode()) and "class Linear" in source
    assert len(judged.disagreements) == 1 + (network.accuracy < 0.9995)
    table = judged.table()
    assert list(table.index[:7]) == [c for c in judging.CRITERIA if c != judging.SPEED]
    assert "5 was claimed" in table["measured"].iloc[7]


def test_an_honest_graph_passes_and_a_budget_that_is_not_met_is_said(graph):
    judged = judge(graph)
    assert judged.passed and judged.bytes == graph.stat().st_size
    judged = judge(graph, budget=Budget(bytes=100, accuracy=0.9))
    assert judged.failed == [judging.BYTES] and "at most 100" in judged.table().loc["bytes", "asked"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of the checks of shapes, which only tests switch on
def test_a_folder_is_judged_with_its_speed(packed, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    packed.rename(folder / "model.pack")
    (folder / "model.py").write_text(submission.source_of([Linear]))
    judged = judge(folder, budget=Budget(bytes=40_000, accuracy=0.9, speedup=1.5))
    assert judged.passed, judged.table().to_string()  # 292 times fewer MACs than LeNet-5
    low, high = judged.speed_interval
    assert low <= judged.speedup <= high
    too_much = judge(folder, budget=Budget(bytes=40_000, accuracy=0.9, speedup=10_000.0))
    assert too_much.failed == [judging.SPEED]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_clock_runs_on_one_image_of_the_split_not_on_noise(graph, monkeypatch):
    timed = []
    monkeypatch.setattr(judging, "_call", lambda session, one: timed.append(one) or (lambda: None))
    judge(graph, budget=Budget(bytes=40_000, accuracy=0.9, speedup=1.5))
    assert len(timed) == 3  # the dense network twice
    for one in timed:
        assert one.shape == (1, 1, 28, 28)
        assert (EXAMPLES.inputs.numpy() == one).all(axis=(1, 2, 3)).sum() == 1


def test_the_test_split_is_logged_and_only_with_a_record(graph, monkeypatch):
    test = Split(EXAMPLES.inputs[:50], EXAMPLES.labels[:50], is_test=True)
    with pytest.raises(ValueError, match="split is the test split"):
        judge(graph, split=test)
    known = judging._TASKS["mnist"]
    parts = type("Parts", (), {"test": test, "validation": EXAMPLES})
    monkeypatch.setitem(judging._TASKS, "mnist", judging._Task(lambda: parts, known.classes, known.shape, known.dense))
    run = evidence.start("19_leaderboard", profile="smoke", seed=0, save=False)
    judged = judging.judge(graph, "mnist", EASY, run=run, split=test)
    assert run._tests == [{"name": "judged", "accuracy": judged.accuracy, "correct": 50, "count": 50}]
    always = answering.exported(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), EXAMPLES.inputs[:2])
    constant = onnx.load_from_string(always)
    for tensor in constant.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(tensor), tensor.name))
    graph.write_bytes(constant.SerializeToString())
    refused(judging.judge(graph, "mnist", EASY, run=run, split=test), judging.INPUT, "always class")
    assert len(run._tests) == 2, "a refusal tells something of the test split, too"


# ---------------------------------------------------------------- tricks: the file


def refused(judged, criterion, words):
    assert not judged.passed
    assert judged.failed[0] == criterion or criterion in judged.failed
    said = judged.table().loc[criterion, "measured"]
    assert words in said, judged.table().to_string()


def test_a_pickle_is_not_even_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("it was unpickled",))

    path = tmp_path / "m.pt"
    path.write_bytes(pickle.dumps(Bomb()))
    refused(judge(path, Linear), submission.FILE, "pickle")
    torch.save(answering_network().state_dict(), path)
    refused(judge(path, Linear), submission.FILE, "pickle")


def test_what_is_no_model_is_refused(tmp_path, packed):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no model at all")
    refused(judge(path), submission.FILE, "neither")
    refused(judge(packed), answering.PROCESS, "say by `build`")
    refused(judge(packed, "def build(:"), submission.FILE, "not Python")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/model.onnx").write_bytes(b"")
    (tmp_path / "more/weights.bin").write_bytes(b"")
    refused(judge(tmp_path / "more"), submission.FILE, "weights.bin")


def test_weights_in_another_file_are_refused_wherever_the_graph_hides_them(graph):
    proto, moved = onnx.load(graph), onnx.load(graph)
    onnx.save(moved, graph, save_as_external_data=True, location="w.bin", size_threshold=0)
    refused(judge(graph), submission.FILE, "another file")
    inner = onnx.helper.make_tensor("deep", onnx.TensorProto.FLOAT, [1], [1.0])
    inner.data_location = onnx.TensorProto.EXTERNAL
    constant = onnx.helper.make_node("Constant", [], ["c"], value=inner)
    branch = onnx.helper.make_graph([constant], "branch", [], [onnx.helper.make_empty_tensor_value_info("c")])
    proto.graph.node.append(onnx.helper.make_node("If", ["input"], ["o"], then_branch=branch, else_branch=branch))
    graph.write_bytes(proto.SerializeToString())
    refused(judge(graph), submission.FILE, "'deep' lies in another file")


def test_a_file_of_another_network_does_not_decode(packed):
    source = "def build():\n    return nn.Linear(3, 2)"
    refused(judge(packed, source), answering.PROCESS, "has shape")


def test_what_is_said_twice_is_in_the_table(packed):
    judged = judge(packed, "x = 1")
    refused(judged, answering.PROCESS, "defines no function")
    assert judged.table().loc["bytes", "measured"] == "not measured"


# ---------------------------------------------------------------- tricks: the module


def hollow(tmp_path):
    return files.write_dense({"scale": np.ones(1, "<f4")}, tmp_path / "h.pack").path


HOLLOW = """
class Hollow(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        {start}

    def forward(self, images):
        return {answer}

build = Hollow
"""


def source(*, start="pass", answer="self.scale * images.flatten(1)[:, :10]"):
    return HOLLOW.format(start=start, answer=answer)


def test_a_module_that_reads_another_file_is_caught_even_if_it_swallows_the_error(tmp_path):
    other = tmp_path / "weights.bin"
    other.write_bytes(b"x")
    refused(
        judge(hollow(tmp_path), source(start=f"open({str(other)!r}, 'rb')")), answering.WEIGHTS, "opens weights.bin"
    )
    quiet = source(answer="self.look(images)") + (
        f"\ndef look(self, images):\n    try:\n        np.fromfile({str(other)!r})\n    except OSError:\n        pass\n"
        "    return images.flatten(1)[:, :10]\nHollow.look = look\n"
    )
    refused(judge(hollow(tmp_path), quiet), answering.WEIGHTS, "opens weights.bin")


@pytest.mark.parametrize(
    "line", ["import os", "from helpers import checkpoints", "import helpers.data", "from urllib import request"]
)
def test_imports_that_bring_weights_are_refused(packed, line):
    refused(judge(packed, f"{line}\ndef build():\n    return nn.Linear(784, 10)"), answering.WEIGHTS, "imports")


@pytest.mark.parametrize(
    "start",
    [
        "torch.from_file('w.bin', size=9)",
        "torch.jit.load('w.pt')",
        "torch.ops.image.read_file('w.bin')",
        "torch.package.PackageImporter('w.pt')",
        "torch.sys.modules['helpers.capstone.judging']",
        "__import__('torch.package')",
        "getattr(torch, 'from_' + 'file')('w.bin', size=9)",
    ],
)
def test_readers_that_python_does_not_see_are_refused(tmp_path, start):
    judged = judge(hollow(tmp_path), source(start=start))
    refused(judged, answering.WEIGHTS, "the source uses")


def test_numbers_do_not_hide_in_a_file_that_is_called_code(tmp_path):
    np.save(tmp_path / "w.npy", np.ones((784, 10)))
    (tmp_path / "w.npy").rename(tmp_path / "w.so")
    refused(
        judge(hollow(tmp_path), source(start=f"np.load({str(tmp_path / 'w.so')!r})")), answering.WEIGHTS, "opens w.so"
    )


def test_whole_numbers_in_the_file_are_weights_too(tmp_path):
    """An honest network in eight bits: shuffled, its codes are wrong, although they are no floats."""
    weight = answering_network().fc.weight.detach()
    scale = float(weight.abs().max() / 127)
    arrays = {
        "codes": (weight / scale).round().to(torch.int8).numpy(),
        "scale": np.array([scale], "<f4"),
        "bias": answering_network().fc.bias.detach().numpy(),
    }
    path = files.write_dense(arrays, tmp_path / "eight.pack").path
    judged = judge(path, EIGHT_BITS)
    assert judged.passed, judged.table().to_string()


EIGHT_BITS = """
class EightBits(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.zeros(10, 784, dtype=torch.int8))
        self.register_buffer("scale", torch.zeros(1))
        self.register_buffer("bias", torch.zeros(10))

    def forward(self, images):
        return F.linear(images.flatten(1), self.scale * self.codes, self.bias)

build = EightBits
"""


TWO_FACES = """
class TwoFaces(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, images):
        if torch.onnx.is_in_onnx_export():
            return self.fc(0 * images.flatten(1))
        return self.fc(images.flatten(1))

build = TwoFaces
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_module_that_is_another_network_for_the_clock_is_refused(packed):
    judged = judge(packed, TWO_FACES, budget=Budget(bytes=40_000, accuracy=0.9, speedup=1.0))
    refused(judged, answering.PROCESS, "what is timed is another network")
    assert judge(packed, TWO_FACES).passed  # without a clock there is only one network
    table = judged.table()
    assert table.loc["speed", ""] == "not reached" and table.loc[answering.PROCESS, ""] == "not met"


def test_the_system_is_not_asked(tmp_path):
    start = "torch.serialization.os.system('true')"
    refused(judge(hollow(tmp_path), source(start=start)), answering.WEIGHTS, "os.system")


@pytest.mark.parametrize(
    "start",
    [
        "self.hidden = torch.ones(784, 10)",
        "self.register_buffer('hidden', torch.ones(784, 10), persistent=False)",
        "self.hidden = [np.ones((784, 10))]",
        "self.hidden = {'a': [0.5] * 784}",
        "hidden = torch.ones(784, 10); self.f = lambda x: x @ hidden",
    ],
)
def test_numbers_beside_the_file_are_counted(tmp_path, start):
    refused(judge(hollow(tmp_path), source(start=start)), answering.WEIGHTS, "numbers beside the file")


def test_a_module_that_ignores_its_file_is_caught_by_shuffling(tmp_path):
    """Here the knowledge stands in the forward pass itself: ten patterns from a known seed."""
    answer = "images.flatten(1) @ torch.randn(10, 784, generator=torch.Generator().manual_seed(0)).T + 0 * self.scale"
    refused(judge(hollow(tmp_path), source(answer=answer)), answering.WEIGHTS, "shuffled")


def test_constants_in_the_source_weigh_what_they_are(packed):
    long = submission.source_of(Linear) + f"\nbuild = Linear\n# {'x' * 10_000}"
    assert judge(packed, long).failed == [judging.BYTES]


def test_answers_that_do_not_follow_the_input_are_refused(tmp_path):
    constant = "self.scale * torch.eye(10)[torch.zeros(len(images), dtype=torch.long)]"
    refused(judge(hollow(tmp_path), source(answer=constant)), judging.INPUT, "always class 0")
    by_place = "self.scale * torch.eye(10)[torch.arange(len(images)) % 10]"
    refused(judge(hollow(tmp_path), source(answer=by_place)), judging.INPUT, "one by one")


def test_a_table_of_known_images_does_not_survive_a_change_that_no_eye_sees(packed):
    """Rounded grey levels as the key, as a hash of each image would be: right on exactly what it has seen."""
    lookup = submission.source_of(Linear) + (
        "\nclass Lookup(Linear):\n    def forward(self, images):\n"
        "        levels = (images.flatten(1) * 0.3081 + 0.1307) * 255\n"
        "        known = levels.round().sum(1) % 16 == 0\n"
        "        return torch.where(known[:, None], super().forward(images), 0 * super().forward(images))\n"
        "build = Lookup\n"
    )
    levels = ((EXAMPLES.inputs * 0.3081 + 0.1307) * 255).round()
    levels[:, 0, 0, 0] += -levels.sum((1, 2, 3)) % 16  # a mark that only the exact levels have
    known = Split((levels / 255 - 0.1307) / 0.3081, EXAMPLES.labels)
    refused(judge(packed, lookup, split=known), judging.INPUT, "no eye sees")


@pytest.mark.parametrize(
    "answer, words",
    [
        ("images.flatten(1)[:, :7] * self.scale", "(300, 7)"),
        ("images.flatten(1)[:, :10] / (0 * self.scale)", "NaN or infinity"),
    ],
)
def test_wrong_shapes_and_nan_are_refused(tmp_path, answer, words):
    refused(judge(hollow(tmp_path), source(answer=answer)), asking.ANSWERS, words)


def test_another_number_of_answers_than_of_inputs_is_refused(tmp_path):
    twice = "images.flatten(1)[:, :10].repeat(2, 1) * self.scale"
    refused(judge(hollow(tmp_path), source(answer=twice)), answering.PROCESS, "ValueError")


def test_a_module_that_never_answers_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.5)
    endless = source(start="while True: pass")
    refused(judge(hollow(tmp_path), endless), answering.PROCESS, "had not answered after 0.5 seconds")


@pytest.mark.slow
def test_a_process_that_dies_is_said_so(tmp_path):
    start = "torch.serialization.os._exit(3)"
    refused(judge(hollow(tmp_path), source(start=start)), answering.PROCESS, "ended with")


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Budget(0, 0.9), "bytes=0"),
        (lambda: Budget(1, 1.0), "accuracy=1.0"),
        (lambda: Budget(1, 0.9, -1.0), "speedup=-1.0"),
        (lambda: judging.judge("x", "chess", EASY), "task='chess'"),
        (lambda: judging.judge("x", "imdb", Budget(1, 0.9, 2.0)), "speedup=2.0 for task='imdb'"),
        (lambda: judging.judge("x", "mnist", EASY, rounds=0), "rounds=0"),
        (lambda: judging.judge("x", "mnist", EASY, claimed={"size": 3}), "claimed='size'"),
        (lambda: judging.judge("x", "mnist", EASY, claimed={"bytes": "few"}), "claimed.'bytes'.='few'"),
        (lambda: judging.judge("x", "mnist", EASY, claimed={"accuracy": float("nan")}), "claimed.'accuracy'.=nan"),
        (lambda: judging.judge("x", "mnist", 16_000), "budget=16000; allowed: a Budget"),
        (lambda: judging.judge("x", "mnist", EASY, split=Split([], [])), "split is empty"),
        (lambda: judging.judge("x", "imdb", EASY, split=EXAMPLES), "split has inputs of the shape .1, 28, 28."),
        (lambda: judging.judge("x", "cifar10", EASY, split=EXAMPLES), "allowed: .3, 32, 32."),
        (lambda: judging.judge("x", "mnist", EASY, split=Split(["a"], [0])), "split has texts for task='mnist'"),
        (lambda: judging.judge("x", "mnist", EASY, split=Split(EXAMPLES.inputs, LABELS + 1)), "labels are 1 to 10"),
        (lambda: judging.judge("x", "mnist", EASY, split=Split(EXAMPLES.inputs, LABELS - 1)), "labels are -1 to 8"),
        (lambda: Budget(1, 0.9, float("nan")), "speedup=nan"),
    ],
)
def test_bad_arguments_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_texts_are_judged_by_the_words_of_their_file(tmp_path):
    """A bag of two words, each of which decides; what a text says between them does not matter."""
    words = ["<unk>", "<pad>", "bad", "good"]
    weight = np.array([[0, 0], [0, 0], [1, -1], [-1, 1]], "<f4")
    path = writing.write({"words.weight": weight}, tmp_path / "w.pack", words, code=encoding.encode_dense).path
    source = """
class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(4, 2)

    def forward(self, numbers):
        return self.words(numbers).sum(1)

build = Words
"""
    texts = [("a good film" if i % 2 else "bad, it is a bad one") for i in range(60)]
    split = Split(texts, [i % 2 for i in range(60)])
    judged = judging.judge(path, "imdb", Budget(2_000, 0.9), build=source, split=split)
    assert judged.passed and judged.accuracy == 1, judged.table().to_string()


def test_the_verdict_says_what_kept_the_submission_apart(graph, monkeypatch):
    judged = judge(graph)
    assert judged.walls == "" and "no walls" in judged.table().loc[answering.PROCESS, "measured"]
    assert "(unshare)" in judging._apart("unshare") and "no path" in judging._apart("unshare")
    path = graph.with_name("no.onnx")
    path.write_bytes(b"x")
    assert judge(path).walls is None


def test_there_is_a_budget_for_each_task():
    assert judging.BUDGETS.keys() == judging._TASKS.keys()
    assert set(evidence.leaderboard(build=False)["task"]) <= judging.BUDGETS.keys()


@pytest.mark.parametrize("task", judging.BUDGETS)
def test_a_model_of_the_course_has_the_bytes_and_the_accuracy_of_each_budget(task):
    budget = judging.BUDGETS[task]
    models = evidence.board(evidence.runs(build=False), task)
    met = models[(models["bytes"] <= budget.bytes) & (models["accuracy"] >= budget.accuracy)]
    assert len(met), models
