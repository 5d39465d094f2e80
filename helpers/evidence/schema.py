"""What the records of a results file are made of: their version, numbers and texts."""

import json
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


def checked_text(name: str, value: Any) -> str:
    """Return `value` if it is a text of more than white space; raise ValueError otherwise."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}={value!r}; allowed: a text")
    return value


def checked_whole(name: str, value: Any, *, at_least: int = 1) -> int:
    """Return a whole number of Python, NumPy or PyTorch; ValueError for everything else."""
    try:
        number = operator.index(value)
    except TypeError:
        number = at_least - 1
    if isinstance(value, bool) or number < at_least:
        raise ValueError(f"{name}={value!r}; allowed: a whole number of at least {at_least}")
    return number


def refuse_constant(word: str) -> float:
    """Raise ValueError for NaN, Infinity or -Infinity: `json.loads` calls this when it meets one."""
    raise ValueError(f"{word}; allowed: finite numbers")


def as_json(value: Any, where: str) -> Any:
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
        return {str(k): as_json(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if hasattr(value, "to_dict"):  # a DataFrame
        return as_json(value.to_dict("records"), where)
    if hasattr(value, "tolist"):  # a scalar or array of numpy or torch
        return as_json(value.tolist(), where)
    raise ValueError(f"{where} is a {type(value).__name__}; allowed: numbers, texts, lists, dicts, tables")


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


def bound_text(side: str, bound: float) -> str:
    """Return the side and the bound of a claim as text, such as "at most 0.5"."""
    return f"{side.replace('_', ' ')} {number(bound)}"


def machine_text(machine: Any) -> str:
    """Return a machine's CPU and cores as text, or `str` of what is no mapping; KeyError if one is missing."""
    if not isinstance(machine, Mapping):
        return str(machine)
    return f"{machine['cpu']} ({machine['cores']} core{'s' if machine['cores'] != 1 else ''})"
