"""What one run's part of the page holds: tables and figures, ready for the template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from stillhouse.core.results import ModelResult, Record
from stillhouse.report import figures, view
from stillhouse.report import format as fmt
from stillhouse.report.metrics import (
    Metrics,
    Series,
    TermPoint,
    loss_series,
    score_series,
    term_series,
)
from stillhouse.report.view import Confusion, Entry, Group, Headline

LEGEND = {"teacher": "Teacher", "student": "Student", "baseline": "Baseline", "export": "Export"}
ROLES = ("student", "baseline", "teacher")
HEAT_MAP_UP_TO = 30
MEGABYTE = 1e6


@dataclass(frozen=True)
class Figure:
    title: str
    svg: Markup
    note: str
    wide: bool


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
    curves: Sequence[Figure]
    terms: Sequence[Figure]
    answers: Sequence[Figure]
    confusions: Sequence[Confusion]


def build(record: Record, metrics: Metrics, *, key: str) -> RunPage:
    matrix = record.student.confusion or []
    many = len(matrix) > HEAT_MAP_UP_TO
    return RunPage(
        key=key,
        record=record,
        headlines=view.headlines(record),
        entries=view.entries(record),
        groups=view.groups(record),
        gain=_drawn("Gain", figures.gain(record.gain, key=f"{key}-gain")) if record.gain else None,
        costs=cost_figures([("", record)], key=key),
        curves=_curves(record, metrics, key),
        terms=_terms(metrics, key),
        answers=[*_reliability(record, key), *([] if many else _confusion(record, key))],
        confusions=view.confusions(matrix, view.label_names(record, matrix)) if many else [],
    )


def _drawn(title: str, svg: str, note: str = "", *, wide: bool = False) -> Figure:
    # Safe: matplotlib escapes the text it draws, and canvas the label.
    return Figure(title, Markup(svg), note, wide)


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
        return [_drawn(f"{metric} against {short}", svg)]

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
        svg = figures.held_out_score(scores, names, key=f"{key}-score")
        made.append(_drawn("Score on held-out rows", svg, _seeds_note(scores)))
    if losses := loss_series(metrics, ROLES):
        svg = figures.training_loss(losses, names, key=f"{key}-loss")
        note = "Heights compare only between runs with the same objective."
        note = note if len(losses) > 1 else ""
        made.append(_drawn("Training loss", svg, note))
    return made


def _seeds_note(series: Sequence[Series]) -> str:
    several = any(len(each.seeds) > 1 for each in series)
    return "Thin lines are single seeds, thick lines their mean." if several else ""


def _terms(metrics: Metrics, key: str) -> list[Figure]:
    made: list[Figure] = []

    def value(point: TermPoint) -> float | None:
        return point.value

    def gradient(point: TermPoint) -> float | None:
        return point.gradient_norm

    if values := term_series(metrics, "student", value):
        svg = figures.term_values(values, key=f"{key}-values")
        made.append(_drawn("Value of each term", svg, "Before its weight."))
    if gradients := term_series(metrics, "student", gradient):
        svg = figures.term_gradients(gradients, key=f"{key}-gradients")
        note = "A term whose gradient is far below the others' hardly steers the student."
        made.append(_drawn("Gradient norm of each term", svg, note))
    return made


def _reliability(record: Record, key: str) -> list[Figure]:
    names = view.role_names(record)
    models = {"teacher": record.teacher, "student": record.student, "baseline": record.baseline}
    drawn = {role: m for role, m in models.items() if m and any(b.count for b in m.reliability)}
    if not drawn:
        return []
    legend = {
        role: names[role]
        + ("" if m.calibration_error is None else f", ECE {fmt.score(m.calibration_error)}")
        for role, m in drawn.items()
    }
    bins = {role: m.reliability for role, m in drawn.items()}
    svg = figures.reliability(bins, legend, key=f"{key}-reliability")
    note = (
        "On the diagonal, confidence is worth what it says; below it, the model is too sure. "
        "A larger dot stands for more rows."
    )
    return [_drawn("Is its confidence right?", svg, note)]


def _confusion(record: Record, key: str) -> list[Figure]:
    matrix = record.student.confusion
    if not matrix:
        return []
    labels = view.label_names(record, matrix)
    svg = figures.confusion(matrix, labels, key=f"{key}-confusion")
    note = "One row a gold label; a cell is stronger the more of its row it holds."
    return [_drawn("What it takes for what", svg, note, wide=len(matrix) > 8)]
