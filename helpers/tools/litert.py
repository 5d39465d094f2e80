"""LiteRT (Google, once TensorFlow Lite): networks by litert-torch, its integers by ai-edge-quantizer."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from helpers.tools import reading
from helpers.tools.conversion import Answers, Conversion, Network

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL")
BATCHES = (1, 64)
INTEGERS = ("INT8", "UINT8", "INT4", "INT2")


def load(file: Path, *, threads: int, batch: int) -> Answers:
    """Open the file for batches of `batch`; fewer examples are filled up with zeros, more are cut into several."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(_beside(file, batch)), num_threads=threads)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()

    def answers(inputs: np.ndarray) -> np.ndarray:
        return np.concatenate([part(inputs[start : start + batch]) for start in range(0, len(inputs), batch)])

    def part(inputs: np.ndarray) -> np.ndarray:
        missing = [(0, batch - len(inputs))] + [(0, 0)] * (inputs.ndim - 1)
        full = np.pad(inputs, missing) if len(inputs) < batch else inputs
        interpreter.set_tensor(taken["index"], _rounded(full, taken))
        interpreter.invoke()
        return _dequantized(interpreter.get_tensor(given["index"]), given)[: len(inputs)]

    return answers


def _beside(file: Path, batch: int) -> Path:
    """Return the file for batches of another size, which lies beside the one for single examples."""
    return file if batch == 1 else file.with_name(f"batch_{batch}.tflite")


def _rounded(numbers: np.ndarray, tensor: Mapping[str, Any]) -> np.ndarray:
    """Return numbers in the type that a tensor has, on its grid if that is one of integers."""
    scale, zero = tensor["quantization"]
    if not scale:
        return numbers.astype(tensor["dtype"], copy=False)
    limits = np.iinfo(tensor["dtype"])
    return np.clip(np.rint(numbers / scale) + zero, limits.min, limits.max).astype(tensor["dtype"])


def _dequantized(numbers: np.ndarray, tensor: Mapping[str, Any]) -> np.ndarray:
    scale, zero = tensor["quantization"]
    return (numbers.astype(np.float32) - np.float32(zero)) * np.float32(scale) if scale else numbers


def convert_float32(network: Network, folder: Path) -> Conversion:
    """Convert, once for each size of batches: a file takes one."""
    return _converted(network, folder, None)


def convert_int8(network: Network, folder: Path) -> Conversion:
    """Quantize weights and activations, these by the examples."""
    from ai_edge_quantizer import recipe

    return _converted(network, folder, recipe.static_wi8_ai8())


def convert_dynamic(network: Network, folder: Path) -> Conversion:
    """Quantize the weights; activations are rounded when the network runs."""
    from ai_edge_quantizer import recipe

    return _converted(network, folder, recipe.dynamic_wi8_afp32())


def _converted(network: Network, folder: Path, recipe: list[dict[str, Any]] | None) -> Conversion:
    """Write a file for each size of batches, quantized by a recipe if there is one."""
    import litert_torch

    file, ranges = folder / "net.tflite", None
    for batch in BATCHES:
        path = _beside(file, batch)
        litert_torch.convert(network.model, (network.calibration.inputs[:batch],)).export(str(path))
        if recipe is not None:
            ranges = _quantize(path, recipe, network.calibration.inputs, ranges)
    return Conversion(file, facts(file))


def _quantize(file: Path, recipe: list[dict[str, Any]], examples: Iterable[Any], ranges: Any) -> Any:
    """Put integers into a file, in its place; return the ranges of the activations, found unless they are given.

    They are averages over calls, so they are found once, with the file for single examples.
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer

    made = quantizer.Quantizer(file, recipe)
    if made.need_calibration and ranges is None:
        ((signature, names),) = Interpreter(model_path=str(file)).get_signature_list().items()
        ranges = made.calibrate({signature: [{names["inputs"][0]: each[None].numpy()} for each in examples]})
    file.write_bytes(made.quantize(ranges).quantized_model)
    return ranges


def facts(file: Path) -> dict[str, Any]:
    """Return the facts of a file."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file.read_bytes()))
    kinds = _names(schema.BuiltinOperator)
    types = _names(schema.TensorType)
    graph = model.subgraphs[0]
    operators = [(kinds[model.operatorCodes[each.opcodeIndex].builtinCode], each) for each in graph.operators]
    computed = {*graph.inputs, *(output for each in graph.operators for output in each.outputs)}
    constants = {i: each for i, each in enumerate(graph.tensors) if i not in computed}
    weights = [
        (kind, constants[each.inputs[1]]) for kind, each in operators if kind in LAYERS and each.inputs[1] in constants
    ]
    convolved = {each.outputs[0] for kind, each in operators if "CONV_2D" in kind}
    rounded = {types[graph.tensors[each.inputs[0]].type].lower() for kind, each in operators if kind in LAYERS}
    scaled = [each for kind, each in weights if "CONV_2D" in kind and types[each.type] in INTEGERS]
    first = graph.tensors[graph.inputs[0]]
    return {
        "weights": reading.counted(
            types[each.type].lower()
            for each in constants.values()
            if types[each.type] in INTEGERS and each.shape is not None and len(each.shape) > 1
        ),
        "float layers": [
            f"{kind} {' × '.join(str(size) for size in each.shape)}"
            for kind, each in weights
            if types[each.type] not in INTEGERS
        ],
        "per channel": all(len(each.quantization.scale) > 1 for each in scaled) if scaled else None,
        "activations": ", ".join(sorted(rounded)),
        "batchnorm": "kept"
        if any(kind == "MUL" and each.inputs[0] in convolved for kind, each in operators)
        else "folded",
        "batch": "any" if first.shapeSignature is not None and first.shapeSignature[0] < 0 else int(first.shape[0]),
    }


def _names(numbers: type) -> dict[int, str]:
    """Return the names of an enumeration of the format's, which are attributes of a class, by number."""
    return {number: name for name, number in vars(numbers).items() if not name.startswith("_")}


# variant: (convert, load)
VARIANTS = {
    "float32": (convert_float32, load),
    "int8": (convert_int8, load),
    "dynamic int8": (convert_dynamic, load),
}
