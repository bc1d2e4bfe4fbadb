"""Which questions of made-up clients are odd, C x N: what the sequential test is tried on.

Axes: C clients, N questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Shape = tuple[int, int]


def independent(rng: np.random.Generator, shape: Shape, share: float | np.ndarray) -> np.ndarray:
    return rng.random(shape) < share


def bursty(
    rng: np.random.Generator, shape: Shape, share: float, length: float, *, inside: float = 1.0
) -> np.ndarray:
    """Bursts of a geometric length with this mean, in which a share `inside` is odd, and calm
    between them; `share` of all questions are odd. The first question is like any other."""
    at_any_time = share / inside
    begins = at_any_time / (1 - at_any_time) / length
    in_burst = rng.random(shape[0]) < at_any_time
    found = np.empty(shape, dtype=bool)
    for place in range(shape[1]):
        found[:, place] = in_burst
        drawn = rng.random(shape[0])
        in_burst = np.where(in_burst, drawn >= 1 / length, drawn < begins)
    return found & (rng.random(shape) < inside)


def interleaved(rng: np.random.Generator, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Two people with one key, who take turns at random."""
    turn = rng.random(one.shape) < 0.5
    rows = np.arange(len(one))[:, None]
    mine, theirs = np.cumsum(turn, 1) - 1, np.cumsum(~turn, 1) - 1
    return np.where(turn, one[rows, mine], other[rows, theirs])


def sessions(
    rng: np.random.Generator, shape: Shape, shares: tuple[float, float], length: int
) -> np.ndarray:
    """Day and night, `length` questions each, begun anywhere, with other shares of odd ones."""
    begun = rng.integers(0, 2 * length, shape[0])[:, None]
    night = (np.arange(shape[1]) + begun) // length % 2
    return independent(rng, shape, np.array(shares)[night])


HONEST: Mapping[str, Callable[[np.random.Generator, Shape], np.ndarray]] = {
    "independent, 5 %": lambda rng, shape: independent(rng, shape, 0.05),
    "bursts of 5, 5 %": lambda rng, shape: bursty(rng, shape, 0.05, 5),
    "bursts of 20, 5 %": lambda rng, shape: bursty(rng, shape, 0.05, 20),
    "bursts of 50, 5 %": lambda rng, shape: bursty(rng, shape, 0.05, 50),
    "bursts of 50, 10 %": lambda rng, shape: bursty(rng, shape, 0.1, 50),
    "bursts of 50, half odd, 5 %": lambda rng, shape: bursty(rng, shape, 0.05, 50, inside=0.5),
    "drifting, 2 to 9 %": lambda rng, shape: independent(
        rng, shape, np.linspace(0.02, 0.09, shape[1])
    ),
    "two with one key, bursts of 25, 5 %": lambda rng, shape: interleaved(
        rng, bursty(rng, shape, 0.05, 25), bursty(rng, shape, 0.05, 25)
    ),
    "day 1 %, night 9 %": lambda rng, shape: sessions(rng, shape, (0.01, 0.09), 200),
    "3 % alone, 5 % in bursts of 50": lambda rng, shape: (
        independent(rng, shape, 0.03) | bursty(rng, shape, 0.05, 50)
    ),
}
