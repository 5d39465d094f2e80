"""What a notebook measured: record it, claim it, publish it, compare it.

A notebook calls `start`, records models and claims on the `Run` that it gets, and calls `Run.finish` last.
The outcome of a claim is computed from the measured value and a bound; nobody can state it. Results are JSON
files in build/results/<profile>/ ("build"); `publish` and `promote_quick` copy them to
data/results/<profile>/ ("data").
"""

import hashlib
import json
import math
import operator
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import helpers
from helpers import checks
from helpers.paths import DATA, RESULTS, ROOT, build_dir, text_sha256, write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from helpers.data import Split
    from helpers.training import Evaluation

__all__ = [
    "PROFILES",
    "ClaimError",
    "Run",
    "Summary",
    "comparable",
    "decided",
    "difference",
    "expected_seconds",
    "format_leaderboard",
    "leaderboard",
    "literature",
    "load",
    "mean_std",
    "measurements",
    "paired_interval",
    "promote_quick",
    "publish",
    "ranking",
    "read",
    "readme_table",
    "recorded",
    "say",
    "settings",
    "start",
    "timetable",
]

PROFILES = ("smoke", "quick", "full")
MIN_SEEDS = 3
MAX_FILE_BYTES = 6_000_000
MAX_FILES_BYTES = 30_000_000


class ClaimError(Exception):
    """At least one claim does not hold. The results were written before this was raised."""


# ---------------------------------------------------------------- a notebook's run


def settings(profile: str, *, smoke: dict, quick: dict, full: dict) -> SimpleNamespace:
    """Return the settings of `profile` as attributes; ValueError unless all profiles name the same ones."""
    tables = {"smoke": smoke, "quick": quick, "full": full}
    checks.choice("profile", profile, PROFILES)
    for name, table in tables.items():
        if table.keys() != smoke.keys():
            different = ", ".join(sorted(table.keys() ^ smoke.keys()))
            raise ValueError(f"{name} and smoke differ in {different}; allowed: the same names in each")
    return SimpleNamespace(**tables[profile])


def start(notebook: str, *, profile: str, seed: int, save: bool = True) -> "Run":
    """Start recording `notebook` (such as "02_prune_weights"); `save=False` writes no file.

    Raises ValueError for an unknown profile, a negative seed or a name that is not a notebook's.
    """
    return Run(notebook, profile=profile, seed=seed, save=save)


class Run:
    """The record of one execution of a notebook. Made by `start`; ended by `finish`."""

    def __init__(self, notebook: str, *, profile: str, seed: int, save: bool = True) -> None:
        if not re.fullmatch(r"\d\d_\w+", _text("notebook", notebook)):
            raise ValueError(f"notebook={notebook!r}; allowed: two digits, an underscore and a name")
        _whole("seed", seed, at_least=0)
        self.profile = checks.choice("profile", profile, PROFILES)
        self.notebook, self.seed, self.save = notebook, seed, save
        self._began, self._resumed = time.monotonic(), _resumed_seconds()
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._models: dict[str, dict] = {}
        self._claims: dict[str, dict] = {}
        self._tests: list[dict] = []
        self._measurements: dict[str, Any] = {}
        self._timings: dict[str, Any] = {}
        self._cells: dict[str, int] = {}

    def claim(
        self,
        id: str,
        text: str,
        value: float,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        over_seeds: bool = False,
        timing: bool = False,
    ) -> None:
        """State that `value` lies on the right side of exactly one bound; show and record whether it does.

        NaN and infinity never hold. `over_seeds` claims are recorded here and checked by `publish`, on the mean over
        the seeds. `timing` marks a value that differs from run to run. An id stands once in a notebook.
        """
        if (at_most is None) == (at_least is None):
            raise ValueError(f"claim {id!r}: at_most={at_most}, at_least={at_least}; allowed: exactly one of them")
        side, bound = ("at_most", at_most) if at_most is not None else ("at_least", at_least)
        limit = checks.number(f"claim {id!r}: {side}", _float(f"claim {id!r}: {side}", bound))
        measured = _float(f"claim {id!r}: value", value)
        record: dict[str, Any] = {"id": _text("id", id), "text": _text("text", text)}
        record |= {"value": measured if math.isfinite(measured) else None, side: bound}
        record |= {"holds": _holds(record["value"], side, limit), "over_seeds": over_seeds, "timing": timing}
        before = self._claims.get(id)
        self._unique(f"claim {id!r}", same=before is None or before["text"] == text)
        self._claims[id] = record
        say(_claim_line(record, self.profile))

    def test(self, name: str, model: "nn.Module", split: "Split") -> "Evaluation":
        """Evaluate `model` on the test `split` and log that it was done: the only way to touch test data.

        Raises ValueError for a split that is not marked as the test split (`is_test`).
        """
        from helpers.training import evaluate

        _text("name", name)
        if not getattr(split, "is_test", False):
            raise ValueError("split.is_test=False; allowed: the test split, such as that of data.mnist()")
        evaluation = evaluate(model, split)
        self._tests.append(
            {
                "name": name,
                "accuracy": float(evaluation.accuracy),
                "correct": int(evaluation.correct),
                "count": int(evaluation.count),
            }
        )
        return evaluation

    def model(
        self,
        name: str,
        *,
        task: str,
        method: str,
        accuracy: float,
        weights: int,
        nonzero: int,
        macs: int,
        split: str = "test",
        base: str | None = None,
        file: Path | None = None,
        latency: Iterable[Mapping[str, Any]] = (),
        **more: Any,
    ) -> None:
        """Record one model for the leaderboard.

        accuracy: a fraction. weights: those of its shape, without biases. nonzero: those that the stored
        model keeps, at least one and at most all. macs: at least one. split: "test" or "validation", what the accuracy
        is of. base: the name of the dense model that it is compared with. file: what `packing` wrote; it is copied
        under build/models/, and its hash and bytes recorded. latency: `measure.latency_records`. more: any further
        fields. Raises ValueError for a number that cannot be, a name with a slash and an empty file.
        """
        record: dict[str, Any] = {"name": name, "task": task, "method": method, "split": split}
        record |= {"accuracy": accuracy, "base": base}
        record |= {"weights": weights, "nonzero": nonzero, "macs": macs, "latency": list(latency)}
        if wrong := sorted({"file_bytes", "file_sha256"} & more.keys()):
            raise ValueError(f"{wrong[0]}={more[wrong[0]]!r}; allowed: file, of which bytes and hash are taken")
        record = _plain(_checked_model(record | more), f"model {name}")
        content = None if file is None else checks.not_empty("file", Path(file).read_bytes())
        self._unique(f"model {name!r}", same=True)
        if file is not None and content is not None:
            record |= self._keep_file(name, Path(file).suffix, content)
        self._models[name] = record

    def record(self, key: str, value: Any, *, timing: bool = False) -> None:
        """Keep any further measurement: numbers, texts, lists, dicts or a DataFrame (kept as a list of rows).

        `timing` marks what differs from one execution to the next. Raises ValueError for NaN and infinity.
        """
        (self._timings if timing else self._measurements)[key] = _plain(value, key)

    def scratch(self, name: str) -> Path:
        """Return a path for a resumable training's state, this notebook's, profile's and seed's own.

        Raises ValueError for a name that leads out of its folder.
        """
        if Path(_text("name", name)).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"name={name!r}; allowed: a name inside the run's own folder")
        path = build_dir() / "scratch" / self.profile / f"{self.notebook}.seed{self.seed}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self) -> None:
        """Write the results; then, in quick and full, raise ClaimError if a claim does not hold."""
        if self.save:
            write_atomically(_build_file(self.notebook, self.profile, self.seed), _dump(self._result()))
        broken = [c for c in self._claims.values() if not c["holds"] and not c["over_seeds"]]
        seconds = time.monotonic() - self._began
        say(f"{_closing(list(self._claims.values()), self.profile)} This run took {_duration(seconds)}.")
        if broken and self.profile != "smoke":
            raise ClaimError("; ".join(map(_failure, broken)))

    def _unique(self, what: str, *, same: bool) -> None:
        """Refuse a second `what`, except from a cell that is run again: readers change and repeat cells."""
        cell = _execution_count()
        if what in self._cells and (cell == self._cells[what] or not same):
            raise ValueError(f"{what} is there twice; allowed: once in a notebook")
        self._cells[what] = cell

    def _keep_file(self, name: str, suffix: str, content: bytes) -> dict[str, Any]:
        kept = f"models/{self.profile}/{self.notebook[:2]}-{name}.seed{self.seed}{suffix}"
        if self.save:
            write_atomically(build_dir() / kept, content)
        return {"file": kept, "file_sha256": _sha256(content), "file_bytes": len(content)}

    def _result(self) -> dict[str, Any]:
        result = {"notebook": self.notebook, "profile": self.profile, "seed": self.seed}
        result |= {"provenance": self._provenance(), "models": list(self._models.values())}
        result |= {"claims": list(self._claims.values()), "test_evaluations": self._tests}
        result |= {"measurements": self._measurements, "timings": self._timings}
        return _plain(result, self.notebook)

    def _provenance(self) -> dict[str, Any]:
        import torch

        from helpers.environment import machine
        from helpers.measure import peak_memory_mb

        source = ROOT / "notebooks" / "src" / f"{self.notebook}.py"
        return {
            "source_sha256": text_sha256(source) if source.exists() else None,
            "helpers_version": helpers.__version__,
            "torch": torch.__version__,
            "machine": machine(),
            "threads": torch.get_num_threads(),
            "started": self._started,
            "seconds": round(time.monotonic() - self._began + _resumed_seconds() - self._resumed, 1),
            "peak_memory_mb": round(peak_memory_mb()),
        }


def _resumed_seconds() -> float:
    """Return what this process did not have to train again: it belongs to the time that the results took."""
    training = sys.modules.get("helpers.training")  # absent: nothing was trained
    return training.resumed_seconds() if training else 0.0


def say(text: str) -> None:
    """Show Markdown: the way a notebook renders a sentence that was generated from results."""
    if "IPython" in sys.modules:
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is not None:
            display({"text/markdown": text, "text/plain": text}, raw=True)
            return
    print(text)


# ---------------------------------------------------------------- reading


def load(notebook: str, *, profile: str, seed: int = 0) -> dict[str, Any] | None:
    """Return a notebook's results: this machine's own (build) if there are any, else the published (data).

    Raises ValueError for an unknown profile, and for a file that is damaged.
    """
    checks.choice("profile", profile, PROFILES)
    for path in (_build_file(notebook, profile, seed), _data_file(notebook, profile, seed)):
        if path.exists():
            return read(path)
    return None


def read(path: Path) -> dict[str, Any]:
    """Return the results in a file that `Run.finish` wrote; ValueError, with what to do next, if it is damaged."""
    try:
        result = _checked_result(json.loads(path.read_bytes(), parse_constant=_refuse_constant))
        if path.name != f"{result['notebook']}.seed{result['seed']}.json":
            raise ValueError(f"it holds {result['notebook']}, seed {result['seed']}")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        advice = "restore it with git" if RESULTS in path.parents else "delete it, and run the notebook again"
        raise ValueError(f"{_shown(path)} is damaged ({type(error).__name__}: {error}); {advice}") from error
    return result


def measurements(notebook: str, key: str, *, profile: str = "full") -> dict[int, Any]:
    """Return what each run of `notebook` recorded as `key`, by seed; this machine's own (build) go first."""
    checks.choice("profile", profile, PROFILES)
    folders = (RESULTS / profile, build_dir() / "results" / profile)
    found = {result["seed"]: result["measurements"] for folder in folders for result in _read(folder, notebook)}
    return {seed: found[seed][key] for seed in sorted(found) if key in found[seed]}


def expected_seconds(notebook: str, profile: str) -> float | None:
    """Return how long `notebook` took for its published results, mean over seeds; None if unknown."""
    checks.choice("profile", profile, PROFILES)
    found = _read(RESULTS / profile, notebook)
    return mean_std([r["provenance"]["seconds"] for r in found]).mean if found else None


def timetable(notebook: str) -> str:
    """Return a sentence for a notebook's opening: how long each profile takes, from the published results."""
    quick, full = (expected_seconds(notebook, profile) for profile in ("quick", "full"))
    parts = [
        "*smoke* under half a minute",
        f"*quick* about {_duration(quick)}" if quick else "*quick* at most two minutes",
        f"*full* about {_duration(full)} for each seed" if full else "*full* not published yet",
    ]
    return f"**Time**: {', '.join(parts)}."


def comparable(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return `result` without what may differ between two runs of the same code: provenance and timings."""
    kept = {k: v for k, v in result.items() if k not in ("provenance", "timings")}
    kept["models"] = [{k: v for k, v in model.items() if k != "latency"} for model in result["models"]]
    kept["claims"] = [claim for claim in result["claims"] if not claim.get("timing")]
    return kept


def literature(task: str, *, model: str | None = None) -> "pd.DataFrame":
    """Return the reference results of `task`; `seen` is False where a row was not read in its own paper."""
    import pandas as pd

    rows = pd.DataFrame(_literature())
    checks.choice("task", task, sorted(set(rows["task"])))
    rows = rows[rows["task"] == task]
    if model is not None:
        checks.choice("model", model, sorted(set(rows["model"])))
        rows = rows[rows["model"] == model]
    return rows.dropna(axis="columns", how="all").reset_index(drop=True)


# ---------------------------------------------------------------- over seeds


class Summary(NamedTuple):
    """Mean, sample standard deviation (NaN for a single value) and number of values."""

    mean: float
    std: float
    n: int


def mean_std(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation (n - 1 in the denominator) and n of at least one value, all of them finite."""
    n = len(checks.not_empty("values", values))
    values = _finite("values", values)
    mean = math.fsum(values) / n
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else math.nan
    return Summary(mean, std, n)


def paired_interval(a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the t interval of the mean of a - b, paired by seed; "a beats b" needs one that excludes 0.

    Raises ValueError unless both hold the same number of values, at least two, all of them finite, and for a
    confidence outside (0, 1).
    """
    from scipy.stats import t

    if not checks.fraction("confidence", confidence):
        raise ValueError(f"confidence={confidence!r}; allowed: a fraction above 0")
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"a and b hold {len(a)} and {len(b)} values; allowed: equally many, at least two")
    mean, std, n = mean_std([x - y for x, y in zip(_finite("a", a), _finite("b", b), strict=True)])
    reach = float(t.ppf((1 + confidence) / 2, n - 1)) * std / math.sqrt(n)
    return mean - reach, mean + reach


def difference(accuracies: "pd.DataFrame", a: str, b: str) -> str:
    """Say by how many points column `a` leads column `b`, with the paired 95 % interval, and what that decides.

    `accuracies` are fractions, a row for each seed and a column for each method. Raises ValueError below two seeds, for
    NaN, and for a name that is no column.
    """
    for name, column in {"a": a, "b": b}.items():
        checks.choice(name, column, _unique_columns(accuracies))
    low, high = (100 * end for end in paired_interval(accuracies[a], accuracies[b]))
    verdict = "higher" if low > 0 else "lower" if high < 0 else "not to be told apart"
    mean = 100 * (accuracies[a] - accuracies[b]).mean()
    return f"{verdict} ({mean:+.2f} points, {low:.2f} to {high:.2f})"


def ranking(accuracies: "pd.DataFrame") -> "pd.DataFrame":
    """Return mean, spread and rank of each method (a column of `accuracies`; see `difference`), the highest mean first.

    One method beats another if the paired 95 % interval of their difference lies above 0. A new rank, its number one
    more than the methods above it, begins only where each method above beats each one from there on: any two that
    cannot be told apart share a rank. "beaten by" counts who beats a method, also within a rank. Raises ValueError
    below two seeds, for NaN, and unless each method has a name of its own.
    """
    import pandas as pd

    for name in checks.not_empty("accuracies", _unique_columns(accuracies)):
        _finite(f"accuracies[{name!r}]", accuracies[name])
    if len(accuracies) < 2:
        raise ValueError(f"accuracies has {len(accuracies)} row(s); allowed: at least two, one for each seed")
    ordered = list(accuracies.mean().sort_values(ascending=False).index)
    beaten_by = {b: {a for a in ordered if paired_interval(accuracies[a], accuracies[b])[0] > 0} for b in ordered}
    rows, rank = {}, 1
    for place, name in enumerate(ordered):
        if all(beaten_by[lower].issuperset(ordered[:place]) for lower in ordered[place:]):
            rank = place + 1
        values = 100 * accuracies[name]
        said = f"{values.mean():.2f} ± {values.std():.2f}"
        rows[name] = {"accuracy (%)": said, "rank": rank, "beaten by": len(beaten_by[name])}
    return pd.DataFrame.from_dict(rows, orient="index")


# ---------------------------------------------------------------- the leaderboard


def decided(claims: Sequence[Mapping[str, Any]]) -> tuple[Summary, bool | None]:
    """Return what the seeds' records of one claim measured, and whether it holds: None below three seeds.

    The mean is NaN, and the claim does not hold, where a seed measured nothing finite.
    """
    values = [claim["value"] for claim in checks.not_empty("claims", claims)]
    summary = Summary(math.nan, math.nan, len(values)) if None in values else mean_std(values)
    side = "at_most" if "at_most" in claims[-1] else "at_least"
    return summary, _holds(summary.mean, side, claims[-1][side]) if summary.n >= MIN_SEEDS else None


def recorded(*, build: bool = True, damaged: list[str] | None = None) -> list[tuple[str, list[dict]]]:
    """Return (source, its results, one per seed) for each notebook and profile (no smoke), quick ones first.

    The source is "data" (published) or, with `build`, "build" (this machine's own): the one with more seeds, of
    equally many this machine's own. The two are never mixed. Raises ValueError for a damaged file; where there is a
    list `damaged`, it gets that sentence instead, and the file is left out.
    """
    folders = {"build": build_dir() / "results"} if build else {}
    folders["data"] = RESULTS
    found: dict[tuple[str, str], tuple[str, list[dict]]] = {}
    for profile in ("quick", "full"):
        for source, folder in folders.items():
            of_notebook: dict[str, list[dict]] = {}
            for result in _read(folder / profile, damaged=damaged):
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
    do not count), source, profile, notebook.
    """
    import pandas as pd

    rows = [row for source, seeds in recorded(build=build, damaged=damaged) for row in _rows(seeds, source=source)]
    columns = ["task", "name", "method", "accuracy", "std", "n", "weights_ratio", "file_bytes", "macs"]
    columns += ["macs_ratio", "weights_range", "bytes_range", "macs_range", "latency_ratio", "front"]
    frame = pd.DataFrame(rows, columns=[*columns, "source", "profile", "notebook"])
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


# ---------------------------------------------------------------- publishing


def promote_quick(notebook: str) -> Path:
    """Copy this machine's quick results of seed 0 into data/results/quick and return the new file.

    Model files stay in build: only those of full runs are published. Raises FileNotFoundError if there are no
    such results, ClaimError if one of their claims does not hold.
    """
    path = _build_file(notebook, "quick", 0)
    if not path.exists():
        raise FileNotFoundError(f"{notebook} has no quick results of seed 0 in build; run it first")
    result = read(path)
    _require_claims([result])
    for model in result["models"]:
        model.pop("file", None)
    target = _data_file(notebook, "quick", 0)
    write_atomically(target, _dump(result))
    return target


def publish(notebook: str | None = None) -> list[str]:
    """Copy finished full runs from build into data, and return sentences that say what was published.

    All seeds of a notebook go together, or none does: a seed left out because its claim failed would be
    cherry-picking. A claim over seeds is checked on the mean over all published seeds, and "not yet decided"
    below three. Of seed 0, the model files on the notebook's own accuracy/bytes front go to data/models,
    except those above 6 MB. Raises ClaimError naming each claim that does not hold, ValueError for a file
    that changed since it was recorded or for more than 30 MB in all; then nothing of that notebook is
    published.
    """
    folder = build_dir() / "results" / "full"
    notebooks = [notebook] if notebook else sorted({r["notebook"] for r in _read(folder)})
    if not notebooks or not all(_read(folder, name) for name in notebooks):
        raise FileNotFoundError(f"{notebook or 'no notebook'} has no full results in build; run it first")
    return [line for name in notebooks for line in _publish_one(name, _read(folder, name))]


def _publish_one(notebook: str, new: list[dict]) -> list[str]:
    seeds = {r["seed"]: r for r in [*_read(RESULTS / "full", notebook), *new]}
    results = [seeds[seed] for seed in sorted(seeds)]
    _require_claims(new)
    over_seeds = dict.fromkeys(c["id"] for result in results for c in result["claims"] if c["over_seeds"])
    outcomes = [_over_seeds(id, results) for id in over_seeds]
    broken = [f"over seeds, {line}" for line, holds in outcomes if holds is False]
    if broken:
        raise ClaimError(f"{notebook}: " + "; ".join(broken))
    files = [file for result in new for file in _files_to_publish(result)]
    _require_room(files)
    for target, content in files:
        write_atomically(target, content)
    for result in new:
        write_atomically(_data_file(notebook, "full", result["seed"]), _dump(_published(result, files)))
    sources = {r["provenance"]["source_sha256"] for r in results}
    said = [f"{notebook}: published for n = {len(seeds)}, seeds: {', '.join(map(str, sorted(seeds)))}."]
    if len(sources) > 1:
        said.append(f"  Its seeds ran from {len(sources)} versions of the source; run the older ones again.")
    return said + [f"  {line}" for line, _ in outcomes]


def _over_seeds(id: str, results: list[dict]) -> tuple[str, bool | None]:
    claims = [claim for result in results for claim in result["claims"] if claim["id"] == id]
    (mean, std, n), holds = decided(claims)
    outcome = {True: "holds", False: "does not hold", None: f"not yet decided, needs {MIN_SEEDS} seeds"}[holds]
    spread = f" ± {_number(std)}" if n > 1 else ""
    measured = f"{_number(mean)}{spread} (n = {n})"
    return (
        f"{id}: {outcome}. {claims[-1]['text']} — measured {measured}, claimed {_bound(claims[-1])}.",
        holds,
    )


def _require_claims(results: list[dict]) -> None:
    broken = [
        f"{r['notebook']} seed {r['seed']}, {_failure(c)}"
        for r in results
        for c in r["claims"]
        if not c["holds"] and not c["over_seeds"]
    ]
    if broken:
        raise ClaimError("; ".join(broken))


def _files_to_publish(result: dict) -> list[tuple[Path, bytes]]:
    """Return (target, content) of the model files to publish: those on the front of a seed-0 result."""
    if result["seed"] != 0:
        return []
    stored = [m for m in result["models"] if m.get("file") and m["file_bytes"] <= MAX_FILE_BYTES]
    files = []
    for model in stored:
        if any(_beats(other, model) for other in stored):
            continue
        source = build_dir() / model["file"]
        content = source.read_bytes() if source.exists() else b""
        if _sha256(content) != model["file_sha256"]:
            raise ValueError(f"{model['file']} is not what {result['notebook']} recorded; run it again")
        files.append((DATA / "models" / source.name, content))
    return files


def _beats(a: dict, b: dict) -> bool:
    if a["task"] != b["task"] or a["accuracy"] < b["accuracy"] or a["file_bytes"] > b["file_bytes"]:
        return False
    return a["accuracy"] > b["accuracy"] or a["file_bytes"] < b["file_bytes"]


def _require_room(files: list[tuple[Path, bytes]]) -> None:
    replaced = {target for target, _ in files}
    kept = [p.stat().st_size for p in (DATA / "models").glob("*") if p not in replaced]
    total = sum(kept) + sum(len(content) for _, content in files)
    if total > MAX_FILES_BYTES:
        raise ValueError(f"data/models would hold {total:,} bytes; allowed: {MAX_FILES_BYTES:,}")


def _published(result: dict, files: list[tuple[Path, bytes]]) -> dict:
    names = {target.name for target, _ in files}
    for model in result["models"]:
        name = Path(model.pop("file", None) or "").name
        if name in names:
            model["file"] = f"models/{name}"
    return result


# ---------------------------------------------------------------- private: files and JSON


def _build_file(notebook: str, profile: str, seed: int) -> Path:
    return build_dir() / "results" / profile / f"{notebook}.seed{seed}.json"


def _data_file(notebook: str, profile: str, seed: int) -> Path:
    return RESULTS / profile / f"{notebook}.seed{seed}.json"


def _read(folder: Path, notebook: str = "*", damaged: list[str] | None = None) -> list[dict]:
    found = []
    for path in sorted(folder.glob(f"{notebook}.seed*.json")):
        try:
            found.append(read(path))
        except ValueError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
    return sorted(found, key=lambda r: (r["notebook"], r["seed"]))


def _literature() -> list[dict[str, Any]]:
    path = DATA / "literature.json"
    try:
        return json.loads(path.read_bytes())["rows"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{_shown(path)} is damaged ({error}); restore it with git") from error


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if ROOT in path.parents else str(path)


def _dump(result: dict) -> bytes:
    return (json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------- private: what a record may hold


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}={value!r}; allowed: a text")
    return value


def _float(name: str, value: Any) -> float:
    """Return a number of Python, NumPy or PyTorch, which may be NaN; ValueError for everything else."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name}={value!r} is not a number; allowed: a finite number") from None


def _whole(name: str, value: Any, *, at_least: int = 1) -> int:
    """Return a whole number of Python, NumPy or PyTorch; ValueError for everything else."""
    try:
        whole = operator.index(value)
    except TypeError:
        whole = at_least - 1
    if isinstance(value, bool) or whole < at_least:
        raise ValueError(f"{name}={value!r}; allowed: a whole number of at least {at_least}")
    return whole


def _finite(name: str, values: Iterable[Any]) -> list[float]:
    return [checks.number(f"{name}[{i}]", _float(f"{name}[{i}]", value)) for i, value in enumerate(values)]


def _unique_columns(frame: "pd.DataFrame") -> list[str]:
    if not frame.columns.is_unique:
        raise ValueError(f"accuracies has the columns {list(frame.columns)}; allowed: each name once")
    return list(frame.columns)


def _checked_model(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a model, its numbers as plain ones; ValueError, LookupError or TypeError for nonsense."""
    if re.search(r"[/\\]", _text("name", record["name"])):
        raise ValueError(f"name={record['name']!r}; allowed: a name without slashes")
    for key in ("task", "method"):
        _text(key, record[key])
    checks.choice("split", record["split"], ("test", "validation"))
    if record["base"] is not None:
        _text("base", record["base"])
    checked: dict[str, Any] = {key: _whole(key, record[key]) for key in ("weights", "nonzero", "macs")}
    if checked["nonzero"] > checked["weights"]:
        raise ValueError(f"nonzero={checked['nonzero']}; allowed: at most weights={checked['weights']}")
    accuracy = checks.fraction("accuracy", _float("accuracy", record["accuracy"]), upper_open=False)
    latency = [_checked_latency(each) for each in record["latency"]]
    if "file_bytes" in record:
        checked["file_bytes"] = _whole("file_bytes", record["file_bytes"])
    return {**record, **checked, "accuracy": accuracy, "latency": latency}


def _checked_latency(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return one of `measure.latency_records`, checked; ValueError for nonsense."""
    if missing := [key for key in ("runtime", "batch", "ratio", "interval", "verdict") if key not in record]:
        raise ValueError(f"latency has a record without {missing[0]!r}; allowed: measure.latency_records")
    for key in ("runtime", "verdict"):
        _text(key, record[key])
    if len(record["interval"]) != 2:
        raise ValueError(f"interval={record['interval']!r}; allowed: two numbers")
    numbers = {"ratio": record["ratio"], "interval[0]": record["interval"][0], "interval[1]": record["interval"][1]}
    ratio, low, high = (checks.number(key, _float(key, value), above=0) for key, value in numbers.items())
    if low > high:
        raise ValueError(f"interval={record['interval']!r}; allowed: the lower end first")
    return {**record, "batch": _whole("batch", record["batch"]), "ratio": ratio, "interval": [low, high]}


def _check_claim(record: Mapping[str, Any]) -> None:
    """Raise ValueError, LookupError or TypeError unless a claim's outcome is what its numbers say."""
    for key in ("id", "text"):
        _text(key, record[key])
    for key in ("holds", "over_seeds"):
        checks.choice(key, record[key], (False, True))
    side = "at_most" if "at_most" in record else "at_least"
    bound = checks.number(side, record[side])
    if record["value"] is not None:
        checks.number("value", record["value"])
    if record["holds"] is not _holds(record["value"], side, bound):
        raise ValueError(f"claim {record['id']!r}: holds={record['holds']}, and measured is {record['value']}")


def _check_evaluation(record: Mapping[str, Any]) -> None:
    _text("name", record["name"])
    checks.fraction("accuracy", record["accuracy"], upper_open=False)
    _whole("count", record["count"])


def _checked_result(result: Any) -> dict[str, Any]:
    """Return what a results file holds; ValueError, LookupError or TypeError unless its readers can rely on it."""
    if not re.fullmatch(r"\d\d_\w+", _text("notebook", result["notebook"])):
        raise ValueError(f"notebook={result['notebook']!r}")
    checks.choice("profile", result["profile"], PROFILES)
    _whole("seed", result["seed"], at_least=0)
    provenance = result["provenance"]
    checks.number("seconds", provenance["seconds"], at_least=0)
    for key in ("started", "torch", "helpers_version"):
        _text(key, provenance[key])
    if provenance["source_sha256"] is not None:
        _text("source_sha256", provenance["source_sha256"])
    _machine(provenance["machine"])
    for check, key in [(_check_claim, "claims"), (_check_evaluation, "test_evaluations")]:
        for record in result[key]:
            check(record)
    names = [_checked_model(model)["name"] for model in result["models"]]
    if len(set(names)) < len(names):
        raise ValueError("a model stands there twice")
    for key in ("measurements", "timings"):
        result[key].keys()
    return result


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word}; allowed: finite numbers")


def _plain(value: Any, where: str) -> Any:
    """Return `value` as what JSON knows; ValueError naming the field for NaN, infinity and unknown types."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}={value!r}; allowed: a finite number (JSON has no other)")
        return float(value)
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if hasattr(value, "to_dict"):  # a DataFrame
        return _plain(value.to_dict("records"), where)
    if hasattr(value, "tolist"):  # a scalar or array of numpy or torch
        return _plain(value.tolist(), where)
    raise ValueError(f"{where} is a {type(value).__name__}; allowed: numbers, texts, lists, dicts, tables")


def _execution_count() -> int:
    """Return the number of the notebook cell that is being run, -1 outside a notebook."""
    from IPython import get_ipython

    shell = get_ipython()
    return shell.execution_count if shell is not None else -1


# ---------------------------------------------------------------- private: words


def _holds(value: float | None, side: str, bound: float) -> bool:
    if value is None:
        return False
    return value <= bound if side == "at_most" else value >= bound  # both are False for NaN


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "not a finite number"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:,.4g}"


def _bound(claim: Mapping[str, Any]) -> str:
    side = "at_most" if "at_most" in claim else "at_least"
    return f"{side.replace('_', ' ')} {_number(claim[side])}"


def _claim_line(claim: Mapping[str, Any], profile: str) -> str:
    outcome = "Holds" if claim["holds"] else "Does not hold"
    if profile == "smoke":
        outcome = "Recorded only (smoke)"
    elif claim["over_seeds"]:
        outcome = "Recorded (decided over all seeds)"
    return f"**{outcome}:** {claim['text']} — measured {_number(claim['value'])}, claimed {_bound(claim)}."


def _failure(claim: Mapping[str, Any]) -> str:
    return f"claim {claim['id']!r} does not hold: {_number(claim['value'])}, claimed {_bound(claim)}"


def _closing(claims: list[dict], profile: str) -> str:
    checked = [claim for claim in claims if not claim["over_seeds"]]
    if profile == "smoke":
        return f"{len(claims)} claims recorded; smoke asserts none of them."
    return f"{sum(c['holds'] for c in checked)} of {len(checked)} claims hold."


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _accuracy(mean: float, std: float, n: int) -> str:
    if n < 2:
        return f"{100 * mean:.2f}"
    if std < 1e-12:  # a committed checkpoint, evaluated in each run: no spread was measured
        return f"{100 * mean:.2f} (one network)"
    return f"{100 * mean:.2f} ± {100 * std:.2f} (n = {n})"


# ---------------------------------------------------------------- private: the leaderboard's rows


def _rows(results: list[dict], *, source: str) -> Iterable[dict[str, Any]]:
    """Yield one row per model name and method of a notebook's results over its seeds."""
    models: dict[tuple[str, str], list[dict]] = {}
    for result in results:
        by_name = {model["name"]: model for model in result["models"]}
        for model in result["models"]:
            one = model | {"of": by_name.get(model["base"], model)}  # of the same seed
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
    return [m in stored and not any(_beats(other, m) for other in stored) for m in models]


# ---------------------------------------------------------------- private: the README's table


def _bases() -> set[str]:
    results = [r for profile in ("quick", "full") for r in _read(RESULTS / profile)]
    return {m["base"] for r in results for m in r["models"] if m["base"]}


def _readme_task(task: str, rows: "pd.DataFrame") -> str:
    full = rows[rows["profile"] == "full"]
    shown = full if len(full) else rows
    lines = [f"**{task}**", "", "| model | method | test accuracy % | fewer weights | fewer MACs | file | source |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in shown.to_dict("records"):
        seeds = "" if row["n"] > 1 else " (n = 1)"
        size = _between(row["file_bytes"], row["bytes_range"], "{:,.0f}", " bytes")
        ratio = _between(row["weights_ratio"], row["weights_range"], "{:.3g}", "×")
        macs = _between(row["macs_ratio"], row["macs_range"], "{:.3g}", "×")
        accuracy = _accuracy(row["accuracy"], row["std"], row["n"]) + seeds
        source = f"here, {row['profile']}"
        lines.append(f"| {row['name']} | {row['method']} | {accuracy} | {ratio} | {macs} | {size} | {source} |")
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
    for row in _literature():
        if row["task"] != task:
            continue
        weights = f"{row['weights_ratio']:g}×" if row.get("weights_ratio") else "–"
        file = f"÷ {row['file_ratio']:g}" if row.get("file_ratio") else "–"
        source = row["source"] if row["seen"] else f"{row['source']} (not verified)"
        accuracy = "–" if row.get("accuracy") is None else f"{100 * row['accuracy']:.2f}"
        if row.get("base_accuracy") and row.get("macs_ratio"):
            accuracy = f"{100 * row['base_accuracy']:.2f} → {accuracy}"
        macs = f"{row['macs_ratio']:.3g}×" if row.get("macs_ratio") else "–"
        lines.append(f"| {row['model']} | {row['method']} | {accuracy} | {weights} | {macs} | {file} | {source} |")
    return lines


def _readme_provenance() -> str:
    results = [r for profile in ("quick", "full") for r in _read(RESULTS / profile)]
    latest = max(results, key=lambda r: r["provenance"]["started"])["provenance"]
    machines = sorted({_machine(r["provenance"]["machine"]) for r in results})
    return (
        f"Measured on {'; '.join(machines)}, the latest on {latest['started'][:10]} with torch "
        f"{latest['torch']} and helpers {latest['helpers_version']}. Accuracies are of the last epoch, never "
        "of the best one; ± is the standard deviation over n seeds. “Fewer weights” counts weights, no "
        "biases; never compare it with a file's ratio (÷)."
    )


def _machine(machine: Any) -> str:
    if not isinstance(machine, Mapping):
        return str(machine)
    return f"{machine['cpu']} ({machine['cores']} core{'s' if machine['cores'] != 1 else ''})"
