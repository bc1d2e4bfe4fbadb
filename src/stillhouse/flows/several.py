"""Several teachers of models that write: combined, by group, switched off when passed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from stillhouse.core.config import StageConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Advance, Progress
from stillhouse.core.results import PairResult, TeachersResult
from stillhouse.core.types import Predictions
from stillhouse.data.sources import Pool
from stillhouse.evaluation.evaluate import predict, score_rows
from stillhouse.flows.setup import Setup
from stillhouse.flows.stages import Own, Trained
from stillhouse.signals.ensemble import Mean, OneAtRandom, agreement
from stillhouse.signals.routing import Gated, Routed
from stillhouse.signals.teacher import LiveTeacher
from stillhouse.tasks.base import Data, Task
from stillhouse.tasks.writing import merged
from stillhouse.tasks.written import Written
from stillhouse.training.passing import Threshold, passing

COMPARED = 256  # held-out examples on which teachers are compared


def live(setup: Setup, model: PreTrainedModel) -> LiveTeacher:
    """A teacher that scores whatever tokens a batch has."""
    return LiveTeacher(
        model,
        None,
        fingerprint="live",
        precision=setup.config.label.precision,
        choices=setup.task.width,
    )


@dataclass
class Several:
    """A stage's teachers."""

    setup: Setup
    config: StageConfig
    pool: Pool | None
    _scores: dict[str, float] = field(default_factory=dict)  # of teachers, on held-out rows

    @property
    def untaught(self) -> int:
        """How many rows no teacher answers."""
        if self.pool is None or self.setup.config.combine != "route":
            return 0
        named = {each.group for each in self.setup.config.teachers}
        return sum(group not in named for group in self.pool.groups)

    @property
    def sources(self) -> list[LiveTeacher]:
        setup = self.setup
        models = {setup.config.teacher: setup.teacher, **setup.teachers}
        return [live(setup, models[each.model]) for each in setup.config.teachers]

    def own(self, seed: int, writing: Any) -> Own:
        """What a training with `seed` learns from."""
        config = self.setup.config
        weights = [each.weight for each in config.teachers]
        if config.combine == "random":
            return Own(OneAtRandom(self.sources, weights, seed=seed))
        if config.combine == "mean":
            return Own(Mean(self.sources, weights, temperature=self._temperature))
        if self.pool is None:
            raise UsageError("running text has no groups: combine mean or random")
        routed = Routed(self._by_group, self.pool.groups, width=self.setup.task.width)
        if config.passing is None:
            return Own(routed)
        return self._gated(seed, routed, writing)

    @property
    def _by_group(self) -> dict[str, LiveTeacher]:
        given = self.setup.config.teachers
        pairs = zip(given, self.sources, strict=True)
        return {each.group: source for each, source in pairs if each.group is not None}

    @property
    def _temperature(self) -> float:
        soft = [term for term in self.config.objective if term.kind == "soft"]
        heats = {term.temperature.start for term in soft}  # pyright: ignore
        moving = any(term.temperature.shape != "constant" for term in soft)  # pyright: ignore
        if len(heats) > 1 or moving:
            raise UsageError(
                "the mean of several teachers is taken at one temperature, and the soft terms have "
                "several: combine random, or give them one"
            )
        return heats.pop() if heats else 1.0

    def _gated(self, seed: int, routed: Routed, writing: Any) -> Own:
        """Tan et al. 2019: a teacher is off once the student is better by a margin."""
        config, pool = self.setup.config, self.pool
        assert config.passing is not None
        assert pool is not None
        splits = self.setup.rows
        held_out = writing.rows(splits.held_out, "held-out rows")
        groups = splits.held_out.groups
        lacking = sorted(self._by_group.keys() - {*groups})
        if lacking:
            raise UsageError(
                f"no held-out row is of group {', '.join(lacking)}, so whether its teacher was "
                "passed can't be seen: hold out more rows, or leave passing out"
            )
        scores = by_group(self.setup.task, held_out, groups, self.config.training.precision)
        if not self._scores:  # the same for every seed
            taught = self._by_group
            title = "scoring teachers on held-out rows"
            with writing.progress.stage(title, len(taught), "teachers") as advance:
                for group, source in taught.items():
                    self._scores[group] = scores(source.model)[group]
                    advance(1)
        rule, margin = config.passing.rule, config.passing.margin
        threshold = Threshold(self._scores, margin=margin, rule=rule)
        steps = writing.steps(self.config, self.pool, seed)
        every = max(1, steps // self.config.training.evaluations)
        gate = Gated(routed, threshold, pool.groups, seed=seed, width=self.setup.task.width)
        return Own(gate, (passing(threshold, scores, every=every),), {"teachers": threshold})

    def result(self, held_out: Data, runs: Sequence[Trained]) -> TeachersResult:
        """How far the teachers agree on held-out rows, and which the students passed."""
        given = self.setup.config.teachers
        names = [f"{Path(each.model).name} ({i + 1})" for i, each in enumerate(given)]
        rows = np.arange(min(COMPARED, len(held_out)))
        batches = [held_out.batch(part) for part in np.array_split(rows, max(1, len(rows) // 16))]
        sources = dict(zip(names, self.sources, strict=True))
        answers = ({n: s.signal(batch) for n, s in sources.items()} for batch in batches)
        found = agreement(answers) if len(given) > 1 else {"pairs": [], "disagreement": None}
        return TeachersResult(
            models=[each.model for each in given],
            combine=self.setup.config.combine,
            pairs=[
                PairResult(
                    models=(pair["teachers"][0], pair["teachers"][1]),
                    same_choice=pair["same_choice"],
                    divergence=pair["jsd"],
                )
                for pair in found["pairs"]
            ],
            disagreement=found["disagreement"],
            passed={
                str(run.seed): [group for group, on in _weights(run).items() if not on]
                for run in runs
                if _weights(run)
            },
        )


def teacher_scores(setup: Setup, data: Data, progress: Progress) -> np.ndarray:
    """What is kept of the teacher's scores of the reported rows; of teachers by group each row's
    own one's, the first where it has none."""
    with progress.stage("answering reported rows, teacher", len(data), "rows") as advance:
        return _teacher_scores(setup, data, advance)


def _teacher_scores(setup: Setup, data: Data, advance: Advance) -> np.ndarray:
    config, splits = setup.config, setup.splits
    how = {"precision": config.label.precision, "progress": advance}
    if config.combine != "route" or not config.teachers or splits is None:
        return score_rows(setup.teacher, data, setup.task, **how)
    assert isinstance(data, Written)
    models = {config.teacher: setup.teacher, **setup.teachers}
    by_group = {each.group: models[each.model] for each in config.teachers}
    asked_E = [by_group.get(group, setup.teacher) for group in splits.reported.groups]
    parts = []
    for model in dict.fromkeys(asked_E):
        rows = np.array([i for i, each in enumerate(asked_E) if each is model])
        parts.append((rows, score_rows(model, data.take(rows), setup.task, **how)))
    return merged(parts, data, texts=setup.task.judges_texts)


def _weights(run: Trained) -> dict[str, float]:
    """How far each group's teacher was on when a training ended; empty where none is switched."""
    return run.fits[-1].kept.get("teachers", {}).get("weights", {})


def by_group(
    task: Task, data: Data, groups_E: np.ndarray, precision: str
) -> Callable[[nn.Module], Mapping[str, float]]:
    """A model's score on the examples of each group, its texts written greedily."""

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        found = predict(model, data, task, precision=precision, quick=True)
        return {
            str(group): task.metric_of(*_of(found, groups_E == group), task.metric)
            for group in sorted({g for g in groups_E if g is not None})
        }

    return evaluate


def _of(found: Predictions, inside_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return found.answers_N[inside_E], found.gold_N[inside_E]
