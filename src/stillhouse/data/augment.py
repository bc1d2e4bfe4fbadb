"""TinyBERT's data augmentation: variants of a row in which words gave way to others that could
stand there (Jiao et al. 2020, algorithm 1).

What we do differently: each copy of a pair starts from the original pair, and both its texts
vary at once (the reference code leaves the first text at its last variant while it varies the
second); copies that are equal, or equal to rows that must not be trained on, are left out; spacing,
punctuation and case of the text stay. What is drawn depends on the seed, the row's content and the
copy's number only. Words of scripts written without spaces are never replaced.

Axes: N rows; keys are N x 2.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt64

from stillhouse.core.config import AugmentConfig
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
    """Whether `text` is letters (and marks on them) of a script written with spaces; two at least:
    a single one is a piece of a word as a rule."""
    if len(text) < 2:
        return False
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
