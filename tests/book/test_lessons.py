"""Quizzes and plans: their form, what their numbers and right answers rest on, and how they are shown."""

import re
import tomllib

import pytest

from helpers import evidence
from helpers.book import lessons, pages
from helpers.core import paths
from helpers.course import chapters

NAMES = sorted(path.stem for path in lessons.FOLDER.glob("*.toml"))
RAW = {name: tomllib.loads((lessons.FOLDER / f"{name}.toml").read_text(encoding="utf-8")) for name in NAMES}


def test_each_published_chapter_has_a_lesson_and_each_lesson_a_chapter():
    assert [name for name in chapters.curriculum() if evidence.published(name)] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_quiz_has_five_questions_with_one_right_answer_each(name):
    questions = lessons.read(name)["quiz"]
    assert len(questions) == 5
    places = []
    for question in questions:
        right = [place for place, answer in enumerate(question["answer"]) if answer.get("right")]
        assert len(right) == 1 and 3 <= len(question["answer"]) <= 4
        assert all(answer["text"].strip() and len(answer["why"].split()) >= 5 for answer in question["answer"])
        texts = [answer["text"].strip() for answer in question["answer"]]
        assert len(set(texts)) == len(texts)
        places += right
    assert len(set(places)) > 1, "the right answer always stands in the same place"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_right_answer_rests_on_is_published_and_holds_in_every_seed(name):
    published = evidence.published(name)
    for question in lessons.read(name)["quiz"]:
        for claim in question["evidence"]:
            found = [each for result in published for each in result.claims if each.id == claim]
            assert len(found) == len(published), f"{claim} is not in every seed"
            assert all(each.holds for each in found), f"{claim} does not hold"


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_takes_90_minutes(name):
    lesson = lessons.read(name)
    assert sum(step["minutes"] for step in lesson["plan"]) == 90
    assert 5 <= len(lesson["plan"]) <= 8 and 3 <= len(lesson["question"]) <= 4
    assert lesson["difficulty"] in pages.LEVELS


def measured(text: str) -> list[str]:
    """Return the numbers of a text that look measured: percentages and points with a decimal."""
    return re.findall(r"\d+\.\d+ ?(?:%|points)", re.sub(r"\{[^}]*\}", "", text))


@pytest.mark.parametrize("name", NAMES)
def test_no_measured_number_is_typed(name):
    for question in RAW[name]["quiz"]:
        for text in (question["ask"], *(answer[part] for answer in question["answer"] for part in ("text", "why"))):
            assert measured(text) == []


def test_placeholders_are_means_of_the_published_seeds(monkeypatch):
    values = lessons.values("02_prune_weights")
    seeds = evidence.published("02_prune_weights")
    each = [claim.value for result in seeds for claim in result.claims if claim.id == "smaller-file"]
    assert len(each) == 3 and values["smaller-file"] == pytest.approx(sum(each) / 3)
    accuracies = [m.accuracy for result in seeds for m in result.models if m.name == "lenet5-sparse-110x"]
    assert values["models"]["lenet5-sparse-110x"].accuracy == pytest.approx(sum(accuracies) / 3)


@pytest.mark.parametrize("text", ["{no-such-claim:.1f}", "{models[nobody].accuracy}", "{", "{smaller-file:.1q}"])
def test_a_wrong_placeholder_is_named_with_its_file(text, tmp_path, monkeypatch):
    (tmp_path / "02_prune_weights.toml").write_text(f"difficulty = 1\nprepare = '{text}'\n", encoding="utf-8")
    monkeypatch.setattr(lessons, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="02_prune_weights.toml asks for"):
        lessons.read.__wrapped__("02_prune_weights")


def test_an_answer_opens_its_reason_and_says_whether_it_is_right():
    text = lessons._answer("quiz-02-1", {"text": "Half of `fc1`", "why": "As $p < 1$.", "right": True})
    assert '<details name="quiz-02-1" class="right">' in text and "<code>fc1</code>" in text
    assert "<strong>Right.</strong>" in text and '<span class="math">p &lt; 1</span>' in text
    assert 'class="wrong"' in lessons._answer("q", {"text": "No", "why": "It is not so."})


def test_html_of_a_line_has_no_blank_line_which_would_end_it_in_markdown():
    assert "\n" not in lessons.html_of("One.\n\nTwo with `code`.\n\n- three")
    assert lessons.html_of("- a\n- b", blocks=True).startswith("<ul>")


def test_a_chapter_without_a_lesson_has_no_level():
    assert lessons.difficulty("no_such_chapter") is None and not lessons.exists("no_such_chapter")
    assert paths.ROOT / "book" / "lessons" == lessons.FOLDER
