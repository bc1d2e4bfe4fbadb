"""Row: a fused path mixed in another loss. A student equal to its teacher has value 0 and
gradient 0, for every divergence, as the objective builds it.

Axes: N rows, K choices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.types import Batch, Dense, StudentOutput
from stillhouse.training.objective import build

OPTIONS: list[dict[str, Any]] = [{}, {"temperature": 4.0}, {"standardise": True}]


@pytest.mark.parametrize("divergence", tiny.DIVERGENCES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_equal_scores_have_no_loss_and_no_gradient(
    divergence: str, options: dict[str, Any], scale: float
) -> None:
    scores_NK = scale * torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    mine_NK = scores_NK.clone().requires_grad_(True)
    (term,) = build(
        [tiny.soft(divergence, **options)], choices=5, signal=Dense, has_gold=True
    ).terms
    gold_N = torch.arange(64) % 5
    gold_N[::3] = -100
    found = term(StudentOutput(mine_NK), Dense(scores_NK), Batch({}, np.arange(64), gold_N), 0.0)
    found.sum.backward()
    assert found.sum.item() == 0.0
    assert mine_NK.grad.abs().max() == 0.0


def test_a_model_that_is_its_own_teacher_does_not_move() -> None:
    """The whole way: tiny BERT, cached answers of its own, one step of every divergence."""
    model = tiny.model(dropout=0.0)
    inputs = dict(
        tiny.tokenizer()(["good film", "the room was cold"], padding=True, return_tensors="pt")
    )
    theirs = Dense(model(**inputs).logits.detach())
    batch = Batch(inputs, np.arange(2), torch.tensor([0, 1]))
    for divergence in tiny.DIVERGENCES:
        (term,) = build([tiny.soft(divergence)], choices=2, signal=Dense, has_gold=True).terms
        model.zero_grad()
        term(StudentOutput(model(**inputs).logits), theirs, batch, 0.0).sum.backward()
        assert all(p.grad.abs().max() == 0 for p in model.parameters()), divergence
