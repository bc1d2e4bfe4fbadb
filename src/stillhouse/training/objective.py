"""The objective: a weighted sum of terms, each a sum and a count.

Response terms compare scored rows; inner terms (inner.py) compare what was read inside, text by
text.

Axes: N scored rows, K choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stillhouse.core.errors import UsageError
from stillhouse.core.seeding import derive
from stillhouse.core.terms import AnyTerm, InnerTermConfig, Schedule
from stillhouse.core.types import (
    Batch,
    Dense,
    Labels,
    Signal,
    Sparse,
    States,
    StudentOutput,
    SumCount,
    Tap,
    Unit,
)
from stillhouse.training.inner import InnerTerm, Inside, inner_term, taps_of
from stillhouse.training.response import (
    RowLoss,
    Soft,
    WeightedClasses,
    at,
    check_soft,
    gold_classes,
    gold_values,
    hard_classes,
)

__all__ = ["Objective", "Part", "Term", "at", "build", "taught", "term_names"]


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
        loss_N = self.losses(output, signal, batch, progress)
        return SumCount(loss_N.sum(), len(loss_N))

    @property
    def gold(self) -> bool:
        return self.unit == "scored" and not self.needs_teacher

    def losses(
        self, output: StudentOutput, signal: Signal | None, batch: Batch, progress: float
    ) -> Tensor:
        """The loss of each row, 0 on those that have none: without a label, or, of a term of the
        teacher's, where the teacher doesn't speak."""
        loss_N, has_N = self.rows(output, signal, batch, progress)
        taught_N = taught(signal) if self.unit == "scored" and self.needs_teacher else None
        if taught_N is not None:
            has_N = taught_N if has_N is None else has_N & taught_N
        return loss_N if has_N is None else torch.where(has_N, loss_N, 0.0)


@dataclass(frozen=True)
class Part:
    """A term's share of a step: its value (a mean, not weighted), its weighted loss, and what of
    that is beyond value times weight, on rows without a teacher."""

    value: Tensor
    loss: Tensor
    extra: Tensor | None


def taught(signal: Signal | None) -> Tensor | None:
    """Which rows the teacher speaks on; None: all of them."""
    return None if signal is None or isinstance(signal, States) else signal.taught_N


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

    def alone(self, term: Term, progress: float) -> float:
        """A gold term's weight where the teacher doesn't speak: gold terms then share the weight
        of all scored ones, each by its own. Tan et al. 2019 sec. 3.2."""
        whole = sum(at(t.weight, progress) for t in self.terms if t.unit == "scored")
        weights = {t.name: at(t.weight, progress) for t in self.terms if t.gold}
        among = sum(weights.values())
        return whole * (weights[term.name] / among if among else 1 / len(weights))

    def parts(
        self,
        output: StudentOutput,
        signal: Signal | None,
        batch: Batch,
        *,
        progress: float,
        totals: Mapping[Unit, int],
        terms: Sequence[Term] | None = None,
    ) -> list[Part]:
        """What each term (of `terms`, else all) makes of some rows of a step of `totals`."""
        spoken_N = taught(signal)
        return [
            self.part(
                term, term.losses(output, signal, batch, progress), spoken_N, progress, totals
            )
            for term in (self.terms if terms is None else terms)
        ]

    def part(
        self,
        term: Term,
        loss_N: Tensor,
        taught_N: Tensor | None,
        progress: float,
        totals: Mapping[Unit, int],
    ) -> Part:
        """One term's part, from its loss of each row."""
        total, weight = max(1, totals[term.unit]), at(term.weight, progress)
        found = loss_N.sum()
        loss, value = found * (weight / total), found.detach() / total
        if taught_N is None or not term.gold:
            return Part(value, loss, None)
        untaught = torch.where(taught_N, 0.0, loss_N).sum()
        extra = untaught * ((self.alone(term, progress) - weight) / total)
        return Part(value, loss + extra, extra.detach())

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


def term_names(configs: Sequence[AnyTerm]) -> list[str]:
    """A name a term: its kind, with a number from the second of a kind on."""
    kinds = [config.kind for config in configs]
    counts = [kinds[: i + 1].count(kind) for i, kind in enumerate(kinds)]
    return [k if n == 1 else f"{k}-{n}" for k, n in zip(kinds, counts, strict=True)]


def build(
    configs: Sequence[AnyTerm],
    *,
    choices: int,
    signal: type[Dense] | type[Sparse] | type[Labels] | None,
    has_gold: bool,
    inside: Inside | None = None,
    weights_K: Tensor | None = None,
) -> Objective:
    """The objective of `configs` for K = `choices` (1: regression). `weights_K`: what a label's
    loss is multiplied by, by its class. Raises UsageError for a term
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
            rows = gold_values if choices == 1 else gold_classes
            if weights_K is not None:
                rows = WeightedClasses(weights_K)
        elif signal is None:
            raise UsageError(f"the objective has a {config.kind} term, but there is no teacher")
        elif config.kind == "hard":
            if choices == 1:
                raise UsageError("a regression has no hard labels: use soft with logit_mse")
            rows = hard_classes
        else:
            if signal is Labels:
                raise UsageError("a soft term needs scores, and this teacher gives labels only")
            divergence = config.divergence or ("logit_mse" if choices == 1 else "forward_kl")
            check_soft(config, divergence, choices, signal)
            rows = Soft(config, divergence)
        terms.append(Term(name, config.weight, rows, needs_teacher=config.kind != "gold"))
    return Objective(terms)
