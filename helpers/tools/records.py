"""The stored records: what each tool made of the course's networks, on one machine, on one day."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.core import checks, paths
from helpers.core.paths import build_dir

if TYPE_CHECKING:
    import pandas as pd

STORED = paths.TOOLS
NEEDED = ("tool", "title", "requirements", "date", "machine", "versions", "networks")


def read() -> dict[str, dict[str, Any]]:
    """Return the records by tool: the reader's own from build/, where there are any, else the stored ones.

    Raises ValueError for a record that is damaged.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder in (STORED, build_dir() / "tools"):
        found |= {path.stem: _read(path) for path in sorted(folder.glob("*.json"))}
    return dict(sorted(found.items()))


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
        missing = [key for key in NEEDED if key not in record]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path.name} is damaged ({error}); run python -m helpers tools {path.stem}") from None
    if missing:
        raise ValueError(f"{path.name} has no {missing[0]!r}; run python -m helpers tools {path.stem}")
    return record


def variants(records: Mapping[str, Mapping[str, Any]], *, network: str = "cifar_base") -> pd.DataFrame:
    """Return a row for each variant of each tool on one network; what is not known is NaN, and `problem` says why.

    Columns: tool, variant, accuracy (fraction), lost (points, against the dense network on the same
    examples), count (of them), bytes (of
    float32's), error (of the logits, relative to the largest), and, as times the speed of ONNX Runtime's int8, one
    column for each way of timing; start (seconds), memory (MB), problem.
    """
    import pandas as pd

    rows = []
    for name, record in checks.not_empty("records", records).items():
        found = record["networks"].get(network, {})
        whole = record.get("failed") or found.get("failed", "")
        if not found.get("variants"):
            rows.append({"tool": record["title"], "name": name, "variant": "", "problem": whole or "not tried"})
        for variant, row in found.get("variants", {}).items():
            rows.append({"tool": record["title"], "name": name, "variant": variant} | _row(found, variant, row))
    return pd.DataFrame(rows)


def _row(found: Mapping[str, Any], variant: str, row: Mapping[str, Any]) -> dict[str, Any]:
    if "failed" in row:
        return {"problem": row["failed"]}
    start = row.get("start", {})
    speeds = {way: verdicts.get(variant, {}).get("ratio") for way, verdicts in found.get("latency", {}).items()}
    return {
        "accuracy": row["accuracy"],
        "lost": row["lost"],
        "count": row["count"],
        "bytes": row["bytes"] / found["float32_bytes"],
        "error": row["logits_error"],
        **speeds,
        "start": start.get("seconds"),
        "memory": start.get("peak_memory_mb"),
        "problem": "in memory only" if row.get("in memory only") else start.get("failed", ""),
    }
