"""Loads and checks everything a distillation needs, before a file of the run is written."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.config import WRITING, CorpusConfig, DistillConfig
from stillhouse.core.errors import ModelError, UsageError
from stillhouse.core.precision import Auto
from stillhouse.core.progress import Progress, Silent
from stillhouse.core.seeding import shape_seed
from stillhouse.core.types import Tap
from stillhouse.data.corpus import Corpus, corpus_bytes, load_corpus
from stillhouse.data.sources import Pool, Splits, load
from stillhouse.data.written import Kind
from stillhouse.flows.common import (
    corpus_of,
    load_answering,
    row_task,
    store_root,
    teacher_task,
)
from stillhouse.flows.dry_run import Trial, doubts, settled, two_rows
from stillhouse.flows.labelling import label_rule, tell_guesses, untrained_classes
from stillhouse.flows.objectives import build_objective
from stillhouse.flows.setup import Make, Setup, alike
from stillhouse.flows.writers import (
    check_named,
    check_starts,
    check_teaching,
    check_writers,
    corpus_for,
    is_running_text,
    splits_of,
    writing_task,
)
from stillhouse.models.generator import load_generator
from stillhouse.models.limits import check_tokenizer, check_vocabulary, max_tokens, tokenizer_for
from stillhouse.models.load import check_answers, load_tokenizer
from stillhouse.models.masked import load_masked_lm
from stillhouse.models.student import build, refuse_larger
from stillhouse.tasks.base import Task
from stillhouse.tasks.masked_lm import MaskedLM

PROBED = 200  # of the user's texts, on which tokenizers are compared


def prepare(
    config: DistillConfig, *, auto: Auto | None = None, progress: Progress | None = None
) -> Setup:
    """Loads and checks everything a run needs; what is still `auto` becomes what `auto` says (left
    out: what is fastest here), or float32 where a model can't do bf16. Raises UsageError before
    anything is trained."""
    auto = auto or Auto.of()
    setup = _prepared(auto.settle(config), auto, progress or Silent())
    trials = _trials(setup)
    setup.auto = settled(trials, auto, config)
    if reasons := doubts(trials[:1]):  # its answers are kept, and are to be what it would say again
        raise ModelError(f"{reasons[0]}: take another teacher")
    setup.doubts = doubts(trials[1:])
    setup.config = setup.auto.settle(config)
    return setup


def _trials(setup: Setup) -> list[Trial]:
    """What every model of a run must be able to do, on rows of the run's length; the teacher's is
    the first."""
    name, config = setup.task.name, setup.config
    pairs = False
    if setup.splits is not None and setup.task.name in ("classification", "regression"):
        pairs = any(example.pair is not None for example in setup.splits.reported.at(np.arange(1)))
    theirs = two_rows(name, setup.teacher_tokenizer, setup.teacher_length, pairs=pairs)
    objectives = [setup.objectives[stage.name] for stage in config.plan if not stage.corpus]
    reads = frozenset[Tap]().union(*(each.teacher_taps for each in objectives))
    found = [Trial(setup.teacher, theirs, config.label.precision, reads=reads)]
    reads = frozenset[Tap]().union(*(each.student_taps for each in objectives))
    mine = two_rows(name, setup.tokenizer, setup.length, pairs=pairs)
    student = setup.make(config.evaluation.seeds[0])
    for precision in dict.fromkeys(stage.training.precision for stage in config.plan):
        found.append(Trial(student, mine, precision, trains=True, reads=reads))
    return found


def _prepared(config: DistillConfig, auto: Auto, progress: Progress) -> Setup:
    if config.task == "masked_lm":
        return _on_text(config, auto, progress)
    if config.task in WRITING:
        return _writers(config, auto, progress)
    check_named(config.task, config.teacher)
    store, trust = store_root(config.cache), config.trust_remote_code
    check_answers(config.teacher, trust_remote_code=trust)
    rule = label_rule(config.task, config.teacher, config.data.label_map, trust_remote_code=trust)
    splits = load(config.data, store / "rows", rule=rule, progress=progress)
    labelled = [splits.labelled, splits.held_out, splits.reported]
    asked = row_task(config.task, labelled)
    teacher = load_answering(asked, config.teacher, trust_remote_code=trust)
    task = teacher_task(
        teacher.config,
        labelled,
        asked=asked,
        label_map=config.data.label_map,
        metric=config.evaluation.metric,
    )
    check_metric(task.name, config.evaluation.metric)
    splits.notes.extend(untrained_classes(task, splits))
    named = config.student.model or config.student.source

    def load_named() -> PreTrainedModel:
        assert named is not None
        return load_answering(task.name, named, labels=task.choices, trust_remote_code=trust)

    made = _models(config, teacher, load_named if named else None)
    if task.name == "span" and not alike(*made[1:]):
        raise UsageError(
            "spans are compared token by token, and the student has another tokenizer than its "
            "teacher: give a student with the teacher's"
        )
    setup = _checked(config, task, splits, None, teacher, *made, store, auto)
    tell_guesses(splits, progress, task=task if config.task == "auto" else None)
    return setup


def _on_text(config: DistillConfig, auto: Auto, progress: Progress) -> Setup:
    """A masked language model's run, on blocks of running text."""
    check_metric("masked_lm", config.evaluation.metric)
    store, trust = store_root(config.cache), config.trust_remote_code
    teacher = load_masked_lm(config.teacher, trust_remote_code=trust)
    named = config.student.model or config.student.source

    def load_named() -> PreTrainedModel:
        assert named is not None
        return load_masked_lm(named, fresh_head=True, trust_remote_code=trust)

    make, tokenizer, theirs = _models(config, teacher, load_named if named else None)
    if not alike(tokenizer, theirs):
        raise UsageError(
            "masked tokens are compared one by one, and the student has another tokenizer than "
            "its teacher: give a student with the teacher's"
        )
    asked = config.data.tokens("masked_lm")
    length = min(max_tokens(make(config.evaluation.seeds[0]), asked), max_tokens(teacher, asked))
    corpus = read_corpus(corpus_of(config.data), tokenizer, store, length, progress)
    task = MaskedLM(tokenizer, width=teacher.config.vocab_size)
    made = (make, tokenizer, theirs)
    return _checked(config, task, None, corpus, teacher, *made, store, auto)


def _writers(config: DistillConfig, auto: Auto, progress: Progress) -> Setup:
    """A run of models that write: on rows with answers, or on running text."""
    kind: Kind = "seq2seq" if config.task == "seq2seq" else "causal_lm"
    store, trust = store_root(config.cache), config.trust_remote_code
    check_metric(config.task, config.evaluation.metric)
    teacher = load_generator(config.teacher, kind, trust_remote_code=trust)
    named = config.student.model or config.student.source

    def load_named() -> PreTrainedModel:
        assert named is not None
        return load_generator(named, kind, trust_remote_code=trust)

    made = _models(config, teacher, load_named if named else None)
    make, mine, theirs = made
    texts = not (kind == "causal_lm" and is_running_text(config.data))
    splits = splits_of(config.data, store, progress) if texts else None
    probe: list[str] = []
    if splits is not None:
        some = np.arange(min(PROBED, len(splits.labelled)))
        probe = [example.text for example in splits.labelled.at(some)]
    others = {each.model: load_generator(each.model, kind, trust_remote_code=trust)
              for each in config.teachers if each.model != config.teacher}  # fmt: skip
    tokenizers = [(config.teacher, theirs)]
    tokenizers += [(name, load_tokenizer(name, trust_remote_code=trust)) for name in others]
    check_teaching(config, mine, tokenizers, probe)
    student = make(config.evaluation.seeds[0])
    check_starts(config, student, [teacher, *others.values()])
    task = writing_task(kind, config.evaluation.metric, config.writing, mine, student, texts=texts)
    corpus = None
    if splits is not None:
        check_writers(splits, kind, [(mine, student), (theirs, teacher)], progress)
    else:
        asked = config.data.tokens("masked_lm")
        length = min(
            max_tokens(make(config.evaluation.seeds[0]), asked), max_tokens(teacher, asked)
        )
        corpus = corpus_for(config.data, mine, store, length, progress)
    setup = _checked(config, task, splits, corpus, teacher, *made, store, auto)
    setup.teachers.update(others)
    if splits is not None:
        tell_guesses(splits, progress)
    return setup


def read_corpus(
    config: CorpusConfig,
    tokenizer: PreTrainedTokenizerBase,
    store: Path,
    length: int,
    progress: Progress,
    apart: Collection[bytes] = frozenset(),
    *,
    sought: Pool | None = None,
) -> Corpus:
    with progress.stage(f"reading {Path(config.path).name}", corpus_bytes(config), "bytes") as read:
        return load_corpus(
            config, tokenizer, store, max_length=length, progress=read, apart=apart, sought=sought
        )


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

    student = make(config.evaluation.seeds[0])
    refuse_larger(student, teacher)
    if config.task not in WRITING:  # whose tokens after a text's end are never looked at
        check_tokenizer(teacher, theirs)
        check_tokenizer(student, tokenizer)
    else:
        check_vocabulary(teacher, theirs)
        check_vocabulary(student, tokenizer)
    return make, tokenizer_for(student, tokenizer), tokenizer_for(teacher, theirs)


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
    auto: Auto,
) -> Setup:
    """The setup, every stage's objective built. Raises UsageError, ModelError."""
    student, asked = make(config.evaluation.seeds[0]), config.data.tokens(task.name)
    mine, theirs = max_tokens(student, asked), max_tokens(teacher, asked)
    if task.name == "span":  # both take the same windows
        mine = theirs = min(mine, theirs)
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
        mine,
        theirs,
        {},
        {},
        auto,
    )
    for stage in setup.config.plan:
        setup.objectives[stage.name] = build_objective(setup, stage)
    return setup


def check_metric(task: str, metric: str | None) -> None:
    """Raises UsageError for a metric that the task doesn't have."""
    known = {
        "classification": ("accuracy", "macro_f1", "matthews"),
        "regression": ("pearson", "spearman"),
        "span": ("f1", "exact_match"),
        "masked_lm": ("accuracy",),
        "seq2seq": ("bleu", "chrf", "log_likelihood", "accuracy"),
        "causal_lm": ("log_likelihood", "accuracy", "bleu", "chrf"),
    }[task]
    if metric is not None and metric not in known:
        raise UsageError(f"{task} has no metric {metric}: choose {', '.join(known)}")
