"""How an answer is checked, and what is said of it."""

import pytest
import torch

from helpers import exercises
from helpers.exercises import Feedback, Wrong, checking


@pytest.fixture
def registry(monkeypatch):
    """Let a test register exercise 99.1 for itself."""
    monkeypatch.setattr(checking, "_CHECKS", {})
    return exercises.exercise("99.1")


def test_right(registry):
    registry(lambda answer: None)
    assert exercises.check("99.1", 1) == Feedback("99.1", True, "")
    assert repr(exercises.check("99.1", 1)).startswith("Exercise 99.1 — right.")


def test_wrong_shows_the_sentence_and_folds_the_hint(registry):
    @registry
    def _(answer):
        raise Wrong("Two is < three.", hint="Count <again>.")

    feedback = exercises.check("99.1", 2)
    assert repr(feedback) == "Exercise 99.1 — not yet. Two is < three.\nHint: Count <again>."
    html = feedback._repr_html_()
    assert "Two is &lt; three." in html
    assert "<details><summary>A hint</summary><p>Count &lt;again&gt;.</p></details>" in html


@pytest.mark.parametrize("error", [ValueError("bad\nline two"), KeyError("x"), AssertionError(), ZeroDivisionError()])
def test_an_answer_that_raises_is_reported_in_one_sentence(registry, error):
    @registry
    def _(answer):
        raise error

    feedback = exercises.check("99.1", None)
    assert not feedback.right
    assert type(error).__name__ in feedback.sentence
    assert "\n" not in feedback.sentence


def test_given_is_passed_on(registry):
    registry(lambda answer, measured: f"{answer} and {measured}")
    assert exercises.check("99.1", 1, measured=2).sentence == "1 and 2"


def test_the_random_state_is_left_alone(registry):
    registry(lambda answer: torch.manual_seed(7) and None)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    exercises.check("99.1", None)
    assert torch.equal(torch.rand(1), expected)


def test_ids_are_unique_and_known(registry):
    registry(lambda answer: None)
    with pytest.raises(ValueError, match="'99.1' is registered twice"):
        exercises.exercise("99.1")(lambda answer: None)
    with pytest.raises(ValueError, match="exercise_id='99.2' is unknown; allowed: 99.1"):
        exercises.check("99.2", None)


@pytest.mark.parametrize(
    "value, right, hint", [(50, True, ""), (200, True, ""), (49, False, "more"), (201, False, "less")]
)
def test_within_factor(registry, value, right, hint):
    @registry
    def _(guess):
        return exercises.within_factor(guess, 100, factor=2, unit="images", too_low="more", too_high="less")

    feedback = exercises.check("99.1", lambda: value)
    assert (feedback.right, feedback.hint) == (right, hint)
    assert feedback.sentence == f"You predicted {value} images; measured: 100."


@pytest.mark.parametrize("value", [None, "many", True, float("nan"), 0, -3])
def test_within_factor_wants_a_positive_number(value):
    with pytest.raises(Wrong, match="one positive number"):
        exercises.within_factor(lambda: value, 100, factor=2, unit="images", too_low="", too_high="")
