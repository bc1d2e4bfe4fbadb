"""Checks of a user's own teacher, student and rows for the failures that trained on in silence
elsewhere. Each looks at numbers, takes seconds, and says what it saw.

Axes: N rows, K choices.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse import selfcheck_writing as writing
from stillhouse.core.config import DistillConfig, LabelConfig, TrainingConfig
from stillhouse.core.console import Terminal
from stillhouse.core.errors import StillhouseError, UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.terms import Schedule, TermConfig
from stillhouse.core.types import Batch, Dense, StudentOutput
from stillhouse.data.encoding import pad_id, tokenizer_fingerprint
from stillhouse.data.sources import Part, Pool
from stillhouse.evaluation.evaluate import score_rows
from stillhouse.flows.prepare import prepare
from stillhouse.flows.setup import Setup
from stillhouse.models.forward import has_fast_path, scores
from stillhouse.models.limits import max_tokens
from stillhouse.numerics.divergences import DIVERGENCES
from stillhouse.signals.cache import AnswerCache, CachedTeacher
from stillhouse.signals.teacher import TOLERANCE, LiveTeacher, check, label
from stillhouse.tasks.base import Dataset, text_dataset
from stillhouse.training import objective as objectives
from stillhouse.training.objective import Objective
from stillhouse.training.response import REGRESSION
from stillhouse.training.steps import TextForward, plain_step

ROWS = 32


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    detail: str


@dataclass
class _Pair:
    """What the checks look at: both models without dropout, and a few rows in both's tokens."""

    setup: Setup
    student: nn.Module
    rows: Dataset
    teacher_rows: Dataset
    folder: Path

    @property
    def live(self) -> LiveTeacher:
        return LiveTeacher(
            self.setup.teacher,
            self.teacher_rows,
            fingerprint="live",
            precision="float32",
            fast=False,
        )

    def reading(self, objective: Objective) -> LiveTeacher:
        """The teacher with the states that an objective needs."""
        return LiveTeacher(
            self.setup.teacher,
            self.teacher_rows,
            fingerprint="live",
            precision="float32",
            fast=False,
            reads=objective.teacher_taps,
        )

    def batch(self) -> Batch:
        return self.rows.batch(np.arange(len(self.rows)))


def _teacher_is_steady(pair: _Pair) -> str:
    first, second = (pair.live.scores(pair.batch()) for _ in range(2))
    if not torch.equal(first, second):
        raise StillhouseError("two passes of the teacher give different answers")
    if first.requires_grad or any(p.requires_grad for p in pair.setup.teacher.parameters()):
        raise StillhouseError("the teacher would get a gradient")
    return "two passes are equal, and no weight wants a gradient"


def _zero_at_equality(pair: _Pair) -> str:
    teacher_NK = pair.live.scores(pair.batch())
    choices, sizes = teacher_NK.shape[1], []
    names = REGRESSION if choices == 1 else tuple(DIVERGENCES)
    for name in names:
        term = TermConfig(
            kind="soft",
            divergence=name,
            temperature=Schedule(start=2.0),
            beta=0.5 if name == "jsd" else None,
            alpha=0.1 if name == "skew_kl" else None,
        )
        made = objectives.build([term], choices=choices, signal=Dense, has_gold=True)
        mine_NK = teacher_NK.clone().requires_grad_(True)
        found = made.terms[0](StudentOutput(mine_NK), Dense(teacher_NK), pair.batch(), 0.0)
        (gradient,) = torch.autograd.grad(found.sum, mine_NK)
        sizes += [abs(float(found.sum.detach())) / len(teacher_NK), float(gradient.abs().max())]
    worst = float(np.max(sizes))
    if not worst < 1e-4:
        raise StillhouseError(
            f"a student equal to the teacher gets a loss or gradient of {worst:.2g}"
        )
    return (
        f"{len(names)} divergences: value and gradient at most {worst:.1g} where student = teacher"
    )


def _objectives(pair: _Pair) -> dict[str, Objective]:
    """The objectives of the stages on rows, projections as a run with seed 0 begins."""
    plan = pair.setup.config.plan
    found = {s.name: pair.setup.objectives[s.name] for s in plan if not s.corpus}
    for objective in found.values():
        objective.reset(0)
    return found


def _gradient(pair: _Pair, objective: Objective, parts: int) -> Tensor:
    """An objective's gradient over all rows, cut into `parts` micro-batches; no dropout."""
    model = copy.deepcopy(pair.student).requires_grad_(True).eval()
    batches = [pair.rows.batch(r) for r in np.array_split(np.arange(len(pair.rows)), parts)]
    plain_step(
        model,
        batches,
        objective,
        pair.reading(objective),
        _forward(objective),
        progress=0.0,
        norms=False,
        rngs=[np.random.default_rng(0)] * parts,
        totals={"examples": len(pair.rows), "scored": len(pair.rows)},
    )
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _forward(objective: Objective) -> TextForward:
    config = TrainingConfig(precision="float32")
    scored = objective.scores_student
    return TextForward(config, fast=False, reads=objective.student_taps, scored=scored)


def _micro_batches(pair: _Pair) -> str:
    apart = [0.0]
    for objective in _objectives(pair).values():
        whole, cut = _gradient(pair, objective, 1), _gradient(pair, objective, 4)
        apart.append(float((whole - cut).norm() / whole.norm()))
    worst = float(np.max(apart))
    if not worst < 1e-3:
        raise StillhouseError(f"four micro-batches change the gradient by {worst:.2g}")
    return f"one batch and four micro-batches: gradients equal within {worst:.1g}"


def _padding(pair: _Pair) -> str:
    inputs = dict(pair.batch().inputs)
    longer = {}
    for name, tensor in inputs.items():
        fill = pad_id(pair.setup.tokenizer) if name == "input_ids" else 0
        longer[name] = nn.functional.pad(tensor, (0, 5), value=fill)
    with torch.no_grad():
        one, other = (
            scores(pair.student, i, precision="float32", fast=False) for i in (inputs, longer)
        )
    worst = float((one - other).abs().max())
    if not worst < 1e-3:
        raise StillhouseError(
            f"five more padding tokens change the student's scores by {worst:.2g}"
        )
    return f"five more padding tokens change no score by more than {worst:.1g}"


def _fast_path(pair: _Pair) -> str:
    worst = 0.0
    for model, data in ((pair.student, pair.rows), (pair.setup.teacher, pair.teacher_rows)):
        if has_fast_path(model):
            gap = np.abs(score_rows(model, data, fast=True) - score_rows(model, data, fast=False))
            worst = max(worst, float(gap.max()))
    if not worst < 1e-3:
        raise StillhouseError(f"the fast path's scores differ from the model's own by {worst:.2g}")
    return f"fast and own forward differ by at most {worst:.1g}"


def _cache(pair: _Pair) -> str:
    identity: dict[str, object] = {"choices": pair.setup.task.choices, "selfcheck": True}
    precision = pair.setup.config.label.precision
    cache = AnswerCache(pair.folder, identity)
    asked = LiveTeacher(pair.setup.teacher, pair.teacher_rows, fingerprint="", precision=precision)
    label(asked, cache, LabelConfig(batch_size=8))
    again = AnswerCache(pair.folder, identity)
    source = CachedTeacher(again, pair.teacher_rows.keys_N2)
    shuffled = np.random.default_rng(0).permutation(len(pair.teacher_rows))
    worst = check(pair.live, source.signal, rows=shuffled, tolerance=TOLERANCE[precision])
    return f"written, reopened, read in another order: within {worst:.1g} of the live teacher"


def _parts(pair: _Pair) -> str:
    """Each term alone reaches the weights, and together they are the whole."""
    model = copy.deepcopy(pair.student).requires_grad_(True).eval()
    weights, names = list(model.parameters()), []
    for objective in _objectives(pair).values():
        batch = pair.batch()
        signal = pair.reading(objective).signal(batch)
        output = _forward(objective)(model, batch, np.random.default_rng(0))
        weighted = [
            term(output, signal, batch, 0.0).sum * objectives.at(term.weight, 0.0)
            for term in objective.terms
        ]
        alone = [_flat(loss, weights) for loss in weighted]
        whole = _flat(torch.stack(weighted).sum(), weights)
        for term, gradient in zip(objective.terms, alone, strict=True):
            if not gradient.abs().max() > 0:
                raise StillhouseError(f"the {term.name} term has no gradient")
        if not torch.allclose(sum(alone[1:], alone[0]), whole, rtol=1e-3, atol=1e-4):
            raise StillhouseError("the terms' gradients don't add up to the objective's")
        names += [term.name for term in objective.terms]
    return f"each of {', '.join(names)} has a gradient, and they add up to the whole"


def _flat(loss: Tensor, weights: list[nn.Parameter]) -> Tensor:
    found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    pairs = zip(found, weights, strict=True)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in pairs])


def _tokenizers(pair: _Pair) -> str:
    mine, theirs = pair.setup.tokenizer, pair.setup.teacher_tokenizer
    if tokenizer_fingerprint(mine) == tokenizer_fingerprint(theirs):
        return "teacher and student encode the probe text alike"
    return "teacher and student have their own tokenizers; each reads the text in its own"


CHECKS: dict[str, Callable[[_Pair], str]] = {
    "the teacher is steady": _teacher_is_steady,
    "student = teacher gives 0": _zero_at_equality,
    "terms add up": _parts,
    "micro-batches change nothing": _micro_batches,
    "padding changes nothing": _padding,
    "fast path = own forward": _fast_path,
    "cached = live": _cache,
    "tokenizers": _tokenizers,
}


def selfcheck(config: DistillConfig, *, progress: Progress | None = None) -> list[Check]:
    """Runs every check on a config's teacher, student and first rows. Label names are matched on
    the way; a mismatch raises DataError as it would in a run."""
    if config.task == "masked_lm":
        raise UsageError("selfcheck looks at rows and labels; give it the task to be distilled")
    progress = progress or Terminal()
    setup = prepare(config, progress=progress)
    if setup.writes:
        with tempfile.TemporaryDirectory() as temporary:
            student = setup.make(config.evaluation.seeds[0]).eval()
            return _run(writing.CHECKS, writing.writers(setup, student, Path(temporary)), progress)
    assert setup.splits is not None
    if setup.task.name == "span":
        raise UsageError("selfcheck looks at rows and labels; spans have neither cache nor labels")
    part: Part = setup.splits.labelled.parts[0]
    pool = Pool([Part(part.rows, part.indices[:ROWS], labelled=True)])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        student = setup.make(config.evaluation.seeds[0]).eval()
        data = [
            text_dataset(
                setup.task,
                pool,
                tokenizer,
                folder,
                max_length=max_tokens(model, config.data.tokens(setup.task.name)),
            )
            for model, tokenizer in (
                (student, setup.tokenizer),
                (setup.teacher, setup.teacher_tokenizer),
            )
        ]
        return _run(CHECKS, _Pair(setup, student, data[0], data[1], folder), progress)


def _run(checks: Mapping[str, Callable[[Any], str]], pair: Any, progress: Progress) -> list[Check]:
    found: list[Check] = []
    with progress.stage("checking", len(checks), "checks") as advance:
        for name, run in checks.items():
            try:
                found.append(Check(name, True, run(pair)))
            except StillhouseError as error:
                found.append(Check(name, False, str(error)))
            except Exception as error:  # a check that breaks has failed, and the others go on
                found.append(Check(name, False, f"{type(error).__name__}: {error}"))
            advance(1)
    return found
