"""Row: two implementations of one loss, of which one goes wrong. Dense and chunked come from one
definition: same value and gradients for every divergence, head and kind of teacher.

Axes: N rows, K choices, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from stillhouse.core.head import Factored, Head
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Batch, Dense, Labels, Signal, Sparse, StudentOutput, Unscored
from stillhouse.numerics import wide
from stillhouse.training.chunked import chunked
from stillhouse.training.objective import Objective, build

N, K, H = 11, 13, 4
TOTALS: Any = {"scored": 17, "examples": 1}
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 2.0},
    "scale and softcap": {"scale": 1.5, "softcap": 3.0},
    "bias": {"bias_V": True},
    "padded": {"choices": 9, "bias_V": True},
}
GRADIENTS = ("value", "hidden", "weight", "bias")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(wide.PIECE, "cpu", 2 * K)  # two rows at once in the cache


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype)


def factored(seed: int, head: str = "plain", dtype: torch.dtype = torch.float64) -> Factored:
    options = dict(HEADS[head])
    if options.pop("bias_V", False):
        options["bias_V"] = draw(K, seed=seed + 2, dtype=dtype)
    weight_VH = draw(K, H, seed=seed + 1, dtype=dtype)
    return Factored(draw(N, H, seed=seed, dtype=dtype), Head(weight_VH, **options))


def batch() -> Batch:
    gold_N = torch.arange(N) % 7
    gold_N[::4] = -100
    return Batch({}, np.arange(N), gold_N)


def objective(*configs: TermConfig, signal: Any = Dense, choices: int = K) -> Objective:
    return build(configs, choices=choices, signal=signal, has_gold=True)


def leaves(scores: Factored) -> tuple[Factored, list[Tensor]]:
    """The same with gradients asked for."""
    head = scores.head
    hidden_NH, weight_VH = (x.clone().requires_grad_() for x in (scores.hidden_NH, head.weight_VH))
    bias_V = None if head.bias_V is None else head.bias_V.clone().requires_grad_()
    head = replace(head, weight_VH=weight_VH, bias_V=bias_V)
    found = [hidden_NH, weight_VH] + ([] if bias_V is None else [bias_V])
    return replace(scores, hidden_NH=hidden_NH, head=head), found


def dense(aim: Objective, scores: Factored, signal: Signal | None, examples: Batch) -> list[Tensor]:
    """Loss and gradients, everything multiplied out."""
    scores, inputs = leaves(scores)
    if isinstance(signal, Unscored):
        signal = Dense(signal.factored.dense(), None, signal.taught_N)
    output = StudentOutput(scores.dense())
    parts = aim.parts(output, signal, examples, progress=0.5, totals=TOTALS)
    loss = torch.stack([part.loss for part in parts]).sum()
    loss.backward()
    return [loss.detach(), *(x.grad for x in inputs), *(p.value for p in parts)]


def by_parts(
    aim: Objective, scores: Factored, signal: Signal | None, examples: Batch, **options: Any
) -> list[Tensor]:
    scores, inputs = leaves(scores)
    options = {"rows": 3, **options}
    found = chunked(
        aim, aim.terms, scores, signal, examples, progress=0.5, totals=TOTALS, **options
    )
    found.loss.backward()
    return [found.loss.detach(), *(x.grad for x in inputs), *(p.value for p in found.parts)]


def teacher(kind: str, head: str, dtype: torch.dtype = torch.float64) -> Signal:
    theirs = factored(50, head, dtype)
    if kind == "Unscored":
        return Unscored(theirs)
    if kind == "Dense":
        return Dense(theirs.dense())
    p_NK = (theirs.dense() / 2.0).softmax(-1)
    top_p_NT, top_ids_NT = p_NK.topk(4)
    drawn_ids_ND = torch.zeros(N, 0, dtype=torch.long)
    return Sparse(top_ids_NT, top_p_NT, 1 - top_p_NT.sum(-1), drawn_ids_ND, "tail", 2.0)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("divergence", tiny.DIVERGENCES)
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("Dense", torch.float64), ("Unscored", torch.float32)],
    ids=str,
)
def test_every_divergence_is_the_same_in_both_engines(
    divergence: str, head: str, kind: str, dtype: torch.dtype
) -> None:
    mine, theirs = factored(0, head, dtype), teacher(kind, head, dtype)
    aim = objective(tiny.soft(divergence, temperature=2.0), choices=mine.width)
    expected = dense(aim, mine, theirs, batch())
    assert float(expected[0]) > 1e-3
    torch.testing.assert_close(by_parts(aim, mine, theirs, batch()), expected)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "skew_kl"])
def test_a_sparse_teacher_is_the_same_in_both_engines(divergence: str, head: str) -> None:
    mine, theirs = factored(0, head), teacher("Sparse", head)
    configs = [tiny.soft(divergence, temperature=2.0), TermConfig(kind="hard", weight=0.3)]
    aim = objective(*configs, signal=Sparse, choices=mine.width)
    torch.testing.assert_close(
        by_parts(aim, mine, theirs, batch()), dense(aim, mine, theirs, batch())
    )


MIXED = [
    [tiny.soft(temperature=2.0, weight=0.7), TermConfig(kind="gold", weight=0.2)],
    [tiny.soft(), TermConfig(kind="gold", weight=0.2), TermConfig(kind="hard", weight=0.1)],
    [tiny.soft(temperature=3.0), tiny.soft(temperature=1.0, weight=0.5)],
    [tiny.soft(variant="reference", squared_temperature=False, temperature=2.0)],
    [tiny.soft(weight=0.0), TermConfig(kind="gold")],
]


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("kind", ["Dense", "Unscored"])
@pytest.mark.parametrize("head", ["bias", "scale and softcap", "padded"])
@pytest.mark.parametrize("configs", MIXED, ids=range(len(MIXED)))
def test_written_down_and_found_by_autograd(
    configs: list[TermConfig], head: str, kind: str, taught: bool
) -> None:
    mine, theirs = factored(0, head), teacher(kind, head)
    if taught:
        theirs = replace(theirs, taught_N=torch.arange(N) % 3 != 1)
    aim = objective(*configs, choices=mine.width)
    expected = dense(aim, mine, theirs, batch())
    torch.testing.assert_close(by_parts(aim, mine, theirs, batch(), fuse=False), expected)
    torch.testing.assert_close(by_parts(aim, mine, theirs, batch(), fuse=True), expected)


def test_labels_and_no_teacher() -> None:
    mine, labels = factored(0), Labels(torch.arange(N) % K)
    for aim, signal in (
        (objective(TermConfig(kind="hard"), TermConfig(kind="gold"), signal=Labels), labels),
        (objective(TermConfig(kind="gold"), signal=None), None),
    ):
        expected = dense(aim, mine, signal, batch())
        torch.testing.assert_close(by_parts(aim, mine, signal, batch()), expected)
        torch.testing.assert_close(by_parts(aim, mine, signal, batch(), fuse=False), expected)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("kind", ["Dense", "Unscored"])
@pytest.mark.parametrize("divergence", tiny.DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(
    divergence: str, kind: str, fuse: bool, temperature: float
) -> None:
    mine = factored(0, "scale and softcap", torch.float32)
    theirs: Signal = Unscored(mine) if kind == "Unscored" else Dense(mine.dense())
    aim = objective(tiny.soft(divergence, temperature=temperature))
    for rows in (N, 1) if kind == "Unscored" else (N,):
        for values in by_parts(aim, mine, theirs, batch(), rows=rows, fuse=fuse):
            assert values.abs().max() == 0.0


@pytest.mark.parametrize("fuse", [False, True])
def test_any_number_of_rows_at_once(fuse: bool) -> None:
    mine, theirs = factored(0, "bias"), teacher("Unscored", "bias")
    aim = objective(*MIXED[1])
    expected = by_parts(aim, mine, theirs, batch(), rows=N, fuse=fuse)
    for rows in (1, 2, 5, 10, 40):
        torch.testing.assert_close(
            by_parts(aim, mine, theirs, batch(), rows=rows, fuse=fuse), expected
        )


def test_micro_batches_add_up() -> None:
    mine, theirs, whole = factored(0, "bias"), teacher("Dense", "bias"), batch()
    aim = objective(*MIXED[1])
    expected = by_parts(aim, mine, theirs, whole)
    first, second = (
        by_parts(aim, mine.part(part), theirs.part(part), whole.part(part))
        for part in (slice(0, 4), slice(4, N))
    )
    torch.testing.assert_close(first[0] + second[0], expected[0])
    torch.testing.assert_close(torch.cat([first[1], second[1]]), expected[1])
    for one, two, all_of_it in zip(first[2:], second[2:], expected[2:], strict=True):
        torch.testing.assert_close(one + two, all_of_it)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_gradients_are_the_numeric_ones(divergence: str, fuse: bool) -> None:
    """A central difference along one direction through all inputs, times an upstream gradient."""
    theirs, examples = teacher("Unscored", "softcap"), batch()
    aim = objective(tiny.soft(divergence, temperature=2.0), TermConfig(kind="gold", weight=0.5))

    def value(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor) -> Tensor:
        mine = Factored(hidden_NH, Head(weight_VH, bias_V, softcap=2.0))
        given: Any = {"progress": 0.5, "totals": TOTALS, "rows": 4, "fuse": fuse}
        return 3 * chunked(aim, aim.terms, mine, theirs, examples, **given).loss

    shapes = ((N, H), (K, H), (K,))
    at = [draw(*shape, seed=9).requires_grad_() for shape in shapes]
    way = [draw(*shape, seed=19) for shape in shapes]
    found = sum(
        (g * v).sum() for g, v in zip(torch.autograd.grad(value(*at), at), way, strict=True)
    )
    with torch.no_grad():
        up, down = (
            value(*(x + sign * 1e-5 * v for x, v in zip(at, way, strict=True))) for sign in (1, -1)
        )
    assert float(found) == pytest.approx(float(up - down) / 2e-5, rel=1e-7)
