"""From a search's trainings to its record: levels over seeds, gains, overlaps, storage.

Axes: N rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stillhouse.core.seeding import generator
from stillhouse.core.ticket_results import (
    Level,
    Overlap,
    Storage,
    TicketsRecord,
    TicketTiming,
)
from stillhouse.core.units import points, spoken, unit
from stillhouse.core.verdicts import in_words
from stillhouse.evaluation.comparison import Comparison
from stillhouse.evaluation.evaluate import groups_of, interval
from stillhouse.flows.measured import gain_of, summary
from stillhouse.models.student import parameters
from stillhouse.numerics import masks as numerics
from stillhouse.tasks.base import Data, Task
from stillhouse.tickets.find import Found
from stillhouse.tickets.search import Rung, masks_path
from stillhouse.training.sparse import load_masks

KINDS = ("dense", "ticket", "random", "reinitialised")


def tickets_record(found: Found, out: Path, storage: Storage) -> TicketsRecord:
    """The record of a finished search whose last ticket is stored."""
    gold, config = found.gold, found.config
    task = gold.task
    kinds: dict[tuple[str, int], list[Rung]] = {}
    for rung in found.rungs:
        kinds.setdefault((rung.kind, rung.round), []).append(rung)
    dense = kinds["dense", 0]
    ordered = sorted(kinds, key=lambda key: (key[1], KINDS.index(key[0])))
    levels = [
        level(
            task,
            kinds[key],
            dense,
            found.reported,
            margin=config.evaluation.margin,
            resamples=config.evaluation.resamples,
        )
        for key in ordered
    ]
    model = gold.make(config.evaluation.seeds[0])
    held = [load_masks(masks_path(out, config.evaluation.seeds[0], r))[0] for r in rounds(found)]
    named = list(held[0])
    whole = sum(mask.numel() for mask in held[0].values())
    densities = {name: [float(m[name].float().mean()) for m in held] for name in named}
    return TicketsRecord(
        task=task.name,
        metric=task.metric,
        data=summary(gold.splits, gold.corpus, task.choices),
        model=Path(config.model).name,
        parameters=parameters(model),
        prunable=whole,
        score_name=config.prune.score,
        rewind=config.prune.rewind,
        levels=levels,
        densities=densities,
        overlaps=overlaps(found, out),
        storage=storage,
        shipped_seed=found.best.seed,
        sentence=sentence(levels, task.metric, config.prune.rounds),
        timing=TicketTiming(
            total_s=found.total_s, steps=sum(r.trained.fit.steps for r in found.rungs)
        ),
        warnings=list(dict.fromkeys(
            [*gold.notes, *doubts(found, densities),
             *(w for r in found.rungs for w in r.trained.warnings)]
        )),
    )  # fmt: skip


def rounds(found: Found) -> range:
    return range(1, found.config.prune.rounds + 1)


def level(
    task: Task,
    rungs: Sequence[Rung],
    dense: Sequence[Rung],
    data: Data,
    *,
    margin: float | None,
    resamples: int,
) -> Level:
    """One kind at one round, over the seeds; its gain over the dense model."""
    first = rungs[0]
    predictions = [task.predictions(r.trained.scores_NK, data) for r in rungs]
    scored = [task.score(each) for each in predictions]
    metrics = {key: float(np.mean([s[key] for s in scored])) for key in scored[0]}
    fits = [r.trained.fit for r in rungs]
    compared: Comparison | None = None
    if first.kind != "dense":
        mine, theirs = [r.trained for r in rungs], [r.trained for r in dense]
        compared = gain_of(task, mine, theirs, data, margin=margin, resamples=resamples)
    return Level(
        kind=first.kind,
        round=first.round,
        remaining=first.remaining,
        kept=first.kept,
        score=metrics[task.metric],
        interval=interval(
            task,
            [p.answers_N for p in predictions],
            predictions[0].gold_N,
            resamples=resamples,
            rng=generator(0, "interval", first.kind, first.round),
            groups=groups_of(data),
        ),
        seeds=[s[task.metric] for s in scored],
        metrics=metrics,
        early_steps=[fit.peak_step for fit in fits if fit.peak_step is not None],
        early_losses=[-fit.peak for fit in fits if fit.peak is not None],
        gain=compared and compared.gain,
        verdict=compared and compared.verdict,
    )


def overlaps(found: Found, out: Path) -> list[Overlap]:
    """How alike the seeds' tickets are, round by round; nothing of one seed."""
    seeds = found.config.evaluation.seeds
    made: list[Overlap] = []
    for number in rounds(found):
        held = [load_masks(masks_path(out, seed, number))[0] for seed in seeds]
        pairs = [numerics.overlap(a, b) for a, b in itertools.combinations(held, 2)]
        if pairs:
            seen, chance = np.mean(pairs, axis=0)
            made.append(Overlap(round=number, found=float(seen), expected=float(chance)))
    return made


def sentence(levels: Sequence[Level], metric: str, last: int) -> str:
    """The result in words: the last ticket beside the dense model and a random mask, and if it is
    worse, the smallest ticket that isn't seen to be worse than the dense model."""
    dense = next(each for each in levels if each.kind == "dense")
    tickets = {each.round: each for each in levels if each.kind == "ticket"}
    asked = tickets[last]
    said = (
        f"With {_share(asked)} of the prunable weights the ticket scores {asked.score:.3f} in "
        f"{spoken(metric)}, the dense model {dense.score:.3f}: {_against(asked, metric)}"
    )
    if asked.verdict == "hurt":
        alike = [t for t in tickets.values() if t.verdict != "hurt"]
        small = min(alike, key=lambda t: t.remaining, default=None)
        said += (
            ". No larger ticket reaches it either"
            if small is None
            else f". The smallest that is not seen to be worse has {_share(small)} "
            f"({small.score:.3f}, {_word(small)})"
        )
    random = next((each for each in levels if each.kind == "random" and each.round == last), None)
    if random is not None:
        said += f". A random mask of that size scores {random.score:.3f}"
        if random.score >= asked.score:
            said += ", no less, so these data don't show that the ticket's own is worth anything"
    return said + "."


def _share(level: Level) -> str:
    return f"{100 * level.remaining:.1f} %"


def _word(level: Level) -> str:
    assert level.verdict is not None
    assert level.gain is not None
    better = {"helped": "better", "hurt": "worse"}
    return in_words(better.get(level.verdict, level.verdict), level.gain)


def _against(level: Level, metric: str) -> str:
    assert level.gain is not None
    value, low, high = (points(x, metric) for x in (level.gain.value, *level.gain.interval))
    return f"{value} {unit(metric)}, 95 % interval {low} to {high}: {_word(level)}"


def doubts(found: Found, densities: Mapping[str, Sequence[float]]) -> list[str]:
    """What a reader should know before believing the levels: matrices that were all but pruned
    away, models that answer every row the same."""
    task, prune = found.gold.task, found.config.prune
    said: list[str] = []
    last = [each for each in found.rungs if each.kind == "ticket" and each.round == prune.rounds]
    share = np.mean([rung.remaining for rung in last])
    for name, kept in densities.items():
        if kept[-1] == 0:
            said.append(
                f"nothing is left of {name}, and what passes through it is cut off: set "
                "prune.floor, or leave it out with prune.exclude"
            )
        elif kept[-1] <= 1.01 * prune.floor * share and prune.scope == "global":
            said.append(
                f"{name} keeps {100 * kept[-1]:.1f} % of its weights only because of prune.floor: "
                "its weights score lower than all others', as those of a matrix that was never "
                "trained do; prune.exclude leaves it out"
            )
    for kind, number in dict.fromkeys((each.kind, each.round) for each in found.rungs):
        answers = [
            task.predictions(each.trained.scores_NK, found.reported).answers_N
            for each in found.rungs
            if (each.kind, each.round) == (kind, number)
        ]
        if all(len(set(each.tolist())) == 1 for each in answers):
            what = "dense model" if kind == "dense" else f"{kind} of round {number}"
            said.append(f"the {what} answers every reported row the same, whatever the seed")
    return said
