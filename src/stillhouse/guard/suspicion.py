"""Evidence that a client asks what no customer would, valid however often it is looked at.

Every new question is odd or not: its membership score is beyond a line. An honest client's are odd
in no more than a share `tolerance`. Against that a bet is kept (a test martingale, Ville 1939;
Shafer 2021): its capital after n questions, k of them odd, is the mean over rates q above the
tolerance p of (q / p)^k ((1 - q) / (1 - p))^(n - k). For an honest client it ever reaches 1 / alpha
with a probability of at most alpha. Only n and k count, so workers add theirs up.

A client that turns to stealing after a long honest time is judged by windows: in window j the line
is j (j + 1) / alpha, whose chances add up to alpha.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from stillhouse.core.terms import Config, Share

RATES = 16
WINDOW = 1000  # questions


class Odds(Config):
    """alpha: the chance that an honest client is ever flagged. tolerance: the share of an honest
    client's questions that may look odd."""

    alpha: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    tolerance: Annotated[Share, Field(gt=0, lt=1)] = 0.1


@dataclass(frozen=True)
class Evidence:
    """Of one client: questions asked anew in this window, how many were odd, and which window."""

    asked: int = 0
    odd: int = 0
    window: int = 1

    def and_(self, asked: int, odd: int) -> Evidence:
        """With more questions; a full window is closed."""
        found = replace(self, asked=self.asked + asked, odd=self.odd + odd)
        return Evidence(window=self.window + 1) if found.asked >= WINDOW else found


def capital(evidence: Evidence, tolerance: float) -> float:
    """The natural logarithm of what the bet is worth."""
    p, k, n = tolerance, evidence.odd, evidence.asked
    if n == 0:
        return 0.0
    rates = [p + (1 - p) * (i + 0.5) / RATES for i in range(RATES)]
    logs = [k * math.log(q / p) + (n - k) * math.log((1 - q) / (1 - p)) for q in rates]
    top = max(logs)
    return top + math.log(sum(math.exp(each - top) for each in logs) / RATES)


def is_suspect(evidence: Evidence, odds: Odds) -> bool:
    """Whether the bet has won what no honest client would let it, but for one in 1 / alpha."""
    j = evidence.window
    return capital(evidence, odds.tolerance) >= math.log(j * (j + 1) / odds.alpha)


def joined(before: Evidence, asked: int, odd: int, odds: Odds) -> tuple[Evidence, bool]:
    """The evidence with more questions, and whether that makes a suspect, before a full window is
    closed."""
    grown = replace(before, asked=before.asked + asked, odd=before.odd + odd)
    return before.and_(asked, odd), is_suspect(grown, odds)
