"""Fingerprints: equal for the same, in every process, and different for whatever may change a result."""

import copy
import dataclasses
import enum
import functools
import itertools
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import OrderedDict, namedtuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm

from helpers import nets, training
from helpers.core import modules, paths
from helpers.training import fingerprint
from helpers.training.code import StandIn
from helpers.training.fingerprint import Network


def of(value, **options):
    return fingerprint.of({"value": value}, **options)


def written(source, name="f", **known):
    """Return a function as a notebook's cell defines it."""
    cell = {"__name__": "__main__", "F": F, "torch": torch} | known
    exec(compile(source, "<cell>", "exec"), cell)
    return cell[name]


@dataclasses.dataclass
class Settings:
    heat: float
    names: tuple[str, ...] = ()


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


class Counts(dict):
    pass


class Row(list):
    pass


Point = namedtuple("Point", "x y")


def generator(seed):
    return torch.Generator().manual_seed(seed)


VALUES = {
    "whole number": (1, 2),
    "truth": (True, 1),
    "fraction": (0.5, 0.25),
    "zero": (0.0, -0.0),
    "text": ("a", "b"),
    "bytes": (b"a", "a"),
    "nothing": (None, "None"),
    "list": ([1, [2]], [1, [3]]),
    "list and tuple": ([1], (1,)),
    "nesting": ([[1], 2], [[1, 2]]),
    "dictionary": ({"a": 1}, {"a": 2}),
    "set": ({"a", "b"}, {"a", "c"}),
    "ordered": (OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)),
    "path": (Path("a"), Path("b")),
    "member": (Colour.RED, Colour.BLUE),
    "dataclass": (Settings(1.0), Settings(2.0)),
    "table": (SimpleNamespace(a=1), SimpleNamespace(a=2)),
    "slots": (Slotted(1), Slotted(2)),
    "own dictionary": (Counts(a=1), Counts(a=2)),
    "own list": (Row([1, 2]), Row([1, 3])),
    "class of members": (Colour, enum.Enum("Colour", {"RED": 1, "BLUE": 3})),
    "named tuple": (Point(1, 2), Point(1, 3)),
    "pattern": (re.compile("a"), re.compile("a", re.I)),
    "tensor": (torch.zeros(3), torch.zeros(3).index_fill(0, torch.tensor(2), 1)),
    "shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "dtype": (torch.zeros(3), torch.zeros(3, dtype=torch.int32)),
    "bfloat16": (torch.zeros(3).bfloat16(), torch.ones(3).bfloat16()),
    "truth values": (torch.tensor(True), torch.tensor(False)),
    "conjugate": (torch.tensor([1j]), torch.tensor([1j]).conj()),
    "array": (np.zeros(3), np.zeros(3, dtype=np.float32)),
    "array of objects": (np.array([None, 1]), np.array([None, 2])),
    "type": (torch.float32, torch.float64),
    "class": (nn.Linear, nn.Conv2d),
    "function": (F.relu, F.gelu),
    "operator": (torch.relu, torch.tanh),
    "method": ("a".join, "b".join),
    "ufunc": (np.add, np.multiply),
    "partial": (partial(F.softmax, dim=1), partial(F.softmax, dim=0)),
    "generator": (generator(1), generator(2)),
    "NumPy's generator": (np.random.default_rng(1), np.random.default_rng(2)),
    "Python's generator": (random.Random(1), random.Random(2)),
    "library's layer": (nn.Dropout(0.1), nn.Dropout(0.2)),
    "mode": (nn.Dropout(0.1), nn.Dropout(0.1).eval()),
    "order of layers": (nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Sequential(nn.Tanh(), nn.ReLU())),
}


@pytest.mark.parametrize("kind", VALUES)
def test_equal_values_have_one_fingerprint_and_others_another(kind):
    value, other = VALUES[kind]
    if kind not in ("function", "class", "operator", "type", "ufunc", "member", "nothing"):
        assert of(copy.deepcopy(value)) == of(value)
    assert of(value) == of(value) != of(other)
    assert of([value, "x"]) != of([other, "x"])


def test_order_of_sets_and_of_dictionaries_does_not_count():
    names = [f"name {number}" for number in range(50)]
    assert of(set(names)) == of(set(reversed(names)))
    assert of(dict.fromkeys(names)) == of(dict.fromkeys(reversed(names)))
    assert of({(1, "a"), Colour.RED, 2.0}) == of({2.0, Colour.RED, (1, "a")})


def test_strides_do_not_count_and_shared_weights_do():
    images = torch.randn(2, 3, 4, 4)
    assert of(images) == of(modules.channels_last(images)) == of(torch.cat([images, images])[:2])
    tied, apart = nn.ModuleList([layer := nn.Linear(2, 2), layer]), nn.ModuleList([layer, nn.Linear(2, 2)])
    apart[1].load_state_dict(layer.state_dict())
    tied_weight = nn.ModuleList([layer, nn.Linear(2, 2)])
    tied_weight[1].weight, tied_weight[1].bias = layer.weight, layer.bias
    assert len({of(tied), of(apart), of(tied_weight)}) == 3


SOURCE = """
def f(x, scale=2.0, *, power=2):
    return helper(x / scale) ** power
def helper(x):
    return [y + SHIFT for y in x]
SHIFT = 3
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scale=2.0", "scale=3.0"),
        ("power=2", "power=3"),
        ("/ scale", "* scale"),
        ("y + SHIFT", "y - SHIFT"),
        ("SHIFT = 3", "SHIFT = 4"),
        ("[y + SHIFT for y in x]", "F.relu(x)"),
        ("[y + SHIFT for y in x]", "(lambda z: z + SHIFT)(x)"),
    ],
)
def test_whatever_a_function_computes_with_counts(old, new):
    assert SOURCE.count(old) == 1
    assert of(written(SOURCE)) == of(written(SOURCE)) != of(written(SOURCE.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n    return helper", "\n    # a comment\n\n    return helper"),
        ("def helper(x):", "def helper(x: 'anything') -> 'something':"),
        ("SHIFT = 3", "SHIFT = 3\nOTHER = 4"),
    ],
)
def test_what_changes_no_result_does_not_count(old, new):
    assert of(written(SOURCE)) == of(written(SOURCE.replace(old, new)))


def test_a_reworded_docstring_does_not_count():
    source = 'def f(x):\n    """One."""\n    def g():\n        """Two."""\n        return 3\n    return g() + x'
    assert of(written(source)) == of(written(source.replace("One", "Eins").replace("Two", "Zwei")))
    assert of(written("f = lambda x: 'One'")) != of(written("f = lambda x: 'Eins'"))


def test_recursion_and_functions_that_call_each_other():
    source = "def f(n): return g(n - 1) if n else 0\ndef g(n): return f(n) + 1\n"
    assert of(written(source)) == of(written(source)) != of(written(source.replace("+ 1", "+ 2")))
    deep = [functools.reduce(lambda inner, _: [inner, "x"], range(50), number) for number in (1, 2)]
    assert of(deep[0]) != of(deep[1])
    endless = []
    endless.append(endless)
    with pytest.raises(ValueError, match="value holds a builtins.list"):
        of(endless)
    assert of(functools.reduce(lambda inner, _: Slotted(inner), range(5_000), None))


def test_only_the_setting_that_is_read_counts():
    source = "def f(x): return x * S.heat"
    same = [of(written(source, S=SimpleNamespace(heat=2, epochs=epochs))) for epochs in (1, 2)]
    assert same[0] == same[1] != of(written(source, S=SimpleNamespace(heat=3, epochs=1)))
    whole = [of(written("def f(x): return x, S", S=SimpleNamespace(epochs=epochs))) for epochs in (1, 2)]
    assert whole[0] != whole[1]


def test_a_class_counts_with_its_bases_methods_and_constants():
    source = "class A:\n    K = 1\n    def m(self): return 2\nclass B(A):\n    pass\nf = B()"
    changed = {source.replace("K = 1", "K = 3"), source.replace("return 2", "return 4"), source.replace("(A)", "")}
    assert len({of(written(text)) for text in (source, *changed)}) == 4


def test_imports_in_a_function_count(monkeypatch):
    source = "def f(x):\n    from helpers.training import IGNORED\n    import math\n    return x, IGNORED, math.pi"
    before = of(written(source))
    monkeypatch.setattr(training, "IGNORED", -1)
    assert of(written(source)) != before
    assert of(written("def f(): import no_such_module")) == of(written("def f(): import no_such_module"))


def test_global_random_states_do_not_count():
    sources = ("random.random()", "numpy.random.rand()", "torch.rand(1)", "shuffle(x)")
    known = {"random": random, "numpy": np, "shuffle": random.shuffle}
    functions = [written(f"def f(x): return {source}", **known) for source in sources]
    before = [of(function) for function in functions]
    training.seed_everything(random.randrange(1000))
    random.random()
    assert [of(function) for function in functions] == before and len({*before}) == 4


def test_decorators_count_and_checks_of_shapes_do_not():
    source = "@functools.wraps(inner)\ndef f(x): return SCALE * inner(x)"
    known = {"functools": functools, "inner": training.logits_of}
    assert of(written(source, SCALE=1, **known)) != of(written(source, SCALE=2, **known))
    assert of(training.cross_entropy) == of(training.cross_entropy.__wrapped__), "a test's wrapper"
    limited = [functools.lru_cache(maxsize=size)(written(SOURCE)) for size in (1, 2)]
    assert of(limited[0]) != of(limited[1])
    frozen = [torch.no_grad()(written(SOURCE.replace("y + SHIFT", change))) for change in ("y", "y * y")]
    assert of(frozen[0]) != of(frozen[1])


def test_a_function_whose_closure_is_still_empty():
    def outer():
        def inner():
            return later

        found = of(inner)
        later = 1
        return found, of(inner), later

    found, after, _ = outer()
    assert found != after


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.LSTM(3, 4),
        lambda: nn.TransformerEncoderLayer(8, 2),
        lambda: parametrizations.weight_norm(nn.Linear(3, 4)),
        lambda: spectral_norm(nn.Linear(3, 4)),
        lambda: prune.l1_unstructured(nn.Linear(3, 4), "weight", amount=0.5),
        lambda: nets.cifar_small(),
        lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU())),
    ],
)
def test_networks_count_by_their_weights(layer):
    def seeded(seed):
        torch.manual_seed(seed)
        return layer()

    first = seeded(0)
    assert of(first) == of(seeded(0)) != of(seeded(1))
    nn.Linear(1, 1).register_forward_hook(print)  # moves the numbers of all later hooks
    assert of(first) == of(seeded(0))


def test_the_mode_of_a_network_in_training_does_not_count():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    assert of(Network(net)) == of(Network(net.eval())) != of(nn.Sequential(net[0]))


@pytest.mark.parametrize("kind", ["lock", "file", "iterator", "network"])
def test_what_cannot_be_told_from_others_is_named(kind, tmp_path):
    network = nn.Linear(1, 1)
    network.lock = threading.Lock()
    with open(tmp_path / "file", "w") as file:
        values = {"lock": threading.Lock(), "file": file, "iterator": (x for x in "ab"), "network": network}
        value = values[kind]
        with pytest.raises(ValueError, match=r"value holds a .*; allowed: numbers, .*key="):
            of({"inner": value})
        assert of(value, key="a") == of(value, key="a") != of(value, key="b")


def test_a_function_that_another_value_stands_for():
    functions = [StandIn(function, counts) for function, counts in ((max, 1), (min, 1), (min, 2))]
    assert of(functions[0]) == of(functions[1]) != of(functions[2])
    assert functions[1](3, 2) == 2 and of(training.watching(print)) == of(None)


def test_names_of_parts_and_their_order_count():
    orders = itertools.permutations([("a", 1), ("b", 2)])
    assert len({*(fingerprint.of(dict(order)) for order in orders), fingerprint.of({"a": 2, "b": 1})}) == 3


PROCESS = """
import sys
from functools import partial
from pathlib import Path
import torch
from torch import nn
from torch.nn import functional as F
from helpers import distillation, nets, training
from helpers.data import Split
from helpers.pruning import schedules
from helpers.training import fingerprint

WORDS = {"one", "two", "three", "four"}
torch.manual_seed(0)
torch.set_num_threads(1)
split = Split(torch.randn(32, 1, 28, 28), torch.arange(32) % 10)
teacher = nets.lenet5()
student = nets.lenet_300_100()

class Weighted:
    kinds = frozenset(WORDS)
    def __init__(self, **weights):
        self.weights, self.taught = weights, distillation.taught_by(teacher)
    def __call__(self, model, inputs, labels):
        return sum(self.weights.values()) * self.taught(model, inputs, labels) * len(WORDS)

def die(model, at):
    if at.step == 5:
        raise KeyboardInterrupt

file, interrupted = Path(sys.argv[1]), sys.argv[2] == "die"
steps = []
watch = training.watching(die if interrupted else lambda model, at: steps.append(at.step))
try:
    training.fit(
        student, split, epochs=3, lr=0.01, batch_size=8, loss=Weighted(a=0.5, b=0.25), checkpoint=file,
        augment=partial(training.random_shift, pixels=1), on_step=watch, progress=False,
    )
except KeyboardInterrupt:
    pass
several = [Weighted(a=1), WORDS, print, schedules._gradual(0.5, 0.1, 0.5, 2), nn.LSTM, lambda x: x in {"a", "b", "c"}]
print(fingerprint.of({"several": several}), steps[:1])
"""


def test_another_process_finds_the_same_and_resumes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(PROCESS)
    found = []
    for seed, way in (("1", "die"), ("2", "resume")):
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(paths.ROOT), "COURSE_DEVICE": "cpu"}
        command = [sys.executable, script, tmp_path / "state.pt", way]
        found.append(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.split())
    assert found[0][0] == found[1][0] and found[0][1:] == ["[]"] and found[1][1:] == ["[5]"], found


def test_large_data_take_a_moment():
    pixels = torch.zeros(50_000, 3, 32, 32, dtype=torch.uint8)
    started = time.perf_counter()
    before = of(pixels)
    assert time.perf_counter() - started < 3
    pixels[-1, -1, -1, -1] = 1
    assert of(pixels) != before


def test_a_method_of_an_enum_counts():
    def colour(body):
        source = f"class Colour(enum.Enum):\n    RED = 1\n\n    def heat(self):\n        return {body}\n"
        return written(source, "Colour", enum=enum)

    assert of(colour("self.value")) == of(colour("self.value"))
    assert of(colour("self.value")) != of(colour("self.value + 1"))
    assert of(colour("self.value").RED) != of(colour("self.value + 1").RED)
