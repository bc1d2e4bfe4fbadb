"""The objective: a weighted sum of terms, each a sum and a count.

Response terms compare scored rows; inner terms (inner.py) compare what was read inside, text by
text.

Axes: N scored rows, K choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.core.errors import UsageError, unknown
from stillhouse.core.seeding import derive
from stillhouse.core.terms import AnyTerm, InnerTermConfig, Schedule, TermConfig
from stillhouse.core.types import (
    NO_LABEL,
    Batch,
    Dense,
    Labels,
    Signal,
    StudentOutput,
    SumCount,
    Tap,
    Unit,
)
from stillhouse.numerics import divergences as d
from stillhouse.numerics.wide import WIDE, forward_kl_wide
from stillhouse.training.inner import InnerTerm, Inside, inner_term, taps_of

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
    """One weighted part of the objective, a mean over `unit`s. `needs_teacher`: it can't do
    without a signal."""

    name: str
    weight: Schedule
    rows: RowLoss
    needs_teacher: bool
    unit: Unit = "scored"

    def __call__(
        self, output: StudentOutput, signal: Signal | None, batch: Batch, progress: float
    ) -> SumCount:
        """Sum over the rows that have this term, and the count of all of the batch.

        The count is of all rows, so an unlabelled row has no gold term rather than making its
        neighbours' weigh more.
        """
        loss_N, has_N = self.rows(output, signal, batch, progress)
        total = loss_N.sum() if has_N is None else torch.where(has_N, loss_N, 0.0).sum()
        return SumCount(total, len(loss_N))


class Objective:
    """The terms, the projections that some of them learn (thrown away after training), and what
    has to be read inside student and teacher for them."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)
        inner = [term.rows for term in self.terms if isinstance(term.rows, InnerTerm)]
        named = {
            term.rows.bridge: term.name
            for term in reversed(self.terms)  # a shared one has the name of its first term
            if isinstance(term.rows, InnerTerm) and term.rows.bridge is not None
        }
        self.bridges = nn.ModuleDict({name: bridge for bridge, name in named.items()})
        read = [taps_of(term) for term in inner]
        self.student_taps: frozenset[Tap] = frozenset().union(*(mine for mine, _ in read))
        self.teacher_taps: frozenset[Tap] = frozenset().union(*(theirs for _, theirs in read))

    @property
    def needs_teacher(self) -> bool:
        return any(term.needs_teacher for term in self.terms)

    @property
    def scores_student(self) -> bool:
        """Whether a term looks at the student's scores."""
        return any(term.unit == "scored" for term in self.terms)

    @property
    def scores_teacher(self) -> bool:
        return any(term.unit == "scored" and term.needs_teacher for term in self.terms)

    @property
    def first_token_only(self) -> bool:
        """Whether inner terms look at the first token's states only."""
        inner = [term.rows for term in self.terms if isinstance(term.rows, InnerTerm)]
        return bool(inner) and all(term.first_token_only for term in inner)

    def reset(self, seed: int) -> None:
        """Fresh projections, as a run with `seed` begins: each by its term's name, so that it is
        the same whatever other terms there are."""
        for name, bridge in self.bridges.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(seed, "projection", name) % 2**31)
                bridge.reset_parameters()  # pyright: ignore


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


def _soft(config: TermConfig, name: str) -> RowLoss:
    """A divergence of softened scores, times T^2 so that T doesn't change the gradient's scale
    (times T for total variation, whose gradient falls with 1 / T only)."""
    divergence: Callable[..., Tensor] = d.DIVERGENCES[name]
    power = 1 if name == "total_variation" else 2
    by_choices = config.variant == "reference"
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
        if name == "decoupled":
            settings["target_N"] = _targets(batch, teacher_NK)
        if name == "logit_mse":  # at T, times T^2, it is what it is at 1
            loss_N = divergence(student_NK, teacher_NK, **settings)
            return (loss_N / student_NK.shape[1] if by_choices else loss_N), None
        temperature = at(config.temperature, progress)
        softened = (d.soften(x, temperature) for x in (student_NK, teacher_NK))
        wide = name == "forward_kl" and student_NK.shape[1] >= WIDE
        loss_N = forward_kl_wide(*softened) if wide else divergence(*softened, **settings)
        if by_choices:
            loss_N = loss_N / student_NK.shape[1]
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


def _check_soft(config: TermConfig, name: str, choices: int) -> None:
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
        _soft(config, name)(
            StudentOutput(trial.scores_NK), trial, Batch({}, np.zeros(1, np.int64)), 0.0
        )
    except ValueError as error:
        raise UsageError(f"divergence {name}: {error}") from None


def term_names(configs: Sequence[AnyTerm]) -> list[str]:
    """A name a term: its kind, with a number from the second of a kind on."""
    kinds = [config.kind for config in configs]
    counts = [kinds[: i + 1].count(kind) for i, kind in enumerate(kinds)]
    return [k if n == 1 else f"{k}-{n}" for k, n in zip(kinds, counts, strict=True)]


def build(
    configs: Sequence[AnyTerm],
    *,
    choices: int,
    signal: type[Dense] | type[Labels] | None,
    has_gold: bool,
    inside: Inside | None = None,
) -> Objective:
    """The objective of `configs` for K = `choices` (1: regression). Raises UsageError for a term
    that the signal, the data or the two models can't feed, before anything is trained."""
    terms: list[Term] = []
    shared: dict[str, nn.Linear] = {}
    for name, config in zip(term_names(configs), configs, strict=True):
        if isinstance(config, InnerTermConfig):
            if inside is None:
                raise UsageError(f"a {config.kind} term reads inside a teacher: there is none here")
            rows = inner_term(config, inside, shared)
            terms.append(Term(name, config.weight, rows, needs_teacher=True, unit="examples"))
            continue
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
            divergence = config.divergence or ("logit_mse" if choices == 1 else "forward_kl")
            _check_soft(config, divergence, choices)
            rows = _soft(config, divergence)
        terms.append(Term(name, config.weight, rows, needs_teacher=config.kind != "gold"))
    return Objective(terms)
