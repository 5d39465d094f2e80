"""Bad arguments, one at a time: `python tests/bad_arguments.py` calls the helpers with hundreds of them.

Each call below is valid. One argument after the other is replaced by values of its kind that are out of range, empty,
not finite, of another shape or unknown. What comes back must be an answer (the value is allowed after all) or an error
that `helpers` raises itself and that names the argument. `tests/test_bad_arguments.py` asserts it.
"""

import math
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

if __name__ == "__main__":  # not this folder: it has rooms named as modules of Python are
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import helpers
from helpers import (
    checkpoints,
    data,
    distillation,
    evidence,
    files,
    measure,
    nets,
    pruning,
    quantization,
    statistics,
    training,
)
from helpers.core import vocabulary
from helpers.data.text import fields

HELPERS = Path(helpers.__file__).parent
FOLDER = Path(tempfile.gettempdir())
NUMBERS = (math.nan, math.inf, -math.inf, -1, 0, 1.5, True, None, "3", [])
ENDLESS = ("epochs", "samples", "iterations", "rounds", "warmup", "inner", "views")  # many are allowed, and take long


class Call(NamedTuple):
    """A function of the helpers and arguments that it takes; `fixed` are those left as they are."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    fixed: tuple[str, ...] = ()


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 3)).eval()


IMAGES = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
SPLIT = data.Split(IMAGES, torch.arange(8) % 3)
NET = net()
MASKS = pruning.global_masks(NET, 0.5)
GRID = quantization.find_grid(IMAGES, 4)
LOGITS, LABELS = torch.randn(8, 3), torch.arange(8) % 3
TRACES = {name: np.full(25, 1e-3) + np.arange(25) * 1e-6 for name in ("a", "b", "a (A/A)")}


def calls() -> Iterator[Call]:
    """Yield valid calls of the public functions that compute something from their arguments."""
    model, split, example = {"model": NET}, {"split": SPLIT}, {"example": IMAGES}
    yield Call(measure.count_macs, model | example)
    yield Call(measure.layer_table, model | example)
    yield Call(measure.compare, {"timings": TRACES})
    timed = {"variants": {"a": lambda: None}, "rounds": 2, "warmup": 1, "threads": 1, "inner": 1}
    yield Call(measure.time_interleaved, timed)
    yield Call(pruning.sparsity, model)
    yield Call(pruning.keep_largest, {"scores": torch.rand(9), "amount": 0.5})
    yield Call(pruning.layer_masks, model | {"amount": 0.5, "method": "l1", "seed": 0})
    yield Call(pruning.global_masks, model | {"amount": 0.5, "method": "l1", "seed": 0})
    yield Call(pruning.global_masks, model | {"amount": 0.5, "scores": pruning.l1_scores(NET)})
    products = {"4": torch.eye(8 * 16), "6": torch.eye(16)}
    yield Call(pruning.wanda_scores, model | {"products": products})
    yield Call(pruning.row_masks, {"scores": {"4": torch.rand(6, 8)}, "amount": 0.5})
    yield Call(pruning.two_of_four, {"scores": {"4": torch.rand(6, 8)}})
    encoder = {"model": nets.Transformer(20, dimensions=4, heads=2, hidden=4, layers=1)}
    texts = {"split": data.Split(torch.arange(2, 10).view(2, 4), torch.arange(2))}
    yield Call(pruning.head_scores, encoder | texts | {"batch_size": 4}, ("split",))
    yield Call(pruning.remove_heads, encoder | {"heads": {"layers.0.attention": [1]}})
    yield Call(pruning.neuron_masks, model | {"layer": "4", "next_layer": "6", "amount": 0.5, "norm": 1})
    yield Call(pruning.mask, model | {"masks": MASKS})
    yield Call(pruning.remove_neurons, model | {"layer": "4", "next_layer": "6"})
    bag = nets.TextBag(20, dimensions=6, hidden=4)
    yield Call(pruning.remove_words, {"model": bag, "keep": torch.arange(20) < 12, "counts": torch.arange(20)})
    yield Call(pruning.factor_embedding, {"model": bag, "reader": "fc1", "rank": 3})
    yield Call(pruning.geometric_sparsity, {"progress": 0.5, "final": 0.9})
    yield Call(pruning.geometric_amounts, {"final": 0.9, "rounds": 3})
    gradual = {"train": SPLIT, "amount": 0.5, "epochs": 1, "lr": 0.01, "begin": 0.1, "end": 0.5, "every": 1}
    yield Call(pruning.prune_gradually, model | gradual | {"batch_size": 4, "progress": False})
    keep = {"4": torch.arange(16) < 8}
    yield Call(pruning.groups, model | example)
    yield Call(pruning.remove_filters, model | {"keep": keep} | example)
    yield Call(pruning.zero_filters, model | {"keep": keep} | example)
    scores = {"4": torch.rand(16), "0": torch.rand(8)}
    chosen = {"scores": scores, "macs_ratio": 1.2, "scope": "global", "round_to": 2, "at_least": 0.1}
    yield Call(pruning.choose_filters, model | chosen | example)
    yield Call(pruning.group_scores, {"scores": scores, "groups": pruning.groups(NET, IMAGES)}, ("groups",))
    block = nn.Sequential(nets.Residual(4))
    yield Call(pruning.remove_block, {"model": block, "name": "0"}, ("model",))
    yield Call(pruning.refresh_batchnorm, model | {"inputs": IMAGES, "batch_size": 4})
    yield Call(pruning.filter_norms, model | {"norm": 1, "names": ["4"]})
    yield Call(pruning.random_filter_scores, model | {"seed": 0, "names": ["4"]})
    yield Call(pruning.taylor_scores, model | split | {"names": ["4"], "batch_size": 4})
    yield Call(pruning.gradients, model | split | {"names": ["4"], "batch_size": 4})
    yield Call(pruning.hessian_diagonal, model | split | {"samples": 2, "seed": 0, "names": ["6"]})
    eigen = {"count": 1, "iterations": 3, "tol": 1e-2, "seed": 0, "names": ["6"]}
    yield Call(pruning.largest_eigenvalues, model | split | eigen)
    yield Call(pruning.removal_damage, model | split | {"layer": "4", "batch_size": 4})
    ranked = {"scores": {"4": torch.rand(12)}, "damage": {"4": torch.rand(12)}, "resamples": 20, "seed": 0}
    yield Call(statistics.rank_correlation, ranked)
    yield Call(quantization.code_range, {"bits": 4, "signed": True, "narrow": False})
    yield Call(quantization.affine_grid, {"lowest": torch.tensor(-1.0), "highest": torch.tensor(2.0), "bits": 4})
    yield Call(quantization.find_grid, {"values": IMAGES, "bits": 4, "method": "percentile", "percentile": 99.0})
    yield Call(quantization.fake_quantize, {"values": IMAGES, "grid": GRID}, ("grid",))
    yield Call(quantization.quantize, {"values": IMAGES, "grid": GRID}, ("grid",))
    yield Call(quantization.kmeans_table, {"values": IMAGES, "bits": 3, "iterations": 3})
    yield Call(quantization.powers_of_two, {"bits": 3})
    yield Call(quantization.fit_table, {"values": IMAGES, "levels": quantization.powers_of_two(3)})
    yield Call(quantization.share_weights, model | {"tables": {"4": torch.linspace(-1, 1, 4)}})
    whole = {"weights": 4, "activations": 4, "calibration": SPLIT, "method": "mse"}
    yield Call(quantization.quantize_model, model | whole)
    yield Call(quantization.quantize_model, model | {"weights": {"4": 4}})
    grouped = {"weight": torch.randn(4, 8), "bits": 4, "size": 4}
    yield Call(quantization.quantize_groups, grouped)
    yield Call(quantization.gptq, grouped | {"products": torch.eye(8), "damping": 0.1})
    yield Call(quantization.input_products, model | {"inputs": IMAGES, "layers": ["4"], "batch_size": 4})
    yield Call(quantization.quantize_linears, model | {"bits": 4, "size": 8, "products": products, "layers": ["4"]})
    yield Call(quantization.bits_by_layer, model | {"bits": 4, "ends": 8})
    yield Call(
        quantization.with_input_grids,
        model | {"grids": {"4": quantization.find_grid(IMAGES, 8, symmetric=False, signed=False)}},
    )
    yield Call(quantization.fold_batchnorm, model | example)
    path = {"path": FOLDER / "bad_arguments.pack"}
    arrays = {"tensors": {"a": np.arange(6.0).reshape(2, 3), "b": np.zeros(3)}}
    for function in (files.write_dense, files.write_sparse, files.write_quantized):
        yield Call(function, arrays | path | {"words": ["<unk>", "<pad>", "good"]}, ("path",))
    yield Call(files.write_coded, arrays | path, ("path",))
    files.write_sparse(NET, FOLDER / "bad_arguments.net")
    yield Call(files.load_into, model | {"path": FOLDER / "bad_arguments.net"}, ("path",))
    yield Call(files.verify, model | {"path": FOLDER / "bad_arguments.net", "inputs": IMAGES}, ("path",))
    yield Call(checkpoints.load, {"name": "lenet5"})
    fitted = {"train": SPLIT, "epochs": 1, "lr": 0.01, "optimizer": "sgd", "batch_size": 4, "warmup": 0.1}
    more = {"precision": "float32", "validation": SPLIT, "seed": 0, "progress": False, "lr_factors": {"4": 0.5}}
    yield Call(training.fit, model | fitted | more, ("progress",))
    yield Call(training.predict, model | {"inputs": IMAGES, "batch_size": 4})
    yield Call(training.evaluate, model | split | {"batch_size": 4})
    yield Call(training.random_shift, {"images": IMAGES, "generator": torch.Generator(), "pixels": 1}, ("generator",))
    soft = {"student": LOGITS, "teacher": LOGITS.flip(0), "temperature": 2.0}
    yield Call(distillation.soft_target_loss, soft)
    yield Call(distillation.mixed_loss, soft | {"labels": LABELS, "share": 0.5})
    yield Call(distillation.taught_by, {"teacher": NET, "temperature": 2.0, "share": 0.5})
    view = distillation.fixed_views(IMAGES, views=2)
    yield Call(distillation.fixed_views, {"inputs": IMAGES, "views": 2, "pixels": 1, "seed": 0})
    yield Call(distillation.ask, {"teacher": NET, "view": view, "examples": 4, "views": 2}, ("view",))
    yield Call(distillation.taught_from, {"answers": torch.randn(8, 2, 3), "view": view}, ("view",))
    yield Call(distillation.attention_map, {"features": torch.randn(2, 3, 4, 4)})
    maps = {"student": torch.rand(2, 16), "teacher": torch.rand(2, 16)}
    yield Call(distillation.attention_loss, maps)
    yield Call(distillation.with_features, model | {"inputs": IMAGES, "layers": ["4"]})
    yield Call(training.freeze, model | {"but": ["6"]})
    yield Call(
        training.features,
        {
            "model": nets.resnet18(classes=2).eval(),
            "split": data.Split(torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)),
            "batch_size": 2,
        },
    )
    yield Call(fields, {"max_tokens": 10, "bigrams": False}, ("bigrams",))
    yield Call(vocabulary.encode, {"texts": [["good"]], "words": ["<unk>", "<pad>", "good"]})
    yield Call(vocabulary.lines, {"words": ["<unk>", "<pad>", "good"]})
    yield Call(statistics.mean_std, {"values": [0.9, 0.8, 0.85]})
    yield Call(statistics.paired_interval, {"a": [0.9, 0.8, 0.85], "b": [0.8, 0.8, 0.8], "confidence": 0.95})
    yield Call(evidence.expected_seconds, {"notebook": "02_prune_weights", "profile": "quick"})
    yield Call(evidence.load, {"notebook": "02_prune_weights", "profile": "quick", "seed": 0})
    yield Call(
        evidence.start, {"notebook": "02_prune_weights", "profile": "smoke", "seed": 0, "save": False}, ("save",)
    )
    run = evidence.start("02_prune_weights", profile="smoke", seed=0, save=False)
    yield Call(run.claim, {"id": "x", "text": "y", "value": 0.5, "at_most": 1.0})
    yield Call(run.claim, {"id": "x2", "text": "y", "value": 0.5, "at_least": 0.1})
    yield Call(statistics.holm, {"p_values": [0.01, 0.2]})
    yield Call(statistics.needed, {"confidence": 0.99})
    yield Call(statistics.median_interval, {"differences": [0.1 * n for n in range(20)], "confidence": 0.99})
    yield Call(statistics.cluster_interval, {"values": [0.9, 0.8, 0.7], "clusters": [1, 1, 2], "confidence": 0.95})
    yield Call(statistics.image_interval, {"accuracy": 0.9, "images": 100})
    yield Call(statistics.seed_interval, {"accuracies": [0.9, 0.8, 0.85]})
    yield Call(data.only_classes, {"dataset": data.Dataset(SPLIT, SPLIT, SPLIT), "classes": [0, 1]}, ("dataset",))
    yield Call(nets.resnet18, {"classes": 4})
    yield Call(checkpoints.pretrained_resnet18, {"source": "course"})


def replacements(value: Any) -> Iterator[Any]:
    """Yield values of the kind of `value` that are, mostly, wrong in its place."""
    if isinstance(value, bool | int | float):
        yield from NUMBERS
    elif isinstance(value, str):
        yield from ("", "no-such", None, 3)
    elif isinstance(value, Tensor):
        yield value[:0] if value.dim() else value.expand(0)
        yield value[None]
        yield value.to(torch.complex64)
        if value.is_floating_point():
            yield torch.full_like(value, math.nan)
            yield value[..., :1] if value.dim() else value
    elif isinstance(value, data.Split):
        yield data.Split(value.inputs[:0], value.labels[:0])
        yield data.Split(torch.full_like(value.inputs, math.nan), value.labels)
        yield data.Split(value.inputs, value.labels + 1_000)
        yield data.Split(value.inputs[:, :, :1], value.labels)
        yield data.Split(value.inputs, value.labels, is_test=True)
    elif isinstance(value, nn.Module):
        yield nn.Sequential()
        yield nn.ReLU()
        yield nn.Sequential(nn.Linear(2, 2))
    elif isinstance(value, Mapping):
        yield {}
        yield {"no-such": next(iter(value.values()))}
        for key, entry in list(value.items())[:1]:
            yield from ({**value, key: wrong} for wrong in _entries(entry))
    elif isinstance(value, list):
        yield []
        yield from ([*value[:-1], wrong] for wrong in _entries(value[-1]))


def _entries(entry: Any) -> Iterator[Any]:
    if isinstance(entry, np.ndarray):
        yield from (entry[:0], entry * np.nan, entry.astype(object))
    elif not callable(entry) and not isinstance(entry, tuple):
        yield from replacements(entry)


def cases() -> Iterator[tuple[Call, str, Any]]:
    """Yield every bad argument: the call, the argument's name and the value."""
    for call in calls():
        for name, value in call.arguments.items():
            if name in call.fixed:
                continue
            for wrong in replacements(value):
                if not (name in ENDLESS and isinstance(wrong, int | float) and wrong == math.inf):
                    yield call, name, wrong


def outcome(call: Call, name: str, wrong: Any) -> tuple[str, str]:
    """Return "answers", "refused", "unnamed" (the message lacks the argument's name) or "raw", and what was said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call.function(**(call.arguments | {name: wrong}))
        except Exception as error:
            if not raised_by_helpers(error):
                return "raw", f"{type(error).__name__}: {error}"
            return ("refused" if name in str(error) else "unnamed"), str(error)
    return "answers", ""


def raised_by_helpers(error: Exception) -> bool:
    """Return whether a `raise` of the helpers raised it, not an operation of a library."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return HELPERS in Path(frame.filename).parents and (frame.line or "").startswith("raise ")


def shown(value: Any) -> str:
    text = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)
    return " ".join(text.split())[:60]


def main() -> int:
    """Print every error that is not the helpers' own, and the counts; return 1 if there is one."""
    counts: Counter[str] = Counter()
    for call, name, wrong in cases():
        kind, said = outcome(call, name, wrong)
        counts[kind] += 1
        if kind in ("raw", "unnamed"):
            where = f"{call.function.__module__.removeprefix('helpers.')}.{call.function.__name__}"
            print(f"{kind:8} {where}({name}={shown(wrong)}): {' '.join(said.split())[:150]}", flush=True)
    print(f"{sum(counts.values())} bad arguments: {dict(counts)}")
    return int(counts["raw"] > 0)


if __name__ == "__main__":
    sys.exit(main())
