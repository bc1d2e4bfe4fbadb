"""Rows of token ids as rectangles. Axes: B rows, T tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WIDTHS = 4


def padded_arrays(
    ids: Sequence[np.ndarray], seconds: np.ndarray, *, pad: int, types: bool, max_length: int
) -> dict[str, np.ndarray]:
    """Rows of token ids padded on the right: input_ids, attention_mask, and with `types`
    token_type_ids; each int64, B x T. T is a multiple of 4 (or the most tokens a row may have): few
    shapes, for which kernels are made once, and which they are good at."""
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    longest = int(lengths.max())
    width = max(longest, min(-(-longest // WIDTHS) * WIDTHS, max_length))
    inside = np.arange(width)[None, :] < lengths[:, None]
    held = np.full(inside.shape, pad, dtype=np.int64)
    held[inside] = np.concatenate(ids)
    found = {"input_ids": held, "attention_mask": inside.astype(np.int64)}
    if types:
        second = np.arange(width)[None, :] >= seconds[:, None]
        found["token_type_ids"] = (second & inside).astype(np.int64)
    return found
