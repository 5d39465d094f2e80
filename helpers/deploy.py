"""From PyTorch to a runtime: export to ONNX, checked logit for logit; integer files; sessions that compare fairly."""

import io
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
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
BINS = 2_048  # of a histogram, as ONNX Runtime has it
MULTIPLYING = ("Conv", "ConvTranspose", "Einsum", "Gather", "Gemm", "GRU", "LSTM", "MatMul", "RNN")
MOVING = ("Cast", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")  # the same numbers
SPECIALIZED = "write x.shape[0] or flatten(1) in place of len(x), a number of rows, or a loop over them"


class DeployError(RuntimeError):
    """An exported model whose answers are not those of the model it came from."""


def export_onnx(model: "nn.Module", example: "Tensor", path: Path, *, check_inputs: "Tensor | None" = None) -> Path:
    """Write `model` as one ONNX file that takes batches of any size; return its path.

    Token numbers, whole numbers of shape (batch, length), may then be of any length, too, where the model takes other
    lengths and the exporter can express it (not a loop over the words in Python); otherwise the file says theirs.

    The model is exported in evaluation mode, masks applied. Before the file appears, ONNX Runtime computes
    the logits of `check_inputs` (default: `example`), as one batch and one by one, and each is compared with
    PyTorch's. They may differ by 1e-4 of the largest logit (or of 1, if that is more), because the runtimes
    add up in different orders. Where inputs of layers are rounded, that moves a number between two codes to the one or
    the other. Then the comparison is made with all roundings taken out, on both sides; and with them, the answers must
    be nearer to the model's (by half, root mean square) than the model's own without roundings are.

    Raises ValueError if there is no example, nothing to check with, a model that puts out anything but one tensor of
    finite numbers, or one that is not of single precision; DeployError if the answers differ by more, or the model
    cannot be a graph for batches of any size.
    """
    checks.not_empty("example", example)
    inputs = example if check_inputs is None else checks.not_empty("check_inputs", check_inputs)
    _require_one_tensor(model, example)
    content = _checked(model, example, inputs)
    write_atomically(Path(path), content)
    return Path(path)


def export_like(model: "nn.Module", graph: Path, example: "Tensor", path: Path) -> Path:
    """Write `model` as ONNX by putting its weights into the `graph` of a network with the same layers; return `path`.

    The layers may have other sizes, as after a removal of filters. `export_onnx` takes seconds, this tenths of one, and
    the file is checked in the same way. `graph` is what `export_onnx` wrote. In both networks BatchNorm must have been
    folded (`quantization.fold_batchnorm`): the exporter does it, too, but then weights lose the model's names.

    Raises ValueError if the graph has no place for one of the model's tensors, or for what `export_onnx` refuses;
    DeployError if the answers differ.
    """
    import onnx

    from helpers.quantization import bake

    checks.not_empty("example", example)
    _require_one_tensor(model, example)
    session(graph)  # says in one sentence what is wrong with a file
    proto = onnx.load(Path(graph))
    places = {tensor.name: tensor for tensor in proto.graph.initializer}
    tensors = list(_tensors(bake(model).cpu()))
    if missing := sorted(names[0] for names, _ in tensors if not places.keys() & names):
        raise ValueError(
            f"graph={str(graph)!r} has no {missing[0]!r}; allowed: a network of the same layers, BatchNorm folded, "
            "whose weights the exporter kept as they are (export_onnx takes any)"
        )
    for name, tensor in ((name, tensor) for names, tensor in tensors for name in places.keys() & names):
        places[name].CopyFrom(onnx.numpy_helper.from_array(tensor.numpy(), name))
    _widen_flattening(proto.graph, places)
    del proto.graph.value_info[:]  # the shapes in between, as they were in the other network
    content = proto.SerializeToString()
    _require_same_logits(content, model, example)
    write_atomically(Path(path), content)
    return Path(path)


def _tensors(model: "nn.Module") -> "Iterator[tuple[list[str], Tensor]]":
    """Yield each tensor of a model with all of its names, of which a graph keeps one."""
    state = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    yield from ((each, state[each[0]].detach()) for each in names.values())


def _widen_flattening(graph: "onnx.GraphProto", places: "dict[str, onnx.TensorProto]") -> None:
    """Tell each reshaping before a linear layer how many inputs that layer now has: a constant of the graph."""
    import onnx

    gemms = [node for node in graph.node if node.op_type == "Gemm" and node.input[1] in places]
    linear = {node.input[0]: places[node.input[1]] for node in gemms}
    for node in graph.node:
        if node.op_type == "Reshape" and node.output[0] in linear and node.input[1] in places:
            shape = onnx.numpy_helper.to_array(places[node.input[1]]).copy()
            shape[-1] = linear[node.output[0]].dims[1]  # a linear layer's weight is (outputs, inputs)
            places[node.input[1]].CopyFrom(onnx.numpy_helper.from_array(shape, node.input[1]))


def _require_one_tensor(model: "nn.Module", example: "Tensor") -> None:
    """Raise ValueError unless the model computes in single precision, and answers with one tensor."""
    import torch

    from helpers import modules

    floats = {name: p.dtype for name, p in model.named_parameters() if p.is_floating_point() or p.is_complex()}
    if strange := {name: dtype for name, dtype in floats.items() if dtype != torch.float32}:
        name = next(iter(strange))
        raise ValueError(f"model has {name!r} of {strange[name]}; allowed: torch.float32, model.float()")
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    with modules.asked("example", example), modules.evaluating(model), torch.no_grad():
        answer = model(example.to(where))
    if not isinstance(answer, torch.Tensor):
        raise ValueError(f"model answers with a {type(answer).__name__}; allowed: one tensor, the logits")
    checks.finite("model's answer to example", answer)


def _checked(model: "nn.Module", example: "Tensor", inputs: "Tensor") -> bytes:
    """Return the checked graph: where the model takes texts of any length, of one that does, if there is such a one."""
    import torch

    from helpers.quantization import bake

    # torch.export takes a size of 1 for a constant, so a dynamic size needs an example of at least two.
    batch = (example if len(example) > 1 else torch.cat([example, example])).cpu()
    plain, others = bake(model).cpu().eval(), _of_other_lengths(model, inputs)
    if others:
        try:
            content = _export(plain, torch.cat([batch, batch], 1) if batch.shape[1] < 2 else batch, any_length=True)
            for each in (inputs, *others):
                _require_same_logits(content, model, each)
            return content
        except DeployError:
            pass  # it can have one length only
    content = _export(plain, batch, any_length=False)
    _require_same_logits(content, model, inputs)
    return content


def _of_other_lengths(model: "nn.Module", inputs: "Tensor") -> "list[Tensor]":
    """Return the first texts cut to half and drawn to double length, as far as they are texts that the model takes."""
    import torch

    from helpers.training import predict

    if inputs.dim() != 2 or inputs.is_floating_point() or inputs.is_complex():
        return []
    few, taken = inputs[:3], []
    for other in (few[:, : max(1, few.shape[1] // 2)], torch.cat([few, few], 1)):
        try:
            predict(model, other)
        except Exception:  # of any class: the model's own
            continue
        taken.append(other)
    return [other for other in taken if other.shape[1] != inputs.shape[1]]


def _export(model: "nn.Module", batch: "Tensor", *, any_length: bool) -> bytes:
    """Return the model as ONNX, for batches of any size; raise DeployError, in one sentence, if there is no such graph.

    The exporter follows the operations one by one, for which `len(x)` is a number. Where that made a constant of the
    batch's size, it reads the code.
    """
    import torch

    sizes = {0: torch.export.Dim("batch")} | ({1: torch.export.Dim("length")} if any_length else {})
    reason = ""
    for strict in (False,) if any_length else (False, True):
        try:
            with _without_advice(), _forgetful():
                program = _program(model, batch, sizes, strict=strict)
        except Exception as error:  # the exporter's have no common base but Exception
            reason = reason or _first_line(error)
            continue
        sides = program.graph.input[0].type.tensor_type.shape.dim
        if fixed := [int(sides[axis].dim_value) for axis in sizes if not sides[axis].dim_param]:
            reason = f"the graph takes {fixed[0]} only"
            continue
        return _without_metadata(program).SerializeToString()
    raise DeployError(f"model cannot be a graph for any {'length' if any_length else 'batch'}: {reason}; {SPECIALIZED}")


def _program(model: "nn.Module", batch: "Tensor", sizes: "dict[int, Any]", *, strict: bool) -> "onnx.ModelProto":
    import torch

    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"], "verbose": False, "dynamo": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a tracer, about its own inside
        if strict:
            read = torch.export.export(model, (batch,), dynamic_shapes=(sizes,), strict=True)
            program = torch.onnx.export(read, **names)
        else:
            program = torch.onnx.export(model, (batch,), dynamic_shapes=(sizes,), **names)
    if program is None:
        raise DeployError("torch.onnx.export returned nothing")
    return program.model_proto


@contextmanager
def _forgetful() -> "Iterator[None]":
    """Have torch forget how it took recurrent layers apart before, which it otherwise does, for one length, again.

    Its exporter exchanges that function for one that knows no length, but an operator that was exported once in this
    process remembers the old one: of two exports the second had a fixed length.
    """
    import torch

    operators = [getattr(torch.ops.aten, name).input for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")]
    for operator in operators:
        getattr(operator, "_dispatch_cache", {}).clear()
    try:
        yield
    finally:
        for operator in operators:
            getattr(operator, "_dispatch_cache", {}).clear()


def _first_line(error: BaseException) -> str:
    """Return what an exporter's error says, without the colours of a terminal and all that it adds."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".;:")[:300]


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
    """Raise DeployError unless the graph answers as the model does, to a batch and to its first three one by one."""
    from helpers.quantization import bake, input_grids
    from helpers.training import predict

    expected, found = predict(model, inputs).numpy(), _answers(content, inputs)
    try:
        _require_close(found, expected)
    except DeployError:
        if not input_grids(model) or found[0].shape != expected.shape:
            raise
        plain = bake(model)  # whose weights stay rounded
        with _unrounded()():
            smooth = predict(plain, inputs).numpy()
        _require_close(_answers(_without_roundings(content), inputs), smooth)
        _require_nearer(found[0], expected, smooth)


def _answers(content: bytes, inputs: "Tensor") -> tuple[np.ndarray, np.ndarray]:
    """Return what ONNX Runtime answers to a batch, and to its first three one by one."""
    data = inputs.cpu().numpy()
    try:
        runtime = _session(content, threads=1)
        one_by_one = [run(runtime, data[index : index + 1]) for index in range(min(3, len(data)))]
        return run(runtime, data), np.concatenate(one_by_one)
    except Exception as error:  # the classes that ONNX Runtime raises have no common base but Exception
        raise DeployError(f"ONNX Runtime cannot compute the graph ({_first_line(error)}); {SPECIALIZED}") from error


def _require_close(found: tuple[np.ndarray, np.ndarray], expected: np.ndarray) -> None:
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    for answers, wanted in zip(found, (expected, expected[: len(found[1])]), strict=True):
        if answers.shape != wanted.shape:
            raise DeployError(f"ONNX Runtime gives logits of shape {answers.shape}, PyTorch {wanted.shape}")
        difference = float(np.abs(answers - wanted).max())
        if not difference <= allowed:  # also for NaN
            raise DeployError(
                f"ONNX Runtime's logits differ from PyTorch's by {difference:.3g}; allowed: {allowed:.3g}"
            )


def _require_nearer(found: np.ndarray, expected: np.ndarray, smooth: np.ndarray) -> None:
    """Raise DeployError unless the graph's answers are those of the rounded network, but for a few numbers."""
    apart, lost = (float(np.sqrt(np.square(other - expected).mean())) for other in (found, smooth))
    if not apart <= lost / 2:
        raise DeployError(
            f"ONNX Runtime's logits differ from PyTorch's by {apart:.3g} (root mean square), where rounding the inputs "
            f"of layers changes them by {lost:.3g}; allowed: half of it"
        )


def _unrounded() -> "Callable[[], Any]":
    """Return a context in which PyTorch's `round` leaves numbers as they are."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Unrounded(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0] if func in (torch.round, torch.Tensor.round) else func(*args, **(kwargs or {}))

    return Unrounded


def _without_roundings(content: bytes) -> bytes:
    import onnx

    proto = onnx.load_from_string(content)
    for node in proto.graph.node:
        if node.op_type == "Round":
            node.op_type = "Identity"
    return proto.SerializeToString()


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
        method: "minmax" spans all values that were seen, "percentile" leaves out 0.001 % of them, half at each end,
            for which the network runs twice over the images; either keeps the activations of one batch at a time.
            (ONNX Runtime's third, "entropy", finds the range of "minmax" with the number of bins that it is given.)
        activations: "uint8" or "int8".
        weights: "int8", "uint8" or "int4"; for four bits there is no kernel, so such weights are unpacked when the
            file is opened.
        per_channel: give each output channel of a weight its own scale.

    Raises:
        ValueError: an argument is none of those, `calibration` is the test split, empty, or not finite, or
            `per_channel` for a grouped transposed convolution.
        DeployError: weights that are multiplied, or looked up, would be stored in floating point, because their
            operator has no integer form (ONNX Runtime has none for recurrent layers). What is added to activations or
            scales them, as the slopes of PReLU or a mean and a spread, may stay.
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
    checks.finite("calibration", checks.not_empty("calibration", calibration).inputs)
    with tempfile.TemporaryDirectory() as folder, _without_advice():
        prepared, made, found = (Path(folder) / name for name in ("prepared.onnx", "quantized.onnx", "ranges.json"))
        _prepare(Path(graph), prepared)
        _require_inputs(prepared, calibration.inputs)
        if per_channel:
            _refuse_transposed_groups(prepared)
        options = {"CalibTensorRangeSymmetric": False}  # "percentile" would centre the ranges, half of them for nothing
        if method == "percentile":
            _library().save_tensors_data(_percentiles(prepared, calibration.inputs, Path(folder)), found)
        _library().quantize_static(
            str(prepared),
            str(made),
            _Batches(calibration.inputs),
            calibration_cache_path=found if method == "percentile" else None,
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


def _refuse_transposed_groups(graph: Path) -> None:
    """Raise ValueError for a grouped transposed convolution with a bias: ONNX Runtime finds scales for one group only.

    Its quantizer divides the bias, of all groups, by the weight's scales (1.31.1: an error about shapes).
    """
    import onnx

    for node in onnx.load(graph).graph.node:
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type == "ConvTranspose" and groups > 1 and len(node.input) > 2:
            raise ValueError(
                f"per_channel=True with the transposed convolution of {node.input[1]!r}, which has {groups} groups; "
                "allowed: per_channel=False"
            )


def _require_inputs(graph: Path, inputs: "Tensor") -> None:
    """Raise ValueError, in one sentence, if the network does not take such inputs."""
    run(session(graph), inputs[:1].cpu().numpy())


def _percentiles(graph: Path, inputs: "Tensor", folder: Path) -> Any:
    """Return the ranges that ONNX Runtime's own calibration finds, but keep the activations of one batch at a time.

    Its own keeps those of all images, 2.3 MB an image of `cifar_base`. Histograms of batches add up to that of all if
    their ends are those of all, which a first pass finds.
    """
    from onnxruntime.quantization import calibrate, registry

    calibrator = _library().create_calibrator(
        graph,
        [*{**registry.QLinearOpsRegistry, **registry.QDQRegistry}],
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=_library().CalibrationMethod.Percentile,
        extra_options={"symmetric": False},
    )
    names = [output.name for output in calibrator.infer_session.get_outputs()]
    ends = dict.fromkeys(names, np.float32(0))
    for part in _parts(inputs):
        outputs = calibrator.infer_session.run(None, _feed(part))
        ends |= {name: max(ends[name], np.abs(each).max()) for name, each in zip(names, outputs, strict=True)}
    calibrator.collector = calibrate.HistogramCollector("percentile", False, BINS, BINS, calibrator.percentile, "same")
    for name in calibrator.tensors_to_calibrate:
        span: Any = (-ends[name], ends[name])  # in single precision, as there
        counts, borders = np.histogram(np.zeros(0, np.float32), BINS, range=span)
        lowest, highest = np.float32(np.inf), np.float32(-np.inf)
        calibrator.collector.histogram_dict[name] = counts, borders, lowest, highest, ends[name]
    for part in _parts(inputs):
        calibrator.collect_data(_Batches(part))
    return calibrator.compute_data()


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence tools that print, and give hints and tracebacks through the root logger, whatever one has done."""
    before, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
        logging.root.handlers[:] = handlers  # a hint adds one if there is none


def _parts(inputs: "Tensor") -> "tuple[Tensor, ...]":
    size = max(size for size in range(1, BATCH + 1) if len(inputs) % size == 0)  # histograms want equal batches
    return inputs.split(size)


def _feed(part: "Tensor") -> dict[str, np.ndarray]:
    return {"input": part.cpu().contiguous().numpy()}


class _Batches:
    """What ONNX Runtime calls a calibration data reader: one batch after another, then None."""

    def __init__(self, inputs: "Tensor") -> None:
        self._batches = iter(_parts(inputs))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else _feed(batch)


def _require_integers(content: bytes) -> None:
    """Raise DeployError if weights that are multiplied or looked up are stored in floating point."""
    import onnx

    graph = onnx.load_from_string(content).graph
    floats = {t.name: t.name for t in graph.initializer if len(t.dims) > 1 and t.data_type == onnx.TensorProto.FLOAT}
    for node in graph.node:
        stored = [floats[name] for name in node.input if name in floats]
        if stored and node.op_type in MULTIPLYING:
            raise DeployError(
                f"{stored[0]!r} would be stored in floating point: {node.op_type} has no integers here; "
                "nothing was written"
            )
        if stored and node.op_type in MOVING:
            floats |= dict.fromkeys(node.output, stored[0])


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
    options.log_severity_level = 4  # errors are raised
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(session: "onnxruntime.InferenceSession", inputs: np.ndarray) -> np.ndarray:
    """Return the first output, usually logits (batch, classes), for a batch of inputs.

    Raises ValueError for inputs of a shape or type that the network does not take.
    """
    name = session.get_inputs()[0].name
    try:
        return session.run(None, {name: inputs})[0]
    except Exception as error:  # the classes that ONNX Runtime raises have no common base but Exception
        allowed = f"{session.get_inputs()[0].type} {session.get_inputs()[0].shape}"
        given = f"{getattr(inputs, 'dtype', type(inputs))} {getattr(inputs, 'shape', '')}"
        raise ValueError(f"inputs={given} cannot be computed ({_first_line(error)}); allowed: {allowed}") from error
