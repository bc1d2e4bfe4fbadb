"""Gradients of forward_kl and of cross-entropies, written down: what the terms of response.py make
of scores, without autograd's tensors. Each row's loss is then weighted by the objective as ever.

Axes: N scored rows, K choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.core.head import Head
from stillhouse.core.types import (
    NO_LABEL,
    Batch,
    Dense,
    Labels,
    Signal,
    Unit,
    Unscored,
)
from stillhouse.numerics.wide import cross_entropies_slope_, forward_kl_slope_, pieces
from stillhouse.training.objective import Objective, Part, Term, taught
from stillhouse.training.response import Soft, at, gold_classes, hard_classes, teachers_choice


@dataclass(frozen=True)
class Rows:
    """What the terms are asked about, all rows of it."""

    objective: Objective
    terms: Sequence[Term]
    head: Head
    signal: Signal | None
    batch: Batch
    progress: float
    totals: Mapping[Unit, int]


def can_fuse(terms: Sequence[Term], signal: Signal | None) -> bool:
    """Whether all `terms` have their gradient written down here."""
    return all(
        term.rows is gold_classes
        or (term.rows is hard_classes and isinstance(signal, Dense | Unscored | Labels))
        or (
            isinstance(term.rows, Soft)
            and term.rows.name == "forward_kl"
            and not term.rows.config.standardise
            and isinstance(signal, Dense | Unscored)
        )
        for term in terms
    )


def fused_slope_(
    given: Rows, products_NK: Tensor, part: slice, teacher_NK: Tensor | None
) -> tuple[Tensor, list[Part]]:
    """Gradient of the terms' sum by some rows' products, which it replaces, and each term's part.
    `teacher_NK`: the products of a teacher who was not multiplied out; they are lost."""
    losses: list[list[Tensor]] = [[] for _ in given.terms]
    for piece in pieces(len(products_NK), products_NK.shape[1], products_NK.device.type):
        rows = slice(part.start + piece.start, part.start + piece.stop)
        theirs_NK = None if teacher_NK is None else teacher_NK[piece]
        found = _piece_(given, products_NK[piece], rows, theirs_NK)
        for held, term in zip(losses, given.terms, strict=True):
            held.append(found[term.name])
    none_N = products_NK.new_zeros(0, dtype=torch.float32)
    spoken_N = _rows(taught(given.signal), part)
    parts = [
        given.objective.part(
            term, torch.cat(held or [none_N]), spoken_N, given.progress, given.totals
        )
        for term, held in zip(given.terms, losses, strict=True)
    ]
    if isinstance(given.signal, Unscored) and not all(p.value.isfinite() for p in parts):
        given.signal.part(part)  # refuses a teacher who is at fault
    return products_NK, parts


def _piece_(
    given: Rows, products_NK: Tensor, rows: slice, theirs_NK: Tensor | None
) -> dict[str, Tensor]:
    """Each term's loss of each row; their gradient takes the products' place."""
    head = given.head
    scores_NK = head.scores(products_NK)
    bend = head.scale if head.softcap is None else head.bend_(scores_NK.clone())
    teacher_NK = _teacher(given.signal, rows, theirs_NK)
    spoken_N = _rows(taught(given.signal), rows)
    targets = {
        term.name: _target(given, term, rows, teacher_NK, spoken_N)
        for term in given.terms
        if not isinstance(term.rows, Soft)
    }
    softs = [term for term in given.terms if isinstance(term.rows, Soft)]
    losses: dict[str, Tensor] = {}
    slopes: list[Tensor] = []
    for term in softs:
        assert teacher_NK is not None
        last = term is softs[-1]
        pair = (
            _softened(given, term, scores_NK, lost=last and not targets),
            _softened(given, term, teacher_NK, lost=last and theirs_NK is not None),
        )
        losses[term.name] = _soft_(given, term, *pair, spoken_N)
        slopes.append(pair[0])
    if targets:
        weighed = [(target_N, weight_N.to(scores_NK)) for target_N, weight_N, _ in targets.values()]
        found = cross_entropies_slope_(scores_NK, weighed)
        for (name, (_, _, has_N)), loss_N in zip(targets.items(), found, strict=True):
            losses[name] = torch.where(has_N, loss_N, 0.0)
        slopes.append(scores_NK)
    slope_NK = slopes[0]
    for more_NK in slopes[1:]:
        slope_NK.add_(more_NK)
    if isinstance(bend, Tensor) or bend != 1.0:
        slope_NK.mul_(bend)
    if slope_NK.data_ptr() != products_NK.data_ptr():
        products_NK.copy_(slope_NK)
    return losses


def _soft_(
    given: Rows, term: Term, student_NK: Tensor, teacher_NK: Tensor, spoken_N: Tensor | None
) -> Tensor:
    """A soft term's loss of each row, from softened scores, the student's of which become its
    gradient by the scores."""
    assert isinstance(term.rows, Soft)
    temperature = at(term.rows.config.temperature, given.progress)
    factor = term.rows.factor(temperature, student_NK.shape[1])
    total = max(1, given.totals[term.unit])
    scale = at(term.weight, given.progress) / total * factor / temperature
    loss_N = forward_kl_slope_(student_NK, teacher_NK, scale=scale) * factor
    if spoken_N is None:
        return loss_N
    student_NK.mul_(spoken_N[:, None])
    return torch.where(spoken_N, loss_N, 0.0)


def _softened(given: Rows, term: Term, scores_NK: Tensor, *, lost: bool) -> Tensor:
    """Scores / temperature, in their own memory if they may be lost."""
    assert isinstance(term.rows, Soft)
    temperature = at(term.rows.config.temperature, given.progress)
    if temperature == 1.0:
        return scores_NK if lost else scores_NK.clone()
    return scores_NK.div_(temperature) if lost else scores_NK / temperature


def _target(
    given: Rows, term: Term, rows: slice, teacher_NK: Tensor | None, spoken_N: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """A cross-entropy's targets, their weights, and which rows have one."""
    total, weight = max(1, given.totals[term.unit]), at(term.weight, given.progress)
    if term.gold:
        gold_N = given.batch.part(rows).gold_N
        assert gold_N is not None
        has_N = gold_N != NO_LABEL
        weight_N = has_N * (weight / total)
        if spoken_N is not None:
            alone = given.objective.alone(term, given.progress)
            weight_N = torch.where(spoken_N, weight_N, has_N * (alone / total))
        return gold_N.clamp(min=0).long(), weight_N, has_N
    if isinstance(given.signal, Labels):
        theirs_N = given.signal.part(rows).labels_N.long()
    else:
        assert teacher_NK is not None
        theirs_N = teachers_choice(Dense(teacher_NK))
    has_N = torch.ones_like(theirs_N, dtype=torch.bool) if spoken_N is None else spoken_N
    return theirs_N, has_N * (weight / total), has_N


def _teacher(signal: Signal | None, rows: slice, theirs_NK: Tensor | None) -> Tensor | None:
    """A teacher's scores of some rows, if it has any."""
    if isinstance(signal, Unscored):
        assert theirs_NK is not None
        return signal.factored.head.scores(theirs_NK)
    if isinstance(signal, Dense):
        scores_NK = signal.scores_NK[rows]
        return scores_NK if scores_NK.dtype == torch.float64 else scores_NK.float()
    return None


def _rows(values_N: Tensor | None, rows: slice) -> Tensor | None:
    return None if values_N is None else values_N[rows]
