"""The page of a search for tickets, or of a transfer: figures and tables for its template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullLocator

from stillhouse.core.ticket_results import Kind, Level, TicketsRecord
from stillhouse.report import canvas, view
from stillhouse.report import format as fmt
from stillhouse.report.canvas import PAINT, TERMS
from stillhouse.report.parts import Figure, drawn

NAMES: dict[Kind, str] = {
    "dense": "Dense",
    "ticket": "Ticket",
    "random": "Random mask",
    "reinitialised": "Ticket on fresh weights",
}
PAINTS = {"dense": "teacher", "ticket": "student", "random": "baseline", "reinitialised": "export"}
DASHES = {"ticket": "-", "random": (0, (5, 2)), "reinitialised": (0, (1.2, 1.6))}
DENSITY_LINES = 8


@dataclass(frozen=True)
class Row:
    """A level as the table has it."""

    name: str
    remaining: str
    kept: str
    score: str
    interval: str
    gain: str
    early: str


@dataclass(frozen=True)
class TicketsPage:
    record: TicketsRecord
    metric: str
    rows: Sequence[Row]
    figures: Sequence[Figure]
    details: Sequence[Figure]


def build(record: TicketsRecord) -> TicketsPage:
    return TicketsPage(
        record,
        view.metric_name(record.metric),
        [_row(each, record.metric) for each in record.levels],
        [_scores(record), *_early(record)],
        [*_densities(record), *_overlaps(record)],
    )


def _row(level: Level, metric: str) -> Row:
    gain = level.gain
    return Row(
        NAMES[level.kind],
        fmt.percent(level.remaining),
        fmt.count(level.kept),
        fmt.score(level.score, metric),
        fmt.interval(level.interval, metric),
        fmt.DASH if gain is None else view.gain_in_words(gain, level.verdict, metric),
        fmt.count(_mean(level.early_steps)) if level.early_steps else fmt.DASH,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _scores(record: TicketsRecord) -> Figure:
    metric = view.metric_name(record.metric)
    svg = _by_remaining(
        record,
        key="score",
        title=metric,
        value=lambda level: level.score,
        ends=lambda level: level.interval,
    )
    note = "Bars are 95 % intervals over rows and seeds. The line is the dense model."
    return drawn(f"{metric} against weights remaining", svg, note)


def _early(record: TicketsRecord) -> list[Figure]:
    if not all(level.early_steps for level in record.levels):
        return []
    svg = _by_remaining(
        record,
        key="early",
        title="Step",
        value=lambda level: _mean(level.early_steps),
        ends=lambda level: (float(min(level.early_steps)), float(max(level.early_steps))),
    )
    note = "The step of least held-out loss, mean over seeds; bars reach from least to most."
    return [drawn("When to stop early", svg, note)]


def _by_remaining(
    record: TicketsRecord,
    *,
    key: str,
    title: str,
    value: Callable[[Level], float],
    ends: Callable[[Level], tuple[float, float]],
) -> str:
    """A value by share of weights remaining, from all to few; the dense model as a line."""
    dense = next(level for level in record.levels if level.kind == "dense")
    there = {level.kind for level in record.levels} - {"dense"}
    kinds: list[Kind] = [kind for kind in NAMES if kind in there]

    def draw(figure: Canvas) -> None:
        ax = canvas.axes(figure, title=title, xlabel="Weights remaining, %")
        ax.axhspan(*ends(dense), color=PAINT["teacher"], alpha=0.12, linewidth=0)
        ax.axhline(value(dense), color=PAINT["teacher"], linewidth=1.2, label=NAMES["dense"])
        for place, kind in enumerate(kinds):
            levels = [level for level in record.levels if level.kind == kind]
            xs = [100 * level.remaining * (1 + 0.02 * (place - 1)) for level in levels]
            ys = [value(level) for level in levels]
            low = [max(y - ends(level)[0], 0) for y, level in zip(ys, levels, strict=True)]
            high = [max(ends(level)[1] - y, 0) for y, level in zip(ys, levels, strict=True)]
            bars = ax.errorbar(
                xs, ys, [low, high], color=PAINT[PAINTS[kind]], marker="o", markersize=3.5,
                linewidth=1.6, elinewidth=0.8, label=NAMES[kind],
            )  # fmt: skip
            bars.lines[0].set_linestyle(DASHES[kind])  # pyright: ignore
        _shares(ax, [100 * level.remaining for level in record.levels])
        canvas.legend(figure, ax)

    said = "; ".join(
        f"{NAMES[level.kind].lower()} at {fmt.percent(level.remaining)}: {fmt.score(value(level))}"
        for level in record.levels
    )
    return canvas.to_svg(draw, key=key, label=f"{title} by weights remaining: {said}.")


def _shares(ax: canvas.Axes, shares: Sequence[float]) -> None:
    """A log axis from all weights on the left to few on the right, ticks where levels are."""
    ax.set_xscale("log")
    ticks: list[float] = []
    for share in sorted(set(shares), reverse=True):
        if not ticks or ticks[-1] / share > 1.25:
            ticks.append(share)
    ax.set_xlim(max(shares) * 1.08, min(shares) / 1.12)
    ax.set_xticks(ticks)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.3g}"))


def _densities(record: TicketsRecord) -> list[Figure]:
    """Which layers lose most, by round; layers of one kind as one line, their mean."""
    kinds: dict[str, list[list[float]]] = {}
    for name, shares in record.densities.items():
        kinds.setdefault(_kind_of(name), []).append(shares)
    named = dict(list(kinds.items())[:DENSITY_LINES])
    remaining = [100 * level.remaining for level in record.levels if level.kind == "ticket"]

    def draw(figure: Canvas) -> None:
        ax = canvas.axes(figure, title="%", xlabel="Weights remaining, %")
        for place, (name, lines) in enumerate(named.items()):
            means = [100 * _mean(column) for column in zip(*lines, strict=True)]
            again, paint = divmod(place, len(TERMS))
            (line,) = ax.plot(remaining, means, color=PAINT[TERMS[paint]], marker="o",
                              markersize=3, label=fmt.shorten(name, 30))  # fmt: skip
            line.set_linestyle((0, (5, 2)) if again else "-")
        _shares(ax, remaining)
        canvas.legend(figure, ax)

    said = "; ".join(
        f"{name} {fmt.percent(_mean([line[-1] for line in lines]))}"
        for name, lines in named.items()
    )
    svg = canvas.to_svg(draw, key="density", label=f"Share of each kind of layer left: {said}.")
    note = "Of the first seed's ticket; the mean of layers of one kind."
    return [drawn("What is left of each kind of layer", svg, note)]


def _kind_of(name: str) -> str:
    """What a layer is called inside its block; a weight outside of any, by its last two names."""
    parts = name.removesuffix(".weight").split(".")
    inside = max((place + 1 for place, part in enumerate(parts) if part.isdigit()), default=-2)
    return ".".join(parts[inside:])


def _overlaps(record: TicketsRecord) -> list[Figure]:
    if not record.overlaps:
        return []
    shares = {lv.round: 100 * lv.remaining for lv in record.levels if lv.kind == "ticket"}
    xs = [shares[each.round] for each in record.overlaps]

    def draw(figure: Canvas) -> None:
        ax = canvas.axes(figure, title="%", xlabel="Weights remaining, %")
        found = [100 * each.found for each in record.overlaps]
        expected = [100 * each.expected for each in record.overlaps]
        ax.plot(xs, found, color=PAINT["student"], marker="o", markersize=3.5, label="Tickets")
        (line,) = ax.plot(xs, expected, color=PAINT["baseline"], label="By chance")
        line.set_linestyle((0, (5, 2)))
        _shares(ax, xs)
        ax.set_ylim(bottom=0)
        canvas.legend(figure, ax)

    last = record.overlaps[-1]
    label = (
        f"Overlap of the seeds' tickets: {fmt.percent(last.found)} at the last round, "
        f"{fmt.percent(last.expected)} by chance."
    )
    svg = canvas.to_svg(draw, key="overlap", label=label)
    note = "Weights that two seeds' tickets both keep, of those that either keeps."
    return [drawn("How alike the seeds' tickets are", svg, note)]
