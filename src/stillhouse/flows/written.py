"""What a run of models that write trains on: rows in tokens, the teachers' answers, its stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from stillhouse.core.config import StageConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.results import DecodedResult
from stillhouse.data.sources import Pool
from stillhouse.data.written import Kind
from stillhouse.flows.sequence import Decoded, decoded
from stillhouse.flows.setup import Setup
from stillhouse.flows.several import Several, live
from stillhouse.flows.sparse import Distributions, sparse_source
from stillhouse.flows.stages import Own, Stage, Trained, score_on
from stillhouse.flows.writers import own_texts, start_of, written_data
from stillhouse.signals.teacher import LiveTeacher
from stillhouse.tasks.base import Data
from stillhouse.tasks.written import RunningText, Written
from stillhouse.training.objective import Objective
from stillhouse.training.on_policy import on_policy
from stillhouse.training.order import steps_per_epoch


def kind_of(setup: Setup) -> Kind:
    return "seq2seq" if setup.config.task == "seq2seq" else "causal_lm"


def read_rows(
    setup: Setup,
    pool: Pool,
    progress: Progress,
    title: str,
    *,
    of_teacher: bool = False,
    answers: Sequence[str | None] | None = None,
) -> Written:
    """A pool in the student's tokens, or the teacher's; with `answers`, these for its own."""
    tokenizer = setup.teacher_tokenizer if of_teacher else setup.tokenizer
    model = setup.teacher if of_teacher else setup.make(setup.config.evaluation.seeds[0])
    return written_data(
        pool,
        tokenizer,
        setup.config.data,
        kind_of(setup),
        setup.store,
        progress,
        title,
        length=setup.teacher_length if of_teacher else setup.length,
        start=start_of(model),
        answers=answers,
    )


@dataclass
class Writing:
    """What the stages of a run of models that write share, each made once."""

    setup: Setup
    progress: Progress
    _read: dict[tuple[object, ...], Data] = field(default_factory=dict)
    _decoded: dict[tuple[object, ...], Decoded] = field(default_factory=dict)
    distributions: dict[str, Distributions] = field(default_factory=dict)
    several: dict[str, Several] = field(default_factory=dict)
    learnt: dict[tuple[str, str], Decoded] = field(default_factory=dict)

    def rows(self, pool: Pool, title: str, *, of_teacher: bool = False) -> Written:
        of_teacher = of_teacher and not self.setup.same_tokens
        key = (pool.fingerprint, title, of_teacher)
        if key not in self._read:
            self._read[key] = read_rows(
                self.setup, pool, self.progress, title, of_teacher=of_teacher
            )
        found = self._read[key]
        assert isinstance(found, Written)
        return found

    def blocks(self, split: str) -> RunningText:
        """A split of the run's text."""
        corpus = self.setup.corpus
        assert corpus is not None
        key = (split,)
        if key not in self._read:
            self._read[key] = RunningText(getattr(corpus, split), self.setup.tokenizer)
        found = self._read[key]
        assert isinstance(found, RunningText)
        return found

    @property
    def held_out(self) -> Data:
        if self.setup.corpus is not None:
            return self.blocks("held_out")
        return self.rows(self.setup.rows.held_out, "held-out rows")

    def reported(self, *, of_teacher: bool = False) -> Data:
        if self.setup.corpus is not None:
            return self.blocks("reported")
        return self.rows(self.setup.rows.reported, "reported rows", of_teacher=of_teacher)

    def stage(self, config: StageConfig, objective: Objective, pool: Pool | None) -> Stage:
        """A stage, ready to run; `pool`: its rows, where the run is not on running text."""
        setup = self.setup
        data, described = self._data(config, pool)
        if not config.on_policy and not len(data.gold_N):
            raise UsageError(
                f"stage {config.name} has no text to learn: its rows have no answers; let the "
                "teacher write them (targets: decoded)"
            )
        held_out = self.held_out
        scored = len(held_out) > 0
        by_seed = self._by_seed(config, objective, data, pool)
        return Stage(
            name=config.name,
            described=described,
            data=data,
            objective=objective,
            source=None,
            by_seed=by_seed,
            training=config.training,
            on_rows=True,
            metric=setup.task.metric if scored else None,
            evaluate=score_on(setup.task, held_out, config.training.precision) if scored else None,
            choices=setup.task.width,
        )

    def _data(self, config: StageConfig, pool: Pool | None) -> tuple[Written | RunningText, str]:
        """What a stage trains on, and what it is called."""
        if pool is None:
            if config.targets != "gold":
                raise UsageError("running text has no sources to decode: give rows with prompts")
            return self.blocks("train"), "blocks of running text"
        if not len(pool):
            raise UsageError(f"stage {config.name} has no rows: there are no {config.rows} ones")
        if config.targets == "gold":
            return self.rows(pool, "training rows"), "training rows"
        found = self.texts(config, pool)
        self.learnt[config.name, config.targets] = found
        title = "decoded texts" if config.targets == "decoded" else "closest texts"
        key = (pool.fingerprint, config.targets)
        if key not in self._read:
            self._read[key] = read_rows(self.setup, pool, self.progress, title, answers=found.texts)
        data = self._read[key]
        assert isinstance(data, Written)
        return data, f"sources with the teacher's {title}"

    def steps(self, config: StageConfig, pool: Pool | None, seed: int) -> int:
        """Optimizer steps of a stage."""
        each = steps_per_epoch(self._data(config, pool)[0], config.training, seed)
        return config.training.steps or max(1, round(config.training.epochs * each))

    def texts(self, config: StageConfig, pool: Pool) -> Decoded:
        """The teacher's texts to a pool's sources."""
        key = (pool.fingerprint, config.targets)
        if key not in self._decoded:
            theirs = self.rows(pool, "training rows", of_teacher=True)
            self._decoded[key] = decoded(
                self.setup, pool, theirs, self.progress, choose=config.targets == "closest"
            )
        return self._decoded[key]

    def _by_seed(
        self, config: StageConfig, objective: Objective, data: Written | RunningText,
        pool: Pool | None,
    ) -> Callable[[int], Own]:  # fmt: skip
        """What each training of a stage has for itself: the teacher's answers, or the teachers'."""
        setup = self.setup
        if not objective.needs_teacher:
            return lambda seed: Own(None)
        if setup.config.label.tokens == "sparse":
            if setup.config.teachers:
                raise UsageError(
                    "label.tokens sparse keeps one teacher's answers: leave teachers out"
                )
            if config.name not in self.distributions:
                self.distributions[config.name] = sparse_source(setup, config, data, self.progress)
            kept = self.distributions[config.name]
            return lambda seed: Own(kept.source)
        several = Several(setup, config, pool) if setup.config.teachers else None
        if several is not None:
            self.several.setdefault(config.name, several)
            if untaught := several.untaught:
                self.progress.note(
                    f"{untaught:,} rows of stage {config.name} are of groups without a teacher: "
                    "they have their gold answers only"
                )

        def own(seed: int) -> Own:
            made = Own(self._live()) if several is None else several.own(seed, self)
            if config.on_policy is None:
                return made
            write = own_texts(data, config.on_policy, config.training.precision)
            share = config.on_policy.share
            return replace(made, rewrite=on_policy(write, made.source, share=share))

        own(setup.config.evaluation.seeds[0])  # what can't be is refused before anything is trained
        return own

    def _live(self) -> LiveTeacher:
        return live(self.setup, self.setup.teacher)

    @property
    def doubts(self) -> list[str]:
        """What a reader should know of the teacher's texts."""
        return [
            f"stage {name} learned only {found.texts_left:,} of the teacher's "
            f"{len(found.texts):,} texts: is the teacher trained for this task?"
            for (name, _), found in self.learnt.items()
            if found.texts_left < len(found.texts) / 2
        ]

    def results(self, student: nn.Module, runs: Sequence[Trained]) -> dict[str, Any]:
        """What the record says of the teachers' answers."""
        kept = next(iter(self.distributions.values()), None)
        several = next(iter(self.several.values()), None)
        return {
            "distributions": kept and kept.result(student, self.setup.task.width),
            "teachers": several and several.result(self.held_out, runs),
            "decoded": [
                DecodedResult(
                    stage=name, targets=targets, texts=found.texts_left, dropped=found.dropped
                )
                for (name, targets), found in self.learnt.items()
            ],
        }
