"""Teachers that are switched off once they are passed.

Axes: N rows, K choices.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from stillhouse.core.config import TrainingConfig
from stillhouse.core.errors import RunError, UsageError
from stillhouse.core.types import Dense, LoopState
from stillhouse.signals.routing import Gate, Gated
from stillhouse.training.loop import fit
from stillhouse.training.objective import build
from stillhouse.training.passing import Threshold, passing

TEACHERS = {"de": 30.0, "fr": 40.0}


def weights(threshold: Threshold) -> list[float]:
    return [threshold.weight(group) for group in TEACHERS]


def test_a_teacher_is_off_once_it_is_passed_by_the_margin() -> None:
    threshold = Threshold(TEACHERS, margin=1.0)
    assert isinstance(threshold, Gate)
    assert weights(threshold) == [1, 1]
    for student, expected in (
        ({"de": 30.99, "fr": 39.0}, [1, 1]),
        ({"de": 31.0, "fr": 40.5}, [0, 1]),
        ({"de": 33.0, "fr": 41.5, "nl": 99.0}, [0, 0]),
        ({"de": 30.5, "fr": 41.5}, [1, 0]),  # it fell back
    ):
        threshold.update(student)
        assert weights(threshold) == expected
    assert threshold.weight("nl") == 1


def test_a_teacher_may_be_always_on() -> None:
    threshold = Threshold(TEACHERS, margin=1.0, rule="always")
    threshold.update({"de": 99.0, "fr": 0.0})
    assert weights(threshold) == [1, 1]


@pytest.mark.parametrize(
    ("lead", "alpha"), [(-9.0, 0.9), (-2.0, 0.9), (-1.0, 0.45), (0.0, 0.225), (1.0, 0.1125)]
)
def test_the_adaptive_rule_is_the_references(lead: float, alpha: float) -> None:
    """0.9 * 0.5 ** (student - expert + 2) above expert - 2, and 0.9 below."""
    threshold = Threshold(TEACHERS, margin=1.0, rule="adaptive")
    threshold.update({"de": 30.0 + lead, "fr": 40.0 + lead})
    np.testing.assert_allclose(0.9 * np.array(weights(threshold)), alpha)


@pytest.mark.parametrize("rule", ["threshold", "always", "adaptive"])
def test_the_state_survives_json(rule: str) -> None:
    threshold, again = (Threshold(TEACHERS, margin=1.0, rule=rule) for _ in range(2))
    threshold.update({"de": 31.7, "fr": 39.123456789})
    again.load(json.loads(json.dumps(threshold.state())))
    assert weights(again) == weights(threshold)
    assert again.state() == threshold.state()


def test_what_is_wrong_is_said_in_one_line() -> None:
    threshold = Threshold(TEACHERS, margin=1.0)
    with pytest.raises(RunError, match="no score of the student on fr"):
        threshold.update({"de": 1.0})
    with pytest.raises(RunError, match="student's score on fr is nan"):
        threshold.update({"de": 99.0, "fr": float("nan")})
    assert weights(threshold) == [1, 1]  # as it was
    with pytest.raises(RunError, match="teacher's score on de is inf"):
        Threshold({"de": float("inf")}, margin=1.0)
    with pytest.raises(RunError, match="has teachers for nl"):
        threshold.load({"weights": {"nl": 1.0}})
    with pytest.raises(UsageError, match="did you mean 'adaptive'"):
        Threshold(TEACHERS, margin=1.0, rule="adaptiv")
    with pytest.raises(UsageError, match="margin"):
        Threshold(TEACHERS, margin=float("nan"))
    with pytest.raises(UsageError, match="at least 1"):
        passing(threshold, lambda model: {}, every=0)


def test_the_student_is_compared_every_so_many_steps() -> None:
    seen: list[int] = []
    model, threshold = tiny.Line(5, 3), Threshold(TEACHERS, margin=1.0)
    state = LoopState(0, 9, 0.0, model.train())

    def evaluate(now: nn.Module) -> dict[str, float]:
        assert not now.training
        assert not torch.is_grad_enabled()
        seen.append(state.step)
        return {"de": 30.0 + state.step, "fr": 0.0}

    callback = passing(threshold, evaluate, every=3)
    for step in range(1, 10):
        state.step = step
        callback(state)
        assert weights(threshold) == [float(step < 3), 1]
    assert seen == [3, 6, 9]
    assert model.training


class Pulled(Exception):
    """The plug was."""


def train(out: Path, *, pull: int | None = None) -> tuple[Tensor, list[dict[str, Any]], Threshold]:
    """Twelve steps, of which the student passes one teacher at the fourth and falls back at the
    eighth: its weights, the states there were, and the last."""
    data = tiny.vectors(40)
    routes = np.array(["de", "fr"] * 20, dtype=object)
    threshold = Threshold(TEACHERS, margin=1.0, rule="threshold")
    scores_NK = 3 * torch.randn(40, 3, generator=torch.Generator().manual_seed(9))
    source = Gated(tiny.Fixed(scores_NK), threshold, routes, width=3)
    model, states, now = tiny.Line(5, 3), [], {"step": 0}

    def evaluate(_: nn.Module) -> dict[str, float]:
        return {"de": 35.0 if 4 <= now["step"] < 8 else 0.0, "fr": 0.0}

    def watch(state: LoopState) -> None:
        now["step"] = state.step

    def after(state: LoopState) -> None:
        states.append(threshold.state())
        if state.step == pull:
            raise Pulled

    fit(
        model,
        data,
        build([tiny.soft()], choices=3, signal=Dense, has_gold=False),
        source,
        TrainingConfig(steps=12, batch_size=8, lr=0.05, checkpoint_s=1e-9),
        seed=0,
        forward=tiny.line_forward,
        resume=out / "half.safetensors",
        callbacks=[watch, passing(threshold, evaluate, every=4), after],
        kept={"threshold": threshold},
    )
    return model.weight.detach().clone(), states, threshold


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    weight, states, last = train(tmp_path / "whole")
    assert [state["weights"]["de"] for state in states] == [1] * 3 + [0] * 4 + [1] * 5
    for step in (4, 6, 8, 11):
        out = tmp_path / f"at-{step}"
        out.mkdir()
        with pytest.raises(Pulled):
            train(out, pull=step)
        again, _, after = train(out)
        assert torch.equal(again, weight), step
        assert after.state() == last.state()
