"""The loop: what it logs, warns of, refuses, selects.

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
from stillhouse.core.errors import RunError
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Batch, Dense, LoopState, StudentOutput
from stillhouse.training.loop import FitResult, fit
from stillhouse.training.metrics import MetricsLog
from stillhouse.training.objective import build
from stillhouse.training.order import step_batches, steps_per_epoch

DATA = tiny.vectors(40)
TEACHER_NK = torch.randn(40, 3, generator=torch.Generator().manual_seed(9))


def train(
    terms: list[TermConfig],
    *,
    model: nn.Module | None = None,
    forward: Any = tiny.line_forward,
    teacher_NK: Tensor = TEACHER_NK,
    **options: Any,
) -> FitResult:
    fields = TrainingConfig.model_fields
    settings = {k: options.pop(k) for k in [*options] if k in fields}
    config = TrainingConfig(**{"steps": 8, "batch_size": 8, "lr": 0.05, "log_every": 1, **settings})
    objective = build(terms, choices=3, signal=Dense, has_gold=True)
    return fit(
        model or tiny.Line(5, 3),
        DATA,
        objective,
        tiny.Fixed(teacher_NK),
        config,
        seed=0,
        forward=forward,
        **options,
    )


def test_the_loss_falls() -> None:
    losses: list[float] = []
    train(
        [tiny.soft()],
        steps=80,
        lr=0.1,
        batch_size=40,
        warmup=0.0,
        callbacks=[lambda state: losses.append(float(state.metrics["loss"]))],
    )  # pyright: ignore
    assert losses[-1] < 0.7 * losses[0]


def test_a_logged_step_holds_every_terms_value_and_gradient(tmp_path: Path) -> None:
    terms = [tiny.soft(weight=0.75), TermConfig(kind="gold", weight=0.25)]
    train(terms, log=MetricsLog(tmp_path / "m.jsonl", run="student", seed=0))
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        soft, gold = line["terms"]["soft"], line["terms"]["gold"]
        assert line["loss"] == pytest.approx(0.75 * soft["value"] + 0.25 * gold["value"], rel=1e-5)
        assert soft["gradient_norm"] > 0 < gold["gradient_norm"]
        assert line["gradient_norm"] <= soft["gradient_norm"] + gold["gradient_norm"] + 1e-6
        assert line["lr"] > 0
    assert lines[0]["epoch"] == 0.2


def test_a_term_that_hardly_counts_is_named_once() -> None:
    terms = [tiny.soft(weight=1.0), TermConfig(kind="gold", weight=1e-4)]
    (warning,) = train(terms).warnings
    assert "the gradient of the soft term is" in warning
    assert "the gold term at step 1: the gold term hardly counts" in warning
    times = float(warning.split(" times")[0].split()[-1])
    assert times > 100
    assert train([tiny.soft(weight=1.0), TermConfig(kind="gold", weight=0.1)]).warnings == []


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_loss_that_is_not_a_number_ends_the_run_in_one_line(log_every: int) -> None:
    def broken(model: nn.Module, batch: Batch, rng: np.random.Generator) -> StudentOutput:
        found = tiny.line_forward(model, batch, rng)
        return StudentOutput(found.scores_NK * float("nan"))

    with pytest.raises(RunError, match="the loss is nan") as caught:
        train([tiny.soft()], forward=broken, log_every=log_every)
    assert "\n" not in str(caught.value)


def test_a_loss_that_breaks_midway_is_never_returned_as_a_model() -> None:
    calls = 0

    def breaking(model: nn.Module, batch: Batch, rng: np.random.Generator) -> StudentOutput:
        nonlocal calls
        calls += 1
        found = tiny.line_forward(model, batch, rng)
        return StudentOutput(found.scores_NK * (float("inf") if calls == 3 else 1.0))

    with pytest.raises(RunError, match=r"lower training\.lr"):
        train([TermConfig(kind="gold")], forward=breaking, log_every=50)


def test_the_best_evaluation_is_kept() -> None:
    scores = iter([0.1, 0.9, 0.3, 0.9])
    kept: list[Tensor] = []
    model = tiny.Line(5, 3)

    def evaluate(now: nn.Module) -> float:
        assert not now.training
        assert not torch.is_grad_enabled()
        kept.append(now.weight.detach().clone())  # pyright: ignore
        return next(scores)

    result = train([tiny.soft()], model=model, evaluate=evaluate, evaluations=4)
    assert (result.best_step, result.score) == (4, 0.9)
    assert torch.equal(model.weight, kept[1])
    assert not torch.equal(kept[1], kept[3])


def test_the_last_weights_are_kept_if_asked() -> None:
    scores = iter([0.9, 0.1])
    kept: list[Tensor] = []
    model = tiny.Line(5, 3)

    def evaluate(now: nn.Module) -> float:
        kept.append(now.weight.detach().clone())  # pyright: ignore
        return next(scores)

    result = train([tiny.soft()], model=model, evaluate=evaluate, evaluations=2, select="last")
    assert torch.equal(model.weight, kept[-1])
    assert result.best_step == 8


def test_patience_ends_a_run_that_gets_no_better() -> None:
    result = train([tiny.soft()], evaluate=lambda _: 0.5, evaluations=8, patience=2)
    assert (result.steps, result.best_step) == (3, 1)


def test_a_callback_may_stop_the_run() -> None:
    def stop(state: LoopState) -> None:
        state.stop = state.step == 3

    assert train([tiny.soft()], callbacks=[stop]).steps == 3


def test_epochs_are_whole_passes() -> None:
    config = TrainingConfig(batch_size=8, accumulation=2)
    per_epoch = steps_per_epoch(DATA, config, 0)
    assert per_epoch == 3
    stream = step_batches(DATA, config, 0)
    for _ in range(3):
        rows = np.concatenate([part for _ in range(per_epoch) for part in next(stream)])
        assert sorted(rows.tolist()) == list(range(40))
    assert train([tiny.soft()], steps=None, epochs=2.0, batch_size=10).steps == 8
    assert train([tiny.soft()], steps=None, epochs=2.0, batch_size=10).examples == 80


def test_the_models_mode_is_put_back() -> None:
    model = tiny.Line(5, 3).eval()
    seen: list[bool] = []
    train([tiny.soft()], model=model, callbacks=[lambda state: seen.append(state.model.training)])
    assert seen == [True] * 8
    assert not model.training
    assert model.weight.grad is None
