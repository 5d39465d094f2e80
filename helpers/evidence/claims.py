"""Claims over seeds: what the runs of a notebook decide together."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from helpers.core import checks
from helpers.evidence.provenance import errata
from helpers.evidence.records import Claim
from helpers.evidence.runs import on_board
from helpers.evidence.schema import claim_holds
from helpers.statistics import Summary, mean_std

if TYPE_CHECKING:
    import pandas as pd

MIN_SEEDS = 3


def decided(claims: Sequence[Claim]) -> tuple[Summary, bool | None]:
    """Return what the seeds' records of one claim measured, and whether it holds: None below three seeds.

    The mean is NaN, and the claim does not hold, where a seed measured nothing finite.
    """
    values = [claim.value for claim in checks.not_empty("claims", claims)]
    finite = [value for value in values if value is not None]
    summary = mean_std(finite) if len(finite) == len(values) else Summary(math.nan, math.nan, len(values))
    last = claims[-1]
    return summary, claim_holds(summary.mean, last.side, last.bound) if summary.n >= MIN_SEEDS else None


def claims_over_seeds(*, build: bool = True) -> "pd.DataFrame":
    """Return the notebooks' claims over seeds, from full results, one row each.

    Columns: notebook, claim, text, n, mean, varied (False where each run measured the same: one network, n times),
    bound, outcome ("holds" or "does not hold", by the mean, and below three seeds "undecided") and erratum (what is
    known to be wrong with the claim or its seeds, "" if nothing is).
    """
    import pandas as pd

    found: dict[tuple[str, str], list[Claim]] = {}
    for _, _, result in on_board(build=build):
        for claim in result.claims:
            if claim.over_seeds and result.profile == "full":
                found.setdefault((result.notebook, claim.id), []).append(claim)
    rows = []
    for (notebook, identity), claims in sorted(found.items()):
        (mean, std, n), holds = decided(claims)
        outcome = {True: "holds", False: "does not hold", None: "undecided"}[holds]
        row = {"notebook": notebook, "claim": identity, "text": claims[-1].text, "n": n, "mean": mean}
        row |= {"varied": std > 0, "bound": claims[-1].bound_text, "outcome": outcome}
        rows.append(row | {"erratum": " ".join(errata(notebook, identity))})
    return pd.DataFrame(
        rows, columns=["notebook", "claim", "text", "n", "mean", "varied", "bound", "outcome", "erratum"]
    )
