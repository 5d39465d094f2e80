"""What a notebook measured: record it and claim it.

A notebook calls `start`, records models and claims on the `Run` that it gets, and calls `Run.finish` last.
The outcome of a claim is computed from the measured value and a bound; nobody can state it. Results are JSON
files in build/results/<profile>/ ("build"); `publish` and `promote_quick` copy them to
data/results/<profile>/ ("data").
"""

import math
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import helpers
from helpers.core import checks, paths
from helpers.core.checks import as_float
from helpers.core.durations import duration
from helpers.core.paths import build_dir, sha256, text_sha256, write_atomically
from helpers.evidence.reading import build_file
from helpers.evidence.records import Claim, Model, Result
from helpers.evidence.schema import PROFILES, ClaimError, as_json, checked_text, checked_whole, dump, number
from helpers.statistics import effective_size

if TYPE_CHECKING:
    from torch import nn

    from helpers.data.splits import Split
    from helpers.training.evaluation import Evaluation


def start(notebook: str, *, profile: str, seed: int, save: bool = True) -> "Run":
    """Start recording `notebook` (such as "02_prune_weights"); `save=False` writes no file.

    Raises ValueError for an unknown profile, a negative seed or a name that is not a notebook's.
    """
    return Run(notebook, profile=profile, seed=seed, save=save)


class Run:
    """The record of one execution of a notebook. Made by `start`; ended by `finish`."""

    def __init__(self, notebook: str, *, profile: str, seed: int, save: bool = True) -> None:
        if not re.fullmatch(r"\d\d_\w+", checked_text("notebook", notebook)):
            raise ValueError(f"notebook={notebook!r}; allowed: two digits, an underscore and a name")
        checked_whole("seed", seed, at_least=0)
        self.profile = checks.choice("profile", profile, PROFILES)
        self.notebook, self.seed, self.save = notebook, seed, save
        self._began, self._resumed = time.monotonic(), _resumed_seconds()
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._models: dict[str, Model] = {}
        self._claims: dict[str, Claim] = {}
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
        interval: tuple[float, float] | None = None,
    ) -> None:
        """State that `value` lies on the right side of exactly one bound; show and record whether it does.

        With an `interval` around the value (of a ratio of times: `Verdict.cleared`) the claim holds if all of it is on
        that side, and is refuted if none of it is. Between the two it is undecided: this run does not tell, and that
        fails nobody. NaN and infinity never hold. `over_seeds` claims are recorded here and checked by `publish`, on
        the mean over the seeds. `timing` marks a value that differs from run to run. An id stands once in a notebook.
        """
        if (at_most is None) == (at_least is None):
            raise ValueError(f"claim {id!r}: at_most={at_most}, at_least={at_least}; allowed: exactly one of them")
        side, bound = ("at_most", at_most) if at_most is not None else ("at_least", at_least)
        where = f"claim {id!r}"
        measured = as_float(f"{where}: value", value)
        claim = Claim(
            checked_text("id", id),
            checked_text("text", text),
            measured if math.isfinite(measured) else None,
            side,
            checks.number(f"{where}: {side}", as_float(f"{where}: {side}", bound)),
            over_seeds,
            timing,
            None if interval is None else _around(where, measured, interval),
        )
        before = self._claims.get(id)
        self._unique(where, same=before is None or before.text == text)
        self._claims[id] = claim
        say(_claim_line(claim, self.profile))

    def test(self, name: str, model: "nn.Module", split: "Split") -> "Evaluation":
        """Evaluate `model` on the test `split` and log that it was done: the only way to touch test data.

        Of a split with groups it also logs how many independent answers these are worth (`statistics.effective_size`).
        Raises ValueError for a split that is not marked as the test split (`is_test`).
        """
        from helpers.training import compare_with_labels, predict
        from helpers.training.evaluation import check_split

        checked_text("name", name)
        if not getattr(split, "is_test", False):
            raise ValueError("split.is_test=False; allowed: the test split, such as that of data.mnist()")
        check_split("split", split)
        logits = predict(model, split.inputs)
        evaluation = compare_with_labels(logits, split.labels)
        logged: dict[str, Any] = {
            "name": name,
            "accuracy": float(evaluation.accuracy),
            "correct": int(evaluation.correct),
            "count": int(evaluation.count),
        }
        if split.groups is not None:
            right = logits.argmax(1) == split.labels
            logged["independent"] = effective_size(right.double().tolist(), split.groups)
        self._tests.append(logged)
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
        techniques: Sequence[str] = (),
        base: str | None = None,
        file: Path | None = None,
        latency: Iterable[Mapping[str, Any]] = (),
        **more: Any,
    ) -> None:
        """Record one model for the leaderboard.

        accuracy: a fraction. weights: those of its shape, without biases. nonzero: those that the stored model keeps,
        at least one and at most all. macs: at least one. split: "test" or "validation", what the accuracy is of.
        techniques: what was done to it, of `schema.TECHNIQUES`; nothing to a dense one. base: the name of the dense
        model that it is compared with. file: what `files` wrote; it is copied under build/models/, and its hash and
        bytes recorded. latency: `measure.latency_records`. more: any further fields. Raises ValueError for a number
        that cannot be, an unknown technique, a name with a slash and an empty file.
        """
        record: dict[str, Any] = {"name": name, "task": task, "method": method, "split": split}
        record |= {"accuracy": accuracy, "techniques": list(techniques), "base": base}
        record |= {"weights": weights, "nonzero": nonzero, "macs": macs, "latency": list(latency)}
        if wrong := sorted({"file_bytes", "file_sha256"} & more.keys()):
            raise ValueError(f"{wrong[0]}={more[wrong[0]]!r}; allowed: file, of which bytes and hash are taken")
        model = Model.of(as_json(Model.of(record | more).record(), f"model {name}"))
        content = None if file is None else checks.not_empty("file", Path(file).read_bytes())
        self._unique(f"model {name!r}", same=True)
        if file is not None and content is not None:
            model = replace(model, **self._keep_file(name, Path(file).suffix, content))
        self._models[name] = model

    def record(self, key: str, value: Any, *, timing: bool = False) -> None:
        """Keep any further measurement: numbers, texts, lists, dicts or a DataFrame (kept as a list of rows).

        `timing` marks what differs from one execution to the next. Raises ValueError for NaN and infinity.
        """
        (self._timings if timing else self._measurements)[key] = as_json(value, key)

    def scratch(self, name: str) -> Path:
        """Return a path for a resumable training's state, this notebook's, profile's and seed's own.

        Raises ValueError for a name that leads out of its folder.
        """
        if Path(checked_text("name", name)).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"name={name!r}; allowed: a name inside the run's own folder")
        path = build_dir() / "scratch" / self.profile / f"{self.notebook}.seed{self.seed}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self) -> None:
        """Write the results; then, in quick and full, raise ClaimError if a claim does not hold."""
        if self.save:
            write_atomically(build_file(self.notebook, self.profile, self.seed), dump(self._result().record()))
        broken = [c for c in self._claims.values() if c.holds is False and not c.over_seeds]
        seconds = time.monotonic() - self._began
        say(f"{_closing(list(self._claims.values()), self.profile)} This run took {duration(seconds)}.")
        if broken and self.profile != "smoke":
            raise ClaimError("; ".join(claim.failure for claim in broken))

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
        return {"file": kept, "file_sha256": sha256(content), "file_bytes": len(content)}

    def _result(self) -> Result:
        return Result(
            self.notebook,
            self.profile,
            self.seed,
            self._provenance(),
            list(self._models.values()),
            list(self._claims.values()),
            self._tests,
            self._measurements,
            self._timings,
        )

    def _provenance(self) -> dict[str, Any]:
        import torch

        from helpers.core import identity, system
        from helpers.measure import peak_memory_mb

        source = paths.ROOT / "notebooks" / "src" / f"{self.notebook}.py"
        return {
            "source_sha256": text_sha256(source) if source.exists() else None,
            "helpers_sha256": identity.of_notebook(source) if source.exists() else None,
            "commit": system.commit(paths.ROOT),
            "helpers_version": helpers.__version__,
            "torch": torch.__version__,
            "versions": system.versions(),
            "machine": system.machine(),
            "threads": torch.get_num_threads(),
            "started": self._started,
            "seconds": round(time.monotonic() - self._began + _resumed_seconds() - self._resumed, 1),
            "peak_memory_mb": round(peak_memory_mb()),
        }


def _resumed_seconds() -> float:
    """Return what this process did not have to train again: it belongs to the time that the results took."""
    resuming = sys.modules.get("helpers.training.resuming")  # absent: nothing was trained
    return resuming.resumed_seconds() if resuming else 0.0


def say(text: str) -> None:
    """Show Markdown: the way a notebook renders a sentence that was generated from results."""
    if "IPython" in sys.modules:
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is not None:
            display({"text/markdown": text, "text/plain": text}, raw=True)
            return
    print(text)


def _around(where: str, value: float, interval: tuple[float, float]) -> tuple[float, float]:
    low, high = (checks.number(f"{where}: interval", end) for end in interval)
    if not low <= value <= high:
        raise ValueError(f"{where}: interval={interval!r}; allowed: one that holds value={value!r}")
    return low, high


def _execution_count() -> int:
    """Return the number of the notebook cell that is being run, -1 outside a notebook."""
    from IPython import get_ipython

    shell = get_ipython()
    return shell.execution_count if shell is not None else -1


def _claim_line(claim: Claim, profile: str) -> str:
    outcome = {True: "Holds", False: "Does not hold", None: "Undecided, by its interval"}[claim.holds]
    if profile == "smoke":
        outcome = "Recorded only (smoke)"
    elif claim.over_seeds:
        outcome = "Recorded (decided over all seeds)"
    ends = f" ({' to '.join(map(number, claim.interval))})" if claim.interval else ""
    return f"**{outcome}:** {claim.text} — measured {number(claim.value)}{ends}, claimed {claim.bound_text}."


def _closing(claims: list[Claim], profile: str) -> str:
    checked = [claim for claim in claims if not claim.over_seeds]
    if profile == "smoke":
        return f"{len(claims)} claims recorded; smoke asserts none of them."
    open_ones = sum(claim.holds is None for claim in checked)
    undecided = f", {open_ones} undecided" if open_ones else ""
    return f"{sum(claim.holds is True for claim in checked)} of {len(checked)} claims hold{undecided}."
