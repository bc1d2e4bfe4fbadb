"""A training on gold answers, ready: the rows' labels, or (masked language models) the tokens of
running text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.config import WRITING, GoldConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.precision import Auto
from stillhouse.core.progress import Progress
from stillhouse.core.seeding import shape_seed
from stillhouse.core.terms import TermConfig
from stillhouse.data.corpus import Corpus
from stillhouse.data.labels import LabelRule
from stillhouse.data.sources import Splits, load
from stillhouse.data.written import Kind
from stillhouse.flows.common import (
    corpus_of,
    cut_notes,
    dataset,
    gold_task,
    store_root,
)
from stillhouse.flows.dry_run import Trial, doubts, settled, two_rows
from stillhouse.flows.labelling import tell_guesses, untrained_classes
from stillhouse.flows.prepare import check_metric, read_corpus
from stillhouse.flows.training_data import seen_before
from stillhouse.flows.writers import (
    check_named,
    check_writers,
    corpus_for,
    is_running_text,
    splits_of,
    start_of,
    writing_task,
    written_data,
)
from stillhouse.models.generator import load_generator
from stillhouse.models.limits import check_tokenizer, check_vocabulary, max_tokens, tokenizer_for
from stillhouse.models.load import (
    folder_fingerprint,
    has_head,
    head_settings,
    label_names,
    load_classifier,
    load_config,
    load_span_model,
    load_tokenizer,
)
from stillhouse.models.masked import load_masked_lm
from stillhouse.tasks.base import Data, Dataset, Task
from stillhouse.tasks.masked_lm import MaskedBlocks, MaskedLM
from stillhouse.tasks.written import RunningText
from stillhouse.training import objective as objectives
from stillhouse.training import response
from stillhouse.training.defaults import AT_WIDTH, Facts
from stillhouse.training.objective import Objective
from stillhouse.training.order import steps_per_epoch


@dataclass
class Gold:
    """What is trained, on what. A run is on rows (`splits`) or on running text (`corpus`)."""

    config: GoldConfig
    task: Task
    tokenizer: PreTrainedTokenizerBase
    splits: Splits | None
    corpus: Corpus | None
    auto: Auto  # what `precision: auto` is in `config`
    doubts: list[str] = field(default_factory=list)  # found in the dry run
    cut: list[str] = field(default_factory=list)  # found as rows were read

    @property
    def content(self) -> dict[str, str]:
        """Fingerprints of what the config names by path."""
        model = folder_fingerprint(self.config.model)
        return {"data": self.data.fingerprint, "model": model}

    @property
    def data(self) -> Splits | Corpus:
        found = self.splits or self.corpus
        assert found is not None
        return found

    @property
    def notes(self) -> list[str]:
        own = ("the pretrained model", self.config.model)
        return [*self.data.notes, *seen_before([own], self.data), *self.doubts, *self.cut]

    @property
    def described(self) -> str:
        return "blocks of running text" if self.corpus else "labelled rows"

    @property
    def objective(self) -> Objective:
        return self.weighted("none")

    def weighted(self, class_weights: str) -> Objective:
        """The objective, each row weighed by its class. Raises UsageError where there are none."""
        weights_K = None
        if class_weights != "none":
            if self.splits is None or not self.by_row or self.task.width == 1:
                raise UsageError(
                    f"class weights are for classes, and a {self.task.name} has none: leave "
                    "training.class_weights at none"
                )
            gold_N = self.task.gold(self.splits.labelled.labels).numpy()
            counts_K = np.bincount(gold_N, minlength=self.task.width)
            weights_K = response.class_weights(counts_K, class_weights)
        gold = TermConfig(kind="gold")
        return objectives.build(
            [gold], choices=self.task.width, signal=None, has_gold=True, weights_K=weights_K
        )

    @property
    def by_row(self) -> bool:
        """Whether a row has one answer, a class or a value, that a head gives."""
        return self.task.name in ("classification", "regression")

    @property
    def new_head(self) -> bool:
        """Whether the model's head is drawn afresh: it has none, or one for other classes."""
        named = self._named
        if not has_head(named):
            return True
        if self.task.width == 1:
            return named.num_labels != 1
        return sorted(label_names(named)) != sorted(self.task.choices)

    @property
    def _named(self) -> Any:
        """The config of the pretrained model."""
        trust = self.config.trust_remote_code
        return load_config(self.config.model, trust_remote_code=trust)

    def facts(self, training: Data, held_out: Data, *, seed: int) -> Facts | None:
        """What a training's defaults depend on; None of spans, running text and generation."""
        if not self.by_row:
            return None
        return Facts(
            rows=len(training),
            classes=self.task.width,
            per_epoch=steps_per_epoch(training, self.config.training, seed),
            validation=len(held_out),
            width=getattr(self._named, "hidden_size", AT_WIDTH),
            new_head=self.new_head,
        )

    @property
    def kind(self) -> Kind:
        return "seq2seq" if self.config.task == "seq2seq" else "causal_lm"

    def make(self, seed: int) -> PreTrainedModel:
        """The pretrained model, its head (where it lacks one for these answers) drawn by `seed`."""
        config, trust = self.config, self.config.trust_remote_code
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(shape_seed(seed))
            if config.task in WRITING:
                return load_generator(config.model, self.kind, trust_remote_code=trust)
            if self.corpus is not None:
                return load_masked_lm(config.model, fresh_head=True, trust_remote_code=trust)
            if self.task.name == "span":
                return load_span_model(config.model, fresh_head=True, trust_remote_code=trust)
            labels = [""] if self.task.name == "regression" else self.task.choices
            model = load_classifier(config.model, labels=labels, trust_remote_code=trust)
        for name, value in head_settings(labels).items():
            setattr(model.config, name, value)
        return model

    def datasets(self, progress: Progress) -> tuple[Data, Data, Data]:
        """Training, held-out and reported examples."""
        config = self.config
        if config.task in WRITING:
            return self._writing(progress)
        if self.corpus is not None:
            counts = self.corpus.train.counts() if config.masking.frequency_power else None
            train, held_out, reported = (
                MaskedBlocks(blocks, config.masking, self.tokenizer, counts=counts)
                for blocks in (self.corpus.train, self.corpus.held_out, self.corpus.reported)
            )
            return train, held_out, reported
        assert self.splits is not None
        store, length = (
            store_root(config.cache),
            max_tokens(self.make(0), config.data.tokens(self.task.name)),
        )
        pools = {
            "training rows": self.splits.labelled,
            "held-out rows": self.splits.held_out,
            "reported rows": self.splits.reported,
        }
        read = {
            title: dataset(
                self.task,
                pool,
                self.tokenizer,
                store,
                max_length=length,
                progress=progress,
                title=title,
            )
            for title, pool in pools.items()
        }
        texts = {title: data.source for title, data in read.items() if isinstance(data, Dataset)}
        self.cut = cut_notes(texts)
        train, held_out, reported = read.values()
        return train, held_out, reported

    def _writing(self, progress: Progress) -> tuple[Data, Data, Data]:
        """Those of a model that writes."""
        if self.corpus is not None:
            parts = (self.corpus.train, self.corpus.held_out, self.corpus.reported)
            train, held_out, reported = (RunningText(part, self.tokenizer) for part in parts)
            return train, held_out, reported
        assert self.splits is not None
        model, asked = self.make(0), self.config.data.tokens(self.task.name)
        pools = {
            "training rows": self.splits.labelled,
            "held-out rows": self.splits.held_out,
            "reported rows": self.splits.reported,
        }
        train, held_out, reported = (
            written_data(
                pool,
                self.tokenizer,
                self.config.data,
                self.kind,
                store_root(self.config.cache),
                progress,
                title,
                length=max_tokens(model, asked),
                start=start_of(model),
            )
            for title, pool in pools.items()
        )
        return train, held_out, reported


def prepare_gold(
    config: GoldConfig, progress: Progress, *, auto: Auto | None = None, metric: str | None = None
) -> Gold:
    """Loads and checks everything a training on gold answers needs; what is still `auto` becomes
    what `auto` says (left out: what is fastest here), or float32 where the model can't do bf16.
    Raises UsageError, DataError, ModelError before anything is written."""
    auto = auto or Auto.of()
    gold = _prepared(auto.settle(config), auto, progress, metric)
    trials = [_trial(gold)]
    gold.auto, gold.doubts = settled(trials, auto, config), doubts(trials)
    gold.config = gold.auto.settle(config)
    if gold.splits is not None:
        tell_guesses(gold.splits, progress, gold.task, asked=config.task)
    return gold


def _trial(gold: Gold) -> Trial:
    """What the model must be able to do, on rows of the run's length."""
    model, name, pairs = gold.make(0), gold.task.name, False
    length = max_tokens(model, gold.config.data.tokens(name))
    if gold.splits is not None and name in ("classification", "regression"):
        pairs = any(example.pair is not None for example in gold.splits.reported.at(np.arange(1)))
    batch = two_rows(name, gold.tokenizer, length, pairs=pairs)
    return Trial(model, batch, gold.config.training.precision, trains=True)


def _prepared(config: GoldConfig, auto: Auto, progress: Progress, metric: str | None) -> Gold:
    store, trust = store_root(config.cache), config.trust_remote_code
    tokenizer = load_tokenizer(config.model, trust_remote_code=trust)
    if config.task in WRITING:
        return _writer(config, auto, tokenizer, store, progress, metric)
    if config.task == "masked_lm":
        check_metric(config.task, metric)
        model = load_masked_lm(config.model, fresh_head=True, trust_remote_code=trust)
        length = max_tokens(model, config.data.tokens("masked_lm"))
        corpus = read_corpus(corpus_of(config.data), tokenizer, store, length, progress)
        task: Task = MaskedLM(tokenizer, width=model.config.vocab_size)
        found = Gold(config, task, tokenizer, None, corpus, auto)
    else:
        check_named(config.task, config.model)
        rule = LabelRule(values=config.task == "regression")
        splits = load(config.data, store / "rows", rule=rule, progress=progress)
        pools = [splits.labelled, splits.held_out, splits.reported]
        task = gold_task(pools, asked=config.task, metric=metric)
        check_metric(task.name, metric)
        splits.notes.extend(untrained_classes(task, splits))
        found = Gold(config, task, tokenizer, splits, None, auto)
        model = found.make(0)
    check_tokenizer(model, tokenizer)
    found.tokenizer = tokenizer_for(model, tokenizer)
    return found


def _writer(
    config: GoldConfig,
    auto: Auto,
    tokenizer: PreTrainedTokenizerBase,
    store: Path,
    progress: Progress,
    metric: str | None,
) -> Gold:
    """The training of a model that writes: on rows with answers, or on running text."""
    check_metric(config.task, metric)
    kind: Kind = "seq2seq" if config.task == "seq2seq" else "causal_lm"
    model = load_generator(config.model, kind, trust_remote_code=config.trust_remote_code)
    check_vocabulary(model, tokenizer)
    texts = not (kind == "causal_lm" and is_running_text(config.data))
    task = writing_task(kind, metric, config.writing, tokenizer, model, texts=texts)
    if texts:
        splits = splits_of(config.data, store, progress)
        check_writers(splits, kind, [(tokenizer, model)], progress)
        return Gold(config, task, tokenizer, splits, None, auto)
    length = max_tokens(model, config.data.tokens("masked_lm"))
    corpus = corpus_for(config.data, tokenizer, store, length, progress)
    return Gold(config, task, tokenizer, None, corpus, auto)
