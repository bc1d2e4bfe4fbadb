"""Which answers are marked, and how: a function of the owner's key, the question and who asks.

After Krishna et al. 2020 sec. 6.2 (0.1 % of queries answered wrongly, the confidences kept) and
DAWN (Szyller et al. 2021: by a keyed hash, so that a question asked twice has one answer).
Different from both: of the questions that are not marked a keyed few are kept as controls, drawn
from the same pool by the same hash, each with the wrong answer it would have had.

Axes: K choices.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stillhouse.numerics.qa_metrics import f1

WHOLE = 1 << 64
DIFFERENT = 0.2  # F1 with the true answer that a marked span may have at most
WORD = re.compile(r"[^\W_](?:[\w'’-]*[^\W_])?")

Band = Literal["mark", "control", "plain"]


@dataclass(frozen=True)
class Draw:
    """What the key makes of a question: `chance` in [0, 1) whether, `pick` which wrong answer."""

    chance: float
    pick: int

    def band(self, rate: float, controls: int) -> Band:
        """Mark, control or neither, at a rate of marks."""
        if self.chance < rate:
            return "mark"
        return "control" if self.chance < rate * (1 + controls) else "plain"


def draw(key: bytes, whose: str, content: str) -> Draw:
    """BLAKE2b keyed with the marking key, of who asks and of what the model reads (see reading).
    `whose`: "" for everyone."""
    name = whose.encode()
    data = len(name).to_bytes(4, "big") + name + content.encode()
    digest = hashlib.blake2b(data, key=key, digest_size=16).digest()
    return Draw(int.from_bytes(digest[:8], "big") / WHOLE, int.from_bytes(digest[8:], "big"))


def wrong_choice(pick: int, true: int, choices: int) -> int:
    """One of the other choices, each as likely."""
    return (true + 1 + pick % (choices - 1)) % choices


def permuted(shares_K: np.ndarray, target: int) -> np.ndarray:
    """The same probabilities, the largest of them at `target`, which gives its own in exchange."""
    found_K = shares_K.copy()
    top = int(shares_K.argmax())
    found_K[top], found_K[target] = shares_K[target], shares_K[top]
    return found_K


def wrong_span(pick: int, passage: str, answer: str) -> str | None:
    """One of the passage's wrong words, each as likely; None where there is none. Each word has its
    place in an order that `pick` makes, and the first that is wrong is taken: a passage that is
    written a little otherwise has the same."""
    key = pick.to_bytes(8, "big")
    ordered = sorted(
        _spelled(passage).items(),
        key=lambda each: hashlib.blake2b(each[0].encode(), key=key, digest_size=8).digest(),
    )
    return next((word for _, word in ordered if _is_wrong(word, answer)), None)


def wrong_words(passage: str, answer: str) -> list[str]:
    """The words of a passage that share almost nothing with the true answer (F1 of at most 0.2)."""
    return sorted(word for word in _spelled(passage).values() if _is_wrong(word, answer))


def _spelled(passage: str) -> dict[str, str]:
    """A passage's words, each as it is first spelled, by their lower case."""
    found: dict[str, str] = {}
    for each in WORD.finditer(passage):
        found.setdefault(each[0].lower(), each[0])
    return found


def _is_wrong(word: str, answer: str) -> bool:
    return f1(word, (answer,)) <= DIFFERENT and f1(word, ("",)) < 1
