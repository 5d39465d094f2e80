"""What a model costs: parameters, multiply-accumulates, bytes and milliseconds, each against a control.

A latency is never reported alone. `time_interleaved` runs all variants side by side and enters the first one
twice; `compare` calls a difference real only if it is larger than what separates those two timings of one and
the same thing, and than what noise leaves open that may last for several rounds.
"""

import gc
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from helpers import checks, modules, statistics

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
CONFIDENCE = 0.99
ERRORS_PER_TABLE = 0.05
EVEN_ODDS = 0.5
LASTING = 1.645  # standard errors of an autocorrelation: independent noise shows as much in one of twenty traces
LASTED = "the noise lasted"
TOO_FEW = "too few rounds"
OUTCOMES = {1: "faster", -1: "slower", 0: "no measurable difference"}

aten = torch.ops.aten
RECURRENT = (aten.mkldnn_rnn_layer, aten._cudnn_rnn, aten.miopen_rnn)


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
    seen: set[int] = set()
    layers = _layers(modules.materialized(model))
    return [tensor for _, module in layers for tensor in _unseen(_effective(module), seen) if tensor.dim() > 1]


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield all modules with their names; a masked layer is one module, not two."""
    for name, module in model.named_modules():
        if "parametrizations" not in name.split("."):
            yield name, module


def _effective(module: nn.Module) -> dict[int, Tensor]:
    """Return the module's own parameters as its forward pass sees them, by the identity of what is trained."""
    own = {id(parameter): parameter for parameter in module.parameters(recurse=False)}
    return own | {id(next(chain.parameters(), chain)): getattr(module, name) for name, chain in _chains(module)}


def _trained(module: nn.Module) -> dict[int, Tensor]:
    """Return the module's own parameters as an optimizer sees them, by identity."""
    inner = [parameter for _, chain in _chains(module) for parameter in chain.parameters()]
    return {id(parameter): parameter for parameter in (*module.parameters(recurse=False), *inner)}


def _chains(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(module.parametrizations.items()) if parametrize.is_parametrized(module) else []  # type: ignore[operator, union-attr]


def _unseen(tensors: Mapping[int, Tensor], seen: set[int]) -> list[Tensor]:
    """Return the tensors that are not in `seen`, and put them there: a tied one counts where it comes first."""
    new = tensors.keys() - seen
    seen |= new
    return [tensor for key, tensor in tensors.items() if key in new]


# ---------------------------------------------------------------- operations


def count_macs(model: nn.Module, example: Shaped[Tensor, "batch ..."]) -> int:
    """Return the multiply-accumulates of one forward pass for one example; `example` is a batch of any size.

    Convolutions and matrix products, as `torch.utils.flop_counter` counts them (it counts a multiply-accumulate as two
    operations), recurrent layers and attention included, whichever kernel computes them. Zeros are counted: a dense
    kernel multiplies by them like by any other number, and so are the places that a causal mask hides. What computes
    the weights themselves (masks, weight normalization) is not counted.

    Raises ValueError if `example` is no batch that the model takes, or its cost cannot be divided among its examples.
    """
    return sum(_forward_costs(model, example)[0].values())


def layer_table(model: nn.Module, example: Shaped[Tensor, "batch ..."]) -> pd.DataFrame:
    """Return one row per layer, in the order of the model's definition: what has own parameters or own MACs.

    Columns: layer, kind, output (shape for one example), weights, biases (every one-dimensional parameter:
    biases, scale and shift of a normalization), parameters (trained values), macs (for one example), bytes (4 per
    parameter, fp32), share_parameters and share_macs (fractions of the column's sum).

    The columns add up to `count_weights`, `count_parameters` and `count_macs`. A product with a layer's weight is that
    layer's, also where another module computes it, as `nn.MultiheadAttention` does for its `out_proj`; any other is
    the module's that computes it. A module under two names has one row, a tied tensor counts in the first of its
    layers. Raises ValueError if there is no row.
    """
    macs, outputs = _forward_costs(model, example)
    plain = modules.materialized(model)
    seen: set[int] = set()
    seen_plain: set[int] = set()
    rows = []
    for name, module in _layers(model):
        trained = _trained(module)
        if not trained and not macs[name]:
            continue
        own = _unseen(_effective(plain.get_submodule(name)), seen_plain)
        parameters = sum(tensor.numel() for tensor in _unseen(trained, seen))
        row = {
            "layer": name,
            "kind": _kind(module),
            "output": outputs.get(name),
            "weights": sum(tensor.numel() for tensor in own if tensor.dim() > 1),
            "biases": sum(tensor.numel() for tensor in own if tensor.dim() <= 1),
        }
        rows.append(row | {"parameters": parameters, "macs": macs[name], "bytes": 4 * parameters})
    table = pd.DataFrame(checks.not_empty("layers with parameters", rows))
    for column in ("parameters", "macs"):
        table[f"share_{column}"] = table[column] / max(1, table[column].sum())
    return table


def _kind(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("Parametrized")


Costs = tuple[Counter[str], dict[str, tuple[int, ...]]]


def _forward_costs(model: nn.Module, example: Tensor) -> Costs:
    """Return each module's own MACs and its output's shape, for one example, by the module's (first) name.

    The first example is counted alone: what does not depend on the batch would be divided otherwise. A network that
    refuses it is counted with the whole batch.
    """
    if not isinstance(example, Tensor) or example.dim() == 0:
        raise ValueError(f"example={example!r}; allowed: a tensor whose first dimension counts the examples")
    batch = len(checks.not_empty("example", example))
    try:
        return _counted(model, example[:1])
    except Exception:
        if batch == 1:
            raise
    macs, outputs = _counted(model, example)
    if any(count % batch for count in macs.values()):
        raise ValueError(f"example has {batch} examples, whose MACs are no multiple of {batch}; allowed: one example")
    return Counter({name: count // batch for name, count in macs.items()}), outputs


def _counted(model: nn.Module, batch: Tensor) -> Costs:
    """Return the MACs and output shapes of one forward pass, on a copy."""
    new = modules.materialized(model).eval()
    for name, module in new.named_modules():
        where = type(module).__module__
        if where.startswith("torch.ao.nn.") and ".quantized." in where:
            raise ValueError(
                f"layer {name!r} is {_kind(module)}, of torch.ao: it hides its product; allowed: float layers"
            )
    running, macs, outputs = [""], Counter[str](), dict[str, tuple[int, ...]]()

    def enter(name: str, *_: object) -> None:
        running.append(name)

    def leave(name: str, module: nn.Module, inputs: object, output: object) -> None:
        running.pop()
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        outputs[name] = tuple(tensors[0].shape[1:]) if tensors else ()

    def note(tensors: list[Tensor], count: int) -> None:
        owners = [name for tensor in tensors for name in _holders(tensor, weights)]
        own = not owners or running[-1] in owners
        macs[running[-1] if own else owners[-1]] += count

    for name, module in new.named_modules():
        module.register_forward_pre_hook(partial(enter, name))
        module.register_forward_hook(partial(leave, name), always_call=True)
    with torch.no_grad(), parametrize.cached(), modules.plain_attention():
        weights = [(name, tensor) for name, module in _layers(new) for tensor in _effective(module).values()]
        with modules.asked("example", batch), FlopCounterMode(display=False, custom_mapping=_formulas(note)):
            new(batch)
    return macs, outputs


def _holders(tensor: Tensor, weights: list[tuple[str, Tensor]]) -> list[str]:
    """Return the layers of which `tensor` is a weight, transposed or a part of it perhaps."""
    return [name for name, weight in weights if _within(tensor, weight)]


def _within(tensor: Tensor, weight: Tensor) -> bool:
    if not tensor.layout == weight.layout == torch.strided or tensor.device != weight.device:
        return False
    start = weight.data_ptr()
    return 0 < start <= tensor.data_ptr() < start + weight.nbytes  # 0: on the meta device


Note = Callable[[list[Tensor], int], None]


def _formulas(note: Note) -> dict[Any, Callable[..., int]]:
    """Return a function for each operator that multiplies: it notes the tensors and the MACs, layer by layer."""
    known = {operator: _noting(note, lambda *a, f=f, **k: f(*a, **k) // 2) for operator, f in flop_registry.items()}
    others = {operator: _noting(note, formula) for operator, formula in _unknown_operators().items()}
    return known | others | {operator: _noting_matrices(note) for operator in RECURRENT}


def _unknown_operators() -> dict[Any, Callable[..., int]]:
    """Return formulas of the MACs for what torch's counter does not know."""
    attention = flop_registry[aten._scaled_dot_product_flash_attention]
    formulas: dict[Any, Callable[..., int]] = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda *a, **k: attention(*a, **k) // 2,
        aten._scaled_dot_product_fused_attention_overrideable: lambda *a, **k: attention(*a, **k) // 2,
        aten.dot: lambda a, b, **_: a.numel(),
        aten.vdot: lambda a, b, **_: a.numel(),
        aten.mv: lambda matrix, vector, **_: matrix.numel(),
        aten.addmv: lambda summand, matrix, vector, **_: matrix.numel(),
        aten.addbmm: lambda summand, a, b, **_: a.numel() * b.shape[2],
        aten._addmm_activation: lambda summand, a, b, **_: a.numel() * b.shape[1],
        aten._int_mm: lambda a, b, **_: a.numel() * b.shape[1],
        aten._trilinear: lambda a, weight, *_, **__: len(a) * weight.numel(),  # of nn.Bilinear
        aten.conv_tbc: lambda x, weight, *_, out_val, **__: out_val[..., 0].numel() * weight.numel(),
    }
    if hasattr(torch.ops.torchvision, "deform_conv2d"):  # torchvision has been imported
        deformed = torch.ops.torchvision.deform_conv2d
        formulas[deformed] = lambda x, weight, *_, out_val, **__: out_val[:, 0].numel() * weight.numel()
    return formulas


def _noting(note: Note, formula: Callable[..., int]) -> Callable[..., int]:
    def count(*args: Any, **kwargs: Any) -> int:
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.dim() > 1]
        note(tensors, formula(*args, **kwargs))
        return 0

    return _given_tensors(count)


def _noting_matrices(note: Note) -> Callable[..., int]:
    """Count a recurrent layer's kernel: each matrix once for each step of each example."""

    def count(x: Tensor, *args: Any, **_: Any) -> int:
        for matrix in tree_leaves(args[:2]):
            if isinstance(matrix, Tensor) and matrix.dim() == 2:
                note([matrix], x[..., 0].numel() * matrix.numel())
        return 0

    return _given_tensors(count)


def _given_tensors(formula: Callable[..., int]) -> Callable[..., int]:
    """Tell torch's counter to give the formula the tensors, not their shapes."""
    formula._get_raw = True  # type: ignore[attr-defined]
    return formula


# ---------------------------------------------------------------- time


class Verdict(NamedTuple):
    """How one variant's time compares with the baseline's.

    `ratio` is median(baseline) / median(this), drift divided out (see `compare`): above 1 is faster. `interval` is
    its 99 % interval, `null_interval` what two timings of the baseline itself leave possible, and `verdict` one of
    "faster", "slower" and "no measurable difference".

    `effective_rounds` says how many rounds of independent noise would tell as much. `note` is "the noise lasted" if
    neighbouring rounds resemble each other more than independent ones would, "too few rounds" if they do not but there
    are too few to rule it out (then the interval is wide, to be safe), and empty otherwise.
    """

    name: str
    median_ms: float
    ratio: float
    interval: tuple[float, float]
    null_interval: tuple[float, float]
    verdict: str
    effective_rounds: float = math.nan
    note: str = ""


def time_interleaved(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 60,
    warmup: int = 5,
    threads: int | None = 1,
    inner: int | None = None,
    control: Callable[[], object] | None = None,
) -> dict[str, np.ndarray]:
    """Time all variants side by side; return seconds per call, one entry per round, by name.

    Every round times each variant once, in an order drawn anew, so that a machine that slows down slows all
    of them and none always runs second. The first variant is entered twice; its second entry, `"<first>
    (A/A)"`, is the control that `compare` needs. A sample is the mean of `inner` calls, by default as many as
    fill a millisecond.

    `control` is what the second entry calls: something with the same answers, such as a deep copy of the network.
    It then shows as well what the place in memory changes. Without it, the first variant's own function is called.

    `threads` sets PyTorch's threads meanwhile (None leaves them); other runtimes have their own setting.
    """
    checks.not_empty("variants", variants)
    for name, function in variants.items():
        if not callable(function):
            raise ValueError(f"variants[{name!r}]={function!r}; allowed: a function without arguments")
    checks.positive("rounds", rounds)
    checks.positive("warmup", warmup)
    if inner is not None:
        checks.positive("inner", inner)
    first = next(iter(variants))
    if first + CONTROL in variants:
        raise ValueError(f"variants has {first + CONTROL!r}; allowed: any other name, that is the control's")
    if control is not None and not callable(control):
        raise ValueError(f"control={control!r}; allowed: a function without arguments")
    functions = {**variants, first + CONTROL: variants[first] if control is None else control}
    order = np.random.default_rng(0)
    with _quiet_process(threads):
        calls = {name: _warm_up(function, warmup, inner) for name, function in variants.items()}
        if control is not None:
            _warm_up(control, warmup, inner)
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
        return inner
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
    2. Interval. It needs no assumption about the noise's distribution, and is the wider the more neighbouring
       rounds resemble each other: noise of one variant that lasts makes rounds worth less
       (`statistics.median_interval`).
    3. Control. The null interval reaches as far from 1, in both directions, as the farther end of the interval
       that holds the baseline against itself with even odds: it stands for what is systematic between two
       timings of the same thing. (Its 99 % interval would count the noise again, which the variant's has in it.)
       The verdict is "faster" or "slower" only if a variant's interval lies wholly outside.
    4. Many variants. With more than five, verdicts are given by wider intervals than the 99 % one shown, so that
       at most one table in twenty has a false one among them (Bonferroni's inequality, Dunn 1961, "Multiple
       comparisons among means").

    `tests/test_coverage.py` measures how often verdicts are false, and how often a true difference is found: with
    independent noise of 5 %, one of 10 % is found by 60 rounds, and by 20 rounds not even every other time.

    Raises ValueError for a missing control, for traces of different lengths, with fewer than 20 rounds or
    with times that are not positive.
    """
    names, logs = _log_seconds(timings)
    relative = logs[0] - logs
    found = _decided(relative, names.index(names[0] + CONTROL))
    ratios = np.exp(found.shown.median)
    baseline_ms = 1e3 * math.exp(np.median(logs[0]))
    return {
        name: Verdict(
            name=name,
            median_ms=float(baseline_ms / ratios[index]),
            ratio=float(ratios[index]),
            interval=(math.exp(found.shown.low[index]), math.exp(found.shown.high[index])),
            null_interval=(math.exp(-found.noise), math.exp(found.noise)),
            verdict=OUTCOMES[int(found.side[index])],
            effective_rounds=float(found.shown.effective[index]),
            note=_note(found.shown, index, logs.shape[1]),
        )
        for index, name in enumerate(names)
    }


class _Decided(NamedTuple):
    """What `compare` decides: the 99 % intervals, the null interval's end, and 1, -1 or 0 for each variant."""

    shown: statistics.MedianInterval
    noise: np.ndarray
    side: np.ndarray


def _decided(relative: np.ndarray, control: int) -> _Decided:
    """Decide for the logs of the rounds' own ratios, (..., variants, rounds); the first variant is the baseline."""
    shown = deciding = statistics.median_interval(relative, confidence=CONFIDENCE)
    comparisons = max(1, relative.shape[-2] - 2)  # neither the baseline nor the control
    if comparisons * (1 - CONFIDENCE) > ERRORS_PER_TABLE:
        deciding = statistics.median_interval(relative, confidence=1 - ERRORS_PER_TABLE / comparisons)
    even = statistics.median_interval(relative[..., control, :], confidence=EVEN_ODDS)
    noise = np.maximum(np.abs(even.low), np.abs(even.high))
    end = noise[..., None]
    return _Decided(shown, noise, (deciding.low > end).astype(int) - (deciding.high < -end))


def _note(found: statistics.MedianInterval, index: int, rounds: int) -> str:
    if found.autocorrelation[index] > LASTING / math.sqrt(rounds):
        return LASTED
    return TOO_FEW if found.effective[index] < statistics.needed(CONFIDENCE) else ""


def _log_seconds(timings: Mapping[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Return names and log seconds, of shape (variants, rounds), checked."""
    names = list(checks.not_empty("timings", timings))
    if names[0] + CONTROL not in timings:
        raise ValueError(f"timings has no {names[0] + CONTROL!r}; allowed: what time_interleaved returns")
    traces = [_trace(name, timings[name]) for name in names]
    shapes = {trace.shape for trace in traces}
    if len(shapes) != 1 or traces[0].ndim != 1 or traces[0].size < MINIMUM_ROUNDS:
        allowed = f"allowed: one length, at least {MINIMUM_ROUNDS} rounds"
        raise ValueError(f"timings has traces of shapes {sorted(shapes)}; {allowed}")
    return names, np.log(np.stack(traces))


def _trace(name: str, seconds: Any) -> np.ndarray:
    """Return one variant's seconds as floats, checked."""
    try:
        trace = np.asarray(seconds, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"timings[{name!r}] holds what is no number ({error}); allowed: seconds") from error
    wrong = trace[~(np.isfinite(trace) & (trace > 0))]  # also NaN
    if wrong.size:
        raise ValueError(f"timings[{name!r}] has a time of {wrong[0]} s; allowed: finite times above 0")
    return trace


def verdict_table(verdicts: Mapping[str, Verdict]) -> pd.DataFrame:
    """Return the verdicts as a table for the reader, rounded, with their notes; the first row is the baseline."""
    checks.not_empty("verdicts", verdicts)
    rows = [
        {
            "variant": name,
            "median (ms)": f"{verdict.median_ms:.3g}",
            "ratio": f"{verdict.ratio:.2f}",
            "99 % interval": _interval_text(verdict.interval),
            "A/A interval": _interval_text(verdict.null_interval),
            "verdict": f"{verdict.verdict} ({verdict.note})" if verdict.note else verdict.verdict,
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
            "note": verdict.note,
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
