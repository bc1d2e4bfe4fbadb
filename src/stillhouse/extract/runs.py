"""An audit from its checked config to its folder: record and report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stillhouse.core.audit_results import AuditRecord
from stillhouse.core.console import Terminal
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.rundir import claim, write_json
from stillhouse.data.sources import load
from stillhouse.extract.audit import audit
from stillhouse.extract.config import AuditConfig
from stillhouse.extract.record import audit_record
from stillhouse.extract.setup import Audit, size_of, victim_of
from stillhouse.extract.sweep import cells
from stillhouse.extract.victim import Service, is_endpoint
from stillhouse.flows.common import gold_task, store_root, tidy
from stillhouse.report.html import render


@dataclass(frozen=True)
class Bill:
    """What an audit will ask. `earnest`: an API does, which may charge for it."""

    queries: int
    money: float
    earnest: bool
    sentence: str


def expected(config: AuditConfig) -> Bill:
    """What an audit costs before it starts: every kind at its largest budget, all seeds."""
    splits = load(config.data, store_root(config.cache) / "rows")
    of = size_of(config, splits)
    pools = [splits.labelled, splits.held_out, splits.reported]
    views = config.shown(gold_task(pools, asked=config.task).name)
    draws = len(config.proof.seeds) if config.queries.fresh else 1
    largest = max(1, round(config.queries.budgets[-1] * of))
    earnest = is_endpoint(config.victim)
    streams = len(config.queries.kinds) + len(config.queries.choose)
    count = largest * streams * draws + (len(splits.reported) if earnest else 0)
    trainings = len(cells(config, views, of)) * len(config.proof.seeds)
    money = config.tariff.price(count)
    said = f"{config.victim} is asked {count:,} queries, and {trainings} thieves are trained"
    if earnest:
        said += (
            f"; by the price list (a query is a unit) that is {config.tariff.currency}{money:,.2f}"
        )
        if config.limit is not None:
            said += f", and no more than {config.limit:,} are sent"
    return Bill(count, money, earnest, said)


@dataclass
class AuditRun:
    """A finished audit: its folder and its record."""

    out: Path
    record: AuditRecord

    @classmethod
    def open(cls, out: str | Path) -> AuditRun:
        """An audit that is on disk. Raises UsageError if there is none."""
        path = Path(out) / "record.json"
        try:
            return cls(Path(out), AuditRecord.model_validate_json(path.read_text("utf-8")))
        except OSError:
            raise UsageError(f"{out} is no finished audit") from None
        except ValueError:
            raise UsageError(f"{path} is not the record of an audit") from None


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
        made = Audit(config, progress)
        with victim_of(config, made, service) as (victim, _):
            claim(out, config.identity, made.content(victim))
        progress.note(f"{out} is finished already")
        if not (out / "report.html").is_file():
            render([out], out / "report.html")
        return AuditRun.open(out)
    record = audit_record(audit(config, out, service=service, progress=progress))
    write_json(out / "record.json", record.model_dump(mode="json", by_alias=True))
    render([out], out / "report.html")
    tidy(out, keep=config.keep_checkpoints)
    return AuditRun(out, record)
