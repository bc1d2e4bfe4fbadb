"""A training of several stages: a row and the curves of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    panels = _panels(scored, lambda span: span.metric)
    made: list[Figure] = []
    for number, panel in enumerate(panels, start=1):
        last = number == len(panels)
        series, marks = _panel(panel, spans, rest if last else Metrics(), score_series)
        if not series:
            continue
        metric = panel[0].metric or record.metric
        svg = curves.held_out_score(
            series, view.role_names(record), key=f"{key}-score-{number}", marks=marks
        )
        title = f"{view.metric_name(metric)} on held-out rows"
        made.append(drawn(_titled(title, panel, panels), svg, score_note(metric, series)))
    return made


def _losses(record: Record, spans: Sequence[Span], rest: Metrics, key: str) -> list[Figure]:
    panels = _panels(spans, lambda span: span.terms)
    made: list[Figure] = []
    for number, panel in enumerate(panels, start=1):
        last = number == len(panels)
        series, marks = _panel(panel, spans, rest if last else Metrics(), loss_series)
        if not series:
            continue
        svg = curves.training_loss(
            series, view.role_names(record), key=f"{key}-loss-{number}", marks=marks
        )
        note = LOSS_NOTE if len({each.name for each in series}) > 1 else ""
        made.append(drawn(_titled("Training loss", panel, panels), svg, note))
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


def _panels(spans: Sequence[Span], by: Callable[[Span], object]) -> list[list[Span]]:
    return [list(group) for _, group in groupby(spans, by)]


def _panel(
    panel: Sequence[Span],
    spans: Sequence[Span],
    rest: Metrics,
    read: Callable[[Metrics, Sequence[str]], list[Series]],
) -> tuple[list[Series], list[Mark]]:
    """The panel's series, and where the stages between its first and its last begin."""
    whole = read(rest, ROLES)
    series = [*(each for span in panel for each in read(span.metrics, ROLES)), *whole]
    first = spans[0] if whole else panel[0]
    within = [span for span in spans if first.start <= span.start <= panel[-1].start]
    return series, [Mark(span.start, span.name) for span in within]


def _titled(title: str, panel: Sequence[Span], panels: Sequence[object]) -> str:
    names = ", ".join(fmt.shorten(span.name, 40) for span in panel)
    return f"{title}: {names}" if len(panels) > 1 else title


def score_note(metric: str, series: Sequence[Series]) -> str:
    notes = ["Lower is better."] if metric in view.LOWER_IS_BETTER else []
    if any(len(each.seeds) > 1 for each in series):
        notes.append("Thin lines are single seeds, thick lines their mean.")
    return " ".join(notes)
