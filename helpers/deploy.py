"""From PyTorch to a runtime: export to ONNX, checked logit for logit; integer files; sessions that compare fairly."""

import io
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers import checks
from helpers.paths import write_atomically

if TYPE_CHECKING:
    import onnx
    import onnxruntime
    from torch import Tensor, nn

    from helpers.data import Split

__all__ = [
    "CALIBRATIONS",
    "DeployError",
    "export_like",
    "export_onnx",
    "operator_times",
    "quantize_static",
    "run",
    "session",
]

TOLERANCE = 1e-4
CALIBRATIONS = {"minmax": "MinMax", "percentile": "Percentile"}  # as ONNX Runtime calls them
ACTIVATIONS = {"uint8": "QUInt8", "int8": "QInt8"}
WEIGHTS = {"int8": "QInt8", "uint8": "QUInt8", "int4": "QInt4"}
BATCH = 50


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


# ---------------------------------------------------------------- integers


def quantize_static(
    graph: Path,
    calibration: "Split[Tensor, Tensor]",
    path: Path,
    *,
    method: str = "minmax",
    activations: str = "uint8",
    weights: str = "int8",
    per_channel: bool = True,
) -> Path:
    """Write the network of an ONNX file with integer weights and integer arithmetic, as another ONNX file; return it.

    Quantization after training (Jacob et al. 2018, "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference", section 2) by ONNX Runtime's own tools, in their format QDQ: each weight is
    stored in integers, each activation gets a grid, and the runtime joins both to integer kernels where it has them.
    The defaults are the types for which x86 has an instruction: unsigned activations, signed weights.

    Args:
        graph: what `export_onnx` wrote, BatchNorm folded (`quantization.fold_batchnorm`).
        calibration: training examples, by which the ranges of the activations are found; never test examples.
        path: where the new file goes.
        method: "minmax" spans all values that were seen, "percentile" leaves out 0.001 % of them, half at each end.
            (ONNX Runtime's third, "entropy", finds the range of "minmax" with the number of bins that it is given.)
        activations: "uint8" or "int8".
        weights: "int8", "uint8" or "int4"; for four bits there is no kernel, so such weights are unpacked when the
            file is opened.
        per_channel: give each output channel of a weight its own scale.

    Raises:
        ValueError: an argument is none of those, or `calibration` is the test split or empty.
        DeployError: a tensor of weights would be stored in floating point, because its operator has no integer form.
    """
    checks.choice("method", method, CALIBRATIONS)
    checks.choice("activations", activations, ACTIVATIONS)
    checks.choice("weights", weights, WEIGHTS)
    if (activations, weights) == ("int8", "uint8"):
        raise ValueError(
            "activations='int8' with weights='uint8'; allowed: any other pair, ONNX Runtime has no such one"
        )
    if calibration.is_test:
        raise ValueError(
            "calibration is the test split: its images may not shape the network; allowed: training examples"
        )
    checks.not_empty("calibration", calibration)
    with tempfile.TemporaryDirectory() as folder, _without_advice():
        prepared, made = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        _prepare(Path(graph), prepared)
        options = {"CalibTensorRangeSymmetric": False}  # "percentile" would centre the ranges, half of them for nothing
        _library().quantize_static(
            str(prepared),
            str(made),
            _Batches(calibration.inputs),
            calibrate_method=_library().CalibrationMethod[CALIBRATIONS[method]],
            activation_type=_library().QuantType[ACTIVATIONS[activations]],
            weight_type=_library().QuantType[WEIGHTS[weights]],
            per_channel=per_channel,
            extra_options=options,
        )
        content = made.read_bytes()
    _require_integers(content)
    _session(content, threads=1)  # raises for a graph that the runtime does not take
    write_atomically(Path(path), content)
    return Path(path)


def _library() -> Any:
    import onnxruntime.quantization

    return onnxruntime.quantization


def _prepare(graph: Path, path: Path) -> None:
    """Compute what is constant, and infer all shapes, as ONNX Runtime's quantizers want it."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    session(graph)  # says in one sentence what is wrong with a file
    quant_pre_process(str(graph), str(path), skip_symbolic_shape=True)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence ONNX Runtime's tools: they print, and give hints through the root logger, whatever one has done."""
    before, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
        logging.root.handlers[:] = handlers  # a hint adds one if there is none


class _Batches:
    """What ONNX Runtime calls a calibration data reader: one batch after another, then None."""

    def __init__(self, inputs: "Tensor") -> None:
        size = max(size for size in range(1, BATCH + 1) if len(inputs) % size == 0)  # histograms want equal batches
        self._batches = iter(inputs.split(size))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch.cpu().contiguous().numpy()}


def _require_integers(content: bytes) -> None:
    """Raise DeployError if a tensor of two or more dimensions, a weight, is stored in floating point."""
    import onnx

    for tensor in onnx.load_from_string(content).graph.initializer:
        if len(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.FLOAT:
            raise DeployError(
                f"{tensor.name!r} would be stored in floating point: its operator has no integers; nothing was written"
            )


def operator_times(path: Path, inputs: np.ndarray, *, threads: int = 1, runs: int = 10) -> dict[str, float]:
    """Return the milliseconds of a run by kind of operator, the most expensive first, by ONNX Runtime's profiler.

    They are means over `runs` runs, after two that do not count. Kinds are those of the optimized graph: two operators
    that the runtime joined are one, as "QLinearConv". Raises what `session` does, ValueError unless `runs` is a whole
    number of at least 1.
    """
    checks.positive("runs", runs)
    session(path, threads=checks.positive("threads", threads))
    with tempfile.TemporaryDirectory() as folder:
        profiled = _session(Path(path).read_bytes(), threads=threads, profile=Path(folder) / "profile")
        for _ in range(2 + runs):
            run(profiled, inputs)
        events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
    calls: dict[str, list[tuple[str, float]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            calls.setdefault(event["name"], []).append((event["args"]["op_name"], event["dur"] / 1e3))
    times: dict[str, float] = {}
    for durations in calls.values():
        kind = durations[0][0]
        times[kind] = times.get(kind, 0.0) + sum(ms for _, ms in durations[-runs:]) / runs
    return dict(sorted(times.items(), key=lambda item: -item[1]))


# ---------------------------------------------------------------- sessions


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


def _session(content: bytes, *, threads: int, profile: Path | None = None) -> "onnxruntime.InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
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
