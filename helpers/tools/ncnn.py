"""ncnn (Tencent), its files by pnnx."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.tools.conversion import Conversion, Network

if TYPE_CHECKING:
    from helpers.tools.conversion import Answers

INPUT, OUTPUT = "in0", "out0"  # as pnnx calls them
INT8 = "8"  # the setting of a layer in a .param file that says whether its weights are integers


def load(file: Path, *, threads: int, batch: int) -> Answers:
    """Open a folder of ncnn with its defaults; it takes one image at a time."""
    return _open(file, threads)


def load_float32(file: Path, *, threads: int, batch: int) -> Answers:
    """Open it so that neither weights nor activations are in half precision."""
    return _open(file, threads, half=False)


def _open(folder: Path, threads: int, *, half: bool = True) -> Answers:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    if not half:
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        net.opt.use_bf16_storage = False
    for read, file in ((net.load_param, folder / "net.param"), (net.load_model, folder / "net.bin")):
        if read(str(file)) != 0:
            raise RuntimeError(f"ncnn cannot read {file.name}")

    def answer(image: np.ndarray) -> np.ndarray:
        with net.create_extractor() as extractor:
            extractor.input(INPUT, ncnn.Mat(np.ascontiguousarray(image)).clone())
            code, logits = extractor.extract(OUTPUT)
            if code != 0:
                raise RuntimeError(f"ncnn cannot compute {OUTPUT!r}, code {code}")
            return np.array(logits)

    def answers(inputs: np.ndarray) -> np.ndarray:
        return np.stack([answer(image) for image in inputs])

    return answers


def _convert(network: Network, folder: Path, *, half: bool) -> Conversion:
    import pnnx
    import torch

    from helpers.runtime.export import without_advice

    shipped = folder / "net"
    shipped.mkdir()
    with tempfile.TemporaryDirectory() as work, without_advice(), torch.no_grad():
        others = ("pnnxparam", "pnnxbin", "pnnxonnx", "pnnxpy", "ncnnpy")  # written too, into the same folder
        places = {name: f"{work}/net_{name}.py" for name in others}
        places |= {"ncnnparam": str(shipped / "net.param"), "ncnnbin": str(shipped / "net.bin")}
        pnnx.export(copy.deepcopy(network.model), f"{work}/net.pt", network.calibration.inputs[:1], fp16=half, **places)
    if not (shipped / "net.bin").exists():
        raise RuntimeError("pnnx wrote no net.bin")
    return Conversion(shipped, _facts(shipped / "net.param"))


def convert_half(network: Network, folder: Path) -> Conversion:
    """Trace the network, and have pnnx write it with its defaults: weights in half precision."""
    return _convert(network, folder, half=True)


def convert_float32(network: Network, folder: Path) -> Conversion:
    """Trace the network, and have pnnx write it with weights in float32."""
    return _convert(network, folder, half=False)


def _facts(param: Path) -> dict[str, Any]:
    """Read a .param file: after two lines of numbers, a line for each layer, with its kind, its name and settings."""
    layers = [line.split() for line in param.read_text(encoding="utf-8").splitlines()[2:]]
    floats = [layer[1] for layer in layers if layer[0].startswith(("Convolution", "InnerProduct")) and not _int8(layer)]
    return {
        "batchnorm": "kept" if any(layer[0] == "BatchNorm" for layer in layers) else "folded",
        "float layers": floats,
    }


def _int8(layer: list[str]) -> bool:
    return any(setting.startswith(f"{INT8}=") and setting != f"{INT8}=0" for setting in layer)


# variant: (convert, load)
VARIANTS = {
    "float32 (default: half precision)": (convert_half, load),
    "float32 (fp16 off)": (convert_float32, load_float32),
}
