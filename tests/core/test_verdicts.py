"""How a verdict is said, and what would decide an open one."""

from __future__ import annotations

import pytest

from stillhouse.core.results import Gain, Needed
from stillhouse.core.verdicts import in_words, seeds_in_words, what_decides


def gain(seeds: int, *, reason: str | None = None) -> Gain:
    return Gain(value=0.0, interval=(-0.1, 0.1), p_value=1.0, seeds=seeds, reason=reason)


@pytest.mark.parametrize("word", ["helped", "hurt", "no difference", "can't tell"])
def test_one_seed_is_about_two_models(word: str) -> None:
    assert in_words(word, gain(1)) == f"{word}, these two models only"
    assert in_words(word, gain(2)) == word


@pytest.mark.parametrize("seeds", [1, 2])
def test_what_is_not_comparable_says_why(seeds: int) -> None:
    found = gain(seeds, reason="neither learned the task")
    assert in_words("not comparable", found) == "not comparable: neither learned the task"
    assert in_words("not comparable", found, why=False) == "not comparable"


def test_seeds_are_counted() -> None:
    assert (seeds_in_words(1), seeds_in_words(3)) == ("one seed", "3 seeds")


@pytest.mark.parametrize(
    ("seeds", "more_seeds", "more_rows", "said"),
    [
        (2, 4, 1873, "About 4 more seeds, or 1,900 more test rows, would decide, if the gain "
                     "stays the same."),
        (2, 1, 90, "About 1 more seed, or 90 more test rows, would decide, if the gain stays the "
                   "same."),
        (2, 4, None, "About 4 more seeds would decide, if the gain stays the same."),
        (2, None, 1000, "About 1,000 more test rows would decide, if the gain stays the same."),
        (2, None, 1001, "About 1,100 more test rows would decide, if the gain stays the same."),
        (2, None, None, "Neither more seeds alone nor more test rows alone (up to 50 seeds, or a "
                        "million test rows) would decide, if the gain stays the same."),
        (1, None, 640, "About 640 more test rows would decide between these two models, if the "
                       "gain stays the same. Of the recipe only more seeds can tell: train three "
                       "or more."),
        (1, None, None, "Of the recipe only more seeds can tell: train three or more."),
    ],
)  # fmt: skip
def test_what_would_decide(
    seeds: int, more_seeds: int | None, more_rows: int | None, said: str
) -> None:
    assert what_decides(Needed(more_seeds=more_seeds, more_rows=more_rows), seeds) == said


def test_one_row_is_counted_as_one() -> None:
    needed = Needed(more_seeds=None, more_rows=1)
    assert what_decides(needed, 2).startswith("About 1 more test row would decide")
    of_text = what_decides(needed, 2, rows="blocks of test text")
    assert of_text.startswith("About 1 more block of test text would decide")
