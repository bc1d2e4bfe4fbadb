"""A matplotlib drawing as inline SVG that takes its colours and font from the page.

Figures are drawn in placeholder colours, one a role; `to_svg` turns each into a CSS variable, so
one drawing serves the light page, the dark page and the printed one. Text stays text.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

ROLES = ("ink", "soft", "rule", "paper", "teacher", "student", "baseline", "export")
TERMS = tuple(f"term-{number}" for number in range(1, 7))
VERDICTS = ("helped", "none", "hurt")
PAINT = {name: f"#fe{number:02x}ef" for number, name in enumerate((*ROLES, *TERMS, *VERDICTS))}
VARIABLE = {paint: f"var(--{name})" for name, paint in PAINT.items()}
# Told apart by dash as well as by colour.
DASHES = {"student": "-", "baseline": (0, (5, 2)), "teacher": (0, (1.2, 1.6))}

# Points, which are also the units of the SVG's viewBox: wide enough for a curve, and narrow enough
# that text drawn at 10 is still read at about 10 pixels on a telephone.
WIDTH = 360.0
HEIGHT = 232.0

STYLE: dict[str, object] = {
    "axes.axisbelow": True,
    "axes.edgecolor": PAINT["rule"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": PAINT["soft"],
    "axes.labelsize": 10,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": PAINT["soft"],
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titlesize": 10,
    "figure.dpi": 72,
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "grid.color": PAINT["rule"],
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.labelcolor": PAINT["ink"],
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "text.color": PAINT["ink"],
    "text.parse_math": False,
    "xtick.color": PAINT["soft"],
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.color": PAINT["soft"],
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}


def to_svg(
    draw: Callable[[Figure], None],
    *,
    key: str,
    label: str,
    width: float = WIDTH,
    height: float = HEIGHT,
) -> str:
    """What `draw` draws, as one `<svg>` element. The same drawing and `key` give the same text.

    `key` keeps ids apart on a page with several figures; `label` is what a screen reader says.
    """
    style = {**STYLE, "svg.hashsalt": key}
    with matplotlib.style.context(["default", style]), warnings.catch_warnings():
        # The page's font is not the one measured here; the browser has the glyph, or a fallback.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        layout = ConstrainedLayoutEngine(w_pad=1 / 72, h_pad=3 / 72)
        figure = Figure(figsize=(width / 72, height / 72), layout=layout)
        canvas = FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        draw(figure)
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None})
    return _inline(buffer.getvalue(), key, label, width, height)


def axes(figure: Figure, *, title: str = "", xlabel: str = "") -> Axes:
    """The figure's one axes; `title` names its y axis, flat above it, where it is read first."""
    made = figure.add_subplot()
    made.set_title(title)
    made.set_xlabel(xlabel)
    return made


def written_out(axis: Axis) -> None:
    """A log axis' ticks: 1, 2 and 5 of each decade, as plain numbers."""
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def legend(figure: Figure, ax: Axes) -> None:
    """A legend above the axes, in as many columns as its longest entry leaves room for."""
    handles, labels = ax.get_legend_handles_labels()
    if not labels:
        return
    columns = max(1, min(len(labels), int(WIDTH // (5.6 * max(map(len, labels)) + 36))))
    figure.legend(
        handles, labels, loc="outside upper left", ncols=columns, handlelength=1.8, borderpad=0
    )


def _inline(text: str, key: str, label: str, width: float, height: float) -> str:
    body = text[text.index("<svg") :]
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    body = body[body.index(">") + 1 :]
    # Only tags are rewritten: matplotlib escapes < and > in text, so text never looks like one.
    body = re.sub(r"<[^>]+>", lambda tag: _tag(tag.group(), key), body)
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(label)}">'
    return head + re.sub(r"\s*\n\s*", "\n", body).strip()


def _tag(tag: str, key: str) -> str:
    for paint, variable in VARIABLE.items():
        tag = tag.replace(paint, variable)
    tag = re.sub(r'\bid="', f'id="{key}-', tag)
    tag = re.sub(r"url\(#", f"url(#{key}-", tag)
    tag = re.sub(r'xlink:href="#', f'href="#{key}-', tag)
    tag = re.sub(r"font-family: [^;\"]*;?", "", tag)
    return re.sub(r"font: ([^;\"]*?)([\d.]+px)[^;\"]*", r"font-size: \2", tag)
