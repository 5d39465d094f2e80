"""Every recorded model, one row for each model and seed: what the board is made of.

A mean hides what single runs show. So seeds that chose another method, and networks of another size, get names of their
own here, and copies of one network that several notebooks measured are left out.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from helpers.core import paths
from helpers.evidence.reading import recorded
from helpers.evidence.records import Model, Result

if TYPE_CHECKING:
    import pandas as pd

OWN = "19"  # the notebook that shows the board does not stand on it
DESIGN_EFFECT = {"imdb": 1.5}  # of results that do not say how many independent reviews theirs are worth
SAME_SIZE = 1.1  # files whose sizes are further apart are not those of one network
DENSE = ("dense", "a thin dense net")  # techniques of networks that nothing was taken from


def runs(*, build: bool = True, damaged: list[str] | None = None) -> "pd.DataFrame":
    """Return every recorded model, one row for each model and seed: what the board is made of.

    Which results count, and `damaged`: see `evidence.recorded`. Of each model full ones replace quick ones. Columns:
    task, model (its name, and the notebook's number if another model has the same name, or the seeds if they chose
    differently), recipe (without the seeds), notebook, profile, source, seed, of_runs (how many runs of the notebook
    there are), method, technique, dense, accuracy, images (independent test images; NaN if unknown), weights, nonzero,
    macs, bytes (NaN without a file), latency (a list), base, of the base in the same run base_accuracy, base_weights,
    base_nonzero, base_bytes and base_macs (NaN if there is none), and provenance (of the run).
    """
    import pandas as pd

    rows = [row for found in on_board(build=build, damaged=damaged) for row in _rows(*found)]
    if not rows:
        return pd.DataFrame(columns=[*_EMPTY])
    frame = pd.DataFrame(rows)
    frame = _without_copies(frame)
    in_full = set(frame.loc[frame["profile"] == "full", ["task", "name"]].itertuples(index=False, name=None))
    is_full = frame["profile"] == "full"
    replaced = [(task, name) in in_full for task, name in zip(frame["task"], frame["name"], strict=True)]
    frame = frame[is_full | ~pd.Series(replaced, index=frame.index)]
    order = ["task", "model", "seed"]
    return frame.drop(columns="name").sort_values(order, ignore_index=True)


_EMPTY = (  # the columns of a table without rows
    *("task", "model", "recipe", "notebook", "profile", "source", "seed", "of_runs", "method", "technique", "dense"),
    *("accuracy", "images", "weights", "nonzero", "macs", "bytes", "latency", "base", "base_accuracy", "base_weights"),
    *("base_bytes", "base_macs", "provenance"),
)


def on_board(*, build: bool = True, damaged: list[str] | None = None) -> list[tuple[str, int, Result]]:
    """Return (source, how many runs of the notebook there are, result) of all that the board stands on."""
    return [
        (source, len(seeds), result)
        for source, seeds in recorded(build=build, damaged=damaged)
        for result in seeds
        if not result.notebook.startswith(OWN)
    ]


def _rows(source: str, of_runs: int, result: Result) -> list[dict[str, Any]]:
    by_name = {model.name: model for model in result.models}
    rows = []
    for model in result.models:
        base = by_name.get(model.base or "")
        what = technique(model, base, result.notebook)
        row: dict[str, Any] = {"task": model.task, "name": model.name, "model": model.name}
        row |= {key: getattr(result, key) for key in ("notebook", "profile", "seed", "provenance")}
        row |= {"source": source, "of_runs": of_runs, "method": model.method, "technique": what, "dense": what in DENSE}
        row |= {"images": _images(model, result.test_evaluations), "latency": model.latency, "base": model.base or ""}
        rows.append(row | _measured(model) | {f"base_{key}": value for key, value in _measured(base).items()})
    return rows


def _measured(model: Model | None) -> dict[str, float]:
    """Return accuracy, weights, kept weights, MACs and bytes of a model; NaN is what is not known."""
    if model is None:
        return dict.fromkeys(("accuracy", "weights", "nonzero", "macs", "bytes"), math.nan)
    found = {key: getattr(model, key) for key in ("accuracy", "weights", "nonzero", "macs")}
    return found | {"bytes": model.file_bytes or math.nan}


def _images(model: Model, evaluations: Sequence[Mapping[str, Any]]) -> float:
    """Return how many independent test images the accuracy is of, from the log: by name or else by the accuracy.

    Of reviews that come in groups, a film's, fewer are independent (`statistics.effective_size`).
    """
    same = [e for e in evaluations if abs(e["accuracy"] - model.accuracy) < 1e-12]
    named = [e for e in same if e["name"] == model.name]
    counts = {e.get("independent", e["count"] / DESIGN_EFFECT.get(model.task, 1.0)) for e in named or same}
    return counts.pop() if len(counts) == 1 else math.nan


def technique(model: Model, base: Model | None = None, notebook: str = "") -> str:
    """Return in a few words what was done to `base` to get `model`, both as `notebook` recorded them.

    Files of before name no techniques; those of the published ones stand in data/results/techniques.json.
    """
    known: Sequence[str] = model.techniques or ()
    if model.techniques is None:
        known = _techniques_of_before().get((notebook, model.name, model.method), ())
    return " + ".join(known) or ("other" if base else "dense")


def _techniques_of_before() -> dict[tuple[str, str, str], Sequence[str]]:
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
