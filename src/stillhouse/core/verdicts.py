"""How a verdict is said: never without the caveat that one seed calls for."""

from __future__ import annotations

from stillhouse.core.results import Gain, Needed

ONE_SEED = "these two models only"
MOST = "up to 50 seeds, or a million test rows"  # what numerics.gains looks as far as


def in_words(word: str, gain: Gain, *, why: bool = True) -> str:
    """A verdict's word, and (`why`) the reason where two models are not comparable; with one seed
    it is about the two that were trained, and says so."""
    if why and gain.reason is not None:
        return f"{word}: {gain.reason}"
    if gain.seeds > 1 or word == "not comparable":
        return word
    return f"{word}, {ONE_SEED}"


def seeds_in_words(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"{seeds} seeds"


def what_decides(needed: Needed, seeds: int, *, rows: str = "test rows") -> str:
    """A sentence on how an open verdict could be decided. rows: what the test data consist of."""
    more_rows = None
    if needed.more_rows is not None:
        more_rows = f"{_rounded_up(needed.more_rows):,} more {_counted(needed.more_rows, rows)}"
    if seeds == 1:
        alone = "Of the recipe only more seeds can tell: train three or more."
        if more_rows is None:
            return alone
        between = f"About {more_rows} would decide between these two models"
        return f"{between}, if the gain stays the same. {alone}"
    more_seeds = None
    if needed.more_seeds is not None:
        more_seeds = f"{needed.more_seeds} more seed{'' if needed.more_seeds == 1 else 's'}"
    if more_seeds is None and more_rows is None:
        return (
            f"Neither more seeds alone nor more {rows} alone ({MOST}) would decide, if the gain "
            "stays the same."
        )
    if more_seeds is not None and more_rows is not None:
        return f"About {more_seeds}, or {more_rows}, would decide, if the gain stays the same."
    return f"About {more_seeds or more_rows} would decide, if the gain stays the same."


def _counted(count: int, rows: str) -> str:
    """Test rows, or blocks of test text; of one the singular."""
    first, *more = rows.split(" of ", 1)
    return " of ".join([first.removesuffix("s"), *more]) if count == 1 else rows


def _rounded_up(count: int) -> int:
    """To two significant digits."""
    step = 10 ** max(0, len(str(count)) - 2)
    return -(-count // step) * step
