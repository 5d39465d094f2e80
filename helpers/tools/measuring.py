"""One tool, one network: converted, asked, timed; `-m helpers.tools.measuring`, in the environment of the tool."""

import importlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from helpers import checkpoints, data, measure, quantization, runtime, training
from helpers.core import paths
from helpers.data import Split
from helpers.runtime.sessions import first_line
from helpers.tools.conversion import Answers, Conversion, Network, byte_size

CALIBRATION = 256
FIRST = 256  # examples by which it is judged how long the others will take
PROBED = 1_000  # examples that a probe (train mode, a channel of zeros) is asked
BATCH = 64
PATIENCE = 30  # seconds for the accuracy of one variant: a slow one is asked fewer examples, and their number is said
SLOWEST = 1  # seconds of one call that is still timed
LARGE = 0.1  # seconds of one call that finds no cache as anybody left it
ROUNDS = 30
WAYS = {  # batch, threads, calls in a sample: one call finds the caches as another runtime left them
    "batch 1, two threads, cold": (1, 2, 1),
    "batch 1, two threads, warm": (1, 2, 10),
    "batch 1, one thread, cold": (1, 1, 1),
    "batch 64, two threads": (BATCH, 2, 1),
}
KEPT = ("median_ms", "ratio", "interval", "null_interval", "verdict", "note")  # of a verdict
INT8, FLOAT = "ONNX Runtime int8", "ONNX Runtime float32"


Opener = Callable[..., Answers]


def measured(tool: str, name: str, folder: Path, report: Callable[[dict[str, Any]], None]) -> None:
    """Convert, ask and time a network with a tool, and `report` all that is known after each step.

    What a variant fails with is part of the record.
    """
    found: dict[str, Any] = {"variants": {}}
    network, dataset = _network(name, folder)
    expected = training.predict(network.model, dataset.test.inputs).numpy()
    found["dense"] = {"accuracy": training.evaluate(network.model, dataset.test).accuracy, "count": len(dataset.test)}
    found["float32_bytes"] = 4 * measure.count_parameters(network.model)
    openers, variants = baselines(network, folder), importlib.import_module(f"helpers.tools.{tool}").VARIANTS
    for variant, (convert, load) in variants.items():
        try:
            row, opener = _converted(network, convert, load, folder / variant)
            openers[variant] = opener
            report(found | {"running": variant})
            row |= asked(opener(threads=2, batch=BATCH), dataset.test, expected)
        except Exception as error:  # of any class: it is the tool's own
            row = {"failed": said(error)}
            openers.pop(variant, None)
        found["variants"][variant] = row
        report(found)
    found["latency"] = timed(openers, dataset.test.inputs)
    report(found)
    for variant, (convert, load) in variants.items():
        if name == "cifar_base" and found["variants"][variant].get("count", 0) >= PROBED:
            found["variants"][variant]["probes"] = _probed(network, convert, load, folder, variant, dataset.test)
            report(found)


def said(error: BaseException) -> str:
    """Return the class of an error and the first line of what it says, without this machine's paths."""
    return f"{type(error).__name__}: {first_line(error)}".replace(str(paths.ROOT), "…")


def _network(name: str, folder: Path) -> tuple[Network, Any]:
    model, dataset = checkpoints.load(name), _dataset(name)
    calibration = dataset.validation.take(CALIBRATION)
    graph = runtime.export_onnx(model, calibration.inputs[:2], folder / "float32.onnx")
    return Network(name, model, calibration, graph), dataset


def _dataset(name: str) -> Any:
    if name.startswith("imdb"):
        from helpers.data import text

        return text.imdb()
    return {"lenet5": data.mnist, "resnet18": data.cifar10_without_cat_and_dog}.get(name, data.cifar10)()


def baselines(network: Network, folder: Path) -> dict[str, Opener]:
    """Return what opens the network in ONNX Runtime: in integers where that can be (it comes first), and in float32."""
    opened: dict[str, Opener] = {}
    try:
        folded = quantization.fold_batchnorm(network.model, network.calibration.inputs[:2])
        plain = runtime.export_onnx(folded, network.calibration.inputs[:2], folder / "folded.onnx")
        opened[INT8] = partial(
            _in_onnxruntime, runtime.quantize_static(plain, network.calibration, folder / "int8.onnx")
        )
    except (ValueError, runtime.DeployError):
        pass  # recurrent layers have no integers there
    opened[FLOAT] = partial(_in_onnxruntime, network.graph)
    return opened


def _in_onnxruntime(file: Path, *, threads: int, batch: int) -> Answers:
    return partial(runtime.run, runtime.session(file, threads=threads))


def _converted(network: Network, convert: Any, load: Any, folder: Path) -> tuple[dict[str, Any], Opener]:
    """Convert a copy of the network; return the row, and what opens the result."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    made: Conversion = convert(_copied(network), folder)
    row = {"seconds": time.monotonic() - began, "bytes": byte_size(made.file), "facts": dict(made.facts)}
    if made.answers is None:
        row["file"] = str(made.file.relative_to(folder.parent))
        return row, partial(load, made.file)
    return row | {"in memory only": True}, partial(_fixed, made.answers)


def _fixed(answers: Answers, *, threads: int, batch: int) -> Answers:
    return answers


def _copied(network: Network, model: nn.Module | None = None) -> Network:
    return Network(network.name, deepcopy(model or network.model), network.calibration, network.graph)


def asked(answers: Answers, test: Split[Tensor, Tensor], expected: np.ndarray) -> dict[str, Any]:
    """Return the error of the logits, relative to the largest, and the accuracy on as many examples as time allows.

    `lost` is in points, against the dense network on the same examples.
    """
    began = time.monotonic()
    first = in_batches(answers, test.inputs[:FIRST])
    fitting = int(PATIENCE * FIRST / (time.monotonic() - began))
    count = len(test) if fitting >= len(test) else PROBED if fitting >= PROBED else FIRST
    rest = [in_batches(answers, test.inputs[FIRST:count])] if count > FIRST else []
    logits = np.concatenate([first, *rest])[:count]
    wanted, labels = expected[:count], test.labels[:count].numpy()
    found, dense = (float((each.argmax(1) == labels).mean()) for each in (logits, wanted))
    return {
        "logits_error": float(np.abs(logits - wanted).max() / np.abs(wanted).max()),
        "same_answer": float((logits.argmax(1) == wanted.argmax(1)).mean()),
        "accuracy": found,
        "lost": 100 * (dense - found),
        "count": count,
    }


def in_batches(answers: Answers, inputs: Tensor) -> np.ndarray:
    """Ask for BATCH examples at a time, the last ones filled up with zeros: some files take no other number."""
    data, parts = inputs.numpy(), []
    for start in range(0, len(data), BATCH):
        part = data[start : start + BATCH]
        filled = np.concatenate([part, np.zeros_like(part, shape=(BATCH - len(part), *part.shape[1:]))])
        parts.append(np.array(answers(filled), dtype=np.float32)[: len(part)])
    return np.concatenate(parts)


def timed(openers: dict[str, Opener], inputs: Tensor) -> dict[str, Any]:
    """Time all variants side by side in each of the `WAYS`, against the first; return the verdicts."""
    verdicts: dict[str, Any] = {}
    for way, (batch, threads, calls) in WAYS.items():
        torch.set_num_threads(threads)
        few, longest = np.ascontiguousarray(inputs[:batch].numpy()), 0.0
        functions, slow = {}, {}
        for variant, opener in openers.items():
            try:
                function = partial(opener(threads=threads, batch=batch), few)
                function()
                seconds = _seconds(function)
            except Exception as error:  # of any class: it is the tool's own
                slow[variant] = said(error)
                continue
            if seconds < SLOWEST:
                functions[variant], longest = function, max(longest, seconds)
            else:
                slow[variant] = f"one call takes {seconds:.1f} s"
        if calls > 1 and longest > LARGE:
            continue
        control = partial(next(iter(openers.values()))(threads=threads, batch=batch), few)
        traces = measure.time_interleaved(functions, rounds=ROUNDS, threads=threads, inner=calls, control=control)
        rows = measure.latency_records(measure.compare(traces), runtime="", batch=batch)
        verdicts[way] = {
            str(row.pop("variant")): {k: v for k, v in row.items() if k not in ("runtime", "batch")} for row in rows
        }
        verdicts[way] |= {variant: {"not timed": why} for variant, why in slow.items()}
    return verdicts


def _seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _probed(
    network: Network, convert: Any, load: Any, folder: Path, variant: str, test: Split[Tensor, Tensor]
) -> dict[str, Any]:
    """Return what becomes of a network left in training mode, of one with a channel of zeros, and of a second time."""
    few, zeros = test.take(PROBED), without_channel(network.model)

    def accuracy(model: nn.Module) -> float | str:
        try:
            torch.manual_seed(0)
            _, opener = _converted(_copied(network, model), convert, load, folder / "probe")
            logits = in_batches(opener(threads=2, batch=BATCH), few.inputs)
        except Exception as error:  # of any class: it is the tool's own
            return said(error)
        return float((logits.argmax(1) == few.labels.numpy()).mean()) if np.isfinite(logits).all() else "not finite"

    again = accuracy(network.model)
    same = _content(folder / "probe") == _content(folder / variant)
    return {
        "as it is": again,
        "converted again": "identical" if same else "other bytes",
        "in training mode": accuracy(deepcopy(network.model).train()),
        "a channel of zeros": accuracy(zeros),
        "dense, a channel of zeros": float(training.evaluate(zeros, few).accuracy),
    }


def without_channel(model: nn.Module) -> nn.Module:
    """Return a copy whose first convolution puts out nothing in its first channel: weights and BatchNorm are zero."""
    new = deepcopy(model)
    with torch.no_grad():
        first: Any = new.stem
        for tensor in (first.conv.weight, first.bn.weight, first.bn.bias):
            tensor[0] = 0
    return new


def _content(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file()}


def main(tool: str, name: str, folder: str) -> None:
    """Measure, and leave what is known in FOLDER/found.json."""
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    training.seed_everything(0)
    torch.set_num_threads(2)

    def report(found: dict[str, Any]) -> None:
        paths.write_atomically(where / "found.json", json.dumps(found, default=str).encode())

    measured(tool, name, where, report)


if __name__ == "__main__":
    main(*sys.argv[1:])
