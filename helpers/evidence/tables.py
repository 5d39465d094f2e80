"""The board as text: for the command line, and for the README beside the literature."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from helpers.core import paths
from helpers.evidence.board import board
from helpers.evidence.provenance import MIXED, errata
from helpers.evidence.reading import literature_file, recorded, results_in
from helpers.evidence.runs import runs
from helpers.evidence.schema import machine_text

if TYPE_CHECKING:
    import pandas as pd


HOW_TO_READ = (
    "Accuracies are of the last epoch, never of the best one; ± is the standard deviation over n seeds. Beside the "
    "dense networks and the models without a file, the recipes are shown that no other one beats in both test "
    "accuracy and bytes; being picked, they look a little better than they are (notebook 19 measures by how much). A "
    "row of n = 1 says nothing about its recipe's spread. “Fewer weights” counts weights, no biases; never compare it"
    " with a file's ratio (÷). “Run” names the commit (of older runs, which did not record it, the notebook's "
    f"source), the machine and torch's threads; {MIXED} marks seeds of several sources."
)


def leaderboard(*, build: bool = True, damaged: list[str] | None = None) -> "pd.DataFrame":
    """Return the `board` of every task in one table, with the columns task and own.

    Which results, and `damaged`: see `recorded`. `own` is a model's accuracy in this machine's quick run, NaN where
    there is none: the board itself shows full results where a model has some.
    """
    import pandas as pd

    found = runs(build=build, damaged=damaged)
    own = _own_quick() if build else {}
    boards = [board(found, task).assign(task=task) for task in sorted(set(found["task"]))]
    frame = pd.concat(boards, ignore_index=True) if boards else pd.DataFrame(columns=[*_SHOWN])
    names = zip(frame["task"], frame["recipe"], strict=True)
    return frame.assign(own=[own.get(name, math.nan) for name in names])


_SHOWN = ("task", "front_bytes", "model", "recipe", "method", "accuracy", "weights_ratio", "bytes", "macs", "speed")


def _own_quick() -> dict[tuple[str, str], float]:
    """Return the accuracies of this machine's quick results, by task and name."""
    found = [result for source, seeds in recorded(damaged=[]) if source == "build" for result in seeds]
    return {(m.task, m.name): m.accuracy for result in found if result.profile == "quick" for m in result.models}


def format_leaderboard(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return `leaderboard`'s table as texts, for a notebook or, by `to_string(index=False)`, a terminal.

    A star marks the Pareto front of accuracy and bytes.
    """
    import pandas as pd

    def each(column: str, form: str) -> list[str]:
        return ["–" if pd.isna(v) else form.format(v) for v in frame[column]]

    return pd.DataFrame(
        {
            "task": frame["task"],
            "": ["*" if on_front else "" for on_front in frame["front_bytes"]],
            "model": frame["model"],
            "method": frame["method"],
            "accuracy %": [_accuracy(row) for row in frame.to_dict("records")],
            "here, quick %": [own.removesuffix("%") for own in each("own", "{:.2%}")],
            "weights ÷": each("weights_ratio", "{:.3g}"),
            "file bytes": each("bytes", "{:,.0f}"),
            "MACs": each("macs", "{:,.0f}"),
            "speed ×": each("speed", "{:.2f}"),
            "from": [f"{row['source']}, {row['profile']}" for row in frame.to_dict("records")],
        }
    )


def results_tables() -> str:
    """Return the README's Markdown: each task's best published models beside the literature; data/ only."""
    frame = leaderboard(build=False)
    bases = set(frame["base"]) if len(frame) else set()
    without_file = frame["bytes"].isna()  # of another recipe, not of another size, such as a taught student
    good = frame[frame["front_bytes"] | without_file | frame["recipe"].isin(bases)]
    if good.empty:
        return "No results are published yet."
    shown = set(zip(good["task"], good["recipe"], strict=True))  # all seeds of a recipe, or none of them
    best = frame[[each in shown for each in zip(frame["task"], frame["recipe"], strict=True)]]
    tasks = [_readme_task(task, rows) for task, rows in best.groupby("task", sort=True)]
    return "\n\n".join([*tasks, _readme_provenance()])


def _accuracy(row: Mapping[str, Any]) -> str:
    """Return mean and spread in percent; one network that several runs measured has no spread."""
    mean = f"{100 * row['accuracy']:.2f}"
    if row["n"] < 2:
        return mean
    if row["networks"] < 2:
        return f"{mean} (one network)"
    return f"{mean} ± {100 * row['std']:.2f} (n = {row['n']})"


def _readme_task(task: str, rows: "pd.DataFrame") -> str:
    full = rows[rows["profile"] == "full"]
    shown = full if len(full) else rows
    head = ["model", "method", "test accuracy %", "fewer weights", "fewer MACs", "file", "source", "run"]
    lines = [f"**{task}**", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in shown.to_dict("records"):
        cells = [row["model"], row["method"], _accuracy(row) + ("" if row["n"] > 1 else " (n = 1)")]
        cells += [_between(row, "weights_ratio", "{:.3g}", "×"), _between(row, "macs_ratio", "{:.3g}", "×")]
        cells += [_between(row, "bytes", "{:,.0f}", " bytes"), f"here, {row['profile']}", row["origin"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines + _literature_lines(task))


def _between(row: Mapping[str, Any], key: str, form: str, unit: str) -> str:
    """Return the mean, or both ends where seeds that chose differently would make it the mean of nothing."""
    if math.isnan(row[key]):
        return "–"
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    values = [row[key]] if high <= 1.05 * low else [low, high]
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
    latest = max((result.provenance for result in results), key=lambda provenance: provenance["started"])
    machines = sorted({machine_text(result.provenance["machine"]) for result in results})
    return (
        f"Measured on {'; '.join(machines)}, the latest on {latest['started'][:10]} with torch {latest['torch']} and "
        f"helpers {latest['helpers_version']}. {HOW_TO_READ}" + "".join(f"\n- *Erratum.* {line}" for line in errata())
    )
