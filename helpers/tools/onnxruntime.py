"""ONNX Runtime, as the course uses it, and as its quantizer is without being told anything."""

from pathlib import Path
from typing import Any

from helpers import runtime
from helpers.tools import reading
from helpers.tools.conversion import Conversion, Network


def convert_float32(network: Network, folder: Path) -> Conversion:
    """Export."""
    file = runtime.export_onnx(network.model, network.calibration.inputs[:2], folder / "net.onnx")
    return Conversion(file, reading.onnx_facts(file))


def convert_int8(network: Network, folder: Path, **types: Any) -> Conversion:
    """Quantize: unsigned activations, signed weights with a scale for each channel."""
    from helpers import quantization

    example = network.calibration.inputs[:2]
    plain = runtime.export_onnx(
        quantization.fold_batchnorm(network.model, example), example, folder.parent / "plain.onnx"
    )
    file = runtime.quantize_static(plain, network.calibration, folder / "net.onnx", **types)
    return Conversion(file, reading.onnx_facts(file))


def convert_as_default(network: Network, folder: Path) -> Conversion:
    """Quantize with the defaults of ONNX Runtime's own function: signed activations, one scale for each weight."""
    return convert_int8(network, folder, activations="int8", per_channel=False)


VARIANTS = {
    "float32": (convert_float32, reading.load_onnx),
    "int8 (ours: u8 × s8, per channel)": (convert_int8, reading.load_onnx),
    "int8 (the tool's defaults)": (convert_as_default, reading.load_onnx),
}
