"""Row: teacher's targets not detached, teacher left in train mode. The teacher gets no gradient, is
in eval mode, and two passes give equal answers.

Axes: N rows, K choices.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.types import Batch, Dense, StudentOutput
from stillhouse.models.forward import has_fast_path
from stillhouse.signals.teacher import LiveTeacher
from stillhouse.tasks.base import Dataset
from stillhouse.training.objective import build


class Two:
    """Two texts as the inputs of a kind of model."""

    lengths = np.array([4, 6])

    def __init__(self, kind: str) -> None:
        self.tokenizer = tiny.tokenizer(kind)

    def inputs(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        texts = ["good film", "the room was cold"]
        asked = [texts[i] for i in rows]
        return dict(self.tokenizer(asked, padding=True, return_tensors="pt"))


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_a_teacher_given_in_train_mode_answers_alike_twice(kind: str) -> None:
    model = tiny.model(kind, dropout=0.5).train().requires_grad_(True)
    assert has_fast_path(model) == (kind == "bert")
    data = Dataset(Two(kind), np.zeros((2, 2), "<u8"), torch.tensor([0, 1]))
    teacher = LiveTeacher(model, data, fingerprint="t", precision="float32")
    batch = data.batch(np.arange(2))
    first, second = teacher.signal(batch).scores_NK, teacher.signal(batch).scores_NK
    assert torch.equal(first, second)
    assert not any(module.training for module in model.modules())
    assert not first.requires_grad
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("divergence", tiny.DIVERGENCES)
def test_no_gradient_reaches_a_teachers_scores(divergence: str) -> None:
    """Even if a source forgot to detach them."""
    theirs_NK = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    mine_NK = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    (term,) = build(
        [tiny.soft(divergence, standardise=True)], choices=3, signal=Dense, has_gold=True
    ).terms
    batch = Batch({}, np.arange(4), torch.tensor([0, 1, 2, -100]))
    term(StudentOutput(mine_NK), Dense(theirs_NK), batch, 0.0).sum.backward()
    assert theirs_NK.grad is None
    assert mine_NK.grad is not None
