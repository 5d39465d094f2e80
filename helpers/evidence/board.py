"""The board: intervals that say of what, ranks that are shared, fronts, and what was bought.

It is the only one: README, the command line and notebook 19 show rows of it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from helpers.core import checks
from helpers.evidence.provenance import origin
from helpers.statistics import Interval, image_interval, mean_std, paired_interval, rank, seed_interval

if TYPE_CHECKING:
    import pandas as pd

GOALS = {"a smaller file": "file ÷", "fewer multiplications": "MACs ÷", "a shorter wait": "speed ×"}


def front(accuracies: Sequence[float], *costs: Sequence[float]) -> list[bool]:
    """Return which models no other one dominates; one with an unknown cost (NaN) neither stands there nor dominates.

    A model dominates another if it is at least as accurate, costs at most as much in every one of `costs`, and is
    better in one of them. Raises ValueError without costs, unless all have the same length, and for an accuracy that is
    NaN.
    """
    checks.not_empty("costs", costs)
    if {len(cost) for cost in costs} != {len(accuracies)}:
        raise ValueError(
            f"costs of {[len(c) for c in costs]} models; allowed: {len(accuracies)}, one for each accuracy"
        )
    if any(map(math.isnan, accuracies)):
        raise ValueError("accuracies holds NaN; allowed: numbers")
    points = [(-accuracy, *cost) for accuracy, *cost in zip(accuracies, *costs, strict=True)]
    known = [point for point in points if not any(map(math.isnan, point))]
    return [point in known and not any(_dominates(other, point) for other in known) for point in points]


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def dominated_by(frame: "pd.DataFrame", cost: str = "bytes") -> dict[str, list[str]]:
    """Return for each model of a task's `board` that has this cost the dense nets that dominate it, by their means.

    Raises ValueError for a cost that is no column.
    """
    checks.choice("cost", cost, frame.columns)
    known = frame[frame[cost].notna()]
    dense = known[known["dense"]]
    return {
        row.model: [
            other.model
            for other in dense.itertuples()
            if _dominates((-other.accuracy, getattr(other, cost)), (-row.accuracy, getattr(row, cost)))
        ]
        for row in known.itertuples()
    }


def lead(a: "pd.DataFrame", b: "pd.DataFrame") -> Interval:
    """Return by how much a model's accuracy is above another's; `a` and `b` hold their `runs`, one row for each seed.

    Paired by seed where both have two seeds in common and the differences vary. Otherwise the interval is Newcombe's,
    of two accuracies on images (Newcombe 1998, "Interval estimation for the difference between independent
    proportions", method 10). Both answered the same images, which would make it shorter, but who answered what was not
    recorded: so it errs on the side of a tie. So it does where one of the two has several seeds: the wider interval
    counts. Raises ValueError for a model without runs, with two of one seed, or with an accuracy that is no fraction.
    """
    for name, model in {"a": a, "b": b}.items():
        _check_runs(name, model)
    first, second = a.set_index("seed")["accuracy"], b.set_index("seed")["accuracy"]
    common = sorted(set(first.index) & set(second.index))
    if len(common) > 1 and (first[common] - second[common]).round(12).nunique() > 1:
        return Interval(*paired_interval(first[common].tolist(), second[common].tolist()), "seeds")
    (p, low_p, high_p), (q, low_q, high_q) = (_on_images(each) for each in (a, b))
    return Interval(p - q - math.hypot(p - low_p, high_q - q), p - q + math.hypot(high_p - p, q - low_q), "images")


def _check_runs(name: str, model: "pd.DataFrame") -> None:
    checks.not_empty(name, model)
    if not model["seed"].is_unique:
        raise ValueError(f"{name} has the seeds {model['seed'].tolist()}; allowed: each once")
    for accuracy in model["accuracy"].tolist():
        checks.fraction(f"{name}['accuracy']", accuracy, upper_open=False)


def _on_images(model: "pd.DataFrame") -> tuple[float, float, float]:
    """Return mean accuracy and its interval over images, widened by that over seeds where networks differ."""
    accuracies, images = model["accuracy"].tolist(), model["images"].iloc[0]
    mean = mean_std(accuracies).mean
    if math.isnan(images):
        return mean, 0.0, 1.0  # nothing is known: a tie with everybody
    low, high, _ = image_interval(mean, int(images))
    if len(set(accuracies)) > 1:
        seeds = seed_interval(accuracies)
        low, high = min(low, seeds.low), max(high, seeds.high)
    return mean, low, high


def ranked(frame: "pd.DataFrame", runs: "pd.DataFrame") -> "pd.DataFrame":
    """Return a task's `board`, best first, with the columns rank (see `rank`) and beaten_by (how many beat it).

    Raises ValueError for a model of the board that has no `runs`.
    """
    for name in frame["model"]:
        checks.choice("frame['model']", name, sorted(set(runs["model"])))
    ordered = frame.sort_values(["accuracy", "bytes", "model"], ascending=[False, True, True], ignore_index=True)
    names = ordered["model"].tolist()
    parts = {name: part for name, part in runs.groupby("model")}
    leads = {(a, b): lead(parts[a], parts[b]) for i, a in enumerate(names) for b in names[i + 1 :]}
    beaten = [sum(leads[above, name].low > 0 for above in names[:place]) for place, name in enumerate(names)]
    return ordered.assign(rank=rank(names, lambda a, b: leads[a, b].low > 0), beaten_by=beaten)


def board(runs: "pd.DataFrame", task: str) -> "pd.DataFrame":
    """Return one row for each model of `task`, from `runs`, the best first.

    Columns: model, recipe, method, technique, dense, base, notebook, profile, source, of_runs, images (see `runs`), n
    (seeds), networks (1 where each run measured the same network), accuracy (mean), std (over the seeds), low and high
    (95 %), over ("seeds" or "images", what the interval is of; "" where nothing is known), bytes, macs, weights_ratio,
    macs_ratio and file_ratio (of the base, each in its own unit), each of the five with the lowest and highest of the
    seeds (bytes_low and so on), speed (times as fast as the base) and clock (by which: see `bought`), origin (commit,
    machine, threads; see `provenance.origin`), front_bytes, front_macs. Raises ValueError for a task without models.
    """
    import pandas as pd

    part = runs[runs["task"] == checks.choice("task", task, sorted(set(runs["task"])))]
    frame = pd.DataFrame([_row(name, each) for name, each in part.groupby("model")])
    accuracies = frame["accuracy"].tolist()
    frame["front_bytes"] = front(accuracies, frame["bytes"].tolist())
    frame["front_macs"] = front(accuracies, frame["macs"].tolist())
    return frame.sort_values(["accuracy", "bytes", "model"], ascending=[False, True, True], ignore_index=True)


def _row(name: Any, seeds: "pd.DataFrame") -> dict[str, Any]:
    accuracies = seeds["accuracy"].tolist()
    networks = 1 if (seeds[_IDENTITY].nunique() < 2).all() else len(seeds)
    interval = _interval(accuracies, seeds["images"].iloc[0], networks)
    found = mean_std(accuracies)
    row = {"model": name} | {key: seeds[key].iloc[0] for key in _SHARED} | {"n": len(seeds), "networks": networks}
    row |= {"accuracy": round(found.mean, 12), "std": found.std} | interval._asdict()
    compared = seeds["base_weights"].fillna(seeds["weights"])  # a dense network is compared with itself
    sizes = {
        "bytes": seeds["bytes"],
        "macs": seeds["macs"],
        "weights_ratio": compared / seeds["nonzero"],
        "macs_ratio": seeds["base_macs"].fillna(seeds["macs"]) / seeds["macs"],
        "file_ratio": seeds["base_bytes"] / seeds["bytes"],
    }
    for key, values in sizes.items():
        row |= {key: values.mean(), f"{key}_low": values.min(), f"{key}_high": values.max()}
    row["speed"], row["clock"] = _speed(seeds)
    return row | {"origin": origin(seeds["provenance"].tolist())}


_IDENTITY = ["accuracy", "bytes", "weights", "nonzero", "macs"]  # networks that share these are one network
_SHARED = ("recipe", "method", "technique", "dense", "base", "notebook", "profile", "source", "of_runs", "images")


def _speed(seeds: "pd.DataFrame") -> tuple[float, str]:
    """Return the ratio that counts, ONNX Runtime's at batch 1 if it is there, and its clock; NaN and "" without."""
    records = [record for latency in seeds["latency"] for record in latency]
    timed = [record for record in records if not _is_baseline(record)]
    if not timed:
        return math.nan, ""
    batch, _, runtime = min((r["batch"], r["runtime"] != "onnxruntime", r["runtime"]) for r in timed)
    same = [r["ratio"] for r in timed if (r["runtime"], r["batch"]) == (runtime, batch)]
    return mean_std(same).mean, f"{runtime}, batch {batch}"


def _is_baseline(record: Mapping[str, Any]) -> bool:
    return list(record["interval"]) == [1.0, 1.0]


def _interval(accuracies: Sequence[float], images: float, networks: int) -> Interval:
    if networks > 1:
        low, high, over = seed_interval(accuracies)
        return Interval(max(low, 0.0), min(high, 1.0), over)
    if math.isnan(images):
        return Interval(math.nan, math.nan, "")
    return image_interval(accuracies[0], int(images))


def latencies(runs: "pd.DataFrame") -> "pd.DataFrame":
    """Return the recorded latency ratios, one row for each model, runtime and batch; above 1 is faster than `against`.

    A ratio is the mean over the seeds, its interval reaches from the lowest to the highest end of theirs (99 % each).
    `against` is the base in the same runtime; for a model without a base, itself in PyTorch's eager mode: then what is
    compared is the runtime. Baselines themselves are left out. `verdicts` counts what the seeds' A/A controls allow.
    """
    import pandas as pd

    rows = []
    for (task, model), seeds in runs.groupby(["task", "model"]):
        records = [record for latency in seeds["latency"] for record in latency]
        for runtime, batch in sorted({(r["runtime"], r["batch"]) for r in records}):
            same = [r for r in records if (r["runtime"], r["batch"]) == (runtime, batch)]
            if all(map(_is_baseline, same)):
                continue
            verdicts = pd.Series([r["verdict"] for r in same]).value_counts()
            base = seeds["base"].iloc[0]
            rows.append(
                {
                    "task": task,
                    "model": model,
                    "runtime": runtime,
                    "batch": batch,
                    "against": f"{base}, {runtime}" if base else f"{model}, eager",
                    "technique": seeds["technique"].iloc[0] if base else "another runtime",
                    "ratio": mean_std([r["ratio"] for r in same]).mean,
                    "low": min(r["interval"][0] for r in same),
                    "high": max(r["interval"][1] for r in same),
                    "n": len(same),
                    "verdicts": ", ".join(f"{count} × {said}" for said, count in verdicts.items()),
                }
            )
    columns = ["task", "model", "runtime", "batch", "against", "technique", "ratio", "low", "high", "n", "verdicts"]
    return pd.DataFrame(rows, columns=columns)


def bought(runs: "pd.DataFrame") -> "pd.DataFrame":
    """Return what each technique bought and what it cost: a row for each model that was compared with a base.

    Columns: task, technique, model, recipe, base, n, profile; "file ÷", "MACs ÷" and "speed ×" (base / this, above 1 is
    a gain, NaN where it was not measured; speed in ONNX Runtime at batch 1 if it is there, else as recorded first, and
    in `clock` which), "points lost" (of accuracy, mean over the seeds) with `low`, `high` and `over` (see `lead`).
    """
    import pandas as pd

    rows = []
    for (task, model), seeds in runs[runs["base_accuracy"].notna()].groupby(["task", "model"]):
        gain = lead(seeds.assign(accuracy=seeds["base_accuracy"]), seeds)
        speed, clock = _speed(seeds)
        row = {"task": task} | {key: seeds[key].iloc[0] for key in ("technique", "base", "recipe")} | {"model": model}
        row |= {"n": len(seeds), "profile": seeds["profile"].iloc[0]}
        row |= {"file ÷": (seeds["base_bytes"] / seeds["bytes"]).mean()}
        row |= {"MACs ÷": (seeds["base_macs"] / seeds["macs"]).mean(), "speed ×": speed, "clock": clock}
        row |= {"points lost": 100 * (seeds["base_accuracy"] - seeds["accuracy"]).mean()}
        rows.append(row | {"low": 100 * gain.low, "high": 100 * gain.high, "over": gain.over})
    columns = ["task", "technique", "model", "recipe", "base", "n", "profile", *GOALS.values(), "clock", "points lost"]
    return pd.DataFrame(rows, columns=[*columns, "low", "high", "over"])


def first_to_try(bought: "pd.DataFrame", goal: str, *, points: float = 1.0) -> "pd.DataFrame":
    """Return of each task the model with the largest factor for `goal` (one of `GOALS`) among those that lose little.

    They lose at most `points` points of accuracy, by the mean; a factor of 1.05 or less buys nothing. Tasks where no
    model does are left out. Raises ValueError for an unknown goal, and unless `points` is a finite number.
    """
    checks.number("points", points)
    column = GOALS[checks.choice("goal", goal, GOALS)]
    allowed = bought[(bought["points lost"] <= points) & (bought[column] > 1.05)]
    best = allowed.sort_values([column, "model"], ascending=[False, True]).groupby("task").head(1)
    return best.sort_values("task", ignore_index=True)
