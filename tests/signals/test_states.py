"""Hidden states on disk: a row gets its own states, an error, or nothing, whatever happens.

Axes: N rows, L layers, B examples, T tokens, H hidden.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from stillhouse.core.config import LabelConfig
from stillhouse.core.errors import RunError
from stillhouse.core.types import Batch, SignalSource, States, Tap
from stillhouse.data.rows import content_key
from stillhouse.signals.kept import CachedStates, keep_states
from stillhouse.signals.states import ENTRY, StatesCache
from stillhouse.signals.teacher import LiveTeacher
from stillhouse.tasks.base import Dataset

IDENTITY: dict[str, object] = {"teacher": "t", "tokens": "k"}
LAYERS = (0, 2)
WIDTH = 5  # odd, so that no record but by chance is aligned
LENGTHS = np.array([3, 1, 4, 2, 5, 3])
FORMS = [("bf16", False), ("bf16", True), ("int8", False), ("int8", True)]
CONFIG = LabelConfig(batch_size=8, precision="bf16")


def opened(root: Path, dtype: Any = "bf16", pooled: bool = False, **changes: Any) -> StatesCache:
    form = {"layers": LAYERS, "width": WIDTH, "pooled": pooled, "dtype": dtype, **changes}
    return StatesCache(root, IDENTITY, **form)


def keys(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, size=(count, 2), dtype=np.uint64)


def masked(lengths: np.ndarray, width: int | None = None) -> Tensor:
    return torch.arange(width or int(lengths.max()))[None, :] < torch.from_numpy(lengths)[:, None]


def made(lengths: np.ndarray, seed: int = 0) -> States:
    """Random states; what is padded holds NaN, which must go nowhere."""
    draw, mask_BT = torch.Generator().manual_seed(seed), masked(lengths)
    found = {}
    for layer in LAYERS:
        x_BTH = torch.randn(*mask_BT.shape, WIDTH, generator=draw)
        found[Tap("hidden", layer)] = x_BTH.masked_fill(~mask_BT[:, :, None], float("nan"))
    return States(found, mask_BT)


def batch_of(rows: np.ndarray, lengths: np.ndarray, width: int | None = None) -> Batch:
    return Batch({"attention_mask": masked(lengths[rows], width).long()}, rows)


def filled(root: Path, dtype: str = "bf16", pooled: bool = False, step: int = 2) -> StatesCache:
    """The six rows of `made(LENGTHS)`, `step` at a time."""
    cache = opened(root, dtype, pooled)
    with cache.writing() as writer:
        records = cache.records(made(LENGTHS))
        for start in range(0, len(records), step):
            part = slice(start, start + step)
            writer.append(keys(6)[part], records[part])
    return cache


def content(cache: StatesCache) -> tuple[bytes, bytes]:
    return cache.data_path.read_bytes(), cache.index_path.read_bytes()


def values(cache: StatesCache, rows: np.ndarray) -> list[Tensor]:
    """The kept states of some of the six rows, each T x H, of both layers."""
    source = CachedStates(cache, keys(6)[rows])
    lengths = LENGTHS[rows]
    states = source.signal(batch_of(np.arange(len(rows)), lengths))
    return [
        states[Tap("hidden", layer)][row, : 1 if cache.pooled else lengths[row]]
        for row in range(len(rows))
        for layer in LAYERS
    ]


def equal(mine: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))


# What is kept of a state


@pytest.mark.parametrize("pooled", [False, True])
def test_bf16_gives_back_the_same_bits(tmp_path: Path, pooled: bool) -> None:
    source = CachedStates(filled(tmp_path, "bf16", pooled), keys(6))
    assert isinstance(source, SignalSource)
    batch, asked = batch_of(np.arange(6), LENGTHS), made(LENGTHS)
    states = source.signal(batch)
    assert states.mask_BT.equal(asked.mask_BT)
    for tap, theirs in asked.found.items():
        mine, theirs = states[tap], theirs.bfloat16()
        assert mine.dtype == torch.bfloat16
        if pooled:
            assert mine.equal(theirs[:, :1])
        else:
            assert mine[asked.mask_BT].equal(theirs[asked.mask_BT])
            assert (mine[~asked.mask_BT] == 0).all()
            assert mine.shape == (6, 5, WIDTH)


@pytest.mark.parametrize("pooled", [False, True])
def test_int8_is_off_by_no_more_than_half_a_scale(tmp_path: Path, pooled: bool) -> None:
    states = CachedStates(filled(tmp_path, "int8", pooled), keys(6)).signal(
        batch_of(np.arange(6), LENGTHS)
    )
    asked = made(LENGTHS)
    for tap, theirs in asked.found.items():
        mine, mask_BT = states[tap], asked.mask_BT
        assert mine.dtype == torch.float32
        if pooled:
            theirs, mask_BT = theirs[:, :1], mask_BT[:, :1]
        off, largest = (mine - theirs)[mask_BT].abs(), theirs[mask_BT].abs().amax(-1, keepdim=True)
        assert (off <= largest / 254 * 1.0001).all()
        assert (off > 0).any()
        assert (mine[~mask_BT] == 0).all()


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_zeros_and_a_huge_channel_are_kept(tmp_path: Path, dtype: str) -> None:
    x_BTH = torch.randn(1, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    x_BTH[0, 1], x_BTH[0, 2, 3] = 0.0, 1e4
    cache = opened(tmp_path, dtype, layers=(2,))
    states = States({Tap("hidden", 2): x_BTH}, masked(np.array([3])))
    with cache.writing() as writer:
        writer.append(keys(1), cache.records(states))
    found = CachedStates(cache, keys(1)).signal(batch_of(np.array([0]), np.array([3])))
    mine = found[Tap("hidden", 2)]
    assert torch.isfinite(mine).all()
    assert (mine[0, 1] == 0).all()
    off = (mine - x_BTH).abs()[0]
    if dtype == "int8":
        assert mine[0, 2, 3] == pytest.approx(1e4, rel=1e-6)
        assert (off[2] <= 1e4 / 254 * 1.0001).all()
        assert (off[0] <= x_BTH[0, 0].abs().max() / 254 * 1.0001).all(), "scales are a token's own"
    else:
        assert (off <= x_BTH[0].abs() / 256).all()


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_states_that_are_not_finite_are_refused(tmp_path: Path, dtype: str, bad: float) -> None:
    states = made(LENGTHS)
    states[Tap("hidden", 2)][2, 1, 0] = bad
    with pytest.raises(RunError, match="not finite in 1 of 18 tokens") as caught:
        opened(tmp_path, dtype).records(states)
    assert "\n" not in str(caught.value)


# Who gets which


@pytest.mark.parametrize(("dtype", "pooled"), FORMS)
def test_rows_are_found_in_any_order_and_width(tmp_path: Path, dtype: str, pooled: bool) -> None:
    written = filled(tmp_path, dtype, pooled)
    whole = CachedStates(written, keys(6)).signal(batch_of(np.arange(6), LENGTHS))
    source = CachedStates(opened(tmp_path, dtype, pooled), keys(6))
    for rows, width in (([5, 0, 3], 3), ([1], 1), ([2, 4, 1, 2], 9), ([3, 2], 4)):
        states = source.signal(batch_of(np.array(rows), LENGTHS, width))
        assert states.mask_BT.equal(masked(LENGTHS[rows], width))
        for tap, mine in states.found.items():
            assert mine.shape[1] == (1 if pooled else width)
            for b, row in enumerate(rows):
                real = 1 if pooled else LENGTHS[row]
                assert mine[b, :real].equal(whole[tap][row, :real])
                assert (mine[b, real:] == 0).all()


def test_what_differs_is_kept_in_another_folder(tmp_path: Path) -> None:
    first = filled(tmp_path)
    assert len(opened(tmp_path)) == 6
    others = [
        opened(tmp_path, layers=(0, 1)),
        opened(tmp_path, layers=(2,)),
        opened(tmp_path, width=6),
        opened(tmp_path, pooled=True),
        opened(tmp_path, "int8"),
    ]
    form: Any = {"layers": LAYERS, "width": WIDTH, "pooled": False, "dtype": "bf16"}
    for change in ({"teacher": "u"}, {"tokens": "l"}, {"precision": "float32"}):
        others.append(StatesCache(tmp_path, {**IDENTITY, **change}, **form))
    assert all(len(other) == 0 for other in others)
    assert len({cache.fingerprint for cache in (first, *others)}) == 9
    assert opened(tmp_path).fingerprint == first.fingerprint
    about = json.loads((first.folder / "states.json").read_text())
    assert about == {"schema": 1, "kind": "states", **form, "layers": [0, 2], "identity": IDENTITY}


@pytest.mark.parametrize("layers", [(), (2, 1), (1, 1), (-1, 2)])
def test_layers_that_do_not_rise_are_refused(tmp_path: Path, layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="layers must rise"):
        opened(tmp_path, layers=layers)


def test_rows_that_are_missing_are_told_at_once(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    half_right = keys(6)
    half_right[:2, 1] += np.uint64(1)
    with pytest.raises(RunError, match="lacks the states of 2 of 6 rows") as caught:
        CachedStates(cache, half_right)
    assert "\n" not in str(caught.value)
    assert cache.missing(half_right).tolist() == [0, 1]
    with pytest.raises(RunError, match="lacks the states of 6 of 6 rows"):
        CachedStates(opened(tmp_path / "empty"), keys(6))


def test_a_row_of_other_tokens_is_an_error(tmp_path: Path) -> None:
    source = CachedStates(filled(tmp_path), keys(6))
    with pytest.raises(RunError, match="a row has 2 tokens, and 3 in") as caught:
        source.signal(batch_of(np.array([1, 0]), np.array([2, 1])))
    assert "\n" not in str(caught.value)
    pooled = CachedStates(filled(tmp_path, pooled=True), keys(6))
    states = pooled.signal(batch_of(np.array([0]), np.array([9])))  # of another tokenizer
    assert states[Tap("hidden", 0)].shape == (1, 1, WIDTH)


@pytest.mark.parametrize(("dtype", "pooled"), FORMS)
def test_the_room_needed_is_what_is_written(tmp_path: Path, dtype: str, pooled: bool) -> None:
    empty = opened(tmp_path, dtype, pooled)
    needed = empty.bytes_needed(LENGTHS)
    assert needed == sum(map(len, content(filled(tmp_path, dtype, pooled))))
    per_token = {"bf16": 2 * WIDTH, "int8": WIDTH + 4}[dtype] * len(LAYERS)
    assert needed == (6 if pooled else 18) * per_token + 6 * ENTRY.itemsize
    assert empty.bytes_needed(LENGTHS[:0]) == 0


def test_a_disk_without_room_is_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return shutil._ntuple_diskusage(0, 0, 4_000_000_000)  # pyright: ignore

    monkeypatch.setattr(shutil, "disk_usage", usage)
    cache = opened(tmp_path)
    cache.require_room(3_000_000_000)
    with pytest.raises(RunError) as caught:
        cache.require_room(3_000_000_001)
    assert str(caught.value) == (
        f"states would take 3.0 GB, and there are 4.0 GB free at {tmp_path / 'states'} "
        "(1 GB is left free): use --set label.states=int8, or live"
    )
    with pytest.raises(RunError, match=r"12.3 GB.*use --set label.states=live$"):
        opened(tmp_path, "int8").require_room(12_300_000_000)
    assert all(path.is_relative_to(tmp_path) for path in asked)


# What is torn or damaged


@pytest.mark.parametrize("step", [1, 4])
def test_data_torn_at_any_byte_loses_no_other_row(tmp_path: Path, step: int) -> None:
    """The last two records or what is left of them; their entries are there."""
    whole = filled(tmp_path, step=step)
    data, index = content(whole)
    expected = values(whole, np.arange(6))
    begins = whole._entries["offset"].astype(int).tolist()
    for kept in range(begins[4], len(data) + 1):
        whole.data_path.write_bytes(data[:kept])
        whole.index_path.write_bytes(index)
        rows = 6 if kept == len(data) else 5 if kept >= begins[5] else 4
        again = opened(tmp_path)
        assert len(again) == rows
        assert equal(values(again, np.arange(rows)), expected[: 2 * rows])
        assert content(again) == (data[:kept], index), "a reader wrote"
        with again.writing() as writer:
            assert content(again) == (data[: [*begins, len(data)][rows]], index[: rows * 36])
            writer.append(keys(6)[rows:], again.records(made(LENGTHS))[rows:])
        assert content(again) == (data, index)
        assert equal(values(again, np.arange(6)), expected)


@pytest.mark.parametrize("kept", range(ENTRY.itemsize))
def test_an_index_torn_at_any_byte_loses_no_other_row(tmp_path: Path, kept: int) -> None:
    """Of the fifth entry `kept` bytes are left; the data of all six is there."""
    whole = filled(tmp_path)
    data, index = content(whole)
    torn = index[: 4 * ENTRY.itemsize + kept]
    whole.index_path.write_bytes(torn)
    again = opened(tmp_path)
    assert len(again) == 4
    assert again.missing(keys(6)).tolist() == [4, 5]
    assert equal(values(again, np.arange(4)), values(whole, np.arange(4)))
    assert content(again) == (data, torn), "a reader wrote"
    with again.writing() as writer:
        assert again.data_path.stat().st_size == again.end < len(data)
        writer.append(keys(6)[4:], again.records(made(LENGTHS))[4:])
    assert content(again) == (data, index)


@pytest.mark.parametrize("tail", [b"\0" * ENTRY.itemsize, b"\xff" * 50])
def test_junk_at_the_end_of_the_index_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    whole = filled(tmp_path)
    data, index = content(whole)
    whole.index_path.write_bytes(index + tail)
    again = opened(tmp_path)
    assert len(again) == 6
    with again.writing():
        pass
    assert content(again) == (data, index)


@pytest.mark.parametrize(("dtype", "pooled"), FORMS)
def test_a_damaged_byte_of_the_data_is_never_a_state(
    tmp_path: Path, dtype: str, pooled: bool
) -> None:
    whole = filled(tmp_path, dtype, pooled)
    data, _ = content(whole)
    expected = values(whole, np.arange(6))
    entry = whole._entries[3]
    start = int(entry["offset"])
    for byte in range(start, start + int(entry["tokens"]) * whole.token_bytes):
        damaged = bytearray(data)
        damaged[byte] ^= 1
        whole.data_path.write_bytes(damaged)
        again = opened(tmp_path, dtype, pooled)
        rows = np.array([0, 1, 2, 4, 5])
        others = [x for row in rows for x in expected[2 * row : 2 * row + 2]]
        assert equal(values(again, rows), others)
        for _ in range(2):  # the second time too
            with pytest.raises(RunError, match="is damaged") as caught:
                values(again, np.array([2, 3]))
        assert f"delete {again.folder} " in str(caught.value)
        assert "\n" not in str(caught.value)
        with again.writing():
            pass
        assert again.data_path.read_bytes() == damaged, "a writer took damage for a torn end"


@pytest.mark.parametrize("byte", range(ENTRY.itemsize))
def test_a_damaged_byte_inside_the_index_stops_in_one_line(tmp_path: Path, byte: int) -> None:
    cache = filled(tmp_path)
    data, index = content(cache)
    damaged = bytearray(index)
    damaged[2 * ENTRY.itemsize + byte] ^= 4
    cache.index_path.write_bytes(damaged)
    with pytest.raises(RunError, match=r"index.bin is damaged \(entry 3 of 6") as caught:
        opened(tmp_path)
    assert f"delete {cache.folder} " in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="is damaged"), cache.writing():
        pass
    assert content(cache) == (data, bytes(damaged))


def test_a_lost_entry_inside_the_index_stops(tmp_path: Path) -> None:
    """Each entry left is whole; what is between their records is nobody's."""
    cache = filled(tmp_path)
    _, index = content(cache)
    cache.index_path.write_bytes(index[: 2 * ENTRY.itemsize] + index[3 * ENTRY.itemsize :])
    with pytest.raises(RunError, match="is damaged"):
        opened(tmp_path)


def test_a_full_disk_is_one_line_and_keeps_what_was_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = filled(tmp_path)
    write, held = os.write, content(cache)

    def full(handle: int, data: memoryview) -> int:
        if len(data) < 10:
            raise OSError(28, "No space left on device")
        return write(handle, data[: len(data) // 2])

    def append() -> None:
        with monkeypatch.context() as patch, cache.writing() as writer:
            patch.setattr("os.write", full)
            writer.append(keys(1, seed=1), cache.records(made(np.array([4]))))

    with pytest.raises(RunError, match="No space left") as caught:
        append()
    assert "\n" not in str(caught.value)
    again = opened(tmp_path)
    assert len(again) == 6
    with again.writing():
        pass
    assert content(again) == held


def test_an_entry_is_written_after_its_record_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, seen = opened(tmp_path), []
    write, sync = os.write, os.fsync

    def name(handle: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{handle}")).name

    def noted_write(handle: int, data: memoryview) -> int:
        seen.append(("write", name(handle)))
        return write(handle, data)

    def noted_sync(handle: int) -> None:
        seen.append(("sync", name(handle)))
        sync(handle)

    with cache.writing() as writer, monkeypatch.context() as patch:
        patch.setattr("os.write", noted_write)
        patch.setattr("os.fsync", noted_sync)
        writer.append(keys(6), cache.records(made(LENGTHS)))
    assert seen == [("write", "states.bin"), ("sync", "states.bin"), ("write", "index.bin")]


def test_a_second_writer_waits_and_sees_what_the_first_wrote(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    records = first.records(made(LENGTHS))
    order: list[str] = []

    def write() -> None:
        with second.writing() as writer:
            order.append("second in")
            assert len(second) == 3
            writer.append(keys(6)[3:], records[3:])

    thread = threading.Thread(target=write)
    with first.writing() as writer:
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        writer.append(keys(6)[:3], records[:3])
        order.append("first out")
    thread.join(10)
    assert order == ["first out", "second in"]
    assert content(second) == content(filled(tmp_path / "whole"))


def test_an_open_reader_keeps_its_rows_while_others_are_written(tmp_path: Path) -> None:
    expected = values(filled(tmp_path / "whole"), np.arange(3))
    cache = opened(tmp_path)
    records = cache.records(made(LENGTHS))
    with cache.writing() as writer:
        writer.append(keys(6)[:3], records[:3])
    reader = opened(tmp_path)
    with cache.writing() as writer:
        writer.append(keys(6)[3:], records[3:])
    assert len(reader) == 3
    assert equal(values(reader, np.arange(3)), expected)


# Asking a teacher

ROWS = [text for text, _ in tiny.sentences(50)]
TAPS = frozenset(Tap("hidden", layer) for layer in (0, 1, 3))


class Padded:
    """Texts as inputs, tokenized in memory."""

    def __init__(self, texts: list[str]) -> None:
        self.ids = tiny.tokenizer()(texts)["input_ids"]
        self.lengths = np.array([len(ids) for ids in self.ids])
        self.asked: list[list[int]] = []

    def inputs(self, rows: np.ndarray) -> dict[str, Tensor]:
        self.asked.append(rows.tolist())
        mask_BT = masked(self.lengths[rows])
        ids_BT = torch.zeros(mask_BT.shape, dtype=torch.long)
        ids_BT[mask_BT] = torch.tensor([i for row in rows for i in self.ids[row]])
        return {"input_ids": ids_BT, "attention_mask": mask_BT.long()}


def data(texts: list[str] = ROWS) -> Dataset:
    keys_N2 = np.stack([np.frombuffer(content_key(text, None), "<u8") for text in texts])
    return Dataset(Padded(texts), keys_N2, torch.full((len(texts),), -100))


def teacher(of: Dataset, *, precision: str = "bf16", reads: Any = TAPS) -> LiveTeacher:
    model = tiny.model(layers=4)
    settings: Any = {"fingerprint": "t", "precision": precision, "reads": reads}
    return LiveTeacher(model, of, scored=False, **settings)


def cache_of(root: Path, dtype: Any = "bf16", pooled: bool = False) -> StatesCache:
    return opened(root, dtype, pooled, layers=(0, 1, 3), width=32)


@pytest.mark.parametrize(("dtype", "pooled"), FORMS)
@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_kept_states_are_the_live_teachers(
    tmp_path: Path, dtype: str, pooled: bool, precision: str
) -> None:
    """In float32, whose states hardly depend on the batch; in bf16 as far as they do."""
    rows, cache = data(), cache_of(tmp_path, dtype, pooled)
    live = teacher(rows, precision=precision)
    assert keep_states(live, cache, CONFIG) == len(ROWS)
    batch = rows.batch(np.random.default_rng(0).permutation(len(ROWS)))
    mine, theirs = CachedStates(cache, rows.keys_N2).signal(batch), live.signal(batch)
    assert isinstance(theirs, States)
    assert mine.mask_BT.equal(theirs.mask_BT)
    assert mine.found.keys() == TAPS
    allowed = {"bf16": 1 / 250, "int8": 1 / 250}[dtype] if precision == "float32" else 0.05
    for tap in TAPS:
        x, y, mask_BT = mine[tap].float(), theirs[tap].float(), mine.mask_BT
        if pooled:
            y, mask_BT = y[:, :1], mask_BT[:, :1]
        off, largest = (x - y)[mask_BT].abs().amax(-1), y[mask_BT].abs().amax(-1)
        assert (off <= allowed * largest).all()


def test_bf16_keeps_a_bf16_teachers_own_bits(tmp_path: Path) -> None:
    rows, cache = data(), cache_of(tmp_path)
    live = teacher(rows)
    keep_states(live, cache, LabelConfig(batch_size=50))  # one batch
    batch = rows.batch(np.argsort(rows.lengths, kind="stable"))
    mine, theirs = CachedStates(cache, rows.keys_N2).signal(batch), live.signal(batch)
    assert isinstance(theirs, States)
    for tap in TAPS:
        assert theirs[tap].dtype == torch.bfloat16
        assert mine[tap][mine.mask_BT].equal(theirs[tap][mine.mask_BT])


def test_the_room_told_is_what_the_missing_rows_take(tmp_path: Path) -> None:
    cache, seen = cache_of(tmp_path, "int8"), []
    first = data(ROWS[:20])
    assert keep_states(teacher(first), cache, CONFIG) == 20
    held = sum(map(len, content(cache)))
    more = data([ROWS[30], *ROWS, ROWS[30], ROWS[0]])  # the same content twice is kept once
    missing = cache.missing(more.keys_N2)
    assert missing.tolist() == [0, *range(21, 31), *range(32, 51)]
    needed = cache.bytes_needed(more.lengths[missing])
    assert keep_states(teacher(more), cache, CONFIG, progress=seen.append) == 30
    assert sum(seen) == len(more)
    assert sum(map(len, content(cache))) == held + needed
    assert len(cache.missing(more.keys_N2)) == 0
    assert keep_states(teacher(more), cache, CONFIG) == 0
    CachedStates(cache, more.keys_N2)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("batches", [1, 3, 6])
def test_reading_that_stopped_ends_with_the_same_bytes(
    tmp_path: Path, dtype: str, batches: int
) -> None:
    """bf16 states may change with the rows asked together, so equal bytes need equal batches."""
    first, rows = data(), data()
    whole, stopped = cache_of(tmp_path / "whole", dtype), cache_of(tmp_path / "stopped", dtype)
    keep_states(teacher(first), whole, CONFIG)
    count = 0

    def stop(_: int) -> None:
        nonlocal count
        count += 1
        if count > batches:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_states(teacher(rows), stopped, CONFIG, progress=stop)
    stopped.data_path.write_bytes(stopped.data_path.read_bytes()[:-300])  # within a batch
    again = cache_of(tmp_path / "stopped", dtype)
    assert 0 < len(again) < 8 * batches
    left = len(again.missing(rows.keys_N2))
    assert keep_states(teacher(rows), again, CONFIG) == left < len(ROWS)
    assert content(again) == content(whole)
    assert isinstance(first.source, Padded)
    assert isinstance(rows.source, Padded)
    asked = first.source.asked[::2]  # a live teacher makes its own batch of a batch's rows
    assert rows.source.asked[::2] == [*asked[:batches], *asked[batches - 1 :]]


def test_a_request_is_the_same_after_a_kill(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    asked, records = keys(6), cache.records(made(LENGTHS))
    with cache.writing() as writer:
        writer.append(asked[:2], records[:2])
    assert cache.pending(asked).tolist() == [2, 3, 4, 5]
    with cache.writing() as writer:
        writer.append(asked[[5, 3]], [records[5], records[3]])
    again = opened(tmp_path)
    assert again.pending(asked).tolist() == [2, 3, 4, 5]
    assert again.pending(asked[::-1].copy()).tolist() == [1, 3]
    assert again.pending(asked).tolist() == [2, 3, 4, 5], "another request came between"


def test_a_teacher_that_reads_something_else_is_our_own_bug(tmp_path: Path) -> None:
    rows = data(ROWS[:4])
    for reads in ({Tap("hidden", 1)}, {*TAPS, Tap("hidden", 2)}, {*TAPS, Tap("scores", 1)}):
        with pytest.raises(AssertionError, match="reads what the cache keeps"):
            keep_states(teacher(rows, reads=reads), cache_of(tmp_path), CONFIG)
