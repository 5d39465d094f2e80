"""Apache TVM, its kernels as they come, not tuned."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.tools.conversion import Conversion, Network

if TYPE_CHECKING:
    from helpers.tools.conversion import Answers

TARGET = "llvm"


def load(file: Path, *, threads: int, batch: int) -> Answers:
    """Open a .so; it takes batches of any size."""
    os.environ["TVM_NUM_THREADS"] = str(threads)  # read when the first kernel runs
    import tvm
    from tvm import relax

    device = tvm.cpu()
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(file)), device)

    def answers(inputs: np.ndarray) -> np.ndarray:
        found = machine["main"](tvm.runtime.tensor(inputs, device))
        return (found if hasattr(found, "numpy") else found[0]).numpy()

    return answers


def convert_float32(network: Network, folder: Path) -> Conversion:
    """Export for batches of any size, and compile."""
    import torch
    import tvm
    from tvm.relax.frontend.torch import from_exported_program

    sizes = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    example = (network.calibration.inputs[:2],)
    program = torch.export.export(copy.deepcopy(network.model), example, dynamic_shapes=sizes)
    imported = from_exported_program(program, unwrap_unit_return_tuple=True)
    file = folder / "net.so"
    tvm.compile(imported, target=TARGET).export_library(str(file))
    return Conversion(file, _facts(imported))


def _facts(imported: Any) -> dict[str, Any]:
    """Read the imported graph."""
    text = imported.script()
    size = re.search(r"def main\(\w+: R\.Tensor\(\((\d*)", text)
    return {
        "batchnorm": "kept" if "batch_norm" in text else "folded",
        "batch": int(size[1]) if size and size[1] else "any",
    }


# variant: (convert, load)
VARIANTS = {"float32 (untuned)": (convert_float32, load)}
