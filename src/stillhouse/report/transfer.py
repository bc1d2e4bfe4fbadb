"""The page of a transfer of tickets: the matrix as heat map and table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from stillhouse.core.ticket_results import Cell, TransferRecord
from stillhouse.report import canvas, view
from stillhouse.report import format as fmt
from stillhouse.report.canvas import PAINT, WIDTH
from stillhouse.report.parts import Figure, drawn

ROW, NAME = 26.0, 16
STRONGEST = 0.55


@dataclass(frozen=True)
class TransferPage:
    """`rows`: a source's name and its cells by target, as text: score, gain and its interval."""

    record: TransferRecord
    figures: Sequence[Figure]
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]


def build(record: TransferRecord) -> TransferPage:
    cells = {(cell.source, cell.target): cell for cell in record.cells}
    rows = [
        (source, [_told(cells[source, target]) for target in record.names])
        for source in record.names
    ]
    gains = [[_gain(cells[s, t]) for t in record.names] for s in record.names]
    note = "Points of the target's metric against its own ticket. Stronger shades lose more."
    alike = [[100 * value for value in row] for row in record.overlaps]
    return TransferPage(
        record,
        [
            drawn("Transfer(S, T) minus transfer(T, T)",
                  _heat(record, gains, key="gain", signed=True), note),
            drawn("Overlap of the tickets, %", _heat(record, alike, key="overlap", signed=False),
                  "Weights that both keep, of those that either keeps."),
        ],
        rows,
    )  # fmt: skip


def _gain(cell: Cell) -> float:
    return 0.0 if cell.gain is None else 100 * cell.gain.value


def _told(cell: Cell) -> tuple[str, str]:
    if cell.gain is None:
        return fmt.score(cell.score), "its own"
    return fmt.score(cell.score), view.gain_in_words(cell.gain, cell.verdict)


def _heat(
    record: TransferRecord, values: Sequence[Sequence[float]], *, key: str, signed: bool
) -> str:
    count = len(record.names)
    sizes = [abs(value) if not signed else max(-value, 0.0) for row in values for value in row]
    most = max([*sizes, 1e-9])

    def draw(figure: Canvas) -> None:
        ax = canvas.axes(figure, title="Ticket of", xlabel="On the task of")
        ax.grid(visible=False)
        ax.spines["bottom"].set_visible(False)
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                size = max(-value, 0.0) if signed else abs(value)
                corner = (column - 0.48, row - 0.46)
                ax.add_patch(Rectangle(corner, 0.96, 0.92, color=PAINT["baseline"],
                                       alpha=STRONGEST * size / most, linewidth=0))  # fmt: skip
                text = f"{value:+.1f}" if signed else f"{value:.0f}"
                ax.text(column, row, text.replace("-", fmt.MINUS), ha="center",
                        va="center_baseline", size=9)  # fmt: skip
        ax.set_xlim(-0.5, count - 0.5)
        ax.set_ylim(count - 0.5, -0.5)
        names = [fmt.shorten(name, NAME) for name in record.names]
        ax.set_xticks(range(count), names)
        ax.set_yticks(range(count), names)

    said = "; ".join(
        f"{source} on {target} {values[i][j]:.1f}"
        for i, source in enumerate(record.names)
        for j, target in enumerate(record.names)
        if i != j
    )
    width = max(WIDTH, 110 + 62 * count)
    return canvas.to_svg(draw, key=key, label=f"{said}.", width=width, height=70 + ROW * count)
