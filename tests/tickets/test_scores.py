"""What a weight's score is, against its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import tiny
from stillhouse.core.config import TrainingConfig
from stillhouse.core.terms import TermConfig
from stillhouse.tickets.scores import MOVED, SCORES, Moving, Scored, moving_step
from stillhouse.training import objective as objectives
from stillhouse.training.loop import fit


def test_movement_is_high_where_a_weight_went_away_from_0() -> None:
    """-w dL/dw (Sanh et al. 2020, eq. 4): after one step of a descent the weights with a positive
    score are larger, the others smaller."""
    data, model = tiny.vectors(24, width=5, choices=3, seed=3), tiny.Line(5, 3, seed=4)
    setattr(model, MOVED, Moving(["weight"], model))
    before = model.weight.detach().clone()
    objective = objectives.build([TermConfig(kind="gold")], choices=3, signal=None, has_gold=True)
    everything = data.batch(np.arange(len(data)))
    loss = torch.nn.functional.cross_entropy(model(**everything.inputs), everything.gold_N)
    (gradient,) = torch.autograd.grad(loss, [model.weight])
    config = TrainingConfig(
        steps=1, batch_size=24, lr=1e-3, weight_decay=0.0, warmup=0.0, clip=None, select="last",
        precision="float32",
    )  # fmt: skip
    fit(model, data, objective, None, config, seed=0, forward=tiny.line_forward,
        step_fn=moving_step)  # fmt: skip
    rows: Any = np.arange(len(data))
    at = Scored(model, data, objective, rows, np.random.default_rng(0))
    found = SCORES["movement"](at, {"weight": model.weight})["weight"]
    torch.testing.assert_close(found, -before * gradient, rtol=1e-5, atol=1e-9)
    grown = model.weight.detach().abs() > before.abs()
    assert torch.equal(found > 0, grown)
    assert 0 < int(grown.sum()) < grown.numel()
