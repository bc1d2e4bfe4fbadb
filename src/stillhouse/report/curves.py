"""What changed while training: scores, losses, terms by step, over one stage or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stillhouse.report import canvas
from stillhouse.report.canvas import DASHES, PAINT, TERMS, WIDTH
from stillhouse.report.format import score, shorten
from stillhouse.report.metrics import Series, thin

TERM_DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)), (0, (9, 2)), (0, (3, 1)))
LOG_FROM = 20.0
MARKED_UP_TO = 16  # points a line has while each is still marked
LETTER = 5.6 / (WIDTH - 40)  # of a stage's name, as a share of the axes' width


@dataclass(frozen=True)
class Mark:
    """The step at which a stage begins."""

    step: int
    name: str


def held_out_score(
    series: Sequence[Series], names: Mapping[str, str], *, key: str, marks: Sequence[Mark] = ()
) -> str:
    """Held-out score by step: one thin line a seed, their mean thick. With `marks`, a run has a
    series for each stage."""
    return _roles(series, names, key=key, said="Held-out score", marks=marks, log=False)


def training_loss(
    series: Sequence[Series], names: Mapping[str, str], *, key: str, marks: Sequence[Mark] = ()
) -> str:
    """Training loss by step, on a log axis where it spans decades."""
    return _roles(series, names, key=key, said="Training loss", marks=marks, log=True)


def term_values(
    series: Sequence[Series], names: Mapping[str, str], *, key: str, marks: Sequence[Mark] = ()
) -> str:
    """Each term of the student's objective by step, before its weight. A term's place in `names`
    is its colour."""
    return _terms(series, names, key=key, said="Value of the term", marks=marks)


def term_gradients(
    series: Sequence[Series], names: Mapping[str, str], *, key: str, marks: Sequence[Mark] = ()
) -> str:
    """The norm of each term's gradient by step."""
    return _terms(series, names, key=key, said="Gradient norm of the term", marks=marks)


def _roles(
    series: Sequence[Series],
    names: Mapping[str, str],
    *,
    key: str,
    said: str,
    marks: Sequence[Mark],
    log: bool,
) -> str:
    def draw(figure: Figure) -> None:
        ax = canvas.axes(figure, xlabel="Step")
        dots = _few(series, marks)
        for each, name in _named(series, names):
            _curve(ax, each, name, PAINT[each.name], DASHES[each.name], dots=dots)
        _finish(figure, ax, series, marks, log=log)

    return canvas.to_svg(draw, key=key, label=_said(said, series, names, marks))


def _terms(
    series: Sequence[Series],
    names: Mapping[str, str],
    *,
    key: str,
    said: str,
    marks: Sequence[Mark],
) -> str:
    places = {term: place for place, term in enumerate(names)}

    def draw(figure: Figure) -> None:
        ax = canvas.axes(figure, xlabel="Step")
        dots = _few(series, marks)
        for each, name in _named(series, names):
            again, index = divmod(places[each.name], len(TERMS))
            # Another dash the second time a colour is used.
            dash = TERM_DASHES[(index + again) % len(TERM_DASHES)]
            _curve(ax, each, shorten(name, 30), PAINT[TERMS[index]], dash, dots=dots)
        _finish(figure, ax, series, marks, log=True)

    return canvas.to_svg(draw, key=key, label=_said(said, series, names, marks))


def _named(series: Sequence[Series], names: Mapping[str, str]) -> list[tuple[Series, str]]:
    """Each with its name in the legend: none from a run's or a term's second stage on."""
    seen: set[str] = set()
    found: list[tuple[Series, str]] = []
    for each in series:
        found.append((each, "" if each.name in seen else names[each.name]))
        seen.add(each.name)
    return found


def _said(
    said: str, series: Sequence[Series], names: Mapping[str, str], marks: Sequence[Mark]
) -> str:
    last = {each.name: f"{names[each.name]} {_last(each)}" for each in series}
    begins = [f"{mark.name} from step {mark.step}" for mark in _reached(series, marks)]
    stages = f" Stages: {'; '.join(begins)}." if begins else ""
    return f"{said} by step. Last: {'; '.join(last.values())}.{stages}"


def _last(series: Series) -> str:
    line = series.mean if series.mean.values else series.seeds[0]
    return score(line.values[-1])


def _few(series: Sequence[Series], marks: Sequence[Mark]) -> bool:
    """Whether points may be marked: of several stages, all or none."""
    return not marks or all(len(each.mean.steps) <= MARKED_UP_TO for each in series)


def _curve(ax: Axes, series: Series, name: str, paint: str, dash: object, *, dots: bool) -> None:
    mean = thin(series.mean)
    marker = "o" if dots and len(mean.steps) <= MARKED_UP_TO else ""
    if len(series.seeds) > 1:
        for seed in map(thin, series.seeds):
            ax.plot(seed.steps, seed.values, color=paint, linewidth=0.7, alpha=0.45)
    (line,) = ax.plot(
        mean.steps, mean.values, color=paint, marker=marker, markersize=3.5, label=name or None
    )
    line.set_linestyle(dash)  # pyright: ignore[reportArgumentType]


def _finish(
    figure: Figure, ax: Axes, series: Sequence[Series], marks: Sequence[Mark], *, log: bool
) -> None:
    values = [value for each in series for line in each.seeds for value in line.values]
    if log and min(values) > 0 and max(values) / min(values) > LOG_FROM:
        ax.set_yscale("log")
        canvas.written_out(ax.yaxis)
    ax.set_xlim(left=marks[0].step if marks else 0)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    ax.margins(y=0.08)
    _begin(ax, _reached(series, marks))
    canvas.legend(figure, ax)


def _reached(series: Sequence[Series], marks: Sequence[Mark]) -> list[Mark]:
    """The stages that begin before the last step there is a value of."""
    last = max(step for each in series for line in each.seeds for step in line.steps)
    return [mark for mark in marks if mark.step < last]


def _begin(ax: Axes, marks: Sequence[Mark]) -> None:
    """A thin line where each stage begins, its name above the axes; a name that would cover an
    earlier one goes a row up, one that would leave the axes stands left of its line."""
    left, right = ax.get_xlim()
    rows: list[float] = []  # how far each row is taken
    for index, mark in enumerate(marks):
        name = shorten(mark.name, 28)
        start, width = (mark.step - left) / (right - left), LETTER * len(name)
        before = start + width > 1.0 and start > width
        begin, end = (start - width, start) if before else (start, start + width)
        row = next((row for row, taken in enumerate(rows) if taken <= begin), len(rows))
        rows[row:] = [end + 0.03, *rows[row + 1 :]]
        height = 1.02 + 0.085 * row
        if index:
            top = height + 0.06
            ax.axvline(mark.step, 0, top, color=PAINT["soft"], linewidth=0.7, clip_on=False)
        ax.annotate(
            name,
            (mark.step, height),
            xycoords=ax.get_xaxis_transform(),
            xytext=((-3 if before else 3) if index else 0, 0),
            textcoords="offset points",
            ha="right" if before else "left",
            color=PAINT["soft"],
            size=9,
            # Over the line of a later stage whose name went a row up.
            bbox={"facecolor": PAINT["paper"], "edgecolor": "none", "pad": 0.5},
            zorder=3,
        )
