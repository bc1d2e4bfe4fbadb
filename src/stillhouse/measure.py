"""Measuring models that are finished: their scores, their speed, and what an export changes."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.config import WRITING, DataConfig
from stillhouse.core.console import Terminal
from stillhouse.core.errors import ModelError, RunError, UsageError
from stillhouse.core.inference import Inference
from stillhouse.core.precision import precision_of
from stillhouse.core.progress import Advance, Progress
from stillhouse.core.results import BatchResult, Efficiency
from stillhouse.core.settings import model_path, parse
from stillhouse.core.types import Predictions
from stillhouse.core.verdicts import ONE_SEED
from stillhouse.data.labels import LabelRule
from stillhouse.data.memory import data_section
from stillhouse.data.sources import Pool, load
from stillhouse.evaluation import efficiency
from stillhouse.evaluation.batches import batch_result
from stillhouse.evaluation.comparison import compare
from stillhouse.evaluation.evaluate import calibration, groups_of, interval, predict
from stillhouse.evaluation.writing import mean_tokens, writing_runner
from stillhouse.export import (
    check_parity,
    export_onnx,
    onnx_runner,
    onnx_scores,
    quantize_int8,
    scored,
)
from stillhouse.flows.common import (
    dataset,
    kind_of,
    load_answering,
    row_task,
    store_root,
    teacher_task,
    trained_length,
)
from stillhouse.flows.labelling import label_rule
from stillhouse.flows.training_data import seen_before, seen_share
from stillhouse.flows.writers import load_any, reported_by_writer
from stillhouse.models.limits import check_tokenizer, max_tokens, tokenizer_for
from stillhouse.models.load import load_tokenizer, model_folder, resolve
from stillhouse.prediction.facts import complete_export, inference_of
from stillhouse.prediction.onnx_model import facts_beside, onnx_file
from stillhouse.prediction.reported import has_rows, write_predictions
from stillhouse.tasks.base import Data, Task


def evaluate(
    model: str | Path,
    data: str | Path | DataConfig | Sized,
    *,
    against: str | Path | None = None,
    precision: str = "auto",
    margin: float | None = None,
    resamples: int = 2000,
    predictions: str | Path | None = None,
    cache: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A model's metrics on `data`'s reported rows, with an interval; with `against`, also the
    paired gain over that model, their agreement, and the verdict: on these two models only.
    margin: the largest difference that counts as none, in points; left out, one. Either may be an
    ONNX file with its tokenizer beside it, float32 or int8. `predictions`: a JSONL file for the
    rows with their answers."""
    progress = progress or Terminal()
    settled, store = precision_of(precision, "cpu"), store_root(cache)
    model = model_path(model, "model")
    config = parse(DataConfig, data_section(data, store))
    progress = _Once(progress)
    rule = label_rule_of(model, config)
    mine = answered(model, config, store, settled, progress, rule=rule)
    task, rows, answers = mine.task, mine.rows, mine.predictions
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {
        "model": str(model),
        "rows": len(answers.gold_N),
        "metric": task.metric,
        "precision": mine.precision,
        **task.score(answers),
        "interval": interval(
            task,
            [answers.answers_N],
            answers.gold_N,
            resamples=resamples,
            rng=rng,
            groups=groups_of(rows),
        ),
        "calibration_error": calibration(answers)[0],
        **({} if mine.batches is None else {"batches": mine.batches.model_dump()}),
    }
    named = {"model": answers}
    if against is not None:
        against = model_path(against, "against")
        second = answered(against, config, store, settled, progress, rule=rule, like=task)
        other, theirs = second.task, second.predictions
        moved = _same_choices(theirs.answers_N, other, task)
        with progress.stage("comparing", 1, "models") as advance:
            compared = compare(
                task, [answers.answers_N], [moved], answers.gold_N,
                margin=margin, resamples=resamples, rng=rng, groups=groups_of(rows),
                seen=max(mine.seen, second.seen),
            )  # fmt: skip
            advance(1)
        gain, needed = compared.gain, compared.gain.needed
        found["against"] = {
            "model": str(against),
            **other.score(theirs),
            "gain": gain.value,
            "interval": gain.interval,
            "p_value": gain.p_value,
            "margin": gain.margin,
            "verdict": compared.verdict,
            "caveat": ONE_SEED,
            "not_comparable": gain.reason,
            "more_rows": needed and needed.more_rows,
            "agreement": task.agreement(answers.answers_N, moved),
        }
        named["against"] = _in_order(theirs, other, task)
    if predictions is not None:
        if mine.pool is None or not has_rows(task):
            raise UsageError(
                "its tokens are scored, not its answers to rows: leave predictions out"
            )
        write_predictions(Path(predictions), mine.pool, task, rows, named)
    return found


class _Once:
    """Says what two models of the same data have to say of it once."""

    def __init__(self, progress: Progress) -> None:
        self.stage, self._note, self._told = progress.stage, progress.note, set[str]()

    def note(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._note(text)


def label_rule_of(name: str, config: DataConfig) -> LabelRule | None:
    """How labels are read that a folder's model or an ONNX file is measured on; None for a model
    that writes, whose labels are texts."""
    if (path := onnx_file(name)) is None:
        return None if kind_of(name) in WRITING else label_rule("auto", name, config.label_map)
    facts, names = facts_beside(path), config.label_map
    known = [names.get(each, each) for each in facts.labels]
    return LabelRule(values=facts.task == "regression", classes=(*known, *names.values()))


@dataclass(frozen=True)
class Answered:
    """A model's answers to the reported rows, which `pool` holds as they were read (None for
    running text). `batches`: what an int8 file's answers owe to the rows beside them. `seen`: the
    share of the rows that the model says it was trained on."""

    task: Task
    rows: Data
    pool: Pool | None
    predictions: Predictions
    precision: str
    batches: BatchResult | None = None
    seen: float = 0.0


def answered(
    name: str, config: DataConfig, store: Path, precision: str, progress: Progress,
    *, rule: LabelRule | None, like: Task | None = None,
) -> Answered:  # fmt: skip
    """The answers of a folder's model, or of an ONNX file, to rows whose labels are read by `rule`.
    `like`: the task of the model that it is compared with. Raises UsageError where its labels are
    others, before it answers."""
    path = onnx_file(name)
    if path is None:
        model, task, rows, pool, seen = model_and_rows(name, config, store, progress, rule=rule)
        _check_labels(name, task, like)
        with progress.stage(f"answering reported rows, {name}", len(rows), "rows") as advance:
            made = predict(model, rows, task, precision=precision, progress=advance)
        return Answered(task, rows, pool, made, precision, seen=seen)
    task, rows, pool, seen = _onnx_rows(path, config, store, progress, rule)
    _check_labels(name, task, like)
    run = onnx_runner(path)
    with progress.stage(f"answering reported rows, {name}", len(rows), "rows") as advance:
        made = task.predictions(onnx_scores(run, rows, task), rows)
        found = batch_result(lambda data, size: onnx_scores(run, data, task, size=size), rows, task)
        advance(len(rows))
    exact = found is None or not found.changed
    return Answered(task, rows, pool, made, "as in the file", None if exact else found, seen)


def _check_labels(name: str, task: Task, like: Task | None) -> None:
    if like is not None and sorted(task.choices) != sorted(like.choices):
        raise UsageError(f"{name} has other labels: {', '.join(task.choices)}")


def _onnx_rows(
    path: Path, config: DataConfig, store: Path, progress: Progress, rule: LabelRule | None
) -> tuple[Task, Data, Pool, float]:
    """The reported rows as an ONNX file takes them and as they were read, and the share that its
    model was trained on. Raises ModelError, DataError."""
    facts = facts_beside(path)
    splits = load(config, store / "rows", rule=rule, progress=progress)
    place = [(str(path), path.parent)]
    for note in [*splits.notes, *seen_before(place, splits)]:
        progress.note(note)
    asked = "span" if facts.task == "span" else "auto"
    task = teacher_task(
        _head(facts), [splits.reported], asked=asked, label_map=config.label_map, metric=None
    )
    rows = dataset(
        task, splits.reported, _tokenizer_beside(path), store,
        max_length=config.max_length or facts.max_length, progress=progress, title="reported rows",
    )  # fmt: skip
    return task, rows, splits.reported, seen_share(place, splits)


@dataclass(frozen=True)
class _Head:
    """What `teacher_task` asks of a model's config."""

    id2label: Mapping[int, str]
    num_labels: int


def _head(facts: Inference) -> _Head:
    labels = facts.labels or [""]
    return _Head(dict(enumerate(labels)), len(labels))


def _tokenizer_beside(path: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(path.parent)
    except (OSError, ValueError, KeyError):
        raise ModelError(
            f"{path} has no tokenizer beside it: export the model again, or copy its tokenizer's "
            "files there"
        ) from None


def _in_order(predictions: Predictions, other: Task, task: Task) -> Predictions:
    """Another model's predictions with this task's order of choices."""
    if task.name != "classification" or predictions.probabilities_NK is None:
        return predictions
    order = [other.choices.index(name) for name in task.choices]
    return replace(
        predictions,
        answers_N=_same_choices(predictions.answers_N, other, task),
        probabilities_NK=predictions.probabilities_NK[:, order],
    )


def _same_choices(answers: np.ndarray, other: Task, task: Task) -> np.ndarray:
    """Class ids of one task as those of another with the same names."""
    if task.name != "classification":
        return answers
    return np.array([task.choices.index(name) for name in other.choices])[answers]


def model_and_rows(
    name: str, config: DataConfig, store: Path, progress: Progress,
    *, rule: LabelRule | None = None,
) -> tuple[PreTrainedModel, Task, Data, Pool | None, float]:  # fmt: skip
    """A model with the reported rows in its own tokens and as they were read, and the share of them
    that it says it was trained on. `rule`: how labels are read, else as the model knows them."""
    if (kind := kind_of(name)) in WRITING:
        of = "seq2seq" if kind == "seq2seq" else "causal_lm"
        return reported_by_writer(name, of, config, store, progress)
    rule = rule or label_rule_of(name, config)
    splits = load(config, store / "rows", rule=rule, progress=progress)
    for note in [*splits.notes, *seen_before([(name, name)], splits)]:
        progress.note(note)
    asked = row_task("auto", [splits.reported])
    model = load_answering(asked, name)
    task = teacher_task(
        model.config, [splits.reported], asked=asked, label_map=config.label_map, metric=None
    )
    length = max_tokens(model, config.max_length or trained_length(name, task.name))
    tokenizer = load_tokenizer(name)
    check_tokenizer(model, tokenizer)
    rows = dataset(
        task,
        splits.reported,
        tokenizer,
        store,
        max_length=length,
        progress=progress,
        title="reported rows",
    )
    return model, task, rows, splits.reported, seen_share([(name, name)], splits)


def bench(
    models: list[str],
    *,
    tokens: int = 32,
    memory: bool = True,
    progress: Progress | None = None,
) -> dict[str, Efficiency]:
    """Size, FLOPs, latency, throughput and memory of each model, timed in turns."""
    progress = progress or Terminal()
    models = [model_path(model, "model") for model in models]
    kinds = {name: kind_of(name) for name in models}
    loaded = {name: load_any(kind, name) for name, kind in kinds.items()}

    def inputs(model: Any, rows: int) -> dict[str, Any]:
        ids = torch.randint(
            5,
            max(6, min(1000, model.config.vocab_size)),
            (rows, tokens),
            generator=torch.Generator().manual_seed(0),
        )
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    runners, written = {}, {}
    for name, model in loaded.items():
        one, many = inputs(model, 1), inputs(model, efficiency.BATCH)
        run, written[name] = efficiency.torch_runner(model), None
        if kinds[name] in WRITING:
            run = writing_runner(model, load_tokenizer(name))
            written[name] = mean_tokens(run(many))
        runners[name] = (run, one, many)
    with progress.stage("measuring speed", len(runners), "models") as advance:
        timings = efficiency.time_all(runners)
        advance(len(runners))
    found = {}
    with progress.stage("measuring cost", len(loaded), "models") as advance:
        for name, model in loaded.items():
            found[name] = efficiency.measure(
                model,
                model_folder(name),
                timings[name],
                _forward_inputs(model, inputs(model, 1)),
                tokens=tokens,
                memory=memory,
                written=written[name],
            )
            advance(1)
    return found


def _forward_inputs(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What a forward takes: an encoder-decoder its target, too."""
    if not model.config.is_encoder_decoder:
        return inputs
    return {**inputs, "decoder_input_ids": inputs["input_ids"]}


def to_onnx(
    model: str | Path,
    out: str | Path,
    *,
    int8: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes a model as ONNX (and int8 ONNX) into the folder `out`; what was checked."""
    kind = kind_of(model_path(model, "model"))
    if kind in WRITING:
        raise UsageError("models that write are not exported to ONNX: take the model's own folder")
    with (progress or Terminal()).stage("exporting", 2 if int8 else 1, "files") as advance:
        return _exported(kind, model, out, advance, int8=int8)


def _exported(
    kind: str, model: str | Path, out: str | Path, advance: Advance, *, int8: bool
) -> dict[str, Any]:
    loaded = load_answering(kind, str(model))
    tokenizer = tokenizer_for(loaded, load_tokenizer(str(model)))
    check_tokenizer(loaded, tokenizer)
    texts = ["A first sentence.", "And another one, which is a little longer than the first was."]
    sample = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    path = export_onnx(loaded, sample, Path(out) / "model.onnx")
    heads = loaded.config.num_labels
    task = "span" if kind == "span" else "regression" if heads == 1 else "classification"
    facts = inference_of(loaded, tokenizer, task, name=str(model))
    complete_export(Path(out), loaded, tokenizer, facts, source=resolve(str(model)))
    alone = dict(tokenizer(texts[:1], return_tensors="pt"))  # of another shape: both axes are free
    with torch.no_grad():
        original, short = (scored(loaded)(**each).numpy() for each in (sample, alone))
    try:
        run = onnx_runner(path)
        worst = max(check_parity(run(sample), original), check_parity(run(alone), short))
    except RunError:
        path.unlink()
        raise
    found: dict[str, Any] = {"onnx": str(path), "max_difference": worst}
    advance(1)
    if int8:
        small = quantize_int8(path, Path(out) / "model-int8.onnx")
        difference = float(np.abs(onnx_runner(small)(sample) - original).max())
        found |= {"int8": str(small), "int8_max_difference": difference}
        advance(1)
    return found
