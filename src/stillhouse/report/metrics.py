"""metrics.jsonl read back: training steps, evaluations, and the series drawn from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stillhouse.core.errors import UsageError

HELD_OUT = "held-out"


@dataclass(frozen=True)
class TermPoint:
    """One term of the objective at one step: its value, and the norm of its gradient."""

    value: float | None
    gradient_norm: float | None


@dataclass(frozen=True)
class Step:
    run: str
    seed: int
    step: int
    loss: float | None
    terms: Mapping[str, TermPoint]
    stage: str = ""


@dataclass(frozen=True)
class Evaluation:
    run: str
    seed: int
    step: int
    split: str
    score: float
    stage: str = ""


@dataclass(frozen=True)
class Metrics:
    steps: Sequence[Step] = ()
    evaluations: Sequence[Evaluation] = ()


@dataclass(frozen=True)
class Line:
    """Values by step, steps ascending."""

    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Series:
    """One run's (or term's) lines, one a seed, and their mean at the steps all seeds have."""

    name: str
    seeds: Sequence[Line]
    mean: Line


def read(path: Path) -> Metrics:
    """The file's steps and evaluations; nothing if there is no file.

    Raises UsageError naming the line that can't be read.
    """
    if not path.exists():
        return Metrics()
    steps: list[Step] = []
    evaluations: list[Evaluation] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
            if "event" not in row:
                steps.append(_step(row))
            elif row["event"] == "evaluate":
                evaluations.append(_evaluation(row))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}, line {number}: not a step or an evaluation") from error
    return Metrics(steps, evaluations)


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def _step(row: Mapping[str, Any]) -> Step:
    terms = {
        str(name): TermPoint(_number(term.get("value")), _number(term.get("gradient_norm")))
        for name, term in (row.get("terms") or {}).items()
    }
    return Step(
        str(row["run"]),
        int(row["seed"]),
        int(row["step"]),
        _number(row.get("loss")),
        terms,
        _stage(row),
    )


def _stage(row: Mapping[str, Any]) -> str:
    return str(row.get("stage") or "")


def _evaluation(row: Mapping[str, Any]) -> Evaluation:
    return Evaluation(
        str(row["run"]),
        int(row["seed"]),
        int(row["step"]),
        str(row.get("split", HELD_OUT)),
        float(row["score"]),
        _stage(row),
    )


def by_seed(name: str, points: Iterable[tuple[int, int, float | None]]) -> Series | None:
    """A series of (seed, step, value); None where no value is finite. A repeated step, as a
    resumed run writes it, counts once: the last."""
    values: dict[int, dict[int, float]] = {}
    for seed, step, value in points:
        if value is not None and math.isfinite(value):
            values.setdefault(seed, {})[step] = value
    if not values:
        return None
    lines = [_line(values[seed]) for seed in sorted(values)]
    shared = set.intersection(*(set(line) for line in values.values()))
    mean = {step: sum(line[step] for line in values.values()) / len(values) for step in shared}
    return Series(name, lines, _line(mean))


def _line(values: Mapping[int, float]) -> Line:
    steps = sorted(values)
    return Line(steps, [values[step] for step in steps])


def thin(line: Line, limit: int = 160) -> Line:
    """At most `limit` points, each the mean of its neighbours, so that a page stays small."""
    size = math.ceil(len(line.steps) / limit)
    if size <= 1:
        return line
    starts = range(0, len(line.steps), size)
    steps = [line.steps[start : start + size] for start in starts]
    values = [line.values[start : start + size] for start in starts]
    return Line([part[-1] for part in steps], [sum(part) / len(part) for part in values])


def part(metrics: Metrics, chosen: Callable[[str], bool], *, later: int) -> Metrics:
    """The lines of the stages whose names are `chosen`, their steps moved `later`."""
    return Metrics(
        [replace(row, step=row.step + later) for row in metrics.steps if chosen(row.stage)],
        [replace(row, step=row.step + later) for row in metrics.evaluations if chosen(row.stage)],
    )


def score_series(metrics: Metrics, roles: Sequence[str]) -> list[Series]:
    """Score by step for each role, on the held-out split (or the only one there is)."""
    splits = [row.split for row in metrics.evaluations]
    split = HELD_OUT if HELD_OUT in splits else (splits[0] if splits else HELD_OUT)
    rows = [row for row in metrics.evaluations if row.split == split]
    found = (
        by_seed(role, ((row.seed, row.step, row.score) for row in rows if row.run == role))
        for role in roles
    )
    return [series for series in found if series is not None]


def loss_series(metrics: Metrics, roles: Sequence[str]) -> list[Series]:
    found = (
        by_seed(role, ((row.seed, row.step, row.loss) for row in metrics.steps if row.run == role))
        for role in roles
    )
    return [series for series in found if series is not None]


def term_series(
    metrics: Metrics, role: str, pick: Callable[[TermPoint], float | None]
) -> list[Series]:
    """One series a term of `role`'s objective, in the order the terms first appear."""
    rows = [row for row in metrics.steps if row.run == role]
    names = list(dict.fromkeys(name for row in rows for name in row.terms))
    found = (
        by_seed(
            name,
            ((row.seed, row.step, pick(row.terms[name])) for row in rows if name in row.terms),
        )
        for name in names
    )
    return [series for series in found if series is not None]
