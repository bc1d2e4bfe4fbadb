"""The loss over a vocabulary without the matrix of all scores: a few rows at a time.

For some rows the head's products are taken, the terms are asked, their gradient goes back through
the head into float32 sums, and the products' memory is used again. The terms are those of the
dense way: the objective doesn't know how many rows it sees. Where all of them are forward_kl or a
cross-entropy (fused.py), their gradient is written down instead of found by autograd.

Axes: N scored rows, K choices, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from stillhouse.core.head import Factored
from stillhouse.core.types import Batch, Signal, States, StudentOutput, Unit, Unscored
from stillhouse.training.fused import Rows, can_fuse, fused_slope_
from stillhouse.training.objective import Objective, Part, Term

MEMORY = 256 * 2**20
# Tensors of a float32 a score that are held at once: by the dense way, by a divergence's autograd,
# by the fused way without and with a teacher who is not multiplied out.
DENSE, GENERIC, FUSED, FUSED_LIVE = 6, 14, 1, 2
NARROW = 1 << 14  # choices whose low-precision gradient is held at once

Run = Callable[[Tensor, slice], tuple[Tensor, Tensor]]  # products of rows -> gradient, loss


def rows_at_once(rows: int, choices: int, budget_bytes: int, *, tensors: int = DENSE) -> int:
    """How many of `rows` may be scored at once, at `tensors` float32 a score: all of them where
    that is within the budget, else equal shares; at least 1."""
    most = max(1, budget_bytes // (4 * tensors * max(1, choices)))
    if most >= rows:
        return max(1, rows)
    return math.ceil(rows / math.ceil(rows / most))


def fits(scores: Factored, budget_bytes: int) -> bool:
    """Whether all scores may be taken at once, with autograd."""
    return rows_at_once(len(scores), scores.width, budget_bytes) >= len(scores)


@dataclass(frozen=True)
class Chunked:
    """One loss of several terms, and each term's part in it (no longer on the graph)."""

    loss: Float[Tensor, ""]
    parts: list[Part]


def chunked(
    objective: Objective,
    terms: Sequence[Term],
    scores: Factored,
    signal: Signal | None,
    batch: Batch,
    *,
    progress: float,
    totals: Mapping[Unit, int],
    memory: int = MEMORY,
    rows: int | None = None,
    fuse: bool = True,
    once: bool = True,
) -> Chunked:
    """The weighted loss of scored `terms`, `rows` at a time (left out: what `memory` bytes hold).

    The gradient by the head accumulates in float32, whatever the head's dtype. It is taken in the
    forward pass, so there is no second derivative. `fuse`: use the gradients that are written
    down, where there are. `once`: there will be one backward pass, which may give the gradient
    away; a copy of it is as large as the head.
    """
    fused = fuse and can_fuse(terms, signal)
    held = (FUSED_LIVE if isinstance(signal, Unscored) else FUSED) if fused else GENERIC
    if rows is None:
        rows = rows_at_once(len(scores), scores.width, memory, tensors=held)
    found: list[list[Part]] = []
    given = Rows(objective, terms, scores.head, signal, batch, progress, totals)
    slope = fused_slope_ if fused else _slope
    teacher = _Teacher(signal.factored, rows) if fused and isinstance(signal, Unscored) else None

    def run(products_NK: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        slope_NK, ours = slope(given, products_NK, part, None if teacher is None else teacher(part))
        found.append(ours)
        return slope_NK, torch.stack([each.loss for each in ours]).sum()

    loss = _Chunked.apply(scores.hidden_NH, *scores.head.parameters, scores, rows, run, once)
    return Chunked(loss, [_sum(of_term) for of_term in zip(*found, strict=True)])


def _slope(
    given: Rows, products_NK: Tensor, part: slice, _: Tensor | None
) -> tuple[Tensor, list[Part]]:
    """Gradient of the terms' sum by some rows' products, found by autograd."""
    leaf_NK = products_NK.detach().requires_grad_()
    signal = given.signal
    theirs = None if signal is None or isinstance(signal, States) else signal.part(part)
    with torch.enable_grad():
        ours = given.objective.parts(
            StudentOutput(given.head.scores(leaf_NK)),
            theirs,
            given.batch.part(part),
            progress=given.progress,
            totals=given.totals,
            terms=given.terms,
        )
        loss = torch.stack([each.loss for each in ours]).sum()
    (slope_NK,) = torch.autograd.grad(loss, leaf_NK)
    return slope_NK, [Part(each.value, each.loss.detach(), each.extra) for each in ours]


class _Teacher:
    """A teacher's products of some rows, always in the same memory."""

    def __init__(self, factored: Factored, rows: int) -> None:
        self._factored = factored
        self._weight_KH = factored.head.parameters[0].detach().to(factored.dtype)
        self._room_NK = _room(factored, rows)

    def __call__(self, part: slice) -> Tensor:
        return self._factored.part(part).products(self._weight_KH, self._room_NK)


def _room(factored: Factored, rows: int) -> Tensor:
    shape = min(rows, len(factored)), factored.width
    return torch.empty(shape, dtype=factored.dtype, device=factored.hidden_NH.device)


def _sum(parts: Sequence[Part]) -> Part:
    extra = [part.extra for part in parts if part.extra is not None]
    return Part(
        torch.stack([part.value for part in parts]).sum(),
        torch.stack([part.loss for part in parts]).sum(),
        torch.stack(extra).sum() if extra else None,
    )


class _Chunked(torch.autograd.Function):
    """Sum of `run`'s losses; gradients by states, weight and bias of the head."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_KH: Tensor,
        bias_K: Tensor | None,
        scores: Factored,
        rows: int,
        run: Run,
        once: bool,
    ) -> Tensor:
        cast_KH = weight_KH.to(scores.dtype)
        wide = torch.promote_types(scores.dtype, torch.float32)
        by_hidden, by_weight, by_bias = (
            torch.zeros_like(given, dtype=wide) if given is not None and needed else None
            for given, needed in zip(
                (hidden_NH, weight_KH, bias_K), ctx.needs_input_grad[:3], strict=True
            )
        )
        room_NK = _room(scores, rows)
        losses: list[Tensor] = []
        for first in range(0, max(1, len(scores)), rows):  # no rows are one part of none
            part = slice(first, first + rows)
            products_NK = scores.part(part).products(cast_KH, room_NK)
            slope_NK, loss = run(products_NK, part)
            losses.append(loss)
            if by_hidden is not None:
                _multiply_(by_hidden[part], slope_NK, cast_KH)
            if by_weight is not None:
                _add_products_(by_weight, slope_NK, hidden_NH[part].to(scores.dtype))
            if by_bias is not None:
                by_bias += slope_NK.sum(0, dtype=wide)
        ctx.found, ctx.once = (by_hidden, by_weight, by_bias), once
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        if ctx.found is None:
            raise RuntimeError("the chunked loss has one backward pass (once=False: more)")
        found = ctx.found
        if ctx.once:
            ctx.found = None
            scaled = (None if gradient is None else gradient.mul_(grad) for gradient in found)
        else:
            scaled = (None if gradient is None else gradient * grad for gradient in found)
        return (*scaled, None, None, None, None)


def _multiply_(out_NH: Tensor, slope_NK: Tensor, weight_KH: Tensor) -> None:
    if out_NH.dtype == slope_NK.dtype:
        torch.mm(slope_NK, weight_KH, out=out_NH)
    else:
        out_NH.copy_(slope_NK @ weight_KH)


def _add_products_(sum_KH: Tensor, slope_NK: Tensor, hidden_NH: Tensor) -> None:
    """Adds slope.T @ hidden, in the sum's precision. Where the products are in a lower one, some
    choices at a time."""
    if sum_KH.dtype == slope_NK.dtype:
        sum_KH.addmm_(slope_NK.T, hidden_NH)
        return
    for first in range(0, len(sum_KH), NARROW):
        some = slice(first, first + NARROW)
        sum_KH[some] += slope_NK[:, some].T @ hidden_NH
