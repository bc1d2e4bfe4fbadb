"""Run folders in, one self-contained HTML page out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from pydantic import ValidationError

from stillhouse.core.audit_results import AuditRecord
from stillhouse.core.errors import UsageError
from stillhouse.core.results import Record
from stillhouse.core.rundir import write_text
from stillhouse.core.ticket_results import TicketsRecord, TransferRecord
from stillhouse.core.verdict_results import VerdictRecord
from stillhouse.report import audit, metrics, page, tickets, transfer, verdict, view
from stillhouse.report.environment import environment
from stillhouse.report.page import RunPage
from stillhouse.report.parts import Figure

AnyRecord = TypeVar("AnyRecord", Record, TicketsRecord, TransferRecord, AuditRecord, VerdictRecord)


@dataclass(frozen=True)
class Run:
    """A finished run's folder, read."""

    name: str
    record: Record
    metrics: metrics.Metrics
    manifest: Mapping[str, object]
    config: str


def load(folder: Path) -> Run:
    """The run in `folder`.

    Raises UsageError if it isn't a finished run's folder, or one of its files can't be read.
    """
    path = folder / "record.json"
    if not path.is_file():
        why = "it has no record.json" if folder.is_dir() else "there is no such folder"
        raise UsageError(f"{folder} is not a finished run: {why}")
    config = folder / "config.yaml"
    return Run(
        name=folder.resolve().name,
        record=_checked(Record, path),
        metrics=metrics.read(folder / "metrics.jsonl"),
        manifest=_manifest(folder / "manifest.json"),
        config=config.read_text(encoding="utf-8") if config.exists() else "",
    )


def render(runs: Sequence[Path], out: Path) -> Path:
    """Writes the page of one run, or of several side by side, to `out`; returns `out`.

    Raises UsageError if a folder isn't a finished run's.
    """
    if not runs:
        raise UsageError("a report needs at least one run folder")
    own = [flow for flow in map(_flow, runs) if flow in OWN_PAGES]
    if own and len(runs) > 1:
        raise UsageError(
            f"{_AN.get(own[0], 'a')} {own[0]} run has a page of its own: name one folder"
        )
    if own:
        private = own[0] == "verify"  # which shows customers' questions
        write_text(out, own_page(runs[0], own[0]), private=private)
        return out
    write_text(out, page_of([load(folder) for folder in runs]))
    return out


def _flow(folder: Path) -> str | None:
    """Which flow's record a folder holds, if it holds one."""
    try:
        held: object = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return cast("str | None", held.get("flow")) if isinstance(held, dict) else None


_AN = {"audit": "an"}
OWN_PAGES = ("tickets", "transfer", "audit", "verify")


def own_page(run: Path, flow: str) -> str:
    """The page of a flow whose record is no distillation's. Raises UsageError."""
    path, config = run / "record.json", run / "config.yaml"
    if flow == "tickets":
        found = tickets.build(_checked(TicketsRecord, path))
    elif flow == "audit":
        found = audit.build(_checked(AuditRecord, path))
    elif flow == "verify":
        found = verdict.build(_checked(VerdictRecord, path))
    else:
        found = transfer.build(_checked(TransferRecord, path))
    held = config.read_text(encoding="utf-8") if config.exists() else ""
    template = environment().get_template(f"{flow}.html.j2")
    return template.render(page=found, config=held)


def page_of(runs: Sequence[Run]) -> str:
    """The page as text. The same runs give the same text."""
    names = _distinct([run.name for run in runs])
    pages = [
        page.build(run.record, run.metrics, key=f"run-{number}")
        for number, run in enumerate(runs, start=1)
    ]
    records = [(name, run.record) for name, run in zip(names, runs, strict=True)]
    several = len(runs) > 1
    template = environment().get_template("report.html.j2")
    return template.render(
        runs=[_Part(n, r, p) for n, r, p in zip(names, runs, pages, strict=True)],
        several=several,
        inside=any(each.inside for each in pages),
        compared=_compared(records) if several else [],
        alike=len({_rows_scored(record) for _, record in records}) == 1,
    )


@dataclass(frozen=True)
class _Part:
    """One run as the template sees it."""

    name: str
    run: Run
    page: RunPage


def _checked(kind: type[AnyRecord], path: Path) -> AnyRecord:
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise UsageError(f"{path} is not a finished run's record: {what}") from error


def _manifest(path: Path) -> Mapping[str, object]:
    if not path.exists():
        return {}
    try:
        held: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(held, dict):
        raise UsageError(f"{path} holds a {type(held).__name__}, not an object")
    return cast("Mapping[str, object]", held)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered where two folders share one."""
    return [
        f"{name} ({names[:index].count(name) + 1})" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def _rows_scored(record: Record) -> tuple[object, ...]:
    return record.task, record.metric, record.data.reported, tuple(record.data.labels)


def _compared(records: Sequence[tuple[str, Record]]) -> list[Figure]:
    """Figures of all runs, one pair for each metric: scores of two metrics share no axis, nor do
    shares of tokens guessed and shares of rows."""
    by_metric: dict[tuple[str, bool], list[tuple[str, Record]]] = {}
    for name, record in records:
        by_metric.setdefault((record.metric, view.of_tokens(record)), []).append((name, record))
    return [
        figure
        for number, alike in enumerate(by_metric.values(), start=1)
        for figure in page.cost_figures(alike, key=f"all-{number}")
    ]
