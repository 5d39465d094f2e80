"""Plausible wrong answers to the exercises of notebook 17, each with words of its own hint."""

import numpy as np
import onnx
import torch

from tests.exercises.examples import Case


def _stored(path):
    return [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]


def _trusts_the_nodes(path):
    return float(any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node))


def _counts_arrays(path):
    weights = [array for array in _stored(path) if array.ndim >= 2]
    return sum(array.dtype in (np.int8, np.uint8) for array in weights) / len(weights)


def _with_biases(path):
    weights = [array for array in _stored(path) if array.ndim >= 1]
    return sum(a.size for a in weights if a.dtype in (np.int8, np.uint8)) / sum(a.size for a in weights)


def _only_signed(path):
    weights = [array for array in _stored(path) if array.ndim >= 2]
    return sum(a.size for a in weights if a.dtype == np.int8) / sum(a.size for a in weights)


def _the_same_batch_twice(answers, batch):
    return float((answers(batch) - answers(batch)).abs().max())


def _the_first_only(answers, batch):
    return float((answers(batch)[:1] - answers(batch[:1])).abs().max())


def _mean_difference(answers, batch):
    return float((answers(batch) - torch.cat([answers(one) for one in batch.split(1)])).abs().mean())


def _rounded(path, *, kind, weights):
    content = onnx.load(path).graph
    kinds = {tensor.name: tensor.data_type for tensor in content.initializer}
    nodes = [node for node in content.node if node.op_type == "QuantizeLinear"]
    return sorted(n.input[0] for n in nodes if kinds[n.input[2]] == kind and (weights or n.input[0] not in kinds))


CASES = {
    "17.1": Case(
        [
            (_trusts_the_nodes, "promises nothing"),
            (_counts_arrays, "Count numbers, not arrays"),
            (_with_biases, "Biases have one axis"),
            (_only_signed, "Both int8 and uint8"),
        ]
    ),
    "17.2": Case(
        [
            (_the_same_batch_twice, "not the same batch twice"),
            (_the_first_only, "Compare every example"),
            (_mean_difference, "That is the mean"),
        ]
    ),
    "17.3": Case(
        [
            (lambda path: _rounded(path, kind=onnx.TensorProto.UINT8, weights=False), "the third input"),
            (lambda path: _rounded(path, kind=onnx.TensorProto.INT8, weights=True), "lies in the file"),
            (lambda path: _rounded(path, kind=onnx.TensorProto.INT8, weights=False)[::-1], "Sort the names"),
        ]
    ),
    "17.4": Case(
        [(lambda: 2**-20, "a layer adds many"), (lambda: 0.5, "most of the errors of a sum cancel")],
        {"measured": 0.006},
    ),
}
