"""Rows inside running text are found, wherever its lines end."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import tiny
from stillhouse.core.config import CorpusConfig, DataConfig
from stillhouse.core.folding import folded
from stillhouse.core.types import Example
from stillhouse.data import occurrences as module
from stillhouse.data.corpus import load_corpus
from stillhouse.data.occurrences import Occurrences
from stillhouse.data.sources import load


def count(rows: list[Example], lines: list[str]) -> tuple[int, int]:
    found = Occurrences(rows)
    for line in lines:
        found.read(folded(line))
    return found.count(), found.sought


def example(text: str, pair: str | None = None) -> Example:
    return Example(text, pair, None, None)


@pytest.mark.parametrize("waiting", [1, 40, 1 << 16])
def test_the_count_is_the_one_by_hand(waiting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of few words, which occur by chance, and of many; lines that end within them."""
    monkeypatch.setattr(module, "WAITING", waiting)
    rng = random.Random(0)
    text = [rng.choice("abcd") for _ in range(4000)]
    rows = []
    for i in range(200):
        length = rng.randint(3, 30)
        words = text[i * 20 : i * 20 + length]
        if i % 2:
            words[-1] = "zz" if i % 4 == 1 else "e"
        rows.append(" ".join(words))
    whole = f" {' '.join(text)} "
    sought = [row for row in rows if len(row.split()) >= 5]
    expected = sum(f" {row} " in whole for row in sought)
    assert 50 < expected < len(sought) - 50
    lines, at = [], 0
    while at < len(text):
        length = rng.randint(1, 50)
        lines.append(" ".join(text[at : at + length]))
        at += length
    assert count(list(map(example, rows)), lines) == (expected, len(sought))


def test_marks_case_and_what_is_not_seen_do_not_hide_a_row() -> None:
    line = "He said: „The film was VERY good\u200b, and the book, too“; nobody heard."
    assert count([example("the film was very good and the book too")], [line]) == (1, 1)
    assert count([example("the film was very bad and the book too")], [line]) == (0, 1)


def test_of_a_pair_both_texts_must_occur() -> None:
    one, other = "the film was very good indeed", "the soup was cold and dull"
    assert count([example(one, other)], [f"so {one} x"]) == (0, 1)
    assert count([example(one, other)], [f"so {one} x", f"and {other}"]) == (1, 1)
    assert count([example(one, "short")], [one, "short"]) == (0, 0)


def test_a_stage_s_corpus_says_which_test_rows_are_inside_its_lines(tmp_path: Path) -> None:
    texts = [text for text, _ in tiny.sentences(240)]
    rows = [(f"{text} {i}x", "ab"[i % 2]) for i, text in enumerate(texts[:40])]
    tiny.write_csv(tmp_path / "data" / "dev.csv", ["text", "label"], rows[:20])
    tiny.write_csv(tmp_path / "data" / "train.csv", ["text", "label"], rows[20:])
    splits = load(DataConfig(path=str(tmp_path / "data")), tmp_path / "rows")
    lines = [*texts[40:], *(f"we say {text.upper()} and we say it" for text, _ in rows[:7])]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = CorpusConfig(path=str(tmp_path / "text.txt"), length=16, held_out=0.0, reported=0.0)
    long = sum(len(text.split()) >= 5 for text, _ in rows[:7])

    def notes(**given: object) -> list[str]:
        found = load_corpus(config, tiny.tokenizer(), tmp_path, max_length=64, **given)  # pyright: ignore
        return [note for note in found.notes if "test rows" in note]

    for _ in range(2):  # read, and from disk
        (note,) = notes(sought=splits.reported)
        assert f": {long} of" in note
    assert notes(sought=splits.held_out) == []
    assert notes() == []
