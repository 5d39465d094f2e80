"""Model Compression Toolkit (Sony)."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.tools import reading
from helpers.tools.conversion import Conversion, Network

if TYPE_CHECKING:
    from torch import nn

AT_ONCE = 32


def _batches(network: Network) -> Callable[[], Iterator[list[np.ndarray]]]:
    inputs = network.calibration.inputs.numpy()
    return lambda: ([inputs[start : start + AT_ONCE]] for start in range(0, len(inputs), AT_ONCE))


def _quantized(network: Network) -> "nn.Module":
    """Return the quantized network, its layers in wrappers."""
    from model_compression_toolkit import ptq

    quantized, _ = ptq.pytorch_post_training_quantization(copy.deepcopy(network.model), _batches(network))
    return quantized.cpu().eval()


def convert_state(network: Network, folder: Path) -> Conversion:
    """Quantize, and keep the state; the wrapped layers in memory answer."""
    import torch

    quantized = _quantized(network)
    file = folder / "net.pt"
    torch.save(quantized.state_dict(), file)
    return Conversion(file, _facts(quantized), reading.answers(quantized))


def _facts(quantized: "nn.Module") -> dict[str, Any]:
    from mct_quantizers import PytorchActivationQuantizationHolder, PytorchQuantizationWrapper
    from torch import nn

    modules = dict(quantized.named_modules())
    wrappers = [each for each in modules.values() if isinstance(each, PytorchQuantizationWrapper)]
    wrapped = {each.layer for each in wrappers}
    kernels = [each.weights_quantizers["weight"] for each in wrappers if isinstance(each.layer, nn.Conv2d)]
    holders = [each for each in modules.values() if isinstance(each, PytorchActivationQuantizationHolder)]
    roundings = [each.activation_holder_quantizer for each in holders]
    layers = {name: each for name, each in modules.items() if isinstance(each, (nn.Conv2d, nn.Linear))}
    return {
        "weights": reading.state_weights(quantized),
        "float layers": [name for name, each in layers.items() if each not in wrapped],
        "per channel": all(each.per_channel for each in kernels),
        "activations": ", ".join(sorted({f"{'int' if each.signed else 'uint'}{each.num_bits}" for each in roundings})),
        "batchnorm": reading.batchnorm(quantized),
    }


def convert_onnx(network: Network, folder: Path) -> Conversion:
    """Quantize, and write the graph as ONNX by its exporter."""
    from model_compression_toolkit import exporter

    file = folder / "net.onnx"
    exporter.pytorch_export_model(
        _quantized(network),
        str(file),
        _batches(network),
        quantization_format=exporter.QuantizationFormat.FAKELY_QUANT,
    )
    return Conversion(file, reading.onnx_facts(file))


# variant: (convert, load)
VARIANTS = {
    "int8, in memory": (convert_state, None),
    "int8, in ONNX Runtime": (convert_onnx, reading.load_onnx),
}
