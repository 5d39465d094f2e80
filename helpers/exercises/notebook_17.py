"""The exercises of notebook 17."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.exercises.checking import Wrong, exercise, within_factor


def _written(folder: str, weights: dict[str, np.ndarray], activations: dict[str, type], name: str = "net") -> Path:
    """Write an ONNX file: each weight behind a DequantizeLinear, each activation rounded with a zero point of its type.

    A float weight is rounded while the network runs, as fake quantization does.
    """
    import onnx

    stored: dict[str, Any] = {"one": np.float32(1)}
    nodes = []
    for weight, array in weights.items():
        stored[weight] = array
        codes = weight
        if array.dtype == np.float32:
            stored[f"{weight}.zero"], codes = np.int8(0), f"{weight}.codes"
            nodes.append(onnx.helper.make_node("QuantizeLinear", [weight, "one", f"{weight}.zero"], [codes]))
        nodes.append(onnx.helper.make_node("DequantizeLinear", [codes, "one"], [f"{weight}.numbers"]))
    for activation, kind in activations.items():
        stored[f"{activation}.zero"] = kind(0)
        nodes.append(
            onnx.helper.make_node("QuantizeLinear", [activation, "one", f"{activation}.zero"], [f"{activation}.q"])
        )
    values = [onnx.helper.make_tensor_value_info(each, onnx.TensorProto.FLOAT, [1]) for each in activations]
    tensors = [onnx.numpy_helper.from_array(np.asarray(array), each) for each, array in stored.items()]
    path = Path(folder) / f"{name}.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, name, values, [], tensors)), path)
    return path


@exercise("17.1")
def _integer_share(answer: Callable[[Path], float]) -> str:
    integers, floats = np.ones((3, 10), np.int8), np.ones((3, 10), np.float32)
    cases: dict[str, tuple[dict[str, np.ndarray], float]] = {
        "all weights in int8": ({"a": integers, "b": integers.astype(np.uint8)}, 1.0),
        "fake quantization: rounding nodes around float weights": ({"a": floats}, 0.0),
        "30 integers, 90 floats": ({"a": integers, "b": np.ones((9, 10), np.float32)}, 0.25),
        "30 integers, and biases of one axis": ({"a": integers, "bias": np.ones(50, np.float32)}, 1.0),
    }
    with tempfile.TemporaryDirectory() as folder:
        for what, (weights, right) in cases.items():
            found = answer(_written(folder, weights, {"x": np.uint8}))
            if not isinstance(found, int | float | np.number) or isinstance(found, bool):
                raise Wrong(f"A share is one number; yours is {found!r}.", hint="Divide two counts of numbers.")
            if abs(found - right) < 1e-6:
                continue
            said = f"A file with {what} has a share of {right:g}; yours: {float(found):.3g}."
            if right == 0:
                raise Wrong(said, hint="A rounding node promises nothing. Look at the types of the initializers.")
            if "biases" in what:
                raise Wrong(said, hint="Biases have one axis: only arrays of two or more count as weights.")
            if right == 0.25:
                raise Wrong(said, hint="Count numbers, not arrays: a large float array outweighs a small integer one.")
            raise Wrong(said, hint="Both int8 and uint8 are integers of 8 bits.")
    return "The types of the initializers do not lie."


@exercise("17.2")
def _leans_on_neighbours(answer: Callable[[Callable[[Tensor], Tensor], Tensor], float]) -> str:
    batch = torch.randn(6, 4) * torch.arange(1, 7)[:, None]  # the first example leans least
    weight = torch.randn(4, 3)

    def evaluated(x: Tensor) -> Tensor:
        return x @ weight

    def in_training_mode(x: Tensor) -> Tensor:
        return (x - x.mean(0)) @ weight

    for what, answers in {"evaluated": evaluated, "in training mode": in_training_mode}.items():
        apart = (answers(batch) - torch.cat([answers(one) for one in batch.split(1)])).abs()
        found = answer(answers, batch)
        if isinstance(found, Tensor) and found.numel() == 1:
            found = found.item()
        if not isinstance(found, int | float) or isinstance(found, bool):
            raise Wrong(f"One number is asked for; yours is {type(found).__name__}.", hint="Take the largest: .max().")
        if abs(found - float(apart.max())) < 1e-4:
            continue
        said = f"For a network {what} the largest difference is {float(apart.max()):.3g}; yours: {found:.3g}."
        if abs(found) < 1e-4:
            raise Wrong(said, hint="Ask each example alone as well: batch[i : i + 1], not the same batch twice.")
        if abs(found - float(apart.mean())) < 1e-4:
            raise Wrong(
                said, hint="That is the mean. One answer that leans on its neighbours is enough: take the largest."
            )
        raise Wrong(said, hint="Compare every example, alone and in the batch: subtract, abs, max.")
    return "A network that is evaluated answers each example as if it were alone."


@exercise("17.3")
def _signed_activations(answer: Callable[[Path], list[str]]) -> str:
    integers = {"w": np.ones((3, 10), np.int8)}
    cases: dict[str, tuple[dict[str, Any], dict[str, type], list[str]]] = {
        "unsigned activations": (integers, {"x": np.uint8, "y": np.uint8}, []),
        "signed and unsigned ones": (integers, {"b": np.int8, "a": np.int8, "c": np.uint8}, ["a", "b"]),
        "a float weight that is rounded to int8": ({"w": np.ones((3, 10), np.float32)}, {"x": np.uint8}, []),
    }
    with tempfile.TemporaryDirectory() as folder:
        for what, (weights, activations, right) in cases.items():
            found = answer(_written(folder, weights, activations))
            if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
                raise Wrong(f"A list of names is asked for; yours is {found!r}.", hint="Return a sorted list.")
            if [*found] == right:
                continue
            said = f"In a file with {what} they are {right}; yours: {[*found]}."
            if "w" in found:
                raise Wrong(said, hint="A weight lies in the file: leave out what is an initializer.")
            if sorted(found) == right:
                raise Wrong(said, hint="Sort the names.")
            raise Wrong(
                said, hint="The sign is the type of the zero point, the third input: INT8 is signed, UINT8 is not."
            )
    return "Now you know where to look when an int8 file is slow."


@exercise("17.4")
def _predict_bfloat16(guess: Callable[[], float], measured: float) -> str:
    return within_factor(
        guess,
        measured,
        factor=5,
        unit="of the largest logit",
        too_low="Each rounding alone is off by up to 2⁻⁸, a two-hundred-and-fiftieth; a layer adds many such products.",
        too_high="Roundings go up as often as down, so most of the errors of a sum cancel.",
    )
