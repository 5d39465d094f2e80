"""Each tool in its own environment, one after another, and one record for each."""

from __future__ import annotations

import json
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helpers.core import paths, system
from helpers.tools import environments
from helpers.tools.catalogue import TOOLS
from helpers.tools.environments import ToolError

LONGEST = 900  # seconds for a tool and a network
LONGEST_START = 120
STARTS = 3
SHAPES = {"lenet5": "1,1,28,28", "imdb_lstm": "1,400", "imdb_bag": "1,400"}


def record(name: str, networks: tuple[str, ...] = ()) -> dict[str, Any]:
    """Install a tool, measure it on its networks, and return the record; a tool that fails is a record that says so."""
    tool = TOOLS[name]
    found: dict[str, Any] = {
        "tool": name,
        "title": tool.title,
        "requirements": list(tool.requirements),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": system.commit(paths.ROOT),
        "machine": system.machine(),
        "versions": system.versions(),
        "networks": {},
    }
    try:
        found["install_seconds"] = environments.install(name)
        found["brought"] = environments.brought(name)
    except ToolError as error:
        return found | {"failed": str(error)}
    for network in networks or tool.networks:
        found["networks"][network] = _measured(name, network)
    return found


def _measured(name: str, network: str) -> dict[str, Any]:
    folder = environments.folder(name) / network
    (folder / "found.json").unlink(missing_ok=True)
    failed = ""
    try:
        environments.call(name, "helpers.tools.measuring", name, network, str(folder), timeout=LONGEST)
    except ToolError as error:
        failed = str(error)
    if not (folder / "found.json").exists():
        return {"failed": failed or "nothing was reported"}
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    if failed:
        found["failed"] = f"{failed} (at {found.get('running', 'the start')})"
    found.pop("running", None)
    for variant, row in found["variants"].items():
        if "file" in row:
            row["start"] = _start(name, variant, folder / row.pop("file"), SHAPES.get(network, "1,3,32,32"))
    return found


def _start(name: str, variant: str, file: Path, shape: str) -> dict[str, Any]:
    """Return the median seconds and memory of programs that open a file and answer once."""
    try:
        arguments = (name, variant, str(file), shape)
        said = [
            json.loads(
                environments.call(name, "helpers.tools.starting", *arguments, timeout=LONGEST_START).splitlines()[-1]
            )
            for _ in range(STARTS)
        ]
    except ToolError as error:
        return {"failed": str(error)}
    middle = {key: statistics.median(each[key] for each in said) for key in ("seconds", "peak_memory_mb")}
    return middle | {"torch": said[0]["torch"]}


def summary(found: dict[str, Any]) -> str:
    """Return in a sentence what became of a tool."""
    if "failed" in found:
        return f"Not installed: {found['failed']}."
    each = [row for network in found["networks"].values() for row in network.get("variants", {}).values()]
    return f"{sum('failed' not in row for row in each)} of {len(each)} conversions answer."


def write(found: dict[str, Any], folder: Path) -> Path:
    """Write a record as FOLDER/tool.json; return its path."""
    path = folder / f"{found['tool']}.json"
    paths.write_atomically(path, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    return path
