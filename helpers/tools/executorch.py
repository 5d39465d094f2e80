"""ExecuTorch (PyTorch's own, for phones), computing by XNNPACK."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.tools.conversion import Conversion, Network

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from helpers.tools.conversion import Answers

LARGEST = 64  # memory is planned for batches of as many; with an example of fewer than 16 for 15, 1.5.1 (findings/)


def load(file: Path, *, threads: int, batch: int) -> Answers:
    """Open a .pte; it takes batches of up to LARGEST."""
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(threads)  # of the process, not of this file: there is no other way
    method = Runtime.get().load_program(file).load_method("forward")

    def answers(inputs: np.ndarray) -> np.ndarray:
        usual = inputs.ravel().reshape(inputs.shape)  # a side of 1 may have any stride, by which it would tell layouts
        return method.execute([torch.from_numpy(usual)])[0].numpy()

    return answers


def convert_float32(network: Network, folder: Path) -> Conversion:
    """Export for batches of any size up to LARGEST, and lower."""
    return _written(_exported(network.model, network), folder)


def convert_int8(network: Network, folder: Path, *, per_channel: bool) -> Conversion:
    """Quantize weights and activations by XNNPACK's quantizer, and lower."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=per_channel))
    prepared = prepare_pt2e(_exported(network.model, network).module(), quantizer)
    with torch.no_grad():
        for part in network.calibration.inputs.split(LARGEST):
            prepared(part)
    return _written(_exported(convert_pt2e(prepared), network), folder)


def _exported(model: torch.nn.Module, network: Network) -> ExportedProgram:
    import torch

    example = network.calibration.inputs[:LARGEST].clone(memory_format=torch.contiguous_format)
    sizes = ({0: torch.export.Dim("batch", min=1, max=LARGEST)},)
    return torch.export.export(copy.deepcopy(model), (example,), dynamic_shapes=sizes)


def _written(program: ExportedProgram, folder: Path) -> Conversion:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    file = folder / "net.pte"
    file.write_bytes(edge.to_executorch().buffer)
    return Conversion(file, _facts(program, edge.exported_program()))


def _facts(program: ExportedProgram, lowered: ExportedProgram) -> dict[str, Any]:
    """Read the graph that was lowered, and what of it XNNPACK did not take."""
    called = [node for node in program.graph.nodes if node.op == "call_function"]
    names = {node.target.__name__.partition(".")[0] for node in called}
    inputs = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    used = {inputs[node.name] for node in program.graph.nodes if node.name in inputs and node.users}
    stored = {name: tensor for name, tensor in program.state_dict.items() if name in used and tensor.dim() > 1}
    integers = [tensor for tensor in stored.values() if not tensor.is_floating_point()]
    rounded = [node.args[-1] for node in called if node.target.__name__.startswith("quantize_per_tensor")]
    left = [node.target.__name__ for node in lowered.graph.nodes if node.op == "call_function"]
    return {
        "weights": f"{len(integers)} {integers[0].dtype}".replace("torch.", "") if integers else "float32",
        "float layers": [name for name, tensor in stored.items() if tensor.is_floating_point()],
        "per channel": "dequantize_per_channel" in names,
        "activations": ", ".join(sorted({str(kind).removeprefix("torch.") for kind in rounded})) or "float32",
        "batchnorm": "kept" if any("batch_norm" in name for name in left) else "folded",
        "batch": next(_batch(node) for node in program.graph.nodes if node.name in program.graph_signature.user_inputs),
        "not by XNNPACK": sorted({name for name in left if "delegate" not in name and "getitem" not in name}),
    }


def _batch(node: torch.fx.Node) -> int | str:
    size = node.meta["val"].shape[0]
    return size if isinstance(size, int) else f"1 to {LARGEST}"


# variant: (convert, load)
VARIANTS = {
    "float32": (convert_float32, load),
    "int8 (per tensor, its default)": (partial(convert_int8, per_channel=False), load),
    "int8 (per channel)": (partial(convert_int8, per_channel=True), load),
}
