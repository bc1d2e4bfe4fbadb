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
from stillhouse.extract.audit import Audit, audit, cells, victim_of
from stillhouse.extract.config import AuditConfig
from stillhouse.extract.record import audit_record
from stillhouse.extract.victim import is_endpoint
from stillhouse.flows.common import store_root, tidy
from stillhouse.report.html import render


@dataclass(frozen=True)
class Bill:
    """What an audit will ask. `earnest`: an API does, which may charge for it."""

    queries: int
    money: float
    earnest: bool
    sentence: str


def expected(config: AuditConfig) -> Bill:
    """What an audit costs before it starts: its most expensive kinds of queries, all seeds."""
    splits = load(config.data, store_root(config.cache) / "rows")
    of = config.queries.of or len(splits.labelled) + len(splits.held_out)
    draws = len(config.proof.seeds) if config.queries.fresh else 1
    largest = max(1, round(config.queries.budgets[-1] * of))
    earnest = is_endpoint(config.victim)
    count = largest * len(config.queries.kinds) * draws + (len(splits.reported) if earnest else 0)
    trainings = len(cells(config, of)) * len(config.proof.seeds)
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


def run_audit(config: AuditConfig, out: Path, *, progress: Progress | None = None) -> AuditRun:
    """The audit of a checked config, to its record and report. A finished one is read."""
    progress = progress or Terminal()
    if (out / "record.json").is_file():
        made = Audit(config, progress)
        with victim_of(config, made) as (victim, _):
            claim(out, config.model_dump(mode="json"), made.content(victim))
        progress.note(f"{out} is finished already")
        if not (out / "report.html").is_file():
            render([out], out / "report.html")
        return AuditRun.open(out)
    record = audit_record(audit(config, out, progress=progress))
    write_json(out / "record.json", record.model_dump(mode="json", by_alias=True))
    render([out], out / "report.html")
    tidy(out, keep=config.keep_checkpoints)
    return AuditRun(out, record)
