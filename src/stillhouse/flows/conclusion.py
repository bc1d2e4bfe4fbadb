"""What a distillation comes to, in words: which model to take, whether distilling helped, and what
speaks against believing it.

The first sentence says which model is best for somebody who needs a small one, on how many seeds
that rests, and whatever makes the comparison doubtful; the numbers that it leaves out follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stillhouse.core.results import FloorResult, Gain, ModelResult, TrainedResult, Verdict
from stillhouse.core.units import amount, better, points, spoken, unit
from stillhouse.core.verdicts import ONE_SEED, seeds_in_words, what_decides

ALONE = "the same student trained without the teacher's answers"
NAMED = 3  # classes that are never answered, by name in a sentence


@dataclass(frozen=True)
class Findings:
    """What is concluded from. `gain` and `verdict` are None without a baseline; `reason`: why the
    two are not comparable, or without a baseline the student and its teacher;
    `rows`: what was scored, as "200 test rows"; `margin`: the largest difference that counts as
    none, in the metric's values."""

    metric: str
    teacher: ModelResult
    student: TrainedResult
    rows: str
    baseline: TrainedResult | None = None
    gain: Gain | None = None
    verdict: Verdict | None = None
    reason: str | None = None
    floor: FloorResult | None = None
    weak: Sequence[str] = ()
    margin: float = 0.0

    @property
    def best(self) -> Literal["student", "baseline"]:
        """The better of the two small models, by its mean over seeds; they cost the same."""
        theirs = self.baseline
        ahead = theirs is not None and better(theirs.score, self.student.score, self.metric)
        return "baseline" if ahead else "student"

    @property
    def best_result(self) -> TrainedResult:
        return self.baseline if self.best == "baseline" and self.baseline else self.student


def weak_signs(
    metric: str,
    teacher: ModelResult,
    baseline: TrainedResult | None,
    floor: FloorResult | None,
    *,
    margin: float,
    unfinished: str | None,
) -> list[str]:
    """Each sign that the teacher has little to teach, as it stands after "the teacher is weak:".

    margin: the largest difference that counts as none, in the metric's values. unfinished: what
    its own training's log says against it.
    """

    def beaten(by: float) -> bool:
        return better(by, teacher.score, metric) and abs(by - teacher.score) > margin

    signs: list[str] = []
    if baseline is not None and beaten(baseline.score):
        signs.append(
            f"the baseline, which had none of its answers, beats it ({baseline.score:.3f})"
        )
    if floor is not None and beaten(floor.score):
        signs.append(f"a bag of words beats it ({floor.name}, {floor.score:.3f})")
    if unfinished is not None:
        signs.append(unfinished)
    if missed := teacher.never_predicted:
        named = ", ".join(missed[:NAMED]) + (", ..." if len(missed) > NAMED else "")
        there = sum(any(row) for row in teacher.confusion or [])
        signs.append(f"it never answers {len(missed)} of the {there} classes ({named})")
    return signs


def lead(found: Findings) -> str:
    """The first sentence: the model to take, the verdict with its seeds, and each doubt."""
    floor, small = found.floor, found.best_result
    below = (
        floor is not None
        and better(floor.score, small.score, found.metric)
        and abs(floor.score - small.score) > found.margin
    )
    first = ""
    if floor is not None and below:
        first = f"Use the bag of words ({floor.name}): it scores {floor.score:.3f}, better than "
        first += f"the {found.best}'s {small.score:.3f}. "
    parts = [_lead(found, among="Of the small models, use" if below else "Use")]
    if not below and floor is not None and not better(small.score, floor.score, found.metric):
        none = "neither is" if found.baseline is not None else "it is not"
        parts.append(f"{none} better than a bag of words ({floor.name}, {floor.score:.3f})")
    if found.weak:
        signs = list(found.weak)
        listed = signs[0] if len(signs) == 1 else f"{', '.join(signs[:-1])}, and {signs[-1]}"
        parts.append(f"the teacher ({found.teacher.score:.3f}) is weak: {listed}")
    return first + "; ".join(parts) + "."


def sentence(found: Findings) -> str:
    """All of it: the lead, what would decide, and what the model to take keeps at what cost."""
    said = [lead(found)]
    gain = found.gain
    if gain is not None and gain.needed is not None:
        said.append(what_decides(gain.needed, gain.seeds, rows=found.rows.split(" ", 1)[1]))
    said.append(_kept(found))
    if found.best == "baseline":
        said.append("The baseline is kept in baseline/.")
    return " ".join(said)


def _lead(found: Findings, *, among: str) -> str:
    """The verdict and the model to take; `among`: "Use", or that another is better than these."""
    metric, gain, baseline = found.metric, found.gain, found.baseline
    mine, seeds = found.student.score, seeds_in_words(len(found.student.seeds))
    if gain is None or baseline is None:
        known = "" if found.reason is None else f"; {found.reason}"
        return (
            f"The student scores {mine:.3f} in {spoken(metric)} ({seeds}), and no baseline was "
            f"trained, so whether distilling helped is open{known}"
        )
    scores = f"{spoken(metric)} {mine:.3f} and {baseline.score:.3f}"
    if found.verdict == "not comparable":
        return f"Student and baseline are not comparable ({scores}, {seeds}): {found.reason}"
    only = f", for {ONE_SEED} (one seed says nothing of the recipe)" if gain.seeds == 1 else ""
    value, low, high = (points(each, metric) for each in (gain.value, *gain.interval))
    gained, interval = f"{value} {unit(metric)}", f"95 % interval {low} to {high}"
    by = f"{gained} against its baseline, {ALONE} ({interval}, {seeds})"
    if found.verdict == "helped":
        return f"{among} the student: distilling helped{only}, {by}"
    if found.verdict == "hurt":
        return f"{among} the baseline, not the student: distilling hurt{only}, {by}"
    if found.verdict == "no difference":
        equal = f"Student and baseline are equally good{only} ({scores})"
        return f"{equal}: {by}, {_within(gain, metric)}"
    cannot = f"{seeds} and {found.rows} can't tell whether distilling helps or hurts"
    if gain.seeds == 1:
        cannot += ", even for these two models"
    if found.best == "baseline":
        ahead = f"The baseline, {ALONE}, is better so far ({spoken(metric)} {baseline.score:.3f} "
        ahead += f"against {mine:.3f})"
    elif gain.value:
        ahead = f"The student is ahead so far of its baseline, {ALONE} ({scores})"
    else:
        ahead = f"The student is level so far with its baseline, {ALONE} ({scores})"
    return f"{ahead}, but {cannot}: {gained} ({interval})"


def _within(gain: Gain, metric: str) -> str:
    margin = amount(gain.margin, metric, 2 if gain.margin < 0.001 else 1)
    if gain.interval[0] > 0 or gain.interval[1] < 0:
        return f"a difference, but all of it within the margin of {margin}"
    return f"all of it within the margin of {margin}"


def _kept(found: Findings) -> str:
    """What the model to take keeps of the teacher's quality, and at what cost. A weak teacher's
    quality is no yardstick, nor is one that knew the test rows: there the score stands alone."""
    model, teacher, metric = found.best_result, found.teacher, found.metric
    size = f"{100 * model.parameters / teacher.parameters:.0f} %"
    faster = None
    if model.latency_ms and teacher.latency_ms:
        faster = f"{teacher.latency_ms / model.latency_ms:.1f} times"
    yardstick = not found.weak and found.reason is None
    if yardstick and model.retention and model.retention > 0 and model.score >= 0:
        kept = f"keeps {100 * model.retention:.1f} % of the teacher's {spoken(metric)}"
        kept += (f" at {faster} its speed" if faster else "") + f" and {size} of its parameters"
        return f"The {found.best} {kept}."
    # Without a baseline the lead has the score.
    said = None if found.gain is None else f"scores {model.score:.3f} in {spoken(metric)}"
    if faster:
        kept = f"{said or 'runs'} at {faster} the teacher's speed and {size} of its parameters"
    else:
        kept = f"{f'{said} with' if said else 'has'} {size} of the teacher's parameters"
    return f"The {found.best} {kept}."
