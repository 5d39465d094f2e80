"""Every recorded model on one board: intervals that say of what, ranks that are shared, fronts, and what was bought.

`evidence.leaderboard` averages what has one name. This module starts from the single runs (`runs`), and keeps apart
what a mean would hide: seeds that chose another method, networks of another size, one network that several runs
measured.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from helpers.core import checks, paths
from helpers.evidence.provenance import errata, origin
from helpers.evidence.publishing import decided
from helpers.evidence.tables import recorded
from helpers.statistics import Interval, image_interval, mean_std, paired_interval, rank, seed_interval

if TYPE_CHECKING:
    import pandas as pd

OWN = "14"  # the notebook that shows the board does not stand on it
GOALS = {"a smaller file": "file ÷", "fewer multiplications": "MACs ÷", "a shorter wait": "speed ×"}
DESIGN_EFFECT = {"imdb": 1.5}  # so many reviews tell as much as one independent one: those of a film are judged alike
SAME_SIZE = 1.1  # files whose sizes are further apart are not those of one network


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
    return ordered.assign(rank=rank(names, lambda a, b: leads[a, b]), beaten_by=beaten)


def runs(*, build: bool = True) -> "pd.DataFrame":
    """Return every recorded model, one row for each model and seed: what the board is made of.

    Which results count: see `evidence.recorded`. Of each model full ones replace quick ones. Columns: task, model (its
    name, and the notebook's number if another model has the same name, or the seeds if they chose differently), recipe
    (without the seeds), notebook, profile, source, seed, of_runs (how many runs of the notebook there are), method,
    technique, dense, accuracy, images (independent test images; NaN if unknown), weights, nonzero, macs, bytes (NaN
    without a file), latency (a list), base, and of the base in the same run base_accuracy, base_weights, base_bytes and
    base_macs (NaN if there is none), provenance (of the run).
    """
    import pandas as pd

    found = [row for result in _results(build) for row in _rows(result)]
    frame = pd.DataFrame(found, columns=[*COLUMNS])
    if frame.empty:
        return frame
    frame = _without_copies(frame)
    in_full = set(frame.loc[frame["profile"] == "full", ["task", "name"]].itertuples(index=False, name=None))
    is_full = frame["profile"] == "full"
    replaced = [(task, name) in in_full for task, name in zip(frame["task"], frame["name"], strict=True)]
    frame = frame[is_full | ~pd.Series(replaced, index=frame.index)]
    order = ["task", "model", "seed"]
    return frame.drop(columns="name").sort_values(order, ignore_index=True)


COLUMNS = (
    *(
        "task",
        "name",
        "model",
        "recipe",
        "notebook",
        "profile",
        "source",
        "seed",
        "of_runs",
        "method",
        "technique",
        "dense",
    ),
    *("accuracy", "images", "weights", "nonzero", "macs", "bytes", "latency", "base", "base_accuracy", "base_weights"),
    *("base_bytes", "base_macs", "provenance"),
)


def _results(build: bool) -> list[dict[str, Any]]:
    """Return the results that the board stands on, each with the folder it is from and how many seeds there are."""
    return [
        result | {"source": source, "of_runs": len(seeds)}
        for source, seeds in recorded(build=build)
        for result in seeds
        if not result["notebook"].startswith(OWN)
    ]


def _rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    by_name = {model["name"]: model for model in result["models"]}
    rows = []
    for model in result["models"]:
        base = by_name.get(model["base"] or "", {})
        row = {key: result[key] for key in ("notebook", "profile", "source", "seed", "of_runs")}
        row |= {"provenance": result["provenance"]}
        row |= {key: model[key] for key in ("task", "name", "method", "accuracy", "weights", "nonzero", "macs", "base")}
        row |= {
            "base": model["base"] or "",
            "model": model["name"],
            "images": _images(model, result["test_evaluations"]),
        }
        row |= {"bytes": model.get("file_bytes") or math.nan, "latency": model.get("latency") or []}
        row |= {f"base_{key}": base.get(key, math.nan) for key in ("accuracy", "weights", "macs")}
        row |= {
            "base_bytes": base.get("file_bytes") or math.nan,
            "technique": technique(model, base, result["notebook"]),
        }
        rows.append(row | {"dense": row["technique"] in ("dense", "a thin dense net")})
    return rows


def _images(model: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> float:
    """Return how many independent test images the accuracy is of, from the log: by name or else by the accuracy.

    Of reviews that come in groups, a film's, fewer are independent (Kish 1965, "Survey sampling", section 8.2).
    """
    same = [e for e in evaluations if abs(e["accuracy"] - model["accuracy"]) < 1e-12]
    named = [e for e in same if e["name"] == model["name"]]
    counts = {e["count"] for e in named or same}
    return counts.pop() / DESIGN_EFFECT.get(model["task"], 1.0) if len(counts) == 1 else math.nan


def technique(model: Mapping[str, Any], base: Mapping[str, Any], notebook: str = "") -> str:
    """Return in a few words what was done to `base` to get `model`, both as `notebook` recorded them.

    Files of before name no techniques; those of the published ones stand in data/results/techniques.json.
    """
    if "techniques" in model:
        known = model["techniques"]
    else:
        known = _techniques_of_before().get((notebook, model["name"], model["method"]), [])
    return " + ".join(known) or ("other" if base else "dense")


def _techniques_of_before() -> dict[tuple[str, str, str], list[str]]:
    path = paths.RESULTS / "techniques.json"
    if not path.exists():
        return {}
    (rows,) = json.loads(path.read_bytes()).values()
    return {(row["notebook"], row["model"], row["method"]): row["techniques"] for row in rows}


def _without_copies(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Keep one notebook's runs of a model that several recorded; tell apart different models with one name."""
    import pandas as pd

    kept = []
    for _, same_name in frame.groupby(["task", "name", "profile"], sort=False):
        groups: dict[tuple[Any, ...], list[pd.DataFrame]] = {}
        for _, part in same_name.groupby("notebook"):
            sizes = part["bytes"].fillna(0)
            groups.setdefault((part["weights"].max(), part["macs"].max(), sizes.max()), []).append(part)
        for copies in groups.values():
            best = max(copies, key=lambda p: (p["images"].max(), p["seed"].nunique(), p["latency"].map(len).max()))
            if len(groups) > 1:
                best = best.assign(model=best["name"] + f" ({best['notebook'].iloc[0][:2]})")
            kept.append(_by_method(best.assign(recipe=best["model"])))
    return pd.concat(kept)


def _by_method(part: "pd.DataFrame") -> "pd.DataFrame":
    """Give seeds that chose another method, or a file of another size, a name of their own: they share no mean."""
    import pandas as pd

    pieces: list[pd.DataFrame] = []
    for _, same_method in part.sort_values(["bytes", "seed"]).groupby("method", sort=False):
        start = 0
        sizes = same_method["bytes"].tolist()
        for end in range(1, len(sizes) + 1):
            if end == len(sizes) or sizes[end] > SAME_SIZE * sizes[start]:
                pieces.append(same_method.iloc[start:end])
                start = end
    if len(pieces) == 1:
        return part
    named = []
    for piece in pieces:
        seeds = ", ".join(map(str, sorted(piece["seed"])))
        named.append(piece.assign(model=piece["model"] + f" [seed{'s' if len(piece) > 1 else ''} {seeds}]"))
    return pd.concat(named)


def board(runs: "pd.DataFrame", task: str) -> "pd.DataFrame":
    """Return one row for each model of `task`, from `runs`, the best first.

    Columns: model, recipe, method, technique, dense, notebook, profile, source, of_runs (see `runs`), n (seeds),
    networks (1 where each run measured the same network), accuracy (mean), low and high (95 %), over ("seeds" or
    "images", what the interval is of; "" where nothing is known), images, bytes, bytes_low, bytes_high, macs,
    weights_ratio and file_ratio (both of the base, each in its own unit), origin (commit, machine, threads; see
    `provenance.origin`), front_bytes, front_macs.
    Raises ValueError for a task without models.
    """
    import pandas as pd

    part = runs[runs["task"] == checks.choice("task", task, sorted(set(runs["task"])))]
    rows = [_row(name, each) for name, each in part.groupby("model")]
    frame = pd.DataFrame(rows)
    accuracies = frame["accuracy"].tolist()
    frame["front_bytes"] = front(accuracies, frame["bytes"].tolist())
    frame["front_macs"] = front(accuracies, frame["macs"].tolist())
    return frame.sort_values(["accuracy", "bytes", "model"], ascending=[False, True, True], ignore_index=True)


def _row(name: Any, seeds: "pd.DataFrame") -> dict[str, Any]:
    first = seeds.iloc[0]
    accuracies = seeds["accuracy"].tolist()
    networks = 1 if len(set(accuracies)) == 1 and seeds["bytes"].nunique() < 2 else len(seeds)
    interval = _interval(accuracies, first["images"], networks)
    row = {"model": name} | {
        key: first[key]
        for key in ("recipe", "method", "technique", "dense", "notebook", "profile", "source", "of_runs", "images")
    }
    row |= {"n": len(seeds), "networks": networks, "accuracy": round(mean_std(accuracies).mean, 12)}
    row |= {"low": interval.low, "high": interval.high, "over": interval.over, "macs": seeds["macs"].mean()}
    row |= {"bytes": seeds["bytes"].mean(), "bytes_low": seeds["bytes"].min(), "bytes_high": seeds["bytes"].max()}
    row["origin"] = origin([{"provenance": each} for each in seeds["provenance"]])
    row["weights_ratio"] = (seeds["base_weights"] / seeds["nonzero"]).mean()
    row["file_ratio"] = (seeds["base_bytes"] / seeds["bytes"]).mean()
    return row


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
            if all(list(r["interval"]) == [1.0, 1.0] for r in same):
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

    times = latencies(runs)
    rows = []
    for (task, model), seeds in runs[runs["base_accuracy"].notna()].groupby(["task", "model"]):
        base = seeds.assign(accuracy=seeds["base_accuracy"])
        gain = lead(base, seeds)
        clock = times[(times["task"] == task) & (times["model"] == model)]
        order = clock.assign(late=clock["runtime"] != "onnxruntime").sort_values(["batch", "late"])
        row = {"task": task} | {key: seeds[key].iloc[0] for key in ("technique", "base", "recipe")} | {"model": model}
        row |= {"n": len(seeds), "profile": seeds["profile"].iloc[0]}
        row |= {"file ÷": (seeds["base_bytes"] / seeds["bytes"]).mean()}
        row |= {"MACs ÷": (seeds["base_macs"] / seeds["macs"]).mean()}
        row |= {"speed ×": order["ratio"].iloc[0] if len(order) else math.nan}
        row |= {"clock": f"{order['runtime'].iloc[0]}, batch {order['batch'].iloc[0]}" if len(order) else ""}
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


def claims_over_seeds(*, build: bool = True) -> "pd.DataFrame":
    """Return the notebooks' claims over seeds, from full results: notebook, claim, n, mean, bound, outcome, erratum.

    The outcome is "holds" or "does not hold", by the mean, and below three seeds "undecided". The erratum says what is
    known to be wrong with the claim or its seeds, "" if nothing is.
    """
    import pandas as pd

    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in _results(build):
        for claim in result["claims"]:
            if claim["over_seeds"] and result["profile"] == "full":
                found.setdefault((result["notebook"], claim["id"]), []).append(claim)
    rows = []
    for (notebook, identity), claims in sorted(found.items()):
        side = "at_most" if "at_most" in claims[-1] else "at_least"
        (mean, _, n), holds = decided(claims)
        outcome = {True: "holds", False: "does not hold", None: "undecided"}[holds]
        row = {"notebook": notebook, "claim": identity, "text": claims[-1]["text"], "n": n, "mean": mean}
        row |= {"bound": f"{side.replace('_', ' ')} {claims[-1][side]:g}", "outcome": outcome}
        rows.append(row | {"erratum": " ".join(errata(notebook, identity))})
    return pd.DataFrame(rows, columns=["notebook", "claim", "text", "n", "mean", "bound", "outcome", "erratum"])
