"""Rows of models that write: what is scored, whose target it is, and what changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.core.config import LabelConfig, TrainingConfig
from stillhouse.core.terms import Schedule, TermConfig
from stillhouse.core.types import Batch, Dense, Sparse
from stillhouse.data.columns import Columns
from stillhouse.data.rows import ingest
from stillhouse.data.sources import Part, Pool
from stillhouse.data.tokens import train_tokenizer
from stillhouse.data.written import Kind, Rules, tokens_of
from stillhouse.models.new import new_model
from stillhouse.signals.distributions import (
    CachedDistributions,
    DistributionCache,
    keep_distributions,
)
from stillhouse.signals.teacher import LiveTeacher
from stillhouse.tasks.written import Written
from stillhouse.training import objective as objectives
from stillhouse.training.steps import TextForward, plain_step

TEXTS = ["the cat sat on the mat", "a dog ran to the house", "two birds sing", "the end"]
PAIRS = list(zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True)) * 2
KINDS: tuple[Kind, ...] = ("seq2seq", "causal_lm")


def data(kind: Kind, folder: Path) -> Written:
    made: Any = train_tokenizer(TEXTS * 3, kind="bpe", size=270, task=kind)
    made.pad_token = made.eos_token if kind == "causal_lm" else made.pad_token
    rows = [{"source": f"{i} {s}", "target": t} for i, (s, t) in enumerate(PAIRS)]
    found = ingest(enumerate(rows, 1), "x", Columns(texts=True), folder / "rows", labelled=True)
    pool = Pool([Part(found, found.kept, labelled=True)])
    tokens = tokens_of(pool, made, folder / "tokens", Rules(kind, 60, 60))
    return Written(kind, tokens, made, pool.labels.tolist(), 0 if kind == "seq2seq" else None)


def model(kind: Kind, tokenizer: Any, seed: int = 0) -> Any:
    return new_model(kind, tokenizer, width=16, layers=1, heads=2, dropout=0.0, seed=seed)


def step(student: Any, batches: list[Batch], teacher: Any, width: int, **term: Any) -> Any:
    """One step's loss and gradient of half soft targets and half gold."""
    terms = [TermConfig(kind="soft", weight=Schedule(start=0.5), **term),
             TermConfig(kind="gold", weight=Schedule(start=0.5))]  # fmt: skip
    objective = objectives.build(terms, choices=width, signal=Dense, has_gold=True)
    forward = TextForward(TrainingConfig(precision="float32"), choices=width)
    student.zero_grad()
    stats = plain_step(
        student, batches, objective, teacher, forward, progress=0.0, norms=False,
        rngs=[np.random.default_rng(0)] * len(batches),
        totals={"scored": sum(b.scored for b in batches), "examples": 8},
    )  # fmt: skip
    gradient = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    return float(stats.loss), gradient


def live(teacher: Any, width: int, of: Written | None = None) -> LiveTeacher:
    return LiveTeacher(teacher, of, fingerprint="live", precision="float32", choices=width)


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_is_learnt_and_nothing_after_it(kind: Kind, tmp_path: Path) -> None:
    """Rows: end-of-sequence masked when pad == eos; loss mask not shifted with the targets."""
    own = data(kind, tmp_path)
    batch = own.batch(np.arange(len(own)))
    assert batch.gold_N is not None
    texts = batch.gold_N.split(own.scored_counts(np.arange(len(own))).tolist())
    end = own.tokenizer.eos_token_id
    for text, answer in zip(texts, own.answers, strict=True):
        assert text[-1] == end
        assert own.tokenizer.decode(text[:-1]) == answer


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_into_micro_batches_changes_nothing(kind: Kind, tmp_path: Path) -> None:
    """Row: normaliser wrong under accumulation: texts have different numbers of tokens."""
    own = data(kind, tmp_path)
    student, teacher = (model(kind, own.tokenizer, seed) for seed in (0, 1))
    whole = [own.batch(np.arange(8))]
    parts = [
        own.batch(rows) for rows in (np.array([0]), np.array([1, 2, 3, 4, 5]), np.arange(6, 8))
    ]
    mine, theirs = (
        step(student, cut, live(teacher, own.width), own.width) for cut in (whole, parts)
    )
    assert mine[0] == pytest.approx(theirs[0], rel=1e-5)
    torch.testing.assert_close(mine[1], theirs[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_vocabulary_changes_nothing(kind: Kind, tmp_path: Path) -> None:
    """Row: padded student vocabulary filled with 0, not -inf: of either side."""
    own = data(kind, tmp_path)
    batches = [own.batch(np.arange(8))]
    student, teacher = (model(kind, own.tokenizer, seed) for seed in (0, 1))
    plain = step(student, batches, live(teacher, own.width), own.width)[0]
    for each in (student, teacher):
        each.resize_token_embeddings(own.width + 50, mean_resizing=False)
        with torch.no_grad():
            each.get_output_embeddings().weight[own.width :] = 9.0  # they would win
    padded = step(student, batches, live(teacher, own.width), own.width)[0]
    assert padded == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_gets_its_own_targets(kind: Kind, tmp_path: Path) -> None:
    """Row: cache addressed by step, not by example; and cached == live."""
    own = data(kind, tmp_path)
    teacher = live(model(kind, own.tokenizer, 1), own.width, own)
    cache = DistributionCache(tmp_path, {"of": kind}, choices=own.width, top=4, drawn=0)
    label = LabelConfig(precision="float32", batch_size=3)
    keep_distributions(teacher, cache, label, counts=own.scored_counts)
    source = CachedDistributions(cache, own.keys_N2, own.scored_counts, "tail")
    for rows in (np.array([5, 0, 3]), np.array([7]), np.arange(8)[::-1].copy()):
        batch = own.batch(rows)
        found = source.signal(batch)
        assert isinstance(found, Sparse)
        shares_NK = teacher.scores(batch).softmax(-1)
        exact_NT = shares_NK.gather(1, found.top_ids_NT.long())
        torch.testing.assert_close(found.top_p_NT.float(), exact_NT, atol=1e-4, rtol=0.05)
        assert torch.equal(shares_NK.argmax(-1), found.top_ids_NT[:, 0].long())


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_is_never_trained(kind: Kind, tmp_path: Path) -> None:
    """Row: teacher's targets not detached; teacher left in train mode."""
    own = data(kind, tmp_path)
    student, teacher = (model(kind, own.tokenizer, seed) for seed in (0, 1))
    teacher.train()
    source = live(teacher, own.width)
    step(student, [own.batch(np.arange(8))], source, own.width)
    assert not teacher.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "total_variation"])
def test_its_own_teacher_teaches_nothing(kind: Kind, divergence: str, tmp_path: Path) -> None:
    """Row: a fused path mixed in another loss: value and gradient are 0 at equality."""
    own = data(kind, tmp_path)
    student = model(kind, own.tokenizer)
    source = live(model(kind, own.tokenizer), own.width)
    soft = TermConfig(kind="soft", divergence=divergence)
    objective = objectives.build([soft], choices=own.width, signal=Dense, has_gold=True)
    batch = own.batch(np.arange(8))
    forward = TextForward(TrainingConfig(precision="float32"), choices=own.width)
    stats = plain_step(
        student, [batch], objective, source, forward, progress=0.0, norms=False,
        rngs=[np.random.default_rng(0)], totals={"scored": batch.scored, "examples": 8},
    )  # fmt: skip
    assert float(stats.loss) == pytest.approx(0.0, abs=1e-7)
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in student.parameters())
