"""Model Optimizer (NVIDIA), on the CPU."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.tools import reading
from helpers.tools.conversion import Conversion, Network

if TYPE_CHECKING:
    from torch import nn


def _quantized(network: Network) -> "nn.Module":
    """Return the network with quantizers in its layers, calibrated."""
    from modelopt.torch import quantization as mtq

    inputs = network.calibration.inputs.numpy()
    model = copy.deepcopy(network.model)
    return mtq.quantize(model, mtq.INT8_DEFAULT_CFG, lambda model: reading.answers(model)(inputs))


def convert_state(network: Network, folder: Path) -> Conversion:
    """Quantize, and save as it does; the layers in memory answer."""
    return _saved(_quantized(network), folder)


def convert_compressed(network: Network, folder: Path) -> Conversion:
    """Quantize, make the weights integers by `compress`, and save; the layers in memory answer."""
    from modelopt.torch import quantization as mtq

    quantized = _quantized(network)
    mtq.compress(quantized)
    return _saved(quantized, folder)


def _saved(quantized: "nn.Module", folder: Path) -> Conversion:
    from modelopt.torch import opt

    file = folder / "net.pt"
    opt.save(quantized, file)
    return Conversion(file, _facts(quantized), reading.answers(quantized))


def _facts(quantized: "nn.Module") -> dict[str, Any]:
    layers = {name: each for name, each in quantized.named_modules() if hasattr(each, "weight_quantizer")}
    inputs = [each.input_quantizer for each in layers.values() if each.input_quantizer.is_enabled]
    types = {f"{'uint' if each.unsigned else 'int'}{each.num_bits}" for each in inputs}
    return {
        "weights": reading.state_weights(quantized),
        "float layers": [name for name, each in layers.items() if not each.weight_quantizer.is_enabled],
        "per channel": all(each.weight_quantizer.axis is not None for each in layers.values()),
        "activations": ", ".join(sorted(types)) or "float32",
        "batchnorm": reading.batchnorm(quantized),
    }


def convert_onnx(network: Network, folder: Path) -> Conversion:
    """Quantize, and write the graph as ONNX by torch's older exporter."""
    import torch

    file = folder / "net.onnx"
    torch.onnx.export(_quantized(network), (network.calibration.inputs[:1],), file, **reading.OLDER_EXPORTER)
    return Conversion(file, reading.onnx_facts(file))


# variant: (convert, load)
VARIANTS = {
    "int8, in memory": (convert_state, None),
    "int8, compressed, in memory": (convert_compressed, None),
    "int8, in ONNX Runtime": (convert_onnx, reading.load_onnx),
}
