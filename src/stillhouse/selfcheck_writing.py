"""The self-check of models that write: what is scored, and what must change nothing.

Axes: N scored tokens, K choices, B examples, T tokens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.core.config import LabelConfig, TrainingConfig
from stillhouse.core.errors import RunError, StillhouseError
from stillhouse.core.progress import Silent
from stillhouse.core.types import Batch, Example, StudentOutput
from stillhouse.data.chat import turns_of
from stillhouse.data.encoding import pad_id
from stillhouse.data.sources import Part, Pool
from stillhouse.flows.setup import Setup
from stillhouse.flows.sparse import ABSOLUTE
from stillhouse.flows.written import read_rows
from stillhouse.models.forward import run
from stillhouse.models.limits import max_tokens
from stillhouse.models.reader import ends_of
from stillhouse.selfcheck_answers import agree, agree_in_words, tokens_of_answer
from stillhouse.signals.distribution_check import check_distributions
from stillhouse.signals.distributions import DistributionCache, keep_distributions
from stillhouse.signals.teacher import LiveTeacher
from stillhouse.tasks.written import RunningText, Written, ranges
from stillhouse.training.objective import Objective
from stillhouse.training.steps import Forward, TextForward, plain_step

ROWS = 16
SCORES = 1 << 25  # over the vocabulary at most: 128 MiB, a few times in memory
ALL, LITTLE = 1 << 40, 1 << 16  # bytes for these: all at once, and in many parts
MORE = 5  # tokens of padding
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
    examples: list[Example]  # of the rows; of running text none
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
        rows = np.array_split(np.arange(len(self.some)), min(parts, len(self.some)))
        batches = [self.some.batch(part) for part in rows]
        plain_step(
            model,
            batches,
            objective,
            self.live() if objective.needs_teacher else None,
            _dense(forward) if dense else forward,
            progress=0.0,
            norms=False,
            rngs=[np.random.default_rng(0)] * len(batches),
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
    """A few rows, fewer where their scores over the vocabulary would take more than SCORES."""
    examples: list[Example] = []
    if setup.corpus is not None:
        data: Written | RunningText = RunningText(setup.corpus.train, setup.tokenizer)
    else:
        part: Part = setup.rows.labelled.parts[0]
        pool = Pool([Part(part.rows, part.indices[:ROWS], labelled=True)])
        data = read_rows(replace(setup, store=folder), pool, Silent(), "rows")
        examples = list(pool)
    counts = data.scored_counts(np.arange(min(ROWS, len(data))))
    fitting = int((np.cumsum(counts) * setup.task.width <= SCORES).sum())
    rows = np.arange(max(1, min(len(counts), fitting)))
    return Writers(setup, student, Some(data, rows), examples, folder)


def teacher_is_steady(pair: Writers) -> str:
    if not pair.setup.same_tokens:
        return "not looked at: the teacher reads its own tokens"
    first, second = (pair.live().scores(pair.some.whole) for _ in range(2))
    if not torch.isfinite(first).all():
        raise StillhouseError("the teacher's scores are not finite: check its weights")
    if not torch.equal(first, second):
        raise StillhouseError("two passes of the teacher give different answers")
    return f"two passes over {len(first):,} tokens are equal"


def answers_are_scored(pair: Writers) -> str:
    """Every answer's tokens and its end, and no other token; the answers' tokens are made anew."""
    some, batch = pair.some, pair.some.whole
    assert batch.gold_N is not None
    if not batch.scored:
        raise StillhouseError(f"none of the first {len(some)} rows has an answer to learn")
    ends = np.cumsum(some.scored_counts(np.arange(len(some))))[:-1]
    said = [ids.tolist() for ids in np.split(batch.gold_N.cpu().numpy(), ends)]
    if isinstance(some.data, RunningText):
        for row, ids in enumerate(said):
            whole = some.batch(np.array([row])).inputs[ENCODER][0].tolist()
            if ids != whole[1 : len(ids) + 1] or len(ids) != some.lengths[row] - 1:
                raise StillhouseError(f"of block {row + 1} other tokens are scored than its own")
        return f"running text: {batch.scored:,} tokens of {len(some)} blocks, all but each's first"
    cut, ends = 0, set(ends_of(pair.student))  # pyright: ignore[reportArgumentType]
    for row, ids in enumerate(said):
        answer, full = some.data.answers[row], _is_full(pair, some.data, row)
        turns, label = turns_of(pair.examples[row].text), pair.examples[row].label
        if answer is None:
            right = not ids
        elif turns is None:
            right = agree(ids, tokens_of_answer(some.data, answer), cut=full)
        else:
            whole = turns.answered(str(label))
            right = agree_in_words(ids, whole, some.data.tokenizer, cut=full)
            if not full and not set(ids) & ends:
                raise StillhouseError(
                    f"the answer of row {row + 1} ends with none of the model's end tokens"
                )
        if not right:
            seen = some.data.tokenizer.decode(ids)
            raise StillhouseError(
                f"the answer of row {row + 1} is {str(answer)[:60]!r}, the loss sees {seen!r:.80}"
            )
        cut += full
    none = sum(not ids for ids in said)
    more = f", {cut} of them cut" if cut else ""
    more += f"; {none} rows without an answer" if none else ""
    answers = len(said) - none
    return f"{batch.scored:,} tokens: the answers of {answers} rows and their ends{more}"


def _is_full(pair: Writers, data: Written, row: int) -> bool:
    """Whether a row has as many tokens as it may have: it may have been cut."""
    limit = pair.setup.length
    if data.pairs:
        limit = min(pair.setup.config.data.target_length or limit, limit)
    return len(data.tokens.ids[row]) >= limit


def micro_batches(pair: Writers) -> str:
    return _same(pair, "one batch and four micro-batches", {}, {"parts": 4})


def in_parts(pair: Writers) -> str:
    return _same(pair, "all scores at once and in parts", {"dense": True}, {"memory": LITTLE})


def _same(pair: Writers, what: str, one: dict[str, Any], other: dict[str, Any]) -> str:
    apart = []
    for name, objective in pair.objectives.items():
        first, second = pair.gradient(objective, **one), pair.gradient(objective, **other)
        if not 0 < (size := float(first.norm())) < math.inf:
            raise StillhouseError(f"stage {name}: a gradient of norm {size:.2g} trains nothing")
        apart.append(float((first - second).norm()) / size)
    worst = float(np.max(apart, initial=0.0))
    if not worst < 1e-3:
        raise StillhouseError(f"{what}: gradients differ by {worst:.2g}")
    return f"{what}: gradients equal within {worst:.1g}"


def padding(pair: Writers) -> str:
    batch = pair.some.whole
    longer: dict[str, Tensor] = {}
    for name, tensor in batch.inputs.items():
        width = tensor.shape[1]
        more = max_tokens(pair.student, width + MORE) - width  # within its positions
        fill = pad_id(pair.setup.tokenizer) if name in (ENCODER, DECODER) else 0
        longer[name] = nn.functional.pad(tensor, (0, more), value=fill)
    if all(longer[name].shape == tensor.shape for name, tensor in batch.inputs.items()):
        return "not looked at: the rows fill all of the student's positions"
    answers = DECODER if DECODER in batch.inputs else ENCODER
    before, after = (inputs[answers].shape[1] for inputs in (batch.inputs, longer))
    assert batch.scored_N is not None
    places_N = batch.scored_N // before * after + batch.scored_N % before
    with torch.no_grad():
        one_NK, other_NK = (
            run(
                pair.student, each, precision="float32", fast=False, choices=pair.setup.task.width
            ).scores_NK
            for each in (batch, replace(batch, inputs=longer, scored_N=places_N))
        )
    worst = float((one_NK - other_NK).abs().max() / one_NK.std().clamp(1e-30))
    if not worst < 1e-4:
        raise StillhouseError(f"more padding changes the scores by {worst:.2g} of their spread")
    return f"more padding tokens change no score by more than {worst:.1g} of their spread"


def kept_is_live(pair: Writers) -> str:
    """Also whether another's distributions would have been told apart: these, a row off."""
    if not pair.setup.same_tokens:
        return "not looked at: the teacher reads its own tokens"
    label, some = pair.setup.config.label, pair.some
    form: dict[str, Any] = {
        "choices": pair.setup.task.width,
        "top": min(label.top, pair.setup.task.width),
        "drawn": label.drawn,
    }
    cache = DistributionCache(pair.folder, {"selfcheck": True}, **form)
    asked = pair.live(label.precision, own_rows=True)
    config = LabelConfig(batch_size=8, precision=label.precision)
    keep_distributions(asked, cache, config, counts=some.scored_counts)
    again = DistributionCache(pair.folder, {"selfcheck": True}, **form)
    shuffled = np.random.default_rng(0).permutation(len(some))
    parts = np.array_split(shuffled, min(4, len(some)))

    def compared(asked: Callable[[Batch], Tensor]) -> str:
        allowed = ABSOLUTE[label.precision]
        return check_distributions(asked, again, some, parts, tolerance=allowed)

    said = compared(pair.live().scores)
    try:
        compared(lambda batch: pair.live().scores(batch).roll(1, 0))
    except RunError:
        return said
    return f"{said}; its answers are too alike, token for token, to tell them from another's"


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
