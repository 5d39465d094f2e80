"""Plausible wrong answers to the exercises of notebook 16, each with words of its own hint."""

import torch

from tests.exercises.examples import Case


def _largest_numbers(weight):
    fours = weight.unflatten(1, (-1, 4))
    places = fours.topk(2, dim=-1).indices.sort(-1).values
    return fours.gather(-1, places).flatten(1), places.flatten(1).to(torch.uint8)


def _by_size(weight):
    fours = weight.unflatten(1, (-1, 4))
    places = fours.abs().topk(2, dim=-1).indices
    return fours.gather(-1, places).flatten(1), places.flatten(1).to(torch.uint8)


def _magnitudes(weight):
    fours = weight.unflatten(1, (-1, 4))
    places = fours.abs().topk(2, dim=-1).indices.sort(-1).values
    return fours.abs().gather(-1, places).flatten(1), places.flatten(1).to(torch.uint8)


def _by_the_median(table, budget_ms):
    kept = table[table["p50_ms"] <= budget_ms]
    if kept.empty:
        return None
    row = kept.loc[kept["images_per_s"].idxmax()]
    return row["threads"], row["batch"]


def _the_fastest_call(table, budget_ms):
    kept = table[table["p95_ms"] <= budget_ms]
    if kept.empty:
        return None
    row = kept.loc[kept["p95_ms"].idxmin()]
    return row["threads"], row["batch"]


def _always_one(table, budget_ms):
    kept = table[table["p95_ms"] <= budget_ms]
    row = table.iloc[0] if kept.empty else kept.loc[kept["images_per_s"].idxmax()]
    return row["threads"], row["batch"]


CASES = {
    "16.1": Case(
        [
            (lambda batch, call_ms: batch / call_ms, "per millisecond"),
            (lambda batch, call_ms: 1000 / call_ms, "calls a second"),
            (lambda batch, call_ms: call_ms / batch, "milliseconds below"),
        ]
    ),
    "16.2": Case([(_largest_numbers, "take abs"), (_by_size, "topk sorts"), (_magnitudes, "their signs")]),
    "16.3": Case(
        [(_by_the_median, "not the median"), (_the_fastest_call, "not the fastest"), (_always_one, "return None")]
    ),
    "16.4": Case(
        [
            (lambda latency_ms, batch: 1 / latency_ms, "1,000 milliseconds"),
            (lambda latency_ms, batch: batch * 1000 / latency_ms, "not arithmetic"),
        ],
        {"latency_ms": 0.41, "batch": 64, "measured": 2_710.0},
    ),
}
