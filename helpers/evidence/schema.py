"""What a results file may hold; anything else is refused."""

import hashlib
import json
import math
import operator
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.core import checks
from helpers.core.checks import is_float

PROFILES = ("smoke", "quick", "full")
TECHNIQUES = (
    "filters removed",
    "weights pruned",
    "a smaller embedding",
    "a thin dense net",
    "fewer bits",
    "a teacher",
)
SCHEMA = 2  # of a results file; those of 1 name no schema, no commit, no helpers and no versions beside torch's


class ClaimError(Exception):
    """At least one claim does not hold. The results were written before this was raised."""


def dump(result: dict) -> bytes:
    """Return a result as JSON in UTF-8; ValueError for NaN and infinity, TypeError for a type JSON lacks."""
    return (json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def sha256(content: bytes) -> str:
    """Return the SHA-256 of `content` as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def is_text(name: str, value: Any) -> str:
    """Return `value` if it is a text of more than white space; raise ValueError otherwise."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}={value!r}; allowed: a text")
    return value


def is_whole(name: str, value: Any, *, at_least: int = 1) -> int:
    """Return a whole number of Python, NumPy or PyTorch; ValueError for everything else."""
    try:
        whole = operator.index(value)
    except TypeError:
        whole = at_least - 1
    if isinstance(value, bool) or whole < at_least:
        raise ValueError(f"{name}={value!r}; allowed: a whole number of at least {at_least}")
    return whole


def checked_model(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a model, its numbers as plain ones; ValueError, LookupError or TypeError for nonsense."""
    if re.search(r"[/\\]", is_text("name", record["name"])):
        raise ValueError(f"name={record['name']!r}; allowed: a name without slashes")
    for key in ("task", "method"):
        is_text(key, record[key])
    checks.choice("split", record["split"], ("test", "validation"))
    if record["base"] is not None:
        is_text("base", record["base"])
    for technique in record.get("techniques", ()):
        checks.choice("techniques", technique, TECHNIQUES)
    checked: dict[str, Any] = {key: is_whole(key, record[key]) for key in ("weights", "nonzero", "macs")}
    if checked["nonzero"] > checked["weights"]:
        raise ValueError(f"nonzero={checked['nonzero']}; allowed: at most weights={checked['weights']}")
    accuracy = checks.fraction("accuracy", is_float("accuracy", record["accuracy"]), upper_open=False)
    latency = [_checked_latency(each) for each in record["latency"]]
    if "file_bytes" in record:
        checked["file_bytes"] = is_whole("file_bytes", record["file_bytes"])
    return {**record, **checked, "accuracy": accuracy, "latency": latency}


def _checked_latency(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return one of `measure.latency_records`, checked; ValueError for nonsense."""
    if missing := [key for key in ("runtime", "batch", "ratio", "interval", "verdict") if key not in record]:
        raise ValueError(f"latency has a record without {missing[0]!r}; allowed: measure.latency_records")
    for key in ("runtime", "verdict"):
        is_text(key, record[key])
    if len(record["interval"]) != 2:
        raise ValueError(f"interval={record['interval']!r}; allowed: two numbers")
    numbers = {"ratio": record["ratio"], "interval[0]": record["interval"][0], "interval[1]": record["interval"][1]}
    ratio, low, high = (checks.number(key, is_float(key, value), above=0) for key, value in numbers.items())
    if low > high:
        raise ValueError(f"interval={record['interval']!r}; allowed: the lower end first")
    return {**record, "batch": is_whole("batch", record["batch"]), "ratio": ratio, "interval": [low, high]}


def _check_claim(record: Mapping[str, Any]) -> None:
    """Raise ValueError, LookupError or TypeError unless a claim's outcome is what its numbers say."""
    for key in ("id", "text"):
        is_text(key, record[key])
    checks.choice("over_seeds", record["over_seeds"], (False, True))
    checks.choice("holds", record["holds"], (False, True, None) if "interval" in record else (False, True))
    side = "at_most" if "at_most" in record else "at_least"
    bound = checks.number(side, record[side])
    if record["value"] is not None:
        checks.number("value", record["value"])
    if record["holds"] is not claim_holds(record["value"], side, bound, record.get("interval")):
        raise ValueError(f"claim {record['id']!r}: holds={record['holds']}, and measured is {record['value']}")


def _check_evaluation(record: Mapping[str, Any]) -> None:
    is_text("name", record["name"])
    checks.fraction("accuracy", record["accuracy"], upper_open=False)
    is_whole("count", record["count"])


def checked_result(result: Any) -> dict[str, Any]:
    """Return what a results file holds; ValueError, LookupError or TypeError unless its readers can rely on it."""
    if not re.fullmatch(r"\d\d_\w+", is_text("notebook", result["notebook"])):
        raise ValueError(f"notebook={result['notebook']!r}")
    checks.choice("schema", result.get("schema", 1), tuple(range(1, SCHEMA + 1)))
    checks.choice("profile", result["profile"], PROFILES)
    is_whole("seed", result["seed"], at_least=0)
    provenance = result["provenance"]
    checks.number("seconds", provenance["seconds"], at_least=0)
    for key in ("started", "torch", "helpers_version"):
        is_text(key, provenance[key])
    if provenance["source_sha256"] is not None:
        is_text("source_sha256", provenance["source_sha256"])
    machine_text(provenance["machine"])
    if result.get("schema", 1) > 1:
        provenance["versions"].keys()
        for key in ("helpers_sha256", "commit"):
            if provenance[key] is not None:
                is_text(key, provenance[key])
    for check, key in [(_check_claim, "claims"), (_check_evaluation, "test_evaluations")]:
        for record in result[key]:
            check(record)
    names = [checked_model(model)["name"] for model in result["models"]]
    if len(set(names)) < len(names):
        raise ValueError("a model stands there twice")
    for key in ("measurements", "timings"):
        result[key].keys()
    return result


def refuse_constant(word: str) -> float:
    """Raise ValueError for NaN, Infinity or -Infinity: `json.loads` calls this when it meets one."""
    raise ValueError(f"{word}; allowed: finite numbers")


def plain(value: Any, where: str) -> Any:
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
        return {str(k): plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if hasattr(value, "to_dict"):  # a DataFrame
        return plain(value.to_dict("records"), where)
    if hasattr(value, "tolist"):  # a scalar or array of numpy or torch
        return plain(value.tolist(), where)
    raise ValueError(f"{where} is a {type(value).__name__}; allowed: numbers, texts, lists, dicts, tables")


def execution_count() -> int:
    """Return the number of the notebook cell that is being run, -1 outside a notebook."""
    from IPython import get_ipython

    shell = get_ipython()
    return shell.execution_count if shell is not None else -1


def claim_holds(value: float | None, side: str, bound: float, interval: Sequence[float] | None = None) -> bool | None:
    """Return whether `value` is within `bound`, by `side` its upper or lower limit; None and NaN never are.

    With an interval: whether all of it is; None if a part of it is.
    """
    if value is None:
        return False
    if interval is not None:
        ends = {claim_holds(end, side, bound) for end in interval}
        return ends.pop() if len(ends) == 1 else None
    return value <= bound if side == "at_most" else value >= bound  # both are False for NaN


def number(value: float | None) -> str:
    """Return a number as text: whole below 1e15 in full, others to 4 digits; None, NaN and infinity in words."""
    if value is None or not math.isfinite(value):
        return "not a finite number"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:,.4g}"


def bound_text(claim: Mapping[str, Any]) -> str:
    """Return the side and the bound of a claim as text, such as "at most 0.5"."""
    side = "at_most" if "at_most" in claim else "at_least"
    return f"{side.replace('_', ' ')} {number(claim[side])}"


def failure(claim: Mapping[str, Any]) -> str:
    """Return a line saying that a claim does not hold, with its id, the measured value and the bound."""
    return f"claim {claim['id']!r} does not hold: {number(claim['value'])}, claimed {bound_text(claim)}"


def duration(seconds: float) -> str:
    """Return seconds as text: below 90 s in seconds (at least 1), below 90 min in minutes, else in hours."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def machine_text(machine: Any) -> str:
    """Return a machine's CPU and cores as text, or `str` of what is no mapping; KeyError if one is missing."""
    if not isinstance(machine, Mapping):
        return str(machine)
    return f"{machine['cpu']} ({machine['cores']} core{'s' if machine['cores'] != 1 else ''})"
