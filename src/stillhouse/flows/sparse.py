"""A teacher's distributions kept on disk, checked against the teacher, and how good they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stillhouse.core.config import StageConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.head import Factored
from stillhouse.core.progress import Progress
from stillhouse.core.results import DistributionResult, EstimatorResult
from stillhouse.core.seeding import generator
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Estimator, Sparse
from stillhouse.flows.setup import Setup
from stillhouse.flows.writers import start_of
from stillhouse.models.forward import run, training_mode
from stillhouse.models.load import fingerprint
from stillhouse.signals.distribution_check import check_distributions
from stillhouse.signals.distributions import (
    CachedDistributions,
    DistributionCache,
    keep_distributions,
)
from stillhouse.signals.probe import Probe, choose_estimator, measure
from stillhouse.signals.teacher import LiveTeacher
from stillhouse.training.response import check_soft

TOKENS = 4096  # of a probe batch, or fewer
PROBED = 1 << 28  # scores of a probe batch at most: 1 GiB
ABSOLUTE = {"bf16": 0.05, "float32": 2e-3}


@dataclass
class Distributions:
    """A stage's cached distributions, and what the probe batch said of them."""

    source: CachedDistributions
    data: Any
    rows: np.ndarray
    cache: DistributionCache
    live: LiveTeacher
    estimator: Estimator
    why: str
    before: Probe

    def result(self, student: Any, width: int) -> DistributionResult:
        """For the record: how near the gradients are for the student as it began, and as it is."""
        after = _probe(self.live, self.cache, self.data, self.rows, student, width)
        return DistributionResult(
            top=self.cache.top,
            drawn=self.cache.drawn,
            bytes_per_token=self.before.bytes_per_token,
            covered=self.before.covered,
            estimator=self.estimator,
            why=self.why,
            tokens=self.before.tokens,
            before=_angles(self.before),
            after=_angles(after),
        )


def _angles(probe: Probe) -> dict[str, EstimatorResult]:
    return {
        name: EstimatorResult(
            angle=found.angle, norm=found.norm, bias=found.bias, noise=found.noise
        )
        for name, found in probe.estimators.items()
    }


def sparse_source(
    setup: Setup, config: StageConfig, data: Any, progress: Progress
) -> Distributions:
    """The teacher's distributions of the stage's scored tokens, asked now where the cache lacks
    them, a sample of them compared with the live teacher, and their gradient with the dense one.

    Raises UsageError for terms that sparse answers can't feed, RunError for another's cache."""
    label, temperature = setup.config.label, _temperature(config)
    if not setup.same_tokens:
        raise UsageError(
            "label.tokens sparse needs a student that cuts texts as its teacher does: the same "
            "tokenizer, chat template and number of positions"
        )
    if label.estimator in ("sampled", "renormalised") and not _linear(config):
        raise UsageError(
            f"estimator {label.estimator} is for forward_kl, and stage {config.name} has another "
            "divergence: set label.estimator=tail"
        )
    if not label.top and not (_linear(config) and all(t.kind != "hard" for t in config.objective)):
        raise UsageError(
            f"stage {config.name}: a hard term, or a divergence other than forward_kl, needs the "
            "likeliest choices: set label.top to 1 or more"
        )
    for term in _soft(config):
        check_soft(term, term.divergence or "forward_kl", setup.task.width, Sparse)
    if config.on_policy:
        raise UsageError("what the student writes is in no cache: leave label.tokens at live")
    cache = DistributionCache(
        setup.store,
        {
            "teacher": fingerprint(setup.teacher),
            "precision": label.precision,
            "start": start_of(setup.teacher),
        },
        choices=setup.task.width,
        top=label.top,
        drawn=label.drawn,
        temperature=temperature,
    )
    live = _asked(setup, data, label.precision)
    missing = cache.missing(data.keys_N2)
    if len(missing):
        needed = cache.bytes_needed(data.scored_counts(missing))
        progress.note(
            f"the teacher's distributions of {len(missing):,} texts take {needed / 1e6:,.1f} MB "
            f"({cache.token_bytes} bytes a token), under {setup.store}"
        )
        cache.require_free(needed, otherwise="--set label.tokens=live")
        with progress.stage("asking the teacher", len(data), "texts") as advance:
            keep_distributions(live, cache, label, counts=data.scored_counts, progress=advance)
    else:
        progress.note(f"the teacher has answered all {len(data):,} texts before")
    rows = _probed(data, _tokens(setup.task.width))
    exact = _asked(setup, data, "float32")
    allowed = ABSOLUTE[label.precision]
    with progress.stage("comparing estimators", 1, "batches") as advance:
        pieces = _pieces(data, rows)
        agreed = check_distributions(exact.scores, cache, data, pieces, tolerance=allowed)
        student = setup.make(setup.config.evaluation.seeds[0])
        before = _probe(live, cache, data, rows, student, setup.task.width)
        advance(1)
    progress.note(agreed)
    sizes = data.scored_counts(np.arange(len(data)))
    training = config.training
    step = max(1, round(float(sizes.mean()) * training.batch_size * training.accumulation))
    chosen, why = choose_estimator(before, tokens_per_step=step)
    estimator = chosen if label.estimator == "auto" else label.estimator
    if label.estimator == "auto" and not _linear(config):
        estimator, why = "tail", "estimator 'tail': the objective's divergence is no forward_kl"
        if label.drawn:
            why += "; what is drawn is not read (more label.top instead of label.drawn is)"
    elif label.estimator != "auto":
        why = f"estimator {estimator!r}, as asked; {why}"
    progress.note(f"{why}; {before.covered:.1%} of the teacher's probability is kept exactly")
    source = CachedDistributions(cache, data.keys_N2, data.scored_counts, estimator)
    return Distributions(source, data, rows, cache, live, estimator, why, before)


def _soft(config: StageConfig) -> list[TermConfig]:
    return [t for t in config.objective if isinstance(t, TermConfig) and t.kind == "soft"]


def _linear(config: StageConfig) -> bool:
    """Whether every soft term is linear in the teacher, as an unbiased estimate has to be used."""
    return all((term.divergence or "forward_kl") == "forward_kl" for term in _soft(config))


def _temperature(config: StageConfig) -> float:
    """The one temperature of the soft terms. Raises UsageError where there are several."""
    schedules = [term.temperature for term in _soft(config)]
    found = {schedule.start for schedule in schedules}
    if len(found) > 1 or any(schedule.shape != "constant" for schedule in schedules):
        raise UsageError(
            f"stage {config.name}: distributions are kept at one temperature, and its soft terms "
            "have several: leave label.tokens at live"
        )
    return found.pop() if found else 1.0


def _asked(setup: Setup, data: Any, precision: str) -> LiveTeacher:
    return LiveTeacher(
        setup.teacher, data, fingerprint="live", precision=precision, choices=setup.task.width
    )


def _tokens(width: int) -> int:
    return max(2, min(TOKENS, PROBED // width))


def _probed(data: Any, tokens: int) -> np.ndarray:
    """Examples, drawn at random, that have about so many scored tokens together. Raises UsageError
    where none has any."""
    order = generator(0, "probe").permutation(len(data))
    counts = data.scored_counts(order)
    if not counts.any():
        raise UsageError("no training row has an answer: there is no token to keep anything of")
    order, ends = order[counts > 0], np.cumsum(counts[counts > 0])
    return np.sort(order[: int(np.searchsorted(ends, tokens)) + 1])


def _pieces(data: Any, rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, max(1, len(rows) // 16))


def _probe(
    live: LiveTeacher,
    cache: DistributionCache,
    data: Any,
    rows: np.ndarray,
    student: Any,
    width: int,
) -> Probe:
    """Gradients with the kept distributions against the dense one, on the probe's tokens."""
    theirs, states, kept = [], [], []
    held = cache.positions(data.keys_N2)
    head = None
    with training_mode(student, on=False), torch.no_grad():
        for part in _pieces(data, rows):
            batch = data.batch(part)
            theirs.append(live.scores(batch).cpu()[:, : cache.choices])
            kept.append(cache.read(held[part], "tail", torch.device("cpu")))
            found = run(student.cpu(), batch, precision="float32", choices=width).scores
            if not isinstance(found, Factored):
                raise UsageError(
                    "the student's vocabulary head is not a known one, so gradients can't be "
                    "compared: leave label.tokens at live"
                )
            head = found.head
            states.append(found.hidden_NH)
    assert head is not None
    tokens = _tokens(width)
    return measure(
        torch.cat(theirs)[:tokens],
        Factored(torch.cat(states)[:tokens], head),
        _joined(kept).part(slice(0, tokens)),
        bytes_per_token=float(cache.token_bytes),
    )


def _joined(parts: list[Sparse]) -> Sparse:
    return Sparse(
        torch.cat([part.top_ids_NT for part in parts]),
        torch.cat([part.top_p_NT for part in parts]),
        torch.cat([part.tail_N for part in parts]),
        torch.cat([part.drawn_ids_ND for part in parts]),
        parts[0].estimator,
        parts[0].temperature,
    )
