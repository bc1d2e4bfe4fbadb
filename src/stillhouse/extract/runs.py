"""An audit from its checked config to its folder: record and report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stillhouse.core.audit_results import AuditRecord
from stillhouse.core.console import Terminal
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.rundir import claim, write_json
from stillhouse.extract.audit import Audit, audit, victim_of
from stillhouse.extract.config import AuditConfig
from stillhouse.extract.record import audit_record
from stillhouse.flows.common import tidy
from stillhouse.report.html import render


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
