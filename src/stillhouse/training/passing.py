"""Teachers that are switched off once the student has passed them.

Axes: none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from stillhouse.core.errors import RunError, UsageError, unknown
from stillhouse.core.types import Callback, LoopState
from stillhouse.models.forward import training_mode

AHEAD = 2.0  # by how much a teacher has to lead to count wholly, in the reference's adaptive rule


def _threshold(student: float, teacher: float, margin: float) -> float:
    return float(student < teacher + margin)


def _always(student: float, teacher: float, margin: float) -> float:
    return 1.0


def _adaptive(student: float, teacher: float, margin: float) -> float:
    return 0.5 ** max(0.0, student - teacher + AHEAD)


RULES: dict[str, Callable[[float, float, float], float]] = {
    "threshold": _threshold,
    "always": _always,
    "adaptive": _adaptive,
}


class Threshold:
    """How far each group's teacher is on, by how well student and teacher do on the group.

    threshold: on while student < teacher + margin. Tan et al. 2019 sec. 3.2, algorithm 1, there
    1 BLEU. A teacher that was passed is on again if the student falls back.
    always: on throughout, as their released script trains.
    adaptive: what their code has beside it. A weight of 0.5^(student - teacher + 2) once student >
    teacher - 2, 1 before; theirs is 0.9 times this, 0.9 being the weight that the objective gives
    the teacher. It was made for BLEU, and has no margin.

    Scores and margin are in one unit, and more is better. Before the first `update` all teachers
    are on. A group that has no teacher's score is never switched off.
    """

    def __init__(
        self, scores_of_teachers: Mapping[str, float], *, margin: float, rule: str = "threshold"
    ) -> None:
        if rule not in RULES:
            raise UsageError(unknown("rule", rule, RULES))
        self._teachers = {group: float(score) for group, score in scores_of_teachers.items()}
        _check_finite("teacher", self._teachers)
        if not math.isfinite(margin):
            raise UsageError(f"a margin must be finite, got {margin}")
        self._margin, self._weigh = margin, RULES[rule]
        self._weights = dict.fromkeys(self._teachers, 1.0)

    def weight(self, group: str) -> float:
        """What the teacher of `group` counts now, in [0, 1]."""
        return self._weights.get(group, 1.0)

    def update(self, student_scores: Mapping[str, float]) -> None:
        """Switches teachers by the student's newest scores, one for each group that has a
        teacher's; of other groups it may have them too. Raises RunError where one is missing or
        no number."""
        lacking = sorted(self._teachers.keys() - student_scores.keys())
        if lacking:
            raise RunError(f"there is no score of the student on {', '.join(lacking)}")
        found = {group: float(student_scores[group]) for group in self._teachers}
        _check_finite("student", found)
        self._weights = {
            group: self._weigh(score, self._teachers[group], self._margin)
            for group, score in found.items()
        }

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON has it."""
        return {"weights": dict(self._weights)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`. Raises RunError where it is of other groups."""
        if state["weights"].keys() != self._teachers.keys():
            raise RunError(
                f"the checkpoint has teachers for {', '.join(state['weights'])} and this run for "
                f"{', '.join(self._teachers)}: start anew"
            )
        self._weights = {group: state["weights"][group] for group in self._teachers}


def passing(
    threshold: Threshold, evaluate: Callable[[nn.Module], Mapping[str, float]], *, every: int
) -> Callback:
    """Updates `threshold` with the student's scores by group after each `every` steps (Tan et al.:
    three epochs)."""
    if every < 1:
        raise UsageError(f"teachers are compared every so many steps, at least 1, got {every}")

    def callback(state: LoopState) -> None:
        if state.step % every == 0:
            with training_mode(state.model, on=False), torch.no_grad():
                threshold.update(evaluate(state.model))

    return callback


def _check_finite(whose: str, scores: Mapping[str, float]) -> None:
    for group, score in scores.items():
        if not math.isfinite(score):
            raise RunError(f"the {whose}'s score on {group} is {score}")
