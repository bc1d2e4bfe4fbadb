"""TinyBERT's data augmentation: variants of a row in which words gave way to others that could
stand there (Jiao et al. 2020, algorithm 1).

What we do differently: each copy of a pair starts from the original pair, and both its texts
vary at once (the reference code leaves the first text at its last variant while it varies the
second); copies that are equal, or equal to rows that must not be trained on, are left out; spacing,
punctuation and case of the text stay. What is drawn depends on the seed, the row's content and the
copy's number only. Words of scripts written without spaces are never replaced.

Axes: W words known, H width of their vectors, Q words asked, N rows; keys are N x 2.
"""

from __future__ import annotations

import array
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt64

from stillhouse.core.config import AugmentConfig
from stillhouse.core.errors import DataError
from stillhouse.core.seeding import generator
from stillhouse.core.types import Example
from stillhouse.data.rows import content_key, folded_key

Place = tuple[int, int, int]  # a word: in which text (1: the pair), its first character, its end

_FUNCTION_WORDS = """
    a an the this that these those some any no each every both all such own same other
    i me my mine we us our ours you your yours he him his she her hers it its they them their theirs
    who whom whose which what where when why how there here
    am is are was were be been being do does did done have has had having
    will would shall should can could may might must
    not nor and or but if then than so as because while though although until unless
    of in on at by to for from with without into onto over under about between through during
    before after above below up down out off again once only just too very more most
    s t d m ll re ve
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
EDGES = "\"'`“”‘’«»„‚‹›()[]{}.,;:!?…—–-*_~¿¡"
CHUNK = 128  # rows whose candidates are asked for together
BLOCK = 1 << 24  # scores held at once in a search for neighbours
# Thai and Lao, Burmese, Khmer, kana and ideographs: what stands between spaces is no word there.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


@runtime_checkable
class Candidates(Protocol):
    """What could stand in a word's place: for each example, for each of its places, words. None
    where it knows nothing. Their order does not matter."""

    def __call__(
        self, examples: Sequence[Example], places: Sequence[Sequence[Place]]
    ) -> list[list[list[str]]]: ...


@dataclass
class Tally:
    """How many copies were yielded, and why the others were not."""

    made: int = 0
    repeated: int = 0
    forbidden: int = 0


def is_word(text: str) -> bool:
    """Whether `text` is letters (and marks on them) of a script written with spaces."""
    if text.isascii():
        return text.isalpha()
    letters = all(c.isalpha() or unicodedata.category(c)[0] == "M" for c in text)
    return letters and text[0].isalpha() and not UNSPACED.search(text)


def same_word(text: str) -> str:
    """The same for words that differ in case or accents only."""
    parts = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in parts if not unicodedata.combining(c))


def places(example: Example, stop_words: Collection[str] = STOP_WORDS) -> list[Place]:
    """The words of a row that may be replaced: alphabetic once the punctuation around them is
    off, and no stop words (given in lower case)."""
    found: list[Place] = []
    for side, text in enumerate((example.text, example.pair or "")):
        for match in re.finditer(r"\S+", text):
            word = match[0].strip(EDGES)
            if word and is_word(word) and word.casefold() not in stop_words:
                start = match.start() + len(match[0]) - len(match[0].lstrip(EDGES))
                found.append((side, start, start + len(word)))
    return found


def word_at(example: Example, place: Place) -> str:
    side, start, stop = place
    return ((example.pair or "") if side else example.text)[start:stop]


def _cased(word: str, like: str) -> str:
    """`word` with a first letter of the case that `like`'s has."""
    if like[0].isupper():
        return word[0].upper() + word[1:]
    return word[0].lower() + word[1:] if like[0].islower() else word


def _put(example: Example, changes: Iterable[tuple[Place, str]]) -> Example:
    """The row with other words at some places (in rising order), and no label."""
    texts: tuple[list[str], list[str]] = ([], [])
    reached = [0, 0]
    for place, word in changes:
        side, start, stop = place
        original = (example.pair or "") if side else example.text
        texts[side].extend((original[reached[side] : start], _cased(word, original[start:stop])))
        reached[side] = stop
    text = "".join(texts[0]) + example.text[reached[0] :]
    return Example(
        text, None if example.pair is None else "".join(texts[1]) + example.pair[reached[1] :]
    )


def _choices(found: Sequence[str], word: str, count: int) -> list[str]:
    """At most `count` different words other than `word`, in alphabetic order: what is drawn must
    not depend on the ranks of two candidates that are almost as good."""
    distinct = {same_word(word): ""}
    for candidate in found:
        if candidate:
            distinct.setdefault(same_word(candidate), candidate)
    return sorted(list(distinct.values())[1 : count + 1])


def augment_rows(
    rows: Iterable[Example],
    candidates: Candidates,
    config: AugmentConfig,
    *,
    forbidden_N2: UInt64[np.ndarray, "N 2"],
    stop_words: Collection[str] = STOP_WORDS,
    tally: Tally | None = None,
) -> Iterator[Example]:
    """Variants of each row, without labels, in the rows' order. None whose folded key is among
    `forbidden_N2`, none equal to its row or to an earlier variant of it; `tally` counts them."""
    tally = Tally() if tally is None else tally
    forbidden = frozenset(key.tobytes() for key in np.ascontiguousarray(forbidden_N2, "<u8"))
    source = iter(rows)
    while chunk := list(islice(source, CHUNK)):
        asked = [places(example, stop_words) for example in chunk]
        answers = candidates(chunk, asked)
        for example, where, found in zip(chunk, asked, answers, strict=True):
            choices = [
                _choices(words, word_at(example, place), config.candidates)
                for place, words in zip(where, found, strict=True)
            ]
            yield from _copies(example, where, choices, config, forbidden, tally)


def _copies(
    example: Example,
    where: Sequence[Place],
    choices: Sequence[Sequence[str]],
    config: AugmentConfig,
    forbidden: Collection[bytes],
    tally: Tally,
) -> Iterator[Example]:
    """The different variants of one row. Each word takes its own draws, whether it has choices
    or not."""
    identity = content_key(example.text, example.pair).hex()
    seen = {folded_key(example.text, example.pair)}
    for copy in range(config.copies):
        rng = generator(config.seed, "augment", identity, copy)
        replaced, which = rng.random(len(where)) < config.share, rng.random(len(where))
        changes = [
            (place, words[int(draw * len(words))])
            for place, words, now, draw in zip(where, choices, replaced, which, strict=True)
            if now and words
        ]
        variant = _put(example, changes)
        key = folded_key(variant.text, variant.pair)
        if key in seen:
            tally.repeated += 1
        elif key in forbidden:
            tally.forbidden += 1
        else:
            tally.made += 1
            yield variant
        seen.add(key)


def first_of(first: Candidates, second: Candidates) -> Candidates:
    """What `first` knows, and for the words it knows nothing of, what `second` does."""

    def ask(
        examples: Sequence[Example], places: Sequence[Sequence[Place]]
    ) -> list[list[list[str]]]:
        found = first(examples, places)
        lacking = [
            [place for place, words in zip(here, known, strict=True) if not words]
            for here, known in zip(places, found, strict=True)
        ]
        others = [iter(words) for words in second(examples, lacking)]
        return [
            [words or next(other) for words in known]
            for known, other in zip(found, others, strict=True)
        ]

    return ask


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
