"""How long a pass of the model takes, learned from those that were run."""

from __future__ import annotations

PASS_S = 0.02  # what a pass is to take
OWN_SHARE, BRIEF_SHARE = 0.25, 0.5  # of a pass's time, that it may take whatever it holds
FORGETS = 0.95  # what an observation weighs after the next one
FIRST_S = 1e-4  # a token, before any pass was timed
LEAST_S = 1e-6  # what a clock may fail to see
SPREAD = 0.1  # variance of the passes' tokens, by their squared mean, that tells a line
STALE = 50  # passes after which a line is looked for again
JUMP = 3.0  # the greatest factor by which a pass is believed to be slower than expected


class Pace:
    """A line through the latest passes: seconds = base + slope * tokens, padding included. A pass
    has a cost of its own, so that a few short rows together cost hardly more than one. Passes of
    about one size tell no line, only how much faster or slower all is than by the last one."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._base, self._slope = 0.0, FIRST_S
        self._warm, self._since = False, STALE  # passes since a line was told

    def observe(self, tokens: int, seconds: float) -> None:
        if not self._warm:  # the first pass of a process takes many times as long
            self._warm = True
            return
        seconds = max(seconds, LEAST_S)
        if not self._since:
            seconds = min(seconds, JUMP * self.seconds(tokens))
        kept = FORGETS
        self._weight = kept * self._weight + 1.0
        self._x = kept * self._x + tokens
        self._y = kept * self._y + seconds
        self._xx = kept * self._xx + tokens * tokens
        self._xy = kept * self._xy + tokens * seconds
        x, y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - x * x
        if variance > SPREAD * x * x:
            slope = (self._xy / self._weight - x * y) / variance
            self._slope = min(max(slope, 0.0), y / x)  # neither part is below 0
            self._base = y - self._slope * x
            self._since = 0
        else:
            factor = y / (self._base + self._slope * x)
            self._base *= factor
            self._slope *= factor
            self._since += 1

    def seconds(self, tokens: int) -> float:
        """How long a pass of so many tokens is expected to take."""
        return self._base + self._slope * tokens

    def allows(self, tokens: int, *, brief: bool = False) -> bool:
        """Whether a pass of so many tokens is short enough: `PASS_S`, or where a pass has a large
        cost of its own, until that is `OWN_SHARE` of it (brief: `BRIEF_SHARE`), as many short
        passes would take longer for all. Where the latest passes were all too much alike to tell,
        twice as many tokens as they had."""
        own = self._base / (BRIEF_SHARE if brief else OWN_SHARE)
        if self.seconds(tokens) <= max(PASS_S, own):
            return True
        return self._since >= STALE and 0 < tokens * self._weight <= 2 * self._x
