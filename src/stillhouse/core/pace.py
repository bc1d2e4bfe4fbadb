"""How far a piece of work is, how fast it goes, and how long the rest will take."""

from __future__ import annotations

from collections import deque

RECENT_S = 60.0  # what is gone by for how fast it goes
SPACING_S = 1.0  # between two moments that are remembered


class Pace:
    """Counts work that is done. `total`: 0 where nobody knows it. Moments are seconds of any one
    clock; the caller reads it."""

    def __init__(self, total: int, started: float) -> None:
        self.total, self.done, self.started = total, 0, started
        self._moments = deque([(started, 0)])
        self._last = started

    def add(self, count: int, now: float) -> None:
        self.done += count
        self._last = now
        if now - self._moments[-1][0] >= SPACING_S:
            self._moments.append((now, self.done))
            while len(self._moments) > 2 and self._moments[1][0] <= now - RECENT_S:
                self._moments.popleft()

    def per_s(self, now: float) -> float:
        """Units a second over the last minute before the latest report; 0 before the first. What
        comes in lumps is as fast as its lumps came; only once it has been silent for longer than
        what is looked at it counts as slower."""
        since, before = self._moments[0]
        took = max(self._last - since, now - self._last)
        return (self.done - before) / took if took > 0 else 0.0

    def left_s(self, now: float) -> float | None:
        """Seconds for what is not done yet; None where that can't be told."""
        speed = self.per_s(now)
        if not speed or self.done >= self.total:
            return None
        return (self.total - self.done) / speed


def lasting(seconds: float) -> str:
    """A duration in words: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(whole / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def rate(speed: float, unit: str) -> str:
    """Units a second, or seconds a unit where these are slow."""
    if speed >= 1:
        return f"{speed:,.{1 if speed < 10 else 0}f} {unit}/s"
    return f"{1 / speed:,.1f} s each" if speed > 0 else ""
