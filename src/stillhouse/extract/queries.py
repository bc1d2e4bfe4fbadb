"""What a stranger asks: nonsense, sentences of a corpus, and pairs made of them.

After Krishna et al. 2020 ("Thieves on Sesame Street"), sec. 3, and its code; each function says
which of the published schemes it is. A stream of queries is made block by block, each from a seed
of its own, and no query comes twice: a larger budget begins with the queries of a smaller one.

Axes: N queries of a block, W words, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice, pairwise

import numpy as np

from stillhouse.core.errors import UsageError
from stillhouse.core.seeding import generator
from stillhouse.core.types import Example
from stillhouse.extract.config import VOCABULARY, Form, Kind
from stillhouse.extract.corpus import QueryCorpus, Ragged

BLOCK = 4096
LONGEST_NONSENSE, LONGEST_SENTENCE = 60, 50  # words
CHANGES = 3  # words that a hypothesis differs in from its premise, at most
QUESTION = (5, 15)  # words of a question, from and below
STARTERS = (
    "Why", "On", "Along", "During", "At", "A", "For", "According", "What", "How", "Who", "When",
    "In", "Which", "Where", "The", "To", "From", "By", "what", "After", "Whose", "What's",
)  # fmt: skip
YES_NO_STARTERS = ("is", "can", "does", "are", "do", "did", "was", "has", "will", "the", "have")


@dataclass(frozen=True)
class Source:
    """Where queries come from. `pool`: texts of the user's own, for the kind of that name.

    kind: random (top words, each as likely as the other, 1 to 60 of them), frequency (as often as
    they are), wiki (sentences of up to 50 words, those outside the top replaced), shuffled (these
    with their words in another order), pool. form: single texts; edited (a premise, and the same
    with up to 3 words replaced: MNLI); shuffled-pair (a premise and its words in another order);
    question and yes-no (5 to 14 words of a paragraph behind a starter, and the paragraph: SQuAD,
    BoolQ; paragraphs of nonsense are drawn by frequency, as long as the corpus's own).
    """

    corpus: QueryCorpus
    kind: Kind
    form: Form
    seed: int
    pool: Sequence[Example] = ()
    vocabulary: int = VOCABULARY


def queries(source: Source, number: int) -> list[Example]:
    """The first `number` queries of the stream. Raises UsageError where the corpus or the pool is
    too small for so many different ones."""
    found = list(islice(_different(source), number))
    if len(found) < number:
        what = "the pool" if source.kind == "pool" else source.corpus.name
        raise UsageError(
            f"{what} gives {len(found):,} different {source.kind} queries, not {number:,}: give a "
            "larger one, or ask for a smaller budget"
        )
    return found


def _different(source: Source) -> Iterator[Example]:
    """Every query once, until a pass brings nothing new."""
    met: set[tuple[str, str | None]] = set()
    for each_pass in _passes(source):
        before = len(met)
        for block in each_pass:
            for text, pair in _formed(block, source):
                if (text, pair) not in met:
                    met.add((text, pair))
                    yield Example(text, pair)
        if len(met) == before:
            return


@dataclass(frozen=True)
class _Block:
    """Texts as words behind one another; `pairs`, where the texts have second ones already."""

    words_T: np.ndarray  # objects
    offsets_N: np.ndarray  # N + 1
    rng: np.random.Generator
    pairs: Sequence[str] | None = None

    @property
    def lengths_N(self) -> np.ndarray:
        return np.diff(self.offsets_N)

    def spelt(self, words_T: np.ndarray | None = None) -> list[str]:
        words: list[str] = (self.words_T if words_T is None else words_T).tolist()
        ends = self.offsets_N.tolist()
        return [" ".join(words[a:b]) for a, b in pairwise(ends)]


def _passes(source: Source) -> Iterator[Iterator[_Block]]:
    """Passes over what there is to ask: one of nonsense is a block."""
    if source.kind in ("random", "frequency"):
        for number in count():
            yield iter([_nonsense(source, generator(source.seed, "queries", source.kind, number))])
        return
    texts = _eligible(source)
    for number in count():
        order = generator(source.seed, "order", source.kind, number).permutation(len(texts))
        yield (
            _taken(source, texts, order[start : start + BLOCK],
                   generator(source.seed, "queries", source.kind, number, start))
            for start in range(0, len(order), BLOCK)
        )  # fmt: skip


def _nonsense(source: Source, rng: np.random.Generator) -> _Block:
    """Words drawn at random. `preprocess_random` with the top words and uniform lengths; of
    paragraphs, by frequency and with the lengths of real ones."""
    corpus, size = source.corpus, min(source.vocabulary, len(source.corpus.words_W))
    if _of_paragraphs(source):
        lengths_N = rng.choice(_lengths(corpus.paragraphs), BLOCK)
        ids_T = _by_count(corpus.counts_2W[1], int(lengths_N.sum()), rng)
    else:
        lengths_N = rng.integers(1, LONGEST_NONSENSE + 1, BLOCK)
        total = int(lengths_N.sum())
        if source.kind == "frequency":
            ids_T = _by_count(corpus.counts_2W[0, :size], total, rng)
        else:
            ids_T = rng.integers(0, size, total)
    return _Block(corpus.words_W[ids_T], np.cumsum([0, *lengths_N]), rng)


def _by_count(counts_W: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Ids as likely as they are frequent."""
    ends_W = np.cumsum(counts_W)
    return np.searchsorted(ends_W, rng.integers(0, ends_W[-1], total), side="right")


def _lengths(texts: Ragged) -> np.ndarray:
    if not len(texts):
        raise UsageError("the corpus has no paragraph of over 20 words: give another one")
    return texts.lengths_S


def _of_paragraphs(source: Source) -> bool:
    return source.form in ("question", "yes-no")


def _eligible(source: Source) -> Sequence[Example] | np.ndarray:
    """What a pass goes through: the pool, or places of sentences or paragraphs."""
    if source.kind == "pool":
        if not source.pool:
            raise UsageError("queries of the kind pool need texts: give --pool FILE")
        return source.pool
    if _of_paragraphs(source):
        return np.arange(len(_lengths(source.corpus.paragraphs)))
    return np.flatnonzero(source.corpus.sentences.lengths_S <= LONGEST_SENTENCE)


def _taken(
    source: Source, texts: Sequence[Example] | np.ndarray, order: np.ndarray,
    rng: np.random.Generator,
) -> _Block:  # fmt: skip
    """The texts at `order`; words outside the top ones replaced by top ones at random (the
    published `sanitize_samples`), but in paragraphs only those that the corpus lost."""
    if not isinstance(texts, np.ndarray):
        chosen = [texts[int(i)] for i in order]
        split = [each.text.split() for each in chosen]
        flat = np.array([word for words in split for word in words], object)
        pairs = [each.pair for each in chosen if each.pair is not None]
        ends = np.cumsum([0, *map(len, split)])
        return _Block(flat, ends, rng, pairs if len(pairs) == len(chosen) else None)
    whole = len(source.corpus.words_W)
    paragraphs = _of_paragraphs(source)
    held = source.corpus.paragraphs if paragraphs else source.corpus.sentences
    places = texts[order]
    lengths_N = held.lengths_S[places]
    ends = np.cumsum([0, *lengths_N])
    starts_T = np.repeat(held.offsets_S[places] - ends[:-1], lengths_N)
    ids_T = np.array(held.ids_T[starts_T + np.arange(ends[-1])])
    top = whole if paragraphs else min(source.vocabulary, whole)
    outside = np.flatnonzero(ids_T >= top)
    ids_T[outside] = rng.integers(0, min(source.vocabulary, whole), len(outside))
    if source.kind == "shuffled":
        ids_T = _shuffled(ids_T, ends, rng)
    return _Block(source.corpus.words_W[ids_T], ends, rng)


def _shuffled(flat_T: np.ndarray, ends: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every text's words in a random order."""
    row_T = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    return flat_T[np.lexsort((rng.random(len(flat_T)), row_T))]


def _formed(block: _Block, source: Source) -> Iterator[tuple[str, str | None]]:
    """The block's texts as inputs of the victim."""
    texts = block.spelt()
    if block.pairs is not None:
        return zip(texts, block.pairs, strict=True)
    if source.form == "single":
        return ((text, None) for text in texts)
    if source.form == "edited":
        return zip(texts, block.spelt(_edited(block, source)), strict=True)
    if source.form == "shuffled-pair":
        words_T = _shuffled(block.words_T, block.offsets_N, block.rng)
        return zip(texts, block.spelt(words_T), strict=True)
    return zip(_questions(block, source.form), texts, strict=True)


def _edited(block: _Block, source: Source) -> np.ndarray:
    """The words with three of each text's replaced, one after another, at places that may be the
    same (the published `random_ed_k_uniform` with k = 3)."""
    words_T, rng = block.words_T.copy(), block.rng
    filled = np.flatnonzero(block.lengths_N)
    top = source.corpus.words_W[: source.vocabulary]
    for _ in range(CHANGES):
        places = rng.integers(0, block.lengths_N[filled])
        words_T[block.offsets_N[filled] + places] = top[rng.integers(0, len(top), len(filled))]
    return words_T


def _questions(block: _Block, form: Form) -> list[str]:
    """A starter and some of the paragraph's words (`random_postprocess_uniform`); for yes or no,
    in lower case and without a question mark, as published."""
    rng, asked_N = block.rng, len(block.lengths_N)
    lengths_N = rng.integers(*QUESTION, asked_N)
    ends = np.cumsum([0, *lengths_N])
    inside = rng.integers(0, np.repeat(block.lengths_N, lengths_N))
    words_T = block.words_T[np.repeat(block.offsets_N[:-1], lengths_N) + inside]
    asked = _Block(words_T, ends, rng).spelt()
    if form == "yes-no":
        starters = rng.integers(0, len(YES_NO_STARTERS), asked_N)
        return [f"{YES_NO_STARTERS[s]} {q.lower()}" for s, q in zip(starters, asked, strict=True)]
    starters = rng.integers(0, len(STARTERS), asked_N)
    return [f"{STARTERS[s]} {q}?" for s, q in zip(starters, asked, strict=True)]
