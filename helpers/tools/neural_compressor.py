"""Neural Compressor (Intel)."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.tools import reading, torchao
from helpers.tools.conversion import Answers, Conversion, Network

if TYPE_CHECKING:
    from torch import fx


def _quantized(network: Network) -> "fx.GraphModule":
    """Return the network exported for batches of any size, calibrated and converted."""
    import torch
    from neural_compressor.torch import quantization
    from neural_compressor.torch.export import export

    inputs = network.calibration.inputs
    exported: Any = export(copy.deepcopy(network.model), (inputs[:2].clone(),), ({0: torch.export.Dim("batch")},))
    prepared = quantization.prepare(exported, quantization.get_default_static_config())
    reading.answers(prepared)(inputs.numpy())
    return quantization.convert(prepared)


def convert_saved(network: Network, folder: Path) -> Conversion:
    """Quantize, and save as it does: a graph of torch.export, the example in it (hence a copy), and settings."""
    quantized: Any = _quantized(network)
    quantized.save((network.calibration.inputs[:2].clone(),), output_dir=str(folder))
    return Conversion(folder, torchao.facts(quantized))


def load_saved(file: Path, *, threads: int, batch: int) -> Answers:
    """Open what it saved, in PyTorch; the graph is not compiled."""
    import torch
    from neural_compressor.torch.quantization import load

    torch.set_num_threads(threads)
    return reading.answers(load(str(file)))


def convert_onnx(network: Network, folder: Path) -> Conversion:
    """Quantize, and write the graph as ONNX by torch's exporter."""
    file = folder / "net.onnx"
    reading.export(_quantized(network), network, file)
    return Conversion(file, reading.onnx_facts(file))


# variant: (convert, load)
VARIANTS = {
    "int8, graph not compiled": (convert_saved, load_saved),
    "int8, in ONNX Runtime": (convert_onnx, reading.load_onnx),
}
