"""Words and numbers without torch and torchtext, against torchtext and plain Python."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.core import vocabulary
from helpers.data import Split, text

WORDS = ["<unk>", "<pad>", "good", "film", "not", "not good"]


def test_numbers_are_places_and_the_rest_is_padding():
    found = vocabulary.encode([["good", "zebra", "film"], [], ["not"]], WORDS)
    assert found.dtype == np.int64
    assert found.tolist() == [[2, 0, 3], [1, 1, 1], [4, 1, 1]]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.sampled_from(["good", "bad", "film", "not"]), min_size=1, max_size=6), min_size=1))
def test_numbers_are_torchtexts(texts):
    field, label = text.fields()
    examples = text.examples(Split([" ".join(tokens) for tokens in texts], [0] * len(texts)), field, label)
    words = text.build_vocabulary(field, examples, max_size=2).itos
    numbers, _ = field.process([example.text for example in examples])
    assert np.array_equal(vocabulary.encode(texts, words), numbers.numpy())


def test_bigrams_are_words_of_their_own():
    tokens = vocabulary.with_bigrams(["not", "good", "film"])
    assert tokens == ["not", "good", "film", "not good", "good film"]
    assert vocabulary.encode([tokens], WORDS).tolist() == [[4, 2, 3, 5, 0]]
    assert vocabulary.with_bigrams([]) == [] and vocabulary.with_bigrams(["a"]) == ["a"]


@settings(deadline=None)
@given(st.lists(st.text(alphabet=st.characters(blacklist_characters="\n", blacklist_categories=["Cs"]))))
def test_words_come_back_from_lines(words):
    assert vocabulary.from_lines(vocabulary.lines(words)) == words


def test_words_come_back_from_a_file(tmp_path):
    words = ["a", "", " b\r", "\u2028", "é"]
    vocabulary.write_words(words, tmp_path / "words.txt")
    assert vocabulary.read_words(tmp_path / "words.txt") == words


def test_a_truncated_or_damaged_file_is_refused_or_holds_whole_words(tmp_path):
    path = tmp_path / "words.txt"
    words = [*WORDS, *(f"wörd{number}" for number in range(200))]
    vocabulary.write_words(words, path)
    content = path.read_bytes()
    for length in range(1, len(content), 97):
        path.write_bytes(content[:length])
        if content[length - 1 : length] == b"\n":
            assert vocabulary.read_words(path) == words[: content[:length].count(b"\n")]
            continue
        with pytest.raises(ValueError, match="words.txt' is damaged: content ends with .*; allowed: lines that end"):
            vocabulary.read_words(path)
    path.write_bytes(content.replace("ö".encode(), b"\xff"))
    with pytest.raises(ValueError, match="words.txt' is damaged: 'utf-8' codec"):
        vocabulary.read_words(path)
    path.write_bytes(b"")
    assert vocabulary.read_words(path) == []


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="texts is empty"):
        vocabulary.encode([], WORDS)
    with pytest.raises(ValueError, match=r"words begins with \['good', 'film'\]; allowed: \['<unk>', '<pad>'\]"):
        vocabulary.encode([["good"]], WORDS[2:])
    with pytest.raises(ValueError, match=r"words holds 'a\\nb'; allowed: words without line feeds"):
        vocabulary.write_words(["a\nb"], tmp_path / "words.txt")
    with pytest.raises(ValueError, match="words holds 3; allowed"):
        vocabulary.write_words(["a", 3], tmp_path / "words.txt")
    with pytest.raises(ValueError, match=r"words holds '\\ud800'; allowed: what UTF-8 can write"):
        vocabulary.write_words(["a", "b\ud800"], tmp_path / "words.txt")
    with pytest.raises(ValueError, match="texts holds no token; allowed: at least one"):
        vocabulary.encode([[], []], WORDS)
    with pytest.raises(ValueError, match="words holds 'film' twice; allowed: each word once"):
        vocabulary.encode([["film"]], [*WORDS, "film"])
    assert not (tmp_path / "words.txt").exists()


def test_it_works_without_torch_and_torchtext():
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchtext", "pandas"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from helpers.core import vocabulary
print(vocabulary.encode([vocabulary.tokenize("Good FILM")], ["<unk>", "<pad>", "film"]).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[[0, 2]]"
