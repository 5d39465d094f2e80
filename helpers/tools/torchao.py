"""torchao's quantization of an exported graph (PT2E), with the settings for x86 processors."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.tools import reading
from helpers.tools.conversion import Conversion, Network

if TYPE_CHECKING:
    from torch import fx

LAYERS = ("aten.conv2d.default", "aten.linear.default")


def _quantized(network: Network) -> "fx.GraphModule":
    """Return the network exported for batches of any size, calibrated and converted."""
    import torch
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    inputs = network.calibration.inputs
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    sizes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(copy.deepcopy(network.model), (inputs[:2],), dynamic_shapes=sizes).module()
    prepared = prepare_pt2e(exported, quantizer)
    reading.answers(prepared)(inputs.numpy())
    return move_exported_model_to_eval(convert_pt2e(prepared))


def convert_graph(network: Network, folder: Path) -> Conversion:
    """Quantize, and keep the state; the graph answers as it is, not compiled."""
    import torch

    quantized = _quantized(network)
    file = folder / "net.pt"
    torch.save(quantized.state_dict(), file)
    return Conversion(file, facts(quantized), reading.answers(quantized))


def facts(quantized: "fx.GraphModule") -> dict[str, Any]:
    """Return the facts of a converted graph; where a layer takes what no dequantization made, it is a float layer."""
    nodes = [node for node in quantized.graph.nodes if node.op == "call_function"]
    roundings = [node for node in nodes if "quantize_per_tensor.default" in str(node.target)]
    layers = [node for node in nodes if str(node.target) in LAYERS]
    weights = [node.args[1] for node in layers]
    return {
        "weights": reading.state_weights(quantized),
        "float layers": [node.name for node in layers if not all("dequantize" in each.name for each in node.args[:2])],
        "per channel": all("per_channel" in str(each.target) for each in weights),
        "activations": ", ".join(sorted({str(node.args[5]).removeprefix("torch.") for node in roundings})) or "float32",
        "batchnorm": "kept" if any("batch_norm" in str(node.target) for node in nodes) else "folded",
    }


def convert_onnx(network: Network, folder: Path) -> Conversion:
    """Quantize, and write the graph as ONNX."""
    file = folder / "net.onnx"
    reading.export(_quantized(network), network, file)
    return Conversion(file, reading.onnx_facts(file))


# variant: (convert, load)
VARIANTS = {
    "int8, graph not compiled": (convert_graph, None),
    "int8, in ONNX Runtime": (convert_onnx, reading.load_onnx),
}
