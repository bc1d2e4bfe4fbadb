"""What a user calls: each function runs a flow, measures what it made, and leaves a run folder.

import stillhouse as sh
run = sh.distill(teacher="my-teacher", data="reviews.csv", student=sh.layers(3), out="small")
print(run.record.student.retention)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.config import (
    DataConfig,
    DistillConfig,
    ExportConfig,
    FinetuneConfig,
    StudentConfig,
    parse,
)
from stillhouse.core.console import Terminal
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.results import Efficiency, ExportResult, Record
from stillhouse.core.rundir import write_json, write_text
from stillhouse.data.sources import load
from stillhouse.evaluation import efficiency
from stillhouse.evaluation.evaluate import calibration, interval, predict
from stillhouse.export import (
    check_parity,
    export_onnx,
    onnx_runner,
    onnx_scores,
    quantize_int8,
    require_onnx,
)
from stillhouse.flows import distill as distilling
from stillhouse.flows import finetune as finetuning
from stillhouse.flows.common import dataset, max_tokens, store_root, teacher_task, tidy
from stillhouse.flows.proof import distillation_record, finetune_record
from stillhouse.models.card import model_card
from stillhouse.models.load import load_classifier, load_tokenizer
from stillhouse.report.html import render
from stillhouse.selfcheck import Check
from stillhouse.selfcheck import selfcheck as run_selfcheck
from stillhouse.tasks.base import Dataset, Task


@dataclass
class Run:
    """A finished run: its folder, its record, and (just after it ran) its model."""

    out: Path
    record: Record
    student: PreTrainedModel | None = field(default=None, repr=False)

    @classmethod
    def open(cls, out: str | Path) -> Run:
        """A run that is on disk. Raises UsageError if there is none."""
        path = Path(out) / "record.json"
        if not path.is_file():
            raise UsageError(f"{out} is no finished run: it has no record.json")
        return cls(Path(out), Record.model_validate_json(path.read_text(encoding="utf-8")))


def layers(which: int | list[int], keep: str = "alternate") -> StudentConfig:
    """A student with so many of the teacher's layers, or with the listed ones (1-based)."""
    return parse(StudentConfig, {"layers": which, "keep": keep})


def _section(kind: type[Any], given: object, key: str) -> object:
    """A config section given as an object of ours, a dict, or its one main value."""
    if isinstance(given, kind):
        return given.model_dump()
    return given if isinstance(given, Mapping) else {key: str(given)}


def distill(
    teacher: str | Path,
    data: str | Path | Mapping[str, Any] | DataConfig,
    *,
    student: StudentConfig | Mapping[str, Any] | str | None = None,
    out: str | Path = "run",
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """Distils `teacher` into `student` on `data`, beside the same student without the teacher.

    `settings` are sections of DistillConfig (training={...}, proof={...}, ...). Raises
    UsageError where the call is wrong and RunError where the run failed.
    """
    values = {
        "teacher": str(teacher),
        "data": _section(DataConfig, data, "path"),
        "student": _section(StudentConfig, student, "model") if student is not None else {},
        **settings,
    }
    return run_distill(parse(DistillConfig, values), Path(out), progress=progress)


def run_distill(config: DistillConfig, out: Path, *, progress: Progress | None = None) -> Run:
    """The distillation of a checked config, to its record and report. A finished one is read."""
    progress = progress or Terminal()
    if (found := _finished(out, config.model_dump(mode="json"), progress)) is not None:
        return found
    if config.export.onnx:
        _check_export(config.export)
    outcome = distilling.distill(config, out, progress=progress)
    setup, student = outcome.setup, outcome.student
    folder = out / "student"
    save_model(student, setup.tokenizer, folder)
    exported = _export(student, outcome.reported, config.export, out, progress)
    costs, timings = _costs(outcome, folder, exported, progress, efficient=config.proof.efficiency)
    exports = [
        _export_result(name, path, scores, timings.get(name), outcome, setup.task)
        for name, path, scores in exported
    ]
    record = distillation_record(outcome, costs, exports)
    write_text(folder / "README.md", model_card(record, teacher=Path(config.teacher).name))
    _finish(out, record, keep=config.keep_checkpoints)
    return Run(out, record, student)  # pyright: ignore[reportArgumentType]


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


def run_finetune(config: FinetuneConfig, out: Path, *, progress: Progress | None = None) -> Run:
    progress = progress or Terminal()
    if (found := _finished(out, config.model_dump(mode="json"), progress)) is not None:
        return found
    done = finetuning.finetune(config, out, progress=progress)
    save_model(done.model, done.tokenizer, out)
    one, many = efficiency.samples(done.reported)
    runner = efficiency.torch_runner(done.model)
    timing = efficiency.time_all({"model": (runner, one, many)})["model"]
    cost = efficiency.measure(
        done.model, out, timing, one, tokens=one["input_ids"].shape[1], memory=True
    )
    record = finetune_record(done, cost)
    _finish(out, record, keep=config.keep_checkpoints)
    return Run(out, record, done.model)  # pyright: ignore[reportArgumentType]


def _finished(out: Path, config: dict[str, Any], progress: Progress) -> Run | None:
    """The run in `out` if it is this one and done."""
    if not (out / "record.json").is_file():
        return None
    from stillhouse.core.rundir import claim

    claim(out, config)
    progress.note(f"{out} is finished already")
    return Run.open(out)


def _finish(out: Path, record: Record, *, keep: bool) -> None:
    write_json(out / "record.json", record.model_dump(mode="json", by_alias=True))
    render([out], out / "report.html")
    tidy(out, keep=keep)


def save_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A folder that `from_pretrained` loads, put in place whole."""
    part = folder.parent / f".{folder.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)  # pyright: ignore[reportCallIssue]
    tokenizer.save_pretrained(part)
    folder.mkdir(parents=True, exist_ok=True)
    for file in part.iterdir():
        file.replace(folder / file.name)
    part.rmdir()


def _check_export(config: ExportConfig) -> None:
    """Raises UsageError before training where an export could not be written after it."""
    if config.onnx:
        require_onnx()


def _export(
    model: nn.Module, reported: Dataset, config: ExportConfig, out: Path, progress: Progress
) -> list[tuple[str, Path, np.ndarray]]:
    """The asked exports: name, file, and their scores on the reported rows."""
    if not config.onnx:
        return []
    made: list[tuple[str, Path, np.ndarray]] = []
    with progress.stage("exporting", 2 if config.int8 else 1, "files") as advance:
        sample = reported.batch(np.arange(min(4, len(reported)))).inputs
        plain = export_onnx(model, sample, out / "onnx" / "model.onnx")
        scores = onnx_scores(onnx_runner(plain), reported)
        made.append(("onnx", plain, scores))
        advance(1)
        if config.int8:
            small = quantize_int8(plain, out / "onnx" / "model-int8.onnx")
            made.append(("onnx-int8", small, onnx_scores(onnx_runner(small), reported)))
            advance(1)
    return made


def _costs(
    outcome: distilling.Outcome,
    folder: Path,
    exported: list[tuple[str, Path, np.ndarray]],
    progress: Progress,
    *,
    efficient: bool,
) -> tuple[dict[str, Efficiency], dict[str, efficiency.Timing]]:
    """What teacher and student cost, and the timings of all, taken in turns."""
    setup = outcome.setup
    models = {"teacher": setup.teacher, "student": outcome.student}
    inputs = {
        "teacher": efficiency.samples(outcome.teacher_reported),
        "student": efficiency.samples(outcome.reported),
    }
    timings: dict[str, efficiency.Timing] = {}
    if efficient:
        runners: dict[str, Any] = {
            name: (efficiency.torch_runner(model), *inputs[name]) for name, model in models.items()
        }
        for name, path, _ in exported:
            runners[name] = (onnx_runner(path), *inputs["student"])
        with progress.stage("measuring speed", len(runners), "models") as advance:
            timings = efficiency.time_all(runners)
            advance(len(runners))
    where = {"teacher": _teacher_folder(setup.config.teacher), "student": folder}
    costs = {}
    for name, model in models.items():
        one = inputs[name][0]
        costs[name] = efficiency.measure(
            model,
            where[name],
            timings.get(name),
            one,
            tokens=one["input_ids"].shape[1],
            memory=efficient,
        )
    return costs, timings


def _teacher_folder(name: str) -> Path:
    """The folder of a teacher's weights; a hub model's is its snapshot."""
    from huggingface_hub import snapshot_download

    from stillhouse.models.load import resolve

    found = resolve(name)
    return (
        found if isinstance(found, Path) else Path(snapshot_download(found, local_files_only=True))
    )


def _export_result(
    name: str,
    path: Path,
    scores: np.ndarray,
    timing: efficiency.Timing | None,
    outcome: distilling.Outcome,
    task: Task,
) -> ExportResult:
    """Raises RunError where the fp32 export's scores are not the student's."""
    original = outcome.best.scores_NK
    if name == "onnx":
        check_parity(scores, original)
    gold = outcome.reported.gold_N
    mine, theirs = task.predictions(scores, gold), task.predictions(original, gold)
    return ExportResult(
        format=name,
        path=f"{path.parent.name}/{path.name}",
        bytes=path.stat().st_size,  # pyright: ignore
        latency_ms=timing.latency_ms if timing else None,
        latency_p95_ms=timing.latency_p95_ms if timing else None,
        throughput_per_s=timing.throughput_per_s if timing else None,
        score=task.score(mine)[task.metric],
        agreement=task.agreement(mine.answers_N, theirs.answers_N),
        max_difference=float(np.abs(scores - original).max()),
    )


def label(
    teacher: str | Path,
    data: str | Path | Mapping[str, Any] | DataConfig,
    *,
    out: str | Path,
    progress: Progress | None = None,
    **settings: Any,
) -> int:
    """Writes the teacher's answers to `data` into the cache folder `out`; how many rows it covers."""
    values = {
        "teacher": str(teacher),
        "data": _section(DataConfig, data, "path"),
        **settings,
        "cache": str(out),
    }
    config = parse(DistillConfig, values)
    return distilling.label_only(config, progress=progress or Terminal())[1]


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
    config = parse(DataConfig, dict(_section(DataConfig, data, "path")))  # pyright: ignore
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
        from stillhouse.numerics import stats

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
    import torch

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
            _teacher_folder(name),
            timings[name],
            inputs(model, 1),
            tokens=tokens,
            memory=memory,
        )
        for name, model in loaded.items()
    }


def export(model: str | Path, out: str | Path, *, int8: bool = False) -> dict[str, Any]:
    """Writes a model as ONNX (and int8 ONNX) into the folder `out`; what was checked."""
    import torch

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


def report(runs: list[str | Path], out: str | Path) -> Path:
    """One page of one or several runs, side by side."""
    return render([Path(run) for run in runs], Path(out))


def selfcheck(
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
    "bench",
    "distill",
    "evaluate",
    "export",
    "finetune",
    "label",
    "layers",
    "report",
    "selfcheck",
]
