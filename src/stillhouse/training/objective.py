"""The objective: a weighted sum of terms over scored rows, each a sum and a count.

Axes: N scored rows, K choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.core.config import Schedule, TermConfig
from stillhouse.core.errors import UsageError, unknown
from stillhouse.core.types import NO_LABEL, Batch, Dense, Labels, Signal, StudentOutput, SumCount
from stillhouse.numerics import divergences as d

Loss = tuple[Tensor, Tensor | None]  # a loss a row, and which rows have one (None: all)
RowLoss = Callable[[StudentOutput, Signal | None, Batch, float], Loss]

REGRESSION = ("logit_mse",)


def at(schedule: Schedule, progress: float) -> float:
    """A schedule's value when a share `progress` of the run is done."""
    if schedule.shape == "constant" or schedule.end is None:
        return schedule.start
    share = min(max(progress, 0.0), 1.0)
    if schedule.shape == "cosine":
        share = (1.0 - math.cos(math.pi * share)) / 2.0
    return schedule.start + (schedule.end - schedule.start) * share


@dataclass(frozen=True)
class Term:
    """One weighted part of the objective. `needs_teacher`: it can't do without a signal."""

    name: str
    weight: Schedule
    rows: RowLoss
    needs_teacher: bool

    def __call__(
        self, output: StudentOutput, signal: Signal | None, batch: Batch, progress: float
    ) -> SumCount:
        """Sum over the rows that have this term, and the count of all rows of the batch.

        The count is of all rows, so an unlabelled row has no gold term rather than making its
        neighbours' weigh more.
        """
        loss_N, has_N = self.rows(output, signal, batch, progress)
        total = loss_N.sum() if has_N is None else torch.where(has_N, loss_N, 0.0).sum()
        return SumCount(total, len(loss_N))


@dataclass(frozen=True)
class Objective:
    terms: tuple[Term, ...]

    @property
    def needs_teacher(self) -> bool:
        return any(term.needs_teacher for term in self.terms)


def _gold_classes(output: StudentOutput, _: Signal | None, batch: Batch, __: float) -> Loss:
    assert batch.gold_N is not None
    has_N = batch.gold_N != NO_LABEL
    return d.cross_entropy(output.scores_NK, batch.gold_N.clamp(min=0)), has_N


def _gold_values(output: StudentOutput, _: Signal | None, batch: Batch, __: float) -> Loss:
    assert batch.gold_N is not None
    has_N = ~torch.isnan(batch.gold_N)
    target_N = torch.where(has_N, batch.gold_N, 0.0)
    return d.logit_mse(output.scores_NK, target_N[:, None]), has_N


def _choices(signal: Signal | None) -> Tensor:
    if isinstance(signal, Labels):
        return signal.labels_N
    assert isinstance(signal, Dense)
    return signal.scores_NK.argmax(-1)


def _hard_classes(output: StudentOutput, signal: Signal | None, _: Batch, __: float) -> Loss:
    return d.cross_entropy(output.scores_NK, _choices(signal)), None


def _soft(config: TermConfig, divergence: Callable[..., Tensor]) -> RowLoss:
    """A divergence of softened scores, times T^2 so that T doesn't change the gradient's scale
    (times T for total variation, whose gradient falls with 1 / T only)."""
    power = 1 if config.divergence == "total_variation" else 2
    extra: dict[str, Any] = {
        name: value
        for name, value in (("beta", config.beta), ("alpha", config.alpha))
        if value is not None
    }

    def rows(output: StudentOutput, signal: Signal | None, batch: Batch, progress: float) -> Loss:
        assert isinstance(signal, Dense)
        student_NK, teacher_NK = output.scores_NK, signal.scores_NK
        if config.standardise:
            student_NK, teacher_NK = d.standardise(student_NK), d.standardise(teacher_NK)
        settings = dict(extra)
        if config.divergence == "decoupled":
            settings["target_N"] = _targets(batch, teacher_NK)
        if config.divergence == "logit_mse":  # at T, times T^2, it is what it is at 1
            return divergence(student_NK, teacher_NK, **settings), None
        temperature = at(config.temperature, progress)
        softened = (d.soften(x, temperature) for x in (student_NK, teacher_NK))
        loss_N = divergence(*softened, **settings)
        return loss_N * (temperature**power if config.squared_temperature else 1.0), None

    return rows


def _targets(batch: Batch, teacher_NK: Tensor) -> Tensor:
    """Decoupled KD's target class: the gold label, the teacher's choice where there is none."""
    choice_N = teacher_NK.argmax(-1)
    if batch.gold_N is None:
        return choice_N
    return torch.where(batch.gold_N == NO_LABEL, choice_N, batch.gold_N)


NEEDED = {"jsd": ("beta",), "skew_kl": ("alpha",)}
TAKEN = {"jsd": ("beta",), "skew_kl": ("alpha",), "decoupled": ("alpha", "beta")}


def _check_soft(config: TermConfig, choices: int) -> None:
    name = config.divergence
    if name not in d.DIVERGENCES:
        raise UsageError(unknown("divergence", name, d.DIVERGENCES))
    for option in ("alpha", "beta"):
        given = getattr(config, option) is not None
        if given and option not in TAKEN.get(name, ()):
            raise UsageError(f"divergence {name} takes no {option}")
        if not given and option in NEEDED.get(name, ()):
            raise UsageError(f"divergence {name} needs {option}")
    if choices == 1 and name not in REGRESSION:
        raise UsageError(
            f"a regression's single value has no {name}: "
            "set the soft term's divergence to logit_mse"
        )
    if choices == 1 and config.standardise:
        raise UsageError("a regression's single value can't be standardised")
    lowest = min(t for t in (config.temperature.start, config.temperature.end) if t is not None)
    if lowest <= 0:
        raise UsageError(f"a temperature must be > 0, got {lowest}")
    trial = Dense(torch.zeros(1, choices))
    try:
        _soft(config, d.DIVERGENCES[name])(
            StudentOutput(trial.scores_NK), trial, Batch({}, np.zeros(1, np.int64)), 0.0
        )
    except ValueError as error:
        raise UsageError(f"divergence {name}: {error}") from None


def build(
    configs: Sequence[TermConfig],
    *,
    choices: int,
    signal: type[Dense] | type[Labels] | None,
    has_gold: bool,
) -> Objective:
    """The objective of `configs` for K = `choices` (1: regression). Raises UsageError for a term
    that the signal or the data can't feed, before anything is trained."""
    terms: list[Term] = []
    for config in configs:
        name = config.kind
        if any(term.name == name for term in terms):
            name = f"{config.kind}-{sum(t.name.split('-')[0] == config.kind for t in terms) + 1}"
        if config.kind == "gold":
            if not has_gold:
                raise UsageError("the objective has a gold term, but no row has a label")
            rows = _gold_values if choices == 1 else _gold_classes
        elif signal is None:
            raise UsageError(f"the objective has a {config.kind} term, but there is no teacher")
        elif config.kind == "hard":
            if choices == 1:
                raise UsageError("a regression has no hard labels: use soft with logit_mse")
            rows = _hard_classes
        else:
            if signal is not Dense:
                raise UsageError("a soft term needs scores, and this teacher gives labels only")
            _check_soft(config, choices)
            rows = _soft(config, d.DIVERGENCES[config.divergence])
        terms.append(Term(name, config.weight, rows, needs_teacher=config.kind != "gold"))
    return Objective(tuple(terms))
