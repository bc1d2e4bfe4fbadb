"""Callbacks of the loop: what happens after each optimizer step, beside the step itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stillhouse.core.types import Callback, LoopState


def max_norm(weights: Sequence[Tensor], limit: float) -> Callback:
    """Scales a unit's incoming weights (a row of `weights`) down to length `limit` where they are
    longer. Hinton et al. 2012 (dropout) sec. A.1, which states the squared length.

    Raises ValueError unless limit > 0.
    """
    if limit <= 0:
        raise ValueError(f"the longest allowed weight vector must be > 0, got {limit}")

    def callback(state: LoopState) -> None:
        with torch.no_grad():
            for weight in weights:
                weight.renorm_(2, 0, limit)

    return callback


def advancing(advance: Callable[[int], None]) -> Callback:
    """Moves a progress bar by the steps done, those before a resumed run's start included."""
    seen = 0

    def callback(state: LoopState) -> None:
        nonlocal seen
        advance(state.step - seen)
        seen = state.step

    return callback
