"""Fine-tune a pretrained model on gold answers: a teacher, where there is none.

Gold answers are the rows' labels, or (masked language models) the tokens of running text.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.config import FinetuneConfig
from stillhouse.core.progress import Progress, Silent
from stillhouse.core.rundir import atomic, claim, manifest, write_json
from stillhouse.core.seeding import shape_seed
from stillhouse.core.terms import TermConfig
from stillhouse.data.corpus import Corpus
from stillhouse.data.sources import Splits, load
from stillhouse.flows.common import (
    TRAINED_ON,
    check_padding,
    dataset,
    gold_task,
    max_tokens,
    store_root,
)
from stillhouse.flows.prepare import corpus_of, read_corpus
from stillhouse.flows.stages import Stage, Trained, load_trained, score_on, train
from stillhouse.models.load import (
    folder_fingerprint,
    head_settings,
    load_classifier,
    load_tokenizer,
)
from stillhouse.models.masked import load_masked_lm
from stillhouse.tasks.base import Data, Task
from stillhouse.tasks.masked_lm import MaskedBlocks, MaskedLM
from stillhouse.training import objective as objectives


@dataclass
class Finetuned:
    config: FinetuneConfig
    task: Task
    splits: Splits | None
    corpus: Corpus | None
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    trained: Trained
    reported: Data
    total_s: float

    @property
    def notes(self) -> list[str]:
        return self.splits.notes if self.splits else self.corpus.notes if self.corpus else []


@dataclass
class _Ready:
    """What is trained, on what. `data`: training, held-out and reported."""

    task: Task
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    splits: Splits | None
    corpus: Corpus | None

    @property
    def content(self) -> str:
        source = self.splits or self.corpus
        assert source is not None
        return source.fingerprint


def content_of(config: FinetuneConfig, progress: Progress | None = None) -> dict[str, str]:
    """Fingerprints of what the config names by path."""
    data = _prepare(config, progress or Silent()).content
    return {"data": data, "model": folder_fingerprint(config.model)}


def _prepare(config: FinetuneConfig, progress: Progress) -> _Ready:
    store, trust = store_root(config.cache), config.trust_remote_code
    tokenizer = load_tokenizer(config.model, trust_remote_code=trust)
    if config.task == "masked_lm":
        model = _masked(config)
        length = max_tokens(model, config.data.max_length)
        corpus = read_corpus(corpus_of(config.data), tokenizer, store, length, progress)
        task = MaskedLM(tokenizer, width=model.config.vocab_size)
        return _Ready(task, model, tokenizer, None, corpus)
    splits = load(config.data, store / "rows")
    pools = [splits.labelled, splits.held_out, splits.reported]
    task = gold_task(pools, asked=config.task)
    return _Ready(task, _classifier(config, task), tokenizer, splits, None)


def _masked(config: FinetuneConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape_seed(config.seed))
        return load_masked_lm(
            config.model, fresh_head=True, trust_remote_code=config.trust_remote_code
        )


def _classifier(config: FinetuneConfig, task: Task) -> PreTrainedModel:
    labels = [""] if task.name == "regression" else task.choices
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape_seed(config.seed))
        model = load_classifier(
            config.model, labels=labels, trust_remote_code=config.trust_remote_code
        )
    for name, value in head_settings(labels).items():
        setattr(model.config, name, value)
    return model


def _datasets(config: FinetuneConfig, ready: _Ready, progress: Progress) -> tuple[Data, ...]:
    """Training, held-out and reported examples."""
    length = max_tokens(ready.model, config.data.max_length)
    if ready.corpus is not None:
        counts = ready.corpus.train.counts() if config.masking.frequency_power else None
        return tuple(
            MaskedBlocks(blocks, config.masking, ready.tokenizer, counts=counts)
            for blocks in (ready.corpus.train, ready.corpus.held_out, ready.corpus.reported)
        )
    assert ready.splits is not None
    store = store_root(config.cache)
    return tuple(
        dataset(
            ready.task,
            pool,
            ready.tokenizer,
            store,
            max_length=length,
            progress=progress,
            title=name,
        )
        for name, pool in (
            ("training rows", ready.splits.labelled),
            ("held-out rows", ready.splits.held_out),
            ("reported rows", ready.splits.reported),
        )
    )


def finetune(config: FinetuneConfig, out: Path, *, progress: Progress | None = None) -> Finetuned:
    """Trains `config.model` with a head for the data's answers. Raises UsageError, RunError."""
    progress = progress or Silent()
    started = time.perf_counter()
    ready = _prepare(config, progress)
    check_padding(ready.model, ready.tokenizer)
    content = {"data": ready.content, "model": folder_fingerprint(config.model)}
    claim(out, config.model_dump(mode="json"), content)
    source = ready.splits or ready.corpus
    for note in source.notes if source else []:
        progress.note(note)
    training, held_out, reported = _datasets(config, ready, progress)
    objective = objectives.build(
        [TermConfig(kind="gold")], choices=ready.task.width, signal=None, has_gold=True
    )
    write_json(out / "manifest.json", manifest(content=content, seeds=[config.seed]))
    if ready.splits is not None:
        with atomic(out / TRAINED_ON) as temporary, temporary.open("wb") as file:
            np.save(file, ready.splits.labelled.folded_N2)
    stage = Stage(
        name="finetune",
        described="blocks of running text" if ready.corpus else "labelled rows",
        data=training,
        objective=objective,
        source=None,
        training=config.training,
        on_rows=True,
        metric=ready.task.metric if len(held_out) else None,
        evaluate=score_on(ready.task, held_out) if len(held_out) else None,
    )
    make = lambda: _masked(config) if ready.corpus else _classifier(config, ready.task)  # noqa: E731
    trained = train(
        "teacher",
        config.seed,
        make,
        [stage],
        task=ready.task,
        reported=reported,
        out=out,
        progress=progress,
    )
    return Finetuned(
        config,
        ready.task,
        ready.splits,
        ready.corpus,
        load_trained(trained, ready.model),
        ready.tokenizer,
        trained,
        reported,
        time.perf_counter() - started,
    )
