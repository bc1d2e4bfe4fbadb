"""The words nearest to a word, by vectors of words: one kind of candidates for augmentation.

Axes: W words known, H width of their vectors, Q words asked.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from stillhouse.core.errors import DataError
from stillhouse.core.types import Example
from stillhouse.data.augment import Place, is_word, same_word, word_at

BLOCK = 1 << 24  # scores held at once in a search for neighbours


class Neighbours:
    """The nearest words by cosine of their vectors, wherever a word stands: at most `candidates`
    different ones, nearest first, equally near ones as they come in `words`.

    lookup: vectors (Q x H, zeros where there is none) of words that are not in `words`. Without
    it, a word that is not there is looked for in lower case.
    """

    def __init__(
        self,
        words: Sequence[str],
        vectors_WH: Float[np.ndarray, "W H"],
        candidates: int,
        *,
        lookup: Callable[[Sequence[str]], np.ndarray] | None = None,
    ) -> None:
        norms = np.linalg.norm(vectors_WH, axis=1)
        usable = np.isfinite(norms) & (norms > 0)
        kept = [i for i, word in enumerate(words) if usable[i] and is_word(word)]
        if not kept:
            raise DataError(f"none of {len(words)} words with vectors can replace another")
        self.words = [words[i] for i in kept]
        self.vectors_WH = vectors_WH[kept].astype(np.float32)
        self.vectors_WH /= norms[kept, None]
        self.candidates, self._lookup = candidates, lookup
        self._row: dict[str, int] = {}
        for row, word in enumerate(self.words):
            self._row.setdefault(word, row)
        self._known: dict[str, list[str]] = {}

    def __call__(
        self, examples: Sequence[Example], places: Sequence[Sequence[Place]]
    ) -> list[list[list[str]]]:
        words = [[word_at(e, p) for p in here] for e, here in zip(examples, places, strict=True)]
        found = iter(self.of([word for row in words for word in row]))
        return [[next(found) for _ in row] for row in words]

    def of(self, words: Sequence[str]) -> list[list[str]]:
        """Each word's neighbours; none for one without a vector."""
        new = sorted({word for word in words if word not in self._known})
        step = max(1, BLOCK // len(self.words))
        for start in range(0, len(new), step):
            part = new[start : start + step]
            queries_QH = self._vectors(part)
            for word, query_H, scores_W in zip(
                part, queries_QH, queries_QH @ self.vectors_WH.T, strict=True
            ):
                self._known[word] = self._nearest(word, query_H, scores_W) if query_H.any() else []
        return [self._known[word] for word in words]

    def _vectors(self, words: Sequence[str]) -> np.ndarray:
        """Q x H of length 1, zeros for unknown words."""
        found_QH = np.zeros((len(words), self.vectors_WH.shape[1]), np.float32)
        rows = [self._row.get(word) for word in words]
        if self._lookup is None:
            lower = [self._row.get(word.lower()) for word in words]
            rows = [low if row is None else row for row, low in zip(rows, lower, strict=True)]
        for i, row in enumerate(rows):
            if row is not None:
                found_QH[i] = self.vectors_WH[row]
        if self._lookup is not None and None in rows:
            at = [i for i, row in enumerate(rows) if row is None]
            looked_QH = self._lookup([words[i] for i in at])
            norms = np.linalg.norm(looked_QH, axis=1, keepdims=True)
            found_QH[at] = looked_QH / np.where(norms > 0, norms, 1)
        return found_QH

    def _nearest(self, word: str, query_H: np.ndarray, scores_W: np.ndarray) -> list[str]:
        """The nearest of a shortlist, whose cosines are taken again: the last bits of a product of
        matrices depend on what else is asked. Not the word's own beginning or end, which the mean
        of its pieces would find (safe and way near Safeway)."""
        least = min(len(scores_W), 4 * (self.candidates + 1))  # a word may be there in many cases
        bound = np.partition(scores_W, len(scores_W) - least)[len(scores_W) - least]
        near = np.flatnonzero(scores_W >= bound - 1e-5)
        exact = (self.vectors_WH[near].astype(np.float64) * query_H.astype(np.float64)).sum(1)
        asked = same_word(word)
        distinct = {asked: word}
        for row in near[np.argsort(-exact, kind="stable")]:
            found = same_word(self.words[row])
            if found == asked or not (asked.startswith(found) or asked.endswith(found)):
                distinct.setdefault(found, self.words[row])
        return list(distinct.values())[1 : self.candidates + 1]


def read_vectors(path: Path, limit: int = 400_000) -> tuple[list[str], np.ndarray]:
    """The first `limit` words of a text file of word vectors, and the vectors (W x H, float32).

    A line is a word and its numbers, as GloVe and word2vec write them; a first line "count width"
    may stand before. The last numbers are the vector: a word may hold spaces. Raises DataError.
    """
    words: list[str] = []
    values = array.array("f")
    width = 0
    try:
        with path.open("rb") as file:
            for line, raw in enumerate(file, 1):
                fields = raw.split()
                if line == 1 and len(fields) == 2 and all(map(bytes.isdigit, fields)):
                    width = int(fields[1])
                    continue
                if not fields:
                    continue
                width = width or _numbers(fields)
                word, *numbers = raw.strip().rsplit(None, width)
                if not width or len(numbers) != width:
                    raise _broken(path, line, width)
                values.extend(_floats(numbers, path, line))
                words.append(word.decode("utf-8", "replace"))
                if len(words) == limit:
                    break
    except OSError as error:
        raise DataError(f"can't read word vectors {path}: {error.strerror or error}") from None
    if not words:
        raise DataError(f"{path} holds no word vectors")
    return words, np.frombuffer(values, np.float32).reshape(-1, width)


def _numbers(fields: Sequence[bytes]) -> int:
    """How many numbers end a line, of whose fields the first is a word whatever it is."""
    count = 0
    for field in reversed(fields[1:]):
        try:
            float(field)
        except ValueError:
            break
        count += 1
    return count


def _broken(path: Path, line: int, width: int) -> DataError:
    return DataError(f"{path} line {line} is not a word and {width or 'its'} numbers")


def _floats(fields: Sequence[bytes], path: Path, line: int) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # which is not finite then
            found = np.array([float(field) for field in fields]).astype(np.float32)
    except ValueError:
        raise _broken(path, line, len(fields)) from None
    if not np.isfinite(found).all():
        raise DataError(f"{path} line {line} has a number that is not finite")
    return found
