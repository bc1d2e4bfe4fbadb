"""Why a distillation helped or not: what each stage did, whose gradient it was, and how alike
student and teacher are inside.

Axes: N tokens, H hidden.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.core.errors import ModelError
from stillhouse.core.results import Ablation, Similarity, StageResult, Verdict
from stillhouse.core.seeding import generator
from stillhouse.core.types import Tap
from stillhouse.core.units import points, unit
from stillhouse.core.verdicts import ONE_SEED
from stillhouse.flows.distill import Outcome
from stillhouse.flows.stages import load_trained
from stillhouse.models.forward import run
from stillhouse.models.taps import geometry
from stillhouse.numerics.cka import cka_matrix
from stillhouse.tasks.base import Data

ROWS = 512  # held-out rows whose states are compared
TOKENS = 5  # times the width: with fewer, CKA of unrelated states is not small
MOST, LEAST = 10, 8192  # times the width: more tell nothing new; and what is always taken
SMALL = 0.05  # a share of the gradient that hardly counts
RESPONSE = ("soft", "hard", "gold")
OF_TERMS = {  # what is said of terms, by the verdict on them
    "hurt": "A term hurt",
    "no difference": "No difference beyond the margin, with and without",
    "can't tell": "These data and seeds can't tell whether a term helps",
    "not comparable": "Not comparable, with and without",
}


def stage_results(outcome: Outcome, out: Path) -> list[StageResult]:
    """One entry a stage, from the runs' facts and the metrics' log."""
    shares = _gradient_shares(out / "metrics.jsonl", [stage.name for stage in outcome.stages])
    found = []
    for i, stage in enumerate(outcome.stages):
        fits = [each.fits[i] for each in outcome.students]
        scores = [fit.score for fit in fits if fit.score is not None]
        found.append(
            StageResult(
                name=stage.name,
                data=stage.described,
                rows=len(stage.data),
                terms=[term.name for term in stage.objective.terms],
                steps=max(fit.steps for fit in fits),
                best_steps=[fit.best_step for fit in fits],
                seconds=sum(fit.seconds for fit in fits),
                metric=stage.metric,
                score=float(np.mean(scores)) if scores else None,
                gradient_share=shares.get(stage.name, {}),
            )
        )
    return found


def _gradient_shares(path: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """By stage, each term's part of the sum of all terms' gradient norms, mean of logged steps."""
    logged: dict[str, list[dict[str, float]]] = defaultdict(list)
    if not path.exists():
        return {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("run") != "student" or "terms" not in row:
            continue
        norms = {name: term.get("gradient_norm") for name, term in row["terms"].items()}
        known = {name: norm for name, norm in norms.items() if norm is not None}
        if sum(known.values()) > 0:
            total = sum(known.values())
            shares = {name: known.get(name, 0.0) / total for name in norms}
            logged[row.get("stage", names[0])].append(shares)
    return {
        stage: {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        for stage, rows in logged.items()
    }


def similarity(outcome: Outcome) -> Similarity | None:
    """CKA between the layers of teacher and shipped student, and of its baseline. None where they
    cut texts differently or have no blocks, and where there are few tokens for their width."""
    setup = outcome.setup
    if setup.writes or not setup.same_tokens or not len(outcome.held_out):
        return None
    try:
        rows = _rows(outcome)
        theirs = _states(setup.teacher, outcome.teacher_held_out, np.sort(rows))
        mine = _states(outcome.student, outcome.held_out, np.sort(rows))
    except ModelError:
        return None
    if len(theirs[0]) < TOKENS * max(mine[0].shape[1], theirs[0].shape[1]):
        return None
    baseline = None
    if outcome.baselines:
        seed = outcome.best.seed
        (twin,) = [each for each in outcome.baselines if each.seed == seed]
        alone = load_trained(twin, setup.make(seed))
        baseline = _matrix(_states(alone, outcome.held_out, np.sort(rows)), theirs)
    return Similarity(tokens=len(theirs[0]), student=_matrix(mine, theirs), baseline=baseline)


def _rows(outcome: Outcome) -> np.ndarray:
    """Held-out rows drawn at random, so many that their states fit into memory at any width."""
    order = generator(0, "similarity").permutation(len(outcome.held_out))[:ROWS]
    most = max(LEAST, MOST * geometry(outcome.setup.teacher).width)
    tokens = np.cumsum(outcome.teacher_held_out.lengths[order])
    return order[: max(1, int(np.searchsorted(tokens, most, side="right")))]


def _states(model: nn.Module, data: Data, rows: np.ndarray) -> list[Tensor]:
    """The states of real tokens after each layer from 0, N x H each."""
    taps = [Tap("hidden", layer) for layer in range(geometry(model).layers + 1)]
    parts: list[list[Tensor]] = [[] for _ in taps]
    model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), 32):
            batch = data.batch(rows[start : start + 32])
            states = run(model, batch, precision="float32", reads=taps, scored=False).states
            assert states is not None
            for part, tap in zip(parts, taps, strict=True):
                part.append(states[tap][states.mask_BT])
    return [torch.cat(part) for part in parts]


def _matrix(mine: list[Tensor], theirs: list[Tensor]) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in cka_matrix(mine, theirs).tolist()]


def diagnosis(
    stages: list[StageResult],
    ablations: list[Ablation],
    alike: Similarity | None,
    verdict: Verdict | None,
    *,
    metric: str,
) -> list[str]:
    """What a reader should know of the inner terms, in sentences."""
    inner = [(s, t) for s in stages for t in s.terms if t.split("-")[0] not in RESPONSE]
    found: list[str] = []
    for word, begins in OF_TERMS.items():
        told = [_gain(each, metric) for each in ablations if each.verdict == word]
        if told:
            found.append(f"{begins}: {'; '.join(told)}.")
    for stage, term in inner:
        share = stage.gradient_share.get(term)
        if share is not None and share < SMALL:
            found.append(
                f"In stage {stage.name} the {_words(term)} term has {100 * share:.1f} % of the "
                "gradient: it hardly counts. A larger weight would change that."
            )
    if inner and verdict not in (None, "helped", "not comparable") and not ablations:
        names = ", ".join(dict.fromkeys(_words(term) for _, term in inner))
        found.append(
            f"These data don't show that the run with inner-layer terms ({names}) is better than "
            "the student without its teacher; --ablation trains it without each of them, to see "
            "which counts."
        )
    if inner and alike is not None and alike.baseline is not None:
        found.append(_of_similarity(alike, alike.baseline))
    return found


def _words(term: str) -> str:
    return term.replace("_", " ")


def _gain(each: Ablation, metric: str) -> str:
    gain = each.gain
    value, low, high = (
        points(number, metric).replace("-", "\N{MINUS SIGN}")
        for number in (gain.value, *gain.interval)
    )
    instead = ", against gold answers in its place" if each.gold_instead else ""
    only = f", {ONE_SEED}" if gain.seeds == 1 else ""
    only = f", {gain.reason}" if gain.reason is not None else only
    numbers = f"{value} {unit(metric)}, {low} to {high}{only}"
    return f"{_words(each.without)} of {each.stage}{instead} ({numbers})"


def _of_similarity(alike: Similarity, baseline: list[list[float]]) -> str:
    mine, theirs = alike.student[-1][-1], baseline[-1][-1]
    return (
        f"CKA of the student's and the teacher's last layer is {mine:.2f}, of the baseline's and "
        f"the teacher's {theirs:.2f} (1: the same up to rotation and scale)."
    )
