"""What a model costs: parameters, multiply-accumulates, bytes and milliseconds, each against a control.

A latency is never reported alone. `time_interleaved` runs all variants side by side and enters the first one
twice; `compare` calls a difference real only if it is larger than what separates those two timings of one and
the same thing.
"""

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from helpers import checks

__all__ = [
    "Verdict",
    "compare",
    "count_macs",
    "count_nonzero",
    "count_parameters",
    "count_weights",
    "latency_records",
    "layer_table",
    "peak_memory_mb",
    "time_interleaved",
    "verdict_table",
]

CONTROL = " (A/A)"
MINIMUM_ROUNDS = 20
SAMPLE_SECONDS = 1e-3
SHORTEST_SECONDS = 1e-7  # what the clock itself costs
RESAMPLES = 1000
TAIL = 0.005  # on each side: a 99 % interval


# ---------------------------------------------------------------- parameters


def count_parameters(model: nn.Module) -> int:
    """Return the number of trained values, frozen ones included; a tensor used twice counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_weights(model: nn.Module) -> int:
    """Return the number of weights: no biases, no normalization (only tensors of two and more dimensions)."""
    return sum(weight.numel() for weight in _weights(model))


def count_nonzero(model: nn.Module) -> int:
    """Return the number of weights (see `count_weights`) that are not zero in the forward pass."""
    return sum(int(torch.count_nonzero(weight)) for weight in _weights(model))


def _weights(model: nn.Module) -> list[Tensor]:
    tensors = [tensor for _, module in _layers(model) for tensor in _tensors(module).values()]
    unique = {id(tensor): tensor for tensor in tensors}.values()
    return [tensor for tensor in unique if tensor.dim() > 1]


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield all modules that own parameters, with their names; a masked layer is one layer, not two."""
    for name, module in model.named_modules():
        inside_parametrization = "parametrizations" in name.split(".")
        if not inside_parametrization and _tensors(module):
            yield name, module


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's own parameters as its forward pass sees them, masked if they are masked."""
    names = [name for name, _ in module.named_parameters(recurse=False)]
    names = [name.removesuffix("_orig") if f"{name[:-5]}_mask" in module._buffers else name for name in names]
    if parametrize.is_parametrized(module):
        names += list(module.parametrizations)  # type: ignore[arg-type]
    return {name: getattr(module, name) for name in names}


# ---------------------------------------------------------------- operations


def count_macs(model: nn.Module, example: Shaped[Tensor, "batch ..."]) -> int:
    """Return the multiply-accumulates of one forward pass for one example; `example` is a batch of any size.

    Convolutions and matrix products only, as `torch.utils.flop_counter` counts them (it counts a
    multiply-accumulate as two operations). Zeros are counted: a dense kernel multiplies by them like by any
    other number.
    """
    return _forward_costs(model, example)[0][""]


def layer_table(model: nn.Module, example: Shaped[Tensor, "batch ..."]) -> pd.DataFrame:
    """Return one row per layer with parameters, in the order of the model's definition.

    Columns: layer, kind, output (shape for one example), weights, biases (every one-dimensional parameter:
    biases, scale and shift of a normalization), parameters, macs (for one example), bytes (4 per parameter,
    fp32), share_parameters and share_macs (fractions of the column's sum). Raises ValueError if there is none.
    """
    macs, outputs = _forward_costs(model, example)
    rows = []
    for name, module in _layers(model):
        sizes = [(tensor.dim(), tensor.numel()) for tensor in _tensors(module).values()]
        weights = sum(size for dimensions, size in sizes if dimensions > 1)
        biases = sum(size for dimensions, size in sizes if dimensions <= 1)
        row = {
            "layer": name,
            "kind": _kind(module),
            "output": outputs.get(name),
            "weights": weights,
            "biases": biases,
        }
        rows.append(row | {"parameters": weights + biases, "macs": macs[name], "bytes": 4 * (weights + biases)})
    table = pd.DataFrame(checks.not_empty("layers with parameters", rows))
    for column in ("parameters", "macs"):
        table[f"share_{column}"] = table[column] / max(1, table[column].sum())
    return table


def _kind(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("Parametrized")


def _forward_costs(model: nn.Module, example: Tensor) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Return MACs and output shape for one example, by module name ("" is the whole model)."""
    batch = len(checks.not_empty("example", example))
    outputs: dict[str, tuple[int, ...]] = {}

    def remember(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            outputs[name] = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()

        return hook

    hooks = [module.register_forward_hook(remember(name)) for name, module in model.named_modules()]
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _lstm_flops})
    try:
        with _evaluating(model), torch.no_grad(), counter:
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    root = type(model).__name__
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    macs = {name: flops.get(f"{root}.{name}", 0) // (2 * batch) for name, _ in model.named_modules()}
    return macs | {"": flops.get("Global", 0) // (2 * batch)}, outputs


def _lstm_flops(
    steps: tuple[int, ...], from_input: tuple[int, ...], from_state: tuple[int, ...], *_: object, **__: object
) -> int:
    """Count oneDNN's LSTM layer, which the counter does not know: two matrices, each step, each example."""
    return 2 * steps[0] * steps[1] * (math.prod(from_input) + math.prod(from_state))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, then back to the mode that each module had: a frozen layer's may differ."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


# ---------------------------------------------------------------- time


class Verdict(NamedTuple):
    """How one variant's time compares with the baseline's.

    `ratio` is median(baseline) / median(this), drift divided out (see `compare`): above 1 is faster. `interval` is
    its 99 % bootstrap interval, `null_interval` what two timings of the baseline itself leave possible, and
    `verdict` one of "faster", "slower" and "no measurable difference".
    """

    name: str
    median_ms: float
    ratio: float
    interval: tuple[float, float]
    null_interval: tuple[float, float]
    verdict: str


def time_interleaved(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 60,
    warmup: int = 5,
    threads: int | None = 1,
    inner: int | None = None,
) -> dict[str, np.ndarray]:
    """Time all variants side by side; return seconds per call, one entry per round, by name.

    Every round times each variant once, in an order drawn anew, so that a machine that slows down slows all
    of them and none always runs second. The first variant is entered twice; its second entry, `"<first>
    (A/A)"`, is the control that `compare` needs. A sample is the mean of `inner` calls, by default as many as
    fill a millisecond.

    `threads` sets PyTorch's threads meanwhile (None leaves them); other runtimes have their own setting.
    """
    checks.not_empty("variants", variants)
    checks.positive("rounds", rounds)
    checks.positive("warmup", warmup)
    first = next(iter(variants))
    if first + CONTROL in variants:
        raise ValueError(f"variants has {first + CONTROL!r}; allowed: any other name, that is the control's")
    functions = {**variants, first + CONTROL: variants[first]}
    order = np.random.default_rng(0)
    with _quiet_process(threads):
        calls = {name: _warm_up(function, warmup, inner) for name, function in variants.items()}
        calls[first + CONTROL] = calls[first]
        seconds = {name: np.empty(rounds) for name in functions}
        for index in range(rounds):
            for name in order.permutation(list(functions)):
                seconds[name][index] = _sample(functions[name], calls[name])
    return seconds


def _warm_up(function: Callable[[], object], warmup: int, inner: int | None) -> int:
    """Call `function` `warmup` times; return how many calls make a sample, judged by the fastest of them."""
    fastest = min(_sample(function, 1) for _ in range(warmup))
    if inner is not None:
        return checks.positive("inner", inner)
    return math.ceil(SAMPLE_SECONDS / max(fastest, SHORTEST_SECONDS))


def _sample(function: Callable[[], object], calls: int) -> float:
    """Return the mean seconds of one call, with the work that an accelerator has only been handed."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return (time.perf_counter() - start) / calls


@contextmanager
def _quiet_process(threads: int | None) -> Iterator[None]:
    """Switch garbage collection off and fix the number of PyTorch's threads, then restore both."""
    threads_before, collecting = torch.get_num_threads(), gc.isenabled()
    if threads is not None:
        torch.set_num_threads(checks.positive("threads", threads))
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        if collecting:
            gc.enable()


def compare(timings: Mapping[str, np.ndarray]) -> dict[str, Verdict]:
    """Compare every variant of `time_interleaved` with the first; return one `Verdict` per name.

    1. Drift. What slows a whole round (a busy machine, a lower clock) is divided out: the ratio is the median
       of the rounds' own ratios, and a variant's median time is the baseline's divided by it. So multiplying
       a round by any factor changes no ratio and no verdict, and an outlier spoils one round only.
    2. Interval. Rounds are drawn with replacement 1000 times; the 99 % interval holds the middle of the 1000
       ratios. Blocks of √rounds neighbours are drawn instead of single rounds, because neighbours resemble
       each other (circular block bootstrap, Politis and Romano 1992, "A circular block-resampling procedure
       for stationary data").
    3. Control. The null interval reaches as far from 1, in both directions, as the interval of the baseline
       against itself. The verdict is "faster" or "slower" only if a variant's interval lies wholly outside.

    Raises ValueError for a missing control, for traces of different lengths, with fewer than 20 rounds or
    with times that are not positive.
    """
    names, logs = _log_seconds(timings)
    control = names.index(names[0] + CONTROL)
    relative = logs[0] - logs
    ratios = np.exp(np.median(relative, axis=1))
    low, high = np.quantile(_bootstrap_medians(relative), [TAIL, 1 - TAIL], axis=1)
    noise = max(abs(low[control]), abs(high[control]))
    baseline_ms = 1e3 * math.exp(np.median(logs[0]))
    verdicts = {}
    for index, name in enumerate(names):
        verdicts[name] = Verdict(
            name=name,
            median_ms=float(baseline_ms / ratios[index]),
            ratio=float(ratios[index]),
            interval=(math.exp(low[index]), math.exp(high[index])),
            null_interval=(math.exp(-noise), math.exp(noise)),
            verdict=_outcome(low[index], high[index], noise),
        )
    return verdicts


def _outcome(low: float, high: float, noise: float) -> str:
    if low > noise:
        return "faster"
    return "slower" if high < -noise else "no measurable difference"


def _log_seconds(timings: Mapping[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Return names and log seconds, of shape (variants, rounds), checked."""
    names = list(checks.not_empty("timings", timings))
    if names[0] + CONTROL not in timings:
        raise ValueError(f"timings has no {names[0] + CONTROL!r}; allowed: what time_interleaved returns")
    traces = [np.asarray(timings[name], dtype=float) for name in names]
    shapes = {trace.shape for trace in traces}
    if len(shapes) != 1 or traces[0].ndim != 1 or traces[0].size < MINIMUM_ROUNDS:
        allowed = f"allowed: one length, at least {MINIMUM_ROUNDS} rounds"
        raise ValueError(f"timings has traces of shapes {sorted(shapes)}; {allowed}")
    seconds = np.stack(traces)
    if not np.all(np.isfinite(seconds) & (seconds > 0)):
        raise ValueError(f"timings has a time of {seconds.min()} s; allowed: finite times above 0")
    return names, np.log(seconds)


def _bootstrap_medians(values: np.ndarray) -> np.ndarray:
    """Return the medians of the resampled rows: (variants, rounds) → (variants, RESAMPLES).

    Sorting each resample would take ten times as long: sort the values once, then walk along them until half
    of the resample's draws are reached. Adding up is the slow part, so the counts are added as 64-bit words,
    several at once; they cannot spill over into each other, because none exceeds the number of rounds.
    """
    rounds = values.shape[1]
    draws = _block_draws(rounds)
    medians = np.empty((len(values), draws.shape[1]))
    for row, result in zip(values, medians, strict=True):
        order = np.argsort(row)
        ordered = row[order]
        drawn = np.cumsum(draws[order].view(np.uint64), axis=0).view(draws.dtype)
        lower = (drawn <= (rounds - 1) // 2).view(np.uint8).sum(axis=0, dtype=draws.dtype)
        upper = (drawn <= rounds // 2).view(np.uint8).sum(axis=0, dtype=draws.dtype)
        result[:] = (ordered[lower] + ordered[upper]) / 2
    return medians


@lru_cache(maxsize=8)
def _block_draws(rounds: int) -> np.ndarray:
    """Return how often each round is drawn into each resample: (rounds, RESAMPLES)."""
    length = math.isqrt(rounds)
    blocks = math.ceil(rounds / length)
    starts = np.random.default_rng(0).integers(rounds, size=(RESAMPLES, blocks, 1))
    indices = ((starts + np.arange(length)) % rounds).reshape(RESAMPLES, -1)[:, :rounds]
    counts = [np.bincount(drawn, minlength=rounds) for drawn in indices]
    return np.stack(counts, axis=1).astype(np.min_scalar_type(rounds))


def verdict_table(verdicts: Mapping[str, Verdict]) -> pd.DataFrame:
    """Return the verdicts as a table for the reader, rounded; the first row is the baseline."""
    rows = [
        {
            "variant": name,
            "median (ms)": f"{verdict.median_ms:.3g}",
            "ratio": f"{verdict.ratio:.2f}",
            "99 % interval": _interval_text(verdict.interval),
            "A/A interval": _interval_text(verdict.null_interval),
            "verdict": verdict.verdict,
        }
        for name, verdict in verdicts.items()
    ]
    table = pd.DataFrame(rows)
    table.loc[0, ["99 % interval", "verdict"]] = ["", "baseline"]
    table.loc[table["variant"] == f"{rows[0]['variant']}{CONTROL}", "verdict"] = "control"
    return table


def _interval_text(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.2f} – {interval[1]:.2f}"


def latency_records(verdicts: Mapping[str, Verdict], *, runtime: str, batch: int) -> list[dict[str, object]]:
    """Return the verdicts as entries for a model's `latency` in the results file, without the control."""
    checks.positive("batch", batch)
    return [
        {
            "variant": name,
            "runtime": runtime,
            "batch": batch,
            "median_ms": verdict.median_ms,
            "ratio": verdict.ratio,
            "interval": list(verdict.interval),
            "null_interval": list(verdict.null_interval),
            "verdict": verdict.verdict,
        }
        for name, verdict in verdicts.items()
        if not name.endswith(CONTROL)
    ]


# ---------------------------------------------------------------- memory


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in megabytes (10⁶ bytes)."""
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset / 1e6)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
