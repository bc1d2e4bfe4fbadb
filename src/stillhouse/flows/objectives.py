"""The stages' objectives: their terms, checked against student and teacher before any training."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from stillhouse.core.config import StageConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.seeding import shape_seed
from stillhouse.core.terms import AnyTerm, InnerTermConfig
from stillhouse.core.types import Dense
from stillhouse.flows.setup import Setup, alike
from stillhouse.models.load import load_tokenizer
from stillhouse.models.masked import around, load_masked_lm
from stillhouse.models.taps import check_taps, geometry
from stillhouse.training import objective as objectives
from stillhouse.training.inner import Inside
from stillhouse.training.objective import Objective


def build_objective(setup: Setup, stage: StageConfig) -> Objective:
    """A stage's terms, checked against both models. Raises UsageError, ModelError."""
    student = setup.make(setup.config.evaluation.seeds[0])
    terms = stage.objective
    try:
        teacher = stage_teacher(setup, stage)
        if stage.corpus:
            found = _text_objective(terms, student, teacher, setup)
        else:
            if setup.corpus is not None and not setup.writes:  # whose padded ones are cut
                _same_vocabulary(terms, student, teacher)
            found = objectives.build(
                terms,
                choices=setup.task.width,
                signal=Dense,
                has_gold=setup.splits is None
                or stage.targets != "gold"
                or (stage.rows != "unlabelled" and bool(len(setup.splits.labelled))),
                inside=_inside(terms, student, teacher, same_tokens=setup.same_tokens),
            )
        if not setup.writes:
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
        asked = [s for s in setup.config.plan if s.teacher == stage.teacher]
        responds = any(term.kind in ("soft", "hard") for s in asked for term in s.objective)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(shape_seed(0))  # for a head that nobody asks
            setup.teachers[stage.teacher] = load_masked_lm(
                stage.teacher, fresh_head=not responds, trust_remote_code=trust
            )
        theirs = load_tokenizer(stage.teacher, trust_remote_code=trust)
        if not alike(setup.tokenizer, theirs):
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
