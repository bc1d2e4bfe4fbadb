"""The self-check of models that write: what is scored, and what must change nothing.

Axes: N scored tokens, K choices, B examples, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.core.config import LabelConfig, TrainingConfig
from stillhouse.core.errors import StillhouseError
from stillhouse.core.progress import Silent
from stillhouse.core.types import Batch, StudentOutput
from stillhouse.data.encoding import pad_id
from stillhouse.data.sources import Part, Pool
from stillhouse.flows.setup import Setup
from stillhouse.flows.sparse import ABSOLUTE
from stillhouse.flows.written import read_rows
from stillhouse.models.forward import run
from stillhouse.signals.distribution_check import check_distributions
from stillhouse.signals.distributions import DistributionCache, keep_distributions
from stillhouse.signals.teacher import LiveTeacher
from stillhouse.tasks.written import RunningText, Written, ranges
from stillhouse.training.objective import Objective
from stillhouse.training.steps import Forward, TextForward, plain_step

ROWS = 16
ALL, LITTLE = 1 << 40, 1 << 16  # bytes for the vocabulary's scores: all at once, and in many parts
DECODER, ENCODER = "decoder_input_ids", "input_ids"


@dataclass(frozen=True)
class Some:
    """The first rows of a run's data."""

    data: Written | RunningText
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        return self.data.lengths[self.rows]

    @property
    def keys_N2(self) -> np.ndarray:
        return self.data.keys_N2[self.rows]

    def scored_counts(self, rows: np.ndarray) -> np.ndarray:
        return self.data.scored_counts(self.rows[rows])

    def places(self, rows: np.ndarray) -> np.ndarray:
        starts = np.cumsum([0, *self.scored_counts(np.arange(len(self)))])
        return ranges(starts, rows)

    def batch(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        return replace(self.data.batch(self.rows[rows], rng), rows=rows)

    @property
    def gold_N(self) -> Tensor:
        found = self.whole.gold_N
        assert found is not None
        return found

    @property
    def whole(self) -> Batch:
        return self.batch(np.arange(len(self)))


@dataclass
class Writers:
    """What the checks look at: both models without dropout, a few rows in the student's tokens."""

    setup: Setup
    student: nn.Module
    some: Some
    folder: Path

    def live(self, precision: str = "float32", *, own_rows: bool = False) -> LiveTeacher:
        return LiveTeacher(
            self.setup.teacher,
            self.some if own_rows else None,
            fingerprint="live",
            precision=precision,
            choices=self.setup.task.width,
        )

    @property
    def objectives(self) -> dict[str, Objective]:
        """Of the stages; without a teacher's terms where the two cut texts differently."""
        found = {stage.name: self.setup.objectives[stage.name] for stage in self.setup.config.plan}
        return {
            name: objective
            for name, objective in found.items()
            if self.setup.same_tokens or not objective.needs_teacher
        }

    def gradient(
        self, objective: Objective, *, parts: int = 1, memory: int = ALL, dense: bool = False
    ) -> Tensor:
        """An objective's gradient over all rows, without dropout; `dense`: by autograd through the
        matrix of all scores."""
        model = copy.deepcopy(self.student).requires_grad_(True).eval()
        forward = TextForward(
            TrainingConfig(precision="float32"), fast=False, choices=self.setup.task.width
        )
        batches = [self.some.batch(r) for r in np.array_split(np.arange(len(self.some)), parts)]
        plain_step(
            model,
            batches,
            objective,
            self.live() if objective.needs_teacher else None,
            _dense(forward) if dense else forward,
            progress=0.0,
            norms=False,
            rngs=[np.random.default_rng(0)] * parts,
            totals={"examples": len(self.some), "scored": sum(batch.scored for batch in batches)},
            head_memory=memory,
        )
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _dense(forward: Forward) -> Forward:
    def multiplied_out(model: nn.Module, batch: Batch, rng: np.random.Generator) -> StudentOutput:
        found = forward(model, batch, rng)
        return replace(found, scores=found.scores_NK)

    return multiplied_out


def writers(setup: Setup, student: nn.Module, folder: Path) -> Writers:
    if setup.corpus is not None:
        data: Written | RunningText = RunningText(setup.corpus.train, setup.tokenizer)
    else:
        part: Part = setup.rows.labelled.parts[0]
        pool = Pool([Part(part.rows, part.indices[:ROWS], labelled=True)])
        data = read_rows(replace(setup, store=folder), pool, Silent(), "rows")
    return Writers(setup, student, Some(data, np.arange(min(ROWS, len(data)))), folder)


def teacher_is_steady(pair: Writers) -> str:
    if not pair.setup.same_tokens:
        return "not looked at: the teacher reads its own tokens"
    first, second = (pair.live().scores(pair.some.whole) for _ in range(2))
    if not torch.equal(first, second):
        raise StillhouseError("two passes of the teacher give different answers")
    if first.requires_grad or any(p.requires_grad for p in pair.setup.teacher.parameters()):
        raise StillhouseError("the teacher would get a gradient")
    return "two passes are equal, and no weight wants a gradient"


def answers_are_scored(pair: Writers) -> str:
    """Every answer's tokens and its end, and no other token."""
    some, tokenizer = pair.some, pair.setup.tokenizer
    batch = some.whole
    assert batch.gold_N is not None
    ends = np.cumsum(some.scored_counts(np.arange(len(some))))[:-1]
    said = [ids.tolist() for ids in np.split(batch.gold_N.cpu().numpy(), ends)]
    if isinstance(some.data, RunningText):
        return f"running text: {batch.scored:,} tokens of {len(some)} blocks, all but each's first"
    cut = 0
    for ids, answer in zip(said, some.data.answers, strict=False):
        if answer is None or not ids:
            continue
        if ids[-1] != tokenizer.eos_token_id:  # a turn's own end, or too long
            cut += 1
            continue
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        if "".join(answer.split()) not in "".join(text.split()):
            raise StillhouseError(f"of the answer {answer[:60]!r} the loss sees {text[:60]!r}")
    none = sum(not ids for ids in said)
    more = f", {cut} without the end-of-text token (cut, or ended by their template)" if cut else ""
    more += f", {none} without an answer" if none else ""
    return f"{batch.scored:,} tokens: the answers of {len(said)} rows and their ends{more}"


def micro_batches(pair: Writers) -> str:
    return _same(pair, "one batch and four micro-batches", {}, {"parts": 4})


def in_parts(pair: Writers) -> str:
    return _same(pair, "all scores at once and in parts", {"dense": True}, {"memory": LITTLE})


def _same(pair: Writers, what: str, one: dict[str, Any], other: dict[str, Any]) -> str:
    worst = 0.0
    for objective in pair.objectives.values():
        first, second = pair.gradient(objective, **one), pair.gradient(objective, **other)
        worst = max(worst, float((first - second).norm() / first.norm().clamp(1e-30)))
    if not worst < 1e-3:
        raise StillhouseError(f"{what}: gradients differ by {worst:.2g}")
    return f"{what}: gradients equal within {worst:.1g}"


def padding(pair: Writers) -> str:
    batch = pair.some.whole
    longer: dict[str, Tensor] = {}
    for name, tensor in batch.inputs.items():
        fill = pad_id(pair.setup.tokenizer) if name in (ENCODER, DECODER) else 0
        longer[name] = nn.functional.pad(tensor, (0, 5), value=fill)
    assert batch.scored_N is not None
    T = batch.inputs[DECODER if DECODER in batch.inputs else ENCODER].shape[1]
    places_N = batch.scored_N // T * (T + 5) + batch.scored_N % T
    with torch.no_grad():
        one_NK, other_NK = (
            run(
                pair.student, each, precision="float32", fast=False, choices=pair.setup.task.width
            ).scores_NK
            for each in (batch, replace(batch, inputs=longer, scored_N=places_N))
        )
    worst = float((one_NK - other_NK).abs().max() / one_NK.std().clamp(1e-30))
    if not worst < 1e-4:
        raise StillhouseError(
            f"five more padding tokens change the scores by {worst:.2g} of their spread"
        )
    return f"five more padding tokens change no score by more than {worst:.1g} of their spread"


def kept_is_live(pair: Writers) -> str:
    if not pair.setup.same_tokens:
        return "not looked at: the teacher reads its own tokens"
    label, some = pair.setup.config.label, pair.some
    form: dict[str, Any] = {"choices": pair.setup.task.width, "top": 4, "drawn": 8}
    cache = DistributionCache(pair.folder, {"selfcheck": True}, **form)
    asked = pair.live(label.precision, own_rows=True)
    config = LabelConfig(batch_size=8, precision=label.precision)
    keep_distributions(asked, cache, config, counts=some.scored_counts)
    again = DistributionCache(pair.folder, {"selfcheck": True}, **form)
    shuffled = np.random.default_rng(0).permutation(len(some))
    return check_distributions(
        pair.live().scores,
        again,
        some,
        np.array_split(shuffled, 4),
        tolerance=ABSOLUTE[label.precision],
    )


def tokenizers(pair: Writers) -> str:
    if pair.setup.same_tokens:
        return "teacher and student cut the probe texts alike"
    return "teacher and student have their own tokenizers: sequence level only"


CHECKS: dict[str, Callable[[Writers], str]] = {
    "the teacher is steady": teacher_is_steady,
    "answers are scored": answers_are_scored,
    "micro-batches change nothing": micro_batches,
    "the loss in parts = all at once": in_parts,
    "padding changes nothing": padding,
    "kept = live": kept_is_live,
    "tokenizers": tokenizers,
}
