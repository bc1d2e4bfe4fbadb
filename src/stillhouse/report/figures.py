"""The report's figures: data in, an SVG string out. One function a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from stillhouse.core.results import Bin, Gain
from stillhouse.report import canvas
from stillhouse.report.canvas import DASHES, PAINT, WIDTH
from stillhouse.report.format import interval, shorten, signed
from stillhouse.report.scatter import Point, quality_against

__all__ = [
    "Point",
    "confusion",
    "gain",
    "quality_against",
    "reliability",
]

SHADE = 0.55  # of the darkest cell: the ink on it keeps its contrast in both themes


def gain(result: Gain, *, key: str, metric: str = "") -> str:
    """The gain and its interval, in `metric`, on a line with zero."""

    def draw(figure: Figure) -> None:
        ax = canvas.axes(figure)
        ax.grid(visible=False)
        ax.axvline(0, color=PAINT["soft"], linewidth=1, linestyle=(0, (2, 2)))
        ax.hlines(0, *result.interval, colors=PAINT["student"], linewidth=5, alpha=0.35)
        ax.plot(result.value, 0, "o", color=PAINT["student"], markersize=9)
        ends = (*result.interval, result.value, 0.0)
        margin = max(0.15 * (max(ends) - min(ends)), 1e-3)
        ax.set_xlim(min(ends) - margin, max(ends) + margin)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_formatter(lambda value, _: "0" if value == 0 else signed(value, metric))
        ax.set_yticks([])

    value, bounds = signed(result.value, metric), interval(result.interval, metric)
    label = f"Gain {value}, interval {bounds}, against zero."
    return canvas.to_svg(draw, key=key, label=label, height=62)


def reliability(models: Mapping[str, Sequence[Bin]], legend: Mapping[str, str], *, key: str) -> str:
    """Accuracy by confidence, one line a model (`models` and `legend` by role); the diagonal is
    perfect calibration, a marker's area the bin's share of the rows."""

    def draw(figure: Figure) -> None:
        ax = canvas.axes(figure, title="Accuracy in the bin", xlabel="Confidence of the answer")
        ax.plot([0, 1], [0, 1], color=PAINT["soft"], linewidth=0.9, linestyle=(0, (2, 2)))
        for role, bins in models.items():
            _calibration(ax, role, [b for b in bins if b.count], legend[role])
        ax.set_xlim(-0.03, 1.03)
        ax.set_ylim(-0.03, 1.03)
        canvas.legend(figure, ax)

    label = "Reliability diagram. " + "; ".join(legend[role] for role in models) + "."
    return canvas.to_svg(draw, key=key, label=label, height=300)


def _calibration(ax: Axes, role: str, bins: Sequence[Bin], name: str) -> None:
    x = [b.confidence for b in bins]
    y = [b.accuracy for b in bins]
    total = sum(b.count for b in bins)
    sizes = [max(8.0, 220 * b.count / total) for b in bins]
    ax.plot(x, y, color=PAINT[role], linestyle=DASHES[role], label=name)
    ax.scatter(x, y, s=sizes, color=PAINT[role], alpha=0.6, linewidths=0)


def confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], *, key: str) -> str:
    """Rows of the gold label, columns of the answer; a cell is shaded by its share of its row."""
    size = len(matrix)
    width = max(WIDTH, 90 + 25 * size)
    names = [shorten(name, 16) for name in labels]

    def draw(figure: Figure) -> None:
        ax = canvas.axes(figure, title="Gold label", xlabel="Answer")
        ax.grid(visible=False)
        for gold, row in enumerate(matrix):
            for answer, rows in enumerate(row):
                _cell(ax, (answer, gold), rows, sum(row), small=size > 12)
        ax.set_xlim(-0.5, size - 0.5)
        ax.set_ylim(size - 0.5, -0.5)
        ax.spines["bottom"].set_visible(False)
        ax.set_yticks(range(size), names)
        turned = max(map(len, names)) * 6.2 > 0.85 * width / size
        ax.set_xticks(range(size), names, rotation=90 if turned else 0)

    right = sum(matrix[index][index] for index in range(size))
    total = sum(map(sum, matrix))
    label = f"Confusion matrix, {size} labels: {right} of {total} rows on the diagonal."
    return canvas.to_svg(draw, key=key, label=label, width=width, height=0.8 * width)


def _cell(ax: Axes, at: tuple[int, int], rows: int, total: int, *, small: bool) -> None:
    share = rows / total if total else 0.0
    corner = (at[0] - 0.48, at[1] - 0.48)
    paint, shade = (PAINT["student"], 0.05 + SHADE * share) if rows else (PAINT["rule"], 0.3)
    ax.add_patch(Rectangle(corner, 0.96, 0.96, color=paint, alpha=shade, linewidth=0))
    if rows:
        ax.text(*at, f"{rows}", ha="center", va="center", size=8 if small else 10)
