"""Row: a cache addressed by step, not by example. Whatever is shuffled, resumed or accumulated,
every example gets its own target.

Axes: N rows, K choices.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.config import DataConfig, LabelConfig, TrainingConfig
from stillhouse.core.types import Batch, Dense, LoopState
from stillhouse.data.encoding import encode
from stillhouse.data.sources import load
from stillhouse.signals.cache import AnswerCache, CachedTeacher
from stillhouse.signals.teacher import LiveTeacher, label
from stillhouse.tasks.base import Dataset
from stillhouse.tasks.classification import Classification
from stillhouse.training.loop import fit
from stillhouse.training.objective import build
from stillhouse.training.steps import TextForward

ROWS = tiny.sentences(60)


def data(folder: Path, rows: list[tuple[str, str]]) -> tuple[Dataset, list[str]]:
    """A file's training rows as inputs, and their texts."""
    path = tiny.write_csv(folder / "data.csv", ["text", "label"], rows)
    pool = load(DataConfig(path=str(path)), folder / "rows").train
    encoded = encode(pool, tiny.tokenizer(), folder / "tokens", max_length=32)
    gold_N = Classification(tiny.SENTIMENT).gold(pool.labels)
    return Dataset(encoded, pool.keys_N2, gold_N), [example.text for example in pool]


class Witness:
    """A cached teacher whose every answer is compared with the live one's to the same text."""

    kind = Dense
    fingerprint = "witness"

    def __init__(
        self, cached: CachedTeacher, texts: list[str], truth: dict[str, list[float]]
    ) -> None:
        self.cached, self.texts, self.truth = cached, texts, truth
        self.seen: list[str] = []

    def signal(self, batch: Batch) -> Dense:
        found = self.cached.signal(batch)
        for row, scores_K in zip(batch.rows, found.scores_NK, strict=True):
            text = self.texts[row]
            assert scores_K.tolist() == pytest.approx(self.truth[text], abs=1e-4), text
            self.seen.append(text)
        return found


def test_every_example_gets_its_own_target(tmp_path: Path) -> None:
    teacher = tiny.model(seed=7)
    truth = {}
    with torch.no_grad():
        for text, _ in ROWS:
            truth[text] = teacher(**tiny.tokenizer()(text, return_tensors="pt")).logits[0].tolist()
    assert len({round(scores[0], 3) for scores in truth.values()}) > 40
    first, _ = data(tmp_path / "a", ROWS)
    cache = AnswerCache(tmp_path, {"teacher": "t", "choices": tiny.SENTIMENT})
    live = LiveTeacher(teacher, first, fingerprint="t", precision="float32")
    label(live, cache, LabelConfig(batch_size=7))

    shuffled = [ROWS[i] for i in np.random.default_rng(1).permutation(len(ROWS))]
    again, texts = data(tmp_path / "b", shuffled)
    source = Witness(CachedTeacher(cache, again.keys_N2), texts, truth)
    config = TrainingConfig(
        steps=10, batch_size=4, accumulation=3, precision="float32", checkpoint_s=1e-9
    )

    def train(stop: int) -> None:
        def callback(state: LoopState) -> None:
            state.stop = state.step == stop

        objective = build([tiny.soft()], choices=2, signal=Dense, has_gold=True)
        fit(
            tiny.model(layers=1),
            again,
            objective,
            source,
            config,
            seed=0,
            forward=TextForward(config),
            resume=tmp_path / "half",
            callbacks=[callback],
        )

    train(3)
    train(-1)
    assert set(source.seen) == set(texts)
    assert len(source.seen) > 2 * len(texts)
