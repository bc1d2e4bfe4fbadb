"""The page of a verification: what it rests on, then marks beside controls, for the suspect and for
independent models. It is a function of the record and the config alone, to the last byte, so that
whoever checks a verdict can make it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stillhouse.core.results import Interval
from stillhouse.core.times import minute
from stillhouse.core.verdict_results import ClientTrial, Example, Fact, Suspect, VerdictRecord
from stillhouse.report import format as fmt

TEXT = 300  # characters of a text that are shown


@dataclass(frozen=True)
class Row:
    """One trial. marks_at, controls_at: percent of the way, for the drawing."""

    suspect: str
    client: str
    form: str
    marks: str
    controls: str
    marks_at: str
    controls_at: str
    effect: str
    p_value: str
    adjusted: str
    rekeyed: str
    conditional: str
    power: list[tuple[str, str]]  # the share that is learned, and the power


@dataclass(frozen=True)
class FactLine:
    what: str
    bound: str
    outside: bool
    how: str


@dataclass(frozen=True)
class Shown:
    """A kept question with its answers. said: models and what they answered, and whether that is
    the wrong answer that the key chose."""

    kind: str
    when: str
    client: str
    text: str
    pair: str | None
    truth: str
    served: str
    target: str
    said: Sequence[tuple[str, str, bool]]


@dataclass(frozen=True)
class VerdictPage:
    """conditional: whether that test says anything. shares: learned ones, that powers are of.
    dates: what happened when. ratio: controls a mark, in words."""

    record: VerdictRecord
    facts: Sequence[FactLine]
    dates: Sequence[tuple[str, str]]
    rows: Sequence[Row]
    suspects: Sequence[tuple[Suspect, str]]
    examples: Sequence[Shown]
    conditional: bool
    shares: list[str]
    marks: int
    controls: int


def build(record: VerdictRecord) -> VerdictPage:
    trials = [each for suspect in record.suspects for each in suspect.trials]
    clients = {(each.client, each.marks, each.controls) for each in trials}
    return VerdictPage(
        record, [_fact(each) for each in record.facts], _dates(record),
        [_row(suspect, each) for suspect in record.suspects for each in suspect.trials],
        [(each, _when(each.asked) if each.asked else "") for each in record.suspects],
        [_shown(each) for each in record.examples],
        any(each.conditional < 1 for each in trials),
        [_share(of) for of in trials[0].power] if trials else [],
        sum(marks for _, marks, _ in clients), sum(controls for _, _, controls in clients),
    )  # fmt: skip


def _fact(each: Fact) -> FactLine:
    since = "" if each.since is None else f", {minute(each.since)}"
    return FactLine(each.what, each.bound + since, each.bound != "the owner's word", each.how)


def _dates(record: VerdictRecord) -> list[tuple[str, str]]:
    """What happened when, in the order of time as far as that is known."""
    found = [("The key was fixed, by the owner's clock", minute(record.committed))]
    if record.questions is not None:
        found.append(
            ("Marked and control questions were asked, by the owner's clock",
             _when(record.questions))
        )  # fmt: skip
    if record.sealed is not None:
        found.append(("The last log head was sealed, by the owner's clock", minute(record.sealed)))
    for each in record.stamps:
        whose = each.authority if each.public else f"{each.authority}, under no public root"
        found.append((f"Log head {each.head} was stamped by {whose}", minute(each.time)))
    if not record.stamps:
        found.append(("An outside authority stamped it", "never"))
    asked = [moment for each in record.suspects if each.asked for moment in each.asked]
    if asked:
        found.append((f"The models were asked by {record.asked_by}",
                      _when((min(asked), max(asked)))))  # fmt: skip
    return found


def _row(suspect: Suspect, each: ClientTrial) -> Row:
    low, high = each.interval
    return Row(
        suspect.name + (", control" if suspect.control else ""), each.client, each.form,
        f"{each.hits:,} of {each.marks:,}", f"{each.chance_hits:,} of {each.controls:,}",
        f"{100 * each.hits / max(1, each.marks):.1f}",
        f"{100 * each.chance_hits / max(1, each.controls):.1f}",
        f"{fmt.signed(each.effect)} ({fmt.score(low)} to {fmt.score(high)})",
        fmt.tiny(each.p_value), fmt.tiny(each.adjusted), fmt.tiny(each.rekeyed),
        fmt.tiny(each.conditional),
        [(_share(of), f"{found:.2f}") for of, found in each.power.items()],
    )  # fmt: skip


def _share(of: str) -> str:
    return f"{100 * float(of):g}{fmt.THIN}%"


def _shown(each: Example) -> Shown:
    pair = None if each.pair is None else fmt.shorten(each.pair, TEXT)
    said = [(name, fmt.shorten(what, TEXT), what == each.target) for name, what in
            each.said.items()]  # fmt: skip
    return Shown(
        "marked" if each.kind == "mark" else "control", minute(each.time), each.client,
        fmt.shorten(each.text, TEXT), pair, each.truth, each.served, each.target, said,
    )  # fmt: skip


def _when(between: Interval) -> str:
    first, last = map(minute, between)
    return first if first == last else f"{first} to {last}"
