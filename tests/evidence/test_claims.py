"""What several seeds decide together."""

import json
import math

from helpers import evidence
from helpers.core import paths
from tests.evidence.evidence_examples import recorded_model


def test_what_is_wrong_with_a_claim_stands_beside_it_and_the_origin_beside_a_row(write):
    claim = {"id": "c", "text": "t", "value": 0.5, "at_most": 1, "holds": True, "over_seeds": True}
    for seed in range(3):
        write("02_a", [recorded_model("net", 0.9)], seed=seed, claims=[claim, claim | {"id": "d"}])
    row = {"notebook": "02_a", "claim": "c", "wrong": "a mean of two quantities"}
    paths.write_atomically(paths.RESULTS / "errata.json", json.dumps({"errata": [row]}).encode())
    found = evidence.claims_over_seeds().set_index("claim")["erratum"]
    assert found.to_dict() == {"c": "a mean of two quantities", "d": ""}
    (origin,) = evidence.board(evidence.runs(), "mnist")["origin"]
    assert "thread" in origin and not origin.endswith("‡")


def test_claims_below_three_seeds_are_undecided(write):
    claim = {"id": "c", "text": "t", "value": 0.5, "at_most": 1, "holds": True, "over_seeds": True}
    broken = claim | {"id": "d", "value": 2.0, "holds": False}
    for seed in range(3):
        unmeasured = claim | {"id": "f", "value": 0.5 if seed else None, "holds": seed > 0}
        least = {"id": "g", "text": "t", "value": seed / 2, "at_least": 0.5, "holds": seed > 0, "over_seeds": True}
        own = claim | {"id": "h", "over_seeds": False}
        claims = [claim, broken, *[claim | {"id": "e"}] * (seed == 0), unmeasured, least, own]
        write("02_a", [], seed=seed, claims=claims)
        write("02_a", [], seed=seed, claims=claims, profile="quick")
    found = evidence.claims_over_seeds().set_index("claim")
    outcomes = {"c": "holds", "d": "does not hold", "e": "undecided", "f": "does not hold", "g": "holds"}
    assert found["outcome"].to_dict() == outcomes
    assert found["n"].to_dict() == {"c": 3, "d": 3, "e": 1, "f": 3, "g": 3}
    assert found["bound"].to_dict() == dict.fromkeys("cdef", "at most 1") | {"g": "at least 0.5"}
    assert found["mean"].drop("f").to_dict() == {"c": 0.5, "d": 2.0, "e": 0.5, "g": 0.5}
    assert math.isnan(found.loc["f", "mean"])
