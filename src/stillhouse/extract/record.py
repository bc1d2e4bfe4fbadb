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
from stillhouse.core.seeding import generator
from stillhouse.core.types import Example
from stillhouse.core.units import points, unit
from stillhouse.core.verdicts import ONE_SEED, in_words
from stillhouse.evaluation.comparison import Comparison, compare
from stillhouse.evaluation.evaluate import BOUNDS, interval
from stillhouse.extract.answers import Answers
from stillhouse.extract.audit import Audited
from stillhouse.extract.prices import Tariff
from stillhouse.extract.sweep import Cell, Line
from stillhouse.flows.measured import summary
from stillhouse.numerics import stats
from stillhouse.tasks.base import Task


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
            resamples=config.evaluation.resamples, rng=generator(0, "victim"),
        ),
        constant=constant(task, found.victim.gold_N),
        charged=found.charged,
    )  # fmt: skip
    copies = {cell: copy_of(found, cell, score) for cell in trained}
    needed = max(config.enough * score, np.nextafter(victim.constant, np.inf))
    changes = [change_of(found, view, copies, needed) for view in found.sweep.views]
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
        warnings=list(dict.fromkeys([
            *_no_better(victim),
            *found.notes,
            *(w for each in trained.values() for t in each for w in t.warnings),
        ])),
    )  # fmt: skip


def constant(task: Task, gold_N: np.ndarray) -> float:
    """What the best single answer to all rows scores. (Values all the same correlate with
    nothing, and one text answers nothing.)"""
    if task.name != "classification":
        return 0.0
    return max(
        task.metric_of(np.full_like(gold_N, choice), gold_N, task.metric)
        for choice in range(len(task.choices))
    )


def _no_better(victim: VictimResult) -> list[str]:
    """A warning where there is nothing to steal."""
    if victim.score > victim.constant:
        return []
    return [
        f"the victim scores {victim.score:.3f}, one answer to all rows {victim.constant:.3f}: are "
        "its labels matched as you meant (--label-map), and its answers in the texts' order?"
    ]


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
            task, answers, gold_N, resamples=config.evaluation.resamples,
            rng=generator(0, "copy"),
        ),
        seeds=scores,
        agreement=float(np.mean(agreed)),
        agreement_interval=stats.bootstrap_interval(
            task.agreement, answers, found.victim.answers_N,
            resamples=config.evaluation.resamples, rng=generator(0, "agreement"),
            bounds=BOUNDS["pearson" if task.name == "regression" else "accuracy"],
        ),
        retention=mean / victim if victim > 0 else None,
    )  # fmt: skip


def answers_of(found: Audited, cell: Cell) -> list[np.ndarray]:
    """What the thieves of a cell say of the reported rows, one array a seed."""
    data = found.sweep.reported(cell.line.thief)
    return [
        found.task.predictions(each.scores_NK, data).answers_N for each in found.swept.trained[cell]
    ]


def change_of(found: Audited, view: str, copies: Mapping[Cell, Copy], enough: float) -> Change:
    """What showing this instead of the first view does, with the first kind and thief."""
    config = found.made.config
    mine, theirs = (
        [cell for cell in copies if cell.line == Line(config.queries.kinds[0], each, 0, "random")]
        for each in (view, found.sweep.views[0])
    )
    price, at_most = price_of([copies[cell] for cell in mine], enough, config.tariff)
    compared, dearer = None, False
    if view != found.sweep.views[0]:
        compared = _compared(found, mine[-1], theirs[-1])
        reached = next((i for i, cell in enumerate(theirs) if copies[cell].score >= enough), None)
        if reached is not None and copies[mine[reached]].score < enough:
            dearer = _compared(found, mine[reached], theirs[reached]).verdict == "hurt"
    return Change(
        view=view,
        gain=compared and compared.gain,
        verdict=compared and compared.verdict,
        price=price,
        at_most=at_most,
        dearer=dearer,
    )


def _compared(found: Audited, mine: Cell, theirs: Cell) -> Comparison:
    """How much better the copies of one cell are than another's."""
    asked = found.made.config.evaluation
    return compare(
        found.task, answers_of(found, mine), answers_of(found, theirs), found.victim.gold_N,
        margin=asked.margin, resamples=asked.resamples, rng=generator(0, "change", mine.title),
    )  # fmt: skip


def price_of(copies: Sequence[Copy], score: float, tariff: Tariff) -> tuple[float | None, bool]:
    """What a copy of this score costs: between two budgets, as many queries as the score is of the
    way (by their logarithm). None: no budget reaches it; True: the smallest does, so that the
    price is no more than that."""
    rising = sorted(copies, key=lambda copy: copy.queries)
    for before, after in zip([None, *rising[:-1]], rising, strict=True):
        if after.score < score:
            continue
        if before is None:
            return after.money, True
        way = (score - before.score) / (after.score - before.score)
        log = np.log(before.queries) + way * np.log(after.queries / before.queries)
        share = (np.exp(log) - before.queries) / (after.queries - before.queries)
        return tariff.price(round(before.units + share * (after.units - before.units))), False
    return None, False


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
    good = [c for c in base if (c.retention or 0) >= enough and c.score > victim.constant]
    told = (
        min(good, key=lambda c: (c.money, -c.score)) if good else max(base, key=lambda c: c.score)
    )
    what = f"{told.kind} queries" + (
        "" if told.selection == "random" else f" chosen by {told.selection}"
    )
    agreed = (
        f"correlates with it by {told.agreement:.2f}"
        if metric in ("pearson", "spearman")
        else f"agrees with it on {told.agreement:.0%}"
    )
    share = "" if told.retention is None else f"{told.retention:.0%} of "
    said = (
        f"For {currency}{told.money:,.2f} ({told.queries:,} {what}) a stranger gets "
        f"{share}this model's {metric} ({told.score:.3f} of {victim.score:.3f}), and {agreed}"
    )
    if told.score <= victim.constant:
        said += f"; that is no more than one answer to all rows scores ({victim.constant:.3f})"
    elif not good:
        said += f"; no copy has {enough:.0%}"
    others = [change for change in changes[1:] if change.gain is not None]
    for change in others[:2]:
        assert change.gain is not None
        value, low, high = (points(x, metric) for x in (change.gain.value, *change.gain.interval))
        said += (
            f". Showing {change.view} instead of {changes[0].view} changes the copy by "
            f"{value} {unit(metric)} ({low} to {high}): {_word(change)}"
        )
    if others and changes[0].price is not None:
        said += f". {_dearest(changes, copies[0].kind, currency)}"
    return said + "."


def _word(change: Change) -> str:
    """What hiding did to the copy."""
    assert change.verdict is not None
    assert change.gain is not None
    words = {"helped": "the copy is better", "hurt": "the copy is worse"}
    return in_words(words.get(change.verdict, change.verdict), change.gain)


def _dearest(changes: Sequence[Change], kind: str, currency: str) -> str:
    """Which change raises the price of a good copy most, if one is seen to."""
    first, *others = changes
    dearer = [change for change in others if change.dearer]
    if not dearer:
        if all(change.at_most for change in changes):
            return "Whatever is shown, the smallest budget gives a good copy: try smaller ones"
        return "No change of what is shown is seen to make a good copy dearer"
    most = max(dearer, key=lambda c: float("inf") if c.price is None else c.price)
    then = "none within these budgets" if most.price is None else f"{currency}{most.price:,.2f}"
    before = f"{'at most ' if first.at_most else ''}{currency}{first.price:,.2f}"
    told = (
        f"Of {kind} queries' good copies, showing {most.view} raises the price most: {before} "
        f"before, then {then}"
    )
    one = most.gain is not None and most.gain.seeds == 1
    return f"{told}, {ONE_SEED}" if one else told
