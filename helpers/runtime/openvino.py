"""OpenVINO, a second runtime for the same ONNX files."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.core import checks
from helpers.runtime.sessions import first_line

if TYPE_CHECKING:
    import numpy as np

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}  # as OpenVINO calls them


def opened(
    path: Path, *, threads: int = 1, batch: int | None = None, precision: str = "float32"
) -> "Callable[[np.ndarray], np.ndarray]":
    """Open an ONNX file in OpenVINO, on the CPU; return a function from a batch of inputs to the first output.

    What the file leaves in floating point is computed in `precision`. OpenVINO's own choice is bfloat16 where the
    processor multiplies it, though the file says float32 (as of version 2026.4); here that has to be asked for, and
    a processor without it computes in float32. With `batch` the graph is compiled for batches of that size alone.

    Raises ModuleNotFoundError where OpenVINO is not installed, FileNotFoundError if there is no such file, ValueError
    for an unknown precision, for a file that OpenVINO cannot read, and for inputs that the network does not take.
    """
    import openvino

    checks.positive("threads", threads)
    hint = PRECISIONS[checks.choice("precision", precision, PRECISIONS)]
    content, core = Path(path).read_bytes(), openvino.Core()
    try:
        model = core.read_model(content)
        if batch is not None:
            model.reshape([checks.positive("batch", batch), *list(model.inputs[0].partial_shape)[1:]])
        options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        network = core.compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise ValueError(f"path={str(path)!r} is not a model that OpenVINO can read ({first_line(error)})") from None
    request, given, found = network.create_infer_request(), network.inputs[0], network.outputs[0]

    def answers(inputs: "np.ndarray") -> "np.ndarray":
        shape = openvino.PartialShape(list(inputs.shape))
        if inputs.dtype != given.element_type.to_dtype() or not given.partial_shape.compatible(shape):
            allowed = f"{given.element_type.to_dtype()} {given.partial_shape}"
            raise ValueError(f"inputs={inputs.dtype} {inputs.shape} cannot be computed; allowed: {allowed}")
        request.infer([inputs])
        return request.get_tensor(found).data.copy()

    return answers


def multiplies_bfloat16() -> bool:
    """Return whether OpenVINO would compute in bfloat16 on this processor."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
