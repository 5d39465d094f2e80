"""What a notebook measured: runs and claims, publishing, comparing, the board."""

from helpers.evidence.board import (
    GOALS,
    board,
    bought,
    dominated_by,
    first_to_try,
    front,
    latencies,
    lead,
    ranked,
)
from helpers.evidence.claims import claims_over_seeds, decided
from helpers.evidence.conclusions import Comparison, claimed, conclude
from helpers.evidence.publishing import promote_quick, publish
from helpers.evidence.reading import (
    literature,
    load,
    measurements,
    published,
    read,
    recorded,
    settings,
)
from helpers.evidence.recording import Run, say, start
from helpers.evidence.records import Claim, Model, Result
from helpers.evidence.runs import runs, technique
from helpers.evidence.schema import PROFILES, ClaimError
from helpers.evidence.tables import format_leaderboard, leaderboard, results_tables
from helpers.evidence.timetables import expected_seconds, reading_minutes, run_with, timetable

__all__ = [
    "GOALS",
    "PROFILES",
    "Claim",
    "ClaimError",
    "Comparison",
    "Model",
    "Result",
    "Run",
    "board",
    "bought",
    "claimed",
    "claims_over_seeds",
    "conclude",
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
    "published",
    "ranked",
    "read",
    "reading_minutes",
    "results_tables",
    "recorded",
    "run_with",
    "runs",
    "say",
    "settings",
    "start",
    "technique",
    "timetable",
]
