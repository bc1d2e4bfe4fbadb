"""The ticket example: its hand-written messages are sound, and not given away by keywords."""

import csv
import functools
import itertools
from collections import Counter, defaultdict

import pytest

from stillhouse.data.builtin.tickets import INTENTS, folder, unlabelled
from stillhouse.data.builtin.tickets.compose import DISTINCT, fold, parts

SPLITS = {"train": 0.46, "dev": 0.115, "test": 0.425}


@functools.lru_cache
def rows(split: str) -> tuple[tuple[str, str], ...]:
    """The (text, label) pairs of one split."""
    with (folder() / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == ["text", "label"]
        return tuple((row["text"], row["label"]) for row in reader)


def every_row() -> list[tuple[str, str]]:
    """The (text, label) pairs of all splits."""
    return [row for split in SPLITS for row in rows(split)]


def words(text: str) -> frozenset[str]:
    """The folded words of a text."""
    return frozenset(fold(text).split())


def test_there_are_enough_messages_of_every_intent():
    counts = Counter(label for _, label in every_row())
    assert set(counts) == set(INTENTS)
    assert sum(counts.values()) >= 1400
    assert min(counts.values()) >= 175
    assert max(counts.values()) <= 1.1 * min(counts.values())


@pytest.mark.parametrize("split", SPLITS)
def test_each_split_holds_its_share_of_every_intent(split):
    totals = Counter(label for _, label in every_row())
    counts = Counter(label for _, label in rows(split))
    for intent in INTENTS:
        assert counts[intent] / totals[intent] == pytest.approx(SPLITS[split], abs=0.01)


@pytest.mark.parametrize("split", SPLITS)
def test_the_order_of_a_split_does_not_give_labels_away(split):
    labels = [label for _, label in rows(split)]
    runs = [len(list(run)) for _, run in itertools.groupby(labels)]
    assert max(runs) <= 6


def test_texts_are_clean_and_vary_in_length():
    texts = [text for text, _ in every_row()]
    assert all(text == " ".join(text.split()) and text.isprintable() for text in texts)
    lengths = sorted(len(text.split()) for text in texts)
    assert lengths[len(lengths) // 10] <= 7
    assert lengths[-len(lengths) // 10] >= 20


def test_no_message_is_there_twice():
    counts = Counter(fold(text) for text, _ in every_row())
    assert [text for text, count in counts.items() if count > 1] == []


def test_no_message_nearly_equals_one_of_another_split():
    bags = {split: [words(text) for text, _ in rows(split)] for split in SPLITS}
    close = [
        (first, second)
        for one, other in itertools.combinations(SPLITS, 2)
        for first, second in itertools.product(bags[one], bags[other])
        if len(first & second) >= 0.7 * len(first | second)
    ]
    assert close == []


def test_no_common_word_identifies_an_intent():
    by_word: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for text, label in every_row():
        for word in words(text):
            by_word[word][label] += 1
    telling = {
        word: counts
        for word, counts in by_word.items()
        if counts.total() >= 15 and max(counts.values()) >= 0.9 * counts.total()
    }
    assert telling == {}


def test_few_messages_begin_alike():
    starts = Counter(" ".join(fold(text).split()[:3]) for text, _ in every_row())
    assert max(starts.values()) <= 6
    within = Counter((label, " ".join(fold(text).split()[:3])) for text, label in every_row())
    assert max(within.values()) <= 2


def test_word_counts_alone_sort_the_messages_only_in_part():
    pytest.importorskip("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    baseline = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10.0, max_iter=1000))
    baseline.fit(*zip(*rows("train"), strict=True))
    accuracy = baseline.score(*zip(*rows("test"), strict=True))
    assert 0.55 <= accuracy <= 0.85


def test_the_parts_are_many_and_without_repeats():
    known = parts()
    assert set(known.intents) == set(INTENTS)
    for clauses in known.intents.values():
        assert len(set(clauses)) == len(clauses) >= 45
    for shared in (known.openers, known.contexts, known.closers):
        assert len(set(shared)) == len(shared) >= 40
    everything = [clause for clauses in known.intents.values() for clause in clauses]
    assert len(set(everything)) == len(everything)


@pytest.mark.slow
def test_unlabelled_messages_differ_from_each_other():
    keys = {fold(text) for text in unlabelled(DISTINCT)}
    assert len(keys) == DISTINCT


@pytest.mark.slow
def test_unlabelled_messages_depend_on_the_seed_alone():
    first = list(unlabelled(4000, seed=5))
    assert first == list(unlabelled(4000, seed=5))
    assert len(set(first) & set(unlabelled(4000, seed=6))) < 200


def test_a_shorter_stream_begins_a_longer_one():
    assert list(unlabelled(50, seed=2)) == list(itertools.islice(unlabelled(1_000_000, seed=2), 50))


def test_unlabelled_messages_are_not_hand_written_ones():
    held = {fold(text) for text, _ in every_row()}
    assert held.isdisjoint(fold(text) for text in unlabelled(4000))


def test_unlabelled_messages_have_all_slots_filled():
    assert not any(set("{}#") & set(text) for text in unlabelled(4000))


def test_unlabelled_messages_stay_short():
    assert max(len(text) for text in unlabelled(4000)) < 400


def test_unlabelled_takes_no_negative_count():
    with pytest.raises(ValueError, match="negative"):
        unlabelled(-1)
