"""Quality against cost: one labelled point a model, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import ScaledTranslation

from stillhouse.report import canvas, labels
from stillhouse.report.canvas import PAINT
from stillhouse.report.format import shorten

MARKERS = {"teacher": "s", "student": "o", "baseline": "D", "export": "^"}
LOG_FROM = 4.0  # largest / smallest from which the cost is drawn on a log axis
REACH = 4.0  # half a marker, points
SAME = 0.02  # costs this close, relatively, would be drawn over each other
APART = 6.0  # and are moved this far apart, points


@dataclass(frozen=True)
class Point:
    """A model: what it costs (`x`, in the axis' unit) and how good it is."""

    label: str
    role: str
    x: float
    score: float
    interval: tuple[float, float] | None = None


def quality_against(
    points: Sequence[Point],
    *,
    key: str,
    metric: str,
    xlabel: str,
    roles: Mapping[str, str] | None = None,
) -> str:
    """Score by cost, intervals as bars; labels are moved until none covers another, and models of
    the same cost stand side by side. `roles` names the colours, where the labels don't."""
    shifts = _shifts([point.x for point in points])
    height = canvas.HEIGHT + 18 * max(0, len(points) - 6)

    def draw(figure: Figure) -> None:
        ax = canvas.axes(figure, title=metric, xlabel=xlabel)
        ax.grid(axis="x")
        _scale(ax, points)
        for point, shift in zip(points, shifts, strict=True):
            _draw_point(figure, ax, point, shift)
        for role, name in (roles or {}).items():
            ax.plot([], [], MARKERS[role], color=PAINT[role], markersize=2 * REACH - 1, label=name)
        canvas.legend(figure, ax)
        _label(figure, ax, points, shifts)

    said = "; ".join(f"{point.label} {point.score:.3f} at {point.x:.4g}" for point in points)
    return canvas.to_svg(draw, key=key, label=f"{metric} by {xlabel}. {said}.", height=height)


def _shifts(costs: Sequence[float]) -> list[float]:
    """How far to move each point right, in points, so that equal costs stand side by side."""
    groups: list[list[int]] = []
    for index in sorted(range(len(costs)), key=lambda index: (costs[index], index)):
        if groups and costs[index] - costs[groups[-1][0]] <= SAME * abs(costs[index]):
            groups[-1].append(index)
        else:
            groups.append([index])
    shifts = [0.0] * len(costs)
    for group in groups:
        for place, index in enumerate(sorted(group)):
            shifts[index] = APART * (place - (len(group) - 1) / 2)
    return shifts


def _draw_point(figure: Figure, ax: Axes, point: Point, shift: float) -> None:
    where = ax.transData + ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
    paint = PAINT[point.role]
    if point.interval is not None:
        ax.plot([point.x, point.x], point.interval, color=paint, linewidth=1.4, transform=where)
    marker = MARKERS[point.role]
    ax.plot(point.x, point.score, marker, color=paint, markersize=2 * REACH - 1, transform=where)


def _scale(ax: Axes, points: Sequence[Point]) -> None:
    costs = [point.x for point in points]
    if min(costs) > 0 and max(costs) / min(costs) >= LOG_FROM:
        ax.set_xscale("log")
        canvas.written_out(ax.xaxis)
        ax.set_xlim(min(costs) / 1.5, max(costs) * 1.7)
    else:
        margin = max(0.2 * (max(costs) - min(costs)), 0.1 * abs(max(costs)), 1e-9)
        ax.set_xlim(min(costs) - margin, max(costs) + 1.4 * margin)
    ends = [end for point in points for end in (*(point.interval or ()), point.score)]
    margin = max(0.12 * (max(ends) - min(ends)), 1e-3)
    ax.set_ylim(min(ends) - margin, max(ends) + margin)


def _label(figure: Figure, ax: Axes, points: Sequence[Point], shifts: Sequence[float]) -> None:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    texts = [figure.text(0, 0, shorten(point.label, 34), va="bottom") for point in points]
    shifted = list(zip(points, shifts, strict=True))
    spots = [_pixel(ax, point.x, point.score, shift) for point, shift in shifted]
    extent = ax.get_window_extent()
    boxes = labels.place(
        spots,
        [_size(text) for text in texts],
        obstacles=[_obstacle(ax, point, shift) for point, shift in shifted],
        bounds=labels.Box(extent.x0, extent.y0, extent.x1, extent.y1),
    )
    for text, spot, box in zip(texts, spots, boxes, strict=True):
        x, y = figure.transFigure.inverted().transform((box.left, box.bottom))
        text.set_position((float(x), float(y)))
        _leader(figure, labels.leader(spot, box))


def _size(text: Text) -> tuple[float, float]:
    extent = text.get_window_extent()
    return extent.width + 2, extent.height


def _pixel(ax: Axes, x: float, y: float, shift: float) -> tuple[float, float]:
    left, bottom = ax.transData.transform((x, y))
    return float(left) + shift, float(bottom)


def _obstacle(ax: Axes, point: Point, shift: float) -> labels.Box:
    """The marker and its interval bar."""
    low, high = point.interval or (point.score, point.score)
    x, middle = _pixel(ax, point.x, point.score, shift)
    _, bottom = _pixel(ax, point.x, low, shift)
    _, top = _pixel(ax, point.x, high, shift)
    ends = min(bottom - 2, middle - REACH), max(top + 2, middle + REACH)
    return labels.Box(x - REACH, ends[0], x + REACH, ends[1])


def _leader(figure: Figure, ends: labels.Segment | None) -> None:
    """A thin line from a label that had to go far back to its point."""
    if ends is None:
        return
    (x0, y0), (x1, y1) = figure.transFigure.inverted().transform(ends)
    # Under the axes, so that the marker stays on top.
    figure.add_artist(Line2D([x0, x1], [y0, y1], color=PAINT["soft"], linewidth=0.6, zorder=-1))
