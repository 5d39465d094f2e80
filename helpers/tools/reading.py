"""What can be read off a converted network: a graph of ONNX, a state of PyTorch, a module in memory."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers import runtime
from helpers.tools.conversion import Answers, Network

if TYPE_CHECKING:  # what opens a graph needs neither
    import onnx
    from torch import nn

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOVES = ("Transpose", "Reshape", "Identity", "Flatten", "MaxPool", "Clip")  # integers stay integers
AT_ONCE = 64
OLDER_EXPORTER: dict[str, Any] = {  # options of torch.onnx.export, for batches of any size
    "input_names": ["images"],
    "output_names": ["logits"],
    "dynamic_axes": {"images": {0: "batch"}, "logits": {0: "batch"}},
    "dynamo": False,
}


def answers(module: "nn.Module") -> Answers:
    """Return what asks a module in memory."""
    import torch

    def ask(inputs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return torch.cat([module(part).detach() for part in torch.from_numpy(inputs).split(AT_ONCE)]).numpy()

    return ask


def load_onnx(file: Path, *, threads: int, batch: int) -> Answers:
    """Open a graph in ONNX Runtime."""
    session = runtime.session(file, threads=threads)
    return lambda inputs: runtime.run(session, inputs)


def export(module: "nn.Module", network: Network, file: Path) -> None:
    """Write a module as ONNX for batches of any size, by torch's exporter."""
    import torch

    sizes = ({0: torch.export.Dim("batch")},)
    example = (network.calibration.inputs[:2],)
    torch.onnx.export(module, example, file, dynamo=True, dynamic_shapes=sizes, external_data=False, verbose=False)
    _part_zero_points(file)


def _part_zero_points(file: Path) -> None:
    """Give each weight a zero point of its own: torch lets equal ones share one, which some sessions refuse.

    With session.x64quantprecision, ours without VNNI, ONNX Runtime 1.31.1 adds the new zero point of each weight anew.
    """
    import onnx

    model = onnx.load(file)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            own = model.graph.initializer.add()
            own.CopyFrom(stored[node.input[2]])
            own.name = node.input[2] = f"{node.input[0]}_zero_point"
    onnx.save(model, file)


def onnx_facts(file: Path) -> dict[str, Any]:
    """Return the facts of a graph of ONNX."""
    import onnx

    graph = onnx.load(file).graph
    constants = _constants(graph)
    makers = {output: node for node in graph.node for output in node.output}
    layers = [node for node in graph.node if node.op_type in LAYERS]
    first = graph.input[0].type.tensor_type.shape.dim[0]
    return {
        "weights": counted(_integer_weights(graph, makers, constants)),
        "float layers": [node.name for node in layers if not _dequantized(node.input[:2], makers)],
        "per channel": _per_channel(layers, makers, constants),
        "activations": _activations(graph, constants),
        "batchnorm": "kept" if any(node.op_type == "BatchNormalization" for node in graph.node) else "folded",
        "batch": first.dim_value or "any",
    }


def _activations(graph: "onnx.GraphProto", constants: Mapping[str, np.ndarray]) -> str:
    """Return the types that arrays which are no constants are rounded to."""
    made = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in constants]
    types = {str(constants[node.input[2]].dtype) for node in made if node.input[2] in constants}
    return ", ".join(sorted(types)) or "float32"


def _constants(graph: "onnx.GraphProto") -> dict[str, np.ndarray]:
    """Return the arrays of a graph by name, those of its Constant nodes as well."""
    import onnx

    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    return stored | {node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t) for node in nodes}


def _integer_weights(
    graph: "onnx.GraphProto", makers: "Mapping[str, onnx.NodeProto]", constants: Mapping[str, np.ndarray]
) -> Iterator[str]:
    """Yield the type of each array of weights that is stored as it is and then dequantized."""
    for node in graph.node:
        stored = constants.get(_source(node.input[0], makers)) if node.op_type == "DequantizeLinear" else None
        if stored is not None and stored.ndim > 1:
            yield str(stored.dtype)


def _source(name: str, makers: "Mapping[str, onnx.NodeProto]") -> str:
    """Return the array that another one comes from, looking through nodes that only move its numbers."""
    while name in makers and makers[name].op_type in MOVES:
        name = makers[name].input[0]
    return name


def _dequantized(names: Sequence[str], makers: "Mapping[str, onnx.NodeProto]") -> bool:
    """Return whether all of these arrays come out of integers."""
    made = [makers.get(_source(name, makers)) for name in names]
    return all(node is not None and node.op_type == "DequantizeLinear" for node in made)


def _per_channel(
    layers: "list[onnx.NodeProto]", makers: "Mapping[str, onnx.NodeProto]", constants: Mapping[str, np.ndarray]
) -> bool | None:
    """Return whether all weights of convolutions have several scales; None if no convolution is quantized."""
    made = [makers.get(_source(node.input[1], makers)) for node in layers if node.op_type == "Conv"]
    sizes = [constants[node.input[1]].size for node in made if node is not None and node.input[1] in constants]
    return all(size > 1 for size in sizes) if sizes else None


def state_weights(module: "nn.Module") -> str:
    """Return how many arrays of more than one dimension a module's state has as integers, and in which type."""
    import torch

    tensors = [value for value in module.state_dict().values() if isinstance(value, torch.Tensor) and value.dim() > 1]
    return counted(str(each.dtype).removeprefix("torch.") for each in tensors if not each.is_floating_point())


def batchnorm(module: "nn.Module") -> str:
    """Return whether a module still has BatchNorm layers."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return "kept" if any(isinstance(each, _BatchNorm) for each in module.modules()) else "folded"


def counted(words: Iterable[str]) -> str:
    """Return words with how often each occurs, as '9 int8'; '0' if there are none."""
    return ", ".join(f"{count} {word}" for word, count in sorted(Counter(words).items())) or "0"
