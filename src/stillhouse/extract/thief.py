"""The stranger: a public model trained on a victim's answers to queries, and on nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.progress import Progress
from stillhouse.core.seeding import shape_seed
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Labels
from stillhouse.extract.answers import Answers, Told
from stillhouse.extract.config import ThiefConfig
from stillhouse.flows.common import check_padding
from stillhouse.flows.stages import Stage, Trained, train
from stillhouse.models.load import load_classifier, load_tokenizer
from stillhouse.models.student import build
from stillhouse.tasks.base import Data, Task
from stillhouse.training import objective as objectives


class Thief:
    """A public model, ready to be made again for every training."""

    def __init__(self, config: ThiefConfig, task: Task, *, trust_remote_code: bool) -> None:
        self.config, self._task, self._trust = config, task, trust_remote_code
        self.named = config.model or config.source or ""
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(
            self.named, trust_remote_code=trust_remote_code
        )
        check_padding(self.make(0), self.tokenizer)

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
            model = load_classifier(
                self.named, labels=self._task.choices, trust_remote_code=self._trust
            )
        if self.config.model is not None:
            return model
        return build(model, self.config, seed=shape_seed(seed))

    def public(self) -> PreTrainedModel:
        """The public model that it begins with, whole."""
        return load_classifier(self.named, labels=self._task.choices, trust_remote_code=self._trust)

    def learn(
        self,
        title: str,
        seed: int,
        queries: Data,
        answers: Answers,
        reported: Data,
        out: Path,
        progress: Progress,
    ) -> Trained:
        """Trains on the answers, once; what it then says of the reported rows is kept."""
        told = Told(answers, title)
        kind = "hard" if told.kind is Labels else "soft"
        objective = objectives.build(
            [TermConfig(kind=kind)], choices=self._task.width, signal=told.kind, has_gold=False
        )
        stage = Stage(
            name="steal",
            described="queries",
            data=queries,
            objective=objective,
            source=told,
            training=self.config.training,
            on_rows=True,
        )
        make: Callable[[], PreTrainedModel] = lambda: self.make(seed)  # noqa: E731
        return train(
            title, seed, make, [stage], task=self._task, reported=reported, out=out,
            progress=progress,
        )  # fmt: skip
