"""What a results file holds: a run's models and claims. Anything else is refused."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from helpers.core import checks
from helpers.core.checks import as_float
from helpers.evidence.schema import (
    PROFILES,
    SCHEMA,
    TECHNIQUES,
    bound_text,
    checked_text,
    checked_whole,
    claim_holds,
    machine_text,
    number,
)


@dataclass(frozen=True)
class Claim:
    """What a notebook states about a measured value, and whether it holds.

    value: None where nothing finite was measured. side: "at_most" or "at_least", of the bound. holds: computed from
    value, bound and interval; None if the interval reaches to both sides of the bound. over_seeds: decided on the mean
    over the seeds. timing: measures time.
    """

    id: str
    text: str
    value: float | None
    side: str
    bound: float
    over_seeds: bool = False
    timing: bool = False
    interval: tuple[float, float] | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the value, or all of its interval, is within the bound; None if a part of the interval is."""
        return claim_holds(self.value, self.side, self.bound, self.interval)

    @property
    def bound_text(self) -> str:
        """The side and the bound, such as "at most 0.5"."""
        return bound_text(self.side, self.bound)

    @property
    def failure(self) -> str:
        """A line saying that it does not hold, with its id, the measured value and the bound."""
        return f"claim {self.id!r} does not hold: {number(self.value)}, claimed {self.bound_text}"

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Return the claim in a file's `record`; ValueError, LookupError or TypeError unless it is what one can be."""
        side = "at_most" if "at_most" in record else "at_least"
        value = None if record["value"] is None else checks.number("value", record["value"])
        low_high = tuple(checks.number("interval", end) for end in record.get("interval", ()))
        claim = cls(
            checked_text("id", record["id"]),
            checked_text("text", record["text"]),
            value,
            side,
            checks.number(side, record[side]),
            checks.choice("over_seeds", record["over_seeds"], (False, True)),
            checks.choice("timing", record.get("timing", False), (False, True)),
            (low_high[0], low_high[1]) if low_high else None,
        )
        checks.choice("holds", record["holds"], (False, True, None) if claim.interval else (False, True))
        if record["holds"] is not claim.holds:
            raise ValueError(f"claim {claim.id!r}: holds={record['holds']}, and measured is {claim.value}")
        return claim

    def record(self) -> dict[str, Any]:
        """Return the claim as JSON knows it."""
        record: dict[str, Any] = {"id": self.id, "text": self.text, "value": self.value, self.side: self.bound}
        if self.interval is not None:
            record["interval"] = list(self.interval)
        return record | {"holds": self.holds, "over_seeds": self.over_seeds, "timing": self.timing}


@dataclass(frozen=True)
class Model:
    """One model that was measured; `Run.model` says what each field means.

    techniques: None in files from before they were recorded. file: where its bytes lie, under build/ or data/. more:
    further fields.
    """

    name: str
    task: str
    method: str
    split: str
    accuracy: float
    base: str | None
    weights: int
    nonzero: int
    macs: int
    latency: list[dict[str, Any]]
    techniques: tuple[str, ...] | None = None
    file: str | None = None
    file_sha256: str | None = None
    file_bytes: int | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Return the model in a `record`; ValueError, LookupError or TypeError unless it is what one can be."""
        if re.search(r"[/\\]", checked_text("name", record["name"])):
            raise ValueError(f"name={record['name']!r}; allowed: a name without slashes")
        weights = checked_whole("weights", record["weights"])
        nonzero = checked_whole("nonzero", record["nonzero"])
        if nonzero > weights:
            raise ValueError(f"nonzero={nonzero}; allowed: at most weights={weights}")
        return cls(
            record["name"],
            checked_text("task", record["task"]),
            checked_text("method", record["method"]),
            checks.choice("split", record["split"], ("test", "validation")),
            checks.fraction("accuracy", as_float("accuracy", record["accuracy"]), upper_open=False),
            None if record["base"] is None else checked_text("base", record["base"]),
            weights,
            nonzero,
            checked_whole("macs", record["macs"]),
            [_latency(each) for each in record["latency"]],
            _techniques(record),
            _known("file", record, checked_text),
            _known("file_sha256", record, checked_text),
            _known("file_bytes", record, checked_whole),
            {key: value for key, value in record.items() if key == "more" or key not in cls.__dataclass_fields__},
        )

    def record(self) -> dict[str, Any]:
        """Return the model as JSON knows it; what is unknown is left out."""
        record: dict[str, Any] = {key: getattr(self, key) for key in ("name", "task", "method", "split", "accuracy")}
        if self.techniques is not None:
            record["techniques"] = list(self.techniques)
        record |= {key: getattr(self, key) for key in ("base", "weights", "nonzero", "macs", "latency")} | self.more
        files = {key: getattr(self, key) for key in ("file", "file_sha256", "file_bytes")}
        return record | {key: value for key, value in files.items() if value is not None}

    def beats(self, other: "Model") -> bool:
        """Return whether it is of the same task, no worse in accuracy and bytes, and better in one of them."""
        if self.file_bytes is None or other.file_bytes is None or self.task != other.task:
            return False
        if self.accuracy < other.accuracy or self.file_bytes > other.file_bytes:
            return False
        return self.accuracy > other.accuracy or self.file_bytes < other.file_bytes


@dataclass(frozen=True)
class Result:
    """One execution of a notebook: where it comes from, its models and claims, and what else it measured.

    schema: the version of the file's format (see `schema.SCHEMA`).
    """

    notebook: str
    profile: str
    seed: int
    provenance: dict[str, Any]
    models: list[Model]
    claims: list[Claim]
    test_evaluations: list[dict[str, Any]]
    measurements: dict[str, Any]
    timings: dict[str, Any]
    schema: int = SCHEMA

    @classmethod
    def of(cls, record: Any) -> Self:
        """Return what a file holds; ValueError, LookupError or TypeError unless its readers can rely on it."""
        if not re.fullmatch(r"\d\d_\w+", checked_text("notebook", record["notebook"])):
            raise ValueError(f"notebook={record['notebook']!r}")
        schema = checks.choice("schema", record.get("schema", 1), tuple(range(1, SCHEMA + 1)))
        _check_provenance(record["provenance"], schema)
        for evaluation in record["test_evaluations"]:
            _check_evaluation(evaluation)
        models = [Model.of(each) for each in record["models"]]
        if len({model.name for model in models}) < len(models):
            raise ValueError("a model stands there twice")
        for key in ("measurements", "timings"):
            record[key].keys()
        return cls(
            record["notebook"],
            checks.choice("profile", record["profile"], PROFILES),
            checked_whole("seed", record["seed"], at_least=0),
            record["provenance"],
            models,
            [Claim.of(each) for each in record["claims"]],
            record["test_evaluations"],
            record["measurements"],
            record["timings"],
            schema,
        )

    def record(self) -> dict[str, Any]:
        """Return the result as JSON knows it."""
        record: dict[str, Any] = {"schema": self.schema} if self.schema > 1 else {}
        record |= {key: getattr(self, key) for key in ("notebook", "profile", "seed", "provenance")}
        record |= {"models": [each.record() for each in self.models], "claims": [each.record() for each in self.claims]}
        return record | {key: getattr(self, key) for key in ("test_evaluations", "measurements", "timings")}

    @property
    def holds_times(self) -> bool:
        """Whether it measured time, which differs from one execution to the next."""
        return bool(self.timings) or any(c.timing for c in self.claims) or any(m.latency for m in self.models)

    def comparable(self) -> dict[str, Any]:
        """Return the record without what may differ between two runs of the same code: provenance and times."""
        record = {key: value for key, value in self.record().items() if key not in ("provenance", "timings")}
        record["models"] = [{k: v for k, v in model.items() if k != "latency"} for model in record["models"]]
        return record | {"claims": [claim.record() for claim in self.claims if not claim.timing]}


def _techniques(record: Mapping[str, Any]) -> tuple[str, ...] | None:
    if "techniques" not in record:
        return None
    return tuple(checks.choice("techniques", each, TECHNIQUES) for each in record["techniques"])


def _known(key: str, record: Mapping[str, Any], checked: Callable[[str, Any], Any]) -> Any:
    return None if record.get(key) is None else checked(key, record[key])


def _latency(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return one of `measure.latency_records`, checked; ValueError for nonsense."""
    if missing := [key for key in ("runtime", "batch", "ratio", "interval", "verdict") if key not in record]:
        raise ValueError(f"latency has a record without {missing[0]!r}; allowed: measure.latency_records")
    for key in ("runtime", "verdict"):
        checked_text(key, record[key])
    if len(record["interval"]) != 2:
        raise ValueError(f"interval={record['interval']!r}; allowed: two numbers")
    numbers = {"ratio": record["ratio"], "interval[0]": record["interval"][0], "interval[1]": record["interval"][1]}
    ratio, low, high = (checks.number(key, as_float(key, value), above=0) for key, value in numbers.items())
    if low > high:
        raise ValueError(f"interval={record['interval']!r}; allowed: the lower end first")
    return {**record, "batch": checked_whole("batch", record["batch"]), "ratio": ratio, "interval": [low, high]}


def _check_evaluation(record: Mapping[str, Any]) -> None:
    checked_text("name", record["name"])
    checks.fraction("accuracy", record["accuracy"], upper_open=False)
    checked_whole("count", record["count"])


def _check_provenance(provenance: Mapping[str, Any], schema: int) -> None:
    checks.number("seconds", provenance["seconds"], at_least=0)
    for key in ("started", "torch", "helpers_version"):
        checked_text(key, provenance[key])
    if provenance["source_sha256"] is not None:
        checked_text("source_sha256", provenance["source_sha256"])
    machine_text(provenance["machine"])
    if schema > 1:
        provenance["versions"].keys()
        for key in ("helpers_sha256", "commit"):
            if provenance[key] is not None:
                checked_text(key, provenance[key])
