"""What a page says was found: the published seeds decide, and the reader's own run stands beside them."""

from collections.abc import Sequence
from typing import NamedTuple

from helpers.core import checks
from helpers.core.checks import as_float
from helpers.evidence.reading import published
from helpers.evidence.recording import say
from helpers.statistics import holm, mean_std, paired_interval, paired_p


class Comparison(NamedTuple):
    """A difference between two ways: `what` says which, `own` is this run's, `published` those of the published seeds.

    All in one unit, such as points of accuracy. `own` is None where this run did not measure it.
    """

    what: str
    own: float | None
    published: Sequence[float]


def conclude(*comparisons: Comparison, unit: str = "points", words: tuple[str, str] = ("higher", "lower")) -> list[str]:
    """Show what was found, a line for each comparison, and return the verdicts.

    A verdict is the first of `words` if the mean difference over the published seeds is above 0 and the paired t-test
    tells it from 0, the second if it is below, and otherwise "not to be told apart"; with several comparisons, they are
    decided together (`holm`), and the line says where that undid a verdict. Below two published seeds it is "not
    decided". This run's own difference decides nothing, it is one seed; where it points the other way, the line says
    so. Raises ValueError without comparisons, and for numbers that are not finite.
    """
    checks.not_empty("comparisons", comparisons)
    several = [place for place, each in enumerate(comparisons) if len(each.published) > 1]
    p_values = [paired_p(comparisons[place].published, [0.0] * len(comparisons[place].published)) for place in several]
    decided = dict(zip(several, holm(p_values) if p_values else [], strict=True))
    verdicts = [_verdict(each, decided.get(place), words) for place, each in enumerate(comparisons)]
    lines = [_line(each, said, unit, words, len(several)) for each, said in zip(comparisons, verdicts, strict=True)]
    say("\n".join(lines))
    return verdicts


def claimed(notebook: str, claim: str) -> list[float]:
    """Return what the published full runs of a notebook measured for a claim, by seed, if it was finite."""
    found = [c.value for r in published(notebook) for c in r.claims if c.id == claim]
    return [value for value in found if value is not None]


def _verdict(each: Comparison, p: float | None, words: tuple[str, str]) -> str:
    if p is None:
        return "not decided"
    if p >= 0.05:
        return "not to be told apart"
    return words[0] if mean_std(each.published).mean > 0 else words[1]


def _line(each: Comparison, verdict: str, unit: str, words: tuple[str, str], together: int) -> str:
    n = len(each.published)
    if n < 2:
        runs = "no published run has measured it" if n == 0 else f"one full run is published ({each.published[0]:+.2f})"
        return f"- {each.what}: **{verdict}**; {runs}.{_own(each.own, unit, ', a hint and no more')}"
    mean = mean_std(each.published).mean
    low, high = paired_interval(each.published, [0.0] * n)
    is_undone = verdict not in words and low < high and not low <= 0 <= high
    alone = f"; one of {together} may leave out 0 by chance" if is_undone else ""
    found = f"{mean:+.2f} {unit} over {n} published seeds (95 %: {low:+.2f} to {high:+.2f}{alone})"
    return f"- {each.what}: **{verdict}**, {found}.{_own(each.own, unit, _beside(each.own, verdict, words, low, high))}"


def _own(own: float | None, unit: str, comment: str) -> str:
    return "" if own is None else f" This run: {checks.number('own', as_float('own', own)):+.2f} {unit}{comment}."


def _beside(own: float | None, verdict: str, words: tuple[str, str], low: float, high: float) -> str:
    if own is None:
        return ""
    if verdict in words:
        if own and bool(own > 0) == (verdict == words[0]):
            return ", too"
        way = "the other way" if own else "no difference"
        return f", {way}: one seed of a short run. Believe the published ones"
    return ", as one seed may say" if low <= own <= high else ": one seed, which decides nothing"
