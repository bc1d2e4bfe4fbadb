"""The loss without the matrix: how many rows at once, precisions, rows without a teacher, and a
step that doesn't know which way it took.

Axes: N rows, K choices, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from stillhouse.core.errors import RunError
from stillhouse.core.head import Factored, Head
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Batch, Dense, Signal, Sparse, StudentOutput, Unscored
from stillhouse.numerics.divergences import forward_kl
from stillhouse.numerics.wide import cross_entropies_slope_, forward_kl_slope_
from stillhouse.training.chunked import chunked, fits, rows_at_once
from stillhouse.training.objective import Objective, build
from stillhouse.training.steps import plain_step

N, K, H = 9, 7, 4
TOTALS: Any = {"scored": N, "examples": 1}


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype)


def aim(*configs: TermConfig, signal: Any = Dense) -> Objective:
    return build(configs, choices=K, signal=signal, has_gold=True)


def batch() -> Batch:
    gold_N = torch.arange(N) % K
    gold_N[2] = -100
    return Batch({}, np.arange(N), gold_N)


def test_rows_at_once_by_hand() -> None:
    assert rows_at_once(100, 1000, 4 * 6 * 1000 * 100) == 100  # just fits
    assert rows_at_once(100, 1000, 4 * 6 * 1000 * 100 - 1) == 50  # 99 do: two equal shares
    assert rows_at_once(100, 1000, 4 * 6 * 1000 * 40) == 34  # 40 do: three shares
    assert rows_at_once(100, 1000, 4 * 1000 * 40, tensors=1) == 34
    assert rows_at_once(100, 1000, 1) == 1
    scores = Factored(draw(100, 2, seed=0), Head(draw(1000, 2, seed=1)))
    assert fits(scores, 4 * 6 * 1000 * 100)
    assert not fits(scores, 4 * 6 * 1000 * 100 - 1)


def test_slopes_by_hand() -> None:
    student_NK = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    teacher_NK = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    value = forward_kl_slope_(student_NK, teacher_NK, scale=2.0)
    assert float(value) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert student_NK.tolist() == [pytest.approx([-0.5, 0.5])]
    scores_NK = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    one, two = torch.tensor([1]), torch.tensor([0])
    targets = [(one, torch.tensor([2.0]).double()), (two, torch.tensor([1.0]).double())]
    values = cross_entropies_slope_(scores_NK, targets)
    assert [float(v) for v in values] == pytest.approx([math.log(4.0), math.log(4 / 3)])
    assert scores_NK.tolist() == [pytest.approx([3 * 0.75 - 1, 3 * 0.25 - 2])]


@pytest.mark.parametrize("spread", [1e-6, 1e-3, 0.1, 0.3, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("offset", [0.0, -500.0, 500.0])
def test_the_short_sum_is_as_accurate_as_the_long_one(spread: float, offset: float) -> None:
    teacher_NK = 3 * draw(40, 4000, seed=0) + offset
    student_NK = teacher_NK + spread * draw(40, 4000, seed=1)
    exact_N = forward_kl(student_NK.double(), teacher_NK.double())
    slope_NK = student_NK.double().softmax(-1) - teacher_NK.double().softmax(-1)
    found_N = forward_kl_slope_(student_NK, teacher_NK)
    assert (found_N >= 0).all()
    torch.testing.assert_close(found_N.double(), exact_N, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(student_NK.double(), slope_NK, rtol=1e-4, atol=1e-7)


def test_a_choice_the_teacher_excludes_weighs_nothing() -> None:
    student_NK, teacher_NK = draw(3, 5, seed=0), draw(3, 5, seed=1)
    teacher_NK[:, 2] = -math.inf
    expected_N = forward_kl(student_NK, teacher_NK)
    torch.testing.assert_close(forward_kl_slope_(student_NK, teacher_NK), expected_N)
    assert torch.isfinite(student_NK).all()


def run(
    objective: Objective, scores: Factored, signal: Signal | None, **options: Any
) -> tuple[Tensor, list[Tensor]]:
    inputs = [scores.hidden_NH, scores.head.weight_VH]
    found = chunked(
        objective, objective.terms, scores, signal, batch(),
        progress=0.0, totals=TOTALS, **{"rows": 2, **options},
    )  # fmt: skip
    return found.loss, list(torch.autograd.grad(found.loss, inputs))


@pytest.mark.parametrize("fuse", [False, True])
def test_the_gradient_of_bf16_weights_accumulates_in_float32(fuse: bool) -> None:
    """1 and 255 times 1/512: a sum in bf16, of 8 bits, would stay at 1."""
    rows = 256
    hidden_NH = torch.full((rows, 1), 2.0**-9, dtype=torch.bfloat16)
    hidden_NH[0] = 1.0
    weight_VH = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    gold = Batch({}, np.arange(rows), torch.zeros(rows, dtype=torch.long))
    objective = build([TermConfig(kind="gold")], choices=2, signal=None, has_gold=True)
    found = chunked(
        objective, objective.terms, Factored(hidden_NH, Head(weight_VH)), None, gold,
        progress=0.0, totals={"scored": 1, "examples": 1}, rows=1, fuse=fuse,
    )  # fmt: skip
    found.loss.backward()
    assert weight_VH.grad is not None
    assert weight_VH.grad.dtype == torch.bfloat16
    expected = -0.5 * (1 + 255 * 2.0**-9)
    assert float(weight_VH.grad[0]) == pytest.approx(expected, rel=2**-8)


@pytest.mark.parametrize("fuse", [False, True])
def test_bf16_products_are_what_autocast_gives(fuse: bool) -> None:
    objective = aim(tiny.soft(temperature=2.0), TermConfig(kind="gold", weight=0.5))
    mine, theirs = (
        Factored(draw(N, H, seed=s), Head(draw(K, H, seed=s + 1), softcap=5.0), "bf16")
        for s in (0, 5)
    )
    for leaf in (mine.hidden_NH, mine.head.weight_VH):
        leaf.requires_grad_()
    output, signal = StudentOutput(mine.dense()), Dense(theirs.dense())
    parts = objective.parts(output, signal, batch(), progress=0.0, totals=TOTALS)
    loss = torch.stack([part.loss for part in parts]).sum()
    expected = torch.autograd.grad(loss, [mine.hidden_NH, mine.head.weight_VH])
    found, gradients = run(objective, mine, Unscored(theirs), fuse=fuse)
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3)


def test_gold_answers_take_the_whole_weight_where_the_teacher_is_silent() -> None:
    """By hand: soft 0.75 and gold 0.25; on a silent row gold counts 0.75 + 0.25, soft nothing."""
    scores_NK, theirs_NK = draw(N, K, seed=0), draw(N, K, seed=1)
    taught_N = torch.arange(N) < 4
    objective = aim(tiny.soft(weight=0.75), TermConfig(kind="gold", weight=0.25))
    signal = Dense(theirs_NK, taught_N=taught_N)
    output = StudentOutput(scores_NK)
    soft, gold = objective.parts(output, signal, batch(), progress=0.0, totals=TOTALS)
    ce_N = torch.nn.functional.cross_entropy(scores_NK, batch().gold_N, reduction="none")
    kl_N = forward_kl(scores_NK, theirs_NK)
    torch.testing.assert_close(soft.loss, 0.75 * kl_N[:4].sum() / N)
    torch.testing.assert_close(gold.loss, (0.25 * ce_N[:4].sum() + 1.0 * ce_N[4:].sum()) / N)
    torch.testing.assert_close(gold.value, ce_N.sum() / N)  # as logged: a mean, not weighted
    torch.testing.assert_close(gold.value * 0.25 + gold.extra, gold.loss)


def test_a_gold_term_of_no_weight_still_teaches_where_the_teacher_is_silent() -> None:
    objective = aim(tiny.soft(weight=0.75), TermConfig(kind="gold", weight=0.0))
    assert objective.alone(objective.terms[1], 0.0) == 0.75


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden_NH = nn.Parameter(draw(N, H, seed=0))
        self.weight_VH = nn.Parameter(draw(K, H, seed=1))


class Teacher:
    kind, fingerprint = Dense, ""

    def __init__(self, signal: Signal) -> None:
        self._signal = signal

    def signal(self, _: Batch) -> Signal:
        return self._signal


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("silent", [False, True])
def test_a_step_is_the_same_whichever_way(norms: bool, silent: bool) -> None:
    taught_N = torch.arange(N) % 3 == 0 if silent else None
    theirs = Unscored(Factored(draw(N, H, seed=4), Head(draw(K, H, seed=5))), taught_N=taught_N)
    objective = aim(tiny.soft(weight=0.7), TermConfig(kind="gold", weight=0.3))
    found: list[Any] = []
    for memory in (2**28, 4 * 6 * K * 3):

        def forward(model: Any, *_: Any) -> StudentOutput:
            return StudentOutput(Factored(model.hidden_NH, Head(model.weight_VH)))

        model = Scores()
        stats = plain_step(
            model, [batch()], objective, Teacher(theirs), forward,  # pyright: ignore
            progress=0.0, rngs=[np.random.default_rng(0)], totals=TOTALS, norms=norms,
            head_memory=memory,
        )  # fmt: skip
        gradients = [p.grad for p in model.parameters()]
        found.append((stats.loss, stats.values, stats.gradient_norms, gradients))
    torch.testing.assert_close(found[1], found[0])
    with torch.no_grad():
        output, signal = forward(Scores()), Dense(theirs.factored.dense(), taught_N=taught_N)
        parts = objective.parts(output, signal, batch(), progress=0.0, totals=TOTALS)
    torch.testing.assert_close(found[0][0], sum(part.loss for part in parts))
    assert set(found[1][2]) == ({"soft", "gold"} if norms else set())


def test_one_backward_unless_it_is_said() -> None:
    scores = Factored(draw(N, H, seed=0).requires_grad_(), Head(draw(K, H, seed=1)))
    objective = aim(TermConfig(kind="gold"))
    found = chunked(
        objective, objective.terms, scores, None, batch(), progress=0.0, totals=TOTALS, rows=2
    )
    found.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward"):
        found.loss.backward()
    more = chunked(
        objective, objective.terms, scores, None, batch(),
        progress=0.0, totals=TOTALS, rows=2, once=False,
    )  # fmt: skip
    first, second = (
        torch.autograd.grad(more.loss * 2, scores.hidden_NH, retain_graph=True) for _ in range(2)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first[0], 2 * scores.hidden_NH.grad)


def test_no_rows_are_no_loss() -> None:
    none = Batch({}, np.arange(1), torch.zeros(0, dtype=torch.long))
    hidden_NH = torch.zeros(0, H, requires_grad=True)
    weight_VH = draw(K, H, seed=1).requires_grad_()
    theirs = Unscored(Factored(torch.zeros(0, H), Head(draw(K, H, seed=2))))
    objective = aim(tiny.soft(), TermConfig(kind="gold"))
    for fuse in (False, True):
        found = chunked(
            objective, objective.terms, Factored(hidden_NH, Head(weight_VH)), theirs, none,
            progress=0.0, totals=TOTALS, fuse=fuse,
        )  # fmt: skip
        found.loss.backward()
        assert found.loss.item() == 0.0
        assert weight_VH.grad is not None
        assert weight_VH.grad.abs().max() == 0.0


@pytest.mark.parametrize("fuse", [False, True])
def test_a_broken_teacher_is_refused(fuse: bool) -> None:
    mine = Factored(draw(N, H, seed=0).requires_grad_(), Head(draw(K, H, seed=1).requires_grad_()))
    broken_VH = draw(K, H, seed=2)
    broken_VH[3, 1] = math.nan
    theirs = Unscored(Factored(draw(N, H, seed=3), Head(broken_VH)))
    for term in (tiny.soft(), TermConfig(kind="hard")):
        with pytest.raises(RunError, match="not finite"):
            run(aim(term), mine, theirs, fuse=fuse)


def test_answers_kept_at_another_temperature_are_refused() -> None:
    one_NT = torch.ones(N, 1)
    kept = Sparse(one_NT.long(), one_NT, torch.zeros(N), torch.zeros(N, 0).long(), "tail", 1.0)
    objective = aim(tiny.soft(temperature=2.0), signal=Sparse)
    mine = Factored(draw(N, H, seed=0).requires_grad_(), Head(draw(K, H, seed=1).requires_grad_()))
    with pytest.raises(RunError, match="kept at temperature 1, the soft term wants 2"):
        run(objective, mine, kept)
    run(objective, mine, replace(kept, temperature=2.0))
