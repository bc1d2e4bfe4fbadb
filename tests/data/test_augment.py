"""Augmentation: which words give way, to what, how often; only the row's content counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.config import AugmentConfig
from stillhouse.core.types import Example
from stillhouse.data import augment
from stillhouse.data.augment import (
    Place,
    Tally,
    augment_rows,
    first_of,
    is_word,
    places,
    word_at,
)
from stillhouse.data.rows import folded_key

NONE = np.empty((0, 2), "<u8")
OTHERS = ["alpha", "beta", "gamma", "delta", "omega"]
ROWS = [
    Example("The staff was kind, but the ROOM was cold!", None, "positive"),
    Example("  Two\tspaces  and\n(a)   bracket… ", None, "negative"),
    Example("naïve café — don't 1,234.5 mother-in-law", None, None),
    Example("Soup", None, 0.5),
]
PAIRS = [
    Example("A fine film.", "The film was fine.", "same"),
    Example("Warm soup", "cold soup", "other"),
]


class Same:
    """The same candidates for every word; remembers what it was asked."""

    def __init__(self, words: Sequence[str] = OTHERS) -> None:
        self.words = list(words)
        self.asked: list[int] = []

    def __call__(
        self, examples: Sequence[Example], places: Sequence[Sequence[Place]]
    ) -> list[list[list[str]]]:
        self.asked.append(len(examples))
        return [[list(self.words) for _ in here] for here in places]


def variants(
    rows: Sequence[Example],
    source: augment.Candidates | None = None,
    /,
    *,
    forbidden: np.ndarray = NONE,
    tally: Tally | None = None,
    stop_words: Sequence[str] | None = None,
    **settings: object,
) -> list[Example]:
    config = AugmentConfig.model_validate(settings)
    stop = augment.STOP_WORDS if stop_words is None else stop_words
    found = augment_rows(
        rows, source or Same(), config, forbidden_N2=forbidden, tally=tally, stop_words=stop
    )
    return list(found)


def keys(rows: Sequence[Example]) -> np.ndarray:
    raw = b"".join(folded_key(row.text, row.pair) for row in rows)
    return np.frombuffer(raw, "<u8").reshape(-1, 2)


def test_words_are_the_alphabetic_ones_without_stop_words() -> None:
    found = [[word_at(row, place) for place in places(row)] for row in ROWS]
    assert found == [
        ["staff", "kind", "ROOM", "cold"],
        ["Two", "spaces", "bracket"],
        ["naïve", "café"],
        ["Soup"],
    ]
    assert [word_at(PAIRS[0], place) for place in places(PAIRS[0])] == ["fine", "film"] * 1 + [
        "film",
        "fine",
    ]


def test_stop_words_can_be_others_or_none() -> None:
    row = Example("The soup was cold")
    assert [word_at(row, p) for p in places(row, ())] == ["The", "soup", "was", "cold"]
    assert [word_at(row, p) for p in places(row, {"soup"})] == ["The", "was", "cold"]
    (one,) = variants([row], Same(["x"]), share=1, copies=1, stop_words=())
    assert one.text == "X x x x"


@pytest.mark.parametrize(
    "text",
    ["", " ", "the of and", "42 3.5 %", "don't", "中文句子", "ภาษาไทย", "#tag @name C++ a.b", "…"],
)
def test_texts_without_a_replaceable_word_give_nothing(text: str) -> None:
    tally = Tally()
    assert variants([Example(text)], share=1, copies=3, tally=tally) == []
    assert tally == Tally(repeated=3)


def test_letters_with_marks_make_a_word() -> None:
    assert is_word("cafe\u0301")
    assert is_word("здание")
    assert is_word("हिन्दी")
    assert is_word("한국어")
    assert not is_word("\u0301cafe")
    assert not is_word("naïve2")


def test_spacing_punctuation_and_case_stay() -> None:
    found = [v.text for v in variants(ROWS, Same(["new"]), share=1, copies=1)]
    assert found == [
        "The new was new, but the New was new!",
        "  New\tnew  and\n(a)   new… ",
        "new new — don't 1,234.5 mother-in-law",
        "New",
    ]


def test_a_word_takes_the_first_letter_case_of_what_it_replaces() -> None:
    found = variants([Example("paris Paris PARIS")], Same(["London"]), share=1, copies=1)
    assert [v.text for v in found] == ["london London London"]


def test_a_share_of_0_changes_nothing_and_of_1_every_word() -> None:
    assert variants(ROWS, share=0) == []
    for variant, row in zip(variants(ROWS, share=1, copies=1), ROWS, strict=True):
        changed = {word_at(variant, place).lower() for place in places(variant)}
        assert len(places(variant)) == len(places(row))
        assert changed <= set(OTHERS)


def test_as_many_words_are_replaced_as_the_share_says() -> None:
    words = ["film", "book", "meal", "room", "hotel", "phone", "train", "staff", "screen", "soup"]
    row = Example(" ".join(words))
    found = variants([row], share=0.4, copies=500)
    replaced = np.array([[a != b for a, b in zip(v.text.split(), words)] for v in found])  # noqa: B905
    trials = replaced.size
    spread = math.sqrt(0.4 * 0.6 / trials)
    assert abs(replaced.mean() - 0.4) < 4 * spread
    assert (abs(replaced.mean(0) - 0.4) < 4 * math.sqrt(0.4 * 0.6 / len(found))).all()
    chosen = [a for v in found for a, b in zip(v.text.split(), words) if a != b]  # noqa: B905
    shares = np.array([chosen.count(word) for word in OTHERS]) / len(chosen)
    assert (abs(shares - 0.2) < 4 * math.sqrt(0.2 * 0.8 / len(chosen))).all()


def test_candidates_are_the_first_k_that_differ_from_the_word_and_each_other() -> None:
    words = ["SOUP", "broth", "Broth", "stew", "soûp", "chili", "curry"]
    found = variants(
        [Example("Soup"), Example("soup")], Same(words), share=1, copies=200, candidates=3
    )
    assert {v.text for v in found} == {"Broth", "Stew", "Chili", "broth", "stew", "chili"}


def test_a_word_without_candidates_stays_and_moves_no_other_draw() -> None:
    class Some(Same):
        def __call__(
            self, examples: Sequence[Example], places: Sequence[Sequence[Place]]
        ) -> list[list[list[str]]]:
            found = super().__call__(examples, places)
            return [[words if i else [] for i, words in enumerate(row)] for row in found]

    row = Example("film book meal")
    every = variants([row], share=1, copies=4)
    some = variants([row], Some(), share=1, copies=4)
    assert len(every) == 4
    assert all(v.text.startswith("film ") for v in some)
    assert [v.text.split()[1:] for v in some] == [v.text.split()[1:] for v in every]


def test_labels_are_gone_and_pairs_stay_pairs() -> None:
    assert all(v.label is None and v.pair is None for v in variants(ROWS))
    assert all(v.label is None and v.pair is not None for v in variants(PAIRS))


def test_each_copy_starts_from_the_original_pair() -> None:
    row = Example("film book meal room", "hotel phone train staff")
    found = variants([row], share=0.2, copies=200)
    for text, original in (("text", row.text), ("pair", row.pair)):
        kept = [getattr(v, text) == original for v in found]
        assert abs(np.mean(kept) - 0.8**4) < 0.15  # one that went on from the last would be rare
    late = [a == b for a, b in zip(found[-1].text.split(), row.text.split(), strict=True)]
    assert any(late)


@pytest.mark.parametrize("rows", [ROWS, PAIRS], ids=["texts", "pairs"])
def test_draws_depend_on_the_content_alone(
    rows: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_row(order: Sequence[Example]) -> dict[Example, list[Example]]:
        found = {row: variants([row], copies=6) for row in order}
        together = iter(variants(order, copies=6))
        for row in order:
            assert found[row] == [next(together) for _ in found[row]]
        return found

    first = by_row(rows)
    assert by_row(rows[::-1]) == first
    monkeypatch.setattr(augment, "CHUNK", 1)
    source = Same()
    assert variants(rows, source, copies=6) == [v for row in rows for v in first[row]]
    assert source.asked == [1] * len(rows)


def test_the_order_of_candidates_does_not_matter() -> None:
    assert variants(ROWS, Same(OTHERS[::-1]), copies=5) == variants(ROWS, copies=5)


def test_another_seed_and_another_copy_draw_otherwise() -> None:
    row = Example("film book meal room hotel phone train staff")
    assert variants([row], seed=1) != variants([row], seed=0)
    assert len(set(variants([row], copies=10))) == 10
    assert variants([row], copies=10)[:4] == variants([row], copies=4)


def test_equal_copies_are_dropped_and_counted() -> None:
    tally = Tally()
    found = variants([Example("Soup!")], Same(["stew", "broth"]), share=0.5, copies=50, tally=tally)
    assert sorted(v.text for v in found) == ["Broth!", "Stew!"]
    assert tally == Tally(made=2, repeated=48)


def test_forbidden_rows_never_appear() -> None:
    rows = [Example("Soup!"), PAIRS[1]]
    free = variants(rows, copies=60, share=0.7)
    forbidden = [Example("stew!"), *free[::2]]
    as_written = [
        Example(f" {row.text.upper()} ", None if row.pair is None else row.pair.title())
        for row in forbidden
    ]
    tally = Tally()
    found = variants(rows, forbidden=keys(as_written), copies=60, share=0.7, tally=tally)
    assert set(found) == set(free) - set(forbidden)
    assert tally.forbidden == len(free[::2])
    assert tally.made == len(found)


def test_a_very_long_text() -> None:
    row = Example("film " * 20_000 + "end")
    (variant,) = variants([row], copies=1, share=0.4)
    assert len(variant.text.split()) == 20_001
    assert 0.38 < np.mean([word != "film" for word in variant.text.split()]) < 0.42


@given(st.text(), st.none() | st.text())
def test_any_text_keeps_all_but_its_words(text: str, pair: str | None) -> None:
    row = Example(text, pair)
    here = places(row)
    for variant in variants([row], Same(["new", "word"]), share=1, copies=2):
        assert len(places(variant)) == len(here)
        for side in (0, 1):
            mine, theirs = (r.pair or "" if side else r.text for r in (row, variant))
            for before, after in zip(here, places(variant), strict=True):
                if before[0] == side:
                    mine = mine.replace(word_at(row, before), "\x00", 1)
                    theirs = theirs.replace(word_at(variant, after), "\x00", 1)
            if text.isascii() and "new" not in text and "word" not in text:
                assert len(mine) == len(theirs)


def test_the_second_source_is_asked_for_what_the_first_does_not_know() -> None:
    asked: list[str] = []

    def first(
        examples: Sequence[Example], places: Sequence[Sequence[Place]]
    ) -> list[list[list[str]]]:
        return [[["a"] if i % 2 else [] for i, _ in enumerate(here)] for here in places]

    def second(
        examples: Sequence[Example], places: Sequence[Sequence[Place]]
    ) -> list[list[list[str]]]:
        asked.extend(word_at(e, p) for e, here in zip(examples, places, strict=True) for p in here)
        return [[["b"] for _ in here] for here in places]

    rows = [Example("film book meal"), Example(""), Example("soup")]
    found = first_of(first, second)(rows, [places(row) for row in rows])
    assert found == [[["b"], ["a"], ["b"]], [], [["b"]]]
    assert asked == ["film", "meal", "soup"]
