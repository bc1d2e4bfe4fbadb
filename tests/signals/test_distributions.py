"""Distributions on disk: each scored token gets its own, an error, or nothing, whatever happens.

Axes: N scored rows, K choices, T likeliest choices.
"""

from __future__ import annotations

import math
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import killing
import tiny
from stillhouse.core.config import LabelConfig
from stillhouse.core.errors import RunError
from stillhouse.core.types import Batch, Dense, SignalSource, Sparse
from stillhouse.data.rows import content_key
from stillhouse.signals.distributions import (
    CachedDistributions,
    DistributionCache,
    keep_distributions,
)
from stillhouse.signals.records import ENTRY
from stillhouse.signals.teacher import LiveTeacher

K = 37
KILLS = int(os.environ.get("STILLHOUSE_KILLS", "3"))
COUNTS = np.array([3, 0, 4, 1, 5])
CONFIG = LabelConfig(batch_size=8, precision="float32")


def opened(root: Path, **changes: Any) -> DistributionCache:
    form: Any = {"choices": K, "top": 3, "drawn": 4, **changes}
    return DistributionCache(root, {"teacher": "t"}, **form)


def keys(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, size=(count, 2), dtype=np.uint64)


def scores(N: int, seed: int = 0, width: int = K) -> Tensor:
    return 2 * torch.randn(N, width, generator=torch.Generator().manual_seed(seed))


def counts(rows: np.ndarray) -> np.ndarray:
    return COUNTS[rows]


def filled(root: Path, **changes: Any) -> DistributionCache:
    """Five examples, of `scores(count, seed=row)`."""
    cache = opened(root, **changes)
    with cache.writing() as writer:
        for row, count in enumerate(COUNTS):
            key_N2 = keys(5)[row : row + 1]
            writer.append(key_N2, [cache.record(scores(count, row), key_N2[0])])
    return cache


def batch_of(rows: list[int], of: np.ndarray = COUNTS) -> Batch:
    """Tokens' places stand for the scored rows."""
    return Batch({}, np.array(rows), scored_N=torch.arange(int(of[rows].sum())))


def same(mine: Sparse, theirs: Sparse) -> None:
    """Up to what packing loses."""
    assert mine.top_ids_NT.equal(theirs.top_ids_NT)
    assert mine.drawn_ids_ND.equal(theirs.drawn_ids_ND)
    torch.testing.assert_close(mine.top_p_NT, theirs.top_p_NT, rtol=0.05, atol=0)
    torch.testing.assert_close(mine.tail_N, theirs.tail_N, rtol=1e-3, atol=0)


# What is kept


def test_the_likeliest_are_the_teachers(tmp_path: Path) -> None:
    cache = opened(tmp_path, temperature=2.0)
    found = cache.sparse(scores(6), keys(1)[0])
    p_NT, ids_NT = (scores(6) / 2).softmax(-1).topk(3)
    assert found.top_ids_NT.equal(ids_NT)
    torch.testing.assert_close(found.top_p_NT, p_NT)
    torch.testing.assert_close(found.tail_N, 1 - p_NT.sum(-1))
    assert found.temperature == 2.0
    assert found.drawn_ids_ND.shape == (6, 4)


@pytest.mark.parametrize("draw", ["systematic", "independent"])
def test_draws_follow_from_content_and_place_alone(tmp_path: Path, draw: Any) -> None:
    cache = opened(tmp_path, draw=draw, drawn=9)
    first, second = keys(2)
    whole = cache.sparse(scores(6), first)
    part = cache.sparse(scores(6)[:4], first)
    assert whole.drawn_ids_ND[:4].equal(part.drawn_ids_ND)
    assert not whole.drawn_ids_ND.equal(cache.sparse(scores(6), second).drawn_ids_ND)
    alike = cache.sparse(scores(1).expand(6, -1), first).drawn_ids_ND
    assert len(alike.unique(dim=0)) > 1, "each place draws its own"


def test_a_padded_vocabulary_is_cut(tmp_path: Path) -> None:
    padded_NK = torch.nn.functional.pad(scores(5), (0, 3), value=-math.inf)
    cache = opened(tmp_path)
    assert cache.record(padded_NK, keys(1)[0]) == cache.record(scores(5), keys(1)[0])
    with pytest.raises(RunError, match=f"scores {K - 1} choices, not {K}"):
        cache.record(scores(5, width=K - 1), keys(1)[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    broken_NK = scores(5)
    broken_NK[2, 7] = bad
    with pytest.raises(RunError, match="not finite in 1 of 5 rows") as caught:
        opened(tmp_path).record(broken_NK, keys(1)[0])
    assert "\n" not in str(caught.value)


# Who gets which


def test_rows_are_found_in_any_order(tmp_path: Path) -> None:
    written = filled(tmp_path)
    source = CachedDistributions(opened(tmp_path), keys(5), counts, "sampled")
    assert isinstance(source, SignalSource)
    for rows in ([0, 1, 2, 3, 4], [4, 0, 3], [2], [1], [3, 1, 2, 4]):
        found = source.signal(batch_of(rows))
        assert len(found.tail_N) == COUNTS[rows].sum()
        assert found.estimator == "sampled"
        start = 0
        for row in rows:
            part = found.part(slice(start, start + COUNTS[row]))
            same(part, written.sparse(scores(COUNTS[row], row), keys(5)[row]))
            start += COUNTS[row]


def test_what_differs_is_kept_in_another_folder(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {}, {"choices": 38}, {"top": 4}, {"drawn": 3}, {"temperature": 2.0}, {"draw": "independent"}
    ]  # fmt: skip
    caches = [opened(tmp_path, **change) for change in changes]
    caches.append(DistributionCache(tmp_path, {"teacher": "u"}, choices=K, top=3, drawn=4))
    assert len({cache.fingerprint for cache in caches}) == 7
    assert opened(tmp_path).fingerprint == caches[0].fingerprint


def test_missing_and_other_counts_are_one_line(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    with pytest.raises(RunError, match="lacks the distributions of 2 of 2 rows"):
        CachedDistributions(cache, keys(2, seed=1), counts, "tail")
    other = CachedDistributions(cache, keys(5), lambda rows: COUNTS[rows] + (rows == 2), "tail")
    assert len(other.signal(batch_of([0, 3])).tail_N) == 4
    with pytest.raises(RunError, match="an example has 5 scored tokens, and 4 in") as caught:
        other.signal(batch_of([0, 2]))
    assert "\n" not in str(caught.value)


def test_the_room_needed_is_what_is_written(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    needed = cache.bytes_needed(COUNTS)
    assert needed == sum(path.stat().st_size for path in (cache.data_path, cache.index_path))
    assert needed == 13 * cache.token_bytes + 5 * ENTRY.itemsize


def test_a_damaged_byte_is_never_a_distribution(tmp_path: Path) -> None:
    data = bytearray(filled(tmp_path).data_path.read_bytes())
    data[4 * opened(tmp_path).token_bytes] ^= 1  # of the third example
    opened(tmp_path).data_path.write_bytes(data)
    source = CachedDistributions(opened(tmp_path), keys(5), counts, "tail")
    source.signal(batch_of([0, 3, 4]))
    with pytest.raises(RunError, match="is damaged") as caught:
        source.signal(batch_of([0, 2]))
    assert "\n" not in str(caught.value)


# Asking a teacher


class Words:
    """Texts whose tokens but the first and last are scored."""

    def __init__(self, count: int) -> None:
        texts = [text for text, _ in tiny.sentences(count)]
        self.ids = [torch.tensor(ids) for ids in tiny.tokenizer()(texts)["input_ids"]]
        self.lengths = np.array([len(ids) for ids in self.ids])
        self.keys_N2 = np.stack([np.frombuffer(content_key(text, None), "<u8") for text in texts])
        self.asked: list[list[int]] = []
        self.gold_N = torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.ids)

    def scored_counts(self, rows: np.ndarray) -> np.ndarray:
        return self.lengths[rows] - 2

    def places(self, rows: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def batch(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        del rng
        self.asked.append(rows.tolist())
        ids_BT = torch.nn.utils.rnn.pad_sequence([self.ids[row] for row in rows], batch_first=True)
        place_T, lengths_B1 = (
            torch.arange(ids_BT.shape[1]),
            torch.tensor(self.lengths[rows])[:, None],
        )
        scored_BT = (place_T > 0) & (place_T < lengths_B1 - 1)
        inputs = {"input_ids": ids_BT, "attention_mask": (place_T < lengths_B1).long()}
        return Batch(inputs, rows, None, scored_BT.flatten().nonzero().squeeze(-1))


def teacher(of: Words, precision: str = "float32") -> LiveTeacher:
    model = tiny.model(layers=2, masked=True)
    return LiveTeacher(model, of, fingerprint="t", precision=precision)


def cache_of(root: Path, live: LiveTeacher) -> DistributionCache:
    return opened(root, choices=live.model.get_input_embeddings().num_embeddings)  # pyright: ignore


def test_kept_distributions_are_the_live_teachers(tmp_path: Path) -> None:
    data = Words(40)
    live, seen = teacher(data), []
    cache = cache_of(tmp_path, live)
    kept = keep_distributions(live, cache, CONFIG, counts=data.scored_counts, progress=seen.append)
    assert kept == len(cache) == len({key.tobytes() for key in data.keys_N2})
    assert sum(seen) == len(data)
    source = CachedDistributions(cache, data.keys_N2, data.scored_counts, "tail")
    batch = data.batch(np.random.default_rng(0).permutation(len(data))[:9])
    theirs, mine = live.signal(batch), source.signal(batch)
    assert isinstance(theirs, Dense)
    p_NT = theirs.scores_NK.softmax(-1).gather(-1, mine.top_ids_NT)
    torch.testing.assert_close(mine.top_p_NT, p_NT, rtol=0.05, atol=1e-5)
    assert keep_distributions(live, cache, CONFIG, counts=data.scored_counts) == 0


@pytest.mark.parametrize("batches", [1, 3])
def test_keeping_that_stopped_ends_with_the_same_bytes(tmp_path: Path, batches: int) -> None:
    """bf16 scores may change with the rows asked together, so equal bytes need equal batches."""
    first, second, count = Words(40), Words(40), 0
    live = teacher(first, "bf16")
    whole, stopped = cache_of(tmp_path / "whole", live), cache_of(tmp_path / "stopped", live)
    keep_distributions(live, whole, CONFIG, counts=first.scored_counts)

    def stop(_: int) -> None:
        nonlocal count
        count += 1
        if count > batches:
            raise KeyboardInterrupt

    live = teacher(second, "bf16")
    with pytest.raises(KeyboardInterrupt):
        keep_distributions(live, stopped, CONFIG, counts=second.scored_counts, progress=stop)
    stopped.data_path.write_bytes(stopped.data_path.read_bytes()[:-20])
    again = cache_of(tmp_path / "stopped", live)
    assert 0 < len(again) < 8 * batches
    keep_distributions(live, again, CONFIG, counts=second.scored_counts)
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")


# Killed

SCRIPT = f"""
import os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from signals.test_distributions import CONFIG, Words, cache_of, keep_distributions, teacher
root, left = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
data = Words(400)
live = teacher(data, "bf16")
cache = cache_of(root, live)
write = os.write
def dying(file, data):
    global left
    if left and len(data) >= left:
        write(file, data[:left])
        os.kill(os.getpid(), signal.SIGKILL)
    left = left and left - len(data)
    return write(file, data)
os.write = dying
print("ready", flush=True)
keep_distributions(live, cache, CONFIG, counts=data.scored_counts)
"""


def content(root: Path) -> tuple[bytes, bytes]:
    (folder,) = (root / "distributions").iterdir()
    return (folder / "distributions.bin").read_bytes(), (folder / "index.bin").read_bytes()


@pytest.mark.slow
def test_killed_at_any_moment_it_loses_and_repeats_nothing(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = killing.start(SCRIPT, str(whole), "0")
    started = time.perf_counter()
    assert process.end() == 0
    seconds = time.perf_counter() - started
    expected, draw, entries = content(whole), random.Random(0), [0]
    for kill in range(KILLS + 1):
        if kill % 2:  # in the middle of a write, of a record or of an entry
            size = draw.randrange(1, sum(map(len, expected)) // 4)
            code = killing.fork(SCRIPT, str(killed), str(size)).end()
        else:
            process = killing.fork(SCRIPT, str(killed), "0")
            time.sleep(draw.uniform(0, seconds / 2))
            code = process.kill()
        assert code in (0, -signal.SIGKILL)
        if any(killed.glob("distributions/*/index.bin")):
            found = content(killed)[1]
            entries.append(len(found) // ENTRY.itemsize)
            whole_bytes = entries[-1] * ENTRY.itemsize
            assert found[:whole_bytes] == expected[1][:whole_bytes]
    assert entries == sorted(entries), "distributions were lost"
    assert killing.start(SCRIPT, str(killed), "0").end() == 0
    assert content(killed) == expected
