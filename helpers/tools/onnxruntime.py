"""ONNX Runtime, as the course uses it, and as its quantizer is without being told anything."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers import runtime
from helpers.tools.conversion import Conversion, Network

if TYPE_CHECKING:
    import onnx

    from helpers.tools.conversion import Answers

FLOATS = (1, 10, 11)  # float32, float16, float64, as ONNX numbers its types
INTEGERS = {2: "uint8", 3: "int8", 21: "uint4", 22: "int4"}


def load(file: Path, *, threads: int, batch: int) -> Answers:
    """Open an ONNX file; it takes batches of any size."""
    return partial(runtime.run, runtime.session(file, threads=threads))


def convert_float32(network: Network, folder: Path) -> Conversion:
    """Export."""
    file = runtime.export_onnx(network.model, network.calibration.inputs[:2], folder / "net.onnx")
    return Conversion(file, graph_facts(file))


def convert_int8(network: Network, folder: Path, **types: Any) -> Conversion:
    """Quantize: unsigned activations, signed weights with a scale for each channel."""
    from helpers import quantization

    example = network.calibration.inputs[:2]
    plain = runtime.export_onnx(
        quantization.fold_batchnorm(network.model, example), example, folder.parent / "plain.onnx"
    )
    file = runtime.quantize_static(plain, network.calibration, folder / "net.onnx", **types)
    return Conversion(file, graph_facts(file))


def convert_as_default(network: Network, folder: Path) -> Conversion:
    """Quantize with the defaults of ONNX Runtime's own function: signed activations, one scale for each weight."""
    return convert_int8(network, folder, activations="int8", per_channel=False)


def graph_facts(file: Path) -> dict[str, Any]:
    """Return what an ONNX file says of itself: see `conversion.FACTS`."""
    import onnx

    graph = onnx.load(file).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    kinds = [INTEGERS[t.data_type] for t in stored.values() if t.data_type in INTEGERS and len(t.dims) > 1]
    scales = [stored[n.input[1]] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]
    return {
        "weights": f"{len(kinds)} {', '.join(sorted(set(kinds)))}" if kinds else "float32",
        "float layers": [t.name for t in stored.values() if t.data_type in FLOATS and len(t.dims) > 1],
        "per channel": any(len(scale.dims) == 1 and scale.dims[0] > 1 for scale in scales),
        "activations": _activations(graph, stored),
        "batchnorm": "kept" if any(n.op_type == "BatchNormalization" for n in graph.node) else "folded",
        "batch": graph.input[0].type.tensor_type.shape.dim[0].dim_value or "any",
    }


def _activations(graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto]) -> str:
    rounding = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in stored]
    zeros = [stored[n.input[2]].data_type for n in rounding if len(n.input) > 2 and n.input[2] in stored]
    return ", ".join(sorted({INTEGERS.get(kind, str(kind)) for kind in zeros})) or "float32"


VARIANTS = {
    "float32": (convert_float32, load),
    "int8 (ours: u8 × s8, per channel)": (convert_int8, load),
    "int8 (the tool's defaults)": (convert_as_default, load),
}
