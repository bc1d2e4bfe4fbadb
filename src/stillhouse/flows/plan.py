"""From a run's settings to stages that are ready to train: their rows, teachers' answers, terms."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from stillhouse.core.config import AugmentConfig, MaskingConfig, StageConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.seeding import derive, generator
from stillhouse.core.terms import AnyTerm, TermConfig
from stillhouse.core.types import SignalSource
from stillhouse.data.corpus import Corpus
from stillhouse.data.encoding import tokenizer_fingerprint
from stillhouse.data.rows import folded_key
from stillhouse.data.sources import Part, Pool
from stillhouse.flows.augment import augmented
from stillhouse.flows.common import dataset, max_tokens
from stillhouse.flows.setup import Setup, build_objective, read_corpus, stage_teacher
from stillhouse.flows.stages import Stage, joined, score_on, whole
from stillhouse.models.load import fingerprint
from stillhouse.models.masked import around
from stillhouse.signals.cache import AnswerCache, CachedTeacher
from stillhouse.signals.kept import CachedStates, keep_states
from stillhouse.signals.states import StatesCache
from stillhouse.signals.teacher import TOLERANCE, LiveTeacher, WithStates, check, label
from stillhouse.tasks.base import Data, Dataset
from stillhouse.tasks.masked_lm import MaskedBlocks, MaskedLM
from stillhouse.training.objective import Objective, term_names

GOLD: tuple[AnyTerm, ...] = (TermConfig(kind="gold"),)


@dataclass
class Plan:
    """What a run trains on, read once: its rows in the tokens of student and teacher, the
    teacher's answers, and every stage made of them. `teacher_s`: seconds that asking it took."""

    setup: Setup
    progress: Progress
    teacher_s: float = 0.0
    _read: dict[tuple[object, ...], Data] = field(default_factory=dict)
    _asked: dict[str, tuple[CachedTeacher, Dataset]] = field(default_factory=dict)
    _corpora: dict[str, Corpus] = field(default_factory=dict)

    @property
    def asked(self) -> list[tuple[CachedTeacher, Dataset]]:
        """The teacher's answers there are, with the rows they belong to."""
        return list(self._asked.values())

    @property
    def held_out(self) -> Data:
        if self.setup.corpus is not None:
            return self._blocks(self.setup.corpus, "held_out", self.setup.config.masking)
        return self.rows(self.setup.rows.held_out, "held-out rows")

    @property
    def teacher_held_out(self) -> Data:
        if self.setup.corpus is not None:
            return self.held_out
        return self.rows(self.setup.rows.held_out, "held-out rows", of_teacher=True)

    @property
    def reported(self) -> Data:
        if self.setup.corpus is not None:
            return self._blocks(self.setup.corpus, "reported", self.setup.config.masking)
        return self.rows(self.setup.rows.reported, "reported rows")

    @property
    def teacher_reported(self) -> Data:
        if self.setup.corpus is not None:
            return self.reported
        return self.rows(self.setup.rows.reported, "reported rows", of_teacher=True)

    def rows(self, pool: Pool, title: str, *, of_teacher: bool = False) -> Dataset:
        """A pool in the student's tokens, or in the teacher's where these differ."""
        setup = self.setup
        of_teacher = of_teacher and not _same_inputs(setup)
        key = (pool.fingerprint, len(pool.labels), title, of_teacher)
        if key not in self._read:
            self._read[key] = dataset(
                setup.task,
                pool,
                setup.teacher_tokenizer if of_teacher else setup.tokenizer,
                setup.store,
                progress=self.progress,
                title=f"{title} for the teacher" if of_teacher else title,
                max_length=setup.teacher_length if of_teacher else setup.length,
            )
        found = self._read[key]
        assert isinstance(found, Dataset)
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
                gold = gold.model_copy(update={"rows": "labelled", "augment": None})
            made = self._stage(gold)
            answers = full.objective.scores_student
            found.append(replace(made, counted=full.steps, answers=answers))
        return joined(found)

    def _stage(self, config: StageConfig) -> Stage:
        setup = self.setup
        own = setup.objectives.get(config.name)
        same = own is not None and config in setup.plan
        objective = own if same and own is not None else build_objective(setup, config)
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
            evaluate=score_on(setup.task, self.held_out) if scored else None,
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
        if objective.scores_teacher:
            answers = self.answers(pool, title)
        if objective.teacher_taps:
            states = self._states(objective, self.rows(pool, title, of_teacher=True))
        if answers is not None and states is not None:
            return WithStates(answers, states)
        return answers or states

    def answers(self, pool: Pool, title: str) -> CachedTeacher:
        """The teacher's answers to a pool, from its cache, asked now where it lacks them.

        A sample is asked again live and compared, so a cache of another teacher is noticed.
        """
        if pool.fingerprint in self._asked:
            return self._asked[pool.fingerprint][0]
        setup, config = self.setup, self.setup.config.label
        data = self.rows(pool, title, of_teacher=True)
        identity = {**_identity(setup), "choices": setup.task.choices}
        started = time.perf_counter()
        cache = AnswerCache(setup.store, identity)
        precision = config.precision
        live = LiveTeacher(setup.teacher, data, fingerprint=cache.fingerprint, precision=precision)
        with self.progress.stage("asking the teacher", len(data), "rows") as advance:
            label(live, cache, config, progress=advance)
        self.teacher_s += time.perf_counter() - started
        source = CachedTeacher(cache, data.keys_N2)
        sample = generator(0, "cache check").permutation(len(data))[: config.check_rows]
        exact = LiveTeacher(
            setup.teacher, data, fingerprint="live", precision="float32", fast=False
        )
        allowed = TOLERANCE[precision]
        worst = check(exact, source.signal, rows=np.sort(sample), tolerance=allowed)
        self.progress.note(
            f"cached answers agree with the live teacher within {worst:.4f} on {len(sample)} rows"
        )
        self._asked[pool.fingerprint] = (source, data)
        return source

    def _states(self, objective: Objective, data: Dataset) -> SignalSource:
        """The teacher's inner states: read live, or kept on disk."""
        setup, config = self.setup, self.setup.config.label
        live = LiveTeacher(
            setup.teacher,
            data,
            fingerprint="live",
            precision=config.precision,
            reads=objective.teacher_taps,
            scored=False,
        )
        if config.states == "live":
            return live
        taps = sorted(objective.teacher_taps)
        if any(tap.what != "hidden" for tap in taps):
            raise UsageError(
                "label.states keeps hidden states only, and the objective reads attention: "
                "leave it at live"
            )
        cache = StatesCache(
            setup.store,
            _identity(setup),
            layers=tuple(tap.layer for tap in taps),
            width=setup.teacher.config.hidden_size,
            pooled=objective.first_token_only,
            dtype=config.states,
        )
        missing = cache.missing(data.keys_N2)
        needed = cache.bytes_needed(data.lengths[missing])
        if len(missing):
            self.progress.note(
                f"the teacher's states of {len(missing):,} rows take {needed / 1e6:,.1f} MB in "
                f"{config.states}, under {setup.store}"
            )
        cache.require_room(needed)
        started = time.perf_counter()
        with self.progress.stage("reading the teacher's states", len(data), "rows") as advance:
            keep_states(live, cache, config, progress=advance)
        self.teacher_s += time.perf_counter() - started
        return CachedStates(cache, data.keys_N2)

    def _on_text(self, config: StageConfig, objective: Objective) -> Stage:
        """A stage on running text, as a masked language model."""
        setup = self.setup
        own = stage_teacher(setup, config)
        corpus = self._corpus(config, max_tokens(own, setup.config.data.max_length))
        train = self._blocks(corpus, "train", config.masking)
        held_out = self._blocks(corpus, "held_out", config.masking)
        source: SignalSource | None = None
        if objective.needs_teacher:
            source = LiveTeacher(
                own,
                None,
                fingerprint=fingerprint(own),
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
            evaluate=score_on(task, held_out) if scored else None,
        )

    @cached_property
    def _apart(self) -> frozenset[bytes]:
        """Folded keys of every reported or held-out text: no corpus may hold it as a line."""
        splits = self.setup.rows
        examples = itertools.chain(splits.reported, splits.held_out)
        texts = (text for each in examples for text in (each.text, each.pair) if text is not None)
        return frozenset(folded_key(text, None) for text in texts)

    def _corpus(self, config: StageConfig, longest: int) -> Corpus:
        if config.corpus is None:
            assert self.setup.corpus is not None
            return self.setup.corpus
        used = config.corpus.model_copy(update={"reported": 0.0})  # a stage reports on none
        key = f"{used.model_dump_json()} {longest}"
        if key not in self._corpora:
            setup = self.setup
            length = min(setup.length, longest)
            self._corpora[key] = read_corpus(
                used, setup.tokenizer, setup.store, length, self.progress, self._apart
            )
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


def _same_inputs(setup: Setup) -> bool:
    """Whether the student's tokens, all of them, are what the teacher takes."""
    mine, theirs = setup.tokenizer, setup.teacher_tokenizer
    return setup.same_tokens and mine.model_input_names == theirs.model_input_names


def _identity(setup: Setup) -> dict[str, object]:
    """What the teacher's outputs depend on."""
    return {
        "teacher": fingerprint(setup.teacher),
        "tokenizer": tokenizer_fingerprint(setup.teacher_tokenizer),
        "max_length": setup.teacher_length,
        "precision": setup.config.label.precision,
    }


def without(configs: Sequence[StageConfig], stage: str, term: str) -> list[StageConfig] | None:
    """The stages without one term. A stage that loses its only term on answers gets gold answers
    instead (on labelled rows); one that had no other term is left out; None where none remains."""
    found: list[StageConfig] = []
    for config in configs:
        if config.name != stage:
            found.append(config)
            continue
        named = zip(term_names(config.objective), config.objective, strict=True)
        terms = tuple(each for name, each in named if name != term)
        changes: dict[str, object] = {"objective": terms}
        if gold_instead(config, term):
            changes["objective"] = (*terms, *GOLD)
            if not config.corpus:
                changes |= {"rows": "labelled", "augment": None}
        if changes["objective"]:
            found.append(config.model_copy(update=changes))
    return found or None


def gold_instead(config: StageConfig, term: str) -> bool:
    """Whether gold answers take a term's place: a stage's only term on answers."""
    named = zip(term_names(config.objective), config.objective, strict=True)
    return [name for name, each in named if isinstance(each, TermConfig)] == [term]
