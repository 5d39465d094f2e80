"""From PyTorch to a runtime: export to ONNX, checked logit for logit, and sessions that compare fairly."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from helpers import checks
from helpers.paths import write_atomically

if TYPE_CHECKING:
    import onnx
    import onnxruntime
    from torch import Tensor, nn

__all__ = ["DeployError", "export_like", "export_onnx", "run", "session"]

TOLERANCE = 1e-4


class DeployError(RuntimeError):
    """An exported model whose answers are not those of the model it came from."""


def export_onnx(model: "nn.Module", example: "Tensor", path: Path, *, check_inputs: "Tensor | None" = None) -> Path:
    """Write `model` as one ONNX file that takes batches of any size; return its path.

    The model is exported in evaluation mode, masks applied. Before the file appears, ONNX Runtime computes
    the logits of `check_inputs` (default: `example`), as one batch and one by one, and each is compared with
    PyTorch's. They may differ by 1e-4 of the largest logit (or of 1, if that is more), because the runtimes
    add up in different orders.

    Raises DeployError if they differ by more, ValueError if there is no example or nothing to check with.
    """
    checks.not_empty("example", example)
    inputs = example if check_inputs is None else checks.not_empty("check_inputs", check_inputs)
    content = _export(model, example)
    _require_same_logits(content, model, inputs)
    write_atomically(Path(path), content)
    return Path(path)


def export_like(model: "nn.Module", graph: Path, example: "Tensor", path: Path) -> Path:
    """Write `model` as ONNX by putting its weights into the `graph` of a network with the same layers; return `path`.

    The layers may have other sizes, as after a removal of filters. `export_onnx` takes seconds, this tenths of one, and
    the file is checked in the same way. `graph` is what `export_onnx` wrote. In both networks BatchNorm must have been
    folded (`quantization.fold_batchnorm`): the exporter does it, too, but then weights lose the model's names.

    Raises ValueError if the graph has no place for one of the model's tensors, DeployError if the answers differ.
    """
    import onnx

    from helpers.pruning import bake

    checks.not_empty("example", example)
    proto = onnx.load(Path(graph))
    places = {tensor.name: tensor for tensor in proto.graph.initializer}
    state = bake(model).cpu().state_dict()
    if missing := sorted(state.keys() - places.keys()):
        raise ValueError(f"graph={str(graph)!r} has no {missing[0]!r}; allowed: a network of the same layers")
    for name, tensor in state.items():
        places[name].CopyFrom(onnx.numpy_helper.from_array(tensor.numpy(), name))
    _widen_flattening(proto.graph, places)
    del proto.graph.value_info[:]  # the shapes in between, as they were in the other network
    content = proto.SerializeToString()
    _require_same_logits(content, model, example)
    write_atomically(Path(path), content)
    return Path(path)


def _widen_flattening(graph: "onnx.GraphProto", places: "dict[str, onnx.TensorProto]") -> None:
    """Tell each reshaping before a linear layer how many inputs that layer now has: a constant of the graph."""
    import onnx

    linear = {node.input[0]: places[node.input[1]] for node in graph.node if node.op_type == "Gemm"}
    for node in graph.node:
        if node.op_type == "Reshape" and node.output[0] in linear and node.input[1] in places:
            shape = onnx.numpy_helper.to_array(places[node.input[1]]).copy()
            shape[-1] = linear[node.output[0]].dims[1]  # a linear layer's weight is (outputs, inputs)
            places[node.input[1]].CopyFrom(onnx.numpy_helper.from_array(shape, node.input[1]))


def _export(model: "nn.Module", example: "Tensor") -> bytes:
    import torch

    from helpers.pruning import bake

    # torch.export takes a size of 1 for a constant, so a dynamic batch needs an example of at least two.
    batch = example if len(example) > 1 else torch.cat([example, example])
    program = torch.onnx.export(
        bake(model).cpu().eval(),
        (batch.cpu(),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["input"],
        output_names=["logits"],
        verbose=False,
    )
    if program is None:
        raise DeployError("torch.onnx.export returned nothing")
    return _without_metadata(program.model_proto).SerializeToString()


def _without_metadata(proto: "onnx.ModelProto") -> "onnx.ModelProto":
    """Drop the exporter's notes: they hold this machine's paths and are no part of the model."""
    graph = proto.graph
    for part in (
        proto,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        del part.metadata_props[:]
        part.doc_string = ""
    return proto


def _require_same_logits(content: bytes, model: "nn.Module", inputs: "Tensor") -> None:
    from helpers.training import predict

    expected = predict(model, inputs).numpy()
    runtime, data = _session(content, threads=1), inputs.cpu().numpy()
    one_by_one = [run(runtime, data[index : index + 1]) for index in range(min(3, len(data)))]
    _require_close(run(runtime, data), expected)
    _require_close(np.concatenate(one_by_one), expected[: len(one_by_one)])


def _require_close(found: np.ndarray, expected: np.ndarray) -> None:
    if found.shape != expected.shape:
        raise DeployError(f"ONNX Runtime gives logits of shape {found.shape}, PyTorch {expected.shape}")
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(found - expected).max())
    if not difference <= allowed:  # also for NaN
        raise DeployError(f"ONNX Runtime's logits differ from PyTorch's by {difference:.3g}; allowed: {allowed:.3g}")


def session(path: Path, *, threads: int = 1) -> "onnxruntime.InferenceSession":
    """Open an ONNX file in ONNX Runtime: on the CPU, with `threads` threads, one operator after another.

    Raises FileNotFoundError if there is no such file, ValueError if it is not an ONNX model.
    """
    checks.positive("threads", threads)
    content = Path(path).read_bytes()
    try:
        return _session(content, threads=threads)
    except Exception as error:  # the classes that ONNX Runtime raises have no common base but Exception
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"path={str(path)!r} is not a model that ONNX Runtime can read ({reason})") from None


def _session(content: bytes, *, threads: int) -> "onnxruntime.InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # By default idle threads go on spinning for a while and take the cores from whatever is timed next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only; they are raised as well
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(session: "onnxruntime.InferenceSession", inputs: np.ndarray) -> np.ndarray:
    """Return the first output, usually logits (batch, classes), for a batch of inputs."""
    name = session.get_inputs()[0].name
    return session.run(None, {name: inputs})[0]
