"""ONNX graphs in integers: calibration and static quantization."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.core import checks
from helpers.core.paths import write_atomically
from helpers.runtime.export import without_advice
from helpers.runtime.sessions import DeployError, first_line, open_session, run, session

if TYPE_CHECKING:
    from torch import Tensor

    from helpers.data.splits import Split

CALIBRATIONS = {"minmax": "MinMax", "percentile": "Percentile"}  # as ONNX Runtime calls them
ACTIVATIONS = {"uint8": "QUInt8", "int8": "QInt8"}
WEIGHTS = {"int8": "QInt8", "uint8": "QUInt8", "int4": "QInt4"}
BATCH = 50
CHECKED = 32  # calibration examples whose answers are compared
BINS = 2_048  # of a histogram, as ONNX Runtime has it
MULTIPLYING = ("Conv", "ConvTranspose", "Einsum", "Gather", "Gemm", "GRU", "LSTM", "MatMul", "RNN")
MOVING = ("Cast", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")  # the same numbers


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
            operator has no integer form (ONNX Runtime has none for recurrent layers), the runtime cannot open the
            result, or its integer kernels answer otherwise than the file says. What is added to activations or scales
            them, as the slopes of PReLU or a mean and a spread, may stay.
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
    with tempfile.TemporaryDirectory() as folder, without_advice():
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
        floats = _asked(prepared.read_bytes(), calibration.inputs[:CHECKED])
    _require_integers(content)
    _require_readable(content)
    _require_unchanged_by_joining(content, calibration.inputs[:CHECKED], floats)
    write_atomically(Path(path), content)
    return Path(path)


def _require_readable(content: bytes) -> None:
    """Raise DeployError for a graph that the runtime does not take.

    Without VNNI, ONNX Runtime 1.31 takes none in which two layers share a weight.
    """
    try:
        open_session(content, threads=1)
    except Exception as error:  # the classes that ONNX Runtime raises have no common base but Exception
        raise DeployError(f"ONNX Runtime cannot open what its quantizer made ({first_line(error)})") from error


def _asked(content: bytes, inputs: "Tensor", *, joined: bool = True) -> np.ndarray:
    return run(open_session(content, threads=1, joined=joined), inputs.cpu().contiguous().numpy())


def _require_unchanged_by_joining(content: bytes, inputs: "Tensor", floats: np.ndarray) -> None:
    """Raise DeployError unless the integer kernels answer as the file does when its nodes are computed one by one.

    The runtime joins rounding and layers, which moves single codes. Where it joins what it may not (1.31.1: a mean
    that counts padding at a ragged edge, a bias with a step of its own), the answers part. Allowed is half of the
    distance from the float network's answers, root mean square.
    """
    joined, single = (_asked(content, inputs, joined=joined) for joined in (True, False))
    apart, lost = (float(np.sqrt(np.square(single - other).mean())) for other in (joined, floats))
    allowed = max(lost / 2, 1e-3 * float(np.abs(floats).max()))
    if not apart <= allowed:  # also for NaN
        raise DeployError(
            f"ONNX Runtime's integer kernels answer {apart:.3g} (root mean square) otherwise than the file says; "
            f"allowed: {allowed:.3g}; a layer of this network is joined wrongly"
        )


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
