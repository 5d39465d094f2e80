"""OpenVINO (Intel), its integers by NNCF."""

from pathlib import Path
from typing import Any

import numpy as np

from helpers import runtime
from helpers.core.vocabulary import PAD
from helpers.tools import reading
from helpers.tools.conversion import Answers, Conversion, Network

CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
LAYERS = {**dict.fromkeys((*CONVOLUTIONS, "MatMul"), 1), "LSTMSequence": 4, "LSTMCell": 3}  # which input is the weight
UNKNOWN = 0  # a word's number that is not padding
UNPACKING = ("Convert", "Subtract", "Multiply", "Reshape", "Transpose")  # from a stored weight to the layer
MOVES = ("MaxPool", "ReduceMax", "Reshape", "Transpose", "Squeeze", "Unsqueeze")
INTEGERS = {"i8": "int8", "u8": "uint8", "i4": "int4", "u4": "uint4"}


def load(file: Path, *, threads: int, batch: int) -> Answers:
    """Open a model of OpenVINO with its defaults; it takes batches of any size."""
    return _open(file, threads)


def load_float32(file: Path, *, threads: int, batch: int) -> Answers:
    """Open it so that float32 is computed in float32: by default it is bfloat16 where the processor has that."""
    return _open(file, threads, INFERENCE_PRECISION_HINT="f32")


def _open(file: Path, threads: int, **options: Any) -> Answers:
    import openvino

    path = file / "net.xml" if file.is_dir() else file
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_NUM_THREADS": threads, **options})
    request = compiled.create_infer_request()

    def answers(inputs: np.ndarray) -> np.ndarray:
        return request.infer([inputs])[compiled.output(0)]

    return answers


def convert_float32(network: Network, folder: Path) -> Conversion:
    """Convert by `convert_model`."""
    return _saved(_converted(network), folder)


def convert_int8(network: Network, folder: Path) -> Conversion:
    """Quantize the converted network by `nncf.quantize` with its defaults, the examples one by one."""
    import nncf

    examples = [example[None].numpy() for example in network.calibration.inputs]
    return _saved(nncf.quantize(_converted(network), nncf.Dataset(examples), subset_size=len(examples)), folder)


def convert_graph(network: Network, folder: Path) -> Conversion:
    """Take the integer graph that ONNX Runtime's tools make: OpenVINO opens ONNX files itself."""
    file = runtime.quantize_static(network.graph, network.calibration, folder / "net.onnx")
    return Conversion(file, reading.onnx_facts(file))


def _converted(network: Network) -> Any:
    """Return the network as a model of OpenVINO for batches of any size, texts of any length up to the examples'.

    The tool traces the network: it keeps as many words as the example has before its padding, so that has none.
    """
    import openvino

    example = network.calibration.inputs[:2]
    if not example.is_floating_point():
        example = example.masked_fill(example == PAD, UNKNOWN)
    return openvino.convert_model(network.model, example_input=example)


def _saved(converted: Any, folder: Path) -> Conversion:
    import openvino

    file = folder / "net.xml"
    openvino.save_model(converted, file, compress_to_fp16=False)
    return Conversion(folder, facts(openvino.Core().read_model(file)))


def facts(opened: Any) -> dict[str, Any]:
    """Return the facts of a model that was read from its file."""
    nodes = opened.get_ordered_ops()
    constants = [node for node in nodes if node.get_type_name() == "Constant" and len(node.get_output_shape(0)) > 1]
    types = [_kind(node) for node in constants]
    layers = [node for node in nodes if _weight(node) is not None]
    chains = [_chain(node, 1, UNPACKING) for node in layers if node.get_type_name() in CONVOLUTIONS]
    scales = [
        np.prod(step.get_input_shape(1)) for chain in chains for step in chain if step.get_type_name() == "Multiply"
    ]
    grids = {_grid(node) for node in nodes if node.get_type_name() == "FakeQuantize"}
    batch = opened.input(0).partial_shape[0]
    return {
        "weights": reading.counted(INTEGERS[kind] for kind in types if kind in INTEGERS),
        "float layers": [_name(node) for node in layers if not _in_integers(node)],
        "per channel": all(size > 1 for size in scales) if scales else None,
        "activations": ", ".join(sorted(grids)) or "float32",
        "batchnorm": "kept" if any(_is_batchnorm(node) for node in nodes) else "folded",
        "batch": "any" if batch.is_dynamic else batch.get_length(),
    }


def _chain(node: Any, port: int, through: tuple[str, ...]) -> list[Any]:
    """Return what leads to an input of a node, the last node first, until one that does more than `through`."""
    chain = [node.input_value(port).get_node()]
    while chain[-1].get_type_name() in through:
        chain.append(chain[-1].input_value(0).get_node())
    return chain


def _weight(node: Any) -> Any:
    """Return the constant that holds a layer's weight; None if the node is no layer, or has none."""
    port = LAYERS.get(node.get_type_name())
    last = None if port is None else _chain(node, port, UNPACKING)[-1]
    return last if last is not None and last.get_type_name() == "Constant" else None


def _in_integers(layer: Any) -> bool:
    """Return whether both the weight and the input of a layer come out of integers."""
    return _kind(_weight(layer)) in INTEGERS and _chain(layer, 0, MOVES)[-1].get_type_name() == "FakeQuantize"


def _grid(rounding: Any) -> str:
    """Return the type on whose grid a FakeQuantize rounds: signed if its range has negative numbers."""
    levels, low = rounding.get_attributes()["levels"], rounding.input_value(1).get_node().data.min()
    return f"{'int' if low < 0 else 'uint'}{int(levels - 1).bit_length()}"


def _is_batchnorm(node: Any) -> bool:
    """Return whether a node is a BatchNorm, or what is left of one: a multiplication of a convolution's output."""
    makers = [node.input_value(port).get_node().get_type_name() for port in range(node.get_input_size())]
    return "BatchNorm" in node.get_type_name() or (node.get_type_name() == "Multiply" and makers[0] in CONVOLUTIONS)


def _kind(constant: Any) -> str:
    return str(constant.get_output_element_type(0).get_type_name())


def _name(layer: Any) -> str:
    """Return a layer's kind and the shape of its weight: the names that a converter gives change from time to time."""
    return f"{layer.get_type_name()} {' × '.join(str(size) for size in _weight(layer).get_output_shape(0))}"


# variant: (convert, load)
VARIANTS = {
    "float32 (default)": (convert_float32, load),
    "float32 (hint f32)": (convert_float32, load_float32),
    "int8 (NNCF)": (convert_int8, load),
    "int8 (our ONNX file)": (convert_graph, load),
}
