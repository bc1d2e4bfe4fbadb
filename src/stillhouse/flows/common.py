"""What the flows share: where things are stored, models made ready, one training done once."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.config import CorpusConfig, DataConfig
from stillhouse.core.errors import DataError
from stillhouse.core.inference import default_length, read_inference
from stillhouse.core.progress import Progress
from stillhouse.data.cells import SEVERAL_LABELS, has_decimal_comma, is_answers
from stillhouse.data.encoding import Encoded, encode
from stillhouse.data.sources import Pool
from stillhouse.models.kinds import refuse_inputs
from stillhouse.models.load import (
    label_names,
    load_classifier,
    load_config,
    load_span_model,
    resolve,
)
from stillhouse.models.one_logit import as_two_classes, is_one_logit
from stillhouse.tasks.base import Dataset, Task
from stillhouse.tasks.classification import Classification, match_labels
from stillhouse.tasks.regression import Regression
from stillhouse.tasks.span import Span, Spans, span_data


def store_root(cache: str | None) -> Path:
    """Where rows, tokens and teachers' answers are kept: `cache`, or $STILLHOUSE_CACHE, or the
    user's cache folder."""
    given = cache or os.environ.get("STILLHOUSE_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stillhouse"


def seen_labels(pools: list[Pool]) -> set[str]:
    return {str(label) for pool in pools for label in set(pool.labels) if label is not None}


def row_task(asked: str, pools: list[Pool]) -> str:
    """`asked`; where that is auto, span if the labels are answers in SQuAD's form."""
    if asked != "auto":
        return asked
    labels = seen_labels(pools)
    return "span" if labels and all(is_answers(label) for label in labels) else "auto"


def kind_of(name: str) -> str:
    """The task that a stored model's head is for, as its config says: span, seq2seq, causal_lm, or
    auto."""
    config = load_config(name)
    refuse_inputs(name, config)
    named = config.architectures or []
    if getattr(config, "is_encoder_decoder", False) and not any("For" + k in each for each in named
            for k in ("SequenceClassification", "QuestionAnswering")):  # fmt: skip
        return "seq2seq"
    if any(each.endswith(("ForCausalLM", "LMHeadModel")) for each in named):
        return "causal_lm"
    return "span" if any(each.endswith("ForQuestionAnswering") for each in named) else "auto"


def load_answering(
    task: str, name: str, *, labels: list[str] | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A model of spans, or a classifier; with `labels`, its head is made where it lacks it. A
    classifier of one output becomes one of two classes, 0 and 1."""
    if task == "span":
        return load_span_model(
            name, fresh_head=labels is not None, trust_remote_code=trust_remote_code
        )
    model = load_classifier(name, labels=labels, trust_remote_code=trust_remote_code)
    return as_two_classes(model) if is_one_logit(model.config, task) else model


def teacher_task(
    config: object, pools: list[Pool], *, asked: str, label_map: dict[str, str], metric: str | None
) -> Task:
    """The task a teacher's head fits, its choices named as the data names them."""
    if asked == "span":
        return Span(metric)
    heads: int = config.num_labels  # pyright: ignore[reportAttributeAccessIssue]
    problem: str | None = getattr(config, "problem_type", None)
    labels = seen_labels(pools)
    if problem == "multi_label_classification":
        raise DataError(
            f"this teacher gives {SEVERAL_LABELS}, give a classifier of one label a row"
        )
    if asked == "auto" and heads == 1 and problem != "regression" and len(labels) == 2:
        raise DataError(
            f"the model has one output, the data two labels, {' and '.join(sorted(labels))}: say "
            "--task classification (the output is the logit of class 1) or --task regression, or "
            "set problem_type in its config.json (multi_label_classification, or regression)"
        )
    kind = ("regression" if heads == 1 else "classification") if asked == "auto" else asked
    if kind == "regression":
        if heads != 1:
            raise DataError(f"task regression needs a teacher of one output, this one has {heads}")
        return _regression(labels, metric)
    if heads == 1:
        raise DataError("task classification needs a teacher with classes; this one has one output")
    return Classification(match_labels(label_names(config), labels, label_map), metric)


def gold_task(pools: list[Pool], *, asked: str, metric: str | None = None) -> Task:
    """The task that gold labels fit: a regression where they are numbers and not all whole.
    Raises DataError for labels that fit none, or are numbers with a decimal comma."""
    labels = seen_labels(pools)
    if row_task(asked, pools) == "span":
        return Span(metric)
    commas = sorted(filter(has_decimal_comma, labels))
    if asked == "auto" and commas and _are_numbers(labels - {*commas}):
        raise DataError(
            f"labels such as {commas[0]} are numbers with a decimal comma: write a point for it "
            "to learn values, or say --task classification if they are names of classes"
        )
    kind = asked if asked != "auto" else ("regression" if _are_values(labels) else "classification")
    if kind == "regression":
        return _regression(labels, metric)
    if len(labels) < 2:
        raise DataError(
            f"at least two labels are needed, the data has {', '.join(labels) or 'none'}"
        )
    rows = sum(map(len, pools))
    if len(labels) > max(50, rows // 2):
        raise DataError(
            f"{len(labels)} different labels in {rows} rows are no classes: is it another column "
            "(--label-column), or a regression (--task regression)?"
        )
    return Classification(sorted(labels), metric)


def _regression(labels: set[str], metric: str | None) -> Regression:
    """Raises DataError if a label is not a number."""
    task = Regression(metric)
    task.gold(np.array(sorted(labels), dtype=object))
    return task


def _are_numbers(labels: set[str]) -> bool:
    try:
        return all(math.isfinite(float(label)) for label in labels)
    except ValueError:
        return False


def _are_values(labels: set[str]) -> bool:
    """Raises DataError for a NaN among numbers: is it a label that is missing?"""
    try:
        values = [float(label) for label in labels]
    except ValueError:
        return False
    if not all(map(math.isfinite, values)):
        odd = next(label for label in sorted(labels) if not math.isfinite(float(label)))
        raise DataError(f"the label {odd!r} is among numbers: leave it empty where there is none")
    return any(not value.is_integer() for value in values)


def dataset(
    task: Task,
    pool: Pool,
    tokenizer: PreTrainedTokenizerBase,
    store: Path,
    *,
    max_length: int,
    progress: Progress,
    title: str,
) -> Dataset | Spans:
    """A pool as model inputs of one tokenizer, with its gold answers."""
    if task.name == "span":
        found = span_data(
            pool, tokenizer, store, max_length=max_length, progress=progress, title=title
        )
        if found.unplaced:
            progress.note(
                f"{found.unplaced:,} {title}: the answer is not in the passage, nothing to learn"
            )
        return found
    with progress.stage(f"reading {title}", len(pool), "rows") as advance:
        encoded = encode(pool, tokenizer, store / "tokens", max_length=max_length, progress=advance)
    for note in cut_notes({title: encoded}):
        progress.note(note)
    return Dataset(encoded, pool.keys_N2, task.gold(pool.labels))


def cut_notes(read: Mapping[str, object]) -> list[str]:
    """A note for each set of texts, by title, of which some were cut."""
    return [
        cut_note(source.cut, len(source), title, source.max_length)
        for title, source in read.items()
        if isinstance(source, Encoded) and source.cut
    ]


def cut_note(cut: int, count: int, title: str, length: int) -> str:
    return f"{cut:,} of {count:,} {title} cut: longer than {length} tokens"


def corpus_of(data: DataConfig) -> CorpusConfig:
    """The corpus section of a run that is all on running text."""
    return CorpusConfig(
        path=data.path, length=data.tokens("masked_lm"), packed=data.packed, rows=data.labelled_rows
    )


def trained_length(name: str, task: str) -> int:
    """The most tokens of a row that a stored model was trained on, else what is usual."""
    source = resolve(name)
    held = read_inference(source) if isinstance(source, Path) else None
    return held.max_length if held is not None else default_length(task)


DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "embedding_dropout",
    "mlp_dropout",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
)


NUMBERS = ("dropout", "attention_dropout")  # of modules


def set_dropout(model: nn.Module, share: float | None) -> None:
    """Gives every dropout of a model one share, in its config and its modules. None: as it is."""
    if share is None:
        return
    config = getattr(model, "config", None)
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, share)
    for module, name in _dropouts(model):
        setattr(module, name, share)


def _dropouts(model: nn.Module) -> list[tuple[Any, str]]:
    """Where a model's modules keep their shares of dropout. Some have numbers (Marian's and BART's
    layers, ModernBERT's attention); that of activations counts where it is in use. ModernBERT has
    an identity in the place of a dropout that was made with a share of 0: it gets one."""
    found: list[tuple[Any, str]] = []
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Identity) and "drop" in name:
                setattr(module, name, nn.Dropout(0.0))
        numbers = [name for name in NUMBERS if isinstance(getattr(module, name, None), float)]
        of_activations = getattr(module, "activation_dropout", None)
        if isinstance(of_activations, float) and of_activations:  # Funnel's is a module
            numbers.append("activation_dropout")
        found += [(module, name) for name in numbers]
    return found + [(module, "p") for module in model.modules() if isinstance(module, nn.Dropout)]


@dataclass(frozen=True)
class Made:
    """How a model was made, but for its weights: its shares of dropout, and what is trained of it.
    One stage's settings are not to last into the next."""

    config: Any
    shares: dict[str, float | None]
    dropouts: list[tuple[Any, str, float]]
    trained: list[tuple[nn.Parameter, bool]]

    def restore(self) -> None:
        for name, share in self.shares.items():
            setattr(self.config, name, share)
        for module, name, share in self.dropouts:
            setattr(module, name, share)
        for parameter, wanted in self.trained:
            parameter.requires_grad_(wanted)


def state_of(model: nn.Module) -> Made:
    config: Any = getattr(model, "config", None)
    return Made(
        config,
        {name: getattr(config, name) for name in DROPOUTS if hasattr(config, name)},
        [(module, name, getattr(module, name)) for module, name in _dropouts(model)],
        [(p, p.requires_grad) for p in model.parameters()],
    )


def tidy(out: Path, *, keep: bool) -> None:
    if not keep:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
