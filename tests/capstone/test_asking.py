"""What the judge asks, and that another network for a batch of one is seen: by a module, by its graph, in ONNX."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from helpers import files
from helpers.capstone import answering, asking, judging, sandbox, submission
from helpers.capstone.asking import ALONE, Questions, Ways
from helpers.capstone.judging import Budget
from helpers.capstone.submission import Refused
from helpers.data import Split
from tests.capstone.judged import EXAMPLES, PATTERNS, Linear, answering_network, fork_instead, share_right

LABELS = torch.arange(1_000) % 10
GENERATOR = torch.Generator().manual_seed(1)
WHOLE = Split(PATTERNS[LABELS] + 0.3 * torch.randn(1_000, 1, 28, 28, generator=GENERATOR), LABELS)
EASY = Budget(bytes=200_000, accuracy=0.9)


@pytest.fixture(autouse=True)
def _forked(monkeypatch):
    fork_instead(monkeypatch)


@pytest.fixture
def packed(tmp_path):
    return files.write_dense(answering_network(), tmp_path / "m.pack").path


# ---------------------------------------------------------------- what is asked


def test_a_thousand_are_asked_alone_whatever_the_split_has():
    for count in (1, 7, 300, 1_000, 1_500):
        inputs = torch.arange(count, dtype=torch.float32)[:, None]
        questions = asking._questions(Split(inputs, torch.zeros(count, dtype=torch.long)))
        real, copies = questions.alone()
        assert len(real) == min(count, ALONE) and len(real) + len(copies) == ALONE
        assert sorted(set(real[:, 0].tolist())) == sorted(real[:, 0].tolist()), "each once"
        np.testing.assert_array_equal(real[:, 0], questions.places[: len(real)])
        near = np.abs(questions.changed[:, 0] - questions.places)
        assert len(questions.changed) == ALONE and near.max() < 6 * asking.NOISE and near.std() > 0.01
        assert questions.inputs.dtype == questions.changed.dtype == np.float32
        if count > ALONE:
            assert max(questions.places) >= ALONE, "any of them, not the first"


def test_texts_are_asked_as_they_are():
    questions = asking._questions(Split(["a", "b", "c"], [0, 1, 0]))
    assert sorted(questions.alone()[0]) == ["a", "b", "c"] and questions.alone()[1] == [] == questions.changed
    many = asking._questions(Split(["a"] * 1_200, [0] * 1_200))
    assert len(many.alone()[0]) == ALONE


def one_hot(classes):
    return np.eye(10, dtype=np.float32)[np.asarray(classes)]


def test_the_share_of_the_same_answers_is_that_of_the_way_with_fewest():
    classes = np.arange(8) % 10
    places = np.array([3, 5, 1, 0])
    questions = Questions(np.zeros((8, 1)), np.zeros((4, 1)), places)
    reference = Ways(one_hot(classes), one_hot([3, 5, 1, 0]), one_hot([3, 5, 1, 0]))
    assert reference.same(reference, questions) == 1
    other = one_hot([3, 5, 1, 9])
    assert Ways(reference.batches, reference.changed, other).same(reference, questions) == 0.75
    assert Ways(reference.batches, other, reference.alone).same(reference, questions) == 11 / 12
    wrong = one_hot([9, *classes[1:]])
    assert Ways(wrong, reference.changed, reference.alone).same(reference, questions) == 11 / 12


def test_where_the_split_is_short_copies_alone_are_held_against_copies_in_batches():
    questions = Questions(np.zeros((2, 1)), np.zeros((4, 1)), np.array([1, 0, 1, 0]))
    ways = Ways(one_hot([4, 5]), one_hot([6, 7, 8, 9]), one_hot([5, 4, 6, 7]))
    assert ways.same(ways, questions) == 1
    assert Ways(ways.batches, ways.changed, one_hot([5, 4, 6, 9])).same(ways, questions) == 0.75


def test_of_module_and_graph_the_one_with_fewer_right_counts():
    labels = np.array([1, 2, 3])
    better, worse = one_hot([1, 2, 3]), one_hot([1, 2, 4])
    for pair in ((better, worse), (worse, better)):
        ways = [Ways(each, each[:0], each) for each in pair]
        answers = asking.Answers(None, ways, "", [], 0, b"")
        np.testing.assert_array_equal(answers.logits(labels), worse)


class Recorded:
    """A child that answers with the sum of each input, and remembers what it was asked."""

    def __init__(self):
        self.asked, self.out = [], []

    def send(self, header, payload):
        self.asked.append((header, payload))
        if header["shape"] is None:
            inputs = np.array([[len(text)] for text in json.loads(payload)], np.float32)
        else:
            inputs = np.frombuffer(payload, np.float32).reshape(header["shape"])
        self.out.append(np.repeat(inputs.reshape(len(inputs), -1).sum(1, keepdims=True), 3, 1))

    def receive(self):
        return {"shape": list(self.out[-1].shape)}

    def read(self, size):
        content = self.out[-1].tobytes()
        assert len(content) == size
        return content


def test_inputs_go_in_another_order_and_logits_come_back_in_theirs():
    child, inputs = Recorded(), np.arange(500, dtype=np.float32).reshape(250, 2)
    for _ in range(2):
        logits = asking._ask(child, inputs, 3, batch=7, weights=2)
        np.testing.assert_array_equal(logits, np.repeat(inputs.sum(1, keepdims=True), 3, 1))
    (first, one), (_, two) = child.asked
    assert first == {"shape": (250, 2), "batch": 7, "weights": 2}
    assert one != two and one != inputs.tobytes(), "an order of its own each time"
    texts = ["a" * length for length in range(40)]
    np.testing.assert_array_equal(asking._ask(child, texts, 3)[:, 0], np.arange(40))
    assert child.asked[-1][0] == {"shape": None, "batch": asking.BATCH, "weights": 0}
    assert asking._ask(child, [], 3).shape == (0, 3) and len(child.asked) == 3


def saying(**header):
    return SimpleNamespace(send=lambda *frame: None, receive=lambda: header, read=lambda size: bytes(size))


@pytest.mark.parametrize("shape", [[5, 2], [4, 3], [5], [], None, "x", [5, 3, 1], {"a": 1}, [5.5, 3], list(range(900))])
def test_another_shape_is_refused_before_anything_is_read(shape):
    child = saying(shape=shape)
    child.read = None
    with pytest.raises(Refused, match=r"the answers have the shape .*; asked: \(5, 3\)\.$") as raised:
        asking._ask(child, np.zeros((5, 2), np.float32), 3)
    assert raised.value.criterion == asking.ANSWERS and len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "said", [3, None, [], ["x"], ["accuracy", "is 100 %"], [answering.PROCESS], [answering.PROCESS, 3], [1, 2, 3], {}]
)
def test_a_refusal_that_is_none_is_not_believed(said):
    with pytest.raises(sandbox.Broken, match="no answer"):
        asking._received(saying(refused=said))


def test_a_refusal_is_shortened_to_one_line():
    with pytest.raises(Refused) as raised:
        asking._received(saying(refused=[answering.WEIGHTS, "a\n" + "b" * 1_000]))
    assert raised.value.criterion == answering.WEIGHTS and raised.value.sentence == "a " + "b" * 298
    assert asking._received(saying(shape=[1])) == {"shape": [1]}


@pytest.mark.parametrize("size", [-1, 11, 2.0, "3", None, [1], 10**400])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(sandbox.Broken, match="the fresh process sent size=.*; allowed: up to 10."):
        asking._size({"size": size}, "size", 10)


def test_sizes_up_to_the_limit_are_taken():
    assert [asking._size({"size": size}, "size", 10) for size in (0, 10)] == [0, 10]


def test_a_process_that_breaks_off_is_refused(monkeypatch, packed):
    fork_instead(monkeypatch, lambda requests, replies: None)
    with pytest.raises(Refused, match="did not start") as raised:
        asking.ask(packed.read_bytes(), "x", EXAMPLES, classes=10, shape=(1, 28, 28), export=False)
    assert raised.value.criterion == answering.PROCESS


# ---------------------------------------------------------------- cheats: another network for a batch of one

ALONE_SOURCE = (
    submission.source_of(Linear)
    + """
class Cheat(Linear):
    def quick(self, images):
        return super().forward(images).roll(1, 1)

    def rare(self, images):
        return (images.square().sum((1, 2, 3)) * 1e3).round()[:, None] % 100 < 1

    def forward(self, images):
        good, quick = super().forward(images), self.quick(images)
        return ANSWER

build = Cheat
"""
)
MODULES = {
    "by its length": "quick if len(images) == 1 else good",
    "by its shape": "quick if images.shape[0] < 2 else good",
    "by the number of elements": "quick if images.numel() <= 784 else good",
    "by what squeezing leaves": "quick if images.squeeze().dim() == 2 else good",
    "by the spread over the batch": "quick if float((images - images.mean(0)).abs().sum()) == 0 else good",
    "by its name": "quick if 'size([1,' in str(images.shape).lower() else good",
    "by arithmetic": "torch.where(torch.tensor(len(images) == 1), quick, good)",
    "by a sum": "good * min(len(images) - 1, 1) + quick * max(2 - len(images), 0)",
    "for large batches": "good if len(images) >= 40 else quick",
    "for one image in a hundred": "torch.where(self.rare(images) & (len(images) == 1), quick, good)",
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_is_another_for_a_batch_of_one_is_seen(packed, name):
    judged = judging.judge(packed, "mnist", EASY, build=ALONE_SOURCE.replace("ANSWER", MODULES[name]), split=WHOLE)
    assert judging.INPUT in judged.failed, judged.table().to_string()
    assert "one by one" in judged.table().loc[judging.INPUT, "measured"]


def initializer(name, array):
    return onnx.numpy_helper.from_array(np.asarray(array), name)


def graph(nodes, *extra):
    """Return ONNX bytes with `good` and `quick` logits at hand; the nodes end in `logits`."""
    network = answering_network()
    weight, bias = network.fc.weight.detach().numpy(), network.fc.bias.detach().numpy()
    start = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["good"], transB=1),
        helper.make_node("Gemm", ["flat", "rolled", "bias"], ["quick"], transB=1),
        helper.make_node("Shape", ["input"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["count"]),
        helper.make_node("Equal", ["count", "one"], ["alone"]),
    ]
    values = [initializer("weight", weight), initializer("rolled", np.roll(weight, 1, 0)), initializer("bias", bias)]
    values += [initializer("zero", np.int64(0)), initializer("one", np.int64(1)), *extra]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 1, 28, 28])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])]
    made = helper.make_graph([*start, *nodes], "g", inputs, outputs, values)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def branch(source):
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Identity", [source], ["out"])], source, [], [out])


def choosing(condition, *before, extra=()):
    chosen = helper.make_node("If", [condition], ["logits"], then_branch=branch("quick"), else_branch=branch("good"))
    return graph([*before, chosen], *extra)


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def graphs():
    floats = [initializer("hundred", np.float32(100)), initializer("thousand", np.float32(1_000))]
    return {
        "a branch on the shape": choosing("alone"),
        "a selection by the shape": graph([node("Where", "alone quick good", "logits")]),
        "a branch on less than two": choosing(
            "less", node("Less", "count two", "less"), extra=[initializer("two", np.int64(2))]
        ),
        "a branch on the size": choosing(
            "small",
            node("Size", "input", "size"),
            node("Less", "size limit", "small"),
            extra=[initializer("limit", np.int64(800))],
        ),
        "a branch on small batches": choosing(
            "less", node("Less", "count many", "less"), extra=[initializer("many", np.int64(20))]
        ),
        "a place in a list": graph(
            [
                node("Concat", "good quick", "both", axis=1),
                node("Cast", "alone", "number", to=TensorProto.INT64),
                node("Mul", "number ten", "start"),
                node("Add", "start ten", "end"),
                node("Unsqueeze", "start zeros", "from"),
                node("Unsqueeze", "end zeros", "to"),
                node("Slice", "both from to ones", "logits"),
            ],
            initializer("ten", np.int64(10)),
            initializer("zeros", np.zeros(1, np.int64)),
            initializer("ones", np.ones(1, np.int64)),
        ),
        "arithmetic": graph(
            [
                node("Cast", "alone", "share", to=TensorProto.FLOAT),
                node("Sub", "quick good", "apart"),
                node("Mul", "apart share", "part"),
                node("Add", "good part", "logits"),
            ]
        ),
        "one image in a hundred": graph(
            [
                node("Cast", "alone", "share", to=TensorProto.FLOAT),
                node("ReduceSumSquare", "flat", "energy", axes=[1], keepdims=1),
                node("Mul", "energy thousand", "long"),
                node("Round", "long", "whole"),
                node("Mod", "whole hundred", "rest", fmod=1),
                node("Less", "rest share", "now"),
                node("Where", "now quick good", "logits"),
            ],
            *floats,
        ),
    }


@pytest.mark.parametrize("name", graphs())
def test_a_graph_that_is_another_for_a_batch_of_one_is_seen(tmp_path, name):
    path = tmp_path / "m.onnx"
    path.write_bytes(graphs()[name])
    judged = judging.judge(path, "mnist", EASY, split=WHOLE)
    assert judging.INPUT in judged.failed and "one by one" in judged.table().loc[judging.INPUT, "measured"]


def test_a_graph_without_tricks_passes(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(graph([node("Identity", "good", "logits")]))
    assert judging.judge(path, "mnist", EASY, split=WHOLE).passed


@pytest.mark.parametrize("name", graphs())
def test_a_module_whose_graph_is_another_for_a_batch_of_one_is_refused(packed, monkeypatch, name):
    """The exporter, replaced by the module, hands out a graph of its own."""
    content = graphs()[name]
    source = (
        submission.source_of(Linear)
        + "\nbuild = Linear\nimport helpers.capstone.answering as inside\n"
        + (f"inside.exported = lambda model, example: {content!r}\n")
    )
    monkeypatch.setattr(judging.asking, "SHUFFLED", 10)
    answers = asking.ask(packed.read_bytes(), source, WHOLE, classes=10, shape=(1, 28, 28), export=True)
    assert answers.graph == content
    with pytest.raises(Refused, match="what is timed is another network") as raised:
        judging._structure(answers, WHOLE, judging._TASKS["mnist"])
    assert raised.value.criterion == answering.PROCESS


@pytest.mark.slow
@pytest.mark.parametrize("repetition", range(20))
def test_one_answer_in_a_hundred_is_seen_each_time(tmp_path, repetition):
    """On any thousand images: other ones, and another order, each time."""
    generator = torch.Generator().manual_seed(repetition)
    split = Split(WHOLE.inputs + 0.01 * torch.randn(WHOLE.inputs.shape, generator=generator), WHOLE.labels)
    path = tmp_path / "m.onnx"
    path.write_bytes(graphs()["one image in a hundred"])
    judged = judging.judge(path, "mnist", EASY, split=split)
    assert judging.INPUT in judged.failed, judged.table().to_string()


def test_a_graph_that_is_damaged_on_its_way_is_refused(packed):
    source = submission.source_of(Linear) + "\nbuild = Linear\nimport helpers.capstone.answering as inside\n"
    for content, said in ((b"", "neither"), (b"no graph", "neither")):
        replaced = source + f"inside.exported = lambda model, example: {content!r}\n"
        with pytest.raises(Refused, match=said) as raised:
            asking.ask(packed.read_bytes(), replaced, EXAMPLES, classes=10, shape=(1, 28, 28), export=True)
        assert raised.value.criterion == answering.PROCESS


def test_nan_in_any_way_of_asking_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    inverse = [node("Cast", "alone", "share", to=TensorProto.FLOAT), node("Sub", "unit share", "rest")]
    path.write_bytes(graph([*inverse, node("Div", "good rest", "logits")], initializer("unit", np.float32(1))))
    judged = judging.judge(path, "mnist", EASY, split=EXAMPLES)
    assert "1,000 answers hold NaN or infinity" in judged.table().loc[asking.ANSWERS, "measured"]


def test_shuffled_weights_are_asked_for_each_copy_and_at_most_a_thousand(packed, monkeypatch):
    monkeypatch.setattr(asking, "SHUFFLED", 50)
    answers = asking.ask(
        packed.read_bytes(), submission.source_of(Linear), EXAMPLES, classes=10, shape=(1, 28, 28), export=False
    )
    assert [len(logits) for logits in answers.shuffled] == [50] * answering.SHUFFLES
    assert len({logits.tobytes() for logits in answers.shuffled}) == answering.SHUFFLES
    assert share_right(answers.logits(EXAMPLES.labels.numpy())) == 1
    right = answers.logits(EXAMPLES.labels.numpy())[:50]
    assert all(not np.allclose(logits, right) for logits in answers.shuffled), "none with the weights of the file"
