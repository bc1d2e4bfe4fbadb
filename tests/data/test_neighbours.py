"""Neighbours: which words are nearest, and what is read of a file of word vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stillhouse.core.errors import DataError
from stillhouse.core.types import Example
from stillhouse.data import neighbours
from stillhouse.data.augment import is_word, places
from stillhouse.data.neighbours import Neighbours, read_vectors


def naive(words: list[str], vectors: np.ndarray, word: str, count: int) -> list[str]:
    """By a loop over all words, in float64."""
    own = vectors[words.index(word)].astype(float)
    scored = []
    for i, (other, vector) in enumerate(zip(words, vectors.astype(float), strict=True)):
        if other != word and is_word(other) and vector.any():
            cosine = own @ vector / math.sqrt(own @ own) / math.sqrt(vector @ vector)
            scored.append((-cosine, i, other))
    return [other for _, _, other in sorted(scored)][:count]


def letters(i: int) -> str:
    return "w" + "".join(chr(ord("a") + int(digit)) for digit in f"{i:04d}")


def test_neighbours_are_those_of_a_naive_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    words = [letters(i) for i in range(300)]
    words[7], words[20] = "not-a-word", "99"
    vectors = rng.normal(size=(300, 6)).astype(np.float32)
    vectors[30] = 0
    asked = [words[i] for i in rng.permutation(300)[:80] if i not in (7, 20, 30)]
    expected = [naive(words, vectors, word, 5) for word in asked]
    assert Neighbours(words, vectors, 5).of(asked) == expected
    monkeypatch.setattr(neighbours, "BLOCK", 1000)
    small = Neighbours(words, vectors, 5)
    assert small.of(asked[::-1]) == expected[::-1]
    assert Neighbours(words, vectors, 5).of(asked[3:4]) == expected[3:4]


def test_neighbours_by_hand() -> None:
    words = ["east", "north", "west", "nne", "ne"]
    vectors = np.array([[1, 0], [0, 2], [-1, 0], [1, 3], [5, 5]], np.float32)
    near = Neighbours(words, vectors, 3)
    assert near.of(["east", "north"]) == [["ne", "nne", "north"], ["nne", "ne", "east"]]
    assert near.of(["unknown"]) == [[]]
    row = Example("North, unknown", "East")
    assert near([row], [places(row)]) == [[["nne", "ne", "east"], [], ["ne", "nne", "north"]]]


def test_equally_near_words_come_in_their_order() -> None:
    words = [letters(i) for i in range(64)]
    vectors = np.ones((64, 3), np.float32)
    assert Neighbours(words, vectors, 4).of([words[2]]) == [[words[i] for i in (0, 1, 3, 4)]]


def test_neighbours_differ_by_more_than_case() -> None:
    words = ["Apple", "apple", "APPLE", "Pear", "pear", "plum"]
    vectors = np.array([[1, 0], [1, 0.01], [1, 0.02], [1, 0.1], [1, 0.11], [0, 1]], np.float32)
    assert Neighbours(words, vectors, 2).of(["apple"]) == [["Pear", "plum"]]


def test_words_that_are_not_there_are_looked_up() -> None:
    vectors = np.array([[1, 0], [0, 1]], np.float32)

    def lookup(words: Sequence[str]) -> np.ndarray:
        return np.array([[3, 1] if word == "joined" else [0, 0] for word in words], np.float32)

    near = Neighbours(["east", "north"], vectors, 2, lookup=lookup)
    assert near.of(["joined", "odd", "east"]) == [["east", "north"], [], ["north"]]


def test_no_usable_word_is_refused() -> None:
    with pytest.raises(DataError, match="none of 2 words"):
        Neighbours(["1", "a"], np.array([[1.0], [0.0]]), 3)


# Word vectors in text


def file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("header", [b"", b"3 2\n"])
def test_vectors_of_glove_and_of_word2vec(tmp_path: Path, header: bytes) -> None:
    content = header + "the 0.5 -1\ncafé 1e-3 2 \nfilm 3 4".encode()
    words, vectors = read_vectors(file(tmp_path, content))
    assert words == ["the", "café", "film"]
    np.testing.assert_array_equal(vectors, np.array([[0.5, -1], [1e-3, 2], [3, 4]], np.float32))


def test_words_may_hold_spaces_and_odd_bytes(tmp_path: Path) -> None:
    content = b". . . 0.5 1\r\nat name@x.org 1 2\n\n5 0 1\nbroken\xff 1 1\nno\xc2\xa0break 2 2\n"
    words, vectors = read_vectors(file(tmp_path, content))
    assert words == [". . .", "at name@x.org", "5", "broken\ufffd", "no\xa0break"]
    assert vectors.shape == (5, 2)


def test_only_the_first_words_are_read(tmp_path: Path) -> None:
    words, vectors = read_vectors(file(tmp_path, b"a 1\nb 2\nc broken"), limit=2)
    assert (words, vectors.tolist()) == (["a", "b"], [[1.0], [2.0]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a 1 2\nb 1", "line 2 is not a word and 2 numbers"),
        (b"2 3\na 1 2", "line 2 is not a word and 3 numbers"),
        (b"a 1 2\nb c d", "line 2 is not a word and 2 numbers"),
        (b"a 1 2\n1 2", "line 2 is not a word and 2 numbers"),
        (b"only words", "line 1 is not a word and its numbers"),
        (b"a 1 2\nb 1 nan", "line 2 has a number that is not finite"),
        (b"a 1 2\nb 1 1e99", "line 2 has a number that is not finite"),
        (b"", "holds no word vectors"),
        (b"3 2\n", "holds no word vectors"),
    ],
)
def test_broken_vectors_are_refused_by_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_vectors(file(tmp_path, content))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't read word vectors"):
        read_vectors(tmp_path / "none.txt")
