"""Which number format a training multiplies in, and on which device."""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from helpers.core import modules, paths
from helpers.core.system import machine
from helpers.training.losses import cross_entropy


def device() -> torch.device:
    """Return `COURSE_DEVICE` if it is set, else a GPU if there is one, else the CPU.

    Raises ValueError if `COURSE_DEVICE` is no device of this machine.
    """
    name = os.environ.get("COURSE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        raise ValueError(f"COURSE_DEVICE={name!r}; allowed: 'cpu', 'cuda', 'cuda:1' and the like") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"COURSE_DEVICE={name!r}; allowed here: 'cpu', and {torch.cuda.device_count()} GPUs")
    return found


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def fast_precision() -> str:
    """Return the precision in which this device trains convolutions fastest, for `fit`.

    "bfloat16" on a GPU that multiplies such numbers (since Ampere) and on a CPU with AMX. Other CPUs that have
    instructions for them (AVX512-BF16, Arm's) gain or lose by them: there a few steps of `cifar_base` are timed, once
    per machine, and remembered in precision.json in the build folder. "float32" everywhere else.
    """
    if device().type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    capabilities = torch.cpu.get_capabilities()
    limited = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    if capabilities.get("amx_bf16") and not limited:
        return "bfloat16"
    if any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")):
        return _faster_here(f"{machine()['cpu']}, {torch.get_num_threads()} threads, {torch.__version__}, {limited}")
    return "float32"


def _faster_here(key: str) -> str:
    """Return what the trial on this machine, which goes by `key`, said, or says now."""
    path = paths.build_dir() / "precision.json"
    known: dict[str, str] = {}
    with suppress(OSError, ValueError, TypeError):  # there is none, or a damaged one
        known = {} | json.loads(path.read_bytes())
    if known.get(key) not in list(PRECISIONS):
        seconds = _seconds_of_a_step()
        known[key] = "bfloat16" if 1.1 * seconds["bfloat16"] < seconds["float32"] else "float32"
        with suppress(OSError):  # a folder that cannot be written costs a trial in each process
            paths.write_atomically(path, json.dumps(known, indent=1).encode())
    return known[key]


@torch.inference_mode(False)
@torch.enable_grad()
def _seconds_of_a_step(*, rounds: int = 6) -> dict[str, float]:
    """Return by precision the shortest time of a training step; in turn, so that other work slows both."""
    from helpers.nets import cifar_base

    seconds = dict.fromkeys(PRECISIONS, math.inf)
    with torch.random.fork_rng(devices=[]):
        net = modules.to_channels_last(cifar_base())
        images, labels = torch.randn(16, 3, 32, 32), torch.zeros(16, dtype=torch.int64)
    deadline = time.perf_counter() + 5
    for turn in range(rounds):
        for name, precision in PRECISIONS.items():
            started = time.perf_counter()
            with computing_in(precision, net):
                loss = cross_entropy(net, images, labels)
            loss.backward()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
        if turn > 1 and time.perf_counter() > deadline:  # a busy machine
            break
    return seconds


def _as_product(
    images: Float[Tensor, "batch channels height width"],
    weight: Float[Tensor, "filters channels rows columns"],
    bias: Float[Tensor, " filters"] | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Float[Tensor, "batch filters up across"]:
    """Return the convolution as one matrix product: of all patches (one for each place), laid out as rows."""
    (down, right), (rows, columns) = stride, weight.shape[2:]
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    up, across = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
    seen = [padded[:, i : i + up : down, j : j + across : right] for i in range(rows) for j in range(columns)]
    product = F.linear(torch.cat(seen, dim=-1), weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)
    formats = {suggest_memory_format(images), suggest_memory_format(weight)}  # as a convolution lays out its output
    last = torch.channels_last in formats
    return product.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


class _SmallMapsAsProducts(TorchFunctionMode):
    """Compute convolutions that put out at most `PLACES` places for each image as matrix products.

    A ResNet-18 on 64 pixels trains 1.8 times as fast: oneDNN's bfloat16 kernels are slow on such maps, the gradient of
    the weights above all.
    """

    PLACES = 16

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and len(args) == 7 and self._fits(*args):  # as nn.Conv2d calls it
            return _as_product(*args[:5])
        return func(*args, **(kwargs or {}))

    def _fits(
        self, images: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> bool:
        if images.device.type != "cpu" or images.dim() != 4 or groups != 1 or dilation != (1, 1):
            return False
        if not (isinstance(padding, tuple) and isinstance(stride, tuple)):
            return False
        sizes = zip(images.shape[2:], weight.shape[2:], stride, padding, strict=True)
        places = [(size + 2 * pad - window) // step + 1 for size, window, step, pad in sizes]
        return min(places) > 0 and math.prod(places) <= self.PLACES


@contextmanager
def computing_in(precision: torch.dtype, model: nn.Module) -> Iterator[None]:
    """Run what follows in mixed precision, with the model's outputs, and so every loss, in float32.

    Outputs may be a tensor, or tensors in tuples, lists and dictionaries.
    """
    if precision is torch.float32:
        yield
        return
    where = next(model.parameters()).device.type
    with modules.hooked([(model, _outputs_in_float32)]), torch.autocast(where, precision), _SmallMapsAsProducts():
        yield


def _outputs_in_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    def cast(part: Any) -> Any:
        return part.float() if isinstance(part, Tensor) and part.is_floating_point() else part

    return tree_map(cast, output)
