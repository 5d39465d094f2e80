"""Where a number comes from, in a few words; and what is known to be wrong with published ones."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from helpers.core import paths
from helpers.evidence.schema import machine_text

MIXED = "‡"  # marks a row whose seeds are not of one source


def origin(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return commit, machine and threads of runs by their provenances, and a mark if they are of several sources."""
    parts = [
        ", ".join(dict.fromkeys(map(_code, runs))),
        ", ".join(dict.fromkeys(machine_text(each["machine"]) for each in runs)),
        _threads([each.get("threads", "?") for each in runs]),
    ]
    return "; ".join(parts) + f" {MIXED}" * (not is_of_one_source(runs))


def _threads(counts: Sequence[Any]) -> str:
    each = dict.fromkeys(map(str, counts))
    return f"{', '.join(each)} thread{'s' * ([*each] != ['1'])}"


def is_of_one_source(runs: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether provenances share the notebook's source and, as far as they name them, the helpers."""
    return all(len({each.get(key) for each in runs}) < 2 for key in ("source_sha256", "helpers_sha256"))


def _code(provenance: Mapping[str, Any]) -> str:
    """Return the commit or, of runs from before it was recorded, the beginning of the source's SHA-256."""
    if provenance.get("commit"):
        return provenance["commit"][:8] + "+" * provenance["commit"].endswith("+")
    return f"source {(provenance['source_sha256'] or 'unknown')[:8]}"


def errata(notebook: str = "", claim: str = "") -> list[str]:
    """Return what is known to be wrong in published results, of one notebook or of one of its claims if named.

    Nobody edits a results file; what is wrong in one is said in data/results/errata.json. Raises ValueError if that is
    damaged.
    """
    path = paths.RESULTS / "errata.json"
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_bytes())["errata"]
        found = [(row["notebook"], row.get("claim", ""), row["wrong"]) for row in rows]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path.name} is damaged ({error}); restore it with git") from error
    return [
        wrong if claim else f"{where}{f', claim {of}' if of else ''}: {wrong}"
        for where, of, wrong in found
        if where == (notebook or where) and of == (claim or of)
    ]
