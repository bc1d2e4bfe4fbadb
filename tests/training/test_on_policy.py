"""On-policy data: a bigram model that writes its own continuations.

Axes: N scored rows, K choices (= V vocabulary), B examples, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from stillhouse.core.config import TrainingConfig
from stillhouse.core.errors import RunError, UsageError
from stillhouse.core.terms import Schedule, TermConfig
from stillhouse.core.types import NO_LABEL, Batch, Dense, LoopState, StudentOutput
from stillhouse.signals.ensemble import Mean
from stillhouse.signals.teacher import LiveTeacher
from stillhouse.tasks.base import Dataset
from stillhouse.training.loop import fit
from stillhouse.training.metrics import MetricsLog
from stillhouse.training.objective import build
from stillhouse.training.on_policy import Rewrite, on_policy
from stillhouse.training.steps import TextForward

V, T, EXAMPLES = 7, 5, 24
TEACHER = 2 * torch.randn(V, V, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


class Bigram(nn.Module):
    """Scores of the next token by the token before it."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.table = nn.Parameter(torch.randn(V, V, generator=draw, dtype=torch.float64))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table[ids]


class Sentences:
    """Five tokens each; every token after the first is scored, at the place before it."""

    def __init__(self) -> None:
        self.ids_BT = np.random.default_rng(0).integers(V, size=(EXAMPLES, T))
        self.lengths = np.full(EXAMPLES, T)
        self.keys_N2 = np.zeros((EXAMPLES, 2), "<u8")
        self.gold_N = torch.from_numpy(self.ids_BT[:, 1:].reshape(-1))

    def __len__(self) -> int:
        return EXAMPLES

    def batch(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        return scored(torch.from_numpy(self.ids_BT[rows]), rows)

    def places(self, rows: np.ndarray) -> np.ndarray:
        return (rows[:, None] * (T - 1) + np.arange(T - 1)).reshape(-1)


def scored(ids_BT: Tensor, rows: np.ndarray) -> Batch:
    size, width = ids_BT.shape
    places = (torch.arange(size)[:, None] * width + torch.arange(width - 1)).flatten()
    return Batch({"input_ids": ids_BT}, rows, ids_BT[:, 1:].flatten(), places)


class Live:
    """The teacher, reading a batch's tokens."""

    kind = Dense
    fingerprint = "live"
    reads_batch = True

    def signal(self, batch: Batch) -> Dense:
        assert batch.scored_N is not None
        return Dense(TEACHER[batch.inputs["input_ids"].flatten()[batch.scored_N]])


def write(model: nn.Module, batch: Batch, rng: np.random.Generator) -> Batch:
    """Continues each first token by as many drawn ones as the generator says."""
    ids_BT = batch.inputs["input_ids"][:, :1]
    for _ in range(int(rng.integers(1, 4))):
        p_BV = model(ids_BT[:, -1]).softmax(-1)
        ids_BT = torch.cat([ids_BT, torch.multinomial(p_BV, 1)], -1)
    return scored(ids_BT, batch.rows)


def forward(model: nn.Module, batch: Batch, rng: np.random.Generator) -> StudentOutput:
    """With dropout of half the scores' offsets, drawn from the step's generator."""
    assert batch.scored_N is not None
    scores_NK = model(batch.inputs["input_ids"].flatten()[batch.scored_N])
    if not model.training:
        return StudentOutput(scores_NK)
    kept_NK = torch.from_numpy(rng.random(scores_NK.shape) < 0.5)
    return StudentOutput(scores_NK * kept_NK * 2)


GKD = [TermConfig(kind="soft", divergence="jsd", beta=0.9)]
WITH_GOLD = [*GKD, TermConfig(kind="gold", weight=Schedule(start=0.5))]


def train(
    rewrite: Rewrite | None,
    *,
    terms: list[TermConfig] = WITH_GOLD,
    run: Callable[..., StudentOutput] = forward,
    out: Path | None = None,
    pull: int | None = None,
    **settings: Any,
) -> tuple[Tensor, list[float]]:
    """Weights after a training, and its losses."""
    model, losses = Bigram(), []

    def note(state: LoopState) -> None:
        losses.append(float(state.metrics["loss"]))  # pyright: ignore
        if state.step == pull:
            raise Pulled

    made = {"steps": 6, "batch_size": 4, "accumulation": 3, "lr": 0.05, "log_every": 1}
    fit(
        model,
        Sentences(),
        build(terms, choices=V, signal=Dense, has_gold=True),
        Live(),
        TrainingConfig(**{**made, "checkpoint_s": 1e-9, **settings}),
        seed=2,
        forward=run,
        rewrite=rewrite,
        log=MetricsLog(None if out is None else out / "metrics.jsonl", run="student", seed=2),
        resume=None if out is None else out / "half.safetensors",
        callbacks=[note],
    )
    return model.table.detach().clone(), losses


class Pulled(Exception):
    """The plug was."""


class Watched:
    """The student's forward, noting what it was given, and what its dropout draws first."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.draws: list[float] = []

    def __call__(self, model: nn.Module, batch: Batch, rng: np.random.Generator) -> StudentOutput:
        self.batches.append(batch)
        self.draws.append(rng.random())
        return forward(model, batch, rng)

    @property
    def written(self) -> list[bool]:
        return [(batch.gold_N == NO_LABEL).all().item() for batch in self.batches]  # pyright: ignore


def test_a_share_of_nothing_is_the_plain_run() -> None:
    plain, none = train(None), train(on_policy(write, Live(), share=0.0))
    assert torch.equal(plain[0], none[0])
    assert plain[1] == none[1]


def test_a_share_of_all_trains_on_written_rows_only() -> None:
    made: list[Batch] = []

    def noting(model: nn.Module, batch: Batch, rng: np.random.Generator) -> Batch:
        made.append(write(model, batch, rng))
        return made[-1]

    seen = Watched()
    train(on_policy(noting, Live(), share=1.0), run=seen)
    assert len(seen.batches) == len(made) == 6 * 2 * 3 // 2
    assert all(seen.written)
    for mine, theirs in zip(seen.batches, made, strict=True):
        assert torch.equal(mine.inputs["input_ids"], theirs.inputs["input_ids"])
        assert mine.gold_N is not None
        assert len(mine.gold_N) == mine.scored == theirs.scored
    assert len({batch.inputs["input_ids"].shape[1] for batch in made}) > 1


def test_a_share_is_drawn_by_micro_batch_and_moves_no_other_draw() -> None:
    plain, mixed = Watched(), Watched()
    train(None, run=plain, steps=30)
    train(on_policy(write, Live(), share=0.3), run=mixed, steps=30)
    assert plain.draws == mixed.draws
    assert len(mixed.written) == 90
    assert np.mean(mixed.written) == pytest.approx(0.3, abs=4 * 0.0483)
    by_step = np.array(mixed.written).reshape(30, 3).sum(1)
    assert {0, 1, 2} <= set(by_step.tolist())
    for mine, theirs, written in zip(mixed.batches, plain.batches, mixed.written, strict=True):
        assert np.array_equal(mine.rows, theirs.rows)
        assert written or torch.equal(mine.inputs["input_ids"], theirs.inputs["input_ids"])


def test_the_loss_is_a_mean_over_what_was_written() -> None:
    """Reverse KL, the divergence at beta 1; by a loop over the rows of all micro-batches."""
    seen = Watched()

    def certain(model: nn.Module, batch: Batch, rng: np.random.Generator) -> StudentOutput:
        seen(model, batch, rng)
        assert batch.scored_N is not None
        return StudentOutput(model(batch.inputs["input_ids"].flatten()[batch.scored_N]))

    terms = [TermConfig(kind="soft", divergence="jsd", beta=1.0)]
    _, losses = train(on_policy(write, Live(), share=1.0), terms=terms, run=certain, steps=1)
    student, found = Bigram().table.detach().softmax(-1), []
    for batch in seen.batches:
        for sentence in batch.inputs["input_ids"].tolist():
            for token in sentence[:-1]:
                p, q = student[token], TEACHER[token].softmax(-1)
                found.append(float((p * (p / q).log()).sum()))
    assert len(found) == sum(batch.scored for batch in seen.batches)
    assert len(found) != 3 * 4 * (T - 1)  # the data's own rows
    assert losses == [pytest.approx(np.mean(found), rel=1e-6)]


def test_what_it_wrote_has_no_gold_answers() -> None:
    only_gold = [TermConfig(kind="gold")]
    table, losses = train(on_policy(write, Live(), share=1.0), terms=only_gold, weight_decay=0.0)
    assert losses == [0.0] * 6
    assert torch.equal(table, Bigram().table.detach())


def test_the_student_writes_without_dropout_and_gradient() -> None:
    modes: list[bool] = []

    def noting(model: nn.Module, batch: Batch, rng: np.random.Generator) -> Batch:
        assert not model.training
        assert not torch.is_grad_enabled()
        return write(model, batch, rng)

    def running(model: nn.Module, batch: Batch, rng: np.random.Generator) -> StudentOutput:
        modes.append(model.training and torch.is_grad_enabled())
        return forward(model, batch, rng)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)  # a state that no earlier test has left
        before = torch.random.get_rng_state()
        train(on_policy(noting, Live(), share=1.0), run=running)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert modes == [True] * 18


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """Though `write` draws from torch, whose own state no checkpoint holds."""
    rewrite = on_policy(write, Live(), share=0.5)
    whole = tmp_path / "whole"
    whole.mkdir()
    table, _ = train(rewrite, out=whole)
    for step in (1, 3, 5):
        out = tmp_path / f"at-{step}"
        out.mkdir()
        with pytest.raises(Pulled):
            train(rewrite, out=out, pull=step)
        torch.rand(step)
        again, _ = train(rewrite, out=out)
        assert torch.equal(again, table), step
        assert logged(out) == logged(whole)


def logged(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "examples_per_s"} for line in lines]


def test_the_student_learns_from_its_own_texts() -> None:
    _, losses = train(on_policy(write, Live(), share=1.0), terms=GKD, steps=60, lr=0.1)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_it_writes_with_the_weights_of_the_moment_on_the_fast_path_too() -> None:
    """Whose weights are trained in a buffer."""
    texts = [text for text, _ in tiny.sentences(8)]
    inputs = dict(tiny.tokenizer()(texts, padding=True, return_tensors="pt"))
    model, wrote = tiny.model(dropout=0.0, seed=3), []

    class Texts:
        lengths = np.ones(8)

        def inputs(self, rows: np.ndarray) -> dict[str, Tensor]:
            return {name: values[torch.from_numpy(rows)] for name, values in inputs.items()}

    class Reads:
        kind, fingerprint, reads_batch = Dense, "reads", True

        def signal(self, batch: Batch) -> Dense:
            return Dense(torch.tensor([[3.0, 0.0]]).expand(len(batch.rows), 2))

    def answering(now: Any, batch: Batch, rng: np.random.Generator) -> Batch:
        with torch.no_grad():
            fresh = tiny.model(dropout=0.0, seed=4)
            fresh.load_state_dict(now.state_dict())
            wrote.append(now(**batch.inputs).logits)
            torch.testing.assert_close(wrote[-1], fresh(**batch.inputs).logits)
        return batch

    config = TrainingConfig(steps=3, batch_size=8, lr=1e-2, precision="float32")
    fit(
        model,
        Dataset(Texts(), np.zeros((8, 2), "<u8"), torch.full((8,), NO_LABEL)),
        build([tiny.soft()], choices=2, signal=Dense, has_gold=False),
        Reads(),
        config,
        seed=0,
        forward=TextForward(config),
        rewrite=on_policy(answering, Reads(), share=1.0),
    )
    assert len(wrote) == 3
    assert not torch.allclose(wrote[0].sort(0)[0], wrote[2].sort(0)[0])


def test_a_teacher_that_looks_texts_up_is_refused() -> None:
    kept = tiny.Fixed(torch.zeros(EXAMPLES, V))
    model, data = tiny.model(), tiny.vectors(3)
    own = LiveTeacher(model, data, fingerprint="own", precision="float32")
    live = LiveTeacher(model, None, fingerprint="live", precision="float32")
    for source in (None, kept, own, Mean([live, own])):
        with pytest.raises(UsageError, match="needs a live teacher") as caught:
            on_policy(write, source, share=0.5)
        assert "\n" not in str(caught.value)
        on_policy(write, source, share=0.0)
    on_policy(write, Mean([live, live]), share=1.0)


def test_what_is_wrong_is_refused() -> None:
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="share"):
            on_policy(write, Live(), share=share)

    def others(model: nn.Module, batch: Batch, rng: np.random.Generator) -> Batch:
        return scored(batch.inputs["input_ids"], batch.rows[::-1].copy())

    with pytest.raises(RunError, match="other examples"):
        train(on_policy(others, Live(), share=1.0))
