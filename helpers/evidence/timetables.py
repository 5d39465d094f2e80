"""How long a notebook takes: to read, by its source, and to run, by the published results."""

import re

from helpers.core import checks, paths
from helpers.core.durations import duration
from helpers.evidence.reading import published, results_in
from helpers.evidence.schema import PROFILES
from helpers.statistics import mean_std

WORDS_PER_MINUTE = 200
LINES_PER_MINUTE = 10  # of code: each is looked up, and its output looked at
FOLDED = ("plumbing", "parameters")


def expected_seconds(notebook: str, profile: str) -> float | None:
    """Return how long `notebook` took for its published results, mean over seeds; None if unknown."""
    checks.choice("profile", profile, PROFILES)
    found = results_in(paths.RESULTS / profile, notebook)
    return mean_std([r.provenance["seconds"] for r in found]).mean if found else None


def timetable(notebook: str) -> str:
    """Return a sentence for a notebook's opening: how long reading takes, and each profile by the published results."""
    quick, full = (expected_seconds(notebook, profile) for profile in ("quick", "full"))
    minutes = reading_minutes(notebook)
    parts = [
        f"reading about {minutes:.0f} minutes" if minutes else "reading",
        "*smoke* under half a minute",
        f"*quick* about {duration(quick)}" if quick else "*quick* at most two minutes",
        f"*full* about {duration(full)} for each seed{_together(notebook)}" if full else "*full* not published yet",
    ]
    return f"**Time**: {', '.join(parts)}."


def run_with(notebook: str) -> str:
    """Return the name of the chapter that was one with `notebook` when its full results ran: the times are of both."""
    found = {r.provenance.get("together_with", "") for r in published(notebook)}
    return max(found, default="")


def _together(notebook: str) -> str:
    return f", together with notebook {other[:2]}" if (other := run_with(notebook)) else ""


def reading_minutes(notebook: str) -> float:
    """Return how many minutes it takes to read a notebook without its folded cells; 0 where its source is not here."""
    source = paths.NOTEBOOKS / "src" / f"{notebook}.py"
    if not source.exists():
        return 0.0
    _, *cells = re.split(r"(?m)^# %%", source.read_text(encoding="utf-8"))
    texts = [cell for cell in cells if cell.startswith(" [markdown]")]
    visible = [cell for cell in cells if cell not in texts and not _is_folded(cell)]
    words = sum(len(text.split()) for text in texts)
    lines = sum(bool(line.strip()) for cell in visible for line in cell.splitlines()[1:])
    return words / WORDS_PER_MINUTE + lines / LINES_PER_MINUTE


def _is_folded(cell: str) -> bool:
    head = cell.partition("\n")[0]
    return any(f'"{tag}"' in head for tag in FOLDED) or "### BEGIN SOLUTION" in cell
