"""Brevitas (AMD)."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.tools import reading
from helpers.tools.conversion import Conversion, Network

if TYPE_CHECKING:
    from torch import nn


def _quantized(network: Network) -> "nn.Module":
    """Return the network with layers of Brevitas, calibrated."""
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.graph.quantize import preprocess_for_quantize, quantize

    quantized = quantize(preprocess_for_quantize(copy.deepcopy(network.model)))
    with calibration_mode(quantized):
        reading.answers(quantized)(network.calibration.inputs.numpy())
    return quantized.eval()


def convert_state(network: Network, folder: Path) -> Conversion:
    """Quantize, and keep the state; the layers in memory answer."""
    import torch

    quantized = _quantized(network)
    file = folder / "net.pt"
    torch.save(quantized.state_dict(), file)
    return Conversion(file, _facts(quantized), reading.answers(quantized))


def _facts(quantized: "nn.Module") -> dict[str, Any]:
    from brevitas import nn as layers

    weighted = {name: each for name, each in quantized.named_modules() if getattr(each, "weight", None) is not None}
    convolutions = [each for each in weighted.values() if isinstance(each, layers.QuantConv2d)]
    activations = [each for each in quantized.modules() if isinstance(each, (layers.QuantReLU, layers.QuantIdentity))]
    bits = {f"{'int' if each.act_quant.is_signed else 'uint'}{int(each.act_quant.bit_width())}" for each in activations}
    return {
        "weights": reading.state_weights(quantized),
        "float layers": [n for n, each in weighted.items() if not each.weight_quant.is_quant_enabled],
        "per channel": all(each.quant_weight().scale.numel() > 1 for each in convolutions),
        "activations": ", ".join(sorted(bits)),
        "batchnorm": reading.batchnorm(quantized),
    }


def convert_onnx(network: Network, folder: Path) -> Conversion:
    """Quantize, and write the graph as ONNX by its exporter; by torch's newer one it takes no quantized biases."""
    from brevitas.export import export_onnx_qcdq

    file = folder / "net.onnx"
    example = network.calibration.inputs[:2]
    export_onnx_qcdq(_quantized(network), args=example, export_path=str(file), **reading.OLDER_EXPORTER)
    return Conversion(file, reading.onnx_facts(file))


# variant: (convert, load)
VARIANTS = {
    "int8, in memory": (convert_state, None),
    "int8, in ONNX Runtime": (convert_onnx, reading.load_onnx),
}
