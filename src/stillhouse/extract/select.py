"""Choosing which queries to pay for next, with the thief one has.

After ActiveThief (Pal et al. 2020): uncertainty takes what the thief is least sure of, k-centre
what lies farthest from all that was asked, both the second among the first.

Axes: N candidates, C chosen, H hidden, P projected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stillhouse.data.sources import Pool
from stillhouse.extract.config import Selection
from stillhouse.flows.stages import Trained

if TYPE_CHECKING:
    from stillhouse.extract.thief import Thief

PROJECTED = 32  # distances are taken in so many random directions
SHARE = 3  # both: k-centre among so many times as many of the least sure
CHUNK = 4096


def chosen(
    how: Selection,
    thief: Thief,
    trained: Trained,
    candidates: Pool,
    asked: np.ndarray,
    total: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Positions among `candidates`: the ones asked, then those that `how` adds, `total` in all."""
    left = np.setdiff1d(np.arange(len(candidates)), asked)
    count = total - len(asked)
    unsure_N, states_NH = thief.reads(trained, candidates)
    if how == "uncertainty":
        return np.concatenate([asked, left[least_sure(unsure_N[left], count)]])
    if how == "both":
        left = left[least_sure(unsure_N[left], min(len(left), SHARE * count))]
    directions = rng.standard_normal((states_NH.shape[1], min(PROJECTED, states_NH.shape[1])))
    projected_NP = (states_NH @ directions).astype(np.float32)
    return np.concatenate([asked, left[k_centre(projected_NP[left], projected_NP[asked], count)]])


def least_sure(unsure_N: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` largest, the largest first."""
    return np.argsort(-unsure_N, kind="stable")[:count]


def k_centre(points_NP: np.ndarray, centres_CP: np.ndarray, count: int) -> np.ndarray:
    """Greedy k-centre (Gonzalez 1985): places of `count` points, each the farthest from all
    centres and all points before it."""
    norms_N = np.square(points_NP).sum(1)
    nearest_N = np.full(len(points_NP), np.inf, np.float32)
    for start in range(0, len(centres_CP), CHUNK):
        part = centres_CP[start : start + CHUNK]
        squares = norms_N[:, None] + np.square(part).sum(1) - 2 * points_NP @ part.T
        nearest_N = np.minimum(nearest_N, squares.min(1))
    found = np.empty(count, np.int64)
    for i in range(count):
        place = found[i] = int(nearest_N.argmax())
        squares_N = norms_N + norms_N[place] - 2 * points_NP @ points_NP[place]
        nearest_N = np.minimum(nearest_N, squares_N)
        nearest_N[place] = -np.inf
    return found
