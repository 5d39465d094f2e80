"""Sessions of ONNX Runtime that compare fairly."""

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from helpers.core import checks, system

if TYPE_CHECKING:
    import onnxruntime
    from torch import nn


class DeployError(RuntimeError):
    """An exported model whose answers are not those of the model it came from."""


def first_line(error: BaseException) -> str:
    """Return what an exporter's error says, without the colours of a terminal and all that it adds."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".;:")[:300]


def operator_times(path: Path, inputs: np.ndarray, *, threads: int = 1, runs: int = 10) -> dict[str, float]:
    """Return the milliseconds of a run by kind of operator, the most expensive first, by ONNX Runtime's profiler.

    They are means over `runs` runs, after two that do not count. Kinds are those of the optimized graph: two operators
    that the runtime joined are one, as "QLinearConv". Raises what `session` does, ValueError unless `runs` is a whole
    number of at least 1.
    """
    checks.positive("runs", runs)
    session(path, threads=checks.positive("threads", threads))
    with tempfile.TemporaryDirectory() as folder:
        profiled = open_session(Path(path).read_bytes(), threads=threads, profile=Path(folder) / "profile")
        for _ in range(2 + runs):
            run(profiled, inputs)
        events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
    calls: dict[str, list[tuple[str, float]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            calls.setdefault(event["name"], []).append((event["args"]["op_name"], event["dur"] / 1e3))
    times: dict[str, float] = {}
    for durations in calls.values():
        kind = durations[0][0]
        times[kind] = times.get(kind, 0.0) + sum(ms for _, ms in durations[-runs:]) / runs
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def session(path: Path, *, threads: int = 1) -> "onnxruntime.InferenceSession":
    """Open an ONNX file in ONNX Runtime: on the CPU, with `threads` threads, one operator after another.

    Raises FileNotFoundError if there is no such file, ValueError if it is not an ONNX model.
    """
    checks.positive("threads", threads)
    content = Path(path).read_bytes()
    try:
        return open_session(content, threads=threads)
    except Exception as error:  # the classes that ONNX Runtime raises have no common base but Exception
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"path={str(path)!r} is not a model that ONNX Runtime can read ({reason})") from None


def open_session(
    content: bytes, *, threads: int, profile: Path | None = None, joined: bool = True
) -> "onnxruntime.InferenceSession":
    """Return a sequential session on the CPU, profiled under a prefix if given; raises ONNX Runtime's errors.

    Unless `joined`, each node of the file is computed by itself.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # By default idle threads go on spinning for a while and take the cores from whatever is timed next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # An x86 processor without VNNI adds products of unsigned and signed bytes in 16 bits, which clips large sums:
    # cifar_base lost 3 points. This takes an exact kernel, which elsewhere would be three times as slow for nothing.
    if not system.has_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")
    if not joined:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # errors are raised
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(session: "onnxruntime.InferenceSession", inputs: np.ndarray) -> np.ndarray:
    """Return the first output, usually logits (batch, classes), for a batch of inputs.

    Raises ValueError for inputs of a shape or type that the network does not take.
    """
    name = session.get_inputs()[0].name
    try:
        return session.run(None, {name: inputs})[0]
    except Exception as error:  # the classes that ONNX Runtime raises have no common base but Exception
        allowed = f"{session.get_inputs()[0].type} {session.get_inputs()[0].shape}"
        given = f"{getattr(inputs, 'dtype', type(inputs))} {getattr(inputs, 'shape', '')}"
        raise ValueError(f"inputs={given} cannot be computed ({first_line(error)}); allowed: {allowed}") from error


def as_module(session: "onnxruntime.InferenceSession") -> "nn.Module":
    """Return a module whose `forward` is `run` on tensors, so that a session is evaluated like any other network."""
    import torch
    from torch import Tensor, nn

    class InRuntime(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.from_numpy(run(session, inputs.contiguous().numpy()))

    return InRuntime()
