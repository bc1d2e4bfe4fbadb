"""The stranger: a public model trained on a victim's answers to queries, and on nothing else.

Axes: N queries, K choices, H hidden.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.seeding import shape_seed
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Labels, Tap
from stillhouse.data.batching import sorted_batches
from stillhouse.data.sources import Pool
from stillhouse.extract.answers import Answers, Told
from stillhouse.extract.config import ThiefConfig
from stillhouse.flows.common import dataset, load_answering
from stillhouse.flows.stages import Stage, Trained, load_trained, train
from stillhouse.models.forward import fast_weights, has_fast_path, run, training_mode
from stillhouse.models.limits import check_tokenizer, max_tokens
from stillhouse.models.load import load_tokenizer
from stillhouse.models.student import blocks, build
from stillhouse.tasks.base import Data, Task
from stillhouse.tasks.span import span_data
from stillhouse.training import objective as objectives


class Thief:
    """A public model, ready to be made again for every training."""

    def __init__(
        self, config: ThiefConfig, task: Task, store: Path, progress: Progress,
        *, max_length: int, trust_remote_code: bool,
    ) -> None:  # fmt: skip
        self.config, self._task, self._trust = config, task, trust_remote_code
        self._store, self._progress = store, progress
        self.named = config.model or config.source or ""
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(
            self.named, trust_remote_code=trust_remote_code
        )
        model = self.make(0)
        check_tokenizer(model, self._tokenizer)
        self._length = max_tokens(model, max_length)

    @property
    def name(self) -> str:
        """What the record calls it."""
        if self.config.name:
            return self.config.name
        shape = [Path(self.named).name]
        if self.config.layers:
            count = self.config.layers
            shape.append(f"{count if isinstance(count, int) else len(count)} layers")
        if self.config.fresh or self.config.width:
            shape.append("fresh")
        return ", ".join(shape)

    def make(self, seed: int) -> PreTrainedModel:
        """Its weights before the first answer; the head is fresh where it lacks the labels."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(shape_seed(seed))
            model = self.public()
        if self.config.model is not None:
            return model
        return build(model, self.config, seed=shape_seed(seed))

    def public(self) -> PreTrainedModel:
        """The public model that it begins with, whole."""
        return load_answering(
            self._task.name, self.named, labels=self._task.choices, trust_remote_code=self._trust
        )

    def data(self, pool: Pool, title: str) -> Data:
        """Rows in its tokens."""
        return dataset(
            self._task, pool, self._tokenizer, self._store, max_length=self._length,
            progress=self._progress, title=title,
        )  # fmt: skip

    def learn(
        self, title: str, seed: int, queries: Pool, answers: Answers, reported: Data, out: Path
    ) -> Trained:
        """Trains on the answers, once; what it then says of the reported rows is kept."""
        if answers.texts is not None:
            stage = self._from_texts(queries, answers.texts)
        else:
            stage = self._from_answers(title, queries, answers)
        make: Callable[[], PreTrainedModel] = lambda: self.make(seed)  # noqa: E731
        return train(
            title, seed, make, [stage], task=self._task, reported=reported, out=out,
            progress=self._progress,
        )  # fmt: skip

    def _from_answers(self, title: str, queries: Pool, answers: Answers) -> Stage:
        told = Told(answers, title)
        kind = "hard" if told.kind is Labels else "soft"
        objective = objectives.build(
            [TermConfig(kind=kind)], choices=self._task.width, signal=told.kind, has_gold=False
        )
        return Stage(
            name="steal", described="queries", data=self.data(queries, "queries"),
            objective=objective, source=told, training=self.config.training, on_rows=True,
        )  # fmt: skip

    def _from_texts(self, queries: Pool, texts: list[str]) -> Stage:
        """Answers as texts are learned where they first occur, as published."""
        labels = [json.dumps({"text": [text]}) for text in texts]
        data = span_data(
            queries, self._tokenizer, self._store, max_length=self._length,
            progress=self._progress, title="queries", labels=labels,
        )  # fmt: skip
        if data.unplaced:
            self._progress.note(
                f"{data.unplaced:,} of {len(queries):,} answers are not in their passages: nothing "
                "is learned from them"
            )
        gold = objectives.build(
            [TermConfig(kind="gold")], choices=self._task.width, signal=None, has_gold=True
        )
        return Stage(
            name="steal", described="queries", data=data, objective=gold, source=None,
            training=self.config.training, on_rows=True,
        )  # fmt: skip

    def reads(self, trained: Trained, queries: Pool) -> tuple[np.ndarray, np.ndarray]:
        """Of each query how unsure the trained thief is of it (the entropy of its answer), and the
        mean of its last states, N and N x H. Raises UsageError for a task without choices."""
        if self._task.name != "classification":
            raise UsageError(
                f"queries are chosen by a classifier's doubt: {self._task.name} has none, leave "
                "queries.choose out"
            )
        model = load_trained(trained, self.make(trained.seed))
        return read(model, self.data(queries, "candidates"), self.config.training.precision)


def read(model: Any, data: Data, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """The entropy of each answer, N, and the mean of each row's last states, N x H, in one pass."""
    last = Tap("hidden", len(blocks(model)[1]))
    entropy_N = np.empty(len(data), np.float32)
    states_NH = np.empty((len(data), model.config.hidden_size), np.float32)
    with training_mode(model, on=False), torch.no_grad():
        weights = fast_weights(model, precision) if has_fast_path(model) else None
        for rows in sorted_batches(data.lengths, size=64, max_tokens=16_384):
            batch = data.batch(rows)
            output = run(model, batch, precision=precision, weights=weights, reads={last})
            assert output.states is not None
            logp_BK = output.scores_NK.log_softmax(-1)
            entropy_N[rows] = -(logp_BK.exp() * logp_BK).sum(-1).numpy()
            mask_BT1 = batch.inputs["attention_mask"][..., None]
            sums_BH = (output.states[last].float() * mask_BT1).sum(1)
            states_NH[rows] = (sums_BH / mask_BT1.sum(1)).numpy()
    return entropy_N, states_NH
