"""How long a pass of the model takes, learned from those that were run."""

from __future__ import annotations

FORGETS = 0.95  # what an observation weighs after the next one
FIRST_S = 1e-4  # a token, before any pass was timed


class Pace:
    """A line through the latest passes: seconds = base + slope * tokens, padding included. A pass
    has a cost of its own, so that a few short rows together cost hardly more than one."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        kept = FORGETS
        self._weight = kept * self._weight + 1.0
        self._x = kept * self._x + tokens
        self._y = kept * self._y + seconds
        self._xx = kept * self._xx + tokens * tokens
        self._xy = kept * self._xy + tokens * seconds

    def seconds(self, tokens: int) -> float:
        """How long a pass of so many tokens is expected to take."""
        if not self._weight:
            return FIRST_S * tokens
        x, y = self._x / self._weight, self._y / self._weight
        spread = self._xx / self._weight - x * x
        # passes of one size only tell no slope: then a token costs its share
        slope = (self._xy / self._weight - x * y) / spread if spread > 1e-3 * x * x else y / x
        slope = min(max(slope, 0.0), y / x)  # neither part is below 0
        return y + slope * (tokens - x)
