"""AIMET (Qualcomm)."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.tools import reading
from helpers.tools.conversion import Conversion, Network

if TYPE_CHECKING:
    from aimet_torch.quantsim import QuantizationSimModel
    from torch import nn


def _simulated(network: Network) -> "QuantizationSimModel":
    """Return the calibrated simulation of the network; before it, BatchNorm is folded and the sums become layers."""
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.model_preparer import prepare_model
    from aimet_torch.quantsim import QuantizationSimModel

    inputs = network.calibration.inputs
    prepared = prepare_model(copy.deepcopy(network.model)).eval()
    fold_all_batch_norms(prepared, tuple(inputs[:1].shape))
    simulated = QuantizationSimModel(prepared, inputs[:1])
    simulated.compute_encodings(lambda model: reading.answers(model)(inputs.numpy()))
    return simulated


def convert_state(network: Network, folder: Path) -> Conversion:
    """Quantize, and keep the state; the simulation in memory answers."""
    import torch

    simulated = _simulated(network)
    file = folder / "net.pt"
    torch.save(simulated.model.state_dict(), file)
    return Conversion(file, _facts(simulated.model), reading.answers(simulated.model))


def _facts(model: "nn.Module") -> dict[str, Any]:
    from torch.nn import Conv2d

    layers: dict[str, Any] = {name: each for name, each in model.named_modules() if hasattr(each, "param_quantizers")}
    weighted = {name: each for name, each in layers.items() if getattr(each, "weight", None) is not None}
    convolutions: list[Any] = [each for each in weighted.values() if isinstance(each, Conv2d)]
    quantizers = [each.param_quantizers["weight"] for each in convolutions]
    outputs = [
        each for layer in layers.values() for each in (*layer.input_quantizers, *layer.output_quantizers) if each
    ]
    return {
        "weights": reading.state_weights(model),
        "float layers": [name for name, each in weighted.items() if each.param_quantizers["weight"] is None],
        "per channel": all(each.get_scale().numel() > 1 for each in quantizers if each is not None),
        "activations": ", ".join(sorted({f"{'int' if each.signed else 'uint'}{each.bitwidth}" for each in outputs})),
        "batchnorm": reading.batchnorm(model),
    }


def convert_onnx(network: Network, folder: Path) -> Conversion:
    """Quantize, and write the graph as ONNX with AIMET's defaults: float32 weights, rounded in the graph."""
    return _exported(network, folder)


def convert_onnx_integers(network: Network, folder: Path) -> Conversion:
    """Quantize, and write the graph as ONNX with weights of one byte each, and float32 biases."""
    return _exported(network, folder, prequantize_constants=True, export_int32_bias=False)


def _exported(network: Network, folder: Path, **options: bool) -> Conversion:
    from aimet_torch import onnx

    file = folder / "net.onnx"
    example = network.calibration.inputs[:1]
    onnx.export(_simulated(network).model, example, str(file), opset_version=21, **reading.OLDER_EXPORTER, **options)
    return Conversion(file, reading.onnx_facts(file))


# variant: (convert, load)
VARIANTS = {
    "int8, in memory": (convert_state, None),
    "int8, in ONNX Runtime": (convert_onnx, reading.load_onnx),
    "int8 in the file too, in ONNX Runtime": (convert_onnx_integers, reading.load_onnx),
}
