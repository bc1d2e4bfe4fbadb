"""Iterative magnitude pruning: train, score, prune, rewind, repeat; each round done once.

Frankle & Carbin 2019, sec. 1.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillhouse.core.manifest import manifest
from stillhouse.core.precision import Auto
from stillhouse.core.progress import Progress, Silent
from stillhouse.core.rundir import claim, write_json
from stillhouse.flows.gold import Gold, prepare_gold
from stillhouse.flows.stages import Trained
from stillhouse.tasks.base import Data
from stillhouse.tickets.config import TicketsConfig
from stillhouse.tickets.search import Rung, Search


@dataclass
class Found:
    """What a search leaves for the record. `masks`: of the last round, by seed."""

    config: TicketsConfig
    gold: Gold
    rungs: list[Rung]
    reported: Data
    best: Trained
    total_s: float


def find(config: TicketsConfig, out: Path, *, progress: Progress | None = None) -> Found:
    """Searches a ticket for every seed in the run folder `out`. A search that was killed goes on
    where it was. Raises UsageError, DataError, ModelError, RunError."""
    progress = progress or Silent()
    started = time.perf_counter()
    settings, auto = config.model_dump(mode="json"), Auto.of(out)
    told, config = auto.notes(config), auto.settle(config)
    gold = prepare_gold(config, progress, metric=config.evaluation.metric)
    search = Search(config, gold, out, progress)
    search.check()
    claim(out, settings, gold.content)
    for note in [*gold.notes, *told]:
        progress.note(note)
    facts = {"content": gold.content, "seeds": config.evaluation.seeds, "auto": auto.facts}
    write_json(out / "manifest.json", manifest(**facts))
    whole = sum(search.sizes.values())
    progress.note(
        f"{whole:,} prunable weights in {len(search.sizes)} matrices; "
        f"{search.trainings} trainings a seed of {search.stage(0).steps(0):,} steps"
    )
    rungs = [rung for seed in config.evaluation.seeds for rung in search.of(seed)]
    last = [r.trained for r in rungs if r.kind == "ticket" and r.round == config.prune.rounds]
    best = max(last, key=lambda t: -np.inf if t.fit.score is None else t.fit.score)
    return Found(config, gold, rungs, search.reported, best, time.perf_counter() - started)
