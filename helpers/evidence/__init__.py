"""What a notebook measured: runs and claims, publishing, comparing, the board."""

from helpers.evidence.comparison import (
    GOALS,
    board,
    bought,
    claims_over_seeds,
    dominated_by,
    first_to_try,
    front,
    latencies,
    lead,
    ranked,
    runs,
    technique,
)
from helpers.evidence.publishing import decided, promote_quick, publish
from helpers.evidence.reading import (
    comparable,
    expected_seconds,
    literature,
    load,
    measurements,
    read,
    settings,
    timetable,
)
from helpers.evidence.recording import Run, say, start
from helpers.evidence.schema import PROFILES, ClaimError
from helpers.evidence.tables import format_leaderboard, leaderboard, readme_table, recorded

__all__ = [
    "GOALS",
    "PROFILES",
    "ClaimError",
    "Run",
    "board",
    "bought",
    "claims_over_seeds",
    "comparable",
    "decided",
    "dominated_by",
    "expected_seconds",
    "first_to_try",
    "format_leaderboard",
    "front",
    "latencies",
    "lead",
    "leaderboard",
    "literature",
    "load",
    "measurements",
    "promote_quick",
    "publish",
    "ranked",
    "read",
    "readme_table",
    "recorded",
    "runs",
    "say",
    "settings",
    "start",
    "technique",
    "timetable",
]
