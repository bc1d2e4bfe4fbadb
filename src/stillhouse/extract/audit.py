"""The audit: the victim asked, thieves trained, what leaks without any.

One's own model is audited, or one's own API: nothing but these is contacted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stillhouse.core.audit_results import Leak
from stillhouse.core.errors import UsageError
from stillhouse.core.manifest import manifest
from stillhouse.core.precision import Auto
from stillhouse.core.progress import Progress, Silent
from stillhouse.core.rundir import claim, write_json
from stillhouse.core.seeding import generator
from stillhouse.core.types import Predictions
from stillhouse.data.sources import Pool
from stillhouse.extract import leaks
from stillhouse.extract.answers import Answers
from stillhouse.extract.config import AuditConfig
from stillhouse.extract.setup import Audit, judged, victim_of
from stillhouse.extract.sweep import Sweep, Swept, at
from stillhouse.extract.thief import Thief
from stillhouse.extract.victim import OwnModel, Service
from stillhouse.extract.views import View
from stillhouse.flows.labelling import tell_guesses
from stillhouse.tasks.base import Task


@dataclass
class Audited:
    """What an audit leaves for the record."""

    made: Audit
    task: Task
    sweep: Sweep
    swept: Swept
    victim: Predictions
    charged: int | None
    leaks: list[Leak] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    victim_s: float = 0.0
    total_s: float = 0.0


def audit(
    config: AuditConfig,
    out: Path,
    *,
    service: Service | None = None,
    progress: Progress | None = None,
) -> Audited:
    """Runs the audit in the run folder `out`; a killed one goes on, and pays nothing twice.
    `service`: asked instead of what the config names. Raises UsageError, DataError, ModelError,
    RunError."""
    progress = progress or Silent()
    started = time.perf_counter()
    identity, auto = config.identity, Auto.of(out)
    told, config = auto.notes(config), auto.settle(config)
    made = Audit(config, progress, service=service)
    progress.note(f"only {config.victim} is asked; it must be yours, or its owner must agree")
    with victim_of(config, made, service) as (victim, task):
        content = made.content(victim)
        thieves = [
            Thief(
                each, task, made.store, progress, max_length=config.data.tokens(task.name),
                trust_remote_code=config.trust_remote_code,
            )
            for each in config.thieves
        ]  # fmt: skip
        _refuse_the_victim(config, thieves)
        if config.queries.choose and task.name != "classification":
            raise UsageError(
                f"queries are chosen by a classifier's doubt, and this is a {task.name}: leave "
                "queries.choose out"
            )
        sweep = Sweep(made, victim, thieves, config.shown(task.name), out, progress)
        for kind in config.queries.kinds:  # a pool or corpus that is too small is told at once
            made.stream(kind, config.evaluation.seeds[0], made.most)
        exact = victim.in_float32() if isinstance(victim, OwnModel) else victim
        theirs = exact.answers(made.splits.reported, "about reported rows", progress)
        for view in sweep.views:  # what it doesn't show is known before all is asked
            theirs.seen(View.read(view))
        claim(out, identity, content)
        facts = {"content": content, "seeds": config.evaluation.seeds, "auto": auto.facts}
        write_json(out / "manifest.json", manifest(**facts))
        notes = [*made.splits.notes, *made.notes]
        tell_guesses(made.splits, progress, task, asked=config.task)
        for note in [*notes, *told]:
            progress.note(note)
        swept = sweep.run()
        found = Audited(
            made, task, sweep, swept, judged(theirs, task, made.splits.reported), None, notes=notes
        )
        pool, answers = sweep.stream(config.queries.kinds[0], config.evaluation.seeds[0])
        with progress.stage("looking for leaks", 1, "views") as advance:
            found.leaks = _leaks(config, sweep, pool, answers)
            advance(1)
        charged = victim.charged
    found.charged = None if charged is None else charged.queries
    found.victim_s = sweep.victim_s
    found.total_s = time.perf_counter() - started
    return found


def _refuse_the_victim(config: AuditConfig, thieves: Sequence[Thief]) -> None:
    """Raises UsageError for a thief that begins with the victim's own weights. (Its shape alone a
    stranger may guess.)"""
    victim = Path(config.victim).resolve()
    for thief in thieves:
        named = Path(thief.named)
        if named.exists() and named.resolve() == victim and not thief.config.fresh:
            raise UsageError(
                f"the thief {thief.named} is the victim: a stranger has none of its weights"
            )


def _leaks(config: AuditConfig, sweep: Sweep, pool: Pool, answers: Answers) -> list[Leak]:
    """What the first view of the answers gives away by itself."""
    shown = answers.seen(View.read(sweep.views[0]))
    if shown.labels_N is not None or shown.texts is not None:
        return []
    thief = sweep.thieves[0]
    public = thief.public()
    few = min(len(pool), max(4 * public.config.hidden_size, 2 * len(shown.choices)))
    pool, shown = at(pool, np.arange(few)), shown.first(few)
    if isinstance(sweep.victim, OwnModel):  # an API computes in float32, whatever we did
        exact = sweep.victim.in_float32().answers(pool, "in float32", sweep.progress)
        shown = exact.seen(View.read(sweep.views[0]))
    found = [] if shown.probabilities_NK is None else [leaks.digits(shown)]
    found.append(leaks.hidden_size(shown))
    features = leaks.public_features(public, thief.data(pool, "queries"))
    rng = generator(config.evaluation.seeds[0], "frozen encoder")
    name = Path(thief.named).name
    return [*found, leaks.frozen_encoder(shown, features, name, rng)]
