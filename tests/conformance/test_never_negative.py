"""Row: a "KL" went negative and was clamped. Every divergence is >= 0 by construction, and its
gradient lives wherever the two differ: nothing is clamped away.

Axes: N rows, K choices.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.types import Batch, Dense, StudentOutput
from stillhouse.training.objective import build


@pytest.mark.parametrize("divergence", tiny.DIVERGENCES)
@pytest.mark.parametrize("distance", [1e-4, 1e-2, 1.0, 20.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
def test_every_row_is_positive(divergence: str, distance: float, temperature: float) -> None:
    draw = torch.Generator().manual_seed(0)
    theirs_NK = 3 * torch.randn(40, 7, generator=draw)
    mine_NK = (theirs_NK + distance * torch.randn(40, 7, generator=draw)).requires_grad_(True)
    config = tiny.soft(divergence, temperature=temperature)
    (term,) = build([config], choices=7, signal=Dense, has_gold=True).terms
    losses = [
        term(
            StudentOutput(mine_NK[i : i + 1]),
            Dense(theirs_NK[i : i + 1]),
            Batch({}, np.arange(1), torch.tensor([i % 7])),
            0.0,
        ).sum
        for i in range(40)
    ]
    loss_N = torch.stack(losses)
    assert (loss_N >= 0).all()
    loss_N.sum().backward()
    assert (mine_NK.grad.abs().amax(-1) > 0).float().mean() > 0.95  # a few underflow
