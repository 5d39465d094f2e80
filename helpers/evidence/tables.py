"""Tables for the README and the command line."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from helpers.core import checks, paths
from helpers.core.paths import build_dir
from helpers.evidence.provenance import MIXED, errata, origin
from helpers.evidence.publishing import beats
from helpers.evidence.reading import literature_file, results_in
from helpers.evidence.schema import machine_text
from helpers.statistics import mean_std

if TYPE_CHECKING:
    import pandas as pd


def recorded(*, build: bool = True, damaged: list[str] | None = None) -> list[tuple[str, list[dict]]]:
    """Return (source, its results, one per seed) for each notebook and profile (no smoke), quick ones first.

    The source is "data" (published) or, with `build`, "build" (this machine's own): the one with more seeds, of
    equally many this machine's own. The two are never mixed. Raises ValueError for a damaged file; where there is a
    list `damaged`, it gets that sentence instead, and the file is left out.
    """
    folders = {"build": build_dir() / "results"} if build else {}
    folders["data"] = paths.RESULTS
    found: dict[tuple[str, str], tuple[str, list[dict]]] = {}
    for profile in ("quick", "full"):
        for source, folder in folders.items():
            of_notebook: dict[str, list[dict]] = {}
            for result in results_in(folder / profile, damaged=damaged):
                of_notebook.setdefault(result["notebook"], []).append(result)
            for notebook, seeds in of_notebook.items():
                _, before = found.get((profile, notebook), ("", []))
                if len(seeds) > len(before):
                    found[profile, notebook] = source, seeds
    return list(found.values())


def leaderboard(task: str | None = None, *, build: bool = True, damaged: list[str] | None = None) -> "pd.DataFrame":
    """Return every recorded model, one row per task, name, method and profile (no smoke), best accuracy first.

    Which results, and `damaged`: see `recorded`. Columns: task, name, method, accuracy (mean), std, n (seeds),
    weights_ratio (weights of the base / nonzero), file_bytes, macs, macs_ratio (of the base / of this), weights_range,
    bytes_range and macs_range (the seeds' lowest and highest), latency_ratio (median of the base / median; ONNX Runtime
    at batch 1 where it was measured), front (on the Pareto front of the task: no other model is at least as
    accurate and at most as large, and better in one of the two; quick results of a model that has full ones
    do not count), source, profile, notebook, origin (see `provenance.origin`).
    """
    import pandas as pd

    rows = [row for source, seeds in recorded(build=build, damaged=damaged) for row in _rows(seeds, source=source)]
    columns = ["task", "name", "method", "accuracy", "std", "n", "weights_ratio", "file_bytes", "macs"]
    columns += ["macs_ratio", "weights_range", "bytes_range", "macs_range", "latency_ratio", "front"]
    frame = pd.DataFrame(rows, columns=[*columns, "source", "profile", "notebook", "origin"])
    if task is not None:
        frame = frame[frame["task"] == checks.choice("task", task, sorted(set(frame["task"])))]
    same_model = ["task", "name", "profile", "accuracy", "file_bytes", "macs"]
    frame = frame.drop_duplicates(same_model).reset_index(drop=True)
    frame["front"] = _front(frame)
    order = ["task", "accuracy", "file_bytes", "name"]
    return frame.sort_values(order, ascending=[True, False, True, True]).reset_index(drop=True)


def format_leaderboard(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return `leaderboard`'s table as texts, for a notebook or, by `to_string(index=False)`, a terminal.

    A star marks the Pareto front.
    """
    import pandas as pd

    def each(column: str, form: str) -> list[str]:
        return ["–" if pd.isna(v) else form.format(v) for v in frame[column]]

    accuracies = [_accuracy(*row) for row in zip(frame["accuracy"], frame["std"], frame["n"], strict=True)]
    return pd.DataFrame(
        {
            "task": frame["task"],
            "": ["*" if front else "" for front in frame["front"]],
            "model": frame["name"],
            "method": frame["method"],
            "accuracy %": accuracies,
            "weights ÷": each("weights_ratio", "{:.3g}"),
            "file bytes": each("file_bytes", "{:,.0f}"),
            "MACs": each("macs", "{:,.0f}"),
            "speed ×": each("latency_ratio", "{:.2f}"),
            "profile": frame["profile"],
            "from": frame["source"],
        }
    )


def readme_table() -> str:
    """Return the README's Markdown: each task's best published models beside the literature; data/ only."""
    frame = leaderboard(build=False)
    without_file = frame["file_bytes"].isna()  # of another recipe, not of another size, such as a taught student
    best = frame[frame["front"] | without_file | frame["name"].isin(_bases())]
    if best.empty:
        return "No results are published yet."
    tasks = [_readme_task(task, rows) for task, rows in best.groupby("task", sort=True)]
    return "\n\n".join([*tasks, _readme_provenance()])


def _accuracy(mean: float, std: float, n: int) -> str:
    if n < 2:
        return f"{100 * mean:.2f}"
    if std < 1e-12:  # a committed checkpoint, evaluated in each run: no spread was measured
        return f"{100 * mean:.2f} (one network)"
    return f"{100 * mean:.2f} ± {100 * std:.2f} (n = {n})"


def _rows(results: list[dict], *, source: str) -> Iterable[dict[str, Any]]:
    """Yield one row per model name and method of a notebook's results over its seeds."""
    models: dict[tuple[str, str], list[dict]] = {}
    for run, result in enumerate(results):
        by_name = {model["name"]: model for model in result["models"]}
        for model in result["models"]:
            one = model | {"of": by_name.get(model["base"], model), "run": run}  # the base of the same seed
            models.setdefault((model["name"], model["method"]), []).append(one)  # a seed may have chosen another
    for (name, method), seeds in models.items():
        accuracy = mean_std([m["accuracy"] for m in seeds])
        ratios = [m["of"]["weights"] / m["nonzero"] for m in seeds]
        speeds = [s for s in map(_speed, seeds) if s is not None]
        sizes = [m["file_bytes"] for m in seeds if m.get("file_bytes")]
        macs_ratios = [m["of"]["macs"] / m["macs"] for m in seeds]
        yield {
            "task": seeds[0]["task"],
            "name": name,
            "method": method,
            "accuracy": round(accuracy.mean, 12),  # one network in 2 and in 3 runs: one row, whatever the rounding
            "std": accuracy.std,
            "n": accuracy.n,
            "weights_ratio": mean_std(ratios).mean,
            "file_bytes": mean_std(sizes).mean if sizes else math.nan,
            "macs": mean_std([m["macs"] for m in seeds]).mean,
            "macs_ratio": mean_std(macs_ratios).mean,
            "weights_range": _ends(ratios),
            "bytes_range": _ends(sizes),
            "macs_range": _ends(macs_ratios),
            "latency_ratio": mean_std(speeds).mean if speeds else math.nan,
            "source": source,
            "profile": results[0]["profile"],
            "notebook": results[0]["notebook"],
            "origin": origin([results[m["run"]] for m in seeds]),
        }


def _ends(values: list[float]) -> tuple[float, float] | None:
    return (min(values), max(values)) if values else None


def _speed(model: dict) -> float | None:
    latency = model.get("latency") or []
    preferred = [x for x in latency if x["runtime"] == "onnxruntime" and x["batch"] == 1]
    return next((x["ratio"] for x in [*preferred, *latency]), None)


def _front(frame: "pd.DataFrame") -> list[bool]:
    models = frame[["task", "name", "accuracy", "file_bytes", "profile"]].to_dict("records")
    in_full = {(m["task"], m["name"]) for m in models if m["profile"] == "full"}
    # One lucky seed of a quick run must not beat the mean of the same model's full runs.
    counting = [m for m in models if m["profile"] == "full" or (m["task"], m["name"]) not in in_full]
    stored = [m for m in counting if not math.isnan(m["file_bytes"])]
    return [m in stored and not any(beats(other, m) for other in stored) for m in models]


def _bases() -> set[str]:
    results = [r for profile in ("quick", "full") for r in results_in(paths.RESULTS / profile)]
    return {m["base"] for r in results for m in r["models"] if m["base"]}


def _readme_task(task: str, rows: "pd.DataFrame") -> str:
    full = rows[rows["profile"] == "full"]
    shown = full if len(full) else rows
    lines = [
        f"**{task}**",
        "",
        "| model | method | test accuracy % | fewer weights | fewer MACs | file | source | run |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in shown.to_dict("records"):
        seeds = "" if row["n"] > 1 else " (n = 1)"
        size = _between(row["file_bytes"], row["bytes_range"], "{:,.0f}", " bytes")
        ratio = _between(row["weights_ratio"], row["weights_range"], "{:.3g}", "×")
        macs = _between(row["macs_ratio"], row["macs_range"], "{:.3g}", "×")
        accuracy = _accuracy(row["accuracy"], row["std"], row["n"]) + seeds
        source = f"here, {row['profile']}"
        cells = (row["name"], row["method"], accuracy, ratio, macs, size, source, row["origin"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines + _literature_lines(task))


def _between(mean: float, ends: tuple[float, float] | None, form: str, unit: str) -> str:
    """Return the mean, or both ends where seeds that chose differently would make it the mean of nothing."""
    if not ends:
        return "–"
    low, high = ends
    values = [mean] if high <= 1.05 * low else [low, high]
    return " to ".join(map(form.format, values)) + unit


def _literature_lines(task: str) -> list[str]:
    lines = []
    for row in literature_file():
        if row["task"] != task:
            continue
        weights = f"{row['weights_ratio']:g}×" if row.get("weights_ratio") else "–"
        file = f"÷ {row['file_ratio']:g}" if row.get("file_ratio") else "–"
        source = row["source"] if row["seen"] else f"{row['source']} (not verified)"
        accuracy = "–" if row.get("accuracy") is None else f"{100 * row['accuracy']:.2f}"
        if row.get("base_accuracy") and row.get("macs_ratio"):
            accuracy = f"{100 * row['base_accuracy']:.2f} → {accuracy}"
        macs = f"{row['macs_ratio']:.3g}×" if row.get("macs_ratio") else "–"
        lines.append(f"| {row['model']} | {row['method']} | {accuracy} | {weights} | {macs} | {file} | {source} | |")
    return lines


def _readme_provenance() -> str:
    results = [r for profile in ("quick", "full") for r in results_in(paths.RESULTS / profile)]
    latest = max(results, key=lambda r: r["provenance"]["started"])["provenance"]
    machines = sorted({machine_text(r["provenance"]["machine"]) for r in results})
    return (
        f"Measured on {'; '.join(machines)}, the latest on {latest['started'][:10]} with torch "
        f"{latest['torch']} and helpers {latest['helpers_version']}. Accuracies are of the last epoch, never "
        "of the best one; ± is the standard deviation over n seeds. “Fewer weights” counts weights, no "
        "biases; never compare it with a file's ratio (÷). “Run” names the commit (of older runs, which did not record "
        f"it, the notebook's source), the machine and torch's threads; {MIXED} marks seeds of several sources."
        + "".join(f"\n- *Erratum.* {line}" for line in errata())
    )
