"""A training of several stages: a row and the curves of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from stillhouse.core.results import Record, StageResult
from stillhouse.report import canvas, curves, terms, view
from stillhouse.report import format as fmt
from stillhouse.report.curves import Mark
from stillhouse.report.metrics import (
    Metrics,
    Series,
    TermPoint,
    loss_series,
    part,
    score_series,
    term_series,
)
from stillhouse.report.parts import Figure, drawn

ROLES = ("student", "baseline", "teacher")
LOSS_NOTE = "Heights compare only between runs with the same objective."
GRADIENT_NOTE = "A term whose gradient is far below the others' hardly steers the student."


@dataclass(frozen=True)
class Term:
    """A term of a stage: its colour on the page, and its share of the gradient, 0 to 1."""

    name: str
    paint: str
    share: float | None

    @property
    def said(self) -> str:
        share = self.share or 0.0
        return f"{'<1' if 0.0 < share < 0.005 else round(100 * share)}{fmt.THIN}%"

    @property
    def width(self) -> str:
        """The bar's length, as CSS has it."""
        return f"{100 * min(max(self.share or 0.0, 0.0), 1.0):.1f}%"


@dataclass(frozen=True)
class Row:
    stage: StageResult
    kept: str
    score: str
    metric: str
    terms: Sequence[Term]


@dataclass(frozen=True)
class Span:
    """A stage on the steps' common axis. `metrics` has its lines, their steps moved there."""

    name: str
    metric: str | None
    terms: frozenset[str]
    start: int
    metrics: Metrics


@dataclass(frozen=True)
class Panel:
    """A figure of stages that share an axis."""

    number: int
    spans: list[Span]
    series: list[Series]
    marks: list[Mark]
    alone: bool

    def titled(self, title: str) -> str:
        """The title, with the stages' names where other panels show others."""
        names = ", ".join(fmt.shorten(span.name, 40) for span in self.spans)
        return title if self.alone else f"{title}: {names}"


def told(record: Record) -> bool:
    """Whether the stages tell more than that the student learnt from answers, all at once."""
    inner = any(terms.kind(term) not in terms.OUTER for term in terms.of(record))
    return len(record.stages) > 1 or inner


def rows(record: Record) -> list[Row]:
    order = terms.of(record)
    return [
        Row(
            stage=stage,
            kept=_range(stage.best_steps),
            score=fmt.DASH
            if stage.score is None
            else fmt.score(stage.score, stage.metric or record.metric),
            metric="" if stage.metric is None else view.metric_name(stage.metric),
            terms=[
                Term(terms.name(t), _paint(order.index(t)), stage.gradient_share.get(t))
                for t in stage.terms
            ],
        )
        for stage in record.stages
    ]


def _range(steps: Sequence[int]) -> str:
    """The steps kept by all seeds: one, or from the least to the most."""
    ends = sorted({min(steps), max(steps)}) if steps else []
    return " to ".join(map(fmt.count, ends))


def _paint(place: int) -> str:
    return canvas.TERMS[place % len(canvas.TERMS)]


def figures(record: Record, metrics: Metrics, *, key: str) -> list[Figure]:
    """The curves of all stages, their steps one after another. Stages scored by different metrics,
    or trained on different terms, share no axis."""
    spans, rest = _spans(record, metrics)
    return [
        *_scores(record, spans, rest, key),
        *_losses(record, spans, rest, key),
        *_terms(record, spans, rest, key),
    ]


def _spans(record: Record, metrics: Metrics) -> tuple[list[Span], Metrics]:
    """Each stage's lines, and those of no stage that the record has, which are left as they are."""
    found: list[Span] = []
    start = 0
    for stage in record.stages:
        own = part(metrics, stage.name.__eq__, later=start)
        found.append(Span(stage.name, stage.metric, frozenset(stage.terms), start, own))
        ends = [row.step for row in (*own.steps, *own.evaluations) if row.run in ROLES]
        start = max(start + stage.steps, *ends) if ends else start + stage.steps
    known = {stage.name for stage in record.stages}
    return found, part(metrics, lambda name: name not in known, later=0)


def _scores(record: Record, spans: Sequence[Span], rest: Metrics, key: str) -> list[Figure]:
    scored = [span for span in spans if span.metric is not None]
    made: list[Figure] = []
    for panel in _panels(scored, lambda span: span.metric, spans, rest, score_series):
        metric = panel.spans[0].metric or record.metric
        svg = curves.held_out_score(
            panel.series,
            view.role_names(record),
            key=f"{key}-score-{panel.number}",
            marks=panel.marks,
        )
        title = panel.titled(f"{view.metric_name(metric)} on held-out rows")
        made.append(drawn(title, svg, score_note(metric, panel.series)))
    return made


def _losses(record: Record, spans: Sequence[Span], rest: Metrics, key: str) -> list[Figure]:
    made: list[Figure] = []
    for panel in _panels(spans, lambda span: span.terms, spans, rest, loss_series):
        svg = curves.training_loss(
            panel.series,
            view.role_names(record),
            key=f"{key}-loss-{panel.number}",
            marks=panel.marks,
        )
        note = LOSS_NOTE if len({each.name for each in panel.series}) > 1 else ""
        made.append(drawn(panel.titled("Training loss"), svg, note))
    return made


def _terms(record: Record, spans: Sequence[Span], rest: Metrics, key: str) -> list[Figure]:
    found = [*(span.metrics for span in spans), rest]
    seen = [term for lines in found for row in lines.steps for term in row.terms]
    names = terms.names(dict.fromkeys([*terms.of(record), *seen]))
    marks = [Mark(span.start, span.name) for span in spans]

    def series(pick: Callable[[TermPoint], float | None]) -> list[Series]:
        return [each for lines in found for each in term_series(lines, "student", pick)]

    made: list[Figure] = []
    if values := series(lambda point: point.value):
        svg = curves.term_values(values, names, key=f"{key}-values", marks=marks)
        made.append(drawn("Value of each term", svg, "Before its weight."))
    if gradients := series(lambda point: point.gradient_norm):
        svg = curves.term_gradients(gradients, names, key=f"{key}-gradients", marks=marks)
        made.append(drawn("Gradient norm of each term", svg, GRADIENT_NOTE))
    return made


def _panels(
    shown: Sequence[Span],
    by: Callable[[Span], object],
    spans: Sequence[Span],
    rest: Metrics,
    read: Callable[[Metrics, Sequence[str]], list[Series]],
) -> Iterator[Panel]:
    """Neighbouring stages that share an axis, with what there is to draw; marks are where the
    stages between a panel's first and last begin. `rest` belongs to the last panel."""
    groups = [list(group) for _, group in groupby(shown, by)]
    for number, group in enumerate(groups, start=1):
        whole = read(rest, ROLES) if number == len(groups) else []
        series = [*(each for span in group for each in read(span.metrics, ROLES)), *whole]
        first = spans[0] if whole else group[0]
        within = [span for span in spans if first.start <= span.start <= group[-1].start]
        marks = [Mark(span.start, span.name) for span in within]
        if series:
            yield Panel(number, group, series, marks, alone=len(groups) == 1)


def score_note(metric: str, series: Sequence[Series]) -> str:
    notes = ["Lower is better."] if metric in view.LOWER_IS_BETTER else []
    if any(len(each.seeds) > 1 for each in series):
        notes.append("Thin lines are single seeds, thick lines their mean.")
    return " ".join(notes)
