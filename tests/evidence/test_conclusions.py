"""What a page says: the published seeds decide, whatever the own run says."""

import math

import numpy as np
import pytest
from scipy import stats

from helpers import evidence
from helpers.evidence import Comparison, conclusions
from tests.evidence.evidence_examples import finished

OTHER_WAY = "the other way: one seed of a short run. Believe the published ones."
CLEAR, NOISE = [4.0, 5.0, 6.0], [-3.0, 0.5, 4.0]


def said(capsys, *comparisons, **options):
    verdicts = evidence.conclude(*comparisons, **options)
    return verdicts, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("own", "published", "verdict", "ends"),
    [
        (2.33, CLEAR, "higher", "This run: +2.33 points, too."),
        (-1.0, CLEAR, "higher", f"This run: -1.00 points, {OTHER_WAY}"),
        (np.float64(2.33), CLEAR, "higher", "This run: +2.33 points, too."),
        (np.float32(-2.0), [-4.0, -5.0, -6.0], "lower", "This run: -2.00 points, too."),
        (0.0, CLEAR, "higher", OTHER_WAY.replace("the other way", "no difference")),
        (2.33, [-4.0, -5.0, -6.0], "lower", OTHER_WAY),
        (-2.0, [-4.0, -5.0, -6.0], "lower", "This run: -2.00 points, too."),
        (1.0, NOISE, "not to be told apart", "This run: +1.00 points, as one seed may say."),
        (99.0, NOISE, "not to be told apart", "This run: +99.00 points: one seed, which decides nothing."),
        (1.0, [2.0], "not decided", "one full run is published (+2.00). This run: +1.00 points, a hint and no more."),
        (1.0, [], "not decided", "no published run has measured it. This run: +1.00 points, a hint and no more."),
        (None, [], "not decided", "no published run has measured it."),
    ],
)  # fmt: skip
def test_the_published_seeds_decide(own, published, verdict, ends, capsys):
    verdicts, (line,) = said(capsys, Comparison("A against B", own, published))
    assert verdicts == [verdict]
    assert line.startswith(f"- A against B: **{verdict}**") and line.endswith(ends)


def test_the_interval_is_students(capsys):
    _, (line,) = said(capsys, Comparison("A against B", None, CLEAR), unit="%")
    low, high = stats.ttest_1samp(CLEAR, 0).confidence_interval(0.95)
    assert line == f"- A against B: **higher**, +5.00 % over 3 published seeds (95 %: {low:+.2f} to {high:+.2f})."


def test_several_are_decided_together(capsys):
    weak = [0.9, 1.0, 1.35]  # p = 0.016, below 0.05 alone and above 0.05 / 4
    p = stats.ttest_1samp(weak, 0).pvalue
    assert 0.0125 < p < 0.05
    alone, _ = said(capsys, Comparison("A", None, weak))
    together, lines = said(capsys, Comparison("A", None, weak), *(Comparison(name, None, NOISE) for name in "BCD"))
    assert alone == ["higher"] and together == ["not to be told apart"] * 4 and len(lines) == 4
    assert ["one of 4 may leave out 0 by chance" in line for line in lines] == [True, False, False, False]


@pytest.mark.parametrize(("p", "verdict"), [(0.05, "not to be told apart"), (math.nextafter(0.05, 0), "higher")])
def test_a_verdict_needs_a_p_value_below_a_twentieth(p, verdict, monkeypatch):
    monkeypatch.setattr(conclusions, "paired_p", lambda a, b: p)
    assert evidence.conclude(Comparison("A", None, CLEAR)) == [verdict]


def test_one_network_in_three_runs_proves_nothing(capsys):
    verdicts, (line,) = said(capsys, Comparison("A", 1.0, [1.0, 1.0, 1.0]))
    assert verdicts == ["not to be told apart"] and "by chance" not in line


@pytest.mark.parametrize("words", [("faster", "slower")])
def test_the_words_are_the_pages(words, capsys):
    verdicts, _ = said(capsys, Comparison("A", None, CLEAR), Comparison("B", None, [-v for v in CLEAR]), words=words)
    assert verdicts == ["faster", "slower"]


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="comparisons is empty"):
        evidence.conclude()
    with pytest.raises(ValueError, match="own=nan"):
        evidence.conclude(Comparison("A", math.nan, CLEAR))
    with pytest.raises(ValueError, match=r"a\[0\]=nan"):
        evidence.conclude(Comparison("A", 1.0, [math.nan, 1.0]))


def test_what_was_claimed_comes_from_the_published_full_runs():
    assert evidence.claimed("02_prune_weights", "loss") == []
    for seed in range(3):
        finished(seed=seed, claims=[("loss", seed / 10, 1, True)])
    finished(profile="quick", claims=[("loss", 0.9, 1, True)])
    assert evidence.claimed("02_prune_weights", "loss") == [], "published, not this machine's own"
    evidence.publish()
    assert evidence.claimed("02_prune_weights", "loss") == [0.0, 0.1, 0.2]
