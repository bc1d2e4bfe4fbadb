"""One model's answers against another's: the gain, and the verdict in one of five words.

Axes: N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.core.results import Gain, Needed, Verdict
from stillhouse.core.units import margin_of, span_of
from stillhouse.numerics import gains, stats
from stillhouse.tasks.base import Task


@dataclass(frozen=True)
class Comparison:
    gain: Gain
    verdict: Verdict


def compare(
    task: Task,
    mine: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    gold_N: np.ndarray,
    *,
    margin: float | None,
    resamples: int,
    rng: np.random.Generator,
    groups: np.ndarray | None = None,
    seen: float = 0.0,
) -> Comparison:
    """The gain of my answers over theirs, one array a seed, and what it amounts to.

    margin: in points, as a setting has it; None is the metric's own. seen: the share of the rows
    that one of the models, or what the sides are made of, was trained on. groups: see
    `evaluate.groups_of`. Raises ValueError as `stats.paired_gain` does.
    """
    found = stats.paired_gain(
        lambda a, g: task.metric_of(a, g, task.metric),
        mine,
        theirs,
        gold_N,
        resamples=resamples,
        rng=rng,
        groups=groups,
    )
    wide = margin_of(task.metric, margin)
    reason = trained_on(seen, wide, task.metric) or _nothing_learnt([*mine, *theirs], gold_N)
    word: Verdict = "not comparable" if reason else gains.verdict(found, wide)
    needed = None
    if word == "can't tell" and found.spread is not None:
        more = gains.what_would_decide(found.spread, wide)
        needed = Needed(more_seeds=more.seeds, more_rows=more.rows)
    gain = Gain(
        value=found.value,
        interval=found.interval,
        p_value=found.p_value,
        margin=wide,
        seeds=len(mine),
        needed=needed,
        reason=reason,
    )
    return Comparison(gain, word)


def trained_on(share: float, margin: float, metric: str) -> str | None:
    """Why scores say little where a model was trained on such a share of the test rows; None where
    they do. One that knows rows by heart can move a score by as much as they are of all rows."""
    if not share or share * span_of(metric) < margin:
        return None
    rows = f"{100 * share:.1f} % of the test rows"
    return f"one of the models, or what it is made of, was trained on {rows}"


def _nothing_learnt(sides: Sequence[np.ndarray], gold_N: np.ndarray) -> str | None:
    """Two sides that each give every row one answer differ by which answer it is, and no more; that
    may be right of rows of one class."""
    if not all(_constant(answers_N) for answers_N in sides):
        return None
    if _constant(gold_N):
        return "the test rows have one answer only, so they tell nothing apart"
    return "neither learned the task: both give every test row the same answer"


def _constant(answers_N: np.ndarray) -> bool:
    """Whether every row has the same answer. Texts are answers; how likely tokens are is none."""
    names = answers_N.dtype.names
    if names is not None and "text" not in names:
        return False
    values = (answers_N if names is None else answers_N["text"]).tolist()
    return len(values) > 1 and all(value == values[0] for value in values[1:])
