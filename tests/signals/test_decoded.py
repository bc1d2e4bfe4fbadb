"""A teacher's texts on disk: whatever happens, a key gets its own texts, an error, or nothing.

Axes: N sources; keys are N x 2.
"""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import MarianConfig, MarianMTModel

import killing
import tiny
from stillhouse.core.errors import RunError
from stillhouse.models.decode import decode
from stillhouse.models.reader import vocabulary
from stillhouse.models.search import Decoding
from stillhouse.signals.decoded import Decoded, DecodedStore, decode_missing, filtered

IDENTITY: dict[str, object] = {"teacher": "t", "beams": 5}


def keys(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, size=(count, 2), dtype=np.uint64)


def texts(count: int) -> list[list[Decoded]]:
    """Different ones, with what JSON may trip over."""
    return [
        [
            Decoded(f'Männer "{i}"\n\t\\ \u2028 😀', (i, 7, 0), -0.1 * i / 3, i % 2 == 0),
            Decoded("", (), -1e-300, True),
        ][: 1 + i % 2]
        for i in range(count)
    ]


def filled(tmp_path: Path, keys_N2: np.ndarray, values: list[list[Decoded]]) -> DecodedStore:
    store = DecodedStore(tmp_path, IDENTITY)
    with store.writing():
        for start in range(0, len(values), 3):
            store.append(keys_N2[start : start + 3], values[start : start + 3])
    return store


def test_texts_are_found_by_key_as_they_were(tmp_path: Path) -> None:
    keys_N2, values = keys(10), texts(10)
    for store in (filled(tmp_path, keys_N2, values), DecodedStore(tmp_path, IDENTITY)):
        for i in np.random.default_rng(1).permutation(10):
            assert store.read(keys_N2[i]) == values[i]
        assert len(store) == 10
        both = np.concatenate((keys_N2[3:5], keys(2, seed=9)))
        assert store.missing(both).tolist() == [False, False, True, True]
        with pytest.raises(RunError, match="lacks a source's texts"):
            store.read(both[2])


def test_another_setting_is_another_store(tmp_path: Path) -> None:
    keys_N2 = keys(3)
    store = filled(tmp_path, keys_N2, texts(3))
    other = DecodedStore(tmp_path, {**IDENTITY, "beams": 4})
    assert other.missing(keys_N2).all()
    assert other.fingerprint != store.fingerprint


def test_a_keys_first_texts_stay(tmp_path: Path) -> None:
    keys_N2, values = keys(2), texts(6)
    store = filled(tmp_path, keys_N2, values[:2])
    with store.writing():
        store.append(keys_N2, values[2:4])
    for each in (store, DecodedStore(tmp_path, IDENTITY)):
        assert each.read(keys_N2[0]) == values[0]


def test_a_torn_end_is_cut_off_and_nothing_else(tmp_path: Path) -> None:
    """At every byte of the last of three lines."""
    keys_N2, values = keys(4), texts(4)
    store = filled(tmp_path, keys_N2[:3], values[:3])
    path = store.folder / "texts.jsonl"
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for stop in range(start, len(whole) + 1):
        path.write_bytes(whole[:stop])
        there = 3 if stop == len(whole) else 2
        again = DecodedStore(tmp_path, IDENTITY)
        assert len(again) == there
        assert path.read_bytes() == whole[:stop], "a reader leaves it alone"
        with again.writing():
            again.append(keys_N2[3:], values[3:])
        last = DecodedStore(tmp_path, IDENTITY)
        assert len(last) == there + 1
        assert [last.read(keys_N2[i]) for i in (0, 1, 3)] == [values[i] for i in (0, 1, 3)]


def test_a_flipped_bit_is_never_a_text(tmp_path: Path) -> None:
    """In every byte of the middle one of three lines."""
    keys_N2, values = keys(3), texts(3)
    store = filled(tmp_path, keys_N2, values)
    path = store.folder / "texts.jsonl"
    whole = path.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == 10]
    for place in range(ends[0] + 1, ends[1]):
        content = bytearray(whole)
        content[place] ^= 4
        path.write_bytes(content)
        with pytest.raises(RunError, match="is damaged"):
            DecodedStore(tmp_path, IDENTITY)
    path.write_bytes(whole)
    assert len(DecodedStore(tmp_path, IDENTITY)) == 3


def test_a_second_writer_waits_and_sees_what_the_first_wrote(tmp_path: Path) -> None:
    keys_N2, values = keys(2), texts(2)
    first, second = (DecodedStore(tmp_path, IDENTITY) for _ in range(2))
    seen: list[int] = []

    def write() -> None:
        with second.writing():
            seen.append(len(second))
            second.append(keys_N2[1:], values[1:])

    with first.writing():
        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(0.1)
        first.append(keys_N2[:1], values[:1])
        assert not seen
    thread.join()
    assert seen == [1]
    assert len(DecodedStore(tmp_path, IDENTITY)) == 2


def teacher() -> MarianMTModel:
    """Writes words of the tests' vocabulary: 0 pads, 3 ([SEP]) ends."""
    config = MarianConfig(
        vocab_size=65,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        pad_token_id=0,
        eos_token_id=3,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
        init_std=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MarianMTModel(config).eval()
    model.final_logits_bias[0, 3] = 3.0
    return model


def given(count: int) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return keys(count), [rng.integers(5, 65, rng.integers(1, 9)) for _ in range(count)]


CONFIG = Decoding(beams=3, best=2, max_tokens=6, max_batch_tokens=144)  # three sources a batch


def test_what_is_missing_is_decoded_once(tmp_path: Path) -> None:
    model, tokenizer = teacher(), tiny.tokenizer()
    keys_N2, sources = given(10)
    twice, again = np.concatenate((keys_N2, keys_N2[:4])), [*sources, *sources[:4]]
    words = vocabulary(model, pad_id=0)
    store = DecodedStore(tmp_path, IDENTITY)
    seen: list[int] = []
    asked = [
        decode_missing(model, tokenizer, store, k, s, CONFIG, words, progress=seen.append)
        for k, s in ((twice[8:10], again[8:10]), (twice, again), (twice, again))
    ]
    assert asked == [2, 8, 0]
    assert sum(seen) == 2 + 14 + 14
    expected = decode(model, sources, CONFIG, pad_id=0)
    for key, wanted in zip(keys_N2, expected, strict=True):
        for mine, theirs in zip(store.read(key), wanted, strict=True):
            assert mine.ids == tuple(theirs.ids)
            assert mine.logp == pytest.approx(theirs.logp, rel=1e-4)
            assert mine.finished == theirs.finished
            assert mine.text == tokenizer.decode(theirs.ids, skip_special_tokens=True).strip()
            assert "[" not in mine.text


SCRIPT = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import tiny
from stillhouse.models.reader import vocabulary
from stillhouse.signals import decoded
from test_decoded import CONFIG, IDENTITY, given, teacher

keys_N2, sources = given(40)
model = teacher()
store = decoded.DecodedStore(Path(sys.argv[1]), IDENTITY)
first = [True]
def progress(count):
    if first.pop() if first else False:
        print("ready", flush=True)
    time.sleep(0.1)  # or it is over before it is killed
words = vocabulary(model, pad_id=0)
decoded.decode_missing(
    model, tiny.tokenizer(), store, keys_N2, sources, CONFIG, words, progress=progress
)
"""


@pytest.mark.slow
def test_killed_decoding_loses_only_the_batch_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here}:{here.parent}")
    path = DecodedStore(tmp_path / "killed", IDENTITY).folder / "texts.jsonl"
    draw, counts = random.Random(0), []
    for _ in range(2):
        before = path.stat().st_size if path.exists() else 0
        process = killing.fork(SCRIPT, str(tmp_path / "killed"))
        while not path.exists() or path.stat().st_size == before:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        counts.append(len(DecodedStore(tmp_path / "killed", IDENTITY)))
    assert 0 < counts[0] < counts[1] < 40, "killed on its way, and what was there stays"
    assert killing.start(SCRIPT, str(tmp_path / "killed")).end() == 0
    killed = DecodedStore(tmp_path / "killed", IDENTITY)
    lines = (killed.folder / "texts.jsonl").read_bytes().splitlines()
    assert len(lines) == len(killed) == 40, "nothing is decoded twice"
    keys_N2, sources = given(40)
    for key, wanted in zip(keys_N2, decode(teacher(), sources, CONFIG, pad_id=0), strict=True):
        mine = [(each.ids, each.finished) for each in killed.read(key)]
        assert mine == [(tuple(each.ids), each.finished) for each in wanted]


def text(words: str, *, finished: bool = True) -> Decoded:
    return Decoded(words, (1, 2, 3), -1.0, finished)


def test_what_is_unfit_is_left_out_and_counted_by_its_first_reason() -> None:
    pairs = [
        (text("ein guter Hund läuft"), "a good dog runs"),
        (None, "a good dog runs"),
        (text(" \n"), "a good dog runs"),
        (text("", finished=False), "a good dog runs"),
        (text("ein guter Hund", finished=False), "a good dog runs"),
        (text("gut " * 4), "a good dog runs"),
        (text("ha " * 4), "ha ha ha ha"),
        (text("ja"), "a good dog runs"),
        (
            text("der Hund, der gut ist, läuft schnell über den großen Hof und freut sich"),
            "a good dog runs",
        ),
        (text("noch ein guter Hund"), "another good dog"),
    ]
    kept, counts = filtered([t for t, _ in pairs], [s for _, s in pairs])
    assert np.flatnonzero(kept).tolist() == [0, 6, 9]
    assert counts == {
        "missing": 1,
        "empty": 2,
        "unfinished": 1,
        "looping": 1,
        "short": 1,
        "long": 1,
    }
    kept, counts = filtered([t for t, _ in pairs], [s for _, s in pairs], lengths=None)
    assert np.flatnonzero(kept).tolist() == [0, 6, 7, 8, 9]


def test_lengths_are_relative_to_the_corpus() -> None:
    """Texts three times as long as their sources, but for one of equal length."""
    sources = ["abcd"] * 20
    found = [text("x" * 12)] * 19 + [text("abcd")]
    kept, counts = filtered(found, sources)
    assert kept.tolist() == [True] * 19 + [False]  # 1 against (19 x 3 + 1) / 20 = 2.9: 0.34
    assert counts == {"short": 1}
    assert filtered(found, sources, lengths=(0.3, 2.5))[0].all()


def test_a_text_without_spaces_loops_by_its_tokens() -> None:
    looping = Decoded("哈哈哈哈", (5, 5, 5, 5), -1.0, True)
    kept, counts = filtered([looping, Decoded("你好吗", (5, 6, 7), -1.0, True)], ["laugh", "hello"])
    assert kept.tolist() == [False, True]
    assert counts == {"looping": 1}


def test_nothing_is_filtered_of_nothing() -> None:
    kept, counts = filtered([], [])
    assert len(kept) == 0
    assert counts == {}
