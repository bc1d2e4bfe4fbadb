"""Which rows go together in a batch: similar lengths, no more than so many rows and tokens.

A plan depends on the lengths, the settings and the generator only, so a resumed run cuts the
same batches.
"""

from __future__ import annotations

import numpy as np

POOL = 64  # batches that are sorted by length together; more is less padding, less mixing


def _cut(order: np.ndarray, lengths: np.ndarray, size: int, max_tokens: int) -> list[np.ndarray]:
    """`order` (rising lengths) in pieces of at most `size` rows and `max_tokens` padded tokens."""
    pieces, start = [], 0
    while start < len(order):
        stop = min(start + size, len(order))
        while stop - start > 1 and int(lengths[order[stop - 1]]) * (stop - start) > max_tokens:
            stop -= max(1, (stop - start) // 8)
        pieces.append(order[start:stop])
        start = stop
    return pieces


def sorted_batches(lengths: np.ndarray, *, size: int, max_tokens: int) -> list[np.ndarray]:
    """All rows, shortest first. For asking and evaluating, where order does not matter."""
    return _cut(np.argsort(lengths, kind="stable"), lengths, size, max_tokens)


def shuffled_batches(
    lengths: np.ndarray, *, size: int, max_tokens: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """All rows once, in random batches of similar length, the batches in random order."""
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), POOL * size):
        pool = order[start : start + POOL * size]
        batches += _cut(pool[np.argsort(lengths[pool], kind="stable")], lengths, size, max_tokens)
    return [batches[i] for i in rng.permutation(len(batches))]
