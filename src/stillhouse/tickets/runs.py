"""A search or a transfer from its checked config to its folder: models, record, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stillhouse.core.console import Terminal
from stillhouse.core.progress import Progress
from stillhouse.core.rundir import atomic, check_free, claim, write_json
from stillhouse.core.ticket_results import Storage, TicketsRecord, TransferRecord
from stillhouse.evaluation.efficiency import folder_bytes
from stillhouse.evaluation.writing import keep_as_judged
from stillhouse.flows.common import tidy
from stillhouse.flows.gold import prepare_gold
from stillhouse.flows.stages import load_trained
from stillhouse.flows.training_data import write_training_data
from stillhouse.models.save import save_model
from stillhouse.report import render
from stillhouse.tickets.config import TicketsConfig, TransferConfig
from stillhouse.tickets.find import Found, find
from stillhouse.tickets.record import tickets_record
from stillhouse.tickets.scores import MOVED
from stillhouse.tickets.search import Search, masks_path
from stillhouse.tickets.transfer import content_of, transfer
from stillhouse.training.sparse import MASKS, load_masks, save_masks, save_sparse


@dataclass
class TicketsRun:
    """A finished search: its folder and its record."""

    out: Path
    record: TicketsRecord

    @classmethod
    def open(cls, out: str | Path) -> TicketsRun:
        """A search that is on disk. Raises UsageError if there is none."""
        return cls(Path(out), TicketsRecord.open(Path(out), "search for tickets"))


def run_tickets(
    config: TicketsConfig, out: Path, *, progress: Progress | None = None
) -> TicketsRun:
    """The search of a checked config, to its record and report. A finished one is read."""
    progress = progress or Terminal()
    if (out / "record.json").is_file():
        content = prepare_gold(config, progress, metric=config.evaluation.metric).content
        claim(out, config.model_dump(mode="json"), content)
        progress.note(f"{out} is finished already")
        _drawn(out)
        return TicketsRun.open(out)
    found = find(config, out, progress=progress)
    storage = _save(found, out, progress)
    with progress.stage("comparing", 1, "records") as advance:
        record = tickets_record(found, out, storage)
        advance(1)
    write_json(out / "record.json", record.model_dump(mode="json", by_alias=True))
    render([out], out / "report.html")
    tidy(out, keep=config.keep_checkpoints)
    for warning in record.warnings:
        if warning not in found.gold.notes:  # told before
            progress.note(warning)
    return TicketsRun(out, record)


def run_transfer(
    config: TransferConfig, out: Path, *, progress: Progress | None = None
) -> TransferRecord:
    """The transfer of a checked config, to its record and report. A finished one is read."""
    progress = progress or Terminal()
    if (out / "record.json").is_file():
        check_free(out, config.model_dump(mode="json"), content_of(config, out))
        progress.note(f"{out} is finished already")
        _drawn(out)
        return TransferRecord.open(out, "transfer")
    record = transfer(config, out, progress=progress)
    write_json(out / "record.json", record.model_dump(mode="json", by_alias=True))
    render([out], out / "report.html")
    tidy(out, keep=False)
    for warning in record.warnings:
        progress.note(warning)
    return record


def _drawn(out: Path) -> None:
    """The page of a finished run, if it was killed before that was drawn."""
    if not (out / "report.html").is_file():
        render([out], out / "report.html")


def _save(found: Found, out: Path, progress: Progress) -> Storage:
    """Writes the best seed's ticket, before and after its training, and what all models answered;
    the bytes of the trained one."""
    config, gold, seed = found.config, found.gold, found.best.seed
    masks, facts = load_masks(masks_path(out, seed, config.prune.rounds))
    search = Search(config, gold, out, progress)
    start = search.rewound(seed)
    with torch.no_grad():
        for name, parameter in start.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])
    save_model(start, gold.tokenizer, out / "ticket")
    save_masks(out / "ticket" / MASKS, masks, **facts)
    trained: Any = load_trained(found.best, search.movable(gold.make(seed)))
    if hasattr(trained, MOVED):
        delattr(trained, MOVED)
    keep_as_judged(trained, gold.task)
    save_model(trained, gold.tokenizer, out / "model")
    write_training_data(out / "model", gold.data, before=[config.model])
    save_masks(out / "model" / MASKS, masks, **facts)
    save_sparse(out / "model-sparse.safetensors", trained, masks)
    answers = {
        f"{r.kind}-{r.round}|{r.seed}": torch.from_numpy(r.trained.scores_NK) for r in found.rungs
    }
    with atomic(out / "answers.safetensors") as temporary:
        save_file(answers, temporary)
    sparse = (out / "model-sparse.safetensors").stat().st_size
    weights = folder_bytes(out / "model") - (out / "model" / MASKS).stat().st_size
    return Storage(dense=weights, sparse=sparse)
