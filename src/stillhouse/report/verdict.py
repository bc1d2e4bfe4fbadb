"""The page of a verification: marks beside controls, for the suspect and for independent models."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure as Canvas

from stillhouse.core.verdict_results import ClientTrial, Suspect, VerdictRecord
from stillhouse.report import canvas
from stillhouse.report import format as fmt
from stillhouse.report.canvas import PAINT
from stillhouse.report.parts import Figure, drawn

SHOWN = 24  # trials of a figure


@dataclass(frozen=True)
class Row:
    suspect: str
    client: str
    form: str
    marks: str
    controls: str
    effect: str
    p_value: str
    adjusted: str
    rekeyed: str
    conditional: str
    power: list[str]


@dataclass(frozen=True)
class VerdictPage:
    """conditional: whether that test says anything. shares: learned ones, that powers are of."""

    record: VerdictRecord
    figures: Sequence[Figure]
    rows: Sequence[Row]
    committed: str
    conditional: bool
    shares: list[str]


def build(record: VerdictRecord) -> VerdictPage:
    trials = [each for suspect in record.suspects for each in suspect.trials]
    return VerdictPage(
        record, [_figure(record)],
        [_row(suspect, each) for suspect in record.suspects for each in suspect.trials],
        datetime.datetime.fromtimestamp(record.committed, datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        any(each.conditional < 1 for each in trials),
        [f"{100 * float(of):g}{fmt.THIN}%" for of in trials[0].power] if trials else [],
    )  # fmt: skip


def _row(suspect: Suspect, each: ClientTrial) -> Row:
    low, high = each.interval
    return Row(
        suspect.name + (", independent" if suspect.control else ""), each.client, each.form,
        f"{each.hits:,} of {each.marks:,}", f"{each.chance_hits:,} of {each.controls:,}",
        f"{fmt.signed(each.effect)} ({fmt.score(low)} to {fmt.score(high)})",
        fmt.tiny(each.p_value), fmt.tiny(each.adjusted), fmt.tiny(each.rekeyed),
        fmt.tiny(each.conditional),
        [f"{found:.2f}" for found in each.power.values()],
    )  # fmt: skip


def _figure(record: VerdictRecord) -> Figure:
    """Shares of marked and control questions with their keyed wrong answer, a pair a trial."""
    trials = [(s, t) for s in record.suspects for t in s.trials][:SHOWN]
    names = [fmt.shorten(f"{s.name}, {t.client}, {t.form}", 40) for s, t in trials]

    def draw(figure: Canvas) -> None:
        ax = canvas.axes(figure, xlabel="Answered with the keyed wrong answer, %")
        ax.grid(visible=False)
        for place, (_, each) in enumerate(trials):
            controls = 100 * each.chance_hits / max(1, each.controls)
            marks = 100 * each.hits / max(1, each.marks)
            ax.hlines(-place, controls, marks, colors=PAINT["rule"], linewidth=2)
            named = place == 0
            ax.plot(controls, -place, "o", color=PAINT["baseline"], markersize=6,
                    label="controls" if named else None)  # fmt: skip
            ax.plot(marks, -place, "D", color=PAINT["student"], markersize=6,
                    label="marks" if named else None)  # fmt: skip
        ax.set_yticks([-place for place in range(len(trials))], names)
        ax.set_xlim(-3, 103)
        canvas.legend(figure, ax)

    said = "; ".join(
        f"{name}: marks {each.hits} of {each.marks}, controls {each.chance_hits} of {each.controls}"
        for name, (_, each) in zip(names, trials, strict=True)
    )
    svg = canvas.to_svg(
        draw, key="marks", label=f"Marks beside controls: {said}.", width=2 * canvas.WIDTH,
        height=90 + 22 * len(trials),
    )  # fmt: skip
    note = "A copy gives marked answers that it learned; whoever never saw them gives both alike."
    return drawn("Marked and control questions", svg, note, wide=True)
