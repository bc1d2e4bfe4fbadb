"""The objective's terms under names that people read, each in a colour of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable

from stillhouse.core.results import Record

# Terms that read the models' answers; all others read what is inside them.
OUTER = ("soft", "hard", "gold")
NAMES = {
    "soft": "soft targets",
    "hard": "hard targets",
    "gold": "gold answers",
    "embedding": "embeddings",
    "hidden": "hidden states",
    "attention_kl": "attention, KL",
    "cosine": "cosine of states",
    "gram": "Gram matrices",
}


def kind(term: str) -> str:
    """`hidden` of `hidden`, `hidden-2` and `hidden_2`."""
    return _parts(term)[0]


def name(term: str) -> str:
    """`attention_kl` as attention, KL; a number that tells two terms of a kind apart stays."""
    base, number = _parts(term)
    return NAMES.get(base, base.replace("_", " ")) + (f" {number}" if number else "")


def of(record: Record) -> list[str]:
    """The terms of all stages, once each: a term's place is its colour."""
    return list(dict.fromkeys(term for stage in record.stages for term in stage.terms))


def names(terms: Iterable[str]) -> dict[str, str]:
    return {term: name(term) for term in terms}


def _parts(term: str) -> tuple[str, str]:
    found = re.fullmatch(r"(.*?[^\d\W_])[ _-]?(\d+)", term)
    return (found[1], found[2]) if found else (term, "")
