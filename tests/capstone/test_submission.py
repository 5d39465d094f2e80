"""What is handed in: it is read and looked through, and nothing of it is executed."""

import os

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from helpers import files
from helpers.capstone import answering, submission
from helpers.capstone.submission import FILE, Refused, check_graph, opened, source_of
from tests.capstone.judged import Linear, answering_network

WEIGHTS = answering.WEIGHTS
GRAPH = answering.exported(answering_network(), torch.zeros(2, 1, 28, 28))


@pytest.fixture
def packed(tmp_path):
    return files.write_dense({"scale": np.ones(3, "<f4")}, tmp_path / "m.pack").path


def refused(path, build, said, criterion=FILE):
    with pytest.raises(Refused, match=said) as raised:
        opened(path, build)
    assert raised.value.criterion == criterion and str(raised.value) == raised.value.sentence


# ---------------------------------------------------------------- files


def test_honest_files_come_back_whole(tmp_path, packed):
    assert opened(packed, "build = 1") == (packed.read_bytes(), "build = 1")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(GRAPH)
    assert opened(folder, None) == (GRAPH, "")
    assert opened(folder / "model.onnx", "ignored = 1") == (GRAPH, "")
    (folder / "model.onnx").unlink()
    (folder / "model.pack").write_bytes(packed.read_bytes())
    assert opened(folder, None) == opened(packed, None) == (packed.read_bytes(), "")
    (folder / "model.py").write_bytes("# ü\nbuild = 1".encode())
    assert opened(folder, "ignored = 1") == (packed.read_bytes(), "# ü\nbuild = 1")
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "absent", None)


def test_what_is_no_submission_is_refused(tmp_path, packed, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    refused(folder, None, "the folder holds nothing")
    (folder / "model.py").write_bytes(b"\xff")
    refused(folder, None, "holds model.py; allowed")
    (folder / "model.pack").write_bytes(packed.read_bytes())
    refused(folder, None, "not a text in UTF-8")
    (folder / "more").write_bytes(b"")
    refused(folder, None, "holds model.pack, model.py, more")
    for content in (b"PK\x03\x04", b"\x80\x04"):
        packed.write_bytes(content)
        refused(packed, "build = 1", "pickle or a zip")
    for content in (b"", b"text", b"\x08\x08"):
        packed.write_bytes(content)
        refused(packed, "build = 1", "neither a packed file nor an ONNX model")


def test_a_file_that_is_too_large_or_none_is_not_opened(tmp_path, packed, monkeypatch):
    monkeypatch.setattr(submission, "LARGEST", packed.stat().st_size)
    assert opened(packed, "build = 1")
    monkeypatch.setattr(submission, "LARGEST", packed.stat().st_size - 1)
    refused(packed, "build = 1", "the judge opens .* at most")
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(1 << 40)  # of nothing
    monkeypatch.undo()
    refused(large, None, "1,099,511,627,776 bytes")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(tmp_path / "pipe", None, "is not a file")


# ---------------------------------------------------------------- sources


def helper_function(x):
    return x


def build():
    return 1


def test_source_is_that_of_all_parts_and_the_last_is_built():
    assert source_of("x") == "x"
    assert source_of(Linear).startswith("class Linear(nn.Module):") and source_of(Linear).endswith("\nbuild = Linear\n")
    both = source_of([helper_function, Linear])
    assert both.index("def helper_function") < both.index("class Linear") and both.endswith("\nbuild = Linear\n")
    assert source_of(build) == "def build():\n    return 1\n", "it has the name already"


def test_what_has_no_source_is_named():
    class Empty:
        pass

    with pytest.raises(ValueError, match="build=Empty has no source"):
        source_of(Empty)
    with pytest.raises(ValueError, match="build=Made has no source"):
        source_of(type("Made", (), {"forward": helper_function}))


@pytest.mark.parametrize(
    "source",
    ["def build(:", "x = '\0'", "(" * 1_000, "-" * 100_000 + "1", "if 1:\nx"],
)
def test_what_is_no_python_is_refused(packed, source):
    refused(packed, source, "the source is not Python")


@pytest.mark.parametrize(
    "source",
    [
        "import torch", "import torch.nn as nn", "from torch import nn", "import numpy as np", "import math, itertools",
        "from helpers import nets", "from helpers.nets import lenet5", "import helpers.nets.lenet", "x = compiled",
        "from collections import OrderedDict", "from dataclasses import dataclass", "model.eval()", "x.package_",
    ],
)  # fmt: skip
def test_what_a_network_needs_is_allowed(packed, source):
    assert opened(packed, source)[1] == source


@pytest.mark.parametrize(
    "source, said",
    [
        ("import os", "imports os"),
        ("import torch, os", "imports os"),
        ("import os.path as p", "imports os.path"),
        ("from os import path", "imports os.path"),
        ("from . import x", "imports None.x"),
        ("import helpers", "imports helpers"),
        ("from helpers import data", "imports helpers.data"),
        ("from helpers import netsx", "imports helpers.netsx"),
        ("from helpers.data import nets", "imports helpers.data.nets"),
        ("from helpers import nets, checkpoints", "imports helpers.checkpoints"),
        ("from torch import jit", "uses torch.jit"),
        ("import torch.package", "uses torch.package"),
        ("x = torch.ops", "uses torch.ops"),
        ("x = torch.sys.modules", "uses torch.sys"),
        ("def f():\n    class A:\n        def g(self):\n            import io", "imports io"),
        *[(f"{name}('x')", f"uses {name}") for name in sorted(submission.BUILTINS)],
    ],
)
def test_what_reads_elsewhere_is_refused(packed, source, said):
    refused(packed, source, said, WEIGHTS)


# ---------------------------------------------------------------- graphs


def deep_tensor(place, proto):
    """Put a tensor somewhere into a graph, and return it."""
    tensor = helper.make_tensor("deep", TensorProto.FLOAT, [1], [1.0])
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    inner = helper.make_graph([constant], "inner", [], [helper.make_empty_tensor_value_info("c")])
    held = helper.make_graph([], "held", [], [], [tensor])
    branching = helper.make_node("If", ["x"], ["o"], then_branch=inner, else_branch=held)
    sparse = helper.make_sparse_tensor(tensor, helper.make_tensor("i", TensorProto.INT64, [1], [0]), [5])
    if place == "initializer":
        proto.graph.initializer.append(tensor)
    if place == "sparse initializer":
        proto.graph.sparse_initializer.append(sparse)
    if place == "sparse constant":
        proto.graph.node.append(helper.make_node("Constant", [], ["s"], sparse_value=sparse))
    if place == "constant":
        proto.graph.node.append(constant)
    if place == "branch":
        proto.graph.node.append(branching)
    if place == "branch in a branch":
        outer = helper.make_graph([branching], "outer", [], [])
        proto.graph.node.append(helper.make_node("If", ["x"], ["o"], then_branch=outer, else_branch=outer))
    if place == "branch in a function":
        proto.functions.append(helper.make_function("", "f", ["x"], ["o"], [branching], [helper.make_opsetid("", 17)]))
    if place == "list":
        proto.graph.node.append(helper.make_node("Odd", [], ["l"], values=[tensor]))
    if place == "training":
        proto.training_info.add().algorithm.CopyFrom(held)


PLACES = ["initializer", "sparse initializer", "sparse constant", "constant", "branch", "branch in a branch"]
PLACES += ["branch in a function", "list", "training"]


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_found_wherever_it_hides(place):
    proto = onnx.load_from_string(GRAPH)
    deep_tensor(place, proto)
    check_graph(proto.SerializeToString())
    for tensor in submission._parts(proto, onnx.TensorProto):
        if tensor.name == "deep":
            tensor.data_location = TensorProto.EXTERNAL
    with pytest.raises(Refused, match="'deep' lies in another file") as raised:
        check_graph(proto.SerializeToString(), "speed")
    assert raised.value.criterion == "speed"


def test_a_tensor_with_an_address_is_in_another_file_whatever_it_says():
    proto = onnx.load_from_string(GRAPH)
    entry = proto.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "w.bin"
    with pytest.raises(Refused, match="lies in another file"):
        check_graph(proto.SerializeToString())


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    "kind, domain, said",
    [("Custom", "my.own", "'Custom' is of 'my.own'"), ("RandomUniform", "", "'RandomUniform' answers by chance")],
)
def test_operators_of_others_and_of_chance_are_refused(kind, domain, said, inside):
    proto = onnx.load_from_string(GRAPH)
    odd = helper.make_node(kind, [], ["o"], domain=domain)
    held = helper.make_graph([odd], "held", [], [])
    branching = helper.make_node("If", ["x"], ["o"], then_branch=held, else_branch=held)
    proto.graph.node.append(branching if inside else odd)
    with pytest.raises(Refused, match=said) as raised:
        check_graph(proto.SerializeToString())
    assert raised.value.criterion == FILE


@pytest.mark.parametrize("domain", sorted(submission.DOMAINS))
def test_operators_of_the_runtime_are_taken(domain):
    proto = onnx.load_from_string(GRAPH)
    proto.graph.node.append(helper.make_node("Any", [], ["o"], domain=domain))
    check_graph(proto.SerializeToString())


@pytest.mark.parametrize("content", [b"", b"x", onnx.ModelProto(ir_version=8).SerializeToString(), GRAPH[:100]])
def test_what_is_no_graph_is_refused(content):
    with pytest.raises(Refused, match="neither"):
        check_graph(content)


def test_a_folder_with_a_packed_file_alone_goes_with_build(packed, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.pack").write_bytes(packed.read_bytes())
    assert opened(folder, Linear)[1] == submission.source_of(Linear)
    assert opened(folder, None)[1] == ""
