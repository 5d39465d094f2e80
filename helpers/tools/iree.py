"""IREE (the compiler of OpenXLA), from our ONNX files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.tools.conversion import Conversion, Network

if TYPE_CHECKING:
    from helpers.tools.conversion import Answers

BACKEND = "llvm-cpu"
HOST = "--iree-llvmcpu-target-cpu=host"  # without it, code for any processor of this kind, several times slower


def load(file: Path, *, threads: int, batch: int) -> Answers:
    """Open a .vmfb; it takes batches of any size."""
    from iree import runtime

    runtime.flags.parse_flags(f"--task_topology_group_count={threads}")  # of the process: there is no other way
    driver = runtime.get_driver("local-task" if threads > 1 else "local-sync")
    config = runtime.Config(device=driver.create_default_device())
    module = runtime.load_vm_module(runtime.VmModule.mmap(config.vm_instance, str(file)), config)
    function = module[next(name for name in module.vm_module.function_names if name[0] != "_" and "$" not in name)]

    def answers(inputs: np.ndarray) -> np.ndarray:
        return function(inputs).to_host()

    return answers


def convert_float32(network: Network, folder: Path) -> Conversion:
    """Compile our ONNX file for the processor of this machine."""
    return _compiled(network.graph, folder)


def convert_int8(network: Network, folder: Path) -> Conversion:
    """Compile the integers that `runtime.quantize_static` makes, for the processor of this machine."""
    import tempfile

    from helpers import quantization, runtime

    example = network.calibration.inputs[:2]
    with tempfile.TemporaryDirectory() as work:
        folded = quantization.fold_batchnorm(network.model, example)
        plain = runtime.export_onnx(folded, example, Path(work) / "folded.onnx")
        return _compiled(runtime.quantize_static(plain, network.calibration, Path(work) / "int8.onnx"), folder)


def _compiled(graph: Path, folder: Path) -> Conversion:
    import onnx
    from iree.compiler import compile_str, ir
    from iree.compiler.extras import onnx_importer

    model = onnx.shape_inference.infer_shapes(onnx.load(graph), data_prop=True)
    file = folder / "net.vmfb"
    with ir.Context() as context:
        info = onnx_importer.ModelInfo(model)
        module = info.create_module(context=context).operation
        onnx_importer.NodeImporter.define_function(info.main_graph, module).import_all()
        text = str(module)
    file.write_bytes(compile_str(text, target_backends=[BACKEND], input_type="onnx", extra_args=[HOST]))
    return Conversion(file, _facts(text))


def _facts(text: str) -> dict[str, Any]:
    """Read the imported graph: the file that is compiled of it holds machine code."""
    inputs = re.search(r"func\.func @\w+\(%arg0: !torch\.vtensor<\[([^,\]]+)", text)
    return {
        "batchnorm": "kept" if "BatchNormalization" in text else "folded",
        "batch": "any" if inputs and inputs[1] == "?" else inputs and inputs[1],
    }


# variant: (convert, load)
VARIANTS = {
    "float32 (host CPU)": (convert_float32, load),
    "int8 (our QDQ file)": (convert_int8, load),
}
