"""Queries as published: what they are made of, how long they are, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stillhouse.core.errors import DataError, UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.types import Example
from stillhouse.extract.config import Form, Kind
from stillhouse.extract.corpus import QueryCorpus, read_corpus
from stillhouse.extract.queries import BLOCK, STARTERS, YES_NO_STARTERS, Source, queries

WORDS = [f"w{i}" for i in range(300)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> QueryCorpus:
    """Sentences of 4 to 60 of 300 words, w0 the most frequent; 300 lines of ten."""
    rng = np.random.default_rng(0)
    chances = 1 / np.arange(1, 301)
    lines = []
    for _ in range(300):
        texts = [" ".join(rng.choice(WORDS, n, p=chances / chances.sum()))
                 for n in rng.integers(4, 61, 10)]  # fmt: skip
        lines.append(" . ".join(texts) + " .")
    path = tmp_path_factory.mktemp("corpus")
    (path / "text.txt").write_text(" = A heading = \n" + "\n".join(lines), encoding="utf-8")
    return read_corpus(str(path / "text.txt"), path / "store", Silent())


def asked(corpus: QueryCorpus, kind: Kind, form: Form = "single", count: int = 3000,
          vocabulary: int = 50, seed: int = 0) -> list[Example]:  # fmt: skip
    return queries(Source(corpus, kind, form, seed, vocabulary=vocabulary), count)


@pytest.mark.parametrize("kind", ["random", "frequency", "wiki", "shuffled"])
def test_larger_budgets_begin_with_smaller_ones(corpus: QueryCorpus, kind: Kind) -> None:
    many = asked(corpus, kind, count=BLOCK + 100 if kind == "random" else 2000)
    assert asked(corpus, kind, count=500) == many[:500]
    assert asked(corpus, kind, count=500, seed=1) != many[:500]
    assert len(set(many)) == len(many)


def test_nonsense_is_uniform_over_the_top_words_and_1_to_60_long(corpus: QueryCorpus) -> None:
    texts = [each.text.split() for each in asked(corpus, "random")]
    counts = Counter(word for text in texts for word in text)
    assert set(counts) == set(corpus.words_W[:50])
    assert max(counts.values()) < 1.15 * min(counts.values())
    lengths = Counter(map(len, texts))
    assert (min(lengths), max(lengths)) == (1, 60)
    assert max(lengths[n] for n in range(5, 61)) < 2.2 * min(lengths[n] for n in range(5, 61))


def test_by_frequency_the_first_word_is_the_commonest(corpus: QueryCorpus) -> None:
    counts = Counter(w for each in asked(corpus, "frequency") for w in each.text.split())
    ranked = [word for word, _ in counts.most_common(5)]
    assert ranked == list(corpus.words_W[:5])
    share = counts[ranked[0]] / counts.total()
    assert share == pytest.approx(corpus.counts_2W[0, 0] / corpus.counts_2W[0, :50].sum(), rel=0.05)


def test_sentences_are_real_but_for_words_outside_the_top(corpus: QueryCorpus) -> None:
    real = {}
    for place in range(len(corpus.sentences)):
        real.setdefault(len(corpus.sentences[place]), []).append(corpus.sentences[place])
    place_of = {word: i for i, word in enumerate(corpus.words_W)}
    for each in asked(corpus, "wiki", count=200):
        ids = np.array([place_of[word] for word in each.text.split()])
        assert ids.max() < 50
        assert len(ids) <= 50
        assert any(((ids == other) | (other >= 50)).all() for other in real[len(ids)])


def test_shuffled_sentences_have_their_words_in_another_order(corpus: QueryCorpus) -> None:
    """With every word in the top nothing is replaced: sentences and their shuffles are the same
    bags of words."""

    def bags(kind: Kind) -> set[tuple[str, ...]]:
        found = asked(corpus, kind, count=2000, vocabulary=10_000)
        return {tuple(sorted(each.text.split())) for each in found}

    assert len(bags("shuffled") & bags("wiki")) > 1500
    texts = {each.text for each in asked(corpus, "wiki", count=2000, vocabulary=10_000)}
    shuffled = asked(corpus, "shuffled", count=2000, vocabulary=10_000)
    assert sum(each.text in texts for each in shuffled) < 50


@pytest.mark.parametrize("kind", ["random", "wiki"])
def test_a_hypothesis_differs_in_up_to_three_words(corpus: QueryCorpus, kind: Kind) -> None:
    changed = Counter()
    for each in asked(corpus, kind, "edited"):
        mine, theirs = each.text.split(), (each.pair or "").split()
        assert len(mine) == len(theirs)
        changed[sum(a != b for a, b in zip(mine, theirs, strict=True))] += 1
        assert set(theirs) <= set(corpus.words_W[:50])
    assert set(changed) <= {0, 1, 2, 3}
    assert changed[3] > 0.7 * changed.total()


def test_pairs_of_another_order(corpus: QueryCorpus) -> None:
    for each in asked(corpus, "wiki", "shuffled-pair", count=200):
        assert sorted(each.text.split()) == sorted((each.pair or "").split())


@pytest.mark.parametrize("kind", ["random", "wiki"])
def test_questions_are_of_their_paragraphs_words(corpus: QueryCorpus, kind: Kind) -> None:
    found = asked(corpus, kind, "question", count=400)
    for each in found:
        starter, *words = each.text.removesuffix("?").split()
        assert each.text.endswith("?")
        assert starter in STARTERS
        assert 5 <= len(words) <= 14
        assert {*words} <= {*(each.pair or "").split()}
    assert len({each.text.split()[0] for each in found}) == len(STARTERS) == 23
    lengths = {len((each.pair or "").split()) for each in found}
    assert lengths <= set(corpus.paragraphs.lengths_S.tolist())


def test_questions_of_yes_or_no_are_in_lower_case(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [" ".join(f"W{i}" for i in rng.integers(0, 300, 30)) + " ." for _ in range(300)]
    (tmp_path / "loud.txt").write_text("\n".join(lines), encoding="utf-8")
    loud = read_corpus(str(tmp_path / "loud.txt"), tmp_path, Silent())
    found = asked(loud, "wiki", "yes-no", count=300)
    assert any("W" in (each.pair or "") for each in found)
    assert all(each.text == each.text.lower() and "?" not in each.text for each in found)
    assert {each.text.split()[0] for each in found} == set(YES_NO_STARTERS)
    assert len(YES_NO_STARTERS) == 11


def test_a_pool_is_gone_through_once(corpus: QueryCorpus) -> None:
    pool = [Example(f"own {i}") for i in range(20)] * 2
    found = queries(Source(corpus, "pool", "single", 0, pool=pool), 20)
    assert {each.text for each in found} == {f"own {i}" for i in range(20)}
    with pytest.raises(UsageError, match="the pool gives 20 different pool queries, not 21"):
        queries(Source(corpus, "pool", "single", 0, pool=pool), 21)
    paired = [Example("a b", "c"), Example("d", "e f")]
    assert set(queries(Source(corpus, "pool", "edited", 0, pool=paired), 2)) == set(paired)


def test_a_corpus_too_small_for_the_budget_says_how_far_it_goes(corpus: QueryCorpus) -> None:
    with pytest.raises(UsageError, match=r"gives 2,\d\d\d different wiki queries, not 9,000"):
        asked(corpus, "wiki", count=9000, vocabulary=10_000)
    assert len(asked(corpus, "wiki", count=9000)) == 9000  # replaced words make more


def test_text_is_cleaned_as_published(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(
        " = A title with more words than the shortest sentence has = \n"
        " He said 1 @,@ 000 @-@ odd ( very odd ) things , often ; it was 3 @.@ 5 . "
        "She 's gone now too . No . \n"
        "Plain text has ends. Like this one here! And is this third one?\n"
        " The <unk> was never seen again . \n",
        encoding="utf-8",
    )  # fmt: skip
    corpus = read_corpus(str(tmp_path), tmp_path / "store", Silent())
    words = [*corpus.words_W, "?"]
    found = {" ".join(words[i] for i in corpus.sentences[k]) for k in range(len(corpus.sentences))}
    assert found == {
        "He said 1,000-odd (very odd) things, often; it was 3.5.",
        "She's gone now too.",
        "Plain text has ends.",
        "Like this one here!",
        "And is this third one?",
        "The ? was never seen again.",
    }
    assert "<unk>" not in words


def test_pythons_own_documentation_is_a_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib" / "test").mkdir(parents=True)
    text = "A first sentence of some length. A second one which goes on.\n\n>>> 1 + 1 == 2 or so"
    code = f'"""{text}\n"""\n'
    (tmp_path / "lib" / "a.py").write_text(code + "raise SystemExit\n")
    (tmp_path / "lib" / "test" / "b.py").write_text('"""A test is not read for its words."""')
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path / "lib")})
    corpus = read_corpus(None, tmp_path / "store", Silent())
    assert len(corpus.sentences) == 2
    assert "test" not in corpus.words_W
    assert "1" not in corpus.words_W


@pytest.mark.parametrize("name", ["nothing.txt", "/nowhere", "./there"])
def test_no_corpus_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        read_corpus(name, tmp_path, Silent())


def test_lines_that_are_not_utf8_are_no_text(tmp_path: Path) -> None:
    lines = [f"Die Straße nummer {i} ist lang" for i in range(9)]
    plain = [f"street number {i} is long" for i in range(9)]
    (tmp_path / "mixed.txt").write_bytes("\n".join(lines).encode("latin-1") + b"\n"
                                         + "\n".join(plain).encode())  # fmt: skip
    found = read_corpus(str(tmp_path / "mixed.txt"), tmp_path / "store", Silent())
    assert len(found.sentences) == 9
    assert "street" in found.words_W.tolist()
    (tmp_path / "latin.txt").write_bytes("\n".join(lines).encode("latin-1"))
    with pytest.raises(DataError, match="give more text in UTF-8"):
        read_corpus(str(tmp_path / "latin.txt"), tmp_path / "store", Silent())


def test_a_corpus_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three\n")
    with pytest.raises(DataError, match="no sentence of over 3 words"):
        read_corpus(str(tmp_path / "a.txt"), tmp_path / "store", Silent())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.txt file"):
        read_corpus(str(tmp_path / "empty"), tmp_path / "store", Silent())
