"""Test rows that are almost training rows are counted, as by hand."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from stillhouse.core.config import DataConfig
from stillhouse.core.types import Example
from stillhouse.data import near_duplicates as module
from stillhouse.data import sources
from stillhouse.data.chat import Conversation
from stillhouse.data.near_duplicates import near_duplicates
from stillhouse.data.sources import load

NAMES = [a + b + c for a, b, c in itertools.product("bdfgklmnprst", "aeiou", "lmnrst")]


def words(rng: random.Random, count: int) -> list[str]:
    return [rng.choice(NAMES) for _ in range(count)]


def example(text: str, pair: str | None = None) -> Example:
    return Example(text, pair, None, None)


def by_hand(test: list[str], train: list[str]) -> int:
    def grams(text: str) -> set[tuple[str, ...]]:
        found = text.split()
        return {tuple(found[i : i + 3]) for i in range(len(found) - 2)}

    theirs = [grams(text) for text in train]
    return sum(
        any(len(mine & each) / len(mine | each) >= 0.8 for each in theirs)
        for mine in map(grams, test)
    )


def test_the_count_is_the_one_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """From rows with one word changed to rows with all changed, over several chunks."""
    monkeypatch.setattr(module, "CHUNK", 50)
    rng = random.Random(0)
    train = [words(rng, rng.randint(8, 60)) for _ in range(230)]
    test = []
    for row in train[:150]:
        changed = [*row]
        for _ in range(rng.randint(0, 3)):
            changed[rng.randrange(len(row))] = rng.choice(NAMES)
        test.append(" ".join(changed))
    expected = by_hand(test, [" ".join(row) for row in train])
    assert 30 < expected < 120
    heard: list[int] = []
    found = near_duplicates(
        map(example, test), [example(" ".join(row)) for row in train], heard.append
    )
    assert expected - 3 <= found <= expected  # MinHash misses 2 of 100 at the threshold
    assert sum(heard) == 230


LONG = " ".join(words(random.Random(1), 30))
OTHER = " ".join(words(random.Random(2), 30))


@pytest.mark.parametrize(
    ("mine", "theirs", "alike"),
    [
        (LONG.replace(" ", ", ") + "!", LONG, True),  # marks
        (f"“{LONG}” don’t", f"'{LONG}' don't", True),  # typographic ones
        (f"{LONG} 17 {OTHER}", f"{LONG} 2048 {OTHER}", True),  # a number
        (LONG.upper(), LONG, True),
        (LONG.rsplit(" ", 4)[0], LONG, True),  # cut off
        (LONG.rsplit(" ", 15)[0], LONG, False),  # by half
        (f"{LONG} {OTHER}", f"{OTHER} {LONG}", True),
        (LONG, OTHER, False),
        ("yes!", "Yes", True),
        ("yes", "no", False),
        ("😀", "😀 😀", False),
        (
            "映画はとても面白いですからぜひ見てください。",
            "映画はとても面白いですからぜひ見てください！",
            True,
        ),
        ("映画はとても面白い", "本はつまらない", False),
    ],
)
def test_what_is_almost_the_same(mine: str, theirs: str, alike: bool) -> None:
    assert near_duplicates([example(mine)], [example(theirs)]) == alike


def test_a_pair_is_a_near_duplicate_where_both_its_texts_are() -> None:
    """Questions on one passage are none; the same pair turned round is one."""
    mine = [example(f"{LONG}?", OTHER)]
    assert near_duplicates(mine, [example(LONG, f"{OTHER}!")]) == 1
    assert near_duplicates(mine, [example(OTHER, LONG)]) == 1
    passage = " ".join(words(random.Random(3), 400))
    asked = [example("who wrote it", passage)]
    assert near_duplicates(asked, [example("where was it written", passage)]) == 0
    assert near_duplicates(asked, [example("Who wrote it?", passage)]) == 1


def folder(tmp_path: Path, near: int) -> Path:
    rng = random.Random(4)
    rows = [" ".join(words(rng, 40)) for _ in range(120)]
    train = [f"{row} indeed" for row in rows[:near]] + rows[20:]
    for name, texts in (("train", train), ("dev", rows[:20])):
        lines = [f"{text},{'ab'[i % 2]}" for i, text in enumerate(texts)]
        (tmp_path / name).with_suffix(".csv").write_text("\n".join(["text,label", *lines]))
    return tmp_path


def test_a_note_says_how_many_test_rows_are_near_duplicates(tmp_path: Path) -> None:
    found = load(DataConfig(path=str(folder(tmp_path, near=12)), held_out=0.0), tmp_path / "store")
    (note,) = [each for each in found.notes if "near-duplicates" in each]
    assert note.startswith("about 12 of 20 test rows are near-duplicates of training rows")
    assert len(found.train) == 112  # none was left out


def test_no_note_where_there_is_none(tmp_path: Path) -> None:
    found = load(DataConfig(path=str(folder(tmp_path, near=0)), held_out=0.0), tmp_path / "store")
    assert not any("near-duplicates" in each for each in found.notes)


def test_the_same_rows_are_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(path=str(folder(tmp_path, near=5)), held_out=0.0)
    first = load(config, tmp_path / "store").notes

    def again(*arguments: object) -> int:
        raise AssertionError("compared again")

    monkeypatch.setattr(sources, "near_duplicates", again)
    assert load(config, tmp_path / "store").notes == first
    with pytest.raises(AssertionError, match="compared again"):
        load(DataConfig(path=str(folder(tmp_path, near=6)), held_out=0.0), tmp_path / "store")


def test_of_many_test_rows_a_sample_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "COMPARED", 10)
    found = load(DataConfig(path=str(folder(tmp_path, near=20)), held_out=0.0), tmp_path / "store")
    assert any("about 20 of 20 test rows" in each for each in found.notes)


def test_a_system_prompt_that_all_rows_share_makes_no_near_duplicates() -> None:
    rng = random.Random(1)
    shared = " ".join(words(rng, 400))

    def chat(asked: str) -> Example:
        turns = ({"role": "system", "content": shared}, {"role": "user", "content": asked})
        return example(Conversation(turns).stored)

    said = [" ".join(words(rng, 12)) for _ in range(20)]
    assert near_duplicates([chat(each) for each in said[:10]], [chat(e) for e in said[10:]]) == 0
    assert near_duplicates([chat(said[0])], [chat(said[0]), chat(said[1])]) == 1
