"""The optimizer: AdamW's arithmetic, rows that are left alone, clipping, the learning rate.

Axes: V rows, H width.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from stillhouse.core.config import TrainingConfig
from stillhouse.core.errors import RunError
from stillhouse.training.optim import Optimizer, RowAdamW, learning_rate


class Lookup(nn.Module):
    """A table and a matrix: the score of some words."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.table = nn.Embedding(12, 4)
        self.out = nn.Linear(4, 12 if tied else 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
        if tied:
            self.out.weight = self.table.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.table(ids))


def config(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**{"weight_decay": 0.1, "lr": 0.01, "clip": None, **settings})


def drive(model: Lookup, optimizer: Optimizer, steps: list[list[int]]) -> None:
    for step, ids in enumerate(steps):
        weights = torch.randn(len(ids), 3, generator=torch.Generator().manual_seed(step))
        (model(torch.tensor(ids)) * weights).sum().backward()
        optimizer.clip()
        optimizer.step(0.01 * (step + 1))


def test_row_adamw_is_adamw_when_every_row_is_touched() -> None:
    every = [[*range(12), 3, 3, 5]] * 7
    mine, theirs = Lookup(), Lookup()
    drive(mine, Optimizer(mine, config(embeddings="rows")), every)
    drive(theirs, Optimizer(theirs, config(embeddings="dense")), every)
    assert mine.table.sparse
    assert not theirs.table.sparse
    torch.testing.assert_close(mine.table.weight, theirs.table.weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine.out.weight, theirs.out.weight, atol=1e-5, rtol=1e-5)


def test_row_adamw_equals_torchs_on_one_row_at_its_own_pace() -> None:
    """A row touched at some steps only goes as torch's AdamW called at those steps only."""
    table = nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    alone = nn.Parameter(table[2:3].detach().clone())
    rows = RowAdamW(table, weight_decay=0.1, betas=(0.8, 0.95))
    reference = torch.optim.AdamW([alone], lr=0.02, weight_decay=0.1, betas=(0.8, 0.95))
    for step in range(10):
        gradient = torch.randn(1, 3, generator=torch.Generator().manual_seed(step))
        touched = 2 if step % 3 else 4
        table.grad = torch.sparse_coo_tensor(
            [[touched]], gradient, (5, 3), is_coalesced=True, check_invariants=True
        )
        rows.step(0.02)
        if touched == 2:
            alone.grad = gradient
            reference.step()
    torch.testing.assert_close(table[2:3], alone, atol=1e-6, rtol=1e-6)


def test_untouched_rows_stay_bit_for_bit() -> None:
    model = Lookup()
    before = model.table.weight.detach().clone()
    optimizer = Optimizer(model, config(embeddings="rows"))
    drive(model, optimizer, [[1, 4, 4], [1], [7]])
    touched = [1, 4, 7]
    others = [i for i in range(12) if i not in touched]
    assert torch.equal(model.table.weight[others], before[others])
    assert (model.table.weight[touched] != before[touched]).all()
    assert optimizer.rows is not None
    assert optimizer.rows.steps.tolist() == [0, 2, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0]


def test_frozen_embeddings_stay_and_the_rest_moves() -> None:
    model = Lookup()
    before = model.table.weight.detach().clone(), model.out.weight.detach().clone()
    drive(model, Optimizer(model, config(embeddings="frozen")), [[1, 2], [3]])
    assert torch.equal(model.table.weight, before[0])
    assert not torch.equal(model.out.weight, before[1])


def test_a_table_that_is_also_an_output_is_updated_densely() -> None:
    model = Lookup(tied=True)
    optimizer = Optimizer(model, config(embeddings="rows"))
    assert optimizer.rows is None
    assert not model.table.sparse


def test_biases_do_not_decay() -> None:
    model = tiny.model()
    optimizer = Optimizer(model, config(embeddings="dense"))
    decays = {
        id(p): group["weight_decay"]
        for group in optimizer.adamw.param_groups
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.1 if parameter.ndim >= 2 else 0.0), name


@pytest.mark.parametrize("limit", [0.3, 1e6])
def test_clipping_goes_over_dense_and_row_gradients_together(limit: float) -> None:
    ids, weights = torch.tensor([1, 4, 4]), torch.randn(3, 3)
    mine, theirs = Lookup(), Lookup()
    optimizer = Optimizer(mine, config(embeddings="rows", clip=limit))
    for model in (mine, theirs):
        (model(ids) * weights).sum().backward()
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    torch.testing.assert_close(optimizer.clip(), expected)
    assert mine.table.weight.grad.is_sparse
    torch.testing.assert_close(mine.table.weight.grad.to_dense(), theirs.table.weight.grad)
    torch.testing.assert_close(mine.out.weight.grad, theirs.out.weight.grad)
    torch.testing.assert_close(mine.out.bias.grad, theirs.out.bias.grad)


@pytest.mark.parametrize("embeddings", ["rows", "dense", "frozen"])
def test_a_restored_state_goes_on_bit_for_bit(embeddings: Any) -> None:
    steps = [[1, 4], [2, 4], [1, 9], [4, 4]]
    whole, first = Lookup(), Lookup()
    drive(whole, Optimizer(whole, config(embeddings=embeddings)), [*steps, *steps])
    optimizer = Optimizer(first, config(embeddings=embeddings))
    drive(first, optimizer, steps)
    weights, state = first.state_dict(), {k: v.clone() for k, v in optimizer.state().items()}
    second = Lookup()
    second.load_state_dict(weights)
    resumed = Optimizer(second, config(embeddings=embeddings))
    resumed.load(state)
    for i, ids in enumerate(steps):
        for model, held in ((first, optimizer), (second, resumed)):
            (model(torch.tensor(ids)) * (i + 1)).square().sum().backward()
            held.clip()
            held.step(0.02)
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


@pytest.mark.parametrize("length", [7, 2**20, 2**20 + 37, 3 * 2**19 + 1023])
def test_the_length_of_a_long_gradient_has_all_its_elements(length: int) -> None:
    model = nn.Linear(length, 1, bias=False)
    model.weight.grad = torch.randn(1, length, generator=torch.Generator().manual_seed(0))
    model.weight.grad[0, -3:] = 1e4  # in the part that makes no whole row
    expected = model.weight.grad.double().norm()
    assert float(Optimizer(model, config()).clip()) == pytest.approx(float(expected), rel=1e-6)


def test_a_state_of_other_tensors_is_refused() -> None:
    model = Lookup()
    optimizer = Optimizer(model, config(embeddings="rows"))
    drive(model, optimizer, [[1, 2]])
    with pytest.raises(RunError, match="another version"):
        Optimizer(Lookup(), config(embeddings="frozen")).load(optimizer.state())


def test_a_table_that_was_frozen_stays_and_may_be_dense_again() -> None:
    model = Lookup()
    model.table.weight.requires_grad_(False)
    optimizer = Optimizer(model, config(embeddings="rows"))
    assert optimizer.rows is None
    model.table.weight.requires_grad_(True)
    Optimizer(model, config(embeddings="rows"))
    drive(model, Optimizer(model, config(embeddings="dense")), [[1, 2]])


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("constant", [0.5, *[1.0] * 9]),
        ("cosine", [0.5, 1.0, *((1 + math.cos(math.pi * i / 8)) / 2 for i in range(8))]),
    ],
)
def test_the_learning_rate_by_hand(decay: Any, expected: list[float]) -> None:
    settings = TrainingConfig(lr=1.0, warmup=0.2, decay=decay)
    assert [learning_rate(settings, step, 10) for step in range(10)] == pytest.approx(expected)


def test_without_warmup_the_first_step_has_the_whole_rate() -> None:
    assert learning_rate(TrainingConfig(lr=2.0, warmup=0.0), 0, 10) == 2.0
    assert learning_rate(TrainingConfig(lr=2.0, warmup=1.0), 9, 10) == 2.0
    assert learning_rate(TrainingConfig(lr=2.0), 0, 1) == 2.0
