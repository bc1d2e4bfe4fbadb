"""What a user calls: each function runs a flow, measures what it made, and leaves a run folder.

import stillhouse as sh
run = sh.distill(teacher="my-teacher", data="reviews.csv", student=sh.layers(3), out="small")
print(run.record.student.retention)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stillhouse.core.config import (
    AugmentConfig,
    DataConfig,
    DistillConfig,
    FinetuneConfig,
    StudentConfig,
)
from stillhouse.core.console import Terminal
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.results import Efficiency
from stillhouse.core.settings import parse
from stillhouse.core.terms import Config
from stillhouse.core.ticket_results import TransferRecord
from stillhouse.core.types import Tap
from stillhouse.data.sources import load
from stillhouse.evaluation import efficiency
from stillhouse.evaluation.evaluate import calibration, interval, predict
from stillhouse.export import (
    check_parity,
    export_onnx,
    onnx_runner,
    quantize_int8,
)
from stillhouse.flows import distill as distilling
from stillhouse.flows.augment import augmented, write_rows
from stillhouse.flows.common import dataset, max_tokens, store_root, teacher_task
from stillhouse.flows.methods import method as named_method
from stillhouse.models.load import load_classifier, load_tokenizer
from stillhouse.models.taps import reading
from stillhouse.numerics import stats
from stillhouse.removal import RemovalRun, run_removal
from stillhouse.report.html import render
from stillhouse.runs import Run, model_folder, run_distill, run_finetune
from stillhouse.selfcheck import Check
from stillhouse.selfcheck import selfcheck as run_selfcheck
from stillhouse.tasks.base import Dataset, Task
from stillhouse.tickets.config import RemoveConfig, TicketsConfig, TransferConfig
from stillhouse.tickets.runs import TicketsRun, run_tickets, run_transfer


def layers(which: int | list[int], keep: str = "alternate") -> StudentConfig:
    """A student with so many of the teacher's layers, or with the listed ones (1-based)."""
    return parse(StudentConfig, {"layers": which, "keep": keep})


def _section(kind: type[Config], given: object, key: str) -> dict[str, Any]:
    """A config section given as an object of ours, a dict, or its one main value."""
    if isinstance(given, kind):
        return given.model_dump()
    return dict(given) if isinstance(given, Mapping) else {key: str(given)}


def distill(
    teacher: str | Path,
    data: str | Path | Mapping[str, Any] | DataConfig,
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
    proof = dict(settings.pop("proof", {}))
    if seeds is not None:
        proof["seeds"] = list(range(seeds)) if isinstance(seeds, int) else seeds
    if baseline is not None:
        proof["baseline"] = baseline
    values = {
        "teacher": str(teacher),
        "data": _section(DataConfig, data, "path"),
        "student": _section(StudentConfig, student, "model") if student is not None else {},
        "proof": proof,
        **(named_method(method, str(corpus) if corpus else None) if method else {}),
        **settings,
    }
    return run_distill(parse(DistillConfig, values), Path(out), progress=progress)


def finetune(
    model: str | Path,
    data: str | Path | Mapping[str, Any] | DataConfig,
    *,
    out: str | Path,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """Fine-tunes `model` on gold labels; `out` is then a model folder and a run at once."""
    values = {"model": str(model), "data": _section(DataConfig, data, "path"), **settings}
    return run_finetune(parse(FinetuneConfig, values), Path(out), progress=progress)


def find_tickets(
    model: str | Path,
    data: str | Path | Mapping[str, Any] | DataConfig,
    *,
    out: str | Path,
    sparsity: float | None = None,
    rounds: int | None = None,
    seeds: int | list[int] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> TicketsRun:
    """Searches a lottery ticket of `model` for every seed, beside its controls.

    `settings` are sections of TicketsConfig (training={...}, prune={...}, proof={...}). Raises
    UsageError where the call is wrong and RunError where the run failed.
    """
    prune, proof = dict(settings.pop("prune", {})), dict(settings.pop("proof", {}))
    prune |= {k: v for k, v in (("sparsity", sparsity), ("rounds", rounds)) if v is not None}
    if seeds is not None:
        proof["seeds"] = list(range(seeds)) if isinstance(seeds, int) else seeds
    values = {
        "model": str(model),
        "data": _section(DataConfig, data, "path"),
        "prune": prune,
        "proof": proof,
        **settings,
    }
    return run_tickets(parse(TicketsConfig, values), Path(out), progress=progress)


def transfer_tickets(
    runs: list[str | Path], *, out: str | Path, progress: Progress | None = None, **settings: Any
) -> TransferRecord:
    """Trains the ticket of every finished search on the task of every other."""
    values = {"runs": [str(run) for run in runs], **settings}
    return run_transfer(parse(TransferConfig, values), Path(out), progress=progress)


def remove(
    model: str | Path,
    data: str | Path | Mapping[str, Any] | DataConfig,
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
    values = {"model": str(model), "data": _section(DataConfig, data, "path"), **settings}
    after = None if recover is None else dict(recover)
    return run_removal(parse(RemoveConfig, values), Path(out), recover=after, progress=progress)


def label(
    teacher: str | Path,
    data: str | Path | Mapping[str, Any] | DataConfig,
    *,
    out: str | Path,
    progress: Progress | None = None,
    **settings: Any,
) -> int:
    """Writes the teacher's answers to `data` into the cache folder `out`; how many it holds."""
    values = {
        "teacher": str(teacher),
        "data": _section(DataConfig, data, "path"),
        **settings,
        "cache": str(out),
    }
    config = parse(DistillConfig, values)
    return distilling.label_only(config, progress=progress or Terminal())[1]


def augment(
    data: str | Path | Mapping[str, Any] | DataConfig,
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
    config = parse(AugmentConfig, settings)
    store = store_root(cache)
    splits = load(parse(DataConfig, _section(DataConfig, data, "path")), store / "rows")
    forbidden = [splits.reported.folded_N2, splits.held_out.folded_N2]
    rows = augmented(
        splits.labelled,
        config,
        teacher=load_classifier(str(teacher)),
        tokenizer=load_tokenizer(str(teacher)),
        store=store,
        forbidden_N2=np.concatenate(forbidden),
        progress=progress,
    )
    return write_rows(rows, Path(out))


def evaluate(
    model: str | Path,
    data: str | Path | Mapping[str, Any] | DataConfig,
    *,
    against: str | Path | None = None,
    resamples: int = 2000,
    cache: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A model's metrics on `data`'s reported rows, with an interval; with `against`, also the
    paired gain over that model and their agreement."""
    progress = progress or Terminal()
    config = parse(DataConfig, _section(DataConfig, data, "path"))
    store = store_root(cache)
    first, task, ready = _ready(str(model), config, store, progress)
    answers = predict(first, ready, task)
    metric: Callable[..., float] = lambda a, g: task.metric_of(a, g, task.metric)  # noqa: E731
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {
        "model": str(model),
        "rows": len(ready),
        "metric": task.metric,
        **task.score(answers),
        "interval": interval(
            task, [answers.answers_N], answers.gold_N, resamples=resamples, rng=rng
        ),
        "calibration_error": calibration(answers)[0],
    }
    if against is not None:
        second, other, theirs_ready = _ready(str(against), config, store, progress)
        if sorted(other.choices) != sorted(task.choices):
            raise UsageError(f"{against} has other labels: {', '.join(other.choices)}")
        theirs = predict(second, theirs_ready, other)
        moved = _same_choices(theirs.answers_N, other, task)
        gain = stats.paired_gain(
            metric, [answers.answers_N], [moved], answers.gold_N, rng=rng, resamples=resamples
        )
        found["against"] = {
            "model": str(against),
            **other.score(theirs),
            "gain": gain.value,
            "interval": gain.interval,
            "p_value": gain.p_value,
            "verdict": stats.verdict(gain),
            "agreement": task.agreement(answers.answers_N, moved),
        }
    return found


def _same_choices(answers: np.ndarray, other: Task, task: Task) -> np.ndarray:
    """Class ids of one task as those of another with the same names."""
    if task.name == "regression":
        return answers
    return np.array([task.choices.index(name) for name in other.choices])[answers]


def _ready(
    name: str, config: DataConfig, store: Path, progress: Progress
) -> tuple[PreTrainedModel, Task, Dataset]:
    """A model with the reported rows in its own tokens."""
    model = load_classifier(name)
    splits = load(config, store / "rows")
    task = teacher_task(
        model.config, [splits.reported], asked="auto", label_map=config.label_map, metric=None
    )
    length = max_tokens(model, config.max_length)
    ready = dataset(
        task,
        splits.reported,
        load_tokenizer(name),
        store,
        max_length=length,
        progress=progress,
        title="reported rows",
    )
    return model, task, ready


def bench(models: list[str], *, tokens: int = 32, memory: bool = True) -> dict[str, Efficiency]:
    """Size, FLOPs, latency, throughput and memory of each model, timed in turns."""
    loaded = {name: load_classifier(name) for name in models}

    def inputs(model: Any, rows: int) -> dict[str, Any]:
        ids = torch.randint(
            5,
            max(6, min(1000, model.config.vocab_size)),
            (rows, tokens),
            generator=torch.Generator().manual_seed(0),
        )
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    runners = {
        name: (efficiency.torch_runner(model), inputs(model, 1), inputs(model, efficiency.BATCH))
        for name, model in loaded.items()
    }
    timings = efficiency.time_all(runners)
    return {
        name: efficiency.measure(
            model,
            model_folder(name),
            timings[name],
            inputs(model, 1),
            tokens=tokens,
            memory=memory,
        )
        for name, model in loaded.items()
    }


def to_onnx(model: str | Path, out: str | Path, *, int8: bool = False) -> dict[str, Any]:
    """Writes a model as ONNX (and int8 ONNX) into the folder `out`; what was checked."""
    loaded = load_classifier(str(model))
    tokenizer = load_tokenizer(str(model))
    texts = ["A first sentence.", "And another one, which is a little longer than the first was."]
    sample = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    path = export_onnx(loaded, sample, Path(out) / "model.onnx")
    tokenizer.save_pretrained(out)
    loaded.config.save_pretrained(out)
    with torch.no_grad():
        original = loaded(**sample).logits.numpy()
    worst = check_parity(onnx_runner(path)(sample), original)
    found: dict[str, Any] = {"onnx": str(path), "max_difference": worst}
    if int8:
        small = quantize_int8(path, Path(out) / "model-int8.onnx")
        difference = float(np.abs(onnx_runner(small)(sample) - original).max())
        found |= {"int8": str(small), "int8_max_difference": difference}
    return found


def write_report(runs: list[str | Path], out: str | Path) -> Path:
    """One page of one or several runs, side by side."""
    return render([Path(run) for run in runs], Path(out))


def check(
    teacher: str | Path,
    data: str | Path | Mapping[str, Any] | DataConfig,
    *,
    student: StudentConfig | Mapping[str, Any] | str | None = None,
    **settings: Any,
) -> list[Check]:
    """Checks of a pair of models and their rows, each with what it saw."""
    values = {
        "teacher": str(teacher),
        "data": _section(DataConfig, data, "path"),
        "student": _section(StudentConfig, student, "model") if student is not None else {},
        **settings,
    }
    return run_selfcheck(parse(DistillConfig, values))


__all__ = [
    "Run",
    "Tap",
    "augment",
    "bench",
    "check",
    "distill",
    "evaluate",
    "find_tickets",
    "finetune",
    "label",
    "layers",
    "reading",
    "remove",
    "to_onnx",
    "transfer_tickets",
    "write_report",
]
