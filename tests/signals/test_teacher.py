"""Asking a teacher: everything once, batches that do not depend on how far an earlier try came.

Axes: N rows, K choices.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from stillhouse.core.config import LabelConfig
from stillhouse.core.errors import RunError
from stillhouse.core.types import Batch, Dense
from stillhouse.data.rows import content_key
from stillhouse.signals.cache import AnswerCache, CachedTeacher
from stillhouse.signals.teacher import LiveTeacher, check, label
from stillhouse.tasks.base import Dataset

ROWS = [text for text, _ in tiny.sentences(50)]
CONFIG = LabelConfig(batch_size=8, precision="float32")


class Padded:
    """Texts as inputs, tokenized in memory."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.tokenizer = tiny.tokenizer()
        self.lengths = np.array([len(ids) for ids in self.tokenizer(texts)["input_ids"]])

    def inputs(self, rows: np.ndarray) -> dict[str, Tensor]:
        return dict(
            self.tokenizer([self.texts[i] for i in rows], padding=True, return_tensors="pt")
        )


def data(texts: list[str] = ROWS) -> Dataset:
    keys_N2 = np.zeros((len(texts), 2), "<u8")
    for i, text in enumerate(texts):
        keys_N2[i] = np.frombuffer(content_key(text, None), "<u8")
    return Dataset(Padded(texts), keys_N2, torch.full((len(texts),), -100))


def teacher(
    of: Dataset, *, seed: int = 0, precision: str = "float32", fast: bool = True
) -> LiveTeacher:
    return LiveTeacher(tiny.model(seed=seed), of, fingerprint="t", precision=precision, fast=fast)


def cache(folder: Path) -> AnswerCache:
    return AnswerCache(folder, {"teacher": "t", "choices": tiny.SENTIMENT})


def shards(found: AnswerCache) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(found.folder.glob("shard-*.bin")))


def test_every_row_gets_the_models_own_answer(tmp_path: Path) -> None:
    rows, found = data(), cache(tmp_path)
    assert label(teacher(rows), found, CONFIG) == len(ROWS)
    batch = rows.batch(np.arange(len(ROWS)))
    with torch.no_grad():
        own_NK = tiny.model()(**batch.inputs).logits
    cached_NK = CachedTeacher(found, rows.keys_N2).signal(batch).scores_NK
    torch.testing.assert_close(cached_NK, own_NK, atol=1e-5, rtol=1e-5)


def test_what_is_known_is_not_asked_again(tmp_path: Path) -> None:
    rows, found, seen = data(), cache(tmp_path), []
    label(teacher(rows), found, CONFIG)
    held = shards(found)
    assert label(teacher(rows), found, CONFIG, progress=seen.append) == 0
    assert sum(seen) == len(ROWS)
    assert shards(found) == held
    more = data([*ROWS, "a new film", "an awful hotel"])
    assert label(teacher(more), found, CONFIG) == 2
    assert len(found) == len(ROWS) + 2


@pytest.mark.parametrize("batches", [1, 3, 6])
def test_labelling_that_stopped_ends_with_the_same_bytes(tmp_path: Path, batches: int) -> None:
    """bf16 answers change with the rows asked together, so equal bytes need equal batches."""
    rows = data()
    config = CONFIG.model_copy(update={"precision": "bf16"})
    whole, stopped = cache(tmp_path / "whole"), cache(tmp_path / "stopped")
    label(teacher(rows, precision="bf16"), whole, config)
    count = 0

    def stop(_: int) -> None:
        nonlocal count
        count += 1
        if count > batches:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(teacher(rows, precision="bf16"), stopped, config, progress=stop)
    path = stopped.folder / "shard-00000.bin"
    path.write_bytes(path.read_bytes()[:-7])  # and its last record is torn
    again = cache(tmp_path / "stopped")
    assert 0 < len(again) < len(ROWS)
    label(teacher(rows, precision="bf16"), again, config)
    assert shards(again) == shards(whole)


def test_the_check_measures_the_largest_difference_of_probability(tmp_path: Path) -> None:
    rows = data()
    live = teacher(rows, fast=False)
    same = check(live, live.signal, rows=np.arange(9), tolerance=1e-6)
    assert same == 0.0
    other = teacher(rows, seed=1)
    with pytest.raises(RunError, match="are not this teacher's: they differ by up to") as caught:
        check(live, other.signal, rows=np.arange(9), tolerance=0.05)
    assert "\n" not in str(caught.value)


def test_a_check_fills_no_short_row_up_to_the_longest() -> None:
    rows = data(ROWS[:40])
    live, asked = teacher(rows, fast=False), list[Batch]()

    def cached(batch: Batch) -> Dense:
        asked.append(batch)
        signal = live.signal(batch)
        assert isinstance(signal, Dense)
        return signal

    check(live, cached, rows=np.arange(40), tolerance=1e-6)
    assert sorted(np.concatenate([batch.rows for batch in asked]).tolist()) == list(range(40))
    computed = sum(batch.inputs["input_ids"].numel() for batch in asked)
    assert computed < 40 * rows.lengths.max()


def test_a_teacher_that_answers_nan_stops_in_one_line(tmp_path: Path) -> None:
    rows = data()
    broken = teacher(rows)
    with torch.no_grad():
        broken.model.classifier.bias[0] = float("nan")  # pyright: ignore
    with pytest.raises(RunError, match="not finite in 8 of 8 rows") as caught:
        label(broken, cache(tmp_path), CONFIG)
    assert "\n" not in str(caught.value)
