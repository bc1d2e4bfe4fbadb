"""From an audit's copies to its record: scores, agreement, money, and what they mean in words.

Axes: N reported rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stillhouse.core.audit_results import (
    Asked,
    AuditRecord,
    AuditTiming,
    Change,
    Copy,
    VictimResult,
)
from stillhouse.core.results import Gain
from stillhouse.core.seeding import generator
from stillhouse.core.types import Example
from stillhouse.evaluation.evaluate import BOUNDS, interval
from stillhouse.extract.answers import Answers
from stillhouse.extract.audit import Audited
from stillhouse.extract.sweep import Cell, Line
from stillhouse.flows.measured import summary
from stillhouse.numerics import stats


def audit_record(found: Audited) -> AuditRecord:
    """The record of a finished audit."""
    config, task = found.made.config, found.task
    trained = found.swept.trained
    score = task.score(found.victim)[task.metric]
    victim = VictimResult(
        name=Path(config.victim).name,
        score=score,
        interval=interval(
            task, [found.victim.answers_N], found.victim.gold_N,
            resamples=config.proof.resamples, rng=generator(0, "victim"),
        ),
        charged=found.charged,
    )  # fmt: skip
    copies = {cell: copy_of(found, cell, score) for cell in trained}
    changes = [change_of(found, view, copies, score) for view in found.sweep.views]
    made = list(copies.values())
    return AuditRecord(
        task=task.name,
        metric=task.metric,
        currency=config.tariff.currency,
        enough=config.enough,
        data=summary(found.made.splits, None, task.choices),
        victim=victim,
        copies=made,
        changes=changes,
        leaks=found.leaks,
        asked=[
            each
            for kind, (few, said) in found.swept.asked.items()
            for each in _asked(kind, few, said)
        ],
        sentence=sentence(
            made, changes, victim, task.metric, config.tariff.currency, config.enough
        ),
        timing=AuditTiming(
            total_s=found.total_s,
            victim_s=found.victim_s,
            thieves_s=sum(t.seconds for each in trained.values() for t in each),
        ),
        warnings=list(dict.fromkeys(
            [*found.notes, *(w for each in trained.values() for t in each for w in t.warnings)]
        )),
    )  # fmt: skip


def copy_of(found: Audited, cell: Cell, victim: float) -> Copy:
    """The thieves of one cell, over seeds."""
    config, task, gold_N = found.made.config, found.task, found.victim.gold_N
    answers = answers_of(found, cell)
    scores = [task.metric_of(each, gold_N, task.metric) for each in answers]
    agreed = [task.agreement(each, found.victim.answers_N) for each in answers]
    mean = float(np.mean(scores))
    spent = found.swept.spent[cell]
    units = round(float(np.mean([each.units for each in spent])))
    return Copy(
        kind=cell.line.kind,
        selection=cell.line.selection,
        view=cell.line.view,
        thief=found.sweep.thieves[cell.line.thief].name,
        budget=cell.budget,
        queries=cell.queries,
        characters=round(float(np.mean([each.characters for each in spent]))),
        units=units,
        money=config.tariff.price(units),
        score=mean,
        interval=interval(
            task, answers, gold_N, resamples=config.proof.resamples,
            rng=generator(0, "copy", cell.title),
        ),
        seeds=scores,
        agreement=float(np.mean(agreed)),
        agreement_interval=stats.bootstrap_interval(
            task.agreement, answers, found.victim.answers_N,
            resamples=config.proof.resamples, rng=generator(0, "agreement", cell.title),
            bounds=BOUNDS["pearson" if task.name == "regression" else "accuracy"],
        ),
        retention=mean / victim if victim else 0.0,
    )  # fmt: skip


def answers_of(found: Audited, cell: Cell) -> list[np.ndarray]:
    """What the thieves of a cell say of the reported rows, one array a seed."""
    data = found.sweep.reported(cell.line.thief)
    return [
        found.task.predictions(each.scores_NK, data).answers_N for each in found.swept.trained[cell]
    ]


def change_of(found: Audited, view: str, copies: Mapping[Cell, Copy], victim: float) -> Change:
    """What showing this instead of the first view does, with the first kind and thief."""
    config, task = found.made.config, found.task
    mine, theirs = (
        [cell for cell in copies if cell.line == Line(config.queries.kinds[0], each, 0, "random")]
        for each in (view, found.sweep.views[0])
    )
    gain: Gain | None = None
    if view != found.sweep.views[0]:
        paired = stats.paired_gain(
            lambda a, g: task.metric_of(a, g, task.metric), answers_of(found, mine[-1]),
            answers_of(found, theirs[-1]), found.victim.gold_N,
            resamples=config.proof.resamples, rng=generator(0, "change", view),
        )  # fmt: skip
        gain = Gain(value=paired.value, interval=paired.interval, p_value=paired.p_value)
    price = price_of([copies[cell] for cell in mine], config.enough * victim)
    return Change(view=view, gain=gain, price=price)


def price_of(copies: Sequence[Copy], score: float) -> float | None:
    """What a copy of this score costs: the least budget that reaches it, or between two, as much
    of the way as the score is (by the logarithm of the queries). None: none does."""
    rising = sorted(copies, key=lambda copy: copy.queries)
    for before, after in zip([None, *rising[:-1]], rising, strict=True):
        if after.score < score:
            continue
        if before is None or after.score == before.score:
            return after.money
        way = (score - before.score) / (after.score - before.score)
        log = np.log(before.queries) + way * np.log(after.queries / before.queries)
        share = (np.exp(log) - before.queries) / (after.queries - before.queries)
        return float(before.money + share * (after.money - before.money))
    return None


def _asked(kind: str, few: Sequence[Example], said: Answers) -> list[Asked]:
    return [
        Asked(kind=kind, text=each.text, pair=each.pair, answer=said.show(row))
        for row, each in enumerate(few)
    ]


def sentence(
    copies: Sequence[Copy],
    changes: Sequence[Change],
    victim: VictimResult,
    metric: str,
    currency: str,
    enough: float,
) -> str:
    """The verdict: what the cheapest good copy costs, or how good the best is; what hiding does."""
    base = [copy for copy in copies if copy.view == changes[0].view]
    good = [copy for copy in base if copy.retention >= enough]
    told = (
        min(good, key=lambda c: (c.money, -c.score)) if good else max(base, key=lambda c: c.score)
    )
    what = f"{told.kind} queries" + (
        "" if told.selection == "random" else f" chosen by {told.selection}"
    )
    said = (
        f"For {currency}{told.money:,.2f} ({told.queries:,} {what}) a stranger gets "
        f"{told.retention:.0%} of this model's {metric} ({told.score:.3f} of {victim.score:.3f}), "
        f"and agrees with it on {told.agreement:.0%}"
    )
    if not good:
        said += f"; no copy has {enough:.0%}"
    others = [change for change in changes[1:] if change.gain is not None]
    for change in others[:2]:
        assert change.gain is not None
        low, high = (100 * end for end in change.gain.interval)
        said += (
            f". Showing {change.view} instead of {changes[0].view} changes the copy by "
            f"{100 * change.gain.value:+.1f} points ({low:+.1f} to {high:+.1f})"
        )
    if others and changes[0].price is not None:
        dearest = max(changes, key=lambda c: float("inf") if c.price is None else c.price)
        if dearest is changes[0]:
            said += ". No change of what is shown makes a good copy dearer"
        else:
            price = (
                "none within these budgets"
                if dearest.price is None
                else (f"{currency}{dearest.price:,.2f}")
            )
            said += (
                f". Showing {dearest.view} raises the price of a good copy most: "
                f"{currency}{changes[0].price:,.2f} before, then {price}"
            )
    return said + "."
