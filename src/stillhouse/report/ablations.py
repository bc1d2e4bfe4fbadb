"""What each term of the objective was worth: the run against the same run without the term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from stillhouse.core.results import Ablation, Record
from stillhouse.core.verdicts import in_words
from stillhouse.report import canvas, parts, terms, view
from stillhouse.report.canvas import PAINT
from stillhouse.report.format import interval, shorten, signed

WORDS = {
    "helped": "the term helped",
    "no difference": "no difference",
    "can't tell": "can't tell",
    "not comparable": "not comparable",
    "hurt": "the term hurt",
}
PAINTS = {"helped": PAINT["helped"], "hurt": PAINT["hurt"]}  # the others: none


@dataclass(frozen=True)
class Row:
    """`stage` is empty where all rows are of one."""

    name: str
    stage: str
    words: str
    result: Ablation


def _left_out(each: Ablation) -> str:
    return terms.name(each.without) + (" (gold answers instead)" if each.gold_instead else "")


def _words(each: Ablation) -> str:
    return in_words(WORDS[each.verdict], each.gain)


def rows(record: Record) -> list[Row]:
    """The most useful term first."""
    lower = record.metric in view.LOWER_IS_BETTER
    found = sorted(record.ablations, key=lambda each: each.gain.value * (1 if lower else -1))
    several = len(record.stages) > 1 or len({each.stage for each in found}) > 1
    return [
        Row(_left_out(each), each.stage if several else "", _words(each), each) for each in found
    ]


def figure(record: Record, *, key: str) -> parts.Figure:
    side = "left" if record.metric in view.LOWER_IS_BETTER else "right"
    note = f"To the {side} of zero, the run is better for having the term."
    svg = _forest(rows(record), metric=record.metric, key=f"{key}-without")
    return parts.drawn("What each term is worth", svg, note)


def _forest(found: Sequence[Row], *, metric: str, key: str) -> str:
    """The gains, one a line, each with its interval, against zero."""
    gain = "Change" if metric in view.LOWER_IS_BETTER else "Gain"

    def draw(figure: Figure) -> None:
        ax = canvas.axes(figure, xlabel=f"{gain} in {metric.replace('_', ' ')}")
        ax.grid(visible=False)
        ax.grid(visible=True, axis="x")
        ax.axvline(0, color=PAINT["soft"], linewidth=1, linestyle=(0, (2, 2)))
        for place, row in enumerate(found):
            _line(ax, place, row.result)
        ax.set_yticks(range(len(found)), [_label(row) for row in found])
        ax.tick_params(axis="y", labelcolor=PAINT["ink"])
        ax.set_ylim(len(found) - 0.4, -0.6)
        gains = [row.result.gain for row in found]
        ends = [0.0, *(end for each in gains for end in (*each.interval, each.value))]
        margin = max(0.08 * (max(ends) - min(ends)), 1e-3)
        ax.set_xlim(min(ends) - margin, max(ends) + margin)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_formatter(
            lambda value, _: "0" if abs(value) < 1e-9 else signed(value, metric)
        )
        _key(figure, found)

    said = "; ".join(
        f"{row.name}{f' of {row.stage}' if row.stage else ''} "
        f"{signed(row.result.gain.value, metric)}, {interval(row.result.gain.interval, metric)}"
        for row in found
    )
    height = 74 + 26 * len(found)
    return canvas.to_svg(draw, key=key, label=f"Gain from each term: {said}.", height=height)


def _label(row: Row) -> str:
    name = shorten(row.name, 22)
    return f"{name}\n{shorten(row.stage, 22)}" if row.stage else name


def _line(ax: Axes, place: int, result: Ablation) -> None:
    """A filled marker is a term that is seen to help or hurt."""
    paint = PAINTS.get(result.verdict, PAINT["none"])
    ax.hlines(place, *result.gain.interval, colors=paint, linewidth=2)
    (marker,) = ax.plot(result.gain.value, place, "o", color=paint, markersize=7)
    if result.verdict not in PAINTS:
        marker.set_markerfacecolor(PAINT["paper"])


def _key(figure: Figure, found: Sequence[Row]) -> None:
    seen = {row.result.verdict: row.result.gain for row in found}
    handles: list[Line2D] = []
    for verdict in (verdict for verdict in WORDS if verdict in seen):
        paint = PAINTS.get(verdict, PAINT["none"])
        fill = paint if verdict in PAINTS else PAINT["paper"]
        style = {"color": paint, "marker": "o", "markersize": 6, "markerfacecolor": fill}
        label = in_words(WORDS[verdict], seen[verdict], why=False)
        handles.append(Line2D([], [], label=label, **style))
    figure.legend(handles=handles, loc="outside upper left", ncols=2, handlelength=1.8, borderpad=0)
