"""The page of an audit: extraction curves, the table of copies, what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullLocator

from stillhouse.core.audit_results import AuditRecord, Change, Copy
from stillhouse.report import canvas, view
from stillhouse.report import format as fmt
from stillhouse.report.canvas import PAINT, TERMS
from stillhouse.report.parts import Figure, drawn

Key = Literal["score", "agreement"]
Axis = Literal["queries", "money"]
AXES: dict[Axis, str] = {"queries": "Queries", "money": "What they cost"}


@dataclass(frozen=True)
class Row:
    """A copy as the table has it."""

    kind: str
    view: str
    thief: str
    queries: str
    money: str
    score: str
    interval: str
    retention: str
    agreement: str


@dataclass(frozen=True)
class ChangeRow:
    view: str
    gain: str
    price: str


@dataclass(frozen=True)
class AuditPage:
    record: AuditRecord
    metric: str
    figures: Sequence[Figure]
    rows: Sequence[Row]
    changes: Sequence[ChangeRow]


def build(record: AuditRecord) -> AuditPage:
    metric = view.metric_name(record.metric)
    over = "rows and seeds" if len(record.copies[0].seeds) > 1 else "rows (there is one seed)"
    bars = f"Bars are 95 % intervals over {over}; the line is the victim."
    related = _related(record)
    agreed = "Correlation with the victim" if related else "Agreement, %"
    figures = [
        drawn(f"{metric} of the copies", _curve(record, metric, key="score"), bars),
        drawn(
            "How a copy's values follow the victim's"
            if related
            else "How often a copy answers as the victim does",
            _curve(record, agreed, key="agreement"),
            f"On the reported rows; bars are 95 % intervals over {over}.",
        ),
    ]
    if any(copy.money for copy in record.copies):
        paid = _curve(record, metric, key="score", by="money")
        figures.append(drawn(f"{metric} by what the answers cost", paid, bars))
    return AuditPage(
        record,
        metric,
        figures,
        [_row(each, record) for each in record.copies],
        [_change(each, record) for each in record.changes],
    )


def _related(record: AuditRecord) -> bool:
    """Whether agreement is a correlation of values, not a share of answers."""
    return record.task == "regression"


def money(amount: float, currency: str) -> str:
    """An amount to the cent."""
    return f"{currency}{amount:,.2f}"


def _row(copy: Copy, record: AuditRecord) -> Row:
    picked = "" if copy.selection == "random" else f", by {copy.selection}"
    return Row(
        copy.kind + picked,
        copy.view,
        copy.thief,
        fmt.count(copy.queries),
        money(copy.money, record.currency),
        fmt.score(copy.score, record.metric),
        fmt.interval(copy.interval, record.metric),
        fmt.DASH if copy.retention is None else fmt.percent(copy.retention),
        fmt.score(copy.agreement) if _related(record) else fmt.percent(copy.agreement),
    )


def _change(change: Change, record: AuditRecord) -> ChangeRow:
    gain = change.gain
    return ChangeRow(
        change.view,
        fmt.DASH if gain is None else view.gain_in_words(gain, change.verdict, record.metric),
        "not within these budgets"
        if change.price is None
        else ("at most " if change.at_most else "") + money(change.price, record.currency),
    )


def lines(record: AuditRecord) -> dict[str, list[Copy]]:
    """The copies by what they have in common, but for the budget; names only what differs."""
    named = ("kind", "selection", "view", "thief")
    differs = [name for name in named if len({getattr(c, name) for c in record.copies}) > 1]
    found: dict[str, list[Copy]] = {}
    for copy in record.copies:
        shown = [(name, getattr(copy, name)) for name in differs]
        title = ", ".join(each for name, each in shown if (name, each) != ("selection", "random"))
        found.setdefault(title or copy.kind, []).append(copy)
    return found


def _curve(record: AuditRecord, title: str, *, key: Key, by: Axis = "queries") -> str:
    """A value by queries (on a log axis) or money; a line for each kind, view and thief."""
    named = lines(record)

    def draw(figure: Canvas) -> None:
        ax = canvas.axes(figure, title=title, xlabel=AXES[by])
        if key == "score":
            ax.axhspan(*record.victim.interval, color=PAINT["teacher"], alpha=0.12, linewidth=0)
            ax.axhline(record.victim.score, color=PAINT["teacher"], linewidth=1.2, label="Victim")
        for place, (name, copies) in enumerate(named.items()):
            again, paint = divmod(place, len(TERMS))
            apart = 1 + 0.015 * place if by == "queries" else 1.0
            xs = [getattr(copy, by) * apart for copy in copies]
            ys, low, high = zip(*(_point(copy, key, record) for copy in copies), strict=True)
            bars = ax.errorbar(
                xs, ys, [low, high], color=PAINT[TERMS[paint]], marker="o", markersize=3.5,
                linewidth=1.6, elinewidth=0.8, label=fmt.shorten(name, 34),
            )  # fmt: skip
            bars.lines[0].set_linestyle((0, (5, 2)) if again else "-")
        if by == "queries":
            ax.set_xscale("log")
            ax.set_xticks(sorted({copy.queries for copy in record.copies}))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: fmt.scaled(x, "")))
        else:
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{record.currency}{x:,.6g}"))
        canvas.legend(figure, ax)

    said = "; ".join(
        f"{name}, {_asked(copy, record, by)}: {fmt.score(_point(copy, key, record)[0])}"
        for name, copies in named.items()
        for copy in copies
    )
    return canvas.to_svg(draw, key=f"{key}-{by}", label=f"{title} by {by}: {said}.")


def _asked(copy: Copy, record: AuditRecord, by: Axis) -> str:
    return f"{copy.queries:,} queries" if by == "queries" else money(copy.money, record.currency)


def _point(copy: Copy, key: Key, record: AuditRecord) -> tuple[float, float, float]:
    """A value and how far its interval reaches below and above it."""
    if key == "score":
        value, (low, high) = copy.score, copy.interval
    else:
        scale = 1 if _related(record) else 100
        value, (low, high) = scale * copy.agreement, copy.agreement_interval
        low, high = scale * low, scale * high
    return value, max(value - low, 0.0), max(high - value, 0.0)
