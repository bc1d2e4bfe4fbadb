"""Answers on disk: whatever happens, a key gets its own answer, an error, or nothing.

Axes: N rows, K choices.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from stillhouse.core.errors import RunError
from stillhouse.core.types import Batch
from stillhouse.signals import cache as caches
from stillhouse.signals.cache import AnswerCache, CachedTeacher

IDENTITY: dict[str, object] = {"teacher": "t", "choices": ["a", "b", "c"]}
RECORD = 16 + 3 * 4 + 4  # key, scores, checksum


def answers(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    keys_N2 = rng.integers(0, 2**64, size=(count, 2), dtype=np.uint64)
    return keys_N2, rng.normal(size=(count, 3)).astype(np.float32)


def opened(tmp_path: Path) -> AnswerCache:
    return AnswerCache(tmp_path, IDENTITY)


def filled(
    tmp_path: Path, keys_N2: np.ndarray, scores_NK: np.ndarray, step: int = 3
) -> AnswerCache:
    cache = opened(tmp_path)
    with cache.writing() as writer:
        for start in range(0, len(keys_N2), step):
            writer.append(keys_N2[start : start + step], scores_NK[start : start + step])
    return cache


def test_answers_are_found_by_key_in_any_order(tmp_path: Path) -> None:
    keys_N2, scores_NK = answers(20)
    for cache in (filled(tmp_path, keys_N2, scores_NK), opened(tmp_path)):
        order = np.random.default_rng(1).permutation(20)
        assert (cache.scores(cache.positions(keys_N2[order])) == scores_NK[order]).all()
        assert (cache.positions(answers(5, seed=9)[0]) == -1).all()
        half_right = keys_N2.copy()
        half_right[:, 1] += np.uint64(1)
        assert (cache.positions(half_right) == -1).all()
        assert len(cache) == 20


def test_an_empty_cache_knows_nothing(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    assert len(cache) == 0
    assert (cache.positions(answers(4)[0]) == -1).all()


def test_shards_are_filled_sealed_and_read_across(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "SHARD", 8)
    keys_N2, scores_NK = answers(37)
    cache = filled(tmp_path, keys_N2[:19], scores_NK[:19], step=5)
    with cache.writing() as writer:
        writer.append(keys_N2[19:], scores_NK[19:])
    names = sorted(p.name for p in cache.folder.glob("shard-*"))
    assert len([n for n in names if n.endswith(".bin")]) == 5
    assert len([n for n in names if n.endswith(".json")]) == 4
    again = opened(tmp_path)
    order = np.random.default_rng(1).permutation(37)
    assert (again.scores(again.positions(keys_N2[order])) == scores_NK[order]).all()


@pytest.mark.parametrize("kept", range(RECORD + 1))
def test_a_torn_end_is_cut_off_and_nothing_else(tmp_path: Path, kept: int) -> None:
    """The last of five records torn after `kept` bytes."""
    keys_N2, scores_NK = answers(6)
    cache = filled(tmp_path, keys_N2[:5], scores_NK[:5])
    path = cache.folder / "shard-00000.bin"
    path.write_bytes(path.read_bytes()[: 4 * RECORD + kept])
    whole = 5 if kept == RECORD else 4
    again = opened(tmp_path)
    assert len(again) == whole
    with again.writing() as writer:
        writer.append(keys_N2[5:], scores_NK[5:])
    assert path.stat().st_size == (whole + 1) * RECORD
    left = [*range(whole), 5]
    assert (again.scores(again.positions(keys_N2[left])) == scores_NK[left]).all()


def test_a_reader_leaves_what_a_writer_is_writing_alone(tmp_path: Path) -> None:
    keys_N2, scores_NK = answers(4)
    cache = filled(tmp_path, keys_N2, scores_NK)
    path = cache.folder / "shard-00000.bin"
    torn = path.read_bytes()[:-5]
    path.write_bytes(torn)
    reader = opened(tmp_path)
    assert len(reader) == 3
    assert (reader.scores(reader.positions(keys_N2[:3])) == scores_NK[:3]).all()
    assert path.read_bytes() == torn


@pytest.mark.parametrize("byte", [0, 9, 20, RECORD - 1])
def test_a_flipped_bit_in_an_open_shard_is_never_an_answer(tmp_path: Path, byte: int) -> None:
    keys_N2, scores_NK = answers(5)
    cache = filled(tmp_path, keys_N2, scores_NK)
    path = cache.folder / "shard-00000.bin"
    content = bytearray(path.read_bytes())
    content[3 * RECORD + byte] ^= 16
    path.write_bytes(content)
    again = opened(tmp_path)
    assert again.positions(keys_N2)[3] == -1
    found = again.positions(keys_N2) >= 0
    assert found[:3].all()
    assert (again.scores(again.positions(keys_N2[found])) == scores_NK[found]).all()


def test_a_sealed_shard_that_changed_stops_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "SHARD", 8)
    cache = filled(tmp_path, *answers(10))
    path = cache.folder / "shard-00000.bin"
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    for damaged in (bytes(content), bytes(content[:-RECORD]), bytes(content[:-3])):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="is damaged") as caught:
            opened(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_gap_between_shards_is_never_read_as_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard killed between its last record and its seal, damaged later."""
    monkeypatch.setattr(caches, "SHARD", 8)
    keys_N2, scores_NK = answers(12)
    cache = filled(tmp_path, keys_N2, scores_NK)
    (cache.folder / "shard-00000.json").unlink()
    path = cache.folder / "shard-00000.bin"
    content = bytearray(path.read_bytes())
    content[4 * RECORD] ^= 1
    path.write_bytes(content)
    again = opened(tmp_path)
    assert len(again) == 4
    assert (again.scores(again.positions(keys_N2[:4])) == scores_NK[:4]).all()
    with pytest.raises(RunError, match="is damaged"), again.writing():
        pass
    assert path.read_bytes() == content


def test_a_full_shard_without_its_seal_is_sealed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "SHARD", 8)
    keys_N2, scores_NK = answers(12)
    cache = filled(tmp_path, keys_N2[:8], scores_NK[:8])
    seal = cache.folder / "shard-00000.json"
    held = seal.read_bytes()
    seal.unlink()
    again = filled(tmp_path, keys_N2[8:], scores_NK[8:])
    assert seal.read_bytes() == held
    assert (again.scores(again.positions(keys_N2)) == scores_NK).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_answers_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    keys_N2, scores_NK = answers(4)
    cache = opened(tmp_path)
    scores_NK[2, 1] = bad
    with pytest.raises(RunError, match="not finite in 1 of 4 rows") as caught:
        with cache.writing() as writer:
            writer.append(keys_N2, scores_NK)
    assert "\n" not in str(caught.value)
    assert len(opened(tmp_path)) == 0


def test_a_full_disk_is_one_line_and_keeps_what_was_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys_N2, scores_NK = answers(4)
    cache = filled(tmp_path, keys_N2[:3], scores_NK[:3])

    def full(handle: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    def append() -> None:
        with monkeypatch.context() as patch, cache.writing() as writer:
            patch.setattr("os.write", full)
            writer.append(keys_N2[3:], scores_NK[3:])

    with pytest.raises(RunError, match="No space left") as caught:
        append()
    assert "\n" not in str(caught.value)
    assert len(opened(tmp_path)) == 3


def test_a_second_writer_waits_and_sees_what_the_first_wrote(tmp_path: Path) -> None:
    keys_N2, scores_NK = answers(6)
    first, second = opened(tmp_path), opened(tmp_path)
    order: list[str] = []

    def write() -> None:
        with second.writing() as writer:
            order.append("second in")
            assert len(second) == 3
            writer.append(keys_N2[3:], scores_NK[3:])

    thread = threading.Thread(target=write)
    with first.writing() as writer:
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        writer.append(keys_N2[:3], scores_NK[:3])
        order.append("first out")
    thread.join(10)
    assert order == ["first out", "second in"]
    final = opened(tmp_path)
    assert (final.scores(final.positions(keys_N2)) == scores_NK).all()


def test_another_identity_is_another_cache(tmp_path: Path) -> None:
    keys_N2, scores_NK = answers(3)
    filled(tmp_path, keys_N2, scores_NK)
    for change in ({"teacher": "u"}, {"precision": "bf16"}, {"choices": ["a", "c", "b"]}):
        assert len(AnswerCache(tmp_path, {**IDENTITY, **change})) == 0


def test_a_request_is_the_same_after_a_kill(tmp_path: Path) -> None:
    keys_N2, scores_NK = answers(10)
    cache = filled(tmp_path, keys_N2[:2], scores_NK[:2])
    with cache.writing() as writer:
        assert cache.pending(keys_N2).tolist() == list(range(2, 10))
        writer.append(keys_N2[[7, 3]], scores_NK[[7, 3]])
    again = opened(tmp_path)
    assert again.pending(keys_N2).tolist() == list(range(2, 10))
    assert again.pending(keys_N2[::-1].copy()).tolist() == [0, 1, 3, 4, 5, 7]
    assert again.pending(keys_N2).tolist() == list(range(2, 10)), "another request came between"


def test_a_cached_teacher_answers_rows_of_its_data(tmp_path: Path) -> None:
    keys_N2, scores_NK = answers(6)
    cache = filled(tmp_path, keys_N2, scores_NK)
    data_keys = keys_N2[[4, 4, 0, 2]]
    teacher = CachedTeacher(cache, data_keys)
    batch = Batch({"input_ids": torch.zeros(2, 1)}, np.array([2, 0]))
    assert teacher.signal(batch).scores_NK.tolist() == scores_NK[[0, 4]].tolist()
    with pytest.raises(RunError, match="lacks 1 of 2 answers"):
        CachedTeacher(cache, np.concatenate([keys_N2[:1], answers(1, seed=5)[0]]))
