"""A run from its checked config to its folder: flow, measurements, exports, record, report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.config import WRITING, DistillConfig, ExportConfig, FinetuneConfig
from stillhouse.core.console import Terminal
from stillhouse.core.errors import RunError
from stillhouse.core.inference import Inference, write_inference
from stillhouse.core.progress import Progress
from stillhouse.core.results import BatchResult, Efficiency, ExportResult, Record
from stillhouse.core.rundir import claim, write_json, write_text
from stillhouse.evaluation import efficiency
from stillhouse.evaluation.batches import batch_result
from stillhouse.evaluation.evaluate import score_rows
from stillhouse.evaluation.writing import keep_as_judged, mean_tokens, writing_runner
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
from stillhouse.flows.common import tidy
from stillhouse.flows.prepare import prepare
from stillhouse.flows.proof import distillation_record, finetune_record
from stillhouse.flows.stages import load_trained
from stillhouse.flows.training_data import write_training_data
from stillhouse.models.card import model_card
from stillhouse.models.load import model_folder
from stillhouse.models.save import save_model
from stillhouse.prediction.facts import complete_export, facts_of
from stillhouse.prediction.reported import FILE as PREDICTIONS
from stillhouse.prediction.reported import has_rows, write_distilled, write_predictions
from stillhouse.report import render
from stillhouse.tasks.base import Task
from stillhouse.training.sparse import MASKS, save_masks

ExportFormat = Literal["onnx", "onnx-int8"]
NO_EXPORT = {
    "masked_lm": "a masked language model is made to be trained on: no ONNX is written",
    "seq2seq": "models that write are not exported to ONNX: take the student's folder",
}


class Exported(NamedTuple):
    """An exported file, its scores on the test rows, and what its answers owe to a batch."""

    format: ExportFormat
    path: Path
    scores: np.ndarray
    batches: BatchResult | None = None


@dataclass
class Run:
    """A finished run: its folder, its record, and (just after it ran) its model."""

    out: Path
    record: Record
    student: PreTrainedModel | None = field(default=None, repr=False)

    @classmethod
    def open(cls, out: str | Path) -> Run:
        """A run that is on disk. Raises UsageError if there is none."""
        return cls(Path(out), Record.open(Path(out), "run"))


def run_distill(config: DistillConfig, out: Path, *, progress: Progress | None = None) -> Run:
    """The distillation of a checked config, to its record and report. A finished one is read."""
    progress = progress or Terminal()
    if (out / "record.json").is_file():
        content = prepare(config, progress=progress).content
        return _finished(out, config.model_dump(mode="json"), content, progress)
    export = _exported(config)
    asked = config.export.onnx and "onnx" in config.export.model_fields_set
    if asked and not export.onnx:
        progress.note(NO_EXPORT.get(config.task, NO_EXPORT["seq2seq"]))
    if export.onnx:
        _check_export(export)
    outcome = distilling.distill(config, out, progress=progress)
    setup, student = outcome.setup, outcome.student
    folder = out / "student"
    keep_as_judged(student, setup.task)
    save_model(student, setup.tokenizer, folder)
    before = [name for _, name in distilling.starts(config)]
    write_training_data(folder, setup.data, before=before, unlabelled=True)
    facts = facts_of(student, setup, config)
    if facts is not None:
        write_inference(folder, facts)
    exported = _export(student, outcome, export, out, progress)
    if exported and facts is not None:
        onnx = exported[0].path.parent
        complete_export(onnx, student, setup.tokenizer, facts, source=folder)
    costs, timings = _costs(
        outcome, folder, exported, progress, efficient=config.evaluation.efficiency
    )
    with progress.stage("comparing", 1, "records") as advance:
        exports = _export_results(exported, timings, outcome, progress)
        record = distillation_record(outcome, costs, exports, out)
        advance(1)
    teacher = Path(config.teacher).name
    card = model_card(record, teacher=teacher, inference=facts)
    write_text(folder / "README.md", card)
    if record.best == "baseline":
        _keep_baseline(outcome, record, out / "baseline", teacher, facts)
    kept = {each.format for each in exports}
    found = {each.format: each.scores for each in exported if each.format in kept}
    write_distilled(outcome, found, out)
    _finish(out, record, keep=config.keep_checkpoints)
    return Run(out, record, student)  # pyright: ignore[reportArgumentType]


def _keep_baseline(
    outcome: distilling.Outcome, record: Record, folder: Path, teacher: str,
    facts: Inference | None,
) -> None:  # fmt: skip
    """The better baseline in a folder of its own, as the student has one; it is not exported."""
    setup, best = outcome.setup, outcome.best_baseline
    assert best is not None, "what was not trained is not the best"
    model = load_trained(best, setup.make(best.seed))
    keep_as_judged(model, setup.task)
    save_model(model, setup.tokenizer, folder)
    before = [name for _, name in distilling.starts(setup.config)]
    write_training_data(folder, setup.data, before=before)
    card = model_card(record, teacher=teacher, role="baseline", inference=facts)
    write_text(folder / "README.md", card)
    if facts is not None:
        write_inference(folder, facts)


def run_finetune(config: FinetuneConfig, out: Path, *, progress: Progress | None = None) -> Run:
    progress = progress or Terminal()
    if (out / "record.json").is_file():
        content = finetuning.content_of(config, progress)
        return _finished(out, config.model_dump(mode="json"), content, progress)
    done = finetuning.finetune(config, out, progress=progress)
    keep_as_judged(done.model, done.gold.task)
    save_model(done.model, done.gold.tokenizer, out)
    facts = facts_of(done.model, done.gold, config)
    if facts is not None:
        write_inference(out, facts)
    if done.masks:
        save_masks(out / MASKS, done.masks)
    cost = _cost(done, config, out, progress)
    with progress.stage("comparing", 1, "records") as advance:
        record = finetune_record(done, cost)
        advance(1)
    task, splits = done.gold.task, done.gold.splits
    if splits is not None and has_rows(task):
        answers = {"model": task.predictions(done.trained.scores_NK, done.reported)}
        write_predictions(out / PREDICTIONS, splits.reported, task, done.reported, answers)
    _finish(out, record, keep=config.keep_checkpoints)
    return Run(out, record, done.model)  # pyright: ignore[reportArgumentType]


def _cost(
    done: finetuning.Finetuned, config: FinetuneConfig, out: Path, progress: Progress
) -> Efficiency:
    """What a fine-tuned model costs; its speed and memory where they are asked for."""
    one, many = efficiency.samples(done.reported)
    timing = written = None
    if config.efficiency:
        with progress.stage("measuring speed", 1, "models") as advance:
            runner, written = _runner(
                done.model, done.gold.tokenizer, many, writes=config.task in WRITING
            )
            timing = efficiency.time_all({"model": (runner, one, many)})["model"]
            advance(1)
    tokens = one["input_ids"].shape[1]
    return efficiency.measure(
        done.model, out, timing, one, tokens=tokens, memory=config.efficiency, written=written
    )


def _finished(
    out: Path, config: dict[str, Any], content: dict[str, str], progress: Progress
) -> Run:
    """The run in `out`, which is done. Raises UsageError if it is another one."""
    claim(out, config, content)
    progress.note(f"{out} is finished already")
    return Run.open(out)


def _finish(out: Path, record: Record, *, keep: bool) -> None:
    write_json(out / "record.json", record.model_dump(mode="json", by_alias=True))
    render([out], out / "report.html")
    tidy(out, keep=keep)


def _exported(config: DistillConfig) -> ExportConfig:
    """What is exported: nothing of language models."""
    return ExportConfig(onnx=False) if config.task in ("masked_lm", *WRITING) else config.export


def _check_export(config: ExportConfig) -> None:
    """Raises UsageError before training where an export could not be written after it."""
    if config.onnx:
        require_onnx()


def _export(
    model: nn.Module, outcome: distilling.Outcome, config: ExportConfig, out: Path,
    progress: Progress,
) -> list[Exported]:  # fmt: skip
    """The asked exports. One that fails is a warning: what was trained is not lost for it."""
    if not config.onnx:
        return []
    made: list[Exported] = []
    reported, task = outcome.reported, outcome.setup.task
    with progress.stage("exporting", 2 if config.int8 else 1, "files") as advance:
        try:
            sample = reported.batch(np.arange(min(4, len(reported)))).inputs
            plain = export_onnx(model, sample, out / "onnx" / "model.onnx")
            scores = onnx_scores(onnx_runner(plain), reported, task)
            made.append(Exported("onnx", plain, scores))
            advance(1)
            if config.int8:
                small = quantize_int8(plain, out / "onnx" / "model-int8.onnx")
                run = onnx_runner(small)
                batches = batch_result(
                    lambda data, size: onnx_scores(run, data, task, size=size), reported, task
                )
                scores = onnx_scores(run, reported, task)
                made.append(Exported("onnx-int8", small, scores, batches))
                advance(1)
        except RunError as error:
            _warn(str(error), outcome, progress)
            good = {each.path for each in made}
            for path in (out / "onnx").glob("*.onnx"):
                if path not in good:  # written, and then found not to run
                    path.unlink()
    return made


def _export_results(
    exported: list[Exported], timings: Mapping[str, efficiency.Timing],
    outcome: distilling.Outcome, progress: Progress,
) -> list[ExportResult]:  # fmt: skip
    """What the exports are worth. Where the float32 file's scores are not the student's, none is
    kept."""
    found: list[ExportResult] = []
    for each in exported:
        try:
            result = _export_result(each, timings.get(each.format), outcome, outcome.setup.task)
        except RunError as error:
            _warn(str(error), outcome, progress)
            shutil.rmtree(each.path.parent)
            return []
        found.append(result)
    return found


def _warn(text: str, outcome: distilling.Outcome, progress: Progress) -> None:
    """Shows a warning, and puts it into the record."""
    progress.note(text)
    outcome.notes.append(text)


def _costs(
    outcome: distilling.Outcome,
    folder: Path,
    exported: list[Exported],
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
    written: dict[str, float | None] = {}
    if efficient:
        tokenizers = {"teacher": setup.teacher_tokenizer, "student": setup.tokenizer}
        runners: dict[str, Any] = {}
        for name, model in models.items():
            runner, written[name] = _runner(
                model, tokenizers[name], inputs[name][1], writes=setup.writes
            )
            runners[name] = (runner, *inputs[name])
        for each in exported:
            runners[each.format] = (onnx_runner(each.path), *inputs["student"])
        with progress.stage("measuring speed", len(runners), "models") as advance:
            timings = efficiency.time_all(runners)
            advance(len(runners))
    where = {"teacher": model_folder(setup.config.teacher), "student": folder}
    costs = {}
    with progress.stage("measuring cost", len(models), "models") as advance:
        for name, model in models.items():
            one = inputs[name][0]
            costs[name] = efficiency.measure(
                model,
                where[name],
                timings.get(name),
                one,
                tokens=one["input_ids"].shape[1],
                memory=efficient,
                written=written.get(name),
            )
            advance(1)
    return costs, timings


def _runner(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, many: dict[str, Tensor], *, writes: bool
) -> tuple[efficiency.Runner, float | None]:
    """What is timed of a model: its forward, or its writing; and how long its texts are then."""
    if not writes:
        return efficiency.torch_runner(model), None
    runner = writing_runner(model, tokenizer)
    return runner, mean_tokens(runner(many))


def _in_float32(outcome: distilling.Outcome) -> np.ndarray:
    """The student's scores of the reported rows as its ONNX file, which is float32, should give
    them."""
    if outcome.stages[-1].training.precision == "float32":
        return outcome.best.scores_NK
    return score_rows(outcome.student, outcome.reported, outcome.setup.task)


def _export_result(
    exported: Exported,
    timing: efficiency.Timing | None,
    outcome: distilling.Outcome,
    task: Task,
) -> ExportResult:
    """Raises RunError where the fp32 export's scores are not the student's."""
    name, path, scores, batches = exported
    original = _in_float32(outcome)
    compared = slice(1, None) if task.name == "span" else slice(None)  # a span's score, not places
    difference = np.abs(scores - original)[:, compared].max()
    if name == "onnx":
        check_parity(scores[:, compared], original[:, compared])
    mine, theirs = (task.predictions(each, outcome.reported) for each in (scores, original))
    return ExportResult(
        format=name,
        path=f"{path.parent.name}/{path.name}",
        bytes=path.stat().st_size,
        latency_ms=timing.latency_ms if timing else None,
        latency_p95_ms=timing.latency_p95_ms if timing else None,
        throughput_per_s=timing.throughput_per_s if timing else None,
        score=task.score(mine)[task.metric],
        agreement=task.agreement(mine.answers_N, theirs.answers_N),
        max_difference=float(difference),
        tokens=timing.tokens if timing else None,
        batch=timing.batch if timing else None,
        batch_tokens=timing.batch_tokens if timing else None,
        batches=batches,
    )
