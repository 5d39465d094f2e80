"""What a tool is given, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds, and a program that opens a finished file needs none
    import numpy as np
    from torch import Tensor, nn

    from helpers.data import Split

Answers = Callable[["np.ndarray"], "np.ndarray"]


@dataclass(frozen=True)
class Network:
    """A trained network of the course, and the examples that a tool may look at.

    `model` is in evaluation mode, in float32, its BatchNorm not folded; a tool that changes it works on a copy.
    `calibration` are 256 validation examples (photographs standardized, texts as token numbers); `graph` is the network
    as ONNX, written by `runtime.export_onnx`.
    """

    name: str
    model: nn.Module
    calibration: Split[Tensor, Tensor]
    graph: Path


@dataclass(frozen=True)
class Conversion:
    """What a tool made: the file (or folder of files) that one would ship, and what can be read off it.

    `facts` are short answers to the questions of `FACTS`, each read from the file or the object, never typed.
    `answers` is given only where the file alone cannot be opened to answer: then the object in memory does.
    """

    file: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    answers: Answers | None = None


FACTS = {
    "weights": "how many arrays of weights are stored as integers, and in which type",
    "float layers": "the layers whose weights, or whose arithmetic, stay in floating point",
    "per channel": "whether a convolution's weight has one scale for each output channel",
    "activations": "type of the activations, or 'float32' where none are quantized",
    "batchnorm": "'folded' or 'kept'",
    "batch": "'any', or the one that the file takes",
}


def byte_size(file: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(each.stat().st_size for each in (file.rglob("*") if file.is_dir() else [file]) if each.is_file())
