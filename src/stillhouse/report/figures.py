"""The report's figures: data in, an SVG string out. One function a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from stillhouse.core.results import Bin, Gain
from stillhouse.report import canvas
from stillhouse.report.canvas import PAINT, TERMS, WIDTH
from stillhouse.report.format import interval, score, shorten, signed
from stillhouse.report.metrics import Series, thin
from stillhouse.report.scatter import Point, quality_against

__all__ = [
    "Point",
    "confusion",
    "gain",
    "held_out_score",
    "quality_against",
    "reliability",
    "term_gradients",
    "term_values",
    "training_loss",
]

# Told apart by dash as well as by colour.
DASHES = {"student": "-", "baseline": (0, (5, 2)), "teacher": (0, (1.2, 1.6))}
TERM_DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)), (0, (9, 2)), (0, (3, 1)))
LOG_FROM = 20.0
SHADE = 0.55  # of the darkest cell: the ink on it keeps its contrast in both themes
MARKED_UP_TO = 16  # points a line has while each is still marked


def gain(result: Gain, *, key: str) -> str:
    """The gain and its interval on a line with zero."""

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
        ax.xaxis.set_major_formatter(lambda value, _: "0" if value == 0 else signed(value))
        ax.set_yticks([])

    label = f"Gain {signed(result.value)}, interval {interval(result.interval)}, against zero."
    return canvas.to_svg(draw, key=key, label=label, height=62)


def held_out_score(series: Sequence[Series], names: Mapping[str, str], *, key: str) -> str:
    """Held-out score by step: one thin line a seed, their mean thick."""
    return _roles(series, names, key=key, said="Held-out score", log=False)


def training_loss(series: Sequence[Series], names: Mapping[str, str], *, key: str) -> str:
    """Training loss by step, on a log axis where it spans decades."""
    return _roles(series, names, key=key, said="Training loss", log=True)


def term_values(series: Sequence[Series], *, key: str) -> str:
    """Each term of the student's objective by step, before its weight."""
    return _terms(series, key=key, said="Value of the term")


def term_gradients(series: Sequence[Series], *, key: str) -> str:
    """The norm of each term's gradient by step."""
    return _terms(series, key=key, said="Gradient norm of the term")


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


def _roles(
    series: Sequence[Series], names: Mapping[str, str], *, key: str, said: str, log: bool
) -> str:
    def draw(figure: Figure) -> None:
        ax = canvas.axes(figure, xlabel="Step")
        for each in series:
            _curve(ax, each, names[each.name], PAINT[each.name], DASHES[each.name])
        _finish(figure, ax, series, log=log)

    last = [f"{names[each.name]} {_last(each)}" for each in series]
    return canvas.to_svg(draw, key=key, label=f"{said} by step. Last: {'; '.join(last)}.")


def _terms(series: Sequence[Series], *, key: str, said: str) -> str:
    def draw(figure: Figure) -> None:
        ax = canvas.axes(figure, xlabel="Step")
        for index, each in enumerate(series):
            paint = PAINT[TERMS[index % len(TERMS)]]
            _curve(ax, each, shorten(each.name, 30), paint, TERM_DASHES[index % len(TERM_DASHES)])
        _finish(figure, ax, series, log=True)

    last = [f"{each.name} {_last(each)}" for each in series]
    return canvas.to_svg(draw, key=key, label=f"{said} by step. Last: {'; '.join(last)}.")


def _last(series: Series) -> str:
    line = series.mean if series.mean.values else series.seeds[0]
    return score(line.values[-1])


def _curve(ax: Axes, series: Series, name: str, paint: str, dash: object) -> None:
    mean = thin(series.mean)
    marker = "o" if len(mean.steps) <= MARKED_UP_TO else ""
    if len(series.seeds) > 1:
        for seed in map(thin, series.seeds):
            ax.plot(seed.steps, seed.values, color=paint, linewidth=0.7, alpha=0.45)
    (line,) = ax.plot(
        mean.steps, mean.values, color=paint, marker=marker, markersize=3.5, label=name
    )
    line.set_linestyle(dash)  # pyright: ignore[reportArgumentType]


def _finish(figure: Figure, ax: Axes, series: Sequence[Series], *, log: bool) -> None:
    values = [value for each in series for line in each.seeds for value in line.values]
    if log and min(values) > 0 and max(values) / min(values) > LOG_FROM:
        ax.set_yscale("log")
        canvas.written_out(ax.yaxis)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    ax.margins(y=0.08)
    canvas.legend(figure, ax)
