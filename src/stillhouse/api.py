"""What a user calls: each function runs a flow, measures what it made, and leaves a run folder.

import stillhouse as sh
run = sh.distill(teacher="my-teacher", data="reviews.csv", student=sh.layers(3), out="small")
print(run.record.student.retention)
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor, nn

from stillhouse.core.config import (
    AugmentConfig,
    DataConfig,
    DistillConfig,
    FinetuneConfig,
    NewConfig,
    StudentConfig,
)
from stillhouse.core.console import Terminal
from stillhouse.core.progress import Progress
from stillhouse.core.settings import model_path, parse, path_of, section
from stillhouse.core.ticket_results import TransferRecord
from stillhouse.core.types import Tap
from stillhouse.data.memory import data_section
from stillhouse.data.sources import load
from stillhouse.extract.config import AuditConfig
from stillhouse.extract.runs import AuditRun, run_audit
from stillhouse.extract.victim import Service
from stillhouse.flows import distill as distilling
from stillhouse.flows.augment import augmented, write_rows
from stillhouse.flows.common import store_root
from stillhouse.flows.labelling import label_rule
from stillhouse.flows.methods import method as named_method
from stillhouse.flows.new import run_new
from stillhouse.measure import bench, evaluate, to_onnx
from stillhouse.models.load import load_classifier, load_tokenizer
from stillhouse.models.taps import reading
from stillhouse.prediction.run import predict
from stillhouse.removal import RemovalRun, run_removal
from stillhouse.report import render
from stillhouse.runs import Run, run_distill, run_finetune
from stillhouse.selfcheck import Check
from stillhouse.selfcheck import selfcheck as run_selfcheck
from stillhouse.tickets.config import RemoveConfig, TicketsConfig, TransferConfig
from stillhouse.tickets.runs import TicketsRun, run_tickets, run_transfer
from stillhouse.training import sparse

# What data may be: a path or hub name, settings of the section, or rows: a DataFrame, a Dataset, a
# list of dicts, or a mapping of splits (train, test, ...) to these.
Rows = str | Path | DataConfig | Sized


def layers(which: int | list[int], keep: str = "alternate") -> StudentConfig:
    """A student with so many of the teacher's layers, or with the listed ones (1-based)."""
    return parse(StudentConfig, {"layers": which, "keep": keep})


def _data(data: Rows, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The section `data`; rows are kept in the run's cache."""
    return data_section(data, store_root(settings.get("cache")))


def _folder(out: object) -> Path:
    return Path(path_of(out, "out")).expanduser()


def _student(given: object) -> dict[str, Any]:
    """The section `student` of a shape, its settings, or a model's name."""
    if given is None:
        return {}
    if isinstance(given, StudentConfig | Mapping):
        return section(StudentConfig, given, "model")
    return {"model": model_path(given, "student")}


def distill(
    teacher: str | Path,
    data: Rows,
    *,
    student: StudentConfig | Mapping[str, Any] | str | None = None,
    out: str | Path = "run",
    method: str | None = None,
    corpus: str | Path | None = None,
    seeds: int | list[int] | None = None,
    baseline: bool | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """Distils `teacher` into `student` on `data`, beside the same student without the teacher.

    `method`: a published method's objective or stages by name (tinybert, pkd-skip, ...); `corpus`:
    running text for those that begin on some. `seeds`: how many, or which (3 by default).
    `settings` are sections of DistillConfig (training={"epochs": 5}, objective=[...], ...).
    Raises UsageError where the call is wrong and RunError where the run failed.
    """
    evaluation = dict(settings.pop("evaluation", {}))
    if seeds is not None:
        evaluation["seeds"] = list(range(seeds)) if isinstance(seeds, int) else seeds
    if baseline is not None:
        evaluation["baseline"] = baseline
    values = {
        "teacher": model_path(teacher, "teacher"),
        "data": _data(data, settings),
        "student": _student(student),
        "evaluation": evaluation,
        **(named_method(method, path_of(corpus, "corpus") if corpus else None) if method else {}),
        **settings,
    }
    return run_distill(parse(DistillConfig, values), _folder(out), progress=progress)


def finetune(
    model: str | Path,
    data: Rows,
    *,
    out: str | Path,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """Fine-tunes `model` on gold labels; `out` is then a model folder and a run at once."""
    values = {
        "model": model_path(model, "model"),
        "data": _data(data, settings),
        **settings,
    }
    return run_finetune(parse(FinetuneConfig, values), _folder(out), progress=progress)


def new(
    task: str,
    data: Rows | None = None,
    *,
    out: str | Path,
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Makes a small untrained model and its tokenizer, learnt from the training rows of `data`
    only, in the model folder `out`; what was made.

    `task`: seq2seq or causal_lm. `settings` are those of NewConfig (tokenizer, vocabulary or
    tokenizer_from, family, width, layers, ...). Raises UsageError where the call is wrong.
    """
    values = {"task": task, **settings}
    if data is not None:
        values["data"] = _data(data, settings)
    return run_new(parse(NewConfig, values), _folder(out), progress or Terminal()).facts


def find_tickets(
    model: str | Path,
    data: Rows,
    *,
    out: str | Path,
    sparsity: float | None = None,
    rounds: int | None = None,
    seeds: int | list[int] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> TicketsRun:
    """Searches a lottery ticket of `model` for every seed, beside its controls.

    `settings` are sections of TicketsConfig (training={...}, prune={...}, evaluation={...}). Raises
    UsageError where the call is wrong and RunError where the run failed.
    """
    prune, evaluation = dict(settings.pop("prune", {})), dict(settings.pop("evaluation", {}))
    prune |= {k: v for k, v in (("sparsity", sparsity), ("rounds", rounds)) if v is not None}
    if seeds is not None:
        evaluation["seeds"] = list(range(seeds)) if isinstance(seeds, int) else seeds
    values = {
        "model": model_path(model, "model"),
        "data": _data(data, settings),
        "prune": prune,
        "evaluation": evaluation,
        **settings,
    }
    return run_tickets(parse(TicketsConfig, values), _folder(out), progress=progress)


def transfer_tickets(
    runs: list[str | Path], *, out: str | Path, progress: Progress | None = None, **settings: Any
) -> TransferRecord:
    """Trains the ticket of every finished search on the task of every other."""
    values = {"runs": [path_of(run, "run") for run in runs], **settings}
    return run_transfer(parse(TransferConfig, values), _folder(out), progress=progress)


def remove(
    model: str | Path,
    data: Rows,
    *,
    out: str | Path,
    recover: Mapping[str, Any] | None = MappingProxyType({}),
    progress: Progress | None = None,
    **settings: Any,
) -> RemovalRun:
    """Cuts layers, heads and neurons out of a fine-tuned model until a target is met (speedup=2,
    parameters=0.7, or layers, heads, neurons), then distils from the whole one.

    `recover`: sections of the distillation's DistillConfig; None leaves it at the cut. Raises
    UsageError for a target that no removal reaches, which names the nearest.
    """
    values = {
        "model": model_path(model, "model"),
        "data": _data(data, settings),
        **settings,
    }
    after = None if recover is None else dict(recover)
    return run_removal(parse(RemoveConfig, values), _folder(out), recover=after, progress=progress)


def audit(
    victim: str | Path | Service,
    data: Rows,
    *,
    thief: str | Path | Mapping[str, Any] | None = None,
    out: str | Path,
    seeds: int | list[int] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> AuditRun:
    """How good a copy of your own `victim` (a model's folder, the YAML description of its API, or a
    guard's client) a stranger gets who can only ask it, and for how much money.

    Nothing but the victim is asked. `thief`: the public model that the stranger begins with, or
    its section of the settings; several are `thieves`. Other settings are sections and entries of
    AuditConfig, such as queries={"kinds": ["wiki"], "budgets": [0.1, 1.0]}, views=["label"],
    limit=5000. Raises UsageError, DataError, ModelError, RunError.
    """
    evaluation = dict(settings.pop("evaluation", {}))
    if seeds is not None:
        evaluation["seeds"] = list(range(seeds)) if isinstance(seeds, int) else seeds
    service = victim if isinstance(victim, Service) else None
    named = model_path(victim, "victim") if service is None else service.name
    values = {
        "victim": named,
        "data": _data(data, settings),
        **settings,
    }
    if thief is not None:
        own = dict(thief) if isinstance(thief, Mapping) else {"model": model_path(thief, "thief")}
        values["thieves"] = [own]
    if evaluation:
        values["evaluation"] = evaluation
    return run_audit(parse(AuditConfig, values), _folder(out), service=service, progress=progress)


def load_masks(path: str | Path) -> dict[str, Tensor]:
    """The masks of a ticket's folder or file, by weight's name: True where a weight stays.

    `finetune` of such a folder holds them; so can a loop of your own. Raises ModelError.
    """
    path = Path(path)
    return sparse.load_masks(path / sparse.MASKS if path.is_dir() else path)[0]


def load_sparse(path: str | Path, model: nn.Module) -> dict[str, Tensor]:
    """Puts a search's model-sparse.safetensors into `model`, of the same architecture; the masks.
    Raises ModelError, for a file that doesn't fit."""
    return sparse.load_sparse(Path(path), model)


def label(
    teacher: str | Path,
    data: Rows,
    *,
    out: str | Path,
    progress: Progress | None = None,
    **settings: Any,
) -> int:
    """Writes the teacher's answers to `data` into the cache folder `out`; how many it holds."""
    values = {
        "teacher": model_path(teacher, "teacher"),
        "data": data_section(data, _folder(out)),
        **settings,
        "cache": str(_folder(out)),
    }
    config = parse(DistillConfig, values)
    return distilling.label_only(config, progress=progress or Terminal())[1]


def augment(
    data: Rows,
    *,
    teacher: str | Path,
    out: str | Path,
    cache: str | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> int:
    """Writes TinyBERT's variants of the training rows into the JSONL file `out`; how many.

    Held-out and reported rows are neither varied nor met by chance. `settings` are those of
    AugmentConfig (copies, share, candidates, model, vectors, seed).
    """
    progress = progress or Terminal()
    config, name = parse(AugmentConfig, settings), model_path(teacher, "teacher")
    store = store_root(cache)
    read = parse(DataConfig, data_section(data, store))
    rule = label_rule("auto", name, read.label_map)
    splits = load(read, store / "rows", rule=rule, progress=progress)
    forbidden = [splits.reported.folded_N2, splits.held_out.folded_N2]
    rows = augmented(
        splits.labelled,
        config,
        teacher=load_classifier(name),
        tokenizer=load_tokenizer(name),
        store=store,
        forbidden_N2=np.concatenate(forbidden),
        progress=progress,
    )
    return write_rows(rows, _folder(out))


def write_report(runs: list[str | Path], out: str | Path) -> Path:
    """One page of one or several runs, side by side."""
    return render([Path(path_of(run, "run")) for run in runs], _folder(out))


def check(
    teacher: str | Path,
    data: Rows,
    *,
    student: StudentConfig | Mapping[str, Any] | str | None = None,
    **settings: Any,
) -> list[Check]:
    """Checks of a pair of models and their rows, each with what it saw."""
    values = {
        "teacher": model_path(teacher, "teacher"),
        "data": _data(data, settings),
        "student": _student(student),
        **settings,
    }
    return run_selfcheck(parse(DistillConfig, values))


__all__ = [
    "Run",
    "Tap",
    "audit",
    "augment",
    "bench",
    "check",
    "distill",
    "evaluate",
    "find_tickets",
    "finetune",
    "label",
    "layers",
    "load_masks",
    "load_sparse",
    "new",
    "predict",
    "reading",
    "remove",
    "to_onnx",
    "transfer_tickets",
    "write_report",
]
