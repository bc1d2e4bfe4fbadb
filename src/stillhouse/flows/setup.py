"""Everything a distillation needs, loaded and checked before a file of the run is written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.config import (
    SOFT_AND_GOLD,
    CorpusConfig,
    DataConfig,
    DistillConfig,
    StageConfig,
)
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress, Silent
from stillhouse.core.seeding import shape_seed
from stillhouse.core.terms import AnyTerm, InnerTermConfig, TermConfig
from stillhouse.core.types import Dense
from stillhouse.data.corpus import Corpus, corpus_bytes, load_corpus
from stillhouse.data.encoding import tokenizer_fingerprint
from stillhouse.data.sources import Splits, load
from stillhouse.flows.common import check_padding, max_tokens, store_root, teacher_task
from stillhouse.models.load import (
    fingerprint,
    folder_fingerprint,
    load_classifier,
    load_tokenizer,
)
from stillhouse.models.masked import around, load_masked_lm
from stillhouse.models.student import build, refuse_larger
from stillhouse.models.taps import check_taps, geometry
from stillhouse.tasks.base import Task
from stillhouse.tasks.masked_lm import MaskedLM
from stillhouse.training import objective as objectives
from stillhouse.training.inner import Inside
from stillhouse.training.objective import Objective

Make = Callable[[int], PreTrainedModel]


@dataclass
class Setup:
    """Everything checked and ready. A run is on rows (`splits`) or on running text (`corpus`)."""

    config: DistillConfig
    task: Task
    splits: Splits | None
    corpus: Corpus | None
    teacher: PreTrainedModel
    teacher_tokenizer: PreTrainedTokenizerBase
    tokenizer: PreTrainedTokenizerBase
    make: Make
    store: Path
    length: int
    teacher_length: int
    teachers: dict[str, PreTrainedModel]  # of single stages, by name
    objectives: dict[str, Objective]  # by stage

    @property
    def rows(self) -> Splits:
        assert self.splits is not None, "asked of runs on rows only"
        return self.splits

    @property
    def plan(self) -> list[StageConfig]:
        """The stages, the task's default objective where none was asked for."""
        return [
            stage.model_copy(update={"objective": stage_terms(stage, self.task)})
            for stage in self.config.plan
        ]

    @property
    def notes(self) -> list[str]:
        return self.splits.notes if self.splits else self.corpus.notes if self.corpus else []

    @property
    def same_tokens(self) -> bool:
        return _alike(self.tokenizer, self.teacher_tokenizer) and self.length == self.teacher_length

    @property
    def content(self) -> dict[str, str]:
        """Fingerprints of what the config names by path."""
        source = self.splits or self.corpus
        assert source is not None
        found = {
            "teacher": fingerprint(self.teacher),
            "teacher's tokenizer": tokenizer_fingerprint(self.teacher_tokenizer),
            "data": source.fingerprint,
        }
        if named := self.config.student.model or self.config.student.source:
            found["student's model"] = folder_fingerprint(named)
        for name in self.teachers:
            found[f"teacher {name}"] = folder_fingerprint(name)
        return found


def _alike(mine: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> bool:
    return mine is theirs or tokenizer_fingerprint(mine) == tokenizer_fingerprint(theirs)


def stage_terms(stage: StageConfig, task: Task) -> tuple[AnyTerm, ...]:
    """The stage's terms; DistilBERT's where a masked language model is left at the default."""
    masked = task.name == "masked_lm" and stage.objective == SOFT_AND_GOLD
    return DISTILBERT if masked else stage.objective


# Sanh et al. 2019, with the weights of their published run.
DISTILBERT: tuple[AnyTerm, ...] = (
    TermConfig(kind="soft", weight=5.0, temperature=2.0),  # pyright: ignore[reportArgumentType]
    TermConfig(kind="gold", weight=2.0),  # pyright: ignore[reportArgumentType]
    InnerTermConfig(kind="cosine", weight=1.0),  # pyright: ignore[reportArgumentType]
)


def prepare(config: DistillConfig, *, progress: Progress | None = None) -> Setup:
    """Loads and checks everything a run needs. Raises UsageError before anything is trained."""
    progress = progress or Silent()
    if config.task == "masked_lm":
        return _on_text(config, progress)
    store, trust = store_root(config.cache), config.trust_remote_code
    teacher = load_classifier(config.teacher, trust_remote_code=trust)
    splits = load(config.data, store / "rows")
    labelled = [splits.labelled, splits.held_out, splits.reported]
    task = teacher_task(
        teacher.config,
        labelled,
        asked=config.task,
        label_map=config.data.label_map,
        metric=config.proof.metric,
    )
    check_metric(task, config.proof.metric)
    named = config.student.model or config.student.source

    def load_named() -> PreTrainedModel:
        assert named is not None
        return load_classifier(named, labels=task.choices, trust_remote_code=trust)

    made = _models(config, teacher, load_named if named else None)
    return _checked(config, task, splits, None, teacher, *made, store)


def _on_text(config: DistillConfig, progress: Progress) -> Setup:
    """A masked language model's run, on blocks of running text."""
    if config.proof.metric not in (None, "accuracy"):
        raise UsageError(f"masked_lm has no metric {config.proof.metric}: choose accuracy")
    store, trust = store_root(config.cache), config.trust_remote_code
    teacher = load_masked_lm(config.teacher, trust_remote_code=trust)
    named = config.student.model or config.student.source

    def load_named() -> PreTrainedModel:
        assert named is not None
        return load_masked_lm(named, fresh_head=True, trust_remote_code=trust)

    make, tokenizer, theirs = _models(config, teacher, load_named if named else None)
    if not _alike(tokenizer, theirs):
        raise UsageError(
            "masked tokens are compared one by one, and the student has another tokenizer than "
            "its teacher: give a student with the teacher's"
        )
    length = min(max_tokens(make(config.proof.seeds[0]), config.data.max_length),
                 max_tokens(teacher, config.data.max_length))  # fmt: skip
    corpus = read_corpus(corpus_of(config.data), tokenizer, store, length, progress)
    task = MaskedLM(tokenizer, width=teacher.config.vocab_size)
    made = (make, tokenizer, theirs)
    return _checked(config, task, None, corpus, teacher, *made, store)


def corpus_of(data: DataConfig) -> CorpusConfig:
    """The corpus section of a run that is all on running text."""
    return CorpusConfig(
        path=data.path, length=data.max_length, packed=data.packed, rows=data.labelled_rows
    )


def read_corpus(
    config: CorpusConfig,
    tokenizer: PreTrainedTokenizerBase,
    store: Path,
    length: int,
    progress: Progress,
    apart: Collection[bytes] = frozenset(),
) -> Corpus:
    with progress.stage(f"reading {Path(config.path).name}", corpus_bytes(config), "bytes") as read:
        return load_corpus(config, tokenizer, store, max_length=length, progress=read, apart=apart)


def _models(
    config: DistillConfig,
    teacher: PreTrainedModel,
    load_named: Callable[[], PreTrainedModel] | None,
) -> tuple[Make, PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """How students are made, their tokenizer, and the teacher's."""
    shape, trust = config.student, config.trust_remote_code
    named = shape.model or shape.source
    theirs = load_tokenizer(config.teacher, trust_remote_code=trust)
    tokenizer = load_tokenizer(named, trust_remote_code=trust) if named else theirs

    def make(seed: int) -> PreTrainedModel:
        source = teacher
        if load_named is not None:
            with torch.random.fork_rng(devices=[]):  # for a head that the named model lacks
                torch.manual_seed(shape_seed(seed))
                source = load_named()
        return source if shape.model else build(source, shape, seed=shape_seed(seed))

    student = make(config.proof.seeds[0])
    refuse_larger(student, teacher)
    check_padding(teacher, theirs)
    check_padding(student, tokenizer)
    return make, _without_types(tokenizer, student), theirs


def _without_types(
    tokenizer: PreTrainedTokenizerBase, student: PreTrainedModel
) -> PreTrainedTokenizerBase:
    """The tokenizer without token types where the student has no embeddings for them: a user
    passes on to the model whatever the tokenizer gives."""
    names = tokenizer.model_input_names
    if "token_type_ids" not in names or hasattr(student.config, "type_vocab_size"):
        return tokenizer
    own = copy.deepcopy(tokenizer)
    own.model_input_names = [name for name in names if name != "token_type_ids"]
    return own


def _checked(
    config: DistillConfig,
    task: Task,
    splits: Splits | None,
    corpus: Corpus | None,
    teacher: PreTrainedModel,
    make: Make,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    store: Path,
) -> Setup:
    """The setup, every stage's objective built. Raises UsageError, ModelError."""
    student = make(config.proof.seeds[0])
    setup = Setup(
        config,
        task,
        splits,
        corpus,
        teacher,
        teacher_tokenizer,
        tokenizer,
        make,
        store,
        max_tokens(student, config.data.max_length),
        max_tokens(teacher, config.data.max_length),
        {},
        {},
    )
    for stage in setup.plan:
        setup.objectives[stage.name] = build_objective(setup, stage)
    return setup


def build_objective(setup: Setup, stage: StageConfig) -> Objective:
    """A stage's terms, checked against both models. Raises UsageError, ModelError."""
    student = setup.make(setup.config.proof.seeds[0])
    terms = stage.objective
    try:
        teacher = stage_teacher(setup, stage)
        if stage.corpus:
            found = _text_objective(terms, student, teacher, setup)
        else:
            if setup.corpus is not None:
                _same_vocabulary(terms, student, teacher)
            found = objectives.build(
                terms,
                choices=setup.task.width,
                signal=Dense,
                has_gold=setup.splits is None or bool(len(setup.splits.labelled)),
                inside=_inside(terms, student, teacher, same_tokens=setup.same_tokens),
            )
        check_taps(student, found.student_taps)
        check_taps(teacher, found.teacher_taps)
    except UsageError as error:
        where = f"stage {stage.name}: " if setup.config.stages else ""
        raise type(error)(f"{where}{error}") from None
    return found


def stage_teacher(setup: Setup, stage: StageConfig) -> PreTrainedModel:
    """The stage's own teacher, loaded once, or the run's. Raises ModelError, UsageError."""
    if stage.teacher is None:
        return setup.teacher
    if stage.teacher not in setup.teachers:
        trust = setup.config.trust_remote_code
        responds = any(term.kind in ("soft", "hard") for term in stage.objective)
        with torch.random.fork_rng(devices=[]):
            setup.teachers[stage.teacher] = load_masked_lm(
                stage.teacher, fresh_head=not responds, trust_remote_code=trust
            )
        theirs = load_tokenizer(stage.teacher, trust_remote_code=trust)
        if not _alike(setup.tokenizer, theirs):
            raise UsageError(f"stage {stage.name}: its teacher has another tokenizer")
    return setup.teachers[stage.teacher]


def _text_objective(
    terms: tuple[AnyTerm, ...], student: PreTrainedModel, teacher: PreTrainedModel, setup: Setup
) -> Objective:
    """The objective of a stage on running text."""
    masked = type(teacher).__name__.endswith("ForMaskedLM")
    if not masked and any(term.kind in ("soft", "hard") for term in terms):
        raise UsageError(
            "on a corpus, soft and hard terms need a masked language model: name it as the "
            "stage's teacher"
        )
    if any(term.kind != "gold" for term in terms) and not (masked or setup.same_tokens):
        raise UsageError("on a corpus, the student needs its teacher's tokenizer")
    if any(not isinstance(term, InnerTermConfig) for term in terms):
        around(student, 0)  # whether it can be
    _same_vocabulary(terms, student, teacher)
    return objectives.build(
        terms,
        choices=student.config.vocab_size,
        signal=Dense,
        has_gold=True,
        inside=_inside(terms, student, teacher, same_tokens=True),
    )


def _same_vocabulary(
    terms: tuple[AnyTerm, ...], student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    mine, theirs = student.config.vocab_size, teacher.config.vocab_size
    if mine != theirs and any(term.kind in ("soft", "hard") for term in terms):
        raise UsageError(
            f"the student scores {mine} tokens and its teacher {theirs}: give both a vocabulary of "
            "one size (resize_token_embeddings), or leave soft and hard terms out"
        )


def _inside(
    terms: tuple[AnyTerm, ...],
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    *,
    same_tokens: bool,
) -> Inside | None:
    if not any(isinstance(term, InnerTermConfig) for term in terms):
        return None
    return Inside(geometry(student), geometry(teacher), same_tokens)


def check_metric(task: Task, metric: str | None) -> None:
    """Raises UsageError for a metric that the task doesn't have."""
    known = {
        "classification": ("accuracy", "macro_f1", "matthews"),
        "regression": ("pearson", "spearman"),
    }[task.name]
    if metric is not None and metric not in known:
        raise UsageError(f"{task.name} has no metric {metric}: choose {', '.join(known)}")
