"""From a run's settings to stages that are ready to train: their rows, teachers' answers, terms."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from stillhouse.core.config import AugmentConfig, MaskingConfig, StageConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.seeding import derive
from stillhouse.core.types import SignalSource
from stillhouse.data.corpus import Corpus
from stillhouse.data.rows import folded_key
from stillhouse.data.sources import Part, Pool
from stillhouse.flows.ablation import GOLD
from stillhouse.flows.asking import Asking
from stillhouse.flows.augment import augmented
from stillhouse.flows.common import cut_notes, dataset
from stillhouse.flows.objectives import build_objective, stage_teacher
from stillhouse.flows.prepare import read_corpus
from stillhouse.flows.setup import Setup
from stillhouse.flows.stages import Stage, joined, score_on, whole
from stillhouse.flows.written import Writing
from stillhouse.models.limits import max_tokens
from stillhouse.models.masked import around
from stillhouse.signals.cache import CachedTeacher
from stillhouse.signals.teacher import LiveTeacher, WithStates
from stillhouse.tasks.base import Data, Dataset, Inputs
from stillhouse.tasks.masked_lm import MaskedBlocks, MaskedLM
from stillhouse.tasks.span import Spans
from stillhouse.training.objective import Objective


@dataclass
class Plan:
    """What a run trains on, read once: its rows in the tokens of student and teacher, the
    teacher's answers, and every stage made of them."""

    setup: Setup
    progress: Progress
    _read: dict[tuple[object, ...], Data] = field(default_factory=dict)
    _corpora: dict[str, Corpus] = field(default_factory=dict)
    _texts: dict[str, Inputs] = field(default_factory=dict)  # by title

    @property
    def notes(self) -> list[str]:
        """What reading the rows and the stages' own texts showed."""
        own = [note for corpus in self._corpora.values() for note in corpus.notes]
        return [*cut_notes(self._texts), *own]

    @cached_property
    def teacher(self) -> Asking:
        return Asking(self.setup, self.progress)

    @cached_property
    def writing(self) -> Writing:
        """What models that write are trained on."""
        return Writing(self.setup, self.progress)

    @property
    def held_out(self) -> Data:
        if self.setup.writes:
            return self.writing.held_out
        if self.setup.corpus is not None:
            return self._blocks(self.setup.corpus, "held_out", self.setup.config.masking)
        return self.rows(self.setup.rows.held_out, "held-out rows")

    @property
    def teacher_held_out(self) -> Data:
        if self.setup.writes:
            return self.writing.held_out
        if self.setup.corpus is not None:
            return self.held_out
        return self.rows(self.setup.rows.held_out, "held-out rows", of_teacher=True)

    @property
    def reported(self) -> Data:
        if self.setup.writes:
            return self.writing.reported()
        if self.setup.corpus is not None:
            return self._blocks(self.setup.corpus, "reported", self.setup.config.masking)
        return self.rows(self.setup.rows.reported, "reported rows")

    @property
    def teacher_reported(self) -> Data:
        if self.setup.writes:
            return self.writing.reported(of_teacher=True)
        if self.setup.corpus is not None:
            return self.reported
        return self.rows(self.setup.rows.reported, "reported rows", of_teacher=True)

    def rows(self, pool: Pool, title: str, *, of_teacher: bool = False) -> Dataset | Spans:
        """A pool in the student's tokens, or in the teacher's where these differ."""
        setup = self.setup
        of_teacher = of_teacher and not setup.same_inputs
        key = (pool.fingerprint, len(pool.labels), title, of_teacher)
        title = f"{title} for the teacher" if of_teacher else title
        if key not in self._read:
            self._read[key] = dataset(
                setup.task,
                pool,
                setup.teacher_tokenizer if of_teacher else setup.tokenizer,
                setup.store,
                progress=self.progress,
                title=title,
                max_length=setup.teacher_length if of_teacher else setup.length,
            )
        found = self._read[key]
        assert isinstance(found, Dataset | Spans)
        if isinstance(found, Dataset):
            self._texts.setdefault(title, found.source)
        return found

    def stages(self, configs: Sequence[StageConfig]) -> list[Stage]:
        """The stages of `configs`, the teacher asked for all they need."""
        return [self._stage(config) for config in configs]

    def alone(self, configs: Sequence[StageConfig]) -> list[Stage]:
        """The same training without the teacher, for as many steps: each stage with its gold
        answers only. Stages on rows that follow each other become one."""
        found: list[Stage] = []
        for config in configs:
            full = self._stage(config)
            gold = config.model_copy(update={"objective": GOLD})
            if not config.corpus:
                own = {"rows": "labelled", "augment": None, "targets": "gold", "on_policy": None}
                gold = gold.model_copy(update=own)
            made = self._stage(gold)
            answers = full.objective.scores_student
            found.append(replace(made, counted=full.steps, answers=answers))
        return joined(found)

    def _stage(self, config: StageConfig) -> Stage:
        setup = self.setup
        own = setup.objectives.get(config.name)
        same = own is not None and config in setup.config.plan
        objective = own if same and own is not None else build_objective(setup, config)
        if setup.writes:
            pool = None if setup.corpus is not None else self._pool(config)[0]
            return self.writing.stage(config, objective, pool)
        if config.corpus is not None or setup.corpus is not None:
            return self._on_text(config, objective)
        return self._on_rows(config, objective)

    def _on_rows(self, config: StageConfig, objective: Objective) -> Stage:
        setup = self.setup
        pool, title = self._pool(config)
        data = self.rows(pool, title)
        if not len(data):
            raise UsageError(f"stage {config.name} has no rows: there are no {config.rows} ones")
        scored = objective.scores_student and len(setup.rows.held_out) > 0
        return Stage(
            name=config.name,
            described=title,
            data=data,
            objective=objective,
            source=self._source(objective, pool, title),
            training=config.training,
            on_rows=True,
            metric=setup.task.metric if scored else None,
            evaluate=score_on(setup.task, self.held_out, config.training.precision)
            if scored
            else None,
        )

    def _pool(self, config: StageConfig) -> tuple[Pool, str]:
        """The rows a stage trains on, and what they are called."""
        splits = self.setup.rows
        named = {
            "all": (splits.train, "training rows"),
            "labelled": (splits.labelled, "labelled rows"),
            "unlabelled": (splits.unlabelled, "unlabelled rows"),
        }
        pool, title = named[config.rows]
        if config.rows == "all" and not len(splits.unlabelled):
            title = "training rows"
        if config.augment is None:
            return pool, title
        if self.setup.task.name == "span":
            raise UsageError("questions and passages have no variants: leave augment out")
        return self._augmented(pool, config.augment), f"{title} and variants"

    def _augmented(self, pool: Pool, config: AugmentConfig) -> Pool:
        setup = self.setup
        kept_apart = [setup.rows.reported.folded_N2, setup.rows.held_out.folded_N2]
        rows = augmented(
            pool,
            config,
            teacher=setup.teacher,
            tokenizer=setup.teacher_tokenizer,
            store=setup.store,
            forbidden_N2=np.concatenate(kept_apart),
            progress=self.progress,
        )
        return Pool([*pool.parts, Part(rows, rows.kept, labelled=False)])

    def _source(self, objective: Objective, pool: Pool, title: str) -> SignalSource | None:
        """Where the teacher's answers and states come from."""
        answers = states = None
        if self.setup.task.name == "span" and objective.needs_teacher:  # over the batch's tokens
            return LiveTeacher(
                self.setup.teacher, None, fingerprint="live",
                precision=self.setup.config.label.precision, reads=objective.teacher_taps,
                scored=objective.scores_teacher,
            )  # fmt: skip
        if objective.scores_teacher:
            answers = self.answers(pool, title)
        if objective.teacher_taps:
            states = self.teacher.states(objective, self._single(pool, title))
        if answers is not None and states is not None:
            return WithStates(answers, states)
        return answers or states

    def answers(self, pool: Pool, title: str) -> CachedTeacher:
        """The teacher's answers to a pool's rows."""
        return self.teacher.answers(self._single(pool, title), pool.fingerprint)

    def _single(self, pool: Pool, title: str) -> Dataset:
        """Rows for the teacher that have one answer each."""
        found = self.rows(pool, title, of_teacher=True)
        assert isinstance(found, Dataset)
        return found

    def _on_text(self, config: StageConfig, objective: Objective) -> Stage:
        """A stage on running text, as a masked language model."""
        setup = self.setup
        own = stage_teacher(setup, config)
        corpus = self._corpus(config, own)
        train = self._blocks(corpus, "train", config.masking)
        held_out = self._blocks(corpus, "held_out", config.masking)
        source: SignalSource | None = None
        if objective.needs_teacher:
            source = LiveTeacher(
                own,
                None,
                fingerprint="live",
                precision=setup.config.label.precision,
                reads=objective.teacher_taps,
                scored=objective.scores_teacher,
            )
        task = MaskedLM(setup.tokenizer, width=own.config.vocab_size)
        is_run = setup.corpus is not None
        scored = objective.scores_student and len(held_out) > 0

        def view(model: PreTrainedModel, seed: int) -> nn.Module:
            if is_run or not objective.scores_student:
                return model
            return around(model, derive(seed, "head", config.name) % 2**31, like=own)

        return Stage(
            name=config.name,
            described="blocks of running text",
            data=train,
            objective=objective,
            source=source,
            training=config.training,
            on_rows=is_run,
            view=whole if is_run else view,
            metric=f"masked {task.metric}" if scored else None,
            evaluate=score_on(task, held_out, config.training.precision) if scored else None,
        )

    @cached_property
    def _apart(self) -> frozenset[bytes]:
        """Folded keys of every reported or held-out text: no corpus may hold it as a line."""
        splits = self.setup.rows
        examples = itertools.chain(splits.reported, splits.held_out)
        texts = (text for each in examples for text in (each.text, each.pair) if text is not None)
        return frozenset(folded_key(text, None) for text in texts)

    def _corpus(self, config: StageConfig, teacher: PreTrainedModel) -> Corpus:
        """The text of a stage, in blocks that student and teacher have positions for."""
        if config.corpus is None:
            assert self.setup.corpus is not None
            return self.setup.corpus
        setup = self.setup
        used = config.corpus.model_copy(update={"reported": 0.0})  # a stage reports on none
        student = setup.make(setup.config.evaluation.seeds[0])
        length = min(max_tokens(student, used.length), max_tokens(teacher, used.length))
        key = f"{used.model_dump_json()} {length}"
        if key not in self._corpora:
            self._corpora[key] = read_corpus(
                used, setup.tokenizer, setup.store, length, self.progress, self._apart,
                sought=setup.rows.reported,
            )  # fmt: skip
            for note in self._corpora[key].notes:
                self.progress.note(note)
        return self._corpora[key]

    def _blocks(self, corpus: Corpus, split: str, masking: MaskingConfig) -> MaskedBlocks:
        key = (corpus.fingerprint, split, masking.model_dump_json())
        if key not in self._read:
            weighted = masking.frequency_power is not None
            self._read[key] = MaskedBlocks(
                getattr(corpus, split),
                masking,
                self.setup.tokenizer,
                counts=corpus.train.counts() if weighted else None,
            )
        found = self._read[key]
        assert isinstance(found, MaskedBlocks)
        return found
