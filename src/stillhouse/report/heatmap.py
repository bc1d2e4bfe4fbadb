"""How alike the layers of student and teacher are, as a shaded table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredOffsetbox, DrawingArea, HPacker, TextArea
from matplotlib.patches import Rectangle

from stillhouse.core.results import Record, Similarity
from stillhouse.report import canvas, parts, view
from stillhouse.report import format as fmt
from stillhouse.report.canvas import PAINT, WIDTH

# One hue from pale to strong: told apart by lightness alone, and the ink stays readable on it.
PALE, STRONG = 0.03, 0.54
CELL = 24.0  # points a column needs for its number
ROW = 21.0
STEPS = 6  # shades in the scale beside the title
SWATCH = 13.0

Matrix = Sequence[Sequence[float]]


def figures(record: Record, *, key: str) -> list[parts.Figure]:
    """The student's layers and the baseline's against the teacher's, in the same shades."""
    found = record.similarity
    if found is None:
        return []
    names = view.role_names(record)
    models = {"student": found.student, "baseline": found.baseline or []}
    scale = _scale(found)
    return [
        parts.drawn(
            f"{names[role]} and teacher",
            _heatmap(matrix, names[role], scale, key=f"{key}-layers-{role}"),
            wide=_width(matrix) > WIDTH,
        )
        for role, matrix in models.items()
        if matrix and matrix[0]
    ]


def _scale(found: Similarity) -> tuple[float, float]:
    """The range of all values, widened to tenths: what the palest and the strongest shade mean."""
    values = [v for m in (found.student, found.baseline or []) for row in m for v in row]
    low = math.floor(10 * min(values) + 1e-9) / 10
    return low, max(math.ceil(10 * max(values) - 1e-9) / 10, low + 0.1)


def _width(matrix: Matrix) -> float:
    return max(WIDTH, 44 + CELL * len(matrix[0]))


def _heatmap(matrix: Matrix, name: str, scale: tuple[float, float], *, key: str) -> str:
    rows, columns = len(matrix), len(matrix[0])
    likest = [max(range(columns), key=row.__getitem__) for row in matrix]

    def draw(figure: Figure) -> None:
        ax = canvas.axes(figure, title=f"{name}'s layer", xlabel="Teacher's layer")
        ax.grid(visible=False)
        ax.spines["bottom"].set_visible(False)
        for place, row in enumerate(matrix):
            for column, value in enumerate(row):
                _cell(ax, (column, place), value, scale, best=column == likest[place])
        ax.set_xlim(-0.5, columns - 0.5)
        ax.set_ylim(-0.5, rows - 0.5)
        ax.set_xticks(range(columns), _layers(columns))
        ax.set_yticks(range(rows), _layers(rows))
        _shades(ax, scale)

    said = "; ".join(
        f"{own} with {other}, {_value(row[place])}"
        for own, row, place in zip(_layers(rows), matrix, likest, strict=True)
        for other in [_layers(columns)[place]]
    )
    label = f"Similarity of {name.lower()} and teacher. Most alike: {said}."
    height = 62 + ROW * rows
    return canvas.to_svg(draw, key=key, label=label, width=_width(matrix), height=height)


def _layers(count: int) -> list[str]:
    return ["emb", *map(str, range(1, count))]


def _cell(
    ax: Axes, at: tuple[int, int], value: float, scale: tuple[float, float], *, best: bool
) -> None:
    corner = (at[0] - 0.48, at[1] - 0.46)
    alpha = _alpha(value, scale)
    ax.add_patch(Rectangle(corner, 0.96, 0.92, color=PAINT["student"], alpha=alpha, linewidth=0))
    if best:
        ax.add_patch(Rectangle(corner, 0.96, 0.92, fill=False, edgecolor=PAINT["ink"], lw=1.1))
    ax.text(*at, _value(value), ha="center", va="center_baseline", size=8.5)


def _alpha(value: float, scale: tuple[float, float]) -> float:
    low, high = scale
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    return PALE + (STRONG - PALE) * share


def _value(value: float) -> str:
    """Two decimals, without the zero that every cell would have: .87."""
    return f"{value:.2f}".replace("-", fmt.MINUS).replace("0.", ".", 1)


def _shades(ax: Axes, scale: tuple[float, float]) -> None:
    """The scale, right of the title: its two ends and the shades between."""
    low, high = scale
    shades = DrawingArea(SWATCH * STEPS, 9)
    for step in range(STEPS):
        alpha = _alpha(low + (high - low) * step / (STEPS - 1), scale)
        at = (SWATCH * step, 0.0)
        shades.add_artist(
            Rectangle(at, SWATCH - 1, 9, color=PAINT["student"], alpha=alpha, linewidth=0)
        )
    style = {"color": PAINT["soft"], "size": 9}
    ends = [TextArea(f"{end:.1f}", textprops=style) for end in scale]
    box = AnchoredOffsetbox(
        "lower right",
        child=HPacker(children=[ends[0], shades, ends[1]], align="center", pad=0, sep=4),
        pad=0,
        borderpad=0.4,
        frameon=False,
        bbox_to_anchor=(1, 1),
        bbox_transform=ax.transAxes,
    )
    ax.add_artist(box)
