"""How many rows occur inside running text, word for word after folding.

The text goes by once, some thousand words at a time, across the ends of its lines. Axes: W words.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from stillhouse.core.folding import folded
from stillhouse.core.types import Example
from stillhouse.data.word_hashes import ngrams, word_hashes

FEWEST = 5  # words of a text that is looked for: fewer occur in any running text
LENGTH = 8  # words of an n-gram that a text is found by, where it has so many
WORDS = 64  # first ones of a text that are compared
WAITING = 1 << 16  # characters of running text that are looked through together
TRIED = 16  # places of the same n-gram among these that are compared


class Occurrences:
    """Looks for rows in running text. A row occurs where each of its texts does; one with a text of
    fewer than five words is not looked for."""

    def __init__(self, rows: Iterable[Example]) -> None:
        self._rows: list[list[int]] = []  # the texts of each row
        self._texts: list[np.ndarray] = []  # the words of each text that is still missing
        self._by_length: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        self._missing: set[int] = set()
        self._lines: list[str] = []
        self._waiting = 0
        self._before_W = np.empty(0, np.uint64)
        for row in rows:
            self._seek([text for text in (row.text, row.pair) if text is not None])

    def _seek(self, texts: list[str]) -> None:
        hashes_W, starts = word_hashes(map(folded, texts), most=WORDS)
        if np.diff(starts).min() < FEWEST:
            return
        own: list[int] = []
        for start, end in itertools.pairwise(starts):
            words, at = hashes_W[start:end], len(self._texts)
            length = min(len(words), LENGTH)
            self._by_length[length][int(ngrams(words[:length], length)[0])].append(at)
            self._texts.append(words)
            self._missing.add(at)
            own.append(at)
        self._rows.append(own)

    @property
    def sought(self) -> int:
        """How many rows are looked for."""
        return len(self._rows)

    def read(self, line: str) -> None:
        """Looks through a line, folded, once enough of them wait."""
        if not self._missing:
            return
        self._lines.append(line)
        self._waiting += len(line)
        if self._waiting >= WAITING:
            self._look()

    def count(self) -> int:
        """How many rows occur in all that was read."""
        self._look()
        return sum(not self._missing.intersection(own) for own in self._rows)

    def _look(self) -> None:
        found_W, _ = word_hashes(self._lines)
        found_W = np.concatenate([self._before_W, found_W])
        self._lines, self._waiting = [], 0
        for length, texts in self._by_length.items():
            grams_W = ngrams(found_W, length)
            places = np.flatnonzero(np.isin(grams_W, np.array(list(texts), np.uint64)))
            tried: dict[int, int] = defaultdict(int)
            for place, gram in zip(places.tolist(), grams_W[places].tolist(), strict=True):
                tried[gram] += 1
                if tried[gram] <= TRIED:
                    self._compare(texts[gram], found_W[place : place + WORDS])
        self._before_W = found_W[-(WORDS - 1) :]

    def _compare(self, texts: list[int], words: np.ndarray) -> None:
        for text in self._missing.intersection(texts):
            if np.array_equal(words[: len(self._texts[text])], self._texts[text]):
                self._missing.discard(text)
