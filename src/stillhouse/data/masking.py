"""Which tokens a masked language model has to guess, and what it sees in their place.

Special tokens are not text: they are never chosen, and no token is replaced by one. The unknown
token is special too: that a word was unknown can't be learnt. Nor is padding ever chosen, and how
far a batch is padded changes neither choice nor replacement.

Axes: B blocks, T tokens, M chosen places, V vocabulary.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, Real


def choose(
    maskable_BT: Bool[np.ndarray, "B T"],
    share: float,
    rng: np.random.Generator,
    *,
    weights_BT: Real[np.ndarray, "B T"] | None = None,
) -> Int[np.ndarray, " M"]:
    """Flat places in B x T, rising: exactly max(1, round(share * maskable)) of the maskable ones
    of the whole batch, without replacement; none where nothing is maskable.

    With weights, each next place is drawn with a probability proportional to its weight among
    those left: the M first to finish of a race of exponential times of these rates (Efraimidis &
    Spirakis 2006). Raises ValueError for a share outside 0 .. 1, or a weight that is not > 0.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in 0..1, got {share}")
    places = np.flatnonzero(maskable_BT)
    if not len(places):
        return places
    count = max(1, round(share * len(places)))
    times = rng.exponential(size=len(places))
    if weights_BT is not None:
        weights = weights_BT.reshape(-1)[places]
        if not (np.isfinite(weights) & (weights > 0)).all():
            raise ValueError(f"weights must be > 0 and finite, got {weights.min()}")
        times /= weights
    return np.sort(places[np.argpartition(times, count - 1)[:count]])


def corrupt(
    ids_BT: Int[np.ndarray, "B T"],
    places: Int[np.ndarray, " M"],
    rng: np.random.Generator,
    *,
    mask_id: int,
    ordinary: Int[np.ndarray, " V"],
    mask: float = 0.8,
    random: float = 0.1,
) -> Int[np.ndarray, "B T"]:
    """A copy of the ids in which each of `places` is, independently, the mask token (with
    probability `mask`), one of `ordinary` (`random`; its own id may be drawn too), or as it was.

    Devlin 2018 sec. 3.1, which draws from the whole vocabulary, special tokens too.
    """
    drawn = rng.random(len(places))
    replacements = ordinary[rng.integers(len(ordinary), size=len(places))]
    corrupted_BT = ids_BT.copy()
    seen = corrupted_BT.reshape(-1)  # a view: a copy is contiguous
    masked, replaced = drawn < mask, (drawn >= mask) & (drawn < mask + random)
    seen[places[masked]] = mask_id
    seen[places[replaced]] = replacements[replaced]
    return corrupted_BT
