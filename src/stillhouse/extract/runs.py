"""An audit from its checked config to its folder: record and report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from stillhouse.core.audit_results import AuditRecord
from stillhouse.core.console import Terminal
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress, Silent
from stillhouse.core.rundir import claim, write_json
from stillhouse.data.sources import Pool
from stillhouse.extract.audit import audit
from stillhouse.extract.config import AuditConfig
from stillhouse.extract.ledger import Spent, cost_of, name_of
from stillhouse.extract.record import audit_record
from stillhouse.extract.setup import Audit, victim_of
from stillhouse.extract.sweep import cells, lines
from stillhouse.extract.victim import Described, Service, is_endpoint
from stillhouse.flows.common import gold_task, tidy
from stillhouse.report import render


@dataclass(frozen=True)
class Bill:
    """What an audit will ask. `earnest`: an API does, which may charge for it."""

    queries: int
    money: float
    earnest: bool
    sentence: str


def expected(config: AuditConfig, *, progress: Progress | None = None) -> Bill:
    """What an audit will cost, before it starts: the different queries of every kind at its largest
    budget, all seeds, and the reported rows, that were not answered before; chosen ones at most.
    Raises UsageError for a limit that is less than that."""
    made = Audit(config, progress or Silent())
    views = config.shown(gold_task([made.splits.labelled, made.splits.held_out,
                                    made.splits.reported], asked=config.task).name)  # fmt: skip
    seeds = config.evaluation.seeds
    earnest = is_endpoint(config.victim)
    held, sent = Described(Path(config.victim)).answered(made.store) if earnest else (set(), 0)
    met: set[str] = set()
    asked = Spent()

    def add(pool: Pool) -> None:
        nonlocal asked
        new = {name: each for each in pool if (name := name_of(each)) not in met}
        met.update(new)
        asked = asked.and_(
            cost_of([each for name, each in new.items() if name not in held], config.tariff)
        )

    if earnest:
        add(made.splits.reported)
    for kind in config.queries.kinds:
        for seed in seeds if config.queries.fresh else seeds[:1]:
            add(made.stream(kind, seed, made.most))
    fixed = asked.queries
    first = max(1, round(config.queries.budgets[0] * made.of))
    for line in lines(config, views):
        if line.selection != "random":
            each = cost_of(list(made.stream(line.kind, seeds[0], made.most)), config.tariff)
            more = math.ceil(len(seeds) * (made.most - first) * each.units / each.queries)
            asked = asked.and_(Spent(len(seeds) * (made.most - first), 0, more))
    if earnest and config.limit is not None and sent + fixed > config.limit:
        raise UsageError(
            f"--limit {config.limit:,} is too little: {sent:,} queries were sent before, and these "
            f"budgets need {fixed:,} more; raise it to {sent + fixed:,}, or ask less (--budget)"
        )
    trainings = len(cells(config, views, made.of)) * len(seeds)
    money = config.tariff.price(asked.units)
    chosen = any(line.selection != "random" for line in lines(config, views))
    said = (
        f"{config.victim} is asked {asked.queries:,} queries{' at most' if chosen else ''}, and "
        f"{trainings} {'thief is' if trainings == 1 else 'thieves are'} trained"
    )
    if earnest:
        about = "about " if chosen and config.tariff.characters else ""
        said += f"; by the price list that is {about}{config.tariff.currency}{money:,.2f}"
        if kept := len(met & held):
            said += f" ({kept:,} more are answered already)"
        if config.limit is not None:
            said += f", and no more than {config.limit:,} are sent in all"
    return Bill(asked.queries, money, earnest, said)


@dataclass
class AuditRun:
    """A finished audit: its folder and its record."""

    out: Path
    record: AuditRecord

    @classmethod
    def open(cls, out: str | Path) -> AuditRun:
        """An audit that is on disk. Raises UsageError if there is none."""
        return cls(Path(out), AuditRecord.open(Path(out), "audit"))


def run_audit(
    config: AuditConfig,
    out: Path,
    *,
    service: Service | None = None,
    progress: Progress | None = None,
) -> AuditRun:
    """The audit of a checked config, to its record and report. A finished one is read."""
    progress = progress or Terminal()
    if (out / "record.json").is_file():
        made = Audit(config, progress, service=service)
        with victim_of(config, made, service) as (victim, _):
            claim(out, config.identity, made.content(victim))
        progress.note(f"{out} is finished already")
        if not (out / "report.html").is_file():
            render([out], out / "report.html")
        return AuditRun.open(out)
    found = audit(config, out, service=service, progress=progress)
    with progress.stage("comparing", 1, "records") as advance:
        record = audit_record(found)
        advance(1)
    write_json(out / "record.json", record.model_dump(mode="json", by_alias=True))
    render([out], out / "report.html")
    tidy(out, keep=config.keep_checkpoints)
    return AuditRun(out, record)
