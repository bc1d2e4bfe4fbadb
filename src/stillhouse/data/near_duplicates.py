"""How many test rows are almost training rows: told, not removed.

Two texts are near-duplicates where the Jaccard similarity of their word 3-grams is at least 0.8;
two pairs where both texts are, in either order. Candidates come from MinHash in bands (Broder 1997;
Leskovec et al., Mining of Massive Datasets, sec. 3.4), and each is compared exactly. At the
threshold 98 of 100 are found, above it more.

Axes: G n-grams of all rows, N rows, B bands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from stillhouse.core.folding import folded
from stillhouse.core.progress import Advance
from stillhouse.core.types import Example
from stillhouse.data.chat import turns_of
from stillhouse.data.word_hashes import MIX, ngrams, word_hashes

FORMAT = 2  # of what is counted: a count of another one is made anew
SIMILAR = 0.8  # Jaccard similarity
LENGTH = 3  # words of an n-gram
WORDS = 512  # first ones of a text that are looked at
CHUNK = 4096  # training rows in memory
BANDS, ROWS = 8, 4  # of MinHash: both rows' minima agree in all of a band's with chance J ** ROWS
TRIED = 4  # training rows of a chunk, the same in a band, that a test row is compared with


def _said(text: str) -> str:
    """A text, folded; of a conversation what is said after its system turns, which, as its tools,
    all rows may share."""
    held = turns_of(text)
    if held is None:
        return folded(text)
    return folded(
        " ".join(str(turn.get("content") or "") for turn in held.turns if turn["role"] != "system")
    )


@dataclass(frozen=True)
class _Grams:
    """The n-grams of some rows. grams_G: of one text behind the other, each sorted, none twice.
    starts: where each text begins, and the end. sides: texts of a row, 1 or 2."""

    grams_G: np.ndarray
    starts: np.ndarray
    sides: int

    @classmethod
    def of(cls, rows: list[Example]) -> _Grams:
        sides = 1 if all(row.pair is None for row in rows) else 2
        texts = [row.text for row in rows] if sides == 1 else [
            text or "" for row in rows for text in (row.text, row.pair)
        ]  # fmt: skip
        hashes_W, words = word_hashes(map(_said, texts), most=WORDS)
        count = np.maximum(np.diff(words), LENGTH)  # a shorter text is filled up
        padded = np.zeros(int(count.sum()), np.uint64)
        begins = np.cumsum(count) - count
        padded[np.repeat(begins - words[:-1], np.diff(words)) + np.arange(len(hashes_W))] = hashes_W
        found_G, text_G = ngrams(padded, LENGTH), np.repeat(np.arange(len(texts)), count)
        inside = text_G[: len(found_G)] == text_G[LENGTH - 1 :]
        found_G, text_G = found_G[inside], text_G[: len(found_G)][inside]
        order = np.lexsort((found_G, text_G))
        found_G, text_G = found_G[order], text_G[order]
        new = (found_G[1:] != found_G[:-1]) | (text_G[1:] != text_G[:-1])
        new = np.concatenate([[True], new])
        found_G, text_G = found_G[new], text_G[new]
        return cls(found_G, np.searchsorted(text_G, np.arange(len(texts) + 1)), sides)

    def text(self, row: int, side: int) -> np.ndarray:
        at = row * self.sides + side
        return self.grams_G[self.starts[at] : self.starts[at + 1]]

    def bands(self) -> np.ndarray:
        """A number for each row and band (N x B): equal where the minima of all its hashes are."""
        multipliers = np.random.Generator(np.random.SFC64(20)).integers(
            0, 2**63, BANDS * ROWS, dtype=np.uint64
        )
        found = np.zeros(((len(self.starts) - 1) // self.sides, BANDS), np.uint64)
        with np.errstate(over="ignore"):
            for i, multiplier in enumerate(multipliers * np.uint64(2) + np.uint64(1)):
                mixed_G = self.grams_G * multiplier
                mixed_G ^= mixed_G >> np.uint64(32)
                least_N = np.minimum.reduceat(mixed_G, self.starts[: -1 : self.sides])
                found[:, i // ROWS] = (found[:, i // ROWS] ^ least_N) * MIX
        return found


def near_duplicates(
    test: Iterable[Example], train: Iterable[Example], progress: Advance = lambda rows: None
) -> int:
    """How many of the test rows have a near-duplicate among the training rows. `progress` hears how
    many more of the latter were compared."""
    rows = list(test)
    if not rows:
        return 0
    mine = _Grams.of(rows)
    bands_NB, missing = mine.bands(), np.arange(len(rows))
    for chunk in _chunks(train):
        theirs = _Grams.of(chunk)
        if theirs.sides == mine.sides and len(missing):
            pairs = _candidates(bands_NB[missing], theirs.bands())
            alike = {
                row for row, other in pairs if _similar(mine, int(missing[row]), theirs, other)
            }
            missing = np.delete(missing, sorted(alike))
        progress(len(chunk))
    return len(rows) - len(missing)


def _chunks(rows: Iterable[Example]) -> Iterator[list[Example]]:
    source = iter(rows)
    while chunk := list(islice(source, CHUNK)):
        yield chunk


def _candidates(mine_NB: np.ndarray, theirs_NB: np.ndarray) -> Iterator[tuple[int, int]]:
    """(my row, their row) that are the same in a band, each once."""
    found: set[tuple[int, int]] = set()
    for mine_N, theirs_N in zip(mine_NB.T, theirs_NB.T, strict=True):
        order = np.argsort(theirs_N, kind="stable")
        ordered_N = theirs_N[order]
        first = np.searchsorted(ordered_N, mine_N)
        last = np.searchsorted(ordered_N, mine_N, side="right")
        for row in np.flatnonzero(last > first).tolist():
            end = min(last[row], first[row] + TRIED)
            found.update((row, other) for other in order[first[row] : end].tolist())
    yield from sorted(found)


def _similar(mine: _Grams, row: int, theirs: _Grams, other: int) -> bool:
    sides = range(mine.sides)
    orders = ([*sides], [*reversed(sides)])
    return any(
        all(_jaccard(mine.text(row, i), theirs.text(other, j)) >= SIMILAR
            for i, j in zip(sides, order, strict=True))
        for order in orders[: mine.sides]
    )  # fmt: skip


def _jaccard(mine: np.ndarray, theirs: np.ndarray) -> float:
    """Of two sorted arrays in which nothing is twice."""
    common = len(np.intersect1d(mine, theirs, assume_unique=True))
    return common / (len(mine) + len(theirs) - common)
