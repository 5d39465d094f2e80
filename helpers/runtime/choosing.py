"""Which file, in which runtime, answers soonest on this machine, and answers the same."""

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from helpers.core import checks
from helpers.core.paths import write_atomically
from helpers.runtime import openvino
from helpers.runtime.export import export_onnx
from helpers.runtime.integer_graphs import quantize_static
from helpers.runtime.sessions import DeployError, run, session

if TYPE_CHECKING:
    from torch import Tensor, nn

    from helpers.data import Split
    from helpers.measure import Verdict

Answers = Callable[[np.ndarray], np.ndarray]
EAGER = "PyTorch"
FEWEST = 100  # examples
CALIBRATING = 256  # examples at most
CHOICE = "fastest"  # the key in an ONNX file's metadata under which stands how it is to be opened


class Fastest(NamedTuple):
    """What `fastest` chose: the file, its name such as "int8, OpenVINO", and how it compares with eager PyTorch.

    `verdicts` holds all that were timed, `refused` the others, each with the reason: what is not installed, what cannot
    be converted, what answers otherwise.
    """

    file: Path
    name: str
    verdict: "Verdict"
    verdicts: "dict[str, Verdict]"
    refused: dict[str, str]


def fastest(
    model: "nn.Module",
    examples: "Split[Tensor, Tensor]",
    path: Path,
    *,
    batch: int = 1,
    threads: int = 1,
    agreement: float = 0.99,
    rounds: int = 60,
) -> Fastest:
    """Write `model` as the ONNX file that answers soonest here, in batches of `batch`, on `threads` threads.

    The candidates are files in float32 and in 8 bits (`quantize_static`, calibrated on the first half of `examples`),
    in ONNX Runtime and, where it is installed, OpenVINO. Each must give the model's own answer to at least the share
    `agreement` of the second half. Then all are timed side by side, with eager PyTorch as the baseline and its null
    control (`measure.time_interleaved`). In the order of `candidates`, a later one is chosen only if it is measurably
    faster than the choice so far. Eager PyTorch is no candidate: where the verdict says "slower", keep it.
    `open_network`, and so `predict`, opens the file as it was chosen.

    Raises ValueError for the test split, fewer examples than 100 or than twice `batch`, and an `agreement` that is not
    above 0 and at most 1; what `export_onnx` raises for a model that cannot be a graph; DeployError if no candidate
    gives the model's answers.
    """
    import torch

    from helpers import measure, training
    from helpers.core import modules

    _check(examples, batch, agreement)
    half = len(examples) // 2
    kept = examples.inputs[half:].cpu()
    eager, few = modules.copied(model).cpu().eval(), kept[:batch]
    with tempfile.TemporaryDirectory() as folder:
        files, refused = _files(eager, examples.take(min(half, CALIBRATING)), Path(folder))
        wanted = training.predict(eager, kept).argmax(1).numpy()
        calls = {}
        for name, answers in candidates(files, batch=batch, threads=threads, refused=refused).items():
            share = _agreeing(answers, kept.numpy(), wanted, batch)
            if share < agreement:
                refused[name] = f"gives the model's answer to {share:.2%}; allowed: at least {agreement:.2%}"
            else:
                calls[name] = partial(answers, few.numpy())
        if not calls:
            raise DeployError(f"no candidate answers as the model does: {refused}")
        with torch.inference_mode():
            timings = measure.time_interleaved(
                {EAGER: partial(eager, few), **calls},
                rounds=rounds,
                threads=threads,
                control=partial(modules.copied(eager), few),
            )
        name = _chosen(timings, list(calls))
        content = _labelled(files[_file_of(name)], name)
    write_atomically(Path(path), content)
    verdicts = measure.compare(timings)
    return Fastest(Path(path), name, verdicts[name], verdicts, refused)


def _check(examples: "Split[Tensor, Tensor]", batch: int, agreement: float) -> None:
    if examples.is_test:
        raise ValueError("examples is the test split: nothing is chosen by it; allowed: validation examples")
    least = max(FEWEST, 2 * checks.positive("batch", batch))
    if len(examples) < least:
        raise ValueError(f"examples has {len(examples)}; allowed: at least {least}")
    if not 0 < agreement <= 1:
        raise ValueError(f"agreement={agreement!r}; allowed: above 0, at most 1")


def _files(
    model: "nn.Module", examples: "Split[Tensor, Tensor]", folder: Path
) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the files by what their weights are, and why one of them could not be made."""
    from helpers import quantization

    few = examples.inputs[:2]
    files = {"float32": export_onnx(quantization.fold_batchnorm(model, few), few, folder / "float32.onnx")}
    try:
        files["int8"] = quantize_static(files["float32"], examples, folder / "int8.onnx")
    except (ValueError, DeployError) as error:
        return files, {"int8": str(error)}
    return files, {}


def candidates(files: Mapping[str, Path], *, batch: int, threads: int, refused: dict[str, str]) -> dict[str, Answers]:
    """Open each file in each runtime that is there; return what answers, the plainest first.

    What cannot be opened is added to `refused`, with the reason.
    """
    found: dict[str, Answers] = {}
    for kind, file in files.items():
        found[f"{kind}, ONNX Runtime"] = partial(run, session(file, threads=threads))
    if importlib.util.find_spec("openvino") is None:
        refused["OpenVINO"] = "is not installed"
        return found
    others = {f"{kind}, OpenVINO": (file, "float32") for kind, file in files.items()}
    if openvino.multiplies_bfloat16():
        others["bfloat16, OpenVINO"] = (files["float32"], "bfloat16")
    for name, (file, precision) in others.items():
        try:
            found[name] = openvino.opened(file, threads=threads, batch=batch, precision=precision)
        except ValueError as error:
            refused[name] = str(error)
    return found


def _agreeing(answers: Answers, inputs: np.ndarray, wanted: np.ndarray, batch: int) -> float:
    """Return the share of inputs, in whole batches, whose largest logit is the wanted one."""
    whole = len(inputs) // batch * batch
    found = np.concatenate([answers(inputs[start : start + batch]).argmax(1) for start in range(0, whole, batch)])
    return float((found == wanted[:whole]).mean())


def _chosen(timings: Mapping[str, np.ndarray], names: list[str]) -> str:
    """Return the first name that no later one is measurably faster than."""
    from helpers import measure

    best = names[0]
    for name in names[1:]:
        if measure.compare(timings, against=best)[name].verdict == "faster":
            best = name
    return best


def _file_of(name: str) -> str:
    return "int8" if name.startswith("int8") else "float32"


def _labelled(file: Path, name: str) -> bytes:
    """Return the file's content with the choice in its metadata."""
    import onnx

    proto = onnx.load(file)
    onnx.helper.set_model_props(proto, {CHOICE: name})
    return proto.SerializeToString()
