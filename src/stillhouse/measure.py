"""Measuring models that are finished: their scores, their speed, and what an export changes."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stillhouse.core.config import WRITING, DataConfig
from stillhouse.core.console import Terminal
from stillhouse.core.errors import RunError, UsageError
from stillhouse.core.precision import precision_of
from stillhouse.core.progress import Advance, Progress
from stillhouse.core.results import Efficiency
from stillhouse.core.settings import model_path, parse
from stillhouse.core.types import Predictions
from stillhouse.core.verdicts import ONE_SEED
from stillhouse.data.memory import data_section
from stillhouse.data.sources import load
from stillhouse.evaluation import efficiency
from stillhouse.evaluation.comparison import compare
from stillhouse.evaluation.evaluate import calibration, groups_of, interval, predict
from stillhouse.evaluation.writing import mean_tokens, writing_runner
from stillhouse.export import check_parity, export_onnx, onnx_runner, quantize_int8, scored
from stillhouse.flows.common import (
    dataset,
    kind_of,
    load_answering,
    row_task,
    store_root,
    teacher_task,
)
from stillhouse.flows.labelling import label_rule
from stillhouse.flows.training_data import seen_before
from stillhouse.flows.writers import load_any, reported_by_writer
from stillhouse.models.limits import check_tokenizer, max_tokens, tokenizer_for
from stillhouse.models.load import load_tokenizer, model_folder
from stillhouse.tasks.base import Data, Task


def evaluate(
    model: str | Path,
    data: str | Path | DataConfig | Sized,
    *,
    against: str | Path | None = None,
    precision: str = "auto",
    margin: float | None = None,
    resamples: int = 2000,
    cache: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A model's metrics on `data`'s reported rows, with an interval; with `against`, also the
    paired gain over that model, their agreement, and the verdict: on these two models only.
    margin: the largest difference that counts as none, in points; left out, one."""
    progress = progress or Terminal()
    settled, store = precision_of(precision, "cpu"), store_root(cache)
    model = model_path(model, "model")
    config = parse(DataConfig, data_section(data, store))
    first, task, rows = model_and_rows(model, config, store, progress)
    answers = _answers(first, rows, task, settled, f"answering reported rows, {model}", progress)
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {
        "model": str(model),
        "rows": len(answers.gold_N),
        "metric": task.metric,
        "precision": settled,
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
    }
    if against is not None:
        against = model_path(against, "against")
        second, other, their_rows = model_and_rows(str(against), config, store, progress)
        if sorted(other.choices) != sorted(task.choices):
            raise UsageError(f"{against} has other labels: {', '.join(other.choices)}")
        title = f"answering reported rows, {against}"
        theirs = _answers(second, their_rows, other, settled, title, progress)
        moved = _same_choices(theirs.answers_N, other, task)
        with progress.stage("comparing", 1, "models") as advance:
            compared = compare(
                task, [answers.answers_N], [moved], answers.gold_N,
                margin=margin, resamples=resamples, rng=rng, groups=groups_of(rows),
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
            "not_comparable": compared.reason,
            "more_rows": needed and needed.more_rows,
            "agreement": task.agreement(answers.answers_N, moved),
        }
    return found


def _answers(
    model: PreTrainedModel, rows: Data, task: Task, precision: str, title: str, progress: Progress
) -> Predictions:
    with progress.stage(title, len(rows), "rows") as advance:
        return predict(model, rows, task, precision=precision, progress=advance)


def _same_choices(answers: np.ndarray, other: Task, task: Task) -> np.ndarray:
    """Class ids of one task as those of another with the same names."""
    if task.name != "classification":
        return answers
    return np.array([task.choices.index(name) for name in other.choices])[answers]


def model_and_rows(
    name: str, config: DataConfig, store: Path, progress: Progress
) -> tuple[PreTrainedModel, Task, Data]:
    """A model with the reported rows in its own tokens."""
    if (kind := kind_of(name)) in WRITING:
        of = "seq2seq" if kind == "seq2seq" else "causal_lm"
        return reported_by_writer(name, of, config, store, progress)
    rule = label_rule("auto", name, config.label_map)
    splits = load(config, store / "rows", rule=rule, progress=progress)
    for note in seen_before([(name, name)], splits):
        progress.note(note)
    asked = row_task("auto", [splits.reported])
    model = load_answering(asked, name)
    task = teacher_task(
        model.config, [splits.reported], asked=asked, label_map=config.label_map, metric=None
    )
    length = max_tokens(model, config.tokens(task.name))
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
    return model, task, rows


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
    tokenizer.save_pretrained(out)
    loaded.config.save_pretrained(out)
    with torch.no_grad():
        original = scored(loaded)(**sample).numpy()
    try:
        worst = check_parity(onnx_runner(path)(sample), original)
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
