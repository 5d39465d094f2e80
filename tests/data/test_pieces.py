"""Pieces of words: the tokenizer, the course's numbers, windows."""

import pytest
import torch

from helpers.core.vocabulary import UNK
from helpers.data import Split, pieces

TEXTS = ["An unwatchable disaster.<br />Avoid!", "good " * 400 + "bad " * 400]


def test_unknown_and_padding_come_first():
    assert pieces.order(104)[:5] == [100, 0, 1, 2, 3]
    assert sorted(pieces.order(104)) == list(range(104))


@pytest.mark.data
def test_words_fall_into_known_pieces():
    found, _ = pieces.tokenize(TEXTS)
    assert found == ["[CLS]", "an", "un", "##watch", "##able", "disaster", ".", "avoid", "!", "[SEP]"]
    assert set(found) <= set(pieces.words())


@pytest.mark.data
def test_of_a_long_text_the_beginning_and_the_end_are_kept():
    _, found = pieces.tokenize(TEXTS, max_tokens=20, head=5)
    assert found == ["[CLS]", *["good"] * 4, *["bad"] * 14, "[SEP]"]
    whole = pieces.tokenize(TEXTS[:1], max_tokens=10, head=5)[0]
    assert len(whole) == 10 and whole == pieces.tokenize(TEXTS[:1])[0]


@pytest.mark.data
def test_a_split_keeps_labels_groups_and_test():
    split = Split(["film", "snow snow"], [0, 1], True, [7, 8])
    found = pieces.as_split(split, pieces.words())
    assert found.is_test and found.groups == [7, 8] and found.labels.tolist() == [0, 1]
    assert found.inputs.shape == (2, 4) and found.inputs[0, 3] == 1
    assert [pieces.words()[i] for i in found.inputs[1]] == ["[CLS]", "snow", "snow", "[SEP]"]


@pytest.mark.data
def test_what_the_tokenizer_does_not_know_is_unknown():
    (found,) = pieces.tokenize(["\N{SNOWMAN WITHOUT SNOW}"])
    assert found == ["[CLS]", "<unk>", "[SEP]"]
    numbers = pieces.as_split(Split(["film"], [1]), ["<unk>", "<pad>", "[CLS]"]).inputs
    assert numbers.tolist() == [[2, UNK, UNK]]


@pytest.mark.data
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_tokens": 2}, "max_tokens=2; allowed: at least 3"),
        ({"max_tokens": 10, "head": 10}, "head=10; allowed: from 1 to max_tokens - 1 = 9"),
        ({"head": 0}, "head=0"),
    ],
)
def test_bad_lengths_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        pieces.tokenize(["film"], **options)


def test_no_text_is_refused():
    with pytest.raises(ValueError, match="texts"):
        pieces.tokenize([])


def test_windows_follow_each_other_and_short_ends_are_left_out():
    words = [str(i) for i in range(139)]
    review = " ".join(words[:70]) + "<br />" + " ".join(words[70:])
    found = pieces.windows(review)
    assert [len(each.split()) for each in found] == [60, 60] and " ".join(found).split() == words[:120]
    assert pieces.windows(review + " 139")[-1].split() == [*words[120:], "139"]
    assert pieces.windows("too short") == []
    with pytest.raises(ValueError, match="size=0"):
        pieces.windows("a", size=0)


def test_the_teacher_is_asked_about_reviews_and_then_about_their_windows():
    reviews = ["a " * 60, "b " * 10, "c " * 130]
    assert pieces.asked(reviews) == [*reviews, *pieces.windows(reviews[0]), *pieces.windows(reviews[2])]
    assert len(pieces.asked(reviews)) == 3 + 1 + 2


@pytest.mark.data
def test_the_encoded_reviews_are_those_of_imdb(monkeypatch):
    few = {
        name: Split(["A film!", "No film."], [1, 0], name == "test", [1, 2]) for name in ("train", "validation", "test")
    }
    monkeypatch.setattr(pieces.splits, "imdb", lambda: tuple(few.values()))
    found = pieces.imdb()
    assert found.test.is_test and not found.train.is_test and len(found.words) == 30_522
    assert torch.equal(found.train.inputs, found.test.inputs)
