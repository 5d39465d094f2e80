"""Latency against a null control: interleaved rounds, ratios of medians, intervals."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from helpers import statistics
from helpers.core import checks

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

    @property
    def cleared(self) -> tuple[float, float]:
        """The interval, moved apart by what two timings of the baseline leave possible: what a claim is decided by."""
        beyond = self.null_interval[1]
        return self.interval[0] / beyond, self.interval[1] * beyond


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


def compare(timings: Mapping[str, np.ndarray], *, against: str | None = None) -> dict[str, Verdict]:
    """Compare every variant of `time_interleaved` with the first, or with `against`; return one `Verdict` per name.

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

    `tests/measure/test_coverage.py` measures how often verdicts are false, and how often a true difference is found:
    with independent noise of 5 %, one of 10 % is found by 60 rounds, and by 20 rounds not even every other time.

    With `against`, the control is still the first variant's: two timings of it show what is systematic on this machine.

    Raises ValueError for a missing control, for traces of different lengths, with fewer than 20 rounds, with times that
    are not positive, and for an unknown `against`.
    """
    names, logs = _log_seconds(timings)
    control = logs[0] - logs[names.index(names[0] + CONTROL)]
    first = names.index(checks.choice("against", names[0] if against is None else against, names))
    order = [first, *(index for index in range(len(names)) if index != first)]
    names, logs = [names[index] for index in order], logs[order]
    found = _decided(logs[0] - logs, control)
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


def _decided(relative: np.ndarray, control: np.ndarray) -> _Decided:
    """Decide for the logs of the rounds' own ratios, (..., variants, rounds), and of those of a variant to itself."""
    shown = deciding = statistics.median_interval(relative, confidence=CONFIDENCE)
    comparisons = max(1, relative.shape[-2] - 2)  # neither the baseline nor the control
    if comparisons * (1 - CONFIDENCE) > ERRORS_PER_TABLE:
        deciding = statistics.median_interval(relative, confidence=1 - ERRORS_PER_TABLE / comparisons)
    even = statistics.median_interval(control, confidence=EVEN_ODDS)
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
