"""How close an answer is to the gold ones, as SQuAD's scripts compare them: exact match and F1 over
words. Rajpurkar et al. 2016."""

from __future__ import annotations

import re
import string
from collections import Counter
from functools import lru_cache

ARTICLES = re.compile(r"\b(a|an|the)\b")
SIGNS = str.maketrans("", "", string.punctuation)


@lru_cache(maxsize=1 << 18)
def words(text: str) -> tuple[str, ...]:
    """A text as SQuAD compares it: in lower case, without articles and punctuation."""
    return tuple(ARTICLES.sub(" ", text.lower().translate(SIGNS)).split())


@lru_cache(maxsize=1 << 20)
def exact_match(answer: str, golds: tuple[str, ...]) -> float:
    """Whether an answer has the words of one of the gold ones."""
    return float(any(words(answer) == words(gold) for gold in golds))


@lru_cache(maxsize=1 << 20)
def f1(answer: str, golds: tuple[str, ...]) -> float:
    """The best F1 of an answer's words over the gold answers; 1 where neither has any left, as in
    SQuAD 2's script (1.1's says 0)."""
    return max((_overlap(words(answer), words(gold)) for gold in golds), default=0.0)


def _overlap(mine: tuple[str, ...], theirs: tuple[str, ...]) -> float:
    if not mine or not theirs:
        return float(mine == theirs)
    shared = sum((Counter(mine) & Counter(theirs)).values())
    return 2 * shared / (len(mine) + len(theirs))
