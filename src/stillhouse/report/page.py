"""What one run's part of the page holds: tables and figures, ready for the template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stillhouse.core.results import ModelResult, Record
from stillhouse.report import ablations, curves, figures, heatmap, stages, terms, view
from stillhouse.report import format as fmt
from stillhouse.report.ablations import Row as AblationRow
from stillhouse.report.metrics import (
    Metrics,
    Series,
    TermPoint,
    loss_series,
    score_series,
    term_series,
)
from stillhouse.report.parts import Figure, drawn
from stillhouse.report.stages import GRADIENT_NOTE, LOSS_NOTE, ROLES, score_note
from stillhouse.report.stages import Row as StageRow
from stillhouse.report.view import Confusion, Entry, Group, Headline

LEGEND = {"teacher": "Teacher", "student": "Student", "baseline": "Baseline", "export": "Export"}
HEAT_MAP_UP_TO = 30
MEGABYTE = 1e6


@dataclass(frozen=True)
class RunPage:
    """`key` keeps one run's ids and anchors apart from another's."""

    key: str
    record: Record
    headlines: Sequence[Headline]
    entries: Sequence[Entry]
    groups: Sequence[Group]
    gain: Figure | None
    costs: Sequence[Figure]
    stages: Sequence[StageRow]
    curves: Sequence[Figure]
    terms: Sequence[Figure]
    ablations: Sequence[AblationRow]
    worth: Sequence[Figure]
    layers: Sequence[Figure]
    answers: Sequence[Figure]
    confusions: Sequence[Confusion]

    @property
    def inside(self) -> bool:
        """Whether the page has a part that runs of one stage, on answers only, have not."""
        record = self.record
        found = (
            self.stages,
            self.ablations,
            self.layers,
            record.diagnosis,
            record.removed,
            record.distributions,
            record.teachers,
            record.decoded,
        )
        return any(map(bool, found))


def build(record: Record, metrics: Metrics, *, key: str) -> RunPage:
    matrix = record.student.confusion or []
    many = len(matrix) > HEAT_MAP_UP_TO
    staged = len(record.stages) > 1
    return RunPage(
        key=key,
        record=record,
        headlines=view.headlines(record),
        entries=view.entries(record),
        groups=view.groups(record),
        gain=_gain(record, key),
        costs=cost_figures([("", record)], key=key),
        stages=stages.rows(record) if stages.told(record) else [],
        curves=stages.figures(record, metrics, key=key)
        if staged
        else _curves(record, metrics, key),
        terms=[] if staged else _terms(record, metrics, key),
        ablations=ablations.rows(record),
        worth=[ablations.figure(record, key=key)] if record.ablations else [],
        layers=heatmap.figures(record, key=key),
        answers=[*_reliability(record, key), *([] if many else _confusion(record, key))],
        confusions=view.confusions(matrix, view.label_names(record, matrix)) if many else [],
    )


def _gain(record: Record, key: str) -> Figure | None:
    if record.gain is None:
        return None
    return drawn("Gain", figures.gain(record.gain, key=f"{key}-gain", metric=record.metric))


def cost_figures(records: Sequence[tuple[str, Record]], *, key: str) -> list[Figure]:
    """Quality against latency and against size, for the models of any number of named runs."""
    metric = view.metric_name(records[0][1].metric)

    def figure(short: str, xlabel: str, cost: Callable[[Entry], float | None]) -> list[Figure]:
        points = _points(records, cost)
        if len(points) < 2:
            return []
        found = {point.role for point in points}
        roles = {role: name for role, name in LEGEND.items() if role in found}
        svg = figures.quality_against(
            points,
            key=f"{key}-{short}",
            metric=metric,
            xlabel=xlabel,
            roles=roles if len(records) > 1 else None,
        )
        return [drawn(f"{metric} against {short}", svg)]

    return [
        *figure("latency", "Median latency, ms", lambda entry: entry.model.latency_ms),
        *figure("size", "Size, MB", lambda entry: entry.model.bytes / MEGABYTE),
    ]


def _points(
    records: Sequence[tuple[str, Record]], cost: Callable[[Entry], float | None]
) -> list[figures.Point]:
    """One point a model; a teacher that several runs share is shown once."""
    several = len(records) > 1
    teachers = {(r.teacher.name, r.teacher.score) for _, r in records if r.teacher is not None}
    one_teacher = several and len(teachers) == 1
    found: list[figures.Point] = []
    for run, record in records:
        for entry in view.entries(record):
            x = cost(entry)
            shared = entry.role == "teacher" and one_teacher
            if x is None or (shared and any(point.role == "teacher" for point in found)):
                continue
            label = _point_label(run, entry) if several and not shared else entry.title
            bounds = entry.model.interval if isinstance(entry.model, ModelResult) else None
            found.append(figures.Point(label, entry.role, x, entry.model.score, bounds))
    return found


def _point_label(run: str, entry: Entry) -> str:
    """The run's name stands for its student; its other models say what they are."""
    return run if entry.role == "student" else f"{run}, {entry.title}"


def _curves(record: Record, metrics: Metrics, key: str) -> list[Figure]:
    names = view.role_names(record)
    made: list[Figure] = []
    if scores := score_series(metrics, ROLES):
        svg = curves.held_out_score(scores, names, key=f"{key}-score")
        made.append(drawn("Score on held-out rows", svg, score_note(record.metric, scores)))
    if losses := loss_series(metrics, ROLES):
        svg = curves.training_loss(losses, names, key=f"{key}-loss")
        note = LOSS_NOTE if len(losses) > 1 else ""
        made.append(drawn("Training loss", svg, note))
    return made


def _terms(record: Record, metrics: Metrics, key: str) -> list[Figure]:
    made: list[Figure] = []

    def names(series: Sequence[Series]) -> dict[str, str]:
        found = [each.name for each in series]
        if not stages.told(record):
            return {name: name for name in found}
        return terms.names(dict.fromkeys([*terms.of(record), *found]))

    def value(point: TermPoint) -> float | None:
        return point.value

    def gradient(point: TermPoint) -> float | None:
        return point.gradient_norm

    if values := term_series(metrics, "student", value):
        svg = curves.term_values(values, names(values), key=f"{key}-values")
        made.append(drawn("Value of each term", svg, "Before its weight."))
    if gradients := term_series(metrics, "student", gradient):
        svg = curves.term_gradients(gradients, names(gradients), key=f"{key}-gradients")
        made.append(drawn("Gradient norm of each term", svg, GRADIENT_NOTE))
    return made


def _reliability(record: Record, key: str) -> list[Figure]:
    names = view.role_names(record)
    models = {"teacher": record.teacher, "student": record.student, "baseline": record.baseline}
    known = {role: m for role, m in models.items() if m and any(b.count for b in m.reliability)}
    if not known:
        return []
    legend = {
        role: names[role]
        + ("" if m.calibration_error is None else f", ECE {fmt.score(m.calibration_error)}")
        for role, m in known.items()
    }
    bins = {role: m.reliability for role, m in known.items()}
    svg = figures.reliability(bins, legend, key=f"{key}-reliability")
    note = (
        "On the diagonal, confidence is worth what it says; below it, the model is too sure. "
        "A larger dot stands for more rows."
    )
    return [drawn("Is its confidence right?", svg, note)]


def _confusion(record: Record, key: str) -> list[Figure]:
    matrix = record.student.confusion
    if not matrix:
        return []
    labels = view.label_names(record, matrix)
    svg = figures.confusion(matrix, labels, key=f"{key}-confusion")
    note = "One row a gold label; a cell is stronger the more of its row it holds."
    return [drawn("What it takes for what", svg, note, wide=len(matrix) > 8)]
